"""The manager: named RocksDB instances under one data directory, one memory budget, one lock, one maintenance task.

Lives here: who is open, what they share, when upkeep runs, how full the disk is. Does not know: what is in an
instance; each joins as a `Member` that can flush, collect, compact, and say how it is.

Upkeep is idempotent and retried at its next interval: a failure is reported in `health` and to `on_problem`, and never
stops the rest (a failed compaction must not be the last one).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import attrs
import trio

from deltalog.data_directory import make_reserve
from deltalog.errors import DeltaLogError, StoreError, UsageError
from deltalog.failpoints import reach
from deltalog.keys import Head
from deltalog.log import DeltaLog, LogOptions, Truncation
from deltalog.nursery import open_nursery
from deltalog.profiles import SharedMemory
from deltalog.retention import Retention
from deltalog.rocks_values import Health
from deltalog.startup import OpenData, OpenOptions, Progress, StartupReport, open_data
from deltalog.store import Run, StoreSizes
from deltalog.writer import Offload

DELTA: Final = "delta"
"""Name of the log's own instance."""
WITNESS_INTERVAL_S: Final = 1.0
"""How far the witness may lag behind the disk after a power loss. Each time costs one more fsync."""


@attrs.frozen(kw_only=True)
class Upkeep:
    """When the manager looks after its instances; None: never by itself."""

    flush_interval_s: float | None = 300.0
    """Write memory tables to files, which empties the WAL: bounds what the next open must replay."""
    collect_interval_s: float | None = 600.0
    """Apply the retention."""
    compact_interval_s: float | None = 3600.0
    """Merge short blocks and files, give back space."""
    disk_interval_s: float | None = 10.0
    """Look at the disk's free space."""
    disk_alert_share: float = 0.90
    """Report a disk that is fuller than this."""
    retention: Retention | None = None
    """What the log keeps; None: everything. Peers hold back what they have not acknowledged."""
    hard_retention: Retention | None = None
    """What goes although a peer has not acknowledged it: it then gets a snapshot instead. None: nothing."""

    def __attrs_post_init__(self) -> None:
        for name in ("flush_interval_s", "collect_interval_s", "compact_interval_s", "disk_interval_s"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and value > 0):
                raise UsageError(f"upkeep.{name} must be a positive number or None, not {value!r}")
        share = self.disk_alert_share
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise UsageError(f"upkeep.disk_alert_share must be above 0 and at most 1, not {share!r}")


@attrs.frozen
class Problem:
    """Something the maintenance task met."""

    what: str
    """"flush", "collect", "compact" or "disk"."""
    member: str
    """Instance, "" for the disk."""
    message: str
    error: DeltaLogError | None


@attrs.frozen
class DiskUsage:
    """The file system that holds the data."""

    total_bytes: int
    free_bytes: int
    """For this user."""
    data_bytes: int
    """Taken by this data directory."""

    @property
    def used_share(self) -> float:
        """How full the file system is, 0 to 1."""
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 1.0


class Member(Protocol):
    """One instance, as the manager looks after it."""

    async def flush(self) -> None:
        """Write its memory to files."""
        ...

    async def collect(self) -> int:
        """Drop what its retention lets go; return how many records."""
        ...

    async def compact(self, *, if_needed: bool = False) -> None:
        """Give back space; `if_needed`: only if there is some to give back."""
        ...

    async def sizes(self) -> StoreSizes:
        """What it holds."""
        ...

    def health(self) -> Health:
        """How it is; never raises."""
        ...


@attrs.frozen
class ManagerHealth:
    """All instances at one moment."""

    instances: Mapping[str, Health]
    problems: Sequence[Problem]
    """The latest of each kind and member that has not gone well since."""
    read_only: str
    """Why the log takes no appends, "" if it does."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs anybody's attention."""
        bad = any(h.background_errors or h.write_stopped or not h.lock_ours for h in self.instances.values())
        return not (bad or self.problems or self.read_only)


class Manager:
    """An open data directory. Made by `open_manager`."""

    def __init__(
        self, path: Path, memory: SharedMemory, upkeep: Upkeep, on_problem: Callable[[Problem], None], offload: Offload
    ) -> None:
        self.path = path
        self.memory = memory
        self.upkeep = upkeep
        self.log: DeltaLog
        """The log; set while the manager is open."""
        self.startup: StartupReport
        """How the open went."""
        self._on_problem = on_problem
        self._offload = offload
        self._members: dict[str, Member] = {}
        self._problems: dict[tuple[str, str], Problem] = {}

    def join(self, name: str, member: Member) -> None:
        """Look after one more instance, until `leave`."""
        if name in self._members:
            raise UsageError(f"there is an instance {name!r} already")
        self._members[name] = member

    def leave(self, name: str) -> None:
        """Look after it no longer; whoever opened it closes it."""
        del self._members[name]
        self._problems = {key: problem for key, problem in self._problems.items() if problem.member != name}

    @property
    def names(self) -> Sequence[str]:
        """Instances, in the order they joined."""
        return tuple(self._members)

    async def flush(self, name: str | None = None) -> None:
        """Flush one instance, or all."""
        for _, member in self._chosen(name):
            await member.flush()

    async def collect(self, name: str | None = None) -> int:
        """Apply the retention of one instance, or of all; return how many records went."""
        return sum([await member.collect() for _, member in self._chosen(name)])

    async def compact(self, name: str | None = None) -> None:
        """Compact one instance, or all, one after the other."""
        for _, member in self._chosen(name):
            await member.compact()

    async def sizes(self, name: str | None = None) -> Mapping[str, StoreSizes]:
        """Sizes of one instance, or of all."""
        return {each: await member.sizes() for each, member in self._chosen(name)}

    def health(self) -> ManagerHealth:
        """How everything is."""
        instances = {name: member.health() for name, member in self._members.items()}
        read_only = self.log.statistics().writer.read_only or self.log.retired
        return ManagerHealth(MappingProxyType(instances), tuple(self._problems.values()), read_only)

    async def disk(self) -> DiskUsage:
        """How full the disk is."""
        usage: DiskUsage = await self._offload(_disk_usage, self.path)
        return usage

    def _chosen(self, name: str | None) -> Iterator[tuple[str, Member]]:
        """One instance, or all but those that leave meanwhile."""
        if name is not None and name not in self._members:
            raise UsageError(f"there is no instance {name!r}; there are {sorted(self._members)}")
        for each in self.names if name is None else (name,):
            if each in self._members:
                yield each, self._members[each]

    # --------------------------------------------------------------------------------------------------- maintenance

    async def maintain(self) -> None:
        """Run upkeep at its intervals, for ever."""
        async with open_nursery() as nursery:
            nursery.start_soon(self._every, self.upkeep.flush_interval_s, "flush")
            nursery.start_soon(self._every, self.upkeep.collect_interval_s, "collect")
            nursery.start_soon(self._every, self.upkeep.compact_interval_s, "compact")
            nursery.start_soon(self._watch_disk, self.upkeep.disk_interval_s)

    async def _every(self, interval_s: float | None, what: str) -> None:
        while interval_s is not None:
            await trio.sleep(interval_s)
            for name, member in self._chosen(None):
                await self._attempt(what, name, member)

    async def _attempt(self, what: str, name: str, member: Member) -> None:
        """One round of upkeep of one instance; what goes wrong is reported, and tried again next time."""
        try:
            reach("manager.upkeep.before")
            if what == "flush":
                await member.flush()
            elif what == "collect":
                await member.collect()
            else:
                await member.compact(if_needed=True)
            reach("manager.upkeep.after")
        except DeltaLogError as error:
            if name in self._members:
                self._report(Problem(what, name, str(error), error))
        else:
            self._problems.pop((what, name), None)

    async def _watch_disk(self, interval_s: float | None) -> None:
        full = False
        while interval_s is not None:
            try:
                usage = await self.disk()
            except OSError as error:
                full = False
                self._report(Problem("disk", "", f"{self.path}: {error}", None))
            else:
                before, full = full, usage.used_share > self.upkeep.disk_alert_share
                if not full:
                    self._problems.pop(("disk", ""), None)
                elif not before:
                    message = f"{self.path}: disk {usage.used_share:.0%} full, {usage.free_bytes / 1e6:,.0f} MB free"
                    self._report(Problem("disk", "", message, None))
            await trio.sleep(interval_s)

    def _report(self, problem: Problem) -> None:
        self._problems[problem.what, problem.member] = problem
        self._on_problem(problem)


class _DeltaMember:
    """The log's own instance, as the manager looks after it."""

    def __init__(self, log: DeltaLog, data: OpenData, upkeep: Upkeep, offload: Offload) -> None:
        self._log = log
        self._data = data
        self._upkeep = upkeep
        self._offload = offload

    async def flush(self) -> None:
        await self._offload(self._data.store.flush)

    async def collect(self) -> int:
        dropped = 0
        for retention, hard in ((self._upkeep.retention, False), (self._upkeep.hard_retention, True)):
            if retention is not None:
                done: Truncation = await self._log.truncate(retention=retention, hard=hard)
                dropped += done.dropped
        return dropped

    async def compact(self, *, if_needed: bool = False) -> None:
        await self._log.compact(if_needed=if_needed)

    async def sizes(self) -> StoreSizes:
        return await self._log.sizes()

    def health(self) -> Health:
        return self._data.store.db.health()


class _DataDisk:
    """What the log's writer commits to: the store, then the witness."""

    def __init__(self, data: OpenData, reserve_bytes: int) -> None:
        self._data = data
        self._reserve_bytes = reserve_bytes
        self._durable_at = 0.0

    def persist(self, runs: Sequence[Run], sync: bool) -> None:
        data = self._data
        if runs:
            data.store.write(runs)
            data.note(run.source for run in runs)
        if sync:
            sequence = data.store.sync()
            now = time.monotonic()
            durable = now >= self._durable_at + WITNESS_INTERVAL_S
            data.witness.record(data.testimony(sequence, clean=False), durable=durable)
            if durable:
                self._durable_at = now

    def reopen(self) -> Mapping[str, Head]:
        reach("manager.reopen.before")
        self._data.store.reopen()
        make_reserve(self._data.path, self._reserve_bytes)
        reach("manager.reopen.after")
        return self._data.store.heads()

    def has_room(self) -> bool:
        return self._data.store.has_room()


def _disk_usage(path: Path) -> DiskUsage:
    fs = os.statvfs(path)
    held = sum(_allocated(Path(root) / name) for root, _, names in os.walk(path) for name in names)
    return DiskUsage(fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize, held)


def _allocated(file: Path) -> int:
    """Bytes a file takes; 0 if RocksDB removed it while we looked."""
    try:
        return file.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _no_progress(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def _ignore(problem: Problem) -> None:
    """Leave it to `health`."""


@asynccontextmanager
async def open_manager(
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    create: bool = True,
    accept_loss: bool = False,
    adopt: bool = False,
    reserve_bytes: int = 16 << 20,
    options: LogOptions | None = None,
    upkeep: Upkeep | None = None,
    memory: SharedMemory | None = None,
    progress: Progress = _no_progress,
    on_problem: Callable[[Problem], None] = _ignore,
    offload: Offload = trio.to_thread.run_sync,
) -> AsyncIterator[Manager]:
    """Open a data directory: `async with open_manager(path) as manager`, then `manager.log`.

    source: who appends; fixed when the directory is made, None takes the one it has (or a new random name).
    create: make the directory if it is not there. accept_loss: go on when fsynced data is gone. adopt: go on from a
    copied directory. memory: shared with other managers of this process. progress: called from a worker thread during
    a long open. on_problem: called when upkeep fails or the disk is nearly full.

    On leaving, everything appended is stored and synced. Raises what `startup.open_data` raises.
    """
    options = options if options is not None else LogOptions()
    upkeep = upkeep if upkeep is not None else Upkeep()
    memory = memory if memory is not None else SharedMemory()
    opening = OpenOptions(
        source=source, create=create, accept_loss=accept_loss, adopt=adopt, reserve_bytes=reserve_bytes
    )
    manager = Manager(Path(path), memory, upkeep, on_problem, offload)
    data: OpenData = await offload(open_data, Path(path), opening, memory, options.ring_deltas, progress)
    log: DeltaLog | None = None
    try:
        log = DeltaLog(
            data.source,
            data.store,
            _DataDisk(data, reserve_bytes),
            options=options,
            offload=offload,
            mark=data.witness.mark,
        )
        manager.log, manager.startup = log, data.report
        log.startup = data.report
        log.fill(data.recent)
        data.recent = []
        manager.join(DELTA, _DeltaMember(log, data, upkeep, offload))
        async with log.running(), open_nursery() as nursery:
            nursery.start_soon(manager.maintain)
            yield manager
            nursery.cancel_scope.cancel()
    except BaseException as error:
        with trio.CancelScope(shield=True):
            try:
                await offload(_close, data, log is not None and log.drained)
            except StoreError as failed:
                if isinstance(error, trio.Cancelled):
                    raise  # a cancellation says nothing, so this must
                error.add_note(f"and the store did not close in order: {failed}")
        raise
    with trio.CancelScope(shield=True):
        await offload(_close, data, log.drained)


def _close(data: OpenData, clean: bool) -> None:
    """Close; a store that is dead already has said so before."""
    try:
        data.close(clean=clean)
    except StoreError:
        if clean:
            raise


@asynccontextmanager
async def open_log(
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    create: bool = True,
    accept_loss: bool = False,
    adopt: bool = False,
    options: LogOptions | None = None,
    upkeep: Upkeep | None = None,
    progress: Progress = _no_progress,
) -> AsyncIterator[DeltaLog]:
    """Open the delta log in a data directory: `async with open_log(path, source="alice") as log`.

    As `open_manager`, for those who need the log alone. `log.startup` says how the open went.
    """
    async with open_manager(
        path,
        source=source,
        create=create,
        accept_loss=accept_loss,
        adopt=adopt,
        options=options,
        upkeep=upkeep,
        progress=progress,
    ) as manager:
        yield manager.log
