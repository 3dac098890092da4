"""The store on RocksDB: the laws of every store, atomic batches, damage, threads, and what a read may cost."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from deltalog.rocks import Rocks, SharedMemory
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.store import DeltaStore
from tests.conftest import Rounds
from tests.laws.delta_store import DeltaStoreLaws
from tests.laws.store_machine import run_store_machine

MEMORY = SharedMemory()


def opened(path: Path, kind: type[RocksStore] = RocksStore) -> RocksStore:
    """Open the store in a directory; where there is none, a copy of an empty one."""
    if not path.exists():
        shutil.copytree(_empty(), path)
    return kind(partial(Rocks.open, path, FAMILIES, MEMORY), b"store id 16 byte")


@cache
def _empty() -> Path:
    """An empty database, made once: that takes longer than most tests."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    Rocks.create(Path(directory.name) / "empty", FAMILIES, MEMORY).close()
    return Path(directory.name) / "empty"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = opened(tmp_path / "store")
    yield store
    store.close()


class TestRocksStore(DeltaStoreLaws):
    """The laws."""

    def open_store(self, path: Path) -> DeltaStore:
        return opened(path)


def test_the_store_on_rocksdb_against_a_model(tmp_path: Path, rounds: Rounds) -> None:
    run_store_machine(opened, tmp_path, examples=rounds(25, nightly=2000))
