"""Links over TCP: addresses, limits on connections, TLS 1.3 (see `tls_stream`) or plain on loopback.

A connection counts against `connections_max` from accept to close, and against `shaking_per_host_max` of its IP until
its handshake is over, for which it has `handshake_timeout_s`. One over a limit is closed at once. What fails before the
handshake is over ends that connection alone: it is counted, told to `refused`, and the listener goes on.

Plain TCP proves no key and hides nothing. It is there only by explicit choice, and only between ends on loopback; both
the address as written and the socket as it came to be are checked. Does not know: sessions, files.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import attrs
import trio

from deltalog.errors import UsageError
from sync.errors import LinkFailed, LinkRefused, SyncError
from sync.tls_stream import RECEIVE_BYTES, Keyring, TlsStream, hang_up, stream_errors
from sync.transport import Handler, Link, Turn

PORT_MAX: Final = 65_535


@attrs.frozen
class TcpLimits:
    """What one node lets others take of it."""

    connections_max: int = 64
    """Connections that were taken and are not closed yet."""
    shaking_per_host_max: int = 4
    """Connections of one IP whose handshake is not over."""
    handshake_timeout_s: float = 5.0
    """From accept (or connect) to the verdicts of both sides."""
    connect_timeout_s: float = 10.0
    """To find an address and connect."""


@attrs.frozen
class TcpStatistics:
    """Connections of a transport since it was made; `open` and `shaking` now."""

    open: int
    shaking: int
    taken: int
    """Accepted, whatever became of them."""
    refused: int
    """Ended because a key or certificate was not admitted."""
    failed: int
    """Ended before the handshake was over for another reason, time among them."""
    turned_away: int
    """Closed at once: over a limit."""


# ------------------------------------------------------------------------------------------------------------ address


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as host and port. Raises `UsageError`."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise UsageError(f"address {text[:200]!r} has no port; it reads HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"address {text[:200]!r}: an IPv6 address stands in brackets, [::1]:7000")
    if not host or not host.isprintable() or " " in host:
        raise UsageError(f"address {text[:200]!r} has no host; it reads HOST:PORT (0.0.0.0 listens on all)")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= PORT_MAX):
        raise UsageError(f"address {text[:200]!r}: port {port[:20]!r} is not a number from 0 to {PORT_MAX}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The text that `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host, as written, is this machine and no other can reach it there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _host_and_port(address: tuple[object, ...]) -> tuple[str, int]:
    host, port = address[:2]
    assert isinstance(host, str)
    assert isinstance(port, int)
    return host, port


# ---------------------------------------------------------------------------------------------------------- plain link


class PlainLink:
    """A TCP connection without TLS; see `Link`. `peer_key` is empty: it proves nothing."""

    def __init__(self, stream: trio.SocketStream, name: str) -> None:
        self.name = name
        self.peer_key = b""
        self.local = True
        self._stream = stream
        self._sending = Turn("sending on this link")
        self._receiving = Turn("receiving on this link")

    async def send_all(self, data: bytes) -> None:
        """See `Link`."""
        with self._sending, stream_errors(self.name):
            await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `Link`."""
        with self._receiving, stream_errors(self.name):
            return bytes(await self._stream.receive_some(min(max_bytes, RECEIVE_BYTES)))

    async def aclose(self) -> None:
        """See `Link`."""
        await hang_up(self._stream, wait=not (self._sending.taken or self._receiving.taken))


# ----------------------------------------------------------------------------------------------------------- transport


class TcpTransport:
    """Dials `HOST:PORT` and listens at one: with TLS if there is a keyring, plain (`plain=True`) without."""

    def __init__(
        self,
        keyring: Keyring | None,
        listen: str = "127.0.0.1:0",
        *,
        plain: bool = False,
        limits: TcpLimits | None = None,
        refused: Callable[[SyncError], None] | None = None,
    ) -> None:
        if (keyring is None) is not plain:
            raise UsageError("a TCP transport takes a keyring, or else plain=True (loopback only)")
        self.limits = limits if limits is not None else TcpLimits()
        self._keyring = keyring
        self._listen = parse_address(listen)
        self._refused = refused
        self._shaking: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._check_plain(self._listen[0], listen)

    def statistics(self) -> TcpStatistics:
        """How many connections there are, and what became of the others."""
        counts = self._counts
        return TcpStatistics(
            counts["open"],
            self._shaking.total(),
            counts["taken"],
            counts["refused"],
            counts["failed"],
            counts["turned away"],
        )

    # ----------------------------------------------------------------------------------------------------------- dial

    async def dial(self, address: str) -> Link:
        """See `Dialer`."""
        host, port = parse_address(address)
        self._check_plain(host, address)
        if port == 0:
            raise UsageError(f"address {address!r}: port 0 can be listened at, not dialled")
        stream = await self._connect(host, port, address)
        return await self._link(stream, address, server_side=False)

    async def _connect(self, host: str, port: int, address: str) -> trio.SocketStream:
        with trio.move_on_after(self.limits.connect_timeout_s):
            try:
                return await trio.open_tcp_stream(host, port)
            except OSError as error:
                raise LinkFailed(f"cannot connect to {address}: {_why(error)}") from error
            except UnicodeError as error:
                raise UsageError(f"address {address!r}: the host is no name of the domain name system") from error
        raise LinkFailed(f"cannot connect to {address}: no answer within {self.limits.connect_timeout_s:g} s")

    async def _link(self, stream: trio.SocketStream, name: str, *, server_side: bool) -> TlsStream | PlainLink:
        """The link over a connection; the connection is closed if this fails."""
        try:
            host = _host_and_port(stream.socket.getpeername())[0]
            self._check_plain(host, name)
        except OSError as error:  # gone already
            await trio.aclose_forcefully(stream)
            raise LinkFailed(f"tcp {name} was cut: {_why(error)}") from error
        except UsageError:
            await trio.aclose_forcefully(stream)
            raise
        if self._keyring is None:
            return PlainLink(stream, f"tcp {name}")
        local = is_loopback(host)
        link = TlsStream(stream, self._keyring, f"tls {name}", server_side=server_side, local=local)
        with trio.move_on_after(self.limits.handshake_timeout_s):
            await link.shake_hands()
            return link
        raise LinkFailed(f"{link.name} did not end its handshake within {self.limits.handshake_timeout_s:g} s")

    def _check_plain(self, host: str, address: str) -> None:
        if self._keyring is None and not is_loopback(host):
            raise UsageError(f"address {address!r} is not on loopback; plain TCP goes nowhere else, use TLS")

    # --------------------------------------------------------------------------------------------------------- listen

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Listener`. Port 0 takes a free port; what is told has the port it became."""
        listeners = await self._open_listeners()

        async def take(stream: trio.SocketStream) -> None:
            await self._take(stream, handler)

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, take, listeners)
            task_status.started(format_address(*_host_and_port(listeners[0].socket.getsockname())))

    async def _open_listeners(self) -> list[trio.SocketListener]:
        host, port = self._listen
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise LinkFailed(f"cannot listen at {format_address(host, port)}: {_why(error)}") from error
        except UnicodeError as error:
            raise UsageError(f"host {host!r} is no name of the domain name system") from error
        if port == 0:  # one free port, though a name may stand for several addresses
            for listener in listeners[1:]:
                await listener.aclose()
            del listeners[1:]
        for listener in listeners:
            self._check_plain(_host_and_port(listener.socket.getsockname())[0], format_address(host, port))
        return listeners

    async def _take(self, stream: trio.SocketStream, handler: Handler) -> None:
        self._counts["taken"] += 1
        try:
            host, port = _host_and_port(stream.socket.getpeername())
        except OSError:  # gone already
            host, port = "", 0
        limits = self.limits
        if self._counts["open"] >= limits.connections_max or self._shaking[host] >= limits.shaking_per_host_max:
            self._counts["turned away"] += 1
            await trio.aclose_forcefully(stream)
            return
        self._counts["open"] += 1
        try:
            link = await self._admit(stream, host, format_address(host, port))
            if link is not None:
                await _handle(link, handler)
        finally:
            self._counts["open"] -= 1

    async def _admit(self, stream: trio.SocketStream, host: str, name: str) -> Link | None:
        """The link of a connection that was taken; None if it is not admitted (counted, and `refused` is told)."""
        self._shaking[host] += 1
        try:
            return await self._link(stream, name, server_side=True)
        except (SyncError, OSError, UsageError) as error:
            self._counts["refused" if isinstance(error, LinkRefused) else "failed"] += 1
            if self._refused is not None and isinstance(error, SyncError):
                self._refused(error)
            return None
        finally:
            self._shaking[host] -= 1
            self._shaking += Counter()  # an IP that shakes no hands is forgotten


async def _handle(link: Link, handler: Handler) -> None:
    try:
        with suppress(SyncError):
            await handler(link)
    finally:
        await link.aclose()


def _why(error: OSError) -> str:
    """The first reason in a tree of causes: trio gives one per address it tried."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        inner = cause.exceptions[0]
        return inner.strerror or str(inner) if isinstance(inner, OSError) else str(inner)
    return (cause.strerror if isinstance(cause, OSError) else None) or error.strerror or str(error)
