"""The laws of a transport: what every one must do. Run them on yours:

    class TestMyTransport(TransportLaws):
        @asynccontextmanager
        async def pair(self) -> AsyncIterator[Pair]:
            async with ...:
                yield Pair(dialer, listener)

`pair` gives a dialer and a listener that admit each other; what `serve` tells is what gets dialled. Nothing here
asserts a duration; a deadline only turns a hang into a failure.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, ClassVar

import attrs
import pytest
import trio
import trio.testing

from sync.errors import LinkFailed
from sync.transport import Dialer, Handler, Link, Listener

HANG_S = 60
MIB = 1024 * 1024


@attrs.frozen
class Pair:
    """Two nodes that admit each other."""

    dialer: Dialer
    listener: Listener
    dialer_key: bytes = b""
    listener_key: bytes = b""


@attrs.define
class Ends:
    """Both ends of one link."""

    near: Link
    """Of who dialled."""
    far: Link


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


async def read(link: Link, size_bytes: int, piece_bytes: int = 65536) -> bytes:
    """Exactly so many bytes, or fewer if the other side closed."""
    data = bytearray()
    while len(data) < size_bytes:
        piece = await link.receive_some(min(piece_bytes, size_bytes - len(data)))
        if not piece:
            break
        data += piece
    return bytes(data)


async def read_to_end(link: Link) -> bytes:
    data = bytearray()
    while piece := await link.receive_some(65536):
        data += piece
    return bytes(data)


async def echo(link: Link) -> None:
    while data := await link.receive_some(65536):
        await link.send_all(data)


@asynccontextmanager
async def serving(pair: Pair, handler: Handler) -> AsyncIterator[str]:
    """The address at which the listener runs the handler."""
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(pair.listener.serve, handler)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(pair: Pair) -> AsyncIterator[Ends]:
    """A link, both its ends in hand."""
    taken, links = trio.open_memory_channel[Link](1)

    async def keep(link: Link) -> None:
        await taken.send(link)
        await trio.sleep_forever()

    async with serving(pair, keep) as address:
        near = await pair.dialer.dial(address)
        made = [near]
        try:
            # A protocol may tell the listener of a link only with the first bytes on it.
            await near.send_all(b"!")
            far = await links.receive()
            made.append(far)
            assert await read(far, 1) == b"!"
            yield Ends(near, far)
        finally:
            async with trio.open_nursery() as nursery:  # side by side: each may wait for the end of the other
                for link in made:
                    nursery.start_soon(link.aclose)


class TransportLaws:
    """Every transport passes these."""

    buffered_bytes_max: ClassVar[int] = 64 * MIB
    """More than this is never under way on one link that nobody reads."""

    @abstractmethod
    def pair(self) -> AbstractAsyncContextManager[Pair]: ...

    async def test_bytes_go_both_ways_in_order(self) -> None:
        async with self.pair() as pair, serving(pair, echo) as address:
            link = await pair.dialer.dial(address)
            chance = random.Random(1)
            for number in range(100):
                data = noise(chance.randint(1, 3000), number)
                await link.send_all(data)
                assert await read(link, len(data), chance.randint(1, 999)) == data
            await link.aclose()

    async def test_both_ends_know_the_key_of_the_other(self) -> None:
        async with self.pair() as pair, connected(pair) as ends:
            assert (ends.near.peer_key, ends.far.peer_key) == (pair.listener_key, pair.dialer_key)
            assert ends.near.local and ends.far.local
            assert ends.near.name
            assert ends.far.name

    async def test_a_big_transfer_arrives_whole(self) -> None:
        data = noise(3 * MIB + 17)
        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(ends.near.send_all, data)
            assert await read(ends.far, len(data)) == data

    async def test_big_transfers_pass_each_other(self) -> None:
        there, back = noise(2 * MIB, 1), noise(2 * MIB, 2)
        got: dict[str, bytes] = {}

        async def keep(name: str, link: Link, size_bytes: int) -> None:
            got[name] = await read(link, size_bytes)

        async with self.pair() as pair, connected(pair) as ends:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends.near.send_all, there)
                nursery.start_soon(ends.far.send_all, back)
                nursery.start_soon(keep, "there", ends.far, len(there))
                nursery.start_soon(keep, "back", ends.near, len(back))
            assert got == {"there": there, "back": back}

    async def test_nothing_sent_is_nothing_received(self) -> None:
        async with self.pair() as pair, connected(pair) as ends:
            await ends.near.send_all(b"")
            await ends.near.send_all(b"x")
            assert await ends.far.receive_some(100) == b"x"

    async def test_a_sender_waits_for_a_reader(self) -> None:
        sent = 0

        async def flood(link: Link) -> None:
            nonlocal sent
            while sent < 2 * self.buffered_bytes_max:
                await link.send_all(bytes(MIB))
                sent += MIB

        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(flood, ends.near)
            before = -1
            while before != sent:  # until it has sent nothing for a while
                before = sent
                await trio.sleep(0.5)
            assert sent < self.buffered_bytes_max
            await read(ends.far, sent + MIB)
            while sent == before:
                await read(ends.far, 1)
            nursery.cancel_scope.cancel()

    async def test_the_other_side_reads_all_and_then_the_end(self) -> None:
        data = noise(100_000)
        async with self.pair() as pair, connected(pair) as ends:
            await ends.near.send_all(data)
            await ends.near.aclose()
            assert await read_to_end(ends.far) == data
            assert await ends.far.receive_some(1) == b""

    async def test_the_end_is_seen_by_the_dialer_too(self) -> None:
        async with self.pair() as pair, connected(pair) as ends:
            await ends.far.send_all(b"bye")
            await ends.far.aclose()
            assert await read_to_end(ends.near) == b"bye"

    async def test_a_handler_that_returns_ends_its_link(self) -> None:
        async def one(link: Link) -> None:
            await link.send_all(await read(link, 1))

        async with self.pair() as pair, serving(pair, one) as address:
            for _ in range(3):
                link = await pair.dialer.dial(address)
                await link.send_all(b"x")
                assert await read_to_end(link) == b"x"
                await link.aclose()

    async def test_a_handler_that_fails_ends_its_link_only(self) -> None:
        async def fragile(link: Link) -> None:
            if await read(link, 1) == b"f":
                raise LinkFailed("made to fail")
            await echo(link)

        async with self.pair() as pair, serving(pair, fragile) as address:
            good, bad = await pair.dialer.dial(address), await pair.dialer.dial(address)
            await good.send_all(b"g")
            await bad.send_all(b"f")
            assert await ended(lambda: bad.receive_some(1))
            await good.send_all(b"still here")
            assert await read(good, 10) == b"still here"
            for link in (good, bad):
                await link.aclose()

    async def test_a_closed_link_takes_and_gives_nothing(self) -> None:
        async with self.pair() as pair, connected(pair) as ends:
            await ends.near.aclose()
            await ends.near.aclose()
            with pytest.raises(LinkFailed):
                await ends.near.send_all(b"x")
            with pytest.raises(LinkFailed):
                await ends.near.receive_some(1)

    async def test_closing_wakes_who_reads_here(self) -> None:
        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(close_when_blocked, ends.near)
            with pytest.raises(LinkFailed):
                await ends.near.receive_some(1)

    async def test_closing_wakes_who_sends_here(self) -> None:
        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(close_when_blocked, ends.near)
            with pytest.raises(LinkFailed):
                await ends.near.send_all(bytes(2 * self.buffered_bytes_max))

    async def test_sending_to_a_closed_link_fails_in_the_end(self) -> None:
        async with self.pair() as pair, connected(pair) as ends:
            await ends.near.aclose()
            with pytest.raises(LinkFailed):
                await ends.far.send_all(bytes(2 * self.buffered_bytes_max))

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        data = noise(300_000)
        got = bytearray()
        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(trickle, ends.near, data)
            cancelled = 0
            while len(got) < len(data):
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_soon, scope, len(got) % 7)
                    got += await ends.far.receive_some(1000)
                cancelled += scope.cancelled_caught
            assert bytes(got) == data
            assert cancelled

    async def test_two_tasks_must_not_use_one_direction(self) -> None:
        async with self.pair() as pair, connected(pair) as ends, trio.open_nursery() as nursery:
            nursery.start_soon(ignoring_the_end, ends.near.receive_some, 1)
            nursery.start_soon(ignoring_the_end, ends.near.send_all, bytes(2 * self.buffered_bytes_max))
            await trio.testing.wait_all_tasks_blocked(0.005)
            with pytest.raises(trio.BusyResourceError):
                await ends.near.receive_some(1)
            with pytest.raises(trio.BusyResourceError):
                await ends.near.send_all(b"x")
            nursery.cancel_scope.cancel()

    async def test_many_links_at_once(self) -> None:
        async def use(address: str, number: int) -> None:
            link = await pair.dialer.dial(address)
            data = noise(20_000 + number, number)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.send_all, data)
                assert await read(link, len(data)) == data
            await link.aclose()

        async with self.pair() as pair, serving(pair, echo) as address, trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(use, address, number)

    async def test_a_listener_that_stops_ends_its_links(self) -> None:
        async with self.pair() as pair:
            async with serving(pair, echo) as address:
                link = await pair.dialer.dial(address)
                await link.send_all(b"x")
                assert await read(link, 1) == b"x"
            with trio.fail_after(HANG_S):
                assert await ended(lambda: link.receive_some(1))
                with pytest.raises(LinkFailed):
                    await pair.dialer.dial(address)
                await link.aclose()


async def ended(receive: Callable[[], Awaitable[bytes]]) -> bool:
    """Whether the next thing received is the end, tidy or not."""
    try:
        return await receive() == b""
    except LinkFailed:
        return True


async def until(true: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    while not true():
        await trio.testing.wait_all_tasks_blocked(0.01)


async def close_when_blocked(link: Link) -> None:
    await trio.testing.wait_all_tasks_blocked(0.005)
    await link.aclose()


async def trickle(link: Link, data: bytes) -> None:
    for start in range(0, len(data), 1500):
        await link.send_all(data[start : start + 1500])
        await trio.lowlevel.checkpoint()


async def cancel_soon(scope: trio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def ignoring_the_end(act: Callable[[Any], Awaitable[object]], argument: Any) -> None:
    with suppress(LinkFailed):
        await act(argument)
