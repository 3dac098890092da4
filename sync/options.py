"""How sessions behave: limits and times, with the defaults of the threat model in docs/protocol.md."""

from __future__ import annotations

from typing import Final

import attrs

from deltalog.errors import UsageError


@attrs.frozen(kw_only=True)
class SyncOptions:
    """How a node deals with its peers."""

    heartbeat_s: float = 5.0
    """A peer hears something at least so often."""
    offline_s: float = 30.0
    """A peer that says nothing for so long is offline; a frame or a write may take so long."""
    handshake_s: float = 10.0
    """Time for both to say who they are."""
    frame_s: float = 10.0
    """Time for 256 KiB of a frame to arrive once it has begun."""
    stall_s: float = 10.0
    """A source that does not move for so long, though a peer claims more, is asked of another."""
    backoff_s: float = 0.1
    """First pause before a link is dialled again; doubled each time, and a random share of it taken."""
    backoff_max_s: float = 30.0
    """Longest such pause."""
    lease_s: float = 7 * 86_400.0
    """A peer that stays away for so long no longer keeps deltas from being collected."""
    sessions: int = 64
    """Peers connected at a time; beyond, they are told to try again later."""
    outbox_bytes: int = 1 << 20
    """Messages that wait for a peer to read; beyond, the session ends."""
    rate_bytes: int = 0
    """Bytes of records a second to one peer; 0: no limit."""
    compress: bool | None = None
    """Whether batches are compressed for peers that can read that. None: for those on other machines."""
    requests: float = 20.0
    """Messages a second that make this node look something up for a peer, with bursts of twice as many."""

    def __attrs_post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if type(value) not in (int, float) or not value > 0:
                raise UsageError(f"sync.{name} must be a positive number, not {value!r}")
        if self.compress not in (None, True, False):
            raise UsageError(f"sync.compress must be True, False or None, not {self.compress!r}")
        if type(self.rate_bytes) is not int or self.rate_bytes < 0:
            raise UsageError(f"sync.rate_bytes must be an integer of at least 0, not {self.rate_bytes!r}")


_POSITIVE: Final = (
    "heartbeat_s",
    "offline_s",
    "handshake_s",
    "frame_s",
    "stall_s",
    "backoff_s",
    "backoff_max_s",
    "lease_s",
    "sessions",
    "outbox_bytes",
    "requests",
)
