"""Frames over a link: whole ones whatever the pieces, in time, in order; what waits to be read is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from deltalog.delta import Limits
from sync.errors import LinkFailed, ProtocolError
from sync.memory_transport import MemoryLink
from sync.messages import FRAME_BYTES, HELLO_BYTES, PREFIX_BYTES, Alive, Commit, Goodbye, encode
from sync.options import SyncOptions
from sync.wire import OUTBOX_LOW, Wire
from tests.sync.hostile import frame
from tests.sync.nodes import World

OPTIONS = SyncOptions()
ALIVE = encode(Alive(1, 2, bytes(32)))


@attrs.frozen
class Ends:
    """A wire, and the other end of its link."""

    wire: Wire
    far: MemoryLink


@asynccontextmanager
async def ends(options: SyncOptions = OPTIONS) -> AsyncIterator[Ends]:
    network = World().network
    here, there = network.node("here"), network.node("there")
    taken, links = trio.open_memory_channel[MemoryLink](1)

    async def handler(link: object) -> None:
        assert isinstance(link, MemoryLink)
        await taken.send(link)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(there.serve, handler)
        near = await here.dial("there")
        yield Ends(Wire(near, options, Limits()), await links.receive())
        nursery.cancel_scope.cancel()


async def test_frames_come_whole_and_in_order_whatever_the_pieces(autojump_clock: MockClock) -> None:
    sent = [ALIVE, encode(Commit(1)), frame(5, b"x" * 70_000), ALIVE]
    async with ends() as both, trio.open_nursery() as nursery:

        async def send() -> None:
            data = b"".join(sent)
            for start in range(0, len(data), 999):
                await both.far.send_all(data[start : start + 999])

        nursery.start_soon(send)
        for whole in sent:
            assert await both.wire.frame(opened=True) == (whole[4], whole[PREFIX_BYTES:])
        assert both.wire.traffic.bytes_in == sum(map(len, sent))


async def test_what_was_unpacked_comes_before_what_follows(autojump_clock: MockClock) -> None:
    async with ends() as both:
        await both.far.send_all(ALIVE + encode(Commit(3)))
        await both.wire.frame(opened=True)
        both.wire.unread(encode(Commit(1)) + encode(Commit(2)))
        bodies = [(await both.wire.frame(opened=True))[1] for _ in range(3)]
        assert bodies == [encode(Commit(number))[PREFIX_BYTES:] for number in (1, 2, 3)]


@pytest.mark.parametrize(("opened", "most"), [(False, HELLO_BYTES), (True, FRAME_BYTES)])
async def test_a_frame_that_is_too_large_is_refused_before_it_is_read(
    autojump_clock: MockClock, opened: bool, most: int
) -> None:
    async with ends() as both:
        await both.far.send_all(frame(14, b"", most + 1))
        with pytest.raises(ProtocolError, match=f"frame of {most + 1:,} bytes; the limit is {most:,}"):
            await both.wire.frame(opened=opened)


async def test_a_frame_that_has_begun_must_end_in_time_and_silence_may_last(autojump_clock: MockClock) -> None:
    async with ends() as both, trio.open_nursery() as nursery:
        start = trio.current_time()

        async def send() -> None:
            await trio.sleep(1000)
            await both.far.send_all(ALIVE[:-1])

        nursery.start_soon(send)
        with pytest.raises(LinkFailed, match="has not sent the rest of a frame within 10 s"):
            await both.wire.frame(opened=True)
        assert trio.current_time() - start == pytest.approx(1010, abs=1)


async def test_a_link_that_ends_within_a_frame_has_failed(autojump_clock: MockClock) -> None:
    async with ends() as both:
        await both.far.send_all(ALIVE[:9])
        await both.far.aclose()
        with pytest.raises(LinkFailed, match="closed"):
            await both.wire.frame(opened=True)


async def test_what_is_put_is_sent_in_order(autojump_clock: MockClock) -> None:
    async with ends() as both, trio.open_nursery() as nursery:
        nursery.start_soon(both.wire.write)
        for number in range(1, 4):
            both.wire.put(Commit(number))
        await both.wire.push([ALIVE, ALIVE])
        due = b"".join(encode(Commit(number)) for number in range(1, 4)) + ALIVE * 2
        got = b""
        while len(got) < len(due):
            got += await both.far.receive_some(1 << 16)
        assert got == due
        await wait_all_tasks_blocked()
        assert (both.wire.waiting_bytes, both.wire.traffic.bytes_out) == (0, len(due))
        nursery.cancel_scope.cancel()


async def test_batches_wait_while_much_waits_and_messages_do_not(autojump_clock: MockClock) -> None:
    async with ends() as both, trio.open_nursery() as nursery:
        await both.wire.push([bytes(OUTBOX_LOW + 1)])
        both.wire.put(Commit(1))
        pushed = trio.Event()

        async def push() -> None:
            await both.wire.push([ALIVE])
            pushed.set()

        nursery.start_soon(push)
        await wait_all_tasks_blocked()
        assert not pushed.is_set()
        nursery.start_soon(both.wire.write)
        while not pushed.is_set():
            await both.far.receive_some(1 << 16)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_messages_is_cut_off(autojump_clock: MockClock) -> None:
    async with ends(SyncOptions(outbox_bytes=1000)) as both:
        while both.wire.waiting_bytes <= 1000 + OUTBOX_LOW - len(ALIVE):
            both.wire.put(Alive(1, 2, bytes(32)))
        full = both.wire.waiting_bytes
        both.wire.put(Alive(1, 2, bytes(32)))
        both.wire.put(Alive(1, 2, bytes(32)))
        assert both.wire.waiting_bytes == full, "nothing more is kept"
        with pytest.raises(LinkFailed, match="bytes wait for the other side to read them"):
            await both.wire.write()


async def test_a_peer_that_takes_nothing_is_offline(autojump_clock: MockClock) -> None:
    async with ends(SyncOptions(offline_s=7)) as both:
        await both.wire.push([bytes(1 << 20)])
        with pytest.raises(LinkFailed, match="has not taken what was sent to it within 7 s"):
            await both.wire.write()


async def test_a_last_message_never_comes_within_another(autojump_clock: MockClock) -> None:
    async with ends() as both:
        await both.wire.say_last(Goodbye("closing", ""))
        assert await both.far.receive_some(1000) == encode(Goodbye("closing", ""))
        await both.wire.push([bytes(1 << 20)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.wire.write)
            await wait_all_tasks_blocked()
            await both.wire.say_last(Goodbye("closing", ""))
            both.wire.hurry()
            nursery.cancel_scope.cancel()
        await both.wire.link.aclose()
        rest = b""
        while data := await both.far.receive_some(1 << 16):
            rest += data
        assert rest == bytes(len(rest)), "no goodbye among them"
