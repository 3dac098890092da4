"""The journal of the shim: its records, and what of the changes in it an fsync made durable.

What lives here: the reader of what shim.c writes (it draws the records). What it does not know: the files as they are,
and what a power cut does to them (powercut.py).

A change is settled by the first fsync that began after it and ended: synced if that succeeded, lost if it failed. What
is open at the end of the journal was never fsynced; like what is lost, it is unsynced.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Literal

import attrs

Inode = tuple[int, int]
"""Device and number."""

RECORD = struct.Struct("<4sHHIIQQqqq")  # struct record in shim.c
RECORD_MAGIC = b"REC1"


class Kind(IntEnum):
    """enum event in shim.c."""

    DIRTY = 1
    RESIZED = 2
    SYNC_BEGIN = 3
    SYNC_END = 4
    CREATED = 5
    RENAMED = 6
    LINKED = 7
    UNLINKED = 8
    MAPPED = 9


@attrs.frozen
class Event:
    """One record of the journal; shim.c has the table of what the fields mean in each kind."""

    kind: Kind
    links: int
    inode: Inode
    offset: int
    length: int
    old_size: int
    names: tuple[str, ...]
    data: bytes


def read_journal(path: Path) -> Iterator[Event]:
    """All whole records. A torn one at the end belongs to an operation that was never done."""
    journal = path.read_bytes() if path.exists() else b""
    position = 0
    while position + RECORD.size <= len(journal):
        magic, kind, names_size, data_size, links, *figures = RECORD.unpack_from(journal, position)
        device, number, offset, length, old_size = figures
        names_at = position + RECORD.size
        data_at = names_at + names_size
        position = data_at + data_size
        if magic != RECORD_MAGIC or position > len(journal):
            return
        names = journal[names_at:data_at].decode(errors="surrogateescape").split("\0")
        real = tuple(os.path.normpath(name) for name in names if name)
        data = journal[data_at:position]
        yield Event(Kind(kind), links, (device, number), offset, length, old_size, real, data)


@attrs.define(eq=False)
class Change:
    """An event that an fsync makes durable."""

    event: Event
    fate: Literal["open", "synced", "lost"] = "open"


@attrs.define
class Life:
    """What the journal says about the time since the power came on."""

    contents: dict[Inode, list[Change]] = attrs.Factory(lambda: defaultdict(list))
    """DIRTY and RESIZED of each file, oldest first."""
    entries: list[Change] = attrs.Factory(list)
    """CREATED, RENAMED, LINKED and UNLINKED, oldest first."""
    mapped: set[str] = attrs.Factory(set)
    _waiting: dict[Inode, list[Change]] = attrs.Factory(lambda: defaultdict(list))
    """The open ones of `contents`, and maybe some that are not any more."""
    _waiting_entries: list[Change] = attrs.Factory(list)
    _syncs: dict[int, list[Change]] = attrs.Factory(dict)
    """What each fsync under way covers, by its token."""

    def follow(self, event: Event) -> None:
        """Take in the next event."""
        match event.kind:
            case Kind.DIRTY | Kind.RESIZED:
                self.contents[event.inode].append(change := Change(event))
                self._waiting[event.inode].append(change)
            case Kind.SYNC_BEGIN:
                self._syncs[event.offset] = self._covered(event)
            case Kind.SYNC_END:
                for change in self._syncs.pop(event.offset):
                    _settle(change, failed=event.length != 0)
            case Kind.MAPPED:
                self.mapped.add(event.names[0])
            case _:
                self._name(event)

    def _covered(self, sync: Event) -> list[Change]:
        self._waiting[sync.inode] = [change for change in self._waiting[sync.inode] if change.fate == "open"]
        self._waiting_entries = [change for change in self._waiting_entries if change.fate == "open"]
        entries = [change for change in self._waiting_entries if _covers(sync, change.event)]
        return self._waiting[sync.inode] + entries

    def _name(self, event: Event) -> None:
        self.entries.append(change := Change(event))
        self._waiting_entries.append(change)
        freed = event.kind is Kind.UNLINKED and event.links == 1 and event.offset == 0
        if freed or event.kind is Kind.CREATED:  # the number may be, or was, another file's
            self.contents.pop(event.inode, None)
            self._waiting.pop(event.inode, None)


def _covers(sync: Event, entry: Event) -> bool:
    """True if fsync of this directory or file makes the change of a name durable."""
    return sync.inode == entry.inode or os.path.dirname(entry.names[-1]) == sync.names[0]


def _settle(change: Change, *, failed: bool) -> None:
    if change.fate == "open" and not failed:
        change.fate = "synced"
    elif change.fate == "open" and change.event.kind in {Kind.DIRTY, Kind.RESIZED}:
        change.fate = "lost"


def read_life(state: Path) -> Life:
    """Follow the journal in `state` to its end."""
    life = Life()
    for event in read_journal(state / "journal"):
        life.follow(event)
    return life
