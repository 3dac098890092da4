"""Bugs on purpose: each is one change to the code under test, and the simulation must find every one of them.

A mutant says which faults bring it out, so that few seeds suffice. Whoever adds an oracle adds the mutant that only it
finds; one that survives means that the simulation does not see what it claims to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import attrs
import trio

from deltalog import receiver
from deltalog.delta import Delta
from deltalog.receiver import Receiver
from deltalog.stability import Stability
from deltalog.writer import Writer
from sync import trust
from sync.feeders import Feeders
from sync.ledger import Ledger
from sync.mesh import Mesh
from sync.messages import Ack, Items, Want
from sync.outgoing import Outgoing
from sync.peer import Peer
from sync.session import Batch, Session
from tests.simulation.machine import SimulatedDisk
from tests.simulation.node import Node
from tests.simulation.truth import Truth

Patch = tuple[Any, str, Any]
"""Object, name of what is replaced in it, and by what."""


@attrs.frozen
class Mutant:
    """One bug."""

    what: str
    finds: str
    """How the violation begins that gives it away."""
    kinds: Sequence[str]
    """Faults under which it shows."""
    patches: Sequence[Patch]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the bug while the block runs."""
        with ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield


# ------------------------------------------------------------------------------------------------------- what they do

_persist = SimulatedDisk.persist
_apply = Receiver._apply
_ask = Session.ask
_send_run = Outgoing._send_run


def _persist_without_fsync(self: SimulatedDisk, runs: Any, sync: bool) -> None:
    _persist(self, runs, False)


def _visible_seq(self: Ledger, source: str) -> int:
    return self.log.heads.get(source, 0)


async def _at_once(self: Writer, ordinal: int) -> None:
    await trio.lowlevel.checkpoint()


def _acknowledge_all(self: Session, batch: Batch, synced: Items) -> Ack:
    self._undecided.popleft()
    self._parked -= batch.size_bytes
    return Ack(batch.number, tuple((run.source, run.head.seq) for run in batch.runs))


def _ask_one_too_late(self: Session, items: Items) -> Want:
    return _ask(self, tuple((source, after + 1) for source, after in items))


def _keep_the_window(self: Session, ack: Ack) -> None:
    self.claim(ack.items)


async def _send_all_but_first(self: Outgoing, source: str, deltas: list[Delta]) -> None:
    await _send_run(self, source, deltas[1:] or deltas)


def _no_deps(delta: Delta, heads: Mapping[str, int], *_: Any) -> tuple[str, int] | None:
    before = delta.seq - 1
    return (delta.source, before) if heads.get(delta.source, 0) < before else None


def _clock_alone(self: Receiver, delta: Delta) -> bool:
    last = self._clock.last
    applied = _apply(self, delta)
    self._clock.last = last
    return applied


def _nothing(*_: Any) -> None:
    return None


def _nobody(*_: Any) -> list[Any]:
    return []


def _yes(*_: Any) -> bool:
    return True


def _take_always(self: Feeders, source: str, peer: str, seq: int) -> bool:
    self.drop(source, self.get(source) or "")
    return _take(self, source, peer, seq)


_take = Feeders.take


def _as_wanted(self: Stability, heads: Mapping[str, int], now: float) -> dict[str, int]:
    return dict(heads)


async def _no_checkpoint(*_: Any) -> None:
    return None


def _break(self: Truth, node: str, own: bool, dot: tuple[str, int], record: bytes, heads: Mapping[str, int]) -> None:
    self.broken("canary")


LINKS: Final = ("cut", "partition", "heal", "weather")

MUTANTS: Final[Sequence[Mutant]] = (
    Mutant("an fsync that does nothing", "I2", (), [(SimulatedDisk, "persist", _persist_without_fsync)]),
    Mutant("deltas are sent once visible", "I3", (), [(Ledger, "seq", _visible_seq)]),
    Mutant("a flush that does not wait", "I2", ("lose_power",), [(Writer, "wait_synced", _at_once)]),
    Mutant("an ACK for what waits or was refused", "I3", LINKS, [(Session, "decided", _acknowledge_all)]),
    Mutant("a WANT off by one", "no convergence", (), [(Session, "ask", _ask_one_too_late)]),
    Mutant("a window that is never released", "no ", LINKS, [(Session, "_acknowledged", _keep_the_window)]),
    Mutant("a run that begins too late", "time stands still", (), [(Outgoing, "_send_run", _send_all_but_first)]),
    Mutant("deps are ignored", "I5", LINKS, [(receiver, "lacking", _no_deps)]),
    Mutant("the clock ignores what is received", "I6", ("set_clock",), [(Receiver, "_apply", _clock_alone)]),
    Mutant(
        "a tail that outlives its deltas",
        "no convergence",
        LINKS,
        [(Ledger, "forget_tail", _nothing), (Ledger, "forget_tails", _nothing)],
    ),
    Mutant(
        "a feeder that is never replaced",
        "no convergence",
        LINKS,
        [(Feeders, "leave", _nobody), (Feeders, "stalled", _nobody)],
    ),
    Mutant("everybody feeds", "crossed", (), [(Feeders, "take", _take_always)]),
    Mutant("signatures are not checked", "I1", ("forge",), [(trust, "_signature_holds", _yes)]),
    Mutant("heads are compared in vain", "no convergence", LINKS, [(Peer, "_learn", _nothing)]),
    Mutant("heads that were signed are not kept", "no ", ("forge",), [(Ledger, "_thin", _nothing)]),
    Mutant("own deltas are not asked for", "own deltas", ("save", "put_back"), [(Mesh, "_check_own", _no_checkpoint)]),
    Mutant("nothing is announced", "no ", (), [(Outgoing, "_announce", _nothing)]),
    Mutant("GC does not ask the peers", "I13", ("collect", *LINKS), [(Stability, "stable", _as_wanted)]),
    Mutant(
        "peers are forgotten in a crash",
        "I13",
        ("collect", "kill", *LINKS),
        [(Mesh, "_note_peers", _no_checkpoint)],
    ),
    Mutant("a seq is used again after a crash", "I1", ("lose_power", "kill"), [(Node, "uncertain", lambda *_: "")]),
)
CANARY: Final = Mutant("the canary", "canary", (), [(Truth, "visible", _break)])
