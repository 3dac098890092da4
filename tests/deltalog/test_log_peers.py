"""DeltaLog: what a layer above needs to talk to peers: annotations, chain hashes, reads of chosen sources."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from trio.testing import MockClock, assert_checkpoints

from deltalog import chain
from deltalog.delta import SEQ_MAX
from deltalog.errors import BelowFloor, LimitExceeded, LogClosed, LogReadOnly, StoreFull, UsageError
from tests.deltalog.memory_log import Rig, collect, remote, seqs, until

# --------------------------------------------------------------------------------------------------------- annotations


async def test_annotations_are_kept_and_found_again() -> None:
    rig = Rig()
    async with rig.running() as log:
        await log.annotate({b"peer/bob": b"1", b"peer/carol": b"2", b"other": b"3"})
        await log.annotate({b"peer/bob": b"4", b"other": None})
        assert await log.annotation(b"peer/bob") == b"4"
        assert await log.annotation(b"other") is None
        assert list(await log.annotations(b"peer/")) == [(b"peer/bob", b"4"), (b"peer/carol", b"2")]
        assert list(await log.annotations(b"peer/", after=b"peer/bob")) == [(b"peer/carol", b"2")]
        assert list(await log.annotations(limit=1)) == [(b"peer/bob", b"4")]
    async with rig.running() as log:
        assert await log.annotation(b"peer/bob") == b"4"


async def test_an_annotation_is_durable_whenever_a_delta_that_is_written_later_is() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        await log.annotate({b"a": b"1"})
        assert rig.store.survivor().annotation(b"a") is None, "not synced by itself"
        await log.append("x", durable=True)
        assert rig.store.survivor().annotation(b"a") == b"1"
        await log.annotate({b"b": b"1"})
        await log.flush()
        assert rig.store.survivor().annotation(b"b") is None, "there was no delta to sync"
        await log.annotate({b"c": b"1"}, durable=True)
        assert [key for key, _ in rig.store.survivor().annotations()] == [b"a", b"b", b"c"]
    for unsynced in range(rig.store.unsynced + 1):
        left = rig.store.survivor(unsynced)
        assert left.annotation(b"a") == b"1" or not left.heads()


async def test_annotations_of_the_wrong_shape_are_refused() -> None:
    async with Rig().running() as log:
        with pytest.raises(UsageError, match="'deltalog/' are the log's own"):
            await log.annotate({b"mine": b"", b"deltalog/x": b""})
        with pytest.raises(UsageError, match="the key of an annotation must be bytes"):
            await log.annotate({"text": b""})  # type: ignore[dict-item]
        with pytest.raises(
            LimitExceeded, match="the value of an annotation is 65,537 bytes; the limit is 65,536 bytes"
        ):
            await log.annotate({b"mine": bytes(65_537)})
        with pytest.raises(UsageError, match="limit must be an integer"):
            await log.annotations(limit=-1)
        assert not await log.annotations()
    for call in (lambda: log.annotate({}), lambda: log.annotation(b"a"), log.annotations):
        with pytest.raises(LogClosed):
            await call()


async def test_a_read_only_log_takes_no_annotation(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        rig.disk.room = False
        rig.store.faults.fail("write", StoreFull)
        log.append_nowait("x")
        await until(lambda: log.statistics().writer.read_only, pause_s=0.01)
        with pytest.raises(LogReadOnly):
            await log.annotate({b"a": b"1"})
        rig.disk.room = True


async def test_an_annotation_that_meets_a_full_disk_raises_and_the_log_goes_on(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as log:
        rig.store.faults.fail("annotate", StoreFull)
        with pytest.raises(StoreFull):
            await log.annotate({b"a": b"1"})
        log.append_nowait("x")
        await until(lambda: log.synced, pause_s=0.1)
        await log.annotate({b"a": b"1"})
        assert await log.annotation(b"a") == b"1"


# -------------------------------------------------------------------------------------------------------- chain hashes


async def test_i3_the_synced_hash_is_that_of_the_synced_head() -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        assert (log.synced_seq("alice"), log.synced_hash("alice")) == (0, None)
        await log.append_many(range(3), durable=True)
        await log.receive([remote("bob", 1, 1)])
        await until(lambda: log.written == {"alice": 3, "bob": 1})
        log.append_nowait("unsynced")
        await until(lambda: log.written == {"alice": 4, "bob": 1})
        expected = chain.extend(chain.genesis("alice"), [d.record for d in await collect(log.by_source("alice"))])
        assert (log.synced_seq("alice"), log.synced_hash("alice")) == (3, expected[2])
        assert (log.synced_seq("bob"), log.synced_hash("bob")) == (0, None)
        await log.flush()
        assert (log.synced_seq("alice"), log.synced_hash("alice")) == (4, expected[3])
        assert log.synced_hash("bob") == rig.store.heads()["bob"].hash
    async with rig.running() as log:
        assert (log.synced_seq("alice"), log.synced_hash("alice")) == (4, expected[3])


async def test_i3_after_a_failure_the_synced_hash_is_that_of_what_is_synced(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running(sync_interval_s=3600) as log:
        await log.append("a", durable=True)
        rig.store.faults.fail("write", StoreFull, applied=True)
        log.append_nowait("b")
        await until(lambda: log.written == {"alice": 2}, pause_s=0.1)
        await log.flush()
        assert log.synced_hash("alice") == rig.store.heads()["alice"].hash == await log.hash_at("alice", 2)


async def test_i3_who_asks_is_told_which_heads_each_fsync_moved() -> None:
    told: list[dict[str, int]] = []
    async with Rig().running(sync_interval_s=3600) as log:

        def tell(heads: Mapping[str, int]) -> None:
            assert all(log.synced_seq(source) == seq for source, seq in heads.items()), "they are synced already"
            told.append(dict(heads))

        end = log.on_synced(tell)
        await log.append("a", durable=True)
        log.append_nowait("b")
        await until(lambda: log.written == {"alice": 2})
        assert told == [{"alice": 1}], "what is only written is not told"
        await log.receive([remote("bob", 1, 1), remote("bob", 2, 2)])
        await log.flush()
        end()
        await log.append("c", durable=True)
        assert told == [{"alice": 1}, {"alice": 2, "bob": 2}]


@pytest.mark.parametrize("ring", [3, 1000])
async def test_the_chain_hash_of_any_delta_that_is_held(ring: int) -> None:
    async with Rig().running(ring_deltas=ring) as log:
        await log.append_many(range(20))
        records = [delta.record for delta in await collect(log.replay())]
        log.append_nowait("not written yet")
        (last,) = await collect(log.by_source("alice", after=20))
        hashes = [chain.genesis("alice"), *chain.extend(chain.genesis("alice"), [*records, last.record])]
        assert await log.hash_at("alice", 21) == hashes[21], "it is written first"
        await log.truncate(until={"alice": 5})
        assert [await log.hash_at("alice", seq) for seq in (0, *range(5, 22))] == [hashes[0], *hashes[5:]]
        assert await log.hash_at("nobody", 0) == chain.genesis("nobody")
        with pytest.raises(BelowFloor):
            await log.hash_at("alice", 4)
        for source, seq in (("alice", 22), ("alice", -1), ("nobody", 1)):
            with pytest.raises(UsageError, match="seq must be an integer from 0 to"):
                await log.hash_at(source, seq)
        with assert_checkpoints():
            await log.hash_at("alice", 7)
    with pytest.raises(LogClosed):
        await log.hash_at("alice", 7)


# ------------------------------------------------------------------------------------------------------ chosen sources


@pytest.mark.parametrize("ring", [3, 1000])
async def test_i4_since_of_chosen_sources_up_to_chosen_seqs(ring: int) -> None:
    async with Rig().running(ring_deltas=ring) as log:
        await log.receive([remote(source, seq, seq) for seq in range(1, 11) for source in ("bob", "carol", "dave")])
        await log.append_many(range(5))
        found = await collect(log.since({"bob": 4, "carol": 99}, {"bob": 7, "carol": 9, "alice": 2, "nobody": 5}))
        assert [delta.dot for delta in found] == [("bob", 5), ("bob", 6), ("bob", 7), ("alice", 1), ("alice", 2)]
        assert await collect(log.since({}, {})) == []
        assert seqs(await collect(log.since({"bob": 8}, {"bob": SEQ_MAX})), "bob") == [9, 10], "up to the head"
        found = await collect(log.since({"bob": 8, "carol": 9}, {"carol": 10, "bob": 10}))
        assert [delta.dot for delta in found] == [("bob", 9), ("bob", 10), ("carol", 10)], "in timestamp order"
        with pytest.raises(UsageError):
            log.since({}, {"bob": -1})


async def test_i4_below_the_floor_only_the_chosen_sources_count() -> None:
    async with Rig().running() as log:
        await log.receive([remote(source, seq, seq) for seq in range(1, 11) for source in ("bob", "carol", "dave")])
        await log.flush()
        await log.truncate(until={"bob": 5, "carol": 5})
        assert seqs(await collect(log.since({}, {"dave": 3})), "dave") == [1, 2, 3]
        assert len(await collect(log.since({"bob": 5}, {"bob": 10, "dave": 1}))) == 6
        with pytest.raises(BelowFloor) as caught:
            log.since({"bob": 4, "dave": 1}, {"bob": 10, "dave": 3})
        assert (caught.value.floor, caught.value.missing) == ({"bob": 5}, {"bob": 4})


async def test_i13_a_read_of_chosen_sources_holds_only_those() -> None:
    async with Rig().running(ring_deltas=1) as log:
        await log.receive([remote(source, seq, seq) for seq in range(1, 11) for source in ("bob", "carol")])
        await log.flush()
        stream = log.since({"bob": 3}, {"bob": 10})
        await stream.page(1)
        done = await log.truncate(until={"bob": 9, "carol": 9})
        assert (dict(done.floor), dict(done.held)) == ({"bob": 3, "carol": 9}, {"bob": 9})
        assert seqs(await collect(stream), "bob") == list(range(5, 11))
        assert (await log.truncate(until={"bob": 9})).floor == {"bob": 9, "carol": 9}
