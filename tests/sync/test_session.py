"""A session: its table of states, and what a peer may not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from deltalog.codec import build
from deltalog.delta import Limits
from sync.errors import PeerBusy, ProtocolError, SessionRefused
from sync.messages import (
    FRAME_BYTES,
    VERSION,
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
    Total,
    Unwant,
    Want,
    Welcome,
    decode,
    encode_run,
)
from sync.session import CLAIMS_MAX, PARKED_BYTES, WINDOW_BYTES, WINDOW_DELTAS, Batch, Session, State, Witness

HASH = b"h" * 32
HELLO = Hello(VERSION, "team", "there", "bob")
WELCOME = Welcome(0, b"", 0, 0, HASH)
EVERY: list[Message] = [
    HELLO,
    WELCOME,
    Busy(1000),
    Goodbye("closing", ""),
    Compare(()),
    Want((("bob", 0),)),
    Unwant(("bob",)),
    Have((("bob", 3),)),
    Deltas("bob", 1, 1, b""),
    Head("bob", 1, HASH, b"", b"", b""),
    Commit(1),
    Ack(1, ()),
    Below("", (("bob", 3),)),
    Alive(1, 1, HASH),
    Total(1, 1),
]


def greeted() -> Session:
    session = Session("team", "here")
    session.receive(HELLO)
    return session


def opened(*asked: str) -> Session:
    session = greeted()
    session.receive(WELCOME)
    if asked:
        session.ask(tuple((source, 0) for source in asked))
    return session


def run(source: str, first: int, count: int, size: int = 10) -> tuple[list[Deltas], Head]:
    """Messages of one run, and its head (of no real hash)."""
    limits = Limits(payload_bytes=16 << 20)
    deltas = [build(source, seq, 1000 + seq, b"x" * size, limits=limits) for seq in range(first, first + count)]
    frames = encode_run(source, first, [delta.record for delta in deltas])
    messages = [decode(9, frame[5:]) for frame in frames]
    return [message for message in messages if isinstance(message, Deltas)], Head(
        source, first + count - 1, HASH, b"", b"", b""
    )


def give(session: Session, *messages: Any) -> Any:
    """Take messages in; what came of the last."""
    event = None
    for message in messages:
        event = session.receive(message)
    return event


def sent(session: Session, source: str, first: int, count: int, size: int = 10) -> None:
    deltas, head = run(source, first, count, size)
    give(session, *deltas, head)


# ----------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("session", "allowed"),
    [
        (Session("team", "here"), {Hello, Busy, Goodbye}),
        (greeted(), {Welcome, Busy, Goodbye}),
        (opened("bob"), {type(message) for message in EVERY} - {Hello, Welcome, Busy}),
    ],
    ids=["greeting", "welcoming", "open"],
)
def test_each_state_takes_its_messages_and_no_other(session: Session, allowed: set[type]) -> None:
    state = session.state
    for message in EVERY:
        if type(message) not in allowed:
            session.state = state
            with pytest.raises(ProtocolError, match=f"must not come while {state.value}"):
                session.receive(message)
            assert session.state is State.ENDED


def test_nothing_comes_after_the_end() -> None:
    session = opened()
    assert give(session, Goodbye("closing", "")) == Goodbye("closing", "")
    for message in EVERY:
        with pytest.raises(ProtocolError, match="while ended"):
            session.receive(message)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 2 of the protocol"),
        ({"cluster": "others"}, "of cluster 'others'; this node of 'team'"),
        ({"node": "here"}, "this node's own name"),
    ],
)
def test_who_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    session = Session("team", "here")
    with pytest.raises(SessionRefused, match=match):
        session.receive(attrs.evolve(HELLO, **change))
    assert session.state is State.ENDED


def test_a_busy_peer_says_when_to_come_back() -> None:
    with pytest.raises(PeerBusy, match=r"1\.5 s") as caught:
        greeted().receive(Busy(1500))
    assert caught.value.retry_after_s == 1.5


# ------------------------------------------------------------------------------------------------------- batches here


def test_runs_make_a_batch_that_is_decided_in_order() -> None:
    session = opened("bob", "carol")
    sent(session, "bob", 1, 3)
    assert session.receive(Have((("dave", 1),))) is not None  # other messages may stand between
    sent(session, "carol", 1, 1)
    first = give(session, Commit(1))
    assert isinstance(first, Batch)
    assert [(each.source, each.after, len(each.deltas)) for each in first.runs] == [("bob", 0, 3), ("carol", 0, 1)]
    assert first.count == 4
    sent(session, "bob", 4, 1)
    second = give(session, Commit(2))
    assert session.decided(first, (("bob", 3),)) == Ack(1, (("bob", 3),))
    assert session.decided(second, ()).number == 2


def wrong(session: Session, match: str, *messages: Any) -> None:
    with pytest.raises(ProtocolError, match=match):
        give(session, *messages)
    assert session.state is State.ENDED


def both(source: str, first: int, count: int, size: int = 10) -> Sequence[Any]:
    deltas, head = run(source, first, count, size)
    return [*deltas, head]


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([*both("dave", 1, 1)], "'dave' was not asked for"),
        ([*both("bob", 1, 2)[:-1], *both("bob", 4, 1)], "from 4, within a run"),
        ([*both("bob", 1, 2)[:-1], *both("carol", 1, 1)], "'carol' from 1, within a run of 'bob'"),
        ([*both("bob", 1, 2)[:-1], Head("bob", 3, HASH, b"", b"", b"")], "head 'bob':3 behind a run that ends"),
        ([*both("bob", 1, 2)[:-1], Head("carol", 2, HASH, b"", b"", b"")], "head 'carol':2 behind"),
        ([*both("bob", 1, 2), *both("bob", 3, 1)], "two runs of 'bob'"),
        ([*both("bob", 1, 2), Commit(2)], "batch 2 where 1 was due"),
        ([Commit(1)], "COMMIT of an empty batch"),
        ([*both("bob", 1, 2)[:-1], Commit(1)], "COMMIT within a run"),
        ([Ack(1, ())], "ACK of batch 1, which is not due"),
        ([Below("", (("dave", 3),))], "'dave' was not asked for"),
    ],
)
def test_a_batch_that_breaks_a_rule_ends_the_session(messages: list[Any], match: str) -> None:
    wrong(opened("bob", "carol"), match, *messages)


def test_a_run_over_several_frames_must_ascend_in_time() -> None:
    first, _ = run("bob", 1, 1, FRAME_BYTES)
    again = build("bob", 2, 1, b"earlier")
    wrong(opened("bob"), "the timestamp of seq 2 does not ascend", *first, Deltas("bob", 2, 1, again.record))


def test_what_waits_here_is_bounded() -> None:
    session = opened("bob")
    most = PARKED_BYTES // 10_100
    for number in range(1, most // 20 + 1):
        give(session, *both("bob", 20 * number, 20, 10_000), Commit(number))
    wrong(session, f"the limit is {PARKED_BYTES:,}", *both("bob", 1000, 40, 10_000))


def test_what_was_decided_makes_room() -> None:
    session = opened("bob")
    for number in range(1, 50):
        batch = give(session, *both("bob", 20 * number, 20, 10_000), Commit(number))
        session.decided(batch, ())


def test_one_delta_may_be_larger_than_what_may_wait() -> None:
    session = Session("team", "here", Limits(payload_bytes=8 << 20))
    give(session, HELLO, WELCOME)
    session.ask((("bob", 0),))
    assert isinstance(give(session, *both("bob", 1, 1, 6 << 20), Commit(1)), Batch)


def test_a_head_outside_a_run_is_shown_and_nothing_else() -> None:
    head = Head("bob", 4, HASH, b"", b"", b"")
    assert opened().receive(head) == Witness(head)


# ---------------------------------------------------------------------------------------------------- towards the peer


def test_batches_on_their_way_fill_the_window_until_acknowledged() -> None:
    session = opened()
    assert session.sending({"alice": 3}, WINDOW_BYTES - 1, 3) == Commit(1)
    assert session.room
    session.sending({"alice": 4}, 1, 1)
    assert (session.room, session.in_flight) == (False, 2)
    session.receive(Ack(1, (("alice", 3),)))
    assert (session.room, session.claims) == (True, {"alice": 3})
    wrong(session, "which batch 2 does not hold", Ack(2, (("bob", 3),)))


def test_small_deltas_fill_the_window_by_their_number() -> None:
    session = opened()
    session.sending({"alice": WINDOW_DELTAS - 1}, 1, WINDOW_DELTAS - 1)
    assert session.room
    session.sending({"alice": WINDOW_DELTAS}, 1, 1)
    assert not session.room


def test_acknowledgements_come_in_order() -> None:
    session = opened()
    session.sending({"alice": 3}, 1, 3)
    session.sending({"alice": 4}, 1, 1)
    wrong(session, "ACK of batch 2, which is not due", Ack(2, ()))


def test_wants_stand_until_taken_back() -> None:
    session = opened()
    give(session, Want((("alice", 3), ("bob", 0))))
    session.wanted["alice"] = 9
    give(session, Want((("alice", 5),)), Unwant(("bob", "carol")))
    assert session.wanted == {"alice": 5}


def test_claims_never_fall_and_are_bounded() -> None:
    session = opened()
    give(session, Have((("bob", 5),)), Have((("bob", 3),)))
    assert session.claims == {"bob": 5}
    session.claims.update(dict.fromkeys(map(str, range(CLAIMS_MAX)), 1))
    give(session, Have((("bob", 6),)))
    wrong(session, "heads of more than 262,144 sources", Have((("new", 1),)))


def test_wants_are_bounded() -> None:
    session = opened()
    session.wanted.update(dict.fromkeys(map(str, range(CLAIMS_MAX)), 1))
    wrong(session, "more than 262,144 sources are wanted", Want((("new", 1),)))
