"""Links over libp2p: the laws on loopback hosts, who is refused, addresses, logging."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from deltalog.errors import UsageError
from sync.errors import LinkFailed, LinkRefused, SyncError
from sync.libp2p_transport import open_libp2p
from sync.multiaddrs import peer_id
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


async def test_an_address_that_failed_does_not_stand_in_the_way_of_one_that_answers() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        async with (
            listening(Keyring(BOB, pinned=[ALICE.public])) as (address, _, handled),
            open_libp2p(Keyring(ALICE, pinned=[BOB.public]), None) as dialer,
        ):
            with pytest.raises(LinkFailed):
                await dialer.dial(re.sub(r"/tcp/\d+", f"/tcp/{nobody.getsockname()[1]}", address))
            link = await dialer.dial(address)
            await link.send_all(b"x")
            assert await read(link, 1) == b"x"
            assert handled == [ALICE.public]
            await link.aclose()


async def test_a_peer_that_does_not_answer_holds_up_nobody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with (
            listening(Keyring(BOB, pinned=[ALICE.public])) as (address, _, _),
            open_libp2p(Keyring(ALICE, pinned=[BOB.public, CAROL.public]), None) as dialer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(dialer.dial, f"{address_of(silent)}/p2p/{peer_id(CAROL.public)}")
            with (await trio.to_thread.run_sync(silent.accept))[0]:
                link = await dialer.dial(address)
                await link.aclose()
                nursery.cancel_scope.cancel()


def address_of(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"/ip4/{host}/tcp/{port}"


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


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/7000/p2p/BOB",
        "/ip4/192.0.2.7/tcp/0/p2p/BOB",
        "/ip4/192.0.2.7/tcp/70000/p2p/BOB",
        "/ip4/192.0.2.7/udp/7000/p2p/BOB",
        "/ip4/192.0.2.7/tcp/7000",
        "/ip4/192.0.2.7/tcp/7000/p2p/",
        "/ip4/192.0.2.7/tcp/7000/p2p/BOBx",
        "/ip4/192.0.2.7/tcp/7000/ws/p2p/BOB",
        "/ip4/192.0.2.7/tcp/7000/p2p/BOB/p2p-circuit/p2p/BOB",
        "/ip4/192.0.2.7/tcp/7000/p2p/BOB\n",
        "/ip4/192.0.2.7/tcp/7000/p2p/CAROL",
        "/ip4/192.0.2.7/tcp/7000/p2p/ALICE",
        "/ip4/192.0.2.7/tcp/7000/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/0.0.0.0/tcp/7000/p2p/BOB",
        "/ip4/224.0.0.251/tcp/7000/p2p/BOB",
        "/ip4/fd00::7/tcp/7000/p2p/BOB",
        "/ip6/192.0.2.7/tcp/7000/p2p/BOB",
        "/ip6/::1/tcp/7000/p2p/BOB",
        "/ip6/::ffff:127.0.0.1/tcp/7000/p2p/BOB",
        "/ip6/fe80::7/tcp/7000/p2p/BOB",
        "/ip6zone/eth0/ip6/fe80::7/tcp/7000/p2p/BOB",
        "/dns4/example.org/tcp/7000/p2p/BOB",
        "bob:7000",
        "",
    ],
)
async def test_what_was_announced_and_is_not_dialled(address: str) -> None:
    for name, key in (("ALICE", ALICE), ("BOB", BOB), ("CAROL", CAROL)):
        address = address.replace(name, peer_id(key.public))
    async with open_libp2p(Keyring(ALICE, pinned=[ALICE.public, BOB.public]), "/ip4/0.0.0.0/tcp/0") as transport:
        assert transport.admitted(address) is None
        for good in ("/ip4/192.0.2.7/tcp/7000", "/ip6/fd00::7/tcp/65535"):
            assert transport.admitted(f"{good}/p2p/{peer_id(BOB.public)}") == BOB.public


async def test_a_host_on_loopback_finds_others_there_only() -> None:
    async with open_libp2p(Keyring(ALICE, pinned=[BOB.public])) as transport:
        (address,) = transport.announced
        assert re.fullmatch(rf"/ip4/127\.0\.0\.1/tcp/\d+/p2p/{peer_id(ALICE.public)}", address)
        assert transport.admitted(f"/ip4/127.0.0.1/tcp/7000/p2p/{peer_id(BOB.public)}") == BOB.public
        assert transport.admitted(f"/ip4/192.0.2.7/tcp/7000/p2p/{peer_id(BOB.public)}") is None


async def test_a_host_on_all_interfaces_announces_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = {"lo": ["127.0.0.1", "127.0.0.2"], "eth0": ["192.0.2.7"], "eth1": ["198.51.100.7"]}
    monkeypatch.setattr(
        "multiaddr.utils.psutil.net_if_addrs",
        lambda: {
            name: [SimpleNamespace(family=socket.AF_INET, address=each) for each in addresses]
            for name, addresses in interfaces.items()
        },
    )
    async with open_libp2p(Keyring(ALICE), "/ip4/0.0.0.0/tcp/0") as transport:
        hosts = [address.split("/")[2] for address in transport.announced]
        assert hosts == ["192.0.2.7", "198.51.100.7"]
    del interfaces["eth0"], interfaces["eth1"]
    async with open_libp2p(Keyring(ALICE), "/ip4/0.0.0.0/tcp/0") as transport:
        assert [address.split("/")[2] for address in transport.announced] == ["127.0.0.2"]
    del interfaces["lo"][1]
    async with open_libp2p(Keyring(ALICE), "/ip4/0.0.0.0/tcp/0") as transport:
        assert transport.announced == []


async def test_who_listens_nowhere_serves_nobody() -> None:
    async with open_libp2p(Keyring(ALICE), None) as transport:
        with pytest.raises(UsageError, match="listens nowhere"):
            await transport.serve(echo)


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
import sync.mdns
assert (logger.level, logger.handlers, logger.propagate) == (7, [handler], True)
assert (root.level, root.handlers) == before
assert logging.getLogger("libp2p.network.auto_connector").level == logging.NOTSET
zeroconf = logging.getLogger("zeroconf")
assert (zeroconf.level, zeroconf.propagate) == (logging.NOTSET, True)
assert {type(handler) for handler in zeroconf.handlers} <= {logging.NullHandler}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
