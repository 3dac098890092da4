"""Who feeds what: each source comes from one peer at a time, so that a delta crosses into this node once.

A peer that says it has more of a source than is here becomes its feeder, unless one feeds it already. It stays the
feeder, and so pushes what comes later without being asked again, until it goes, stalls or has no more while another
has. The idea is that of Plumtree's eager links (Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees, 2007), chosen by
the receiver and for each source.

One that claims more and does not send it is doubted for a while, longer each time: of a source that another feeds, its
claim alone makes nobody look elsewhere. So who lies costs one stall, now and then.

Pure bookkeeping: peers are names here, and what they claim stays with their session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

DOUBTS_MAX: Final = 16_384
"""Sources and peers that are doubted at a time; of more the oldest is forgotten."""
DOUBT_LOOKS_MAX: Final = 64
"""Longest that a doubt lasts, in looks."""


@attrs.define
class _Feed:
    peer: str
    seen: int
    """Seq that was here at the last look: one that does not move while more is claimed has stalled."""
    looked: bool = False
    """Whether there was one: it may come right after a feed begins."""


@attrs.define
class _Doubt:
    looks: int
    """How many it lasts."""
    until: int
    """The last of them."""


class Feeders:
    """source -> the peer that feeds it."""

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}
        self._doubts: dict[tuple[str, str], _Doubt] = {}
        """By peer and source."""
        self._looks = 0

    def __len__(self) -> int:
        return len(self._feeds)

    def get(self, source: str) -> str | None:
        """The peer that feeds a source."""
        feed = self._feeds.get(source)
        return None if feed is None else feed.peer

    def take(self, source: str, peer: str, seq: int) -> bool:
        """Make `peer` the feeder if there is none; `seq`: what is here. Says whether it is to be asked now."""
        if source in self._feeds:
            return False
        self._feeds[source] = _Feed(peer, seq)
        return True

    def drop(self, source: str, peer: str) -> bool:
        """`peer` no longer feeds a source; False if it did not."""
        if self.get(source) != peer:
            return False
        del self._feeds[source]
        return True

    def leave(self, peer: str) -> list[str]:
        """A peer is gone: the sources that nobody feeds now."""
        orphans = [source for source, feed in self._feeds.items() if feed.peer == peer]
        for source in orphans:
            del self._feeds[source]
        for key in [key for key in self._doubts if key[0] == peer]:
            del self._doubts[key]
        return orphans

    def stalled(self, here: Callable[[str], int], claims: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
        """Look around: (source, its feeder) where more is claimed than is here and nothing came since the last look.

        `here(source)`: highest seq here. `claims`: what each connected peer says it has.
        """
        found = []
        self._looks += 1
        busy = {feed.peer for source, feed in self._feeds.items() if here(source) > feed.seen}
        for source, feed in self._feeds.items():
            seq = here(source)
            if seq > feed.seen:
                self._doubts.pop((feed.peer, source), None)
            elif feed.looked and self._more(source, seq, claims, feed.peer if feed.peer in busy else ""):
                found.append((source, feed.peer))
                if claims.get(feed.peer, {}).get(source, 0) > seq:
                    self._doubt(feed.peer, source)
            feed.seen, feed.looked = seq, True
        return found

    def _more(self, source: str, seq: int, claims: Mapping[str, Mapping[str, int]], busy: str) -> bool:
        """Whether anybody who is not doubted claims more, but for the feeder if it is busy with other sources."""
        return any(
            peer != busy and each.get(source, 0) > seq and not self.doubted(peer, source)
            for peer, each in claims.items()
        )

    def _doubt(self, peer: str, source: str) -> None:
        before = self._doubts.pop((peer, source), None)
        looks = 2 if before is None else min(DOUBT_LOOKS_MAX, 2 * before.looks)
        self._doubts[peer, source] = _Doubt(looks, self._looks + looks)
        if len(self._doubts) > DOUBTS_MAX:
            del self._doubts[next(iter(self._doubts))]

    def doubted(self, peer: str, source: str) -> bool:
        """Whether a peer claimed more of a source of late than it sent."""
        doubt = self._doubts.get((peer, source))
        return doubt is not None and self._looks < doubt.until


def best(source: str, seq: int, claims: Mapping[str, Mapping[str, int]], avoid: Iterable[str] = ()) -> str | None:
    """The peer that claims most of a source beyond `seq`, one of `avoid` only if nobody else does; None: nobody."""
    avoided = set(avoid)
    able = [
        (peer not in avoided, each.get(source, 0), peer) for peer, each in claims.items() if each.get(source, 0) > seq
    ]
    return max(able)[2] if able else None
