"""What every known peer has acknowledged: up to where all of them hold what we hold, and what so many of them hold.

A peer is known from `join` to `forget`. While its lease runs it pins: what it has not acknowledged must be kept for it.
The lease starts anew whenever the peer is seen; past its end the peer no longer counts, but stays known, and pins again
once it is back.

An acknowledgement is what a peer told to be fsynced on its side, never what was merely sent. It is learnt anew in each
session: from `reset` on only what the peer tells now counts, since it may have been put back to an older state; until
it has told, it pins everything. Within a session acknowledgements only rise; after it they stay as they were.

Knows no I/O and no clock: `now` is in seconds, of one clock that never goes back, whichever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
import msgpack

from deltalog.errors import DecodeError, UsageError
from deltalog.version import VersionVector

LEASE_S: Final = 7 * 24 * 3600.0
"""How long a peer pins after it was last seen. Cassandra lets a node miss deletions for ten days."""
PEER_BYTES: Final = 255
"""UTF-8 bytes of a peer's name."""
_VERSION: Final = 1


@attrs.define
class _Peer:
    lease_s: float
    until_s: float
    """When its lease is over."""
    told: dict[str, int] = attrs.field(factory=dict)
    """source -> seq acknowledged in the present session, or the last one."""


class Stability:
    """Known peers, their leases, and the version vectors they have acknowledged."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}

    @property
    def peers(self) -> Sequence[str]:
        """All known peers, in the order they came."""
        return tuple(self._peers)

    def join(self, peer: str, now: float, lease_s: float = LEASE_S) -> None:
        """Know a peer from now on; if it is known, give it this lease, from now on. Keeps what it acknowledged.

        Raises `UsageError` for a name of 0 or more than 255 UTF-8 bytes, or a lease that is not above 0.
        """
        if type(peer) is not str or not 0 < len(peer.encode()) <= PEER_BYTES:
            raise UsageError(f"peer must be a name of 1 to {PEER_BYTES} UTF-8 bytes, not {peer!r}"[:200])
        if type(lease_s) not in (int, float) or not lease_s > 0:
            raise UsageError(f"lease_s must be a number of seconds above 0, not {lease_s!r}"[:200])
        held = self._peers.get(peer)
        if held is None:
            self._peers[peer] = _Peer(lease_s, now + lease_s)
        else:
            held.lease_s, held.until_s = lease_s, now + lease_s

    def forget(self, peer: str) -> bool:
        """Know a peer no longer: it pins nothing, and what it acknowledged is gone; whether it was known."""
        return self._peers.pop(peer, None) is not None

    def seen(self, peer: str, now: float) -> None:
        """The peer is there: its lease runs from now on. Raises `UsageError` for a peer that is not known."""
        held = self._known(peer)
        held.until_s = max(held.until_s, now + held.lease_s)

    def reset(self, peer: str, now: float) -> None:
        """A session with the peer begins: what it acknowledged is learnt anew. Raises as `seen`."""
        self.seen(peer, now)
        self._peers[peer].told = {}

    def acknowledge(self, peer: str, held: Mapping[str, int] | Iterable[tuple[str, int]], now: float) -> None:
        """The peer says that it has fsynced each source up to a seq; 0: it holds nothing of it. Raises as `seen`.

        Raises `UsageError` for what is no source or no seq; what came before it in `held` counts.
        """
        self.seen(peer, now)
        told = self._peers[peer].told
        for source, seq in held.items() if isinstance(held, Mapping) else held:
            if type(source) is not str or type(seq) is not int or seq < 0:
                raise UsageError(f"acknowledged must be sources and seqs from 0, not {source!r}: {seq!r}"[:200])
            if seq > told.get(source, -1):
                told[source] = seq

    def acknowledged(self, peer: str) -> VersionVector:
        """What counts as acknowledged by a peer. Raises as `seen`."""
        return VersionVector(self._known(peer).told)

    def pins(self, peer: str, now: float) -> bool:
        """Whether the peer's lease still runs. Raises as `seen`."""
        return now < self._known(peer).until_s

    def stable(self, heads: Mapping[str, int], now: float) -> dict[str, int]:
        """Lower `heads` to what every peer that pins has acknowledged; one that told nothing yet leaves nothing.

        Costs sources in `heads` times peers, 0.1 to 0.5 us each.
        """
        lowest = dict(heads)
        for peer in self._peers.values():
            if now < peer.until_s:
                held = peer.told
                lowest = {s: seq if seq <= (has := held.get(s, 0)) else has for s, seq in lowest.items()}
        return lowest

    def held_by(self, count: int) -> dict[str, int]:
        """For each source the highest seq that at least `count` known peers acknowledged, if there is one.

        Their leases do not matter. Costs all that peers have acknowledged.
        """
        if type(count) is not int or count < 1:
            raise UsageError(f"count must be an integer of at least 1, not {count!r}"[:200])
        seqs: dict[str, list[int]] = {}
        for peer in self._peers.values():
            for source, seq in peer.told.items():
                seqs.setdefault(source, []).append(seq)
        found = {source: sorted(held)[-count] for source, held in seqs.items() if len(held) >= count}
        return {source: seq for source, seq in found.items() if seq}

    # ---------------------------------------------------------------------------------------------------- kept on disk

    def pack(self, now: float) -> bytes:
        """Peers and what is left of their leases, as bytes; not what they acknowledged, which is learnt anew."""
        peers = [[name, peer.lease_s, max(0.0, peer.until_s - now)] for name, peer in self._peers.items()]
        packed: bytes = msgpack.packb([_VERSION, peers])
        return packed

    @classmethod
    def unpack(cls, packed: bytes, now: float) -> Stability:
        """What was packed. Leases go on from now: the time in between, in which nobody could be seen, does not count.

        Raises `DecodeError`.
        """
        made = cls()
        try:
            version, peers = msgpack.unpackb(packed)
            if version != _VERSION:
                raise DecodeError(f"peers: format version {version!r}; this program knows {_VERSION}")
            for name, lease_s, left_s in peers:
                made.join(name, now, lease_s)
                if type(left_s) not in (int, float) or not 0 <= left_s <= lease_s:
                    raise DecodeError(f"peers: {left_s!r} seconds are left of a lease of {lease_s!r}")
                made._peers[name].until_s = now + left_s
        except (ValueError, TypeError) as error:
            raise DecodeError(f"peers: {error}") from error
        return made

    def _known(self, peer: str) -> _Peer:
        held = self._peers.get(peer)
        if held is None:
            raise UsageError(f"peer {peer!r} is not known: join it first"[:200])
        return held
