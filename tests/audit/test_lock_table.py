"""The lock table against a naive model that scans everything, and its single rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count, pairwise

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from audit.errors import LeaseLost, RenewalsExhausted
from audit.event import Action
from audit.lease import Holder, LockOptions, Mode
from audit.lock_table import Draft, LockTable, Outcome, Request, State
from audit.target import Target, overlaps
from audit.tokens import Tokens
from deltalog.errors import UsageError

ANN = Holder("ann", "Ann")
BOB = Holder("bob")

_TARGETS = [
    Target.parse(text)
    for text in ("a", "a:1-5", "a:4-9", "a:10-12", "a#f:x", "a#c:C", "a#f:C.y", "d/", "d/e", "d/e/", "d/e/f:1-2", "g")
]


def make(*, tokens: int = 1_000_000, **options: float) -> LockTable:
    """A table with tokens reserved."""
    source = Tokens(0, tokens)
    source.extend(tokens)
    ids = count(1)

    def new_id() -> tuple[str, str]:
        number = next(ids)
        return f"lock-{number}", f"secret-{number}"

    return LockTable(source, LockOptions(**{"ttl_s_min": 0.5, **options}), new_id)  # type: ignore[arg-type]


@attrs.define(eq=False)
class Modelled:
    """A request as the model sees it."""

    targets: tuple[Target, ...]
    mode: Mode
    ttl_s: float
    deadline_s: float
    state: str
    token: int = 0
    told: list[tuple[Action, str]] = attrs.field(factory=list)

    def conflicts(self, other: Modelled) -> bool:
        both_shared = self.mode is other.mode is Mode.SHARED
        return not both_shared and any(overlaps(a, b) for a in self.targets for b in other.targets)

    @property
    def is_live(self) -> bool:
        return self.state in ("granted", "held", "ending")

    def tell(self, action: Action) -> None:
        self.told += [(action, str(target)) for target in self.targets]


class TableMachine(RuleBasedStateMachine):
    """Random calls; after each, the table and the model say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.table = make(locks_per_holder_max=30)
        self.model: dict[Request, Modelled] = {}
        """In the order of asking."""
        self.told: dict[str, list[tuple[Action, str]]] = defaultdict(list)
        self.tokens: list[int] = []
        self.now = 0.0
        self.unique = count(1)

    # ---- helpers

    def seconds(self, whole: int) -> float:
        """No two deadlines are the same, so their order is plain."""
        return whole + next(self.unique) * 1e-6

    def heard(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            self.told[draft.request.lock_id].append((draft.action, str(draft.target)))

    def apply(self, outcome: Outcome) -> None:
        self.heard(outcome.drafts)
        self.settle()
        assert len({id(request) for request in outcome.granted}) == len(outcome.granted)
        for request in outcome.granted:
            assert self.model[request].state == "granted"

    def settle(self) -> None:
        """The model grants, in the order of asking, what nothing earlier and nothing held stands against."""
        for place, (request, one) in enumerate(self.model.items()):
            if one.state == "waiting" and not self.in_the_way(one, place):
                one.state, one.token, one.deadline_s = "granted", request.token, self.now + one.ttl_s
                self.tokens.append(request.token)

    def in_the_way(self, one: Modelled, place: int) -> bool:
        others = enumerate(self.model.values())
        return any(
            other is not one and one.conflicts(other) and (other.is_live or (other.state == "waiting" and at < place))
            for at, other in others
        )

    def pick(self, number: int, *states: str) -> Request:
        fitting = [request for request, one in self.model.items() if one.state in states]
        return fitting[number % len(fitting)]

    def has(self, *states: str) -> bool:
        return any(one.state in states for one in self.model.values())

    # ---- calls

    @rule(
        asked=st.lists(st.sampled_from(_TARGETS), min_size=1, max_size=3, unique=True),
        holder=st.sampled_from([ANN, BOB]),
        mode=st.sampled_from(Mode),
        ttl=st.integers(1, 20),
        wait=st.integers(0, 10),
    )
    def request(self, asked: list[Target], holder: Holder, mode: Mode, ttl: int, wait: int) -> None:
        ttl_s, wait_s = self.seconds(ttl), self.seconds(wait) if wait else 0.0
        request, outcome = self.table.request(asked, holder, self.now, mode=mode, ttl_s=ttl_s, wait_s=wait_s)
        one = Modelled(request.targets, mode, ttl_s, self.now + wait_s, "waiting")
        if request.limit is not None:
            one.tell(Action.DENIED)
            one.state = "ended"
        elif self.in_the_way(one, len(self.model)):
            conflicts = [draft for draft in outcome.drafts if draft.action is Action.CONFLICT]
            assert len(conflicts) == 1
            one.told.append((Action.CONFLICT, str(conflicts[0].target)))
            one.tell(Action.WAITING if wait else Action.DENIED)
            one.state = "waiting" if wait else "ended"
        self.model[request] = one
        self.apply(outcome)

    @precondition(lambda self: self.has("granted"))
    @rule(number=st.integers(0, 99))
    def take(self, number: int) -> None:
        request = self.pick(number, "granted")
        self.heard(self.table.take(request, self.now))
        one = self.model[request]
        one.state, one.deadline_s = "held", self.now + one.ttl_s
        one.tell(Action.ACQUIRED)

    @precondition(lambda self: self.has("held"))
    @rule(number=st.integers(0, 99), ttl=st.integers(1, 20), recorded=st.booleans())
    def renew(self, number: int, ttl: int, recorded: bool) -> None:
        request = self.pick(number, "held")
        before, ttl_s, one = request.lease(), self.seconds(ttl), self.model[request]
        self.heard(self.table.renew(request, self.now, ttl_s))
        one.tell(Action.RENEWED)
        if recorded:
            one.ttl_s, one.deadline_s = ttl_s, self.now + ttl_s
        else:
            self.heard(self.table.undo_renew(request, before))
            one.tell(Action.DENIED)

    @precondition(lambda self: self.has("held"))
    @rule(number=st.integers(0, 99), action=st.sampled_from([Action.RELEASED, Action.REVOKED]))
    def begin_end(self, number: int, action: Action) -> None:
        request = self.pick(number, "held")
        self.heard(self.table.begin_end(request, action))
        self.model[request].state = "ending"
        self.model[request].tell(action)

    @precondition(lambda self: self.has("ending"))
    @rule(number=st.integers(0, 99), recorded=st.booleans())
    def finish_end(self, number: int, recorded: bool) -> None:
        request = self.pick(number, "ending")
        one = self.model[request]
        if recorded:
            one.state = "ended"
            self.apply(self.table.finish_end(request, self.now, "released"))
        else:
            self.heard(self.table.undo_end(request))
            one.state = "held"
            one.tell(Action.DENIED)

    @precondition(lambda self: self.has("waiting", "granted", "held"))
    @rule(number=st.integers(0, 99))
    def withdraw(self, number: int) -> None:
        request = self.pick(number, "waiting", "granted", "held")
        one = self.model[request]
        one.tell(Action.REVOKED if one.state == "held" else Action.DENIED)
        one.state = "ended"
        self.apply(self.table.withdraw(request, self.now, "cancelled"))

    @rule(seconds=st.integers(0, 12))
    def expire(self, seconds: int) -> None:
        self.now += seconds
        outcome = self.table.expire(self.now)
        while True:
            due = [one for one in self.model.values() if one.state in ("waiting", "granted", "held")]
            first = min(due, key=lambda one: one.deadline_s, default=None)
            if first is None or first.deadline_s > self.now:
                break
            first.tell(Action.EXPIRED if first.state == "held" else Action.DENIED)
            first.state = "ended"
            self.settle()
        self.apply(outcome)

    # ---- what holds always

    @invariant()
    def says_what_the_model_says(self) -> None:
        for request, one in self.model.items():
            assert request.state.value == one.state, (request, one)
            if one.is_live:
                assert request.deadline_s == one.deadline_s
        for requests, states in ((self.table.live(), ("granted", "held", "ending")), (self.table.waiting(), "waiting")):
            assert requests == [request for request, one in self.model.items() if one.state in states]
        assert len(self.table) == sum(one.state != "ended" for one in self.model.values())

    @invariant()
    def i12_no_two_conflicting_leases(self) -> None:
        live = [one for one in self.model.values() if one.is_live]
        assert not any(a.conflicts(b) for place, a in enumerate(live) for b in live[:place])

    @invariant()
    def i12_tokens_increase_with_the_grants(self) -> None:
        assert all(0 < earlier < later for earlier, later in pairwise(self.tokens))
        assert {request.token for request in self.table.live()} <= set(self.tokens)

    @invariant()
    def every_transition_is_told_exactly_once(self) -> None:
        for request, one in self.model.items():
            assert self.told[request.lock_id] == one.told

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        due = [one.deadline_s for one in self.model.values() if one.state in ("waiting", "granted", "held")]
        assert self.table.next_deadline_s() == min(due, default=None)

    @invariant()
    def listing_by_target_finds_what_overlaps(self) -> None:
        for target in _TARGETS[:3]:
            found = self.table.live(target=target)
            assert found == [r for r in self.table.live() if any(overlaps(target, other) for other in r.targets)]

    def teardown(self) -> None:
        self.heard(self.table.end_all("closed").drafts)
        assert len(self.table) == 0
        assert self.table.next_deadline_s() is None
        assert not self.table.live(target=_TARGETS[0])


TableMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTableMachine = TableMachine.TestCase


# ---------------------------------------------------------------------------------------------------------- one by one


def ask(table: LockTable, text: str, now: float = 0.0, **options: object) -> Request:
    """Ask for one target and take it if it is granted."""
    request, _ = table.request([Target.parse(text)], ANN, now, **options)  # type: ignore[arg-type]
    if request.state is State.GRANTED:
        table.take(request, now)
    return request


def give_back(table: LockTable, request: Request, now: float = 0.0) -> Outcome:
    table.begin_end(request, Action.RELEASED)
    return table.finish_end(request, now, "released")


def test_first_come_first_served_even_past_a_free_target() -> None:
    table = make()
    first = ask(table, "a:1-5")
    wide = ask(table, "a", wait_s=10)
    late = ask(table, "a:10-12", wait_s=10)
    assert late.state is State.WAITING, "it would starve the one who wants the whole file"
    assert late.blocker is wide
    assert give_back(table, first).granted == [wide]
    table.take(wide, 0)
    assert give_back(table, wide).granted == [late]


def test_a_queue_is_granted_one_by_one_in_order_with_rising_tokens() -> None:
    table = make()
    queue = [ask(table, "a", wait_s=100) for _ in range(50)]
    tokens = [queue[0].token]
    for holder, following in pairwise(queue):
        assert give_back(table, holder).granted == [following]
        table.take(following, 0)
        tokens.append(following.token)
    assert tokens == sorted(set(tokens))


def test_shared_leases_stand_together_and_keep_a_writer_out_until_all_are_gone() -> None:
    table = make()
    readers = [ask(table, "a", mode=Mode.SHARED) for _ in range(3)]
    assert all(reader.state is State.HELD for reader in readers)
    writer = ask(table, "a", wait_s=10)
    behind = ask(table, "a", mode=Mode.SHARED, wait_s=10)
    assert behind.state is State.WAITING
    for reader in readers[:2]:
        assert give_back(table, reader).granted == []
    assert give_back(table, readers[2]).granted == [writer]


def test_several_targets_are_all_or_nothing() -> None:
    table = make()
    held = ask(table, "b")
    both, _ = table.request([Target("a"), Target("b")], BOB, 0.0, wait_s=10)
    assert both.state is State.WAITING
    assert table.live(target=Target("a")) == []
    assert give_back(table, held).granted == [both]
    assert [str(target) for target in both.targets] == ["a", "b"]
    assert table.live(target=Target("a")) == table.live(target=Target("b")) == [both]


def test_targets_within_others_of_the_request_are_left_out() -> None:
    table = make()
    request, _ = table.request([Target("d/e"), Target("d/"), Target("d/")], ANN, 0.0)
    assert [str(target) for target in request.targets] == ["d/"]


def test_bounds_are_denied_and_told() -> None:
    table = make(locks_max=3, locks_per_holder_max=2)
    ask(table, "a")
    ask(table, "b")
    third, outcome = table.request([Target("c")], ANN, 0.0)
    assert third.limit is not None
    assert third.limit.field == "locks_per_holder_max"
    assert [draft.action for draft in outcome.drafts] == [Action.DENIED]
    table.request([Target("c")], BOB, 0.0)
    fourth, _ = table.request([Target("e")], Holder("eve"), 0.0)
    assert fourth.limit is not None
    assert fourth.limit.field == "locks_max"


@pytest.mark.parametrize("ttl_s", [0.4, 301, -1, float("nan"), float("inf"), "1", True])
def test_a_ttl_out_of_bounds_is_refused(ttl_s: float) -> None:
    table = make()
    with pytest.raises(UsageError, match="ttl_s"):
        table.request([Target("a")], ANN, 0.0, ttl_s=ttl_s)
    assert len(table) == 0


@pytest.mark.parametrize("targets", [[], ["a"], [Target(f"f{n}") for n in range(65)]])
def test_bad_targets_are_refused(targets: list[Target]) -> None:
    with pytest.raises(UsageError, match="targets"):
        make().request(targets, ANN, 0.0)


def test_renewals_are_counted_and_bounded() -> None:
    table = make(renewals_max=2)
    request = ask(table, "a", ttl_s=10)
    table.renew(request, 1.0)
    table.renew(request, 2.0, 5)
    assert request.deadline_s == 7.0
    with pytest.raises(RenewalsExhausted):
        table.renew(request, 3.0)
    assert request.deadline_s == 7.0


def test_a_lease_that_is_over_says_why() -> None:
    table = make()
    request = ask(table, "a", ttl_s=10)
    lease = request.lease(secret=True)
    assert table.find(lease, 9.9) is request
    with pytest.raises(LeaseLost, match="not this holder's"):
        table.find(request.lease(), 5)
    with pytest.raises(LeaseLost, match="expired"):
        table.find(lease, 10.0)
    table.expire(10.0)
    with pytest.raises(LeaseLost, match="expired"):
        table.find(lease, 10.0)
    with pytest.raises(LeaseLost, match="do not hold it"):
        table.find(attrs.evolve(lease, token=999), 10.0)


def test_without_tokens_requests_wait_and_are_granted_when_some_come() -> None:
    tokens = Tokens(0, 1)
    tokens.extend(1)
    ids = count()
    table = LockTable(tokens, LockOptions(), lambda: (str(next(ids)), ""))
    assert ask(table, "a").state is State.HELD
    starved = ask(table, "b", wait_s=10)
    behind = ask(table, "b", wait_s=10)
    assert starved.state is behind.state is State.WAITING
    tokens.extend(5)
    assert table.tokens_came(0.0).granted == [starved]
    assert behind.blocker is starved


def test_stale_deadlines_do_not_pile_up() -> None:
    table = make()
    for _ in range(5_000):
        give_back(table, ask(table, "a"))
    assert len(table._heap) < 200


def test_a_hundred_thousand_locks() -> None:
    table = make(locks_max=200_000, locks_per_holder_max=200_000)
    requests = [ask(table, f"src/{n % 100}/f{n // 1000}:{n + 1}-{n + 1}", ttl_s=10 + n % 7) for n in range(100_000)]
    assert len(table.live()) == 100_000
    whole = ask(table, "src/", wait_s=1)
    assert whole.state is State.WAITING
    assert ask(table, "src/5/f0:6-6").state is State.ENDED
    assert sum(len(table.expire(now).ended) for now in range(18)) == 100_001
    assert {request.state for request in requests} == {State.ENDED}
