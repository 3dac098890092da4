"""The story of the peers: three nodes on this machine, each a process, with links that prove keys (TLS).

            left  ---- cable ----  hub  ----------  right

1. Half of the agents of `agents` work on the left node, half on the right one; the hub only receives, and relays.
2. The right node is killed with SIGKILL in the middle, and started again.
3. The cable is cut; both sides go on; it is mended.
4. The agents finish; all three print the same digest.
5. Of every agent each edit is on all three, once, and gives the same files.

Every step checks what it says.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from deltalog import data_directory
from deltalog.app.agents import NAMES, Files, session
from deltalog.app.cable import Cable
from deltalog.app.node import Node, open_node
from deltalog.app.opening import DataOptions, opened, startup_lines
from deltalog.app.peer_options import PeerOptions
from deltalog.app.story import Story
from deltalog.app.terminal import Meter
from deltalog.delta import Delta
from deltalog.errors import DeltaLogError
from deltalog.nursery import open_nursery
from sync import SyncOptions
from sync.node_keys import NODE_KEY, create_key, key_text, parse_key

SIDES: Final[Mapping[str, tuple[str, ...]]] = {"left": NAMES[:4], "right": NAMES[4:]}
HUB: Final = "hub"
WAIT_S: Final = 60.0
"""After so long something that should come true has not."""
_BATCH: Final = 100
_PAUSE_S: Final = 0.005
_REPORT_S: Final = 0.05
_TIMES: Final = SyncOptions(heartbeat_s=0.5, backoff_max_s=0.5)


@cache
def edits_of(name: str, seed: int, count: int) -> tuple[Delta, ...]:
    """What the agents on a node do in the session, in their order."""
    agents = SIDES.get(name, ())
    return tuple(delta for delta in session(seed, count) if delta.source in agents)


def written(name: str, heads: Mapping[str, int]) -> int:
    """How much a node has written, under its name or as a later incarnation."""
    return sum(seq for source, seq in heads.items() if source.partition("~")[0] == name)


# --------------------------------------------------------------------------------------------------- a node's process


@attrs.frozen
class _Orders:
    """What the process of a node is told at its start."""

    path: str
    name: str
    seed: int
    count: int
    keys: tuple[str, ...]
    """Public keys of all three."""
    peers: tuple[str, ...]
    """Addresses to connect to."""


async def _child(orders: _Orders) -> None:
    """Run a node. Lines of standard input say how many edits to write in all; at its end, so does the node."""
    keys = frozenset(map(parse_key, orders.keys))
    listen = "127.0.0.1:0" if orders.name == HUB else None
    peering = PeerOptions(listen=listen, peers=orders.peers, pinned=keys, sync=_TIMES)
    async with open_node(Path(orders.path), source=orders.name, peering=peering) as node, open_nursery() as nursery:
        assert node.peers is not None
        _say(listening=list(node.peers.listening), startup=list(startup_lines(node.manager.startup)), **_state(node))
        nursery.start_soon(_report, node)
        await _obey(node, edits_of(orders.name, orders.seed, orders.count), orders.name)
        nursery.cancel_scope.cancel()


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _state(node: Node) -> dict[str, Any]:
    assert node.mesh is not None
    known = sum(each.traffic.deltas_known for each in node.mesh.statuses())
    synced = dict(node.log.synced)
    return {"synced": synced, "digest": node.mesh.ledger.index.digest().hex()[:16], "known": known}


async def _report(node: Node) -> None:
    """Say how it stands whenever that has changed."""
    said: dict[str, Any] = {}
    while True:
        state = _state(node)
        if state != said:
            _say(**state)
            said = state
        await trio.sleep(_REPORT_S)


async def _obey(node: Node, edits: Sequence[Delta], name: str) -> None:
    done = written(name, node.log.heads)
    async for order in _lines(trio.lowlevel.FdStream(0)):
        while done < order["until"]:
            for edit in edits[done : min(done + _BATCH, order["until"])]:
                await node.log.append({**edit.payload, "by": edit.source}, kind="edit", key=edit.key)
                done += 1
            await trio.sleep(_PAUSE_S)  # people are not that fast


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[dict[str, Any]]:
    """JSON lines until the end of a pipe."""
    rest = b""
    while data := await stream.receive_some():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


# ------------------------------------------------------------------------------------------------- as the story sees it


@attrs.define(eq=False)
class _Process:
    """The process of a node, and what it said last."""

    orders: _Orders
    process: trio.Process
    said: dict[str, Any] = attrs.field(factory=dict)
    silent: trio.Event = attrs.field(factory=trio.Event)
    """Set when it has ended and all it said was heard."""
    heard: trio.Event = attrs.field(factory=trio.Event)

    @property
    def name(self) -> str:
        """Of the node."""
        return self.orders.name

    @property
    def synced(self) -> Mapping[str, int]:
        """What it holds, fsynced."""
        held: Mapping[str, int] = self.said.get("synced", {})
        return held

    async def listen(self) -> None:
        """Take in what it says until it ends."""
        assert self.process.stdout is not None, "it was opened with a pipe"
        async for said in _lines(self.process.stdout):
            self.said |= said
            self._ring()
        self.silent.set()
        self._ring()

    def _ring(self) -> None:
        self.heard.set()
        self.heard = trio.Event()

    async def until(self, fact: Callable[[], bool]) -> None:
        """Return when something is so. Raises if the process ends instead."""
        while not fact():
            if self.silent.is_set():
                raise DeltaLogError(f"the process of node {self.name!r} has ended")
            await self.heard.wait()

    async def until_written(self, name: str, count: int) -> None:
        """Return when it has so many deltas synced that the node of this name wrote."""
        await self.until(lambda: written(name, self.synced) >= count)

    async def write(self, until: int) -> None:
        """Tell it to write, up to so many edits in all."""
        assert self.process.stdin is not None, "it was opened with a pipe"
        await self.process.stdin.send_all(json.dumps({"until": until}).encode() + b"\n")

    async def end(self) -> None:
        """Let it close in order."""
        assert self.process.stdin is not None, "it was opened with a pipe"
        await self.process.stdin.aclose()
        await self.process.wait()


@attrs.define(kw_only=True)
class PeerStory(Story):
    """What the demo of the peers tells and checks."""

    seed: int
    count: int
    keys: tuple[str, ...] = ()
    nodes: dict[str, _Process] = attrs.field(factory=dict)
    cable: Cable = attrs.field(factory=lambda: Cable(0))

    def share(self, name: str, part: float) -> int:
        """So much of what a side is to write."""
        return int(len(edits_of(name, self.seed, self.count)) * part)


@asynccontextmanager
async def _process(orders: _Orders) -> AsyncIterator[_Process]:
    command = [sys.executable, "-m", __spec__.name, json.dumps(attrs.asdict(orders))]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        async with open_nursery() as nursery:
            node = _Process(orders, process)
            nursery.start_soon(node.listen)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _begin(story: PeerStory, stack: AsyncExitStack, name: str, *peers: str) -> _Process:
    """Start the process of a node; return when it runs."""
    orders = _Orders(str(story.path / name), name, story.seed, story.count, story.keys, peers)
    node = story.nodes[name] = await stack.enter_async_context(_process(orders))
    await node.until(lambda: bool(node.said))
    return node


def _make_key(path: Path) -> str:
    data_directory.prepare(path, create=True)
    return key_text(create_key(path / NODE_KEY).public)


# ---------------------------------------------------------------------------------------------------------- the story


async def tell(story: PeerStory) -> None:
    """Tell the story from its beginning to its end."""
    story.step("1. Three nodes: each makes a key, and pins those of the others")
    story.path.mkdir()
    story.keys = tuple(_make_key(story.path / name) for name in (*SIDES, HUB))
    with trio.fail_after(2 * WAIT_S):
        async with open_nursery() as nursery, AsyncExitStack() as stack:
            await _connect(story, stack, nursery)
            await _kill(story, stack)
            await _cut(story)
            await _finish(story)
            for node in story.nodes.values():
                await node.end()
            nursery.cancel_scope.cancel()
    await _compare(story)


async def _connect(story: PeerStory, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
    hub = await _begin(story, stack, HUB)
    (address,) = hub.said["listening"]
    story.cable = Cable(int(address.rpartition(":")[2]))
    port = await nursery.start(story.cable.run)
    for name, to in (("left", f"127.0.0.1:{port}"), ("right", address)):
        await _begin(story, stack, name, to)
        story.say(
            f"{name}: process {story.nodes[name].process.pid}, agents {', '.join(SIDES[name])}, to the hub at {to}"
        )


async def _kill(story: PeerStory, stack: AsyncExitStack) -> None:
    story.step(f"2. The agents begin their {story.count:,} edits; the right node is killed while it writes")
    for name in SIDES:
        await story.nodes[name].write(story.share(name, 0.5))
    right = story.nodes["right"]
    await right.until_written("right", story.share("right", 0.2))
    right.process.send_signal(signal.SIGKILL)
    await right.process.wait()
    await right.silent.wait()
    flushed = dict(right.synced)
    story.check(right.process.returncode == -signal.SIGKILL, f"process {right.process.pid} was killed with SIGKILL")
    again = await _begin(story, stack, "right", *right.orders.peers)
    for line in again.said["startup"]:
        story.say(line)
    held = dict(again.synced)
    lost = [source for source, seq in flushed.items() if held.get(source, 0) < seq]
    story.check(
        not lost, f"started again it holds {sum(held.values()):,} deltas; nothing that it had flushed is missing"
    )
    await again.write(story.share("right", 0.5))
    await _equal(story, 0.5)
    story.check(True, f"all three hold the same: {sum(again.synced.values()):,} deltas, digest {again.said['digest']}")
    story.figures["flushed before the kill"] = f"{sum(flushed.values()):,} deltas"


async def _equal(story: PeerStory, part: float) -> None:
    """Return when both sides have written so much of their share, and all three nodes hold the same of it."""
    want = {name: story.share(name, part) for name in SIDES}

    def all_of(node: _Process) -> bool:
        return all(written(name, node.synced) >= count for name, count in want.items())

    hub = story.nodes[HUB]
    with Meter("  syncing", at_once=True, interval_s=1.0) as meter:
        for node in story.nodes.values():

            def there(node: _Process = node) -> bool:
                held = sum(node.synced.values())
                meter.update(held, sum(want.values()), f"{node.name} holds {held:,}")
                return all_of(node) and node.said["digest"] == hub.said["digest"]

            await node.until(there)


async def _cut(story: PeerStory) -> None:
    story.step("3. The cable between the left node and the hub is cut, and both sides go on")
    hub, left = story.nodes[HUB], story.nodes["left"]
    story.cable.cut()
    for name in SIDES:
        await story.nodes[name].write(story.share(name, 0.9))
        await story.nodes[name].until_written(name, story.share(name, 0.9))
    await hub.until_written("right", story.share("right", 0.9))
    behind = written("left", left.synced) - written("left", hub.synced)
    other = written("right", hub.synced) - written("right", left.synced)
    story.check(behind > 0, f"the hub lacks {behind:,} deltas of the left side")
    story.check(other > 0, f"the left node lacks {other:,} of the right side")
    story.figures["written while cut"] = f"{behind + other:,} deltas"


async def _finish(story: PeerStory) -> None:
    story.step("4. It is mended, and the agents finish")
    story.cable.heal()
    for name in SIDES:
        await story.nodes[name].write(story.share(name, 1.0))
    began = trio.current_time()
    await _equal(story, 1.0)
    story.figures["equal after mending"] = f"{trio.current_time() - began:.1f} s"
    for node in story.nodes.values():
        story.say(f"{node.name:<5}  {sum(node.synced.values()):,} deltas  digest {node.said['digest']}")
    story.check(len({node.said["digest"] for node in story.nodes.values()}) == 1, "three times the same digest")
    known = sum(node.said["known"] for node in story.nodes.values())
    story.check(known == 0, "in the sessions of the end no delta came twice")


async def _compare(story: PeerStory) -> None:
    story.step("5. The closed logs are compared with what the agents did")
    digests = set[str]()
    for name in (*SIDES, HUB):
        files, deltas = Files(), list[Delta]()
        async with opened(DataOptions(story.path / name), tell=False) as manager:
            stream = manager.log.replay()
            while page := await stream.page():
                deltas += page
        for delta in deltas:
            files.apply(delta)
        digests.add(files.digest())
        right = all(_is_told(side, deltas, edits_of(side, story.seed, story.count)) for side in SIDES)
        story.check(right, f"{name}: {len(deltas):,} edits, those of each side in their order; files {files.digest()}")
    story.check(len(digests) == 1, "all three give the same files")
    story.figures["deltas"] = f"{story.count:,} on each of three nodes"


def _is_told(side: str, deltas: Iterable[Delta], edits: Iterable[Delta]) -> bool:
    """Whether the deltas of a side are what its agents did, each once and in their order."""
    told = [(delta.key, delta.payload) for delta in deltas if delta.source.partition("~")[0] == side]
    return told == [(edit.key, {**edit.payload, "by": edit.source}) for edit in edits]


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    trio.run(_child, _Orders(**{**said, "keys": tuple(said["keys"]), "peers": tuple(said["peers"])}))
