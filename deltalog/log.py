"""DeltaLog: append, receive, read, subscribe. The one object that embeds everything below it.

Lives here: what is visible (heads), what this node's next delta depends on, what a caller is told. Does not know:
RocksDB, files, how a commit runs. All state belongs to the trio thread; methods ending in `_nowait` and plain
properties never block, `async` methods are checkpoints.

How an append travels:  clock -> codec -> ring (visible) -> writer (chain, group commit) -> store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from weakref import WeakSet

import attrs
import trio

from deltalog.causality import knows
from deltalog.clock import Clock
from deltalog.codec import Encoder
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits, text_bytes
from deltalog.errors import BelowFloor, LogClosed, LogReadOnly, RingFull, UsageError
from deltalog.failpoints import reach
from deltalog.fence import Guard
from deltalog.inbox import Inbox, InboxStatistics
from deltalog.keys import PEERS, RESERVED, RETIRED, encode_retired
from deltalog.nursery import open_nursery
from deltalog.reader import Conflicts, Reader, Stream, check_floor
from deltalog.receiver import Frontier, Receipt, Receiver
from deltalog.retention import Retention, plan
from deltalog.ring import Ring, RingStatistics
from deltalog.stability import Stability
from deltalog.store import DeltaStore, Erasure, StoreSizes
from deltalog.subscription import News, Subscription
from deltalog.version import Order, VersionVector
from deltalog.writer import Disk, Offload, Writer, WriterStatistics

Hold = Callable[[Mapping[str, int]], Mapping[str, int]]
"""Gets the floors that retention wants, and returns them lowered; a source that it leaves out is held back entirely."""

_TURN: Final = 1024
"""Deltas appended in one turn of the event loop: about 3 ms."""
_REASON_BYTES: Final = 1024
"""UTF-8 bytes of the reason for an erasure."""


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
    """How long a written delta may wait for its fsync; what power loss costs at most. 0: every commit is synced."""
    # performance
    ring_deltas: int = 65_536
    """Newest deltas kept in memory; about 0.5 KB each for small payloads."""
    ring_bytes: int = 64 << 20
    """Bytes of their records."""
    inbox_deltas: int = 65_536
    """Received deltas that may wait for their dependencies."""
    inbox_bytes: int = 16 << 20
    """Bytes of their records."""

    def __attrs_post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"options.{name} must be an integer of at least {least}, not {value!r}")
        if type(self.sync_interval_s) not in (int, float) or not self.sync_interval_s >= 0:
            raise UsageError(f"options.sync_interval_s must be a number of at least 0, not {self.sync_interval_s!r}")


_LEAST: Final = {"drift_ms": 0, "ring_deltas": 1, "ring_bytes": 1, "inbox_deltas": 0, "inbox_bytes": 0}


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
        options, heads = options if options is not None else LogOptions(), store.heads()
        # constant after construction
        self.source = source
        self.options = options
        self.startup: object = None
        """How the open went (`startup.StartupReport`); None for a log that was made without a data directory."""
        self.guard = Guard()
        """Highest fencing token seen for each key; whoever hands out tokens raises its floor at a start."""
        self._store = store
        self._offload = offload
        self._encode = Encoder(options.limits).encode
        self._mark = mark if mark is not None else memoryview(bytearray(8)).cast("Q")
        # what is visible
        self._frontier = frontier = Frontier(source, heads)
        self._heads = frontier.heads
        self._floors = {name: head.floor for name, head in heads.items()}
        self._seq = self._heads.get(source, 0)
        self.clock = clock if clock is not None else Clock(drift_ms=options.drift_ms)
        self.clock.last = max([self.clock.last, *(head.timestamp for head in heads.values())])
        self._tick = self.clock.tick
        # parts
        self._ring = Ring(options.ring_deltas, options.ring_bytes)
        self._news = News()
        self._writer = Writer(self._ring, heads, disk, offload, options.sync_interval_s)
        self._writer.on_publish = self._news.ring
        self._reader = Reader(self._ring, store, self._writer, offload)
        self._inbox = Inbox(options.inbox_deltas, options.inbox_bytes)
        self._receiver = Receiver(
            frontier,
            self._inbox,
            self._ring,
            self._writer,
            self._reader,
            self.clock,
            options.limits,
            self._news.ring,
            self._own_came_back,
            self._refuse,
            trio.lowlevel.checkpoint,
        )
        self._streams: WeakSet[Stream] = WeakSet()
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._holds: dict[object, Hold] = {}
        self.stability = _known_peers(store)
        """Peers that are known, and what they acknowledged; in seconds of `trio.current_time`. See `save_stability`."""
        self._saving = trio.Lock()
        self._closed = False
        self._barred = False
        """Between a seq and its place in the ring: what runs then must not take the same seq; and once retired."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DeltaLog]:
        """Run the writer while the block runs; on leaving, store and sync everything appended.

        Raises `LogReadOnly` on leaving if that is not possible, saying how many deltas are lost; an error that the
        block ends with gets that as a note.
        """
        try:
            async with open_nursery() as nursery:
                done = trio.Event()
                nursery.start_soon(self._run_writer, done)
                try:
                    yield self
                finally:
                    self._closed = True
                    self._writer.close()
                    reach("log.drain.before")
                    with trio.CancelScope(shield=True):
                        await done.wait()
                    self._news.ring()
                    reach("log.drain.after")
        except trio.Cancelled:
            if self.drained:
                raise
        except BaseException as error:
            if not self.drained:
                error.add_note(str(self._loss()))
            raise
        if not self.drained:
            raise self._loss() from self._writer.failure

    def _loss(self) -> LogReadOnly:
        """What is lost when the log ends as it is now."""
        pending, unsynced = self._ring.pending, self._ring.stored - self._writer.synced_ordinal
        failure = self._writer.failure
        lost = f"{pending} deltas were not stored" + f" and {unsynced} not synced" * bool(unsynced)
        return LogReadOnly(f"{lost}: {failure.reason if failure is not None else 'unknown'}", retryable=False)

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

    def synced_seq(self, source: str) -> int:
        """Highest seq of one source that survives power loss, 0 if none does. Costs the same for any number of them."""
        return self._writer.synced.get(source, 0)

    def synced_hash(self, source: str) -> bytes | None:
        """The chain hash behind that delta, None if there is none. Costs the same for any number of sources."""
        return self._writer.synced_hashes.get(source)

    def on_synced(self, told: Callable[[Mapping[str, int]], None]) -> Callable[[], None]:
        """Have `told` called after each fsync with the heads that it moved (source -> seq); what is returned ends that.

        It is called in the log's own thread, before those who wait for that fsync go on; it must not raise or block.
        """
        self._writer.on_synced.append(told)
        return partial(self._writer.on_synced.remove, told)

    def vouch(self, source: str, seq: int, previous: bytes, records: list[bytes], hashes: list[bytes]) -> None:
        """Spare the log the chain of deltas that are about to be received: whoever verified them knows it.

        records: encoded deltas of a source from `seq` on. hashes: the chain hash behind each; `previous`: before the
        first. They are used if these very records come to be written behind `previous`, and believed; else forgotten.
        """
        self._writer.vouch(source, seq, previous, records, hashes)

    async def hash_at(self, source: str, seq: int) -> bytes:
        """The chain hash behind a delta that is held, or at the floor; of seq 0 the one that the source begins with.

        What is not written yet is flushed first. Raises `BelowFloor`, and `UsageError` above the head.
        """
        await trio.lowlevel.checkpoint()
        self._refuse_closed()
        seq = _number("seq", seq, self._heads.get(source, 0))
        if seq > self._writer.written.get(source, 0):
            await self.flush()
        found: bytes = await self._offload(self._store.hash_at, source, seq)
        return found

    @property
    def floor(self) -> VersionVector:
        """What retention dropped."""
        return VersionVector(self._floors)

    @property
    def drained(self) -> bool:
        """Whether everything visible survives power loss."""
        return self._writer.synced_ordinal == self._ring.last

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

    def append_nowait(self, payload: Any, *, kind: str = "", key: str = "", fence: int | None = None) -> Delta:
        """Append a delta and return it: it is in the ring, visible here, and on its way to the store.

        payload: any msgpack value. fence: the token of a lease on `key`; refused below the highest that `guard` has
        seen for it, and seen from then on, also if the append then fails. Raises `UsageError` or `LimitExceeded`
        naming the field, `StaleToken`, `RingFull` when nothing can be evicted, `LogReadOnly`, `LogClosed`; the log is
        then as before.
        """
        if self._closed or self._barred or self._writer.failure is not None:
            self._refuse_append()
        if fence is not None:
            self._check_fence(key, fence)
        deps: Mapping[str, int] = NO_DEPS
        if self._frontier.fresh:
            deps = self._take_deps()
        self._barred = True
        try:
            seq = self._seq + 1
            delta = self._encode(self.source, seq, self._tick, deps, kind, key, payload)
            if not self._ring.push(self.source, seq, delta.record):
                raise RingFull(self._ring.pending, len(delta.record))
            self._mark[0] = self._heads[self.source] = self._seq = seq
        finally:
            self._barred = False
        if deps:
            self._frontier.fresh = {}
        if self._writer.idle:
            self._writer.wake()
        if self._news.awaited:
            self._news.ring()
        return delta

    def _check_fence(self, key: str, token: int) -> None:
        if not text_bytes("key", key, self.options.limits.key_bytes):
            raise UsageError("fence needs a key: the target that the lease is on")
        self.guard.check(key, token)

    async def append(
        self, payload: Any, *, kind: str = "", key: str = "", fence: int | None = None, durable: bool = False
    ) -> Delta:
        """Append a delta, waiting for room; with `durable` return only when it survives power loss.

        Raises as `append_nowait`, but for `RingFull`. Cancelled before the delta is in: nothing happened. Cancelled
        while waiting for `durable`: the delta is appended and will be stored, only the wait ends.
        """
        if durable:
            await trio.lowlevel.checkpoint_if_cancelled()  # the wait below lets others run
        else:
            await trio.lowlevel.checkpoint()
        delta: Delta | None = None
        while delta is None:
            try:
                delta = self.append_nowait(payload, kind=kind, key=key, fence=fence)
            except RingFull as full:
                await self._writer.wait_room(full.size_bytes)
        if durable:
            await self._writer.wait_synced(self._ring.last)
        return delta

    async def append_many(
        self,
        payloads: Iterable[Any],
        *,
        kind: str = "",
        key: str = "",
        fence: int | None = None,
        durable: bool = False,
    ) -> list[Delta]:
        """Append several in order; as `append`. If one is refused, or the call is cancelled, those before it stay."""
        await trio.lowlevel.checkpoint()
        deltas: list[Delta] = []
        for payload in payloads:
            try:
                deltas.append(self.append_nowait(payload, kind=kind, key=key, fence=fence))
            except RingFull:
                deltas.append(await self.append(payload, kind=kind, key=key, fence=fence))
            if not len(deltas) % _TURN:
                await trio.lowlevel.checkpoint()
        if durable:
            await self._writer.wait_synced(self._ring.last)
        return deltas

    async def flush(self) -> None:
        """Return when all that is visible now survives power loss; what is appended meanwhile is not waited for."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            self._refuse()
        await self._writer.wait_synced(self._ring.last)

    def _refuse_append(self) -> None:
        """Raise why this node cannot append."""
        self._refuse_closed()
        if self.retired:
            way_out = "open the log again: it continues as a new incarnation"
            raise LogReadOnly(f"source {self.source!r} was retired: {self.retired}; {way_out}", retryable=False)
        if self._barred:
            raise UsageError(
                "append was called from within another append: by a finalizer, say, or by the payload's code"
            )
        self._writer.refuse()

    def _refuse(self) -> None:
        """Raise why nothing can be changed."""
        self._refuse_closed()
        self._writer.refuse()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LogClosed("the log is closed")

    def _take_deps(self) -> Mapping[str, int]:
        """What this node saw since its previous delta; more than one delta can name goes into extra deltas first."""
        most = self.options.limits.deps_entries
        while len(self._frontier.fresh) > most:
            rest = dict(list(self._frontier.fresh.items())[most:])
            self._frontier.fresh = dict(list(self._frontier.fresh.items())[:most])
            try:
                self.append_nowait(None, kind="deltalog.context")
            finally:
                self._frontier.fresh.update(rest)
        return MappingProxyType(self._frontier.fresh)

    async def retire(self, reason: str) -> None:
        """This node appends no more under its source: it was forked, say, or a peer holds more of it than this node.

        From now on appends raise `LogReadOnly` with the reason (1 to 1024 UTF-8 bytes). On return that is durable: the
        next open, even after a crash, begins a new incarnation and says why in its report. Everything else goes on:
        reads, `receive` of other sources. If it raises, appends are barred until the log is closed, and it can be
        called again. Cancelled: likewise.
        """
        if not text_bytes("reason", reason, _REASON_BYTES):
            raise UsageError("reason must not be empty")
        await trio.lowlevel.checkpoint()
        self._refuse_closed()
        self._frontier.retired = self._frontier.retired or reason
        self._barred = True
        self._writer.refuse()
        await self._annotate({RETIRED: encode_retired(self.source, self.retired)}, durable=True)

    @property
    def retired(self) -> str:
        """Why this node appends no more under its source, "" if it does."""
        return self._frontier.retired

    # ------------------------------------------------------------------------------------------------------- receive

    async def receive(self, deltas: Iterable[Delta], *, own: bool = False) -> Receipt:
        """Take in deltas of other sources: apply what can be, keep what must wait, refuse what is wrong; say which.

        own: this node's own deltas, too, beyond its head: what it lost without knowing, and a peer still has. They are
        refused once this log has appended since it was opened; appends then go on behind them. Whoever sets it has
        checked that they are the node's own (by chain and signature): they are believed.

        Never partly applies one. Waits for room in the ring. Raises `LogReadOnly`, `LogClosed`; deltas decided before
        stay decided. Cancelled: likewise.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        return await self._receiver.receive(deltas, own=own)

    async def excuse(self, source: str) -> Receipt:
        """Wait for no delta of a source any more: it was forked, say. What depends on it becomes visible without it.

        Says what did. Forgotten when the log is closed. Raises as `receive`.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        return await self._receiver.excuse(source)

    def _own_came_back(self, seq: int) -> None:
        """An own delta was received: the next one to append comes behind it, and none with its dot."""
        self._mark[0] = self._seq = seq

    # ---------------------------------------------------------------------------------------------------------- read

    async def get(self, dot: tuple[str, int]) -> Delta | None:
        """The delta with this dot; None if there is none here, or it was dropped."""
        await trio.lowlevel.checkpoint()
        self._refuse_closed()
        return await self._reader.get(*dot)

    def by_source(
        self, source: str, *, after: int | None = None, until: int | None = None, reverse: bool = False
    ) -> Stream:
        """Deltas of one source with after < seq <= until, ascending, or newest first; from the floor to the head.

        Raises `BelowFloor` if `after` is given and below the floor.
        """
        floor, head = self._floors.get(source, 0), self._heads.get(source, 0)
        low = floor if after is None else _number("after", after, SEQ_MAX)
        high = head if until is None else min(_number("until", until, SEQ_MAX), head)
        check_floor({source: low}, {source: floor}, {source: high})
        stream = self._opened(self._reader.by_source(source, low, high, reverse=reverse))
        stream.holds = {source: low}
        return stream

    def between(self, after: int = -1, until: int = TIMESTAMP_MAX) -> Stream:
        """Deltas with after < timestamp <= until (hybrid logical clock, see `clock.from_iso`), in timestamp order."""
        if type(after) is not int or after < -1:
            raise UsageError(f"after must be a timestamp, not {after!r}")
        until = min(_number("until", until, TIMESTAMP_MAX), self.clock.last)  # nothing visible is later
        return self._opened(self._reader.between(after, until))

    def since(self, after: Mapping[str, int], until: Mapping[str, int] | None = None) -> Stream:
        """Exactly the deltas that a version vector lacks, each once, in timestamp order (invariant I4).

        until: only of the sources it names, each up to its seq there or the head; costs nothing for any other source,
        and holds none of theirs back from retention. Raises `BelowFloor` if some of them were dropped.
        """
        vector = VersionVector(after)
        if until is None:
            check_floor(vector, self._floors, self._heads)
            return self._opened(self._reader.since(vector, self._heads))
        wanted = {source: min(seq, self._heads.get(source, 0)) for source, seq in VersionVector(until).items()}
        check_floor(vector, {source: self._floors[source] for source in wanted if source in self._floors}, wanted)
        stream = self._opened(self._reader.since(vector, wanted))
        stream.holds = {source: vector.get(source, 0) for source in wanted}
        return stream

    def replay(self) -> Stream:
        """All deltas that are held, in timestamp order: causes before effects."""
        return self._opened(self._reader.since(self._floors, self._heads))

    def subscribe(self, since: Mapping[str, int] | None = None, *, durable: bool = False) -> Subscription:
        """What a version vector lacks (None: nothing so far), then all that comes, each once, without a gap.

        durable: only what survives power loss here; what leaves this node must (invariant I3). Deltas that arrive late
        come when they arrive. `subscription.position` is where to go on after a restart. Raises `BelowFloor`.
        """
        self._refuse_closed()
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
        self._refuse_closed()
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
        if 0 < seq <= floor:
            raise BelowFloor({source: floor}, {source: seq - 1})
        delta = await self.get(dot)
        if delta is None:
            raise UsageError(
                f"there is no delta {source!r}:{seq} here; its source's head is {self._heads.get(source, 0)}"
            )
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

    def conflicts(self, after: int = -1, until: int = TIMESTAMP_MAX) -> Conflicts:
        """Concurrent deltas on one key within an interval of time: for each delta, per other source, the newest it
        did not know. Memory grows with keys times sources in the interval.
        """
        return Conflicts(self.between(after, until))

    # -------------------------------------------------------------------------------------------------------- upkeep

    async def truncate(
        self, *, until: Mapping[str, int] | None = None, retention: Retention | None = None, hard: bool = False
    ) -> Truncation:
        """Drop old deltas: up to a version vector, or what a retention lets go. Only synced ones; never under a reader.

        What a peer within its lease has not acknowledged (`stability`) and what a `hold` keeps stays, unless `hard`.
        Says what was dropped and what was held back. The space comes back with `compact`.
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
        allowed = self._unread(wanted if hard else self._acknowledged(wanted))
        reach("log.truncate.before")
        dropped = await self._drop(allowed) if allowed else 0
        reach("log.truncate.after")
        held = {s: seq for s, seq in wanted.items() if seq > max(allowed.get(s, 0), self._floors.get(s, 0))}
        return Truncation(dropped, self.floor, VersionVector(held))

    async def _drop(self, floors: Mapping[str, int]) -> int:
        """Raise the floors, first here, so that no read begins below them meanwhile; return how many deltas went."""
        self._floors.update(floors)
        try:
            dropped: int = await self._offload(self._store.truncate, floors)
        finally:
            heads = self._store.heads()
            self._floors.update({source: heads[source].floor for source in floors})
        for source in floors:
            self._ring.drop_below(source, self._floors[source])
        return dropped

    def _acknowledged(self, floors: Mapping[str, int]) -> Mapping[str, int]:
        """Lower floors to what no peer still needs."""
        if self.stability.peers:
            floors = self.stability.stable(floors, trio.current_time())
        for hold in list(self._holds.values()):
            held = hold(dict(floors))
            floors = {source: min(seq, held.get(source, 0)) for source, seq in floors.items()}
        return floors

    def _unread(self, floors: Mapping[str, int]) -> dict[str, int]:
        """Lower floors to what no reader in progress still needs."""
        for stream in self._streams:
            floors = stream.spare(floors)
        for subscription in self._subscriptions:
            floors = subscription.spare(floors)
        return {source: seq for source, seq in floors.items() if seq > self._floors.get(source, 0)}

    def hold(self, callback: Hold) -> Callable[[], None]:
        """Ask `callback` at each `truncate` that is not hard (invariant I13); return what ends that.

        It gets the floors that are wanted and returns them lowered to what may go; a source that it leaves out is held
        back entirely. It must not wait. What it raises comes out of `truncate`, and nothing is dropped.
        """
        key = object()
        self._holds[key] = callback

        def unhold() -> None:
            self._holds.pop(key, None)

        return unhold

    def held_by(self, count: int) -> VersionVector:
        """What at least `count` peers have acknowledged as fsynced on their side; empty without peers."""
        return VersionVector.trusted(self.stability.held_by(count))

    async def save_stability(self) -> None:
        """Make durable which peers are known, and what is left of their leases: they pin again from the next open on.

        To be called after a `join` or `forget`, and now and then. Raises as `annotate`; 64 KiB hold some 700 peers.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        async with self._saving:  # or an older list may be written over a newer one
            await self._annotate({PEERS: self.stability.pack(trio.current_time())}, durable=True)

    async def erase(self, dot: tuple[str, int], reason: str) -> Delta:
        """Replace a delta's payload by its hash, here; durable on return. The chain still verifies; the note stays.

        The payload's bytes leave the disk with the next `compact`. Other nodes keep theirs. Raises `UsageError` for a
        dot that is not held. Idempotent.
        """
        if not text_bytes("reason", reason, _REASON_BYTES):
            raise UsageError("reason must not be empty")
        delta = await self._held(dot)
        if delta.seq > self._writer.synced.get(delta.source, 0):
            await self.flush()
        reach("log.erase.before")
        erased: Delta | None = await self._offload(
            self._store.erase, delta.source, delta.seq, reason, self.clock.tick()
        )
        if erased is None:  # dropped meanwhile
            raise BelowFloor({delta.source: delta.seq}, {delta.source: delta.seq - 1})
        self._ring.replace(erased.source, erased.seq, erased.record)
        reach("log.erase.after")
        return erased

    async def erasures(self) -> Sequence[Erasure]:
        """The notes that `erase` left."""
        notes: Sequence[Erasure] = await self._offload(self._store.erasures)
        return notes

    async def annotate(self, changes: Mapping[bytes, bytes | None], *, durable: bool = False) -> None:
        """Keep values under keys beside the deltas, all or none; None removes a key. For the layers above the log.

        In order with the deltas: when one that is written later survives a crash, so does this. `durable`: return only
        when it survives power loss; a flush does that only if there are deltas to sync. Keys are 1 to 1024 bytes, and
        do not begin with `deltalog/`, which the log keeps for itself; values have at most 64 KiB. Raises `UsageError`,
        `LimitExceeded`, `LogReadOnly`, `LogClosed`, `StoreError`.
        """
        await trio.lowlevel.checkpoint()
        self._refuse()
        if any(type(key) is bytes and key.startswith(RESERVED) for key in changes):
            raise UsageError("keys of annotations that begin with 'deltalog/' are the log's own")
        await self._annotate(changes, durable=durable)

    async def _annotate(self, changes: Mapping[bytes, bytes | None], *, durable: bool) -> None:
        kept = dict(changes)
        await self._offload(self._store.annotate, kept)
        if durable:
            await self._offload(self._store.sync)

    async def annotation(self, key: bytes) -> bytes | None:
        """What is kept under a key, None if nothing is."""
        self._refuse_closed()
        value: bytes | None = await self._offload(self._store.annotation, key)
        return value

    async def annotations(
        self, prefix: bytes = b"", *, after: bytes = b"", limit: int | None = None
    ) -> Sequence[tuple[bytes, bytes]]:
        """Keys that start with `prefix` and are greater than `after`, ascending, with their values; at most `limit`."""
        self._refuse_closed()
        if limit is not None:
            _number("limit", limit, SEQ_MAX)
        found: Sequence[tuple[bytes, bytes]] = await self._offload(self._store.annotations, prefix, after, limit)
        return found

    async def compact(self, *, if_needed: bool = False) -> None:
        """Merge short blocks, give back the space of what was dropped or erased. Reads and appends go on meanwhile.

        if_needed: leave the files alone unless there is something to give back.
        """
        await self._offload(partial(self._store.compact, if_needed=if_needed))


@attrs.frozen
class Truncation:
    """What `truncate` did."""

    dropped: int
    """Deltas dropped."""
    floor: VersionVector
    """The log's floor now."""
    held: VersionVector
    """Seqs that should have gone and were held back: by a reader in progress, a peer or a `hold`."""


def _known_peers(store: DeltaStore) -> Stability:
    """What `save_stability` kept."""
    packed = store.annotation(PEERS)
    return Stability() if packed is None else Stability.unpack(packed, trio.current_time())


def _number(field: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f"{field} must be an integer from 0 to {most}, not {value!r}")
    return value
