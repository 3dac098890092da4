"""The trail on RocksDB: event, chain and indexes change in one batch.

Lives here: what becomes of a batch of events on its way to disk, and the head as it was last written. Does not know:
tasks, policies, who asks.

One thread writes at a time, under `_lock`; readers take a consistent view of the indexes under the same lock and read
without it. Events never change, so they are read as they are found; below the floor there are none.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import attrs

from audit import event as events
from audit import keys, trail
from audit.event import AuditEvent, Recorded
from audit.keys import BY_ACTION, BY_HOLDER, BY_LOCK, BY_TARGET, EVENTS, META, Checkpoint, Head, Term
from deltalog.errors import StoreCorrupt, StoreFormatMismatch, UsageError
from deltalog.profiles import FamilyProfile
from deltalog.rocks import Rocks
from deltalog.rocks_instance import RocksInstance
from deltalog.rocks_values import Batch
from deltalog.rocks_view import View
from deltalog.store import StoreSizes

FAMILIES: Final[Mapping[str, FamilyProfile]] = MappingProxyType(
    {
        EVENTS: FamilyProfile(block_bytes=32 << 10),
        BY_HOLDER: FamilyProfile(block_bytes=8 << 10),
        BY_TARGET: FamilyProfile(block_bytes=8 << 10),
        BY_ACTION: FamilyProfile(block_bytes=8 << 10),
        BY_LOCK: FamilyProfile(block_bytes=8 << 10),
        META: FamilyProfile(block_bytes=4 << 10),
    }
)
"""Column families of the audit instance."""

BATCH_EVENTS_MAX: Final = 1_000
"""Events of one `write`: RocksDB holds the interpreter for some milliseconds then."""
_SECRET_BYTES: Final = 32
_STEP_EVENTS: Final = 4_000
"""Events that one batch of `truncate` drops."""


@attrs.frozen
class Run:
    """The last time somebody opened the trail for recording."""

    timestamp: int
    """Of the trail's head then."""
    clean: bool
    """Whether it was closed in order."""
    window_s: float = 0.0
    """How long an event could wait to be written."""


class AuditStore(RocksInstance):
    """One open audit instance."""

    def __init__(self, open_db: Callable[[], Rocks], store_id: bytes | None = None) -> None:
        """Open with `open_db`, now and at each `reopen`. An empty database becomes a new trail, `store_id` if given.

        Raises StoreFormatMismatch for another format, StoreCorrupt if meta is damaged or the tail does not fit.
        """
        super().__init__(open_db)
        self._garbage = False  # whether something was truncated since the last compaction
        self._loaded(partial(self._load, store_id))

    # --------------------------------------------------------------------------------------------------- open, close

    def _load(self, store_id: bytes | None = None) -> None:
        stored = self.meta(keys.META_FORMAT)
        if stored is None:
            self._initialise(secrets.token_bytes(16) if store_id is None else store_id)
        elif stored != keys.FORMAT:
            raise StoreFormatMismatch(f"{self._db.path}: trail format {stored!r}; this program knows {keys.FORMAT}")
        self.store_id = self._bytes(keys.META_STORE_ID)
        self.secret = self._bytes(keys.META_SECRET)
        row = self._db.get(META, keys.META_HEAD)
        if row is None:
            raise StoreCorrupt(f"{META}: {keys.META_HEAD!r} is missing")
        head = self.checked(META, keys.META_HEAD, partial(keys.decode_head, row))
        last = self._db.seek_last(EVENTS, keys.event_key(keys.NUMBER_MAX))
        number = self.checked(EVENTS, last[0], partial(keys.parse_event_key, last[0])) if last is not None else 0
        if number != head.number and (head.count or number > head.number):
            raise StoreCorrupt(f"{EVENTS}: the last event is {number}, the head says {head.number}; run verify")
        self._head = head
        self._checkpoint = max((each.number for each in self.checkpoints()), default=head.floor)
        self._tokens = int(self.meta(keys.META_TOKENS) or 0)

    def _bytes(self, key: bytes) -> bytes:
        value = self.meta(key)
        if not isinstance(value, bytes):
            raise StoreCorrupt(f"{META}: {key!r} is missing")
        return value

    def _initialise(self, store_id: bytes) -> None:
        for family in FAMILIES:
            if self._db.seek_last(family, b"\xff" * 32) is not None:
                raise StoreCorrupt(f"{META}: {keys.META_FORMAT!r} is missing, though {family} holds data")
        start = trail.genesis(store_id)
        batch = self._db.batch()
        _put_meta(batch, keys.META_FORMAT, keys.FORMAT)
        _put_meta(batch, keys.META_STORE_ID, store_id)
        _put_meta(batch, keys.META_SECRET, secrets.token_bytes(_SECRET_BYTES))
        batch.put(META, keys.META_HEAD, keys.encode_head(Head(link=start, floor_link=start)))
        self._db.write(batch)
        self._db.sync()

    # --------------------------------------------------------------------------------------------------------- write

    @property
    def head(self) -> Head:
        """The trail's end and floor, as written."""
        return self._head

    def write(self, batch_of: Sequence[AuditEvent], *, sync: bool = False) -> Head:
        """Record events behind the head, all or none; return the new head.

        On return they survive the end of the process; with `sync` also power loss. An event may be as old as the one
        before it, but not older.
        """
        assert len(batch_of) <= BATCH_EVENTS_MAX, "a batch is bounded"
        with self._lock:
            head = self._head
            if batch_of:
                batch = self._db.batch()
                head = self._stage(batch, head, batch_of)
                self._db.write(batch)
                self._head = head
                if head.number >= self._checkpoint + trail.CHECKPOINT_EVENTS:
                    self._checkpoint = head.number  # it was staged with the rest
        if sync:
            self._db.sync()
        return head

    def _stage(self, batch: Batch, head: Head, batch_of: Sequence[AuditEvent]) -> Head:
        """Put events, their links, their index rows and the new head into the batch."""
        encoded = [events.encode(each) for each in batch_of]
        first = head.number + 1
        links = trail.extend(head.link, first, encoded)
        last = head.timestamp
        for number, (each, data, link) in enumerate(zip(batch_of, encoded, links, strict=True), first):
            assert each.timestamp >= last, "timestamps ascend with numbers"
            last = each.timestamp
            batch.put(EVENTS, keys.event_key(number), link + data)
        for (family, row_term), numbers in keys.rows_of(batch_of, first).items():
            batch.put(family, keys.entry_key(row_term, numbers[-1]), keys.encode_offsets(numbers))
        head = attrs.evolve(
            head,
            number=head.number + len(encoded),
            timestamp=last,
            link=links[-1],
            size_bytes=head.size_bytes + sum(map(len, encoded)),
        )
        if head.number >= self._checkpoint + trail.CHECKPOINT_EVENTS:
            checkpoint = Checkpoint(head.number, head.timestamp, head.link, head.size_bytes)
            batch.put(META, keys.checkpoint_key(head.number), keys.encode_checkpoint(checkpoint))
        batch.put(META, keys.META_HEAD, keys.encode_head(head))
        return head

    # ---------------------------------------------------------------------------------------------------- meta rows

    @property
    def tokens(self) -> int:
        """Fencing tokens reserved: up to this one they may have been handed out."""
        return self._tokens

    def reserve_tokens(self, upto: int) -> None:
        """Reserve tokens up to `upto`, inclusive; durable on return. Less than is reserved already changes nothing."""
        if type(upto) is not int or not 0 <= upto <= events.TOKEN_MAX:
            raise UsageError(f"upto is {upto!r}; it takes an integer from 0 to 2**63 - 1")
        with self._lock:
            if upto > self._tokens:
                self.set_meta(keys.META_TOKENS, upto)
                self._tokens = upto

    def run(self) -> Run | None:
        """The last run, None if there was none."""
        fields = self.meta(keys.META_RUN)
        return None if fields is None else Run(*fields)

    def set_run(self, run: Run) -> None:
        """Note that a run began, or ended in order; durable on return."""
        self.set_meta(keys.META_RUN, [run.timestamp, run.clean, run.window_s])

    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoints above the floor, ascending."""
        rows = self._db.scan(META, begin=keys.META_CHECKPOINT, end=keys.META_CHECKPOINT + b"\xff" * 8)
        return [self.checked(META, key, partial(keys.decode_checkpoint, key, value)) for key, value in rows]

    # ---------------------------------------------------------------------------------------------------------- read

    def view(self) -> View:
        """Everything at one moment, to be closed by `with`."""
        return self._view()

    def get(self, number: int) -> Recorded | None:
        """One event, None if there is none (any more)."""
        return next(iter(self.get_many([number])), None)

    def get_many(self, numbers: Sequence[int]) -> list[Recorded]:
        """The events with these numbers, in their order; those below the floor are absent."""
        wanted = [number for number in numbers if self._head.floor < number <= self._head.number]
        wanted_keys = [keys.event_key(number) for number in wanted]
        values = self._db.get_many(EVENTS, wanted_keys) if wanted else []
        found = []
        for number, key, value in zip(wanted, wanted_keys, values, strict=True):
            if value is not None:
                found.append(Recorded(number, self.decode(key, value)))
            elif number > self._head.floor:
                raise StoreCorrupt(f"{EVENTS}: event {number} is missing; run verify")
        return found

    def decode(self, key: bytes, value: bytes) -> AuditEvent:
        """The event of a row; StoreCorrupt names key and file."""
        return self.checked(EVENTS, key, lambda: events.decode(keys.split_row(value)[1]))

    def number_at(self, timestamp: int) -> int:
        """Number of the last event up to `timestamp`, the floor if there is none. By bisection: 20 reads a million."""
        head = self._head
        low, high = head.floor, head.number
        if timestamp >= head.timestamp:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            row = self._db.get(EVENTS, keys.event_key(middle))
            if row is None:
                if middle <= self._head.floor:
                    return self.number_at(timestamp)  # retention went on meanwhile
                raise StoreCorrupt(f"{EVENTS}: event {middle} is missing; run verify")
            if self._timestamp_of(middle, row) <= timestamp:
                low = middle
            else:
                high = middle - 1
        return low

    def _timestamp_of(self, number: int, row: bytes) -> int:
        return self.checked(EVENTS, keys.event_key(number), lambda: events.timestamp_of(keys.split_row(row)[1]))

    def index_row(self, family: str, key: bytes, value: bytes) -> list[int]:
        """Numbers of an index row; StoreCorrupt names key and file."""
        return self.checked(family, key, partial(keys.decode_offsets, key, value))

    # -------------------------------------------------------------------------------------------------------- upkeep

    def truncate(self, floor: int) -> int:
        """Drop the events up to number `floor` and their index rows; return how many. Idempotent.

        The space comes back with `compact`. Raises UsageError for a floor that is not below the head.
        """
        before = self._head
        if floor <= before.floor:
            return 0
        if floor >= before.number:
            raise UsageError(f"floor {floor} is not below the head {before.number}: the last event stays")
        with self._upkeep:
            while self._head.floor < floor:
                self._truncate_step(min(floor, self._head.floor + _STEP_EVENTS))
        return self._head.floor - before.floor

    def _truncate_step(self, floor: int) -> None:
        begin, end = self._head.floor + 1, floor + 1
        terms, size, row = set[Term](), 0, None
        for key, row in self._db.scan(EVENTS, begin=keys.event_key(begin), end=keys.event_key(end)):
            terms.update(keys.terms_of(self.decode(key, row)))
            size += len(row) - keys.LINK_BYTES
        if row is None:
            raise StoreCorrupt(f"{EVENTS}: events {begin} to {floor} are missing; run verify")
        batch = self._db.batch()
        batch.delete_range(EVENTS, keys.event_key(0), keys.event_key(end))
        batch.delete_range(META, keys.checkpoint_key(0), keys.checkpoint_key(end))
        for family, term in terms:
            batch.delete_range(family, keys.entry_key(term, 0), keys.entry_key(term, end))
        with self._lock:
            head = attrs.evolve(
                before := self._head,
                floor=floor,
                floor_link=keys.split_row(row)[0],
                floor_timestamp=self._timestamp_of(floor, row),
                floor_size_bytes=before.floor_size_bytes + size,
            )
            batch.put(META, keys.META_HEAD, keys.encode_head(head))
            self._head = head  # first: what a reader finds no more must be below the floor
            try:
                self._db.write(batch)
            except BaseException:
                self._head = before
                raise
            self._garbage = True

    def compact(self, *, if_needed: bool = False) -> None:
        """Drop what was truncated from disk; `if_needed`: only if there is something to drop."""
        if if_needed and not self._garbage and not any(file.deletions for file in self._db.files()):
            return
        self._db.flush()
        self._db.compact()
        self._garbage = False

    def sizes(self) -> StoreSizes:
        """What it holds: `deltas` are events."""
        return StoreSizes(1, self._head.count, self._head.held_bytes, 0, self._db.size_bytes())


def _put_meta(batch: Batch, key: bytes, value: Any) -> None:
    batch.put(META, key, keys.encode_meta(key, value))
