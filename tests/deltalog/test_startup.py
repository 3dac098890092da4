"""Opening a data directory: each way the last session may have ended, and who appends afterwards (invariants I1, I2).

What a loss does stands in test_startup_loss, refused opens in test_startup_refused, damaged logs in test_salvage.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from deltalog import failpoints, witness
from deltalog.clock import Clock
from deltalog.errors import ForeignData, UsageError
from deltalog.manager import open_log
from tests.deltalog.directories import (
    begun,
    delta_of,
    killed,
    lost,
    session,
)
from tests.deltalog.rocks_stores import directory_in_memory


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as directory:
        yield directory / "data"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def next_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine was started anew."""
    monkeypatch.setattr(witness, "boot_id", lambda: "another start of the machine")


# ------------------------------------------------------------------------------------------------- nothing was lost


def test_a_directory_is_created_for_its_source(path: Path) -> None:
    with session(path, source="alice") as opened:
        assert attrs.asdict(opened.report) == {
            "kind": "created",
            "source": "alice",
            "incarnation_of": "",
            "reason": "",
            "lost": {},
            "lost_unnamed": 0,
            "damage": "",
            "sources": 0,
            "deltas": 0,
        }
        opened.write(3)
    assert sorted(os.listdir(path)) == ["deltalog.toml", "lock", "rocks", "witness"]
    assert path.stat().st_mode & 0o777 == 0o700


def test_without_a_name_it_gets_one_and_keeps_it(path: Path) -> None:
    with session(path) as opened:
        source = opened.source
        assert source.startswith("node-")
    with session(path) as opened, session(path.with_name("other")) as other:
        assert opened.source == source != other.source


def test_i2_closed_in_order_everything_is_there(path: Path) -> None:
    with session(path, source="alice") as opened:
        mine, hers = opened.write(300), opened.write(20, "bob")
    with session(path, recent=50) as opened:
        report = opened.report
        assert (report.kind, report.reason, report.sources, report.deltas) == ("clean", "", 2, 320)
        assert opened.all() == mine + hers
        assert [delta.dot for delta in opened.data.recent] == [delta.dot for delta in (mine + hers)[-50:]]
    with session(path) as opened:
        assert opened.report.kind == "clean", "and again, when nothing was appended"


def test_i2_not_closed_but_all_handed_out_was_written(path: Path) -> None:
    with killed(path, source="alice") as opened:
        mine = opened.write(3) + opened.write(2, sync=False)
    with session(path) as opened:
        assert (opened.report.kind, opened.report.reason, lost(opened.report)) == ("unclean", "", {})
        assert opened.source == "alice"
        assert opened.all() == mine
        assert opened.write(1)[0].seq == 6


def test_a_session_that_appended_nothing_may_end_in_any_way(path: Path) -> None:
    for kind in ("created", "unclean", "unclean"):
        with killed(path, source="alice") as opened:
            assert (opened.report.kind, opened.source) == (kind, "alice")


# ------------------------------------------------------------------------------------ handed out and never written


def test_i1_what_was_handed_out_and_not_written_is_named_and_its_dots_stay_free(path: Path) -> None:
    with killed(path, source="alice") as opened:
        kept = opened.write(10)
        gone = opened.hand_out(7)
    with killed(path) as opened:
        report = opened.report
        assert report.kind == "unclean"
        assert report.reason == "the process ended before 7 appended deltas were written"
        assert lost(report) == {"alice": (11, 17)}
        assert (report.incarnation_of, opened.source) == ("alice", report.source)
        assert report.source.startswith("alice~")
        assert opened.all() == kept
        kept += opened.write(4)
        assert kept[-1].dot == (report.source, 4)
        gone += opened.hand_out(2)
    with session(path) as opened:
        assert opened.report.incarnation_of == report.source
        assert lost(opened.report) == {report.source: (5, 6)}
        fresh = opened.write(3)
    assert len({delta.dot for delta in kept + gone + fresh}) == 26
    with session(path) as opened:
        assert (opened.report.kind, opened.source) == ("clean", fresh[0].source)
        assert opened.all() == kept + fresh


KILLED = """
import os, signal, sys, trio
from deltalog.manager import open_log
async def main():
    async with open_log(sys.argv[1], source="alice") as log:
        for number in range(40):
            log.append_nowait(number)
        await log.flush()
        for number in range(25):
            log.append_nowait(number)
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""


def test_i1_a_killed_process_leaves_the_exact_count(path: Path) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, check=False)
    assert child.returncode == -signal.SIGKILL
    with session(path) as opened:
        assert lost(opened.report) == {"alice": (41, 65)}
        assert opened.heads == {"alice": 40}
        assert opened.source != "alice"


def test_i1_what_the_machine_took_with_it_nobody_knows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed(path, source="alice") as opened:
        opened.write(10)
    next_boot(monkeypatch)
    with session(path) as opened:
        assert opened.report.kind == "unclean"
        assert opened.report.reason.startswith("the machine stopped while the log was open")
        assert opened.report.incarnation_of == "alice"
        assert opened.heads == {"alice": 10}
    with session(path) as opened:
        assert (opened.report.kind, opened.report.reason) == ("clean", "")


def test_a_machine_that_stops_after_the_log_does_no_harm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(path, source="alice") as opened:
        opened.write(10)
    next_boot(monkeypatch)
    with session(path) as opened:
        assert (opened.report.kind, opened.source) == ("clean", "alice")


@pytest.mark.parametrize("mark", [0, 9, 2**63, 2**64 - 1])
def test_i1_a_mark_that_cannot_be_right_is_a_doubt(path: Path, mark: int) -> None:
    with killed(path, source="alice") as opened:
        opened.write(10)
        opened.data.witness.mark[0] = mark
    with session(path) as opened:
        assert opened.report.reason == "the mark of what was handed out is damaged"
        assert (opened.report.incarnation_of, lost(opened.report)) == ("alice", {})


def test_i1_where_the_start_of_the_machine_is_not_known_every_kill_is_a_doubt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_line = witness._first_line
    monkeypatch.setattr(witness, "_first_line", lambda file: first_line(f"{path}{file}"))
    with killed(path, source="alice") as opened:
        opened.write(10)
    with session(path) as opened:
        assert opened.report.reason.startswith("the machine stopped while the log was open")
        assert (opened.report.incarnation_of, opened.heads) == ("alice", {"alice": 10})
        opened.write(1)
    with session(path) as opened:
        assert (opened.report.kind, opened.report.reason) == ("clean", "")


def test_i1_a_witness_from_before_the_last_incarnation_is_a_doubt(path: Path) -> None:
    with killed(path, source="alice") as opened:
        mine = opened.write(10)
    older = (path / "witness").read_bytes()
    with killed(path) as opened:
        opened.hand_out(3)
    with killed(path) as opened:
        second = opened.source
        mine += opened.write(2)
    with (path / "witness").open("r+b") as file:  # in place: it stays the same file
        file.write(older)
    with session(path) as opened:
        assert opened.report.reason == "an open that began a new incarnation was cut off"
        assert opened.report.incarnation_of == "alice"
        assert opened.source not in ("alice", second)
        assert opened.all() == mine


@pytest.mark.parametrize("source", ["x" * 255, "é" * 127, "😀" * 63 + "abc"])
def test_the_name_of_an_incarnation_is_within_the_limit_of_names(path: Path, source: str) -> None:
    with killed(path, source=source) as opened:
        opened.hand_out(1)
    with session(path) as opened:
        assert len(opened.source.encode()) <= 255
        assert opened.source[:60] == source[:60]
        assert opened.write(1)[0].dot == (opened.source, 1)


BEGINNING = [
    point
    for point in sorted(failpoints.POINTS)
    if point.startswith(("startup.", "store.meta.", "witness.record.", "witness.sync.", "directory.lock"))
    and "close" not in point
    and "create" not in point
]


@pytest.mark.parametrize("point", BEGINNING)
def test_i1_a_new_incarnation_that_was_cut_off_is_begun_again(path: Path, point: str) -> None:
    """Whatever the first attempt did: the second one names the same dots, and no dot of either is used twice."""
    with killed(path, source="alice") as opened:
        opened.write(10)
        opened.hand_out(5)

    def stop() -> None:
        raise trio.TooSlowError

    failpoints.arm(point, stop)
    with pytest.raises(trio.TooSlowError):
        begun(path)
    failpoints.disarm()
    with killed(path) as opened:
        if point not in ("witness.sync.before", "witness.sync.after", "witness.record.after", "startup.record.after"):
            assert lost(opened.report) == {"alice": (11, 15)}
            assert opened.report.incarnation_of == "alice"
        else:
            assert opened.report.reason == "", "the incarnation was begun and told the witness"
        assert opened.source.startswith("alice~")
        opened.write(2)
    with session(path) as again:
        assert (again.report.reason, again.source) == ("", opened.source)


# ------------------------------------------------------------------------------------------------------------- copies


def test_i1_a_copy_is_refused_until_it_is_adopted(path: Path) -> None:
    with session(path, source="alice") as opened:
        mine = opened.write(10)
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    with pytest.raises(ForeignData, match="was copied, restored or brought from another machine.*--adopt"):
        begun(copy)
    with session(copy, adopt=True) as other, session(path) as opened:
        assert opened.source == "alice"
        assert (other.report.kind, other.report.incarnation_of) == ("unclean", "alice")
        assert other.report.reason == "the directory was copied or restored"
        assert not {delta.dot for delta in other.write(5)} & {delta.dot for delta in mine + opened.write(5)}
        names = [opened.source, other.source]
    with session(path) as opened, session(copy) as other:
        assert [opened.source, other.source] == names
        assert [opened.report.kind, other.report.kind] == ["clean", "clean"]


def test_a_directory_that_was_moved_is_the_same_one(path: Path) -> None:
    with session(path, source="alice") as opened:
        opened.write(10)
    path.rename(path.with_name("moved"))
    with session(path.with_name("moved")) as opened:
        assert (opened.report.kind, opened.source) == ("clean", "alice")


@pytest.mark.parametrize("options", [{"adopt": True}, {"accept_loss": True}, {"adopt": True, "accept_loss": True}])
def test_what_may_be_given_up_is_not_given_up_without_need(path: Path, options: dict[str, bool]) -> None:
    with session(path, source="alice") as opened:
        opened.write(10)
    with session(path, **options) as opened:
        assert (opened.report.kind, opened.report.reason, opened.source) == ("clean", "", "alice")


# ------------------------------------------------------------------------------------------------- names and clocks


@pytest.mark.parametrize(
    "source", ["a:b", "a\0b", "a\nb", '"\\', "\x7f\x1f", "😀", " ", "../x", "[format]\nformat = 2"]
)
async def test_any_text_is_a_source(path: Path, source: str) -> None:
    async with open_log(path, source=source) as log:
        first = await log.append("first", durable=True)
        await log.receive([delta_of(source + "~", 1)])
    async with open_log(path) as log:
        assert log.source == source
        second = await log.append("second", durable=True)
        assert [first.dot, second.dot] == [(source, 1), (source, 2)]
        assert [delta.source async for delta in log.replay()] == [source + "~", source, source]
    async with open_log(path, source=source) as log:
        assert log.heads == {source: 2, source + "~": 1}


async def test_i6_timestamps_of_a_source_increase_whatever_the_wall_clock_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour_ns, now_ns = 3600 * 10**9, 1_700_000_000 * 10**9
    stamps = []
    for jump_ns in (0, -hour_ns, 24 * hour_ns, -48 * hour_ns):
        now_ns += jump_ns
        monkeypatch.setattr("deltalog.log.Clock", partial(Clock, wall_ns=partial(int, now_ns)))
        async with open_log(path, source="alice") as log:
            stamps += [(await log.append(number)).timestamp for number in range(5)]
    async with open_log(path) as log:
        assert [delta.timestamp async for delta in log.by_source("alice")] == stamps
    assert stamps == sorted(set(stamps))


# ----------------------------------------------------------------------------------------------------------- progress


def test_a_long_open_says_how_far_it_is(path: Path) -> None:
    with session(path, source="alice") as opened:
        for number in range(250):
            opened.write(1, f"source {number}", sync=False)
    told: list[tuple[str, int, int]] = []
    with session(path, progress=lambda *said: told.append(said)):
        pass
    assert [stage for stage, _, _ in told if stage == "checking"][:3] == ["checking"] * 3
    assert told[-1] == ("reading", 1, 1)
    assert all(done <= total for _, done, total in told)


def test_i1_a_progress_callback_that_raises_ends_the_open_and_nothing_else(path: Path) -> None:
    with killed(path, source="alice") as opened:
        kept = opened.write(10)
        opened.hand_out(2)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "reading":
            raise trio.TooSlowError

    with pytest.raises(trio.TooSlowError):
        begun(path, progress=stop)
    with session(path) as opened:
        assert lost(opened.report) == {"alice": (11, 12)}
        assert opened.all() == kept


def test_a_source_must_be_the_directory_s_own(path: Path) -> None:
    with session(path, source="alice"):
        pass
    with pytest.raises(UsageError, match="belongs to source 'alice'; it cannot be opened as 'bob'"):
        begun(path, source="bob")
