"""A trio loop in a thread of its own, that holds one thing open and takes calls from all other threads.

Lives here: the way into the loop and back, and how it ends. Does not know: what is open, what a call does.

It ends in order: `close` asks for it, calls that have begun come to their end (waits for news are cut short), then what
is open is closed, then the thread ends. Later calls raise `LogClosed`. If it comes down by itself, calls raise
`LogClosed` from the reason, and `close` raises the reason. Nobody is left waiting: trio runs or refuses every call.

A forked child has the object and not the thread: there every call raises `LogClosed`, and nothing touches the loop.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Generic, ParamSpec, Self, TypeVar

import trio

from deltalog.errors import LogClosed

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Thing = TypeVar("_Thing")


class LoopThread(Generic[_Thing]):
    """The loop, its thread, and what is open in it."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[_Thing]]) -> None:
        """`async with opening()` is what `start` does in the loop."""
        # constant once it is open
        self.opened: _Thing
        """What `opening()` gave."""
        self._token: trio.lowlevel.TrioToken | None = None
        self._pid = os.getpid()
        # the caller's side
        self._leaving = False
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        # the loop's side
        self._stop = trio.Event()
        self._stopping = False
        self._calls = 0
        self._calls_done = trio.lowlevel.ParkingLot()
        self._waits: dict[trio.CancelScope, object] = {}
        self._thread = threading.Thread(target=self._run, args=(opening,), name="deltalog", daemon=True)

    def start(self) -> Self:
        """Open. Raises what that raises. After a KeyboardInterrupt here, it is closed as soon as it is open."""
        atexit.register(self.close)
        try:
            self._thread.start()
            self._ready.wait()
        except BaseException:
            self._ask_to_stop()
            raise
        if self._failure is not None:
            self.close()
        return self

    # --------------------------------------------------------------------------------------------- the loop's thread

    def _run(self, opening: Callable[[], AbstractAsyncContextManager[_Thing]]) -> None:
        try:
            trio.run(self._serve, opening)
        except BaseException as error:  # noqa: BLE001  # every caller gets it
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, opening: Callable[[], AbstractAsyncContextManager[_Thing]]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with opening() as self.opened:
            self._ready.set()
            try:
                if not self._leaving:
                    await self._stop.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._drain()

    async def _drain(self) -> None:
        """Take no more calls, end those that wait for news, let the others finish: what is in use cannot be closed."""
        self._stopping = True
        self.end_waits()
        while self._calls:
            await self._calls_done.park()

    async def _serve_call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        if self._stopping:
            raise self._refusal()
        self._calls += 1
        try:
            return await call()
        finally:
            self._calls -= 1
            self._calls_done.unpark_all()

    async def wait(self, owner: object, timeout_s: float | None, call: Callable[[], Awaitable[object]]) -> None:
        """Inside `run`: await what may take for ever. Ends after `timeout_s`, at `end_waits`, or with the loop."""
        with trio.CancelScope() as scope:
            if timeout_s is not None:
                scope.relative_deadline = timeout_s
            self._waits[scope] = owner
            try:
                await call()
            finally:
                del self._waits[scope]
        if scope.cancelled_caught and self._stopping:
            raise self._refusal()

    def _refusal(self) -> Exception:
        """Asked to end: say so at once. Coming down: `run` waits for the reason and tells that."""
        return LogClosed("the log is closed") if self._leaving else trio.RunFinishedError()

    def end_waits(self, owner: object = None) -> None:
        """End the waits of one owner, or all."""
        for scope, each in self._waits.items():
            if owner is None or each is owner:
                scope.cancel()

    # ------------------------------------------------------------------------------------------------ other threads

    def run(self, function: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await `function(...)` in the loop; return or raise what it does."""
        token = self._way_in()
        try:
            return trio.from_thread.run(self._serve_call, partial(function, *args, **kwargs), trio_token=token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise self._closed() from self._failure

    def run_sync(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call `function(...)` in the loop; return or raise what it does."""
        token = self._way_in()
        try:
            return trio.from_thread.run_sync(partial(function, *args, **kwargs), trio_token=token)
        except trio.RunFinishedError:
            raise self._closed() from self._failure

    def soon(self, function: Callable[[], object]) -> None:
        """Have `function()` called in the loop, if that still runs. Reentrant: fit for `__del__`."""
        if self._token is not None and os.getpid() == self._pid:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)

    def _way_in(self) -> trio.lowlevel.TrioToken:
        if os.getpid() != self._pid:
            raise LogClosed("this process was forked from the one that has the log open")
        assert self._token is not None, "it is open"
        return self._token

    def _closed(self) -> LogClosed:
        """Why calls are refused; `_failure` is set when this returns."""
        self._thread.join()
        return LogClosed("the log is closed" if self._failure is None else f"the log came down: {self._failure!r}")

    def _ask_to_stop(self) -> None:
        self._leaving = True
        self.soon(self._stop.set)

    def close(self) -> None:
        """Close what is open, end the thread. Raises what brought it down. Idempotent; in a forked child, nothing."""
        self._ask_to_stop()
        self._thread.join()
        atexit.unregister(self.close)
        if self._failure is not None:
            raise self._failure


async def offload(function: Callable[..., _T], *args: Any) -> _T:
    """Call in a worker thread; when the interpreter is ending and starts no thread any more, right here."""
    begun = False

    def work() -> _T:
        nonlocal begun
        begun = True
        return function(*args)

    try:
        return await trio.to_thread.run_sync(work)
    except RuntimeError:
        if begun:
            raise
        return function(*args)
