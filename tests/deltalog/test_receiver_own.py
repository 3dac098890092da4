"""This node's own deltas that come back from a peer: taken before it appends, refused afterwards; no dot twice (I1)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.clock import pack
from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.errors import LogReadOnly, StoreFull
from deltalog.manager import open_log
from tests.deltalog.directories import killed, session
from tests.deltalog.memory_log import Rig, collect, remote, seqs, stored, values
from tests.deltalog.nodes import NO_UPKEEP


def own(seq: int, ms: int | None = None, **fields: Any) -> Delta:
    """A delta that this node wrote before it lost it."""
    return remote("alice", seq, seq if ms is None else ms, **fields)


async def test_i1_own_deltas_are_refused_unless_they_are_asked_for() -> None:
    async with Rig().running() as log:
        receipt = await log.receive([own(1)])
        assert [refusal.reason for refusal in receipt.refused] == [
            "it claims to be this node's own delta 1, but this node has written 0"
        ]
        assert log.heads == {}


@pytest.mark.parametrize("ring", [2, 1000])
async def test_i1_own_deltas_that_come_back_are_applied_and_appends_go_on_behind_them(ring: int) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append_many(range(3), durable=True)
        mine = await collect(log.replay())
    last = mine[-1].timestamp >> 16
    lost = [build("alice", seq, pack(last + seq), seq) for seq in range(4, 8)]
    async with rig.running(ring_deltas=ring) as log:
        await log.receive([remote("bob", 1, 5000)])
        receipt = await log.receive([*reversed(lost), mine[1], remote("bob", 2, 5001)], own=True)
        assert receipt.refused == []
        assert sorted(receipt.applied) == [*(("alice", seq) for seq in range(4, 8)), ("bob", 2)]
        assert receipt.known == [("alice", 2)]
        assert sorted(receipt.waiting) == [("alice", 5), ("alice", 6), ("alice", 7)]
        assert log.heads == {"alice": 7, "bob": 2}
        new = await log.append("new")
        assert new.dot == ("alice", 8)
        assert new.timestamp > lost[-1].timestamp
        assert new.deps == {"bob": 2}, "not the node itself"
        assert log._mark[0] == 8
        assert seqs(await collect(log.replay())) == list(range(1, 9))
        await log.flush()
        assert log.synced_seq("alice") == 8
    assert stored(rig.store)["alice"] == [*mine, *lost, new]


async def test_i1_own_deltas_come_too_late_once_this_node_has_appended() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append_many(range(3), durable=True)
    async with rig.running() as log:
        assert (await log.receive([own(4, 10_000)], own=True)).applied == [("alice", 4)]
        assert (await log.receive([own(7, 10_003)], own=True)).waiting == [("alice", 7)]
        await log.append_many(["new", "newer"])
        receipt = await log.receive([own(5, 10_001), own(8, 10_004), own(4, 10_000)], own=True)
        assert [(refusal.delta.seq, refusal.reason.partition(":")[0]) for refusal in receipt.refused] == [
            (8, "it is this node's own delta 8, which comes too late"),
            (5, "another delta with this dot is held here"),
        ]
        assert receipt.refused[0].reason.endswith("this node has appended 'alice':5..6 since it was opened")
        assert receipt.known == [("alice", 4)]
        assert (await log.append("newest")).seq == 7
        assert values(await collect(log.by_source("alice", after=4))) == ["new", "newer", "newest"]


async def test_i1_what_waits_of_this_node_is_refused_if_it_appends_before_that_comes_free() -> None:
    async with Rig().running() as log:
        assert (await log.receive([own(1, 5, deps={"bob": 1})], own=True)).waiting == [("alice", 1)]
        await log.append("first")
        receipt = await log.receive([remote("bob", 1, 1)])
        assert receipt.applied == [("bob", 1)]
        assert [refusal.reason.partition(":")[0] for refusal in receipt.refused] == [
            "another delta with this dot is held here"
        ]
        assert values(await collect(log.by_source("alice"))) == ["first"]


async def test_i5_own_deltas_wait_for_their_deps_and_are_freed_by_them() -> None:
    async with Rig().running() as log:
        receipt = await log.receive([own(1, 5, deps={"bob": 1}), own(2, 6)], own=True)
        assert receipt.waiting == [("alice", 1), ("alice", 2)]
        receipt = await log.receive([remote("bob", 1, 1)])
        assert receipt.applied == [("bob", 1), ("alice", 1), ("alice", 2)]
        assert (await log.append("next")).dot == ("alice", 3)


async def test_i6_own_deltas_must_follow_on_each_other_in_time() -> None:
    rig = Rig()
    async with rig.running() as log:
        first = await log.append("first", durable=True)
    async with rig.running() as log:
        for timestamp in (first.timestamp - 1, first.timestamp):
            receipt = await log.receive([build("alice", 2, timestamp, "x")], own=True)
            assert "does not come after" in receipt.refused[0].reason
        assert (await log.receive([build("alice", 2, first.timestamp + 1, "x")], own=True)).applied
        receipt = await log.receive([build("alice", 3, first.timestamp + 1, "x")], own=True)
        assert "does not come after" in receipt.refused[0].reason
        receipt = await log.receive([own(3, 3_600_000)], own=True)
        assert "ahead of this node's clock" in receipt.refused[0].reason


async def test_i1_an_append_while_own_deltas_wait_for_room_ends_their_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Rig().running(ring_deltas=2) as log:
        wait_room = log._writer.wait_room

        async def then_append(size_bytes: int) -> None:
            await wait_room(size_bytes)
            log.append_nowait("mine")

        monkeypatch.setattr(log._writer, "wait_room", then_append)
        receipt = await log.receive([own(seq) for seq in range(1, 6)], own=True)
        assert receipt.applied == [("alice", 1), ("alice", 2)]
        late = "this node has appended 'alice':3..3 since it was opened"
        assert [refusal.delta.seq for refusal in receipt.refused if refusal.reason.endswith(late)] == [4, 5]
        assert [refusal.delta.seq for refusal in receipt.refused if "forked" in refusal.reason] == [3]
        assert values(await collect(log.by_source("alice")))[2:] == ["mine"]


async def test_a_read_only_log_takes_none_back(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=1) as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        with pytest.raises(LogReadOnly):
            await log.receive([own(1), own(2), own(3)], own=True)
        rig.disk.room = True


@given(st.integers(0, 2**32))
def test_i1_a_node_put_back_to_an_earlier_state_goes_on_with_no_dot_used_twice(seed: int) -> None:
    """Whatever of it survived, and in whatever order and portions a peer gives back the rest."""

    async def main() -> None:
        chance = random.Random(seed)
        rig = Rig()
        bobs = [remote("bob", seq, seq) for seq in range(1, 11)]
        async with rig.running() as log:
            for _ in range(chance.randint(1, 20)):
                rig.wall.ms += chance.choice((0, 1, 30))
                if chance.random() < 0.3:
                    await log.receive(bobs[: chance.randint(1, 10)])
                await log.append(chance.random())
            await log.flush()
            peer = await collect(log.replay())
        back = Rig(rig.store.fork())
        keep = chance.randint(0, len(back.store.journal))
        del back.store.journal[keep:]
        back.store.durable = keep
        back.store.crash()
        back.wall.ms = rig.wall.ms + chance.choice((-40, 0, 40))
        async with back.running(ring_deltas=chance.choice((1, 3, 1000))) as log:
            order = peer + chance.sample(peer, chance.randint(0, len(peer)))
            chance.shuffle(order)
            while order:
                some, order = order[: (cut := chance.randint(1, 9))], order[cut:]
                assert (await log.receive(some, own=True)).refused == []
            assert await collect(log.replay()) == peer
            new = await log.append_many(["new"] * chance.randint(1, 3), durable=True)
            assert await collect(log.replay()) == peer + new
            assert [d.seq for d in new] == list(range(len(seqs(peer)) + 1, len(seqs(peer)) + 1 + len(new)))
        async with Rig().running("carol") as log:
            assert (await log.receive(peer + new)).refused == []

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -------------------------------------------------------------------------------------------------------- real openings


async def test_i1_own_deltas_that_came_back_are_there_after_the_next_open(tmp_path: Path) -> None:
    path = tmp_path / "data"
    lost = [own(seq, ms=seq) for seq in range(1, 6)]
    async with open_log(path, source="alice", upkeep=NO_UPKEEP) as log:
        await log.receive(lost[:3], own=True)
    async with open_log(path, upkeep=NO_UPKEEP) as log:
        assert (log.startup.kind, log.source) == ("clean", "alice")  # type: ignore[attr-defined]
        await log.receive(lost, own=True)
        assert (await log.append("new", durable=True)).dot == ("alice", 6)
    with killed(path) as opened:
        assert (opened.source, opened.report.kind) == ("alice", "clean")
        assert opened.all()[:5] == lost
    with session(path) as opened:
        assert opened.source == "alice", "the mark stands where the store ends"


async def test_i1_the_mark_follows_own_deltas_that_come_back(tmp_path: Path) -> None:
    """So a process that ends before they are written goes on as a new incarnation, as with its own appends."""
    path = tmp_path / "data"
    async with open_log(path, source="alice", upkeep=NO_UPKEEP) as log:
        await log.receive([own(1), own(2)], own=True)
        assert log._mark[0] == 2
        await log.flush()
        assert (await log.receive([own(3)], own=True)).applied == [("alice", 3)]
        assert log._mark[0] == 3
