"""One session with one peer, until both hold the same: what `deltalog sync` does.

It has ended well when the digests over all heads are equal; or, with a peer that goes on being written to, when all
that either had at the heads exchange is on both. It has ended badly when nothing moves any more and they differ: then
it names the sources. Does not know: the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from deltalog.nursery import open_nursery
from sync import Dialer, Mesh, PeerStatus, Traffic

LOOK_S: Final = 0.05
QUIET_S: Final = 3.0
"""Nothing came or went for so long, and something was refused: that was all."""
STALLED_S: Final = 20.0
"""The same while something is expected, be it only the peer's next heartbeat with its digest."""
MOVING_S: Final = 5.0
"""How long after all was exchanged a peer that is written to may take to become equal."""


@attrs.frozen
class Difference:
    """A source of which one side holds more."""

    source: str
    here: int
    there: int
    """Highest seq synced on each side."""


@attrs.frozen
class Outcome:
    """How it ended."""

    node: str
    """Name of the peer."""
    equal: bool
    """Whether the digests were equal."""
    caught_up: bool
    """Whether all that either had at the heads exchange is on both sides."""
    differences: tuple[Difference, ...]
    problem: str
    traffic: Traffic
    digest: str
    """Over this node's heads and chain hashes."""

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do."""
        return self.equal or self.caught_up


@attrs.define
class _Watch:
    """What is known of the session at one look."""

    mesh: Mesh
    name: str
    moved_at: float
    caught_up_at: float | None = None
    theirs: Mapping[str, int] | None = None
    """What the peer held at the heads exchange."""
    mine: Mapping[str, int] = attrs.field(factory=dict)
    """What this node held then."""
    _last: tuple[int, ...] = ()

    @property
    def status(self) -> PeerStatus:
        """The peer's."""
        return next(each for each in self.mesh.statuses() if each.name == self.name)

    def look(self, status: PeerStatus) -> bool:
        """Say whether it is over."""
        now, moved = trio.current_time(), self._marks(status)
        if moved != self._last:
            self._last, self.moved_at = moved, now
        if status.equal or status.state in ("connected", "offline"):
            return status.equal
        if self.theirs is None:
            self.theirs, self.mine = dict(self._claims()), dict(self.mesh.log.synced)
        if self.caught_up_at is None and self._caught_up():
            self.caught_up_at = now
        late = self.caught_up_at is not None and now > self.caught_up_at + MOVING_S
        refused = status.problem or (status.state == "live" and self.differences())
        quiet_s = QUIET_S if refused else STALLED_S
        return late or now > self.moved_at + quiet_s

    def _marks(self, status: PeerStatus) -> tuple[int, ...]:
        return status.traffic.deltas_in, status.traffic.deltas_out, status.lag, status.behind, self.mesh.ledger.total

    def _claims(self) -> Mapping[str, int]:
        """What the peer says it holds, where that differs from here."""
        peer = self.mesh.peers.get(self.name)
        return {} if peer is None else peer.session.claims

    def _caught_up(self) -> bool:
        if self.theirs is None:
            return False
        held, told = self.mesh.ledger.seq, self.mesh.log.stability.acknowledged(self.name)
        came = all(held(source) >= seq for source, seq in self.theirs.items())
        return came and all(told.get(source, 0) >= seq for source, seq in self.mine.items())

    def differences(self) -> tuple[Difference, ...]:
        """Where they differ now."""
        held, claims = self.mesh.ledger.seq, self._claims()
        told = self.mesh.log.stability.acknowledged(self.name)
        found = {source: (held(source), seq) for source, seq in claims.items() if seq > held(source)}
        for source, seq in self.mesh.log.synced.items():
            there = max(told.get(source, 0), claims.get(source, 0))
            if there < seq:
                found[source] = (seq, there)
        return tuple(Difference(source, here, there) for source, (here, there) in sorted(found.items()))

    def outcome(self, status: PeerStatus) -> Outcome:
        """How it stands."""
        differences = () if status.equal else self.differences()
        caught_up = status.equal or (self._caught_up() and bool(differences))
        digest, traffic = self.mesh.ledger.index.digest().hex(), attrs.evolve(status.traffic)
        return Outcome(self.name, status.equal, caught_up, differences, status.problem, traffic, digest)

    def done(self, status: PeerStatus) -> tuple[int, int, str]:
        """Deltas that crossed, of how many that are announced or owed, and words for it."""
        traffic, peer = status.traffic, self.mesh.peers.get(self.name)
        announced = 0 if peer is None else peer.session.announced.deltas
        coming = max(announced, traffic.deltas_in + status.behind)
        done = traffic.deltas_in + traffic.deltas_out
        told = f"{traffic.deltas_in:,} in, {traffic.deltas_out:,} out"
        return done, max(done, coming + traffic.deltas_out + status.lag), told


async def catch_up(
    mesh: Mesh, dialer: Dialer, address: str, progress: Callable[[int, int, str], None] = lambda *_: None
) -> Outcome:
    """Connect once, exchange everything, say how it ended. `progress` gets deltas done, of how many, and words.

    Raises `SyncError` if the session cannot begin or breaks off: what was exchanged stays, run it again.
    """
    link = await dialer.dial(address)
    async with open_nursery() as nursery:

        async def run() -> None:
            await mesh.serve(link, dialed=True)

        nursery.start_soon(run)
        await mesh.wait(lambda: bool(mesh.statuses()))
        watch = _Watch(mesh, mesh.statuses()[0].name, trio.current_time())
        while not watch.look(status := watch.status):
            progress(*watch.done(status))
            await trio.sleep(LOOK_S)
        outcome = watch.outcome(status)
        nursery.cancel_scope.cancel()
    return outcome
