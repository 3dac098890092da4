"""Checking a trail: every event against the chain, every index row against the events, and both against the head.

Reads the store as it was at one moment, without holding anybody up. Findings are in the order of the trail, so the
first names the first event that was changed, removed, inserted or reordered; after it the chain is taken up again from
the link that stands there, so that one change is one finding.

What it cannot see: a trail whose tail was cut or rewritten whole, links and all. That a `TrailHead` kept elsewhere
shows; and one from before the floor shows nothing any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import Final

import attrs

from audit import event as events
from audit import keys, trail
from audit.keys import EVENTS, INDEXES, META, Checkpoint, Head
from audit.search import TermWalk
from audit.store import AuditStore
from audit.trail import TrailHead
from deltalog.errors import DecodeError, StoreCorrupt
from deltalog.rocks_view import KeyValue, View

FINDINGS_MAX: Final = 100
"""Findings of a report; there may be more."""
_TAIL: Final = 100
"""Events that an open checks."""
_AHEAD: Final = 8
"""Events behind a break that are looked at to tell what happened."""


@attrs.frozen
class Finding:
    """Something that is not as it was recorded."""

    kind: str
    """"changed", "removed", "inserted", "reordered", "damaged", "index", "checkpoint", "head" or "cut"."""
    number: int
    """The event, 0 if it is not about one."""
    message: str


@attrs.frozen
class TrailReport:
    """What a verification found."""

    findings: Sequence[Finding]
    events: int
    """Events that are there."""
    floor: int
    """Number up to which retention removed events."""
    head: TrailHead

    @property
    def ok(self) -> bool:
        """Whether everything is as it was recorded."""
        return not self.findings


def verify(store: AuditStore, *, head: TrailHead | None = None) -> TrailReport:
    """Check a trail; `head`: that this head is still in it. Raises StoreError only if it cannot be read at all."""
    with store.view() as view:
        row = next(view.scan(META, keys.META_HEAD, keys.META_HEAD + b"\0"), None)
        if row is None:
            raise StoreCorrupt(f"{META}: {keys.META_HEAD!r} is missing")
        end = store.checked(META, keys.META_HEAD, lambda: keys.decode_head(row[1]))
        walk = _Walk(store, view, end, head)
        findings = list(islice(walk.findings(), FINDINGS_MAX))
    return TrailReport(findings, walk.count, end.floor, TrailHead(end.number, end.link))


def check_tail(store: AuditStore) -> None:
    """Raise StoreCorrupt unless the last events lead to the head: what an open can afford."""
    head = store.head
    first = max(head.floor + 1, head.number - _TAIL)
    with closing(store.db.scan(EVENTS, begin=keys.event_key(first))) as rows:
        found = [(keys.parse_event_key(key), *keys.split_row(value)) for key, value in rows]
    link = head.floor_link if first == head.floor + 1 else found[0][1] if found else b""
    rest = found if first == head.floor + 1 else found[1:]
    numbers = [number for number, _, _ in found]
    links = trail.extend(link, rest[0][0] if rest else 0, [data for _, _, data in rest])
    fits = numbers == list(range(first, head.number + 1)) and links == [each for _, each, _ in rest]
    if not fits or (links[-1] if links else link) != head.link:
        raise StoreCorrupt(f"{EVENTS}: the last events do not lead to the head {head.number}; run verify")


class _Walk:
    """One verification."""

    def __init__(self, store: AuditStore, view: View, end: Head, head: TrailHead | None) -> None:
        self._store = store
        self._view = view
        self._end = end
        self._given = head
        self.count = 0
        # the walk, as far as it has come
        self._number = end.floor
        self._link = end.floor_link
        self._timestamp = end.floor_timestamp
        self._shift = 0  # by how many places what stands there was moved up or down
        self._sums = dict.fromkeys(INDEXES, 0)
        self._counts = dict.fromkeys(INDEXES, 0)
        self._broken = False

    def findings(self) -> Iterator[Finding]:
        yield from self._given_head()
        yield from self._events()
        yield from self._index()

    # ---- head

    def _given_head(self) -> Iterator[Finding]:
        given, end = self._given, self._end
        if given is None:
            return
        if given.number > end.number:
            yield Finding(
                "cut", end.number + 1, f"the trail ends with {end.number}; the head given says {given.number}"
            )
        elif given.number < end.floor:
            message = f"retention removed events up to {end.floor}: the head given ({given.number}) cannot be checked"
            yield Finding("head", given.number, message)
        elif self._link_at(given.number) != given.link:
            yield Finding("head", given.number, f"event {given.number} or one before it is not what the head given saw")

    def _link_at(self, number: int) -> bytes:
        if number == self._end.floor:
            return self._end.floor_link
        key = keys.event_key(number)
        for _, value in self._view.scan(EVENTS, key, keys.event_key(number + 1)):
            return value[: keys.LINK_BYTES]
        return b""

    # ---- events

    def _events(self) -> Iterator[Finding]:
        """Walk events, links and checkpoints in step."""
        checkpoints = self._checkpoints()
        rows = _Ahead(self._view.scan(EVENTS))
        while (row := rows.pop()) is not None:
            try:
                number, link, data = _parse(row)
            except DecodeError as error:
                self._broken = True
                yield Finding("damaged", self._number + 1, f"{EVENTS} key {row[0].hex()}: {error}")
                continue
            self.count += 1
            if number <= self._end.floor:
                yield self._found("inserted", number, "stands below the floor, where nothing is")
                continue
            yield from self._chain(number, link, data, rows)
            yield from self._event(number, data)
            checkpoint = checkpoints.pop(number, None)
            if checkpoint is not None and checkpoint.link != link:
                yield self._found("checkpoint", number, "is not the one that the checkpoint behind it saw")
        for number in checkpoints:
            yield self._found("checkpoint", number, "has a checkpoint behind it and is not there")
        if self._number < self._end.number:
            missing = f"to {self._end.number} are missing: that is where the head says the trail ends"
            yield self._found("removed", self._number + 1, missing)
        elif self._number > self._end.number:
            yield self._found("inserted", self._end.number + 1, "stands behind the end that the head says")
        elif not self._broken and self._link != self._end.link:
            yield self._found("head", self._number, "does not lead to the head")

    def _chain(self, number: int, link: bytes, data: bytes, rows: _Ahead) -> Iterator[Finding]:
        """Check that an event follows on the one before."""
        if number > self._number + 1:
            yield self._found("removed", self._number + 1, f"to {number - 1} are missing")
        elif trail.extend(self._link, number - self._shift, [data])[0] != link:
            kind = trail.what_happened(self._link, number - self._shift, [(link, data), *rows.links()])
            what = {
                "inserted": "was put in: what stands behind it follows on what stands before",
                "removed": "was taken out, and what stood behind it moved up",
                "reordered": "was moved: what belongs here stands further on",
            }
            yield self._found(kind, number, what.get(kind, "is not what was recorded, or the link of the one before"))
            self._shift += (kind == "inserted") - (kind == "removed")
            if kind == "inserted":
                link = self._link
        self._number, self._link = number, link

    def _event(self, number: int, data: bytes) -> Iterator[Finding]:
        """Check an event by itself, and note where the indexes must have it."""
        try:
            event = events.decode(data)
        except DecodeError as error:
            yield self._found("damaged", number, f"cannot be read: {error}")
            return
        if event.timestamp < self._timestamp:
            yield self._found("reordered", number, "is older than the one before it")
        self._timestamp = event.timestamp
        for family, term in keys.terms_of(event):
            self._sums[family] += hash((term, number))
            self._counts[family] += 1

    def _found(self, kind: str, number: int, what: str) -> Finding:
        self._broken = True
        return Finding(kind, number, f"event {number} {what}")

    def _checkpoints(self) -> dict[int, Checkpoint]:
        found = self._store.checkpoints()
        return {each.number: each for each in found if self._end.floor < each.number <= self._end.number}

    # ---- indexes

    def _index(self) -> Iterator[Finding]:
        """Hold each index against the events: first by counts and keyed sums, then one by one if these differ."""
        if self._broken:
            return  # what was recorded is not known
        for family in INDEXES:
            total = count = 0
            for term, number in self._entries(family):
                total += hash((term, number))
                count += 1
            if (total, count) != (self._sums[family], self._counts[family]):
                yield from self._extra(family)
                yield from self._missing(family)

    def _entries(self, family: str) -> Iterator[tuple[bytes, int]]:
        for key, value in self._view.scan(family):
            for number in self._store.index_row(family, key, value):
                if number > self._end.floor:
                    yield keys.parse_entry_key(key)[0], number

    def _extra(self, family: str) -> Iterator[Finding]:
        for term, number in self._entries(family):
            found = self._store.get(number) if number <= self._end.number else None
            if found is None or (family, term) not in keys.terms_of(found.event):
                yield Finding(
                    "index", number, f"{family} has event {number} under {term.hex()}, where it does not belong"
                )

    def _missing(self, family: str) -> Iterator[Finding]:
        for key, value in self._view.scan(EVENTS):
            number, _, data = _parse((key, value))
            for term in keys.terms_of(events.decode(data)):
                if term[0] == family and TermWalk(self._store, self._view, *term).up(number) != number:
                    yield Finding("index", number, f"{family} lacks event {number} under {term[1].hex()}")


class _Ahead:
    """Rows of events, of which some were looked at before their turn."""

    def __init__(self, rows: Iterator[KeyValue]) -> None:
        self._rows = rows
        self._next: deque[KeyValue] = deque()

    def pop(self) -> KeyValue | None:
        return self._next.popleft() if self._next else next(self._rows, None)

    def links(self) -> list[tuple[bytes, bytes]]:
        """Links and bytes of the next events; short if one of them cannot be read."""
        self._next.extend(islice(self._rows, _AHEAD - len(self._next)))
        found = []
        with suppress(DecodeError):
            for _, value in self._next:
                found.append(keys.split_row(value))
        return found


def _parse(row: KeyValue) -> tuple[int, bytes, bytes]:
    return keys.parse_event_key(row[0]), *keys.split_row(row[1])
