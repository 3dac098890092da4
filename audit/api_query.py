"""Parameters of the HTTP API: how each is written, and what they ask for.

Lives here: names, bounds and descriptions of parameters (the OpenAPI document takes them from here), and the check that
nothing else was given. Does not know: what answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from litestar import Request
from litestar.exceptions import ValidationException
from litestar.openapi.spec import OpenAPI, Parameter, Schema
from litestar.params import QueryParameter

from audit.event import ID_BYTES, TARGET_BYTES, TIMESTAMP_MAX, TOKEN_MAX, Action
from audit.problems import ParameterError, Refused, problem, wrong
from audit.query import LIMIT_MAX, Query
from audit.target import Target
from deltalog.clock import from_iso
from deltalog.errors import UsageError

TIME_CHARS: Final = 64
CURSOR_CHARS: Final = 4096
_DIGITS: Final = len(str(TIMESTAMP_MAX))
_TIME: Final = "ISO 8601 with an offset, as 2026-01-31T12:00:00.123Z, or a timestamp's number"

HolderId = Annotated[
    str | None,
    QueryParameter(description="Id of the holder, exactly.", min_length=1, max_length=ID_BYTES, required=False),
]
Actions = Annotated[
    list[Action] | None, QueryParameter(description="Only these actions; may be given several times.", required=False)
]
LockId = Annotated[
    str | None,
    QueryParameter(description="Id of the lock, exactly.", min_length=1, max_length=ID_BYTES, required=False),
]
TargetText = Annotated[
    str | None,
    QueryParameter(
        description="The target, exactly: `src/app.py`, `src/app.py:10-20`, `src/app.py#function:main`.",
        min_length=1,
        max_length=TARGET_BYTES,
        required=False,
    ),
]
TargetPrefix = Annotated[
    str | None,
    QueryParameter(description="Targets whose text begins so.", min_length=1, max_length=TARGET_BYTES, required=False),
]
After = Annotated[
    str | None,
    QueryParameter(description=f"Only after this time: {_TIME}.", min_length=1, max_length=TIME_CHARS, required=False),
]
Until = Annotated[
    str | None,
    QueryParameter(description=f"Only up to this time: {_TIME}.", min_length=1, max_length=TIME_CHARS, required=False),
]
At = Annotated[
    str | None,
    QueryParameter(
        description=f"At this time (default: now): {_TIME}.", min_length=1, max_length=TIME_CHARS, required=False
    ),
]
MinToken = Annotated[
    int | None,
    QueryParameter(
        description="Fencing token, at least.", ge=0, le=TOKEN_MAX, required=False, schema_extra={"minimum": 0}
    ),
]
Order = Annotated[Literal["oldest", "newest"], QueryParameter(description="Which come first.", required=False)]
Limit = Annotated[int, QueryParameter(description="At most so many.", ge=1, le=LIMIT_MAX, required=False)]
CursorText = Annotated[
    str | None,
    QueryParameter(
        description="`cursor` of the page before; the other parameters as they were.",
        min_length=1,
        max_length=CURSOR_CHARS,
        required=False,
    ),
]


def filters(
    holder: HolderId = None,
    action: Actions = None,
    lock_id: LockId = None,
    target: TargetText = None,
    target_prefix: TargetPrefix = None,
    after: After = None,
    until: Until = None,
    min_token: MinToken = None,
) -> Query:
    """Which events. Raises `Refused` naming the parameter."""
    after_at, until_at = moment("after", after), moment("until", until)
    if after_at is not None and until_at is not None and after_at > until_at:
        raise wrong("after", "it comes after `until`")
    return asking(
        holder=holder,
        actions=tuple(action or ()),
        lock_id=lock_id,
        target=None if target is None else canonical(target),
        target_prefix=target_prefix,
        after=after_at,
        until=until_at,
        min_token=min_token,
    )


def moment(parameter: str, text: str | None) -> int | None:
    """The timestamp that a parameter says."""
    if text is None:
        return None
    try:
        if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= TIMESTAMP_MAX:
            return int(text)
        return from_iso(text, parameter)
    except UsageError as error:
        raise wrong(parameter, str(error).removeprefix(f"{parameter} is ")) from error


def canonical(text: str) -> str:
    """The canonical text of a target."""
    try:
        return str(Target.parse(text))
    except UsageError as error:
        raise wrong("target", str(error)) from error


def asking(**fields: Any) -> Query:
    """A query; what is wrong with it is laid to the parameter that its error names first."""
    try:
        return Query(**fields)
    except UsageError as error:
        raise wrong(blamed(str(error), fields), str(error)) from error


def blamed(message: str, names: Mapping[str, object]) -> str:
    """Which of these parameters an error speaks of."""
    found = [(message.find(name), name) for name in names if name in message]
    return min(found)[1] if found else next(iter(names), "query")


# ----------------------------------------------------------------------------------------- what may not be asked


def refuse_unknown(request: Request[Any, Any, Any]) -> None:
    """Refuse a parameter that the route does not have, one given twice that is no list, and a number that is `null`.

    A filter with a slip in its name would otherwise answer with everything; so would one with a missing number.
    """
    known = _parameters(request)
    errors: list[ParameterError] = []
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            errors.append(ParameterError(name, f"there is no such parameter; there are: {names}"))
        elif name in seen and known[name] != "array":
            errors.append(ParameterError(name, "it is given more than once"))
        elif value.lower() == "null" and known[name] == "integer":
            errors.append(ParameterError(name, "it must be a number, not null"))
        seen.add(name)
    if errors:
        raise Refused(problem(400, "", errors))


def _parameters(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Query parameters of this route, and the type of each, as the OpenAPI document says."""
    cache: dict[str, dict[str, str]] = request.app.state.setdefault("parameters", {})
    template = request.scope["path_template"]
    if template not in cache:
        item = (request.app.openapi_schema.paths or {}).get(template)
        given = (item.get.parameters if item is not None and item.get is not None else None) or []
        cache[template] = {
            each.name: _type(each.schema) for each in given if isinstance(each, Parameter) and each.param_in == "query"
        }
    return cache[template]


def _type(schema: Any) -> str:
    return str(getattr(schema.type, "value", schema.type))


def without_null(document: OpenAPI) -> None:
    """Say of each parameter what it is when it is given. One left out is `None` in Python; no URL can hold a null."""
    for item in (document.paths or {}).values():
        for each in (item.get.parameters if item.get is not None else None) or []:
            if isinstance(each, Parameter) and isinstance(each.schema, Schema) and each.schema.one_of:
                (given,) = (one for one in each.schema.one_of if isinstance(one, Schema) and _type(one) != "null")
                each.schema.type, each.schema.items, each.schema.one_of = given.type, given.items, None


def invalid(error: ValidationException) -> Refused:
    """What the framework found wrong with parameters, as a problem."""
    extra = error.extra if isinstance(error.extra, list) else []
    errors = [ParameterError(str(each.get("key", "")), str(each.get("message", ""))) for each in extra]
    return Refused(problem(400, "" if errors else error.detail, errors))
