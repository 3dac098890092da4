"""Links in memory: the laws, one run per seed, delays, rates, cuts, partitions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from deltalog.errors import UsageError
from sync.errors import LinkFailed
from sync.memory_transport import MemoryTransport, Network, Weather
from sync.transport import Link
from tests.laws.transport import Ends, Pair, TransportLaws, connected, echo, ended, read, serving

CALM = Weather(delay_s=(0.0, 0.0))


class TestMemoryTransport(TransportLaws):
    buffered_bytes_max = 2 * 1024 * 1024

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        network = Network(7, Weather(delay_s=(0.0, 0.002)))
        yield Pair(network.node("alice", b"A" * 32), network.node("bob", b"B" * 32), b"A" * 32, b"B" * 32)


def between(network: Network, one: str = "alice", other: str = "bob") -> Pair:
    return Pair(network.node(one), network.node(other))


# ---------------------------------------------------------------------------------------------------- one seed, one run


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """trio's own choices, too, from a seed. `deterministic()` starts them anew."""
    from trio._core import _run

    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    before = _run._r.getstate()
    yield lambda: _run._r.seed(0)
    _run._r.setstate(before)


def history(seed: int, before: Callable[[], None]) -> list[tuple[Any, ...]]:
    """What five nodes see that talk to each other on a bad network for a minute."""
    seen: list[tuple[Any, ...]] = []
    names = ["a", "b", "c", "d", "e"]

    async def listen(node: MemoryTransport) -> None:
        async def handler(link: Link) -> None:
            while data := await link.receive_some(1000):
                seen.append((trio.current_time(), link.name, len(data), data[:4]))

        await node.serve(handler)

    async def talk(node: MemoryTransport, chance: random.Random) -> None:
        while True:
            try:
                link = await node.dial(chance.choice(names))
                while True:
                    await link.send_all(chance.randbytes(chance.randint(1, 3000)))
                    await trio.sleep(chance.random())
            except LinkFailed as error:
                seen.append((trio.current_time(), node.name, str(error)))
                await trio.sleep(chance.random())

    async def weather(network: Network, chance: random.Random) -> None:
        while True:
            await trio.sleep(chance.uniform(0, 5))
            seen.append((trio.current_time(), network.links()))
            split = chance.sample(names, 5)
            network.partition(split[:2], split[2:], cut=chance.random() < 0.5)
            await trio.sleep(chance.uniform(0, 5))
            network.heal()

    async def main() -> None:
        network = Network(seed, Weather(cut_chance=0.01, bytes_per_s=10_000))
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                for number, name in enumerate(names):
                    nursery.start_soon(listen, network.node(name))
                    nursery.start_soon(talk, network.node(name), random.Random(number))
                nursery.start_soon(weather, network, random.Random(99))

    before()
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seen


def test_one_seed_is_one_run(deterministic: Callable[[], None]) -> None:
    first = history(3, deterministic)
    assert len(first) > 500
    for _ in range(3):
        again = history(3, deterministic)
        assert _without_start(again) == _without_start(first)
    assert _without_start(history(4, deterministic)) != _without_start(first)


def _without_start(seen: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Mock clocks start where they like."""
    return [(round(entry[0] - seen[0][0], 9), *entry[1:]) for entry in seen]


def test_a_random_of_ones_own_does(autojump_clock: trio.testing.MockClock) -> None:
    one, other = random.Random(1), random.Random(1)
    assert Network(one)._delay_s() == Network(1)._delay_s() == Network(other)._delay_s()


# ------------------------------------------------------------------------------------------------------ delay and rate


async def test_data_takes_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(between(Network(1, Weather(delay_s=(5.0, 5.0))))) as ends:
        start = trio.current_time()
        await ends.near.send_all(b"x")
        assert trio.current_time() == start
        assert await ends.far.receive_some(1) == b"x"
        assert trio.current_time() == start + 5.0


async def test_data_overtakes_across_links_and_never_on_one(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1, Weather(delay_s=(0.0, 2.0)))
    order: list[bytes] = []

    async def keep(link: Link) -> None:
        while data := await link.receive_some(1):
            order.append(data)

    async with serving(between(network), keep) as address:
        links = [await network.node("alice").dial(address) for _ in range(8)]
        for data in (b"0", b"1"):
            for number, link in enumerate(links):
                await link.send_all(bytes([number]) if data == b"0" else bytes([number + 100]))
        await trio.sleep(30)
    firsts = [data[0] for data in order if data[0] < 100]
    assert sorted(firsts) == list(range(8))
    assert firsts != sorted(firsts)
    assert all(order.index(bytes([number])) < order.index(bytes([number + 100])) for number in range(8))


async def test_a_slow_link_is_slow_and_others_are_not(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1, CALM)
    network.slow("alice", "bob", 10_000.0)

    async def seconds(one: str, other: str) -> float:
        async with connected(between(network, one, other)) as ends, trio.open_nursery() as nursery:
            start = trio.current_time()
            nursery.start_soon(ends.near.send_all, bytes(500_000))
            await read(ends.far, 500_000)
            return trio.current_time() - start

    assert await seconds("alice", "bob") == pytest.approx(50, rel=0.01)
    assert await seconds("alice", "carol") == 0
    network.slow("alice", "bob", None)
    assert await seconds("alice", "bob") == 0


# ------------------------------------------------------------------------------------------------------ cuts, partition


async def both_fail(ends: Ends) -> None:
    for link in (ends.near, ends.far):
        with pytest.raises(LinkFailed, match="was cut"):
            await link.receive_some(1)
        with pytest.raises(LinkFailed, match="was cut"):
            await link.send_all(b"x")


async def test_a_cut_ends_both_ends_and_loses_what_was_under_way(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with connected(between(network)) as ends, connected(between(network, "carol", "dave")) as others:
        await ends.near.send_all(b"never arrives")
        assert network.links() == [("alice", "bob"), ("carol", "dave")]
        assert network.cut("alice", "bob") == 1
        assert network.links() == [("carol", "dave")]
        await both_fail(ends)
        await others.near.send_all(b"x")
        assert await others.far.receive_some(1) == b"x"
        assert network.cut("dave") == 1
        assert network.cut("dave") == 0
        await both_fail(others)


@pytest.mark.parametrize("waiting", ["receive", "send"])
async def test_a_cut_wakes_who_waits(autojump_clock: trio.testing.MockClock, waiting: str) -> None:
    network = Network(1)

    async def cut() -> None:
        await trio.testing.wait_all_tasks_blocked()
        network.cut("bob")

    async with connected(between(network)) as ends, trio.open_nursery() as nursery:
        act: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": lambda: ends.near.receive_some(1),
            "send": lambda: ends.near.send_all(bytes(1024 * 1024)),
        }
        nursery.start_soon(cut)
        with pytest.raises(LinkFailed, match="was cut"):
            await act[waiting]()


async def writes_before_a_cut(link: Link) -> int:
    for number in range(10_000):
        try:
            await link.send_all(b"x")
        except LinkFailed:
            return number
    raise AssertionError("never cut")


async def test_writes_are_cut_by_chance(autojump_clock: trio.testing.MockClock) -> None:
    lengths = []
    network = Network(5, Weather(cut_chance=0.1))
    for _ in range(50):
        network.weather = Weather()
        async with connected(between(network)) as ends:
            network.weather = Weather(cut_chance=0.1)
            lengths.append(await writes_before_a_cut(ends.near))
    assert len(set(lengths)) > 5
    assert 4 < sum(lengths) / len(lengths) < 20


async def test_a_partition_holds_data_back_until_it_heals(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with connected(between(network)) as ends, connected(between(network, "alice", "carol")) as inside:
        await ends.near.send_all(b"before ")
        network.partition(["alice", "carol"], ["bob"])
        await ends.near.send_all(b"during ")
        with trio.move_on_after(30) as scope:
            await ends.far.receive_some(1)
        assert scope.cancelled_caught
        await inside.near.send_all(b"x")
        assert await inside.far.receive_some(1) == b"x"
        network.heal()
        await ends.near.send_all(b"after")
        assert await read(ends.far, 19) == b"before during after"


async def test_the_end_of_a_link_waits_for_the_partition_to_heal(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with connected(between(network)) as ends:
        network.partition(["alice"], ["bob"])
        await ends.near.aclose()
        with trio.move_on_after(30) as scope:
            await ends.far.receive_some(1)
        assert scope.cancelled_caught
        network.heal()
        assert await ends.far.receive_some(1) == b""


async def test_a_partition_may_cut(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with connected(between(network)) as ends, connected(between(network, "alice", "carol")) as inside:
        network.partition(["alice", "carol"], ["bob"], cut=True)
        await both_fail(ends)
        await inside.near.send_all(b"x")
        assert await inside.far.receive_some(1) == b"x"


async def test_nobody_dials_across_a_partition(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with serving(between(network), echo):
        network.partition(["bob"])
        assert not network.reaches("alice", "bob")
        assert not network.reaches("alice", "carol")
        with pytest.raises(LinkFailed, match="does not answer"):
            await network.node("alice").dial("bob")
        network.heal()
        await (await network.node("alice").dial("bob")).aclose()


# -------------------------------------------------------------------------------------------------------------- names


async def test_who_does_not_listen_does_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(LinkFailed, match="'bob' does not answer"):
        await Network(1).node("alice").dial("bob")


async def test_a_name_is_listened_at_once(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1)
    async with serving(between(network), echo):
        with pytest.raises(UsageError, match="listens as 'bob' already"):
            await network.node("bob").serve(echo)
    async with serving(between(network), echo):
        pass


async def test_a_link_that_nobody_took_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1, CALM)
    async with serving(between(network), echo):
        links = [network._connect(network.node("alice"), "bob") for _ in range(2)]
    assert await ended(lambda: links[0].receive_some(1))  # the listener's task had it already
    with pytest.raises(LinkFailed, match="was cut by a listener that stopped"):
        await links[1].receive_some(1)


async def test_too_many_links_at_one_moment_are_turned_away(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(1, CALM)
    async with serving(between(network), echo):
        for _ in range(65):  # the listener's task holds one already
            network._connect(network.node("alice"), "bob")
        with pytest.raises(LinkFailed, match="takes no more"):
            network._connect(network.node("alice"), "bob")
