"""A log on a memory store, all in one thread: what the tests of the event loop's part stand on.

`Rig` keeps what outlives a log (store, disk, wall clock), so that a test can close one, lose power, and open the next.
Times are trio's, so a test with `autojump_clock` decides what takes how long.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

import pytest
import trio

from deltalog.clock import Clock, pack
from deltalog.codec import build
from deltalog.delta import NO_DEPS, Delta
from deltalog.log import DeltaLog, LogOptions
from deltalog.reader import Stream
from deltalog.store import DeltaStore
from tests.faults import FaultDisk, FaultStore, Inline

NOON_MS = 1_700_000_000_000
LIMIT_S = 60
"""No test of these waits longer, on whatever clock it runs; only a hang does."""


class Wall:
    """A wall clock that stands where it was put; `step_ms` forward at each look."""

    def __init__(self, ms: int = NOON_MS, step_ms: int = 0) -> None:
        self.ms = ms
        self.step_ms = step_ms

    def __call__(self) -> int:
        self.ms += self.step_ms
        return self.ms * 1_000_000


class Rig:
    """Store, disk and threads of one node, each of which can be made to fail."""

    def __init__(self, store: FaultStore | None = None) -> None:
        self.store = store if store is not None else FaultStore()
        self.disk = FaultDisk(self.store)
        self.offload = Inline()
        self.wall = Wall()

    def log(self, source: str = "alice", **options: Any) -> DeltaLog:
        """A log that does not run yet, its ring filled as at an open."""
        chosen = LogOptions(**options)
        clock = Clock(wall_ns=self.wall, drift_ms=chosen.drift_ms)
        log = DeltaLog(source, self.store, self.disk, options=chosen, offload=self.offload, clock=clock)
        log.fill(self.store.newest(chosen.ring_deltas))
        return log

    @asynccontextmanager
    async def running(self, source: str = "alice", **options: Any) -> AsyncIterator[DeltaLog]:
        """A running log. A failure of what it is used for comes out as it is; a hang fails."""
        with trio.fail_after(LIMIT_S):
            async with self.log(source, **options).running() as log:
                yield log

    def failing(
        self, error: type[BaseException], match: str | None = None, source: str = "alice", **options: Any
    ) -> Failing:
        """A running log whose block must end with this error, as itself and not in a group."""
        return Failing(self.running(source, **options), error, match)


class Failing:
    """What `Rig.failing` returns; `error` is what it ended with."""

    def __init__(
        self, running: AbstractAsyncContextManager[DeltaLog], error: type[BaseException], match: str | None
    ) -> None:
        self._running = running
        self._expected = pytest.raises(error, match=match)

    async def __aenter__(self) -> DeltaLog:
        return await self._running.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        with self._expected as caught:
            if not await self._running.__aexit__(kind, error, traceback) and error is not None:
                raise error
        self.error = caught.value
        return True


def remote(source: str, seq: int, ms: int, deps: Mapping[str, int] = NO_DEPS, **fields: Any) -> Delta:
    """A delta of another node, written `ms` after noon."""
    return build(source, seq, pack(NOON_MS + ms), fields.pop("payload", [source, seq]), deps=deps, **fields)


def stored(store: DeltaStore) -> dict[str, list[Delta]]:
    """All that a store holds, by source."""
    heads = store.heads()
    found: dict[str, list[Delta]] = {}
    for source, head in heads.items():
        scan = store.by_source(source, head.floor, head.seq)
        found[source] = []
        while page := scan.page(1000):
            found[source] += page
    return found


def seqs(deltas: Iterable[Delta], source: str = "alice") -> list[int]:
    """Seqs of the deltas of one source."""
    return [delta.seq for delta in deltas if delta.source == source]


def values(deltas: Iterable[Delta]) -> list[Any]:
    """Payloads."""
    return [delta.payload for delta in deltas]


def covers(upper: Mapping[str, int], lower: Mapping[str, int]) -> bool:
    """Whether one vector holds all of another."""
    return all(upper.get(source, 0) >= seq for source, seq in lower.items())


async def collect(stream: Stream, count: int | None = None) -> list[Delta]:
    """All deltas of a stream, page by page."""
    found: list[Delta] = []
    while page := await (stream.page() if count is None else stream.page(count)):
        found += page
    return found


async def until(fact: Callable[[], object], ticks: int = 10_000, pause_s: float = 0) -> None:
    """Return when `fact()` holds; it must come true by itself within so many turns of the event loop."""
    for _ in range(ticks):
        if fact():
            return
        await trio.sleep(pause_s)
    raise AssertionError("it did not come true")
