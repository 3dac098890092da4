"""A power cut leaves what was fsynced, and of the rest what its policy says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.conftest import Rounds
from tests.crash.journal import Event, Kind, Life, read_journal
from tests.crash.machine import Machine
from tests.crash.powercut import PAGE_BYTES, POLICIES, Policy
from tests.crash.shim import Shim

pytestmark = [pytest.mark.system("gcc"), pytest.mark.powercut]

BYTE_POLICIES: tuple[Policy, ...] = ("truncate", "zero", "garbage", "hole")


# ---------------------------------------------------------------------------------------- single steps, by hand

CASES = {
    "appended": ("fd = synced('a', b'12'); os.write(fd, b'34')", b"12"),
    "appended with O_APPEND": ("synced('a', b'12'); os.write(os.open('a', os.O_WRONLY | os.O_APPEND), b'34')", b"12"),
    "overwritten": ("fd = synced('a', b'1234'); os.pwrite(fd, b'xx', 1)", b"1234"),
    "overwritten twice": ("fd = synced('a', b'1234'); os.pwrite(fd, b'xx', 1); os.pwrite(fd, b'yyy', 2)", b"1234"),
    "overwritten, then synced": ("fd = synced('a', b'1234'); os.pwrite(fd, b'xx', 1); os.fsync(fd)", b"1xx4"),
    "synced through another descriptor": ("fd = make('a', b'12'); os.fdatasync(os.open('a', os.O_RDONLY))", b"12"),
    "synced under another name": (
        "fd = make('a', b'12'); os.rename('a', 'b'); os.fsync(fd); os.rename('b', 'a')",
        b"12",
    ),
    "written far behind the end": ("fd = synced('a', b'12'); os.pwrite(fd, b'3', 9999)", b"12"),
    "cut": ("fd = synced('a', b'1234'); os.ftruncate(fd, 1)", b"1234"),
    "cut, then written": ("fd = synced('a', b'1234'); os.ftruncate(fd, 1); os.pwrite(fd, b'xyz', 0)", b"1234"),
    "cut by path": ("synced('a', b'1234'); os.truncate('a', 1)", b"1234"),
    "opened with O_TRUNC": ("synced('a', b'1234'); open('a', 'w').write('xyzxyz')", b"1234"),
    "grown": ("fd = synced('a', b'1234'); os.ftruncate(fd, 9)", b"1234"),
    "allocated": ("fd = synced('a', b'1234'); os.posix_fallocate(fd, 0, 9)", b"1234"),
    "allocated, then synced": ("fd = synced('a', b'12'); os.posix_fallocate(fd, 0, 4); os.fsync(fd)", b"12\0\0"),
    "hole punched": ("fd = synced('a', b'1' * 9999); ctypes.CDLL(None).fallocate(fd, 3, 0, 5000)", b"1" * 9999),
    "replaced by rename": ("synced('a', b'12'); synced('b', b'34'); os.rename('b', 'a')", b"34"),
    "replaced by an unsynced file": ("synced('a', b'12'); make('b', b'34'); os.rename('b', 'a')", b""),
    "a new file under an old number": ("synced('a', b'12'); os.unlink('a'); fd = make('a', b'34')", b""),
    "linked": ("fd = synced('b', b'12'); os.link('b', 'a'); os.write(fd, b'34')", b"12"),
    "copied by the kernel": ("synced('b', b'12'); import shutil; shutil.copyfile('b', 'a')", b""),
    "more than a chunk overwritten": (
        "fd = synced('a', b'1' * 300_000); os.pwrite(fd, b'x' * 200_000, 9)",
        b"1" * 300_000,
    ),
    "a sync that failed": ("sync_fails(make('a', b'12'))", b""),
    "a sync that failed, then one that did not": (
        "fd = make('a', b'12'); sync_fails(fd); os.write(fd, b'34'); os.fsync(fd)",
        b"\0\x0034",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_truncate_leaves_what_the_last_fsync_left(machine: Machine, case: str) -> None:
    script, expected = CASES[case]
    machine.die(f"{script}\nend()")
    machine.power_cut("truncate")
    assert (machine.root / "a").read_bytes() == expected


def test_what_is_written_while_an_fsync_runs_is_not_covered_by_it(machine: Machine) -> None:
    script = """
        fd = make("a", b"12")
        journal = state / "journal"
        size = journal.stat().st_size
        thread = threading.Thread(target=os.fsync, args=(fd,))
        thread.start()
        began = time.monotonic()
        while journal.stat().st_size == size and time.monotonic() < began + 0.5:
            time.sleep(0.001)  # until the sync began: at once, and then comes its delay
        os.write(fd, b"34")
        thread.join()
        end()
    """
    machine.die(script, delay_fsync_s=1.0)
    assert machine.files() == {"a": b"1234"}
    machine.power_cut("truncate")
    assert machine.files() == {"a": b"12"}


# ---------------------------------------------------------------------------------------------- the other policies


@pytest.fixture
def grown(machine: Machine) -> Machine:
    """One file: 6000 synced bytes of `s`, then 64 pages of `u` over the last 2000 of them and on."""
    machine.die(f"fd = synced('a', b's' * 6000); os.pwrite(fd, b'u' * {64 * PAGE_BYTES}, 4000); end()")
    return machine


def test_zero_keeps_the_size_and_gives_back_what_was_overwritten(grown: Machine) -> None:
    report = grown.power_cut("zero")
    size = 4000 + 64 * PAGE_BYTES
    assert grown.files() == {"a": (b"s" * 6000).ljust(size, b"\0")}
    (change,) = report.files
    assert (change.size_before, change.size_after, change.unsynced_bytes) == (size, size, 64 * PAGE_BYTES)
    assert report.dropped_bytes == 64 * PAGE_BYTES


def test_garbage_keeps_the_size_and_is_random_beyond_what_was_synced(grown: Machine) -> None:
    grown.power_cut("garbage")
    content = grown.files()["a"]
    assert content[:4000] == b"s" * 4000
    assert set(content[4000:6000]) <= set(b"su")
    assert len(content) == 4000 + 64 * PAGE_BYTES
    assert len(set(content[6000:])) == 256


def test_garbage_leaves_overwritten_pages_old_or_new(machine: Machine) -> None:
    size = 64 * PAGE_BYTES
    machine.die(f"fd = synced('a', b's' * {size}); os.pwrite(fd, b'u' * {size}, 0); end()")
    machine.power_cut("garbage")
    content = machine.files()["a"]
    assert {content[at : at + PAGE_BYTES] for at in range(0, size, PAGE_BYTES)} == {
        letter * PAGE_BYTES for letter in (b"s", b"u")
    }


def test_zero_does_not_give_back_what_was_cut_off(machine: Machine) -> None:
    machine.die("fd = synced('a', b's' * 100); os.ftruncate(fd, 40); os.pwrite(fd, b'u' * 80, 0); end()")
    machine.power_cut("zero")
    assert machine.files() == {"a": (b"s" * 40).ljust(80, b"\0")}


def test_threads_that_append_to_one_file_are_each_in_doubt(machine: Machine) -> None:
    script = """
        def work():
            fd = os.open("a", os.O_WRONLY | os.O_APPEND)
            for number in range(1000):
                os.write(fd, b"1234567")
        synced("a", b"s")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        end()
    """
    machine.die(script)
    machine.power_cut("zero")
    assert machine.files() == {"a": b"s".ljust(28_001, b"\0")}


def test_hole_keeps_or_drops_each_page(grown: Machine) -> None:
    report = grown.power_cut("hole")
    content = grown.files()["a"]
    kept, lost = b"u", (b"s" * 6000).ljust(len(content), b"\0")
    pages = range(0, len(content), PAGE_BYTES)
    whole = (b"s" * 4000).ljust(len(content), kept)
    states = [
        (content[at : at + PAGE_BYTES] == whole[at : at + PAGE_BYTES])
        - (content[at : at + PAGE_BYTES] == lost[at : at + PAGE_BYTES])
        for at in pages
    ]
    assert set(states) == {1, -1}, "a page is neither kept nor lost"
    assert 16 <= states.count(1) <= 48, "a coin of 64 throws"
    assert 16 * PAGE_BYTES < report.dropped_bytes < 48 * PAGE_BYTES


@pytest.mark.parametrize("policy", POLICIES)
def test_the_seed_decides(shim: Shim, tmp_path: Path, policy: Policy) -> None:
    results = []
    for number, seed in enumerate([7, 7, 8]):
        machine = Machine(shim, tmp_path / f"{number}" / "root", tmp_path / f"{number}" / "state")
        machine.die("fd = synced('a', b's' * 6000); os.pwrite(fd, b'u' * 99_999, 4000); end()")
        machine.power_cut(policy, seed)
        results.append(machine.files())
    assert results[0] == results[1]
    assert (results[0] != results[2]) == (policy in {"garbage", "hole"})


# ----------------------------------------------------------------------------------------- random programs, by a model

EXTENT_BYTES = 5 * PAGE_BYTES
Step = tuple[str, int, int, int]
"""Verb, offset, size, byte."""

RUN_STEPS = """
for name, steps in json.loads(Path("../steps.json").read_text()).items():
    fd = make(name)
    for verb, at, size, byte in steps:
        if verb == "write":
            os.pwrite(fd, bytes([byte]) * size, at)
        elif verb == "resize":
            os.ftruncate(fd, at)
        else:
            {"sync": os.fsync, "failing sync": sync_fails}[verb](fd)
    os.close(fd)
end()
"""


def steps(chance: random.Random) -> list[Step]:
    """A program of up to 30 steps on one file."""
    verbs = chance.choices(["write", "resize", "sync", "failing sync"], [10, 2, 3, 1], k=chance.randrange(30))
    return [
        (
            verb,
            at := chance.randrange(EXTENT_BYTES // 2),
            chance.randrange(1, EXTENT_BYTES - at),
            chance.randrange(1, 256),
        )
        for verb in verbs
    ]


class ModelFile:
    """A file and its disk, byte by byte, forwards: an oracle that has nothing of the journal's way back."""

    def __init__(self) -> None:
        self.cache, self.disk = bytearray(EXTENT_BYTES), bytearray(EXTENT_BYTES)
        self.cache_size = self.disk_size = 0
        self.dirty: set[int] = set()
        self.in_doubt: set[int] = set()  # dirty, or was dirty when a sync failed
        self.resized = False

    def run(self, step: Step) -> None:
        """One step of a program."""
        verb, at, size, byte = step
        if verb == "write":
            self._touch(at, bytes([byte]) * size)
            self._resize(max(self.cache_size, at + size))
        elif verb == "resize":
            self._touch(at, bytes(max(0, self.cache_size - at)))
            self._resize(at)
        elif verb == "sync":
            self._reach_disk()
        else:
            self.dirty.clear()
            self.resized = False

    def _touch(self, at: int, data: bytes) -> None:
        self.cache[at : at + len(data)] = data
        self.dirty.update(range(at, at + len(data)))
        self.in_doubt.update(range(at, at + len(data)))

    def _resize(self, size: int) -> None:
        self.resized |= size != self.cache_size
        self.cache_size = size

    def _reach_disk(self) -> None:
        if self.dirty or self.resized:
            self.disk_size = self.cache_size
        for at in self.dirty:
            self.disk[at] = self.cache[at]
        self.in_doubt -= self.dirty
        self.dirty.clear()
        self.resized = False

    def allows(self, policy: Policy, content: bytes) -> bool:
        """True if a power cut may leave `content`."""
        disk = bytes(self.disk[: self.disk_size])
        if policy in {"truncate", "dirloss"}:
            return content == disk
        return len(content) == self.cache_size and all(
            byte in self._choices(policy, at, disk) for at, byte in enumerate(content)
        )

    def _choices(self, policy: Policy, at: int, disk: bytes) -> range | set[int]:
        if at not in self.in_doubt:
            return {self.cache[at]}
        if policy == "garbage" and at >= len(disk):
            return range(256)
        old = {disk[at], 0} if at < len(disk) else {0}
        return old if policy == "zero" else old | {self.cache[at]}


@pytest.mark.parametrize("policy", BYTE_POLICIES)
def test_random_programs_leave_what_the_model_allows(machine: Machine, policy: Policy, rounds: Rounds) -> None:
    chance = random.Random(f"programs {policy}")
    programs = {str(number): steps(chance) for number in range(rounds(100, nightly=5000))}
    (machine.root.parent / "steps.json").write_text(json.dumps(programs))
    machine.die(RUN_STEPS)
    machine.power_cut(policy, seed=1)
    files = machine.files()
    for name, program in programs.items():
        model = ModelFile()
        for step in program:
            model.run(step)
        assert model.allows(policy, files[name]), (name, program)


# ---------------------------------------------------------------------------------------------------------- names

NAMES = {
    "new file": ("make('a', b'12')", {}),
    "new file, synced": ("synced('a', b'12')", {"a": b"12"}),
    "new file, directory synced": ("make('a', b'12'); sync_directory()", {"a": b""}),
    "in another directory": (
        "os.mkdir('d'); make('d/a'); sync_directory(); make('b'); sync_directory('d')",
        {"d/a": b""},
    ),
    "renamed": ("synced('a', b'12'); os.rename('a', 'b')", {"a": b"12"}),
    "renamed, directory synced": ("synced('a', b'12'); os.rename('a', 'b'); sync_directory()", {"b": b"12"}),
    "renamed, file synced": ("fd = synced('a', b'12'); os.rename('a', 'b'); os.fsync(fd)", {"b": b"12"}),
    "renamed twice": ("synced('a', b'12'); os.rename('a', 'b'); os.rename('b', 'c')", {"a": b"12"}),
    "replaced": ("synced('a', b'12'); synced('b', b'34'); os.rename('b', 'a')", {"a": b"12", "b": b"34"}),
    "replaced, directory synced": (
        "synced('a', b'12'); synced('b', b'34'); os.rename('b', 'a'); sync_directory()",
        {"a": b"34"},
    ),
    "replaced twice": (  # that the third b is durable says that the second is not called so any more
        "for text in b'1', b'2', b'3': synced('b', text); os.rename('b', 'a')",
        {"a": b"2", "b": b"3"},
    ),
    "linked": ("synced('a', b'12'); os.link('a', 'b')", {"a": b"12"}),
    "linked, directory synced": ("synced('a', b'12'); os.link('a', 'b'); sync_directory()", {"a": b"12", "b": b"12"}),
    "removed": ("synced('a', b'12'); os.unlink('a')", {"a": b"12"}),
    "removed, directory synced": ("synced('a', b'12'); os.unlink('a'); sync_directory()", {}),
    "changed, then removed": ("fd = synced('a', b'12'); os.write(fd, b'34'); os.unlink('a')", {"a": b"12"}),
    "removed and made anew": ("synced('a', b'12'); os.unlink('a'); synced('a', b'34')", {"a": b"34"}),
    "its place taken by a durable one": (
        "make('a'); fd = synced('b', b'34'); os.rename('b', 'a'); os.fsync(fd)",
        {"a": b"34"},
    ),
    "a directory renamed": ("os.mkdir('d'); synced('d/a', b'12'); os.rename('d', 'e')", {"d/a": b"12"}),
    "a failed sync of the directory": ("make('a', b'12'); sync_fails('.', sync_directory)", {}),
}


@pytest.mark.parametrize("case", NAMES)
def test_dirloss_undoes_names_that_nothing_made_durable(machine: Machine, case: str) -> None:
    script, expected = NAMES[case]
    machine.die(f"{script}\nend()", keep_unlinked=True)
    machine.power_cut("dirloss")
    assert machine.files() == expected


def test_without_keep_unlinked_a_removed_file_is_gone_and_takes_no_room(machine: Machine) -> None:
    machine.die("synced('a', b'12'); os.unlink('a'); end()")
    assert not list((machine.state / "kept").iterdir())
    assert machine.power_cut("dirloss").entries == ()
    assert machine.files() == {}


def test_the_report_names_what_was_undone(machine: Machine) -> None:
    machine.die("synced('a', b'12'); sync_directory(); os.rename('a', 'b'); make('c'); end()")
    root = machine.root
    assert machine.power_cut("dirloss").entries == (f"created {root}/c", f"renamed {root}/a -> {root}/b")


# ---------------------------------------------------------------------------------------------------------- lives


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_power_cut_left_is_durable_in_the_next_life(machine: Machine, policy: Policy) -> None:
    machine.die("fd = make('a', b'12'); os.fsync(fd); sync_directory(); os.write(fd, b'34' * 9999); end()")
    machine.power_cut(policy)
    left = machine.files()
    machine.die("fd = os.open('a', os.O_RDWR); os.pwrite(fd, b'x', 0); end()")
    machine.power_cut("truncate")
    assert machine.files() == left


def test_a_life_goes_on_through_the_death_of_a_process(machine: Machine) -> None:
    machine.die("fd = synced('a', b'12'); os.write(fd, b'34'); make('b'); os.rename('b', 'a2'); end()")
    machine.die("fd = os.open('a', os.O_RDWR); os.pwrite(fd, b'56', 4); synced('c', b''); end()")
    assert machine.files() == {"a": b"123456", "a2": b"", "c": b""}
    machine.power_cut("truncate")
    assert machine.files() == {"a": b"12", "a2": b"", "c": b""}


def test_kept_files_of_two_children_of_one_life_have_their_own_numbers(machine: Machine) -> None:
    for one, two in ("ab", "cd"):
        machine.die(f"synced({one!r}, b'1'); synced({two!r}, b'2'); os.rename({two!r}, {one!r}); end()")
    machine.power_cut("dirloss")
    assert machine.files() == {"a": b"1", "b": b"2", "c": b"1", "d": b"2"}


def test_a_journal_is_read_up_to_where_it_was_torn(machine: Machine) -> None:
    machine.die("fd = synced('a', b'12'); os.pwrite(fd, b'345', 1); os.rename('a', 'b'); end()")
    path = machine.state / "journal"
    journal, events = path.read_bytes(), list(read_journal(path))
    assert [event.kind.name for event in events] == [
        "CREATED",
        "DIRTY",
        "SYNC_BEGIN",
        "SYNC_END",
        "DIRTY",
        "DIRTY",
        "RENAMED",
    ]
    counts = []
    for size in range(len(journal)):
        path.write_bytes(journal[:size])
        found = list(read_journal(path))
        assert found == events[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts.count(len(events) - 1) == 56 + 2 * len(f"{machine.root}/a") + 2, "the last record: header, two names"


def test_a_number_used_again_starts_a_new_file(machine: Machine) -> None:
    life = Life()
    for kind in (Kind.DIRTY, Kind.CREATED):
        life.follow(Event(kind, 1, (1, 2), 0, 5, 0, ("/a",), b""))
    assert not life.contents.get((1, 2))


def test_a_file_mapped_for_writing_is_named(machine: Machine) -> None:
    script = """
        import mmap
        mmap.mmap(synced("a", b"12"), 2)
        mmap.mmap(synced("b", b"12"), 2, mmap.MAP_PRIVATE)
        end()
    """
    machine.die(script)
    assert machine.power_cut("truncate").mapped == (f"{machine.root}/a",)
