"""The mesh: nodes that exchange exactly what the other lacks, over links that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from deltalog.causality import Conflict
from deltalog.errors import LogReadOnly, UsageError
from deltalog.log import DeltaLog
from sync.errors import PeerBusy
from sync.options import SyncOptions
from sync.status import PeerStatus
from tests.deltalog.memory_log import Rig
from tests.sync.nodes import CheapKey, Node, World, converged, same, trusting, until


def status(node: Node, of: str) -> PeerStatus:
    (found,) = [each for each in node.mesh.statuses() if each.name == of]
    return found


async def test_i14_two_nodes_that_have_written_apart_become_equal(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        alice.append(300)
        bob.append(200)
        await converged(alice, bob)
        assert await alice.all() == await bob.all()
        await alice.mesh.equal("bob")
        await bob.mesh.equal("alice")
        for node, peer, count in ((alice, "bob", 200), (bob, "alice", 300)):
            traffic = status(node, peer).traffic
            assert (traffic.deltas_in, traffic.deltas_known, traffic.deltas_out) == (count, 0, 500 - count)
    assert not [text for text in world.problems if "closing" not in text and "closed" not in text]


@pytest.mark.parametrize("signed", [True, False])
async def test_what_is_written_later_goes_on_live_over_a_relay(autojump_clock: MockClock, signed: bool) -> None:
    world = World(signed=signed)
    async with (
        world.node("alice") as alice,
        world.node("bob", "alice") as bob,
        world.node("carol", "bob") as carol,
    ):
        alice.append(10)
        await converged(alice, bob, carol)
        for number in range(30):
            await alice.log.append(number, durable=True)
            carol.log.append_nowait(number)
        await converged(alice, bob, carol)
        assert await alice.all() == await carol.all()
        assert all(each.traffic.deltas_known == 0 for each in bob.mesh.statuses())
        assert {each.name for each in alice.mesh.statuses()} == {"bob"}
        await until(lambda: status(bob, "alice").state == status(bob, "carol").state == "live")
        assert status(bob, "carol").lag == 0


async def test_several_links_deliver_each_delta_once(autojump_clock: MockClock) -> None:
    world = World()
    async with (
        world.node("alice") as alice,
        world.node("bob", "alice") as bob,
        world.node("carol", "alice", "bob") as carol,
    ):
        for node in (alice, bob, carol):
            node.append(50)
        await converged(alice, bob, carol)
        for number in range(20):
            for node in (alice, bob, carol):
                await node.log.append(number, durable=True)
        await converged(alice, bob, carol)
        came = {node.name: sum(each.traffic.deltas_in for each in node.mesh.statuses()) for node in (alice, bob, carol)}
        assert came == {"alice": 140, "bob": 140, "carol": 140}


async def test_i3_nothing_leaves_before_it_is_synced(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice", log={"sync_interval_s": 50}) as alice, world.node("bob", "alice") as bob:
        alice.append(5)
        await trio.sleep(30)
        assert alice.log.written == {"alice": 5}
        assert (dict(alice.log.synced), dict(bob.log.heads)) == ({}, {})
        await alice.log.flush()
        await converged(alice, bob)


async def test_a_node_that_was_away_gets_what_it_missed_and_nothing_twice(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice") as alice:
        async with world.node("bob", "alice", rig=rig) as bob:
            alice.append(100)
            await converged(alice, bob)
            await until(lambda: status(alice, "bob").lag == 0)
        alice.append(50)
        await until(lambda: status(alice, "bob").state == "offline")
        await until(lambda: status(alice, "bob").lag == 50)
        async with world.node("bob", "alice", rig=rig) as bob:
            await converged(alice, bob)
            assert status(bob, "alice").traffic.deltas_in == 50


@pytest.mark.parametrize("dialing", ["alice", "bob", "both"])
async def test_links_are_made_again_and_one_is_kept(autojump_clock: MockClock, dialing: str) -> None:
    world = World()
    to_bob, to_alice = ["bob"] * (dialing != "bob"), ["alice"] * (dialing != "alice")
    async with world.node("alice", *to_bob) as alice, world.node("bob", *to_alice) as bob:
        for _ in range(5):
            alice.append(3)
            bob.append(3)
            await converged(alice, bob)
            world.network.cut("alice")
        await converged(alice, bob)
        await trio.sleep(60)
        assert len(world.network.links()) == 1
        assert status(alice, "bob").state == status(bob, "alice").state == "live"


async def test_when_a_feeder_goes_or_stalls_another_takes_over(autojump_clock: MockClock) -> None:
    world = World()
    options = SyncOptions(stall_s=5)
    async with (
        world.node("alice") as alice,
        world.node("bob", "alice") as bob,
        world.node("carol", "alice") as carol,
        world.node("dave", "bob", "carol", options=options) as dave,
    ):
        alice.append(10)
        await converged(alice, bob, carol, dave)
        feeder = dave.mesh._feeders.get("alice")
        assert feeder in ("bob", "carol")
        world.network.slow("dave", feeder, 1)  # answers, but never gets anywhere
        alice.append(10)
        await converged(alice, dave)
        assert dave.mesh._feeders.get("alice") not in (None, feeder)
        world.network.partition(["alice", "bob", "carol"], ["dave"], cut=True)
        alice.append(10)
        await converged(alice, bob, carol)
        world.network.heal()
        await converged(alice, bob, carol, dave)


async def test_a_peer_that_falls_silent_is_offline_after_a_while(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        alice.append(1)
        await converged(alice, bob)
        began = trio.current_time()
        world.network.partition(["alice"], ["bob"])
        await until(lambda: status(alice, "bob").state == "offline", 0.5)
        assert 25 <= trio.current_time() - began <= 40
        assert "silent" in status(alice, "bob").problem
        alice.append(1)
        world.network.heal()
        await converged(alice, bob)


async def test_more_sessions_than_there_is_room_for_are_told_when_to_come_back(autojump_clock: MockClock) -> None:
    world = World()
    async with (
        world.node("alice", options=SyncOptions(sessions=1)) as alice,
        world.node("bob") as bob,
        world.node("carol", "alice") as carol,
    ):
        alice.append(3)
        await converged(alice, carol)
        with pytest.raises(PeerBusy, match="again in 30 s"):
            await bob.mesh.serve(await world.network.node("bob").dial("alice"), dialed=True)
        assert bob.log.heads == {}
        assert status(alice, "carol").state == "live"


@pytest.mark.parametrize("much", [False, True])
async def test_a_slow_peer_costs_a_window_and_falls_back_to_catching_up(autojump_clock: MockClock, much: bool) -> None:
    world = World()
    async with (
        world.node("alice", log={"ring_deltas": 64}) as alice,
        world.node("bob", "alice") as bob,
        world.node("carol", "alice") as carol,
    ):
        world.network.slow("alice", "bob", 20_000)
        for _ in range(20 if much else 3):
            for _ in range(64):
                await alice.log.append(b"x" * 1000)
            await alice.log.flush()
        await converged(alice, carol)
        behind = alice.mesh.peers["bob"]
        assert status(alice, "bob").lag > 0
        assert behind.wire.waiting_bytes < 4 << 20
        await converged(alice, bob, carol)


async def test_conflicts_are_told_local_and_remote(autojump_clock: MockClock) -> None:
    world, told = World(), list[Conflict]()
    async with world.node("alice", on_conflict=told.append) as alice, world.node("bob", "alice") as bob:
        alice.append(1, "other")
        await converged(alice, bob)
        world.network.partition(["alice"], ["bob"], cut=True)
        alice.append(1, "k")
        bob.append(1, "k")
        bob.append(1, "mine")
        world.network.heal()
        await converged(alice, bob)
        alice.append(1, "k")
        await converged(alice, bob)
        await trio.sleep(1)
    assert [(each.key, {each.first.source, each.second.source}) for each in told] == [("k", {"alice", "bob"})]


# ------------------------------------------------------------------------------------------------ floors and stability


async def test_i13_gc_waits_for_what_peers_have_acknowledged(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice", options=SyncOptions(lease_s=1000)) as alice:
        async with world.node("bob", "alice") as bob:
            alice.append(10)
            await converged(alice, bob)
            await until(lambda: status(alice, "bob").lag == 0)
        alice.append(10)
        await alice.log.flush()
        done = await alice.log.truncate(until={"alice": 20})
        assert (dict(done.floor), dict(done.held)) == ({"alice": 10}, {"alice": 20})
        assert alice.log.held_by(1) == {"alice": 10}
        await trio.sleep(1001)
        assert (await alice.log.truncate(until={"alice": 20})).floor == {"alice": 20}


async def test_i13_a_peer_that_is_forgotten_pins_nothing(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice:
        async with world.node("bob", "alice") as bob:
            alice.append(10)
            await converged(alice, bob)
            with pytest.raises(UsageError, match="is connected"):
                alice.mesh.forget("bob")
        await until(lambda: status(alice, "bob").state == "offline")
        alice.append(10)
        await alice.log.flush()
        alice.mesh.forget("bob")
        assert alice.mesh.statuses() == []
        assert (await alice.log.truncate(until={"alice": 20})).floor == {"alice": 20}
        with pytest.raises(UsageError, match="'bob' is not known"):
            alice.mesh.forget("bob")


async def test_i13_peers_are_known_again_after_a_restart(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice", rig=rig) as alice, world.node("bob", "alice") as bob:
        alice.append(10)
        await converged(alice, bob)
    async with world.node("alice", rig=rig) as alice:
        done = await alice.log.truncate(until={"alice": 10})
        assert (dict(done.floor), dict(done.held)) == ({}, {"alice": 10})  # what it has is learnt anew


async def test_a_peer_behind_the_floor_is_told_so_and_other_sources_go_on(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice", rig=rig) as alice:
        alice.append(20)
        await alice.log.truncate(until={"alice": 0})
        await alice.log.flush()
        await alice.log.truncate(until={"alice": 10}, hard=True)
        async with world.node("carol", "alice") as carol, world.node("bob", "alice") as bob:
            carol.append(5)
            await until(lambda: bob.log.heads == {"carol": 5})
            assert status(bob, "alice").below_floor == {"alice": 10}
            assert "was dropped there, and it has no snapshot" in " ".join(world.problems)
            assert status(bob, "alice").state != "offline"


# ------------------------------------------------------------------------------------------------------ own deltas


async def restored(world: World, *, appended: bool) -> tuple[Mapping[str, int], DeltaLog | None]:
    """Alice loses its last ten deltas, which bob holds, and comes back."""
    backup, rig = Rig(), Rig()
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(world.node("bob"))
        async with world.node("alice", "bob", rig=rig) as alice:
            alice.append(10)
            await converged(alice, bob)
            old = [delta async for delta in alice.log.replay()]
            alice.append(10)
            await converged(alice, bob)
        async with backup.running("nobody") as log:
            await log.receive(old)
        async with world.node("alice", "bob", rig=backup) as alice:
            if appended:
                alice.log.append_nowait("too early")
                await until(lambda: any("holds" in text for text in world.problems))
                with pytest.raises(LogReadOnly, match="new incarnation"):
                    alice.log.append_nowait("more")
            else:
                await converged(alice, bob)
                alice.log.append_nowait("behind them")
                await converged(alice, bob)
        return bob.log.heads, None


async def test_i1_an_old_backup_gets_its_own_deltas_back_before_it_appends(autojump_clock: MockClock) -> None:
    world = World()
    heads, _ = await restored(world, appended=False)
    assert heads == {"alice": 21}


async def test_i1_an_old_backup_that_appended_stops_before_more_harm_is_done(autojump_clock: MockClock) -> None:
    world = World()
    heads, _ = await restored(world, appended=True)
    assert heads == {"alice": 20}


# --------------------------------------------------------------------------------------------------- whom one believes


async def test_a_source_that_nobody_admitted_stays_out_and_the_rest_goes_on(autojump_clock: MockClock) -> None:
    world = World(names=("alice", "bob"))
    async with (
        world.node("alice") as alice,
        world.node("bob", "alice", trust=trusting("alice", "bob", "mallory")) as bob,
        world.node("mallory", "bob", trust=trusting("alice", "bob", "mallory")) as mallory,
    ):
        mallory.append(3)
        bob.append(3)
        await until(lambda: alice.log.heads == {"bob": 3})
        await until(lambda: bob.log.heads == {"bob": 3, "mallory": 3})
        await until(lambda: any("alice | bob" in text and "is not admitted" in text for text in world.problems))
        assert "mallory" not in alice.log.heads


async def test_a_source_is_the_key_s_that_came_first(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice:
        async with world.node("bob", "alice") as bob:
            bob.append(3)
            await converged(alice, bob)
        async with world.node("carol", "alice", source="bob") as carol:
            carol.append(5)
            await until(lambda: any("alice | carol" in text for text in world.problems))
            assert alice.log.heads == {"bob": 3}


async def test_a_fork_is_found_and_its_source_quarantined(autojump_clock: MockClock) -> None:
    world = World()
    one, two = Rig(), Rig()
    async with world.node("alice") as alice, world.node("bob") as bob:
        for peer, rig in (("alice", one), ("bob", two)):
            async with world.node("carol", peer, rig=rig) as carol:
                carol.append(3, key=peer)
                await converged(carol, alice if peer == "alice" else bob)
        assert alice.log.heads == bob.log.heads == {"carol": 3}
        async with world.node("dave", "alice", "bob") as dave:
            dave.append(1)
            await until(lambda: alice.log.heads == bob.log.heads == {"carol": 3, "dave": 1})
            await until(lambda: dave.log.heads.get("carol") == 3)
    async with (
        world.node("alice", rig=alice.rig) as alice,
        world.node("bob", "alice", rig=bob.rig) as bob,
    ):
        await until(lambda: "carol" in alice.mesh.trust.quarantined and "carol" in bob.mesh.trust.quarantined)
        alice.append(1)
        bob.append(1)
        async with world.node("erin", "bob") as erin:  # who has nothing of it
            await until(lambda: alice.log.heads == bob.log.heads and "alice" in erin.log.heads)
            await alice.mesh.equal("bob")
            await bob.mesh.equal("erin")
            assert "carol" not in erin.log.heads
        async with world.node("dave", "alice", rig=dave.rig) as dave:  # who has one of its histories
            await until(lambda: "carol" in dave.mesh.trust.quarantined)
            await alice.mesh.equal("dave")
    async with world.node("alice", rig=alice.rig) as alice:
        evidence = alice.mesh.trust.quarantined["carol"]
        assert evidence.first.seq == evidence.second.seq == 3
        assert evidence.first.hash != evidence.second.hash


async def test_a_key_comes_under_one_name(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice:
        async with world.node("bob", "alice") as bob:
            bob.append(1)
            await converged(alice, bob)
        async with world.node("robert", "alice", signer=CheapKey("bob")):
            await until(
                lambda: any("came as node 'bob' before, and now as 'robert'" in text for text in world.problems)
            )
            assert alice.log.stability.peers == ("bob",)
        alice.mesh.forget("bob")
        async with world.node("robert", "alice", signer=CheapKey("bob")) as robert:
            await converged(alice, robert)


async def test_different_clusters_do_not_talk(autojump_clock: MockClock) -> None:
    world = World()
    other = attrs.evolve(world)
    async with world.node("alice") as alice:
        trust = trusting("alice", "bob")
        trust.cluster = "others"
        async with other.node("bob", "alice", trust=trust) as bob:
            alice.append(1)
            await until(lambda: any("of cluster 'team'; this node of 'others'" in text for text in world.problems))
            assert not same(alice, bob)


def test_options_name_what_is_wrong() -> None:
    wrong: list[dict[str, Any]] = [{"heartbeat_s": 0}, {"sessions": -1}, {"rate_bytes": -1}, {"lease_s": "a week"}]
    for fields in wrong:
        with pytest.raises(UsageError, match=f"sync.{next(iter(fields))} must be"):
            SyncOptions(**fields)


def test_a_cheap_key_signs() -> None:
    assert trusting("alice").admits(CheapKey("alice").key)


async def test_an_address_is_unreached_until_somebody_talks_there_and_again_when_they_are_gone(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with world.node("alice", "bob") as alice:
        alice.append(1)
        await until(lambda: "bob" in alice.mesh.unreached)
        async with world.node("bob") as bob:
            await converged(alice, bob)
            assert alice.mesh.unreached == {}
        await until(lambda: "bob" in alice.mesh.unreached)
        assert [each.name for each in alice.mesh.statuses()] == ["bob"]
