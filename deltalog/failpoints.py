"""Named places where a test makes this process fail: the smallest file of the project, on its lowest floor.

`reach(name)` costs one dictionary test and does nothing unless a test armed that name in this process. Names stand
in `POINTS`, so a test can walk all of them; an unknown name is a programmer's error at arming time. Nothing outside
the process (no environment variable, no file) can arm a point.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS: frozenset[str] = frozenset(
    {
        # the writer, in the order of one group commit
        "writer.drain.before",
        "writer.drain.after",
        "writer.commit.before",
        "writer.commit.after",
        "writer.publish.after",
        "writer.reopen.before",
        # the store: around each batch that reaches RocksDB
        "store.write.before",
        "store.write.after",
        "store.sync.before",
        "store.sync.after",
        "store.truncate.before",
        "store.truncate.after",
        "store.erase.before",
        "store.erase.after",
        "store.merge.before",
        "store.merge.after",
        # the witness
        "witness.record.before",
        "witness.record.after",
    }
)
"""Every place the code can be made to fail at."""

_armed: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Run what a test armed at `name`; nothing otherwise."""
    if _armed:
        action = _armed.get(name)
        if action is not None:
            action()


def arm(name: str, action: Callable[[], None]) -> None:
    """Run `action` each time `name` is reached, until `disarm`."""
    if name not in POINTS:
        raise KeyError(f"no failpoint {name!r}")
    _armed[name] = action


def disarm() -> None:
    """Make every point do nothing again."""
    _armed.clear()
