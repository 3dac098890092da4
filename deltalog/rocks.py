"""The one door to rocksdict: open, write, read, map errors. Only this file and `profiles` import it.

What lives here: column families of raw bytes, how a RocksDB directory is opened and closed, what its errors mean.
What this file does not know: deltas, keys, trio, who retries. Everything is synchronous and may be called from any
thread. Measured on rocksdict 0.3.29 (RocksDB 9.8.4):

| what rocksdict does                                               | handled in                                 |
|-------------------------------------------------------------------|--------------------------------------------|
| every failure is a bare `Exception`; only the text tells          | `mapped_errors`                            |
| `write(sync=True)` holds the GIL through the fsync                | `write`, then `sync`, which releases it    |
| a stalled write holds the GIL too                                 | no_slowdown: StoreBackpressure instead     |
| keys()/items()/values() end silently at a damaged block           | `Cursor`: an iterator and its status       |
| an iterator's lower bound is taken for its upper; the upper is a  | `Cursor` ends its reads itself             |
| pointer to bytes that nobody keeps: the answer is short           |                                            |
| a damaged log makes open spin for ever, or comes up short         | `walguard` before every open               |
| a second try at a failed open can come up empty, deleting files   | `open` never creates, never tries again    |
| killed while it creates: a directory neither missing nor usable   | `create` renames a finished one            |
| a failed or read-only open too rewrites rocksdict-config.json     | all options and families are passed, so    |
| and starts a LOG file                                             | nothing is ever taken from there           |
| an inverted range, or another database's family, in a batch:      | `Batch` checks; families are looked up     |
| part of it stays, the handle is dead                              | at `write`                                 |
| a refused write has used its WriteBatch up                        | `Batch` keeps the operations               |
| `flush` is one family's; a crash leaves families of unequal age   | `_flush_together`                          |
| `compact_range` reports nothing                                   | `_raise_background_error`                  |
| `close` with an iterator alive leaves the LOCK held               | `close` refuses, and looks at LOCK after   |
| a forked child has RocksDB's memory, and none of its threads      | `rocks_fork`                               |
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from rocksdict import (
    AccessType,
    BottommostLevelCompaction,
    ColumnFamily,
    CompactOptions,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from deltalog import rocks_directory, rocks_fork, walguard
from deltalog.errors import StoreBackpressure, StoreBusy, StoreClosed, StoreCorrupt, StoreError, StoreUsageError
from deltalog.profiles import FamilyProfile, SharedMemory, WalTail, options
from deltalog.rocks_errors import mapped_errors
from deltalog.rocks_values import Batch, FileInfo, Health, refuse_inverted, refuse_not_bytes
from deltalog.rocks_view import Cursor, KeyValue, View

__all__ = [
    "Batch",
    "FamilyProfile",
    "FileInfo",
    "Health",
    "Rocks",
    "SharedMemory",
    "View",
    "WalTail",
    "mapped_errors",
]

DEFAULT: Final = "default"
"""The family RocksDB insists on. It stays empty."""
UNFLUSHED: Final = "memtable/WAL"
"""What `Rocks.file_of` says of data that no sorted file holds yet."""


class _Use(mapped_errors):
    """A call on a handle: counted while it lasts, refused if the handle is closed (or, when it writes, dead)."""

    __slots__ = ("rocks", "writes")

    def __init__(self, rocks: Rocks, doing: str, *, writes: bool = False) -> None:
        super().__init__(doing)
        self.rocks, self.writes = rocks, writes

    def __enter__(self) -> Rdict:
        return self.rocks._enter(self.doing, self.writes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.rocks._leave(self.doing)
        if error is not None:
            self.doing += f", {self.rocks.path}"
            super().__exit__(kind, error, traceback)

    def saw(self, error: StoreError) -> None:
        if self.writes and not isinstance(error, StoreBackpressure) and not self.rocks._dead():
            self.rocks._last_error = error


# -------------------------------------------------------------------------------------------------------- the handle


class Rocks:
    """One open RocksDB directory. Made by `create`, `open` or `open_read_only`.

    After an error with `handle_dead` of a write, sync, flush or compaction, further ones are refused with the same
    class of error (`indeterminate` is then False: they were not tried); reads go on. Close, look, open once more.
    """

    def __init__(
        self, path: Path, families: Mapping[str, FamilyProfile], memory: SharedMemory, db: Rdict, *, writable: bool
    ) -> None:
        """Only for `create`, `open` and `open_read_only`."""
        # constant after construction
        self.path: Final = path
        self.families: Final = frozenset(families)
        self._memory: Final = memory
        self._writable: Final = writable
        self._lock_id: Final = rocks_directory.lock_id(path)
        # under _guard
        self._guard = threading.Lock()
        self._in_flight: Counter[str] = Counter()
        self._gone: str | None = None
        """Why no call is taken any more."""
        # rocksdict's objects, which nobody else may keep: one left alive keeps the LOCK
        self._db: Rdict | None = db
        self._family: dict[str, Rdict] = {name: db.get_column_family(name) for name in families}
        self._handle: dict[str, ColumnFamily] = {name: db.get_column_family_handle(name) for name in families}
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        # held while a batch is applied and while a view is taken, so that a view has all of a batch or nothing
        self._writing = threading.Lock()
        # published
        self._last_error: StoreError | None = None
        rocks_fork.opened(self)

    # ------------------------------------------------------------------------------------------------ open and close

    @classmethod
    def create(cls, path: str | os.PathLike[str], families: Mapping[str, FamilyProfile], memory: SharedMemory) -> Rocks:
        """Make a new, empty instance at `path` (absent, or an empty directory) and open it.

        All or nothing: it is made in `<path>.creating` and renamed; what a crash left there is removed. The caller's
        own lock keeps other processes from creating the same path meanwhile. Raises StoreUsageError, StoreMissing (no
        parent directory) or StoreIOError.
        """
        path = rocks_directory.absolute(path)
        _refuse_misuse(families)
        rocks_directory.refuse_occupied(path)
        unfinished = path.with_name(path.name + ".creating")
        with mapped_errors(f"create {path}"):
            if unfinished.exists():
                shutil.rmtree(unfinished)  # refuses a symbolic link
            unfinished.mkdir(mode=0o700)
            _rdict(unfinished, families, memory, create=True).close()
            unfinished.rename(path)
            rocks_directory.sync_directory(path.parent)
        return cls.open(path, families, memory)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        families: Mapping[str, FamilyProfile],
        memory: SharedMemory,
        *,
        wal_tail: WalTail = "refuse",
    ) -> Rocks:
        """Open for reading and writing what exists. `families` are all its column families but "default".

        Raises StoreMissing (never creates), StoreCorrupt, StoreInUse, StoreFormatMismatch, StoreFull (recovery writes)
        or StoreIOError. Do not simply call it again after one: RocksDB deletes files that it does not expect.
        """
        path = rocks_directory.absolute(path)
        _refuse_misuse(families)
        _refuse_damaged(path, wal_tail)
        with mapped_errors(f"open {path}"):
            return cls(path, families, memory, _rdict(path, families, memory, wal_tail=wal_tail), writable=True)

    @classmethod
    def open_read_only(
        cls,
        path: str | os.PathLike[str],
        families: Mapping[str, FamilyProfile],
        memory: SharedMemory,
        *,
        wal_tail: WalTail = "refuse",
    ) -> Rocks:
        """Open for reading what exists, as it is now.

        Beside a writer that compacts meanwhile this may raise StoreCorrupt or StoreIOError although nothing is damaged:
        RocksDB misses files that the compaction has just removed. It never gives a wrong answer. So believe such an
        error only while nobody has the directory open for writing.

        The preflight of a safe open: deletes nothing, and creates nothing but LOG files and a rocksdict-config.json
        that nothing reads; for these the directory must be writable. Raises as `open` does, but for StoreInUse.
        """
        path = rocks_directory.absolute(path)
        _refuse_misuse(families)
        _refuse_damaged(path, wal_tail)
        with mapped_errors(f"open {path} for reading"):
            access = AccessType.read_only(error_if_log_file_exist=False)
            return cls(
                path, families, memory, _rdict(path, families, memory, access, wal_tail=wal_tail), writable=False
            )

    def close(self) -> None:
        """Sync, flush, close; LOCK is free on return. Idempotent.

        Raises StoreBusy, and closes nothing, while calls, scans or views are in flight. An error of the sync or flush
        is raised after everything is closed all the same, unless it is one that a write has reported before.
        """
        with self._guard:
            if self._gone == "closed":
                return
            self._refuse_closed("close")
            if self._in_flight:
                raise StoreBusy(f"close {self.path}: in flight: {', '.join(sorted(self._in_flight))}")
            self._gone = "closed"
        rocks_fork.closed(self)
        try:
            with mapped_errors(f"close {self.path}"):
                self._shut()
        except StoreError:
            if not self._dead():
                raise
        finally:
            if self._writable and self._lock_id is not None and rocks_directory.is_open_here(self._lock_id):
                raise StoreBusy(f"close {self.path}: LOCK is still held: something else refers to the database")

    def _shut(self) -> None:
        """Close all of rocksdict's objects, whatever one of them raises; then raise the first error."""
        assert self._db is not None
        if self._writable:
            _flush_together(self._db)  # else each family's close below would flush that family alone
        self._handle.clear()
        errors = []
        for rdict in (*self._family.values(), self._db):
            try:
                rdict.close()
            except Exception as error:  # noqa: BLE001  # mapped by the caller
                errors.append(error)
        self._family.clear()
        self._db = None
        if errors:
            raise errors[0]

    def __del__(self) -> None:
        if getattr(self, "_gone", "never made") is None:
            warnings.warn(f"{self.path} was not closed", ResourceWarning, stacklevel=1, source=self)

    # -------------------------------------------------------------------------------------------------- calls counted

    def _enter(self, doing: str, writes: bool) -> Rdict:
        with self._guard:
            self._refuse_closed(doing)
            if writes and (dead := self._dead()):
                refused = type(dead)(f"{doing}: not tried after an earlier failure: {dead}")
                refused.indeterminate = False  # type: ignore[misc]  # this one is certain: nothing was done
                raise refused
            self._in_flight[doing] += 1
        assert self._db is not None
        return self._db

    def _leave(self, doing: str) -> None:
        with self._guard:
            self._in_flight[doing] -= 1
            if not self._in_flight[doing]:
                del self._in_flight[doing]

    def _dead(self) -> StoreError | None:
        """Return the error after which nothing more is written, if there was one."""
        return self._last_error if self._last_error is not None and self._last_error.handle_dead else None

    def _refuse_closed(self, doing: str) -> None:
        if self._gone is not None:
            raise StoreClosed(f"{doing}: {self.path} is {self._gone}")

    def _rdict_of(self, family: str) -> Rdict:
        rdict = self._family.get(family)
        if rdict is None:
            raise StoreUsageError(f"no column family {family!r}; there are {sorted(self.families)}")
        return rdict

    # ---------------------------------------------------------------------------------------------------------- write

    def batch(self) -> Batch:
        """Return an empty batch for `write`."""
        return Batch(self.families)

    def write(self, batch: Batch) -> None:
        """Apply a batch: on return it is visible, and in the WAL in the page cache (survives kill -9, not power loss).

        Holds the GIL meanwhile, so keep batches small. Raises StoreBackpressure, not applied, while RocksDB is behind:
        write the same batch again some milliseconds later. An error that is `indeterminate` may have applied it.
        """
        with _Use(self, "write", writes=True) as db:
            raw = WriteBatch(raw_mode=True)
            handles = self._handle  # no variable for one of them: a traceback would keep it, and it the LOCK
            for method, family, key, value in batch.operations:
                if family not in handles:
                    raise StoreUsageError(f"write: a batch of another store, with family {family!r}")
                if method == "put":
                    raw.put(key, value, handles[family])
                elif method == "delete":
                    raw.delete(key, handles[family])
                else:
                    raw.delete_range(key, value, handles[family])
            with self._writing:
                db.write(raw, _WRITE_OPTIONS)

    def sync(self) -> None:
        """Make every write durable that returned before this call (fsync of the WAL). Releases the GIL."""
        with _Use(self, "sync", writes=True) as db:
            db.flush_wal(True)

    # ----------------------------------------------------------------------------------------------------------- read

    def get(self, family: str, key: bytes) -> bytes | None:
        """Return the value of `key`, None if there is none. Raises StoreCorrupt if its block is damaged."""
        with _Use(self, "get"):
            refuse_not_bytes("get", key)
            value: bytes | None = self._rdict_of(family).get(key)
            return value

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, in order. The one read that releases the GIL."""
        with _Use(self, "get_many"):
            refuse_not_bytes("get_many", *keys)
            values: Any = self._rdict_of(family).get(list(keys))
            return list(values)

    def scan(
        self, family: str, *, begin: bytes = b"", end: bytes | None = None, reverse: bool = False
    ) -> Generator[KeyValue, None, None]:
        """Yield keys and values of [begin, end) in order, as of this call. `end` None is the end of the family.

        Raises StoreCorrupt at a damaged block; never ends short of it. Holds the GIL in each step. In flight until it
        is used up, closed or dropped: close it (`contextlib.closing`) when leaving early.
        """
        refuse_inverted(f"scan of {family}", begin, end)
        walk = self._walk(family, begin, end, reverse)
        next(walk)  # its first yield: the moment is fixed, and from there on its `finally` runs even if it is dropped
        return walk

    def _walk(self, family: str, begin: bytes, end: bytes | None, reverse: bool) -> Generator[KeyValue, None, None]:
        with _Use(self, f"scan of {family}"):
            cursor = self._new_cursor(family)
            try:
                yield b"", b""
                yield from cursor.walk(begin, end, reverse=reverse)
            finally:
                cursor.release()

    def forget_cached(self) -> None:
        """Drop what reads have left in the block cache, of all that share it: the next reads look at the disk again.

        What an open file keeps for itself (its footer; its index while it is young) was read when it was opened.
        """
        self._memory.forget_cached()

    def seek_last(self, family: str, at_most: bytes, at_least: bytes = b"") -> KeyValue | None:
        """Return the greatest key in [at_least, at_most], both inclusive, with its value; None if there is none."""
        refuse_not_bytes(f"seek in {family}", at_most, at_least)
        with _Use(self, f"seek in {family}"):
            cursor = self._new_cursor(family)
            try:
                return cursor.last(at_most, at_least)
            finally:
                cursor.release()

    def view(self, *families: str) -> View:
        """Return a view of the families (all if none is named) at one moment: no batch is half in it."""
        doing = f"view of {', '.join(families) or 'all families'}"
        self._enter(doing, writes=False)
        try:
            with mapped_errors(doing), self._writing:
                cursors = {family: self._new_cursor(family) for family in families or self.families}
        except BaseException:
            self._leave(doing)
            raise
        return View(f"{doing}, {self.path}", cursors, lambda: self._leave(doing))

    def _new_cursor(self, family: str) -> Cursor:
        cursor = Cursor(self._rdict_of(family).iter())  # without bounds: see the table
        self._cursors.add(cursor)
        return cursor

    # ---------------------------------------------------------------------------------------------------- maintenance

    def flush(self) -> None:
        """Write all families' memory to files in one atomic step, and drop the WAL that held it. Releases the GIL.

        Nothing needs it for durability.
        """
        with _Use(self, "flush", writes=True) as db:
            _flush_together(db)
            _raise_background_error(db)

    def compact(self, family: str | None = None, begin: bytes | None = None, end: bytes | None = None) -> None:
        """Flush, then merge all files of [begin, end) of a family (of each if None) down to the last level.

        Afterwards no file holds what was deleted or replaced in the range before, but those that an open scan or view
        still needs. Releases the GIL. Raises StoreCorrupt if a damaged block was met: no file is lost, and RocksDB
        takes no more writes. Damage in files that it had no need to read, or in blocks that it took from the cache, is
        not noticed.
        """
        refuse_inverted("compact", begin, end)
        merge = CompactOptions()
        merge.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        with _Use(self, "compact", writes=True) as db:
            _flush_together(db)
            for name in sorted(self.families) if family is None else [family]:
                self._rdict_of(name).compact_range(begin, end, merge)
            _raise_background_error(db)

    # ------------------------------------------------------------------------------------------------------ statistics

    def sequence_number(self) -> int:
        """Return how many operations were ever applied. It falls if a WAL was removed or emptied."""
        with _Use(self, "sequence_number") as db:
            return db.latest_sequence_number()

    def files(self) -> list[FileInfo]:
        """Return the sorted files by family, level and age, the youngest first."""
        with _Use(self, "files") as db:
            while True:
                owners = _owners({DEFAULT: db, **self._family})
                live = db.live_files()
                if all(_name(file) in owners for file in live):  # else a compaction made one between the two reads
                    found = [_file_info(file, owners) for file in live]
                    return sorted(found, key=lambda file: (file.family, file.level, -int(file.name.partition(".")[0])))

    def file_of(self, family: str, key: bytes) -> str | None:
        """Return the youngest file whose range covers `key`, `UNFLUSHED` if only memory can hold it, None if nothing.

        For messages. Memory may hold a younger value; a file need not hold a key that its range covers.
        """
        with _Use(self, "file_of"):  # memory first: what a flush takes from it meanwhile is in the files read after
            rdict = self._rdict_of(family)
            in_memory = any(rdict.property_int_value(name) for name in _MEMORY_COUNTS)
        for file in self.files():
            if file.family == family and file.first_key <= key <= file.last_key:
                return file.name
        return UNFLUSHED if in_memory else None

    def size_bytes(self) -> int:
        """Return what the directory takes on disk, as `du` counts: allocated blocks of all its files, WAL and LOG too.

        Counts in full what other directories share by hard links.
        """
        with mapped_errors(f"size of {self.path}"):
            return rocks_directory.allocated_bytes(self.path)

    def health(self) -> Health:
        """Return what can be told without reading data. Never raises."""
        errors, stopped = 0, False
        try:
            with _Use(self, "health") as db:
                errors = db.property_int_value("rocksdb.background-errors") or 0
                stopped = bool(db.property_int_value("rocksdb.is-write-stopped"))
        except StoreError:
            pass  # closed or forked, as `closed` says
        return Health(
            background_errors=errors,
            write_stopped=stopped,
            lock_ours=self._lock_id is not None and rocks_directory.lock_id(self.path) == self._lock_id,
            closed=self._gone is not None,
            in_flight=self._in_flight.total(),
            last_error=self._last_error,
        )

    # ----------------------------------------------------------------------------------------------------------- fork

    def abandon(self) -> None:
        """In a forked child: refuse every call. See `rocks_fork`."""
        iterators = [cursor.abandon() for cursor in self._cursors]
        rocks_fork.never_drop(self._db, *self._family.values(), *self._handle.values(), *iterators)
        self._guard = threading.Lock()  # some thread of the parent may have held the old one
        self._gone = "open in the process that this one was forked from, and cannot be used here"


# ------------------------------------------------------------------------------------------------ calls on rocksdict


def _no_slowdown() -> WriteOptions:
    made = WriteOptions()
    made.no_slowdown = True
    return made


_WRITE_OPTIONS: Final = _no_slowdown()
_FILE_NUMBER: Final = re.compile(r"^ *(\d+):\d+\[", re.MULTILINE)
_MEMORY_COUNTS: Final = ("rocksdb.num-entries-active-mem-table", "rocksdb.num-entries-imm-mem-tables")


def _rdict(
    path: Path,
    families: Mapping[str, FamilyProfile],
    memory: SharedMemory,
    access: AccessType | None = None,
    *,
    wal_tail: WalTail = "refuse",
    create: bool = False,
) -> Rdict:
    instance = options(FamilyProfile(), memory, wal_tail)
    instance.create_if_missing(create)
    instance.create_missing_column_families(create)
    each = {name: options(profile, memory, wal_tail) for name, profile in families.items()}
    return Rdict(str(path), instance, {DEFAULT: instance, **each}, access or AccessType.read_write())


def _refuse_misuse(families: Mapping[str, FamilyProfile]) -> None:
    rocks_fork.refuse_without_threads()
    if DEFAULT in families:
        raise StoreUsageError(f"the family {DEFAULT!r} is always there and stays empty; name others")


def _refuse_damaged(path: Path, wal_tail: WalTail) -> None:
    """Raise for what RocksDB would misread. A WAL's bad length is what `drop` cuts off; a MANIFEST's never is."""
    rocks_directory.refuse_unopenable(path)
    with mapped_errors(f"look into {path}"):
        for finding in walguard.findings(path):
            if not (wal_tail == "drop" and finding.kind == "length" and finding.file.suffix == ".log"):
                raise StoreCorrupt(str(finding))


def _flush_together(db: Rdict) -> None:
    """With atomic_flush a manual compaction first flushes all families in one step; in "default" it finds no more to
    do. (`Rdict.flush` flushes its own family only.)"""
    db.compact_range(None, None)


def _raise_background_error(db: Rdict) -> None:
    """Compactions, and the flush above, report nothing; the next write does. So write nothing."""
    db.write(WriteBatch(raw_mode=True), _WRITE_OPTIONS)


def _owners(families: Mapping[str, Rdict]) -> dict[str, str]:
    """Return the family of each sorted file; `Rdict.live_files` does not say."""
    return {
        f"{int(number):06d}.sst": family
        for family, rdict in families.items()
        for number in _FILE_NUMBER.findall(rdict.property_value("rocksdb.sstables") or "")
    }


def _name(file: Mapping[str, Any]) -> str:
    return str(file["name"]).lstrip("/")


def _file_info(file: Mapping[str, Any], owners: Mapping[str, str]) -> FileInfo:
    return FileInfo(
        name=_name(file),
        family=owners[_name(file)],
        level=file["level"],
        size_bytes=file["size"],
        first_key=file["start_key"] or b"",
        last_key=file["end_key"] or b"",
        entries=file["num_entries"],
        deletions=file["num_deletions"],
    )
