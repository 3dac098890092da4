"""Hostile requests, acknowledgements and heartbeats; slowness, silence, hanging up."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import trio

from deltalog.delta import SEQ_MAX
from sync import comparison
from sync.errors import LinkFailed, ProtocolError
from sync.heads import HeadsIndex
from sync.messages import (
    Ack,
    Alive,
    Below,
    Commit,
    Compare,
    Goodbye,
    Have,
    Message,
    Packed,
    Total,
    Unwant,
    Want,
    encode,
)
from sync.peer import Left
from sync.session import WINDOW_BYTES
from tests.sync.hostile import NOTHING, Foe, frame, joined
from tests.sync.hostile_case import (
    ALL_STATES,
    BEFORE,
    OPEN,
    Case,
    Play,
    came,
    live,
    names_of,
    saying,
)
from tests.sync.nodes import until


def _repeating(message: Message, count: int, *, least_s: float = 0) -> Play:
    async def play(foe: Foe) -> None:
        await live(foe)
        began = trio.current_time()
        end = Total(1, count)
        await foe.say(joined([encode(message)] * count), end)
        session = foe.node.mesh.peers["mallory"].session
        async with trio.open_nursery() as nursery:
            nursery.start_soon(foe.listen_on)
            await until(lambda: session.announced == end or foe.ended.is_set())
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began >= least_s

    return play


async def wants_too_many(foe: Foe) -> None:
    """Want more sources than there can be."""
    await live(foe)
    for start in range(0, 300_000, 5000):
        await foe.say(Want(names_of(5000, start)))
    session = foe.node.mesh.peers["mallory"].session
    await foe.say(Total(1, 1))
    await until(lambda: session.announced == Total(1, 1))
    assert not session.wanted


async def never_acknowledges(foe: Foe) -> None:
    """It reads all that comes, and never says so: a window of it comes and no more."""
    await live(foe)
    await foe.say(Want((("alice", 0), ("bob", 0))))
    with trio.move_on_after(25):
        await foe.listen_on()
    held = sum(len(delta.record) for source in ("alice", "bob") for delta in foe.got(source))
    assert WINDOW_BYTES <= held <= 2 * WINDOW_BYTES


async def never_reads(foe: Foe) -> None:
    """It wants all, and reads nothing."""
    await live(foe)
    await foe.say(Want((("alice", 0), ("bob", 0))))
    while not foe.ended.is_set():
        await foe.say(Alive(0, 0, NOTHING))
        await trio.sleep(5)


async def makes_the_node_talk_and_never_reads(foe: Foe) -> None:
    """Claims that are each answered by a WANT of the same size."""
    await live(foe)
    for start in range(0, 40_000, 1000):
        await foe.say(Have(tuple((f"{number:0190}", 1) for number in range(start, start + 1000))))
        await trio.sleep(0.2)


async def wants_back_and_forth(foe: Foe) -> None:
    """The same deltas, over and over, acknowledged each time: what it asked for, at the pace of requests."""
    await live(foe)
    for _ in range(20):
        await foe.say(Want((("bob", 0),)))
        batch = await foe.listen(Commit)
        await foe.say(Ack(batch.number, (("bob", 1),)), Unwant(("bob",)))


async def acks_more_than_it_got(foe: Foe) -> None:
    """It may have it from elsewhere, so that is no lie that shows; it moves nothing here."""
    await live(foe)
    await foe.say(Want((("bob", 0),)))
    batch = await foe.listen(Commit)
    await foe.say(Ack(batch.number, (("bob", SEQ_MAX),)))
    await trio.sleep(25)


def _acking(*acks: Callable[[int], Ack]) -> Play:
    async def play(foe: Foe) -> None:
        await live(foe)
        await foe.say(Want((("bob", 0),)))
        batch = await foe.listen(Commit)
        await foe.say(*(make(batch.number) for make in acks))
        await foe.listen_on()

    return play


async def below_the_floor(foe: Foe) -> None:
    """It says that all it had of its source was dropped, again and again."""
    await live(foe)
    for number in range(1, 20):
        await foe.say(Below("x", (("mallory", number),)), Have((("mallory", SEQ_MAX),)))
    await trio.sleep(25)


async def pulses_of_nonsense(foe: Foe) -> None:
    """Heartbeats that never agree, on a link that the node made: heads are compared again, at their pace."""
    await foe.open()

    async def answer() -> None:
        while True:
            said = await foe.listen(Compare)
            step = comparison.Comparison(HeadsIndex()).receive(comparison.decode(list(said.parts)))
            if step.answer is not None:
                await foe.say(Compare(tuple(comparison.encode(step.answer))))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        for _ in range(100):
            await foe.say(Alive(1, 1, NOTHING))
            await trio.sleep(0.25)
        nursery.cancel_scope.cancel()
    assert len(foe.said(Compare)) < 60


async def packs_what_it_sends(foe: Foe) -> None:
    """Though the node does not: a batch in one piece, then deltas without their head."""
    await live(foe)
    foe.tale.grow(3)
    foe.batches += 2
    await foe.say(Packed(zlib.compress(joined([*foe.tale.run(3, 4), encode(Commit(2))]))))
    *deltas, head = foe.tale.run(5)
    await foe.say(Packed(zlib.compress(joined(deltas))), head, Commit(3))
    while foe.said(Ack)[-1].number < 3:
        await foe.listen(Ack)


def rest() -> Iterator[Case]:
    """Requests, acknowledgements, heartbeats."""
    yield Case("wants what nobody has", _repeating(Want((("nobody", 0),)), 200, least_s=7), None, takes=2)
    yield Case("wants below a floor", _repeating(Want((("alice", 0), ("bob", 0))), 100, least_s=2), None, takes=2)
    yield Case("wants 2**63 - 1", _repeating(Want((("bob", SEQ_MAX),)), 3), None, takes=2)
    yield Case("wants more than there can be", wants_too_many, None, takes=2)
    yield Case("wants the same again and again", wants_back_and_forth, None, takes=2)
    yield Case("does not want what it never wanted", _repeating(Unwant(("nobody",)), 5000), None, takes=2)
    yield Case("pulses", _repeating(Alive(0, 0, NOTHING), 20_000), None, takes=2)
    yield Case("totals", _repeating(Total(2**64 - 1, 2**64 - 1), 20_000), None, takes=2)
    yield Case("claims again and again", _repeating(Have((("bob", 1),)), 20_000), None, takes=2)
    yield Case("pulses that never agree", pulses_of_nonsense, None, "", dialed=True)
    yield Case("never acknowledges", never_acknowledges, None, takes=2, bulk=150)
    yield Case(
        "never reads", never_reads, LinkFailed, "has not taken what was sent to it within 30 s", bulk=150, takes=2
    )
    yield Case(
        "never reads answers",
        makes_the_node_talk_and_never_reads,
        LinkFailed,
        "bytes wait for the other side to read them",
        takes=2,
    )
    yield Case("packs what it sends", packs_what_it_sends, None, takes=5)
    yield Case("acks more than it got", acks_more_than_it_got, None, takes=2)
    for name, acks, reason in (
        ("an ack of nothing", [lambda number: Ack(number + 1, ())], "ACK of batch 2, which is not due"),
        (
            "an ack twice",
            [lambda number: Ack(number, ()), lambda number: Ack(number, ())],
            "ACK of batch 1, which is not",
        ),
        (
            "an ack of another source",
            [lambda number: Ack(number, (("carol", 1),))],
            "ACK of 'carol', which batch 1 does",
        ),
    ):
        yield Case(name, _acking(*acks), ProtocolError, reason, takes=2)
    yield Case(
        "all is below its floor", saying(live, Below("", (("bob", 5),))), ProtocolError, "not asked for", takes=2
    )
    yield Case("below its floor, and not", below_the_floor, None, "was dropped there", takes=2)


async def silent(foe: Foe) -> None:
    """Says nothing until the node has had enough."""
    await foe.ended.wait()


def _then(state: Play, do: Play) -> Play:
    async def play(foe: Foe) -> None:
        await state(foe)
        await do(foe)

    return play


def _dripping(data: bytes | None, pause_s: float) -> Play:
    async def play(foe: Foe) -> None:
        await foe.drip(encode(foe.hello()) if data is None else data, pause_s)

    return play


async def closes(foe: Foe) -> None:
    """Hangs up."""
    await foe.link.aclose()
    await foe.ended.wait()


async def leaves(foe: Foe) -> None:
    """Says that it goes, with a code nobody knows."""
    await foe.say(Goodbye("\0\N{GRINNING FACE}", "x" * 1024))
    await foe.listen_on()


def times() -> Iterator[Case]:
    """Slowness, silence, and hanging up."""
    late = "has not said who it is within 10 s"
    slow = "has not sent the rest of a frame within 10 s"
    for state in BEFORE:
        yield Case(f"silence ({state.__name__})", _then(state, silent), LinkFailed, late)
    yield Case("a slow greeting", _dripping(None, 1), LinkFailed, "within 10 s")
    pulse = encode(Alive(0, 0, NOTHING))
    for each in OPEN:
        takes, name = came(each), each.__name__
        yield Case(f"silence ({name})", _then(each, silent), LinkFailed, "silent for 3", takes=takes)
        dripping = _dripping(pulse, 1)
        yield Case(f"a slow frame ({name})", _then(each, dripping), LinkFailed, slow, takes=takes)
        half = _then(saying(each, pulse[:-1]), silent)
        yield Case(f"half a frame ({name})", half, LinkFailed, slow, takes=takes)
        half = _then(saying(each, frame(9, b"\7mallory" + bytes(99), 200_000)), silent)
        yield Case(f"deltas without end ({name})", half, LinkFailed, slow, takes=takes)
        half = _then(saying(each, b"\0\0"), silent)
        yield Case(f"half a size ({name})", half, LinkFailed, "rest of a frame within 10 s", takes=takes)
    for state in ALL_STATES:
        takes = came(state)
        yield Case(f"hangs up ({state.__name__})", _then(state, closes), LinkFailed, "closed", takes=takes)
        yield Case(f"leaves ({state.__name__})", _then(state, leaves), Left, "the peer ended the session", takes=takes)
