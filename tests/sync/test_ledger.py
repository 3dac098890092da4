"""The ledger: what goes out ends in a head that is synced here, what comes in continues what is here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deltalog import chain
from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.log import DeltaLog
from sync.errors import Diverged, HeadRefused
from sync.ledger import Gap, Ledger
from sync.session import Run
from sync.trust import sign_head
from tests.deltalog.memory_log import NOON_MS, Rig
from tests.sync.nodes import CLUSTER, CheapKey, trusting

ALICE = CheapKey("alice")


def deltas_of(count: int, salt: object = "") -> list[Delta]:
    return [build("alice", seq, (NOON_MS << 16) + seq, [seq, salt]) for seq in range(1, count + 1)]


def run(deltas: list[Delta], after: int, until: int) -> Run:
    """What alice signed of these."""
    hashes = chain.extend(chain.genesis("alice"), [delta.record for delta in deltas])
    return Run("alice", deltas[after:until], sign_head(ALICE, CLUSTER, "alice", until, hashes[until - 1]))


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[DeltaLog, Ledger]]:
    """Bob's, who relays what alice signed."""
    async with Rig().running("bob") as log:
        ledger = Ledger(log, trusting("alice", "bob"), CheapKey("bob"))
        log.on_synced(ledger.note_synced)
        await ledger.load()
        yield log, ledger


async def take(log: DeltaLog, ledger: Ledger, *runs: Run) -> None:
    for each in runs:
        await ledger.keep([(each, await ledger.verify(each))])
        await log.receive(each.deltas)
        await log.flush()


async def test_i3_a_run_ends_in_no_head_that_is_not_synced_here() -> None:
    deltas = deltas_of(20)
    async with opened() as (log, ledger):
        await take(log, ledger, run(deltas, 0, 10))
        later = run(deltas, 10, 20)
        await ledger.keep([(later, await ledger.verify(later))])  # and not taken in yet
        assert ledger.reached("alice") == 20
        ended = await ledger.ended("alice", deltas[4:10])
        assert ended is not None
        assert (ended[0], ended[1].seq) == (deltas[4:10], 10)


async def test_i3_without_a_synced_head_nothing_goes_out_yet() -> None:
    deltas = deltas_of(20)
    async with opened() as (log, ledger):
        whole = run(deltas, 0, 20)
        await ledger.keep([(whole, await ledger.verify(whole))])
        await log.receive(deltas[:10])  # the rest waits, say
        await log.flush()
        assert await ledger.ended("alice", deltas[:10]) is None
        await log.receive(deltas[10:])
        await log.flush()
        ended = await ledger.ended("alice", deltas[:10])
        assert ended is not None
        assert (ended[0], ended[1].seq) == (deltas, 20), "it is lengthened to where alice signed"


async def test_boundaries_between_near_ones_go_and_the_rest_can_be_passed_on() -> None:
    deltas = deltas_of(600)
    async with opened() as (log, ledger):
        await take(log, ledger, *(run(deltas, after, after + 20) for after in range(0, 600, 20)))
        kept = [head.seq for head in await ledger._boundaries("alice", 1, 100)]
        assert kept[-1] == 600
        assert len(kept) < 10
        assert all(later - earlier <= 256 for earlier, later in zip([0, *kept], kept, strict=False))
        for last in (1, 255, 256, 400, 600):
            ended = await ledger.ended("alice", deltas[:last])
            assert ended is not None
            assert ended[1].seq in kept
            assert ended[0] == deltas[: ended[1].seq]


async def test_what_does_not_continue_what_is_here_is_refused() -> None:
    deltas, others = deltas_of(20), deltas_of(20, "other")
    async with opened() as (log, ledger):
        await take(log, ledger, run(deltas, 0, 10))
        with pytest.raises(Gap):
            await ledger.verify(run(deltas, 11, 20))
        with pytest.raises(Diverged, match=r"11\.\.20 does not lead to the head"):
            await ledger.verify(run(others, 10, 20))
        forged = Run("alice", deltas[10:], run(others, 10, 20).head)
        with pytest.raises(HeadRefused):
            await ledger.verify(forged)
        await take(log, ledger, run(deltas, 5, 15), run(deltas, 15, 20))
        assert log.heads == {"alice": 20}
