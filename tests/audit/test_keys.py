"""Keys of the audit instance: they order as numbers do, parse back, and find every event under what it is about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import keys
from audit.keys import Checkpoint, Head
from audit.target import Symbol, Target
from deltalog.errors import DecodeError
from tests.audit.trails import event

NUMBERS = st.integers(0, keys.NUMBER_MAX)


@given(NUMBERS, NUMBERS)
def test_keys_ascend_with_numbers(a: int, b: int) -> None:
    assert (keys.event_key(a) < keys.event_key(b)) == (a < b)
    assert (keys.entry_key(b"t" * 8, a) < keys.entry_key(b"t" * 8, b)) == (a < b)
    assert keys.parse_event_key(keys.event_key(a)) == a
    assert keys.parse_entry_key(keys.entry_key(b"t" * 8, a)) == (b"t" * 8, a)


@given(st.sets(st.integers(1, 60_000), min_size=1, max_size=50), st.integers(0, 2**40))
def test_a_row_holds_its_numbers(offsets: set[int], base: int) -> None:
    numbers = sorted(base + offset for offset in offsets)
    assert keys.decode_offsets(keys.entry_key(b"t" * 8, numbers[-1]), keys.encode_offsets(numbers)) == numbers


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\1", b"\0\0\0\0", b"\0\1\0\2\0\0", b"\0\x09\0\0"])
def test_a_row_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(DecodeError):
        keys.decode_offsets(keys.entry_key(b"t" * 8, 5), value)


def test_a_path_ends_where_targets_say() -> None:
    for path in ("src/app.py", "a:b#c/d", "src/", "/abs/x"):
        whole = Target(path)
        assert keys.path_of(str(whole)) == str(whole)
        if not whole.is_directory:
            part = Target(path, (1, 2), Symbol("function", "main#x:y"))
            assert keys.path_of(str(part)) == str(whole)


def test_an_event_is_found_under_all_it_is_about() -> None:
    terms = keys.terms_of(event(1, target="src/a/app.py:1-2"))
    assert len(terms) == len(set(terms)) == 7
    expected = [
        keys.holder_term("a"),
        keys.lock_term("l1"),
        keys.action_term("acquired"),
        keys.target_term("src/a/app.py:1-2"),
        keys.path_term("src/a/app.py"),
        keys.directory_term("src/"),
        keys.directory_term("src/a/"),
    ]
    assert set(terms) == set(expected)
    assert keys.terms_of(event(1, target="", holder_id="", lock_id="")) == [keys.action_term("acquired")]


@given(st.text("ab/", max_size=60))
def test_an_event_below_a_directory_is_found_inside_it(path: str) -> None:
    terms = keys.terms_of(event(1, target=path))
    for directory in keys.ancestors_of(path):
        assert keys.inside_term(directory) in terms


NAMES = st.sampled_from(["", "a", "b"])
TARGETS = st.sampled_from(["", "src/", "src/a.py", "src/a.py:1-2", "src/b/", "src/b/c.py", "d.py"])


@given(st.lists(st.tuples(TARGETS, NAMES, NAMES), max_size=30), st.integers(1, 9))
def test_the_rows_of_a_batch_are_the_terms_of_its_events(fields: list[tuple[str, str, str]], first: int) -> None:
    batch = [event(1, target=target, holder_id=holder, lock_id=lock) for target, holder, lock in fields]
    expected: dict[keys.Term, list[int]] = {}
    for number, each in enumerate(batch, first):
        for term in keys.terms_of(each):
            expected.setdefault(term, []).append(number)
    assert keys.rows_of(batch, first) == expected


def test_heads_and_checkpoints_read_back_and_show_any_flipped_bit() -> None:
    head = Head(9, 8, b"l" * 32, 7, 3, b"f" * 32, 2, 1)
    point = Checkpoint(9, 8, b"l" * 32, 7)
    assert keys.decode_head(keys.encode_head(head)) == head
    key = keys.checkpoint_key(9)
    assert keys.decode_checkpoint(key, keys.encode_checkpoint(point)) == point
    for bit in range(8 * len(keys.encode_head(head))):
        flipped = bytearray(keys.encode_head(head))
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            keys.decode_head(bytes(flipped))
    with pytest.raises(DecodeError):
        keys.decode_checkpoint(keys.checkpoint_key(8), keys.encode_checkpoint(point))
    with pytest.raises(DecodeError, match="above"):
        keys.decode_head(keys.encode_head(Head(number=1, floor=2)))


@pytest.mark.parametrize("key", [b"", b"1234567", b"123456789"])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(DecodeError):
        keys.parse_event_key(key)
    with pytest.raises(DecodeError):
        keys.parse_entry_key(key)
    with pytest.raises(DecodeError):
        keys.split_row(bytes(32))
