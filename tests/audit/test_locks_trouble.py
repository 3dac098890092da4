"""Locks when their trail is slow, full, closed or broken, and when they close under whoever waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.errors import AuditClosed, LeaseLost, LocksClosed
from audit.event import Action, AuditEvent
from audit.lease import Lease
from audit.locks import Locks, open_locks
from audit.query import Query
from audit.reader import Reader
from audit.recorder import RecorderOptions
from deltalog.errors import StoreFull
from tests.audit.test_locks import ANN, BOB, EVE, A, B, Bench, MemoryTrail, Reserved, inline
from tests.audit.test_recorder import Recording, later, recording

FEW = RecorderOptions(buffer_events=8, wait_s=60, interval_s=0.1)


class ClosedTrail(MemoryTrail):
    """Refuses everything once it is closed."""

    closed = False

    def log(self, event: AuditEvent) -> None:
        if self.closed:
            raise AuditClosed("the trail was closed")
        super().log(event)


@asynccontextmanager
async def stalled(path: Path) -> AsyncIterator[tuple[Recording, Locks]]:
    """Locks on a real recorder whose store does not answer and whose buffer is full."""
    async with (
        recording(path, FEW) as it,
        open_locks(it.recorder, Reserved(), 0, clock=it.recorder.clock, offload=inline) as locks,
    ):
        await it.recorder.flush()
        it.threads.shut()
        while not it.recorder.statistics().dropped_total:
            it.recorder.log(later(action=Action.CONFLICT, lock_id="other"))
            await wait_all_tasks_blocked()
        yield it, locks


async def told(it: Recording) -> list[Action]:
    """What the trail has of the locks on A."""
    await it.recorder.flush()
    return [each.event.action async for each in Reader(it.store).stream(Query(target="a"))]


async def lost(acquire: Callable[[], Awaitable[Lease]]) -> None:
    with pytest.raises(LeaseLost):
        await acquire()


async def test_a_lease_that_lapses_before_it_is_recorded_does_not_end_before_it_began(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with stalled(tmp_path) as (it, locks), trio.open_nursery() as nursery:
        nursery.start_soon(lost, lambda: locks.acquire(A, ANN, ttl_s=5))
        await trio.sleep(7)
        it.threads.gate.set()
        await it.recorder.flush()
        await wait_all_tasks_blocked()
        assert await told(it) == [Action.ACQUIRED, Action.EXPIRED]
        assert await Reader(it.store).held(A, it.recorder.clock.last) == []
        assert locks.leases() == []


async def test_what_is_not_recorded_yet_is_not_revoked_before_it_began(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with stalled(tmp_path) as (it, locks), trio.open_nursery() as nursery:
        nursery.start_soon(locks.acquire, A, ANN)
        await wait_all_tasks_blocked()
        (lease,) = locks.leases()
        assert await locks.revoke(lease.token, "not yet") is None
        it.threads.gate.set()
        await it.recorder.flush()
        await wait_all_tasks_blocked()
        assert await locks.revoke(lease.token, "now") == lease
        assert await told(it) == [Action.ACQUIRED, Action.REVOKED]


async def test_who_waits_for_a_token_hears_at_once_that_the_locks_close(autojump_clock: MockClock) -> None:
    bench = Bench()

    async def waiter() -> None:
        with pytest.raises(LocksClosed):
            await locks.acquire(B, BOB)
        assert trio.current_time() == begun

    async with trio.open_nursery() as nursery, bench.open(token_block=1) as locks:
        bench.reserved.failing = StoreFull("no room")
        await locks.acquire(A, ANN)
        begun = trio.current_time()
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()


async def test_a_trail_that_was_closed_says_so_for_several_targets_too(autojump_clock: MockClock) -> None:
    trail = ClosedTrail()
    async with Bench(trail).open() as locks:
        lease = await locks.acquire(A, ANN)
        trail.closed = True
        for targets in ([B], [A, B]):
            with pytest.raises(AuditClosed):
                await locks.try_acquire(targets, BOB)
        assert locks.leases() == [lease]
        trail.closed = False


async def failing_block(locks: Locks, trail: ClosedTrail) -> None:
    async with locks.hold(A, ANN):
        trail.closed = True
        raise ZeroDivisionError


async def test_the_error_of_a_block_comes_out_of_hold_even_if_the_trail_was_closed(autojump_clock: MockClock) -> None:
    trail = ClosedTrail()
    async with Bench(trail).open() as locks:
        with pytest.raises(ZeroDivisionError):
            await failing_block(locks, trail)
        trail.closed = False


async def test_i10_nobody_is_left_waiting_when_the_trail_takes_nothing_any_more(autojump_clock: MockClock) -> None:
    trail, ended, closing = ClosedTrail(), list[str](), trio.Event()

    async def waiter() -> None:
        with pytest.raises(LocksClosed):
            await locks.acquire(A, BOB, wait_s=300)
        ended.append("waiter")

    async def holder() -> None:
        with pytest.raises(LeaseLost):
            async with locks.hold(A, ANN, ttl_s=300):
                await trio.sleep_forever()
        ended.append("holder")

    async def run(*, task_status: trio.TaskStatus[Locks]) -> None:
        async with Bench(trail).open() as opened:
            task_status.started(opened)
            await closing.wait()

    async def runner(*, task_status: trio.TaskStatus[Locks]) -> None:
        with pytest.raises(AuditClosed):
            await run(task_status=task_status)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            locks = await nursery.start(runner)
            nursery.start_soon(holder)
            await wait_all_tasks_blocked()
            nursery.start_soon(waiter)
            await wait_all_tasks_blocked()
            trail.closed = True
            closing.set()
    assert sorted(ended) == ["holder", "waiter"]


async def test_a_reason_of_many_bytes_does_not_hide_that_the_lease_is_lost(autojump_clock: MockClock) -> None:
    async with Bench().open() as locks:
        lease = await locks.acquire(A, ANN)
        await locks.revoke(lease.token, "é" * 496)
        for call in (locks.renew, locks.release):
            with pytest.raises(LeaseLost, match="éé"):
                await call(lease)


async def test_locks_go_on_after_a_clock_that_jumped(autojump_clock: MockClock) -> None:
    """The wall clock says when, the monotonic one how long: a jump of the first changes no lease."""
    wall = [10**18]
    bench = Bench()
    bench.clock.wall_ns = lambda: wall[0]
    async with bench.open() as locks:
        for jump_ns in (-(10**15), 10**15, 0):
            lease = await locks.acquire(A, EVE, ttl_s=5)
            wall[0] += jump_ns
            await trio.sleep(4)
            assert locks.leases() == [lease]
            await trio.sleep(1.5)
            assert locks.leases() == []
    stamps = [event.timestamp for event in bench.trail.events]
    assert stamps == sorted(set(stamps))
