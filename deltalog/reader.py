"""Reads over ring and store as one sequence: what is not stored yet comes from the ring, the rest from either.

A read fixes at its start what belongs to it: the heads of that moment. The store gives what was written by then, page
by page; the deltas that were not are kept by reference and merged in where their place is. So there is no seam, and no
delta twice, however long the reader takes.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from deltalog.block import STORED
from deltalog.codec import decode
from deltalog.delta import Delta
from deltalog.errors import BelowFloor
from deltalog.ring import Ring
from deltalog.store import DeltaStore, Scan
from deltalog.writer import Offload, Writer

PAGE: Final = 4096
"""Deltas that one hop to a worker thread reads: decoding them holds the interpreter for a few milliseconds."""


class Stream:
    """Deltas in a fixed order: `async for delta in stream`, or `await stream.page()` for many at a time.

    A checkpoint is passed once a page, not once a delta. Holds no resource: it may be dropped at any time. While it is
    active, retention drops nothing.
    """

    active = False
    """Whether it has begun and not come to its end."""

    def __init__(self, next_page: Callable[[int], Awaitable[Sequence[Delta]]]) -> None:
        """`next_page` returns at least one delta and about as many as asked for; none at the end."""
        self._next_page = next_page

    async def page(self, count: int = PAGE) -> Sequence[Delta]:
        """Return the next deltas, about `count`; none at the end. Cancelled: nothing is lost, the next call goes on."""
        self.active = True
        deltas = await self._next_page(count)
        self.active = bool(deltas)
        return deltas

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while deltas := await self.page():
            for delta in deltas:
                yield delta


def _place(delta: Delta) -> tuple[int, str]:
    return delta.timestamp, delta.source


class Reader:
    """Answers the log's questions from its ring and its store."""

    def __init__(self, ring: Ring, store: DeltaStore, writer: Writer, offload: Offload) -> None:
        self._ring = ring
        self._store = store
        self._writer = writer
        self._offload = offload

    def cached(self, source: str, seq: int) -> Delta | None:
        """The delta with this dot, if it is in the ring."""
        record = self._ring.get(source, seq)
        return None if record is None else decode(source, record, STORED)

    def _fresh(self, source: str, after: int, until: int) -> list[Delta]:
        """Deltas of the source with after < seq <= until that are in the ring."""
        return [decode(source, record, STORED) for record in self._ring.run(source, after, until)]

    async def get(self, source: str, seq: int) -> Delta | None:
        """The delta with this dot, None if there is none or it was dropped."""
        delta = self.cached(source, seq)
        if delta is not None:
            return delta
        found: Delta | None = await self._offload(self._store.get, source, seq)
        return found

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> Stream:
        """Deltas of a source with after < seq <= until."""
        written = min(until, self._writer.written.get(source, 0))
        if 0 < self._ring.reaches(source) <= after + 1:
            written = after
        fresh = self._fresh(source, max(after, written), until)
        scan = self._store.by_source(source, after, written, reverse=reverse) if written > after else None
        parts = [self._scan(scan), _listed(fresh[::-1] if reverse else fresh)]
        return Stream(_chained(parts[::-1] if reverse else parts))

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> Stream:
        """For each source the deltas with after < seq <= until, in timestamp order."""
        wants = {source: seq for source, seq in until.items() if seq > after.get(source, 0)}
        if all(0 < self._ring.reaches(source) <= after.get(source, 0) + 1 for source in wants):
            found = [delta for source, seq in wants.items() for delta in self._fresh(source, after.get(source, 0), seq)]
            return Stream(_listed(sorted(found, key=_place)))
        written = {source: min(seq, self._writer.written.get(source, 0)) for source, seq in wants.items()}
        fresh = [d for s, seq in wants.items() for d in self._fresh(s, max(after.get(s, 0), written[s]), seq)]
        return Stream(self._merged(self._store.since(after, written), fresh))

    def between(self, after: int, until: int) -> Stream:
        """Deltas with after < timestamp <= until, in timestamp order."""
        pending = self._ring.unstored(self._ring.deltas_max, sys.maxsize)[0]
        unstored = [decode(source, record, STORED) for source, _, records in pending for record in records]
        fresh = [delta for delta in unstored if after < delta.timestamp <= until]
        return Stream(self._merged(self._store.between(after, until), fresh))

    # ------------------------------------------------------------------------------------------------------- merging

    def _scan(self, scan: Scan | None) -> Callable[[int], Awaitable[Sequence[Delta]]]:
        async def page(count: int) -> Sequence[Delta]:
            if scan is None:
                return []
            found: Sequence[Delta] = await self._offload(scan.page, count)
            return found

        return page

    def _merged(self, scan: Scan, fresh: list[Delta]) -> Callable[[int], Awaitable[Sequence[Delta]]]:
        """Pages of `scan`, with `fresh` where it belongs. What was stored meanwhile comes once."""
        waiting = sorted(fresh, key=_place)
        known = {delta.dot for delta in waiting}

        async def page(count: int) -> Sequence[Delta]:
            nonlocal waiting
            deltas: Sequence[Delta] = await self._offload(scan.page, count)
            if not known:
                return deltas
            if not deltas:
                last, waiting = waiting[:count], waiting[count:]
                return last
            end = _place(deltas[-1])
            now = [delta for delta in waiting if _place(delta) <= end]
            waiting = waiting[len(now) :]
            return sorted([delta for delta in deltas if delta.dot not in known] + now, key=_place) or await page(count)

        return page


def _listed(deltas: list[Delta]) -> Callable[[int], Awaitable[Sequence[Delta]]]:
    """Pages of a list."""
    at = 0

    async def page(count: int) -> Sequence[Delta]:
        nonlocal at
        at += count
        return deltas[at - count : at]

    return page


def _chained(parts: Sequence[Callable[[int], Awaitable[Sequence[Delta]]]]) -> Callable[[int], Awaitable[Sequence[Delta]]]:
    """Pages of each part, one part after the other."""
    left = list(parts)

    async def page(count: int) -> Sequence[Delta]:
        while left:
            deltas = await left[0](count)
            if deltas:
                return deltas
            del left[0]
        return []

    return page


def check_floor(after: Mapping[str, int], floors: Mapping[str, int], until: Mapping[str, int]) -> None:
    """Raise `BelowFloor` if a read from `after` up to `until` would need dropped deltas (invariant I4)."""
    missing = {s: after.get(s, 0) for s, floor in floors.items() if floor and after.get(s, 0) < min(floor, until.get(s, 0))}
    if missing:
        raise BelowFloor(floors, missing)
