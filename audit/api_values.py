"""What the HTTP API and the command line answer with: events, leases and summaries as JSON objects and CSV rows.

Lives here: names and forms of fields. Does not know: requests, where the values come from.

A timestamp is 64 bits, more than a JSON number holds exactly in many programs; so it stands as text: `time` in ISO 8601
(exact: its fraction holds the counter, see `deltalog.clock`), `timestamp` in digits. Both are taken back by `after`,
`until` and `at`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from audit.event import Action, Recorded
from audit.lease import Lease, Mode, Waiting
from audit.reader import Held, Summary
from deltalog.clock import to_iso
from deltalog.errors import UsageError

COLUMNS: Final = (
    "number",
    "time",
    "action",
    "target",
    "holder_id",
    "holder_name",
    "lock_id",
    "token",
    "metadata",
    "timestamp",
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs a cell that begins with one of these."""


@attrs.frozen(kw_only=True)
class EventView:
    """One audit event."""

    number: int
    """Its place in the trail, dense from 1."""
    time: str
    timestamp: str
    action: Action
    target: str
    holder_id: str
    holder_name: str
    lock_id: str
    token: int
    """Fencing token, 0 if there is none."""
    metadata: dict[str, str]


@attrs.frozen(kw_only=True)
class EventPage:
    """Events of one answer, and where the next begins."""

    events: list[EventView]
    cursor: str | None
    """Give it back as `cursor` for the next page; null: there is no more."""


def event_view(recorded: Recorded) -> EventView:
    """An event as the API shows it."""
    event = recorded.event
    return EventView(
        number=recorded.number,
        time=time_text(event.timestamp),
        timestamp=str(event.timestamp),
        action=event.action,
        target=event.target,
        holder_id=event.holder_id,
        holder_name=event.holder_name,
        lock_id=event.lock_id,
        token=event.token,
        metadata=dict(event.metadata),
    )


def time_text(timestamp: int) -> str:
    """ISO 8601; the number's digits past the year 9999, which has no such text."""
    try:
        return to_iso(timestamp)
    except UsageError:
        return str(timestamp)


def json_line(recorded: Recorded) -> bytes:
    """An event as one line of JSON, without its newline."""
    return json_bytes(fields_of(recorded))


def fields_of(recorded: Recorded) -> dict[str, Any]:
    """The fields of an event's JSON object."""
    return attrs.asdict(event_view(recorded), recurse=False)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def csv_rows(events: Iterable[Recorded]) -> bytes:
    """Events as CSV rows (RFC 4180), columns as `COLUMNS`; metadata as JSON.

    Text that a spreadsheet would take for a formula gets a `'` before it. JSON lines hold the exact values.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for recorded in events:
        fields = fields_of(recorded)
        fields["metadata"] = json.dumps(fields["metadata"], ensure_ascii=False, sort_keys=True)
        writer.writerow([_cell(fields[column]) for column in COLUMNS])
    return buffer.getvalue().encode()


def csv_head() -> bytes:
    """The first row: names of the columns."""
    return (",".join(COLUMNS) + "\r\n").encode()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# ------------------------------------------------------------------------------------------------------------- leases


@attrs.frozen(kw_only=True)
class LeaseView:
    """One lease in force."""

    lock_id: str
    token: int
    holder_id: str
    holder_name: str
    targets: list[str]
    """Taken and given back together."""
    mode: Mode
    intention: str
    remaining_s: float
    """Until it lapses, unless it is renewed."""
    renewals: int


@attrs.frozen(kw_only=True)
class WaitingView:
    """One request in the queue."""

    lock_id: str
    holder_id: str
    holder_name: str
    targets: list[str]
    mode: Mode
    intention: str
    remaining_s: float
    """Until it gives up."""
    blocked_by: str
    """Lock id of one request in its way."""


def lease_view(lease: Lease, now_s: float) -> LeaseView:
    """A lease as the API shows it; `now_s` on the clock of the locks."""
    return LeaseView(
        lock_id=lease.lock_id,
        token=lease.token,
        holder_id=lease.holder.id,
        holder_name=lease.holder.name,
        targets=[str(target) for target in lease.targets],
        mode=lease.mode,
        intention=lease.intention,
        remaining_s=round(max(0.0, lease.deadline_s - now_s), 3),
        renewals=lease.renewals,
    )


def waiting_view(waiting: Waiting, now_s: float) -> WaitingView:
    """A request in the queue as the API shows it; `now_s` on the clock of the locks."""
    return WaitingView(
        lock_id=waiting.lock_id,
        holder_id=waiting.holder.id,
        holder_name=waiting.holder.name,
        targets=[str(target) for target in waiting.targets],
        mode=waiting.mode,
        intention=waiting.intention,
        remaining_s=round(max(0.0, waiting.deadline_s - now_s), 3),
        blocked_by=waiting.blocked_by,
    )


# ---------------------------------------------------------------------------------------------------------- summaries


@attrs.frozen(kw_only=True)
class HeldView:
    """How long one lease was held."""

    acquired: EventView
    until: str
    """Its end, or the last event of the range if it was held still."""
    ended: bool
    duration_ms: int


@attrs.frozen(kw_only=True)
class ContendedView:
    """How often somebody met another one on a target."""

    target: str
    count: int
    """Conflicts, denials and waits."""


@attrs.frozen(kw_only=True)
class SummaryView:
    """Counts and rankings over a range of time."""

    events: int
    first_number: int
    """Of the first event in the range, 0 if there is none."""
    last_number: int
    by_action: dict[str, int]
    by_holder: dict[str, int]
    by_target: dict[str, int]
    dropped: int
    """Events that are not in the trail: what its gap events count."""
    longest_held: list[HeldView]
    most_contended: list[ContendedView]


def summary_view(summary: Summary) -> SummaryView:
    """A summary as the API shows it."""
    return SummaryView(
        events=summary.events,
        first_number=summary.first_number,
        last_number=summary.last_number,
        by_action=dict(summary.by_action),
        by_holder=dict(summary.by_holder),
        by_target=dict(summary.by_target),
        dropped=summary.dropped,
        longest_held=[_held_view(each) for each in summary.longest_held],
        most_contended=[ContendedView(target=target, count=count) for target, count in summary.most_contended],
    )


def _held_view(held: Held) -> HeldView:
    return HeldView(
        acquired=event_view(held.acquired), until=time_text(held.until), ended=held.ended, duration_ms=held.duration_ms
    )
