"""Feeders: one at a time for each source, and another when it goes or stalls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sync.feeders import Feeders, best


def test_a_source_has_one_feeder_at_a_time() -> None:
    feeders = Feeders()
    assert feeders.take("s", "a", 0)
    assert not feeders.take("s", "b", 0)
    assert not feeders.take("s", "a", 0)
    assert (feeders.get("s"), feeders.get("t"), len(feeders)) == ("a", None, 1)
    assert not feeders.drop("s", "b")
    assert feeders.drop("s", "a")
    assert feeders.take("s", "b", 0)


def test_who_leaves_leaves_orphans() -> None:
    feeders = Feeders()
    for source, peer in (("s", "a"), ("t", "b"), ("u", "a")):
        feeders.take(source, peer, 0)
    assert feeders.leave("a") == ["s", "u"]
    assert feeders.leave("a") == []
    assert len(feeders) == 1


def test_what_does_not_move_though_more_is_claimed_has_stalled() -> None:
    feeders = Feeders()
    feeders.take("s", "a", 3)
    feeders.take("t", "a", 3)
    claims = {"a": {"s": 5, "t": 3}, "b": {"s": 4}}
    assert feeders.stalled(lambda _: 3, claims) == []  # it may have been asked for just now
    assert feeders.stalled(lambda _: 3, claims) == [("s", "a")]
    assert feeders.stalled(lambda _: 4, claims) == []  # it moved
    assert feeders.stalled(lambda _: 4, claims) == [("s", "a")]
    assert feeders.stalled(lambda _: 5, claims) == []


def test_who_claims_more_and_does_not_send_it_is_doubted_longer_each_time() -> None:
    feeders, claims = Feeders(), {"a": {"s": 3}, "liar": {"s": 9}}
    lasted = []
    for _ in range(8):
        feeders.take("s", "liar", 3)
        feeders.stalled(lambda _: 3, claims)
        assert feeders.stalled(lambda _: 3, claims) == [("s", "liar")]
        feeders.drop("s", "liar")
        feeders.take("s", "a", 3)
        assert feeders.doubted("liar", "s")
        looks = 1
        while not feeders.stalled(lambda _: 3, claims):
            looks += 1
        lasted.append(looks)
        assert not feeders.doubted("liar", "s")
        assert not feeders.doubted("a", "s"), "it has sent all that it has"
        feeders.drop("s", "a")
    assert lasted == [2, 4, 8, 16, 32, 64, 64, 64]
    feeders.leave("liar")
    feeders.take("s", "liar", 3)
    feeders.stalled(lambda _: 3, claims)
    assert feeders.stalled(lambda _: 3, claims) == [("s", "liar")]
    feeders.stalled(lambda _: 4, claims)
    assert not feeders.doubted("liar", "s"), "it delivers"


def test_the_best_feeder_claims_most_and_is_not_the_one_to_avoid() -> None:
    claims = {"a": {"s": 9}, "b": {"s": 7}, "c": {"s": 7}}
    assert best("s", 3, claims) == "a"
    assert best("s", 3, claims, ["a"]) == "c"
    assert best("s", 8, claims, ["a"]) == "a"
    assert best("s", 9, claims) is None


@given(st.lists(st.tuples(st.sampled_from("stuv"), st.sampled_from("abc"), st.sampled_from(["take", "drop", "leave"]))))
def test_against_a_dictionary(steps: list[tuple[str, str, str]]) -> None:
    feeders, model = Feeders(), dict[str, str]()
    for source, peer, step in steps:
        if step == "take":
            assert feeders.take(source, peer, 0) == (source not in model)
            model.setdefault(source, peer)
        elif step == "drop":
            assert feeders.drop(source, peer) == (model.get(source) == peer)
            model = {s: p for s, p in model.items() if (s, p) != (source, peer)}
        else:
            assert set(feeders.leave(peer)) == {s for s, p in model.items() if p == peer}
            model = {s: p for s, p in model.items() if p != peer}
        assert {s: feeders.get(s) for s in "stuv" if feeders.get(s) is not None} == model
