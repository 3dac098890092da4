"""What stands before every route: who may ask, how much, how often; and headers that every answer carries.

Lives here: the checks that need no route: method, size, Host, bearer token, rate, requests at a time. Does not know:
routes, parameters, the trail. A token gives leave to read, and there is nothing else to give: no route writes.

* A token is kept as its SHA-256; what a client sends is hashed and compared with `hmac.compare_digest`, so neither
  memory nor time tells it.
* Without a token (loopback only) the Host header must name this machine, so that no web page can reach the API through
  a name of its own that it points at 127.0.0.1.
* Rates are counted by client address, wrong tokens too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import attrs
import trio

from audit.problems import MEDIA_TYPE, Refused, refused, to_bytes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENTS_MAX: Final = 4096
"""Client addresses whose rate is remembered; the one that was silent longest is forgotten."""
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_METHODS: Final = ("GET", "HEAD")
PUBLIC: Final = frozenset({"/", "/health"})
"""Paths that need no token: the page, which holds no data, and whether the node is well."""
COMMON_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@attrs.frozen(kw_only=True)
class RequestLimits:
    """What one client may do, and all together."""

    rate_per_s: float = 20.0
    """Requests of one client address, in the long run."""
    burst: int = 100
    """Requests of one client address at once; a page that loads asks for a few."""
    query_bytes: int = 8192
    header_bytes: int = 16_384
    """Names and values."""
    requests_at_once: int = 128
    """Streams count too."""


class HttpGuard:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: Application,
        *,
        token_hashes: Iterable[bytes],
        limits: RequestLimits,
        seen: Callable[[str, int], None],
        on_fault: Callable[[BaseException], None],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._app = app
        self._hashes = tuple(token_hashes)
        self._limits = limits
        self._seen = seen
        self._on_fault = on_fault
        self._buckets = Buckets(limits.rate_per_s, limits.burst, clock)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _completed(list(message["headers"]))
            await send(message)

        try:
            await self._checked(scope, receive, send_on)
        except Refused as error:
            await _refuse(error, send_on)
        except Exception as error:  # the head is out: the connection is cut, and nobody takes it for the end
            self._on_fault(error.__cause__ or error)  # the framework wraps it then
            raise
        finally:
            self._seen(scope.get("path_template") or "", status)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check_form(scope, headers)
        self._buckets.take(str((scope.get("client") or ("?",))[0]))
        self._check_host(headers)
        scope["state"]["known"] = self._check_token(scope["path"], headers)
        if self._running >= self._limits.requests_at_once:
            raise refused(503, f"{self._running} requests run already", {"retry-after": "1"})
        self._running += 1
        try:
            if scope["method"] == "HEAD":
                await _head_only(self._app, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._running -= 1

    def _check_form(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> None:
        if scope["method"] not in _METHODS:
            raise refused(405, "everything here is read only: GET or HEAD", {"allow": ", ".join(_METHODS)})
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            raise refused(413, "a request here has no body", {"connection": "close"})
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._limits.header_bytes:
            raise refused(431, f"the headers are longer than {self._limits.header_bytes:,} bytes")
        if len(scope["query_string"]) > self._limits.query_bytes:
            raise refused(414, f"the query is longer than {self._limits.query_bytes:,} bytes")

    def _check_host(self, headers: MutableMapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not self._hashes and name not in _LOCAL_NAMES:
            raise refused(403, "without a token only this machine may ask, as localhost, 127.0.0.1 or [::1]")

    def _check_token(self, path: str, headers: MutableMapping[bytes, bytes]) -> bool:
        """Whether the client is known. Refuses one that is not, unless the path is public."""
        if not self._hashes:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        fits = [hmac.compare_digest(given, known) for known in self._hashes]
        known = any(fits) and scheme.lower() == b"bearer"
        if not known and path not in PUBLIC:
            raise refused(401, "it takes the header `Authorization: Bearer TOKEN`", {"www-authenticate": "Bearer"})
        return known


class Buckets:
    """A token bucket for each client address."""

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address -> (left, when that was)."""

    def take(self, client: str) -> None:
        """Count one request. Refuses the one that is too many."""
        now = self._clock()
        left, at = self._levels.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * self._rate_per_s)
        enough = left >= 1
        self._levels[client] = (left - 1 if enough else left, now)
        if len(self._levels) > CLIENTS_MAX:
            self._levels.popitem(last=False)
        if not enough:
            wait_s = max(1, round((1 - left) / self._rate_per_s))
            raise refused(429, f"more than {self._rate_per_s:g} requests a second", {"retry-after": str(wait_s)})


def token_hash(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def _completed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With what every answer carries; nothing is cached unless its route says so."""
    cached = any(name.lower() == b"cache-control" for name, _ in headers)
    return [*headers, *COMMON_HEADERS, *([] if cached else [(b"cache-control", b"no-store")])]


async def _head_only(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as GET would, without the body: whatever would come is not even made."""
    with trio.CancelScope() as cancel:

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                cancel.cancel()

        await app({**scope, "method": "GET"}, receive, send_head)


async def _refuse(error: Refused, send: Send) -> None:
    body = to_bytes(error.problem)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "cache-control": "no-store"}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": False})
