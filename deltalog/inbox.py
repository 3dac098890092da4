"""The inbox: remote deltas that wait for their predecessor or for a delta they depend on (invariant I5). Bounded.

A waiting delta hangs on one thing it lacks. When that has come, `advance` hands it back, and whoever asked looks for
the next thing. The file decides nothing about what is valid; it knows no ring, no store.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from heapq import heappop, heappush

import attrs

from deltalog.delta import Delta
from deltalog.version import Dot


@attrs.frozen
class InboxStatistics:
    """The inbox at one moment."""

    deltas: int
    bytes: int
    deltas_max: int
    bytes_max: int


def lacking(delta: Delta, heads: Mapping[str, int], excused: Container[str] = ()) -> Dot | None:
    """The first thing that `delta` must wait for: its predecessor, else a dependency; None if it may be applied.

    Dependencies on `excused` sources are not waited for.
    """
    if heads.get(delta.source, 0) < delta.seq - 1:
        return Dot(delta.source, delta.seq - 1)
    for source, seq in delta.deps.items():
        if heads.get(source, 0) < seq and source not in excused:
            return Dot(source, seq)
    return None


class Inbox:
    """Waiting deltas, by dot and by what they wait for."""

    def __init__(self, deltas_max: int = 65_536, bytes_max: int = 16 << 20) -> None:
        """At most `deltas_max` deltas and `bytes_max` bytes of records wait; beyond, `hold` refuses."""
        self.deltas_max = deltas_max
        self.bytes_max = bytes_max
        self._held: dict[Dot, Delta] = {}
        self._waiting: dict[str, list[tuple[int, str, int]]] = {}  # needed source -> heap of (needed seq, dot)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, dot: Dot) -> Delta | None:
        """The waiting delta with this dot."""
        return self._held.get(dot)

    def awaited(self, source: str) -> bool:
        """Whether a delta waits for something of this source."""
        return source in self._waiting

    def hold(self, delta: Delta, need: Dot) -> bool:
        """Keep `delta` until `need` has come; False if there is no room. One that waits already stays as it is."""
        if delta.dot in self._held:
            return True
        if len(self._held) >= self.deltas_max or self._bytes + len(delta.record) > self.bytes_max:
            return False
        self._held[delta.dot] = delta
        self._bytes += len(delta.record)
        heappush(self._waiting.setdefault(need.source, []), (need.seq, delta.source, delta.seq))
        return True

    def advance(self, source: str, seq: int) -> list[Delta]:
        """Everything of `source` up to `seq` has come: give back the deltas that waited for it."""
        heap = self._waiting.get(source)
        ready: list[Delta] = []
        while heap and heap[0][0] <= seq:
            _, waiting, number = heappop(heap)
            ready.append(self._release(Dot(waiting, number)))
        if heap is not None and not heap:
            del self._waiting[source]
        return ready

    def statistics(self) -> InboxStatistics:
        """How full it is."""
        return InboxStatistics(len(self._held), self._bytes, self.deltas_max, self.bytes_max)

    def _release(self, dot: Dot) -> Delta:
        delta = self._held.pop(dot)
        self._bytes -= len(delta.record)
        return delta
