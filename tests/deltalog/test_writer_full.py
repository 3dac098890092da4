"""The writer when the disk is full (invariant I10): read-only with the reason, and whole again when there is room."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from deltalog.errors import (
    LogReadOnly,
    StoreFull,
)
from deltalog.log import DeltaLog
from tests.deltalog.memory_log import Rig, collect, stored, values


def outcomes(log: DeltaLog) -> dict[str, Callable[[], object]]:
    """Every call that needs the store to take writes."""
    return {
        "append": lambda: log.append("x"),
        "durable": lambda: log.append("x", durable=True),
        "many": lambda: log.append_many(["x"]),
        "flush": log.flush,
        "receive": lambda: log.receive([]),
        "truncate": lambda: log.truncate(until={}),
    }


async def test_i10_a_full_disk_makes_the_log_read_only_until_there_is_room(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=100) as log:
        await log.append_many(range(50), durable=True)
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull, message="no space")
        log.append_nowait(50)
        with pytest.raises(LogReadOnly, match="no space") as caught:
            await log.flush()
        assert caught.value.retryable
        assert isinstance(caught.value.__cause__, StoreFull)
        for name, call in outcomes(log).items():
            with pytest.raises(LogReadOnly, match="no space"):
                await call()  # type: ignore[misc]
            assert log.heads == {"alice": 51}, name
        with pytest.raises(LogReadOnly):
            log.append_nowait("x")
        assert log.statistics().writer.read_only == "write: no space"
        assert log.statistics().ring.pending == 1, "the ring keeps what is not stored"
        assert values(await collect(log.replay())) == list(range(51)), "reads go on"
        assert log.written == log.synced == {"alice": 50}
        await trio.sleep(5)
        assert log.statistics().writer.read_only
        rig.disk.room = True
        await trio.sleep(1)
        assert log.statistics().writer.read_only == "", "it resumes by itself"
        await log.append(51, durable=True)
        assert log.statistics().writer.failures == 1
    assert values(stored(rig.store.survivor())["alice"]) == list(range(52))


async def test_i10_a_full_disk_wakes_everybody_who_waits(autojump_clock: MockClock) -> None:
    rig = Rig()
    reasons: list[str] = []

    async def waiter(call: Callable[[], object]) -> None:
        with pytest.raises(LogReadOnly) as caught:
            await call()  # type: ignore[misc]
        reasons.append(caught.value.reason)

    async with rig.running(ring_deltas=10, sync_interval_s=3600) as log:
        await log.flush()
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        rig.offload.sleeps_s["persist"] = 1
        for number in range(10):
            log.append_nowait(number)
        async with trio.open_nursery() as nursery:
            for name, call in outcomes(log).items():
                if name in ("append", "durable", "many", "flush"):
                    nursery.start_soon(waiter, call)
        assert reasons == ["write: injected"] * 4
        rig.disk.room = True
        await trio.sleep(2)
        await log.flush()
    assert values(stored(rig.store)["alice"]) == list(range(10))


async def test_i10_leaving_while_the_disk_is_full_says_how_many_deltas_are_lost(autojump_clock: MockClock) -> None:
    rig = Rig()
    ending = rig.failing(LogReadOnly, "7 deltas were not stored: write: no space")
    async with ending as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull, message="no space")
        for number in range(7):
            log.append_nowait(number)
        await trio.sleep(1)
    assert isinstance(ending.error, LogReadOnly)
    assert not ending.error.retryable
    assert isinstance(ending.error.__cause__, LogReadOnly)
    assert isinstance(ending.error.__cause__.__cause__, StoreFull)


async def test_i10_leaving_stores_the_rest_if_there_is_room_again(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        log.append_nowait("a")
        await trio.sleep(0.1)
        rig.disk.room = True
    assert values(stored(rig.store.survivor())["alice"]) == ["a"]


async def test_i10_a_disk_that_is_full_though_it_says_it_has_room_is_not_opened_without_pause(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "1 deltas were not stored") as log:
        rig.store.faults.fail("write", StoreFull, times=10_000)
        log.append_nowait("a")
        await trio.sleep(10)
        assert 2 <= rig.store.faults.calls["reopen"] <= 100
        began = trio.current_time()
    assert trio.current_time() - began < 2, "nor does it hold up leaving"


async def test_i10_a_full_disk_that_cannot_be_opened_is_not_opened_without_pause(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "1 deltas were not stored") as log:
        rig.store.faults.fail("write", StoreFull)
        rig.disk.faults.fail("reopen", StoreFull, times=10_000)
        log.append_nowait("a")
        await trio.sleep(10)
        assert 2 <= rig.disk.faults.calls["reopen"] <= 100
        began = trio.current_time()
    assert trio.current_time() - began < 2
