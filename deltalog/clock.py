"""A hybrid logical clock: timestamps that follow the wall clock, never go back, and stand in causal order.

A timestamp is one int of 64 bits, so that comparing timestamps is comparing ints:

     63                                            16 15             0
    +------------------------------------------------+----------------+
    | milliseconds since 1970-01-01T00:00:00Z (48)   | counter (16)   |
    +------------------------------------------------+----------------+

The counter tells apart what happens within a millisecond and carries into the milliseconds: past 65,535 ticks the
clock runs ahead of the wall, and the wall catches up with it.

What the wall clock may do, and what follows:

* It stands still or jumps back: ticks go on from the last timestamp by the counter. A new `Clock` started with the
  highest timestamp that was stored goes on in the same way, so a jump back across a restart changes nothing.
* It jumps forward a day and back: what was stamped meanwhile is a day ahead, and the clock stays there, ticking by the
  counter, until the wall has caught up. The order of this node's deltas stays right; their times are up to a day late,
  and other nodes refuse them (`ClockDrift`) until their own clocks are within the drift bound.
* A peer's timestamp is further ahead than the drift bound: it is refused and the clock does not move, so that one wrong
  clock does not drag all the others along. A timestamp in the past is always fine.

This file knows no delta and no I/O; the wall clock is injected. A clock belongs to one thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from deltalog.errors import ClockDrift, DeltaLogError, UsageError

COUNTER_BITS: Final = 16
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1
MS_MAX: Final = (1 << 48) - 1
"""The last millisecond of the 48 bits, in the year 10889."""
TIMESTAMP_MAX: Final = (1 << 64) - 1

DRIFT_MS_DEFAULT: Final = 60_000
"""How far ahead of this node's wall clock a peer's timestamp may be.

Clocks kept by NTP are within a second of each other and a virtual machine that wakes up may need some seconds to be
set right; one minute refuses none of those. CockroachDB stops a node at 0.5 s, because its reads depend on real time;
here a late clock costs order in time only.
"""

_NS_PER_MS: Final = 1_000_000


@attrs.define(kw_only=True, eq=False, on_setattr=attrs.setters.NO_OP)
class Clock:
    """The source of one node's timestamps: each is greater than every one before it, ticked or observed."""

    last: int = 0
    """The highest timestamp ticked or observed. At a restart: the highest that was stored."""
    drift_ms: int = DRIFT_MS_DEFAULT
    """How far ahead of the wall clock an observed timestamp may be, in milliseconds."""
    wall_ns: Callable[[], int] = time.time_ns
    """The wall clock, in nanoseconds since 1970."""

    _ms_until_ns: int = attrs.field(default=0, init=False)
    """Until the wall reaches this, `last` is not behind it and a tick needs no division. 0 until the first tick."""

    def __attrs_post_init__(self) -> None:
        _check_timestamp("last", self.last)
        if type(self.drift_ms) is not int or self.drift_ms < 0:
            raise UsageError(f"drift_ms is {self.drift_ms!r}; it takes an int >= 0, in milliseconds")

    def tick(self) -> int:
        """Return a timestamp for something that happens now, greater than every one before.

        Raises DeltaLogError, and leaves the clock as it is, if no greater timestamp fits 64 bits.
        """
        now_ns = self.wall_ns()
        if now_ns < self._ms_until_ns:
            timestamp = self.last + 1
        else:
            ms = now_ns // _NS_PER_MS
            self._ms_until_ns = (ms + 1) * _NS_PER_MS
            timestamp = max(ms << COUNTER_BITS, self.last + 1)
        if timestamp > TIMESTAMP_MAX:
            raise self._exhausted()
        self.last = timestamp
        return timestamp

    def check(self, timestamp: int) -> None:
        """Raise ClockDrift if `timestamp` is further ahead of the wall clock than the bound; change nothing.

        Raises UsageError for what is no timestamp.
        """
        _check_timestamp("timestamp", timestamp)
        ahead_ms = (timestamp >> COUNTER_BITS) - self.wall_ns() // _NS_PER_MS
        if ahead_ms > self.drift_ms:
            raise ClockDrift(ahead_ms, self.drift_ms)

    def latest(self) -> int:
        """The greatest timestamp that `check` lets pass now."""
        return min((self.wall_ns() // _NS_PER_MS + self.drift_ms << COUNTER_BITS) | COUNTER_MAX, TIMESTAMP_MAX)

    def observe(self, timestamp: int) -> None:
        """Take in a timestamp from elsewhere: every later tick is greater. Raises as `check`, then nothing changed."""
        self.check(timestamp)
        self.last = max(self.last, timestamp)

    def _exhausted(self) -> DeltaLogError:
        # The millisecond is forgotten too: ticks work again once the wall clock is right, if `last` has room.
        self._ms_until_ns = 0
        return DeltaLogError(
            f"no timestamp after {self.last} fits 64 bits (wall clock: {self.wall_ns() // _NS_PER_MS:,} ms since 1970, "
            f"the last one is {MS_MAX:,}): set the wall clock right, or start from a log with sane timestamps"
        )


def pack(ms: int, counter: int = 0) -> int:
    """Return the timestamp of a millisecond and a counter. Raises UsageError for what does not fit 48 and 16 bits."""
    if not 0 <= ms <= MS_MAX:
        raise UsageError(f"ms is {ms:,}; a timestamp holds 0 to {MS_MAX:,} milliseconds since 1970")
    if not 0 <= counter <= COUNTER_MAX:
        raise UsageError(f"counter is {counter:,}; a timestamp holds 0 to {COUNTER_MAX:,}")
    return ms << COUNTER_BITS | counter


def unpack(timestamp: int) -> tuple[int, int]:
    """Return the milliseconds since 1970 and the counter of a timestamp. Raises UsageError for what is none."""
    _check_timestamp("timestamp", timestamp)
    return timestamp >> COUNTER_BITS, timestamp & COUNTER_MAX


# ----------------------------------------------------------------------------------------------------- as ISO 8601
#
#     1970-01-01T00:00:00.123Z          counter 0
#     1970-01-01T00:00:00.12300042Z     counter 42: five more digits of the fraction
#
# `from_iso(to_iso(t)) == t`. Texts sort as their timestamps do, but for one case: within one millisecond the text
# without a counter sorts after those with one ("Z" > "0").

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNTER_DIGITS = 5
_MS_DIGITS = 3
_YEAR_9999_END: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_ISO = re.compile(
    r"(?P<second>\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
    r"(?:[Zz]|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3]):?(?P<minutes>[0-5]\d)?)",
    re.ASCII,
)


def to_iso(timestamp: int) -> str:
    """Return a timestamp as ISO 8601 text in UTC. Raises UsageError past the year 9999, which has no such text."""
    ms, counter = unpack(timestamp)
    if ms > _YEAR_9999_END:
        raise UsageError(f"timestamp {timestamp} is after the year 9999: it has no ISO 8601 text")
    text = (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return f"{text}{counter:05d}Z" if counter else f"{text}Z"


def from_iso(text: str, field: str = "time") -> int:
    """Return the timestamp of an ISO 8601 text with date, time and offset (`Z`, `+hh`, `+hhmm` or `+hh:mm`).

    A fraction of eight digits whose last five are at most 65,535 is milliseconds and counter, as `to_iso` writes them;
    any other of 1 to 9 digits is cut to milliseconds. Raises UsageError, naming `field`, for anything else and for
    times before 1970 or after 9999.
    """
    if type(text) is not str:
        raise UsageError(f"{field} must be ISO 8601 text, not {type(text).__name__}")
    match = _ISO.fullmatch(text)
    if match is None:
        raise UsageError(f"{field} is {_shown(text)}; it takes ISO 8601 with an offset, as 2026-01-31T12:00:00.123Z")
    try:
        second = datetime.fromisoformat(match["second"]).replace(tzinfo=UTC)
    except ValueError as error:
        raise UsageError(f"{field} is {_shown(text)}; there is no such time ({error})") from error
    sub_ms, counter = _fraction(match["fraction"] or "")
    ms = (second - _EPOCH) // timedelta(milliseconds=1) - _offset_ms(match) + sub_ms
    if not 0 <= ms <= _YEAR_9999_END:
        raise UsageError(f"{field} is {_shown(text)}; it takes times from 1970 to 9999 (UTC)")
    return pack(ms, counter)


def _fraction(digits: str) -> tuple[int, int]:
    """Milliseconds and counter of a fraction of a second."""
    ms = int(digits[:_MS_DIGITS].ljust(_MS_DIGITS, "0"))
    if len(digits) != _MS_DIGITS + _COUNTER_DIGITS:
        return ms, 0
    counter = int(digits[_MS_DIGITS:])
    return ms, counter if counter <= COUNTER_MAX else 0


def _offset_ms(match: re.Match[str]) -> int:
    if match["sign"] is None:
        return 0
    minutes = int(match["hours"]) * 60 + int(match["minutes"] or 0)
    return minutes * 60_000 * (-1 if match["sign"] == "-" else 1)


def _shown(text: str) -> str:
    """A text for an error message, short whatever it is."""
    return repr(text[:60]) + ("..." if len(text) > 60 else "")


def _check_timestamp(field: str, timestamp: int) -> None:
    if type(timestamp) is not int:
        raise UsageError(f"{field} must be an int, not {type(timestamp).__name__}")
    if not 0 <= timestamp <= TIMESTAMP_MAX:
        raise UsageError(f"{field} is {timestamp}; it takes 0 to 2**64 - 1")
