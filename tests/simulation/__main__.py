"""Run seeds: `python -m tests.simulation SEED` or `python -m tests.simulation FROM UNTIL` (exclusive)."""

from __future__ import annotations

import sys
import time

from tests.simulation.cluster import Plan, simulate
from tests.simulation.truth import Violation


def main(arguments: list[str]) -> int:
    """Say what became of each seed; return how many broke something, at most 1."""
    first = int(arguments[0])
    last = int(arguments[1]) if len(arguments) > 1 else first + 1
    broken, began = 0, time.perf_counter()
    for seed in range(first, last):
        if last == first + 1:
            print(Plan.of(seed))
        try:
            outcome = simulate(seed)
        except Violation as violation:
            broken += 1
            print(f"seed {seed}: {violation}\n  again: python -m tests.simulation {seed}", flush=True)
        else:
            if last == first + 1:
                print(outcome)
        if not (seed + 1) % 1000:
            print(f"{seed + 1 - first} seeds, {broken} broken so far", flush=True)
    print(f"{last - first} seeds, {broken} broken, {(last - first) / (time.perf_counter() - began):.1f} seeds/s")
    return min(1, broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
