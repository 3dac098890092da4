"""`verify` finds what was tampered with, by dot, key and family, wherever it is; and nothing where nothing was."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from deltalog import block, chain, codec, keys, verify
from deltalog.delta import Delta
from deltalog.errors import StoreClosed, StoreCorrupt, StoreError, UsageError
from deltalog.keys import BY_TIME, DELTAS, META, SNAPSHOTS, SOURCES, Head, TimeEntry
from deltalog.rocks_store import RocksStore
from deltalog.store import Run
from deltalog.verify import Fault, Kind, scrub
from deltalog.verify_walk import Place
from tests.conftest import Rounds
from tests.deltalog.rocks_stores import directory_in_memory, opened
from tests.deltalog.threads import PATIENCE_S, in_thread
from tests.laws.delta_store import Pair
from tests.laws.store_machine import run_store_machine
from tests.laws.store_model import END

DAMAGED, MISSING, UNKNOWN = Kind.DAMAGED, Kind.MISSING, Kind.UNKNOWN
FAMILIES = (SOURCES, DELTAS, BY_TIME, META, SNAPSHOTS)

Seen = tuple[Kind, str, str, int]
"""What a fault says: kind, family and dot."""


@attrs.define
class Raw:
    """A store, and what can be done to it behind its back."""

    store: RocksStore

    def put(self, family: str, key: bytes, value: bytes) -> None:
        batch = self.store.db.batch()
        batch.put(family, key, value)
        self.store.db.write(batch)

    def drop(self, family: str, key: bytes) -> None:
        batch = self.store.db.batch()
        batch.delete(family, key)
        self.store.db.write(batch)

    def all(self, family: str) -> dict[bytes, bytes]:
        return dict(self.store.db.scan(family))

    def restore(self, family: str, rows: dict[bytes, bytes]) -> None:
        batch = self.store.db.batch()
        for key in self.all(family).keys() - rows.keys():
            batch.delete(family, key)
        for key, value in rows.items():
            batch.put(family, key, value)
        self.store.db.write(batch)

    def block_of(self, source: str, number: int) -> tuple[bytes, block.Block]:
        """Key and contents of a source's block; -1 is the last."""
        no = self.no(source)
        found = [key for key in self.all(DELTAS) if keys.parse_block_key(key)[0] == no]
        key = found[number]
        return key, block.decode(source, keys.parse_block_key(key)[1], self.all(DELTAS)[key])

    def no(self, source: str) -> int:
        row = self.store.row(source)
        assert row is not None
        return row[0]

    def head(self, source: str) -> Head:
        return self.store.heads()[source]

    def put_head(self, source: str, name: str | None = None, **changes: Any) -> None:
        """A head row with a valid check."""
        no = self.no(source)
        self.put(
            SOURCES,
            keys.source_key(no),
            keys.encode_head(no, name or source, attrs.evolve(self.head(source), **changes)),
        )

    def rewrite(self, key: bytes, held: block.Block, records: Sequence[bytes], rechained: bool) -> None:
        """Put other records into a block: under the old tags, or with all that one block can say made to fit."""
        hashes = chain.extend(held.previous, records)
        value = block.encode(held.previous, hashes, records)
        if not rechained:
            at = 36
            tags = (held.tags + bytes(2 * len(records)))[: 2 * len(records)]
            value = value[:at] + tags + value[at + len(tags) :]
        self.put(DELTAS, key, value)


@pytest.fixture
def raw(directory: Path) -> Iterator[Raw]:
    """Sources "a" (floor 0), "b" (a floor, an erasure on each side of it), "c" (one block); blocks of 50 deltas."""
    pair = Pair(opened(directory / "store"))
    assert isinstance(pair.store, RocksStore)
    for number in range(4):
        for source, start in (("a", 0), ("b", 3), ("c", 7)):
            if source != "c" or not number:
                ticks = range(number * 1000 + start, number * 1000 + start + 500, 10)
                pair.write(pair.model.run(source, ticks, "text", kind="edit", key="file"))
    pair.erase("b", 30)
    pair.erase("b", 120)
    pair.erase("a", 60)
    pair.truncate(b=70)
    pair.annotate({b"peer/one": b"kept", b"\xff" * 40: b""})
    yield Raw(pair.store)
    pair.store.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with directory_in_memory(tmp_path) as path:
        yield path


def seen(faults: Sequence[Fault]) -> list[Seen]:
    return [(fault.kind, fault.family, fault.source, fault.seq) for fault in faults]


def found(store: RocksStore) -> list[Fault]:
    """What `verify` finds; the same must come in portions of any size."""
    faults = list(verify.verify(store))
    for blocks in (1, 3):
        position, parts = scrub(store, b"", blocks)
        while position:
            position, more = scrub(store, position, blocks)
            parts += more
        assert set(seen(parts)) == set(seen(faults))
    return faults


def test_i9_a_store_nobody_touched_has_no_fault(raw: Raw) -> None:
    assert found(raw.store) == []
    raw.store.compact()
    raw.store.reopen()
    assert found(raw.store) == []


def test_an_empty_store_has_no_fault(directory: Path) -> None:
    store = opened(directory / "store")
    assert found(store) == []
    store.close()


@pytest.mark.parametrize("seed", range(6))
def test_i9_no_random_store_has_a_fault(directory: Path, seed: int) -> None:
    pair = Pair(opened(directory / "store"))
    pair.fill(sources=6, rounds=10, seed=seed)
    changes: list[Callable[[], None]] = [lambda: None, pair.store.compact, pair.store.reopen]
    for change in changes:
        change()
        assert isinstance(pair.store, RocksStore)
        assert list(verify.verify(pair.store)) == []
    pair.store.close()


def test_i9_no_store_has_a_fault_whatever_was_done_to_it(directory: Path, rounds: Rounds) -> None:
    def check(store: Any) -> None:
        assert list(verify.verify(store)) == []

    run_store_machine(opened, directory, examples=rounds(8, nightly=1000), check=check)


# ------------------------------------------------------------------------------------------------------------- records


def changed(delta: Delta, field: str) -> Delta:
    """The delta with another value in one field, of the same size where there is one."""
    fields: dict[str, Any] = {"deps": dict(delta.deps), "kind": delta.kind, "key": delta.key, "payload": delta.payload}
    others: dict[str, Any] = {"deps": {"zoe": 1}, "kind": "tide", "key": "life", "payload": "tEXt"}
    fields |= {name: value for name, value in others.items() if name == field}
    timestamp = delta.timestamp + (field == "timestamp")
    return codec.build(delta.source, delta.seq, timestamp, fields.pop("payload"), **fields)


FIELDS = ("timestamp", "deps", "kind", "key", "payload")


@pytest.mark.parametrize("number", [0, 1, -1], ids=["first block", "middle block", "last block"])
@pytest.mark.parametrize("field", FIELDS)
def test_i9_a_changed_record_is_named_by_its_dot(raw: Raw, field: str, number: int) -> None:
    for source in ("a", "b"):
        key, held = raw.block_of(source, number)
        index = len(held.deltas) // 3
        records = [changed(delta, field).record if n == index else delta.record for n, delta in enumerate(held.deltas)]
        raw.rewrite(key, held, records, rechained=False)
        faults = found(raw.store)
        assert (faults[0].kind, faults[0].family, faults[0].key) == (DAMAGED, DELTAS, key)
        assert (faults[0].source, faults[0].seq) == held.deltas[index].dot
        assert all(fault.family == BY_TIME for fault in faults[1:]), "a changed size shows in the index, too"
        raw.rewrite(key, held, held.records, rechained=True)
        assert found(raw.store) == []


@pytest.mark.parametrize("field", FIELDS)
def test_i9_a_record_changed_with_its_tags_is_named_by_its_block(raw: Raw, field: str) -> None:
    for source, number in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
        key, held = raw.block_of(source, number)
        records = [changed(delta, field).record if n == 7 else delta.record for n, delta in enumerate(held.deltas)]
        raw.rewrite(key, held, records, rechained=True)
        faults = [fault for fault in found(raw.store) if field != "deps" or fault.family == DELTAS]
        assert seen(faults) == [(DAMAGED, DELTAS, *held.deltas[0].dot)]
        assert faults[0].key == key
        raw.rewrite(key, held, held.records, rechained=True)


@pytest.mark.parametrize("source", ["a", "b", "c"])
def test_i9_the_last_block_changed_with_its_tags_does_not_lead_to_the_head(raw: Raw, source: str) -> None:
    key, held = raw.block_of(source, -1)
    raw.rewrite(
        key, held, [changed(d, "payload").record if d is held.deltas[7] else d.record for d in held.deltas], True
    )
    assert seen(found(raw.store)) == [(DAMAGED, SOURCES, source, raw.head(source).seq)]


def test_i9_swapped_records_are_named_by_the_first_dot(raw: Raw) -> None:
    key, held = raw.block_of("a", 2)
    one, two = held.deltas[5], held.deltas[9]
    swapped = {
        one.seq: codec.build("a", one.seq, one.timestamp, "from two", kind="edit", key="file").record,
        two.seq: codec.build("a", two.seq, two.timestamp, "from one", kind="edit", key="file").record,
    }
    raw.rewrite(key, held, [swapped.get(delta.seq, delta.record) for delta in held.deltas], rechained=False)
    assert seen(found(raw.store))[0] == (DAMAGED, DELTAS, *one.dot)


@pytest.mark.parametrize("rechained", [False, True])
def test_i9_a_record_dropped_and_the_rest_renumbered(raw: Raw, rechained: bool) -> None:
    key, held = raw.block_of("a", 1)
    rest = [*held.deltas[:10], *held.deltas[11:]]
    renumbered = [
        codec.build("a", held.deltas[0].seq + n, delta.timestamp, delta.payload, kind="edit", key="file").record
        if n >= 10
        else delta.record
        for n, delta in enumerate(rest)
    ]
    raw.rewrite(key, held, renumbered, rechained)
    faults = seen(found(raw.store))
    assert (MISSING, DELTAS, "a", 100) in faults
    assert rechained or faults[0] == (DAMAGED, DELTAS, "a", 61)


def test_i9_a_record_put_in_and_the_rest_renumbered(raw: Raw) -> None:
    key, held = raw.block_of("a", 1)
    extra = codec.build("a", 61, held.deltas[10].timestamp - 1, "extra")
    rest = [codec.build("a", d.seq + 1, d.timestamp, d.payload, kind="edit", key="file") for d in held.deltas[10:]]
    raw.rewrite(key, held, [d.record for d in (*held.deltas[:10], extra, *rest)], rechained=False)
    assert seen(found(raw.store))[0] == (DAMAGED, DELTAS, "a", 61)


def test_i9_another_hash_in_the_place_of_an_erased_payload(raw: Raw) -> None:
    key, held = raw.block_of("a", 1)
    assert held.deltas[9].erased
    records = held.records
    records[9] = records[9][:-1] + b"x"
    raw.rewrite(key, held, records, rechained=False)
    assert seen(found(raw.store)) == [(DAMAGED, DELTAS, "a", 60)]


@pytest.mark.parametrize("at", [0, 1, 3, 20, 36, 40, 200, -1], ids=lambda at: f"byte {at}")
def test_i9_a_flipped_bit_anywhere_in_a_block(raw: Raw, at: int) -> None:
    key, held = raw.block_of("a", 2)
    value = bytearray(raw.all(DELTAS)[key])
    value[at] ^= 4
    raw.put(DELTAS, key, bytes(value))
    faults = found(raw.store)
    assert (faults[0].kind, faults[0].family, faults[0].source, faults[0].key) == (DAMAGED, DELTAS, "a", key)
    assert held.deltas[0].seq <= faults[0].seq <= held.deltas[-1].seq


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(("number", "first"), [(0, 1), (1, 51), (-1, 151)])
def test_i9_a_dropped_block_is_missing_by_its_first_dot(raw: Raw, number: int, first: int) -> None:
    key, held = raw.block_of("a", number)
    raw.drop(DELTAS, key)
    faults = found(raw.store)
    assert seen(faults)[0] == (MISSING, DELTAS, "a", first)
    assert faults[0].key == key
    assert f"deltas {first} to {first + len(held.deltas) - 1} are not there" in faults[0].message
    assert seen(faults)[1:] == [(DAMAGED, BY_TIME, "a", first)]


def test_i9_a_block_of_another_history_is_named(raw: Raw) -> None:
    for source in ("a", "b"):
        key, held = raw.block_of(source, 1)
        other = chain.extend(b"other".ljust(32), held.records)
        raw.put(DELTAS, key, block.encode(b"other".ljust(32), other, held.records))
        assert seen(found(raw.store)) == [(DAMAGED, DELTAS, *held.deltas[0].dot)]
        raw.rewrite(key, held, held.records, rechained=True)


@pytest.mark.parametrize(("source", "to"), [("a", "c"), ("c", "a"), ("b", "a")])
def test_i9_a_block_moved_to_another_source_is_named_there_and_missed_here(raw: Raw, source: str, to: str) -> None:
    """Under the same seqs; where another block stands there, it is replaced."""
    key, held = raw.block_of(source, 1 if source != "c" else 0)
    first = held.deltas[0].seq
    raw.put(DELTAS, keys.block_key(raw.no(to), first), raw.all(DELTAS)[key])
    raw.drop(DELTAS, key)
    faults = seen(found(raw.store))
    assert (MISSING, DELTAS, source, first) in faults
    assert [fault for fault in faults if fault[2] == to and fault[3] in range(first, first + len(held.deltas) + 1)]


@pytest.mark.parametrize("seq", [20, 160, 400])
def test_i9_an_added_block_is_named(raw: Raw, seq: int) -> None:
    """Below the floor, in the midst of others, behind the head."""
    deltas = [codec.build("b", seq + n, END - 10 + n, "more") for n in range(3)]
    hashes = chain.extend(bytes(32), [delta.record for delta in deltas])
    raw.put(DELTAS, keys.block_key(raw.no("b"), seq), block.encode(bytes(32), hashes, [d.record for d in deltas]))
    faults = seen(found(raw.store))
    named = {20: (UNKNOWN, DELTAS, "b", 20), 160: (UNKNOWN, DELTAS, "b", 160), 400: (DAMAGED, SOURCES, "b", 201)}[seq]
    assert named in faults
    assert (MISSING, BY_TIME, "b", 400) in faults or seq != 400


def test_i9_blocks_of_a_source_without_a_row(raw: Raw) -> None:
    for no in (9, 9, 12):
        for seq in (1, 51):
            raw.put(DELTAS, keys.block_key(no, seq), b"anything")
    faults = found(raw.store)
    assert seen(faults) == [(MISSING, SOURCES, "", 0)] * 2
    assert [fault.key for fault in faults] == [keys.source_key(9), keys.source_key(12)]


# --------------------------------------------------------------------------------------------------------------- index


def entry_of(raw: Raw, source: str, number: int) -> TimeEntry:
    key, held = raw.block_of(source, number)
    return keys.time_entry(*keys.parse_block_key(key), held.records)


def test_i9_a_dropped_entry_is_missing(raw: Raw) -> None:
    entry = entry_of(raw, "b", 1)
    raw.drop(BY_TIME, entry.key)
    faults = found(raw.store)
    assert seen(faults) == [(MISSING, BY_TIME, "b", 101)]
    assert faults[0].key == entry.key


@pytest.mark.parametrize("field", ["last", "count", "size_bytes"])
def test_i9_an_altered_entry_is_damaged(raw: Raw, field: str) -> None:
    entry = entry_of(raw, "b", 1)
    raw.put(BY_TIME, entry.key, attrs.evolve(entry, **{field: getattr(entry, field) - 1}).value)
    assert seen(found(raw.store)) == [(DAMAGED, BY_TIME, "b", 101)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"last": 9999}, (UNKNOWN, BY_TIME, "b", 101)),
        ({"first": 5}, (UNKNOWN, BY_TIME, "b", 101)),
        ({"seq": 102}, (DAMAGED, BY_TIME, "b", 102)),
        ({"source_no": 7}, (DAMAGED, BY_TIME, "", 101)),
        ({"source_no": 0}, (UNKNOWN, BY_TIME, "a", 101)),
    ],
    ids=str,
)
def test_i9_an_added_entry_is_named(raw: Raw, changes: dict[str, int], expected: Seen) -> None:
    entry = attrs.evolve(entry_of(raw, "b", 1), **changes)
    raw.put(BY_TIME, entry.key, entry.value)
    faults = found(raw.store)
    assert seen(faults) == [expected]
    assert faults[0].key == entry.key


def test_i9_an_entry_at_the_wrong_level_or_of_the_wrong_shape(raw: Raw) -> None:
    entry = entry_of(raw, "b", 1)
    raw.put(BY_TIME, b"\x3f" + entry.key[1:], entry.value)
    raw.put(BY_TIME, b"\x05short", b"")
    raw.put(BY_TIME, b"\xff" * 21, bytes(14))
    assert sorted(seen(found(raw.store)), key=str) == [
        (DAMAGED, BY_TIME, "", 0),
        (DAMAGED, BY_TIME, "", 0),
        (UNKNOWN, BY_TIME, "", 0),
    ]


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seq": 201}, (MISSING, DELTAS, "b", 201)),
        ({"seq": 199}, (DAMAGED, SOURCES, "b", 200)),
        ({"timestamp": 5}, (DAMAGED, SOURCES, "b", 200)),
        ({"hash": bytes(32)}, (DAMAGED, SOURCES, "b", 200)),
        ({"floor": 0}, (DAMAGED, SOURCES, "b", 1)),
        ({"floor": 69}, (MISSING, DELTAS, "b", 70)),
        ({"floor": 71}, (UNKNOWN, DELTAS, "b", 71)),
        ({"floor": 100}, (UNKNOWN, DELTAS, "b", 71)),
        ({"floor_hash": bytes(32)}, (DAMAGED, SOURCES, "b", 71)),
        ({"size_bytes": 7}, (DAMAGED, SOURCES, "b", 200)),
    ],
    ids=str,
)
@pytest.mark.parametrize("again", [False, True], ids=["while open", "opened again"])
def test_i9_an_altered_head_row_is_named(raw: Raw, changes: dict[str, Any], expected: Seen, again: bool) -> None:
    raw.put_head("b", **changes)
    if again:
        raw.store.reopen()
    assert expected in seen(found(raw.store))


@pytest.mark.parametrize("source", ["a", "c"])
def test_i9_the_hash_at_the_floor_of_a_source_that_dropped_nothing_is_its_names(raw: Raw, source: str) -> None:
    raw.put_head(source, floor_hash=bytes(32))
    assert seen(found(raw.store)) == [(DAMAGED, SOURCES, source, 1)]


def test_i9_a_renamed_source_is_found(raw: Raw) -> None:
    raw.put_head("a", name="x")
    assert (DAMAGED, SOURCES, "a", 0) in seen(found(raw.store))
    raw.store.reopen()
    assert seen(found(raw.store)) == [(DAMAGED, SOURCES, "x", 1)]


def test_i9_a_renamed_source_without_its_beginning_is_found_while_the_store_is_open(raw: Raw) -> None:
    raw.put_head("b", name="x")
    assert (DAMAGED, SOURCES, "b", 0) in seen(found(raw.store))


def test_i9_the_head_of_a_source_of_which_all_was_dropped(raw: Raw) -> None:
    raw.store.truncate({"c": 50})
    assert found(raw.store) == []
    for changes in ({"hash": bytes(32)}, {"floor_hash": bytes(32)}, {"size_bytes": 1}):
        raw.put_head("c", **changes)
        assert seen(found(raw.store)) == [(DAMAGED, SOURCES, "c", 50)]


@pytest.mark.parametrize("no", [0, 1, 2])
def test_i9_a_missing_head_row_is_found(raw: Raw, no: int) -> None:
    raw.drop(SOURCES, keys.source_key(no))
    faults = found(raw.store)
    assert faults
    if no < 2:
        assert (MISSING, SOURCES, "", 0) in seen(faults)


def test_i9_a_flipped_bit_in_a_head_row(raw: Raw) -> None:
    key = keys.source_key(1)
    value = bytearray(raw.all(SOURCES)[key])
    value[20] ^= 1
    raw.put(SOURCES, key, bytes(value))
    assert seen(found(raw.store)) == [(DAMAGED, SOURCES, "", 0)]


# --------------------------------------------------------------------------------------------------------- notes, meta


def test_i9_an_erased_delta_without_its_note(raw: Raw) -> None:
    raw.drop(META, keys.erased_key(raw.no("b"), 120))
    assert seen(found(raw.store)) == [(MISSING, META, "b", 120)]


@pytest.mark.parametrize(
    ("source", "seq", "content", "expected"),
    [
        ("b", 121, ["why", 5], (DAMAGED, META, "b", 121)),
        ("b", 999, ["why", 5], (UNKNOWN, META, "b", 999)),
        ("b", 0, ["why", 5], (UNKNOWN, META, "b", 0)),
        ("b", 120, "why", (DAMAGED, META, "b", 120)),
        ("b", 120, [5, "why"], (DAMAGED, META, "b", 120)),
        ("b", 30, {}, (DAMAGED, META, "b", 30)),
    ],
    ids=str,
)
def test_i9_an_altered_or_added_note(raw: Raw, source: str, seq: int, content: object, expected: Seen) -> None:
    key = keys.erased_key(raw.no(source), seq)
    raw.put(META, key, keys.encode_meta(key, content))
    assert seen(found(raw.store)) == [expected]


def test_i9_a_note_of_no_source_and_of_no_shape(raw: Raw) -> None:
    for key in (keys.erased_key(77, 1), keys.META_ERASED + b"short"):
        raw.put(META, key, keys.encode_meta(key, ["why", 5]))
    assert seen(found(raw.store)) == [(UNKNOWN, META, "", 1), (UNKNOWN, META, "", 0)]


@pytest.mark.parametrize(
    "key",
    [keys.META_FORMAT, keys.META_STORE_ID, keys.erased_key(1, 120), keys.annotation_key(b"peer/one")],
    ids=repr,
)
def test_i9_a_flipped_bit_in_meta(raw: Raw, key: bytes) -> None:
    raw.put(META, key, bytes([raw.all(META)[key][0] ^ 1]) + raw.all(META)[key][1:])
    assert seen(found(raw.store)) == [(DAMAGED, META, "", 0)]


@pytest.mark.parametrize(
    ("key", "content"),
    [
        (keys.META_FORMAT, 9),
        (keys.META_STORE_ID, b"another"),
        (keys.META_INCARNATIONS, "a"),
        (keys.META_INCARNATIONS, [1]),
        (keys.annotation_key(b"peer/one"), "text"),
        (keys.annotation_key(b""), b"of no key"),
        (keys.annotation_key(b"k" * 1025), b"of too long a key"),
        (keys.annotation_key(b"peer/one"), bytes(65537)),
    ],
    ids=str,
)
def test_i9_a_row_of_meta_that_cannot_be(raw: Raw, key: bytes, content: object) -> None:
    raw.put(META, key, keys.encode_meta(key, content))
    assert seen(found(raw.store)) == [(DAMAGED, META, "", 0)]


@pytest.mark.parametrize("key", [keys.META_FORMAT, keys.META_STORE_ID], ids=repr)
def test_i9_a_row_of_meta_that_is_not_there(raw: Raw, key: bytes) -> None:
    raw.drop(META, key)
    assert seen(found(raw.store)) == [(MISSING, META, "", 0)]


def test_rows_of_meta_that_others_keep_are_known(raw: Raw) -> None:
    raw.store.set_meta(keys.META_INCARNATIONS, ["a", "a~1"])
    raw.store.set_meta(keys.META_SCRUB, {"position": b"x", "at": 5})
    assert found(raw.store) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", [b"\0", b"\0\0\0\1", b"\0\0\0\1strange", b"zzz", b"\xff" * 40], ids=repr)
def test_i15_what_was_never_written_is_unknown(raw: Raw, family: str, key: bytes) -> None:
    if family == SOURCES and len(key) == 4:
        key = b"\0\0\0\1x"
    raw.put(family, key, b"strange")
    faults = found(raw.store)
    assert [(fault.kind, fault.family, fault.key) for fault in faults] == [(UNKNOWN, family, key)]


# --------------------------------------------------------------------------------------------------- larger tampering


@pytest.mark.parametrize("family", [SOURCES, DELTAS, BY_TIME, META])
def test_i9_one_family_rolled_back_is_found(raw: Raw, family: str) -> None:
    before = raw.all(family)
    pair = Pair(raw.store)
    for source in ("a", "c"):
        head = raw.head(source)
        deltas = [codec.build(source, head.seq + 1 + n, head.timestamp + 1 + n, "new") for n in range(20)]
        records = [delta.record for delta in deltas]
        pair.store.write([run_behind(source, head, records)])
    raw.store.erase("c", 60, "because", 7)
    raw.store.truncate({"a": 60})
    raw.store.merge_blocks()
    assert found(raw.store) == []
    raw.restore(family, before)
    faults = found(raw.store)
    assert any(fault.family in (family, SOURCES) for fault in faults)
    raw.store.reopen()
    assert found(raw.store)


def run_behind(source: str, head: Head, records: list[bytes]) -> Run:
    return Run(source, head.seq + 1, records, head.hash, chain.extend(head.hash, records))


def test_every_fault_is_found_not_only_the_first(raw: Raw) -> None:
    key, held = raw.block_of("a", 0)
    raw.rewrite(key, held, [changed(d, "payload").record if d.seq == 5 else d.record for d in held.deltas], False)
    raw.drop(DELTAS, raw.block_of("a", 2)[0])
    raw.drop(BY_TIME, entry_of(raw, "b", 0).key)
    raw.put_head("c", size_bytes=9)
    raw.drop(META, keys.erased_key(raw.no("b"), 120))
    raw.put(SNAPSHOTS, b"view", b"?")
    assert set(seen(found(raw.store))) == {
        (DAMAGED, DELTAS, "a", 5),
        (MISSING, DELTAS, "a", 101),
        (DAMAGED, BY_TIME, "a", 101),
        (MISSING, BY_TIME, "b", 71),
        (MISSING, META, "b", 120),
        (DAMAGED, SOURCES, "c", 50),
        (UNKNOWN, SNAPSHOTS, "", 0),
    }


def test_i9_every_flipped_bit_of_every_row_is_found(raw: Raw, rounds: Rounds) -> None:
    """In keys and values alike, as far as the raw door lets a bit be flipped: a row then stands under another key."""
    chance = random.Random(7)
    for _ in range(rounds(120, nightly=20_000)):
        family = chance.choice((SOURCES, DELTAS, BY_TIME, META))
        rows = raw.all(family)
        key = chance.choice(list(rows))
        in_key = chance.random() < 0.3
        other = bytearray(key if in_key else rows[key])
        other[chance.randrange(len(other))] ^= 1 << chance.randrange(8)
        if in_key:
            raw.drop(family, key)
            raw.put(family, bytes(other), rows[key])
        else:
            raw.put(family, key, bytes(other))
        assert list(verify.verify(raw.store)), f"{family} {key.hex()} -> {bytes(other).hex()} (key: {in_key})"
        raw.restore(family, rows)
    assert found(raw.store) == []


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.fixture
def on_disk(directory: Path) -> tuple[Path, Pair]:
    """A closed store whose families fill several pages of their files."""
    pair, chance = Pair(opened(directory / "store")), random.Random(8)
    for number in range(40):
        for source in ("a", "b", "c"):
            pair.write(pair.model.run(source, range(number * 1000, number * 1000 + 50), chance.randbytes(40)))
    pair.erase("b", 7)
    for delta in pair.model.all()[::100]:
        pair.erase(*delta.dot)
    pair.store.compact()
    pair.store.close()
    return directory / "store", pair


def flip(file: Path, offset: int, bit: int = 0) -> None:
    with file.open("r+b") as data:
        data.seek(offset)
        byte = data.read(1)[0]
        data.seek(offset)
        data.write(bytes([byte ^ 1 << bit]))


def test_i9_no_flipped_bit_in_a_file_leaves_a_clean_verdict(on_disk: tuple[Path, Pair], rounds: Rounds) -> None:
    path, chance = on_disk[0], random.Random(9)
    files = sorted(path.glob("*.sst"))
    verdicts: set[str] = set()
    for number in range(rounds(60, nightly=10_000)):
        file = files[number % len(files)]
        offset, bit = chance.randrange(file.stat().st_size), chance.randrange(8)
        flip(file, offset, bit)
        try:
            store = opened(path)
        except StoreCorrupt:  # RocksDB names the file, or the MANIFEST
            verdicts.add("does not open")
        else:
            faults = list(verify.verify(store))
            assert faults, f"{file.name} at {offset}, bit {bit}"
            assert {fault.file for fault in faults if fault.kind is DAMAGED} == {file.name}
            verdicts |= {fault.family for fault in faults}
            close(store)
        flip(file, offset, bit)
    assert verdicts == {"does not open", DELTAS, BY_TIME}


def close(store: RocksStore) -> None:
    with suppress(StoreError):
        store.close()


def family_file(store: RocksStore, family: str) -> Path:
    (info,) = (info for info in store.db.files() if info.family == family)
    return store.db.path / info.name


@pytest.mark.parametrize("places", [(0.5,), (0.02, 0.9), (0.3, 0.5, 0.7)])
def test_behind_damage_all_the_rest_is_walked(on_disk: tuple[Path, Pair], places: tuple[float, ...]) -> None:
    path = on_disk[0]
    store = opened(path)
    file = family_file(store, DELTAS)
    raw = Raw(store)
    raw.drop(META, keys.erased_key(raw.no("b"), 7))
    raw.put_head("c", size_bytes=1)
    store.close()
    for part in places:
        flip(file, int(file.stat().st_size * part * 0.95))
    store = opened(path)
    faults = list(verify.verify(store))
    unreadable = [fault for fault in faults if "cannot be read" in fault.message]
    lost = set()
    for fault in unreadable:
        assert (fault.kind, fault.family, fault.file) == (DAMAGED, DELTAS, file.name)
        first, last = [int(word) for word in fault.message.split() if word.isdigit()][:2]
        lost |= {(fault.source, seq) for seq in range(first, last + 1)}
    assert lost == {
        (store.name(entry.source_no), seq)
        for entry in (keys.parse_time_entry(*row) for row in raw_rows(store, BY_TIME))
        for seq in range(entry.seq, entry.seq + entry.count)
        if not readable(store, entry.block_key)
    }
    assert len(unreadable) >= len(places)
    assert ("b", 7) in lost or (MISSING, META, "b", 7) in seen(faults)
    assert any(fault.family == SOURCES and fault.source == "c" for fault in faults) or any(s == "c" for s, _ in lost)
    assert {fault.kind for fault in faults} <= {DAMAGED, MISSING}
    close(store)


def raw_rows(store: RocksStore, family: str) -> list[tuple[bytes, bytes]]:
    return list(store.db.scan(family))


def readable(store: RocksStore, key: bytes) -> bool:
    try:
        return store.db.get(DELTAS, key) is not None
    except StoreCorrupt:
        return False


def test_damage_to_the_index_is_named_and_the_records_are_walked_all_the_same(on_disk: tuple[Path, Pair]) -> None:
    path = on_disk[0]
    store = opened(path)
    file = family_file(store, BY_TIME)
    raw = Raw(store)
    key, held = raw.block_of("c", 3)
    raw.rewrite(key, held, [changed(d, "kind").record if d is held.deltas[4] else d.record for d in held.deltas], False)
    store.close()
    flip(file, file.stat().st_size // 4)
    store = opened(path)
    faults = list(verify.verify(store))
    assert (DAMAGED, DELTAS, *held.deltas[4].dot) in seen(faults)
    assert any(fault.family == BY_TIME and fault.file == file.name and "mismatch" in fault.message for fault in faults)
    close(store)


def test_damage_done_while_the_store_is_open_is_seen_though_the_cache_is_right(on_disk: tuple[Path, Pair]) -> None:
    store = opened(on_disk[0])
    assert list(verify.verify(store)) == []
    file = family_file(store, DELTAS)
    flip(file, file.stat().st_size // 2)
    faults = list(verify.verify(store))
    assert {fault.file for fault in faults} == {file.name}
    close(store)


# ------------------------------------------------------------------------------------------- portions, and a busy log


def test_progress_counts_deltas_and_rows_up_to_their_totals(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PORTION", 3)
    calls: list[tuple[str, int, int]] = []
    assert list(verify.verify(raw.store, progress=lambda *call: calls.append(call))) == []
    sizes = raw.store.sizes()
    last = {stage: (done, total) for stage, done, total in calls}
    assert last["sources"] == (3, 3)
    assert last["records"] == (sizes.deltas, sizes.deltas)
    assert last["index"] == (sizes.blocks, sizes.blocks)
    assert all(done <= total for _, done, total in calls)
    assert len(calls) > 6


def test_a_progress_that_raises_ends_the_walk_and_leaves_nothing_open(raw: Raw) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(verify.verify(raw.store, progress=stop))
    raw.store.reopen()


def test_a_walk_that_is_dropped_in_the_middle_leaves_nothing_open(raw: Raw) -> None:
    raw.drop(BY_TIME, entry_of(raw, "b", 1).key)
    walk = verify.verify(raw.store)
    next(walk)
    raw.store.reopen()


def test_a_scrub_goes_on_where_it_was_after_a_reopen(raw: Raw) -> None:
    raw.drop(BY_TIME, entry_of(raw, "b", 2).key)
    position, faults = scrub(raw.store, b"", 2)
    while position:
        raw.store.set_meta(keys.META_SCRUB, position)
        raw.store.reopen()
        position, more = scrub(raw.store, raw.store.meta(keys.META_SCRUB), 2)
        faults += more
    assert seen(faults) == [(MISSING, BY_TIME, "b", 151)]


def test_verify_resumes_from_a_position(raw: Raw) -> None:
    raw.drop(BY_TIME, entry_of(raw, "a", 0).key)
    raw.drop(BY_TIME, entry_of(raw, "b", 2).key)
    position, faults = scrub(raw.store, b"", 6)
    assert seen([*faults, *verify.verify(raw.store, resume=position)]) == seen(found(raw.store))
    assert len(faults) == 1


BEYOND = [
    Place(stage=5),
    Place(stage=-1),
    Place(source_no=1 << 32),
    Place(seq=-1),
    Place(seq=1 << 63),
    Place(before=-1),
    Place(suspect=-2),
    Place(blocks=-1),
]


@pytest.mark.parametrize(
    "position",
    [b"x", b"\xc1", b"\x90", b"\x91\x07", b"\x92\x00\xff", b"\x91\xa1x", *(place.pack() for place in BEYOND)],
    ids=repr,
)
def test_a_position_that_is_none_is_refused(raw: Raw, position: bytes) -> None:
    with pytest.raises(UsageError, match="position"):
        scrub(raw.store, position, 1)
    with pytest.raises(UsageError, match="blocks must be at least 1"):
        scrub(raw.store, b"", 0)
    raw.store.reopen()


@pytest.mark.parametrize("seed", range(10))
def test_i9_a_log_that_changes_between_portions_has_no_fault(directory: Path, seed: int) -> None:
    pair, chance = Pair(opened(directory / "store")), random.Random(seed)
    store = pair.store
    assert isinstance(store, RocksStore)
    pair.fill(sources=3, rounds=8, seed=seed)
    now, position, faults = 1 << 40, b"", list[Fault]()
    for _ in range(3):
        position, more = scrub(store, b"", chance.randint(1, 4))
        faults += more
        while position:
            heads = store.heads()
            name = chance.choice(list(heads))
            now += 1000
            match chance.randrange(6):
                case 0:
                    pair.add(name, *range(now, now + chance.choice((1, 3, 200))))
                case 1:
                    store.merge_blocks()
                case 2:
                    pair.truncate(**{name: chance.randint(heads[name].floor, heads[name].seq)})
                case 3 if heads[name].count:
                    pair.erase(name, chance.randint(heads[name].floor + 1, heads[name].seq))
                case 4:
                    pair.add(f"new {now}", now)
            position, more = scrub(store, position, chance.randint(1, 4))
            faults += more
    assert faults == []
    pair.model.check(store)
    store.close()


def test_i9_a_block_that_is_cut_at_a_floor_once_it_went_by_has_no_fault(raw: Raw) -> None:
    position, faults = scrub(raw.store, b"", 1)
    floors: list[int] = []
    while position:
        place = Place.parse(position)
        if place.begun and place.source_no == raw.no("a") and place.before:
            floors.append(place.seq - 20)
            raw.store.truncate({"a": floors[-1]})
        position, more = scrub(raw.store, position, 1)
        faults += more
    assert {31, 81, 131} <= set(floors)
    assert faults == []


def test_i9_a_log_in_use_by_other_threads_has_no_fault(
    directory: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on until there were three walks."""
    monkeypatch.setattr(verify, "PORTION", 5)
    pair, done, ended, chance = (
        Pair(opened(directory / "store")),
        threading.Event(),
        threading.Event(),
        random.Random(10),
    )
    pair.fill(sources=4, rounds=10)
    store, turns, walks = pair.store, rounds(120, nightly=5000), 0
    assert isinstance(store, RocksStore)

    def change() -> None:
        try:
            for turn in itertools.count():
                if ended.is_set() or (turn >= turns and walks > 2):
                    return
                name = f"source {turn % 4}"
                pair.add(name, *range((1 << 40) + turn * 1000, (1 << 40) + turn * 1000 + chance.choice((1, 5, 150))))
                head = store.heads()[name]
                if turn % 3 == 1:
                    pair.truncate(**{name: chance.randint(head.floor, head.seq - 1)})
                if turn % 4 == 2:
                    pair.erase(name, head.seq)
                if turn % 5 == 3:
                    store.merge_blocks()
        finally:
            done.set()

    changing = in_thread(change)
    try:
        while not done.is_set():
            assert list(verify.verify(store)) == []
            walks += 1
    finally:
        ended.set()
        changing.result(PATIENCE_S)
        store.close()


def test_what_was_changed_with_a_portion_between_is_found_all_the_same(raw: Raw) -> None:
    """The chain is carried from one portion to the next: a block and its tags replaced just at a seam."""
    for number in (0, 1, 2):
        key, held = raw.block_of("a", number)
        raw.rewrite(key, held, [changed(d, "payload").record for d in held.deltas], rechained=True)
        for blocks in (1, 2, 3, 4):
            position, faults = scrub(raw.store, b"", blocks)
            while position:
                position, more = scrub(raw.store, position, blocks)
                faults += more
            assert (DAMAGED, DELTAS, *held.deltas[0].dot) in seen(faults)
        raw.rewrite(key, held, held.records, rechained=True)


# ---------------------------------------------------------------------------------------------- several faults at once


def test_a_closed_store_cannot_be_walked(directory: Path) -> None:
    store = opened(directory / "store")
    store.close()
    with pytest.raises(StoreClosed, match="the store is closed"):
        list(verify.verify(store))


def test_i6_a_block_whose_time_goes_back_is_named(raw: Raw) -> None:
    key, held = raw.block_of("a", 1)
    records = [
        codec.build(d.source, d.seq, d.timestamp - 995, d.payload, kind=d.kind, key=d.key).record for d in held.deltas
    ]
    raw.rewrite(key, held, records, rechained=True)
    messages = [fault.message for fault in found(raw.store) if (fault.family, fault.key) == (DELTAS, key)]
    assert "its timestamp does not come after its predecessor's" in messages


@pytest.mark.parametrize("number", [1, 2])
def test_i9_a_changed_record_is_named_although_its_block_lies_about_what_stands_before_it(
    raw: Raw, number: int
) -> None:
    key, held = raw.block_of("a", number)
    records = [changed(d, "payload").record if d is held.deltas[20] else d.record for d in held.deltas]
    raw.rewrite(key, attrs.evolve(held, previous=b"x" * 32), records, rechained=False)
    assert seen(found(raw.store)) == [(DAMAGED, DELTAS, *held.deltas[20].dot)]


@pytest.mark.parametrize("source", ["a", "b"])
def test_i9_a_last_block_that_leads_from_nowhere_to_nowhere_is_named(raw: Raw, source: str) -> None:
    """It fits in itself, neither to what stands before it nor to the head."""
    key, held = raw.block_of(source, -1)
    records = [changed(delta, "payload").record for delta in held.deltas]
    raw.rewrite(key, attrs.evolve(held, previous=b"x" * 32), records, rechained=True)
    assert seen(found(raw.store)) == [(DAMAGED, DELTAS, *held.deltas[0].dot)]


def test_damage_to_meta_is_named_and_no_note_is_called_missing_for_it(on_disk: tuple[Path, Pair]) -> None:
    store = opened(on_disk[0])
    file = family_file(store, META)
    flip(file, 40)
    faults = list(verify.verify(store))
    assert {(fault.kind, fault.family, fault.file) for fault in faults} == {(DAMAGED, META, file.name)}
    close(store)


def test_damage_behind_the_last_delta_is_named_although_no_delta_is_lost(on_disk: tuple[Path, Pair]) -> None:
    store = opened(on_disk[0])
    key = keys.block_key(2, 1_000_000)
    Raw(store).put(DELTAS, key, random.Random(11).randbytes(60_000))
    store.db.compact()
    file = store.db.path / str(store.db.file_of(DELTAS, key))
    flip(file, file.stat().st_size - 30_000)
    (fault,) = verify.verify(store)
    assert (fault.kind, fault.family, fault.source, fault.seq, fault.file) == (DAMAGED, DELTAS, "", 0, file.name)
    close(store)
