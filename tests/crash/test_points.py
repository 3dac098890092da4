"""Every failpoint: the process is killed there, or something goes wrong; the log that is left is whole (T1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltalog.failpoints import POINTS
from tests.conftest import Rounds
from tests.crash.child_log import ACTIONS
from tests.crash.history import Known
from tests.crash.zygote import Zygote, side_by_side
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = pytest.mark.crash

FRAMES_ONLY = {"store.close.before"}
"""Between these and what they frame nothing can fail; a process can end there."""
FAILURES = [action for action in ACTIONS if action != "kill"]
ALLOWED = {
    "ZeroDivisionError",  # what was injected
    "OSError",
    "StoreFull",
    "StoreIOError",
    "LogReadOnly",  # what the log says of it
    "LogClosed",
    "TooSlowError",
    "DataLoss",  # never: `check` says so when it happens
}


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often the script reaches each point when nothing goes wrong."""
    with directory_in_memory(tmp_path_factory.mktemp("hits")) as directory:
        counted: dict[str, int] = Zygote.shared().run("hits", str(directory / "data"))["hits"]
        return counted


def test_the_script_reaches_every_point(hits: dict[str, int]) -> None:
    assert hits.keys() == POINTS
    assert len(POINTS) >= 40


def went_through(directory: Path, point: str, action: str, hit: int) -> list[Any]:
    """Run the script with a point armed; check what it leaves. Return how its sessions ended that failed."""
    zygote, path, known = Zygote.shared(), str(directory / "data"), Known()
    child = zygote.start("script", path, f"{point} {action} {hit}")
    said = child.end()
    assert (child.status == -9) == (action == "kill"), said[-3:]
    known.hear(said)
    if (directory / "data" / "deltalog.toml").exists():
        for _ in range(2):
            found = zygote.run("inspect", path)
            if found.get("error") == "StoreMissing" and not known.handed:
                break  # its making was cut off
            assert "error" not in found, found
            known.check(found)
    ended = [line["ended"] for line in said if "ended" in line]
    assert {name for _, name, _ in ended} <= ALLOWED, ended
    return ended


def walk(tmp_path: Path, cases: list[tuple[str, str, int]]) -> dict[tuple[str, str, int], list[Any]]:
    """Every case in a directory of its own."""

    def one(case: tuple[str, str, int]) -> list[Any]:
        with directory_in_memory(tmp_path / "-".join(map(str, case))) as directory:
            try:
                return went_through(directory, *case)
            except AssertionError as error:
                raise AssertionError(f"{' '.join(map(str, case))}: {error}") from error

    return dict(zip(cases, side_by_side(one, cases), strict=True))


def test_i1_i2_killed_at_every_point(tmp_path: Path, hits: dict[str, int], rounds: Rounds) -> None:
    most = rounds(1, nightly=50)
    cases = [(point, "kill", hit) for point, count in sorted(hits.items()) for hit in range(1, min(count, most) + 1)]
    walk(tmp_path, cases)


def test_i2_i10_a_failure_at_every_point(tmp_path: Path, hits: dict[str, int], rounds: Rounds) -> None:
    """In the short form one kind of failure a point, by turns; in the long one each kind at each."""
    most = rounds(1, nightly=4)
    cases = [
        (point, FAILURES[(number + turn) % len(FAILURES)], 1)
        for number, point in enumerate(sorted(hits.keys() - FRAMES_ONLY))
        for turn in range(min(most, len(FAILURES)))
    ]
    ended = walk(tmp_path, cases)
    for (point, action, _), sessions in ended.items():
        if action == "delay":
            assert not sessions, (point, sessions)
    assert any(ended.values()), "no failure came to the surface"
