"""Stores, disks and worker threads that misbehave as told. One file for all tests.

What lives here: a plan of failures by method and call number (`Faults`); a `DeltaStore` that follows one and knows what
a power loss would leave (`FaultStore`); what a writer commits to, with a switch for "the disk has room" (`FaultDisk`);
worker threads that are none (`Inline`); a cancellation at a chosen moment (`CancelAt`). It knows the contracts, and of
the stores only the memory one, which it builds anew from what survived.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import trio

from deltalog.delta import Delta
from deltalog.errors import StoreError
from deltalog.keys import Head
from deltalog.memory_store import MemoryStore
from deltalog.store import Annotation, DeltaStore, Erasure, Run, Scan, StoreSizes

_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------------ what goes wrong


@attrs.define
class _Fault:
    error: type[Exception]
    message: str
    at: int
    times: int
    applied: bool


class Faults:
    """Which call of which method fails, and how. Calls are counted from 1, those that fail included."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """Calls so far, by method."""
        self.delays_s: dict[str, float] = {}
        """Seconds that each call of a method sleeps in its thread before it does anything."""
        self.holds: dict[str, threading.Event] = {}
        """A call of such a method begins only when the event is set. For calls in worker threads."""
        self.on_call: Callable[[str], None] = lambda _method: None
        """Called after each call that did something, with the name of the method."""
        self._faults: dict[str, list[_Fault]] = {}
        self._guard = threading.Lock()

    def fail(
        self,
        method: str,
        error: type[Exception],
        *,
        at: int = 1,
        times: int = 1,
        applied: bool = False,
        message: str = "injected",
    ) -> None:
        """Make the `at`-th call of `method` from now on raise, and the `times` - 1 after it; done yet if `applied`."""
        fault = _Fault(error, message, self.calls[method] + at, times, applied)
        self._faults.setdefault(method, []).append(fault)

    def clear(self) -> None:
        """Let everything succeed again."""
        self._faults.clear()
        self.delays_s.clear()

    def run(self, method: str, action: Callable[[], _T]) -> _T:
        """Do `action` as the plan says."""
        with self._guard:
            self.calls[method] += 1
            number = self.calls[method]
        if method in self.holds:
            self.holds[method].wait()
        if delay_s := self.delays_s.get(method):
            time.sleep(delay_s)
        for fault in self._faults.get(method, ()):
            if fault.at <= number < fault.at + fault.times:
                if fault.applied:
                    action()
                    self.on_call(method)
                raise fault.error(f"{method}: {fault.message}")
        result = action()
        self.on_call(method)
        return result


# ------------------------------------------------------------------------------------------------------------ the store


class FaultStore:
    """A `DeltaStore` that fails as `faults` says, and remembers what was fsynced.

    After an error that kills the handle every change is refused, and reads go on, until `reopen`: as RocksDB does it.
    It starts empty, so that what was done to it (`journal`) says all about it.
    """

    def __init__(self, inner: DeltaStore | None = None) -> None:
        self.inner: DeltaStore = inner if inner is not None else MemoryStore()
        assert not self.inner.heads(), "a fault store starts empty"
        self.faults = Faults()
        self.journal: list[Callable[[DeltaStore], object]] = []
        """Every change, in order."""
        self.durable = 0
        """How many of them survive power loss."""
        self.page_size: Callable[[int], int] = lambda count: count
        """asked for -> how many deltas a page gives about: odd or short pages, which are allowed."""
        self.dead: StoreError | None = None

    # ---- power loss

    @property
    def unsynced(self) -> int:
        """Changes that a power loss may take."""
        return len(self.journal) - self.durable

    def survivor(self, unsynced: int = 0) -> MemoryStore:
        """What a power loss leaves that happens to spare the first so many of the unsynced changes."""
        store = MemoryStore()
        for change in self.journal[: self.durable + unsynced]:
            change(store)
        store.sync()
        return store

    def fork(self, unsynced: int = 0) -> FaultStore:
        """As `survivor`, to go on with; this one stays as it is."""
        store = FaultStore()
        store.inner = self.survivor(unsynced)
        store.journal = self.journal[: self.durable + unsynced]
        store.durable = len(store.journal)
        return store

    def crash(self, unsynced: int = 0) -> None:
        """Lose power, sparing the first so many of the unsynced changes; then it is there again."""
        self.inner = self.survivor(unsynced)
        del self.journal[self.durable + unsynced :]
        self.durable = len(self.journal)
        self.dead = None

    # ---- changes

    def _change(self, method: str, change: Callable[[DeltaStore], _T], *, durable: bool = False) -> _T:
        def action() -> _T:
            result = change(self.inner)
            self.journal.append(change)
            if durable:
                self.durable = len(self.journal)
            return result

        return self._guarded(method, action)

    def _guarded(self, method: str, action: Callable[[], _T]) -> _T:
        if self.dead is not None:
            raise type(self.dead)(f"{method}: not tried after an earlier failure: {self.dead}")
        try:
            return self.faults.run(method, action)
        except StoreError as error:
            if error.handle_dead:
                self.dead = error
            raise

    def write(self, runs: Sequence[Run]) -> None:
        kept = list(runs)
        self._change("write", lambda store: store.write(kept))

    def sync(self) -> int:
        def action() -> int:
            number = self.inner.sync()
            self.durable = len(self.journal)
            return number

        return self._guarded("sync", action)

    def truncate(self, floors: Mapping[str, int]) -> int:
        kept = dict(floors)
        return self._change("truncate", lambda store: store.truncate(kept))

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> Delta | None:
        return self._change("erase", lambda store: store.erase(source, seq, reason, timestamp), durable=True)

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        kept = dict(changes)
        self._change("annotate", lambda store: store.annotate(kept))

    def compact(self, *, if_needed: bool = False) -> None:
        self._guarded("compact", lambda: self.inner.compact(if_needed=if_needed))

    def reopen(self) -> None:
        self.dead = None
        self.faults.run("reopen", self.inner.reopen)

    def close(self) -> None:
        self.inner.close()

    # ---- reads

    def heads(self) -> Mapping[str, Head]:
        return self.inner.heads()

    def get(self, source: str, seq: int) -> Delta | None:
        return self.faults.run("get", lambda: self.inner.get(source, seq))

    def hash_at(self, source: str, seq: int) -> bytes:
        return self.faults.run("hash_at", lambda: self.inner.hash_at(source, seq))

    def annotation(self, key: bytes) -> bytes | None:
        return self.faults.run("annotation", lambda: self.inner.annotation(key))

    def annotations(self, prefix: bytes = b"", after: bytes = b"", limit: int | None = None) -> Sequence[Annotation]:
        return self.faults.run("annotations", lambda: self.inner.annotations(prefix, after, limit))

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> Scan:
        return _FaultScan(self, self.inner.by_source(source, after, until, reverse=reverse))

    def between(self, after: int, until: int) -> Scan:
        return _FaultScan(self, self.inner.between(after, until))

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> Scan:
        return _FaultScan(self, self.inner.since(after, until))

    def newest(self, count: int) -> Sequence[Delta]:
        return self.inner.newest(count)

    def seqs_at(self, timestamp: int) -> Mapping[str, int]:
        return self.inner.seqs_at(timestamp)

    def erasures(self) -> Sequence[Erasure]:
        return self.inner.erasures()

    def sizes(self) -> StoreSizes:
        return self.inner.sizes()


class _FaultScan:
    """A scan whose pages have the sizes its store wants, and fail as its plan says ("page")."""

    def __init__(self, store: FaultStore, scan: Scan) -> None:
        self._store = store
        self._scan = scan

    def page(self, count: int) -> Sequence[Delta]:
        wanted = max(1, self._store.page_size(count))
        return self._store.faults.run("page", lambda: self._scan.page(wanted))


# ------------------------------------------------------------------------------------------- what a writer commits to


class FaultDisk:
    """A writer's disk over a store: `persist`, `reopen` and `has_room` fail as `faults` says."""

    def __init__(self, store: DeltaStore) -> None:
        self.store = store
        self.faults = Faults()
        self.room = True
        """What `has_room` says."""
        self.commits: list[tuple[int, bool]] = []
        """Deltas and whether it was fsynced, for each commit that succeeded."""

    def persist(self, runs: Sequence[Run], sync: bool) -> None:
        self.faults.run("persist", lambda: self._persist(runs, sync))

    def _persist(self, runs: Sequence[Run], sync: bool) -> None:
        if runs:
            self.store.write(runs)
        if sync:
            self.store.sync()
        self.commits.append((sum(len(run.records) for run in runs), sync))

    def reopen(self) -> Mapping[str, Head]:
        self.faults.run("reopen", self.store.reopen)
        return self.store.heads()

    def has_room(self) -> bool:
        return self.faults.run("has_room", lambda: self.room)

    @property
    def fsyncs(self) -> int:
        """Commits that were fsynced."""
        return sum(sync for _, sync in self.commits)


# ---------------------------------------------------------------------------------------- worker threads, cancellation


class Inline:
    """Runs what belongs in a worker thread in this one, as an `offload`: a checkpoint, the call, a checkpoint.

    As with a thread, a cancellation is seen before the call or after it, never instead of its result. `holds` and
    `sleeps_s` are by the name of the function that is called.
    """

    def __init__(self) -> None:
        self.before: dict[str, trio.Event] = {}
        """A call waits for this before it begins."""
        self.after: dict[str, trio.Event] = {}
        """A call that is done waits for this before it returns."""
        self.sleeps_s: dict[str, float] = {}
        """How long a call takes, on trio's clock."""
        self.began: dict[str, trio.Event] = {}
        """Set when a call begins to wait (put one here first)."""

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        name = getattr(function, "__name__", "")
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            if name in self.began:
                self.began[name].set()
            await trio.sleep(self.sleeps_s.get(name, 0))
            await _wait(self.before.get(name))
            try:
                return function(*args)
            finally:
                await _wait(self.after.get(name))
                await trio.lowlevel.checkpoint()


async def _wait(event: trio.Event | None) -> None:
    if event is not None:
        await event.wait()


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task (or all of them together) passed so many checkpoints; 0: before it begins."""

    def __init__(self, checkpoints: int, *, of_all: bool = False) -> None:
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        self._of_all = of_all
        self._left = checkpoints
        if not checkpoints:
            self.scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task or self._of_all:
            self._left -= 1
            if not self._left:
                self.scope.cancel()

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What the call returned, or None if it was cancelled."""
        self.task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                return await call()
        finally:
            trio.lowlevel.remove_instrument(self)


class Bug(Exception):
    """What no code expects."""
