"""The demo of the locks tells its story, checks it against what its agents remember, and fails when that is not so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.event import Action
from audit.lease import Lease
from deltalog.app import audit_demo
from deltalog.app.node import Node
from tests.app.invoked import execute, invoke, lines_of, printed


def test_the_demo_of_the_locks_runs_and_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    done = execute("demo", "audit", "--seconds", "1", "--seed", "3", "--data", tmp_path / "kept")
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert text.count("[ok]") == 10
    assert "FAILED" not in text
    assert "is stale" in text
    assert printed("audit", "verify", "--data", tmp_path / "kept").startswith("as it was recorded")
    slept = lines_of("audit", "query", "--json", "--data", tmp_path / "kept", "--target", "src/shared.py")
    assert [each["action"] for each in slept] == [
        "acquired", "conflict", "waiting", "expired", "acquired", "denied", "released"
    ]  # fmt: skip


def test_it_is_not_made_where_something_is(tmp_path: Path) -> None:
    result = invoke("demo", "audit", "--data", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} is there already" in result.stderr


@pytest.mark.parametrize("lie", ["_is_told", "memory"])
def test_an_answer_that_is_wrong_fails_it(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    async def wrong(node: Node, lease: Lease, at: int) -> bool:
        return False

    def forgetful(story: audit_demo.LockStory, *rest: Any) -> Any:
        story.memory.counts[Action.RELEASED] += 1
        return tell(story, *rest)

    tell = audit_demo.tell
    if lie == "memory":
        monkeypatch.setattr(audit_demo, "tell", forgetful)
    else:
        monkeypatch.setattr(audit_demo, "_is_told", wrong)
    result = invoke("demo", "audit", "--seconds", "0.3")
    assert result.exit_code == 1
    assert result.stderr.count("FAILED: ") == 1
