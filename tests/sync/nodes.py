"""Nodes on a network in one process: a log on a memory store and a mesh, on virtual time, signed with cheap keys."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from deltalog.delta import Delta
from deltalog.log import DeltaLog
from sync.memory_transport import Network, Weather
from sync.mesh import Mesh, open_mesh
from sync.options import SyncOptions
from sync.trust import ALL, Signer, Trust
from tests.deltalog.memory_log import Rig

CLUSTER = "team"
LIMIT_S = 300
"""Virtual seconds after which something that should come true has not."""


@attrs.frozen
class CheapKey:
    """A signer whose signatures anybody could forge who knew how: a keyed hash, for tests of what they are used for."""

    name: str
    voucher: bytes = b""

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=32).digest()

    def sign(self, data: bytes) -> bytes:
        return cheap_signature(self.key, data)


def cheap_signature(key: bytes, data: bytes) -> bytes:
    """Keyed by the public key."""
    return hashlib.blake2b(data, key=key, digest_size=64).digest()


def cheap_verify(key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether it is `cheap_signature`."""
    return signature == cheap_signature(key, data)


def trusting(*names: str, **fields: Any) -> Trust:
    """Trust in the keys of these nodes."""
    return Trust(CLUSTER, cheap_verify, pinned=frozenset(CheapKey(name).key for name in names), **fields)


@attrs.define
class World:
    """A network, and what is shared by those on it."""

    network: Network = attrs.field(factory=lambda: Network(random.Random(1), Weather()))
    names: Sequence[str] = ("alice", "bob", "carol", "dave", "erin")
    signed: bool = True
    problems: list[str] = attrs.field(factory=list)

    @asynccontextmanager
    async def node(
        self,
        name: str,
        *dials: str,
        rig: Rig | None = None,
        trust: Trust | None = None,
        signer: Signer | None = None,
        options: SyncOptions | None = None,
        source: str = "",
        log: dict[str, Any] | None = None,
        **fields: Any,
    ) -> AsyncIterator[Node]:
        """A node that runs, and dials these."""
        rig = rig if rig is not None else Rig()
        if self.signed:
            trust = trust if trust is not None else trusting(*self.names)
            signer = signer if signer is not None else CheapKey(name)
        else:
            trust = trust if trust is not None else Trust(CLUSTER, cheap_verify, unsigned=ALL)
        transport = self.network.node(name)
        async with (
            rig.log(source or name, **(log or {})).running() as opened,
            open_mesh(
                opened,
                node=name,
                trust=trust,
                signer=signer,
                dialer=transport,
                addresses=dials,
                listeners=[transport],
                options=options,
                chance=random.Random(name),
                on_problem=lambda text: self.problems.append(f"{name} | {text}"),
                **fields,
            ) as mesh,
        ):
            yield Node(name, rig, opened, mesh)


@attrs.frozen
class Node:
    """One of them."""

    name: str
    rig: Rig
    log: DeltaLog
    mesh: Mesh

    def append(self, count: int, key: str = "") -> list[Delta]:
        """Append some deltas at once."""
        return [self.log.append_nowait([self.name, number], key=key) for number in range(count)]

    async def all(self) -> list[Delta]:
        """Everything that is here, in timestamp order."""
        return [delta async for delta in self.log.replay()]


async def until(fact: Callable[[], object], step_s: float = 0.01) -> None:
    """Return when it is true."""
    with trio.move_on_after(LIMIT_S):
        while not fact():  # noqa: ASYNC110  # of several nodes, in virtual time
            await trio.sleep(step_s)
        return
    raise AssertionError("it did not come true")


async def converged(*nodes: Node) -> None:
    """Return when all hold the same, and something, and have synced it."""
    await until(lambda: all(same(node, nodes[0]) for node in nodes))


def same(a: Node, b: Node) -> bool:
    """Whether two nodes have synced the same deltas, of which they have all that is visible."""
    return (
        a.log.synced == b.log.synced == a.log.heads == b.log.heads and len(a.log.heads) > 0 and digest(a) == digest(b)
    )


def digest(node: Node) -> bytes:
    """Over all synced heads of a node."""
    return node.mesh.ledger.index.digest()
