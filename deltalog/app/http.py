"""The one HTTP server of a node: trail, locks, peers, sources, health, metrics, the OpenAPI document, and the page.

Lives here: how the parts are put together and how the server begins and ends. Does not know: what a route answers.

It ends when it is cancelled: accepts no more, ends the streams, lets running answers finish for `grace_s`, and cuts
what is left.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any, Final

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from litestar import Litestar, MediaType, Request, Response, get
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Reference, SecurityScheme

import deltalog
from audit.api import Sources, routes, say
from audit.api_query import without_null
from deltalog.app.connections import Connections
from deltalog.app.http_guard import Application, HttpGuard, RequestLimits
from deltalog.app.metrics import CONTENT_TYPE, Metrics
from deltalog.app.node import Node
from deltalog.app.peer_api import peer_routes
from deltalog.errors import UsageError
from deltalog.nursery import open_nursery

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_GRACE_S: Final = 3.0
_INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@attrs.frozen(kw_only=True)
class ServeOptions:
    """Where to listen and what to allow."""

    host: str = "127.0.0.1"
    port: int = 8760
    """0: any free one."""
    token_hashes: tuple[bytes, ...] = ()
    """SHA-256 of each bearer token that may read; none: everybody on this machine. See `http_guard.token_hash`."""
    certificate: str | None = None
    """PEM files for TLS."""
    key: str | None = None
    plain: bool = False
    """Let tokens cross the network unencrypted: something else in front of the server encrypts."""
    limits: RequestLimits = attrs.field(factory=RequestLimits)
    connections: int = 256
    """At a time."""
    live_tails: int = 64
    """At a time."""
    idle_s: float = 5.0
    """A connection without a whole request for so long is closed."""
    write_s: float = 30.0
    """A client that takes nothing for so long is cut off."""
    grace_s: float = _GRACE_S
    """How long running answers may take when the server ends."""

    def __attrs_post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS takes both a certificate and a key")
        if self.host in LOOPBACK:
            return
        if not self.token_hashes:
            raise UsageError(f"host {self.host!r} can be reached from elsewhere: that takes a token")
        if self.certificate is None and not self.plain:
            raise UsageError(
                f"host {self.host!r} can be reached from elsewhere: that takes a certificate and a key, so that the "
                "token is not sent in the clear (or say plain, if something in front of the server encrypts)"
            )


# ------------------------------------------------------------------------------------------------------- application


def application(
    node: Node, options: ServeOptions, *, closing: trio.Event, on_fault: Callable[[BaseException], None]
) -> Application:
    """The ASGI application of a node."""
    slots = trio.CapacityLimiter(options.live_tails)
    sources = Sources(reader=node.trail.reader, locks=node.locks, closing=closing, live_slots=slots, on_fault=on_fault)
    metrics = Metrics(node, lambda: slots.borrowed_tokens)
    served = State({"sources": sources, "node": node, "metrics": metrics})
    app = Litestar(
        route_handlers=[routes(sources), peer_routes(node), page, health, scrape],
        state=served,
        exception_handlers={Exception: say},
        openapi_config=_openapi(bool(options.token_hashes)),
        logging_config=None,
        debug=False,
        request_max_body_size=0,
        on_app_init=[_quiet],
    )
    without_null(app.openapi_schema)
    guarded: Any = app
    return HttpGuard(
        guarded, token_hashes=options.token_hashes, limits=options.limits, seen=metrics.count_request, on_fault=on_fault
    )


def _quiet(config: AppConfig) -> AppConfig:
    """No logging of its own: faults go to `on_fault`."""
    config.logging_config = None
    return config


def _openapi(secured: bool) -> OpenAPIConfig:
    schemes: dict[str, SecurityScheme | Reference] = {
        "token": SecurityScheme(type="http", scheme="bearer", description="Gives leave to read.")
    }
    return OpenAPIConfig(
        title="deltalog",
        version=deltalog.__version__,
        description="A node's audit trail, locks, peers and sources, and its state. Everything here only reads.",
        path="/api",
        render_plugins=[JsonRenderPlugin(path="/openapi.json", media_type=MediaType.JSON)],
        components=Components(security_schemes=schemes) if secured else Components(),
        security=[{"token": []}] if secured else None,
    )


@get("/health", summary="Whether the node is well", tags=["node"], sync_to_thread=False, security=[])
def health(state: State, request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """200 and `ok`, or 503 and `degraded`. With a token, `problems` say why."""
    problems = state.node.problems()
    body: dict[str, Any] = {"status": "degraded" if problems else "ok"}
    if request.scope["state"].get("known"):
        body["problems"] = problems
    return Response(body, status_code=503 if problems else 200, headers={"cache-control": "no-store"})


@get("/metrics", summary="Prometheus metrics", media_type="text/plain", tags=["node"], sync_to_thread=False)
def scrape(state: State) -> Response[bytes]:
    """The text format of Prometheus."""
    body: bytes = state.metrics.exposition()
    return Response(body, media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})


@get("/", include_in_schema=False, sync_to_thread=False)
def page() -> Response[bytes]:
    """The timeline. It holds no data: it asks the API for it."""
    body, policy = _page()
    headers = {"content-security-policy": policy, "cache-control": "no-cache", "x-frame-options": "DENY"}
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)


def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets it run its own script and style and reach its own server only."""
    body = files("audit").joinpath("page/index.html").read_bytes()
    allowed = {"script": "'none'", "style": "'none'"}
    for kind, text in _INLINE.findall(body):
        allowed[kind.decode()] = f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return body, policy


# ------------------------------------------------------------------------------------------------------------ server


async def serve(
    node: Node,
    options: ServeOptions,
    *,
    on_fault: Callable[[BaseException], None] = lambda _: None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `started` gives the URL. On return no connection is left.

    on_fault: called with errors that no route expected. Raises OSError where it cannot listen.
    """
    closing = trio.Event()
    app = application(node, options, closing=closing, on_fault=on_fault)
    config = _config(options)
    context = ssl_context(options)
    sockets = await trio.open_tcp_listeners(options.port, host=options.host)
    slots = trio.Semaphore(options.connections)
    listeners = [Connections(each, options.write_s, slots) for each in sockets]
    async with open_nursery() as nursery:
        nursery.start_soon(_set_when_cancelled, closing)
        with trio.CancelScope(shield=True):
            await _run(
                app,
                config,
                listeners,
                context,
                options.grace_s,
                closing,
                partial(task_status.started, _url(options, sockets)),
            )
        nursery.cancel_scope.cancel()


async def _set_when_cancelled(closing: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        closing.set()


async def _run(
    app: Application,
    config: Config,
    listeners: list[Connections],
    tls: ssl.SSLContext | None,
    grace_s: float,
    closing: trio.Event,
    started: Callable[[], None],
) -> None:
    """Accept until `closing`; return when the last connection has ended."""
    worker = WorkerContext(None)
    wrapped: Any = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]  # any ASGI callable does
    handler = partial(TCPServer, wrapped, config, worker, ConnectionState({}))
    outer = [_secured(each, tls) for each in listeners]
    async with open_nursery() as connections:
        async with open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, handler, outer, handler_nursery=connections))
            started()
            await closing.wait()
            accepting.cancel_scope.cancel()
        await worker.terminated.set()  # idle connections end at once
        with trio.move_on_after(grace_s):
            for each in listeners:
                await each.empty()
        for each in listeners:
            each.cut_all()  # a write that Hypercorn shields ends only with its connection
        connections.cancel_scope.cancel()


def _secured(listener: Connections, tls: ssl.SSLContext | None) -> trio.abc.Listener[Any]:
    return listener if tls is None else trio.SSLListener(listener, tls, https_compatible=True)


def _config(options: ServeOptions) -> Config:
    config = Config()
    config.accesslog = config.errorlog = None
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    config.keep_alive_timeout = options.idle_s
    config.ssl_handshake_timeout = options.idle_s
    return config


def ssl_context(options: ServeOptions) -> ssl.SSLContext | None:
    """TLS as the options say. Raises UsageError for files that cannot be read."""
    if options.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use certificate {options.certificate} and key {options.key}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _url(options: ServeOptions, sockets: list[trio.SocketListener]) -> str:
    host, port = sockets[0].socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if options.certificate is None else 'https'}://{shown}:{port}"
