"""Streams that resume and end, clients that stall and vanish, and the verb `serve` from its begin to its end."""

from __future__ import annotations

import gc
import json
import re
import signal
import socket
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from audit import api_streams
from audit.event import Recorded
from audit.opening import TrailOptions
from audit.retention import AuditRetention
from deltalog.app import serve_verb
from deltalog.errors import UsageError
from tests.app.invoked import execute, invoke, lines_of, one_line, start
from tests.app.served import Served, serving

TOKEN = "correct-horse-battery"
LIVE = "/api/audit/live"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve") / "data", write_s=1.0) as node:
        yield node
        assert not node.faults


class Tail:
    """A client of the live tail, on a socket of its own."""

    def __init__(self, served: Served, *, receive_bytes: int = 0, **headers: str) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", served.port))
        query, path = headers.pop("query", ""), headers.pop("path", LIVE)
        lines = [
            f"GET {path}?{query} HTTP/1.1",
            "Host: localhost",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self.socket.makefile("rb")

    def lines(self) -> Iterator[str]:
        """Lines of the answer's head and body, chunk sizes among them."""
        for line in self._file:
            yield line.decode().rstrip("\r\n")

    def begun(self) -> Tail:
        """Wait until it is clear with which event it begins."""
        assert "retry: 1000" in self.lines()
        return self

    def numbers(self, count: int) -> list[int]:
        """The ids of the next events."""
        found: list[int] = []
        lines = self.lines()
        while len(found) < count:
            line = next(lines)
            if line.startswith("id: "):
                found.append(int(line[4:]))
            elif line.startswith("data: "):
                assert json.loads(line[6:])["number"] == found[-1]
        return found

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def head_of(served: Served) -> int:
    return int(served.events(order="newest", limit=1)[0]["number"])


# ------------------------------------------------------------------------------------------------------------ live tail


def test_a_tail_catches_up_and_goes_on_without_a_gap(served: Served) -> None:
    served.record(20)
    begin = head_of(served)

    def record() -> None:
        for _ in range(20):
            served.record(10)

    recording = threading.Thread(target=record)
    recording.start()
    with closing(Tail(served, query="after_number=0")) as tail:
        assert tail.numbers(begin + 200) == list(range(1, begin + 201))
    recording.join()


def test_a_tail_resumes_behind_the_last_event_it_saw(served: Served) -> None:
    begin = head_of(served)
    with closing(Tail(served).begun()) as tail:
        served.record(5)
        seen = tail.numbers(3)
    served.record(7)
    with closing(Tail(served, Last_Event_ID=str(seen[-1]))) as tail:
        served.record(2)
        assert seen + tail.numbers(11) == list(range(begin + 1, begin + 15))


def test_a_header_counts_more_than_the_parameter_and_filters_hold(served: Served) -> None:
    begin = head_of(served)
    served.record(2, holder_id="a")
    served.record(2, holder_id="b")
    with closing(Tail(served, query="holder=b&after_number=0", Last_Event_ID=str(begin))) as tail:
        served.record(1, holder_id="a")
        served.record(1, holder_id="b")
        assert tail.numbers(3) == [begin + 3, begin + 4, begin + 6]


@pytest.mark.parametrize("value", ["x", "-1", "1.0", "99999999", "9" * 30, "\u0661"])
def test_a_tail_refuses_an_id_of_another_trail(served: Served, value: str) -> None:
    answer = served.get(LIVE, headers={"Last-Event-ID": value.encode().decode("latin-1")})
    assert (answer.status, answer.blamed) == (400, ["Last-Event-ID"])


def test_a_tail_says_when_retention_removed_what_comes_next(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as served:
        served.record(50)
        served.call(served.node.trail.store.truncate, 20)
        answer = served.get(LIVE, headers={"Last-Event-ID": "5"})
        assert answer.status == 410
        assert "go on after 20" in answer.json["detail"]
        with closing(Tail(served, Last_Event_ID="20")) as tail:
            assert tail.numbers(2) == [21, 22]


def test_a_quiet_tail_beats(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_streams, "BEAT_S", 0.01)
    with closing(Tail(served)) as tail:
        assert sum(line == ":" for line, _ in zip(tail.lines(), range(60), strict=False)) > 3


LARGE = {"holder_id": "large", "metadata": {str(n): "x" * 1000 for n in range(20)}}


def test_a_stalled_tail_bounds_memory_and_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3000
    served.record(count, **LARGE)
    given: list[int] = []
    encode = api_streams.sse_frame

    def counted(each: Recorded) -> bytes:
        given.append(each.number)
        return encode(each)

    monkeypatch.setattr(api_streams, "sse_frame", counted)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    with closing(Tail(served, receive_bytes=4096, query="holder=large&after_number=0")) as tail:
        wait_tails(served, 1)
        wait_tails(served, 0)  # cut after `write_s`
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(given) < count / 2, "it read ahead"
        assert peak - before < 30e6, "500 events of a read at a time, of 60 MB"
        seen: list[str] = []
        with suppress(ConnectionError):
            seen.extend(tail.lines())
        assert sum(line.startswith("id: ") for line in seen) <= len(given)
        assert "0" not in seen, "a client must not take the cut for the end"


def test_a_stalled_tail_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    encode = api_streams.sse_frame

    def count(each: Recorded) -> bytes:
        nonlocal counted
        counted += 1
        return encode(each)

    monkeypatch.setattr(api_streams, "sse_frame", count)
    with serving(tmp_path / "data", write_s=1000.0) as served:
        served.record(500, **LARGE)
        stalled = Tail(served, receive_bytes=4096, query="after_number=0")
        wait_tails(served, 1)
        deadline = time.monotonic() + 15
        while not served.wait(waiting_writes):
            assert time.monotonic() < deadline
        assert counted < 500
    stalled.close()  # only now: `serving` has seen its thread end


async def waiting_writes() -> int:
    """Tasks of the server that wait until a socket takes more."""
    waiting: int = trio.lowlevel.current_statistics().io_statistics.tasks_waiting_write
    return waiting


def tails(served: Served) -> float:
    """How many run, as the metrics say."""
    (found,) = re.findall(rb"^deltalog_http_tails (\S+)$", served.get("/metrics").body, re.MULTILINE)
    return float(found)


def wait_tails(served: Served, count: int) -> None:
    deadline = time.monotonic() + 15
    while tails(served) != count:
        assert time.monotonic() < deadline


def test_a_vanished_tail_gives_its_slot_back(served: Served) -> None:
    clients = [Tail(served) for _ in range(5)]
    wait_tails(served, 5)
    for tail in clients:
        tail.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
        tail.close()
    wait_tails(served, 0)


def test_tails_are_limited(tmp_path: Path) -> None:
    with serving(tmp_path / "data", live_tails=1) as served:
        with closing(Tail(served)):
            wait_tails(served, 1)
            answer = served.get(LIVE)
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        wait_tails(served, 0)


def test_an_export_that_fails_is_cut_and_not_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.record(10)

    async def broken(_: object) -> Any:
        yield (await served.node.trail.reader.get(1))
        raise OSError("disk gone")

    monkeypatch.setattr(served.node.trail.reader, "stream", broken)
    monkeypatch.setattr(api_streams, "CHUNK_BYTES", 1)
    with pytest.raises(Exception, match="IncompleteRead"):
        served.get("/api/audit/export")
    assert [str(error) for error in served.faults] == ["disk gone"]
    served.faults.clear()


def test_the_end_of_the_server_ends_a_tail_and_cuts_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "data") as served:
        served.record(3)

        async def endless(_: object) -> Any:
            yield (await served.node.trail.reader.get(1))
            await trio.sleep_forever()

        monkeypatch.setattr(served.node.trail.reader, "stream", endless)
        monkeypatch.setattr(api_streams, "CHUNK_BYTES", 1)
        tail = Tail(served).begun()
        export = Tail(served, path="/api/audit/export")
        assert any('"number":1' in line for line in export.lines())
    assert list(tail.lines())[-2:] == ["0", ""]
    with suppress(ConnectionError):
        assert "0" not in export.lines()
    tail.close()
    export.close()


# --------------------------------------------------------------------------------------------------- the verb `serve`


def listening(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["url"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: int) -> None:
    data = tmp_path / "data"
    with start("serve", "--data", data, "--port", 0, "--json") as process:
        port = int(listening(process).rpartition(":")[2])
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", port))
        stalled.sendall(f"GET {LIVE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert stalled.recv(12) == b"HTTP/1.1 200"
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "closed in order" in one_line(process.stderr.read().decode())
        stalled.close()
    actions = [event["action"] for event in lines_of("audit", "query", "--data", data, "--json")]
    assert actions == ["started", "stopped"]


def test_it_refuses_what_would_not_be_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("short\n")
    cases: list[tuple[list[object], str, int]] = [
        (["--host", "0.0.0.0"], "takes a token", 2),
        (["--token-file", tokens], "at least 16", 2),
        (["--token-file", tmp_path / "none"], "cannot read", 2),
        (["--tls-cert", "x"], "both", 2),
        (["--port", "99999"], "--port", 2),
    ]
    for words, said, code in cases:
        result = invoke("serve", "--data", tmp_path / "data", *words)
        assert (result.exit_code, said in one_line(result.stderr)) == (code, True), result.stderr
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(serve_verb, "_NEEDED", ("litestar", "not_installed"))
    result = invoke("serve", "--data", tmp_path / "data")
    assert (result.exit_code, "deltalog[api]" in one_line(result.stderr)) == (1, True)


def test_a_port_that_is_taken_is_one_line(served: Served, tmp_path: Path) -> None:
    result = execute("serve", "--data", tmp_path / "data", "--port", served.port)
    assert result.returncode == 1
    assert "in use" in one_line(result.stderr.decode())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], None),
        (["--trail-days", "0.5"], AuditRetention(age_s=43_200.0)),
        (["--trail-bytes", "1000"], AuditRetention(size_bytes=1000)),
        (["--trail-days", "1", "--trail-bytes", "9"], AuditRetention(age_s=86_400.0, size_bytes=9)),
    ],
)
def test_what_the_trail_keeps_can_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], kept: AuditRetention | None
) -> None:
    opened: list[TrailOptions] = []

    def open_node(path: Path, *, trail: TrailOptions, **rest: Any) -> Any:
        opened.append(trail)
        raise UsageError("far enough")

    monkeypatch.setattr(serve_verb, "open_node", open_node)
    assert one_line(invoke("serve", "--data", tmp_path / "data", *words).stderr).endswith("far enough")
    assert [each.retention for each in opened] == [kept]
