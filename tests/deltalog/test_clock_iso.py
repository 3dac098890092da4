"""Timestamps as ISO 8601 text: exact both ways, sorted, and clear about what is no time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog.clock import COUNTER_MAX, TIMESTAMP_MAX, from_iso, pack, to_iso, unpack
from deltalog.errors import UsageError

NOW_MS = 1_800_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
YEAR_9999_END = pack((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - EPOCH) // MS + 999, COUNTER_MAX)

PRINTABLE = st.integers(0, YEAR_9999_END)


@given(PRINTABLE)
@example(0)
@example(COUNTER_MAX)
@example(YEAR_9999_END)
@example(pack(951_782_400_000))  # 2000-02-29
def test_from_iso_reverses_to_iso(timestamp: int) -> None:
    assert from_iso(to_iso(timestamp)) == timestamp


@given(PRINTABLE, PRINTABLE | st.integers(-3, 3))
def test_texts_sort_as_their_timestamps_but_a_bare_millisecond_comes_last_in_its_own(a: int, b: int) -> None:
    b = min(max(a + b, 0), YEAR_9999_END) if -3 <= b <= 3 else b

    def rank(timestamp: int) -> tuple[int, int]:
        ms, counter = unpack(timestamp)
        return ms, counter or COUNTER_MAX + 1

    assert (to_iso(a) < to_iso(b)) == (rank(a) < rank(b))


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (pack(0), "1970-01-01T00:00:00.000Z"),
        (pack(123), "1970-01-01T00:00:00.123Z"),
        (pack(123, 42), "1970-01-01T00:00:00.12300042Z"),
        (pack(0, COUNTER_MAX), "1970-01-01T00:00:00.00065535Z"),
        (pack(NOW_MS), "2027-01-15T08:00:00.000Z"),
        (YEAR_9999_END, "9999-12-31T23:59:59.99965535Z"),
    ],
)
def test_to_iso_writes(timestamp: int, text: str) -> None:
    assert to_iso(timestamp) == text


@pytest.mark.parametrize(
    ("text", "timestamp"),
    [
        ("1970-01-01T00:00:00Z", pack(0)),
        ("1970-01-01T00:00:00+00:00", pack(0)),
        ("1970-01-01t00:00:00z", pack(0)),
        ("1970-01-01 00:00:00-00:00", pack(0)),
        ("1970-01-01T01:00:00+01:00", pack(0)),
        ("1970-01-01T01:30:00.5+0130", pack(500)),
        ("1969-12-31T19:00:00.12-05", pack(120)),
        ("1970-01-01T00:00:00,123Z", pack(123)),
        ("1970-01-01T00:00:00.1239Z", pack(123)),
        ("1970-01-01T00:00:00.123999Z", pack(123)),
        ("1970-01-01T00:00:00.123456789Z", pack(123)),
        ("1970-01-01T00:00:00.1230004Z", pack(123)),
        ("1970-01-01T00:00:00.12300000Z", pack(123)),
        ("1970-01-01T00:00:00.12365535Z", pack(123, COUNTER_MAX)),
        ("1970-01-01T00:00:00.12365536Z", pack(123)),
        ("1970-01-01T05:45:00.12300042+05:45", pack(123, 42)),
    ],
)
def test_from_iso_reads(text: str, timestamp: int) -> None:
    assert from_iso(text) == timestamp


@given(
    st.datetimes(min_value=datetime(1970, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001  # zones come next
    st.timezones() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_from_iso_reads_what_datetime_writes(moment: datetime, zone: Any) -> None:
    # Whole minutes of offset only: ISO 8601 knows no others (datetime writes seconds for local mean times before 1972).
    aware = moment.replace(tzinfo=zone)
    offset = aware.utcoffset()
    assert offset is not None
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset // timedelta(minutes=1))))
    expected = (aware - EPOCH) // MS
    assert from_iso(aware.isoformat()) == pack(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1970-01-01",
        "1970-01-01T00:00:00",
        "1970-01-01T00:00Z",
        "1970-01-01T00:00:00.Z",
        "1970-01-01T00:00:00.1234567890Z",
        "1970-01-01T00:00:00Z\n",
        " 1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00+24:00",
        "1970-01-01T00:00:00+00:60",
        "1970-01-01T00:00:00+1",
        "1970-01-01T00:00:60Z",
        "1970-01-01T25:00:00Z",
        "1970-02-29T00:00:00Z",
        "1970-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "\u0661970-01-01T00:00:00Z",
        "1970-01-01T00:00:00.\u0661Z",
        "1970-01-01T00:00:00+0\u0661:00",
        "1969-12-31T23:59:59.999Z",
        "1970-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-00:01",
        "9" * 100_000,
    ],
)
def test_from_iso_refuses_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--until is ") as caught:
        from_iso(text, field="--until")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", [0, None, b"1970-01-01T00:00:00Z"])
def test_from_iso_refuses_what_is_no_text(text: Any) -> None:
    with pytest.raises(UsageError, match="^time must be ISO 8601 text"):
        from_iso(text)


@given(st.text(alphabet="0123456789-+:.,TZtz ", max_size=40))
def test_from_iso_gives_a_timestamp_or_a_usage_error(text: str) -> None:
    try:
        timestamp = from_iso(text)
    except UsageError:
        return
    assert from_iso(to_iso(timestamp)) == timestamp


@pytest.mark.parametrize("timestamp", [YEAR_9999_END + 1, TIMESTAMP_MAX])
def test_to_iso_refuses_past_the_year_9999(timestamp: int) -> None:
    with pytest.raises(UsageError, match="after the year 9999"):
        to_iso(timestamp)
