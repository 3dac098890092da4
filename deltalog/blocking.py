"""The log for threads and asyncio programs: the same names, each call waits in the caller's thread.

    with deltalog.blocking.open_log(path, source="alice") as log:
        log.append({"x": 1}, durable=True)

Lives here: how each name of `DeltaLog` is called in the loop of a `LoopThread`, and reads taken page by page. Does not
know: what the names do. Any thread may call at any time; a call's error comes out in the thread that called.

From asyncio, use worker threads: `await asyncio.to_thread(log.append, payload)`. Cancelling that task, or a
KeyboardInterrupt in a thread that waits, ends the wait only: the call runs to its end in the loop, so what it appends
is appended.

The log and every read in progress belong to the loop's thread; even the last reference to a read is let go of there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar

import trio

from deltalog.causality import Conflict, ConflictFinder
from deltalog.delta import TIMESTAMP_MAX, Delta
from deltalog.errors import RingFull
from deltalog.log import LogOptions, LogStatistics, Truncation
from deltalog.loop_thread import LoopThread, offload
from deltalog.manager import Manager, ManagerHealth, Upkeep, open_manager
from deltalog.reader import PAGE, Stream
from deltalog.receiver import Receipt
from deltalog.retention import Retention
from deltalog.startup import Progress
from deltalog.store import Erasure, StoreSizes
from deltalog.subscription import Subscription
from deltalog.version import Order, VersionVector

__all__ = ["BlockingLog", "BlockingStream", "BlockingSubscription", "open_log"]

MANY: Final = 1024
"""Payloads or deltas that one hop into the loop brings: what else runs there waits no longer than for these."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R", Stream, Subscription)


class _Read(Generic[_R]):
    """A read that lives in the loop's thread, taken page by page from another one.

    A page waits in `_page` until it is taken and in `_rest` until it is given out, so that neither a KeyboardInterrupt
    nor leaving a `for` early loses any of it.
    """

    def __init__(self, loop: LoopThread[Manager], read: _R) -> None:
        """Only for `BlockingLog`."""
        self._loop = loop
        self._held: list[_R] = [read]
        self._turn = trio.Lock()  # an interrupted call may still be under way
        self._page: Sequence[Delta] = ()
        self._rest: Iterator[Delta] = iter(())

    def _take(self, count: int, timeout_s: float | None) -> Sequence[Delta]:
        """The rest of a page, else the next one; none at the end, after `timeout_s`, or when it was let go of."""
        if rest := list(itertools.islice(self._rest, count)):
            return rest
        self._loop.run(self._fill, count, timeout_s)
        page, self._page = self._page, ()
        return page

    async def _fill(self, count: int, timeout_s: float | None) -> None:
        await self._loop.wait(self, timeout_s, partial(self._next, count))

    async def _next(self, count: int) -> None:
        async with self._turn:
            if self._held and not self._page:
                self._page = await self._held[0].page(count)

    def _let_go(self) -> None:
        """End the read, in the loop."""
        self._held.clear()
        self._loop.end_waits(self)

    def __del__(self) -> None:
        self._loop.soon(self._held.clear)


class BlockingStream(_Read[Stream]):
    """Deltas in a fixed order: an iterator, or `page()` for many at a time. As `Stream`; for one thread at a time.

    One hop into the loop a page. Holds no resource: it may be dropped at any time.
    """

    def page(self, count: int = PAGE) -> Sequence[Delta]:
        """Return the next deltas, about `count`; none at the end."""
        return self._take(count, None)

    def __iter__(self) -> Iterator[Delta]:
        while page := self._take(PAGE, None):
            self._rest = iter(page)
            yield from self._rest

    def __next__(self) -> Delta:
        for delta in self._rest:
            return delta
        self._rest = iter(self._take(PAGE, None))
        return next(self._rest)


class BlockingSubscription(_Read[Subscription]):
    """Every delta beyond a position, each once, predecessors and deps first: `for delta in subscription`.

    As `Subscription`; for one thread at a time, but any thread may `close` it. The `for` ends by that, or when nothing
    came for `timeout_s`; iterate again to go on.
    """

    def __init__(
        self,
        loop: LoopThread[Manager],
        read: Subscription,
        limit: Callable[[], VersionVector],
        timeout_s: float | None,
    ) -> None:
        """Only for `BlockingLog`. `limit` tells, in the loop, up to where one may read."""
        super().__init__(loop, read)
        self._limit = limit
        self._position = read.position.to_dict()
        self.timeout_s = timeout_s
        """How long to wait for the next delta; None: for ever."""

    @property
    def position(self) -> VersionVector:
        """All that was given out, and all that came before: where to go on after a restart."""
        return VersionVector(self._position)

    def page(self, count: int = PAGE, *, timeout_s: float | None = None) -> Sequence[Delta]:
        """Return the next deltas; waits for one. None after `timeout_s` (default: the subscription's) or `close`."""
        page = self._take(count, self.timeout_s if timeout_s is None else timeout_s)
        for delta in page:
            self._position[delta.source] = delta.seq
        return page

    def __iter__(self) -> Iterator[Delta]:
        while page := self._take(PAGE, self.timeout_s):
            self._rest = iter(page)
            for delta in self._rest:
                self._position[delta.source] = delta.seq
                yield delta

    async def _fill(self, count: int, timeout_s: float | None) -> None:
        """The timeout is for what is not there yet: reading what is there may take its time."""
        behind = any(not read.position.covers_all(self._limit()) for read in self._held)
        await super()._fill(count, None if behind else timeout_s)

    def close(self) -> None:
        """End it, from any thread: whoever waits for the next delta stops waiting. Idempotent."""
        self._loop.soon(self._let_go)


class BlockingLog:
    """An open delta log, for any thread. Made by `blocking.open_log`; names, arguments, errors are those of `DeltaLog`.

    Use `with`, or `close` it: that stores and syncs everything appended, as does the end of the interpreter. Then, and
    in a forked child, every call raises `LogClosed`; if the log came down by itself, the reason is its `__cause__`.
    """

    def __init__(self, loop: LoopThread[Manager]) -> None:
        """Only for `open_log`."""
        manager: Manager = loop.opened
        self._loop = loop
        self._manager = manager
        self._log = manager.log
        self.source = manager.log.source
        """Who appends here."""
        self.guard = manager.log.guard
        """Highest fencing token seen for each key."""
        self.options = manager.log.options
        """How it was opened."""
        self.startup = manager.startup
        """How the open went."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BaseException as failure:
            if error is None or failure is error:
                raise
            error.add_note(f"and the log did not close in order: {failure!r}")

    def close(self) -> None:
        """Store and sync everything appended, then close. Idempotent.

        Calls under way in other threads come to their end first. Raises what brought the log down, or `LogReadOnly` if
        something could not be stored.
        """
        self._loop.close()

    # -------------------------------------------------------------------------------------------------- what is held

    @property
    def heads(self) -> VersionVector:
        """Everything visible here."""
        return self._loop.run_sync(lambda: self._log.heads)

    @property
    def written(self) -> VersionVector:
        """What survives the end of this process."""
        return self._loop.run_sync(lambda: self._log.written)

    @property
    def synced(self) -> VersionVector:
        """What survives power loss."""
        return self._loop.run_sync(lambda: self._log.synced)

    @property
    def floor(self) -> VersionVector:
        """What retention dropped."""
        return self._loop.run_sync(lambda: self._log.floor)

    @property
    def drained(self) -> bool:
        """Whether everything visible survives power loss."""
        return self._loop.run_sync(lambda: self._log.drained)

    def statistics(self) -> LogStatistics:
        """Ring, inbox and writer at this moment."""
        return self._loop.run_sync(self._log.statistics)

    def health(self) -> ManagerHealth:
        """How the instance, its upkeep and the disk are: `Manager.health`."""
        return self._loop.run_sync(self._manager.health)

    def sizes(self) -> StoreSizes:
        """What the store holds."""
        return self._loop.run(self._log.sizes)

    # -------------------------------------------------------------------------------------------- append and receive

    def append_nowait(self, payload: Any, *, kind: str = "", key: str = "", fence: int | None = None) -> Delta:
        """Append a delta and return it, or raise `RingFull`: waits for the hop into the loop, never for room."""
        return self._loop.run_sync(self._log.append_nowait, payload, kind=kind, key=key, fence=fence)

    def append(
        self, payload: Any, *, kind: str = "", key: str = "", fence: int | None = None, durable: bool = False
    ) -> Delta:
        """Append a delta, waiting for room; with `durable` return only when it survives power loss."""
        if not durable:
            with suppress(RingFull):
                return self.append_nowait(payload, kind=kind, key=key, fence=fence)
        return self._loop.run(self._log.append, payload, kind=kind, key=key, fence=fence, durable=durable)

    def append_many(
        self,
        payloads: Iterable[Any],
        *,
        kind: str = "",
        key: str = "",
        fence: int | None = None,
        durable: bool = False,
    ) -> list[Delta]:
        """Append several deltas in order; if one is refused, those before it stay. Others' may come in between."""
        deltas: list[Delta] = []
        for some in _parts(payloads):
            deltas += self._loop.run(self._log.append_many, some, kind=kind, key=key, fence=fence)
        if durable:
            self.flush()
        return deltas

    def flush(self) -> None:
        """Return when all that is visible now survives power loss; what is appended meanwhile is not waited for."""
        self._loop.run(self._log.flush)

    def receive(self, deltas: Iterable[Delta], *, own: bool = False) -> Receipt:
        """Take in deltas of other sources (`own`: of this one, too): apply, keep waiting, or refuse each; say which."""
        receipts = [self._loop.run(self._log.receive, some, own=own) for some in _parts(deltas)]
        return Receipt(
            [dot for receipt in receipts for dot in receipt.applied],
            [dot for receipt in receipts for dot in receipt.known],
            [dot for receipt in receipts for dot in receipt.waiting],
            [refusal for receipt in receipts for refusal in receipt.refused],
        )

    # ---------------------------------------------------------------------------------------------------------- read

    def get(self, dot: tuple[str, int]) -> Delta | None:
        """The delta with this dot; None if there is none here, or it was dropped."""
        return self._loop.run(self._log.get, dot)

    def by_source(
        self, source: str, *, after: int | None = None, until: int | None = None, reverse: bool = False
    ) -> BlockingStream:
        """Deltas of one source with after < seq <= until, ascending, or newest first. Raises `BelowFloor`."""
        return self._read(self._log.by_source, source, after=after, until=until, reverse=reverse)

    def between(self, after: int = -1, until: int = TIMESTAMP_MAX) -> BlockingStream:
        """Deltas with after < timestamp <= until, in timestamp order."""
        return self._read(self._log.between, after, until)

    def since(self, after: Mapping[str, int], until: Mapping[str, int] | None = None) -> BlockingStream:
        """Exactly the deltas that a version vector lacks, each once, in timestamp order. Raises `BelowFloor`.

        until: only of the sources it names, each up to its seq there or the head.
        """
        return self._read(self._log.since, after, until)

    def replay(self) -> BlockingStream:
        """All deltas that are held, in timestamp order: causes before effects."""
        return self._read(self._log.replay)

    def _read(self, begin: Callable[_P, Stream], *args: _P.args, **kwargs: _P.kwargs) -> BlockingStream:
        return BlockingStream(self._loop, self._loop.run_sync(begin, *args, **kwargs))

    def subscribe(
        self, since: Mapping[str, int] | None = None, *, durable: bool = False, timeout_s: float | None = None
    ) -> BlockingSubscription:
        """What a version vector lacks (None: only what is new from now on), then all that comes, each once.

        durable: only what survives power loss here. timeout_s: iteration ends when nothing came for so long.
        """
        subscription = self._loop.run_sync(self._log.subscribe, since, durable=durable)
        return BlockingSubscription(
            self._loop, subscription, lambda: self._log.synced if durable else self._log.heads, timeout_s
        )

    def order(self, a: tuple[str, int], b: tuple[str, int]) -> Order:
        """How delta `a` stands to delta `b` in causal order. Raises `UsageError` for a dot that is not held here."""
        return self._loop.run(self._log.order, a, b)

    def conflicts(self, after: int = -1, until: int = TIMESTAMP_MAX) -> Iterator[Conflict]:
        """Concurrent deltas on one key within an interval of time."""
        return itertools.chain.from_iterable(map(ConflictFinder().add, self.between(after, until)))

    # -------------------------------------------------------------------------------------------------------- upkeep

    def truncate(
        self, *, until: Mapping[str, int] | None = None, retention: Retention | None = None, hard: bool = False
    ) -> Truncation:
        """Drop old deltas: up to a version vector, or what a retention lets go. Never under a reader.

        hard: also what a peer has not acknowledged.
        """
        return self._loop.run(self._log.truncate, until=until, retention=retention, hard=hard)

    def erase(self, dot: tuple[str, int], reason: str) -> Delta:
        """Replace a delta's payload by its hash, here; durable on return. Idempotent."""
        return self._loop.run(self._log.erase, dot, reason)

    def erasures(self) -> Sequence[Erasure]:
        """The notes that `erase` left."""
        return self._loop.run(self._log.erasures)

    def compact(self, *, if_needed: bool = False) -> None:
        """Merge short blocks and give back the space of what was dropped or erased."""
        self._loop.run(self._log.compact, if_needed=if_needed)


def _parts(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Lists of up to `MANY`, made in the caller's thread: the loop runs no code of the caller."""
    left = iter(items)
    while some := list(itertools.islice(left, MANY)):
        yield some


def open_log(
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    create: bool = True,
    accept_loss: bool = False,
    adopt: bool = False,
    options: LogOptions | None = None,
    upkeep: Upkeep | None = None,
    progress: Progress | None = None,
) -> BlockingLog:
    """Open the delta log in a data directory: `with open_log(path, source="alice") as log`.

    As `deltalog.open_log`, and raises what that raises. `progress` is called in another thread.
    """
    opening = partial(
        open_manager,
        path,
        source=source,
        create=create,
        accept_loss=accept_loss,
        adopt=adopt,
        options=options,
        upkeep=upkeep,
        offload=offload,
    )
    return BlockingLog(LoopThread(opening if progress is None else partial(opening, progress=progress)).start())
