"""The ring: bounded room in memory for the newest deltas; evicts only what is stored (invariant I7).

It holds encoded records, the same bytes that go to the store: half the memory of objects, and nothing for Python's
cyclic garbage collector to look at, which would cost an append as much as encoding does.

Every delta enters here first and gets an *ordinal*: 1 for the first that this log took in since it was opened, then
one more for each, whatever its source. The writer stores in that order, so three ordinals say where everything stands:

    first <= stored + 1 <= last + 1       first .. stored may be evicted, stored + 1 .. last must be written

The file knows no store, no task, no clock. It belongs to one thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import attrs

from deltalog.errors import UsageError

_EVICT_SHARE: Final = 16
"""Evict a sixteenth of the room at a time: the cost of moving the rest is then shared by thousands of appends."""


@attrs.frozen
class RingStatistics:
    """The ring at one moment."""

    deltas: int
    bytes: int
    pending: int
    """Deltas that are not stored yet."""
    deltas_max: int
    bytes_max: int


class Pending(NamedTuple):
    """Consecutive deltas of one source that are to be stored."""

    source: str
    seq: int
    """Seq of the first."""
    records: list[bytes]


class Ring:
    """Newest deltas by arrival and by source; lookup by dot is O(1)."""

    __slots__ = ("_arrivals", "_bytes", "_evicting", "_runs", "bytes_max", "deltas_max", "first", "stored")

    def __init__(self, deltas_max: int = 65_536, bytes_max: int = 64 << 20) -> None:
        """`deltas_max` deltas, `bytes_max` bytes of records; a single larger record still fits an empty ring."""
        if deltas_max < 1 or bytes_max < 1:
            raise UsageError("ring: deltas_max and bytes_max must be at least 1")
        self.deltas_max = deltas_max
        self.bytes_max = bytes_max
        self.first = 1
        """Ordinal of the oldest delta held."""
        self.stored = 0
        """Ordinal of the newest delta that the store holds."""
        self._arrivals: list[str] = []  # source of the delta with the ordinal `first + index`
        self._runs: dict[str, _Run] = {}
        self._bytes = 0
        self._evicting = False

    @property
    def last(self) -> int:
        """Ordinal of the newest delta."""
        return self.first + len(self._arrivals) - 1

    @property
    def pending(self) -> int:
        """Number of deltas that are not stored yet."""
        return self.last - self.stored

    def has_room(self, size_bytes: int = 0) -> bool:
        """Whether one more delta of this size fits, after evicting what may go."""
        if len(self._arrivals) < self.deltas_max and self._bytes + size_bytes <= self.bytes_max:
            return True
        if self._evicting:
            return False  # a finalizer that runs meanwhile pushes: it must do without
        self._evicting = True
        try:
            self._evict(size_bytes)
        finally:
            self._evicting = False
        return not self._arrivals or (
            len(self._arrivals) < self.deltas_max and self._bytes + size_bytes <= self.bytes_max
        )

    def push(self, source: str, seq: int, record: bytes) -> bool:
        """Take in the next delta of its source; False if there is no room."""
        size = len(record)
        if (len(self._arrivals) >= self.deltas_max or self._bytes + size > self.bytes_max) and not self.has_room(size):
            return False
        run = self._runs.get(source)
        if run is None:
            run = self._runs[source] = _Run(seq)
        assert seq == run.first + len(run.records), "a source is dense"
        run.records.append(record)
        self._arrivals.append(source)
        self._bytes += size
        return True

    def fill(self, deltas: Iterable[tuple[str, int, bytes]]) -> None:
        """Start with (source, seq, record) of stored deltas; only for a ring that nothing was pushed to.

        Of more than there is room for, the last stay.
        """
        assert not self._arrivals and self.first == 1
        for source, seq, record in deltas:
            self.push(source, seq, record)
            self._runs[source].stored += 1
            self.stored += 1
        self.first, self.stored = 1 - len(self._arrivals), 0

    def unstored(self, count: int, size_bytes: int) -> tuple[list[Pending], int]:
        """The next deltas to store, by source, and how many: at most `count` and `size_bytes`, but at least one."""
        start = self.stored + 1 - self.first
        while True:
            arrivals = self._arrivals[start : start + count]
            pending = [self._runs[source].pending(source, number) for source, number in _counted(arrivals).items()]
            size = sum(sum(map(len, part.records)) for part in pending)
            if size <= size_bytes or len(arrivals) <= 1:
                return pending, len(arrivals)
            count = max(1, min(len(arrivals) * size_bytes // size, len(arrivals) // 2))

    def mark_stored(self, count: int) -> None:
        """The next `count` pending deltas are in the store now."""
        assert 0 <= count <= self.pending
        start = self.stored + 1 - self.first
        self._advance(self._arrivals[start : start + count])
        self.stored += count

    def _advance(self, arrivals: list[str]) -> None:
        for source, number in _counted(arrivals).items():
            self._runs[source].stored += number

    def get(self, source: str, seq: int) -> bytes | None:
        """The record with this dot, if it is here."""
        run = self._runs.get(source)
        if run is None or not run.first <= seq < run.first + len(run.records):
            return None
        return run.records[seq - run.first]

    def run(self, source: str, after: int, until: int) -> list[bytes]:
        """Records of a source with after < seq <= until that are here, ascending."""
        run = self._runs.get(source)
        if run is None:
            return []
        return run.records[max(0, after + 1 - run.first) : max(0, until + 1 - run.first)]

    def reaches(self, source: str) -> int:
        """Lowest seq of the source that is here, 0 if none is."""
        run = self._runs.get(source)
        return run.first if run is not None and run.records else 0

    def unstored_after(self, source: str) -> int:
        """Seq of the source up to which the store holds what is here; 0 if nothing of it is here."""
        run = self._runs.get(source)
        return run.first + run.stored - 1 if run is not None else 0

    def since(self, ordinal: int, count: int) -> list[str] | None:
        """Sources of the next `count` deltas that arrived after `ordinal`, by arrival; None if some were evicted."""
        start = ordinal + 1 - self.first
        return self._arrivals[start : start + count] if start >= 0 else None

    def replace(self, source: str, seq: int, record: bytes) -> None:
        """Put an erased record in the place of the one with its dot, if that is here."""
        old = self.get(source, seq)
        if old is not None:
            run = self._runs[source]
            run.records[seq - run.first] = record
            self._bytes += len(record) - len(old)

    def drop_below(self, source: str, floor: int) -> None:
        """Forget the deltas of a source with seq <= floor: retention dropped them from the store."""
        run = self._runs.get(source)
        if run is None or run.first > floor:
            return
        gone = floor + 1 - run.first
        assert gone <= run.stored, "only stored deltas are dropped"
        limit = self.stored + 1 - self.first
        left, kept = gone, []
        for arrived in self._arrivals[:limit]:
            if arrived == source and left:
                left -= 1
            else:
                kept.append(arrived)
        self._arrivals[:limit] = kept
        self.first += gone
        size = run.drop(gone)  # as in `_evict`
        self._bytes -= size

    def statistics(self) -> RingStatistics:
        """How full it is."""
        return RingStatistics(len(self._arrivals), self._bytes, self.pending, self.deltas_max, self.bytes_max)

    def _evict(self, size_bytes: int) -> None:
        """Drop the oldest stored deltas: a share of the room at a time, until `size_bytes` more fit or none is left."""
        share = max(1, self.deltas_max // _EVICT_SHARE)
        while (limit := self.stored + 1 - self.first) > 0:
            count = min(limit, share)
            for source, gone in _counted(self._arrivals[:count]).items():
                run = self._runs[source]
                size = run.drop(gone)  # a finalizer may push meanwhile: read the sum only now
                self._bytes -= size
                if not run.records:
                    del self._runs[source]
            del self._arrivals[:count]
            self.first += count
            if self._bytes + size_bytes <= self.bytes_max:
                return


def _counted(arrivals: list[str]) -> Mapping[str, int]:
    """How many deltas of each source; mostly they are all of one."""
    size = len(arrivals)
    if size and arrivals.count(arrivals[0]) == size:
        return {arrivals[0]: size}
    return Counter(arrivals)


class _Run:
    """Records of one source that the ring holds: dense, from seq `first`; the first `stored` of them are stored."""

    __slots__ = ("first", "records", "stored")

    def __init__(self, first: int) -> None:
        self.first = first
        self.records: list[bytes] = []
        self.stored = 0

    def pending(self, source: str, count: int) -> Pending:
        return Pending(source, self.first + self.stored, self.records[self.stored : self.stored + count])

    def drop(self, count: int) -> int:
        """Forget the first `count`; return their bytes."""
        size = sum(map(len, self.records[:count]))
        del self.records[:count]
        self.first += count
        self.stored -= count
        return size
