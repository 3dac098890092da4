"""A link that is cut after any one frame: the nodes become equal over the next one, without a restart.

The run: Bob catches up with Alice, both write while connected, and Carol gets all of it through Bob. In a first run
frames are only counted; then it runs once for each frame of either link in either direction, with that one as the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import attrs
import pytest
import trio
from trio.testing import MockClock

from sync.memory_transport import MemoryLink
from sync.messages import PREFIX_BYTES
from tests.sync.nodes import Node, World, converged, until

Way = tuple[str, str]
"""Who sends, who receives."""
WAYS: Final[tuple[Way, ...]] = (("bob", "alice"), ("alice", "bob"), ("carol", "bob"), ("bob", "carol"))


@attrs.define
class Scissors:
    """Counts the frames that are sent each way, over all links; cuts the link behind one of them, once."""

    way: Way | None = None
    after: int = 0
    """Number of the last frame; its link then carries no more. 0: the link is cut before the first."""
    within: bool = False
    """Whether it is cut in the middle of the frame behind that one."""
    counts: dict[Way, int] = attrs.field(factory=lambda: dict.fromkeys(WAYS, 0))
    cuts: int = 0

    async def send(self, link: MemoryLink, data: bytes) -> None:
        """Stands for `send_all`."""
        way = link.here, link.there
        start = 0
        for end in _ends(data):
            if self._due(way):
                break
            self.counts[way] += 1
            await _send_all(link, data[start:end])
            start = end
        if self._due(way):
            self.cuts += 1
            if self.within:
                await _send_all(link, data[start : start + PREFIX_BYTES + 1])
            await _arrived(link)
            link.cut("by scissors")
            await _send_all(link, b"")
        assert start == len(data), "nodes send whole frames"

    def _due(self, way: Way) -> bool:
        return way == self.way and not self.cuts and self.counts[way] >= self.after


def _ends(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        yield at


async def _arrived(link: MemoryLink) -> None:
    """What was sent is read on the other side: a cut would lose it."""
    with trio.move_on_after(1):
        await link._out.room(link._network.weather.in_flight_bytes_max)


_send_all = MemoryLink.send_all


@contextmanager
def cutting(scissors: Scissors) -> Iterator[None]:
    """Let all links go through them."""

    async def send_all(link: MemoryLink, data: bytes) -> None:
        await scissors.send(link, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryLink, "send_all", send_all)
        yield


async def story(scissors: Scissors) -> list[str]:
    """The run; it must end with three equal nodes. Returns what they complained of."""
    world = World()
    with cutting(scissors):
        async with world.node("alice") as alice:
            alice.append(30)
            await alice.log.flush()
            async with world.node("bob", "alice") as bob, world.node("carol", "bob") as carol:
                bob.append(5)
                await converged(alice, bob, carol)
                for number in range(3):
                    await alice.log.append(number, durable=True)
                    await carol.log.append(number, durable=True)
                await converged(alice, bob, carol)
                await equal(alice, bob, carol)
    return world.problems


async def equal(*nodes: Node) -> None:
    """All hold the same, in the same order, nothing twice."""
    first, *others = [await node.all() for node in nodes]
    assert len({delta.dot for delta in first}) == len(first) == 41
    assert all(deltas == first for deltas in others)
    await until(lambda: all(peer.equal for node in nodes for peer in node.mesh.peers.values()))


@cache
def frames() -> dict[Way, int]:
    """How many there are each way if nothing is cut. A run is the same each time: its network draws from one seed."""
    scissors = Scissors()
    trio.run(story, scissors, clock=MockClock(autojump_threshold=0))
    return scissors.counts


def test_the_story_has_all_it_needs() -> None:
    counts = frames()
    assert all(count >= 8 for count in counts.values()), counts


@pytest.mark.parametrize("within", [False, True], ids=["behind", "within"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_i14_a_session_that_is_cut_at_any_frame_goes_on_over_the_next(way: Way, within: bool) -> None:
    for after in range(frames()[way] + 1):
        scissors = Scissors(way, after, within)
        problems = trio.run(story, scissors, clock=MockClock(autojump_threshold=0))
        assert scissors.cuts == 1 or after == frames()[way], after
        assert not [text for text in problems if not any(each in text for each in MAY)], (after, problems)


MAY: Final = ("cut by scissors", "closed", "silent", "the peer ended the session")
"""What nodes may say of a link that was cut, and of its end."""
