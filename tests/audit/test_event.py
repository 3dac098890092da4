"""Audit events: checked when made, one encoding each, and nothing else decodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import event as events
from audit.event import Action, AuditEvent, decode, encode, timestamp_of
from deltalog.errors import DecodeError, LimitExceeded, UsageError

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
EVENTS = st.builds(
    AuditEvent,
    timestamp=st.integers(0, 2**64 - 1),
    action=st.sampled_from(Action),
    target=TEXTS,
    holder_id=TEXTS,
    holder_name=TEXTS,
    lock_id=TEXTS,
    token=st.integers(0, 2**63 - 1),
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=5),
)


@given(EVENTS)
def test_one_encoding_that_decodes_to_the_same(event: AuditEvent) -> None:
    data = encode(event)
    assert decode(data) == event
    assert encode(decode(data)) == data
    assert timestamp_of(data) == event.timestamp


@given(EVENTS, st.data())
def test_other_bytes_are_refused_or_are_another_event(event: AuditEvent, data: st.DataObject) -> None:
    encoded = bytearray(encode(event))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(encoded))
    except DecodeError:
        return
    assert other != event
    assert encode(other) == bytes(encoded), "one event has one encoding"


@given(EVENTS, st.integers(1, 40))
def test_cut_or_longer_bytes_are_refused(event: AuditEvent, count: int) -> None:
    data = encode(event)
    with pytest.raises(DecodeError):
        decode(data[:-count])
    with pytest.raises(DecodeError):
        decode(data + bytes(count))


@given(st.binary(max_size=80))
def test_any_bytes_decode_or_raise_decode_error(data: bytes) -> None:
    try:
        event = decode(data)
    except DecodeError:
        return
    assert encode(event) == data


def test_the_order_of_metadata_does_not_count() -> None:
    one = AuditEvent(1, Action.GAP, metadata={"b": "2", "a": "1"})
    other = AuditEvent(1, Action.GAP, metadata={"a": "1", "b": "2"})
    assert encode(one) == encode(other)
    assert hash(one) == hash(other)


def test_metadata_is_a_copy_that_cannot_change() -> None:
    given_ = {"a": "1"}
    event = AuditEvent(1, Action.GAP, metadata=given_)
    given_["a"] = "2"
    assert event.metadata == {"a": "1"}
    with pytest.raises(TypeError):
        event.metadata["a"] = "2"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 2**64}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"token": -1}, "token"),
        ({"token": 2**63}, "token"),
        ({"action": "acquired"}, "action"),
        ({"target": 1}, "target"),
        ({"target": "x" * 8193}, "target"),
        ({"target": "é" * 4097}, "target"),
        ({"holder_id": "x" * 256}, "holder_id"),
        ({"holder_name": "\ud800"}, "holder_name"),
        ({"lock_id": None}, "lock_id"),
        ({"metadata": {"a": 1}}, "metadata value"),
        ({"metadata": {1: "a"}}, "metadata key"),
        ({"metadata": {str(n): "" for n in range(33)}}, "metadata"),
        ({"metadata": {"k" * 257: ""}}, "metadata key"),
        ({"metadata": {"k": "v" * 1025}}, "metadata value"),
        ({"metadata": []}, "metadata"),
    ],
)
def test_what_cannot_be_stored_is_refused_naming_the_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        AuditEvent(**({"timestamp": 1, "action": Action.ACQUIRED} | fields))  # type: ignore[arg-type]


def test_the_limits_are_inclusive() -> None:
    texts = {"holder_id": "x" * 255, "holder_name": "é" * 127, "lock_id": "y" * 255, "target": "é" * 4096}
    metadata = {f"{n:0256}": "v" * 1024 for n in range(32)}
    event = AuditEvent(2**64 - 1, Action.GAP, token=2**63 - 1, metadata=metadata, **texts)
    assert decode(encode(event)) == event
    with pytest.raises(LimitExceeded):
        AuditEvent(1, Action.GAP, holder_name="é" * 128)


def test_every_action_has_a_number_of_its_own() -> None:
    assert set(events._CODES) == set(Action)
    assert len(set(events._CODES.values())) == len(Action)
