"""Keys sort as what they stand for; the time index finds every block of an interval; rows vouch for themselves."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog import keys
from deltalog.delta import TIMESTAMP_MAX, Delta
from deltalog.errors import DecodeError
from deltalog.keys import DELTAS, LEVELS, META, SOURCES, Head, TimeEntry
from tests.models import sealed_row, touching
from tests.strategies import runs, sources, timestamps

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ENDS = st.sampled_from([0, 1, 255, 256, 2**32 - 1])
PLACES = st.tuples(U32 | ENDS, U64 | ENDS | st.sampled_from([2**63 - 1, 2**64 - 1]))


# --------------------------------------------------------------------------------------------------------- block keys


@given(PLACES, PLACES)
def test_block_keys_sort_as_source_then_seq(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (keys.block_key(*a) < keys.block_key(*b)) == (a < b)
    assert keys.parse_block_key(keys.block_key(*a)) == a


@pytest.mark.parametrize("size", [0, 4, 11, 13])
def test_a_block_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match=f"^deltas key: {size} bytes, not 12"):
        keys.parse_block_key(bytes(size))


def test_the_bytes_of_the_keys_are_those_in_the_table() -> None:
    assert keys.block_key(1, 2).hex(" ") == "00 00 00 01 00 00 00 00 00 00 00 02"
    assert keys.source_key(258).hex(" ") == "00 00 01 02"
    entry = TimeEntry(256, 256 + 5, 1, 2, 3, 4)
    assert entry.key.hex(" ") == "03 00 00 00 00 00 00 01 00 00 00 00 01 00 00 00 00 00 00 00 02"
    assert entry.value.hex(" ") == "00 00 00 00 00 00 01 05 00 03 00 00 00 04"
    assert entry.block_key == keys.block_key(1, 2)
    assert keys.erased_key(1, 2) == b"erased/" + keys.block_key(1, 2)


@given(st.binary(min_size=1, max_size=8).filter(lambda prefix: prefix[-1] < 255), st.binary(max_size=12))
def test_prefix_end_is_where_a_prefix_ends(prefix: bytes, other: bytes) -> None:
    end = keys.prefix_end(prefix)
    assert prefix <= prefix + other < end
    assert prefix <= prefix + b"\xff" * 20 < end
    assert (prefix <= other < end) == other.startswith(prefix)


# --------------------------------------------------------------------------------------------------------- time index


@st.composite
def indexes(draw: st.DrawFn) -> list[TimeEntry]:
    """Index entries of blocks of a few sources; blocks of one source do not overlap in time (invariant I6)."""
    entries = []
    for source_no in range(draw(st.integers(1, 3))):
        times = sorted(draw(st.lists(timestamps() | st.integers(0, 300), max_size=24, unique=True)))
        seq = 1
        while times:
            count = draw(st.integers(1, 3))
            block, times = times[:count], times[count:]
            entries.append(TimeEntry(block[0], block[-1], source_no, seq, len(block), 1))
            seq += len(block)
    return entries


def looked_at(index: dict[bytes, TimeEntry], after: int, until: int) -> list[TimeEntry]:
    """What a search for (after, until] reads: one range of the sorted keys a level, as `keys` says."""
    order = sorted(index)
    found = []
    for level in range(LEVELS):
        begin = bisect_left(order, keys.time_bound(level, max(0, after + 1 - (1 << level))))
        end = bisect_left(order, keys.time_bound(level, until + 1))
        found += [index[key] for key in order[begin:end]]
    return found


@given(indexes(), timestamps() | st.just(-1), timestamps())
@example([TimeEntry(0, TIMESTAMP_MAX, 0, 1, 2, 1)], -1, 0)
@example([TimeEntry(0, TIMESTAMP_MAX, 0, 1, 2, 1)], TIMESTAMP_MAX - 1, TIMESTAMP_MAX)
@example([TimeEntry(0, 0, 0, 1, 1, 1), TimeEntry(TIMESTAMP_MAX, TIMESTAMP_MAX, 0, 2, 1, 1)], -1, TIMESTAMP_MAX)
@example([TimeEntry(0, 2**63, 0, 1, 2, 1), TimeEntry(2**63 + 1, TIMESTAMP_MAX, 0, 3, 2, 1)], 2**63, TIMESTAMP_MAX)
def test_a_search_finds_every_block_that_touches_an_interval_and_few_others(
    entries: list[TimeEntry], after: int, until: int
) -> None:
    index = {entry.key: entry for entry in entries}
    assert len(index) == len(entries)
    read = looked_at(index, after, until)
    assert len(set(read)) == len(read)
    wanted = touching(entries, after, until)
    assert set(wanted) <= set(read)
    vain = Counter((entry.source_no, entry.key[0]) for entry in set(read) - set(wanted))
    assert not vain or max(vain.values()) == 1


@given(timestamps(), timestamps(), U32, U64)
def test_the_level_of_an_entry_is_the_number_of_bits_of_its_length(a: int, b: int, source_no: int, seq: int) -> None:
    first, last = sorted((a, b))
    entry = TimeEntry(first, last, source_no, seq, 2, 1)
    level = entry.key[0]
    assert level < LEVELS
    assert (1 << level) >> 1 <= last - first < 1 << level
    assert keys.time_bound(level, first) <= entry.key < keys.time_bound(level, first + 1)
    assert keys.time_bound(level, 0) >= bytes((level,))
    assert keys.time_bound(level, TIMESTAMP_MAX + 1) == bytes((level + 1,)) <= keys.time_bound(level + 1, 0)


@given(timestamps(), timestamps(), PLACES, st.integers(1, 0xFFFF), U32)
def test_an_entry_comes_back_as_it_went_in(a: int, b: int, place: tuple[int, int], count: int, size: int) -> None:
    first, last = sorted((a, b))
    entry = TimeEntry(first, last, *place, count, size)
    assert keys.parse_time_entry(entry.key, entry.value) == entry


@given(timestamps(), timestamps(), PLACES, st.data())
def test_a_damaged_entry_is_refused_or_is_another_whole_one(
    a: int, b: int, place: tuple[int, int], data: st.DataObject
) -> None:
    first, last = sorted((a, b))
    entry = TimeEntry(first, last, *place, data.draw(st.integers(1, 300)), 1)
    whole = bytearray(entry.key + entry.value)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    key, value = bytes(whole[: len(entry.key)]), bytes(whole[len(entry.key) :])
    try:
        found = keys.parse_time_entry(key, value)
    except DecodeError:
        return
    assert (found.key, found.value) == (key, value)
    assert found.count
    assert found.first <= found.last
    assert key[0] == entry.key[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b""),
        (TimeEntry(1, 2, 3, 4, 5, 6).key[:-1], TimeEntry(1, 2, 3, 4, 5, 6).value),
        (TimeEntry(1, 2, 3, 4, 5, 6).key, TimeEntry(1, 2, 3, 4, 5, 6).value + b"\0"),
        (TimeEntry(1, 2, 3, 4, 5, 6).key, TimeEntry(1, 1, 3, 4, 5, 6).value),
        (TimeEntry(2, 2, 3, 4, 5, 6).key, TimeEntry(1, 1, 3, 4, 5, 6).value),
        (TimeEntry(1, 2, 3, 4, 5, 6).key, TimeEntry(1, 2, 3, 4, 0, 6).value),
    ],
)
def test_what_is_no_entry_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(DecodeError, match="^by_time entry: "):
        keys.parse_time_entry(key, value)


@given(runs())
def test_an_entry_tells_interval_place_and_size_of_its_block(run: list[Delta]) -> None:
    records = [delta.record for delta in run]
    entry = keys.time_entry(3, run[0].seq, records)
    assert entry == TimeEntry(run[0].timestamp, run[-1].timestamp, 3, run[0].seq, len(run), len(b"".join(records)))


# ---------------------------------------------------------------------------------------------------------- head rows


@st.composite
def heads(draw: st.DrawFn) -> Head:
    seq = draw(U64)
    hashes = st.binary(min_size=32, max_size=32)
    return Head(seq, draw(U64), draw(hashes), draw(st.integers(0, seq)), draw(hashes), draw(U64))


HEAD = Head(9, 5, b"h" * 32, 4, b"f" * 32, 700)


@given(U32, sources(), heads())
def test_a_head_comes_back_as_it_went_in(source_no: int, source: str, head: Head) -> None:
    value = keys.encode_head(source_no, source, head)
    assert keys.decode_head(keys.source_key(source_no), value) == (source_no, source, head)
    assert head.count == head.seq - head.floor


def test_the_bytes_of_a_head_row_are_those_in_the_table() -> None:
    numbers = struct.pack(">BQQ", 1, 9, 5) + b"h" * 32 + struct.pack(">Q", 4) + b"f" * 32 + struct.pack(">Q", 700)
    key = keys.source_key(7)
    assert keys.encode_head(7, "é", HEAD) == sealed_row(SOURCES, key, numbers + "é".encode())


def test_i9_every_flipped_bit_of_a_head_row_is_refused_in_key_and_value() -> None:
    key, value = keys.source_key(7), keys.encode_head(7, "alice", HEAD)
    whole = key + value
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError, match="^sources row "):
            keys.decode_head(bytes(damaged[: len(key)]), bytes(damaged[len(key) :]))


def test_i9_every_cut_of_a_head_row_is_refused() -> None:
    key, value = keys.source_key(7), keys.encode_head(7, "alice", HEAD)
    for size in range(len(value)):
        with pytest.raises(DecodeError, match="^sources row "):
            keys.decode_head(key, value[:size])
    with pytest.raises(DecodeError, match="^sources row "):
        keys.decode_head(key[:-1] + b"\7\0", value)


NUMBERS = keys.encode_head(7, "alice", HEAD)[:-13]
"""A head row without source and check."""


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        (keys.source_key(7), b"", "sources row"),
        (keys.source_key(7), b"\1" * 96, "sources row: unpack_from requires"),
        (keys.source_key(7), NUMBERS, "sources row of '': "),
        (keys.source_key(7), NUMBERS + b"\xff", "sources row: 'utf-8' codec"),
        (keys.source_key(7), b"\2" + NUMBERS[1:] + b"a", "sources row: format version 2; this program knows 1"),
        (
            keys.source_key(7),
            NUMBERS[:49] + b"\0" * 7 + b"\x0a" + NUMBERS[57:] + b"a",
            "sources row of 'a': floor 10 is",
        ),
        (b"", NUMBERS + b"a", "sources row: unpack requires"),
        (b"\0" * 5, NUMBERS + b"a", "sources row: unpack requires"),
    ],
)
def test_a_head_row_with_a_valid_check_and_wrong_content_is_refused(key: bytes, row: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        keys.decode_head(key, sealed_row(SOURCES, key, row))
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------------------------------------------------- meta rows


META_VALUES = st.recursive(
    st.none() | st.booleans() | U64 | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner),
    max_leaves=8,
)


@given(st.binary(max_size=20), META_VALUES)
def test_a_meta_row_comes_back_as_it_went_in(key: bytes, value: Any) -> None:
    assert keys.decode_meta(key, keys.encode_meta(key, value)) == value
    assert keys.encode_meta(key, value) == sealed_row(META, key, msgpack.packb(value))


def test_i9_every_flipped_bit_of_a_meta_row_is_refused() -> None:
    key, value = keys.META_INCARNATIONS, keys.encode_meta(keys.META_INCARNATIONS, ["alice", "alice~2"])
    for bit in range(8 * len(value)):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError, match="^meta row b'incarnations': its check does not match its bytes"):
            keys.decode_meta(key, bytes(damaged))


def test_i9_a_row_that_was_moved_is_refused() -> None:
    value = keys.encode_meta(keys.META_SCRUB, 5)
    assert keys.decode_meta(keys.META_SCRUB, value) == 5
    for other in (keys.META_FORMAT, keys.META_SCRUB + b"\0", b""):
        with pytest.raises(DecodeError, match="its check does not match"):
            keys.decode_meta(other, value)
    key = keys.source_key(7)
    for family in (META, DELTAS, "source", "sources\0"):
        with pytest.raises(DecodeError, match="its check does not match"):
            keys.decode_head(key, sealed_row(family, key, NUMBERS + b"alice"))


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\x92\1",
        b"\x91" * 2000,
        b"\xa1\xff",
        b"\x81\x91\1\2",
        b"\x81\x81\1\2\3",
        b"\x81\1\2",
        b"\xdd\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc7\x03\xffabc",
    ],
)
def test_a_meta_row_with_a_valid_check_that_is_no_value_is_refused(row: bytes) -> None:
    with pytest.raises(DecodeError, match="^meta row b'scrub'"):
        keys.decode_meta(keys.META_SCRUB, sealed_row(META, keys.META_SCRUB, row))


def test_no_two_keys_of_meta_can_be_taken_for_each_other() -> None:
    names = [keys.META_FORMAT, keys.META_STORE_ID, keys.META_INCARNATIONS, keys.META_SCRUB]
    assert len(set(names)) == len(names)
    assert not any(name.startswith((keys.META_ERASED, keys.META_ANNOTATION)) for name in names)
    assert not keys.annotation_key(b"").startswith(keys.META_ERASED)
    assert all(keys.erased_key(1, seq) < keys.erased_key(1, seq + 1) for seq in (1, 255, 256))
