"""DeltaStore on RocksDB: records in blocks, time index and heads, changed in one batch (invariant I8).

Lives here: what becomes of a run on its way to disk, and the heads as they were last written. Reads that span blocks
stand in `rocks_scan`. Does not know: tasks, the ring, who appends, when to sync.

Owned by whoever writes (one thread at a time, under `_lock`): `_rows`, `_names`. Readers take one consistent view of
the database under the same lock and never hold it while they read. What rewrites blocks (truncate, erase, merge) holds
`_upkeep` from its look at them to its batch; `write` only adds blocks and does not wait for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice, pairwise
from types import MappingProxyType
from typing import Any, Final

import attrs

from deltalog import block, chain, codec, keys
from deltalog.codec import timestamp_of
from deltalog.delta import Delta
from deltalog.errors import (
    BelowFloor,
    StoreCorrupt,
    StoreFormatMismatch,
    UsageError,
)
from deltalog.failpoints import reach
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head, TimeEntry
from deltalog.profiles import FamilyProfile
from deltalog.rocks import Rocks
from deltalog.rocks_instance import RocksInstance
from deltalog.rocks_scan import SinceScan, SourceScan, TimeScan, missing, newest
from deltalog.rocks_values import Batch
from deltalog.rocks_view import KeyValue, View
from deltalog.store import Annotation, Erasure, Run, StoreSizes, check_annotations

FAMILIES: Final[Mapping[str, FamilyProfile]] = MappingProxyType(
    {
        DELTAS: FamilyProfile(block_bytes=64 << 10, bottommost_zstd_level=6),
        BY_TIME: FamilyProfile(block_bytes=8 << 10),
        SOURCES: FamilyProfile(block_bytes=8 << 10),
        META: FamilyProfile(block_bytes=4 << 10),
        SNAPSHOTS: FamilyProfile(block_bytes=64 << 10),
    }
)
"""Column families of the delta instance. Deltas: about four full blocks a page and zstd 6 at the bottom; measured on
short edits that takes 9 % less room than 32 KiB and zstd 3, at twice the cost of a compaction."""

_LOW32: Final = (1 << 32) - 1
_LOW64: Final = (1 << 64) - 1
_STEP_BLOCKS: Final = 256
"""Blocks that one batch of `truncate` drops: RocksDB's write holds the interpreter for about 0.2 ms."""


@attrs.define
class _Row:
    """A source as it stands in memory: its number and its head."""

    no: int
    head: Head


class RocksStore(RocksInstance):
    """A `DeltaStore` over one open RocksDB instance."""

    def __init__(self, open_db: Callable[[], Rocks], store_id: bytes | None = None) -> None:
        """Open with `open_db`, now and at each `reopen`. An empty database is initialised, under `store_id` if given.

        Raises `StoreFormatMismatch` for another format, `StoreCorrupt` if heads or meta are damaged.
        """
        super().__init__(open_db)
        self._rows: dict[str, _Row] = {}
        self._names: list[str] = []
        self._merged: dict[int, int] | None = None
        """Source number -> seq of the first block that may still grow together with later ones; None: not known yet."""
        self._garbage = False
        """Whether payloads were erased since the last compaction; what was dropped shows in the files."""
        self.rewrites = time.time_ns()
        """Another number after each `truncate` and `erase`, and at each open."""
        self.total = 0
        """Sum of the highest seqs of all sources: how many deltas were ever stored."""
        self._loaded(partial(self._load, store_id))

    # ------------------------------------------------------------------------------------------------ open, close

    def _load(self, store_id: bytes | None = None) -> None:
        """Read the rows of all sources; check the format. An empty database is initialised if there is a `store_id`."""
        stored = self.meta(keys.META_FORMAT)
        if stored is None and store_id is not None:
            self._initialise(store_id)
        elif stored is None:
            raise StoreCorrupt(f"{META}: {keys.META_FORMAT!r} is missing")
        elif stored != keys.FORMAT:
            raise StoreFormatMismatch(f"{self._db.path}: store format {stored!r}; this program knows {keys.FORMAT}")
        rows: dict[str, _Row] = {}
        for key, value in self._db.scan(SOURCES):
            source_no, source, head = self.checked(SOURCES, key, partial(keys.decode_head, key, value))
            if source_no != len(rows) or source in rows:
                raise StoreCorrupt(f"{SOURCES}: row {source_no} ({source!r}) stands where row {len(rows)} belongs")
            rows[source] = _Row(source_no, head)
        self._rows, self._names, self._merged = rows, list(rows), None
        self.total = sum(row.head.seq for row in rows.values())
        found = self.meta(keys.META_STORE_ID)
        if not isinstance(found, bytes):
            raise StoreCorrupt(f"{META}: {keys.META_STORE_ID!r} is missing")
        self.store_id = found

    def _initialise(self, store_id: bytes) -> None:
        for family in (DELTAS, BY_TIME, SOURCES, META):
            if next(self._db.scan(family), None) is not None:
                raise StoreCorrupt(f"{META}: {keys.META_FORMAT!r} is missing, though {family} holds data")
        batch = self._db.batch()
        batch.put(META, keys.META_FORMAT, keys.encode_meta(keys.META_FORMAT, keys.FORMAT))
        batch.put(META, keys.META_STORE_ID, keys.encode_meta(keys.META_STORE_ID, store_id))
        reach("store.initialise.before")
        self._db.write(batch)
        self._db.sync()
        reach("store.initialise.after")

    # ------------------------------------------------------------------------------------------------------ write

    def write(self, runs: Sequence[Run]) -> None:
        with self._lock:
            batch = self._db.batch()
            rows: dict[str, _Row] = {}
            numbers = count(len(self._rows))
            for run in runs:
                self._stage(batch, run, rows, numbers)
            reach("store.write.before")
            self._db.write(batch)
            reach("store.write.after")
            self._adopt(rows)

    def _stage(self, batch: Batch, run: Run, rows: dict[str, _Row], numbers: Iterator[int]) -> None:
        """Put a run's blocks, their index entries and the source's new head into the batch."""
        row = rows.get(run.source) or self._rows.get(run.source) or _new_row(run.source, next(numbers))
        head, records = row.head, run.records
        assert records and run.seq == head.seq + 1 and run.previous == head.hash, "a run starts behind its head"
        size = head.size_bytes
        for start, end in block.split(records):
            previous = run.hashes[start - 1] if start else run.previous
            part = records[start:end]
            size += _put_block(batch, row.no, run.seq + start, previous, run.hashes[start:end], part).size_bytes
        last = timestamp_of(records[-1])
        head = Head(run.last, last, run.hashes[-1], head.floor, head.floor_hash, size)
        _put_head(batch, row.no, run.source, head)
        rows[run.source] = _Row(row.no, head)

    def _adopt(self, rows: Mapping[str, _Row]) -> None:
        """Make staged rows the ones in memory, once they are written."""
        for source, row in rows.items():
            before = self._rows.get(source)
            if before is None:
                self._names.append(source)
            self.total += row.head.seq - (0 if before is None else before.head.seq)
            self._rows[source] = row

    # ------------------------------------------------------------------------------------------------------- read

    def heads(self) -> Mapping[str, Head]:
        with self._lock:
            return {source: row.head for source, row in self._rows.items()}

    def get(self, source: str, seq: int) -> Delta | None:
        row = self._rows.get(source)
        if row is None or not row.head.floor < seq <= row.head.seq:
            return None
        try:
            return SourceScan(self, source, seq - 1, seq, reverse=False).page(1)[0]
        except BelowFloor:
            return None  # dropped since

    def hash_at(self, source: str, seq: int) -> bytes:
        if seq == 0:
            return chain.genesis(source)
        with self._lock:
            view, row = self.view(), self._rows.get(source) or _new_row(source, 0)
        with view:
            head = row.head
            if not 0 < seq <= head.seq:
                raise UsageError(f"there is no delta {source!r}:{seq}; the source's head is {head.seq}")
            if seq < head.floor:
                raise BelowFloor({source: head.floor}, {source: seq})
            if seq in (head.seq, head.floor):
                return head.hash if seq == head.seq else head.floor_hash
            held = self.block_at(view, row.no, source, seq)
        if held is None:
            raise missing(self, source, seq)
        first = held.deltas[0].seq
        return self._hashes(keys.block_key(row.no, first), held)[seq - first]

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> SourceScan:
        return SourceScan(self, source, after, until, reverse)

    def between(self, after: int, until: int) -> TimeScan:
        return TimeScan(self, after, until)

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> SinceScan:
        return SinceScan(self, after, until)

    def newest(self, count: int) -> Sequence[Delta]:
        return newest(self, count)

    def view(self) -> View:
        """A consistent view of records and index at one moment, to be closed by `with`."""
        return self._view(DELTAS, BY_TIME)

    def view_of_all(self) -> tuple[View, int, int]:
        """A view of all families, to be closed by `with`; `rewrites`, and the number of sources, at that moment."""
        with self._lock:
            return self._view(), self.rewrites, len(self._names)

    def row(self, source: str) -> tuple[int, Head] | None:
        """Number and head of a source, None if nothing of it was ever stored."""
        row = self._rows.get(source)
        return None if row is None else (row.no, row.head)

    def name(self, source_no: int) -> str:
        """Source id of a number; `StoreCorrupt` if there is none."""
        if source_no >= len(self._names):
            raise StoreCorrupt(f"{SOURCES}: row {source_no} is missing")
        return self._names[source_no]

    def block_at(self, view: View, source_no: int, source: str, seq: int) -> block.Block | None:
        """The block that holds (source, seq), None if no block does."""
        found = view.last(DELTAS, keys.block_key(source_no, seq), keys.block_key(source_no, 0))
        if found is None:
            return None
        decoded = self.decode_block(source, *found)
        return decoded if decoded.deltas[-1].seq >= seq else None

    def decode_block(self, source: str, key: bytes, value: bytes) -> block.Block:
        """Decode what stands under `key`; `StoreCorrupt` names source, key and file."""
        return self.checked(DELTAS, key, lambda: block.decode(source, keys.parse_block_key(key)[1], value))

    def decode_part(self, source: str, key: bytes, value: bytes, after: int, until: int) -> tuple[list[Delta], int]:
        """Deltas with after < seq <= until of the block under `key`, and their bytes; `StoreCorrupt` as above."""
        return self.checked(
            DELTAS, key, lambda: block.decode_part(source, keys.parse_block_key(key)[1], value, after, until)
        )

    def seq_after(self, key: bytes, value: bytes, timestamp: int) -> tuple[int, int]:
        """In the block under `key`: the least seq with a later timestamp, and the last seq; `StoreCorrupt` as above."""
        return self.checked(DELTAS, key, lambda: block.seq_after(keys.parse_block_key(key)[1], value, timestamp))

    def time_entry(self, key: bytes, value: bytes) -> TimeEntry:
        """Parse an entry of the time index; `StoreCorrupt` if it is none."""
        return self.checked(BY_TIME, key, lambda: keys.parse_time_entry(key, value))

    # ------------------------------------------------------------------------------------------ truncate and erase

    def seqs_at(self, timestamp: int) -> Mapping[str, int]:
        with self._lock:
            view, rows = self.view(), list(self._rows.items())
        with view:
            found = {
                source: row.head.seq if row.head.timestamp <= timestamp else self._seq_at(view, source, row, timestamp)
                for source, row in rows
            }
        return {source: seq for source, seq in found.items() if seq}

    def _seq_at(self, view: View, source: str, row: _Row, timestamp: int) -> int:
        """Highest seq of a source up to `timestamp`, which its head is behind; or its floor. By bisection."""
        low, high = row.head.floor, row.head.seq
        while low < high:
            middle = (low + high) // 2 + 1
            found = view.last(DELTAS, keys.block_key(row.no, middle), keys.block_key(row.no, 0))
            later, last = self.seq_after(*found, timestamp) if found is not None else (0, 0)
            if last < middle:
                raise missing(self, source, middle)
            assert found is not None, "nothing has no last seq"
            if later > last:
                low = last
            elif (first := keys.parse_block_key(found[0])[1]) < later:
                return later - 1
            else:
                high = first - 1
        return low

    def truncate(self, floors: Mapping[str, int]) -> int:
        with self._lock:
            before = {source: row.head.floor for source in floors if (row := self._rows.get(source)) is not None}
            for source, floor in floors.items():
                head = self._rows[source].head.seq if source in before else 0
                if floor > head or source not in before:
                    raise UsageError(f"floor {floor} of {source!r} is above its head {head}")
        for source, floor in floors.items():
            while self._truncate_step(source, floor):
                pass
        return sum(max(0, floor - before[source]) for source, floor in floors.items())

    def _truncate_step(self, source: str, floor: int) -> bool:
        """Drop the next of one source's deltas up to `floor`, in one batch; return whether there were any."""
        with self._upkeep:
            row = self._rows[source]
            if floor <= row.head.floor:
                return False
            with self.view() as view:
                gone, held = self._lowest(view, source, row, floor)
            hashes = self._hashes(gone[-1].block_key, held)
            floor = min(floor, held.deltas[-1].seq)
            dropped = floor - gone[-1].seq + 1
            batch = self._db.batch()
            for entry in gone:
                batch.delete(BY_TIME, entry.key)
            batch.delete_range(DELTAS, keys.block_key(row.no, 0), keys.block_key(row.no, floor + 1))
            size = -sum(entry.size_bytes for entry in gone)
            if rest := held.records[dropped:]:
                size += _put_block(batch, row.no, floor + 1, hashes[dropped - 1], hashes[dropped:], rest).size_bytes
            self._commit(batch, "truncate", source, floor=floor, floor_hash=hashes[dropped - 1], size_bytes=size)
            return True

    def _lowest(self, view: View, source: str, row: _Row, floor: int) -> tuple[list[TimeEntry], block.Block]:
        """Index entries of a source's first blocks, up to the one that holds `floor`; and the last of these blocks."""
        gone: list[TimeEntry] = []
        need = row.head.floor + 1
        for key, value in view.scan(DELTAS, keys.block_key(row.no, 0), keys.block_key(row.no, floor + 1)):
            held = self.decode_block(source, key, value)
            if held.deltas[0].seq != need:
                break
            gone.append(keys.time_entry(row.no, need, held.records))
            need = held.deltas[-1].seq + 1
            if need > floor or len(gone) >= _STEP_BLOCKS:
                return gone, held
        raise StoreCorrupt(f"{DELTAS}: ({source!r}, {need}) is missing")

    def _hashes(self, key: bytes, held: block.Block) -> list[bytes]:
        """Chain hashes behind each record of a block that is to be written anew; `StoreCorrupt` if they do not fit."""
        hashes = chain.extend(held.previous, held.records)
        if chain.tags(hashes) != held.tags:
            raise StoreCorrupt(f"{DELTAS} key {key.hex()}: its records are not those that were chained; run verify")
        return hashes

    def _commit(self, batch: Batch, doing: str, source: str, *, size_bytes: int, **changes: Any) -> None:
        """Write what upkeep has put together, with the head as it is now but for `changes`; sizes are added."""
        with self._lock:
            row = self._rows[source]
            head = attrs.evolve(row.head, size_bytes=row.head.size_bytes + size_bytes, **changes)
            if head != row.head:
                self.rewrites += 1
                _put_head(batch, row.no, source, head)
            reach(f"store.{doing}.before")
            self._db.write(batch)
            reach(f"store.{doing}.after")
            self._adopt({source: _Row(row.no, head)})

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> Delta | None:
        with self._upkeep:
            delta = self.get(source, seq)
            if delta is None or delta.erased:
                return delta
            row = self._rows[source]
            with self.view() as view:
                held = self.block_at(view, row.no, source, seq)
            assert held is not None, "get found it"
            hashes = self._hashes(keys.block_key(row.no, held.deltas[0].seq), held)
            erased = codec.erase(delta, chain.payload_hash(delta))
            records = [erased.record if old.seq == seq else old.record for old in held.deltas]
            batch = self._db.batch()
            _put_block(batch, row.no, held.deltas[0].seq, held.previous, hashes, records)
            key = keys.erased_key(row.no, seq)
            batch.put(META, key, keys.encode_meta(key, [reason, timestamp]))
            self._garbage = True
            self._commit(batch, "erase", source, size_bytes=len(erased.record) - len(delta.record))
            self._db.sync()
            return erased

    def erasures(self) -> Sequence[Erasure]:
        found: list[Erasure] = []
        for key, value in self._db.scan(META, begin=keys.META_ERASED, end=keys.prefix_end(keys.META_ERASED)):
            source_no, seq = self.checked(META, key, partial(keys.parse_block_key, key[len(keys.META_ERASED) :]))
            reason, timestamp = self.checked(META, key, partial(keys.decode_meta, key, value))
            found.append(Erasure(self.name(source_no), seq, reason, timestamp))
        return sorted(found, key=lambda note: (note.source, note.seq))

    # ------------------------------------------------------------------------------------------------ annotations

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        check_annotations(changes)
        with self._lock:
            batch = self._db.batch()
            for name, value in changes.items():
                key = keys.annotation_key(name)
                if value is None:
                    batch.delete(META, key)
                else:
                    batch.put(META, key, keys.encode_meta(key, value))
            reach("store.annotate.before")
            self._db.write(batch)
            reach("store.annotate.after")

    def annotation(self, key: bytes) -> bytes | None:
        row = keys.annotation_key(key)
        value = self._db.get(META, row)
        return None if value is None else self.checked(META, row, partial(keys.decode_annotation, row, value))

    def annotations(self, prefix: bytes = b"", after: bytes = b"", limit: int | None = None) -> Sequence[Annotation]:
        first = keys.annotation_key(prefix)
        begin, end = max(first, keys.annotation_key(after + b"\0")), keys.prefix_end(first)
        if begin >= end or limit == 0:
            return []
        rows = islice(self._db.scan(META, begin=begin, end=end), limit)
        return [
            (key[len(keys.META_ANNOTATION) :], self.checked(META, key, partial(keys.decode_annotation, key, value)))
            for key, value in rows
        ]

    # ------------------------------------------------------------------------------------------- compact and meta

    def compact(self, *, if_needed: bool = False) -> None:
        saved = self.merge_blocks()
        if if_needed and not saved and not self._garbage and not any(file.deletions for file in self._db.files()):
            return
        reach("store.compact.before")
        self._db.flush()
        self._db.compact()
        reach("store.compact.after")
        self._garbage = False

    def merge_blocks(self) -> int:
        """Write neighbouring short blocks as one where both bounds allow; returns how many blocks that saved.

        Reads blocks from the first that may be merged on; only once after an open does it go through the whole index.
        """
        saved = 0
        for source in list(self._rows):
            more = True
            while more:
                with self._upkeep:
                    group = self._short_group(source)
                    more = len(group) > 1
                    if more:
                        self._merge(source, group)
                        saved += len(group) - 1
        return saved

    def _short_group(self, source: str) -> list[KeyValue]:
        """The next neighbours of a source that fit into one block together; fewer than two: there are none."""
        if self._merged is None:
            self._merged = self._first_short()
        no = self._rows[source].no
        group: list[KeyValue] = []
        held_count = held_size = 0
        with self.view() as view:
            begin, end = keys.block_key(no, self._merged.get(no, 0)), keys.block_key(no + 1, 0)
            for key, value in view.scan(DELTAS, begin, end):
                own_count, own_size = self.checked(DELTAS, key, partial(block.weigh, value))
                held_count, held_size = held_count + own_count, held_size + own_size
                if group and not block.fits(held_count, held_size):
                    if len(group) > 1:
                        break
                    group, held_count, held_size = [], own_count, own_size
                if not group:
                    self._merged[no] = keys.parse_block_key(key)[1]
                group.append((key, value))
        return group

    def _first_short(self) -> dict[int, int]:
        """For each source the seq of its first block that fits into one with the next; else of its last block."""
        weights: defaultdict[int, list[int]] = defaultdict(list)  # a whole index of objects would take 300 bytes each
        with self.view() as view:
            for key, value in view.scan(BY_TIME):
                entry = self.time_entry(key, value)
                weights[entry.source_no].append(entry.seq << 64 | entry.count << 32 | entry.size_bytes)
        found: dict[int, int] = {}
        for source_no, held in weights.items():
            held.sort()
            sums = ((first, (first & _LOW64) + (second & _LOW64)) for first, second in pairwise(held))
            short = (first for first, total in sums if block.fits(total >> 32, total & _LOW32))
            found[source_no] = next(short, held[-1]) >> 64
        return found

    def _merge(self, source: str, group: Sequence[KeyValue]) -> None:
        """Replace neighbouring blocks by one, if each follows on the one before."""
        batch = self._db.batch()
        no, first = keys.parse_block_key(group[0][0])
        records: list[bytes] = []
        hashes: list[bytes] = []
        previous = b""
        for key, value in group:
            held = self.decode_block(source, key, value)
            if not hashes:
                previous = held.previous
            elif held.previous != hashes[-1] or held.deltas[0].seq != first + len(records):
                raise StoreCorrupt(f"{DELTAS} key {key.hex()}: does not follow on the block before it; run verify")
            batch.delete(BY_TIME, keys.time_entry(no, first + len(records), held.records).key)
            batch.delete(DELTAS, key)
            hashes += self._hashes(key, held)
            records += held.records
        _put_block(batch, no, first, previous, hashes, records)
        self._commit(batch, "merge", source, size_bytes=0)

    def sizes(self) -> StoreSizes:
        heads = self.heads().values()
        with self.view() as view:
            blocks = sum(1 for _ in view.scan(BY_TIME))
        records = sum(head.size_bytes for head in heads)
        return StoreSizes(len(heads), sum(head.count for head in heads), records, blocks, self._db.size_bytes())


def _new_row(source: str, source_no: int) -> _Row:
    start = chain.genesis(source)
    return _Row(source_no, Head(hash=start, floor_hash=start))


def _put_block(
    batch: Batch, source_no: int, seq: int, previous: bytes, hashes: Sequence[bytes], records: Sequence[bytes]
) -> TimeEntry:
    """Put a block and its index entry into the batch; return the entry."""
    entry = keys.time_entry(source_no, seq, records)
    batch.put(DELTAS, entry.block_key, block.encode(previous, hashes, records))
    batch.put(BY_TIME, entry.key, entry.value)
    return entry


def _put_head(batch: Batch, source_no: int, source: str, head: Head) -> None:
    batch.put(SOURCES, keys.source_key(source_no), keys.encode_head(source_no, source, head))
