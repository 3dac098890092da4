"""Links over libp2p (py-libp2p 0.8): one stream of `/deltalog/sync/1` per link, over TCP with noise and yamux.

The host's key is the node's. An address is a multiaddr that ends in the peer's id, and a peer id of an Ed25519 key is
that key (identity multihash), so noise proves what the keyring pins. Cluster certificates are TLS's and mean nothing
here. Once a stream is open the listener says its verdict (1 byte, as in `tls_stream`), then the dialer.

py-libp2p's streams are not used as they are. A read that is cancelled loses what it took; a write that is cancelled
may break the connection for all its streams, and one that waits 5 s for its window gives up. So two tasks per link
carry the bytes through bounded buffers, and whoever sends or receives only meets the buffers. A connection that breaks
looks to a stream like a tidy end; the link tells them apart by asking the connection.

Not for networks with hostile nodes: py-libp2p takes connections of any key, and what a peer sends beyond its window it
warns of and keeps. Its own mDNS is not used (see `mdns`): it runs zeroconf in threads and changes the host from there.
Does not know: sessions, TLS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from typing import Any, Final

import trio

from deltalog.errors import UsageError
from sync.byte_buffer import ByteBuffer
from sync.errors import LinkFailed, LinkRefused, SyncError
from sync.loggers import logging_left_alone
from sync.multiaddrs import LOGGERS, key_of, parse_direct, parse_listen, parse_multiaddr, peer_id, reachable
from sync.node_keys import NodeKey, key_text
from sync.tls_stream import LINGER_S, NO, YES, Keyring
from sync.transport import Handler, Link, Turn

with logging_left_alone(*LOGGERS):
    from libp2p import new_host
    from libp2p.abc import IHost, INetStream
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.exceptions import BaseLibp2pError
    from libp2p.io.exceptions import IOException
    from libp2p.network.config import ConnectionConfig
    from libp2p.network.stream.exceptions import StreamEOF
    from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as NoiseTransport

PROTOCOL: Final = TProtocol("/deltalog/sync/1")
LISTEN: Final = "/ip4/127.0.0.1/tcp/0"
LINKS_MAX: Final = 64
BUFFER_BYTES_MAX: Final = 256 * 1024
"""Per link and direction, beside the window of yamux (256 KiB at first, up to 16 MiB)."""
PIECE_BYTES_MAX: Final = 32 * 1024
HANDSHAKE_TIMEOUT_S: Final = 10.0

_WINDOW_LOOK_S: Final = 0.01
_CLOSE_S: Final = 2.0
_CONNECTIONS: Final = ConnectionConfig(
    max_connections=LINKS_MAX,
    high_watermark=LINKS_MAX,
    low_watermark=0,  # else py-libp2p dials whomever it has heard of
    min_connections=0,
    inbound_upgrade_timeout=5.0,
)
_FAILURES: Final = (BaseLibp2pError, IOException, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


# ---------------------------------------------------------------------------------------------------------------- link


class Libp2pLink:
    """One stream; see `Link`. `carry` must run in a task of its own."""

    def __init__(self, stream: INetStream, name: str, key: bytes) -> None:
        self.name = name
        self.peer_key = key
        self._stream = stream
        self._muxed: Any = getattr(stream, "muxed_stream")  # noqa: B009  # the interface does not name it
        self._in = ByteBuffer(BUFFER_BYTES_MAX)
        self._out = ByteBuffer(BUFFER_BYTES_MAX)
        remote = stream.get_remote_address()
        self.local = remote is not None and ip_address(remote[0]).is_loopback
        self._closed = False
        self._heard_all = trio.Event()
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._sending = Turn("sending on this link")
        self._receiving = Turn("receiving on this link")

    async def send_all(self, data: bytes) -> None:
        """See `Link`."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            for start in range(0, len(data), PIECE_BYTES_MAX):
                await self._out.put(data[start : start + PIECE_BYTES_MAX])
            if self._closed:
                raise self._closed_here()

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `Link`."""
        with self._receiving:
            await trio.lowlevel.checkpoint()
            return await self._in.take(max_bytes)

    async def aclose(self) -> None:
        """See `Link`."""
        if not self._closed:
            self._closed = True
            self._in.end(self._closed_here(), lose=True)
            self._out.end(self._closed_here())
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_CLOSE_S):
                await self._done.wait()
            self._scope.cancel()
            await self._done.wait()

    def _closed_here(self) -> LinkFailed:
        return LinkFailed(f"{self.name} was closed here")

    # ----------------------------------------------------------------------------------------------------- two carriers

    async def carry(self) -> None:
        """Move bytes between the buffers and the stream until the link is closed; then close the stream."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_in)
                    nursery.start_soon(self._carry_out)
        finally:
            self._in.end(LinkFailed(f"{self.name} was cut: the host stopped"))
            self._out.end(LinkFailed(f"{self.name} was cut: the host stopped"), lose=True)
            with trio.move_on_after(_CLOSE_S, shield=True), suppress(*_FAILURES):
                await self._stream.reset()
            self._done.set()

    async def _carry_in(self) -> None:
        try:
            while data := await self._stream.read(PIECE_BYTES_MAX):
                if not self._closed:  # what comes after a close is only read so that the other side can end
                    with suppress(SyncError):
                        await self._in.put(data)
        except StreamEOF:
            pass
        except _FAILURES as error:
            self._fail(f"was cut: {error!r}")
            return
        finally:
            self._heard_all.set()
        if self._cut():
            self._fail("was cut: the connection ended")
            return
        self._in.end()
        self._out.end(LinkFailed(f"{self.name} was closed by the other side"), lose=not self._closed)

    async def _carry_out(self) -> None:
        try:
            with suppress(SyncError):
                while data := await self._out.take(PIECE_BYTES_MAX):
                    await self._room(len(data))
                    await self._stream.write(data)
            await self._stream.close()
        except _FAILURES as error:
            self._fail(f"was cut: {error!r}")
        if self._closed:  # wait a little for the other side to read and close; a reset might overtake what was sent
            with trio.move_on_after(LINGER_S):
                await self._heard_all.wait()
            self._scope.cancel()

    async def _room(self, size_bytes: int) -> None:
        """Wait until the window takes so much: py-libp2p's write would wait for 5 s and then give up half-way."""
        while self._muxed.send_window < size_bytes and not self._muxed.closed and not self._cut():  # noqa: ASYNC110
            await trio.sleep(_WINDOW_LOOK_S)

    def _cut(self) -> bool:
        return bool(self._muxed.conn.event_shutting_down.is_set())

    def _fail(self, reason: str) -> None:
        self._in.end(LinkFailed(f"{self.name} {reason}"))
        self._out.end(LinkFailed(f"{self.name} {reason}"), lose=True)


# ----------------------------------------------------------------------------------------------------------- transport


class Libp2pTransport:
    """A host: dials multiaddrs that name their peer, and listens. Made by `open_libp2p`."""

    def __init__(
        self, host: IHost, keyring: Keyring, nursery: trio.Nursery, refused: Callable[[SyncError], None] | None
    ) -> None:
        self._host = host
        self._keyring = keyring
        self._nursery = nursery
        self._refused = refused
        self._connecting = defaultdict[bytes, trio.Lock](trio.Lock)
        """By pinned key. Two that connect to one peer at once get two connections, of which py-libp2p may drop one in
        use.
        """
        found = reachable(host.get_transport_addrs(), keyring.key.public)
        self.announced = list(found)
        """See `LocalTransport`."""
        self._on_loopback = any(each.on_loopback for each in found.values())

    def admitted(self, address: str) -> bytes | None:
        """See `LocalTransport`.

        The peer must be pinned. Loopback counts only for a host that listens there: else anybody could make this one
        connect to what listens on its own machine.
        """
        found = parse_direct(address)
        if found is None or found.on_loopback != self._on_loopback:
            return None
        return found.key if found.key in self._keyring.pinned - {self._keyring.key.public} else None

    async def dial(self, address: str) -> Link:
        """See `Dialer`. The address ends in `/p2p/` and the peer's id."""
        try:
            peer = info_from_p2p_addr(parse_multiaddr(address))
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"address {address!r} does not end in /p2p/ and a peer id") from error
        key = key_of(peer.peer_id)
        if key not in self._keyring.pinned:
            raise LinkRefused(f"libp2p {address} has the key {key_text(key)}, which is not pinned here")
        with trio.CancelScope() as scope:
            link = self._start(await self._open(peer, key, address, scope), key)
            with _closed_unless_admitted(link):
                await self._hear(link)
                await link.send_all(YES)
            return link
        raise LinkFailed(f"libp2p {address} did not answer within {HANDSHAKE_TIMEOUT_S:g} s")

    async def _open(self, peer: PeerInfo, key: bytes, address: str, scope: trio.CancelScope) -> INetStream:
        """`scope`: its time begins when nobody else connects to this peer any more."""
        try:
            async with self._connecting[key]:
                scope.deadline = trio.current_time() + HANDSHAKE_TIMEOUT_S
                self._forget(peer)
                await self._host.connect(peer)
            return await self._host.new_stream(peer.peer_id, [PROTOCOL])
        except _FAILURES as error:
            raise LinkFailed(f"cannot connect to libp2p {address}: {error}") from error

    def _forget(self, peer: PeerInfo) -> None:
        """Else py-libp2p tries an older address and not this one, or, after one that failed, for 60 s none at all."""
        self._host.get_peerstore().clear_addrs(peer.peer_id)
        network: Any = self._host.get_network()  # the interface does not name it
        network.unblock_peer(peer.peer_id)

    async def _hear(self, link: Libp2pLink) -> None:
        verdict = await link.receive_some(1)
        if verdict == NO:
            mine = key_text(self._keyring.key.public)
            raise LinkRefused(f"{link.name} does not admit this node's key {mine}: it is not pinned there")
        if verdict != YES:
            raise LinkFailed(f"{link.name} ended in the handshake")

    def _start(self, stream: INetStream, key: bytes) -> Libp2pLink:
        link = Libp2pLink(stream, f"libp2p {peer_id(key)}", key)
        self._nursery.start_soon(link.carry)
        return link

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Listener`. The address told is the first the host listens at."""
        addresses = self._host.get_addrs()
        if not addresses:
            raise UsageError("this host listens nowhere; open it with an address to listen at")
        taken, streams = trio.open_memory_channel[INetStream](LINKS_MAX)
        slots = trio.Semaphore(LINKS_MAX)

        async def take(stream: INetStream) -> None:
            try:
                key_of(stream.muxed_conn.peer_id)
                taken.send_nowait(stream)
            except (trio.WouldBlock, trio.BrokenResourceError, LinkRefused):
                await stream.reset()

        self._host.set_stream_handler(PROTOCOL, take)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(str(addresses[0]))
                async for stream in streams:
                    await slots.acquire()
                    nursery.start_soon(self._take, stream, handler, slots)
        finally:
            self._host.remove_stream_handler(PROTOCOL)
            streams.close()

    async def _take(self, stream: INetStream, handler: Handler, slots: trio.Semaphore) -> None:
        link = self._start(stream, key_of(stream.muxed_conn.peer_id))
        try:
            with suppress(SyncError):
                await self._admit(link)
                await handler(link)
        finally:
            await link.aclose()
            slots.release()

    async def _admit(self, link: Libp2pLink) -> None:
        try:
            with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
                await self._judge(link)
                return
            raise LinkFailed(f"{link.name} did not end its handshake within {HANDSHAKE_TIMEOUT_S:g} s")
        except SyncError as error:
            if self._refused is not None:
                self._refused(error)
            raise

    async def _judge(self, link: Libp2pLink) -> None:
        if link.peer_key not in self._keyring.pinned:
            await link.send_all(NO)
            raise LinkRefused(f"{link.name} has the key {key_text(link.peer_key)}, which is not pinned here")
        await link.send_all(YES)
        await self._hear(link)


@contextmanager
def _closed_unless_admitted(link: Libp2pLink) -> Iterator[None]:
    try:
        yield
    except BaseException:
        link._scope.cancel()
        raise


@asynccontextmanager
async def open_libp2p(
    keyring: Keyring,
    listen: str | None = LISTEN,
    *,
    refused: Callable[[SyncError], None] | None = None,
) -> AsyncIterator[Libp2pTransport]:
    """Run a host; it listens at a multiaddr, or (None) only dials. Raises `UsageError`, `LinkFailed` if it cannot."""
    addresses = [] if listen is None else [parse_listen(listen)]
    host = _new_host(keyring.key)
    async with host.run(addresses):
        if addresses and not host.get_addrs():
            raise LinkFailed(f"cannot listen at {listen}")
        async with trio.open_nursery() as nursery:
            try:
                yield Libp2pTransport(host, keyring, nursery, refused)
            finally:
                nursery.cancel_scope.cancel()
        with trio.move_on_after(_CLOSE_S, shield=True):
            await host.close()


def _new_host(key: NodeKey) -> IHost:
    pair = create_new_key_pair(key.private.private_bytes_raw())
    noise = NoiseTransport(libp2p_keypair=pair, noise_privkey=create_noise_key_pair().private_key)
    return new_host(
        key_pair=pair,
        sec_opt={NOISE: noise},
        muxer_preference="YAMUX",
        disable_identify_address_discovery=True,
        connection_config=_CONNECTIONS,
    )
