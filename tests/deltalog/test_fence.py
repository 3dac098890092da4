"""The guard: no token below one seen passes, whatever it forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import StaleToken, UsageError
from deltalog.fence import TOKEN_MAX, Guard


def test_i12_a_token_below_the_highest_seen_is_refused() -> None:
    guard = Guard()
    guard.check("a", 5)
    guard.check("a", 5)
    guard.check("b", 3)
    with pytest.raises(StaleToken) as refused:
        guard.check("a", 4)
    assert (refused.value.target, refused.value.token, refused.value.seen) == ("a", 4, 5)
    assert not refused.value.retryable
    assert guard.highest("a") == 5


def test_no_token_of_an_earlier_start_passes() -> None:
    guard = Guard(floor=1001)
    with pytest.raises(StaleToken):
        guard.check("a", 1000)
    guard.check("a", 1001)
    guard.raise_floor(2000)
    guard.raise_floor(1500)
    with pytest.raises(StaleToken):
        guard.check("a", 1999)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 50)), max_size=80), st.integers(1, 5))
def test_i12_what_is_forgotten_lets_no_stale_token_through(checks: list[tuple[str, int]], bound: int) -> None:
    guard = Guard(targets_max=bound)
    seen: dict[str, int] = {}
    for target, token in checks:
        try:
            guard.check(target, token)
        except StaleToken:
            continue
        assert token >= seen.get(target, 0)
        seen[target] = token
        assert len(guard) <= bound


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), max_size=40))
def test_with_room_only_stale_tokens_are_refused(checks: list[tuple[str, int]]) -> None:
    guard = Guard()
    seen: dict[str, int] = {}
    for target, token in checks:
        if token < seen.get(target, 0):
            with pytest.raises(StaleToken):
                guard.check(target, token)
        else:
            guard.check(target, token)
            seen[target] = token


@pytest.mark.parametrize("token", [0, -1, TOKEN_MAX + 1, 1.0, True, "1", None])
def test_what_is_no_token_is_refused(token: int) -> None:
    with pytest.raises(UsageError, match="token"):
        Guard().check("a", token)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="target"):
        Guard().check(b"a", 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="floor"):
        Guard(floor=-1)
    with pytest.raises(UsageError, match="targets_max"):
        Guard(targets_max=0)
