"""Trails on a real RocksDB, quickly made, and events to put in them."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from audit.event import Action, AuditEvent
from audit.store import FAMILIES, AuditStore
from deltalog.rocks import Rocks, SharedMemory

STORE_ID = b"store id 16 byte"


@cache
def _empty() -> Path:
    """An empty database, made once: that takes longer than most tests."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    Rocks.create(Path(directory.name) / "empty", FAMILIES, SharedMemory()).close()
    return Path(directory.name) / "empty"


def opened(path: Path, kind: Callable[..., AuditStore] = AuditStore) -> AuditStore:
    """Open the trail in a directory; where there is none, a copy of an empty one."""
    if not path.exists():
        shutil.copytree(_empty(), path)
    return kind(partial(Rocks.open, path, FAMILIES, SharedMemory()), STORE_ID)


def event(timestamp: int, action: Action = Action.ACQUIRED, **fields: Any) -> AuditEvent:
    """An event of agent a on src/app.py."""
    return AuditEvent(timestamp, action, **({"target": "src/app.py", "holder_id": "a", "lock_id": "l1"} | fields))


TARGETS = (
    "src/app.py",
    "src/app.py:1-9",
    "src/app.pyc",
    "src/a/b.py#function:f",
    "src/a/",
    "docs/x.md",
    "top",
    "/abs/x",
)


def some_events(count: int, seed: int = 1, start: int = 1_000) -> list[AuditEvent]:
    """Events of all kinds with ascending timestamps, several of which are equal."""
    chance = random.Random(seed)
    made: list[AuditEvent] = []
    timestamp = start
    actions = [action for action in Action if action is not Action.STARTED]
    for _ in range(count):
        timestamp += chance.choice((0, 0, 1, 5))
        made.append(
            AuditEvent(
                timestamp,
                chance.choice(actions),
                chance.choice(TARGETS),
                f"h{chance.randrange(4)}",
                "somebody",
                f"l{chance.randrange(20)}",
                chance.randrange(50),
                {"intention": str(chance.random())} if chance.random() < 0.5 else {},
            )
        )
    return made


def write_all(store: AuditStore, events: Sequence[AuditEvent], size: int = 100) -> None:
    """Write events in batches."""
    for start in range(0, len(events), size):
        store.write(events[start : start + size])
