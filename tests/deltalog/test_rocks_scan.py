"""Reads that span blocks: what they cost, what they hold in memory, what they do about gaps, damage and change."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from deltalog import keys
from deltalog.block import DELTAS_MAX
from deltalog.delta import Delta
from deltalog.errors import BelowFloor, StoreCorrupt
from deltalog.keys import BY_TIME, DELTAS, TimeEntry
from deltalog.rocks_scan import overlapping
from deltalog.rocks_view import View
from deltalog.store import Scan
from tests.deltalog.rocks_stores import CountingStore, directory_in_memory, opened_as
from tests.laws.delta_store import Pair
from tests.laws.store_model import END, drained, place
from tests.models import touching

HELD_DELTAS = 8192
"""What a merge may hold decoded, in a test."""
ENTRIES = 256
"""Index entries of one level it reads at a time."""


class LateStore(CountingStore):
    """Lets a test change something just before a read looks at the store."""

    before_view: Callable[[], object] | None = None

    def view(self) -> View:
        hook, self.before_view = self.before_view, None
        if hook is not None:
            hook()
        return super().view()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with directory_in_memory(tmp_path_factory.mktemp("scan")) as path:
        yield path


@pytest.fixture
def store(directory: Path, request: pytest.FixtureRequest) -> Iterator[LateStore]:
    store = opened_as(LateStore, directory / str(hash(request.node.nodeid)))
    yield store
    store.close()


@pytest.fixture
def pair(store: LateStore) -> Pair:
    return Pair(store)


def change(
    store: CountingStore, *, put: tuple[str, bytes, bytes] | None = None, drop: tuple[str, bytes] | None = None
) -> None:
    """Tamper through the raw door."""
    batch = store.db.batch()
    if put is not None:
        batch.put(*put)
    if drop is not None:
        batch.delete(*drop)
    store.db.write(batch)


# -------------------------------------------------------------------------------------------------------- what it costs


def steady(pair: Pair, sources: int, first_block: int, blocks: int) -> None:
    """Sources that each write one delta a tick, a full block at a time."""
    for number in range(first_block, first_block + blocks):
        ticks = range(number * DELTAS_MAX * 10, (number + 1) * DELTAS_MAX * 10, 10)
        pair.write(*(pair.model.run(f"s{source}", [tick + source for tick in ticks]) for source in range(sources)))


def costs(store: CountingStore, pair: Pair, answers: bool) -> dict[str, Counter[str]]:
    """What each kind of read looks at for about 300 deltas a source."""
    heads = {source: head.seq for source, head in store.heads().items()}
    half = heads["s0"] // 2
    time = pair.model.sources["s0"].written[half].timestamp
    reads: dict[str, Callable[[], object]] = {
        "since": lambda: drained(store.since({source: seq - 300 for source, seq in heads.items()}, heads)),
        "between": lambda: drained(store.between(time, time + 3000)),
        "by source": lambda: drained(store.by_source("s1", half, half + 300)),
        "reverse": lambda: drained(store.by_source("s1", half, half + 300, reverse=True)),
        "get": lambda: store.get("s2", half),
        "newest": lambda: store.newest(300),
    }
    return {name: store.cost(read) for name, read in reads.items()}


def test_what_a_read_looks_at_does_not_grow_with_the_log(store: LateStore, pair: Pair) -> None:
    found = []
    for first, blocks in ((0, 8), (8, 24), (32, 32)):
        steady(pair, 3, first, blocks)
        found.append(costs(store, pair, answers=True))
    assert found[0] == found[1] == found[2]
    assert {name: cost["deltas"] <= 2 * 900 for name, cost in found[0].items()} == dict.fromkeys(found[0], True)
    assert found[0]["get"] == Counter(blocks=1, deltas=1)
    assert found[0]["by source"]["deltas"] == found[0]["reverse"]["deltas"] == 300


def test_seqs_at_looks_at_few_blocks_of_each_source(store: LateStore, pair: Pair) -> None:
    steady(pair, 3, 0, 64)
    cost = store.cost(lambda: store.seqs_at(pair.model.sources["s0"].written[999].timestamp))
    assert cost["blocks"] <= 3 * 8
    assert not cost["entries"]


def test_an_interval_costs_the_same_among_blocks_of_all_lengths(store: LateStore, pair: Pair) -> None:
    """At each level of the index at most three blocks of a source are looked at in vain."""
    levels = range(2, 40, 3)
    for round_ in range(12):
        for level in levels:
            start = (round_ + 1) << 41
            pair.add(f"level {level}", start, start + (1 << level) - 1)
    middle = (6 << 41) - 1
    inside = store.cost(lambda: drained(store.between(middle, middle + 1)))
    pairs = len(levels)
    assert inside["entries"] <= pairs * (2 + 3) + pairs
    assert inside["blocks"] <= 2 * pairs


def test_merging_reads_only_what_is_new(store: LateStore, pair: Pair) -> None:
    steady(pair, 3, 0, 30)
    for timestamp in range(1 << 30, (1 << 30) + 10):
        pair.add("s0", timestamp)
    assert store.cost(store.merge_blocks)["blocks"] <= 3 * 10 + 6
    pair.add("s0", 1 << 31)
    assert store.cost(store.merge_blocks)["blocks"] <= 3 * 2 + 6
    pair.model.check(store)


# ---------------------------------------------------------------------------------------------- what it holds in memory


@pytest.fixture(scope="module")
def crowd(directory: Path) -> Iterator[Pair]:
    """3,000 sources that write in turns, 30 deltas each in one block: every block overlaps every other."""
    store = opened_as(LateStore, directory / "crowd")
    pair = Pair(store)
    names = [f"s{number}" for number in range(3000)]
    pair.write(*(pair.model.run(name, range(number, 3000 * 30, 3000)) for number, name in enumerate(names)))
    yield pair
    store.close()


def deltas_alive() -> int:
    return sum(type(something) is Delta for something in gc.get_objects())


@pytest.mark.parametrize("question", ["since", "between", "between, from the middle"])
def test_what_a_merge_of_many_sources_holds_is_bounded(
    crowd: Pair, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltalog.rocks_scan._HELD_DELTAS", HELD_DELTAS)
    store, everything = crowd.store, crowd.model.all()
    assert isinstance(store, LateStore)
    half = len(everything) // 2
    scan, expected = {
        "since": (store.since({}, dict.fromkeys(crowd.model.sources, 30)), everything),
        "between": (store.between(-1, END), everything),
        "between, from the middle": (store.between(half - 1, END), everything[half:]),
    }[question]
    given: list[Delta] = []
    store.counts.clear()
    before = deltas_alive()
    while page := scan.page(5000):
        given += page
        assert len(page) <= 5000
        assert deltas_alive() - before - len(given) <= 2 * HELD_DELTAS, "some held ahead, some ready to be given"
    assert given == expected
    assert store.counts["deltas"] <= len(expected) + 2 * HELD_DELTAS, "little is decoded twice"


def test_deltas_too_heavy_to_hold_are_read_again_when_their_turn_comes(store: LateStore, pair: Pair) -> None:
    names = [f"s{number}" for number in range(40)]
    for turn in range(3):
        pair.write(*(pair.model.run(name, [turn * 100 + n], b"x" * 1_000_000) for n, name in enumerate(names)))
    scans = store.since({}, dict.fromkeys(names, 3)), store.between(-1, END)
    for scan in scans:
        sizes = []
        while page := scan.page(1000):
            sizes.append(sum(len(delta.record) for delta in page))
        assert len(sizes) > 5, "a page ends early when its deltas are long"
        assert sum(sizes) == store.sizes().record_bytes


def test_no_more_than_its_share_waits_decoded_of_any_run(
    store: LateStore, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is longer than twice its share is let go of, and decoded once more when its turn comes."""
    monkeypatch.setattr("deltalog.rocks_scan._HELD_BYTES", 16_000)
    names = [f"s{number:02}" for number in range(32)]
    for turn in range(3):
        pair.write(*(pair.model.run(name, [turn * 100 + n], b"x" * 2000) for n, name in enumerate(names)))
    for scan in (store.since({}, dict.fromkeys(names, 3)), store.between(-1, END)):
        found = list[Delta]()
        gc.collect()
        before = deltas_alive()
        store.counts.clear()
        while page := scan.page(1):
            found += page
            if len(found) in (1, 20, 50):
                assert deltas_alive() - before == len(found), "none is held for later"
        assert found == pair.model.all()
        assert len(found) < store.counts["deltas"] <= 2 * len(found)


def test_a_page_by_source_of_long_deltas_ends_early(store: LateStore, pair: Pair) -> None:
    pair.add("a", *range(20), payload=b"x" * 1_000_000)
    for reverse in (False, True):
        scan = store.by_source("a", 0, 20, reverse=reverse)
        first = scan.page(1000)
        assert 5 <= len(first) <= 10
        assert len(first) + len(drained(scan)) == 20


@pytest.mark.parametrize("by_time", [False, True], ids=["since", "between"])
def test_a_page_of_many_sources_with_one_long_delta_each_ends_early(
    store: LateStore, pair: Pair, by_time: bool
) -> None:
    names = [f"s{number:03}" for number in range(200)]
    for number, name in enumerate(names):
        pair.add(name, number, payload=b"x" * 400_000)
    scan = store.between(-1, END) if by_time else store.since({}, dict.fromkeys(names, 1))
    first = scan.page(1000)
    assert 10 <= len(first) <= 30, "about 8 MiB of them"
    assert [delta.source for delta in [*first, *drained(scan)]] == names


def test_few_deltas_are_decoded_for_a_small_page(store: LateStore, pair: Pair) -> None:
    steady(pair, 3, 0, 30)
    heads = {source: head.seq for source, head in store.heads().items()}
    assert store.cost(lambda: store.since({}, heads).page(10))["deltas"] <= 3 * 64
    assert store.cost(lambda: store.between(5000, END).page(10))["deltas"] <= 3 * 64


# ------------------------------------------------------------------------------------------------------ gaps and damage


def every_read(store: CountingStore) -> dict[str, Callable[[], list[Delta]]]:
    """All the ways to everything."""
    heads = store.heads()
    floors, seqs = {s: head.floor for s, head in heads.items()}, {s: head.seq for s, head in heads.items()}
    return {
        "since": lambda: drained(store.since(floors, seqs), 100),
        "between": lambda: drained(store.between(-1, END), 100),
        "by source": lambda: [d for s in seqs for d in drained(store.by_source(s, floors[s], seqs[s]), 100)],
        "reverse": lambda: [
            d for s in seqs for d in drained(store.by_source(s, floors[s], seqs[s], reverse=True), 100)
        ],
        "newest": lambda: list(store.newest(1 << 20)),
        "get": lambda: [d for s in seqs for n in range(floors[s], seqs[s]) if (d := store.get(s, n + 1))],
    }


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_i2_a_missing_block_is_an_error_on_every_read_never_a_shorter_answer(
    store: LateStore, pair: Pair, which: int
) -> None:
    steady(pair, 2, 0, 3)
    pair.truncate(s0=10)
    key = keys.block_key(1, which * DELTAS_MAX + 1)
    change(store, drop=(DELTAS, key))
    for name, read in every_read(store).items():
        with pytest.raises(StoreCorrupt, match="missing|no block"):
            pytest.fail(f"{name} gave {len(read())} deltas")
    floor = store.heads()["s1"].floor
    assert floor == 0


def test_a_tampered_block_is_named_by_key_and_file(store: LateStore, pair: Pair) -> None:
    steady(pair, 2, 0, 3)
    key = keys.block_key(0, DELTAS_MAX + 1)
    value = dict(store.db.scan(DELTAS))[key]
    change(store, put=(DELTAS, key, value[:-5]))
    store.flush()
    file = store.db.file_of(DELTAS, key)
    assert file is not None
    for read in every_read(store).values():
        with pytest.raises(StoreCorrupt, match=f"deltas key {key.hex()} in {file}: "):
            read()


@pytest.mark.parametrize(
    "key", [b"\x40", b"\x00" * 30, b"\xff" * 21, b"\x63" + bytes(20), b"\x05" + bytes(20)], ids=repr
)
def test_what_is_no_index_entry_is_an_error(store: LateStore, pair: Pair, key: bytes) -> None:
    steady(pair, 2, 0, 3)
    change(store, put=(BY_TIME, key, bytes(14)))
    with pytest.raises(StoreCorrupt, match=f"by_time key {key.hex()} in memtable/WAL: "):
        drained(store.between(-1, END))


@pytest.mark.parametrize("seq", [1, 129, 500])
def test_an_entry_that_points_at_nothing_is_an_error(store: LateStore, pair: Pair, seq: int) -> None:
    pair.add("a", *range(300))
    pair.add("b", 5)
    change(store, drop=(BY_TIME, next(store.db.scan(BY_TIME))[0]))
    entry = TimeEntry(1000, 1001, 1, seq + 1, 2, 90)
    change(store, put=(BY_TIME, entry.key, entry.value))
    with pytest.raises(StoreCorrupt, match="missing"):
        drained(store.between(999, 2000))
    with pytest.raises(StoreCorrupt, match="no block"):
        store.newest(1)


@pytest.mark.parametrize("which", [1, 2], ids=["middle", "last"])
def test_i2_a_block_that_is_missing_where_an_interval_begins_is_an_error(
    store: LateStore, pair: Pair, which: int
) -> None:
    steady(pair, 2, 0, 3)
    change(store, drop=(DELTAS, keys.block_key(0, which * DELTAS_MAX + 1)))
    inside = pair.model.sources["s0"].written[which * DELTAS_MAX + 5].timestamp
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=rf"'s0', {which * DELTAS_MAX + 1}\) is missing"):
            drained(store.between(inside, END))


@pytest.mark.parametrize("blocks", [1, 2], ids=["and no other", "and another behind"])
def test_an_entry_that_claims_too_much_gives_nothing_too_much(store: LateStore, pair: Pair, blocks: int) -> None:
    """The records say what is later than an interval's begin, not the index."""
    steady(pair, 1, 0, blocks)
    key, value = next(store.db.scan(BY_TIME))
    entry = store.time_entry(key, value)
    change(store, drop=(BY_TIME, key))
    wrong = attrs.evolve(entry, last=entry.last + 500)
    change(store, put=(BY_TIME, wrong.key, wrong.value))
    after = entry.last + 205  # in the midst of the second block, if there is one
    found = drained(store.between(after, END))
    assert found == pair.model.between(after, END)
    assert len(found) == (blocks - 1) * (DELTAS_MAX - 20)


def test_an_entry_of_an_unknown_source_is_an_error(store: LateStore, pair: Pair) -> None:
    pair.add("a", 1, 2)
    entry = TimeEntry(1000, 1001, 7, 1, 2, 90)
    change(store, put=(BY_TIME, entry.key, entry.value))
    with pytest.raises(StoreCorrupt, match="sources: row 7"):
        drained(store.between(-1, END))
    with pytest.raises(StoreCorrupt, match="sources: row 7"):
        store.newest(1)


def test_after_an_error_a_scan_goes_on_where_it_was(store: LateStore, pair: Pair) -> None:
    """Nothing may be lost on the way: a shorter answer would follow."""
    pair.fill(sources=4, rounds=10)
    heads = store.heads()
    floors, seqs = {s: head.floor for s, head in heads.items()}, {s: head.seq for s, head in heads.items()}
    for key, value in list(store.db.scan(DELTAS)):
        scans = [store.since(floors, seqs), store.between(-1, END)]
        found: list[list[Delta]] = [[], []]
        change(store, drop=(DELTAS, key))
        for scan, deltas in zip(scans, found, strict=True):
            with pytest.raises(StoreCorrupt):
                read_into(deltas, scan)
        change(store, put=(DELTAS, key, value))
        for scan, deltas in zip(scans, found, strict=True):
            assert deltas + drained(scan) == pair.model.all()


# ----------------------------------------------------------------------------------------- changes while a scan is open


def read_into(deltas: list[Delta], scan: Scan) -> None:
    while page := scan.page(3):
        deltas += page


@pytest.mark.parametrize("ahead", [1, 5, 100])
def test_a_merge_of_the_block_a_scan_stands_in_changes_nothing(store: LateStore, pair: Pair, ahead: int) -> None:
    for number in range(300):
        pair.add("a" if number % 3 else "b", 10 * number, 10 * number + 5)
    scans = store.since({}, {"a": 400, "b": 200}), store.between(-1, END), store.between(100, 2900)
    expected = pair.model.all(), pair.model.all(), pair.model.between(100, 2900)
    begun = [list(scan.page(ahead)) for scan in scans]
    assert store.merge_blocks() > 290
    for scan, start, all_ in zip(scans, begun, expected, strict=True):
        assert start + drained(scan, 7) == all_


def test_a_source_that_comes_in_sight_late_may_have_been_truncated_and_merged_meanwhile(
    store: LateStore, pair: Pair
) -> None:
    for number in range(600):
        pair.add("early", number)
    for number in range(600):
        pair.add("late", 100_000 + number)
    scan = store.between(-1, END)
    found = list(scan.page(5))
    pair.truncate(late=77)
    store.merge_blocks()
    pair.truncate(late=155)
    found += drained(scan, 50)
    assert found == pair.model.all()


def test_what_was_dropped_before_a_source_came_in_sight_is_absent(store: LateStore, pair: Pair) -> None:
    for number in range(600):
        pair.add("early", number)
    pair.add("gone", *range(100_000, 100_100))
    scan = store.between(-1, END)
    found = list(scan.page(5))
    pair.truncate(gone=100, early=500)
    found += drained(scan, 50)
    assert {delta.source for delta in found} == {"early"}
    assert [delta.seq for delta in found[-100:]] == list(range(501, 601))


def test_i4_what_a_scan_by_time_holds_decoded_is_given_although_it_was_dropped_and_then_the_rest(
    store: LateStore, pair: Pair
) -> None:
    pair.add("fast", *range(0, 2000, 2))
    pair.add("slow", *range(1, 2000, 4))
    scan = store.between(-1, END)
    found = list(scan.page(5))
    pair.truncate(slow=300)
    found += drained(scan, 50)
    slow = [delta.seq for delta in found if delta.source == "slow"]
    gap = slow.index(301)
    assert slow == [*range(1, gap + 1), *range(301, 501)]
    assert 32 < gap <= 64, "some were given with the first page, some were held"
    assert [delta for delta in found if delta.source == "fast"] == pair.model.sources["fast"].written
    assert [place(delta) for delta in found] == sorted(place(delta) for delta in found)


def test_get_of_what_is_dropped_just_before_it_looks_is_none(store: LateStore, pair: Pair) -> None:
    pair.add("a", *range(200))
    store.before_view = lambda: store.truncate({"a": 150})
    assert store.get("a", 100) is None


def test_i4_a_read_of_what_is_dropped_just_before_it_looks_is_below_floor(store: LateStore, pair: Pair) -> None:
    pair.add("a", *range(200))
    scans: list[tuple[Scan, int]] = [
        (store.by_source("a", 0, 200), 50),
        (store.by_source("a", 0, 60, reverse=True), 100),
        (store.since({}, {"a": 200}), 150),
    ]
    for scan, floor in scans:
        store.before_view = lambda floor=floor: store.truncate({"a": floor})
        with pytest.raises(BelowFloor) as caught:
            scan.page(10)
        assert caught.value.floor == {"a": floor}


def test_seqs_at_sees_rows_and_blocks_of_one_moment(store: LateStore, pair: Pair) -> None:
    pair.add("a", *range(0, 4000, 10))
    for floor in (100, 200, 300):
        store.before_view = lambda floor=floor: store.truncate({"a": floor})
        assert store.seqs_at(2005) == {"a": max(floor, 201)}


# ------------------------------------------------------------------------------------------------------- the time index


@st.composite
def intervals(draw: st.DrawFn) -> list[TimeEntry]:
    """Blocks of some sources; those of one source follow on each other in time."""
    found = []
    for source_no in range(draw(st.integers(1, 3))):
        now = draw(st.sampled_from([0, 5, 1 << 20, END - 40]))
        for seq, (gap, length) in enumerate(draw(st.lists(st.tuples(GAPS, GAPS), max_size=8))):
            first, last = now + gap, now + gap + length
            if last <= END:
                found.append(TimeEntry(first, last, source_no, seq + 1, 1, 1))
                now = last + 1
    return found


GAPS = st.integers(0, 3) | st.sampled_from([0, 255, 1 << 16, 1 << 40, 1 << 63])


@settings(max_examples=100)
@given(data=st.data())
def test_the_index_gives_exactly_what_touches_an_interval_in_steps(data: st.DataObject, index: CountingStore) -> None:
    entries = data.draw(intervals())
    marks = sorted({0, END, *(entry.first for entry in entries), *(entry.last for entry in entries)})
    after, until = (data.draw(st.sampled_from(marks)) + data.draw(st.integers(-1, 1)) for _ in range(2))
    after, until = sorted((max(-1, after), min(until, END)))
    batch = index.db.batch()
    batch.delete_range(BY_TIME, b"", b"\xff")
    for entry in entries:
        batch.put(BY_TIME, entry.key, entry.value)
    index.db.write(batch)
    found, frontier = [], -1
    with index.view() as view:
        while after < until and frontier < until:
            step, next_ = overlapping(index, view, frontier, after, until)
            assert all(frontier < entry.first <= next_ for entry in step)
            assert next_ > frontier
            found += step
            frontier = next_
    expected = touching(entries, after, until) if after < until else []
    assert sorted(found, key=_first) == sorted(expected, key=_first)


def _first(entry: TimeEntry) -> tuple[int, int]:
    return entry.first, entry.source_no


@pytest.fixture(scope="module")
def index(directory: Path) -> Iterator[CountingStore]:
    store = opened_as(CountingStore, directory / "index")
    yield store
    store.close()


def test_more_blocks_of_one_timestamp_than_are_read_at_a_time(store: LateStore, pair: Pair) -> None:
    names = [f"s{number:04}" for number in range(3 * ENTRIES)]
    pair.write(*(pair.model.run(name, [7]) for name in names))
    pair.write(*(pair.model.run(name, [8, 9]) for name in names))
    assert drained(store.between(6, END), 100) == pair.model.all()
    assert drained(store.between(7, 8), 1000) == pair.model.between(7, 8)


def test_pages_count_in_deltas_whatever_is_read_ahead(store: LateStore, pair: Pair) -> None:
    steady(pair, 3, 0, 4)
    heads: dict[str, Any] = {source: head.seq for source, head in store.heads().items()}
    for scan in (store.since({}, heads), store.between(-1, END), store.by_source("s0", 0, 512)):
        sizes = []
        while page := scan.page(100):
            sizes.append(len(page))
        assert set(sizes[:-1]) == {100}
