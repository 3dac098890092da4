"""Whose heads are accepted: every refusal, who owns a source, and what contradictions prove. Real Ed25519."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from deltalog import startup
from deltalog.errors import UsageError
from sync import trust
from sync.errors import HeadRefused
from sync.node_keys import voucher_message
from sync.trust import (
    ALL,
    SignedHead,
    Trust,
    sign_head,
    signed_bytes,
    voucher_bytes,
)
from tests import strategies

CLUSTER = "garden"


def verify(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


@attrs.frozen
class Key:
    """A node's key; what a `Signer` is."""

    number: int
    voucher: bytes = b""

    @property
    def private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(bytes([self.number]) * 32)

    @property
    def key(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)

    def vouch(self, other: Key, cluster: str = CLUSTER) -> Key:
        return attrs.evolve(other, voucher=self.sign(voucher_bytes(cluster, other.key)))

    def head(self, source: str, seq: int = 5, hash_: bytes = bytes(32), cluster: str = CLUSTER) -> SignedHead:
        return sign_head(self, cluster, source, seq, hash_)


ANN, BEN, EVE, AUTHORITY = (Key(number) for number in range(1, 5))
PINNED = frozenset({ANN.key, BEN.key})
A, B = b"a" * 32, b"b" * 32


def trusting(**options: Any) -> Trust:
    return Trust(CLUSTER, verify, **({"pinned": PINNED} | options))


def unsigned(source: str) -> SignedHead:
    return SignedHead(source, 5, bytes(32), b"", b"", b"")


def refused(trusted: Trust, head: SignedHead, reason: str) -> None:
    with pytest.raises(HeadRefused, match=reason) as caught:
        trusted.check(head)
    assert caught.value.source == head.source
    assert repr(head.source[:200]) in str(caught.value)


# --------------------------------------------------------------------------------------------------- keys and vouchers


def test_a_pinned_key_is_admitted() -> None:
    assert trusting().admits(ANN.key)
    assert not trusting().admits(EVE.key)
    assert not trusting().admits(b"")


def test_a_vouched_key_is_admitted() -> None:
    vouched = AUTHORITY.vouch(EVE)
    assert trusting(cluster_key=AUTHORITY.key).admits(EVE.key, vouched.voucher)
    assert trusting(cluster_key=AUTHORITY.key).check(vouched.head("eve"))


def forged_vouchers() -> dict[str, bytes]:
    good = AUTHORITY.vouch(EVE).voucher
    return {
        "none": b"",
        "short": good[:63],
        "long": good + b"\0",
        "altered": bytes([good[0] ^ 1]) + good[1:],
        "by another key": BEN.vouch(EVE).voucher,
        "by itself": EVE.vouch(EVE).voucher,
        "for another key": AUTHORITY.vouch(BEN).voucher,
        "of another cluster": AUTHORITY.vouch(EVE, "meadow").voucher,
        "a signed head": AUTHORITY.head("eve").signature,
    }


@pytest.mark.parametrize("name", forged_vouchers())
def test_a_forged_voucher_admits_nobody(name: str) -> None:
    trusted, voucher = trusting(cluster_key=AUTHORITY.key), forged_vouchers()[name]
    assert not trusted.admits(EVE.key, voucher)
    refused(trusted, attrs.evolve(EVE, voucher=voucher).head("eve"), "is not admitted")
    assert trusted.admits(EVE.key, AUTHORITY.vouch(EVE).voucher)
    assert not trusted.admits(EVE.key, voucher)


def test_without_a_cluster_key_no_voucher_counts() -> None:
    assert not trusting().admits(EVE.key, AUTHORITY.vouch(EVE).voucher)


def test_a_good_voucher_is_verified_once_and_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "VOUCHERS_MAX", 2)
    asked: list[bytes] = []

    def counting(key: bytes, signature: bytes, data: bytes) -> bool:
        asked.append(signature)
        return verify(key, signature, data)

    trusted = Trust(CLUSTER, counting, cluster_key=AUTHORITY.key)
    first, second, third = (AUTHORITY.vouch(Key(number)) for number in (10, 11, 12))
    for node in (first, second, first, second):
        assert trusted.admits(node.key, node.voucher)
    assert asked == [first.voucher, second.voucher]
    assert trusted.admits(third.key, third.voucher)
    assert trusted.admits(first.key, first.voucher)
    assert len(asked) == 4
    for _ in range(3):
        assert not trusted.admits(EVE.key, bytes(64))
    assert trusted.admits(first.key, first.voucher)
    assert len(asked) == 7, "bad vouchers push out no good ones"


def test_what_is_relayed_has_the_voucher_that_is_good() -> None:
    """No signature covers a voucher: a relay that alters it must not have this node blamed."""
    node = AUTHORITY.vouch(ANN)
    head, spoilt = node.head("ann"), attrs.evolve(ANN, voucher=bytes(64)).head("ann")
    trusted = trusting(cluster_key=AUTHORITY.key)
    assert trusted.check(spoilt)
    assert trusted.relayed(spoilt).voucher == b""
    trusted.check(head)
    assert trusted.relayed(spoilt) == head
    assert trusting().relayed(head) == head


# --------------------------------------------------------------------------------------------------- whose source it is


def test_the_first_admitted_key_that_signs_owns_the_source() -> None:
    trusted = trusting()
    assert trusted.owner("garden-log") is None
    assert trusted.check(ANN.head("garden-log"))
    assert trusted.owner("garden-log") == ANN.key
    assert not trusted.check(ANN.head("garden-log", 6))
    refused(trusted, BEN.head("garden-log", 7), "belongs to key")


def test_a_binding_is_loaded() -> None:
    trusted = trusting()
    trusted.bind("ann", ANN.key)
    trusted.bind("ann", ANN.key)
    assert not trusted.check(ANN.head("ann"))
    refused(trusted, BEN.head("ann"), "belongs to key")
    with pytest.raises(UsageError, match="belongs to key .* already"):
        trusted.bind("ann", BEN.key)
    with pytest.raises(UsageError, match="a public key must be 32 bytes"):
        trusted.bind("ben", b"short")
    with pytest.raises(UsageError, match="source must not be empty"):
        trusted.bind("", ANN.key)


def test_an_owner_that_is_no_longer_admitted_is_refused() -> None:
    trusted = trusting(pinned=frozenset({BEN.key}))
    trusted.bind("ann", ANN.key)
    refused(trusted, ANN.head("ann"), "is not admitted")


def test_a_refused_head_binds_nothing() -> None:
    trusted = trusting()
    refused(trusted, EVE.head("ann"), "is not admitted")
    refused(trusted, attrs.evolve(BEN.head("ann"), seq=6), "does not hold")
    assert trusted.check(ANN.head("ann"))


def test_a_pin_by_name_stands_above_a_binding_and_admits_nothing_else() -> None:
    trusted = trusting(named={"eve": EVE.key, "ann": BEN.key})
    trusted.bind("ann", ANN.key)
    assert not trusted.check(EVE.head("eve"))
    refused(trusted, ANN.head("eve"), "belongs to key")
    refused(trusted, EVE.head("other"), "is not admitted")
    assert not trusted.admits(EVE.key)
    refused(trusted, ANN.head("ann"), "belongs to key")
    assert not trusted.check(BEN.head("ann"))


def test_a_later_incarnation_is_a_source_of_the_same_owner() -> None:
    trusted = trusting(named={"eve": EVE.key})
    again, pinned = startup._incarnation("ann"), startup._incarnation("eve")
    assert trusted.check(ANN.head("ann"))
    refused(trusted, BEN.head(again), "belongs to key")
    assert trusted.check(ANN.head(again))
    assert not trusted.check(ANN.head(again))
    refused(trusted, ANN.head(pinned), "belongs to key")
    assert trusted.check(EVE.head(pinned)), "a pin covers incarnations"
    assert trusted.check(BEN.head(startup._incarnation("nobody")))
    assert trusted.owner("nobody") is None
    assert trusted.check(BEN.head("ann~bad")), "no incarnation: too few digits"


@pytest.mark.parametrize("name", ["a\nb", "~", "é" * 127, "a~0123456789"])
def test_an_incarnation_is_known_by_its_name_whatever_is_in_it(name: str) -> None:
    trusted, again = trusting(), startup._incarnation(name)
    stem = again[:-11]
    trusted.bind(stem, ANN.key)
    assert trusted.owner(again) == ANN.key
    assert trusted.owner(stem + "x") is None


def test_a_new_pin_takes_earlier_incarnations_too() -> None:
    trusted = trusting(named={"ann": BEN.key})
    again = startup._incarnation("ann")
    trusted.bind(again, ANN.key)
    refused(trusted, ANN.head(again), "belongs to key")


# ------------------------------------------------------------------------------------------------------------- unsigned


def test_unsigned_comes_in_only_where_its_name_was_allowed() -> None:
    trusted = trusting(unsigned=frozenset({"import"}))
    assert not trusted.check(unsigned("import"))
    assert not trusted.check(unsigned(startup._incarnation("import")))
    refused(trusted, unsigned("other"), "not signed, and it was not allowed unsigned")
    refused(trusting(), unsigned("import"), "not allowed unsigned")


def test_no_key_takes_over_a_name_that_was_allowed_unsigned() -> None:
    trusted = trusting(unsigned=frozenset({"import"}))
    refused(trusted, ANN.head("import"), "no key takes it over")
    refused(trusted, ANN.head(startup._incarnation("import")), "no key takes it over")
    assert not trusted.check(unsigned("import"))
    assert not trusting(unsigned=frozenset({"import"}), named={"import": ANN.key}).check(ANN.head("import"))


@pytest.mark.parametrize("allowed", [frozenset({"ann"}), ALL])
def test_a_source_that_belongs_to_a_key_is_never_unsigned_again(allowed: Any) -> None:
    bound, pinned = trusting(unsigned=allowed), trusting(unsigned=allowed, named={"ann": ANN.key})
    bound.bind("ann", ANN.key)
    for trusted in (bound, pinned):
        refused(trusted, unsigned("ann"), "belongs to key .* and its head is not signed")
        refused(trusted, unsigned(startup._incarnation("ann")), "belongs to key")
        assert not trusted.check(ANN.head("ann"))


def test_where_all_may_be_unsigned_the_first_signature_is_said_to_bind() -> None:
    trusted = trusting(unsigned=ALL)
    assert not trusted.check(unsigned("ann"))
    assert not trusted.check(unsigned("ann"))
    refused(trusted, EVE.head("ann"), "is not admitted")
    assert trusted.check(ANN.head("ann"))
    refused(trusted, unsigned("ann"), "belongs to key")
    assert repr(ALL) == "ALL"


def test_a_head_without_a_key_has_neither_signature_nor_voucher() -> None:
    trusted = trusting(unsigned=ALL)
    refused(trusted, attrs.evolve(unsigned("ann"), signature=bytes(64)), "and no key")
    refused(trusted, attrs.evolve(unsigned("ann"), voucher=bytes(64)), "and no key")


# ----------------------------------------------------------------------------------------------------------- signatures


def test_a_head_replayed_from_another_cluster_is_refused() -> None:
    refused(trusting(), ANN.head("ann", cluster="meadow"), "does not hold in cluster 'garden'")


MUTATIONS: dict[str, Callable[[SignedHead], SignedHead]] = {
    "source": lambda head: attrs.evolve(head, source="anne"),
    "seq": lambda head: attrs.evolve(head, seq=head.seq + 1),
    "hash": lambda head: attrs.evolve(head, hash=head.hash[:-1] + bytes([head.hash[-1] ^ 1])),
    "key": lambda head: attrs.evolve(head, key=BEN.key),
    "signature": lambda head: attrs.evolve(head, signature=head.signature[:-1] + bytes([head.signature[-1] ^ 1])),
    "no signature": lambda head: attrs.evolve(head, signature=b""),
    "cut signature": lambda head: attrs.evolve(head, signature=head.signature[:-1]),
    "another's signature": lambda head: attrs.evolve(head, signature=BEN.head("ann").signature),
    "a voucher's signature": lambda head: attrs.evolve(head, signature=ANN.vouch(ANN).voucher),
}


@pytest.mark.parametrize("field", MUTATIONS)
def test_a_change_of_any_field_breaks_the_signature(field: str) -> None:
    trusted = trusting()
    refused(trusted, MUTATIONS[field](ANN.head("ann")), "does not hold")
    assert trusted.check(ANN.head("ann"))


def test_keys_and_signatures_of_a_wrong_size_are_refused_whatever_the_verifier_says() -> None:
    trusted = Trust(CLUSTER, lambda *_: True, pinned=PINNED, cluster_key=AUTHORITY.key)
    head = ANN.head("ann")
    refused(trusted, attrs.evolve(head, key=ANN.key[:31], voucher=bytes(64)), "is not admitted")
    refused(trusted, attrs.evolve(head, key=EVE.key, voucher=bytes(63)), "is not admitted")
    refused(trusted, attrs.evolve(head, signature=bytes(63)), "does not hold")
    assert trusted.check(head)


FIELDS = st.tuples(strategies.texts(20), strategies.sources(), strategies.seqs(), st.binary(min_size=32, max_size=32))


@given(FIELDS, FIELDS)
def test_unlike_heads_have_unlike_signed_bytes(a: tuple[str, str, int, bytes], b: tuple[str, str, int, bytes]) -> None:
    assert (signed_bytes(*a) == signed_bytes(*b)) == (a == b)


def test_what_is_signed_says_where_each_name_ends() -> None:
    assert signed_bytes("ab", "c", 1, A) != signed_bytes("a", "bc", 1, A)
    expected = b"deltalog head v1\0" + b"\0\2ab" + b"\0\1c" + bytes(7) + b"\1" + A
    assert signed_bytes("ab", "c", 1, A) == expected


def test_vouchers_are_those_that_the_cluster_key_makes() -> None:
    assert voucher_bytes(CLUSTER, ANN.key) == voucher_message(CLUSTER, ANN.key)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pinned": frozenset({b"short"})}, "a public key must be 32 bytes"),
        ({"cluster_key": b""}, "a public key must be 32 bytes"),
        ({"named": {"ann": "a" * 32}}, "a public key must be 32 bytes"),
        ({"named": {"": ANN.key}}, "source must not be empty"),
    ],
)
def test_wrong_keys_and_names_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        trusting(**options)


def test_a_cluster_has_a_name_of_bounded_size() -> None:
    with pytest.raises(UsageError, match="cluster"):
        Trust("a" * 256, verify)
