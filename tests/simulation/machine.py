"""What a simulated node runs on: a store that power loss cuts short, a disk that fills up, keys, links that tell.

Nothing here uses a thread or a clock but trio's. What crosses a link is told to whoever watches before it departs, so
that what a node says can be held against what its store had fsynced at that moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import attrs
import trio

from deltalog.errors import StoreFull
from deltalog.keys import Head
from deltalog.memory_store import MemoryStore
from deltalog.store import Run
from sync.errors import LinkFailed
from sync.memory_transport import MemoryLink, MemoryTransport
from sync.messages import PREFIX_BYTES, Message, Packed, decode
from sync.packing import unpack
from sync.transport import Handler, Link

_Change = Callable[[MemoryStore], object]
SLOW: Final = ("persist", "sync", "annotate", "truncate")
"""Calls of a store that take time."""


class SimulatedStore(MemoryStore):
    """A memory store that remembers what was changed since its last fsync."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        """Whether the disk has no room."""
        self.on_write: Callable[[Sequence[Run]], None] = lambda _runs: None
        self._tail: list[_Change] = []

    def write(self, runs: Sequence[Run]) -> None:
        kept = list(runs)
        self.on_write(kept)
        self._change(lambda store: MemoryStore.write(store, kept))

    def truncate(self, floors: Mapping[str, int]) -> int:
        kept = dict(floors)
        dropped: int = self._change(lambda store: MemoryStore.truncate(store, kept))
        return dropped

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        kept = dict(changes)
        self._change(lambda store: MemoryStore.annotate(store, kept))

    def _change(self, change: Callable[[MemoryStore], Any]) -> Any:
        if self.full:
            raise StoreFull("the disk is full")
        result = change(self)
        self._tail.append(change)
        return result

    def sync(self) -> int:
        if self.full and self._tail:
            raise StoreFull("the disk is full")
        self._tail.clear()
        return super().sync()

    @property
    def unsynced(self) -> int:
        """Changes that power loss may take."""
        return len(self._tail)

    def survivor(self, unsynced: int) -> SimulatedStore:
        """What is there after the first so many of the unsynced changes; this one stays as it is."""
        store = SimulatedStore()
        store._now = self._synced.copy()
        for change in self._tail[:unsynced]:
            change(store)
        MemoryStore.sync(store)
        return store

    def synced_seq(self, source: str) -> int:
        """Highest seq of a source that power loss spares."""
        held = self._synced.sources.get(source)
        return 0 if held is None else held.head.seq

    def head(self, source: str) -> Head:
        """Where a source stands, fsynced or not."""
        held = self._now.sources.get(source)
        return Head() if held is None else held.head


class SimulatedDisk:
    """What a writer commits to. A full disk refuses a batch before or after it was written."""

    def __init__(self, store: SimulatedStore, chance: random.Random) -> None:
        self._store = store
        self._chance = chance

    def persist(self, runs: Sequence[Run], sync: bool) -> None:
        store, full = self._store, self._store.full
        if full and self._chance.random() < 0.5:
            raise StoreFull("the disk is full")
        store.full = False
        if runs:
            store.write(runs)
        store.full = full
        if full:
            raise StoreFull("the disk is full")
        if sync:
            store.sync()

    def reopen(self) -> Mapping[str, Head]:
        if self._store.full:
            raise StoreFull("the disk is full")
        self._store.reopen()
        return self._store.heads()

    def has_room(self) -> bool:
        return not self._store.full


@attrs.frozen
class Hop:
    """Worker threads that are none: what takes time takes it on trio's clock, before the call and after it."""

    chance: random.Random
    slowest_s: float
    """How long a write or fsync may take, each side."""

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if not self.slowest_s or getattr(function, "__name__", "") not in SLOW:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return function(*args)
        with trio.CancelScope(shield=True):
            await trio.sleep(self.chance.uniform(0, self.slowest_s))
            try:
                return function(*args)
            finally:
                await trio.sleep(self.chance.uniform(0, self.slowest_s))


# ---------------------------------------------------------------------------------------------------------------- keys


def _keyed(secret: bytes, data: bytes) -> bytes:
    return blake2b(data, key=secret, digest_size=64).digest()


class Keyring:
    """All secrets of a simulation: a signature is a keyed hash, and whoever verifies looks the secret up."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._secrets: dict[bytes, bytes] = {}
        self.cluster_key = self.new_key()

    def new_key(self) -> bytes:
        """Make a key pair; return the public half."""
        key, secret = self._chance.randbytes(32), self._chance.randbytes(32)
        self._secrets[key] = secret
        return key

    def sign(self, key: bytes, data: bytes) -> bytes:
        """Sign with the secret half of a key."""
        return _keyed(self._secrets[key], data)

    def verify(self, key: bytes, signature: bytes, data: bytes) -> bool:
        """Say whether they fit."""
        secret = self._secrets.get(key)
        return secret is not None and _keyed(secret, data) == signature


@attrs.frozen
class Pen:
    """A node's signer."""

    ring: Keyring
    key: bytes
    voucher: bytes

    def sign(self, data: bytes) -> bytes:
        return self.ring.sign(self.key, data)


# --------------------------------------------------------------------------------------------------------------- links

Watch = Callable[[str, bytes], None]
"""Told (name of the link, bytes) before they depart."""


def messages(data: bytes) -> Iterator[Message]:
    """The messages in whole frames."""
    at = 0
    while at < len(data):
        end = at + PREFIX_BYTES + int.from_bytes(data[at : at + 4], "big") - 1
        message = decode(data[at + 4], data[at + PREFIX_BYTES : end])
        if isinstance(message, Packed):
            yield from messages(unpack(message))
        else:
            yield message
        at = end


@attrs.define(eq=False)
class WatchedLink:
    """A link of one life of a node. Once that is over nothing departs any more."""

    _inner: MemoryLink
    _watch: Watch
    _on_close: Callable[[WatchedLink], None]
    dead: bool = False
    """The node's life is over, and nobody tells the other side."""

    @property
    def peer_key(self) -> bytes:
        return self._inner.peer_key

    @property
    def local(self) -> bool:
        return self._inner.local

    @property
    def name(self) -> str:
        return self._inner.name

    async def send_all(self, data: bytes) -> None:
        if self.dead:
            raise LinkFailed("this node is no more")
        self._watch(self._inner.name, data)
        await self._inner.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._on_close(self)
        if not self.dead:
            await self._inner.aclose()
        await trio.lowlevel.checkpoint()

    def die(self, *, silently: bool) -> None:
        """Nothing departs any more. What did still arrives, and unless `silently` the end behind it."""
        self.dead = True
        if silently:
            self._inner._out.full_stop = "lost power"
        else:
            self._inner._out.finish()
            self._inner._back.stop("was closed by the other side", lose=False)


class WatchedTransport:
    """The transport of one life of a node."""

    def __init__(self, inner: MemoryTransport, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch
        self._links: dict[WatchedLink, None] = {}

    async def dial(self, address: str) -> Link:
        return self._watched(await self._inner.dial(address))

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        async def handle(link: Link) -> None:
            await handler(self._watched(link))

        await self._inner.serve(handle, task_status)

    def _watched(self, link: Link) -> WatchedLink:
        assert isinstance(link, MemoryLink)
        watched = WatchedLink(link, self._watch, lambda link: self._links.pop(link, None))
        self._links[watched] = None
        return watched

    def die(self, *, silently: bool) -> list[WatchedLink]:
        """End all links; return them. The other side sees their end, or hears nothing any more if `silently`."""
        links, self._links = list(self._links), {}
        for link in links:
            link.die(silently=silently)
        return links
