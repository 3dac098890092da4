"""SIGKILL at any moment: what survives is a prefix per source with all that was flushed; no dot comes twice (T2)."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Rounds
from tests.crash.history import Known
from tests.crash.zygote import Zygote, tally
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = pytest.mark.crash

LIVES = 5
"""Rounds that one directory goes through."""


def lives(tmp_path: Path, seed: int, count: int) -> Counter[str]:
    """Kill the writers of one log one after the other, looking at what each leaves. Returns how the log was found."""
    chance = random.Random(seed)
    zygote, known, kinds = Zygote.shared(), Known(), Counter[str]()
    with directory_in_memory(tmp_path / str(seed)) as directory:
        path = directory / "data"
        for life in range(count):
            child = zygote.start("churn", str(path), f"{seed}/{life}")
            child.listen(chance.choice((0.02, 0.08, 0.3)) * chance.random())
            if chance.random() < 0.8:
                child.listen(10, until=lambda line: "opened" in line)
                child.listen(chance.choice((0.01, 0.1, 0.3)) * chance.random())
            child.kill()
            known.hear(child.end())
            assert child.status == -9, child.said[-1]
            if not (path / "deltalog.toml").exists():
                kinds["not made yet"] += 1
                continue
            found = zygote.run("inspect", str(path))
            if "error" in found:
                assert found["error"] == "StoreMissing" and not known.handed, (seed, life, found)
                continue
            try:
                known.check(found)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, life {life}: {error}") from error
            kinds["deltas lost, and named" if found["report"]["lost"] else found["report"]["kind"]] += 1
    return kinds


def test_i1_i2_killed_at_any_moment(tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    count = -(-rounds(30, nightly=10_000) // LIVES)
    kinds, _ = tally(lambda seed: lives(tmp_path, seed, LIVES), count, ("deltas lost, and named", "unclean"))
    with capsys.disabled():
        print(f"\n{kinds.total()} writers killed: {dict(kinds)}")
    assert kinds["deltas lost, and named"], "the kill never met a delta that was handed out and not written"
    assert kinds["unclean"]
