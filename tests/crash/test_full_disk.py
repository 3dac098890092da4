"""A small file system filled up while a log writes: read-only with the reason, nothing acknowledged lost (T9).

Half of the rounds free the disk again under the running log, which goes on by itself; half end it on the full disk and
open it again there, where the reserve makes room, or not.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from deltalog.delta import Delta
from deltalog.errors import LogReadOnly, StoreFull
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Upkeep, open_manager
from tests.conftest import Rounds

pytestmark = [pytest.mark.system("tmpfs"), pytest.mark.crash]

DISK_BYTES = 40 << 20
RESERVE_BYTES = 8 << 20
MOST_FREE_BYTES = 6 << 20
"""Enough for a write buffer and its flush; with less, it is a write, a flush or a compaction that finds no room."""
LIMIT_S = 60
NO_UPKEEP = Upkeep(flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def fill(disk: Path, leave_bytes: int) -> None:
    """Take all room but so much."""
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - leave_bytes
    if size > 0:
        with (disk / "ballast").open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), size)


def free(disk: Path) -> None:
    (disk / "ballast").unlink(missing_ok=True)


def payload(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((10, 300, 20_000)))


async def wrote_until_full(log: DeltaLog, chance: random.Random) -> tuple[list[Delta], int]:
    """Append until the log says that it is full. Returns what was handed out, and how many of that is durable."""
    mine: list[Delta] = []
    durable = 0
    full: LogReadOnly | None = None
    while full is None:
        try:
            mine.append(await log.append(payload(chance)))
            if chance.random() < 0.3:
                await log.flush()
                durable = len(mine)
        except LogReadOnly as error:
            full = error
    assert full.retryable
    assert isinstance(full.__cause__, StoreFull)
    assert "No space left on device" in log.statistics().writer.read_only
    with pytest.raises(LogReadOnly):
        log.append_nowait("more")
    assert log.heads == {"alice": len(mine)}, "what was refused used no seq"
    return mine, durable


async def all_of(log: DeltaLog) -> list[Delta]:
    return [delta async for delta in log.replay()]


async def filled(disk: Path, level_bytes: int, chance: random.Random, *, end: bool) -> str:
    """One round; returns how it went."""
    options = LogOptions(sync_interval_s=chance.choice((0.0, 0.005)), ring_deltas=50_000)
    path = disk / "data"
    opening = open_manager(path, source="alice", options=options, upkeep=NO_UPKEEP, reserve_bytes=RESERVE_BYTES)
    manager = await opening.__aenter__()
    log = manager.log
    fill(disk, level_bytes)
    mine, durable = await wrote_until_full(log, chance)
    assert await all_of(log) == mine, "reads go on"
    if end:
        with pytest.raises((LogReadOnly, StoreFull), match="deltas were not stored|No space left on device"):
            await opening.__aexit__(None, None, None)
        return await opened_full(disk, mine, durable)
    free(disk)
    mine.append(await appended_again(log))
    assert log.synced == log.written == {"alice": len(mine)}
    assert await all_of(log) == mine
    await opening.__aexit__(None, None, None)
    async with open_manager(path, upkeep=NO_UPKEEP, reserve_bytes=RESERVE_BYTES) as manager:
        assert await all_of(manager.log) == mine
        assert manager.startup.kind == "clean"
    return "went on by itself"


async def appended_again(log: DeltaLog) -> Delta:
    """Append as soon as the log takes it: it looks for room now and then."""
    while True:
        try:
            return await log.append("it goes on", durable=True)
        except LogReadOnly:
            await trio.sleep(0.01)


async def opened_full(disk: Path, mine: list[Delta], durable: int) -> str:
    """Open on the full disk, and once more when it is free."""
    how = "opened with the reserve"
    try:
        async with open_manager(disk / "data", upkeep=NO_UPKEEP, reserve_bytes=0) as manager:
            assert await all_of(manager.log) == mine[: manager.log.heads.get("alice", 0)]
            assert manager.log.heads.get("alice", 0) >= durable
            free(disk)
    except StoreFull:
        how = "refused while full"
        free(disk)
    async with open_manager(disk / "data", upkeep=NO_UPKEEP, reserve_bytes=0) as manager:
        log = manager.log
        head = log.heads.get("alice", 0)
        assert head >= durable
        kept = [delta for delta in await all_of(log) if delta.source == "alice"]
        assert kept == mine[:head]
        fresh = await log.append("on", durable=True)
        assert fresh.dot not in {delta.dot for delta in mine}
    return how


async def test_i2_i7_i10_a_disk_that_fills_up(
    tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    count = rounds(6, nightly=200)
    outcomes: Counter[str] = Counter()
    side_by_side = trio.CapacityLimiter(4)

    async def one(number: int) -> None:
        level_bytes = MOST_FREE_BYTES * number // count
        async with side_by_side:
            with small_disk(tmp_path / str(number)) as disk, trio.fail_after(LIMIT_S):
                try:
                    outcomes[await filled(disk, level_bytes, random.Random(number), end=number % 2 == 0)] += 1
                except AssertionError as error:
                    raise AssertionError(f"round {number}, {level_bytes:,} bytes left: {error}") from error

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    with capsys.disabled():
        print(f"\n{count} levels: {dict(outcomes)}")
    assert outcomes["went on by itself"] == count // 2
