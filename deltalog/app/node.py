"""The composition root: one data directory with its log, audit trail, locks and peers, opened and closed in order.

    async with open_node(path) as node:
        lease = await node.locks.acquire(Target("src/app.py"), Holder("agent-1", "ada"))
        await node.log.append({"text": "x"}, key="src/app.py", fence=lease.token)

Opened from the bottom up: manager (log), trail, locks, peers; closed in reverse, so that peers are told that this node
ends, and what the locks say when they end is still recorded. Lives here: that order, and what one needs of another.
Does not know: what any of them does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs

from audit.lease import LockOptions
from audit.locks import Locks, open_locks
from audit.opening import Trail, TrailOptions, open_trail
from deltalog.app.peer_options import PeerOptions, check_sync_installed
from deltalog.app.shadow import check_packages
from deltalog.causality import Conflict
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Manager, Problem, Upkeep, open_manager
from deltalog.startup import Progress
from sync.mesh import Mesh


class OpenPeers(Protocol):
    """A running mesh and what belongs to it; see `peering.Peers`, which may not be importable."""

    @property
    def mesh(self) -> Mesh:
        """The mesh."""

    @property
    def listening(self) -> Sequence[str]:
        """Addresses where peers can connect."""

    def problems(self) -> list[str]:
        """What needs somebody's attention, a line each."""


@attrs.frozen
class Node:
    """An open data directory. Made by `open_node`."""

    manager: Manager
    trail: Trail
    locks: Locks
    peers: OpenPeers | None = None
    """None: it was opened without."""

    @property
    def log(self) -> DeltaLog:
        """The log."""
        return self.manager.log

    @property
    def mesh(self) -> Mesh | None:
        """This node among its peers; None: it was opened without."""
        return None if self.peers is None else self.peers.mesh

    def problems(self) -> list[str]:
        """What needs somebody's attention, a line each; nothing if all is well."""
        health = self.manager.health()
        found = [f"{each.what} of {each.member or 'the disk'}: {each.message}" for each in health.problems]
        if health.read_only:
            found.append(f"the log takes no appends: {health.read_only}")
        for name, instance in health.instances.items():
            if instance.last_error is not None:
                found.append(f"{name}: {instance.last_error}")
            if not instance.lock_ours:
                found.append(f"{name}: its directory was removed or replaced underneath")
        trail, locks = self.trail.recorder.statistics(), self.locks.statistics()
        if trail.problem:
            found.append(f"the trail records nothing: {trail.problem}")
        if locks.problem is not None:
            found.append(f"no fencing tokens can be reserved: {locks.problem}")
        return found if self.peers is None else [*found, *self.peers.problems()]


@attrs.frozen
class _Reservations:
    """Fencing tokens are reserved in the trail's store."""

    trail: Trail

    def reserve(self, upto: int) -> None:
        self.trail.reserve_tokens(upto)


def _no_progress(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def _ignore(problem: Problem) -> None:
    """Leave it to `problems`."""


@asynccontextmanager
async def open_node(
    path: Path,
    *,
    source: str | None = None,
    create: bool = True,
    accept_loss: bool = False,
    adopt: bool = False,
    log: LogOptions | None = None,
    upkeep: Upkeep | None = None,
    trail: TrailOptions | None = None,
    locks: LockOptions | None = None,
    peering: PeerOptions | None = None,
    name: str | None = None,
    progress: Progress = _no_progress,
    on_problem: Callable[[Problem], None] = _ignore,
    on_conflict: Callable[[Conflict], None] | None = None,
) -> AsyncIterator[Node]:
    """Open everything in a data directory. On leaving, sessions and leases end, the trail is drained, the log synced.

    peering: whom to sync with; None: nobody. name: of this node among its peers; None: the source that the directory
    was made for. on_conflict: with peers, called with concurrent deltas on one key as they become visible.

    Raises what `open_manager`, `open_trail`, `open_locks` and `open_mesh` raise, and `Shadowed`.
    """
    check_packages()
    open_mesh = None if peering is None else _mesh_of(path, peering, name, on_conflict, on_problem)
    async with (
        open_manager(
            path,
            source=source,
            create=create,
            accept_loss=accept_loss,
            adopt=adopt,
            options=log,
            upkeep=upkeep,
            progress=progress,
            on_problem=on_problem,
        ) as manager,
        open_trail(manager, options=trail) as opened,
        open_locks(
            opened.recorder, _Reservations(opened), opened.store.tokens, clock=opened.clock, options=locks
        ) as table,
    ):
        manager.log.guard.raise_floor(table.first_token)
        async with AsyncExitStack() as stack:
            peers = None if open_mesh is None else await stack.enter_async_context(open_mesh(manager.log))
            yield Node(manager, opened, table, peers)


def _mesh_of(
    path: Path,
    peering: PeerOptions,
    name: str | None,
    on_conflict: Callable[[Conflict], None] | None,
    on_problem: Callable[[Problem], None],
) -> Callable[[DeltaLog], AbstractAsyncContextManager[OpenPeers]]:
    """What opens the peers of a log; all that can be wrong before is raised here."""
    check_sync_installed()
    from deltalog.app.peering import open_peers, prepare  # noqa: PLC0415  # may be missing

    def tell(text: str) -> None:
        on_problem(Problem("peers", "", text, None))

    parts = prepare(path, peering, tell)
    return partial(open_peers, data=path, parts=parts, node=name, on_conflict=on_conflict, on_problem=tell)
