"""Locks with fencing tokens and the audit trail of what happened to them: events, buffered store, queries, HTTP API.

This file only re-exports: what stands in `__all__` is public, nothing else is. The HTTP routes (`audit.api`) are not
among it, since they need the extra `deltalog[api]`.
"""

from __future__ import annotations

from audit.errors import (
    AuditClosed,
    AuditUnavailable,
    EventsExpired,
    LeaseLost,
    LockConflict,
    LockLimit,
    LocksClosed,
    LockTimeout,
    RenewalsExhausted,
)
from audit.event import Action, AuditEvent, Recorded
from audit.lease import Holder, Lease, LockOptions, Mode, Waiting
from audit.locks import EventSink, Locks, LocksStatistics, open_locks
from audit.opening import Trail, TrailOptions, open_trail
from audit.overflow import Overflow, RecorderOptions, RecorderStatistics
from audit.query import CursorInvalid, Query
from audit.reader import Held, Page, Reader, Summary
from audit.recorder import Recorder
from audit.retention import AuditRetention
from audit.target import Symbol, Target
from audit.tokens import Reservations, TokensExhausted
from audit.trail import TrailHead
from audit.verify import Finding, TrailReport

__all__ = [
    "Action",
    "AuditClosed",
    "AuditEvent",
    "AuditRetention",
    "AuditUnavailable",
    "CursorInvalid",
    "EventSink",
    "EventsExpired",
    "Finding",
    "Held",
    "Holder",
    "Lease",
    "LeaseLost",
    "LockConflict",
    "LockLimit",
    "LockOptions",
    "LockTimeout",
    "Locks",
    "LocksClosed",
    "LocksStatistics",
    "Mode",
    "Overflow",
    "Page",
    "Query",
    "Reader",
    "Recorded",
    "Recorder",
    "RecorderOptions",
    "RecorderStatistics",
    "RenewalsExhausted",
    "Reservations",
    "Summary",
    "Symbol",
    "Target",
    "TokensExhausted",
    "Trail",
    "TrailHead",
    "TrailOptions",
    "TrailReport",
    "Waiting",
    "open_locks",
    "open_trail",
]
