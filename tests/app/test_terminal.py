"""What is shown is readable, safe and sparse."""

from __future__ import annotations

import os
import pty
import sys
import threading
from typing import IO, Any

import msgpack
import pytest
import trio

from deltalog import chain
from deltalog.app import terminal
from deltalog.app.terminal import Meter, Output, has_colour, human_line, listed, shown
from deltalog.clock import from_iso
from deltalog.codec import build, erase
from deltalog.delta import TIMESTAMP_MAX
from tests.app.invoked import all_of

NOON = from_iso("2026-01-31T12:00:00.123Z")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("né \N{GRINNING FACE}", "né \N{GRINNING FACE}"),
        ("\x1b[2J\n", "\\x1b[2J\\n"),
        ("\x9b\u202e\u2028\ud800", "\\x9b\\u202e\\u2028\\ud800"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped(text: str, safe: str) -> None:
    assert shown(text) == safe


@pytest.mark.parametrize(
    ("payload", "preview"),
    [
        ({"a": [1]}, '{"a":[1]}'),
        (b"\0\1", "2 bytes"),
        ({"a": b"\0"}, "6 bytes of msgpack"),
        (msgpack.ExtType(5, b"x"), "3 bytes of msgpack"),
        (float("nan"), "9 bytes of msgpack"),
        ("x" * 100, '"' + "x" * 59 + "..."),
        ("\n\x1b", '"\\n\\u001b"'),
    ],
)
def test_a_line_shows_the_start_of_the_payload(payload: Any, preview: str) -> None:
    line = human_line(build("alice", 7, NOON, payload, kind="edit", key="k"), colour=False).decode()
    assert line == f"2026-01-31T12:00:00.123Z      alice:7          edit       k                {preview}"


def test_a_line_of_an_erased_delta_and_of_one_past_the_year_9999() -> None:
    delta = build("alice", 1, TIMESTAMP_MAX, 1)
    assert human_line(delta, colour=False).startswith(b"18446744073709551615 ")
    assert human_line(erase(delta, chain.payload_hash(delta)), colour=False).endswith(b" erased")
    assert b"\x1b[" in human_line(delta, colour=True)


def test_a_vector_is_listed_up_to_a_point() -> None:
    assert listed({}) == "nothing"
    assert listed({"b": 1000, "a": 1}) == "a:1, b:1,000"
    assert listed({f"s{n}": n for n in range(1, 8)}) == "s1:1, s2:2, s3:3, s4:4, s5:5 and 2 more"


class Terminal:
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    monkeypatch.setenv(variable, value)
    assert not has_colour(Terminal())


# ------------------------------------------------------------------------------------------------------------ progress


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.s = 0.0

    def monotonic(self) -> float:
        return self.s


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def test_without_a_terminal_progress_is_a_line_now_and_then(now: Now, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("importing x", interval_s=5) as meter:
        for tick in range(100):
            now.s = tick / 10
            meter.update(tick, 200, f"{tick} lines")
    assert capsys.readouterr().err == "deltalog: importing x 25% 50 lines\n"


def test_progress_of_unknown_length_has_no_share(now: Now, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("importing -", interval_s=5) as meter:
        now.s = 6
        meter.update(10, None, "10 lines")
    assert capsys.readouterr().err == "deltalog: importing - 10 lines\n"


def drawn(steps: list[float], now: Now, monkeypatch: pytest.MonkeyPatch, **settings: bool) -> str:
    """What a meter draws on a terminal, updated at these times; from another thread, as an opening does it."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with Meter("opening", **settings) as meter:
            for now.s in steps:
                thread = threading.Thread(target=meter.update, args=(1, 2, "reading"))
                thread.start()
                thread.join()  # leaving the meter draws what came last
    return all_of(ours).decode()


def test_on_a_terminal_a_bar_appears_when_it_takes_longer(now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn([0.1, 0.3], now, monkeypatch) == ""
    now.s = 0
    text = drawn([0.1, 0.6], now, monkeypatch)
    assert "opening" in text
    assert " 50%" in text
    assert "reading" in text
    now.s = 0
    assert "opening" in drawn([0.0], now, monkeypatch, at_once=True)
    now.s = 0
    assert drawn([0.1, 9.0], now, monkeypatch, silent=True, at_once=True) == ""


# -------------------------------------------------------------------------------------------------------------- output


class Slow:
    """A raw stream that takes a few bytes at a time, and now and then none, as a non-blocking pipe does."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.taken = b""
        self.calls = 0
        self.fileno = pipe.fileno

    def write(self, data: memoryview) -> int | None:
        self.calls += 1
        if self.calls % 3 == 0:
            return None
        self.taken += bytes(data[:5])
        return len(data[:5])


def test_all_is_written_however_little_is_taken_at_a_time() -> None:
    out, into = os.pipe()
    with open(out, "rb"), open(into, "wb") as pipe:
        output, slow = Output(), Slow(pipe)
        output._raw = slow
        trio.run(output.lines, [b"one line", b"another"])
        assert slow.taken == b"one line\nanother\n"
