"""Nodes that find each other by mDNS on loopback: who is dialled, who is not, and what a liar changes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

from deltalog.app.node import Node, open_node
from deltalog.app.peer_options import PeerOptions
from deltalog.app.peering import prepare
from deltalog.errors import UsageError
from sync import Mesh, SyncOptions
from sync.libp2p_transport import Libp2pTransport
from sync.mdns import open_mdns
from sync.multiaddrs import peer_id
from sync.node_keys import NodeKey, parse_key
from tests.app.peered import new_key

LIMIT_S = 60
pytestmark = [
    pytest.mark.system("multicast"),
    pytest.mark.filterwarnings("default"),  # py-libp2p's own
]


@attrs.define
class Hearsay:
    """What nodes were told: (their key, the address) -> whether they may dial it."""

    judged: dict[tuple[bytes, str], bool] = attrs.field(factory=dict)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def note(self, key: bytes, address: str, *, admitted: bool) -> None:
        self.judged[key, address] = admitted
        self._changed.set()

    async def wait(self, address: str, *keys: bytes) -> list[bool]:
        """Return what these nodes made of an address, once all have heard of it."""
        while not all((key, address) in self.judged for key in keys):
            await self._changed.wait()
            self._changed = trio.Event()
        return [self.judged[key, address] for key in keys]


@pytest.fixture
def hearsay(monkeypatch: pytest.MonkeyPatch) -> Hearsay:
    told, admitted = Hearsay(), Libp2pTransport.admitted

    def judge(self: Libp2pTransport, address: str) -> bytes | None:
        key = admitted(self, address)
        told.note(self._keyring.key.public, address, admitted=key is not None)
        return key

    monkeypatch.setattr(Libp2pTransport, "admitted", judge)
    return told


def keys(folder: Path, *names: str) -> list[bytes]:
    """Public keys of new nodes."""
    return [parse_key(new_key(folder / name)) for name in names]


@asynccontextmanager
async def finding(folder: Path, name: str, *pins: bytes) -> AsyncIterator[Node]:
    """A node that knows nothing of others but their keys, and has written one delta."""
    options = PeerOptions(
        pinned=frozenset(pins),
        libp2p_listen="/ip4/127.0.0.1/tcp/0",
        discover=True,
        sync=SyncOptions(heartbeat_s=0.1, backoff_max_s=0.5),
    )
    async with open_node(folder / name, source=name, peering=options) as node:
        await node.log.append(name, durable=True)
        yield node


async def synced(*nodes: Node) -> None:
    """Return when all hold what each has written, and have said so."""
    names = {node.log.source for node in nodes}

    async def hears(mesh: Mesh) -> None:
        await mesh.wait(lambda: mesh.log.synced.keys() >= names)
        for name in names - {mesh.log.source}:
            await mesh.equal(name)

    for node in nodes:
        assert node.mesh is not None
        await hears(node.mesh)


@asynccontextmanager
async def stranger(key: bytes, *more: str) -> AsyncIterator[tuple[socket.socket, str]]:
    """Somebody who announces that a key listens where he does, and takes no connection; and other addresses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{peer_id(key)}"
        async with open_mdns([address, *more], lambda *_: None):
            yield server, address


def was_dialled(server: socket.socket) -> bool:
    with suppress(BlockingIOError):
        server.accept()[0].close()
        return True
    return False


async def test_i14_two_nodes_that_know_only_each_others_key_find_each_other(tmp_path: Path) -> None:
    pins = keys(tmp_path, "alice", "bob")
    with trio.fail_after(LIMIT_S):
        async with finding(tmp_path, "alice", *pins) as alice, finding(tmp_path, "bob", *pins) as bob:
            await synced(alice, bob)
            assert alice.mesh is not None
            assert list(alice.mesh.peers) == ["bob"]
            assert alice.peers is not None
            (address,) = alice.peers.listening
            assert address.startswith("/ip4/127.0.0.1/tcp/")


async def test_a_node_that_comes_back_at_another_port_is_found_again(tmp_path: Path) -> None:
    pins = keys(tmp_path, "alice", "bob")
    with trio.fail_after(LIMIT_S):
        async with finding(tmp_path, "alice", *pins) as alice:
            mesh = alice.mesh
            assert mesh is not None
            for _ in range(2):
                async with finding(tmp_path, "bob", *pins) as bob:
                    await synced(alice, bob)
                await mesh.wait(lambda: not mesh.peers)


async def test_who_is_not_pinned_is_not_dialled(tmp_path: Path, hearsay: Hearsay) -> None:
    pins = keys(tmp_path, "alice", "bob")
    with trio.fail_after(LIMIT_S):
        async with (
            stranger(NodeKey.generate().public) as (server, address),
            finding(tmp_path, "alice", *pins) as alice,
            finding(tmp_path, "bob", *pins) as bob,
        ):
            await synced(alice, bob)
            assert await hearsay.wait(address, *pins) == [False, False]
            assert not was_dialled(server)


async def test_a_node_that_only_one_side_has_pinned_gets_no_session(tmp_path: Path, hearsay: Hearsay) -> None:
    alice_key, bob_key, _ = keys(tmp_path, "alice", "bob", "carol")
    with trio.fail_after(LIMIT_S):
        async with (
            finding(tmp_path, "carol", alice_key, bob_key) as carol,
            finding(tmp_path, "alice", alice_key, bob_key) as alice,
            finding(tmp_path, "bob", alice_key, bob_key) as bob,
        ):
            assert carol.peers is not None
            (address,) = carol.peers.listening
            assert await hearsay.wait(address, alice_key, bob_key) == [False, False]
            await synced(alice, bob)
            assert carol.mesh is not None
            assert carol.mesh.peers == {}
            assert list(carol.log.synced) == ["carol"]


async def test_a_liar_costs_dials_and_nothing_else(tmp_path: Path, hearsay: Hearsay) -> None:
    """In bob's name he announces where nobody answers, and garbage."""
    alice_key, bob_key = pins = keys(tmp_path, "alice", "bob")
    here, bob_id = "/ip4/127.0.0.1", peer_id(bob_key)
    lies = [here, f"{here}/tcp/0/p2p/{bob_id}", f"{here}/tcp/1/ws/p2p/{bob_id}", f"{here}/tcp/1/p2p/{bob_id}x"]
    with trio.fail_after(LIMIT_S):
        async with (
            stranger(bob_key, *lies) as (_, address),
            finding(tmp_path, "alice", *pins) as alice,
        ):
            assert await hearsay.wait(address, alice_key) == [True]
            async with finding(tmp_path, "bob", *pins) as bob:
                await synced(alice, bob)
        assert [hearsay.judged[alice_key, lie] for lie in lies] == [False] * len(lies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PeerOptions(discover=True, pinned=frozenset([bytes(32)])), "--discover .* goes with --libp2p-listen"),
        (PeerOptions(discover=True, libp2p_listen="/ip4/127.0.0.1/tcp/0"), "--discover .* goes with --pin"),
    ],
)
def test_what_it_cannot_work_without_is_named(tmp_path: Path, options: PeerOptions, message: str) -> None:
    new_key(tmp_path)
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, options)
