"""What a person sees and what a program reads: data on standard output, everything else on standard error.

Colour and progress bars appear on a terminal only. Text that comes from data is shown with its control characters
escaped, so that it cannot act on the terminal.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deltalog.app.interchange import json_text
from deltalog.clock import to_iso
from deltalog.delta import Delta
from deltalog.errors import DecodeError, UsageError

PLAIN_INTERVAL_S: Final = 5.0
"""Without a terminal, progress is a line now and then."""
_QUICK_S: Final = 0.5
_PREVIEW_CHARS: Final = 60
_LABEL_CHARS: Final = 28
_WIDE_COLUMNS: Final = 160
_STYLES: Final = {"dim": "2", "bold": "1", "cyan": "36", "yellow": "33", "red": "31"}


# -------------------------------------------------------------------------------------------------- standard output


class OutputClosed(Exception):
    """Raised when whoever read standard output went away (`| head`)."""


class Output:
    """Standard output as bytes, unbuffered: a write that waits for a slow reader may be left behind in its thread."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        sys.stdout.flush()
        stream = sys.stdout.buffer
        self._raw: Any = getattr(stream, "raw", stream)

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises `OutputClosed`. Cancelled: some of it was written, or will be."""
        try:
            await trio.to_thread.run_sync(self._put, data, abandon_on_cancel=True)
        except BrokenPipeError as error:
            raise OutputClosed("nobody reads the output any more") from error

    async def lines(self, lines: Iterable[bytes]) -> None:
        """Write lines, each with its newline."""
        await self.write(b"".join([line + b"\n" for line in lines]))

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            done = self._raw.write(left)
            if done is None:  # somebody made it non-blocking
                select.select([], [self._raw], [])
            else:
                left = left[done:]


def print_json(value: object) -> None:
    """Print one JSON object on a line."""
    print(json_text(value))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], notes: Sequence[str] = ()
) -> None:
    """Print a small table, columns of numbers to the right, and a line for each note."""
    table = Table(title=title, title_justify="left", title_style="bold")
    listed = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in listed)
        table.add_column(name, justify="right" if numeric and listed else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(file=sys.stdout, width=None if is_terminal(sys.stdout) else _WIDE_COLUMNS)
    console.print(table)
    for note in notes:
        console.print(Text(note))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shown(str(value))


# ------------------------------------------------------------------------------------------------------------- text


def shown(text: str) -> str:
    """The text with everything escaped that is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def is_terminal(stream: Any) -> bool:
    """Whether somebody looks at it; not if it is closed."""
    return stream is not None and stream.isatty()


def has_colour(stream: Any) -> bool:
    """Whether to colour what goes to this stream."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def human_line(delta: Delta, *, colour: bool) -> bytes:
    """One line that describes a delta: time, dot, kind, key, and the start of the payload."""
    try:
        at = to_iso(delta.timestamp)
    except UsageError:
        at = str(delta.timestamp)
    dot = f"{shown(delta.source)}:{delta.seq}"
    parts = [
        _styled(f"{at:<29}", "dim", colour),
        _styled(f"{dot:<16}", "cyan", colour),
        f"{shown(delta.kind) or '-':<10}",
        f"{shown(delta.key) or '-':<16}",
        _styled("erased", "yellow", colour) if delta.erased else _preview(delta),
    ]
    return " ".join(parts).rstrip().encode(sys.stdout.encoding or "utf-8", "backslashreplace")


def _preview(delta: Delta) -> str:
    try:
        value = delta.payload
        if isinstance(value, bytes):
            return f"{len(value):,} bytes"
        text = shown(json_text(value))
    except (DecodeError, TypeError, ValueError, RecursionError):
        return f"{len(delta.payload_bytes):,} bytes of msgpack"
    return text if len(text) <= _PREVIEW_CHARS else f"{text[:_PREVIEW_CHARS]}..."


def _styled(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if colour else text


def listed(vector: Mapping[str, int], most: int = 5) -> str:
    """A version vector for a person: the first few entries."""
    names = sorted(vector)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(f"{shown(name)}:{vector[name]:,}" for name in names[:most]) or "nothing") + more


# --------------------------------------------------------------------------------------------------- standard error


def note(text: str) -> None:
    """Say something beside the data, on one line of standard error."""
    say_line(f"deltalog: {text}")


def say_line(text: str) -> None:
    """Write one printable line to standard error, if there is one."""
    if sys.stderr is not None:
        print(shown(text), file=sys.stderr, flush=True)


class Meter:
    """How far a long job is: a bar on a terminal, a line now and then elsewhere, nothing if `silent`.

    `update` may be called from any thread. A job that is over within half a second shows nothing, unless `at_once`.
    """

    def __init__(
        self, what: str, *, silent: bool = False, at_once: bool = False, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        self._what = what
        self._silent = silent
        self._interval_s = interval_s
        self._terminal = is_terminal(sys.stderr)
        quick_s = _QUICK_S if self._terminal else interval_s
        self._next_at = time.monotonic() + (0 if at_once and self._terminal else quick_s)
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, total: float | None, told: str = "") -> None:
        """Say that `done` of `total` (None: nobody knows) is done; `told` says it in words."""
        if self._silent or (self._bar is None and time.monotonic() < self._next_at):
            return
        if self._terminal:
            self._draw(done, total, told)
        else:
            share = f" {done / total:.0%}" if total else ""
            note(f"{self._what}{share} {told}".rstrip())
            self._next_at = time.monotonic() + self._interval_s

    def _draw(self, done: float, total: float | None, told: str) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.add_task(_short(self._what), total=total, told="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, told=told)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_CHARS else f"{text[: _LABEL_CHARS - 3]}..."


def _new_bar() -> Progress:
    """About 80 columns."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
