"""Opening a data directory: one opener at a time, what leaving does, what a failure leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from deltalog import failpoints
from deltalog import manager as manager_file
from deltalog.errors import LogClosed, StoreFull, StoreInUse, StoreMissing, UsageError
from deltalog.manager import Manager, Upkeep, open_log, open_manager
from deltalog.profiles import SharedMemory
from tests.deltalog.directories import session
from tests.deltalog.memory_log import LIMIT_S
from tests.faults import Bug, Inline

NONE = Upkeep(flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)


@asynccontextmanager
async def opened(path: Path, upkeep: Upkeep = NONE, **options: Any) -> AsyncIterator[Manager]:
    """An open manager whose threads are none, so that a mock clock may jump."""
    with trio.fail_after(10_000):
        async with open_manager(path, upkeep=upkeep, offload=Inline(), reserve_bytes=0, **options) as manager:
            yield manager


# ----------------------------------------------------------------------------------------------------------- one opener


async def test_a_directory_opens_once_in_a_process(tmp_path: Path) -> None:
    async with opened(tmp_path / "d", source="alice") as manager:
        await manager.log.append("x")
        with pytest.raises(StoreInUse, match=f"is open in process {os.getpid()} already"):
            async with opened(tmp_path / "d"):
                pass
        await manager.log.append("y", durable=True)
    async with opened(tmp_path / "d") as manager:
        assert manager.log.heads == {"alice": 2}


HOLD = """
import sys, trio
from deltalog.manager import open_log

async def main():
    async with open_log(sys.argv[1], source="bob") as log:
        await log.append("from the child", durable=True)
        print("open", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


async def test_a_directory_opens_in_one_process_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "d")]
    child = await trio.lowlevel.open_process(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    async with child.stdin, child.stdout:
        try:
            with trio.fail_after(LIMIT_S):
                assert (await child.stdout.receive_some()).startswith(b"open")
            with pytest.raises(StoreInUse, match=f"is open in process {child.pid} already"):
                async with opened(tmp_path / "d"):
                    pass
        finally:
            child.kill()
            await child.wait()
    async with opened(tmp_path / "d") as manager:
        assert manager.log.heads == {"bob": 1}
        assert manager.startup.kind == "unclean"


async def test_an_open_that_fails_lets_go_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "d", source="alice"):
        pass
    for source, message in (("bob", "belongs to source 'alice'"), ("", "source must not be empty")):
        with pytest.raises(UsageError, match=message):
            async with opened(tmp_path / "d", source=source):
                pass
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise Bug

        patch.setattr(manager_file, "DeltaLog", fail)
        with pytest.raises(Bug):
            async with opened(tmp_path / "d"):
                pass
    with pytest.raises(StoreMissing, match="does not exist"):
        async with opened(tmp_path / "no", create=False):
            pass
    assert not (tmp_path / "no").exists()
    async with opened(tmp_path / "d") as manager:
        assert manager.log.source == "alice"
        assert not manager.startup.lost


async def test_leaving_stores_everything_and_says_that_it_was_clean(tmp_path: Path) -> None:
    async with opened(tmp_path / "d", source="alice") as manager:
        assert manager.startup.kind == "created"
        manager.log.append_nowait("a")

    async def fail() -> None:
        async with opened(tmp_path / "d") as manager:
            assert manager.startup.kind == "clean"
            manager.log.append_nowait("b")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    with trio.move_on_after(0.1):
        async with opened(tmp_path / "d") as manager:
            assert manager.startup.kind == "clean"
            manager.log.append_nowait("c")
            await trio.sleep_forever()
    async with opened(tmp_path / "d") as manager:
        assert (manager.startup.kind, manager.startup.deltas) == ("clean", 3)
    with pytest.raises(LogClosed):
        manager.log.append_nowait("d")


async def test_open_log_is_the_log_alone(tmp_path: Path) -> None:
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        assert 0 <= done <= total

    for expected in (1, 2):
        with trio.fail_after(LIMIT_S):
            async with open_log(tmp_path / "d", source="alice", upkeep=NONE, progress=progress) as log:
                assert (await log.append("x", durable=True)).seq == expected
    assert set(stages) >= {"checking", "reading"}
    with pytest.raises(KeyError):
        async with open_log(tmp_path / "d"):
            raise KeyError


async def test_managers_may_share_memory(tmp_path: Path) -> None:
    memory = SharedMemory()
    async with opened(tmp_path / "a", memory=memory) as first, opened(tmp_path / "b", memory=memory) as second:
        assert first.memory is second.memory
        await first.log.append("x", durable=True)
        await second.log.append("x", durable=True)


# ------------------------------------------------------------------------------------------ when the system fails it


def test_a_directory_that_cannot_be_looked_at_has_no_room(tmp_path: Path) -> None:
    """A log that a full disk made read-only looks again later, whatever it met."""
    path = tmp_path / "d"
    with session(path) as opened:
        disk = manager_file._DataDisk(opened.data, 0)
        assert disk.has_room()
        path.rename(tmp_path / "away")
        assert not disk.has_room()
        (tmp_path / "away").rename(path)
        assert disk.has_room()


async def test_a_file_that_is_deleted_while_the_disk_is_looked_at_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def deleting(path: Path) -> list[tuple[str, list[str], list[str]]]:
        found = list(walk(path))
        (tmp_path / "d" / "extra").unlink()
        return found

    async with opened(tmp_path / "d") as manager:
        (tmp_path / "d" / "extra").write_bytes(b"x" * 1_000_000)
        assert (await manager.disk()).data_bytes > 1_000_000
        monkeypatch.setattr(os, "walk", deleting)
        assert 0 < (await manager.disk()).data_bytes < 1_000_000


@pytest.mark.parametrize("point", ["startup.close.before", "startup.close.after"])
@pytest.mark.parametrize("broken", [False, True])
async def test_i10_a_close_that_fails_is_told_unless_a_failure_came_before(
    tmp_path: Path, point: str, broken: bool
) -> None:
    def full() -> None:
        raise StoreFull("no space")

    def bug() -> None:
        raise Bug("in the writer")

    async def use_it() -> None:
        async with opened(tmp_path / "d", source="alice") as manager:
            await manager.log.append("kept", durable=True)
            failpoints.arm(point, full)
            if broken:
                failpoints.arm("writer.drain.after", bug)
                manager.log.append_nowait("lost")

    try:
        with pytest.raises(Bug if broken else StoreFull):
            await use_it()
    finally:
        failpoints.disarm()
    async with opened(tmp_path / "d") as manager:
        closed = not broken and point == "startup.close.after"
        assert manager.startup.kind == ("clean" if closed else "unclean")
        assert [delta.payload async for delta in manager.log.replay()] == ["kept"]


async def test_i10_a_close_that_fails_does_not_hide_what_went_wrong_before(tmp_path: Path) -> None:
    def full() -> None:
        raise StoreFull("no space")

    async def cancelled() -> None:
        with trio.CancelScope() as scope:
            async with opened(tmp_path / "d"):
                scope.cancel()
                await trio.sleep_forever()

    failpoints.arm("startup.close.before", full)
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            async with opened(tmp_path / "d", source="alice"):
                raise ZeroDivisionError
        assert caught.value.__notes__ == ["and the store did not close in order: no space"]
        with pytest.raises(StoreFull):
            await cancelled()
    finally:
        failpoints.disarm()
