"""Frames over one link, both ways: what may take how long, and how much may wait.

One task reads, one writes; whoever has something to say puts it into the outbox and goes on. What waits there is
bounded: batches wait outside until little does, and if messages fill it all the same, the peer does not read, and the
session ends. Does not know: what the frames say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from deltalog.delta import Limits
from sync.errors import LinkFailed
from sync.messages import FRAME_BYTES, HELLO_BYTES, PREFIX_BYTES, Message, encode, frame_size, record_bytes_max
from sync.options import SyncOptions
from sync.transport import Link

READ_BYTES: Final = 64 << 10
FRAMES: Final = 32
"""Frames read in one turn of the event loop."""
WRITE_BYTES: Final = 64 << 10
"""Bytes written at a time: what is due in time must be little."""
OUTBOX_LOW: Final = 256 << 10
"""Batches wait while more than so many bytes do."""
FAREWELL_S: Final = 1.0


@attrs.define
class Traffic:
    """What crossed the links to a peer."""

    bytes_in: int = 0
    bytes_out: int = 0
    deltas_in: int = 0
    """Deltas that came, also those that were known."""
    deltas_known: int = 0
    """Deltas that came and were held already."""
    deltas_out: int = 0

    def add(self, other: Traffic) -> None:
        """Count what crossed another link, too."""
        for name in attrs.fields_dict(Traffic):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Wire:
    """A link, cut into frames."""

    def __init__(self, link: Link, options: SyncOptions, limits: Limits) -> None:
        """`limits`: of one delta, so of the largest frame."""
        self.link = link
        self.traffic = Traffic()
        self.heard = trio.current_time()
        """When the other side was heard last."""
        self._options = options
        self._most_deltas = max(FRAME_BYTES, 512 + record_bytes_max(limits))
        self._buffer = bytearray()
        self._frames = 0
        """Frames since others could run."""
        self._outbox: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._to_write = trio.Event()
        self._written = trio.Event()
        self._writing = False
        self._sending = trio.CancelScope()
        self._overflow: LinkFailed | None = None

    # ------------------------------------------------------------------------------------------------------------- in

    async def frame(self, *, opened: bool) -> tuple[int, bytes]:
        """Return type and body of the next frame; before the session is `opened`, only a small one is taken.

        Raises `ProtocolError` for one that is too large, before it is read, and `LinkFailed`.
        """
        most, most_deltas = (FRAME_BYTES, self._most_deltas) if opened else (HELLO_BYTES, HELLO_BYTES)
        while not self._buffer:
            await self._more()
        await self._fill(PREFIX_BYTES, self._options.frame_s)
        size, number = frame_size(bytes(self._buffer[:PREFIX_BYTES]), most, most_deltas)
        end = PREFIX_BYTES + size
        self._frames += 1
        if self._frames >= FRAMES:
            self._frames = 0
            await trio.lowlevel.checkpoint()
        await self._fill(end, self._options.frame_s * max(1, size / FRAME_BYTES))
        body = bytes(self._buffer[PREFIX_BYTES:end])
        del self._buffer[:end]
        return number, body

    def unread(self, frames: bytes) -> None:
        """Take these whole frames before what comes."""
        self._buffer[:0] = frames
        self._frames = FRAMES  # inflating them took its time: let others run

    async def _fill(self, end: int, seconds: float) -> None:
        if len(self._buffer) < end:
            with Deadline(seconds, "sent the rest of a frame"):
                while len(self._buffer) < end:
                    await self._more()

    async def _more(self) -> None:
        data = await self.link.receive_some(READ_BYTES)
        if not data:
            raise LinkFailed(f"{self.link.name}: the other side closed the link")
        self.heard = trio.current_time()
        self.traffic.bytes_in += len(data)
        self._buffer += data

    # ------------------------------------------------------------------------------------------------------------ out

    def put(self, message: Message) -> None:
        """Send a message as soon as what waits before it is sent. Raises `LinkFailed` if too much waits."""
        frame = encode(message)
        if self._overflow is not None:
            return
        if self._waiting_bytes + len(frame) > self._options.outbox_bytes + OUTBOX_LOW:
            text = f"{self.link.name}: {self._waiting_bytes:,} bytes wait for the other side to read them"
            self._overflow = LinkFailed(text)  # raised by the writing task: who speaks is not at fault
            self._sending.cancel()
            self._to_write.set()
            return
        self._append(frame)

    async def push(self, frames: Sequence[bytes]) -> None:
        """Send frames; waits until little waits before them."""
        while self._waiting_bytes > OUTBOX_LOW:
            self._written = trio.Event()
            await self._written.wait()
        for frame in frames:
            self._append(frame)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the outbox."""
        return self._waiting_bytes

    def _append(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._waiting_bytes += len(frame)
        self._to_write.set()

    async def write(self) -> None:
        """Send what is in the outbox, for ever."""
        while True:
            if not self._outbox:
                await self._to_write.wait()
            if self._overflow is not None:
                raise self._overflow
            self._to_write = trio.Event()
            data = self._take()
            self._writing = True
            self._sending = trio.CancelScope(shield=True)  # a frame that is cut off would be the last: see `hurry`
            with self._sending, Deadline(self._options.offline_s, "taken what was sent to it"):
                await self.link.send_all(data)
            if self._overflow is not None:
                raise self._overflow
            if self._sending.cancelled_caught:
                await trio.sleep_forever()  # until whoever hurries ends this task, too
            self._writing = False
            await trio.lowlevel.checkpoint_if_cancelled()
            self.traffic.bytes_out += len(data)
            self._waiting_bytes -= len(data)
            self._written.set()

    def hurry(self) -> None:
        """The session ends: what is being sent has a moment left, so that a last message can come behind it."""
        self._sending.deadline = min(self._sending.deadline, trio.current_time() + FAREWELL_S)

    def _take(self) -> bytes:
        frames, size = [], 0
        while self._outbox and size < WRITE_BYTES:
            frames.append(self._outbox.popleft())
            size += len(frames[-1])
        return b"".join(frames)

    async def say_last(self, message: Message) -> None:
        """Send a message past the outbox, if that is possible: the link may be gone, or in the middle of a frame."""
        if self._writing:
            return
        with trio.move_on_after(FAREWELL_S) as scope:
            scope.shield = True
            try:
                await self.link.send_all(encode(message))
            except LinkFailed:
                return


class Deadline:
    """Raises `LinkFailed` if the block takes longer: the other side has not `done` something in time."""

    def __init__(self, seconds: float, done: str) -> None:
        self._scope = trio.move_on_after(seconds)
        self._text = f"the other side has not {done} within {seconds:g} s"

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(self, *error: object) -> None:
        self._scope.__exit__(*error)  # type: ignore[arg-type]
        if self._scope.cancelled_caught:
            raise LinkFailed(self._text)
