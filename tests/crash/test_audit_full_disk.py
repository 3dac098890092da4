"""A small file system filled up while events are recorded, under each policy: nothing hidden, all of it counted (T14).

The disk is freed again under the running trail, which goes on by itself; or it stays full, and closing says so.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from audit.errors import AuditUnavailable
from audit.event import Action, AuditEvent
from audit.opening import Trail, TrailOptions, open_trail
from audit.query import Query
from audit.recorder import Overflow, RecorderOptions, RecorderStatistics
from deltalog.errors import StoreFull
from deltalog.manager import open_manager
from tests.crash.inspection import NO_UPKEEP
from tests.crash.test_full_disk import LIMIT_S, fill, free, small_disk

pytestmark = [pytest.mark.system("tmpfs"), pytest.mark.crash]


def options(policy: Overflow) -> TrailOptions:
    return TrailOptions(
        recorder=RecorderOptions(
            policy=policy, buffer_events=300, interval_s=0.01, wait_s=0.01, require_s=0.3, close_s=0.5
        )
    )


def event(trail: Trail, chance: random.Random) -> AuditEvent:
    metadata = {str(n): chance.randbytes(500).hex() for n in range(4)}
    return AuditEvent(trail.clock.tick(), Action.ACQUIRED, "src/app.py", "a", "", "l", 1, metadata)


def balanced(statistics: RecorderStatistics) -> bool:
    return statistics.recorded + statistics.dropped_total + statistics.pending == statistics.submitted


async def filled(trail: Trail, chance: random.Random) -> int:
    """Submit until the disk is full and the policy has had to act; return how many were refused."""
    refused = 0
    while not (trail.recorder.problem and (trail.recorder.statistics().dropped_total or refused)):
        try:
            await trail.recorder.submit(event(trail, chance))
        except AuditUnavailable:
            assert isinstance(trail.recorder.problem, StoreFull)
            refused += 1
        assert balanced(trail.recorder.statistics())
        await trio.lowlevel.checkpoint()
    assert "No space left on device" in trail.recorder.statistics().problem
    return refused


@pytest.mark.parametrize("policy", list(Overflow))
@pytest.mark.parametrize("level_bytes", [0, 2 << 20])
async def test_i11_a_disk_that_fills_up_and_is_freed(tmp_path: Path, policy: Overflow, level_bytes: int) -> None:
    chance = random.Random(level_bytes)
    with small_disk(tmp_path / "disk") as disk, trio.fail_after(LIMIT_S):
        async with (
            open_manager(disk / "data", source="a", upkeep=NO_UPKEEP, reserve_bytes=0) as manager,
            open_trail(manager, options=options(policy)) as trail,
        ):
            await trail.recorder.flush()
            fill(disk, level_bytes)
            refused = await filled(trail, chance)
            assert (refused > 0) == (policy is Overflow.REQUIRE)
            free(disk)
            await trail.recorder.flush()
            await trail.recorder.submit(event(trail, chance))
            await trail.recorder.flush()
            statistics = trail.recorder.statistics()
            assert statistics.problem == ""
            assert statistics.pending == 0
            assert balanced(statistics)
            found = [each.event async for each in trail.reader.stream(Query())]
            own = (Action.STARTED, Action.GAP)
            assert sum(each.action not in own for each in found) == statistics.recorded
            told = sum(int(each.metadata["count"]) for each in found if each.action is Action.GAP)
            assert told == statistics.dropped_total
            assert (await trail.verify()).ok


async def test_i10_a_disk_that_stays_full_is_told_at_the_end(tmp_path: Path) -> None:
    chance = random.Random(1)
    with small_disk(tmp_path / "disk") as disk, trio.fail_after(LIMIT_S):
        manager_opening = open_manager(disk / "data", source="a", upkeep=NO_UPKEEP, reserve_bytes=0)
        manager = await manager_opening.__aenter__()
        opening = open_trail(manager, options=options(Overflow.DROP))
        trail = await opening.__aenter__()
        await trail.recorder.flush()
        fill(disk, 0)
        await filled(trail, chance)
        with pytest.raises(AuditUnavailable, match="before .* events were written"):
            await opening.__aexit__(None, None, None)
        statistics = trail.recorder.statistics()
        assert statistics.pending == 0
        assert balanced(statistics)
        free(disk)
        with suppress(StoreFull):
            await manager_opening.__aexit__(None, None, None)
        async with (
            open_manager(disk / "data", upkeep=NO_UPKEEP, reserve_bytes=0) as manager,
            open_trail(manager) as trail,
        ):
            await trail.recorder.flush()
            newest = await trail.reader.get(trail.store.head.number)
            assert newest is not None
            assert newest.event.metadata["unclean"] == "true"
            assert (await trail.verify()).ok
            held = [each async for each in trail.reader.stream(Query(actions=(Action.ACQUIRED,)))]
            assert len(held) == statistics.recorded
