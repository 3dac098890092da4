"""Walks a whole store and yields every fault it finds, by dot, key and file (invariant I9). Changes nothing.

What is checked: sources are numbered densely and each row says what its deltas say; every block is one its encoding
allows; seqs are dense from the floor to the head; the hash chain leads from the floor, through every block and tag, to
the head; the time index has exactly the entry each block asks for; erased deltas have their note, and notes their
delta; annotations are as they were kept; nothing unknown stands anywhere. Nothing in a store can tell of a tail that
went with its head, of a source renamed when its beginning was dropped, of another reason in a note, or of an annotation
that is not there: the witness, peers and signatures can.

Missing, damaged and unknown are three kinds of fault (invariant I15). Where RocksDB cannot read a file the walk says
so, and goes on behind the damage.

The walk goes in portions, each on a view of one moment, and its place between them is plain data. So memory is bounded,
no handle is held, the log may be written meanwhile, and `scrub` can do one portion now and the next tomorrow. Blocks
are read from the disk anew, not from the cache. Synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs

from deltalog import block, keys
from deltalog.errors import DecodeError, UsageError
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES
from deltalog.rocks_store import RocksStore
from deltalog.verify_source import SourceWalk
from deltalog.verify_walk import STAGES, UNREADABLE, WIDTHS, Fault, Kind, Spent, Walk

__all__ = ["PORTION", "Fault", "Kind", "Progress", "scrub", "verify"]

PORTION: Final = 512
"""Blocks, rows and index entries that `verify` looks at in one view: about 0.2 s."""


class Progress(Protocol):
    """Called behind each portion, for each of the stages it was in: how much of how much was walked.

    The stages are sources, records, index, meta and snapshots. Records are counted in deltas, all else in rows. May
    raise, which ends the walk.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def verify(store: RocksStore, *, progress: Progress = _silent, resume: bytes = b"") -> Iterator[Fault]:
    """Walk everything, or what is left from a position of `scrub` on; yield each fault as it is found."""
    heads = store.heads().values()
    totals = {"sources": len(heads), "records": sum(head.count for head in heads)}
    done = dict.fromkeys(STAGES, 0)
    position, more = resume, True
    while more:
        portion = _Portion(store, position, PORTION)
        position = portion.run()
        yield from portion.faults
        totals["index"] = portion.place.blocks
        for stage, count in portion.done.items():
            done[stage] += count
            if count:
                progress(stage, done[stage], max(done[stage], totals.get(stage, 0)))
        more = bool(position)


def scrub(store: RocksStore, position: bytes, blocks: int) -> tuple[bytes, list[Fault]]:
    """Walk about `blocks` blocks (rows, index entries) from `position`, b"" to begin; return the next one, and faults.

    The next position is b"" when all was walked. It is plain data, good across restarts; keep it where you like (meta
    has a key for it). The size in a source's row is compared only if nothing was dropped or erased, and the store was
    not opened again, while the source was walked.
    """
    if blocks < 1:
        raise UsageError(f"blocks must be at least 1, not {blocks}")
    portion = _Portion(store, position, blocks)
    return portion.run(), portion.faults


class _Portion(Walk):
    """The stages of a walk."""

    def run(self) -> bytes:
        """Walk; return where to go on."""
        place = self.place
        stages = (self._sources, self._records, self._index, self._meta, self._snapshots)
        with self.view:
            if self.fresh:
                self.store.db.forget_cached()
            try:
                for stage in stages[place.stage :]:
                    stage()
                    place.stage, place.key, place.source_no = min(place.stage + 1, len(STAGES) - 1), b"", 0
            except Spent:
                return place.pack()
            finally:
                if self.damage_behind is not None:
                    self.unreadable(DELTAS, self.damage_behind)
        return b""

    def _sources(self) -> None:
        """Every row of sources: numbered densely, one that this program wrote."""
        place = self.place
        for key, value in self.rows(SOURCES):
            try:
                source_no, name, _ = keys.decode_head(key, value)
            except DecodeError as error:
                known = self._no_row(SOURCES, key, error)
                place.source_no += known
                continue
            if source_no > place.source_no:
                message = f"rows {place.source_no} to {source_no - 1} are not there"
                self.fault(Kind.MISSING, SOURCES, keys.source_key(place.source_no), message)
            loaded = self.name(source_no)
            if loaded not in ("", name):
                self.fault(Kind.DAMAGED, SOURCES, key, f"the row of {loaded!r} names {name!r}", loaded)
            place.source_no = source_no + 1
        if place.source_no < self.sources:
            message = f"rows {place.source_no} to {self.sources - 1} are not there"
            self.fault(Kind.MISSING, SOURCES, keys.source_key(place.source_no), message)

    def _no_row(self, family: str, key: bytes, error: DecodeError) -> bool:
        """Note a row that is none; return whether it stands under a key of the family's shape."""
        known = len(key) == WIDTHS[family]
        self.fault(Kind.DAMAGED if known else Kind.UNKNOWN, family, key, str(error))
        return known

    def _records(self) -> None:
        """The blocks of every source, with the index entry and the notes each asks for; then any other keys."""
        place = self.place
        while (row := self.row(place.source_no)) is not None:
            SourceWalk(self, *row).run()
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
        """Every entry of the time index: one that a block asks for. What it says was checked with the block."""
        for key, value in self.rows(BY_TIME):
            try:
                entry = keys.parse_time_entry(key, value)
            except DecodeError as error:
                self._no_row(BY_TIME, key, error)
                continue
            name = self.name(entry.source_no)
            try:
                held = self.get(DELTAS, entry.block_key)
                first, last = block.interval(held) if held is not None else (0, 0)
            except (DecodeError, *UNREADABLE):
                continue  # was noted with the records
            if held is None:
                self.fault(Kind.DAMAGED, BY_TIME, key, "the block of this entry is not there", name, entry.seq)
            elif attrs.evolve(entry, first=first, last=last).key != key:
                self.fault(Kind.UNKNOWN, BY_TIME, key, "the block of this entry asks for another", name, entry.seq)

    def _meta(self) -> None:
        """Every row of meta, annotations too; and that each note of an erasure has its erased delta."""
        for key, value in self.rows(META):
            note, annotation = key.startswith(keys.META_ERASED), key.startswith(keys.META_ANNOTATION)
            if not note and not annotation and key not in keys.META_ROWS:
                self.fault(Kind.UNKNOWN, META, key, "no such row is ever written")
                continue
            try:
                content = keys.decode_annotation(key, value) if annotation else keys.decode_meta(key, value)
            except DecodeError as error:
                self.fault(Kind.DAMAGED, META, key, str(error))
                continue
            if note:
                self._note(key, content)
            elif not _CONTENTS.get(key, _anything)(content, self.store):
                self.fault(Kind.DAMAGED, META, key, f"cannot be {content!r}"[:200])
        for key in (keys.META_FORMAT, keys.META_STORE_ID):
            if self.readable(META, key) and self.get(META, key) is None:
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
        elif seq > row[1].floor and self._is_whole(name, source_no, seq):
            self.fault(Kind.DAMAGED, META, key, "a note of an erasure, but the delta is not erased", name, seq)

    def _is_whole(self, name: str, source_no: int, seq: int) -> bool:
        """Whether a delta is there and not erased; False where it cannot be read, which was noted with the records."""
        at_most, at_least = keys.block_key(source_no, seq), keys.block_key(source_no, 0)
        try:
            key, value = self.view.last(DELTAS, at_most, at_least) or (at_most, b"")
            part, _ = block.decode_part(name, keys.parse_block_key(key)[1], value, seq - 1, seq)
        except (DecodeError, *UNREADABLE):
            return False
        return bool(part) and not part[0].erased

    def _snapshots(self) -> None:
        """A family in which nothing stands yet."""
        for key, _ in self.rows(SNAPSHOTS):
            self.fault(Kind.UNKNOWN, SNAPSHOTS, key, "no snapshot is ever written")


def _anything(_content: object, _store: RocksStore) -> bool:
    return True


_CONTENTS: Final[Mapping[bytes, Callable[[Any, RocksStore], bool]]] = MappingProxyType(
    {
        keys.META_FORMAT: lambda content, _: content == keys.FORMAT,
        keys.META_STORE_ID: lambda content, store: content == store.store_id,
        keys.META_INCARNATIONS: lambda content, _: isinstance(content, list) and {type(s) for s in content} <= {str},
    }
)
"""What a row of meta must be, as far as this file can say."""
