"""Verbs that put something into the log: append, import, erase."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from deltalog.app.importer import ImportCount, Importer
from deltalog.app.interchange import json_value, line_bytes_max, parse_line, to_line
from deltalog.app.lines import LineReader, LineRefused, stdin_descriptor
from deltalog.app.opening import opened
from deltalog.app.options import SOURCE, data_of, data_options, json_option, own_source
from deltalog.app.process import run
from deltalog.app.terminal import Meter, Output, has_colour, human_line, print_json
from deltalog.codec import build
from deltalog.delta import SEQ_MAX, Delta, Limits, text_bytes
from deltalog.errors import DecodeError, UsageError
from deltalog.log import LogOptions
from deltalog.manager import Upkeep

_LIMITS: Final = Limits()
REASON_BYTES: Final = 1024


# ------------------------------------------------------------------------------------------------------------ append


@click.command
@data_options
@own_source
@click.option("--kind", default="", help="The application's type tag.")
@click.option("--key", default="", help="The entity it touches.")
@click.option("--text", "as_text", is_flag=True, help="PAYLOAD is text as it stands, not JSON.")
@click.option("--bytes-from", metavar="FILE", help="The payload is the bytes of FILE (- is standard input).")
@json_option
@click.argument("payload", required=False)
def append(
    data: Path,
    accept_loss: bool,
    adopt: bool,
    source: str | None,
    kind: str,
    key: str,
    as_text: bool,
    bytes_from: str | None,
    as_json: bool,
    payload: str | None,
) -> int:
    """Append one delta, durably. PAYLOAD is JSON, or - to read it from standard input."""
    value = _payload(payload, as_text, bytes_from)
    build("checked", 1, 0, value, kind=kind, key=key)

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, as_json), create=True, source=source) as manager:
            delta = await manager.log.append(value, kind=kind, key=key, durable=True)
        await _print_delta(delta, as_json)

    return run(verb)


def _payload(payload: str | None, as_text: bool, bytes_from: str | None) -> Any:
    if (payload is None) == (bytes_from is None):
        raise click.UsageError("give one of PAYLOAD and --bytes-from")
    if bytes_from is not None:
        if as_text:
            raise click.UsageError("--text goes with PAYLOAD, not with --bytes-from")
        return _read("--bytes-from", bytes_from, _LIMITS.payload_bytes)
    assert payload is not None, "one of the two is there"
    data = _read("PAYLOAD", "-", line_bytes_max(_LIMITS)) if payload == "-" else os.fsencode(payload)
    try:
        return data.decode() if as_text else json_value(data)
    except UnicodeDecodeError as error:
        raise UsageError(f"PAYLOAD: it is not UTF-8 at byte {error.start + 1}; use --bytes-from") from error
    except UsageError as error:
        raise UsageError(f"PAYLOAD: {error}; for text that is not JSON use --text") from error


def _read(field: str, name: str, limit: int) -> bytes:
    """The bytes of a file or of standard input, at most `limit`."""
    try:
        with open(stdin_descriptor() if name == "-" else name, "rb", closefd=name != "-") as stream:
            data = stream.read(limit + 1)
    except UsageError as error:
        raise UsageError(f"{field}: {error}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{field}: cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise UsageError(f"{field}: {name} is more than {limit:,} bytes")
    return data


async def _print_delta(delta: Delta, as_json: bool) -> None:
    await Output().lines([to_line(delta) if as_json else human_line(delta, colour=has_colour(sys.stdout))])


# ------------------------------------------------------------------------------------------------------------ import


@click.command("import")
@data_options
@own_source
@click.option(
    "--line-bytes",
    type=click.IntRange(1, 1 << 30),
    default=line_bytes_max(_LIMITS),
    help="Longest line that is taken; default: room for the largest payload.",
)
@json_option
@click.argument("file")
def import_(
    data: Path, accept_loss: bool, adopt: bool, source: str | None, line_bytes: int, as_json: bool, file: str
) -> int:
    """Take in the deltas of FILE: JSON lines, plain or gzip; - is standard input.

    What is there already is left alone, so an import that was cut off completes when it is run again. A line that is
    wrong ends the import; what stands before it stays.
    """

    async def verb() -> None:
        with LineReader.open(file, line_bytes) as reader:
            number, lines = await trio.to_thread.run_sync(reader.read, abandon_on_cancel=True)
            _check_start(number, lines)
            directory = data_of(data, accept_loss, adopt, as_json)
            async with opened(directory, create=True, source=source, options=LogOptions(), upkeep=Upkeep()) as manager:
                started = time.perf_counter()
                importer = Importer(manager.log)
                with Meter(f"importing {Path(file).name}", silent=as_json, at_once=True) as meter:
                    while lines:
                        await importer.take(number, lines)
                        meter.update(reader.consumed_bytes, reader.total_bytes, f"{importer.count.lines:,} lines")
                        number, lines = await trio.to_thread.run_sync(reader.read, abandon_on_cancel=True)
                    await importer.finish()
                elapsed_s = time.perf_counter() - started
        _print_count(importer.count, elapsed_s, as_json)

    return run(verb)


def _check_start(number: int, lines: Sequence[bytes]) -> None:
    """Refuse a file that is none of ours by its first line, before a directory is made for it."""
    for index, line in enumerate(lines, number):
        if line.strip():
            try:
                parse_line(line, _LIMITS)
            except (UsageError, DecodeError) as error:
                raise LineRefused(index, error) from error
            return


def _print_count(count: ImportCount, elapsed_s: float, as_json: bool) -> None:
    rate = count.lines / elapsed_s
    if as_json:
        print_json({**attrs.asdict(count), "elapsed_s": round(elapsed_s, 3), "deltas_per_s": round(rate)})
    else:
        print(
            f"{count.lines:,} deltas: {count.applied:,} new, {count.known:,} known already "
            f"({elapsed_s:.1f} s, {rate:,.0f} deltas/s)"
        )


# ------------------------------------------------------------------------------------------------------------- erase


@click.command
@data_options
@click.option("--reason", required=True, help="Why; kept beside the delta.")
@json_option
@click.argument("source", type=SOURCE)
@click.argument("seq", type=click.IntRange(1, SEQ_MAX))
def erase(data: Path, accept_loss: bool, adopt: bool, reason: str, as_json: bool, source: str, seq: int) -> int:
    """Replace the payload of delta SEQ of SOURCE by its hash, durably; its bytes leave the disk with `compact`."""
    if not text_bytes("reason", reason, REASON_BYTES):
        raise click.BadParameter("it must not be empty", param_hint="--reason")

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            delta = await manager.log.erase((source, seq), reason)
        await _print_delta(delta, as_json)

    return run(verb)
