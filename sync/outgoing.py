"""What goes to one peer: what it wants and lacks, in batches, as fast as it takes them.

There is no queue of deltas. A source that moved is noted by name; what the peer lacks of it is read from the log when
there is room on the way: from the ring if the peer is near, from the store if it is far behind. So a slow peer costs a
window of memory and nothing else. Only what is synced here is ever read (invariant I3).

A batch is about `BATCH_BYTES` of records, in timestamp order by runs, so that causes mostly come before effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from deltalog.delta import Delta
from deltalog.errors import BelowFloor
from deltalog.log import DeltaLog
from sync.ledger import Ledger
from sync.messages import Below, Have, Total, encode, encode_run, split
from sync.packing import pack
from sync.session import Session
from sync.wire import Traffic, Wire

BATCH_BYTES: Final = 512 << 10
"""Bytes of records after which a batch ends."""
PAGE: Final = 2048
"""Deltas read at a time."""
TURN_PAGES: Final = 8
"""Pages sent before is looked at what moved meanwhile."""
TOTAL_FROM: Final = 1000
"""Deltas on their way from which on their number is told first."""


class Outgoing:
    """Sends to one peer."""

    def __init__(
        self,
        log: DeltaLog,
        ledger: Ledger,
        session: Session,
        wire: Wire,
        traffic: Traffic,
        rate_bytes: int,
        on_idle: Callable[[], None],
    ) -> None:
        """`rate_bytes`: bytes of records a second, 0: no limit. `on_idle` is called when all was sent."""
        self._log = log
        self._ledger = ledger
        self._session = session
        self._out = wire
        self._traffic = traffic
        self._rate_bytes = rate_bytes
        self._on_idle = on_idle
        self._moved: dict[str, None] = {}
        """Sources to look at: synced further here, or wanted anew."""
        self._news = trio.Event()
        self._room = trio.Event()
        self.idle = True
        """Whether nothing is left that the peer wants and lacks."""
        self.packs = False
        """Whether batches are compressed."""
        self._stuck: dict[str, int] = {}
        """source -> synced head up to which nothing more can be sent: what is beyond ends in no head yet."""
        # the batch in the making
        self._frames: list[bytes] = []
        self._heads: dict[str, int] = {}
        self._size = self._count = 0

    def look(self, sources: Sequence[str]) -> None:
        """These moved here, or are wanted now."""
        self._moved.update(dict.fromkeys(sources))
        for source in sources:
            self._stuck.pop(source, None)
        self.idle = False
        self._news.set()

    def acknowledged(self) -> None:
        """There may be room for one more batch."""
        self._room.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if not self._moved:
                self.idle = True
                self._on_idle()
                await self._news.wait()
            self._news = trio.Event()
            moved, self._moved = self._moved, {}
            self._announce(moved)
            if until := self._lacking(moved):
                await self._send(until)
                self._moved.update(dict.fromkeys(self._lacking(until)))

    def _announce(self, sources: dict[str, None]) -> None:
        """Tell of what the peer does not want from here, and does not have."""
        session, held = self._session, self._ledger.seq
        news = [
            (source, held(source))
            for source in sources
            if source not in session.wanted and session.claims.get(source, 0) < held(source)
        ]
        for items in split(news):
            self._out.put(Have(items))

    def _lacking(self, sources: Iterable[str]) -> dict[str, int]:
        wanted, held = self._session.wanted, self._ledger.seq
        return {
            s: held(s)
            for s in sources
            if s in wanted and wanted[s] < held(s) != self._stuck.get(s) and not self._ledger.closed(s)
        }

    async def _send(self, until: dict[str, int]) -> None:
        """Send what the peer lacks up to these heads."""
        wanted = self._session.wanted
        after = {source: wanted[source] for source in until}
        try:
            stream = self._log.since(after, until)
            due, pages = sum(until.values()) - sum(after.values()), 0
            while page := await stream.page(PAGE):
                if due >= TOTAL_FROM:
                    average = sum(len(delta.record) for delta in page) / len(page)
                    self._out.put(Total(due, int(due * average)))
                    due = 0
                await self._send_page(page)
                pages += 1
                if pages >= TURN_PAGES and self._moved:
                    return  # what moved meanwhile has waited long enough
        except BelowFloor as error:
            self._refuse_below(error)

    def _refuse_below(self, error: BelowFloor) -> None:
        snapshot = "" if error.snapshot is None else str(error.snapshot)
        for source in error.missing:
            self._session.wanted.pop(source, None)
        for items in split((source, error.floor[source]) for source in error.missing):
            self._out.put(Below(snapshot, items))

    async def _send_page(self, page: Sequence[Delta]) -> None:
        runs: dict[str, list[Delta]] = {}
        for delta in page:
            runs.setdefault(delta.source, []).append(delta)
        for source, deltas in runs.items():
            for part in _parts(deltas):
                await self._send_run(source, part)
        await self._commit()

    async def _send_run(self, source: str, deltas: list[Delta]) -> None:
        """Put one run into the batch, unless it was sent as the end of a run before, or is not wanted any more."""
        if source in self._heads:
            await self._commit()  # one run of a source a batch
        sent = self._session.wanted.get(source)
        if sent is None or deltas[-1].seq <= sent or deltas[0].seq > sent + 1:
            return
        held = self._ledger.seq(source)
        ended = await self._ledger.ended(source, [delta for delta in deltas if delta.seq > sent])
        if self._session.wanted.get(source) != sent:
            return  # it asked anew meanwhile
        if ended is None:
            self._stuck[source] = held
            return
        deltas, head = ended
        records = [delta.record for delta in deltas]
        self._frames += encode_run(source, deltas[0].seq, records)
        self._frames.append(encode(head))
        self._heads[source] = head.seq
        self._session.wanted[source] = head.seq
        self._size += sum(map(len, records))
        self._count += len(records)
        self._traffic.deltas_out += len(deltas)
        if self._size >= BATCH_BYTES or self._count >= PAGE:
            await self._commit()

    async def _commit(self) -> None:
        """End the batch and send it, once the peer has room for it."""
        if not self._heads:
            return
        while not self._session.room:
            self._room = trio.Event()
            await self._room.wait()
        frames, size = self._frames, self._size
        frames.append(encode(self._session.sending(self._heads, size, self._count)))
        self._frames, self._heads, self._size, self._count = [], {}, 0, 0
        await self._out.push(await _packed(frames) if self.packs else frames)
        if self._rate_bytes:
            await trio.sleep(size / self._rate_bytes)


async def _packed(frames: Sequence[bytes]) -> list[bytes]:
    packed: list[bytes] = []
    for some in pack(frames):
        packed += some
        await trio.lowlevel.checkpoint()
    return packed


def _parts(deltas: list[Delta]) -> list[list[Delta]]:
    """Cut a run where it would be more than a batch."""
    if sum(len(delta.record) for delta in deltas) <= BATCH_BYTES:
        return [deltas]
    parts: list[list[Delta]] = [[]]
    size = 0
    for delta in deltas:
        if parts[-1] and size + len(delta.record) > BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(delta)
        size += len(delta.record)
    return parts
