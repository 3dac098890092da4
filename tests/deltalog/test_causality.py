"""Who knew of whom, and which deltas conflict, against the transitive closure of a whole history."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from deltalog.causality import Conflict, ConflictFinder, knows
from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.version import Dot
from tests.models import conflicts_of, known_to
from tests.strategies import History, histories


def backwards(history: History, delta: Delta) -> Iterator[Delta]:
    """The deltas of a source from one of them to its first."""
    own = [other for other in history.deltas if other.source == delta.source and other.seq <= delta.seq]
    return iter(sorted(own, key=lambda other: -other.seq))


@given(histories())
def test_deps_tell_exactly_what_each_writer_held(history: History) -> None:
    assert known_to(history.deltas) == history.held


@given(histories())
def test_i6_timestamps_extend_the_causal_order(history: History) -> None:
    times = {delta.dot: delta.timestamp for delta in history.deltas}
    assert all(times[cause] < times[dot] for dot, held in history.held.items() for cause in held)


# -------------------------------------------------------------------------------------------------------------- knows


@given(histories())
def test_a_delta_knows_another_exactly_if_its_writer_held_it(history: History) -> None:
    for delta in history.deltas:
        for other in history.deltas:
            if other.source != delta.source:
                found = knows(backwards(history, delta), other.dot, other.timestamp)
                assert found == (other.dot in history.held[delta.dot])


@given(histories())
def test_no_more_is_read_than_decides(history: History) -> None:
    for delta in history.deltas:
        for other in history.deltas:
            if other.source != delta.source:
                read = backwards(history, delta)
                knows(read, other.dot, other.timestamp)
                left = next(read, None)
                decides = [older for older in backwards(history, delta) if _decides(older, other)]
                assert left is None or (decides and left.seq == decides[0].seq - 1)


def _decides(delta: Delta, other: Delta) -> bool:
    return other.source in delta.deps or delta.timestamp <= other.timestamp


def test_a_source_that_never_heard_of_another_knows_nothing_of_it() -> None:
    assert not knows([build("a", 1, 50, None)], Dot("b", 1), 5)
    assert not knows([], Dot("b", 1), 5)
    assert knows([build("a", 1, 50, None, deps={"b": 1})], Dot("b", 1), 5)
    assert not knows([build("a", 1, 50, None, deps={"b": 1})], Dot("b", 2), 6)


# ---------------------------------------------------------------------------------------------------------- conflicts


def found_in(deltas: list[Delta]) -> list[Conflict]:
    finder = ConflictFinder()
    return [conflict for delta in deltas for conflict in finder.add(delta)]


def newest_per_source(pairs: set[tuple[Dot, Dot]]) -> set[tuple[Dot, Dot]]:
    """Of all pairs with one later delta and one other source, the one with the newest earlier delta."""
    newest: dict[tuple[Dot, str], Dot] = {}
    for earlier, later in pairs:
        newest[later, earlier.source] = max(earlier, newest.get((later, earlier.source), earlier))
    return {(earlier, later) for (later, _), earlier in newest.items()}


@given(histories())
def test_conflicts_are_for_each_delta_and_other_source_the_newest_it_did_not_know(history: History) -> None:
    found = found_in(history.deltas)
    pairs = [(conflict.first.dot, conflict.second.dot) for conflict in found]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == newest_per_source(conflicts_of(history.deltas))
    for conflict in found:
        assert conflict.key == conflict.first.key == conflict.second.key != ""
        assert conflict.first.timestamp <= conflict.second.timestamp


@given(histories())
def test_every_concurrent_pair_follows_from_a_conflict_that_is_reported(history: History) -> None:
    reported = {
        (conflict.second.dot, conflict.first.source): conflict.first.seq for conflict in found_in(history.deltas)
    }
    for earlier, later in conflicts_of(history.deltas):
        assert reported[later, earlier.source] >= earlier.seq
    for (later, source), seq in reported.items():
        assert Dot(source, seq) not in history.held[later]


@given(histories(), st.data())
def test_conflicts_within_an_interval_need_nothing_from_before_it(history: History, data: st.DataObject) -> None:
    times = [delta.timestamp for delta in history.deltas]
    after, until = sorted((data.draw(st.sampled_from([-1, *times])), data.draw(st.sampled_from(times))))
    within = [delta for delta in history.deltas if after < delta.timestamp <= until]
    dots = {delta.dot for delta in within}
    pairs = {pair for pair in conflicts_of(history.deltas) if dots.issuperset(pair)}
    assert {(found.first.dot, found.second.dot) for found in found_in(within)} == newest_per_source(pairs)


def test_deltas_without_a_key_and_deltas_of_one_source_never_conflict() -> None:
    assert found_in([build("a", 1, 1, None), build("b", 1, 2, None)]) == []
    assert found_in([build("a", 1, 1, None, key="k"), build("a", 2, 2, None, key="k")]) == []
    assert found_in([build("a", 1, 1, None, key="k"), build("b", 1, 2, None, key="l")]) == []


def test_a_delta_that_hears_of_another_without_a_key_knows_it_from_then_on() -> None:
    first, heard, second = (
        build("a", 1, 1, None, key="k"),
        build("b", 1, 2, None, deps={"a": 1}),
        build("b", 2, 3, None, key="k"),
    )
    assert found_in([first, heard, second]) == []
    assert found_in([first, build("b", 1, 2, None), second]) == [Conflict("k", first, second)]
