"""Asking the trail: pages, streams, one event, who held what when, what happened in a time, and what comes next.

Lives here: how an answer is cut into reads of a worker thread, each bounded in time and memory; between two of them a
caller can be cancelled. What is not written yet is not in an answer: up to one interval of the recorder.

Does not know: keys, how events get into the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from heapq import nlargest
from types import MappingProxyType
from typing import Final

import attrs
import trio

from audit import keys
from audit.errors import EventsExpired
from audit.event import Action, AuditEvent, Recorded
from audit.keys import NUMBER_MAX, Term
from audit.query import Position, Query, decode_cursor, encode_cursor, plan
from audit.recorder import Recorder
from audit.search import Found, find
from audit.store import AuditStore
from audit.target import Target, overlaps
from deltalog.errors import DeltaLogError, UsageError
from deltalog.writer import Offload

EXAMINED_PER_READ: Final = 2_000
"""Events that one read looks at: decoding them takes about 10 ms."""
EXAMINED_PER_PAGE: Final = 200_000
"""Events that one page looks at before it is given out with less than it could hold."""
TOP: Final = 10
"""Leases and targets that a summary names."""
NAMES_MAX: Final = 10_000
"""Holders and targets that a summary counts one by one; the rest counts under `OTHERS`."""
OTHERS: Final = "(others)"
_PAGE: Final = 500
_ENDS: Final = frozenset({Action.RELEASED, Action.EXPIRED, Action.REVOKED})


@attrs.frozen
class Page:
    """A part of an answer."""

    events: list[Recorded]
    cursor: str | None
    """For the next page, None at the end. A page may be short, or even empty, and not the last."""


@attrs.frozen
class Held:
    """How long one lease was held."""

    acquired: Recorded
    until: int
    """Timestamp of its end, or of the last event looked at if it was held still."""
    ended: bool

    @property
    def duration_ms(self) -> int:
        """Milliseconds it was held."""
        return (self.until >> 16) - (self.acquired.event.timestamp >> 16)


@attrs.frozen
class Summary:
    """What happened in a time."""

    events: int
    first_number: int
    """Of the first event in it, 0 if there is none."""
    last_number: int
    by_action: Mapping[str, int]
    by_holder: Mapping[str, int]
    """The most active first. Beyond `NAMES_MAX` holders: `OTHERS`."""
    by_target: Mapping[str, int]
    dropped: int
    """Events that gap events in it count."""
    longest_held: Sequence[Held]
    """Of the leases given in it."""
    most_contended: Sequence[tuple[str, int]]
    """Targets with the most conflicts, denials and waits, and how many."""


class Reader:
    """Answers questions. Any number of tasks may use one."""

    def __init__(
        self, store: AuditStore, recorder: Recorder | None = None, offload: Offload = trio.to_thread.run_sync
    ) -> None:
        """`recorder`: who writes to the store, for `follow`."""
        self._store = store
        self._recorder = recorder
        self._offload = offload

    async def get(self, number: int) -> Recorded | None:
        """One event, None if there is none with this number (any more)."""
        if type(number) is not int or not 1 <= number <= NUMBER_MAX:
            raise UsageError(f"number is {number!r}; it takes an integer from 1 to {NUMBER_MAX}")
        found: Recorded | None = await self._offload(self._store.get, number)
        return found

    async def query(self, query: Query) -> Page:
        """One page of an answer. Raises CursorInvalid."""
        position = decode_cursor(query, self._store.secret)
        first, last = await self._range(query, position)
        until = position.until if position is not None else last
        found: list[Recorded] = []
        examined, at = 0, last if query.newest_first else first
        while True:
            size = query.limit - len(found)
            part = await self._find(query, at, (first, last), size)
            found += part.events
            examined += part.examined
            if part.next is None or not first <= part.next <= last:
                return Page(found, None)
            at = part.next
            if len(found) >= query.limit or examined >= EXAMINED_PER_PAGE:
                ended = at + 1 if query.newest_first else at - 1
                return Page(found, encode_cursor(query, Position(ended, until), self._store.secret))

    async def stream(self, query: Query) -> AsyncGenerator[Recorded, None]:
        """Every event of an answer as of now, in order; `limit` does not count. Memory is bounded by a page."""
        query = attrs.evolve(query, limit=_PAGE)
        while True:
            page = await self.query(query)
            for each in page.events:
                yield each
            if page.cursor is None:
                return
            query = attrs.evolve(query, cursor=page.cursor)

    async def follow(self, after_number: int) -> AsyncGenerator[Recorded, None]:
        """Every event behind a number, then those that come, each once, for ever. 0: from the oldest there is.

        Nothing is kept for a slow reader: it reads from the store when it goes on. Raises EventsExpired if retention
        removed what comes next, UsageError for a number the trail has not reached, AuditClosed when the trail closes.
        """
        if type(after_number) is not int or not 0 <= after_number <= self._store.head.number:
            raise UsageError(f"after_number is {after_number!r}; it takes 0 to {self._store.head.number}")
        number = after_number
        while True:
            page = await self._offload(self._behind, number)
            for each in page:
                number = each.number
                yield each
            if not page:
                if self._recorder is None:
                    return
                await self._recorder.wait_recorded(number)

    def _behind(self, number: int) -> list[Recorded]:
        """The next events behind a number; behind 0 from the oldest there is, [] if retention took them meanwhile."""
        head = self._store.head
        after = number or head.floor
        found = self._store.get_many(range(after + 1, min(after + _PAGE, head.number) + 1))
        floor = self._store.head.floor
        if number and number < floor:
            raise EventsExpired(number, floor)
        return found if after >= floor else []

    async def held(self, target: Target | str, at: int) -> list[Recorded]:
        """Who held a target, or a part of it, at a time: the events that gave these leases, the oldest first.

        Looks back to the last start of the trail: leases do not outlive one. A lease whose end was dropped (see gap
        events) counts as held.
        """
        target = Target.parse(target) if isinstance(target, str) else target
        last = await self._offload(self._store.number_at, at)
        first = await self._last_start(last)
        union = _overlapping_terms(target)
        ended: set[tuple[str, int]] = set()
        holding: dict[tuple[str, int], Recorded] = {}
        position: int | None = last
        while position is not None and position >= first:
            part: Found = await self._read([union], _is_transition, (first, position), reverse=True, limit=_PAGE)
            for each in part.events:
                lease = each.event.lock_id, each.event.token
                if each.event.action in _ENDS:
                    ended.add(lease)
                elif lease not in ended and _touches(each.event, target):
                    holding[lease] = each
            position = part.next
        return sorted(holding.values(), key=lambda each: each.number)

    async def summary(self, after: int | None = None, until: int | None = None) -> Summary:
        """What happened with after < timestamp <= until. Reads all of it: about 10 us an event."""
        query = Query(after=after, until=until)
        first, last = await self._range(query, None)
        tally = _Tally()
        at = first
        while at <= last:
            part = await self._read([], query.matches, (at, last), reverse=False, limit=EXAMINED_PER_READ)
            for each in part.events:
                tally.add(each)
            if part.next is None:
                break
            at = part.next
        return tally.summary()

    # ------------------------------------------------------------------------------------------------------- one read

    async def _range(self, query: Query, position: Position | None) -> tuple[int, int]:
        """First and last number that may be in the answer, beyond `position`."""
        head = self._store.head
        first, last = head.floor + 1, head.number if position is None else min(position.until, head.number)
        if query.after is not None:
            first = max(first, 1 + await self._offload(self._store.number_at, query.after))
        if query.until is not None:
            last = min(last, await self._offload(self._store.number_at, query.until))
        if position is not None and query.newest_first:
            last = min(last, position.number - 1)
        elif position is not None:
            first = max(first, position.number + 1)
        return first, last

    async def _find(self, query: Query, at: int, between: tuple[int, int], limit: int) -> Found:
        first, last = between
        rest = (first, at) if query.newest_first else (at, last)
        return await self._read(plan(query), query.matches, rest, reverse=query.newest_first, limit=limit)

    async def _read(
        self,
        unions: Sequence[Sequence[Term]],
        matches: Callable[[AuditEvent], bool],
        between: tuple[int, int],
        *,
        reverse: bool,
        limit: int,
    ) -> Found:
        search = partial(find, self._store, reverse=reverse, limit=limit, examine=EXAMINED_PER_READ)
        found: Found = await self._offload(search, unions, matches, *between)
        return found

    async def _last_start(self, number: int) -> int:
        """Number of the last STARTED event up to `number`, the first there is if retention removed it."""
        union = [keys.action_term(Action.STARTED)]
        found = await self._read(
            [union], lambda event: event.action is Action.STARTED, (1, number), reverse=True, limit=1
        )
        return found.events[0].number if found.events else 1


def _overlapping_terms(target: Target) -> list[Term]:
    """What every event on something that overlaps `target` is found under."""
    path = keys.path_of(str(target))
    terms = [keys.path_term(path), *map(keys.path_term, keys.ancestors_of(path))]
    if target.is_directory:
        return [*terms, keys.path_term(path.removesuffix("/")), keys.inside_term(path)]
    return [*terms, keys.path_term(f"{path}/")]


def _is_transition(event: AuditEvent) -> bool:
    return event.action is Action.ACQUIRED or event.action in _ENDS


def _touches(event: AuditEvent, target: Target) -> bool:
    try:
        return overlaps(Target.parse(event.target), target)
    except DeltaLogError:
        return event.target == str(target)  # no target's text: whoever logged it meant something else by it


@attrs.define
class _Tally:
    """Counts what a summary says, in bounded memory."""

    events: int = 0
    first: int = 0
    last: Recorded | None = None
    dropped: int = 0
    by_action: Counter[str] = attrs.field(factory=Counter)
    by_holder: Counter[str] = attrs.field(factory=Counter)
    by_target: Counter[str] = attrs.field(factory=Counter)
    contended: Counter[str] = attrs.field(factory=Counter)
    open: dict[tuple[str, int], Recorded] = attrs.field(factory=dict)
    longest: list[Held] = attrs.field(factory=list)

    def add(self, each: Recorded) -> None:
        event = each.event
        self.events += 1
        self.first = self.first or each.number
        self.last = each
        self.by_action[event.action.value] += 1
        if event.holder_id:
            _count(self.by_holder, event.holder_id)
        if event.target:
            _count(self.by_target, event.target)
        if event.action in (Action.CONFLICT, Action.DENIED, Action.WAITING):
            _count(self.contended, event.target)
        elif event.action is Action.GAP:
            self.dropped += int(event.metadata.get("count", "0"))
        elif event.action is Action.STARTED:
            self.open.clear()
        else:
            self._lease(each)

    def _lease(self, each: Recorded) -> None:
        lease = each.event.lock_id, each.event.token
        if each.event.action is Action.ACQUIRED and len(self.open) < NAMES_MAX:
            self.open[lease] = each
        elif each.event.action in _ENDS and (acquired := self.open.pop(lease, None)) is not None:
            self._held(Held(acquired, each.event.timestamp, ended=True))

    def _held(self, held: Held) -> None:
        self.longest.append(held)
        if len(self.longest) > 100 * TOP:
            self.longest = self._longest()

    def _longest(self) -> list[Held]:
        return nlargest(TOP, self.longest, key=lambda held: held.duration_ms)

    def summary(self) -> Summary:
        for acquired in self.open.values() if self.last is not None else ():
            assert self.last is not None
            self._held(Held(acquired, self.last.event.timestamp, ended=False))
        return Summary(
            events=self.events,
            first_number=self.first,
            last_number=0 if self.last is None else self.last.number,
            by_action=_ordered(self.by_action),
            by_holder=_ordered(self.by_holder),
            by_target=_ordered(self.by_target),
            dropped=self.dropped,
            longest_held=tuple(self._longest()),
            most_contended=tuple(self.contended.most_common(TOP)),
        )


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < NAMES_MAX else OTHERS] += 1


def _ordered(counter: Counter[str]) -> Mapping[str, int]:
    return MappingProxyType(dict(counter.most_common()))
