"""Threads in tests: calls elsewhere that cannot keep the process, and what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

import pytest

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

    interrupter = in_thread(interrupt)
    try:
        yield
    except KeyboardInterrupt:
        out.set()
    else:
        out.set()
        pytest.fail("no KeyboardInterrupt came out")
    interrupter.result(PATIENCE_S)
