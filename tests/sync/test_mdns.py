"""mDNS on loopback: who announces is heard, garbage and floods change nothing, and closing leaves nothing behind."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf

from sync import mdns
from sync.errors import LinkFailed
from sync.mdns import SERVICE, TEXT_BYTES_MAX, WAITING_MAX, addresses_in, open_mdns, text_of
from sync.multiaddrs import peer_id

HANG_S = 60
ID = peer_id(os.urandom(32))
"""Of this run: others on the machine may run the same tests."""
REGISTER = Zeroconf.register_service
multicast = pytest.mark.system("multicast")


def address(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{ID}"


@attrs.define
class Ears:
    """What was heard, by the name of the announcement."""

    heard: dict[str, list[str]] = attrs.field(factory=dict)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def hear(self, name: str, addresses: Sequence[str]) -> None:
        self.heard[name] = list(addresses)
        self._changed.set()

    @property
    def addresses(self) -> list[str]:
        return [each for addresses in self.heard.values() for each in addresses]

    async def wait(self, wanted: str, *, there: bool = True) -> None:
        """Return when an address is announced, or not any more."""
        while (wanted in self.addresses) != there:
            await self._changed.wait()
            self._changed = trio.Event()


@asynccontextmanager
async def announcing(*ports: int) -> AsyncIterator[Ears]:
    ears = Ears()
    with trio.fail_after(HANG_S):
        async with open_mdns([address(port) for port in ports], ears.hear):
            yield ears


@contextmanager
def others(*texts: tuple[str, bytes]) -> Iterator[None]:
    """Whoever announces these TXT records, under these names."""
    with Zeroconf(interfaces=["127.0.0.1"]) as other:
        for name, text in texts:
            service = ServiceInfo(SERVICE, f"{name}.{SERVICE}", port=1, properties=text, server=f"{name}.local.")
            REGISTER(other, service, cooperating_responders=True, strict=False)
        yield


@asynccontextmanager
async def announced_by_others(*texts: tuple[str, bytes]) -> AsyncIterator[None]:
    """The same from a worker thread: it blocks."""
    stranger = others(*texts)
    await trio.to_thread.run_sync(stranger.__enter__)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stranger.__exit__, None, None, None)


def response(label: bytes, text: bytes) -> bytes:
    """An answer as bytes: PTR and TXT of any label."""
    service = b"\x04_p2p\x04_udp\x05local\x00"
    name = bytes([len(label)]) + label + service
    records = [(service, 12, name), (name, 16, text)]
    packed = [owner + struct.pack(">HHIH", kind, 1, 120, len(data)) + data for owner, kind, data in records]
    return struct.pack(">6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(packed)


def shout(*packets: bytes) -> None:
    """Send to everybody on loopback."""
    with socket.socket(type=socket.SOCK_DGRAM) as mouth:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            mouth.setsockopt(socket.SOL_SOCKET, option, 1)
        mouth.bind(("", 5353))
        mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for packet in packets:
            mouth.sendto(packet, ("224.0.0.251", 5353))


def zeroconf_threads() -> list[str]:
    """A browser's thread has this name, the loop's none of its own."""
    return [thread.name for thread in threading.enumerate() if "zeroconf" in thread.name or "_run_loop" in thread.name]


# ------------------------------------------------------------------------------------------------------- on the network


@multicast
async def test_two_hear_each_other_and_that_one_left() -> None:
    async with announcing(7001, 7011) as alice:
        async with announcing(7002) as bob:
            for port in (7001, 7011, 7002):
                await alice.wait(address(port))
                await bob.wait(address(port))
        await alice.wait(address(7002), there=False)
        assert {address(7001), address(7011)} <= set(alice.addresses)


@multicast
async def test_another_implementation_is_heard_and_hears() -> None:
    """Several strings in one record, other attributes beside them, as the specification allows."""
    text = b"".join(bytes([len(each)]) + each for each in (b"id=x", b"DNSADDR=" + address(7003).encode(), b"flag"))
    async with announcing(7001) as ears, announced_by_others(("other", text)):
        await ears.wait(address(7003))
        (name,) = [name for name, addresses in ears.heard.items() if address(7001) in addresses]
        with Zeroconf(interfaces=["127.0.0.1"]) as other:
            info = await trio.to_thread.run_sync(other.get_service_info, SERVICE, name)
    assert info is not None
    assert (info.properties, info.port) == ({b"dnsaddr": address(7001).encode()}, 7001)
    assert info.parsed_addresses() == ["127.0.0.1"]
    label = name.removesuffix(f".{SERVICE}")
    assert (len(label), label.isalnum(), info.server) == (32, True, f"{label}.p2p.local.")


@multicast
async def test_garbage_is_passed_over() -> None:
    """What comes last is heard, so what came before was read."""
    good, too_long = text_of([address(7004)]), text_of([address(7006)]) + b"\xff" * TEXT_BYTES_MAX
    texts = [
        b"",
        b"\x03abc\x00\x01=\x08dnsaddr=",
        b"\x0cdnsaddr=\xff\xfe\xfd\xfc",
        b"\xffdnsaddr=" + b"x" * 9,
        too_long,
    ]
    packets = [response(b"garbage%d" % number, text) for number, text in enumerate(texts)]
    packets += [response(label, good) for label in (b"", b"\x00\x1b[2J", b"a.b.", b"\xff" * 63, "\N{SNOWMAN}".encode())]
    packets += [response(b"cut", good)[:-length] for length in range(1, 100, 7)]
    packets += [bytes(length) for length in (0, 1, 11, 12, 9000)] + [b"\xff" * 100]
    async with announcing(7001) as ears:
        await ears.wait(address(7001))
        shout(*packets)
        async with announced_by_others(("good", text_of([address(7007)]))):
            await ears.wait(address(7007))
            ours = {each for each in ears.addresses if ID in each or "/" not in each}
            assert ours <= {address(7001), address(7004), address(7007), "x" * 9}


@multicast
async def test_who_comes_later_asks_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks again: what was forgotten meanwhile is heard anew."""
    monkeypatch.setattr(mdns, "ASK_AGAIN_S", 0.05)
    async with announcing(7001) as alice:
        await alice.wait(address(7001))
        for _ in range(3):
            alice.heard.clear()
            await alice.wait(address(7001))


@multicast
@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 100])
async def test_closed_or_cancelled_while_it_searches_nothing_is_left(turns: int) -> None:
    async def search() -> None:
        async with announcing(7001):
            await trio.sleep_forever()

    before = zeroconf_threads()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(search)
        for _ in range(turns):
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert zeroconf_threads() == before


@multicast
async def test_closing_does_not_stall_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """zeroconf closes when another task has run: that task would otherwise wait for ever."""
    closing, go, close = threading.Event(), threading.Event(), Zeroconf.close

    def close_late(self: Zeroconf) -> None:
        closing.set()
        assert go.wait(HANG_S)
        close(self)

    monkeypatch.setattr(Zeroconf, "close", close_late)

    async def let_go() -> None:
        await trio.to_thread.run_sync(closing.wait, HANG_S)
        go.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_go)
        async with announcing(7001):
            pass


async def test_what_the_network_does_not_allow_is_a_failed_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LinkFailed, match="listens at no address"):
        async with open_mdns([], Ears().hear):
            raise AssertionError("it is not open")

    def refuse(**_: object) -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr(mdns, "Zeroconf", refuse)
    with pytest.raises(LinkFailed, match=r"mDNS on 127.0.0.1: no multicast here"):
        async with open_mdns([address(1)], Ears().hear):
            raise AssertionError("it is not open")


@multicast
async def test_a_node_that_cannot_be_announced_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told, problem = trio.Event(), list[str]()

    def refuse(*_: object, **__: object) -> None:
        raise OSError("unplugged")

    def tell(text: str) -> None:
        problem.append(text)
        told.set()

    monkeypatch.setattr(Zeroconf, "register_service", refuse)
    ears = Ears()
    with trio.fail_after(HANG_S):
        async with open_mdns([address(1)], ears.hear, tell), announced_by_others(("x", text_of([address(7004)]))):
            await told.wait()
            await ears.wait(address(7004))
    assert problem == ["this node is not announced by mDNS: OSError('unplugged')"]


# ------------------------------------------------------------------------------------------------ texts of any content


@attrs.frozen
class Cache:
    """As much of zeroconf as is looked at: one text under every name."""

    text: bytes

    @property
    def cache(self) -> Cache:
        return self

    def entries_with_name(self, _: str) -> list[Cache]:
        return [self]


def say(news: mdns._News, text: bytes, names: Sequence[str], change: ServiceStateChange) -> None:
    for name in names:
        news.changed(Cache(text), SERVICE, name, change)  # type: ignore[arg-type]


async def test_a_flood_leaves_so_many_announcements_and_no_longer_text() -> None:
    news, ears = mdns._News(trio.lowlevel.current_trio_token()), Ears()
    names = [str(number) for number in range(10 * WAITING_MAX)]

    async def say_later(text: bytes, names: Sequence[str], change: ServiceStateChange) -> None:
        await trio.to_thread.run_sync(say, news, text, names, change)

    await say_later(text_of([address(1)]) + b"\xff" * TEXT_BYTES_MAX, names, ServiceStateChange.Added)
    await say_later(text_of([address(2)]), names, ServiceStateChange.Added)
    await say_later(text_of([address(3)]), names, ServiceStateChange.Updated)
    await say_later(text_of([address(3)]), [names[0], names[-1]], ServiceStateChange.Removed)
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(news.tell, ears.hear)
            await ears.wait(address(3))
            await wait_all_tasks_blocked()
            assert {name for name, addresses in ears.heard.items() if addresses} == set(names[1:WAITING_MAX])
            assert {*map(tuple, ears.heard.values())} == {(), (address(3),)}
            assert set(ears.heard) == set(names), "what was withdrawn, or is too long, is never lost"
            await say_later(text_of([address(4)]), names[-1:], ServiceStateChange.Added)
            await ears.wait(address(4))
            nursery.cancel_scope.cancel()


def test_what_comes_after_the_end_is_nobodys() -> None:
    async def main() -> mdns._News:
        await trio.lowlevel.checkpoint()
        return mdns._News(trio.lowlevel.current_trio_token())

    say(trio.run(main), b"", ["late"], ServiceStateChange.Added)


@given(st.binary(max_size=2 * TEXT_BYTES_MAX))
def test_any_record_is_read_to_its_end(text: bytes) -> None:
    assert all(each.isascii() and each.encode() in text for each in addresses_in(text))


def test_as_many_addresses_are_announced_as_are_read() -> None:
    addresses = [address(port) for port in range(10_000, 10_100)]
    text = text_of(["/ip4/192.0.2.7/" + "x" * 300, *addresses])
    assert TEXT_BYTES_MAX - 128 < len(text) <= TEXT_BYTES_MAX
    assert list(addresses_in(text)) == addresses[: len(list(addresses_in(text)))]
