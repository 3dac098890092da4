"""DeltaLog: what peers have not acknowledged, and what a hold keeps, is not dropped, unless it must be (I13)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog import keys
from deltalog.errors import DecodeError, LogClosed, StoreFull, UsageError
from deltalog.log import DeltaLog
from deltalog.manager import open_log, open_manager
from deltalog.retention import Retention
from tests.deltalog.memory_log import Rig, collect, remote, seqs
from tests.deltalog.nodes import NO_UPKEEP


async def filled(log: DeltaLog) -> None:
    """Ten deltas of alice, ten of bob, synced."""
    await log.append_many(range(10))
    await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
    await log.flush()


async def test_i13_what_a_peer_has_not_acknowledged_stays(autojump_clock: MockClock) -> None:
    async with Rig().running() as log:
        await filled(log)
        log.stability.join("p", trio.current_time(), 100)
        log.stability.join("q", trio.current_time(), 50)
        done = await log.truncate(until={"alice": 8, "bob": 8})
        assert (done.dropped, dict(done.floor), dict(done.held)) == (0, {}, {"alice": 8, "bob": 8})
        log.stability.acknowledge("p", {"alice": 5, "bob": 20}, trio.current_time())
        log.stability.acknowledge("q", {"alice": 3, "bob": 2}, trio.current_time())
        done = await log.truncate(until={"alice": 8, "bob": 8})
        assert (done.dropped, dict(done.floor), dict(done.held)) == (5, {"alice": 3, "bob": 2}, {"alice": 8, "bob": 8})
        await trio.sleep(51)
        done = await log.truncate(until={"alice": 8, "bob": 8})
        assert (dict(done.floor), dict(done.held)) == ({"alice": 5, "bob": 8}, {"alice": 8}), (
            "q stayed away past its lease"
        )
        log.stability.forget("p")
        assert (await log.truncate(until={"alice": 8, "bob": 8})).floor == {"alice": 8, "bob": 8}


async def test_i13_a_hard_truncate_leaves_peers_behind_but_no_reader() -> None:
    async with Rig().running() as log:
        await filled(log)
        log.stability.join("p", trio.current_time())
        log.hold(lambda _: {})
        stream = log.since({"bob": 4}, {"bob": 10})
        await stream.page(1)
        done = await log.truncate(until={"alice": 8, "bob": 8}, hard=True)
        assert (dict(done.floor), dict(done.held)) == ({"alice": 8, "bob": 4}, {"bob": 8})
        assert seqs(await collect(stream), "bob") == [6, 7, 8, 9, 10]


async def test_i13_a_hold_lowers_the_floors_until_it_ends() -> None:
    asked: list[Mapping[str, int]] = []

    def keep(floors: Mapping[str, int]) -> Mapping[str, int]:
        asked.append(floors)
        return {"alice": 3, "bob": 99, "carol": 5}

    async with Rig().running() as log:
        await filled(log)
        first, second = log.hold(keep), log.hold(lambda floors: {**floors, "bob": 6})
        done = await log.truncate(until={"alice": 8, "bob": 8})
        assert asked == [{"alice": 8, "bob": 8}]
        assert (dict(done.floor), dict(done.held)) == ({"alice": 3, "bob": 6}, {"alice": 8, "bob": 8})
        first()
        first()
        done = await log.truncate(until={"alice": 8, "bob": 8})
        assert (dict(done.floor), dict(done.held)) == ({"alice": 8, "bob": 6}, {"bob": 8})
        second()
        assert (await log.truncate(until={"alice": 8, "bob": 8})).floor == {"alice": 8, "bob": 8}
        assert len(asked) == 1


async def test_i13_a_hold_that_leaves_a_source_out_or_raises_drops_nothing_of_it() -> None:
    def fail(_floors: Mapping[str, int]) -> Mapping[str, int]:
        raise UsageError("not now")

    async with Rig().running() as log:
        await filled(log)
        unhold = log.hold(lambda floors: {"bob": floors["bob"]})
        assert (await log.truncate(until={"alice": 8, "bob": 8})).floor == {"bob": 8}
        unhold()
        log.hold(fail)
        with pytest.raises(UsageError, match="not now"):
            await log.truncate(until={"alice": 8})
        assert log.floor == {"bob": 8}
        assert (await log.truncate(until={"alice": 8}, hard=True)).floor == {"alice": 8, "bob": 8}


async def test_held_by_is_what_so_many_peers_acknowledged() -> None:
    async with Rig().running() as log:
        assert log.held_by(1) == {}
        await filled(log)
        for peer, held in (("p", {"alice": 5}), ("q", {"alice": 7, "bob": 3})):
            log.stability.join(peer, trio.current_time())
            log.stability.acknowledge(peer, held, trio.current_time())
        assert log.held_by(1) == {"alice": 7, "bob": 3}
        assert log.held_by(2) == {"alice": 5}
        with pytest.raises(UsageError):
            log.held_by(0)


async def test_i13_peers_pin_from_the_next_open_on_before_anybody_has_talked_to_them(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        await filled(log)
        log.stability.join("p", trio.current_time(), 40)
        log.stability.acknowledge("p", {"alice": 9, "bob": 9}, trio.current_time())
        await trio.sleep(10)
        await log.save_stability()
        assert rig.store.survivor().annotation(keys.PEERS) is not None, "durable on return"
    await trio.sleep(1000)
    async with rig.running() as log:
        assert log.stability.peers == ("p",)
        assert (await log.truncate(until={"alice": 5})).held == {"alice": 5}, "what it holds is learnt anew"
        await trio.sleep(29)
        assert (await log.truncate(until={"alice": 5})).held == {"alice": 5}
        await trio.sleep(2)
        assert (await log.truncate(until={"alice": 5})).floor == {"alice": 5}, "40 s less the 10 that it was away"
    with pytest.raises(LogClosed):
        await log.save_stability()


async def test_a_save_that_fails_can_be_tried_again(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        log.stability.join("p", trio.current_time())
        rig.store.faults.fail("annotate", StoreFull)
        with pytest.raises(StoreFull):
            await log.save_stability()
        log.append_nowait("x")
        await trio.sleep(1)
        await log.save_stability()


async def test_peers_of_a_later_format_are_refused() -> None:
    rig = Rig()
    rig.store.annotate({keys.PEERS: b"\x92\x02\x90"})
    with pytest.raises(DecodeError, match="peers: format version 2"):
        rig.log()


@given(st.integers(0, 2**32))
def test_i13_nothing_goes_that_a_peer_a_hold_or_a_reader_needs(seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        needs: dict[str, dict[str, int]] = {}
        async with Rig().running(ring_deltas=chance.choice((1, 1000))) as log:
            await filled(log)
            for peer in ("p", "q")[: chance.randint(0, 2)]:
                log.stability.join(peer, trio.current_time())
                needs[peer] = {source: chance.randint(0, 10) for source in ("alice", "bob")}
                log.stability.acknowledge(peer, needs[peer], trio.current_time())
            if chance.random() < 0.5:
                needs["hold"] = kept = {source: chance.randint(0, 10) for source in ("alice", "bob")}
                log.hold(lambda _: kept)
            stream = None
            if chance.random() < 0.5:
                needs["read"] = after = {"bob": chance.randint(0, 9), "alice": 10}
                stream = log.since(after, {"bob": 10})
                await stream.page(1)
            hard = chance.random() < 0.3
            wanted = {"alice": chance.randint(1, 10), "bob": chance.randint(1, 10)}
            done = await log.truncate(until=wanted, hard=hard)
            counting = [need for name, need in needs.items() if name == "read" or not hard]
            limits = {s: min([seq, *(need[s] for need in counting)]) for s, seq in wanted.items()}
            assert done.floor == {source: seq for source, seq in limits.items() if seq}
            assert done.held == {source: seq for source, seq in wanted.items() if seq > limits[source]}
            if stream is not None:
                assert len(await collect(stream)) == 9 - needs["read"]["bob"]

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -------------------------------------------------------------------------------------------------------- with upkeep


async def test_i13_upkeep_leaves_what_peers_need_up_to_the_hard_retention(tmp_path: Path) -> None:
    upkeep = attrs.evolve(NO_UPKEEP, retention=Retention(max_deltas=2), hard_retention=Retention(max_deltas=6))
    async with open_manager(tmp_path / "data", source="alice", upkeep=upkeep) as manager:
        log = manager.log
        await log.append_many(range(10), durable=True)
        log.stability.join("p", trio.current_time())
        log.stability.acknowledge("p", {"alice": 1}, trio.current_time())
        assert await manager.collect() == 4
        assert log.floor == {"alice": 4}, "one that p has, and three that are past the hard bound"
        log.stability.acknowledge("p", {"alice": 7}, trio.current_time())
        assert await manager.collect() == 3
        await log.save_stability()
    async with open_log(tmp_path / "data", upkeep=NO_UPKEEP) as log:
        assert log.stability.peers == ("p",)
        assert log.floor == {"alice": 7}
