"""Opening a data directory that holds less than was fsynced: what is gone is named (invariant I2)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from deltalog import startup
from deltalog.errors import DataLoss
from tests.deltalog.directories import begun, digest, killed, lost, restore, retold, rocks, session, wal
from tests.deltalog.rocks_stores import directory_in_memory


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as directory:
        yield directory / "data"


# ------------------------------------------------------------------------------------------ what was fsynced is gone


def refused(path: Path, **options: Any) -> DataLoss:
    before = digest(path)
    with pytest.raises(DataLoss) as caught:
        begun(path, **options)
    assert "Nothing was changed" in str(caught.value)
    assert digest(path) == before
    return caught.value


def test_i2_an_older_copy_under_the_newer_witness_is_named_dot_by_dot(path: Path, tmp_path: Path) -> None:
    with session(path, source="alice") as opened:
        kept = opened.write(10) + opened.write(5, "bob")
    shutil.copytree(rocks(path), tmp_path / "old")
    with killed(path) as opened:
        gone = opened.write(20) + opened.write(3, "bob") + opened.write(4, "carol") + opened.hand_out(6)
    restore(tmp_path / "old", rocks(path))
    error = refused(path)
    assert error.lost == {"alice": (11, 30), "bob": (6, 8), "carol": (1, 4)}
    assert error.lost_unnamed == 0
    assert "'alice' 11..30, 'bob' 6..8, 'carol' 1..4" in str(error)
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, opened.report.incarnation_of) == ("lost", "alice")
        assert lost(opened.report) == {"alice": (11, 36), "bob": (6, 8), "carol": (1, 4)}, "and what was never written"
        assert opened.all() == kept
        assert not {delta.dot for delta in opened.write(40)} & {delta.dot for delta in gone}
    with session(path) as opened:
        assert opened.report.kind == "clean"


@pytest.mark.parametrize("damage", [Path.unlink, lambda log: os.truncate(log, 0)], ids=["deleted", "emptied"])
def test_i2_a_write_ahead_log_that_is_gone_is_named_dot_by_dot(path: Path, damage: Callable[[Path], None]) -> None:
    with session(path, source="alice") as opened:
        kept = opened.write(10)
    with killed(path) as opened:
        opened.write(20)
    damage(wal(path))
    assert refused(path).lost == {"alice": (11, 30)}
    with session(path, accept_loss=True) as opened:
        assert lost(opened.report) == {"alice": (11, 30)}
        assert opened.all() == kept


def test_i2_nothing_at_all_is_left(path: Path) -> None:
    """All was in the write-ahead log: what is left is a store that was never initialised."""
    with killed(path, source="alice") as opened:
        opened.write(20)
        opened.hand_out(1)
    wal(path).unlink()
    assert refused(path).lost == {"alice": (1, 20)}
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, lost(opened.report)) == ("lost", {"alice": (1, 21)})
        assert (opened.heads, opened.report.incarnation_of) == ({}, "alice")
        kept = opened.write(2)
    with session(path) as opened:
        assert (opened.report.kind, opened.all()) == ("clean", kept)


def test_i2_the_store_s_directory_is_missing(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(20)
        opened.write(3, "bob")
    shutil.rmtree(rocks(path))
    assert refused(path).lost == {"alice": (1, 20), "bob": (1, 3)}
    assert not rocks(path).exists()
    with session(path, accept_loss=True) as opened:
        assert lost(opened.report) == {"alice": (1, 20), "bob": (1, 3)}
        assert opened.write(1)[0].dot == (opened.source, 1)
        assert opened.source != "alice"


def test_i2_sources_beyond_those_the_witness_names_are_counted(path: Path, tmp_path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(1)
    shutil.copytree(rocks(path), tmp_path / "old")
    with session(path) as opened:
        for number in range(startup.NAMED_MAX + 30):
            opened.write(2, f"source {number}")
    restore(tmp_path / "old", rocks(path))
    error = refused(path)
    assert set(error.lost) == {f"source {number}" for number in range(30, startup.NAMED_MAX + 30)}
    assert error.lost_unnamed == 60
    assert "60 deltas of sources the witness has no room to name" in str(error)
    with session(path, accept_loss=True) as opened:
        assert opened.report.lost_unnamed == 60


def test_i2_unnamed_ones_alone_are_a_loss(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(5)
    retold(path, lambda told: attrs.evolve(told, total=told.total + 7))
    assert refused(path).lost_unnamed == 7
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, opened.report.lost_unnamed, opened.report.incarnation_of) == ("lost", 7, "alice")


def test_i2_writes_other_than_deltas_are_missed_too(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(5)
    with killed(path) as opened:
        opened.data.store.erase("alice", 3, "a reason", 1)
        opened.sync()
    os.truncate(wal(path), 0)
    assert "writes other than deltas are gone" in str(refused(path))
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, lost(opened.report), opened.report.incarnation_of) == ("lost", {}, "alice")


def test_what_was_dropped_on_purpose_is_not_missed(path: Path) -> None:
    with killed(path, source="alice") as opened:
        opened.write(100)
        opened.data.store.truncate({"alice": 60})
    with killed(path) as opened:
        assert (opened.report.reason, opened.report.deltas) == ("", 40)
        opened.data.store.truncate({"alice": 100})
        opened.sync()
    with session(path) as opened:
        assert (opened.report.reason, opened.report.deltas, opened.heads) == ("", 0, {"alice": 100})


# ------------------------------------------------------------------------------------------------------- the witness


def test_i1_an_older_witness_put_back_is_a_doubt(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(10)
    old = (path / "witness").read_bytes()
    with killed(path) as opened:
        opened.write(10)
        opened.hand_out(5)
    (path / "witness").write_bytes(old)
    with session(path) as opened:
        assert opened.report.reason == "its witness is older than its store"
        assert opened.heads == {"alice": 20}
        assert opened.source != "alice"


def test_the_witness_may_lag_behind(path: Path) -> None:
    with killed(path, source="alice") as opened:
        opened.write(10)
        kept = opened.all() + opened.write(10, sync=False) + opened.write(3, "bob", sync=False)
    with session(path) as opened:
        assert (opened.report.kind, opened.report.reason) == ("unclean", "")
        assert opened.all() == kept
