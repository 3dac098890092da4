"""The recorder: policies, exact accounting (I11), batches, failures that heal and that do not, and how it ends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import AuditClosed, AuditUnavailable
from audit.event import Action, AuditEvent, Recorded
from audit.keys import Head
from audit.recorder import Overflow, Recorder, RecorderOptions, RecorderStatistics
from audit.store import AuditStore
from audit.verify import verify
from deltalog.clock import Clock
from deltalog.errors import StoreBackpressure, StoreError, StoreFull, StoreIOError, UsageError
from tests.audit.trails import event, opened
from tests.deltalog.rocks_stores import directory_in_memory

ALL_REQUIRED = RecorderOptions(policy=Overflow.REQUIRE)


class Faulty(AuditStore):
    """Writes and re-opens fail while told so."""

    fails: StoreError | None = None
    applies = False
    """Whether a write that fails is applied all the same."""
    reopens = 0

    def write(self, batch_of: Sequence[AuditEvent], *, sync: bool = False) -> Head:
        before = self.head
        if self.fails is not None and not self.applies:
            raise self.fails
        after = super().write(batch_of, sync=sync)
        if self.fails is not None:
            self._head = before
            error, self.fails = self.fails, None
            raise error
        return after

    def reopen(self) -> None:
        self.reopens += 1
        super().reopen()


class Threads:
    """Stands for worker threads: calls run at once, or once the gate is opened."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()

    def shut(self) -> None:
        if self.gate.is_set():  # else somebody waits there
            self.gate = trio.Event()

    async def offload(self, call: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        await self.gate.wait()
        return call(*arguments)


@attrs.define
class Recording:
    store: Faulty
    recorder: Recorder
    threads: Threads
    room: list[bool]


@asynccontextmanager
async def recording(path: Path, options: RecorderOptions | None = None) -> AsyncIterator[Recording]:
    store = opened(path / "s", Faulty)
    assert isinstance(store, Faulty)
    threads, room = Threads(), [True]
    clock = Clock(last=store.head.timestamp, wall_ns=lambda: 10**18)
    recorder = Recorder(store, clock, lambda: room[0], options, threads.offload)
    try:
        async with recorder.running():
            try:
                yield Recording(store, recorder, threads, room)
            finally:
                threads.gate.set()
    finally:
        if recorder.problem is None:
            assert verify(store).ok
        store.close()


def balanced(statistics: RecorderStatistics) -> bool:
    return statistics.recorded + statistics.dropped_total + statistics.pending == statistics.submitted


def kinds(path: Path) -> list[Action]:
    store = opened(path / "s")
    found = [each.event.action for each in store.get_many(range(1, store.head.number + 1))]
    store.close()
    return found


def later(number: int = 1, action: Action = Action.ACQUIRED, **fields: Any) -> AuditEvent:
    """An event that is newer than the trail's clock."""
    return event((10**12 << 16) + number, action, **fields)


async def test_closing_drains_and_says_so(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with recording(tmp_path) as it:
        for number in range(1_234):
            it.recorder.log(later(number))
    assert it.recorder.statistics() == RecorderStatistics(1_234, 1_234, {}, 0, 0, it.recorder.statistics().batches,
                                                          it.recorder.statistics().fsyncs, "")  # fmt: skip
    assert kinds(tmp_path) == [Action.STARTED, *[Action.ACQUIRED] * 1_234, Action.STOPPED]
    with pytest.raises(AuditClosed):
        it.recorder.log(later())
    with pytest.raises(AuditClosed):
        await it.recorder.submit(later())
    with pytest.raises(AuditClosed):
        await it.recorder.wait_recorded(10**9)


async def test_an_event_waits_no_longer_than_the_interval(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path, RecorderOptions(interval_s=0.5, batch_events_min=100)) as it:
        await trio.sleep(10)
        start = trio.current_time()
        it.recorder.log(later())
        await it.recorder.wait_recorded(1)
        assert trio.current_time() - start == pytest.approx(0.5)
        fsyncs = it.recorder.statistics().fsyncs
        await trio.sleep(0.6)
        assert it.recorder.statistics().fsyncs == fsyncs + 1
        for number in range(100):
            it.recorder.log(later(number))
        start = trio.current_time()
        await it.recorder.wait_recorded(101)
        assert trio.current_time() == start, "a full batch does not wait"


async def test_flush_returns_when_all_before_it_is_synced(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path) as it:
        it.recorder.log(later())
        start = trio.current_time()
        await it.recorder.flush()
        assert trio.current_time() == start
        assert it.store.head.number == 2
        await it.recorder.flush()


async def test_i11_drop_counts_and_leaves_a_gap_event(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with recording(tmp_path, RecorderOptions(buffer_events=10, policy=Overflow.DROP)) as it:
        await it.recorder.flush()
        it.threads.shut()
        for number in range(10):
            it.recorder.log(later(number))
        await it.recorder.submit(later(10, Action.CONFLICT))
        it.recorder.log(later(11, Action.WAITING))
        statistics = it.recorder.statistics()
        assert balanced(statistics)
        assert statistics.dropped == {Action.CONFLICT: 1, Action.WAITING: 1}
        it.threads.gate.set()
        await it.recorder.flush()
        assert it.recorder.statistics().recorded == 10
    assert kinds(tmp_path)[1:] == [*[Action.ACQUIRED] * 10, Action.GAP, Action.STOPPED]


async def test_i11_wait_waits_for_room_and_then_drops(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with recording(tmp_path, RecorderOptions(buffer_events=1, wait_s=3.0)) as it:
        await it.recorder.flush()
        it.threads.shut()
        it.recorder.log(later())
        await trio.sleep(0.6)
        it.recorder.log(later())  # the one before it is being written
        start = trio.current_time()
        await it.recorder.submit(later(3))
        assert trio.current_time() - start == pytest.approx(3.0)
        assert it.recorder.statistics().dropped == {Action.ACQUIRED: 1}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.recorder.submit, later(4))
            await trio.sleep(0.1)
            assert it.recorder.statistics().waiting == 1
            it.threads.gate.set()
        await it.recorder.flush()
        statistics = it.recorder.statistics()
        assert (statistics.recorded, statistics.dropped_total, statistics.waiting) == (3, 1, 0)
        assert balanced(statistics)


async def test_i11_a_cancelled_wait_is_counted_as_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path, RecorderOptions(buffer_events=1, wait_s=100)) as it:
        await it.recorder.flush()
        it.threads.shut()
        it.recorder.log(later())
        with trio.move_on_after(1) as scope:
            await it.recorder.submit(later(2))
        assert scope.cancelled_caught
        assert it.recorder.statistics().dropped == {Action.ACQUIRED: 1}
        it.threads.gate.set()


async def test_require_returns_when_the_event_is_durable(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path, ALL_REQUIRED) as it:
        start = trio.current_time()
        await it.recorder.submit(later())
        assert trio.current_time() == start, "it does not wait for the interval"
        assert it.store.head.number == 2
        assert it.recorder.synced == 2


async def test_require_fails_by_its_deadline_and_the_event_is_not_recorded(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path, ALL_REQUIRED) as it:
        it.store.fails = StoreFull("disk full")
        it.room[0] = False
        it.recorder.log(later(1, Action.RELEASED))
        await trio.sleep(1)  # the first event is being written, in vain
        start = trio.current_time()
        with pytest.raises(AuditUnavailable, match="disk full") as raised:
            await it.recorder.submit(later(2))
        assert trio.current_time() - start == pytest.approx(2.0)
        assert isinstance(raised.value.__cause__, StoreFull)
        assert balanced(it.recorder.statistics())
        it.store.fails, it.room[0] = None, True
    assert kinds(tmp_path)[1:] == [Action.RELEASED, Action.GAP, Action.STOPPED]


async def test_a_required_event_that_was_being_written_is_followed_by_its_undoing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path, ALL_REQUIRED) as it:
        await it.recorder.flush()
        it.threads.shut()
        with pytest.raises(AuditUnavailable):
            await it.recorder.submit(later(2, token=7))
        it.threads.gate.set()
        await it.recorder.flush()
        undone = it.store.get_many([2, 3])
        assert [each.event.action for each in undone] == [Action.ACQUIRED, Action.DENIED]
        assert undone[1].event.metadata["undone"] == "acquired"
        assert undone[1].event.token == 7
        assert balanced(it.recorder.statistics())


async def test_require_with_a_full_buffer_fails_by_its_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    options = RecorderOptions(buffer_events=1, policies={Action.ACQUIRED: Overflow.REQUIRE})
    async with recording(tmp_path, options) as it:
        await it.recorder.flush()
        it.threads.shut()
        it.recorder.log(later(1, Action.RELEASED))
        await trio.sleep(0.6)  # that one is being written now
        it.recorder.log(later(1, Action.RELEASED))
        with pytest.raises(AuditUnavailable):
            await it.recorder.submit(later(2))
        assert it.recorder.statistics().dropped == {Action.ACQUIRED: 1}
        it.threads.gate.set()


@pytest.mark.parametrize("applies", [False, True])
async def test_a_full_disk_heals_and_nothing_is_lost_or_doubled(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, applies: bool
) -> None:
    async with recording(tmp_path) as it:
        await it.recorder.flush()
        it.store.fails, it.store.applies, it.room[0] = StoreFull("disk full"), applies, False
        for number in range(150):
            it.recorder.log(later(number))
        await trio.sleep(5)
        assert it.recorder.statistics().problem == "disk full"
        assert it.recorder.statistics().pending == 150
        it.store.fails, it.room[0] = None, True
        await it.recorder.flush()
        assert it.recorder.statistics().problem == ""
        assert it.recorder.statistics().recorded == 150
        assert it.store.reopens == 1
    assert kinds(tmp_path)[1:] == [*[Action.ACQUIRED] * 150, Action.STOPPED]


async def test_i10_a_disk_that_stays_full_ends_the_trail_with_an_error(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(AuditUnavailable, match="before 3 events"):  # noqa: PT012
        async with recording(tmp_path) as it:
            await it.recorder.flush()
            it.store.fails, it.room[0] = StoreFull("disk full"), False
            for number in range(3):
                it.recorder.log(later(number))
    statistics = it.recorder.statistics()
    assert (statistics.pending, statistics.dropped_total) == (0, 3)
    assert balanced(statistics)


async def test_an_io_error_is_cured_once_and_then_the_trail_stays_down(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(AuditUnavailable, match="before 1 events"):  # noqa: PT012
        async with recording(tmp_path) as it:
            await it.recorder.flush()
            it.store.fails = StoreIOError("bad sector")
            it.recorder.log(later())
            await trio.sleep(5)
            assert it.store.reopens == 1
            assert "bad sector" in it.recorder.statistics().problem
            with pytest.raises(AuditUnavailable):
                with trio.fail_after(60):
                    await Recorder._submit_required(it.recorder, later(2))


async def test_backpressure_is_waited_out(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with recording(tmp_path) as it:
        it.store.fails = StoreBackpressure("stall")
        it.recorder.log(later())
        await trio.sleep(3)
        assert it.recorder.statistics().problem == ""
        it.store.fails = None
    assert kinds(tmp_path).count(Action.ACQUIRED) == 1


async def test_the_next_start_says_that_the_last_stop_was_not_clean(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with recording(tmp_path) as it:
        pass
    store = opened(tmp_path / "s")
    run = store.run()
    assert run is not None
    assert run.clean
    store.set_run(attrs.evolve(run, clean=False))
    store.close()
    async with recording(tmp_path) as it:
        await it.recorder.flush()
        started = [each.event for each in it.store.get_many([1, 3])]
    assert [each.metadata["unclean"] for each in started] == ["false", "true"]
    assert started[0].metadata["created"] == "true"
    assert started[1].metadata["last_number"] == "2"


async def test_a_start_says_how_much_the_run_before_could_lose(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    started: list[AuditEvent] = []
    for interval_s in (60, 0.5, 0.25):
        async with recording(tmp_path, RecorderOptions(interval_s=interval_s)) as it:
            run = it.store.run()
            await it.recorder.flush()
        assert run is not None
        it.store.reopen()
        it.store.set_run(attrs.evolve(run, clean=False))  # as a kill leaves it
        started = [each.event for each in find_started(it.store)]
        it.store.close()
    assert [each.metadata.get("window_s") for each in started] == [None, "60", "60"]


def find_started(store: AuditStore) -> list[Recorded]:
    found = store.get_many(range(1, store.head.number + 1))
    return [each for each in found if each.event.action is Action.STARTED]


async def test_the_trails_own_actions_are_not_taken(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with recording(tmp_path) as it:
        for action in (Action.GAP, Action.STARTED, Action.STOPPED):
            with pytest.raises(UsageError, match="by the trail itself"):
                it.recorder.log(AuditEvent(1, action))
            with pytest.raises(UsageError, match="by the trail itself"):
                await it.recorder.submit(AuditEvent(1, action))


@pytest.mark.parametrize("fields", [{"interval_s": -1}, {"interval_s": math.inf}, {"interval_s": "1"},
    {"buffer_events": 0}, {"batch_events_max": 1001}, {"policy": "drop"}, {"policies": {Action.GAP: "x"}}])  # fmt: skip
def test_options_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="recorder"):
        RecorderOptions(**fields)


STEPS = st.sampled_from(["log", "submit", "shut", "open", "full", "room", "sleep"])
SCRIPT = st.lists(st.tuples(STEPS, st.sampled_from([Action.ACQUIRED, Action.RELEASED, Action.CONFLICT])), max_size=25)
POLICIES = {Action.ACQUIRED: Overflow.REQUIRE, Action.RELEASED: Overflow.WAIT, Action.CONFLICT: Overflow.DROP}


@settings(max_examples=40)
@given(script=SCRIPT, capacity=st.integers(1, 4))
def test_i11_whatever_happens_every_event_is_recorded_or_counted(
    script: list[tuple[str, Action]], capacity: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def main(path: Path) -> None:
        submitted = 0
        options = RecorderOptions(buffer_events=capacity, policies=POLICIES, wait_s=0.2, require_s=0.4)
        async with recording(path, options) as it, trio.open_nursery() as nursery:

            async def submit(made: AuditEvent) -> None:
                try:
                    await it.recorder.submit(made)
                except AuditUnavailable:
                    assert made.action is Action.ACQUIRED

            for number, (step, action) in enumerate(script):
                if step == "log":
                    it.recorder.log(later(number, action))
                elif step == "submit":
                    nursery.start_soon(submit, later(number, action))
                elif step == "shut":
                    it.threads.shut()
                elif step == "open":
                    it.threads.gate.set()
                elif step == "sleep":
                    await trio.sleep(0.3)
                else:
                    it.store.fails = StoreFull("full") if step == "full" else None
                    it.room[0] = step == "room"
                submitted += step in ("log", "submit")
                assert balanced(it.recorder.statistics())
            await trio.sleep(2)
            it.store.fails, it.room[0] = None, True
            it.threads.gate.set()
        statistics = it.recorder.statistics()
        assert balanced(statistics)
        assert statistics.pending == 0
        found = kinds(path)
        undone = found.count(Action.DENIED)
        assert statistics.submitted == submitted + undone
        assert statistics.recorded == sum(each in (*POLICIES, Action.DENIED) for each in found)

    clock = trio.testing.MockClock(autojump_threshold=0)
    with directory_in_memory(tmp_path_factory.mktemp("i11")) as path:
        trio.run(main, path, clock=clock)
