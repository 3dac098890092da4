"""What a hostile peer may try: each case ends with a reason or is held, and neither the log nor the others suffer.

A case is what a `Foe` does, and how the node ends the session (`error`, `reason`), or None where it goes on. While it
plays, an honest peer and the node go on writing and must converge. Deltas are never compressed, so there is no
decompression to bomb. Time is virtual; what must not hold up the event loop, and what is kept of a peer, is counted.
"""

from __future__ import annotations

import re
import tracemalloc
from typing import Any, Final

import attrs
import pytest
import trio
from trio.testing import MockClock

from deltalog.clock import pack
from deltalog.delta import SEQ_MAX
from sync import comparison
from sync.errors import HeadRefused, LinkFailed, ProtocolError
from sync.messages import Alive, Commit, Deltas, Goodbye, Have, Hello, Message, Welcome, decode, encode
from sync.peer import PARTS, Left
from sync.session import Session
from sync.trust import Trust
from tests.deltalog.memory_log import NOON_MS
from tests.sync.hostile import NOTHING, Foe, Tale, meeting
from tests.sync.hostile_case import Case
from tests.sync.hostile_deltas import deltas
from tests.sync.hostile_frames import WHO, malformed, out_of_turn
from tests.sync.hostile_heads import heads
from tests.sync.hostile_rest import rest, times
from tests.sync.nodes import CheapKey, Node, World, converged, until

MEMORY_BYTES: Final = 32 << 20
DELTA_BYTES: Final = 250
RUN_BYTES: Final = 750
NAME_BYTES: Final = 530
"""Of a source that a peer names, in all tables that have it: claims, asked, acknowledged, feeders."""
WORK_MAX: Final = 64
"""Messages handled, or signatures verified, in one turn of the event loop: a few milliseconds."""
LIMIT_S: Final = 300
"""No case takes longer."""
WAIT_S: Final = 5
"""Longest that two honest nodes take, meanwhile, to become equal."""
DELTAS_MAX: Final = 8192
"""Deltas decoded in one turn: about 25 ms for the smallest."""

CASES: Final = (*malformed(), *out_of_turn(), *WHO, *deltas(), *heads(), *rest(), *times())


@attrs.define(eq=False)
class Work(trio.abc.Instrument):
    """Counts what is done in one turn of the event loop; keeps the most."""

    now: dict[str, int] = attrs.field(factory=dict)
    most: dict[str, int] = attrs.field(factory=dict)
    kept_bytes: int = 0
    """Most that was kept of one peer, about."""

    def count(self, what: str, amount: int = 1) -> None:
        """Some work was done."""
        self.now[what] = self.now.get(what, 0) + amount
        self.most[what] = max(self.most.get(what, 0), self.now[what])

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        """The turn of a task is over."""
        self.now.clear()


def kept_bytes(session: Session) -> int:
    """Memory that a session keeps of its peer, about; a test below holds it against the truth."""
    parked = session._parked + DELTA_BYTES * session._parked_deltas
    runs = RUN_BYTES * (len(session._runs) + sum(len(batch.runs) for batch in session._undecided))
    names = session._claims_bytes + NAME_BYTES * (len(session.claims) + len(session.wanted))
    return parked + runs + names


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """What nodes do, from now on."""
    counted = Work()
    receive, check, decode, read = Session.receive, Trust.check, Deltas.decode, comparison.decode

    def receiving(session: Session, message: Message) -> Any:
        counted.count("messages")
        event = receive(session, message)
        counted.kept_bytes = max(counted.kept_bytes, kept_bytes(session))
        return event

    def checking(trust: Trust, head: Any) -> bool:
        counted.count("heads")
        return check(trust, head)

    def decoding(run: Deltas, limits: Any) -> Any:
        counted.count("deltas", run.count)
        return decode(run, limits)

    def reading(parts: Any) -> Any:
        counted.count("parts", len(parts))
        return read(parts)

    monkeypatch.setattr(comparison, "decode", reading)
    monkeypatch.setattr(Session, "receive", receiving)
    monkeypatch.setattr(Trust, "check", checking)
    monkeypatch.setattr(Deltas, "decode", decoding)
    return counted


def test_there_is_a_case_for_much() -> None:
    assert len(CASES) == len({case.name for case in CASES}) > 150


def test_what_is_kept_of_a_peer_is_counted_right() -> None:
    foe, session = CheapKey("mallory"), Session("team", "alice")
    names = [f"{number:032}" for number in range(16_384)]
    frames: list[tuple[int, bytes]] = []
    for number, name in enumerate(names, 1):
        tale = Tale(name, foe)
        tale.grow(1)
        frames += [(each[4], each[5:]) for each in (*tale.run(), encode(Commit(number)))]
    for message in (Hello(1, "team", "mallory", "mallory"), Welcome(0, b"", 0, 0, NOTHING)):
        session.receive(message)
    session.ask(tuple((name, 0) for name in names))
    tracemalloc.start()
    try:
        for number, body in frames:
            session.receive(decode(number, body))
        parked = tracemalloc.get_traced_memory()[0]
        assert parked <= kept_bytes(session) <= MEMORY_BYTES
        with pytest.raises(ProtocolError, match="16,385 deltas are not decided; the limit is 16,384"):
            session.receive(decode(*frames[0]))
    finally:
        tracemalloc.stop()


async def test_t11_who_lies_about_a_source_does_not_slow_down_who_has_it(autojump_clock: MockClock) -> None:
    world = World(names=("alice", "bob", "mallory"))
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        bob.append(3)
        await converged(alice, bob)
        async with meeting(world, alice) as foe:
            await foe.open()
            await foe.say(Have((("bob", SEQ_MAX),)))
            slow = 0
            for number in range(200):
                await foe.say(Alive(0, 0, NOTHING))
                await trio.sleep(4.7)
                if number % 5 == 0:
                    bob.append(1)
                    began = trio.current_time()
                    await until(lambda: alice.log.heads["bob"] == bob.log.heads["bob"])
                    slow += trio.current_time() > began + 1
            assert slow <= 8, "the liar is asked ever more rarely"
            assert not foe.ended.is_set()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
async def test_t11_a_hostile_peer_is_cut_off_or_held_and_nobody_else_notices(
    autojump_clock: MockClock, case: Case, work: Work
) -> None:
    world = World(names=("alice", "bob", "mallory"))
    with trio.fail_after(LIMIT_S):
        foe = await _meet(world, case, work)
    assert work.kept_bytes <= MEMORY_BYTES
    assert work.most.get("messages", 0) <= WORK_MAX
    assert work.most.get("heads", 0) <= WORK_MAX
    assert work.most.get("deltas", 0) <= DELTAS_MAX
    assert work.most.get("parts", 0) <= 2 * PARTS
    told = [text for text in world.problems if text.startswith("alice | mallory")] + [str(foe.error)]
    assert any(re.search(case.reason, text) for text in told), told


async def _meet(world: World, case: Case, work: Work) -> Foe:
    """A node, an honest peer of it, and the foe."""
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        alice.append(3)
        bob.append(3)
        for _ in range(case.bulk):
            await alice.log.append(b"x" * 20_000)
        await converged(alice, bob)
        trio.lowlevel.add_instrument(work)
        async with meeting(world, alice, dialed=case.dialed, key=case.key) as foe:
            await _play(case, foe, alice, bob)
        trio.lowlevel.remove_instrument(work)
        await _unharmed(case, alice, bob)
    return foe


async def _play(case: Case, foe: Foe, alice: Node, bob: Node) -> None:
    """Play it while the honest pair goes on; the session then has ended as it must, or is ended by a goodbye."""
    async with trio.open_nursery() as nursery:
        played = trio.Event()
        nursery.start_soon(_honest, alice, bob, played)
        try:
            await case.play(foe)
        except LinkFailed:
            assert case.error is not None, f"the session ended: {foe.error}"
        played.set()
    if case.error is None:
        assert not foe.ended.is_set(), foe.error
        await foe.say(Goodbye("bye", "bye"))
        await foe.listen_on()
        assert isinstance(foe.error, Left)
        return
    with trio.fail_after(60):
        await foe.ended.wait()
    assert type(foe.error) is case.error, repr(foe.error)
    assert foe.error.blamed == issubclass(case.error, ProtocolError | HeadRefused)


async def _honest(alice: Node, bob: Node, played: trio.Event) -> None:
    """Two that write and become equal, over and over."""
    again = True
    while again:
        again = not played.is_set()
        alice.append(1)
        bob.append(1)
        began = trio.current_time()
        await until(lambda: bob.log.synced.get("alice") == alice.log.synced.get("alice") == alice.log.heads["alice"])
        await until(lambda: alice.log.synced.get("bob") == bob.log.synced.get("bob") == bob.log.heads["bob"])
        assert trio.current_time() - began < WAIT_S
        await trio.sleep(0.5)


async def _unharmed(case: Case, alice: Node, bob: Node) -> None:
    """Nothing came in that must not, both are equal, and the node still writes."""
    foreign = sum(seq for source, seq in alice.log.heads.items() if source not in ("alice", "bob"))
    assert foreign == case.takes
    assert not alice.log.retired
    assert not alice.mesh.trust.quarantined
    alice.append(1)
    await converged(alice, bob)
    deltas = await alice.all()
    assert deltas == await bob.all()
    assert max(delta.timestamp for delta in deltas) < pack(NOON_MS + 120_000)
