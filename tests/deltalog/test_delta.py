"""A delta cannot be changed, can be copied, and gives its payload only when asked; limits name what they refuse."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251  # its own bytes, to see that slots survive
import struct
from collections.abc import Callable
from itertools import count, islice
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given

from deltalog.codec import build, erase
from deltalog.delta import (
    NO_DEPS,
    Delta,
    DeltaFields,
    Limits,
    check_source,
    decode_payload,
    text_bytes,
)
from deltalog.errors import DecodeError, LimitExceeded, UsageError
from deltalog.version import Dot
from tests.strategies import as_read, deltas, payloads

FIELDS = [field.name for field in attrs.fields(DeltaFields)]
COPIES: dict[str, Callable[[Delta], Delta]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda delta: pickle.loads(pickle.dumps(delta)),
}


def sample(**changes: Any) -> Delta:
    fields = {"source": "alice", "seq": 7, "timestamp": 5, "payload": {"at": 1}, "deps": {"bob": 2}, "kind": "edit"}
    return build(**{**fields, **changes})


# ------------------------------------------------------------------------------------------------------- immutability


@pytest.mark.parametrize("name", [*FIELDS, "payload", "unheard_of", "__class__"])
def test_nothing_of_a_delta_can_be_set_or_deleted(name: str) -> None:
    delta = sample()
    before = attrs.asdict(delta)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(delta, name, getattr(delta, name, None))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        delattr(delta, name)
    assert type(delta) is Delta
    assert attrs.asdict(delta) == before
    assert not hasattr(delta, "__dict__")


def test_the_deps_of_a_delta_cannot_be_changed_not_even_by_who_gave_them() -> None:
    deps = {"bob": 2}
    delta = sample(deps=deps)
    deps["bob"] = 3
    assert delta.deps == {"bob": 2}
    with pytest.raises(TypeError):
        delta.deps["bob"] = 3  # type: ignore[index]
    with pytest.raises(TypeError):
        NO_DEPS["bob"] = 3  # type: ignore[index]


def test_no_delta_is_made_beside_the_codec() -> None:
    delta = sample()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Delta("alice", 1, 1, {}, "", "", delta.record, delta.body)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        attrs.evolve(delta, seq=8)


@given(deltas())
def test_a_copy_is_equal_in_every_field_and_as_immutable(delta: Delta) -> None:
    for way in COPIES.values():
        other = way(delta)
        assert type(other) is Delta
        assert other == delta
        assert [getattr(other, name) for name in FIELDS] == [getattr(delta, name) for name in FIELDS]
        with pytest.raises(TypeError):
            other.deps["bob"] = 3  # type: ignore[index]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            other.seq = 3


def test_an_erased_delta_can_be_copied_too() -> None:
    erased = erase(sample(), b"h" * 32)
    assert all(way(erased) == erased and way(erased).erased for way in COPIES.values())


# ----------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("change", [{"source": "bob", "deps": {}}, {"seq": 8}, {"timestamp": 6}, {"payload": 0}])
def test_deltas_are_equal_when_source_and_encoding_are(change: dict[str, Any]) -> None:
    assert sample() == sample()
    assert hash(sample()) == hash(sample())
    assert len({sample(), sample(), sample(**change)}) == 2
    assert sample(**change) != sample()


def test_one_record_under_two_sources_is_two_deltas() -> None:
    ours, theirs = sample(deps={}), sample(deps={}, source="bob")
    assert ours.record == theirs.record
    assert ours != theirs


def test_a_delta_equals_nothing_else() -> None:
    assert sample() != sample().record
    assert sample() != ("alice", 7)


def test_dot_and_repr_name_a_delta_without_its_payload() -> None:
    delta = sample(key="k\n", payload="secret")
    assert delta.dot == Dot("alice", 7) == ("alice", 7)
    assert repr(delta) == f"<Delta 'alice':7 'edit' 'k\\n' {len(delta.record)} bytes>"
    assert repr(erase(delta, b"h" * 32)).endswith("bytes erased>")


# ------------------------------------------------------------------------------------------------------------ payload


@given(payloads())
def test_the_payload_comes_back_as_it_went_in(payload: Any) -> None:
    delta = sample(payload=payload)
    assert delta.payload == as_read(payload)
    assert delta.payload_bytes == delta.record[delta.body :]
    assert decode_payload(delta.payload_bytes) == delta.payload


def test_each_call_decodes_a_payload_of_its_own() -> None:
    delta = sample()
    delta.payload["at"] = 2
    assert delta.payload == {"at": 1}


def test_an_erased_payload_is_none_and_its_bytes_are_the_hash() -> None:
    delta = erase(sample(), b"h" * 32)
    assert delta.erased
    assert delta.payload is None
    assert delta.payload_bytes == b"h" * 32


def test_a_nan_comes_back() -> None:
    assert sample(payload=float("nan")).payload != sample(payload=float("nan")).payload


def test_a_tuple_is_a_list_afterwards_but_stays_a_tuple_as_a_key() -> None:
    assert sample(payload=(1, {(1, (2, "x")): (3,)})).payload == [1, {(1, (2, "x")): [3]}]


def test_keys_of_every_hashable_kind_come_back() -> None:
    payload = {"a": 1, b"a": 2, None: 3, 1.5: 4, True: 5, -7: 6, (): 7, msgpack.ExtType(5, b"x"): 8}
    assert sample(payload=payload).payload == payload


def test_of_two_equal_keys_the_last_counts() -> None:
    assert decode_payload(b"\x82\xa1a\x02\xa1a\x03") == {"a": 3}
    assert decode_payload(b"\x82\x01\x02\x01\x03") == {1: 3}
    assert decode_payload(b"\x82\x91\x01\x02\x91\x01\x03") == {(1,): 3}


@pytest.mark.parametrize("level", [b"\x91", b"\x81\xa1a", b"\x81\x01"])
def test_nesting_is_bounded(level: bytes) -> None:
    nested = decode_payload(level * 1024 + b"\xc0")
    for _ in range(1024):
        (nested,) = nested.values() if isinstance(nested, dict) else nested
    assert nested is None
    with pytest.raises(DecodeError, match="StackError"):
        decode_payload(level * 1025 + b"\xc0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\x92\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01\x02",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc7\x03\xffabc",
        b"\x81\x81\x01\x02\x03",
        b"\x81\x91\x81\x01\x02\x03",
        b"\x81\x91" * 700,
        b"\x81" + b"\x91" * 1020 + b"\xc0\xc0",
    ],
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="^payload is not a msgpack value: ") as caught:
        decode_payload(data)
    assert len(str(caught.value)) <= 300


# ------------------------------------------------------------------------------------------------- keys with one hash


def unshifted(value: int) -> int:
    """Undo the rotation in CPython's hash of a tuple."""
    return (value >> 31 | value << 33) % 2**64


def pairs_with_one_hash(most: int) -> list[tuple[int, int]]:
    """Pairs of numbers that Python hashes alike, by its formula turned round."""
    first, second, last = 11400714785074694791, 14029467366897019727, 2870177450012600261
    back, target = pow(second, -1, 2**64), unshifted(42 * pow(first, -1, 2**64) % 2**64)

    def partner(number: int) -> int:
        mixed = (last + number * second) % 2**64
        mixed = (mixed << 31 | mixed >> 33) % 2**64 * first % 2**64
        return (target - mixed) * back % 2**64

    pairs = ((number, partner(number)) for number in count(1))
    return list(islice((pair for pair in pairs if pair[1] < 2**61 - 1), most))


@pytest.mark.parametrize("keys", [256, 257, 40_000])
def test_a_map_whose_keys_were_chosen_to_have_one_hash_is_refused_before_it_costs_minutes(keys: int) -> None:
    pairs = pairs_with_one_hash(keys)
    assert len(set(map(hash, pairs))) == 1
    packed = msgpack.Packer()
    body = b"".join(packed.pack(pair) + b"\xc0" for pair in pairs)
    data = b"\xdf" + struct.pack(">I", keys) + body
    if keys <= 256:
        assert decode_payload(data) == dict.fromkeys(pairs)
    else:
        with pytest.raises(
            DecodeError, match=f"^payload: {keys:,} keys of one map have the same hash; the limit is 256"
        ):
            decode_payload(data)


def test_many_keys_with_hashes_of_their_own_are_no_attack() -> None:
    payload = {(number, number): number for number in range(5_000)} | dict.fromkeys(range(5_000))
    assert decode_payload(msgpack.packb(payload)) == payload


# ------------------------------------------------------------------------------------------------------------- limits

CAPS = {
    "payload_bytes": 64 << 20,
    "key_bytes": 65_535,
    "kind_bytes": 65_535,
    "source_bytes": 255,
    "deps_entries": 1 << 20,
}


def test_every_limit_has_a_cap_where_the_format_ends() -> None:
    assert {field.name for field in attrs.fields(Limits)} == set(CAPS)


@pytest.mark.parametrize("name", CAPS)
def test_a_limit_takes_what_the_format_can_hold(name: str) -> None:
    for value in (1, CAPS[name]):
        assert getattr(Limits(**{name: value}), name) == value
    wrongs: list[Any] = [0, -1, CAPS[name] + 1, True, 1.0, "1", None]
    for wrong in wrongs:
        with pytest.raises(UsageError, match=f"^limits.{name} must be an integer from 1 to {CAPS[name]:,}, not "):
            Limits(**{name: wrong})


def test_the_defaults_are_those_that_the_documents_name() -> None:
    assert attrs.astuple(Limits()) == (1 << 20, 1024, 255, 255, 65_536)


def test_text_is_measured_in_bytes_of_utf_8() -> None:
    assert text_bytes("key", "é" * 5, 10) == b"\xc3\xa9" * 5
    with pytest.raises(LimitExceeded, match="^key is 12 bytes; the limit is 10 bytes") as caught:
        text_bytes("key", "é" * 6, 10)
    assert (caught.value.field, caught.value.size, caught.value.limit, caught.value.unit) == ("key", 12, 10, "bytes")


@pytest.mark.parametrize("value", [None, b"x", 5, ["x"]])
def test_what_is_no_text_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match=f"^key must be a string, not {type(value).__name__}"):
        text_bytes("key", value, 10)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="^kind must be valid Unicode"):
        text_bytes("kind", "\ud800", 10)


def test_a_source_is_any_text_that_is_not_empty() -> None:
    assert check_source("a:\0\n", Limits()) == b"a:\0\n"
    assert len(check_source("s" * 255, Limits())) == 255
    with pytest.raises(UsageError, match="^source must not be empty"):
        check_source("", Limits())
    with pytest.raises(LimitExceeded, match="^source is 256 bytes"):
        check_source("s" * 256, Limits())
