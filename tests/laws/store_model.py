"""What a delta store must hold, from the fewest lines: lists, sorted anew for each question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from deltalog import chain
from deltalog.block import STORED
from deltalog.codec import build, decode, erase
from deltalog.delta import Delta
from deltalog.keys import Head
from deltalog.store import DeltaStore, Erasure, Run, Scan
from deltalog.version import Dot

END = 2**64 - 1
"""The last timestamp."""


def drained(scan: Scan, *sizes: int) -> list[Delta]:
    """All pages of a scan, asked for in these sizes by turns. No page but the last may be empty."""
    found: list[Delta] = []
    turn = 0
    while page := scan.page(sizes[turn % len(sizes)] if sizes else 1000):
        found += page
        turn += 1
    assert not scan.page(1), "after its end a scan has nothing more"
    return found


def place(delta: Delta) -> tuple[int, str]:
    """Where a delta stands in the order of time."""
    return delta.timestamp, delta.source


@attrs.define
class SourceModel:
    """One source: all that was ever written of it."""

    written: list[Delta] = attrs.field(factory=list)
    """As they stand now: erased ones without their payload."""
    hashes: list[bytes] = attrs.field(factory=list)
    floor: int = 0

    @property
    def stored(self) -> list[Delta]:
        return self.written[self.floor :]

    def head(self, source: str) -> Head:
        last = self.written[-1]
        floor_hash = self.hashes[self.floor - 1] if self.floor else chain.genesis(source)
        size = sum(len(delta.record) for delta in self.stored)
        return Head(last.seq, last.timestamp, self.hashes[-1], self.floor, floor_hash, size)


class StoreModel:
    """All sources, in the order they came, and the notes about erasures."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceModel] = {}
        self.notes: dict[Dot, Erasure] = {}
        self.annotated: dict[bytes, bytes] = {}
        self.originals: dict[Dot, Delta] = {}
        """What erased deltas were."""

    def copy(self) -> StoreModel:
        """One of the same contents, to be changed apart."""
        other = StoreModel()
        other.sources = {
            s: SourceModel([*held.written], [*held.hashes], held.floor) for s, held in self.sources.items()
        }
        other.notes, other.originals, other.annotated = dict(self.notes), dict(self.originals), dict(self.annotated)
        return other

    # ---- changes

    def run(self, source: str, timestamps: Sequence[int], payload: Any = "text", **fields: Any) -> Run:
        """A run that would follow on what is written of the source: one delta for each timestamp."""
        held = self.sources.get(source, SourceModel())
        first = len(held.written) + 1
        deltas = [build(source, first + n, time, payload, **fields) for n, time in enumerate(timestamps)]
        return run_of(deltas, held.hashes[-1] if held.hashes else chain.genesis(source))

    def write(self, runs: Iterable[Run]) -> None:
        for run in runs:
            held = self.sources.setdefault(run.source, SourceModel())
            held.written += deltas_of(run)
            held.hashes += run.hashes

    def truncate(self, floors: Mapping[str, int]) -> int:
        gone = 0
        for source, floor in floors.items():
            held = self.sources[source]
            gone += max(0, floor - held.floor)
            held.floor = max(floor, held.floor)
        return gone

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> None:
        held = self.sources[source]
        delta = held.written[seq - 1]
        if not delta.erased and seq > held.floor:
            self.originals[delta.dot] = delta
            held.written[seq - 1] = erase(delta, chain.payload_hash(delta))
            self.notes[delta.dot] = Erasure(source, seq, reason, timestamp)

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.annotated = {k: v for k, v in {**self.annotated, **changes}.items() if v is not None}

    # ---- questions

    def heads(self) -> dict[str, Head]:
        return {source: held.head(source) for source, held in self.sources.items()}

    def all(self) -> list[Delta]:
        """Everything stored, in the order of time."""
        return sorted((delta for held in self.sources.values() for delta in held.stored), key=place)

    def get(self, source: str, seq: int) -> Delta | None:
        return next((delta for delta in self.sources[source].stored if delta.seq == seq), None)

    def by_source(self, source: str, after: int, until: int) -> list[Delta]:
        return [delta for delta in self.sources[source].written if after < delta.seq <= until]

    def between(self, after: int, until: int) -> list[Delta]:
        return [delta for delta in self.all() if after < delta.timestamp <= until]

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> list[Delta]:
        wanted = [self.by_source(s, after.get(s, 0), seq) for s, seq in until.items() if s in self.sources]
        return sorted((delta for part in wanted for delta in part), key=place)

    def below_floor(self, after: Mapping[str, int], until: Mapping[str, int]) -> bool:
        """Whether some of `since(after, until)` was dropped."""
        return any(
            max(0, after.get(source, 0)) < min(until.get(source, 0), held.floor)
            for source, held in self.sources.items()
        )

    def seqs_at(self, timestamp: int) -> dict[str, int]:
        found = {
            source: max([held.floor, *(delta.seq for delta in held.stored if delta.timestamp <= timestamp)])
            for source, held in self.sources.items()
        }
        return {source: seq for source, seq in found.items() if seq}

    def erasures(self) -> list[Erasure]:
        return sorted(self.notes.values(), key=lambda note: (note.source, note.seq))

    def annotations(self, prefix: bytes = b"", after: bytes = b"") -> list[tuple[bytes, bytes]]:
        return sorted((k, v) for k, v in self.annotated.items() if k.startswith(prefix) and k > after)

    # ---- the store beside it

    def check(self, store: DeltaStore, *sizes: int) -> None:
        """Ask the store for all it holds, in each of the ways there are."""
        assert store.heads() == self.heads()
        assert list(store.heads()) == list(self.sources)
        assert drained(store.between(-1, END), *sizes) == self.all()
        heads = {source: len(held.written) for source, held in self.sources.items()}
        floors = {source: held.floor for source, held in self.sources.items()}
        assert drained(store.since(floors, heads), *sizes) == self.all()
        for source, held in self.sources.items():
            assert drained(store.by_source(source, held.floor, END), *sizes) == held.stored
        assert list(store.erasures()) == self.erasures()
        assert list(store.annotations()) == self.annotations()
        self.check_sizes(store)

    def check_sizes(self, store: DeltaStore) -> None:
        sizes, deltas = store.sizes(), self.all()
        held = len(self.sources), len(deltas), sum(len(delta.record) for delta in deltas)
        assert (sizes.sources, sizes.deltas, sizes.record_bytes) == held
        assert bool(sizes.blocks) == bool(deltas)
        assert sizes.blocks <= len(deltas)

    def check_newest(self, newest: Sequence[Delta], count: int) -> None:
        assert len(newest) <= max(0, count)
        assert bool(newest) == (count > 0 and bool(self.all()))
        assert list(newest) == sorted(newest, key=place)
        for source, held in self.sources.items():
            mine = [delta for delta in newest if delta.source == source]
            assert mine == held.stored[len(held.stored) - len(mine) :], "of each source a suffix"


def run_of(deltas: Sequence[Delta], previous: bytes) -> Run:
    """The run of consecutive deltas behind the chain hash `previous`."""
    records = [delta.record for delta in deltas]
    return Run(deltas[0].source, deltas[0].seq, records, previous, chain.extend(previous, records))


def deltas_of(run: Run) -> list[Delta]:
    """The deltas of a run."""
    return [decode(run.source, record, STORED) for record in run.records]
