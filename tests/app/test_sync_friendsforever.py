"""The main job with peers: two people type into one text, each on a node of their own; a third node only receives.

A delta is written when what its author had seen has come over the wire, so the nodes play the recorded session to each
other, over TLS. The file is not part of the project: see test_friendsforever.py.
"""

from __future__ import annotations

import gzip
import json
from binascii import a2b_base64
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
from pycrdt import Doc, Text

from deltalog.app.node import Node, open_node
from deltalog.app.peer_options import PeerOptions
from deltalog.log import LogOptions
from sync.node_keys import parse_key
from tests.app.peered import new_key
from tests.app.test_friendsforever import COUNT, FOLDER, pytestmark  # noqa: F401  # the mark goes for this file, too

LIMIT_S = 300


def recorded() -> tuple[list[dict[str, Any]], str]:
    """Lines of the file, and the text that they end in."""
    assert FOLDER is not None
    lines = gzip.decompress((FOLDER / "friendsforever.ydeltas.jsonl.gz").read_bytes()).splitlines()
    end = json.loads(gzip.decompress((FOLDER / "friendsforever.json.gz").read_bytes()))["endContent"]
    return [json.loads(line) for line in lines], end


async def visible(node: Node, deps: Mapping[str, int]) -> None:
    """Return when a node shows all of these."""
    assert node.mesh is not None
    await node.mesh.wait(lambda: node.log.heads.covers_all(deps))


async def play(node: Node, lines: Sequence[dict[str, Any]]) -> None:
    """Append what one of the two typed, each when what it builds upon is here."""
    log = node.log
    for line in lines:
        deps = line["deps"]
        if deps:
            await visible(node, deps)
        delta = await log.append(a2b_base64(line["payload_b64"]), kind=line["kind"], key=line["key"])
        assert delta.seq == line["seq"]


async def synced(node: Node, heads: Mapping[str, int]) -> None:
    """Return when a node has synced just these."""
    assert node.mesh is not None
    await node.mesh.wait(lambda: node.log.synced == heads)


async def text_of(node: Node) -> str:
    """What replaying the log gives."""
    doc: Doc[Any] = Doc()
    text = doc.get("text", type=Text)
    stream = node.log.replay()
    while page := await stream.page():
        for delta in page:
            doc.apply_update(delta.payload)
    return str(text)


async def test_i14_the_session_is_played_live_over_tls_and_all_three_end_in_the_text(tmp_path: Path) -> None:
    lines, end = recorded()
    names = ("alice", "bob", "carol")
    keys = frozenset(parse_key(new_key(tmp_path / name)) for name in names)
    addresses: list[str] = []
    nodes: dict[str, Node] = {}
    async with AsyncExitStack() as stack:
        for name in names:
            peering = PeerOptions(listen="127.0.0.1:0", peers=tuple(addresses), pinned=keys)
            opening = open_node(tmp_path / name, source=name, peering=peering, log=LogOptions(sync_interval_s=0.001))
            nodes[name] = node = await stack.enter_async_context(opening)
            assert node.peers is not None
            addresses += node.peers.listening
        began = trio.current_time()
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as writing:
                for name in ("alice", "bob"):
                    writing.start_soon(play, nodes[name], [line for line in lines if line["source"] == name])
            heads = Counter(line["source"] for line in lines)
            for node in nodes.values():
                await synced(node, heads)
        print(f"\n{COUNT / (trio.current_time() - began):,.0f} deltas/s")
        digests = {node.mesh.ledger.index.digest() for node in nodes.values() if node.mesh is not None}
        assert len(digests) == 1
        for node in nodes.values():
            assert await text_of(node) == end
            assert not node.problems()
        assert nodes["carol"].mesh is not None
        came = [each.traffic for each in nodes["carol"].mesh.statuses()]
        assert (sum(each.deltas_in for each in came), sum(each.deltas_known for each in came)) == (COUNT, 0)
