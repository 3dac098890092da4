"""Reads that span blocks: by source, since a version vector, by time, the newest. Plain data between pages, no handles.

Every page opens a consistent view of its own, finds its place again by seq or timestamp, and checks that what it reads
is whole: seq = last + 1, or an error (invariant I2). So a scan outlives merges, truncation and a re-opened store. A
page that raised can be asked for again: nothing was lost.

Merging by time: sources are runs that ascend in time, and each is decoded some way ahead. A window reaches up to the
place where the first of them must be read on. All runs give what they hold up to there, and one sort of these few runs
(Timsort: linear in runs that ascend already) costs less than comparing delta by delta. How far ahead is bounded for all
runs together, so memory is bounded whatever the number of sources and however unequal their pace.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, Protocol

from deltalog import keys
from deltalog.delta import TIMESTAMP_MAX, Delta
from deltalog.errors import BelowFloor, StoreCorrupt
from deltalog.keys import BY_TIME, DELTAS, Head, TimeEntry
from deltalog.rocks_view import KeyValue, View

_AHEAD: Final = 2048
"""Deltas that a run is read ahead in a merge, at most."""
_AHEAD_FIRST: Final = 64
"""Deltas of a run that are decoded first; then twice as many each time, so that little is decoded in vain."""
_HELD_DELTAS: Final = 65_536
"""Deltas that all runs of a merge together are read ahead; but each at least one."""
_HELD_BYTES: Final = 32 << 20
"""Bytes of records that all runs of a merge together are read ahead."""
_PAGE_BYTES: Final = 8 << 20
"""A page ends early when so many bytes of records were read for it."""
_ENTRIES: Final = 256
"""Index entries of one level that are read at a time, but for more that share the last one's timestamp."""

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

    def decode_part(self, source: str, key: bytes, value: bytes, after: int, until: int) -> tuple[list[Delta], int]:
        """Decode deltas with after < seq <= until of the block under `key`; return them and their records' bytes.

        Raises `StoreCorrupt` naming the key.
        """
        ...

    def seq_after(self, key: bytes, value: bytes, timestamp: int) -> tuple[int, int]:
        """In the block under `key`: the least seq with a later timestamp (one more than its last, if none), its last.

        Raises `StoreCorrupt` naming the key.
        """
        ...

    def time_entry(self, key: bytes, value: bytes) -> TimeEntry:
        """Parse an entry of the time index, or raise `StoreCorrupt` naming it."""
        ...


def missing(store: Blocks, source: str, seq: int) -> BelowFloor | StoreCorrupt:
    """What to raise where (source, seq) should stand and does not: it was dropped, or it is lost."""
    row = store.row(source)
    if row is not None and seq <= row[1].floor:
        return BelowFloor({source: row[1].floor}, {source: seq - 1})
    return StoreCorrupt(f"{DELTAS}: ({source!r}, {seq}) is missing")


# ------------------------------------------------------------------------------------------------------- by source


class Run:
    """Reads one source upwards: what is wanted of it, and what is decoded already."""

    __slots__ = ("ahead", "held", "next", "source", "source_no", "store", "until", "until_timestamp")

    def __init__(self, store: Blocks, source: str, source_no: int, after: int, until: int) -> None:
        self.store = store
        self.source = source
        self.source_no = source_no
        self.next = after + 1
        """Seq of the next delta to give out."""
        self.until = until
        self.until_timestamp = TIMESTAMP_MAX
        """What is later is not wanted either, and not read beyond its block."""
        self.ahead = _AHEAD_FIRST
        """Deltas to hold after the next load: more each time."""
        self.held: list[Delta] = []
        """Decoded deltas from `next` on."""

    @property
    def done(self) -> bool:
        """Whether all that was wanted has been given out."""
        return self.next > self.until

    @property
    def more(self) -> bool:
        """Whether more is wanted than is decoded."""
        return self.next + len(self.held) <= self.until

    def load(self, view: View, count: int, size_bytes: int) -> int:
        """Decode more unless enough is held: until `count` are, or `size_bytes` were read. Returns the bytes read."""
        count = min(count, self.ahead)
        if len(self.held) > count // 4 or not self.more or 4 * sum(len(d.record) for d in self.held) > size_bytes:
            return 0
        held, read = self.held.copy(), 0
        need = self.next + len(held)
        for key, value in self._blocks(view, need):
            last = min(need - 1 + count - len(held), self.until)
            part, size = self.store.decode_part(self.source, key, value, need - 1, last)
            if not part or part[0].seq != need:
                break
            held += part
            need += len(part)
            read += size
            full = len(held) >= count or read >= size_bytes
            if full or need > self.until or part[-1].timestamp >= self.until_timestamp:
                self.held = held
                self.ahead = 2 * count
                return read
        raise missing(self.store, self.source, need)

    def _blocks(self, view: View, seq: int) -> Iterator[KeyValue]:
        """The block that holds `seq`, and those behind it."""
        first = view.last(DELTAS, keys.block_key(self.source_no, seq), keys.block_key(self.source_no, 0))
        if first is not None:
            yield first
        begin, end = keys.block_key(self.source_no, seq + 1), keys.block_key(self.source_no, self.until + 1)
        yield from view.scan(DELTAS, begin, end)

    def give(self, count: int) -> list[Delta]:
        """Give out the next `count` decoded deltas."""
        given = self.held[:count]
        self.held = self.held[count:]
        self.next += len(given)
        return given


class SourceScan:
    """Deltas of one source, upwards or downwards."""

    def __init__(self, store: Blocks, source: str, after: int, until: int, reverse: bool) -> None:
        row = store.row(source)
        self._store, self._source, self._reverse = store, source, reverse
        self._source_no = row[0] if row is not None else 0
        self._after = max(after, 0)
        self._until = min(until, row[1].seq) if row is not None else 0

    def page(self, count: int) -> Sequence[Delta]:
        if self._after >= self._until:
            return []
        with self._store.view() as view:
            return self._down(view, max(count, 1)) if self._reverse else self._up(view, max(count, 1))

    def _up(self, view: View, count: int) -> Sequence[Delta]:
        run = Run(self._store, self._source, self._source_no, self._after, self._until)
        run.ahead = count
        run.load(view, count, _PAGE_BYTES)
        self._after = run.held[-1].seq
        return run.held

    def _down(self, view: View, count: int) -> Sequence[Delta]:
        found, need, read = list[Delta](), self._until, 0
        begin, end = keys.block_key(self._source_no, 0), keys.block_key(self._source_no, need + 1)
        for key, value in view.scan(DELTAS, begin, end, reverse=True):
            after = max(self._after, need - count + len(found))
            part, size = self._store.decode_part(self._source, key, value, after, need)
            if not part or part[-1].seq != need:
                break
            found += reversed(part)
            need = part[0].seq - 1
            read += size
            if need == self._after or len(found) >= count or read >= _PAGE_BYTES:
                self._until = need
                return found
        raise missing(self._store, self._source, need)


# ----------------------------------------------------------------------------------------------- by (timestamp, source)


class MergedScan:
    """Deltas of many runs, by (timestamp, source). A subclass says which runs, and when their time has come."""

    def __init__(self, store: Blocks) -> None:
        self._store = store
        self._new: list[Run] = []
        """Runs whose next timestamp is not known."""
        self._heap: list[tuple[int, str, Run]] = []
        """All other runs that are not done, by the place of their next delta."""
        self._read_bytes = 0
        """Bytes of records read so far."""
        self._ready: list[Delta] = []
        self._given = 0
        """How many of `_ready` were given out."""

    def page(self, count: int) -> Sequence[Delta]:
        count = max(count, 1)
        if len(self._ready) - self._given < count and not self._ended():
            with self._store.view() as view:
                self._fill(view, count)
        start, self._given = self._given, min(self._given + count, len(self._ready))
        return self._ready[start : self._given]

    def _fill(self, view: View, count: int) -> None:
        """Add windows to `_ready` until that has `count` deltas to give, or those of many bytes."""
        self._ready, self._given = self._ready[self._given :], 0
        enough = self._read_bytes + _PAGE_BYTES
        while not self._ended() and (not self._ready or (len(self._ready) < count and self._read_bytes < enough)):
            self._ready += self._advance(view)

    def _ended(self) -> bool:
        """Whether nothing is left to read."""
        return not self._heap and not self._new

    def _advance(self, view: View) -> list[Delta]:
        """Go one step on; return what can be given out, maybe nothing yet."""
        return self._window(view, TIMESTAMP_MAX)

    def _share(self) -> tuple[int, int]:
        """How many deltas, and of how many bytes, one run may be read ahead."""
        runs = max(1, len(self._heap) + len(self._new))
        return max(1, min(_AHEAD, _HELD_DELTAS // runs)), _HELD_BYTES // runs

    def _place_new(self, view: View) -> None:
        """Learn the next timestamp of the runs where it is not known."""
        count, size_bytes = self._share()
        while self._new:
            run = self._new[-1]
            read = run.load(view, count, size_bytes)
            self._read_bytes += read
            if run.held:
                heappush(self._heap, (run.held[0].timestamp, run.source, run))
            if read > 2 * size_bytes:
                run.held = []  # too heavy to wait decoded; read again when its turn comes
            del self._new[-1]

    def _window(self, view: View, limit: int) -> list[Delta]:
        """Give out what comes next up to timestamp `limit`, as far as it is decoded."""
        self._place_new(view)
        share = self._share()
        end, turn = (limit + 1, ""), list[tuple[int, str, Run]]()
        enough = self._read_bytes + _PAGE_BYTES
        try:
            while self._heap and self._heap[0][:2] <= end:
                if turn and self._read_bytes >= enough:
                    end = self._heap[0][:2]
                    break
                turn.append(heappop(self._heap))
                run = turn[-1][2]
                self._read_bytes += run.load(view, *share)
                if run.more:
                    end = min(end, (run.held[-1].timestamp, run.source))
        except BaseException:
            for place in turn:
                heappush(self._heap, place)
            raise
        return in_order([self._give(run, *end) for _, _, run in turn])

    def _give(self, run: Run, timestamp: int, source: str) -> list[Delta]:
        """What a run holds up to a place; the run waits for its next turn."""
        given = run.give(bisect_right(run.held, timestamp - (run.source > source), key=_timestamp))
        if run.held:
            heappush(self._heap, (run.held[0].timestamp, run.source, run))
        elif not run.done:
            self._new.append(run)
        return given


class SinceScan(MergedScan):
    """What a version vector lacks."""

    def __init__(self, store: Blocks, after: Mapping[str, int], until: Mapping[str, int]) -> None:
        super().__init__(store)
        for source, high in until.items():
            row = store.row(source)
            low = max(after.get(source, 0), 0)
            if row is not None and low < min(high, row[1].seq):
                self._new.append(Run(store, source, row[0], low, min(high, row[1].seq)))


class _TimeRun(Run):
    """What one source has within an interval of time; what was dropped of it meanwhile is skipped."""

    __slots__ = ("after_timestamp",)

    def __init__(self, store: Blocks, source: str, seq: int, interval: tuple[int, int]) -> None:
        """`seq` is one to begin at, not above the first that is wanted."""
        row = store.row(source)
        assert row is not None, "a source with a name has a row"
        if seq > row[1].seq:
            raise StoreCorrupt(f"{BY_TIME}: ({source!r}, {seq}) is missing: the source's head is {row[1].seq}")
        super().__init__(store, source, row[0], seq - 1, row[1].seq)
        self.after_timestamp, self.until_timestamp = interval

    def load(self, view: View, count: int, size_bytes: int) -> int:
        try:
            if self.after_timestamp >= 0:
                self._skip(view)
            read = super().load(view, count, size_bytes)
        except BelowFloor as dropped:
            if self.held:
                return 0  # first these; then what was dropped is skipped
            self.next = dropped.floor[self.source] + 1
            return self.load(view, count, size_bytes)
        self._cut()
        return read

    def _skip(self, view: View) -> None:
        """Go to the first delta later than `after_timestamp`."""
        seq = self.next
        while seq <= self.until:
            found = view.last(DELTAS, keys.block_key(self.source_no, seq), keys.block_key(self.source_no, 0))
            first, end = self.store.seq_after(*found, self.after_timestamp) if found is not None else (0, 0)
            if end < seq:
                raise missing(self.store, self.source, seq)
            seq = max(seq, first)
            if seq <= end:
                break
        self.next, self.after_timestamp = seq, -1

    def _cut(self) -> None:
        """Let go of what is later than `until_timestamp`."""
        if self.held and self.held[-1].timestamp > self.until_timestamp:
            del self.held[bisect_right(self.held, self.until_timestamp, key=_timestamp) :]
            self.until = self.next + len(self.held) - 1


class TimeScan(MergedScan):
    """Deltas of an interval of time. The index says which sources have any, and where each begins."""

    def __init__(self, store: Blocks, after: int, until: int) -> None:
        super().__init__(store)
        self._interval = max(after, -1), min(until, TIMESTAMP_MAX)
        self._frontier = -1 if after < until else self._interval[1]
        """Every source with a block that starts up to here and reaches into the interval is known."""
        self._known: set[int] = set()
        self._ahead = _AHEAD

    def _ended(self) -> bool:
        return self._frontier >= self._interval[1] and super()._ended()

    def _advance(self, view: View) -> list[Delta]:
        self._place_new(view)
        if self._heap and self._heap[0][0] <= self._frontier:
            return self._window(view, self._frontier)
        if self._frontier < self._interval[1]:
            self._discover(view)
        return []

    def _discover(self, view: View) -> None:
        """Move the frontier on; begin a run for each source that comes in sight."""
        entries, frontier = overlapping(self._store, view, self._frontier, *self._interval)
        for entry in entries:
            if entry.source_no not in self._known:
                self._new.append(_TimeRun(self._store, self._store.name(entry.source_no), entry.seq, self._interval))
                self._known.add(entry.source_no)
        self._frontier = frontier
        self._trim()

    def _trim(self) -> None:
        """With twice the runs, each keeps half as much."""
        count = self._share()[0]
        if count <= self._ahead // 2:
            self._ahead = count
            for _, _, run in self._heap:
                del run.held[count:]


# ------------------------------------------------------------------------------------------------------ the time index


def overlapping(store: Blocks, view: View, frontier: int, after: int, until: int) -> tuple[list[TimeEntry], int]:
    """Some next entries of blocks that touch (after, until] and start behind `frontier`; and up to where they are all.

    In the order of their first timestamps. The latter is beyond `frontier`, and `until` once there are no more.
    """
    found: list[TimeEntry] = []
    level = 0
    while (head := next(view.scan(BY_TIME, bytes((level,))), None)) is not None:
        store.time_entry(*head)
        level = head[0][0]
        begin = keys.time_bound(level, max(0, frontier + 1, after + 1 - (1 << level)))
        left, first = _ENTRIES, until
        for key, value in view.scan(BY_TIME, begin, keys.time_bound(level, until + 1)):
            entry = store.time_entry(key, value)
            if left <= 0 and entry.first > first:
                until = first
                break
            if entry.last > after:
                found.append(entry)
                left, first = left - 1, entry.first
        level += 1
    found = [entry for entry in found if entry.first <= until]
    found.sort(key=attrgetter("first"))
    return found, until


def newest(store: Blocks, count: int) -> list[Delta]:
    """The newest deltas, at most `count`: blocks from the end, so of each source a suffix."""
    with store.view() as view:
        parts: list[list[Delta]] = []
        for entry in _newest_entries(store, view, count):
            source, wanted = store.name(entry.source_no), min(count, entry.count)
            value = view.last(DELTAS, entry.block_key, entry.block_key)
            until = entry.seq + entry.count - 1
            part = store.decode_part(source, *value, until - wanted, until)[0] if value is not None else []
            if len(part) != wanted:
                raise StoreCorrupt(f"{BY_TIME}: no block of {entry.count} deltas at ({source!r}, {entry.seq})")
            parts.append(part)
            count -= wanted
    return in_order(parts)


def _newest_entries(store: Blocks, view: View, count: int) -> list[TimeEntry]:
    """Entries with the latest first timestamps that hold `count` deltas together, the latest first."""
    found: list[TimeEntry] = []
    least = 0
    for level in range(keys.LEVELS if count > 0 else 0):
        begin, end, left = keys.time_bound(level, least), bytes((level + 1,)), count
        for key, value in view.scan(BY_TIME, begin, end, reverse=True):
            found.append(store.time_entry(key, value))
            left -= found[-1].count
            if left <= 0:
                break
        found.sort(key=attrgetter("first"), reverse=True)
        left = count
        for index, entry in enumerate(found):
            left -= entry.count
            if left <= 0:
                least = entry.first
                del found[index + 1 :]
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
