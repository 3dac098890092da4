"""Peers and sources as the API and the command line show them: of a running node, or of a directory that is looked at.

Lives here: the fields, and where each comes from. Does not know: HTTP, tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import trio

from deltalog.app.node import Node
from deltalog.keys import PEERS
from deltalog.log import DeltaLog
from deltalog.stability import Stability
from deltalog.store import DeltaStore
from sync import Evidence, PeerStatus, Traffic
from sync.ledger import FORK_PREFIX, OWNER_PREFIX

"""Keys of what `sync.ledger` notes in the log, each before the name of a source."""


@attrs.frozen(kw_only=True)
class PeerView:
    """A peer as the API shows it, or an address where there should be one."""

    name: str
    """Of its node; "": nobody is connected through the address in `link`, and `problem` says why."""
    state: str
    """"connected", "catching up", "live", "offline" or, of an address, "unreached"."""
    since_s: float | None
    """Seconds in contact, or offline; null: it was not seen since this node started."""
    link: str
    source: str
    """Whom it writes as; "" if it was not seen since this node started."""
    lag: int | None
    """Deltas synced here that it has not acknowledged; null: it was not asked."""
    behind: int
    """Deltas that it has and this node lacks."""
    deltas_in: int
    deltas_known: int
    """Deltas that came in and were held already."""
    deltas_out: int
    bytes_in: int
    bytes_out: int
    """Since this node started, as all five."""
    equal: bool
    """Whether its last heartbeat showed the same digest as this node's."""
    pins: bool
    """Whether its lease runs: retention keeps what it has not acknowledged."""
    below_floor: dict[str, int]
    """Sources of which it dropped what this node lacks, and their floors there."""
    problem: str


@attrs.frozen(kw_only=True)
class SourceView:
    """A source as the API shows it."""

    source: str
    own: bool
    """Whether this node writes it."""
    head: int
    floor: int
    """Seq up to which retention dropped its deltas."""
    deltas: int
    """How many are held: those from floor to head."""
    size_bytes: int | None
    """Of their records; null: a running node does not count them by source."""
    owner: str | None
    """The key that signs it; null: it is not signed."""
    quarantined: str | None
    """Why nothing of it is taken in or served; null: it is not quarantined."""


@attrs.frozen(kw_only=True)
class SourcePage:
    """Sources of one answer, by name, and where the next begins."""

    sources: list[SourceView]
    after: str | None
    """Give it back as `after` for the next page; null: there is no more."""


# ---------------------------------------------------------------------------------------------------------------- peers


def peers_of(node: Node) -> list[PeerView]:
    """Every peer that a running node knows, in the order they came; then addresses that it cannot reach."""
    statuses = {} if node.mesh is None else {each.name: each for each in node.mesh.statuses()}
    names = dict.fromkeys([*node.log.stability.peers, *statuses])
    unreached = {} if node.mesh is None else node.mesh.unreached
    return [
        *(_seen(node.log, statuses[name]) if name in statuses else _not_seen(node.log, name) for name in names),
        *(attrs.evolve(_UNREACHED, link=address, problem=reason) for address, reason in unreached.items()),
    ]


def _seen(log: DeltaLog, status: PeerStatus) -> PeerView:
    now = trio.current_time()
    return PeerView(
        since_s=round(now - status.since, 3),
        pins=status.name in log.stability.peers and log.stability.pins(status.name, now),
        below_floor=dict(status.below_floor),
        **{name: getattr(status, name) for name in ("name", "state", "link", "source", "lag", "behind", "equal")},
        **attrs.asdict(status.traffic),
        problem=status.problem,
    )


def _not_seen(log: DeltaLog, name: str) -> PeerView:
    return _offline(name, sum(log.synced.values()), pins=log.stability.pins(name, trio.current_time()))


def _offline(name: str, lag: int | None, *, pins: bool) -> PeerView:
    return PeerView(
        name=name,
        state="offline",
        since_s=None,
        link="",
        source="",
        lag=lag,
        behind=0,
        equal=False,
        pins=pins,
        below_floor={},
        problem="",
        **attrs.asdict(Traffic()),
    )


_UNREACHED: Final = attrs.evolve(_offline("", None, pins=False), state="unreached")


def known_peers(store: DeltaStore) -> list[PeerView]:
    """Peers that a store says are known; none of them is connected to anything."""
    packed = store.annotation(PEERS)
    stability = Stability() if packed is None else Stability.unpack(packed, 0.0)
    return [_offline(name, None, pins=stability.pins(name, 0.0)) for name in stability.peers]


# -------------------------------------------------------------------------------------------------------------- sources


async def sources_of(node: Node, after: str, limit: int) -> SourcePage:
    """Sources of a running node with names behind `after`, at most `limit`."""
    log, heads = node.log, node.log.heads
    names = sorted(name for name in heads if name > after)
    page, floor = names[:limit], log.floor
    owners = await log.annotations(OWNER_PREFIX, after=OWNER_PREFIX + after.encode(), limit=limit)
    forks = await log.annotations(FORK_PREFIX, after=FORK_PREFIX + after.encode(), limit=limit)
    owned, quarantined = _owners(owners), _quarantined(forks)
    if node.mesh is not None:  # it knows pins, too
        trust = node.mesh.trust
        owned |= {name: _text(key) for name in page if (key := trust.owner(name)) is not None}
    views = [_view(name, log.source, heads[name], floor.get(name, 0), None, owned, quarantined) for name in page]
    return SourcePage(sources=views, after=page[-1] if len(names) > limit else None)


def sources_in(store: DeltaStore, own: str) -> list[SourceView]:
    """Every source of a store that is looked at, by name. `own`: whom its node writes as."""
    owners, quarantined = (
        _owners(store.annotations(OWNER_PREFIX)),
        _quarantined(store.annotations(FORK_PREFIX)),
    )
    heads = sorted(store.heads().items())
    return [
        _view(name, own, head.seq, head.floor, head.size_bytes, owners, quarantined) for name, head in heads if head.seq
    ]


def _view(
    name: str,
    own: str,
    head: int,
    floor: int,
    size_bytes: int | None,
    owners: Mapping[str, str],
    quarantined: Mapping[str, str],
) -> SourceView:
    return SourceView(
        source=name,
        own=name == own,
        head=head,
        floor=floor,
        deltas=head - floor,
        size_bytes=size_bytes,
        owner=owners.get(name),
        quarantined=quarantined.get(name),
    )


def _owners(notes: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {key.removeprefix(OWNER_PREFIX).decode(): _text(value) for key, value in notes}


def _quarantined(notes: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {key.removeprefix(FORK_PREFIX).decode(): _summary(Evidence.decode(value)) for key, value in notes}


def _summary(evidence: Evidence) -> str:
    first, second = evidence.first, evidence.second
    return (
        f"{_text(evidence.key)} signed two histories: head {first.seq} with hash {first.hash.hex()[:16]}... "
        f"and with hash {second.hash.hex()[:16]}..."
    )


def _text(key: bytes) -> str:
    """As `sync.node_keys.key_text`, which needs cryptography."""
    return f"ed25519:{key.hex()}"
