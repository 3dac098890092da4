"""The laws of `DeltaStore`: what every backend must do. Run them on yours:

    class TestMyStore(DeltaStoreLaws):
        def open_store(self, path: Path) -> DeltaStore:
            return MyStore(path)

    def test_my_store_against_a_model(tmp_path: Path) -> None:
        run_store_machine(MyStore, tmp_path, examples=50)       # from tests.laws.store_machine

`open_store` is called with a directory of the test's own, first an empty one; a `durable` backend finds there what an
earlier store stored and closed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

from deltalog import chain
from deltalog.delta import Delta
from deltalog.errors import BelowFloor, LimitExceeded, LogClosed, UsageError
from deltalog.store import DeltaStore, Run, Scan
from tests.laws.store_model import END, StoreModel, drained
from tests.strategies import HOSTILE_TEXTS

PAGES = (1, 2, 3, 127, 128, 129, 1000)


@attrs.define
class Pair:
    """A store and the model of what it must hold."""

    store: DeltaStore
    model: StoreModel = attrs.field(factory=StoreModel)

    def write(self, *runs: Run) -> None:
        self.store.write(runs)
        self.model.write(runs)

    def add(self, source: str, *timestamps: int, payload: object = "text") -> None:
        self.write(self.model.run(source, timestamps, payload))

    def truncate(self, **floors: int) -> None:
        assert self.store.truncate(floors) == self.model.truncate(floors)

    def erase(self, source: str, seq: int) -> None:
        self.model.erase(source, seq, "because", 7)
        assert self.store.erase(source, seq, "because", 7) == self.model.get(source, seq)

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.store.annotate(changes)
        self.model.annotate(changes)

    def fill(self, sources: int = 5, rounds: int = 12, seed: int = 0) -> None:
        """Blocks of many lengths whose intervals overlap, nest and touch, some floors, some erased payloads."""
        chance = random.Random(seed)
        now = [chance.randrange(50) for _ in range(sources)]
        for _ in range(rounds):
            for number in chance.sample(range(sources), chance.randint(1, sources)):
                timestamps = []
                for _ in range(chance.choice((1, 1, 2, 5, 40, 130))):
                    now[number] += chance.choice((1, 1, 2, 7, 300, 1 << 20))
                    timestamps.append(now[number])
                self.add(f"source {number}", *timestamps)
        heads = self.store.heads()
        self.truncate(**{source: chance.randint(0, heads[source].seq // 2) for source in list(heads)[::2]})
        for delta in chance.sample(self.model.all(), 5):
            self.erase(*delta.dot)


class DeltaStoreLaws:
    """One method, one law."""

    durable: ClassVar[bool] = True

    def open_store(self, path: Path) -> DeltaStore:  # noqa: ARG002
        raise TypeError("say how a store is opened")

    @pytest.fixture
    def pair(self, tmp_path: Path) -> Iterator[Pair]:
        store = self.open_store(tmp_path / "store")
        pair = Pair(store)
        yield pair
        pair.store.close()

    # ---------------------------------------------------------------------------------------------------- what is kept

    def test_an_empty_store_has_nothing(self, pair: Pair) -> None:
        store = pair.store
        scans = store.by_source("a", 0, 9), store.between(-1, END), store.since({}, {"a": 9})
        assert [drained(scan) for scan in scans] == [[], [], []]
        assert (store.heads(), store.seqs_at(END), store.get("a", 1), store.erase("a", 1, "r", 1)) == (
            {},
            {},
            None,
            None,
        )
        assert [*store.newest(10), *store.erasures()] == []
        assert (store.sizes().deltas, store.sizes().blocks, store.truncate({})) == (0, 0, 0)
        pair.model.check(store)

    def test_i8_runs_come_back_by_dot_by_source_and_by_time(self, pair: Pair) -> None:
        pair.fill()
        pair.model.check(pair.store)
        for delta in pair.model.all():
            assert pair.store.get(*delta.dot) == delta

    def test_there_is_no_delta_outside_of_floor_and_head(self, pair: Pair) -> None:
        pair.add("a", *range(10, 310))
        pair.truncate(a=150)
        assert [seq for seq in range(-2, 305) if pair.store.get("a", seq)] == list(range(151, 301))
        assert (pair.store.get("a", 1 << 63), pair.store.get("b", 1)) == (None, None)

    def test_one_write_takes_several_runs_of_a_source(self, pair: Pair) -> None:
        first = pair.model.run("a", [1, 2])
        pair.model.write([first])
        second = pair.model.run("a", [3])
        pair.model.write([second])
        pair.store.write([first, second])
        pair.model.check(pair.store)

    def test_one_write_takes_many_new_sources_and_keeps_their_order(self, pair: Pair) -> None:
        pair.add("z", 5)
        pair.write(*(pair.model.run(f"new {number}", [number, number + 1]) for number in (7, 3, 9, 1)))
        assert list(pair.store.heads()) == ["z", "new 7", "new 3", "new 9", "new 1"]
        pair.model.check(pair.store)

    @pytest.mark.parametrize("source", [*HOSTILE_TEXTS, "s" * 255], ids=repr)
    def test_any_text_is_a_source(self, pair: Pair, source: str) -> None:
        pair.add("a", 3)
        pair.add(source, 2, 4)
        pair.add(f"\0{source}"[:200], 3, 5)
        pair.model.check(pair.store)

    def test_deltas_too_long_to_share_a_block_are_kept(self, pair: Pair) -> None:
        pair.add("a", 1, 2, 3, payload=b"x" * 40_000)
        pair.add("a", 4, payload=b"y" * 1_000_000)
        pair.add("b", 2, 3, payload=b"")
        pair.model.check(pair.store, 1)
        pair.store.compact()
        pair.model.check(pair.store, 2)

    # ------------------------------------------------------------------------------------------------------- by source

    @pytest.mark.parametrize("count", PAGES)
    def test_by_source_takes_any_bounds_in_both_directions(self, pair: Pair, count: int) -> None:
        pair.add("b", 1, 2, 3)
        for first in (1, 2, 130, 300, 301):
            pair.add("a", *range(first * 1000, first * 1000 + {1: 1, 2: 128, 130: 170}.get(first, 1)))
        pair.add("c", 1, 2, 3)
        bounds = (-(1 << 70), -1, 0, 1, 2, 128, 129, 130, 299, 300, 301, 302, 1 << 70)
        for after in bounds:
            for until in bounds:
                expected = pair.model.by_source("a", after, until)
                assert drained(pair.store.by_source("a", after, until), count) == expected
                assert drained(pair.store.by_source("a", after, until, reverse=True), count) == expected[::-1]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_i4_by_source_below_the_floor_says_so(self, pair: Pair, reverse: bool) -> None:
        pair.add("a", *range(200))
        pair.truncate(a=70)
        for after in (-1, 0, 69):
            with pytest.raises(BelowFloor) as caught:
                drained(pair.store.by_source("a", after, 90, reverse=reverse), 50)
            assert caught.value.floor == {"a": 70}
        assert drained(pair.store.by_source("a", 70, 90)) == pair.model.by_source("a", 70, 90)
        assert drained(pair.store.by_source("a", 20, 20)) == []

    # --------------------------------------------------------------------------------------------------------- by time

    def test_deltas_of_one_timestamp_stand_by_source(self, pair: Pair) -> None:
        names = ["é", "b", "a", "\N{GRINNING FACE}", "￿", "ab", "a\0"]
        for timestamps in ([4, 5], [6], [7, 9, 10]):
            pair.write(*(pair.model.run(name, timestamps) for name in names))
        for count in PAGES:
            pair.model.check(pair.store, count)
        assert [delta.source for delta in drained(pair.store.between(5, 6), 2)] == sorted(names)

    def test_a_source_that_begins_at_a_timestamp_of_others_stands_between_them(self, pair: Pair) -> None:
        """Whatever is read ahead of the others ends at some such timestamp."""
        for source in ("a", "z"):
            pair.add(source, *range(300))
        pair.write(*(pair.model.run(f"m{number}", [number, number + 2]) for number in range(300)))
        for count in PAGES:
            pair.model.check(pair.store, count)

    def test_between_finds_blocks_that_nest_touch_and_hold_one_delta(self, pair: Pair) -> None:
        pair.add("long", 0, 1 << 40, END)
        pair.add("inside", 5, 6, 7)
        pair.add("inside", (1 << 40) - 1, 1 << 40, (1 << 40) + 1)
        pair.add("early", 0)
        pair.add("late", END)
        pair.add("early", 1, 2)
        pair.add("short", 1 << 32, (1 << 32) + 1)
        marks = sorted(
            {delta.timestamp + by for delta in pair.model.all() for by in (-1, 0, 1)} | {-(1 << 70), 1 << 70}
        )
        for after in marks:
            for until in marks:
                assert drained(pair.store.between(after, until), 3) == pair.model.between(after, until)

    def test_between_of_any_interval_and_page(self, pair: Pair) -> None:
        pair.fill()
        chance, last = random.Random(1), pair.model.all()[-1].timestamp
        for _ in range(200):
            after, until = chance.randint(-1, last), chance.randint(-1, last)
            assert drained(pair.store.between(after, until), chance.choice(PAGES)) == pair.model.between(after, until)

    # ----------------------------------------------------------------------------------------------------------- since

    def test_i4_since_gives_what_a_version_vector_lacks(self, pair: Pair) -> None:
        pair.fill()
        chance, heads = random.Random(2), pair.store.heads()
        for _ in range(200):
            after = {
                source: chance.randint(-1, head.seq + 1) for source, head in heads.items() if chance.random() < 0.9
            }
            until = {
                source: chance.randint(-1, head.seq + 3) for source, head in heads.items() if chance.random() < 0.9
            }
            after["unknown"], until["never"] = 5, 5
            scan = pair.store.since(after, until)
            if pair.model.below_floor(after, until):
                with pytest.raises(BelowFloor):
                    drained(scan, chance.choice(PAGES))
            else:
                assert drained(scan, chance.choice(PAGES)) == pair.model.since(after, until)

    def test_sources_of_very_different_pace_merge_in_pages_of_the_size_asked_for(self, pair: Pair) -> None:
        pair.add("slow", *range(0, 1_000_000, 10_000))
        for first in range(0, 6000, 1000):
            pair.add("fast", *range(first * 100, first * 100 + 1000))
        pair.add("last", END)
        scans = pair.store.since({}, {"slow": 100, "fast": 6000, "last": 1}), pair.store.between(-1, END)
        for scan in scans:
            found: list[Delta] = []
            while page := scan.page(100):
                assert len(page) <= 200, "about as many as were asked for"
                found += page
            assert found == pair.model.all()

    # -------------------------------------------------------------------------------------------------- newest, seqs_at

    def test_newest_is_a_suffix_of_each_source(self, pair: Pair) -> None:
        pair.fill()
        for count in (-1, 0, 1, 2, 5, 100, 128, 300, len(pair.model.all()), 10_000):
            pair.model.check_newest(pair.store.newest(count), count)
        assert list(pair.store.newest(100_000)) == pair.model.all()

    def test_seqs_at_any_timestamp_is_the_highest_seq_up_to_it_or_the_floor(self, pair: Pair) -> None:
        pair.fill()
        pair.add("late", END)
        pair.add("gone", 3, 8)
        pair.truncate(gone=2)
        marks = {delta.timestamp + by for delta in pair.model.all() for by in (-1, 0, 1)} | {-(1 << 70), -1, 1 << 70}
        for timestamp in sorted(marks)[:: max(1, len(marks) // 300)]:
            assert pair.store.seqs_at(timestamp) == pair.model.seqs_at(timestamp)

    # ----------------------------------------------------------------------------------------------- truncate and erase

    def test_truncate_drops_records_and_index_together_and_is_idempotent(self, pair: Pair) -> None:
        pair.add("a", *range(1000, 1300))
        pair.add("b", *range(1000, 1300))
        for floor in (0, -5, 1, 2, 127, 128, 129, 128, 1, 299, 300, 300):
            pair.truncate(a=floor)
            pair.model.check(pair.store)
        pair.truncate(a=300, b=5)
        assert pair.store.heads()["a"].floor_hash == pair.store.heads()["a"].hash
        pair.add("a", 2000)
        pair.model.check(pair.store)

    def test_a_floor_that_cannot_be_changes_nothing_of_any_source(self, pair: Pair) -> None:
        pair.add("a", 1, 2, 3)
        for floors in ({"a": 2, "b": 0}, {"a": 4}, {"b": 1, "a": 1}):
            with pytest.raises(UsageError, match="floor"):
                pair.store.truncate(floors)
        pair.model.check(pair.store)

    def test_the_floor_keeps_its_chain_hash(self, pair: Pair) -> None:
        pair.add("a", *range(200))
        records = [delta.record for delta in pair.model.all()]
        pair.truncate(a=77)
        assert pair.store.heads()["a"].floor_hash == chain.extend(chain.genesis("a"), records)[76]

    def test_erase_leaves_the_hash_and_a_note(self, pair: Pair) -> None:
        pair.add("a", *range(10), payload={"secret": "text" * 30})
        head = pair.store.heads()["a"]
        pair.erase("a", 4)
        erased = pair.store.get("a", 4)
        assert erased is not None
        assert erased.erased
        assert pair.store.heads()["a"].hash == head.hash
        assert pair.store.heads()["a"].size_bytes < head.size_bytes
        assert pair.store.erase("a", 4, "again", 99) == erased
        assert [(note.reason, note.timestamp) for note in pair.store.erasures()] == [("because", 7)]
        pair.model.check(pair.store)

    def test_what_is_not_stored_cannot_be_erased(self, pair: Pair) -> None:
        pair.add("a", 1, 2, 3)
        pair.truncate(a=1)
        dots = ("a", 0), ("a", 1), ("a", 4), ("b", 1)
        assert [pair.store.erase(*dot, "because", 7) for dot in dots] == [None] * 4
        assert not pair.store.erasures()

    def test_notes_stand_by_dot_and_outlive_their_deltas(self, pair: Pair) -> None:
        pair.add("b", *range(300))
        pair.add("a", *range(300))
        for dot in (("b", 200), ("a", 299), ("b", 3), ("a", 1)):
            pair.erase(*dot)
        pair.truncate(b=100)
        pair.model.check(pair.store)

    # ----------------------------------------------------------------------------------------------- chain hashes

    def test_the_chain_hash_of_every_seq_that_is_held(self, pair: Pair) -> None:
        for times in (range(100, 230), range(300, 305), [400], range(500, 900)):
            pair.add("a", *times)
        hashes = pair.model.sources["a"].hashes
        changes: list[Callable[[], object]] = [lambda: None, pair.store.compact, lambda: pair.truncate(a=77)]
        for change in (*changes, pair.store.reopen):
            change()
            floor = pair.store.heads()["a"].floor
            for seq in range(max(1, floor), len(hashes) + 1):
                assert pair.store.hash_at("a", seq) == hashes[seq - 1]
        pair.truncate(a=len(hashes))
        assert pair.store.hash_at("a", len(hashes)) == hashes[-1]
        assert pair.store.hash_at("a", 0) == chain.genesis("a"), "of seq 0 whatever was dropped"
        assert pair.store.hash_at("nobody", 0) == chain.genesis("nobody")

    def test_an_erased_delta_leaves_the_chain_hashes_as_they_were(self, pair: Pair) -> None:
        pair.add("a", *range(10), payload="secret")
        pair.erase("a", 4)
        assert [pair.store.hash_at("a", seq) for seq in range(1, 11)] == pair.model.sources["a"].hashes

    def test_there_is_no_chain_hash_of_what_is_not_held(self, pair: Pair) -> None:
        pair.add("a", 1, 2, 3)
        pair.truncate(a=2)
        for source, seq in (("a", 4), ("a", -1), ("a", 1 << 70), ("b", 1)):
            with pytest.raises(UsageError, match=f"there is no delta '{source}':{seq}"):
                pair.store.hash_at(source, seq)
        with pytest.raises(BelowFloor) as caught:
            pair.store.hash_at("a", 1)
        assert (caught.value.floor, caught.value.missing) == ({"a": 2}, {"a": 1})

    # ------------------------------------------------------------------------------------------------ annotations

    def test_annotations_come_back_by_key_and_in_order(self, pair: Pair) -> None:
        kept: dict[bytes, bytes] = {}
        names = [b"\0", b"a", b"a\0", b"a/1", b"a/2", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff", b"k" * 1024]
        for number, name in enumerate(random.Random(3).sample(names, len(names))):
            pair.annotate({name: bytes([number]) * number})
            kept[name] = bytes([number]) * number
        for prefix in (b"", b"a", b"a/", b"a\xff", b"\xff", b"z", b"\0", b"k"):
            for after in (b"", b"a", b"a/1", b"a\xff\xff", b"\xff", b"\xff" * 9):
                for limit in (None, 0, 1, 3):
                    wanted = sorted((k, v) for k, v in kept.items() if k.startswith(prefix) and k > after)[:limit]
                    assert list(pair.store.annotations(prefix, after, limit)) == wanted
        assert {name: pair.store.annotation(name) for name in names} == kept
        assert pair.store.annotation(b"c") is None

    def test_annotations_are_replaced_and_removed_together(self, pair: Pair) -> None:
        pair.annotate({b"a": b"1", b"b": b"2"})
        pair.annotate({b"a": b"3", b"b": None, b"nothing": None, b"c": b""})
        assert list(pair.store.annotations()) == [(b"a", b"3"), (b"c", b"")]
        changes: list[Callable[[], object]] = [pair.store.compact, pair.store.reopen, lambda: pair.annotate({})]
        for change in changes:
            change()
            assert list(pair.store.annotations()) == [(b"a", b"3"), (b"c", b"")]

    def test_annotations_stand_beside_the_deltas(self, pair: Pair) -> None:
        pair.fill()
        pair.annotate({bytes([number]): b"value" for number in range(256)})
        pair.model.check(pair.store)
        pair.truncate(**{"source 1": pair.store.heads()["source 1"].seq})
        assert len(pair.store.annotations()) == 256
        assert len(pair.store.erasures()) == 5

    def test_an_annotation_of_the_wrong_shape_changes_nothing(self, pair: Pair) -> None:
        pair.annotate({b"k" * 1024: b"v" * 65536})
        wrong: list[tuple[object, object, type[Exception]]] = [
            (b"", b"v", UsageError),
            ("text", b"v", UsageError),
            (b"key", "text", UsageError),
            (b"k" * 1025, b"v", LimitExceeded),
            (b"k" * 1025, None, LimitExceeded),
            (b"key", b"v" * 65537, LimitExceeded),
        ]
        for key, value, error in wrong:
            with pytest.raises(error, match="of an annotation"):
                pair.store.annotate({b"good": b"v", key: value})  # type: ignore[dict-item]
        assert [key for key, _ in pair.store.annotations()] == [b"k" * 1024]

    def test_annotations_survive_the_store(self, pair: Pair, tmp_path: Path) -> None:
        if not self.durable:
            return
        pair.annotate({b"a": b"1"})
        pair.store.close()
        pair.store = self.open_store(tmp_path / "store")
        pair.model.check(pair.store)

    # ----------------------------------------------------------------------------------------- compact, sync, reopen

    def test_compact_changes_nothing_visible(self, pair: Pair) -> None:
        pair.fill()
        for if_needed in (True, False, True):
            pair.store.compact(if_needed=if_needed)
            pair.model.check(pair.store)
        pair.add("source 1", END)
        pair.store.compact(if_needed=True)
        pair.model.check(pair.store)

    def test_sync_returns_a_number_that_never_falls(self, pair: Pair) -> None:
        numbers = [pair.store.sync()]
        for timestamp in range(1, 5):
            pair.add("a", timestamp)
            numbers.append(pair.store.sync())
            pair.store.compact()
            pair.store.reopen()
        assert numbers == sorted(set(numbers))

    def test_what_is_written_survives_a_reopen(self, pair: Pair) -> None:
        pair.fill()
        pair.store.reopen()
        pair.model.check(pair.store)
        pair.add("source 0", END)
        pair.store.reopen()
        pair.model.check(pair.store)

    def test_what_is_written_survives_the_store(self, pair: Pair, tmp_path: Path) -> None:
        if not self.durable:
            return
        pair.fill()
        pair.store.close()
        pair.store.close()
        pair.store = self.open_store(tmp_path / "store")
        pair.model.check(pair.store)

    def test_a_closed_store_refuses(self, pair: Pair) -> None:
        pair.add("a", 1, 2)
        scans = pair.store.by_source("a", 0, 2), pair.store.between(-1, END), pair.store.since({}, {"a": 2})
        run = pair.model.run("a", [3])
        pair.store.close()
        calls: list[Callable[[], object]] = [
            *(lambda scan=scan: scan.page(1) for scan in scans),
            lambda: pair.store.get("a", 1),
            lambda: pair.store.newest(5),
            lambda: pair.store.seqs_at(5),
            lambda: pair.store.write([run]),
            pair.store.sync,
            pair.store.erasures,
            lambda: pair.store.hash_at("a", 1),
            lambda: pair.store.annotate({b"a": b"b"}),
            lambda: pair.store.annotation(b"a"),
            pair.store.annotations,
            lambda: pair.store.truncate({"a": 1}),
            lambda: pair.store.erase("a", 1, "because", 7),
            pair.store.compact,
        ]
        for call in calls:
            with pytest.raises(LogClosed):
                call()
        pair.store.reopen()
        assert [drained(scan) for scan in scans] == [pair.model.all()] * 3
        pair.model.check(pair.store)

    # ------------------------------------------------------------------------------------ scans while the store changes

    def scans(self, pair: Pair) -> list[tuple[Scan, list[Delta]]]:
        """Every kind of scan over everything, one page in, and what must come."""
        model, heads = pair.model, pair.store.heads()
        floors = {source: head.floor for source, head in heads.items()}
        found = [
            (pair.store.between(-1, END), model.all()),
            (pair.store.since(floors, {source: head.seq for source, head in heads.items()}), model.all()),
        ]
        for source, head in heads.items():
            stored = model.by_source(source, head.floor, head.seq)
            found.append((pair.store.by_source(source, head.floor, head.seq), stored))
            found.append((pair.store.by_source(source, head.floor, head.seq, reverse=True), stored[::-1]))
        return [(scan, expected[len(page) :]) for scan, expected in found if (page := scan.page(7))]

    @pytest.mark.parametrize("count", [1, 50, 1000])
    def test_a_scan_outlives_merges_reopens_and_writes(self, pair: Pair, count: int) -> None:
        pair.fill()
        scans, turn = self.scans(pair), 0
        while scans:
            (pair.store.compact, pair.store.reopen, lambda: None)[turn % 3]()
            turn += 1
            for scan, expected in scans.copy():
                page = list(scan.page(count * (1 + turn)))
                assert page == expected[: len(page)]
                del expected[: len(page)]
                if not page:
                    assert not expected
                    scans.remove((scan, expected))

    def test_i4_a_scan_outlives_truncation_with_the_exact_answer_or_below_floor(self, pair: Pair) -> None:
        pair.fill(rounds=20)
        ends = set()
        for turn in range(60):
            scans = self.scans(pair)
            scan, expected = scans[turn % len(scans)]
            before = pair.store.heads()
            pair.truncate(**{source: min(head.seq, head.floor + turn // 9) for source, head in before.items()})
            floors = {source: head.floor for source, head in pair.store.heads().items()}
            try:
                rest = drained(scan, 10)
            except BelowFloor as error:
                raised = {source for source in floors if floors[source] > before[source].floor}
                ends.add("below floor" if error.missing.keys() <= raised else "wrong")
                continue
            assert rest == [delta for delta in expected if delta in rest], "in order, each once"
            assert {delta for delta in expected if delta.seq > floors[delta.source]} <= set(rest)
            ends.add("exact")
        assert ends == {"below floor", "exact"}

    def test_a_scan_by_seq_ends_at_the_head_it_began_with(self, pair: Pair) -> None:
        pair.add("a", 1, 2, 3)
        scans = pair.store.by_source("a", 0, 100), pair.store.since({}, {"a": 100, "b": 100})
        pair.add("a", 4)
        pair.add("b", 1)
        assert [[delta.seq for delta in drained(scan, 2)] for scan in scans] == [[1, 2, 3]] * 2
