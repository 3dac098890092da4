"""What we measure ourselves against: rocksdict alone, writing each encoded record under one source-sharded key and one
time-index key, in batches of 1000. The fastest straightforward program that keeps the same facts and promises less: no
dense seqs, no chain, no limits, no clock, no readers, no recovery.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from rocksdict import Options, Rdict, WriteBatch

BATCH = 1000
_BY_SOURCE = struct.Struct(">IQ").pack
_BY_TIME = struct.Struct(">QIQ").pack


class RawRocks:
    """One RocksDB with a family of records and a family of index keys."""

    def __init__(self, path: Path) -> None:
        self._db = Rdict(str(path), options=self._options())
        self._index_family = self._db.create_column_family("by_time", self._options())
        self._records = self._db.get_column_family_handle("default")
        self._index = self._db.get_column_family_handle("by_time")

    @staticmethod
    def _options() -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        return options

    def write_payloads(self, payloads: Sequence[Any], *, fsync: bool) -> float:
        """Encode and write each payload as a record; return the seconds it took."""
        pack = msgpack.Packer().pack
        start = time.perf_counter()
        for first in range(0, len(payloads), BATCH):
            batch = WriteBatch(raw_mode=True)
            for seq in range(first, min(first + BATCH, len(payloads))):
                now = time.time_ns()
                record = pack(("alice", seq, now, {}, "edit", "doc", payloads[seq]))
                batch.put(_BY_SOURCE(0, seq), record, self._records)
                batch.put(_BY_TIME(now, 0, seq), b"", self._index)
            self._commit(batch, fsync=fsync)
        return time.perf_counter() - start

    def write_records(self, records: Sequence[bytes], *, fsync: bool) -> float:
        """Write records that are encoded already; return the seconds it took."""
        start = time.perf_counter()
        for first in range(0, len(records), BATCH):
            batch = WriteBatch(raw_mode=True)
            for seq in range(first, min(first + BATCH, len(records))):
                batch.put(_BY_SOURCE(0, seq), records[seq], self._records)
                batch.put(_BY_TIME(seq, 0, seq), b"", self._index)
            self._commit(batch, fsync=fsync)
        return time.perf_counter() - start

    def _commit(self, batch: WriteBatch, *, fsync: bool) -> None:
        self._db.write(batch)
        if fsync:
            self._db.flush_wal(True)

    def commit_one(self, seq: int, record: bytes) -> float:
        """Write and fsync one record; return the seconds it took."""
        start = time.perf_counter()
        batch = WriteBatch(raw_mode=True)
        batch.put(_BY_SOURCE(0, seq), record, self._records)
        batch.put(_BY_TIME(seq, 0, seq), b"", self._index)
        self._commit(batch, fsync=True)
        return time.perf_counter() - start

    def replay(self) -> tuple[int, float]:
        """Iterate the records and decode each; return how many, and the seconds it took."""
        unpack = msgpack.unpackb
        cursor = self._db.iter()
        count = 0
        start = time.perf_counter()
        cursor.seek_to_first()
        while cursor.valid():
            cursor.key()
            unpack(cursor.value())
            count += 1
            cursor.next()
        return count, time.perf_counter() - start

    def close(self) -> None:
        """Let go of everything that keeps the database open."""
        del self._records, self._index
        self._index_family.close()
        self._db.close()
