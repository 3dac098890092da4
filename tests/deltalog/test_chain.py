"""The hash chain: any change of what was written changes the head, except an erasure."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.chain import TAG_BYTES, extend, genesis, payload_hash, tags
from deltalog.codec import decode, erase
from deltalog.delta import Delta
from deltalog.errors import DecodeError
from tests.fuzz.targets import DELTAS, ERASED
from tests.strategies import deltas, runs, sources


def head_of(source: str, run: list[Delta]) -> bytes:
    return [genesis(source), *extend(genesis(source), [delta.record for delta in run])][-1]


def naive_head(source: str, run: list[Delta]) -> bytes:
    """The formula in the file's docstring, in one expression a step."""
    value = blake2b(source.encode(), digest_size=32, person=b"deltalog source").digest()
    for delta in run:
        inner = delta.payload_bytes
        if not delta.erased:
            inner = blake2b(inner, digest_size=32, person=b"deltalog payload").digest()
        value = blake2b(value + delta.record[6 : delta.body] + inner, digest_size=32, person=b"deltalog link").digest()
    return value


@given(runs())
def test_the_chain_is_the_formula_and_tags_are_the_first_bytes_of_each_link(run: list[Delta]) -> None:
    hashes = extend(genesis("alice"), [delta.record for delta in run])
    assert hashes[-1] == naive_head("alice", run)
    assert TAG_BYTES == 2
    assert tags(hashes) == b"".join(value[:2] for value in hashes)


@given(runs(), st.data())
def test_a_chain_can_be_continued_from_any_link(run: list[Delta], data: st.DataObject) -> None:
    records = [delta.record for delta in run]
    whole = extend(genesis("alice"), records)
    cut = data.draw(st.integers(0, len(run)))
    front = extend(genesis("alice"), records[:cut])
    assert front + extend([genesis("alice"), *front][-1], iter(records[cut:])) == whole
    assert len(whole) == len(run) == len(set(whole))


@given(runs(most=4), st.data())
def test_i9_any_flipped_bit_is_refused_or_changes_the_head(run: list[Delta], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(run) - 1))
    record = bytearray(run[number].record)
    record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        flipped = decode("alice", bytes(record))
    except DecodeError:
        return
    assert head_of("alice", [*run[:number], flipped, *run[number + 1 :]]) != head_of("alice", run)


@pytest.mark.parametrize("number", range(5))
def test_i9_every_single_bit_of_one_record(number: int) -> None:
    delta = (*DELTAS, ERASED)[number]
    head = head_of("alice", [delta])
    for bit in range(8 * len(delta.record)):
        record = bytearray(delta.record)
        record[bit // 8] ^= 1 << bit % 8
        try:
            flipped = decode("alice", bytes(record))
        except DecodeError:
            continue
        assert head_of("alice", [flipped]) != head


@given(runs(most=6), deltas(source="alice"), st.data())
def test_i9_a_swap_a_removal_and_an_insertion_change_the_head(
    run: list[Delta], other: Delta, data: st.DataObject
) -> None:
    head = head_of("alice", run)
    at = data.draw(st.integers(0, len(run) - 1))
    assert head_of("alice", run[:at] + run[at + 1 :]) != head
    assert head_of("alice", [*run[:at], other, *run[at:]]) != head
    assert head_of("alice", [*run[:at], run[at], *run[at:]]) != head
    if at:
        assert head_of("alice", [*run[: at - 1], run[at], run[at - 1], *run[at + 1 :]]) != head


@given(runs(), sources())
def test_the_same_records_under_another_source_have_another_head(run: list[Delta], source: str) -> None:
    assert (head_of(source, run) == head_of("alice", run)) == (source == "alice")


@given(st.data())
def test_an_erasure_leaves_every_link_as_it_was(data: st.DataObject) -> None:
    run = data.draw(runs())
    erased = [erase(delta, payload_hash(delta)) if data.draw(st.booleans()) else delta for delta in run]
    assert extend(genesis("alice"), [delta.record for delta in erased]) == extend(
        genesis("alice"), [delta.record for delta in run]
    )


@given(deltas(), st.binary(min_size=32, max_size=32))
def test_an_erasure_with_another_hash_changes_the_head(delta: Delta, digest: bytes) -> None:
    erased = erase(delta, digest)
    assert payload_hash(erased) == digest
    assert (head_of(delta.source, [erased]) == head_of(delta.source, [delta])) == (digest == payload_hash(delta))


def test_the_three_uses_of_the_hash_are_kept_apart() -> None:
    plain = blake2b(b"alice", digest_size=32).digest()
    assert len({plain, genesis("alice"), genesis("Alice"), genesis("alice\0")}) == 4
