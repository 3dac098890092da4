"""Lease: what a holder has in hand, and the bounds on it. Values only; nothing here decides."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import attrs

from audit.target import Target
from deltalog.errors import LimitExceeded, UsageError

ID_BYTES_MAX: Final = 255
"""UTF-8 bytes of a holder's id and name: what an audit event takes."""
TEXT_BYTES_MAX: Final = 1_024
"""UTF-8 bytes of an intention or of a reason: what an audit event's metadata takes."""


class Mode(StrEnum):
    """What else may be held on an overlapping target."""

    EXCLUSIVE = "exclusive"
    """Nothing."""
    SHARED = "shared"
    """Other shared leases."""


@attrs.frozen
class Holder:
    """Who asks. Raises UsageError naming the field."""

    id: str
    name: str = ""

    def __attrs_post_init__(self) -> None:
        check_text("holder id", self.id, ID_BYTES_MAX)
        if not self.id:
            raise UsageError("holder id is empty")
        check_text("holder name", self.name, ID_BYTES_MAX)


@attrs.frozen
class Lease:
    """One lock held, on one or several targets that are taken and given back together."""

    lock_id: str
    """Names one request through all that happens to it; public."""
    token: int
    """Fencing token: show it to whatever the lock protects."""
    holder: Holder
    targets: tuple[Target, ...]
    mode: Mode
    intention: str
    """What the holder wants to do, in its own words."""
    ttl_s: float
    """How long it holds from the last renewal, in seconds."""
    deadline_s: float
    """When it lapses, on the clock of the locks (monotonic, in seconds)."""
    renewals: int = 0
    """How often it was renewed."""
    secret: str = attrs.field(default="", repr=False, eq=False)
    """Proof of ownership for renew and release: only the holder's own lease has it, listings do not."""

    @property
    def target(self) -> Target:
        """The first of its targets; mostly there is one."""
        return self.targets[0]

    @property
    def holder_id(self) -> str:
        """Id of who holds it."""
        return self.holder.id

    @property
    def holder_name(self) -> str:
        """Name of who holds it."""
        return self.holder.name


@attrs.frozen
class Waiting:
    """One request in the queue."""

    lock_id: str
    holder: Holder
    targets: tuple[Target, ...]
    mode: Mode
    intention: str
    deadline_s: float
    """When it gives up, on the clock of the locks."""
    blocked_by: str
    """Lock id of one request in its way."""


@attrs.frozen(kw_only=True)
class LockOptions:
    """Bounds on what holders may ask for. Raises UsageError naming the option."""

    ttl_s_min: float = 1.0
    """Shorter leases lapse under a loaded event loop."""
    ttl_s_max: float = 300.0
    """Longer ones outlive their holders: a crashed holder blocks others for so long."""
    ttl_s_default: float = 30.0
    renewals_max: int = 1_000
    """How often one lease may be renewed: no lock is held for ever."""
    locks_max: int = 10_000
    """Requests held or waiting, over all holders. About 2 KB of memory each."""
    locks_per_holder_max: int = 1_000
    """Requests held or waiting, of one holder."""
    targets_max: int = 64
    """Targets of one request."""
    wait_s_max: float = 300.0
    """How long a request may wait in the queue."""
    token_block: int = 1_000
    """Fencing tokens reserved at once: that many leases per durable write."""
    token_wait_s: float = 5.0
    """How long an acquire waits for the next block of tokens, when the disk is slower than the leases."""

    def __attrs_post_init__(self) -> None:
        for name in ("renewals_max", "locks_max", "locks_per_holder_max", "targets_max", "token_block"):
            value = getattr(self, name)
            if type(value) is not int or value < (0 if name == "renewals_max" else 1):
                raise UsageError(f"{name} is {value!r}; it takes a positive int")
        for name in ("ttl_s_min", "ttl_s_max", "ttl_s_default", "wait_s_max", "token_wait_s"):
            check_seconds(name, getattr(self, name), 0.0, math.inf)
        if not 0 < self.ttl_s_min <= self.ttl_s_default <= self.ttl_s_max:
            raise UsageError("it takes 0 < ttl_s_min <= ttl_s_default <= ttl_s_max")

    def checked_ttl_s(self, ttl_s: float | None) -> float:
        """The TTL to use. Raises UsageError if it is out of bounds."""
        if ttl_s is None:
            return self.ttl_s_default
        check_seconds("ttl_s", ttl_s, self.ttl_s_min, self.ttl_s_max)
        return float(ttl_s)


def check_seconds(field: str, value: object, least: float, most: float) -> None:
    """Raise UsageError if `value` is no finite number of seconds from `least` to `most`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most or value == math.inf:
        raise UsageError(f"{field} is {value!r}; it takes seconds from {least:g} to {most:g}")


def check_text(field: str, text: object, size_max: int) -> None:
    """Raise UsageError if `text` is no valid text of at most `size_max` UTF-8 bytes."""
    if type(text) is not str:
        raise UsageError(f"{field} must be text, not {type(text).__name__}")
    if text.isascii() and len(text) <= size_max:
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{field} must be valid Unicode: {error}") from error
    if size > size_max:
        raise LimitExceeded(field, size, size_max)
