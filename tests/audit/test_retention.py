"""What may go from the trail: never more than a limit says, never the last event."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.keys import Checkpoint, Head
from audit.retention import AuditRetention, floor
from deltalog.errors import UsageError


@given(
    st.integers(1, 400), st.integers(0, 40), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 5000)), st.data()
)
def test_no_more_goes_than_a_limit_asks_for(
    number: int, held: int, step: int, size: int | None, data: st.DataObject
) -> None:
    before = max(0, number - held)
    head = Head(number, number, b"", 10 * number, before, b"", 0, 10 * before)
    points = [Checkpoint(at, at, b"", 10 * at) for at in range(before + 1, number + 1) if at % step == 0]
    old = data.draw(st.integers(0, number))
    kept = AuditRetention(age_s=1, size_bytes=size)
    new = floor(kept, head, points, old)
    assert before <= new <= max(before, number - 1)
    if size is None or head.held_bytes <= size:
        assert new == max(before, min(old, number - 1))
    elif new > max(old, before):
        assert new == number - 1 or 10 * (number - new) <= size or new == points[-1].number
        assert 10 * (number - new + step) > size, "no more than to the checkpoint that is enough"


def test_age_is_told_in_timestamps() -> None:
    assert AuditRetention(age_s=2).oldest_kept(5_000_000_000) == 3_000 << 16
    assert AuditRetention(age_s=9).oldest_kept(5_000_000_000) == 0
    assert AuditRetention(size_bytes=1).oldest_kept(5_000_000_000) == 0


@pytest.mark.parametrize(
    "fields", [{"age_s": -1}, {"size_bytes": "1"}, {"age_s": True}, {"age_s": math.inf}, {"age_s": math.nan}]
)
def test_a_limit_that_is_none_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="retention"):
        AuditRetention(**fields)  # type: ignore[arg-type]
