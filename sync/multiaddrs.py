"""Addresses of libp2p: a multiaddr names a host, a port and a peer, and a peer id of an Ed25519 key is that key.

Does not know: hosts that run, links.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import attrs

from deltalog.errors import UsageError
from sync.errors import LinkRefused
from sync.loggers import logging_left_alone

LOGGERS: Final = ("libp2p", "libp2p.network.auto_connector", "zeroconf")
"""Those that importing libp2p sets up."""

with logging_left_alone(*LOGGERS):
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.utils.address_validation import expand_wildcard_address
    from multiaddr import Multiaddr

EXAMPLE: Final = "/ip4/127.0.0.1/tcp/0"
_KEY_PREFIX: Final = bytes.fromhex("0024" + "08011220")
"""Identity multihash of 36 bytes | protobuf of a public key: type Ed25519, 32 bytes."""
_LISTEN: Final = re.compile(r"/ip[46]/[^/]+/tcp/[0-9]+")
_DIRECT: Final = re.compile(r"/ip[46]/(?P<host>[0-9a-fA-F:.]{2,45})/tcp/[1-9][0-9]{0,4}/p2p/[1-9A-Za-z]{1,64}")


def peer_id(public: bytes) -> str:
    """The peer id of a node's key, as it stands in a multiaddr."""
    return str(ID(_KEY_PREFIX + public))


def key_of(peer: ID) -> bytes:
    """The Ed25519 key in a peer id. Raises `LinkRefused` if there is another kind of key behind it."""
    data = peer.to_bytes()
    if len(data) != len(_KEY_PREFIX) + 32 or not data.startswith(_KEY_PREFIX):
        raise LinkRefused(f"libp2p {peer} has no Ed25519 key")
    return data[len(_KEY_PREFIX) :]


def parse_multiaddr(text: str) -> Multiaddr:
    """A multiaddr. Raises `UsageError`."""
    try:
        return Multiaddr(text)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"address {text[:200]!r} is no multiaddr such as {EXAMPLE}: {error}") from error


def parse_listen(text: str) -> Multiaddr:
    """A multiaddr to listen at: an IP address and a TCP port. Raises `UsageError`.

    py-libp2p would take a host's name, too, and listen at every interface.
    """
    address = parse_multiaddr(text)
    if not _LISTEN.fullmatch(text):
        raise UsageError(f"address {text[:200]!r}: what listens names an IP address and a TCP port, as {EXAMPLE}")
    return address


# ------------------------------------------------------------------------------------------------------------ announced


@attrs.frozen
class Direct:
    """An address that says by itself which host it is: no names to resolve, no relays, no zones."""

    key: bytes
    on_loopback: bool


def parse_direct(text: str) -> Direct | None:
    """The one form of address that is dialled unasked: IP address, TCP port, Ed25519 peer. None: it is another."""
    found = _DIRECT.fullmatch(text)
    if found is None:
        return None
    try:
        host = ipaddress.ip_address(found["host"])
        key = key_of(info_from_p2p_addr(Multiaddr(text)).peer_id)
    except (ValueError, TypeError, KeyError, LinkRefused):
        return None
    if isinstance(host, ipaddress.IPv6Address) and (host.is_link_local or host.ipv4_mapped is not None):
        return None
    return None if host.is_unspecified or host.is_multicast else Direct(key, host.is_loopback)


def reachable(listening: Iterable[Multiaddr], public: bytes) -> dict[str, Direct]:
    """Where others can reach a peer that listens there: at all interfaces but loopback, or at loopback if it is there
    only.
    """
    named = [f"{one}/p2p/{peer_id(public)}" for each in listening for one in expand_wildcard_address(each)]
    direct = {text: each for text in named if (each := parse_direct(text)) is not None}
    return {text: each for text, each in direct.items() if not each.on_loopback} or direct
