"""Hostile deltas: forged, altered, out of order, not asked for, too many, too late, too early, again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from deltalog.clock import pack
from deltalog.codec import build
from deltalog.delta import SEQ_MAX
from sync.errors import Diverged, HeadRefused, ProtocolError
from sync.messages import (
    Ack,
    Commit,
    Have,
    encode,
    encode_run,
)
from sync.session import PARKED_BYTES
from tests.deltalog.memory_log import NOON_MS
from tests.sync.hostile import Foe, Tale, frame, joined
from tests.sync.hostile_case import (
    Case,
    Play,
    live,
)
from tests.sync.nodes import CheapKey, until


async def asked_for(foe: Foe, *sources: str, count: int = 3) -> list[Tale]:
    """Claim sources; return them once the node has asked for all."""
    tales = [Tale(source, foe.key) for source in sources]
    for tale in tales:
        tale.grow(count)
    await foe.say(Have(tuple((source, count) for source in sources)))
    await until(lambda: foe.node.mesh.peers["mallory"].session.asked.keys() >= set(sources))
    return tales


def _forging(**head: Any) -> Play:
    """Five sources, each with a head that is not right, in a batch of its own."""

    async def play(foe: Foe) -> None:
        await foe.open()
        for tale in await asked_for(foe, "one", "two", "three", "four", "five"):
            await foe.batch(*tale.run(**head))
        await foe.listen_on()
        assert len(foe.said(Ack)) < 3, "it is cut off at the third"

    return play


def _refused(**head: Any) -> Play:
    """The same with heads that are only not wanted here: nobody is blamed, and no more of these is asked for."""

    async def play(foe: Foe) -> None:
        await foe.open()
        names = ["one", "two", "three", "four", "five"]
        for tale in await asked_for(foe, *names):
            await foe.batch(*tale.run(**head))
            assert (await foe.listen(Ack)).items == ((tale.source, 0),)
        await until(lambda: foe.node.mesh.peers["mallory"].incoming.barred >= set(names))

    return play


def _altering(change: Callable[[Tale], None], *, after: int) -> Play:
    """Five sources whose deltas are not those that were signed, behind `after` that were."""

    async def play(foe: Foe) -> None:
        await foe.open()
        tales = await asked_for(foe, "one", "two", "three", "four", "five", count=8)
        if after:
            await foe.batch(*[each for tale in tales for each in tale.run(1, after)])
            await foe.listen(Ack)
        for tale in tales:
            change(tale)
            await foe.batch(*tale.run(after + 1))
        await foe.listen_on()
        assert len(foe.said(Ack)) < 3 + bool(after), "it is cut off at the third"

    return play


def _replace(tale: Tale, seq: int, **fields: Any) -> None:
    delta = tale.deltas[seq - 1]
    fields = {"timestamp": delta.timestamp, "payload": None, **fields}
    tale.deltas[seq - 1] = build(tale.source, seq, fields.pop("timestamp"), fields.pop("payload"), **fields)


def _unsolicited(source: str) -> Play:
    async def play(foe: Foe) -> None:
        await live(foe)
        tale = Tale(source, foe.key)
        tale.grow(9)
        await foe.batch(*tale.run())

    return play


def _behind_live(*frames: Callable[[Tale], bytes], commit: int | None = None) -> Play:
    """Frames behind the foe's first two deltas, made of the next six; and a COMMIT."""

    async def play(foe: Foe) -> None:
        await live(foe)
        foe.tale.grow(6)
        await foe.say(*(make(foe.tale) for make in frames))
        if commit is not None:
            await foe.say(Commit(commit))

    return play


def _part(first: int, last: int) -> Callable[[Tale], bytes]:
    """DELTAS alone."""
    return lambda tale: joined(tale.run(first, last)[:-1])


def _whole(first: int, last: int) -> Callable[[Tale], bytes]:
    """DELTAS and HEAD."""
    return lambda tale: joined(tale.run(first, last))


def _order(*seqs: int) -> Callable[[Tale], bytes]:
    """DELTAS whose records stand in another order."""
    return lambda tale: joined(encode_run(tale.source, seqs[0], [tale.deltas[seq - 1].record for seq in seqs]))


def _lying(count: int, tail: bytes = b"") -> Callable[[Tale], bytes]:
    """DELTAS that say they are more or fewer than they are."""

    def make(tale: Tale) -> bytes:
        body = b"\x07mallory" + struct.pack(">QI", 3, count) + tale.deltas[2].record + tail
        return frame(9, body)

    return make


async def never_ends_a_run(foe: Foe) -> None:
    """More and more deltas, and no head."""
    await live(foe)
    foe.tale.grow(6 << 20 >> 14, payload=b"x" * (1 << 14))
    for seq in range(3, len(foe.tale.deltas) + 1):
        await foe.say(*foe.tale.run(seq, seq)[:-1])
    await foe.listen_on()


async def never_ends_a_run_of_small_ones(foe: Foe) -> None:
    """The same, of the smallest there are: each costs far more memory than bytes."""
    await live(foe)
    foe.tale.grow(PARKED_BYTES // 31)
    for seq in range(3, len(foe.tale.deltas) - 2000, 2000):
        await foe.say(*foe.tale.run(seq, seq + 1999)[:-1])
    await foe.listen_on()


async def never_ends_a_batch(foe: Foe) -> None:
    """A run for each of many sources, of one delta, and no COMMIT."""
    await live(foe)
    names = [f"s{number:05}" for number in range(20_000)]
    for start in range(0, len(names), 5000):
        await asked_for(foe, *names[start : start + 5000], count=1)
    for start in range(0, len(names), 500):
        tales = [Tale(name, foe.key) for name in names[start : start + 500]]
        for tale in tales:
            tale.grow(1)
        await foe.say(*(each for tale in tales for each in tale.run()))
    await foe.listen_on()


async def many_runs(foe: Foe) -> None:
    """A batch of many sources, each with a signature to verify: nothing is wrong, and others go on."""
    await live(foe)
    tales = await asked_for(foe, *(f"s{number:03}" for number in range(300)), count=1)
    await foe.batch(*(each for tale in tales for each in tale.run()))
    assert len((await foe.listen(Ack)).items) == 300


async def large_frame_of_small_ones(foe: Foe) -> None:
    """A frame as large as one of a single large delta may be, of the smallest."""
    await live(foe)
    foe.tale.grow(40_000)
    body = b"\x07mallory" + struct.pack(">QI", 3, 39_998) + joined(d.record for d in foe.tale.deltas[2:])
    await foe.say(frame(9, body))


async def far_future(foe: Foe) -> None:
    """A delta written in an hour: it stays out, and moves no clock."""
    await live(foe)
    foe.tale.grow(1, ms=3_600_000)
    await foe.batch(*foe.tale.run(3))
    assert (await foe.listen(Ack)).items == (("mallory", 2),)


async def far_future_deps(foe: Foe) -> None:
    """Deltas that wait for what never comes: they are parked, and are not told as synced."""
    await live(foe)
    foe.tale.grow(6, deps={"nobody": SEQ_MAX})
    await foe.batch(*foe.tale.run(3))
    assert (await foe.listen(Ack)).items == (("mallory", 2),)


async def replayed(foe: Foe) -> None:
    """The same batch, again and again: known each time."""
    await live(foe)
    for _ in range(20):
        await foe.batch(*foe.tale.run())
        assert (await foe.listen(Ack)).items == (("mallory", 2),)
    assert foe.node.mesh.peers["mallory"].traffic.deltas_known == 40


async def overlapping(foe: Foe) -> None:
    """Runs that begin in what is held."""
    await live(foe)
    foe.tale.grow(1)
    await foe.batch(*foe.tale.run(2))
    assert (await foe.listen(Ack)).items == (("mallory", 3),)


NOT_SIGNED: Final[dict[str, Any]] = {"key": b"", "signature": b"", "voucher": b""}
_EVE: Final = CheapKey("eve")


def _mismatch(after: int) -> str:
    return rf"the chain of {after + 1}\.\.8 does not lead to the head"


_GAP: Final = "deltas of 'mallory' from 5, which leaves a gap"
ALTERED: Final[dict[str, Callable[[Tale], None]]] = {
    "payload": lambda tale: _replace(tale, 6, payload="other"),
    "key": lambda tale: _replace(tale, 6, key="other"),
    "kind": lambda tale: _replace(tale, 6, kind="other"),
    "deps": lambda tale: _replace(tale, 6, deps={"bob": 1}),
    "timestamp": lambda tale: _replace(tale, 8, timestamp=pack(NOON_MS + 9)),
}


def deltas() -> Iterator[Case]:
    """Runs, heads and batches that are not what they must be."""
    forged = "the signature of head 3 does not hold"
    yield Case("a forged signature", _forging(signature=b"s" * 64), HeadRefused, forged)
    yield Case("a head of another cluster", _forging(cluster="others"), HeadRefused, forged)
    yield Case("a head with another hash", _forging(hash=b"h" * 32), Diverged, "the chain of 1..3 does not lead")
    yield Case("a key nobody admitted", _refused(key=_EVE.key), None, "is not admitted")
    yield Case("a head that is not signed", _refused(**NOT_SIGNED), None, "was not allowed unsigned")
    for what, change in ALTERED.items():
        for after in (0, 5):
            takes = 5 * after
            yield Case(
                f"another {what} behind {after}",
                _altering(change, after=after),
                Diverged,
                _mismatch(after),
                takes=takes,
            )
    for source in ("alice", "bob", "carol", "nobody"):
        yield Case(f"deltas of {source}", _unsolicited(source), ProtocolError, f"{source!r} was not asked for", takes=2)
    for name, play, reason in (
        ("records in another order", _behind_live(_order(3, 5, 4, 6)), "deltas of 'mallory': .*seq"),
        ("records twice", _behind_live(_order(3, 4, 4, 5)), "deltas of 'mallory': .*seq"),
        ("a record left out", _behind_live(_order(3, 5, 6)), "deltas of 'mallory': .*seq"),
        ("another seq than announced", _behind_live(_lying(1), _part(3, 4)), "from 3, within a run"),
        ("more announced than come", _behind_live(_lying(9)), "deltas of 'mallory'"),
        ("fewer announced than come", _behind_live(_lying(1, b"x" * 31)), "31 bytes behind the last"),
        ("a hole between two frames", _behind_live(_part(3, 4), _part(6, 8)), "deltas of 'mallory' from 6, within"),
        ("a run cut short", _behind_live(_part(3, 4), lambda t: encode(t.head(8))), "head 'mallory':8 behind a run"),
        ("a head from before", _behind_live(_part(3, 4), lambda t: encode(t.head(3))), "head 'mallory':3 behind a run"),
        ("a run behind a gap", _behind_live(_whole(5, 8), commit=2), _GAP),
        ("two runs in a batch", _behind_live(_whole(3, 4), _whole(5, 8)), "two runs of 'mallory' in one batch"),
        ("one run twice", _behind_live(_whole(3, 4), _whole(3, 4)), "two runs of 'mallory' in one batch"),
        ("a batch from before", _behind_live(_whole(3, 8), commit=1), "batch 1 where 2 was due"),
        ("a batch to come", _behind_live(_whole(3, 8), commit=SEQ_MAX), "batch 9223372036854775807 where 2 was due"),
        ("an empty batch", _behind_live(commit=2), "COMMIT of an empty batch"),
        ("a batch in a run", _behind_live(_part(3, 8), commit=2), "COMMIT within a run"),
        ("a run without end", never_ends_a_run, "bytes are not decided; the limit is"),
        ("a run of small ones without end", never_ends_a_run_of_small_ones, "are not decided; the limit is"),
        ("a large frame of small ones", large_frame_of_small_ones, "frame of .* bytes for 39,998 deltas"),
    ):
        yield Case(name, play, ProtocolError, reason, takes=2)
    yield Case("a batch without end", never_ends_a_batch, ProtocolError, "are not decided; the limit is", takes=2)
    yield Case("a batch of many runs", many_runs, None, takes=302)
    yield Case("a delta of next hour", far_future, None, "was refused: ", takes=2)
    yield Case("deltas that wait for ever", far_future_deps, None, takes=2)
    yield Case("a batch again", replayed, None, takes=2)
    yield Case("a run that overlaps", overlapping, None, takes=3)
