"""mDNS: tells the local network where this node listens, and hears where others do. Runs on the library `zeroconf`.

The format is that of libp2p's specification (discovery/mdns, r2):

    _p2p._udp.local.         PTR  NAME._p2p._udp.local.     NAME: 32 random letters and digits, new at each start
    NAME._p2p._udp.local.    TXT  "dnsaddr=/ip4/192.0.2.7/tcp/7000/p2p/12D3KooW..."   one string an address
                             SRV  port, NAME.p2p.local.     with its A and AAAA records; for tools, not read here

zeroconf runs in threads of its own, and they only leave texts: so many names, so many bytes each; the rest is lost
until the next round of questions. What was left is read in the trio thread, and calls of zeroconf that block run in
workers. Anybody on the network can announce anything: whoever hears must not believe it. Does not know: keys, dialling.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Lock
from typing import Final

import trio

from deltalog.nursery import open_nursery
from sync.errors import LinkFailed
from sync.loggers import logging_left_alone

with logging_left_alone("zeroconf"):
    import zeroconf
    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

SERVICE: Final = "_p2p._udp.local."
TEXT_BYTES_MAX: Final = 1024
"""Of one announcement; a longer one is not read. About nine addresses."""
WAITING_MAX: Final = 64
"""Announcements that wait for the trio thread."""
ASK_AGAIN_S: Final = 300.0
"""How often everybody is asked anew: for what was lost, and for a network that was cut for a while."""

_NAME_CHARS: Final = 32
_KEY: Final = b"dnsaddr"
_STRING_BYTES_MAX: Final = 255

Hear = Callable[[str, Sequence[str]], None]
"""Gets the name of an announcement and the addresses that it holds now; none: it was withdrawn."""


def _ignore(_: object) -> None:
    """Nobody asked."""


@asynccontextmanager
async def open_mdns(
    addresses: Sequence[str], hear: Hear, on_problem: Callable[[str], None] = _ignore
) -> AsyncIterator[None]:
    """Announce multiaddrs, and hear what is announced, this node's own too, while the block runs.

    Both on the interfaces that have these addresses, and on no other. Leaving withdraws the announcement, cancelled or
    not. Raises `LinkFailed` if there is no network for it.
    """
    if not addresses:
        raise LinkFailed("there is nothing to announce by mDNS: this node listens at no address of a network")
    hosts = list(dict.fromkeys(_host(address) for address in addresses))
    news = _News(trio.lowlevel.current_trio_token())
    opened = await _open(hosts)
    try:
        async with open_nursery() as nursery:
            nursery.start_soon(_announce, opened, _service(addresses, hosts), on_problem)
            nursery.start_soon(_ask, opened, news)
            nursery.start_soon(news.tell, hear)
            yield
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True), suppress(zeroconf.Error, OSError):
            await trio.to_thread.run_sync(opened.close)


async def _open(hosts: list[str]) -> Zeroconf:
    try:
        return await trio.to_thread.run_sync(partial(Zeroconf, interfaces=hosts, use_asyncio=False))
    except (OSError, RuntimeError, zeroconf.Error) as error:
        raise LinkFailed(f"cannot announce and find nodes by mDNS on {', '.join(hosts)}: {error}") from error


async def _announce(opened: Zeroconf, service: ServiceInfo, on_problem: Callable[[str], None]) -> None:
    """The name is random, so nobody is asked for it first."""
    try:
        await trio.to_thread.run_sync(partial(opened.register_service, service, cooperating_responders=True))
    except (OSError, zeroconf.Error) as error:
        on_problem(f"this node is not announced by mDNS: {error!r}")


async def _ask(opened: Zeroconf, news: _News) -> None:
    """Ask who is there, at intervals, for ever. A new browser tells again of everything that is known."""
    while True:
        browser = await trio.to_thread.run_sync(partial(ServiceBrowser, opened, SERVICE, handlers=[news.changed]))
        try:
            await trio.sleep(ASK_AGAIN_S)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(browser.cancel)


class _News:
    """What zeroconf's threads have left, and the trio thread has not read yet."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._left = trio.Event()
        """Belongs to the trio thread."""
        self._lock = Lock()
        self._waiting: dict[str, bytes] = {}
        """Name -> TXT record; under the lock, as the next."""
        self._gone: set[str] = set()
        """Names that hold nothing any more, or not before what waits: never lost, or the addresses would stay for ever.
        zeroconf keeps 10,000 records at most, and tells of each once.
        """

    def changed(
        self,
        zeroconf: Zeroconf,
        service_type: str,  # noqa: ARG002  # zeroconf gives it by name
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        """An announcement came, changed or went. Called in a thread of zeroconf's, which an exception would end."""
        text = b"" if state_change is ServiceStateChange.Removed else _text(zeroconf, name)
        with self._lock:
            if not 0 < len(text) <= TEXT_BYTES_MAX:
                self._waiting.pop(name, None)
                self._gone.add(name)
            elif name in self._waiting or len(self._waiting) < WAITING_MAX:
                self._waiting[name] = text
            else:
                return
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._left.set()

    async def tell(self, hear: Hear) -> None:
        """Read what was left, for ever."""
        while True:
            await self._left.wait()
            self._left = trio.Event()
            with self._lock:
                waiting, self._waiting = self._waiting, {}
                gone, self._gone = self._gone, set()
            for name in (*gone, *waiting):
                await trio.lowlevel.checkpoint()
                hear(name, list(addresses_in(waiting.get(name, b""))))


def _text(opened: Zeroconf, name: str) -> bytes:
    """The TXT records under a name; no other kind of record has a text."""
    return b"".join(getattr(each, "text", b"") for each in opened.cache.entries_with_name(name))


# ------------------------------------------------------------------------------------------------------- TXT records


def addresses_in(text: bytes) -> Iterator[str]:
    """The `dnsaddr` strings of a TXT record, whatever else it holds."""
    while text:
        entry, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        key, _, value = entry.partition(b"=")
        if key.lower() == _KEY and value and value.isascii():
            yield value.decode("ascii")


def text_of(addresses: Sequence[str]) -> bytes:
    """A TXT record with these addresses, as many as others read."""
    text = b""
    for address in addresses:
        entry = _KEY + b"=" + address.encode("ascii")
        if len(entry) <= _STRING_BYTES_MAX and len(text) + 1 + len(entry) <= TEXT_BYTES_MAX:
            text += bytes([len(entry)]) + entry
    return text


def _service(addresses: Sequence[str], hosts: list[str]) -> ServiceInfo:
    name = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(_NAME_CHARS))
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=int(addresses[0].split("/")[4]),
        properties=text_of(addresses),
        server=f"{name}.p2p.local.",
        parsed_addresses=hosts,
    )


def _host(address: str) -> str:
    """The IP address in `/ip4/HOST/tcp/...`."""
    return address.split("/")[2]
