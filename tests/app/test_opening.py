"""Looking at a directory changes nothing, finds what its witness misses, and excludes everybody else."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from deltalog.app.opening import DataOptions, inspected, opened, startup_lines, witness_faults
from deltalog.errors import StoreInUse, StoreMissing
from deltalog.keys import Head
from deltalog.startup import StartupReport
from tests.app.invoked import digest


async def make(path: Path, count: int = 5) -> None:
    async with opened(DataOptions(path), create=True, source="here") as manager:
        await manager.log.append_many(range(count))


async def test_inspecting_reads_what_is_there_and_changes_nothing(tmp_path: Path) -> None:
    await make(tmp_path / "data")
    before = digest(tmp_path)
    with inspected(tmp_path / "data") as store:
        assert store.heads()["here"].seq == 5
        assert [delta.payload for delta in store.by_source("here", 0, 5).page(10)] == list(range(5))
        assert list(witness_faults(tmp_path / "data", store.heads())) == []
    assert digest(tmp_path) == before


async def test_a_log_that_is_open_cannot_be_inspected_nor_the_other_way_round(tmp_path: Path) -> None:
    await make(tmp_path / "data")
    async with opened(DataOptions(tmp_path / "data")):
        with pytest.raises(StoreInUse, match="is open in process"), inspected(tmp_path / "data"):
            pass
    with inspected(tmp_path / "data"):
        with pytest.raises(StoreInUse, match="is open in"):
            async with opened(DataOptions(tmp_path / "data")):
                pass
        with pytest.raises(StoreInUse, match="is open in"), inspected(tmp_path / "data"):
            pass
    async with opened(DataOptions(tmp_path / "data")) as manager:
        assert manager.startup.kind == "clean"


def test_what_is_no_data_directory_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="does not exist"), inspected(tmp_path / "none"):
        pass
    with pytest.raises(StoreMissing, match="has no deltalog.toml"), inspected(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


async def test_i2_deltas_that_were_fsynced_and_are_gone_are_named(tmp_path: Path) -> None:
    await make(tmp_path / "data", 5)
    faults = list(witness_faults(tmp_path / "data", {"here": Head(seq=3), "other": Head(seq=1)}))
    assert faults == ["'here': deltas 4 to 5 were fsynced and are gone"]
    assert list(witness_faults(tmp_path / "data", {})) == ["'here': deltas 1 to 5 were fsynced and are gone"]
    (tmp_path / "data/witness").unlink()
    with pytest.raises(StoreMissing, match="witness is missing"):
        list(witness_faults(tmp_path / "data", {}))


async def test_a_cancelled_verb_closes_the_log_in_order(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with opened(DataOptions(tmp_path / "data"), create=True) as manager:
            manager.log.append_nowait(1)
            scope.cancel()
            await trio.sleep_forever()
    async with opened(DataOptions(tmp_path / "data")) as manager:
        assert manager.startup.kind == "clean"
        assert sum(manager.log.heads.values()) == 1


def test_an_opening_as_always_says_nothing_and_another_says_what_is_lost_and_who_goes_on() -> None:
    def report(**fields: object) -> StartupReport:
        usual = {"kind": "clean", "source": "here", "incarnation_of": "", "reason": "", "lost": {}, "sources": 1}
        return StartupReport(**{**usual, "deltas": 9, **fields})  # type: ignore[arg-type]  # one of each kind

    assert list(startup_lines(report())) == []
    lines = list(
        startup_lines(
            report(
                source="here~1",
                incarnation_of="here",
                reason="it was",
                lost={"here": (3, 1200)},
                lost_unnamed=2,
                damage="it was cut",
            )
        )
    )
    assert lines == [
        "'here' lost its deltas 3 to 1,200 (1,198) when the log was not closed in order",
        "2 more fsynced deltas are lost, of sources that the witness had no room to name",
        "it was cut",
        "it was; so that no number is used twice, this log goes on as 'here~1', and 'here' stays as it is",
    ]
