"""A delta store against the model, by hypothesis: changes and reads in any order, scans left open meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deltalog.delta import Delta
from deltalog.errors import BelowFloor, UsageError
from deltalog.store import DeltaStore, Run, Scan
from tests.laws.store_model import END, StoreModel, drained, place

SOURCES = ("alice", "bob", "a:\0\N{GRINNING FACE}", "dora")
STEPS = st.integers(1, 3) | st.sampled_from([1, 1, 1, 255, 256, 1 << 16, 1 << 33, 1 << 62])
"""From one timestamp of a source to its next: colliding with others', or wildly apart."""
FIRST = st.integers(0, 40) | st.sampled_from([0, 1 << 20, 1 << 40, END - 300, END])
TIMES = st.sampled_from([1, 1, 1, 30])
PAYLOAD_BYTES = st.sampled_from([0, 5, 300, 30_000])
PAGES = st.integers(-1, 12) | st.sampled_from([128, 10_000])
EDGE = st.integers(-2, 2)
ANNOTATED = st.binary(min_size=1, max_size=2) | st.sampled_from([b"a", b"a\xff", b"\xff", b"\xff\xff"])


@attrs.define
class Wanted:
    """What a rule draws for one run."""

    source: str
    first: int
    steps: list[int]
    times: int
    payload_bytes: int


WANTED = st.builds(Wanted, st.sampled_from(SOURCES), FIRST, st.lists(STEPS, max_size=6), TIMES, PAYLOAD_BYTES)
RUNS = st.lists(WANTED, min_size=1, max_size=4)


@attrs.define
class OpenScan:
    """A scan in progress, and what it may still give."""

    scan: Scan
    kind: str
    expected: list[Delta]
    """What is wanted and was stored when it began, in order."""
    given: list[Delta] = attrs.field(factory=list)


class StoreMachine(RuleBasedStateMachine):
    """The rules. `make` and `directories` are set by `run_store_machine`."""

    make: Callable[[Path], DeltaStore]
    directories: Iterator[Path]
    durable: bool
    check: Callable[[DeltaStore], None]

    def __init__(self) -> None:
        super().__init__()
        self.path = next(self.directories)
        self.store = self.make(self.path)
        self.model = StoreModel()
        self.scans: list[OpenScan] = []

    def teardown(self) -> None:
        try:
            self.model.check(self.store, 3)
            self.check(self.store)
        finally:
            self.store.close()

    # ---- what changes

    @initialize(runs=RUNS)
    def begin(self, runs: list[Wanted]) -> None:
        self.write(runs)

    @rule(runs=RUNS)
    def write(self, runs: list[Wanted]) -> None:
        made: list[Run] = []
        ahead = self.model.copy()
        for drawn in runs:
            timestamps = self.timestamps(ahead, drawn)
            if timestamps:
                made.append(ahead.run(drawn.source, timestamps, b"x" * drawn.payload_bytes))
                ahead.write(made[-1:])
        self.store.write(made)
        self.model.write(made)

    def timestamps(self, model: StoreModel, drawn: Wanted) -> list[int]:
        """Ascending, behind what the source has; as many as there is room for."""
        held = model.sources.get(drawn.source)
        now = drawn.first if held is None else held.written[-1].timestamp + 1 + drawn.first % 7
        found = [now]
        for step in drawn.steps * drawn.times:
            found.append(found[-1] + step)
        return [timestamp for timestamp in found if timestamp <= END]

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        heads = self.store.heads()
        chosen = data.draw(st.lists(st.sampled_from(list(heads)), unique=True))
        floors = {source: data.draw(st.integers(-1, heads[source].seq)) for source in chosen}
        assert self.store.truncate(floors) == self.model.truncate(floors)

    @rule(data=st.data())
    def truncate_too_far(self, data: st.DataObject) -> None:
        heads = self.store.heads()
        source = data.draw(st.sampled_from(list(heads)))
        others = {other: head.seq for other, head in heads.items() if other != source}
        with pytest.raises(UsageError):
            self.store.truncate({**others, source: heads[source].seq + 1})

    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        source, seq = self.dot(data)
        before = self.model.get(source, seq) if source in self.model.sources else None
        if before is not None:
            self.model.erase(source, seq, "because", seq)
        after = self.model.get(source, seq) if before is not None else None
        assert self.store.erase(source, seq, "because", seq) == after

    @rule(if_needed=st.booleans())
    def compact(self, if_needed: bool) -> None:
        self.store.compact(if_needed=if_needed)

    @precondition(lambda self: hasattr(self.store, "merge_blocks"))
    @rule()
    def merge(self) -> None:
        self.store.merge_blocks()  # type: ignore[attr-defined]
        assert self.store.merge_blocks() == 0, "the second time there is nothing to merge"  # type: ignore[attr-defined]

    @rule(changes=st.dictionaries(ANNOTATED, st.none() | st.binary(max_size=5), max_size=3))
    def annotate(self, changes: dict[bytes, bytes | None]) -> None:
        self.store.annotate(changes)
        self.model.annotate(changes)

    @rule(prefix=st.just(b"") | ANNOTATED, after=st.just(b"") | ANNOTATED, limit=st.none() | st.integers(0, 3))
    def annotations(self, prefix: bytes, after: bytes, limit: int | None) -> None:
        assert list(self.store.annotations(prefix, after, limit)) == self.model.annotations(prefix, after)[:limit]

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule(itself=st.booleans())
    def reopen(self, itself: bool) -> None:
        """Open again, by the same object or by a new one."""
        if itself or not self.durable:
            self.store.reopen()
        else:
            self.scans.clear()
            self.store.close()
            self.store = self.make(self.path)

    # ---- what reads

    def dot(self, data: st.DataObject) -> tuple[str, int]:
        """A dot that is there, was there, or never was."""
        source = data.draw(st.sampled_from([*self.model.sources, "nobody"]))
        high = len(self.model.sources[source].written) if source in self.model.sources else 3
        return source, data.draw(st.integers(0, high + 1))

    def vector(self, data: st.DataObject) -> dict[str, int]:
        heads = {source: len(held.written) for source, held in self.model.sources.items()}
        chosen = data.draw(st.lists(st.sampled_from([*heads, "nobody"]), unique=True))
        return {source: data.draw(st.integers(-1, heads.get(source, 1) + 2)) for source in chosen}

    def bound(self, data: st.DataObject) -> int:
        """A timestamp at or beside one that is there, or at an end."""
        marks = sorted({delta.timestamp for delta in self.model.all()} | {0, END})
        mark: int = data.draw(st.sampled_from(marks))
        return mark + data.draw(EDGE)

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        source, seq = self.dot(data)
        expected = self.model.get(source, seq) if source in self.model.sources else None
        assert self.store.get(source, seq) == expected

    @rule(data=st.data(), page=PAGES, reverse=st.booleans(), left_open=st.booleans())
    def by_source(self, data: st.DataObject, page: int, reverse: bool, left_open: bool) -> None:
        source, after = self.dot(data)
        until = after + data.draw(st.integers(-1, 300))
        after -= data.draw(st.integers(0, 2))
        held = self.model.sources.get(source)
        expected = [] if held is None else self.model.by_source(source, after, until)
        below = held is not None and max(0, after) < min(until, held.floor)
        scan = self.store.by_source(source, after, until, reverse=reverse)
        self.read(scan, "by source", expected[::-1] if reverse else expected, below, page, left_open)

    @rule(data=st.data(), page=PAGES, left_open=st.booleans())
    def since(self, data: st.DataObject, page: int, left_open: bool) -> None:
        after, until = self.vector(data), self.vector(data)
        expected, below = self.model.since(after, until), self.model.below_floor(after, until)
        self.read(self.store.since(after, until), "since", expected, below, page, left_open)

    @rule(data=st.data(), page=PAGES, left_open=st.booleans())
    def between(self, data: st.DataObject, page: int, left_open: bool) -> None:
        after, until = self.bound(data), self.bound(data)
        expected = self.model.between(after, until)
        self.read(self.store.between(after, until), "between", expected, False, page, left_open)

    def read(self, scan: Scan, kind: str, expected: list[Delta], below: bool, page: int, left_open: bool) -> None:
        """Read all at once, or page by page while other rules run."""
        if below:
            with pytest.raises(BelowFloor):
                drained(scan, page)
        elif left_open:
            self.scans.append(OpenScan(scan, kind, expected))
        else:
            assert drained(scan, page) == expected

    @precondition(lambda self: self.scans)
    @rule(data=st.data(), page=PAGES)
    def read_on(self, data: st.DataObject, page: int) -> None:
        held = data.draw(st.sampled_from(self.scans))
        try:
            found = list(held.scan.page(page))
        except BelowFloor:
            assert held.kind != "between"
            left = [delta for delta in held.expected if delta not in held.given]
            assert any(delta.seq <= self.model.sources[delta.source].floor for delta in left), "nothing was dropped"
            self.scans.remove(held)
            return
        held.given += found
        self.check_scan(held, done=not found)
        if not found:
            self.scans.remove(held)

    def check_scan(self, held: OpenScan, done: bool) -> None:
        """What a scan gave so far, up to what erase, truncate and write did meanwhile."""
        given = {delta.dot: delta for delta in held.given}
        assert len(given) == len(held.given), "each once"
        if held.kind != "between":
            assert [delta.dot for delta in held.given] == [delta.dot for delta in held.expected[: len(given)]]
            assert not done or len(given) == len(held.expected)
        else:
            assert held.given == sorted(held.given, key=place)
            kept = [d for d in held.expected if d.seq > self.model.sources[d.source].floor]
            assert not done or {delta.dot for delta in kept} <= given.keys()
        for dot, delta in given.items():
            assert delta in (self.model.sources[dot.source].written[dot.seq - 1], self.model.originals.get(dot))

    @rule(count=st.integers(-1, 30) | st.sampled_from([127, 128, 129, 100_000]))
    def newest(self, count: int) -> None:
        self.model.check_newest(self.store.newest(count), count)

    @rule(data=st.data())
    def hash_at(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(list(self.model.sources)))
        held = self.model.sources[source]
        seq = data.draw(st.integers(max(1, held.floor), len(held.written)))
        assert self.store.hash_at(source, seq) == held.hashes[seq - 1]

    @rule(data=st.data())
    def seqs_at(self, data: st.DataObject) -> None:
        timestamp = self.bound(data)
        assert self.store.seqs_at(timestamp) == self.model.seqs_at(timestamp)

    @rule(page=PAGES)
    def read_all(self, page: int) -> None:
        self.model.check(self.store, max(page, 3))

    # ---- what always holds

    @invariant()
    def holds(self) -> None:
        assert self.store.heads() == self.model.heads()
        assert list(self.store.erasures()) == self.model.erasures()
        assert list(self.store.annotations()) == self.model.annotations()
        self.model.check_sizes(self.store)


def run_store_machine(
    make: Callable[[Path], DeltaStore],
    directory: Path,
    *,
    examples: int,
    steps: int = 30,
    durable: bool = True,
    check: Callable[[DeltaStore], None] = lambda _: None,
) -> None:
    """Run `examples` histories of `steps` rules. `make` opens a store in a directory, empty or of an earlier store.

    durable: a store finds what one before it stored there. check: asked of each store at its end.
    """
    paths = (directory / str(number) for number in count())
    members: Mapping[str, Any] = {
        "make": staticmethod(make),
        "directories": paths,
        "durable": durable,
        "check": staticmethod(check),
    }
    machine = type("Machine", (StoreMachine,), dict(members))
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )
