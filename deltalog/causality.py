"""Who knew of whom: order of two deltas, and conflicts on a key, from deps alone.

A delta's deps are the entries of its writer's version vector that changed since the writer's previous delta. So its
full context is what the deps of its source say up to it, the newest entry per source counting. Timestamps extend
causal order (invariant I6): a delta that knows another comes after it in time. Hence nobody needs contexts from before
an interval to compare deltas within it, and a search backwards may end at the timestamp it looks for.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from deltalog.delta import Delta
from deltalog.version import Dot


@attrs.frozen
class Conflict:
    """Two deltas on one key of which neither knew the other. `first` comes before `second` in timestamp order."""

    key: str
    first: Delta
    second: Delta


def knows(backwards: Iterable[Delta], dot: Dot, timestamp: int) -> bool:
    """Whether the first of `backwards` (a source's deltas, newest first) knew `dot`, which has this timestamp.

    Reads until an entry for the dot's source decides, or until nothing older can know it.
    """
    for delta in backwards:
        if delta.timestamp <= timestamp:
            return False
        seen = delta.deps.get(dot.source)
        if seen is not None:
            return seen >= dot.seq
    return False


class ConflictFinder:
    """Fed deltas in timestamp order, finds the conflicts among them.

    For each delta and each other source it reports at most one conflict: with that source's newest delta so far on the
    same key, unless it knew that one (then it knew the older ones too). Older ones it did not know either are not
    reported; they are those of that source and key above its context. Deltas with the key "" conflict with none.
    Memory: one delta per key and source, one seq per pair of sources that met.
    """

    def __init__(self) -> None:
        self._contexts: dict[str, dict[str, int]] = {}
        self._newest: dict[str, dict[str, Delta]] = {}

    def add(self, delta: Delta) -> list[Conflict]:
        """Take the next delta; return its conflicts with earlier ones."""
        context = self._contexts.setdefault(delta.source, {})
        if delta.deps:
            context.update(delta.deps)
        if not delta.key:
            return []
        newest = self._newest.setdefault(delta.key, {})
        found = [
            Conflict(delta.key, other, delta)
            for source, other in newest.items()
            if source != delta.source and context.get(source, 0) < other.seq
        ]
        newest[delta.source] = delta
        return found
