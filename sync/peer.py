"""Drives one session over one link: hands messages on to whoever acts on them, keeps it alive, ends it.

Tasks of a peer: one reads frames and hands what they say to the session; one writes what waits (`wire`), the only one
that sends; one reads the log for the peer (`outgoing`); one decides on batches (`incoming`). A task that fails ends
them all. The reading task never waits for the writing one, so two nodes cannot wait for each other.

What concerns more than one peer goes to the `Host`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, Protocol

import trio

from deltalog.errors import DeltaLogError
from deltalog.log import DeltaLog
from deltalog.nursery import leaves, open_nursery
from deltalog.receiver import Receipt
from sync import comparison
from sync.comparison import Comparison, Part
from sync.errors import (
    Duplicate,
    HeadRefused,
    LinkFailed,
    LinkRefused,
    PeerBusy,
    ProtocolError,
    SessionRefused,
    SyncError,
)
from sync.heads import Entry
from sync.incoming import Incoming
from sync.ledger import Ledger
from sync.messages import (
    TEXT_BYTES,
    Ack,
    Alive,
    Below,
    Busy,
    Compare,
    Goodbye,
    Have,
    Hello,
    Packed,
    Unwant,
    Want,
    Welcome,
    decode,
)
from sync.options import SyncOptions
from sync.outgoing import Outgoing
from sync.packing import FEATURE, unpack
from sync.session import Batch, Event, Session, State, Witness
from sync.transport import Link
from sync.wire import Deadline, Wire

PARTS: Final = 8
"""Parts of a heads exchange decoded in one turn of the event loop: 2,048 entries at most, about 20 ms."""
CLOSING: Final = "closing"
DUPLICATE: Final = "duplicate"
"""Reasons to say goodbye that are no fault: a node closes; there is another link."""


class Host(Protocol):
    """What all peers of a node share."""

    log: DeltaLog
    ledger: Ledger
    options: SyncOptions

    def greeting(self) -> Hello:
        """What this node says of itself."""

    def met(self, peer: Peer) -> None:
        """The peer said who it is. Raises `SessionRefused`, `LinkRefused` or `PeerBusy` if it must not go on."""

    async def opened(self, peer: Peer, welcome: Welcome) -> None:
        """Both said what they hold."""

    def learnt(self, peer: Peer, entries: Sequence[Entry]) -> None:
        """What the peer holds of sources where it differs from here."""

    def compared(self, peer: Peer, equal: Mapping[str, int]) -> None:
        """A heads exchange has ended; so much the peer holds, too."""

    def acknowledged(self, peer: Peer, items: Sequence[tuple[str, int]]) -> None:
        """The peer has so much synced."""

    def claimed(self, peer: Peer, items: Sequence[tuple[str, int]]) -> None:
        """The peer says that it has so much synced, maybe more than this node."""

    def below(self, peer: Peer, message: Below) -> None:
        """What was wanted was dropped there."""

    def alive(self, peer: Peer, message: Alive) -> None:
        """A heartbeat came."""

    def quarantined(self, peer: Peer, source: str) -> None:
        """What the peer showed proves that a source was forked."""

    def took(self, peer: Peer, receipt: Receipt) -> None:
        """A batch was taken in."""

    def refused(self, peer: Peer, error: HeadRefused) -> None:
        """A run was not."""


class Left(SyncError):
    """Raised to end a session because the peer said goodbye."""

    def __init__(self, goodbye: Goodbye) -> None:
        super().__init__(f"the peer ended the session: {goodbye.code}" + (goodbye.text and f": {goodbye.text}"))
        self.code = goodbye.code


class Peer:
    """The other end of a link."""

    def __init__(self, host: Host, link: Link, *, dialed: bool) -> None:
        """`dialed`: whether this side made the link; it then starts the heads exchange."""
        hello = host.greeting()
        self.host = host
        self.link = link
        self.dialed = dialed
        self.name = ""
        """Name of its node, once it said so."""
        log, ledger, options = host.log, host.ledger, host.options
        self.session = session = Session(hello.cluster, hello.node, log.options.limits)
        self.wire = wire = Wire(link, options, log.options.limits)
        self.put = wire.put
        self.traffic = wire.traffic
        took, refused = partial(host.took, self), partial(host.refused, self)
        self.incoming = Incoming(log, ledger, session, wire.put, wire.traffic, took, refused)
        self.outgoing = Outgoing(log, ledger, session, wire, wire.traffic, options.rate_bytes, self._all_sent)
        self.opened = False
        """Whether both have said what they hold."""
        self.equal = False
        """Whether what the peer told last of all its heads is what is here, or was at some time since."""
        self.reached: tuple[int, bytes] = (0, b"")
        """Total and digest that the peer told last."""
        self.still: tuple[bytes, bytes] = (b"", b"")
        """Both digests at its heartbeat before."""
        self.still_since = 0.0
        """When they were first seen so, or it was last told."""
        self.compared = False
        """Whether heads were compared in this session."""
        self.scope = trio.CancelScope()
        self.goodbye = Goodbye(CLOSING, "")
        """What to say if the session is cancelled."""
        self._hello = hello
        self._comparison: Comparison | None = None
        self._base: dict[str, int] = {}
        """What was synced here when the heads exchange began, but for what differs."""
        self._tokens = 2 * options.requests
        self._tokens_at = trio.current_time()

    # ------------------------------------------------------------------------------------------------------ the session

    async def run(self) -> None:
        """Talk until one side ends it. Raises the `SyncError` that did; cancelled, says goodbye."""
        try:
            with self.scope, _one_error():
                async with open_nursery() as nursery:
                    nursery.start_soon(self.wire.write)
                    try:
                        await self._shake_hands()
                        nursery.start_soon(self._beat)
                        nursery.start_soon(self.outgoing.run)
                        nursery.start_soon(self.incoming.run)
                        await self._read()
                    finally:
                        self.wire.hurry()
        except SyncError as error:
            await self._say_goodbye(_farewell(error), why=isinstance(error, ProtocolError | SessionRefused))
            raise
        except DeltaLogError as error:
            await self._say_goodbye(Goodbye("unable", _short(str(error))))
            raise SyncError(f"{self.name or self.link.name}: {error}") from error
        except trio.Cancelled:
            await self._say_goodbye(self.goodbye)
            raise
        await self._say_goodbye(self.goodbye)
        raise Left(self.goodbye)

    async def _shake_hands(self) -> None:
        with Deadline(self.host.options.handshake_s, "said who it is"):
            self.put(self._hello)
            hello = await self._next()
            assert isinstance(hello, Hello), "the session takes nothing else"
            if self.link.peer_key and hello.key != self.link.peer_key:
                raise LinkRefused(f"{hello.node!r} claims another key than the one its link proved")
            self.name = hello.node
            self.outgoing.packs = FEATURE in hello.features and self._packs()
            self.host.met(self)
            held = self.host.ledger.index.get(hello.source)
            seq, digest = (held.seq, held.hash) if held is not None else (0, b"")
            self.put(Welcome(seq, digest, *self._summary()))
            welcome = await self._next()
            assert isinstance(welcome, Welcome), "the session takes nothing else"
        self.opened = True
        await self.host.opened(self, welcome)
        self.reached = welcome.total, welcome.digest
        if welcome.digest == self.host.ledger.index.digest():
            self._base = dict(self.host.log.synced)
            self._compared()
        elif self.dialed:
            self.compare()

    def _packs(self) -> bool:
        wished = self.host.options.compress
        return wished if wished is not None else not self.link.local

    def _summary(self) -> tuple[int, int, bytes]:
        index = self.host.ledger.index
        return len(index), self.host.ledger.total, index.digest()

    async def _say_goodbye(self, goodbye: Goodbye | Busy, *, why: bool = False) -> None:
        """Best effort: the link may be gone, or in the middle of a frame. `why`: the peer does not know yet."""
        if why or self.session.state is not State.ENDED:
            await self.wire.say_last(goodbye)

    # ---------------------------------------------------------------------------------------------------------- reading

    async def _read(self) -> None:
        while True:
            await self._handle(await self._next())

    async def _next(self) -> Event:
        while True:
            number, body = await self.wire.frame(opened=self.session.state is State.OPEN)
            event = self.session.receive(decode(number, body))
            if isinstance(event, Goodbye):
                raise Left(event)
            if isinstance(event, Packed):
                self.wire.unread(unpack(event))
            elif event is not None:
                return event

    async def _handle(self, event: Event) -> None:
        match event:
            case Batch():
                heads = [(run.source, run.head.seq) for run in event.runs]
                self.session.claim(tuple(heads))
                self.host.acknowledged(self, heads)
                self.incoming.add(event)
            case Ack():
                self.outgoing.acknowledged()
                self.host.claimed(self, event.items)
            case Have():
                self.host.claimed(self, event.items)
            case Want():
                await self._throttle()
                self.outgoing.look(self._wanted_of(event))
            case Compare():
                await self._throttle()
                await self._take_comparison(event)
            case Below():
                self.host.below(self, event)
            case Alive():
                self.host.alive(self, event)
            case Witness():
                await self._throttle()
                forked = await self.incoming.take_witness(event)
                if forked:
                    self.host.quarantined(self, forked)
            case _:
                pass  # TOTAL is in the session; an UNWANT has been noted there

    def _wanted_of(self, want: Want) -> list[str]:
        """The sources wanted; not those that are not here, which would be told as soon as they are."""
        host, wanted = self.host, [source for source, _ in want.items]
        for source in wanted:
            if not host.ledger.seq(source) and source != host.log.source:
                self.session.wanted.pop(source, None)
        return [source for source in wanted if source in self.session.wanted]

    async def _throttle(self) -> None:
        """Make a peer wait that asks for much: others want answers, too."""
        rate = self.host.options.requests
        now = trio.current_time()
        self._tokens = min(2 * rate, self._tokens + (now - self._tokens_at) * rate) - 1
        self._tokens_at = now
        if self._tokens < 0:
            await trio.sleep(-self._tokens / rate)

    # ---- heads

    def compare(self) -> None:
        """Begin a heads exchange; only who made the link does."""
        self._comparison = self._new_comparison()
        self.put(Compare(tuple(comparison.encode(self._comparison.start()))))

    def _new_comparison(self) -> Comparison:
        self._base = dict(self.host.log.synced)
        return Comparison(self.host.ledger.index)

    async def _take_comparison(self, message: Compare) -> None:
        """Take one step of it, in several turns of the event loop: a whole one may take 100 ms."""
        if self._comparison is None:
            if self.dialed:
                raise ProtocolError("COMPARE, and this side begins it")
            self._comparison = self._new_comparison()
        parts: list[Part] = []
        for start in range(0, len(message.parts), PARTS):
            parts += comparison.decode(list(message.parts[start : start + PARTS]))
            await trio.lowlevel.checkpoint()
        answer, learnt, done = self._comparison.receive(parts)
        await trio.lowlevel.checkpoint()
        if answer is not None:
            self.put(Compare(tuple(comparison.encode(answer))))
        self._learn(learnt)
        if done:
            self._comparison = None
            self._compared()

    def _learn(self, learnt: Sequence[Entry]) -> None:
        for entry in learnt:
            self._base.pop(entry.source, None)
        self.session.claim(tuple((entry.source, entry.seq) for entry in learnt if entry.seq))
        self.host.learnt(self, learnt)

    def _compared(self) -> None:
        """What was not mentioned is equal, so the peer holds at least what was here at the beginning."""
        self.compared = True
        equal, self._base = self._base, {}
        self.host.compared(self, equal)
        if self.outgoing.idle:
            self._all_sent()

    def _all_sent(self) -> None:
        """Nothing is left that the peer wants: until both are known to be equal, say at once what is here."""
        if self.compared and not self.equal:
            self.say_alive()

    def say_alive(self) -> None:
        """Tell the peer what all heads here amount to."""
        self.put(Alive(*self._summary()))

    @property
    def comparing(self) -> bool:
        """Whether a heads exchange is under way."""
        return self._comparison is not None

    def show_evidence(self, source: str) -> None:
        """Show why a source is quarantined here."""
        for head in self.host.ledger.evidence(source):
            self.put(head)

    async def show(self, entry: Entry) -> None:
        """The peer holds another chain of a source than this node: show what is signed here."""
        head = await self.host.ledger.witness_for(entry)
        if head is not None:
            self.put(head)

    # ---- wants

    def ask(self, items: Sequence[tuple[str, int]]) -> None:
        """Ask for what is beyond these seqs."""
        self.put(self.session.ask(tuple(items)))

    def unask(self, sources: Sequence[str]) -> None:
        """Ask for no more of these."""
        self.put(Unwant(tuple(sources)))

    # --------------------------------------------------------------------------------------------------------- liveness

    async def _beat(self) -> None:
        options = self.host.options
        while True:
            await trio.sleep(options.heartbeat_s)
            silent = trio.current_time() - self.wire.heard
            if silent >= options.offline_s:
                raise LinkFailed(f"{self.name} has been silent for {silent:.0f} s")
            self.say_alive()


_CODES: Final[Mapping[type[SyncError], str]] = {
    ProtocolError: "protocol",
    HeadRefused: "refused",
    LinkRefused: "key",
    SessionRefused: "refused",
    Duplicate: DUPLICATE,
}


def _farewell(error: SyncError) -> Goodbye | Busy:
    if isinstance(error, PeerBusy):
        return Busy(int(1000 * error.retry_after_s))
    return Goodbye(_CODES.get(type(error), "ended"), _short(str(error)))


@contextmanager
def _one_error() -> Iterator[None]:
    """Several tasks may fail at once, on a link that was cut, say: raise one of their errors, blame first."""
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        errors = list(leaves(rest)) if rest is not None else []
        if not all(isinstance(error, DeltaLogError) for error in errors):
            raise
        error = next(leaves(cancelled)) if cancelled is not None else max(errors, key=_weight)
    else:
        return
    raise error


def _weight(error: BaseException) -> int:
    return isinstance(error, SyncError) + 2 * getattr(error, "blamed", False)


def _short(text: str) -> str:
    return text.encode()[:TEXT_BYTES].decode(errors="ignore")
