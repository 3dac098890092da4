"""Whole clusters under faults, one seed after another (T5). `python -m tests.simulation SEED` runs one again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import Rounds
from tests.simulation.cluster import CONVERGENCE_S, simulate
from tests.simulation.faults import KINDS
from tests.simulation.truth import Violation

PARTS = 3
"""The seeds are shared out over so many tests, which may run side by side."""
AGAIN = range(20)
"""Seeds that are run twice."""


@pytest.mark.parametrize("part", range(PARTS))
def test_i1_to_i6_i13_i14_hold_and_all_converge_whatever_happens(rounds: Rounds, part: int) -> None:
    faults, incarnations, conflicts = Counter[str](), 0, 0
    broken: list[str] = []
    for seed in range(part, rounds(150, nightly=10_000), PARTS):
        try:
            outcome = simulate(seed)
        except Violation as violation:
            broken.append(f"{violation}\n  again: python -m tests.simulation {seed}")
            continue
        faults += outcome.faults
        incarnations += outcome.incarnations
        conflicts += outcome.conflicts
    assert not broken, f"{len(broken)} broken:\n" + "\n".join(broken[:5])
    assert set(faults) == set(KINDS), "not every fault came"
    assert incarnations, "no node lost its tail"
    assert conflicts, "all deltas knew each other"


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone(kind: str) -> None:
    outcomes = [simulate(seed, (kind,)) for seed in range(3)]
    assert sum(outcome.faults[kind] for outcome in outcomes)
    assert max(outcome.converged_s for outcome in outcomes) <= CONVERGENCE_S


def test_i1_an_old_backup_that_nobody_noticed_gets_its_own_deltas_back_before_it_goes_on() -> None:
    outcomes = [simulate(seed, ("save", "put_back", "cut")) for seed in range(12)]
    assert sum(outcome.faults["put_back"] for outcome in outcomes)


def test_without_faults_each_delta_crosses_into_a_node_once() -> None:
    outcomes = [simulate(seed, ()) for seed in range(5)]  # `simulate` counts them
    assert [outcome.known for outcome in outcomes] == [0] * 5
    assert all(outcome.crossed for outcome in outcomes)


def test_the_same_seed_is_the_same_run_here_and_in_another_process() -> None:
    here = [simulate(seed).trace for seed in AGAIN]
    assert [simulate(seed).trace for seed in AGAIN] == here
    assert len(set(here)) == len(here)
    program = (
        f"from tests.simulation.cluster import simulate\nfor seed in range({len(AGAIN)}): print(simulate(seed).trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == here
