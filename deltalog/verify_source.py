"""The blocks of one source as `verify` walks over them: seqs, chain, tags, index entries, notes, the row at the end.

What must come next stands in the walk's place, so that a portion may end between any two blocks. Until the next one
blocks may be merged, dropped and erased.

Who is to blame: a record that its tag does not fit. Where all tags fit and yet a block does not lead on to the next,
one of the two was replaced together with its tags. If the second one leads on to the third, it was the first; else it
was the second.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltalog import block, chain, keys
from deltalog.chain import TAG_BYTES
from deltalog.delta import Delta
from deltalog.errors import DecodeError
from deltalog.keys import BY_TIME, DELTAS, META, SOURCES, Head
from deltalog.verify_walk import UNREADABLE, Damage, Kind, Walk

_ROW = -1
"""A suspect that is the source's row: its hash at the floor."""


class SourceWalk:
    """A walk over the source that the place names, from there on."""

    def __init__(self, walk: Walk, name: str, head: Head) -> None:
        self._walk = walk
        self._place = walk.place
        self._name = name
        self._head = head
        self._no = walk.place.source_no
        self._damage: Damage | None = None
        """What could not be read since the last block."""
        self._seam = b""
        """Key of a block in whose midst the portion before has ended: blocks were merged since."""

    def run(self) -> None:
        """Go on to the end of the source. Raises `Spent` at the portion's end."""
        place, walk = self._place, self._walk
        if not place.begun:
            self._begin()
        begin = self._resume() or place.key
        for key, value in walk.read(DELTAS, begin, keys.source_key(self._no + 1)):
            if isinstance(value, Damage):
                self._damage, walk.damage_behind = value, None
                self._lose_hash()
            else:
                walk.spend(0)
                place.key = key + b"\0"
                self._take(key, value)
        self._end()

    def _begin(self) -> None:
        place, head = self._place, self._head
        place.begun, place.key = True, keys.source_key(self._no) if self._no else b""
        place.seq, place.hash, place.rewrites = head.floor + 1, head.floor_hash, self._walk.rewrites
        place.timestamp, place.size_bytes, place.before, place.suspect = -1, 0, 0, 0
        if not head.floor and head.floor_hash != chain.genesis(self._name):
            self._row_fault("the chain does not begin with the hash of this source's name", 1)
            place.hash = b""

    def _resume(self) -> bytes | None:
        """Where to read on, if not at the place's key."""
        place, head = self._place, self._head
        if place.rewrites != self._walk.rewrites:
            place.rewrites = 0
        if 0 < place.seq <= head.floor:
            place.seq, place.hash, place.before, place.suspect = head.floor + 1, head.floor_hash, 0, 0
        try:
            key, value = self._walk.view.last(DELTAS, keys.block_key(self._no, max(0, place.seq - 1))) or (b"", b"")
            no, first = keys.parse_block_key(key)
            begins_before = no == self._no and head.floor < first <= max(place.before, head.floor + 1)
            if begins_before and first < place.seq and (place.seq < first + block.weigh(value)[0] or key >= place.key):
                self._seam = key
                return min(key, place.key)
        except (DecodeError, *UNREADABLE):
            pass  # the walk comes by again
        return None

    # --------------------------------------------------------------------------------------------------------- a block

    def _take(self, key: bytes, value: bytes) -> None:
        """The next key of the source."""
        place, walk = self._place, self._walk
        try:
            first = keys.parse_block_key(key)[1]
        except DecodeError as error:
            walk.fault(Kind.UNKNOWN, DELTAS, key, str(error))
            return
        place.blocks += 1
        if self._damage is not None:
            walk.unreadable(DELTAS, self._damage, *self._gap(first))
            self._damage, place.seq = None, 0
        try:
            held = block.decode(self._name, first, value)
        except DecodeError as error:
            walk.fault(Kind.DAMAGED, DELTAS, key, str(error), self._name, first)
            self._lose_hash()
            place.seq = 0
            return
        if self._in_place(key, first):
            self._take_block(key, first, held)

    def _in_place(self, key: bytes, first: int) -> bool:
        """Whether a block stands where the walk can go on from it; if it is not the next one, that is a fault."""
        place, walk = self._place, self._walk
        if key == self._seam:
            return True
        if first <= self._head.floor or first < place.seq:
            message = f"a block where seq {place.seq} must come, above the floor {self._head.floor}"
            walk.fault(Kind.UNKNOWN, DELTAS, key, message, self._name, first)
            return False
        name, seq, last = self._gap(first)
        if seq:
            message = f"deltas {seq} to {last} are not there"
            walk.fault(Kind.MISSING, DELTAS, keys.block_key(self._no, seq), message, name, seq)
            self._lose_hash()
        return True

    def _take_block(self, key: bytes, first: int, held: block.Block) -> None:
        place, walk = self._place, self._walk
        deltas = held.deltas[place.seq - first :] if key == self._seam else held.deltas
        if not deltas:
            return  # what went by was cut at a floor
        if deltas[0].timestamp <= place.timestamp:
            self._record_fault(key, deltas[0].seq, "its timestamp does not come after its predecessor's")
        self._chain(key, first, held)
        self._entry(first, held)
        self._notes(deltas)
        place.before, place.seq, place.timestamp = first, deltas[-1].seq + 1, deltas[-1].timestamp
        place.size_bytes += sum(len(delta.record) for delta in deltas)
        walk.done["records"] += len(deltas)

    def _gap(self, first: int) -> tuple[str, int, int]:
        """Source, first and last seq of what must come before `first` and did not; ("", 0, 0) if nothing lacks."""
        seq = self._place.seq
        return (self._name, seq, first - 1) if 0 < seq < first else ("", 0, 0)

    # -------------------------------------------------------------------------------------------------------- the chain

    def _chain(self, key: bytes, first: int, held: block.Block) -> None:
        """Lead the chain on, from what went by through the tags."""
        place = self._place
        hashes = chain.extend(held.previous, held.records)
        bad = _differs(hashes, held.tags)
        reached = hashes[place.seq - first - 1] if key == self._seam else held.previous
        fits = place.hash in (b"", reached)
        if bad is not None and not fits and key != self._seam:
            hashes = chain.extend(place.hash, held.records)
            bad, fits = _differs(hashes, held.tags), True
            if bad is None:
                self._record_fault(key, first, "its block gives another hash of what stands before it")
        if bad is not None:
            self._record_fault(key, first + bad, "it is not the record that was chained")
            self._lose_hash()
        elif fits:
            self._settle()
            place.hash = hashes[-1]
        else:
            place.hash = hashes[-1] if self._suspect() else b""

    def _suspect(self) -> bool:
        """This block fits in itself and not to what went by. Returns whether to compare what follows with its end."""
        place, seq = self._place, self._place.seq
        if place.suspect:  # the one before did not fit to what went by either
            place.suspect = 0
            self._replaced(place.before)
        elif place.before:
            place.suspect = place.before
        elif self._head.floor:
            place.suspect = _ROW
        else:
            self._replaced(seq)  # the hash of a name is sure
            return False
        return True

    def _settle(self) -> None:
        """No more can be found out about a suspect: it was the one."""
        place = self._place
        suspect, place.suspect = place.suspect, 0
        if suspect == _ROW:
            self._row_fault("the chain does not begin with its hash at the floor", self._head.floor + 1)
        elif suspect:
            self._replaced(suspect)

    def _replaced(self, first: int) -> None:
        key = keys.block_key(self._no, first)
        self._record_fault(key, first, "deltas of its block were replaced: the chain does not lead through it")

    def _lose_hash(self) -> None:
        """What comes next has nothing to lead on from."""
        self._settle()
        self._place.hash, self._place.rewrites = b"", 0

    # -------------------------------------------------------------------------------------------------- index and notes

    def _entry(self, first: int, held: block.Block) -> None:
        """The one index entry that a block asks for."""
        walk, entry = self._walk, keys.time_entry(self._no, first, held.records)
        try:
            value = walk.get(BY_TIME, entry.key)
        except UNREADABLE as error:
            walk.unreadable(BY_TIME, Damage(entry.key, str(error)))
            return
        if value is None:
            message = "the block has no entry in the time index"
            walk.fault(Kind.MISSING, BY_TIME, entry.key, message, self._name, first)
        elif value != entry.value:
            message = "the entry does not say what its block holds"
            walk.fault(Kind.DAMAGED, BY_TIME, entry.key, message, self._name, first)

    def _notes(self, deltas: Sequence[Delta]) -> None:
        """The note of each erasure."""
        for key, seq in ((keys.erased_key(self._no, delta.seq), delta.seq) for delta in deltas if delta.erased):
            try:
                noted = self._walk.get(META, key) is not None
            except UNREADABLE:
                continue  # is noted with meta
            if not noted:
                message = "an erased delta has no note of its erasure"
                self._walk.fault(Kind.MISSING, META, key, message, self._name, seq)

    # ---------------------------------------------------------------------------------------------------------- the end

    def _end(self) -> None:
        """No more blocks: the row must say what went by."""
        place, head, walk = self._place, self._head, self._walk
        name, seq, last = self._gap(head.seq + 1)
        if self._damage is not None and not seq:
            walk.damage_behind = self._damage
        elif self._damage is not None:
            walk.unreadable(DELTAS, self._damage, name, seq, last)
        elif seq:
            message = f"deltas {seq} to {last} are not there"
            walk.fault(Kind.MISSING, DELTAS, keys.block_key(self._no, seq), message, name, seq)
        if place.seq > head.seq + 1:
            self._row_fault(f"it ends at {head.seq}, but deltas up to {place.seq - 1} stand there", head.seq + 1)
        elif place.seq == head.seq + 1:
            self._compare_row()
        self._settle()

    def _compare_row(self) -> None:
        place, head = self._place, self._head
        if place.hash not in (b"", head.hash):
            if place.suspect:
                place.suspect = 0
                self._replaced(place.before)
            else:
                message = f"the chain leads to another hash: it or deltas from {place.before} on were replaced"
                self._row_fault(message, head.seq)
        if place.before and place.timestamp != head.timestamp:
            self._row_fault("its timestamp is not that of its last delta", head.seq)
        if place.rewrites and place.size_bytes != head.size_bytes:
            message = f"it counts {head.size_bytes} bytes of records, there are {place.size_bytes}"
            self._row_fault(message, head.seq)

    def _record_fault(self, key: bytes, seq: int, message: str) -> None:
        self._walk.fault(Kind.DAMAGED, DELTAS, key, message, self._name, seq)

    def _row_fault(self, message: str, seq: int) -> None:
        self._walk.fault(Kind.DAMAGED, SOURCES, keys.source_key(self._no), message, self._name, seq)


def _differs(hashes: Sequence[bytes], tags: bytes) -> int | None:
    """Index of the first hash that its tag was not taken from; None if all tags fit."""
    computed = chain.tags(hashes)
    if computed == tags:
        return None
    starts = range(0, len(computed), TAG_BYTES)
    return next(at for at in starts if computed[at : at + TAG_BYTES] != tags[at : at + TAG_BYTES]) // TAG_BYTES
