"""Errors of locks and of their trail, in the tree of `deltalog.errors`, grouped by the caller's situation."""

from __future__ import annotations

from deltalog.errors import DeltaLogError

# --------------------------------------------------------------------------------------------------- asking for a lock


class LockConflict(DeltaLogError):
    """Raised by `try_acquire` when a lease, or somebody who waits longer, stands in the way. Nothing was changed."""

    retryable = True

    def __init__(self, target: str, blocker: str, blocker_holder: str) -> None:
        super().__init__(f"{target!r} is taken: lock {blocker} of {blocker_holder!r} overlaps it; wait, or try again")
        self.target = target
        self.blocker = blocker
        """Lock id of one request in the way; there may be more."""
        self.blocker_holder = blocker_holder


class LockTimeout(DeltaLogError):
    """Raised by `acquire` when the deadline passed before the lock was free. The place in the queue is given up."""

    retryable = True

    def __init__(self, target: str, wait_s: float) -> None:
        super().__init__(f"{target!r} did not become free within {wait_s:g} s")
        self.target = target
        self.wait_s = wait_s


class LockLimit(DeltaLogError):
    """Raised when a bound on locks is reached (of the table, or of one holder). Release some, or try again later."""

    retryable = True

    def __init__(self, field: str, limit: int) -> None:
        super().__init__(f"{field} is reached: {limit:,} locks are held or waited for; release some or try again later")
        self.field = field
        """Name of the option that sets the bound."""
        self.limit = limit


# ----------------------------------------------------------------------------------------------------- holding a lock


class LeaseLost(DeltaLogError):
    """Raised on renew, on release and at the end of `hold` when the lease is over. What it protected may have changed.

    Not retryable: acquire again and look at the resource afresh.
    """

    def __init__(self, lock_id: str, token: int, reason: str) -> None:
        super().__init__(f"lease {lock_id} (token {token}) is over: {reason}; acquire the lock again")
        self.lock_id = lock_id
        self.token = token
        self.reason = reason


class RenewalsExhausted(DeltaLogError):
    """Raised on renew when the lease was renewed as often as it may be. It stays held until its deadline."""

    def __init__(self, lock_id: str, limit: int) -> None:
        super().__init__(f"lease {lock_id} was renewed {limit:,} times, its bound; release it and acquire again")
        self.lock_id = lock_id
        self.limit = limit


class LocksClosed(DeltaLogError):
    """Raised by every call on locks that were closed, and in whoever still waits for one. Leases are void."""


# ---------------------------------------------------------------------------------------------------------- the trail


class AuditUnavailable(DeltaLogError):
    """Raised when an event that must be recorded cannot be, by its deadline. The lock operation was undone.

    `__cause__` is the store's error, if it was one. Not raised under the policies that drop or wait.
    """

    retryable = True

    def __init__(self, reason: str) -> None:
        super().__init__(f"the audit trail cannot record this: {reason}")
        self.reason = reason


class AuditClosed(DeltaLogError):
    """Raised by every call on a trail that was closed. Open it again."""


class EventsExpired(DeltaLogError):
    """Raised by a tail whose next events were removed by retention. Go on from the floor; what is between is gone."""

    def __init__(self, after_number: int, floor: int) -> None:
        super().__init__(f"events {after_number + 1:,} to {floor:,} were removed by retention; go on after {floor}")
        self.after_number = after_number
        self.floor = floor
        """Number up to which events were removed."""
