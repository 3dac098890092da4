"""Delta: one immutable record of the log, and the limits of its parts.

A delta is made in one place (`codec`), from values or from bytes, and carries its own encoding: the same bytes stand
in the ring, in the store and on the wire. The payload stays opaque bytes until somebody asks for its value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

import attrs
import msgpack

from deltalog.errors import DecodeError, LimitExceeded, UsageError
from deltalog.version import Dot

SEQ_MAX: Final = 2**63 - 1
"""Greatest seq. One bit short of its 64, so that seq + 1 never needs a check."""
TIMESTAMP_MAX: Final = 2**64 - 1
"""Greatest timestamp: the hybrid logical clock has 64 bits."""

_SAME_HASH_MAX: Final = 256
"""Keys of one map in a payload that may have the same hash."""

NO_DEPS: Final[Mapping[str, int]] = MappingProxyType({})
"""The deps of a delta whose writer saw nothing new since its previous delta."""


@attrs.frozen
class Limits:
    """What one delta may weigh. Lower them for your application; the format itself ends where `_CAPS` says."""

    payload_bytes: int = 1 << 20
    """Encoded payload. 1 MiB: etcd refuses requests over 1.5 MiB, NATS messages over 1 MiB."""
    key_bytes: int = 1024
    """UTF-8 bytes of the key."""
    kind_bytes: int = 255
    """UTF-8 bytes of the kind."""
    source_bytes: int = 255
    """UTF-8 bytes of a source id."""
    deps_entries: int = 65_536
    """Entries of the deps."""

    def __attrs_post_init__(self) -> None:
        for name, cap in _CAPS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= cap:
                raise UsageError(f"limits.{name} must be an integer from 1 to {cap:,}, not {value!r}")


_CAPS: Final = {
    "payload_bytes": 64 << 20,
    "key_bytes": 0xFFFF,
    "kind_bytes": 0xFFFF,
    "source_bytes": 255,
    "deps_entries": 1 << 20,
}


@attrs.define(eq=False, repr=False)
class DeltaFields:
    """The fields of a `Delta` while they are written: a slotted class is filled three times faster than a frozen one.

    Only `codec` makes one, and seals it at once.
    """

    source: str
    """Who wrote it."""
    seq: int
    """Position in its source: dense, from 1."""
    timestamp: int
    """Hybrid logical clock: 48 bits of Unix milliseconds, then 16 bits of counter."""
    deps: Mapping[str, int]
    """Entries of the writer's version vector that changed since its previous delta."""
    kind: str
    """The application's type tag."""
    key: str
    """The entity it touches, "" if none."""
    record: bytes
    """The canonical encoding (see `codec`)."""
    body: int
    """Offset of the payload in `record`."""


_new_dot: Final = tuple.__new__
"""Makes a named tuple in half the time: every delta that comes in is named."""


class Delta(DeltaFields):
    """One immutable record. Equal when source and encoding are equal; hashable."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> NoReturn:
        raise attrs.exceptions.FrozenInstanceError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Delta):
            return NotImplemented
        return self.source == other.source and self.record == other.record

    def __hash__(self) -> int:
        return hash((self.source, self.seq))

    def __repr__(self) -> str:
        erased = " erased" if self.erased else ""
        return f"<Delta {self.source!r}:{self.seq} {self.kind!r} {self.key!r} {len(self.record)} bytes{erased}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Deltas can be copied and pickled."""
        fields = self.source, self.seq, self.timestamp, dict(self.deps), self.kind, self.key, self.record, self.body
        return _restored, fields

    @property
    def dot(self) -> Dot:
        """Identity of the delta: (source, seq)."""
        return _new_dot(Dot, (self.source, self.seq))

    @property
    def erased(self) -> bool:
        """Whether the payload was erased; its hash stands in its place."""
        return self.record[1] != 0

    @property
    def payload_bytes(self) -> bytes:
        """The payload as it was encoded (msgpack); of an erased delta the 32-byte hash of what was there."""
        return self.record[self.body :]

    @property
    def payload(self) -> Any:
        """The payload's value, decoded at each call; None if it was erased.

        Raises `DecodeError` when the bytes (a peer's, say) are not a msgpack value.
        """
        record = self.record
        return None if record[1] else decode_payload(record[self.body :])


def seal(fields: DeltaFields) -> Delta:
    """Turn filled fields into an immutable delta, in place: 0.05 us, where a frozen attrs class costs 0.35 us more."""
    fields.__class__ = Delta
    return fields  # type: ignore[return-value]  # it is one now


def _restored(source: str, seq: int, timestamp: int, deps: dict[str, int], *rest: Any) -> Delta:
    return seal(DeltaFields(source, seq, timestamp, MappingProxyType(deps) if deps else NO_DEPS, *rest))


def decode_payload(data: bytes | memoryview) -> Any:
    """Return the msgpack value that `data` is, whole. Time and memory are bounded by the size of `data`.

    Raises `DecodeError` for anything else, including nesting deeper than 1,024 levels.
    """
    try:
        try:
            return msgpack.unpackb(data)
        except (ValueError, TypeError):  # no msgpack, or a map with keys that are neither text nor bytes
            return msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=_map)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise DecodeError(f"payload is not a msgpack value: {type(error).__name__}: {error}"[:300]) from error


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make a map with any keys. A key that is a tuple in Python is an array in msgpack, and a tuple again here.

    Who writes a number or an array chooses its hash: without the bound, a megabyte of keys with one hash takes minutes.
    """
    keys = [_hashable(key) for key, _ in pairs]
    if len(keys) > _SAME_HASH_MAX:
        ((_, most),) = Counter(map(hash, keys)).most_common(1)
        if most > _SAME_HASH_MAX:
            raise DecodeError(f"payload: {most:,} keys of one map have the same hash; the limit is {_SAME_HASH_MAX}")
    return {key: value for key, (_, value) in zip(keys, pairs, strict=True)}


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def check_source(source: object, limits: Limits) -> bytes:
    """Return the UTF-8 bytes of a source id, or raise naming what is wrong with it. Any non-empty text is valid."""
    data = text_bytes("source", source, limits.source_bytes)
    if not data:
        raise UsageError("source must not be empty")
    return data


def text_bytes(field: str, value: object, limit: int) -> bytes:
    """Return `value` as UTF-8, or raise naming `field`: `UsageError` if it is no text, `LimitExceeded` if too long."""
    if not isinstance(value, str):
        raise UsageError(f"{field} must be a string, not {type(value).__name__}")
    try:
        data = str.encode(value)  # a subclass may encode as another text
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} must be valid Unicode: {error}") from error
    if len(data) > limit:
        raise LimitExceeded(field, len(data), limit)
    return data
