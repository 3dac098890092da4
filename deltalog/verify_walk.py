"""What `verify` walks with: faults, its place in a store as plain data, and a view that is read past damage.

Knows nothing of what must stand where; that is in `verify_source` (the blocks of a source) and `verify` (all else).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import attrs
import msgpack

from deltalog import keys
from deltalog.delta import SEQ_MAX
from deltalog.errors import DecodeError, StoreCorrupt, StoreIOError, UsageError
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head
from deltalog.rocks_store import RocksStore

STAGES: Final = ("sources", "records", "index", "meta", "snapshots")
WIDTHS: Final = MappingProxyType({DELTAS: 12, BY_TIME: keys.TIME_KEY_BYTES, SOURCES: 4, META: 32, SNAPSHOTS: 32})
"""Bytes of a family's keys, or as many as matter."""
UNREADABLE: Final = (StoreCorrupt, StoreIOError)
"""What a read of a damaged file raises."""

_NEAR: Final = 1024
"""Seqs tried one by one behind damage, before the steps double: about what one page of the file holds."""
_FILE: Final = re.compile(r"\d+\.sst")


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


@attrs.define
class Place:
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
    """First seq of a block that fits in itself, while what follows does not lead on from it; -1: the source's row."""
    rewrites: int = 0
    """`RocksStore.rewrites` when the source was begun; 0: `size_bytes` says nothing."""

    @classmethod
    def parse(cls, position: bytes) -> Place:
        """The place that was packed; the beginning for b"". Raises `UsageError` for anything else."""
        try:
            values = msgpack.unpackb(position) if position else attrs.astuple(cls())
        except (ValueError, TypeError) as error:
            raise UsageError(f"position is none that scrub returned: {error}") from error
        if not isinstance(values, list | tuple) or [type(v) for v in values] != [type(v) for v in attrs.astuple(cls())]:
            raise UsageError("position is none that scrub returned")
        place = cls(*values)
        seqs = place.seq, place.before, place.suspect + 1
        sane = 0 <= place.stage < len(STAGES) and 0 <= place.source_no < 1 << 32 and place.blocks >= 0
        if not sane or not all(0 <= seq <= SEQ_MAX for seq in seqs):
            raise UsageError("position is none that scrub returned")
        return place

    def pack(self) -> bytes:
        """Plain data."""
        packed: bytes = msgpack.packb(attrs.astuple(self))
        return packed


@attrs.frozen
class Damage:
    """Something from a key on that RocksDB cannot read."""

    key: bytes
    text: str


class Spent(Exception):
    """Raised to end a portion that has looked at as much as it may. No error."""


class Walk:
    """A walk on one view, from a place on."""

    def __init__(self, store: RocksStore, position: bytes, blocks: int) -> None:
        self.store = store
        self.fresh = not position
        """Whether the walk begins here."""
        self.place = Place.parse(position)
        self.faults: list[Fault] = []
        self.done = dict.fromkeys(STAGES, 0)
        """Deltas walked, rows of the other stages."""
        self.damage_behind: Damage | None = None
        """Met behind a source that is whole: it will be the next one's, unless that is whole too."""
        self.view, self.rewrites, self.sources = store.view_of_all()
        self._left = blocks
        self._said = ""

    # --------------------------------------------------------------------------------------------------------- reading

    def spend(self, count: int) -> None:
        """Count `count` things done in this stage; called before each block or row. Raises `Spent`."""
        if self._left <= 0:
            raise Spent
        self._left -= 1
        self.done[STAGES[self.place.stage]] += count

    def rows(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from the place on. What cannot be read is noted."""
        for key, value in self.read(family, self.place.key, None):
            if isinstance(value, Damage):
                self.unreadable(family, value)
            else:
                self.spend(1)
                self.place.key = key + b"\0"
                yield key, value

    def read(self, family: str, begin: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes | Damage]]:
        """Keys and values of [begin, end); where RocksDB cannot read, the damage, and then what is behind it."""
        at: bytes | None = begin
        while at is not None:
            try:
                for key, value in self.view.scan(family, at, end):
                    at = key + b"\0"
                    yield key, value
                return
            except UNREADABLE as error:
                damage = Damage(at, str(error))
            yield damage.key, damage
            at = self._behind(family, damage.key, end)

    def _behind(self, family: str, begin: bytes, end: bytes | None) -> bytes | None:
        """The least key behind damage from which on can be read again; None if there is none up to `end`."""
        width = max(WIDTHS[family] + 1, len(begin))
        most = 1 << 8 * width if end is None else int.from_bytes(end.ljust(width, b"\0"))

        def readable(number: int) -> bool:
            return self.readable(family, number.to_bytes(width), end)

        low, step, near = int.from_bytes(begin.ljust(width, b"\0")), 1 << 8, _NEAR
        while low + step < most and not readable(low + step):
            low, near = low + step, near - 1
            step <<= near < 0
        high = min(low + step, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if readable(middle) else (middle, high)
        return high.to_bytes(width) if high < most else None

    def readable(self, family: str, begin: bytes, end: bytes | None = None) -> bool:
        """Whether the first key of [begin, end) can be read, or there is none."""
        try:
            next(self.view.scan(family, begin, end), None)
        except UNREADABLE:
            return False
        return True

    def get(self, family: str, key: bytes) -> bytes | None:
        """Value of a key."""
        found = self.view.last(family, key, key)
        return None if found is None else found[1]

    def name(self, source_no: int) -> str:
        """Source of a number, as the store has loaded it; "" if there is none."""
        try:
            return self.store.name(source_no)
        except StoreCorrupt:
            return ""

    def row(self, source_no: int) -> tuple[str, Head] | None:
        """Name and head of a source; as the store has loaded them where the row is not right. None: no such source."""
        key = keys.source_key(source_no)
        try:
            value = self.get(SOURCES, key)
            if value is not None:
                return keys.decode_head(key, value)[1:]
        except (DecodeError, *UNREADABLE):
            pass  # is noted with the sources
        loaded = self.store.row(name := self.name(source_no))
        return (name, loaded[1]) if loaded is not None and source_no < self.sources else None

    # ---------------------------------------------------------------------------------------------------------- faults

    def fault(self, kind: Kind, family: str, key: bytes, message: str, source: str = "", seq: int = 0) -> None:
        """Note a fault."""
        file = "" if kind is Kind.MISSING else self.store.db.file_of(family, key) or ""
        self.faults.append(Fault(kind=kind, family=family, key=key, source=source, seq=seq, file=file, message=message))

    def unreadable(self, family: str, damage: Damage, source: str = "", seq: int = 0, until: int = 0) -> None:
        """Note what RocksDB says of a file; once, if no deltas can be named and it was noted just before."""
        if not seq and damage.text == self._said:
            return
        self._said = damage.text
        named = _FILE.search(damage.text)
        file = named[0] if named is not None else self.store.db.file_of(family, damage.key) or ""
        key = keys.block_key(self.place.source_no, seq) if seq else damage.key
        message = f"deltas {seq} to {until} cannot be read: {damage.text}" if seq else damage.text
        self.faults.append(
            Fault(kind=Kind.DAMAGED, family=family, key=key, source=source, seq=seq, file=file, message=message)
        )
