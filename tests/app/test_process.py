"""Every way a verb can end has its exit code and its one line."""

from __future__ import annotations

import os
import signal

import click
import pytest
import trio

from deltalog.app.lines import LineRefused
from deltalog.app.process import Interrupted, ending, report, run
from deltalog.app.terminal import OutputClosed
from deltalog.errors import LimitExceeded, StoreInUse, UsageError

ENDINGS: list[tuple[BaseException, int, str]] = [
    (UsageError("wrong"), 2, "wrong"),
    (LimitExceeded("key", 2, 1), 2, "key is 2 bytes; the limit is 1 bytes"),
    (click.UsageError("wrong"), 2, "wrong"),
    (click.ClickException("failed"), 1, "failed"),
    (LineRefused(7, "wrong"), 1, "line 7: wrong"),
    (StoreInUse("in use"), 1, "in use"),
    (OSError(5, "Input/output error"), 1, "[Errno 5] Input/output error"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (click.Abort(), 130, "interrupted"),
    (Interrupted(signal.SIGTERM), 143, "interrupted by SIGTERM"),
    (BrokenPipeError(), 141, ""),
    (OutputClosed(), 141, ""),
    (ExceptionGroup("several", [ExceptionGroup("inner", [StoreInUse("in use")]), ValueError()]), 1, "in use"),
]


@pytest.mark.parametrize(("error", "code", "text"), ENDINGS, ids=[f"{n}" for n in range(len(ENDINGS))])
def test_an_error_has_its_code_and_its_words(error: BaseException, code: int, text: str) -> None:
    assert ending(error) == (code, text)


def test_a_report_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(UsageError("a\n b\x1b[2J\udcff " + "x" * 10_000), "deltalog verb") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deltalog verb: a b\\x1b[2J\\udcff xxx")
    assert err.count("\n") == 1
    assert len(err) < 2_100


def test_a_verb_returns_its_code() -> None:
    async def verb() -> int:
        return 1

    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    assert run(verb) == 1
    assert run(nothing) == 0


def test_a_verbs_error_comes_out_as_itself() -> None:
    async def verb() -> None:
        raise StoreInUse("in use")

    with pytest.raises(StoreInUse, match="in use"):
        run(verb)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_verb_and_waits_for_what_it_has_open(number: signal.Signals) -> None:
    closed = False

    async def verb() -> None:
        nonlocal closed
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(100):
                    await trio.lowlevel.checkpoint()
            closed = True

    with pytest.raises(Interrupted) as caught:
        run(verb)
    assert caught.value.number == number
    assert closed
