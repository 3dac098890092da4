"""The index of heads against a plain dict: digests say what is in a range, and nothing else does."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog.delta import SEQ_MAX
from deltalog.errors import LimitExceeded, UsageError
from sync import heads
from sync.heads import DIGITS_MAX, LEAF_MAX, Entry, HeadsIndex, bounds, key_of, source_of
from tests import strategies

Model = dict[str, tuple[int, bytes]]


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def index_of(model: Model) -> HeadsIndex:
    index = HeadsIndex()
    for source, (seq, hash_) in model.items():
        index.put(source, seq, hash_)
    return index


def numbered(count: int, prefix: str = "source-") -> Model:
    return {f"{prefix}{number}": (number + 1, hash_of(number)) for number in range(count)}


def models() -> st.SearchStrategy[Model]:
    """Sources of any name, or many numbered ones: some indexes are split, some are not."""
    value = st.tuples(strategies.seqs(), st.integers(0, 3).map(hash_of))
    few = st.dictionaries(strategies.sources(), value, max_size=20)
    return st.builds(lambda count, more: numbered(count) | more, st.integers(0, 12 * LEAF_MAX), few)


def digits_of(key: bytes) -> bytes:
    return bytes.fromhex("".join(f"0{digit}" for digit in key[:8].hex()))


@given(models())
def test_it_holds_what_was_put(model: Model) -> None:
    index = index_of(model)
    assert len(index) == len(model)
    assert {entry.source: entry[1:] for entry in index.entries()} == model
    assert all(index.get(source) == (source, *value) for source, value in model.items())
    assert index.get("not there") is None


@given(models(), st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_puts(model: Model, random: Any) -> None:
    items = list(model.items())
    random.shuffle(items)
    other = HeadsIndex()
    for source, (seq, hash_) in items:
        other.put(source, 1, hash_of(9))
        other.digest()
        other.put(source, seq, hash_)
    assert other.digest() == index_of(model).digest()


@given(models(), st.data())
def test_what_is_dropped_leaves_no_trace(model: Model, data: st.DataObject) -> None:
    index = index_of(model)
    index.digest()
    gone = data.draw(st.sets(st.sampled_from(sorted(model)))) if model else set()
    for source in gone:
        assert index.drop(source)
        assert not index.drop(source)
    left = {source: value for source, value in model.items() if source not in gone}
    assert index.digest() == index_of(left).digest()
    assert {entry.source for entry in index.entries()} == left.keys()
    assert len(index) == index.count(b"") == len(left)
    for source in gone:
        index.put(source, *model[source])
    assert index.digest() == index_of(model).digest()


def naive_digest(entries: dict[bytes, tuple[int, bytes]], depth: int = 0) -> bytes:
    """The digest as the file's docstring defines it, without a tree. `entries`: by key, all in one range."""
    if not entries:
        return bytes(32)
    if len(entries) <= LEAF_MAX or depth == DIGITS_MAX:
        rows = (
            bytes((len(key) - 8,)) + key[8:] + seq.to_bytes(8, "big") + hash_
            for key, (seq, hash_) in sorted(entries.items())
        )
        return blake2b(b"".join(rows), digest_size=32, person=b"deltalog heads").digest()
    parts: list[dict[bytes, tuple[int, bytes]]] = [{} for _ in range(16)]
    for key, value in entries.items():
        parts[digits_of(key)[depth]][key] = value
    digests = (naive_digest(part, depth + 1) for part in parts)
    return blake2b(b"".join(digests), digest_size=32, person=b"deltalog ranges").digest()


@given(models())
@example(numbered(LEAF_MAX))
@example(numbered(LEAF_MAX + 1))
def test_the_digest_is_the_one_that_is_defined(model: Model) -> None:
    assert index_of(model).digest() == naive_digest({key_of(source): value for source, value in model.items()})


@given(models(), models())
@example({}, {})
@example(numbered(33), numbered(33))
def test_digests_are_equal_iff_entries_are(a: Model, b: Model) -> None:
    assert (index_of(a).digest() == index_of(b).digest()) == (a == b)


@given(models().filter(bool), st.data())
def test_any_change_of_one_entry_changes_the_digest_and_back(model: Model, data: st.DataObject) -> None:
    index = index_of(model)
    before = index.digest()
    source = data.draw(st.sampled_from(sorted(model)))
    seq, hash_ = model[source]
    assert index.put(source, seq, hash_of(1 << 20))
    assert index.digest() != before
    assert index.put(source, seq - 1 or 2, hash_)
    assert index.digest() != before
    assert index.put(source, seq, hash_)
    assert index.digest() == before
    assert not index.put(source, seq, hash_)


@given(models(), st.data())
def test_a_range_holds_the_sources_whose_place_begins_with_it(model: Model, data: st.DataObject) -> None:
    index = index_of(model)
    prefix = data.draw(st.binary(max_size=3).map(lambda raw: bytes(digit & 15 for digit in raw)))
    if data.draw(st.booleans()) and model:
        prefix = digits_of(key_of(data.draw(st.sampled_from(sorted(model)))))[: data.draw(st.integers(0, DIGITS_MAX))]
    keys = sorted(key for key in map(key_of, model) if digits_of(key).startswith(prefix))
    assert list(index.keys(prefix)) == keys
    assert index.count(prefix) == len(keys)
    assert [entry.source for entry in index.entries(prefix)] == [source_of(key) for key in keys]
    low, high = bounds(prefix)
    assert keys == sorted(key for key in map(key_of, model) if low <= key < high)
    if keys:
        after = data.draw(st.sampled_from(keys))
        assert list(index.keys(prefix, after)) == keys[keys.index(after) + 1 :]


@given(models(), st.binary(max_size=4).map(lambda raw: bytes(digit & 15 for digit in raw)))
def test_the_digest_of_a_range_depends_on_nothing_outside_it(model: Model, prefix: bytes) -> None:
    """Not on how the tree happened to be split: an index that holds only the range agrees."""
    inside = {source: value for source, value in model.items() if digits_of(key_of(source)).startswith(prefix)}
    assert index_of(model).digest(prefix) == index_of(inside).digest(prefix)


@pytest.mark.parametrize("count", [LEAF_MAX - 1, LEAF_MAX, LEAF_MAX + 1, 17 * LEAF_MAX])
def test_ranges_that_are_equal_are_found_equal_beside_one_that_is_not(count: int) -> None:
    a, b = index_of(numbered(count)), index_of(numbered(count))
    b.put("source-0", 7, hash_of(7))
    changed = digits_of(key_of("source-0"))[:1]
    unequal = [digit for digit in range(16) if a.digest(bytes((digit,))) != b.digest(bytes((digit,)))]
    assert bytes(unequal) == changed


@given(models(), st.binary(max_size=3).map(lambda raw: bytes(digit & 15 for digit in raw)))
def test_the_digests_of_the_parts_are_those_of_the_ranges(model: Model, prefix: bytes) -> None:
    index = index_of(model)
    assert index.part_digests(prefix) == [index.digest(prefix + bytes((digit,))) for digit in range(16)]


def test_nothing_has_a_digest_of_zeros() -> None:
    assert HeadsIndex().digest() == bytes(32)
    assert HeadsIndex().digest(b"\1\2") == bytes(32)


def test_a_fork_is_a_difference() -> None:
    a, b = HeadsIndex(), HeadsIndex()
    a.put("alice", 5, hash_of(1))
    b.put("alice", 5, hash_of(2))
    assert a.digest() != b.digest()


def test_places_that_share_all_digits_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collision of 64 bits, more than a leaf's worth: no range of 16 digits is split."""
    monkeypatch.setattr(heads, "_key", lambda name: bytes(8) + name)
    model = numbered(LEAF_MAX + 5)
    index = index_of(model)
    assert index.count(bytes(DIGITS_MAX)) == len(model)
    assert {entry.source for entry in index.entries(bytes(DIGITS_MAX))} == set(model)
    index.put("source-3", 9, hash_of(9))
    model["source-3"] = (9, hash_of(9))
    assert index.digest() == naive_digest({bytes(8) + source.encode(): value for source, value in model.items()})


def test_a_change_hashes_again_only_its_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(numbered(5000))
    index.digest()
    hashed: list[int] = []
    original = HeadsIndex._hash

    def counting(self: HeadsIndex, keys: Any) -> bytes:
        hashed.append(len(keys))
        return original(self, keys)

    monkeypatch.setattr(HeadsIndex, "_hash", counting)
    index.put("source-17", 1, hash_of(1))
    index.digest()
    assert len(hashed) == 1
    assert hashed[0] <= LEAF_MAX


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (("", 1, hash_of(1)), "source must not be empty"),
        ((b"alice", 1, hash_of(1)), "source must be a string"),
        (("alice", 0, hash_of(1)), "seq of source 'alice' must be an integer from 1"),
        (("alice", SEQ_MAX + 1, hash_of(1)), "seq of source 'alice'"),
        (("alice", True, hash_of(1)), "seq of source 'alice'"),
        (("alice", 1, b"short"), "hash of source 'alice' must be 32 bytes"),
        (("alice", 1, bytearray(32)), "hash of source 'alice' must be 32 bytes"),
    ],
)
def test_what_is_no_head_is_refused_by_name(entry: Any, named: str) -> None:
    index = HeadsIndex()
    with pytest.raises(UsageError, match=named):
        index.put(*entry)
    assert not len(index)


def test_a_name_of_more_than_255_bytes_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="source"):
        HeadsIndex().put("a" * 256, 1, hash_of(1))


def test_an_entry_is_what_was_put() -> None:
    index = index_of({"é": (3, hash_of(3))})
    assert list(index.entries()) == [Entry("é", 3, hash_of(3))]
