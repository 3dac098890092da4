"""Walks a whole store and yields every fault it finds, by dot, key and file (invariant I9). Changes nothing.

What is checked: every block is one its encoding allows; seqs are dense from the floor to the head; the hash chain leads
from the floor, through every block and tag, to the head; the time index has exactly the entry each block asks for;
heads hold what the blocks say; erased records have their note, and notes their record; nothing else stands anywhere.

Missing, damaged and unknown are three kinds of fault (invariant I15). Where a file cannot be read, the walk goes on
behind it with the blocks that the index names, so that one bad file does not hide the rest. Memory is bounded, but for
that case, where it holds the places of the blocks. Synchronous; `scrub` does the same in portions.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import attrs

from deltalog import block, chain, keys
from deltalog.chain import TAG_BYTES
from deltalog.errors import DecodeError, StoreCorrupt
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head, TimeEntry
from deltalog.rocks_store import RocksStore
from deltalog.rocks_view import KeyValue

_META_KEYS: Final = frozenset(
    {keys.META_FORMAT, keys.META_STORE_ID, keys.META_INCARNATIONS, keys.META_SCRUB}
)


class Kind(enum.Enum):
    """What is wrong."""

    MISSING = "missing"
    """Something that must be there is not."""
    DAMAGED = "damaged"
    """Something is there and cannot be right."""
    UNKNOWN = "unknown"
    """Something is there that this program never wrote."""


@attrs.frozen(kw_only=True)
class Fault:
    """One thing that is wrong."""

    kind: Kind
    family: str
    """Column family it stands in, or should."""
    key: bytes
    """Key it stands under, or should."""
    source: str = ""
    """Source of the first delta concerned, "" if none is."""
    seq: int = 0
    """Its seq."""
    file: str = ""
    """The file that holds the key; "" if nobody can say."""
    message: str

    def __str__(self) -> str:
        dot = f"{self.source!r}:{self.seq}, " if self.source else ""
        where = f" in {self.file}" if self.file else ""
        return f"{self.kind.value}: {dot}{self.family} key {self.key.hex()}{where}: {self.message}"


class Progress(Protocol):
    """Called now and then: what is being done, how many deltas were walked, of how many."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def verify(store: RocksStore, *, progress: Progress = _silent) -> Iterator[Fault]:
    """Walk everything; yield each fault as it is found. Nothing may write to the store meanwhile."""
    walk = _Walk(store, progress)
    yield from walk.records()
    yield from walk.index()
    yield from walk.meta()
    yield from walk.strangers()


def scrub(store: RocksStore, position: bytes, blocks: int) -> tuple[bytes, list[Fault]]:
    """Walk about `blocks` blocks from `position` (b"" to begin); return where to go on (b"" at the end), and the faults.

    A portion starts from the hash its first block keeps, which the portion before has compared.
    """
    walk = _Walk(store, _silent)
    return walk.portion(position, blocks)


class _Walk:
    """A walk over one store."""

    def __init__(self, store: RocksStore, progress: Progress) -> None:
        self._store = store
        self._db = store.db
        self._progress = progress
        self._heads = list(store.heads().items())
        self._total = sum(head.count for _, head in self._heads)
        self._done = 0
        self._indexed = 0
        self._erased = 0
        self._broken = False
        """Whether some block could not be read or placed, so that counts need not agree."""

    # ------------------------------------------------------------------------------------------------------- records

    def records(self) -> Iterator[Fault]:
        """Every block of every source, in the order of keys."""
        sources = map(self._source, range(len(self._heads)))
        current: _Source | None = None
        for key, value in self._blocks(b""):
            if isinstance(value, Fault):
                yield value
                continue
            source_no = self._place(key)
            if source_no is None:
                yield self._fault(Kind.UNKNOWN, DELTAS, key, "no block of this log stands under such a key")
                continue
            while current is None or current.no < source_no:
                if current is not None:
                    yield from current.end()
                current = next(sources)
            yield from self._block(current, key, value)
        current = current or next(sources, None)
        while current is not None:
            yield from current.end()
            current = next(sources, None)

    def _source(self, source_no: int) -> _Source:
        name, head = self._heads[source_no]
        return _Source(self, source_no, name, head)

    def _place(self, key: bytes) -> int | None:
        """Number of the source a block key belongs to; None if it belongs to none."""
        try:
            source_no, seq = keys.parse_block_key(key)
        except DecodeError:
            return None
        return source_no if source_no < len(self._heads) and seq else None

    def _blocks(self, begin: bytes) -> Iterator[tuple[bytes, bytes | Fault]]:
        """All blocks from `begin` on. Behind a file that cannot be read: those the index names, one by one."""
        last = begin
        try:
            for key, value in self._db.scan(DELTAS, begin=begin):
                last = key + b"\0"
                yield key, value
        except StoreCorrupt as error:
            self._broken = True
            damage = str(error)
        else:
            return
        for key in self._named_blocks(last):
            try:
                found = self._db.get(DELTAS, key)
            except StoreCorrupt as error:
                yield key, self._unreadable(key, str(error))
            else:
                if found is not None:
                    yield key, found
        yield last, self._fault(Kind.DAMAGED, DELTAS, last, damage)

    def _named_blocks(self, begin: bytes) -> list[bytes]:
        """Keys of the blocks that the index names, ascending, from `begin` on."""
        named = set()
        for key, value in self._entries():
            try:
                named.add(keys.parse_time_entry(key, value).block_key)
            except DecodeError:
                continue  # `index` reports it
        return sorted(key for key in named if key >= begin)

    def _entries(self) -> Iterator[KeyValue]:
        """The index, as far as it can be read; `index` reports where it cannot."""
        try:
            yield from self._db.scan(BY_TIME)
        except StoreCorrupt:
            self._broken = True

    def _unreadable(self, key: bytes, text: str) -> Fault:
        source_no, seq = keys.parse_block_key(key)
        name = self._heads[source_no][0] if source_no < len(self._heads) else ""
        return self._fault(Kind.DAMAGED, DELTAS, key, text, name, seq)

    def _block(self, source: _Source, key: bytes, value: bytes) -> Iterator[Fault]:
        """One block, then the index entry it asks for."""
        first = keys.parse_block_key(key)[1]
        try:
            held = block.decode(source.name, first, value)
        except DecodeError as error:
            self._broken = True
            yield self._fault(Kind.DAMAGED, DELTAS, key, str(error), source.name, first)
            source.lose()
            return
        yield from source.take(key, held)
        yield from self._expect_entry(source, keys.time_entry(source.no, first, held.records))
        yield from self._expect_notes(source, held)
        self._done += len(held.deltas)
        self._progress("verifying", self._done, self._total)

    def _expect_entry(self, source: _Source, entry: TimeEntry) -> Iterator[Fault]:
        try:
            value = self._db.get(BY_TIME, entry.key)
        except StoreCorrupt as error:
            yield self._fault(Kind.DAMAGED, BY_TIME, entry.key, str(error), source.name, entry.seq)
            return
        if value is None:
            self._broken = True
            message = "the block has no entry in the time index"
            yield self._fault(Kind.MISSING, BY_TIME, entry.key, message, source.name, entry.seq)
        else:
            self._indexed += 1
            if value != entry.value:
                message = "the entry does not say what its block holds"
                yield self._fault(Kind.DAMAGED, BY_TIME, entry.key, message, source.name, entry.seq)

    def _expect_notes(self, source: _Source, held: block.Block) -> Iterator[Fault]:
        for delta in held.deltas:
            if delta.erased:
                self._erased += 1
                key = keys.erased_key(source.no, delta.seq)
                if self._db.get(META, key) is None:
                    message = "an erased delta has no note of its erasure"
                    yield self._fault(Kind.MISSING, META, key, message, source.name, delta.seq)

    # ----------------------------------------------------------------------------------------- index, meta, strangers

    def index(self) -> Iterator[Fault]:
        """Every entry of the time index: well formed, and of a block that is there."""
        entries = 0
        try:
            for key, value in self._db.scan(BY_TIME):
                entries += 1
                try:
                    keys.parse_time_entry(key, value)
                except DecodeError as error:
                    kind = Kind.DAMAGED if len(key) == keys.TIME_KEY_BYTES else Kind.UNKNOWN
                    yield self._fault(kind, BY_TIME, key, str(error))
        except StoreCorrupt as error:
            yield self._fault(Kind.DAMAGED, BY_TIME, b"", str(error))
            return
        if entries != self._indexed or self._broken:
            yield from self._entries_without_block()

    def _entries_without_block(self) -> Iterator[Fault]:
        for key, value in self._entries():
            try:
                entry = keys.parse_time_entry(key, value)
            except DecodeError:
                continue
            try:
                held = self._db.get(DELTAS, entry.block_key)
            except StoreCorrupt:
                continue  # the walk over the blocks has named it
            if held is None or not self._asks_for(entry, held):
                name = self._heads[entry.source_no][0] if entry.source_no < len(self._heads) else ""
                message = "an entry of the time index whose block is not there or asks for another"
                yield self._fault(Kind.UNKNOWN, BY_TIME, key, message, name, entry.seq)

    def _asks_for(self, entry: TimeEntry, value: bytes) -> bool:
        """Whether a block is the one an entry stands for; one that cannot be decoded is reported elsewhere."""
        if entry.source_no >= len(self._heads):
            return False
        try:
            held = block.decode(self._heads[entry.source_no][0], entry.seq, value)
        except DecodeError:
            return True
        return keys.time_entry(entry.source_no, entry.seq, held.records).key == entry.key

    def meta(self) -> Iterator[Fault]:
        """Every row of meta; and that each note of an erasure has its erased delta."""
        notes = 0
        try:
            for key, value in self._db.scan(META):
                note = key.startswith(keys.META_ERASED)
                if not note and key not in _META_KEYS:
                    yield self._fault(Kind.UNKNOWN, META, key, "no such row is ever written")
                    continue
                try:
                    keys.decode_meta(key, value)
                except DecodeError as error:
                    yield self._fault(Kind.DAMAGED, META, key, str(error))
                    continue
                notes += note
                if note:
                    yield from self._expect_erased(key)
        except StoreCorrupt as error:
            yield self._fault(Kind.DAMAGED, META, b"", str(error))

    def _expect_erased(self, key: bytes) -> Iterator[Fault]:
        try:
            source_no, seq = keys.parse_block_key(key[len(keys.META_ERASED) :])
            name, head = self._heads[source_no]
        except (DecodeError, IndexError):
            yield self._fault(Kind.UNKNOWN, META, key, "a note of an erasure of no delta of this log")
            return
        if seq <= head.floor:
            return
        try:
            delta = self._store.get(name, seq)
        except StoreCorrupt:
            return  # the walk over the blocks has named it
        if delta is None or not delta.erased:
            message = "a note of an erasure, but the delta is not erased"
            yield self._fault(Kind.DAMAGED, META, key, message, name, seq)

    def strangers(self) -> Iterator[Fault]:
        """Families in which nothing stands yet, and rows of sources that the store did not load."""
        for key, _ in self._db.scan(SNAPSHOTS):
            yield self._fault(Kind.UNKNOWN, SNAPSHOTS, key, "no snapshot is ever written")
        stored = sum(1 for _ in self._db.scan(SOURCES))
        if stored != len(self._heads):
            message = f"{stored} rows, but {len(self._heads)} sources were loaded"
            yield self._fault(Kind.DAMAGED, SOURCES, b"", message)

    # -------------------------------------------------------------------------------------------------------- portions

    def portion(self, position: bytes, blocks: int) -> tuple[bytes, list[Fault]]:
        """See `scrub`."""
        faults: list[Fault] = []
        current: _Source | None = None
        for key, value in self._blocks(position):
            if blocks <= 0:
                return key, faults
            blocks -= 1
            source_no = None if isinstance(value, Fault) else self._place(key)
            if isinstance(value, Fault):
                faults.append(value)
            elif source_no is None:
                faults.append(self._fault(Kind.UNKNOWN, DELTAS, key, "no block of this log stands under such a key"))
            else:
                if current is None or current.no != source_no:
                    current = self._source(source_no)
                    current.lose()
                faults += self._block(current, key, value)
        return b"", faults

    def _fault(self, kind: Kind, family: str, key: bytes, message: str, source: str = "", seq: int = 0) -> Fault:
        file = "" if kind is Kind.MISSING else self._db.file_of(family, key) or ""
        return Fault(kind=kind, family=family, key=key, source=source, seq=seq, file=file, message=message)


class _Source:
    """One source while its blocks go by: which seq and which hash must come next."""

    def __init__(self, walk: _Walk, source_no: int, name: str, head: Head) -> None:
        self.no = source_no
        self.name = name
        self._walk = walk
        self._head = head
        self._expected = head.floor + 1
        self._hash: bytes | None = head.floor_hash
        """Chain hash behind what went by; None when that cannot be known."""
        self._timestamp = -1
        self._size = 0
        self._whole = True
        """Whether nothing was wrong so far."""

    def lose(self) -> None:
        """What went by cannot be trusted: take seq and hash from the next block."""
        self._hash, self._expected, self._whole = None, 0, False

    def take(self, key: bytes, held: block.Block) -> Iterator[Fault]:
        """The next block."""
        first = held.deltas[0].seq
        yield from self._check_place(key, first)
        if self._hash is not None and self._hash != held.previous:
            yield self._damaged(key, first, "the chain does not lead from what stands before to this block")
        hashes = chain.extend(held.previous, held.records)
        bad = _first_difference(chain.tags(hashes), held.tags)
        if bad is not None:
            yield self._damaged(key, first + bad, "the record does not fit into the hash chain")
        if self._timestamp >= held.deltas[0].timestamp:
            yield self._damaged(key, first, "the timestamp does not come after its predecessor's")
        self._expected = held.deltas[-1].seq + 1
        self._hash = None if bad is not None else hashes[-1]
        self._timestamp = held.deltas[-1].timestamp
        self._size += sum(map(len, held.records))

    def _check_place(self, key: bytes, first: int) -> Iterator[Fault]:
        expected = self._expected
        if not expected or first == expected:
            return
        if first > expected:
            message = f"deltas {expected}..{first - 1} are not there"
            missing = keys.block_key(self.no, expected)
            self._whole = False
            yield self._walk._fault(Kind.MISSING, DELTAS, missing, message, self.name, expected)
        elif first <= self._head.floor:
            yield self._unknown(key, first, f"stands below the floor {self._head.floor}")
        else:
            yield self._unknown(key, first, f"stands where seq {expected} belongs")
        self._hash = None

    def end(self) -> Iterator[Fault]:
        """No more blocks: the head must say what went by."""
        key = keys.source_key(self.no)
        head = self._head
        if head.floor == 0 and head.floor_hash != chain.genesis(self.name):
            yield self._row_damaged("the chain does not begin with the hash of this source's name")
        if self._expected and self._expected <= head.seq:
            message = f"deltas {self._expected}..{head.seq} are not there"
            missing = keys.block_key(self.no, self._expected)
            yield self._walk._fault(Kind.MISSING, DELTAS, missing, message, self.name, self._expected)
        elif self._expected > head.seq + 1:
            yield self._unknown(
                key, head.seq + 1, f"deltas up to {self._expected - 1} stand behind the head {head.seq}"
            )
        elif self._hash is not None and self._hash != head.hash:
            yield self._row_damaged("the chain does not lead to the head's hash")
        if self._whole and self._timestamp >= 0 and self._timestamp != head.timestamp:
            yield self._row_damaged("the head's timestamp is not that of its delta")
        if self._whole and self._size != head.size_bytes:
            yield self._row_damaged(f"the head counts {head.size_bytes} bytes of records, there are {self._size}")

    def _damaged(self, key: bytes, seq: int, message: str) -> Fault:
        self._whole = False
        return self._walk._fault(Kind.DAMAGED, DELTAS, key, message, self.name, seq)

    def _unknown(self, key: bytes, seq: int, message: str) -> Fault:
        self._whole = False
        return self._walk._fault(Kind.UNKNOWN, DELTAS, key, message, self.name, seq)

    def _row_damaged(self, message: str) -> Fault:
        return self._walk._fault(Kind.DAMAGED, SOURCES, keys.source_key(self.no), message, self.name, self._head.seq)


def _first_difference(computed: bytes, kept: Sequence[int] | bytes) -> int | None:
    """Index of the first tag that differs, None if none does."""
    kept = bytes(kept)
    for index in range(0, len(computed), TAG_BYTES):
        if computed[index : index + TAG_BYTES] != kept[index : index + TAG_BYTES]:
            return index // TAG_BYTES
    return None
