"""Sources that contradict themselves: what is evidence, who believes it, and how heads and evidence are kept."""

from __future__ import annotations

import contextlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog import startup
from deltalog.delta import SEQ_MAX
from deltalog.errors import DecodeError
from sync import trust
from sync.errors import HeadRefused
from sync.trust import Evidence, SignedHead, Trust, decode_head, encode_head
from tests import strategies
from tests.sync.test_trust import ANN, AUTHORITY, BEN, CLUSTER, A, B, Key, refused, trusting, unsigned, verify


def evidence_of(key: Key = ANN, source: str = "ann") -> Evidence:
    evidence = Evidence.of(key.head(source, 5, B), key.head(source, 5, A))
    assert evidence is not None
    return evidence


def owned() -> Trust:
    trusted = trusting()
    trusted.bind("ann", ANN.key)
    return trusted


def test_two_histories_signed_by_the_owner_are_evidence() -> None:
    trusted = owned()
    evidence = trusted.compare(ANN.head("ann", 5, A), ANN.head("ann", 5, B))
    assert evidence == trusted.compare(ANN.head("ann", 5, B), ANN.head("ann", 5, A)) == evidence_of()
    assert (evidence_of().source, evidence_of().key) == ("ann", ANN.key)


@pytest.mark.parametrize(
    "other",
    [
        ANN.head("ann", 5, A),
        ANN.head("ann", 6, B),
        ANN.head("ben", 5, B),
        BEN.head("ann", 5, B),
        unsigned("ann"),
        attrs.evolve(ANN.head("ann", 5, A), hash=B),
        ANN.head("ann", 5, B, cluster="meadow"),
    ],
    ids=["equal", "another seq", "another source", "another key", "unsigned", "altered", "another cluster"],
)
def test_nothing_else_is_evidence(other: SignedHead) -> None:
    trusted = owned()
    assert trusted.compare(ANN.head("ann", 5, A), other) is None
    assert trusted.compare(other, ANN.head("ann", 5, A)) is None


def test_two_histories_signed_by_one_who_does_not_own_the_source_are_no_evidence() -> None:
    assert owned().compare(BEN.head("ann", 5, A), BEN.head("ann", 5, B)) is None
    assert trusting().compare(ANN.head("ann", 5, A), ANN.head("ann", 5, B)) is None


def test_a_quarantined_source_is_refused_whoever_signs() -> None:
    trusted = owned()
    assert trusted.quarantine(evidence_of())
    assert not trusted.quarantine(evidence_of())
    assert trusted.quarantined == {"ann": evidence_of()}
    refused(trusted, ANN.head("ann", 4), "is quarantined")
    refused(trusted, unsigned("ann"), "is quarantined")
    assert trusted.check(ANN.head("other")), "its key may go on"
    assert trusted.check(ANN.head(startup._incarnation("ann"))), "as a new incarnation of the source, too"


def test_evidence_that_does_not_hold_quarantines_nothing() -> None:
    trusted, good = owned(), evidence_of()
    spoilt = attrs.evolve(good.second, signature=bytes(64))
    for evidence in (
        Evidence(good.first, spoilt),
        Evidence(good.first, good.first),
        Evidence(good.second, good.first),
        Evidence(good.first, ANN.head("ann", 6, B)),
        Evidence(good.first, ANN.head("ben", 5, B)),
    ):
        with pytest.raises(HeadRefused, match="does not hold"):
            trusted.quarantine(evidence)
    with pytest.raises(HeadRefused, match="which does not own it"):
        trusted.quarantine(evidence_of(BEN))
    assert not trusted.quarantined
    assert not trusted.check(ANN.head("ann"))


def test_another_pin_ends_a_quarantine() -> None:
    trusted = trusting(named={"ann": BEN.key})
    with pytest.raises(HeadRefused, match="which does not own it"):
        trusted.quarantine(evidence_of())
    assert not trusted.check(BEN.head("ann"))


def test_a_third_party_verifies_evidence_from_its_bytes_and_the_name_of_the_cluster() -> None:
    data = AUTHORITY.vouch(ANN)
    evidence = Evidence.decode(evidence_of(data).encode())
    assert evidence.holds(CLUSTER, verify)
    assert not evidence.holds("meadow", verify)
    assert Evidence.decode(evidence.encode()) == evidence_of(data)


def test_any_flipped_bit_of_evidence_shows() -> None:
    """Vouchers apart, which no signature covers: there is none here."""
    data = evidence_of().encode()
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        try:
            evidence = Evidence.decode(bytes(flipped))
        except DecodeError:
            continue
        assert not evidence.holds(CLUSTER, verify), f"bit {at}"


def test_a_contradiction_at_another_time_is_found() -> None:
    trusted = owned()
    assert trusted.remember(ANN.head("ann", 5, A)) is None
    assert trusted.remember(ANN.head("ann", 5, A)) is None
    assert trusted.remember(ANN.head("ann", 5, B)) == evidence_of()
    assert trusted.remember(unsigned("import")) is None
    assert trusted.latest("import") is None


def test_the_latest_head_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "REMEMBERED_MAX", 2)
    trusted = trusting()
    for head in (ANN.head("a", 5), ANN.head("a", 7, A), ANN.head("a", 6), ANN.head("b"), ANN.head("a", 3)):
        assert trusted.remember(head) is None
    assert trusted.latest("a") == ANN.head("a", 7, A)
    trusted.remember(ANN.head("c"))
    assert (trusted.latest("a"), trusted.latest("b")) == (ANN.head("a", 7, A), None)


# ---------------------------------------------------------------------------------------------------------- encoding


@given(
    strategies.sources(),
    strategies.seqs(),
    st.binary(min_size=32, max_size=32),
    st.sampled_from([(0, 0, 0), (32, 64, 0), (32, 64, 64)]),
)
def test_a_head_has_one_encoding(source: str, seq: int, hash_: bytes, sizes: tuple[int, int, int]) -> None:
    head = SignedHead(source, seq, hash_, *(b"\xff" * size for size in sizes))
    data = encode_head(head)
    assert decode_head(data) == head
    assert encode_head(decode_head(data)) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes are too few"),
        (bytes([2]) + encode_head(ANN.head("a"))[1:], "unknown version 2"),
        (bytes([1, 2]) + encode_head(ANN.head("a"))[2:], "flags 2"),
        (bytes([1, 4]) + encode_head(ANN.head("a"))[2:], "flags 4"),
        (encode_head(attrs.evolve(unsigned("a"), seq=0)), "seq must be"),
        (encode_head(attrs.evolve(unsigned("a"), seq=SEQ_MAX + 1)), "seq must be"),
        (encode_head(ANN.head("a"))[:-1], "source must not be empty"),
        (encode_head(ANN.head("a"))[:100], "source must not be empty"),
        (encode_head(ANN.head("a")) + b"\xff", "codec can't decode"),
        (encode_head(unsigned("a" * 256)), "source is 256 bytes"),
    ],
)
def test_what_is_no_head_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_head(data)


def test_what_is_no_evidence_is_refused() -> None:
    good = evidence_of()
    for heads in (
        (good.second, good.first),
        (good.first, good.first),
        (good.first, ANN.head("ann", 6, B)),
        (good.first, BEN.head("ann", 5, B)),
        (unsigned("ann"), attrs.evolve(unsigned("ann"), hash=B)),
    ):
        with pytest.raises(DecodeError, match="do not contradict each other, or stand in the wrong order"):
            Evidence.decode(Evidence(*heads).encode())
    for data in (b"", b"\1", b"\2" + good.encode()[1:]):
        with pytest.raises(DecodeError, match="too few, or of an unknown version"):
            Evidence.decode(data)


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda raw: evidence_of().encode()[:50] + raw))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode in (decode_head, Evidence.decode):
        with contextlib.suppress(DecodeError):
            decode(data)
