"""The server keeps to its own OpenAPI document: schemathesis makes requests from it, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", PATHS)
def test_it_keeps_to_its_document(document: Any, path: str, mode: str, rounds: Rounds) -> None:
    operation = document[path]["GET"]
    if mode == "negative" and not list(operation.iter_parameters()):
        return
    # A value that the document allows may be refused all the same: times the wrong way round, a cursor made up.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=rounds(100, nightly=5000), suppress_health_check=list(HealthCheck), deadline=None)
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        answer = case.call(session=session)
        if answer.status_code in (414, 431):  # a refusal, too, which schemathesis does not count as one
            assert mode == "negative"
        else:
            case.validate_response(answer, excluded_checks=excluded)

    with requests.Session() as session:
        ask()


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
        if path.startswith("/api"):
            assert {"400", "401", "429", "503"} <= set(item["get"]["responses"])
