"""Verbs that ask the audit trail: audit query, tail, summary, verify, export; and locks.

They ask a data directory (--data), which is opened for reading only and not changed, or a running node (--url), which
has its directory to itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
import trio

from audit.api_values import json_bytes
from audit.event import ID_BYTES, TARGET_BYTES, TOKEN_MAX, Action
from audit.query import LIMIT_MAX, Query
from audit.target import Target
from audit.trail import TrailHead
from audit.verify import Finding, TrailReport, verify
from deltalog.app.options import DIRECTORY, TIME, data_only, debug_option, json_option
from deltalog.app.process import FAILED, run
from deltalog.app.remote import Remote
from deltalog.app.serve_verb import TOKEN_VARIABLE
from deltalog.app.terminal import Output, note, print_json, print_table, shown
from deltalog.app.trail_source import Fields, TrailSource, inspected_trail, opened_source
from deltalog.errors import StoreCorrupt, UsageError

CURSOR_BYTES: Final = 4096
_ROWS: Final = 20
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


class TargetType(click.ParamType[str]):
    """The canonical text of a target."""

    name = "TARGET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        try:
            return str(Target.parse(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class TextType(click.ParamType[str]):
    """Some text, which is not empty."""

    def __init__(self, name: str, bytes_max: int) -> None:
        self.name = name
        self._bytes_max = bytes_max

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        size = len(str(value).encode(errors="surrogateescape"))
        if not 0 < size <= self._bytes_max:
            self.fail(f"it takes 1 to {self._bytes_max:,} bytes", param, ctx)
        return str(value)


class HeadType(click.ParamType[TrailHead]):
    """The line that `audit verify` prints."""

    name = "HEAD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> TrailHead:
        """Return the head."""
        try:
            return value if isinstance(value, TrailHead) else TrailHead.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


_ID: Final = TextType("ID", ID_BYTES)


def where_options(verb: _Verb) -> _Verb:
    """--data or --url."""
    options = (
        click.option("--data", type=DIRECTORY, envvar="DELTALOG_DATA", show_envvar=True, help="The data directory."),
        click.option("--url", help=f"A running node instead of --data; its token in {TOKEN_VARIABLE}, if it has one."),
        debug_option,
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def _filters(verb: _Verb) -> _Verb:
    """The filters of the API, under the same names."""
    options = (
        click.option("--holder", type=_ID, help="Only this holder's."),
        click.option(
            "--action",
            "actions",
            type=click.Choice([str(action) for action in Action]),
            multiple=True,
            help="Only these; may be given several times.",
        ),
        click.option("--lock-id", type=_ID, help="Only of this lock."),
        click.option("--target", type=TargetType(), help="Only on exactly this target: src/app.py:10-20."),
        click.option("--target-prefix", type=TextType("TEXT", TARGET_BYTES), help="Only on targets that begin so."),
        click.option("--after", type=TIME, help="Only after this time: ISO 8601 with an offset, or a timestamp."),
        click.option("--until", type=TIME, help="Only up to this time."),
        click.option("--min-token", type=click.IntRange(0, TOKEN_MAX), help="Only with at least this fencing token."),
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def _query_of(asked: dict[str, Any]) -> Query:
    after, until = asked.get("after"), asked.get("until")
    if after is not None and until is not None and after > until:
        raise click.UsageError("--after comes after --until")
    return Query(**{**asked, "actions": tuple(Action(name) for name in asked.get("actions", ()))})


def _source(data: Path | None, url: str | None) -> Any:
    """The context manager of whoever answers. A --url counts more than the environment's directory."""
    if url is not None:
        return opened_source(None, Remote(url, os.environ.get(TOKEN_VARIABLE)))
    if data is None:
        raise click.UsageError("Missing option '--data' (env var: 'DELTALOG_DATA'), or '--url'")
    return opened_source(data, None)


# --------------------------------------------------------------------------------------------------------------- events


@click.group(invoke_without_command=True)
@click.pass_context
def audit(context: click.Context) -> None:
    """Ask the audit trail: who held what, when."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@audit.command
@where_options
@_filters
@click.option("--newest-first", is_flag=True, help="The newest first.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option(
    "--cursor",
    type=TextType("CURSOR", CURSOR_BYTES),
    help="Go on where an earlier answer ended; the other options as they were.",
)
@json_option
def query(data: Path | None, url: str | None, limit: int, as_json: bool, **asked: Any) -> int:
    """Print the events that pass every filter."""
    question, source = _query_of(asked), _source(data, url)

    async def verb() -> None:
        output, left, at = Output(), limit, question
        async with source as trail:
            while True:
                events, cursor = await trail.page(attrs.evolve(at, limit=min(left, LIMIT_MAX)))
                await output.lines(_line(event, as_json) for event in events)
                left -= len(events)
                if cursor is None or left <= 0:
                    break
                at = attrs.evolve(at, cursor=cursor)
        if cursor is not None:
            note(f"there is more: --cursor {cursor}")

    return run(verb)


@audit.command
@where_options
@_filters
@click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=10, show_default=True, help="How many of the newest."
)
@click.option("--follow", is_flag=True, help="Then print what is recorded, until interrupted; needs --url.")
@json_option
def tail(data: Path | None, url: str | None, limit: int, follow: bool, as_json: bool, **asked: Any) -> int:
    """Print the newest events, oldest first."""
    if follow and url is None:
        raise click.UsageError("--follow needs --url: nobody records while this process has the directory open")
    question, source = _query_of(asked), _source(data, url)

    async def verb() -> None:
        output = Output()
        async with source as trail:
            newest = await _newest(trail, question, limit)
            await output.lines(_line(event, as_json) for event in newest)
            if follow:
                begin = newest or await _newest(trail, Query(), 1)
                async for event in trail.follow(question, begin[-1]["number"] if begin else 0):
                    await output.lines([_line(event, as_json)])

    return run(verb)


async def _newest(trail: TrailSource, question: Query, limit: int) -> list[Fields]:
    """Oldest first."""
    found: list[Fields] = []
    at = attrs.evolve(question, newest_first=True)
    while len(found) < limit:
        events, cursor = await trail.page(attrs.evolve(at, limit=limit - len(found)))
        found += events
        if cursor is None:
            break
        at = attrs.evolve(at, cursor=cursor)
    return found[::-1]


@audit.command
@where_options
@_filters
@click.option("--newest-first", is_flag=True, help="The newest first.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
def export(data: Path | None, url: str | None, form: str, **asked: Any) -> int:
    """Print all events that pass every filter, as JSON lines or CSV."""
    question, source = _query_of(asked), _source(data, url)

    async def verb() -> None:
        output = Output()
        async with source as trail:
            async for chunk in trail.export(question, form):
                await output.write(chunk)

    return run(verb)


def _line(event: Fields, as_json: bool) -> bytes:
    """One event, for a program or for a person."""
    if as_json:
        return json_bytes(event)
    holder = event["holder_name"] or event["holder_id"]
    token = f"token {event['token']}" if event["token"] else ""
    more = " ".join(f"{name}={value}" for name, value in event["metadata"].items())
    parts = [f"{event['number']:>8}", f"{event['time']:<29}", f"{event['action']:<9}", f"{holder:<16}", event["target"]]
    text = shown("  ".join(part for part in (*parts, token, more) if part))
    return text.rstrip().encode(sys.stdout.encoding or "utf-8", "backslashreplace")


# -------------------------------------------------------------------------------------------------------------- summary


@audit.command
@where_options
@click.option("--after", type=TIME, help="Only after this time: ISO 8601 with an offset, or a timestamp.")
@click.option("--until", type=TIME, help="Only up to this time.")
@json_option
def summary(data: Path | None, url: str | None, after: int | None, until: int | None, as_json: bool) -> int:
    """Print counts by action, holder and target; what was held longest and contended most."""
    _query_of({"after": after, "until": until})
    source = _source(data, url)

    async def verb() -> None:
        async with source as trail:
            (print_json if as_json else _print_summary)(await trail.summary(after, until))

    return run(verb)


def _print_summary(said: Fields) -> None:
    figures = [("events", said["events"]), ("not recorded (gaps)", said["dropped"]), *said["by_action"].items()]
    print_table("trail", ("what", "events"), figures)
    for what in ("holder", "target"):
        rows = list(said[f"by_{what}"].items())
        more = [f"and {len(rows) - _ROWS:,} more; --json has them all"] if len(rows) > _ROWS else []
        if rows:
            print_table(f"by {what}", (what, "events"), rows[:_ROWS], more)
    held = [
        (each["acquired"]["target"], each["acquired"]["holder_id"], each["duration_ms"])
        for each in said["longest_held"]
    ]
    if held:
        print_table("held longest", ("target", "holder", "ms"), held)
    if said["most_contended"]:
        contended = [(each["target"], each["count"]) for each in said["most_contended"]]
        print_table("contended most", ("target", "conflicts, denials, waits"), contended)


# --------------------------------------------------------------------------------------------------------------- verify


@audit.command("verify")
@data_only
@click.option("--head", type=HeadType(), help="Also check that this head, printed earlier, is still in the trail.")
@json_option
def verify_(data: Path, head: TrailHead | None, as_json: bool) -> int:
    """Check every event, link and index row. Changes nothing; exit code 1 if something is not as it was recorded.

    Prints the head of the trail: keep the line elsewhere, and give it back as --head to prove that no tail was cut.
    """

    async def verb() -> int:
        found, report = await trio.to_thread.run_sync(_verify, data, head)
        (_report_json if as_json else _report)(found, report)
        return FAILED if found else 0

    return run(verb)


def _verify(data: Path, head: TrailHead | None) -> tuple[list[Finding], TrailReport | None]:
    """In a worker thread. A trail that cannot even be opened is a finding, too."""
    try:
        with inspected_trail(data) as store:
            report = verify(store, head=head)
    except StoreCorrupt as error:
        return [Finding("damaged", 0, str(error))], None
    return list(report.findings), report


def _report_json(found: list[Finding], report: TrailReport | None) -> None:
    about: Fields = {} if report is None else {"events": report.events, "floor": report.floor, "head": str(report.head)}
    print_json({"ok": not found, **about, "findings": [attrs.asdict(each) for each in found]})


def _report(found: list[Finding], report: TrailReport | None) -> None:
    held = (
        "" if report is None else f" in {report.events:,} events" + (f" after {report.floor:,}" if report.floor else "")
    )
    if found:
        print(f"{len(found):,} {'findings' if len(found) > 1 else 'finding'}{held}; the first:")
        print(shown(f"{found[0].kind}: {found[0].message}"))
    else:
        print(f"as it was recorded{held}")
    if report is not None:
        print(report.head)


# ---------------------------------------------------------------------------------------------------------------- locks


@click.command
@where_options
@click.option("--holder", type=_ID, help="Only this holder's.")
@click.option("--target", type=TargetType(), help="Only those that touch this target.")
@json_option
def locks(data: Path | None, url: str | None, holder: str | None, target: str | None, as_json: bool) -> int:
    """Print the leases of a running node (--url), or those that were in force when a trail ended (--data).

    Locks live in the memory of a node: after its end none of them holds.
    """
    source = _source(data, url)

    async def verb() -> None:
        async with source as trail:
            found = await trail.leases(holder, target)
        if as_json:
            await Output().lines(json_bytes(lease) for lease in found)
        else:
            _print_leases(found, "in force" if url is not None else "in force when the trail ended")

    return run(verb)


def _print_leases(found: list[Fields], title: str) -> None:
    rows = []
    for lease in found:
        targets = ", ".join(lease["targets"]) if "targets" in lease else lease["target"]
        left = f"{lease['remaining_s']:.1f} s left" if "remaining_s" in lease else f"since {lease['time']}"
        rows.append((lease["token"], lease["holder_name"] or lease["holder_id"], targets, left))
    print_table(f"{len(rows):,} leases {title}", ("token", "holder", "target", "until"), rows)
