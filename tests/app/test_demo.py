"""The demo tells its story, checks what it says, and fails when that is not so."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from deltalog.app import demo
from deltalog.app.agents import NAMES, session
from tests.app.invoked import execute, invoke, lines_of, printed
from tests.deltalog.memory_log import Rig


def figure(text: str, name: str) -> int:
    """A figure of the closing table."""
    found = re.search(rf"{name} *│ ([\d,]+) deltas", text)
    assert found, text
    return int(found[1].replace(",", ""))


def test_the_demo_runs_recovers_and_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    done = execute("demo", "--deltas", "6000", "--seed", "5", "--data", tmp_path / "kept")
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert "\x1b" not in text
    assert text.count("[ok]") == 12
    assert "FAILED" not in text
    flushed, recovered = (figure(text, name) for name in ("flushed before the kill", "recovered after it"))
    assert 2700 <= flushed <= recovered
    assert printed("verify", "--data", tmp_path / "kept").startswith("no fault")
    (stats,) = lines_of("stats", "--json", "--data", tmp_path / "kept")
    assert sum(stats["heads"][name] for name in NAMES) == 6000


def test_the_demo_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def nothing(story: demo.SessionStory) -> None:
        story.path.mkdir()
        assert story.path.is_relative_to(tmp_path)

    monkeypatch.setattr(demo, "tell", nothing)
    assert invoke("demo").exit_code == 0
    assert not list(tmp_path.iterdir())


def test_a_check_that_fails_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lie(story: demo.SessionStory) -> None:
        story.check(True, "one is one")
        story.check(False, "one is two")

    monkeypatch.setattr(demo, "tell", lie)
    result = invoke("demo")
    assert result.exit_code == 1
    assert "[ok] one is one" in result.stdout
    assert result.stderr == "FAILED: one is two\n"


async def test_what_the_log_holds_is_not_sent_again() -> None:
    rig, reported = Rig(), list[int]()
    rig.wall.ms = 1_800_000_000_000
    edits = list(session(1, 1300))
    async with rig.running("desk") as log:
        await demo.write_session(log, edits[:600], 1, lambda _, done: reported.append(done))
        await demo.write_session(log, edits, 2, lambda _, done: reported.append(done))
        assert sum(log.heads.get(name, 0) for name in NAMES) == 1300
        assert log.heads["desk"] == 3 + 3
        assert log.drained
    assert reported == [250, 500, 600, 1100, 1300]
