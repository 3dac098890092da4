"""Opening the trail of a data directory: store, clock, recorder and reader in one `async with`.

    DATA/rocks/audit/      the RocksDB instance of the trail
    DATA/rocks/audit.id    its mark: store id in hex, fencing tokens reserved, number of an event that was durable then

A trail is made at the first open. One that was there and is not there is an error, not a new trail: fencing tokens
would start again. What was found for reading must be there for writing, and the last events must lead to the head.
The mark is written behind the store, at each reservation and at a close in order. So a store that is behind its mark
was put back from an older copy: tokens go on above the mark's, and the trail says up to which event it once reached.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from audit import retention
from audit.reader import Reader
from audit.recorder import Recorder, RecorderOptions
from audit.retention import AuditRetention
from audit.store import FAMILIES, AuditStore
from audit.trail import TrailHead
from audit.verify import TrailReport, check_tail, verify
from deltalog.clock import Clock
from deltalog.errors import StoreCorrupt, StoreMissing
from deltalog.manager import Manager
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_directory import sync_directory
from deltalog.rocks_values import Health
from deltalog.store import StoreSizes
from deltalog.witness import system_errors
from deltalog.writer import Offload

_MARK: Final = re.compile(r"((?:[0-9a-f]{2})+) ([0-9]{1,19}) ([0-9]{1,19})")
AUDIT: Final = "audit"
"""Name of the trail's instance."""


@attrs.frozen(kw_only=True)
class TrailOptions:
    """How a trail is kept."""

    recorder: RecorderOptions = attrs.field(factory=RecorderOptions)
    retention: AuditRetention | None = None
    """What is kept; None: everything. Applied when the manager collects."""


@attrs.frozen
class _Mark:
    """What stands beside the store and vouches for it."""

    store_id: bytes
    tokens: int
    """Fencing tokens reserved."""
    number: int
    """Of an event that was durable when the mark was written."""

    @classmethod
    def read(cls, path: Path) -> _Mark | None:
        """The mark, None if there is none. Raises StoreCorrupt, StoreIOError."""
        with system_errors(path):
            if not path.exists():
                return None
            text = path.read_text(encoding="ascii", errors="replace").strip()
        match = _MARK.fullmatch(text)
        if match is None:
            raise StoreCorrupt(f"{path}: {text[:100]!r} is no store id, tokens and number")
        return cls(bytes.fromhex(match[1]), int(match[2]), int(match[3]))

    def write(self, path: Path) -> None:
        """Put it in the place of the one before; durable on return. Raises StoreFull, StoreIOError."""
        new = path.with_name(f"{path.name}.new")
        with system_errors(new):
            with new.open("w", encoding="ascii") as file:
                file.write(f"{self.store_id.hex()} {self.tokens} {self.number}\n")
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            sync_directory(path.parent)


class Trail:
    """An open trail. Made by `open_trail`."""

    def __init__(self, path: Path, store: AuditStore, recorder: Recorder, offload: Offload) -> None:
        """`path`: of the data directory."""
        self._path: Final = path
        self.store: Final = store
        self.recorder: Final = recorder
        self.clock: Final = recorder.clock
        """Timestamps for whoever logs: behind everything in the trail."""
        self.reader: Final = Reader(store, recorder, offload)
        self._offload: Final = offload

    def head(self) -> TrailHead:
        """The end of what is written: `str` of it is a line to keep elsewhere."""
        head = self.store.head
        return TrailHead(head.number, head.link)

    async def verify(self, head: TrailHead | None = None) -> TrailReport:
        """Check every event, link and index row as they are now, and that `head` is still in the trail."""
        report: TrailReport = await self._offload(partial(verify, self.store, head=head))
        return report

    def reserve_tokens(self, upto: int) -> None:
        """As `AuditStore.reserve_tokens`, and beside the store, too: blocks; call it in a worker thread."""
        number = self.store.head.number  # what comes with the reservation is durable then
        self.store.reserve_tokens(upto)
        _Mark(self.store.store_id, self.store.tokens, number).write(_mark_of(self._path))


class _Member:
    """The trail, as the manager looks after it."""

    def __init__(
        self, store: AuditStore, kept: AuditRetention | None, offload: Offload, wall_ns: Callable[[], int]
    ) -> None:
        self._store = store
        self._retention = kept
        self._offload = offload
        self._wall_ns = wall_ns

    async def flush(self) -> None:
        await self._offload(self._store.flush)

    async def collect(self) -> int:
        dropped: int = await self._offload(self._collect)
        return dropped

    def _collect(self) -> int:
        kept, store = self._retention, self._store
        if kept is None:
            return 0
        oldest = kept.oldest_kept(self._wall_ns())
        before = store.number_at(oldest - 1) if oldest else 0
        return store.truncate(retention.floor(kept, store.head, store.checkpoints(), before))

    async def compact(self, *, if_needed: bool = False) -> None:
        await self._offload(partial(self._store.compact, if_needed=if_needed))

    async def sizes(self) -> StoreSizes:
        sizes: StoreSizes = await self._offload(self._store.sizes)
        return sizes

    def health(self) -> Health:
        return self._store.health()


# ------------------------------------------------------------------------------------------------------------ the store


def open_store(path: Path, memory: SharedMemory) -> tuple[AuditStore, int]:
    """Open the trail of the data directory `path`, which the caller has locked; make it if there never was one.

    Also returns the number of an event that the trail once had and has no more, 0 if nothing is known to be missing.
    Raises StoreMissing, StoreCorrupt, or what opening RocksDB raises.
    """
    instance, place = path / "rocks" / "audit", _mark_of(path)
    mark = _Mark.read(place)
    if not os.path.lexists(instance):
        if mark is not None:
            raise StoreMissing(f"{instance} is missing, though {place.name} says that there was a trail: restore it")
        Rocks.create(instance, FAMILIES, memory).close()
    elif mark is not None:
        _look(instance, memory)
    store = AuditStore(partial(Rocks.open, instance, FAMILIES, memory))
    try:
        missing = _check_mark(store, place, mark)
        check_tail(store)
    except BaseException:
        store.close()
        raise
    return store, missing


def _mark_of(path: Path) -> Path:
    return path / "rocks" / "audit.id"


def _check_mark(store: AuditStore, place: Path, mark: _Mark | None) -> int:
    """Hold the store against its mark; make the mark if the trail is new. Returns a number it has no more, or 0."""
    if mark is None:
        if store.head.number:
            raise StoreMissing(f"{place} is missing, though the trail is there: restore it")
        _Mark(store.store_id, store.tokens, 0).write(place)
        return 0
    if mark.store_id != store.store_id:
        raise StoreCorrupt(f"{store.db.path} is another trail than {place.name} says")
    store.reserve_tokens(mark.tokens)
    return mark.number if mark.number > store.head.number else 0


def _look(instance: Path, memory: SharedMemory) -> None:
    """Open for reading, which changes nothing: an error here leaves everything as it is."""
    Rocks.open_read_only(instance, FAMILIES, memory).close()


@asynccontextmanager
async def open_trail(
    manager: Manager,
    *,
    options: TrailOptions | None = None,
    offload: Offload = trio.to_thread.run_sync,
    wall_ns: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Trail]:
    """Open the audit trail of a manager's data directory: `async with open_trail(manager) as trail`.

    On leaving, everything submitted is written or counted; raises AuditUnavailable if events were lost doing so.
    """
    options = options if options is not None else TrailOptions()
    store: AuditStore
    store, missing = await offload(open_store, manager.path, manager.memory)
    try:
        clock = Clock(last=store.head.timestamp, wall_ns=wall_ns)
        recorder = Recorder(store, clock, store.has_room, options.recorder, offload)
        recorder.missing = missing
        manager.join(AUDIT, _Member(store, options.retention, offload, wall_ns))
        try:
            async with recorder.running():
                yield Trail(manager.path, store, recorder, offload)
        finally:
            manager.leave(AUDIT)
    finally:
        with trio.CancelScope(shield=True):
            await offload(_close, store, manager.path)


def _close(store: AuditStore, path: Path) -> None:
    """Close, and leave a mark of how far it came; a store that is dead already has said so before."""
    dead = store.health().last_error
    try:
        store.close()
        if dead is None:
            _Mark(store.store_id, store.tokens, store.head.number).write(_mark_of(path))
    except Exception:
        if dead is None:
            raise
