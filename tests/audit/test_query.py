"""Questions: checked, planned over indexes that hold every answer, and cursors nobody else can make."""

from __future__ import annotations

import base64
import string

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import keys
from audit.event import Action
from audit.query import CursorInvalid, Position, Query, decode_cursor, encode_cursor, plan
from deltalog.errors import UsageError
from tests.audit.trails import TARGETS, some_events

SECRET = b"s" * 32
QUERIES = st.builds(
    Query,
    holder=st.none() | st.sampled_from(["h0", "h1", ""]),
    actions=st.lists(st.sampled_from(Action), max_size=3),
    lock_id=st.none() | st.sampled_from(["l1", "l2"]),
    target=st.none() | st.sampled_from(TARGETS),
    target_prefix=st.none()
    | st.sampled_from(["", "s", "src", "src/", "src/app.py", "src/app.py:", "src/a/", "/", "/abs/"]),
    after=st.none() | st.integers(900, 1500),
    until=st.none() | st.integers(900, 1500),
    min_token=st.none() | st.integers(0, 50),
    newest_first=st.booleans(),
    limit=st.integers(1, 30),
)


@given(QUERIES)
def test_a_plan_loses_no_answer(query: Query) -> None:
    unions = plan(query)
    assert len({union[0][0] for union in unions}) == len(unions), "each of another family"
    for event in some_events(60):
        if query.matches(event):
            terms = keys.terms_of(event)
            assert all(any(term in terms for term in union) for union in unions)


@given(QUERIES, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_a_cursor_reads_back_for_its_question(query: Query, number: int, until: int) -> None:
    cursor = encode_cursor(query, Position(number, until), SECRET)
    again = attrs.evolve(query, cursor=cursor, limit=7)
    assert decode_cursor(again, SECRET) == Position(number, until)
    assert decode_cursor(query, SECRET) is None


@given(QUERIES, QUERIES)
def test_a_cursor_answers_no_other_question(one: Query, other: Query) -> None:
    cursor = encode_cursor(one, Position(5, 9), SECRET)
    same = attrs.evolve(one, limit=1, actions=()) == attrs.evolve(other, limit=1, actions=()) and set(
        one.actions
    ) == set(other.actions)
    if not same:
        with pytest.raises(CursorInvalid, match="cursor"):
            decode_cursor(attrs.evolve(other, cursor=cursor), SECRET)


@given(st.integers(0, 34 * 8 - 1))
def test_a_cursor_that_was_changed_is_refused(bit: int) -> None:
    cursor = encode_cursor(Query(), Position(5, 9), SECRET)
    data = bytearray(base64.urlsafe_b64decode(cursor + "=="))
    data[bit // 8] ^= 1 << bit % 8
    changed = base64.urlsafe_b64encode(bytes(data)).decode().rstrip("=")
    with pytest.raises(CursorInvalid):
        decode_cursor(Query(cursor=changed), SECRET)


@pytest.mark.parametrize("padding", ["", "=", "=="])
@pytest.mark.parametrize("last", string.ascii_letters + string.digits + "-_")
def test_a_cursor_has_one_text(last: str, padding: str) -> None:
    cursor = encode_cursor(Query(), Position(5, 9), SECRET)
    changed = cursor[:-1] + last + padding
    if changed == cursor:
        assert decode_cursor(Query(cursor=changed), SECRET) == Position(5, 9)
        return
    with pytest.raises(CursorInvalid):
        decode_cursor(Query(cursor=changed), SECRET)


@given(st.text(max_size=80))
def test_any_text_as_cursor_is_refused(text: str) -> None:
    try:
        query = Query(cursor=text)
    except UsageError:
        return
    with pytest.raises(CursorInvalid):
        decode_cursor(query, SECRET)


def test_a_cursor_of_another_store_is_refused() -> None:
    with pytest.raises(CursorInvalid):
        decode_cursor(Query(cursor=encode_cursor(Query(), Position(1, 1), b"o" * 32)), SECRET)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"limit": 0}, "limit"), ({"limit": 1001}, "limit"), ({"limit": None}, "limit"), ({"limit": True}, "limit"),
        ({"holder": 1}, "holder"), ({"holder": "\ud800"}, "holder"), ({"target": "x" * 9000}, "target"),
        ({"after": -1}, "after"), ({"until": 2**64}, "until"), ({"min_token": "1"}, "min_token"),
        ({"actions": ["acquired"]}, "actions"), ({"newest_first": 1}, "newest_first"),
    ],
)  # fmt: skip
def test_a_question_that_is_none_is_refused_naming_the_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Query(**fields)  # type: ignore[arg-type]
