"""The hybrid logical clock: packing, monotony under every kind of wall clock, and drift."""

from __future__ import annotations

import itertools
import random
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog.clock import (
    COUNTER_MAX,
    DRIFT_MS_DEFAULT,
    MS_MAX,
    TIMESTAMP_MAX,
    Clock,
    pack,
    to_iso,
    unpack,
)
from deltalog.errors import ClockDrift, DeltaLogError, UsageError
from tests.conftest import Rounds

NS_PER_MS = 1_000_000
NOW_MS = 1_800_000_000_000
SECOND_MS, HOUR_MS, DAY_MS = 1_000, 3_600_000, 86_400_000
YEAR_MS = 365 * DAY_MS


@attrs.define
class Wall:
    """A wall clock that goes where a test sets it."""

    ns: int = NOW_MS * NS_PER_MS

    def __call__(self) -> int:
        return self.ns

    @property
    def ms(self) -> int:
        return self.ns // NS_PER_MS

    def jump(self, ms: int) -> None:
        self.ns += ms * NS_PER_MS


# ------------------------------------------------------------------------------------------------------------ packing


@given(st.integers(0, MS_MAX), st.integers(0, COUNTER_MAX))
@example(MS_MAX, COUNTER_MAX)
@example(0, 0)
def test_unpack_reverses_pack(ms: int, counter: int) -> None:
    timestamp = pack(ms, counter)
    assert 0 <= timestamp <= TIMESTAMP_MAX
    assert unpack(timestamp) == (ms, counter)


@given(
    st.tuples(st.integers(0, MS_MAX), st.integers(0, COUNTER_MAX)),
    st.tuples(st.integers(0, MS_MAX), st.integers(0, COUNTER_MAX)),
)
def test_timestamps_sort_as_milliseconds_then_counter(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (pack(*a) < pack(*b)) == (a < b)


def test_the_top_of_48_and_16_bits_is_the_top_of_64() -> None:
    assert pack(MS_MAX, COUNTER_MAX) == TIMESTAMP_MAX == 2**64 - 1
    assert pack(MS_MAX, COUNTER_MAX).to_bytes(8, "big") == b"\xff" * 8


@pytest.mark.parametrize(
    ("ms", "counter", "field"),
    [(-1, 0, "ms"), (MS_MAX + 1, 0, "ms"), (0, -1, "counter"), (0, COUNTER_MAX + 1, "counter")],
)
def test_pack_refuses_what_does_not_fit(ms: int, counter: int, field: str) -> None:
    with pytest.raises(UsageError, match=f"^{field} is "):
        pack(ms, counter)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_what_does_not_fit_64_bits_is_no_timestamp(value: int) -> None:
    clock = Clock(wall_ns=Wall())
    for refused in (unpack, to_iso, clock.check, clock.observe):
        with pytest.raises(UsageError, match="^timestamp is "):
            refused(value)
    with pytest.raises(UsageError, match="^last is "):
        Clock(last=value)


@pytest.mark.parametrize("value", [1.0, "1", None, True])
def test_what_is_no_int_is_no_timestamp(value: Any) -> None:
    clock = Clock(wall_ns=Wall())
    for refused in (unpack, to_iso, clock.check, clock.observe):
        with pytest.raises(UsageError, match="^timestamp must be an int"):
            refused(value)


@pytest.mark.parametrize("drift_ms", [-1, 1.5, None])
def test_a_drift_bound_is_an_int_from_0(drift_ms: Any) -> None:
    with pytest.raises(UsageError, match="^drift_ms is "):
        Clock(drift_ms=drift_ms)


# -------------------------------------------------------------------------------------------------------------- ticking


def test_a_tick_is_the_wall_clocks_millisecond() -> None:
    assert unpack(Clock(wall_ns=Wall()).tick()) == (NOW_MS, 0)


def test_ticks_within_a_millisecond_count() -> None:
    wall = Wall()
    clock = Clock(wall_ns=wall)
    first = [clock.tick() for _ in range(3)]
    wall.ns += NS_PER_MS - 1
    assert [unpack(timestamp) for timestamp in (*first, clock.tick())] == [(NOW_MS, counter) for counter in range(4)]
    wall.ns += 1
    assert unpack(clock.tick()) == (NOW_MS + 1, 0)


def test_the_counter_carries_into_the_milliseconds() -> None:
    clock = Clock(wall_ns=Wall(), last=pack(NOW_MS, COUNTER_MAX - 1))
    assert [unpack(clock.tick()) for _ in range(3)] == [(NOW_MS, COUNTER_MAX), (NOW_MS + 1, 0), (NOW_MS + 1, 1)]


def test_the_wall_takes_over_again_after_a_carry() -> None:
    wall = Wall()
    clock = Clock(wall_ns=wall)
    for _ in range(COUNTER_MAX + 10):
        clock.tick()
    assert unpack(clock.last) == (NOW_MS + 1, 8)
    wall.jump(1)
    assert unpack(clock.tick()) == (NOW_MS + 1, 9)
    wall.jump(1)
    assert unpack(clock.tick()) == (NOW_MS + 2, 0)


@pytest.mark.parametrize("ms", [-SECOND_MS, -HOUR_MS, -DAY_MS, -10 * YEAR_MS, -(NOW_MS + YEAR_MS)])
def test_i6_a_wall_clock_that_jumps_back_never_takes_timestamps_back(ms: int) -> None:
    wall = Wall()
    clock = Clock(wall_ns=wall)
    before = clock.tick()
    wall.jump(ms)
    assert [clock.tick() for _ in range(3)] == [before + 1, before + 2, before + 3]
    wall.jump(-ms + 1)
    assert unpack(clock.tick()) == (NOW_MS + 1, 0)


@pytest.mark.parametrize("ms", [-SECOND_MS, -HOUR_MS, -10 * YEAR_MS])
def test_i6_not_across_a_restart_either(ms: int) -> None:
    wall = Wall()
    before = Clock(wall_ns=wall).tick()
    wall.jump(ms)
    assert Clock(last=before, wall_ns=wall).tick() == before + 1


def test_a_day_forward_and_back_stays_ahead_until_the_wall_has_caught_up() -> None:
    wall = Wall()
    clock = Clock(wall_ns=wall)
    clock.tick()
    wall.jump(DAY_MS)
    ahead = clock.tick()
    wall.jump(-DAY_MS)
    assert unpack(ahead) == (NOW_MS + DAY_MS, 0)
    assert clock.tick() == ahead + 1
    with pytest.raises(ClockDrift):
        Clock(wall_ns=wall).observe(ahead)
    wall.jump(DAY_MS + 1)
    assert unpack(clock.tick()) == (NOW_MS + DAY_MS + 1, 0)


def test_a_wall_clock_before_1970_ticks_from_1() -> None:
    clock = Clock(wall_ns=lambda: -1)
    assert [clock.tick(), clock.tick()] == [1, 2]


# ------------------------------------------------------------------------------------------------------ the very top


def test_the_last_timestamp_is_given_out_and_none_after_it() -> None:
    clock = Clock(last=TIMESTAMP_MAX - 1, wall_ns=Wall())
    assert clock.tick() == TIMESTAMP_MAX
    for _ in range(2):
        with pytest.raises(DeltaLogError, match="no timestamp after 18446744073709551615 fits 64 bits"):
            clock.tick()
    assert clock.last == TIMESTAMP_MAX


def test_the_last_millisecond_ticks_and_the_one_after_it_does_not() -> None:
    wall = Wall(ns=MS_MAX * NS_PER_MS)
    clock = Clock(wall_ns=wall)
    assert unpack(clock.tick()) == (MS_MAX, 0)
    wall.jump(1)
    with pytest.raises(DeltaLogError, match="fits 64 bits"):
        clock.tick()
    assert unpack(clock.last) == (MS_MAX, 0)


def test_a_wall_clock_past_the_top_stops_nothing_once_it_is_set_right() -> None:
    wall = Wall(ns=(MS_MAX + 1) * NS_PER_MS)
    clock = Clock(wall_ns=wall)
    with pytest.raises(DeltaLogError, match="set the wall clock right"):
        clock.tick()
    wall.ns = NOW_MS * NS_PER_MS
    assert unpack(clock.tick()) == (NOW_MS, 0)


# ---------------------------------------------------------------------------------------------------- observing others


def test_i6_a_tick_after_an_observed_timestamp_is_greater() -> None:
    clock = Clock(wall_ns=Wall())
    remote = pack(NOW_MS + DRIFT_MS_DEFAULT, COUNTER_MAX)
    clock.observe(remote)
    assert clock.last == remote
    assert unpack(clock.tick()) == (NOW_MS + DRIFT_MS_DEFAULT + 1, 0)


def test_a_timestamp_from_the_past_changes_nothing() -> None:
    clock = Clock(wall_ns=Wall())
    ticked = clock.tick()
    clock.observe(0)
    clock.observe(pack(NOW_MS - YEAR_MS))
    assert clock.last == ticked


@pytest.mark.parametrize("drift_ms", [0, 1, SECOND_MS, DRIFT_MS_DEFAULT])
def test_the_drift_bound_is_exact_and_a_refusal_leaves_the_clock_unchanged(drift_ms: int) -> None:
    clock = Clock(wall_ns=Wall(), drift_ms=drift_ms)
    ticked = clock.tick()
    too_far = pack(NOW_MS + drift_ms + 1)
    for refuses in (clock.check, clock.observe):
        with pytest.raises(ClockDrift) as caught:
            refuses(too_far)
        assert (caught.value.ahead_ms, caught.value.bound_ms) == (drift_ms + 1, drift_ms)
    assert clock.last == ticked
    clock.check(too_far - 1)
    assert clock.last == ticked
    clock.observe(too_far - 1)
    assert clock.last == too_far - 1


@given(st.integers(0, MS_MAX), st.integers(0, DAY_MS))
@example(MS_MAX, DAY_MS)
def test_the_latest_timestamp_is_the_last_that_passes(ms: int, drift_ms: int) -> None:
    clock = Clock(wall_ns=Wall(ms * NS_PER_MS), drift_ms=drift_ms)
    latest = clock.latest()
    clock.check(latest)
    if latest < TIMESTAMP_MAX:
        with pytest.raises(ClockDrift):
            clock.check(latest + 1)


def test_the_drift_is_measured_from_the_wall_not_from_what_the_clock_has_reached() -> None:
    wall = Wall()
    clock = Clock(wall_ns=wall)
    clock.observe(pack(NOW_MS + DRIFT_MS_DEFAULT))
    with pytest.raises(ClockDrift):
        clock.observe(pack(NOW_MS + DRIFT_MS_DEFAULT + 1))
    wall.jump(-HOUR_MS)
    with pytest.raises(ClockDrift):
        clock.check(clock.last)


# ----------------------------------------------------------------------------------- a seeded programme (1,000 seeds)

JUMPS_MS = [sign * ms for sign in (1, -1) for ms in (1, SECOND_MS, HOUR_MS, DAY_MS, YEAR_MS, 10 * YEAR_MS)]


@attrs.define
class NaiveClock:
    """The clock as its definition says it, without the short cut within a millisecond."""

    last: int
    wall: Wall

    def tick(self) -> int:
        self.last = max(self.wall.ms << 16, self.last + 1)
        return self.last


def run_seed(seed: int) -> list[int]:
    """A life of one node under a wall clock that does what it likes; returns every timestamp it gave out."""
    rng = random.Random(seed)
    wall = Wall(ns=rng.randrange(NOW_MS) * NS_PER_MS)
    clock = Clock(wall_ns=wall, drift_ms=rng.choice([0, SECOND_MS, DRIFT_MS_DEFAULT]))
    naive = NaiveClock(last=0, wall=wall)
    ticked: list[int] = []
    for _ in range(60):
        match rng.choice(["tick", "burst", "run", "creep", "jump", "observe", "overflow", "restart"]):
            case "tick":
                ticked.append(clock.tick())
                assert ticked[-1] == naive.tick(), seed
            case "burst":
                for _ in range(rng.randrange(50)):
                    ticked.append(clock.tick())
                    assert ticked[-1] == naive.tick(), seed
            case "run":
                wall.ns += rng.randrange(10 * NS_PER_MS)
            case "creep":
                wall.ns -= rng.randrange(3 * NS_PER_MS)
            case "jump":
                wall.jump(rng.choice(JUMPS_MS))
            case "observe":
                remote = max(0, (wall.ms + rng.choice(JUMPS_MS)) << 16 | rng.randrange(COUNTER_MAX + 1))
                observe(clock, naive, remote, seed)
            case "overflow":
                near = max(0, wall.ms) << 16 | (COUNTER_MAX - rng.randrange(3))
                observe(clock, naive, near, seed)
            case "restart":
                clock = Clock(last=clock.last, drift_ms=clock.drift_ms, wall_ns=wall)
    return ticked


def observe(clock: Clock, naive: NaiveClock, remote: int, seed: int) -> None:
    before = clock.last
    too_far = (remote >> 16) - clock.wall_ns() // NS_PER_MS > clock.drift_ms
    try:
        clock.observe(remote)
    except ClockDrift:
        assert too_far, seed
        assert clock.last == before, seed
    else:
        assert not too_far, seed
        naive.last = max(naive.last, remote)
        assert clock.last == naive.last, seed


def test_i6_t10_timestamps_strictly_increase_whatever_the_wall_clock_does(rounds: Rounds) -> None:
    for seed in range(rounds(1_000, nightly=20_000)):
        ticked = run_seed(seed)
        assert all(earlier < later for earlier, later in itertools.pairwise(ticked)), seed


def test_t10_nodes_with_skewed_clocks_keep_causal_order(rounds: Rounds) -> None:
    """Three nodes hand their latest timestamp round: what is stamped after a receipt is greater than what came."""
    for seed in range(rounds(100, nightly=2_000)):
        rng = random.Random(seed)
        walls = [Wall(ns=(NOW_MS + rng.randrange(-20_000, 20_000)) * NS_PER_MS) for _ in range(3)]
        clocks = [Clock(wall_ns=wall) for wall in walls]
        for _ in range(50):
            here, there = rng.sample(range(3), 2)
            walls[here].ns += rng.randrange(2 * NS_PER_MS)
            sent = clocks[there].tick()
            clocks[here].observe(sent)
            assert clocks[here].tick() > sent, seed
