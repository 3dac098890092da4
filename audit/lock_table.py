"""LockTable: decides who gets which lock. Requests in; grants, refusals and the events that tell of them out.

What lives here: every request that is held or waits, an index of their targets, the queue, a heap of deadlines. What
this file does not know: trio, the trail, the wall clock. `now` (monotonic seconds) comes with each call; events leave
as drafts without a timestamp, because they are stamped in the order in which they are submitted.

    state        goes to       by                                     draft (one per target)
    -            WAITING       request, something is in the way       CONFLICT (of the target met), WAITING
    -            ENDED         request, it does not want to wait      CONFLICT (of the target met), DENIED
    -            ENDED         request, a bound is reached            DENIED
    -            GRANTED       request, nothing is in the way         -
    WAITING      GRANTED       what was in the way is gone            -
    WAITING      ENDED         expire, withdraw                       DENIED
    GRANTED      HELD          take                                   ACQUIRED
    GRANTED      ENDED         expire, withdraw                       DENIED
    HELD         HELD          recorded: may expire from now on       -
    HELD         HELD          renew                                  RENEWED
    HELD         ENDING        begin_end (release or revoke)          RELEASED or REVOKED
    ENDING       ENDED         finish_end                             -
    ENDING       HELD          undo_end: it could not be recorded     DENIED
    HELD         ENDED         expire or recorded, withdraw           EXPIRED, REVOKED

Rules:

* Conflict check and grant are one step: no call returns between them.
* Two requests conflict if targets of theirs overlap and not both are shared, whoever asks: locks are not re-entrant.
* First come, first served: a request waits for every earlier request that it conflicts with, held or waiting.
* A request gets all its targets or none. It holds nothing while it waits, so no two requests wait for each other.
* Tokens are taken at the grant: a later grant has the greater token.
* A waiting request watches one request that is in its way. When that one goes, it looks for another, and is granted if
  there is none. So nobody scans the queue.
"""

from __future__ import annotations

import heapq
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final

import attrs

from audit.errors import LeaseLost, LockLimit, RenewalsExhausted
from audit.event import NO_METADATA, Action, AuditEvent
from audit.lease import TEXT_BYTES_MAX, Holder, Lease, LockOptions, Mode, Waiting, check_seconds, check_text
from audit.target import Target, contains, overlaps
from audit.target_index import TargetIndex
from audit.tokens import Tokens
from deltalog.errors import UsageError

ENDED_REMEMBERED: Final = 10_000
"""Leases whose end is remembered, so that a late holder hears why. About 200 bytes each."""
_HEAP_SLACK: Final = 64


class State(Enum):
    """Where a request is; the table above says how it gets there."""

    WAITING = "waiting"
    GRANTED = "granted"
    HELD = "held"
    ENDING = "ending"
    ENDED = "ended"


@attrs.define(eq=False, slots=True)
class Request:
    """One request through its life. Owned by the table; others read."""

    order: int
    lock_id: str
    secret: str = attrs.field(repr=False)
    holder: Holder
    targets: tuple[Target, ...]
    mode: Mode
    intention: str
    ttl_s: float
    deadline_s: float
    state: State = State.WAITING
    token: int = 0
    renewals: int = 0
    blocker: Request | None = attrs.field(default=None, repr=False)
    """While it waits: one request that is in its way (None: it waits for a token)."""
    watchers: dict[int, Request] = attrs.field(factory=dict, repr=False)
    """Who waits for this one to go, by order."""
    keys: tuple[int, ...] = attrs.field(default=(), repr=False)
    recording: bool = False
    """Its ACQUIRED is on the way: until `recorded` it neither expires nor can be revoked."""
    end_reason: str = ""
    """Why it ended."""
    limit: LockLimit | None = attrs.field(default=None, repr=False)
    """The bound that refused it."""

    @property
    def is_live(self) -> bool:
        """Whether it holds its targets."""
        return self.state in _LIVE

    def lease(self, *, secret: bool = False) -> Lease:
        """What the holder has in hand; with its proof of ownership only if asked for."""
        return Lease(
            self.lock_id, self.token, self.holder, self.targets, self.mode, self.intention, self.ttl_s,
            self.deadline_s, self.renewals, self.secret if secret else "",
        )  # fmt: skip

    def waiting(self) -> Waiting:
        """Its place in the queue."""
        blocked_by = self.blocker.lock_id if self.blocker is not None else ""
        return Waiting(
            self.lock_id, self.holder, self.targets, self.mode, self.intention, self.deadline_s, blocked_by
        )  # fmt: skip


_LIVE: Final = frozenset({State.GRANTED, State.HELD, State.ENDING})


@attrs.frozen
class Draft:
    """An event without its timestamp."""

    action: Action
    target: Target
    request: Request
    token: int
    metadata: Mapping[str, str] = NO_METADATA

    def event(self, timestamp: int) -> AuditEvent:
        """The event, stamped."""
        request = self.request
        holder = request.holder
        return AuditEvent(
            timestamp, self.action, str(self.target), holder.id, holder.name, request.lock_id, self.token, self.metadata
        )


@attrs.define
class Outcome:
    """What a call changed beside the request it was about."""

    drafts: list[Draft] = attrs.field(factory=list)
    """Events, in the order in which they happened."""
    granted: list[Request] = attrs.field(factory=list)
    """Waiting requests that got their lock: wake them; they `take` it."""
    ended: list[Request] = attrs.field(factory=list)
    """Requests that are over: cancel what ran under them, wake who waits for them."""


class LockTable:
    """The table. Not thread-safe; every call is one step."""

    def __init__(self, tokens: Tokens, options: LockOptions, new_id: Callable[[], tuple[str, str]]) -> None:
        # constant after construction
        self._tokens = tokens
        self._options = options
        self._new_id = new_id
        # what is there
        self._requests: dict[str, Request] = {}
        self._by_token: dict[int, Request] = {}
        self._by_holder: dict[str, dict[int, Request]] = {}
        self._exclusive: TargetIndex[Request] = TargetIndex()
        self._shared: TargetIndex[Request] = TargetIndex()
        self._starved: dict[int, Request] = {}
        self._ended: OrderedDict[str, tuple[int, str]] = OrderedDict()
        # when it goes
        self._heap: list[tuple[float, int, Request]] = []
        self._order = 0
        self._key = 0
        self._scheduled = 0

    # ----------------------------------------------------------------------------------------------------- acquiring

    def request(
        self,
        targets: Sequence[Target],
        holder: Holder,
        now: float,
        *,
        mode: Mode = Mode.EXCLUSIVE,
        intention: str = "",
        ttl_s: float | None = None,
        wait_s: float = 0.0,
    ) -> tuple[Request, Outcome]:
        """Ask for all of `targets`, and wait in the queue up to `wait_s` seconds if something is in the way.

        The request is GRANTED (then `take` it), WAITING, or ENDED: refused, with its `blocker`. Raises UsageError for
        arguments out of bounds; nothing is changed then.
        """
        kept = self._checked_targets(targets)
        check_text("intention", intention, TEXT_BYTES_MAX)
        check_seconds("wait_s", wait_s, 0.0, self._options.wait_s_max)
        ttl_s = self._options.checked_ttl_s(ttl_s)
        self._order += 1
        lock_id, secret = self._new_id()
        request = Request(self._order, lock_id, secret, holder, kept, mode, intention, ttl_s, now + wait_s)
        outcome = Outcome()
        request.limit = self._limit_reached(holder)
        if request.limit is not None:
            self._refuse(request, outcome, f"{request.limit.field} {request.limit.limit}")
            return request, outcome
        met = self._in_the_way(request)
        if met is None and self._tokens.left > 0:
            self._enter(request)
            self._grant(request, now)
            return request, outcome
        self._meet(request, met, wait_s, outcome)
        return request, outcome

    def take(self, request: Request, now: float, *, recording: bool = False) -> list[Draft]:
        """Hand a GRANTED lock to its holder: the lease begins. Raises LeaseLost if it was not fetched in time.

        `recording`: the draft may take a while to get into the trail; `recorded` says that it has.
        """
        if request.state is not State.GRANTED:
            raise LeaseLost(request.lock_id, request.token, request.end_reason or request.state.value)
        request.state = State.HELD
        request.recording = recording
        if request.deadline_s != now + request.ttl_s:
            request.deadline_s = now + request.ttl_s
            self._schedule(request)
        note = {"ttl_s": f"{request.ttl_s:g}", "mode": request.mode.value}
        if request.intention:
            note["intention"] = request.intention
        return _drafts(Action.ACQUIRED, request, note)

    def recorded(self, request: Request, now: float) -> Outcome | None:
        """The ACQUIRED of a lease is recorded, so its end may be: now, if it lapsed meanwhile."""
        request.recording = False
        if request.state is not State.HELD or request.deadline_s > now:
            return None
        outcome = Outcome()
        self._end(request, Action.EXPIRED, "it expired", now, outcome)
        return outcome

    def withdraw(self, request: Request, now: float, reason: str) -> Outcome:
        """End a request that its asker gave up, or whose ACQUIRED could not be recorded. Nothing if it is over."""
        outcome = Outcome()
        if request.state in (State.WAITING, State.GRANTED):
            self._end(request, Action.DENIED, reason, now, outcome)
        elif request.state is State.HELD:
            self._end(request, Action.REVOKED, reason, now, outcome)
        return outcome

    # ------------------------------------------------------------------------------------------------------- holding

    def find(self, lease: Lease, now: float) -> Request:
        """The request behind a lease that is held. Raises LeaseLost if it is over, or is not the caller's."""
        request = self._requests.get(lease.lock_id)
        if request is None or request.state is not State.HELD or request.token != lease.token:
            raise self._lost(lease, request)
        if request.deadline_s <= now:
            raise LeaseLost(lease.lock_id, lease.token, "it expired")
        if not hmac.compare_digest(request.secret.encode(), lease.secret.encode(errors="replace")):
            raise LeaseLost(lease.lock_id, lease.token, "it is not this holder's lease")
        return request

    def find_token(self, token: int) -> Request | None:
        """The request that holds under a token; None if there is none."""
        request = self._by_token.get(token)
        if request is None or request.state is not State.HELD or request.recording:
            return None
        return request

    def renew(self, request: Request, now: float, ttl_s: float | None = None) -> list[Draft]:
        """Let a held lease last `ttl_s` seconds from now (None: as long as before). Raises RenewalsExhausted."""
        if ttl_s is not None:
            ttl_s = self._options.checked_ttl_s(ttl_s)
        if request.renewals >= self._options.renewals_max:
            raise RenewalsExhausted(request.lock_id, self._options.renewals_max)
        request.renewals += 1
        request.ttl_s = request.ttl_s if ttl_s is None else ttl_s
        request.deadline_s = now + request.ttl_s
        self._schedule(request)
        return _drafts(Action.RENEWED, request, {"ttl_s": f"{request.ttl_s:g}", "renewals": str(request.renewals)})

    def undo_renew(self, request: Request, before: Lease) -> list[Draft]:
        """Set a lease back to what it was before a renewal that could not be recorded."""
        if request.state is not State.HELD or request.renewals != before.renewals + 1:
            return []
        request.renewals, request.ttl_s, request.deadline_s = before.renewals, before.ttl_s, before.deadline_s
        self._schedule(request)
        return _drafts(Action.DENIED, request, {"reason": "the renewal was not recorded"})

    def refused(self, lease: Lease, reason: str) -> list[Draft]:
        """What tells of a renewal or release that was refused; nothing if this table never knew the lease."""
        request = self._requests.get(lease.lock_id)
        if request is not None:
            return _drafts(Action.DENIED, request, {"reason": _cut(reason)})
        if lease.lock_id not in self._ended:
            return []
        ghost = Request(
            0, lease.lock_id, "", lease.holder, lease.targets, lease.mode, "", lease.ttl_s, 0, State.ENDED, lease.token
        )  # fmt: skip
        return _drafts(Action.DENIED, ghost, {"reason": _cut(reason)})

    # -------------------------------------------------------------------------------------------------------- ending

    def begin_end(self, request: Request, action: Action, note: Mapping[str, str] = NO_METADATA) -> list[Draft]:
        """Begin to release or revoke: it still keeps others out until `finish_end`, and does not expire meanwhile."""
        assert request.state is State.HELD, request.state
        request.state = State.ENDING
        return _drafts(action, request, note)

    def finish_end(self, request: Request, now: float, reason: str) -> Outcome:
        """The end was recorded: whoever waited gets the lock."""
        outcome = Outcome()
        if request.state is State.ENDED:  # the table closed meanwhile
            return outcome
        assert request.state is State.ENDING, request.state
        self._leave(request, reason, outcome)
        self._settle(request, now, outcome)
        return outcome

    def undo_end(self, request: Request) -> list[Draft]:
        """The end could not be recorded: it is held on, until its deadline."""
        if request.state is State.ENDED:  # the table closed meanwhile
            return []
        assert request.state is State.ENDING, request.state
        request.state = State.HELD
        self._schedule(request)
        return _drafts(Action.DENIED, request, {"reason": "the end was not recorded; it is still held"})

    def expire(self, now: float) -> Outcome:
        """End what is due: leases lapse, waiting requests give up."""
        outcome = Outcome()
        while self._heap and self._heap[0][0] <= now:
            deadline_s, _, request = heapq.heappop(self._heap)
            if request.deadline_s != deadline_s or request.state in (State.ENDED, State.ENDING) or request.recording:
                continue
            if request.state is State.HELD:
                self._end(request, Action.EXPIRED, "it expired", now, outcome)
            else:
                late = request.state is State.GRANTED
                self._end(request, Action.DENIED, "not taken in time" if late else "waited too long", now, outcome)
        return outcome

    def next_deadline_s(self) -> float | None:
        """When `expire` has something to do at the earliest; None while nothing is due ever."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def tokens_came(self, now: float) -> Outcome:
        """More tokens are there: grant to those who wait for nothing else."""
        outcome = Outcome()
        waiting = sorted(self._starved.values(), key=lambda request: request.order)
        self._starved.clear()
        for request in waiting:
            self._try_grant(request, now, outcome)
        return outcome

    def end_all(self, reason: str) -> Outcome:
        """The table closes: held leases are revoked, waiting requests denied; nobody is granted anything."""
        outcome = Outcome()
        for request in list(self._requests.values()):
            held = request.state is State.HELD
            action = Action.REVOKED if held else Action.DENIED
            if request.state is not State.ENDING:
                outcome.drafts += _drafts(action, request, {"reason": reason})
            self._leave(request, reason, outcome)
        return outcome

    # ------------------------------------------------------------------------------------------------------- looking

    def __len__(self) -> int:
        """Requests held or waiting."""
        return len(self._requests)

    @property
    def live_count(self) -> int:
        """Requests that hold."""
        return len(self._by_token)

    @property
    def due_s(self) -> float:
        """No later than when `expire` has something to do; inf while there is nothing."""
        return self._heap[0][0] if self._heap else math.inf

    def live(self, holder_id: str | None = None, target: Target | None = None) -> list[Request]:
        """Requests that hold, in the order in which they asked."""
        return [request for request in self._selected(holder_id, target) if request.is_live]

    def waiting(self, holder_id: str | None = None, target: Target | None = None) -> list[Request]:
        """Requests that wait, in the order of the queue."""
        return [request for request in self._selected(holder_id, target) if request.state is State.WAITING]

    def _selected(self, holder_id: str | None, target: Target | None) -> list[Request]:
        found: Iterator[Request]
        if target is not None:
            both = [*self._exclusive.overlapping(target), *self._shared.overlapping(target)]
            found = iter({request.order: request for request in both}.values())
        elif holder_id is not None:
            found = iter(self._by_holder.get(holder_id, {}).values())
        else:
            found = iter(self._requests.values())
        chosen = (request for request in found if holder_id is None or request.holder.id == holder_id)
        return sorted(chosen, key=lambda request: request.order)

    # ------------------------------------------------------------------------------------------------------ deciding

    def _checked_targets(self, targets: Sequence[Target]) -> tuple[Target, ...]:
        if len(targets) == 1 and type(targets[0]) is Target:
            return tuple(targets)
        if not 1 <= len(targets) <= self._options.targets_max:
            raise UsageError(f"targets are {len(targets)}; a request takes 1 to {self._options.targets_max}")
        if any(type(target) is not Target for target in targets):
            raise UsageError("targets must be a sequence of Target")
        unique = list(dict.fromkeys(targets))
        return tuple(t for t in unique if not any(contains(other, t) for other in unique if other != t))

    def _limit_reached(self, holder: Holder) -> LockLimit | None:
        if len(self._requests) >= self._options.locks_max:
            return LockLimit("locks_max", self._options.locks_max)
        if len(self._by_holder.get(holder.id, ())) >= self._options.locks_per_holder_max:
            return LockLimit("locks_per_holder_max", self._options.locks_per_holder_max)
        return None

    def _in_the_way(self, request: Request) -> Request | None:
        """One request that this one has to wait for."""
        indexes = (self._exclusive,) if request.mode is Mode.SHARED else (self._exclusive, self._shared)
        for index in indexes:
            for target in request.targets:
                for other in index.overlapping(target):
                    if other is not request and (other.order < request.order or other.is_live):
                        return other
        return None

    def _meet(self, request: Request, met: Request | None, wait_s: float, outcome: Outcome) -> None:
        """Something is in the way of a new request: queue it, or refuse it."""
        request.blocker = met
        if met is not None:
            target = next(t for t in request.targets if any(overlaps(t, other) for other in met.targets))
            outcome.drafts.append(Draft(Action.CONFLICT, target, request, 0, _met_note(met)))
        if wait_s <= 0:
            self._refuse(request, outcome, "taken" if met is not None else "no token is reserved")
            return
        self._enter(request)
        self._watch(request, met)
        self._schedule(request)
        outcome.drafts += _drafts(Action.WAITING, request, {"wait_s": f"{wait_s:g}"})

    def _refuse(self, request: Request, outcome: Outcome, reason: str) -> None:
        request.state = State.ENDED
        request.end_reason = reason
        outcome.drafts += _drafts(Action.DENIED, request, {"reason": reason})

    def _watch(self, request: Request, met: Request | None) -> None:
        request.blocker = met
        (self._starved if met is None else met.watchers)[request.order] = request

    def _grant(self, request: Request, now: float) -> None:
        request.token = self._tokens.take()
        request.state = State.GRANTED
        request.blocker = None
        request.deadline_s = now + request.ttl_s
        self._by_token[request.token] = request
        self._schedule(request)

    def _try_grant(self, request: Request, now: float, outcome: Outcome) -> None:
        met = self._in_the_way(request)
        if met is not None or self._tokens.left <= 0:
            self._watch(request, met)
            return
        self._grant(request, now)
        outcome.granted.append(request)

    def _end(self, request: Request, action: Action, reason: str, now: float, outcome: Outcome) -> None:
        outcome.drafts += _drafts(action, request, {"reason": reason})
        self._leave(request, reason, outcome)
        self._settle(request, now, outcome)

    def _settle(self, gone: Request, now: float, outcome: Outcome) -> None:
        """Look again at those who watched a request that is gone, in the order of the queue."""
        watchers = sorted(gone.watchers.values(), key=lambda request: request.order)
        gone.watchers = {}
        for request in watchers:
            self._try_grant(request, now, outcome)

    # ------------------------------------------------------------------------------------------------------- keeping

    def _enter(self, request: Request) -> None:
        index = self._exclusive if request.mode is Mode.EXCLUSIVE else self._shared
        first = self._key
        for target in request.targets:
            index.add(target, self._key, request)
            self._key += 1
        request.keys = tuple(range(first, self._key))
        self._requests[request.lock_id] = request
        self._by_holder.setdefault(request.holder.id, {})[request.order] = request

    def _leave(self, request: Request, reason: str, outcome: Outcome) -> None:
        index = self._exclusive if request.mode is Mode.EXCLUSIVE else self._shared
        for target, key in zip(request.targets, request.keys, strict=True):
            index.remove(target, key)
        del self._requests[request.lock_id]
        self._by_token.pop(request.token, None)
        of_holder = self._by_holder[request.holder.id]
        del of_holder[request.order]
        if not of_holder:
            del self._by_holder[request.holder.id]
        if request.state is State.WAITING:
            watched = self._starved if request.blocker is None else request.blocker.watchers
            watched.pop(request.order, None)
        request.state = State.ENDED
        request.end_reason = reason
        outcome.ended.append(request)
        self._remember(request, reason)

    def _remember(self, request: Request, reason: str) -> None:
        self._ended[request.lock_id] = (request.token, reason)
        if len(self._ended) > ENDED_REMEMBERED:
            self._ended.popitem(last=False)

    def _lost(self, lease: Lease, request: Request | None) -> LeaseLost:
        if request is not None and request.token == lease.token:
            return LeaseLost(lease.lock_id, lease.token, "it is being released or revoked")
        token, reason = self._ended.get(lease.lock_id, (0, ""))
        known = token == lease.token and reason
        return LeaseLost(lease.lock_id, lease.token, reason if known else "these locks do not hold it (any more)")

    def _schedule(self, request: Request) -> None:
        if len(self._heap) > 2 * len(self._requests) + _HEAP_SLACK:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)
        self._scheduled += 1
        heapq.heappush(self._heap, (request.deadline_s, self._scheduled, request))

    @staticmethod
    def _is_current(entry: tuple[float, int, Request]) -> bool:
        return entry[2].deadline_s == entry[0] and entry[2].state not in (State.ENDED, State.ENDING)


def _drafts(action: Action, request: Request, note: Mapping[str, str] = NO_METADATA) -> list[Draft]:
    return [Draft(action, target, request, request.token, note) for target in request.targets]


def _cut(reason: str) -> str:
    """As much of a text as an event takes."""
    return reason.encode()[:TEXT_BYTES_MAX].decode(errors="ignore")


def _met_note(met: Request) -> dict[str, str]:
    return {
        "blocked_by": met.lock_id,
        "blocker_holder": met.holder.id,
        "blocker_token": str(met.token),
        "blocker_state": "waits longer" if met.state is State.WAITING else "holds",
    }
