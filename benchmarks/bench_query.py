"""Reading: replay against raw rocksdict, ranges, what a peer lacks, opening, memory; at two sizes of log."""

from __future__ import annotations

import gc
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import trio

from benchmarks.report import Figure
from benchmarks.rivals import RawRocks
from benchmarks.workloads import edit, edits
from deltalog import Delta, DeltaLog, Stream, open_log

BATCH = 4096


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    small, large = int(100_000 * scale), int(1_000_000 * scale)
    with tempfile.TemporaryDirectory() as directory:
        paths = {count: Path(directory) / str(count) for count in (small, large)}
        for count, path in paths.items():
            trio.run(fill, path, count)
        figures = _replay(Path(directory) / "replay", int(200_000 * scale))
        for count, path in paths.items():
            figures += trio.run(_queries, path, count)
        figures += [_open(paths[large], large), _memory(paths[large], large)]
    return figures


async def fill(path: Path, count: int) -> None:
    """A log of `count` deltas of the workload edits-16."""
    deltas = edits(count)
    async with open_log(path, source="bench") as log:
        while batch := list(islice(deltas, BATCH)):
            await log.receive(batch)
        await log.flush()
        await log.compact()


def _replay(directory: Path, count: int) -> list[Figure]:
    rng = random.Random(1)
    payloads = [edit(rng) for _ in range(count)]
    directory.mkdir()
    raw = RawRocks(directory / "raw")
    raw.write_payloads(payloads, fsync=False)
    trio.run(_append_all, directory / "ours", payloads)
    del payloads
    gc.collect()
    figures = []
    for paused in (False, True):
        figures += _replay_rounds(directory / "ours", raw, count, paused=paused)
    raw.close()
    return figures


def _replay_rounds(path: Path, raw: RawRocks, count: int, *, paused: bool) -> list[Figure]:
    """`paused`: with Python's cyclic garbage collector off, which only a program can decide to do."""
    rounds = []
    for _ in range(5):
        if paused:
            gc.disable()
        mine, seconds = trio.run(_replay_once, path)
        theirs, raw_seconds = raw.replay()
        gc.enable()
        assert mine == theirs == count
        rounds.append((count / seconds, count / raw_seconds))
    ratio = statistics.median([mine / theirs for mine, theirs in rounds])
    how, budget = (", collector off", "") if paused else ("", ">= 1.2")
    return [
        Figure(
            f"replay into deltas{how}: ratio to raw iteration and decode", ratio, "x", budget, "payloads stay bytes"
        ),
        Figure(f"replay into deltas{how}", statistics.median([mine for mine, _ in rounds]), "deltas/s"),
        Figure(f"raw iteration and decode{how}", statistics.median([theirs for _, theirs in rounds]), "records/s"),
    ]


async def _append_all(path: Path, payloads: Sequence[object]) -> None:
    async with open_log(path, source="alice") as log:
        await log.append_many(payloads, kind="edit", key="doc")


async def _replay_once(path: Path) -> tuple[int, float]:
    async with open_log(path) as log:
        start = time.perf_counter()
        count = 0
        stream = log.replay()
        while page := await stream.page():
            count += len(page)
        return count, time.perf_counter() - start


async def _queries(path: Path, count: int) -> list[Figure]:
    """Median of many, at random places; every delta's payload is decoded too."""
    async with open_log(path) as log:
        heads = dict(log.heads)
        times = [delta.timestamp for delta in await _sample(log)]
        rng = random.Random(1)
        span = max(1, (times[-1] - times[0]) * 1000 // count)

        def between() -> Stream:
            start = rng.randrange(times[0], max(times[0] + 1, times[-1] - span))
            return log.between(start, start + span)

        def since() -> Stream:
            behind = dict(heads)
            for source in heads:
                behind[source] -= 1000 // len(heads)
            return log.since(behind)

        ranges = [await _timed(between) for _ in range(50)]
        lacking = [await _timed(since) for _ in range(50)]
    return [
        _per_thousand(f"time range of about 1000 of {count:,}", ranges, "< 3"),
        _per_thousand(f"since with about 1000 missing of {count:,}, from memory", lacking, "< 3"),
        *await _since_from_disk(path, count),
    ]


async def _since_from_disk(path: Path, count: int) -> list[Figure]:
    """A peer that is behind by what no longer is in memory: 1000 deltas of one source, deep in the log."""
    async with open_log(path) as log:
        rng = random.Random(2)
        sources = sorted(log.heads)

        def deep() -> Stream:
            source = rng.choice(sources)
            until = rng.randrange(min(1001, log.heads[source]), log.heads[source] + 1)
            return log.by_source(source, after=max(0, until - 1000), until=until)

        taken = [await _timed(deep) for _ in range(50)]
    return [_per_thousand(f"1000 of one source, deep in {count:,}", taken, "< 3")]


async def _sample(log: DeltaLog) -> list[Delta]:
    """First and last deltas in time."""
    first = await log.between().page(1)
    heads = [await log.by_source(source, reverse=True).page(1) for source in log.heads]
    last = max((page[0] for page in heads if page), key=lambda delta: delta.timestamp)
    return [first[0], last]


async def _timed(query: Callable[[], Stream]) -> tuple[float, int]:
    start = time.perf_counter()
    stream = query()
    count = 0
    while page := await stream.page():
        count += sum(delta.payload is not None for delta in page)
    return time.perf_counter() - start, count


def _per_thousand(name: str, taken: Sequence[tuple[float, int]], budget: str) -> Figure:
    return Figure(
        name, statistics.median([1e3 * s * 1000 / max(1, n) for s, n in taken]), "ms", budget, "payloads decoded"
    )


def _open(path: Path, count: int) -> Figure:
    async def once() -> float:
        start = time.perf_counter()
        async with open_log(path):
            return time.perf_counter() - start

    taken = statistics.median([trio.run(once) for _ in range(5)])
    return Figure(f"open with {count:,} stored, ring filled", 1e3 * taken, "ms", "< 500")


_REST = """
import gc, resource, sys, trio
from deltalog import open_log
async def main():
    async with open_log(sys.argv[1]) as log:
        await log.append(b"one", durable=True)
        gc.collect()
        with open("/proc/self/status") as status:
            print(next(line.split()[1] for line in status if line.startswith("VmRSS")))
trio.run(main)
"""


def _memory(path: Path, count: int) -> Figure:
    done = subprocess.run([sys.executable, "-c", _REST, str(path)], check=True, capture_output=True, text=True)
    return Figure(f"resident memory at rest, {count:,} stored", int(done.stdout) / 1024, "MiB", "<= 200")


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
