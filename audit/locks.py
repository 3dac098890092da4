"""Locks: acquire, wait, renew, release, revoke, hold. Acts on what the lock table decides, and records it.

What lives here: waking who waits, cancelling who lost its lease, one task that sleeps until the next deadline, one that
reserves tokens ahead, and the order of steps around the trail. What this file does not know: who gets a lock
(`audit/lock_table.py`), how events are kept (the trail).

What a holder does (acquire, renew, release, revoke) is submitted to the trail and fails with AuditUnavailable, undone,
if the trail's policy demands a record and there is none by the trail's deadline. Until then the lock keeps others out.
What time does (a lease lapses, somebody waited too long or was cancelled) cannot be undone: it is logged, which never
blocks, and counted by the trail if it is dropped. So is what undoes an operation.

Locks live in memory and belong to one trio thread. Their clock is trio's, which is monotonic. After a restart every
lease is void; `first_token` is the floor below which guards refuse tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Final, Protocol

import attrs
import trio

from audit.errors import (
    AuditClosed,
    AuditUnavailable,
    LeaseLost,
    LockConflict,
    LocksClosed,
    LockTimeout,
    RenewalsExhausted,
)
from audit.event import NO_METADATA, Action, AuditEvent
from audit.lease import TEXT_BYTES_MAX, Holder, Lease, LockOptions, Mode, Waiting, check_text
from audit.lock_table import Draft, LockTable, Outcome, Request, State
from audit.target import Target, overlaps
from audit.tokens import Reservations, Tokens
from deltalog.clock import Clock
from deltalog.errors import DeltaLogError, UsageError
from deltalog.nursery import open_nursery
from deltalog.writer import Offload

WAIT_S_DEFAULT: Final = 30.0
_RETRY_S: Final = 0.1
_RETRY_S_MAX: Final = 5.0
_CLOSED: Final = "the locks were closed"


class EventSink(Protocol):
    """Where events go. Both take events in the order of their timestamps."""

    def log(self, event: AuditEvent) -> None:
        """Take an event. Never blocks; never raises for a full buffer, but counts what it drops."""
        ...

    async def submit(self, event: AuditEvent) -> None:
        """Take an event as the policy for its action says: drop, wait for room, or return when it is durable.

        Returns or raises AuditUnavailable by a deadline of its own.
        """
        ...


@attrs.frozen
class LocksStatistics:
    """What the locks hold at one moment."""

    held: int
    waiting: int
    tokens_left: int
    """Tokens that can be given out before the next reservation."""
    problem: DeltaLogError | None
    """Why tokens cannot be reserved at present; None if they can."""


@asynccontextmanager
async def open_locks(
    trail: EventSink,
    reservations: Reservations,
    reserved_before: int,
    *,
    clock: Clock | None = None,
    options: LockOptions | None = None,
    offload: Offload = trio.to_thread.run_sync,
) -> AsyncIterator[Locks]:
    """Locks that work while the block runs. On leaving, leases are revoked and whoever waits gets LocksClosed.

    `reserved_before` is what earlier starts reserved (0: nothing). The first block of tokens is durable before the
    block begins; raises StoreError if it cannot be. `clock` stamps the events: give the one that the trail
    goes on from.
    """
    options = options if options is not None else LockOptions()
    locks = Locks(trail, Tokens(reserved_before, options.token_block), clock or Clock(), options)
    await locks.reserve(reservations, offload)
    async with open_nursery() as nursery:
        nursery.start_soon(locks.expire_when_due)
        nursery.start_soon(locks.reserve_ahead, reservations, offload)
        try:
            yield locks
        finally:
            locks.close()
            nursery.cancel_scope.cancel()


class Locks:
    """Locks on targets, in memory, with fencing tokens and an audit trail. Made by `open_locks`."""

    def __init__(self, trail: EventSink, tokens: Tokens, clock: Clock, options: LockOptions) -> None:
        # constant after construction
        self._trail = trail
        self._tokens = tokens
        self._clock = clock
        self._options = options
        self._table = LockTable(tokens, options, _new_id)
        # who is to hear of it
        self._waiters: dict[int, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        # the two tasks
        self._asleep_until = -math.inf
        self._rouse = trio.Event()
        self._low = trio.Event()
        self._tokens_came = trio.Event()
        self._problem: DeltaLogError | None = None
        self._closed = False

    @property
    def first_token(self) -> int:
        """First token of this start: no lease with a lower one holds."""
        return self._tokens.first

    # ----------------------------------------------------------------------------------------------------- acquiring

    async def acquire(
        self,
        targets: Target | Sequence[Target],
        holder: Holder,
        *,
        mode: Mode = Mode.EXCLUSIVE,
        intention: str = "",
        ttl_s: float | None = None,
        wait_s: float = WAIT_S_DEFAULT,
    ) -> Lease:
        """Get all of `targets`, waiting in a fair queue for up to `wait_s` seconds.

        Raises LockTimeout, LockLimit, AuditUnavailable, LocksClosed, UsageError; LeaseLost if the lease lapsed or was
        revoked while it was being recorded. Cancelled: the place in the queue, or the lock, is given back.
        """
        await trio.lowlevel.checkpoint()
        now = await self._ready()
        several = (targets,) if type(targets) is Target else targets
        request, outcome = self._table.request(
            several, holder, now, mode=mode, intention=intention, ttl_s=ttl_s, wait_s=wait_s  # type: ignore[arg-type]
        )  # fmt: skip
        self._watch_tokens()
        if request.state is State.ENDED:
            await self._submit(outcome.drafts)
            raise _refusal(request)
        if request.state is State.WAITING:
            await self._wait(request, outcome.drafts)
        return await self._take(request, wait_s)

    async def try_acquire(
        self,
        targets: Target | Sequence[Target],
        holder: Holder,
        *,
        mode: Mode = Mode.EXCLUSIVE,
        intention: str = "",
        ttl_s: float | None = None,
    ) -> Lease:
        """Get all of `targets` at once, or raise LockConflict. Nobody who waits is passed over. Else as `acquire`."""
        return await self.acquire(targets, holder, mode=mode, intention=intention, ttl_s=ttl_s, wait_s=0.0)

    @asynccontextmanager
    async def hold(
        self,
        targets: Target | Sequence[Target],
        holder: Holder,
        *,
        mode: Mode = Mode.EXCLUSIVE,
        intention: str = "",
        ttl_s: float | None = None,
        wait_s: float = WAIT_S_DEFAULT,
    ) -> AsyncIterator[Lease]:
        """Hold `targets` while the block runs. Raises as `acquire` and `release`.

        When the lease lapses or is revoked, the block is cancelled and LeaseLost comes out. An error of the block's own
        comes out as it is. Renew inside the block with `renew(lease)`; the block lives as long as the lease does.
        """
        lease = await self.acquire(targets, holder, mode=mode, intention=intention, ttl_s=ttl_s, wait_s=wait_s)
        try:
            with trio.CancelScope() as scope:
                self._scopes[lease.lock_id] = scope
                yield lease
        except BaseException:
            self._scopes.pop(lease.lock_id, None)
            await self._release_quietly(lease)
            raise
        self._scopes.pop(lease.lock_id, None)
        await self._end(self._table.find(lease, self._sweep()), Action.RELEASED, "it was released")

    # ------------------------------------------------------------------------------------------------ while it is held

    async def renew(self, lease: Lease, ttl_s: float | None = None) -> Lease:
        """Let the lease last `ttl_s` seconds from now (None: as long as before); return it as it is then.

        Raises LeaseLost, RenewalsExhausted, AuditUnavailable, LocksClosed, UsageError. Cancelled: not renewed.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        now = self._sweep()
        try:
            request = self._table.find(lease, now)
            before = request.lease()
            drafts = self._table.renew(request, now, ttl_s)
        except (LeaseLost, RenewalsExhausted) as error:
            await self._submit(self._table.refused(lease, str(error)))
            raise
        self._tick(request.deadline_s)
        try:
            await self._submit(drafts)
        except BaseException:
            self._log(self._table.undo_renew(request, before))
            self._tick(request.deadline_s)
            raise
        return self._still(request)

    async def release(self, lease: Lease) -> None:
        """Give the lease back. Raises LeaseLost if it is over, LocksClosed, AuditUnavailable (then it is still held).

        Not cancelled while it is being recorded, which the trail bounds in time.
        """
        self._check_open()
        try:
            request = self._table.find(lease, self._sweep())
        except LeaseLost as error:
            await self._submit(self._table.refused(lease, str(error)))
            raise
        await self._end(request, Action.RELEASED, "it was released")

    async def revoke(self, token: int, reason: str) -> Lease | None:
        """Take a lease away from its holder; None if nothing is held under that token. Raises as `release`.

        What runs under `hold` is cancelled. The resource should refuse the token from now on: see `Guard`.
        """
        self._check_open()
        check_text("reason", reason, TEXT_BYTES_MAX - 32)
        self._sweep()
        request = self._table.find_token(token)
        if request is None:
            return None
        lease = request.lease()
        await self._end(request, Action.REVOKED, f"it was revoked: {reason}", reason)
        return lease

    # -------------------------------------------------------------------------------------------------------- looking

    def leases(self, holder: str | None = None, target: Target | str | None = None) -> list[Lease]:
        """Leases held now, oldest request first: all, of one holder (its id), or those that overlap a target."""
        self._sweep()
        return [request.lease() for request in self._table.live(holder, _target(target))]

    def waiting(self, holder: str | None = None, target: Target | str | None = None) -> list[Waiting]:
        """Requests in the queue now, first come first."""
        self._sweep()
        return [request.waiting() for request in self._table.waiting(holder, _target(target))]

    def statistics(self) -> LocksStatistics:
        """How much is held and waited for."""
        held = self._table.live_count
        return LocksStatistics(held, len(self._table) - held, self._tokens.left, self._problem)

    # ---------------------------------------------------------------------------------------------- run by open_locks

    async def expire_when_due(self) -> None:
        """Sleep until the next deadline, end what is due, and again."""
        while True:
            # The first entry may be of a lock that was released: one idle wake costs less than pruning at each release.
            self._asleep_until = self._table.due_s
            self._rouse = trio.Event()
            with trio.move_on_at(self._asleep_until):
                await self._rouse.wait()
            self._sweep()

    async def reserve_ahead(self, reservations: Reservations, offload: Offload) -> None:
        """Reserve the next block of tokens before the present one ends; on an error, again and again."""
        delay_s = _RETRY_S
        while True:
            if self._tokens.wanted() is None:
                self._low = trio.Event()
                await self._low.wait()
            try:
                await self.reserve(reservations, offload)
            except DeltaLogError as error:
                self._problem = error
                await trio.sleep(delay_s)
                delay_s = min(2 * delay_s, _RETRY_S_MAX)
            else:
                self._problem = None
                delay_s = _RETRY_S

    async def reserve(self, reservations: Reservations, offload: Offload) -> None:
        """Reserve one block of tokens, and grant to those who waited for it. Raises StoreError."""
        upto = self._tokens.wanted()
        if upto is None:
            return
        await offload(reservations.reserve, upto)
        self._tokens.extend(upto)
        self._tokens_came.set()
        self._tokens_came = trio.Event()
        self._apply(self._table.tokens_came(trio.current_time()))

    def close(self) -> None:
        """End every lease and every wait. What runs under `hold` is cancelled."""
        self._closed = True
        self._tokens_came.set()
        try:
            self._sweep()
        finally:
            self._apply(self._table.end_all(_CLOSED))

    # ------------------------------------------------------------------------------------------------------ acting

    async def _ready(self) -> float:
        """Wait until a token is there, end what is due, and return the time."""
        self._check_open()
        if self._tokens.left <= 0:
            await self._wait_for_tokens()
        return self._sweep()

    async def _wait_for_tokens(self) -> None:
        with trio.move_on_after(self._options.token_wait_s):
            while self._tokens.left <= 0:
                self._low.set()
                await self._tokens_came.wait()
                self._check_open()
            return
        raise AuditUnavailable(
            f"no fencing token was reserved within {self._options.token_wait_s:g} s ({self._problem or 'slow disk'})"
        ) from self._problem

    async def _wait(self, request: Request, drafts: Sequence[Draft]) -> None:
        """Wait until a queued request is granted. Raises LockTimeout, LocksClosed, AuditUnavailable."""
        granted = self._waiters[request.order] = trio.Event()
        self._tick(request.deadline_s)
        try:
            await self._submit(drafts)
            await granted.wait()
        except BaseException as error:
            reason = "its wait was not recorded" if isinstance(error, AuditUnavailable) else "cancelled"
            self._apply(self._table.withdraw(request, trio.current_time(), reason))
            raise
        finally:
            del self._waiters[request.order]
        self._check_open()

    async def _take(self, request: Request, wait_s: float) -> Lease:
        now = self._sweep()
        if request.state is not State.GRANTED:
            raise LockTimeout(str(request.targets[0]), wait_s)
        drafts = self._table.take(request, now, recording=True)
        self._tick(request.deadline_s)
        try:
            await self._submit(drafts)
        except BaseException as error:
            reason = "it was not recorded" if isinstance(error, AuditUnavailable) else "cancelled"
            self._apply(self._table.withdraw(request, trio.current_time(), reason))
            raise
        lapsed = self._table.recorded(request, trio.current_time())
        if lapsed is not None:
            self._apply(lapsed)
        return self._still(request)

    async def _end(self, request: Request, action: Action, reason: str, given: str = "") -> None:
        """Release or revoke: recorded first, then others get the lock."""
        drafts = self._table.begin_end(request, action, {"reason": given} if given else NO_METADATA)
        try:
            with trio.CancelScope(shield=True):
                await self._submit(drafts)
        except BaseException:
            self._log(self._table.undo_end(request))
            self._tick(request.deadline_s)
            raise
        self._apply(self._table.finish_end(request, trio.current_time(), reason))

    async def _release_quietly(self, lease: Lease) -> None:
        """Release what a failed block held; the block's error matters more than how this goes."""
        try:
            request = self._table.find(lease, self._sweep())
            await self._end(request, Action.RELEASED, "it was released")
        except (LeaseLost, AuditUnavailable, AuditClosed):
            return

    def _still(self, request: Request) -> Lease:
        if request.state is not State.HELD:
            raise LeaseLost(request.lock_id, request.token, request.end_reason or "it is being released or revoked")
        return request.lease(secret=True)

    def _sweep(self) -> float:
        """End what is due; return the time."""
        now = trio.current_time()
        if now >= self._table.due_s:
            self._apply(self._table.expire(now))
        return now

    def _apply(self, outcome: Outcome) -> None:
        """Tell those it happened to, and log it: they hear of it even if the trail was closed."""
        for request in outcome.granted:
            self._waiters[request.order].set()
            self._tick(request.deadline_s)
        for request in outcome.ended:
            waiter = self._waiters.get(request.order)
            if waiter is not None:
                waiter.set()
            scope = self._scopes.pop(request.lock_id, None)
            if scope is not None:
                scope.cancel()
        if outcome.granted:
            self._watch_tokens()
        self._log(outcome.drafts)

    def _log(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            self._trail.log(draft.event(self._clock.tick()))

    async def _submit(self, drafts: Sequence[Draft]) -> None:
        """Submit events in their order; those of one action, which stand for several targets, side by side.

        Each is stamped when it goes. Raises the first AuditUnavailable or AuditClosed.
        """
        if len(drafts) == 1:
            await self._trail.submit(drafts[0].event(self._clock.tick()))
            return
        for _, alike in groupby(drafts, key=lambda draft: draft.action):
            failed: list[DeltaLogError] = []
            async with trio.open_nursery() as nursery:
                for draft in alike:
                    nursery.start_soon(self._submit_one, draft, failed)
            if failed:
                raise failed[0]

    async def _submit_one(self, draft: Draft, failed: list[DeltaLogError]) -> None:
        try:
            await self._trail.submit(draft.event(self._clock.tick()))
        except (AuditUnavailable, AuditClosed) as error:
            failed.append(error)

    def _tick(self, deadline_s: float) -> None:
        """Wake the task that ends what is due, if it sleeps longer than this."""
        if deadline_s < self._asleep_until:
            self._rouse.set()

    def _watch_tokens(self) -> None:
        """Wake the task that reserves, if a block is half used."""
        if self._tokens.wanted() is not None:
            self._low.set()

    def _check_open(self) -> None:
        if self._closed:
            raise LocksClosed(_CLOSED)


def _new_id() -> tuple[str, str]:
    """A public id and a secret, 64 and 128 random bits: ids stay unique across restarts, secrets unguessable."""
    drawn = os.urandom(24).hex()
    return drawn[:16], drawn[16:]


def _refusal(request: Request) -> DeltaLogError:
    if request.limit is not None:
        return request.limit
    met = request.blocker
    if met is None:
        return AuditUnavailable("no fencing token is reserved")
    target = next(target for target in request.targets if any(overlaps(target, other) for other in met.targets))
    return LockConflict(str(target), met.lock_id, met.holder.id)


def _target(target: Target | str | None) -> Target | None:
    if target is None or isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise UsageError(f"target must be a Target or its text, not {type(target).__name__}")
    return Target.parse(target)
