"""Taking in deltas of other sources: what is applied, known, waiting, refused, and why; and that logs converge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.chain import payload_hash
from deltalog.clock import pack
from deltalog.codec import build, erase
from deltalog.delta import Delta, Limits
from deltalog.errors import LogClosed, LogReadOnly, StoreFull, UsageError
from deltalog.log import DeltaLog
from deltalog.receiver import Receipt
from deltalog.version import Dot
from tests.deltalog.memory_log import NOON_MS, Rig, collect, remote, seqs, stored, until, values
from tests.models import InboxModel
from tests.strategies import History, histories


async def receive_one(log: DeltaLog, delta: Delta) -> str:
    """Receive one delta that frees no other: "applied", "known", "waiting", or why it was refused."""
    receipt = await log.receive([delta])
    found = [name for name in ("applied", "known", "waiting") if getattr(receipt, name)]
    found += [refusal.reason for refusal in receipt.refused]
    (only,) = found
    return only


# ---------------------------------------------------------------------------------------------------------- convergence


@st.composite
def deliveries(draw: st.DrawFn, history: History) -> list[list[Delta]]:
    """All deltas in any order, some more than once, in batches."""
    again = draw(st.lists(st.sampled_from(history.deltas), max_size=8))
    order = draw(st.permutations([*history.deltas, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=4)))
    return [list(order[low:high]) for low, high in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def expected(model: InboxModel, batch: Sequence[Delta]) -> tuple[list[Dot], list[Dot], list[Dot]]:
    """What the model says becomes of a batch: applied, known, waiting, each sorted."""
    applied: list[Dot] = []
    known: list[Dot] = []
    waiting: list[Dot] = []
    for delta in batch:
        if delta.dot in model.applied:
            known.append(delta.dot)
            continue
        before = len(model.applied)
        model.arrive(delta)
        applied += model.applied[before:]
        if delta.dot not in model.applied:
            waiting.append(delta.dot)
    return sorted(applied), sorted(known), sorted(waiting)


@given(histories(), st.data())
def test_i5_logs_converge_whatever_the_order_and_say_what_became_of_each(history: History, data: st.DataObject) -> None:
    async def deliver(ring: int, batches: list[list[Delta]]) -> None:
        rig, model = Rig(), InboxModel()
        async with rig.running("\1me", ring_deltas=ring) as log:
            subscription = log.subscribe({})
            for batch in batches:
                receipt = await log.receive(batch)
                found = sorted(receipt.applied), sorted(receipt.known), sorted(receipt.waiting)
                assert found == expected(model, batch)
                assert receipt.refused == []
                assert dict(log.heads) == model.heads()
                assert log.statistics().inbox.deltas == len(model.waiting)
            seen: dict[str, int] = {}
            while len(subscription.position) < len(log.heads) or subscription.position != log.heads:
                for delta in await subscription.page(3):
                    assert delta.seq == seen.get(delta.source, 0) + 1
                    assert all(seen.get(source, 0) >= seq for source, seq in delta.deps.items())
                    seen[delta.source] = delta.seq
            assert await collect(log.replay()) == history.deltas
            assert log.statistics().inbox.bytes == 0
        assert sum(map(len, stored(rig.store).values())) == len(history.deltas)

    for ring in (100, 2):
        batches = data.draw(deliveries(history), label=f"ring of {ring}")
        trio.run(deliver, ring, batches, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", range(5))
async def test_two_tasks_that_receive_the_same_history_share_the_work(autojump_clock: MockClock, seed: int) -> None:
    history = [
        remote(source, seq, seq, {other: seq - 1} if seq > 1 else {})
        for seq in range(1, 60)
        for source, other in (("bob", "carol"), ("carol", "bob"))
    ]
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 0.001
    receipts: list[Receipt] = []

    async def deliver(log: DeltaLog, order: list[Delta]) -> None:
        receipts.append(await log.receive(order))

    async with rig.running(ring_deltas=5) as log:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                order = list(history)
                random.Random(f"{seed} {number}").shuffle(order)
                nursery.start_soon(deliver, log, order)
        assert sorted(dot for receipt in receipts for dot in receipt.applied) == sorted(d.dot for d in history)
        assert not any(receipt.refused for receipt in receipts)
        assert log.statistics().inbox.deltas == 0
        assert log.heads == {"bob": 59, "carol": 59}
    assert {name: len(deltas) for name, deltas in stored(rig.store).items()} == {"bob": 59, "carol": 59}


# ----------------------------------------------------------------------------------------------------------- timestamps


async def test_i6_a_delta_must_come_after_its_causes_in_time() -> None:
    refusal = "its timestamp does not come after those of its predecessor and deps"
    async with Rig().running() as log:
        await log.receive([remote("bob", 1, 10), remote("bob", 2, 20), remote("bob", 3, 30)])
        own = await log.append("mine")
        for delta, outcome in (
            (remote("bob", 4, 30), refusal),
            (remote("bob", 4, 29), refusal),
            (remote("carol", 1, 30, {"bob": 3}), refusal),
            (remote("carol", 1, 20, {"bob": 2}), refusal),
            (remote("carol", 1, 21, {"bob": 2}), "applied"),  # though bob's newest is later
            (build("dave", 1, own.timestamp, None, deps={"alice": 1}), refusal),
            (build("dave", 1, own.timestamp + 1, None, deps={"alice": 1, "bob": 1}), "applied"),
            (remote("bob", 4, 31), "applied"),
        ):
            assert await receive_one(log, delta) == outcome, delta
        assert log.heads == {"alice": 1, "bob": 4, "carol": 1, "dave": 1}


async def test_i6_causes_are_looked_up_in_the_store_too() -> None:
    async with Rig().running(ring_deltas=2) as log:
        own = [await log.append(number) for number in range(10)]
        late = build("bob", 1, own[3].timestamp, None, deps={"alice": 4})
        assert "does not come after" in await receive_one(log, late)
        good = build("bob", 1, own[3].timestamp + 1, None, deps={"alice": 4})
        assert await receive_one(log, good) == "applied"
        await log.flush()
        await log.truncate(until={"alice": 5})
        dropped = build("carol", 1, own[3].timestamp - 1, None, deps={"alice": 5})
        assert await receive_one(log, dropped) == "applied", "of a dropped cause nobody knows the time"


async def test_a_clock_too_far_ahead_is_refused_and_moves_nothing() -> None:
    rig = Rig()
    async with rig.running(drift_ms=500) as log:
        last = log.clock.last
        assert await receive_one(log, remote("bob", 1, 501)) == (
            "timestamp is 501 ms ahead of this node's clock; the bound is 500 ms"
        )
        assert log.clock.last == last
        assert await receive_one(log, remote("bob", 1, 500)) == "applied"
        assert (await log.append("x")).timestamp > pack(NOON_MS + 500)
        assert await receive_one(log, remote("carol", 1, -3_600_000)) == "applied", "the past is fine"


async def test_a_wall_clock_that_jumps_back_in_the_middle_breaks_nothing() -> None:
    rig = Rig()
    async with rig.running(drift_ms=500) as log:
        rig.wall.ms, rig.wall.step_ms = NOON_MS + 2000, -1000  # looked at for the call, and for the delta
        assert await receive_one(log, remote("bob", 1, 500)) == "applied", "it was within the bound when looked at"
        rig.wall.step_ms = 0
        assert "ahead of this node's clock" in await receive_one(log, remote("bob", 2, 501))
        assert (await log.append("x")).timestamp > pack(NOON_MS + 500)
        assert len(await collect(log.replay())) == 2


async def causes_elsewhere(rig: Rig, log: DeltaLog) -> Delta:
    """Make looking up the causes of the delta that is returned take until `rig.offload.before["get"]` is set."""
    await log.receive([remote("bob", seq, 10 * seq) for seq in range(1, 11)])
    await log.flush()
    rig.offload.before["get"], rig.offload.began["get"] = trio.Event(), trio.Event()
    return remote("carol", 1, 15, {"bob": 1})


async def test_i5_a_delta_whose_causes_two_calls_look_up_is_applied_once() -> None:
    rig, receipts = Rig(), list[Receipt]()

    async def receive(log: DeltaLog, delta: Delta) -> None:
        receipts.append(await log.receive([delta]))

    async with rig.running(ring_deltas=2) as log:
        delta = await causes_elsewhere(rig, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, log, delta)
            nursery.start_soon(receive, log, delta)
            await trio.testing.wait_all_tasks_blocked()
            assert not receipts
            assert log.heads == {"bob": 10}
            rig.offload.before["get"].set()
        outcomes = sorted((receipt.applied, receipt.known) for receipt in receipts)
        assert outcomes == [([], [delta.dot]), ([delta.dot], [])]
        assert seqs(await collect(log.replay()), "carol") == [1]


async def test_i1_room_that_went_while_causes_were_looked_up_is_waited_for() -> None:
    rig, receipts = Rig(), list[Receipt]()
    async with rig.running(ring_deltas=2) as log, trio.open_nursery() as nursery:
        delta = await causes_elsewhere(rig, log)

        async def receive() -> None:
            receipts.append(await log.receive([delta]))

        nursery.start_soon(receive)
        await rig.offload.began["get"].wait()
        rig.offload.before["persist"] = trio.Event()
        own = [log.append_nowait(number) for number in range(2)]
        rig.offload.before["get"].set()
        await trio.testing.wait_all_tasks_blocked()
        before = log.statistics().ring.pending, len(receipts)
        rig.offload.before["persist"].set()  # first of all: the log does not close without it
        await until(lambda: receipts)
        assert before == (2, 0)
        assert receipts[0].applied == [delta.dot]
        await log.flush()
    found = stored(rig.store.survivor())
    assert (found["carol"], found["alice"]) == ([delta], own)


# ------------------------------------------------------------------------------------------------- own source and forks


async def test_i1_deltas_of_this_node_that_it_never_wrote_are_refused() -> None:
    async with Rig().running() as log:
        own = await log.append("a")
        assert await receive_one(log, own) == "known"
        ahead = build("alice", 2, own.timestamp + 1, "a")
        assert await receive_one(log, ahead) == ("it claims to be this node's own delta 2, but this node has written 1")
        assert "forked" in await receive_one(log, build("alice", 1, own.timestamp, "b"))
        assert (await log.append("b")).seq == 2


async def test_a_fork_is_refused_wherever_the_other_delta_is() -> None:
    held_here = "another delta with this dot is held here: its source was forked"
    async with Rig().running(ring_deltas=4) as log:
        await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
        await log.receive([remote("carol", 3, 1)])
        assert log.statistics().ring.deltas <= 4
        for seq in range(1, 11):
            assert await receive_one(log, remote("bob", seq, seq)) == "known"
            for fork in (
                remote("bob", seq, seq, payload="other"),
                remote("bob", seq, seq, kind="other"),
                remote("bob", seq, seq, {"x": 1}),
                remote("bob", seq, seq + 1),
            ):
                assert await receive_one(log, fork) == held_here, (seq, fork)
        assert await receive_one(log, remote("carol", 3, 1)) == "waiting"
        assert await receive_one(log, remote("carol", 3, 2)) == "another delta with this dot is waiting already"
        receipt = await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
        assert sorted(receipt.known) == [("bob", seq) for seq in range(1, 11)], "many are looked up together"
        await log.flush()
        await log.truncate(until={"bob": 6})
        assert await receive_one(log, remote("bob", 6, 1)) == "known", "what was dropped cannot be compared"
        assert await receive_one(log, remote("bob", 7, 1)) == held_here


async def test_what_is_dropped_while_it_is_compared_is_known() -> None:
    rig = Rig()
    async with rig.running(ring_deltas=2) as log:
        await log.receive([remote("bob", seq, seq) for seq in range(1, 11)])
        await log.flush()

        def drop(count: int) -> int:
            rig.store.truncate({"bob": 6})
            return count

        rig.store.page_size = drop
        receipt = await log.receive([remote("bob", 3, 3), remote("bob", 4, 1), remote("bob", 7, 7)])
        assert sorted(receipt.known) == [("bob", 3), ("bob", 4), ("bob", 7)]
        assert receipt.refused == []
        assert "forked" in await receive_one(log, remote("bob", 7, 1)), "what is held still is compared"


async def test_an_erased_delta_is_the_same_delta() -> None:
    def erased(delta: Delta) -> Delta:
        return erase(delta, payload_hash(delta))

    first, second, third = (remote("bob", seq, seq) for seq in (1, 2, 3))
    other = remote("bob", 1, 1, payload="other")
    async with Rig().running() as log:
        await log.receive([first])
        await log.erase(("bob", 1), "reason")
        assert await receive_one(log, first) == "known"
        assert await receive_one(log, erased(first)) == "known"
        assert "forked" in await receive_one(log, other)
        assert "forked" in await receive_one(log, erased(other))
        assert await receive_one(log, third) == "waiting"
        assert await receive_one(log, erased(third)) == "waiting"
        receipt = await log.receive([erased(second)])
        assert receipt.applied == [("bob", 2), ("bob", 3)]
        assert await receive_one(log, second) == "known"
        assert values(await collect(log.replay())) == [None, None, third.payload]


# ---------------------------------------------------------------------------------------------------- bounds and limits


@pytest.mark.parametrize(("options", "room"), [({"inbox_deltas": 3}, 3), ({"inbox_bytes": 100}, 2)])
async def test_the_inbox_is_bounded(options: dict[str, Any], room: int) -> None:
    rig = Rig()
    async with rig.log(**options).running() as log:
        many = [remote("bob", seq, seq) for seq in range(1, 8)]
        receipt = await log.receive(many[1:])
        assert receipt.waiting == [("bob", seq) for seq in range(2, 2 + room)]
        assert [refusal.delta for refusal in receipt.refused] == many[1 + room :]
        assert receipt.refused[0].reason == (f"it must wait for 'bob':{1 + room}, and {room} deltas wait already")
        assert (await log.receive(many[:1])).applied == [("bob", seq) for seq in range(1, 2 + room)]
        receipt = await log.receive(many)
        assert (len(receipt.known), len(receipt.applied), log.heads["bob"]) == (1 + room, 6 - room, 7)


async def test_limits_are_kept_for_what_comes_from_outside() -> None:
    limits = Limits(payload_bytes=50, kind_bytes=5, key_bytes=6, source_bytes=7, deps_entries=2)
    async with Rig().running(limits=limits) as log:
        for delta, outcome in (
            (remote("bob", 1, 1, payload=b"x" * 49), "payload is 51 bytes; the limit is 50 bytes"),
            (remote("bob", 1, 1, kind="x" * 6), "kind is 6 bytes; the limit is 5 bytes"),
            (remote("bob", 1, 1, key="é" * 4), "key is 8 bytes; the limit is 6 bytes"),
            (remote("bob" * 3, 1, 1), "source is 9 bytes; the limit is 7 bytes"),
            (remote("bob", 1, 1, {"a": 1, "b": 1, "c": 1}), "deps is 3 entries; the limit is 2 entries"),
            (remote("bob", 1, 1, {"a": 1, "b": 1}), "waiting"),
        ):
            assert await receive_one(log, delta) == outcome
        assert log.heads == {}


async def test_what_is_no_delta_is_refused_at_once() -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match="receive takes deltas, not bytes"):
            await log.receive([remote("bob", 1, 1), b"delta"])  # type: ignore[list-item]
        assert log.heads == {"bob": 1}


# ----------------------------------------------------------------------------------------------------- room and failure


async def test_receiving_waits_for_room_and_lets_others_run(autojump_clock: MockClock) -> None:
    rig = Rig()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    many = [remote("bob", seq, seq) for seq in range(1, 5001)]
    async with rig.running(ring_deltas=10) as log:
        assert len((await log.receive(many[:500])).applied) == 500
    async with Rig().running() as log, trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert len((await log.receive(many[1:])).waiting) == 4999
        before, turns = turns, 0
        assert len((await log.receive(many[:1])).applied) == 5000, "one sets all free"
        assert min(before, turns) >= 9
        nursery.cancel_scope.cancel()


async def test_a_long_receive_in_whose_middle_the_log_is_closed_applies_no_more() -> None:
    rig = Rig()
    many = [remote("bob", seq, seq) for seq in range(1, 5001)]
    outcome: list[object] = []

    async def receive(log: DeltaLog) -> None:
        try:
            outcome.append(await log.receive(many))
        except LogClosed as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery, rig.running() as log:
        nursery.start_soon(receive, log)
        await until(lambda: log.heads)
    assert isinstance(outcome[0], LogClosed)
    assert stored(rig.store.survivor())["bob"] == many[: log.heads["bob"]]


async def test_i10_a_log_that_turns_read_only_in_the_middle_raises_and_keeps_what_was_decided(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    many = [remote("bob", seq, seq) for seq in range(1, 101)]
    async with rig.running(ring_deltas=10) as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull, at=3)
        with pytest.raises(LogReadOnly, match="injected"):
            await log.receive(many)
        assert 10 <= log.heads["bob"] < 100
        assert log.statistics().ring.pending == log.heads["bob"] - log.written["bob"] > 0
        rig.disk.room = True
        await trio.sleep(1)
        receipt = await log.receive(many)
        assert len(receipt.applied) + len(receipt.known) == 100
        assert receipt.refused == []
    assert stored(rig.store.survivor())["bob"] == many


async def test_what_waits_for_an_excused_source_goes_on_without_it() -> None:
    async with Rig().running() as log:
        deltas = [remote("bob", 1, 10, {"mallory": 3}), remote("bob", 2, 20), remote("carol", 1, 15, {"mallory": 9})]
        assert len((await log.receive(deltas)).waiting) == 3
        assert sorted((await log.excuse("mallory")).applied) == [("bob", 1), ("bob", 2), ("carol", 1)]
        later = remote("carol", 2, 30, {"mallory": 12, "bob": 2})
        assert (await log.receive([later])).applied == [later.dot]
        assert (await log.receive([remote("carol", 3, 40, {"mallory": 1, "dave": 1})])).waiting == [("carol", 3)]
        assert log.heads == {"bob": 2, "carol": 2}


async def test_what_a_call_that_is_cut_off_had_set_free_is_decided_on_by_the_next() -> None:
    """Two deltas wait; what sets them free has room in the ring, they have not, and the wait for it is cancelled."""
    rig = Rig()
    async with rig.running(ring_deltas=2) as log:
        waiting = [remote("bob", 2, 20), remote("bob", 3, 30), remote("carol", 1, 40, {"bob": 2})]
        assert len((await log.receive(waiting)).waiting) == 3
        rig.offload.before["persist"], rig.offload.began["persist"] = trio.Event(), trio.Event()
        with trio.move_on_after(1) as cut:
            await log.receive([remote("bob", 1, 10)])
        assert cut.cancelled_caught
        assert log.heads == {"bob": 2}
        rig.offload.before["persist"].set()
        assert sorted((await log.receive([])).applied) == [("bob", 3), ("carol", 1)]
        assert log.heads == {"bob": 3, "carol": 1}
