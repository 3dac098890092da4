"""A TCP connection that can be cut: what a demo puts between two nodes."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from deltalog.nursery import open_nursery

_PIECE_BYTES: Final = 64 << 10
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Cable:
    """Listens on a port of its own and passes bytes on to another, while it is whole."""

    def __init__(self, port: int) -> None:
        """`port`: where it leads to, on loopback."""
        self._to = port
        self._whole = True
        self._streams: set[trio.SocketStream] = set()

    def cut(self) -> None:
        """Cut what runs through it, and let nothing through from now on."""
        self._whole = False
        for stream in self._streams:
            stream.socket.close()

    def heal(self) -> None:
        """Let connections through again."""
        self._whole = True

    async def run(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass bytes on until cancelled; `task_status` gets the port to connect to."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._join, [listener])

    async def _join(self, near: trio.SocketStream) -> None:
        if not self._whole:
            await trio.aclose_forcefully(near)
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._to)
        except OSError:
            await trio.aclose_forcefully(near)
            return
        self._streams |= {near, far}
        try:
            async with open_nursery() as nursery:
                nursery.start_soon(self._pass, near, far)
                nursery.start_soon(self._pass, far, near)
        finally:
            self._streams -= {near, far}
            far.socket.close()

    async def _pass(self, here: trio.SocketStream, there: trio.SocketStream) -> None:
        with suppress(*_GONE):
            while data := await here.receive_some(_PIECE_BYTES):
                await there.send_all(data)
            await there.send_eof()
            return
        await trio.aclose_forcefully(here)
        await trio.aclose_forcefully(there)
