"""Opens that are refused: the error says why, and every file is as it was (invariant I15)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from deltalog import chain, failpoints, keys, profiles
from deltalog.errors import (
    DeltaLogError,
    ForeignData,
    StoreCorrupt,
    StoreFormatMismatch,
    StoreInUse,
    StoreIOError,
    StoreMissing,
    UsageError,
)
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES
from tests.deltalog.directories import begun, delta_of, digest, flip, killed, restore, retold, rocks, session
from tests.deltalog.rocks_stores import directory_in_memory

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Where directories may stand side by side."""
    with directory_in_memory(tmp_path) as directory:
        yield directory


@pytest.fixture
def path(base: Path) -> Path:
    """A directory with some deltas, closed in order."""
    with session(base / "data", source="alice") as opened:
        opened.write(300)
        opened.write(20, "bob")
    return base / "data"


def edit(path: Path, change: Callable[[Rocks], None]) -> None:
    """Change the store behind the log's back, sequence numbers aside: the witness is told of a later one."""
    with closing(Rocks.open(rocks(path), FAMILIES, profiles.SharedMemory())) as db:
        change(db)
        sequence = db.sequence_number()
    retold(path, lambda told: attrs.evolve(told, sequence=sequence))


def put(family: str, key: bytes, value: bytes) -> Callable[[Path], None]:
    def change(db: Rocks) -> None:
        batch = db.batch()
        batch.put(family, key, value)
        db.write(batch)

    return lambda path: edit(path, change)


def toml(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "deltalog.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


def linked(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).rename(path.with_name("elsewhere"))
        (path / name).symlink_to(path.with_name("elsewhere"))

    return change


def other_s(name: str) -> Callable[[Path], None]:
    """Put a part of another directory in its place."""

    def change(path: Path) -> None:
        other = path.with_name("other")
        with session(other, source="alice") as opened:
            opened.write(300)
            opened.write(20, "bob")
        if (path / name).is_dir():
            restore(other / name, path / name)
        else:
            (path / name).write_bytes((other / name).read_bytes())

    return change


def last_block_lost(path: Path) -> None:
    def change(db: Rocks) -> None:
        batch = db.batch()
        batch.delete(keys.DELTAS, list(db.scan(keys.DELTAS, end=keys.block_key(1, 0)))[-1][0])
        db.write(batch)

    edit(path, change)


def only_block_lost(path: Path) -> None:
    def change(db: Rocks) -> None:
        batch = db.batch()
        batch.delete(keys.DELTAS, keys.block_key(1, 1))
        db.write(batch)

    edit(path, change)


def head_of_another_chain(path: Path) -> None:
    def change(db: Rocks) -> None:
        key, value = next(iter(db.scan(keys.SOURCES)))
        source_no, source, head = keys.decode_head(key, value)
        batch = db.batch()
        batch.put(keys.SOURCES, key, keys.encode_head(source_no, source, attrs.evolve(head, hash=b"x" * 32)))
        db.write(batch)

    edit(path, change)
    retold(path, lambda told: attrs.evolve(told, heads={"alice": (300, b"x" * 32)}))


def row_flipped(path: Path) -> None:
    def change(db: Rocks) -> None:
        key, value = next(iter(db.scan(keys.SOURCES)))
        batch = db.batch()
        batch.put(keys.SOURCES, key, value[:5] + bytes([value[5] ^ 1]) + value[6:])
        db.write(batch)

    edit(path, change)


def rewritten(path: Path) -> None:
    """An older copy of the store, on which other deltas were then written: as many as the witness knows."""
    retold(path, lambda told: attrs.evolve(told, heads={**told.heads, "bob": (20, b"y" * 32)}))


def no_toml_nor_store(path: Path) -> None:
    (path / "deltalog.toml").unlink()
    shutil.rmtree(path / "rocks")


def toml_a_directory(path: Path) -> None:
    (path / "deltalog.toml").unlink()
    (path / "deltalog.toml").mkdir()


def witness_blank(path: Path) -> None:
    (path / "witness").write_bytes(bytes(36_864))


def witness_blank_and_no_store(path: Path) -> None:
    witness_blank(path)
    shutil.rmtree(path / "rocks")


def store_a_file(path: Path) -> None:
    shutil.rmtree(rocks(path))
    rocks(path).touch()


def store_emptied(path: Path) -> None:
    for file in rocks(path).iterdir():
        file.unlink()


def sst(path: Path) -> Path:
    return max(rocks(path).glob("*.sst"), key=lambda file: file.stat().st_size)


def slots(path: Path, change: Callable[[bytes], bytes]) -> None:
    file = path / "witness"
    data = file.read_bytes()
    file.write_bytes(data[:4096] + change(data[4096:20480]) + change(data[20480:]))


CASES: dict[str, tuple[Callable[[Path], object], type[DeltaLogError], str]] = {
    # deltalog.toml
    "no toml": (lambda path: (path / "deltalog.toml").unlink(), StoreMissing, "toml is missing, though data is there"),
    "no toml, witness only": (
        no_toml_nor_store,
        StoreMissing,
        "toml is missing, though data is there",
    ),
    "toml empty": (lambda path: os.truncate(path / "deltalog.toml", 0), StoreFormatMismatch, "format None"),
    "toml no TOML": (toml("store_id", "=" * 80), StoreCorrupt, "deltalog.toml"),
    "toml no text": (toml("source", "\udc80".encode(errors="surrogateescape").decode("latin1")), StoreCorrupt, "toml"),
    "toml of a later format": (toml("format = 1", "format = 2"), StoreFormatMismatch, "this program knows 1"),
    "toml without a source": (toml("source =", "sauce ="), StoreCorrupt, "source"),
    "toml with no source": (toml('"alice"', '""'), StoreCorrupt, "source must not be empty"),
    "toml with another source": (
        toml('"alice"', '"alhce"'),
        StoreCorrupt,
        "says source 'alhce'; it was made for 'alice'",
    ),
    "toml with a number for an id": (lambda path: toml_id(path, "7"), StoreCorrupt, "toml"),
    "toml with a short id": (lambda path: toml_id(path, '"abcd"'), StoreCorrupt, "store_id is 2 bytes, not 16"),
    "toml with another id": (lambda path: toml_id(path, f'"{"ab" * 16}"'), ForeignData, "witness of another directory"),
    "toml is a directory": (
        toml_a_directory,
        StoreIOError,
        "Is a directory",
    ),
    # the witness
    "no witness": (lambda path: (path / "witness").unlink(), StoreMissing, "witness is missing, though the data"),
    "witness blank": (
        witness_blank,
        StoreCorrupt,
        "witness is blank, though the data it vouches for is there",
    ),
    "witness blank, store gone": (
        witness_blank_and_no_store,
        StoreCorrupt,
        "witness is blank",
    ),
    "witness empty": (lambda path: os.truncate(path / "witness", 0), StoreCorrupt, "0 bytes, not 36864"),
    "witness damaged": (
        lambda path: slots(path, lambda slot: slot[:40] + b"\xff" + slot[41:]),
        StoreCorrupt,
        "neither slot is valid",
    ),
    "witness of another directory": (other_s("witness"), ForeignData, "is the witness of another directory"),
    # the store
    "store of another directory": (other_s("rocks"), ForeignData, "is the store of another directory"),
    "store without CURRENT": (lambda path: (rocks(path) / "CURRENT").unlink(), StoreCorrupt, "CURRENT is missing"),
    "store without MANIFEST": (
        lambda path: max(rocks(path).glob("MANIFEST-*")).unlink(),
        StoreCorrupt,
        "No such file or directory",
    ),
    "store empty": (store_emptied, StoreMissing, "holds no store"),
    "store is a file": (
        store_a_file,
        StoreFormatMismatch,
        "it is a file",
    ),
    "a sorted file missing": (lambda path: sst(path).unlink(), StoreCorrupt, "No such file or directory"),
    "a sorted file's end flipped": (lambda path: flip(sst(path), -30), StoreCorrupt, "footer|magic|checksum"),
    "a sorted file's first block flipped": (lambda path: flip(sst(path), 40), StoreCorrupt, "block checksum mismatch"),
    "store of a later format": (
        put(keys.META, keys.META_FORMAT, keys.encode_meta(keys.META_FORMAT, 2)),
        StoreFormatMismatch,
        "store format 2; this program knows 1",
    ),
    "a head flipped": (row_flipped, StoreCorrupt, "its check does not match"),
    "the last block is lost": (last_block_lost, StoreCorrupt, "is missing, though the head is 300"),
    "the only block is lost": (only_block_lost, StoreCorrupt, r"\('bob', 20\) is missing, though the head is 20"),
    "a head of another chain": (head_of_another_chain, StoreCorrupt, "does not lead to its head 300"),
    "other deltas than were fsynced": (rewritten, StoreCorrupt, "'bob' up to 20 are not those the witness saw"),
    # links
    **{
        f"{name} is a link": (linked(name), StoreFormatMismatch, f"{name} is a symbolic link")
        for name in ("deltalog.toml", "lock", "witness", "rocks")
    },
    "the store is a link": (linked("rocks/delta"), StoreFormatMismatch, "it is a symbolic link"),
}


def toml_id(path: Path, value: str) -> None:
    lines = (path / "deltalog.toml").read_text().splitlines()
    lines = [f"store_id = {value}" if line.startswith("store_id") else line for line in lines]
    (path / "deltalog.toml").write_text("\n".join(lines))


@pytest.mark.parametrize("case", CASES)
def test_i15_a_refused_open_changes_nothing(path: Path, case: str) -> None:
    damage, error, message = CASES[case]
    damage(path)
    before = digest(path.parent)
    for _ in range(2):
        with pytest.raises(error, match=message):
            begun(path)
    assert digest(path.parent) == before


@pytest.mark.parametrize("case", ["no witness", "witness blank", "witness empty", "witness damaged"])
def test_i1_without_its_witness_a_log_goes_on_as_another_if_told_to(path: Path, case: str) -> None:
    CASES[case][0](path)
    damaged = (path / "witness").read_bytes() if (path / "witness").exists() else None
    with session(path, accept_loss=True) as opened:
        assert (opened.report.kind, opened.report.incarnation_of) == ("lost", "alice")
        assert "its witness is gone" in opened.report.reason
        assert opened.heads == {"alice": 300, "bob": 20}
        opened.write(1)
    with session(path) as opened:
        assert opened.report.kind == "clean"
    aside = [file.read_bytes() for file in path.glob("backups/witness-*/witness")]
    assert aside == ([damaged] if case in ("witness empty", "witness damaged") else []), "evidence is kept"


def test_i15_what_is_not_ours_stays(path: Path) -> None:
    """Beside our files, among RocksDB's, and where nothing is ours."""
    strangers = [path / "notes.txt", path / "rocks" / "other", path / "backups" / "x", rocks(path) / "photo.jpeg"]
    for file in strangers:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    with session(path) as opened:
        assert opened.report.kind == "clean"
        opened.write(10)
        opened.data.store.compact()
    assert [file.read_text() for file in strangers] == [file.name for file in strangers]


@pytest.mark.parametrize("create", [True, False])
def test_i15_a_directory_that_is_not_ours_stays_as_it_is(base: Path, create: bool) -> None:
    (base / "home").mkdir()
    (base / "home" / "photo.jpeg").write_text("a photo")
    with pytest.raises(UsageError, match="is not a deltalog directory: it holds 'photo.jpeg' and no deltalog.toml"):
        begun(base / "home", create=create)
    assert os.listdir(base / "home") == ["photo.jpeg"]


def test_nothing_is_made_unless_asked_for(base: Path) -> None:
    with pytest.raises(StoreMissing, match="does not exist"):
        begun(base / "data", create=False)
    with pytest.raises(StoreMissing, match="there is no directory"):
        begun(base / "a" / "b")
    (base / "empty").mkdir()
    with pytest.raises(StoreMissing, match="it has no deltalog.toml"):
        begun(base / "empty", create=False)
    (base / "dangling").symlink_to(base / "nowhere")
    with pytest.raises(UsageError, match="a symbolic link to nothing"):
        begun(base / "dangling")
    (base / "file").touch()
    with pytest.raises(UsageError, match="is not a directory"):
        begun(base / "file")
    with pytest.raises(DeltaLogError, match="NUL"):
        begun(base / "a\0b")
    assert sorted(os.listdir(base)) == ["dangling", "empty", "file"]
    assert not os.listdir(base / "empty")


def test_a_link_to_the_whole_directory_is_fine(path: Path) -> None:
    path.with_name("link").symlink_to(path)
    with session(path.with_name("link")) as opened:
        assert opened.report.kind == "clean"


# ------------------------------------------------------------------------------------------------------- one at a time

HOLDER = """
import sys
from pathlib import Path
from tests.deltalog.directories import begun
held = begun(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_has_it(path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        before = digest(path)
        with pytest.raises(StoreInUse, match=f"is open in process {child.pid} already"):
            begun(path)
        assert digest(path) == before
        child.kill()
    with session(path) as opened:
        assert opened.heads == {"alice": 300, "bob": 20}


def test_a_second_handle_in_this_process_is_refused(path: Path) -> None:
    with session(path) as opened:
        with pytest.raises(StoreInUse, match=f"is open in process {os.getpid()} already"):
            begun(path)
        (path / "lock").write_text("nonsense")
        with pytest.raises(StoreInUse, match="is open in another process already"):
            begun(path)
        opened.write(1)
    with session(path) as opened:
        assert opened.heads["alice"] == 301


# ------------------------------------------------------------------------------------------------------ doubts as well


def test_i15_a_store_that_changes_between_its_two_opens_is_refused(path: Path) -> None:
    """It is read first, then opened for writing: somebody else has it open, or it does not say the same twice."""

    def change() -> None:
        with closing(Rocks.open(rocks(path), FAMILIES, profiles.SharedMemory())) as db:
            key, value = list(db.scan(keys.SOURCES))[1]
            source_no, source, head = keys.decode_head(key, value)
            batch = db.batch()
            batch.put(keys.SOURCES, key, keys.encode_head(source_no, source, attrs.evolve(head, size_bytes=7)))
            db.write(batch)

    witness = (path / "witness").read_bytes()
    failpoints.arm("startup.open.before", change)
    try:
        with pytest.raises(StoreCorrupt, match="opened for writing it does not hold what it held for reading"):
            begun(path)
    finally:
        failpoints.disarm()
    assert (path / "witness").read_bytes() == witness
    Rocks.open(rocks(path), FAMILIES, profiles.SharedMemory()).close()  # raises if it were still open


def test_i1_a_refused_open_begins_no_incarnation(path: Path) -> None:
    """The newest deltas are read before anything is decided: damage among them must not cost what the mark tells."""
    with killed(path) as opened:
        opened.hand_out(5)
    flip(sst(path), 40)
    before = digest(path)
    with pytest.raises(StoreCorrupt):
        begun(path)
    assert digest(path) == before
    flip(sst(path), 40)
    with session(path) as opened:
        assert dict(opened.report.lost) == {"alice": (301, 305)}
        assert len(opened.data.store.meta(keys.META_INCARNATIONS)) == 2


def test_chains_differ(path: Path) -> None:
    """What the cases above stand on: two deltas with one dot have different hashes."""
    one, other = (chain.extend(b"", [delta_of("alice", 1).record]) for _ in range(2))
    assert one != other
