"""`Rocks` on a real RocksDB: what is read is what was written, what is open is closed. Faults: `test_rocks_faults`."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rocksdict import Options, Rdict

from deltalog.errors import (
    StoreBackpressure,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFormatMismatch,
    StoreInUse,
    StoreIOError,
    StoreMissing,
    StoreReadOnly,
    StoreUsageError,
)
from deltalog.rocks import UNFLUSHED, Batch, FamilyProfile, Rocks, SharedMemory, _rdict

FAMILIES = {"a": FamilyProfile(), "b": FamilyProfile(compression="zstd", bloom_bits=10)}
MEMORY = SharedMemory()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Rocks]:
    store = Rocks.create(path, FAMILIES, MEMORY)
    yield store
    store.close()


def reopened(path: Path) -> Rocks:
    return Rocks.open(path, FAMILIES, MEMORY)


def put(store: Rocks, family: str, **values: str) -> None:
    batch = store.batch()
    for key, value in values.items():
        batch.put(family, key.encode(), value.encode())
    store.write(batch)


def each(*calls: Callable[[], object]) -> tuple[Callable[[], object], ...]:
    """Calls of different types, as mypy would like to hear it."""
    return calls


def fill(store: Rocks, count: int, value_bytes: int = 0) -> None:
    """Keys 000000 and on in family a; values that say their number, or of so many bytes that do not compress."""
    batch = store.batch()
    for number in range(count):
        batch.put("a", b"%06d" % number, os.urandom(value_bytes) if value_bytes else b"value %d" % number)
    store.write(batch)


def write_at_last(store: Rocks, batch: Batch) -> int:
    """Write as a caller does that retries; return how often it was refused."""
    refused = 0
    while True:
        try:
            store.write(batch)
            return refused
        except StoreBackpressure:
            refused += 1
            time.sleep(0.001)


def keys(store: Rocks, family: str = "a") -> list[bytes]:
    return [key for key, _ in store.scan(family)]


class Interrupted:
    """A family in which something else happens right before or after one method of it is called for the first time."""

    def __init__(self, family: Rdict, method: str, happens: Callable[[], object], *, before: bool) -> None:
        self.family, self.method, self.happens, self.before = family, method, happens, before

    def __getattr__(self, name: str) -> Any:
        read = getattr(self.family, name)
        if name != self.method:
            return read

        def interrupted(*arguments: str) -> object:
            happens, self.happens = self.happens, lambda: None  # once
            if self.before:
                happens()
            answer = read(*arguments)
            if not self.before:
                happens()
            return answer

        return interrupted


# ------------------------------------------------------------------------------------------------------------ create


def test_create_makes_an_empty_store_and_nothing_beside_it(path: Path) -> None:
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        assert keys(store, "a") == keys(store, "b") == []
        assert store.sequence_number() == 0
        assert os.listdir(path.parent) == [path.name]
        assert path.stat().st_mode & 0o077 == 0


def test_create_takes_an_empty_directory(path: Path) -> None:
    path.mkdir()
    Rocks.create(path, FAMILIES, MEMORY).close()
    reopened(path).close()


def test_create_refuses_a_directory_that_has_anything_in_it(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(StoreUsageError, match=r"not empty \('notes.txt'\)"):
        Rocks.create(path, FAMILIES, MEMORY)
    assert os.listdir(path) == ["notes.txt"]
    assert os.listdir(path.parent) == [path.name]


def test_create_refuses_a_store_that_exists(path: Path) -> None:
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        put(store, "a", key="value")
    with pytest.raises(StoreUsageError):
        Rocks.create(path, FAMILIES, MEMORY)
    with closing(reopened(path)) as store:
        assert store.get("a", b"key") == b"value"


def test_create_refuses_a_file_and_a_link(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreUsageError, match="not a directory"):
        Rocks.create(path, FAMILIES, MEMORY)
    path.unlink()
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(StoreUsageError, match="not a directory"):
        Rocks.create(path, FAMILIES, MEMORY)


def test_create_needs_a_parent(path: Path) -> None:
    with pytest.raises(StoreMissing, match="no directory"):
        Rocks.create(path / "deeper", FAMILIES, MEMORY)
    assert not path.exists()


def test_create_goes_on_after_a_crash_in_the_middle(path: Path) -> None:
    """What a killed `create` leaves stands beside the path, so the path stays missing, and can be created."""
    unfinished = path.with_name("store.creating")
    made = Rocks.create(unfinished, FAMILIES, MEMORY)
    made.close()
    (unfinished / "CURRENT").unlink()
    with pytest.raises(StoreMissing):
        reopened(path)
    Rocks.create(path, FAMILIES, MEMORY).close()
    assert os.listdir(path.parent) == [path.name]


def test_default_is_no_family_to_name(path: Path) -> None:
    with pytest.raises(StoreUsageError, match="default"):
        Rocks.create(path, {"default": FamilyProfile()}, MEMORY)
    assert os.listdir(path.parent) == []


# -------------------------------------------------------------------------------------------------------------- open


OPENERS: list[Callable[[Path], Rocks]] = [reopened, lambda path: Rocks.open_read_only(path, FAMILIES, MEMORY)]
opener = pytest.mark.parametrize("opened", OPENERS, ids=["open", "open_read_only"])


@opener
def test_open_never_creates(path: Path, opened: Callable[[Path], Rocks]) -> None:
    with pytest.raises(StoreMissing):
        opened(path)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(StoreMissing, match="holds no store"):
        opened(path)
    assert os.listdir(path) == []


def test_rocksdb_itself_is_told_never_to_create(path: Path) -> None:
    """Should CURRENT go between our look and RocksDB's."""
    with pytest.raises(Exception, match="create_if_missing is false"):
        _rdict(path, FAMILIES, MEMORY)


@opener
@pytest.mark.parametrize("left", ["000009.sst", "MANIFEST-000005", "000004.log"])
def test_open_calls_a_store_without_current_corrupt_and_touches_nothing(
    path: Path, opened: Callable[[Path], Rocks], left: str
) -> None:
    path.mkdir()
    (path / left).write_bytes(b"data")
    with pytest.raises(StoreCorrupt, match=f"CURRENT is missing, but there is '{left}'"):
        opened(path)
    assert os.listdir(path) == [left]


@opener
def test_open_refuses_links(path: Path, opened: Callable[[Path], Rocks]) -> None:
    Rocks.create(path, FAMILIES, MEMORY).close()
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(StoreFormatMismatch, match="symbolic link"):
        opened(link)
    (path / "CURRENT").rename(path.parent / "CURRENT")
    (path / "CURRENT").symlink_to(path.parent / "CURRENT")
    with pytest.raises(StoreFormatMismatch, match="'CURRENT' is a symbolic link"):
        opened(path)


@opener
def test_open_refuses_a_file(path: Path, opened: Callable[[Path], Rocks]) -> None:
    path.write_bytes(b"not a directory")
    with pytest.raises(StoreFormatMismatch, match="it is a file"):
        opened(path)
    assert path.read_bytes() == b"not a directory"


@pytest.mark.parametrize("bad", ["nul\0", "", "surrogate\udc80", b"bytes"])
def test_path_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(StoreUsageError, match="path"):
        reopened(bad)  # type: ignore[arg-type]


def test_path_may_hold_any_other_character(tmp_path: Path) -> None:
    path = tmp_path / "a:b\n 'ü' 🦀"
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        put(store, "a", key="value")
    with closing(reopened(path)) as store:
        assert store.get("a", b"key") == b"value"


def test_relative_path_is_fixed_at_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with closing(Rocks.create("store", FAMILIES, MEMORY)) as store:
        assert store.path == path
        monkeypatch.chdir("/")
        put(store, "a", key="value")
        store.flush()
        assert store.size_bytes() > 0
        assert store.health().lock_ours


@opener
def test_open_needs_just_the_families_there_are(path: Path, opened: Callable[[Path], Rocks]) -> None:
    Rocks.create(path, {"a": FamilyProfile()}, MEMORY).close()
    with pytest.raises(StoreFormatMismatch, match="Column family not found: b"):
        opened(path)
    Rocks.create(path.with_name("more"), {**FAMILIES, "c": FamilyProfile()}, MEMORY).close()
    with pytest.raises(StoreFormatMismatch, match="Column families not opened: c"):
        reopened(path.with_name("more"))


def test_open_refuses_a_database_of_another_mode(path: Path) -> None:
    options = Options(raw_mode=False)
    options.create_if_missing(True)
    Rdict(str(path), options, {"default": options}).close()
    with pytest.raises(StoreFormatMismatch, match="comparator"):
        Rocks.open(path, {}, MEMORY)


def test_second_open_is_refused_and_harms_nothing(path: Path) -> None:
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        put(store, "a", key="value")
        with pytest.raises(StoreInUse, match="current process"):
            reopened(path)
        put(store, "a", other="value")
    with closing(reopened(path)) as store:
        assert keys(store) == [b"key", b"other"]


HOLD = """
import sys
from deltalog.rocks import *
store = Rocks.open(sys.argv[1], {"a": FamilyProfile(), "b": FamilyProfile()}, SharedMemory())
print("open", flush=True)
sys.stdin.read()
store.close()
"""


def test_second_open_in_another_process_is_refused(path: Path) -> None:
    Rocks.create(path, FAMILIES, MEMORY).close()
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUse, match="temporarily unavailable"):
            reopened(path)
    assert holder.returncode == 0
    reopened(path).close()


def test_read_only_sees_what_a_living_writer_wrote_and_writes_nothing(path: Path, store: Rocks) -> None:
    put(store, "a", flushed="1")
    store.flush()
    put(store, "a", unflushed="2")
    before = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith("LOG")}
    with closing(Rocks.open_read_only(path, FAMILIES, MEMORY)) as reader:
        assert keys(reader) == [b"flushed", b"unflushed"]
        put(store, "a", later="3")
        assert keys(reader) == [b"flushed", b"unflushed"]
        for write in each(lambda: put(reader, "a", key="value"), reader.sync):
            with pytest.raises(StoreReadOnly):
                write()
    after = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith("LOG")}
    wal = max(name for name in before if name.endswith(".log"))
    assert after.pop(wal).startswith(before.pop(wal))
    assert after == before


def test_read_only_beside_a_compacting_writer_is_right_or_fails(path: Path, store: Rocks) -> None:
    """It fails once in 25 opens here, as if damaged: files it was about to open were just removed. Never silently."""
    put(store, "a", always="there")
    store.flush()
    stop = threading.Event()

    def compact() -> None:
        while not stop.is_set():
            put(store, "a", key="value")
            store.flush()

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(compact)
        for _ in range(100):
            try:
                with closing(Rocks.open_read_only(path, FAMILIES, MEMORY)) as reader:
                    assert reader.get("a", b"always") == b"there"
            except (StoreCorrupt, StoreIOError):
                continue
        stop.set()
        writer.result()
    assert store.get("a", b"always") == b"there"


def test_options_are_never_read_back_from_the_directory(path: Path) -> None:
    """What a failed open of a stranger leaves there is harmless."""
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        put(store, "a", key="value")
    (path / "rocksdict-config.json").write_text('{"raw_mode": false, "prefix_extractors": {}}')
    for options in path.glob("OPTIONS-*"):
        options.write_text("garbage")
    with closing(reopened(path)) as store:
        assert list(store.scan("a")) == [(b"key", b"value")]


def test_profile_may_change_from_one_open_to_the_next(path: Path) -> None:
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        fill(store, 1_000)
        store.compact()
    other = FamilyProfile(compression="none", bottommost_zstd_level=None, block_bytes=4096, bloom_bits=0)
    with closing(Rocks.open(path, {"a": other, "b": other}, MEMORY)) as store:
        assert len(keys(store)) == 1_000
        store.compact()
        assert len(keys(store)) == 1_000


@pytest.mark.parametrize(("compression", "zstd"), [("none", None), ("lz4", None), ("zstd", None), ("none", 1)])
def test_each_compression_is_in_the_wheel(path: Path, compression: str, zstd: int | None) -> None:
    profile = FamilyProfile(compression=compression, bottommost_zstd_level=zstd)  # type: ignore[arg-type]
    with closing(Rocks.create(path, {"a": profile}, MEMORY)) as store:
        batch = store.batch()
        for number in range(1_000):
            batch.put("a", b"%06d" % number, b"x" * 1_000)
        store.write(batch)
        store.compact()
        assert list(store.scan("a")) == [(b"%06d" % number, b"x" * 1_000) for number in range(1_000)]
        compressed = sum(file.size_bytes for file in store.files()) < 100_000
        assert compressed == ((compression, zstd) != ("none", None))


def test_instances_share_one_memory(tmp_path: Path) -> None:
    memory = SharedMemory(cache_bytes=8 << 20, write_buffers_bytes=4 << 20)
    stores = [Rocks.create(tmp_path / str(number), FAMILIES, memory) for number in range(3)]
    before = memory.used_bytes()
    for round_number in range(100):
        batch = stores[0].batch()
        for part in range(50):
            batch.put("a", b"%06d %02d" % (round_number, part), os.urandom(1_000))
        for store in stores:
            write_at_last(store, batch)
        assert memory.used_bytes() <= 1.5 * memory.cache_bytes
    assert before < memory.used_bytes()
    assert all(store.files() for store in stores)  # 5 MB each: the budget made them flush
    for store in stores:
        assert len(keys(store)) == 5_000
        assert memory.used_bytes() <= 1.5 * memory.cache_bytes
        store.close()


def test_families_of_little_use_take_little_memory(tmp_path: Path) -> None:
    """RocksDB's own step takes half a MiB of the shared budget for each family with a few KB in it."""
    memory = SharedMemory()
    stores = [Rocks.create(tmp_path / str(number), FAMILIES, memory) for number in range(5)]
    for store in stores:
        batch = store.batch()
        for number in range(20):
            for family in FAMILIES:
                batch.put(family, b"%d" % number, bytes(1_000))
        store.write(batch)
    assert memory.buffers.get_usage() < 10 * (128 << 10)
    for store in stores:
        store.close()


# ------------------------------------------------------------------------------------------------------------- write


def test_write_is_visible_and_survives_a_reopen(path: Path) -> None:
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        put(store, "a", k1="1", k2="2")
        put(store, "b", k1="b")
        store.sync()
        assert store.get("a", b"k1") == b"1"
    with closing(reopened(path)) as store:
        assert list(store.scan("a")) == [(b"k1", b"1"), (b"k2", b"2")]
        assert list(store.scan("b")) == [(b"k1", b"b")]


def test_batch_applies_in_order(store: Rocks) -> None:
    put(store, "a", a="old", b="old", c="old", d="old")
    batch = store.batch()
    batch.put("a", b"a", b"new")
    batch.delete_range("a", b"a", b"c")
    batch.put("a", b"b", b"new")
    batch.delete("a", b"c")
    store.write(batch)
    assert list(store.scan("a")) == [(b"b", b"new"), (b"d", b"old")]


def test_delete_range_keeps_its_end_and_the_other_family(store: Rocks) -> None:
    for family in "ab":
        put(store, family, a="1", b="1", c="1")
    batch = store.batch()
    batch.delete_range("a", b"a", b"c")
    batch.delete_range("b", b"b", b"b")
    store.write(batch)
    assert keys(store, "a") == [b"c"]
    assert keys(store, "b") == [b"a", b"b", b"c"]


def test_empty_keys_values_and_batches(store: Rocks) -> None:
    store.write(store.batch())
    assert store.sequence_number() == 0
    batch = store.batch()
    batch.put("a", b"", b"")
    store.write(batch)
    assert list(store.scan("a")) == [(b"", b"")]
    assert store.get("a", b"") == b""
    assert store.seek_last("a", b"") == (b"", b"")


def test_a_batch_may_be_written_again(store: Rocks) -> None:
    batch = store.batch()
    batch.put("a", b"key", b"value")
    store.write(batch)
    store.write(batch)
    assert store.sequence_number() == 2


def test_batch_of_another_store_is_refused_before_rocksdb_sees_it(store: Rocks, tmp_path: Path) -> None:
    with closing(Rocks.create(tmp_path / "other", {"a": FamilyProfile(), "x": FamilyProfile()}, MEMORY)) as other:
        batch = other.batch()
        batch.put("a", b"key", b"value")
        batch.put("x", b"key", b"value")
    with pytest.raises(StoreUsageError, match="'x'"):
        store.write(batch)
    assert keys(store) == []
    put(store, "a", still="works")
    assert store.health().last_error is None


def test_backpressure_applies_nothing_and_passes(path: Path) -> None:
    families = {"a": FamilyProfile(write_buffer_bytes=64 << 10)}
    refused = 0
    with closing(Rocks.create(path, families, MEMORY)) as store:
        for number in range(20_000):
            batch = store.batch()
            for part in range(20):
                batch.put("a", b"%06d %02d" % (number, part), os.urandom(1_000))
            while True:
                before = store.sequence_number()
                try:
                    store.write(batch)
                    break
                except StoreBackpressure:
                    refused += 1
                    assert store.sequence_number() == before
            if refused > 10:
                break
        assert refused > 10
        assert store.health().last_error is None
        assert len(keys(store)) == 20 * (number + 1)


# -------------------------------------------------------------------------------------------------------------- read


def test_get_and_get_many(store: Rocks) -> None:
    fill(store, 100)
    assert store.get("a", b"000007") == b"value 7"
    assert store.get("a", b"no") is None
    assert store.get_many("a", []) == []
    assert store.get_many("a", (b"000009", b"no", b"000001", b"000009")) == [b"value 9", None, b"value 1", b"value 9"]


RANGES = [
    (b"", None),
    (b"", b""),
    (b"", b"000003"),
    (b"000003", b"000003"),
    (b"000003", b"000007"),
    (b"000003\0", b"000007\0"),
    (b"0000035", b"0000065"),
    (b"000008", None),
    (b"9", None),
    (b"", b"0"),
]


@pytest.mark.parametrize(("begin", "end"), RANGES)
@pytest.mark.parametrize("flushed", [False, True])
def test_scan_is_half_open_both_ways(store: Rocks, begin: bytes, end: bytes | None, flushed: bool) -> None:
    fill(store, 10)
    if flushed:
        store.flush()
    everything = [(b"%06d" % number, b"value %d" % number) for number in range(10)]
    wanted = [pair for pair in everything if pair[0] >= begin and (end is None or pair[0] < end)]
    assert list(store.scan("a", begin=begin, end=end)) == wanted
    assert list(store.scan("a", begin=begin, end=end, reverse=True)) == wanted[::-1]
    with store.view("a") as view:
        assert list(view.scan("a", begin, end)) == wanted
        assert list(view.scan("a", begin, end, reverse=True)) == wanted[::-1]


def test_scan_is_as_of_its_call(store: Rocks) -> None:
    put(store, "a", a="1", b="1")
    scan = store.scan("a")
    put(store, "a", a="2", b="2", c="2")
    assert list(scan) == [(b"a", b"1"), (b"b", b"1")]


def test_scan_checks_its_arguments_at_the_call(store: Rocks) -> None:
    for wrong in each(
        lambda: store.scan("x"),
        lambda: store.scan("default"),
        lambda: store.scan("a", begin=b"b", end=b"a"),
        lambda: store.scan("a", begin="b"),  # type: ignore[arg-type]
        lambda: store.scan("a", end=bytearray(b"b")),  # type: ignore[arg-type]
    ):
        with pytest.raises(StoreUsageError):
            wrong()
    assert store.health().in_flight == 0


@pytest.mark.parametrize(
    ("at_most", "at_least", "wanted"),
    [
        (b"000005", b"", b"000005"),
        (b"0000055", b"", b"000005"),
        (b"9", b"", b"000009"),
        (b"9", b"000009", b"000009"),
        (b"9", b"0000091", None),
        (b"0", b"", None),
        (b"000005", b"000005", b"000005"),
        (b"000004", b"000005", None),
    ],
)
def test_seek_last_is_inclusive_both_ways(store: Rocks, at_most: bytes, at_least: bytes, wanted: bytes | None) -> None:
    fill(store, 10)
    with store.view("a") as view:
        for found in (store.seek_last("a", at_most, at_least), view.last("a", at_most, at_least)):
            assert (found[0] if found else None) == wanted
            assert found is None or found[1] == b"value %d" % int(found[0])


def test_view_is_one_moment_although_a_write_strikes_while_it_is_taken(store: Rocks) -> None:
    batch = store.batch()
    for family in "ab":
        batch.put(family, b"key", b"value")
    with ThreadPoolExecutor() as pool:
        write = lambda: wait([pool.submit(store.write, batch)], timeout=0.2)  # noqa: E731  # waits for the view, so in vain
        store._family["b"] = Interrupted(store._family["b"], "iter", write, before=True)  # type: ignore[assignment]
        with store.view("a", "b") as view:
            assert list(view.scan("a")) == list(view.scan("b")) == []
    store._family["b"] = store._family["b"].family  # type: ignore[attr-defined]
    assert keys(store, "a") == keys(store, "b") == [b"key"]


def test_wrong_arguments_of_reads_change_nothing(store: Rocks) -> None:
    for wrong in (
        lambda: store.get("x", b""),
        lambda: store.get("a", "text"),  # type: ignore[arg-type]
        lambda: store.get("a", [b"list"]),  # type: ignore[arg-type]
        lambda: store.get_many("a", [b"", "text"]),  # type: ignore[list-item]
        lambda: store.get_many("x", []),
        lambda: store.seek_last("a", None),  # type: ignore[arg-type]
        lambda: store.seek_last("x", b""),
        lambda: store.view("a", "x"),
        lambda: store.compact("x"),
        lambda: store.compact("a", b"b", b"a"),
        lambda: store.file_of("x", b""),
    ):
        with pytest.raises(StoreUsageError):
            wrong()
    assert store.health().in_flight == 0
    put(store, "a", still="works")


# ------------------------------------------------------------------------------------------------------- maintenance


def flushed_together(path: Path) -> list[set[str]]:
    """The families of each flush, by RocksDB's LOG: an atomic one is one job."""
    jobs: dict[str, set[str]] = {}
    for family, job in re.findall(r"\[(\w+)\] \[JOB (\d+)\] Flushing memtable", (path / "LOG").read_text()):
        jobs.setdefault(job, set()).add(family)
    return list(jobs.values())


def test_flush_takes_every_family_in_one_step(path: Path, store: Rocks) -> None:
    """A flush of one family alone would leave, after a crash with a damaged WAL, families of different age."""
    put(store, "a", key="1")
    put(store, "b", key="2")
    wals = set(path.glob("*.log"))
    store.flush()
    assert {file.family for file in store.files()} == {"a", "b"}
    assert not wals & set(path.glob("*.log"))
    assert flushed_together(path) == [{"a", "b"}]


def test_close_flushes_every_family_in_one_step(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    put(store, "a", key="1")
    put(store, "b", key="2")
    store.close()
    assert flushed_together(path) == [{"a", "b"}]


def test_compact_removes_deleted_bytes_from_every_file(path: Path, store: Rocks) -> None:
    secret, kept = os.urandom(2_000), os.urandom(2_000)
    batch = store.batch()
    batch.put("a", b"secret", secret)
    batch.put("a", b"range", secret)
    batch.put("a", b"kept", kept)
    store.write(batch)
    store.compact()
    batch = store.batch()
    batch.delete("a", b"secret")
    batch.delete_range("a", b"range", b"rangf")
    store.write(batch)
    on_disk = b"".join(file.read_bytes() for file in path.iterdir())
    assert secret[100:200] in on_disk
    store.compact("a", b"", b"t")
    on_disk = b"".join(file.read_bytes() for file in path.iterdir())
    assert secret[100:200] not in on_disk
    assert kept[100:200] in on_disk
    assert keys(store) == [b"kept"]
    assert [file.deletions for file in store.files()] == [0]


@pytest.mark.parametrize("in_files", [True, False], ids=["each in a file", "both in memory"])
@pytest.mark.parametrize("bounds", [(None, None, None), ("a", None, None), ("a", b"", b"z")], ids=repr)
@pytest.mark.parametrize("how", ["delete", "delete_range", "overwrite"])
def test_compact_erases_although_the_files_could_be_moved_unmerged(
    path: Path, how: str, bounds: tuple[str | None, bytes | None, bytes | None], in_files: bool
) -> None:
    """RocksDB's own default moves a file with the value and a file with its delete down as they are: both stay."""
    secret = os.urandom(64)
    with closing(
        Rocks.create(path, {"a": FamilyProfile(compression="none", bottommost_zstd_level=None)}, MEMORY)
    ) as store:
        for step in ("put", how):
            batch = store.batch()
            if step == "put":
                batch.put("a", b"key", secret)
            elif step == "delete":
                batch.delete("a", b"key")
            elif step == "delete_range":
                batch.delete_range("a", b"key", b"kez")
            else:
                batch.put("a", b"key", b"new")
            store.write(batch)
            if in_files:
                store.flush()
        assert any(secret in file.read_bytes() for file in path.iterdir())
        store.compact(*bounds)
        assert not [file.name for file in path.iterdir() if secret in file.read_bytes()]
        assert store.get("a", b"key") == (b"new" if how == "overwrite" else None)


def test_compact_takes_what_was_never_flushed(path: Path, store: Rocks) -> None:
    secret = os.urandom(2_000)
    batch = store.batch()
    batch.put("a", b"secret", secret)
    batch.put("b", b"other", b"value")
    store.write(batch)
    batch = store.batch()
    batch.delete("a", b"secret")
    store.write(batch)
    store.compact("a")
    assert secret[100:200] not in b"".join(file.read_bytes() for file in path.iterdir())
    assert store.get("b", b"other") == b"value"


def test_compact_gives_disk_space_back(store: Rocks) -> None:
    fill(store, 2_000, 2_000)
    store.compact()
    before = store.size_bytes()
    batch = store.batch()
    batch.delete_range("a", b"", b"9")
    store.write(batch)
    store.compact()
    assert store.files() == []
    assert store.size_bytes() < before / 10


def test_scan_that_is_open_keeps_what_compact_removes(store: Rocks) -> None:
    fill(store, 2_000)
    store.flush()
    scan = store.scan("a")
    batch = store.batch()
    batch.delete_range("a", b"", b"9")
    store.write(batch)
    store.compact()
    assert len(list(scan)) == 2_000
    assert keys(store) == []


# -------------------------------------------------------------------------------------------------------- statistics


def test_sequence_number_counts_operations(store: Rocks) -> None:
    assert store.sequence_number() == 0
    fill(store, 10)
    batch = store.batch()
    batch.delete_range("a", b"0", b"1")
    batch.delete("b", b"no")
    store.write(batch)
    assert store.sequence_number() == 12
    store.compact()
    assert store.sequence_number() == 12


def test_files_by_family_and_file_of(store: Rocks) -> None:
    assert store.files() == []
    assert store.file_of("a", b"x") is None
    fill(store, 10)
    assert store.file_of("a", b"000003") == UNFLUSHED
    assert store.file_of("b", b"000003") is None
    store.flush()
    (first,) = store.files()
    assert (first.family, first.level, first.entries, first.deletions) == ("a", 0, 10, 0)
    assert (first.first_key, first.last_key) == (b"000000", b"000009")
    assert (store.path / first.name).stat().st_size == first.size_bytes
    put(store, "b", key="value")
    fill(store, 5)
    store.flush()
    files = store.files()
    assert [(file.family, file.entries) for file in files] == [("a", 5), ("a", 10), ("b", 1)]
    assert store.file_of("a", b"000003") == files[0].name
    assert store.file_of("a", b"000007") == first.name
    assert store.file_of("b", b"key") == files[2].name
    assert store.file_of("a", b"9") is None
    store.compact()
    assert [(file.family, file.level, file.entries) for file in store.files()] == [("a", 6, 10), ("b", 6, 1)]


@pytest.mark.parametrize("before", [True, False])
def test_files_are_told_their_family_although_a_compaction_strikes_in_between(store: Rocks, before: bool) -> None:
    for _ in range(2):
        fill(store, 10)
        store.flush()
    family = store._family["a"]
    merge = lambda: family.compact_range(None, None)  # noqa: E731
    store._family["a"] = Interrupted(family, "property_value", merge, before=before)  # type: ignore[assignment]
    assert [(file.family, file.entries) for file in store.files()] == [("a", 10)]
    store._family["a"] = family


@pytest.mark.parametrize("before", [True, False])
def test_file_of_finds_a_key_although_a_flush_strikes_in_between(store: Rocks, before: bool) -> None:
    fill(store, 10)
    family = store._family["a"]
    store._family["a"] = Interrupted(family, "property_int_value", family.flush, before=before)  # type: ignore[assignment]
    found = store.file_of("a", b"000003")
    store._family["a"] = family
    assert found == store.files()[0].name


def test_size_is_what_du_counts(store: Rocks) -> None:
    fill(store, 1_000, 1_000)
    store.flush()
    files = subprocess.run(["du", "--block-size=1", "-S", store.path], capture_output=True, check=True, text=True)
    directory = store.path.stat().st_blocks * 512
    assert store.size_bytes() == int(files.stdout.split()[0]) - directory
    assert store.size_bytes() > 1_000_000


def test_health_of_a_sound_handle(store: Rocks) -> None:
    health = store.health()
    assert attrs.asdict(health) == {
        "background_errors": 0,
        "write_stopped": False,
        "lock_ours": True,
        "closed": False,
        "in_flight": 0,
        "last_error": None,
    }
    with closing(store.scan("a")), store.view():
        assert store.health().in_flight == 2


def test_health_sees_a_directory_removed_or_replaced_underneath(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    path.rename(path.with_name("moved"))
    assert not store.health().lock_ours
    shutil.copytree(path.with_name("moved"), path)
    assert not store.health().lock_ours
    shutil.rmtree(path)
    path.with_name("moved").rename(path)
    assert store.health().lock_ours
    store.close()


# ------------------------------------------------------------------------------------------------------------- close


def test_close_is_idempotent_and_frees_the_lock(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    put(store, "a", key="value")
    store.close()
    store.close()
    assert store.health().closed
    again = reopened(path)
    store.close()
    again.close()


def test_every_call_on_a_closed_handle_says_so(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    batch = store.batch()
    store.close()
    for call in (
        lambda: store.write(batch),
        store.sync,
        lambda: store.get("a", b""),
        lambda: store.get_many("a", [b""]),
        lambda: store.scan("a"),
        lambda: store.seek_last("a", b""),
        lambda: store.view("a"),
        store.flush,
        store.compact,
        store.sequence_number,
        store.files,
        lambda: store.file_of("a", b""),
    ):
        with pytest.raises(StoreClosed, match="is closed"):
            call()


@pytest.mark.parametrize("take", ["scan", "begun scan", "reverse scan", "view", "scan of a view"])
def test_close_refuses_while_a_read_is_open(path: Path, take: str) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    fill(store, 10)
    view = store.view("a") if "view" in take else None
    scan = view.scan("a") if view and "scan" in take else None
    if view is None:
        scan = store.scan("a", reverse="reverse" in take)
    if "begun" in take or "of a view" in take:
        assert scan is not None
        next(scan)
    with pytest.raises(StoreBusy, match=r"in flight: (scan|view) of a"):
        store.close()
    put(store, "a", still="works")
    if view is not None:
        view.close()
        view.close()
    else:
        assert scan is not None
        scan.close()
    store.close()
    reopened(path).close()


def test_read_that_is_dropped_is_no_longer_open(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    fill(store, 10)
    for drop in (store.scan("a"), store.view("a"), store.view("a").scan("a")):
        del drop
    gc.collect()
    assert store.health().in_flight == 0
    store.close()


def test_close_refuses_while_a_call_is_running_in_another_thread(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    stop, refused = threading.Event(), 0

    def sync() -> None:
        while not stop.is_set():
            put(store, "a", key="value")
            store.sync()

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(sync)
        while refused < 3 and not writer.done():
            if store.health().in_flight > 1:  # health itself is one, while it asks
                continue
            with store.view():
                pass
            try:
                with store.view():
                    store.close()
            except StoreBusy:
                refused += 1
        stop.set()
        writer.result()
    store.close()
    reopened(path).close()


def test_handle_that_is_dropped_without_close_warns(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    put(store, "a", key="value")
    stores = [store]
    del store
    with pytest.warns(ResourceWarning, match="store was not closed"):
        stores.clear()
    with closing(reopened(path)) as store:
        assert store.get("a", b"key") == b"value"


def test_many_opens_leak_neither_descriptors_nor_files(path: Path) -> None:
    Rocks.create(path, FAMILIES, MEMORY).close()
    reopened(path).close()
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        store = reopened(path)
        put(store, "a", key="value")
        store.close()
    assert len(os.listdir("/dev/fd")) == before
    assert len(list(path.glob("LOG*"))) <= 5
    assert len(list(path.iterdir())) < 40


# ------------------------------------------------------------------------------------------------------- concurrency


def test_eight_writers_and_readers_lose_nothing(path: Path) -> None:
    store = Rocks.create(path, FAMILIES, MEMORY)
    writers, each = 8, 200
    done = threading.Event()

    def write(writer: int) -> None:
        for number in range(each):
            batch = store.batch()
            for family in "ab":
                batch.put(family, b"%d %04d" % (writer, number), b"x" * 500)
            write_at_last(store, batch)
            if number % 50 == 0:
                store.sync()

    def read() -> int:
        views = 0
        while not done.is_set():
            with store.view("a", "b") as view:
                assert list(view.scan("a")) == list(view.scan("b"))  # one moment: never half a batch
            views += 1
        return views

    def compact() -> None:
        while not done.is_set():
            store.compact()

    with ThreadPoolExecutor(writers + 3) as pool:
        readers, compactor = [pool.submit(read), pool.submit(read)], pool.submit(compact)
        for writer in [pool.submit(write, number) for number in range(writers)]:
            writer.result()
        done.set()
        assert all(reader.result() > 0 for reader in readers)
        compactor.result()
    wanted = sorted(b"%d %04d" % (writer, number) for writer in range(writers) for number in range(each))
    assert keys(store, "a") == keys(store, "b") == wanted
    store.close()
    with closing(reopened(path)) as store:
        assert keys(store, "a") == keys(store, "b") == wanted


# ------------------------------------------------------------------------------------------------------------- model


short_keys = st.binary(max_size=2) | st.sampled_from([b"a", b"ab", b"b", b"\0", b"\xff", b"\xff\xff"])
operations = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("ab"), short_keys, st.binary(max_size=40)),
    st.tuples(st.just("delete"), st.sampled_from("ab"), short_keys, st.just(b"")),
    st.tuples(st.just("delete_range"), st.sampled_from("ab"), short_keys, short_keys),
)


class Model(RuleBasedStateMachine):
    """`Rocks` against two dicts."""

    directory: Path
    runs = 0

    @initialize()
    def create(self) -> None:
        type(self).runs += 1
        self.path = self.directory / str(self.runs)
        self.store = Rocks.create(self.path, FAMILIES, MEMORY)
        self.model: dict[str, dict[bytes, bytes]] = {"a": {}, "b": {}}
        self.count = 0

    @rule(batch=st.lists(operations, max_size=12))
    def write(self, batch: list[tuple[str, str, bytes, bytes]]) -> None:
        made = self.store.batch()
        for kind, family, key, value in batch:
            model = self.model[family]
            if kind == "put":
                made.put(family, key, value)
                model[key] = value
            elif kind == "delete":
                made.delete(family, key)
                model.pop(key, None)
            else:
                begin, end = sorted((key, value))
                made.delete_range(family, begin, end)
                self.model[family] = {k: v for k, v in model.items() if not begin <= k < end}
        assert len(made) == len(batch)
        self.store.write(made)
        self.count += len(batch)

    @rule(family=st.sampled_from("ab"), one=short_keys, other=short_keys | st.none(), reverse=st.booleans())
    def scan(self, family: str, one: bytes, other: bytes | None, reverse: bool) -> None:
        begin, end = (one, None) if other is None else sorted((one, other))
        wanted = sorted(
            (pair for pair in self.model[family].items() if begin <= pair[0] and (end is None or pair[0] < end)),
            reverse=reverse,
        )
        assert list(self.store.scan(family, begin=begin, end=end, reverse=reverse)) == wanted

    @rule(family=st.sampled_from("ab"), keys=st.lists(short_keys))
    def get(self, family: str, keys: list[bytes]) -> None:
        wanted = [self.model[family].get(key) for key in keys]
        assert self.store.get_many(family, keys) == wanted
        assert [self.store.get(family, key) for key in keys] == wanted

    @rule(family=st.sampled_from("ab"), at_most=short_keys, at_least=short_keys)
    def seek_last(self, family: str, at_most: bytes, at_least: bytes) -> None:
        wanted = max((pair for pair in self.model[family].items() if at_least <= pair[0] <= at_most), default=None)
        assert self.store.seek_last(family, at_most, at_least) == wanted

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(family=st.sampled_from(["a", "b", None]))
    def compact(self, family: str | None) -> None:
        self.store.compact(family)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = reopened(self.path)

    @rule()
    def read_only(self) -> None:
        """Of a closed store: beside a writer a compaction may make it fail, see `test_read_only_beside_...`."""
        self.store.close()
        with closing(Rocks.open_read_only(self.path, FAMILIES, MEMORY)) as reader:
            for family, model in self.model.items():
                assert dict(reader.scan(family)) == model
        self.store = reopened(self.path)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.view() as view:
            for family, model in self.model.items():
                assert list(view.scan(family)) == sorted(model.items())
        for family, model in self.model.items():
            for key in sorted(model)[:1]:  # a key that is there; one that is not may lose its file to a compaction
                assert self.store.file_of(family, key) is not None

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.path)


def test_model(tmp_path: Path) -> None:
    Model.directory = tmp_path
    run_state_machine_as_test(Model, settings=settings(max_examples=20, stateful_step_count=30))
