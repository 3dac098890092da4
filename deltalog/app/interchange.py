"""The interchange format: one delta, one line of JSON.

    {"source": "alice", "seq": 3, "deps": {"bob": 2}, "time": "2026-01-31T12:00:00.123Z",
     "kind": "edit", "key": "notes.txt", "payload": {"insert": "x"}}

    field                  what
    source, seq            the dot; seq is dense from 1 for each source
    deps                   source -> seq; may be left out if empty
    time                   ISO 8601 with an offset (`clock.to_iso`): of eight digits of a fraction the last five are the
                           clock's counter. Or the timestamp's 64 bits as a number, since no text goes past 9999
    kind, key              may be left out if empty
    and one of
      payload              any JSON value, where JSON carries the payload exactly
      payload_b64          a payload of bytes, in base64
      payload_msgpack_b64  the encoded payload, in base64: for all that JSON cannot carry exactly (bytes inside, keys
                           that are no text, NaN, extension types, integers beyond 2**53, other encodings of a value)
      erased: true, payload_hash_b64
                           the payload was erased; its hash stands in its place

`to_line` loses nothing: `parse_line(to_line(delta)).delta()` has the same bytes. `parse_line` refuses fields it does
not know (invariant I15) and names field and limit of what is wrong. Pure: no file, no log, no clock.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NoReturn

import attrs
import msgpack

from deltalog.clock import from_iso, to_iso
from deltalog.codec import ERASED, HASH_BYTES, HEADER, VERSION, decode, encode_deps
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits, check_source, text_bytes
from deltalog.errors import DecodeError, LimitExceeded, UsageError

_INTEGER_MAX: Final = 2**53 - 1
"""Greatest integer that every JSON reader takes exactly (RFC 7493); greater ones go as msgpack."""
_DEP_BYTES: Final = 64
_TEXT_BYTES: Final = 64 << 10

_FIELDS: Final = frozenset({"source", "seq", "deps", "time", "kind", "key", "erased"})
_PAYLOADS: Final = frozenset({"payload", "payload_b64", "payload_msgpack_b64", "payload_hash_b64"})


def line_bytes_max(limits: Limits) -> int:
    """How long a line may be: a payload in base64, deps of about 64 bytes each, and some room for the rest."""
    return 4 * -(-limits.payload_bytes // 3) + _DEP_BYTES * limits.deps_entries + _TEXT_BYTES


# --------------------------------------------------------------------------------------------------------- to a line


def to_line(delta: Delta) -> bytes:
    """Return the line of a delta: ASCII, without the newline at its end. Equal deltas have equal lines."""
    deps = json_text(dict(sorted(delta.deps.items()))) if delta.deps else "{}"
    return (
        f'{{"source":{_quoted(delta.source)},"seq":{delta.seq},"deps":{deps},"time":{_time(delta.timestamp)},'
        f'"kind":{_quoted(delta.kind)},"key":{_quoted(delta.key)},{_payload(delta)}}}'
    ).encode("ascii")


_quoted: Callable[[str], str] = lru_cache(maxsize=4096)(encode_basestring_ascii)
json_text: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""A JSON value as text, without blanks, in ASCII. Raises TypeError or ValueError for what JSON has no form of."""


def _time(timestamp: int) -> str:
    try:
        return f'"{to_iso(timestamp)}"'
    except UsageError:
        return str(timestamp)


def _payload(delta: Delta) -> str:
    body = delta.payload_bytes
    if delta.erased:
        return f'"erased":true,"payload_hash_b64":"{_base64(body)}"'
    try:
        value = delta.payload
        if type(value) is bytes and _pack(value) == body:
            return f'"payload_b64":"{_base64(value)}"'
        text = json_text(value)
        if _is_exact(text, body):
            return f'"payload":{text}'
    except (DecodeError, UsageError, TypeError, ValueError, OverflowError, RecursionError):
        pass  # no JSON value; what it is exactly stands below
    return f'"payload_msgpack_b64":"{_base64(body)}"'


def _is_exact(text: str, body: bytes) -> bool:
    """Whether reading `text` gives a value with this very encoding, in any program, and the line is not too long."""
    if len(text) > 4 * len(body) + _TEXT_BYTES // 2:
        return False  # escapes of control characters, mostly
    value = _decode(text)
    return _pack(value) == body and (_LONG_NUMBER.search(text) is None or _is_small(value))


_LONG_NUMBER: Final = re.compile(r"\d{16}")


def _is_small(value: Any) -> bool:
    """Whether all integers in a JSON value are exact in every JSON reader."""
    if isinstance(value, dict):
        return all(map(_is_small, value.values()))
    if isinstance(value, list):
        return all(map(_is_small, value))
    return not isinstance(value, int) or abs(value) <= _INTEGER_MAX


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


# ------------------------------------------------------------------------------------------------------- from a line


@attrs.define
class Line:
    """The fields of one line, checked; its time may still be too early for its causes."""

    source: str
    seq: int
    time: int
    """Timestamp it asks for."""
    deps: Mapping[str, int]
    kind: str
    key: str
    body: bytes
    """Encoded payload; of an erased delta the hash."""
    erased: bool

    def delta(self, limits: Limits, timestamp: int | None = None) -> Delta:
        """Make the delta, with another timestamp if one is given. Raises `DecodeError` naming field and limit."""
        at = self.time if timestamp is None else timestamp
        kind, key = self.kind.encode(), self.key.encode()
        deps = encode_deps(self.deps) if self.deps else b""
        flags = ERASED if self.erased else 0
        header = HEADER.pack(VERSION, flags, len(self.body), len(kind), len(key), len(deps), self.seq, at)
        return decode(self.source, b"".join((header, deps, kind, key, self.body)), limits)


def parse_line(data: bytes, limits: Limits) -> Line:
    """Return what a line says. Raises `UsageError` (or `LimitExceeded`, `DecodeError`) naming the field."""
    fields = _json(data)
    payloads = fields.keys() & _PAYLOADS
    source, kind, key = fields.get("source"), fields.get("kind", ""), fields.get("key", "")
    _refuse_unknown(fields, payloads)
    check_source(source, limits)
    text_bytes("kind", kind, limits.kind_bytes)
    text_bytes("key", key, limits.key_bytes)
    body, erased = _body(fields, payloads, limits)
    return Line(
        source=str(source),
        seq=_number("seq", fields.get("seq"), 1, SEQ_MAX),
        time=_timestamp(fields.get("time")),
        deps=_deps(str(source), fields.get("deps", {}), limits),
        kind=kind,
        key=key,
        body=body,
        erased=erased,
    )


def json_value(data: bytes) -> Any:
    """Read strict JSON: UTF-8, no NaN, no name twice in one object. Raises `UsageError` saying what is wrong."""
    try:
        return _decode(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8 at byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON: {error}"[:200]) from error


def _json(data: bytes) -> dict[str, Any]:
    fields = json_value(data)
    if type(fields) is not dict:
        raise UsageError("it is not a JSON object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {max(names, key=names.count)!r} stands twice"[:120])
    return found


_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates).decode


def _refuse_unknown(fields: Mapping[str, Any], payloads: set[str]) -> None:
    unknown = fields.keys() - _FIELDS - payloads
    if unknown:
        raise UsageError(f"field {min(unknown)!r} is not one of the interchange format"[:160])
    for name in ("source", "seq", "time"):
        if name not in fields:
            raise UsageError(f"{name} is missing")
    if len(payloads) != 1:
        what = " and ".join(sorted(payloads)) or "none"
        raise UsageError(f"there must be one of {', '.join(sorted(_PAYLOADS))}, not {what}")


def _body(fields: Mapping[str, Any], payloads: set[str], limits: Limits) -> tuple[bytes, bool]:
    """The encoded payload, or the hash of an erased one; and whether it is that."""
    (name,) = payloads
    value = fields[name]
    erased = fields.get("erased", False)
    if type(erased) is not bool or erased != (name == "payload_hash_b64"):
        raise UsageError("erased must be true beside payload_hash_b64, and false or absent otherwise")
    if name == "payload":
        body = _packed(value)
    else:
        body = _bytes(name, value)
        if name == "payload_b64":
            body = _packed(body)
    if erased and len(body) != HASH_BYTES:
        raise UsageError(f"payload_hash_b64 must be {HASH_BYTES} bytes, not {len(body)}")
    if len(body) > limits.payload_bytes:
        raise LimitExceeded("payload", len(body), limits.payload_bytes)
    return body, erased


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _packed(value: Any) -> bytes:
    try:
        return _pack(value)
    except Exception as error:  # msgpack raises many kinds for what it cannot take
        raise UsageError(f"payload cannot be encoded as msgpack: {error}"[:200]) from error


def _bytes(name: str, value: Any) -> bytes:
    if type(value) is not str:
        raise UsageError(f"{name} must be base64 text, not {type(value).__name__}")
    try:
        return a2b_base64(value, strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise UsageError(f"{name} is not base64: {error}") from error


def _deps(source: str, deps: Any, limits: Limits) -> Mapping[str, int]:
    if type(deps) is not dict:
        raise UsageError(f"deps must be an object of source to seq, not {type(deps).__name__}")
    if not deps:
        return NO_DEPS
    if len(deps) > limits.deps_entries:
        raise LimitExceeded("deps", len(deps), limits.deps_entries, "entries")
    for name, seq in deps.items():
        try:
            check_source(name, limits)
        except UsageError as error:
            raise UsageError(f"deps: {error}") from error
        _number(f"deps[{name!r}]", seq, 1, SEQ_MAX)
    if source in deps:
        raise UsageError("deps must not name the delta's own source: its predecessor is implied")
    return deps


_from_iso: Final = lru_cache(maxsize=1024)(from_iso)


def _timestamp(value: Any) -> int:
    if type(value) is str:
        return _from_iso(value)
    if type(value) is int:
        return _number("time", value, 0, TIMESTAMP_MAX)
    raise UsageError(f"time must be ISO 8601 text or a timestamp's number, not {type(value).__name__}")


def _number(field: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{field} must be an integer from {low} to {high}, not {value!r}"[:200])
    return value
