"""What a hostile peer can say in a comparison: each ends it, by name, in bounded time and memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.delta import SEQ_MAX
from sync.comparison import (
    ANSWER,
    DIGESTS,
    ENTRIES,
    ENTRIES_MAX,
    MESSAGE_BYTES_MIN,
    MORE,
    PARTS_MAX,
    Comparison,
    Part,
    decode,
)
from sync.errors import ProtocolError
from sync.heads import Entry, HeadsIndex, key_of
from tests.sync.test_comparison import compared
from tests.sync.test_heads import Model, index_of, numbered


def keys_in_order(model: Model) -> list[str]:
    return sorted(model, key=key_of)


def entries_of(model: Model) -> tuple[Entry, ...]:
    return tuple(Entry(source, *model[source]) for source in keys_in_order(model))


def answering(count: int = 1000) -> tuple[Comparison, Part]:
    """A side that asked with digests, and its question."""
    side = Comparison(index_of(numbered(count)))
    (question,) = side.start()
    return side, question


SOME = numbered(3, "new-")
FIRST = key_of(entries_of(SOME)[0].source)[0] >> 4
"""Digit under which the first of SOME stands."""


def part_of_some(kind: int, prefix: bytes | None = None) -> Part:
    return Part(kind, bytes((FIRST,)) if prefix is None else prefix, entries=entries_of(SOME)[:1])


HOSTILE: dict[str, tuple[list[Part], str]] = {
    "everything again": ([Part(DIGESTS, b"", bytes(256))], "was not asked about"),
    "a range twice": ([Part(ENTRIES, b"\3"), Part(ENTRIES, b"\3")], "is answered already"),
    "a range and a part of it": ([Part(ENTRIES, b"\3"), Part(ENTRIES, b"\3\1")], "was not asked about"),
    "a range too deep": ([Part(DIGESTS, b"\3\1", bytes(256))], "was not asked about"),
    "an answer about what is not empty": ([part_of_some(ANSWER)], "was not asked about"),
    "an answer about everything": ([part_of_some(ANSWER, b"")], "was not asked about"),
    "more of nothing": ([Part(MORE)], "says nothing"),
    "more in the middle": ([Part(MORE), Part(ENTRIES, b"\3")], "in the middle"),
    "an unknown kind": ([Part(9)], "kind 9 in the middle"),
    "too many parts": ([Part(ENTRIES, b"\3")] * (PARTS_MAX + 1), "1,001 parts in one message; the limit is 1,000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_nobody_asked_for_ends_the_comparison(name: str) -> None:
    parts, reason = HOSTILE[name]
    side, _ = answering()
    with pytest.raises(ProtocolError, match=reason):
        side.receive(parts)


def test_a_first_message_must_ask() -> None:
    with pytest.raises(ProtocolError, match="says nothing"):
        Comparison(index_of(SOME)).receive([])
    with pytest.raises(ProtocolError, match="was not asked about"):
        Comparison(index_of(SOME)).receive([Part(ENTRIES, b"\3")])


def test_nothing_may_come_after_the_end() -> None:
    side, _ = answering()
    assert side.receive([]).done
    with pytest.raises(ProtocolError, match="after the end"):
        side.receive([])


def test_an_answer_must_go_forward_and_ends() -> None:
    """A peer that tells the same again and again, always promising more, is found out at once."""
    side = Comparison(HeadsIndex())
    assert side.start() == [Part(ENTRIES)]
    entries = entries_of(numbered(4))
    assert not side.receive([Part(ANSWER, entries=entries[:2]), Part(MORE)]).done
    for again in (entries[:2], entries[1:3], ()):
        with pytest.raises(ProtocolError, match="do not ascend"):
            side.receive([Part(ANSWER, entries=again), Part(MORE)])
    step = side.receive([Part(ANSWER, entries=entries[2:])])
    assert (step.answer, step.done) == (None, True)
    assert step.learnt == list(entries[2:])


def test_the_number_of_unknown_sources_is_bounded() -> None:
    a, b = HeadsIndex(), index_of(numbered(5000))
    assert len(compared(a, b, unknown_max=5000).learnt[0]) == 5000
    for sides in ((a, b), (b, a)):
        with pytest.raises(ProtocolError, match="more than 4,999 sources"):
            compared(*sides, unknown_max=4999)
    side = Comparison(HeadsIndex(), unknown_max=2)
    with pytest.raises(ProtocolError, match="more than 2 sources"):
        side.receive([Part(ENTRIES, entries=entries_of(SOME))])


def test_nobody_lacks_a_source_that_nobody_holds() -> None:
    side = Comparison(HeadsIndex())
    side.start()
    with pytest.raises(ProtocolError, match="nobody holds"):
        side.receive([Part(ANSWER, entries=(Entry("ghost", 0, b""),))])


@given(st.integers(0, 1 << 30))
def test_a_peer_that_always_says_unlike_is_done_after_rounds_bounded_by_the_own_size(seed: int) -> None:
    """It answers every question with random digests, or with nothing held, and always promises more."""
    rng = random.Random(seed)
    count = 400
    side = Comparison(index_of(numbered(count)), message_bytes=MESSAGE_BYTES_MIN)
    message: list[Part] | None = side.start()
    rounds = told = 0
    open_ranges: list[bytes] = []
    while message is not None:
        for part in message:
            told += len(part.entries) if part.kind == ANSWER else 0
            if part.kind == DIGESTS:
                open_ranges += [
                    part.prefix + bytes((digit,)) for digit in range(16) if any(part.digests[digit * 16 :][:16])
                ]
        if not open_ranges:
            break
        prefix = open_ranges.pop(rng.randrange(len(open_ranges)))
        lie = Part(DIGESTS, prefix, rng.randbytes(256)) if rng.random() < 0.8 else Part(ENTRIES, prefix)
        step = side.receive([lie, Part(MORE)])
        assert not step.done
        message, rounds = step.answer, rounds + 1
    assert told <= count
    assert rounds <= count


MALFORMED: dict[str, tuple[Any, str]] = {
    "no array": ({}, "parts must be an array, not dict"),
    "text": ("abc", "parts must be an array, not str"),
    "too many parts": ([[MORE]] * (PARTS_MAX + 1), "1,001 parts; the limit is 1,000"),
    "a part that is none": ([7], "part must be an array, not int"),
    "an empty part": ([[]], "kind NoneType"),
    "an unknown kind": ([[5, b"", b""]], "kind 5"),
    "a kind that is a bool": ([[True, b"", bytes(256)]], "kind True"),
    "a kind that is a float": ([[1.0, b"", bytes(256)]], "kind float"),
    "too many fields": ([[ENTRIES, b"", [], 1]], "4 part; the limit is 3"),
    "too few fields": ([[ENTRIES, b""]], "kind 2 with 1 fields"),
    "more with fields": ([[MORE, b""]], "kind 4 with 1 fields"),
    "a range that is text": ([[ENTRIES, "", []]], "a range must be up to 16 digits"),
    "a digit of 16": ([[ENTRIES, b"\x10", []]], "a range must be up to 16 digits of 0 to 15"),
    "a range of 17 digits": ([[ENTRIES, bytes(17), []]], "a range must be up to 16 digits"),
    "digests of the deepest range": ([[DIGESTS, bytes(16), bytes(256)]], "a range must be up to 15 digits"),
    "digests too short": ([[DIGESTS, b"", bytes(255)]], "digests must be 256 bytes"),
    "digests that are text": ([[DIGESTS, b"", "a" * 256]], "digests must be 256 bytes"),
    "entries that are none": ([[ENTRIES, b"", b""]], "entries must be an array, not bytes"),
    "too many entries": ([[ENTRIES, b"", [[]] * (ENTRIES_MAX + 1)]], "257 entries; the limit is 256"),
    "an entry that is none": ([[ENTRIES, b"", [3]]], "entry must be an array, not int"),
    "an entry of two": ([[ENTRIES, b"", [["a", 1]]]], "an entry must have 3 fields, not 2"),
    "an empty source": ([[ENTRIES, b"", [["", 1, bytes(32)]]]], "source must not be empty"),
    "a long source": ([[ENTRIES, b"", [["a" * 256, 1, bytes(32)]]]], "source is 256 bytes; the limit is 255"),
    "a source of bytes": ([[ENTRIES, b"", [[b"a", 1, bytes(32)]]]], "source must be a string"),
    "a seq of 0": ([[ENTRIES, b"", [["a", 0, b""]]]], "seq of source 'a' is 0"),
    "a negative seq": ([[ANSWER, b"", [["a", -1, bytes(32)]]]], "seq must be an integer"),
    "a seq too great": ([[ENTRIES, b"", [["a", SEQ_MAX + 1, bytes(32)]]]], "seq must be an integer"),
    "a seq that is a bool": ([[ENTRIES, b"", [["a", True, bytes(32)]]]], "seq must be an integer"),
    "a seq that is a float": ([[ENTRIES, b"", [["a", 1.0, bytes(32)]]]], "seq must be an integer"),
    "a short hash": ([[ENTRIES, b"", [["a", 1, bytes(31)]]]], "hash must be 32 bytes"),
    "no hash": ([[ANSWER, b"", [["a", 1, b""]]]], "hash must be 32 bytes"),
    "a hash of nothing": ([[ANSWER, b"", [["a", 0, bytes(32)]]]], "hash must be 32 bytes"),
    "a hash that is text": ([[ANSWER, b"", [["a", 1, "a" * 32]]]], "hash must be 32 bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_by_name(name: str) -> None:
    value, reason = MALFORMED[name]
    with pytest.raises(ProtocolError, match=reason):
        decode(value)


def test_entries_out_of_range_or_order_are_refused() -> None:
    first, second, third = (list(entry) for entry in entries_of(SOME))
    assert decode([[ENTRIES, b"", [first, second, third]]])
    for entries in ([second, first], [first, first], [first, third, second]):
        with pytest.raises(ProtocolError, match="out of its range or order"):
            decode([[ENTRIES, b"", entries]])
    digits = bytes(int(digit, 16) for digit in key_of(str(first[0]))[:8].hex())
    assert decode([[ENTRIES, digits, [first]]])[0].entries[0].source == first[0]
    for other in (bytes((digits[0] ^ 1,)), digits[:-1] + bytes((digits[-1] ^ 1,))):
        with pytest.raises(ProtocolError, match="out of its range or order"):
            decode([[ENTRIES, other, [first]]])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.binary(max_size=20) | st.text(max_size=5) | st.just(bytes(256)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)


@given(st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=3), JUNK).map(list) | JUNK, max_size=5))
def test_any_junk_is_refused_or_taken_in_but_raises_nothing_else(value: list[Any]) -> None:
    side, _ = answering(300)
    try:
        side.receive(decode(value))
    except ProtocolError as error:
        assert len(str(error)) < 500  # noqa: PT017 (whether it raises is up to the junk)
