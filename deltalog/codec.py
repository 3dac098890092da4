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
"""Offset of the first byte the chain hashes as it stands; what is before it enters by the payload's hash."""

_NUMBER: Final = struct.Struct(">Q")
BODY_SIZE: Final = struct.Struct(">I")
BODY_SIZE_AT: Final = 2
"""Where the size of the payload stands in a record."""
_TEXT_SIZES: Final = struct.Struct(">HHI")
_SIZES_FROM: Final = struct.Struct(">IHHI").unpack_from
_FRONT: Final = struct.Struct(">2sI8sQQ").pack
_FRONT_FROM: Final = struct.Struct(">2sI8sQQ").unpack_from
"""The header in five parts: version and flags, payload size, sizes of kind, key and deps, seq, timestamp."""
_PLAIN: Final = bytes((VERSION, 0))
_PLAIN_ERASED: Final = bytes((VERSION, ERASED))
_PLAINS: Final = (_PLAIN, _PLAIN_ERASED)
_TEXTS_MAX: Final = 4096
"""Pairs of kind and key that an encoder remembers the bytes of."""
_TIMESTAMP_AT: Final = 22
_HEADER_BYTES: Final = HEADER.size
_blank: Final = object.__new__
_join: Final = b"".join


class Encoder:
    """Encodes values into deltas under limits. Keeps a msgpack packer: use one encoder from one thread.

    The packer takes exact types only, so it never runs a line of the caller's code: one that is entered again while it
    packs, or whose dict has more items than it says, returns wrong bytes. A payload with instances of subclasses is
    copied into exact types first; a payload that this copying asks to encode is refused.
    """

    __slots__ = ("_pack", "_payload_bytes", "_texts", "limits")

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits if limits is not None else Limits()
        self._payload_bytes = self.limits.payload_bytes
        self._pack = _new_pack()
        self._texts: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def encode(
        self,
        source: str,
        seq: int,
        timestamp: Callable[[], int],
        deps: Mapping[str, int],
        kind: str,
        key: str,
        payload: Any,
    ) -> Delta:
        """Return the delta; `source`, `seq`, `deps` are trusted (the log's own), the rest is checked.

        `timestamp` is called last, when nothing can be refused any more. Raises `UsageError` naming the field.
        """
        try:
            body = self._pack(payload)
            sizes, text = self._texts[kind, key]
        except Exception:  # noqa: BLE001  # seen for the first time, or refused: found out there
            body, (sizes, text) = self._encode_slowly(kind, key, payload)
        size = len(body)
        if size > self._payload_bytes:
            self._pack = _new_pack()  # the old one keeps the room it took
            raise LimitExceeded("payload", size, self._payload_bytes)
        if deps:
            deps_bytes = encode_deps(deps)
            sizes = sizes[:4] + BODY_SIZE.pack(len(deps_bytes))
            text = deps_bytes + text
        now = timestamp()
        record = _join((_FRONT(_PLAIN, size, sizes, seq, now), text, body))
        delta = _blank(DeltaFields)  # filled in place: half the cost of a call with eight arguments
        delta.source = source
        delta.seq = seq
        delta.timestamp = now
        delta.deps = deps
        delta.kind = kind
        delta.key = key
        delta.record = record
        delta.body = len(record) - size
        delta.__class__ = Delta
        return delta  # type: ignore[return-value]

    def _encode_slowly(self, kind: str, key: str, payload: Any) -> tuple[bytes, tuple[bytes, bytes]]:
        """Return the payload's bytes, and sizes and bytes of kind and key; or raise naming the field at fault."""
        try:
            texts = self._texts.get((kind, key))
            if texts is None:
                texts = self._check_texts(kind, key)
            try:
                return self._pack(payload), texts
            except _Subclassed:
                return self._pack_copy(payload), texts
        except Exception as error:
            raise self._refusal(kind, key, error) from error

    def _check_texts(self, kind: object, key: object) -> tuple[bytes, bytes]:
        """Check kind and key; return their sizes as they stand in the header, and their bytes. Kept: they recur."""
        kind_bytes = text_bytes("kind", kind, self.limits.kind_bytes)
        key_bytes = text_bytes("key", key, self.limits.key_bytes)
        texts = _TEXT_SIZES.pack(len(kind_bytes), len(key_bytes), 0), kind_bytes + key_bytes
        if type(kind) is str and type(key) is str:  # what else equals a text may encode as another one
            if len(self._texts) >= _TEXTS_MAX:
                self._texts.clear()
            self._texts[kind, key] = texts
        return texts

    def _refusal(self, kind: object, key: object, error: Exception) -> UsageError:
        """Say which of the fields is at fault; `error` is what looking them up or packing raised."""
        if isinstance(error, UsageError):
            return error
        try:
            self._check_texts(kind, key)
        except UsageError as refusal:
            return refusal
        self._pack = _new_pack()
        return UsageError(f"payload cannot be encoded as msgpack: {error}"[:300])

    def _pack_copy(self, payload: Any) -> bytes:
        pack, self._pack = self._pack, _refuse_nested
        try:
            return pack(_exact(payload))
        finally:
            self._pack = pack


class _Subclassed(TypeError):
    """Something in the payload is not of an exact type that msgpack knows."""


def _new_pack() -> Callable[[Any], bytes]:
    pack: Callable[[Any], bytes] = msgpack.Packer(strict_types=True, default=_listed).pack
    return pack


def _listed(value: object) -> list[object]:
    """What the packer makes of a type it does not know: tuples are arrays."""
    if type(value) is tuple:
        return list(value)
    raise _Subclassed("an integer does not fit into 64 bits" if type(value) is int else type(value).__name__)


def _refuse_nested(_payload: object) -> bytes:
    raise UsageError("payload cannot be encoded while another one is, by which it is asked for")


def _exact(value: Any) -> Any:
    """Copy a payload into exact types, asking a dict for its items and a list or tuple for its iterator."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, dict):
        return {_exact(key): _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_exact(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    for base, copied in _BASES.items():
        if isinstance(value, base):
            return copied(value)
    raise TypeError(f"can not serialize {kind.__name__!r} object")


_ATOMS: Final = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp}
)
_BASES: Final[Mapping[type, Callable[[Any], object]]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    bytearray: lambda value: bytes(memoryview(value)),
}


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
    """Make a delta from values that came from outside (an import, a test). Checks all; `UsageError` names the field."""
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
        try:
            deps[name.decode()] = seq
        except UnicodeDecodeError as error:
            raise DecodeError(f"deps: a source is not UTF-8: {error.reason}") from error
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
    """Decode `count` consecutive records that stand from offset `at`; return them and the offset behind.

    Time and memory are bounded by the size of `data`. Raises `DecodeError`, naming the field, for anything not
    canonical, for a seq that is not one more than the one before, and for a timestamp that does not ascend.

    The hot loop of replay. Neighbours mostly share kind and key, so what was found for the last texts is kept.
    """
    deltas: list[Delta] = []
    add, front, blank, size = deltas.append, _FRONT_FROM, _blank, len(data)
    payload_max, timestamp, expected = limits.payload_bytes, -1, -1
    sizes = text = b""
    body, texts = 0, ("", "", NO_DEPS)
    try:
        for _ in range(count):
            plain, body_size, own_sizes, seq, own_timestamp = front(data, at)
            if plain not in _PLAINS:
                _check_plain(plain)
            if own_sizes != sizes or data[at + _HEADER_BYTES : at + body] != text:
                sizes = own_sizes
                body = _HEADER_BYTES + sum(_TEXT_SIZES.unpack(sizes))
                text = data[at + _HEADER_BYTES : at + body]
                texts = _decode_texts(source, sizes, text, limits)
            end = at + body + body_size
            if end > size or body_size > payload_max or plain != _PLAIN:
                _check_body(plain, body_size, end - size, limits)
            if seq != expected or own_timestamp <= timestamp:
                _check_order(seq, expected, own_timestamp, timestamp)
            timestamp, expected = own_timestamp, seq + 1
            delta = blank(DeltaFields)
            delta.source = source
            delta.seq = seq
            delta.timestamp = timestamp
            delta.kind, delta.key, delta.deps = texts
            delta.record = data[at:end]
            delta.body = body
            delta.__class__ = Delta
            add(delta)  # type: ignore[arg-type]  # it is one now
            at = end
        if expected > SEQ_MAX + 1:
            _check_order(expected - 1, -1, timestamp, -1)
    except struct.error as error:
        raise DecodeError(f"record: {max(0, size - at)} bytes left, its header has {_HEADER_BYTES}") from error
    return deltas, at


def skip_many(data: bytes, at: int, count: int) -> int:
    """Return the offset behind `count` records that stand from offset `at`. Looks at their sizes and nothing else."""
    sizes = _SIZES_FROM
    try:
        for _ in range(count):
            body, kind, key, deps = sizes(data, at + BODY_SIZE_AT)
            at += _HEADER_BYTES + body + kind + key + deps
    except struct.error as error:
        raise DecodeError(f"record: {max(0, len(data) - at)} bytes left, its header has {_HEADER_BYTES}") from error
    return at


def count_until(data: bytes, at: int, count: int, timestamp: int) -> int:
    """Return how many of `count` records that stand from offset `at` come before the first with a later timestamp."""
    front, sizes = _FRONT_FROM, _TEXT_SIZES.unpack
    try:
        for index in range(count):
            _, body, texts, _, own = front(data, at)
            if own > timestamp:
                return index
            at += _HEADER_BYTES + body + sum(sizes(texts))
    except struct.error as error:
        raise DecodeError(f"record: {max(0, len(data) - at)} bytes left, its header has {_HEADER_BYTES}") from error
    return count


def _decode_texts(source: str, sizes: bytes, text: bytes, limits: Limits) -> tuple[str, str, Mapping[str, int]]:
    """Return kind, key and deps from what stands between the fixed fields and the payload."""
    kind_size, key_size, deps_size = _TEXT_SIZES.unpack(sizes)
    if len(text) < deps_size + kind_size + key_size:
        raise DecodeError(f"record: cut short by {deps_size + kind_size + key_size - len(text)} bytes or more")
    if kind_size > limits.kind_bytes:
        raise DecodeError(f"kind: {kind_size:,} bytes; the limit is {limits.kind_bytes:,}")
    if key_size > limits.key_bytes:
        raise DecodeError(f"key: {key_size:,} bytes; the limit is {limits.key_bytes:,}")
    deps = decode_deps(text[:deps_size], source, limits) if deps_size else NO_DEPS
    try:
        return text[deps_size : deps_size + kind_size].decode(), text[deps_size + kind_size :].decode(), deps
    except UnicodeDecodeError as error:
        raise DecodeError(f"record: kind or key is not UTF-8: {error.reason}") from error


def _check_plain(plain: bytes) -> None:
    version, flags = plain
    if version != VERSION:
        raise DecodeError(f"record: format version {version}; this program knows {VERSION}")
    raise DecodeError(f"record: unknown flags {flags:#04x}")


def _check_body(plain: bytes, body_size: int, missing: int, limits: Limits) -> None:
    if missing > 0:
        raise DecodeError(f"record: cut short by {missing} bytes")
    if body_size > limits.payload_bytes:
        raise DecodeError(f"payload: {body_size:,} bytes; the limit is {limits.payload_bytes:,}")
    if plain == _PLAIN_ERASED and body_size != HASH_BYTES:
        raise DecodeError(f"payload: an erased one is {HASH_BYTES} bytes, not {body_size}")


def _check_order(seq: int, expected: int, timestamp: int, previous: int) -> None:
    if not 0 < seq <= SEQ_MAX:
        raise DecodeError(f"seq: {seq} is not from 1 to {SEQ_MAX}")
    if expected > 0 and seq != expected:
        raise DecodeError(f"seq: {seq} stands where {expected} belongs")
    if timestamp <= previous:
        raise DecodeError(f"timestamp: that of seq {seq} does not come after its predecessor's")


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
