"""The demo of the peers tells its story with three processes, and fails when what it says is not so."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltalog.app import sync_demo
from deltalog.app.sync_demo import SIDES, edits_of
from tests.app.invoked import execute, invoke, lines_of, printed

CHECKS = 11


def test_the_demo_of_the_peers_runs_and_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    done = execute("demo", "sync", "--deltas", "4000", "--seed", "3", "--data", kept)
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert text.count("[ok]") == CHECKS
    assert "FAILED" not in text
    said = {line.split()[-1] for line in text.splitlines() if " deltas  digest " in line}
    assert len(said) == 1
    for name in ("left", "right", "hub"):
        (stats,) = lines_of("stats", "--json", "--data", kept / name)
        assert sum(stats["heads"].values()) == 4000
        assert printed("verify", "--data", kept / name).startswith("no fault")


def test_it_is_not_made_where_something_is(tmp_path: Path) -> None:
    result = invoke("demo", "sync", "--data", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} is there already" in result.stderr


def test_the_sides_share_the_session() -> None:
    left, right = (edits_of(side, 1, 500) for side in SIDES)
    assert len(left) + len(right) == 500
    assert edits_of("hub", 1, 500) == ()


def test_what_is_missing_or_changed_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_left(side: str, *_: object) -> bool:
        return side != "left"

    monkeypatch.setattr(sync_demo, "_is_told", without_left)
    result = invoke("demo", "sync", "--deltas", "2000")
    assert result.exit_code == 1, result.stderr
    assert result.stderr.count("FAILED: ") == 3
