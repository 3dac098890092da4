"""T16: the event loop goes on while the disk is slow. How long its longest pauses were is reported, never asserted.

What is asserted is structure: while an fsync is held up, the loop appends, reads and beats; and under a real fsync of
100 ms it beats many times per fsync, which it could not if RocksDB held the interpreter meanwhile.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from deltalog.log import DeltaLog, LogOptions
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from tests.conftest import Rounds
from tests.crash.shim import Shim
from tests.deltalog.memory_log import LIMIT_S, collect, remote, seqs, until
from tests.faults import FaultDisk, FaultStore

REPOSITORY = Path(__file__).parents[2]


class Heart:
    """Beats every millisecond and notes the gaps."""

    def __init__(self) -> None:
        self.beats: list[float] = []

    async def beat(self) -> None:
        while True:
            self.beats.append(trio.current_time())
            await trio.sleep(0.001)

    async def beats_on(self, count: int) -> None:
        """Return after so many beats more."""
        end = len(self.beats) + count
        await until(lambda: len(self.beats) >= end, pause_s=0.001)

    def report(self) -> str:
        gaps = [1000 * (after - before) for before, after in pairwise(self.beats)]
        p99 = statistics.quantiles(gaps, n=100)[-1]
        return f"{len(gaps)} beats; gap p50 {statistics.median(gaps):.1f} p99 {p99:.1f} max {max(gaps):.1f} ms"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    memory = SharedMemory()
    Rocks.create(tmp_path / "db", FAMILIES, memory).close()
    store = FaultStore(RocksStore(lambda: Rocks.open(tmp_path / "db", FAMILIES, memory), b"0" * 16))
    yield store
    store.close()


def log_on(store: FaultStore, **options: Any) -> DeltaLog:
    """With real worker threads."""
    return DeltaLog("alice", store, FaultDisk(store), options=LogOptions(**options))


@pytest.mark.parametrize("method", ["sync", "write", "compact", "page", "truncate"])
async def test_t16_the_loop_goes_on_while_a_call_of_the_store_is_held_up(store: FaultStore, method: str) -> None:
    """Held up for as long as it takes the loop to do all this, so that no clock is needed."""
    heart = Heart()
    with trio.fail_after(LIMIT_S):
        async with log_on(store, ring_deltas=200).running() as log, trio.open_nursery() as nursery:
            nursery.start_soon(heart.beat)
            await log.append_many(range(1000), durable=True)
            gate = store.faults.holds[method] = threading.Event()
            calls = store.faults.calls[method]
            done = trio.Event()
            nursery.start_soon(provoke, log, method, done)
            await until(lambda: store.faults.calls[method] > calls, pause_s=0.001)
            for number in range(100):
                log.append_nowait(number)
            await log.receive([remote("bob", 1, 1)])
            if method in ("sync", "compact"):
                assert len(await collect(log.by_source("alice", after=900))) >= 200
            await heart.beats_on(50)
            assert not done.is_set()
            gate.set()
            await done.wait()
            await log.flush()
            assert log.synced == log.heads
            nursery.cancel_scope.cancel()
    assert seqs(store.by_source("alice", 900, 2000).page(2000))[-1] >= 1100


async def provoke(log: DeltaLog, method: str, done: trio.Event) -> None:
    """Something that needs the method."""
    calls: dict[str, Callable[[], Any]] = {
        "sync": lambda: log.append("x", durable=True),
        "write": lambda: log.append("x", durable=True),
        "compact": log.compact,
        "page": lambda: collect(log.by_source("alice", until=500)),
        "truncate": lambda: log.truncate(until={"alice": 100}),
    }
    await calls[method]()
    done.set()


async def test_t16_with_slow_fsyncs_64_appenders_share_the_loop(
    store: FaultStore, rounds: Rounds, record_property: Callable[[str, object], None]
) -> None:
    fsyncs = rounds(5, nightly=100)
    store.faults.delays_s["sync"] = 0.1
    heart, during = Heart(), []

    def count(method: str) -> None:
        if method == "sync":
            during.append(len(heart.beats))

    store.faults.on_call = count

    async def appender(log: DeltaLog) -> None:
        while True:
            await log.append("x" * 100, durable=True)

    with trio.fail_after(LIMIT_S * 10):
        async with log_on(store).running() as log, trio.open_nursery() as nursery:
            nursery.start_soon(heart.beat)
            for _ in range(64):
                nursery.start_soon(appender, log)
            await until(lambda: len(during) > fsyncs, pause_s=0.01)
            nursery.cancel_scope.cancel()
    print(f"\nT16, {fsyncs} fsyncs of 100 ms: {heart.report()}")
    record_property("T16", heart.report())
    progress = [after - before for before, after in pairwise(during[: fsyncs + 1])]
    assert min(progress) >= 5, "the loop went on during each fsync"


CHILD = """
import json, sys, trio
from pathlib import Path
from deltalog.manager import open_log
from tests.crash.shim import Control
from tests.deltalog.test_loop_stall import Heart

async def main(path, state, fsyncs):
    heart, control, beats = Heart(), Control(Path(state)), []
    async with open_log(path, source="alice") as log, trio.open_nursery() as nursery:
        await log.append_many(range(1000), durable=True)
        control.arm(delay_fsync_s=0.1)
        nursery.start_soon(heart.beat)
        for number in range(fsyncs):
            before = len(heart.beats)
            await log.append(number, durable=True)
            beats.append(len(heart.beats) - before)
        control.disarm()
        nursery.cancel_scope.cancel()
    print(json.dumps({"beats": beats, "report": heart.report()}))

trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


@pytest.mark.system("gcc")
def test_t16_a_real_fsync_of_100_ms_does_not_stop_the_loop(
    tmp_path: Path, rounds: Rounds, record_property: Callable[[str, object], None]
) -> None:
    shim = Shim.build(tmp_path)
    fsyncs = rounds(8, nightly=200)
    env = shim.env(tmp_path / "root", tmp_path / "state")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "root" / "data"), str(tmp_path / "state"), str(fsyncs)]
    child = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    print(f"\nT16, {fsyncs} real fsyncs of 100 ms: {said['report']}")
    record_property("T16", said["report"])
    assert len(said["beats"]) == fsyncs
    assert min(said["beats"]) >= 5, "the loop went on during each fsync"
