"""Answers without a fixed end: server-sent events and exports, one item at a time as the client takes them.

Lives here: the framing, and that nothing is read ahead: the next item is fetched when the one before is on its way to
the client, so a slow or stalled client holds one item and one chunk of memory. Does not know: requests, parameters.

An event of the live tail (https://html.spec.whatwg.org/multipage/server-sent-events.html):

    id: 17                     number in the trail: what a client gives back as Last-Event-ID
    event: audit
    data: {"number":17,...}    one line

A line `:` is sent when nothing happened for a while; `retry: 1000` opens the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, cast

import trio
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from audit.api_values import csv_head, csv_rows, json_line
from audit.event import AuditEvent, Recorded
from audit.problems import refused
from deltalog.nursery import open_nursery

CHUNK_BYTES: Final = 64 << 10
BEAT_S: Final = 15.0
"""Proxies and clients give up a connection that is silent for longer (nginx: 60 s)."""
EVENT_STREAM: Final = "text/event-stream"
_BEAT: Final = b":\n\n"

Put = Callable[[bytes], Awaitable[None]]
Pump = Callable[[Put], Awaitable[None]]


class Streamed(ASGIResponse):
    """An answer whose chunks a pump puts one after the other. Ends when the client goes, or when `closing` is set."""

    _should_set_content_length = False

    def __init__(
        self,
        pump: Pump,
        closing: trio.Event,
        *,
        endless: bool = False,
        slots: trio.CapacityLimiter | None = None,
        **settings: Any,
    ) -> None:
        """`endless`: its end when the server closes is an end as good as any; otherwise the connection is cut."""
        super().__init__(**settings)
        self._pump = pump
        self._closing = closing
        self._endless = endless
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Send the head, then run the pump until it ends or the client is gone. Refuses when all slots are taken."""
        if self._slots is None:
            return await self._run(receive, send)
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock as error:
            text = f"{self._slots.total_tokens:g} live tails run already"
            raise refused(503, text, {"retry-after": "10"}) from error
        try:
            await self._run(receive, send)
        finally:
            self._slots.release()

    async def _run(self, receive: Receive, send: Send) -> None:
        await self.start_response(send)
        whole = self._endless

        async def put(chunk: bytes) -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

        async def until_gone() -> None:
            nonlocal whole
            while (await receive())["type"] != "http.disconnect":
                pass
            whole = False
            nursery.cancel_scope.cancel()

        async def until_closing() -> None:
            await self._closing.wait()
            nursery.cancel_scope.cancel()

        async with open_nursery() as nursery:
            nursery.start_soon(until_gone)
            nursery.start_soon(until_closing)
            await self._pump(put)
            whole = True
            nursery.cancel_scope.cancel()
        if whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _closed(events: AsyncIterator[Recorded]) -> aclosing[AsyncGenerator[Recorded, None]]:
    """Ends the reader's generator when the block ends, in whatever way."""
    return aclosing(cast("AsyncGenerator[Recorded, None]", events))


# ------------------------------------------------------------------------------------------------ server-sent events


def sse_frame(recorded: Recorded) -> bytes:
    """One event of the live tail."""
    return b"id: %d\nevent: audit\ndata: %b\n\n" % (recorded.number, json_line(recorded))


def live(
    events: AsyncIterator[Recorded],
    wanted: Callable[[AuditEvent], bool],
    closing: trio.Event,
    slots: trio.CapacityLimiter,
) -> Streamed:
    """The live tail of the events that are wanted, for ever. A beat goes out whenever nothing happened for `BEAT_S`."""

    async def pump(put: Put) -> None:
        giver, taker = trio.open_memory_channel[Recorded](0)
        async with open_nursery() as nursery:
            nursery.start_soon(_give, events, wanted, giver)
            await put(b"retry: 1000\n\n")
            while True:
                frame = _BEAT
                with trio.move_on_after(BEAT_S):
                    frame = sse_frame(await taker.receive())
                await put(frame)

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Streamed(pump, closing, endless=True, slots=slots, media_type=EVENT_STREAM, headers=headers)


async def _give(
    events: AsyncIterator[Recorded], wanted: Callable[[AuditEvent], bool], giver: trio.MemorySendChannel[Recorded]
) -> None:
    async with _closed(events):
        async for recorded in events:
            if wanted(recorded.event):
                await giver.send(recorded)


# --------------------------------------------------------------------------------------------------------- exports


def export(events: AsyncIterator[Recorded], form: str, closing: trio.Event) -> Streamed:
    """Events as JSON lines or CSV. A failure in the middle cuts the connection: no client takes it for the end."""
    rows = csv_rows if form == "csv" else _json_rows
    head = csv_head() if form == "csv" else b""

    async def pump(put: Put) -> None:
        chunk = bytearray(head)
        async with _closed(events):
            async for recorded in events:
                chunk += rows([recorded])
                if len(chunk) >= CHUNK_BYTES:
                    await put(bytes(chunk))
                    chunk.clear()
        if chunk:
            await put(bytes(chunk))

    media_type = "text/csv; header=present" if form == "csv" else "application/jsonl"
    name = f'attachment; filename="audit.{"csv" if form == "csv" else "jsonl"}"'
    return Streamed(
        pump, closing, media_type=media_type, headers={"content-disposition": name, "cache-control": "no-store"}
    )


def _json_rows(events: list[Recorded]) -> bytes:
    return b"".join([json_line(recorded) + b"\n" for recorded in events])
