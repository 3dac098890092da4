"""One delta has one encoding, and no other bytes are taken; what is refused leaves nothing behind."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.codec import (
    Encoder,
    build,
    count_until,
    decode,
    decode_deps,
    decode_many,
    encode_deps,
    erase,
    skip_many,
    timestamp_of,
)
from deltalog.delta import NO_DEPS, SEQ_MAX, TIMESTAMP_MAX, Delta, Limits
from deltalog.errors import DecodeError
from tests.models import record_of
from tests.strategies import deltas, payloads, runs, seqs, sources


def encode(payload: Any, *, encoder: Encoder | None = None, kind: str = "", key: str = "") -> Delta:
    encoder = encoder if encoder is not None else Encoder()
    return encoder.encode("alice", 1, lambda: 5, NO_DEPS, kind, key, payload)


# ----------------------------------------------------------------------------------------------------------- encoding


def test_the_encoding_is_the_one_in_the_table() -> None:
    delta = build("carol", 7, 0x18BCFE56800, {"a": 1}, deps={"bob": SEQ_MAX, "alice": 2}, kind="edit", key="a/b")
    assert delta.record.hex(" ") == (
        "01 00 00 00 00 04 00 04 00 03 00 00 00 1a 00 00 00 00 00 00 00 07 00 00 01 8b cf e5 68 00 "
        "05 61 6c 69 63 65 00 00 00 00 00 00 00 02 03 62 6f 62 7f ff ff ff ff ff ff ff "
        "65 64 69 74 61 2f 62 81 a1 61 01"
    )


@given(deltas())
def test_encoding_agrees_with_the_naive_one_and_decoding_reverses_it(delta: Delta) -> None:
    assert delta.record == record_of(delta)
    again = decode(delta.source, delta.record)
    assert again == delta
    for name in ("seq", "timestamp", "deps", "kind", "key", "body"):
        assert getattr(again, name) == getattr(delta, name)
    assert timestamp_of(delta.record) == delta.timestamp


@given(st.dictionaries(sources(), seqs(), max_size=6))
def test_deps_stand_in_the_order_of_their_bytes_however_they_came(deps: dict[str, int]) -> None:
    backwards = dict(reversed(deps.items()))
    data = encode_deps(deps)
    assert data == encode_deps(backwards)
    assert list(decode_deps(data, "", Limits())) == sorted(deps, key=str.encode)
    assert dict(decode_deps(data, "", Limits())) == deps


@given(payloads(), payloads())
def test_what_an_encoder_encoded_before_does_not_matter(first: Any, second: Any) -> None:
    encoder = Encoder()
    encode(first, encoder=encoder, kind="a", key="b")
    assert encode(second, encoder=encoder).record == encode(second).record


@given(st.integers(0, 300), st.sampled_from(["\0", "é", "\N{GRINNING FACE}"]))
def test_sizes_are_those_of_bytes(length: int, character: str) -> None:
    kind, key = character * (length % 60), character * (length % 250)
    delta = build("alice", 1, 5, None, kind=kind, key=key)
    assert decode("alice", delta.record) == delta
    assert len(delta.record) == 31 + len(kind.encode()) + len(key.encode())


def test_kinds_and_keys_that_look_alike_keep_their_own_bytes() -> None:
    """An encoder remembers the bytes of texts it has seen; a text's look-alike must not get them."""

    class Kind(str, Enum):  # noqa: UP042  # whose str() is not its value
        EDIT = "e"

    class Loud(str):
        __slots__ = ()

        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            return self.upper().encode(encoding, errors)

        def __eq__(self, other: object) -> bool:
            return self.upper() == other

        def __hash__(self) -> int:
            return hash(self.upper())

    encoder = Encoder()
    alike = [Loud("e"), "E", Kind.EDIT, "Kind.EDIT", "e"]
    for kind, key in [*((kind, "k") for kind in alike), ("k", "e"), ("", "ek"), ("ek", ""), ("e", "k")]:
        record = encode(1, encoder=encoder, kind=kind, key=key).record
        again = decode("alice", record)
        assert (again.kind, again.key) == (str.__str__(kind), key)


def test_an_encoder_remembers_a_bounded_number_of_texts() -> None:
    encoder = Encoder()
    for number in range(10_000):
        assert decode("alice", encode(1, encoder=encoder, key=f"k{number % 9_000}").record).key == f"k{number % 9_000}"


# ----------------------------------------------------------------------------------------------------------- decoding


@given(st.data())
def test_bytes_that_are_accepted_are_the_one_encoding_of_their_delta(data: st.DataObject) -> None:
    delta = data.draw(deltas())
    record = bytearray(delta.record)
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        accepted = decode(delta.source, bytes(record))
    except DecodeError:
        return
    assert record_of(accepted) == accepted.record == record


@given(deltas(), st.data())
def test_a_record_that_is_cut_or_continued_is_refused(delta: Delta, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(delta.record) - 1))
    with pytest.raises(DecodeError, match="^record: "):
        decode(delta.source, delta.record[:cut])
    with pytest.raises(DecodeError, match="^record: 1 bytes after its end"):
        decode(delta.source, delta.record + b"\0")


def changed(offset: int, value: bytes, **fields: Any) -> bytes:
    record = bytearray(build("alice", 1, 5, 1, **fields).record)
    record[offset : offset + len(value)] = value
    return bytes(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "record: 0 bytes left, its header has 30"),
        (b"\1" * 29, "record: 29 bytes left, its header has 30"),
        (changed(0, b"\2"), "record: format version 2; this program knows 1"),
        (changed(1, b"\2"), "record: unknown flags 0x02"),
        (changed(1, b"\1"), "payload: an erased one is 32 bytes, not 1"),
        (changed(2, b"\xff\xff\xff\xff"), "record: cut short by 4294967294 bytes"),
        (changed(6, b"\xff\xff"), "record: cut short"),
        (changed(8, b"\xff\xff"), "record: cut short"),
        (changed(10, b"\xff\xff\xff\xff"), "record: cut short"),
        (changed(14, b"\0" * 8), "seq: 0 is not from 1 to 9223372036854775807"),
        (changed(14, b"\x80" + b"\0" * 7), "seq: 9223372036854775808 is not from 1"),
        (changed(30, b"\xff", kind="k"), "record: kind or key is not UTF-8"),
        (changed(30, b"\xff", key="k"), "record: kind or key is not UTF-8"),
        (changed(31, b"\xff", deps={"b": 1}), "deps: a source is not UTF-8"),
        (changed(30, b"\xff", deps={"b": 1}), "deps: entry is cut short"),
        (changed(30, b"\0", deps={"b": 1}), "deps: "),
        (changed(31, b"alice", deps={"bobby": 1}), "deps: names the delta's own source"),
        (changed(31, b"c", deps={"a": 1, "b": 1}), "deps: entries must ascend by source"),
        (changed(31, b"b", deps={"a": 1, "b": 1}), "deps: entries must ascend by source"),
        (changed(32, b"\0" * 8, deps={"b": 1}), "deps: seq 0 is out of range"),
        (changed(32, b"\xff" * 8, deps={"b": 1}), "deps: seq 18446744073709551615 is out of range"),
    ],
)
def test_each_kind_of_damage_is_named(record: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode("alice", record)
    assert str(caught.value).startswith(message)


def test_an_empty_name_in_deps_is_refused() -> None:
    with pytest.raises(DecodeError, match="^deps: entries must ascend"):
        decode_deps(b"\0" + b"\0" * 7 + b"\1", "alice", Limits())


def test_deps_that_are_no_utf_8_are_refused_here_too() -> None:
    with pytest.raises(DecodeError, match="^deps: "):
        decode_deps(b"\1\xff" + b"\0" * 7 + b"\1", "alice", Limits())


@given(runs(), st.binary(max_size=5), st.binary(max_size=40))
def test_records_one_after_the_other_are_told_apart(run: list[Delta], before: bytes, behind: bytes) -> None:
    data = before + b"".join(delta.record for delta in run) + behind
    found, end = decode_many("alice", data, len(before), len(run), Limits())
    assert [record_of(delta) for delta in found] == [delta.record for delta in run]
    assert [delta.record for delta in found] == [delta.record for delta in run]
    assert end == len(data) - len(behind)


@given(runs(most=4), st.data())
def test_a_length_that_lies_makes_no_record_of_its_neighbour(run: list[Delta], data: st.DataObject) -> None:
    """What is accepted for a lying length is canonical all the same: it covers exactly the bytes it claims."""
    whole = bytearray(b"".join(delta.record for delta in run))
    offset = data.draw(st.integers(2, 13))
    whole[offset] = data.draw(st.integers(0, 255))
    try:
        found, end = decode_many("alice", bytes(whole), 0, len(run), Limits())
    except DecodeError:
        return
    assert b"".join(record_of(delta) for delta in found) == whole[:end]


def concatenated(*deltas: Delta) -> bytes:
    return b"".join(delta.record for delta in deltas)


def test_consecutive_records_are_dense_and_ascend_in_time() -> None:
    first, second, third = (build("alice", 3 + number, 9 + number, None) for number in range(3))
    assert decode_many("alice", concatenated(first, second, third), 0, 3, Limits())[0] == [first, second, third]
    with pytest.raises(DecodeError, match="^seq: 5 stands where 4 belongs"):
        decode_many("alice", concatenated(first, third), 0, 2, Limits())
    with pytest.raises(DecodeError, match="^seq: 3 stands where 4 belongs"):
        decode_many("alice", concatenated(first, first), 0, 2, Limits())
    for timestamp in (9, 8):
        late = build("alice", 4, timestamp, None)
        with pytest.raises(DecodeError, match="^timestamp: that of seq 4 does not come after its predecessor's"):
            decode_many("alice", concatenated(first, late), 0, 2, Limits())


def test_no_seq_comes_after_the_last() -> None:
    last = build("alice", SEQ_MAX, 5, None).record
    beyond = last[:14] + (SEQ_MAX + 1).to_bytes(8, "big") + (6).to_bytes(8, "big") + last[30:]
    with pytest.raises(DecodeError, match="^seq: 9223372036854775808 is not from 1 to 9223372036854775807"):
        decode_many("alice", last + beyond, 0, 2, Limits())


@given(runs(), st.binary(max_size=5), st.data())
def test_records_can_be_passed_over_by_their_sizes(run: list[Delta], before: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(run)))
    whole = before + concatenated(*run)
    assert skip_many(whole, len(before), count) == len(before) + len(concatenated(*run[:count]))
    with pytest.raises(DecodeError, match="^record: 0 bytes left, its header has 30"):
        skip_many(whole, len(before), len(run) + 1)


@given(runs(), st.binary(max_size=5), st.data())
def test_records_up_to_a_timestamp_can_be_counted(run: list[Delta], before: bytes, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(run)).timestamp + data.draw(st.integers(-1, 1))
    whole = before + concatenated(*run)
    earlier = [delta for delta in run if delta.timestamp <= at]
    assert count_until(whole, len(before), len(run), at) == len(earlier)
    with pytest.raises(DecodeError, match="^record: 0 bytes left, its header has 30"):
        count_until(whole, len(before), len(run) + 1, TIMESTAMP_MAX)


# -------------------------------------------------------------------------------------------------------------- erase


@given(deltas(), st.binary(min_size=32, max_size=32))
def test_erasing_keeps_everything_but_the_payload(delta: Delta, digest: bytes) -> None:
    erased = erase(delta, digest)
    assert erased.erased
    assert not delta.erased
    assert erased.payload_bytes == digest
    assert erased.payload is None
    for name in ("source", "seq", "timestamp", "deps", "kind", "key", "body", "dot"):
        assert getattr(erased, name) == getattr(delta, name)
    assert erased.record == record_of(erased)
    assert decode(delta.source, erased.record) == erased
    assert erase(erased, b"other" * 8) is erased


def test_an_erased_payloads_bytes_are_gone() -> None:
    delta = build("alice", 1, 5, "a secret to be forgotten", key="k")
    assert b"secret" in delta.record
    assert b"secret" not in erase(delta, b"h" * 32).record


def test_an_erased_delta_is_another_delta() -> None:
    delta = build("alice", 1, 5, b"x" * 30)
    assert len(erase(delta, b"h" * 32).record) == len(delta.record)
    assert erase(delta, b"h" * 32) != delta
