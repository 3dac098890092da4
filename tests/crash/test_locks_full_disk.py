"""A disk that fills up under locks whose grants must be recorded: no grant without its event, and it goes on by itself.

Strict mode of T14: the trail cannot write, so nobody is given a lock; each acquire fails by its deadline and leaves
nothing behind. What is held stays held, can be released, and keeps others out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from audit.errors import AuditUnavailable, LockConflict, LockTimeout
from audit.event import Action
from audit.lease import Holder, Lease, LockOptions
from audit.opening import TrailOptions
from audit.query import Query
from audit.recorder import Overflow, RecorderOptions
from audit.target import Target
from deltalog.app.node import Node, open_node
from tests.crash.inspection import NO_UPKEEP
from tests.crash.test_full_disk import LIMIT_S, fill, free, small_disk

pytestmark = [pytest.mark.system("tmpfs"), pytest.mark.crash]

TRAIL = TrailOptions(
    recorder=RecorderOptions(interval_s=0.01, require_s=0.2, policies={Action.ACQUIRED: Overflow.REQUIRE})
)
ANN, BOB = Holder("ann"), Holder("bob")
REFUSALS = 5
HANG_S = 10
"""Far beyond the deadlines of the trail and of the tokens."""


async def until_refused(node: Node) -> list[Lease]:
    """Acquire until that was refused some times in a row; return what is held then."""
    granted = node.locks.leases()
    in_a_row = tried = 0
    while in_a_row < REFUSALS:
        tried += 1
        try:
            with trio.fail_after(HANG_S):
                granted.append(await node.locks.acquire(Target(f"f{tried}"), ANN, intention="x" * 900, ttl_s=300))
            in_a_row = 0
        except AuditUnavailable:
            in_a_row += 1
        assert node.locks.leases() == granted, "a refused acquire leaves nothing behind"
    return granted


async def acquired_again(node: Node) -> Lease:
    while True:
        try:
            return await node.locks.acquire(Target("again"), BOB, ttl_s=300)
        except AuditUnavailable:
            continue


async def check_trail(node: Node, granted: list[Lease]) -> None:
    """Of the trail's leases, those hold that were granted and not released."""
    await node.trail.recorder.flush()
    acquired, ended = set(), set()
    async for each in node.trail.reader.stream(Query()):
        event = each.event
        if event.action is Action.ACQUIRED:
            acquired.add(event.token)
        elif event.action in (Action.RELEASED, Action.REVOKED, Action.EXPIRED):
            ended.add(event.token)
    assert {lease.token for lease in granted} <= acquired
    assert acquired - ended == {lease.token for lease in node.locks.leases()}
    assert (await node.trail.verify()).ok


@pytest.mark.parametrize(
    ("token_block", "refusal"),
    [(2, AuditUnavailable), (1_000, (LockConflict, LockTimeout))],
    ids=["tokens run out too", "tokens last"],
)
async def test_no_grant_without_its_event_while_the_disk_is_full(
    tmp_path: Path, token_block: int, refusal: type[Exception] | tuple[type[Exception], ...]
) -> None:
    options = LockOptions(token_block=token_block, token_wait_s=0.2)
    with small_disk(tmp_path / "disk") as disk, trio.fail_after(LIMIT_S):
        async with open_node(disk / "data", source="a", upkeep=NO_UPKEEP, trail=TRAIL, locks=options) as node:
            held = await node.locks.acquire(Target("held"), ANN, ttl_s=300)
            kept = await node.locks.acquire(Target("kept"), ANN, ttl_s=300)
            await node.locks.release(held)
            fill(disk, 0)
            granted = await until_refused(node)
            with pytest.raises(refusal):
                await node.locks.try_acquire(kept.target, BOB)
            with pytest.raises(refusal):
                await node.locks.acquire(kept.target, BOB, wait_s=0.05)
            assert node.locks.waiting() == []
            told = "no fencing tokens" if token_block == 2 else "records nothing"
            assert any(told in problem for problem in node.problems())
            await node.locks.release(kept)
            granted.remove(kept)
            assert node.locks.leases() == granted
            free(disk)
            again = await acquired_again(node)
            assert again.token > max(lease.token for lease in granted)
            assert node.locks.leases() == [*granted, again]
            await check_trail(node, [held, kept, *granted, again])
            assert node.problems() == []
        async with open_node(disk / "data", upkeep=NO_UPKEEP) as node:
            assert node.locks.first_token > again.token
