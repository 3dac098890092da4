"""One node of a simulated cluster: its lives, what ends them, and what outlives them.

A life is a log and a mesh in one cancel scope, as in a process. What outlives it is a disk: the store as far as it
survived, the mark of what was handed out (the witness of a real node), and who the node was. A life ends in order
(`close`), by SIGKILL (`kill`: what was written is there, what was sent still arrives) or by power loss (`lose_power`:
what was not fsynced is gone but for a random part, and the peers hear nothing any more).

The rule of startup is that of `deltalog.startup`: a node that cannot be sure of its own tail, or whose source was
retired, goes on as a new incarnation.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import trio

from deltalog.clock import Clock
from deltalog.errors import LogReadOnly, RingFull, StoreFull
from deltalog.keys import RETIRED, decode_retired
from deltalog.log import DeltaLog, LogOptions
from deltalog.nursery import open_nursery
from sync.memory_transport import Network
from sync.mesh import Mesh, open_mesh
from sync.options import SyncOptions
from sync.trust import ALL, Trust, voucher_bytes
from tests.deltalog.memory_log import NOON_MS
from tests.simulation.forger import forging
from tests.simulation.machine import Hop, Keyring, Pen, SimulatedDisk, SimulatedStore, WatchedTransport
from tests.simulation.truth import Truth, WatchedHeads

CLUSTER = "simulation"
KEYS = ("", "title", "body", "cursor")


@attrs.frozen(kw_only=True)
class Habits:
    """What all nodes of a cluster have in common."""

    signed: bool
    log: LogOptions
    sync: SyncOptions
    slowest_write_s: float
    appends_per_s: float
    """Bursts of up to five deltas, each node."""


@attrs.frozen
class Backup:
    """A copy of a node's directory."""

    store: SimulatedStore
    source: str
    mark: int


class Node:
    """A node, up or down."""

    def __init__(
        self,
        name: str,
        dials: list[str],
        habits: Habits,
        truth: Truth,
        network: Network,
        keyring: Keyring | None,
        nursery: trio.Nursery,
        chance: random.Random,
    ) -> None:
        # constant
        self.name = name
        self.dials = dials
        self.habits = habits
        self.truth = truth
        self._network = network
        self._nursery = nursery
        self._chance = chance
        self._keyring = keyring
        self._pen: Pen | None = None
        if keyring is not None:
            key = keyring.new_key()
            self._pen = Pen(keyring, key, keyring.sign(keyring.cluster_key, voucher_bytes(CLUSTER, key)))
        # what outlives a life
        self.store = SimulatedStore()
        self.source = name
        self.mark = 0
        """Highest own seq that was handed out."""
        self.durable: dict[str, int] = {}
        """What a caller was told to be durable."""
        self.met: dict[str, None] = {}
        """Peers it was connected to and must remember."""
        self.doubt = ""
        """Why its tail may be wrong, as its witness would know at the next start."""
        self.skew_ms = 0
        self.put_back_s = -1.0
        """When it was put back to an older state."""
        self.writes = True
        """Whether its application appends."""
        self.unsure: Callable[[], bool] | None = None
        """Put back to an older state without anybody noticing: whether its own deltas have yet to come back."""
        self.forge = False
        """Whether it passes on others' deltas altered."""
        # this life
        self.log: DeltaLog | None = None
        self.mesh: Mesh | None = None
        self.problems: list[str] = []
        self.conflicts = 0
        self._scope = trio.CancelScope()
        self._transport: WatchedTransport | None = None
        self._ended = trio.Event()
        self._ended.set()

    @property
    def up(self) -> bool:
        """Whether it lives and its mesh is open."""
        return self.mesh is not None

    @property
    def down(self) -> bool:
        """Whether its life is over, and the next has not begun."""
        return self._ended.is_set()

    # ---------------------------------------------------------------------------------------------------------- a life

    def start(self) -> None:
        """Begin a life, if it is down."""
        if not self.down:
            return
        if self.store.unsynced:
            self.store = self.store.survivor(self.store.unsynced)  # an open begins with an fsync
        store, doubt, self.doubt = self.store, self.doubt, ""
        doubt = self.uncertain(doubt)
        if doubt:
            self.source = f"{self.name}~{self._chance.getrandbits(40):010x}"
            self.mark = 0
        self.truth.note("start", self.name, self.source, doubt)
        self.truth.kept(self.name, store, self.durable)
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        store.on_write = lambda runs: self.truth.stored(self.name, runs)
        self._nursery.start_soon(self._live, store, self._scope, self._ended)

    def uncertain(self, doubt: str) -> str:
        """Why it must go on as a new incarnation, "" if it need not."""
        retired = self.store.annotation(RETIRED)
        if retired is not None and decode_retired(retired)[0] == self.source:
            return "retired"
        if self.mark > self.store.head(self.source).seq:
            return "handed out, and not written"
        return doubt

    async def _live(self, store: SimulatedStore, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                await self._run(store)
        except (LogReadOnly, StoreFull) as error:  # on a full disk: what was not written is lost, and the mark tells
            self.truth.note("lost", self.name, str(error))
        except Exception as error:  # noqa: BLE001  # whatever comes out of a node is a finding
            self.truth.broken(f"node {self.name} died: {''.join(traceback.format_exception(error))}")
        finally:
            self.log = self.mesh = None
            ended.set()

    async def _run(self, store: SimulatedStore) -> None:
        habits, chance = self.habits, random.Random(self._chance.getrandbits(64))
        options = habits.log
        clock = Clock(wall_ns=self._wall_ns, drift_ms=options.drift_ms)
        disk, hop = SimulatedDisk(store, chance), Hop(chance, habits.slowest_write_s)
        log = DeltaLog(self.source, store, disk, options=options, offload=hop, clock=clock)
        log.fill(store.newest(options.ring_deltas))
        self._watch(log, store)
        log.on_synced(lambda heads: self.truth.synced(self.name, store, heads))
        self._transport = transport = WatchedTransport(
            self._network.node(self.name, self._pen.key if self._pen is not None else b""),
            lambda link, data: self.truth.departs(self.name, store, link, data, honest=not self.forge),
        )
        async with (
            log.running(),
            open_mesh(
                log,
                node=self.name,
                trust=self._trust(),
                signer=self._pen,
                dialer=transport,
                addresses=self.dials,
                listeners=[transport],
                options=habits.sync,
                chance=chance,
                on_conflict=self._note_conflict if self.name == "a" else None,
                on_problem=self._note_problem,
            ) as mesh,
        ):
            self.log, self.mesh = log, mesh
            setattr(mesh.ledger, "ended", forging(log, mesh.ledger.ended, self._forges))  # noqa: B010  # of this one
            async with open_nursery() as nursery:
                nursery.start_soon(self._write, log, chance)
                nursery.start_soon(self._renew, log)
                nursery.start_soon(self._remember, mesh)

    def _trust(self) -> Trust:
        if self._keyring is None:
            return Trust(CLUSTER, lambda *_: False, unsigned=ALL)
        return Trust(CLUSTER, self._keyring.verify, cluster_key=self._keyring.cluster_key)

    def _wall_ns(self) -> int:
        return int((NOON_MS + self.skew_ms + 1000 * trio.current_time()) * 1e6)

    def _watch(self, log: DeltaLog, store: SimulatedStore) -> None:
        """Have the log's heads tell before they move."""
        heads = WatchedHeads(log._frontier.heads)

        def tell(source: str, seq: int) -> None:
            record = log._ring.get(source, seq)
            assert record is not None, "what becomes visible is in the ring"
            own = source == log.source
            if store is self.store:
                if own:
                    self.mark = seq
                self.truth.visible(self.name, own, (source, seq), record, heads)

        heads.tell = tell
        log._heads = log._frontier.heads = heads

    def _forges(self, source: str) -> bool:
        return self.forge and source.partition("~")[0] != self.name

    def _note_conflict(self, _: object) -> None:
        self.conflicts += 1

    def _note_problem(self, text: str) -> None:
        self.problems.append(text)
        self.truth.note("problem", self.name, text)

    # ---- its application

    async def _write(self, log: DeltaLog, chance: random.Random) -> None:
        while True:
            await trio.sleep(chance.expovariate(self.habits.appends_per_s))
            if self.writes and self.sure():
                with suppress(RingFull, LogReadOnly):
                    await self.append(log, chance)

    def sure(self) -> bool:
        """Whether it may append: it has its own deltas back if it was put back."""
        if self.unsure is not None and not self.unsure():
            self.unsure = None
        return self.unsure is None

    async def append(self, log: DeltaLog, chance: random.Random) -> None:
        """Append a few deltas, sometimes waiting until they are durable."""
        for _ in range(chance.randint(1, 5)):
            log.append_nowait(chance.randbytes(chance.choice((0, 8, 40))), key=chance.choice(KEYS))
        if chance.random() < 0.3:
            store, seq = self.store, log.heads[log.source]
            await log.flush()
            if store is self.store:
                self.durable[log.source] = max(seq, self.durable.get(log.source, 0))

    async def _renew(self, log: DeltaLog) -> None:
        """A source that was retired cannot go on: close, and open again."""
        while not log.retired:  # noqa: ASYNC110  # a program looks at what it may do when it wants to
            await trio.sleep(0.5)
        self._nursery.start_soon(self.restart)

    async def _remember(self, mesh: Mesh) -> None:
        while True:
            self.met.update(dict.fromkeys(mesh.peers))
            self.truth.bounded(self.name, mesh)
            await trio.sleep(1)

    # -------------------------------------------------------------------------------------------------- the end of one

    async def restart(self) -> None:
        """Close in order and begin anew."""
        await self.close()
        self.start()

    async def close(self) -> None:
        """End this life in order."""
        self._scope.cancel()
        await self._ended.wait()

    async def kill(self) -> None:
        """End it by SIGKILL: what was written stays, what is in memory goes."""
        self.truth.note("kill", self.name)
        await self._die(self.store.survivor(self.store.unsynced), silently=False)

    async def lose_power(self) -> None:
        """End it by power loss: of what was not fsynced a random part stays."""
        self.truth.note("power", self.name)
        self.doubt = "lost power"
        spared = self._chance.randint(0, self.store.unsynced) if self._chance.random() < 0.5 else 0
        await self._die(self.store.survivor(spared), silently=self._chance.random() < 0.5)

    async def _die(self, store: SimulatedStore, *, silently: bool) -> None:
        """The store that is left counts from now on; whatever this life still does reaches nobody."""
        self.store.on_write = lambda _runs: None
        self.store = store
        if self._transport is not None:
            self._transport.die(silently=silently)
        self._scope.cancel()
        await self._ended.wait()

    # ---- upkeep

    def backup(self) -> Backup:
        """Copy the directory; a node that is down was copied after it was closed."""
        return Backup(self.store.survivor(self.store.unsynced), self.source, self.mark)

    def told_since(self, name: str, moment_s: float) -> bool:
        """Whether a peer has told in this session all that it holds, and the session began after a moment."""
        session = self.mesh.peers.get(name) if self.mesh is not None else None
        if session is None or self.mesh is None or not session.compared:
            return False
        return any(status.name == name and status.since > moment_s for status in self.mesh.statuses())

    def put_back(self, backup: Backup) -> None:
        """Restore the directory of a node that is down."""
        assert self.down
        self.store, self.source, self.mark = backup.store.survivor(0), backup.source, backup.mark
        self.unsure, self.put_back_s = None, trio.current_time()
        self.durable.clear()
        self.met.clear()
        self.truth.note("put back", self.name)


def options_of(chance: random.Random, **behaviour: Any) -> LogOptions:
    """Options of a log: small rings, so that reads come from the store, too; several ways to fsync."""
    return LogOptions(
        ring_deltas=chance.choice((8, 64, 4096)), sync_interval_s=chance.choice((0, 0.02, 0.3)), **behaviour
    )
