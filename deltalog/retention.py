"""Decides what may go: by age, by count, by size. Changes nothing.

Every cut is by timestamp. Timestamps extend causal order (invariant I6), so with a delta all its causes go too, and the
order of any two deltas that stay can still be told.
"""

from __future__ import annotations

import math

import attrs

from deltalog.clock import pack
from deltalog.errors import UsageError
from deltalog.store import DeltaStore


@attrs.frozen(kw_only=True)
class Retention:
    """What to keep; None sets no bound. The strictest bound decides."""

    max_age_s: float | None = None
    """Drop deltas with an older timestamp."""
    max_deltas: int | None = None
    """Keep at least this many of the newest by timestamp, and no more than share the oldest kept timestamp."""
    max_bytes: int | None = None
    """Keep about this many bytes of encoded records (by the average size of a record)."""

    def __attrs_post_init__(self) -> None:
        age, counts = self.max_age_s, {"max_deltas": self.max_deltas, "max_bytes": self.max_bytes}
        if age is not None and (type(age) not in (int, float) or not 0 <= age < math.inf):
            raise UsageError(f"retention.max_age_s must be a number of seconds, at least 0, not {age!r}"[:200])
        for name, value in counts.items():
            if value is not None and (type(value) is not int or value < 0):
                raise UsageError(f"retention.{name} must be an integer of at least 0, not {value!r}"[:200])


def plan(store: DeltaStore, retention: Retention, now_ms: int) -> dict[str, int]:
    """Return per source the seq up to which deltas may go, for sources where that is above the floor."""
    heads = store.heads()
    count = sum(head.count for head in heads.values())
    size = sum(head.size_bytes for head in heads.values())
    cuts = [-1]
    if retention.max_age_s is not None:
        cuts.append(pack(max(0, now_ms - int(retention.max_age_s * 1000)), 0) - 1)
    keep = count if retention.max_deltas is None else retention.max_deltas
    if retention.max_bytes is not None and size > retention.max_bytes:
        keep = min(keep, count * retention.max_bytes // size)
    if keep < count:
        cuts.append(_cut_by_count(store, keep))
    return _floors(store, max(cuts))


def _cut_by_count(store: DeltaStore, keep: int) -> int:
    """The latest timestamp after which at least `keep` deltas remain, by bisection."""
    heads = store.heads()
    low, high = -1, max(head.timestamp for head in heads.values())
    while low < high:
        middle = (low + high + 1) // 2
        floors = store.seqs_at(middle)
        left = sum(head.seq - max(head.floor, floors.get(source, 0)) for source, head in heads.items())
        low, high = (middle, high) if left >= keep else (low, middle - 1)
    return low


def _floors(store: DeltaStore, cut: int) -> dict[str, int]:
    if cut < 0:
        return {}
    heads = store.heads()
    return {source: seq for source, seq in store.seqs_at(cut).items() if seq > heads[source].floor}
