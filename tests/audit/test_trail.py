"""The chain covers number, order and every byte of each event; heads print and parse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import trail
from audit.trail import TrailHead, what_happened
from deltalog.errors import UsageError

EVENTS = st.lists(st.binary(max_size=20), min_size=1, max_size=12)
START = trail.genesis(b"store")


@given(EVENTS, st.integers(0, 12))
def test_links_do_not_depend_on_batches(events: list[bytes], cut: int) -> None:
    whole = trail.extend(START, 1, events)
    first = trail.extend(START, 1, events[:cut])
    assert whole == first + trail.extend(first[-1] if first else START, 1 + len(first), events[cut:])


@given(EVENTS, st.data())
def test_i9_any_change_changes_every_link_behind_it(events: list[bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events) - 1))
    changed = [*events[:place], events[place] + b"x", *events[place + 1 :]]
    before, after = trail.extend(START, 1, events), trail.extend(START, 1, changed)
    assert before[:place] == after[:place]
    assert all(a != b for a, b in zip(before[place:], after[place:], strict=True))


def test_the_number_and_the_store_are_in_the_chain() -> None:
    assert trail.extend(START, 1, [b"e"]) != trail.extend(START, 2, [b"e"])
    assert trail.genesis(b"one") != trail.genesis(b"other")


def rows(events: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(trail.extend(START, 1, events), events, strict=True))


def test_i9_what_happened_is_told_apart() -> None:
    found = rows([b"a", b"b", b"c", b"d", b"e"])
    link = found[0][0]
    assert what_happened(link, 2, [(found[1][0], b"B"), *found[2:]]) == "changed"
    assert what_happened(link, 2, [found[2], *found[3:]]) == "removed"
    assert what_happened(link, 2, [found[2], found[1], *found[3:]]) == "reordered"
    assert what_happened(link, 2, [(bytes(32), b"new"), *found[1:]]) == "inserted"
    assert what_happened(link, 2, [found[3], found[2], found[1], found[4]]) == "reordered"
    assert what_happened(link, 5, [(bytes(32), b"E")]) == "changed"


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_head_is_one_line_that_reads_back(number: int, link: bytes) -> None:
    head = TrailHead(number, link)
    assert TrailHead.parse(f" {head}\n") == head
    assert "\n" not in str(head)


@pytest.mark.parametrize(
    "line", ["", "audit-head:v2:1:" + "0" * 64, "audit-head:v1:01:" + "0" * 64, "audit-head:v1:1:00", "x" * 500,
             "audit-head:v1:9999999999999999999:" + "0" * 64, "audit-head:v1:1:" + "A" * 64]
)  # fmt: skip
def test_what_is_no_head_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="audit-head:v1"):
        TrailHead.parse(line)
