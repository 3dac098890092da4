"""Every row of the error map, provoked on the running rocksdict; by its exact text where that takes a broken disk."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocksdict import AccessType, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from deltalog import errors
from deltalog.rocks_errors import ERROR_MAP, mapped_errors, store_error

ROOT = Path(__file__).parents[2]


def made(raw: bool = True, create: bool = True) -> Options:
    options = Options(raw_mode=raw)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    return options


def opened(
    path: Path, *families: str, access: AccessType | None = None, raw: bool = True, create: bool = True
) -> Rdict:
    each = {name: made(raw, create) for name in ("default", *families)}
    return Rdict(str(path), made(raw, create), each, access or AccessType.read_write())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def one_file(path: Path, size: int = 5_000) -> Path:
    """Make a closed database with one sorted file; return that."""
    db = opened(path)
    db[b"key"] = os.urandom(size)
    db.flush()
    db.close()
    return next(path.glob("*.sst"))


# ----------------------------------------------------------------------------------------- provocations: each raises


def in_use_here(path: Path) -> None:
    db = opened(path)
    try:
        opened(path)
    finally:
        db.close()


HOLD = """
import sys
from rocksdict import Options, Rdict
db = Rdict(sys.argv[1], Options(raw_mode=True))
print("open", flush=True)
sys.stdin.read()
db.close()
"""


def in_use_elsewhere(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        opened(path)


def missing(path: Path) -> None:
    opened(path, create=False)


def missing_for_reading(path: Path) -> None:
    opened(path, create=False, access=AccessType.read_only(False))


def damaged_block(path: Path) -> None:
    flip(one_file(path), 1_000)
    db = opened(path, create=False)
    try:
        db.get(b"key")
    finally:
        db.close()


def missing_file(path: Path) -> None:
    one_file(path).unlink()
    opened(path, create=False)


def missing_manifest(path: Path) -> None:
    one_file(path)
    next(path.glob("MANIFEST-*")).unlink()
    opened(path, create=False)


def damaged_manifest(path: Path) -> None:
    one_file(path)
    flip(next(path.glob("MANIFEST-*")), 20)
    opened(path, create=False)


def removed_underneath(path: Path) -> None:
    db = opened(path)
    db[b"key"] = b"value"
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    try:
        db.flush()
    finally:
        with pytest.raises(Exception, match="IO error"):
            db.close()


def other_comparator(path: Path) -> None:
    opened(path).close()
    opened(path, raw=False)


def other_comparator_still(path: Path) -> None:
    opened(path, raw=False).close()
    opened(path)


def families_not_opened(path: Path) -> None:
    opened(path, "a").close()
    opened(path, create=False)


def family_not_found(path: Path) -> None:
    opened(path, "a").close()
    opened(path, "a", "b", create=False)


def write_stall(path: Path) -> None:
    options, write = made(), WriteOptions()
    options.set_write_buffer_size(64 << 10)
    options.set_disable_auto_compactions(True)
    options.set_level_zero_slowdown_writes_trigger(1)
    write.no_slowdown = True
    db = Rdict(str(path), options, {"default": options})
    try:
        for number in range(10_000):
            db.put(b"%d" % number, os.urandom(1_000), write)
    finally:
        db.close()


def too_many_skipped(path: Path) -> None:
    db = opened(path)
    for number in range(100):
        db[b"%02d" % number] = b""
        del db[b"%02d" % number]
    options = ReadOptions()
    options.set_max_skippable_internal_keys(10)
    cursor = db.iter(options)
    cursor.seek_to_first()
    assert not cursor.valid()
    try:
        cursor.status()
    finally:
        del cursor
        db.close()


def read_only(path: Path) -> None:
    opened(path).close()
    db = opened(path, access=AccessType.read_only(False))
    try:
        db.put(b"key", b"value")
    finally:
        db.close()


def secondary(path: Path) -> None:
    opened(path).close()
    db = opened(path, access=AccessType.secondary(str(path) + "-secondary"))
    try:
        db.put(b"key", b"value")
    finally:
        db.close()


def poisoned(path: Path, fill: Callable[[Rdict, WriteBatch], None], text: str) -> None:
    """Write a bad batch; the handle is then dead for good ones too, and says the same."""
    db = opened(path)
    bad, good = WriteBatch(raw_mode=True), WriteBatch(raw_mode=True)
    bad.put(b"part", b"applied")
    fill(db, bad)
    good.put(b"good", b"batch")
    try:
        with pytest.raises(Exception, match=text):
            db.write(bad)
        assert db.get([b"part", b"good"]) == [b"applied", None]
        db.write(good)
    finally:
        with pytest.raises(Exception, match=text):
            db.close()


def inverted_range(path: Path) -> None:
    poisoned(path, lambda _db, batch: batch.delete_range(b"z", b"a"), "end key comes before start key")


def dropped_family(path: Path) -> None:
    def fill(db: Rdict, batch: WriteBatch) -> None:
        db.create_column_family("gone", made())
        handle = db.get_column_family_handle("gone")
        db.drop_column_family("gone")
        batch.put(b"key", b"value", handle)

    poisoned(path, fill, "Invalid column family specified in write batch")


def shutting_down(path: Path) -> None:
    db = opened(path)
    db[b"key"] = b"value"
    db.cancel_all_background(True)
    try:
        db.flush()
    finally:
        with pytest.raises(Exception, match="Shutdown in progress"):
            db.close()


def with_open(path: Path, use: Callable[[Rdict], object]) -> None:
    db = opened(path)
    try:
        use(db)
    finally:
        db.close()


def consumed(db: Rdict) -> None:
    batch = WriteBatch(raw_mode=True)
    db.write(batch)
    db.write(batch)


def closed(path: Path) -> None:
    db = opened(path)
    db.close()
    db.get(b"key")


def file_in_the_way(path: Path) -> None:
    path.touch()
    opened(path)


TOO_MANY_FILES = """
import resource, sys
from rocksdict import Options, Rdict
options = Options(raw_mode=True)
options.create_if_missing(True)
db = Rdict(sys.argv[1], options)
db[b"key"] = b"value"
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    db.flush()
except Exception as error:
    text = str(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
print(text, flush=True)
import os
os._exit(0)
"""


def too_many_files(path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 3
    done = subprocess.run([sys.executable, "-c", TOO_MANY_FILES, str(path)], capture_output=True, check=True, text=True)
    raise Exception(done.stdout.strip())  # noqa: TRY002  # as rocksdict raised it over there


ANY = ".*"
PROVOKED: list[tuple[Callable[[Path], None], type[errors.StoreError], str]] = [
    (in_use_here, errors.StoreInUse, r"IO error: lock hold by current process, acquire time \d+ .*/LOCK: No locks"),
    (in_use_elsewhere, errors.StoreInUse, r"IO error: While lock file: .*/LOCK: Resource temporarily unavailable$"),
    (missing, errors.StoreMissing, r"Invalid argument: .*/CURRENT: does not exist \(create_if_missing is false\)$"),
    (
        missing_for_reading,
        errors.StoreMissing,
        r"IO error: No such file or directory: While opening .*/CURRENT: No such",
    ),
    (
        damaged_block,
        errors.StoreCorrupt,
        r"Corruption: block checksum mismatch: .* in .*/000009\.sst offset 0 size \d+$",
    ),
    (missing_file, errors.StoreCorrupt, r"Corruption: Corruption: IO error: No such file or directory: While open a"),
    (
        missing_manifest,
        errors.StoreCorrupt,
        r"IO error: No such file or directory: While opening .*/MANIFEST-\d+: No such",
    ),
    (
        damaged_manifest,
        errors.StoreCorrupt,
        r"Corruption: checksum mismatch  The file .*/MANIFEST-\d+ may be corrupted",
    ),
    (
        removed_underneath,
        errors.StoreIOError,
        r"IO error: No such file or directory: While open a file for appending: ",
    ),
    (too_many_files, errors.StoreIOError, r"IO error: While open a file for appending: .*: Too many open files$"),
    (
        other_comparator,
        errors.StoreFormatMismatch,
        r"Invalid argument: rocksdict: does not match existing comparator lev",
    ),
    (
        other_comparator_still,
        errors.StoreFormatMismatch,
        r"Invalid argument: leveldb.BytewiseComparator: does not match",
    ),
    (families_not_opened, errors.StoreFormatMismatch, r"Invalid argument: Column families not opened: a$"),
    (family_not_found, errors.StoreFormatMismatch, r"Invalid argument: Column family not found: b$"),
    (write_stall, errors.StoreBackpressure, r"Result incomplete: Write stall$"),
    (too_many_skipped, errors.ScanTruncated, r"Result incomplete: Too many internal keys skipped\.$"),
    (read_only, errors.StoreReadOnly, r"Not implemented: Not supported operation in read only mode\.$"),
    (secondary, errors.StoreReadOnly, r"Not implemented: Not supported operation in secondary mode\.$"),
    (inverted_range, errors.StorePoisoned, r"Invalid argument: end key comes before start key$"),
    (dropped_family, errors.StorePoisoned, r"Invalid argument: Invalid column family specified in write batch$"),
    (shutting_down, errors.StoreUsageError, r"Shutdown in progress: $"),
    (
        lambda path: with_open(path, lambda db: db.get_column_family("no")),
        errors.StoreUsageError,
        "column name `no` does",
    ),
    (
        lambda path: with_open(path, consumed),
        errors.StoreUsageError,
        "this batch is already consumed, create a new one",
    ),
    (lambda path: with_open(path, lambda db: db.write(WriteBatch())), errors.StoreUsageError, "must set raw_mode=True"),
    (lambda path: with_open(path, lambda db: db.snapshot()[b"no"]), errors.StoreUsageError, "key not found$"),
    (lambda path: with_open(path, lambda db: db.get("text")), errors.StoreUsageError, "'raw mode only support bytes'$"),
    (
        lambda path: with_open(path, lambda db: db.put(b"", bytearray())),
        errors.StoreUsageError,
        "raw mode only support",
    ),
    (closed, errors.StoreClosed, r"DB instance already closed$"),
    (file_in_the_way, errors.StoreIOError, r"File exists \(os error 17\)$"),
]


@pytest.mark.parametrize(("provoke", "expected", "text"), PROVOKED, ids=[text[:60] for _, _, text in PROVOKED])
def test_row(tmp_path: Path, provoke: Callable[[Path], None], expected: type[errors.StoreError], text: str) -> None:
    with pytest.raises(errors.StoreError) as caught, mapped_errors("doing"):
        provoke(tmp_path / "db")
    assert type(caught.value) is expected
    assert re.match(text, str(caught.value.__cause__)), str(caught.value.__cause__)
    assert str(caught.value) == f"doing: {caught.value.__cause__}"


@pytest.mark.system("tmpfs")
def test_row_no_space(small_disk: Callable[[int], Path]) -> None:
    db = opened(small_disk(4 << 20) / "db")

    def fill_up() -> None:
        for number in range(10_000):
            db[b"%d" % number] = os.urandom(1_000)

    with pytest.raises(errors.StoreFull) as caught, mapped_errors("doing"):
        fill_up()
    assert re.match(r"IO error: No space left on device: While appending to file: .*\.log", str(caught.value.__cause__))
    with pytest.raises(errors.StoreIOError, match=r"IO error: Writer has previous error\."), mapped_errors("close"):
        db.close()


@pytest.mark.system("tmpfs")
def test_row_read_only_disk(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(4 << 20)
    one_file(disk / "db")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(errors.StoreIOError, match=r"\(os error 30\)$") as caught, mapped_errors("doing"):
        opened(disk / "db", access=AccessType.read_only(False))
    assert type(caught.value.__cause__) is OSError


@pytest.mark.parametrize(
    ("error", "expected"),
    [  # what takes a failing disk or a race of threads to provoke; the texts as they were seen
        (Exception("IO error: While fdatasync: /db/000004.log: Input/output error"), errors.StoreIOError),
        (Exception("IO error: While appending to file: /db/000004.log: Input/output error"), errors.StoreIOError),
        (Exception("IO error: Writer has previous error."), errors.StoreIOError),
        (Exception("Column family dropped: "), errors.StoreUsageError),
        (RuntimeError("Already borrowed"), errors.StoreBusy),
        (RuntimeError("Already mutably borrowed"), errors.StoreBusy),
        (Exception("something new"), errors.StoreIOError),
        (Exception(""), errors.StoreIOError),
        (Exception("x Corruption: not at the start"), errors.StoreIOError),
    ],
    ids=repr,
)
def test_row_by_its_text(error: Exception, expected: type[errors.StoreError]) -> None:
    assert type(store_error(error, "doing")) is expected


@pytest.mark.parametrize(
    "error",
    [TypeError("no"), KeyError("no"), ValueError("no"), RuntimeError("no"), AssertionError(), KeyboardInterrupt()],
    ids=repr,
)
def test_what_rocksdict_did_not_raise_passes_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, mapped_errors("doing"):
        raise error
    assert caught.value is error


def test_errors_of_this_project_pass_unchanged() -> None:
    error = errors.StoreCorrupt("seen before")
    with pytest.raises(errors.StoreCorrupt) as caught, mapped_errors("doing"):
        raise error
    assert caught.value is error


def test_each_row_is_reached_by_some_test() -> None:
    texts = [
        "IO error: lock hold by current process, ",
        "IO error: No space left on device: While appending to file: /db/000004.log: No space left on device",
        "Invalid argument: /db/CURRENT: does not exist (create_if_missing is false)",
        "IO error: No such file or directory: While opening a file for sequentially reading: /db/CURRENT: No such file",
        "IO error: No such file or directory: While opening a file for sequentially reading: /db/MANIFEST-000005: No",
        "Corruption: ",
        "IO error: ",
        "Invalid argument: rocksdict: does not match existing comparator leveldb.BytewiseComparator",
        "Invalid argument: Column families not opened: a",
        "Result incomplete: Write stall",
        "Result incomplete: Too many internal keys skipped.",
        "Not implemented: Not supported operation in secondary mode.",
        "Invalid argument: end key comes before start key",
        "Shutdown in progress: ",
        "must set raw_mode=True for WriteBatch",
    ]
    first = [next(row for row, (pattern, _) in enumerate(ERROR_MAP) if pattern.match(text)) for text in texts]
    assert first == list(range(len(ERROR_MAP)))


INDETERMINATE = {errors.StoreFull, errors.StoreIOError, errors.StorePoisoned}


def test_a_write_with_these_errors_may_have_been_applied_and_with_no_others() -> None:
    kinds = {kind for _, kind in ERROR_MAP} | {errors.StoreBusy, errors.StoreClosed}
    assert {kind for kind in kinds if kind.indeterminate} == INDETERMINATE
    assert all(kind.handle_dead for kind in INDETERMINATE)


def test_path_may_hold_what_looks_like_a_row() -> None:
    text = "IO error: While appending to file: /Corruption: /No space left on device/000004.log: Input/output error"
    assert type(store_error(Exception(text), "doing")) is errors.StoreIOError
