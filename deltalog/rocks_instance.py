"""What every store on RocksDB does with its handle: opens it again in place, closes it under readers, checks reads.

Lives here: the handle, the two locks around it, and the row of meta. Does not know: what the instance holds.

`_lock` is held by whoever writes, and for a moment by whoever takes a view; readers do not hold it while they read.
`_upkeep` is held from a look at rows to the batch that rewrites them; plain writes do not wait for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from deltalog import keys
from deltalog.errors import DecodeError, StoreBusy, StoreClosed, StoreCorrupt
from deltalog.failpoints import reach
from deltalog.keys import META
from deltalog.rocks import Rocks
from deltalog.rocks_values import Health
from deltalog.rocks_view import View

_READS_S: Final = 60.0
"""How long closing waits for reads in progress, in seconds. A page takes milliseconds."""
_READS_POLL_S: Final = 0.002
_ROOM_BYTES: Final = 4 << 20

_T = TypeVar("_T")


class RocksInstance:
    """One RocksDB, open. A subclass loads what it keeps in memory: `_load`, at each open."""

    def __init__(self, open_db: Callable[[], Rocks]) -> None:
        """Open with `open_db`, now and at each `reopen`."""
        self._open_db = open_db
        self._lock = threading.RLock()
        self._upkeep = threading.Lock()
        self._db = open_db()
        self._closed = False

    def _load(self) -> None:
        """Read what is kept in memory, after a reopen. Raises `StoreCorrupt`."""

    def reopen(self) -> None:
        """Close, and open safely once more; after an error that killed the handle."""
        with self._upkeep, self._lock:
            reach("store.reopen.before")
            self._shut()
            self._db = self._open_db()
            self._loaded(self._load)
            self._closed = False
            reach("store.reopen.after")

    def _loaded(self, load: Callable[[], None]) -> None:
        """Load, or close."""
        try:
            load()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Sync and close. Idempotent. Raises `StoreBusy`, and is still open, if reads hold it up for too long."""
        with self._upkeep, self._lock:
            if not self._closed:
                reach("store.close.before")
                self._shut()
                reach("store.close.after")

    def _shut(self) -> None:
        """Close the database once the reads in progress have ended; no new view is given meanwhile."""
        self._closed = True
        deadline = time.monotonic() + _READS_S
        while True:
            try:
                self._db.close()
                return
            except StoreBusy:
                health = self._db.health()
                if health.closed or time.monotonic() > deadline:
                    self._closed = health.closed
                    raise
            time.sleep(_READS_POLL_S)

    def flush(self) -> None:
        """Write what is in memory to files, which empties the WAL."""
        reach("store.flush.before")
        self._db.flush()
        reach("store.flush.after")

    def sync(self) -> int:
        """On return everything written before survives power loss; returns RocksDB's sequence number of that."""
        reach("store.sync.before")
        number = self._db.sequence_number()
        self._db.sync()
        reach("store.sync.after")
        return number

    @property
    def db(self) -> Rocks:
        """The open instance, for health, files and `verify`."""
        return self._db

    def health(self) -> Health:
        """How the instance is; never raises."""
        return self._db.health()

    def has_room(self) -> bool:
        """Whether the disk has room to open and go on: recovery writes the WAL out once more before dropping it."""
        try:
            free = os.statvfs(self._db.path)
            wal = sum(file.stat().st_size for file in self._db.path.glob("*.log"))
            return free.f_bavail * free.f_frsize >= 2 * wal + _ROOM_BYTES
        except OSError:  # a file went while we looked: asked again soon
            return False

    def _view(self, *families: str) -> View:
        """A consistent view of these families (none named: of all) at one moment, to be closed by `with`."""
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            return self._db.view(*families)

    def meta(self, key: bytes) -> Any:
        """What stands in meta under `key`, None if nothing does."""
        value = self._db.get(META, key)
        return None if value is None else self.checked(META, key, lambda: keys.decode_meta(key, value))

    def set_meta(self, key: bytes, value: Any) -> None:
        """Put `value` in meta under `key`; durable on return, with all that was written before."""
        with self._lock:
            batch = self._db.batch()
            batch.put(META, key, keys.encode_meta(key, value))
            reach("store.meta.before")
            self._db.write(batch)
            self._db.sync()
            reach("store.meta.after")

    def checked(self, family: str, key: bytes, decode: Callable[[], _T]) -> _T:
        """Run `decode`; what it refuses is corruption of (family, key)."""
        try:
            return decode()
        except DecodeError as error:
            where = self._db.file_of(family, key) or "no file"
            raise StoreCorrupt(f"{family} key {key.hex()} in {where}: {error}") from error
