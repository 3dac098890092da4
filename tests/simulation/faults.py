"""What happens to a simulated cluster: each fault takes the cluster and does something to it, now.

Which kinds a run has is drawn from its seed: a run with few kinds finds what a run with all of them hides.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import trio

from deltalog.errors import DeltaLogError
from sync.memory_transport import Network, Weather
from tests.simulation.node import Backup, Node
from tests.simulation.truth import Truth

CALM: Final = Weather(delay_s=(0.001, 0.02))
HOUR_MS: Final = 3_600_000
RECALL_S: Final = 5.0
"""A node that was put back waits at least so long for its own deltas."""
GIVE_UP_S: Final = 40.0
"""After so long it goes on as a new incarnation, whatever others hold."""


class Nemesis:
    """Does faults to nodes and network, and mends all at the end."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        network: Network,
        truth: Truth,
        chance: random.Random,
        nursery: trio.Nursery,
        skew_ms: int,
    ) -> None:
        """`skew_ms`: how far a clock may be set off, either way."""
        self.nodes = nodes
        self.network = network
        self.truth = truth
        self.chance = chance
        self.skew_ms = skew_ms
        self.forced = False
        """Whether deltas may be gone that somebody lacks: dropped by force, or before a node was put back."""
        self.collected = False
        """Whether anything was dropped at all."""
        self._nursery = nursery
        self._backups: dict[str, Backup] = {}

    async def run(self, kinds: Sequence[str], pause_s: float) -> None:
        """Do faults of these kinds until cancelled."""
        while kinds:
            await trio.sleep(self.chance.expovariate(1 / pause_s))
            kind = self.chance.choice(kinds)
            self.truth.note("fault", kind)
            self.truth.faults[kind] += 1
            with trio.CancelScope(shield=True):
                await KINDS[kind](self)

    async def mend(self) -> None:
        """End all faults: everybody is up, nothing is in the way, clocks agree within the bound."""
        self.network.weather = CALM
        self.network.heal()
        for one in self.nodes.values():
            one.store.full = one.writes = False
            if one.forge:
                await self._be_honest(one)
            for other in self.nodes:
                self.network.slow(one.name, other, None)
        for node in self.nodes.values():
            node.skew_ms = self.skew_ms  # nothing was stamped later
        while not all(node.up for node in self.nodes.values()):
            for node in self.nodes.values():
                node.start()
            await trio.sleep(0.01)
        with trio.move_on_after(GIVE_UP_S):
            while not all(node.sure() for node in self.nodes.values()):  # noqa: ASYNC110  # it is looked up
                await trio.sleep(1)
        for node in self.nodes.values():
            if not node.sure():
                if not self.collected:
                    self.truth.broken(f"own deltas of {node.name} did not come back")
                node.unsure, node.doubt = None, "its own deltas did not come back"
                await node.restart()

    def _up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    def _pair(self) -> tuple[str, str]:
        links = self.network.links()
        if links:
            return self.chance.choice(links)
        one, other = self.chance.sample(sorted(self.nodes), 2)
        return one, other

    # ---- ends of a life

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(Node.kill)

    async def lose_power(self) -> None:
        """Power loss: what was not fsynced is gone."""
        await self._end(Node.lose_power)

    async def restart(self) -> None:
        """Close in order, open again."""
        await self._end(Node.close)

    async def _end(self, end: Callable[[Node], Awaitable[None]]) -> None:
        if able := self._up():
            node = self.chance.choice(able)
            await end(node)
            self._nursery.start_soon(self._start_later, node)

    async def _start_later(self, node: Node) -> None:
        await trio.sleep(self.chance.choice((0.0, 0.0, 0.3, 2.0, 20.0)))
        node.start()

    async def save(self) -> None:
        """Copy the directory of a node that was closed for it."""
        if able := self._up():
            node = self.chance.choice(able)
            await node.close()
            if node.down:
                self._backups[node.name] = node.backup()
            node.start()

    async def put_back(self) -> None:
        """Put an older copy in the place of a node's directory.

        Where it is noticed (another place, another machine) the node goes on as a new incarnation. Where it is not, its
        application waits until its own deltas have come back, as far as anybody has them.
        """
        if self._backups:
            name = self.chance.choice(sorted(self._backups))
            node = self.nodes[name]
            await node.close()
            if node.down:
                self.forced = True
                node.put_back(self._backups[name])
                self.network.cut(name)
                if self.chance.random() < 0.5:
                    node.doubt = "put back"
                else:
                    node.unsure = self._until_recalled(node)
            node.start()

    def _until_recalled(self, node: Node) -> Callable[[], bool]:
        least_s = trio.current_time() + RECALL_S

        def unsure() -> bool:
            if node.log is None or trio.current_time() < least_s:
                return True
            source, held = node.source, node.log.heads.get(node.source, 0)
            if any(held < _held(other, source) for other in self.nodes.values() if other is not node):
                return True
            self.truth.forget(source, held)
            return False

        return unsure

    # ---- the network

    async def cut(self) -> None:
        """Links end, and what is under way on them is lost."""
        self.network.cut(*self._pair()[: self.chance.choice((1, 2))])

    async def partition(self) -> None:
        """Two groups that do not reach each other: links between them end, or fall silent."""
        names = sorted(self.nodes)
        self.chance.shuffle(names)
        middle = self.chance.randint(1, len(names) - 1)
        self.network.partition(names[:middle], names[middle:], cut=self.chance.random() < 0.5)

    async def heal(self) -> None:
        """No partition any more."""
        self.network.heal()

    async def slow(self) -> None:
        """A link carries little."""
        self.network.slow(*self._pair(), self.chance.choice((None, 2_000.0, 200.0)))

    async def weather(self) -> None:
        """Delays, stalls and cuts everywhere."""
        delay_s = self.chance.choice(((0.001, 0.02), (0.001, 0.5), (0.1, 3.0)))
        self.network.weather = Weather(
            delay_s=delay_s,
            cut_chance=self.chance.choice((0.0, 0.0, 0.01, 0.05)),
            in_flight_bytes_max=self.chance.choice((1 << 18, 2_000)),
        )

    # ---- disks, clocks, liars

    async def collect(self) -> None:
        """GC of what everybody has."""
        await self._collect(hard=False)

    async def collect_hard(self) -> None:
        """GC whoever lacks it."""
        self.forced = True
        await self._collect(hard=True)

    async def _collect(self, *, hard: bool) -> None:
        able = self._up()
        node = self.chance.choice(able) if able else None
        if node is None or node.log is None or node.mesh is None:
            return
        self.collected = True
        log, share = node.log, self.chance.choice((0.3, 0.8, 1.0))
        before = log.floor
        node.met.update(dict.fromkeys(node.mesh.peers))
        try:
            await log.truncate(until={source: int(seq * share) for source, seq in log.heads.items()}, hard=hard)
        except DeltaLogError as error:
            self.truth.note("not collected", node.name, str(error))
            return
        moved = {source: seq for source, seq in log.floor.items() if seq > before.get(source, 0)}
        self.truth.note("collected", node.name, sorted(moved.items()))
        if not hard:
            met = [self.nodes[name] for name in node.met]
            peers = [peer for peer in met if peer.put_back_s < 0 or node.told_since(peer.name, peer.put_back_s)]
            self.truth.dropped(node.name, moved, [(peer.name, peer.store) for peer in peers])

    async def fill_disk(self) -> None:
        """A disk is full; another has room again."""
        for node in self._up():
            node.store.full = self.chance.random() < 0.3 and not node.store.full

    async def set_clock(self) -> None:
        """A wall clock jumps."""
        node = self.nodes[self.chance.choice(sorted(self.nodes))]
        node.skew_ms = self.chance.randint(-self.skew_ms, self.skew_ms)

    async def forge(self) -> None:
        """A node begins to alter what it passes on, or is replaced by an honest one."""
        node = self.nodes[self.chance.choice(sorted(self.nodes))]
        if node.forge:
            await self._be_honest(node)
        else:
            node.forge = True

    async def _be_honest(self, node: Node) -> None:
        """A peer whose heads were refused is not asked for these sources again before it connects anew."""
        was_up = not node.down
        await node.close()
        node.forge = False
        if was_up:
            node.start()


def _held(node: Node, source: str) -> int:
    """How much of a source is anywhere at a node."""
    held = node.store.head(source).seq
    if node.log is not None and node.mesh is not None:
        waiting = [*node.log._inbox._held, *(delta.dot for delta in node.log._receiver._cut_off)]
        waits = max((seq for name, seq in waiting if name == source), default=0)
        held = max(held, waits, node.log.heads.get(source, 0), node.mesh.ledger.reached(source))
    return held


Kind = Callable[[Nemesis], Awaitable[None]]

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "kill": Nemesis.kill,
        "lose_power": Nemesis.lose_power,
        "restart": Nemesis.restart,
        "save": Nemesis.save,
        "put_back": Nemesis.put_back,
        "cut": Nemesis.cut,
        "partition": Nemesis.partition,
        "heal": Nemesis.heal,
        "slow": Nemesis.slow,
        "weather": Nemesis.weather,
        "collect": Nemesis.collect,
        "collect_hard": Nemesis.collect_hard,
        "fill_disk": Nemesis.fill_disk,
        "set_clock": Nemesis.set_clock,
        "set_clock_far": Nemesis.set_clock,
        "forge": Nemesis.forge,
    }
)
FAR: Final = "set_clock_far"
"""Clocks are set off by more than nodes tolerate: deltas are refused until all clocks have come so far."""
NEED_SIGNATURES: Final = ("forge",)
