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
        "writer.publish.before",
        "writer.publish.after",
        "writer.reopen.before",
        "writer.reopen.after",
        # the log
        "log.truncate.before",
        "log.truncate.after",
        "log.erase.before",
        "log.erase.after",
        "log.drain.before",
        "log.drain.after",
        # the manager
        "manager.upkeep.before",
        "manager.upkeep.after",
        "manager.reopen.before",
        "manager.reopen.after",
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
        "store.annotate.before",
        "store.annotate.after",
        "store.initialise.before",
        "store.initialise.after",
        "store.meta.before",
        "store.meta.after",
        "store.flush.before",
        "store.flush.after",
        "store.compact.before",
        "store.compact.after",
        "store.reopen.before",
        "store.reopen.after",
        "store.close.before",
        "store.close.after",
        # the witness
        "witness.create.before",
        "witness.create.after",
        "witness.record.before",
        "witness.record.after",
        "witness.sync.before",
        "witness.sync.after",
        # the data directory
        "directory.make.before",
        "directory.make.after",
        "directory.lock.before",
        "directory.lock.after",
        "directory.identity.before",
        "directory.identity.after",
        "directory.reserve.before",
        "directory.reserve.after",
        # opening and closing
        "startup.create.before",
        "startup.create.after",
        "startup.preflight.before",
        "startup.preflight.after",
        "startup.open.before",
        "startup.open.after",
        "startup.incarnation.before",
        "startup.incarnation.after",
        "startup.record.before",
        "startup.record.after",
        "startup.close.before",
        "startup.close.after",
        # what a damaged write-ahead log still holds
        "salvage.copy.before",
        "salvage.copy.after",
        "salvage.replace.before",
        "salvage.replace.after",
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
