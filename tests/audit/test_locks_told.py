"""What the trail answers about locks is what was so: who held what, at every moment and for every target."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from audit.errors import AuditUnavailable, LeaseLost, LockConflict, LockTimeout
from audit.lease import Holder, Lease, Mode
from audit.locks import Locks, open_locks
from audit.reader import Reader
from audit.recorder import Overflow, RecorderOptions
from audit.target import Target
from deltalog.clock import Clock
from tests.audit.test_locks import Reserved, inline
from tests.audit.test_recorder import recording

TARGETS = tuple(
    map(
        Target.parse,
        (
            "src/",
            "src/a/",
            "src/a/b.py",
            "src/a/b.py:1-9",
            "src/a/b.py:5-20",
            "src/a/b.py:30-40",
            "src/a/b.py#class:App",
            "src",
            "doc.md",
        ),
    )
)
STEPS = 30
Seen = list[tuple[int, Target, list[tuple[str, int]]]]
"""When, what was looked at, and who held it with which token."""
WORKERS = 4


async def work(locks: Locks, name: str, chance: random.Random) -> None:
    """One holder: acquires, renews, releases, forgets, gives up."""
    for _ in range(STEPS):
        wanted = chance.sample(TARGETS, chance.choice((1, 1, 2)))
        mode = chance.choice(list(Mode))
        try:
            with trio.move_on_after(chance.choice((0.5, 100))):
                lease = await locks.acquire(
                    wanted, Holder(name), mode=mode, ttl_s=chance.choice((1, 5)), wait_s=chance.choice((0, 1, 9))
                )
                await use(locks, lease, chance)
        except (LockConflict, LockTimeout, LeaseLost, AuditUnavailable):
            continue


async def use(locks: Locks, lease: Lease, chance: random.Random) -> None:
    await trio.sleep(chance.choice((0, 0.3, 2)))
    match chance.randrange(4):
        case 0:
            await locks.renew(lease)
        case 1:
            await locks.revoke(lease.token, "wanted elsewhere")
        case 2:
            return
    await trio.sleep(chance.choice((0, 0.3)))
    await locks.release(lease)


@pytest.mark.parametrize("policy", [Overflow.WAIT, Overflow.REQUIRE])
async def test_who_held_what_at_any_time(tmp_path: Path, autojump_clock: MockClock, policy: Overflow) -> None:
    chance = random.Random(policy)
    options = RecorderOptions(policy=policy, interval_s=0.1)
    seen: Seen = []
    async with (
        recording(tmp_path, options) as it,
        open_locks(it.recorder, Reserved(), 0, clock=it.recorder.clock, offload=inline) as locks,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, locks, it.recorder.clock, chance, seen)
            async with trio.open_nursery() as workers:
                for number in range(WORKERS):
                    workers.start_soon(work, locks, f"w{number}", random.Random(f"{policy}/{number}"))
            nursery.cancel_scope.cancel()
        await it.recorder.flush()
        reader = Reader(it.store)
        for at, target, held in seen:
            found = [(each.event.holder_id, each.event.token) for each in await reader.held(target, at)]
            assert sorted(set(found)) == held, f"{target} at {at}"
    count = sum(len(held) > 0 for *_, held in seen)
    assert count > 50


async def watch(locks: Locks, clock: Clock, chance: random.Random, seen: Seen) -> None:
    """Look now and then."""
    while True:
        await trio.sleep(0.21378)  # never when something happens: a lock that is just passed on is in two hands
        target = chance.choice(TARGETS)
        held = sorted((lease.holder_id, lease.token) for lease in locks.leases(target=target))
        seen.append((clock.last, target, held))
