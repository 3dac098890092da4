"""The writer: drains the ring to the store in groups, in order, and says how far it has come.

Lives here: the order of commits, when to fsync, who is woken, and what becomes of a failure. One task runs it; its
state belongs to the trio thread, only `persist` and `reopen` run in a worker thread. Does not know: RocksDB, keys, the
witness, who appended.

One group commit:  take what is pending -> extend the chains -> persist (write, then fsync if due) -> publish

`written` and `synced` are the two published values: what survives the end of the process, and what survives power
loss. Nothing may be acknowledged, to a caller or to a peer, that is not covered by them.

A failure never hides (invariant I10): the log turns read-only, everybody who waits or appends gets the reason, the ring
keeps what is not stored. A full disk heals by itself once there is room; after any other error that kills the handle
the store is opened safely once more and *looked at*, since a failed write may be there or not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from deltalog import chain
from deltalog.errors import LogReadOnly, StoreBackpressure, StoreBusy, StoreCorrupt, StoreError, StoreFull
from deltalog.failpoints import reach
from deltalog.keys import Head
from deltalog.ring import Pending, Ring
from deltalog.store import Run

BATCH_DELTAS = 4096
"""Deltas in one commit: chaining them holds the event loop for about 3 ms."""
BATCH_BYTES = 1 << 20
"""Bytes in one commit: RocksDB's write holds the interpreter for about 1 ms."""
BACKPRESSURE_DELAY_S = 0.005
ROOM_POLL_S = 0.25
VOUCHED_MAX = 256
"""Sources of which runs are remembered that somebody vouched for."""


Offload = Callable[..., Awaitable[Any]]
"""Runs a blocking function with its arguments in a worker thread: `trio.to_thread.run_sync`, or a plain call."""


class Disk(Protocol):
    """What the writer commits to. Every method is called in a worker thread, one at a time."""

    def persist(self, runs: Sequence[Run], sync: bool) -> None:
        """Write the runs (none is fine), then fsync all that was written if `sync`.

        `StoreBackpressure` means that nothing was done.
        """
        ...

    def reopen(self) -> Mapping[str, Head]:
        """Open the store safely once more; return what it holds."""
        ...

    def has_room(self) -> bool:
        """Whether the disk has room enough to open and go on."""
        ...


@attrs.frozen
class WriterStatistics:
    """The writer since it started."""

    commits: int
    """Group commits that reached the store."""
    fsyncs: int
    deltas: int
    """Deltas written."""
    failures: int
    """Times the log turned read-only."""
    read_only: str
    """Why the log is read-only now, "" if it is not."""


class Writer:
    """Ordered group commit from a ring to a disk."""

    def __init__(
        self, ring: Ring, heads: Mapping[str, Head], disk: Disk, offload: Offload, sync_interval_s: float
    ) -> None:
        """`heads`: what the store holds, all fsynced. `sync_interval_s`: how long a write may wait for its fsync."""
        # constant after construction
        self._ring = ring
        self._disk = disk
        self._offload = offload
        self._sync_interval_s = sync_interval_s
        # owned by the writer task
        self._tails = {source: head.hash for source, head in heads.items()}
        self._vouched: dict[str, Run] = {}
        """Runs whose links are known before they are written: the latest of each source."""
        self._unsynced: dict[str, int] = {}
        self._unsynced_since: float | None = None
        self._strikes = 0  # failures since the last fsync that succeeded, a full disk not counted
        self._refusals = 0  # times since then that the disk was full
        self._counts = {"commits": 0, "fsyncs": 0, "deltas": 0, "failures": 0}
        # published by the writer task
        self.written = {source: head.seq for source, head in heads.items()}
        """source -> seq that survives the end of the process."""
        self.synced = dict(self.written)
        """source -> seq that survives power loss."""
        self.synced_hashes = dict(self._tails)
        """source -> chain hash behind that delta."""
        self.synced_ordinal = ring.stored
        """Ordinal in the ring up to which everything survives power loss."""
        self.failure: LogReadOnly | None = None
        """Why the log is read-only, None while it is not."""
        self.idle = False
        """Whether the task sleeps and must be woken (`wake`) to see what was pushed."""
        # shared with callers
        self._wanted = ring.stored
        self._closing = False
        self._alarm = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self.on_publish: Callable[[], None] = lambda: None
        """Called after each commit and each change of `failure`."""
        self.on_synced: list[Callable[[Mapping[str, int]], None]] = []
        """Called after each fsync with the heads that it moved, before those who wait for it go on."""

    # ------------------------------------------------------------------------------------------------- for callers

    def wake(self) -> None:
        """Make the task look at the ring."""
        self._alarm.set()

    async def wait_room(self, size_bytes: int) -> None:
        """Return when the ring has room for a delta of this size. Raises `LogReadOnly`. Cancelled: nothing happened."""
        while not self._ring.has_room(size_bytes):
            self.refuse()
            self.wake()
            await self._progress.park()
        self.refuse()

    async def wait_synced(self, ordinal: int) -> None:
        """Return when everything up to this ordinal survives power loss. Raises `LogReadOnly`.

        Cancelled: the deltas are still written, only the wait ends.
        """
        while self.synced_ordinal < ordinal:
            self.refuse()
            self._wanted = max(self._wanted, ordinal)
            self.wake()
            await self._progress.park()

    def refuse(self) -> None:
        """Raise why the log is read-only, if it is; a new error each time, with the store's as its cause."""
        if self.failure is not None:
            failure = self.failure
            raise LogReadOnly(failure.reason, retryable=failure.retryable) from failure.__cause__

    def close(self) -> None:
        """Make `run` end once everything is synced, or at once if the log is read-only."""
        self._closing = True
        self._wanted = self._ring.last
        self.wake()

    def statistics(self) -> WriterStatistics:
        """What it has done."""
        return WriterStatistics(**self._counts, read_only=self.failure.reason if self.failure else "")

    # ---------------------------------------------------------------------------------------------------- the task

    async def run(self) -> None:
        """Commit until `close`. Whatever ends it, nobody is left waiting."""
        try:
            with trio.CancelScope(shield=True):  # ends by `close`: a cancelled log still drains
                await self._loop()
        except BaseException as error:
            self._fail(LogReadOnly(f"the writer stopped: {error!r}", retryable=False), error)
            raise
        if self.failure is None:
            self._fail(LogReadOnly("the log was closed", retryable=False), None)

    async def _loop(self) -> None:
        while True:
            reach("writer.drain.before")
            pending, count = self._ring.unstored(BATCH_DELTAS, BATCH_BYTES)
            sync = self._sync_due(count > 0)
            if count or sync:
                await self._commit(self._chain(pending), count, sync)
                await self._gather()
            elif self._closing and not self._unsynced:
                return
            else:
                await self._sleep()
            if self.failure is not None and self._closing:
                return

    async def _gather(self) -> None:
        """Let those whom a commit woke append again first: they share the next one, not every other."""
        if self._ring.pending < BATCH_DELTAS:
            await trio.lowlevel.checkpoint()  # may come before them
            await trio.lowlevel.checkpoint()  # comes behind them

    def _sync_due(self, fresh: bool) -> bool:
        """Whether this commit must end with an fsync: a waiter asks for it, or the interval is over."""
        if not fresh and not self._unsynced:
            return False
        if self._closing or self._wanted > self.synced_ordinal or not self._sync_interval_s:
            return True
        since = self._unsynced_since
        return since is not None and trio.current_time() >= since + self._sync_interval_s

    async def _sleep(self) -> None:
        """Sleep until something is pushed or wanted, or until the next fsync is due."""
        due = trio.CancelScope()
        if self._unsynced_since is not None:
            due.deadline = self._unsynced_since + self._sync_interval_s
        self.idle = True
        with due:
            await self._alarm.wait()
        self.idle = False
        self._alarm = trio.Event()

    def _chain(self, pending: Sequence[Pending]) -> list[Run]:
        """Extend the chain of each source; the new tails count only once they are written."""
        runs = []
        for source, seq, records in pending:
            previous = self._tails.get(source) or chain.genesis(source)
            known = self._links(source, seq, records, previous)
            rest = chain.extend(known[-1] if known else previous, records[len(known) :])
            runs.append(Run(source, seq, records, previous, known + rest))
        reach("writer.drain.after")
        return runs

    def vouch(self, source: str, seq: int, previous: bytes, records: Sequence[bytes], hashes: Sequence[bytes]) -> None:
        """Whoever verified a run from `seq` on already knows its links: `hashes` behind each record, and `previous`.

        They are used if these very records come to be written next behind `previous`, and forgotten if not.
        """
        if len(self._vouched) >= VOUCHED_MAX:
            self._vouched.clear()
        self._vouched[source] = Run(source, seq, records, previous, hashes)

    def _links(self, source: str, seq: int, records: Sequence[bytes], previous: bytes) -> list[bytes]:
        """The links behind the first of `records`, as far as somebody vouched for them."""
        known = self._vouched.get(source)
        if known is None:
            return []
        start = seq - known.seq
        end = min(start + len(records), len(known.records))
        before = known.previous if start == 0 else known.hashes[start - 1] if 0 < start < end else b""
        if end >= len(known.records):
            del self._vouched[source]
        if before != previous or known.records[start:end] != records[: end - start]:
            return []
        return list(known.hashes[start:end])

    async def _commit(self, runs: list[Run], count: int, sync: bool) -> None:
        try:
            reach("writer.commit.before")
            await self._offload(self._disk.persist, runs, sync)
            reach("writer.commit.after")
        except StoreBackpressure:
            await trio.sleep(BACKPRESSURE_DELAY_S)
        except StoreError as error:
            await self._recover(error, runs, count)
        else:
            if sync:
                self._strikes = self._refusals = 0
            self._publish(runs, count, sync)

    def _publish(self, runs: Sequence[Run], count: int, sync: bool) -> None:
        """The runs are written, and if `sync` everything up to them is synced: say so."""
        reach("writer.publish.before")
        for run in runs:
            self._tails[run.source] = run.hashes[-1]
            self.written[run.source] = self._unsynced[run.source] = run.last
        self._ring.mark_stored(count)
        self._counts["commits"] += bool(runs)
        self._counts["deltas"] += count
        if sync:
            self.synced.update(self._unsynced)
            self.synced_hashes.update((source, self._tails[source]) for source in self._unsynced)
            moved, self._unsynced = self._unsynced, {}
            self._unsynced_since = None
            self.synced_ordinal = self._ring.stored
            self._counts["fsyncs"] += 1
            for told in tuple(self.on_synced):
                told(moved)
        elif self._unsynced_since is None and self._unsynced:
            self._unsynced_since = trio.current_time()
        reach("writer.publish.after")
        self._progress.unpark_all()
        self.on_publish()

    # ---------------------------------------------------------------------------------------------------- failures

    def _fail(self, failure: LogReadOnly, cause: BaseException | None) -> None:
        failure.__cause__ = cause
        self.failure = failure
        self._progress.unpark_all()
        self.on_publish()

    async def _recover(self, error: StoreError, runs: Sequence[Run], count: int) -> None:
        """Turn read-only; open the store again if that can help; see what of `runs` is there; go on or stay down."""
        self._counts["failures"] += 1
        while True:
            full = isinstance(error, StoreFull)
            self._strikes += not full
            hopeless = not error.handle_dead or isinstance(error, StoreCorrupt) or self._strikes > 1
            self._fail(LogReadOnly(str(error), retryable=full), error)
            if hopeless and not full:
                await self._stay_down()
                return
            if full and not await self._wait_for_room():
                return
            try:
                heads = await self._reopen()
            except StoreError as failed:
                error = failed
            else:
                await self._look(heads, runs, count)
                return

    async def _reopen(self) -> Mapping[str, Head]:
        """Open the store again, as soon as whoever reads it lets go."""
        while True:
            reach("writer.reopen.before")
            try:
                heads: Mapping[str, Head] = await self._offload(self._disk.reopen)
                reach("writer.reopen.after")
                return heads
            except StoreBusy:
                if self._closing:
                    raise
                await self._pause()

    async def _look(self, heads: Mapping[str, Head], runs: Sequence[Run], count: int) -> None:
        """A write was indeterminate and the store is open again: it holds all of it or none of it."""
        held = {source: head.seq for source, head in heads.items()}
        applied = bool(runs) and all(held.get(run.source, 0) == run.last for run in runs)
        expected = self.written | {run.source: run.last for run in runs if applied}
        if held != expected:
            short = {source for source in expected if held.get(source, 0) != expected[source]}
            reason = f"after re-opening, the store does not hold what was written of {sorted(short)[:5]}"
            self._fail(LogReadOnly(reason, retryable=False), None)
            await self._stay_down()
            return
        self.failure = None
        self._publish(runs if applied else [], count if applied else 0, sync=False)
        if self._unsynced:
            self._wanted = max(self._wanted, self._ring.stored)

    async def _wait_for_room(self) -> bool:
        """Return True when the disk has room; False if the log is closed meanwhile. Pauses if it said so in vain."""
        vain = self._refusals > 0
        self._refusals += 1
        while vain or not await self._offload(self._disk.has_room):
            if self._closing:
                return False
            await self._pause()
            vain = False
        return True

    async def _pause(self) -> None:
        with trio.move_on_after(ROOM_POLL_S):
            await self._alarm.wait()
        self._alarm = trio.Event()

    async def _stay_down(self) -> None:
        """Read-only until closed."""
        while not self._closing:
            await self._alarm.wait()
            self._alarm = trio.Event()
