"""Who feeds what: each source comes from one peer at a time, so that a delta crosses into this node once.

A peer that says it has more of a source than is here becomes its feeder, unless one feeds it already. It stays the
feeder, and so pushes what comes later without being asked again, until it goes, stalls or has no more while another
has. The idea is that of Plumtree's eager links (Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees, 2007), chosen by
the receiver and for each source.

Pure bookkeeping: peers are names here, and what they claim stays with their session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs


@attrs.define
class _Feed:
    peer: str
    seen: int
    """Seq that was here at the last look: one that does not move while more is claimed has stalled."""


class Feeders:
    """source -> the peer that feeds it."""

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}

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
        self._feeds[source] = _Feed(peer, seq - 1)  # the first look only notes: it may come right after this
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
        return orphans

    def stalled(self, here: Callable[[str], int], claims: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
        """Look around: (source, its feeder) where more is claimed than is here and nothing came since the last look.

        `here(source)`: highest seq here. `claims`: what each connected peer says it has.
        """
        found = []
        for source, feed in self._feeds.items():
            seq = here(source)
            if seq <= feed.seen and any(each.get(source, 0) > seq for each in claims.values()):
                found.append((source, feed.peer))
            feed.seen = seq
        return found


def best(source: str, seq: int, claims: Mapping[str, Mapping[str, int]], avoid: Iterable[str] = ()) -> str | None:
    """The peer that claims most of a source beyond `seq`, one of `avoid` only if nobody else does; None: nobody."""
    avoided = set(avoid)
    able = [
        (peer not in avoided, each.get(source, 0), peer) for peer, each in claims.items() if each.get(source, 0) > seq
    ]
    return max(able)[2] if able else None
