"""Every limit is refused by name, both ways, before anything has changed; what is just within it is taken."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from deltalog.codec import Encoder, build, decode
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits
from deltalog.errors import DecodeError, LimitExceeded, UsageError
from tests.deltalog.test_codec import encode

SMALL = Limits(payload_bytes=10, key_bytes=8, kind_bytes=6, source_bytes=5, deps_entries=2)
JUST: dict[str, Any] = {
    "source": "alice",
    "payload": b"x" * 8,
    "key": "k" * 8,
    "kind": "t" * 6,
    "deps": {"b": 1, "c": 2},
}


def build_small(**changes: Any) -> Delta:
    return build(**{"seq": 1, "timestamp": 5, "limits": SMALL, **JUST, **changes})


def test_what_is_just_within_every_limit_is_taken_both_ways() -> None:
    delta = build_small()
    assert decode("alice", delta.record, SMALL) == delta


@pytest.mark.parametrize(
    ("changes", "field", "size", "limit", "unit"),
    [
        ({"payload": b"x" * 9}, "payload", 11, 10, "bytes"),
        ({"key": "k" * 9}, "key", 9, 8, "bytes"),
        ({"kind": "t" * 7}, "kind", 7, 6, "bytes"),
        ({"source": "alice!"}, "source", 6, 5, "bytes"),
        ({"deps": {"b": 1, "c": 2, "d": 3}}, "deps", 3, 2, "entries"),
        ({"deps": {"b" * 6: 1}}, "source", 6, 5, "bytes"),
    ],
)
def test_what_is_over_a_limit_is_refused_by_name(
    changes: dict[str, Any], field: str, size: int, limit: int, unit: str
) -> None:
    with pytest.raises(LimitExceeded, match=f"^{field} is {size} {unit}; the limit is {limit} {unit}$") as caught:
        build_small(**changes)
    assert (caught.value.field, caught.value.size) == (field, size)
    assert (caught.value.limit, caught.value.unit) == (limit, unit)


@pytest.mark.parametrize("field", ["payload", "key", "kind", "deps"])
def test_a_record_over_a_limit_is_refused_by_name(field: str) -> None:
    large: dict[str, Any] = {"payload": b"x" * 9, "key": "k" * 9, "kind": "t" * 7, "deps": {"b": 1, "c": 2, "d": 3}}
    record = build_small(**{field: large[field], "limits": Limits()}).record
    with pytest.raises(DecodeError, match=f"^{field}: .* the limit is {len(JUST[field])}|^payload: .* limit is 10"):
        decode("alice", record, SMALL)
    with pytest.raises(DecodeError, match="^deps: entries must ascend by source, each a valid source id"):
        decode("alice", build("alice", 1, 5, 0, deps={"b" * 6: 1}).record, SMALL)


@pytest.mark.parametrize(
    "refused",
    [
        {"payload": b"x" * 9},
        {"payload": {1, 2}},
        {"key": "k" * 9},
        {"key": None},
        {"key": ["k"]},
        {"kind": "t" * 7},
        {"kind": 5},
        {"kind": "\ud800"},
    ],
)
def test_what_is_refused_takes_no_timestamp_and_leaves_the_encoder_as_it_was(refused: dict[str, Any]) -> None:
    taken: list[int] = []
    encoder = Encoder(SMALL)

    def timestamp() -> int:
        taken.append(1)
        return 5

    fields: dict[str, Any] = {"kind": "t", "key": "k", "payload": 1}
    for _ in range(2):
        with pytest.raises(UsageError, match=f"^{next(iter(refused))} "):
            encoder.encode("alice", 1, timestamp, NO_DEPS, **{**fields, **refused})
        assert not taken
    delta = encoder.encode("alice", 1, timestamp, NO_DEPS, **fields)
    assert len(taken) == 1
    assert delta == build("alice", 1, 5, 1, kind="t", key="k")


def test_a_refused_payload_does_not_keep_its_memory() -> None:
    encoder = Encoder()
    encode(1, encoder=encoder)
    large = b"x" * (32 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded):
            encode(large, encoder=encoder)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 << 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq": 0}, "seq must be an integer from 1 to 9223372036854775807, not 0"),
        ({"seq": SEQ_MAX + 1}, "seq must be an integer"),
        ({"seq": True}, "seq must be an integer"),
        ({"seq": 1.0}, "seq must be an integer"),
        ({"timestamp": -1}, "timestamp must be an integer from 0 to 18446744073709551615, not -1"),
        ({"timestamp": TIMESTAMP_MAX + 1}, "timestamp must be an integer"),
        ({"source": ""}, "source must not be empty"),
        ({"source": b"alice"}, "source must be a string, not bytes"),
        ({"source": "\ud800"}, "source must be valid Unicode"),
        ({"deps": [("bob", 1)]}, "deps must be a mapping of source to seq, not list"),
        ({"deps": {"bob": 0}}, "deps['bob'] must be an integer from 1"),
        ({"deps": {"bob": SEQ_MAX + 1}}, "deps['bob'] must be an integer from 1"),
        ({"deps": {"": 1}}, "source must not be empty"),
        ({"deps": {5: 1}}, "source must be a string, not int"),
        ({"deps": {"alice": 1}}, "deps must not name the delta's own source"),
    ],
)
def test_a_wrong_value_from_outside_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(**{"source": "alice", "seq": 1, "timestamp": 5, "payload": None, **changes})
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) <= 300


def test_the_ends_of_every_range_are_taken() -> None:
    for seq, timestamp in [(1, 0), (SEQ_MAX, TIMESTAMP_MAX)]:
        delta = build("alice", seq, timestamp, None, deps={"bob": seq})
        assert decode("alice", delta.record) == delta
