"""Programs that open an audit trail, in a process of their own, by zygote.

audit_churn PATH SEED     for ever: log in bursts, require, flush, reserve tokens, truncate, compact, in random order
audit_inspect PATH        open, read and verify everything, close; say what was found

Churn says what it asks for before it asks for it, and what was acknowledged as durable. Its events carry their place in
their life, so whoever looks sees whether what is left is a prefix.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from audit.event import Action, AuditEvent
from audit.opening import Trail, TrailOptions, open_trail
from audit.query import Query
from audit.recorder import Overflow, RecorderOptions
from deltalog.manager import open_manager
from tests.crash.inspection import NO_UPKEEP, Say

OPTIONS = TrailOptions(recorder=RecorderOptions(interval_s=0.01, policies={Action.ACQUIRED: Overflow.REQUIRE}))


class Churn:
    """One random step after the other."""

    def __init__(self, trail: Trail, chance: random.Random, seed: str, say: Say) -> None:
        self.trail = trail
        self.chance = chance
        self.seed = seed
        self.say = say
        self.count = 0
        self.tokens = trail.store.tokens

    def event(self, action: Action) -> AuditEvent:
        self.count += 1
        target = self.chance.choice(("src/app.py", "src/lib.py:1-9", "docs/"))
        holder = self.chance.choice("abc")
        return AuditEvent(self.trail.clock.tick(), action, target, holder, "", self.seed, 0, {"n": str(self.count)})

    async def burst(self) -> None:
        for _ in range(self.chance.choice((1, 20, 300, 1500))):
            self.trail.recorder.log(self.event(Action.RELEASED))
        self.say({"logged": self.count})
        await trio.sleep(self.chance.choice((0, 0.002, 0.02)))

    async def require(self) -> None:
        event = self.event(Action.ACQUIRED)
        await self.trail.recorder.submit(event)
        self.say({"durable": self.count})

    async def flush(self) -> None:
        await self.trail.recorder.flush()
        self.say({"durable": self.count})

    async def reserve(self) -> None:
        self.tokens += 1000
        await trio.to_thread.run_sync(self.trail.reserve_tokens, self.tokens)
        self.say({"reserved": self.tokens})

    async def truncate(self) -> None:
        head = self.trail.store.head
        if head.count > 10:
            floor = self.chance.randrange(head.floor, head.number)
            await trio.to_thread.run_sync(self.trail.store.truncate, floor)

    async def compact(self) -> None:
        await trio.to_thread.run_sync(partial(self.trail.store.compact, if_needed=True))

    async def step(self) -> None:
        steps = {self.burst: 12, self.require: 6, self.flush: 3, self.reserve: 3, self.truncate: 2, self.compact: 1}
        (chosen,) = self.chance.choices(list(steps), list(steps.values()))
        await chosen()


async def churn(say: Say, path: str, seed: str) -> None:
    async with (
        open_manager(Path(path), source="a", upkeep=NO_UPKEEP, reserve_bytes=0) as manager,
        open_trail(manager, options=OPTIONS) as trail,
    ):
        await trail.recorder.flush()
        say({"opened": seed})
        steps = Churn(trail, random.Random(seed), seed, say)
        while True:
            await steps.step()


async def inspect(say: Say, path: str) -> None:
    async with (
        open_manager(Path(path), source="a", upkeep=NO_UPKEEP, reserve_bytes=0) as manager,
        open_trail(manager, options=OPTIONS) as trail,
    ):
        await trail.recorder.flush()
        report = await trail.verify()
        found: dict[str, list[int]] = {}
        starts = []
        async for each in trail.reader.stream(Query()):
            event = each.event
            if event.action is Action.STARTED:
                starts.append(event.metadata["unclean"])
            elif "n" in event.metadata:
                found.setdefault(event.lock_id, []).append(int(event.metadata["n"]))
        ranges = {seed: [numbers[0], numbers[-1], len(numbers)] for seed, numbers in found.items()}
        findings = [f"{each.kind} {each.number}: {each.message}" for each in report.findings]
        head = trail.store.head
        say({"findings": findings, "ranges": ranges, "starts": starts, "tokens": trail.store.tokens,
             "floor": head.floor, "number": head.number})  # fmt: skip


PROGRAMS: dict[str, Callable[..., None]] = {
    "audit_churn": lambda say, path, seed: trio.run(churn, say, path, seed),
    "audit_inspect": lambda say, path: trio.run(inspect, say, path),
}
