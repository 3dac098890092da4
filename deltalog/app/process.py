"""How a verb runs and how it ends: signals, exit codes, and one line of standard error for whatever went wrong.

Exit codes: 0 done; 1 failed (the data, the disk, the input); 2 called wrongly; 130 SIGINT and 143 SIGTERM, after what
was open was closed in order; 141 whoever read the output went away (`| head`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

import click
import trio

from deltalog.app.terminal import OutputClosed, say_line
from deltalog.errors import DeltaLogError, UsageError
from deltalog.nursery import open_nursery

FAILED: Final = 1
MISUSED: Final = 2
_SIGNALLED: Final = 128
_LINE_CHARS: Final = 2_000

DEBUG_VARIABLE: Final = "DELTALOG_DEBUG"
"""Set to anything: errors are shown with their traceback."""


class Interrupted(Exception):
    """Raised by `run` when a signal ended the verb, after everything it had open was closed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def run(verb: Callable[[], Awaitable[int | None]]) -> int:
    """Run a verb; return its exit code. SIGINT and SIGTERM cancel it: its `async with` blocks end as always.

    A second SIGINT does not wait for that. Raises what the verb raises, or `Interrupted`.
    """
    libp2p = logging.getLogger("libp2p")
    if (
        not libp2p.handlers and DEBUG_VARIABLE not in os.environ
    ):  # it would write a line of its own for each link that fails; the node says it, once
        libp2p.addHandler(logging.NullHandler())
    return trio.run(_watched, verb)


async def _watched(verb: Callable[[], Awaitable[int | None]]) -> int:
    caught: list[int] = []
    code: int | None = None
    async with open_nursery() as nursery:
        await nursery.start(_watch, nursery.cancel_scope, caught)
        code = await verb()
        nursery.cancel_scope.cancel()
    if caught:
        raise Interrupted(caught[0])
    return code or 0


async def _watch(
    scope: trio.CancelScope, caught: list[int], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            break
    scope.cancel()


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and what to say, "" for nothing."""
    match error:
        case BaseExceptionGroup():
            return ending(error.exceptions[0])
        case Interrupted():
            return _SIGNALLED + error.number, str(error)
        case KeyboardInterrupt() | click.Abort():
            return _SIGNALLED + signal.SIGINT, "interrupted"
        case BrokenPipeError() | OutputClosed():
            return _SIGNALLED + signal.SIGPIPE, ""
        case click.ClickException():
            return error.exit_code, error.format_message()
        case UsageError():
            return MISUSED, str(error)
        case DeltaLogError() | OSError():
            return FAILED, str(error)
        case _:
            return FAILED, (
                f"unexpected {type(error).__name__}: {error}. This is a fault in deltalog: report it, with the "
                f"traceback that {DEBUG_VARIABLE}=1 shows"
            )


def report(error: BaseException, name: str) -> int:
    """Say on one line of standard error what went wrong in `name`; return the exit code."""
    code, text = ending(error)
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if code == _SIGNALLED + signal.SIGPIPE:
        _drop_output()
    if text:
        say_line(f"{name}: {' '.join(text.split())[:_LINE_CHARS]}")
    return code


def _drop_output() -> None:
    """Nobody reads standard output any more: what Python still holds of it goes nowhere, without a word."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # it is no file at all
