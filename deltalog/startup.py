"""Opening a data directory: identity, witness, preflight, store; and what became of the tail.

Numbered as the code goes (`open_data`):

1. Directory and lock (`data_directory`). Before anything else is touched: even a failed open of RocksDB changes files.
2. Identity. deltalog.toml is written first when a directory is made, so whatever lacks it is not ours.
3. Witness. It says whether a store must exist, and what it held.
4. Preflight. RocksDB is opened for reading only, which deletes nothing; heads, chain hashes and tails are compared with
   the witness, and the newest deltas read. If the write-ahead log is damaged, what stands before the damage is looked
   at in a copy (`salvage`): if that is all that was ever fsynced, the rest was acknowledged to nobody.
5. Open for writing, only if all that fits; the heads must be those of the preflight. Up to here nothing was changed.
6. The tail. If dots may have been handed out and lost, or the source was retired, this node goes on as a new
   incarnation of its source (invariant I1): it never guesses, so no dot is used twice.

How a directory is made: deltalog.toml, store, witness, the witness's first record, the store's list of incarnations. A
store without that list was never used, so whatever cut its making off, the next open goes on with it.

Synchronous; runs in a worker thread.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Protocol

import attrs

from deltalog import chain, data_directory, keys, rocks_directory, salvage
from deltalog.data_directory import Identity, Lock
from deltalog.delta import SEQ_MAX, Delta, Limits, check_source
from deltalog.errors import DataLoss, ForeignData, StoreCorrupt, StoreError, StoreFull, StoreMissing
from deltalog.failpoints import reach
from deltalog.keys import Head
from deltalog.profiles import SharedMemory, WalTail
from deltalog.rocks import Rocks
from deltalog.rocks_directory import sync_directory
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.witness import Testimony, Witness, system_errors

NAMED_MAX: Final = 128
"""Sources whose heads the witness names; of all others it knows the sum."""
TAILS_MAX: Final = 1_000
"""Sources whose last block is verified at open; the rest is for `verify`."""
_INCARNATION_BYTES: Final = 5


class Progress(Protocol):
    """Called now and then while a long open runs: what is being done, how much of it is done, of how much."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


@attrs.frozen(kw_only=True)
class StartupReport:
    """How an open went."""

    kind: str
    """"created", "clean" (closed in order before), "unclean" (not closed; nothing fsynced is missing), "lost"."""
    source: str
    """The source that appends now."""
    incarnation_of: str
    """The source that appended before, if this open began a new incarnation; else ""."""
    reason: str
    """Why it did, or ""."""
    lost: Mapping[str, tuple[int, int]]
    """source -> first and last seq that were handed out or even fsynced and are gone."""
    lost_unnamed: int = 0
    """Fsynced deltas that are gone, of sources that the witness had no room to name."""
    damage: str = ""
    """Where the write-ahead log was damaged and cut, and where its original was set aside; or ""."""
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
    _lock: Lock = attrs.field(alias="lock")
    _named: dict[str, None] = attrs.field(factory=dict, init=False)
    """Sources that the witness names, the latest written last; this node's own always is."""

    def __attrs_post_init__(self) -> None:
        self.note(list(self.store.heads())[-NAMED_MAX:])

    def note(self, sources: Iterable[str]) -> None:
        """These were written: have the witness name them, rather than those that were not for longest."""
        for source in sources:
            self._named.pop(source, None)
            self._named[source] = None
        while len(self._named) > NAMED_MAX:
            del self._named[next(iter(self._named))]

    def testimony(self, sequence: int, *, clean: bool) -> Testimony:
        """What the witness is to remember: the store as it is, fsynced at `sequence`. Cost: `NAMED_MAX` sources."""
        rows = {source: self.store.row(source) for source in (self.source, *self._named)}
        return Testimony(
            store_id=self.store.store_id,
            place=self.witness.place,
            boot=self.witness.boot,
            clean=clean,
            source=self.source,
            sequence=sequence,
            heads={source: (row[1].seq, row[1].hash) for source, row in rows.items() if row is not None},
            total=self.store.total,
            cell=self.witness.cell,
        )

    def close(self, *, clean: bool) -> None:
        """Tell the witness, close the store, give back the lock, whatever fails. `clean`: nothing was left unstored."""
        with ExitStack() as last:
            last.callback(self.release)
            last.callback(self.store.close)
            reach("startup.close.before")
            if clean:
                self.witness.record(self.testimony(self.store.sync(), clean=True), durable=True)
            reach("startup.close.after")

    def release(self) -> None:
        """Give back witness and lock without a word to the store."""
        self.witness.close()
        self._lock.release()


@attrs.frozen(kw_only=True)
class OpenOptions:
    """How to open a data directory."""

    source: str | None = None
    """Who appends; None: who did before, or a new random name. Fixed when the directory is made."""
    create: bool = True
    """Make the directory if it is not there."""
    accept_loss: bool = False
    """Go on with what is left when fsynced data or the witness is gone, as a new incarnation."""
    adopt: bool = False
    """Go on from a copied or restored directory, as a new incarnation."""
    reserve_bytes: int = 16 << 20
    """Room kept aside for opening on a full disk; 0: none."""


def open_data(path: Path, options: OpenOptions, memory: SharedMemory, recent: int, progress: Progress) -> OpenData:
    """Open a data directory safely, or make one. `recent`: how many of the newest deltas to read.

    Raises `StoreInUse`, `StoreMissing`, `StoreCorrupt`, `StoreFormatMismatch`, `StoreFull`, `StoreIOError`,
    `DataLoss`, `ForeignData`, `UsageError`. Then all data is as it was; the making of a directory goes on next time.
    """
    if options.source is not None:
        check_source(options.source, Limits())
    path = rocks_directory.absolute(path)
    data_directory.prepare(path, create=options.create)
    lock = Lock.take(path)
    try:
        identity = data_directory.identify(path, options.source)
        try:
            return _Opening(path, options, memory, identity, lock, progress, recent).run()
        except StoreFull:
            if not data_directory.give_back_reserve(path):
                raise
            return _Opening(path, options, memory, identity, lock, progress, recent).run()
    except BaseException:
        lock.release(undo=True)
        raise


@attrs.frozen(kw_only=True)
class _Seen:
    """The store, as it was found before anything was opened for writing."""

    sequence: int = 0
    heads: Mapping[str, Head] = attrs.field(factory=dict)
    incarnations: Sequence[str] = ()
    """This node's sources, in the order in which they appended; empty: the store was never used."""
    retired: tuple[str, str] = ("", "")
    """The source that appends no more, and why."""
    recent: Sequence[Delta] = ()
    damage: StoreCorrupt | None = None
    """Why this is what a damaged write-ahead log still holds."""

    @property
    def used(self) -> bool:
        """Whether a log may ever have run on it."""
        return bool(self.incarnations or self.heads)

    @property
    def total(self) -> int:
        """Sum of the seqs of all sources."""
        return sum(head.seq for head in self.heads.values())


class _Opening:
    """One open, step by step."""

    def __init__(
        self,
        path: Path,
        options: OpenOptions,
        memory: SharedMemory,
        identity: Identity,
        lock: Lock,
        progress: Progress,
        recent: int,
    ) -> None:
        self.path = path
        self.options = options
        self.memory = memory
        self.identity = identity
        self.lock = lock
        self.progress = progress
        self.recent = recent
        self.rocks = path / "rocks" / "delta"
        # found out on the way
        self.doubted: StoreError | None = None
        """Why there is no testimony."""
        self.lost: dict[str, tuple[int, int]] = {}
        self.unnamed = 0
        self.forgotten = False
        """Whether something that was fsynced is gone."""

    def run(self) -> OpenData:
        copy = self.rocks.with_name(self.rocks.name + ".salvage")
        with ExitStack() as undo, ExitStack() as always:
            always.callback(salvage.discard, copy)
            witness = self._witness()
            if witness is not None:
                undo.callback(witness.close)
            testimony = witness.testimony if witness is not None else None
            if witness is not None and testimony is not None:
                self._check_place(witness, testimony)
            seen = self._look(testimony, copy)
            if testimony is None and seen.used and not self.options.accept_loss:
                assert self.doubted is not None
                raise self.doubted
            damage = self._give_up(seen, copy)
            reach("startup.open.before")
            store = self._open_store(seen)
            undo.callback(store.close)
            reach("startup.open.after")
            if witness is None:
                witness = self._new_witness()
                undo.callback(witness.close)
            opened = self._opened(store, witness, testimony, seen, damage)
            undo.pop_all()
        return opened

    # ---- witness

    def _witness(self) -> Witness | None:
        """The witness, None if there is none to believe: `doubted` says why, and `_look` whether one must exist."""
        file = self.path / "witness"
        if not file.exists():
            self.doubted = StoreMissing(f"{file} is missing, though the data it vouches for is there")
            return None
        try:
            witness = Witness.open(file)
        except StoreCorrupt as damage:
            self.doubted = damage
            return None
        if witness.testimony is None:
            self.doubted = StoreCorrupt(f"{file} is blank, though the data it vouches for is there")
        return witness

    def _new_witness(self) -> Witness:
        """Make a witness; a damaged one is set aside."""
        file = self.path / "witness"
        if file.exists():
            data_directory.set_aside(self.path, "witness", [file])
            file.unlink()
        return Witness.create(file)

    def _check_place(self, witness: Witness, testimony: Testimony) -> None:
        if testimony.store_id != self.identity.store_id:
            raise ForeignData(f"{witness.path} is the witness of another directory than {self.path}/deltalog.toml")
        if testimony.place != witness.place and not self.options.adopt:
            raise ForeignData(
                f"{self.path} was copied, restored or brought from another machine: to continue from this copy as a "
                "new incarnation of its source, open it with adopt=True (--adopt)"
            )

    # ---- preflight

    def _look(self, testimony: Testimony | None, copy: Path) -> _Seen:
        """See what is there and compare it with the witness, through handles that cannot change it.

        If a store is due and not there, it is made.
        """
        self.progress("checking", 0, 1)
        if not os.path.lexists(self.rocks):
            return self._made(testimony)
        reach("startup.preflight.before")
        try:
            seen = self._see(self.rocks, testimony)
        except StoreCorrupt as damage:
            if testimony is None:
                raise
            seen = self._see_salvage(testimony, copy, damage)
        reach("startup.preflight.after")
        return seen

    def _made(self, testimony: Testimony | None) -> _Seen:
        """Make the store, unless that would hide a loss."""
        if isinstance(self.doubted, StoreCorrupt) and not self.options.accept_loss:
            raise self.doubted
        if testimony is not None:
            self._compare(None, _Seen(), testimony)
        reach("startup.create.before")
        with system_errors(self.rocks):
            self.rocks.parent.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.path)
        Rocks.create(self.rocks, FAMILIES, self.memory).close()
        reach("startup.create.after")
        return _Seen()

    def _see_salvage(self, testimony: Testimony, copy: Path, damage: StoreCorrupt) -> _Seen:
        """See what stands before the damage of the write-ahead log; raise `damage` if that is not all there is."""
        try:
            salvage.cut_copy(self.rocks)
            return self._see(copy, testimony, "drop", damage)
        except StoreCorrupt:
            raise damage from None

    def _see(
        self, rocks: Path, testimony: Testimony | None, wal_tail: WalTail = "refuse", damage: StoreCorrupt | None = None
    ) -> _Seen:
        """Open a store for reading and check it. Raises `DataLoss` if something that was fsynced is not there."""
        db = Rocks.open_read_only(rocks, FAMILIES, self.memory, wal_tail=wal_tail)
        try:
            store = None if _is_new(db) else RocksStore(lambda: db)
            if store is not None and store.store_id != self.identity.store_id:
                raise ForeignData(f"{self.rocks} is the store of another directory than {self.path}/deltalog.toml")
            seen = _Seen(sequence=db.sequence_number(), damage=damage)
            if store is not None:
                incarnations = store.meta(keys.META_INCARNATIONS) or ()
                if incarnations and incarnations[0] != self.identity.source:
                    said, made_for = self.identity.source, incarnations[0]
                    raise StoreCorrupt(f"{self.path}/deltalog.toml says source {said!r}; it was made for {made_for!r}")
                seen = attrs.evolve(
                    seen, heads=store.heads(), incarnations=incarnations, retired=_retired(store) or seen.retired
                )
            if testimony is not None:
                self._compare(store, seen, testimony)
            if store is None:
                return seen
            self._check_tails(store, seen.heads)
            self.progress("reading", 0, 1)
            return attrs.evolve(seen, recent=store.newest(self.recent))
        finally:
            db.close()

    def _compare(self, store: RocksStore | None, seen: _Seen, testimony: Testimony) -> None:
        """Is all there that the witness saw fsynced?"""
        self.lost.clear()
        for source, (seq, expected) in testimony.heads.items():
            head = seen.heads.get(source, Head())
            if head.seq < seq:
                self.lost[source] = (head.seq + 1, seq)
            elif store is not None and head.floor <= seq and _hash_at(store, source, head, seq) != expected:
                raise StoreCorrupt(f"{self.rocks}: the deltas of {source!r} up to {seq} are not those the witness saw")
        named = sum(last - first + 1 for first, last in self.lost.values())
        self.unnamed = max(0, testimony.total - seen.total - named)
        self.forgotten = bool(named or self.unnamed or seen.sequence < testimony.sequence)
        if self.forgotten and not self.options.accept_loss:
            what = _named(self.lost, self.unnamed) if named or self.unnamed else "writes other than deltas are gone"
            why = f" ({seen.damage})" if seen.damage is not None else ""
            raise DataLoss(
                f"{self.path} holds less than was fsynced: {what}{why}. Nothing was changed", self.lost, self.unnamed
            ) from seen.damage

    def _check_tails(self, store: RocksStore, heads: Mapping[str, Head]) -> None:
        """The last block of each source must lead to its head."""
        last = list(heads.items())[-TAILS_MAX:]
        for index, (source, head) in enumerate(last):
            if index % 100 == 0:
                self.progress("checking", index, len(last))
            if head.seq > head.floor and _hash_behind(store, source, head, head.seq) != head.hash:
                raise StoreCorrupt(f"{self.rocks}: the last block of {source!r} does not lead to its head {head.seq}")

    # ---- open for writing

    def _give_up(self, seen: _Seen, copy: Path) -> str:
        """Cut off what is damaged, now that nothing forbids it; return what was done, for the report."""
        if seen.damage is None:
            return ""
        aside = data_directory.set_aside(self.path, "wal", salvage.logs(self.rocks))
        salvage.put_in_place(self.rocks, copy)
        return f"{seen.damage}; the write-ahead log was cut there, its original is in {aside}"

    def _open_store(self, seen: _Seen) -> RocksStore:
        """Open for writing: what was seen, or nothing."""
        tails: list[WalTail] = ["drop"] if seen.damage is not None else []

        def open_db() -> Rocks:
            return Rocks.open(self.rocks, FAMILIES, self.memory, wal_tail=tails.pop() if tails else "refuse")

        store = RocksStore(open_db, self.identity.store_id)
        if store.heads() != seen.heads:
            store.close()
            raise StoreCorrupt(f"{self.rocks}: opened for writing it does not hold what it held for reading")
        return store

    # ---- the tail

    def _opened(
        self, store: RocksStore, witness: Witness, testimony: Testimony | None, seen: _Seen, damage: str
    ) -> OpenData:
        """Decide who appends from now on, and tell the witness before anybody can."""
        incarnations = seen.incarnations or (self.identity.source,)
        before = testimony.source if testimony is not None else incarnations[-1]
        kind, reason = self._doubt(witness, testimony, seen, before)
        source, (retired, why) = before, seen.retired
        if retired == before:
            reason = f"it was retired: {why}"
        if reason:
            source = _incarnation(self.identity.source)
            reach("startup.incarnation.before")
            store.set_meta(keys.META_INCARNATIONS, [*incarnations, source])
            reach("startup.incarnation.after")
            witness.cell = 1 - witness.cell
        witness.mark[0] = seen.heads.get(source, Head()).seq
        report = StartupReport(
            kind=kind,
            source=source,
            incarnation_of=before if reason else "",
            reason=reason,
            lost=self.lost,
            lost_unnamed=self.unnamed,
            damage=damage,
            sources=len(seen.heads),
            deltas=sum(head.count for head in seen.heads.values()),
        )
        opened = OpenData(self.path, store, witness, source, report, list(seen.recent), lock=self.lock)
        reach("startup.record.before")
        witness.record(opened.testimony(store.sync(), clean=False), durable=True)
        reach("startup.record.after")
        if not seen.incarnations and not reason:
            store.set_meta(keys.META_INCARNATIONS, [source])
        data_directory.make_reserve(self.path, self.options.reserve_bytes)
        self.progress("reading", 1, 1)
        return opened

    def _doubt(self, witness: Witness, testimony: Testimony | None, seen: _Seen, source: str) -> tuple[str, str]:
        """(kind of start, why this node must go on as a new incarnation or "")."""
        head, mark = seen.heads.get(source, Head()).seq, witness.mark[0]
        watched = testimony is not None and bool(testimony.boot) and testimony.boot == witness.boot
        if watched and head < mark <= SEQ_MAX:
            self.lost[source] = (head + 1, mark)
        if self.forgotten:
            return "lost", "what was fsynced is gone"
        if not seen.used:
            return "created", ""
        if testimony is None:
            return "lost", "its witness is gone, and with it what was handed out last"
        if testimony.place != witness.place:
            return "unclean", "the directory was copied or restored"
        if testimony.clean:
            same = (testimony.total, testimony.sequence) == (seen.total, seen.sequence)
            return ("clean", "") if same else ("unclean", "its witness is older than its store")
        if not watched:
            return "unclean", "the machine stopped while the log was open: its last deltas may be lost"
        if not head <= mark <= SEQ_MAX:
            return "unclean", "the mark of what was handed out is damaged"
        if mark > head:
            return "unclean", f"the process ended before {mark - head} appended deltas were written"
        if seen.incarnations and seen.incarnations[-1] != source:
            return "unclean", "an open that began a new incarnation was cut off"
        return "unclean", ""


def _is_new(db: Rocks) -> bool:
    """Whether there is nothing in a database: it was never initialised, or has lost everything."""
    for family in (keys.SOURCES, keys.DELTAS, keys.BY_TIME, keys.META):
        with closing(db.scan(family)) as rows:
            for _ in rows:
                return False
    return True


def _retired(store: RocksStore) -> tuple[str, str] | None:
    """The source that appends no more, and why."""
    value = store.annotation(keys.RETIRED)
    key = keys.annotation_key(keys.RETIRED)
    return None if value is None else store.checked(keys.META, key, lambda: keys.decode_retired(value))


def _incarnation(source: str) -> str:
    """A new name for a source, within the limit of names."""
    suffix = f"~{secrets.token_hex(_INCARNATION_BYTES)}"
    room = Limits().source_bytes - len(suffix)
    return source.encode()[:room].decode(errors="ignore") + suffix


def _hash_at(store: RocksStore, source: str, head: Head, seq: int) -> bytes:
    """Chain hash behind a delta that is stored, or was just dropped."""
    if seq == head.seq:
        return head.hash  # `_check_tails` holds it against the records
    return head.floor_hash if seq == head.floor else _hash_behind(store, source, head, seq)


def _hash_behind(store: RocksStore, source: str, head: Head, seq: int) -> bytes:
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
