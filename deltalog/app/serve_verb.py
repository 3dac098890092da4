"""`deltalog serve`: a data directory with its API, metrics, page and peers, until it is told to end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from audit.opening import TrailOptions
from audit.retention import AuditRetention
from deltalog.app.node import Node, open_node
from deltalog.app.opening import startup_lines
from deltalog.app.options import data_options, json_option, own_source
from deltalog.app.peer_options import PeerOptions, peer_options, trust_options
from deltalog.app.process import DEBUG_VARIABLE, Interrupted, run
from deltalog.app.terminal import Meter, note, print_json, shown
from deltalog.errors import DeltaLogError, UsageError
from deltalog.manager import Problem
from deltalog.nursery import open_nursery

TOKEN_VARIABLE: Final = "DELTALOG_TOKEN"  # noqa: S105  # its name
TOKEN_CHARS_MIN: Final = 16
_TOKEN_BYTES: Final = 4096
_DAYS_MAX: Final = 36_500
_DAY_S: Final = 86_400
_NEEDED: Final = ("litestar", "hypercorn", "prometheus_client")


class ApiMissing(DeltaLogError):
    """Raised when the extra that brings the server is not installed."""


@click.command
@data_options
@own_source
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8760, show_default=True, help="0: any free one.")
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"A bearer token on each line, any of which may read; or set {TOKEN_VARIABLE} to one. "
    "Needed unless only this machine can reach HOST.",
)
@click.option("--tls-cert", metavar="FILE", help="PEM certificate.")
@click.option("--tls-key", metavar="FILE", help="PEM key.")
@click.option(
    "--trail-days",
    type=click.FloatRange(0, _DAYS_MAX, min_open=True),
    metavar="DAYS",
    help="Drop audit events that are older, every ten minutes.  [default: keep all]",
)
@click.option(
    "--trail-bytes",
    type=click.IntRange(1),
    metavar="N",
    help="Drop the oldest audit events beyond so many bytes.  [default: keep all]",
)
@click.option("--plain", is_flag=True, help="No TLS on an address others can reach: something in front encrypts.")
@click.option("--listen", metavar="HOST:PORT", help="Let peers connect here, and sync with them; port 0: any free one.")
@click.option(
    "--peer",
    "addresses",
    metavar="ADDRESS",
    multiple=True,
    help="Connect to the node that listens there, and stay connected; may be given several times.",
)
@click.option("--libp2p-listen", metavar="MULTIADDR", help="Let peers connect over libp2p, too.")
@click.option(
    "--discover",
    is_flag=True,
    help="Announce where --libp2p-listen is on the local network, and connect to the pinned nodes that do.",
)
@trust_options
@json_option
def serve(
    data: Path, accept_loss: bool, adopt: bool, source: str | None, token_file: str | None, as_json: bool, **where: Any
) -> int:
    """Serve the API, metrics and the timeline of a data directory, until SIGINT or SIGTERM.

    With --listen, --peer or --libp2p-listen it is also synced with other nodes. What the API serves only reads. Ended
    by a signal, it finishes the answers it is giving, closes the directory and exits with 0.
    """
    check_installed()
    from deltalog.app import http  # noqa: PLC0415  # may be missing
    from deltalog.app.http_guard import token_hash  # noqa: PLC0415

    hashes = tuple(token_hash(token) for token in _tokens(token_file))
    options = http.ServeOptions(
        host=where["host"],
        port=where["port"],
        token_hashes=hashes,
        certificate=where["tls_cert"],
        key=where["tls_key"],
        plain=where["plain"],
    )
    http.ssl_context(options)
    trail = _kept(where["trail_days"], where["trail_bytes"])
    peering = _peering(where)

    async def verb() -> None:
        async with AsyncExitStack() as stack:
            with Meter(f"opening {data.name}", silent=as_json) as meter:
                opening = open_node(
                    data,
                    source=source,
                    accept_loss=accept_loss,
                    adopt=adopt,
                    trail=trail,
                    peering=peering,
                    progress=lambda stage, done, total: meter.update(done, total, stage),
                    on_problem=_tell_problem,
                )
                node = await stack.enter_async_context(opening)
            for line in startup_lines(node.manager.startup):
                note(line)
            nursery = await stack.enter_async_context(open_nursery())
            url = await nursery.start(partial(http.serve, node, options, on_fault=_tell_fault))
            _print_ready(node, url, data, as_json)

    return _until_told(verb)


def _peering(said: dict[str, Any]) -> PeerOptions | None:
    """Whom to sync with; None: nobody was asked for."""
    listen, addresses, libp2p = said["listen"], said["addresses"], said["libp2p_listen"]
    options = peer_options(said, listen=listen, peers=addresses, libp2p_listen=libp2p, discover=said["discover"])
    if listen is not None or addresses or libp2p is not None or options.discover:
        return options
    if options != PeerOptions():
        raise click.UsageError("options for peers go with --listen, --peer or --libp2p-listen")
    return None


def _kept(days: float | None, size_bytes: int | None) -> TrailOptions:
    """What the trail keeps."""
    if days is None and size_bytes is None:
        return TrailOptions()
    age_s = days * _DAY_S if days is not None else None
    return TrailOptions(retention=AuditRetention(age_s=age_s, size_bytes=size_bytes))


def _until_told(verb: Callable[[], Awaitable[None]]) -> int:
    """A signal is how a server is meant to end."""
    try:
        return run(verb)
    except Interrupted as error:
        note(f"{error}; closed in order")
        return 0


def check_installed() -> None:
    """Raise `ApiMissing` unless the server's libraries are there."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ApiMissing(f"the server needs {', '.join(missing)}; install it with: pip install 'deltalog[api]'")


def _tokens(file: str | None) -> list[str]:
    """Tokens of the file and of the environment. Raises UsageError for one that is easily guessed."""
    tokens = [os.environ[TOKEN_VARIABLE]] if os.environ.get(TOKEN_VARIABLE) else []
    if file is not None:
        tokens += _read_tokens(file)
    for token in tokens:
        if len(token) < TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"a token takes at least {TOKEN_CHARS_MIN} printable ASCII characters without spaces")
    return tokens


def _read_tokens(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            text = stream.read(_TOKEN_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"--token-file: cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise UsageError(f"--token-file: {file} holds no token")
    return tokens


def _print_ready(node: Node, url: str, data: Path, as_json: bool) -> None:
    listening = [] if node.peers is None else list(node.peers.listening)
    if as_json:
        print_json({"url": url, "pid": os.getpid(), "listening": listening})
    else:
        print(f"{shown(str(data))} at {url} (API: {url}/api/openapi.json; end with Ctrl-C)")
        for address in listening:
            print(f"peers connect to {address}")
    sys.stdout.flush()


def _tell_problem(problem: Problem) -> None:
    note(f"{problem.what}{f' of {problem.member}' if problem.member else ''}: {problem.message}")


def _tell_fault(error: BaseException) -> None:
    """Faults of the server itself: the client was told nothing of them."""
    note(f"a request failed: {type(error).__name__}: {error}")
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
