"""A peer that says whatever a test likes: raw frames over a memory link, to a real node that has an honest peer, too.

A `Foe` is one hostile link. The node's end of it is run by `Mesh.serve`, whose error is kept: how the session ended,
as the node sees it. A `Tale` makes deltas and heads of one source, true ones or not.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import attrs
import trio

from deltalog import chain
from deltalog.clock import pack
from deltalog.codec import build
from deltalog.delta import Delta, Limits
from sync.errors import LinkFailed, SyncError
from sync.messages import (
    PREFIX_BYTES,
    VERSION,
    Commit,
    Deltas,
    Goodbye,
    Head,
    Hello,
    Message,
    Welcome,
    decode,
    encode,
    encode_run,
    frame_size,
)
from sync.transport import Link
from sync.trust import signed_bytes
from tests.deltalog.memory_log import NOON_MS
from tests.sync.nodes import CLUSTER, CheapKey, Node, World, cheap_signature

M = TypeVar("M", bound=Message)
NOTHING = bytes(32)
"""A digest, of nothing."""


@attrs.define
class Tale:
    """A source that grows: records, chain hashes and heads, signed by `key`."""

    source: str
    key: CheapKey
    cluster: str = CLUSTER
    deltas: list[Delta] = attrs.field(factory=list)
    hashes: list[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.hashes = [chain.genesis(self.source)]

    def grow(
        self, count: int, ms: int = 0, payload: object = None, deps: Mapping[str, int] | None = None
    ) -> list[Delta]:
        """Append deltas `ms` after noon; return them."""
        start = len(self.deltas)
        new = [
            build(self.source, seq, pack(NOON_MS + ms) + seq, payload, deps=dict(deps or {}))
            for seq in range(start + 1, start + count + 1)
        ]
        self.deltas += new
        self.hashes += chain.extend(self.hashes[-1], [delta.record for delta in new])
        return new

    def head(self, seq: int | None = None, **changes: Any) -> Head:
        """A signed head, by default of all there is."""
        seq = len(self.deltas) if seq is None else seq
        digest = changes.pop("hash", None) or self.hashes[seq]
        cluster = changes.pop("cluster", self.cluster)
        signature = cheap_signature(self.key.key, signed_bytes(cluster, self.source, seq, digest))
        return attrs.evolve(Head(self.source, seq, digest, self.key.key, signature, b""), **changes)

    def run(self, first: int = 1, last: int | None = None, **head: Any) -> list[bytes]:
        """Frames of a run and the head behind it."""
        last = len(self.deltas) if last is None else last
        records = [delta.record for delta in self.deltas[first - 1 : last]]
        return [*encode_run(self.source, first, records), encode(self.head(last, **head))]


class Foe:
    """The hostile end of a link."""

    def __init__(self, link: Link, node: Node) -> None:
        self.link = link
        self.node = node
        """Whom it talks to."""
        self.key = CheapKey("mallory")
        self.tale = Tale("mallory", self.key)
        self.error: SyncError | None = None
        """What ended the session, as the node sees it."""
        self.ended = trio.Event()
        self.heard: list[Message] = []
        """What the node has said."""
        self.batches = 0
        self._buffer = bytearray()
        self._turn = trio.Lock()

    async def say(self, *what: Message | bytes) -> None:
        """Send messages, or bytes as they are. The node may have hung up already."""
        frames = [each if isinstance(each, bytes) else encode(each) for each in what]
        with suppress(LinkFailed):
            async with self._turn:
                await self.link.send_all(b"".join(frames))

    async def batch(self, *frames: bytes) -> None:
        """Send runs, and the COMMIT that is due behind them."""
        self.batches += 1
        await self.say(*frames, Commit(self.batches))

    async def drip(self, data: bytes, pause_s: float) -> None:
        """Send byte by byte."""
        for byte in data:
            if self.ended.is_set():
                return
            await self.say(bytes([byte]))
            await trio.sleep(pause_s)

    async def listen(self, kind: type[M]) -> M:
        """Read until a message of this kind comes. Raises `LinkFailed` at the end of the link."""
        while True:
            message = await self._next()
            self.heard.append(message)
            if isinstance(message, kind):
                return message

    async def listen_on(self) -> None:
        """Read to the end."""
        with suppress(LinkFailed):
            while True:
                await self.listen(Goodbye)

    async def _next(self) -> Message:
        size, number = frame_size(await self._take(PREFIX_BYTES), 1 << 20, 1 << 24)
        return decode(number, await self._take(size))

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self.link.receive_some(1 << 16)
            if not data:
                raise LinkFailed("the node has closed the link")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def hello(self, **changes: Any) -> Hello:
        """What an honest node would say, but for the changes."""
        return attrs.evolve(Hello(VERSION, CLUSTER, "mallory", "mallory", self.key.key), **changes)

    async def greet(self, **changes: Any) -> Hello:
        """Exchange HELLO."""
        await self.say(self.hello(**changes))
        return await self.listen(Hello)

    async def open(self, welcome: Welcome | None = None, **changes: Any) -> Welcome:
        """Exchange HELLO and WELCOME."""
        await self.greet(**changes)
        await self.say(welcome if welcome is not None else Welcome(0, b"", 0, 0, NOTHING))
        return await self.listen(Welcome)

    def said(self, kind: type[M]) -> list[M]:
        """All that was heard of one kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    def got(self, source: str) -> list[Delta]:
        """All deltas that were heard of one source."""
        runs = [message.decode(Limits()) for message in self.said(Deltas) if message.source == source]
        return [delta for run in runs for delta in run]

    async def serve(self, link: Link, dialed: bool) -> None:
        """Run the node's end."""
        try:
            await self.node.mesh.serve(link, dialed=dialed)
        except SyncError as error:
            self.error = error
        finally:
            self.ended.set()


@asynccontextmanager
async def meeting(world: World, node: Node, *, dialed: bool = False, key: bytes = b"") -> AsyncIterator[Foe]:
    """A hostile link to a node. `dialed`: as if the node had made it. `key`: what the link proves of the foe."""
    door, outside = world.network.node("door"), world.network.node("mallory", key)
    met, inside = trio.open_memory_channel[Link](1)

    async def handler(link: Link) -> None:
        await met.send(link)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(door.serve, handler)
        foe = Foe(await outside.dial("door"), node)
        nursery.start_soon(foe.serve, await inside.receive(), dialed)
        yield foe
        with trio.CancelScope(shield=True):
            await foe.link.aclose()
        nursery.cancel_scope.cancel()


def joined(parts: Iterable[bytes]) -> bytes:
    """Frames, one behind the other."""
    return b"".join(parts)


def frame(number: int, body: bytes, size: int | None = None) -> bytes:
    """A frame, of a size that may lie."""
    return struct.pack(">IB", 1 + len(body) if size is None else size, number) + body
