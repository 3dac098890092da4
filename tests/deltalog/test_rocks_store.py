"""The store on RocksDB: the laws of every store, atomic batches, damaged files, threads, upkeep, opening."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from deltalog import block, chain, failpoints, keys
from deltalog.block import DELTAS_MAX
from deltalog.delta import Delta
from deltalog.errors import (
    BelowFloor,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFormatMismatch,
    StoreFull,
)
from deltalog.keys import BY_TIME, DELTAS, META, SOURCES
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.store import DeltaStore, Run
from tests.conftest import Rounds
from tests.deltalog.rocks_stores import MEMORY, STORE_ID, CountingStore, directory_in_memory, opened, opened_as
from tests.deltalog.threads import PATIENCE_S, in_thread
from tests.faults import Bug
from tests.laws.delta_store import DeltaStoreLaws, Pair
from tests.laws.store_machine import run_store_machine
from tests.laws.store_model import END, StoreModel, drained, place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as path:
        yield path


@pytest.fixture
def store(directory: Path) -> Iterator[RocksStore]:
    store = opened(directory / "store")
    yield store
    store.close()


@pytest.fixture
def pair(store: RocksStore) -> Pair:
    return Pair(store)


class TestRocksStore(DeltaStoreLaws):
    """The laws."""

    @pytest.fixture
    def tmp_path(self, directory: Path) -> Path:
        return directory

    def open_store(self, path: Path) -> DeltaStore:
        return opened(path)


def test_the_store_on_rocksdb_against_a_model(directory: Path, rounds: Rounds) -> None:
    run_store_machine(opened, directory, examples=rounds(30, nightly=3000))


def blocks_of(store: RocksStore, source_no: int) -> int:
    return sum(
        1 for _ in store.db.scan(DELTAS, begin=keys.block_key(source_no, 0), end=keys.block_key(source_no + 1, 0))
    )


# ------------------------------------------------------------------------------------------- all of a change or nothing


@pytest.fixture
def points() -> Iterator[Callable[[str, int], None]]:
    """Makes a named point raise `Bug` when it is reached for the n-th time."""

    def arm(name: str, nth: int = 1) -> None:
        left = [nth]

        def action() -> None:
            left[0] -= 1
            if not left[0]:
                raise Bug(name)

        failpoints.arm(name, action)

    yield arm
    failpoints.disarm()


CHANGES: dict[str, Callable[[DeltaStore, StoreModel], object]] = {
    "write": lambda store, model: store.write(
        [model.run("a", [9000, 9001]), model.run("new", [1, 2]), model.run("b", [9])]
    ),
    "truncate": lambda store, _: store.truncate({"a": 170}),
    "erase": lambda store, _: store.erase("a", 20, "because", 7),
    "annotate": lambda store, _: store.annotate({b"a": b"new", b"b": None, b"c": b"new"}),
    "merge": lambda store, _: store.compact(),
}


def changed(model: StoreModel, change: str) -> StoreModel:
    """The model once a change is made."""
    after = model.copy()
    if change == "write":
        after.write([model.run("a", [9000, 9001]), model.run("new", [1, 2]), model.run("b", [9])])
    elif change == "truncate":
        after.truncate({"a": 170})
    elif change == "erase":
        after.erase("a", 20, "because", 7)
    elif change == "annotate":
        after.annotate({b"a": b"new", b"b": None, b"c": b"new"})
    return after


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place_", ["before", "after"])
def test_i8_a_change_that_fails_is_there_whole_or_not_at_all(
    pair: Pair, points: Callable[[str, int], None], change: str, place_: str
) -> None:
    for first in range(0, 300, 50):
        pair.add("a", *range(first * 10, first * 10 + 50))
    pair.add("b", 5)
    pair.annotate({b"a": b"old", b"b": b"old"})
    points(f"store.{change}.{place_}", 1)
    with pytest.raises(Bug):
        CHANGES[change](pair.store, pair.model)
    failpoints.disarm()
    if place_ == "after":
        pair.store.reopen()
        pair.model = changed(pair.model, change)
    pair.model.check(pair.store)
    if place_ == "before":
        CHANGES[change](pair.store, pair.model)
        pair.model = changed(pair.model, change)
    pair.model.check(pair.store)


def test_i8_a_long_truncation_that_stops_between_its_batches_leaves_a_floor_that_holds(
    pair: Pair, points: Callable[[str, int], None]
) -> None:
    for timestamp in range(700):
        pair.add("a", timestamp)
    points("store.truncate.before", 3)
    with pytest.raises(Bug):
        pair.store.truncate({"a": 650})
    failpoints.disarm()
    pair.model.truncate({"a": 512})
    pair.model.check(pair.store)
    pair.store.reopen()
    pair.model.check(pair.store)
    pair.truncate(a=650)
    pair.model.check(pair.store)


@pytest.mark.system("tmpfs")
def test_i8_a_full_disk_leaves_every_change_whole_or_not_at_all(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(24 << 20)
    filler = disk / "filler"
    pair = Pair(opened(disk / "store"))
    filler.write_bytes(bytes(8 << 20))
    before, after = fill_up(pair)
    filler.unlink()
    pair.store.reopen()
    held = {source: head.seq for source, head in pair.store.heads().items()}
    pair.model = after if held == {s: len(m.written) for s, m in after.sources.items()} else before
    pair.model.truncate({source: head.floor for source, head in pair.store.heads().items()})
    pair.model.check(pair.store)
    pair.add("s1", END)
    pair.model.check(pair.store)
    pair.store.close()


def fill_up(pair: Pair) -> tuple[StoreModel, StoreModel]:
    """Write, truncate and compact until the disk is full; the models without and with the last write."""
    chance = random.Random(3)
    for number in range(10_000):
        before, run = pair.model.copy(), pair.model.run(f"s{number % 3}", [number], chance.randbytes(30_000))
        after = before.copy()
        after.write([run])
        try:
            pair.write(run)
            if number % 7 == 6:
                pair.truncate(s0=number // 4)
                pair.store.compact()
        except StoreFull:
            return before, after
    raise AssertionError("the disk is too large")


KILLED = """
import sys
from pathlib import Path
from tests.deltalog.rocks_stores import opened
from tests.deltalog.test_rocks_store import history
for number, _ in enumerate(history(opened(Path(sys.argv[1])), int(sys.argv[2]))):
    print(number, flush=True)
"""


def history(store: DeltaStore, seed: int) -> Iterator[StoreModel]:
    """Change a store in ways that only the seed decides; yield the model before the first and behind each."""
    pair, chance = Pair(store), random.Random(seed)
    yield pair.model
    for number in range(400):
        names = chance.sample(["a", "b", "c", "d"], chance.randint(1, 3))
        lengths = [range(number << 20, (number << 20) + chance.choice((1, 3, 130))) for _ in names]
        pair.write(*(pair.model.run(name, length) for name, length in zip(names, lengths, strict=True)))
        yield pair.model
        head = pair.store.heads()[names[0]]
        match chance.randrange(6):
            case 0:
                pair.truncate(**{names[0]: chance.randint(head.floor, head.seq)})
            case 1:
                pair.erase(names[0], head.seq)
            case 2:
                pair.store.compact(if_needed=True)
            case 3:
                pair.annotate({bytes([number & 3]): bytes([number & 255]), bytes([number & 7]): None})
            case _:
                pair.store.sync()
        yield pair.model


@pytest.mark.crash
def test_i8_after_a_kill_each_change_is_there_whole_or_not_at_all(directory: Path, rounds: Rounds) -> None:
    for seed in range(rounds(6, nightly=300)):
        path = directory / str(seed)
        chance = random.Random(seed)
        command = [sys.executable, "-c", KILLED, str(path), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            assert child.stdout is not None
            seen = [child.stdout.readline() for _ in range(chance.randint(1, 120))]
            child.kill()
            done = len(seen) + len(child.stdout.read().split()) - 1
        store = opened(path)
        with directory_in_memory(directory / "replay") as replay:
            replayed = opened(replay / "store")
            candidates = [model.copy() for model in islice(history(replayed, seed), done, done + 2)]
            replayed.close()
        matching = [model for model in candidates if model.heads() == store.heads()]
        assert matching, f"seed {seed}: neither the state behind change {done} nor the one behind the next"
        notes = list(store.erasures())
        next(model for model in matching if model.erasures() == notes).check(store)
        store.close()


# ------------------------------------------------------------------------------------------------------- damaged files


def flipped(path: Path, offset: int, bit: int) -> Callable[[], None]:
    """Flip a bit of a file; return what flips it back."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ (1 << bit)]))

    flip()
    return flip


def answers(store: RocksStore) -> dict[str, Callable[[], object]]:
    """Every method that reads, asked for everything."""
    heads = store.heads()
    floors, seqs = {s: head.floor for s, head in heads.items()}, {s: head.seq for s, head in heads.items()}
    middle = max(head.timestamp for head in heads.values()) // 2
    return {
        "since": lambda: drained(store.since(floors, seqs), 200),
        "between": lambda: drained(store.between(-1, END), 200),
        "between, half": lambda: drained(store.between(middle, END), 200),
        "by_source": lambda: [d for s in seqs for d in drained(store.by_source(s, floors[s], seqs[s]), 200)],
        "reverse": lambda: [
            d for s in seqs for d in drained(store.by_source(s, floors[s], seqs[s], reverse=True), 200)
        ],
        "get": lambda: [store.get(s, n) for s in seqs for n in range(floors[s] + 1, seqs[s] + 1, 25)],
        "newest": lambda: store.newest(1 << 20),
        "seqs_at": lambda: store.seqs_at(middle),
        "sizes": lambda: store.sizes().blocks,
        "erasures": store.erasures,
        "heads": store.heads,
    }


def test_i2_a_flipped_bit_in_a_file_is_an_error_never_a_shorter_answer(directory: Path, rounds: Rounds) -> None:
    path, chance = directory / "store", random.Random(4)
    pair = Pair(opened(path))
    pair.fill(sources=4, rounds=25)
    pair.store.compact()
    right = {name: read() for name, read in answers(opened_in(pair)).items()}
    pair.store.close()
    files = sorted(path.glob("*.sst"))
    loud: set[str] = set()
    for number in range(rounds(60, nightly=5000)):
        file = files[number % len(files)]
        restore = flipped(file, chance.randrange(file.stat().st_size), chance.randrange(8))
        try:
            store = opened(path)
        except StoreCorrupt:
            loud.add("open")
        else:
            for name, read in answers(store).items():
                try:
                    assert read() == right[name], f"{name} with {file.name} damaged"
                except StoreCorrupt as error:
                    loud.add(name if file.name in str(error) else f"{name}, but it does not name the file: {error}")
            with suppress(StoreCorrupt):
                store.close()
        restore()
    assert not [name for name in loud if "but" in name]
    assert loud >= {"open", "since", "between", "by_source", "reverse", "get", "newest", "sizes"}


def opened_in(pair: Pair) -> RocksStore:
    assert isinstance(pair.store, RocksStore)
    return pair.store


@pytest.mark.parametrize("change", ["truncate", "erase", "merge"])
def test_i9_what_was_tampered_with_is_not_written_anew(store: RocksStore, pair: Pair, change: str) -> None:
    """Upkeep would make a chain that fits; `verify` could not tell any more."""
    for first in range(0, 300, 50):
        pair.add("a", *range(first * 10, first * 10 + 50), payload="honest")
    key = keys.block_key(0, 151)
    value = dict(store.db.scan(DELTAS))[key]
    batch = store.db.batch()
    batch.put(DELTAS, key, value.replace(b"honest", b"hOnest", 1))
    store.db.write(batch)
    before = [dict(store.db.scan(family)) for family in (DELTAS, BY_TIME, SOURCES, META)]
    changes: dict[str, Callable[[], object]] = {
        "truncate": lambda: store.truncate({"a": 170}),
        "erase": lambda: store.erase("a", 155, "because", 7),
        "merge": store.merge_blocks,
    }
    with pytest.raises(StoreCorrupt, match=f"{key.hex()}.*verify"):
        changes[change]()
    assert [dict(store.db.scan(family)) for family in (DELTAS, BY_TIME, SOURCES, META)][2:] == before[2:]
    assert dict(store.db.scan(DELTAS))[key] == value.replace(b"honest", b"hOnest", 1)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_i2_a_missing_block_is_an_error_on_every_change(store: RocksStore, pair: Pair, which: int) -> None:
    pair.add("a", *range(3 * DELTAS_MAX))
    batch = store.db.batch()
    batch.delete(DELTAS, keys.block_key(0, which * DELTAS_MAX + 1))
    store.db.write(batch)
    rows = {family: dict(store.db.scan(family)) for family in FAMILIES}
    changes: list[Callable[[], object]] = [
        lambda: store.truncate({"a": 3 * DELTAS_MAX}),
        lambda: store.erase("a", which * DELTAS_MAX + 7, "because", 7),
        lambda: store.seqs_at(which * DELTAS_MAX + 7),
    ]
    for change in changes:
        with pytest.raises(StoreCorrupt, match=r"deltas: \('a', \d+\) is missing"):
            change()
    assert {family: dict(store.db.scan(family)) for family in FAMILIES} == rows


def test_i9_blocks_that_do_not_follow_on_each_other_are_not_merged(store: RocksStore, pair: Pair) -> None:
    pair.add("a", *range(50))
    pair.add("a", *range(1000, 1050))
    other = StoreModel()
    other.write([other.run("a", range(50), payload="another history")])
    run = other.run("a", range(1000, 1050))
    batch = store.db.batch()
    batch.put(DELTAS, keys.block_key(0, 51), block.encode(run.previous, run.hashes, run.records))
    store.db.write(batch)
    with pytest.raises(StoreCorrupt, match="does not follow"):
        store.merge_blocks()


# ------------------------------------------------------------------------------------------------------------- threads


def test_reads_stay_exact_while_another_thread_changes_the_store(directory: Path, rounds: Rounds) -> None:
    """`still` is never changed; `moving` is written, truncated, erased; blocks of both are merged meanwhile."""
    store = opened(directory / "store")
    pair, done, ended = Pair(store), threading.Event(), threading.Event()
    for first in range(0, 600, 20):
        pair.add("still", *range(first * 10, first * 10 + 20))
    still = pair.model.sources["still"].written
    turns, reads = rounds(60, nightly=3000), 0

    def change() -> None:
        try:
            chance = random.Random(5)
            for turn in itertools.count():
                if ended.is_set() or (turn >= turns and reads > 3):
                    return
                pair.add("moving", *range(turn * 1000, turn * 1000 + chance.choice((1, 5, 200))))
                pair.add(f"new {turn}", turn)
                head = store.heads()["moving"]
                if turn % 3 == 1:
                    pair.truncate(moving=chance.randint(head.floor, head.seq))
                if turn % 4 == 2:
                    pair.erase("moving", head.seq)
                if turn % 5 == 3:
                    store.merge_blocks()
                if turn % 20 == 13:
                    store.compact()
        finally:
            done.set()

    writing = in_thread(change)
    try:
        while not done.is_set():
            read_all(store, still)
            reads += 1
    finally:
        ended.set()
        writing.result(PATIENCE_S)
    pair.model.check(store)
    store.close()


def read_all(store: RocksStore, still: list[Delta]) -> None:
    """Ask in every way; what cannot have changed must be exact, the rest whole."""
    heads = store.heads()
    assert drained(store.by_source("still", 0, 600), 37) == still
    assert drained(store.by_source("still", 0, 600, reverse=True), 37) == still[::-1]
    assert [d for d in drained(store.between(-1, 5000), 50) if d.source == "still"] == [
        d for d in still if d.timestamp <= 5000
    ]
    moving = heads.get("moving")
    if moving is not None:
        with suppress(BelowFloor):
            found = drained(store.by_source("moving", moving.floor, moving.seq), 61)
            assert [delta.seq for delta in found] == list(range(moving.floor + 1, moving.seq + 1))
        with suppress(BelowFloor):
            found = drained(store.since({"moving": moving.floor}, {"moving": moving.seq, "still": 600}), 61)
            assert [d for d in found if d.source == "still"] == still
            assert [d.seq for d in found if d.source == "moving"] == list(range(moving.floor + 1, moving.seq + 1))
        held = store.get("moving", moving.seq)
        assert held is None or held.dot == ("moving", moving.seq)
        assert store.seqs_at(moving.timestamp)["moving"] >= moving.seq
    newest = store.newest(400)
    assert list(newest) == sorted(newest, key=place)
    sizes = store.sizes()
    assert sizes.deltas >= 600


def test_a_reopen_waits_for_reads_in_progress(store: RocksStore, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.add("a", 1, 2, 3)
    tried, close = threading.Event(), store.db.close

    def closing() -> None:
        try:
            close()
        finally:
            tried.set()

    monkeypatch.setattr(store.db, "close", closing)
    with store.view() as view:
        reopening = in_thread(store.reopen)
        assert tried.wait(PATIENCE_S)
        assert not reopening.done()
        assert len(list(view.scan(DELTAS))) == 1
    reopening.result(PATIENCE_S)
    pair.model.check(store)


def test_a_close_that_reads_hold_up_too_long_can_be_tried_again(
    store: RocksStore, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.add("a", 1, 2, 3)
    monkeypatch.setattr("deltalog.rocks_instance._READS_S", 0.0)
    with store.view():
        with pytest.raises(StoreBusy):
            store.close()
        pair.model.check(store)
    store.close()
    with pytest.raises(StoreClosed):
        store.get("a", 1)


def test_a_reopen_that_fails_leaves_nothing_open(directory: Path) -> None:
    path = directory / "store"
    pair = Pair(opened(path))
    pair.add("a", 1, 2, 3)
    store = opened_in(pair)
    batch = store.db.batch()
    batch.put(SOURCES, keys.source_key(0), b"damaged")
    store.db.write(batch)
    with pytest.raises(StoreCorrupt):
        store.reopen()
    with pytest.raises(StoreClosed):
        store.get("a", 1)
    Rocks.open(path, FAMILIES, MEMORY).close()
    store.close()


# -------------------------------------------------------------------------------------------------------------- upkeep


def test_short_blocks_become_as_few_as_the_bounds_allow(store: RocksStore, pair: Pair) -> None:
    for timestamp in range(3 * DELTAS_MAX):
        pair.add("a", timestamp)
    pair.add("b", *range(10), payload=b"x" * 20_000)
    assert (blocks_of(store, 0), blocks_of(store, 1)) == (3 * DELTAS_MAX, 4)
    assert store.merge_blocks() == 3 * DELTAS_MAX - 3
    assert (blocks_of(store, 0), blocks_of(store, 1)) == (3, 4)
    assert store.sizes().blocks == 7
    pair.model.check(store)


def test_blocks_written_since_are_merged_with_those_before(store: RocksStore, pair: Pair) -> None:
    for timestamp in range(1, 50):
        pair.add("a", timestamp)
        pair.add("b", timestamp)
        store.merge_blocks()
        assert (blocks_of(store, 0), blocks_of(store, 1)) == (1, 1)
    store.reopen()
    pair.add("a", 100)
    pair.add("c", 100)
    assert store.merge_blocks() == 1
    assert blocks_of(store, 0) == 1
    pair.model.check(store)


def test_short_blocks_anywhere_are_found_after_an_open(store: RocksStore, pair: Pair) -> None:
    pair.add("a", *range(DELTAS_MAX))
    pair.add("a", *range(1000, 1000 + DELTAS_MAX))
    pair.add("a", 2000)
    pair.add("a", 2001)
    pair.add("a", *range(3000, 3000 + DELTAS_MAX))
    store.reopen()
    assert store.merge_blocks() == 1
    assert store.merge_blocks() == 0
    pair.model.check(store)


def test_compact_gives_back_what_was_truncated_and_erased(store: RocksStore, pair: Pair) -> None:
    chance = random.Random(6)
    secret = b"find me on the disk " * 5
    for number in range(400):
        pair.add("a", number, payload=chance.randbytes(5000))
    pair.add("a", 1 << 20, payload=secret)
    store.compact()
    before = store.sizes().disk_bytes
    pair.erase("a", 401)
    pair.truncate(a=200)
    store.compact(if_needed=True)
    pair.model.check(store)
    assert store.sizes().disk_bytes < 0.6 * before
    assert not [file for file in store.db.path.iterdir() if secret in file.read_bytes()]


def test_a_write_of_very_many_new_sources(store: RocksStore, pair: Pair) -> None:
    """Numbering them takes linear time: with the square this test takes minutes."""
    pair.write(*(pair.model.run(f"s{number}", [number]) for number in range(20_000)))
    assert store.heads() == pair.model.heads()
    assert len(drained(store.between(9_999, 10_005))) == 6


# -------------------------------------------------------------------------------------------------------------- opening


def tampered(path: Path, *puts: tuple[str, bytes, bytes | None]) -> None:
    """Put (None: delete) through the raw door, while the store is closed."""
    db = Rocks.open(path, FAMILIES, MEMORY)
    batch = db.batch()
    for family, key, value in puts:
        if value is None:
            batch.delete(family, key)
        else:
            batch.put(family, key, value)
    db.write(batch)
    db.close()


@pytest.fixture
def closed(directory: Path) -> Path:
    pair = Pair(opened(directory / "store"))
    pair.add("a", 1, 2, 3)
    pair.add("b", 1, 2, 3)
    pair.store.close()
    return directory / "store"


def head_row(source_no: int, source: str) -> tuple[str, bytes, bytes]:
    return (
        SOURCES,
        keys.source_key(source_no),
        keys.encode_head(source_no, source, keys.Head(1, 1, bytes(32), 0, bytes(32), 9)),
    )


@pytest.mark.parametrize(
    ("put", "error", "match"),
    [
        ((META, keys.META_FORMAT, keys.encode_meta(keys.META_FORMAT, 99)), StoreFormatMismatch, "store format 99"),
        ((META, keys.META_FORMAT, None), StoreCorrupt, "missing, though deltas holds data"),
        ((META, keys.META_FORMAT, b"no row at all"), StoreCorrupt, "meta key"),
        ((META, keys.META_STORE_ID, None), StoreCorrupt, "store_id.* is missing"),
        ((META, keys.META_STORE_ID, keys.encode_meta(keys.META_STORE_ID, 5)), StoreCorrupt, "store_id.* is missing"),
        ((SOURCES, keys.source_key(0), None), StoreCorrupt, "row 1 .'b'. stands where row 0 belongs"),
        ((SOURCES, keys.source_key(1), b"x" * 120), StoreCorrupt, "sources key 00000001"),
        (head_row(1, "a"), StoreCorrupt, "row 1 .'a'. stands where row 1 belongs"),
        (head_row(5, "f"), StoreCorrupt, "row 5 .'f'. stands where row 2 belongs"),
    ],
    ids=["format", "no format", "bad format", "no id", "bad id", "no row", "bad row", "a name twice", "a gap"],
)
def test_a_store_that_is_not_whole_does_not_open(
    closed: Path, put: tuple[str, bytes, bytes | None], error: type[StoreError], match: str
) -> None:
    tampered(closed, put)
    with pytest.raises(error, match=match):
        opened(closed)
    Rocks.open(closed, FAMILIES, MEMORY).close()  # nothing was left open


def test_an_empty_database_is_no_store_unless_it_is_given_an_id(directory: Path) -> None:
    Rocks.create(directory / "store", FAMILIES, MEMORY).close()
    with pytest.raises(StoreCorrupt, match="format.* is missing"):
        RocksStore(partial(Rocks.open, directory / "store", FAMILIES, MEMORY))
    store = opened(directory / "store")
    assert store.store_id == STORE_ID
    store.close()
    again = RocksStore(partial(Rocks.open, directory / "store", FAMILIES, MEMORY), b"another id")
    assert again.store_id == STORE_ID
    again.close()


def test_meta_is_kept_and_checked(store: RocksStore) -> None:
    store.set_meta(keys.META_SCRUB, {"source": 3, "seq": 9})
    store.reopen()
    assert store.meta(keys.META_SCRUB) == {"source": 3, "seq": 9}
    assert store.meta(b"nothing") is None


@pytest.mark.parametrize("at", [0, -1], ids=["value", "check"])
def test_a_damaged_annotation_is_an_error_that_names_its_key(store: RocksStore, at: int) -> None:
    store.annotate({b"mine": b"value", b"other": b"value"})
    key = keys.annotation_key(b"mine")
    value = bytearray(store.db.get(META, key) or b"")
    value[at] ^= 1
    batch = store.db.batch()
    batch.put(META, key, bytes(value))
    store.db.write(batch)
    for read in (lambda: store.annotation(b"mine"), store.annotations):
        with pytest.raises(StoreCorrupt, match=f"meta key {key.hex()}"):
            read()
    assert store.annotation(b"other") == b"value"


def test_a_chain_hash_is_read_from_one_block(store: RocksStore, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.add("a", *range(1000))
    extended: list[int] = []
    extend = chain.extend

    def counted(previous: bytes, records: list[bytes]) -> list[bytes]:
        extended.append(len(records))
        return extend(previous, records)

    monkeypatch.setattr(chain, "extend", counted)
    assert [store.hash_at("a", seq) for seq in (500, 1, 1000)] == [
        pair.model.sources["a"].hashes[seq - 1] for seq in (500, 1, 1000)
    ]
    assert extended == [128, 128], "at the head it stands in the row"


def test_i9_a_chain_hash_is_not_taken_from_what_was_tampered_with(store: RocksStore, pair: Pair) -> None:
    pair.add("a", *range(10))
    other = StoreModel()
    other.write([other.run("a", range(10), "other")])
    key = keys.block_key(0, 1)
    held = store.decode_block("a", key, store.db.get(DELTAS, key) or b"")
    head = other.sources["a"]
    value = block.encode(held.previous, pair.model.sources["a"].hashes, [delta.record for delta in head.written])
    batch = store.db.batch()
    batch.put(DELTAS, key, value)
    store.db.write(batch)
    with pytest.raises(StoreCorrupt, match="run verify"):
        store.hash_at("a", 5)


@pytest.mark.parametrize("row", [(keys.META_ERASED + b"short", [1, 2]), (keys.erased_key(9, 1), ["reason", 5])])
def test_a_note_of_no_dot_is_an_error(store: RocksStore, row: tuple[bytes, list[object]]) -> None:
    store.set_meta(*row)
    with pytest.raises(StoreCorrupt):
        store.erasures()


def test_the_total_counts_all_that_was_ever_stored(store: RocksStore, pair: Pair) -> None:
    pair.add("a", *range(100))
    pair.add("b", *range(50))
    pair.truncate(a=70)
    assert store.total == 150
    store.reopen()
    assert store.total == 150


def test_get_decodes_one_delta(directory: Path) -> None:
    store = opened_as(CountingStore, directory / "store")
    pair = Pair(store)
    pair.add("a", *range(100))
    assert store.cost(lambda: store.get("a", 60))["deltas"] == 1
    store.close()


def test_a_run_that_does_not_follow_is_a_programmers_error(store: RocksStore, pair: Pair) -> None:
    pair.add("a", 1, 2)
    run = pair.model.run("a", [3])
    for wrong in (
        Run("a", 4, run.records, run.previous, run.hashes),
        Run("a", 3, run.records, bytes(32), run.hashes),
        Run("a", 3, [], run.previous, []),
    ):
        with pytest.raises(AssertionError):
            store.write([wrong])
    pair.model.check(store)
