"""Reads over ring and store as one sequence: what is not stored yet comes from the ring, the rest from either.

A read fixes at its start what belongs to it: the heads of that moment. The store gives what was written by then, page
by page; the deltas that were not are kept by reference and merged in where their place is. So there is no seam, and no
delta twice, however long the reader takes.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Self

import trio

from deltalog.block import STORED
from deltalog.causality import Conflict, ConflictFinder
from deltalog.codec import decode, timestamp_of
from deltalog.delta import Delta
from deltalog.errors import BelowFloor
from deltalog.ring import Ring
from deltalog.store import DeltaStore, Scan
from deltalog.writer import Offload, Writer

PAGE: Final = 2048
"""Deltas that one hop to a worker thread reads: decoding them holds the interpreter for a few milliseconds."""
_INLINE: Final = 2048
"""Deltas of the ring that are decoded without that hop: 2 ms at most."""

Records = list[tuple[str, list[bytes]]]
"""Sources and encoded deltas of each, ascending by seq."""


class Stream:
    """Deltas in a fixed order: `async for delta in stream`, or `await stream.page()` for many at a time.

    A checkpoint is passed once a page, not once a delta. Holds no resource: it may be dropped at any time, or left in
    the middle of a loop and gone on with. While it is active, retention drops nothing that it may read.
    """

    active = False
    """Whether it has begun and not come to its end."""
    holds: Mapping[str, int] | None = None
    """source -> seq after which it reads; it reads of no other sources. None: of any, from anywhere."""

    def __init__(self, next_page: Callable[[int], Awaitable[Sequence[Delta]]]) -> None:
        """`next_page` returns at least one delta and about as many as asked for; none at the end."""
        self._next_page = next_page
        self._ahead: Iterator[Delta] = iter(())  # of the page that a loop is in

    async def page(self, count: int = PAGE) -> Sequence[Delta]:
        """Return the next deltas, about `count`; none at the end. Cancelled: nothing is lost, the next call goes on."""
        self.active = True
        await trio.lowlevel.checkpoint()
        deltas = list(islice(self._ahead, count)) or await self._next_page(count)
        self.active = bool(deltas)
        return deltas

    def spare(self, floors: Mapping[str, int]) -> dict[str, int]:
        """Lower floors to what this read does not need (invariant I13)."""
        if not self.active:
            return dict(floors)
        if self.holds is None:
            return {}
        return {source: min(seq, self.holds.get(source, seq)) for source, seq in floors.items()}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._ahead:
            return delta
        self._ahead = iter(await self.page())
        for delta in self._ahead:
            return delta
        raise StopAsyncIteration


class Conflicts:
    """The conflicts among the deltas of a stream: `async for conflict in conflicts`. It may be dropped at any time."""

    def __init__(self, stream: Stream) -> None:
        """`stream` is in timestamp order."""
        self._stream = stream
        self._finder = ConflictFinder()
        self._ahead: Iterator[Conflict] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Conflict:
        while True:
            for conflict in self._ahead:
                return conflict
            self._ahead = iter(self._finder.add(await anext(self._stream)))


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

    def _fresh(self, after: Mapping[str, int], until: Mapping[str, int]) -> Records:
        """For each source in `until` the records with after < seq <= until that are in the ring."""
        return [(source, self._ring.run(source, after.get(source, 0), seq)) for source, seq in until.items()]

    async def _decoded(self, records: Records) -> list[Delta]:
        """In timestamp order; made in a worker thread if it takes long."""
        if sum(len(each) for _, each in records) <= _INLINE:
            return _in_order(records)
        deltas: list[Delta] = await self._offload(_in_order, records)
        return deltas

    async def get(self, source: str, seq: int) -> Delta | None:
        """The delta with this dot, None if there is none or it was dropped."""
        delta = self.cached(source, seq)
        if delta is not None:
            return delta
        found: Delta | None = await self._offload(self._store.get, source, seq)
        return found

    async def twins(self, deltas: Sequence[Delta]) -> list[tuple[Delta, Delta | None]]:
        """Pair deltas whose dots are held with what is held; None if that was dropped."""
        pairs = [(delta, self.cached(delta.source, delta.seq)) for delta in deltas]
        stored = [delta for delta, mine in pairs if mine is None]
        if stored:
            pairs = [pair for pair in pairs if pair[1] is not None]
            pairs += await self._offload(_stored_twins, self._store, stored)
        return pairs

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> Stream:
        """Deltas of a source with after < seq <= until."""
        written = min(until, self._writer.written.get(source, 0))
        if 0 < self._ring.reaches(source) <= after + 1:
            written = after
        fresh = self._fresh({source: max(after, written)}, {source: until})
        scan = self._store.by_source(source, after, written, reverse=reverse) if written > after else None
        parts = [self._scan(scan), self._listed(fresh, reverse=reverse)]
        return Stream(_chained(parts[::-1] if reverse else parts))

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> Stream:
        """For each source the deltas with after < seq <= until, in timestamp order."""
        wants = {source: seq for source, seq in until.items() if seq > after.get(source, 0)}
        if all(0 < self._ring.reaches(source) <= after.get(source, 0) + 1 for source in wants):
            return Stream(self._listed(self._fresh(after, wants)))
        written = {source: min(seq, self._writer.written.get(source, 0)) for source, seq in wants.items()}
        fresh = self._fresh({source: max(after.get(source, 0), seq) for source, seq in written.items()}, wants)
        return Stream(self._merged(self._store.since(after, written), fresh))

    def between(self, after: int, until: int) -> Stream:
        """Deltas with after < timestamp <= until that are visible now, in timestamp order."""
        pending = self._ring.unstored(self._ring.deltas_max, sys.maxsize)[0]
        fresh = [
            (source, [record for record in records if after < timestamp_of(record) <= until])
            for source, _, records in pending
        ]
        return Stream(self._merged(self._store.between(after, until), fresh, dict(self._writer.written)))

    # ------------------------------------------------------------------------------------------------------- merging

    def _scan(self, scan: Scan | None) -> Callable[[int], Awaitable[Sequence[Delta]]]:
        async def page(count: int) -> Sequence[Delta]:
            if scan is None:
                return []
            found: Sequence[Delta] = await self._offload(scan.page, count)
            return found

        return page

    def _listed(self, fresh: Records, *, reverse: bool = False) -> Callable[[int], Awaitable[Sequence[Delta]]]:
        """Pages of what is in memory, in timestamp order or against it."""
        deltas: list[Delta] | None = None
        at = 0

        async def page(count: int) -> Sequence[Delta]:
            nonlocal deltas, at
            if deltas is None:
                deltas = (await self._decoded(fresh))[:: -1 if reverse else 1]
            at += count
            return deltas[at - count : at]

        return page

    def _merged(
        self, scan: Scan, fresh: Records, written: Mapping[str, int] | None = None
    ) -> Callable[[int], Awaitable[Sequence[Delta]]]:
        """Pages of `scan` (up to `written`; None: it ends there by itself), with `fresh` where it belongs."""
        waiting: list[Delta] | None = None

        async def page(count: int) -> Sequence[Delta]:
            nonlocal waiting
            if waiting is None:
                waiting = await self._decoded(fresh)
            deltas: Sequence[Delta]
            while deltas := await self._offload(scan.page, count):
                cut = bisect_right(waiting, _place(deltas[-1]), key=_place)
                now, waiting = waiting[:cut], waiting[cut:]
                if written is not None:
                    deltas = [delta for delta in deltas if delta.seq <= written.get(delta.source, 0)]
                if now:
                    return sorted([*deltas, *now], key=_place)
                if deltas:
                    return deltas
            rest, waiting = waiting[:count], waiting[count:]
            return rest

        return page


def _in_order(records: Records) -> list[Delta]:
    return sorted((decode(source, record, STORED) for source, each in records for record in each), key=_place)


def _stored_twins(store: DeltaStore, deltas: Iterable[Delta]) -> list[tuple[Delta, Delta | None]]:
    """Pair each delta with the stored one of its dot, reading neighbours together."""
    pairs: list[tuple[Delta, Delta | None]] = []
    heads = store.heads()
    wanted = sorted(deltas, key=lambda delta: delta.dot)
    last = {delta.source: delta.seq for delta in wanted}
    page: dict[tuple[str, int], Delta] = {}
    for delta in wanted:
        if delta.dot not in page and delta.seq > heads[delta.source].floor:
            scan = store.by_source(delta.source, delta.seq - 1, min(last[delta.source], delta.seq + PAGE))
            page = {mine.dot: mine for mine in _unless_dropped(scan, PAGE)}
        pairs.append((delta, page.get(delta.dot)))
    return pairs


def _unless_dropped(scan: Scan, count: int) -> Sequence[Delta]:
    """The next page; none if retention dropped its deltas meanwhile."""
    try:
        return scan.page(count)
    except BelowFloor:
        return []


def _chained(
    parts: Sequence[Callable[[int], Awaitable[Sequence[Delta]]]],
) -> Callable[[int], Awaitable[Sequence[Delta]]]:
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
    missing = {
        s: after.get(s, 0) for s, floor in floors.items() if floor and after.get(s, 0) < min(floor, until.get(s, 0))
    }
    if missing:
        raise BelowFloor(floors, missing)
