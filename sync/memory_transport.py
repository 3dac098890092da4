"""Links between nodes of one process, over a network that delays, stalls and cuts: for tests and simulations.

Nothing here runs by itself. A piece of data gets its time of arrival when it is sent; who reads waits for that time on
whatever clock trio runs. Every choice comes from the one `random.Random` given, and each stream draws from its own,
seeded from it when the link is made: what one link carries does not change the delays of another. Under trio's mock
clock and a deterministic scheduler a run is therefore a function of the seed.

    one link  =  two streams;  one stream  =  pieces under way, in order:  (arrives at, bytes) (arrives at, bytes) ...

Bytes stay in order within a stream; across links they overtake each other by their delays. Does not know: sessions.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio

from deltalog.errors import UsageError
from sync.errors import LinkFailed, SyncError
from sync.transport import Handler, Link, Turn

PIECE_BYTES_MAX: Final = 16 * 1024
"""A large write is put under way in pieces, so that a reader sees its beginning before its end."""


@attrs.frozen
class Weather:
    """What the network does to links."""

    delay_s: tuple[float, float] = (0.001, 0.050)
    """Each write takes a time between these to arrive, and never arrives before the one ahead of it on its stream."""
    bytes_per_s: float | None = None
    """Rate of each stream; None is as fast as can be."""
    cut_chance: float = 0.0
    """Chance that a write cuts its link instead."""
    in_flight_bytes_max: int = 256 * 1024
    """A sender waits while this much is sent and not yet read, per stream."""


class Network:
    """The network that nodes of one process share. `node()` gives the transport of one of them."""

    def __init__(self, randomness: random.Random | int, weather: Weather | None = None) -> None:
        self._random = randomness if isinstance(randomness, random.Random) else random.Random(randomness)  # noqa: S311
        self.weather = weather if weather is not None else Weather()
        """May be changed at any time; holds for what is sent from then on."""
        self._listening: dict[str, _Accept] = {}
        self._links: list[tuple[MemoryLink, MemoryLink]] = []
        self._group_of: dict[str, int] | None = None
        self._rates: dict[frozenset[str], float | None] = {}

    def node(self, name: str, key: bytes = b"") -> MemoryTransport:
        """The transport of a node; `key` is what others see as its `peer_key`."""
        return MemoryTransport(self, name, key)

    def partition(self, *groups: Iterable[str], cut: bool = False) -> None:
        """Let nodes reach only nodes of their own group; who is in none is alone.

        What is under way between groups waits for `heal()`, as on a network that drops packets; `cut` ends the links.
        """
        self._group_of = {name: number for number, group in enumerate(groups) for name in group}
        for near, far in self._open_links():
            if not self.reaches(near.here, far.here):
                near.cut("by a partition") if cut else near.hold(held=True)

    def heal(self) -> None:
        """End the partition. What waited arrives after a new delay."""
        self._group_of = None
        for near, _ in self._open_links():
            near.hold(held=False)

    def reaches(self, one: str, other: str) -> bool:
        """Whether data can pass between two nodes now."""
        groups = self._group_of
        return groups is None or one == other or (one in groups and groups[one] == groups.get(other))

    def cut(self, one: str, other: str | None = None) -> int:
        """Cut all links of one node, or those between two; what is under way is lost. Says how many there were."""
        hit = [ends for ends in self._open_links() if _touches(ends, one, other)]
        for ends in hit:
            ends[0].cut()
        return len(hit)

    def slow(self, one: str, other: str, bytes_per_s: float | None) -> None:
        """Set the rate between two nodes, over the weather's; None is as fast as can be."""
        self._rates[frozenset((one, other))] = bytes_per_s

    def links(self) -> Sequence[tuple[str, str]]:
        """The open links as (who dialled, who listened), oldest first."""
        return [(ends[0].here, ends[1].here) for ends in self._open_links()]

    def rate(self, one: str, other: str) -> float | None:
        """Bytes per second of a stream between two nodes."""
        return self._rates.get(frozenset((one, other)), self.weather.bytes_per_s)

    def _open_links(self) -> list[tuple[MemoryLink, MemoryLink]]:
        self._links = [(near, far) for near, far in self._links if not near.ended or not far.ended]
        return self._links

    def _connect(self, caller: MemoryTransport, address: str) -> MemoryLink:
        accept = self._listening.get(address)
        if accept is None or not self.reaches(caller.name, address):
            raise LinkFailed(f"{address!r} does not answer")
        there, back = (_Stream(self, self._random.getrandbits(64)) for _ in range(2))
        near = MemoryLink(self, caller.name, address, accept.key, there, back)
        far = MemoryLink(self, address, caller.name, caller.key, back, there)
        try:
            accept.queue.send_nowait(far)
        except (trio.WouldBlock, trio.BrokenResourceError) as error:
            raise LinkFailed(f"{address!r} takes no more links now") from error
        self._links.append((near, far))
        return near

    def _delay_s(self) -> float:
        return self._random.uniform(*self.weather.delay_s)


def _touches(ends: tuple[MemoryLink, MemoryLink], one: str, other: str | None) -> bool:
    names = (ends[0].here, ends[1].here)
    return one in names and (other is None or sorted(names) == sorted((one, other)))


@attrs.frozen
class _Accept:
    key: bytes
    queue: trio.MemorySendChannel[MemoryLink]


# ----------------------------------------------------------------------------------------------------------- transport


@attrs.frozen
class MemoryTransport:
    """One node on the network: dials others by name, listens under its own. A `Dialer` and a `Listener`."""

    _network: Network
    name: str
    key: bytes
    links_max: int = 64
    """Links that wait to be taken."""

    async def dial(self, address: str) -> Link:
        """Connect to the node of that name."""
        await trio.sleep(self._network._delay_s())
        return self._network._connect(self, address)

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Take links under the node's name until cancelled. Raises `UsageError` if the name is taken."""
        if self.name in self._network._listening:
            raise UsageError(f"something listens as {self.name!r} already")
        queue, links = trio.open_memory_channel[MemoryLink](self.links_max)
        self._network._listening[self.name] = _Accept(self.key, queue)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(self.name)
                async for link in links:
                    nursery.start_soon(self._handle, handler, link)
        finally:
            del self._network._listening[self.name]
            with suppress(trio.WouldBlock):
                while True:
                    links.receive_nowait().cut("by a listener that stopped")
            links.close()

    async def _handle(self, handler: Handler, link: MemoryLink) -> None:
        try:
            with suppress(SyncError):
                await handler(link)
        finally:
            await link.aclose()


# ---------------------------------------------------------------------------------------------------------------- link


class _Stream:
    """One direction of a link. One end puts pieces under way; the other takes them once they have arrived."""

    def __init__(self, network: Network, seed: int) -> None:
        self.full_stop: str | None = None
        """Why nothing more can be put under way."""
        self.lost: str | None = None
        """Why nothing can be read, not even what was under way."""
        self.held = False
        self.in_flight_bytes = 0
        self._network = network
        self._chance = random.Random(seed)  # noqa: S311
        self._pieces: deque[tuple[float, bytes]] = deque()  # none is read before those ahead of it; b"" is the end
        self._free_at = 0.0
        self._not_before = 0.0
        self._changed = trio.Event()

    def unlucky(self) -> bool:
        """Whether this write cuts the link."""
        chance = self._network.weather.cut_chance
        return chance > 0 and self._chance.random() < chance

    def depart(self, piece: bytes, rate: float | None) -> None:
        """Put a piece under way."""
        self._free_at = max(trio.current_time(), self._free_at) + (len(piece) / rate if rate else 0.0)
        self._pieces.append((self._free_at + self._delay_s(), piece))
        self.in_flight_bytes += len(piece)
        self.look_again()

    async def room(self, size_bytes: int) -> None:
        """Wait until so much may be put under way, or the stream has ended."""
        while self.full_stop is None and self.in_flight_bytes and self._over(size_bytes):
            await self._changed.wait()

    def take(self, max_bytes: int) -> bytes:
        """What has arrived; b"" if nothing has."""
        taken = bytearray()
        while len(taken) < max_bytes and self._arrived() and self._pieces[0][1]:
            at, piece = self._pieces.popleft()
            room = max_bytes - len(taken)
            taken += piece[:room]
            if len(piece) > room:
                self._pieces.appendleft((at, piece[room:]))
        self.in_flight_bytes -= len(taken)
        if taken:
            self.look_again()
        return bytes(taken)

    def at_end(self) -> bool:
        """Whether all was read, and the end has arrived."""
        return self._arrived() and not self._pieces[0][1]

    async def arrival(self) -> None:
        """Wait until the next piece arrives, or something else changes."""
        at = max(self._pieces[0][0], self._not_before) if self._pieces and not self.held else float("inf")
        with trio.move_on_at(at):
            await self._changed.wait()

    def hold(self, *, held: bool) -> None:
        """Let nothing arrive for now, or let it arrive again after a delay."""
        if self.held and not held:
            self._not_before = trio.current_time() + self._delay_s()
        self.held = held
        self.look_again()

    def finish(self) -> None:
        """Put the end under way, behind all that is."""
        if self.full_stop is None:
            self.depart(b"", None)
            self.full_stop = "was closed here"

    def stop(self, reason: str, *, lose: bool) -> None:
        """Take nothing more; if `lose`, what is under way never arrives."""
        self.full_stop = self.full_stop or reason
        if lose:
            self.lost = self.lost or reason
        self._pieces.clear()
        self.in_flight_bytes = 0
        self.look_again()

    def look_again(self) -> None:
        """Wake who waits."""
        self._changed.set()
        self._changed = trio.Event()

    def _over(self, size_bytes: int) -> bool:
        return self.in_flight_bytes + size_bytes > self._network.weather.in_flight_bytes_max

    def _arrived(self) -> bool:
        if self.held or not self._pieces:
            return False
        return trio.current_time() >= max(self._pieces[0][0], self._not_before)

    def _delay_s(self) -> float:
        return self._chance.uniform(*self._network.weather.delay_s)


class MemoryLink:
    """One end of a link; see `Link`."""

    def __init__(self, network: Network, here: str, there: str, key: bytes, out: _Stream, back: _Stream) -> None:
        self.here = here
        self.there = there
        self.peer_key = key
        self.local = True
        self.name = f"memory {here}-{there}"
        self._network = network
        self._out = out
        self._back = back
        self._closed = False
        self._sending = Turn("sending on this link")
        self._receiving = Turn("receiving on this link")

    async def send_all(self, data: bytes) -> None:
        """Put bytes under way; see `Link`."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check(self._out.full_stop)
            if self._out.unlucky():
                self.cut()
            for start in range(0, len(data), PIECE_BYTES_MAX):
                piece = data[start : start + PIECE_BYTES_MAX]
                await self._out.room(len(piece))
                self._check(self._out.full_stop)
                self._out.depart(bytes(piece), self._network.rate(self.here, self.there))

    async def receive_some(self, max_bytes: int) -> bytes:
        """Wait for bytes; see `Link`."""
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while True:
                self._check(self._back.lost)
                data = self._back.take(max_bytes)
                if data or self._back.at_end():
                    return data
                await self._back.arrival()

    async def aclose(self) -> None:
        """End the link; see `Link`."""
        self._closed = True
        self._out.finish()
        self._back.stop("was closed by the other side", lose=False)
        await trio.lowlevel.checkpoint()

    @property
    def ended(self) -> bool:
        """Whether this end is done with the link."""
        return self._closed or self._back.lost is not None

    def cut(self, reason: str = "by the network") -> None:
        """End the link for both ends at once; what is under way is lost."""
        for stream in (self._out, self._back):
            stream.stop(f"was cut {reason}", lose=True)

    def hold(self, *, held: bool) -> None:
        """Let nothing arrive at either end for now, or let it arrive again."""
        for stream in (self._out, self._back):
            stream.hold(held=held)

    def _check(self, ended: str | None) -> None:
        if self._closed:
            raise LinkFailed(f"{self.name} was closed here")
        if ended is not None:
            raise LinkFailed(f"{self.name} {ended}")
