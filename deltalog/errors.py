"""Every error of the log, grouped by whose fault it is.

One small tree under `DeltaLogError`. Each class says when it is raised and what to do about it. `retryable` says
whether the same call can succeed later without anybody changing anything.

* caller: `UsageError` and below. The call was wrong, or came at the wrong time; nothing was changed.
* file or peer: `DecodeError`, `ClockDrift`. Bytes or values that came from outside were refused; nothing was changed.
* environment: `StoreError` and below, `LogReadOnly`, `DataLoss`, `ForeignData`. Disk, file system or operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class DeltaLogError(Exception):
    """Root of every error this project raises on purpose."""

    retryable: ClassVar[bool] = False
    """True if the same call can succeed later by itself."""


# --------------------------------------------------------------------------------------------- the caller's fault


class UsageError(DeltaLogError, ValueError):
    """Raised when an argument is wrong. The message names the argument and what it takes. Nothing was changed."""


class LimitExceeded(UsageError):
    """Raised when a value is larger than a limit. Not raised for malformed values (`UsageError`, `DecodeError`)."""

    def __init__(self, field: str, size: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{field} is {size:,} {unit}; the limit is {limit:,} {unit}")
        self.field = field
        self.size = size
        self.limit = limit
        self.unit = unit


class RingFull(DeltaLogError):
    """Raised by `append_nowait` when the ring holds only deltas that are not stored yet.

    Await `append`, which waits for room, or try again after the writer has run.
    """

    retryable = True

    def __init__(self, pending: int, size_bytes: int) -> None:
        super().__init__(f"the ring holds {pending:,} deltas that are not stored yet; await append, or try again")
        self.size_bytes = size_bytes
        """Size of the record there was no room for."""


class LogClosed(DeltaLogError):
    """Raised by every call on a log, store or manager that was closed (or whose process forked). Open it again."""


class BelowFloor(DeltaLogError):
    """Raised when a read starts below the floor: retention dropped the deltas. Load `snapshot`, then go on from it."""

    def __init__(self, floor: Mapping[str, int], missing: Mapping[str, int], snapshot: object = None) -> None:
        named = ", ".join(f"{source!r}: has {missing[source]}, floor {floor[source]}" for source in sorted(missing)[:5])
        more = f" and {len(missing) - 5} more sources" if len(missing) > 5 else ""
        hint = f"load snapshot {snapshot!r} first" if snapshot is not None else "there is no snapshot to load instead"
        super().__init__(f"deltas below the floor were dropped ({named}{more}); {hint}")
        self.floor = dict(floor)
        self.missing = dict(missing)
        self.snapshot = snapshot


# ------------------------------------------------------------------------------------- a file's or a peer's fault


class DecodeError(DeltaLogError):
    """Raised when bytes are not a valid encoding (of a delta, a block, a row). The message names the field."""


class ClockDrift(DeltaLogError):
    """Raised when a timestamp is further ahead of the wall clock than the drift bound. Check both clocks."""

    def __init__(self, ahead_ms: int, bound_ms: int) -> None:
        super().__init__(f"timestamp is {ahead_ms:,} ms ahead of this node's clock; the bound is {bound_ms:,} ms")
        self.ahead_ms = ahead_ms
        self.bound_ms = bound_ms


# ------------------------------------------------------------------------------------------------ the environment


class StoreError(DeltaLogError):
    """Root of what a store reports. Raised itself only for text that no row of the error map knows."""

    handle_dead: ClassVar[bool] = False
    """True if the open handle must not be used any more: close it and open safely once."""
    indeterminate: ClassVar[bool] = False
    """True if a write that got this error may or may not be there after a re-open: look, never guess."""


class StoreInUse(StoreError):
    """Raised at open when another handle (this process or another) holds the store. Close that one first."""


class StoreMissing(StoreError):
    """Raised when a store that must exist does not. Not raised for a damaged one (`StoreCorrupt`)."""


class StoreFull(StoreError):
    """Raised when the disk has no room. Free some; the log resumes by itself."""

    retryable = True
    handle_dead = True
    indeterminate = True


class StoreIOError(StoreError):
    """Raised when the operating system failed a read or write. The handle is dead; a safe re-open may help once."""

    handle_dead = True
    indeterminate = True


class StoreCorrupt(StoreError):
    """Raised when stored bytes are damaged. Never retried; `deltalog verify` names what is bad, nothing is deleted."""

    handle_dead = True


class StoreFormatMismatch(StoreError):
    """Raised when a directory was written by another format or with other column families. Nothing was changed."""


class StoreBusy(StoreError):
    """Raised when a handle is closed while another thread uses it. A bug in the caller of the store."""

    retryable = True


class StoreBackpressure(StoreError):
    """Raised when RocksDB stalls writes. Not applied; try again after a delay."""

    retryable = True


class ScanTruncated(StoreError):
    """Raised when a read ended before its end of range. What was read so far is correct; read again from there."""

    retryable = True


class StoreReadOnly(StoreError):
    """Raised when a write reaches a store that was opened for reading only. Nothing was changed."""


class StorePoisoned(StoreError):
    """Raised when RocksDB refused part of a batch and applied the rest. A bug here; the handle is dead."""

    handle_dead = True
    indeterminate = True


class StoreUsageError(StoreError):
    """Raised when a store is used wrongly (a family that is not there, a value that is not bytes). Not applied."""


class StoreClosed(StoreError, LogClosed):
    """Raised when a closed store is used."""

    handle_dead = True


class LogReadOnly(DeltaLogError):
    """Raised by appends and flushes while the store cannot take writes; `__cause__` is the store's error.

    The ring keeps what is not stored. After a full disk the log resumes by itself (`retryable` is then True on the
    instance); after any other failure that a safe re-open did not cure it stays read-only until opened again.
    """

    def __init__(self, reason: str, *, retryable: bool) -> None:
        super().__init__(f"the log is read-only: {reason}")
        self.reason = reason
        self.retryable = retryable  # type: ignore[misc]  # an instance says what its class cannot know


class DataLoss(DeltaLogError):
    """Raised at open when the store holds less than the witness saw fsynced. Nothing was changed.

    `lost` maps each source to the first and last missing seq. `lost_unnamed` counts missing deltas of sources that
    the witness keeps only as a digest. The way out: restore the directory, or open with `accept_loss=True`, which
    keeps what is there and continues as a new incarnation of this source.
    """

    def __init__(self, message: str, lost: Mapping[str, tuple[int, int]], lost_unnamed: int = 0) -> None:
        super().__init__(message)
        self.lost = dict(lost)
        self.lost_unnamed = lost_unnamed


class ForeignData(DeltaLogError):
    """Raised at open when a directory was copied, restored or brought from another machine. Nothing was changed.

    Two copies that both append would use the same dots twice. Open with `adopt=True` to continue from this copy as a
    new incarnation of its source.
    """


class StaleToken(DeltaLogError):
    """Raised when a fencing token is below one already seen: the lease it came from is over. Nothing was changed.

    Not retryable: acquire the lock again and use the new lease's token.
    """

    def __init__(self, target: str, token: int, seen: int) -> None:
        super().__init__(f"token {token} for {target[:200]!r} is stale: {seen} was seen; acquire the lock again")
        self.target = target
        self.token = token
        self.seen = seen
