"""Syncing: catch-up and live latency between two processes over TLS, heads exchange, convergence after a partition."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from benchmarks.report import Figure, percentile
from benchmarks.sync_child import ALICE, BOB, append_all, opened
from benchmarks.workloads import edit
from deltalog import open_log
from deltalog.chain import genesis
from sync import comparison
from sync.comparison import Comparison
from sync.heads import HeadsIndex
from sync.messages import Compare, encode
from tests.sync.nodes import Node, World, converged

FEW = 100
"""Deltas that each node has written when a simulated cluster begins."""


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    count = int(100_000 * scale)
    figures = _catch_up(count) + _catch_up(count, "--compress")
    figures += _live(int(500 * scale) or 20, int(20_000 * scale) or 200)
    for sources in (100, 10_000, int(100_000 * scale)):
        figures.append(_heads(sources))
    for nodes in (3, 10, 30):
        for shape in ("ring", "random graph"):
            figures += trio.run(_heal, nodes, shape, clock=MockClock(autojump_threshold=0))
    return figures


# -------------------------------------------------------------------------------------------------------- two processes


@contextmanager
def _alice(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a node that listens; its address."""
    command = [sys.executable, "-m", "benchmarks.sync_child", str(directory / "alice"), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, json.loads(child.stdout.readline())["address"]
        finally:
            child.kill()


def _catch_up(count: int, *more: str) -> list[Figure]:
    ratios, rates, shares = [], [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as name, _alice(Path(name), "--deltas", str(count), *more) as (_, address):
            own = trio.run(_own_rate, Path(name) / "own", count)
            rate, share = trio.run(_fetch, Path(name) / "bob", address, count)
        ratios.append(rate / own)
        rates.append(rate)
        shares.append(share)
    if more:
        return [
            Figure("catch-up, compressed: ratio to own appends", statistics.median(ratios), "x"),
            Figure(
                "bytes on the wire, compressed, ratio to the records", statistics.median(shares), "x", note="zlib 1"
            ),
        ]
    note = f"{count:,} deltas, two processes, loopback TLS 1.3, signed, synced; against append_nowait and flush"
    return [
        Figure("catch-up: ratio to the receiver's own appends", statistics.median(ratios), "x", ">= 0.5", note),
        Figure("catch-up", statistics.median(rates), "deltas/s"),
        Figure("bytes on the wire, ratio to the encoded records", statistics.median(shares), "x", "<= 1.05", "plain"),
    ]


async def _own_rate(path: Path, count: int) -> float:
    async with open_log(path, source="bob") as log:
        rng = random.Random(1)
        payloads = [edit(rng) for _ in range(count)]
        start = time.perf_counter()
        await append_all(log, payloads)
        return count / (time.perf_counter() - start)


async def _fetch(path: Path, address: str, count: int) -> tuple[float, float]:
    async with opened(path, BOB, ALICE) as (log, _, connect):
        start = time.perf_counter()
        async with connect(address) as mesh:
            await mesh.wait(lambda: log.synced_seq("alice") == count)
            taken = time.perf_counter() - start
            (status,) = mesh.statuses()
            sizes = await log.sizes()
    return count / taken, status.traffic.bytes_in / sizes.record_bytes


def _live(alone: int, many: int) -> list[Figure]:
    figures = []
    for count, rate, name in ((alone, 0, "one at a time"), (many, 5_000, "at 5,000/s")):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            with _alice(path, "--live", str(count), "--rate", str(rate)) as (child, address):
                delays = trio.run(_delays, path / "bob", address, child, count)
        for share in (0.5, 0.99):
            note = "append to visible on the peer, fsync included" if share == 0.5 else ""
            text = f"live latency {name}, p{share * 100:.0f}"
            figures.append(Figure(text, 1000 * percentile(delays, share), "ms", note=note))
    return figures


async def _delays(path: Path, address: str, child: subprocess.Popen[str], count: int) -> list[float]:
    delays: list[float] = []
    async with opened(path, BOB, ALICE) as (log, _, connect), connect(address) as mesh:
        await mesh.equal("alice")
        subscription = log.subscribe()
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        while len(delays) < count:
            page = await subscription.page()
            now = time.perf_counter()  # CLOCK_MONOTONIC: the same in both processes
            delays += [now - delta.payload for delta in page if delta.source == "alice"]
    return delays


# -------------------------------------------------------------------------------------------------------------- models


def _heads(sources: int) -> Figure:
    """Bytes of a heads exchange of which one source differs."""
    here, there = HeadsIndex(), HeadsIndex()
    for number in range(sources):
        name = f"source-{number:012}"
        for index in (here, there):
            index.put(name, 5 + (number == 7 and index is here), genesis(name))
    ours, theirs = Comparison(here), Comparison(there)
    size, turn = 0, theirs
    answer: list[comparison.Part] | None = ours.start()
    while answer is not None:
        frame = encode(Compare(tuple(comparison.encode(answer))))
        size += len(frame)
        answer = turn.receive(comparison.decode(comparison.encode(answer))).answer
        turn = ours if turn is theirs else theirs
    return Figure(f"heads exchange, 1 changed of {sources:,}", size, "bytes")


def _edges(nodes: int, shape: str) -> list[tuple[int, int]]:
    ring = [(number, (number + 1) % nodes) for number in range(nodes)]
    if shape == "ring":
        return ring
    rng = random.Random(nodes)
    chords = {tuple(sorted(rng.sample(range(nodes), 2))) for _ in range(nodes)}
    return ring + [(a, b) for a, b in sorted(chords) if (a, b) not in ring and (b, a) not in ring]


async def _heal(nodes: int, shape: str) -> list[Figure]:
    """Write on both sides of a partition, heal it: virtual time and bytes until all are equal."""
    world = World(names=[f"n{number:02}" for number in range(nodes)])
    dials: dict[int, list[str]] = {number: [] for number in range(nodes)}
    for a, b in _edges(nodes, shape):
        dials[max(a, b)].append(world.names[min(a, b)])
    async with AsyncExitStack() as stack:
        members: list[Node] = []
        for number, name in enumerate(world.names):
            members.append(await stack.enter_async_context(world.node(name, *dials[number])))
        for node in members:
            node.append(1)
        await converged(*members)
        world.network.partition(world.names[: nodes // 2], world.names[nodes // 2 :], cut=True)
        for node in members:
            node.append(FEW)
        await trio.sleep(30)
        before = _bytes(members)
        world.network.heal()
        start = trio.current_time()
        await converged(*members)
        taken, moved = trio.current_time() - start, _bytes(members) - before
        records = sum(len(delta.record) for delta in await members[0].all())
    text = f"{nodes} nodes, {shape}"
    return [
        Figure(f"healed partition, {text}: time to equality", taken, "s", note="virtual; includes dialling again"),
        Figure(f"healed partition, {text}: bytes", moved, "bytes", note=f"all records together: {records:,}"),
    ]


def _bytes(members: list[Any]) -> int:
    return sum(status.traffic.bytes_in for node in members for status in node.mesh.statuses())
