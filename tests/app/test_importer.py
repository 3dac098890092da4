"""Importing what was exported gives an equal log; whatever order, duplicate, fork or wrong time a file holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain as chain_together
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalog import chain
from deltalog.app.importer import BATCH, ImportCount, Importer
from deltalog.app.interchange import to_line
from deltalog.app.lines import LineRefused
from deltalog.clock import pack, to_iso
from deltalog.codec import build, erase
from deltalog.delta import Delta
from deltalog.log import DeltaLog
from tests.deltalog.memory_log import NOON_MS, Rig, collect, remote, stored
from tests.strategies import History, histories, payloads

OWN = "this node, which no file names"


def line(source: str, seq: int, time: int | str = 0, deps: dict[str, int] | None = None, **fields: Any) -> bytes:
    """A line as somebody might write it."""
    given = {"source": source, "seq": seq, "deps": deps or {}, "time": time, "payload": f"{source}{seq}", **fields}
    return json.dumps(given).encode()


async def import_into(rig: Rig, lines: Sequence[bytes], pieces: int = 1, **bounds: int) -> ImportCount:
    """Import lines into the rig's log, some at a time; the log is closed after it, whatever happens."""
    async with rig.running(OWN) as log:
        importer = Importer(log, **bounds)
        step = max(1, len(lines) // pieces)
        for start in range(0, len(lines), step):
            await importer.take(start + 1, lines[start : start + step])
        await importer.finish()
        assert log.drained
        return importer.count


async def refused(rig: Rig, lines: Sequence[bytes], **bounds: int) -> LineRefused:
    """The error that an import ends with."""
    with pytest.raises(LineRefused) as caught:
        await import_into(rig, lines, **bounds)
    return caught.value


async def exported(log: DeltaLog) -> list[bytes]:
    return [to_line(delta) for delta in await collect(log.replay())]


def every(held: Mapping[str, Iterable[Delta]]) -> list[Delta]:
    """All deltas by (timestamp, source)."""
    return sorted(chain_together.from_iterable(held.values()), key=lambda delta: (delta.timestamp, delta.source))


def with_payloads(history: History, drawn: Sequence[Any], erased: Iterable[int]) -> list[Delta]:
    """A history whose deltas carry these payloads, in turn; of some it was erased."""
    deltas = [
        build(d.source, d.seq, d.timestamp, drawn[n % len(drawn)], deps=d.deps, kind=d.kind, key=d.key)
        for n, d in enumerate(history.deltas)
    ]
    for index in erased:
        if index < len(deltas):
            deltas[index] = erase(deltas[index], chain.payload_hash(deltas[index]))
    return deltas


whole_logs = settings(max_examples=settings().max_examples // 3)
"""Each example makes two logs or more."""
LOGS = st.builds(
    with_payloads, histories(), st.lists(payloads(), min_size=1, max_size=4), st.sets(st.integers(0, 15), max_size=3)
)


# --------------------------------------------------------------------------------------------------------- round trip


@whole_logs
@given(LOGS, st.integers(1, 4))
def test_export_then_import_gives_an_equal_log(deltas: list[Delta], pieces: int) -> None:
    async def main() -> None:
        first, second = Rig(), Rig()
        async with first.running(OWN) as log:
            assert not (await log.receive(deltas)).refused
            lines = await exported(log)
        count = await import_into(second, lines, pieces)
        assert count == ImportCount(len(deltas), applied=len(deltas), known=0)
        assert second.store.heads() == first.store.heads()  # seqs, timestamps, chain hashes, sizes
        assert stored(second.store) == stored(first.store)  # byte for byte
        async with second.running(OWN) as log:
            assert await exported(log) == lines

    trio.run(main)


@whole_logs
@given(LOGS, st.data())
def test_lines_in_any_order_give_the_same_log(deltas: list[Delta], data: st.DataObject) -> None:
    lines = [to_line(delta) for delta in deltas]
    shuffled = data.draw(st.permutations(lines)) + data.draw(st.lists(st.sampled_from(lines), max_size=5))

    async def main() -> None:
        rig = Rig()
        count = await import_into(rig, shuffled, pieces=3)
        assert count == ImportCount(len(shuffled), len(deltas), len(shuffled) - len(deltas))
        held = stored(rig.store)
        assert every(held) == deltas

    trio.run(main)


@whole_logs
@given(histories(), st.integers(0, 16), st.booleans())
def test_times_that_are_too_early_are_mended_the_same_way_each_time(history: History, cut: int, again: bool) -> None:
    """The whole file at once, or its beginning and then all of it in a new process: equal logs, all in causal order."""
    lines = [
        line(d.source, d.seq, 0, dict(d.deps)) for d in sorted(history.deltas, key=lambda d: len(history.held[d.dot]))
    ]

    async def main() -> None:
        whole, parts = Rig(), Rig()
        await import_into(whole, lines)
        await import_into(parts, lines[:cut])
        count = await import_into(parts, lines if again else lines[cut:])
        assert count.applied == len(lines[cut:])
        assert whole.store.heads() == parts.store.heads()
        assert stored(whole.store) == stored(parts.store)
        time_of = {d.dot: d.timestamp for d in every(stored(whole.store))}
        for delta in history.deltas:
            causes = [time_of[dot] for dot in history.held[delta.dot] - {delta.dot}]
            assert time_of[delta.dot] == max(causes, default=-1) + 1  # the smallest that fits (invariant I6)

    trio.run(main)


async def test_i6_a_time_that_fits_stays_and_one_that_does_not_moves_as_little_as_it_must() -> None:
    rig = Rig()
    noon = pack(NOON_MS)
    lines = [
        line("alice", 1, noon + 100),
        line("alice", 2, noon + 50),
        line("bob", 1, noon, {"alice": 2}),
        line("bob", 2, noon + 102),
        line("bob", 3, noon + 500),
    ]
    await import_into(rig, lines)
    times = {d.dot: d.timestamp - noon for d in every(stored(rig.store))}
    assert times == {("alice", 1): 100, ("alice", 2): 101, ("bob", 1): 102, ("bob", 2): 103, ("bob", 3): 500}


async def test_times_of_causes_that_were_imported_long_ago_come_from_the_log() -> None:
    rig = Rig()
    await import_into(rig, [line("alice", seq, 5) for seq in range(1, 4)])
    await import_into(rig, [line("bob", 1, 0, {"alice": 2}), line("bob", 2, 0, {"alice": 3}), line("alice", 4)])
    assert {d.dot: d.timestamp for d in every(stored(rig.store))} == {
        ("alice", 1): 5,
        ("alice", 2): 6,
        ("alice", 3): 7,
        ("alice", 4): 8,
        ("bob", 1): 7,
        ("bob", 2): 8,
    }


async def test_a_log_that_dropped_its_beginning_knows_the_rest_of_the_file() -> None:
    """The times of what retention dropped are gone, and with them what the others' times were made from."""
    lines = [line("alice", seq, 3) for seq in range(1, 6)] + [line("bob", 1, 0, {"alice": 3}), line("alice", 6)]
    rig = Rig()
    await import_into(rig, lines)
    async with rig.running(OWN) as log:
        await log.truncate(until={"alice": 4})
    before = stored(rig.store)
    assert await import_into(rig, lines) == ImportCount(7, 0, 7)
    assert await import_into(rig, lines[3:]) == ImportCount(4, 0, 4)
    assert stored(rig.store) == before


# ------------------------------------------------------------------------------------------------------ what is refused


async def test_what_stands_before_a_bad_line_stays_and_it_and_what_follows_do_not() -> None:
    rig = Rig()
    lines = [line("alice", seq) for seq in range(1, 2 * BATCH)]
    lines[BATCH + 10] = b'{"source": "alice", "seq": "x"}'
    error = await refused(rig, lines)
    assert error.number == BATCH + 11
    assert str(error).startswith(f"line {BATCH + 11}: time is missing")
    assert rig.store.heads()["alice"].seq == BATCH + 10
    assert rig.store.survivor().heads()["alice"].seq == BATCH + 10


async def test_another_delta_under_a_dot_that_is_held_is_a_fork_and_ends_the_import() -> None:
    rig = Rig()
    await import_into(rig, [line("alice", 1), line("alice", 2)])
    error = await refused(rig, [line("alice", 1), line("alice", 2, payload="other"), line("alice", 3)])
    assert error.number == 2
    assert "'alice':2 is refused" in str(error)
    assert "forked" in str(error)
    assert rig.store.heads()["alice"].seq == 2


async def test_a_fork_within_the_file_ends_the_import_too() -> None:
    rig = Rig()
    error = await refused(rig, [line("alice", 1), line("alice", 1, payload="other"), line("alice", 2)])
    assert error.number == 2
    assert rig.store.heads()["alice"].seq == 1


async def test_a_fork_of_a_line_that_waits_ends_the_import() -> None:
    rig = Rig()
    error = await refused(rig, [line("alice", 2), line("alice", 2), line("alice", 2, payload="other")])
    assert str(error) == "line 3: 'alice':2 stands in line 1 with other content"


async def test_the_first_line_that_waits_for_what_never_comes_is_named() -> None:
    rig = Rig()
    error = await refused(rig, [line("carol", 1), line("bob", 1, 0, {"alice": 7}), line("bob", 2), line("dora", 9)])
    need = "line 2: 'bob':1 needs 'alice':7, which is neither in the log nor in the file"
    assert str(error) == f"{need}; 2 more lines wait"
    assert rig.store.heads().keys() == {"carol"}


async def test_lines_that_wait_are_bounded_in_number_and_bytes() -> None:
    lines = [line("alice", seq) for seq in range(9, 1, -1)]
    error = await refused(Rig(), lines, waiting_deltas=4)
    assert error.number == 5
    assert "'alice':5 must wait for 'alice':4, and 4 lines" in str(error)
    assert "the limit is 4 " in str(error)
    assert (await refused(Rig(), lines, waiting_bytes=100)).number == 3


async def test_the_number_is_that_of_the_line_that_waited() -> None:
    ahead = pack(NOON_MS + 61_000)
    error = await refused(Rig(), [line("alice", 2, ahead), line("bob", 1), line("alice", 1)])
    assert error.number == 1
    assert "timestamp is 61,000 ms ahead of this node's clock; the bound is 60,000 ms" in str(error)


async def test_a_time_ahead_of_the_clock_is_refused_and_one_within_the_bound_is_not() -> None:
    rig = Rig()
    error = await refused(
        rig,
        [
            line("alice", 1, pack(NOON_MS + 59_000)),
            line("alice", 2, to_iso(pack(NOON_MS + 3_600_000))),
            line("bob", 1),
        ],
    )
    assert error.number == 2
    assert "3,600,000 ms ahead" in str(error)
    assert {source: head.seq for source, head in rig.store.heads().items()} == {"alice": 1}


async def test_i1_what_claims_to_be_this_nodes_own_is_refused() -> None:
    rig = Rig()
    error = await refused(rig, [line("bob", 1), line(OWN, 1)])
    assert error.number == 2
    assert "claims to be this log's own" in str(error)
    assert rig.store.heads().keys() == {"bob"}


async def test_this_nodes_own_deltas_are_known_in_an_export_of_it() -> None:
    rig = Rig()
    async with rig.running(OWN) as log:
        await log.append("mine")
        await log.receive([remote("bob", 1, 0)])
        await log.append("mine too")
        lines = await exported(log)
    assert await import_into(rig, lines) == ImportCount(3, 0, 3)


async def test_an_erased_line_of_a_delta_that_is_held_whole_is_known_and_changes_nothing() -> None:
    rig = Rig()
    whole = remote("bob", 1, 0, payload="secret")
    await import_into(rig, [to_line(whole)])
    gone = erase(whole, chain.payload_hash(whole))
    assert await import_into(rig, [to_line(gone)]) == ImportCount(1, 0, 1)
    assert stored(rig.store)["bob"] == [whole]


async def test_blank_lines_are_skipped_and_counted_in_the_numbers() -> None:
    rig = Rig()
    error = await refused(rig, [b"", line("alice", 1), b" \r", b"", b"nonsense"])
    assert error.number == 5
    assert rig.store.heads()["alice"].seq == 1


async def test_a_cancelled_import_completes_when_it_is_run_again() -> None:
    lines = [line("alice", seq) for seq in range(1, 3 * BATCH)]
    whole = Rig()
    await import_into(whole, lines)
    rig = Rig()
    with trio.CancelScope() as scope:
        async with rig.running(OWN) as log:
            importer = Importer(log)
            await importer.take(1, lines[:BATCH])
            scope.cancel()
            await importer.take(BATCH + 1, lines[BATCH:])
    assert scope.cancelled_caught
    assert BATCH <= rig.store.heads()["alice"].seq < 3 * BATCH - 1
    await import_into(rig, lines)
    assert stored(rig.store) == stored(whole.store)
