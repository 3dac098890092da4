"""What goes into `Rocks` and comes out of it: plain data, no RocksDB inside."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from deltalog.errors import StoreError, StoreUsageError


def refuse_not_bytes(doing: str, *values: object) -> None:
    """Raise `StoreUsageError` unless all are exactly bytes: a bytearray or str is not taken by rocksdict."""
    for value in values:
        if type(value) is not bytes:
            raise StoreUsageError(f"{doing} takes bytes, not {type(value).__name__}")


def refuse_inverted(doing: str, begin: bytes | None, end: bytes | None) -> None:
    """Raise `StoreUsageError` unless [begin, end) is a range, maybe an empty one; None is an open side."""
    refuse_not_bytes(doing, *(side for side in (begin, end) if side is not None))
    if begin is not None and end is not None and begin > end:
        raise StoreUsageError(f"{doing}: begin {begin.hex()} comes after end {end.hex()}")


class Batch:
    """Puts and deletes that `Rocks.write` applies in order, all or none.

    Arguments are checked here: a wrong one inside RocksDB would leave half the batch applied and the handle dead. The
    batch keeps what it was given, so it can be written again after `StoreBackpressure`.
    """

    __slots__ = ("_families", "operations", "size_bytes")

    def __init__(self, families: Collection[str]) -> None:
        self._families = families
        self.operations: list[tuple[str, str, bytes, bytes]] = []
        """(method of WriteBatch, family, key or begin, value or end)"""
        self.size_bytes = 0
        """Keys and values, without the about ten bytes that RocksDB adds to each."""

    def put(self, family: str, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self._add("put", family, key, value)

    def delete(self, family: str, key: bytes) -> None:
        """Remove `key` if it is there."""
        self._add("delete", family, key, b"")

    def delete_range(self, family: str, begin: bytes, end: bytes) -> None:
        """Remove every key in [begin, end). Raises `StoreUsageError` if `begin` comes after `end`."""
        refuse_inverted(f"delete_range of {family}", begin, end)
        self._add("delete_range", family, begin, end)

    def _add(self, method: str, family: str, key: bytes, value: bytes) -> None:
        if type(key) is not bytes or type(value) is not bytes:
            raise StoreUsageError(f"{method} takes bytes, not {type(key).__name__} and {type(value).__name__}")
        if family not in self._families:
            raise StoreUsageError(f"{method}: no column family {family!r}; there are {sorted(self._families)}")
        self.operations.append((method, family, key, value))
        self.size_bytes += len(key) + len(value)

    def __len__(self) -> int:
        return len(self.operations)


@attrs.frozen
class FileInfo:
    """One sorted file (SST) of an instance."""

    name: str
    """Within the directory: `000009.sst`."""
    family: str
    level: int
    """0 for files as they were flushed, 6 for the last level."""
    size_bytes: int
    first_key: bytes
    last_key: bytes
    """Both inclusive. The end of a range delete counts as a key."""
    entries: int
    """Puts and deletes, with those that younger ones have made void; 0 where RocksDB has not looked yet (after an open,
    for all but some twenty files)."""
    deletions: int
    """Of these, deletes; likewise."""


@attrs.frozen
class Health:
    """What an instance can tell of its state without reading data. None of it proves that the next write works."""

    background_errors: int
    """Flushes and compactions that failed since open. Stays 0 while the disk is full: see `last_error`."""
    write_stopped: bool
    """RocksDB refuses writes for now: flushes or compactions lag behind."""
    lock_ours: bool
    """LOCK is the file this handle locked. False: somebody removed or replaced the directory underneath."""
    closed: bool
    """Or this process was forked from the one that has it open."""
    in_flight: int
    """Calls, open scans and views."""
    last_error: StoreError | None
    """Of a write, sync, flush or compaction, but not backpressure. If its `handle_dead`, further ones are refused."""
