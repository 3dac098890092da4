"""A RocksDB directory seen from outside: is it there, is it one, how large is it, who has it locked.

Knows file names only; never opens a file of the directory. That matters for LOCK: closing any descriptor of it would
give the process's lock away (POSIX).
"""

from __future__ import annotations

import os
from pathlib import Path

from deltalog.errors import StoreCorrupt, StoreFormatMismatch, StoreMissing, StoreUsageError

LOCK = "LOCK"
FileId = tuple[int, int]
"""Device and inode."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return `path` as it will be given to RocksDB. Raises `StoreUsageError` for what is no path."""
    text = os.fspath(path)
    if type(text) is not str or not text or "\0" in text:
        raise StoreUsageError(f"a store's path is text without NUL, not {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreUsageError(f"a store's path must be UTF-8, for RocksDB's binding: {text!r}") from None
    return Path.cwd() / text


def refuse_unopenable(path: Path) -> None:
    """Tell missing, damaged and foreign directories apart, before RocksDB makes something of them.

    Raises StoreMissing (nothing there, or no store in it), StoreCorrupt (a store without its CURRENT, which RocksDB
    would replace by an empty one) or StoreFormatMismatch (not a directory, or symbolic links).
    """
    if not os.path.lexists(path):
        raise StoreMissing(f"open {path}: there is no such directory")
    if path.is_symlink() or not path.is_dir():
        raise StoreFormatMismatch(f"open {path}: it is a {'symbolic link' if path.is_symlink() else 'file'}")
    with os.scandir(path) as entries:
        links = {entry.name: entry.is_symlink() for entry in entries}
    for name in sorted(links):
        if links[name]:
            raise StoreFormatMismatch(f"open {path}: {name!r} is a symbolic link; a store has none")
    if "CURRENT" not in links:
        for name in sorted(links):
            if name.startswith("MANIFEST-") or name.endswith((".sst", ".log")):
                raise StoreCorrupt(f"open {path}: CURRENT is missing, but there is {name!r}; nothing was changed")
        raise StoreMissing(f"open {path}: the directory holds no store")


def refuse_occupied(path: Path) -> None:
    """Raise unless a new store may be made at `path`: nothing there, or an empty directory; its parent exists."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            raise StoreUsageError(f"create {path}: it is not empty ({entry.name!r}) and may be somebody's")
    elif os.path.lexists(path):
        raise StoreUsageError(f"create {path}: there is something that is not a directory")
    if not path.parent.is_dir():
        raise StoreMissing(f"create {path}: there is no directory {path.parent}")


def allocated_bytes(path: Path) -> int:
    """Return the blocks allocated to the files of the directory, in bytes, as `du` counts them."""
    return sum(map(_allocated, path.iterdir()))


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0  # deleted by a compaction since the listing


def lock_id(path: Path) -> FileId | None:
    """Return which file is the directory's LOCK at present, None if there is none."""
    try:
        found = (path / LOCK).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_open_here(file: FileId) -> bool:
    """Whether this process has a descriptor of the file."""
    for descriptor in Path("/dev/fd").iterdir():
        try:
            found = os.fstat(int(descriptor.name))
        except OSError:
            continue  # the descriptor of the listing itself
        if (found.st_dev, found.st_ino) == file:
            return True
    return False


def sync_directory(path: Path) -> None:
    """Make a rename within the directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
