"""The HTTP API's routes: they answer what the trail holds, and refuse what is wrong by its name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit import api
from audit.api_values import COLUMNS, csv_rows
from audit.event import Action, AuditEvent, Recorded
from audit.lease import Holder
from audit.query import Query
from audit.target import Target
from deltalog.clock import to_iso
from deltalog.errors import StoreBusy
from tests.app.served import FILES, Served, known_trail, serving

EVENTS = "/api/audit/events"


@attrs.frozen
class Known:
    """A served trail and what is in it."""

    served: Served
    events: list[Recorded]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    data = tmp_path_factory.mktemp("api") / "data"
    events = known_trail(data)
    with serving(data) as served:
        yield Known(served, events)
        assert not served.faults


def numbers(events: list[Any]) -> list[int]:
    return [event["number"] for event in events]


FILTERS: list[dict[str, Any]] = [
    {},
    {"holder": "agent-2"},
    {"action": ["conflict"]},
    {"action": ["expired", "revoked", "gap"]},
    {"lock_id": "lock-7"},
    {"target": FILES[1]},
    {"target_prefix": "src/"},
    {"min_token": 9},
    {"holder": "agent-1", "action": ["acquired"], "target_prefix": "src/app", "min_token": 2},
    {"holder": "nobody"},
]


@pytest.mark.parametrize("order", ["oldest", "newest"])
@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_every_filter_answers_what_a_naive_one_does(known: Known, asked: dict[str, Any], order: str) -> None:
    until = known.events[-1].event.timestamp
    fields = {name: value for name, value in asked.items() if name != "action"}
    query = Query(**fields, actions=tuple(map(Action, asked.get("action", ()))))
    expected = [each.number for each in known.events if query.matches(each.event)]
    answer = known.served.events(**asked, order=order, until=until, limit=1000)
    assert numbers(answer) == (expected if order == "oldest" else expected[::-1])


def test_times_are_exclusive_and_inclusive_in_both_forms(known: Known) -> None:
    low, high = known.events[5].event.timestamp, known.events[12].event.timestamp
    for after, until in ((low, high), (to_iso(low), to_iso(high))):
        assert numbers(known.served.events(after=after, until=until)) == list(range(7, 14))


def test_an_event_says_all_it_holds(known: Known) -> None:
    for recorded in known.events[2:30]:
        event = recorded.event
        answer = known.served.get(f"{EVENTS}/{recorded.number}").json
        assert answer == {
            "number": recorded.number,
            "time": to_iso(event.timestamp),
            "timestamp": str(event.timestamp),
            "metadata": dict(event.metadata),
            **{
                name: getattr(event, name)
                for name in ("action", "target", "holder_id", "holder_name", "lock_id", "token")
            },
        }


def test_pages_are_stable_while_events_arrive(known: Known) -> None:
    found: list[int] = []
    first = known.served.get(EVENTS, limit=7)
    expected = (
        known.served.wait(known.served.node.trail.reader.query, Query(newest_first=True, limit=1)).events[0].number
    )
    cursor = first.json["cursor"]
    found += numbers(first.json["events"])
    while cursor is not None:
        known.served.record(3)
        answer = known.served.get(EVENTS, limit=7, cursor=cursor).json
        found += numbers(answer["events"])
        cursor = answer["cursor"]
    assert found == list(range(1, expected + 1))


def test_a_page_is_cut_to_its_size_and_goes_on(known: Known) -> None:
    known.served.record(60, holder_id="big", metadata={f"{n:03}": "x" * 1024 for n in range(32)})
    found: list[int] = []
    cursor = None
    while cursor is not None or not found:
        answer = known.served.get(EVENTS, holder="big", limit=1000, cursor=cursor)
        assert len(answer.body) < api.PAGE_BYTES_MAX + 40_000
        found += numbers(answer.json["events"])
        cursor = answer.json["cursor"]
    assert len(found) == len(set(found)) == 60


# --------------------------------------------------------------------------------------------------- what is wrong


WRONG = [
    (EVENTS, "limit", ["0", "1001", "-1", "x", "1.5", "", "null"]),
    (EVENTS, "min_token", ["-1", "x", "", "null", "NULL", str(2**63)]),
    (EVENTS, "action", ["", "ACQUIRED", "steal", "null"]),
    (EVENTS, "order", ["", "up"]),
    (EVENTS, "holder", ["", "x" * 256]),
    (EVENTS, "lock_id", ["", "x" * 256]),
    (EVENTS, "target", ["", "../etc", "a:5-1", "a\0b"]),
    (EVENTS, "target_prefix", [""]),
    (EVENTS, "after", ["", "yesterday", "2026-01-01", "2026-13-01T00:00:00Z", str(2**64), "-1"]),
    (EVENTS, "until", ["", "x", "2026-01-01T00:00:00"]),
    (EVENTS, "cursor", ["", "x", "A" * 46, "=" * 10, "x" * 4097]),
    (EVENTS, "limt", ["5"]),
    (f"{EVENTS}/0", "number", [None]),
    (f"{EVENTS}/{2**63}", "number", [None]),
    ("/api/audit/summary", "until", ["x"]),
    ("/api/audit/held", "target", [None, "", "a//../b"]),
    ("/api/audit/held", "at", ["noon"]),
    ("/api/audit/export", "format", ["xml"]),
    ("/api/audit/live", "after_number", ["-1", "x", "null", "Null", "999999999"]),
    ("/api/locks", "target", ["../x"]),
    ("/api/locks/waiting", "holder", [""]),
]


@pytest.mark.parametrize(("path", "parameter", "values"), WRONG, ids=[f"{path} {name}" for path, name, _ in WRONG])
def test_what_is_wrong_is_refused_by_its_name(
    known: Known, path: str, parameter: str, values: list[str | None]
) -> None:
    given_well = {"target": "a"} if path.endswith("/held") and parameter != "target" else {}
    for value in values:
        asked: dict[str, Any] = {**given_well, **({} if value is None else {parameter: value})}
        answer = known.served.get(path, **asked)
        assert answer.status == 400, (value, answer)
        assert answer.blamed == [parameter], (value, answer)
        problem = answer.json
        assert problem["parameter"] == parameter
        assert problem["status"] == 400
        assert problem["title"] == "Bad Request"
        assert problem["detail"].startswith(f"{parameter}: ")


def test_a_parameter_given_twice_is_refused_unless_it_is_a_list(known: Known) -> None:
    assert known.served.get(EVENTS, limit=[1, 2]).blamed == ["limit"]
    assert known.served.get(EVENTS, action=["acquired", "released"]).status == 200


def test_times_the_wrong_way_round_are_refused(known: Known) -> None:
    for path in (EVENTS, "/api/audit/summary", "/api/audit/export"):
        assert known.served.get(path, after="2", until="1").blamed == ["after"]


def test_a_cursor_answers_its_own_question_only(known: Known) -> None:
    cursor = known.served.get(EVENTS, limit=2, holder="agent-1").json["cursor"]
    assert known.served.get(EVENTS, limit=2, holder="agent-2", cursor=cursor).blamed == ["cursor"]


TEXT = st.text(max_size=40) | st.sampled_from(["%00", "\ud7ff", "�", "1" * 30, "null", "[]", "\u0663"])
NAMES = (
    "holder",
    "action",
    "lock_id",
    "target",
    "target_prefix",
    "after",
    "until",
    "min_token",
    "order",
    "limit",
    "cursor",
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(NAMES), TEXT, max_size=4))
@example({"target": "a:\u0661-\u0662"})
def test_any_text_is_answered_or_refused_by_name(known: Known, asked: dict[str, Any]) -> None:
    answer = known.served.get(EVENTS, **asked)
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert set(answer.blamed) <= asked.keys()
        assert answer.blamed


PARAMETERS = {
    "/api/audit/live": (*NAMES[:-3], "after_number"),
    "/api/audit/export": (*NAMES[:-2], "format"),
    "/api/audit/summary": ("after", "until"),
    "/api/audit/held": ("target", "at"),
    "/api/locks": ("holder", "target"),
    "/api/locks/waiting": ("holder", "target"),
}


@settings(max_examples=20)
@given(st.data())
@pytest.mark.parametrize("path", PARAMETERS)
def test_any_text_is_answered_or_refused_everywhere(known: Known, path: str, data: st.DataObject) -> None:
    """By HEAD, since a live tail never ends."""
    asked: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(PARAMETERS[path]), TEXT, max_size=4))
    last = data.draw(st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=25))
    headers = None if last is None else {"Last-Event-ID": last}
    assert known.served.get(path, method="HEAD", headers=headers, **asked).status in (200, 400)


@pytest.mark.parametrize("path", ["/nothing", "/api/audit", f"{EVENTS}/x", f"{EVENTS}/99999999", "/api/../x"])
def test_what_is_not_there_is_a_problem_too(known: Known, path: str) -> None:
    answer = known.served.get(path)
    assert (answer.status, answer.blamed) == (404, [])


# ------------------------------------------------------------------------------------------------ other questions


def test_one_call_says_who_held_what_when(known: Known) -> None:
    acquired = next(each for each in known.events if each.event.target == FILES[1])
    moment = acquired.event.timestamp + (1000 << 16)
    assert numbers(known.served.get("/api/audit/held", target="src/app.py:20-25", at=moment).json) == [
        acquired.number - 1,  # the whole file, which these lines are a part of
        acquired.number,
    ]
    assert known.served.get("/api/audit/held", target="other.py", at=moment).json == []


def test_a_summary_counts_what_is_there(known: Known) -> None:
    answer = known.served.get("/api/audit/summary", until=known.events[-1].event.timestamp).json
    assert answer["events"] == len(known.events)
    for name, field in (("by_holder", "holder_id"), ("by_target", "target"), ("by_action", "action")):
        values = [getattr(each.event, field) for each in known.events]
        assert answer[name] == {value: values.count(value) for value in values if value}
    assert answer["dropped"] == 12
    assert answer["most_contended"][0] == {"target": FILES[0], "count": 10}
    assert answer["longest_held"][0]["duration_ms"] >= answer["longest_held"][1]["duration_ms"] > 0


def test_exports_hold_every_event(known: Known) -> None:
    until = known.events[-1].event.timestamp
    lines = known.served.get("/api/audit/export", until=until).body.splitlines()
    assert [json.loads(line) for line in lines] == known.served.events(until=until, limit=1000)
    answer = known.served.get("/api/audit/export", until=until, format="csv", order="newest")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["number"]) for row in rows] == [each.number for each in known.events][::-1]
    assert [row["target"] for row in rows] == [each.event.target for each in known.events][::-1]


def test_csv_runs_in_no_spreadsheet() -> None:
    event = AuditEvent(1, Action.ACQUIRED, "+cmd", "=1+1", "@x", "-2", 3, {"=k": "=v"})
    (row,) = csv.reader(io.StringIO(csv_rows([Recorded(1, event)]).decode()))
    assert [row[COLUMNS.index(name)] for name in ("target", "holder_id", "holder_name", "lock_id", "token")] == [
        *("'+cmd", "'=1+1", "'@x", "'-2"),
        "3",
    ]


def test_locks_are_those_of_the_table(known: Known) -> None:
    async def contend() -> tuple[Any, Any]:
        locks, target = known.served.node.locks, Target.parse("locks.py:1-9")
        lease = await locks.acquire([target, Target("b")], Holder("h1", "one"), intention="edit", ttl_s=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: locks.acquire(target, Holder("h2"), wait_s=60))
            await trio.testing.wait_all_tasks_blocked()
            ask = trio.to_thread.run_sync
            held = await ask(lambda: known.served.get("/api/locks", target="locks.py").json)
            waiting = await ask(lambda: known.served.get("/api/locks/waiting", holder="h2").json)
            assert await ask(lambda: known.served.get("/api/locks", holder="h2").json) == []
            await locks.release(lease)
        return held, waiting

    (lease,), (waiting,) = known.served.wait(contend)
    assert (lease["holder_id"], lease["targets"], lease["intention"]) == ("h1", ["locks.py:1-9", "b"], "edit")
    assert 50 < lease["remaining_s"] <= 60
    assert (waiting["holder_id"], waiting["blocked_by"]) == ("h2", lease["lock_id"])
    assert "secret" not in lease


# ------------------------------------------------------------------------------------------------------- faults


def test_a_fault_says_nothing_to_the_client(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("secret in /etc/passwd")

    monkeypatch.setattr(known.served.node.trail.reader, "get", broken)
    answer = known.served.get(f"{EVENTS}/1")
    assert (answer.status, answer.blamed) == (500, [])
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert [str(error) for error in known.served.faults] == ["secret in /etc/passwd"]
    known.served.faults.clear()


def test_a_store_that_is_busy_is_a_reason_to_come_back(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(_: object) -> None:
        raise StoreBusy("it is being opened again")

    monkeypatch.setattr(known.served.node.trail.reader, "get", busy)
    answer = known.served.get(f"{EVENTS}/1")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_question_that_takes_too_long_is_refused(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(known.served.node.trail.reader, "query", never)
    monkeypatch.setattr(api, "ANSWER_S_MAX", 0.01)
    answer = known.served.get(EVENTS)
    assert answer.status == 503
    assert "narrow" in answer.json["detail"]
