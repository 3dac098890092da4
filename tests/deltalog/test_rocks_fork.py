"""A process that forks while RocksDB is open: the child can do nothing with it, and does the parent no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deltalog.rocks import FamilyProfile, Rocks, SharedMemory

ROOT = Path(__file__).parents[2]
FAMILIES = {"a": FamilyProfile()}

PROLOGUE = """
import gc, os, sys, threading
from pathlib import Path
from deltalog.errors import *
from deltalog.rocks import *

path, families, memory = Path(sys.argv[1]), {"a": FamilyProfile()}, SharedMemory()
store = Rocks.create(path, families, memory)
batch = store.batch()
for number in range(1000):
    batch.put("a", b"%04d" % number, b"value")
store.write(batch)
store.flush()
store.compact()  # RocksDB's threads run from here on
batch = store.batch()
batch.put("a", b"unflushed", b"value")
store.write(batch)

def refused(call, kind=StoreClosed, text="forked from"):
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"{call} was not refused")

def wait(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("child", code, flush=True)
"""


def run(path: Path, script: str) -> list[str]:
    """Run it in a process of its own: pytest's has threads and stores of its own, and a failure here is a hang."""
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROLOGUE + script, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("end", ["sys.exit(7)", "gc.collect(); sys.exit(7)", "os._exit(7)"])
def test_child_is_refused_and_parent_unharmed(tmp_path: Path, end: str) -> None:
    script = f"""
scan, view = store.scan("a"), store.view("a")
part = view.scan("a")
next(scan), next(part)
stop = threading.Event()
def write():
    while not stop.is_set():
        store.write(batch)
        store.sync()
writer = threading.Thread(target=write)  # the fork strikes while it holds RocksDB's locks
writer.start()
pid = os.fork()
if pid == 0:
    for call in (
        lambda: store.write(batch), store.sync, store.flush, store.compact, store.close, store.files,
        store.sequence_number, lambda: store.get("a", b"0000"), lambda: store.get_many("a", [b"0000"]),
        lambda: store.scan("a"), lambda: store.view("a"), lambda: store.seek_last("a", b"9"),
        lambda: next(scan), lambda: next(part), lambda: view.last("a", b"9"),
    ):
        refused(call)
    assert store.health().closed
    scan.close(), part.close(), view.close()
    del store, scan, part, view
    {end}
wait(pid)
stop.set()
writer.join()
assert store.health().lock_ours
assert len(list(scan)) == 1000 and len(list(part)) == 1000
view.close()
store.close()
store = Rocks.open(path, families, memory)
assert store.get("a", b"unflushed") == b"value"
store.close()
"""
    assert run(tmp_path / "store", script) == ["child 7"]


@pytest.mark.parametrize("closed_before", [False, True])
def test_child_cannot_open_a_store_of_its_own(tmp_path: Path, closed_before: bool) -> None:
    """It would hang at its first flush, for want of the threads that were the parent's."""
    script = f"""
if {closed_before}:
    store.close()
pid = os.fork()
if pid == 0:
    store.close() if {closed_before} else refused(store.close)  # a closed one stays merely closed
    for open, at in ((Rocks.open, path), (Rocks.open_read_only, path), (Rocks.create, path.with_name("new"))):
        refused(lambda: open(at, families, memory), StoreUsageError, "start it afresh")
    sys.exit(0)
wait(pid)
store.close()
"""
    assert run(tmp_path / "store", script) == ["child 0"]
    assert os.listdir(tmp_path) == ["store"]


def test_grandchild_is_refused_too(tmp_path: Path) -> None:
    script = """
pid = os.fork()
if pid == 0:
    inner = os.fork()
    if inner == 0:
        refused(lambda: store.get("a", b"0000"))
        sys.exit(5)
    wait(inner)
    sys.exit(0)
wait(pid)
store.close()
"""
    assert run(tmp_path / "store", script) == ["child 5", "child 0"]


def test_parent_writes_and_reads_on_after_many_forks(tmp_path: Path) -> None:
    script = """
for number in range(20):
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    store.write(batch)
    store.flush()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
store.close()
"""
    path = tmp_path / "store"
    assert run(path, script) == []
    with closing(Rocks.open(path, FAMILIES, SharedMemory())) as store:
        assert len(list(store.scan("a"))) == 1_001


def test_process_that_never_used_rocksdb_may_fork_and_use_it_in_the_child(tmp_path: Path) -> None:
    script = """
import os, sys
from deltalog.rocks import *
pid = os.fork()
if pid == 0:
    store = Rocks.create(sys.argv[1], {"a": FamilyProfile()}, SharedMemory())
    store.flush()
    store.close()
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)
