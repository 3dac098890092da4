"""What peers tell each other on the way: totals, acknowledgements, rates, kinds and features nobody here knows."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.errors import StoreFull, UsageError
from sync.mesh import Mesh
from sync.messages import Hello, Total
from sync.options import SyncOptions
from sync.peer import Peer
from tests.deltalog.memory_log import NOON_MS, Rig
from tests.sync.nodes import CheapKey, World, converged, trusting, until


async def test_totals_are_announced_before_much_comes(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice:
        for _ in range(50):
            alice.append(100)
            await trio.lowlevel.checkpoint()
        async with world.node("bob", "alice") as bob:
            world.network.slow("alice", "bob", 100_000)
            await until(lambda: "alice" in bob.mesh.peers)
            session = bob.mesh.peers["alice"].session
            await until(lambda: session.announced != Total(0, 0))
            assert session.announced.deltas == 5000
            assert bob.log.heads.get("alice", 0) < 5000
            await converged(alice, bob)
            records = sum(len(delta.record) for delta in await bob.all())
            assert 0.9 < session.announced.size_bytes / records < 1.1


async def test_nothing_is_acknowledged_before_it_is_synced_there(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice") as alice, world.node("bob", "alice", rig=rig) as bob:
        alice.append(5)
        await converged(alice, bob)
        await until(lambda: alice.log.held_by(1) == {"alice": 5})
        rig.offload.before["persist"], rig.offload.began["persist"] = trio.Event(), trio.Event()
        alice.append(5)
        await until(lambda: bob.log.heads == {"alice": 10})
        await trio.sleep(5)
        assert (dict(alice.log.held_by(1)), dict(bob.log.synced)) == ({"alice": 5}, {"alice": 5})
        rig.offload.before["persist"].set()
        await until(lambda: alice.log.held_by(1) == {"alice": 10})


async def test_a_rate_holds_back_one_peer_and_not_the_other(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice", options=SyncOptions(rate_bytes=10_000)) as alice, world.node("bob", "alice") as bob:
        await until(lambda: "bob" in alice.mesh.peers)
        started = trio.current_time()
        alice.log.append_nowait(b"x" * 100_000)
        alice.log.append_nowait(b"x" * 100_000)
        alice.log.append_nowait("last")
        await converged(alice, bob)
        alice.append(1)
        await converged(alice, bob)
        assert trio.current_time() - started >= 20


async def test_many_sources_are_compared_by_digests(autojump_clock: MockClock) -> None:
    world = World(signed=False)
    deltas = [build(f"s{number}", 1, NOON_MS << 16, number) for number in range(2000)]
    async with world.node("alice") as alice, world.node("bob") as bob:
        await alice.log.receive(deltas)
        await bob.log.receive(deltas[:-1])
        bob.append(1)
        await alice.log.flush()
        await bob.log.flush()
        async with world.node("carol", "alice", "bob") as carol:
            await converged(alice, bob, carol)
            links = {name: peer.traffic for name, peer in carol.mesh.peers.items()}
            assert sum(each.deltas_in for each in links.values()) == 2001
    async with world.node("alice", rig=alice.rig) as alice, world.node("bob", "alice", rig=bob.rig) as bob:
        await converged(alice, bob)
        bob.append(1)
        await converged(alice, bob)
        assert bob.mesh.peers["alice"].traffic.bytes_in < 5_000


async def test_kinds_and_features_that_nobody_knows_are_kept_and_passed_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeting = Mesh.greeting

    def newer(mesh: Mesh) -> Hello:
        hello = greeting(mesh)
        return attrs.evolve(hello, features=("from the future",)) if hello.node == "alice" else hello

    monkeypatch.setattr(Mesh, "greeting", newer)
    world = World()
    async with (
        world.node("alice") as alice,
        world.node("bob", "alice") as bob,
        world.node("carol", "bob") as carol,
    ):
        sent: Delta = alice.log.append_nowait({"new": [1, None]}, kind="a kind of version 9", key="k")
        await converged(alice, bob, carol)
        assert await carol.all() == [sent]


async def test_a_log_that_takes_nothing_ends_the_session_and_goes_on_when_it_can(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice") as alice, world.node("bob", "alice", rig=rig) as bob:
        alice.append(5)
        await converged(alice, bob)
        rig.disk.room = False
        rig.disk.faults.fail("persist", StoreFull)
        alice.append(5)
        await until(lambda: any("read-only" in text for text in world.problems))
        await trio.sleep(20)
        rig.disk.room = True
        await converged(alice, bob)
        assert len(await bob.all()) == 10


async def test_signed_heads_of_what_was_dropped_are_removed(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        for _ in range(4):
            alice.append(300)
            await converged(alice, bob)
        before = await bob.log.annotations(b"sync/head/")
        await bob.log.truncate(until={"alice": 700}, hard=True)
        assert await bob.mesh.ledger.prune() == 2
        assert await bob.log.annotations(b"sync/head/") == before[2:]
        assert await bob.mesh.ledger.prune() == 0
        alice.append(1)
        async with world.node("carol", "bob") as carol:
            await until(lambda: dict(bob.log.heads) == {"alice": 1201})
            await until(lambda: carol.mesh.statuses() and carol.mesh.statuses()[0].below_floor == {"alice": 700})


async def test_what_waited_for_others_is_acknowledged_once_it_is_synced(autojump_clock: MockClock) -> None:
    """Bob asks for alice's own source first, and her delta depends on one that comes later."""
    world = World(signed=False)
    async with world.node("alice") as alice:
        await alice.log.receive([build("carol", seq, (NOON_MS << 16) + seq, seq) for seq in range(1, 4)])
        sent = alice.log.append_nowait("knows carol")
        assert sent.deps == {"carol": 3}
        await alice.log.flush()
        async with world.node("bob", "alice") as bob:
            await converged(alice, bob)
            await until(lambda: alice.mesh._lag("bob") == 0)
            assert dict(alice.log.held_by(1)) == {"alice": 1, "carol": 3}


async def test_a_peer_that_does_not_read_harms_nobody_else(autojump_clock: MockClock) -> None:
    """Its outbox is full when the log syncs something it is to be told of at once."""
    world = World()
    async with world.node("alice") as alice, world.node("bob", "alice") as bob, world.node("carol", "alice") as carol:
        alice.append(1)
        await converged(alice, bob, carol)
        stuck = alice.mesh.peers["bob"]
        stuck.incoming._owed["alice"] = 9
        stuck.wire._waiting_bytes += 2 << 20
        alice.append(1)
        await until(lambda: any("wait for the other side to read" in text for text in world.problems))
        await alice.log.append("the log goes on", durable=True)
        await converged(alice, bob, carol)


async def test_sources_that_wait_for_their_turn_have_not_stalled(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "unask", lambda _, sources: pytest.fail(f"{sources} are taken for stalled"))
    world = World(signed=False)
    options = SyncOptions(rate_bytes=2_000)
    async with world.node("alice", options=options) as alice:
        await alice.log.receive([build(f"s{number}", 1, (NOON_MS << 16) + number, b"x" * 500) for number in range(200)])
        await alice.log.flush()
        async with world.node("bob", "alice") as bob:
            await converged(alice, bob)
            traffic = bob.mesh.statuses()[0].traffic
            assert (traffic.deltas_in, traffic.deltas_known) == (200, 0)


async def test_what_is_refused_again_and_again_is_told_once_and_asked_for_rarely(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    rig.wall.ms += 3_600_000
    async with world.node("alice", rig=rig) as alice, world.node("bob", "alice") as bob:
        for _ in range(5):
            alice.append(200)
            await alice.log.flush()
        await trio.sleep(300)
        refusals = [text for text in world.problems if "ahead of this node's clock" in text]
        assert len(refusals) == 1
        assert bob.mesh.statuses()[0].traffic.deltas_in <= 15 * 1000
        bob.rig.wall.ms += 3_600_000
        await converged(alice, bob)


async def test_i14_a_difference_is_named(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob forgets to ask for one source."""
    world = World(signed=False)
    wanted = Mesh._wanted
    monkeypatch.setattr(
        Mesh, "_wanted", lambda mesh, source: wanted(mesh, source) and (mesh.node, source) != ("bob", "lost")
    )
    async with world.node("alice") as alice:
        await alice.log.receive([build("lost", 1, NOON_MS << 16, 1), build("found", 1, NOON_MS << 16, 1)])
        await alice.log.flush()
        async with world.node("bob", "alice") as bob:
            await until(lambda: any("these sources differ: 'lost'; heads" in text for text in world.problems))
            assert dict(bob.log.heads) == {"found": 1}


async def test_a_node_whose_key_was_replaced_says_so(autojump_clock: MockClock) -> None:
    world, rig = World(), Rig()
    async with world.node("alice", rig=rig) as alice:
        alice.append(1)
    with pytest.raises(UsageError, match="was signed with key .* before, and this node's key is"):
        async with world.node("alice", rig=rig, signer=CheapKey("bob")):
            pytest.fail("it opened")
    trust = trusting("alice", "bob", named={"alice": CheapKey("bob").key})
    async with world.node("alice", rig=rig, signer=CheapKey("bob"), trust=trust) as alice:
        alice.append(1)
