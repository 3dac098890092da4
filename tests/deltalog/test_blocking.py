"""The blocking log against the real one: same names, same parameters, same answers; from many threads."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deltalog.blocking import BlockingLog, BlockingStream, BlockingSubscription, open_log
from deltalog.errors import BelowFloor, LimitExceeded, RingFull, StoreInUse, UsageError
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import open_log as async_open_log
from deltalog.reader import Stream
from deltalog.retention import Retention
from deltalog.subscription import Subscription
from deltalog.version import Order
from tests.deltalog.threads import PATIENCE_S, Gate, in_thread

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockingLog]:
    with open_log(tmp_path / "data", source="alice") as log:
        yield log


def payloads(deltas: Any) -> list[Any]:
    return [delta.payload for delta in deltas]


# ------------------------------------------------------------------------------------------------ the names, the types

ABOVE = "it is for the layers above the log, which run in its loop"
LEFT_OUT = {
    "running": "open_log does it",
    "fill": "open_log does it",
    "clock": "it belongs to the loop's thread",
    "active": "it is for the log's own use",
    "spare": "it is for the log's own use",
    "holds": "it is for the log's own use",
    **dict.fromkeys(("annotate", "annotation", "annotations"), ABOVE),
    **dict.fromkeys(("synced_seq", "synced_hash", "hash_at", "on_synced"), ABOVE),
    **dict.fromkeys(("hold", "held_by", "stability", "save_stability", "retire", "retired", "excuse", "vouch"), ABOVE),
}
"""Public names of `DeltaLog` that the blocking one has not -> why."""
ADDED = {"subscribe": {"timeout_s"}, "page": {"timeout_s"}}
"""Parameters that only the blocking one takes."""
TWINS = [(DeltaLog, BlockingLog), (Stream, BlockingStream), (Subscription, BlockingSubscription)]


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("theirs", "ours"), TWINS)
def test_every_public_name_exists_with_the_same_parameters(theirs: type, ours: type) -> None:
    names = public(theirs) - LEFT_OUT.keys()
    assert names <= public(ours)
    for name in sorted(names):
        expected, found = inspect.getattr_static(theirs, name), inspect.getattr_static(ours, name)
        assert isinstance(found, property) == (not inspect.isfunction(expected)), name
        if inspect.isfunction(expected):
            assert parameters(found) == parameters(expected), name


def parameters(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    added = ADDED.get(function.__name__, set())
    own = "blocking" in function.__module__
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if not (own and p.name in added)]


def test_every_public_attribute_exists(log: BlockingLog) -> None:
    theirs = {name for name in vars(log._log) if not name.startswith("_")}
    ours = {name for name in vars(log) if not name.startswith("_")}
    assert theirs - LEFT_OUT.keys() == ours


def test_open_log_takes_the_same_arguments() -> None:
    theirs = inspect.signature(async_open_log).parameters
    ours = inspect.signature(open_log).parameters
    assert list(ours) == list(theirs)
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]
    defaults = {name: (p.default, theirs[name].default) for name, p in ours.items() if name != "progress"}
    assert all(mine == default for mine, default in defaults.values())


# --------------------------------------------------------------------------------------------------------- each call


def test_what_is_appended_is_read_in_every_way(log: BlockingLog) -> None:
    first = log.append({"n": 1}, kind="edit", key="k")
    second = log.append_nowait({"n": 2}, key="k")
    rest = log.append_many(({"n": n} for n in range(3, 3000)), key="many")
    deltas = [first, second, *rest]
    assert [delta.seq for delta in deltas] == list(range(1, 3000))
    assert (first.kind, first.key, second.key, rest[-1].key) == ("edit", "k", "k", "many")
    assert log.heads == {"alice": 2999}
    log.flush()
    assert log.synced == log.written == log.heads
    assert log.drained
    assert log.get(("alice", 2)) == second
    assert log.get(("alice", 5000)) is None
    assert list(log.by_source("alice")) == list(log.replay()) == list(log.since({})) == list(log.between()) == deltas
    assert list(log.by_source("alice", after=2, until=4, reverse=True)) == [rest[1], rest[0]]
    assert list(log.between(after=second.timestamp, until=rest[0].timestamp)) == [rest[0]]
    assert list(log.since({"alice": 2998})) == [rest[-1]]
    assert log.order(first.dot, rest[-1].dot) is Order.BEFORE
    assert log.sizes().deltas == log.statistics().writer.deltas == 2999
    assert log.health().ok
    assert (log.source, log.startup.kind, log.options) == ("alice", "created", LogOptions())


def test_durable_calls_return_when_it_is_synced(log: BlockingLog) -> None:
    one = log.append(1, durable=True)
    assert log.synced.covers(one.dot)
    many = log.append_many(range(10), durable=True)
    assert log.synced.covers(many[-1].dot)


def test_receive_conflicts_and_order_of_two_logs(log: BlockingLog, tmp_path: Path) -> None:
    with open_log(tmp_path / "other", source="bob") as other:
        theirs = other.append_many(range(3000), key="shared")
        mine = log.append("mine", key="shared")
        receipt = log.receive(theirs)
        assert (len(receipt.applied), receipt.known, receipt.waiting, receipt.refused) == (3000, [], [], [])
        again = log.receive(theirs[:5])
        assert (again.applied, again.known) == ([], [delta.dot for delta in theirs[:5]])
        assert log.order(mine.dot, theirs[0].dot) is Order.CONCURRENT
        found = list(log.conflicts())
        assert found
        assert all(mine in (conflict.first, conflict.second) for conflict in found)


def test_upkeep(log: BlockingLog) -> None:
    log.append_many(range(100), durable=True)
    erased = log.erase(("alice", 50), "asked to")
    assert erased.erased
    assert [(note.seq, note.reason) for note in log.erasures()] == [(50, "asked to")]
    done = log.truncate(until={"alice": 10})
    assert done.dropped == 10
    assert log.floor == {"alice": 10}
    assert log.truncate(retention=Retention(max_deltas=50)).dropped == 40
    log.compact()
    assert len(list(log.replay())) == 50


def test_errors_come_out_as_themselves(log: BlockingLog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="payload"):
        log.append(object())
    with pytest.raises(LimitExceeded) as caught:
        log.append_many([1, b"x" * (2 << 20), 3])
    assert caught.value.field == "payload"
    assert payloads(log.replay()) == [1]
    with pytest.raises(UsageError):
        log.by_source("alice", after=-1)
    with pytest.raises(UsageError):
        log.conflicts(after=-2)
    with pytest.raises(UsageError):
        log.truncate()
    log.append_many([2, 3], durable=True)
    log.truncate(until={"alice": 1})
    with pytest.raises(BelowFloor):
        log.since({})
    with pytest.raises(StoreInUse):
        open_log(tmp_path / "data")
    with pytest.raises(UsageError):
        open_log(tmp_path / "new", source="")


def test_append_waits_for_room_and_append_nowait_does_not(tmp_path: Path) -> None:
    with open_log(tmp_path / "data", source="alice", options=LogOptions(ring_deltas=4)) as log, Gate() as gate:
        while not gate.reached.is_set() or log.statistics().ring.pending < 4:
            with contextlib.suppress(RingFull):
                log.append_nowait("early")
        with pytest.raises(RingFull):
            log.append_nowait("refused")
        waiting = in_thread(lambda: log.append("late"))
        assert log.statistics().ring.pending == 4
        gate.opened.set()
        assert waiting.result(PATIENCE_S).payload == "late"
        assert "refused" not in payloads(log.replay())


# -------------------------------------------------------------------------------------------------------- many threads


def test_i1_many_threads_append_read_and_none_loses_its_order(log: BlockingLog) -> None:
    def work(name: int) -> list[int]:
        mine = [log.append([name, n], key=str(name)).seq for n in range(50)]
        mine += [delta.seq for delta in log.append_many([name, n] for n in range(50, 100))]
        log.flush()
        assert payloads(d for d in log.replay() if d.key == str(name) or d.payload[0] == name)[-1] == [name, 99]
        return mine

    workers = [in_thread(partial(work, name)) for name in range(8)]
    seqs = [worker.result(PATIENCE_S) for worker in workers]
    assert all(mine == sorted(mine) for mine in seqs)
    assert sorted(itertools.chain(*seqs)) == list(range(1, 801))
    for name, mine in enumerate(seqs):
        assert [log.get(("alice", seq)).payload for seq in mine] == [[name, n] for n in range(100)]  # type: ignore[union-attr]


# ----------------------------------------------------------------------------------------------------- reads by pages


def test_a_stream_is_an_iterator_and_gives_pages(log: BlockingLog) -> None:
    log.append_many(range(10_000))
    stream = log.replay()
    assert [next(stream).payload, next(stream).payload] == [0, 1]
    assert payloads(itertools.islice(stream, 4)) == [2, 3, 4, 5]
    for delta in stream:
        assert delta.payload == 6
        break
    assert payloads(stream.page(2)) == [7, 8]
    assert payloads(stream.page())[0] == 9
    assert payloads(stream)[-1] == 9999
    assert not stream.page()
    with pytest.raises(StopIteration):
        next(stream)


def test_i4_a_loop_left_early_goes_on_where_it_was(log: BlockingLog) -> None:
    log.append_many(range(20_000))
    stream, found = log.by_source("alice"), list[Any]()
    while more := payloads(itertools.islice(stream, 777)):
        found += more
    assert found == list(range(20_000))


def test_i13_a_read_in_progress_holds_the_floor_until_it_is_dropped(log: BlockingLog) -> None:
    log.append_many(range(10_000), durable=True)
    stream = log.replay()
    next(stream)
    assert log.truncate(until={"alice": 100}).held == {"alice": 100}
    gone_in = list[str]()
    weakref.finalize(stream._held[0], lambda: gone_in.append(threading.current_thread().name))
    del stream
    assert log.truncate(until={"alice": 100}).dropped == 100
    assert gone_in == ["deltalog"]


# -------------------------------------------------------------------------------------------------------- subscribing


def test_a_subscription_catches_up_then_follows(log: BlockingLog) -> None:
    log.append_many(range(5000))
    subscription = log.subscribe({"alice": 10})
    live = in_thread(lambda: payloads(itertools.islice(subscription, 4990 + 3)))
    for n in (5000, 5001, 5002):
        log.append(n)
    assert live.result(PATIENCE_S) == list(range(10, 5003))
    assert subscription.position == {"alice": 5003}


def test_a_subscription_ends_after_its_timeout_and_goes_on(log: BlockingLog) -> None:
    subscription = log.subscribe(timeout_s=0.01)
    assert list(subscription) == []
    log.append(1)
    assert payloads(subscription) == [1]
    assert not subscription.page(timeout_s=0)
    log.append(2)
    assert payloads(subscription.page()) == [2]


def test_i4_the_position_counts_what_was_given_out_and_no_more(log: BlockingLog) -> None:
    """A consumer that is killed in the middle of a page goes on with the next delta, not with the next page."""
    log.append_many(range(1000))
    subscription = log.subscribe({}, timeout_s=0)
    for delta in subscription:
        assert subscription.position == {"alice": delta.seq}
        if delta.seq == 300:
            break
    assert payloads(log.subscribe(subscription.position, timeout_s=0))[0] == 300
    assert payloads(subscription)[0] == 300


def test_a_durable_subscription_gives_only_what_is_synced(log: BlockingLog) -> None:
    with Gate() as gate:
        log.append("late")
        assert gate.reached.wait(PATIENCE_S)
        assert payloads(log.subscribe({}, timeout_s=0)) == ["late"]
        durable = log.subscribe({}, durable=True)
        assert not durable.page(timeout_s=0)
    assert payloads(durable.page()) == ["late"]


def test_another_thread_closes_a_subscription(log: BlockingLog) -> None:
    subscription = log.subscribe({})
    log.append(1)
    waiting = in_thread(lambda: payloads(subscription))
    while subscription.position != {"alice": 1}:
        pass
    subscription.close()
    assert waiting.result(PATIENCE_S) == [1]
    subscription.close()
    log.append(2)
    assert list(subscription) == []
    assert log.truncate(until={"alice": 1}).held == {}
