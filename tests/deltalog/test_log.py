"""DeltaLog: what appending does and leaves behind, deps, closing, options. Reads, receiving, upkeep: in other files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from deltalog.clock import unpack
from deltalog.delta import Limits
from deltalog.errors import LimitExceeded, LogClosed, RingFull, StaleToken, UsageError
from deltalog.log import DeltaLog, LogOptions
from tests.deltalog.memory_log import Rig, collect, remote, seqs, stored, until, values

# ------------------------------------------------------------------------------------------------------------- append


async def test_an_appended_delta_is_visible_at_once() -> None:
    async with Rig().running() as log:
        delta = log.append_nowait({"a": [1, b"x"]}, kind="edit", key="file")
        assert (delta.dot, delta.kind, delta.key, delta.payload) == (("alice", 1), "edit", "file", {"a": [1, b"x"]})
        assert log.heads == {"alice": 1}
        assert await log.get(("alice", 1)) == delta
        assert await log.append("b") == await log.get(("alice", 2))
        assert [delta.seq for delta in await log.append_many("cd")] == [3, 4]
        assert await log.append_many([], durable=True) == []
        assert values(await collect(log.replay())) == [{"a": [1, b"x"]}, "b", "c", "d"]
        assert await log.get(("alice", 5)) is None
        assert await log.get(("bob", 1)) is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "payload too large": ({"payload": b"x" * 101}, "payload is 103 bytes; the limit is 100 bytes"),
    "payload no msgpack": ({"payload": object()}, "payload cannot be encoded as msgpack"),
    "kind too long": ({"payload": 1, "kind": "x" * 11}, "kind is 11 bytes; the limit is 10 bytes"),
    "key too long": ({"payload": 1, "key": "x" * 21}, "key is 21 bytes; the limit is 20 bytes"),
    "key no text": ({"payload": 1, "key": b"x"}, "key must be a string, not bytes"),
    "kind no Unicode": ({"payload": 1, "kind": "\ud800"}, "kind must be valid Unicode"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_leaves_the_log_as_it_was(name: str) -> None:
    arguments, message = REFUSED[name]
    limits = Limits(payload_bytes=100, kind_bytes=10, key_bytes=20)
    async with Rig().running(limits=limits) as log:
        await log.append("a")
        await log.receive([remote("bob", 1, 1)])
        before = log.heads, log.statistics().ring
        for call in (log.append_nowait, log.append):
            with pytest.raises(UsageError, match=message) as caught:
                await call(**arguments)  # type: ignore[misc]
            assert isinstance(caught.value, LimitExceeded) == ("limit" in message)
        assert (log.heads, log.statistics().ring) == before
        delta = await log.append("b")
        assert (delta.seq, dict(delta.deps)) == (2, {"bob": 1}), "neither a seq nor a dep is used up"


async def test_append_many_keeps_what_stands_before_the_one_it_refuses() -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match="payload"):
            await log.append_many(["a", "b", object(), "c"])
        assert values(await collect(log.replay())) == ["a", "b"]


async def test_vectors_are_snapshots() -> None:
    async with Rig().running() as log:
        await log.append("a", durable=True)
        before = (log.heads, log.written, log.synced, log.floor)
        await log.append("b", durable=True)
        await log.truncate(until={"alice": 1})
        assert [dict(vector) for vector in before] == [{"alice": 1}, {"alice": 1}, {"alice": 1}, {}]


# ------------------------------------------------------------------------------------------------- a ring without room


def held(rig: Rig) -> None:
    """Let no commit go on until `release`."""
    rig.offload.before["persist"] = trio.Event()


def release(rig: Rig) -> None:
    rig.offload.before.pop("persist").set()


@pytest.mark.parametrize("options", [{"ring_deltas": 10}, {"ring_bytes": 310}])
async def test_i7_a_ring_full_of_unstored_deltas_takes_no_more(options: dict[str, Any]) -> None:
    rig = Rig()
    async with rig.running(**options) as log:
        held(rig)
        for number in range(10):
            log.append_nowait(number)
        with pytest.raises(RingFull, match="the ring holds 10 deltas that are not stored yet") as caught:
            log.append_nowait(10)
        assert caught.value.retryable
        assert values(await collect(log.replay())) == list(range(10))
        assert log.heads == {"alice": 10}
        release(rig)
        await log.append(10)
        assert log.append_nowait(11).seq == 12
        assert values(await collect(log.replay())) == list(range(12)), "reads go on in the store"
        assert log.statistics().ring.deltas <= 10
        assert log.statistics().ring.bytes <= 310


async def test_a_delta_larger_than_the_ring_has_it_for_itself() -> None:
    async with Rig().running(ring_bytes=50) as log:
        for number in range(5):
            await log.append(bytes([number]) * 100)
        assert log.statistics().ring.deltas == 1
        assert seqs(await collect(log.replay())) == [1, 2, 3, 4, 5]


async def test_appenders_wait_for_room_in_order_and_none_is_forgotten(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 0.005
    mine: dict[str, list[int]] = {name: [] for name in "abcdef"}

    async def appender(log: DeltaLog, name: str) -> None:
        for number in range(30):
            mine[name].append((await log.append([name, number])).seq)

    async with rig.running(ring_deltas=4) as log:
        async with trio.open_nursery() as nursery:
            for name in mine:
                nursery.start_soon(appender, log, name)
            nursery.start_soon(log.append_many, [["many", number] for number in range(50)])
        deltas = await collect(log.replay())
        assert seqs(deltas) == list(range(1, 231))
        assert [delta.timestamp for delta in deltas] == sorted({delta.timestamp for delta in deltas})
        for name, seqs_of_mine in mine.items():
            assert seqs_of_mine == sorted(seqs_of_mine), name
        assert [number for name, number in values(deltas) if name == "many"] == list(range(50))


async def test_a_long_append_many_lets_others_run() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with Rig().running() as log, trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await log.append_many(range(20_000))
        assert turns > 10
        nursery.cancel_scope.cancel()


# --------------------------------------------------------------------------------------------------------------- deps


async def test_deps_are_what_changed_since_the_previous_delta_of_this_node() -> None:
    rig = Rig()
    async with rig.running() as log:
        assert log.append_nowait("a").deps == {}
        await log.receive([remote("bob", 1, 1), remote("bob", 2, 2), remote("carol", 1, 3)])
        assert log.append_nowait("b").deps == {"bob": 2, "carol": 1}
        assert log.append_nowait("c").deps == {}
        receipt = await log.receive([remote("bob", 4, 9), remote("carol", 1, 3)])
        assert (receipt.waiting, receipt.known) == ([("bob", 4)], [("carol", 1)])
        assert log.append_nowait("d").deps == {}, "what waits or was known is nothing new"
        await log.receive([remote("bob", 3, 4)])
        assert log.append_nowait("e").deps == {"bob": 4}
        await log.receive([remote("dave", 1, 1)])
    async with rig.running() as log:
        assert log.append_nowait("f").deps == {"bob": 4, "carol": 1, "dave": 1}, "after an open: all there is"
        assert log.append_nowait("g").deps == {}


async def test_deps_outlast_a_full_ring() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=3) as log:
        await log.receive([remote("bob", 1, 1), remote("carol", 1, 1)])
        await log.flush()
        held(rig)
        log.append_nowait("a")
        await log.receive([remote("bob", 2, 2), remote("carol", 2, 2)])
        for _ in range(3):
            with pytest.raises(RingFull):
                log.append_nowait("b")
        release(rig)
        assert (await log.append("b")).deps == {"bob": 2, "carol": 2}


def sources(count: int) -> Iterator[str]:
    return (f"s{number:02}" for number in range(count))


async def test_what_one_delta_cannot_name_goes_into_context_deltas_before_it() -> None:
    async with Rig().running(limits=Limits(deps_entries=4)) as log:
        await log.receive(remote(source, 1, 1) for source in sources(11))
        delta = await log.append("a", kind="mine")
        own = await collect(log.by_source("alice"))
        assert [(each.kind, len(each.deps)) for each in own] == [
            ("deltalog.context", 4),
            ("deltalog.context", 4),
            ("mine", 3),
        ]
        assert own[-1] == delta
        assert {name: seq for each in own for name, seq in each.deps.items()} == dict.fromkeys(sources(11), 1)


@pytest.mark.parametrize("room", [1, 2])
async def test_context_deltas_lose_no_dep_when_the_ring_fills_between_them(room: int) -> None:
    rig = Rig()
    async with rig.running(limits=Limits(deps_entries=4), ring_deltas=11) as log:
        await log.receive(remote(source, 1, 1) for source in sources(11))
        await log.flush()
        held(rig)
        for number in range(11 - room):
            await log.receive([remote("s00", number + 2, number + 2)])
        with pytest.raises(RingFull):
            log.append_nowait("a", kind="mine")
        release(rig)
        await log.append("a", kind="mine")
        own = await collect(log.by_source("alice"))
        expected = dict.fromkeys(sources(11), 1) | {"s00": 12 - room}
        assert {name: seq for each in own for name, seq in each.deps.items()} == expected
        assert [each.kind for each in own].count("mine") == 1


# ------------------------------------------------------------------------------------------------------------- closing


async def test_closing_while_others_append_stores_what_they_were_told_is_in() -> None:
    rig = Rig()
    appended: list[int] = []
    ended: list[str] = []

    async def appender(log: DeltaLog, durable: bool) -> None:
        try:
            while True:
                appended.append((await log.append("x", durable=durable)).seq)
        except LogClosed:
            ended.append("closed")

    async with trio.open_nursery() as nursery:
        async with rig.running(ring_deltas=8) as log:
            for number in range(6):
                nursery.start_soon(appender, log, number % 2 == 0)
            await until(lambda: len(appended) > 50)
        assert seqs(stored(rig.store.survivor())["alice"]) == sorted(appended)
    assert ended == ["closed"] * 6


async def test_closing_while_others_receive_stores_what_they_were_told_is_applied() -> None:
    rig = Rig()
    applied: list[int] = []

    async def receiver(log: DeltaLog) -> None:
        with suppress(LogClosed):
            for seq in itertools.count(1):
                applied.extend(dot.seq for dot in (await log.receive([remote("bob", seq, seq)])).applied)

    async with trio.open_nursery() as nursery:
        async with rig.running(ring_deltas=4) as log:
            nursery.start_soon(receiver, log)
            await until(lambda: len(applied) > 20)
            heads = log.heads
        assert log.drained
    assert len(applied) >= heads["bob"]
    assert seqs(stored(rig.store.survivor())["bob"], "bob")[: len(applied)] == applied


async def test_a_closed_log_raises() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append("a")
    with pytest.raises(LogClosed):
        log.append_nowait("b")
    for call in (
        lambda: log.append("b"),
        lambda: log.append_many(["b"]),
        log.flush,
        lambda: log.receive([]),
        lambda: log.get(("alice", 1)),
        lambda: log.truncate(until={}),
        lambda: log.erase(("alice", 1), "reason"),
    ):
        with pytest.raises(LogClosed):
            await call()
    for read in (lambda: log.by_source("alice"), log.between, lambda: log.since({}), log.replay, log.subscribe):
        with pytest.raises(LogClosed):
            read()
    assert log.heads == log.synced == {"alice": 1}


async def test_i1_a_log_goes_on_where_it_stopped() -> None:
    rig = Rig()
    for expected in ([1, 2], [3, 4], [5, 6]):
        async with rig.running() as log:
            assert seqs(await log.append_many("xy")) == expected
    assert seqs(stored(rig.store)["alice"]) == [1, 2, 3, 4, 5, 6]


async def test_i6_timestamps_go_on_although_the_wall_clock_jumped_back_while_it_was_closed() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.receive([remote("bob", 1, 30_000)])
        before = await log.append("a")
    rig.wall.ms -= 3_600_000
    async with rig.running() as log:
        after = await log.append("b")
        assert after.timestamp > before.timestamp > remote("bob", 1, 30_000).timestamp
        assert unpack(after.timestamp)[0] == unpack(before.timestamp)[0]


async def test_a_ring_is_filled_with_the_newest_that_fit() -> None:
    rig = Rig()
    async with rig.running() as log:
        for size in (100, 10, 300, 10, 10):
            await log.append(bytes(size))
    async with rig.running(ring_bytes=200) as log:
        assert log.statistics().ring.deltas == 2
        await log.append("x")
        assert seqs(await collect(log.replay())) == [1, 2, 3, 4, 5, 6]
    async with rig.running(ring_deltas=3) as log:
        assert log.statistics().ring.deltas == 3


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ring_deltas": 0}, "options.ring_deltas must be an integer of at least 1, not 0"),
        ({"ring_bytes": 1.5}, "options.ring_bytes must be an integer of at least 1, not 1.5"),
        ({"inbox_deltas": -1}, "options.inbox_deltas must be an integer of at least 0, not -1"),
        ({"inbox_bytes": "1"}, "options.inbox_bytes must be an integer of at least 0, not '1'"),
        ({"drift_ms": -1}, "options.drift_ms must be an integer of at least 0, not -1"),
        ({"sync_interval_s": -0.1}, "options.sync_interval_s must be a number of at least 0, not -0.1"),
        ({"sync_interval_s": float("nan")}, "options.sync_interval_s must be a number of at least 0, not nan"),
        ({"sync_interval_s": "1"}, "options.sync_interval_s must be a number of at least 0, not '1'"),
    ],
)
def test_options_name_what_they_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LogOptions(**options)
    with pytest.raises(UsageError, match=message):
        attrs.evolve(LogOptions(), **options)


# --------------------------------------------------------------------------------------------------------------- fence


async def test_i12_a_stale_token_appends_nothing() -> None:
    async with Rig().running() as log:
        assert log.append_nowait("first", key="a", fence=5).seq == 1
        assert (await log.append("again", key="a", fence=5)).seq == 2
        assert [delta.seq for delta in await log.append_many("xy", key="a", fence=7)] == [3, 4]
        before = log.heads
        with pytest.raises(StaleToken, match="token 6 for 'a' is stale: 7 was seen"):
            log.append_nowait("late", key="a", fence=6)
        with pytest.raises(StaleToken):
            await log.append("late", key="a", fence=6)
        with pytest.raises(StaleToken):
            await log.append_many(["late"], key="a", fence=6)
        assert log.heads == before
        assert log.append_nowait("other key", key="b", fence=6).seq == 5
        assert log.append_nowait("no lease", key="a").seq == 6


async def test_i12_tokens_of_an_earlier_start_are_stale_for_every_key() -> None:
    async with Rig().running() as log:
        log.guard.raise_floor(1001)
        with pytest.raises(StaleToken):
            log.append_nowait("late", key="never seen", fence=1000)
        assert log.append_nowait("now", key="never seen", fence=1001).seq == 1


@pytest.mark.parametrize(("key", "fence", "named"), [("", 1, "key"), ("k" * 1025, 1, "key"), ("a", 0, "token")])
async def test_a_fence_that_is_none_is_refused(key: str, fence: Any, named: str) -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match=named):
            log.append_nowait("x", key=key, fence=fence)
        assert log.heads == {}
        assert len(log.guard) == 0
