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

from deltalog import manager as manager_file
from deltalog.errors import LogClosed, StoreInUse, StoreMissing, UsageError
from deltalog.manager import Manager, Upkeep, open_log, open_manager
from deltalog.profiles import SharedMemory
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
