"""Connections of the HTTP server: how many, how long each may stall, and how they end.

Lives here: the listener and the stream that Hypercorn is given. Does not know: HTTP.

Hypercorn shields its writes from cancellation, so a client that stops reading would hold its connection, its task and
the end of the server for ever. A write here has a deadline of its own, which holds inside that shield; a connection
past it is cut. `cut_all` cuts the rest when the server ends.
"""

from __future__ import annotations

import socket
from typing import Final

import attrs
import trio

USER_TIMEOUT_MS: Final = 60_000
"""A peer that acknowledges nothing for so long is gone."""


@attrs.define(eq=False)
class Connections(trio.abc.Listener["Connection"]):
    """A listener for at most `slots` connections at a time; more wait to be accepted."""

    listener: trio.SocketListener
    write_s_max: float
    """How long one write may take: a client must take 64 KiB within it."""
    slots: trio.Semaphore
    open: set[Connection] = attrs.field(factory=set, init=False)
    _closed_one: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def accept(self) -> Connection:
        """The next connection, when there is a slot for it."""
        await self.slots.acquire()
        try:
            stream = await self.listener.accept()
        except BaseException:
            self.slots.release()
            raise
        _detect_vanished(stream.socket)
        connection = Connection(stream, self)
        self.open.add(connection)
        return connection

    async def aclose(self) -> None:
        """Accept no more."""
        await self.listener.aclose()

    async def empty(self) -> None:
        """Return when no connection is open."""
        while self.open:
            await self._closed_one.wait()

    def forget(self, connection: Connection) -> None:
        """A connection was closed: its slot is free."""
        if connection in self.open:
            self.open.discard(connection)
            self.slots.release()
            self._closed_one.set()
            self._closed_one = trio.Event()

    def cut_all(self) -> None:
        """Cut every connection."""
        for connection in list(self.open):
            connection.cut()


class Connection(trio.abc.HalfCloseableStream):
    """A stream whose writes have a deadline."""

    def __init__(self, stream: trio.SocketStream, owner: Connections) -> None:
        self._stream = stream
        self._owner = owner

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket underneath."""
        return self._stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it in time, or cut the connection and raise `trio.BrokenResourceError`."""
        with trio.move_on_after(self._owner.write_s_max) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self.cut()
            raise trio.BrokenResourceError(f"the client took nothing for {self._owner.write_s_max:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream underneath."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As the stream underneath."""
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """As the stream underneath."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close, and give the slot to the next one."""
        self.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Close at once: whoever waits on it gets `trio.ClosedResourceError`."""
        self._stream.socket.close()
        self._owner.forget(self)


def _detect_vanished(client: trio.socket.SocketType) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
