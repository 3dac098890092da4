"""Opening the trail of a data directory: store, clock, recorder and reader in one `async with`.

    DATA/rocks/audit/      the RocksDB instance of the trail
    DATA/rocks/audit.id    its store id, in hex: says that there was a trail, should somebody remove it

A trail is made at the first open. One that was there and is not there is an error, not a new trail: fencing tokens
would start again. What was found for reading must be there for writing, and the last events must lead to the head.
"""

from __future__ import annotations

import os
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

AUDIT: Final = "audit"
"""Name of the trail's instance."""


@attrs.frozen(kw_only=True)
class TrailOptions:
    """How a trail is kept."""

    recorder: RecorderOptions = attrs.field(factory=RecorderOptions)
    retention: AuditRetention | None = None
    """What is kept; None: everything. Applied when the manager collects."""


class Trail:
    """An open trail. Made by `open_trail`."""

    def __init__(self, store: AuditStore, recorder: Recorder, offload: Offload) -> None:
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
        """As `AuditStore.reserve_tokens`: blocks; call it in a worker thread."""
        self.store.reserve_tokens(upto)


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


def open_store(path: Path, memory: SharedMemory) -> AuditStore:
    """Open the trail of the data directory `path`, which the caller has locked; make it if there never was one.

    Raises StoreMissing, StoreCorrupt, or what opening RocksDB raises.
    """
    instance, mark = path / "rocks" / "audit", path / "rocks" / "audit.id"
    store_id = _read_mark(mark)
    if not os.path.lexists(instance):
        if store_id is not None:
            raise StoreMissing(f"{instance} is missing, though {mark.name} says that there was a trail: restore it")
        Rocks.create(instance, FAMILIES, memory).close()
    elif store_id is not None:
        _look(instance, memory)
    store = AuditStore(partial(Rocks.open, instance, FAMILIES, memory))
    try:
        _check_mark(store, mark, store_id)
        check_tail(store)
    except BaseException:
        store.close()
        raise
    return store


def _check_mark(store: AuditStore, mark: Path, store_id: bytes | None) -> None:
    """Hold the store against its mark; make the mark if the trail is new."""
    if store_id is None and store.head.number:
        raise StoreMissing(f"{mark} is missing, though the trail is there: restore it")
    if store_id is None:
        _write_mark(mark, store.store_id)
    elif store_id != store.store_id:
        raise StoreCorrupt(f"{store.db.path} is another trail than {mark.name} says")


def _look(instance: Path, memory: SharedMemory) -> None:
    """Open for reading, which changes nothing: an error here leaves everything as it is."""
    Rocks.open_read_only(instance, FAMILIES, memory).close()


def _read_mark(mark: Path) -> bytes | None:
    with system_errors(mark):
        if not mark.exists():
            return None
        text = mark.read_text(encoding="ascii", errors="replace").strip()
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise StoreCorrupt(f"{mark}: {text[:100]!r} is no store id") from error


def _write_mark(mark: Path, store_id: bytes) -> None:
    new = mark.with_name(f"{mark.name}.new")
    with system_errors(new):
        with new.open("w", encoding="ascii") as file:
            file.write(f"{store_id.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(mark)
        sync_directory(mark.parent)


def _has_room(path: Path, store: AuditStore) -> bool:
    """Recovery writes the WAL out once more before dropping it: twice that must be free, and some to go on with."""
    try:
        free = os.statvfs(path)
        return free.f_bavail * free.f_frsize >= 2 * store.wal_bytes() + (4 << 20)
    except OSError:  # a file went while we looked: asked again soon
        return False


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
    store: AuditStore = await offload(open_store, manager.path, manager.memory)
    try:
        clock = Clock(last=store.head.timestamp, wall_ns=wall_ns)
        recorder = Recorder(store, clock, partial(_has_room, manager.path, store), options.recorder, offload)
        manager.join(AUDIT, _Member(store, options.retention, offload, wall_ns))
        try:
            async with recorder.running():
                yield Trail(store, recorder, offload)
        finally:
            manager.leave(AUDIT)
    finally:
        with trio.CancelScope(shield=True):
            await offload(_close, store)


def _close(store: AuditStore) -> None:
    """Close; a store that is dead already has said so before."""
    dead = store.health().last_error
    try:
        store.close()
    except Exception:
        if dead is None:
            raise
