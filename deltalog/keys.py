"""Every key of the delta instance, and the values that are not blocks, in bytes (numbers big endian).

    family    key                                                         value
    deltas    source_no (4) | first seq (8)                               a block (see `block`)
    by_time   level (1) | first timestamp (8) | source_no (4) | first seq (8)
                                                                          last timestamp (8) | count (2) | bytes (4)
    sources   source_no (4)                                               a head row, below
    meta      text                                                        msgpack, then its check
              "erased/" source_no (4) seq (8)                             reason and timestamp of an erasure
              "annotation/" any bytes (1 to 1024)                         any bytes (up to 64 KiB)

    head row:  version (1) | seq (8) | timestamp (8) | chain hash (32) | floor (8) | hash at the floor (32)
               | bytes of its records (8) | source, UTF-8 | check (8)

Source-sharded: each source is one run of ascending keys. `source_no` counts sources in the order they came, so a key
has a fixed size whatever the source's id holds.

by_time is an interval index. A block covers the interval from its first to its last timestamp; `level` is the number
of bits of that interval's length. Blocks that touch (after, until] are found at each level by one seek to
`after - 2**level`: since blocks of one source do not overlap, at most one a source and level is looked at in vain,
however long the log and however long its longest block.

A check is BLAKE2b over family, key and value, 8 bytes: what the chain cannot vouch for (heads, meta) does so itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import attrs
import msgpack

from deltalog.codec import HASH_BYTES, timestamp_of
from deltalog.errors import DecodeError

DELTAS: Final = "deltas"
BY_TIME: Final = "by_time"
SOURCES: Final = "sources"
META: Final = "meta"
SNAPSHOTS: Final = "snapshots"

FORMAT: Final = 1
"""Version of the key layout, kept in meta under `META_FORMAT`."""
META_FORMAT: Final = b"format"
META_STORE_ID: Final = b"store_id"
META_INCARNATIONS: Final = b"incarnations"
META_ERASED: Final = b"erased/"
META_SCRUB: Final = b"scrub"
META_ANNOTATION: Final = b"annotation/"
META_ROWS: Final = frozenset({META_FORMAT, META_STORE_ID, META_INCARNATIONS, META_SCRUB})
"""Every key in meta but those under `META_ERASED` and `META_ANNOTATION`."""
ANNOTATION_KEY_BYTES: Final = 1024
ANNOTATION_VALUE_BYTES: Final = 64 << 10
RESERVED: Final = b"deltalog/"
"""What the keys of the log's own annotations begin with."""
PEERS: Final = b"deltalog/peers"
"""Annotation: which peers are known (see `stability`)."""
RETIRED: Final = b"deltalog/retired"
"""Annotation: the source that appends no more, and why, as msgpack. It outlives what it led to."""
LEVELS: Final = 65

_BLOCK_KEY: Final = struct.Struct(">IQ")
_TIME_KEY: Final = struct.Struct(">BQIQ")
TIME_KEY_BYTES: Final = _TIME_KEY.size
_TIME_VALUE: Final = struct.Struct(">QHI")
_SOURCE_KEY: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(f">BQQ{HASH_BYTES}sQ{HASH_BYTES}sQ")
_HEAD_VERSION: Final = 1
_CHECK_BYTES: Final = 8
_SEQ: Final = struct.Struct(">Q")


@attrs.frozen
class Head:
    """What the store knows of one source."""

    seq: int = 0
    """Highest seq stored."""
    timestamp: int = 0
    """Timestamp of that delta (kept when the delta itself was dropped)."""
    hash: bytes = b""
    """Chain hash behind it."""
    floor: int = 0
    """Seq up to which deltas were dropped."""
    floor_hash: bytes = b""
    """Chain hash behind the floor."""
    size_bytes: int = 0
    """Bytes of the records above the floor."""

    @property
    def count(self) -> int:
        """Number of deltas stored."""
        return self.seq - self.floor


@attrs.frozen
class TimeEntry:
    """One entry of the time index: a block's interval, place and size."""

    first: int
    """Timestamp of the block's first delta."""
    last: int
    """Timestamp of its last delta."""
    source_no: int
    seq: int
    """Seq of its first delta."""
    count: int
    """Number of deltas in it."""
    size_bytes: int
    """Bytes of their records."""

    @property
    def key(self) -> bytes:
        """Key of the entry in by_time."""
        level = (self.last - self.first).bit_length()
        return _TIME_KEY.pack(level, self.first, self.source_no, self.seq)

    @property
    def value(self) -> bytes:
        """Value of the entry in by_time."""
        return _TIME_VALUE.pack(self.last, self.count, self.size_bytes)

    @property
    def block_key(self) -> bytes:
        """Key of the block in deltas."""
        return _BLOCK_KEY.pack(self.source_no, self.seq)


def time_entry(source_no: int, first_seq: int, records: Sequence[bytes]) -> TimeEntry:
    """The entry of the block that holds `records`."""
    first, last = timestamp_of(records[0]), timestamp_of(records[-1])
    return TimeEntry(first, last, source_no, first_seq, len(records), sum(map(len, records)))


def block_key(source_no: int, seq: int) -> bytes:
    """Key in deltas of the block that starts at `seq`."""
    return _BLOCK_KEY.pack(source_no, seq)


def parse_block_key(key: bytes) -> tuple[int, int]:
    """Return (source_no, first seq) of a key in deltas."""
    try:
        return _BLOCK_KEY.unpack(key)
    except struct.error as error:
        raise DecodeError(f"{DELTAS} key: {len(key)} bytes, not {_BLOCK_KEY.size}") from error


def time_bound(level: int, timestamp: int) -> bytes:
    """Least key in by_time at `level` whose block starts at `timestamp` or later."""
    return _TIME_KEY.pack(level, timestamp, 0, 0) if timestamp < 1 << 64 else bytes((level + 1,))


def parse_time_entry(key: bytes, value: bytes) -> TimeEntry:
    """Return an entry of by_time; `DecodeError` if it is not one or stands at the wrong level."""
    try:
        _, first, source_no, seq = _TIME_KEY.unpack(key)
        last, count, size = _TIME_VALUE.unpack(value)
    except struct.error as error:
        raise DecodeError(f"{BY_TIME} entry: {len(key)} + {len(value)} bytes") from error
    entry = TimeEntry(first, last, source_no, seq, count, size)
    if last < first or not count or entry.key != key:
        raise DecodeError(f"{BY_TIME} entry: level, interval and count do not fit together")
    return entry


def source_key(source_no: int) -> bytes:
    """Key in sources."""
    return _SOURCE_KEY.pack(source_no)


def encode_head(source_no: int, source: str, head: Head) -> bytes:
    """Value in sources."""
    row = (
        _HEAD.pack(_HEAD_VERSION, head.seq, head.timestamp, head.hash, head.floor, head.floor_hash, head.size_bytes)
        + source.encode()
    )
    return row + _check(SOURCES, source_key(source_no), row)


def decode_head(key: bytes, value: bytes) -> tuple[int, str, Head]:
    """Return (source_no, source, head) of a row in sources; `DecodeError` for any flipped bit."""
    row = _checked(SOURCES, key, value)
    try:
        (source_no,) = _SOURCE_KEY.unpack(key)
        version, seq, timestamp, chain, floor, floor_hash, size = _HEAD.unpack_from(row)
        source = row[_HEAD.size :].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise DecodeError(f"{SOURCES} row: {error}") from error
    if version != _HEAD_VERSION:
        raise DecodeError(f"{SOURCES} row: format version {version}; this program knows {_HEAD_VERSION}")
    if not source or floor > seq:
        raise DecodeError(f"{SOURCES} row of {source!r}: floor {floor} is above its head {seq}")
    return source_no, source, Head(seq, timestamp, chain, floor, floor_hash, size)


def erased_key(source_no: int, seq: int) -> bytes:
    """Key in meta of the note about an erasure."""
    return META_ERASED + _BLOCK_KEY.pack(source_no, seq)


def prefix_end(prefix: bytes) -> bytes:
    """Least key behind every key that starts with `prefix` (of which some byte is not 255)."""
    prefix = prefix.rstrip(b"\xff")
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def annotation_key(key: bytes) -> bytes:
    """Key in meta of an annotation."""
    return META_ANNOTATION + key


def decode_annotation(key: bytes, value: bytes) -> bytes:
    """Return the annotation under a key in meta; `DecodeError` for any flipped bit, and for what is none."""
    content, size = decode_meta(key, value), len(key) - len(META_ANNOTATION)
    if type(content) is not bytes or not 0 < size <= ANNOTATION_KEY_BYTES or len(content) > ANNOTATION_VALUE_BYTES:
        raise DecodeError(f"{META} row {key[:60]!r}: no annotation")
    return content


def encode_meta(key: bytes, value: Any) -> bytes:
    """Value in meta."""
    row: bytes = msgpack.packb(value)
    return row + _check(META, key, row)


def decode_meta(key: bytes, value: bytes) -> Any:
    """Return what stands in meta under `key`; `DecodeError` for any flipped bit."""
    row = _checked(META, key, value)
    try:
        return msgpack.unpackb(row)
    except ValueError as error:
        raise DecodeError(f"{META} row {key!r}: {error}") from error


def encode_retired(source: str, reason: str) -> bytes:
    """Value of the annotation `RETIRED`."""
    packed: bytes = msgpack.packb([source, reason])
    return packed


def decode_retired(value: bytes) -> tuple[str, str]:
    """Return (source, reason) of the annotation `RETIRED`."""
    try:
        source, reason = msgpack.unpackb(value)
    except (ValueError, TypeError) as error:
        raise DecodeError(f"retired: {error}") from error
    if type(source) is not str or type(reason) is not str:
        raise DecodeError(f"retired: {source!r}, {reason!r}"[:200])
    return source, reason


def _check(family: str, key: bytes, row: bytes) -> bytes:
    data = b"%b\0%b%b" % (family.encode(), _SEQ.pack(len(key)) + key, row)
    return blake2b(data, digest_size=_CHECK_BYTES).digest()


def _checked(family: str, key: bytes, value: bytes) -> bytes:
    row = value[:-_CHECK_BYTES]
    if len(value) <= _CHECK_BYTES or value[-_CHECK_BYTES:] != _check(family, key, row):
        raise DecodeError(f"{family} row {key!r}: its check does not match its bytes")
    return row
