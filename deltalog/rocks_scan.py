"""Reads that span blocks: by source, since a version vector, by time, the newest. Plain data between pages, no handles.

Every page opens a consistent view of its own, finds its place again by seq or timestamp, and checks that what it reads
is whole: seq = last + 1, or an error (invariant I2). So a scan outlives merges, truncation and a re-opened store.

Merging by time: sources are runs that ascend in time, so a window of time is decided by whichever run ends first. All
runs give what they hold up to there, and one sort of these few runs (Timsort: linear in runs that ascend already) costs
less than comparing delta by delta.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Final, Protocol

from deltalog import block, keys
from deltalog.delta import TIMESTAMP_MAX, Delta
from deltalog.errors import BelowFloor, StoreCorrupt
from deltalog.keys import BY_TIME, DELTAS, Head, TimeEntry
from deltalog.rocks_view import View

_AHEAD: Final = 512
"""Deltas that a run is read ahead in a merge."""
_HELD_MAX: Final = 65_536
"""Deltas that a merge keeps decoded between windows; beyond, runs are read again when their turn comes."""
_ENTRIES: Final = 256
"""Index entries read of one level at a time."""

_timestamp = attrgetter("timestamp")


class Blocks(Protocol):
    """What a scan needs of the store it reads."""

    def view(self) -> View:
        """Records and index as they are now; closed by `with`."""
        ...

    def row(self, source: str) -> tuple[int, Head] | None:
        """Number and head of a source."""
        ...

    def name(self, source_no: int) -> str:
        """Source of a number."""
        ...

    def block_at(self, view: View, source_no: int, source: str, seq: int) -> block.Block | None:
        """The block that holds (source, seq)."""
        ...

    def decode_block(self, source: str, key: bytes, value: bytes) -> block.Block:
        """Decode what stands under `key`, or raise `StoreCorrupt` naming it."""
        ...

    def time_entry(self, key: bytes, value: bytes) -> TimeEntry:
        """Parse an entry of the time index, or raise `StoreCorrupt` naming it."""
        ...


class Run:
    """Reads one source upwards: what is wanted of it, and what is decoded already."""

    __slots__ = ("held", "next", "source", "source_no", "store", "timestamp", "until")

    def __init__(self, store: Blocks, source: str, source_no: int, after: int, until: int) -> None:
        self.store = store
        self.source = source
        self.source_no = source_no
        self.next = after + 1
        """Seq of the next delta to give out."""
        self.until = until
        self.held: list[Delta] = []
        """Decoded deltas from `next` on."""
        self.timestamp = 0
        """Timestamp of the delta at `next`, once `load` has been called."""

    @property
    def done(self) -> bool:
        """Whether all that was wanted has been given out."""
        return self.next > self.until

    def load(self, view: View, count: int) -> None:
        """Decode at least `count` deltas from `next` on, fewer at the end. Raises unless they are all there."""
        need = self.next + len(self.held)
        if not self.held:
            found = view.last(DELTAS, keys.block_key(self.source_no, need), keys.block_key(self.source_no, 0))
            begin = keys.block_key(self.source_no, need) if found is None else found[0]
        else:
            begin = keys.block_key(self.source_no, self.held[-1].seq)
        end = keys.block_key(self.source_no, self.until + 1)
        if need <= self.until and len(self.held) < count:
            for key, value in view.scan(DELTAS, begin, end):
                need = self._take(self.store.decode_block(self.source, key, value), need)
                if need > self.until or len(self.held) >= count:
                    break
            else:
                self._missing(need)
        self.timestamp = self.held[0].timestamp

    def _take(self, found: block.Block, need: int) -> int:
        """Keep what is wanted of a block; return the seq that must come next."""
        first, last = found.deltas[0].seq, found.deltas[-1].seq
        if last < need:
            return need
        if first > need:
            self._missing(need)
        self.held += found.deltas[need - first : self.until + 1 - first]
        return last + 1

    def _missing(self, need: int) -> None:
        row = self.store.row(self.source)
        floor = row[1].floor if row is not None else 0
        if need <= floor:
            raise BelowFloor({self.source: floor}, {self.source: need - 1})
        raise StoreCorrupt(f"{DELTAS}: ({self.source!r}, {need}) is missing")

    def give(self, count: int) -> list[Delta]:
        """Give out the next `count` decoded deltas."""
        given = self.held[:count]
        self.held = self.held[count:]
        self.next += len(given)
        if self.held:
            self.timestamp = self.held[0].timestamp
        return given


class SourceScan:
    """Deltas of one source, upwards or downwards."""

    def __init__(self, store: Blocks, source: str, after: int, until: int, reverse: bool) -> None:
        row = store.row(source)
        self._store, self._source, self._reverse = store, source, reverse
        self._source_no = row[0] if row is not None else 0
        self._after = after
        self._until = min(until, row[1].seq) if row is not None else after

    def page(self, count: int) -> Sequence[Delta]:
        if self._after >= self._until:
            return []
        with self._store.view() as view:
            return self._down(view, count) if self._reverse else self._up(view, count)

    def _up(self, view: View, count: int) -> Sequence[Delta]:
        run = Run(self._store, self._source, self._source_no, self._after, self._until)
        run.load(view, count)
        self._after = min(self._after + count, run.held[-1].seq)
        return run.held[:count]

    def _down(self, view: View, count: int) -> Sequence[Delta]:
        run = Run(self._store, self._source, self._source_no, max(self._after, self._until - count), self._until)
        run.load(view, count)
        self._until = run.next - 1
        return run.held[::-1]


class SinceScan:
    """What a version vector lacks, by (timestamp, source): each source is a run, merged window by window."""

    def __init__(self, store: Blocks, after: Mapping[str, int], until: Mapping[str, int]) -> None:
        self._store = store
        self._heap: list[tuple[int, str, Run]] = []
        self._new: list[Run] = []
        for source, high in until.items():
            row = store.row(source)
            low = after.get(source, 0)
            if row is not None and low < min(high, row[1].seq):
                self._new.append(Run(store, source, row[0], low, min(high, row[1].seq)))
        self._ahead = max(block.DELTAS_MAX, _AHEAD // max(1, len(self._new) // 16))

    def page(self, count: int) -> Sequence[Delta]:
        found: list[Delta] = []
        if not self._new and not self._heap:
            return found
        with self._store.view() as view:
            self._begin(view)
            while self._heap and len(found) < count:
                found += self._window(view)
        return found

    def _begin(self, view: View) -> None:
        """Find the first timestamp of each run; keep the deltas decoded for it while there are few."""
        new, self._new = self._new, []
        keep = len(new) * block.DELTAS_MAX <= _HELD_MAX
        for run in new:
            run.load(view, 1)
            self._heap.append((run.timestamp, run.source, run))
            if not keep:
                run.held = []
        heapify(self._heap)

    def _window(self, view: View) -> list[Delta]:
        """Give out all deltas up to the last one decoded of the run that is behind."""
        behind = self._heap[0][2]
        behind.load(view, self._ahead)
        end = behind.held[-1].timestamp
        parts: list[list[Delta]] = []
        while self._heap and self._heap[0][0] <= end:
            run = heappop(self._heap)[2]
            self._give_until(view, run, end, parts)
            if not run.done:
                heappush(self._heap, (run.timestamp, run.source, run))
        self._forget()
        return in_order(parts)

    def _give_until(self, view: View, run: Run, end: int, parts: list[list[Delta]]) -> None:
        while not run.done:
            run.load(view, 1)
            if run.timestamp > end:
                return
            parts.append(run.give(bisect_right(run.held, end, key=_timestamp)))

    def _forget(self) -> None:
        """Drop what is decoded ahead when it is too much in all; it is read again when its turn comes."""
        if len(self._heap) * block.DELTAS_MAX > _HELD_MAX:
            for _, _, run in self._heap:
                run.held = []


class TimeScan:
    """Deltas of an interval of time, found through the index."""

    def __init__(self, store: Blocks, after: int, until: int) -> None:
        self._store = store
        self._after = max(after, -1)
        """Timestamp up to which everything was given out."""
        self._until = min(until, TIMESTAMP_MAX)
        self._held: dict[int, list[Delta]] = {}
        """Decoded deltas behind `_after`, by source number, ascending."""

    def page(self, count: int) -> Sequence[Delta]:
        entries = _ENTRIES
        while self._after < self._until:
            before = self._after
            with self._store.view() as view:
                found = self._window(view, count, entries)
            if found:
                return found
            if self._after == before:
                entries *= 4  # that many blocks start at one timestamp
        return []

    def _window(self, view: View, count: int, entries: int) -> list[Delta]:
        """Decode blocks in the order of their first timestamps until `count` deltas are complete."""
        blocks, complete = overlapping(self._store, view, self._after, self._until, entries)
        ready = sum(map(len, self._held.values()))
        for entry in blocks:
            if ready >= count:
                complete = min(complete, entry.first - 1)
                if complete > self._after:
                    break
            ready += self._decode(view, entry)
        return self._give(complete)

    def _decode(self, view: View, entry: TimeEntry) -> int:
        """Decode what a block adds to what is held of its source; return how many deltas that is."""
        held = self._held.setdefault(entry.source_no, [])
        if held and held[-1].seq >= entry.seq + entry.count - 1:
            return 0
        source = self._store.name(entry.source_no)
        found = self._store.block_at(view, entry.source_no, source, entry.seq)
        if found is None or found.deltas[0].seq != entry.seq or len(found.deltas) != entry.count:
            raise StoreCorrupt(f"{BY_TIME}: no block of {entry.count} deltas at ({source!r}, {entry.seq})")
        low = bisect_right(found.deltas, self._after, key=_timestamp)
        if held:
            low = max(low, held[-1].seq + 1 - entry.seq)
        new = found.deltas[low : bisect_right(found.deltas, self._until, key=_timestamp)]
        held += new
        return len(new)

    def _give(self, complete: int) -> list[Delta]:
        parts: list[list[Delta]] = []
        for source_no in sorted(self._held, key=self._store.name):
            held = self._held[source_no]
            cut = bisect_right(held, complete, key=_timestamp)
            parts.append(held[:cut])
            if cut == len(held):
                del self._held[source_no]
            else:
                self._held[source_no] = held[cut:]
        self._after = complete
        return in_order(parts)


def overlapping(
    store: Blocks, view: View, after: int, until: int, count: int
) -> tuple[list[TimeEntry], int]:
    """Index entries of blocks that touch (after, until], by first timestamp; and up to which timestamp that is all.

    At most `count` entries of each level are read.
    """
    found: list[TimeEntry] = []
    complete = until
    level = 0
    while (head := next(view.scan(BY_TIME, bytes((level,))), None)) is not None:
        level = head[0][0]
        begin = keys.time_bound(level, max(0, after + 1 - (1 << level)))
        left = count
        for key, value in view.scan(BY_TIME, begin, keys.time_bound(level, until + 1)):
            entry = store.time_entry(key, value)
            if entry.last > after:
                found.append(entry)
                left -= 1
                if not left:
                    complete = min(complete, entry.first - 1)
                    break
        level += 1
    found.sort(key=lambda entry: entry.first)
    return found[: bisect_right(found, complete, key=lambda entry: entry.first)], max(complete, after)


def newest(store: Blocks, count: int) -> list[Delta]:
    """The newest deltas, at most `count`: whole blocks from the end, so of each source a suffix."""
    with store.view() as view:
        entries: list[TimeEntry] = []
        for level in range(keys.LEVELS):
            entries += _last_of_level(store, view, level, count)
        entries.sort(key=lambda entry: entry.first, reverse=True)
        parts: list[list[Delta]] = []
        for entry in entries:
            count -= entry.count
            if count < 0:
                break
            source = store.name(entry.source_no)
            found = store.block_at(view, entry.source_no, source, entry.seq)
            if found is None:
                raise StoreCorrupt(f"{DELTAS}: ({source!r}, {entry.seq}) is missing")
            parts.append(found.deltas)
    parts.sort(key=lambda part: (part[0].source, part[0].seq))
    return in_order(parts)


def _last_of_level(store: Blocks, view: View, level: int, count: int) -> list[TimeEntry]:
    """Entries of one level from its end backwards, until they hold `count` deltas."""
    found: list[TimeEntry] = []
    for key, value in view.scan(BY_TIME, bytes((level,)), bytes((level + 1,)), reverse=True):
        entry = store.time_entry(key, value)
        found.append(entry)
        count -= entry.count
        if count <= 0:
            break
    return found


def in_order(parts: Iterable[list[Delta]]) -> list[Delta]:
    """Merge runs that each ascend in time, by (timestamp, source)."""
    runs = sorted((part for part in parts if part), key=lambda part: (part[0].source, part[0].seq))
    if len(runs) == 1:
        return runs[0]
    merged = [delta for run in runs for delta in run]
    merged.sort(key=_timestamp)
    return merged
