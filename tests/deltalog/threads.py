"""Threads in tests: calls elsewhere that cannot keep the process, what Ctrl-C does, a writer held at a gate."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, Self, TypeVar

import pytest

from deltalog import failpoints

PATIENCE_S: Final = 30
"""A wait that takes longer has failed."""
AGAIN_S: Final = 3
"""Python does not see a signal that comes just before it waits for a lock, until the next one."""

_T = TypeVar("_T")


def in_thread(function: Callable[[], _T]) -> Future[_T]:
    """Call in a daemon thread."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def interrupted(waiting: threading.Event) -> Iterator[None]:
    """The block, in the main thread, gets a KeyboardInterrupt once `waiting` is set, and must let it out."""
    main, out = threading.main_thread().ident, threading.Event()
    assert main is not None

    def interrupt() -> None:
        assert waiting.wait(PATIENCE_S)
        while not out.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            out.wait(AGAIN_S)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    interrupter = in_thread(interrupt)
    try:
        yield
    except KeyboardInterrupt:
        out.set()
    else:
        out.set()
        pytest.fail("no KeyboardInterrupt came out")
    interrupter.result(PATIENCE_S)
    signal.signal(signal.SIGINT, before)


class Gate:
    """Keeps the writer from writing until it is opened, at the latest at the end of the block."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __enter__(self) -> Self:
        failpoints.arm("store.write.before", self._pass)
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()
        failpoints.disarm()

    def _pass(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
