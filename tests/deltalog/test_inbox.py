"""The inbox against a set: bounded, and each delta comes out once, when all it needs has come, in whatever order."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.inbox import Inbox, InboxStatistics, lacking
from deltalog.version import Dot
from tests.models import InboxModel
from tests.strategies import History, histories

SOURCES = ("a", "b:", "\0")
DOTS = st.builds(Dot, st.sampled_from(SOURCES), st.integers(1, 6))


def delta_of(dot: Dot, payload: object = None, **deps: int) -> Delta:
    return build(dot.source, dot.seq, 10 * dot.seq, payload, deps=deps)


class InboxMachine(RuleBasedStateMachine):
    """Holding and advancing in any order, with needs that have nothing to do with causality."""

    @initialize(deltas_max=st.integers(0, 8), bytes_max=st.integers(0, 400))
    def start(self, deltas_max: int, bytes_max: int) -> None:
        self.inbox = Inbox(deltas_max, bytes_max)
        self.held: dict[Dot, tuple[Delta, Dot]] = {}

    def _bytes(self) -> int:
        return sum(len(delta.record) for delta, _ in self.held.values())

    @rule(dot=DOTS, need=DOTS, size=st.integers(0, 60))
    def hold(self, dot: Dot, need: Dot, size: int) -> None:
        delta = delta_of(dot, b"x" * size)
        fits = len(self.held) < self.inbox.deltas_max and self._bytes() + len(delta.record) <= self.inbox.bytes_max
        assert self.inbox.hold(delta, need) == (dot in self.held or fits)
        if fits:
            self.held.setdefault(dot, (delta, need))

    @rule(came=DOTS | st.builds(Dot, st.just("nobody"), st.integers(0, 9)))
    def advance(self, came: Dot) -> None:
        free = [
            (need.seq, dot)
            for dot, (_, need) in self.held.items()
            if need.source == came.source and need.seq <= came.seq
        ]
        expected = [self.held.pop(dot)[0] for _, dot in sorted(free)]
        assert self.inbox.advance(*came) == expected

    @invariant()
    def what_it_says_of_itself_is_exact(self) -> None:
        if hasattr(self, "inbox"):
            inbox = self.inbox
            expected = InboxStatistics(len(self.held), self._bytes(), inbox.deltas_max, inbox.bytes_max)
            assert inbox.statistics() == expected
            assert len(inbox) == len(self.held) <= inbox.deltas_max
            assert self._bytes() <= inbox.bytes_max
            for dot in (Dot(source, seq) for source in SOURCES for seq in range(1, 7)):
                assert inbox.get(dot) is self.held.get(dot, (None,))[0]


TestInbox = InboxMachine.TestCase
TestInbox.settings = settings(stateful_step_count=20)


class Receiver:
    """What a log does with its inbox, and nothing else."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.heads: dict[str, int] = {}
        self.applied: list[Delta] = []

    def receive(self, delta: Delta) -> None:
        stack = [delta]
        while stack:
            delta = stack.pop()
            need = lacking(delta, self.heads)
            if delta.seq <= self.heads.get(delta.source, 0):
                continue
            if need is not None:
                assert self.inbox.hold(delta, need)
                continue
            self.heads[delta.source] = delta.seq
            self.applied.append(delta)
            stack += self.inbox.advance(delta.source, delta.seq)


@given(histories(), st.randoms(use_true_random=False), st.data())
def test_i5_in_any_order_of_arrival_each_delta_is_released_once_after_all_its_causes(
    history: History, random: object, data: st.DataObject
) -> None:
    arrivals = data.draw(st.permutations(history.deltas)) + data.draw(st.lists(st.sampled_from(history.deltas)))
    receiver, model = Receiver(), InboxModel()
    for delta in arrivals:
        receiver.receive(delta)
        model.arrive(delta)
        assert receiver.heads == model.heads()
        assert {delta.dot for delta in receiver.applied} == set(model.applied)
        assert all(receiver.inbox.get(delta.dot) == delta for delta in model.waiting)
        assert len(receiver.inbox) == len(model.waiting)
    assert sorted(receiver.applied, key=history.deltas.index) == history.deltas
    seen: set[Dot] = set()
    for delta in receiver.applied:
        assert history.held[delta.dot] <= seen
        seen.add(delta.dot)
    assert receiver.inbox.statistics().bytes == 0


@given(histories(), st.data())
def test_what_a_delta_lacks_is_one_of_its_causes_that_has_not_come(history: History, data: st.DataObject) -> None:
    delta = data.draw(st.sampled_from(history.deltas))
    heads = {
        source: data.draw(st.integers(0, 4), label=f"head of {source!r}")
        for source in {other.source for other in history.deltas}
    }
    causes = {*map(Dot._make, delta.deps.items()), Dot(delta.source, delta.seq - 1)}
    missing = {dot for dot in causes if dot.seq > heads[dot.source]}
    need = lacking(delta, heads)
    assert (need is None) == (not missing)
    assert need is None or need in missing
    if Dot(delta.source, delta.seq - 1) in missing:
        assert need == Dot(delta.source, delta.seq - 1)


def test_the_first_delta_of_a_source_waits_for_nothing() -> None:
    assert lacking(delta_of(Dot("a", 1)), {}) is None
    assert lacking(delta_of(Dot("a", 2)), {}) == Dot("a", 1)
    assert lacking(delta_of(Dot("a", 2), b=3), {"a": 1, "b": 2}) == Dot("b", 3)
    assert lacking(delta_of(Dot("a", 2), b=3), {"a": 1, "b": 3}) is None
    assert lacking(delta_of(Dot("a", 2), b=3, c=1), {"a": 1}, {"b"}) == Dot("c", 1)
    assert lacking(delta_of(Dot("a", 2), b=3), {"a": 1}, {"b"}) is None
    assert lacking(delta_of(Dot("a", 2)), {}, {"a"}) == Dot("a", 1), "a predecessor is always waited for"


def test_one_that_waits_already_stays_as_it_is_even_when_there_is_no_room() -> None:
    inbox = Inbox(deltas_max=1)
    first, other = delta_of(Dot("a", 2), 1), delta_of(Dot("a", 2), 2)
    assert inbox.hold(first, Dot("a", 1))
    assert inbox.hold(other, Dot("b", 1))
    assert inbox.get(Dot("a", 2)) is first
    assert inbox.advance("b", 9) == []
    assert inbox.advance("a", 1) == [first]
    assert inbox.get(Dot("a", 2)) is None
    assert inbox.hold(other, Dot("b", 1))


def test_room_is_given_back() -> None:
    inbox = Inbox(deltas_max=2)
    for seq in range(2, 50):
        assert inbox.hold(delta_of(Dot("a", seq)), Dot("a", seq - 1))
        assert inbox.hold(delta_of(Dot("b", seq)), Dot("a", seq - 1))
        assert not inbox.hold(delta_of(Dot("c", seq)), Dot("a", seq - 1))
        assert [delta.source for delta in inbox.advance("a", seq - 1)] == ["a", "b"]


def test_sources_that_nobody_waits_for_any_more_take_no_memory() -> None:
    """Who sends deltas chooses what they wait for: a trace of each such source would grow without bound."""
    inbox = Inbox()
    tracemalloc.start()
    try:
        for number in range(5_000):
            assert inbox.hold(delta_of(Dot("a", 2)), Dot(f"nobody {number}", 1))
            assert len(inbox.advance(f"nobody {number}", 1)) == 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
