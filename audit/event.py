"""AuditEvent: one immutable record of what happened to a lock (or to the trail itself), and its canonical bytes.

    offset  size  field
    0       1     version of the format: 1
    1       1     action, a number of `_CODES`
    2       8     timestamp                        (big endian, like every number here)
    10      8     fencing token, 0 = none
    18      2     size of the target
    20      2     size of the holder's id
    22      2     size of the holder's name
    24      2     size of the lock's id
    26      1     entries of metadata
    27      ...   target | holder id | holder name | lock id | metadata

    metadata: for each entry, in ascending order of the key's UTF-8 bytes:  key size (2) | value size (2) | key | value

One event has one encoding and `decode` refuses every other, so a hash over the bytes is a hash over the values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import attrs

from deltalog.errors import DecodeError, LimitExceeded, UsageError

VERSION: Final = 1
TIMESTAMP_MAX: Final = 2**64 - 1
TOKEN_MAX: Final = 2**63 - 1
TARGET_BYTES: Final = 8192
"""UTF-8 bytes of a target: a path of 4,096 bytes, escaped, with lines or a symbol."""
ID_BYTES: Final = 255
"""UTF-8 bytes of a holder's id, a holder's name and a lock's id."""
METADATA_ENTRIES: Final = 32
METADATA_KEY_BYTES: Final = 256
METADATA_VALUE_BYTES: Final = 1024

NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})

_HEADER: Final = struct.Struct(">BBQQHHHHB")
_SIZES: Final = struct.Struct(">HH")
_TIMESTAMP: Final = struct.Struct(">Q")
_TIMESTAMP_AT: Final = 2


class Action(StrEnum):
    """What happened."""

    ACQUIRED = "acquired"
    RELEASED = "released"
    RENEWED = "renewed"
    EXPIRED = "expired"
    CONFLICT = "conflict"
    """An acquire met a lease of somebody else."""
    DENIED = "denied"
    """An acquire, renew or release was refused."""
    WAITING = "waiting"
    """An acquire entered the queue."""
    REVOKED = "revoked"
    """A lease was taken away by somebody else than its holder."""
    GAP = "gap"
    """Events were dropped here. Metadata: `count`, `first` and `last` (timestamps), one count per action."""
    STARTED = "started"
    """The trail was opened. Metadata: `unclean` ("true" when the last run did not close it) and what may be missing."""
    STOPPED = "stopped"
    """The trail was closed and everything submitted was stored or counted."""


TRAIL_ACTIONS: Final = frozenset({Action.GAP, Action.STARTED, Action.STOPPED})
"""Actions that only the trail itself records."""

# Numbers are part of the format: append, never change.
_CODES: Final[dict[Action, int]] = {
    Action.ACQUIRED: 1,
    Action.RELEASED: 2,
    Action.RENEWED: 3,
    Action.EXPIRED: 4,
    Action.CONFLICT: 5,
    Action.DENIED: 6,
    Action.WAITING: 7,
    Action.REVOKED: 8,
    Action.GAP: 9,
    Action.STARTED: 10,
    Action.STOPPED: 11,
}
_ACTIONS: Final = {code: action for action, code in _CODES.items()}


def _frozen_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if metadata is NO_METADATA:
        return NO_METADATA
    if not isinstance(metadata, Mapping):
        raise UsageError(f"metadata must be a mapping of strings to strings, not {type(metadata).__name__}")
    if len(metadata) > METADATA_ENTRIES:
        raise LimitExceeded("metadata", len(metadata), METADATA_ENTRIES, "entries")
    copy = dict(metadata)
    for key, value in copy.items():
        _check_text("metadata key", key, METADATA_KEY_BYTES)
        _check_text("metadata value", value, METADATA_VALUE_BYTES)
    return MappingProxyType(copy)


@attrs.frozen
class AuditEvent:
    """One thing that happened. Checked when it is made, so that whatever exists can be stored.

    Raises UsageError (LimitExceeded for sizes) naming the field.
    """

    timestamp: int
    """Hybrid logical clock (`deltalog.clock`)."""
    action: Action
    target: str = ""
    """Canonical text of a `Target`, "" for the trail's own events."""
    holder_id: str = ""
    holder_name: str = ""
    lock_id: str = ""
    token: int = 0
    """Fencing token of the lease, 0 if there is none."""
    metadata: Mapping[str, str] = attrs.field(default=NO_METADATA, converter=_frozen_metadata, hash=False)

    def __attrs_post_init__(self) -> None:
        if type(self.timestamp) is not int or not 0 <= self.timestamp <= TIMESTAMP_MAX:
            raise UsageError(f"timestamp is {self.timestamp!r}; it takes an int from 0 to 2**64 - 1")
        if type(self.token) is not int or not 0 <= self.token <= TOKEN_MAX:
            raise UsageError(f"token is {self.token!r}; it takes an int from 0 to 2**63 - 1")
        if type(self.action) is not Action:
            raise UsageError(f"action is {self.action!r}; it takes an Action")
        _check_text("target", self.target, TARGET_BYTES)
        _check_text("holder_id", self.holder_id, ID_BYTES)
        _check_text("holder_name", self.holder_name, ID_BYTES)
        _check_text("lock_id", self.lock_id, ID_BYTES)


@attrs.frozen
class Recorded:
    """An event with its place in the trail."""

    number: int
    """Position, dense from 1: the unique key, so events of one nanosecond on one lock all stay."""
    event: AuditEvent


def _check_text(field: str, text: object, limit: int) -> None:
    if type(text) is not str:
        raise UsageError(f"{field} must be a string, not {type(text).__name__}")
    if text.isascii() and len(text) <= limit:
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} must be valid Unicode: {error}") from error
    if size > limit:
        raise LimitExceeded(field, size, limit)


def encode(event: AuditEvent) -> bytes:
    """Return the canonical bytes of an event."""
    texts = (event.target.encode(), event.holder_id.encode(), event.holder_name.encode(), event.lock_id.encode())
    header = _HEADER.pack(
        VERSION, _CODES[event.action], event.timestamp, event.token, *map(len, texts), len(event.metadata)
    )
    return b"".join((header, *texts, _encode_metadata(tuple(event.metadata.items())) if event.metadata else b""))


def decode(data: bytes) -> AuditEvent:
    """Return the event whose canonical bytes `data` is. Raises DecodeError for anything else."""
    try:
        version, code, timestamp, token, *sizes, entries = _HEADER.unpack_from(data)
    except struct.error as error:
        raise DecodeError(f"audit event: {len(data)} bytes, at least {_HEADER.size} make one") from error
    if version != VERSION:
        raise DecodeError(f"audit event: format version {version}; this program knows {VERSION}")
    action = _ACTIONS.get(code)
    if action is None:
        raise DecodeError(f"audit event: no action has the number {code}")
    texts, at = _decode_texts(data, _HEADER.size, sizes)
    metadata, at = _decode_metadata(data, at, entries)
    if at != len(data):
        raise DecodeError(f"audit event: {len(data)} bytes, its header says {at}")
    try:
        target, holder_id, holder_name, lock_id = texts
        return AuditEvent(timestamp, action, target, holder_id, holder_name, lock_id, token, metadata)
    except UsageError as error:
        raise DecodeError(f"audit event: {error}") from error


def timestamp_of(data: bytes) -> int:
    """Timestamp of an encoded event, without decoding it. Raises DecodeError if there is none."""
    try:
        timestamp: int = _TIMESTAMP.unpack_from(data, _TIMESTAMP_AT)[0]
    except struct.error as error:
        raise DecodeError(f"audit event: {len(data)} bytes, at least {_HEADER.size} make one") from error
    return timestamp


@lru_cache(maxsize=1024)
def _encode_metadata(metadata: tuple[tuple[str, str], ...]) -> bytes:
    """The entries' bytes; kept, because those of neighbours are mostly the same."""
    entries = sorted((key.encode(), value.encode()) for key, value in metadata)
    return b"".join([_SIZES.pack(len(key), len(value)) + key + value for key, value in entries])


def _decode_texts(data: bytes, at: int, sizes: list[Any]) -> tuple[list[str], int]:
    texts = []
    for size in sizes:
        texts.append(_text(data, at, size))
        at += size
    return texts, at


def _decode_metadata(data: bytes, at: int, entries: int) -> tuple[dict[str, str], int]:
    metadata: dict[str, str] = {}
    last = None
    for _ in range(entries):
        try:
            key_size, value_size = _SIZES.unpack_from(data, at)
        except struct.error as error:
            raise DecodeError("audit event: its metadata is cut") from error
        at += _SIZES.size
        key = data[at : at + key_size]
        if last is not None and key <= last:
            raise DecodeError("audit event: keys of its metadata are not in ascending order")
        last = key
        metadata[_text(data, at, key_size)] = _text(data, at + key_size, value_size)
        at += key_size + value_size
    return metadata, at


def _text(data: bytes, at: int, size: int) -> str:
    if at + size > len(data):
        raise DecodeError("audit event: a text is cut")
    try:
        return data[at : at + size].decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"audit event: {error}") from error
