"""The manager's instances, and the maintenance that runs at its intervals: what is done when, and what if it fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from deltalog.errors import LogReadOnly, StoreFull, UsageError
from deltalog.log import LogOptions
from deltalog.manager import DiskUsage, Manager, Problem, Upkeep, open_manager
from deltalog.retention import Retention
from deltalog.rocks_values import Health
from deltalog.store import StoreSizes
from tests.deltalog.memory_log import seqs
from tests.faults import Bug, Inline

NONE = Upkeep(flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)


@asynccontextmanager
async def opened(path: Path, upkeep: Upkeep = NONE, **options: Any) -> AsyncIterator[Manager]:
    """An open manager whose threads are none, so that a mock clock may jump."""
    with trio.fail_after(10_000):
        async with open_manager(path, upkeep=upkeep, offload=Inline(), reserve_bytes=0, **options) as manager:
            yield manager


# ------------------------------------------------------------------------------------------------------------- members


class FakeMember:
    """An instance that notes when it was looked after, and fails as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.error: dict[str, Exception] = {}
        self.takes_s = 0.0

    def times(self, what: str) -> list[float]:
        return [round(time, 6) for called, time in self.calls if called == what]

    async def _called(self, what: str) -> None:
        self.calls.append((what, trio.current_time()))
        await trio.sleep(self.takes_s)
        if what in self.error:
            raise self.error[what]

    async def flush(self) -> None:
        await self._called("flush")

    async def collect(self) -> int:
        await self._called("collect")
        return 7

    async def compact(self, *, if_needed: bool = False) -> None:
        await self._called("compact if needed" if if_needed else "compact")

    async def sizes(self) -> StoreSizes:
        return StoreSizes(1, 2, 3, 4, 5)

    def health(self) -> Health:
        return Health(
            background_errors=0, write_stopped=False, lock_ours=True, closed=False, in_flight=0, last_error=None
        )


async def test_members_join_and_leave(tmp_path: Path) -> None:
    fake = FakeMember()
    async with opened(tmp_path / "d") as manager:
        assert list(manager.names) == ["delta"]
        manager.join("audit", fake)
        assert list(manager.names) == ["delta", "audit"]
        for name in ("audit", "delta"):
            with pytest.raises(UsageError, match=f"there is an instance '{name}' already"):
                manager.join(name, fake)
        await manager.log.append_many(range(100), durable=True)
        await manager.flush()
        await manager.compact()
        assert await manager.collect() == 7
        assert [what for what, _ in fake.calls] == ["flush", "compact", "collect"]
        await manager.flush("delta")
        await manager.compact("delta")
        assert await manager.collect("delta") == 0
        assert len(fake.calls) == 3
        sizes = await manager.sizes()
        assert sizes["audit"] == StoreSizes(1, 2, 3, 4, 5)
        assert (sizes["delta"].sources, sizes["delta"].deltas) == (1, 100)
        assert sizes["delta"].record_bytes > 3000
        assert sizes["delta"].disk_bytes > 0
        assert list(await manager.sizes("audit")) == ["audit"]
        assert list(manager.health().instances) == ["delta", "audit"]
        calls: list[Callable[..., Any]] = [manager.flush, manager.collect, manager.compact, manager.sizes]
        for call in calls:
            with pytest.raises(UsageError, match=r"there is no instance 'nothing'; there are \['audit', 'delta'\]"):
                await call("nothing")
        manager.leave("audit")
        assert list(manager.names) == ["delta"]
        await manager.flush()
        assert len(fake.calls) == 3


async def test_an_instance_that_leaves_while_all_are_looked_after_is_left_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    first, second = FakeMember(), FakeMember()
    first.takes_s = 1
    async with opened(tmp_path / "d") as manager, trio.open_nursery() as nursery:
        manager.join("first", first)
        manager.join("second", second)
        nursery.start_soon(manager.flush)
        await trio.sleep(0.5)
        manager.leave("second")
        await trio.sleep(1)
        assert (len(first.calls), len(second.calls)) == (1, 0)


# -------------------------------------------------------------------------------------------------------------- upkeep


async def test_upkeep_runs_at_its_intervals(autojump_clock: MockClock, tmp_path: Path) -> None:
    fake = FakeMember()
    upkeep = Upkeep(flush_interval_s=10, collect_interval_s=25, compact_interval_s=None, disk_interval_s=None)
    async with opened(tmp_path / "d", upkeep) as manager:
        manager.join("fake", fake)
        await trio.sleep(101)
        assert fake.times("flush") == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
        assert fake.times("collect") == [25, 50, 75, 100]
        assert fake.times("compact if needed") == []
    count = len(fake.calls)
    await trio.sleep(1000)
    assert len(fake.calls) == count, "it ends with the manager"


async def test_upkeep_that_fails_is_reported_and_tried_again_and_holds_up_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    bad, good = FakeMember(), FakeMember()
    bad.error["compact if needed"] = StoreFull("no space")
    problems: list[Problem] = []
    upkeep = Upkeep(flush_interval_s=10, collect_interval_s=None, compact_interval_s=10, disk_interval_s=None)
    async with opened(tmp_path / "d", upkeep, on_problem=problems.append) as manager:
        manager.join("bad", bad)
        manager.join("good", good)
        await trio.sleep(35)
        assert len(problems) == 3
        assert attributes(problems[0]) == ("compact", "bad", "no space", bad.error["compact if needed"])
        for member in (bad, good):
            assert member.times("compact if needed") == member.times("flush") == [10, 20, 30]
        assert [attributes(problem)[:2] for problem in manager.health().problems] == [("compact", "bad")]
        assert not manager.health().ok
        bad.error.clear()
        await trio.sleep(10)
        assert manager.health().problems == ()
        assert manager.health().ok
        bad.error["flush"] = StoreFull("again")
        await trio.sleep(10)
        assert [problem.what for problem in manager.health().problems] == ["flush"]
        manager.leave("bad")
        assert manager.health().ok, "of an instance that left nobody complains"
        assert (await manager.log.append("x", durable=True)).seq == 1


def attributes(problem: Problem) -> tuple[str, str, str, object]:
    return problem.what, problem.member, problem.message, problem.error


async def test_of_an_instance_that_leaves_while_it_fails_nobody_complains(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    fake = FakeMember()
    fake.takes_s, fake.error["flush"] = 5, StoreFull("no space")
    problems: list[Problem] = []
    upkeep = Upkeep(flush_interval_s=10, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)
    async with opened(tmp_path / "d", upkeep, on_problem=problems.append) as manager:
        manager.join("fake", fake)
        await trio.sleep(12)
        manager.leave("fake")
        await trio.sleep(10)
        assert fake.times("flush") == [10]
        assert problems == []
        assert manager.health().ok


async def test_slow_upkeep_of_one_kind_does_not_hold_up_another(autojump_clock: MockClock, tmp_path: Path) -> None:
    fake = FakeMember()
    upkeep = Upkeep(flush_interval_s=10, collect_interval_s=None, compact_interval_s=10, disk_interval_s=None)
    async with opened(tmp_path / "d", upkeep) as manager:
        fake.takes_s = 15
        manager.join("fake", fake)
        await trio.sleep(65)
        assert fake.times("flush") == fake.times("compact if needed") == [10, 35, 60]
        await manager.log.append("x", durable=True)


async def test_a_bug_in_upkeep_ends_the_block_as_itself(autojump_clock: MockClock, tmp_path: Path) -> None:
    fake = FakeMember()
    fake.error["flush"] = Bug("in a member")

    async def use_it() -> None:
        async with opened(tmp_path / "d", Upkeep(flush_interval_s=10)) as manager:
            manager.join("fake", fake)
            manager.log.append_nowait("x")
            await trio.sleep_forever()

    with pytest.raises(Bug, match="in a member"):
        await use_it()
    async with opened(tmp_path / "d") as manager:
        assert manager.startup.kind == "clean"
        assert manager.startup.deltas == 1


async def test_upkeep_applies_the_retention(autojump_clock: MockClock, tmp_path: Path) -> None:
    upkeep = Upkeep(collect_interval_s=10, retention=Retention(max_deltas=100))
    async with opened(tmp_path / "d", upkeep, source="alice", options=LogOptions(ring_deltas=50)) as manager:
        log = manager.log
        await log.append_many(range(500), durable=True)
        await trio.sleep(9)
        assert log.floor == {}
        await trio.sleep(2)
        assert log.floor == {"alice": 400}
        await log.append_many(range(10), durable=True)
        assert await manager.collect() == 10
        assert seqs([delta async for delta in log.replay()]) == list(range(411, 511))
        await manager.flush()
        await manager.compact()


async def test_upkeep_of_a_real_log_empties_the_wal(autojump_clock: MockClock, tmp_path: Path) -> None:
    def wal_bytes() -> int:
        return sum(file.stat().st_size for file in (tmp_path / "d" / "rocks" / "delta").glob("*.log"))

    async with opened(tmp_path / "d", Upkeep(flush_interval_s=10)) as manager:
        await manager.log.append_many([b"x" * 1000] * 200, durable=True)
        assert wal_bytes() > 100_000
        await trio.sleep(11)
        assert wal_bytes() < 10_000
        assert manager.health().ok


# ---------------------------------------------------------------------------------------------------------------- disk


async def test_a_disk_that_fills_up_is_reported_once_each_time(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = DiskUsage(total_bytes=1000_000_000, free_bytes=500_000_000, data_bytes=1)
    failure: list[OSError] = []

    async def disk(_: Manager) -> DiskUsage:
        if failure:
            raise failure[0]
        return usage

    monkeypatch.setattr(Manager, "disk", disk)
    problems: list[Problem] = []
    upkeep = Upkeep(disk_interval_s=10, disk_alert_share=0.9)
    async with opened(tmp_path / "d", upkeep, on_problem=problems.append) as manager:
        await trio.sleep(35)
        assert problems == []
        for times in (1, 2):
            usage = DiskUsage(total_bytes=1000_000_000, free_bytes=99_000_000, data_bytes=1)
            await trio.sleep(50)
            assert len(problems) == times
            assert problems[-1].message == f"{tmp_path / 'd'}: disk 90% full, 99 MB free"
            assert (problems[-1].what, problems[-1].member, problems[-1].error) == ("disk", "", None)
            assert manager.health().problems == (problems[-1],)
            assert not manager.health().ok
            usage = DiskUsage(total_bytes=1000_000_000, free_bytes=100_000_000, data_bytes=1)
            await trio.sleep(50)
            assert manager.health().ok
        failure.append(OSError(5, "Input/output error"))
        await trio.sleep(11)
        assert "Input/output error" in problems[-1].message
        failure.clear()
        await trio.sleep(11)
        assert manager.health().ok


async def test_disk_usage_is_what_the_system_says(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as manager:
        before = await manager.disk()
        (tmp_path / "d" / "backups").mkdir()
        (tmp_path / "d" / "backups" / "file").write_bytes(b"x" * 1_000_000)
        after = await manager.disk()
        assert 1_000_000 <= after.data_bytes - before.data_bytes <= 1_100_000
        fs = os.statvfs(tmp_path)
        assert after.total_bytes == fs.f_blocks * fs.f_frsize
        assert 0 < after.used_share < 1
        assert DiskUsage(0, 0, 0).used_share == 1


# -------------------------------------------------------------------------------------------------------------- health


async def test_health_tells_of_each_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMember()
    async with opened(tmp_path / "d") as manager:
        health = manager.health()
        assert health.ok
        assert (health.problems, health.read_only, list(health.instances)) == ((), "", ["delta"])
        assert health.instances["delta"].lock_ours
        manager.join("audit", fake)
        for change in ({"background_errors": 1}, {"write_stopped": True}, {"lock_ours": False}):
            sick = {"background_errors": 0, "write_stopped": False, "lock_ours": True} | change
            monkeypatch.setattr(
                fake, "health", lambda sick=sick: Health(closed=False, in_flight=0, last_error=None, **sick)
            )
            assert not manager.health().ok
        with pytest.raises(TypeError):
            manager.health().instances["x"] = health.instances["delta"]  # type: ignore[index]


class FullDisk(Inline):
    """Worker threads for which the disk is full now and then."""

    full = False

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.full and function.__name__ == "persist":
            raise StoreFull("no space")
        return not self.full if function.__name__ == "has_room" else await super().__call__(function, *args)


async def test_health_says_why_the_log_is_read_only(autojump_clock: MockClock, tmp_path: Path) -> None:
    offload = FullDisk()
    async with open_manager(tmp_path / "d", upkeep=NONE, offload=offload, reserve_bytes=0) as manager:
        offload.full = True
        manager.log.append_nowait("x")
        with pytest.raises(LogReadOnly):
            await manager.log.flush()
        await trio.sleep(10)
        assert manager.health().read_only == "no space"
        assert not manager.health().ok
        offload.full = False
        await trio.sleep(2)
        assert manager.health().ok
        await manager.log.flush()


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flush_interval_s": 0}, "upkeep.flush_interval_s must be a positive number or None, not 0"),
        ({"collect_interval_s": -1}, "upkeep.collect_interval_s must be a positive number or None, not -1"),
        ({"compact_interval_s": float("nan")}, "upkeep.compact_interval_s must be a positive number or None, not nan"),
        ({"disk_interval_s": "1"}, "upkeep.disk_interval_s must be a positive number or None, not '1'"),
        ({"disk_alert_share": 0}, "upkeep.disk_alert_share must be above 0 and at most 1, not 0"),
        ({"disk_alert_share": 1.01}, "upkeep.disk_alert_share must be above 0 and at most 1, not 1.01"),
        ({"disk_alert_share": None}, "upkeep.disk_alert_share must be above 0 and at most 1, not None"),
    ],
)
def test_upkeep_names_what_it_takes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Upkeep(**options)
