"""The witness when the system fails it: each error is mapped, nothing half-made stays, the next record goes through."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deltalog import failpoints
from deltalog.errors import StoreCorrupt, StoreError, StoreFull, StoreIOError, StoreMissing
from deltalog.witness import Witness
from tests.deltalog.test_witness import overwrite, place_of, recorded, reopened, told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "witness"


# ----------------------------------------------------------------------------------------------------------- failures


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def failing(error: int) -> Callable[..., int]:
    def call(*args: object) -> int:
        raise OSError(error, os.strerror(error))

    return call


ERRORS: list[tuple[int, type[StoreError]]] = [
    (errno.ENOSPC, StoreFull),
    (errno.EDQUOT, StoreFull),
    (errno.EIO, StoreIOError),
    (errno.EROFS, StoreIOError),
]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_an_error_of_the_system_is_mapped_and_the_next_record_goes_through(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: type[StoreError]
) -> None:
    recorded(path, 2)
    with closing(Witness.open(path)) as witness:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(number))
            with pytest.raises(error, match="witness") as caught:
                witness.record(told(3), durable=True)
            assert isinstance(caught.value.__cause__, OSError)
        assert witness.testimony == told(2)
        overwrite(path, place_of(3), b"torn")
        assert reopened(path) == told(2)
        witness.record(told(4), durable=True)
    assert reopened(path) == told(4)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lower how far this process may write into a file, until the end of the test or until told again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes or soft, hard))

    yield limit
    limit(0)


def test_a_slot_of_which_only_a_part_was_written_does_not_count(
    path: Path, file_size_limit: Callable[[int], None]
) -> None:
    recorded(path, 2)
    with closing(Witness.open(path)) as witness:
        file_size_limit(place_of(3) + 50)
        with pytest.raises(StoreFull, match="only a part was written"):
            witness.record(told(3))
        file_size_limit(0)
        assert witness.testimony == told(2) == reopened(path)
        witness.record(told(4))
    assert reopened(path) == told(4)


@pytest.mark.system("tmpfs")
def test_a_full_disk_leaves_no_half_witness_behind(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64 << 10)
    rest = disk / "rest"
    rest.write_bytes(bytes(48 << 10))
    before = open_files()
    with pytest.raises(StoreFull, match="No space left on device"):
        Witness.create(disk / "witness")
    assert [file.name for file in disk.iterdir()] == ["rest"]
    assert open_files() == before
    rest.unlink()
    with closing(Witness.create(disk / "witness")) as witness:
        rest.write_bytes(bytes(24 << 10))
        witness.record(told(1), durable=True)
    assert reopened(disk / "witness") == told(1)


def test_a_witness_that_is_there_is_not_made_again(path: Path) -> None:
    data = recorded(path, 2).read_bytes()
    with pytest.raises(StoreIOError, match="File exists"):
        Witness.create(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("size", [0, 4096, 36_863, 36_865])
def test_a_file_of_another_size_is_corrupt(path: Path, size: int) -> None:
    recorded(path, 2)
    os.truncate(path, size)
    before = open_files()
    with pytest.raises(StoreCorrupt, match=f"witness is {size} bytes, not 36864"):
        Witness.open(path)
    assert open_files() == before


def test_missing_linked_and_unfit_files_are_told_apart(path: Path, tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(StoreMissing, match="witness is missing, though the data it vouches for is there"):
        Witness.open(path)
    path.symlink_to(recorded(tmp_path / "elsewhere", 1))
    with pytest.raises(StoreIOError, match="symbolic links"):
        Witness.open(path)
    with pytest.raises(StoreIOError, match="File exists"):
        Witness.create(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreIOError, match="Is a directory"):
        Witness.open(path)
    assert open_files() == before


def test_closing_is_idempotent_and_gives_the_file_back(path: Path) -> None:
    before = open_files()
    witness = Witness.create(path)
    witness.close()
    witness.close()
    assert open_files() == before
    with pytest.raises(ValueError, match="released"):
        witness.mark[0] = 1


def test_only_a_durable_record_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.pwrite, os.fdatasync

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        calls.append("write")
        return write(descriptor, data, offset)

    def fdatasync(descriptor: int) -> None:
        calls.append("sync")
        sync(descriptor)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with closing(Witness.create(path)) as witness:
        witness.record(told(1))
        assert calls == ["write"]
        witness.record(told(2), durable=True)
        assert calls == ["write", "write", "sync"]


def test_what_was_newest_at_open_is_synced_once_before_anything_else_is_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may never have reached the disk, and is the one that the next records rely on."""
    calls: list[str] = []
    recorded(path, 2)
    with closing(Witness.open(path)) as witness, monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: calls.append(f"sync {reopened(path) == told(2)}"))
        witness.record(told(3))
        witness.record(told(4))
    assert calls == ["sync True"]


def test_what_a_crash_left_of_a_creation_is_replaced(path: Path) -> None:
    half = path.with_name("witness.new")
    half.write_bytes(b"half")
    Witness.create(path).close()
    assert reopened(path) is None
    assert not half.exists()


def test_a_link_that_leads_nowhere_is_not_replaced(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreIOError, match="File exists"):
        Witness.create(path)
    assert path.is_symlink()


@pytest.mark.parametrize(("point", "number"), [("witness.record.before", 1), ("witness.record.after", 2)])
def test_a_failpoint_before_and_after_a_record(path: Path, point: str, number: int) -> None:
    def fail() -> None:
        raise RuntimeError

    with closing(Witness.create(path)) as witness:
        witness.record(told(1))
        failpoints.arm(point, fail)
        try:
            with pytest.raises(RuntimeError):
                witness.record(told(2))
        finally:
            failpoints.disarm()
        assert reopened(path) == told(number)
