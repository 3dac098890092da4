"""Every operation on locks cancelled at every moment, on a real recorder under each policy.

After each: nothing is held that nobody was told of, nobody is left in the queue, the next one gets the lock, every
event is accounted for, and the trail tells of the same leases as the locks do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.errors import LeaseLost
from audit.event import Action
from audit.lease import Lease
from audit.locks import Locks, open_locks
from audit.query import Query
from audit.reader import Reader
from audit.recorder import Overflow, RecorderOptions
from tests.audit.test_locks import ANN, BOB, EVE, A, B, Reserved, inline
from tests.audit.test_recorder import Recording, balanced, recording
from tests.faults import CancelAt

STEPS_MAX = 300
"""No call under test takes more steps than this, of all tasks together."""
ENDS = (Action.RELEASED, Action.EXPIRED, Action.REVOKED)


@attrs.define
class Bench:
    """One call in one situation."""

    it: Recording
    locks: Locks
    lease: Lease | None = None
    """What ann holds before the call."""

    async def held(self) -> Lease:
        self.lease = await self.locks.acquire([A, B], ANN, ttl_s=60)
        return self.lease


async def free(bench: Bench) -> None:
    """Nobody holds anything."""


async def held(bench: Bench) -> None:
    """Ann holds both."""
    await bench.held()


async def acquire(bench: Bench) -> Lease:
    return await bench.locks.acquire([A, B], ANN, ttl_s=60)


async def acquire_one(bench: Bench) -> Lease:
    return await bench.locks.acquire(A, ANN, ttl_s=60)


async def wait(bench: Bench) -> Lease:
    """Acquire what bob gives back meanwhile."""
    async with trio.open_nursery() as nursery:
        await nursery.start(bob_for_a_while, bench)
        return await bench.locks.acquire([A, B], ANN, ttl_s=60)
    raise AssertionError


async def bob_for_a_while(bench: Bench, *, task_status: trio.TaskStatus[None]) -> None:
    async with bench.locks.hold(B, BOB, ttl_s=60):
        task_status.started()
        await trio.sleep(1)


async def renew(bench: Bench) -> Lease:
    assert bench.lease is not None
    return await bench.locks.renew(bench.lease, ttl_s=50)


async def release(bench: Bench) -> None:
    assert bench.lease is not None
    await bench.locks.release(bench.lease)


async def revoke(bench: Bench) -> None:
    assert bench.lease is not None
    assert await bench.locks.revoke(bench.lease.token, "needed") == bench.lease


async def hold(bench: Bench) -> None:
    async with bench.locks.hold([A, B], ANN, ttl_s=60):
        await trio.sleep(1)


async def hold_lapses(bench: Bench) -> None:
    with suppress(LeaseLost):
        async with bench.locks.hold([A, B], ANN, ttl_s=5):
            await trio.sleep_forever()


def expected(bench: Bench, call: object, result: Lease | None) -> list[Lease]:
    """What is held after the call."""
    if result is not None:
        return [result]
    return [bench.lease] if call is renew and bench.lease is not None else []


async def check(bench: Bench) -> None:
    """Nobody waits, the next one gets everything, and the trail tells the same."""
    it, locks = bench.it, bench.locks
    assert locks.waiting() == []
    for lease in locks.leases():
        assert await locks.revoke(lease.token, "the next case") is not None
    await locks.release(await locks.try_acquire([A, B], EVE))
    await it.recorder.flush()
    statistics = it.recorder.statistics()
    assert balanced(statistics)
    assert (statistics.pending, statistics.waiting) == (0, 0)
    holding: set[tuple[str, int]] = set()
    async for each in Reader(it.store).stream(Query()):
        event = each.event
        if event.action is Action.ACQUIRED:
            holding.add((event.target, event.token))
        elif event.action in ENDS:
            holding.discard((event.target, event.token))
    assert holding == set() or statistics.dropped_total, "the trail tells of a lease that nobody has"


@pytest.mark.parametrize(
    ("policy", "buffer_events"),
    [(Overflow.DROP, 99), (Overflow.WAIT, 99), (Overflow.WAIT, 1), (Overflow.REQUIRE, 99), (Overflow.REQUIRE, 1)],
)
@pytest.mark.parametrize(
    ("prepare", "call"),
    [
        (free, acquire_one), (free, acquire), (free, wait), (free, hold), (free, hold_lapses),
        (held, renew), (held, release), (held, revoke),
    ],
)  # fmt: skip
async def test_cancelled_at_every_moment(
    tmp_path: Path,
    autojump_clock: MockClock,
    policy: Overflow,
    buffer_events: int,
    prepare: Callable[[Bench], Awaitable[None]],
    call: Callable[[Bench], Awaitable[Lease | None]],
) -> None:
    options = RecorderOptions(policy=policy, interval_s=0.1, buffer_events=buffer_events)
    async with (
        recording(tmp_path, options) as it,
        open_locks(it.recorder, Reserved(), 0, clock=it.recorder.clock, offload=inline) as locks,
    ):
        for steps in range(STEPS_MAX):
            bench = Bench(it, locks)
            await prepare(bench)
            cancel = CancelAt(steps, of_all=True)
            result = await cancel.run(partial(call, bench))
            await wait_all_tasks_blocked()
            assert locks.leases() == expected(bench, call, result)
            await check(bench)
            if not cancel.scope.cancel_called:
                assert steps, "it was cancelled at least once"
                return
    raise AssertionError(f"more than {STEPS_MAX} steps")
