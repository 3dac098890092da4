"""Failpoints: every one is reached somewhere, an unknown name cannot be armed, and none does anything unarmed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalog.failpoints import POINTS, arm, disarm, reach

SOURCES = Path(__file__).parents[2] / "deltalog"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    disarm()


def test_an_armed_point_runs_each_time_it_is_reached_until_disarmed() -> None:
    reached: list[str] = []
    arm("store.write.before", lambda: reached.append("before"))
    arm("store.write.after", lambda: reached.append("after"))
    for name in ("store.write.before", "store.sync.before", "store.write.after", "store.write.before"):
        reach(name)
    assert reached == ["before", "after", "before"]
    arm("store.write.before", lambda: reached.append("other"))
    reach("store.write.before")
    disarm()
    for name in POINTS:
        reach(name)
    assert reached == ["before", "after", "before", "other"]


def test_what_a_point_raises_comes_out_where_it_is_reached() -> None:
    def fail() -> None:
        raise OSError("no space")

    arm("store.sync.before", fail)
    with pytest.raises(OSError, match="no space"):
        reach("store.sync.before")


def test_an_unknown_name_cannot_be_armed() -> None:
    with pytest.raises(KeyError, match="no failpoint 'store.write'"):
        arm("store.write", disarm)
    reach("store.write")


def test_the_points_are_those_that_the_sources_reach_each_at_one_place() -> None:
    sources = "".join(path.read_text() for path in sorted(SOURCES.rglob("*.py")))
    found = re.findall(r'^\s+reach\("([^"]+)"\)', sources, re.MULTILINE)
    for doing in re.findall(r'_commit\(batch, "(\w+)"', sources):  # one place that frames each of the store's batches
        found += [f"store.{doing}.before", f"store.{doing}.after"]
    assert sorted(found) == sorted(POINTS)


def test_points_come_in_pairs_around_what_they_frame() -> None:
    """Killing a process before and after an effect is the least a crash test asks for."""
    for name in POINTS:
        part, effect, moment = name.split(".")
        assert moment in ("before", "after")
        assert part in ("writer", "store", "witness", "directory", "startup", "salvage", "log", "manager")
        assert {f"{part}.{effect}.before", f"{part}.{effect}.after"} <= POINTS
