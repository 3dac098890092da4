"""A program that opens a whole node, looks at what earlier lives left, and then lets tasks contend for its locks.

locks_churn PATH SEED HOW STALE      HOW: "async", "strict" (a grant is told when its event is durable) or "look" (only
                                     say what is there and close). STALE: [key, token, lock id] of leases of earlier
                                     lives, none of which may be of any use here

It says what it was given when it has it, what it gives up before it does, and what the log took or refused; whoever
looks on decides whether that may be. Each line with a lease says when it was taken and when it lapses, on the clock of
the locks, and `ts`, a timestamp that no event recorded by then exceeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from audit.errors import LeaseLost, LockConflict, LockTimeout, RenewalsExhausted
from audit.event import Action, Recorded
from audit.lease import Holder, Lease, LockOptions, Mode
from audit.opening import TrailOptions
from audit.query import Query
from audit.recorder import Overflow, RecorderOptions
from audit.target import Target
from deltalog.app.node import Node, open_node
from deltalog.errors import StaleToken
from tests.crash.inspection import NO_UPKEEP, Say

TARGETS = ("src/", "src/app.py", "src/app.py:1-10", "src/app.py:8-20", "src/app.py:21-30", "src/lib.py", "doc.md")
WORKERS = 5
TTLS_S = (0.01, 0.01, 0.02, 0.1)
LOCKS = LockOptions(ttl_s_min=0.01, ttl_s_default=0.03, renewals_max=8, token_block=8)
"""Blocks so small that there is always one being reserved when the kill comes."""
ASYNC = TrailOptions(recorder=RecorderOptions(interval_s=0.02))
STRICT = TrailOptions(
    recorder=RecorderOptions(interval_s=0.02, require_s=20, policies={Action.ACQUIRED: Overflow.REQUIRE})
)


class Worker:
    """One holder, taking one random step after the other."""

    def __init__(self, node: Node, name: str, chance: random.Random, say: Say, forgotten: list[Lease]) -> None:
        self.node = node
        self.holder = Holder(name)
        self.chance = chance
        self._say = say
        self.forgotten = forgotten
        """Leases that nobody gave back."""

    def say(self, what: str, lease: Lease, **more: Any) -> None:
        told = {"do": what, "token": lease.token, "ts": self.node.trail.clock.last}
        self._say({**told, **more})

    def given(self, what: str, lease: Lease) -> None:
        keys = [str(target) for target in lease.targets]
        taken = lease.deadline_s - lease.ttl_s
        self.say(what, lease, id=lease.lock_id, keys=keys, taken=taken, until=lease.deadline_s)

    def write(self, lease: Lease) -> None:
        """Write under a lease that may be over: the log decides."""
        key = str(self.chance.choice(lease.targets))
        try:
            self.node.log.append_nowait({"token": lease.token}, key=key, fence=lease.token)
        except StaleToken:
            self.say("refused", lease, key=key)
        else:
            self.say("wrote", lease, key=key)

    async def step(self) -> None:
        chance = self.chance
        targets = [Target.parse(text) for text in chance.sample(TARGETS, chance.choice((1, 1, 1, 2)))]
        asked: dict[str, Any] = {"ttl_s": chance.choice(TTLS_S), "wait_s": chance.choice((0, 0.003, 0.02))}
        try:
            if chance.random() < 0.2:
                await self.hold(targets, asked)
            else:
                await self.use(await self.node.locks.acquire(targets, self.holder, **asked))
        except (LockConflict, LockTimeout):
            pass
        except LeaseLost as lost:  # while it was being recorded, or under hold
            self._say({"do": "lost", "token": lost.token, "ts": self.node.trail.clock.last})
        await trio.sleep(chance.choice((0, 0.001)))

    async def hold(self, targets: Sequence[Target], asked: dict[str, Any]) -> None:
        async with self.node.locks.hold(targets, self.holder, **asked) as lease:
            self.given("granted", lease)
            self.write(lease)
            await trio.sleep(self.chance.choice((0.001, 0.002, 0.02)))
            self.say("ending", lease)

    async def use(self, lease: Lease) -> None:
        self.given("granted", lease)
        self.write(lease)
        if self.chance.random() < 0.3:
            self.forgotten.append(lease)
            return
        for _ in range(self.chance.choice((0, 2, 10))):
            await trio.sleep(self.chance.choice((0.001, 0.003)))
            try:
                lease = await self.node.locks.renew(lease)
            except RenewalsExhausted:
                continue
            self.given("renewed", lease)
            self.write(lease)
        self.say("ending", lease)
        await self.node.locks.release(lease)

    async def late(self) -> None:
        """Come back with a forgotten lease, as if it still held."""
        lease = self.forgotten.pop(0)
        self.say("ending", lease)  # should it hold still
        try:
            await self.node.locks.release(lease)
        except LeaseLost:
            self.say("lost", lease)
        self.write(lease)

    async def run(self) -> None:
        while True:
            await self.step()
            for lease in self.forgotten[-4:]:
                self.write(lease)
            if self.forgotten and self.chance.random() < 0.1:
                await self.late()


async def flush(node: Node, say: Say) -> None:
    """Make what was told so far durable, now and then."""
    while True:
        await trio.sleep(0.015)
        until = node.trail.clock.last
        await node.trail.recorder.flush()
        say({"do": "durable", "ts": until})


# ------------------------------------------------------------------------------------------------- what was left behind


def _brief(each: Recorded) -> list[Any]:
    event = each.event
    last = int(event.metadata.get("last_timestamp", "0"))
    return [event.action, event.target, event.token, event.timestamp, event.metadata.get("unclean", ""), last]


async def look(node: Node, stale: list[list[Any]]) -> dict[str, Any]:
    """Everything in the trail and in the log, and whichever stale lease was of use."""
    await node.trail.recorder.flush()
    report = await node.trail.verify()
    return {
        "opened": node.locks.first_token,
        "findings": [f"{each.kind} {each.number}: {each.message}" for each in report.findings],
        "events": [_brief(each) async for each in node.trail.reader.stream(Query())],
        "writes": [(delta.key, delta.payload["token"]) async for delta in node.log.replay()],
        "useful": [each for each in stale if not await _is_refused(node, *each)],
        "reserved": node.trail.store.tokens,
    }


async def _is_refused(node: Node, key: str, token: int, lock_id: str) -> bool:
    """Whether neither the log nor the locks take a lease of an earlier life."""
    lease = Lease(lock_id, token, Holder("late"), (Target.parse(key),), Mode.EXCLUSIVE, "", 1, 1e12)
    uses: list[Callable[[], Any]] = [lambda: node.locks.renew(lease), lambda: node.locks.release(lease)]
    for use in uses:
        try:
            await use()
        except LeaseLost:
            continue
        return False
    try:
        node.log.append_nowait("late", key=key, fence=token)
    except StaleToken:
        return True
    return False


async def churn(say: Say, path: str, seed: str, how: str, stale: list[list[Any]]) -> None:
    trail = STRICT if how == "strict" else ASYNC
    async with open_node(Path(path), source="a", upkeep=NO_UPKEEP, trail=trail, locks=LOCKS) as node:
        say(await look(node, stale))
        if how == "look":
            return
        forgotten: list[Lease] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, node, say)
            for number in range(WORKERS):
                worker = Worker(node, f"w{number}", random.Random(f"{seed}/{number}"), say, forgotten)
                nursery.start_soon(worker.run)


PROGRAMS: dict[str, Callable[..., None]] = {
    "locks_churn": lambda say, path, seed, how, stale: trio.run(churn, say, path, seed, how, stale),
}
