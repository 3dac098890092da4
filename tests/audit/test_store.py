"""The trail on RocksDB: one batch for everything, what the indexes say is what the events say, space given back."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from audit import keys
from audit.event import Action, AuditEvent, encode
from audit.keys import EVENTS, INDEXES, META
from audit.query import Query, plan
from audit.search import find
from audit.store import FAMILIES, AuditStore, Run
from audit.verify import verify
from deltalog.errors import StoreBusy, StoreClosed, StoreCorrupt, StoreFormatMismatch, StoreFull, UsageError
from deltalog.rocks import Rocks, SharedMemory
from deltalog.rocks_values import Batch
from tests.audit.trails import STORE_ID, event, opened, some_events, write_all

TARGETS_AND_PREFIXES = (
    *((None, prefix) for prefix in (None, "src/", "src/app.py", "src/app.py:", "t", "src/a/", "/abs/")),
    ("src/app.py", None),
    ("src/app.py", "src"),
)


def everything(store: AuditStore) -> list[AuditEvent]:
    return [each.event for each in store.get_many(range(1, store.head.number + 1))]


def change(store: AuditStore, family: str, key: bytes, value: bytes | None) -> None:
    """Write to the database behind the store's back."""
    batch = Batch(FAMILIES)
    if value is None:
        batch.delete(family, key)
    else:
        batch.put(family, key, value)
    store.db.write(batch)


def test_what_was_written_is_there_after_an_open(tmp_path: Path) -> None:
    events = some_events(250)
    store = opened(tmp_path / "s")
    write_all(store, events, 60)
    head = store.head
    store.close()
    again = opened(tmp_path / "s")
    assert again.head == head
    assert head.number == 250
    assert everything(again) == events
    assert verify(again).ok
    again.close()


def test_events_that_are_equal_all_stay(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.write([event(5)] * 10)
    store.write([event(5)])
    assert everything(store) == [event(5)] * 11
    store.close()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("floor", [0, 77])
def test_every_combination_of_filters_finds_what_a_look_at_all_events_finds(
    tmp_path: Path, reverse: bool, floor: int
) -> None:
    events = some_events(400)
    store = opened(tmp_path / "s")
    write_all(store, events, 37)
    store.truncate(floor)
    for holder in (None, "h1", "nobody"):
        for actions in ((), (Action.ACQUIRED,), (Action.RELEASED, Action.DENIED, Action.GAP)):
            for lock_id in (None, "l3"):
                for target, prefix in TARGETS_AND_PREFIXES:
                    query = Query(holder=holder, actions=actions, lock_id=lock_id, target=target, target_prefix=prefix)
                    expected = [n for n, e in enumerate(events, 1) if n > floor and query.matches(e) and 50 <= n <= 390]
                    found = find(store, plan(query), query.matches, 50, 390, reverse=reverse, limit=999, examine=9999)
                    assert [each.number for each in found.events] == (expected[::-1] if reverse else expected), query
                    assert found.next is None
    store.close()


def test_a_search_ends_at_its_limits_and_goes_on_from_there(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    write_all(store, [event(n, holder_id="ab"[n % 2]) for n in range(1, 301)])
    query = Query(holder="a")
    search = partial(find, store, plan(query), query.matches, reverse=False)
    first = search(1, 300, limit=10, examine=999)
    assert [each.number for each in first.events] == list(range(2, 22, 2))
    assert first.next == 21
    none = find(store, [], lambda _: False, 1, 300, reverse=True, limit=10, examine=20)
    assert not none.events
    assert none.examined >= 20
    assert none.next is not None
    assert none.next < 281
    store.close()


def test_the_cost_of_an_answer_does_not_grow_with_the_trail(tmp_path: Path) -> None:
    class Counting(AuditStore):
        reads = 0

        def index_row(self, family: str, key: bytes, value: bytes) -> list[int]:
            self.reads += 1
            return super().index_row(family, key, value)

    store = opened(tmp_path / "s", Counting)
    assert isinstance(store, Counting)
    costs = []
    for size in (2_000, 8_000):
        write_all(store, [event(1, holder_id="rare" if n % 100 == 0 else "often") for n in range(size)], 500)
        query = Query(holder="rare", actions=(Action.ACQUIRED,), limit=10, newest_first=True)
        store.reads = 0
        found = find(store, plan(query), query.matches, 1, store.head.number, reverse=True, limit=10, examine=999)
        assert len(found.events) == 10
        assert found.examined == 10
        costs.append(store.reads)
    assert costs[0] == costs[1]
    store.close()


def test_times_are_found_by_bisection(tmp_path: Path) -> None:
    events = some_events(300)
    store = opened(tmp_path / "s")
    write_all(store, events)
    store.truncate(40)
    for timestamp in range(990, events[-1].timestamp + 3):
        expected = sum(each.timestamp <= timestamp for each in events)
        assert store.number_at(timestamp) == max(40, expected)
    store.close()


# -------------------------------------------------------------------------------------------------- tokens, runs, meta


def test_i12_reserved_tokens_never_go_back(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    assert store.tokens == 0
    store.reserve_tokens(1000)
    store.reserve_tokens(500)
    assert store.tokens == 1000
    store.close()
    store = opened(tmp_path / "s")
    assert store.tokens == 1000
    for wrong in (-1, 2**63, "1", True):
        with pytest.raises(UsageError, match="upto"):
            store.reserve_tokens(wrong)  # type: ignore[arg-type]
    store.close()


def test_a_run_is_remembered(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    assert store.run() is None
    store.set_run(Run(7, clean=False, window_s=0.5))
    store.reopen()
    assert store.run() == Run(7, clean=False, window_s=0.5)
    store.close()
    with pytest.raises(StoreClosed):
        store.view()


def test_another_format_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    change(store, META, keys.META_FORMAT, keys.encode_meta(keys.META_FORMAT, 99))
    store.close()
    with pytest.raises(StoreFormatMismatch, match="99"):
        opened(tmp_path / "s")


@pytest.mark.parametrize("row", [keys.META_FORMAT, keys.META_STORE_ID, keys.META_SECRET, keys.META_HEAD])
def test_i15_a_missing_row_is_an_error_not_a_new_trail(tmp_path: Path, row: bytes) -> None:
    store = opened(tmp_path / "s")
    store.write([event(1)])
    change(store, META, row, None)
    store.close()
    with pytest.raises(StoreCorrupt, match="missing"):
        opened(tmp_path / "s")


def test_a_last_event_that_the_head_does_not_know_is_an_error(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.write([event(1), event(2)])
    change(store, EVENTS, keys.event_key(2), None)
    store.close()
    with pytest.raises(StoreCorrupt, match="the last event is 1"):
        opened(tmp_path / "s")


def test_a_missing_event_is_an_error_not_a_shorter_answer(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.write([event(1), event(2), event(3)])
    change(store, EVENTS, keys.event_key(2), None)
    with pytest.raises(StoreCorrupt, match="event 2 is missing"):
        store.get_many([1, 2, 3])
    store.close()


# ------------------------------------------------------------------------------------------------------------ upkeep


def test_i9_truncate_drops_events_index_rows_and_checkpoints_and_the_rest_verifies(tmp_path: Path) -> None:
    events = some_events(5_200)
    store = opened(tmp_path / "s")
    write_all(store, events, 130)
    assert len(store.checkpoints()) >= 4
    floor = 4_444
    link = store.db.get(EVENTS, keys.event_key(floor))
    assert store.truncate(floor) == floor
    assert store.truncate(floor) == store.truncate(9) == 0
    assert link is not None
    assert store.head.floor_link == link[:32]
    assert store.head.held_bytes == sum(len(encode(each)) for each in events[floor:])
    assert [each.number for each in store.get_many(range(1, 5_201))] == list(range(floor + 1, 5_201))
    assert all(point.number > floor for point in store.checkpoints())
    for family in INDEXES:
        rows = store.db.scan(family)
        assert all(keys.parse_entry_key(key)[1] > floor for key, _ in rows)
    assert verify(store).ok
    store.reopen()
    assert verify(store).ok
    with pytest.raises(UsageError, match="last event stays"):
        store.truncate(5_200)
    store.close()


def test_the_space_of_what_went_comes_back(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    chance = random.Random(1)
    events = [event(n, metadata={"x": chance.randbytes(200).hex()}) for n in range(20_000)]
    write_all(store, events, 1000)
    store.compact()
    before = sum(file.size_bytes for file in store.db.files())
    store.truncate(18_000)
    store.compact(if_needed=True)
    after = sum(file.size_bytes for file in store.db.files())
    assert after < 0.15 * before
    assert verify(store).ok
    store.close()


def test_a_write_that_fails_leaves_the_head_where_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.write([event(1)])
    head = store.head

    def fails(_: Any) -> None:
        raise ZeroDivisionError

    store.db.write = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(ZeroDivisionError):
        store.write([event(2)])
    assert store.head == head
    store.close()


def test_families_are_those_that_are_opened(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    rocks = Rocks.open(tmp_path / "s", FAMILIES, SharedMemory())
    assert rocks.families == set(FAMILIES) == {EVENTS, META, *INDEXES}
    rocks.close()
    assert STORE_ID


def test_a_read_beside_retention_takes_what_goes_for_gone_not_for_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "s")
    write_all(store, some_events(100), 50)
    oldest = store.get(1)
    assert oldest is not None
    found: list[object] = []
    write = store.db.write

    def read() -> None:
        try:
            found.append((store.get_many(range(1, 11)), store.number_at(oldest.event.timestamp)))
        except StoreCorrupt as error:
            found.append(error)

    def write_and_read(batch: Batch) -> None:
        write(batch)
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(10)

    monkeypatch.setattr(store.db, "write", write_and_read)
    store.truncate(90)
    assert found == [([], 90)]
    store.close()


def test_a_truncation_that_fails_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "s")
    write_all(store, some_events(100), 50)
    head = store.head

    def refuse(_: Batch) -> None:
        raise StoreFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store.db, "write", refuse)
        with pytest.raises(StoreFull):
            store.truncate(90)
    assert store.head == head
    assert len(everything(store)) == 100
    assert store.truncate(90) == 90
    assert verify(store).ok
    store.close()


def test_a_trail_that_is_read_too_long_to_close_stays_open_and_closes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltalog.rocks_instance._READS_S", 0.01)
    store = opened(tmp_path / "s")
    view = store.view()
    with pytest.raises(StoreBusy):
        store.close()
    with store.view() as again:
        assert again is not None
    view.close()
    store.close()
    opened(tmp_path / "s").close()
