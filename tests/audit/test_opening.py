"""Opening a trail beside the log: made once, missed when it is gone, kept up by the manager."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from audit.event import Action
from audit.opening import AUDIT, TrailOptions, open_trail
from audit.query import Query
from audit.recorder import RecorderOptions
from audit.retention import AuditRetention
from audit.trail import TrailHead
from deltalog.errors import StoreCorrupt, StoreInUse, StoreMissing
from deltalog.manager import open_manager
from tests.audit.trails import event

NOW_MS = 1_800_000_000_000


async def opened_and_closed(path: Path) -> TrailHead:
    async with open_manager(path, source="a") as manager, open_trail(manager) as trail:
        trail.recorder.log(event(trail.clock.tick()))
        await trail.recorder.flush()
        return trail.head()


async def test_a_trail_goes_on_where_it_was(tmp_path: Path) -> None:
    head = await opened_and_closed(tmp_path / "d")
    async with open_manager(tmp_path / "d") as manager, open_trail(manager) as trail:
        await trail.recorder.flush()
        assert manager.names == ("delta", AUDIT)
        assert trail.head().number == 4
        assert (await trail.verify(head)).ok
        actions = [each.event.action async for each in trail.reader.stream(Query())]
        assert actions == [Action.STARTED, Action.ACQUIRED, Action.STOPPED, Action.STARTED]
        assert trail.clock.tick() > trail.store.head.timestamp
        assert (await manager.sizes())[AUDIT].deltas == 4
        assert manager.health().ok
    assert AUDIT not in manager.names


@pytest.mark.parametrize("gone", ["audit", "audit.id"])
async def test_i15_a_trail_that_was_there_is_missed(tmp_path: Path, gone: str) -> None:
    await opened_and_closed(tmp_path / "d")
    away = tmp_path / "d" / "rocks" / gone
    shutil.rmtree(away) if away.is_dir() else away.unlink()
    async with open_manager(tmp_path / "d") as manager:
        with pytest.raises(StoreMissing, match="restore it"):
            await open_trail(manager).__aenter__()


@pytest.mark.parametrize("killed", [False, True])
async def test_i12_an_older_copy_put_back_is_told_and_tokens_go_on_above(tmp_path: Path, killed: bool) -> None:
    data, copy = tmp_path / "d", tmp_path / "copy"
    await opened_and_closed(data)
    shutil.copytree(data / "rocks" / "audit", copy)
    async with open_manager(data) as manager, open_trail(manager) as trail:
        trail.recorder.log(event(trail.clock.tick()))
        await trail.recorder.flush()
        await trio.to_thread.run_sync(trail.reserve_tokens, 5000)
        reached = trail.head().number
        mark = (data / "rocks" / "audit.id").read_bytes()
    if killed:
        (data / "rocks" / "audit.id").write_bytes(mark)  # as the reservation left it
    shutil.rmtree(data / "rocks" / "audit")
    shutil.copytree(copy, data / "rocks" / "audit")
    for again in (False, True):
        async with open_manager(data) as manager, open_trail(manager) as trail:
            await trail.recorder.flush()
            assert trail.store.tokens == 5000
            started = await trail.reader.get(trail.head().number)
            assert started is not None
            told = {"put_back": "true", "reached_before": str(reached if killed else reached + 1)}
            assert started.event.action is Action.STARTED
            assert (told.items() <= started.event.metadata.items()) is not again
            assert (await trail.verify()).ok


@pytest.mark.parametrize("text", ["", "00", "00 1", "0g 1 1", "00 -1 1", "00 1 1 1"])
async def test_a_mark_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    await opened_and_closed(tmp_path / "d")
    (tmp_path / "d" / "rocks" / "audit.id").write_text(text)
    async with open_manager(tmp_path / "d") as manager:
        with pytest.raises(StoreCorrupt, match="is no store id, tokens and number"):
            await open_trail(manager).__aenter__()


async def test_another_directorys_trail_is_refused(tmp_path: Path) -> None:
    for name in ("d", "other"):
        await opened_and_closed(tmp_path / name)
    shutil.rmtree(tmp_path / "d" / "rocks" / "audit")
    shutil.move(tmp_path / "other" / "rocks" / "audit", tmp_path / "d" / "rocks" / "audit")
    async with open_manager(tmp_path / "d") as manager:
        with pytest.raises(StoreCorrupt, match="another trail"):
            await open_trail(manager).__aenter__()


async def test_a_trail_is_opened_once(tmp_path: Path) -> None:
    async with open_manager(tmp_path / "d", source="a") as manager, open_trail(manager):
        with pytest.raises(StoreInUse):
            await open_trail(manager).__aenter__()


async def test_the_manager_applies_the_retention(tmp_path: Path) -> None:
    now_ms = NOW_MS
    options = TrailOptions(retention=AuditRetention(age_s=60), recorder=RecorderOptions(interval_s=0.01))
    async with (
        open_manager(tmp_path / "d", source="a") as manager,
        open_trail(manager, options=options, wall_ns=lambda: now_ms * 1_000_000) as trail,
    ):
        for _ in range(50):
            trail.recorder.log(event(trail.clock.tick()))
        await trail.recorder.flush()
        assert await manager.collect(AUDIT) == 0
        now_ms += 61_000
        trail.recorder.log(event(trail.clock.tick()))
        await trail.recorder.flush()
        assert await manager.collect(AUDIT) == 51
        await manager.compact(AUDIT)
        await manager.flush(AUDIT)
        assert (await trail.verify()).ok
        assert trail.store.head.count == 1


async def test_what_a_cancelled_block_logged_is_stored(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_manager(tmp_path / "d", source="a") as manager, open_trail(manager) as trail:
            for _ in range(700):
                trail.recorder.log(event(trail.clock.tick()))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with open_manager(tmp_path / "d") as manager, open_trail(manager) as trail:
        assert trail.store.head.number == 702
        first = await trail.reader.get(702)
        assert first is not None
        assert first.event.action is Action.STOPPED
