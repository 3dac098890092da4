"""Verbs that ask about peers and sources: of a running node (--url), or of a data directory (--data)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from audit.api_values import json_bytes
from audit.query import LIMIT_MAX
from deltalog import data_directory, keys
from deltalog.app.audit_verbs import where_options
from deltalog.app.opening import inspected, opened
from deltalog.app.options import data_of, data_options, json_option
from deltalog.app.peer_views import known_peers, sources_in
from deltalog.app.process import run
from deltalog.app.remote import Remote
from deltalog.app.serve_verb import TOKEN_VARIABLE
from deltalog.app.terminal import Output, print_table, shown
from deltalog.errors import UsageError

_ROWS: Final = 50
_KEY_CHARS: Final = 24
Fields = dict[str, Any]


def _remote(data: Path | None, url: str | None) -> Remote | None:
    """The node to ask, None for the directory. A --url counts more than the environment's directory."""
    if url is not None:
        return Remote(url, os.environ.get(TOKEN_VARIABLE))
    if data is None:
        raise click.UsageError("Missing option '--data' (env var: 'DELTALOG_DATA'), or '--url'")
    return None


async def _in_thread(call: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)


# ---------------------------------------------------------------------------------------------------------------- peers


@click.group(invoke_without_command=True)
@where_options
@json_option
@click.pass_context
def peers(context: click.Context, data: Path | None, url: str | None, as_json: bool) -> int:
    """Print the peers of a running node (--url), or those that a directory knows (--data)."""
    if context.invoked_subcommand is not None:
        return 0
    remote = _remote(data, url)

    async def verb() -> None:
        if remote is not None:
            found: list[Fields] = await _in_thread(remote.get, "/api/peers", {})
        else:
            found = await trio.to_thread.run_sync(_peers_in, data)
        if as_json:
            await Output().lines(map(json_bytes, found))
        else:
            _print_peers(found)

    return run(verb)


def _peers_in(data: Path | None) -> list[Fields]:
    assert data is not None, "it, or a node, was named"
    with inspected(data) as store:
        return [attrs.asdict(peer) for peer in known_peers(store)]


def _print_peers(found: list[Fields]) -> None:
    rows = [
        (
            each["name"] or each["link"],
            each["state"],
            _since(each["since_s"]),
            "?" if each["lag"] is None else f"{each['lag']:,}",
            each["deltas_in"],
            each["deltas_out"],
            each["problem"] or ("equal" if each["equal"] else "") or ("" if each["pins"] else "its lease is over"),
        )
        for each in found
    ]
    print_table(f"{len(rows):,} peers", ("peer", "state", "for", "lag", "deltas in", "out", ""), rows)


def _since(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.0f} s"


@peers.command
@click.argument("name")
@data_options
def forget(name: str, data: Path, accept_loss: bool, adopt: bool) -> int:
    """A peer will not come back: retention waits for it no longer. The node of the directory must not run."""

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt)) as manager:
            stability = manager.log.stability
            if not stability.forget(name):
                known = ", ".join(map(repr, stability.peers[:5])) or "none"
                raise UsageError(f"there is no peer {name!r} here; there are: {known}")
            await manager.log.save_stability()
        print(f"{shown(name)} is forgotten")

    return run(verb)


# -------------------------------------------------------------------------------------------------------------- sources


@click.command
@where_options
@json_option
def sources(data: Path | None, url: str | None, as_json: bool) -> int:
    """Print every source: head, floor, deltas, bytes, whose key signs it, and what is quarantined and why."""
    remote = _remote(data, url)

    async def verb() -> None:
        if remote is not None:
            found: list[Fields] = await _in_thread(lambda: list(_remote_sources(remote)))
        else:
            found = await trio.to_thread.run_sync(_sources_in, data)
        if as_json:
            await Output().lines(map(json_bytes, found))
        else:
            _print_sources(found)

    return run(verb)


def _remote_sources(remote: Remote) -> Iterator[Fields]:
    after: str | None = ""
    while after is not None:
        page = remote.get("/api/sources", {"after": after, "limit": LIMIT_MAX})
        yield from page["sources"]
        after = page["after"]


def _sources_in(data: Path | None) -> list[Fields]:
    assert data is not None, "it, or a node, was named"
    with inspected(data) as store:
        own = (store.meta(keys.META_INCARNATIONS) or [data_directory.identify(data, None).source])[-1]
        return [attrs.asdict(source) for source in sources_in(store, own)]


def _print_sources(found: list[Fields]) -> None:
    rows = [
        (
            each["source"],
            each["head"],
            each["floor"],
            each["deltas"],
            "?" if each["size_bytes"] is None else f"{each['size_bytes']:,}",
            "unsigned" if each["owner"] is None else f"{each['owner'][:_KEY_CHARS]}...",
            "own" if each["own"] else "",
        )
        for each in found[:_ROWS]
    ]
    notes = [f"quarantined: {each['source']}: {each['quarantined']}" for each in found if each["quarantined"]]
    if len(found) > _ROWS:
        notes.append(f"and {len(found) - _ROWS:,} more sources; --json has them all")
    columns = ("source", "head", "floor", "deltas", "bytes", "signed by", "")
    print_table(f"{len(found):,} sources", columns, rows, [shown(text) for text in notes])
