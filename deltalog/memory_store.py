"""DeltaStore in a dictionary: for tests, simulations and logs that need not outlive their process.

It keeps the contract, not the format: no blocks, no index, no bytes on disk. What `sync` has seen is remembered apart,
so that `crash` can throw away the rest, as a power loss would. A source is copied before it is changed, so `sync`
itself copies no deltas.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import attrs

from deltalog import chain, codec
from deltalog.block import STORED as _STORED
from deltalog.delta import Delta
from deltalog.errors import BelowFloor, StoreClosed, UsageError
from deltalog.keys import Head
from deltalog.store import Annotation, Erasure, Run, StoreSizes, check_annotations


@attrs.define
class _Contents:
    """All that a store holds."""

    sources: dict[str, _Source] = attrs.field(factory=dict)
    erasures: dict[tuple[str, int], Erasure] = attrs.field(factory=dict)
    annotations: dict[bytes, bytes] = attrs.field(factory=dict)
    writes: int = 0

    def copy(self) -> _Contents:
        return _Contents(dict(self.sources), dict(self.erasures), dict(self.annotations), self.writes)


class MemoryStore:
    """A `DeltaStore` whose contents end with the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._now = _Contents()
        self._synced = _Contents()
        self._closed = False

    def heads(self) -> Mapping[str, Head]:
        with self._open():
            return {name: source.head for name, source in self._now.sources.items()}

    def seq(self, source: str) -> int:
        """Highest seq of a source, 0 if nothing of it was ever stored."""
        held = self._now.sources.get(source)
        return 0 if held is None else held.head.seq

    def write(self, runs: Sequence[Run]) -> None:
        with self._open():
            staged: dict[str, _Source] = {}
            for run in runs:
                if run.source not in staged:
                    held = self._now.sources.get(run.source)
                    staged[run.source] = _Source.empty(run.source) if held is None else held.copy()
                staged[run.source].extend(run)
            self._now.sources.update(staged)
            self._now.writes += 1

    def sync(self) -> int:
        with self._open():
            self._synced = self._now.copy()
            return self._now.writes

    def crash(self) -> None:
        """Forget what was not synced, as a power loss would."""
        with self._lock:
            self._now = self._synced.copy()
            self._closed = False

    def get(self, source: str, seq: int) -> Delta | None:
        with self._open():
            held = self._now.sources.get(source)
            if held is None or not held.head.floor < seq <= held.head.seq:
                return None
            return held.deltas[seq - held.head.floor - 1]

    def hash_at(self, source: str, seq: int) -> bytes:
        with self._open():
            if seq == 0:
                return chain.genesis(source)
            held = self._now.sources.get(source) or _Source.empty(source)
            head = held.head
            if not 0 < seq <= head.seq:
                raise UsageError(f"there is no delta {source!r}:{seq}; the source's head is {head.seq}")
            if seq < head.floor:
                raise BelowFloor({source: head.floor}, {source: seq})
            return held.hashes[seq - head.floor - 1] if seq > head.floor else head.floor_hash

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> _SeqScan:
        return _SeqScan(self, source, after, until, reverse)

    def between(self, after: int, until: int) -> _TimeScan:
        return _TimeScan(self, after, until)

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> _SinceScan:
        return _SinceScan(self, after, until)

    def newest(self, count: int) -> Sequence[Delta]:
        with self._open():
            held = _in_order([delta for source in self._now.sources.values() for delta in source.deltas])
            return held[max(0, len(held) - max(0, count)) :]

    def seqs_at(self, timestamp: int) -> Mapping[str, int]:
        with self._open():
            found: dict[str, int] = {}
            for name, source in self._now.sources.items():
                seq = source.head.floor + bisect_right(source.deltas, timestamp, key=_timestamp)
                if seq:
                    found[name] = seq
            return found

    def truncate(self, floors: Mapping[str, int]) -> int:
        with self._open():
            for name, floor in floors.items():
                held = self._now.sources.get(name)
                if held is None or floor > held.head.seq:
                    raise UsageError(f"floor {floor} of {name!r} is above its head {held.head.seq if held else 0}")
            return sum(self._own(name).truncate(floor) for name, floor in floors.items())

    def _own(self, source: str) -> _Source:
        """A source of which nobody else holds the same object, to be changed."""
        self._now.sources[source] = own = self._now.sources[source].copy()
        return own

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> Delta | None:
        with self._open():
            delta = self.get(source, seq)
            if delta is None or delta.erased:
                return delta
            erased = codec.erase(delta, chain.payload_hash(delta))
            self._own(source).replace(erased)
            self._now.erasures[source, seq] = Erasure(source, seq, reason, timestamp)
            self.sync()
            return erased

    def erasures(self) -> Sequence[Erasure]:
        with self._open():
            return [self._now.erasures[dot] for dot in sorted(self._now.erasures)]

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        check_annotations(changes)
        with self._open():
            for key, value in changes.items():
                if value is None:
                    self._now.annotations.pop(key, None)
                else:
                    self._now.annotations[key] = value
            self._now.writes += 1

    def annotation(self, key: bytes) -> bytes | None:
        with self._open():
            return self._now.annotations.get(key)

    def annotations(self, prefix: bytes = b"", after: bytes = b"", limit: int | None = None) -> Sequence[Annotation]:
        with self._open():
            found = sorted((k, v) for k, v in self._now.annotations.items() if k.startswith(prefix) and k > after)
            return found[:limit]

    def compact(self, *, if_needed: bool = False) -> None:  # noqa: ARG002  # there is never anything to do
        with self._open():
            pass

    def sizes(self) -> StoreSizes:
        with self._open():
            heads = [source.head for source in self._now.sources.values()]
            count = sum(head.count for head in heads)
            return StoreSizes(len(heads), count, sum(head.size_bytes for head in heads), count, 0)

    def reopen(self) -> None:
        with self._lock:
            self._closed = False

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self.sync()
                self._closed = True

    def page(self, source: str, after: int, until: int) -> list[Delta]:
        """Deltas of a source with after < seq <= until; `BelowFloor` if some of them were dropped."""
        with self._open():
            held = self._now.sources.get(source)
            if held is None:
                return []
            floor = held.head.floor
            if after < floor and after < until:
                raise BelowFloor({source: floor}, {source: after})
            return held.deltas[after - floor : max(0, until - floor)]

    def in_time(self, after: int, until: int) -> list[Delta]:
        """Deltas with after < timestamp <= until, in order."""
        with self._open():
            found: list[Delta] = []
            for source in self._now.sources.values():
                low = bisect_right(source.deltas, after, key=_timestamp)
                found += source.deltas[low : bisect_right(source.deltas, until, key=_timestamp)]
            return _in_order(found)

    def _open(self) -> threading.RLock:
        if self._closed:
            raise StoreClosed("the store is closed")
        return self._lock


@attrs.define
class _Source:
    head: Head
    deltas: list[Delta]
    hashes: list[bytes]
    """Chain hash behind each delta."""

    @classmethod
    def empty(cls, name: str) -> _Source:
        start = chain.genesis(name)
        return cls(Head(hash=start, floor_hash=start), [], [])

    def copy(self) -> _Source:
        return _Source(self.head, list(self.deltas), list(self.hashes))

    def extend(self, run: Run) -> None:
        assert run.records and run.seq == self.head.seq + 1 and run.previous == self.head.hash
        deltas = [codec.decode(run.source, record, _STORED) for record in run.records]
        self.deltas.extend(deltas)
        self.hashes.extend(run.hashes)
        size = self.head.size_bytes + sum(map(len, run.records))
        self.head = attrs.evolve(
            self.head, seq=run.last, timestamp=deltas[-1].timestamp, hash=run.hashes[-1], size_bytes=size
        )

    def truncate(self, floor: int) -> int:
        gone = self.deltas[: max(0, floor - self.head.floor)]
        if gone:
            floor_hash = self.hashes[len(gone) - 1]
            size = self.head.size_bytes - sum(len(delta.record) for delta in gone)
            self.head = attrs.evolve(self.head, floor=floor, floor_hash=floor_hash, size_bytes=size)
            del self.deltas[: len(gone)], self.hashes[: len(gone)]
        return len(gone)

    def replace(self, delta: Delta) -> None:
        index = delta.seq - self.head.floor - 1
        change = len(delta.record) - len(self.deltas[index].record)
        self.deltas[index] = delta
        self.head = attrs.evolve(self.head, size_bytes=self.head.size_bytes + change)


def _timestamp(delta: Delta) -> int:
    return delta.timestamp


def _in_order(deltas: list[Delta]) -> list[Delta]:
    return sorted(deltas, key=lambda delta: (delta.timestamp, delta.source))


class _SeqScan:
    def __init__(self, store: MemoryStore, source: str, after: int, until: int, reverse: bool) -> None:
        self._store, self._source, self._reverse = store, source, reverse
        self._after, self._until = max(after, 0), min(until, store.seq(source))

    def page(self, count: int) -> Sequence[Delta]:
        count = max(count, 1)
        deltas = self._store.page(self._source, self._after, self._until)
        if self._reverse:
            page = deltas[::-1][:count]
            self._until = page[-1].seq - 1 if page else self._after
        else:
            page = deltas[:count]
            self._after = page[-1].seq if page else self._until
        return page


class _TimeScan:
    def __init__(self, store: MemoryStore, after: int, until: int) -> None:
        self._store, self._after, self._until = store, after, until

    def page(self, count: int) -> Sequence[Delta]:
        count = max(count, 1)
        deltas = self._store.in_time(self._after, self._until)
        if len(deltas) > count:
            end = deltas[count - 1].timestamp
            deltas = deltas[: bisect_right(deltas, end, key=_timestamp)]
        self._after = deltas[-1].timestamp if deltas else self._until
        return deltas


class _SinceScan:
    def __init__(self, store: MemoryStore, after: Mapping[str, int], until: Mapping[str, int]) -> None:
        self._store = store
        self._wants = {
            source: (max(after.get(source, 0), 0), min(seq, store.seq(source))) for source, seq in until.items()
        }

    def page(self, count: int) -> Sequence[Delta]:
        found: list[Delta] = []
        for source, (after, until) in self._wants.items():
            found += self._store.page(source, after, until)
        page = _in_order(found)[: max(count, 1)]
        for delta in page:
            self._wants[delta.source] = (delta.seq, self._wants[delta.source][1])
        return page
