"""SIGKILL while auditing, at any moment: whole batches, indexes that agree, a chain that verifies, a loss that is told.

Of each life a prefix of what was logged is there (retention may have taken its beginning), with all that was
acknowledged as durable; reserved tokens never go back; the next start says that the stop was not clean (T14, I12).
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rounds
from tests.crash.zygote import Zygote, tally
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = pytest.mark.crash

LIVES = 5
"""Rounds that one directory goes through."""


def last(said: list[Any], what: str) -> int:
    return max((line[what] for line in said if what in line), default=0)


def check(said: list[Any], found: dict[str, Any], seed: str, tokens: int) -> str:
    """Hold what is left against what one life said; return what became of its tail."""
    assert not found["findings"], found["findings"]
    first, end, count = found["ranges"].get(seed, (1, 0, 0))
    assert count == end - first + 1, "what is left is contiguous"
    assert first == 1 or found["floor"], "only retention takes the beginning"
    durable, logged = last(said, "durable"), last(said, "logged")
    assert end >= durable or (not count and found["floor"]), (end, durable)
    assert found["tokens"] >= max(tokens, last(said, "reserved"))
    opened = any("opened" in line for line in said)
    if opened:
        assert found["starts"][-1] == "true", "the start says that the stop was not clean"
    return "lost a tail, and said so" if end < logged else "lost nothing" if opened else "not open yet"


def lives(tmp_path: Path, seed: int, count: int) -> Counter[str]:
    """Kill the recorders of one trail one after the other, looking at what each leaves."""
    chance = random.Random(seed)
    zygote, kinds, tokens = Zygote.shared(), Counter[str](), 0
    with directory_in_memory(tmp_path / str(seed)) as directory:
        path = directory / "data"
        for life in range(count):
            name = f"{seed}/{life}"
            child = zygote.start("audit_churn", str(path), name)
            if chance.random() < 0.9:
                child.listen(10, until=lambda line: "opened" in line)
            child.listen(chance.choice((0.01, 0.05, 0.2)) * chance.random())
            child.kill()
            said = child.end()
            assert child.status == -9, said[-1]
            if not (path / "deltalog.toml").exists():
                kinds["not made yet"] += 1
                continue
            found = zygote.run("audit_inspect", str(path))
            try:
                kinds[check(said, found, name, tokens)] += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, life {life}: {error}") from error
            tokens = found["tokens"]
    return kinds


def test_i8_i9_i12_killed_while_auditing(tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    count = -(-rounds(50, nightly=1_000) // LIVES)
    kinds, _ = tally(lambda seed: lives(tmp_path, seed, LIVES), count, ("lost a tail, and said so",))
    with capsys.disabled():
        print(f"\n{kinds.total()} recorders killed: {dict(kinds)}")
    assert kinds["lost a tail, and said so"], "the kill never met an event that was logged and not written"
