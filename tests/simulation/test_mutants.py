"""The simulation finds every bug that was put in on purpose (T5b), and says so where there is none to find."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import simulate
from tests.simulation.mutants import CANARY, MUTANTS, Mutant
from tests.simulation.truth import Violation

SEEDS = 40
"""A mutant must be found within so many."""


def found(mutant: Mutant) -> tuple[int, str]:
    """The first seed that finds a mutant, and how it shows; (-1, "") if it survives."""
    for seed in range(SEEDS):
        try:
            with mutant.applied():
                simulate(seed, mutant.kinds)
        except Violation as violation:
            return seed, str(violation)
    return -1, ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what.replace(" ", "-"))
def test_each_mutant_is_killed(mutant: Mutant) -> None:
    _, violation = found(mutant)
    assert mutant.finds in violation


def test_the_canary_dies() -> None:
    with CANARY.applied(), pytest.raises(Violation, match="canary"):
        simulate(0, ())
