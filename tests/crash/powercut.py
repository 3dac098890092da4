"""What the disk holds after the power went: the journal of the shim's children, applied to their files by a policy.

What lives here: the policies, and the way back from a file to what its last fsync left. It knows nothing of the
programs whose files it rewrites, and of fsync only what journal.py settled. shim.c says what is modelled and what not.

Going backwards through the changes of a file and putting old bytes back over the unsynced ones, wherever no later
synced change decided, gives what the last fsync left (`Doubt.before`). With the bytes the process left (`after`) and a
mark on each byte in doubt (`marks`), each policy is a few lines.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self, get_args

import attrs

from tests.crash.journal import Change, Event, Inode, Kind, read_life

Policy = Literal["truncate", "zero", "garbage", "hole", "dirloss"]
"""What becomes of the bytes that were written but not fsynced.

* truncate: gone; every file is what its last fsync left, in size and content.
* zero: the file keeps its size; the bytes read as zeros, or as what they overwrote.
* garbage: the file keeps its size; new bytes are random, overwritten ones are old or new by the page.
* hole: the file keeps its size; each page keeps its unsynced bytes, or loses them all (then as in `zero`).
* dirloss: as truncate, and every create, rename, link and unlink is undone that no later fsync of the directory or of
  the file made durable; unlinks only if the child ran with `keep_unlinked`. (Under the others names always survive.)
"""

POLICIES: tuple[Policy, ...] = get_args(Policy)
PAGE_BYTES = 4096


@attrs.frozen
class FileChange:
    """A file with unsynced changes when the power went."""

    path: Path
    size_before: int
    size_after: int
    unsynced_bytes: int
    """Bytes in doubt."""
    dropped_bytes: int
    """Those of them the policy took away or replaced."""


@attrs.frozen
class PowerCutReport:
    """What a power cut did. `policy` and `seed` give it again from the same files."""

    policy: Policy
    seed: int
    files: tuple[FileChange, ...]
    entries: tuple[str, ...]
    """Names undone, latest first, in words."""
    mapped: tuple[str, ...]
    """Files that were mapped for writing: what was written through the mapping was left alone."""

    @property
    def dropped_bytes(self) -> int:
        """Bytes taken away or replaced in all files."""
        return sum(change.dropped_bytes for change in self.files)


def power_cut(root: Path, state: Path, policy: Policy, seed: int) -> PowerCutReport:
    """Rewrite the files below `root` as a power cut could have left them, and forget the journal.

    Every process that ran with `state` must be dead. Afterwards what is there is durable: a new life may begin.
    """
    life = read_life(state)
    entries = tuple(_undo_entries(life.entries, state)) if policy == "dirloss" else ()
    files = []
    for inode, path in {_inode(path): path for path in sorted(root.rglob("*"))}.items():
        if any(change.fate != "synced" for change in life.contents.get(inode, ())):
            chance = random.Random(f"{seed}:{path.relative_to(root)}")
            files.append(_cut(path, life.contents[inode], policy, chance))
    shutil.rmtree(state / "kept", ignore_errors=True)
    (state / "kept").mkdir(parents=True)
    (state / "journal").unlink(missing_ok=True)
    return PowerCutReport(policy, seed, tuple(files), entries, tuple(sorted(life.mapped)))


def _inode(path: Path) -> Inode:
    at = path.lstat()
    return at.st_dev, at.st_ino


# ---------------------------------------------------------------------------------------------------------- content


@attrs.frozen
class Doubt:
    """One file between its last fsync and the power cut."""

    before: bytes
    """What the last fsync left."""
    after: bytes
    """What the process left."""
    fallback: bytes
    """As long as `after`: what a byte in doubt reads as if it did not reach the disk."""
    marks: bytes
    """As long as `after`: 1 for each byte in doubt."""


def _cut(path: Path, changes: list[Change], policy: Policy, chance: random.Random) -> FileChange:
    doubt = _doubt(path.read_bytes(), changes)
    result, dropped = CUTS[policy](doubt, chance)
    with path.open("r+b") as file:  # in place: other names of the inode see it too
        file.write(result)
        file.truncate()
    return FileChange(path, len(doubt.after), len(result), doubt.marks.count(1), dropped)


def _doubt(after: bytes, changes: list[Change]) -> Doubt:
    first = next(number for number, change in enumerate(changes) if change.fate != "synced")
    undo = _Undo.start(after, changes[first:])
    for change in reversed(changes[first:]):
        if change.fate == "synced":
            undo.decide(change.event)
        elif change.event.kind is Kind.DIRTY:
            undo.restore(change.event)
        else:
            undo.resize(change.event)
    return undo.doubt(after)


@attrs.define
class _Undo:
    """Goes backwards through the changes of one file. All arrays have a byte for each byte the file ever had."""

    size: int
    """Of what the last fsync left; fixed by the newest synced change."""
    before: bytearray
    marks: bytearray
    """1: in doubt."""
    decided: bytearray
    """1: a later synced change, passed already, says what is there."""
    cleared: bytearray
    """1: cut off by an unsynced change of size, so what was there cannot come back if the size did reach the disk."""
    size_decided: bool = False

    @classmethod
    def start(cls, after: bytes, changes: list[Change]) -> Self:
        extent = max(len(after), *(max(c.event.offset + c.event.length, c.event.old_size) for c in changes))
        return cls(
            size=len(after),
            before=bytearray(after.ljust(extent, b"\0")),
            marks=bytearray(extent),
            decided=bytearray(extent),
            cleared=bytearray(extent),
        )

    def decide(self, event: Event) -> None:
        """Pass a synced change."""
        until = event.offset + event.length if event.kind is Kind.DIRTY else len(self.before)
        self.decided[event.offset : until] = b"\1" * (until - event.offset)
        self.size_decided = True

    def restore(self, event: Event) -> None:
        """Pass an unsynced write: its old bytes come back, zeros where there were none."""
        old = event.data.ljust(event.length, b"\0")
        for start, until in runs(self.decided, 0, event.offset, event.offset + event.length):
            self.before[start:until] = old[start - event.offset : until - event.offset]
            self.marks[start:until] = b"\1" * (until - start)
        self.shrink(event)

    def resize(self, event: Event) -> None:
        """Pass an unsynced change of size. What it cut off stands in writes that come next."""
        for start, until in runs(self.decided, 0, event.offset, event.old_size):
            self.cleared[start:until] = b"\1" * (until - start)
        self.shrink(event)

    def shrink(self, event: Event) -> None:
        """Take the size back to what an unsynced change found."""
        if not self.size_decided:
            self.size = event.old_size

    def doubt(self, after: bytes) -> Doubt:
        """The result, once every change was passed."""
        before = bytes(self.before[: self.size])
        fallback = bytearray(before.ljust(len(after), b"\0")[: len(after)])
        for start, until in runs(self.cleared, 1, 0, len(after)):
            fallback[start:until] = bytes(until - start)
        return Doubt(before, after, bytes(fallback), bytes(self.marks[: len(after)]))


def runs(mask: bytes | bytearray, value: int, start: int, until: int) -> Iterator[tuple[int, int]]:
    """The stretches of `value` in mask[start:until]; the mask holds only 0 and 1."""
    while start < until and (start := mask.find(value, start, until)) >= 0:
        end = mask.find(1 - value, start, until)
        yield start, (end := until if end < 0 else end)
        start = end


def pages(start: int, until: int) -> Iterator[tuple[int, int]]:
    """[start, until) cut at page boundaries."""
    while start < until:
        end = min(until, (start // PAGE_BYTES + 1) * PAGE_BYTES)
        yield start, end
        start = end


def _truncate(doubt: Doubt, chance: random.Random) -> tuple[bytes, int]:
    return doubt.before, doubt.marks.count(1)


def _zero(doubt: Doubt, chance: random.Random) -> tuple[bytes, int]:
    return _by_page(doubt, lambda start, until: doubt.fallback[start:until])


def _hole(doubt: Doubt, chance: random.Random) -> tuple[bytes, int]:
    kept: dict[int, bool] = defaultdict(lambda: chance.random() < 0.5)
    return _by_page(doubt, lambda start, until: None if kept[start // PAGE_BYTES] else doubt.fallback[start:until])


def _garbage(doubt: Doubt, chance: random.Random) -> tuple[bytes, int]:
    kept: dict[int, bool] = defaultdict(lambda: chance.random() < 0.5)

    def other(start: int, until: int) -> bytes:
        source = doubt.after if kept[start // PAGE_BYTES] else doubt.fallback
        overwritten = source[start : min(until, len(doubt.before))]
        return overwritten + chance.randbytes(until - start - len(overwritten))

    return _by_page(doubt, other)


def _by_page(doubt: Doubt, other: Callable[[int, int], bytes | None]) -> tuple[bytes, int]:
    """`after`, with what `other` gives for each stretch of bytes in doubt within a page; None leaves it."""
    result, dropped = bytearray(doubt.after), 0
    for run in runs(doubt.marks, 1, 0, len(doubt.after)):
        for start, until in pages(*run):
            if (content := other(start, until)) is not None:
                result[start:until] = content
                dropped += until - start
    return bytes(result), dropped


CUTS: dict[Policy, Callable[[Doubt, random.Random], tuple[bytes, int]]] = {
    "truncate": _truncate,
    "zero": _zero,
    "garbage": _garbage,
    "hole": _hole,
    "dirloss": _truncate,
}


# ------------------------------------------------------------------------------------------------------------ names


def _undo_entries(entries: list[Change], state: Path) -> Iterator[str]:
    for change in reversed(entries):
        if change.fate != "synced" and _undo_entry(change.event, state / "kept" / str(change.event.offset)):
            yield f"{change.event.kind.name.lower()} {' -> '.join(change.event.names)}"


def _undo_entry(event: Event, kept: Path) -> bool:
    """Take one name back. False if the files are not as that change left them: a later, durable one stands."""
    path = Path(event.names[-1])
    if event.kind is Kind.UNLINKED:
        possible = kept.exists() and not path.exists()
    else:
        possible = path.exists() and _inode(path) == event.inode
    if possible and event.kind is Kind.RENAMED:
        possible = not Path(event.names[0]).exists()
        if possible:
            path.rename(event.names[0])
    elif possible and event.kind is not Kind.UNLINKED:
        path.unlink()
    if possible and kept.exists():
        kept.rename(path)
    return possible
