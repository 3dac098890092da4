"""Walks a whole store and yields every fault it finds, by dot, key and file (invariant I9). Changes nothing.

What is checked: sources are numbered densely and each row says what its deltas say; every block is one its encoding
allows; seqs are dense from the floor to the head; the hash chain leads from the floor, through every block and tag, to
the head; the time index has exactly the entry each block asks for; erased deltas have their note, and notes their
delta; nothing unknown stands anywhere. Nothing in a store can tell of a tail that went with its head, of a source
renamed when its beginning was dropped, or of another reason in a note: the witness, peers and signatures can.

Missing, damaged and unknown are three kinds of fault (invariant I15). Where RocksDB cannot read a file the walk says
so, and goes on behind the damage.

The walk goes in portions, each on a view of one moment, and its place between them is plain data. So memory is bounded,
no handle is held, the log may be written meanwhile, and `scrub` can do one portion now and the next tomorrow. Blocks
are read from the disk anew, not from the cache. Synchronous.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs
import msgpack

from deltalog import block, chain, keys
from deltalog.chain import TAG_BYTES
from deltalog.errors import DecodeError, StoreCorrupt, StoreIOError, UsageError
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head
from deltalog.rocks_store import RocksStore

PORTION: Final = 512
"""Blocks, rows and index entries that `verify` looks at in one view: about 0.2 s."""
STAGES: Final = ("sources", "records", "index", "meta", "snapshots")


class Kind(enum.Enum):
    """What is wrong."""

    MISSING = "missing"
    """Something that must be there is not."""
    DAMAGED = "damaged"
    """Something is there and cannot be right, or cannot be read."""
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
    """Called after each portion for each of the `STAGES` it was in: how much of how much was walked.

    Records are counted in deltas, all else in rows. May raise, which ends the walk.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def verify(store: RocksStore, *, progress: Progress = _silent, resume: bytes = b"") -> Iterator[Fault]:
    """Walk everything, or what is left from a position of `scrub` on; yield each fault as it is found."""
    heads = store.heads().values()
    totals = {"sources": len(heads), "records": sum(head.count for head in heads)}
    done = dict.fromkeys(STAGES, 0)
    position = resume
    while True:
        portion = _Portion(store, position, PORTION)
        position = portion.walk()
        yield from portion.faults
        for stage, count in portion.done.items():
            done[stage] += count
            totals[stage] = max(done[stage], totals.get(stage, 0), portion.place.blocks if stage == "index" else 0)
            if count:
                progress(stage, done[stage], totals[stage])
        if not position:
            return


def scrub(store: RocksStore, position: bytes, blocks: int) -> tuple[bytes, list[Fault]]:
    """Walk about `blocks` blocks (rows, index entries) from `position`, b"" to begin; return the next one, and faults.

    The next position is b"" when all was walked. It is plain data, good across restarts; keep it where you like (meta
    has a key for it). The size in a source's row is compared only if nothing was dropped or erased, and the store was
    not opened again, while the source was walked.
    """
    if blocks < 1:
        raise UsageError(f"blocks must be at least 1, not {blocks}")
    portion = _Portion(store, position, blocks)
    return portion.walk(), portion.faults


# ----------------------------------------------------------------------------------------------------------- the place


@attrs.define
class _Place:
    """How far a walk has come: stage and key to go on from; and what went by of the source it stands in."""

    stage: int = 0
    key: bytes = b""
    """Where to read on in the stage's family."""
    blocks: int = 0
    """Blocks seen so far."""
    source_no: int = 0
    begun: bool = False
    """Whether the walk stands in the source; else it is the next one."""
    seq: int = 0
    """Seq that must come next; 0: take what comes."""
    hash: bytes = b""
    """Chain hash behind what went by; b"" if that cannot be known."""
    timestamp: int = -1
    """Timestamp of what went by last."""
    size_bytes: int = 0
    """Bytes of the records that went by."""
    before: int = 0
    """First seq of the block that went by last; 0: none did."""
    suspect: int = 0
    """First seq of a block that fits in itself, but what follows does not lead on from it; or -1: the head row."""
    rewrites: int = 0
    """`RocksStore.rewrites` when the source was begun; 0: `size_bytes` says nothing."""

    @classmethod
    def parse(cls, position: bytes) -> _Place:
        """The place `pack` was called on."""
        try:
            place = cls(*msgpack.unpackb(position)) if position else cls()
            valid = 0 <= place.stage < len(STAGES) and place.source_no >= 0
        except (ValueError, TypeError) as error:
            raise UsageError(f"position is none that scrub returned: {error}") from error
        if not valid:
            raise UsageError("position is none that scrub returned")
        return place

    def pack(self) -> bytes:
        """Plain data."""
        packed: bytes = msgpack.packb(attrs.astuple(self))
        return packed

    def lose(self) -> None:
        """Take seq and hash from what comes next."""
        self.seq, self.hash, self.suspect, self.rewrites = 0, b"", 0, 0


# ---------------------------------------------------------------------------------------------------------- a portion


@attrs.frozen
class _Damage:
    """Something from a key on that RocksDB cannot read."""

    key: bytes
    text: str


_UNREADABLE: Final = (StoreCorrupt, StoreIOError)
_WIDTHS: Final = MappingProxyType({DELTAS: 12, BY_TIME: keys.TIME_KEY_BYTES, SOURCES: 4, META: 32, SNAPSHOTS: 32})
"""Bytes of a key, or as many as matter."""
_NEAR: Final = 64
"""Keys tried one by one behind damage, before the steps grow."""
_FILE: Final = re.compile(r"\d+\.sst")


class _Spent(Exception):  # no error: the portion is over
    """The portion has looked at as much as it may."""


class _Portion:
    """A walk on one view, from a place on."""

    def __init__(self, store: RocksStore, position: bytes, blocks: int) -> None:
        self.place = _Place.parse(position)
        self.faults: list[Fault] = []
        self.done = dict.fromkeys(STAGES, 0)
        self.store = store
        self._left = blocks
        self._said = ""
        if not position:
            store.db.forget_cached()

    def walk(self) -> bytes:
        """Walk; return where to go on."""
        stages = (self._sources, self._records, self._index, self._meta, self._snapshots)
        self.view, self.rewrites = self.store.view_of_all()
        with self.view:
            try:
                for stage in stages[self.place.stage :]:
                    stage()
                    self.place.stage, self.place.key, self.place.source_no = self.place.stage + 1, b"", 0
            except _Spent:
                return self.place.pack()
        return b""

    def spend(self, count: int) -> None:
        """Count `count` things done in this stage; called before each block or row. Raises at the portion's end."""
        if self._left <= 0:
            raise _Spent
        self._left -= 1
        self.done[STAGES[self.place.stage]] += count

    def rows(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from the place on, one of the portion's count each. What cannot be read is said."""
        for key, value in self.read(family, self.place.key, None):
            if isinstance(value, _Damage):
                self.unreadable(family, value)
            else:
                self.spend(1)
                self.place.key = key + b"\0"
                yield key, value

    def read(self, family: str, begin: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes | _Damage]]:
        """Keys and values of [begin, end); where RocksDB cannot read, the damage, and then what is behind it."""
        at: bytes | None = begin
        while at is not None:
            try:
                for key, value in self.view.scan(family, at, end):
                    at = key + b"\0"
                    yield key, value
                return
            except _UNREADABLE as error:
                damage = _Damage(at, str(error))
            yield damage.key, damage
            at = self._behind(family, at, end)

    def _behind(self, family: str, begin: bytes, end: bytes | None) -> bytes | None:
        """The least key behind damage from which on can be read again; None if there is none up to `end`."""
        width = max(_WIDTHS[family], len(begin)) + 1
        most = 1 << 8 * width if end is None else int.from_bytes(end.ljust(width, b"\0"))

        def readable(number: int) -> bool:
            try:
                next(self.view.scan(family, number.to_bytes(width), end), None)
            except _UNREADABLE:
                return False
            return True

        low, step, near = int.from_bytes(begin.ljust(width, b"\0")), 1 << 8, _NEAR
        while low + step < most and not readable(low + step):
            low, near = low + step, near - 1
            step <<= near < 0
        high = min(low + step, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if readable(middle) else (middle, high)
        return high.to_bytes(width) if high < most else None

    def get(self, family: str, key: bytes) -> bytes | None:
        """Value of a key."""
        found = self.view.last(family, key, key)
        return None if found is None else found[1]

    def fault(self, kind: Kind, family: str, key: bytes, message: str, source: str = "", seq: int = 0) -> None:
        """Note a fault."""
        file = "" if kind is Kind.MISSING else self.store.db.file_of(family, key) or ""
        fault = Fault(kind=kind, family=family, key=key, source=source, seq=seq, file=file, message=message)
        self.faults.append(fault)

    def unreadable(self, family: str, damage: _Damage, source: str = "", seq: int = 0, until: int = 0) -> None:
        """Note what RocksDB says of a file; once, if no deltas can be named and it was said just before."""
        if seq or damage.text != self._said:
            self._said = damage.text
            named = _FILE.search(damage.text)
            file = named[0] if named is not None else self.store.db.file_of(family, damage.key) or ""
            deltas = f"deltas {seq} to {until} cannot be read: " if seq else ""
            key = keys.block_key(self.place.source_no, seq) if seq else damage.key
            fault = Fault(
                kind=Kind.DAMAGED,
                family=family,
                key=key,
                source=source,
                seq=seq,
                file=file,
                message=deltas + damage.text,
            )
            self.faults.append(fault)

    def name(self, source_no: int) -> str:
        """Source of a number, as the store has loaded it; "" if there is none."""
        try:
            return self.store.name(source_no)
        except StoreCorrupt:
            return ""

    def row(self, source_no: int) -> tuple[str, Head] | None:
        """Name and head of a source; as the store has loaded them where the row is not right, which `_sources` says."""
        key = keys.source_key(source_no)
        try:
            value = self.get(SOURCES, key)
            if value is not None:
                return keys.decode_head(key, value)[1:]
        except (DecodeError, *_UNREADABLE):
            pass
        loaded = self.store.row(name := self.name(source_no))
        return None if loaded is None else (name, loaded[1])

    # ------------------------------------------------------------------------------------------------------- the stages

    def _sources(self) -> None:
        """Every row of sources: numbered densely, one that this program wrote."""
        place = self.place
        for key, value in self.rows(SOURCES):
            try:
                source_no, name, _ = keys.decode_head(key, value)
            except DecodeError as error:
                known = len(key) == _WIDTHS[SOURCES]
                self.fault(Kind.DAMAGED if known else Kind.UNKNOWN, SOURCES, key, str(error))
                place.source_no += known
                continue
            if source_no > place.source_no:
                message = f"rows {place.source_no} to {source_no - 1} are not there"
                self.fault(Kind.MISSING, SOURCES, keys.source_key(place.source_no), message)
            loaded = self.name(source_no)
            if loaded not in ("", name):
                self.fault(Kind.DAMAGED, SOURCES, key, f"the row of {loaded!r} names {name!r}", loaded)
            place.source_no = source_no + 1

    def _records(self) -> None:
        """The blocks of every source, with the index entry and the notes each asks for; then any other keys."""
        place = self.place
        while (row := self.row(place.source_no)) is not None:
            _Source(self, *row).walk()
            place.source_no, place.begun, place.key = place.source_no + 1, False, b""
        place.key = place.key or keys.source_key(place.source_no)
        for key, _ in self.rows(DELTAS):
            try:
                source_no, seq = keys.parse_block_key(key)
            except DecodeError as error:
                self.fault(Kind.UNKNOWN, DELTAS, key, str(error))
                continue
            if source_no >= place.source_no:
                message = f"blocks of source {source_no} stand from seq {seq} on, but it has no row"
                self.fault(Kind.MISSING, SOURCES, keys.source_key(source_no), message)
                place.source_no = source_no + 1

    def _index(self) -> None:
        """Every entry of the time index: one that a block asks for. (What it says was checked with the block.)"""
        for key, value in self.rows(BY_TIME):
            try:
                entry = keys.parse_time_entry(key, value)
            except DecodeError as error:
                known = len(key) == _WIDTHS[BY_TIME]
                self.fault(Kind.DAMAGED if known else Kind.UNKNOWN, BY_TIME, key, str(error))
                continue
            name = self.name(entry.source_no)
            try:
                held = self.get(DELTAS, entry.block_key)
                asked = held and attrs.evolve(entry, **_interval(held)).key
            except (DecodeError, *_UNREADABLE):
                continue  # was said with the records
            if not held:
                self.fault(Kind.DAMAGED, BY_TIME, key, "the block of this entry is not there", name, entry.seq)
            elif asked != key:
                self.fault(Kind.UNKNOWN, BY_TIME, key, "the block of this entry asks for another", name, entry.seq)

    def _meta(self) -> None:
        """Every row of meta; and that each note of an erasure has its erased delta."""
        for key, value in self.rows(META):
            note = key.startswith(keys.META_ERASED)
            if not note and key not in keys.META_ROWS:
                self.fault(Kind.UNKNOWN, META, key, "no such row is ever written")
                continue
            try:
                content = keys.decode_meta(key, value)
            except DecodeError as error:
                self.fault(Kind.DAMAGED, META, key, str(error))
                continue
            if note:
                self._note(key, content)
            elif not _META_CHECKS.get(key, _anything)(content, self.store):
                self.fault(Kind.DAMAGED, META, key, f"cannot be {content!r}"[:200])
        for key in (keys.META_FORMAT, keys.META_STORE_ID):
            if self.get(META, key) is None:
                self.fault(Kind.MISSING, META, key, "the row is not there")

    def _note(self, key: bytes, content: object) -> None:
        try:
            source_no, seq = keys.parse_block_key(key[len(keys.META_ERASED) :])
        except DecodeError as error:
            self.fault(Kind.UNKNOWN, META, key, str(error))
            return
        name, row = self.name(source_no), self.row(source_no)
        if not (isinstance(content, list) and [type(part) for part in content] == [str, int]):
            self.fault(Kind.DAMAGED, META, key, f"no note of an erasure: {content!r}"[:200], name, seq)
        if row is None or not 0 < seq <= row[1].seq:
            self.fault(Kind.UNKNOWN, META, key, "a note of an erasure of no delta of this log", name, seq)
        elif seq > row[1].floor and self._kept(name, source_no, seq):
            self.fault(Kind.DAMAGED, META, key, "a note of an erasure, but the delta is not erased", name, seq)

    def _kept(self, name: str, source_no: int, seq: int) -> bool:
        """Whether a delta is there with its payload; False where that cannot be read, which was said before."""
        try:
            key, value = self.view.last(DELTAS, keys.block_key(source_no, seq)) or (b"", b"")
            part = block.decode_part(name, keys.parse_block_key(key)[1], value, seq - 1, seq)[0]
        except (DecodeError, *_UNREADABLE):
            return False
        return bool(part) and not part[0].erased

    def _snapshots(self) -> None:
        """A family in which nothing stands yet."""
        for key, _ in self.rows(SNAPSHOTS):
            self.fault(Kind.UNKNOWN, SNAPSHOTS, key, "no snapshot is ever written")


def _interval(value: bytes) -> dict[str, int]:
    first, last = block.interval(value)
    return {"first": first, "last": last}


def _anything(_content: object, _store: RocksStore) -> bool:
    return True


_META_CHECKS: Final[Mapping[bytes, Callable[[Any, RocksStore], bool]]] = MappingProxyType(
    {
        keys.META_FORMAT: lambda content, _: content == keys.FORMAT,
        keys.META_STORE_ID: lambda content, store: content == store.store_id,
        keys.META_INCARNATIONS: lambda content, _: isinstance(content, list) and all(type(s) is str for s in content),
    }
)


# ------------------------------------------------------------------------------------------------------------ a source


class _Source:
    """The blocks of one source as they go by. What must come next stands in the place."""

    def __init__(self, portion: _Portion, name: str, head: Head) -> None:
        self._portion = portion
        self._place = portion.place
        self._name = name
        self._head = head
        self._no = portion.place.source_no
        self._damage: _Damage | None = None
        """What could not be read since the last block."""
        self._seam = b""
        """Key of a block in which the portion before has ended: blocks were merged since."""

    def walk(self) -> None:
        """Go on from the place to the end of the source, or of the portion."""
        place, portion = self._place, self._portion
        if not place.begun:
            self._begin()
        begin = self._resume() or place.key
        for key, value in portion.read(DELTAS, begin, keys.source_key(self._no + 1)):
            if isinstance(value, _Damage):
                self._damage = value
                place.hash, place.suspect, place.rewrites = b"", 0, 0
                continue
            portion.spend(0)
            place.key = key + b"\0"
            self._block(key, value)
        self._end()

    def _begin(self) -> None:
        place, head = self._place, self._head
        place.begun, place.key = True, keys.source_key(self._no) if self._no else b""
        place.seq, place.hash, place.rewrites = head.floor + 1, head.floor_hash, self._portion.rewrites
        place.timestamp, place.size_bytes, place.before, place.suspect = -1, 0, 0, 0
        if not head.floor and head.floor_hash != chain.genesis(self._name):
            self._row_fault("the chain does not begin with the hash of this source's name", 1)
            place.hash = b""

    def _resume(self) -> bytes | None:
        """Where to read on, if that is not the place's key: blocks may have been merged and dropped since."""
        place, head = self._place, self._head
        if place.rewrites != self._portion.rewrites:
            place.rewrites = 0
        if place.seq and place.seq <= head.floor:
            place.seq, place.hash, place.before, place.suspect = head.floor + 1, head.floor_hash, 0, 0
        try:
            key, value = self._portion.view.last(DELTAS, keys.block_key(self._no, place.seq)) or (b"", b"")
            no, first = keys.parse_block_key(key)
            if no == self._no and key < place.key and first < place.seq < first + block.weigh(value)[0]:
                self._seam = key
                return key
        except (DecodeError, *_UNREADABLE):
            pass
        return None

    def _block(self, key: bytes, value: bytes) -> None:
        """The next key: a block; its index entry; its notes."""
        place, portion = self._place, self._portion
        try:
            first = keys.parse_block_key(key)[1]
        except DecodeError as error:
            portion.fault(Kind.UNKNOWN, DELTAS, key, str(error))
            return
        place.blocks += 1
        if self._damage is not None:
            portion.unreadable(DELTAS, self._damage, *self._gap(first))
            self._damage, place.seq = None, 0
        try:
            held = block.decode(self._name, first, value)
        except DecodeError as error:
            portion.fault(Kind.DAMAGED, DELTAS, key, str(error), self._name, first)
            place.lose()
            return
        portion.done["records"] += len(held.deltas)
        if self._in_place(key, held):
            self._chain(key, held)
            place.before, place.seq = first, held.deltas[-1].seq + 1
            place.timestamp = held.deltas[-1].timestamp
            place.size_bytes += sum(len(delta.record) for delta in held.deltas)
            self._entry(held)
            self._notes(held)

    def _gap(self, until: int) -> tuple[str, int, int]:
        """Source, first and last seq of what must be before `until` and did not come; no source if nothing lacks."""
        place = self._place
        return (self._name, place.seq, until - 1) if 0 < place.seq < until else ("", 0, 0)

    def _in_place(self, key: bytes, held: block.Block) -> bool:
        """Whether a block stands where it can be walked on from; if not exactly where it must, say so."""
        place, first = self._place, held.deltas[0].seq
        if first <= self._head.floor or 0 < first < place.seq:
            if key == self._seam:
                return True
            message = f"seq {place.seq} must come here, behind the floor {self._head.floor}"
            self._portion.fault(Kind.UNKNOWN, DELTAS, key, message, self._name, first)
            return False
        name, seq, last = self._gap(first)
        if seq:
            key = keys.block_key(self._no, seq)
            self._portion.fault(Kind.MISSING, DELTAS, key, f"deltas {seq} to {last} are not there", name, seq)
            place.lose()
        if held.deltas[0].timestamp <= place.timestamp:
            self._record_fault(key, first, "its timestamp does not come after its predecessor's")
        return True

    def _chain(self, key: bytes, held: block.Block) -> None:
        """The chain through a block: from what went by, through its tags."""
        place, first = self._place, held.deltas[0].seq
        hashes = chain.extend(held.previous, held.records)
        bad = _differs(hashes, held.tags)
        done = place.seq - first if key == self._seam else 0
        reached = hashes[done - 1] if done else held.previous
        fits = not place.hash or place.hash == reached
        if bad is not None and not fits and not done:
            other = chain.extend(place.hash, held.records)
            if _differs(other, held.tags) is None:
                hashes, bad = other, None
                self._record_fault(key, first, "the block gives another hash of what stands before it")
                fits = True
            else:
                bad = _differs(other, held.tags)
        if bad is not None:
            self._record_fault(key, first + bad, "the record is not the one that was chained")
            self._settle(True)
            place.hash = b""
            return
        if not fits:
            self._suspect(first)
        else:
            self._settle(bool(place.hash))
        place.hash = hashes[-1]

    def _suspect(self, first: int) -> None:
        """A block that fits in itself, but not to what went by: one of the two was replaced; what follows decides."""
        place = self._place
        if place.suspect or not (place.before or self._head.floor):
            place.suspect = 0
            self._replaced(place.before or first)
        else:
            place.suspect = place.before or -1

    def _settle(self, fits: bool) -> None:
        """What follows leads on from the block behind a suspect: so the suspect was replaced."""
        place = self._place
        if place.suspect and fits:
            if place.suspect < 0:
                self._row_fault("the chain does not begin with the hash at the floor", place.before)
            else:
                self._replaced(place.suspect)
            place.suspect = 0

    def _replaced(self, first: int) -> None:
        message = "deltas of this block were replaced: what follows them does not lead on from them"
        self._record_fault(keys.block_key(self._no, first), first, message)

    def _entry(self, held: block.Block) -> None:
        """The one index entry a block asks for."""
        entry = keys.time_entry(self._no, held.deltas[0].seq, held.records)
        portion = self._portion
        try:
            value = portion.get(BY_TIME, entry.key)
        except _UNREADABLE as error:
            portion.unreadable(BY_TIME, _Damage(entry.key, str(error)))
            return
        if value is None:
            message = "the block has no entry in the time index"
            portion.fault(Kind.MISSING, BY_TIME, entry.key, message, self._name, entry.seq)
        elif value != entry.value:
            message = "the entry does not say what its block holds"
            portion.fault(Kind.DAMAGED, BY_TIME, entry.key, message, self._name, entry.seq)

    def _notes(self, held: block.Block) -> None:
        """The note of each erasure."""
        for delta in held.deltas:
            if delta.erased:
                key = keys.erased_key(self._no, delta.seq)
                try:
                    value = self._portion.get(META, key)
                except _UNREADABLE:
                    continue  # is said with meta
                if value is None:
                    message = "an erased delta has no note of its erasure"
                    self._portion.fault(Kind.MISSING, META, key, message, self._name, delta.seq)

    def _end(self) -> None:
        """No more blocks: the row must say what went by."""
        place, head = self._place, self._head
        name, seq, last = self._gap(head.seq + 1)
        if self._damage is not None:
            self._portion.unreadable(DELTAS, self._damage, name, seq, last)
        elif seq:
            key = keys.block_key(self._no, seq)
            self._portion.fault(Kind.MISSING, DELTAS, key, f"deltas {seq} to {last} are not there", name, seq)
        if seq or not place.seq:
            return
        if place.seq > head.seq + 1:
            self._row_fault(f"it ends at {head.seq}, but deltas up to {place.seq - 1} stand there", head.seq + 1)
            return
        if place.hash and place.hash != head.hash:
            if place.suspect:
                self._replaced(place.before)
            else:
                self._row_fault(
                    f"the chain leads to another hash: the row or deltas from {place.before} on were replaced", head.seq
                )
        else:
            self._settle(bool(place.hash))
        if place.before and place.timestamp != head.timestamp:
            self._row_fault("its timestamp is not that of its last delta", head.seq)
        if place.rewrites and place.size_bytes != head.size_bytes:
            self._row_fault(f"it counts {head.size_bytes} bytes of records, there are {place.size_bytes}", head.seq)

    def _record_fault(self, key: bytes, seq: int, message: str) -> None:
        self._portion.fault(Kind.DAMAGED, DELTAS, key, message, self._name, seq)

    def _row_fault(self, message: str, seq: int) -> None:
        self._portion.fault(Kind.DAMAGED, SOURCES, keys.source_key(self._no), message, self._name, seq)


def _differs(hashes: list[bytes], tags: bytes) -> int | None:
    """Index of the first hash that is not the one its tag was taken from; None if all are."""
    computed = chain.tags(hashes)
    if computed == tags:
        return None
    return next(
        n for n in range(len(hashes)) if computed[n * TAG_BYTES :][:TAG_BYTES] != tags[n * TAG_BYTES :][:TAG_BYTES]
    )
