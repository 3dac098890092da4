"""DeltaStore on RocksDB: records in blocks, time index and heads, changed in one batch (invariant I8).

Lives here: what becomes of a run on its way to disk, and the heads as they were last written. Reads that span blocks
stand in `rocks_scan`. Does not know: tasks, the ring, who appends, when to sync.

Owned by whoever writes (one thread at a time, under `_lock`): `_rows`, `_names`. Readers take one consistent view of
the database under the same lock and never hold it while they read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

import attrs

from deltalog import block, chain, codec, keys
from deltalog.codec import timestamp_of
from deltalog.delta import Delta
from deltalog.errors import DecodeError, StoreClosed, StoreCorrupt, StoreFormatMismatch, UsageError
from deltalog.failpoints import reach
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head, TimeEntry
from deltalog.profiles import FamilyProfile
from deltalog.rocks import Rocks
from deltalog.rocks_scan import SinceScan, SourceScan, TimeScan, newest
from deltalog.rocks_values import Batch
from deltalog.rocks_view import View
from deltalog.store import Erasure, Run, StoreSizes

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

_T = TypeVar("_T")


@attrs.define
class _Row:
    """A source as it stands in memory: its number and its head."""

    no: int
    head: Head


class RocksStore:
    """A `DeltaStore` over one open RocksDB instance."""

    def __init__(self, open_db: Callable[[], Rocks], store_id: bytes | None = None) -> None:
        """Open with `open_db`, now and at each `reopen`. An empty database is initialised, under `store_id` if given.

        Raises `StoreFormatMismatch` for another format, `StoreCorrupt` if heads or meta are damaged.
        """
        self._open_db = open_db
        self._lock = threading.RLock()
        self._db = open_db()
        self._closed = False
        self._rows: dict[str, _Row] = {}
        self._names: list[str] = []
        try:
            self.store_id = self._load(store_id)
        except BaseException:
            self._db.close()
            raise

    # ------------------------------------------------------------------------------------------------ open, close

    def _load(self, store_id: bytes | None) -> bytes:
        """Read the rows of all sources; check the format; return the store's id."""
        stored = self.meta(keys.META_FORMAT)
        if stored is None:
            self._initialise(store_id)
        elif stored != keys.FORMAT:
            raise StoreFormatMismatch(f"{self._db.path}: store format {stored!r}; this program knows {keys.FORMAT}")
        rows: dict[str, _Row] = {}
        for key, value in self._db.scan(SOURCES):
            source_no, source, head = self.checked(SOURCES, key, partial(keys.decode_head, key, value))
            if source_no != len(rows) or source in rows:
                raise StoreCorrupt(f"{SOURCES}: row {source_no} ({source!r}) stands where row {len(rows)} belongs")
            rows[source] = _Row(source_no, head)
        self._rows, self._names = rows, list(rows)
        found = self.meta(keys.META_STORE_ID)
        if not isinstance(found, bytes):
            raise StoreCorrupt(f"{META}: {keys.META_STORE_ID!r} is missing")
        return found

    def _initialise(self, store_id: bytes | None) -> None:
        for family in (DELTAS, BY_TIME, SOURCES, META):
            if next(self._db.scan(family), None) is not None:
                raise StoreCorrupt(f"{META}: {keys.META_FORMAT!r} is missing, though {family} holds data")
        batch = self._db.batch()
        batch.put(META, keys.META_FORMAT, keys.encode_meta(keys.META_FORMAT, keys.FORMAT))
        if store_id is not None:
            batch.put(META, keys.META_STORE_ID, keys.encode_meta(keys.META_STORE_ID, store_id))
        self._db.write(batch)
        self._db.sync()

    def reopen(self) -> None:
        with self._lock:
            self._db.close()
            self._db = self._open_db()
            self._closed = False
            self._load(None)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()

    def flush(self) -> None:
        """Write what is in memory to files, which empties the WAL."""
        self._db.flush()

    def wal_bytes(self) -> int:
        """Size of the write-ahead log: what opening must replay, and a full disk must have room for."""
        return sum(file.stat().st_size for file in self._db.path.glob("*.log"))

    @property
    def db(self) -> Rocks:
        """The open instance, for health, files and `verify`."""
        return self._db

    # ------------------------------------------------------------------------------------------------------ write

    def write(self, runs: Sequence[Run]) -> None:
        with self._lock:
            batch = self._db.batch()
            rows: dict[str, _Row] = {}
            for run in runs:
                self._stage(batch, run, rows)
            reach("store.write.before")
            self._db.write(batch)
            reach("store.write.after")
            self._adopt(rows)

    def _stage(self, batch: Batch, run: Run, rows: dict[str, _Row]) -> None:
        """Put a run's blocks, their index entries and the source's new head into the batch."""
        row = rows.get(run.source) or self._rows.get(run.source) or self._new_row(run.source, rows)
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

    def _new_row(self, source: str, rows: Mapping[str, _Row]) -> _Row:
        start = chain.genesis(source)
        new = sum(name not in self._rows for name in rows)
        return _Row(len(self._rows) + new, Head(hash=start, floor_hash=start))

    def _adopt(self, rows: Mapping[str, _Row]) -> None:
        """Make staged rows the ones in memory, once they are written."""
        for source, row in rows.items():
            if source not in self._rows:
                self._names.append(source)
            self._rows[source] = row

    def sync(self) -> int:
        reach("store.sync.before")
        number = self._db.sequence_number()
        self._db.sync()
        reach("store.sync.after")
        return number

    # ------------------------------------------------------------------------------------------------------- read

    def heads(self) -> Mapping[str, Head]:
        with self._lock:
            return {source: row.head for source, row in self._rows.items()}

    def get(self, source: str, seq: int) -> Delta | None:
        row = self._rows.get(source)
        if row is None or not row.head.floor < seq <= row.head.seq:
            return None
        with self.view() as view:
            found = self.block_at(view, row.no, source, seq)
        if found is None:
            raise StoreCorrupt(f"{DELTAS}: ({source!r}, {seq}) is missing")
        return found.deltas[seq - found.deltas[0].seq]

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
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            return self._db.view(DELTAS, BY_TIME)

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

    def decode_part(self, source: str, key: bytes, value: bytes, seq: int, count: int) -> tuple[list[Delta], int]:
        """Up to `count` deltas from `seq` on of the block under `key`, and their bytes; `StoreCorrupt` as above."""
        return self.checked(
            DELTAS, key, lambda: block.decode_part(source, keys.parse_block_key(key)[1], value, seq, count)
        )

    def time_entry(self, key: bytes, value: bytes) -> TimeEntry:
        """Parse an entry of the time index; `StoreCorrupt` if it is none."""
        return self.checked(BY_TIME, key, lambda: keys.parse_time_entry(key, value))

    def checked(self, family: str, key: bytes, decode: Callable[[], _T]) -> _T:
        """Run `decode`; what it refuses is corruption of (family, key)."""
        try:
            return decode()
        except DecodeError as error:
            where = self._db.file_of(family, key) or "no file"
            raise StoreCorrupt(f"{family} key {key.hex()} in {where}: {error}") from error

    # ------------------------------------------------------------------------------------------ truncate and erase

    def seqs_at(self, timestamp: int) -> Mapping[str, int]:
        rows = [(source, row.no, row.head) for source, row in list(self._rows.items())]
        found = {no: head.seq if head.timestamp <= timestamp else head.floor for _, no, head in rows}
        open_ended = {no: source for source, no, head in rows if head.timestamp > timestamp}
        with self.view() as view:
            for key, value in view.scan(BY_TIME):
                entry = self.time_entry(key, value)
                if entry.source_no in open_ended and entry.first <= timestamp:
                    seq = entry.seq + entry.count - 1
                    if entry.last > timestamp:
                        held = self.block_at(view, entry.source_no, open_ended[entry.source_no], entry.seq)
                        seq = entry.seq - 1 + sum(d.timestamp <= timestamp for d in held.deltas) if held else 0
                    found[entry.source_no] = max(found[entry.source_no], seq)
        return {source: found[no] for source, no, _ in rows if found[no]}

    def truncate(self, floors: Mapping[str, int]) -> int:
        with self._lock:
            for source, floor in floors.items():
                row = self._rows.get(source)
                if row is None or floor > row.head.seq:
                    raise UsageError(f"floor {floor} of {source!r} is above its head {row.head.seq if row else 0}")
            raised = {source: floor for source, floor in floors.items() if floor > self._rows[source].head.floor}
            entries = self._entries({self._rows[source].no for source in raised})
            return sum(
                self._truncate(source, floor, entries[self._rows[source].no]) for source, floor in raised.items()
            )

    def _truncate(self, source: str, floor: int, entries: Sequence[TimeEntry]) -> int:
        """Drop one source's deltas up to `floor`: whole blocks by one range; of the block it cuts, keep the rest."""
        row = self._rows[source]
        gone = [entry for entry in entries if entry.seq <= floor]
        batch = self._db.batch()
        floor_hash, kept = self._cut(batch, source, gone[-1], floor)
        for entry in gone:
            batch.delete(BY_TIME, entry.key)
        batch.delete_range(DELTAS, keys.block_key(row.no, 0), keys.block_key(row.no, gone[-1].seq))
        size = row.head.size_bytes - sum(entry.size_bytes for entry in gone) + kept
        head = attrs.evolve(row.head, floor=floor, floor_hash=floor_hash, size_bytes=size)
        _put_head(batch, row.no, source, head)
        reach("store.truncate.before")
        self._db.write(batch)
        reach("store.truncate.after")
        self._adopt({source: _Row(row.no, head)})
        return floor - row.head.floor

    def _cut(self, batch: Batch, source: str, entry: TimeEntry, floor: int) -> tuple[bytes, int]:
        """Replace the block that holds `floor` by what is above it; return the hash at the floor and the bytes kept."""
        with self.view() as view:
            held = self.block_at(view, entry.source_no, source, floor)
        if held is None:
            raise StoreCorrupt(f"{DELTAS}: ({source!r}, {floor}) is missing")
        hashes = chain.extend(held.previous, held.records)
        count = floor - entry.seq + 1
        batch.delete(DELTAS, entry.block_key)
        if count == len(held.deltas):
            return hashes[-1], 0
        kept = held.records[count:]
        rest = _put_block(batch, entry.source_no, floor + 1, hashes[count - 1], hashes[count:], kept)
        return hashes[count - 1], rest.size_bytes

    def _entries(self, source_nos: Collection[int]) -> dict[int, list[TimeEntry]]:
        """Index entries of these sources, ascending by seq, from one pass over the index."""
        found: dict[int, list[TimeEntry]] = {no: [] for no in source_nos}
        with self.view() as view:
            for key, value in view.scan(BY_TIME):
                entry = self.time_entry(key, value)
                if entry.source_no in found:
                    found[entry.source_no].append(entry)
        for entries in found.values():
            entries.sort(key=lambda entry: entry.seq)
        return found

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> Delta | None:
        with self._lock:
            delta = self.get(source, seq)
            if delta is None or delta.erased:
                return delta
            row = self._rows[source]
            with self.view() as view:
                held = self.block_at(view, row.no, source, seq)
            assert held is not None, "get found it"
            erased = codec.erase(delta, chain.payload_hash(delta))
            records = [erased.record if old.seq == seq else old.record for old in held.deltas]
            batch = self._db.batch()
            _put_block(batch, row.no, held.deltas[0].seq, held.previous, chain.extend(held.previous, records), records)
            size = row.head.size_bytes + len(erased.record) - len(delta.record)
            head = attrs.evolve(row.head, size_bytes=size)
            _put_head(batch, row.no, source, head)
            key = keys.erased_key(row.no, seq)
            batch.put(META, key, keys.encode_meta(key, [reason, timestamp]))
            reach("store.erase.before")
            self._db.write(batch)
            self._db.sync()
            reach("store.erase.after")
            self._adopt({source: _Row(row.no, head)})
            return erased

    def erasures(self) -> Sequence[Erasure]:
        found: list[Erasure] = []
        for key, value in self._db.scan(META, begin=keys.META_ERASED, end=keys.prefix_end(keys.META_ERASED)):
            source_no, seq = keys.parse_block_key(key[len(keys.META_ERASED) :])
            reason, timestamp = self.checked(META, key, partial(keys.decode_meta, key, value))
            found.append(Erasure(self.name(source_no), seq, reason, timestamp))
        return sorted(found, key=lambda note: (note.source, note.seq))

    # ------------------------------------------------------------------------------------------- compact and meta

    def compact(self) -> None:
        self.merge_blocks()
        self._db.flush()
        self._db.compact()

    def merge_blocks(self) -> int:
        """Write neighbouring short blocks as one where both bounds allow; returns how many blocks that saved."""
        with self._lock:
            entries = self._entries({row.no for row in self._rows.values()})
        saved = 0
        for source_no, held in entries.items():
            for group in _short_neighbours(held):
                with self._lock:
                    saved += self._merge(source_no, group)
        return saved

    def _merge(self, source_no: int, group: Sequence[TimeEntry]) -> int:
        source = self._names[source_no]
        if group[0].seq <= self._rows[source].head.floor:
            return 0  # truncated since the index was read; the next pass sees it as it is
        with self.view() as view:
            blocks = [self.block_at(view, source_no, source, entry.seq) for entry in group]
        if any(held is None or held.deltas[0].seq != entry.seq for held, entry in zip(blocks, group, strict=True)):
            return 0
        held_blocks = [held for held in blocks if held is not None]
        records = [record for held in held_blocks for record in held.records]
        previous = held_blocks[0].previous
        batch = self._db.batch()
        for entry in group:
            batch.delete(BY_TIME, entry.key)
            batch.delete(DELTAS, entry.block_key)
        _put_block(batch, source_no, group[0].seq, previous, chain.extend(previous, records), records)
        reach("store.merge.before")
        self._db.write(batch)
        reach("store.merge.after")
        return len(group) - 1

    def meta(self, key: bytes) -> Any:
        """What stands in meta under `key`, None if nothing does."""
        value = self._db.get(META, key)
        return None if value is None else self.checked(META, key, lambda: keys.decode_meta(key, value))

    def set_meta(self, key: bytes, value: Any) -> None:
        """Put `value` in meta under `key`; durable on return."""
        with self._lock:
            batch = self._db.batch()
            batch.put(META, key, keys.encode_meta(key, value))
            self._db.write(batch)
            self._db.sync()

    def sizes(self) -> StoreSizes:
        heads = self.heads().values()
        with self.view() as view:
            blocks = sum(1 for _ in view.scan(BY_TIME))
        records = sum(head.size_bytes for head in heads)
        return StoreSizes(len(heads), sum(head.count for head in heads), records, blocks, self._db.size_bytes())


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


def _short_neighbours(entries: Sequence[TimeEntry]) -> Iterator[list[TimeEntry]]:
    """Group neighbours of one source that fit into one block together; each group has two entries or more."""
    group: list[TimeEntry] = []
    count = size = 0
    for entry in entries:
        count, size = count + entry.count, size + entry.size_bytes
        if group and (count > block.DELTAS_MAX or size > block.BYTES_MAX):
            if len(group) > 1:
                yield group
            group, count, size = [], entry.count, entry.size_bytes
        group.append(entry)
    if len(group) > 1:
        yield group
