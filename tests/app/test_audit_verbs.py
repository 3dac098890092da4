"""audit query, tail, summary, verify, export and locks: of a directory and of a running node, the same answers."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from audit.event import Recorded
from deltalog.app.http_guard import token_hash
from deltalog.app.remote import Remote, RemoteError
from deltalog.app.serve_verb import TOKEN_VARIABLE
from tests.app.invoked import COMMAND, digest, environment, execute, invoke, lines_of, one_line, printed
from tests.app.served import FILES, known_trail, serving

TOKEN = "correct-horse-battery"


@attrs.frozen
class Trail:
    """A trail, and how a verb reaches it."""

    where: list[object]
    events: list[Recorded]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Trail:
    data = tmp_path_factory.mktemp("verbs") / "data"
    return Trail(["--data", data], known_trail(data))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    data = tmp_path_factory.mktemp("remote") / "data"
    events = known_trail(data)
    with serving(data) as served:
        yield Trail(["--url", served.url], events)


@pytest.fixture(params=["directory", "node"])
def trail(request: pytest.FixtureRequest) -> Trail:
    found: Trail = request.getfixturevalue(request.param)
    return found


def numbers(lines: list[Any]) -> list[int]:
    return [line["number"] for line in lines]


def until(trail: Trail) -> list[object]:
    """Without what a running node adds."""
    return ["--until", trail.events[-1].event.timestamp]


@pytest.mark.parametrize(
    "filters",
    [
        [],
        ["--holder", "agent-1"],
        ["--action", "conflict", "--action", "gap"],
        ["--target", "./src//app.py:10-40"],
        ["--target-prefix", "src/", "--min-token", 5, "--newest-first"],
        ["--lock-id", "lock-3"],
    ],
    ids=str,
)
def test_query_prints_exactly_what_passes(trail: Trail, filters: list[object]) -> None:
    named = {str(name)[2:]: value for name, value in zip(filters[::2], filters[1::2], strict=False)}

    def passes(recorded: Recorded) -> bool:
        event = recorded.event
        return (
            event.holder_id == named.get("holder", event.holder_id)
            and ("action" not in named or event.action in ("conflict", "gap"))
            and ("target" not in named or event.target == FILES[1])
            and event.target.startswith(str(named.get("target-prefix", "")))
            and event.token >= int(named.get("min-token", 0))  # type: ignore[call-overload]
            and event.lock_id == named.get("lock-id", event.lock_id)
        )

    expected = [each.number for each in trail.events if passes(each)]
    found = numbers(lines_of("audit", "query", *trail.where, *filters, *until(trail), "--json"))
    assert found == (expected[::-1] if "--newest-first" in filters else expected)


def test_query_ends_at_its_limit_and_says_how_to_go_on(trail: Trail) -> None:
    first = invoke("audit", "query", *trail.where, "--limit", 5, "--json")
    assert numbers([json.loads(line) for line in first.stdout.splitlines()]) == [1, 2, 3, 4, 5]
    said = one_line(first.stderr)
    assert "--cursor " in said
    rest = lines_of("audit", "query", *trail.where, "--limit", 3, "--cursor", said.split()[-1], "--json")
    assert numbers(rest) == [6, 7, 8]


def test_a_person_reads_one_line_an_event(trail: Trail) -> None:
    lines = printed("audit", "query", *trail.where, "--action", "revoked", *until(trail)).splitlines()
    assert len(lines) == sum(each.event.action == "revoked" for each in trail.events)
    assert all("revoked" in line and FILES[2] in line and "reason=test" in line for line in lines)


def test_tail_prints_the_newest_in_order(trail: Trail) -> None:
    found = numbers(lines_of("audit", "tail", *trail.where, "--limit", 4, "--action", "acquired", "--json"))
    assert found == [each.number for each in trail.events if each.event.action == "acquired"][-4:]


def test_summary_says_the_same_of_both(directory: Trail, node: Trail) -> None:
    for trail in (directory, node):
        (said,) = lines_of("audit", "summary", *trail.where, *until(trail), "--json")
        assert said["events"] == len(trail.events)
        assert said["by_holder"]["agent-1"] == sum(each.event.holder_id == "agent-1" for each in trail.events)
        assert "held longest" in printed("audit", "summary", *trail.where)


def test_export_holds_everything_in_both_forms(trail: Trail) -> None:
    lines = lines_of("audit", "export", *trail.where, *until(trail))
    assert lines == lines_of("audit", "query", *trail.where, "--limit", 1000, *until(trail), "--json")
    rows = list(csv.DictReader(io.StringIO(printed("audit", "export", *trail.where, *until(trail), "--format", "csv"))))
    assert [int(row["number"]) for row in rows] == [each.number for each in trail.events]


def test_asking_changes_nothing(directory: Trail) -> None:
    data = Path(str(directory.where[1]))
    before = digest(data / "rocks" / "audit")
    for words in (["query"], ["tail"], ["summary"], ["export"], ["verify"]):
        printed("audit", *words, *directory.where)
    printed("locks", *directory.where)
    assert len(lines_of("audit", "query", *directory.where, "--limit", 1000, "--json")) == len(directory.events)
    assert digest(data / "rocks" / "audit") == before


def test_verify_prints_a_head_that_can_be_checked_later(directory: Trail, tmp_path: Path) -> None:
    said, head = printed("audit", "verify", *directory.where).splitlines()
    assert said == f"as it was recorded in {len(directory.events)} events"
    printed("audit", "verify", *directory.where, "--head", head)
    known_trail(tmp_path / "other")
    result = invoke("audit", "verify", "--data", tmp_path / "other", "--head", head, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["kind"] in ("head", "cut")
    longer = head.replace(f":{len(directory.events)}:", ":5000:")
    assert invoke("audit", "verify", *directory.where, "--head", longer).exit_code == 1
    assert invoke("audit", "verify", *directory.where, "--head", "x").exit_code == 2


def test_locks_of_a_killed_node_are_those_it_held(tmp_path: Path) -> None:
    data = tmp_path / "data"
    program = f"""
import trio
from pathlib import Path
from audit.lease import Holder
from audit.target import Target
from deltalog.app.node import open_node
async def main():
    async with open_node(Path({str(data)!r})) as node:
        kept = [await node.locks.acquire(Target(name), Holder("h", "her")) for name in ("a", "b", "c")]
        await node.locks.release(kept[1])
        await node.trail.recorder.flush()
        print("held", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        busy = execute("locks", "--data", data)
        assert (busy.returncode, "is open in process" in one_line(busy.stderr.decode())) == (1, True)
        process.send_signal(signal.SIGKILL)
    assert [lease["target"] for lease in lines_of("locks", "--data", data, "--json")] == ["a", "c"]
    assert [lease["target"] for lease in lines_of("locks", "--data", data, "--target", "c", "--json")] == ["c"]
    assert lines_of("locks", "--data", data, "--holder", "x", "--json") == []
    with serving(data):
        pass
    assert lines_of("locks", "--data", data, "--json") == [], "leases end with the process that gave them"


def test_tail_follows_a_node_until_it_is_told_to_end(tmp_path: Path) -> None:
    with serving(tmp_path / "data", token_hashes=(token_hash(TOKEN),)) as served:
        words = [*COMMAND, "audit", "tail", "--url", served.url, "--follow", "--json", "--limit", "1"]
        settings = environment(**{TOKEN_VARIABLE: TOKEN})
        served.record(1)
        with subprocess.Popen(words, env=settings, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())["number"]
            recording = threading.Thread(target=served.record, args=(3,))
            recording.start()
            assert [json.loads(process.stdout.readline())["number"] for _ in range(3)] == [
                first + 1,
                first + 2,
                first + 3,
            ]
            recording.join()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        refused = execute("locks", "--url", served.url, DELTALOG_TOKEN="wrong")
        assert (refused.returncode, "Bearer" in one_line(refused.stderr.decode())) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["audit", "query"], 2, "Missing option '--data'"),
        (["audit", "query", "--url", "ftp://x"], 2, "http://HOST:PORT"),
        (["audit", "query", "--url", "http://127.0.0.1:1"], 1, "cannot ask"),
        (["audit", "query", "--data", "/nonexistent/x"], 1, "/nonexistent/x"),
        (["audit", "query", "--data", "x", "--action", "steal"], 2, "--action"),
        (["audit", "query", "--data", "x", "--target", "../x"], 2, "--target"),
        (["audit", "query", "--data", "x", "--after", "2", "--until", "1"], 2, "--after"),
        (["audit", "query", "--data", "x", "--holder", ""], 2, "--holder"),
        (["audit", "tail", "--data", "x", "--follow"], 2, "--url"),
        (["audit", "tail", "--data", "x", "--limit", "1001"], 2, "--limit"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(words: list[str], code: int, said: str) -> None:
    result = invoke(*words)
    assert (result.exit_code, said in one_line(result.stderr)) == (code, True), result.stderr


def test_a_directory_without_a_trail_says_so(tmp_path: Path) -> None:
    printed("append", "1", "--data", tmp_path / "data")
    result = invoke("audit", "summary", "--data", tmp_path / "data")
    assert (result.exit_code, "has no audit trail" in one_line(result.stderr)) == (1, True)


def test_a_wrong_cursor_is_the_callers_fault(trail: Trail) -> None:
    result = invoke("audit", "query", *trail.where, "--cursor", "A" * 46)
    assert (result.exit_code, "cursor" in one_line(result.stderr)) == (2, True)


def test_a_redirect_is_not_followed_with_the_token() -> None:
    import http.server

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(RemoteError, match="status 302"):
            Remote(f"http://127.0.0.1:{server.server_port}", TOKEN).get("/api/locks", {})
        thread.join()
