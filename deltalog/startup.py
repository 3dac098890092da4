"""Opening a data directory: lock, identity, witness, preflight, store; and what became of the tail.

    DATA/
      deltalog.toml     format version, store id, source, created
      lock              held by whoever has the directory open
      witness           what was fsynced (see `witness`)
      reserve           room to give back when a full disk cannot be opened
      rocks/delta/      the RocksDB instance of the log (others stand beside it)

Numbered as the code goes (`open_data`):

1. Lock. Before anything else is touched: even a failed open of RocksDB changes files.
2. Identity. deltalog.toml is written first when a directory is made, so whatever lacks it is not ours.
3. Witness. It says whether a store must exist, and what it held.
4. Preflight. RocksDB is opened for reading only, which deletes nothing; heads, chain hashes and tails are compared.
5. Open for writing, only if all that fits; the heads must be those of the preflight.
6. The tail. If dots may have been handed out and lost, this node goes on as a new incarnation of its source
   (invariant I1): it never guesses, so no dot is used twice.

Synchronous; runs in a worker thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tomllib
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import attrs

from deltalog import chain, keys
from deltalog.delta import Delta, Limits, check_source
from deltalog.errors import (
    DataLoss,
    ForeignData,
    StoreCorrupt,
    StoreFormatMismatch,
    StoreFull,
    StoreInUse,
    StoreMissing,
    UsageError,
)
from deltalog.keys import Head
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.witness import Testimony, Witness, boot_id

FORMAT: Final = 1
TAILS_MAX: Final = 1_000
"""Sources whose last block is verified at open; the rest is for `verify`."""
_OURS: Final = frozenset({"deltalog.toml", "deltalog.toml.new", "lock", "witness", "reserve", "rocks", "backups"})
_INCARNATION_BYTES: Final = 5


class Progress(Protocol):
    """Called now and then while a long open runs: what is being done, how much of it is done, of how much."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@attrs.frozen(kw_only=True)
class StartupReport:
    """How an open went."""

    kind: str
    """"created", "clean" (closed in order before), "unclean" (not closed, nothing lost that we handed out), "lost"."""
    source: str
    """The source that appends now."""
    incarnation_of: str
    """The source that appended before, if this open began a new incarnation; else ""."""
    reason: str
    """Why it did, or ""."""
    lost: Mapping[str, tuple[int, int]]
    """source -> first and last seq that were handed out or even fsynced and are gone."""
    sources: int
    deltas: int


@attrs.define
class OpenData:
    """An open data directory. `close` it last."""

    path: Path
    store: RocksStore
    witness: Witness
    source: str
    report: StartupReport
    recent: list[Delta]
    """The newest deltas, for the ring."""
    _lock: int = attrs.field(alias="lock")

    def testimony(self, sequence: int, *, clean: bool) -> Testimony:
        """What the witness is to remember: the store as it is, fsynced at `sequence`."""
        heads = self.store.heads()
        return Testimony(
            store_id=self.store.store_id,
            place=self.witness.place,
            boot=boot_id(),
            clean=clean,
            source=self.source,
            sequence=sequence,
            heads={source: (head.seq, head.hash) for source, head in heads.items()},
            total=sum(head.seq for head in heads.values()),
        )

    def close(self, *, clean: bool) -> None:
        """Close the store, then the witness, then give up the lock. Idempotent; `clean`: nothing was left unstored."""
        try:
            if clean:
                self.witness.record(self.testimony(self.store.sync(), clean=True), durable=True)
            self.store.close()
        finally:
            self.release()

    def release(self) -> None:
        """Give up witness and lock without a word to the store."""
        self.witness.close()
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may have the descriptor too
            os.close(self._lock)
            self._lock = -1


@attrs.frozen(kw_only=True)
class OpenOptions:
    """How to open a data directory."""

    source: str | None = None
    """Who appends; None: who did before, or a new random name. Fixed when the directory is made."""
    create: bool = True
    """Make the directory if it is not there."""
    accept_loss: bool = False
    """Go on with what is left when fsynced data is gone, as a new incarnation."""
    adopt: bool = False
    """Go on from a copied or restored directory, as a new incarnation."""
    reserve_bytes: int = 16 << 20
    """Room kept aside for opening on a full disk; 0: none."""


def open_data(path: Path, options: OpenOptions, memory: SharedMemory, recent: int, progress: Progress) -> OpenData:
    """Open a data directory safely, or make one. `recent`: how many of the newest deltas to read.

    Raises `StoreInUse`, `StoreMissing`, `StoreCorrupt`, `StoreFormatMismatch`, `StoreFull`, `StoreIOError`,
    `DataLoss`, `ForeignData`, `UsageError`; then nothing was changed.
    """
    if options.source is not None:
        check_source(options.source, Limits())
    _make_directory(path, create=options.create)
    lock = _take_lock(path)
    try:
        identity = _identity(path, options)
        return _Opening(path, options, memory, identity, lock, progress).run(recent)
    except BaseException:
        os.close(lock)
        raise


# ---------------------------------------------------------------------------------------------- directory and identity


@attrs.frozen
class _Identity:
    store_id: bytes
    source: str


def _make_directory(path: Path, *, create: bool) -> None:
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path} is a symbolic link to nothing")
    if path.is_dir():
        names = set(os.listdir(path))
        if names - _OURS and "deltalog.toml" not in names:
            raise UsageError(
                f"{path} is not a deltalog directory: it holds {min(names - _OURS)!r} and no deltalog.toml"
            )
        if not create and "deltalog.toml" not in names:
            raise StoreMissing(f"{path} is no deltalog directory: it has no deltalog.toml")
    elif path.exists():
        raise UsageError(f"{path} is not a directory")
    elif not create:
        raise StoreMissing(f"{path} does not exist")
    else:
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise StoreMissing(f"cannot make {path}: {error.strerror}") from error


def _take_lock(path: Path) -> int:
    """Lock the directory for this process. The kernel frees the lock when the process ends, however it ends."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreMissing(f"cannot lock {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise StoreInUse(f"{path} is open in {who} already") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _identity(path: Path, options: OpenOptions) -> _Identity:
    file = path / "deltalog.toml"
    if not file.exists():
        if (path / "rocks").exists() or (path / "witness").exists():
            raise StoreMissing(f"{file} is missing, though data is there: restore it")
        return _new_identity(path, options.source)
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"{file}: {error}") from error
    if fields.get("format") != FORMAT:
        raise StoreFormatMismatch(f"{file}: format {fields.get('format')!r}; this program knows {FORMAT}")
    source, store_id = fields.get("source"), fields.get("store_id")
    if not isinstance(source, str) or not source or not isinstance(store_id, str) or len(store_id) != 32:
        raise StoreCorrupt(f"{file}: source or store_id is missing or malformed")
    if options.source is not None and options.source != source:
        raise UsageError(f"{path} belongs to source {source!r}; it cannot be opened as {options.source!r}")
    try:
        return _Identity(bytes.fromhex(store_id), source)
    except ValueError as error:
        raise StoreCorrupt(f"{file}: store_id: {error}") from error


def _new_identity(path: Path, source: str | None) -> _Identity:
    identity = _Identity(secrets.token_bytes(16), source if source is not None else f"node-{secrets.token_hex(6)}")
    text = (
        "# Written by deltalog when this directory was made. Do not edit, do not copy to another node.\n"
        f"format = {FORMAT}\n"
        f'store_id = "{identity.store_id.hex()}"\n'
        f"source = {_toml_string(identity.source)}\n"
        f'created = "{datetime.now(UTC).isoformat(timespec="seconds")}"\n'
    )
    new = path / "deltalog.toml.new"
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path / "deltalog.toml")
    sync_directory(path)
    return identity


def _toml_string(text: str) -> str:
    """A TOML basic string: as JSON, but for the one control character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------- the opening


class _Opening:
    """One open, step by step."""

    def __init__(
        self,
        path: Path,
        options: OpenOptions,
        memory: SharedMemory,
        identity: _Identity,
        lock: int,
        progress: Progress,
    ) -> None:
        self.path = path
        self.options = options
        self.memory = memory
        self.identity = identity
        self.lock = lock
        self.progress = progress
        self.rocks = path / "rocks" / "delta"
        self.lost: dict[str, tuple[int, int]] = {}

    def run(self, recent: int) -> OpenData:
        witness, fresh = self._witness()
        store: RocksStore | None = None
        try:
            testimony = witness.testimony
            if not fresh:
                self._check_place(witness)
                heads = self._preflight(testimony)
                store = self._open_store()
                self._check_same(heads, store.heads())
            else:
                store = self._open_store()
            return self._opened(store, witness, testimony, recent)
        except BaseException:
            if store is not None:
                store.close()
            witness.close()
            raise

    # ---- witness and store

    def _witness(self) -> tuple[Witness, bool]:
        """The witness, and whether the directory is being made (now, or by an earlier try that was cut off)."""
        file = self.path / "witness"
        if self.rocks.exists():
            if file.exists():
                witness = Witness.open(file)
                return witness, witness.testimony is None and self._is_empty()
            if self._is_empty():
                return Witness.create(file), True
            if not self.options.accept_loss:
                raise StoreMissing(f"{file} is missing, though the data it vouches for is there")
            return Witness.create(file), False
        made = Witness.open(file) if file.exists() else None
        if made is not None and made.testimony is not None:
            self._refuse_missing_store(made)
        (self.path / "rocks").mkdir(mode=0o700, exist_ok=True)
        Rocks.create(self.rocks, FAMILIES, self.memory).close()
        return Witness.create(file) if made is None else made, True

    def _refuse_missing_store(self, witness: Witness) -> None:
        testimony = witness.testimony
        witness.close()
        assert testimony is not None
        lost = {source: (1, seq) for source, (seq, _) in testimony.heads.items() if seq}
        unnamed = testimony.total - sum(seq for seq, _ in testimony.heads.values())
        raise DataLoss(f"{self.rocks} is missing; {_named(lost, unnamed)}", lost, unnamed)

    def _is_empty(self) -> bool:
        """Whether the store was made and never used."""
        with closing(Rocks.open_read_only(self.rocks, FAMILIES, self.memory)) as db:
            return all(next(db.scan(family), None) is None for family in (keys.SOURCES, keys.DELTAS))

    def _open_store(self) -> RocksStore:
        """Open for writing; on a full disk give back the reserve and try that once more: nothing was deleted."""

        def open_db() -> Rocks:
            return Rocks.open(self.rocks, FAMILIES, self.memory)

        reserve = self.path / "reserve"
        try:
            return RocksStore(open_db, self.identity.store_id)
        except StoreFull:
            if not reserve.exists():
                raise
            reserve.unlink()
            return RocksStore(open_db, self.identity.store_id)

    # ---- what the witness says

    def _check_place(self, witness: Witness) -> None:
        testimony = witness.testimony
        if testimony is None or self.options.adopt:
            return
        if testimony.store_id != self.identity.store_id or testimony.place != witness.place:
            raise ForeignData(
                f"{self.path} was copied, restored or brought from another machine: to continue from this copy as a "
                "new incarnation of its source, open it with adopt=True (--adopt)"
            )

    def _preflight(self, testimony: Testimony | None) -> Mapping[str, Head]:
        self.progress("checking", 0, 1)
        store = RocksStore(lambda: Rocks.open_read_only(self.rocks, FAMILIES, self.memory), None)
        try:
            if store.store_id != self.identity.store_id and not self.options.adopt:
                raise ForeignData(f"{self.rocks} is the store of another directory (store id {store.store_id.hex()})")
            heads = store.heads()
            if testimony is not None:
                self._compare(store, heads, testimony)
            self._check_tails(store, heads)
            return heads
        finally:
            store.close()

    def _check_same(self, before: Mapping[str, Head], after: Mapping[str, Head]) -> None:
        if before != after:
            raise StoreCorrupt(f"{self.rocks}: opened for writing it does not hold what it held for reading")

    def _compare(self, store: RocksStore, heads: Mapping[str, Head], testimony: Testimony) -> None:
        """Is all there that the witness saw fsynced?"""
        for source, (seq, seen) in testimony.heads.items():
            head = heads.get(source, Head())
            if head.seq < seq:
                self.lost[source] = (head.seq + 1, seq)
            elif head.floor < seq and _hash_at(store, source, head, seq) != seen:
                raise StoreCorrupt(f"{self.rocks}: the deltas of {source!r} up to {seq} are not those the witness saw")
        named = sum(last - first + 1 for first, last in self.lost.values())
        unnamed = max(0, testimony.total - sum(head.seq for head in heads.values()) - named)
        sequence = store.db.sequence_number()
        if (self.lost or unnamed or sequence < testimony.sequence) and not self.options.accept_loss:
            what = _named(self.lost, unnamed) if self.lost or unnamed else "writes other than deltas are gone"
            raise DataLoss(f"{self.path} holds less than was fsynced: {what}. Nothing was changed", self.lost, unnamed)

    def _check_tails(self, store: RocksStore, heads: Mapping[str, Head]) -> None:
        """The last block of each source must lead to its head."""
        last = list(heads.items())[-TAILS_MAX:]
        for index, (source, head) in enumerate(last):
            if index % 100 == 0:
                self.progress("checking", index, len(last))
            if head.seq > head.floor and _hash_at(store, source, head, head.seq) != head.hash:
                raise StoreCorrupt(f"{self.rocks}: the last block of {source!r} does not lead to its head {head.seq}")

    # ---- the tail

    def _opened(self, store: RocksStore, witness: Witness, testimony: Testimony | None, recent: int) -> OpenData:
        incarnations = store.meta(keys.META_INCARNATIONS) or [self.identity.source]
        before = incarnations[-1]
        head = store.heads().get(before, Head()).seq
        kind, reason = self._doubt(witness, testimony, before, head)
        source = before
        if reason:
            source = f"{self.identity.source}~{secrets.token_hex(_INCARNATION_BYTES)}"
            store.set_meta(keys.META_INCARNATIONS, [*incarnations, source])
        witness.mark[0] = store.heads().get(source, Head()).seq
        self.progress("reading", 0, 1)
        heads = store.heads()
        report = StartupReport(
            kind=kind,
            source=source,
            incarnation_of=before if source != before else "",
            reason=reason,
            lost=self.lost,
            sources=len(heads),
            deltas=sum(head.count for head in heads.values()),
        )
        opened = OpenData(self.path, store, witness, source, report, list(store.newest(recent)), lock=self.lock)
        witness.record(opened.testimony(store.sync(), clean=False), durable=True)
        make_reserve(self.path / "reserve", self.options.reserve_bytes)
        self.progress("reading", 1, 1)
        return opened

    def _doubt(self, witness: Witness, testimony: Testimony | None, source: str, head: int) -> tuple[str, str]:
        """(kind of start, why this node must go on as a new incarnation or "")."""
        if self.lost or (self.options.accept_loss and testimony is None and head):
            return "lost", "fsynced deltas are gone"
        if testimony is None:
            return "created", ""
        if testimony.place != witness.place or testimony.store_id != self.identity.store_id:
            return "unclean", "the directory was copied or restored"
        if testimony.clean:
            return "clean", ""
        mark = witness.mark[0]
        if not testimony.boot or testimony.boot != boot_id():
            return "unclean", "the machine stopped while the log was open: its last deltas may be lost"
        if mark > head:
            self.lost[source] = (head + 1, mark)
            return "unclean", f"the process ended before {mark - head} appended deltas were written"
        return "unclean", ""


def _hash_at(store: RocksStore, source: str, head: Head, seq: int) -> bytes | None:
    """Chain hash behind a stored delta, computed from its block."""
    row = store.row(source)
    assert row is not None
    with store.view() as view:
        held = store.block_at(view, row[0], source, seq)
    if held is None:
        raise StoreCorrupt(f"{keys.DELTAS}: ({source!r}, {seq}) is missing, though the head is {head.seq}")
    return chain.extend(held.previous, held.records)[seq - held.deltas[0].seq]


def _named(lost: Mapping[str, tuple[int, int]], unnamed: int) -> str:
    parts = [f"{source!r} {first}..{last}" for source, (first, last) in list(lost.items())[:10]]
    if len(lost) > 10:
        parts.append(f"and of {len(lost) - 10} more sources")
    if unnamed:
        parts.append(f"{unnamed} deltas of sources the witness has no room to name")
    return "lost: " + ", ".join(parts)


def make_reserve(file: Path, size_bytes: int) -> bool:
    """Set room aside in `file`; False if the disk has not that much to spare (three times as much must be free)."""
    if not size_bytes or file.exists():
        return True
    free = os.statvfs(file.parent)
    if free.f_bavail * free.f_frsize < 3 * size_bytes:
        return False
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
        return True
    except OSError:
        file.unlink()
        return False
    finally:
        os.close(descriptor)
