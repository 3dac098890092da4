"""What an operator says about peers: one frozen value, and the options of the command line that make it.

Lives here: names, defaults and what can be refused at a glance. Importing this needs no cryptography, so that a node
without peers runs where that is not installed; whoever meets a key says so. Does not know: key files, links, the log.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import reduce
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, TypeVar

import attrs
import click

from deltalog.app.options import SOURCE
from deltalog.errors import DeltaLogError, UsageError
from sync.options import SyncOptions

CLUSTER: Final = "deltalog"
"""Name of the cluster of nodes that were not told another."""
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


class SyncMissing(DeltaLogError):
    """Raised when the extra that brings keys and TLS is not installed."""


def check_sync_installed() -> None:
    """Raise `SyncMissing` unless the library for keys and TLS is there."""
    if find_spec("cryptography") is None:
        raise SyncMissing("peers and keys need cryptography; install it with: pip install 'deltalog[sync]'")


@attrs.frozen(kw_only=True)
class PeerOptions:
    """Whom a node talks to, and what it believes."""

    cluster: str | None = None
    """Nodes of one cluster talk to each other. None: what the node's admission says, or else `CLUSTER`."""
    listen: str | None = None
    """`HOST:PORT` where peers may connect, port 0 for any free one. None: nowhere."""
    peers: tuple[str, ...] = ()
    """Addresses to connect to and stay connected to: `HOST:PORT`, or multiaddrs (`/ip4/...`) over libp2p."""
    pinned: frozenset[bytes] = frozenset()
    """Keys of nodes that are admitted one by one."""
    cluster_key: bytes | None = None
    """The key that admits all others. None: the one that admitted this node, if one has."""
    named: Mapping[str, bytes] = MappingProxyType({})
    """Source -> the key it belongs to, whoever signed it first."""
    unsigned: Container[str] = frozenset()
    """Sources that nobody signs and that are taken in all the same, or `sync.trust.ALL`."""
    plain: bool = False
    """TCP without TLS, between ends on loopback only. Links then prove no key."""
    libp2p_listen: str | None = None
    """Multiaddr where peers may connect over libp2p, `/ip4/127.0.0.1/tcp/0`, say. None: nowhere."""
    discover: bool = False
    """Announce `libp2p_listen` on the local network, by mDNS, and connect to the pinned nodes that do the same."""
    sync: SyncOptions = attrs.field(factory=SyncOptions)

    @property
    def tcp_peers(self) -> tuple[str, ...]:
        """Those of `peers` that are no multiaddrs."""
        return tuple(address for address in self.peers if not address.startswith("/"))

    @property
    def uses_libp2p(self) -> bool:
        """Whether a libp2p host is needed."""
        return self.libp2p_listen is not None or len(self.tcp_peers) < len(self.peers)


# --------------------------------------------------------------------------------------------------------- command line

_USUAL: Final = SyncOptions()


class KeyType(click.ParamType[bytes]):
    """A public key as `deltalog keys show` prints it."""

    name = "KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return its 32 bytes."""
        if isinstance(value, bytes):
            return value
        check_sync_installed()
        from sync.node_keys import parse_key  # noqa: PLC0415  # may be missing

        try:
            return parse_key(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SourceKeyType(click.ParamType[tuple[str, bytes]]):
    """`NAME=KEY`."""

    name = "NAME=KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, bytes]:
        """Return (source, key)."""
        if isinstance(value, tuple):
            return value
        source, equals, key = value.rpartition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=KEY"[:200], param, ctx)
        return SOURCE.convert(source, param, ctx), KEY.convert(key, param, ctx)


KEY: Final = KeyType()
SOURCE_KEY: Final = SourceKeyType()


def trust_options(verb: _Verb) -> _Verb:
    """Options that say whom to believe; `peer_options` makes the value of them."""
    options = (
        click.option(
            "--pin", "pins", type=KEY, multiple=True, help="Admit the node with this key; may be given several times."
        ),
        click.option("--cluster", metavar="NAME", help="Name of the cluster.  [default: that of the node's admission]"),
        click.option(
            "--cluster-key", type=KEY, help="Admit every node that this key admitted.  [default: that of the admission]"
        ),
        click.option(
            "--source-key", "source_keys", type=SOURCE_KEY, multiple=True, help="This source belongs to this key."
        ),
        click.option(
            "--unsigned",
            type=SOURCE,
            multiple=True,
            help="Take in this source though nobody signs it; may be given several times.",
        ),
        click.option(
            "--compress/--no-compress", default=None, help="Compress what goes to peers.  [default: to other machines]"
        ),
        click.option("--plain-peers", is_flag=True, help="No TLS between nodes: on loopback only, proves no key."),
    )
    return reduce(lambda done, option: option(done), reversed(options), verb)


def peer_options(said: dict[str, Any], sync: SyncOptions = _USUAL, **more: Any) -> PeerOptions:
    """Take what `trust_options` were given out of `said`; with `more` it makes the value."""
    sources: dict[str, bytes] = {}
    for source, key in said.pop("source_keys"):
        if sources.setdefault(source, key) != key:
            raise UsageError(f"--source-key: {source!r} is given two keys")
    return PeerOptions(
        cluster=said.pop("cluster"),
        pinned=frozenset(said.pop("pins")),
        cluster_key=said.pop("cluster_key"),
        named=sources,
        unsigned=frozenset(said.pop("unsigned")),
        plain=said.pop("plain_peers"),
        sync=attrs.evolve(sync, compress=said.pop("compress")),
        **more,
    )
