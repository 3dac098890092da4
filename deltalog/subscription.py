"""A subscription: catch-up, then live, without a seam.

It has no queue. It knows its position, a version vector, and asks for what lies beyond: from the store while it is far
behind, from the ring once it is near. The hand-over is one comparison with the log as it is at that moment, so nothing
can fall in between; a slow subscriber costs no memory, it falls back to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Self

import trio

from deltalog.delta import Delta
from deltalog.reader import PAGE, Reader, Stream
from deltalog.ring import Ring
from deltalog.version import VersionVector


class News:
    """Tells waiting tasks that there may be more to read. One per log."""

    __slots__ = ("_event", "awaited")

    def __init__(self) -> None:
        self._event = trio.Event()
        self.awaited = False
        """Whether somebody waits."""

    def ring(self) -> None:
        """Wake everybody who waits."""
        if self.awaited:
            self.awaited = False
            self._event.set()
            self._event = trio.Event()

    async def wait(self) -> None:
        """Return at the next `ring`."""
        self.awaited = True
        await self._event.wait()


class Subscription:
    """Every delta beyond a position, each once, predecessors and deps first: `async for delta in subscription`.

    Ends only by an error or by leaving the loop. One task at a time may read.
    """

    def __init__(
        self,
        ring: Ring,
        news: News,
        since: Mapping[str, int],
        limit: Callable[[], tuple[Mapping[str, int], int]],
        reader: Reader,
        check: Callable[[], None],
    ) -> None:
        """`limit` tells up to which heads and which ordinal of the ring one may read; `check` raises its failure."""
        self._ring = ring
        self._news = news
        self._position = dict(since)
        self._limit = limit
        self._read = reader.since
        self._cached = reader.cached
        self._check = check
        self._ahead: Iterator[Delta] = iter(())  # of the page that a loop is in
        self._reached: dict[str, int] | None = None  # heads of the log where we are near to, or where catching up ends
        self._ordinal: int | None = None
        self._stream: tuple[Stream, int] | None = None

    @property
    def position(self) -> VersionVector:
        """All that was given out, and all that came before: where to go on after a restart."""
        return VersionVector.trusted(dict(self._position))

    def spare(self, floors: Mapping[str, int]) -> dict[str, int]:
        """Lower floors to what this subscription needs no more (invariant I13)."""
        passed = self._position if self._reached is None else self._reached
        return {s: min(seq, self._position.get(s, 0), passed.get(s, 0)) for s, seq in floors.items()}

    async def page(self, count: int = PAGE) -> Sequence[Delta]:
        """Return the next deltas, at least one; waits for it. Cancelled: nothing is lost, the next call goes on."""
        await trio.lowlevel.checkpoint()
        deltas = list(islice(self._ahead, count)) or await self._next(count)
        for delta in deltas:
            self._position[delta.source] = delta.seq
        return deltas

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        delta = next(self._ahead, None)
        if delta is None:
            await trio.lowlevel.checkpoint()
            self._ahead = iter(await self._next(PAGE))
            delta = next(self._ahead)
        self._position[delta.source] = delta.seq
        return delta

    async def _next(self, count: int) -> Sequence[Delta]:
        while True:
            deltas = await self._behind(count) if self._ordinal is None else self._near(count)
            if deltas:
                return deltas
            if self._ordinal is not None and self._limit()[1] <= self._ordinal:
                self._check()
                await self._news.wait()

    def _near(self, count: int) -> Sequence[Delta]:
        """What arrived since the ordinal reached; switches back to catching up if the ring no longer has it."""
        assert self._ordinal is not None
        assert self._reached is not None
        allowed = max(0, self._limit()[1] - self._ordinal)
        arrived = self._ring.since(self._ordinal, min(count, allowed))
        if arrived is None:
            self._ordinal = None
            return []
        self._ordinal += len(arrived)
        deltas = []
        for source in arrived:
            seq = self._reached[source] = self._reached.get(source, 0) + 1
            if seq > self._position.get(source, 0):  # else `since` was ahead of this log
                delta = self._cached(source, seq)
                assert delta is not None, "what arrived and was not evicted is here"
                deltas.append(delta)
        return deltas

    async def _behind(self, count: int) -> Sequence[Delta]:
        """What the position lacks of the log as it was when this catch-up began; then we are near."""
        if self._stream is None:
            heads, ordinal = self._limit()
            self._reached = dict(heads)
            self._stream = self._read(dict(self._position), self._reached), ordinal
        stream, ordinal = self._stream
        deltas = await stream.page(count)
        if not deltas:
            self._stream, self._ordinal = None, ordinal
        return deltas
