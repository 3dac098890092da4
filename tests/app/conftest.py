"""Logs for the tests of the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app.invoked import printed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def new_log(data: Path) -> Path:
    """alice 1 to 4, bob 1 to 2, a second apart, then one delta of the node's own."""
    rows = [
        ("alice", 1, {}),
        ("alice", 2, {}),
        ("bob", 1, {"alice": 2}),
        ("alice", 3, {}),
        ("bob", 2, {}),
        ("alice", 4, {}),
    ]
    lines = [
        {
            "source": s,
            "seq": n,
            "deps": deps,
            "time": f"2026-01-01T00:00:0{at}Z",
            "kind": "edit",
            "key": s[0],
            "payload": at,
        }
        for at, (s, n, deps) in enumerate(rows)
    ]
    file = data.parent / "rows"
    file.write_text("\n".join(map(json.dumps, lines)))
    printed("import", file, "--data", data, "--source", "here")
    printed("append", '{"own": true}', "--data", data)
    return data


@pytest.fixture
def log(data: Path) -> Path:
    """A log to change."""
    return new_log(data)


@pytest.fixture(scope="module")
def read_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that several tests read and none changes."""
    return new_log(tmp_path_factory.mktemp("read") / "data")
