"""Every call cancelled at every one of its checkpoints: the log is whole and usable after each.

`sweep` runs one scenario again and again, and cancels the call under test at its first checkpoint, its second, and so
on until it is done before that; so the numbers need no upkeep when the code changes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from deltalog.delta import Delta
from deltalog.errors import LogReadOnly, StoreFull
from deltalog.log import DeltaLog, LogOptions
from deltalog.reader import Stream
from deltalog.receiver import Receipt
from tests.deltalog.memory_log import LIMIT_S, Rig, collect, covers, remote, seqs, stored, until, values
from tests.faults import CancelAt, FaultDisk, FaultStore

STEPS_MAX = 2000
"""No call under test has more checkpoints than this."""


@attrs.define
class Case:
    """One call in one situation."""

    rig: Rig
    log: DeltaLog
    heads: Mapping[str, int]
    """Before the call."""
    synced: Mapping[str, int]
    state: dict[str, Any] = attrs.field(factory=dict)
    """What a scenario keeps from its call to its check."""


async def sweep(
    prepare: Callable[[Rig, DeltaLog], Awaitable[None]],
    call: Callable[[Case], Awaitable[Any]],
    check: Callable[[Case, Any], Awaitable[None]],
    **options: Any,
) -> None:
    """Cancel `call` everywhere; `check` gets what it returned, None if it was cancelled."""
    for checkpoints in range(STEPS_MAX):
        rig = Rig()
        cancel = CancelAt(checkpoints)
        async with rig.running(**options) as log:
            await prepare(rig, log)
            case = Case(rig, log, dict(log.heads), dict(log.synced))
            with trio.fail_after(LIMIT_S):
                result = await cancel.run(lambda case=case: call(case))  # type: ignore[misc]
                await check(case, result)
                await is_whole(case)
        assert {source: head.seq for source, head in rig.store.survivor().heads().items()} == log.heads
        if not cancel.scope.cancelled_caught:
            assert checkpoints > 1, "it was cancelled at least once"
            return
    raise AssertionError(f"more than {STEPS_MAX} checkpoints")


async def is_whole(case: Case) -> None:
    """The log goes on: appends, receives, flushes and reads, with dense seqs and everything from before."""
    log = case.log
    assert covers(log.heads, case.heads)
    before = log.heads
    assert (await log.append("after", durable=True)).seq == before.get("alice", 0) + 1
    zoe = before.get("zoe", 0) + 1
    receipt = await log.receive([remote("zoe", zoe, zoe)])
    assert receipt.applied == [("zoe", zoe)]
    await log.flush()
    assert log.synced == log.heads
    everything = await collect(log.replay())
    for source, head in log.heads.items():
        assert seqs(everything, source) == list(range(log.floor.get(source, 0) + 1, head + 1))
    held = [delta for deltas in stored(case.rig.store).values() for delta in deltas]
    assert sorted(held, key=lambda delta: (delta.timestamp, delta.source)) == everything
    assert log.statistics().ring.pending == 0


async def empty(_rig: Rig, log: DeltaLog) -> None:
    pass


async def some(_rig: Rig, log: DeltaLog) -> None:
    """Twenty of this node and five of bob, most of them in the store alone."""
    await log.append_many(range(20))
    await log.receive([remote("bob", seq, seq) for seq in range(1, 6)])
    await log.flush()


async def crowded(rig: Rig, log: DeltaLog) -> None:
    """A ring full of what is not stored, on a slow disk."""
    await some(rig, log)
    rig.offload.sleeps_s["persist"] = 0.01
    with contextlib.suppress(trio.TooSlowError), trio.fail_after(0.0005):
        await log.append_many(range(100))


# -------------------------------------------------------------------------------------------------------------- append


@pytest.mark.parametrize("prepare", [empty, crowded])
@pytest.mark.parametrize("durable", [True, False])
async def test_append(autojump_clock: MockClock, prepare: Any, durable: bool) -> None:
    async def check(case: Case, delta: Delta | None) -> None:
        new = case.log.heads.get("alice", 0) - case.heads.get("alice", 0)
        assert new in ((1,) if delta is not None else (0, 1))
        if durable and delta is not None:
            assert case.log.synced.covers(delta.dot)
        if new:
            kept = await case.log.get(("alice", case.log.heads["alice"]))
            assert kept is not None
            assert kept.payload == "x"

    await sweep(prepare, lambda case: case.log.append("x", durable=durable), check, ring_deltas=4)


@pytest.mark.parametrize("durable", [True, False])
async def test_append_many(autojump_clock: MockClock, durable: bool) -> None:
    async def check(case: Case, deltas: list[Delta] | None) -> None:
        begin, end = case.heads["alice"], case.log.heads["alice"]
        new = values(await collect(case.log.by_source("alice", after=begin)))
        assert new == list(range(end - begin)), "a beginning of what was given"
        if deltas is not None:
            assert seqs(deltas) == list(range(begin + 1, begin + 13))
            assert not durable or case.log.synced == case.log.heads

    await sweep(crowded, lambda case: case.log.append_many(range(12), durable=durable), check, ring_deltas=4)


async def test_flush(autojump_clock: MockClock) -> None:
    async def call(case: Case) -> bool:
        await case.log.flush()
        return True

    async def check(case: Case, done: bool | None) -> None:
        assert case.log.heads == case.heads
        assert not done or case.log.synced == case.heads

    await sweep(crowded, call, check, ring_deltas=4, sync_interval_s=3600)


# ------------------------------------------------------------------------------------------------------------- receive


def incoming() -> list[Delta]:
    """Something of everything: new, known in ring and store, waiting, set free, needing a look back, refused."""
    return [
        *(remote("bob", seq, seq) for seq in range(1, 9)),
        remote("carol", 2, 41),
        remote("carol", 3, 42, {"dan": 1}),
        remote("carol", 1, 4, {"bob": 3}),
        remote("dan", 1, 40),
        remote("bob", 1, 1, payload="forked"),
        remote("dan", 2, 39),
    ]


async def test_receive(autojump_clock: MockClock) -> None:
    async def check(case: Case, receipt: Receipt | None) -> None:
        final = {"alice": case.heads["alice"], "bob": 8, "carol": 3, "dan": 1}
        assert covers(final, case.log.heads)
        if receipt is not None:
            assert case.log.heads == final
            assert [refusal.delta.dot for refusal in receipt.refused] == [("dan", 2), ("bob", 1)]
        again = await case.log.receive(incoming())
        assert case.log.heads == final
        assert len(again.refused) == 2
        assert case.log.statistics().inbox.deltas == 0
        for delta in await collect(case.log.by_source("carol")):
            assert delta in incoming()

    await sweep(crowded, lambda case: case.log.receive(incoming()), check, ring_deltas=4)


# --------------------------------------------------------------------------------------------------------------- reads


@pytest.mark.parametrize("kind", ["replay", "between", "by_source", "reverse", "since"])
@pytest.mark.parametrize("loop", [True, False])
async def test_streams(autojump_clock: MockClock, kind: str, loop: bool) -> None:
    async def call(case: Case) -> bool:
        log = case.log
        streams: dict[str, Callable[[], Stream]] = {
            "replay": log.replay,
            "between": log.between,
            "by_source": lambda: log.by_source("alice"),
            "reverse": lambda: log.by_source("alice", reverse=True),
            "since": lambda: log.since({"alice": 3}),
        }
        stream = case.state["stream"] = streams[kind]()
        found: list[Delta] = case.state.setdefault("found", [])
        if loop:
            async for delta in stream:
                found += [delta]  # seen even if the next step is cancelled
        else:
            while page := await stream.page(4):
                found += page
        return True

    async def check(case: Case, done: bool | None) -> None:
        everything = await collect(case.log.replay())
        if kind in ("by_source", "reverse"):
            everything = [delta for delta in everything if delta.source == "alice"][:: -1 if kind == "reverse" else 1]
        if kind == "since":
            everything = [delta for delta in everything if delta.dot > ("alice", 3)]
        if not case.state:
            return
        rest = await collect(case.state["stream"])
        assert case.state["found"] + rest == everything
        assert not (done and rest)

    await sweep(crowded, call, check, ring_deltas=4)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("loop", [True, False])
async def test_subscriptions(autojump_clock: MockClock, durable: bool, loop: bool) -> None:
    """Through catch-up in the store, the hand-over, the ring, and waiting for a delta that comes later."""

    async def prepare(rig: Rig, log: DeltaLog) -> None:
        await some(rig, log)
        rig.offload.sleeps_s["persist"] = 0.01
        log.append_nowait("live")

    async def call(case: Case) -> bool:
        subscription = case.state["subscription"] = case.log.subscribe({"alice": 2}, durable=durable)
        found = case.state["found"] = []
        while len(found) < 25:
            if loop:
                async for delta in subscription:
                    found.append(delta)
                    assert subscription.position.get(delta.source) == delta.seq
                    if len(found) % 3 == 0 or len(found) == 25:
                        break
            else:
                found += await subscription.page(4)
            if len(found) == 24:
                case.log.append_nowait("later")
        return True

    async def check(case: Case, done: bool | None) -> None:
        if not case.state:
            return
        found, subscription = case.state["found"], case.state["subscription"]
        reached: dict[str, int] = {"alice": 2}
        for delta in found:
            reached[delta.source] = delta.seq
        assert subscription.position == reached
        await case.log.flush()
        while subscription.position != case.log.heads:
            found += await subscription.page(5)
        assert seqs(found) == list(range(3, case.log.heads["alice"] + 1))
        assert seqs(found, "bob") == [1, 2, 3, 4, 5]

    await sweep(prepare, call, check, ring_deltas=4)


@pytest.mark.parametrize("dot", [("alice", 1), ("alice", 20)])
async def test_get_and_order(autojump_clock: MockClock, dot: tuple[str, int]) -> None:
    async def call(case: Case) -> object:
        return await case.log.get(dot), await case.log.order(dot, ("bob", 1))

    async def check(case: Case, found: object) -> None:
        assert found is None or found == await call(case)

    await sweep(some, call, check, ring_deltas=4)


# -------------------------------------------------------------------------------------------------------------- upkeep


async def test_truncate(autojump_clock: MockClock) -> None:
    async def check(case: Case, done: Any) -> None:
        floor = case.log.floor
        assert floor in ({}, {"alice": 10, "bob": 2})
        assert done is None or floor
        assert floor == {source: head.floor for source, head in case.rig.store.heads().items() if head.floor}

    await sweep(some, lambda case: case.log.truncate(until={"alice": 10, "bob": 2}), check, ring_deltas=4)


@pytest.mark.parametrize("seq", [3, 20, 24])
async def test_erase(autojump_clock: MockClock, seq: int) -> None:
    async def check(case: Case, done: Delta | None) -> None:
        delta = await case.log.get(("alice", seq))
        kept = case.rig.store.inner.get("alice", seq)
        assert delta is not None
        assert delta.erased or done is None
        assert len(await case.log.erasures()) == delta.erased
        assert kept is None or kept.erased == delta.erased, "ring and store say the same"

    await sweep(crowded, lambda case: case.log.erase(("alice", seq), "reason"), check, ring_deltas=4)


# ---------------------------------------------------------------------------------------------------------------- all


async def test_a_log_cancelled_anywhere_stores_all_that_was_appended(autojump_clock: MockClock) -> None:
    for checkpoints in range(STEPS_MAX):
        rig = Rig()
        rig.offload.sleeps_s["persist"] = 0.001
        appended: list[int] = []

        async def work(rig: Rig = rig, appended: list[int] = appended) -> None:
            async with rig.running(ring_deltas=4) as log, trio.open_nursery() as nursery:
                nursery.start_soon(collect, log.replay())
                for number in range(6):
                    delta = await log.append(number, durable=number % 2 == 0)
                    appended += [delta.seq]

        cancel = CancelAt(checkpoints, of_all=True)
        await cancel.run(work)
        held = seqs(stored(rig.store.survivor()).get("alice", []))
        assert held[: len(appended)] == appended
        assert held == list(range(1, len(held) + 1))
        if not cancel.scope.cancelled_caught:
            assert checkpoints > 20
            return
    raise AssertionError(f"more than {STEPS_MAX} checkpoints")


@pytest.mark.parametrize("method", ["persist", "truncate", "erase", "page"])
async def test_what_a_worker_thread_has_begun_is_seen_through(method: str) -> None:
    """In real threads: a cancellation that comes while one works is heard when it is done, and its result counts."""
    store = FaultStore()
    disk = FaultDisk(store)
    log = DeltaLog("alice", store, disk, options=LogOptions(ring_deltas=4))
    faults = disk.faults if method == "persist" else store.faults
    with trio.fail_after(LIMIT_S):
        async with log.running():
            await log.append_many(range(20), durable=True)
            gate = faults.holds[method] = threading.Event()
            calls = faults.calls[method]
            stream = log.replay()
            found: list[Delta] = []

            async def read() -> None:
                found.extend(await stream.page())

            call: Callable[[], Awaitable[object]] = {
                "persist": lambda: log.append("x", durable=True),
                "truncate": lambda: log.truncate(until={"alice": 10}),
                "erase": lambda: log.erase(("alice", 5), "reason"),
                "page": read,
            }[method]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await until(lambda: faults.calls[method] > calls, pause_s=0.001)
                nursery.cancel_scope.cancel()
                gate.set()
            await log.append("y", durable=True)
            assert log.floor == ({"alice": 10} if method == "truncate" else {})
            assert len(await log.erasures()) == (method == "erase")
            held = stored(store)["alice"]
            assert held == await collect(log.replay())
            assert method != "erase" or held[4].erased
            assert method != "page" or len(found + await collect(stream)) == 20


async def test_waiters_of_a_full_disk_can_be_cancelled(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(ring_deltas=4) as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        log.append_nowait(0)
        with pytest.raises(LogReadOnly):
            await log.flush()
        with trio.move_on_after(1), contextlib.suppress(LogReadOnly):
            while True:
                await trio.sleep(0.1)
                await log.append("x")
        rig.disk.room = True
        await trio.sleep(1)
        await log.append("y", durable=True)
        assert values(await collect(log.replay()))[0] == 0
