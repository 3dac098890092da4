"""What is true of the whole cluster, and the first thing that is not: the oracles of the simulation.

`Truth` knows every delta that any node ever appended. Nodes tell it what becomes visible, what is written and what
leaves them; it holds that against the invariants of the design at once:

* I1  a dot has one content and one chain hash, for ever
* I2  what was acknowledged as durable is there after a crash; what is there is a prefix
* I3  what leaves a node, deltas and claims alike, is fsynced there
* I4  deltas of a source become visible in order without a gap, none twice
* I5  a delta becomes visible after its deps
* I6  timestamps ascend per source, and a delta comes after its deps
* I13 what a known peer lacks is not dropped

and what waits for a slow peer is bounded.

It breaks the run at the first violation: `scope` is cancelled and `violation` says what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b

import trio

from deltalog import codec
from deltalog.block import STORED
from deltalog.delta import Delta
from deltalog.store import Run
from sync.mesh import Mesh
from sync.messages import Ack, Deltas, Have, Head, Message
from sync.session import PARKED_BYTES
from sync.wire import OUTBOX_LOW
from tests.simulation.machine import SimulatedStore, messages


class Violation(AssertionError):
    """An invariant does not hold."""


class Truth:
    """Every delta there ever was."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.violation: Violation | None = None
        self.deltas: dict[tuple[str, int], Delta] = {}
        self.appended = 0
        self.faults: Counter[str] = Counter()
        """How often each fault came."""
        self._hashes: dict[tuple[str, int], bytes] = {}
        self._trace = blake2b(digest_size=16)

    # ---- the run

    def broken(self, text: str) -> None:
        """Something does not hold; only the first counts."""
        if self.violation is None:
            self.violation = Violation(f"at {trio.current_time():.3f} s: {text}")
            self.scope.cancel()

    def note(self, *facts: object) -> None:
        """Something happened: it belongs to the trace."""
        self._trace.update(repr((trio.current_time(), *facts)).encode())

    @property
    def trace(self) -> str:
        """Digest of all that happened."""
        return self._trace.hexdigest()

    def forget(self, source: str, above: int) -> None:
        """Nobody holds these any more, nor remembers them: the disk that did is gone, and with it that they were."""
        for dot in [dot for dot in self.deltas if dot[0] == source and dot[1] > above]:
            del self.deltas[dot]
            self._hashes.pop(dot, None)

    # ---- oracles

    def visible(self, node: str, own: bool, dot: tuple[str, int], record: bytes, heads: Mapping[str, int]) -> None:
        """A delta is about to become visible."""
        source, seq = dot
        if seq != heads.get(source, 0) + 1:
            self.broken(f"I4: {node} shows {dot} behind {heads.get(source, 0)}")
        known = self.deltas.get(dot)
        if known is None:
            known = codec.decode(source, record, STORED)
            if not own:
                self.broken(f"I1: {node} shows {dot}, which nobody wrote")
            self._written(node, known)
        elif known.record != record:
            self.broken(f"I1: {node} shows {dot} with another content than it was written with")
        for name, least in known.deps.items():
            if heads.get(name, 0) < least:
                self.broken(f"I5: {node} shows {dot} before its dep {(name, least)}")

    def _written(self, node: str, delta: Delta) -> None:
        """A node appended a delta."""
        self.deltas[delta.dot] = delta
        self.appended += 1
        causes = [*delta.deps.items(), (delta.source, delta.seq - 1)]
        for cause in causes:
            before = self.deltas.get(cause)
            if before is not None and before.timestamp >= delta.timestamp:
                self.broken(f"I6: {node} wrote {delta.dot} with a timestamp that is not above that of {cause}")

    def stored(self, node: str, runs: Sequence[Run]) -> None:
        """A store is about to be written."""
        for run in runs:
            for index, hash_ in enumerate(run.hashes):
                if self._hashes.setdefault((run.source, run.seq + index), hash_) != hash_:
                    self.broken(f"I1: {node} stores {run.source}:{run.seq + index} with another chain hash")

    def departs(self, node: str, store: SimulatedStore, link: str, data: bytes, *, honest: bool) -> None:
        """Bytes are about to leave a node."""
        self.note("sent", link, blake2b(data, digest_size=8).digest())
        for message in messages(data):
            for source, seq in _claims(message):
                if seq > store.synced_seq(source):
                    kind = type(message).__name__
                    self.broken(f"I3: {node} sends {kind} {source}:{seq}; fsynced is {store.synced_seq(source)}")
            if isinstance(message, Deltas) and honest:
                self._check_records(node, message)

    def _check_records(self, node: str, message: Deltas) -> None:
        dots = [(message.source, message.seq + index) for index in range(message.count)]
        held = [self.deltas.get(dot) for dot in dots]
        if any(delta is None for delta in held) or b"".join(d.record for d in held if d) != message.records:
            self.broken(f"I1: {node} sends {dots[0]}.. with another content than it was written with")

    def synced(self, node: str, store: SimulatedStore, heads: Mapping[str, int]) -> None:
        """A log says that these survive power loss."""
        for source, seq in heads.items():
            if seq > store.synced_seq(source):
                self.broken(f"I2: {node} calls {source}:{seq} synced; fsynced is {store.synced_seq(source)}")

    def bounded(self, node: str, mesh: Mesh) -> None:
        """What a node keeps in memory for its peers."""
        for name, peer in mesh.peers.items():
            if peer.wire.waiting_bytes > mesh.options.outbox_bytes + OUTBOX_LOW + OUTBOX_LOW:
                self.broken(f"{peer.wire.waiting_bytes:,} bytes wait at {node} for {name}")
            if peer.session._parked > PARKED_BYTES:
                self.broken(f"{peer.session._parked:,} bytes of {name} are parked at {node}")

    def kept(self, node: str, store: SimulatedStore, acknowledged: Mapping[str, int]) -> None:
        """A store is found after a crash."""
        for source, seq in acknowledged.items():
            if store.head(source).seq < seq:
                self.broken(f"I2: {node} lost {source}:{store.head(source).seq + 1}..{seq}, which was durable")

    def dropped(self, node: str, floors: Mapping[str, int], peers: Iterable[tuple[str, SimulatedStore]]) -> None:
        """A node dropped deltas up to these, though not by force; `peers` are known to it."""
        for name, store in peers:
            for source, floor in floors.items():
                if store.synced_seq(source) < floor:
                    self.broken(f"I13: {node} dropped {source} up to {floor}; {name} holds {store.synced_seq(source)}")


class WatchedHeads(dict[str, int]):
    """A log's visible heads, which tells before it moves."""

    tell: Callable[[str, int], None]

    def __setitem__(self, source: str, seq: int) -> None:
        self.tell(source, seq)
        super().__setitem__(source, seq)


def _claims(message: Message) -> Sequence[tuple[str, int]]:
    """What a message says to be synced."""
    match message:
        case Deltas():
            return [(message.source, message.seq + message.count - 1)]
        case Head():
            return [(message.source, message.seq)]
        case Have() | Ack():
            return message.items
        case _:
            return ()
