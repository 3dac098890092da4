"""What a damaged write-ahead log still holds: looked at on a copy, and put in its place only once that is decided.

A write-ahead log is worth what stands before its first damage. RocksDB stops there by itself when a checksum does not
match (`wal_tail="drop"`); where it would misread the damage (see `walguard`), the copy is cut. Logs behind one that
was cut are emptied: RocksDB would go on in them, over the gap.

    rocks/delta            as it is: nothing of it changes
    rocks/delta.salvage    the same sorted files (hard links), copies of all else, the logs cut

Does not know: what may be given up. Only opens for reading what `walguard` reads.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from deltalog import walguard
from deltalog.data_directory import link_or_copy
from deltalog.errors import StoreCorrupt
from deltalog.failpoints import reach
from deltalog.rocks_directory import sync_directory
from deltalog.witness import system_errors

_COPIED: Final = ("CURRENT", "IDENTITY", "MANIFEST-", "OPTIONS-")


def cut_copy(path: Path) -> Path:
    """Make the copy of the store at `path` and return where it is. Raises `StoreCorrupt` for damage beyond the logs."""
    copy = path.with_name(path.name + ".salvage")
    with system_errors(copy):
        discard(copy)
        reach("salvage.copy.before")
        copy.mkdir(mode=0o700)
        for file in sorted(path.iterdir()):
            if file.suffix == ".sst":
                link_or_copy(file, copy / file.name)
            elif file.suffix == ".log" or file.name.startswith(_COPIED):
                shutil.copyfile(file, copy / file.name)
        _cut(copy)
        reach("salvage.copy.after")
    return copy


def _cut(copy: Path) -> None:
    """Cut the first damaged log; empty those behind it."""
    findings = list(walguard.findings(copy))
    for finding in findings:
        if finding.file.suffix != ".log":
            raise StoreCorrupt(str(finding))
    for log in logs(copy) if findings else ():
        if log == findings[0].file:
            os.truncate(log, findings[0].offset)
        elif log.name > findings[0].file.name:
            os.truncate(log, 0)


def logs(path: Path) -> list[Path]:
    """Its write-ahead logs, the oldest first."""
    return sorted(path.glob("*.log"))


def put_in_place(path: Path, copy: Path) -> None:
    """Replace the logs of the store by those that were cut; each is replaced whole or not at all."""
    with system_errors(path):
        reach("salvage.replace.before")
        for log in logs(copy):
            if log.stat().st_size != (path / log.name).stat().st_size:
                with log.open("rb") as file:
                    os.fsync(file.fileno())
                log.replace(path / log.name)
        sync_directory(path)
        reach("salvage.replace.after")


def discard(copy: Path) -> None:
    """Remove the copy, if it is there."""
    if os.path.lexists(copy):
        shutil.rmtree(copy)  # refuses a symbolic link
