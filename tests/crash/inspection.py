"""The program that looks at a log some other process left: opens it, reads and verifies everything, appends, closes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import trio

import deltalog.witness
from deltalog.delta import Delta
from deltalog.errors import DataLoss, DeltaLogError, StoreCorrupt
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Upkeep, open_manager
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.verify import verify
from tests.crash.history import COUNTED, SOURCE, fingerprint

Say = Callable[[Any], None]
NO_UPKEEP = Upkeep(flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)
FEW = LogOptions(ring_deltas=16)
"""Little is read at open, so that the rest is read from the files."""


def inspect(say: Say, path: str, boot: str = "", accept_loss: bool = False) -> None:
    """Say what is there: {"error": ...} if it does not open, else everything that `history.Known.check` asks for."""
    if boot:
        deltalog.witness.boot_id = lambda: boot
    found: dict[str, Any] = {}
    try:
        trio.run(_look, found, path, accept_loss)
        found["problems"] += _verified(Path(path))
    except DeltaLogError as error:
        if found:
            found["problems"].append(f"{type(error).__name__}: {error}")
        else:
            lost = {"lost": error.lost, "lost_unnamed": error.lost_unnamed} if isinstance(error, DataLoss) else {}
            found = {"error": type(error).__name__, "message": str(error), **lost}
    say(found)


async def _look(found: dict[str, Any], path: str, accept_loss: bool) -> None:
    async with open_manager(
        path, source=SOURCE, create=False, accept_loss=accept_loss, options=FEW, upkeep=NO_UPKEEP, reserve_bytes=0
    ) as manager:
        log = manager.log
        found["report"] = {**attrs.asdict(manager.startup), "lost": dict(manager.startup.lost)}
        found["problems"] = []
        found["heads"], found["floors"] = dict(log.heads), dict(log.floor)
        found["contents"] = {source: [] for source in log.heads}
        found["erased"], found["fresh"], found["annotated"] = [], [], 0
        try:
            await _read(log, found)
            found["annotated"] = int(await log.annotation(COUNTED) or 0)
        except StoreCorrupt as error:
            found["problems"].append(f"reading: {error}")
        for _ in range(2):
            delta = await log.append("fresh", durable=True)
            found["fresh"].append((delta.source, delta.seq, fingerprint(delta)))


async def _read(log: DeltaLog, found: dict[str, Any]) -> None:
    """Read everything, in each way there is."""
    deltas = [delta async for delta in log.replay()]
    for delta in deltas:
        found["contents"][delta.source].append(fingerprint(delta))
    found["erased"] = [delta.dot for delta in deltas if delta.erased]
    found["problems"] += _wrong(deltas, log.heads, log.floor)
    if deltas != [delta async for delta in log.between()]:
        found["problems"].append("a time range gives other deltas")
    for delta in deltas[:: max(1, len(deltas) // 20)]:
        if await log.get(delta.dot) != delta:
            found["problems"].append(f"{delta.dot} is another one when asked for alone")


def _wrong(deltas: list[Delta], heads: Mapping[str, int], floors: Mapping[str, int]) -> list[str]:
    """What is wrong with all that is held: gaps (I2), missing causes (I5), times out of order (I6)."""
    problems = []
    last: dict[str, Delta] = {}
    for delta in deltas:
        before = last.get(delta.source)
        seq = before.seq if before is not None else floors.get(delta.source, 0)
        if delta.seq != seq + 1:
            problems.append(f"{delta.source!r}: {delta.seq} comes after {seq}")
        if before is not None and before.timestamp >= delta.timestamp:
            problems.append(f"{delta.source!r}: {delta.seq} is not later than {seq}")
        for source, needed in delta.deps.items():
            if (last[source].seq if source in last else floors.get(source, 0)) < needed:
                problems.append(f"{delta.dot} comes before its cause ({source!r}, {needed})")
        last[delta.source] = delta
    for source, head in heads.items():
        if (last[source].seq if source in last else floors.get(source, 0)) != head:
            problems.append(f"{source!r} ends before its head {head}")
    return problems


def _verified(path: Path) -> list[str]:
    """What `verify` finds."""
    rocks = path / "rocks" / "delta"
    with closing(RocksStore(lambda: Rocks.open_read_only(rocks, FAMILIES, SharedMemory()))) as store:
        return [f"verify: {fault}" for fault in verify(store)]
