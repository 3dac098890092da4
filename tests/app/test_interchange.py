"""A line says exactly what its delta is, or it is refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog import chain
from deltalog.app.interchange import Line, line_bytes_max, parse_line, to_line
from deltalog.clock import pack, to_iso
from deltalog.codec import build, erase
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits
from deltalog.errors import DecodeError, UsageError
from tests.strategies import deltas

LIMITS = Limits()
NOON = pack(1_700_000_000_000)


def opaque(body: bytes) -> Delta:
    """A delta of a peer that encodes payloads its own way, or not as msgpack at all."""
    return Line("alice", 1, NOON, NO_DEPS, "", "", body, erased=False).delta(LIMITS)


def fields_of(delta: Delta) -> dict[str, Any]:
    """A line as any JSON reader sees it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    fields: dict[str, Any] = json.loads(to_line(delta), parse_constant=refuse)
    return fields


# ---------------------------------------------------------------------------------------------------------- both ways


@given(deltas())
def test_a_line_gives_back_the_same_bytes(delta: Delta) -> None:
    line = to_line(delta)
    again = parse_line(line, LIMITS).delta(LIMITS)
    assert again == delta
    assert to_line(again) == line


@given(deltas())
def test_an_erased_delta_stays_erased_and_equal(delta: Delta) -> None:
    erased = erase(delta, chain.payload_hash(delta))
    again = parse_line(to_line(erased), LIMITS).delta(LIMITS)
    assert again == erased
    assert again.erased


@given(st.binary(max_size=60))
def test_any_payload_bytes_of_a_peer_come_back(body: bytes) -> None:
    delta = opaque(body)
    assert parse_line(to_line(delta), LIMITS).delta(LIMITS) == delta


@given(deltas())
def test_a_line_is_one_line_of_ascii_within_the_limit(delta: Delta) -> None:
    line = to_line(delta)
    assert line.isascii()
    assert b"\n" not in line
    assert len(line) <= line_bytes_max(LIMITS)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


CARRIED: dict[str, Any] = {
    "none": None,
    "text": "né\N{GRINNING FACE}\0\n",
    "map": {"a": [1, 2.5, {"b": True}]},
    "negative zero": -0.0,
    "the greatest exact integer": 2**53 - 1,
    "small and large floats": [5e-324, 1.7976931348623157e308, 1e22],
}
OPAQUE: dict[str, Any] = {
    "bytes inside": {"a": b"x"},
    "a map with a number as key": {1: "a"},
    "a map with none as key": {None: "a"},
    "a map with a tuple as key": {(1, 2): "a"},
    "a map with true as key": {True: 1},
    "nan": math.nan,
    "infinity inside": [math.inf],
    "an extension type": msgpack.ExtType(5, b"x"),
    "a timestamp": msgpack.Timestamp(1, 2),
    "an integer not every reader takes": 2**53,
    "a negative one": [-(2**53)],
    "the greatest integer": {"a": {"b": 2**64 - 1}},
    "nested deeper than JSON readers go": nested(500),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_json_value_is_readable(name: str) -> None:
    fields = fields_of(build("alice", 1, NOON, CARRIED[name]))
    assert fields["payload"] == CARRIED[name]
    assert not fields.keys() & {"payload_b64", "payload_msgpack_b64", "erased"}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_json_cannot_carry_goes_as_msgpack(name: str) -> None:
    delta = build("alice", 1, NOON, OPAQUE[name])
    if name.startswith("nested"):
        assert parse_line(to_line(delta), LIMITS).delta(LIMITS) == delta
    else:
        assert "payload" not in fields_of(delta)
        assert "payload_msgpack_b64" in fields_of(delta)


def test_bytes_stand_in_base64() -> None:
    assert fields_of(build("alice", 1, NOON, b"\0\xff"))["payload_b64"] == "AP8="


NOT_CANONICAL = {
    "a small integer in nine bytes": b"\xcf" + bytes(7) + b"\x05",
    "a float of four bytes": b"\xca\x3f\x80\x00\x00",
    "a short text with a long header": b"\xdb\0\0\0\x01a",
    "short bytes with a long header": b"\xc6\0\0\0\x01a",
    "a map that names a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "text that is not utf-8": b"\xa1\xff",
    "nothing": b"",
    "two values": b"\x01\x01",
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_another_encoding_of_a_value_keeps_its_bytes(name: str) -> None:
    delta = opaque(NOT_CANONICAL[name])
    assert "payload_msgpack_b64" in fields_of(delta)
    assert parse_line(to_line(delta), LIMITS).delta(LIMITS).payload_bytes == NOT_CANONICAL[name]


def test_a_text_of_escapes_does_not_outgrow_the_limit() -> None:
    delta = build("alice", 1, NOON, "\x01" * (LIMITS.payload_bytes - 5))
    line = to_line(delta)
    assert len(line) <= line_bytes_max(LIMITS)
    assert parse_line(line, LIMITS).delta(LIMITS) == delta


def test_a_timestamp_past_the_year_9999_is_a_number() -> None:
    delta = build("alice", 1, TIMESTAMP_MAX, 1)
    assert fields_of(delta)["time"] == TIMESTAMP_MAX
    assert parse_line(to_line(delta), LIMITS).time == TIMESTAMP_MAX


def test_the_counter_stands_in_the_time() -> None:
    assert fields_of(build("alice", 1, NOON + 7, 1))["time"] == "2023-11-14T22:13:20.00000007Z"


def test_a_delta_made_with_another_timestamp_differs_in_nothing_else() -> None:
    line = parse_line(to_line(build("alice", 2, 5, {"a": 1}, deps={"bob": 3}, kind="k", key="x")), LIMITS)
    assert line.delta(LIMITS, 9) == build("alice", 2, 9, {"a": 1}, deps={"bob": 3}, kind="k", key="x")


# -------------------------------------------------------------------------------------------------------- what is taken

GOOD: dict[str, Any] = {"source": "alice", "seq": 1, "time": to_iso(NOON), "payload": 1}


def parsed(**changes: Any) -> Line:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return parse_line(json.dumps(fields).encode(), LIMITS)


def test_deps_kind_and_key_may_be_left_out() -> None:
    assert parsed().delta(LIMITS) == build("alice", 1, NOON, 1)
    assert parsed(deps={}, kind="", key="") == parsed()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no source": ({"source": ...}, "source is missing"),
    "a source that is a number": ({"source": 1}, "source must be a string, not int"),
    "an empty source": ({"source": ""}, "source must not be empty"),
    "a long source": ({"source": "x" * 256}, "source is 256 bytes; the limit is 255 bytes"),
    "half a character": ({"source": "\ud800"}, "source must be valid Unicode"),
    "no seq": ({"seq": ...}, "seq is missing"),
    "seq 0": ({"seq": 0}, "seq must be an integer from 1"),
    "a seq that is true": ({"seq": True}, "seq must be an integer from 1"),
    "a seq with a point": ({"seq": 1.0}, "seq must be an integer from 1"),
    "a seq of 64 bits": ({"seq": SEQ_MAX + 1}, f"to {SEQ_MAX}"),
    "no time": ({"time": ...}, "time is missing"),
    "a time that is none": ({"time": "yesterday"}, "time is 'yesterday'; it takes ISO 8601"),
    "a time without an offset": ({"time": "2026-01-01T00:00:00"}, "time is '2026-01-01T00:00:00'"),
    "a time that is null": ({"time": None}, "time must be ISO 8601 text or a timestamp's number, not NoneType"),
    "a negative timestamp": ({"time": -1}, "time must be an integer from 0"),
    "a timestamp of 65 bits": ({"time": 2**64}, "time must be an integer from 0"),
    "deps that are a list": ({"deps": []}, "deps must be an object of source to seq, not list"),
    "deps that are null": ({"deps": None}, "deps must be an object of source to seq, not NoneType"),
    "deps on itself": ({"deps": {"alice": 1}}, "deps must not name the delta's own source"),
    "deps with seq 0": ({"deps": {"bob": 0}}, "deps['bob'] must be an integer from 1"),
    "deps on nobody": ({"deps": {"": 1}}, "deps: source must not be empty"),
    "a kind that is null": ({"kind": None}, "kind must be a string, not NoneType"),
    "a long kind": ({"kind": "x" * 256}, "kind is 256 bytes; the limit is 255 bytes"),
    "a key that is a list": ({"key": []}, "key must be a string, not list"),
    "a long key": ({"key": "é" * 513}, "key is 1,026 bytes; the limit is 1,024 bytes"),
    "no payload": ({"payload": ...}, "there must be one of payload, payload_b64"),
    "two payloads": ({"payload_b64": ""}, "not payload and payload_b64"),
    "base64 that is none": ({"payload": ..., "payload_b64": "a b"}, "payload_b64 is not base64"),
    "base64 with a newline behind it": ({"payload": ..., "payload_b64": "AP8=\n"}, "payload_b64 is not base64"),
    "base64 cut short": ({"payload": ..., "payload_b64": "AAA"}, "payload_b64 is not base64"),
    "base64 that is not ASCII": ({"payload": ..., "payload_b64": "é"}, "payload_b64 is not base64"),
    "base64 that is a number": ({"payload": ..., "payload_b64": 1}, "payload_b64 must be base64 text, not int"),
    "an integer of 65 bits": ({"payload": 2**64}, "payload cannot be encoded as msgpack"),
    "half a character inside": ({"payload": {"a": "\udc00"}}, "payload cannot be encoded as msgpack"),
    "a large payload": ({"payload": "x" * (1 << 20)}, "payload is 1,048,581 bytes; the limit is 1,048,576 bytes"),
    "a field nobody knows": ({"signature": ""}, "field 'signature' is not one of the interchange format"),
    "erased with a payload": ({"erased": True}, "erased must be true beside payload_hash_b64"),
    "a hash that is not erased": ({"payload": ..., "payload_hash_b64": "AA=="}, "erased must be true beside"),
    "a hash cut short": (
        {"payload": ..., "payload_hash_b64": "AA==", "erased": True},
        "payload_hash_b64 must be 32 bytes, not 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_named(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(UsageError) as caught:
        parsed(**changes)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


NOT_LINES = {
    "an array": (b"[]", "it is not a JSON object"),
    "a word": (b"nonsense", "it is not JSON"),
    "two objects": (b"{}{}", "it is not JSON"),
    "half an object": (b'{"source": "al', "it is not JSON"),
    "not utf-8": (b'{"source": "\xff"}', "it is not UTF-8 at byte 13"),
    "NaN": (b'{"payload": NaN}', "NaN is no JSON value"),
    "a name twice": (b'{"seq": 1, "seq": 2}', "field 'seq' stands twice"),
    "a name twice inside": (b'{"payload": {"a": 1, "a": 2}}', "field 'a' stands twice"),
    "brackets without end": (b"[" * 100_000, "it is not JSON"),
    "a number without end": (b'{"seq": ' + b"9" * 5000 + b"}", "it is not JSON"),
}


@pytest.mark.parametrize("name", NOT_LINES)
def test_what_is_no_line_is_refused(name: str) -> None:
    data, message = NOT_LINES[name]
    with pytest.raises(UsageError) as caught:
        parse_line(data, LIMITS)
    assert message in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_line_or_a_clear_error(data: bytes) -> None:
    with pytest.raises((UsageError, DecodeError)):
        parse_line(data, LIMITS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(deltas(), st.sampled_from([*GOOD, "deps", "kind", "key", "erased", "payload_b64", "payload_hash_b64"]), JSON)
def test_any_value_in_any_field_gives_a_line_or_a_clear_error(delta: Delta, field: str, value: Any) -> None:
    fields = {**fields_of(delta), field: value}
    try:
        line = parse_line(json.dumps(fields).encode(), LIMITS)
    except (UsageError, DecodeError):
        return
    assert parse_line(to_line(line.delta(LIMITS)), LIMITS).delta(LIMITS) == line.delta(LIMITS)


def test_limits_are_those_given() -> None:
    small = Limits(payload_bytes=10, deps_entries=1)
    with pytest.raises(UsageError, match="payload is 11 bytes; the limit is 10 bytes"):
        parse_line(to_line(build("alice", 1, NOON, "x" * 10)), small)
    with pytest.raises(UsageError, match="deps is 2 entries; the limit is 1 entries"):
        parse_line(to_line(build("alice", 1, NOON, 1, deps={"bob": 1, "carol": 1})), small)
    assert line_bytes_max(small) < line_bytes_max(LIMITS)
