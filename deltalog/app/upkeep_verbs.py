"""Verbs that look after the data: gc, compact."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import click

from deltalog.app.opening import inspected, opened
from deltalog.app.options import (
    SOURCE_SEQ,
    TIME,
    data_of,
    data_options,
    json_option,
    refuse_unknown,
)
from deltalog.app.process import run
from deltalog.app.terminal import listed, print_json
from deltalog.retention import Retention, plan
from deltalog.store import DeltaStore

# ---------------------------------------------------------------------------------------------------------------- gc


@click.command
@data_options
@click.option("--before", type=TIME, help="Drop what is older than this time.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Keep at least N of the newest deltas.")
@click.option("--max-bytes", type=click.IntRange(min=0), metavar="N", help="Keep about N bytes of encoded deltas.")
@click.option("--until", type=SOURCE_SEQ, multiple=True, help="Drop deltas of SOURCE up to SEQ; may be repeated.")
@click.option("--compact", "then_compact", is_flag=True, help="Then give the space back, as `compact`.")
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@json_option
def gc(
    data: Path,
    accept_loss: bool,
    adopt: bool,
    before: int | None,
    keep: int | None,
    max_bytes: int | None,
    until: tuple[tuple[str, int], ...],
    then_compact: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Drop old deltas: of --before, --keep, --max-bytes and --until give exactly one.

    A delta goes together with all it depends on, but for --until, which is taken as it stands.
    """
    given = [before is not None, keep is not None, max_bytes is not None, bool(until)]
    if sum(given) != 1:
        raise click.UsageError("give exactly one of --before, --keep, --max-bytes and --until")
    if dry_run and then_compact:
        raise click.UsageError("--dry-run changes nothing, so there is nothing to --compact")

    with inspected(data) as store:
        floors = _floors(store, before, Retention(max_deltas=keep, max_bytes=max_bytes), dict(until))
        heads = store.heads()
        planned = sum(max(0, min(seq, heads[name].seq) - heads[name].floor) for name, seq in floors.items())
    if dry_run:
        _print_gc(planned, floors, {}, as_json, dry_run=True)
        return 0

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            done = await manager.log.truncate(until=floors)
            if then_compact:
                await manager.log.compact()
        _print_gc(done.dropped, done.floor, done.held, as_json, dry_run=False)

    return run(verb)


def _floors(store: DeltaStore, before: int | None, retention: Retention, until: Mapping[str, int]) -> dict[str, int]:
    """Per source the seq up to which deltas are to go."""
    heads = store.heads()
    if until:
        refuse_unknown(heads, until)
        wanted = dict(until)
    elif before is not None:
        wanted = dict(store.seqs_at(before - 1)) if before else {}
    else:
        wanted = plan(store, retention, time.time_ns() // 1_000_000)
    return {source: seq for source, seq in wanted.items() if seq > heads[source].floor}


def _print_gc(dropped: int, floor: Mapping[str, int], held: Mapping[str, int], as_json: bool, *, dry_run: bool) -> None:
    if as_json:
        print_json({"dropped": dropped, "floor": dict(floor), "held": dict(held), "dry_run": dry_run})
    elif dry_run:
        print(f"{dropped:,} deltas would be dropped: {listed(floor)}")
    else:
        kept = f"; held back by readers: {listed(held)}" if held else ""
        print(f"{dropped:,} deltas dropped; the floor is {listed(floor)}{kept}")


# ----------------------------------------------------------------------------------------------------------- compact


@click.command
@data_options
@json_option
def compact(data: Path, accept_loss: bool, adopt: bool, as_json: bool) -> int:
    """Merge short blocks and files; give back the space of what was dropped or erased."""

    async def verb() -> None:
        async with opened(data_of(data, accept_loss, adopt, as_json)) as manager:
            before = await manager.log.sizes()
            await manager.log.compact()
            after = await manager.log.sizes()
        if as_json:
            blocks = {"blocks_before": before.blocks, "blocks_after": after.blocks}
            print_json({"disk_bytes_before": before.disk_bytes, "disk_bytes_after": after.disk_bytes, **blocks})
        else:
            print(
                f"{before.disk_bytes:,} bytes on disk before, {after.disk_bytes:,} after; "
                f"{before.blocks:,} blocks before, {after.blocks:,} after"
            )

    return run(verb)
