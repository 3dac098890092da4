"""Reads over ring and store: by source, by time, since a vector; without a seam whatever happens meanwhile (I4)."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.clock import pack
from deltalog.delta import SEQ_MAX, TIMESTAMP_MAX, Delta
from deltalog.errors import BelowFloor, ScanTruncated, StoreFull, UsageError
from deltalog.log import DeltaLog
from deltalog.reader import Stream
from tests.deltalog.memory_log import NOON_MS, Rig, collect, remote, seqs, until, values

SOURCES = ("alice", "bob", "carol", "dan")
LATE_MS = {"bob": 0, "carol": 100, "dan": 5000}
"""How old the deltas of a source are when they arrive."""


def in_order(deltas: list[Delta]) -> list[Delta]:
    return sorted(deltas, key=lambda delta: (delta.timestamp, delta.source))


async def fill(rig: Rig, log: DeltaLog, seed: int, count: int) -> list[Delta]:
    """Append and receive about `count` deltas of four sources, some late, letting the writer run now and then."""
    rng = random.Random(seed)
    made: list[Delta] = []
    while len(made) < count:
        rig.wall.ms += 5
        source = rng.choice(SOURCES)
        number = rng.randint(1, 5)
        if source == "alice":
            made += await log.append_many(range(number))
        else:
            seq, ms = log.heads.get(source, 0) + 1, rig.wall.ms - NOON_MS - LATE_MS[source]
            deltas = [remote(source, seq + step, ms + step) for step in range(number)]
            assert len((await log.receive(deltas)).applied) == len(deltas)
            made += deltas
        for _ in range(rng.choice((0, 0, 3, 20))):
            await trio.lowlevel.checkpoint()
    return made


def random_vector(rng: random.Random, heads: Mapping[str, int]) -> dict[str, int]:
    """Some of the heads, each somewhere from 0 to a little beyond, and a source that nobody knows."""
    vector = {source: rng.randint(0, seq + 2) for source, seq in heads.items() if rng.random() < 0.8}
    return vector | ({"nobody": 7} if rng.random() < 0.3 else {})


# -------------------------------------------------------------------------------------------------------- since, replay


@pytest.mark.parametrize("ring", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("seed", [1, 2])
async def test_i4_since_gives_exactly_what_is_missing_while_a_writer_keeps_going(ring: int, seed: int) -> None:
    rig = Rig()
    rng = random.Random(seed)
    async with rig.running(ring_deltas=ring) as log:
        made = await fill(rig, log, seed, 200)
        async with trio.open_nursery() as nursery:

            async def keep_going() -> None:
                made.extend(await fill(rig, log, seed + 1, 10_000))

            nursery.start_soon(keep_going)
            for _ in range(40):
                vector = random_vector(rng, log.heads)
                stream, heads = log.since(vector), log.heads
                found: list[Delta] = []
                while page := await stream.page(rng.choice((1, 3, 50, 1000))):
                    found += page
                    for _ in range(rng.choice((0, 1, 5))):
                        await trio.lowlevel.checkpoint()
                dots = [delta.dot for delta in found]
                assert found == in_order(found)
                assert sorted(dots) == sorted(
                    (source, seq)
                    for source, head in heads.items()
                    for seq in range(vector.get(source, 0) + 1, head + 1)
                )
                some = found[:: max(1, len(found) // 5)]
                assert [await log.get(delta.dot) for delta in some] == some
            nursery.cancel_scope.cancel()


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 20]), st.integers(1, 60))
def test_i4_every_read_is_the_same_over_ring_and_store_as_over_a_list(seed: int, ring: int, count: int) -> None:
    async def main() -> None:
        rig, rng = Rig(), random.Random(seed)
        rig.store.page_size = lambda _count: rng.randint(1, 7)
        async with rig.running(ring_deltas=ring) as log:
            made = in_order(await fill(rig, log, seed, count))
            heads = log.heads
            assert await collect(log.replay(), rng.randint(1, 9)) == made
            assert [delta async for delta in log.replay()] == made
            vector = random_vector(rng, heads)
            missing = [delta for delta in made if delta.seq > vector.get(delta.source, 0)]
            assert await collect(log.since(vector), rng.randint(1, 9)) == missing
            times = [delta.timestamp for delta in made] + [0, TIMESTAMP_MAX]
            after, last = rng.choice(times) + rng.randint(-1, 1), rng.choice(times)
            within = [delta for delta in made if after < delta.timestamp <= last]
            assert await collect(log.between(after, last), rng.randint(1, 9)) == within
            source = rng.choice(SOURCES)
            low, high = sorted((rng.randint(0, 30), rng.randint(0, 30)))
            run = [delta for delta in made if delta.source == source and low < delta.seq <= high]
            assert await collect(log.by_source(source, after=low, until=high), rng.randint(1, 9)) == run
            backwards = log.by_source(source, after=low, until=high, reverse=True)
            assert await collect(backwards, rng.randint(1, 9)) == run[::-1]
            assert [await log.get(delta.dot) for delta in made] == made

    trio.run(main)


async def test_replay_gives_causes_before_effects() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=5) as log:
        for round_no in range(1, 30):
            own = await log.append("cause")
            rig.wall.ms += 1
            ms = rig.wall.ms - NOON_MS
            await log.receive([remote("bob", round_no, ms, {"alice": own.seq})])
        held: dict[str, int] = {}
        async for delta in log.replay():
            assert all(held.get(source, 0) >= seq for source, seq in delta.deps.items())
            assert delta.seq == held.get(delta.source, 0) + 1
            held[delta.source] = delta.seq
        assert held == log.heads


# -------------------------------------------------------------------------------------------------------------- by time


async def test_between_ends_although_a_writer_keeps_going() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=50) as log, trio.open_nursery() as nursery:
        await log.append_many(range(200))
        nursery.start_soon(fill, rig, log, 1, 10**9)
        await until(lambda: len(log.heads) == 4)
        for _ in range(8):
            stream, heads = log.between(), log.heads
            found = await collect(stream, 10)
            assert found == in_order(found)
            assert {delta.dot for delta in found} == {
                (source, seq) for source, head in heads.items() for seq in range(1, head + 1)
            }
            assert len(found) == sum(heads.values())
        nursery.cancel_scope.cancel()


async def test_between_leaves_out_what_arrived_after_it_began() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4) as log:
        await log.receive([remote("bob", seq, 10 * seq) for seq in range(1, 11)])
        stream = log.between()
        first = await stream.page(2)
        await log.receive([remote("carol", seq, 10 * seq + 5) for seq in range(1, 11)])
        await log.append_many(range(500))
        await log.flush()
        pages = rig.store.faults.calls["page"]
        assert seqs([*first, *await collect(stream, 10)], "bob") == list(range(1, 11))
        assert rig.store.faults.calls["page"] - pages <= 4, "nor does it read on to the end of the store"
        assert len(await collect(log.between())) == 520
        assert seqs(await collect(log.between(pack(NOON_MS + 20), pack(NOON_MS + 30))), "bob") == [3]


async def test_between_goes_on_behind_a_page_of_nothing_but_what_arrived_after_it_began() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4) as log:
        await log.receive([remote("bob", seq, ms) for seq, ms in enumerate((10, 20, 30, 1000), start=1)])
        await log.flush()
        stream = log.between()
        found = list(await stream.page(2))
        await log.receive([remote("carol", seq, 30 + seq) for seq in range(1, 21)])
        await log.flush()
        pages = rig.store.faults.calls["page"]
        found += await collect(stream, 3)
        assert [delta.dot for delta in found] == [("bob", seq) for seq in range(1, 5)]
        assert rig.store.faults.calls["page"] - pages > 20 // 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: log.between(after=-2), "after must be a timestamp, not -2"),
        (lambda log: log.between(after="now"), "after must be a timestamp, not 'now'"),
        (lambda log: log.between(until=-1), "until must be an integer from 0 to 18446744073709551615, not -1"),
        (lambda log: log.between(until=True), "until must be an integer"),
        (lambda log: log.by_source("alice", after=-1), "after must be an integer from 0"),
        (
            lambda log: log.by_source("alice", until=1.0),
            "until must be an integer from 0 to 9223372036854775807, not 1.0",
        ),
        (lambda log: log.since({"alice": -1}), "seq of source 'alice' is -1"),
        (lambda log: log.since({1: 1}), "source must be a str, not int"),
        (lambda log: log.subscribe({"alice": "1"}), "seq of source 'alice' must be an int"),
    ],
)
async def test_a_wrong_question_names_the_argument(call: Callable[[DeltaLog], object], message: str) -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match=message):
            call(log)


# ------------------------------------------------------------------------------------------------------------ the floor


async def truncated(rig: Rig, log: DeltaLog) -> None:
    """Twenty of this node, ten of bob; 1..8 and 1..3 dropped."""
    await log.append_many(range(20))
    await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
    await log.flush()
    assert (await log.truncate(until={"alice": 8, "bob": 3})).dropped == 11


@pytest.mark.parametrize("ring", [4, 1000])
async def test_i4_reads_below_the_floor_say_so(ring: int) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=ring) as log:
        await truncated(rig, log)
        assert log.floor == {"alice": 8, "bob": 3}
        for read, missing in (
            (lambda: log.since({}), {"alice": 0, "bob": 0}),
            (lambda: log.since({"alice": 7, "bob": 3}), {"alice": 7}),
            (lambda: log.subscribe({"alice": 20}), {"bob": 0}),
            (lambda: log.by_source("alice", after=0), {"alice": 0}),
            (lambda: log.by_source("alice", after=7, until=8), {"alice": 7}),
            (lambda: log.by_source("alice", after=7, reverse=True), {"alice": 7}),
        ):
            with pytest.raises(BelowFloor) as caught:
                read()
            assert caught.value.missing == missing
            assert caught.value.floor == {source: log.floor[source] for source in caught.value.floor}
        with pytest.raises(BelowFloor, match="'alice': has 7, floor 8"):
            log.since({"alice": 7, "bob": 3})
        assert seqs(await collect(log.since({"alice": 8, "bob": 3}))) == list(range(9, 21))
        assert seqs(await collect(log.by_source("alice", after=8))) == list(range(9, 21))
        assert seqs(await collect(log.by_source("alice"))) == list(range(9, 21)), "from the floor, if nothing is said"
        assert seqs(await collect(log.by_source("alice", reverse=True))) == list(range(20, 8, -1))
        assert await collect(log.by_source("alice", after=3, until=3)) == []
        assert seqs(await collect(log.between()), "bob") == list(range(4, 11))
        assert seqs(await collect(log.replay()), "bob") == list(range(4, 11))
        assert await log.get(("alice", 8)) is None
        assert (await log.get(("alice", 9))) is not None


async def test_a_stream_that_did_not_begin_finds_its_deltas_dropped() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4) as log:
        await log.append_many(range(20))
        await log.flush()
        since, by_source, between = log.since({}), log.by_source("alice"), log.between()
        await log.truncate(until={"alice": 8})
        for stream in (since, by_source):
            with pytest.raises(BelowFloor):
                await stream.page()
        assert seqs(await collect(between)) == list(range(9, 21))


# -------------------------------------------------------------------------------------------------------------- streams


KINDS = ["replay", "since", "until", "by_source", "reverse", "between"]


def streams(log: DeltaLog) -> dict[str, Stream]:
    """Every kind of read, each over more than the ring holds."""
    return {
        "replay": log.replay(),
        "since": log.since({"alice": 2}),
        "until": log.since({"alice": 2}, {"alice": 38}),
        "by_source": log.by_source("alice", after=2),
        "reverse": log.by_source("alice", reverse=True),
        "between": log.between(),
    }


@pytest.mark.parametrize("ring", [5, 1000])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_loop_left_in_the_middle_goes_on_where_it_stopped(kind: str, ring: int) -> None:
    async with Rig().running(ring_deltas=ring) as log:
        await log.append_many(range(40))
        whole = await collect(streams(log)[kind])
        stream = streams(log)[kind]
        found: list[Delta] = []
        for stop in (3, 4, 17):
            async for delta in stream:
                found.append(delta)
                if len(found) >= stop:
                    break
        assert found == whole[:17]
        found += await stream.page(2)
        assert found == whole[:19]
        async for delta in stream:
            found.append(delta)
        assert found == whole
        assert await stream.page() == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
async def test_i13_a_read_holds_the_floor_until_it_ends_or_is_dropped(kind: str) -> None:
    async with Rig().running(ring_deltas=5) as log:
        await log.append_many(range(40))
        await log.flush()
        stream = streams(log)[kind]
        assert not stream.active
        async for _ in stream:
            break
        result = await log.truncate(until={"alice": 10})
        needless = 2 if kind in ("until", "by_source") else 0
        floor = {"alice": 2} if needless else {}
        assert (result.dropped, dict(result.floor), dict(result.held)) == (needless, floor, {"alice": 10})
        rest = await collect(stream)
        assert not stream.active
        assert len(rest) > 30
        another = streams(log)[kind]
        async for _ in another:
            break
        del another
        gc.collect()
        result = await log.truncate(until={"alice": 10})
        assert (result.dropped, dict(result.floor), dict(result.held)) == (10 - needless, {"alice": 10}, {})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_that_failed_is_read_again(kind: str) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=5) as log:
        await log.append_many(range(40))
        whole = await collect(streams(log)[kind])
        stream = streams(log)[kind]
        found = list(await stream.page(3))
        rig.store.faults.fail("page", ScanTruncated, times=2)
        for _ in range(2):
            with pytest.raises(ScanTruncated):
                await stream.page(3)
        assert found + await collect(stream, 3) == whole


async def test_reads_go_on_while_the_log_is_read_only(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=10) as log:
        await log.append_many(range(40))
        await log.flush()
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        for number in range(40, 45):
            log.append_nowait(number)
        await trio.sleep(0.1)
        assert log.statistics().writer.read_only
        assert values(await collect(log.replay())) == list(range(45))
        assert seqs(await collect(log.by_source("alice", after=20, reverse=True))) == list(range(45, 20, -1))
        assert await log.get(("alice", 1)) is not None
        rig.disk.room = True


async def test_every_page_is_a_checkpoint() -> None:
    async with Rig().running() as log:
        await log.append_many(range(10))
        reads: list[Callable[[], Awaitable[object]]] = [stream.page for stream in streams(log).values()]
        reads += [log.subscribe({}).page, partial(log.get, ("alice", 1))]
        for call in reads:
            with trio.testing.assert_checkpoints():
                await call()


async def test_questions_beyond_what_there_is_are_answered_with_nothing() -> None:
    async with Rig().running() as log:
        assert await collect(log.replay()) == await collect(log.between()) == await collect(log.since({"x": 9})) == []
        await log.append_many(range(3))
        assert await collect(log.by_source("nobody")) == []
        assert await collect(log.by_source("alice", after=3)) == []
        assert await collect(log.by_source("alice", after=SEQ_MAX)) == []
        assert await collect(log.by_source("alice", after=2, until=1)) == []
        assert seqs(await collect(log.by_source("alice", until=SEQ_MAX))) == [1, 2, 3]
        assert await collect(log.between(TIMESTAMP_MAX)) == []
        assert await collect(log.between(until=0)) == []
