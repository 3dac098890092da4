"""Verbs that look after the data: verify, gc, compact."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from deltalog.app.opening import inspected, opened, witness_faults
from deltalog.app.options import (
    SOURCE_SEQ,
    TIME,
    data_of,
    data_only,
    data_options,
    json_option,
    refuse_unknown,
)
from deltalog.app.process import FAILED, run
from deltalog.app.terminal import Meter, listed, print_json, shown
from deltalog.errors import ScanTruncated, StoreCorrupt, StoreFormatMismatch, StoreIOError
from deltalog.retention import Retention, plan
from deltalog.store import DeltaStore
from deltalog.verify import Fault, Kind, verify

_FAULTS_LISTED: Final = 1_000

# ------------------------------------------------------------------------------------------------------------ verify


@click.command("verify")
@data_only
@json_option
def verify_(data: Path, as_json: bool) -> int:
    """Check every record, the time index, the heads and the hash chains, and that nothing fsynced is missing.

    Changes nothing. Prints the first fault and how many there are; exit code 1 if there is one.
    """

    async def verb() -> int:
        report: _Report = await trio.to_thread.run_sync(_verify, data, as_json)
        report.print(as_json)
        return FAILED if report.count else 0

    return run(verb)


@attrs.define
class _Report:
    """What verifying found."""

    deltas: int | None = None
    """How many there are; None if the heads could not be read."""
    sources: int | None = None
    kinds: Counter[str] = attrs.field(factory=Counter)
    """Faults found, by kind."""
    faults: list[dict[str, Any]] = attrs.field(factory=list)
    """The first of them."""
    first: str = ""

    @property
    def count(self) -> int:
        """How many faults there are."""
        return sum(self.kinds.values())

    def add(self, kind: str, text: str, **fields: Any) -> None:
        """One more fault."""
        self.first = self.first or text
        self.kinds[kind] += 1
        if len(self.faults) < _FAULTS_LISTED:
            self.faults.append({"kind": kind, "message": text, **fields})

    def add_fault(self, fault: Fault) -> None:
        """One more that `verify` found."""
        fields = attrs.asdict(fault, filter=attrs.filters.exclude("kind", "key"))
        self.add(fault.kind.value, str(fault), **{**fields, "key": fault.key.hex()})

    def print(self, as_json: bool) -> None:
        """Print it all, or for a person the first fault and how many there are."""
        held = f" in {self.deltas:,} deltas of {self.sources:,} sources" if self.deltas is not None else ""
        if as_json:
            counts = {"deltas": self.deltas, "sources": self.sources, "count": self.count, "kinds": dict(self.kinds)}
            print_json({"ok": not self.count, **counts, "faults": self.faults})
        elif self.count:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
            print(f"{self.count:,} {'faults' if self.count > 1 else 'fault'}{held} ({kinds}); the first:")
            print(shown(self.first))
        else:
            print(f"no fault{held}")


def _verify(path: Path, silent: bool) -> _Report:
    """In a worker thread: walk the store. What cannot even be opened or read is a fault, too."""
    report = _Report()
    with Meter(f"verifying {path.name}", silent=silent) as meter:

        def progress(stage: str, done: int, total: int) -> None:
            trio.from_thread.check_cancelled()
            meter.update(done, total, stage)

        try:
            with inspected(path) as store:
                heads = store.heads()
                report.sources, report.deltas = len(heads), sum(head.count for head in heads.values())
                for fault in verify(store, progress=progress):
                    report.add_fault(fault)
                for text in witness_faults(path, heads):
                    report.add(Kind.MISSING.value, text)
        except (StoreCorrupt, StoreFormatMismatch, StoreIOError, ScanTruncated) as error:
            report.add(Kind.DAMAGED.value, str(error))
    return report


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
