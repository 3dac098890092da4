"""What the HTTP API says when it refuses: problem details (RFC 9457), which name the parameter that is wrong.

    {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "limit: expected `int` <= 1000",
     "parameter": "limit", "errors": [{"parameter": "limit", "detail": "expected `int` <= 1000"}]}

Lives here: the form, and the error that carries one. Does not know: requests, servers, what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import attrs

MEDIA_TYPE: Final = "application/problem+json"
_DETAIL_CHARS: Final = 500


@attrs.frozen
class ParameterError:
    """One parameter that is wrong."""

    parameter: str
    """Its name in the query, the path or the header."""
    detail: str


@attrs.frozen(kw_only=True)
class Problem:
    """The body of every answer from 400 on."""

    type: str = "about:blank"
    """No further page: title and status say which kind it is."""
    title: str
    status: int
    detail: str
    parameter: str | None = None
    """The first parameter that is wrong, if one is."""
    errors: Sequence[ParameterError] = ()
    """Every parameter that is wrong."""


class Refused(Exception):
    """Raised inside the API to answer with a problem instead."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.headers = dict(headers or {})


def problem(status: int, detail: str, errors: Sequence[ParameterError] = ()) -> Problem:
    """A problem of this status; without a detail of its own it says what is wrong with the parameters."""
    errors = [attrs.evolve(error, detail=_short(error.detail), parameter=_short(error.parameter)) for error in errors]
    said = _short(detail) or "; ".join(f"{error.parameter}: {error.detail}" for error in errors)
    name = errors[0].parameter if errors else None
    title = HTTPStatus(status).phrase
    return Problem(title=title, status=status, detail=said or title, parameter=name, errors=errors)


def refused(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Refused:
    """The error that answers with `status`."""
    return Refused(problem(status, detail), headers)


def wrong(parameter: str, detail: str, status: int = 400) -> Refused:
    """The error that says what is wrong with one parameter."""
    return Refused(problem(status, "", [ParameterError(parameter, detail)]))


def to_bytes(given: Problem) -> bytes:
    """The body as JSON. Fields that say nothing are left out."""
    fields: dict[str, Any] = attrs.asdict(given, filter=lambda _, value: value is not None and value != [])
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def _short(text: str) -> str:
    return text if len(text) <= _DETAIL_CHARS else f"{text[:_DETAIL_CHARS]}..."
