"""Every error of a session with a peer, grouped by whose fault it is. All stand under `deltalog.DeltaLogError`.

* the link: `LinkFailed`. The session ends; the mesh dials again.
* the other's key: `LinkRefused`, `SessionRefused`. Dialling again helps once somebody changed something.
* the other's words: `ProtocolError`, `HeadRefused`. The peer is blamed; nothing of what it said was taken in.
"""

from __future__ import annotations

from deltalog.errors import DeltaLogError


class SyncError(DeltaLogError):
    """Root of what ends a session or refuses a peer."""

    @property
    def blamed(self) -> bool:
        """Whether the peer broke a rule, rather than the network or an operator."""
        return False


class LinkFailed(SyncError):
    """Raised when a link ends or cannot be made: cut, refused port, no answer in time. Dial again later."""

    retryable = True


class LinkRefused(SyncError):
    """Raised when a key or certificate is not admitted, here or there. The message says which, and what to do."""


class SessionRefused(SyncError):
    """Raised when two nodes do not fit together: another protocol version, another cluster, the same node twice."""


class Duplicate(SessionRefused):
    """Raised when two nodes have another link already; one of two is enough."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is connected already")
        self.name = name


class PeerBusy(SyncError):
    """Raised when the other node takes no session now; try again after `retry_after_s` seconds."""

    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the peer is busy and asks to try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class ProtocolError(SyncError):
    """Raised when a peer's bytes break a rule of the protocol. The message names the field and the limit."""

    @property
    def blamed(self) -> bool:
        return True


class HeadRefused(SyncError):
    """Raised when deltas of a source must not be taken in: not signed, by a wrong key, altered, or quarantined.

    `forged`: they are not what their source wrote, so whoever sent them is to blame. Otherwise they are not wanted.
    """

    def __init__(self, source: str, reason: str, *, forged: bool = False) -> None:
        super().__init__(f"source {source[:200]!r}: {reason}"[:500])
        self.source = source
        self.reason = reason
        self.forged = forged

    @property
    def blamed(self) -> bool:
        return self.forged


class Diverged(HeadRefused):
    """Raised when deltas do not lead to the head behind them, which their source did sign: a fork, or altered.

    `forged` says that they were altered. If not, what is held here and what the source signed are two histories.
    """
