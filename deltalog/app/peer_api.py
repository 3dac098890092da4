"""Routes about peers and sources. Like everything in the API they only read.

GET /api/peers      every peer that is known, and how it stands
GET /api/sources    sources by name, in pages
"""

from __future__ import annotations

from typing import Annotated, Final

from litestar import Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation

from audit.api import REFUSALS, say
from audit.api_query import Limit, refuse_unknown
from deltalog.app.node import Node
from deltalog.app.peer_views import PeerView, SourcePage, peers_of, sources_of
from deltalog.delta import Limits

Served = NamedDependency[SkipValidation[Node]]
AfterSource = Annotated[
    str,
    QueryParameter(
        description="Only sources whose names come behind this one; `after` of the page before.",
        max_length=Limits().source_bytes,
        required=False,
    ),
]
_REFUSALS: Final = {status: REFUSALS[status] for status in (400, 401, 414, 429, 503)}


@get("/peers", summary="Every peer that is known, and how it stands", responses=_REFUSALS, sync_to_thread=False)
def list_peers(node: Served) -> list[PeerView]:
    """In the order they came. A node that was started without peers shows those it knew before."""
    return peers_of(node)


@get("/sources", summary="Sources by name, in pages", responses=_REFUSALS)
async def list_sources(node: Served, limit: Limit = 100, after: AfterSource = "") -> SourcePage:
    """Who wrote what is here: heads, floors, whose key signs, and what is quarantined."""
    return await sources_of(node, after, limit)


def peer_routes(node: Node) -> Router:
    """All routes of this file, over a node."""
    return Router(
        "/api",
        route_handlers=[list_peers, list_sources],
        dependencies={"node": Provide(lambda: node, sync_to_thread=False)},
        before_request=refuse_unknown,
        exception_handlers={Exception: say},
        tags=["peers"],
    )
