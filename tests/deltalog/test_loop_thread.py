"""A thing held open in a loop of its own: calls, their errors, how it ends. No RocksDB here."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from deltalog.errors import LogClosed
from deltalog.loop_thread import LoopThread, offload
from tests.deltalog.threads import PATIENCE_S, in_thread, interrupted


class Boom(Exception):
    """What the thing comes down with."""


@attrs.define
class Thing:
    """Something to hold open: counts, waits, crashes."""

    events: list[str] = attrs.field(factory=list)
    crash: trio.Event = attrs.field(factory=trio.Event)
    crash_at_end: bool = False
    called: threading.Event = attrs.field(factory=threading.Event)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Thing]:
        self.events.append("open")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crash)
                yield self
                nursery.cancel_scope.cancel()
        except* Boom as group:
            raise group.exceptions[0] from None
        finally:
            self.events.append("closed")
        if self.crash_at_end:
            raise Boom("at the end")

    async def _crash(self) -> None:
        await self.crash.wait()
        raise Boom

    async def add(self, a: int, *, b: int) -> int:
        await trio.lowlevel.checkpoint()
        return a + b

    async def hold(self, event: trio.Event) -> str:
        """Wait for an event; say when that began."""
        self.called.set()
        await event.wait()
        self.events.append("held")
        return "held"


def calls(loop: LoopThread[Thing]) -> list[Callable[[], object]]:
    """One of each kind, that would not wait."""
    return [partial(loop.run, trio.lowlevel.checkpoint), partial(loop.run_sync, int)]


def ended(loop: LoopThread[Thing]) -> bool:
    """Whether the thread is gone; waits for it."""
    loop._thread.join(PATIENCE_S)
    return not loop._thread.is_alive()


def test_calls_return_and_raise_in_the_callers_thread() -> None:
    loop = LoopThread(Thing().open).start()
    assert loop.run(loop.opened.add, 1, b=2) == 3
    assert loop.run_sync(threading.current_thread) is loop._thread
    with pytest.raises(ZeroDivisionError):
        loop.run_sync(lambda: 1 // 0)
    loop.close()
    assert ended(loop)


def test_what_opening_raises_comes_out_of_start() -> None:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Thing]:
        if threading.current_thread().name == "deltalog":
            raise Boom
        yield Thing()

    loop = LoopThread(opening)
    with pytest.raises(Boom):
        loop.start()
    assert ended(loop)


def test_i10_a_crash_surfaces_in_waiting_and_later_calls_and_at_the_close() -> None:
    thing = Thing()
    loop = LoopThread(thing.open).start()
    never = trio.Event()
    waiting = in_thread(lambda: loop.run(loop.wait, thing, None, partial(thing.hold, never)))
    assert thing.called.wait(PATIENCE_S)
    loop.soon(thing.crash.set)
    with pytest.raises(LogClosed, match="came down") as caught:
        waiting.result(PATIENCE_S)
    assert isinstance(caught.value.__cause__, Boom)
    for call in calls(loop):
        with pytest.raises(LogClosed) as caught:
            call()
        assert isinstance(caught.value.__cause__, Boom)
    with pytest.raises(Boom):
        loop.close()


def test_a_failure_at_the_end_comes_out_of_close() -> None:
    loop = LoopThread(Thing(crash_at_end=True).open).start()
    with pytest.raises(Boom, match="at the end"):
        loop.close()
    with pytest.raises(LogClosed):
        loop.run_sync(int)


def test_calls_that_have_begun_come_to_their_end_before_the_thing_is_closed() -> None:
    thing = Thing()
    loop = LoopThread(thing.open).start()
    event = trio.Event()
    call = in_thread(lambda: loop.run(thing.hold, event))
    assert thing.called.wait(PATIENCE_S)
    loop.run_sync(trio.lowlevel.spawn_system_task, _turns_after, lambda: loop._stopping, event)
    loop.close()
    assert call.result(PATIENCE_S) == "held"
    assert thing.events == ["open", "held", "closed"]


async def _turns_after(condition: Callable[[], bool], event: trio.Event) -> None:
    """Set the event some turns of the loop after the condition holds: time enough for what does not wait for it."""
    while not condition():
        await trio.lowlevel.checkpoint()
    for _ in range(100):
        await trio.lowlevel.cancel_shielded_checkpoint()
    event.set()


def test_asked_to_end_before_it_runs_it_opens_and_closes() -> None:
    thing = Thing()
    loop = LoopThread(thing.open)
    loop._ask_to_stop()
    loop.start()
    assert ended(loop)
    assert thing.events == ["open", "closed"]


def test_calls_after_the_end_raise_and_closing_again_does_nothing() -> None:
    loop = LoopThread(Thing().open).start()
    loop.close()
    loop.close()
    for call in calls(loop):
        with pytest.raises(LogClosed, match="the log is closed") as caught:
            call()
        assert caught.value.__cause__ is None
    loop.soon(int)  # what a finalizer does, whenever it runs


def test_waits_end_by_time_and_by_owner() -> None:
    thing = Thing()
    loop = LoopThread(thing.open).start()
    loop.run(loop.wait, thing, 0.01, trio.sleep_forever)
    began = threading.Event()

    async def forever() -> None:
        began.set()
        await trio.sleep_forever()

    waiting = in_thread(lambda: loop.run(loop.wait, thing, None, forever))
    assert began.wait(PATIENCE_S)
    loop.run_sync(loop.end_waits, "somebody else")
    assert loop.run_sync(lambda: len(loop._waits)) == 1
    loop.run_sync(loop.end_waits, thing)
    waiting.result(PATIENCE_S)
    loop.close()


def test_interrupted_while_it_opens_it_is_closed_once_it_is_open() -> None:
    thing, began, go = Thing(), threading.Event(), threading.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[Thing]:
        began.set()
        await trio.to_thread.run_sync(go.wait)
        async with thing.open():
            yield thing

    loop = LoopThread(slow)
    with interrupted(began):
        loop.start()
    go.set()
    assert ended(loop)
    assert thing.events == ["open", "closed"]
    loop.close()


def test_an_interrupt_ends_the_wait_and_not_the_call() -> None:
    thing, event = Thing(), trio.Event()
    loop = LoopThread(thing.open).start()
    with interrupted(thing.called):
        loop.run(thing.hold, event)
    loop.run_sync(event.set)
    loop.close()
    assert thing.events == ["open", "held", "closed"]


def test_it_is_no_way_to_block_a_trio_program() -> None:
    loop = LoopThread(Thing().open).start()

    async def main() -> None:
        loop.run_sync(int)

    with pytest.raises(RuntimeError, match="blocking function"):
        trio.run(main)
    loop.close()


async def test_offload_works_in_a_thread() -> None:
    assert await offload(threading.current_thread) is not threading.current_thread()
    calls = list[int]()
    with pytest.raises(RuntimeError, match="mine"):
        await offload(_fail, calls)
    assert len(calls) == 1


async def test_offload_works_in_place_when_no_thread_starts_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    assert await offload(threading.current_thread) is threading.current_thread()
    with pytest.raises(RuntimeError, match="mine"):
        await offload(_fail, [])


def _fail(calls: list[int]) -> None:
    calls.append(1)
    raise RuntimeError("mine")
