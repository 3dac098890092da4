"""The buffer: nothing is lost uncounted (I11), order and timestamps hold, gaps say what was dropped."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.buffer import Buffer
from audit.event import TRAIL_ACTIONS, Action, AuditEvent
from deltalog.errors import UsageError
from tests.audit.trails import event

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from([Action.ACQUIRED, Action.RELEASED, Action.DENIED])),
        st.tuples(st.just("put"), st.just(Action.ACQUIRED)),
        st.tuples(st.just("drop"), st.just(Action.WAITING)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("done"), st.just(0)),
        st.tuples(st.just("withdraw"), st.integers(0, 12)),
        st.tuples(st.just("own"), st.just(0)),
        st.tuples(st.just("give up"), st.just(0)),
    ),
    max_size=60,
)


def counted(buffer: Buffer) -> int:
    return buffer.recorded + buffer.dropped.total() + buffer.pending


def act(buffer: Buffer, at: int, step: str, argument: int | Action) -> int:
    """Do one step; return how many events it submits."""
    if step == "push":
        assert isinstance(argument, Action)
        buffer.push(event(at % 7, argument))
        return 1
    if step == "put" and buffer.has_room:
        buffer.put(event(at))
        return 1
    if step == "drop":
        buffer.drop(event(at, Action.WAITING))
        return 1
    if step == "take":
        buffer.take(int(argument))
    elif step == "withdraw":
        buffer.withdraw(int(argument))
    elif step == "own":
        buffer.put_own(AuditEvent(at, Action.STARTED))
    elif step == "give up":
        buffer.give_up()
    return 0


@given(st.integers(1, 8), STEPS)
def test_i11_recorded_and_dropped_and_pending_are_submitted(
    capacity: int, steps: list[tuple[str, int | Action]]
) -> None:
    buffer, gaps = Buffer(capacity), Counter[str]()
    out: list[AuditEvent] = []
    submitted = 0
    for at, (step, argument) in enumerate(steps):
        if step == "done" and buffer.is_writing:
            out += buffer.take(1)
            buffer.done()
        else:
            submitted += act(buffer, at, step, argument)
        assert buffer.submitted == submitted == counted(buffer)
        assert min(buffer.pending, buffer.recorded) >= 0
    while not buffer.idle:
        out += buffer.take(3)
        buffer.done()
    assert buffer.pending == 0
    assert buffer.submitted == counted(buffer)
    assert buffer.recorded == sum(each.action not in TRAIL_ACTIONS for each in out)
    timestamps = [each.timestamp for each in out]
    assert timestamps == sorted(timestamps)
    for each in out:
        if each.action is Action.GAP:
            gaps.update({key: int(value) for key, value in each.metadata.items() if key not in ("first", "last")})
    if "give up" not in dict(steps):
        assert gaps.pop("count", 0) == buffer.dropped.total(), "each drop stands in one gap event"
        assert gaps == {action.value: count for action, count in buffer.dropped.items()}


def test_events_come_out_as_they_went_in() -> None:
    buffer = Buffer(10)
    events = [event(number, lock_id=str(number)) for number in range(1, 6)]
    assert all(map(buffer.push, events))
    assert buffer.take(3) == events[:3]
    assert buffer.take(3) == events[:3], "the same again until they are done"
    buffer.done()
    assert buffer.take(3) == events[3:]


def test_i11_what_was_dropped_stands_where_it_was_dropped() -> None:
    buffer = Buffer(2)
    assert [buffer.push(event(number)) for number in (10, 11, 12, 13)] == [True, True, False, False]
    assert [each.action for each in buffer.take(2)] == [Action.ACQUIRED] * 2
    buffer.done()
    assert buffer.push(event(14, Action.RELEASED))
    gap, after = buffer.take(9)
    assert gap.action is Action.GAP
    assert gap.metadata == {"count": "2", "first": "12", "last": "13", "acquired": "2"}
    assert gap.timestamp == 13
    assert after.action is Action.RELEASED


def test_an_overload_makes_one_gap_and_not_many() -> None:
    buffer = Buffer(8)
    for number in range(9):
        buffer.push(event(number))
    buffer.take(1)
    buffer.done()
    assert not buffer.push(event(20)), "there is room, but the gap stays open until three quarters"
    assert buffer.has_room, "what must not be dropped finds it"
    buffer.take(2)
    buffer.done()
    assert buffer.push(event(21))
    assert [each.action for each in buffer.take(20)].count(Action.GAP) == 1


def test_a_gap_comes_out_though_nothing_follows_it() -> None:
    buffer = Buffer(1)
    buffer.push(event(1))
    buffer.push(event(2))
    buffer.take(1)
    buffer.done()
    assert not buffer.idle
    (gap,) = buffer.take(5)
    assert gap.action is Action.GAP
    buffer.done()
    assert buffer.idle


def test_a_timestamp_never_goes_back() -> None:
    buffer = Buffer(5, timestamp=100)
    buffer.push(event(90, holder_id="late"))
    buffer.push(event(110))
    assert [(each.timestamp, each.holder_id) for each in buffer.take(5)] == [(100, "late"), (110, "a")]


def test_an_event_is_withdrawn_only_before_it_is_taken() -> None:
    buffer = Buffer(5)
    ordinals = [buffer.put(event(number, lock_id=str(number))) for number in (1, 2, 3)]
    buffer.take(1)
    assert [buffer.withdraw(ordinal) for ordinal in ordinals[:2]] == [False, True]
    assert not buffer.withdraw(ordinals[1]), "once"
    buffer.done()
    assert [each.lock_id for each in buffer.take(5) if each.action is not Action.GAP] == ["3"]
    assert buffer.stored == 1
    buffer.done()
    assert buffer.stored == buffer.ordinal


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True])
def test_a_capacity_that_is_none_is_refused(capacity: object) -> None:
    with pytest.raises(UsageError, match="capacity"):
        Buffer(capacity)  # type: ignore[arg-type]
