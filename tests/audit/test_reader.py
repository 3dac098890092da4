"""Answers: pages that neither overlap nor shift, streams, who held what when, summaries, and a tail without a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from audit.errors import AuditClosed, EventsExpired
from audit.event import Action, AuditEvent, Recorded
from audit.query import CursorInvalid, Query
from audit.reader import Reader
from audit.recorder import Recorder
from audit.store import AuditStore
from deltalog.clock import Clock
from deltalog.errors import UsageError
from tests.audit.trails import event, opened, some_events, write_all


async def inline(call: Callable[..., Any], *arguments: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return call(*arguments)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = opened(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def reader(store: AuditStore) -> Reader:
    return Reader(store, None, inline)


async def pages(reader: Reader, query: Query, between: Callable[[], object] = lambda: None) -> list[int]:
    found: list[int] = []
    while True:
        page = await reader.query(query)
        found += [each.number for each in page.events]
        if page.cursor is None:
            return found
        between()
        query = attrs.evolve(query, cursor=page.cursor)


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_give_each_event_once_while_others_arrive(
    store: AuditStore, reader: Reader, newest_first: bool
) -> None:
    events = some_events(300)
    write_all(store, events)
    last = events[-1].timestamp
    for query in (
        Query(limit=7, newest_first=newest_first),
        Query(limit=7, newest_first=newest_first, holder="h1", actions=(Action.ACQUIRED, Action.DENIED)),
        Query(limit=7, newest_first=newest_first, target_prefix="src/", after=1100, until=1400, min_token=10),
    ):
        head = store.head.number
        everything = [each.event for each in store.get_many(range(1, head + 1))]
        expected = [n for n, each in enumerate(everything, 1) if query.matches(each)]
        found = await pages(reader, query, lambda: store.write([event(last, holder_id="h1", token=40)]))
        assert found == (expected[::-1] if newest_first else expected)
        streamed = [each.number async for each in reader.stream(query)]
        assert streamed[:: -1 if newest_first else 1][: len(expected)] == expected


async def test_pages_go_on_while_retention_removes(store: AuditStore, reader: Reader) -> None:
    write_all(store, some_events(200))
    first = await reader.query(Query(limit=10))
    store.truncate(50)
    second = await reader.query(Query(limit=10, cursor=first.cursor))
    assert [each.number for each in second.events] == list(range(51, 61))


async def test_an_empty_trail_and_an_empty_range(store: AuditStore, reader: Reader) -> None:
    assert (await reader.query(Query())).events == []
    store.write([event(5)])
    assert (await reader.query(Query(after=9, until=3))).cursor is None
    assert await reader.get(2) is None
    assert await reader.get(1) == Recorded(1, event(5))
    for wrong in (0, -1, 2**63, "1"):
        with pytest.raises(UsageError, match="number"):
            await reader.get(wrong)  # type: ignore[arg-type]
    with pytest.raises(CursorInvalid):
        await reader.query(Query(cursor="nonsense"))


def lease(number: int, target: str, holder: str, action: Action = Action.ACQUIRED, at: int | None = None) -> AuditEvent:
    return event(
        at if at is not None else number, action, target=target, holder_id=holder, lock_id=f"l{number}", token=number
    )


async def held(reader: Reader, target: str, at: int) -> list[str]:
    return [each.event.holder_id for each in await reader.held(target, at)]


async def test_who_held_a_file_at_a_time(store: AuditStore, reader: Reader) -> None:
    store.write(
        [
            lease(10, "src/app.py:1-9", "a"),
            lease(20, "src/app.py:20-29", "b"),
            lease(30, "src/other.py", "c"),
            lease(10, "src/app.py:1-9", "a", Action.RELEASED, at=40),
            lease(50, "src/", "d"),
            lease(20, "src/app.py:20-29", "b", Action.EXPIRED, at=60),
            lease(70, "src/deep/er/x.py#function:f", "e"),
            AuditEvent(80, Action.STARTED),
            lease(90, "src/app.py", "f"),
        ]
    )
    assert await held(reader, "src/app.py", 5) == []
    assert await held(reader, "src/app.py", 25) == ["a", "b"]
    assert await held(reader, "src/app.py:1-3", 25) == ["a"]
    assert await held(reader, "src/app.py:10-19", 25) == []
    assert await held(reader, "src/app.py", 39) == ["a", "b"]
    assert await held(reader, "src/app.py", 40) == ["b"]
    assert await held(reader, "src/app.py:1-3", 55) == ["d"]
    assert await held(reader, "src/", 75) == ["c", "d", "e"]
    assert await held(reader, "src/deep/", 75) == ["d", "e"]
    assert await held(reader, "src/app.py", 80) == [], "no lease outlives a start"
    assert await held(reader, "src/app.py", 10**6) == ["f"]
    assert await held(reader, "elsewhere", 10**6) == []
    with pytest.raises(UsageError, match="target"):
        await reader.held("", 1)


async def test_a_summary_counts_what_is_in_its_time(store: AuditStore, reader: Reader) -> None:
    gap = AuditEvent(100 << 16, Action.GAP, metadata={"count": "7", "first": "1", "last": "2"})
    ms = 1 << 16
    store.write(
        [
            lease(1, "a.py", "a", at=10 * ms),
            lease(2, "b.py", "b", at=20 * ms),
            event(25 * ms, Action.CONFLICT, target="a.py", holder_id="b", lock_id="l9"),
            event(26 * ms, Action.WAITING, target="a.py", holder_id="b", lock_id="l9"),
            lease(1, "a.py", "a", Action.RELEASED, at=70 * ms),
            gap,
        ]
    )
    whole = await reader.summary()
    assert whole.events == 6
    assert (whole.first_number, whole.last_number, whole.dropped) == (1, 6, 7)
    assert whole.by_action == {"acquired": 2, "conflict": 1, "waiting": 1, "released": 1, "gap": 1}
    assert whole.by_holder == {"b": 3, "a": 2}
    assert whole.most_contended == (("a.py", 2),)
    assert [(each.acquired.number, each.duration_ms, each.ended) for each in whole.longest_held] == [
        (2, 80, False),
        (1, 60, True),
    ]
    part = await reader.summary(after=20 * ms, until=26 * ms)
    assert (part.events, part.first_number, part.last_number) == (2, 3, 4)
    assert (await reader.summary(after=10**9)).events == 0


async def test_a_summary_of_more_than_one_read(store: AuditStore, reader: Reader) -> None:
    write_all(store, some_events(4_500), 500)
    assert (await reader.summary()).events == 4_500


# ------------------------------------------------------------------------------------------------------------- follow


@asynccontextmanager
async def live(store: AuditStore) -> AsyncIterator[tuple[Recorder, Reader]]:
    recorder = Recorder(store, Clock(wall_ns=lambda: 0), lambda: True, None, inline)
    async with recorder.running():
        yield recorder, Reader(store, recorder, inline)


async def test_a_tail_has_what_was_and_what_comes_each_once(
    store: AuditStore, autojump_clock: trio.testing.MockClock
) -> None:
    write_all(store, some_events(1_200), 500)
    async with live(store) as (recorder, reader), aclosing(reader.follow(700)) as tail:
        found: list[int] = []
        async for each in tail:
            found.append(each.number)
            if len(found) % 7 == 0 and len(found) < 1_000:
                recorder.log(event(10**9 + len(found)))
            if len(found) == 575:
                break
        assert found == list(range(701, 1_276))


async def test_a_tail_waits_and_ends_when_the_trail_closes(
    store: AuditStore, autojump_clock: trio.testing.MockClock
) -> None:
    found: list[Action] = []
    ended: list[BaseException] = []

    async def follow(reader: Reader) -> None:
        try:
            async for each in reader.follow(0):
                found.append(each.event.action)  # noqa: PERF401
        except AuditClosed as error:
            ended.append(error)

    async with trio.open_nursery() as nursery, live(store) as (recorder, reader):
        nursery.start_soon(follow, reader)
        await trio.sleep(5)
        recorder.log(event(1))
        await trio.sleep(5)
    assert found == [Action.STARTED, Action.ACQUIRED, Action.STOPPED]
    assert ended


async def test_a_tail_from_the_oldest_event_begins_there_while_retention_removes(store: AuditStore) -> None:
    write_all(store, some_events(1_000))

    async def inline_after_retention(call: Callable[..., Any], *arguments: Any) -> Any:
        store.truncate(store.head.floor + 300)
        return await inline(call, *arguments)

    async with aclosing(Reader(store, None, inline_after_retention).follow(0)) as tail:
        assert (await anext(tail)).number == 301


async def test_a_tail_says_what_retention_took_from_it(store: AuditStore, reader: Reader) -> None:
    write_all(store, some_events(1_000))
    tail = reader.follow(10)
    assert (await anext(tail)).number == 11
    store.truncate(900)
    with pytest.raises(EventsExpired, match="to 900") as raised:
        async for _ in tail:
            pass
    assert raised.value.floor == 900
    with pytest.raises(EventsExpired):
        await anext(reader.follow(5))
    oldest = reader.follow(0)
    assert (await anext(oldest)).number == 901
    await oldest.aclose()
    for wrong in (-1, 1_001, "1"):
        with pytest.raises(UsageError, match="after_number"):
            await anext(reader.follow(wrong))  # type: ignore[arg-type]
