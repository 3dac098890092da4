"""All verbs of the command line under one name. Importing this needs click and rich; `cli` says so where they miss."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

import deltalog
from deltalog.app.audit_verbs import audit, locks
from deltalog.app.demo import demo
from deltalog.app.key_verbs import keys
from deltalog.app.options import debug_option
from deltalog.app.peer_verbs import peers, sources
from deltalog.app.process import report
from deltalog.app.read_verbs import export, replay, stats, tail
from deltalog.app.serve_verb import serve
from deltalog.app.sync_verb import sync
from deltalog.app.upkeep_verbs import compact, gc, verify_
from deltalog.app.write_verbs import append, erase, import_


class Verbs(click.Group):
    """A group that ends every error in one line and the right exit code (see `process`)."""

    def main(  # type: ignore[override]  # it always exits, as the first form of the overridden one
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the verb that `args` (default: the command line) say, and exit."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        words = list(sys.argv[1:] if args is None else args)
        verb = next((word for word in words if word in self.commands), "")
        try:
            code = super().main(words, prog_name, **{**extra, "standalone_mode": False})
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, SystemExit | GeneratorExit):
                raise
            code = report(error, f"deltalog {verb}".rstrip())
        sys.exit(code)


_HELP: Final = {"help_option_names": ["-h", "--help"]}


@click.group("deltalog", cls=Verbs, invoke_without_command=True, context_settings=_HELP)
@click.version_option(deltalog.__version__, message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def verbs(context: click.Context) -> None:
    """An event-sourced CRDT delta log on disk: append, import, read, verify, collect.

    Exit code: 0 done, 1 failed, 2 called wrongly. Every verb takes --data DIR, or the environment's DELTALOG_DATA.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _verb in (
    append,
    import_,
    erase,
    tail,
    replay,
    export,
    stats,
    verify_,
    gc,
    compact,
    serve,
    sync,
    peers,
    sources,
    keys,
    audit,
    locks,
    demo,
):
    verbs.add_command(_verb)
