"""Peers that were heard of on the local network: which addresses are known, and which of them is tried next.

What is announced proves nothing: anybody can say it, in anybody's name. So an address is kept only if the key in it is
admitted here, of each peer one address is tried at a time, with the mesh's pauses, and whoever answers proves its key.
A liar costs these dials, and can keep two nodes from finding each other this way; no more.

Lives here: the table, its bounds, and the turns. All state belongs to the trio thread. Does not know: mDNS, sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import attrs
import trio

from deltalog.nursery import open_nursery
from sync.errors import Duplicate, LinkFailed, SyncError
from sync.node_keys import key_text
from sync.transport import Dialer, Link, Listener

ADDRESSES_MAX: Final = 64
"""Known at a time; beyond, the one goes that was heard of first."""
PEER_ADDRESSES_MAX: Final = 8
"""The same of one peer; of these the one goes that failed most often."""


class LocalTransport(Dialer, Listener, Protocol):
    """A transport whose addresses can be announced."""

    @property
    def announced(self) -> Sequence[str]:
        """Where others can reach this node."""

    def admitted(self, address: str) -> bytes | None:
        """The key in an address that somebody announced; None if it is not to be dialled."""


@attrs.define
class _Told:
    """What is known of an address."""

    announcement: str
    """Name of the one that held it last."""
    key: bytes
    failures: int = 0
    """Dials that failed since one did not."""


class Neighbours:
    """A `Dialer` whose addresses are keys, as `key_text` prints them."""

    def __init__(self, transport: LocalTransport, connected: Callable[[bytes], str | None]) -> None:
        """`connected`: the name of the connected peer with a key, if there is one."""
        self._transport = transport
        self._connected = connected
        self._told: dict[str, _Told] = {}
        """Address -> what is known of it, in the order in which they were heard of."""
        self._changed = trio.Event()

    @property
    def addresses(self) -> list[str]:
        """Those known now."""
        return list(self._told)

    def hear(self, announcement: str, addresses: Sequence[str]) -> None:
        """An announcement holds these addresses now, and none that it held before."""
        gone = {address for address, told in self._told.items() if told.announcement == announcement} - set(addresses)
        for address in gone:
            del self._told[address]
        for address in addresses:
            if address in self._told:
                self._told[address].announcement = announcement
            elif (key := self._transport.admitted(address)) is not None:
                self._make_room(key)
                self._told[address] = _Told(announcement, key)
        self._changed.set()
        self._changed = trio.Event()

    def _make_room(self, key: bytes) -> None:
        same = [address for address, told in self._told.items() if told.key == key]
        if len(same) >= PEER_ADDRESSES_MAX:
            del self._told[max(same, key=lambda address: self._told[address].failures)]
        elif len(self._told) >= ADDRESSES_MAX:
            del self._told[next(iter(self._told))]

    def known(self, peer: str) -> bool:
        """Whether there is an address of a peer."""
        return any(key_text(told.key) == peer for told in self._told.values())

    async def heard(self, peer: str) -> None:
        """Return when there is an address of a peer."""
        while not self.known(peer):
            await self._changed.wait()

    async def dial(self, peer: str) -> Link:
        """See `Dialer`. Tries the address that failed least often. Raises `Duplicate` for a peer that is connected."""
        found = [(address, told) for address, told in self._told.items() if key_text(told.key) == peer]
        if not found:
            raise LinkFailed(f"{peer} is not announced any more")
        address, told = min(found, key=lambda each: each[1].failures)
        if (name := self._connected(told.key)) is not None:
            raise Duplicate(name)
        try:
            link = await self._transport.dial(address)
        except SyncError:
            told.failures += 1
            raise
        told.failures = 0
        return link

    async def hold(self, hold: Callable[[str], Awaitable[None]]) -> None:
        """Run `hold(peer)` in a task for each peer that was ever known: as many as keys are admitted, at most."""
        held = set[str]()
        async with open_nursery() as nursery:
            while True:
                peers = {key_text(told.key) for told in self._told.values()}
                for peer in sorted(peers - held):
                    held.add(peer)
                    nursery.start_soon(hold, peer)
                await self._changed.wait()
