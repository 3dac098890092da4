"""Peers heard of on the local network: what is kept, what is tried next, one session of two that find each other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sync.errors import Duplicate, LinkFailed
from sync.memory_transport import MemoryTransport, Network, Weather
from sync.neighbours import ADDRESSES_MAX, PEER_ADDRESSES_MAX, Neighbours
from sync.node_keys import key_text
from sync.transport import Handler, Link
from tests.sync.nodes import CheapKey, Node, World, converged, until

BOB, CAROL = (CheapKey(name).key for name in ("bob", "carol"))


@attrs.define
class Air:
    """A transport without links; an address is `name:anything`."""

    answering: set[str] = attrs.field(factory=set)
    pinned: Sequence[str] = ("bob", "carol")
    announced: Sequence[str] = ("alice:1",)
    dialled: list[str] = attrs.field(factory=list)
    connected: dict[bytes, str] = attrs.field(factory=dict)

    def admitted(self, address: str) -> bytes | None:
        name = address.partition(":")[0]
        return CheapKey(name).key if name in self.pinned else None

    async def dial(self, address: str) -> Link:
        await trio.lowlevel.checkpoint()
        self.dialled.append(address)
        if address not in self.answering:
            raise LinkFailed(f"nobody at {address}")
        return cast("Link", object())

    async def serve(self, *_: Any, **__: Any) -> None:
        raise AssertionError("it is not asked to")

    def neighbours(self) -> Neighbours:
        return Neighbours(self, self.connected.get)


def test_only_what_is_admitted_is_kept() -> None:
    found = Air().neighbours()
    found.hear("a", ["mallory:1", "bob:1", "", "carol:1"])
    assert found.addresses == ["bob:1", "carol:1"]
    assert found.known(key_text(BOB))
    assert not found.known(key_text(CheapKey("mallory").key))


def test_an_announcement_holds_what_it_says_now() -> None:
    found = Air().neighbours()
    found.hear("a", ["bob:1", "bob:2"])
    found.hear("b", ["carol:1"])
    found.hear("a", ["bob:2", "bob:3"])
    assert found.addresses == ["bob:2", "carol:1", "bob:3"]
    found.hear("a", [])
    assert found.addresses == ["carol:1"]
    assert not found.known(key_text(BOB))


def test_an_address_belongs_to_the_announcement_that_held_it_last() -> None:
    """A node that was killed and started again on one port: the old announcement ends much later."""
    found = Air().neighbours()
    found.hear("before", ["bob:1"])
    found.hear("after", ["bob:1"])
    found.hear("before", [])
    assert found.addresses == ["bob:1"]


def test_so_many_addresses_are_kept_and_the_oldest_goes() -> None:
    names = [f"node{number}" for number in range(ADDRESSES_MAX + 1)]
    found = Air(pinned=names).neighbours()
    for name in names:
        found.hear(name, [f"{name}:1"])
    assert found.addresses == [f"{name}:1" for name in names[1:]]


async def test_of_one_peer_so_many_are_kept_and_the_worst_goes() -> None:
    found = Air().neighbours()
    addresses = [f"bob:{number}" for number in range(PEER_ADDRESSES_MAX)]
    found.hear("a", addresses[:3])
    for _ in range(4):
        with pytest.raises(LinkFailed):
            await found.dial(key_text(BOB))
    found.hear("b", ["carol:1", *addresses[3:], "bob:new"])
    assert found.addresses == [*addresses[1:3], "carol:1", *addresses[3:], "bob:new"]


async def test_addresses_of_a_peer_are_tried_in_turn_and_the_one_that_answers_again() -> None:
    air = Air()
    found = air.neighbours()

    async def dial(count: int) -> str:
        """The last figures of what was dialled."""
        for _ in range(count):
            with suppress(LinkFailed):
                await found.dial(key_text(BOB))
        return "".join(address[-1] for address in air.dialled[-count:])

    found.hear("a", ["bob:1", "carol:9", "bob:2", "bob:3"])
    with pytest.raises(LinkFailed, match="nobody at bob:1"):
        await found.dial(key_text(BOB))
    assert await dial(2) == "23"
    air.answering.add("bob:3")
    assert await dial(4) == "1233"
    air.answering.clear()
    assert await dial(4) == "3312"


async def test_a_peer_that_is_connected_or_gone_is_not_dialled() -> None:
    air = Air(connected={BOB: "bob"})
    found = air.neighbours()
    found.hear("a", ["bob:1"])
    with pytest.raises(Duplicate) as caught:
        await found.dial(key_text(BOB))
    assert caught.value.name == "bob"
    with pytest.raises(LinkFailed, match="is not announced any more"):
        await found.dial(key_text(CAROL))
    assert air.dialled == []


async def test_each_peer_that_was_ever_known_is_held_by_one_task() -> None:
    found, started = Air().neighbours(), list[str]()

    async def hold(peer: str) -> None:
        started.append(peer)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.hold, hold)
        found.hear("a", ["bob:1", "bob:2"])
        found.hear("b", ["mallory:1"])
        await wait_all_tasks_blocked()
        assert started == [key_text(BOB)]
        found.hear("a", ["bob:3", "carol:1"])
        await wait_all_tasks_blocked()
        assert started == [key_text(BOB), key_text(CAROL)]
        found.hear("a", [])
        found.hear("a", ["bob:1"])
        await wait_all_tasks_blocked()
        assert started == [key_text(BOB), key_text(CAROL)]
        nursery.cancel_scope.cancel()


async def test_who_waits_for_a_peer_goes_on_when_it_is_heard_of() -> None:
    found, heard = Air().neighbours(), list[str]()

    async def wait(peer: str) -> None:
        await found.heard(peer)
        heard.append(peer)

    async with trio.open_nursery() as nursery:
        for key in (BOB, CAROL):
            nursery.start_soon(wait, key_text(key))
        await wait_all_tasks_blocked()
        found.hear("a", ["carol:1"])
        await wait_all_tasks_blocked()
        assert heard == [key_text(CAROL)]
        found.hear("a", ["bob:1"])
        await wait_all_tasks_blocked()
        assert heard == [key_text(CAROL), key_text(BOB)]
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------------- with a mesh


class Keyed(Network):
    """A network whose links prove the keys of their ends."""

    def node(self, name: str, key: bytes = b"") -> MemoryTransport:
        return super().node(name, key or CheapKey(name).key)


@attrs.define
class Local:
    """A transport on that network, whose addresses are names; everybody but mallory is pinned."""

    transport: MemoryTransport
    dialled: list[str] = attrs.field(factory=list)
    walled: bool = False
    """Nobody can be dialled."""

    @property
    def announced(self) -> Sequence[str]:
        return [self.transport.name]

    def admitted(self, address: str) -> bytes | None:
        return None if address in ("mallory", self.transport.name) else CheapKey(address).key

    async def dial(self, address: str) -> Link:
        self.dialled.append(address)
        if self.walled:
            raise LinkFailed(f"{address!r} is behind a wall")
        return await self.transport.dial(address)

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        await self.transport.serve(handler, task_status)


@asynccontextmanager
async def finding(world: World, node: Node) -> AsyncIterator[tuple[Neighbours, Local]]:
    """What a node hears of, and holds links to."""
    local = Local(world.network.node(node.name))
    found = Neighbours(local, node.mesh.connected)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.hold, partial(node.mesh.keep_dialing, found, announced=found))
        yield found, local
        nursery.cancel_scope.cancel()


@pytest.fixture
def world() -> World:
    return World(Keyed(random.Random(1), Weather()))


async def test_two_that_hear_of_each_other_at_once_have_one_session(autojump_clock: MockClock, world: World) -> None:
    async with (
        world.node("alice") as alice,
        world.node("bob") as bob,
        finding(world, alice) as (by_alice, from_alice),
        finding(world, bob) as (by_bob, from_bob),
    ):
        alice.append(3)
        by_alice.hear("b", ["bob", "alice", "mallory"])
        by_bob.hear("a", ["bob", "alice", "mallory"])
        await converged(alice, bob)
        await trio.sleep(3600)
        assert world.network.links() == [("alice", "bob")]
        assert (from_alice.dialled, from_bob.dialled) == (["bob"], ["alice"])


async def test_who_is_connected_already_is_not_dialled(autojump_clock: MockClock, world: World) -> None:
    async with world.node("alice") as alice, world.node("bob", "alice") as bob:
        bob.append(3)
        await converged(alice, bob)
        async with finding(world, alice) as (found, local):
            found.hear("b", ["bob"])
            await trio.sleep(3600)
            assert (local.dialled, world.network.links()) == ([], [("bob", "alice")])
            local.walled = True
            world.network.partition(["alice"], ["bob"], cut=True)
            await until(lambda: "bob" not in alice.mesh.peers)
            await until(lambda: alice.mesh.unreached)
            world.network.heal()
            await until(lambda: "bob" in alice.mesh.peers and not alice.mesh.unreached)


async def test_who_does_not_answer_is_tried_with_pauses_and_no_more_once_it_is_gone(
    autojump_clock: MockClock, world: World
) -> None:
    async with world.node("alice") as alice, finding(world, alice) as (found, local):
        found.hear("b", ["bob"])
        await trio.sleep(3600)
        assert alice.mesh.unreached == {key_text(BOB): "'bob' does not answer"}
        assert 3600 / 30 <= len(local.dialled) <= 3600 / 15 + 10
        found.hear("b", [])
        await trio.sleep(60)
        assert alice.mesh.unreached == {}
        before = len(local.dialled)
        await trio.sleep(3600)
        assert len(local.dialled) == before
        async with world.node("bob"):
            found.hear("b", ["bob"])
            await until(lambda: "bob" in alice.mesh.peers)


async def test_who_announces_and_withdraws_by_turns_gains_nothing(autojump_clock: MockClock, world: World) -> None:
    async with world.node("alice") as alice, finding(world, alice) as (found, local):
        for turn in range(3600):
            found.hear("b", ["bob"] if turn % 2 else [])
            await trio.sleep(1)
        assert len(local.dialled) <= 3600 / 15 + 10
        assert world.problems == [f"alice | {key_text(BOB)}: 'bob' does not answer"]


async def test_two_problems_by_turns_are_told_once_each(autojump_clock: MockClock, world: World) -> None:
    async with world.node("alice", "bob") as alice:
        reasons = [LinkFailed(f"reason {number}") for number in range(2)]
        turns = iter(reasons * 1000)

        class Fails:
            async def dial(self, address: str) -> Link:
                assert address == "carol"
                await trio.lowlevel.checkpoint()
                raise next(turns)

        with trio.move_on_after(3600):
            await alice.mesh.keep_dialing(Fails(), "carol")
        told = [text for text in world.problems if "reason" in text]
        assert told == [f"alice | carol: reason {number}" for number in range(2)]


async def test_a_link_outlives_the_announcement_that_led_to_it(autojump_clock: MockClock, world: World) -> None:
    async with world.node("alice") as alice, world.node("bob") as bob, finding(world, alice) as (found, local):
        found.hear("b", ["bob"])
        await until(lambda: "bob" in alice.mesh.peers)
        found.hear("b", [])
        alice.append(3)
        await converged(alice, bob)
        await trio.sleep(3600)
        assert (local.dialled, world.network.links()) == (["bob"], [("alice", "bob")])
