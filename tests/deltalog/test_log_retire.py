"""A source that appends no more: at once, and after the next open, whatever comes between (I1)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from deltalog import keys
from deltalog.codec import build
from deltalog.errors import LogClosed, LogReadOnly, StoreCorrupt, StoreFull, UsageError
from deltalog.manager import open_log, open_manager
from deltalog.startup import StartupReport
from tests.deltalog.directories import begun, killed, session
from tests.deltalog.memory_log import Rig, collect, remote, seqs, until
from tests.deltalog.nodes import NO_UPKEEP

ROOT = Path(__file__).parents[2]
WAY_OUT = "open the log again: it continues as a new incarnation"


async def test_i1_a_retired_source_appends_no_more_and_everything_else_goes_on() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append("mine")
        assert log.retired == ""
        await log.retire("bob holds another alice:1")
        assert log.retired == "bob holds another alice:1"
        refused = f"source 'alice' was retired: bob holds another alice:1; {WAY_OUT}"
        for _ in range(2):
            with pytest.raises(LogReadOnly, match=refused) as caught:
                log.append_nowait("more")
            assert not caught.value.retryable
            with pytest.raises(LogReadOnly, match=refused):
                await log.append("more")
            with pytest.raises(LogReadOnly, match=refused):
                await log.append_many(["more"])
        assert (await log.receive([remote("bob", 1, 1)])).applied == [("bob", 1)]
        receipt = await log.receive([remote("alice", 2, 1), remote("bob", 2, 2)], own=True)
        assert [refusal.reason for refusal in receipt.refused] == [
            "it is this node's own delta 2, and its source was retired: bob holds another alice:1"
        ]
        await log.flush()
        assert log.synced == {"alice": 1, "bob": 2}
        assert seqs(await collect(log.replay())) == [1]
        await log.truncate(until={"bob": 1})
        await log.annotate({b"a": b"b"})
        subscription = log.subscribe({"bob": 1})
        assert len(await subscription.page()) == 2
    assert rig.store.survivor().annotation(keys.RETIRED) is not None


async def test_the_first_reason_stays() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.retire("first")
        await log.retire("second")
        assert log.retired == "first"
    assert keys.decode_retired(rig.store.annotation(keys.RETIRED) or b"") == ("alice", "first")


@pytest.mark.parametrize("reason", ["", "r" * 1025, 5])
async def test_a_reason_that_is_none_is_refused_and_nothing_retires(reason: str) -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match="reason"):
            await log.retire(reason)
        await log.append("goes on")
    with pytest.raises(LogClosed):
        await log.retire("closed")


async def test_a_retirement_that_cannot_be_made_durable_bars_appends_all_the_same(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append("mine", durable=True)
        rig.store.faults.fail("annotate", StoreFull)
        with pytest.raises(StoreFull):
            await log.retire("forked")
        with pytest.raises(LogReadOnly, match="was retired: forked"):
            log.append_nowait("more")
        assert rig.store.annotation(keys.RETIRED) is None
        await log.receive([remote("bob", 1, 1)])
        await until(lambda: "bob" in log.synced, pause_s=0.1)
        await log.retire("forked")
        assert rig.store.survivor().annotation(keys.RETIRED) is not None


async def test_an_append_that_waits_for_room_is_refused_once_the_source_is_retired(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 5
    errors: list[LogReadOnly] = []

    async def wait(text: str) -> None:
        try:
            await log.append(text)
        except LogReadOnly as error:
            errors.append(error)

    async with rig.running(ring_deltas=1) as log:
        await log.append("fills it")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "waits")
            await trio.sleep(1)
            await log.retire("forked")
    assert len(errors) == 1
    assert log.heads == {"alice": 1}


# -------------------------------------------------------------------------------------------------------- real openings


@pytest.mark.parametrize("ends", ["closed", "killed"])
async def test_i1_the_next_open_begins_a_new_incarnation_and_says_why(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "data"
    async with open_manager(path, source="alice", upkeep=NO_UPKEEP) as manager:
        await manager.log.append_many(range(3))
        if ends == "closed":
            await manager.log.retire("bob holds alice:4")
            assert "bob holds alice:4" in manager.health().read_only
            assert not manager.health().ok
    if ends == "killed":
        with killed(path) as opened:
            opened.write(2)
            opened.data.store.annotate({keys.RETIRED: keys.encode_retired("alice", "bob holds alice:4")})
            opened.data.store.sync()
    async with open_log(path, upkeep=NO_UPKEEP) as log:
        report = log.startup
        assert isinstance(report, StartupReport)
        assert (report.incarnation_of, report.reason) == ("alice", "it was retired: bob holds alice:4")
        assert report.kind == ("clean" if ends == "closed" else "unclean")
        assert log.source.startswith("alice~")
        theirs = build("alice", log.heads["alice"] + 1, log.clock.last + 1, "of the other branch")
        assert (await log.receive([theirs])).applied == [theirs.dot], "it is the source of somebody else now"
        await log.append("new")
        name = log.source
    with session(path) as opened:
        assert (opened.source, opened.report.incarnation_of) == (name, ""), "only once"


CHILD = """
import os, signal, sys, trio
from deltalog.manager import open_log

async def main():
    async with open_log(sys.argv[1], source="alice") as log:
        log.append_nowait("maybe lost")
        await log.append("kept", durable=True)
        await log.retire("forked")
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


@pytest.mark.crash
def test_i1_a_process_that_is_killed_right_after_the_call_has_retired(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path / "data"], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -9
    with session(tmp_path / "data") as opened:
        assert opened.report.reason == "it was retired: forked"
        assert opened.report.incarnation_of == "alice"
        assert opened.report.kind == "unclean"
        assert opened.heads == {"alice": 2}


def test_i1_an_incarnation_can_be_retired_in_its_turn(tmp_path: Path) -> None:
    path, sources = tmp_path / "data", []
    for _ in range(3):
        with session(path, source="alice") as opened:
            opened.write(1)
            sources.append(opened.source)
            opened.data.store.annotate({keys.RETIRED: keys.encode_retired(opened.source, "again")})
    assert len(set(sources)) == 3
    with session(path) as opened:
        assert opened.report.incarnation_of == sources[-1]
        assert opened.heads == dict.fromkeys(sources, 1)


def test_i1_an_open_that_is_cut_off_before_the_witness_knows_begins_it_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with session(path, source="alice") as opened:
        opened.write(1)
        opened.data.store.annotate({keys.RETIRED: keys.encode_retired("alice", "forked")})
    first = begun(path)
    with first.data.store._lock:
        first.data.release()
        first.data.store.close()
    with session(path) as opened:
        assert opened.source.startswith("alice~")


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x92\x01\x02", b"\xa5alice", b"\x91\xa5alice"], ids=repr)
def test_a_retirement_that_cannot_be_read_is_damage(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "data"
    with session(path, source="alice") as opened:
        opened.data.store.annotate({keys.RETIRED: value})
    with pytest.raises(StoreCorrupt, match="retired"):
        begun(path)
