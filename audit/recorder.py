"""The recorder: takes events from whoever makes them, writes them in batches, and says exactly what it could not write.

Lives here: policies, when a batch is written and synced, who waits for what, and what becomes of a failure. One task
runs it; its state belongs to the trio thread, only the store's calls run in a worker thread. Does not know: RocksDB,
keys, the chain, what a lock is.

One batch:  take what waits -> write (one atomic batch) -> fsync if due -> count as recorded -> wake who waits

A batch is written once `batch_events_min` events wait, or `interval_s` after the first of them, or at once when an
event is required. It is fsynced at once when one is required, otherwise at most `interval_s` later.

While the store cannot take events (`problem` says why) they stay in the buffer, in order; a full buffer does what the
policy says. A full disk heals by itself; after any other failure the store is opened safely once more.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Final

import attrs
import trio

from audit.buffer import Buffer
from audit.errors import AuditClosed, AuditUnavailable
from audit.event import TRAIL_ACTIONS, Action, AuditEvent
from audit.overflow import Overflow, RecorderOptions, RecorderStatistics
from audit.store import AuditStore, Run
from deltalog.clock import Clock
from deltalog.errors import StoreBackpressure, StoreBusy, StoreCorrupt, StoreError, StoreFull, UsageError
from deltalog.nursery import open_nursery
from deltalog.writer import Offload

BACKPRESSURE_DELAY_S: Final = 0.005
ROOM_POLL_S: Final = 0.25
_NEVER: Final = 1 << 62
__all__ = ["Overflow", "Recorder", "RecorderOptions", "RecorderStatistics"]


class Recorder:
    """Takes events and gets them into the store. Use from the trio thread."""

    def __init__(
        self,
        store: AuditStore,
        clock: Clock,
        has_room: Callable[[], bool],
        options: RecorderOptions | None = None,
        offload: Offload = trio.to_thread.run_sync,
    ) -> None:
        """`has_room`: whether the disk has room to open the store and go on; called in a worker thread."""
        # constant after construction
        self.options: Final = options if options is not None else RecorderOptions()
        self.clock: Final = clock
        self._store: Final = store
        self._has_room: Final = has_room
        self._offload: Final = offload
        self.missing = 0
        """Number of an event that the trail once had and has no more, 0 if none is known. Set before `running`."""
        # owned by the task
        self._buffer = Buffer(self.options.buffer_events, store.head.timestamp)
        self._strikes = 0  # failures since the last fsync that succeeded, a full disk not counted
        self._first_at: float | None = None  # when the first of what waits was seen
        self._unsynced_since: float | None = None
        self._give_up_at = math.inf
        self._batches = self._fsyncs = 0
        # published by the task
        self.synced = 0
        """Ordinal up to which everything survives power loss."""
        self.problem: StoreError | None = None
        """Why nothing can be written, None while it can."""
        # shared with callers
        self._wanted = 0  # ordinal that somebody waits for
        self._waiting = 0
        self._wake_at = _NEVER  # events in the buffer that end the task's sleep
        self._alarm = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._closing = False
        self._closed = False

    # ------------------------------------------------------------------------------------------------- for callers

    def log(self, event: AuditEvent) -> None:
        """Take an event, or count it as dropped if the buffer is full. Never waits.

        Raises AuditClosed, and UsageError for an action that only the trail records.
        """
        if self._closing or event.action in TRAIL_ACTIONS:
            self._refuse(event)
        buffer = self._buffer
        buffer.push(event)
        if len(buffer) >= self._wake_at:
            self._wake()

    async def submit(self, event: AuditEvent) -> None:
        """Take an event as the policy of its action says.

        `WAIT` and `DROP` never raise for an event that is dropped: it is counted. `REQUIRE` returns when it is
        durable, or raises AuditUnavailable by its deadline; the event is then withdrawn, or, if it was being written
        already, followed by a DENIED event that says it was undone. Cancelled: likewise for `REQUIRE`; else it is
        taken or counted as dropped.
        """
        policy = self.options.policies.get(event.action, self.options.policy)
        if policy is Overflow.DROP:
            self.log(event)
            await trio.lowlevel.checkpoint()
        elif self._closing or event.action in TRAIL_ACTIONS:
            self._refuse(event)
        elif policy is Overflow.WAIT:
            await self._submit_waiting(event)
        else:
            await self._submit_required(event)

    async def flush(self) -> None:
        """Return when every event taken before this call is durable. Raises AuditUnavailable, AuditClosed."""
        await trio.lowlevel.checkpoint()
        await self._wait_synced(self._buffer.ordinal)

    async def wait_recorded(self, number: int) -> None:
        """Return when the trail holds an event behind `number`. Raises AuditClosed."""
        while self._store.head.number <= number:
            if self._closed:
                raise AuditClosed("the trail was closed")
            await self._progress.park()

    def statistics(self) -> RecorderStatistics:
        """How it is."""
        buffer = self._buffer
        return RecorderStatistics(
            submitted=buffer.submitted,
            recorded=buffer.recorded,
            dropped=MappingProxyType(dict(buffer.dropped)),
            pending=buffer.pending,
            waiting=self._waiting,
            batches=self._batches,
            fsyncs=self._fsyncs,
            problem="" if self.problem is None else str(self.problem),
        )

    def _refuse(self, event: AuditEvent) -> None:
        if self._closing:
            raise AuditClosed("the trail was closed")
        raise UsageError(f"action {event.action.value!r} is recorded by the trail itself")

    def _wake(self) -> None:
        self._wake_at = _NEVER
        self._alarm.set()

    async def _submit_waiting(self, event: AuditEvent) -> None:
        if self._buffer.has_room:
            self._put(event)
            return
        try:
            with trio.move_on_after(self.options.wait_s):
                await self._wait_room()
                self._put(event)
                return
        except BaseException:
            self._buffer.drop(event)
            raise
        self._buffer.drop(event)

    async def _submit_required(self, event: AuditEvent) -> None:
        ordinal = 0
        try:
            with trio.move_on_after(self.options.require_s):
                await self._wait_room()
                ordinal = self._put(event)
                await self._wait_synced(ordinal)
                return
        except BaseException:
            self._undo(event, ordinal)
            raise
        self._undo(event, ordinal)
        reason = str(self.problem) if self.problem is not None else f"not durable within {self.options.require_s:g} s"
        raise AuditUnavailable(reason) from self.problem

    async def _wait_room(self) -> None:
        """Return when the buffer has room. A checkpoint only if it has to wait."""
        self._waiting += 1
        try:
            while not self._buffer.has_room:
                if self._closing:
                    raise AuditClosed("the trail was closed")
                await self._progress.park()
        finally:
            self._waiting -= 1

    def _put(self, event: AuditEvent) -> int:
        ordinal = self._buffer.put(event)
        if len(self._buffer) >= self._wake_at:
            self._wake()
        return ordinal

    async def _wait_synced(self, ordinal: int) -> None:
        self._wanted = max(self._wanted, ordinal)
        self._alarm.set()
        while self.synced < ordinal:
            if self._closed:
                raise AuditUnavailable("the trail was closed") from self.problem
            await self._progress.park()

    def _undo(self, event: AuditEvent, ordinal: int) -> None:
        """Take back a required event; whether it was counted as submitted depends on how far it came."""
        if not ordinal:
            self._buffer.drop(event)
        elif not self._buffer.withdraw(ordinal) and not self._closed:
            undone = {"undone": event.action.value, "reason": "its event was not durable in time"}
            timestamp = max(self.clock.tick(), event.timestamp)
            self._buffer.put(attrs.evolve(event, timestamp=timestamp, action=Action.DENIED, metadata=undone))
            self._wake()

    # ---------------------------------------------------------------------------------------------------- the task

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Record while the block runs; then write what waits, and end. Raises AuditUnavailable if something was lost.

        A trail that ended without this says so at its next start.
        """
        await self._offload(self._begin)
        async with open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                yield
            finally:
                self._buffer.put_own(AuditEvent(self.clock.tick(), Action.STOPPED))
                self._closing = True
                self._give_up_at = trio.current_time() + self.options.close_s
                self._wake()
                self._progress.unpark_all()

    def _begin(self) -> None:
        """Say how the last run ended, and that a new one began."""
        last, head = self._store.run(), self._store.head
        metadata = {"unclean": "false" if last is None or last.clean else "true"}
        if last is None:
            metadata["created"] = "true"
        elif not last.clean:
            metadata |= {"missing": "the last events before the stop may be missing", "window_s": f"{last.window_s:g}"}
            metadata |= {"last_number": str(head.number), "last_timestamp": str(head.timestamp)}
        if self.missing:
            metadata |= {"put_back": "true", "reached_before": str(self.missing)}
        window_s = max(self.options.interval_s, 0 if last is None or last.clean else last.window_s)
        self._store.set_run(Run(head.timestamp, clean=False, window_s=window_s))
        self._buffer.put_own(AuditEvent(self.clock.tick(), Action.STARTED, metadata=metadata))

    async def _run(self) -> None:
        """Write until the end. Whatever ends it, nobody is left waiting, and what was not written is counted."""
        lost = -1
        try:
            with trio.CancelScope(shield=True):  # ends by `_closing`: a cancelled trail still drains
                await self._loop()
                stopped = self._buffer.idle
                lost = self._buffer.give_up()
                if stopped:
                    await self._offload(self._store.set_run, Run(self._store.head.timestamp, clean=True))
        finally:
            self._closing = self._closed = True
            if lost < 0:
                lost = self._buffer.give_up()
            self._progress.unpark_all()
        if lost:
            raise AuditUnavailable(f"it was closed before {lost:,} events were written") from self.problem

    async def _loop(self) -> None:
        while not (self._closing and (self.problem is not None or self._is_drained())):
            if self._is_batch_due():
                await self._write()
            elif self._is_sync_due():
                await self._sync()
            else:
                await self._sleep()

    def _is_drained(self) -> bool:
        return self._buffer.idle and self._unsynced_since is None

    def _is_batch_due(self) -> bool:
        if self._buffer.idle:
            return False
        urgent = self._closing or self._wanted > self._buffer.stored
        return urgent or len(self._buffer) >= self.options.batch_events_min or trio.current_time() >= self._batch_due()

    def _batch_due(self) -> float:
        """When what waits must be written."""
        return (trio.current_time() if self._first_at is None else self._first_at) + self.options.interval_s

    def _is_sync_due(self) -> bool:
        since = self._unsynced_since
        if since is None:
            return False
        urgent = self._closing or self._wanted > self.synced
        return urgent or trio.current_time() >= since + self.options.interval_s

    async def _sleep(self) -> None:
        """Sleep until enough waits, somebody is in a hurry, or the interval of what waits or is not synced is over."""
        waiting = not self._buffer.idle
        if waiting and self._first_at is None:
            self._first_at = trio.current_time()
        due = self._batch_due() if waiting else math.inf
        if self._unsynced_since is not None:
            due = min(due, self._unsynced_since + self.options.interval_s)
        self._wake_at = self.options.batch_events_min if waiting else 1
        with trio.CancelScope(deadline=due):
            await self._alarm.wait()
        self._wake_at = _NEVER
        self._alarm = trio.Event()

    async def _write(self) -> None:
        """Write one batch; fsync it if somebody waits for that."""
        batch = self._buffer.take(self.options.batch_events_max)
        sync = self._closing or self._wanted > self._buffer.stored or self._is_sync_due()
        before = self._store.head.number
        self._first_at = None
        try:
            await self._offload(partial(self._store.write, batch, sync=sync))
        except StoreBackpressure:
            await trio.sleep(BACKPRESSURE_DELAY_S)
        except StoreError as error:
            await self._recover(error, before, before + len(batch))
        else:
            self._recorded(sync=sync)

    def _recorded(self, *, sync: bool) -> None:
        """The batch taken is in the store: say so."""
        self._buffer.done()
        self._batches += 1
        if self._unsynced_since is None:
            self._unsynced_since = trio.current_time()
        if sync:
            self._is_synced()
        self._progress.unpark_all()

    def _is_synced(self) -> None:
        self.synced = self._buffer.stored
        self._unsynced_since = None
        self._strikes = 0
        self._fsyncs += 1

    async def _sync(self) -> None:
        try:
            await self._offload(self._store.sync)
        except StoreError as error:
            await self._recover(error, self._store.head.number, self._store.head.number)
        else:
            self._is_synced()
            self._progress.unpark_all()

    # ---------------------------------------------------------------------------------------------------- failures

    async def _recover(self, error: StoreError, before: int, number: int) -> None:
        """Open the store again if that can help, see whether it ends with event `number` or still with `before`."""
        while True:
            self.problem = error
            full = isinstance(error, StoreFull)
            self._strikes += not full
            if not full and (not error.handle_dead or isinstance(error, StoreCorrupt) or self._strikes > 1):
                await self._stay_down()
                return
            try:
                if not await self._reopen(full=full):
                    return
            except StoreError as failed:
                error = failed
            else:
                break
        head = self._store.head.number
        if head not in (before, number):
            self.problem = StoreCorrupt(f"after re-opening, the trail ends with event {head}, not with {before}")
            await self._stay_down()
            return
        self.problem = None
        if head == number and self._buffer.is_writing:
            self._recorded(sync=False)

    async def _reopen(self, *, full: bool) -> bool:
        """Open the store again, as soon as there is room and whoever reads it lets go; False if closed meanwhile."""
        while full:
            await trio.sleep(ROOM_POLL_S)
            if await self._offload(self._has_room):
                break
            if self._is_given_up():
                return False
        while True:
            try:
                await self._offload(self._store.reopen)
                return True
            except StoreBusy:
                if self._is_given_up():
                    raise
                await trio.sleep(ROOM_POLL_S)

    def _is_given_up(self) -> bool:
        return self._closing and trio.current_time() >= self._give_up_at

    async def _stay_down(self) -> None:
        """Take no more until closed; the buffer fills and then does what the policies say."""
        while not self._closing:
            await self._alarm.wait()
            self._alarm = trio.Event()
