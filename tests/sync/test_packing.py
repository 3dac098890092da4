"""Packed frames: the same frames come out, in fewer bytes; what was not packed by an honest node is refused by name."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from sync.errors import ProtocolError
from sync.memory_transport import MemoryLink
from sync.messages import FRAME_BYTES, PREFIX_BYTES, Commit, Deltas, Packed, Want, decode, encode
from sync.options import SyncOptions
from sync.packing import PACK_BYTES_MIN, pack, unpack
from sync.peer import Peer
from tests.sync.hostile import Tale, meeting
from tests.sync.hostile_frames import PACKED_LIES
from tests.sync.nodes import CheapKey, Node, World, converged

PACKED = 16


def frames_of(sizes: list[int], *, random: bool) -> list[bytes]:
    """DELTAS of payloads of these sizes, and a HEAD behind each run."""
    tale, frames = Tale("alice", CheapKey("alice")), []
    for seq, size in enumerate(sizes, 1):
        tale.grow(1, payload=os.urandom(size) if random else b"x" * size)
        frames += tale.run(seq)
    return [*frames, encode(Commit(1))]


def flat(groups: Iterable[list[bytes]]) -> list[bytes]:
    """The frames in them."""
    return [frame for group in groups for frame in group]


def said(frames: list[bytes]) -> bytes:
    """What they say, packed or not."""
    return b"".join(
        unpack(Packed(frame[PREFIX_BYTES:])) if frame[PREFIX_BYTES - 1] == PACKED else frame for frame in frames
    )


@given(st.lists(st.integers(0, 3000) | st.integers(0, 300_000), max_size=12), st.booleans())
@example([0] * 200, False)
@example([60_000] * 9, False)
@example([60_000] * 9, True)
@example([300_000, 1, 300_000], False)
def test_packed_frames_say_the_same_in_the_same_order(sizes: list[int], random: bool) -> None:
    frames = frames_of(sizes, random=random)
    packed = flat(pack(frames))
    assert said(packed) == b"".join(frames)
    assert sum(map(len, packed)) <= sum(map(len, frames))
    for each in packed:
        number, body = each[PREFIX_BYTES - 1], each[PREFIX_BYTES:]
        assert encode(decode(number, body)) == each if number == PACKED else each in frames


def test_what_saves_little_is_sent_as_it_is() -> None:
    few = frames_of([1], random=False)
    assert sum(map(len, few)) < PACK_BYTES_MIN
    random = frames_of([5000] * 5, random=True)
    for frames in (few, random, []):
        assert flat(pack(frames)) == frames
    assert sum(map(len, flat(pack(frames_of([5000] * 5, random=False))))) < 2000


@pytest.mark.parametrize("lie", PACKED_LIES)
def test_a_lie_is_refused_by_name(lie: str) -> None:
    body, reason = PACKED_LIES[lie]
    with pytest.raises(ProtocolError, match=reason):
        unpack(Packed(body))


def test_one_that_is_cut_short_is_refused_wherever_it_is() -> None:
    body = zlib.compress(b"".join(frames_of([10, 20, 30], random=False)))
    unpack(Packed(body))
    for end in range(len(body)):
        with pytest.raises(ProtocolError, match="packed: it ends too early"):
            unpack(Packed(body[:end]))


def test_a_bomb_costs_no_more_than_a_frame() -> None:
    bomb = Packed(zlib.compress(bytes(1 << 28), 9))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * FRAME_BYTES
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------------ sessions


def packed_by(node: Node) -> list[bool]:
    """Whether it packs for each peer."""
    return [peer.outgoing.packs for peer in node.mesh.peers.values()]


async def test_two_nodes_that_compress_send_fewer_bytes(autojump_clock: MockClock) -> None:
    crossed = []
    for compress in (True, False):
        world, options = World(), SyncOptions(compress=compress)
        async with world.node("alice", options=options) as alice, world.node("bob", "alice", options=options) as bob:
            for number in range(500):
                alice.log.append_nowait({"at": number, "text": "the quick brown fox " * 5})
                bob.log.append_nowait({"at": number, "text": "jumps over the lazy dog " * 5})
            await converged(alice, bob)
            assert await alice.all() == await bob.all()
            assert packed_by(alice) == packed_by(bob) == [compress]
            (status,) = bob.mesh.statuses()
            crossed.append((status.traffic.bytes_in, status.traffic.bytes_out, status.traffic.deltas_in))
    (less_in, less_out, count), (more_in, more_out, same_count) = crossed
    assert count == same_count == 500
    assert less_in < more_in / 2
    assert less_out < more_out / 2


@pytest.mark.parametrize("features", [(), ("zlib",), ("brotli", "zlib")])
async def test_who_cannot_read_them_is_sent_none(autojump_clock: MockClock, features: tuple[str, ...]) -> None:
    world = World(names=("alice", "mallory"))
    async with world.node("alice", options=SyncOptions(compress=True)) as alice, meeting(world, alice) as foe:
        alice.append(500)
        await foe.open(features=features)
        await foe.say(Want((("alice", 0),)))
        if "zlib" in features:
            await foe.listen(Packed)
            assert not foe.said(Deltas)
        else:
            await foe.listen(Commit)
            assert foe.said(Deltas)
            assert not foe.said(Packed)


@pytest.mark.parametrize("local", [True, False])
async def test_within_one_machine_nothing_is_packed_unless_it_is_said(autojump_clock: MockClock, local: bool) -> None:
    world = World()
    async with world.node("alice") as alice, meeting(world, alice) as foe:
        link = foe.link
        assert isinstance(link, MemoryLink)
        link.local = local
        assert Peer(alice.mesh, link, dialed=False)._packs() is not local
