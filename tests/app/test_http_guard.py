"""Who may ask, how much and how often; and what the server says of itself."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from audit.problems import Refused
from deltalog.app.http import ServeOptions, ssl_context
from deltalog.app.http_guard import Buckets, RequestLimits, token_hash
from deltalog.errors import UsageError
from tests.app.served import Served, serving

TOKEN = "correct-horse-battery"
LIVE = "/api/audit/live"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("open") / "data") as node:
        yield node
        assert not node.faults


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It takes a token."""
    with serving(
        tmp_path_factory.mktemp("guarded") / "data", token_hashes=(token_hash(TOKEN), token_hash("x"))
    ) as node:
        yield node


# ---------------------------------------------------------------------------------------------------------- who may ask


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(TOKEN + "x"),
        bearer(TOKEN[:-1]),
        bearer(TOKEN.upper()),
        bearer("é" * 9),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer"},
        {"X-Token": TOKEN},
    ],
    ids=str,
)
def test_without_its_token_nobody_reads(guarded: Served, headers: dict[str, str]) -> None:
    for path in ("/api/audit/events", LIVE, "/metrics", "/api/openapi.json", "/nothing"):
        answer = guarded.get(path, headers=headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json["status"] == 401


def test_any_of_its_tokens_reads(guarded: Served) -> None:
    for headers in (bearer(TOKEN), bearer("x"), {"authorization": f"bearer  {TOKEN} "}):
        assert guarded.get("/api/audit/events", headers=headers).status == 200


def test_what_needs_no_token_says_nothing_of_the_data(guarded: Served) -> None:
    assert guarded.get("/health").json == {"status": "ok"}
    assert guarded.get("/health", headers=bearer(TOKEN)).json == {"status": "ok", "problems": []}
    assert b"<html" in guarded.get("/").body


def test_tokens_are_kept_hashed_and_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, guarded: Served) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    guarded.get("/api/locks", headers=bearer("guess"))
    digest = hashlib.sha256(b"guess").digest()
    assert compared == [(digest, token_hash(TOKEN)), (digest, token_hash("x"))]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil.example"]
)
def test_without_a_token_no_other_name_of_this_machine_is_taken(served: Served, host: str) -> None:
    assert served.get("/api/audit/events", headers={"Host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8760", "LOCALHOST:1"])
def test_its_own_names_are_taken(served: Served, host: str) -> None:
    assert served.get("/api/audit/events", headers={"Host": host}).status == 200


def test_others_are_let_in_only_with_a_token_and_encrypted() -> None:
    hashes = (token_hash(TOKEN),)
    with pytest.raises(UsageError, match="takes a token"):
        ServeOptions(host="0.0.0.0")
    with pytest.raises(UsageError, match="takes a certificate"):
        ServeOptions(host="::", token_hashes=hashes)
    with pytest.raises(UsageError, match="both"):
        ServeOptions(certificate="x.pem")
    ServeOptions(host="0.0.0.0", token_hashes=hashes, plain=True)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_everything_only_reads(served: Served, method: str) -> None:
    for path in ("/api/audit/events", "/api/locks", "/", "/nothing"):
        answer = served.get(path, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_head_answers_as_get_without_a_body(served: Served) -> None:
    for path in ("/api/audit/events", LIVE, "/api/audit/export", "/"):
        answer = served.get(path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
    assert served.get("/api/audit/events?limit=0", method="HEAD").status == 400


def test_requests_are_bounded_in_size(served: Served) -> None:
    assert served.get("/api/audit/events", target="x" * 9000).status == 414
    assert served.get("/api/audit/events", headers={"Content-Length": "1"}).status == 413
    assert served.get("/api/audit/events", headers={"Transfer-Encoding": "chunked"}).status == 413
    assert served.get("/api/audit/events", headers={"X": "y" * 20_000}).status == 431


def test_requests_are_bounded_in_rate(tmp_path: Path) -> None:
    with serving(tmp_path / "data", limits=RequestLimits(rate_per_s=0.01, burst=3)) as served:
        answers = [served.get("/health") for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert 50 <= int(answers[-1].headers["retry-after"]) <= 100
    assert answers[-1].headers["content-type"] == "application/problem+json"


def test_a_rate_is_each_clients_own_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    buckets = Buckets(2.0, 2, lambda: now)
    monkeypatch.setattr("deltalog.app.http_guard.CLIENTS_MAX", 3)
    for client in ("a", "a", "b", "b"):
        buckets.take(client)
    with pytest.raises(Refused):
        buckets.take("a")
    now = 0.5
    buckets.take("a")
    with pytest.raises(Refused):
        buckets.take("a")
    for client in "cdef":
        buckets.take(client)
    assert len(buckets._levels) == 3


def test_connections_are_bounded(tmp_path: Path) -> None:
    with serving(tmp_path / "data", connections=2, idle_s=0.3) as served:
        idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
        assert served.get("/health").status == 200
        assert any(_is_closed(each) for each in idle), "it had to wait for one of these to end"
        for each in idle:
            each.close()


def _is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_answers_say_what_browsers_may_do_with_them(served: Served) -> None:
    for path in ("/", "/api/audit/events", "/nothing", "/metrics"):
        headers = served.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
        assert headers["cache-control"] in ("no-store", "no-cache")


@pytest.mark.system("openssl")
def test_it_speaks_tls(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "2",
    ]
    subprocess.run([*make, "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with serving(tmp_path / "data", certificate=certificate, key=key, token_hashes=(token_hash(TOKEN),)) as served:
        assert served.url.startswith("https://")
        context = ssl.create_default_context(cafile=certificate)
        with (
            socket.create_connection(("127.0.0.1", served.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(f"GET /api/locks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            assert stream.recv(100).startswith(b"HTTP/1.1 200")
    with pytest.raises(UsageError, match="cannot use certificate"):
        ssl_context(ServeOptions(certificate=key, key=certificate))


# ------------------------------------------------------------------------------------------------- what else it serves


def test_metrics_count_what_happens(served: Served) -> None:
    served.record(3)
    served.get("/api/audit/events", limit="x")
    text = served.get("/metrics").body.decode()
    samples = {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    statistics = served.node.trail.recorder.statistics()
    assert samples["deltalog_audit_events_submitted_total", None, None] == statistics.submitted
    assert samples["deltalog_audit_events_recorded_total", None, None] == statistics.recorded
    assert samples["deltalog_audit_head", None, None] == served.node.trail.store.head.number
    assert samples["deltalog_http_requests_total", "/api/audit/events", "400"] >= 1
    assert samples["deltalog_healthy", None, None] == 1


def test_health_says_why_it_is_not_well(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(served.node), "problems", lambda _: ["the disk is full"])
    answer = served.get("/health")
    assert (answer.status, answer.json) == (503, {"status": "degraded", "problems": ["the disk is full"]})


def test_the_page_reaches_nothing_but_its_own_server(served: Served) -> None:
    answer = served.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    for kind, text in re.findall(rb"<(script|style)>(.*?)</\1>", answer.body, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{kind.decode()}-src 'sha256-{digest}'" in policy
    links = re.findall(rb"(?:https?:)?//[\w.]+\.\w+", answer.body)
    assert set(links) <= {b"http://www.w3.org"}
    for danger in (b"innerHTML", b"eval(", b"document.write", b"insertAdjacentHTML"):
        assert danger not in answer.body
