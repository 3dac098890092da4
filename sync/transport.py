"""The contract of a link between two nodes: what a session may rely on, whatever carries it.

A link is two streams of bytes, one each way. Bytes arrive whole and in order, or the link ends; the pieces they arrive
in mean nothing. Limits of a message, heartbeats and deadlines of a session are not a link's business.

A transport is a `Dialer` and a `Listener`. Does not know: frames, sessions, sources.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, Self

import attrs
import trio


class Link(Protocol):
    """One connection. At most one task sends and one receives at a time (`trio.BusyResourceError` otherwise)."""

    @property
    def peer_key(self) -> bytes:
        """The Ed25519 key (32 bytes) that the other side proved it has, admitted here; b"" if the link proves none."""

    @property
    def local(self) -> bool:
        """Whether the other side is on this machine for sure."""

    @property
    def name(self) -> str:
        """For messages only: kind of link and address of the other side."""

    async def send_all(self, data: bytes) -> None:
        """Hand bytes over. Waits while too much is under way; a return does not say that they arrived.

        Raises `LinkFailed` once the link is closed or cut, here or there. Cancelled, it may have sent a part: close.
        """

    async def receive_some(self, max_bytes: int) -> bytes:
        """Wait for bytes; at least one, at most `max_bytes`. b"" once the other side has closed and all was read.

        Raises `LinkFailed` if the link was cut (bytes under way may be lost) or closed here. A cancelled
        call loses nothing.
        """

    async def aclose(self) -> None:
        """End the link both ways; what was sent before still arrives. Idempotent; closes even if cancelled."""


Handler = Callable[[Link], Awaitable[None]]
"""What a listener runs for each link. A `SyncError` out of it ends that link only, anything else ends the listener."""


class Dialer(Protocol):
    """Makes links."""

    async def dial(self, address: str) -> Link:
        """Connect and prove each other's keys. Raises `LinkFailed` (try later), `LinkRefused`, `UsageError`."""


class Listener(Protocol):
    """Takes links."""

    async def serve(self, handler: Handler, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run `handler` in a task of its own per link until cancelled; each link is closed after its handler.

        The address to dial is told through `task_status` once it can be. Raises `UsageError` for an address that does
        not parse, `LinkFailed` if it cannot be bound. A peer that fails to connect never ends it.
        """


@attrs.define
class Turn:
    """Lets one task in at a time: `with turn: ...` raises `trio.BusyResourceError` while another is inside."""

    _what: str
    taken: bool = attrs.field(default=False, init=False)

    def __enter__(self) -> Self:
        if self.taken:
            raise trio.BusyResourceError(f"another task is {self._what} already")
        self.taken = True
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = False
