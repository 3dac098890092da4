"""The shim counts, logs, fails, delays and kills exactly the operations it was asked to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.crash.machine import Machine
from tests.crash.shim import KINDS, Shim

pytestmark = pytest.mark.system("gcc")

CALLS = {
    # name in libc: (C arguments as Python, kinds it counts as)
    "open": ("b'new1', O_CREAT | O_RDWR, 0o644", "create"),
    "open64": ("b'new2', O_CREAT | O_RDWR, 0o644", "create"),
    "openat": ("here, b'new3', O_CREAT | O_RDWR, 0o644", "create"),
    "openat64": ("here, b'new4', O_CREAT | O_RDWR, 0o644", "create"),
    "creat": ("b'new5', 0o644", "create"),
    "creat64": ("b'new6', 0o644", "create"),
    "__open_2": ("b'new1', O_RDWR", "open"),
    "__open64_2": ("b'new1', O_RDWR", "open"),
    "__openat_2": ("here, b'new1', O_RDWR", "open"),
    "__openat64_2": ("here, b'new1', O_RDWR", "open"),
    "write": ("fd, b'12345', 5", "write"),
    "writev": ("fd, parts, 2", "write"),
    "pwrite": ("fd, b'12345', 5, 2", "write"),
    "pwrite64": ("fd, b'12345', 5, 2", "write"),
    "pwritev": ("fd, parts, 2, 2", "write"),
    "pwritev64": ("fd, parts, 2, 2", "write"),
    "pwritev2": ("fd, parts, 2, 2, 0", "write"),
    "pwritev64v2": ("fd, parts, 2, 2, 0", "write"),
    "ftruncate": ("fd, 3", "truncate"),
    "ftruncate64": ("fd, 3", "truncate"),
    "truncate": ("b'new1', 3", "truncate"),
    "truncate64": ("b'new1', 3", "truncate"),
    "fallocate": ("fd, 0, 0, 10", "truncate"),
    "fallocate64": ("fd, 0, 0, 10", "truncate"),
    "posix_fallocate": ("fd, 0, 10", "truncate"),
    "posix_fallocate64": ("fd, 0, 10", "truncate"),
    "fsync": ("fd,", "fsync"),
    "fdatasync": ("fd,", "fsync"),
    "rename": ("b'new1', b'new7'", "rename"),
    "renameat": ("here, b'new7', here, b'new8'", "rename"),
    "renameat2": ("here, b'new8', here, b'new9', 0", "rename"),
    "link": ("b'new2', b'new10'", "link"),
    "linkat": ("here, b'new2', here, b'new11', 0", "link"),
    "unlink": ("b'new10',", "unlink"),
    "unlinkat": ("here, b'new11', 0", "unlink"),
}
WITHOUT_COUNT = {"mmap", "mmap64", "sendfile", "sendfile64", "copy_file_range"}


def test_every_name_the_library_exports_is_interposed_and_counted(machine: Machine) -> None:
    listing = subprocess.run(["nm", "-D", "--defined-only", machine.shim.library], capture_output=True, check=True)
    exported = {line.split()[2] for line in listing.stdout.decode().splitlines()}
    assert exported == CALLS.keys() | WITHOUT_COUNT

    lines = "\n".join(f"counted[{name!r}] = call({name!r}, {call})" for name, (call, _) in CALLS.items())
    source = """
        from os import O_CREAT, O_RDWR
        class Part(ctypes.Structure):
            _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]
        parts = (Part * 2)(Part(b"123", 3), Part(b"45", 2))
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open(".", os.O_RDONLY)
        fd = make("file")
        counted = {}
        def call(name, *arguments):
            before = control.counts()
            wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
            result = getattr(libc, name)(*wide)
            assert result >= 0 and ("posix" not in name or result == 0), (name, result, ctypes.get_errno())
            return [kind for kind, count in control.counts().items() for _ in range(count - before[kind])]
    """
    counted = machine.answer(_dedent(source) + lines + "\nprint(json.dumps(counted))")
    assert counted == {name: [kind] for name, (_, kind) in CALLS.items()}


def _dedent(source: str) -> str:
    return "\n".join(line[8:] for line in source.splitlines()) + "\n"


def test_files_outside_the_root_are_left_alone(machine: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "root-beside"  # the root's name is only the beginning of this one
    script = f"""
        fd = make({str(outside)!r}, b"text")
        os.fsync(fd)
        os.rename({str(outside)!r}, {str(outside)!r} + "2")
        print(json.dumps(control.counts()))
    """
    assert machine.answer(script, fail="op=any,errno=EIO,sticky=1") == dict.fromkeys(KINDS, 0)
    assert (tmp_path / "root-beside2").read_bytes() == b"text"


def test_operations_are_logged_in_order_with_their_numbers(machine: Machine) -> None:
    script = """
        fd = make("a", b"12345")
        os.fsync(fd)
        os.rename("a", "b")
        os.write(os.dup(fd), b"678")
        os.open("b", os.O_WRONLY | os.O_TRUNC)
        if os.fork() == 0:
            os.write(fd, b"child")
            os._exit(0)
        os.wait()
        os.unlink("b")
        print("{}")
    """
    machine.answer(script, log=True)
    log = [(op.number, op.kind, op.size, op.name) for op in machine.operations()]
    assert log == [
        (1, "create", 0, "a"),
        (2, "write", 5, "a"),
        (3, "fsync", 5, "a"),
        (4, "rename", 0, "b"),
        (5, "write", 3, "b"),
        (0, "open", 0, "b"),
        (6, "truncate", 0, "b"),
        (7, "write", 5, "b"),
        (8, "unlink", 0, "b"),
    ]
    assert machine.control.numbered == 8


# ---------------------------------------------------------------------------------------------------------- failing

TRY_ALL = """
def said(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""

fd = make("a.log")
other = make("b.sst")
made = iter("cdefghij")
calls = {
    "write": lambda: os.write(fd, b"1"),
    "pwrite": lambda: os.pwrite(other, b"1", 0),
    "fsync": lambda: os.fsync(fd),
    "fdatasync": lambda: os.fdatasync(other),
    "open": lambda: os.open("a.log", os.O_RDONLY),
    "create": lambda: os.open(next(made), os.O_CREAT | os.O_WRONLY),
    "rename": lambda: os.rename("a.log", "a.log"),
    "unlink": lambda: os.unlink(next(made)) if Path("x").exists() else os.unlink("a.log"),
}
"""


@pytest.mark.parametrize(
    ("op", "failing"),
    [
        ("write", {"write", "pwrite"}),
        ("fsync", {"fsync", "fdatasync"}),
        ("open", {"open", "create"}),
        ("rename", {"rename"}),
        ("unlink", {"unlink"}),
        ("any", {"write", "pwrite", "fsync", "fdatasync", "open", "create", "rename", "unlink"}),
    ],
)
@pytest.mark.parametrize("errno", ["EIO", "ENOSPC", "EMFILE", "EROFS"])
def test_each_kind_fails_with_each_errno(machine: Machine, op: str, failing: set[str], errno: str) -> None:
    script = f"""
control.arm({op!r}, errno={errno!r}, sticky=True)
print(json.dumps({{name: said(call) for name, call in calls.items()}}))
"""
    answers: dict[str, str] = machine.answer(TRY_ALL + script)
    assert answers == {name: errno if name in failing else "" for name in answers}
    assert machine.control.fired == len(failing)


@pytest.mark.parametrize(("sticky", "last"), [("", ""), (",sticky=1", "ENOSPC")])
def test_the_nth_matching_operation_fails_and_all_later_ones_if_sticky(
    machine: Machine, sticky: str, last: str
) -> None:
    script = """
print(json.dumps([said(calls[name]) for name in ("write", "pwrite", "write", "fsync", "write", "pwrite")]))
"""
    fail = f"op=write,nth=3,errno=ENOSPC,match=*.log{sticky}"  # the first one is what `make` wrote
    assert machine.answer(TRY_ALL + script, fail=fail) == ["", "", "ENOSPC", "", last, ""]
    assert (machine.root / "a.log").read_bytes() == (b"1" if sticky else b"11")


def test_a_failed_operation_changes_nothing(machine: Machine) -> None:
    script = 'fd = synced("a", b"12"); sync_directory(); control.arm("any", errno="EIO", sticky=True)\n'
    calls = """
for call in (lambda: os.write(fd, b"3"), lambda: os.ftruncate(fd, 0), lambda: os.open("a", os.O_WRONLY | os.O_TRUNC),
             lambda: os.rename("a", "b"), lambda: os.link("a", "b"), lambda: os.unlink("a"), lambda: make("b")):
    try:
        call()
    except OSError:
        continue
    raise AssertionError("did not fail")
end()
"""
    machine.die(script + calls)
    assert machine.files() == {"a": b"12"}
    report = machine.power_cut("dirloss")
    assert (machine.files(), report.files, report.entries) == ({"a": b"12"}, (), ())


def test_failing_starts_and_ends_at_run_time(machine: Machine) -> None:
    script = """
said_each = [said(calls["write"])]
control.arm("write", errno="ENOSPC", nth=2, sticky=True)
said_each += [said(calls["write"]) for _ in range(3)]
control.disarm()
said_each.append(said(calls["write"]))
print(json.dumps([said_each, control.fired]))
"""
    assert machine.answer(TRY_ALL + script) == [["", "", "ENOSPC", "ENOSPC", ""], 2]


# ---------------------------------------------------------------------------------------------------------- killing

STEPS = """
fd = make("a", b"12345")
os.fsync(fd)
os.pwrite(fd, b"x", 2)
os.ftruncate(fd, 4)
os.rename("a", "b")
os.link("b", "c")
make("d", b"678")
os.open("b", os.O_WRONLY | os.O_TRUNC)
os.unlink("c")
sync_directory()
print("{}")
"""
STEP_COUNT = 12


def test_the_steps_are_counted(machine: Machine) -> None:
    machine.answer(STEPS)
    assert machine.control.numbered == STEP_COUNT


def _killed(shim: Shim, path: Path, number: int, *, after: bool) -> dict[str, bytes]:
    machine = Machine(shim, path / "root", path / "state")
    machine.die(STEPS, kill_at=number, kill_after=after, log=True)
    assert machine.operations()[-1].number == number
    return machine.files()


@pytest.mark.parametrize("number", range(1, STEP_COUNT + 1))
def test_a_kill_before_and_after_each_operation(shim: Shim, tmp_path: Path, number: int) -> None:
    before = _killed(shim, tmp_path / "before", number, after=False)
    after = _killed(shim, tmp_path / "after", number, after=True)
    if number < STEP_COUNT:
        assert after == _killed(shim, tmp_path / "next", number + 1, after=False)
    assert (before != after) == (number not in {3, STEP_COUNT}), "all but the fsyncs change a file"


# --------------------------------------------------------------------------------------------------- delay, threads


def test_fsync_takes_at_least_the_delay_and_nothing_waits_for_it(machine: Machine) -> None:
    script = """
        fd, other, order = make("a", b"1"), make("b"), []
        def settle():
            os.fdatasync(fd)
            order.append("fsync")
        thread = threading.Thread(target=settle)
        began = time.monotonic()
        thread.start()
        while not control.counts()["fsync"]:
            time.sleep(0.001)
        os.write(fd, b"2")
        os.write(other, b"2")
        os.rename("b", "c")
        order.append("others")
        thread.join()
        took_s = time.monotonic() - began
        control.arm(delay_fsync_s=0.1)
        began = time.monotonic()
        os.fsync(fd)
        print(json.dumps([order, took_s, time.monotonic() - began]))
    """
    order, first_s, second_s = machine.answer(script, delay_fsync_s=2.0)
    assert order == ["others", "fsync"]
    assert first_s >= 2.0
    assert second_s >= 0.1


def test_threads_lose_no_count_and_no_record(machine: Machine) -> None:
    script = """
        def work(name):
            fd = make(name)
            for number in range(500):
                os.pwrite(shared, name.encode(), number * 8 + int(name))
                os.write(fd, b"%07d\\n" % number)
                if number % 50 == 0:
                    os.fsync(fd)
        shared = make("shared")
        threads = [threading.Thread(target=work, args=(str(n),)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os.fsync(shared)
        sync_directory()
        end()
    """
    machine.die(script, log=True)
    counts = machine.control.counts()
    assert (counts["create"], counts["write"], counts["fsync"]) == (9, 8 * 500 * 2 + 9, 82)
    assert sorted(op.number for op in machine.operations() if op.number) == list(range(1, machine.control.numbered + 1))
    machine.power_cut("dirloss")
    files = machine.files()
    assert files.pop("shared") == b"01234567" * 500
    assert files == {str(n): b"".join(b"%07d\n" % i for i in range(451)) for n in range(8)}


def test_errno_and_results_are_those_of_the_kernel(machine: Machine) -> None:
    script = (
        TRY_ALL
        + """
print(json.dumps([
    said(os.open, "missing", os.O_RDONLY), said(os.open, "a.log", os.O_CREAT | os.O_EXCL),
    said(os.open, "no/where", os.O_CREAT | os.O_WRONLY), said(os.write, os.open("a.log", os.O_RDONLY), b"1"),
    said(os.rename, "missing", "b"), said(os.unlink, "missing"), said(os.link, "a.log", "b.sst"),
    said(os.truncate, "missing", 0), said(os.fsync, 99), said(os.ftruncate, os.open("a.log", os.O_RDONLY), 0),
]))
"""
    )
    kernel = ["ENOENT", "EEXIST", "ENOENT", "EBADF", "ENOENT", "ENOENT", "EEXIST", "ENOENT", "EBADF", "EINVAL"]
    assert machine.answer(script) == kernel


def test_success_leaves_errno_alone(machine: Machine) -> None:
    script = """
        libc = ctypes.CDLL(None, use_errno=True)
        fd = make("a")
        left = []
        for name, *arguments in [("open", b"b", os.O_CREAT | os.O_RDWR, 0o644), ("write", fd, b"1", 1), ("fsync", fd),
                                 ("ftruncate", fd, 0), ("rename", b"b", b"c"), ("link", b"c", b"d"), ("unlink", b"d")]:
            ctypes.set_errno(77)
            assert getattr(libc, name)(*arguments) >= 0
            left.append(ctypes.get_errno())
        print(json.dumps(left))
    """
    assert machine.answer(script) == [77] * 7


def test_the_kernel_does_not_copy_past_the_shim(machine: Machine) -> None:
    script = (
        TRY_ALL
        + """
os.write(fd, b"text")
print(json.dumps([said(os.copy_file_range, fd, other, 4, 0), said(os.sendfile, other, fd, 0, 4)]))
"""
    )
    assert machine.answer(script) == ["EINVAL", "EINVAL"]


def test_a_child_forked_while_a_thread_writes_can_write(machine: Machine) -> None:
    script = """
        fd, stop = make("a"), threading.Event()
        def work():
            while not stop.is_set():
                os.pwrite(fd, bytes(8_000_000), 0)
        thread = threading.Thread(target=work)
        thread.start()
        while control.counts()["write"] < 3:
            time.sleep(0.001)
        ends = []
        for _ in range(10):
            if (child := os.fork()) == 0:
                signal.alarm(20)
                os.pwrite(fd, b"1", 0)
                os._exit(0)
            ends.append(os.waitpid(child, 0)[1])
        stop.set()
        thread.join()
        print(json.dumps(ends))
    """
    assert machine.answer(script) == [0] * 10


def test_a_journal_that_cannot_be_written_ends_the_process(machine: Machine) -> None:
    machine.environment()
    (machine.state / "journal").symlink_to("/dev/full")
    child = machine.script('make("a", b"1")')
    assert child.returncode == -6
    assert "shim: cannot append" in child.stderr


@pytest.mark.parametrize("wrong", [{"fail": "op=write,when=3"}, {"fail": "op=sing"}, {"fail": "op=write,errno=EWRONG"}])
def test_a_wrong_request_is_refused(machine: Machine, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, AttributeError)):
        machine.environment(**wrong)


def test_a_state_below_the_root_is_refused(shim: Shim, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        shim.env(tmp_path, tmp_path / "state")
    os.symlink(tmp_path, tmp_path.with_name(f"{tmp_path.name}-link"))
    with pytest.raises(ValueError, match="real path"):
        shim.env(tmp_path.with_name(f"{tmp_path.name}-link"), tmp_path.with_name(f"{tmp_path.name}-state"))
