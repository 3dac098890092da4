"""A node's mesh, made of what an operator said (`PeerOptions`) and of the keys in the data directory.

    async with open_peers(log, path, options) as peers:
        peers.mesh, peers.listening

Lives here: which part of `sync` gets which option. Does not know: what any of them does. Importing this needs
cryptography; libp2p is imported where it is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from deltalog import data_directory
from deltalog.app.node_identity import NodeIdentity, load_identity
from deltalog.app.peer_options import CLUSTER, PeerOptions, SyncMissing
from deltalog.causality import Conflict
from deltalog.errors import UsageError
from deltalog.log import DeltaLog
from deltalog.nursery import open_nursery
from sync.errors import SyncError
from sync.mesh import Mesh, open_mesh
from sync.neighbours import LocalTransport, Neighbours
from sync.node_keys import NODE_KEY, verify
from sync.tcp_transport import TcpTransport, is_loopback, parse_address
from sync.tls_stream import Keyring
from sync.transport import Dialer, Link, Listener
from sync.trust import Trust

_NOWHERE: Final = "127.0.0.1:0"


def _ignore(_: object) -> None:
    """Nobody asked."""


@attrs.frozen
class Parts:
    """What a mesh is made of, before anything is opened."""

    options: PeerOptions
    identity: NodeIdentity | None
    trust: Trust
    keyring: Keyring | None
    tcp: TcpTransport


@attrs.frozen
class Peers:
    """A running mesh."""

    mesh: Mesh
    dialer: Dialer
    listening: Sequence[str]
    """Addresses where peers can connect."""
    identity: NodeIdentity | None

    def problems(self) -> list[str]:
        """What needs somebody's attention: of peers that are connected, of sources, of this node's admission."""
        found = [
            f"peer {each.name!r}: {each.problem}"
            for each in self.mesh.statuses()
            if each.problem and each.state != "offline"
        ]
        found += [f"source {source!r} is quarantined: it was forked" for source in self.mesh.trust.quarantined]
        admitted = None if self.identity is None else self.identity.admitted
        if admitted is not None and admitted.until <= datetime.now(UTC):
            found.append(
                f"the admission to cluster {admitted.cluster!r} expired at {admitted.until:%Y-%m-%d %H:%M} UTC"
            )
        return found


@attrs.frozen
class _ByAddress:
    """Dials multiaddrs over libp2p, everything else over TCP."""

    tcp: Dialer
    libp2p: Dialer | None

    async def dial(self, address: str) -> Link:
        """See `Dialer`."""
        if not address.startswith("/"):
            return await self.tcp.dial(address)
        if self.libp2p is None:
            raise UsageError(f"address {address!r} is a multiaddr, and this node runs no libp2p host")
        return await self.libp2p.dial(address)


def prepare(data: Path, options: PeerOptions, on_problem: Callable[[str], None] = _ignore) -> Parts:
    """Check everything that can be checked before the log is opened. Raises `UsageError`, `DecodeError`."""
    identity = load_identity(data)
    if identity is None and not options.plain:
        raise UsageError(f"there is no {data / NODE_KEY}: make this node's key with `deltalog keys init --data {data}`")
    _check_addresses(options)
    _check_libp2p(options)
    if options.uses_libp2p and (options.plain or identity is None):
        raise UsageError("libp2p proves keys: it takes a node's key and goes not with plain links")
    admitted = None if identity is None else identity.admitted
    if admitted is not None and options.cluster not in (None, admitted.cluster):
        raise UsageError(f"cluster is {options.cluster!r}, and this node is admitted to {admitted.cluster!r}")
    keyring = None if options.plain or identity is None else _keyring(identity, options)

    def refused(error: SyncError) -> None:
        on_problem(str(error))

    tcp = TcpTransport(keyring, options.listen or _NOWHERE, plain=keyring is None, refused=refused)
    return Parts(options, identity, _trust(identity, options), keyring, tcp)


def _check_addresses(options: PeerOptions) -> None:
    for address in options.tcp_peers:
        host, port = parse_address(address)
        if port == 0:
            raise UsageError(f"peer {address!r}: port 0 can be listened at, not connected to")
        if options.plain and not is_loopback(host):
            raise UsageError(f"peer {address!r} is not on loopback; plain TCP goes nowhere else, use TLS")


def _check_libp2p(options: PeerOptions) -> None:
    if options.libp2p_listen is not None:
        with _libp2p_needed():
            from sync.multiaddrs import parse_listen  # noqa: PLC0415  # may be missing
        parse_listen(options.libp2p_listen)
    if options.discover and options.libp2p_listen is None:
        raise UsageError("--discover finds nodes over libp2p: it goes with --libp2p-listen")
    if options.discover and not options.pinned:
        raise UsageError("--discover finds nodes whose keys are pinned: it goes with --pin")


def _keyring(identity: NodeIdentity, options: PeerOptions) -> Keyring:
    admitted, cluster_key = identity.admitted, _cluster_key(identity, options)
    return Keyring(
        identity.node_key,
        pinned=options.pinned - {identity.key},
        clusters=() if cluster_key is None else (cluster_key,),
        admission=None if admitted is None else admitted.certificate,
    )


def _trust(identity: NodeIdentity | None, options: PeerOptions) -> Trust:
    admitted = None if identity is None else identity.admitted
    cluster = options.cluster if options.cluster is not None else CLUSTER if admitted is None else admitted.cluster
    if not cluster:
        raise UsageError("cluster must not be empty")
    return Trust(
        cluster,
        verify,
        pinned=options.pinned | (frozenset() if identity is None else {identity.key}),
        cluster_key=_cluster_key(identity, options),
        named=options.named,
        unsigned=options.unsigned,
    )


def _cluster_key(identity: NodeIdentity | None, options: PeerOptions) -> bytes | None:
    """The cluster whose nodes are admitted: the one that was named, or the one that this node is in."""
    if options.cluster_key is not None or identity is None or identity.admitted is None:
        return options.cluster_key
    return identity.admitted.cluster_key


@asynccontextmanager
async def open_peers(
    log: DeltaLog,
    data: Path,
    parts: Parts,
    *,
    node: str | None = None,
    hold: bool = True,
    on_conflict: Callable[[Conflict], None] | None = None,
    on_problem: Callable[[str], None] = _ignore,
) -> AsyncIterator[Peers]:
    """Run the mesh of an open log.

    node: its name among peers; None: the source that the directory was made for. hold: connect to the peers that were
    named, and stay connected; if not, that is left to whoever opened it.
    """
    options, listening = parts.options, list[str]()
    name = node if node is not None else data_directory.identify(data, None).source
    async with AsyncExitStack() as stack:
        host = await _host(stack, parts)
        listeners: list[Listener] = [] if options.listen is None else [parts.tcp]
        if host is not None and options.libp2p_listen is not None:
            listeners.append(host)
        dialer = _ByAddress(parts.tcp, host)
        mesh = await stack.enter_async_context(
            open_mesh(
                log,
                node=name,
                trust=parts.trust,
                signer=parts.identity,
                dialer=dialer,
                addresses=options.peers if hold else (),
                listeners=listeners,
                options=options.sync,
                on_conflict=on_conflict,
                on_problem=on_problem,
                on_listening=listening.append,
            )
        )
        if host is not None and options.discover and hold:
            await stack.enter_async_context(_finding(mesh, host, on_problem))
        yield Peers(mesh, dialer, tuple(listening), parts.identity)


async def _host(stack: AsyncExitStack, parts: Parts) -> LocalTransport | None:
    if not parts.options.uses_libp2p:
        return None
    with _libp2p_needed():
        from sync.libp2p_transport import open_libp2p  # noqa: PLC0415  # may be missing
    assert parts.keyring is not None, "it was checked"
    return await stack.enter_async_context(open_libp2p(parts.keyring, parts.options.libp2p_listen))


@contextmanager
def _libp2p_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise SyncMissing("multiaddrs need libp2p; install it with: pip install 'deltalog[libp2p]'") from error


@asynccontextmanager
async def _finding(mesh: Mesh, host: LocalTransport, on_problem: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold links to the pinned nodes that announce themselves on the local network, while the block runs."""
    from sync.mdns import open_mdns  # noqa: PLC0415  # may be missing

    neighbours = Neighbours(host, mesh.connected)
    async with open_nursery() as nursery, open_mdns(host.announced, neighbours.hear, on_problem):
        nursery.start_soon(neighbours.hold, partial(mesh.keep_dialing, neighbours, announced=neighbours))
        yield
        nursery.cancel_scope.cancel()
