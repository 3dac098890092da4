"""Who has seen what: dots, version vectors, and the four ways two of them can stand to each other.

A dot names one delta: its source and its seq. Seqs are dense from 1, so one number per source, the highest seq held,
says everything: a version vector. A source that is not in it counts as 0.

This file knows no delta, no clock and no I/O. Hot paths keep plain dicts; every method here takes any mapping for
"the other" one, with entries of 0 or without.
"""

from __future__ import annotations

import enum
from collections.abc import ItemsView, Iterator, Mapping
from typing import NamedTuple

from deltalog.errors import UsageError


class Dot(NamedTuple):
    """The name of one delta, never used twice."""

    source: str
    """Who wrote it."""
    seq: int
    """Its place in the source's own order, dense from 1."""


class Order(enum.Enum):
    """How one set of deltas (or the context of one delta) stands to another. The values are what the log prints."""

    BEFORE = "before"
    """The other covers all of this one, and more."""
    AFTER = "after"
    """This one covers all of the other, and more."""
    CONCURRENT = "concurrent"
    """Each has something that the other lacks."""
    EQUAL = "equal"
    """Both hold the same."""


_ORDERS: Mapping[tuple[bool, bool], Order] = {
    (False, False): Order.EQUAL,
    (False, True): Order.BEFORE,
    (True, False): Order.AFTER,
    (True, True): Order.CONCURRENT,
}
"""(the first has more somewhere, the second has more somewhere) -> how the first stands to the second."""


def compare(a: Mapping[str, int], b: Mapping[str, int]) -> Order:
    """Say how version vector `a` stands to `b`. Costs one pass over each."""
    a, b = _entries(a), _entries(b)
    return _ORDERS[not _covers_all(b, a), not _covers_all(a, b)]


class VersionVector(Mapping[str, int]):
    """source -> highest seq held: immutable, hashable, without entries of 0.

    It equals any mapping with the same entries. `vector[source]` raises KeyError for a source it does not hold;
    `vector.get(source, 0)` does not.
    """

    __slots__ = ("_entries",)

    _entries: dict[str, int]

    def __init__(self, entries: Mapping[str, int] | None = None) -> None:
        """Copy `entries`, dropping those of 0.

        Raises UsageError for a source that is no str or a seq that is no int >= 0.
        """
        checked = {}
        for source, seq in (entries or {}).items():
            _check(source, seq)
            if seq:
                checked[source] = seq
        self._entries = checked

    @classmethod
    def trusted(cls, entries: dict[str, int]) -> VersionVector:
        """Take `entries` over, neither checked nor copied: no entry may be 0, and the caller must let go of the dict.

        Costs the same for any size. To go on changing a dict, hand over `dict(entries)`.
        """
        vector = object.__new__(cls)
        vector._entries = entries
        return vector

    def to_dict(self) -> dict[str, int]:
        """Return a plain copy that the caller may change."""
        return self._entries.copy()

    def covers(self, dot: tuple[str, int]) -> bool:
        """Say whether the delta named `dot` is held. True for a seq of 0, which names no delta."""
        source, seq = dot
        return seq <= self._entries.get(source, 0)

    def covers_all(self, other: Mapping[str, int]) -> bool:
        """Say whether everything in `other` is held: the partial order `other <= self`."""
        return _covers_all(self._entries, _entries(other))

    def compare(self, other: Mapping[str, int]) -> Order:
        """Say how this stands to `other`."""
        return compare(self._entries, other)

    def merge(self, other: Mapping[str, int]) -> VersionVector:
        """Return what either holds (the higher seq of each source): the least vector that covers both."""
        merged = self._entries.copy()
        for source, seq in _entries(other).items():
            if seq > merged.get(source, 0):
                merged[source] = seq
        return VersionVector.trusted(merged)

    def meet(self, other: Mapping[str, int]) -> VersionVector:
        """Return what both hold (the lower seq of each source): the greatest vector that both cover."""
        theirs = _entries(other)
        lower = {source: min(seq, theirs.get(source, 0)) for source, seq in self._entries.items()}
        return VersionVector.trusted({source: seq for source, seq in lower.items() if seq})

    def missing_from(self, other: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return what is held here and missing from `other`: source -> (after, until), `after` exclusive.

        >>> VersionVector({"alice": 9, "bob": 4}).missing_from({"alice": 6, "bob": 4, "carol": 2})
        {'alice': (6, 9)}
        """
        theirs = _entries(other)
        return {
            source: (theirs.get(source, 0), seq) for source, seq in self._entries.items() if seq > theirs.get(source, 0)
        }

    def with_dot(self, dot: tuple[str, int]) -> VersionVector:
        """Return the vector that also holds `dot` and all before it of its source; this one if it does already.

        Raises UsageError for a source that is no str or a seq that is no int >= 0.
        """
        source, seq = dot
        _check(source, seq)
        if seq <= self._entries.get(source, 0):
            return self
        return VersionVector.trusted({**self._entries, source: seq})

    def __getitem__(self, source: str) -> int:
        return self._entries[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> ItemsView[str, int]:
        """Return the entries as (source, seq), in no particular order."""
        return self._entries.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, VersionVector):
            return self._entries == other._entries
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __repr__(self) -> str:
        return f"VersionVector({self._entries!r})"


def _entries(vector: Mapping[str, int]) -> Mapping[str, int]:
    return vector._entries if isinstance(vector, VersionVector) else vector


def _covers_all(upper: Mapping[str, int], lower: Mapping[str, int]) -> bool:
    return all(seq <= upper.get(source, 0) for source, seq in lower.items())


def _check(source: str, seq: int) -> None:
    if type(source) is not str:
        raise UsageError(f"source must be a str, not {type(source).__name__}")
    if type(seq) is not int:
        raise UsageError(f"seq of source {source!r} must be an int, not {type(seq).__name__}")
    if seq < 0:
        raise UsageError(f"seq of source {source!r} is {seq}; seqs are dense from 1, and 0 means none")
