"""Lines of a file or of standard input, plain or gzip, in bounded memory whatever comes.

Reads file descriptors without Python's buffers: a read that waits for a terminal or a pipe may be left behind in its
thread when the program ends.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from deltalog.errors import DeltaLogError, LimitExceeded, UsageError

CHUNK_BYTES: Final = 256 << 10
_GZIP: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31


class LineRefused(DeltaLogError):
    """Raised when an import meets a line it cannot take. The message names the line, and field and limit if any.

    Nothing of that line was stored; what came before it was.
    """

    def __init__(self, number: int, reason: object) -> None:
        super().__init__(f"line {number:,}: {reason}")
        self.number = number


def stdin_descriptor() -> int:
    """Descriptor of standard input. Raises `UsageError` if it is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin.fileno()


class LineReader:
    """Gives a file's lines, some at a time: `read` in a worker thread, until it returns none."""

    def __init__(self, raw: io.FileIO, line_bytes_max: int) -> None:
        """`raw` is closed with the reader. A line longer than `line_bytes_max` is refused."""
        self._raw = raw
        self._line_bytes_max = line_bytes_max
        self._gunzip: _Gunzip | None = None
        self._rest = b""
        self._ended = False
        self._refusal: LineRefused | None = None
        self.number = 1
        """Number of the first line that the next `read` returns."""
        self.consumed_bytes = 0
        """Bytes of the file that were read (compressed ones, if it is)."""
        status = os.fstat(raw.fileno())
        self.total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        """Size of the file; None for a pipe or a terminal."""

    @classmethod
    def open(cls, name: str, line_bytes_max: int) -> LineReader:
        """Open a file, or standard input for "-". Raises `UsageError` if it cannot be read."""
        if name == "-":
            return cls(io.FileIO(stdin_descriptor(), closefd=False), line_bytes_max)
        try:
            return cls(io.FileIO(name), line_bytes_max)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._raw.close()

    def read(self) -> tuple[int, Sequence[bytes]]:
        """Return the number of the next line and some lines from there on; none at the end of the file.

        Raises `LineRefused` for a line that is too long or a damaged gzip file.
        """
        number, lines = self.number, list[bytes]()
        while not lines and not self._ended:
            if self._refusal is not None:
                raise self._refusal
            data = self._next_chunk()
            if data:
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()
            else:
                self._ended = True
                lines = [self._rest] if self._rest else []
                self._rest = b""
            lines = self._before_long(lines)
        self.number += len(lines)
        return number, lines

    def _before_long(self, lines: list[bytes]) -> list[bytes]:
        """The lines before the first that is too long; the reader ends with them."""
        for index, line in enumerate((*lines, self._rest)):
            if len(line) > self._line_bytes_max:
                limit = LimitExceeded("length", len(line), self._line_bytes_max)
                self._refusal = LineRefused(self.number + index, f"it is too long ({limit})")
                return lines[:index]
        return lines

    def _next_chunk(self) -> bytes:
        """The next bytes of text, none at the end."""
        if self._gunzip is None:
            data = self._fetch()
            if self.consumed_bytes != len(data):
                return data
            while len(data) == 1 and (more := self._fetch()):
                data += more
            if not data.startswith(_GZIP):
                return data
            self._gunzip = _Gunzip(data)
        try:
            return self._gunzip.read(self._fetch)
        except zlib.error as error:
            raise LineRefused(self.number, f"the gzip file is damaged here: {error}") from error

    def _fetch(self) -> bytes:
        data = self._raw.read(CHUNK_BYTES) or b""
        self.consumed_bytes += len(data)
        return data


class _Gunzip:
    """Text of a gzip file, one member after the other, at most a chunk at a time."""

    def __init__(self, start: bytes) -> None:
        self._packed = start
        self._member = zlib.decompressobj(_GZIP_WBITS)

    def read(self, fetch: Callable[[], bytes]) -> bytes:
        while True:
            if self._member.eof:
                self._packed = self._packed.lstrip(b"\0")  # padding between members
                while not self._packed:
                    data = fetch()
                    if not data:
                        return b""
                    self._packed = data.lstrip(b"\0")
                self._member = zlib.decompressobj(_GZIP_WBITS)
            if not self._packed:
                self._packed = fetch()
                if not self._packed:
                    raise zlib.error("it ends in the middle")
            text = self._member.decompress(self._packed, CHUNK_BYTES)
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if text:
                return text
