"""Stability: leases and acknowledgements, step by step and against a model that keeps all that was ever said."""

from __future__ import annotations

import math
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import DecodeError, UsageError
from deltalog.stability import LEASE_S, Stability

PEERS = ("p", "q", "r")
SOURCES = ("alice", "bob", "carol")
VECTORS = st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 9))


def of(**peers: dict[str, int]) -> Stability:
    """Peers that have acknowledged this, in their first session, at 0."""
    made = Stability()
    for peer, held in peers.items():
        made.join(peer, 0, 10)
        made.acknowledge(peer, held, 0)
    return made


def test_without_peers_everything_is_stable_and_nobody_holds_anything() -> None:
    assert Stability().stable({"alice": 5}, 0) == {"alice": 5}
    assert Stability().held_by(1) == {}
    assert Stability().peers == ()


def test_i13_a_peer_that_has_told_nothing_pins_everything_until_its_lease_is_over() -> None:
    made = Stability()
    made.join("p", 100)
    assert made.stable({"alice": 5}, 100 + LEASE_S - 1) == {"alice": 0}
    assert made.stable({"alice": 5}, 100 + LEASE_S) == {"alice": 5}
    made.seen("p", 100 + LEASE_S)
    assert made.stable({"alice": 5}, 100 + LEASE_S) == {"alice": 0}, "it is back"
    assert made.forget("p")
    assert not made.forget("p")
    assert made.stable({"alice": 5}, 100 + LEASE_S) == {"alice": 5}


def test_i13_what_is_stable_is_what_every_peer_acknowledged_and_no_more_than_is_asked_for() -> None:
    made = of(p={"alice": 5, "bob": 9}, q={"alice": 7, "bob": 2, "carol": 3})
    assert made.stable({"alice": 9, "bob": 9, "carol": 9, "dave": 1}, 5) == {
        "alice": 5,
        "bob": 2,
        "carol": 0,
        "dave": 0,
    }
    assert made.stable({"alice": 3, "bob": 1}, 5) == {"alice": 3, "bob": 1}
    made.join("p", 9, 1)
    assert made.stable({"alice": 9, "bob": 9}, 9.5) == {"alice": 5, "bob": 2}
    assert made.stable({"alice": 9}, 10) == {"alice": 9}, "one lease was cut short, the other is over"


def test_within_a_session_acknowledgements_only_rise() -> None:
    made = of(p={"alice": 5})
    made.acknowledge("p", {"alice": 3}, 1)
    assert made.acknowledged("p") == {"alice": 5}
    made.acknowledge("p", [("alice", 6), ("bob", 1)], 1)
    assert made.acknowledged("p") == {"alice": 6, "bob": 1}


def test_a_peer_that_was_put_back_to_an_older_state_is_believed_anew() -> None:
    made = of(p={"alice": 5, "bob": 5, "carol": 5})
    made.reset("p", 1)
    assert made.acknowledged("p") == {}
    assert made.stable({"alice": 9}, 1) == {"alice": 0}
    made.acknowledge("p", {"alice": 2, "bob": 0}, 1)
    assert made.acknowledged("p") == {"alice": 2}
    assert made.stable({"alice": 9, "carol": 9}, 2) == {"alice": 2, "carol": 0}


def test_what_at_least_so_many_peers_hold() -> None:
    made = of(p={"alice": 5, "bob": 0}, q={"alice": 7}, r={"alice": 2, "carol": 1})
    assert made.held_by(1) == {"alice": 7, "carol": 1}
    assert made.held_by(2) == {"alice": 5}
    assert made.held_by(3) == {"alice": 2}
    assert made.held_by(4) == {}
    assert made.stable({"alice": 9}, 1_000) == {"alice": 9}, "long past their leases"
    made.reset("q", 1_000)
    made.acknowledge("q", {"alice": 1}, 1_000)
    assert made.held_by(1) == {"alice": 5, "carol": 1}


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1"])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(UsageError, match="count must be an integer of at least 1"):
        Stability().held_by(count)


@pytest.mark.parametrize("peer", ["", "p" * 256, "é" * 128, 7, None])
def test_a_name_that_is_none_is_refused(peer: Any) -> None:
    with pytest.raises(UsageError, match="peer must be a name of 1 to 255"):
        Stability().join(peer, 0)


@pytest.mark.parametrize("lease_s", [0, -1, math.nan, "1", None, True])
def test_a_lease_that_is_none_is_refused(lease_s: Any) -> None:
    with pytest.raises(UsageError, match="lease_s must be a number of seconds above 0"):
        Stability().join("p", 0, lease_s)


@pytest.mark.parametrize("told", [{"alice": -1}, {"alice": 1.0}, {5: 1}, [("alice", True)]])
def test_an_acknowledgement_that_is_none_is_refused(told: Any) -> None:
    made = of(p={"bob": 1})
    with pytest.raises(UsageError, match="acknowledged must be sources and seqs"):
        made.acknowledge("p", told, 0)
    assert made.acknowledged("p") == {"bob": 1}


def test_a_peer_that_is_not_known_is_no_peer() -> None:
    made = Stability()
    for call in (
        lambda: made.seen("p", 0),
        lambda: made.reset("p", 0),
        lambda: made.acknowledge("p", {}, 0),
        lambda: made.acknowledged("p"),
        lambda: made.pins("p", 0),
    ):
        with pytest.raises(UsageError, match="peer 'p' is not known: join it first"):
            call()
    assert made.peers == ()


# -------------------------------------------------------------------------------------------------------- kept on disk


def test_leases_go_on_after_a_restart_without_the_time_in_between() -> None:
    made = of(p={"alice": 5})
    made.join("q", 0, 100)
    made.join("gone", -50, 10)
    again = Stability.unpack(made.pack(4), 1_000_000)
    assert again.peers == ("p", "q", "gone")
    assert again.acknowledged("p") == {}, "learnt anew"
    assert [again.pins(peer, 1_000_005.9) for peer in again.peers] == [True, True, False]
    assert [again.pins(peer, 1_000_006) for peer in again.peers] == [False, True, False]
    again.seen("p", 1_000_006)
    assert again.pins("p", 1_000_015.9)
    assert Stability.unpack(Stability().pack(0), 5).peers == ()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        msgpack.packb([2, []]),
        msgpack.packb([1]),
        msgpack.packb({}),
        msgpack.packb(5),
        msgpack.packb([1, [["p", 10]]]),
        msgpack.packb([1, [["p", 10, 11]]]),
        msgpack.packb([1, [["p", 10, -1]]]),
        msgpack.packb([1, [["p", 10, "x"]]]),
        msgpack.packb([1, [["p", 0, 0]]]),
        msgpack.packb([1, [[b"p", 10, 1]]]),
        msgpack.packb([1, 5]),
    ],
    ids=repr,
)
def test_bytes_that_are_no_peers_are_refused(packed: bytes) -> None:
    with pytest.raises(DecodeError, match="^peers: "):
        Stability.unpack(packed, 0)


# --------------------------------------------------------------------------------------------------- against a model


@attrs.define
class Said:
    """What a peer said in its last session: (source, seq)."""

    lease_s: float
    seen_s: float
    told: list[tuple[str, int]] = attrs.field(factory=list)

    def seq(self, source: str) -> int:
        """The most it said of a source."""
        return max((seq for name, seq in self.told if name == source), default=0)


STEPS = st.one_of(
    st.tuples(st.just("join"), st.integers(1, 9)),
    st.tuples(st.just("forget"), st.none()),
    st.tuples(st.just("seen"), st.none()),
    st.tuples(st.just("reset"), st.none()),
    st.tuples(st.just("restart"), st.integers(-5, 5)),
    st.tuples(st.just("acknowledge"), VECTORS),
    st.tuples(st.just("acknowledge"), VECTORS),
    st.tuples(st.just("acknowledge"), VECTORS),
)


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.integers(0, 4), STEPS), max_size=40), VECTORS)
def test_i13_against_a_model(steps: list[tuple[str, int, tuple[str, Any]]], heads: dict[str, int]) -> None:
    made, model, now = Stability(), dict[str, Said](), 0.0
    for peer, passed, (step, value) in steps:
        now += passed
        said = model.get(peer)
        if step == "join":
            made.join(peer, now, value)
            model[peer] = Said(value, now) if said is None else attrs.evolve(said, lease_s=value, seen_s=now)
        elif step == "restart":
            left = {name: said.seen_s + said.lease_s - now for name, said in model.items()}
            made, now = Stability.unpack(made.pack(now), now + value), now + value
            model = {name: Said(said.lease_s, now + max(0, left[name]) - said.lease_s) for name, said in model.items()}
        elif said is None:
            assert step == "forget" or peer not in made.peers
        elif step == "forget":
            assert made.forget(peer)
            del model[peer]
        else:
            said.seen_s = max(said.seen_s, now)
            if step == "seen":
                made.seen(peer, now)
            elif step == "reset":
                made.reset(peer, now)
                said.told = []
            else:
                made.acknowledge(peer, value, now)
                said.told += value.items()
        check(made, model, now, heads)


def check(made: Stability, model: dict[str, Said], now: float, heads: dict[str, int]) -> None:
    assert list(made.peers) == list(model)
    pinning = [said for said in model.values() if now < said.seen_s + said.lease_s]
    assert made.stable(heads, now) == {s: min([seq, *(said.seq(s) for said in pinning)]) for s, seq in heads.items()}
    for name, said in model.items():
        assert made.acknowledged(name) == {source: seq for source in SOURCES if (seq := said.seq(source))}
        assert made.pins(name, now) == (said in pinning)
    for count in range(1, 5):
        most = {s: max((q for q in range(1, 10) if holders(model, s, q) >= count), default=0) for s in SOURCES}
        assert made.held_by(count) == {source: seq for source, seq in most.items() if seq}


def holders(model: dict[str, Said], source: str, seq: int) -> int:
    return sum(said.seq(source) >= seq for said in model.values())
