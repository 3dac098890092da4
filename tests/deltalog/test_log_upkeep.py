"""DeltaLog: truncate and erase, wherever the deltas are and whatever goes on meanwhile."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.chain import payload_hash
from deltalog.errors import BelowFloor, LogReadOnly, StoreFull, StoreIOError, UsageError
from deltalog.log import DeltaLog
from deltalog.memory_store import MemoryStore
from deltalog.retention import Retention
from tests.deltalog.memory_log import Rig, collect, remote, seqs, stored, until, values

# ------------------------------------------------------------------------------------------------------------ truncate


@pytest.mark.parametrize("ring", [4, 1000])
async def test_truncate_drops_from_ring_and_store_alike(ring: int) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=ring) as log:
        await log.append_many(range(20))
        await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
        await log.flush()
        result = await log.truncate(until={"alice": 15, "bob": 4, "nobody": 9})
        assert (result.dropped, dict(result.floor), dict(result.held)) == (19, {"alice": 15, "bob": 4}, {})
        assert log.heads == {"alice": 20, "bob": 10}
        assert log.floor == {"alice": 15, "bob": 4}
        assert {name: seqs(deltas, name) for name, deltas in stored(rig.store).items()} == {
            "alice": [16, 17, 18, 19, 20],
            "bob": [5, 6, 7, 8, 9, 10],
        }
        assert len(await collect(log.replay())) == 11
        assert await log.get(("alice", 15)) is None
        result = await log.truncate(until={"alice": 3})
        assert (result.dropped, dict(result.floor)) == (0, {"alice": 15, "bob": 4}), "a floor never falls"
        result = await log.truncate(until={"alice": 99})
        assert dict(result.floor) == {"alice": 20, "bob": 4}
        assert (await log.append("x")).seq == 21, "a source of which nothing is left goes on"
        assert seqs(await collect(log.by_source("alice"))) == [21]
    async with rig.running(ring_deltas=ring) as log:
        assert log.floor == {"alice": 20, "bob": 4}
        assert log.heads == {"alice": 21, "bob": 10}


async def test_truncate_keeps_what_is_not_synced() -> None:
    async with Rig().running(sync_interval_s=3600) as log:
        await log.append_many(range(5), durable=True)
        log.append_nowait(5)
        await until(lambda: log.written == {"alice": 6})
        log.append_nowait(6)
        assert (await log.truncate(until={"alice": 7})).floor == {"alice": 5}
        assert values(await collect(log.replay())) == [5, 6]


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(max_age_s=10), range(11, 22)),
        (Retention(max_deltas=5), range(17, 22)),
        (Retention(max_deltas=0), []),
        (Retention(max_age_s=3600), range(1, 22)),
        (Retention(max_age_s=2, max_deltas=100), range(19, 22)),
        (Retention(), range(1, 22)),
    ],
)
async def test_truncate_follows_a_retention(retention: Retention, left: Any) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=7) as log:
        await log.append(0)
        for number in range(20):
            rig.wall.ms += 1000
            await log.append(number)
        await log.flush()
        await log.truncate(retention=retention)
        assert seqs(await collect(log.replay())) == list(left)


async def test_truncate_takes_one_way_to_say_what_goes() -> None:
    async with Rig().running() as log:
        for arguments in ({}, {"until": {}, "retention": Retention()}):
            with pytest.raises(UsageError, match="truncate takes either until"):
                await log.truncate(**arguments)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="seq of source 'alice' is -1"):
            await log.truncate(until={"alice": -1})


async def test_a_truncate_that_fails_changes_nothing_here(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4) as log:
        await log.append_many(range(20), durable=True)
        rig.store.faults.fail("truncate", StoreIOError)
        with pytest.raises(StoreIOError, match="injected"):
            await log.truncate(until={"alice": 10})
        assert log.floor == {}
        assert seqs(await collect(log.replay())) == list(range(1, 21))
        log.append_nowait(20)
        await trio.sleep(1)
        await log.flush()
        assert log.statistics().writer.failures == 1, "the writer finds the handle dead and opens it again"
        assert (await log.truncate(until={"alice": 10})).floor == {"alice": 10}


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 8, 50]))
def test_i13_reads_and_subscriptions_in_progress_never_lose_a_delta(seed: int, ring: int) -> None:
    async def main() -> None:
        rig, rng = Rig(), random.Random(seed)
        rig.store.page_size = lambda _count: rng.randint(1, 5)
        async with rig.running(ring_deltas=ring) as log:
            await log.append_many(range(30), durable=True)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read, log, rng)
                    nursery.start_soon(follow, log, rng)
                for _ in range(15):
                    await log.append("x", durable=rng.random() < 0.5)
                    before, limit = log.floor, rng.randint(0, log.heads["alice"])
                    result = await log.truncate(until={"alice": limit})
                    assert result.floor.covers_all(before)
                    assert result.floor.get("alice", 0) <= max(limit, before.get("alice", 0))
                nursery.cancel_scope.cancel()

    async def read(log: DeltaLog, rng: random.Random) -> None:
        while True:
            stream, expected = log.replay(), list(range(log.floor.get("alice", 0) + 1, log.heads["alice"] + 1))
            found = list(await stream.page(rng.randint(1, 9)))
            for _ in range(rng.randint(0, 4)):
                await trio.lowlevel.checkpoint()
            assert seqs(found + await collect(stream, rng.randint(1, 9))) == expected

    async def follow(log: DeltaLog, rng: random.Random) -> None:
        subscription = log.subscribe(log.floor, durable=rng.random() < 0.5)
        last = subscription.position.get("alice", 0)
        async for delta in subscription:
            assert delta.seq == last + 1
            last = delta.seq
            for _ in range(rng.choice((0, 0, 2))):
                await trio.lowlevel.checkpoint()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# --------------------------------------------------------------------------------------------------------------- erase


async def everywhere(rig: Rig, log: DeltaLog, seq: int) -> list[Any]:
    """The payload of one delta of alice as every way to read it gives it."""
    reads = [log.replay(), log.between(), log.since({"alice": seq - 1}), log.by_source("alice", after=seq - 1)]
    subscription = log.subscribe({"alice": seq - 1})
    found = [delta for read in reads for delta in await collect(read)] + list(await subscription.page())
    here = await log.get(("alice", seq))
    assert here is not None
    return [delta.payload for delta in [*found, here] if delta.dot == ("alice", seq)]


@pytest.mark.parametrize("ring", [4, 1000])
@pytest.mark.parametrize("seq", [1, 12, 20])
async def test_an_erased_payload_is_gone_everywhere_at_once(ring: int, seq: int) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=ring) as log:
        deltas = await log.append_many([b"secret %d" % number for number in range(1, 21)], kind="k", key="x")
        await log.flush()
        hash_before = rig.store.heads()["alice"].hash
        assert await everywhere(rig, log, seq) == [b"secret %d" % seq] * 6
        erased = await log.erase(("alice", seq), "they asked")
        assert (erased.dot, erased.erased, erased.payload, erased.kind, erased.key) == (
            ("alice", seq),
            True,
            None,
            "k",
            "x",
        )
        assert erased.payload_bytes == payload_hash(deltas[seq - 1])
        assert await everywhere(rig, log, seq) == [None] * 6
        assert rig.store.heads()["alice"].hash == hash_before, "the chain is as it was"
        assert await log.erase(("alice", seq), "again") == erased
        (note,) = await log.erasures()
        assert (note.source, note.seq, note.reason) == ("alice", seq, "they asked")
        assert note.timestamp > deltas[-1].timestamp
        await log.compact()
        assert await everywhere(rig, log, seq) == [None] * 6
    survivor = rig.store.survivor()
    assert stored(survivor)["alice"][seq - 1].erased
    assert len(survivor.erasures()) == 1


async def test_erasing_what_is_not_synced_waits_for_that_first() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        log.append_nowait("a")
        log.append_nowait("b")
        assert (await log.erase(("alice", 1), "reason")).payload is None
        assert log.synced == {"alice": 2}
        assert values(await collect(log.replay())) == [None, "b"]
    rig.store.crash()
    assert values(stored(rig.store)["alice"]) == [None, "b"]


async def test_an_erasure_is_durable_on_return() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        await log.append_many("ab", durable=True)
        await log.erase(("alice", 1), "reason")
        assert values(stored(rig.store.survivor())["alice"]) == [None, "b"]
        assert isinstance(rig.store.inner, MemoryStore)
        rig.store.inner.crash()
        assert values(stored(rig.store)["alice"]) == [None, "b"], "the contract of `DeltaStore.erase`"


@pytest.mark.parametrize(
    ("dot", "reason", "error", "message"),
    [
        (("alice", 9), "r", UsageError, "there is no delta 'alice':9 here; its source's head is 4"),
        (("bob", 1), "r", UsageError, "there is no delta 'bob':1 here; its source's head is 0"),
        (("alice", 0), "r", UsageError, "there is no delta 'alice':0 here"),
        (("alice", 2), "r", BelowFloor, "'alice': has 1, floor 2"),
        (("alice", 3), "", UsageError, "reason must not be empty"),
        (("alice", 3), "x" * 1025, UsageError, "reason is 1,025 bytes; the limit is 1,024 bytes"),
        (("alice", 3), None, UsageError, "reason must be a string"),
    ],
)
async def test_what_cannot_be_erased_is_refused(dot: Any, reason: Any, error: type[Exception], message: str) -> None:
    async with Rig().running() as log:
        await log.append_many(range(4), durable=True)
        await log.truncate(until={"alice": 2})
        with pytest.raises(error, match=message):
            await log.erase(dot, reason)
        assert await log.erasures() == []


@pytest.mark.parametrize("first", ["truncate", "erase"])
async def test_an_erase_and_a_truncate_of_one_delta_at_once_end_well(first: str) -> None:
    rig = Rig()
    outcome: list[object] = []

    async def erase(log: DeltaLog) -> None:
        try:
            outcome.append((await log.erase(("alice", 3), "reason")).erased)
        except BelowFloor as error:
            outcome.append(error.floor)

    async with rig.running() as log:
        await log.append_many(range(6), durable=True)
        second = "erase" if first == "truncate" else "truncate"
        gate = rig.offload.before[second] = trio.Event()
        rig.offload.began[second] = began = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(erase, log)
            if second == "erase":
                await began.wait()
                await log.truncate(until={"alice": 4})
            else:
                nursery.start_soon(partial(log.truncate, until={"alice": 4}))
                await began.wait()
                await until(lambda: outcome)
            gate.set()
        assert outcome == ([{"alice": 3}] if first == "truncate" else [True])
        assert log.floor == {"alice": 4}


async def test_erasing_on_a_read_only_log_raises(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append("a", durable=True)
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        log.append_nowait("b")
        await trio.sleep(0.1)
        with pytest.raises(LogReadOnly):
            await log.erase(("alice", 2), "reason")
        with pytest.raises(StoreFull, match="not tried"):
            await log.erase(("alice", 1), "reason")
        rig.disk.room = True
        await trio.sleep(1)
        assert (await log.erase(("alice", 2), "reason")).erased


async def test_an_erase_that_fails_can_be_tried_again(autojump_clock: MockClock) -> None:
    for applied in (True, False):
        rig = Rig()
        async with rig.running() as log:
            await log.append_many("ab", durable=True)
            rig.store.faults.fail("erase", StoreIOError, applied=applied)
            with pytest.raises(StoreIOError):
                await log.erase(("alice", 1), "reason")
            log.append_nowait("c")
            await trio.sleep(1)
            assert (await log.erase(("alice", 1), "reason")).erased
            assert values(await collect(log.replay())) == [None, "b", "c"]
            assert len(await log.erasures()) == 1
