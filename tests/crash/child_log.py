"""Programs that open a log, in a process of their own: `python -m tests.crash.child_log PROGRAM ...`, or by zygote.

churn PATH SEED          for ever: append, receive, flush, truncate, erase, compact, read, in random order
script PATH ARMED        the same each time: four sessions that reach every failpoint (see `script`)
inspect PATH OPTIONS     open, read and verify everything, append two deltas, close; say what was found
hits PATH                `script`, then say how often each failpoint was reached
sample PATH              a log with something in every kind of file, left by a killed process

Each says, one JSON line each: what it handed out or applied, what was acknowledged as durable, what it asks for before
it asks for it. `history.Known` takes that in.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from deltalog import failpoints
from deltalog.delta import Delta
from deltalog.errors import (
    BelowFloor,
    LogReadOnly,
    RingFull,
    StoreFull,
    StoreIOError,
)
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Manager, open_manager
from tests.crash.history import COUNTED, REMOTE, SOURCE, fingerprint
from tests.crash.inspection import NO_UPKEEP, Say, inspect
from tests.deltalog.directories import flip, killed, wal


def told(deltas: list[Delta]) -> dict[str, Any]:
    """These are handed out, or applied."""
    return {"handed": [(delta.source, delta.seq, fingerprint(delta)) for delta in deltas]}


# -------------------------------------------------------------------------------------------------------------- churn


class Churn:
    """One random step after the other."""

    def __init__(self, manager: Manager, chance: random.Random, say: Say) -> None:
        self.manager = manager
        self.log: DeltaLog = manager.log
        self.chance = chance
        self.say = say

    async def step(self) -> None:
        steps = {
            self.append: 30,
            self.receive: 20,
            self.flush: 12,
            self.append_durably: 12,
            self.rest: 12,
            self.truncate: 3,
            self.erase: 3,
            self.annotate: 6,
            self.compact: 1,
            self.flush_store: 2,
            self.read: 5,
        }
        (chosen,) = self.chance.choices(list(steps), list(steps.values()))
        await chosen()

    def payload(self) -> bytes:
        return self.chance.randbytes(self.chance.choice((0, 8, 40, 200, 3000)))

    async def append(self) -> None:
        deltas = []
        with suppress(RingFull):
            for index in range(self.chance.randrange(1, 60)):
                deltas.append(self.log.append_nowait(self.payload(), key=f"k{index % 7}"))  # noqa: PERF401  # until full
        self.say(told(deltas))

    async def append_durably(self) -> None:
        await _append_durably(self.log, self.say, self.payload())

    async def receive(self) -> None:
        heads = self.log.heads
        missing = [delta for delta in REMOTE if delta.seq > heads.get(delta.source, 0)]
        some = missing[: self.chance.randrange(1, 120)]
        self.chance.shuffle(some)
        receipt = await self.log.receive(some + self.chance.sample(REMOTE, 5))
        assert not receipt.refused, receipt.refused
        applied = {delta.dot: delta for delta in REMOTE}
        self.say(told([applied[dot] for dot in receipt.applied]))

    async def flush(self) -> None:
        heads = dict(self.log.heads)
        await self.log.flush()
        self.say({"durable": heads})

    async def rest(self) -> None:
        await trio.sleep(self.chance.uniform(0, 0.003))

    async def truncate(self) -> None:
        synced = self.log.synced
        floors = {s: self.chance.randrange(seq // 3, seq // 2 + 1) for s, seq in synced.items() if seq > 1}
        if floors:
            self.say({"truncating": floors})
            done = await self.log.truncate(until=floors)
            self.say({"truncated": dict(done.floor)})

    async def erase(self) -> None:
        source, head = self.chance.choice([*self.log.heads.items(), (self.log.source, 0)])
        if head:
            dot = source, self.chance.randrange(1, head + 1)
            self.say({"erasing": dot})
            try:
                await self.log.erase(dot, "a reason")
            except BelowFloor:
                return
            self.say({"erased": dot})

    async def annotate(self) -> None:
        await annotate(self.log, self.say)

    async def compact(self) -> None:
        await self.log.compact()

    async def flush_store(self) -> None:
        await self.manager.flush()

    async def read(self) -> None:
        async for delta in self.log.by_source(self.log.source, reverse=True):
            if self.chance.random() < 0.02:
                break
            assert delta.source == self.log.source


def churn(say: Say, path: str, seed: str) -> None:
    """For ever, or until something ends it."""
    chance = random.Random(seed)
    options = LogOptions(sync_interval_s=chance.choice((0.0, 0.002, 0.02)), ring_deltas=chance.choice((200, 5000)))

    async def main() -> None:
        async with open_manager(
            path, source=SOURCE, options=options, upkeep=NO_UPKEEP, reserve_bytes=chance.choice((0, 1 << 20))
        ) as manager:
            say({"opened": manager.startup.kind})
            steps = Churn(manager, chance, say)
            while True:
                await steps.step()

    trio.run(main)


# ------------------------------------------------------------------------------------------------------------- script

ACTIONS: Mapping[str, Callable[[str], BaseException | None]] = {
    "kill": lambda _: None,
    "delay": lambda _: None,
    "bug": lambda _: ZeroDivisionError("injected"),
    "ENOSPC": lambda point: OSError(28, "injected") if _sees_the_system(point) else StoreFull("injected"),
    "EIO": lambda point: OSError(5, "injected") if _sees_the_system(point) else StoreIOError("injected"),
}
"""What may happen at a failpoint, and what is raised there."""


def _sees_the_system(point: str) -> bool:
    """Whether an OSError can come up there; everywhere else it was mapped before."""
    return point.startswith(("directory.", "witness.", "salvage."))


def arm(point: str, action: str, hit: int) -> None:
    """Do something the `hit`th time that a failpoint is reached."""
    left = hit

    def act() -> None:
        nonlocal left
        left -= 1
        if left == 0 and action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif left == 0 and action == "delay":
            time.sleep(0.05)
        elif left == 0 and (error := ACTIONS[action](point)) is not None:
            raise error

    failpoints.arm(point, act)


_ONCE = "a disk that fails once"


class OneFailure:
    """Threads, in which one call of `persist` fails, as a disk does."""

    def __init__(self) -> None:
        self.due = False

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.due and getattr(function, "__name__", "") == "persist":
            self.due = False
            raise StoreIOError(_ONCE)
        return await trio.to_thread.run_sync(function, *args)


def script(say: Say, path: str, armed: str = "", sessions: str = "0123") -> None:
    """Sessions, each as far as it comes: 0 made; 1 in use with upkeep; 2 killed with a damaged log; 3 salvaged.

    armed: "POINT ACTION HIT" makes a failpoint do something.
    """
    if armed:
        point, action, hit = armed.split()
        arm(point, action, int(hit))
    for number in map(int, sessions):
        try:
            (_first, _second, _third, _first)[number](say, path)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # a failed session is told, and the next one tries
            say({"ended": [number, type(error).__name__, str(error)]})


async def _use(log: DeltaLog, say: Say, count: int) -> None:
    """Append, receive, flush."""
    say(told([log.append_nowait(["payload", number], key="k") for number in range(count)]))
    missing = [delta for delta in REMOTE if delta.seq > log.heads.get(delta.source, 0)][:count]
    receipt = await log.receive(missing)
    say(told([delta for delta in missing if delta.dot in set(receipt.applied)]))
    heads = dict(log.heads)
    await _settled(log.flush)
    say({"durable": heads})
    await _append_durably(log, say, "durable")


async def annotate(log: DeltaLog, say: Say) -> None:
    """Count one up."""
    count = int(await log.annotation(COUNTED) or 0) + 1
    say({"annotating": count})
    await log.annotate({COUNTED: b"%d" % count})
    say({"annotated": count})


async def _append_durably(log: DeltaLog, say: Say, payload: object) -> None:
    """Say its dot beforehand: an append that fails while it waits has been accepted, and may be stored later."""
    say({"appending": [log.source, log.heads.get(log.source, 0) + 1]})
    delta = await log.append(payload, durable=True)
    say({**told([delta]), "durable": {delta.source: delta.seq}})


async def _settled(wait: Callable[[], Any]) -> None:
    """Wait; through a time without room, and through the one failure, too. A failure that stays comes out."""
    with trio.fail_after(20):
        while True:
            try:
                await wait()
                return
            except LogReadOnly as error:
                if not error.retryable and _ONCE not in str(error):
                    raise
                await trio.sleep(0.001)


def _first(say: Say, path: str) -> None:
    async def main() -> None:
        async with open_manager(path, source=SOURCE, upkeep=NO_UPKEEP, reserve_bytes=64 << 10) as manager:
            await _use(manager.log, say, 40)

    trio.run(main)


def _second(say: Say, path: str) -> None:
    async def main() -> None:
        upkeep = attrs.evolve(NO_UPKEEP, flush_interval_s=0.02)
        threads = OneFailure()
        async with open_manager(path, source=SOURCE, upkeep=upkeep, reserve_bytes=64 << 10, offload=threads) as manager:
            log = manager.log
            for _ in range(3):
                await _use(log, say, 20)
            threads.due = True
            say(told([log.append_nowait("through a failure")]))
            await _settled(log.flush)
            floors = {log.source: min(30, log.synced[log.source])}
            say({"truncating": floors})
            say({"truncated": dict((await log.truncate(until=floors)).floor)})
            dot = log.source, log.synced[log.source] - 1
            say({"erasing": dot})
            await log.erase(dot, "a reason")
            say({"erased": dot})
            await annotate(log, say)
            await log.compact()
            await trio.sleep(0.03)  # into a round of upkeep
            await _use(log, say, 5)

    trio.run(main)


def _third(say: Say, path: str) -> None:
    """Ends as a killed process does; then a bit flips in what it had written and not synced."""
    with killed(Path(path)) as opened:
        say(told(opened.write(3)))
        say({"durable": {opened.source: opened.heads[opened.source]}})
        say(told(opened.write(3, sync=False) + opened.hand_out(2)))
    flip(wal(Path(path)), -10)


def sample(say: Say, path: str) -> None:
    """Sorted files on two levels, a log with 40 fsynced writes and 5 that are not, 2 deltas handed out."""

    async def main() -> None:
        async with open_manager(path, source=SOURCE, upkeep=NO_UPKEEP, reserve_bytes=64 << 10) as manager:
            log = manager.log
            chance = random.Random(1)
            for number in range(6):
                say(told([log.append_nowait(chance.randbytes(2000)) for _ in range(30)]))
                await _use(log, say, 40)
                if number == 2:
                    say({"truncating": {SOURCE: 20}})
                    say({"truncated": dict((await log.truncate(until={SOURCE: 20})).floor)})
                    say({"erasing": [SOURCE, 50]})
                    await log.erase((SOURCE, 50), "a reason")
                    say({"erased": [SOURCE, 50]})
                    await log.compact()
                if number == 4:
                    await manager.flush()

    trio.run(main)
    with killed(Path(path), reserve_bytes=64 << 10) as opened:
        for _ in range(40):
            say(told(opened.write(1)))
        say({"durable": opened.heads})
        say(told(opened.write(5, sync=False) + opened.hand_out(2)))


def hits(say: Say, path: str) -> None:
    """Say how often the script reaches each failpoint."""
    count: Counter[str] = Counter()
    for point in failpoints.POINTS:
        failpoints.arm(point, lambda point=point: count.update([point]))  # type: ignore[misc]
    script(say, path)
    say({"hits": count})


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program for program in (churn, script, hits, sample, inspect)
}


def main(program: str, *arguments: str) -> None:
    """Run one of them, with standard output to speak to."""

    def say(line: Any) -> None:
        os.write(1, json.dumps(line).encode() + b"\n")

    PROGRAMS[program](say, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
