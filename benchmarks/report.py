"""Figures: taken side by side in one run, written as JSON and as a table, each against its budget."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    budget: str = ""
    """As the design states it: ">= 0.5", "< 3", or "" if there is none."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it keeps its budget; None if it has none."""
        if not self.budget:
            return None
        sign, bound = self.budget.split()
        limit = float(bound.replace(",", ""))
        return {">=": self.value >= limit, "<=": self.value <= limit, "<": self.value < limit}[sign]


def median_of(rounds: int, measure: Callable[[], float]) -> float:
    """The median of several runs."""
    return statistics.median([measure() for _ in range(rounds)])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(figures: Sequence[Figure]) -> str:
    """A table for reading."""
    marks = {True: "met", False: "MISSED", None: ""}
    rows = [("figure", "value", "unit", "budget", "", "note")]
    rows += [
        (f.name, f"{f.value:,.3g}" if f.value < 100 else f"{f.value:,.0f}", f.unit, f.budget, marks[f.met], f.note)
        for f in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )


def write(figures: Sequence[Figure], file: Path) -> None:
    """JSON beside the table."""
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.release()}
    rows: list[dict[str, Any]] = [{**attrs.asdict(figure), "met": figure.met} for figure in figures]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "figures": rows}, indent=2) + "\n", encoding="utf-8")
