"""DeltaLog: append, receive, read, subscribe. The one object that embeds everything below it.

Lives here: what is visible (heads), what this node's next delta depends on, what a caller is told. Does not know:
RocksDB, files, how a commit runs. All state belongs to the trio thread; methods ending in `_nowait` and plain
properties never block, `async` methods are checkpoints.

How an append travels:  clock -> codec -> ring (visible) -> writer (chain, group commit) -> store; `written`, then `synced`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import attrs
import trio

from deltalog import chain
from deltalog.causality import Conflict, ConflictFinder, knows
from deltalog.clock import Clock
from deltalog.codec import CHAINED_FROM, Encoder
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits, check_source
from deltalog.errors import BelowFloor, ClockDrift, LimitExceeded, LogClosed, LogReadOnly, RingFull, UsageError
from deltalog.inbox import Inbox, InboxStatistics, lacking
from deltalog.keys import Head
from deltalog.reader import Reader, Stream, check_floor
from deltalog.retention import Retention, plan
from deltalog.ring import Ring, RingStatistics
from deltalog.store import DeltaStore, Erasure, StoreSizes
from deltalog.subscription import News, Subscription
from deltalog.version import Dot, Order, VersionVector
from deltalog.writer import Disk, Offload, Writer, WriterStatistics


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


@attrs.frozen
class LogStatistics:
    """The log at one moment."""

    source: str
    sources: int
    ring: RingStatistics
    inbox: InboxStatistics
    writer: WriterStatistics


@attrs.frozen(kw_only=True)
class LogOptions:
    """How a log behaves, then how it performs."""

    # behaviour
    limits: Limits = attrs.field(factory=Limits)
    """What one delta may weigh."""
    drift_ms: int = 60_000
    """A received timestamp further ahead of this node's clock is refused. CockroachDB stops a node at 500 ms."""
    sync_interval_s: float = 0.020
    """How long a written delta may wait for its fsync; power loss costs at most this much. 0: every commit is synced."""
    # performance
    ring_deltas: int = 65_536
    """Newest deltas kept in memory; about 0.5 KB each for small payloads."""
    ring_bytes: int = 64 << 20
    """Bytes of their records."""
    inbox_deltas: int = 65_536
    """Received deltas that may wait for their dependencies."""
    inbox_bytes: int = 16 << 20
    """Bytes of their records."""


class DeltaLog:
    """An open delta log. Made by `open_log`, which also runs its writer and closes it."""

    def __init__(
        self,
        source: str,
        store: DeltaStore,
        disk: Disk,
        *,
        options: LogOptions | None = None,
        offload: Offload = trio.to_thread.run_sync,
        clock: Clock | None = None,
        mark: memoryview | None = None,
    ) -> None:
        """`source`: who appends here. `disk`: how the writer commits to `store`. `mark[0]` gets each seq handed out."""
        options = options if options is not None else LogOptions()
        heads = store.heads()
        # constant after construction
        self.source = source
        self.options = options
        self.startup: object = None
        """How the open went (`startup.StartupReport`); None for a log that was made without a data directory."""
        self._store = store
        self._offload = offload
        self._encode = Encoder(options.limits).encode
        self._mark = mark if mark is not None else memoryview(bytearray(8)).cast("Q")
        # what is visible
        self._heads = {name: head.seq for name, head in heads.items()}
        self._times = {name: head.timestamp for name, head in heads.items()}
        self._floors = {name: head.floor for name, head in heads.items()}
        self._seq = self._heads.get(source, 0)
        self._fresh = {name: seq for name, seq in self._heads.items() if name != source}
        """What this node's next delta depends on. After an open: all there is, since what it saw last is not kept."""
        latest = max(self._times.values(), default=0)
        self.clock = clock if clock is not None else Clock(last=latest, drift_ms=options.drift_ms)
        self._tick = self.clock.tick
        # parts
        self._ring = Ring(options.ring_deltas, options.ring_bytes)
        self._inbox = Inbox(options.inbox_deltas, options.inbox_bytes)
        self._news = News()
        self._writer = Writer(self._ring, heads, disk, offload, options.sync_interval_s)
        self._writer.on_publish = self._news.ring
        self._reader = Reader(self._ring, store, self._writer, offload)
        self._streams: WeakSet[Stream] = WeakSet()
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DeltaLog]:
        """Run the writer while the block runs; on leaving, store and sync everything appended.

        Raises `LogReadOnly` on leaving if that is not possible, saying how many deltas are lost.
        """
        async with open_nursery() as nursery:
            done = trio.Event()
            nursery.start_soon(self._run_writer, done)
            try:
                yield self
            finally:
                self._closed = True
                self._writer.close()
                with trio.CancelScope(shield=True):
                    await done.wait()
                self._news.ring()
        if self._ring.pending:
            failure = self._writer.failure
            reason = failure.reason if failure is not None else "the writer did not run"
            raise LogReadOnly(f"{self._ring.pending} deltas were not stored: {reason}", retryable=False) from failure

    async def _run_writer(self, done: trio.Event) -> None:
        try:
            await self._writer.run()
        finally:
            done.set()

    def fill(self, deltas: Sequence[Delta]) -> None:
        """Start with the newest stored deltas in memory; only before anything was appended."""
        self._ring.fill((delta.source, delta.seq, delta.record) for delta in deltas)

    # -------------------------------------------------------------------------------------------------- what is held

    @property
    def heads(self) -> VersionVector:
        """Everything visible here."""
        return VersionVector.trusted(dict(self._heads))

    @property
    def written(self) -> VersionVector:
        """What survives the end of this process."""
        return VersionVector.trusted(dict(self._writer.written))

    @property
    def synced(self) -> VersionVector:
        """What survives power loss; nothing beyond it may leave this node (invariant I3)."""
        return VersionVector.trusted(dict(self._writer.synced))

    @property
    def floor(self) -> VersionVector:
        """What retention dropped."""
        return VersionVector(self._floors)

    def statistics(self) -> LogStatistics:
        """Ring, inbox and writer at this moment."""
        return LogStatistics(
            self.source,
            len(self._heads),
            self._ring.statistics(),
            self._inbox.statistics(),
            self._writer.statistics(),
        )

    async def sizes(self) -> StoreSizes:
        """What the store holds."""
        sizes: StoreSizes = await self._offload(self._store.sizes)
        return sizes

    # -------------------------------------------------------------------------------------------------------- append

    def append_nowait(self, payload: Any, *, kind: str = "", key: str = "") -> Delta:
        """Append a delta and return it: it is in the ring, visible here, and on its way to the store.

        payload: any msgpack value. Raises `UsageError` or `LimitExceeded` naming the field, `RingFull` when nothing
        can be evicted, `LogReadOnly`, `LogClosed`; the log is then as before.
        """
        if self._closed or self._writer.failure is not None:
            self._refuse()
        deps: Mapping[str, int] = NO_DEPS
        if self._fresh:
            deps = self._take_deps()
        seq = self._seq + 1
        delta = self._encode(self.source, seq, self._tick, deps, kind, key, payload)
        ring = self._ring
        if not ring.has_room(len(delta.record)):
            raise RingFull(f"the ring holds {ring.pending:,} deltas that are not stored yet; await append, or retry")
        self._mark[0] = self._seq = seq
        ring.push(self.source, seq, delta.record)
        self._heads[self.source] = seq
        if deps:
            self._fresh = {}
        if self._writer.idle:
            self._writer.wake()
        self._news.ring()
        return delta

    async def append(self, payload: Any, *, kind: str = "", key: str = "", durable: bool = False) -> Delta:
        """Append a delta, waiting for room; with `durable` return only when it survives power loss.

        Raises as `append_nowait`, but for `RingFull`. Cancelled before the delta is in: nothing happened. Cancelled
        while waiting for `durable`: the delta is appended and will be stored, only the wait ends.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                delta = self.append_nowait(payload, kind=kind, key=key)
                break
            except RingFull:
                await self._writer.wait_room(0)
        if durable:
            await self._writer.wait_synced(self._ring.last)
        return delta

    async def append_many(
        self, payloads: Iterable[Any], *, kind: str = "", key: str = "", durable: bool = False
    ) -> list[Delta]:
        """Append several deltas in order; as `append`. If one is refused or the call is cancelled, those before it stay."""
        await trio.lowlevel.checkpoint()
        deltas: list[Delta] = []
        for payload in payloads:
            try:
                deltas.append(self.append_nowait(payload, kind=kind, key=key))
            except RingFull:
                deltas.append(await self.append(payload, kind=kind, key=key))
        if durable:
            await self._writer.wait_synced(self._ring.last)
        return deltas

    async def flush(self) -> None:
        """Return when all that is visible now survives power loss; what is appended meanwhile is not waited for."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            self._refuse()
        await self._writer.wait_synced(self._ring.last)

    def _refuse(self) -> None:
        """Raise why nothing can be appended."""
        if self._closed:
            raise LogClosed("the log is closed")
        self._writer.refuse()

    def _take_deps(self) -> Mapping[str, int]:
        """What this node saw since its previous delta; more than one delta can name goes into deltas of its own first."""
        most = self.options.limits.deps_entries
        while len(self._fresh) > most:
            rest = dict(list(self._fresh.items())[most:])
            self._fresh = dict(list(self._fresh.items())[:most])
            self.append_nowait(None, kind="deltalog.context")
            self._fresh = rest
        return MappingProxyType(self._fresh)

    # ------------------------------------------------------------------------------------------------------- receive

    async def receive(self, deltas: Iterable[Delta]) -> Receipt:
        """Take in deltas of other sources: apply what can be, keep what must wait, refuse what is wrong; say which is which.

        Never partly applies one. Waits for room in the ring. Raises `LogReadOnly`, `LogClosed`; deltas decided before
        stay decided. Cancelled: likewise.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        receipt = _Decisions()
        for delta in deltas:
            if not isinstance(delta, Delta):
                raise UsageError(f"receive takes deltas, not {type(delta).__name__}")
            stack = [delta]
            while stack:
                await self._decide(stack, receipt)
        await self._compare(receipt)
        return Receipt(receipt.applied, receipt.known, receipt.waiting, receipt.refused)

    async def _decide(self, stack: list[Delta], receipt: _Decisions) -> None:
        """Decide on the delta on top of the stack; what it sets free goes on top."""
        delta = stack.pop()
        objection = self._objection(delta)
        if objection:
            receipt.refused.append(Refusal(delta, objection))
        elif delta.seq <= self._heads.get(delta.source, 0):
            receipt.held.append(delta)
        elif (need := lacking(delta, self._heads)) is not None:
            self._hold(delta, need, receipt)
        elif not self._ring.has_room(len(delta.record)):
            await self._writer.wait_room(len(delta.record))
            stack.append(delta)
        elif not self._after_causes(delta) and not await self._after_stored_causes(delta):
            reason = "its timestamp does not come after those of its predecessor and deps"
            receipt.refused.append(Refusal(delta, reason))
        elif delta.seq == self._heads.get(delta.source, 0) + 1 and self._ring.has_room(len(delta.record)):
            self._apply(delta)
            receipt.applied.append(delta.dot)
            stack.extend(reversed(self._inbox.advance(delta.source, delta.seq)))
        else:
            stack.append(delta)  # something else happened while its causes were looked up: decide anew

    def _objection(self, delta: Delta) -> str:
        """What is wrong with a delta whatever is held here, "" if nothing is."""
        limits = self.options.limits
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
            self.clock.check(delta.timestamp)
        except (UsageError, ClockDrift) as error:
            return str(error)
        if delta.source == self.source and delta.seq > self._seq:
            return f"it claims to be this node's own delta {delta.seq}, but this node has written {self._seq}"
        return ""

    def _hold(self, delta: Delta, need: Dot, receipt: _Decisions) -> None:
        held = self._inbox.get(delta.dot)
        if held is not None and held != delta:
            receipt.refused.append(Refusal(delta, "another delta with this dot is waiting already"))
        elif self._inbox.hold(delta, need):
            receipt.waiting.append(delta.dot)
        else:
            reason = f"it must wait for {need.source!r}:{need.seq}, and {len(self._inbox):,} deltas wait already"
            receipt.refused.append(Refusal(delta, reason))

    def _after_causes(self, delta: Delta) -> bool:
        """Whether a delta comes after its causes in time (invariant I6), as far as the heads can tell."""
        times, timestamp = self._times, delta.timestamp
        if delta.seq > 1 and times[delta.source] >= timestamp:
            return False
        return not delta.deps or all(times[source] < timestamp for source in delta.deps)

    async def _after_stored_causes(self, delta: Delta) -> bool:
        """The same, looking at the causes themselves."""
        if delta.seq > 1 and self._times[delta.source] >= delta.timestamp:
            return False
        for source, seq in delta.deps.items():
            if self._times[source] >= delta.timestamp:
                cause = await self._reader.get(source, seq)
                if cause is not None and cause.timestamp >= delta.timestamp:
                    return False
        return True

    def _apply(self, delta: Delta) -> None:
        """Make a delta visible whose predecessor and deps are (invariant I5)."""
        self.clock.observe(delta.timestamp)
        self._ring.push(delta.source, delta.seq, delta.record)
        self._heads[delta.source] = self._fresh[delta.source] = delta.seq
        self._times[delta.source] = delta.timestamp
        if self._writer.idle:
            self._writer.wake()
        self._news.ring()

    async def _compare(self, receipt: _Decisions) -> None:
        """Sort what is held already into known and refused: the same dot must have the same bytes."""
        stored: list[Delta] = []
        for delta in receipt.held:
            mine = self._reader.cached(delta.source, delta.seq)
            if mine is None:
                stored.append(delta)
            else:
                receipt.compared(delta, mine)
        if stored:
            for delta, mine in await self._offload(_stored_twins, self._store, stored):
                receipt.compared(delta, mine)

    # ---------------------------------------------------------------------------------------------------------- read

    async def get(self, dot: tuple[str, int]) -> Delta | None:
        """The delta with this dot; None if there is none here, or it was dropped."""
        await trio.lowlevel.checkpoint()
        return await self._reader.get(*dot)

    def by_source(self, source: str, *, after: int | None = None, until: int | None = None, reverse: bool = False) -> Stream:
        """Deltas of one source with after < seq <= until, ascending, or newest first; from the floor to the head.

        Raises `BelowFloor` if `after` is given and below the floor.
        """
        floor, head = self._floors.get(source, 0), self._heads.get(source, 0)
        low = floor if after is None else _number("after", after, SEQ_MAX)
        high = head if until is None else min(_number("until", until, SEQ_MAX), head)
        check_floor({source: low}, {source: floor}, {source: high})
        return self._opened(self._reader.by_source(source, low, high, reverse=reverse))

    def between(self, after: int = -1, until: int = TIMESTAMP_MAX) -> Stream:
        """Deltas with after < timestamp <= until (hybrid logical clock, see `clock.from_iso`), in timestamp order."""
        if type(after) is not int or after < -1:
            raise UsageError(f"after must be a timestamp, not {after!r}")
        return self._opened(self._reader.between(after, _number("until", until, TIMESTAMP_MAX)))

    def since(self, after: Mapping[str, int]) -> Stream:
        """Exactly the deltas that a version vector lacks, each once, in timestamp order (invariant I4).

        Raises `BelowFloor` if some of them were dropped.
        """
        vector = VersionVector(after)
        check_floor(vector, self._floors, self._heads)
        return self._opened(self._reader.since(vector, self._heads))

    def replay(self) -> Stream:
        """All deltas that are held, in timestamp order: causes before effects."""
        return self._opened(self._reader.since(self._floors, self._heads))

    def subscribe(self, since: Mapping[str, int] | None = None, *, durable: bool = False) -> Subscription:
        """What a version vector lacks (None: only what is new from now on), then all that comes, each once, without a gap.

        durable: only what survives power loss here; what leaves this node must (invariant I3). Deltas that arrive late
        come when they arrive. `subscription.position` is where to go on after a restart. Raises `BelowFloor`.
        """
        start = dict(VersionVector(since)) if since is not None else dict(self._limit(durable)[0])
        check_floor(start, self._floors, self._heads)
        subscription = Subscription(
            self._ring, self._news, start, lambda: self._limit(durable), self._reader, self._refuse
        )
        self._subscriptions.add(subscription)
        return subscription

    def _limit(self, durable: bool) -> tuple[Mapping[str, int], int]:
        if durable:
            return self._writer.synced, self._writer.synced_ordinal
        return self._heads, self._ring.last

    def _opened(self, stream: Stream) -> Stream:
        """Remember a read in progress: it holds the floor (invariant I13)."""
        self._streams.add(stream)
        return stream

    async def order(self, a: tuple[str, int], b: tuple[str, int]) -> Order:
        """How delta `a` stands to delta `b` in causal order. Raises `UsageError` for a dot that is not held here.

        Cost: at most the later one's source is read back to the earlier one's timestamp.
        """
        first, second = await self._held(a), await self._held(b)
        if first.source == second.source:
            return Order.EQUAL if first.seq == second.seq else Order.BEFORE if first.seq < second.seq else Order.AFTER
        earlier, later = (first, second) if first.timestamp < second.timestamp else (second, first)
        if not await self._knows(later, earlier):
            return Order.CONCURRENT
        return Order.BEFORE if earlier is first else Order.AFTER

    async def _held(self, dot: tuple[str, int]) -> Delta:
        source, seq = dot
        floor = self._floors.get(source, 0)
        if seq <= floor:
            raise BelowFloor({source: floor}, {source: seq - 1})
        delta = await self.get(dot)
        if delta is None:
            raise UsageError(f"there is no delta {source!r}:{seq} here; its source's head is {self._heads.get(source, 0)}")
        return delta

    async def _knows(self, later: Delta, earlier: Delta) -> bool:
        stream = self.by_source(later.source, until=later.seq, reverse=True)
        last = later
        while page := await stream.page(256):
            last = page[-1]
            if last.timestamp <= earlier.timestamp or any(earlier.source in delta.deps for delta in page):
                return knows(page, earlier.dot, earlier.timestamp)
        if last.seq > 1:
            raise BelowFloor({later.source: last.seq - 1}, {later.source: 0})
        return False

    async def conflicts(self, after: int = -1, until: int = TIMESTAMP_MAX) -> AsyncIterator[Conflict]:
        """Concurrent deltas on one key within an interval of time: for each delta, per other source, the newest it
        did not know. Memory grows with keys times sources in the interval.
        """
        finder = ConflictFinder()
        async for delta in self.between(after, until):
            for conflict in finder.add(delta):
                yield conflict

    # -------------------------------------------------------------------------------------------------------- upkeep

    async def truncate(
        self, *, until: Mapping[str, int] | None = None, retention: Retention | None = None
    ) -> Truncation:
        """Drop old deltas: up to a version vector, or what a retention lets go. Only what is synced; never under a reader.

        Says what was dropped and what readers in progress held back. The space comes back with `compact`.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        if (until is None) == (retention is None):
            raise UsageError("truncate takes either until (a version vector) or retention")
        if retention is not None:
            floors = await self._offload(plan, self._store, retention, self.clock.wall_ns() // 1_000_000)
        else:
            floors = dict(VersionVector(until))
        synced = self._writer.synced
        wanted = {s: min(seq, synced.get(s, 0)) for s, seq in floors.items() if s in self._heads}
        allowed = self._unpinned(wanted)
        dropped: int = await self._offload(self._store.truncate, allowed) if allowed else 0
        for source, floor in allowed.items():
            self._floors[source] = max(floor, self._floors.get(source, 0))
            self._ring.drop_below(source, floor)
        held = {s: seq for s, seq in wanted.items() if seq > max(allowed.get(s, 0), self._floors.get(s, 0))}
        return Truncation(dropped, self.floor, VersionVector(held))

    def _unpinned(self, floors: Mapping[str, int]) -> dict[str, int]:
        """Lower floors to what no reader in progress still needs."""
        if any(stream.active for stream in self._streams):
            return {}
        for subscription in self._subscriptions:
            floors = {source: min(seq, subscription.position.get(source, 0)) for source, seq in floors.items()}
        return {source: seq for source, seq in floors.items() if seq > self._floors.get(source, 0)}

    async def erase(self, dot: tuple[str, int], reason: str) -> Delta:
        """Replace a delta's payload by its hash, here; durable on return. The chain still verifies; the note stays.

        The payload's bytes leave the disk with the next `compact`. Other nodes keep theirs. Raises `UsageError` for a
        dot that is not held. Idempotent.
        """
        if not isinstance(reason, str) or not reason or len(reason.encode()) > 1024:
            raise UsageError("reason must be a text of 1 to 1,024 bytes")
        delta = await self._held(dot)
        if delta.seq > self._writer.synced.get(delta.source, 0):
            await self.flush()
        erased: Delta | None = await self._offload(
            self._store.erase, delta.source, delta.seq, reason, self.clock.tick()
        )
        assert erased is not None, "a synced delta above the floor is stored"
        self._ring.replace(erased.source, erased.seq, erased.record)
        return erased

    async def erasures(self) -> Sequence[Erasure]:
        """The notes that `erase` left."""
        notes: Sequence[Erasure] = await self._offload(self._store.erasures)
        return notes

    async def compact(self) -> None:
        """Merge short blocks and give back the space of what was dropped or erased. Reads and appends go on meanwhile."""
        await self._offload(self._store.compact)


@attrs.frozen
class Truncation:
    """What `truncate` did."""

    dropped: int
    """Deltas dropped."""
    floor: VersionVector
    """The log's floor now."""
    held: VersionVector
    """Seqs that should have gone and were held back by a reader in progress."""


@attrs.define
class _Decisions:
    """The receipt while it is made."""

    applied: list[Dot] = attrs.field(factory=list)
    known: list[Dot] = attrs.field(factory=list)
    waiting: list[Dot] = attrs.field(factory=list)
    refused: list[Refusal] = attrs.field(factory=list)
    held: list[Delta] = attrs.field(factory=list)
    """Dots that are held already, still to be compared."""

    def compared(self, delta: Delta, mine: Delta | None) -> None:
        """Decide on a delta whose dot is held; `mine` is None if it was dropped since."""
        if mine is None or _same(delta, mine):
            self.known.append(delta.dot)
        else:
            self.refused.append(Refusal(delta, "another delta with this dot is held here: its source was forked"))


def _same(a: Delta, b: Delta) -> bool:
    """Whether two deltas with one dot are the same one, erased or not."""
    if a.record == b.record:
        return True
    header = slice(CHAINED_FROM, a.body)
    return a.record[header] == b.record[header] and chain.payload_hash(a) == chain.payload_hash(b)


def _stored_twins(store: DeltaStore, deltas: Iterable[Delta]) -> list[tuple[Delta, Delta | None]]:
    """Pair each delta with the stored one of its dot, reading neighbours together."""
    pairs: list[tuple[Delta, Delta | None]] = []
    page: dict[int, Delta] = {}
    source = ""
    for delta in sorted(deltas, key=lambda delta: delta.dot):
        if delta.source != source or delta.seq not in page:
            floor = store.heads()[delta.source].floor
            source, after = delta.source, max(delta.seq - 1, floor)
            page = {mine.seq: mine for mine in store.by_source(source, after, after + 1024).page(1024)}
        pairs.append((delta, page.get(delta.seq)))
    return pairs


def _number(field: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f"{field} must be an integer from 0 to {most}, not {value!r}")
    return value


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose single failure comes out as itself, not wrapped in a group: the caller's error stays the caller's."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        only = _only(group)
        if only is None:
            raise
        raise only from only.__cause__


def _only(error: BaseException) -> BaseException | None:
    """The one error in a group, however deep; None if there are several."""
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error
