"""The server keeps to its own OpenAPI document: schemathesis makes requests from it, good ones and bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema_rs
import pytest
import requests
from hypothesis import HealthCheck, given, settings

from tests.app.served import Served, known_trail, serving
from tests.conftest import Rounds

schemathesis = pytest.importorskip("schemathesis")

LIVE = "/api/audit/live"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("openapi") / "data"
    known_trail(data)
    with serving(data) as node:
        yield node
        assert not node.faults


# A live tail never ends; its parameters are tested in test_serve.py.
PATHS = (
    "/api/audit/events",
    "/api/audit/events/{number}",
    "/api/audit/summary",
    "/api/audit/held",
    "/api/audit/export",
    "/api/locks",
    "/api/locks/waiting",
    "/api/peers",
    "/api/sources",
    "/health",
    "/metrics",
)


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/api/openapi.json")


def reads_as_allowed(url: str, parameters: list[dict[str, Any]], shared: dict[str, Any]) -> bool:
    """Whether a request, as it was sent, is one that the document allows.

    A wrong value may be a right one once it is text: for a string, the list `[false]` is sent as `false`.
    """
    schemas = {each["name"]: each["schema"] for each in parameters}
    parts = urlsplit(url)
    given: dict[str, list[str]] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        given.setdefault(name, []).append(text)
    given |= {each["name"]: [parts.path.rsplit("/", 1)[1]] for each in parameters if each["in"] == "path"}
    return given.keys() <= schemas.keys() and all(
        _reads_as(texts, schemas[name], shared) for name, texts in given.items()
    )


def _reads_as(texts: list[str], schema: dict[str, Any], shared: dict[str, Any]) -> bool:
    if "$ref" in schema:
        schema = shared[schema["$ref"].rsplit("/", 1)[1]]
    if schema["type"] == "array":
        return all(_reads_as([text], schema["items"], shared) for text in texts)
    if len(texts) > 1:
        return False
    if schema["type"] == "string":
        return bool(jsonschema_rs.is_valid(schema, texts[0]))
    try:
        return bool(jsonschema_rs.is_valid(schema, json.loads(texts[0])))
    except ValueError:
        return False


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", PATHS)
def test_it_keeps_to_its_document(served: Served, document: Any, path: str, mode: str, rounds: Rounds) -> None:
    operation = document[path]["GET"]
    if mode == "negative" and not list(operation.iter_parameters()):
        return
    # A value that the document allows may be refused all the same: times the wrong way round, a cursor made up.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    must_refuse = schemathesis.checks.CHECKS.get_one("negative_data_rejection")
    written = served.get("/api/openapi.json").json
    parameters, shared = written["paths"][path]["get"].get("parameters", []), written["components"]["schemas"]

    @settings(max_examples=rounds(100, nightly=5000), suppress_health_check=list(HealthCheck), deadline=None)
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        answer = case.call(session=session)
        if answer.status_code in (414, 431):  # a refusal, too, which schemathesis does not count as one
            assert mode == "negative"
        else:
            allowed = mode == "negative" and reads_as_allowed(answer.request.url, parameters, shared)
            case.validate_response(answer, excluded_checks=[*excluded, must_refuse] if allowed else excluded)

    with requests.Session() as session:
        ask()


def test_a_wrong_value_that_reads_as_a_right_one_is_known() -> None:
    parameters = [
        {"name": "target", "in": "query", "schema": {"type": "string", "minLength": 1}},
        {"name": "least", "in": "query", "schema": {"type": "integer", "minimum": 0}},
        {"name": "action", "in": "query", "schema": {"type": "array", "items": {"$ref": "#/x/Action"}}},
    ]
    shared = {"Action": {"type": "string", "enum": ["acquired", "released"]}}
    for query, allowed in (
        ("", True),
        ("target=false&least=1.0", True),
        ("action=acquired&action=released", True),
        ("target=", False),
        ("target=a&target=b", False),
        ("least=-1", False),
        ("least=null", False),
        ("least=one", False),
        ("action=acquired&action=other", False),
        ("other=1", False),
    ):
        assert reads_as_allowed(f"http://host/path?{query}", parameters, shared) is allowed, query
    number = [{"name": "number", "in": "path", "schema": {"type": "integer"}}]
    assert reads_as_allowed("http://host/events/5", number, {})
    assert not reads_as_allowed("http://host/events/five", number, {})


def test_the_document_names_every_route(served: Served) -> None:
    document = served.get("/api/openapi.json").json
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {LIVE, *PATHS}
    assert set(document["paths"]["/api/audit/export"]["get"]["responses"]["200"]["content"]) == {
        "application/jsonl",
        "text/csv",
    }
    for path, item in document["paths"].items():
        assert set(item) == {"get"}, path
        for parameter in item["get"].get("parameters", []):
            assert parameter["description"], (path, parameter)
            assert "null" not in json.dumps(parameter["schema"]), (path, parameter)
        if path.startswith("/api"):
            assert {"400", "401", "429", "503"} <= set(item["get"]["responses"])
