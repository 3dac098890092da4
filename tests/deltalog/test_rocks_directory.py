"""A directory seen from outside. What `open` and `create` make of it is tested with `Rocks`."""

from __future__ import annotations

import os
from pathlib import Path

from deltalog import rocks_directory


def test_allocated_bytes_counts_blocks_not_lengths(tmp_path: Path) -> None:
    assert rocks_directory.allocated_bytes(tmp_path) == 0
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    assert rocks_directory.allocated_bytes(tmp_path) < 1 << 20
    (tmp_path / "full").write_bytes(os.urandom(1 << 20))
    assert rocks_directory.allocated_bytes(tmp_path) >= 1 << 20


def test_lock_is_told_by_inode(tmp_path: Path) -> None:
    assert rocks_directory.lock_id(tmp_path) is None
    (tmp_path / "LOCK").touch()
    first = rocks_directory.lock_id(tmp_path)
    assert first is not None
    (tmp_path / "other").touch()
    (tmp_path / "other").rename(tmp_path / "LOCK")
    assert rocks_directory.lock_id(tmp_path) not in (None, first)


def test_is_open_here(tmp_path: Path) -> None:
    (tmp_path / "LOCK").touch()
    lock = rocks_directory.lock_id(tmp_path)
    assert lock is not None
    assert not rocks_directory.is_open_here(lock)
    with (tmp_path / "LOCK").open():
        assert rocks_directory.is_open_here(lock)
    assert not rocks_directory.is_open_here(lock)


def test_absolute_path_is_kept(tmp_path: Path) -> None:
    assert rocks_directory.absolute(tmp_path / "a") == tmp_path / "a"
    assert rocks_directory.absolute("a") == Path.cwd() / "a"
