"""The writer while all goes well: what is written and what synced, who waits how long."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from deltalog.errors import StoreBackpressure
from deltalog.log import DeltaLog
from deltalog.writer import BACKPRESSURE_DELAY_S, BATCH_BYTES, BATCH_DELTAS
from tests.deltalog.memory_log import Rig, covers, seqs, stored, until, values


async def test_an_append_is_written_at_once_and_synced_after_the_interval(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=0.5) as log:
        log.append_nowait("a")
        await trio.testing.wait_all_tasks_blocked()
        assert log.written == {"alice": 1}
        assert log.synced == {}
        await trio.sleep(0.499)
        assert log.synced == {}
        await trio.sleep(0.002)
        assert log.synced == {"alice": 1}


async def test_the_interval_counts_from_the_oldest_unsynced_delta(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=0.5) as log:
        for _ in range(6):
            log.append_nowait("a")
            await trio.sleep(0.09)
        assert rig.disk.fsyncs == 1, "appending all the time does not put the fsync off"
        assert log.synced["alice"] >= 5


async def test_an_interval_of_zero_syncs_every_commit(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=0.0) as log:
        for _ in range(3):
            log.append_nowait("a")
            await trio.testing.wait_all_tasks_blocked()
            assert log.synced == log.heads
    assert rig.disk.commits == [(1, True)] * 3


async def test_a_waiter_shortens_the_interval(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 0.010
    async with rig.running(sync_interval_s=3600) as log:
        log.append_nowait("a")
        await log.append("b", durable=True)
        assert log.synced == {"alice": 2}
        log.append_nowait("c")
        await trio.sleep(1)
        await log.flush()
        assert log.synced == {"alice": 3}
        assert trio.current_time() < 1.1


async def test_a_log_at_rest_does_nothing(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append("a", durable=True)
        commits = list(rig.disk.commits)
        await trio.sleep(50)
        await log.flush()
        assert rig.disk.commits == commits, "nor does a flush with nothing to flush"
    assert rig.disk.commits == commits, "nor does leaving"


async def test_64_tasks_that_want_durable_appends_share_fsyncs(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 0.010
    order: list[int] = []

    async def appender(log: DeltaLog) -> None:
        for _ in range(10):
            delta = await log.append("x", durable=True)
            assert log.synced.covers(delta.dot)
            order.append(delta.seq)

    async with rig.running() as log, trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(appender, log)
    assert sorted(order) == list(range(1, 641))
    assert rig.disk.fsyncs <= 12, rig.disk.commits
    assert [d.seq for d in stored(rig.store)["alice"]] == list(range(1, 641))


async def test_flush_waits_for_what_was_appended_before_it_and_no_more(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    rig.offload.sleeps_s["persist"] = 0.010

    async def keep_appending(log: DeltaLog) -> None:
        while True:
            await log.append_many(range(100))
            await trio.sleep(0.001)

    async with rig.running(ring_deltas=1000) as log, trio.open_nursery() as nursery:
        nursery.start_soon(keep_appending, log)
        for _ in range(20):
            heads, began = log.heads, trio.current_time()
            await log.flush()
            assert log.synced.covers_all(heads)
            assert trio.current_time() - began < 0.040, "two commits: the one in progress, and the one it asked for"
        nursery.cancel_scope.cancel()


async def test_commits_are_bounded_in_deltas_and_bytes(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        for _ in range(5000):
            log.append_nowait(b"x" * 10)
        await log.flush()
        assert max(count for count, _ in rig.disk.commits) <= BATCH_DELTAS
        rig.disk.commits.clear()
        for _ in range(20):
            log.append_nowait(b"x" * (BATCH_BYTES // 4))
        await log.flush()
        assert max(count for count, _ in rig.disk.commits) <= 4
        rig.disk.commits.clear()
        log.append_nowait(b"x" * (BATCH_BYTES - 20))
        await log.flush()
        assert sum(count for count, _ in rig.disk.commits) == 1, "one larger than a batch goes alone"
    assert seqs(stored(rig.store)["alice"]) == list(range(1, 5022))


async def test_back_pressure_is_waited_out_in_order(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.store.faults.fail("write", StoreBackpressure, times=3)
    async with rig.running() as log:
        log.append_nowait(1)
        await trio.testing.wait_all_tasks_blocked()
        log.append_nowait(2)
        began = trio.current_time()
        assert (await log.append(3, durable=True)).seq == 3
        assert trio.current_time() - began >= 2 * BACKPRESSURE_DELAY_S, "it does not spin"
        assert log.statistics().writer.failures == 0
        assert log.statistics().writer.deltas == 3
    assert values(stored(rig.store)["alice"]) == [1, 2, 3]
    assert rig.store.faults.calls["write"] == 4


async def test_statistics_count_what_was_done(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.append_many(range(10), durable=True)
        await log.append("x", durable=True)
        found = log.statistics().writer
        assert (found.commits, found.fsyncs, found.deltas, found.failures, found.read_only) == (2, 2, 11, 0, "")
        assert log.statistics().ring.pending == 0


# --------------------------------------------------------------------------------------- what the vectors may cover

actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 30)),
        st.tuples(st.just("durable"), st.just(1)),
        st.tuples(st.just("flush"), st.just(1)),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("sleep"), st.integers(1, 30)),
    ),
    max_size=25,
)


class Watch:
    """Looks at every boundary of a commit at what a power loss there would leave."""

    def __init__(self, rig: Rig, log: DeltaLog) -> None:
        self.rig = rig
        self.log = log
        self.acknowledged: dict[str, int] = {}
        rig.store.faults.on_call = lambda _method: self.look()

    def look(self) -> None:
        store = self.rig.store
        heads = {source: head.seq for source, head in store.heads().items()}
        assert covers(heads, self.log.written), "test_i2: written is what the store holds"
        for spared in range(store.unsynced + 1):
            survivor = store.survivor(spared)
            left = {source: head.seq for source, head in survivor.heads().items()}
            assert covers(left, self.log.synced), "test_i3: synced is what survives"
            assert covers(left, self.acknowledged)
            for source, deltas in stored(survivor).items():
                assert values(deltas) == list(range(1, left[source] + 1)), "a prefix"

    def acknowledge(self, vector: Mapping[str, int]) -> None:
        self.acknowledged = dict(vector)
        self.look()


@given(actions, st.sampled_from([0.0, 0.010]), st.integers(3, 40))
def test_i2_i3_synced_is_never_ahead_of_what_survives_a_power_loss_at_any_boundary(
    script: list[tuple[str, int]], interval_s: float, ring: int
) -> None:
    async def main() -> None:
        rig = Rig()
        rig.offload.sleeps_s["persist"] = 0.002
        async with rig.running(sync_interval_s=interval_s, ring_deltas=ring) as log:
            watch = Watch(rig, log)
            for action, count in script:
                if action == "append":
                    for _ in range(count):
                        await log.append(log.heads.get("alice", 0) + 1)
                elif action == "durable":
                    delta = await log.append(log.heads.get("alice", 0) + 1, durable=True)
                    watch.acknowledge({"alice": delta.seq})
                elif action == "flush":
                    heads = log.heads
                    await log.flush()
                    watch.acknowledge(heads)
                elif action == "turns":
                    for _ in range(count):
                        await trio.lowlevel.checkpoint()
                else:
                    await trio.sleep(count / 1000)
            heads = log.heads
        assert rig.store.unsynced == 0
        assert {source: head.seq for source, head in rig.store.survivor().heads().items()} == heads

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_i3_a_delta_being_written_is_in_neither_vector() -> None:
    rig = Rig()
    async with rig.running() as log:
        rig.offload.after["persist"] = trio.Event()
        rig.offload.began["persist"] = trio.Event()
        log.append_nowait("a")
        await until(rig.store.heads)
        assert log.heads == {"alice": 1}
        assert not log.written
        assert not log.synced
        rig.offload.after.pop("persist").set()
        await until(lambda: log.written == {"alice": 1})
