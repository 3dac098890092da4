"""`Rocks` on damaged files, killed writers and full disks: a clear error or the whole truth, never a shorter answer."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from rocksdict import AccessType, Rdict

from deltalog import walguard
from deltalog.errors import StoreCorrupt, StoreError, StoreFull, StoreIOError
from deltalog.profiles import options
from deltalog.rocks import FamilyProfile, Rocks, SharedMemory
from tests.conftest import Rounds

FAMILIES = {"a": FamilyProfile(), "b": FamilyProfile()}
MEMORY = SharedMemory()
ROOT = Path(__file__).parents[2]
DEADLINE_S = 30
BATCHES = 1_000


def opened(path: Path) -> Rocks:
    """With a cache of its own: another may still hold what the file held before a test damaged it."""
    return Rocks.open(path, FAMILIES, SharedMemory())


def write_batches(store: Rocks, count: int) -> None:
    """Each batch puts one key into both families."""
    for number in range(count):
        batch = store.batch()
        batch.put("a", b"%06d" % number, b"x" * (number % 97))
        batch.put("b", b"%06d" % number, b"")
        store.write(batch)


def put_one(store: Rocks, value_bytes: int = 10) -> None:
    batch = store.batch()
    batch.put("a", os.urandom(8), os.urandom(value_bytes))
    store.write(batch)


def each(*calls: Callable[[], object]) -> tuple[Callable[[], object], ...]:
    """Calls of different types, as mypy would like to hear it."""
    return calls


def listing(path: Path) -> dict[str, bytes]:
    """The files that hold data."""
    kept = ("MANIFEST-", "CURRENT", "IDENTITY")
    return {
        file.name: file.read_bytes()
        for file in path.iterdir()
        if file.suffix in (".sst", ".log") or file.name.startswith(kept)
    }


def with_bit(data: bytes, offset: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


# ------------------------------------------------------------------------------- opens that may hang, in a process

OPENER = """
import json, sys
from deltalog.errors import *
from deltalog.rocks import *
families, memory = {"a": FamilyProfile(), "b": FamilyProfile()}, SharedMemory()
for line in sys.stdin:
    path, how = json.loads(line)
    try:
        if how == "read only":
            store = Rocks.open_read_only(path, families, memory)
        else:
            store = Rocks.open(path, families, memory, wal_tail="drop" if how == "drop" else "refuse")
        try:
            answer = {"a": [k.decode() for k, _ in store.scan("a")], "b": [k.decode() for k, _ in store.scan("b")]}
        finally:
            store.close()
    except StoreError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Opener:
    """Opens stores in another process. An answer that does not come in time is a hang, and fails the test."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", OPENER]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, path: Path, how: str = "open") -> dict[str, list[str] | str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(path), how]), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], DEADLINE_S)[0]:
            pytest.fail(f"opening {path} ({how}) hangs")
        answer: dict[str, list[str] | str] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture
def opener() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    opener.process.kill()
    opener.process.communicate()


WRITER = """
import os, signal, sys
from deltalog.rocks import *
families = {"a": FamilyProfile(), "b": FamilyProfile()}
store = Rocks.create(sys.argv[1], families, SharedMemory())
for number in range(int(sys.argv[2])):
    batch = store.batch()
    batch.put("a", b"%06d" % number, b"x" * (number % 97))
    batch.put("b", b"%06d" % number, b"")
    store.write(batch)
    if number == int(sys.argv[3]):
        store.flush()
store.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1,000 batches of two keys, all of them fsynced, in its WAL; its writer was killed."""
    path = tmp_path_factory.mktemp("killed") / "store"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), str(BATCHES), "-1"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert wal_of(path).stat().st_size > 2 * walguard.BLOCK_BYTES
    return path


def wal_of(path: Path) -> Path:
    return max(path.glob("*.log"), key=lambda file: file.stat().st_size)


ALL = [f"{number:06d}" for number in range(BATCHES)]


def assert_refused(answer: dict[str, list[str] | str], what: str) -> None:
    assert answer.get("error") == "StoreCorrupt", (what, {key: answer[key][:100] for key in answer})


def damaged(killed: Path, path: Path, name: str, data: bytes) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(killed, path)
    (path / name).write_bytes(data)
    return path


def headers(log: bytes | bytearray) -> list[int]:
    """Where the physical records of a log start."""
    found, position = [], 0
    while position + walguard.HEADER_BYTES <= len(log):
        room = walguard.BLOCK_BYTES - position % walguard.BLOCK_BYTES
        if room < walguard.HEADER_BYTES:
            position += room
            continue
        found.append(position)
        position += walguard.HEADER_BYTES + int(struct.unpack_from("<H", log, position + 4)[0])
    return found


# --------------------------------------------------------------------------------------------------- a damaged WAL


def test_i2_every_flipped_bit_of_a_synced_wal_is_refused(
    tmp_path: Path, killed: Path, opener: Opener, rounds: Rounds
) -> None:
    wal = wal_of(killed)
    data, choose = wal.read_bytes(), random.Random(2)
    assert opener(damaged(killed, tmp_path / "s", wal.name, data)) == {"a": ALL, "b": ALL}
    for _ in range(rounds(60, nightly=4_000)):
        offset, bit = choose.randrange(len(data)), choose.randrange(8)
        path = damaged(killed, tmp_path / "s", wal.name, with_bit(data, offset, bit))
        before = listing(path)
        assert_refused(opener(path, choose.choice(["open", "read only"])), f"bit {bit} of byte {offset}")
        assert listing(path) == before


def test_i2_every_flipped_bit_of_a_record_header_is_refused(
    tmp_path: Path, killed: Path, opener: Opener, rounds: Rounds
) -> None:
    """The seven bytes where RocksDB itself hangs (type) or takes the rest for a torn write (length, in the last block).

    Of each kind of place: the first record, one in the middle, the first and the last of the last block.
    """
    wal = wal_of(killed)
    data, choose = wal.read_bytes(), random.Random(3)
    starts = headers(data)
    in_last = [start for start in starts if start // walguard.BLOCK_BYTES == len(data) // walguard.BLOCK_BYTES]
    records = [starts[0], starts[len(starts) // 2], in_last[0], in_last[-1]]
    records += choose.sample(starts, rounds(0, nightly=50))
    for start in records:
        for byte in range(4, walguard.HEADER_BYTES):
            for bit in range(8):
                path = damaged(killed, tmp_path / "s", wal.name, with_bit(data, start + byte, bit))
                assert_refused(opener(path, "read only"), f"bit {bit} of byte {byte} of the record at {start}")


def test_rocksdb_alone_is_silently_short_after_one_flipped_bit(tmp_path: Path, killed: Path) -> None:
    """Why the guard looks at lengths. When this fails, RocksDB was mended."""
    wal = wal_of(killed)
    data = wal.read_bytes()
    start = next(start for start in headers(data) if start // walguard.BLOCK_BYTES == len(data) // walguard.BLOCK_BYTES)
    for byte, bit in ((5, 7), (None, None)):
        flipped = data if byte is None or bit is None else with_bit(data, start + byte, bit)
        path = damaged(killed, tmp_path / "s", wal.name, flipped)
        made = {name: options(FamilyProfile(), MEMORY) for name in ("default", *FAMILIES)}
        db = Rdict(str(path), made["default"], made, AccessType.read_only(False))
        family = db.get_column_family("a")
        found = family.get([key.encode() for key in ALL])
        assert isinstance(found, list)
        assert (None in found) == (byte is not None)
        family.close()
        db.close()


@pytest.mark.slow
def test_rocksdb_alone_spins_for_ever_after_one_flipped_bit(tmp_path: Path, killed: Path) -> None:
    """Why the guard looks at types (facebook/rocksdb#13333). When this fails, RocksDB was mended."""
    wal = wal_of(killed)
    data = wal.read_bytes()
    path = damaged(killed, tmp_path / "s", wal.name, with_bit(data, headers(data)[5] + 6, 2))
    script = f"from rocksdict import *; Rdict({str(path)!r}, Options(raw_mode=True))"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", script], timeout=5, check=False)


@pytest.mark.parametrize("fate", ["removed", "emptied", "cut between two records"])
def test_wal_that_is_gone_shows_only_in_the_sequence_number(tmp_path: Path, killed: Path, fate: str) -> None:
    """No mode of RocksDB notices; a witness that keeps the number does."""
    path = tmp_path / "s"
    shutil.copytree(killed, path)
    wal = wal_of(path)
    starts = headers(wal.read_bytes())
    if fate == "removed":
        wal.unlink()
    else:
        os.truncate(wal, 0 if fate == "emptied" else starts[len(starts) // 2])
    with closing(opened(path)) as store:
        left = [key for key, _ in store.scan("a")]
        assert left == [key for key, _ in store.scan("b")] == [key.encode() for key in ALL[: len(left)]]
        assert store.sequence_number() == 2 * len(left) < 2 * BATCHES


def test_torn_last_write_is_no_damage(tmp_path: Path, killed: Path) -> None:
    wal = wal_of(killed)
    data = wal.read_bytes()
    last = headers(data)[-1]
    for cut in (last + 1, last + 6, last + 7, last + 8, len(data) - 1):
        path = damaged(killed, tmp_path / "s", wal.name, data[:cut])
        with closing(opened(path)) as store:
            assert len(list(store.scan("a"))) == len(list(store.scan("b"))) == BATCHES - 1
            put_one(store)


def test_dropping_a_damaged_tail_leaves_a_prefix_in_both_families(tmp_path: Path, killed: Path, opener: Opener) -> None:
    wal = wal_of(killed)
    data, choose = wal.read_bytes(), random.Random(5)
    starts = headers(data)
    lengths = {start + byte: 7 for start in (starts[-3], starts[-1]) for byte in (4, 5)}
    payloads = {choose.randrange(len(data)) // 100 * 100 + 50: choose.randrange(8) for _ in range(10)}
    kept = set()
    for offset, bit in {**lengths, **payloads}.items():
        changed = with_bit(data, offset, bit)
        path = damaged(killed, tmp_path / "s", wal.name, changed)
        finding = next(walguard.findings(path), None)
        answer = opener(path, "drop")
        if finding is not None and finding.kind != "length":
            assert_refused(answer, str(finding))
            continue
        assert answer["a"] == answer["b"] == ALL[: len(answer["a"])]
        assert len(answer["a"]) < BATCHES
        kept.add(len(answer["a"]))
        assert opener(path) == answer  # and from now on it opens
    assert BATCHES - 1 in kept
    assert len(kept) > 3


def test_recycled_type_is_refused_even_where_the_tail_may_be_dropped(
    tmp_path: Path, killed: Path, opener: Opener
) -> None:
    wal = wal_of(killed)
    data = wal.read_bytes()
    for start in (headers(data)[0], headers(data)[7]):
        path = damaged(killed, tmp_path / "s", wal.name, with_bit(data, start + 6, 2))
        answer = opener(path, "drop")
        assert_refused(answer, "recycled")
        assert f"{wal.name} is damaged at offset {start}" in answer["text"]


# ---------------------------------------------------------------------------------------- a damaged MANIFEST, CURRENT


@pytest.fixture
def flushed(tmp_path: Path) -> Path:
    """A store of 1,000 batches in three files of each family (a fourth would start a compaction), closed."""
    path = tmp_path / "flushed"
    with closing(Rocks.create(path, FAMILIES, MEMORY)) as store:
        for begin, end in ((0, 400), (400, 800), (800, 1_000)):
            for number in range(begin, end):
                batch = store.batch()
                batch.put("a", b"%06d" % number, os.urandom(100))
                batch.put("b", b"%06d" % number, b"")
                store.write(batch)
            store.flush()
    return path


def test_i2_every_flipped_bit_of_a_manifest_is_refused(
    tmp_path: Path, flushed: Path, opener: Opener, rounds: Rounds
) -> None:
    (manifest,) = flushed.glob("MANIFEST-*")
    data, choose = manifest.read_bytes(), random.Random(7)
    assert opener(damaged(flushed, tmp_path / "s", manifest.name, data)) == {"a": ALL, "b": ALL}
    lengths = [(start + byte, bit) for start in headers(data) for byte in (4, 5, 6) for bit in range(8)]
    chosen = choose.sample(lengths, rounds(60, nightly=len(lengths)))
    chosen += [(choose.randrange(len(data)), choose.randrange(8)) for _ in range(rounds(40, nightly=2_000))]
    for offset, bit in chosen:
        path = damaged(flushed, tmp_path / "s", manifest.name, with_bit(data, offset, bit))
        before = listing(path)
        assert_refused(opener(path), f"bit {bit} of byte {offset} of {manifest.name}")
        assert listing(path) == before


def test_a_wal_whose_last_record_claims_too_much_is_refused_or_cut_there(tmp_path: Path, killed: Path) -> None:
    wal = wal_of(killed)
    data = bytearray(wal.read_bytes())
    struct.pack_into("<H", data, headers(data)[-1] + 4, walguard.BLOCK_BYTES - 1)
    path = damaged(killed, tmp_path / "s", wal.name, bytes(data))
    before = listing(path)
    with pytest.raises(StoreCorrupt, match="a record's length goes past the end of the file"):
        opened(path)
    assert listing(path) == before
    with closing(Rocks.open(path, FAMILIES, SharedMemory(), wal_tail="drop")) as store:
        assert [key.decode() for key, _ in store.scan("a")] == [key.decode() for key, _ in store.scan("b")] == ALL[:-1]
    opened(path).close()


def test_dropping_a_wal_tail_never_drops_a_manifest_tail(tmp_path: Path, flushed: Path, opener: Opener) -> None:
    (manifest,) = flushed.glob("MANIFEST-*")
    data = manifest.read_bytes()
    path = damaged(flushed, tmp_path / "s", manifest.name, with_bit(data, headers(data)[-1] + 5, 7))
    assert [finding.kind for finding in walguard.findings(path)] == ["length"]
    assert_refused(opener(path, "drop"), "length")


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-*", "*.sst"])
@pytest.mark.parametrize("fate", ["removed", "emptied", "garbage"])
def test_i15_file_that_is_missing_or_garbage_is_refused_each_time_and_nothing_is_deleted(
    flushed: Path, opener: Opener, name: str, fate: str
) -> None:
    """RocksDB, asked a second time, may come up empty and delete the rest."""
    file = max(flushed.glob(name))
    if fate == "removed":
        file.unlink()
    else:
        file.write_bytes(b"" if fate == "emptied" else os.urandom(file.stat().st_size))
    before = listing(flushed)
    for how in ("open", "open", "read only", "drop"):
        assert_refused(opener(flushed, how), f"{name} {fate}, {how}")
        assert listing(flushed) == before


def test_read_only_open_deletes_nothing_even_where_files_are_orphans(tmp_path: Path, flushed: Path) -> None:
    """A MANIFEST cut between two records: nothing tells it from a whole one; an open for writing deletes files."""
    (manifest,) = flushed.glob("MANIFEST-*")
    data = manifest.read_bytes()
    path = damaged(flushed, tmp_path / "s", manifest.name, data[: headers(data)[-1]])
    before = listing(path)
    with closing(Rocks.open_read_only(path, FAMILIES, MEMORY)) as store:
        assert len(list(store.scan("a"))) < BATCHES
    assert listing(path) == before


# ---------------------------------------------------------------------------------------------------- a damaged SST


def test_i2_read_of_a_damaged_file_is_an_error_or_whole(tmp_path: Path, flushed: Path, rounds: Rounds) -> None:
    """At open, in a scan either way, get, get_many or seek: some raise, and none gives less than all."""
    data = {file: file.read_bytes() for file in flushed.glob("*.sst")}
    with closing(opened(flushed)) as store:
        wanted = list(store.scan("a"))
        (target,) = (file.name for file in store.files() if file.family == "a" and file.first_key == b"000400")
    sound = data[flushed / target]
    reads: list[Callable[[Rocks], object]] = [
        lambda store: list(store.scan("a")),
        lambda store: list(store.scan("a", reverse=True))[::-1],
        lambda store: [(key, store.get("a", key)) for key, _ in wanted],
        lambda store: list(
            zip((key for key, _ in wanted), store.get_many("a", [key for key, _ in wanted]), strict=True)
        ),
        lambda store: [store.seek_last("a", key, key) for key, _ in wanted],
    ]
    refused = 0
    choose = random.Random(11)
    for _ in range(rounds(25, nightly=1_000)):
        path = damaged(
            flushed, tmp_path / "s", target, with_bit(sound, choose.randrange(len(sound)), choose.randrange(8))
        )
        try:
            store = opened(path)
        except StoreCorrupt as error:
            refused += target in str(error)
            continue
        for read in reads:
            try:
                assert read(store) == wanted
            except StoreCorrupt as error:
                refused += target in str(error)
        store.close()
    assert refused > 25


def damage_one_file(path: Path) -> str:
    with closing(opened(path)) as store:
        (name,) = (file.name for file in store.files() if file.family == "a" and file.first_key == b"000400")
    data = (path / name).read_bytes()
    (path / name).write_bytes(with_bit(data, len(data) // 3, 3))
    return name


def test_compact_over_a_damaged_file_says_so_and_loses_nothing(flushed: Path) -> None:
    name = damage_one_file(flushed)
    store = opened(flushed)
    with pytest.raises(StoreCorrupt, match=name) as caught:
        store.compact()
    assert name in {file.name for file in store.files()}
    for write in each(lambda: put_one(store), store.sync, store.flush, store.compact):
        with pytest.raises(StoreCorrupt, match="not tried after an earlier failure") as refused:
            write()
        assert not refused.value.indeterminate
    health = store.health()
    assert health.background_errors > 0
    assert health.last_error is caught.value
    assert len(list(store.scan("b"))) == BATCHES
    assert len(list(store.scan("a", begin=b"000800"))) == 200
    store.close()
    with closing(opened(flushed)) as store:
        assert len(list(store.scan("b"))) == BATCHES
        with pytest.raises(StoreCorrupt, match=name):
            list(store.scan("a"))


def test_block_in_the_cache_hides_damage_on_disk(flushed: Path) -> None:
    """What the docstring of `SharedMemory` says."""
    memory = SharedMemory()
    with closing(Rocks.open(flushed, FAMILIES, memory)) as store:
        wanted = list(store.scan("a"))
    name = damage_one_file(flushed)
    with closing(Rocks.open(flushed, FAMILIES, memory)) as store:
        assert list(store.scan("a")) == wanted
        with (
            closing(Rocks.open_read_only(flushed, FAMILIES, SharedMemory())) as reader,
            pytest.raises(StoreCorrupt, match=name),
        ):
            list(reader.scan("a"))


def test_compact_of_a_range_does_not_read_files_beside_it(flushed: Path) -> None:
    """What its docstring says is not noticed."""
    name = damage_one_file(flushed)
    with closing(opened(flushed)) as store:
        store.compact("b")
        store.compact("a", b"000900")
        with pytest.raises(StoreCorrupt, match=name):
            list(store.scan("a"))


# ---------------------------------------------------------------------------------------------------------- kill -9

STREAM = """
import sys
from deltalog.errors import StoreBackpressure
from deltalog.rocks import *
profile = FamilyProfile(write_buffer_bytes=64 << 10)
store = Rocks.open(sys.argv[1], {"a": profile, "b": profile}, SharedMemory())
number = int(sys.argv[2])
while True:
    batch = store.batch()
    for family in "ab":
        batch.put(family, b"%08d" % number, b"x" * 200)
        batch.delete_range(family, b"%08d" % max(0, number - 2000), b"%08d" % max(0, number - 1000))
    try:
        store.write(batch)
    except StoreBackpressure:
        continue
    print(number, flush=True)
    number += 1
    if number % 500 == 0:
        store.flush()
    if number % 1300 == 0:
        store.compact("a")
"""


@contextmanager
def streaming(path: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STREAM, str(path), str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_i2_kill_9_loses_nothing_that_was_written_and_tears_no_batch(tmp_path: Path, rounds: Rounds) -> None:
    path, number, choose = tmp_path / "store", 0, random.Random(13)
    Rocks.create(path, FAMILIES, MEMORY).close()
    for _ in range(rounds(4, nightly=200)):
        until = number + choose.randrange(50, 1_500)
        with streaming(path, number) as process:
            assert process.stdout is not None
            for line in process.stdout:
                number = int(line) + 1
                if number == until:
                    process.kill()
        with closing(opened(path)) as store:
            found = [int(key) for key, _ in store.scan("a")]
            assert [int(key) for key, _ in store.scan("b")] == found
            assert found[-1] in (number - 1, number)  # one more may be written than was said
            number = found[-1] + 1
            assert found == list(range(max(0, number - 1_001), number))


def test_killed_creation_leaves_nothing_or_a_store(tmp_path: Path, rounds: Rounds) -> None:
    script = """
import sys
from deltalog.rocks import *
print("go", flush=True)
Rocks.create(sys.argv[1], {"a": FamilyProfile(), "b": FamilyProfile()}, SharedMemory())
print("made", flush=True)
sys.stdin.read()
"""
    choose, made = random.Random(17), 0
    for number in range(rounds(10, nightly=300)):
        path = tmp_path / str(number)
        command = [sys.executable, "-c", script, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            select.select([process.stdout], [], [], choose.random() * 0.04)
            process.kill()
        if path.exists():
            made += 1
            opened(path).close()
        else:
            Rocks.create(path, FAMILIES, MEMORY).close()
    assert made < rounds(10, nightly=300)


# ------------------------------------------------------------------------------------------------ disk and descriptors


def fill_up(disk: Path) -> None:
    statistics = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(statistics.f_bavail * statistics.f_frsize))


@pytest.mark.system("tmpfs")
def test_full_disk_stops_writing_not_reading_and_loses_nothing(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(16 << 20)
    path, written = disk / "store", 0
    store = Rocks.create(path, FAMILIES, MEMORY)

    def write_on() -> None:
        nonlocal written
        while True:
            put_one(store, 4_000)
            written += 1

    with pytest.raises(StoreFull, match=str(path)) as caught:
        write_on()
    assert caught.value.indeterminate
    assert caught.value.retryable
    for write in each(lambda: put_one(store), store.sync, store.flush, store.compact):
        with pytest.raises(StoreFull, match="not tried after an earlier failure") as refused:
            write()
        assert not refused.value.indeterminate
    assert store.health().last_error is caught.value
    assert len(list(store.scan("a"))) in (written, written + 1)
    store.close()  # its failure is known; the LOCK is free
    fill_up(disk)
    with pytest.raises(StoreFull):
        opened(path)
    with closing(Rocks.open_read_only(path, FAMILIES, MEMORY)) as store:
        assert len(list(store.scan("a"))) in (written, written + 1)
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    with closing(opened(path)) as store:
        assert len(list(store.scan("a"))) in (written, written + 1)
        put_one(store)


@pytest.mark.system("tmpfs")
def test_full_disk_at_a_flush_is_an_error_of_that_flush(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8 << 20)
    store = Rocks.create(disk / "store", FAMILIES, MEMORY)
    for _ in range(500):
        put_one(store, 4_000)
    fill_up(disk)
    with pytest.raises(StoreFull, match="flush, "):
        store.flush()
    assert len(list(store.scan("a"))) == 500
    store.close()
    (disk / "filler").unlink()
    with closing(opened(disk / "store")) as store:
        assert len(list(store.scan("a"))) == 500
        store.flush()


@pytest.mark.system("tmpfs")
def test_full_disk_at_close_is_raised_once_everything_is_closed(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8 << 20)
    store = Rocks.create(disk / "store", FAMILIES, MEMORY)
    for _ in range(500):
        put_one(store, 4_000)
    fill_up(disk)
    with pytest.raises(StoreFull, match="close "):
        store.close()
    store.close()
    (disk / "filler").unlink()
    with closing(opened(disk / "store")) as store:
        assert len(list(store.scan("a"))) == 500


NO_DESCRIPTORS = """
import os, resource, sys
from deltalog.errors import *
from deltalog.rocks import *
store = Rocks.create(sys.argv[1], {"a": FamilyProfile(), "b": FamilyProfile()}, SharedMemory())
batch = store.batch()
batch.put("a", b"key", b"value")
store.write(batch)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
for call in (store.flush, lambda: store.write(batch)):
    try:
        call()
    except StoreError as error:
        print(type(error).__name__, error.indeterminate, "Too many open files" in str(error))
print(store.get("a", b"key"))
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
store.close()
"""


def test_no_descriptors_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["StoreIOError True True", "StoreIOError False True", "b'value'"]
    with closing(opened(tmp_path / "store")) as store:
        assert store.get("a", b"key") == b"value"


def test_directory_removed_underneath_is_an_error_of_the_next_flush(tmp_path: Path) -> None:
    store = Rocks.create(tmp_path / "store", FAMILIES, MEMORY)
    put_one(store)
    shutil.rmtree(tmp_path / "store")
    put_one(store)  # RocksDB sees nothing of it; health does
    assert not store.health().lock_ours
    with pytest.raises(StoreIOError, match="No such file or directory"):
        store.flush()
    store.close()


@pytest.mark.system("tmpfs")
def test_read_only_disk_is_an_error_of_open(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8 << 20)
    Rocks.create(disk / "store", FAMILIES, MEMORY).close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for call in each(
        lambda: opened(disk / "store"),
        lambda: Rocks.open_read_only(disk / "store", FAMILIES, MEMORY),
        lambda: Rocks.create(disk / "new", FAMILIES, MEMORY),
    ):
        with pytest.raises(StoreIOError, match=r"Read-only file system") as caught:
            call()
        assert isinstance(caught.value.__cause__, OSError)


def test_failed_open_holds_no_lock(flushed: Path) -> None:
    (manifest,) = flushed.glob("MANIFEST-*")
    data = manifest.read_bytes()
    manifest.write_bytes(with_bit(data, 20, 1))
    kept: list[StoreError] = []
    for _ in range(3):
        with pytest.raises(StoreCorrupt) as caught:
            opened(flushed)
        kept.append(caught.value)
    manifest.write_bytes(data)
    with closing(opened(flushed)) as store:
        assert len(list(store.scan("a"))) == BATCHES
