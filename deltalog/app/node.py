"""The composition root: one data directory with its log, its audit trail and its locks, opened and closed in order.

    async with open_node(path) as node:
        lease = await node.locks.acquire(Target("src/app.py"), Holder("agent-1", "ada"))
        await node.log.append({"text": "x"}, key="src/app.py", fence=lease.token)

Opened from the bottom up: manager (log), trail, locks; closed in reverse, so that what the locks say when they end is
still recorded. Lives here: that order, and what one needs of another. Does not know: what any of them does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from audit.lease import LockOptions
from audit.locks import Locks, open_locks
from audit.opening import Trail, TrailOptions, open_trail
from deltalog.app.shadow import check_packages
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Manager, Problem, Upkeep, open_manager
from deltalog.startup import Progress


@attrs.frozen
class Node:
    """An open data directory. Made by `open_node`."""

    manager: Manager
    trail: Trail
    locks: Locks

    @property
    def log(self) -> DeltaLog:
        """The log."""
        return self.manager.log

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
        return found


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
    progress: Progress = _no_progress,
    on_problem: Callable[[Problem], None] = _ignore,
) -> AsyncIterator[Node]:
    """Open everything in a data directory. On leaving, leases end, the trail is drained, the log is synced.

    Raises what `open_manager`, `open_trail` and `open_locks` raise, and `Shadowed`.
    """
    check_packages()
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
        yield Node(manager, opened, table)
