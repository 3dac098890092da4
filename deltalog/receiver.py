"""Taking in deltas of other sources, and this node's own that come back: apply, keep waiting, recognise, refuse.

Lives here: what is visible (`Frontier`) and how a remote delta becomes so. Each delta is decided on its own, by the
state of that moment; where the decision has to wait (for room, for a look into the store) it is made anew afterwards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs

from deltalog import chain
from deltalog.clock import Clock
from deltalog.codec import CHAINED_FROM, HEADER
from deltalog.delta import SEQ_MAX, Delta, Limits, check_source
from deltalog.errors import ClockDrift, LimitExceeded, UsageError
from deltalog.inbox import Inbox, lacking
from deltalog.keys import Head
from deltalog.reader import Reader
from deltalog.ring import Ring
from deltalog.version import Dot
from deltalog.writer import Writer

TURN: Final = 512
"""Deltas decided in one turn of the event loop: about 3 ms."""


class Frontier:
    """What is visible here, and what this node's next delta will depend on."""

    __slots__ = ("excused", "fresh", "heads", "retired", "returned", "source", "times")

    def __init__(self, source: str, heads: Mapping[str, Head]) -> None:
        """`source`: this node's own. `heads`: what the store holds."""
        self.source = source
        self.heads = {name: head.seq for name, head in heads.items()}
        """source -> highest visible seq."""
        self.times = {name: head.timestamp for name, head in heads.items() if name != source}
        """source -> timestamp of that delta; of remote sources."""
        self.fresh = {name: seq for name, seq in self.heads.items() if name != source}
        """Deps of this node's next delta. After an open: all there is, since what it saw last is not kept."""
        own = heads.get(source, Head())
        self.returned = own.seq, own.timestamp
        """Seq and timestamp of this node's newest delta when the log was opened, or that has come back since."""
        self.excused: set[str] = set()
        """Sources that nothing waits for: they are forked, say, and will not come."""
        self.retired = ""
        """Why nothing comes behind this node's newest delta any more, "" if something may."""

    def admit(self, delta: Delta) -> None:
        """A delta that was received is visible now."""
        self.heads[delta.source] = delta.seq
        if delta.source == self.source:
            self.returned = delta.seq, delta.timestamp
        else:
            self.fresh[delta.source] = delta.seq
            self.times[delta.source] = delta.timestamp


@attrs.frozen
class Refusal:
    """A delta that `receive` did not take, and why."""

    delta: Delta
    reason: str


@attrs.frozen
class Receipt:
    """What became of each delta given to `receive`, in the order it was decided."""

    applied: Sequence[Dot]
    """New, and visible now; includes deltas that had been waiting for one of these."""
    known: Sequence[Dot]
    """Held already, with the same bytes."""
    waiting: Sequence[Dot]
    """Kept until their predecessor or a dependency arrives."""
    refused: Sequence[Refusal]
    """Not kept."""


class Receiver:
    """Decides on remote deltas."""

    def __init__(
        self,
        frontier: Frontier,
        inbox: Inbox,
        ring: Ring,
        writer: Writer,
        reader: Reader,
        clock: Clock,
        limits: Limits,
        on_apply: Callable[[], None],
        on_own: Callable[[int], None],
        check: Callable[[], None],
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_apply` is called after each delta that became visible; `check` raises why none may become so.

        `on_own` is called with the seq of each own one before. `turn` lets others run.
        """
        self._frontier = frontier
        self._inbox = inbox
        self._ring = ring
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._limits = limits
        self._on_apply = on_apply
        self._on_own = on_own
        self._check = check
        self._turn = turn
        self._cut_off: list[Delta] = []
        """Deltas that had been waiting, and were to be decided on when a call was cut off."""
        self._awaited = inbox.awaited
        self._payload_bytes = limits.payload_bytes
        self._front_bytes = HEADER.size + min(limits.kind_bytes, limits.key_bytes, limits.deps_entries)
        """What stands before a payload and is no longer breaks no limit."""

    async def receive(self, deltas: Iterable[Delta], *, own: bool = False) -> Receipt:
        """Decide on each delta, and on those that waited for it. `own`: take this node's own, too."""
        receipt = _Decisions(own)
        await self._settle([], receipt)
        self._check()
        quick, latest = 0, self._clock.latest()
        try:
            for delta in deltas:
                if not isinstance(delta, Delta):
                    raise UsageError(f"receive takes deltas, not {type(delta).__name__}")
                if self._goes_on(delta, latest):
                    receipt.applied.append(delta.dot)
                    quick += 1
                    if quick % TURN:
                        continue
                    self._tell()
                    await self._turn()
                    latest = self._clock.latest()
                else:
                    self._tell()
                    await self._settle([(delta, True)], receipt)
                self._check()
        finally:
            self._tell()
        await self._compare(receipt)
        return Receipt(receipt.applied, receipt.known, receipt.waiting, receipt.refused)

    async def excuse(self, source: str) -> Receipt:
        """Let nothing wait for a source any more; decide on what did."""
        self._frontier.excused.add(source)
        receipt = _Decisions(own=False)
        await self._settle([(freed, False) for freed in reversed(self._inbox.advance(source, SEQ_MAX))], receipt)
        await self._compare(receipt)
        return Receipt(receipt.applied, receipt.known, receipt.waiting, receipt.refused)

    async def _settle(self, stack: list[tuple[Delta, bool]], receipt: _Decisions) -> None:
        """Decide on all of a stack. If that is cut off, what had been waiting is decided on by the next call."""
        stack += [(delta, False) for delta in reversed(self._cut_off)]
        self._cut_off = []
        try:
            while stack:
                await self._decide(stack, receipt)
                receipt.decided += 1
                if not receipt.decided % TURN:
                    await self._turn()
        except BaseException:
            self._cut_off += [delta for delta, given in reversed(stack) if not given]
            raise

    def _goes_on(self, delta: Delta, latest: int) -> bool:
        """Apply a delta of which one glance shows that it may be applied: most are such. False: look closer.

        It is the next of a remote source, breaks no limit, nothing waits for it, its causes are here and before it.
        Between two waits of `receive`, which checks first that anything may be applied, and says then that it was.
        """
        source, timestamp = delta.source, delta.timestamp
        heads, times = self._frontier.heads, self._frontier.times
        last = times.get(source)
        if (
            last is None
            or delta.seq != heads[source] + 1
            or not last < timestamp <= latest
            or delta.body > self._front_bytes
            or len(delta.record) - delta.body > self._payload_bytes
            or self._awaited(source)
        ):
            return False
        newest = self._clock.last
        for cause, seq in delta.deps.items() if delta.deps else ():
            if (heads.get(cause, 0) < seq and cause not in self._frontier.excused) or times.get(
                cause, newest
            ) >= timestamp:
                return False
        if not self._ring.push(source, delta.seq, delta.record):
            return False
        if timestamp > newest:
            self._clock.last = timestamp
        heads[source] = self._frontier.fresh[source] = delta.seq
        times[source] = timestamp
        return True

    def _tell(self) -> None:
        """Something may be visible that was not."""
        if self._writer.idle:
            self._writer.wake()
        self._on_apply()

    async def _decide(self, stack: list[tuple[Delta, bool]], receipt: _Decisions) -> None:
        """Decide on the delta on top of the stack (given now, or waiting till now); what it sets free goes on top.

        If that is cut off, the stack is as it was.
        """
        delta, given = stack.pop()
        try:
            await self._decide_on(delta, given, stack, receipt)
        except BaseException:
            stack.append((delta, given))
            raise

    async def _decide_on(self, delta: Delta, given: bool, stack: list[tuple[Delta, bool]], receipt: _Decisions) -> None:
        objection = self._objection(delta, own=receipt.own or not given)
        if objection:
            receipt.refused.append(Refusal(delta, objection))
        elif delta.seq <= self._frontier.heads.get(delta.source, 0):
            receipt.held.append(delta)
        elif (need := lacking(delta, self._frontier.heads, self._frontier.excused)) is not None:
            self._hold(delta, need, receipt, given)
        elif not self._ring.has_room(len(delta.record)):
            await self._writer.wait_room(len(delta.record))
            stack.append((delta, given))
        elif not self._after_causes(delta) and not await self._after_stored_causes(delta):
            reason = "its timestamp does not come after those of its predecessor and deps"
            receipt.refused.append(Refusal(delta, reason))
        elif delta.seq == self._frontier.heads.get(delta.source, 0) + 1 and self._apply(delta):
            receipt.applied.append(delta.dot)
            stack += [(freed, False) for freed in reversed(self._inbox.advance(delta.source, delta.seq))]
        else:
            stack.append((delta, given))  # something else happened while its causes were looked up: decide anew

    def _objection(self, delta: Delta, *, own: bool) -> str:
        """What is wrong with a delta whatever is held here, "" if nothing is."""
        limits = self._limits
        try:
            check_source(delta.source, limits)
            for field, size, limit in (
                ("payload", len(delta.record) - delta.body, limits.payload_bytes),
                ("kind", len(delta.kind.encode()), limits.kind_bytes),
                ("key", len(delta.key.encode()), limits.key_bytes),
                ("deps", len(delta.deps), limits.deps_entries),
            ):
                if size > limit:
                    raise LimitExceeded(field, size, limit, "entries" if field == "deps" else "bytes")
            self._clock.check(delta.timestamp)
        except (UsageError, ClockDrift) as error:
            return str(error)
        head, returned = self._frontier.heads.get(delta.source, 0), self._frontier.returned[0]
        if delta.source != self._frontier.source or delta.seq <= head:
            return ""
        if not own:
            return f"it claims to be this node's own delta {delta.seq}, but this node has written {head}"
        if self._frontier.retired:
            return f"it is this node's own delta {delta.seq}, and its source was retired: {self._frontier.retired}"
        if head > returned:
            return (
                f"it is this node's own delta {delta.seq}, which comes too late: this node has appended "
                f"{delta.source!r}:{returned + 1}..{head} since it was opened"
            )
        return ""

    def _hold(self, delta: Delta, need: Dot, receipt: _Decisions, given: bool) -> None:
        held = self._inbox.get(delta.dot)
        if held is not None and not _same(held, delta):
            receipt.refused.append(Refusal(delta, "another delta with this dot is waiting already"))
        elif self._inbox.hold(delta, need):
            receipt.waiting += [delta.dot] * given
        else:
            reason = f"it must wait for {need.source!r}:{need.seq}, and {len(self._inbox):,} deltas wait already"
            receipt.refused.append(Refusal(delta, reason))

    def _after_causes(self, delta: Delta) -> bool:
        """Whether a delta comes after its causes in time (invariant I6), as far as the heads can tell."""
        times, timestamp = self._frontier.times, delta.timestamp
        if not self._after_predecessor(delta):
            return False
        newest = self._clock.last  # of this node's own deltas, whose times nobody notes
        return not delta.deps or all(times.get(source, newest) < timestamp for source in delta.deps)

    def _after_predecessor(self, delta: Delta) -> bool:
        """Whether a delta comes after the newest of its source in time."""
        if delta.source == self._frontier.source:
            return self._frontier.returned[1] < delta.timestamp
        return delta.seq == 1 or self._frontier.times[delta.source] < delta.timestamp

    async def _after_stored_causes(self, delta: Delta) -> bool:
        """The same, looking at the causes themselves."""
        times, timestamp = self._frontier.times, delta.timestamp
        if not self._after_predecessor(delta):
            return False
        for source, seq in delta.deps.items():
            if times.get(source, timestamp) >= timestamp:
                cause = await self._reader.get(source, seq)
                if cause is not None and cause.timestamp >= timestamp:
                    return False
        return True

    def _apply(self, delta: Delta) -> bool:
        """Make a delta visible whose predecessor and deps are (invariant I5); False if there is no room for it."""
        self._check()
        if not self._ring.push(delta.source, delta.seq, delta.record):
            return False
        self._clock.last = max(self._clock.last, delta.timestamp)  # checked before; the wall may have jumped since
        self._frontier.admit(delta)
        if delta.source == self._frontier.source:
            self._on_own(delta.seq)
        self._tell()
        return True

    async def _compare(self, receipt: _Decisions) -> None:
        """Sort what is held already into known and refused: the same dot must have the same bytes."""
        for delta, mine in await self._reader.twins(receipt.held):
            if mine is None or _same(delta, mine):
                receipt.known.append(delta.dot)
            else:
                reason = "another delta with this dot is held here: its source was forked"
                receipt.refused.append(Refusal(delta, reason))


@attrs.define
class _Decisions:
    """The receipt while it is made."""

    own: bool
    """Whether this node's own deltas are taken."""
    applied: list[Dot] = attrs.field(factory=list)
    known: list[Dot] = attrs.field(factory=list)
    waiting: list[Dot] = attrs.field(factory=list)
    refused: list[Refusal] = attrs.field(factory=list)
    decided: int = 0
    held: list[Delta] = attrs.field(factory=list)
    """Dots that are held already, still to be compared."""


def _same(a: Delta, b: Delta) -> bool:
    """Whether two deltas with one dot are the same one, erased or not."""
    if a.record == b.record:
        return True
    header = slice(CHAINED_FROM, a.body)
    return a.record[header] == b.record[header] and chain.payload_hash(a) == chain.payload_hash(b)
