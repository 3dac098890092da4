"""The mesh: this node among its peers. Who is connected, who feeds what, who has acknowledged what, who is behind.

    async with open_mesh(log, node="here", cluster="team", dialer=..., listeners=[...], addresses=[...]) as mesh:
        await mesh.equal("there")

Lives here: what concerns more than one peer. A session is driven by `peer`, what goes out by `outgoing`, what may come
in is decided by `ledger`. All state belongs to the trio thread. Whatever iterates over peers does so in the order they
came, so that a simulation with a seed runs the same way twice.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Final, Protocol

import trio

from deltalog.causality import Conflict, ConflictFinder
from deltalog.errors import BelowFloor, DeltaLogError, LogReadOnly, UsageError
from deltalog.log import DeltaLog
from deltalog.nursery import open_nursery
from deltalog.receiver import Receipt, Refusal
from sync.errors import Diverged, Duplicate, HeadRefused, LinkFailed, LinkRefused, PeerBusy, SyncError
from sync.feeders import Feeders, best
from sync.heads import Entry
from sync.ledger import Ledger
from sync.messages import VERSION, Alive, Below, Goodbye, Hello, Welcome, split
from sync.options import SyncOptions
from sync.packing import FEATURE
from sync.peer import CLOSING, DUPLICATE, Left, Peer
from sync.status import Known, PeerStatus
from sync.transport import Dialer, Link, Listener
from sync.trust import Signer, Trust

DIFFERENCE: Final = "nothing is under way, and yet these sources differ"
NAMED_MAX: Final = 5
"""Sources that a difference names."""
TICK_S: Final = 1.0
"""How often is looked for sources that nobody feeds."""
PAUSE_MAX_S: Final = 30.0
TIDY_S: Final = 600.0
"""How often leases are written down and old boundaries removed."""
CONFLICT_KEYS_MAX: Final = 65_536
"""Keys that the search for conflicts remembers; then it starts anew."""
EVIDENCE_MAX: Final = 16
"""Quarantined sources that a peer is told of when it comes; of others when it names them."""
SAID_MAX: Final = 16
"""Problems with one address that are told once; then all are told anew."""
_SETTLED_S: Final = 10.0
"""A session that lasted so long was a good one: the next pause is a short one again."""


def _ignore(_: object) -> None:
    """Nobody asked."""


class Announced(Protocol):
    """Says which addresses there are."""

    def known(self, address: str) -> bool:
        """Whether it is there now."""

    async def heard(self, address: str) -> None:
        """Return when it is there."""


class Mesh:
    """An open mesh. Made by `open_mesh`."""

    def __init__(
        self,
        log: DeltaLog,
        node: str,
        trust: Trust,
        signer: Signer | None = None,
        options: SyncOptions | None = None,
        chance: random.Random | None = None,
        on_problem: Callable[[str], None] = _ignore,
    ) -> None:
        self.log = log
        self.node = node
        self.trust = trust
        self.options = options if options is not None else SyncOptions()
        self.ledger = Ledger(log, trust, signer)
        self.peers: dict[str, Peer] = {}
        """Connected peers by the name of their node."""
        self.unreached: dict[str, str] = {}
        """Address to stay connected to -> why it is not, now."""
        self._signer = signer
        self._chance = chance if chance is not None else random.Random()  # noqa: S311  # spreads retries
        self._on_problem = on_problem
        self._feeders = Feeders()
        self._known: dict[str, Known] = {}
        self._below: dict[str, dict[str, int]] = {}
        self._orphans: dict[str, None] = {}
        """Sources to find a feeder for at the next tick."""
        self._paused: dict[str, tuple[float, float]] = {}
        """source of which deltas were refused -> when it is asked for again, and how long that pause is, in seconds."""
        self._changed = trio.Event()
        self._nursery: trio.Nursery

    # ------------------------------------------------------------------------------------------------------- questions

    def statuses(self) -> list[PeerStatus]:
        """Every peer that was ever connected since this mesh is open."""
        return [self._status(name, known) for name, known in self._known.items()]

    def _status(self, name: str, known: Known) -> PeerStatus:
        peer = self.peers.get(name)
        state = "offline" if peer is None else self._state(peer)
        lag = self._lag(name)
        behind = 0 if peer is None else self._missing(peer)
        return PeerStatus(
            name, state, known.since, known.link, known.source, lag, behind, known.traffic,
            peer is not None and peer.equal, dict(self._below.get(name, {})), known.problem,
        )  # fmt: skip

    def _state(self, peer: Peer) -> str:
        if not peer.compared:
            return "connected"
        return "catching up" if self._missing(peer) or not peer.outgoing.idle or peer.session.in_flight else "live"

    def _missing(self, peer: Peer) -> int:
        """Deltas that a peer has and this node lacks."""
        return sum(seq - self.ledger.seq(source) for source, seq in self._lacked(peer))

    def _lacked(self, peer: Peer) -> Iterator[tuple[str, int]]:
        """What a peer claims beyond what is here, but for what is not wanted from it."""
        held, barred, closed = self.ledger.seq, peer.incoming.barred, self.ledger.closed
        for source, seq in peer.session.claims.items():
            if seq > held(source) and source not in barred and not closed(source):
                yield source, seq

    def _difference(self, peer: Peer) -> str:
        """Which sources two nodes hold differently, and why if that is known."""
        acknowledged = self.log.stability.acknowledged(peer.name)
        lacked = [(source, "paused" if source in self._paused else "") for source, _ in self._lacked(peer)]
        barred = [(source, "refused here") for source in sorted(peer.incoming.barred)]
        there = [(s, "not acknowledged there") for s, seq in self.log.synced.items() if seq > acknowledged.get(s, 0)]
        named = [f"{source!r}" + f" ({why})" * bool(why) for source, why in (barred + lacked + there)[:NAMED_MAX]]
        return ", ".join(named) or "nobody can say which"

    def _lag(self, name: str) -> int:
        acknowledged = self.log.stability.acknowledged(name)
        return sum(max(0, seq - acknowledged.get(source, 0)) for source, seq in self.log.synced.items())

    def connected(self, key: bytes) -> str | None:
        """Name of the connected peer with this key; None: there is none."""
        return next((name for name, peer in self.peers.items() if peer.link.peer_key == key), None)

    async def wait(self, fact: Callable[[], bool]) -> None:
        """Return when `fact()` holds; it is looked at whenever a peer came, went, said or took something."""
        while not fact():
            await self._changed.wait()

    async def equal(self, name: str) -> None:
        """Return when a peer is connected and its digest equals this node's."""
        await self.wait(lambda: name in self.peers and self.peers[name].equal)

    def forget(self, name: str) -> None:
        """A peer will not come back: it no longer keeps deltas from being collected. Raises `UsageError`."""
        if name in self.peers:
            raise UsageError(f"peer {name!r} is connected: end that first")
        if not self.log.stability.forget(name):
            raise UsageError(f"peer {name!r} is not known; known are {sorted(self.log.stability.peers)}"[:500])
        self._known.pop(name, None)
        self._nursery.start_soon(self._note_peers)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---------------------------------------------------------------------------------------------------- what happens

    def greeting(self) -> Hello:
        """What this node says of itself."""
        key, voucher = (self._signer.key, self._signer.voucher) if self._signer is not None else (b"", b"")
        return Hello(VERSION, self.trust.cluster, self.node, self.log.source, key, voucher, (FEATURE,))

    def synced(self, heads: Mapping[str, int]) -> None:
        """The log synced these: tell everybody."""
        self.ledger.note_synced(heads)
        for source in heads.keys() & self._paused.keys():
            del self._paused[source]
        sources = list(heads)
        for peer in self.peers.values():
            if peer.opened:
                peer.incoming.pay(heads)
                peer.outgoing.look(sources)
                peer.equal = False
                self._compare_digests(peer, tell=True)
        self._tell()

    def met(self, peer: Peer) -> None:
        """A peer said who it is (see `Host`). Raises `Duplicate`, `PeerBusy`."""
        hello = peer.session.hello
        assert hello is not None, "it has said who it is"
        self._check_name(peer.name, hello.key)
        other = self.peers.get(peer.name)
        if other is not None and other is not peer:
            # of two links between two nodes that one stays which the lower name made; of one node's two the newer
            mine = self.node < peer.name
            if other.dialed == mine and peer.dialed != mine:
                raise Duplicate(peer.name)
            other.goodbye = Goodbye(DUPLICATE, "there is another link")
            other.scope.cancel()
            self._orphans.update(dict.fromkeys(self._feeders.leave(peer.name)))
        elif len(self.peers) >= self.options.sessions:
            raise PeerBusy(self.options.backoff_max_s)
        self.peers[peer.name] = peer
        now = trio.current_time()
        if (before := self._known.get(peer.name)) is not None:
            peer.traffic.add(before.traffic)
        self._known[peer.name] = Known(now, peer.link.name, hello.source, peer.traffic, key=hello.key)
        self.log.stability.join(peer.name, now, self.options.lease_s)
        self.log.stability.reset(peer.name, now)
        self._nursery.start_soon(self._note_peers)

    def _check_name(self, name: str, key: bytes) -> None:
        """A name stays with the key that came with it, and a key with its name: nobody takes a peer's place,
        acknowledges for it, or comes as many.
        """
        for other, held in self._known.items():
            if key and held.key == key and other != name:
                text = f"key {key.hex()[:16]} came as node {other!r} before, and now as {name!r}: forget that one first"
                raise LinkRefused(text)
        known = self._known.get(name)
        if known is not None and known.key and known.key != key:
            shown = key.hex()[:16] or "none"
            text = f"{name!r} came with key {known.key.hex()[:16]} before, and now with {shown}: forget it first"
            raise LinkRefused(text)

    async def opened(self, peer: Peer, welcome: Welcome) -> None:
        """Both said what they hold (see `Host`)."""
        await self._check_own(peer, welcome)
        for source in islice(self.trust.quarantined, EVIDENCE_MAX):
            peer.show_evidence(source)
        hello = peer.session.hello
        assert hello is not None, "it has said who it is"
        if not self.ledger.closed(hello.source) and hello.source != self.log.source:
            reached = self.ledger.reached(hello.source)
            if self.peers.get(peer.name) is peer and self._feeders.take(hello.source, peer.name, reached):
                peer.ask([(hello.source, reached)])
        self._tell()

    async def _check_own(self, peer: Peer, welcome: Welcome) -> None:
        """Compare what the peer holds of this node's own source: it may know of more than this node remembers."""
        source, log = self.log.source, self.log
        if not welcome.seq:
            return
        peer.session.claim(((source, welcome.seq),))
        if log.heads.get(source, 0) > log.synced_seq(source):
            await log.flush()
        held = self.ledger.seq(source)
        if welcome.seq > held:
            peer.ask([(source, held)])
            return
        try:
            if await log.hash_at(source, welcome.seq) != welcome.hash:
                self._problem(peer, f"source {source!r}: another history up to {welcome.seq}")
                peer.ask([(source, welcome.seq - 1)])  # a word is no proof; what this node signed is, if it comes
        except BelowFloor:
            return

    def learnt(self, peer: Peer, entries: Sequence[Entry]) -> None:
        """A peer holds otherwise what this node holds (see `Host`)."""
        for entry in entries:
            mine = self.ledger.index.get(entry.source)
            if self.ledger.closed(entry.source):
                peer.show_evidence(entry.source)
            elif mine is not None and mine.seq == entry.seq and mine.hash != entry.hash:
                self._problem(peer, f"source {entry.source!r}: another history up to {entry.seq}")
                self._nursery.start_soon(self._show, peer, entry)
        self.claimed(peer, [(entry.source, entry.seq) for entry in entries])

    def quarantined(self, peer: Peer, source: str) -> None:
        """A source was forked: tell everybody (see `Host`)."""
        self._problem(peer, f"source {source!r} was forked: it is quarantined")
        self._feeders.drop(source, self._feeders.get(source) or "")
        for each in self.peers.values():
            if each.opened:
                each.show_evidence(source)
        self._tell()

    async def _show(self, peer: Peer, entry: Entry) -> None:
        try:
            await peer.show(entry)
        except DeltaLogError as error:
            self._problem(peer, str(error))

    def compared(self, peer: Peer, equal: Mapping[str, int]) -> None:
        """A heads exchange has ended (see `Host`)."""
        self.log.stability.acknowledge(peer.name, equal, trio.current_time())
        self._tell()

    def acknowledged(self, peer: Peer, items: Sequence[tuple[str, int]]) -> None:
        """A peer has so much synced (see `Host`)."""
        self.log.stability.acknowledge(peer.name, items, trio.current_time())

    def claimed(self, peer: Peer, items: Sequence[tuple[str, int]]) -> None:
        """A peer says so: ask for what is not here, unless another feeds it (see `Host`)."""
        self.acknowledged(peer, items)
        if self.peers.get(peer.name) is not peer:
            return  # another link has taken its place
        wants = []
        for source, seq in items:
            reached = self.ledger.reached(source)
            if (
                seq > reached
                and self._wanted(source)
                and source not in peer.incoming.barred
                and self._feeders.take(source, peer.name, reached)
            ):
                wants.append((source, reached))
        for part in split(wants):
            peer.ask(part)
        self._tell()

    def _wanted(self, source: str) -> bool:
        paused = self._paused.get(source)
        if paused is not None and paused[0] > trio.current_time():
            self._orphans[source] = None  # looked at again by each tick
            return False
        return source != self.log.source and not self.ledger.closed(source)

    def took(self, peer: Peer, receipt: Receipt) -> None:
        """A batch was taken in (see `Host`)."""
        first: dict[str, Refusal] = {}
        for refusal in receipt.refused:
            first.setdefault(refusal.delta.source, refusal)
        for source, refusal in first.items():
            if source == self.log.source:
                self._nursery.start_soon(self._forked, peer, refusal.reason)
                return
            _, before_s = self._paused.get(source, (0.0, 0.0))
            if not before_s:
                self._problem(peer, f"{source!r}:{refusal.delta.seq} was refused: {refusal.reason}")
            pause_s = min(PAUSE_MAX_S, max(2 * before_s, self.options.stall_s))
            self._paused[source] = trio.current_time() + pause_s, pause_s
            self._orphan(peer, source)
        self._tell()

    async def _forked(self, peer: Peer, reason: str) -> None:
        """A peer has deltas of this node's own source that it cannot take back: it goes on under a new name."""
        text = f"peer {peer.name!r} holds more of {self.log.source!r} than this node knows of: {reason}"
        self._problem(peer, text)
        try:
            await self.log.retire(text)
        except DeltaLogError as error:
            self._on_problem(str(error))

    def refused(self, peer: Peer, error: HeadRefused) -> None:
        """A run was refused (see `Host`)."""
        self._problem(peer, str(error))
        if error.source == self.log.source and isinstance(error, Diverged) and not error.blamed:
            self._nursery.start_soon(self._forked, peer, error.reason)
        self._orphan(peer, error.source)

    def _orphan(self, peer: Peer, source: str) -> None:
        if self._feeders.drop(source, peer.name):
            self._orphans[source] = None

    def below(self, peer: Peer, message: Below) -> None:
        """A peer dropped what this node wants (see `Host`)."""
        for source, floor in message.items:
            self._below.setdefault(peer.name, {})[source] = floor
            peer.session.claims.pop(source, None)
            self._orphan(peer, source)
            if source == self.log.source:
                self._nursery.start_soon(self._forked, peer, f"it dropped them up to {floor}")
        offer = f"; it offers snapshot {message.snapshot!r}" if message.snapshot else ", and it has no snapshot"
        names = ", ".join(repr(source) for source, _ in message.items[:5])
        self._problem(peer, f"what this node lacks of {names} was dropped there{offer}")

    def alive(self, peer: Peer, message: Alive) -> None:
        """A heartbeat came: digests must be equal when nothing is under way (see `Host`)."""
        self.log.stability.seen(peer.name, trio.current_time())
        peer.reached = message.total, message.digest
        before, peer.equal = peer.equal, False
        self._compare_digests(peer, tell=not before)
        quiet_s = 0.9 * self.options.heartbeat_s
        still, now = (message.digest, self.ledger.index.digest()), trio.current_time()
        if still != peer.still:
            peer.still, peer.still_since = still, now
        if peer.equal:
            self._known[peer.name].problem = ""
        elif peer.dialed and peer.compared and not peer.comparing and now >= peer.still_since + quiet_s:
            if self._known[peer.name].problem.partition(":")[0] in ("", DIFFERENCE):  # else it says why already
                self._problem(peer, f"{DIFFERENCE}: {self._difference(peer)}; heads are compared again")
            peer.still_since = now
            peer.compare()
        self._tell()

    def _compare_digests(self, peer: Peer, *, tell: bool) -> None:
        """See whether both hold the same now; if `tell`, let the peer know at once that they do."""
        total, digest = peer.reached
        peer.equal = total == self.ledger.total and digest == self.ledger.index.digest()
        if peer.equal and tell:
            peer.say_alive()

    def _problem(self, peer: Peer, text: str) -> None:
        known = self._known.get(peer.name)
        if known is not None and known.problem != text:
            known.problem = text
            self._on_problem(f"{peer.name}: {text}")

    # ------------------------------------------------------------------------------------------------------- sessions

    async def serve(self, link: Link, *, dialed: bool) -> None:
        """Run a session over a link, to its end. Raises the `SyncError` that ended it."""
        await self._run(Peer(self, link, dialed=dialed))

    async def _run(self, peer: Peer) -> None:
        try:
            await peer.run()
        except Left as error:
            if error.code == DUPLICATE:
                raise Duplicate(peer.name) from error
            if error.code != CLOSING:
                self._problem(peer, str(error))
            raise
        except SyncError as error:
            if not isinstance(error, Duplicate):
                self._problem(peer, str(error))
            raise
        finally:
            self._lost(peer)
            with trio.CancelScope(shield=True):
                await peer.link.aclose()

    def _lost(self, peer: Peer) -> None:
        if self.peers.get(peer.name) is not peer:
            return
        known = self._known[peer.name]
        known.since = trio.current_time()
        del self.peers[peer.name]
        self._below.pop(peer.name, None)
        self._orphans.update(dict.fromkeys(self._feeders.leave(peer.name)))
        self._adopt()
        self._tell()

    def _adopt(self, avoid: str = "") -> None:
        """Find feeders for the sources that have none, and of which somebody claims more than is here."""
        wants: dict[str, list[tuple[str, int]]] = {}
        orphans, self._orphans = self._orphans, {}
        for source in orphans:
            reached = self.ledger.reached(source)
            name = self._best(source, reached, avoid)
            if name is not None and self._feeders.take(source, name, reached):
                wants.setdefault(name, []).append((source, reached))
        for name, items in wants.items():
            for part in split(items):
                self.peers[name].ask(part)

    def _claims(self) -> dict[str, Mapping[str, int]]:
        return {name: peer.session.claims for name, peer in self.peers.items() if peer.opened}

    def _best(self, source: str, reached: int, avoid: str) -> str | None:
        """Who is to feed a source: the one that claims most of it, and from whom it is not barred."""
        if not self._wanted(source):
            return None
        claims = {n: p.session.claims for n, p in self.peers.items() if p.opened and source not in p.incoming.barred}
        return best(source, reached, claims, [avoid, *(name for name in claims if self._feeders.doubted(name, source))])

    async def tick(self) -> None:
        """Look after sources that nobody feeds, or that do not move, for ever."""
        looked = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            self._adopt()
            if trio.current_time() >= looked + self.options.stall_s:
                looked = trio.current_time()
                stalled: dict[str, list[tuple[str, int]]] = {}
                for source, name in self._feeders.stalled(self.ledger.reached, self._claims()):
                    self._feeders.drop(source, name)
                    stalled.setdefault(name, []).append((source, 0))
                for name, items in stalled.items():
                    for part in split(items):
                        self.peers[name].unask([source for source, _ in part])
                    self._orphans.update((source, None) for source, _ in items)
                    self._adopt(name)

    async def keep_tidy(self) -> None:
        """Write down who is known, forget boundaries of what was dropped; at intervals, for ever."""
        while True:
            await trio.sleep(TIDY_S)
            await self._note_peers()
            try:
                await self.ledger.prune()
            except DeltaLogError as error:
                self._on_problem(f"old signed heads were not removed: {error}")

    async def keep_dialing(self, dialer: Dialer, address: str, announced: Announced | None = None) -> None:
        """Hold a link to an address, for ever: dial, talk, pause, dial again; not while another link is there.

        `announced`: nobody is dialled who is not. Pauses and what was told outlive that: a liar gains nothing by turns.
        """
        failures, said = 0, set[str]()
        while True:
            if announced is not None and not announced.known(address):
                self.unreached.pop(address, None)
                await announced.heard(address)
            started, pause = trio.current_time(), self.options.backoff_s
            try:
                peer = Peer(self, await dialer.dial(address), dialed=True)
                self.unreached.pop(address, None)
                await self._run(peer)
            except PeerBusy as error:
                pause = error.retry_after_s
                self.unreached[address] = str(error)
            except LinkRefused as error:
                pause = self.options.backoff_max_s
                self._failed(address, error, said)
            except Duplicate as error:
                self.unreached.pop(address, None)
                await self.wait(partial(self._away, error.name))
            except SyncError as error:
                self._failed(address, error, said)
                failures = 0 if trio.current_time() > started + _SETTLED_S else failures + 1
                pause = min(self.options.backoff_max_s, pause * 2 ** min(failures, 16))
            await trio.sleep(pause * self._chance.uniform(0.5, 1))

    def _failed(self, address: str, error: SyncError, said: set[str]) -> None:
        """Tell of a problem with an address, if it is not one of those that were `said`."""
        text = self.unreached[address] = str(error)
        if text not in said:
            self._on_problem(f"{address}: {text}")
            if len(said) >= SAID_MAX:
                said.clear()
            said.add(text)

    def _away(self, name: str) -> bool:
        return name not in self.peers

    async def answer(self, link: Link) -> None:
        """Run a session over a link that the other side made."""
        try:
            await self.serve(link, dialed=False)
        except SyncError as error:
            if not isinstance(error, LinkFailed | Left | Duplicate):
                self._on_problem(f"{link.name}: {error}")

    # ------------------------------------------------------------------------------------------------------ the others

    async def _note_peers(self) -> None:
        """Keep in the log who is known, so that a restart does not forget whom GC must wait for."""
        try:
            await self.log.save_stability()
        except DeltaLogError as error:
            self._on_problem(f"the list of peers was not written: {error}")

    async def watch_conflicts(self, on_conflict: Callable[[Conflict], None]) -> None:
        """Tell of concurrent deltas on one key, as they become visible, for ever."""
        subscription = self.log.subscribe()
        finder, keys = ConflictFinder(), set[str]()
        while True:
            try:
                deltas = await subscription.page()
            except LogReadOnly:  # a full disk, say: it may have room again
                await trio.sleep(TICK_S)
                continue
            for delta in deltas:
                for conflict in finder.add(delta):
                    on_conflict(conflict)
                keys.add(delta.key)
            if len(keys) > CONFLICT_KEYS_MAX:
                finder, keys = ConflictFinder(), set()


@asynccontextmanager
async def open_mesh(
    log: DeltaLog,
    *,
    node: str,
    trust: Trust,
    signer: Signer | None = None,
    dialer: Dialer | None = None,
    addresses: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    options: SyncOptions | None = None,
    chance: random.Random | None = None,
    on_conflict: Callable[[Conflict], None] | None = None,
    on_problem: Callable[[str], None] = _ignore,
    on_listening: Callable[[str], None] = _ignore,
) -> AsyncIterator[Mesh]:
    """Sync a log with its peers while the block runs.

    node: name of this node, the same after each start, and no other's. dialer, addresses: links to make and hold.
    listeners: where links come in; `on_listening` gets each one's address. on_conflict: concurrent deltas on one key.
    on_problem: a line for an operator. chance: for jitter.
    """
    mesh = Mesh(log, node, trust, signer, options, chance, on_problem)
    await mesh.ledger.load()
    unwatch = log.on_synced(mesh.synced)
    try:
        async with open_nursery() as nursery:
            mesh._nursery = nursery
            nursery.start_soon(mesh.tick)
            nursery.start_soon(mesh.keep_tidy)
            if on_conflict is not None:
                nursery.start_soon(mesh.watch_conflicts, on_conflict)
            for listener in listeners:
                on_listening(await nursery.start(listener.serve, mesh.answer))
            for address in addresses:
                assert dialer is not None, "addresses need a dialer"
                nursery.start_soon(mesh.keep_dialing, dialer, address)
            yield mesh
            nursery.cancel_scope.cancel()
    finally:
        unwatch()
