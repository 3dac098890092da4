"""A block: 1 to 128 consecutive deltas of one source, the value that the store keeps under their first dot.

    offset  size      field
    0       1         version of the format: 1
    1       1         reserved: 0
    2       2         count of records (big endian)
    4       32        chain hash before the first record
    36      2 count   tags: the first two bytes of the chain hash behind each record
    ...     ...       records, one after the other (see `codec`)

Long blocks make writing, replay and compression cheap; the bounds keep one lookup cheap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from deltalog.chain import TAG_BYTES, tags
from deltalog.codec import HASH_BYTES, HEADER, count_until, decode_many, skip_many, timestamp_of
from deltalog.delta import Delta, Limits
from deltalog.errors import DecodeError

DELTAS_MAX: Final = 128
"""Deltas in one block. Above, replay and size gain under 3 % while one lookup reads twice as much."""
BYTES_MAX: Final = 64 << 10
"""Bytes of records in one block of more than one delta."""

_VERSION: Final = 1
_HEADER: Final = struct.Struct(f">BBH{HASH_BYTES}s")
STORED: Final = Limits(payload_bytes=64 << 20, key_bytes=0xFFFF, kind_bytes=0xFFFF, deps_entries=1 << 20)
"""What is stored was checked when it came in; a limit lowered since then must not make it unreadable."""


@attrs.frozen
class Block:
    """A decoded block: what stands in it, each record a valid delta, seqs dense, timestamps ascending."""

    previous: bytes
    """Chain hash before the first delta."""
    tags: bytes
    deltas: list[Delta]

    @property
    def records(self) -> list[bytes]:
        """The encoded deltas."""
        return [delta.record for delta in self.deltas]


def split(records: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Cut a run of records into blocks: yield (start, end) indices, each within both bounds."""
    sizes = list(map(len, records))
    for start in range(0, len(sizes), DELTAS_MAX):
        end = min(start + DELTAS_MAX, len(sizes))
        if sum(sizes[start:end]) <= BYTES_MAX:
            yield start, end
        else:
            yield from _split_by_size(sizes, start, end)


def _split_by_size(sizes: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int]]:
    total = 0
    for index in range(start, end):
        total += sizes[index]
        if index > start and total > BYTES_MAX:
            yield start, index
            start, total = index, sizes[index]
    yield start, end


def encode(previous: bytes, hashes: Sequence[bytes], records: Sequence[bytes]) -> bytes:
    """Return the block of `records`; `hashes` are the chain hashes behind each of them."""
    return b"".join((_HEADER.pack(_VERSION, 0, len(records), previous), tags(hashes), *records))


def decode(source: str, first_seq: int, value: bytes) -> Block:
    """Return the block stored under (source, first_seq). Raises `DecodeError` unless everything in it fits together."""
    previous, tag_bytes, count, at = _header(value)
    deltas, end = decode_many(source, value, at, count, STORED)
    if end != len(value):
        raise DecodeError(f"block: {len(value) - end} bytes after its last record")
    if deltas[0].seq != first_seq:
        raise DecodeError(f"block: seq {deltas[0].seq} stands where {first_seq} belongs")
    return Block(previous, tag_bytes, deltas)


def decode_part(source: str, first_seq: int, value: bytes, after: int, until: int) -> tuple[list[Delta], int]:
    """Return the deltas with after < seq <= until of the block stored under (source, first_seq); and their bytes.

    What stands before them is passed over by its sizes alone, what stands behind them is not looked at. Raises
    `DecodeError`.
    """
    _, _, held, at = _header(value)
    start, end_index = max(0, after + 1 - first_seq), min(held, until + 1 - first_seq)
    if start >= end_index:
        return [], 0
    at = skip_many(value, at, start)
    deltas, end = decode_many(source, value, at, end_index - start, STORED)
    if deltas[0].seq != first_seq + start:
        raise DecodeError(f"block: seq {deltas[0].seq} stands where {first_seq + start} belongs")
    if end_index == held and end != len(value):
        raise DecodeError(f"block: {len(value) - end} bytes after its last record")
    return deltas, end - at


def fits(count: int, size_bytes: int) -> bool:
    """Whether so many records of so many bytes may stand in one block together."""
    return count <= DELTAS_MAX and size_bytes <= BYTES_MAX


def weigh(value: bytes) -> tuple[int, int]:
    """Return how many records a block has, and their bytes, by its header alone. Raises `DecodeError`."""
    _, _, count, at = _header(value)
    return count, len(value) - at


def interval(value: bytes) -> tuple[int, int]:
    """Return the first and the last timestamp of a block, without decoding it. Raises `DecodeError`."""
    _, _, count, at = _header(value)
    last = skip_many(value, at, count - 1)
    if last + HEADER.size > len(value):
        raise DecodeError("block: its last record is cut short")
    return timestamp_of(value[at : at + HEADER.size]), timestamp_of(value[last : last + HEADER.size])


def seq_after(first_seq: int, value: bytes, timestamp: int) -> tuple[int, int]:
    """Return the least seq with a later timestamp (one more than the last seq, if there is none), and the last seq."""
    _, _, held, at = _header(value)
    return first_seq + count_until(value, at, held, timestamp), first_seq + held - 1


def _header(value: bytes) -> tuple[bytes, bytes, int, int]:
    try:
        version, reserved, count, previous = _HEADER.unpack_from(value)
    except struct.error as error:
        raise DecodeError(f"block: {len(value)} bytes, its header has {_HEADER.size}") from error
    if version != _VERSION or reserved:
        raise DecodeError(f"block: format version {version}.{reserved}; this program knows {_VERSION}.0")
    if not 1 <= count <= DELTAS_MAX:
        raise DecodeError(f"block: {count} records; it holds 1 to {DELTAS_MAX}")
    at = _HEADER.size + TAG_BYTES * count
    if at > len(value):
        raise DecodeError(f"block: {len(value)} bytes, its header has {at}")
    return previous, value[_HEADER.size : at], count, at
