"""A node that serves, in a thread of the test's process, and a trail whose every event is known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import attrs
import trio

from audit.event import Action, AuditEvent, Recorded
from audit.opening import open_store
from audit.store import Run
from deltalog.app.http import ServeOptions, serve
from deltalog.app.http_guard import RequestLimits
from deltalog.app.node import Node, open_node
from deltalog.app.peer_options import PeerOptions
from deltalog.clock import pack
from deltalog.profiles import SharedMemory

T = TypeVar("T")
FREELY = RequestLimits(rate_per_s=1e6, burst=1_000_000)
"""Tests of something else than the rate ask as fast as they can."""


@attrs.define
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def blamed(self) -> list[str]:
        """Parameters that a problem names."""
        assert self.headers["content-type"] == "application/problem+json", self
        return [each["parameter"] for each in self.json.get("errors", [])]


class Served:
    """A running node."""

    def __init__(self) -> None:
        self.url = ""
        self.node: Node
        self.faults: list[BaseException] = []
        """What no route expected."""
        self._token: trio.lowlevel.TrioToken
        self._scope: trio.CancelScope
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **parameters: Any
    ) -> Answer:
        """Ask once."""
        query = urlencode({name: value for name, value in parameters.items() if value is not None}, doseq=True)
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"{path}?{query}".rstrip("?"), headers=headers or {})
            with connection.getresponse() as answer:
                named = {name.lower(): value for name, value in answer.getheaders()}
                stream = method == "GET" and named.get("content-type", "").startswith("text/event-stream")
                assert not stream, "this answer never ends"
                return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def events(self, **parameters: Any) -> list[Any]:
        """The events of one page."""
        answer = self.get("/api/audit/events", **parameters)
        assert answer.status == 200, answer
        return list(answer.json["events"])

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something in the node's thread."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def wait(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something asynchronous in the node's thread."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def record(self, count: int, **fields: Any) -> None:
        """Record events of now; they are in the trail on return."""

        async def log() -> None:
            trail = self.node.trail
            for _ in range(count):
                event = AuditEvent(trail.clock.tick(), **{"action": Action.ACQUIRED, "target": "now", **fields})
                await trail.recorder.submit(event)
            await trail.recorder.flush()

        self.wait(log)

    # ---- begin, end

    def run(self, data: Path, options: ServeOptions, peering: PeerOptions | None) -> None:
        """In the thread."""
        try:
            trio.run(self._main, data, options, peering)
        except BaseException as error:  # noqa: BLE001  # the test raises it
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self, data: Path, options: ServeOptions, peering: PeerOptions | None) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with open_node(data, peering=peering) as node, trio.open_nursery() as nursery:
            self.node = node
            self._scope = nursery.cancel_scope

            async def run(task_status: trio.TaskStatus[str]) -> None:
                await serve(node, options, on_fault=self.faults.append, task_status=task_status)

            self.url = await nursery.start(run)
            self._ready.set()

    def begun(self) -> None:
        assert self._ready.wait(60)
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        with suppress(trio.RunFinishedError):
            self.call(self._scope.cancel)


@contextmanager
def serving(data: Path, peering: PeerOptions | None = None, **options: Any) -> Iterator[Served]:
    """A node on a directory, and its server, while the block runs."""
    served = Served()
    given = ServeOptions(**{"port": 0, "limits": FREELY, "grace_s": 0.5, **options})
    thread = threading.Thread(target=served.run, args=(data, given, peering))
    thread.start()
    try:
        served.begun()
        yield served
    finally:
        served.end()
        thread.join(30)
        assert not thread.is_alive()


# -------------------------------------------------------------------------------------------------------- a known trail

FILES = ("src/app.py", "src/app.py:10-40", "src/ring.py#function:push", "docs/")
HOLDERS = (("agent-1", "ada"), ("agent-2", "brook"), ("agent-3", "=cyrus()"))


def known_events(begin_ms: int) -> list[AuditEvent]:
    """What three agents do in 30 seconds: every action, a gap, a lease that expires, one that is held to the end."""
    events: list[AuditEvent] = []
    token = 0

    def put(at_s: float, action: Action, target: str = "", holder: int = -1, lock: int = 0, **metadata: str) -> None:
        who = HOLDERS[holder] if holder >= 0 else ("", "")
        stamp = pack(begin_ms + int(at_s * 1000), len(events))
        lock_id = f"lock-{lock}" if lock else ""
        events.append(AuditEvent(stamp, action, target, *who, lock_id, lock, metadata))

    for turn in range(5):
        at = turn * 5.0
        for index, target in enumerate(FILES):
            token += 1
            holder = (turn + index) % 3
            put(at + 0.1 * index, Action.ACQUIRED, target, holder, token, intention="edit")
        put(at + 1.0, Action.CONFLICT, FILES[0], (turn + 1) % 3)
        put(at + 1.1, Action.WAITING, FILES[0], (turn + 1) % 3)
        put(at + 1.2, Action.RENEWED, FILES[1], (turn + 1) % 3, token - 2)
        put(at + 1.3, Action.DENIED, FILES[2], (turn + 1) % 3)
        if turn == 2:
            first, last = str(pack(begin_ms + 11_400)), str(pack(begin_ms + 12_400))
            put(at + 2.4, Action.GAP, count="12", first=first, last=last, acquired="12")
        put(at + 3.0, Action.RELEASED, FILES[0], turn % 3, token - 3)
        put(at + 3.1, Action.EXPIRED, FILES[1], (turn + 1) % 3, token - 2)
        put(at + 3.2, Action.REVOKED, FILES[2], (turn + 2) % 3, token - 1, reason="test")
        if turn < 4:
            put(at + 4.0, Action.RELEASED, FILES[3], turn % 3, token)
    return events


def known_trail(data: Path, begin_ms: int | None = None) -> list[Recorded]:
    """Make a directory whose trail holds `known_events`; return all that is in it."""

    async def make() -> None:
        async with open_node(data, source="here"):
            pass

    trio.run(make)
    begin = begin_ms if begin_ms is not None else time.time_ns() // 1_000_000 + 10
    store, _ = open_store(data, SharedMemory())
    try:
        store.write(known_events(begin), sync=True)
        store.set_run(Run(store.head.timestamp, clean=True))
        return store.get_many(range(1, store.head.number + 1))
    finally:
        store.close()
