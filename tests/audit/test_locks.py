"""Locks on trio's own clock, with a trail in memory: waiting, lapsing, holding, recording and undoing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.errors import (
    AuditUnavailable,
    LeaseLost,
    LockConflict,
    LockLimit,
    LocksClosed,
    LockTimeout,
    RenewalsExhausted,
)
from audit.event import Action, AuditEvent
from audit.lease import Holder, Lease, LockOptions, Mode
from audit.locks import Locks, open_locks
from audit.target import Symbol, Target
from deltalog.clock import Clock
from deltalog.errors import StoreFull, UsageError

ANN, BOB, EVE = Holder("ann", "Ann"), Holder("bob", "Bob"), Holder("eve")
A, B = Target("a"), Target("b")


class MemoryTrail:
    """Keeps events; refuses to record, or holds up, what a test says."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.unavailable: set[Action] = set()
        self.held_up: dict[Action, trio.Event] = {}

    def log(self, event: AuditEvent) -> None:
        if self.events:
            assert self.events[-1].timestamp < event.timestamp, "events go in the order of their timestamps"
        self.events.append(event)

    async def submit(self, event: AuditEvent) -> None:
        if event.action in self.unavailable:
            raise AuditUnavailable("the disk is full")
        self.log(event)
        if event.action in self.held_up:
            await self.held_up[event.action].wait()
            if event.action in self.unavailable:
                raise AuditUnavailable("the disk is full")

    def told(self) -> list[tuple[str, str]]:
        return [(event.action.value, event.holder_id) for event in self.events]


class Reserved:
    """Keeps reservations in memory."""

    def __init__(self) -> None:
        self.upto = 0
        self.calls = 0
        self.failing: Exception | None = None

    def reserve(self, upto: int) -> None:
        self.calls += 1
        if self.failing is not None:
            raise self.failing
        assert upto > self.upto
        self.upto = upto


async def inline(work: Callable[..., Any], *arguments: Any) -> Any:
    """A hop to no thread."""
    await trio.lowlevel.checkpoint()
    return work(*arguments)


@attrs.define
class Bench:
    """Locks and what stands around them."""

    trail: MemoryTrail = attrs.field(factory=MemoryTrail)
    reserved: Reserved = attrs.field(factory=Reserved)
    clock: Clock = attrs.field(factory=Clock)

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Locks]:
        chosen = LockOptions(**options)
        async with open_locks(
            self.trail, self.reserved, self.reserved.upto, clock=self.clock, options=chosen, offload=inline
        ) as locks:
            yield locks


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
async def locks(bench: Bench, autojump_clock: MockClock) -> AsyncIterator[Locks]:
    async with bench.open() as opened:
        yield opened


# ------------------------------------------------------------------------------------------------------------ plain use


async def test_acquire_and_release_are_told_once_each(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    target = Target("src/app.py", (10, 20), Symbol("function", "main"))
    lease = await locks.acquire(target, ANN, intention="rename it", ttl_s=5)
    assert locks.leases() == locks.leases("ann") == locks.leases(target="src/") == [lease]
    assert locks.leases("bob") == locks.leases(target="lib/") == []
    await locks.release(lease)
    assert locks.leases() == []
    acquired, released = bench.trail.events
    assert (acquired.action, acquired.target, acquired.token) == (Action.ACQUIRED, str(target), lease.token)
    assert (acquired.holder_name, acquired.lock_id) == ("Ann", lease.lock_id)
    assert dict(acquired.metadata) == {"intention": "rename it", "mode": "exclusive", "ttl_s": "5"}
    assert (released.action, released.lock_id, released.token) == (Action.RELEASED, lease.lock_id, lease.token)


async def test_try_acquire_says_who_is_in_the_way(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    lease = await locks.acquire(A, ANN)
    with pytest.raises(LockConflict) as refused:
        await locks.try_acquire([B, A], BOB)
    assert (refused.value.blocker, refused.value.blocker_holder) == (lease.lock_id, "ann")
    assert refused.value.target == "a"
    told = [(event.action, event.target) for event in bench.trail.events[1:]]
    assert told[0] == (Action.CONFLICT, "a")
    assert sorted(told[1:]) == [(Action.DENIED, "a"), (Action.DENIED, "b")]
    assert bench.trail.events[1].metadata["blocked_by"] == lease.lock_id
    await locks.acquire(B, EVE)


async def test_waiting_is_first_come_first_served(locks: Locks, autojump_clock: MockClock) -> None:
    order: list[str] = []
    lease = await locks.acquire(A, ANN)

    async def worker(holder: Holder) -> None:
        async with locks.hold(A, holder):
            order.append(holder.id)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(worker, Holder(f"h{number}"))
            await wait_all_tasks_blocked()
        assert [waiting.holder.id for waiting in locks.waiting(target="a")] == [f"h{number}" for number in range(5)]
        assert locks.statistics().waiting == 5
        await locks.release(lease)
    assert order == [f"h{number}" for number in range(5)]
    assert locks.statistics().held == 0


async def test_a_wait_ends_at_its_deadline(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    await locks.acquire(A, ANN, ttl_s=100)
    begun = trio.current_time()
    with pytest.raises(LockTimeout):
        await locks.acquire(A, BOB, wait_s=7)
    assert trio.current_time() == begun + 7
    assert bench.trail.told()[1:] == [("conflict", "bob"), ("waiting", "bob"), ("denied", "bob")]
    assert locks.waiting() == []


async def test_a_cancelled_wait_leaves_the_queue(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    lease = await locks.acquire(A, ANN)
    with trio.move_on_after(3) as scope:
        await locks.acquire(A, BOB, wait_s=20)
    assert scope.cancelled_caught
    assert locks.waiting() == []
    assert bench.trail.told()[-1] == ("denied", "bob")
    await locks.release(lease)
    await locks.try_acquire(A, EVE)


async def test_a_lease_lapses_at_its_deadline_and_the_next_gets_the_lock(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    first = await locks.acquire(A, ANN, ttl_s=5)
    begun = trio.current_time()
    second = await locks.acquire(A, BOB, wait_s=20)
    assert trio.current_time() == begun + 5
    assert second.token > first.token
    for call in (locks.renew, locks.release):
        with pytest.raises(LeaseLost, match="expired"):
            await call(first)
    assert bench.trail.told() == [
        ("acquired", "ann"),
        ("conflict", "bob"),
        ("waiting", "bob"),
        ("expired", "ann"),
        ("acquired", "bob"),
        ("denied", "ann"),
        ("denied", "ann"),
    ]


async def test_deadlines_are_kept_by_one_sleeping_task(locks: Locks, autojump_clock: MockClock) -> None:
    for number in range(20):
        await locks.acquire(Target(f"f{number}"), ANN, ttl_s=20 - number)
    begun = trio.current_time()
    for left in range(20, 0, -1):
        assert len(locks.leases()) == left
        await trio.sleep_until(begun + 20 - left + 1)


async def test_a_renewed_lease_lasts_longer(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    lease = await locks.acquire(A, ANN, ttl_s=5)
    await trio.sleep(4)
    renewed = await locks.renew(lease)
    assert renewed.deadline_s == trio.current_time() + 5
    assert (renewed.renewals, renewed.token) == (1, lease.token)
    await trio.sleep(4)
    assert locks.leases() == [renewed]
    await trio.sleep(2)
    assert locks.leases() == []
    assert bench.trail.told() == [("acquired", "ann"), ("renewed", "ann"), ("expired", "ann")]


async def test_bounds_have_errors_of_their_own(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.open(locks_per_holder_max=1, renewals_max=1) as locks:
        lease = await locks.acquire(A, ANN)
        with pytest.raises(LockLimit, match="locks_per_holder_max"):
            await locks.acquire(B, ANN)
        await locks.renew(lease)
        with pytest.raises(RenewalsExhausted):
            await locks.renew(lease)
        with pytest.raises(UsageError, match="ttl_s"):
            await locks.acquire(B, BOB, ttl_s=0.1)
        with pytest.raises(UsageError, match="wait_s"):
            await locks.acquire(B, BOB, wait_s=1e9)
    assert bench.trail.told() == [
        ("acquired", "ann"), ("denied", "ann"), ("renewed", "ann"), ("denied", "ann"), ("revoked", "ann")
    ]  # fmt: skip


async def test_only_the_holder_can_renew_and_release(locks: Locks, autojump_clock: MockClock) -> None:
    lease = await locks.acquire(A, ANN)
    (listed,) = locks.leases()
    assert listed.secret == ""
    assert lease.secret not in repr(lease)
    for forged in (listed, attrs.evolve(listed, secret="\udcff" * 32)):
        with pytest.raises(LeaseLost, match="not this holder's"):
            await locks.release(forged)
    await locks.release(lease)


async def test_shared_leases(locks: Locks, autojump_clock: MockClock) -> None:
    async with locks.hold(A, ANN, mode=Mode.SHARED), locks.hold(A, BOB, mode=Mode.SHARED):
        with pytest.raises(LockConflict):
            await locks.try_acquire(A, EVE)
    await locks.try_acquire(A, EVE)


async def test_no_deadlock_when_each_wants_what_the_other_wants(locks: Locks, autojump_clock: MockClock) -> None:
    done: list[str] = []

    async def worker(holder: Holder, targets: list[Target]) -> None:
        for _ in range(50):
            async with locks.hold(targets, holder, ttl_s=5, wait_s=300):
                await trio.sleep(0.01)
        done.append(holder.id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, ANN, [A, B])
        nursery.start_soon(worker, BOB, [B, A])
        nursery.start_soon(worker, EVE, [B])
    assert sorted(done) == ["ann", "bob", "eve"]


# -------------------------------------------------------------------------------------------------------------- holding


async def test_hold_cancels_its_block_when_the_lease_lapses(locks: Locks, autojump_clock: MockClock) -> None:
    begun = trio.current_time()
    with pytest.raises(LeaseLost, match="expired"):
        async with locks.hold(A, ANN, ttl_s=5):
            await trio.sleep_forever()
    assert trio.current_time() == begun + 5


async def test_hold_lives_as_long_as_it_is_renewed(locks: Locks, autojump_clock: MockClock) -> None:
    async with locks.hold(A, ANN, ttl_s=5) as lease:
        for _ in range(4):
            await trio.sleep(4)
            await locks.renew(lease)
    assert locks.leases() == []


async def test_hold_that_never_looks_up_still_learns_that_it_lapsed(locks: Locks, autojump_clock: MockClock) -> None:
    with pytest.raises(LeaseLost, match="expired"):
        async with locks.hold(A, ANN, ttl_s=5):
            autojump_clock.jump(6)  # a block that hogs the thread: no checkpoint, no cancellation


async def test_hold_gives_back_when_its_block_fails(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with locks.hold(A, ANN):
            raise ZeroDivisionError
    with trio.move_on_after(1):
        async with locks.hold(A, BOB):
            await trio.sleep_forever()
    assert locks.leases() == []
    assert bench.trail.told() == [("acquired", "ann"), ("released", "ann"), ("acquired", "bob"), ("released", "bob")]


async def test_revoke_takes_a_lease_away(locks: Locks, bench: Bench, autojump_clock: MockClock) -> None:
    async def revoker() -> None:
        await trio.sleep(1)
        (lease,) = locks.leases()
        assert await locks.revoke(lease.token, "needed elsewhere") == lease
        assert await locks.revoke(lease.token, "again") is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(revoker)
        with pytest.raises(LeaseLost, match="revoked: needed elsewhere"):
            async with locks.hold(A, ANN):
                await trio.sleep_forever()
    assert bench.trail.told() == [("acquired", "ann"), ("revoked", "ann")]
    assert bench.trail.events[1].metadata["reason"] == "needed elsewhere"


async def test_closing_ends_leases_and_waits(bench: Bench, autojump_clock: MockClock) -> None:
    lost: list[type[BaseException]] = []

    async def user(use: Callable[[], AbstractAsyncContextManager[Lease]]) -> None:
        try:
            async with use():
                await trio.sleep_forever()
        except (LeaseLost, LocksClosed) as error:
            lost.append(type(error))

    async with trio.open_nursery() as nursery, bench.open() as locks:
        for holder in (ANN, BOB):
            nursery.start_soon(user, partial(locks.hold, A, holder))
            await wait_all_tasks_blocked()
    assert set(lost) == {LeaseLost, LocksClosed}
    with pytest.raises(LocksClosed):
        await locks.acquire(B, ANN)
    assert sorted(bench.trail.told()[-2:]) == [("denied", "bob"), ("revoked", "ann")]


# ------------------------------------------------------------------------------------------------------------ recording


async def test_a_lock_that_cannot_be_recorded_is_not_given(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    bench.trail.unavailable = {Action.ACQUIRED}
    with pytest.raises(AuditUnavailable):
        await locks.acquire(A, ANN)
    assert locks.leases() == []
    bench.trail.unavailable = set()
    await locks.try_acquire(A, BOB)
    assert bench.trail.told() == [("revoked", "ann"), ("acquired", "bob")]


async def test_several_targets_that_cannot_be_recorded_are_not_given(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    bench.trail.unavailable = {Action.ACQUIRED}
    with pytest.raises(AuditUnavailable):
        await locks.acquire([A, B], ANN)
    assert locks.leases() == []


async def test_while_it_is_being_recorded_a_lock_keeps_others_out(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    recorded = bench.trail.held_up[Action.ACQUIRED] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.acquire, A, ANN)
        await wait_all_tasks_blocked()
        with pytest.raises(LockConflict):
            await locks.try_acquire(A, BOB)
        recorded.set()
    assert len(locks.leases("ann")) == 1


async def test_a_lease_that_lapsed_while_it_was_recorded_is_lost(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    recorded = bench.trail.held_up[Action.ACQUIRED] = trio.Event()

    async def record_late() -> None:
        await trio.sleep(6)
        recorded.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record_late)
        with pytest.raises(LeaseLost, match="expired"):
            await locks.acquire(A, ANN, ttl_s=5)


async def test_cancelled_while_it_is_recorded_a_lock_is_given_back(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    bench.trail.held_up[Action.ACQUIRED] = trio.Event()
    with trio.move_on_after(1):
        await locks.acquire(A, ANN)
    assert locks.leases() == []
    assert bench.trail.told() == [("acquired", "ann"), ("revoked", "ann")]


async def test_a_release_that_cannot_be_recorded_leaves_the_lock_held(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    lease = await locks.acquire(A, ANN, ttl_s=5)
    bench.trail.unavailable = {Action.RELEASED}
    with pytest.raises(AuditUnavailable):
        await locks.release(lease)
    assert locks.leases() == [lease]
    bench.trail.unavailable = set()
    await locks.release(lease)
    assert bench.trail.told() == [("acquired", "ann"), ("denied", "ann"), ("released", "ann")]


async def test_a_release_that_fails_after_the_deadline_lapses(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    lease = await locks.acquire(A, ANN, ttl_s=5)
    answer = bench.trail.held_up[Action.RELEASED] = trio.Event()

    async def answer_late() -> None:
        await trio.sleep(9)
        bench.trail.unavailable = {Action.RELEASED}
        answer.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_late)
        with pytest.raises(AuditUnavailable):
            await locks.release(lease)
    await trio.sleep(0.001)
    assert bench.trail.told()[-1] == ("expired", "ann"), "without anybody looking"
    assert locks.leases() == []


async def test_a_release_is_recorded_to_its_end_when_it_is_cancelled(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    lease = await locks.acquire(A, ANN)
    recorded = bench.trail.held_up[Action.RELEASED] = trio.Event()

    async def record_late() -> None:
        await trio.sleep(3)
        recorded.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record_late)
        with trio.move_on_after(1):
            await locks.release(lease)
    assert locks.leases() == []
    assert bench.trail.told() == [("acquired", "ann"), ("released", "ann")]


async def test_a_renewal_that_cannot_be_recorded_does_not_count(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    lease = await locks.acquire(A, ANN, ttl_s=5)
    await trio.sleep(3)
    bench.trail.unavailable = {Action.RENEWED}
    with pytest.raises(AuditUnavailable):
        await locks.renew(lease)
    assert locks.leases() == [lease]
    await trio.sleep(2.5)
    assert locks.leases() == []


async def test_a_wait_that_cannot_be_recorded_leaves_the_queue(
    locks: Locks, bench: Bench, autojump_clock: MockClock
) -> None:
    await locks.acquire(A, ANN)
    bench.trail.unavailable = {Action.WAITING}
    with pytest.raises(AuditUnavailable):
        await locks.acquire(A, BOB)
    assert locks.waiting() == []


# --------------------------------------------------------------------------------------------------------------- tokens


async def test_i12_tokens_increase_over_starts(bench: Bench, autojump_clock: MockClock) -> None:
    last = 0
    for _ in range(5):
        async with bench.open(token_block=10) as locks:
            assert locks.first_token == bench.reserved.upto - 10 + 1 > last
            for number in range(12):
                lease = await locks.acquire(Target(f"f{number}"), ANN)
                assert last < lease.token <= bench.reserved.upto
                last = lease.token


async def test_the_next_block_is_reserved_before_the_first_ends(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.open(token_block=100) as locks:
        for number in range(60):
            await locks.acquire(Target(f"f{number}"), ANN)
        await wait_all_tasks_blocked()
        assert (bench.reserved.calls, bench.reserved.upto) == (2, 200)
        assert locks.statistics().tokens_left == 140


async def test_without_a_disk_for_tokens_acquire_fails_by_a_deadline(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.open(token_block=2) as locks:
        bench.reserved.failing = StoreFull("no room")
        first = await locks.acquire(A, ANN, ttl_s=100)
        await locks.acquire(B, ANN)
        begun = trio.current_time()
        with pytest.raises(AuditUnavailable, match="no room"):
            await locks.acquire(Target("c"), ANN)
        assert trio.current_time() == begun + 5
        assert locks.statistics().problem is bench.reserved.failing
        await locks.release(first)
        bench.reserved.failing = None
        await locks.acquire(A, BOB)
        assert locks.statistics().problem is None


async def test_who_waits_for_a_lock_and_then_for_a_token_gets_both(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.open(token_block=2) as locks:
        lease = await locks.acquire(A, ANN, ttl_s=300)
        bench.reserved.failing = StoreFull("no room")
        granted: list[Lease] = []

        async def waiter() -> None:
            granted.append(await locks.acquire(A, BOB, wait_s=100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await wait_all_tasks_blocked()
            while locks.statistics().tokens_left:
                await locks.acquire(Target(f"f{locks.statistics().tokens_left}"), EVE, ttl_s=300)
            await locks.release(lease)
            await wait_all_tasks_blocked()
            assert granted == []
            bench.reserved.failing = None
        assert granted[0].holder == BOB


async def test_locks_do_not_open_without_tokens(bench: Bench) -> None:
    bench.reserved.failing = StoreFull("no room")
    with pytest.raises(StoreFull):
        async with bench.open():
            pytest.fail("opened")
