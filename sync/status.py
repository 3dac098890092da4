"""What is known of each peer, connected or not: for operators and pages."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sync.wire import Traffic


@attrs.frozen
class PeerStatus:
    """A peer at one moment."""

    name: str
    state: str
    """"connected", "catching up", "live" or "offline"."""
    since: float
    """trio's clock when it came into contact, or was lost."""
    link: str
    """What connects it, or did last."""
    source: str
    lag: int
    """Deltas synced here that it has not acknowledged."""
    behind: int
    """Deltas that it says it has, and this node does not."""
    traffic: Traffic
    equal: bool
    """Whether its last heartbeat showed the same digest as this node's."""
    below_floor: Mapping[str, int]
    """Sources of which it dropped what this node lacks: their floors there."""
    problem: str
    """What went wrong last, or ""."""


@attrs.define
class Known:
    """What outlives a session."""

    since: float
    link: str = ""
    source: str = ""
    traffic: Traffic = attrs.field(factory=Traffic)
    problem: str = ""
    key: bytes = b""
    """What its name came with."""
