"""RocksDB under the shim: rocksdict reports what was injected, and a power cut loses only what was not synced.

These test what the crash tests of deltalog stand on: the shim, and RocksDB itself.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import attrs
import pytest

from deltalog import walguard
from tests.conftest import Rounds
from tests.crash.journal import Inode, Kind, read_journal
from tests.crash.machine import REPOSITORY, Machine
from tests.crash.powercut import POLICIES, Policy
from tests.crash.shim import Shim

pytestmark = [pytest.mark.system("gcc"), pytest.mark.crash]

CHILD = "tests.crash.child_shim"
OPEN_DEADLINE_S = 10.0
FLUSH_EVERY = 7
KILL_AT = (150, 2000)
"""Operations that change something: the store is made by about the 60th; then they are mostly of the WAL."""

# ------------------------------------------------------------------------------------------------------- power cuts


@attrs.frozen
class Opened:
    """What `child_shim check` found in a copy of the store."""

    complete: dict[str, int]
    """By family: how many batches there are from the first to the first missing one. Empty: it did not open."""
    error: str


def check(db: Path, mode: str) -> Opened:
    """Open a copy of `db` in a process of its own and look, within a deadline."""
    copy = db.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(db, copy)
    command = [sys.executable, "-m", CHILD, "check", str(copy), mode]
    try:
        child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=OPEN_DEADLINE_S, check=True)
    except subprocess.TimeoutExpired:
        return Opened({}, "hangs")
    said = json.loads(child.stdout)
    if "error" in said:
        return Opened({}, said["error"])
    return Opened({family: complete for family, (complete, _) in said.items()}, "")


def acknowledged_until_killed(machine: Machine, chance: random.Random, *early: str) -> int:
    """Let the child write, kill it at some moment, and return how many batches it said were durable.

    Every other time the shim kills it, between two operations; else this process does, at no moment in particular.
    """
    by_shim = chance.random() < 0.5
    options = {"kill_at": chance.randrange(*KILL_AT), "kill_after": chance.random() < 0.5} if by_shim else {}
    child = machine.start(CHILD, "write", str(machine.root / "db"), str(FLUSH_EVERY), *early, **options)
    assert child.stdout is not None
    lines_left, acknowledged = chance.randrange(1, 150), 0
    with child:
        for line in child.stdout:
            acknowledged = int(line)
            lines_left -= 1
            if lines_left == 0 and not by_shim:
                time.sleep(chance.uniform(0, 0.003))  # into the batches that come next
                child.kill()
    assert child.returncode == -9
    return acknowledged


def cut_off_what_the_guard_finds(db: Path) -> None:
    """Shorten each log before the first record that RocksDB would misread."""
    for finding in list(walguard.findings(db)):
        with finding.file.open("r+b") as file:
            file.truncate(finding.offset)


def power_cut_round(shim: Shim, path: Path, policy: Policy, seed: int) -> str:
    """One kill, power cut and re-open. How it opened: "strictly", or by "salvage". Fails if a synced batch is gone."""
    machine = Machine(shim, path / "root", path / "state")
    acknowledged = acknowledged_until_killed(machine, random.Random(f"{policy} {seed}"))
    machine.power_cut(policy, seed)
    db = machine.root / "db"
    guarded = next(walguard.findings(db), None)
    strict = Opened({}, str(guarded)) if guarded else check(db, "tolerate_corrupted_tail_records")
    assert strict.complete or strict.error.startswith("Corruption: ") or guarded, strict
    if not strict.complete:
        cut_off_what_the_guard_finds(db)
    found = strict if strict.complete else check(db, "point_in_time")
    assert found.complete, found
    assert min(found.complete.values()) >= acknowledged, (policy, seed, acknowledged, found)
    return "strictly" if strict.complete else "salvage"


@pytest.mark.powercut
@pytest.mark.parametrize("policy", POLICIES)
def test_every_batch_acknowledged_after_a_sync_outlives_a_power_cut(
    shim: Shim, tmp_path: Path, policy: Policy, rounds: Rounds
) -> None:
    outcomes = set()
    for seed in range(rounds(5, nightly=500)):
        outcomes.add(power_cut_round(shim, tmp_path / str(seed), policy, seed))
        shutil.rmtree(tmp_path / str(seed))
    if policy in {"truncate", "zero", "dirloss"}:
        assert outcomes <= {"strictly"}, "a tail that is not there, or is zeros, is no corruption"


def test_the_journal_has_every_byte_that_rocksdb_wrote(machine: Machine) -> None:
    script = """
        from tests.crash.child_shim import opened, put_batch
        db = opened("db", "tolerate_corrupted_tail_records", create=True)
        for number in range(3000):
            put_batch(db, number)
        db.close()
        print("{}")
    """
    machine.answer(script)
    written: Counter[Inode] = Counter()
    for event in read_journal(machine.state / "journal"):
        if event.kind is Kind.CREATED:
            del written[event.inode]
        elif event.kind is Kind.DIRTY:
            written[event.inode] += event.length
    files = {path.name: path.stat() for path in (machine.root / "db").iterdir()}
    assert {"CURRENT", "LOCK", "LOG"} < files.keys()
    assert {".sst", ".log"} < {Path(name).suffix for name in files}
    for name, at in files.items():
        assert written[at.st_dev, at.st_ino] == at.st_size, name


@pytest.mark.powercut
def test_canary_a_child_that_acknowledges_before_the_sync_is_caught(shim: Shim, tmp_path: Path) -> None:
    for seed in range(50):
        machine = Machine(shim, tmp_path / str(seed) / "root", tmp_path / str(seed) / "state")
        acknowledged = acknowledged_until_killed(machine, random.Random(seed), "early")
        assert min(check(machine.root / "db", "point_in_time").complete.values()) >= acknowledged, (
            "kill -9 loses nothing"
        )
        machine.power_cut("truncate", seed)
        if min(check(machine.root / "db", "point_in_time").complete.values()) < acknowledged:
            return
    pytest.fail("50 power cuts did not show that what was acknowledged was not synced")


# ------------------------------------------------------------------------------------------------------------ faults

FAULTS = {
    # what fails: (the first message, what flush_wal says after it)
    "op=write,nth=30,errno=ENOSPC,match=0*,sticky=1": (
        "IO error: No space left on device: While appending to file: {db}/000004.log: No space left on device",
        "IO error: Writer has previous error.",
    ),
    "op=write,nth=30,errno=EIO,match=*.log": (
        "IO error: While appending to file: {db}/000004.log: Input/output error",
        "IO error: Writer has previous error.",
    ),
    "op=fsync,nth=5,errno=EIO,match=*.log": (
        "IO error: While fdatasync: {db}/000004.log: Input/output error",
        "IO error: Writer has previous error.",
    ),
    "op=open,nth=2,errno=EMFILE,match=*.log": (
        "IO error: While open a file for appending: {db}/000008.log: Too many open files",
        None,
    ),
    "op=write,errno=ENOSPC,match=*.sst,sticky=1": (
        "IO error: No space left on device: While appending to file: {db}/000010.sst: No space left on device",
        None,
    ),
    "op=fsync,nth=1,errno=EIO,match=*.sst": (
        "IO error: While fdatasync: {db}/000010.sst: Input/output error",
        None,
    ),
}


@pytest.mark.parametrize("fail", FAULTS)
def test_a_fault_stops_the_handle_with_rocksdb_s_words(machine: Machine, fail: str) -> None:
    child = machine.start(CHILD, "fail", str(machine.root / "db"), fail=fail)
    said = json.loads(child.communicate(timeout=60)[0])
    first, flush_wal = FAULTS[fail]
    assert said["first"] == first.format(db=machine.root / "db")
    assert said["flush_wal"] == flush_wal
    assert said["read"], "reads go on"
    assert said["close"].startswith("IO error: ")
    if "ENOSPC" in fail:  # RocksDB tries to go on by itself, and may meet the fault at another file
        assert said["write"].startswith("IO error: No space left on device: ")
    else:
        assert said["write"] == said["first"]


def test_a_read_only_file_system_is_an_os_error_at_open(machine: Machine) -> None:
    environment = machine.environment(fail="op=open,errno=EROFS,sticky=1")
    command = [sys.executable, "-m", CHILD, "fail", str(machine.root / "db")]
    child = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert child.stderr.splitlines()[-1] == "OSError: Read-only file system (os error 30)"


def test_a_slow_fsync_makes_flush_wal_slow_and_frees_the_gil_meanwhile(machine: Machine) -> None:
    script = """
        from tests.crash.child_shim import opened, put_batch
        db = opened("db", "tolerate_corrupted_tail_records", create=True)
        put_batch(db, 0)
        before = control.counts()["fsync"]
        control.arm(delay_fsync_s=0.1)
        seen = threading.Event()
        def look():  # sees the sync begin, and says so, while the main thread is in it
            while control.counts()["fsync"] == before:
                time.sleep(0.001)
            seen.set()
        thread = threading.Thread(target=look)
        thread.start()
        began = time.monotonic()
        db.flush_wal(True)
        took_s, during = time.monotonic() - began, seen.is_set()
        thread.join()
        print(json.dumps([took_s, during]))
    """
    took_s, during = machine.answer(script)
    assert took_s >= 0.1
    assert during
