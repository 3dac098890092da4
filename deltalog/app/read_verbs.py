"""Verbs that read the log: tail, replay, export, stats. None of them makes a directory."""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import click

from deltalog.app.interchange import to_line
from deltalog.app.opening import opened
from deltalog.app.options import SEQ, data_of, data_options, json_option, source_filter, time_range
from deltalog.app.process import run
from deltalog.app.selection import Selection
from deltalog.app.terminal import (
    Meter,
    Output,
    has_colour,
    human_line,
    listed,
    note,
    print_json,
    print_table,
)
from deltalog.delta import Delta
from deltalog.errors import UsageError
from deltalog.log import DeltaLog
from deltalog.manager import Manager

_ROWS: Final = 50
_LIMIT: Final = click.IntRange(min=1)


def _formatter(as_json: bool) -> Callable[[Delta], bytes]:
    colour = has_colour(sys.stdout)
    return to_line if as_json else lambda delta: human_line(delta, colour=colour)


# -------------------------------------------------------------------------------------------------------------- tail


@click.command
@data_options
@source_filter
@click.option("--limit", type=_LIMIT, default=10, show_default=True, help="How many of the newest.")
@click.option("--follow", is_flag=True, help="Then print what arrives, until interrupted.")
@json_option
def tail(
    data: Path, accept_loss: bool, adopt: bool, sources: tuple[str, ...], limit: int, follow: bool, as_json: bool
) -> int:
    """Print the newest deltas, oldest first.

    One process at a time has a directory open: while --follow runs, nobody else can append to it, and it cannot run
    while another process has it open.
    """
    selection = Selection(sources=sources)

    async def verb() -> None:
        output, form = Output(), _formatter(as_json)
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            log = manager.log
            live = log.subscribe()
            await output.lines(map(form, await selection.newest(log, limit)))
            while follow:
                await output.lines(form(delta) for delta in await live.page() if selection.wants(delta))

    return run(verb)


# ------------------------------------------------------------------------------------------------------------ replay


@click.command
@data_options
@source_filter
@time_range
@click.option("--after-seq", type=SEQ, help="Only deltas after this seq of the one --source.")
@click.option("--until-seq", type=SEQ, help="Only deltas up to this seq of the one --source.")
@click.option("--reverse", is_flag=True, help="Newest first; needs one --source.")
@click.option("--limit", type=_LIMIT, help="At most so many.")
@click.option("--count", is_flag=True, help="Print only how many there are.")
@json_option
def replay(data: Path, accept_loss: bool, adopt: bool, count: bool, as_json: bool, **asked: Any) -> int:
    """Print deltas in timestamp order: causes before effects. Of one --source: by seq.

    With --json in the form of `export`. --after and --after-seq are exclusive, --until and --until-seq inclusive.
    """
    selection = Selection(**asked)

    async def verb() -> None:
        output, form = Output(), _formatter(as_json)
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            total, started = 0, time.perf_counter()
            async for page in selection.pages(manager.log):
                total += len(page)
                if not count:
                    await output.lines(map(form, page))
            elapsed_s = time.perf_counter() - started
        if count:
            _print_replayed(total, elapsed_s, as_json)

    return run(verb)


def _print_replayed(total: int, elapsed_s: float, as_json: bool) -> None:
    rate = total / elapsed_s if elapsed_s else 0.0
    if as_json:
        print_json({"deltas": total, "elapsed_s": round(elapsed_s, 3), "deltas_per_s": round(rate)})
    else:
        print(f"{total:,} deltas ({elapsed_s:.2f} s, {rate:,.0f} deltas/s)")


# ------------------------------------------------------------------------------------------------------------ export


@click.command
@data_options
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.argument("file", default="-")
def export(data: Path, accept_loss: bool, adopt: bool, force: bool, file: str) -> int:
    """Write all deltas to FILE as JSON lines, compressed if its name ends in .gz; - is standard output.

    Importing them into an empty directory gives an equal log. FILE appears whole or not at all.
    """
    target = Path(file).resolve()
    if file != "-":
        _refuse_target(target, force)

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, file == "-")) as manager:
            log = manager.log
            if log.floor:
                note(f"deltas up to {listed(log.floor)} were dropped: an empty log cannot import the rest")
            if file == "-":
                await _export(log, Output())
            else:
                await _export_to(log, target)

    return run(verb)


def _refuse_target(file: Path, force: bool) -> None:
    if not file.parent.is_dir():
        raise UsageError(f"cannot write {file}: its directory is missing")
    if file.exists() and not file.is_file():
        raise UsageError(f"cannot write {file}: {'it is a directory' if file.is_dir() else 'it is not a regular file'}")
    if file.exists() and not force:
        raise UsageError(f"{file} is there already; --force replaces it")


async def _export(log: DeltaLog, output: Output) -> None:
    stream = log.replay()
    while page := await stream.page():
        await output.lines(map(to_line, page))


async def _export_to(log: DeltaLog, file: Path) -> None:
    """Write beside the file, fsync, then give it its name."""
    total, done = sum(log.heads.values()) - sum(log.floor.values()), 0
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with new.open("xb") as raw, Meter(f"exporting {file.name}") as meter:
            zipped = gzip.GzipFile("", "wb", 6, raw, mtime=0) if file.suffix == ".gz" else None
            stream = log.replay()
            while page := await stream.page():
                (zipped or raw).write(b"".join([to_line(delta) + b"\n" for delta in page]))
                done += len(page)
                meter.update(done, total, f"{done:,} deltas")
            if zipped is not None:
                zipped.close()
            raw.flush()
            os.fsync(raw.fileno())
            size = raw.tell()
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    print(f"{done:,} deltas, {size:,} bytes: {file}")


# ------------------------------------------------------------------------------------------------------------- stats


@click.command
@data_options
@json_option
def stats(data: Path, accept_loss: bool, adopt: bool, as_json: bool) -> int:
    """Print what the log holds: sources, heads, floors, sizes."""

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            (print_json if as_json else _print_stats)(await _stats(manager))

    return run(verb)


async def _stats(manager: Manager) -> dict[str, Any]:
    log, disk = manager.log, await manager.disk()
    health = manager.health()
    heads, floor = log.heads, log.floor
    return {
        "source": log.source,
        "startup": manager.startup.kind,
        "healthy": health.ok,
        **attrs.asdict(await log.sizes()),
        "data_bytes": disk.data_bytes,
        "free_bytes": disk.free_bytes,
        "erased": len(await log.erasures()),
        "heads": {name: heads[name] for name in sorted(heads)},
        "floor": {name: floor[name] for name in sorted(floor)},
    }


def _print_stats(stats: dict[str, Any]) -> None:
    heads, floor = stats.pop("heads"), stats.pop("floor")
    rows = [(name, head, floor.get(name, 0), head - floor.get(name, 0)) for name, head in heads.items()]
    more = [f"and {len(rows) - _ROWS:,} more sources; --json has them all"] if len(rows) > _ROWS else []
    print_table("log", ("what", "figure"), [(name.replace("_", " "), _figure(value)) for name, value in stats.items()])
    if rows:
        print_table("sources", ("source", "head", "floor", "deltas"), rows[:_ROWS], more)


def _figure(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
