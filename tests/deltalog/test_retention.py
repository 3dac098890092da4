"""What a retention lets go: the cut by timestamp that the naive reading of its bounds gives, on every backend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from deltalog.clock import pack
from deltalog.delta import Delta
from deltalog.errors import UsageError
from deltalog.memory_store import MemoryStore
from deltalog.retention import Retention, plan
from deltalog.store import DeltaStore
from tests.deltalog.rocks_stores import CountingStore, directory_in_memory, opened_as
from tests.laws.delta_store import Pair
from tests.laws.store_model import END, StoreModel, drained

NOW_MS = 1_000_000
HOUR_S = 3600


@st.composite
def models(draw: st.DrawFn) -> StoreModel:
    """Some sources whose deltas are seconds apart, some of them at one timestamp; some floors."""
    model = StoreModel()
    for source in draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True)):
        seconds = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True))
        size = draw(st.sampled_from([0, 10, 200]))
        model.write([model.run(source, [pack(NOW_MS - 1000 * s) for s in sorted(seconds, reverse=True)], b"x" * size)])
        model.truncate({source: draw(st.integers(0, len(seconds)))})
    return model


def stored(model: StoreModel) -> MemoryStore:
    store = MemoryStore()
    for source, held in model.sources.items():
        records = StoreModel()
        store.write([records.run(source, [d.timestamp for d in held.written], held.written[0].payload)])
        store.truncate({source: held.floor})
    return store


def kept(model: StoreModel, retention: Retention) -> list[Delta]:
    """What must stay, read off the list of all."""
    left = model.all()
    if retention.max_age_s is not None:
        oldest = pack(max(0, NOW_MS - int(retention.max_age_s * 1000)))
        left = [delta for delta in left if delta.timestamp >= oldest]
    counts = [bound for bound in (retention.max_deltas, _count_of_bytes(model, retention)) if bound is not None]
    if counts and min(counts) < len(model.all()):
        newest = model.all()[len(model.all()) - min(counts) :]
        oldest = newest[0].timestamp if newest else END + 1
        left = [delta for delta in left if delta.timestamp >= oldest]
    return left


def _count_of_bytes(model: StoreModel, retention: Retention) -> int | None:
    size = sum(len(delta.record) for delta in model.all())
    if retention.max_bytes is None or size <= retention.max_bytes:
        return None
    return len(model.all()) * retention.max_bytes // size


BOUND = st.none() | st.integers(0, 20)
RETENTIONS = st.builds(
    Retention,
    max_age_s=st.none() | st.integers(0, 31) | st.floats(0, 31),
    max_deltas=BOUND,
    max_bytes=st.none() | st.integers(0, 3000),
)


@given(models(), RETENTIONS)
def test_what_stays_is_what_the_strictest_bound_keeps(model: StoreModel, retention: Retention) -> None:
    store = stored(model)
    floors = plan(store, retention, NOW_MS)
    assert all(floor > store.heads()[source].floor for source, floor in floors.items())
    expected = kept(model, retention)
    assert store.truncate(floors) == len(model.all()) - len(expected)
    assert drained(store.between(-1, END)) == expected


@given(models(), RETENTIONS)
def test_i6_whatever_goes_is_older_than_whatever_stays(model: StoreModel, retention: Retention) -> None:
    """So with a delta all its causes go too."""
    floors = plan(stored(model), retention, NOW_MS)
    gone = [d for d in model.all() if d.seq <= floors.get(d.source, 0)]
    stay = [d for d in model.all() if d.seq > floors.get(d.source, 0)]
    if gone and stay:
        assert max(delta.timestamp for delta in gone) < min(delta.timestamp for delta in stay)


@settings(max_examples=25)
@given(models(), RETENTIONS)
def test_every_backend_gives_the_same_plan(rocks: Pair, model: StoreModel, retention: Retention) -> None:
    """The sources of one example follow on those of the one before, which are dropped."""
    pair, memory = rocks, stored(model)
    number = len(pair.model.sources)
    store = pair.store
    for source, held in model.sources.items():
        name = f"{number} {source}"
        pair.write(pair.model.run(name, [d.timestamp for d in held.written], held.written[0].payload))
        store.truncate({name: held.floor})
    expected = {f"{number} {source}": floor for source, floor in plan(memory, retention, NOW_MS).items()}
    assert plan(store, retention, NOW_MS) == expected
    store.truncate({source: head.seq for source, head in store.heads().items()})


@pytest.fixture(scope="module")
def rocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with directory_in_memory(tmp_path_factory.mktemp("retention")) as path:
        pair = Pair(opened_as(CountingStore, path / "store"))
        yield pair
        pair.store.close()


def test_nothing_goes_without_a_bound_or_from_an_empty_store() -> None:
    store = MemoryStore()
    for retention in (Retention(), Retention(max_age_s=0, max_deltas=0, max_bytes=0)):
        assert plan(store, retention, NOW_MS) == {}
    model = StoreModel()
    store.write([model.run("a", [1, 2, 3])])
    assert plan(store, Retention(), NOW_MS) == {}
    assert plan(store, Retention(max_age_s=HOUR_S * 1e9, max_deltas=3, max_bytes=10_000), NOW_MS) == {}


def test_the_age_is_to_the_millisecond() -> None:
    store, model = MemoryStore(), StoreModel()
    ages_ms = (10_001, 10_000, 9_999)
    store.write([model.run("a", [pack(NOW_MS - age, 5) for age in ages_ms])])
    assert plan(store, Retention(max_age_s=10), NOW_MS) == {"a": 1}
    assert plan(store, Retention(max_age_s=9.9999), NOW_MS) == {"a": 2}
    assert plan(store, Retention(max_age_s=0), NOW_MS) == {"a": 3}


def test_deltas_of_one_timestamp_stay_together() -> None:
    store, model = MemoryStore(), StoreModel()
    store.write([model.run(source, [5, 7, 9]) for source in "abc"])
    plans = {keep: plan(store, Retention(max_deltas=keep), NOW_MS) for keep in range(10)}
    assert [sum(plans[keep].values()) for keep in range(10)] == [9, 6, 6, 6, 3, 3, 3, 0, 0, 0]
    assert plans[2] == {"a": 2, "b": 2, "c": 2}


def test_timestamps_at_both_ends() -> None:
    store, model = MemoryStore(), StoreModel()
    store.write([model.run("a", [0, 1, END - 1, END])])
    assert [plan(store, Retention(max_deltas=keep), NOW_MS).get("a", 0) for keep in range(5)] == [4, 3, 2, 1, 0]


def test_a_plan_reads_few_blocks_of_a_long_log(rocks: Pair) -> None:
    store: DeltaStore = rocks.store
    assert isinstance(store, CountingStore)
    for first in range(0, 128 * 40, 128):
        rocks.add("long", *range((1 << 40) + first, (1 << 40) + first + 128))
    cost = store.cost(lambda: plan(store, Retention(max_deltas=1000), NOW_MS))
    assert cost["blocks"] <= 65 * 8
    assert not cost["entries"]
    assert plan(store, Retention(max_deltas=1000), NOW_MS)["long"] == 128 * 40 - 1000


WRONG: list[dict[str, Any]] = [
    {"max_age_s": -1},
    {"max_age_s": math.inf},
    {"max_age_s": math.nan},
    {"max_age_s": "1"},
    {"max_age_s": True},
    {"max_deltas": -1},
    {"max_deltas": 1.5},
    {"max_deltas": False},
    {"max_bytes": -1},
    {"max_bytes": "1 GB"},
]


@pytest.mark.parametrize("bounds", WRONG, ids=str)
def test_a_bound_that_is_none_is_refused_by_name(bounds: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"retention.{next(iter(bounds))} must be"):
        Retention(**bounds)
