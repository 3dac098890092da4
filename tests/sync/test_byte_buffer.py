"""A buffer between two tasks: its bound, its end, its order."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sync.byte_buffer import ByteBuffer
from sync.errors import LinkFailed


async def test_bytes_come_in_order_up_to_what_is_asked_for() -> None:
    buffer = ByteBuffer(100)
    await buffer.put(b"abc")
    await buffer.put(b"def")
    assert await buffer.take(4) == b"abcd"
    assert await buffer.take(4) == b"ef"


async def test_a_full_buffer_makes_wait() -> None:
    buffer = ByteBuffer(3)
    await buffer.put(b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.put, b"d")
        await trio.testing.wait_all_tasks_blocked()
        assert await buffer.take(10) == b"abc"
        assert await buffer.take(10) == b"d"


async def test_what_is_there_is_read_before_the_end() -> None:
    buffer = ByteBuffer(10)
    await buffer.put(b"abc")
    buffer.end(LinkFailed("cut"))
    assert await buffer.take(10) == b"abc"
    with pytest.raises(LinkFailed, match="cut"):
        await buffer.take(10)
    with pytest.raises(LinkFailed, match="cut"):
        await buffer.put(b"x")


async def test_the_first_end_counts_unless_bytes_are_lost() -> None:
    buffer = ByteBuffer(10)
    await buffer.put(b"abc")
    buffer.end()
    buffer.end(LinkFailed("too late"))
    assert await buffer.take(10) == b"abc"
    assert await buffer.take(10) == b""
    buffer.end(LinkFailed("closed here"), lose=True)
    with pytest.raises(LinkFailed, match="closed here"):
        await buffer.take(10)


async def test_an_end_wakes_both_sides() -> None:
    full, empty = ByteBuffer(1), ByteBuffer(1)
    await full.put(b"x")

    async def end() -> None:
        await trio.testing.wait_all_tasks_blocked()
        full.end(LinkFailed("cut"), lose=True)
        empty.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with pytest.raises(LinkFailed, match="cut"):
            await full.put(b"y")
        assert await empty.take(1) == b""
