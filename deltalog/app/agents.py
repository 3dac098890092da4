"""A session of simulated agents that edit files, as deltas: the same for the same seed, to the last byte.

Each agent works in bursts on one file, and now and then takes in what the others did; so some edits know each other and
some are concurrent. The clock is a made-up one. Pure: nothing here reads or writes anything.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final

import attrs

from deltalog.clock import Clock, from_iso, unpack
from deltalog.codec import build
from deltalog.delta import Delta

BEGIN: Final = from_iso("2024-05-06T09:00:00Z")
"""When the session begins."""
STEP_MS: Final = 60
"""About how far apart two edits are, over all agents."""
NAMES: Final = ("ada", "brook", "cyrus", "dina", "emil", "fern", "gita", "hugo")
FILES: Final = tuple(f"{folder}/{name}.py" for folder in ("src", "tests") for name in ("log", "ring", "store", "sync"))

_LINES: Final = (
    "def flush(self) -> None:",
    "    return self.heads.get(source, 0)",
    "for delta in page:",
    "    if delta.seq <= head:",
    "        continue",
    "async with open_log(path) as log:",
    "    await log.append(payload, durable=True)",
    "assert log.heads == {'ada': 3}",
    "# what was flushed survives",
    "",
)
_SWITCH: Final = 0.04
_PULL: Final = 0.15
_INSERT, _REPLACE = 0.6, 0.85


@attrs.define
class _Agent:
    name: str
    file: str
    clock: Clock
    seq: int = 0
    seen: dict[str, int] = attrs.field(factory=dict)
    fresh: dict[str, int] = attrs.field(factory=dict)
    """Deps of its next edit."""

    def pull(self, agents: Iterable[_Agent]) -> None:
        """Take in everything the others did so far."""
        for other in agents:
            if other is not self and other.seq > self.seen.get(other.name, 0):
                self.seen[other.name] = self.fresh[other.name] = other.seq
                self.clock.observe(other.clock.last)

    def edit(self, rng: random.Random) -> Delta:
        """Make the next edit."""
        if rng.random() < _SWITCH:
            self.file = rng.choice(FILES)
        self.seq += 1
        deps, self.fresh = self.fresh, {}
        payload = _edit(rng)
        return build(self.name, self.seq, self.clock.tick(), payload, deps=deps, kind="edit", key=self.file)


def _edit(rng: random.Random) -> dict[str, Any]:
    line, kind = rng.randrange(400), rng.random()
    if kind < _INSERT:
        return {"op": "insert", "line": line, "text": rng.choice(_LINES)}
    if kind < _REPLACE:
        return {"op": "replace", "line": line, "text": rng.choice(_LINES)}
    return {"op": "delete", "line": line}


def session(seed: int, count: int) -> Iterator[Delta]:
    """The first `count` edits of the session, causes before effects."""
    rng = random.Random(seed)  # noqa: S311  # a story, not a secret
    now_ms = unpack(BEGIN)[0]

    def wall_ns() -> int:
        return now_ms * 1_000_000

    agents = [_Agent(name, rng.choice(FILES), Clock(wall_ns=wall_ns)) for name in NAMES]
    for _ in range(count):
        now_ms += rng.randrange(2 * STEP_MS)
        agent = rng.choice(agents)
        if rng.random() < _PULL:
            agent.pull(agents)
        yield agent.edit(rng)


class Files:
    """The state that the edits fold into: lines of each file. Edits are applied in the order they are given."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    def apply(self, delta: Delta) -> None:
        """Apply one edit; whatever is not an edit changes nothing."""
        if delta.kind != "edit" or delta.erased:
            return
        lines, edit = self.lines.setdefault(delta.key, []), delta.payload
        at = min(edit["line"], len(lines))
        if edit["op"] == "insert":
            lines.insert(at, edit["text"])
        elif at < len(lines):
            lines[at : at + 1] = [edit["text"]] if edit["op"] == "replace" else []

    def digest(self) -> str:
        """A hash over all files."""
        state = blake2b(digest_size=8)
        for name in sorted(self.lines):
            state.update(f"{name}\n{len(self.lines[name])}\n".encode())
            state.update("\n".join(self.lines[name]).encode())
        return state.hexdigest()
