"""A node with peers: what is made of the options and the keys, over TLS and libp2p, and the order in which it ends."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio

from deltalog.app import peering
from deltalog.app.node import Node, open_node
from deltalog.app.node_identity import admit, put_admission
from deltalog.app.peer_options import PeerOptions
from deltalog.app.peering import prepare
from deltalog.causality import Conflict
from deltalog.errors import UsageError
from sync import SyncOptions
from sync.node_keys import NODE_CERTIFICATE, NodeKey, load_key, parse_key
from tests.app.peered import new_key

QUICK = SyncOptions(heartbeat_s=0.1, backoff_max_s=0.5)
LIMIT_S = 60


def pinning(folder: Path, *names: str) -> PeerOptions:
    """Options of nodes that pin each other's new keys."""
    return PeerOptions(pinned=frozenset(parse_key(new_key(folder / name)) for name in names), sync=QUICK)


def addresses(node: Node) -> Sequence[str]:
    assert node.peers is not None
    return node.peers.listening


async def has_sources(node: Node, count: int) -> None:
    """Return when deltas of so many sources are synced at a node."""
    assert node.mesh is not None
    await node.mesh.wait(lambda: len(node.log.synced) == count)


async def equal(node: Node, name: str) -> None:
    assert node.mesh is not None
    await node.mesh.equal(name)


async def test_conflicts_with_a_peer_are_told(tmp_path: Path) -> None:
    options, found, told = pinning(tmp_path, "alice", "bob"), list[Conflict](), trio.Event()

    def tell(conflict: Conflict) -> None:
        found.append(conflict)
        told.set()

    listening = attrs.evolve(options, listen="127.0.0.1:0")
    with trio.fail_after(LIMIT_S):
        async with open_node(tmp_path / "alice", source="alice", peering=listening, on_conflict=tell) as alice:
            await alice.log.append(1, key="list", durable=True)
            dialing = attrs.evolve(options, peers=tuple(addresses(alice)))
            async with open_node(tmp_path / "bob", source="bob") as bob:
                await bob.log.append(2, key="list", durable=True)
            async with open_node(tmp_path / "bob", peering=dialing) as bob:
                await equal(alice, "bob")
                await equal(bob, "alice")
                await told.wait()
    assert {found[0].first.source, found[0].second.source} == {"alice", "bob"}


@pytest.mark.filterwarnings("default")  # py-libp2p's own
async def test_i14_nodes_sync_over_libp2p_too(tmp_path: Path) -> None:
    options = pinning(tmp_path, "alice", "bob", "carol")
    with trio.fail_after(LIMIT_S):
        listening = attrs.evolve(options, listen="127.0.0.1:0", libp2p_listen="/ip4/127.0.0.1/tcp/0")
        async with open_node(tmp_path / "alice", source="alice", peering=listening) as alice:
            tcp, libp2p = addresses(alice)
            assert libp2p.startswith("/ip4/127.0.0.1/tcp/")
            async with (
                open_node(tmp_path / "bob", source="bob", peering=attrs.evolve(options, peers=(libp2p,))) as bob,
                open_node(tmp_path / "carol", source="carol", peering=attrs.evolve(options, peers=(tcp,))) as carol,
            ):
                for node in (alice, bob, carol):
                    await node.log.append(node.log.source, durable=True)
                for node in (alice, bob, carol):
                    await has_sources(node, 3)
                assert bob.mesh is not None
                assert [each.link.split()[0] for each in bob.mesh.statuses()] == ["libp2p"]


async def test_a_node_keeps_its_name_when_its_source_goes_on_as_a_new_incarnation(tmp_path: Path) -> None:
    options = attrs.evolve(pinning(tmp_path, "alice"), listen="127.0.0.1:0")
    async with open_node(tmp_path / "alice", source="alice") as alice:
        await alice.log.append(1, durable=True)
    (tmp_path / "alice").rename(tmp_path / "moved")
    async with open_node(tmp_path / "moved", peering=options, adopt=True) as alice:
        assert alice.mesh is not None
        assert alice.mesh.node == "alice"
        assert alice.peers is not None
    async with open_node(tmp_path / "moved", peering=options, name="here") as alice:
        assert alice.mesh is not None
        assert alice.mesh.node == "here"


async def test_a_node_that_ends_says_so_to_its_peers(tmp_path: Path) -> None:
    options = pinning(tmp_path, "alice", "bob")
    listening = attrs.evolve(options, listen="127.0.0.1:0")
    with trio.fail_after(LIMIT_S):
        async with open_node(tmp_path / "alice", source="alice", peering=listening) as alice:
            mesh = alice.mesh
            assert mesh is not None
            dialing = attrs.evolve(options, peers=tuple(addresses(alice)))
            async with open_node(tmp_path / "bob", source="bob", peering=dialing) as bob:
                await bob.log.append(1, durable=True)
                assert bob.mesh is not None
                await bob.mesh.wait(lambda: bob.log.held_by(1) == {"bob": 1})
            await mesh.wait(lambda: not mesh.peers)
            (status,) = mesh.statuses()
            assert (status.state, status.problem) == ("offline", "")
            assert alice.log.heads == {"bob": 1}
            assert alice.problems() == []


async def test_an_admission_that_has_expired_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = NodeKey.generate()
    key = parse_key(new_key(tmp_path / "data"))
    put_admission(tmp_path / "data" / NODE_CERTIFICATE, admit(authority, "team", key, 1.0))

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return datetime.now(UTC) + timedelta(days=2)

    async with open_node(tmp_path / "data", peering=PeerOptions(listen="127.0.0.1:0")) as node:
        assert node.problems() == []
        monkeypatch.setattr(peering, "datetime", Later)
        (problem,) = node.problems()
    assert problem.startswith("the admission to cluster 'team' expired at ")


def test_what_is_trusted_follows_from_options_and_admission(tmp_path: Path) -> None:
    data, authority, other = tmp_path / "data", NodeKey.generate(), NodeKey.generate()
    key = parse_key(new_key(data))
    alone = prepare(data, PeerOptions(pinned=frozenset({key, other.public})))
    assert alone.trust.cluster == "deltalog"
    assert [alone.trust.admits(each) for each in (key, other.public, authority.public)] == [True, True, False]
    assert alone.keyring is not None
    assert alone.keyring.pinned == {other.public}, "it does not talk to itself"
    put_admission(data / NODE_CERTIFICATE, admit(authority, "team", key, 1.0))
    member = prepare(data, PeerOptions())
    assert member.trust.cluster == "team"
    assert member.trust.admits(other.public, admit(authority, "team", other.public, 1.0).voucher)
    assert not member.trust.admits(other.public, admit(authority, "club", other.public, 1.0).voucher)
    assert load_key(data / "node.key").public == key
    with pytest.raises(UsageError, match="cluster is 'club', and this node is admitted to 'team'"):
        prepare(data, PeerOptions(cluster="club"))


def test_a_plain_node_needs_no_key_and_signs_with_one(tmp_path: Path) -> None:
    parts = prepare(tmp_path, PeerOptions(plain=True, unsigned=frozenset({"alice"})))
    assert (parts.identity, parts.keyring) == (None, None)
    key = parse_key(new_key(tmp_path / "data"))
    parts = prepare(tmp_path / "data", PeerOptions(plain=True))
    assert parts.keyring is None
    assert parts.identity is not None
    assert parts.identity.key == key
