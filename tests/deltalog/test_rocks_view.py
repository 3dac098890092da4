"""Views and cursors: one moment for all families, and no iterator left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rocksdict import Options, Rdict, RdictIter, ReadOptions

from deltalog.errors import StoreClosed, StoreCorrupt, StoreUsageError
from deltalog.rocks import FamilyProfile, Rocks, SharedMemory
from deltalog.rocks_view import Cursor

FAMILIES = {"a": FamilyProfile(), "b": FamilyProfile()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Rocks]:
    store = Rocks.create(tmp_path / "store", FAMILIES, SharedMemory())
    batch = store.batch()
    for family in FAMILIES:
        for number in range(10):
            batch.put(family, b"%d" % number, b"old")
    store.write(batch)
    yield store
    store.close()


def change(store: Rocks) -> None:
    batch = store.batch()
    for family in FAMILIES:
        batch.put(family, b"5", b"new")
        batch.delete_range(family, b"0", b"3")
    store.write(batch)


def test_view_stays_at_its_moment_in_every_family(store: Rocks) -> None:
    with store.view() as view:
        change(store)
        store.compact()
        for family in FAMILIES:
            assert list(view.scan(family)) == [(b"%d" % number, b"old") for number in range(10)]
            assert view.last(family, b"2") == (b"2", b"old")
    with store.view("b", "a") as view:
        assert [key for key, _ in view.scan("a")] == [b"3", b"4", b"5", b"6", b"7", b"8", b"9"]
        assert view.last("b", b"2") is None


def test_view_has_only_the_families_named(store: Rocks) -> None:
    with store.view("a") as view:
        for read in (lambda: list(view.scan("b")), lambda: view.last("b", b"")):
            with pytest.raises(StoreUsageError, match="'b' is not in it"):
                read()
    with pytest.raises(StoreUsageError, match="no column family 'x'"):
        store.view("a", "x")
    assert store.health().in_flight == 0


def test_one_family_is_read_by_one_scan_at_a_time(store: Rocks) -> None:
    """A second read moves the iterator; the first scan says so instead of giving what it did not ask for."""
    for disturb in ("scan", "last"):
        with store.view() as view:
            first = view.scan("a")
            assert next(first) == (b"0", b"old")
            other = view.scan("b")
            assert next(other) == (b"0", b"old")
            assert next(first) == (b"1", b"old")
            found = next(view.scan("a", b"7")) if disturb == "scan" else view.last("a", b"7")
            assert found == (b"7", b"old")
            with pytest.raises(StoreUsageError, match="read again in this family"):
                next(first)
            assert next(other) == (b"1", b"old")


def test_scan_ends_with_its_view(store: Rocks) -> None:
    view = store.view("a")
    scan = view.scan("a")
    next(scan)
    view.close()
    with pytest.raises(StoreUsageError, match="view was closed"):
        next(scan)
    for read in (lambda: list(view.scan("a")), lambda: view.last("a", b"")):
        with pytest.raises(StoreUsageError, match="or it is closed"):
            read()
    view.close()
    assert store.health().in_flight == 0


def test_wrong_arguments_leave_the_view_usable(store: Rocks) -> None:
    with store.view("a") as view:
        for wrong in (
            lambda: list(view.scan("a", b"b", b"a")),
            lambda: list(view.scan("a", "text")),  # type: ignore[arg-type]
            lambda: view.last("a", None),  # type: ignore[arg-type]
        ):
            with pytest.raises(StoreUsageError):
                wrong()
        assert len(list(view.scan("a"))) == 10


def test_error_that_is_kept_keeps_no_iterator(tmp_path: Path) -> None:
    """A traceback refers to the frames it went through; were an iterator in one, the LOCK would stay held."""
    path = tmp_path / "store"
    with closing(Rocks.create(path, FAMILIES, SharedMemory())) as store:
        batch = store.batch()
        for number in range(100):
            batch.put("a", b"%02d" % number, os.urandom(1_000))
        store.write(batch)
        store.compact()
        (file,) = store.files()
    data = bytearray((path / file.name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file.name).write_bytes(data)
    kept = []
    store = Rocks.open(path, FAMILIES, SharedMemory())
    with store.view("a") as view:
        for read in (
            lambda: list(store.scan("a")),
            lambda: list(store.scan("a", reverse=True)),
            lambda: list(view.scan("a")),
            lambda: [view.last("a", b"%02d" % number) for number in range(100)],
            lambda: [store.seek_last("a", b"%02d" % number) for number in range(100)],
            lambda: [store.get("a", b"%02d" % number) for number in range(100)],
            lambda: store.get_many("a", [b"%02d" % number for number in range(100)]),
        ):
            with pytest.raises(StoreCorrupt, match=file.name) as caught:
                read()
            kept.append(caught.value)
    store.close()  # raises if the LOCK is still held
    Rocks.open(path, FAMILIES, SharedMemory()).close()
    assert len(kept) == 7


def test_released_cursor_holds_nothing(store: Rocks) -> None:
    cursor = Cursor(store._family["a"].iter())
    assert isinstance(cursor.iterator, RdictIter)
    cursor.release()
    assert not hasattr(cursor, "iterator")


def test_abandoned_cursor_refuses_to_read_and_gives_its_iterator_back(store: Rocks) -> None:
    """What a fork does to those of the parent, in the child."""
    cursor = Cursor(store._family["a"].iter())
    scan = cursor.walk(b"", None, reverse=False)
    assert next(scan) == (b"0", b"old")
    iterator = cursor.abandon()
    assert isinstance(iterator, RdictIter)
    reads: list[Iterator[object]] = [scan, cursor.walk(b"", None, reverse=False), cursor.walk(b"", None, reverse=True)]
    for read in reads:
        with pytest.raises(StoreClosed, match="begun in the process that this one was forked from"):
            next(read)
    released = Cursor(store._family["a"].iter())
    released.release()
    assert released.abandon() is None


# ------------------------------------------------------------------- why the binding's own bounds are not used


def raw(path: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    db = Rdict(str(path), options, {"default": options})
    for number in range(10):
        db[b"%d" % number] = b""
    return db


def count(db: Rdict, bounds: ReadOptions) -> int:
    cursor, found = db.iter(bounds), 0
    cursor.seek(b"")
    while cursor.valid():
        found += 1
        cursor.next()
    cursor.status()
    return found


def test_lower_bound_of_the_binding_is_an_upper_bound(tmp_path: Path) -> None:
    """When this fails, rocksdict was mended; the bounds could be used if the other one was too."""
    db, bounds, three = raw(tmp_path / "db"), ReadOptions(), b"3"
    bounds.set_iterate_lower_bound(three)
    assert count(db, bounds) == 3  # 0, 1, 2; not 3 to 9
    db.close()
