"""Subscriptions: catch-up to live without a gap or a double, whatever happens in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.delta import Delta
from deltalog.errors import BelowFloor, DeltaLogError, LogClosed, LogReadOnly, StoreCorrupt, StoreFull
from deltalog.log import DeltaLog
from deltalog.subscription import Subscription
from tests.deltalog.memory_log import NOON_MS, Rig, remote, seqs, until, values
from tests.faults import Bug

# ------------------------------------------------------------------------------------------------- scripted schedules

STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["bob", "carol"]), st.integers(1, 4)),
    st.tuples(st.sampled_from(["persist", "page", "turns"]), st.integers(1, 4)),
    st.tuples(st.just("truncate"), st.integers(0, 20)),
)


@attrs.frozen
class Reader:
    """How one subscriber reads."""

    since: Mapping[str, int] | None
    durable: bool
    count: int
    """Deltas that it asks for at a time; 0: it loops over single ones."""


READERS = st.builds(
    Reader,
    st.none() | st.dictionaries(st.sampled_from(["alice", "bob", "carol"]), st.integers(0, 9)),
    st.booleans(),
    st.integers(0, 5),
)


class Schedule:
    """Lets commits and page reads go on one at a time, when the script says so."""

    def __init__(self, rig: Rig) -> None:
        self._gates = rig.offload.before
        self._gates |= {"persist": trio.Event(), "page": trio.Event()}

    def step(self, name: str) -> None:
        gate = self._gates[name]
        self._gates[name] = trio.Event()
        gate.set()

    def release(self) -> None:
        for name in ("persist", "page"):
            self._gates.pop(name).set()


class Follower:
    """Reads one subscription and checks all that it gives at the moment it gives it."""

    def __init__(self, rig: Rig, log: DeltaLog, how: Reader) -> None:
        self.rig, self.log, self.how = rig, log, how
        self.subscription = log.subscribe(how.since, durable=how.durable)
        self.start = dict(self.subscription.position)
        self.reached = dict(self.start)
        self.survives: dict[str, int] = {}

    async def run(self) -> None:
        while True:
            if self.how.count:
                for delta in await self.subscription.page(self.how.count):
                    self.take(delta)
                assert self.subscription.position == self.reached
            else:
                async for delta in self.subscription:
                    self.take(delta)
                    assert self.subscription.position == self.reached
                    if delta.seq % 2:
                        break

    def take(self, delta: Delta) -> None:
        assert delta.seq == self.reached.get(delta.source, 0) + 1, f"{delta}: a gap or a double"
        assert all(self.reached.get(source, 0) >= seq for source, seq in delta.deps.items())
        self.reached[delta.source] = delta.seq
        if self.how.durable:
            assert delta.seq <= self.survives.get(delta.source, 0), "test_i3: not fsynced yet"

    def done(self) -> bool:
        return all(self.reached.get(source, 0) >= seq for source, seq in self.log.heads.items())


@given(st.lists(STEPS, max_size=30), st.lists(READERS, min_size=1, max_size=3), st.sampled_from([2, 5, 100]))
@example([("append", 4), ("persist", 1), ("turns", 4), ("bob", 2)], [Reader({"bob": 3}, False, 2)], 100)
@example([("bob", 2), ("persist", 1), ("turns", 4), ("bob", 4), ("bob", 4)], [Reader({"bob": 4}, True, 0)], 2)
def test_i3_every_subscriber_gets_each_delta_once_in_order_and_durable_ones_only_what_is_synced(
    script: list[tuple[str, int]], readers: list[Reader], ring: int
) -> None:
    async def main() -> None:
        rig = Rig()
        async with rig.running(ring_deltas=ring, sync_interval_s=0.005) as log:
            await start(log)
            followers = [Follower(rig, log, how) for how in readers]
            watch(rig, followers)
            schedule = Schedule(rig)
            async with trio.open_nursery() as nursery:
                for follower in followers:
                    nursery.start_soon(follower.run)
                for action, count in script:
                    await act(rig, log, schedule, action, count)
                schedule.release()
                await log.flush()
                await until(lambda: all(follower.done() for follower in followers))
                nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def start(log: DeltaLog) -> None:
    """Some of it in the store alone, some in the ring."""
    await log.append_many(range(3))
    await log.receive([remote("bob", 1, 1), remote("bob", 2, 2)])
    await log.flush()


def watch(rig: Rig, followers: list[Follower]) -> None:
    """Tell the followers what survives a power loss, at each fsync."""

    def synced(method: str) -> None:
        if method == "sync":
            for follower in followers:
                follower.survives = {source: head.seq for source, head in rig.store.survivor().heads().items()}

    rig.store.faults.on_call = synced
    synced("sync")


async def act(rig: Rig, log: DeltaLog, schedule: Schedule, action: str, count: int) -> None:
    if action == "turns":
        for _ in range(count):
            await trio.lowlevel.checkpoint()
    elif action in ("persist", "page"):
        schedule.step(action)
        await trio.sleep(0.002 * count)
    elif action == "truncate":
        await log.truncate(until=dict.fromkeys(log.heads, count))
    else:
        with trio.move_on_after(0.001):  # the ring may be full: nobody else makes room
            for _ in range(count):
                rig.wall.ms += 1
                if action == "append":
                    await log.append("x")
                else:
                    seq = log.heads.get(action, 0) + 1
                    deps = {"alice": log.heads["alice"]} if count == 4 else {}
                    await log.receive([remote(action, seq, rig.wall.ms - NOON_MS + 1, deps)])


# ------------------------------------------------------------------------------------------------------- one by one


async def take(subscription: Subscription, count: int, size: int = 3) -> list[Delta]:
    """Exactly so many deltas."""
    found: list[Delta] = []
    while len(found) < count:
        found += await subscription.page(min(size, count - len(found)))
    return found


async def test_without_a_vector_only_what_is_new_comes() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append_many("abc")
        subscription = log.subscribe()
        assert subscription.position == {"alice": 3}
        await log.append("d")
        assert values(await subscription.page()) == ["d"]


async def test_i3_durable_without_a_vector_starts_at_what_is_synced() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        await log.append_many("abc", durable=True)
        log.append_nowait("d")
        subscription = log.subscribe(durable=True)
        assert subscription.position == {"alice": 3}
        with trio.move_on_after(0.05) as waited:
            await subscription.page()
        assert waited.cancelled_caught
        await log.flush()
        assert values(await subscription.page()) == ["d"]


async def test_a_loop_that_is_left_keeps_its_position_at_what_was_given_out() -> None:
    async with Rig().running(ring_deltas=10) as log:
        await log.append_many(range(30))
        subscription = log.subscribe({})
        async for delta in subscription:
            assert subscription.position == {"alice": delta.seq}
            if delta.seq == 7:
                break
        assert seqs(await subscription.page(2)) == [8, 9]
        async for delta in subscription:
            assert delta.seq == 10
            break
        assert seqs(await take(subscription, 20)) == list(range(11, 31))


async def test_the_position_goes_on_after_a_restart() -> None:
    rig = Rig()
    found: list[int] = []
    position: Mapping[str, int] = {}
    for _ in range(3):
        async with rig.running(ring_deltas=4) as log:
            await log.append_many(range(10))
            subscription = log.subscribe(position)
            found += seqs(await take(subscription, 8))
            position = subscription.position
    assert found == list(range(1, 25))


async def test_a_slow_subscriber_falls_back_to_the_store() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=10) as log:
        await log.append_many(range(5))
        subscription = log.subscribe({})
        assert seqs(await take(subscription, 5)) == [1, 2, 3, 4, 5]
        await log.append_many(range(100))
        reads = rig.store.faults.calls["page"]
        assert seqs(await take(subscription, 100, size=7)) == list(range(6, 106))
        assert rig.store.faults.calls["page"] > reads
        await log.append("x")
        assert seqs(await subscription.page()) == [106]
        reads = rig.store.faults.calls["page"]
        for seq in range(107, 120):
            await log.append("x")
            assert seqs(await subscription.page()) == [seq]
        assert rig.store.faults.calls["page"] == reads, "near again: from the ring"


async def test_one_that_waits_costs_nothing_while_nothing_happens(autojump_clock: MockClock) -> None:
    rig = Rig()
    turns = 0

    class Count(trio.abc.Instrument):
        def before_task_step(self, _task: trio.lowlevel.Task) -> None:
            nonlocal turns
            turns += 1

    async with rig.running(ring_deltas=4) as log, trio.open_nursery() as nursery:
        await log.append_many(range(20), durable=True)
        for durable in (True, False):
            nursery.start_soon(Follower(rig, log, Reader(None, durable, 0)).run)
        await trio.sleep(1)
        counter = Count()
        trio.lowlevel.add_instrument(counter)
        await trio.sleep(40)
        trio.lowlevel.remove_instrument(counter)
        assert turns < 10
        nursery.cancel_scope.cancel()


async def test_i3_a_durable_one_sleeps_while_what_came_is_evicted_but_not_synced(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4, sync_interval_s=3600) as log:
        subscription = log.subscribe(durable=True)
        async with trio.open_nursery() as nursery:
            found: list[Delta] = []

            async def read() -> None:
                found.extend(await take(subscription, 30))

            nursery.start_soon(read)
            for number in range(30):
                await log.append(number)
            await trio.sleep(10)
            assert log.written == {"alice": 30}
            assert found == []
            await log.flush()
        assert values(found) == list(range(30))


# ------------------------------------------------------------------------------------------------------------ the floor


async def test_i13_a_subscription_holds_the_floor_at_its_position() -> None:
    async with Rig().running(ring_deltas=1000) as log:
        await log.append_many(range(20), durable=True)
        subscription = log.subscribe({"alice": 3})
        result = await log.truncate(until={"alice": 10})
        assert (result.dropped, dict(result.held)) == (3, {"alice": 10})
        assert seqs(await take(subscription, 5)) == [4, 5, 6, 7, 8]
        assert (await log.truncate(until={"alice": 10})).floor == {"alice": 8}
        assert seqs(await take(subscription, 12)) == list(range(9, 21))
        assert (await log.truncate(until={"alice": 10})).held == {}
        await log.append("x")
        assert seqs(await subscription.page()) == [21]
        del subscription
        assert (await log.truncate(until={"alice": 21})).floor["alice"] in (20, 21)


async def test_i13_one_that_is_ahead_of_the_log_holds_what_it_has_not_passed_yet() -> None:
    """As after a restart that lost the unsynced end: what comes again is not given again, nothing else is missed."""
    async with Rig().running(ring_deltas=1000) as log:
        subscription = log.subscribe({"bob": 5})
        await log.append("x")
        assert values(await subscription.page()) == ["x"]
        await log.receive([remote("carol", 1, 1), *(remote("bob", seq, seq) for seq in range(1, 6))])
        await log.flush()
        assert (await log.truncate(until={"bob": 5})).held == {"bob": 5}
        assert [delta.dot for delta in await subscription.page()] == [("carol", 1)]
        await log.receive([remote("bob", 6, 6)])
        assert [delta.dot for delta in await subscription.page()] == [("bob", 6)]
        assert (await log.truncate(until={"bob": 5})).floor == {"bob": 5}
        await log.append("y")
        assert values(await subscription.page()) == ["y"]


async def test_a_vector_below_the_floor_is_refused() -> None:
    async with Rig().running() as log:
        await log.append_many(range(20), durable=True)
        await log.truncate(until={"alice": 10})
        with pytest.raises(BelowFloor, match="'alice': has 9, floor 10"):
            log.subscribe({"alice": 9})
        assert seqs(await log.subscribe({"alice": 10}).page()) == list(range(11, 21))


# ------------------------------------------------------------------------------------------------------------- failures


async def waits(log: DeltaLog, durable: bool, outcome: list[object]) -> None:
    try:
        await log.subscribe(durable=durable).page()
    except DeltaLogError as error:
        outcome.append(error)


@pytest.mark.parametrize("durable", [True, False])
async def test_i10_who_waits_hears_that_the_log_was_closed(durable: bool) -> None:
    outcome: list[Any] = []
    async with trio.open_nursery() as nursery, Rig().running() as log:
        nursery.start_soon(waits, log, durable, outcome)
        await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in outcome] == [LogClosed]


@pytest.mark.parametrize("error", [StoreCorrupt, StoreFull])
async def test_i10_who_waits_hears_that_the_log_failed(autojump_clock: MockClock, error: type[Exception]) -> None:
    rig = Rig()
    outcome: list[Any] = []
    async with rig.failing(LogReadOnly, "1 deltas were not stored") as log, trio.open_nursery() as nursery:
        nursery.start_soon(waits, log, True, outcome)
        await trio.testing.wait_all_tasks_blocked()
        rig.store.faults.fail("write", error)
        rig.disk.room = False
        log.append_nowait("x")
        await until(lambda: outcome)
        assert values(await log.subscribe({}).page()) == ["x"], "what is visible is still given out"
    assert [type(each) for each in outcome] == [LogReadOnly]
    assert isinstance(outcome[0].__cause__, error)


async def test_i10_who_waits_hears_of_a_bug(autojump_clock: MockClock) -> None:
    rig = Rig()
    outcome: list[Any] = []
    async with trio.open_nursery() as nursery, rig.failing(Bug) as log:
        nursery.start_soon(waits, log, True, outcome)
        await trio.testing.wait_all_tasks_blocked()
        rig.store.faults.fail("write", Bug)
        log.append_nowait("x")
        await trio.sleep_forever()
    assert len(outcome) == 1
    assert isinstance(outcome[0], LogReadOnly | LogClosed), "whichever it heard first; the bug itself ends the block"
