"""A whole cluster in one process, deterministic: the same seed is the same run, to the last byte on the wire.

    python -m tests.simulation 4711

Real logs and meshes run on trio's mock clock with a seeded scheduler: no threads, no wall clock, no file. A run is
drawn from its seed (`Plan`): nodes, links, limits, which faults. It goes through three phases: faults while everybody
appends; all is mended, and within `CONVERGENCE_S` all nodes hold the same; each appends once more, and soon all have
that, too. `truth` watches the invariants at every step.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final
from unittest import mock

import attrs
import trio
import trio._core._run as scheduler
from trio.testing import MockClock

from deltalog.nursery import open_nursery
from sync.memory_transport import Network, Weather
from sync.options import SyncOptions
from tests.simulation.faults import CALM, FAR, HOUR_MS, KINDS, NEED_SIGNATURES, Nemesis
from tests.simulation.machine import Keyring
from tests.simulation.node import Habits, Node, options_of
from tests.simulation.truth import Truth

CONVERGENCE_S: Final = 75.0
"""After everything is mended all nodes hold the same within this time. Some 25 s are the most that was seen.

It is 30 s until a silent link is given up, 30 s until the next dial, and three heartbeats.
"""
LIVE_S: Final = 30.0
"""An append reaches everybody within this time: at worst it is found missing by the stall check."""
CALM_LIVE_S: Final = 5.0
"""The same where there never was a fault: it is pushed over five links, and fsynced behind each."""
AGREED_S: Final = 15.0
"""All peers show equal digests, or say why not, within three heartbeats."""
POLL_S: Final = 0.25
TURNS_MAX: Final = 20_000
"""Turns of the event loop at one moment of its clock; some hundreds are usual."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a seed stands for."""

    seed: int
    dials: Mapping[str, Sequence[str]]
    habits: Habits
    kinds: Sequence[str]
    pause_s: float
    """Mean time between two faults."""
    faulty_s: float
    """How long the first phase lasts."""
    skew_ms: int
    limits: Mapping[str, int]
    """Limits of the protocol that are set lower, so that little data meets them."""

    @classmethod
    def of(cls, seed: int, kinds: Sequence[str] | None = None) -> Plan:
        """Draw a plan; `kinds`: with these faults."""
        chance = random.Random(f"plan {seed}")
        signed = chance.random() < 0.6 or (kinds is not None and any(kind in NEED_SIGNATURES for kind in kinds))
        able = [kind for kind in KINDS if signed or kind not in NEED_SIGNATURES]
        drawn = chance.sample(able, min(chance.choice((0, 1, 2, 4, 8, len(KINDS))), len(able)))
        kinds = drawn if kinds is None else kinds
        compress = random.Random(f"compress {seed}").random() < 0.3
        return cls(
            seed=seed,
            dials=_topology([*"abcdef"][: chance.choice((3, 3, 4, 4, 5, 6))], chance, twice=0.2 if kinds else 0.0),
            habits=Habits(
                signed=signed,
                log=options_of(chance, drift_ms=60_000 if FAR in kinds else 3 * HOUR_MS),
                sync=SyncOptions(compress=compress),
                slowest_write_s=chance.choice((0.0, 0.002, 0.1)),
                appends_per_s=chance.choice((0.1, 0.2, 0.6)),
            ),
            kinds=kinds,
            pause_s=chance.choice((0.7, 2.0)),
            faulty_s=chance.choice((6.0, 12.0, 20.0)),
            skew_ms=HOUR_MS,
            limits=(_limits(chance) if kinds else {}) | ({"sync.packing.PACK_BYTES_MIN": 1} if compress else {}),
        )


def _topology(names: list[str], chance: random.Random, twice: float) -> dict[str, list[str]]:
    """Who dials whom: a random tree, and some more links; a share of them is made `twice`, from both sides."""
    dials: dict[str, list[str]] = {name: [] for name in names}
    pairs = [(name, chance.choice(names[:index])) for index, name in enumerate(names) if index]
    pairs += [(a, b) for a in names for b in names if a < b and chance.random() < 0.2]
    for pair in dict.fromkeys(tuple(sorted(pair)) for pair in pairs):
        one, other = chance.sample(pair, 2)
        dials[one].append(other)
        if chance.random() < twice:
            dials[other].append(one)
    return dials


def _limits(chance: random.Random) -> dict[str, int]:
    if chance.random() < 0.5:
        return {}
    return {
        "sync.outgoing.BATCH_BYTES": chance.choice((1, 200, 2000)),
        "sync.outgoing.PAGE": chance.choice((1, 5, 50)),
        "sync.outgoing.TOTAL_FROM": 3,
        "sync.session.WINDOW_BYTES": chance.choice((1, 1000)),
        "sync.ledger.BOUNDARY_DELTAS": chance.choice((1, 4, 20)),
        "sync.heads.LEAF_MAX": chance.choice((1, 2, 32)),
    }


@attrs.frozen(kw_only=True)
class Outcome:
    """How a run went that broke nothing."""

    trace: str
    """Digest of all that happened."""
    appended: int
    converged_s: float
    """Time from the end of all faults until all nodes held the same."""
    live_s: float
    crossed: int
    """Deltas that crossed into nodes since they were last opened."""
    known: int
    """How many of them were held already."""
    faults: Counter[str]
    """How often each fault came."""
    incarnations: int
    """Nodes that go on as a new incarnation at the end."""
    conflicts: int


def simulate(seed: int, kinds: Sequence[str] | None = None) -> Outcome:
    """Run a seed, or one like it with these faults. Raises `Violation` at the first thing that does not hold."""
    plan = Plan.of(seed, kinds)
    truth = Truth()
    with deterministic(seed), limits(plan.limits), uncollected():
        clock = MockClock(autojump_threshold=0)
        outcome = trio.run(_Run(plan, truth).run, clock=clock, instruments=[Standstill(clock, truth)])
    if truth.violation is not None:
        raise truth.violation
    assert outcome is not None
    return outcome


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Have trio choose who runs next by this seed."""
    with (
        mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(scheduler, "_r", random.Random(f"scheduler {seed}")),
    ):
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave garbage where it is: a run is short, and looking for cycles costs a fifth of its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def limits(values: Mapping[str, int]) -> Iterator[None]:
    """Set module constants."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch(name, value))
        yield


class Standstill(trio.abc.Instrument):
    """Breaks a run in which tasks keep each other busy, and time does not go on."""

    def __init__(self, clock: MockClock, truth: Truth) -> None:
        self._clock = clock
        self._truth = truth
        self._now = -1.0
        self._turns = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # trio's name for it
        now = self._clock.current_time()
        self._turns = self._turns + 1 if now == self._now else 0
        self._now = now
        if self._turns == TURNS_MAX:
            self._truth.broken("time stands still")


class _Run:
    """One run."""

    def __init__(self, plan: Plan, truth: Truth) -> None:
        self.plan = plan
        self.truth = truth
        self.chance = random.Random(f"run {plan.seed}")
        weather = CALM if not plan.kinds else Weather()
        self.network = Network(self.chance, weather)
        self.nodes: dict[str, Node] = {}

    async def run(self) -> Outcome | None:
        outcome = None
        with self.truth.scope:
            async with open_nursery() as nursery:
                outcome = await self._phases(nursery)
                nursery.cancel_scope.cancel()
        return outcome

    async def _phases(self, nursery: trio.Nursery) -> Outcome:
        plan, truth = self.plan, self.truth
        keyring = Keyring(self.chance) if plan.habits.signed else None
        for name, dials in plan.dials.items():
            chance = random.Random(f"{name} {plan.seed}")
            node = Node(name, list(dials), plan.habits, truth, self.network, keyring, nursery, chance)
            self.nodes[name] = node
            node.start()
        nemesis = Nemesis(self.nodes, self.network, truth, self.chance, nursery, plan.skew_ms)
        with trio.move_on_after(plan.faulty_s):
            await nemesis.run(plan.kinds, plan.pause_s)
            await trio.sleep_forever()
        await nemesis.mend()
        converged_s = await self._until(CONVERGENCE_S, "no convergence", lambda: self._differences(nemesis.forced))
        for node in self.nodes.values():
            assert node.log is not None
            node.log.append_nowait("live", key="live")
        patience_s = LIVE_S if plan.kinds else CALM_LIVE_S
        live_s = await self._until(patience_s, "no live push", lambda: self._differences(nemesis.forced))
        await self._until(AGREED_S, "no agreement", self._unexplained)
        traffic = [status.traffic for node in self.nodes.values() if node.mesh for status in node.mesh.statuses()]
        crossed, known = sum(each.deltas_in for each in traffic), sum(each.deltas_known for each in traffic)
        lacking = (len(self.nodes) - 1) * truth.appended
        if not plan.kinds and (known or crossed != lacking):
            truth.broken(f"{crossed} deltas crossed, {known} of them twice, where {lacking} were due")
        return Outcome(
            trace=truth.trace,
            appended=truth.appended,
            converged_s=converged_s,
            live_s=live_s,
            crossed=crossed,
            known=known,
            faults=truth.faults,
            incarnations=sum(node.source != node.name for node in self.nodes.values()),
            conflicts=sum(node.conflicts for node in self.nodes.values()),
        )

    async def _until(self, seconds: float, what: str, differences: Callable[[], list[str]]) -> float:
        """Wait until there are no differences; return how long that took."""
        began = trio.current_time()
        while found := differences():
            if trio.current_time() > began + seconds:
                said = "; ".join(f"{node.name}: {node.problems[-1]}" for node in self.nodes.values() if node.problems)
                self.truth.broken(f"{what} in {seconds} s: {'; '.join(found)} -- {said}")
            await trio.sleep(POLL_S)
        return trio.current_time() - began

    def _differences(self, forced: bool) -> list[str]:
        """What keeps the cluster from being converged. `forced`: what nobody near has any more does not count."""
        found = []
        for node in self.nodes.values():
            if node.log is None or node.mesh is None or not node.log.drained or not node.sure():
                found.append(f"{node.name} is not ready")
                continue
            for other in self.nodes.values():
                if other.log is not None and other.mesh is not None:
                    if not forced:
                        found += _lacks(node, other, {})
                    elif node.name in other.mesh.peers:
                        found += _lacks(node, other, other.mesh.peers[node.name].outgoing._stuck)
                    alike = node.mesh.ledger.index.digest() == other.mesh.ledger.index.digest()
                    if node.log.synced == other.log.synced and not alike:
                        self.truth.broken(f"I14: {node.name} and {other.name} have equal heads and unlike digests")
        return found

    def _unexplained(self) -> list[str]:
        """Peers that do not show the same digest, without a word on either side why."""
        words = {
            (node.name, status.name): status.equal or bool(status.below_floor or status.problem)
            for node in self.nodes.values()
            for status in (node.mesh.statuses() if node.mesh is not None else ())
            if status.state != "offline"
        }
        return [f"{one} and {other}" for one, other in words if not (words[one, other] or words.get((other, one)))]


def _lacks(node: Node, other: Node, stuck: Mapping[str, int]) -> list[str]:
    """What a node could have from another, and has not.

    `stuck`: source -> head there that it cannot prove: of a signed run only the first part is there, since the rest
    waits for what was dropped.
    """
    assert node.log is not None and other.log is not None
    held = node.log.heads
    found = []
    for source, seq in other.log.heads.items():
        mine = held.get(source, 0)
        if mine < seq != stuck.get(source) and other.log.floor.get(source, 0) <= mine:
            delta = other.store.get(source, mine + 1)
            if delta is None or all(held.get(name, 0) >= least for name, least in delta.deps.items()):
                found.append(f"{node.name} holds {source}:{mine}, {other.name} {seq}")
    return found
