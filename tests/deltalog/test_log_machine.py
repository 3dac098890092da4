"""Model test (T6): a log against plain lists, through appends, receives, upkeep, every read, re-opens and crashes.

The machine runs in a worker thread and calls into one trio run, where the log lives in a task of its own, so that its
writer goes on between the steps. Two nodes: one on RocksDB in real threads, one on a memory store in one thread.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.log import DeltaLog
from deltalog.reader import Stream
from deltalog.subscription import Subscription
from tests.conftest import Rounds
from tests.deltalog.memory_log import collect, covers
from tests.deltalog.nodes import MemoryNode, Node, RocksNode

REMOTE = ("bob", "carol")


class Host:
    """Runs the calls of a machine in the trio run, and holds its log open there."""

    def __init__(self, nursery: trio.Nursery, make: Callable[[], Node]) -> None:
        self.make = make
        self._nursery = nursery
        self._leave = trio.Event()
        self._left = trio.Event()

    def open(self, node: Node, ring: int) -> DeltaLog:
        async def start() -> DeltaLog:
            log: DeltaLog = await self._nursery.start(self._hold, node, ring)
            return log

        opened: DeltaLog = self.call(start)
        return opened

    def close(self) -> None:
        async def end() -> None:
            self._leave.set()
            await self._left.wait()

        self.call(end)

    def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def bounded() -> Any:
            with trio.fail_after(60):
                return await function(*args)

        return trio.from_thread.run(bounded)

    async def _hold(self, node: Node, ring: int, *, task_status: trio.TaskStatus[DeltaLog]) -> None:
        self._leave, self._left = trio.Event(), trio.Event()
        try:
            async with node.opened(ring) as log:
                task_status.started(log)
                await self._leave.wait()
        finally:
            self._left.set()


# -------------------------------------------------------------------------------------------------------------- machine


def in_order(deltas: list[Delta]) -> list[Delta]:
    return sorted(deltas, key=lambda delta: (delta.timestamp, delta.source))


class LogMachine(RuleBasedStateMachine):
    """The model: what is held of each source, the floors, what waits, what was acknowledged as durable."""

    host: Host

    @initialize(seed=st.integers(0, 2**32), ring=st.sampled_from([1, 3, 16, 1000]))
    def begin(self, seed: int, ring: int) -> None:
        self.rng = random.Random(seed)
        self.ring = ring
        self.held: dict[str, list[Delta]] = {}
        self.floors: dict[str, int] = {}
        self.made: dict[str, list[Delta]] = {source: [] for source in REMOTE}
        self.waiting: dict[tuple[str, int], Delta] = {}
        self.durable: dict[str, int] = {}
        self.erased = 0
        self.stream: tuple[Stream, list[Delta]] | None = None
        self.subscription: Subscription | None = None
        self.node = self.host.make()
        self.log = self.host.open(self.node, ring)

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.drop_readers()
            self.host.close()

    def do(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return self.host.call(function, *args)

    def nowait(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(function, *args)

    # ---- the model

    @property
    def heads(self) -> dict[str, int]:
        return {source: self.floors.get(source, 0) + len(deltas) for source, deltas in self.held.items()}

    def everything(self) -> list[Delta]:
        return in_order([delta for deltas in self.held.values() for delta in deltas])

    def admit(self, delta: Delta) -> None:
        assert delta.seq == self.heads.get(delta.source, 0) + 1
        self.held.setdefault(delta.source, []).append(delta)

    def vector(self) -> dict[str, int]:
        """A random one that no read refuses."""
        return {
            source: self.rng.randint(self.floors.get(source, 0), head + 1)
            for source, head in self.heads.items()
            if self.rng.random() < 0.8 or self.floors.get(source)
        }

    def drop_readers(self) -> None:
        self.stream = self.subscription = None

    # ---- changes

    @rule(count=st.integers(1, 40), durable=st.booleans())
    def append(self, count: int, durable: bool) -> None:
        payloads = [self.rng.randbytes(self.rng.choice((3, 30, 300))) for _ in range(count)]
        deltas = self.do(lambda: self.log.append_many(payloads, key="k", durable=durable))
        assert [delta.payload for delta in deltas] == payloads
        for delta in deltas:
            self.admit(delta)
        if durable:
            self.durable = self.heads

    @rule(source=st.sampled_from(REMOTE), count=st.integers(1, 5), shuffled=st.booleans())
    def receive(self, source: str, count: int, shuffled: bool) -> None:
        """New deltas of a source, and some that it made before, maybe out of order."""
        for _ in range(count):
            self.make(source)
        batch = self.rng.sample(self.made[source], min(len(self.made[source]), count + 2))
        if not shuffled:
            first = self.heads.get(source, 0)
            batch = self.made[source][max(0, first - 1) : first + count]
        receipt = self.do(self.log.receive, batch)
        applied, known, waiting = self.decide(batch)
        assert receipt.refused == []
        assert (sorted(receipt.applied), sorted(receipt.known)) == (sorted(applied), sorted(known))
        assert sorted(receipt.waiting) == sorted(waiting)

    def make(self, source: str) -> None:
        """Let a remote source write one delta, knowing some of what may have left this node (invariant I3)."""
        made = self.made[source]
        synced = {
            name: seq for name, seq in self.log.synced.items() if name != source and seq > self.floors.get(name, 0)
        }
        deps = {name: synced[name] for name in self.rng.sample(sorted(synced), self.rng.randint(0, len(synced)))}
        causes = [self.held[name][seq - self.floors.get(name, 0) - 1].timestamp for name, seq in deps.items()]
        causes += [delta.timestamp for delta in made[-1:]]
        made.append(build(source, len(made) + 1, max(causes, default=0) + 1, self.rng.randbytes(20), deps=deps))

    def decide(self, batch: list[Delta]) -> tuple[list[Any], list[Any], list[Any]]:
        applied: list[Any] = []
        known: list[Any] = []
        waiting: list[Any] = []
        for delta in batch:
            if delta.seq <= self.heads.get(delta.source, 0):
                known.append(delta.dot)
                continue
            self.waiting[delta.dot] = delta
            applied += self.settle()
            if delta.dot in self.waiting:
                waiting.append(delta.dot)
        return applied, known, waiting

    def settle(self) -> Iterator[tuple[str, int]]:
        """Apply what can be, until nothing can."""
        while ready := [delta for delta in self.waiting.values() if self.may_apply(delta)]:
            for delta in ready:
                del self.waiting[delta.dot]
                self.admit(delta)
                yield delta.dot

    def may_apply(self, delta: Delta) -> bool:
        return delta.seq == self.heads.get(delta.source, 0) + 1 and covers(self.heads, delta.deps)

    @rule()
    def flush(self) -> None:
        self.do(self.log.flush)
        self.durable = self.heads

    @rule(share=st.floats(0, 1.2))
    def truncate(self, share: float) -> None:
        until = {source: int(head * share) for source, head in self.heads.items()}
        before, synced = dict(self.floors), dict(self.log.synced)
        result = self.do(lambda: self.log.truncate(until=until))
        limits = (self.allowed(until, synced), self.allowed(until, dict(self.log.synced)))
        self.floors = dict(result.floor)
        assert covers(self.floors, limits[0]), "what nobody holds goes"
        assert covers(limits[1], self.floors), "and nothing else"
        for source, deltas in self.held.items():
            del deltas[: self.floors.get(source, 0) - before.get(source, 0)]
        assert result.dropped == sum(self.floors.values()) - sum(before.values())

    def allowed(self, until: Mapping[str, int], synced: Mapping[str, int]) -> dict[str, int]:
        """The floor that a truncation may reach."""
        if self.stream is not None:
            until = {}
        if self.subscription is not None:
            position = self.subscription.position
            until = {source: min(seq, position.get(source, 0)) for source, seq in until.items()}
        wanted = {source: min(seq, synced.get(source, 0)) for source, seq in until.items()}
        reached = {source: max(wanted.get(source, 0), self.floors.get(source, 0)) for source in self.heads}
        return {source: seq for source, seq in reached.items() if seq}

    @precondition(lambda self: any(self.held.values()))
    @rule()
    def erase(self) -> None:
        old = self.rng.choice(self.everything())
        new = self.do(self.log.erase, old.dot, "reason")
        deltas = self.held[old.source]
        deltas[old.seq - self.floors.get(old.source, 0) - 1] = new
        self.erased += not old.erased
        assert (new.dot, new.erased, new.payload) == (old.dot, True, None)
        self.stream = None  # what it has read ahead is from before

    @rule()
    def compact(self) -> None:
        self.do(self.log.compact)

    # ---- reads

    @rule()
    def replay(self) -> None:
        assert self.do(collect, self.log.replay()) == self.everything()

    @rule(page=st.sampled_from([5, 40, 1000]))
    def since(self, page: int) -> None:
        vector = self.vector()
        missing = [delta for delta in self.everything() if delta.seq > vector.get(delta.source, 0)]
        assert self.do(collect, self.nowait(self.log.since, vector), page) == missing

    @rule(page=st.sampled_from([5, 40, 1000]))
    def between(self, page: int) -> None:
        times = [0, *(delta.timestamp for delta in self.everything())]
        after, until = self.rng.choice(times) - self.rng.randint(0, 1), self.rng.choice(times)
        within = [delta for delta in self.everything() if after < delta.timestamp <= until]
        assert self.do(collect, self.nowait(self.log.between, after, until), page) == within

    @rule(page=st.sampled_from([5, 40, 1000]), reverse=st.booleans())
    def by_source(self, page: int, reverse: bool) -> None:
        for source, deltas in self.held.items():
            after = self.rng.randint(self.floors.get(source, 0), self.heads[source])
            until = self.rng.randint(0, self.heads[source] + 2)
            run = [delta for delta in deltas if after < delta.seq <= until]
            stream = self.nowait(
                lambda s=source, a=after, u=until: self.log.by_source(s, after=a, until=u, reverse=reverse)
            )
            assert self.do(collect, stream, page) == run[:: -1 if reverse else 1]

    @rule()
    def get(self) -> None:
        for source, head in self.heads.items():
            seq = self.rng.randint(0, head + 1)
            index = seq - self.floors.get(source, 0) - 1
            expected = self.held[source][index] if 0 <= index < len(self.held[source]) else None
            assert self.do(self.log.get, (source, seq)) == expected

    @rule(kind=st.sampled_from(["replay", "between"]))
    def begin_read(self, kind: str) -> None:
        stream = self.nowait(getattr(self.log, kind))
        expected = self.everything()
        self.stream = stream, expected[len(begun) :] if (begun := self.do(stream.page, 2)) else []
        assert begun == expected[: len(begun)]
        if not begun:
            self.stream = None

    @precondition(lambda self: self.stream is not None)
    @rule()
    def end_read(self) -> None:
        assert self.stream is not None
        stream, expected = self.stream
        assert self.do(collect, stream, 7) == expected
        self.stream = None

    @rule(durable=st.booleans())
    def subscribe(self, durable: bool) -> None:
        self.subscription = self.nowait(lambda: self.log.subscribe(self.vector(), durable=durable))

    @precondition(lambda self: self.subscription is not None)
    @rule(count=st.sampled_from([5, 40, 1000]))
    def follow(self, count: int) -> None:
        """Everything up to the heads of now, in pages."""
        assert self.subscription is not None
        self.do(self.log.flush)
        reached = dict(self.subscription.position)
        while not covers(reached, self.heads):
            for delta in self.do(self.subscription.page, count):
                assert delta.seq == reached.get(delta.source, 0) + 1
                assert delta == self.held[delta.source][delta.seq - self.floors.get(delta.source, 0) - 1]
                reached[delta.source] = delta.seq
        assert self.subscription.position == reached

    # ---- the end, and what comes after it

    @rule(ring=st.sampled_from([1, 3, 16, 1000]), unsynced=st.none() | st.integers(0, 5))
    def reopen(self, ring: int, unsynced: int | None) -> None:
        """Closed in order, or after a crash."""
        self.drop_readers()
        if unsynced is not None:
            self.crash(ring, unsynced)
            return
        self.host.close()
        self.durable = self.heads
        self.log = self.host.open(self.node, ring)
        self.waiting.clear()

    def crash(self, ring: int, unsynced: int) -> None:
        promised = self.log.written if self.node.survives_kill else self.log.synced
        self.nowait(self.node.crash, unsynced)
        self.host.close()
        self.log = self.host.open(self.node, ring)
        self.waiting.clear()
        left = self.log.heads
        assert covers(left, promised), "test_i2: nothing promised is missing"
        assert covers(self.heads, left)
        self.floors = dict(self.log.floor)  # of a truncation that was not synced nothing is promised
        assert self.log.source not in self.heads, "test_i1: a new incarnation"
        self.held = {source: [] for source in left}
        for delta in self.do(collect, self.log.replay()):
            self.admit(delta)

    @invariant()
    def vectors(self) -> None:
        if hasattr(self, "log"):
            assert dict(self.log.heads) == self.heads
            assert dict(self.log.floor) == self.floors
            written, synced = self.log.written, self.log.synced
            assert covers(self.heads, written)
            assert covers(written, synced)
            assert covers(synced, self.durable)


async def run_machine(make: Callable[[], Node], examples: int, steps: int) -> None:
    async with trio.open_nursery() as nursery:

        class Machine(LogMachine):
            host = Host(nursery, make)

        chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
        await trio.to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=chosen))


async def test_i2_a_log_in_memory_against_lists(rounds: Rounds) -> None:
    await run_machine(MemoryNode, rounds(60, nightly=20_000), 50)


async def test_i2_a_log_on_rocksdb_against_lists(rounds: Rounds, tmp_path_factory: pytest.TempPathFactory) -> None:
    def make() -> Node:
        return RocksNode(tmp_path_factory.mktemp("log") / "data")

    await run_machine(make, rounds(7, nightly=4_000), 50)
