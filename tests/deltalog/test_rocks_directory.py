"""A directory seen from outside. What `open` and `create` make of it is tested with `Rocks`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltalog import rocks_directory
from deltalog.errors import StoreCorrupt, StoreError, StoreMissing


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


def test_a_file_that_is_deleted_while_it_is_counted_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction deletes files at any time."""
    files = {tmp_path / name for name in ("a.sst", "b.sst")}
    for file in files:
        file.write_bytes(b"x" * 4096)
    lstat = Path.lstat

    def deleting(path: Path) -> os.stat_result:
        for other in files - {path}:
            other.unlink()
        return lstat(path)

    left = rocks_directory.allocated_bytes(tmp_path) // 2
    monkeypatch.setattr(Path, "lstat", deleting)
    assert rocks_directory.allocated_bytes(tmp_path) == left > 0


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a note", "b"], StoreMissing, "the directory holds no store"),
        (["a note", "MANIFEST-000001"], StoreCorrupt, "CURRENT is missing, but there is 'MANIFEST-000001'"),
        (["000004.log", "000001"], StoreCorrupt, "CURRENT is missing, but there is '000004.log'"),
    ],
)
def test_without_current_the_other_files_tell_a_damaged_store_from_none(
    tmp_path: Path, names: list[str], error: type[StoreError], message: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(error, match=message):
        rocks_directory.refuse_unopenable(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)
