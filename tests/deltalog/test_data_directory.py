"""The data directory from outside: made whole or made again, one holder, room set aside, evidence kept."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from deltalog import data_directory, failpoints, profiles
from deltalog.data_directory import Lock, give_back_reserve, identify, make_reserve, set_aside
from deltalog.errors import StoreFull, StoreInUse, StoreIOError
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES
from tests.deltalog.directories import begun, digest, killed, rocks, session
from tests.deltalog.rocks_stores import directory_in_memory


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as directory:
        yield directory


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def stop() -> None:
    raise trio.TooSlowError


# ------------------------------------------------------------------------------------------------------------- making

MAKING = [
    point
    for point in sorted(failpoints.POINTS)
    if re.match(r"directory\.|witness\.|startup\.(create|open|record)|store\.(initialise|meta|sync)\.", point)
]

USED = {"store.meta.after", "directory.reserve.before", "directory.reserve.after"}
"""At these the store has been told that it is in use."""


@pytest.mark.parametrize("point", MAKING)
def test_the_making_of_a_directory_goes_on_wherever_it_was_cut_off(base: Path, point: str) -> None:
    failpoints.arm(point, stop)
    with pytest.raises(trio.TooSlowError):
        begun(base / "data", source="alice", reserve_bytes=4096)
    failpoints.disarm()
    with session(base / "data", source="alice", reserve_bytes=4096) as opened:
        assert opened.report.kind == "created" or point in USED
        assert (opened.report.reason, opened.source) == ("", "alice")
        kept = opened.write(3)
    with session(base / "data") as opened:
        assert (opened.report.kind, opened.all()) == ("clean", kept)
    assert sorted(os.listdir(base / "data")) == ["deltalog.toml", "lock", "reserve", "rocks", "witness"]


def test_what_a_crash_left_half_made_is_made_anew(base: Path) -> None:
    path = base / "data"
    (path / "rocks" / "delta.creating").mkdir(parents=True)
    for name in ("deltalog.toml.new", "witness.new", "rocks/delta.creating/CURRENT"):
        (path / name).write_text("half")
    shutil.rmtree(path / "rocks")  # with it, there would be data without deltalog.toml
    with session(path, source="alice") as opened:
        opened.write(1)
    assert sorted(os.listdir(path)) == ["deltalog.toml", "lock", "rocks", "witness"]


@pytest.mark.parametrize("source", ["alice", 'a"\\\n\0\x7f\x80😀', "=\n[x]"])
def test_the_identity_is_written_down_and_read_again(base: Path, source: str) -> None:
    made = identify(base, source)
    assert made.source == source
    assert identify(base, None) == identify(base, source) == made
    assert tomllib.loads((base / "deltalog.toml").read_text())["source"] == source


# --------------------------------------------------------------------------------------------------------------- lock


def test_one_holder_at_a_time(base: Path) -> None:
    lock = Lock.take(base)
    assert (base / "lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(StoreInUse, match=f"in process {os.getpid()}"):
        Lock.take(base)
    lock.release()
    lock.release()
    Lock.take(base).release()


def test_an_undone_lock_leaves_its_text_as_it_was(base: Path) -> None:
    (base / "lock").write_text("12345\n")
    Lock.take(base).release(undo=True)
    assert (base / "lock").read_text() == "12345\n"


def test_a_file_system_without_locks_is_an_error_of_its_own(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreIOError, match="No locks available"):
        Lock.take(base)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_lock_s_text_may_fail_the_lock_not(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    lock = Lock.take(base)
    with pytest.raises(StoreInUse, match="in another process"):
        Lock.take(base)
    lock.release(undo=True)


# ------------------------------------------------------------------------------------------------------------ reserve

MIB = 1 << 20


def test_room_is_set_aside_once_and_given_back(base: Path) -> None:
    assert make_reserve(base, MIB)
    assert (base / "reserve").stat().st_blocks * 512 >= MIB
    inode = (base / "reserve").stat().st_ino
    assert make_reserve(base, MIB)
    assert (base / "reserve").stat().st_ino == inode
    assert give_back_reserve(base)
    assert not give_back_reserve(base)
    assert os.listdir(base) == []
    assert make_reserve(base, 0)
    assert os.listdir(base) == []


def test_a_reserve_that_was_cut_off_is_completed(base: Path) -> None:
    with (base / "reserve").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 10)
    assert make_reserve(base, MIB)
    assert (base / "reserve").stat().st_blocks * 512 >= MIB


@pytest.mark.system("tmpfs")
def test_room_is_not_set_aside_where_there_is_little(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(3 * MIB)
    (disk / "other").write_bytes(bytes(4096))
    assert not make_reserve(disk, MIB)
    assert make_reserve(disk, MIB // 2)


@pytest.mark.system("tmpfs")
def test_room_that_goes_meanwhile_is_given_back(small_disk: Callable[[int], Path], monkeypatch: Any) -> None:
    disk = small_disk(MIB)
    statvfs = os.statvfs

    def plenty(path: Path) -> Any:
        return statvfs("/proc/self").__class__((4096, 4096, 10**6, 10**6, 10**6, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", plenty)
    assert not make_reserve(disk, 2 * MIB)
    assert os.listdir(disk) == []


@pytest.mark.system("tmpfs")
@pytest.mark.parametrize("reserve_bytes", [8 * MIB, 0])
def test_a_full_disk_opens_with_the_reserve_and_says_so_without(
    small_disk: Callable[[int], Path], reserve_bytes: int
) -> None:
    """Recovery writes the write-ahead log out once more before it drops it."""
    disk = small_disk(64 * MIB)
    path = disk / "data"
    with killed(path, source="alice", reserve_bytes=reserve_bytes) as opened:
        kept = [delta for _ in range(20) for delta in opened.write(300)]
        gone = opened.hand_out(3)
    fill(disk)
    before = digest(path)
    if not reserve_bytes:
        with pytest.raises(StoreFull, match="No space left on device"):
            begun(path)
        assert {name: content for name, content in digest(path).items() if name in before} == before
        (disk / "ballast").unlink()
    with session(path, reserve_bytes=reserve_bytes) as opened:
        assert (disk / "ballast").exists() == bool(reserve_bytes)
        assert opened.all() == kept
        assert dict(opened.report.lost) == {"alice": (gone[0].seq, gone[-1].seq)}


def fill(disk: Path) -> None:
    """Leave no room at all."""
    free = os.statvfs(disk)
    with (disk / "ballast").open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)


# --------------------------------------------------------------------------------------------------------- set aside


@pytest.mark.parametrize("number", [0, errno.EPERM, errno.EXDEV])
def test_what_is_set_aside_stays_as_it_was(base: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With hard links where there are any, else with copies."""
    files = [base / "one", base / "two"]
    for file in files:
        file.write_text(file.name)

    def link(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(os, "link", link)
    first, second = (set_aside(base, "wal", files) for _ in range(2))
    assert first != second
    files[0].unlink()
    assert (first / "one").read_text() == (second / "one").read_text() == "one"
    assert files[1].read_text() == "two"


def test_a_link_that_fails_for_another_reason_is_an_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "one").touch()

    def link(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreIOError, match="Input/output error"):
        set_aside(base, "wal", [base / "one"])


def test_the_names_that_are_ours_are_those_that_come_into_being(base: Path) -> None:
    with session(base / "data", source="alice", reserve_bytes=4096) as opened:
        opened.write(1)
        assert set(os.listdir(base / "data")) <= data_directory.OURS
    with closing(Rocks.open(rocks(base / "data"), FAMILIES, profiles.SharedMemory())) as db:
        assert db.sequence_number()
