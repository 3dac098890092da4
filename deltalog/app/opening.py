"""How a verb opens the data directory: as a log, or only to look at it; and what it says about the opening."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final

import attrs

from deltalog import data_directory, rocks_directory
from deltalog.app.shadow import check_packages
from deltalog.app.terminal import Meter, note
from deltalog.data_directory import Lock
from deltalog.keys import Head
from deltalog.log import LogOptions
from deltalog.manager import DELTA, Manager, Problem, Upkeep, open_manager
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.startup import StartupReport
from deltalog.witness import Witness

_NO_UPKEEP: Final = Upkeep(
    flush_interval_s=None, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None
)
_SMALL: Final = LogOptions(ring_deltas=4_096)


@attrs.frozen
class DataOptions:
    """Which directory, and how."""

    path: Path
    accept_loss: bool = False
    """Go on with what is left when fsynced data is gone."""
    adopt: bool = False
    """Go on from a copied directory."""
    silent: bool = False
    """No progress bars: a program reads what is printed."""


@asynccontextmanager
async def opened(
    data: DataOptions,
    *,
    create: bool = False,
    source: str | None = None,
    options: LogOptions = _SMALL,
    upkeep: Upkeep = _NO_UPKEEP,
    tell: bool = True,
) -> AsyncIterator[Manager]:
    """Open the log in the directory, which must be there unless `create`. A long opening shows a bar.

    tell: say on standard error what was lost, and if a new incarnation begins.

    Raises what `open_manager` raises, and `Shadowed`.
    """
    check_packages()
    async with AsyncExitStack() as stack:
        with Meter(f"opening {data.path.name}", silent=data.silent) as meter:
            manager = await stack.enter_async_context(
                open_manager(
                    data.path,
                    source=source,
                    create=create,
                    accept_loss=data.accept_loss,
                    adopt=data.adopt,
                    options=options,
                    upkeep=upkeep,
                    progress=lambda stage, done, total: meter.update(done, total, stage),
                    on_problem=_tell_problem,
                )
            )
        for line in startup_lines(manager.startup) if tell else ():
            note(line)
        yield manager


def startup_lines(report: StartupReport) -> Iterator[str]:
    """What a person should know of an opening that was not as always: what is gone, and who appends now."""
    for source, (first, last) in sorted(report.lost.items()):
        count = last - first + 1
        yield f"{source!r} lost its deltas {first:,} to {last:,} ({count:,}) when the log was not closed in order"
    if report.lost_unnamed:
        yield f"{report.lost_unnamed:,} more fsynced deltas are lost, of sources that the witness had no room to name"
    if report.damage:
        yield report.damage
    if report.incarnation_of:
        yield (
            f"{report.reason}; so that no number is used twice, this log goes on as {report.source!r}, "
            f"and {report.incarnation_of!r} stays as it is"
        )


def _tell_problem(problem: Problem) -> None:
    of = f" of {problem.member}" if problem.member not in ("", DELTA) else ""
    note(f"{problem.what}{of}: {problem.message}")


# -------------------------------------------------------------------------------------------------- only to look at


@contextmanager
def inspected(path: Path) -> Iterator[RocksStore]:
    """Open the directory's store to look at it, whatever its witness says: locked, read only, nothing is changed.

    Raises `StoreMissing`, `StoreInUse`, or what opening the store for reading raises.
    """
    data_directory.prepare(path, create=False)
    lock = Lock.take(path)
    try:
        rocks = rocks_directory.absolute(path) / "rocks" / "delta"
        with closing(RocksStore(lambda: Rocks.open_read_only(rocks, FAMILIES, SharedMemory()))) as store:
            yield store
    finally:
        lock.release(undo=True)


def witness_faults(path: Path, heads: Mapping[str, Head]) -> Iterator[str]:
    """What the witness saw fsynced and the store does not hold; raises what opening the witness raises."""
    with closing(Witness.open(path / "witness")) as witness:
        testimony = witness.testimony
    if testimony is None:
        return
    named = 0
    for source, (seq, _) in sorted(testimony.heads.items()):
        held = heads[source].seq if source in heads else 0
        if held < seq:
            named += seq - held
            yield f"{source!r}: deltas {held + 1:,} to {seq:,} were fsynced and are gone"
    unnamed = testimony.total - named - sum(head.seq for head in heads.values())
    if unnamed > 0:
        yield f"{unnamed:,} more deltas were fsynced and are gone, of sources the witness had no room to name"
