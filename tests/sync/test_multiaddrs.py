"""Addresses of libp2p: keys in peer ids, and what of any text is an address that may be dialled unasked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.peer.id import ID

from sync.errors import LinkRefused
from sync.multiaddrs import Direct, key_of, parse_direct, peer_id
from sync.node_keys import NodeKey

ALICE = NodeKey.from_seed(b"\x01" * 32)

ids = st.one_of(
    st.just(peer_id(ALICE.public)),
    st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", min_size=1, max_size=60),
    st.binary(max_size=40).map(lambda data: ID(data).to_base58()),
)
hosts = st.one_of(st.ip_addresses().map(str), st.text("0123456789abcdef:.", min_size=2, max_size=45))
addresses = st.builds(
    lambda version, host, port, peer: f"/ip{version}/{host}/tcp/{port}/p2p/{peer}",
    st.sampled_from([4, 6]), hosts, st.integers(1, 99_999), ids,
)  # fmt: skip


def test_a_peer_id_is_the_key() -> None:
    """The example of the libp2p specification has the same form: 12D3KooW..."""
    assert peer_id(ALICE.public).startswith("12D3KooW")
    assert key_of(ID.from_base58(peer_id(ALICE.public))) == ALICE.public
    with pytest.raises(LinkRefused, match="no Ed25519 key"):
        key_of(ID.from_base58("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"))


@given(st.one_of(addresses, st.text(max_size=200)))
def test_any_text_is_an_address_or_it_is_not(text: str) -> None:
    found = parse_direct(text)
    assert found is None or text.endswith(f"/p2p/{peer_id(found.key)}")


def test_whether_an_address_is_on_loopback() -> None:
    for host, on_loopback in (("ip4/127.0.0.2", True), ("ip6/::1", True), ("ip4/192.0.2.7", False)):
        assert parse_direct(f"/{host}/tcp/1/p2p/{peer_id(ALICE.public)}") == Direct(ALICE.public, on_loopback)
