"""Links over libp2p: the laws on loopback hosts, who is refused, addresses, logging."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.peer.id import ID

from deltalog.errors import UsageError
from sync.errors import LinkFailed, LinkRefused, SyncError
from sync.libp2p_transport import key_of, open_libp2p, peer_id
from sync.node_keys import NodeKey, key_text
from sync.tls_stream import Keyring
from sync.transport import Link
from tests.laws.transport import HANG_S, Pair, TransportLaws, echo, ended, read

ALICE, BOB, CAROL = (NodeKey.from_seed(bytes([number]) * 32) for number in range(1, 4))


class TestLibp2p(TransportLaws):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        async with (
            open_libp2p(Keyring(ALICE, pinned=[BOB.public]), None) as dialer,
            open_libp2p(Keyring(BOB, pinned=[ALICE.public])) as listener,
        ):
            yield Pair(dialer, listener, ALICE.public, BOB.public)


@asynccontextmanager
async def listening(keyring: Keyring) -> AsyncIterator[tuple[str, list[SyncError], list[bytes]]]:
    """An address, what was refused there, and the keys that got a handler."""
    refused: list[SyncError] = []
    handled: list[bytes] = []

    async def handler(link: Link) -> None:
        handled.append(link.peer_key)
        await echo(link)

    with trio.fail_after(HANG_S):
        async with open_libp2p(keyring, refused=refused.append) as transport, trio.open_nursery() as nursery:
            yield await nursery.start(transport.serve, handler), refused, handled
            nursery.cancel_scope.cancel()


async def test_two_hosts_connect_by_their_node_keys() -> None:
    async with (
        listening(Keyring(BOB, pinned=[ALICE.public])) as (address, refused, handled),
        open_libp2p(Keyring(ALICE, pinned=[BOB.public]), None) as dialer,
    ):
        assert address.endswith(f"/p2p/{peer_id(BOB.public)}")
        link = await dialer.dial(address)
        await link.send_all(b"over noise")
        assert await read(link, 10) == b"over noise"
        assert link.peer_key == BOB.public
        assert handled == [ALICE.public]
        assert refused == []
        await link.aclose()


async def test_an_unpinned_dialer_is_refused_and_told_so() -> None:
    async with (
        listening(Keyring(BOB, pinned=[ALICE.public])) as (address, refused, handled),
        open_libp2p(Keyring(CAROL, pinned=[BOB.public]), None) as dialer,
    ):
        with pytest.raises(LinkRefused, match="does not admit this node's key ed25519:"):
            await dialer.dial(address)
        assert handled == []
        assert [type(error) for error in refused] == [LinkRefused]
        assert key_text(CAROL.public) in str(refused[0])


async def test_an_unpinned_listener_is_not_even_dialled() -> None:
    async with (
        listening(Keyring(BOB, pinned=[ALICE.public])) as (address, refused, handled),
        open_libp2p(Keyring(ALICE, pinned=[CAROL.public]), None) as dialer,
    ):
        with pytest.raises(LinkRefused, match="not pinned here"):
            await dialer.dial(address)
        assert (refused, handled) == ([], [])


async def test_a_host_with_another_key_than_the_address_names_is_not_taken() -> None:
    async with (
        listening(Keyring(BOB, pinned=[ALICE.public])) as (address, _, handled),
        open_libp2p(Keyring(ALICE, pinned=[CAROL.public]), None) as dialer,
    ):
        with pytest.raises(LinkFailed):
            await dialer.dial(address.replace(peer_id(BOB.public), peer_id(CAROL.public)))
        assert handled == []


async def test_a_host_that_stops_cuts_its_links() -> None:
    async with open_libp2p(Keyring(ALICE, pinned=[BOB.public]), None) as dialer:
        async with listening(Keyring(BOB, pinned=[ALICE.public])) as (address, _, _):
            link = await dialer.dial(address)
            await link.send_all(b"x")
            assert await read(link, 1) == b"x"
        with trio.fail_after(HANG_S):
            assert await ended(lambda: link.receive_some(1))
            with pytest.raises(LinkFailed):
                await link.send_all(b"x")
            with pytest.raises(LinkFailed):
                await dialer.dial(address)
        await link.aclose()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("localhost:7000", "no multiaddr"),
        ("/ip4/300.0.0.1/tcp/1", "no multiaddr"),
        ("/ip4/127.0.0.1/tcp/1", "does not end in /p2p/"),
    ],
)
async def test_a_wrong_address_is_named(address: str, reason: str) -> None:
    async with open_libp2p(Keyring(ALICE), None) as dialer:
        with pytest.raises(UsageError, match=reason):
            await dialer.dial(address)


async def test_who_listens_nowhere_serves_nobody() -> None:
    async with open_libp2p(Keyring(ALICE), None) as transport:
        with pytest.raises(UsageError, match="listens nowhere"):
            await transport.serve(echo)


def test_a_peer_id_is_the_key() -> None:
    """The example of the libp2p specification has the same form: 12D3KooW..."""
    assert peer_id(ALICE.public).startswith("12D3KooW")
    assert key_of(ID.from_base58(peer_id(ALICE.public))) == ALICE.public
    with pytest.raises(LinkRefused, match="no Ed25519 key"):
        key_of(ID.from_base58("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"))


def test_importing_it_leaves_logging_alone() -> None:
    program = """
import logging
logger = logging.getLogger("libp2p")
handler = logging.NullHandler()
logger.addHandler(handler)
logger.setLevel(7)
root = logging.getLogger()
before = root.level, list(root.handlers)
import sync.libp2p_transport
assert (logger.level, logger.handlers, logger.propagate) == (7, [handler], True)
assert (root.level, root.handlers) == before
assert logging.getLogger("libp2p.network.auto_connector").level == logging.NOTSET
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
