"""Verbs for keys: a node's own, a cluster's, and what a cluster says about a node.

A public key goes to standard output alone on its line, to be copied to where it is pinned. Nothing here opens a log, so
a node may run meanwhile; it reads its key and admission when it starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from deltalog import data_directory
from deltalog.app.options import DIRECTORY, NumberRange, data_only, debug_option, json_option
from deltalog.app.peer_options import KEY, check_sync_installed
from deltalog.app.terminal import note, print_json
from deltalog.errors import UsageError

_DAYS_MAX: Final = 36_500
_DAYS: Final = 365.0
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """Make keys, show them, admit nodes to a cluster."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    else:
        check_sync_installed()


def _authority(required: bool) -> Callable[[_Verb], _Verb]:
    """Options of whoever holds a cluster's key."""
    options = (
        click.option("--cluster-key", type=DIRECTORY, metavar="FILE", required=required, help="The cluster's key."),
        click.option("--cluster", metavar="NAME", required=required, help="Name of the cluster."),
        click.option(
            "--days",
            type=NumberRange(0, _DAYS_MAX, min_open=True),
            default=_DAYS,
            show_default=True,
            help="How long other nodes let it in; admit it again before.",
        ),
    )
    return lambda verb: reduce(lambda done, option: option(done), reversed(options), verb)


@keys.command
@data_only
@_authority(required=False)
@json_option
def init(data: Path, cluster_key: Path | None, cluster: str | None, days: float, as_json: bool) -> int:
    """Make the key of a node in its data directory; print the public key. With --cluster-key, admit it at once.

    The directory is made if it is not there. A key is never overwritten.
    """
    from deltalog.app import node_identity  # noqa: PLC0415  # may be missing
    from sync import node_keys  # noqa: PLC0415

    if (cluster_key is None) is not (cluster is None):
        raise click.UsageError("--cluster-key and --cluster go together")
    admitting = None if cluster_key is None or cluster is None else (node_keys.load_key(cluster_key), cluster)
    if admitting is not None:
        node_keys.voucher_message(admitting[1], bytes(node_keys.PUBLIC_BYTES))
    data_directory.prepare(data, create=True)
    key = node_keys.create_key(data / node_keys.NODE_KEY)
    if admitting is not None:
        admitted = node_identity.admit(*admitting, key.public, days)
        node_identity.put_admission(data / node_keys.NODE_CERTIFICATE, admitted)
    _say(data, as_json)
    return 0


@keys.command
@data_only
@json_option
def show(data: Path, as_json: bool) -> int:
    """Print the public key of a data directory's node, and say which cluster it is admitted to, and until when."""
    data_directory.prepare(data, create=data.is_dir())  # one that holds no more than a key is ours, too
    _say(data, as_json)
    return 0


def _say(data: Path, as_json: bool) -> None:
    from deltalog.app import node_identity  # noqa: PLC0415  # may be missing
    from sync.node_keys import NODE_KEY, key_text  # noqa: PLC0415

    identity = node_identity.load_identity(data)
    if identity is None:
        raise UsageError(f"there is no {data / NODE_KEY}: make it with `deltalog keys init --data {data}`")
    admitted, text = identity.admitted, key_text(identity.key)
    valid = admitted is not None and admitted.until > datetime.now(UTC)
    if as_json:
        about = None
        if admitted is not None:
            until, by = admitted.until.isoformat(), key_text(admitted.cluster_key)
            about = {"cluster": admitted.cluster, "cluster_key": by, "until": until, "valid": valid}
        print_json({"key": text, "admission": about})
        return
    print(text)
    sys.stdout.flush()
    if admitted is None:
        note("in no cluster: peers must pin this key")
    else:
        what = "admitted to" if valid else "no longer admitted to"
        until = f"{admitted.until:%Y-%m-%d %H:%M} UTC"
        note(f"{what} cluster {admitted.cluster!r} of {key_text(admitted.cluster_key)}: until {until}")


@keys.command("cluster")
@click.argument("directory", type=DIRECTORY)
@json_option
@debug_option
def cluster_(directory: Path, as_json: bool) -> int:
    """Make the key of a new cluster in DIRECTORY; print its public key.

    Who has cluster.key admits nodes: keep it where no node runs.
    """
    from sync.node_keys import CLUSTER_KEY, key_text, make_cluster  # noqa: PLC0415  # may be missing

    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}")
    text = key_text(make_cluster(directory).public)
    if as_json:
        print_json({"key": text, "file": str(directory / CLUSTER_KEY)})
    else:
        print(text)
    return 0


@keys.command
@click.argument("key", type=KEY)
@_authority(required=True)
@click.option(
    "--to", type=DIRECTORY, metavar="FILE", help="Write it there, replacing what is there.  [default: print it]"
)
@debug_option
def admit(key: bytes, cluster_key: Path, cluster: str, days: float, to: Path | None) -> int:
    """Admit the node with this KEY to a cluster. What is printed belongs into its data directory as node.crt."""
    from deltalog.app import node_identity  # noqa: PLC0415  # may be missing
    from sync.node_keys import load_key  # noqa: PLC0415

    admitted = node_identity.admit(load_key(cluster_key), cluster, key, days)
    if to is None:
        print(admitted.encode().decode(), end="")
    elif to.is_dir() or not to.parent.is_dir():
        raise UsageError(f"--to: {to} is a directory" if to.is_dir() else f"--to: there is no directory {to.parent}")
    else:
        node_identity.put_admission(to, admitted)
    return 0
