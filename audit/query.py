"""A question to the trail, how to find its answer, and where a page ended.

A plan names the indexes to intersect: one union of terms for each filter that has an index. The store walks all of
them together, always from the one that is furthest, so the narrowest range drives and the others only confirm. What an
index cannot say (a minimum token, a prefix that ends within a name, two texts of one term) is asked of the event.

    cursor, in URL-safe base64:   version (1) | flags (1) | position (8) | until (8) | MAC (16)

position: number of the last event given out. until: the trail's last event when the question was asked first; later
events are not in its pages, so pages neither overlap nor shift while events arrive. The MAC is keyed by a secret of the
store and covers the question, so a cursor answers the question it came from and no other.

Does not know: RocksDB, how long an answer takes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

import attrs
import msgpack

from audit import keys
from audit.event import TIMESTAMP_MAX, TOKEN_MAX, Action, AuditEvent
from audit.keys import Term
from deltalog.errors import UsageError

LIMIT_MAX: Final = 1_000
"""Events on a page."""
TEXT_MAX: Final = 8192
"""Characters of a filter."""

_CURSOR: Final = struct.Struct(">BBQQ")
_CURSOR_VERSION: Final = 1
_MAC_BYTES: Final = 16


class CursorInvalid(UsageError):
    """Raised when a cursor was not given out by this trail, or for another question. Ask again without it."""


def _actions(actions: Iterable[Action]) -> tuple[Action, ...]:
    return tuple(actions)


@attrs.frozen(kw_only=True)
class Query:
    """Which events, in which order. Every filter that is given must hold. Raises UsageError naming the field."""

    holder: str | None = None
    """Holder id."""
    actions: tuple[Action, ...] = attrs.field(default=(), converter=_actions)
    """Any of these; none given: all."""
    lock_id: str | None = None
    target: str | None = None
    """Exactly this target, as text."""
    target_prefix: str | None = None
    """Targets whose text starts with this: `src/` or `src/app.py` or `src/app.py:`."""
    after: int | None = None
    """Timestamp, exclusive."""
    until: int | None = None
    """Timestamp, inclusive."""
    min_token: int | None = None
    """Events with at least this fencing token."""
    newest_first: bool = False
    limit: int = 100
    """Events on a page, at most `LIMIT_MAX`."""
    cursor: str | None = None
    """From the page before."""

    def __attrs_post_init__(self) -> None:
        for name in ("holder", "lock_id", "target", "target_prefix", "cursor"):
            _check_text(name, getattr(self, name))
        for name in ("after", "until"):
            _check_int(name, getattr(self, name), 0, TIMESTAMP_MAX)
        _check_int("min_token", self.min_token, 0, TOKEN_MAX)
        _check_int("limit", self.limit, 1, LIMIT_MAX, optional=False)
        if not all(type(action) is Action for action in self.actions):
            raise UsageError(f"actions takes Actions, not {self.actions!r}"[:300])
        if type(self.newest_first) is not bool:
            raise UsageError(f"newest_first takes True or False, not {self.newest_first!r}")

    def matches(self, event: AuditEvent) -> bool:
        """Whether every filter holds for an event."""
        return (
            (self.holder is None or event.holder_id == self.holder)
            and (not self.actions or event.action in self.actions)
            and (self.lock_id is None or event.lock_id == self.lock_id)
            and (self.target is None or event.target == self.target)
            and (self.target_prefix is None or event.target.startswith(self.target_prefix))
            and (self.after is None or event.timestamp > self.after)
            and (self.until is None or event.timestamp <= self.until)
            and (self.min_token is None or event.token >= self.min_token)
        )


def plan(query: Query) -> list[list[Term]]:
    """Return the unions of terms whose intersection holds every answer; none: all events may be answers.

    Each union is of another family.
    """
    unions: list[list[Term]] = []
    if query.lock_id:
        unions.append([keys.lock_term(query.lock_id)])
    if query.target:
        unions.append([keys.target_term(query.target)])
    elif query.target_prefix and (narrowed := _prefix_term(query.target_prefix)) is not None:
        unions.append([narrowed])
    if query.holder:
        unions.append([keys.holder_term(query.holder)])
    if query.actions:
        unions.append([keys.action_term(action) for action in dict.fromkeys(query.actions)])
    return unions


def _prefix_term(prefix: str) -> Term | None:
    """A term that everything with this prefix has, None if there is no such."""
    path = keys.path_of(prefix)
    if path != prefix:
        return keys.path_term(path)
    directory = prefix[: prefix.rfind("/") + 1]
    return keys.inside_term(directory) if directory else None


# -------------------------------------------------------------------------------------------------------------- cursor


@attrs.frozen
class Position:
    """Where a page ended."""

    number: int
    """Of the last event given out."""
    until: int
    """Number of the last event that belongs to the answer."""


def encode_cursor(query: Query, position: Position, secret: bytes) -> str:
    """Return the cursor for the page behind `position`."""
    body = _CURSOR.pack(_CURSOR_VERSION, 0, position.number, position.until)
    return _text_of(body + _mac(query, body, secret))


def _text_of(data: bytes) -> str:
    """The one text that stands for a cursor's bytes: base64 decodes others to the same."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode_cursor(query: Query, secret: bytes) -> Position | None:
    """Return where the query's cursor points, None if it has none. Raises CursorInvalid."""
    if query.cursor is None:
        return None
    try:
        data = base64.b64decode(query.cursor + "=" * (-len(query.cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CursorInvalid("cursor is not one that this trail gave out") from error
    body, mac = data[: _CURSOR.size], data[_CURSOR.size :]
    fits = len(data) == _CURSOR.size + _MAC_BYTES and _text_of(data) == query.cursor
    if not fits or not hmac.compare_digest(mac, _mac(query, body, secret)):
        raise CursorInvalid("cursor was not given out by this trail for this question: ask again without it")
    version, _, number, until = _CURSOR.unpack(body)
    if version != _CURSOR_VERSION:
        raise CursorInvalid(f"cursor has version {version}; this program knows {_CURSOR_VERSION}")
    return Position(number, until)


def _mac(query: Query, body: bytes, secret: bytes) -> bytes:
    """MAC over the question (all but cursor and limit) and the position."""
    fields: list[Any] = [query.holder, sorted(set(query.actions)), query.lock_id, query.target, query.target_prefix]
    fields += [query.after, query.until, query.min_token, query.newest_first]
    question: bytes = msgpack.packb(fields)
    return blake2b(body + question, key=secret, digest_size=_MAC_BYTES, person=b"audit cursor").digest()


def _check_text(field: str, value: object) -> None:
    if value is None:
        return
    if type(value) is not str or len(value) > TEXT_MAX:
        raise UsageError(f"{field} takes text of at most {TEXT_MAX:,} characters, not {value!r}"[:300])
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} must be valid Unicode: {error}") from error


def _check_int(field: str, value: object, least: int, most: int, *, optional: bool = True) -> None:
    if not (optional and value is None) and (type(value) is not int or not least <= value <= most):
        raise UsageError(f"{field} is {value!r}; it takes an integer from {least} to {most}"[:300])
