"""A damaged write-ahead log: what stands before the damage is kept, what is gone is named, the original set aside."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from deltalog import failpoints, salvage, walguard
from deltalog.errors import DataLoss, StoreCorrupt, StoreFull
from tests.conftest import Rounds
from tests.deltalog.directories import begun, digest, flip, killed, lost, rocks, session, wal
from tests.deltalog.rocks_stores import directory_in_memory


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as directory:
        yield directory / "data"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


SYNCED, WRITTEN, HANDED_OUT = 30, 12, 3


def crashed(path: Path) -> tuple[list[int], list[int]]:
    """A killed session, all of it in the write-ahead log: 30 deltas fsynced, 12 written, 3 handed out.

    Returns the offsets in the log where each write of a fsynced, and of a written delta, ended.
    """
    with killed(path, source="alice") as opened:
        synced, written = [], []
        for _ in range(SYNCED):
            opened.write(1)
            synced.append(wal(path).stat().st_size)
        for _ in range(WRITTEN):
            opened.write(1, sync=False)
            written.append(wal(path).stat().st_size)
        opened.hand_out(HANDED_OUT)
    return synced, written


def records(log: Path) -> list[int]:
    """Offsets of the physical records of a log of less than one block."""
    data, offsets, position = log.read_bytes(), [], 0
    while position + walguard.HEADER_BYTES <= len(data):
        offsets.append(position)
        position += walguard.HEADER_BYTES + struct.unpack_from("<H", data, position + 4)[0]
    return offsets


def refused(path: Path, *, torn: bool = False) -> DataLoss:
    before = digest(path)
    with pytest.raises(DataLoss, match="Nothing was changed") as caught:
        begun(path)
    assert digest(path) == before
    if not torn:
        assert isinstance(caught.value.__cause__, StoreCorrupt)
        assert str(caught.value.__cause__) in str(caught.value)
    return caught.value


# How one record of the log, from an offset to another, may be damaged: so that a checksum tells, or so that none does.
DAMAGES: dict[str, Callable[[Path, int, int], None]] = {
    "payload flipped": lambda log, begin, end: flip(log, (begin + end) // 2),
    "checksum flipped": lambda log, begin, _: flip(log, begin),
    "a type that RocksDB never stops reading": lambda log, begin, _: flip(log, begin + 6, 2),
    "a length beyond the end": lambda log, begin, _: flip(log, begin + 5, 6),
    "zeros, then more": lambda log, begin, end: overwrite(log, begin, bytes(end - begin)),
    "garbage to the end": lambda log, begin, _: overwrite(log, begin, b"\xaa" * (log.stat().st_size - begin)),
    "short garbage to the end": lambda log, begin, _: overwrite(log, begin, b"\1" * (log.stat().st_size - begin)),
}
TORN = {"garbage to the end"}
"""What looks like a write that the crash cut off: a length that goes past the end."""


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_i2_damage_behind_what_was_fsynced_costs_what_nobody_was_promised(path: Path, damage: str) -> None:
    _, written = crashed(path)
    log = wal(path)
    DAMAGES[damage](log, written[3], written[4])
    damaged = log.read_bytes()
    with session(path) as opened:
        report = opened.report
        assert report.kind == "unclean"
        assert opened.heads == {"alice": SYNCED + 4}
        assert lost(report) == {"alice": (SYNCED + 5, SYNCED + WRITTEN + HANDED_OUT)}
        assert report.incarnation_of == "alice"
        assert (str(log) in report.damage or "Corruption" in report.damage) == (damage not in TORN)
        opened.write(1)
    aside = [file.read_bytes() for file in path.glob(f"backups/wal-*/{log.name}")]
    assert aside == [damaged] * (damage not in TORN), "evidence is kept"
    with session(path) as opened:
        assert (opened.report.kind, opened.report.damage) == ("clean", "")
        assert opened.heads["alice"] == SYNCED + 4
    assert not list(path.glob("rocks/delta.*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_i2_damage_in_what_was_fsynced_is_named_dot_by_dot(path: Path, damage: str) -> None:
    synced, _ = crashed(path)
    DAMAGES[damage](wal(path), synced[9], synced[10])
    for _ in range(2):
        assert refused(path, torn=damage in TORN).lost == {"alice": (11, SYNCED)}
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, opened.heads) == ("lost", {"alice": 10})
        assert lost(opened.report) == {"alice": (11, SYNCED + WRITTEN + HANDED_OUT)}
        assert opened.source != "alice"
        opened.write(1)
    with session(path) as opened:
        assert opened.report.kind == "clean"


def test_i2_any_bit_of_the_log(path: Path, tmp_path: Path, rounds: Rounds) -> None:
    """Fsynced and killed; then one bit of the log flips. Nothing is ever missing without being named."""
    with killed(path, source="alice") as opened:
        kept = [delta for _ in range(40) for delta in opened.write(2)]
    log = wal(path)
    whole = log.read_bytes()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    chance = random.Random(5)
    for _ in range(rounds(60, nightly=3_000)):
        put_back(path, before)
        flip(log, chance.randrange(len(whole)), chance.randrange(8))
        error = refused(path)
        ((first, last),) = error.lost.values()
        assert last == 80
        with session(path, accept_loss=True) as opened:
            assert opened.all() == kept[: first - 1]


def put_back(path: Path, files: dict[Path, bytes]) -> None:
    """Make the directory hold just these files again; those that are there stay the same files."""
    for file in [file for file in path.rglob("*") if file.is_file() and file not in files]:
        file.unlink()
    shutil.rmtree(path / "backups", ignore_errors=True)
    for file, data in files.items():
        file.write_bytes(data)


def test_i2_a_torn_tail_is_no_damage(path: Path) -> None:
    _, written = crashed(path)
    os.truncate(wal(path), written[3] + 5)
    with session(path) as opened:
        assert opened.report.damage == ""
        assert opened.heads == {"alice": SYNCED + 4}
        assert lost(opened.report) == {"alice": (SYNCED + 5, SYNCED + WRITTEN + HANDED_OUT)}
    assert not (path / "backups").exists()


def test_damage_elsewhere_is_not_cut(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(300)
    with killed(path) as opened:
        opened.write(5)
    flip(max(rocks(path).glob("*.sst"), key=lambda file: file.stat().st_size), 40)
    flip(wal(path), 20)
    before = digest(path)
    assert refused(path).lost == {"alice": (301, 305)}
    with pytest.raises(StoreCorrupt):
        begun(path, accept_loss=True)
    assert digest(path) == before


def test_a_damaged_manifest_is_not_cut(path: Path) -> None:
    crashed(path)
    manifest = max(rocks(path).glob("MANIFEST-*"))
    flip(manifest, records(manifest)[1] + 6, 2)
    before = digest(path)
    with pytest.raises(StoreCorrupt, match="MANIFEST"):
        begun(path, accept_loss=True)
    assert digest(path) == before


def test_without_a_witness_nothing_is_cut(path: Path) -> None:
    _, written = crashed(path)
    flip(wal(path), written[3] + 20)
    (path / "witness").unlink()
    with pytest.raises(StoreCorrupt):
        begun(path, accept_loss=True)


def test_logs_behind_one_that_is_cut_are_emptied(path: Path) -> None:
    """RocksDB would go on in them, over the gap."""
    synced, _ = crashed(path)
    log = wal(path)
    later = log.with_name("999999.log")
    shutil.copy(log, later)
    flip(log, synced[3] + 6, 2)
    copy = salvage.cut_copy(rocks(path))
    assert [file.stat().st_size for file in salvage.logs(copy)] == [synced[3], 0]
    assert (log.stat().st_size, later.stat().st_size) == (len(log.read_bytes()), len(log.read_bytes()))
    assert {file.stat().st_nlink for file in rocks(path).glob("*.sst")} <= {2}
    salvage.discard(copy)
    assert not copy.exists()


POINTS = [
    point
    for point in sorted(failpoints.POINTS)
    if point.startswith(("salvage.", "startup.preflight", "startup.open", "startup.incarnation", "startup.record"))
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("damage", ["payload flipped", "a type that RocksDB never stops reading"])
def test_a_salvage_that_was_cut_off_is_done_again(path: Path, point: str, damage: str) -> None:
    _, written = crashed(path)
    DAMAGES[damage](wal(path), written[3], written[4])

    def stop() -> None:
        raise trio.TooSlowError

    failpoints.arm(point, stop)
    with pytest.raises(trio.TooSlowError):
        begun(path)
    failpoints.disarm()
    with session(path) as opened:
        assert opened.heads == {"alice": SYNCED + 4}
        assert opened.source != "alice"
        if point != "startup.record.after":
            assert lost(opened.report) == {"alice": (SYNCED + 5, SYNCED + WRITTEN + HANDED_OUT)}
    assert not list(path.glob("rocks/delta.*"))


def test_a_full_disk_while_the_copy_is_made(path: Path) -> None:
    _, written = crashed(path)
    flip(wal(path), written[3] + 20)
    before = digest(path)

    def full() -> None:
        raise OSError(28, "No space left on device")

    failpoints.arm("salvage.copy.after", full)
    with pytest.raises(StoreFull):
        begun(path)
    assert digest(path) == before
