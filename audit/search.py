"""Walking the indexes of a trail: the numbers that are in every union of terms, found by jumping, and their events.

All unions are walked together, always from the number that is furthest: the narrowest range drives, the others only
confirm. Cost grows with what is found, and with the jumps in between, not with the trail.

Does not know: questions, cursors, who waits for the answer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import attrs

from audit import keys
from audit.event import AuditEvent, Recorded
from audit.keys import Term
from audit.store import BATCH_EVENTS_MAX, AuditStore
from deltalog.rocks_view import View

_FETCH: Final = 64
"""Events fetched first; then twice as many each time."""


@attrs.frozen
class Found:
    """A part of an answer."""

    events: Sequence[Recorded]
    examined: int
    """Events looked at."""
    next: int | None
    """Number to go on from, None at the end."""


def find(
    store: AuditStore,
    unions: Sequence[Sequence[Term]],
    matches: Callable[[AuditEvent], bool],
    first: int,
    last: int,
    *,
    reverse: bool,
    limit: int,
    examine: int,
) -> Found:
    """Events `first` to `last` (both inclusive) that are in every union and match; from `last` down if `reverse`.

    Ends after `limit` of them, or once `examine` were looked at.
    """
    first = max(first, store.head.floor + 1)
    with store.view() as view:
        if unions:
            walk = _descending if reverse else _ascending
            numbers = walk([_Union(store, view, terms) for terms in unions], first, last)
        else:
            numbers = iter(range(last, first - 1, -1) if reverse else range(first, last + 1))
        return _fetch(store, numbers, matches, limit, examine, -1 if reverse else 1)


def _fetch(
    store: AuditStore,
    numbers: Iterator[int],
    matches: Callable[[AuditEvent], bool],
    limit: int,
    examine: int,
    step: int,
) -> Found:
    found: list[Recorded] = []
    examined = 0
    size = min(limit, _FETCH)
    while True:
        part = list(islice(numbers, size))
        examined += len(part)
        for each in store.get_many(part):
            if matches(each.event):
                found.append(each)
                if len(found) == limit:
                    return Found(found, examined, each.number + step)
        if len(part) < size:
            return Found(found, examined, None)
        if examined >= examine:
            return Found(found, examined, part[-1] + step)
        size = min(2 * size, BATCH_EVENTS_MAX)


class TermWalk:
    """The numbers under one term, found by jumping: ever upwards, or ever downwards if `reverse`."""

    __slots__ = ("_at", "_ended", "_family", "_row", "_store", "_term", "_view")

    def __init__(self, store: AuditStore, view: View, family: str, term: bytes) -> None:
        self._store = store
        self._view = view
        self._family = family
        self._term = term
        self._row: list[int] = []
        self._at: int | None = None
        self._ended = False

    def up(self, number: int) -> int | None:
        """The least number that is not below `number`, None if there is none."""
        if self._at is None or self._at < number:
            if not (self._row and self._row[-1] >= number):
                self._read(self._row_above(number))
            self._at = None if self._ended else self._row[bisect_left(self._row, number)]
        return self._at

    def down(self, number: int) -> int | None:
        """The greatest number that is not above `number`, None if there is none."""
        if self._at is None or self._at > number:
            if not (self._row and self._row[0] <= number):
                row = self._row_above(number)
                self._read(row if row and row[0] <= number else self._row_below(number))
            self._at = None if self._ended else self._row[bisect_right(self._row, number) - 1]
        return self._at

    def _read(self, row: list[int]) -> None:
        self._row, self._ended = row, not row

    def _row_above(self, number: int) -> list[int]:
        """The first row whose last number is not below `number`, [] if there is none."""
        if self._ended:
            return []
        begin, end = keys.entry_key(self._term, number), keys.entry_key(self._term, keys.NUMBER_MAX)
        for key, value in self._view.scan(self._family, begin, end):
            return self._store.index_row(self._family, key, value)
        return []

    def _row_below(self, number: int) -> list[int]:
        """The last row whose last number is not above `number`, [] if there is none."""
        if self._ended:
            return []
        most, least = keys.entry_key(self._term, number), keys.entry_key(self._term, 0)
        found = self._view.last(self._family, most, least)
        return [] if found is None else self._store.index_row(self._family, *found)


class _Union:
    """The numbers under any of some terms."""

    __slots__ = ("_walks",)

    def __init__(self, store: AuditStore, view: View, terms: Sequence[Term]) -> None:
        self._walks = [TermWalk(store, view, family, term) for family, term in terms]

    def up(self, number: int) -> int | None:
        return min((found for walk in self._walks if (found := walk.up(number)) is not None), default=None)

    def down(self, number: int) -> int | None:
        return max((found for walk in self._walks if (found := walk.down(number)) is not None), default=None)


def _ascending(unions: Sequence[_Union], first: int, last: int) -> Iterator[int]:
    """Numbers that are in every union, from `first` to `last`."""
    at, agreed, place = first, 0, 0
    while at <= last:
        found = unions[place].up(at)
        if found is None:
            return
        agreed = agreed + 1 if found == at else 1
        at = found
        if agreed == len(unions) and at <= last:
            yield at
            at, agreed = at + 1, 0
        place = (place + 1) % len(unions)


def _descending(unions: Sequence[_Union], first: int, last: int) -> Iterator[int]:
    """Numbers that are in every union, from `last` down to `first`."""
    at, agreed, place = last, 0, 0
    while at >= first:
        found = unions[place].down(at)
        if found is None:
            return
        agreed = agreed + 1 if found == at else 1
        at = found
        if agreed == len(unions) and at >= first:
            yield at
            at, agreed = at - 1, 0
        place = (place + 1) % len(unions)
