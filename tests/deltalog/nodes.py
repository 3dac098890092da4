"""Where a log lives between its opens: on RocksDB in real threads, or in memory in one thread; each can crash."""

from __future__ import annotations

import shutil
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Upkeep, open_log
from tests.deltalog.directories import copy_alive
from tests.deltalog.memory_log import Rig

NO_UPKEEP = Upkeep(flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)


class Node(Protocol):
    """Where a log lives between its opens."""

    def opened(self, ring: int) -> AbstractAsyncContextManager[DeltaLog]:
        """Open the log that was closed or crashed last."""
        ...

    def crash(self, unsynced: int, /) -> None:
        """Make the next open find what a crash right now would leave."""
        ...

    survives_kill: bool
    """Whether a crash spares all that is written, as the end of a process does."""


class MemoryNode:
    """Loses power: what is synced survives, and some of the rest."""

    survives_kill = False

    def __init__(self) -> None:
        self._rig = self._next = Rig()
        self._incarnation = 0

    def opened(self, ring: int) -> AbstractAsyncContextManager[DeltaLog]:
        self._rig = self._next
        source = f"alice~{self._incarnation}" if self._incarnation else "alice"
        return self._rig.running(source, ring_deltas=ring)

    def crash(self, unsynced: int) -> None:
        store = self._rig.store
        self._next = Rig(store.fork(min(unsynced, store.unsynced)))
        self._incarnation += 1


class RocksNode:
    """Is killed: a copy of its files, as the system has them, is what the next process finds."""

    survives_kill = True

    def __init__(self, path: Path) -> None:
        self._path = self._next = path
        self._copies = 0

    def opened(self, ring: int) -> AbstractAsyncContextManager[DeltaLog]:
        self._path = self._next
        options = LogOptions(ring_deltas=ring)
        return open_log(self._path, source="alice", adopt=self._copies > 0, options=options, upkeep=NO_UPKEEP)

    def crash(self, _unsynced: int) -> None:
        self._copies += 1
        self._next = self._path.with_name(f"copy{self._copies}")
        self._next.mkdir()
        for name in ("witness", "deltalog.toml"):  # the witness first: it must not know more than the store
            shutil.copy2(self._path / name, self._next / name)
        copy_alive(self._path / "rocks", self._next / "rocks", "LOCK", "LOG*")
