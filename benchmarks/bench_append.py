"""Appending: throughput one at a time against raw rocksdict, and the latency of durable appends."""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from benchmarks.report import Figure, percentile
from benchmarks.rivals import RawRocks
from benchmarks.workloads import edit
from deltalog import LogOptions, RingFull, open_log


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    rng = random.Random(1)
    payloads = [edit(rng) for _ in range(int(200_000 * scale))]
    gc.freeze()  # the payloads are the caller's: keep the collector from walking them for either side
    figures: list[Figure] = []
    for fsync, name, budget in ((False, "buffered", ">= 0.5"), (True, "fsynced", ">= 0.8")):
        rounds = [_round(payloads, fsync=fsync) for _ in range(3)]
        ours, encoding, encoded = (statistics.median(column) for column in zip(*rounds, strict=True))
        note = "one at a time, persisted; raw encodes each record too, batches of 1000"
        ratios = statistics.median([mine / raw for mine, raw, _ in rounds])
        figures += [
            Figure(f"append {name}: ratio to raw rocksdict", ratios, "x", budget, note),
            Figure(
                f"append {name}: ratio to raw, records encoded beforehand",
                statistics.median([mine / raw for mine, _, raw in rounds]),
                "x",
            ),
            Figure(f"append {name}", ours, "deltas/s"),
            Figure(f"raw {name}, encoding", encoding, "records/s"),
            Figure(f"raw {name}, encoded beforehand", encoded, "records/s"),
        ]
    gc.unfreeze()
    return figures + _latency(int(2_000 * scale) or 20, int(60_000 * scale))


def _round(payloads: Sequence[Any], *, fsync: bool) -> tuple[float, float, float]:
    """(ours, raw that encodes, raw given encoded records), each per second, one after the other."""
    count = len(payloads)
    with tempfile.TemporaryDirectory() as directory:
        ours = count / trio.run(_append, Path(directory) / "ours", payloads, 0.0 if fsync else 0.020)
        raw = RawRocks(Path(directory) / "raw")
        encoding = count / raw.write_payloads(payloads, fsync=fsync)
        raw.close()
        raw = RawRocks(Path(directory) / "encoded")
        encoded = count / raw.write_records([bytes(120)] * count, fsync=fsync)
        raw.close()
    return ours, encoding, encoded


async def _append(path: Path, payloads: Sequence[Any], sync_interval_s: float) -> float:
    async with open_log(path, source="alice", options=LogOptions(sync_interval_s=sync_interval_s)) as log:
        start = time.perf_counter()
        append = log.append_nowait
        for payload in payloads:
            try:
                append(payload, kind="edit", key="doc")
            except RingFull:
                await log.append(payload, kind="edit", key="doc")
        await log.flush()
        return time.perf_counter() - start


def _latency(alone: int, together: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        raw = RawRocks(Path(directory) / "raw")
        rival = [raw.commit_one(seq, bytes(120)) for seq in range(alone)]
        raw.close()
        single = trio.run(_durable_alone, Path(directory) / "alone", alone)
        many, seconds = trio.run(_durable_together, Path(directory) / "together", together)
    return [
        Figure("durable append alone, p50", 1e6 * percentile(single, 0.5), "us"),
        Figure("durable append alone, p99", 1e6 * percentile(single, 0.99), "us"),
        Figure("raw fsynced commit, p50", 1e6 * percentile(rival, 0.5), "us"),
        Figure("raw fsynced commit, p99", 1e6 * percentile(rival, 0.99), "us"),
        Figure(
            "durable append alone, p99: ratio to raw", percentile(single, 0.99) / percentile(rival, 0.99), "x", "<= 2"
        ),
        Figure("64 tasks appending durably", together / seconds, "deltas/s", ">= 60000"),
        Figure("64 tasks appending durably, p50", 1e6 * percentile(many, 0.5), "us"),
        Figure("64 tasks appending durably, p99", 1e6 * percentile(many, 0.99), "us"),
    ]


async def _durable_alone(path: Path, count: int) -> list[float]:
    taken: list[float] = []
    async with open_log(path, source="alice") as log:
        for _ in range(count):
            start = time.perf_counter()
            await log.append(b"x" * 100, durable=True)
            taken.append(time.perf_counter() - start)
    return taken


async def _durable_together(path: Path, count: int) -> tuple[list[float], float]:
    taken: list[float] = []

    async def appender(share: int) -> None:
        for _ in range(share):
            start = time.perf_counter()
            await log.append(b"x" * 100, durable=True)
            taken.append(time.perf_counter() - start)

    async with open_log(path, source="alice") as log:
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(appender, max(1, count // 64))
        return taken, time.perf_counter() - start
