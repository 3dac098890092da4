"""The writer when the store fails (invariant I10): it surfaces, nothing hangs, nothing is lost or there twice."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog import failpoints
from deltalog.errors import (
    LogClosed,
    LogReadOnly,
    StoreBackpressure,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreIOError,
    StorePoisoned,
    StoreUsageError,
)
from tests.deltalog.memory_log import Rig, collect, seqs, stored, until, values
from tests.faults import Bug

# ------------------------------------------------------------------------------------------------ writes of unknown end


@pytest.mark.parametrize("error", [StoreIOError, StorePoisoned, StoreFull])
@pytest.mark.parametrize("method", ["write", "sync"])
@pytest.mark.parametrize("applied", [True, False])
async def test_an_indeterminate_write_is_resolved_by_looking(
    autojump_clock: MockClock, error: type[StoreError], method: str, applied: bool
) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append_many(range(3), durable=True)
        rig.store.faults.fail(method, error, applied=applied)
        log.append_nowait(3)
        log.append_nowait(4)
        with pytest.raises(LogReadOnly, match="injected"):
            await log.flush()
        await until(lambda: not log.statistics().writer.read_only)
        await log.flush()
        assert log.synced == log.heads == {"alice": 5}
        assert log.statistics().writer.deltas == 5
        assert (log.statistics().writer.failures, rig.store.faults.calls["reopen"]) == (1, 1)
    assert values(stored(rig.store.survivor())["alice"]) == list(range(5)), "nothing lost, nothing twice"


@pytest.mark.parametrize("applied", [True, False])
async def test_an_indeterminate_write_of_several_sources_is_resolved(autojump_clock: MockClock, applied: bool) -> None:
    other = Rig()
    async with other.running("bob") as log:
        theirs = await log.append_many(range(3))
    rig = Rig()
    async with rig.running() as log:
        rig.store.faults.fail("write", StoreIOError, applied=applied)
        log.append_nowait(0)
        await log.receive(theirs)
        log.append_nowait(1)
        await trio.sleep(1)
        await log.append(2, durable=True)
    held = stored(rig.store.survivor())
    assert (values(held["alice"]), values(held["bob"])) == ([0, 1, 2], [0, 1, 2])
    assert held["bob"] == theirs


@pytest.mark.parametrize("interval_s", [0.0, 0.02])
@pytest.mark.parametrize("method", ["write", "sync"])
async def test_i10_a_second_failure_after_reopening_is_final(
    autojump_clock: MockClock, method: str, interval_s: float
) -> None:
    rig = Rig()
    loss = {"write": "1 deltas were not stored: ", "sync": "0 deltas were not stored and 1 not synced: "}[method]
    async with rig.failing(LogReadOnly, loss + method, sync_interval_s=interval_s) as log:
        rig.store.faults.fail(method, StoreIOError, times=10_000)
        log.append_nowait("a")
        await trio.sleep(10)
        assert log.statistics().writer.read_only == f"{method}: injected"
        assert rig.store.faults.calls["reopen"] <= 2
        rig.store.faults.clear()
        await trio.sleep(10)
        with pytest.raises(LogReadOnly, match=f"{method}: injected") as caught:
            await log.append("b")
        assert not caught.value.retryable
        assert values(await collect(log.replay())) == ["a"]


async def test_i10_failures_far_apart_are_each_cured(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        for number in range(10):
            rig.store.faults.fail("write", StoreIOError, applied=number % 2 == 0)
            log.append_nowait(number)
            await trio.sleep(1)
            await log.flush()
        assert log.statistics().writer.failures == 10
    assert values(stored(rig.store.survivor())["alice"]) == list(range(10))


async def test_i10_a_store_that_cannot_be_opened_again_stays_down(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "1 deltas were not stored: reopen: bad file") as log:
        rig.store.faults.fail("write", StoreIOError)
        rig.disk.faults.fail("reopen", StoreCorrupt, message="bad file")
        log.append_nowait("a")
        await trio.sleep(10)
        with pytest.raises(LogReadOnly, match="bad file"):
            await log.flush()
        assert rig.disk.faults.calls["reopen"] == 1


async def test_i10_a_store_that_is_still_being_read_is_opened_again_later(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        rig.store.faults.fail("write", StoreIOError)
        rig.disk.faults.fail("reopen", StoreBusy, times=3)
        log.append_nowait("a")
        await trio.sleep(10)
        await log.append("b", durable=True)
        assert rig.disk.faults.calls["reopen"] == 4


async def test_i10_leaving_does_not_wait_for_who_still_reads_the_store(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "1 deltas were not stored: reopen: injected") as log:
        rig.store.faults.fail("write", StoreIOError)
        rig.disk.faults.fail("reopen", StoreBusy, times=10_000)
        log.append_nowait("a")
        await trio.sleep(10)
        assert 10 <= rig.disk.faults.calls["reopen"] <= 100


@pytest.mark.parametrize("error", [StoreCorrupt, StoreUsageError])
async def test_i10_corruption_and_bugs_of_the_store_are_not_tried_again(
    autojump_clock: MockClock, error: type[StoreError]
) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "2 deltas were not stored") as log:
        rig.store.faults.fail("write", error)
        log.append_nowait("a")
        log.append_nowait("b")
        await trio.sleep(10)
        with pytest.raises(LogReadOnly, match="injected"):
            await log.append("c")
        assert rig.store.faults.calls["reopen"] == 0
        assert rig.store.faults.calls["write"] == 1


async def test_i2_a_store_that_comes_back_shorter_is_not_written_to(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(LogReadOnly, "0 deltas were not stored and 1 not synced", sync_interval_s=3600) as log:
        await log.append_many(range(3), durable=True)
        log.append_nowait(3)
        await until(lambda: log.written == {"alice": 4})
        rig.disk.faults.on_call = lambda _method: rig.store.crash()
        rig.store.faults.fail("sync", StoreIOError)
        with pytest.raises(LogReadOnly, match="sync: injected"):
            await log.flush()
        await trio.sleep(1)
        with pytest.raises(LogReadOnly, match=r"does not hold what was written of \['alice'\]"):
            await log.append(4)
        assert log.synced == {"alice": 3}


# --------------------------------------------------------------------------------------------------------------- bugs


@pytest.mark.parametrize(
    "point", ["writer.drain.before", "writer.drain.after", "writer.commit.before", "writer.publish.after"]
)
async def test_i10_a_bug_in_the_writer_comes_out_as_itself(autojump_clock: MockClock, point: str) -> None:
    def fail() -> None:
        failpoints.disarm()
        raise Bug(point)

    rig = Rig()
    ended = False
    async with rig.failing(Bug, point) as log:
        await log.append("a", durable=True)
        failpoints.arm(point, fail)
        log.append_nowait("b")
        try:
            await trio.sleep_forever()
        finally:
            ended = True
    assert ended, "the body is cancelled"
    with pytest.raises(LogClosed):
        log.append_nowait("c")


async def test_i10_a_bug_that_a_waiter_hears_of_comes_out_as_itself(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(Bug) as log:
        rig.store.faults.fail("write", Bug)
        await log.append("a", durable=True)


async def test_an_error_of_the_body_comes_out_as_itself(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.failing(KeyError, "mine") as log:
        log.append_nowait("a")
        raise KeyError("mine")
    assert values(stored(rig.store.survivor())["alice"]) == ["a"], "and all is stored"


async def test_a_group_that_the_body_made_stays_a_group(autojump_clock: MockClock) -> None:
    async def fail(error: Exception) -> None:
        raise error

    ending = Rig().failing(ExceptionGroup)
    async with ending, trio.open_nursery() as nursery:
        nursery.start_soon(fail, KeyError("mine"))
    assert isinstance(ending.error, ExceptionGroup)
    assert [type(error) for error in ending.error.exceptions] == [KeyError]
    ending = Rig().failing(ExceptionGroup)
    async with ending, trio.open_nursery() as nursery:
        nursery.start_soon(fail, KeyError("mine"))
        nursery.start_soon(fail, ValueError("mine too"))
    assert isinstance(ending.error, ExceptionGroup)
    assert {type(error) for error in ending.error.exceptions} == {KeyError, ValueError}


async def test_i10_an_error_of_the_body_and_a_bug_of_the_writer_come_out_together(autojump_clock: MockClock) -> None:
    rig = Rig()
    ending = rig.failing(ExceptionGroup)
    async with ending as log:
        rig.store.faults.fail("write", Bug)
        log.append_nowait("a")
        raise KeyError("mine")
    assert isinstance(ending.error, ExceptionGroup)
    assert {type(error) for error in ending.error.exceptions} == {KeyError, Bug}
    assert any("1 deltas were not stored" in note for note in ending.error.__notes__)


async def test_an_error_keeps_its_context(autojump_clock: MockClock) -> None:
    def fail() -> None:
        try:
            int("no number")
        except ValueError:
            raise KeyError("second")  # noqa: B904  # its context is what is tested

    ending = Rig().failing(KeyError)
    async with ending:
        fail()
    assert isinstance(ending.error.__context__, ValueError)
    assert not ending.error.__suppress_context__


async def test_i10_an_error_of_the_body_does_not_hide_that_deltas_are_lost(autojump_clock: MockClock) -> None:
    rig = Rig()
    ending = rig.failing(KeyError, "mine")
    async with ending as log:
        rig.store.faults.fail("write", StoreCorrupt)
        log.append_nowait("a")
        await trio.sleep(1)
        raise KeyError("mine")
    assert any("1 deltas were not stored" in note for note in ending.error.__notes__)


async def test_i10_a_cancelled_body_does_not_hide_that_deltas_are_lost(autojump_clock: MockClock) -> None:
    rig = Rig()

    async def use_it() -> None:
        with trio.move_on_after(1):
            async with rig.running() as log:
                rig.store.faults.fail("write", StoreCorrupt)
                log.append_nowait("a")
                await trio.sleep_forever()

    with pytest.raises(LogReadOnly, match="1 deltas were not stored"):
        await use_it()


async def test_a_cancelled_log_still_stores_everything(autojump_clock: MockClock) -> None:
    rig = Rig()
    with trio.move_on_after(1) as scope:
        async with rig.running() as log:
            rig.offload.sleeps_s["persist"] = 5
            for number in range(100):
                log.append_nowait(number)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert values(stored(rig.store.survivor())["alice"]) == list(range(100))


# ------------------------------------------------------------------------------------------------------- many failures


@attrs.frozen
class Mishap:
    """One failure of the plan."""

    method: str
    error: type[StoreError]
    at: int
    applied: bool


mishaps = st.builds(
    Mishap,
    st.sampled_from(["write", "sync"]),
    st.sampled_from([StoreIOError, StoreFull, StoreBackpressure]),
    st.integers(1, 12),
    st.booleans(),
)


@given(st.lists(mishaps, max_size=6), st.lists(st.integers(1, 5), min_size=1, max_size=15))
def test_whatever_fails_what_is_stored_is_a_prefix_without_a_double_and_holds_what_was_acknowledged(
    plan: list[Mishap], bursts: list[int]
) -> None:
    async def main() -> None:
        rig = Rig()
        acknowledged = 0
        for mishap in plan:
            if mishap.error is StoreBackpressure:
                rig.store.faults.fail("write", StoreBackpressure, at=mishap.at)
            else:
                rig.store.faults.fail(mishap.method, mishap.error, at=mishap.at, applied=mishap.applied)
        handed_out = []
        log = rig.log(sync_interval_s=0.01)
        with suppress(LogReadOnly):
            async with log.running():
                for burst in bursts:
                    try:
                        handed_out += await log.append_many(range(burst))
                        await trio.sleep(0.004)
                        seq = log.heads["alice"]
                        await log.flush()
                        acknowledged = seq
                    except LogReadOnly:
                        await trio.sleep(0.3)
        survivors = stored(rig.store.survivor()).get("alice", [])
        assert seqs(survivors) == list(range(1, len(survivors) + 1))
        assert len(survivors) >= acknowledged
        in_order = {delta.seq: delta for delta in handed_out}
        assert all(in_order.get(delta.seq, delta) == delta for delta in survivors)
        assert len(survivors) == log.heads.get("alice", 0) or not log.drained

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_the_fault_store_does_what_it_is_told() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        await log.append_many(range(3), durable=True)
        for number in (3, 4):
            log.append_nowait(number)
            await until(lambda: log.written == log.heads)
        store = rig.store
        assert [len(stored(store.survivor(spared))["alice"]) for spared in range(store.unsynced + 1)] == [3, 4, 5]
    store.faults.fail("sync", StoreIOError, at=2)
    store.sync()
    with pytest.raises(StoreIOError, match="injected"):
        store.sync()
    with pytest.raises(StoreIOError, match="not tried"):
        store.compact()
    assert store.heads()["alice"].seq == 5
    store.reopen()
    store.compact()
    store.truncate({"alice": 2})
    store.crash()
    assert store.heads()["alice"].floor == 0
