"""Two indexes compared: both sides learn exactly what differs, in few bytes; hostile answers end it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.delta import SEQ_MAX
from deltalog.errors import UsageError
from sync import comparison
from sync.comparison import (
    ANSWER,
    DIGESTS,
    ENTRIES,
    FEW_SOURCES_MAX,
    MESSAGE_BYTES,
    MESSAGE_BYTES_MIN,
    Comparison,
    Part,
    decode,
    encode,
)
from sync.heads import Entry, HeadsIndex
from tests.sync.test_heads import Model, hash_of, index_of, models, numbered

NOTHING = (0, b"")


@attrs.define
class Run:
    """What a whole comparison gave."""

    learnt: tuple[Model, Model] = attrs.field(factory=lambda: ({}, {}))
    """By the side that began, and by the other."""
    sizes: list[int] = attrs.field(factory=list)
    """Bytes of each message."""

    def learn(self, side: int, entries: Sequence[Entry]) -> None:
        for source, seq, hash_ in entries:
            assert source not in self.learnt[side], "learnt twice"
            self.learnt[side][source] = (seq, hash_)


def compared(
    a: HeadsIndex,
    b: HeadsIndex,
    *,
    message_bytes: int = MESSAGE_BYTES,
    between: Callable[[], None] = lambda: None,
    unknown_max: int = 1 << 20,
) -> Run:
    """Let two sides talk until both are done; every message crosses as bytes. Fails if one waits for ever."""
    run = Run()
    sides = [Comparison(index, message_bytes=message_bytes, unknown_max=unknown_max) for index in (a, b)]
    done = [False, False]
    message: list[Part] | None = sides[0].start()
    to = 1
    while message is not None:
        packed = msgpack.packb(encode(message))
        run.sizes.append(len(packed))
        between()
        step = sides[to].receive(decode(msgpack.unpackb(packed, max_array_len=1024)))
        run.learn(to, step.learnt)
        done[to] = step.done
        message, to = step.answer, 1 - to
    assert done == [True, True]
    return run


def difference(mine: Model, theirs: Model) -> Model:
    """What `mine` has to learn of `theirs`."""
    return {source: theirs.get(source, NOTHING) for source in mine | theirs if mine.get(source) != theirs.get(source)}


def assert_learnt(a: Model, b: Model, run: Run) -> None:
    assert run.learnt[0] == difference(a, b)
    assert run.learnt[1] == difference(b, a)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Model, Model]:
    """Two models: related (some entries changed, forked or missing on either side), or not at all."""
    a = draw(models())
    if draw(st.integers(0, 4)) == 0:
        return a, draw(models())
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    b, share = dict(a), draw(st.sampled_from([0, 0.01, 0.2, 0.9]))
    for source in sorted(a):
        if rng.random() < share:
            seq, hash_ = a[source]
            change = rng.randrange(4)
            if change == 0:
                b[source] = (min(seq + 1, SEQ_MAX), hash_of(1 << 30))
            elif change == 1:
                b[source] = (seq, hash_of(1 << 40))
            elif change == 2:
                del b[source]
            else:
                b[source + "x"[: 255 - len(source.encode())] or source] = (seq, hash_)
    return (a, b) if draw(st.booleans()) else (b, a)


@given(pairs(), st.sampled_from([MESSAGE_BYTES_MIN, MESSAGE_BYTES]))
def test_both_sides_learn_exactly_the_symmetric_difference(pair: tuple[Model, Model], message_bytes: int) -> None:
    a, b = pair
    run = compared(index_of(a), index_of(b), message_bytes=message_bytes)
    assert_learnt(a, b, run)
    assert max(run.sizes) <= message_bytes


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 0), (0, 3000), (3000, 0), (3000, 3), (3, 3000), (256, 257)])
def test_unlike_sizes(counts: tuple[int, int]) -> None:
    a, b = (numbered(count) for count in counts)
    assert_learnt(a, b, compared(index_of(a), index_of(b)))


def test_nothing_in_common_in_many_messages() -> None:
    a, b = numbered(3000, "left-" + "l" * 240), numbered(2000, "right-" + "r" * 240)
    run = compared(index_of(a), index_of(b), message_bytes=MESSAGE_BYTES_MIN)
    assert_learnt(a, b, run)
    assert len(run.sizes) > 50
    assert max(run.sizes) <= MESSAGE_BYTES_MIN


def test_names_of_the_greatest_size_fit_the_smallest_message() -> None:
    """256 sources are sent at once only if that fits."""
    a, b = numbered(256, "l" * 248), numbered(100, "r" * 248)
    run = compared(index_of(a), index_of(b), message_bytes=MESSAGE_BYTES_MIN)
    assert_learnt(a, b, run)
    assert max(run.sizes) <= MESSAGE_BYTES_MIN


def test_equal_indexes_need_one_question() -> None:
    run = compared(index_of(numbered(5000)), index_of(numbered(5000)))
    assert run.learnt == ({}, {})
    assert len(run.sizes) == 2
    assert sum(run.sizes) < 300


def test_few_sources_are_sent_as_they_are() -> None:
    model = numbered(FEW_SOURCES_MAX)
    (part,) = Comparison(index_of(model)).start()
    assert part.kind == ENTRIES
    assert {entry.source: entry[1:] for entry in part.entries} == model
    (part,) = Comparison(index_of(numbered(FEW_SOURCES_MAX + 1))).start()
    assert part.kind == DIGESTS


@pytest.mark.parametrize(("count", "bytes_max", "messages"), [(100, 8_000, 2), (10_000, 4_000, 5), (100_000, 5_000, 6)])
def test_one_changed_source_costs_kilobytes(count: int, bytes_max: int, messages: int) -> None:
    model = numbered(count)
    changed = model | {"source-7": (999, hash_of(999))}
    run = compared(index_of(model), index_of(changed))
    assert_learnt(model, changed, run)
    assert sum(run.sizes) <= bytes_max
    assert len(run.sizes) <= messages


def test_a_fork_shows_as_a_difference() -> None:
    a, b = numbered(1000), numbered(1000) | {"source-5": (6, hash_of(1 << 20))}
    run = compared(index_of(a), index_of(b))
    assert run.learnt == ({"source-5": (6, hash_of(1 << 20))}, {"source-5": (6, hash_of(5))})


@given(st.integers(0, 1 << 30), st.sampled_from([(50, 40), (600, 500), (3000, 2500)]), st.booleans())
def test_indexes_that_change_meanwhile_do_no_harm(seed: int, sizes: tuple[int, int], begin: bool) -> None:
    """The comparison ends, and what did not change is learnt; the next one finds the rest."""
    rng = random.Random(seed)
    a, b = numbered(sizes[0]), numbered(sizes[1]) | {"fork": (1, hash_of(1))}
    fixed = difference(a, b)
    sides = [index_of(a), index_of(b)]

    def change() -> None:
        for _ in range(rng.randrange(60)):
            name = f"new-{rng.randrange(200)}" if rng.random() < 0.5 else f"source-{rng.randrange(sizes[1])}"
            rng.choice(sides).put(name, rng.randrange(1, 1 << 40), hash_of(rng.randrange(1 << 40)))

    run = compared(*sides, message_bytes=MESSAGE_BYTES_MIN, between=change)
    assert fixed.items() <= run.learnt[0].items()
    again = compared(*sides, message_bytes=MESSAGE_BYTES_MIN)
    models_now = [{entry.source: (entry.seq, entry.hash) for entry in side.entries()} for side in sides]
    assert_learnt(models_now[0], models_now[1], again)


@given(models())
def test_parts_cross_as_lists(model: Model) -> None:
    parts = Comparison(index_of(model)).start()
    assert decode(encode(parts)) == parts
    assert decode(msgpack.unpackb(msgpack.packb(encode(parts)), use_list=False)) == parts
    packed = len(msgpack.packb(encode(parts)))
    assert packed <= sum(part.size_bytes for part in parts) + comparison._PART_BYTES


def test_a_message_bound_too_small_for_one_part_is_refused() -> None:
    with pytest.raises(UsageError, match="message_bytes must be at least 16,384"):
        Comparison(HeadsIndex(), message_bytes=MESSAGE_BYTES_MIN - 1)


def test_a_message_holds_a_bounded_number_of_parts_however_much_room_there_is() -> None:
    a = numbered(20_000)
    b = {source: (seq + 1, hash_) for source, (seq, hash_) in a.items()}
    run = compared(index_of(a), index_of(b), message_bytes=8 << 20)
    assert_learnt(a, b, run)


def test_what_became_equal_meanwhile_is_not_learnt() -> None:
    index = HeadsIndex()
    side = Comparison(index)
    side.start()
    index.put("alice", 3, hash_of(3))
    step = side.receive([Part(ANSWER, entries=(Entry("alice", 3, hash_of(3)),))])
    assert (step.learnt, step.done) == ([], True)
