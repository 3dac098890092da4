"""The ring against a list: every answer, every byte, and never a delta lost that is not stored (invariant I7)."""

from __future__ import annotations

import gc
import weakref
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deltalog.errors import UsageError
from deltalog.ring import Pending, Ring, RingStatistics
from tests.models import Held, RingModel

SOURCES = ("a", "b:", "\0")
SIZES = st.integers(1, 40)


def record(source: str, seq: int, size: int) -> bytes:
    """Bytes that tell which delta they are of, if there is room to."""
    return f"{source}{seq} ".encode().ljust(size, b".")[:size]


class RingMachine(RuleBasedStateMachine):
    """Everything a log does to its ring, in any order."""

    @initialize(
        deltas_max=st.integers(1, 40),
        bytes_max=st.integers(1, 400),
        filled=st.lists(st.tuples(st.sampled_from(SOURCES), SIZES), max_size=30),
    )
    def start(self, deltas_max: int, bytes_max: int, filled: list[tuple[str, int]]) -> None:
        self.ring = Ring(deltas_max, bytes_max)
        self.model = RingModel()
        self.seqs = dict.fromkeys(SOURCES, 6)
        self.arrived = 0
        deltas = []
        for source, size in filled:
            self.seqs[source] += 1
            deltas.append(Held(source, self.seqs[source], record(source, self.seqs[source], size), stored=True))
        self.ring.fill((entry.source, entry.seq, entry.record) for entry in deltas)
        self.model.held = deltas[len(deltas) - self.ring.statistics().deltas :]
        assert self.ring.last == 0
        assert bool(self.model.held) == bool(deltas)

    # ------------------------------------------------------------------------------------------------------- changes

    @rule(source=st.sampled_from(SOURCES), size=SIZES)
    def push(self, source: str, size: int) -> None:
        seq = self.seqs[source] + 1
        new = record(source, seq, size)
        room = self._has_room(size)
        had = self.ring.first
        assert self.ring.push(source, seq, new) == self._after_eviction(had, size, room)
        if self.ring.last > self.arrived:
            self.seqs[source], self.arrived = seq, self.ring.last
            self.model.push(source, seq, new)

    @rule(size=st.integers(0, 40))
    def has_room(self, size: int) -> None:
        room, had = self._has_room(size), self.ring.first
        assert self.ring.has_room(size) == self._after_eviction(had, size, room)

    def _has_room(self, size: int) -> bool:
        return len(self.model.held) < self.ring.deltas_max and self.model.bytes() + size <= self.ring.bytes_max

    def _after_eviction(self, had: int, size: int, had_room: bool) -> bool:
        """Take over what the ring evicted, which must be stored and needed to go; say whether there is room now."""
        gone = self.model.evict(self.ring.first - had)
        assert all(entry.stored for entry in gone)
        assert not (had_room and gone)
        room = self._has_room(size) or not self.model.held
        assert room or not any(entry.stored for entry in self.model.held)
        return room

    @rule(data=st.data())
    def mark_stored(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.model.pending())))
        self.ring.mark_stored(count)
        self.model.mark_stored(count)

    @rule(data=st.data(), size=SIZES)
    @precondition(lambda self: any(entry.stored for entry in self.model.held))
    def replace(self, data: st.DataObject, size: int) -> None:
        entry = data.draw(st.sampled_from([entry for entry in self.model.held if entry.stored]))
        self.ring.replace(entry.source, entry.seq, b"e" * size)
        self.model.replace(entry.source, entry.seq, b"e" * size)

    @rule(source=st.sampled_from(SOURCES), seq=st.integers(0, 6))
    def replace_what_is_not_here(self, source: str, seq: int) -> None:
        self.ring.replace(source, seq, b"e")

    @rule(data=st.data(), source=st.sampled_from(SOURCES))
    def drop_below(self, data: st.DataObject, source: str) -> None:
        pending = [entry.seq for entry in self.model.pending() if entry.source == source]
        floor = data.draw(st.integers(0, min(pending, default=self.seqs[source] + 1) - 1))
        kept = [entry for entry in self.model.held if entry.source != source or entry.seq > floor]
        first = self.ring.first
        self.ring.drop_below(source, floor)
        self.model.drop_below(source, floor)
        assert self.model.held == kept
        assert self.ring.last == self.arrived
        assert self.ring.first - first == self.arrived + 1 - first - len(kept)

    # ------------------------------------------------------------------------------------------------------- answers

    @rule(count=st.integers(1, 50), size=st.integers(1, 400))
    def unstored(self, count: int, size: int) -> None:
        parts, number = self.ring.unstored(count, size)
        pending = self.model.pending()
        taken = pending[:number]
        assert number <= min(count, len(pending))
        assert number >= min(1, len(pending))
        assert number <= 1 or sum(len(entry.record) for entry in taken) <= size
        if sum(len(entry.record) for entry in pending[:count]) <= size:
            assert number == len(pending[:count])
        assert parts == self._by_source(taken)

    def _by_source(self, taken: list[Held]) -> list[Pending]:
        order = list(dict.fromkeys(entry.source for entry in taken))
        together = sorted(taken, key=lambda entry: order.index(entry.source))
        groups = [list(group) for _, group in groupby(together, key=lambda entry: entry.source)]
        return [Pending(group[0].source, group[0].seq, [entry.record for entry in group]) for group in groups]

    @rule(source=st.sampled_from([*SOURCES, "nobody"]), after=st.integers(0, 60), until=st.integers(0, 60))
    def run_and_get(self, source: str, after: int, until: int) -> None:
        assert self.ring.run(source, after, until) == self.model.run(source, after, until)
        found = self.model.run(source, until - 1, until)
        assert self.ring.get(source, until) == (found[0] if found else None)

    @rule(data=st.data(), count=st.integers(0, 10))
    def since(self, data: st.DataObject, count: int) -> None:
        ordinal = data.draw(st.integers(self.ring.first - 3, self.ring.last + 1))
        arrived = [entry.source for entry in self.model.held]
        skipped = ordinal + 1 - self.ring.first
        expected = arrived[skipped : skipped + count] if skipped >= 0 else None
        assert self.ring.since(ordinal, count) == expected

    @invariant()
    def the_three_ordinals_say_where_everything_stands(self) -> None:
        if not hasattr(self, "ring"):
            return
        ring, held = self.ring, self.model.held
        pending = self.model.pending()
        assert ring.first <= ring.stored + 1 <= ring.last + 1
        assert (ring.last, ring.pending) == (self.arrived, len(pending))
        assert ring.last + 1 - ring.first == len(held)
        expected = RingStatistics(len(held), self.model.bytes(), len(pending), ring.deltas_max, ring.bytes_max)
        assert ring.statistics() == expected
        assert len(held) <= ring.deltas_max
        assert len(held) <= 1 or self.model.bytes() <= ring.bytes_max + 40 * len(held)

    @invariant()
    def each_source_is_dense_and_ends_where_it_should(self) -> None:
        for source in SOURCES if hasattr(self, "ring") else ():
            held = [entry for entry in self.model.held if entry.source == source]
            assert self.ring.reaches(source) == min((entry.seq for entry in held), default=0)
            if held:
                assert [entry.seq for entry in held] == list(range(held[0].seq, self.seqs[source] + 1))
                stored = [entry.seq for entry in held if entry.stored]
                assert self.ring.unstored_after(source) == max(stored, default=held[0].seq - 1)


TestRing = RingMachine.TestCase
TestRing.settings = settings(stateful_step_count=30)


# ------------------------------------------------------------------------------------------------------- in particular


def test_i7_ring_never_evicts_unstored() -> None:
    ring = Ring(16, 1 << 20)
    for seq in range(1, 17):
        assert ring.push("a", seq, b"x")
    assert not ring.push("a", 17, b"x")
    assert not ring.has_room()
    assert (ring.first, ring.last, ring.pending) == (1, 16, 16)
    ring.mark_stored(1)
    assert ring.push("a", 17, b"x")
    assert (ring.first, ring.last, ring.pending) == (2, 17, 16)
    assert ring.get("a", 1) is None
    assert ring.run("a", 0, 99) == [b"x"] * 16


def test_i7_bytes_are_bounded_too() -> None:
    ring = Ring(100, 10)
    assert ring.push("a", 1, b"x" * 6)
    assert not ring.push("b", 1, b"y" * 5)
    assert ring.reaches("b") == 0
    ring.mark_stored(1)
    assert ring.push("b", 1, b"y" * 5)
    assert ring.statistics() == RingStatistics(1, 5, 1, 100, 10)


def test_a_record_over_the_room_fits_an_empty_ring_only() -> None:
    ring = Ring(100, 10)
    assert ring.push("a", 1, b"x" * 50)
    assert not ring.push("a", 2, b"x" * 50)
    ring.mark_stored(1)
    assert ring.push("a", 2, b"x" * 50)
    assert ring.statistics().deltas == 1


def test_no_more_is_evicted_at_a_time_than_a_sixteenth_of_the_room() -> None:
    ring = Ring(64, 1 << 20)
    for seq in range(1, 65):
        ring.push("a", seq, b"x")
    ring.mark_stored(64)
    ring.push("a", 65, b"x")
    assert ring.first == 5
    assert ring.reaches("a") == 5


@given(st.lists(st.tuples(st.sampled_from(SOURCES), st.integers(1, 30)), min_size=1), st.integers(3, 20))
def test_a_ring_filled_beyond_its_room_starts_with_the_newest(filled: list[tuple[str, int]], deltas_max: int) -> None:
    seqs = dict.fromkeys(SOURCES, 0)
    deltas = []
    for source, size in filled:
        seqs[source] += 1
        deltas.append((source, seqs[source], record(source, seqs[source], size)))
    ring = Ring(deltas_max, 100)
    ring.fill(deltas)
    held = ring.statistics().deltas
    assert 1 <= held <= deltas_max
    for source, seq, data in deltas[-held:]:
        assert ring.get(source, seq) == data
    assert (ring.first, ring.stored, ring.last, ring.pending) == (1 - held, 0, 0, 0)
    for source, seq in seqs.items():
        assert ring.push(source, seq + 1, b"x")
    assert ring.unstored(99, 999) == ([Pending(source, seq + 1, [b"x"]) for source, seq in seqs.items()], 3)


@pytest.mark.parametrize("room", [(0, 1), (1, 0), (-1, 5)])
def test_a_ring_without_room_is_refused(room: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="^ring: deltas_max and bytes_max must be at least 1"):
        Ring(*room)


def test_a_batch_for_the_store_is_never_empty_and_shrinks_until_it_fits() -> None:
    ring = Ring()
    for seq in range(1, 101):
        ring.push("a", seq, b"x" * 10)
    assert ring.unstored(1000, 5) == ([Pending("a", 1, [b"x" * 10])], 1)
    (part,), count = ring.unstored(1000, 300)
    assert count == len(part.records) == 30
    assert ring.unstored(10, 1 << 20)[1] == 10
    ring.mark_stored(100)
    assert ring.unstored(10, 10) == ([], 0)


def test_i7_finalizers_that_push_while_the_ring_evicts_leave_its_sums_right(busy_collector: None) -> None:
    """The collector runs in the middle of an eviction, too; who pushes then gets room or is refused, as always."""

    class Node:
        """Garbage that only the collector of cycles finds."""

        def __init__(self) -> None:
            self.itself = self
            weakref.finalize(self, push, "garbage")

    def push(source: str) -> None:
        seq = heads.get(source, 0) + 1
        if ring.push(source, seq, b"x" * (seq % 7)):
            heads[source] = seq

    ring, heads = Ring(64, 150), dict[str, int]()
    for _ in range(2_000):
        Node()
        push("alice")
        ring.mark_stored(ring.pending)
    gc.collect()
    held = {source: ring.run(source, 0, head) for source, head in heads.items()}
    found = ring.statistics()
    assert heads["garbage"] > 500
    assert (found.deltas, found.bytes) == (
        sum(map(len, held.values())),
        sum(sum(map(len, each)) for each in held.values()),
    )
    reached = {source: ring.reaches(source) or head + 1 for source, head in heads.items()}
    assert reached == {source: head - len(held[source]) + 1 for source, head in heads.items()}
