"""Fencing tokens: strictly increasing over any number of starts and crashes, and never above what is durable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.tokens import TOKEN_MAX, Tokens, TokensExhausted
from deltalog.errors import UsageError


@given(st.lists(st.lists(st.sampled_from(["take", "reserve", "reserve, then crash"]), max_size=30), max_size=8))
def test_i12_tokens_increase_over_starts_and_crashes(starts: list[list[str]]) -> None:
    durable, last = 0, 0
    for steps in starts:
        tokens = Tokens(durable, block_size=4)
        assert tokens.first > last
        for step in steps:
            upto = tokens.wanted()
            if step == "take" and tokens.left:
                token = tokens.take()
                assert last < token <= durable
                last = token
            elif step != "take" and upto is not None:
                durable = upto
                if step != "reserve":
                    break
                tokens.extend(upto)


def test_the_next_block_is_wanted_at_half() -> None:
    tokens = Tokens(10, block_size=10)
    assert tokens.wanted() == 20
    tokens.extend(20)
    assert [tokens.take() for _ in range(4)] == [11, 12, 13, 14]
    assert tokens.wanted() is None
    assert tokens.take() == 15
    assert tokens.wanted() == 30


def test_what_is_not_reserved_is_not_given() -> None:
    tokens = Tokens(0)
    with pytest.raises(TokensExhausted):
        tokens.take()
    tokens.extend(1)
    assert tokens.take() == 1
    with pytest.raises(TokensExhausted, match="up to 1"):
        tokens.take()


def test_the_end_of_the_numbers() -> None:
    tokens = Tokens(TOKEN_MAX - 1)
    assert tokens.wanted() == TOKEN_MAX
    tokens.extend(TOKEN_MAX)
    assert tokens.take() == TOKEN_MAX
    assert tokens.wanted() is None


@pytest.mark.parametrize("upto", [0, 5, TOKEN_MAX + 1, 7.0])
def test_a_reservation_only_grows(upto: int) -> None:
    tokens = Tokens(5)
    with pytest.raises(UsageError, match="upto"):
        tokens.extend(upto)


@pytest.mark.parametrize(("before", "block"), [(-1, 1), (TOKEN_MAX, 1), ("1", 1), (0, 0), (0, 1.5)])
def test_bad_arguments_are_refused(before: int, block: int) -> None:
    with pytest.raises(UsageError):
        Tokens(before, block)
