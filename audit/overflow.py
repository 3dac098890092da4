"""What becomes of events that cannot be taken at once: policies by name, the recorder's options, what it counted."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import attrs

from audit.event import Action
from audit.store import BATCH_EVENTS_MAX
from deltalog.errors import UsageError

_SECONDS_MAX: Final = 1 << 32


class Overflow(StrEnum):
    """What becomes of an event when it cannot be taken at once."""

    DROP = "drop"
    """It is counted, and a gap event says so."""
    WAIT = "wait"
    """Whoever submits it waits for room, at most `wait_s`; then as `DROP`."""
    REQUIRE = "require"
    """Whoever submits it waits until it is fsynced, at most `require_s`; then it is refused with AuditUnavailable."""


def _frozen(policies: Mapping[Action, Overflow]) -> Mapping[Action, Overflow]:
    return MappingProxyType(dict(policies))


@attrs.frozen(kw_only=True)
class RecorderOptions:
    """How events are taken and written."""

    # behaviour
    policy: Overflow = Overflow.WAIT
    """Of actions that `policies` does not name; for `submit`. `log` never waits: it drops whatever the policy."""
    policies: Mapping[Action, Overflow] = attrs.field(factory=dict, converter=_frozen)
    """By action."""
    wait_s: float = 1.0
    """How long `WAIT` waits for room."""
    require_s: float = 2.0
    """How long `REQUIRE` waits in all."""
    close_s: float = 10.0
    """How long closing tries to write what waits, while the store takes nothing; then it counts as dropped."""
    # performance
    buffer_events: int = 65_536
    """Events that wait, at most. About 500 bytes each."""
    batch_events_min: int = 400
    """A batch is written as soon as so many wait."""
    batch_events_max: int = 500
    """Events of one batch. RocksDB's write holds the interpreter for about 2 ms then."""
    interval_s: float = 0.5
    """An event waits no longer: what a crash can cost. Once more the same until it is fsynced: what power loss can."""

    def __attrs_post_init__(self) -> None:
        for name in ("wait_s", "require_s", "close_s", "interval_s"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < _SECONDS_MAX:
                raise UsageError(f"recorder.{name} must be a number of seconds >= 0, not {value!r}")
        for name, most in (
            ("buffer_events", 1 << 24),
            ("batch_events_min", BATCH_EVENTS_MAX),
            ("batch_events_max", BATCH_EVENTS_MAX),
        ):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise UsageError(f"recorder.{name} must be an integer from 1 to {most:,}, not {value!r}")
        if not all(type(policy) is Overflow for policy in (self.policy, *self.policies.values())):
            raise UsageError("recorder.policy and recorder.policies take Overflow.DROP, WAIT or REQUIRE")


@attrs.frozen
class RecorderStatistics:
    """The recorder since it started. submitted = recorded + sum of dropped + pending, always (invariant I11)."""

    submitted: int
    recorded: int
    dropped: Mapping[Action, int]
    """By action."""
    pending: int
    """In the buffer or being written."""
    waiting: int
    """Submits that wait for room; not submitted yet."""
    batches: int
    fsyncs: int
    problem: str
    """Why nothing can be written now, "" if it can."""

    @property
    def dropped_total(self) -> int:
        """Events dropped."""
        return sum(self.dropped.values())
