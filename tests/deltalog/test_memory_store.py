"""The store in memory: the laws of every store, and what a power loss leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltalog.errors import StoreClosed
from deltalog.memory_store import MemoryStore
from deltalog.store import DeltaStore
from tests.conftest import Rounds
from tests.laws.delta_store import DeltaStoreLaws
from tests.laws.store_machine import run_store_machine
from tests.laws.store_model import StoreModel


class TestMemoryStore(DeltaStoreLaws):
    """The laws."""

    durable = False

    def open_store(self, path: Path) -> DeltaStore:  # noqa: ARG002
        return MemoryStore()


def test_the_memory_store_against_a_model(tmp_path: Path, rounds: Rounds) -> None:
    run_store_machine(lambda _: MemoryStore(), tmp_path, examples=rounds(60, nightly=2000), durable=False)


def test_i2_a_crash_leaves_what_was_synced() -> None:
    store, model = MemoryStore(), StoreModel()
    run = model.run("a", range(10))
    store.write([run])
    model.write([run])
    number = store.sync()
    store.write([model.run("a", [20]), model.run("b", [5])])
    store.truncate({"a": 3})
    store.crash()
    model.check(store)
    assert store.sync() >= number


def test_annotations_go_with_a_crash_unless_they_were_synced() -> None:
    store = MemoryStore()
    store.annotate({b"a": b"1", b"b": b"1"})
    store.sync()
    store.annotate({b"a": b"2", b"b": None, b"c": b"2"})
    store.crash()
    assert list(store.annotations()) == [(b"a", b"1"), (b"b", b"1")]


def test_i2_a_crash_undoes_what_was_dropped_since_the_sync() -> None:
    store, model = MemoryStore(), StoreModel()
    run = model.run("a", range(10))
    store.write([run])
    model.write([run])
    store.sync()
    store.truncate({"a": 3})
    store.crash()
    model.check(store)


def test_what_was_erased_is_erased_after_a_crash() -> None:
    store, model = MemoryStore(), StoreModel()
    run = model.run("a", range(10))
    store.write([run])
    model.write([run])
    store.erase("a", 3, "because", 7)
    model.erase("a", 3, "because", 7)
    store.crash()
    model.check(store)


def test_a_crash_forgets_a_source_that_was_never_synced() -> None:
    store = MemoryStore()
    store.write([StoreModel().run("a", [1])])
    store.crash()
    assert store.heads() == {}


def test_closing_again_does_nothing_and_a_reopened_store_has_it_all() -> None:
    store = MemoryStore()
    store.write([StoreModel().run("a", [1])])
    store.close()
    store.close()
    with pytest.raises(StoreClosed, match="the store is closed"):
        store.heads()
    store.reopen()
    assert store.heads()["a"].seq == 1
