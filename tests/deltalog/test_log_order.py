"""DeltaLog: `order` and `conflicts` against what each writer really held."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.clock import pack
from deltalog.errors import BelowFloor, UsageError
from deltalog.log import DeltaLog
from deltalog.retention import Retention
from deltalog.version import Dot, Order
from tests.deltalog.memory_log import NOON_MS, Rig, remote
from tests.models import conflicts_of
from tests.strategies import History, histories

ME = "\1me"


def expected(history: History, a: Dot, b: Dot) -> Order:
    if a == b:
        return Order.EQUAL
    if a in history.held[b]:
        return Order.BEFORE
    return Order.AFTER if b in history.held[a] else Order.CONCURRENT


@given(histories(most=8), st.sampled_from([1, 3, 100]))
def test_order_says_who_knew_whom(history: History, ring: int) -> None:
    async def main() -> None:
        async with Rig().running(ME, ring_deltas=ring) as log:
            assert len((await log.receive(history.deltas)).applied) == len(history.deltas)
            for a in history.held:
                for b in history.held:
                    assert await log.order(a, b) == expected(history, a, b), (a, b)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@given(histories(most=12), st.data())
def test_order_of_what_a_retention_left_is_the_same_or_says_that_it_cannot_be_told(
    history: History, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(history.deltas)))

    async def main() -> None:
        async with Rig().running(ME, ring_deltas=100) as log:
            await log.receive(history.deltas)
            await log.flush()
            await log.truncate(retention=Retention(max_deltas=keep))
            left = [dot for dot in history.held if dot.seq > log.floor.get(dot.source, 0)]
            assert len(left) >= keep
            for a in left:
                for b in left:
                    try:
                        assert await log.order(a, b) == expected(history, a, b), (a, b)
                    except BelowFloor:
                        assert log.floor.get(a.source) or log.floor.get(b.source)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_this_node_s_own_deltas_have_an_order_too() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=3) as log:
        first = await log.append("first")
        await log.receive([remote("bob", 1, -5), remote("carol", 1, 1, {"alice": 1})])
        second = await log.append("second")
        await log.append_many(range(600))
        late = await log.append("late")
        assert await log.order(first.dot, second.dot) is Order.BEFORE
        assert await log.order(late.dot, first.dot) is Order.AFTER
        assert await log.order(first.dot, ("bob", 1)) is Order.CONCURRENT
        assert await log.order(("carol", 1), first.dot) is Order.AFTER
        assert await log.order(("bob", 1), second.dot) is Order.BEFORE
        assert await log.order(late.dot, ("bob", 1)) is Order.AFTER, "found far back"
        assert await log.order(("carol", 1), ("bob", 1)) is Order.CONCURRENT


async def test_what_a_closed_log_knew_it_still_knows_after_an_open() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.receive([remote("bob", 1, 1)])
        await log.append("a")
        await log.receive([remote("bob", 2, 2)])
    async with rig.running() as log:
        await log.append("b")
        assert await log.order(("bob", 1), ("alice", 1)) is Order.BEFORE
        assert await log.order(("bob", 2), ("alice", 1)) is Order.CONCURRENT
        assert await log.order(("bob", 2), ("alice", 2)) is Order.BEFORE, (
            "not named at the time, so named after the open"
        )


async def test_order_of_what_is_not_here_is_refused() -> None:
    async with Rig().running() as log:
        await log.append_many(range(4), durable=True)
        await log.truncate(until={"alice": 2})
        for a, b in ((("alice", 3), ("alice", 5)), (("bob", 1), ("alice", 3)), (("alice", 0), ("alice", 3))):
            with pytest.raises(UsageError, match="there is no delta"):
                await log.order(a, b)
        with pytest.raises(BelowFloor, match="'alice': has 1, floor 2"):
            await log.order(("alice", 2), ("alice", 3))


async def test_order_says_so_when_what_decides_was_dropped() -> None:
    async with Rig().running() as log:
        await log.receive([remote("bob", 1, 10), remote("carol", 1, 20, {"bob": 1}), remote("carol", 2, 30)])
        await log.flush()
        assert await log.order(("bob", 1), ("carol", 2)) is Order.BEFORE
        await log.truncate(until={"carol": 1})
        with pytest.raises(BelowFloor, match="'carol'"):
            await log.order(("bob", 1), ("carol", 2))


# ----------------------------------------------------------------------------------------------------------- conflicts


async def found(log: DeltaLog, after: int = -1, until: int = pack(NOON_MS)) -> set[tuple[Dot, Dot]]:
    return {(conflict.first.dot, conflict.second.dot) async for conflict in log.conflicts(after, until)}


@given(histories(), st.sampled_from([1, 100]), st.integers(-1, 20), st.integers(0, 40))
def test_conflicts_are_concurrent_deltas_on_one_key(history: History, ring: int, after: int, until: int) -> None:
    async def main() -> None:
        async with Rig().running(ME, ring_deltas=ring) as log:
            await log.receive(history.deltas)
            everything = conflicts_of(history.deltas)
            assert newest_per_source(everything) == await found(log)
            times = {delta.dot: delta.timestamp for delta in history.deltas}
            within = {pair for pair in everything if all(after < times[dot] <= until for dot in pair)}
            assert newest_per_source(within) == await found(log, after, until)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def newest_per_source(pairs: set[tuple[Dot, Dot]]) -> set[tuple[Dot, Dot]]:
    """Of all pairs with one later delta and one other source, the one with the newest earlier delta."""
    newest: dict[tuple[Dot, str], Dot] = {}
    for earlier, later in pairs:
        place = later, earlier.source
        newest[place] = max(earlier, newest.get(place, earlier))
    return {(earlier, later) for (later, _), earlier in newest.items()}


@pytest.mark.filterwarnings("error")
async def test_a_loop_over_conflicts_can_be_left() -> None:
    async with Rig().running() as log:
        await log.receive([remote(source, 1, 1, key="x") for source in ("bob", "carol", "dan")])
        async for conflict in log.conflicts():
            assert conflict.key == "x"
            break
        assert len(await found(log, until=pack(NOON_MS + 5))) == 3
