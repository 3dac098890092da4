"""The data directory from outside: what stands in it, who has it open, whose it is, what is set aside.

    DATA/
      deltalog.toml     format version, store id, source, created
      lock              held by whoever has the directory open; its text is for messages only
      witness           what was fsynced (see `witness`)
      reserve           room to give back when a full disk cannot be opened
      rocks/delta/      the RocksDB instance of the log (others stand beside it)
      backups/          what was set aside before something damaged was given up

A file of ours stands under its name whole or not at all: it is made as `<name>.new`, fsynced and renamed. What is not
ours is neither changed nor removed (invariant I15). Does not know: RocksDB, deltas, what the witness says.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import attrs

from deltalog.delta import Limits, check_source
from deltalog.errors import StoreCorrupt, StoreFormatMismatch, StoreInUse, StoreMissing, UsageError
from deltalog.failpoints import reach
from deltalog.rocks_directory import sync_directory
from deltalog.witness import system_errors

FORMAT: Final = 1
"""Version of the directory's layout."""
_OPENED: Final = {"deltalog.toml", "deltalog.toml.new", "lock", "witness", "witness.new", "reserve", "rocks", "backups"}
_KEYS: Final = {"node.key", "node.key.new", "node.crt", "node.crt.new", "cluster.key", "cluster.key.new"}
OURS: Final = frozenset(_OPENED | _KEYS)
_STORE_ID_BYTES: Final = 16
_LOCK_TEXT_MAX: Final = 32


def prepare(path: Path, *, create: bool) -> None:
    """See that there is a directory that is ours or may become so. Raises `UsageError`, `StoreMissing`, ..."""
    if not os.path.lexists(path):
        if not create:
            raise StoreMissing(f"{path} does not exist")
        _make(path)
    if not path.is_dir():
        raise UsageError(f"{path} is " + ("a symbolic link to nothing" if path.is_symlink() else "not a directory"))
    with system_errors(path):
        names = set(os.listdir(path))
    if "deltalog.toml" not in names:
        if names - OURS:
            raise UsageError(f"{path} is not a deltalog directory: it holds {min(names - OURS)!r} and no deltalog.toml")
        if not create:
            raise StoreMissing(f"{path} is no deltalog directory: it has no deltalog.toml")
    for name in sorted(names & OURS):
        if (path / name).is_symlink():
            raise StoreFormatMismatch(f"{path / name} is a symbolic link; what a data directory holds stands in it")


def _make(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreMissing(f"cannot make {path}: there is no directory {path.parent}")
    with system_errors(path):
        reach("directory.make.before")
        path.mkdir(mode=0o700)
        sync_directory(path.parent)
        reach("directory.make.after")


# --------------------------------------------------------------------------------------------------------------- lock


@attrs.define
class Lock:
    """The directory, held by this process. The kernel gives it back when the process ends, however it ends."""

    _descriptor: int
    _before: bytes

    @classmethod
    def take(cls, path: Path) -> Self:
        """Lock the directory. Raises `StoreInUse` naming the process that has it, if its text says so."""
        file = path / "lock"
        with system_errors(file):
            reach("directory.lock.before")
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with system_errors(file):
                text = os.pread(descriptor, _LOCK_TEXT_MAX, 0)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StoreInUse(f"{path} is open in {_holder(text)} already") from error
                lock = cls(descriptor, text)
                lock._write(f"{os.getpid()}\n".encode())
                reach("directory.lock.after")
            return lock
        except BaseException:
            os.close(descriptor)
            raise

    def release(self, *, undo: bool = False) -> None:
        """Give the directory back, with the lock's text as it was if `undo`. Idempotent."""
        if self._descriptor >= 0:
            if undo:
                self._write(self._before)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a forked child may have the descriptor too
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, text: bytes) -> None:
        with suppress(OSError):  # a full disk may have no room for it; nothing but a message depends on it
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))


def _holder(text: bytes) -> str:
    holder = text.decode("ascii", "replace").strip()
    return f"process {holder}" if holder.isdigit() else "another process"


# ----------------------------------------------------------------------------------------------------------- identity


@attrs.frozen
class Identity:
    """What deltalog.toml says."""

    store_id: bytes
    """16 random bytes, also in the store and in the witness."""
    source: str
    """Whom the directory was made for; what appends may be a later incarnation of it."""


def identify(path: Path, source: str | None) -> Identity:
    """Return whose directory it is; write that down first, for `source` or a new random name, if nothing is there yet.

    Raises `StoreMissing` if there is data without it, `StoreFormatMismatch`, `StoreCorrupt`, or `UsageError` if the
    directory is another source's.
    """
    file = path / "deltalog.toml"
    if not file.exists():
        if (path / "rocks").exists() or (path / "witness").exists():
            raise StoreMissing(f"{file} is missing, though data is there: restore it")
        return _write_identity(path, source)
    identity = _read_identity(file)
    if source is not None and source != identity.source:
        raise UsageError(f"{path} belongs to source {identity.source!r}; it cannot be opened as {source!r}")
    return identity


def _read_identity(file: Path) -> Identity:
    with system_errors(file):
        data = file.read_bytes()
    try:
        fields: dict[str, Any] = tomllib.loads(data.decode())
        if fields.get("format") != FORMAT:
            raise StoreFormatMismatch(f"{file}: format {fields.get('format')!r}; this program knows {FORMAT}")
        store_id = bytes.fromhex(fields["store_id"])
        check_source(fields["source"], Limits())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreCorrupt(f"{file}: {error!r}") from error
    if len(store_id) != _STORE_ID_BYTES:
        raise StoreCorrupt(f"{file}: store_id is {len(store_id)} bytes, not {_STORE_ID_BYTES}")
    return Identity(store_id, fields["source"])


def _write_identity(path: Path, source: str | None) -> Identity:
    source = source if source is not None else f"node-{secrets.token_hex(6)}"
    identity = Identity(secrets.token_bytes(_STORE_ID_BYTES), source)
    text = (
        "# Written by deltalog when this directory was made. Do not edit, do not copy to another node.\n"
        f"format = {FORMAT}\n"
        f'store_id = "{identity.store_id.hex()}"\n'
        f"source = {_toml_string(identity.source)}\n"
        f'created = "{datetime.now(UTC).isoformat(timespec="seconds")}"\n'
    )
    new = path / "deltalog.toml.new"
    with system_errors(new):
        new.unlink(missing_ok=True)
        reach("directory.identity.before")
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        reach("directory.identity.after")
        new.rename(path / "deltalog.toml")
        sync_directory(path)
    return identity


def _toml_string(text: str) -> str:
    """A TOML basic string: as JSON, but for the one control character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# -------------------------------------------------------------------------------------------------- reserve, backups


def make_reserve(path: Path, size_bytes: int) -> bool:
    """Set room aside; False if the disk has not that much to spare (three times as much must be free)."""
    file = path / "reserve"
    with suppress(FileNotFoundError):
        size_bytes -= file.lstat().st_blocks * 512
    if size_bytes <= 0:
        return True
    free = os.statvfs(path)
    if free.f_bavail * free.f_frsize < 3 * size_bytes:
        return False
    reach("directory.reserve.before")
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_blocks * 512, size_bytes)
        finally:
            os.close(descriptor)
    except OSError:
        file.unlink(missing_ok=True)
        return False
    reach("directory.reserve.after")
    return True


def give_back_reserve(path: Path) -> bool:
    """Free the room that was set aside; False if there was none."""
    try:
        (path / "reserve").unlink()
    except FileNotFoundError:
        return False
    return True


def set_aside(path: Path, what: str, files: Iterable[Path]) -> Path:
    """Keep files, as they are, in a new directory in backups/; durable on return. They stay where they are, too."""
    aside = path / "backups" / f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    with system_errors(aside):
        aside.mkdir(mode=0o700, parents=True)
        for file in files:
            link_or_copy(file, aside / file.name)
        for directory in (aside, aside.parent, path):
            sync_directory(directory)
    return aside


def link_or_copy(file: Path, to: Path) -> None:
    """Give a file a second name, or where the file system has no hard links, a durable copy."""
    try:
        os.link(file, to)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(file, to)
        with to.open("rb") as copy:
            os.fsync(copy.fileno())
