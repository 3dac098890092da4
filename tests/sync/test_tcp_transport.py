"""Links over TCP: the laws with TLS and without, strangers, limits, addresses."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import UsageError
from sync.errors import LinkFailed, LinkRefused
from sync.tcp_transport import TcpLimits, TcpTransport, format_address, is_loopback, parse_address
from sync.tls_stream import Keyring
from tests.laws.transport import Pair, TransportLaws, connected, echo, read, serving, until
from tests.sync.test_tls_stream import ALICE, BOB, MANY, listening, member, speak


class TestTls(TransportLaws):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        dialer = TcpTransport(Keyring(ALICE, pinned=[BOB.public]))
        listener = TcpTransport(Keyring(BOB, pinned=[ALICE.public]), limits=MANY)
        yield Pair(dialer, listener, ALICE.public, BOB.public)


class TestTlsOverIPv6InACluster(TransportLaws):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        listener = TcpTransport(member(BOB), "[::1]:0", limits=MANY)
        yield Pair(TcpTransport(member(ALICE)), listener, ALICE.public, BOB.public)


class TestPlain(TransportLaws):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        yield Pair(TcpTransport(None, plain=True), TcpTransport(None, plain=True))


# ---------------------------------------------------------------------------------------------------- strangers, limits


async def test_what_is_no_tls_ends_its_connection_only() -> None:
    async with listening(Keyring(BOB, pinned=[ALICE.public])) as there:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x02\x00" + bytes(600)):
            stream = await trio.open_tcp_stream(*parse_address(there.address))
            await stream.send_all(junk)
            while await stream.receive_some(100):
                pass  # an alert, and the end
            await stream.aclose()
            assert isinstance(await there.next_error(), LinkFailed)
        assert await speak(Keyring(ALICE, pinned=[BOB.public]), there.address) == BOB.public
        assert there.transport.statistics().failed == 3


async def test_neither_old_tls_nor_a_missing_certificate_passes() -> None:
    async with listening(Keyring(BOB, pinned=[ALICE.public])) as there:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        bare = trio.SSLStream(await trio.open_tcp_stream(*parse_address(there.address)), context)
        await bare.do_handshake()
        error = await there.next_error()
        assert isinstance(error, LinkRefused)
        assert "no certificate" in str(error)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        old = trio.SSLStream(await trio.open_tcp_stream(*parse_address(there.address)), context)
        with pytest.raises(trio.BrokenResourceError):
            await old.do_handshake()
        assert isinstance(await there.next_error(), LinkFailed)
        assert there.handled == []
        for tls in (bare, old):
            await trio.aclose_forcefully(tls)


async def test_no_session_can_be_resumed() -> None:
    async with listening(Keyring(BOB, pinned=[ALICE.public])) as there:
        link = await TcpTransport(Keyring(ALICE, pinned=[BOB.public])).dial(there.address)
        await link.send_all(b"x")
        await read(link, 1)
        session = link._tls.session  # type: ignore[attr-defined]
        assert session is None or not session.has_ticket
        await link.aclose()


async def test_a_half_open_handshake_times_out() -> None:
    limits = TcpLimits(handshake_timeout_s=0.2)
    async with listening(Keyring(BOB, pinned=[ALICE.public]), limits) as there:
        stream = await trio.open_tcp_stream(*parse_address(there.address))
        assert "did not end its handshake within 0.2 s" in str(await there.next_error())
        assert await stream.receive_some(1) == b""
        await until(lambda: there.transport.statistics().open == 0)
        await stream.aclose()


async def test_a_listener_that_says_nothing_fails_the_dial() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, silent, 0)
        address = format_address("127.0.0.1", listeners[0].socket.getsockname()[1])
        dialer = TcpTransport(Keyring(ALICE, pinned=[BOB.public]), limits=TcpLimits(handshake_timeout_s=0.2))
        with pytest.raises(LinkFailed, match="did not end its handshake"):
            await dialer.dial(address)
        nursery.cancel_scope.cancel()


async def test_one_host_shakes_so_many_hands_at_once() -> None:
    limits = TcpLimits(shaking_per_host_max=2)
    async with listening(Keyring(BOB, pinned=[ALICE.public]), limits) as there:
        waiting = [await trio.open_tcp_stream(*parse_address(there.address)) for _ in range(2)]
        await until(lambda: there.transport.statistics().shaking == 2)
        with pytest.raises(LinkFailed):
            await speak(Keyring(ALICE, pinned=[BOB.public]), there.address)
        assert there.transport.statistics().turned_away == 1
        for stream in waiting:
            await stream.aclose()
        await until(lambda: there.transport.statistics().shaking == 0)
        assert await speak(Keyring(ALICE, pinned=[BOB.public]), there.address) == BOB.public


async def test_connections_are_limited_and_come_free_again() -> None:
    limits = TcpLimits(connections_max=3)
    dialer = TcpTransport(Keyring(ALICE, pinned=[BOB.public]))
    async with listening(Keyring(BOB, pinned=[ALICE.public]), limits) as there:
        links = [await dialer.dial(there.address) for _ in range(3)]
        with pytest.raises(LinkFailed):
            await dialer.dial(there.address)
        await links.pop().aclose()
        await until(lambda: there.transport.statistics().open == 2)
        links.append(await dialer.dial(there.address))
        for link in links:
            await link.aclose()
        assert there.transport.statistics().taken == 5


async def test_a_link_cut_without_a_close_is_not_a_tidy_end() -> None:
    pair = Pair(TcpTransport(Keyring(ALICE, pinned=[BOB.public])), TcpTransport(Keyring(BOB, pinned=[ALICE.public])))
    async with connected(pair) as ends:
        await ends.near.send_all(b"half a sen")
        await trio.aclose_forcefully(ends.near._stream)  # type: ignore[attr-defined]
        assert await read(ends.far, 10) == b"half a sen"
        with pytest.raises(LinkFailed, match="without a close"):
            await ends.far.receive_some(1)


async def test_a_cancelled_send_tears_the_link() -> None:
    pair = Pair(TcpTransport(Keyring(ALICE, pinned=[BOB.public])), TcpTransport(Keyring(BOB, pinned=[ALICE.public])))
    async with connected(pair) as ends:
        with trio.move_on_after(0.1) as scope:
            await ends.near.send_all(bytes(64 * 1024 * 1024))
        assert scope.cancelled_caught
        with pytest.raises(LinkFailed):
            await ends.near.send_all(b"after half a record")


# ---------------------------------------------------------------------------------------------------------- addresses


@given(st.sampled_from(["127.0.0.1", "::1", "localhost", "node-1.example.org", "fe80::1%eth0"]), st.integers(0, 65535))
def test_an_address_reads_as_it_is_written(host: str, port: int) -> None:
    assert parse_address(format_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no port"),
        ("localhost", "has no port"),
        (":7000", "has no host"),
        ("[]:7000", "has no host"),
        ("a b:7000", "has no host"),
        ("::1:7000", "in brackets"),
        ("host:", "port '' is not a number"),
        ("host:x", "port 'x' is not a number"),
        ("host:-1", "port '-1' is not a number"),
        ("host:65536", "port '65536' is not a number"),
        ("host:\u0663", "is not a number"),
        ("host:" + "9" * 5000, "is not a number"),
    ],
)
def test_a_wrong_address_is_named(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_address(text)


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")))


async def test_plain_tcp_stays_on_loopback() -> None:
    with pytest.raises(UsageError, match="not on loopback"):
        TcpTransport(None, "0.0.0.0:0", plain=True)
    with pytest.raises(UsageError, match="not on loopback"):
        await TcpTransport(None, plain=True).dial("192.0.2.1:7000")


async def test_a_name_that_leads_off_loopback_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is what the resolver says; what counts is where the socket is."""
    monkeypatch.setattr("sync.tcp_transport.is_loopback", lambda host: host == "localhost")
    with pytest.raises(UsageError, match="not on loopback"):
        async with serving(Pair(TcpTransport(None, plain=True), TcpTransport(None, "localhost:0", plain=True)), echo):
            pass
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, trio.aclose_forcefully, 0)
        with pytest.raises(UsageError, match="not on loopback"):
            await TcpTransport(None, plain=True).dial(f"localhost:{listeners[0].socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


def test_plain_is_an_explicit_choice() -> None:
    with pytest.raises(UsageError, match="plain=True"):
        TcpTransport(None)
    with pytest.raises(UsageError, match="plain=True"):
        TcpTransport(Keyring(ALICE), plain=True)


async def test_dials_and_listens_that_cannot_be_say_why() -> None:
    transport = TcpTransport(Keyring(BOB))
    async with listening(Keyring(BOB)) as there:
        with pytest.raises(LinkFailed, match="cannot listen at .*in use"):
            await TcpTransport(Keyring(BOB), there.address).serve(echo)
        gone = there.address
    with pytest.raises(LinkFailed, match="refused"):
        await transport.dial(gone)
    with pytest.raises(UsageError, match="port 0"):
        await transport.dial("127.0.0.1:0")
    with pytest.raises(UsageError, match="no name"):
        await transport.dial("a" * 64 + ".example:1")


async def test_small_writes_are_not_held_back() -> None:
    pair = Pair(TcpTransport(None, plain=True), TcpTransport(None, plain=True))
    async with connected(pair) as ends:
        for link in (ends.near, ends.far):
            assert link._stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # type: ignore[attr-defined]
