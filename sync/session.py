"""One session with one peer: which message may come when, and what it means. No I/O, no clock, no log.

    state       may receive                        leaves it
    GREETING    HELLO, BUSY, GOODBYE               by HELLO
    WELCOMING   WELCOME, BUSY, GOODBYE             by WELCOME
    OPEN        everything else                    by GOODBYE
    ENDED       nothing

Both sides run the same table, each on its own. In OPEN the two directions do not wait for each other. Towards here:
DELTAS* HEAD is a run, run* COMMIT a batch; other messages may stand between these. Only what was wanted may come, and
no more at a time than the window both sides know; a batch stays in the window until it was decided and acknowledged.

Lives here: what the peer said, what it wants, what is on its way to it. Does not know: whether signatures hold, what is
stored, who else is connected.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import attrs

from deltalog.delta import Delta, Limits
from sync.errors import PeerBusy, ProtocolError, SessionRefused
from sync.messages import (
    VERSION,
    Ack,
    Alive,
    Below,
    Busy,
    Commit,
    Compare,
    Deltas,
    Goodbye,
    Have,
    Head,
    Hello,
    Items,
    Message,
    Packed,
    Total,
    Unwant,
    Want,
    Welcome,
)

WINDOW_BYTES: Final = 1 << 20
"""Bytes of records on their way to a peer that it has not decided on. One batch may always be."""
WINDOW_DELTAS: Final = 8192
"""Deltas likewise: what the smallest cost is not their bytes."""
PARKED_BYTES: Final = 4 << 20
"""Bytes of records of a peer that wait here for their batch to be whole or decided; but for a single larger record."""
PARKED_DELTAS: Final = 16_384
"""Deltas likewise; each costs up to 1.3 kB of memory, if it is a run and a batch of its own."""
CLAIMS_MAX: Final = 1 << 18
"""Sources that a peer may name."""
CLAIMS_BYTES: Final = 8 << 20
"""UTF-8 bytes of their names."""


class State(enum.Enum):
    """Where a session is."""

    GREETING = "greeting"
    WELCOMING = "welcoming"
    OPEN = "open"
    ENDED = "ended"


@attrs.frozen
class Run:
    """Consecutive deltas of one source, and the head they end in."""

    source: str
    deltas: Sequence[Delta]
    head: Head

    @property
    def after(self) -> int:
        """Seq before the first."""
        return self.deltas[0].seq - 1


@attrs.frozen
class Batch:
    """Runs to be decided on together, and acknowledged under this number."""

    number: int
    runs: Sequence[Run]
    size_bytes: int

    @property
    def count(self) -> int:
        """Number of deltas."""
        return sum(len(run.deltas) for run in self.runs)


@attrs.frozen
class Witness:
    """A head that ends no run: the peer shows what its source signed."""

    head: Head


Event: TypeAlias = (
    Hello | Welcome | Compare | Want | Unwant | Have | Batch | Witness | Ack | Below | Alive | Total | Packed | Goodbye
)
"""What came of a message, for whoever drives the session."""

_ALLOWED: Final[Mapping[State, tuple[type[Any], ...]]] = MappingProxyType(
    {
        State.GREETING: (Hello, Busy, Goodbye),
        State.WELCOMING: (Welcome, Busy, Goodbye),
        State.OPEN: (Compare, Want, Unwant, Have, Deltas, Head, Commit, Ack, Below, Alive, Total, Packed, Goodbye),
        State.ENDED: (),
    }
)


@attrs.define
class _Sent:
    """A batch on its way."""

    number: int
    size_bytes: int
    count: int
    heads: Mapping[str, int]


class Session:
    """The peer's side of the conversation, and ours as far as it limits what the peer may say."""

    def __init__(self, cluster: str, node: str, limits: Limits | None = None) -> None:
        """`cluster`, `node`: names of ours. `limits`: what one delta may weigh."""
        self._cluster = cluster
        self._node = node
        self._limits = limits if limits is not None else Limits()
        self.state = State.GREETING
        self.hello: Hello | None = None
        """What the peer said of itself."""
        # towards the peer
        self.wanted: dict[str, int] = {}
        """source -> seq up to which it was sent; of the sources that the peer wants."""
        self._sent: deque[_Sent] = deque()
        self._numbers = 0
        # towards here
        self.asked: dict[str, int] = {}
        """source -> seq after which it was asked for; of all sources that were, in this session."""
        self.claims: dict[str, int] = {}
        """source -> highest seq that the peer says it has synced."""
        self.announced: Total = Total(0, 0)
        self._run: list[Delta] = []
        self._runs: dict[str, Run] = {}
        self._batch_bytes = 0
        self._parked = 0
        self._parked_deltas = 0
        self._claims_bytes = 0
        self._batches = 0
        self._undecided: deque[Batch] = deque()

    # ------------------------------------------------------------------------------------------------------- receiving

    def receive(self, message: Message) -> Event | None:
        """Take one message in; return what came of it, None if more must come first.

        Raises `ProtocolError` for what must not come now, `SessionRefused`, `PeerBusy`; the session has then ended.
        """
        try:
            self._check_turn(message)
            return self._take(message)
        except (ProtocolError, SessionRefused, PeerBusy):
            self.state = State.ENDED
            raise

    def _check_turn(self, message: Message) -> None:
        if not isinstance(message, _ALLOWED[self.state]):
            raise ProtocolError(f"{type(message).__name__.upper()} must not come while {self.state.value}")

    def _take(self, message: Message) -> Event | None:
        if isinstance(message, Deltas):
            self._more(message)
            return None
        if isinstance(message, Head):
            return self._run_ends(message)
        if isinstance(message, Commit):
            return self._batch_ends(message)
        if isinstance(message, Busy):
            raise PeerBusy(message.retry_after_ms / 1000)
        self._note(message)
        return message

    def _note(self, message: Event) -> None:
        """Keep what a message says about the session itself."""
        match message:
            case Hello():
                self._greeted(message)
            case Welcome():
                self.state = State.OPEN
            case Goodbye():
                self.state = State.ENDED
            case Ack():
                self._acknowledged(message)
            case Want():
                self._note_wants(message.items)
            case Unwant():
                self._note_unwanted(message.sources)
            case Have():
                self.claim(message.items)
            case Below():
                self._note_below(message.items)
            case Total():
                self.announced = message

    def _greeted(self, hello: Hello) -> None:
        if hello.version != VERSION:
            raise SessionRefused(f"{hello.node!r} speaks version {hello.version} of the protocol; this node {VERSION}")
        if hello.cluster != self._cluster:
            raise SessionRefused(f"{hello.node!r} is of cluster {hello.cluster!r}; this node of {self._cluster!r}")
        if hello.node == self._node:
            raise SessionRefused(f"{hello.node!r} is this node's own name: two nodes must not share one")
        self.hello = hello
        self.state = State.WELCOMING

    def claim(self, items: Items) -> None:
        """The peer says that it has so much synced. It never takes a claim back within a session."""
        for source, seq in items:
            known = self.claims.get(source, 0)
            if not known:
                self._claims_bytes += len(source.encode())
                if len(self.claims) >= CLAIMS_MAX or self._claims_bytes > CLAIMS_BYTES:
                    raise ProtocolError(
                        f"heads of more than {CLAIMS_MAX:,} sources, or {CLAIMS_BYTES:,} bytes of names"
                    )
            if seq > known:
                self.claims[source] = seq

    def _note_wants(self, items: Items) -> None:
        for source, after in items:
            if len(self.wanted) >= CLAIMS_MAX and source not in self.wanted:
                raise ProtocolError(f"more than {CLAIMS_MAX:,} sources are wanted")
            self.wanted[source] = after

    def _note_unwanted(self, sources: Sequence[str]) -> None:
        for source in sources:
            self.wanted.pop(source, None)

    def _note_below(self, items: Items) -> None:
        for source, _ in items:
            self._expect(source)

    # ---- batches towards here

    def ask(self, items: Items) -> Want:
        """The message that asks for what is beyond these seqs."""
        self.asked.update(items)
        return Want(items)

    def _expect(self, source: str) -> None:
        if source not in self.asked:
            raise ProtocolError(f"source {source[:80]!r} was not asked for")

    def _more(self, message: Deltas) -> None:
        self._expect(message.source)
        before = self._run[-1] if self._run else None
        if before is not None and (message.source, message.seq) != (before.source, before.seq + 1):
            raise ProtocolError(f"deltas of {message.source!r} from {message.seq}, within a run of {before.source!r}")
        size = len(message.records)
        if self._parked + size > PARKED_BYTES and (self._parked or message.count > 1):
            raise ProtocolError(f"{self._parked + size:,} bytes are not decided; the limit is {PARKED_BYTES:,}")
        if self._parked_deltas + message.count > PARKED_DELTAS:
            raise ProtocolError(
                f"{self._parked_deltas + message.count:,} deltas are not decided; the limit is {PARKED_DELTAS:,}"
            )
        self._parked += size
        self._parked_deltas += message.count
        self._batch_bytes += size
        deltas = message.decode(self._limits)
        if before is not None and deltas[0].timestamp <= before.timestamp:
            raise ProtocolError(f"deltas of {message.source!r}: the timestamp of seq {message.seq} does not ascend")
        self._run += deltas

    def _run_ends(self, head: Head) -> Witness | None:
        if not self._run:
            return Witness(head)
        last = self._run[-1]
        if (head.source, head.seq) != (last.source, last.seq):
            raise ProtocolError(f"head {head.source!r}:{head.seq} behind a run that ends in {last.source!r}:{last.seq}")
        if head.source in self._runs:
            raise ProtocolError(f"two runs of {head.source!r} in one batch")
        self._runs[head.source] = Run(head.source, self._run, head)
        self._run = []
        return None

    def _batch_ends(self, commit: Commit) -> Batch:
        if self._run or not self._runs:
            raise ProtocolError("COMMIT " + ("within a run" if self._run else "of an empty batch"))
        self._batches += 1
        if commit.number != self._batches:
            raise ProtocolError(f"batch {commit.number} where {self._batches} was due")
        batch = Batch(commit.number, list(self._runs.values()), self._batch_bytes)
        self._runs, self._batch_bytes = {}, 0
        self._undecided.append(batch)
        return batch

    def decided(self, batch: Batch, synced: Items) -> Ack:
        """The message that says so: of the sources in `batch`, so much is synced here."""
        first = self._undecided.popleft()
        assert first is batch, "batches are decided in order"
        self._parked -= batch.size_bytes
        self._parked_deltas -= batch.count
        return Ack(batch.number, synced)

    # ---- batches towards the peer

    @property
    def room(self) -> bool:
        """Whether one more batch may be sent."""
        sent = self._sent
        return sum(b.size_bytes for b in sent) < WINDOW_BYTES and sum(b.count for b in sent) < WINDOW_DELTAS

    @property
    def in_flight(self) -> int:
        """Batches on their way."""
        return len(self._sent)

    def sending(self, heads: Mapping[str, int], size_bytes: int, count: int) -> Commit:
        """Note a batch of `count` deltas whose runs end in `heads`; return the message that ends it."""
        self._numbers += 1
        self._sent.append(_Sent(self._numbers, size_bytes, count, heads))
        return Commit(self._numbers)

    def _acknowledged(self, ack: Ack) -> None:
        if not self._sent or ack.number != self._sent[0].number:
            raise ProtocolError(f"ACK of batch {ack.number}, which is not due")
        heads = self._sent.popleft().heads
        for source, _ in ack.items:
            if source not in heads:
                raise ProtocolError(f"ACK of {source[:80]!r}, which batch {ack.number} does not hold")
        self.claim(ack.items)
