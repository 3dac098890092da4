"""Peers that exchange what the other lacks: `open_mesh` over a log, transports, keys and trust.

TCP with TLS and keys need the extra `deltalog[sync]`, libp2p and mDNS the extra `deltalog[libp2p]`: import
`sync.tcp_transport`, `sync.tls_stream`, `sync.node_keys`, `sync.libp2p_transport`, `sync.mdns` or `sync.neighbours`
where they are used.
"""

from __future__ import annotations

from sync.errors import (
    Duplicate,
    HeadRefused,
    LinkFailed,
    LinkRefused,
    PeerBusy,
    ProtocolError,
    SessionRefused,
    SyncError,
)
from sync.memory_transport import Network, Weather
from sync.mesh import Mesh, open_mesh
from sync.options import SyncOptions
from sync.status import PeerStatus
from sync.transport import Dialer, Link, Listener
from sync.trust import ALL, Evidence, Signer, Trust
from sync.wire import Traffic

__all__ = [
    "ALL",
    "Dialer",
    "Duplicate",
    "Evidence",
    "HeadRefused",
    "Link",
    "LinkFailed",
    "LinkRefused",
    "Listener",
    "Mesh",
    "Network",
    "PeerBusy",
    "PeerStatus",
    "ProtocolError",
    "SessionRefused",
    "Signer",
    "SyncError",
    "SyncOptions",
    "Traffic",
    "Trust",
    "Weather",
    "open_mesh",
]
