"""Reading ranges of a family, as it was at one moment.

What lives here: how RocksDB's iterators are moved and let go of. Made by `rocks`, which counts them; this file knows
neither the handle nor rocksdict.

An iterator keeps the database open and its LOCK held. So each stands in one `Cursor` and nowhere else, not even in a
local variable: the traceback of an error that somebody keeps would keep it too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final, Never, Protocol, Self

from deltalog.errors import StoreClosed, StoreUsageError
from deltalog.rocks_errors import mapped_errors
from deltalog.rocks_values import refuse_inverted, refuse_not_bytes

KeyValue = tuple[bytes, bytes]


_BEYOND: Final = b"\xff" * 64
"""Behind every key."""


class RawIterator(Protocol):
    """What of rocksdict's `RdictIter` is used here. It stands at a key, or is not valid: at an end, or at an error."""

    def valid(self) -> bool: ...
    def status(self) -> None:
        """Raise the error that made it not valid, if it was one."""

    def seek(self, key: bytes) -> None: ...
    def seek_for_prev(self, key: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...


class _Abandoned:
    """Stands for an iterator that belongs to another process."""

    def __getattr__(self, name: str) -> Never:
        raise StoreClosed("this read was begun in the process that this one was forked from")


class Cursor:
    """One RocksDB iterator. Each read moves it, so a scan that began before another read must end."""

    __slots__ = ("__weakref__", "iterator", "turn")

    def __init__(self, iterator: RawIterator) -> None:
        self.iterator = iterator
        self.turn = 0

    def release(self) -> None:
        """Let go of the iterator; scans in progress raise at their next step."""
        self.turn += 1
        del self.iterator

    def abandon(self) -> RawIterator | None:
        """Refuse every read from now on, and return the iterator, if there is one still."""
        iterator = getattr(self, "iterator", None)
        self.iterator = _Abandoned()
        return iterator

    def walk(self, begin: bytes, end: bytes | None, *, reverse: bool) -> Iterator[KeyValue]:
        """Yield keys and values of [begin, end) in order. A damaged block is an error, never an end."""
        self.turn += 1
        turn = self.turn
        self._to_last(end) if reverse else self.iterator.seek(begin)
        while self.iterator.valid():
            key = self.iterator.key()
            if key < begin or (end is not None and key >= end):
                return
            yield key, self.iterator.value()
            if self.turn != turn:
                raise StoreUsageError("scan: its view was closed, or read again in this family, meanwhile")
            self.iterator.prev() if reverse else self.iterator.next()
        self._check()

    def _check(self) -> None:
        """Raise the error at which the iterator stopped, if it was one. It would stop there again wherever it is sent
        next, but for a place where it reads nothing."""
        try:
            self.iterator.status()
        except Exception:
            self.iterator.seek(_BEYOND)
            raise

    def _to_last(self, end: bytes | None) -> None:
        if end is None:
            self.iterator.seek_to_last()
            return
        self.iterator.seek_for_prev(end)
        if self.iterator.valid() and self.iterator.key() == end:
            self.iterator.prev()

    def last(self, at_most: bytes, at_least: bytes) -> KeyValue | None:
        """Return the greatest key in [at_least, at_most] with its value, None if there is none."""
        self.turn += 1
        self.iterator.seek_for_prev(at_most)
        if not self.iterator.valid():
            self._check()
            return None
        key = self.iterator.key()
        return (key, self.iterator.value()) if key >= at_least else None


class View:
    """Some families, all as they were at one moment. Made by `Rocks.view`; use `with`, or close it.

    While it is open, replaced files stay on disk and the handle does not close. For one thread at a time.
    """

    def __init__(self, doing: str, cursors: Mapping[str, Cursor], left: Callable[[], None]) -> None:
        """Only for `Rocks.view`; `left` is called once, at close."""
        self._doing = doing
        self._cursors = dict(cursors)
        self._left = left

    def scan(
        self, family: str, begin: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Generator[KeyValue, None, None]:
        """Yield keys and values of [begin, end) in order. The next read of the family in this view ends it."""
        refuse_inverted(self._doing, begin, end)
        with mapped_errors(self._doing):
            yield from self._cursor(family).walk(begin, end, reverse=reverse)

    def last(self, family: str, at_most: bytes, at_least: bytes = b"") -> KeyValue | None:
        """Return the greatest key in [at_least, at_most], both inclusive, with its value; None if there is none."""
        refuse_not_bytes(self._doing, at_most, at_least)
        with mapped_errors(self._doing):
            return self._cursor(family).last(at_most, at_least)

    def _cursor(self, family: str) -> Cursor:
        cursor = self._cursors.get(family)
        if cursor is None:
            raise StoreUsageError(f"{self._doing}: family {family!r} is not in it, or it is closed")
        return cursor

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        if self._cursors:
            for cursor in self._cursors.values():
                cursor.release()
            self._cursors = {}
            self._left()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
