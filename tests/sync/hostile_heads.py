"""Lies about what is held: claims, heads exchanges, what one holds of the node's own source, witnesses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import trio

from deltalog.delta import SEQ_MAX
from sync import comparison
from sync.comparison import ANSWER, DIGESTS, ENTRIES, MORE, Part
from sync.errors import HeadRefused, ProtocolError
from sync.heads import Entry, HeadsIndex, key_of, source_of
from sync.messages import (
    Compare,
    Have,
    Message,
    Welcome,
)
from tests.sync.hostile import NOTHING, Foe, Tale
from tests.sync.hostile_case import (
    Case,
    Play,
    live,
    names_of,
)
from tests.sync.nodes import CheapKey, until


def _having(*sources: tuple[str, int]) -> Play:
    async def play(foe: Foe) -> None:
        await live(foe)
        await foe.say(Have(sources))
        await trio.sleep(25)  # longer than a feeder may stall

    return play


async def has_ten_thousand(foe: Foe) -> None:
    """Sources that it never sends."""
    await live(foe)
    await foe.say(Have(names_of(5000)), Have(names_of(5000, 5000)))
    await trio.sleep(25)
    assert len(foe.node.mesh.peers["mallory"].session.asked) == 10_001


async def has_them_all(foe: Foe) -> None:
    """More sources than a peer may name, with names as long as can be."""
    await live(foe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(foe.listen_on)
        for start in range(0, 40_000, 500):
            await foe.say(Have(tuple((f"{number:0255}", 1) for number in range(start, start + 500))))
        await foe.ended.wait()
        nursery.cancel_scope.cancel()


def _welcome(seq: int) -> Play:
    """It says that it holds something of the node's own source, of another history."""

    async def play(foe: Foe) -> None:
        await foe.open(Welcome(seq, b"w" * 32, 1, seq, NOTHING))
        await trio.sleep(5)

    return play


async def own_history(foe: Foe) -> None:
    """It says that it holds more of the node's own source, and sends some, signed as well as it can."""
    await foe.open(Welcome(SEQ_MAX, b"w" * 32, 1, SEQ_MAX, NOTHING))
    held = foe.node.mesh.ledger.seq("alice")
    await until(lambda: "alice" in foe.node.mesh.peers["mallory"].session.asked)
    tale = Tale("alice", foe.key)
    tale.grow(held + 3)
    await foe.batch(*tale.run(held + 1))
    await trio.sleep(5)


def _own_forged(**head: Any) -> Play:
    async def play(foe: Foe) -> None:
        await foe.open(Welcome(SEQ_MAX, b"w" * 32, 1, SEQ_MAX, NOTHING))
        held = foe.node.mesh.ledger.seq("alice")
        await until(lambda: "alice" in foe.node.mesh.peers["mallory"].session.asked)
        tale = Tale("alice", CheapKey("alice"))
        tale.grow(held + 3)
        await foe.batch(*tale.run(held + 1, **head))
        await trio.sleep(5)

    return play


async def own_compared(foe: Foe) -> None:
    """It says in a heads exchange that it holds another history of everything."""
    await foe.open()
    log = foe.node.log
    entries = [Entry(source, seq, b"e" * 32) for source, seq in log.synced.items()]
    entries.sort(key=lambda entry: key_of(entry.source))
    await foe.say(Compare(tuple(comparison.encode([Part(ENTRIES, b"", entries=tuple(entries))]))))
    await foe.listen(Compare)
    await trio.sleep(5)


def _witness(make: Callable[[Foe], Message]) -> Play:
    async def play(foe: Foe) -> None:
        await live(foe)
        await foe.say(make(foe))
        await trio.sleep(5)

    return play


async def forged_witnesses(foe: Foe) -> None:
    """Heads that end no run, as evidence against others."""
    await live(foe)
    await foe.say(
        *(Tale("bob", CheapKey("bob")).head(seq, hash=b"w" * 32, signature=b"s" * 64) for seq in (1, 2, 3, 4, 5))
    )


def _comparing(*parts: Part, raw: list[Any] | None = None) -> Play:
    async def play(foe: Foe) -> None:
        await foe.open()
        await foe.say(Compare(tuple(comparison.encode(parts) if raw is None else raw)))
        await foe.say(Compare(()))

    return play


def _sorted(*entries: Entry) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: key_of(entry.source)))


_ENTRIES: Final = _sorted(*(Entry(f"fake {number}", 1, NOTHING) for number in range(9)))
_DIGESTS: Final = Part(DIGESTS, b"", b"d" * 256)
_ROOT: Final = Part(ENTRIES, b"", entries=_ENTRIES)
HEADS: Final[dict[str, tuple[Play, str]]] = {
    "an answer to nothing": (_comparing(Part(ANSWER, b"", entries=_ENTRIES)), "range '' was not asked about"),
    "a range twice": (_comparing(_ROOT, _ROOT), "was not asked about, or is answered already"),
    "a range nobody asked about": (_comparing(Part(DIGESTS, b"\1\2", b"d" * 256)), "range '0102' was not asked about"),
    "a range without end": (_comparing(raw=[[1, b"\0" * 16, b"d" * 256]]), "a range must be up to 15 digits"),
    "a range of 17 digits": (_comparing(raw=[[2, b"\0" * 17, []]]), "a range must be up to 16 digits"),
    "a range of no digits": (_comparing(raw=[[2, b"\x10", []]]), "a range must be up to 16 digits of 0 to 15"),
    "entries out of order": (
        _comparing(raw=[[2, b"", [list(e) for e in reversed(_ENTRIES)]]]),
        "out of its range or order",
    ),
    "an entry twice": (_comparing(raw=[[2, b"", [list(_ENTRIES[0])] * 2]]), "out of its range or order"),
    "an entry of seq 0": (_comparing(raw=[[2, b"", [["x", 0, b""]]]]), "seq of source 'x' is 0"),
    "an entry of seq 2**63": (_comparing(raw=[[2, b"", [["x", 2**63, NOTHING]]]]), "heads: seq must be an integer"),
    "an entry without hash": (_comparing(raw=[[2, b"", [["x", 1, b""]]]]), "heads: hash must be 32 bytes"),
    "257 entries": (_comparing(raw=[[2, b"", [["x", 1, NOTHING]] * 257]]), "heads: 257 entries; the limit is 256"),
    "1,001 parts": (_comparing(raw=[[4]] * 1001), "heads: 1,001 parts"),
    "a part of kind 9": (_comparing(raw=[[9]]), "heads: a part of kind 9"),
    "a part of nothing": (_comparing(raw=[[]]), "heads: a part of kind"),
    "a part that is none": (_comparing(raw=[7]), "heads: part must be an array"),
    "short digests": (_comparing(raw=[[1, b"", b"d"]]), "heads: digests must be 256 bytes"),
    "more in the middle": (_comparing(Part(MORE), _DIGESTS), "a part of kind 4 in the middle"),
    "more, and nothing": (_comparing(Part(MORE)), "a message that says nothing and is not the last"),
    "nothing at all": (_comparing(), "a message that says nothing and is not the last"),
}


async def compares_for_ever(foe: Foe) -> None:
    """One heads exchange after the other, each of them with fake sources: at the pace that the node allows."""
    await live(foe)
    began = trio.current_time()
    for number in range(200):
        entries = tuple(comparison.encode([Part(ENTRIES, b"", entries=_sorted(Entry(f"fake {number}", 1, NOTHING)))]))
        await foe.say(Compare(entries))
        await foe.listen(Compare)
    assert trio.current_time() - began > (200 - 40) / 20 - 1


async def fills_a_frame(foe: Foe) -> None:
    """As many entries as a frame holds, of sources that do not exist."""
    await foe.open()
    await foe.say(Compare(tuple(comparison.encode([_DIGESTS]))))
    await foe.listen(Compare)
    keys = sorted(key_of(f"{number:x}") for number in range(5500))
    ranges = [[key for key in keys if key[0] >> 4 == digit] for digit in range(16)]
    parts = [
        Part(
            ANSWER,
            bytes((digit,)),
            entries=tuple(Entry(source_of(key), 1, NOTHING) for key in inside[start : start + 256]),
        )
        for digit, inside in enumerate(ranges)
        for start in range(0, len(inside), 256)
    ]
    await foe.say(Compare(tuple(comparison.encode(parts))))
    await until(lambda: len(foe.node.mesh.peers["mallory"].session.claims) >= 5500)


async def never_ends_a_comparison(foe: Foe) -> None:
    """Always more to come, and never anything."""
    await foe.open()
    await foe.say(Compare(tuple(comparison.encode([_ROOT]))))
    await foe.listen(Compare)
    for _ in range(50):
        await foe.say(Compare(tuple(comparison.encode([Part(MORE)]))))


async def begins_what_the_other_begins(foe: Foe) -> None:
    """A COMPARE behind the end of the one that the node had begun."""
    await foe.open()
    first = await foe.listen(Compare)
    step = comparison.Comparison(HeadsIndex()).receive(comparison.decode(list(first.parts)))
    assert step.answer is not None
    await foe.say(Compare(tuple(comparison.encode(step.answer))))
    await until(lambda: foe.node.mesh.peers["mallory"].compared)
    await foe.say(Compare(()))


def heads() -> Iterator[Case]:
    """Lies about what is held."""
    yield Case("has 2**63 - 1 of bob", _having(("bob", SEQ_MAX)), None, takes=2)
    yield Case("has 2**63 - 1 of alice", _having(("alice", SEQ_MAX)), None, takes=2)
    yield Case("has 2**63 - 1 of itself", _having(("mallory", SEQ_MAX)), None, takes=2)
    yield Case("has 10,000 that do not exist", has_ten_thousand, None, takes=2)
    yield Case("has all that a frame can name", has_them_all, ProtocolError, "heads of more than", takes=2)
    yield Case("holds another history of alice", _welcome(3), None, "another history up to 3")
    yield Case("holds more of alice than alice", _welcome(SEQ_MAX), None)
    yield Case("sends deltas of alice", own_history, None, "source 'alice': belongs to key")
    yield Case(
        "forges deltas of alice", _own_forged(signature=b"s" * 64), None, "the signature of head .* does not hold"
    )
    yield Case("compares all wrong", own_compared, None, "source 'alice': another history up to")
    yield Case("forged witnesses", forged_witnesses, HeadRefused, "the signature of head", takes=2)
    yield Case(
        "a witness of another key",
        _witness(lambda foe: Tale("bob", foe.key).head(3, hash=NOTHING)),
        None,
        "belongs to key",
        takes=2,
    )
    yield Case(
        "a witness of nothing",
        _witness(lambda foe: Tale("new", foe.key).head(3, hash=NOTHING)),
        None,
        takes=2,
    )
    for name, (play, reason) in HEADS.items():
        yield Case(f"compare: {name}", play, ProtocolError, reason)
    yield Case("compare: all that a frame holds", fills_a_frame, None)
    yield Case("compare: again and again", compares_for_ever, None, takes=2)
    yield Case("compare: always more", never_ends_a_comparison, ProtocolError, "heads: ")
    yield Case(
        "compare: not its turn", begins_what_the_other_begins, ProtocolError, "COMPARE, and this side", dialed=True
    )
