"""The audit trail: events taken in a burst and for long, and queries of 100 hits in trails of two sizes."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from audit.event import Action, AuditEvent
from audit.opening import Trail, open_trail
from audit.query import Query
from audit.reader import Reader
from audit.store import FAMILIES, AuditStore
from benchmarks.report import Figure
from deltalog.clock import pack
from deltalog.manager import open_manager
from deltalog.rocks import Rocks, SharedMemory

HITS = 100
RATE = 10_000
_BURST = 65_536
_FILES = [f"src/part{number // 20}/module_{number:03}.py" for number in range(200)]
_BASE_MS = 1_700_000_000_000


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    figures = trio.run(_burst, int(_BURST * min(1.0, scale)))
    figures += trio.run(_sustained, max(1.0, 10 * scale))
    sizes = int(100_000 * scale), int(1_000_000 * scale)
    answers = [trio.run(_queries, size) for size in sizes]
    for name in answers[0]:
        small, large = (each[name] for each in answers)
        note = f"{HITS} hits among {sizes[1]:,}, as a page of events"
        figures.append(Figure(f"audit query by {name}", large * 1000, "ms", "< 10", note))
        figures.append(Figure(f"audit query by {name}: {sizes[1]:,} against {sizes[0]:,}", large / small, "x"))
    return figures


@asynccontextmanager
async def _opened() -> AsyncIterator[Trail]:
    with tempfile.TemporaryDirectory() as directory:
        async with (
            open_manager(Path(directory) / "data", source="bench", reserve_bytes=0) as manager,
            open_trail(manager) as trail,
        ):
            await trail.recorder.flush()
            yield trail


def _event(chance: random.Random, timestamp: int, number: int, holder: str = "", target: str = "") -> AuditEvent:
    """What a lock makes: an agent acquires or releases a part of a file."""
    action = Action.RELEASED if number % 2 else Action.ACQUIRED
    line = chance.randrange(1, 900)
    target = target or f"{chance.choice(_FILES)}:{line}-{line + 20}"
    holder = holder or f"agent-{chance.randrange(64)}"
    return AuditEvent(
        timestamp, action, target, holder, holder, f"lock-{number // 2}", number // 2, {"mode": "exclusive"}
    )


async def _burst(count: int) -> list[Figure]:
    """One burst of the buffer's size, taken one at a time; then how long it takes until all of it is on disk."""
    chance = random.Random(1)
    rates, drains = [], []
    for _ in range(3):
        async with _opened() as trail:
            events = [_event(chance, trail.clock.tick(), number) for number in range(count)]
            log = trail.recorder.log
            start = time.perf_counter()
            for event in events:
                log(event)
            taken = time.perf_counter()
            await trail.recorder.flush()
            rates.append(count / (taken - start))
            drains.append(count / (time.perf_counter() - start))
            assert trail.recorder.statistics().dropped_total == 0
    note = f"a burst of {count:,}, one call each"
    return [
        Figure("audit events taken", statistics.median(rates), "events/s", ">= 200,000", note),
        Figure("audit events recorded", statistics.median(drains), "events/s", "", "the same until all is fsynced"),
    ]


async def _sustained(seconds: float) -> list[Figure]:
    """So many events a second for so long, with whatever else the loop does in between."""
    chance = random.Random(2)
    step_s = 0.01
    async with _opened() as trail:
        base = [_event(chance, 0, number) for number in range(2_000)]
        logged, start, cpu = 0, trio.current_time(), time.process_time()
        making = 0.0
        while (now := trio.current_time() - start) < seconds:
            due = int(now * RATE)
            before = time.process_time()
            while logged < due:
                event = base[logged % len(base)]
                fields = event.action, event.target, event.holder_id, event.holder_name, event.lock_id
                trail.recorder.log(AuditEvent(trail.clock.tick(), *fields))
                logged += 1
            making += time.process_time() - before
            await trio.sleep(step_s)
        await trail.recorder.flush()
        share = (time.process_time() - cpu) / (trio.current_time() - start)
        dropped = trail.recorder.statistics().dropped_total
    note = f"{logged:,} events at {RATE:,}/s for {seconds:g} s"
    return [
        Figure("audit events dropped, sustained", dropped, "events", "<= 0", note),
        Figure(
            "audit: share of one processor, sustained",
            share,
            "",
            "",
            f"making the events: {making / seconds:.2f} of it",
        ),
    ]


async def _queries(count: int) -> dict[str, float]:
    """Seconds of a page of `HITS` events, by question."""
    chance = random.Random(3)
    every = count // HITS
    with tempfile.TemporaryDirectory() as directory:
        memory = SharedMemory()
        Rocks.create(Path(directory) / "audit", FAMILIES, memory).close()
        store = AuditStore(lambda: Rocks.open(Path(directory) / "audit", FAMILIES, memory))
        for start in range(0, count, 1_000):
            store.write([_queried(chance, number, every) for number in range(start, min(start + 1_000, count))])
        store.compact()
        middle = _BASE_MS + count // 2
        questions = {
            "holder": Query(holder="rare", limit=HITS),
            "target": Query(target="src/rare.py", limit=HITS),
            "action and time": Query(
                actions=(Action.ACQUIRED,), after=pack(middle), until=pack(middle + 2 * HITS), limit=HITS
            ),
        }
        reader = Reader(store)
        times = {name: await _median_s(reader, query) for name, query in questions.items()}
        store.close()
        return times


def _queried(chance: random.Random, number: int, every: int) -> AuditEvent:
    """Every so-manieth event is of the holder and the target that the questions ask for."""
    timestamp = pack(_BASE_MS + number + 1)
    if number % every == 0:
        return _event(chance, timestamp, number, holder="rare")
    return _event(chance, timestamp, number, target="src/rare.py" if number % every == every // 2 else "")


async def _median_s(reader: Reader, query: Query) -> float:
    times: list[float] = []
    for _ in range(21):
        start = time.perf_counter()
        page = await reader.query(query)
        times.append(time.perf_counter() - start)
        assert len(page.events) == HITS, (query, len(page.events))
    return statistics.median(times)
