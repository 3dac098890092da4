"""`deltalog sync PEER`: open a data directory, exchange everything with one node, close it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from deltalog.app.catch_up import Difference, Outcome, catch_up
from deltalog.app.opening import opened
from deltalog.app.options import NumberRange, data_of, data_options, json_option, own_source
from deltalog.app.peer_options import check_sync_installed, peer_options, trust_options
from deltalog.app.process import FAILED, run
from deltalog.app.terminal import Meter, note, print_json, shown
from deltalog.log import LogOptions
from sync.errors import LinkFailed
from sync.options import SyncOptions

_TIMEOUT_S_MAX: Final = 7 * 86_400
_NAMED: Final = 5
_ONCE: Final = SyncOptions(heartbeat_s=1.0)
"""Digests are told more often than usual: somebody waits for them to be equal."""


@click.command
@click.argument("peer", metavar="PEER")
@data_options
@own_source
@trust_options
@click.option(
    "--timeout",
    "timeout_s",
    type=NumberRange(0, _TIMEOUT_S_MAX, min_open=True),
    metavar="SECONDS",
    help="Give up then; what was exchanged stays.  [default: none]",
)
@json_option
def sync(
    peer: str,
    data: Path,
    accept_loss: bool,
    adopt: bool,
    source: str | None,
    timeout_s: float | None,
    as_json: bool,
    **said: Any,
) -> int:
    """Exchange with the node that listens at PEER (HOST:PORT) what either lacks, once.

    Exit code 0 if both hold the same in the end; 1 if not, and then it says of which sources. Run again, it goes on
    where it stopped.
    """
    check_sync_installed()
    from deltalog.app.peering import open_peers, prepare  # noqa: PLC0415  # may be missing

    options = peer_options(said, peers=(peer,), sync=_ONCE)
    parts = prepare(data, options, note)

    async def verb() -> int:
        started = time.perf_counter()
        async with AsyncExitStack() as stack:
            opening = opened(
                data_of(data, accept_loss, adopt, as_json), create=True, source=source, options=LogOptions()
            )
            log = (await stack.enter_async_context(opening)).log
            peers = await stack.enter_async_context(open_peers(log, data, parts, hold=False, on_problem=note))
            with Meter(f"syncing with {peer}", silent=as_json) as meter, trio.move_on_after(timeout_s or float("inf")):
                outcome = await catch_up(peers.mesh, peers.dialer, peer, partial(_show, meter))
                (_print_json if as_json else _print)(outcome, time.perf_counter() - started)
                return 0 if outcome.ok else FAILED
        raise LinkFailed(f"{peer}: not done within {timeout_s:g} s; run it again to go on where it stopped")

    return run(verb)


def _show(meter: Meter, done: int, total: int, told: str) -> None:
    meter.update(done, total or None, told)


def _print_json(outcome: Outcome, elapsed_s: float) -> None:
    traffic = outcome.traffic
    print_json(
        {
            "peer": outcome.node,
            "equal": outcome.equal,
            "digest": outcome.digest,
            "deltas_in": traffic.deltas_in,
            "deltas_known": traffic.deltas_known,
            "deltas_out": traffic.deltas_out,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "elapsed_s": round(elapsed_s, 3),
            "differences": [
                {"source": each.source, "here": each.here, "there": each.there} for each in outcome.differences
            ],
            "problem": outcome.problem,
        }
    )


def _print(outcome: Outcome, elapsed_s: float) -> None:
    traffic, name = outcome.traffic, shown(outcome.node)
    print(
        f"{name}: {traffic.deltas_in:,} deltas in ({traffic.bytes_in:,} bytes), "
        f"{traffic.deltas_out:,} out ({traffic.bytes_out:,} bytes), {elapsed_s:.1f} s"
    )
    if outcome.equal:
        print(f"both hold the same: digest {outcome.digest}")
    elif outcome.ok:
        print("all that either had is on both; meanwhile one of them was written to")
    else:
        print(shown(f"they differ: {_listed(outcome.differences) or outcome.problem}"))


def _listed(differences: tuple[Difference, ...]) -> str:
    more = f" and {len(differences) - _NAMED:,} more sources" if len(differences) > _NAMED else ""
    return (
        ", ".join(f"{each.source} is at {each.here:,} here and {each.there:,} there" for each in differences[:_NAMED])
        + more
    )
