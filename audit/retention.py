"""What may go from the trail: by age and by size. Decides; changes nothing.

Size is decided at checkpoints, so it is kept to about a thousand events; age is exact. The last event never goes: the
trail always says where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from audit.keys import Checkpoint, Head
from deltalog.clock import COUNTER_BITS
from deltalog.errors import UsageError


@attrs.frozen(kw_only=True)
class AuditRetention:
    """What is kept. None: no limit. Events go from the oldest on, as soon as either limit says so."""

    age_s: float | None = None
    """Seconds after its timestamp that an event may go."""
    size_bytes: int | None = None
    """Encoded events that are kept at most. On disk they take about as much with their indexes, compressed."""

    def __attrs_post_init__(self) -> None:
        for name in ("age_s", "size_bytes"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value < math.inf):
                raise UsageError(f"retention.{name} must be a number >= 0 or None, not {value!r}"[:200])

    def oldest_kept(self, now_ns: int) -> int:
        """Timestamp before which events may go, 0 if age does not count."""
        if self.age_s is None:
            return 0
        return max(0, now_ns // 1_000_000 - int(self.age_s * 1000)) << COUNTER_BITS


def floor_by_size(retention: AuditRetention, head: Head, checkpoints: Sequence[Checkpoint]) -> int:
    """Number up to which events must go for the rest to be within the size; `checkpoints` ascend."""
    if retention.size_bytes is None or head.held_bytes <= retention.size_bytes:
        return head.floor
    for checkpoint in checkpoints:
        if head.size_bytes - checkpoint.size_bytes <= retention.size_bytes:
            return checkpoint.number
    return checkpoints[-1].number if checkpoints else head.floor


def floor(retention: AuditRetention, head: Head, checkpoints: Sequence[Checkpoint], before_oldest_kept: int) -> int:
    """Number up to which events may go. `before_oldest_kept`: of the last event before `oldest_kept`, 0 if none is."""
    wanted = max(head.floor, floor_by_size(retention, head, checkpoints), before_oldest_kept)
    return max(head.floor, min(wanted, head.number - 1))
