"""Routes of the HTTP API over the trail's reader and the locks. Everything here reads; nothing changes anything.

Lives here: paths, what each takes and answers, how long a question may take. Does not know: the server, tokens, who may
ask. `deltalog.app.http` puts `routes(...)` into the one server.

    GET /api/audit/events             events by any filter, in pages
    GET /api/audit/events/{number}    one event
    GET /api/audit/summary            counts by action, holder and target; longest held; most contended
    GET /api/audit/held               who held a target at a time
    GET /api/audit/live               what is recorded from now on, or from Last-Event-ID on: server-sent events
    GET /api/audit/export             all events of a filter, as JSON lines or CSV
    GET /api/locks                    leases in force now
    GET /api/locks/waiting            requests in the queue now
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import attrs
import trio
from litestar import Request, Response, Router, get
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIResponse, Operation
from litestar.params import HeaderParameter, PathParameter, QueryParameter, SkipValidation

from audit import problems
from audit.api_query import (
    After,
    At,
    CursorText,
    HolderId,
    Limit,
    Order,
    TargetText,
    Until,
    canonical,
    filters,
    invalid,
    moment,
    refuse_unknown,
)
from audit.api_streams import EVENT_STREAM, Streamed, export, live
from audit.api_values import (
    EventPage,
    EventView,
    LeaseView,
    SummaryView,
    WaitingView,
    event_view,
    json_line,
    lease_view,
    summary_view,
    waiting_view,
)
from audit.errors import EventsExpired
from audit.event import TIMESTAMP_MAX
from audit.locks import Locks
from audit.problems import MEDIA_TYPE, Problem, Refused, refused, wrong
from audit.query import CursorInvalid, Query
from audit.reader import Reader
from deltalog.errors import DeltaLogError, UsageError

PAGE_BYTES_MAX: Final = 1 << 20
"""A page is cut to this; its cursor goes on behind the cut."""
ANSWER_S_MAX: Final = 5.0
"""A question that takes longer is refused: narrow it."""
SUMMARY_S_MAX: Final = 30.0
"""A summary reads every event of its range."""
NUMBER_MAX: Final = 2**63 - 1
_RETRY_S: Final = 1

_Answer = TypeVar("_Answer")


@attrs.frozen(kw_only=True)
class Sources:
    """What the routes read."""

    reader: Reader
    locks: Locks | None
    """None: this process has no lock table; the trail alone is shown."""
    closing: trio.Event = attrs.field(factory=trio.Event)
    """Set by the server when it ends: streams end."""
    live_slots: trio.CapacityLimiter
    """One for each live tail."""
    on_fault: Callable[[BaseException], None] = lambda _: None
    """Called with what no handler expected; the client sees a 500 and nothing of it."""


Api = NamedDependency[SkipValidation[Sources]]
Filters = NamedDependency[SkipValidation[Query]]
LastEventId = Annotated[
    str | None,
    HeaderParameter(name="Last-Event-ID", description="Number of the last event that arrived.", required=False),
]
AfterNumber = Annotated[
    int | None,
    QueryParameter(
        description="Begin behind this event; 0: with the first [default: what comes from now on].",
        ge=0,
        le=NUMBER_MAX,
        required=False,
        schema_extra={"minimum": 0},
    ),
]

REFUSALS: Final = {
    status: ResponseSpec(Problem, media_type=MEDIA_TYPE, description=text)
    for status, text in (
        (400, "A parameter is wrong; the answer names it"),
        (401, "The bearer token is missing or wrong"),
        (404, "It is not there"),
        (410, "Retention removed it"),
        (414, "The query is too long"),
        (429, "Too many requests"),
        (503, "Not now"),
    )
}
"""What an answer from 400 on means, for the OpenAPI document."""


# ------------------------------------------------------------------------------------------------- events of the trail


@get("/audit/events", summary="Events by any filter, in pages", responses=REFUSALS)
async def list_events(
    api: Api, asked: Filters, order: Order = "oldest", limit: Limit = 100, cursor: CursorText = None
) -> Response[EventPage]:
    """Events that pass every filter. `cursor` of the answer gives the next page, whatever is recorded meanwhile."""
    query = attrs.evolve(asked, newest_first=order == "newest", limit=limit, cursor=cursor)
    while True:
        page = await _answer(api.reader.query(query))
        lines = [json_line(recorded) for recorded in page.events]
        fitting = _fitting(lines)
        if fitting == len(lines):
            break
        query = attrs.evolve(query, limit=fitting)
    tail = b"null" if page.cursor is None else b'"%b"' % page.cursor.encode()
    body: Any = b'{"events":[%b],"cursor":%b}' % (b",".join(lines), tail)
    return Response(body, media_type="application/json")


def _fitting(lines: Sequence[bytes]) -> int:
    """How many lines fit a page; at least one."""
    size = 0
    for count, line in enumerate(lines):
        size += len(line)
        if size > PAGE_BYTES_MAX:
            return max(1, count)
    return len(lines)


@get("/audit/events/{number:int}", summary="One event", responses=REFUSALS)
async def one_event(
    api: Api, number: Annotated[int, PathParameter(description="Its place in the trail.", ge=1, le=NUMBER_MAX)]
) -> EventView:
    """The event with this number; 404 if it is not there yet, or no more."""
    recorded = await _answer(api.reader.get(number))
    if recorded is None:
        raise refused(404, f"the trail holds no event {number}")
    return event_view(recorded)


@get("/audit/summary", summary="Counts and rankings over a range of time", responses=REFUSALS)
async def summary(api: Api, after: After = None, until: Until = None) -> SummaryView:
    """Counts by action, holder and target; what was held longest; what was contended most."""
    after_at, until_at = moment("after", after), moment("until", until)
    if after_at is not None and until_at is not None and after_at > until_at:
        raise wrong("after", "it comes after `until`")
    return summary_view(await _answer(api.reader.summary(after_at, until_at), SUMMARY_S_MAX))


@get("/audit/held", summary="Who held a target at a time", responses=REFUSALS)
async def held(api: Api, target: TargetText, at: At = None) -> list[EventView]:
    """The events that gave the leases which covered the target, or a part of it, at that time."""
    if target is None:
        raise wrong("target", "it is missing")
    at_time = moment("at", at)
    found = await _answer(api.reader.held(canonical(target), TIMESTAMP_MAX if at_time is None else at_time))
    return [event_view(each) for each in found]


# -------------------------------------------------------------------------------------------------------------- streams


@get(
    "/audit/live",
    summary="Live tail, as server-sent events",
    responses=REFUSALS
    | {200: ResponseSpec(str, media_type=EVENT_STREAM, description="`id`, `event: audit`, `data`: one event")},
)
async def live_tail(
    api: Api, asked: Filters, last_event_id: LastEventId = None, after_number: AfterNumber = None
) -> Streamed:
    """What is recorded from now on. With Last-Event-ID (or `after_number`) first all that came since, without a gap."""
    head = await _head(api.reader)
    begin = _event_id(last_event_id, head)
    if begin is None and after_number is not None:
        begin = _behind("after_number", after_number, head)
    if begin:
        await _refuse_expired(api.reader, begin)
    return live(api.reader.follow(head if begin is None else begin), asked.matches, api.closing, api.live_slots)


def _event_id(text: str | None, head: int) -> int | None:
    """The number that a client gives back. Refuses one of another trail."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(NUMBER_MAX))):
        raise wrong("Last-Event-ID", "it is the number of an event")
    return _behind("Last-Event-ID", int(text), head)


def _behind(parameter: str, number: int, head: int) -> int:
    if number > head:
        raise wrong(parameter, f"the trail ends with event {head}: the number comes from another one")
    return number


async def _refuse_expired(reader: Reader, number: int) -> None:
    """Retention may have removed what came next: the client must know, and begin elsewhere."""
    oldest = await _answer(reader.query(Query(limit=1)))
    if oldest.events and number < oldest.events[0].number - 1:
        raise EventsExpired(number, oldest.events[0].number - 1)


async def _head(reader: Reader) -> int:
    """Number of the trail's last event."""
    newest = await _answer(reader.query(Query(newest_first=True, limit=1)))
    return newest.events[0].number if newest.events else 0


@dataclass
class _ExportOperation(Operation):
    """The framework documents one media type for an answer; an export has two."""

    def __post_init__(self) -> None:
        done = (self.responses or {}).get("200")
        if isinstance(done, OpenAPIResponse) and done.content is not None:
            done.content["text/csv"] = done.content["application/jsonl"]


@get(
    "/audit/export",
    operation_class=_ExportOperation,
    summary="All events of a filter",
    responses=REFUSALS
    | {200: ResponseSpec(str, media_type="application/jsonl", description="One event a line, or CSV")},
)
async def export_events(
    api: Api,
    asked: Filters,
    order: Order = "oldest",
    format: Annotated[  # noqa: A002  # the parameter's name
        Literal["jsonl", "csv"], QueryParameter(description="JSON lines, or CSV.", required=False)
    ] = "jsonl",
) -> Streamed:
    """Every event that passes the filter, as it is read: the answer may be longer than memory."""
    query = attrs.evolve(asked, newest_first=order == "newest", limit=1000)
    return export(api.reader.stream(query), format, api.closing)


# ---------------------------------------------------------------------------------------------------------------- locks


@get("/locks", summary="Leases in force now", responses=REFUSALS)
async def list_locks(api: Api, holder: HolderId = None, target: TargetText = None) -> list[LeaseView]:
    """Leases in memory of this process: all, of one holder, or those that touch a target."""
    found = _locks(api).leases(holder=holder, target=_some_target(target))
    return [lease_view(lease, trio.current_time()) for lease in found]


@get("/locks/waiting", summary="Requests in the queue now", responses=REFUSALS)
async def list_waiting(api: Api, holder: HolderId = None, target: TargetText = None) -> list[WaitingView]:
    """Who waits for a lock: all, one holder, or for what touches a target; first come first."""
    found = _locks(api).waiting(holder=holder, target=_some_target(target))
    return [waiting_view(waiting, trio.current_time()) for waiting in found]


def _locks(api: Sources) -> Locks:
    if api.locks is None:
        raise refused(404, "this process has no lock table")
    return api.locks


def _some_target(text: str | None) -> str | None:
    return None if text is None else canonical(text)


# ------------------------------------------------------------------------------------------------------ what goes wrong


async def _answer(question: Awaitable[_Answer], within_s: float | None = None) -> _Answer:
    """The answer, within its time."""
    within_s = ANSWER_S_MAX if within_s is None else within_s
    with trio.move_on_after(within_s):
        return await question
    raise refused(503, f"no answer within {within_s:g} s: narrow the question by time, target or holder")


def say(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Any error as a problem. What is not expected here is reported to `on_fault`, and says nothing of itself."""
    said = _refusal(request, error)
    headers = {"cache-control": "no-store", **said.headers}
    body = problems.to_bytes(said.problem)
    return Response(body, status_code=said.problem.status, media_type=MEDIA_TYPE, headers=headers)


def _refusal(request: Request[Any, Any, Any], error: Exception) -> Refused:
    match error:
        case Refused():
            return error
        case CursorInvalid():
            return wrong("cursor", str(error).removeprefix("cursor "))
        case ValidationException():
            return invalid(error)
        case NotFoundException():
            return refused(404, f"there is nothing at {request.scope['path']}")
        case HTTPException():
            return refused(error.status_code, error.detail, error.headers)
        case EventsExpired():
            return refused(410, str(error))
        case UsageError():
            return refused(400, str(error))
        case DeltaLogError() if error.retryable:
            return refused(503, str(error), {"retry-after": str(_RETRY_S)})
    request.app.state.sources.on_fault(error)
    return refused(500, "a fault in the server; its operator can read about it in the server's output")


def routes(sources: Sources) -> Router:
    """All routes under /api, over these sources."""
    handlers = [list_events, one_event, summary, held, live_tail, export_events, list_locks, list_waiting]
    return Router(
        "/api",
        route_handlers=handlers,
        dependencies={
            "api": Provide(lambda: sources, sync_to_thread=False),
            "asked": Provide(filters, sync_to_thread=False),
        },
        before_request=refuse_unknown,
        exception_handlers={Exception: say},
        tags=["audit"],
    )
