"""Stores on a real RocksDB, quickly made: what tests of the store, its scans and `verify` stand on."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from deltalog import keys
from deltalog.delta import Delta
from deltalog.rocks import Rocks, SharedMemory
from deltalog.rocks_store import FAMILIES, RocksStore

MEMORY = SharedMemory()
STORE_ID = b"store id 16 byte"

_S = TypeVar("_S", bound=RocksStore)
_T = TypeVar("_T")


@cache
def _empty() -> Path:
    """An empty database, made once: that takes longer than most tests."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    Rocks.create(Path(directory.name) / "empty", FAMILIES, MEMORY).close()
    return Path(directory.name) / "empty"


def opened_as(kind: type[_S], path: Path) -> _S:
    """Open the store in a directory; where there is none, a copy of an empty one.

    With a cache of its own: what an earlier open read would still stand in a shared one.
    """
    if not path.exists():
        shutil.copytree(_empty(), path)
    return kind(partial(Rocks.open, path, FAMILIES, SharedMemory()), STORE_ID)


def opened(path: Path) -> RocksStore:
    """Open the store in a directory; where there is none, a copy of an empty one."""
    return opened_as(RocksStore, path)


@contextmanager
def directory_in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory whose fsync costs nothing, where the system has one: programmes with many opens run in it."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


class CountingStore(RocksStore):
    """Counts what reads look at."""

    def __init__(self, open_db: Callable[[], Rocks], store_id: bytes | None = None) -> None:
        self.counts: Counter[str] = Counter()
        """blocks: blocks decoded, whole or in part; deltas: decoded in parts; entries: index entries read."""
        super().__init__(open_db, store_id)

    def checked(self, family: str, key: bytes, decode: Callable[[], _T]) -> _T:
        self.counts["blocks"] += family == keys.DELTAS
        self.counts["entries"] += family == keys.BY_TIME
        return super().checked(family, key, decode)

    def decode_part(self, source: str, key: bytes, value: bytes, after: int, until: int) -> tuple[list[Delta], int]:
        part, size = super().decode_part(source, key, value, after, until)
        self.counts["deltas"] += len(part)
        return part, size

    def cost(self, read: Callable[[], object]) -> Counter[str]:
        """What one read looks at."""
        self.counts.clear()
        read()
        return Counter(self.counts)
