"""Blocks: cut within both bounds, read back whole, refused when anything in them does not fit together."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog import block
from deltalog.block import BYTES_MAX, DELTAS_MAX, STORED
from deltalog.chain import extend, genesis, tags
from deltalog.codec import build, erase
from deltalog.delta import Delta, Limits
from deltalog.errors import DecodeError
from tests.models import record_of
from tests.strategies import runs


def encoded(run: list[Delta], previous: bytes = b"p" * 32) -> bytes:
    records = [delta.record for delta in run]
    return block.encode(previous, extend(previous, records), records)


def plain(seq: int, timestamp: int, payload: object = None) -> Delta:
    return build("alice", seq, timestamp, payload)


# -------------------------------------------------------------------------------------------------------------- split


@given(st.lists(st.integers(1, 300) | st.integers(1, 2 * BYTES_MAX), max_size=300))
@example([1] * DELTAS_MAX)
@example([1] * (DELTAS_MAX + 1))
@example([BYTES_MAX])
@example([BYTES_MAX + 1])
@example([BYTES_MAX // 2, BYTES_MAX // 2])
@example([BYTES_MAX // 2, BYTES_MAX // 2 + 1])
@example([BYTES_MAX + 1] * 3)
def test_a_split_is_within_both_bounds_and_all_of_the_input_in_order(sizes: list[int]) -> None:
    records = [bytes(size) for size in sizes]
    parts = [records[start:end] for start, end in block.split(records)]
    assert [record for part in parts for record in part] == records
    for part in parts:
        assert 1 <= len(part) <= DELTAS_MAX
        assert len(part) == 1 or sum(map(len, part)) <= BYTES_MAX


@given(st.lists(st.integers(1, BYTES_MAX), min_size=2, max_size=60))
@example([BYTES_MAX // 2, BYTES_MAX // 2, 5])
def test_a_split_makes_no_block_that_could_have_been_longer(sizes: list[int]) -> None:
    """Neighbours within one count of `DELTAS_MAX` do not fit into one block."""
    bounds = list(block.split([bytes(size) for size in sizes]))
    for (start, end), (_, following) in pairwise(bounds):
        assert sum(sizes[start : end + 1]) > BYTES_MAX
        assert following > end


def test_a_long_run_of_small_records_is_cut_by_count() -> None:
    assert list(block.split([b"x"] * 300)) == [(0, 128), (128, 256), (256, 300)]
    assert list(block.split([])) == []


# --------------------------------------------------------------------------------------------------------- round trip


@given(runs(), st.binary(min_size=32, max_size=32))
def test_a_block_comes_back_as_it_went_in(run: list[Delta], previous: bytes) -> None:
    records = [delta.record for delta in run]
    value = encoded(run, previous)
    found = block.decode("alice", run[0].seq, value)
    assert found.deltas == run
    assert found.records == records == [record_of(delta) for delta in found.deltas]
    assert found.previous == previous
    assert found.tags == tags(extend(previous, records))
    assert block.encode(found.previous, extend(found.previous, found.records), found.records) == value


def test_the_bytes_of_a_block_are_those_in_the_table() -> None:
    first, second = plain(7, 5), plain(8, 6)
    hashes = extend(b"p" * 32, [first.record, second.record])
    header = b"\1\0" + b"\0\2" + b"p" * 32 + hashes[0][:2] + hashes[1][:2]
    assert encoded([first, second]) == header + first.record + second.record


def test_a_block_may_hold_erased_deltas_and_one_of_the_largest() -> None:
    large = build("alice", 1, 5, b"x" * (3 << 20), limits=STORED)
    erased = erase(plain(2, 6, "gone"), b"h" * 32)
    assert block.decode("alice", 1, encoded([large, erased])).deltas == [large, erased]


def test_what_is_stored_stays_readable_when_limits_are_lowered() -> None:
    for name in ("payload_bytes", "key_bytes", "kind_bytes", "source_bytes", "deps_entries"):
        limits = Limits(**{name: getattr(STORED, name)})
        assert getattr(limits, name) == getattr(STORED, name)
        with pytest.raises(ValueError, match=f"limits.{name}"):
            Limits(**{name: getattr(STORED, name) + 1})


@given(runs(), st.integers(-3, 9), st.integers(-3, 12))
def test_a_part_of_a_block_is_that_part(run: list[Delta], offset: int, end: int) -> None:
    after, until = run[0].seq + offset, run[0].seq + end
    part = [delta for delta in run if after < delta.seq <= until]
    found, size = block.decode_part("alice", run[0].seq, encoded(run), after, until)
    assert [record_of(delta) for delta in found] == [delta.record for delta in part]
    assert size == sum(len(delta.record) for delta in part)


@given(runs(), st.data())
def test_a_block_is_weighed_and_cut_by_time_without_decoding_it(run: list[Delta], data: st.DataObject) -> None:
    value, first = encoded(run), run[0].seq
    assert block.weigh(value) == (len(run), sum(len(delta.record) for delta in run))
    timestamp = data.draw(st.sampled_from(run)).timestamp + data.draw(st.integers(-1, 1))
    later = [delta.seq for delta in run if delta.timestamp > timestamp]
    assert block.seq_after(first, value, timestamp) == (min(later, default=run[-1].seq + 1), run[-1].seq)
    with pytest.raises(DecodeError, match="^block: 0 records; it holds 1 to 128"):
        block.weigh(b"\1\0\0\0" + value[4:])


def test_what_fits_together_is_what_a_split_leaves_together() -> None:
    assert block.fits(DELTAS_MAX, BYTES_MAX)
    assert not block.fits(DELTAS_MAX + 1, 1)
    assert not block.fits(1, BYTES_MAX + 1)


def test_a_part_is_checked_as_far_as_it_is_read() -> None:
    run = [plain(1, 5), plain(2, 6), plain(3, 7)]
    value = encoded(run)
    assert block.decode_part("alice", 1, value[:-5], 0, 2)[0] == run[:2]
    with pytest.raises(DecodeError, match="^record: cut short by 5 bytes|^record: 26 bytes left"):
        block.decode_part("alice", 1, value[:-5], 0, 3)
    with pytest.raises(DecodeError, match="^record: "):
        block.decode_part("alice", 1, value[:50], 2, 3)
    with pytest.raises(DecodeError, match="^block: 1 bytes after its last record"):
        block.decode_part("alice", 1, value + b"x", 2, 3)
    with pytest.raises(DecodeError, match="^block: seq 2 stands where 3 belongs"):
        block.decode_part("alice", 2, value, 2, 3)
    with pytest.raises(DecodeError, match="^block: 0 records; it holds 1 to 128"):
        block.decode_part("alice", 1, b"\1\0\0\0" + value[4:], 0, 1)


# ------------------------------------------------------------------------------------------------------------- damage


@given(runs(), st.data())
def test_a_block_that_is_cut_or_continued_is_refused(run: list[Delta], data: st.DataObject) -> None:
    value = encoded(run)
    cut = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(DecodeError, match="^(block|record): ") as caught:
        block.decode("alice", run[0].seq, value[:cut])
    assert " -" not in str(caught.value)
    with pytest.raises(DecodeError, match="^block: 3 bytes after its last record"):
        block.decode("alice", run[0].seq, value + b"end")


@given(runs(most=4), st.data())
def test_a_flipped_bit_is_refused_or_in_what_the_chain_covers(run: list[Delta], data: st.DataObject) -> None:
    """What a block's structure does not show, its chain does: `previous`, tags and records no longer agree."""
    value = bytearray(encoded(run))
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = block.decode("alice", run[0].seq, bytes(value))
    except DecodeError:
        return
    hashes = extend(found.previous, found.records)
    assert found.tags != tags(hashes) or hashes[-1] != extend(b"p" * 32, [delta.record for delta in run])[-1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "block: 0 bytes, its header has 36"),
        (b"\1" + b"\0" * 34, "block: 35 bytes, its header has 36"),
        (b"\2\0\0\1" + b"p" * 40, "block: format version 2.0; this program knows 1.0"),
        (b"\1\1\0\1" + b"p" * 40, "block: format version 1.1; this program knows 1.0"),
        (b"\1\0\0\0" + b"p" * 40, "block: 0 records; it holds 1 to 128"),
        (b"\1\0\0\1" + b"p" * 32, "block: 36 bytes, its header has 38"),
        (b"\1\0\0\1" + b"p" * 34, "record: 0 bytes left, its header has 30"),
        (b"\1\0\0\x81" + b"p" * 400, "block: 129 records; it holds 1 to 128"),
    ],
)
def test_each_kind_of_damage_is_named(value: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        block.decode("alice", 1, value)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("run", "first_seq", "message"),
    [
        ([plain(2, 5)], 1, "block: seq 2 stands where 1 belongs"),
        ([plain(1, 5), plain(3, 6)], 1, "seq: 3 stands where 2 belongs"),
        ([plain(1, 5), plain(1, 6)], 1, "seq: 1 stands where 2 belongs"),
        ([plain(2, 5), plain(1, 6)], 2, "seq: 1 stands where 3 belongs"),
        ([plain(1, 5), plain(2, 5)], 1, "timestamp: that of seq 2 does not come after its predecessor's"),
        ([plain(1, 5), plain(2, 4)], 1, "timestamp: that of seq 2 does not come after its predecessor's"),
    ],
)
def test_i1_i6_seqs_are_dense_and_timestamps_ascend_in_a_block(run: list[Delta], first_seq: int, message: str) -> None:
    with pytest.raises(DecodeError, match=f"^{message}"):
        block.decode("alice", first_seq, encoded(run))


@given(runs(), st.integers(0, 0xFFFF))
def test_a_count_that_lies_is_refused(run: list[Delta], count: int) -> None:
    value = bytearray(encoded(run))
    struct.pack_into(">H", value, 2, count)
    if count == len(run):
        assert block.decode("alice", run[0].seq, bytes(value)).deltas == run
    else:
        with pytest.raises(DecodeError):
            block.decode("alice", run[0].seq, bytes(value))


def test_a_block_under_the_wrong_source_has_another_chain() -> None:
    run = [plain(1, 5)]
    found = block.decode("bob", 1, encoded(run, genesis("alice")))
    assert found.previous != genesis("bob")


def test_an_interval_is_not_read_behind_the_end() -> None:
    """The index is made from it: what is cut off there may not pass for a timestamp."""
    value = encoded([plain(1, 5), plain(2, 6), plain(3, 7)])
    size = len(plain(3, 7).record)
    assert block.interval(value) == (5, 7)
    with pytest.raises(DecodeError, match="^block: its last record is cut short"):
        block.interval(value[: 20 - size])
    with pytest.raises(DecodeError, match="^record: "):
        block.interval(value[:60])
