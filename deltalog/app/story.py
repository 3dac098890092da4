"""A story that a demo tells: steps, what is said, and checks that fail the demo when they do not hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from deltalog.app.terminal import print_table


@attrs.define(kw_only=True)
class Story:
    """What a demo tells and checks."""

    path: Path
    """Where it keeps its data."""
    failed: list[str] = attrs.field(factory=list)
    figures: dict[str, str] = attrs.field(factory=dict)
    """The closing table."""

    def step(self, text: str) -> None:
        """Begin a step."""
        print(f"\n{text}", flush=True)

    def say(self, text: str) -> None:
        """Tell something."""
        print(f"  {text}", flush=True)

    def check(self, holds: bool, text: str) -> None:
        """Tell something that must be so."""
        if not holds:
            self.failed.append(text)
        print(f"  {'[ok]' if holds else '[FAILED]'} {text}", flush=True)

    async def run(self, tell: Callable[[], Awaitable[None]], farewell: str = "") -> int:
        """Tell it, print the table and `farewell`; return the exit code."""
        started = time.perf_counter()
        await tell()
        self.figures["all of it"] = f"{time.perf_counter() - started:.1f} s"
        print()
        print_table("in short", ("what", "figure"), list(self.figures.items()))
        if farewell:
            print(farewell)
        for text in self.failed:
            print(f"FAILED: {text}", file=sys.stderr)
        return 1 if self.failed else 0
