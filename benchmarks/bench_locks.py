"""Locks: what acquire and release cost with few and with many locks held, at the table and through `Locks`."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from audit.event import Action, AuditEvent
from audit.lease import Holder, LockOptions
from audit.lock_table import LockTable, State
from audit.locks import Locks, open_locks
from audit.target import Target
from audit.tokens import Tokens
from benchmarks.report import Figure, median_of
from deltalog.app.node import open_node

_HELD = (10, 1_000, 100_000)
_HOLDER = Holder("bench")
_OPTIONS = LockOptions(locks_max=200_000, locks_per_holder_max=200_000, token_block=1_000_000)


class Silent:
    """A trail that keeps nothing: the locks' own cost."""

    def log(self, event: AuditEvent) -> None:
        """Take an event."""

    async def submit(self, event: AuditEvent) -> None:
        """Take an event."""


class Forgetful:
    """Reservations that cost nothing."""

    def reserve(self, upto: int) -> None:
        """Note it."""


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    count = int(20_000 * scale) or 200
    figures = []
    for layout, target_of in (("over 1,000 files", _spread), ("in one file", _lines)):
        for held in _HELD:
            cost = _table_cost(held, count, target_of)
            figures.append(Figure(f"lock table, {held:,} held {layout}: request, take, release", 1e6 * cost, "us"))
    for held in _HELD:
        cost = trio.run(_locks_cost, held, count)
        figures.append(Figure(f"acquire + release, {held:,} held, no trail", 1e6 * cost, "us"))
    return figures + _audited(count)


def _audited(count: int) -> list[Figure]:
    """Acquire and release with a trail on disk, against the same with a trail that keeps nothing; in turn, thrice."""
    rounds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as directory:
            rounds.append((trio.run(_node_cost, Path(directory), count), trio.run(_locks_cost, 10, count)))
    recorded, alone = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median([each / silent for each, silent in rounds])
    note = "every event recorded; background work included"
    return [
        Figure("acquire + release, audited", 1e6 * recorded, "us"),
        Figure("acquire + release, not audited", 1e6 * alone, "us"),
        Figure("acquire + release: with audit against without", ratio, "x", "<= 1.5", note),
    ]


async def _node_cost(path: Path, count: int) -> float:
    """Seconds for one acquire and release, with their events on their way to disk."""
    async with open_node(path, locks=_OPTIONS) as node:
        for number in range(10):
            await node.locks.acquire(_spread(number), _HOLDER, ttl_s=300)
        cost = await _acquired(node.locks, 10, count)
        assert not node.trail.recorder.statistics().dropped
        return cost


def _spread(number: int) -> Target:
    return Target(f"src/part_{number % 20}/module_{number % 1_000}.py", (1 + 10 * number, 10 + 10 * number))


def _lines(number: int) -> Target:
    return Target("src/big.py", (1 + 10 * number, 10 + 10 * number))


def _table_cost(held: int, count: int, target_of: Callable[[int], Target]) -> float:
    """Seconds for one request, take and release, without events."""
    tokens = Tokens(0, 1_000_000)
    tokens.extend(1_000_000)
    numbers = iter(range(10_000_000))
    table = LockTable(tokens, _OPTIONS, lambda: (str(next(numbers)), ""))
    for number in range(held):
        request, _ = table.request([target_of(number)], _HOLDER, 0.0)
        table.take(request, 0.0)
    targets = [target_of(held + number % 1_000) for number in range(count)]

    def once() -> float:
        start = time.perf_counter()
        for target in targets:
            request, _ = table.request([target], _HOLDER, 0.0)
            table.take(request, 0.0)
            assert request.state is State.HELD
            table.begin_end(request, Action.RELEASED)
            table.finish_end(request, 0.0, "released")
        return (time.perf_counter() - start) / count

    return _measured(once)


def _measured(once: Callable[[], float]) -> float:
    gc.freeze()  # what is held is not the figure: keep the collector from walking it
    try:
        return median_of(3, once)
    finally:
        gc.unfreeze()


async def _locks_cost(held: int, count: int) -> float:
    """Seconds for one acquire and release, with their events made and thrown away."""
    async with open_locks(Silent(), Forgetful(), 0, options=_OPTIONS, offload=_inline) as locks:
        for number in range(held):
            await locks.acquire(_spread(number), _HOLDER, ttl_s=300)
        return await _acquired(locks, held, count)


async def _acquired(locks: Locks, held: int, count: int) -> float:
    """Seconds for one acquire and release, beside `held` others: the median of three rounds."""
    targets = [_spread(held + number % 1_000) for number in range(count)]
    taken = []
    gc.freeze()
    for _ in range(3):
        start = time.perf_counter()
        for target in targets:
            await locks.release(await locks.acquire(target, _HOLDER))
        taken.append((time.perf_counter() - start) / count)
    gc.unfreeze()
    return statistics.median(taken)


async def _inline(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)
