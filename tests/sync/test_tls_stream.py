"""Who is admitted over TLS, who is not, and what both sides are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio
from cryptography import x509

from sync.errors import LinkRefused, SyncError
from sync.node_keys import NodeKey, _certificate, admission, admit, key_text, leaf, load_certificate
from sync.tcp_transport import TcpLimits, TcpTransport, parse_address
from sync.tls_stream import Keyring
from sync.transport import Link
from tests.laws.transport import HANG_S, echo, read, until

ALICE, BOB, CAROL, CLUSTER, OTHER_CLUSTER = (NodeKey.from_seed(bytes([number]) * 32) for number in range(1, 6))
NOW = datetime.now(UTC)
MANY = TcpLimits(shaking_per_host_max=64)


def admitted(node: NodeKey, cluster: NodeKey = CLUSTER, now: datetime = NOW, days: float = 1) -> x509.Certificate:
    return load_certificate(admit(cluster, "demo", node.public, days, now=now).certificate)


def member(node: NodeKey, certificate: x509.Certificate | None = None) -> Keyring:
    """A node of the cluster that pins nobody."""
    return Keyring(node, clusters=[CLUSTER.public], admission=certificate or admitted(node))


def showing(node: NodeKey, *chain: x509.Certificate, pinned: bytes = BOB.public) -> Keyring:
    """A hostile node: it shows whatever it likes."""
    keyring = Keyring(node, pinned=[pinned])
    keyring._chain = list(chain)
    return keyring


@attrs.define
class Listening:
    """A listener, what it was told of refusals, and how many links it gave to a handler."""

    transport: TcpTransport
    address: str
    errors: list[SyncError]
    handled: list[bytes]
    told: trio.MemoryReceiveChannel[SyncError]

    async def next_error(self) -> SyncError:
        with trio.fail_after(HANG_S):
            return await self.told.receive()


@asynccontextmanager
async def listening(keyring: Keyring, limits: TcpLimits = MANY) -> AsyncIterator[Listening]:
    tell, told = trio.open_memory_channel[SyncError](100)
    errors: list[SyncError] = []
    handled: list[bytes] = []

    def refused(error: SyncError) -> None:
        errors.append(error)
        tell.send_nowait(error)

    async def handler(link: Link) -> None:
        handled.append(link.peer_key)
        await echo(link)

    transport = TcpTransport(keyring, limits=limits, refused=refused)
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(transport.serve, handler)
            yield Listening(transport, address, errors, handled, told)
            nursery.cancel_scope.cancel()


async def speak(keyring: Keyring, address: str) -> bytes:
    """Dial, pass a byte there and back; the key of the other side."""
    link = await TcpTransport(keyring).dial(address)
    await link.send_all(b"x")
    assert await read(link, 1) == b"x"
    await link.aclose()
    return link.peer_key


async def refused_there(dialer: Keyring, listener: Keyring, *reasons: str) -> None:
    """The listener refuses the dialer: both are told why, and no handler runs."""
    async with listening(listener) as there:
        with pytest.raises(LinkRefused) as caught:
            await TcpTransport(dialer).dial(there.address)
        error = await there.next_error()
        assert isinstance(error, LinkRefused)
        for reason in reasons:
            assert reason in str(caught.value)
            assert reason in str(error)
        assert key_text(dialer.key.public) in str(caught.value)
        assert there.handled == []
        assert there.transport.statistics().refused == 1
        assert there.transport.statistics().shaking == 0


async def refused_here(dialer: Keyring, listener: Keyring, reason: str) -> None:
    """The dialer refuses the listener: likewise."""
    async with listening(listener) as there:
        with pytest.raises(LinkRefused, match=reason):
            await TcpTransport(dialer).dial(there.address)
        error = await there.next_error()
        assert isinstance(error, LinkRefused)
        assert key_text(listener.key.public) in str(error)
        assert reason in str(error)
        assert there.handled == []


async def test_an_unpinned_dialer_is_refused_and_told_so() -> None:
    await refused_there(Keyring(CAROL, pinned=[BOB.public]), Keyring(BOB, pinned=[ALICE.public]), "neither pinned")


async def test_an_unpinned_listener_is_refused_and_told_so() -> None:
    await refused_here(Keyring(ALICE, pinned=[CAROL.public]), Keyring(BOB, pinned=[ALICE.public]), "neither pinned")


async def test_who_trusts_nobody_admits_nobody() -> None:
    await refused_there(Keyring(ALICE, pinned=[BOB.public]), Keyring(BOB), "neither pinned")


async def test_pins_and_cluster_serve_together() -> None:
    """One node shows one chain: a peer that pinned its key and a peer that trusts the cluster both take it."""
    async with listening(member(BOB)) as there:
        assert await speak(member(ALICE), there.address) == BOB.public
        assert await speak(Keyring(ALICE, pinned=[BOB.public], admission=admitted(ALICE)), there.address) == BOB.public
    async with listening(Keyring(BOB, pinned=[ALICE.public])) as there:
        assert await speak(Keyring(ALICE, pinned=[BOB.public], admission=admitted(ALICE)), there.address) == BOB.public


async def test_an_expired_admission_is_refused_on_both_sides() -> None:
    expired = member(ALICE, admitted(ALICE, now=NOW - timedelta(days=3)))
    await refused_there(expired, member(BOB), "expired")
    await refused_here(member(BOB), expired, "expired")


async def test_an_admission_of_tomorrow_is_refused() -> None:
    early = member(ALICE, admitted(ALICE, now=NOW + timedelta(days=1)))
    async with listening(member(BOB)) as there:
        with pytest.raises(LinkRefused):
            await TcpTransport(early).dial(there.address)
        assert "not valid yet" in str(await there.next_error())


async def test_an_expired_leaf_is_refused() -> None:
    expired = showing(ALICE, leaf(ALICE, until=NOW - timedelta(days=1)))
    await refused_there(expired, Keyring(BOB, pinned=[ALICE.public]), "expired")


async def test_a_pin_holds_though_the_admission_has_expired() -> None:
    expired = admitted(ALICE, now=NOW - timedelta(days=3))
    async with listening(Keyring(BOB, pinned=[ALICE.public], clusters=[CLUSTER.public])) as there:
        assert await speak(Keyring(ALICE, pinned=[BOB.public], admission=expired), there.address) == BOB.public
        assert there.handled == [ALICE.public]


async def test_a_foreign_cluster_is_refused_on_both_sides() -> None:
    foreign = member(ALICE, admitted(ALICE, OTHER_CLUSTER))
    await refused_there(foreign, member(BOB), "neither pinned")
    await refused_here(member(BOB), foreign, "neither pinned")


async def refused_forgery(forged: Keyring, listener: Keyring) -> None:
    async with listening(listener) as there:
        with pytest.raises(LinkRefused):
            await TcpTransport(forged).dial(there.address)
        assert isinstance(await there.next_error(), LinkRefused)
        assert there.handled == []


async def test_an_admitted_node_cannot_admit_others() -> None:
    """Its admission ends the path: neither a chain through it nor a leaf for another key passes."""
    through = admission(ALICE, CAROL.public, after=NOW - timedelta(days=1), until=NOW + timedelta(days=1))
    await refused_forgery(showing(CAROL, leaf(CAROL), through, admitted(ALICE)), member(BOB))
    await refused_forgery(showing(CAROL, leaf(CAROL), through), Keyring(BOB, pinned=[ALICE.public]))
    both = Keyring(BOB, pinned=[ALICE.public], clusters=[CLUSTER.public])
    await refused_forgery(showing(CAROL, leaf(CAROL), through), both)


async def test_a_leaf_that_another_key_signed_is_refused() -> None:
    """OpenSSL finds its chain in order; the key it shows is not the one the chain was made for."""
    lent = _certificate(
        "node", CAROL.public, ALICE.public, ALICE.private, None, NOW - timedelta(days=1), NOW + timedelta(days=1)
    )
    await refused_forgery(showing(CAROL, lent, admitted(ALICE)), member(BOB))
    await refused_forgery(showing(CAROL, lent), Keyring(BOB, pinned=[ALICE.public]))


async def test_a_leaf_with_a_stolen_name_is_refused() -> None:
    stolen = _certificate(
        "node", CAROL.public, ALICE.public, CAROL.private, None, NOW - timedelta(days=1), NOW + timedelta(days=1)
    )
    await refused_forgery(showing(CAROL, stolen), Keyring(BOB, pinned=[ALICE.public]))


async def test_the_cluster_key_is_not_a_node() -> None:
    async with listening(member(BOB)) as there:
        with pytest.raises(LinkRefused):
            await TcpTransport(showing(CLUSTER, leaf(CLUSTER))).dial(there.address)
        assert there.handled == []


async def test_pins_may_change_while_listening() -> None:
    keyring = Keyring(BOB)
    dialer = Keyring(ALICE, pinned=[BOB.public])
    async with listening(keyring) as there:
        keyring.pin(ALICE.public)
        assert keyring.pinned == {ALICE.public}
        assert await speak(dialer, there.address) == BOB.public
        keyring.unpin(ALICE.public)
        with pytest.raises(LinkRefused):
            await TcpTransport(dialer).dial(there.address)
        assert there.handled == [ALICE.public]


async def test_a_key_unpinned_during_its_handshake_is_not_let_in() -> None:
    keyring = Keyring(BOB, pinned=[ALICE.public], clusters=[CLUSTER.public])
    async with listening(keyring) as there:
        stream = await trio.open_tcp_stream(*parse_address(there.address))
        await until(lambda: there.transport.statistics().shaking == 1)
        keyring.unpin(ALICE.public)
        alice = Keyring(ALICE, pinned=[BOB.public]).contexts().client
        tls = trio.SSLStream(stream, alice)
        await tls.do_handshake()
        assert await tls.receive_some(1) == b"\x01"
        await tls.send_all(b"\x01")
        assert "changed while" in str(await there.next_error())
        assert there.handled == []
        await trio.aclose_forcefully(tls)
