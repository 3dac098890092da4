"""SIGKILL and SIGSTOP while tasks contend for locks, life after life of one directory (T13, T14, I12).

At most one holder of a target at any time, tokens that never come again, stale ones refused by the log also after the
restart, and every grant told in the trail, or the next start saying that it may be missing.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rounds
from tests.crash.lock_history import LockHistory
from tests.crash.zygote import Child, Zygote, tally
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = pytest.mark.crash

LIVES = 10
"""Rounds that one directory goes through."""
STOP_S = 0.03
"""Longer than most leases last."""


def stale(history: LockHistory, chance: random.Random) -> list[list[Any]]:
    """Leases of earlier lives: the newest, and some others."""
    grants = history.grants()
    chosen = [*grants[-3:], *chance.sample(grants, min(3, len(grants)))]
    return [[grant.keys[0], grant.token, grant.lock_id] for grant in chosen]


def stop_and_go_on(child: Child, chance: random.Random, counts: Counter[str]) -> None:
    """Stop the process for longer than its leases last; mostly it goes on."""
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(STOP_S)
    counts["stopped"] += 1
    if chance.random() < 0.8:
        os.kill(child.pid, signal.SIGCONT)
        child.listen(0.03 * chance.random())


def killed(child: Child, chance: random.Random, counts: Counter[str]) -> list[Any]:
    """Let a life go on for a while and kill it; return what it said."""
    if chance.random() < 0.9:
        child.listen(10, until=lambda line: "opened" in line)
    child.listen(chance.choice((0.01, 0.05, 0.1)) * chance.random())
    if chance.random() < 0.7:
        stop_and_go_on(child, chance, counts)
    child.kill()
    said = child.end()
    assert child.status == -9, said[-1]
    return said


def lives(tmp_path: Path, seed: int, how: str) -> Counter[str]:
    """Kill the holders of one directory one after the other."""
    chance, zygote, history = random.Random(seed), Zygote.shared(), LockHistory(strict=how == "strict")
    with directory_in_memory(tmp_path / str(seed)) as directory:
        path = directory / "data"
        for life in range(LIVES):
            child = zygote.start("locks_churn", str(path), f"{seed}/{life}", how, stale(history, chance))
            said = killed(child, chance, history.counts)
            try:
                history.hear(said)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, life {life}: {error}") from error
        history.hear([zygote.run("locks_churn", str(path), "", "look", stale(history, chance))])
    return history.counts


@pytest.mark.parametrize("how", ["async", "strict"])
def test_i12_killed_and_stopped_while_tasks_hold_locks(
    tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    count = -(-rounds(50, nightly=1_000) // LIVES)
    due = "granted", "renewed", "lost", "refused", "stopped", *(["grants not recorded"] if how == "async" else [])
    counts, seeds = tally(lambda seed: lives(tmp_path, seed, how), count, due)
    with capsys.disabled():
        print(f"\n{LIVES * seeds} holders killed ({how}): {dict(sorted(counts.items()))}")
    assert min(counts[each] for each in ("granted", "renewed", "lost", "refused", "stopped")) > 0
    assert (counts["grants not recorded"] > 0) == (how == "async"), "the kill met grants that were not recorded yet"
