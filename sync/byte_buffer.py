"""Bytes on their way from one task to another, with a bound and an end. Does not know: where they come from.

A cancelled `take` loses nothing; a cancelled `put` put nothing.
"""

from __future__ import annotations

import trio

from sync.errors import LinkFailed, SyncError


class ByteBuffer:
    """One task puts, one takes. Holds `bytes_max`, and what the one `put` that began below it brought."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._data = bytearray()
        self._ended: SyncError | bool = False
        self._changed = trio.Event()

    async def put(self, data: bytes) -> None:
        """Add bytes once there is room. Raises what the buffer ended with."""
        while len(self._data) >= self._bytes_max and not self._ended:
            await self._changed.wait()
        if self._ended:
            raise self._ended if isinstance(self._ended, SyncError) else LinkFailed("the link was closed")
        self._data += data
        self._look()

    async def take(self, max_bytes: int) -> bytes:
        """Bytes as soon as there are any; b"" at a tidy end. Raises what the buffer ended with otherwise."""
        while not self._data and not self._ended:
            await self._changed.wait()
        if not self._data and isinstance(self._ended, SyncError):
            raise self._ended
        data = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        self._look()
        return data

    async def empty(self) -> None:
        """Wait until all was taken."""
        while self._data:
            await self._changed.wait()

    def end(self, error: SyncError | None = None, *, lose: bool = False) -> None:
        """Take nothing more; readers get what is there (unless lost), then the end or the error."""
        self._ended = self._ended or error or True
        if lose:
            self._data.clear()
            self._ended = error or self._ended
        self._look()

    def _look(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
