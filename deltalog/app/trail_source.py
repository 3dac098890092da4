"""Where a question about the trail goes: to a data directory, or to a running node. Both answer in the API's form.

A directory is locked, opened for reading only, and not changed: no event says that somebody looked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from audit.api_values import csv_head, csv_rows, fields_of, json_bytes, summary_view
from audit.event import Action
from audit.query import LIMIT_MAX, Query
from audit.reader import Reader
from audit.store import FAMILIES, AuditStore
from deltalog import data_directory, rocks_directory
from deltalog.app.remote import Remote
from deltalog.data_directory import Lock
from deltalog.errors import StoreMissing
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks

Fields = dict[str, Any]
"""An event, a lease or a summary as the API shows it."""

_CHUNK_EVENTS: Final = 500
_BACKWARDS: Final[dict[str, Any]] = {
    "actions": (Action.STARTED, Action.ACQUIRED, Action.RELEASED, Action.EXPIRED, Action.REVOKED),
    "newest_first": True,
    "limit": LIMIT_MAX,
}


class TrailSource(Protocol):
    """Somebody who answers."""

    async def page(self, query: Query) -> tuple[list[Fields], str | None]:
        """Events of one page, and the cursor of the next."""
        ...

    async def summary(self, after: int | None, until: int | None) -> Fields:
        """Counts and rankings."""
        ...

    def export(self, query: Query, form: str) -> AsyncIterator[bytes]:
        """All events, as lines of JSON or CSV."""
        ...

    def follow(self, query: Query, after_number: int) -> AsyncIterator[Fields]:
        """Events behind a number, as they come; ends where none can come."""
        ...

    async def leases(self, holder: str | None, target: str | None) -> list[Fields]:
        """Leases in force; of a directory: those that were when its trail ended."""
        ...


@asynccontextmanager
async def opened_source(data: Path | None, remote: Remote | None) -> AsyncIterator[TrailSource]:
    """The directory, or the node."""
    if remote is not None:
        yield RemoteTrail(remote)
        return
    assert data is not None, "one of the two is given"
    with inspected_trail(data) as store:
        yield LocalTrail(Reader(store))


@contextmanager
def inspected_trail(path: Path) -> Iterator[AuditStore]:
    """The trail of a directory: locked, read only.

    Raises `StoreMissing`, `StoreInUse`, or what opening the store for reading raises.
    """
    data_directory.prepare(path, create=False)
    lock = Lock.take(path)
    try:
        instance = rocks_directory.absolute(path) / "rocks" / "audit"
        if not instance.is_dir():
            raise StoreMissing(f"{path} has no audit trail: no node was opened on it yet")
        with closing(AuditStore(partial(Rocks.open_read_only, instance, FAMILIES, SharedMemory()))) as store:
            yield store
    finally:
        lock.release(undo=True)


# ---------------------------------------------------------------------------------------------------------- a directory


@attrs.frozen
class LocalTrail:
    """The trail of a directory that this process has to itself."""

    reader: Reader

    async def page(self, query: Query) -> tuple[list[Fields], str | None]:
        """As `TrailSource`."""
        page = await self.reader.query(query)
        return [fields_of(each) for each in page.events], page.cursor

    async def summary(self, after: int | None, until: int | None) -> Fields:
        """As `TrailSource`."""
        return attrs.asdict(summary_view(await self.reader.summary(after, until)))

    async def export(self, query: Query, form: str) -> AsyncIterator[bytes]:
        """As `TrailSource`."""
        if form == "csv":
            yield csv_head()
        query = attrs.evolve(query, limit=_CHUNK_EVENTS, cursor=None)
        while True:
            page = await self.reader.query(query)
            if form == "csv":
                yield csv_rows(page.events)
            else:
                yield b"".join([json_bytes(fields_of(each)) + b"\n" for each in page.events])
            if page.cursor is None:
                return
            query = attrs.evolve(query, cursor=page.cursor)

    async def follow(self, query: Query, after_number: int) -> AsyncIterator[Fields]:
        """As `TrailSource`. Ends with the trail: nobody records while this process has the directory."""
        async for each in self.reader.follow(after_number):
            if query.matches(each.event):
                yield fields_of(each)

    async def leases(self, holder: str | None, target: str | None) -> list[Fields]:
        """As `TrailSource`: walks back to the last start of the trail."""
        query = Query(**_BACKWARDS)
        ended: set[tuple[str, int, str]] = set()
        held: list[Fields] = []
        while True:
            page = await self.reader.query(query)
            for each in page.events:
                event = each.event
                lease = event.lock_id, event.token, event.target
                if event.action is Action.STARTED:
                    return held[::-1]
                if event.action is not Action.ACQUIRED:
                    ended.add(lease)
                elif lease not in ended and holder in (None, event.holder_id) and target in (None, event.target):
                    held.append(fields_of(each))
            if page.cursor is None:
                return held[::-1]
            query = attrs.evolve(query, cursor=page.cursor)


# --------------------------------------------------------------------------------------------------------------- a node


@attrs.frozen
class RemoteTrail:
    """The trail of a running node."""

    node: Remote

    async def page(self, query: Query) -> tuple[list[Fields], str | None]:
        """As `TrailSource`."""
        answer = await _in_thread(self.node.get, "/api/audit/events", _parameters(query, paged=True))
        return answer["events"], answer["cursor"]

    async def summary(self, after: int | None, until: int | None) -> Fields:
        """As `TrailSource`."""
        answer: Fields = await _in_thread(self.node.get, "/api/audit/summary", {"after": after, "until": until})
        return answer

    async def export(self, query: Query, form: str) -> AsyncIterator[bytes]:
        """As `TrailSource`."""
        chunks = self.node.chunks("/api/audit/export", {**_parameters(query, paged=False), "format": form})
        while (chunk := await _in_thread(next, chunks, None)) is not None:
            yield chunk

    async def follow(self, query: Query, after_number: int) -> AsyncIterator[Fields]:
        """As `TrailSource`; until the node ends or the connection breaks."""
        parameters = {**_parameters(query, paged=False), "after_number": after_number}
        del parameters["order"]
        events = self.node.events("/api/audit/live", parameters)
        while (event := await _in_thread(next, events, None)) is not None:
            yield event

    async def leases(self, holder: str | None, target: str | None) -> list[Fields]:
        """As `TrailSource`."""
        answer: list[Fields] = await _in_thread(self.node.get, "/api/locks", {"holder": holder, "target": target})
        return answer


async def _in_thread(call: Any, *arguments: Any) -> Any:
    """Cancelled: whatever the thread waits for is left behind."""
    return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)


def _parameters(query: Query, *, paged: bool) -> dict[str, Any]:
    """The query as the API takes it."""
    fields: dict[str, Any] = {
        "holder": query.holder,
        "action": tuple(str(action) for action in query.actions),
        "lock_id": query.lock_id,
        "target": query.target,
        "target_prefix": query.target_prefix,
        "after": query.after,
        "until": query.until,
        "min_token": query.min_token,
        "order": "newest" if query.newest_first else "oldest",
    }
    return {**fields, "limit": query.limit, "cursor": query.cursor} if paged else fields
