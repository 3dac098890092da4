"""Messages: one encoding each, hostile bytes refused by name before they cost anything."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalog.codec import build
from deltalog.delta import SEQ_MAX, Limits
from sync import messages
from sync.errors import ProtocolError
from sync.messages import (
    FRAME_BYTES,
    PREFIX_BYTES,
    Ack,
    Alive,
    Below,
    Busy,
    Commit,
    Compare,
    Deltas,
    Goodbye,
    Have,
    Head,
    Hello,
    Message,
    Packed,
    Total,
    Unwant,
    Want,
    Welcome,
    decode,
    encode,
    encode_run,
    frame_size,
)

names = st.text(min_size=1, max_size=20)
seqs = st.integers(1, SEQ_MAX)
hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
items = st.lists(st.tuples(names, seqs), max_size=5).map(tuple)
numbers = st.integers(0, 2**63 - 1)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        st.integers(0, 9),
        names,
        names,
        names,
        st.just(b"") | hashes,
        st.just(b"") | signatures,
        st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(Welcome, seqs, hashes, numbers, numbers, hashes),
    st.builds(Welcome, st.just(0), st.just(b""), numbers, numbers, hashes),
    st.builds(Busy, st.integers(0, 10_000)),
    st.builds(Goodbye, names, st.text(max_size=100)),
    st.builds(Want, items),
    st.builds(Unwant, st.lists(names, max_size=4).map(tuple)),
    st.builds(Have, items),
    st.builds(Head, names, seqs, hashes, hashes, signatures, st.just(b"") | signatures),
    st.builds(Head, names, seqs, hashes, st.just(b""), st.just(b""), st.just(b"")),
    st.builds(Commit, seqs),
    st.builds(Ack, seqs, items),
    st.builds(Below, st.text(max_size=10), items),
    st.builds(Alive, numbers, numbers, hashes),
    st.builds(Total, numbers, numbers),
    st.builds(Packed, st.binary(max_size=50)),
)


def framed(frame: bytes, most: int = FRAME_BYTES) -> Message:
    """What a frame says; all of it must be the frame."""
    size, number = frame_size(frame[:PREFIX_BYTES], most, most)
    assert len(frame) == PREFIX_BYTES + size
    return decode(number, frame[PREFIX_BYTES:])


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert framed(encode(message)) == message


def test_parts_of_a_comparison_come_back_as_lists() -> None:
    assert framed(encode(Compare(((1, b"\1", b"x" * 16), (4,))))) == Compare(([1, b"\1", b"x" * 16], [4]))


@given(st.integers(0, 255), st.binary(max_size=300))
@example(8, b"\xdd\xff\xff\xff\xff")
@example(8, b"\x91" * 2000)
@example(8, b"\xc7\x08\xff" + b"\xff" * 8)
@example(14, msgpack.packb([1, 2, float("nan")]))
def test_hostile_bytes_raise_a_protocol_error_and_nothing_else(number: int, body: bytes) -> None:
    try:
        size, kind = frame_size(struct.pack(">IB", len(body) + 1, number), FRAME_BYTES, FRAME_BYTES)
        assert size == len(body)
        message = decode(kind, body)
    except ProtocolError:
        return
    if not isinstance(message, Deltas | Compare):
        assert framed(encode(message)) == message


SIGNED = {0xCD: 0xD1, 0xCE: 0xD2, 0xCF: 0xD3}
"""msgpack's types of unsigned integers, and the signed ones of as many bytes: one number, if its first bit is 0."""


@given(MESSAGES, st.data())
def test_any_change_of_a_byte_is_refused_or_says_something_else(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    at = data.draw(st.integers(PREFIX_BYTES, len(frame) - 1)) if len(frame) > PREFIX_BYTES else 4
    _check_change(frame, at, frame[at] ^ data.draw(st.integers(1, 255)))


def test_any_change_of_any_byte_of_each_type_is_refused_or_says_something_else() -> None:
    for message in (
        Total(256, 0),
        Ack(2**16, (("alice", 2**32), ("bob", 1))),
        Head("a", 256, bytes(32), b"", b"", b""),
    ):
        frame = encode(message)
        for at in range(PREFIX_BYTES, len(frame)):
            for byte in {*range(256)} - {frame[at]}:
                _check_change(frame, at, byte)


def _check_change(frame: bytes, at: int, byte: int) -> None:
    try:
        changed = framed(frame[:at] + bytes([byte]) + frame[at + 1 :])
    except (ProtocolError, AssertionError):
        return
    if not isinstance(changed, Deltas) and encode(changed) == frame:
        assert SIGNED.get(frame[at]) == byte


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ((1, ["x"]), "hello must be an array of 7"),
        ((1, [1, "c", "", "s", b"", b"", []]), "hello.node must be text of 1"),
        ((1, [True, "c", "n", "s", b"", b"", []]), "hello.version must be an integer"),
        ((1, [1, "c", "n", "s", b"k", b"", []]), "hello.key must be 0 or 32 bytes"),
        ((1, [1, "c", "n", "s", b"", b"", ["f"] * 33]), "hello.features must be an array of at most 32"),
        ((2, [0, b"h" * 32, 0, 0, b"d" * 32]), "welcome.hash must be 0 bytes"),
        ((6, [["a", -1]]), "want must be an integer from 0"),
        ((6, [["a", 2**63]]), "want must be an integer"),
        ((6, [["a"]]), "want must be an array of 2"),
        ((8, [["a", 0]]), "have must be an integer from 1"),
        ((10, ["a", 1, b"h" * 32, b"k" * 32, b"", b""]), "head.signature must be 64 bytes"),
        ((11, [0]), "commit must be an integer from 1"),
        ((14, [1, 1, b"short"]), "alive.digest must be 32 bytes"),
        ((4, ["c", "x" * 2000]), "2000 exceeds max_str_len"),
        ((8, [["a", 1]] * 9000), "9000 exceeds max_array_len"),
        ((8, {}), "at most 8192 elements"),
    ],
)
def test_what_is_wrong_is_named(body: tuple[int, Any], match: str) -> None:
    number, value = body
    with pytest.raises(ProtocolError, match=match):
        decode(number, msgpack.packb(value))


@pytest.mark.parametrize(
    ("size", "number", "match"),
    [
        (FRAME_BYTES + 1, 8, "262,145 bytes; the limit is 262,144"),
        (0, 8, "0 bytes"),
        (5, 0, "type of a message"),
        (5, 17, "type of a message"),
        (4097, 9, "the limit is 4,096"),
    ],
)
def test_a_frame_is_refused_by_its_first_five_bytes(size: int, number: int, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        frame_size(struct.pack(">IB", size, number), FRAME_BYTES, 4096)


# --------------------------------------------------------------------------------------------------------------- runs


def a_run(count: int, size: int, source: str = "alice") -> list[Any]:
    return [build(source, seq, 1000 + seq, b"x" * size) for seq in range(5, 5 + count)]


@pytest.mark.parametrize(("count", "size", "frames"), [(1, 10, 1), (100, 100, 1), (30, 20_000, 10), (3, 400_000, 3)])
def test_runs_travel_as_stored_in_frames_of_bounded_size(count: int, size: int, frames: int) -> None:
    deltas = a_run(count, size)
    sent = list(encode_run("alice", 5, [delta.record for delta in deltas]))
    assert len(sent) == frames
    came = []
    for frame in sent:
        message = framed(frame, 1 << 21)
        assert isinstance(message, Deltas)
        assert message.count == 1 or len(frame) <= FRAME_BYTES + 4
        came += message.decode(Limits())
    assert came == deltas
    assert [delta.record for delta in came] == [delta.record for delta in deltas]


def test_a_run_that_is_not_what_it_says_is_refused() -> None:
    records = [delta.record for delta in a_run(3, 10)]
    whole = b"".join(records)
    for run, match in (
        (Deltas("alice", 6, 3, whole), "seq 5 where 6 was announced"),
        (Deltas("alice", 5, 4, whole), "0 bytes left"),
        (Deltas("alice", 5, 2, whole), "behind the last"),
        (Deltas("alice", 5, 2, records[0] + records[2]), "seq: 7 stands where 6 belongs"),
        (Deltas("alice", 5, 3, whole[:-1]), "cut short"),
    ):
        with pytest.raises(ProtocolError, match=match):
            run.decode(Limits())
    with pytest.raises(ProtocolError, match="the limit is 5"):
        Deltas("alice", 5, 3, whole).decode(Limits(payload_bytes=5))


@pytest.mark.parametrize(
    "body", [b"", b"\3ab", b"\2\xff\xfe" + bytes(12), b"\0" + bytes(12), b"\1a" + bytes(12), b"\1a" + bytes(11)]
)
def test_a_cut_or_empty_run_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="deltas"):
        decode(9, body)


def test_lists_are_cut_to_fit_into_frames() -> None:
    many = [("s" * 200 + str(number), number) for number in range(20_000)]
    parts = list(messages.split(many))
    assert [item for part in parts for item in part] == many
    assert all(len(encode(Have(part))) <= FRAME_BYTES for part in parts)
    assert len(parts) > 1
    assert list(messages.split([])) == []
