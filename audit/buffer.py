"""The recorder's buffer: bounded, in order, and exact about what was dropped (invariant I11).

    submitted = recorded + dropped + pending          of the callers' events, at every moment

The trail's own events (gap, started, stopped) are not submitted by anybody and not counted. What was dropped
between two events stands between them in the trail as one gap event. While a gap is open, events that may be dropped
are dropped until the buffer is `RESUME_SHARE` full: an overload makes few long gaps, not many short ones.

Timestamps never descend: an event older than the one before it gets that one's timestamp.

Does not know: tasks, clocks, who waits, where events are stored.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

import attrs

from audit.event import TRAIL_ACTIONS, Action, AuditEvent
from deltalog.errors import UsageError

RESUME_SHARE: Final = 0.75


@attrs.define
class _Gap:
    """Events dropped since the last one that was accepted."""

    count: int
    first: int
    last: int
    by_action: Counter[Action]

    def event(self) -> AuditEvent:
        counts = {str(action): str(count) for action, count in sorted(self.by_action.items())}
        metadata = {"count": str(self.count), "first": str(self.first), "last": str(self.last), **counts}
        return AuditEvent(self.last, Action.GAP, metadata=metadata)


class Buffer:
    """Events on their way to the store: queued, then taken as one batch, then recorded.

    A place in it is an ordinal: how many events came before, the trail's own included.
    """

    def __init__(self, capacity: int, timestamp: int = 0) -> None:
        """`capacity`: events that wait, at most. `timestamp`: of the last event in the store."""
        if type(capacity) is not int or capacity < 1:
            raise UsageError(f"capacity must be an integer of at least 1, not {capacity!r}")
        self.capacity: Final = capacity
        self.submitted = 0
        self.recorded = 0
        self.dropped: Counter[Action] = Counter()
        self.stored = 0
        """Ordinal up to which events are recorded or given up."""
        self.pending = 0
        """Events submitted that are neither recorded nor dropped."""
        self._queue: deque[AuditEvent | None] = deque()  # None: withdrawn
        self._taken = 0  # places that the batch being written takes
        self._batch: list[AuditEvent] = []
        self._resume = max(1, int(capacity * RESUME_SHARE))
        self._gap: _Gap | None = None
        self._last = timestamp

    def __len__(self) -> int:
        """Events that wait to be taken."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """Whether an event that must not be dropped finds room."""
        return len(self._queue) < self.capacity

    @property
    def ordinal(self) -> int:
        """Ordinal of the last event that came in."""
        return self.stored + self._taken + len(self._queue)

    @property
    def is_writing(self) -> bool:
        """Whether events are taken and not `done`."""
        return self._taken > 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write: no event, no gap."""
        return not self._queue and not self._taken and self._gap is None

    # ------------------------------------------------------------------------------------------------------ coming in

    def push(self, event: AuditEvent) -> bool:
        """Take an event, or drop it if there is no room; either is counted. Return whether it was taken."""
        if len(self._queue) >= (self.capacity if self._gap is None else self._resume):
            self.drop(event)
            return False
        self.put(event)
        return True

    def put(self, event: AuditEvent) -> int:
        """Take an event, room or not (`has_room` says); return its ordinal."""
        if self._gap is not None:
            self._close_gap()
        self._queue.append(self._in_order(event))
        self.submitted += 1
        self.pending += 1
        return self.ordinal

    def put_own(self, event: AuditEvent) -> int:
        """Take one of the trail's own events, room or not; return its ordinal."""
        assert event.action in TRAIL_ACTIONS, "what is not the trail's own is counted"
        self._close_gap()
        self._queue.append(self._in_order(event))
        return self.ordinal

    def drop(self, event: AuditEvent) -> None:
        """Count an event as submitted and dropped."""
        self.submitted += 1
        self._count_dropped(event)

    def _in_order(self, event: AuditEvent) -> AuditEvent:
        if event.timestamp >= self._last:
            self._last = event.timestamp
            return event
        return attrs.evolve(event, timestamp=self._last)

    def _count_dropped(self, event: AuditEvent) -> None:
        self.dropped[event.action] += 1
        if self._gap is None:
            self._gap = _Gap(0, event.timestamp, event.timestamp, Counter())
        gap = self._gap
        gap.count += 1
        gap.first, gap.last = min(gap.first, event.timestamp), max(gap.last, event.timestamp)
        gap.by_action[event.action] += 1

    def _close_gap(self) -> None:
        if self._gap is not None:
            gap, self._gap = self._gap, None
            self._queue.append(self._in_order(gap.event()))

    # ------------------------------------------------------------------------------------------------------ going out

    def take(self, count: int) -> list[AuditEvent]:
        """Return the next events to write, about `count` at most; the same again until `done`."""
        if not self._taken:
            if len(self._queue) < count:
                self._close_gap()
            self._taken = min(count, len(self._queue))
            places = [self._queue.popleft() for _ in range(self._taken)]
            self._batch = [event for event in places if event is not None]
        return self._batch

    def done(self) -> None:
        """The events taken are recorded."""
        counted = sum(event.action not in TRAIL_ACTIONS for event in self._batch)
        self.recorded += counted
        self.pending -= counted
        self.stored += self._taken
        self._taken, self._batch = 0, []

    def withdraw(self, ordinal: int) -> bool:
        """Drop an event that nobody has begun to write; return whether it was one."""
        place = ordinal - self.stored - self._taken - 1
        event = self._queue[place] if 0 <= place < len(self._queue) else None
        if event is None or event.action in TRAIL_ACTIONS:
            return False
        self._queue[place] = None
        self.pending -= 1
        self._count_dropped(event)
        return True

    def give_up(self) -> int:
        """Drop everything that is not recorded; return how many events that were."""
        held = [event for event in (*self._batch, *self._queue) if event is not None]
        lost = [event for event in held if event.action not in TRAIL_ACTIONS]
        for event in lost:
            self._count_dropped(event)
        self.pending -= len(lost)
        self.stored = self.ordinal
        self._taken, self._batch = 0, []
        self._queue.clear()
        return len(lost)
