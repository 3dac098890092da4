"""The canonical bytes of a delta: one encoding, made once, versioned.

    offset  size  field
    0       1     version of the format: 1
    1       1     flags: 0, or 1 = the payload was erased and its 32-byte hash stands in its place
    2       4     size of the payload            (big endian, like every number here)
    6       2     size of the kind               <- from here to the payload: the header that the chain hashes
    8       2     size of the key
    10      4     size of the deps
    14      8     seq
    22      8     timestamp
    30      ...   deps | kind | key | payload

    deps: for each entry, in ascending order of the source's UTF-8 bytes:  size (1) | source | seq (8)

The source is not in the record: a record stands under its source in the store, on the wire and in the chain (whose
first hash is the source's). Fields of fixed size cost nothing after compression (the store compresses blocks of
records) and make the encoding canonical by construction: one delta has one encoding, and `decode` refuses all others.
The payload is msgpack, but opaque here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgpack

from deltalog.delta import (
    NO_DEPS,
    SEQ_MAX,
    TIMESTAMP_MAX,
    Delta,
    DeltaFields,
    Limits,
    check_source,
    seal,
    text_bytes,
)
from deltalog.errors import DecodeError, LimitExceeded, UsageError

VERSION: Final = 1
ERASED: Final = 1
HASH_BYTES: Final = 32
HEADER: Final = struct.Struct(">BBIHHIQQ")
CHAINED_FROM: Final = 6
"""Offset of the first byte that the chain hashes as it stands; version, flags and payload size enter by the payload's hash."""

_NUMBER: Final = struct.Struct(">Q")
_BODY_SIZE: Final = struct.Struct(">I")
_TIMESTAMP_AT: Final = 22
_HEADER_BYTES: Final = HEADER.size


class Encoder:
    """Encodes values into deltas under limits. Keeps a msgpack packer: use one encoder from one thread."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits if limits is not None else Limits()
        self._payload_bytes = self.limits.payload_bytes
        self._packer = msgpack.Packer()

    def encode(
        self, source: str, seq: int, timestamp: Callable[[], int], deps: Mapping[str, int], kind: str, key: str, payload: Any
    ) -> Delta:
        """Return the delta; `source`, `seq`, `deps` are trusted (the log's own), the rest is checked.

        `timestamp` is called last, when nothing can be refused any more. Raises `UsageError` naming the field.
        """
        try:
            body = self._packer.pack(payload)
            kind_bytes = kind.encode()
            key_bytes = key.encode()
        except Exception as error:
            raise self._refusal(kind, key, error) from error
        limits = self.limits
        if len(body) > self._payload_bytes:
            raise LimitExceeded("payload", len(body), limits.payload_bytes)
        if len(kind_bytes) > limits.kind_bytes or len(key_bytes) > limits.key_bytes:
            raise self._refusal(kind, key, None)
        deps_bytes = encode_deps(deps) if deps else b""
        now = timestamp()
        header = HEADER.pack(VERSION, 0, len(body), len(kind_bytes), len(key_bytes), len(deps_bytes), seq, now)
        record = b"".join((header, deps_bytes, kind_bytes, key_bytes, body))
        return seal(DeltaFields(source, seq, now, deps, kind, key, record, len(record) - len(body)))

    def _refusal(self, kind: object, key: object, error: Exception | None) -> UsageError:
        """Say which of the fields is at fault; `error` is what packing raised, if it did."""
        try:
            text_bytes("kind", kind, self.limits.kind_bytes)
            text_bytes("key", key, self.limits.key_bytes)
        except UsageError as refusal:
            return refusal
        self._packer = msgpack.Packer()
        return UsageError(f"payload cannot be encoded as msgpack: {error}"[:300])


def build(
    source: str,
    seq: int,
    timestamp: int,
    payload: Any,
    *,
    deps: Mapping[str, int] = NO_DEPS,
    kind: str = "",
    key: str = "",
    limits: Limits | None = None,
) -> Delta:
    """Make a delta from values that came from outside (an import, a test). Everything is checked; `UsageError` names the field."""
    limits = limits if limits is not None else Limits()
    check_source(source, limits)
    _check_number("seq", seq, 1, SEQ_MAX)
    _check_number("timestamp", timestamp, 0, TIMESTAMP_MAX)
    checked = _check_deps(source, deps, limits)
    return Encoder(limits).encode(source, seq, lambda: timestamp, checked, kind, key, payload)


def _check_number(field: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{field} must be an integer from {low} to {high}, not {value!r}"[:200])


def _check_deps(source: str, deps: Mapping[str, int], limits: Limits) -> Mapping[str, int]:
    if not isinstance(deps, Mapping):
        raise UsageError(f"deps must be a mapping of source to seq, not {type(deps).__name__}")
    if len(deps) > limits.deps_entries:
        raise LimitExceeded("deps", len(deps), limits.deps_entries, "entries")
    for name, seq in deps.items():
        check_source(name, limits)
        _check_number(f"deps[{name!r}]", seq, 1, SEQ_MAX)
        if name == source:
            raise UsageError("deps must not name the delta's own source: its predecessor is implied")
    return MappingProxyType(dict(deps)) if deps else NO_DEPS


def encode_deps(deps: Mapping[str, int]) -> bytes:
    """Return the deps in their one order: ascending by the source's UTF-8 bytes."""
    entries = sorted((source.encode(), seq) for source, seq in deps.items())
    return b"".join([b"%c%b%b" % (len(name), name, _NUMBER.pack(seq)) for name, seq in entries])


def decode_deps(data: bytes, source: str, limits: Limits) -> Mapping[str, int]:
    """Return the deps that `data` is, whole; `DecodeError` unless it is their one encoding."""
    deps: dict[str, int] = {}
    at, size, previous = 0, len(data), b""
    while at < size:
        end = at + 1 + data[at]
        name = data[at + 1 : end]
        if end + 8 > size:
            raise DecodeError("deps: entry is cut short")
        if name <= previous or len(name) > limits.source_bytes:
            raise DecodeError("deps: entries must ascend by source, each a valid source id")
        (seq,) = _NUMBER.unpack_from(data, end)
        if not 1 <= seq <= SEQ_MAX:
            raise DecodeError(f"deps: seq {seq} is out of range")
        deps[name.decode()] = seq
        previous, at = name, end + 8
    if len(deps) > limits.deps_entries:
        raise DecodeError(f"deps: {len(deps):,} entries; the limit is {limits.deps_entries:,}")
    if source in deps:
        raise DecodeError("deps: names the delta's own source")
    return MappingProxyType(deps)


def decode(source: str, record: bytes, limits: Limits | None = None) -> Delta:
    """Return the one delta that `record` is. Raises `DecodeError`, and nothing else, for any other bytes."""
    deltas, end = decode_many(source, record, 0, 1, limits if limits is not None else Limits())
    if end != len(record):
        raise DecodeError(f"record: {len(record) - end} bytes after its end")
    return deltas[0]


def decode_many(source: str, data: bytes, at: int, count: int, limits: Limits) -> tuple[list[Delta], int]:
    """Decode `count` records that stand one after the other from offset `at`; return them and the offset behind.

    Time and memory are bounded by the size of `data`. Raises `DecodeError`, naming the field, for anything not
    canonical. The hot loop of replay: 0.7 us a delta.
    """
    deltas: list[Delta] = []
    add, unpack, size = deltas.append, HEADER.unpack_from, len(data)
    payload_max, text_max = limits.payload_bytes, min(limits.kind_bytes, limits.key_bytes)
    try:
        for _ in range(count):
            version, flags, body_size, kind_size, key_size, deps_size, seq, timestamp = unpack(data, at)
            kind_at = at + _HEADER_BYTES + deps_size
            key_at = kind_at + kind_size
            body_at = key_at + key_size
            end = body_at + body_size
            if version != VERSION or flags or end > size or body_size > payload_max or not 0 < seq <= SEQ_MAX:
                _check_header(version, flags, body_size, end - size, seq, limits)
            if kind_size > text_max or key_size > text_max:
                _check_texts(kind_size, key_size, limits)
            deps = decode_deps(data[at + _HEADER_BYTES : kind_at], source, limits) if deps_size else NO_DEPS
            kind, key = data[kind_at:key_at].decode(), data[key_at:body_at].decode()
            add(seal(DeltaFields(source, seq, timestamp, deps, kind, key, data[at:end], body_at - at)))
            at = end
    except struct.error as error:
        raise DecodeError(f"record: {size - at} bytes left, its header has {_HEADER_BYTES}") from error
    except UnicodeDecodeError as error:
        raise DecodeError(f"record: kind, key or a source in deps is not UTF-8: {error.reason}") from error
    return deltas, at


def _check_header(version: int, flags: int, body_size: int, missing: int, seq: int, limits: Limits) -> None:
    if version != VERSION:
        raise DecodeError(f"record: format version {version}; this program knows {VERSION}")
    if flags not in (0, ERASED):
        raise DecodeError(f"record: unknown flags {flags:#04x}")
    if missing > 0:
        raise DecodeError(f"record: cut short by {missing} bytes")
    if body_size > limits.payload_bytes:
        raise DecodeError(f"payload: {body_size:,} bytes; the limit is {limits.payload_bytes:,}")
    if not 0 < seq <= SEQ_MAX:
        raise DecodeError(f"seq: {seq} is not from 1 to {SEQ_MAX}")
    if flags == ERASED and body_size != HASH_BYTES:
        raise DecodeError(f"payload: an erased one is {HASH_BYTES} bytes, not {body_size}")


def _check_texts(kind_size: int, key_size: int, limits: Limits) -> None:
    if kind_size > limits.kind_bytes:
        raise DecodeError(f"kind: {kind_size:,} bytes; the limit is {limits.kind_bytes:,}")
    if key_size > limits.key_bytes:
        raise DecodeError(f"key: {key_size:,} bytes; the limit is {limits.key_bytes:,}")


def body_of(record: bytes) -> int:
    """Offset of the payload in a valid record."""
    (size,) = _BODY_SIZE.unpack_from(record, 2)
    return len(record) - int(size)


def timestamp_of(record: bytes) -> int:
    """Timestamp in a valid record."""
    (timestamp,) = _NUMBER.unpack_from(record, _TIMESTAMP_AT)
    return int(timestamp)


def erase(delta: Delta, payload_hash: bytes) -> Delta:
    """Return the delta with its payload replaced by `payload_hash`; an erased one is returned as it is."""
    if delta.erased:
        return delta
    record = delta.record
    head = bytes((VERSION, ERASED)) + HASH_BYTES.to_bytes(4, "big") + record[CHAINED_FROM : delta.body]
    fields = DeltaFields(
        delta.source, delta.seq, delta.timestamp, delta.deps, delta.kind, delta.key, head + payload_hash, delta.body
    )
    return seal(fields)
