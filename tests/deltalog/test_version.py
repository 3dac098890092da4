"""The laws of version vectors, against plain dicts."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251  # its own bytes, to see that slots survive
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import UsageError
from deltalog.version import Dot, Order, VersionVector, compare

# Few sources and small seqs, so that two vectors often share entries.
SOURCES = st.sampled_from(["alice", "bob", "carol:1", "", "da\0ve\n", "\N{GRINNING FACE}"])
SEQS = st.integers(min_value=0, max_value=5) | st.integers(min_value=0, max_value=2**63)
DICTS = st.dictionaries(SOURCES, SEQS)
VECTORS = DICTS.map(VersionVector)

OPPOSITE = {
    Order.BEFORE: Order.AFTER,
    Order.AFTER: Order.BEFORE,
    Order.CONCURRENT: Order.CONCURRENT,
    Order.EQUAL: Order.EQUAL,
}


def dots(vector: Mapping[str, int]) -> set[tuple[str, int]]:
    """The naive version vector: the set of all dots it holds."""
    return {(source, seq) for source, until in vector.items() for seq in range(1, until + 1)}


SMALL = st.dictionaries(SOURCES, st.integers(min_value=0, max_value=5))


# -------------------------------------------------------------------------------------------------------- merge, meet


@given(VECTORS, VECTORS)
def test_merge_is_commutative(a: VersionVector, b: VersionVector) -> None:
    assert a.merge(b) == b.merge(a)


@given(VECTORS, VECTORS, VECTORS)
def test_merge_is_associative(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(VECTORS)
def test_merge_is_idempotent_and_the_empty_vector_is_its_identity(a: VersionVector) -> None:
    assert a.merge(a) == a
    assert a.merge({}) == a == VersionVector().merge(a)


@given(VECTORS, VECTORS, VECTORS)
def test_merge_is_the_least_upper_bound(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    merged = a.merge(b)
    assert merged.covers_all(a)
    assert merged.covers_all(b)
    assert c.covers_all(merged) == (c.covers_all(a) and c.covers_all(b))


@given(VECTORS, VECTORS, VECTORS)
def test_meet_is_the_greatest_lower_bound(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    met = a.meet(b)
    assert a.covers_all(met)
    assert b.covers_all(met)
    assert met.covers_all(c) == (a.covers_all(c) and b.covers_all(c))


@given(VECTORS, VECTORS, VECTORS)
def test_meet_is_commutative_associative_idempotent_and_absorbs(
    a: VersionVector, b: VersionVector, c: VersionVector
) -> None:
    assert a.meet(b) == b.meet(a)
    assert a.meet(b).meet(c) == a.meet(b.meet(c))
    assert a.meet(a) == a
    assert a.merge(a.meet(b)) == a == a.meet(a.merge(b))


@given(SMALL, SMALL)
def test_merge_meet_and_covers_all_agree_with_sets_of_dots(a: dict[str, int], b: dict[str, int]) -> None:
    left = VersionVector(a)
    assert dots(left.merge(b)) == dots(a) | dots(b)
    assert dots(left.meet(b)) == dots(a) & dots(b)
    assert left.covers_all(b) == (dots(b) <= dots(a))


# ---------------------------------------------------------------------------------------------------------- the order


@given(VECTORS, VECTORS)
def test_compare_is_antisymmetric(a: VersionVector, b: VersionVector) -> None:
    assert a.compare(b) is OPPOSITE[b.compare(a)]
    assert (a.compare(b) is Order.EQUAL) == (a == b)


@given(VECTORS)
def test_the_order_is_reflexive(a: VersionVector) -> None:
    assert a.covers_all(a)
    assert a.compare(a) is Order.EQUAL


@given(VECTORS, VECTORS)
def test_two_vectors_that_cover_each_other_are_equal(a: VersionVector, b: VersionVector) -> None:
    assert (a.covers_all(b) and b.covers_all(a)) == (a == b)


@given(VECTORS, DICTS, DICTS)
def test_the_order_is_transitive(a: VersionVector, more: dict[str, int], yet_more: dict[str, int]) -> None:
    b = a.merge(more)
    c = b.merge(yet_more)
    assert a.compare(c) in {Order.BEFORE, Order.EQUAL}
    if Order.BEFORE in {a.compare(b), b.compare(c)}:
        assert a.compare(c) is Order.BEFORE


@given(SMALL, SMALL)
def test_compare_agrees_with_sets_of_dots(a: dict[str, int], b: dict[str, int]) -> None:
    left, right = dots(a), dots(b)
    expected = (
        Order.EQUAL
        if left == right
        else Order.BEFORE
        if left < right
        else Order.AFTER
        if left > right
        else Order.CONCURRENT
    )
    assert compare(a, b) is expected
    assert VersionVector(a).compare(b) is expected


# -------------------------------------------------------------------------------------------------- dots and intervals


@given(SMALL, SMALL)
def test_missing_from_is_exact(a: dict[str, int], b: dict[str, int]) -> None:
    intervals = VersionVector(a).missing_from(b)
    named = [(source, seq) for source, (after, until) in intervals.items() for seq in range(after + 1, until + 1)]
    assert len(named) == len(set(named))
    assert set(named) == dots(a) - dots(b)
    assert all(after < until for after, until in intervals.values())


@given(VECTORS, VECTORS)
def test_nothing_is_missing_from_what_covers_it(a: VersionVector, b: VersionVector) -> None:
    assert (a.missing_from(b) == {}) == b.covers_all(a)


@given(SMALL, SOURCES, st.integers(min_value=1, max_value=6))
def test_covers_agrees_with_the_set_of_dots(a: dict[str, int], source: str, seq: int) -> None:
    assert VersionVector(a).covers(Dot(source, seq)) == ((source, seq) in dots(a))


@given(VECTORS, SOURCES, SEQS)
def test_with_dot_is_merge_with_one_entry_and_leaves_the_old_vector_alone(
    a: VersionVector, source: str, seq: int
) -> None:
    before = a.to_dict()
    assert a.with_dot(Dot(source, seq)) == a.merge({source: seq})
    assert a.to_dict() == before


def test_with_dot_of_what_is_held_gives_the_same_vector() -> None:
    vector = VersionVector({"alice": 3})
    assert vector.with_dot(Dot("alice", 3)) is vector


# ---------------------------------------------------------------------------------------------------------- the mapping


@given(DICTS)
def test_entries_of_zero_are_dropped_and_the_rest_is_the_mapping(a: dict[str, int]) -> None:
    vector = VersionVector(a)
    kept = {source: seq for source, seq in a.items() if seq}
    assert dict(vector) == kept == vector.to_dict() == dict(vector.items())
    assert len(vector) == len(kept)
    assert vector == kept == vector
    assert vector == MappingProxyType(kept)
    assert vector != {**kept, "eve": 1}
    assert vector != "alice"


@given(DICTS)
def test_equal_vectors_have_equal_hashes(a: dict[str, int]) -> None:
    backwards = dict(reversed(a.items()))
    assert hash(VersionVector(a)) == hash(VersionVector(backwards))
    assert len({VersionVector(a), VersionVector(backwards)}) == 1


@given(VECTORS)
def test_copies_and_pickles_are_equal(a: VersionVector) -> None:
    assert copy.deepcopy(a) == a
    assert pickle.loads(pickle.dumps(a)) == a


def test_the_constructor_copies_and_trusted_takes_over() -> None:
    entries = {"alice": 1}
    copied, trusted = VersionVector(entries), VersionVector.trusted(entries)
    entries["alice"] = 2
    assert copied["alice"] == 1
    assert trusted["alice"] == 2


def test_to_dict_is_the_callers_own() -> None:
    vector = VersionVector({"alice": 1})
    vector.to_dict()["alice"] = 9
    assert vector["alice"] == 1


def test_a_source_not_held_is_a_key_error_or_the_default() -> None:
    vector = VersionVector({"alice": 1})
    assert vector.get("bob", 0) == 0
    assert "bob" not in vector
    with pytest.raises(KeyError):
        vector["bob"]


def test_repr_shows_the_entries() -> None:
    assert repr(VersionVector({"alice": 1})) == "VersionVector({'alice': 1})"


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"alice": -1}, "seq of source 'alice' is -1"),
        ({"alice": 1.0}, "seq of source 'alice' must be an int, not float"),
        ({"alice": True}, "seq of source 'alice' must be an int, not bool"),
        ({b"alice": 1}, "source must be a str, not bytes"),
    ],
)
def test_what_is_no_version_vector_is_refused_by_name(entries: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        VersionVector(entries)
    with pytest.raises(UsageError, match=named):
        VersionVector().with_dot(*entries.items())
