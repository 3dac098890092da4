"""Takes lines of the interchange format into a log: in batches, in causal order, with timestamps that fit (I6).

Lives here: which lines wait for their causes, and what timestamp a line gets whose own time is too early. That is the
smallest one that is not before its `time` and comes after those of its predecessor and its deps: a function of the
causal past, so importing a file again gives the same deltas. Does not know: files, RocksDB, how a log applies a delta.

A line is one of
* known: the log holds its dot. It is compared; another delta under the same dot is a fork, and refused.
* fresh: its predecessor and deps are here. It goes to the log with its batch.
* waiting: something it needs has not come. It is kept, within bounds, until that comes; at the end nothing may wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from deltalog.app.interchange import Line, parse_line
from deltalog.app.lines import LineRefused
from deltalog.delta import Delta
from deltalog.errors import ClockDrift, DecodeError, UsageError
from deltalog.inbox import Inbox, lacking
from deltalog.log import DeltaLog
from deltalog.version import Dot

BATCH: Final = 512
"""Deltas given to the log at a time: parsing as many holds the event loop for some milliseconds."""
_TIMES: Final = 65_536


@attrs.define
class ImportCount:
    """What became of the lines so far."""

    lines: int = 0
    applied: int = 0
    """New in the log."""
    known: int = 0
    """In the log before, or earlier in the file."""


class Importer:
    """Feeds one log from lines: `take` them in the order of the file, then `finish`."""

    def __init__(self, log: DeltaLog, *, waiting_deltas: int = 65_536, waiting_bytes: int = 64 << 20) -> None:
        """At most `waiting_deltas` lines (`waiting_bytes` as deltas) are kept while they wait for their causes."""
        self.count = ImportCount()
        self._log = log
        self._limits = log.options.limits
        self._heads = log.heads.to_dict()  # as they will be when the batch is applied
        self._times = _Times(log)
        self._waiting = Inbox(waiting_deltas, waiting_bytes)
        self._numbers: dict[Dot, int] = {}  # of the lines that wait
        self._batch: list[tuple[int, Delta]] = []
        self._batch_known = False

    async def take(self, number: int, lines: Sequence[bytes]) -> None:
        """Take lines, the first of which has this number; blank ones are skipped. The log has them all on return.

        Raises `LineRefused`; all lines before the refused one are in the log then, or waiting. Cancelled: the log has
        some of them.
        """
        for index, data in enumerate(lines, number):
            if not data or data.isspace():
                continue
            self.count.lines += 1
            try:
                await self._place(index, data)
            except LineRefused:
                await self._settle()
                raise
        await self._settle()

    async def finish(self) -> None:
        """All lines were taken: make them durable. Raises `LineRefused` for the first line that still waits."""
        await self._settle()
        await self._log.flush()
        if self._numbers:
            dot, number = min(self._numbers.items(), key=lambda item: item[1])
            raise LineRefused(number, self._lack(dot))

    def _lack(self, dot: Dot) -> str:
        delta = self._waiting.get(dot)
        assert delta is not None, "what has a number waits"
        need = lacking(delta, self._heads)
        assert need is not None, "what waits lacks something"
        more = f"; {len(self._numbers) - 1:,} more lines wait" if len(self._numbers) > 1 else ""
        return f"{_named(dot)} needs {_named(need)}, which is neither in the log nor in the file{more}"

    # ------------------------------------------------------------------------------------------------- one line

    async def _place(self, number: int, data: bytes) -> None:
        """Put a line where it belongs, and those that waited for it."""
        try:
            stack = [(number, parse_line(data, self._limits))]
            while stack:
                number, line = stack.pop()
                stack.extend(reversed(await self._decide(number, line)))
        except (UsageError, DecodeError, ClockDrift) as error:
            raise LineRefused(number, error) from error

    async def _decide(self, number: int, line: Line) -> list[tuple[int, Line]]:
        """Put one line where it belongs; return those that need not wait any more."""
        head = self._heads.get(line.source, 0)
        if line.seq <= head:
            await self._compare(number, line)
        elif line.source == self._log.source:
            raise UsageError(
                f"{_named(line)} claims to be this log's own, and the log has written {head:,} under that name; "
                "import into the directory of another source"
            )
        elif line.seq == head + 1 and (not line.deps or self._holds(line)):
            await self._apply(number, line)
            ready = self._waiting.advance(line.source, line.seq)
            return [(self._numbers.pop(delta.dot), _line(delta)) for delta in ready]
        else:
            self._hold(number, line)
        return []

    def _holds(self, line: Line) -> bool:
        """Whether all the deps of a line are here."""
        heads = self._heads
        return all(heads.get(source, 0) >= seq for source, seq in line.deps.items())

    async def _apply(self, number: int, line: Line) -> None:
        delta = await self._stamped(line)
        self._log.clock.check(delta.timestamp)
        await self._add(number, delta, known=False)
        self._heads[line.source] = line.seq
        self._times.put(delta)

    async def _compare(self, number: int, line: Line) -> None:
        """A dot that is held: the log compares. Its timestamp is known, if not from its causes then from the log."""
        delta = await self._stamped(line)
        if not self._times.incomplete:
            self._times.put(delta)
        elif (mine := await self._log.get(delta.dot)) is not None:
            delta = line.delta(self._limits, max(delta.timestamp, mine.timestamp))
            self._times.put(delta)
        await self._add(number, delta, known=True)

    def _hold(self, number: int, line: Line) -> None:
        delta = line.delta(self._limits)
        need = lacking(delta, self._heads)
        assert need is not None, "the caller looked"
        held = self._waiting.get(delta.dot)
        if held is not None:
            if held != delta:
                raise UsageError(f"{_named(delta)} stands in line {self._numbers[delta.dot]:,} with other content")
            self.count.known += 1
        elif self._waiting.hold(delta, need):
            self._numbers[delta.dot] = number
        else:
            kept = self._waiting.statistics()
            raise UsageError(
                f"{_named(line)} must wait for {_named(need)}, and {kept.deltas:,} lines ({kept.bytes:,} bytes) wait "
                f"already; the limit is {kept.deltas_max:,} ({kept.bytes_max:,} bytes)"
            )

    async def _stamped(self, line: Line) -> Delta:
        """The delta of a line, with the smallest timestamp that fits."""
        timestamp = line.time
        times = self._times
        times.incomplete = False
        if line.seq > 1:
            timestamp = max(timestamp, await times.of(line.source, line.seq - 1, timestamp) + 1)
        for source, seq in line.deps.items():
            timestamp = max(timestamp, await times.of(source, seq, timestamp) + 1)
        return line.delta(self._limits, timestamp)

    # ---------------------------------------------------------------------------------------------------- batches

    async def _add(self, number: int, delta: Delta, *, known: bool) -> None:
        """Put a delta into the batch; known and fresh ones do not mix, so that a fork stops what comes after it."""
        if known != self._batch_known or len(self._batch) >= BATCH:
            await self._settle()
            self._batch_known = known
        self._batch.append((number, delta))

    async def _settle(self) -> None:
        """Give the batch to the log. Raises `LineRefused` if it does not take one."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        receipt = await self._log.receive(delta for _, delta in batch)
        self.count.applied += len(receipt.applied)
        self.count.known += len(receipt.known)
        if receipt.refused:
            numbers = {id(delta): number for number, delta in batch}
            number, refusal = min((numbers[id(each.delta)], each) for each in receipt.refused)
            raise LineRefused(number, f"{_named(refusal.delta)} is refused: {refusal.reason}")
        assert not receipt.waiting, "only what may be applied is given to the log"


class _Times:
    """Timestamps of deltas that may be causes: of those seen lately, and of the others from the log."""

    def __init__(self, log: DeltaLog) -> None:
        self._log = log
        self._new: dict[tuple[str, int], int] = {}
        self._old: dict[tuple[str, int], int] = {}
        self._latest: dict[str, tuple[int, int]] = {}  # source -> seq and timestamp
        self.incomplete = False
        """Whether `of` had to answer for a delta that the log has dropped."""

    def put(self, delta: Delta) -> None:
        """Remember a delta's timestamp; the oldest are forgotten."""
        if len(self._new) >= _TIMES:
            self._old, self._new = self._new, {}
        self._new[delta.source, delta.seq] = delta.timestamp
        self._latest[delta.source] = delta.seq, delta.timestamp

    async def of(self, source: str, seq: int, at_least: int) -> int:
        """Timestamp of a delta that is here; where it is below `at_least`, anything below."""
        latest_seq, latest = self._latest.get(source, (0, 0))
        if seq <= latest_seq and latest < at_least:
            return latest  # timestamps increase along a source (invariant I6)
        dot = (source, seq)
        timestamp = self._new.get(dot, self._old.get(dot, -1))
        if timestamp < 0:
            delta = await self._log.get(dot)
            if delta is None:
                self.incomplete = True
                return -1
            timestamp = delta.timestamp
            if seq > latest_seq:
                self._latest[source] = seq, timestamp
        return timestamp


def _line(delta: Delta) -> Line:
    return Line(
        delta.source,
        delta.seq,
        delta.timestamp,
        delta.deps,
        delta.kind,
        delta.key,
        delta.payload_bytes,
        delta.erased,
    )


def _named(what: Line | Delta | Dot) -> str:
    return f"{what.source!r}:{what.seq:,}"
