"""DeltaStore: the contract of what keeps deltas on disk (or in memory), and the values that cross it.

Synchronous: no method knows a task or an event loop, so any of them may be called in a worker thread. A store puts the
calls that change something in an order of its own; reads run beside them and beside each other, each on a consistent
view of one moment.

Only stored seqs count here: source ids, chain hashes and order have been checked by whoever writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from deltalog.delta import Delta
from deltalog.errors import LimitExceeded, UsageError
from deltalog.keys import ANNOTATION_KEY_BYTES, ANNOTATION_VALUE_BYTES, Head


@attrs.frozen
class Run:
    """Consecutive deltas of one source, to be stored behind its head."""

    source: str
    seq: int
    """Seq of the first."""
    records: Sequence[bytes]
    """The encoded deltas."""
    previous: bytes
    """Chain hash before the first."""
    hashes: Sequence[bytes]
    """Chain hash behind each."""

    @property
    def last(self) -> int:
        """Seq of the last."""
        return self.seq + len(self.records) - 1


@attrs.frozen
class StoreSizes:
    """What a store holds."""

    sources: int
    deltas: int
    record_bytes: int
    """Bytes of the encoded deltas."""
    blocks: int
    """Blocks the deltas stand in."""
    disk_bytes: int
    """Bytes allocated on disk, 0 for a store in memory."""


@attrs.frozen
class Erasure:
    """The note that stands where a payload was erased."""

    source: str
    seq: int
    reason: str
    timestamp: int
    """Hybrid logical clock at the erasure."""


Annotation = tuple[bytes, bytes]
"""Key and value of something that a layer above keeps beside the deltas."""


def check_annotations(changes: Mapping[bytes, bytes | None]) -> None:
    """Raise `UsageError` unless keys are 1 to 1024 bytes and values bytes or None, `LimitExceeded` above 64 KiB."""
    for key, value in changes.items():
        if type(key) is not bytes or not key:
            raise UsageError(f"the key of an annotation must be bytes, and not empty; not {key!r}"[:200])
        if len(key) > ANNOTATION_KEY_BYTES:
            raise LimitExceeded("the key of an annotation", len(key), ANNOTATION_KEY_BYTES)
        if value is not None and type(value) is not bytes:
            raise UsageError(f"the value of an annotation must be bytes or None, not {type(value).__name__}")
        if value is not None and len(value) > ANNOTATION_VALUE_BYTES:
            raise LimitExceeded("the value of an annotation", len(value), ANNOTATION_VALUE_BYTES)


class Scan(Protocol):
    """A read in progress: plain data and no open handle, so it may be dropped at any time."""

    def page(self, count: int) -> Sequence[Delta]:
        """Return the next deltas, at least one and about `count`; empty at the end. May raise what a read raises.

        A page is a read of its own, on the store as it is now, but for what the page before read ahead. Deltas dropped
        since the scan began raise `BelowFloor` (by source, since) or are absent (by time), unless they were read ahead.
        Deltas written since are not in it (by source, since) or may be (by time). After an error the same page can be
        asked for again.
        """
        ...


class DeltaStore(Protocol):
    """Keeps runs of deltas, their time index and the heads, changed together or not at all (invariant I8)."""

    def heads(self) -> Mapping[str, Head]:
        """What is stored of each source, in the order the sources came; includes what is written but not fsynced."""
        ...

    def write(self, runs: Sequence[Run]) -> None:
        """Store all the runs, or none. On return they survive the end of the process, not yet a power loss.

        Each run must start right behind its source's head. Raises `StoreError`; if it is `indeterminate`, call
        `reopen` and compare `heads`.
        """
        ...

    def sync(self) -> int:
        """On return all that was written survives power loss. Returns the store's sequence number: it never falls."""
        ...

    def get(self, source: str, seq: int) -> Delta | None:
        """The delta with this dot, or None if it is not stored (any more)."""
        ...

    def hash_at(self, source: str, seq: int) -> bytes:
        """The chain hash behind a stored delta, or at the floor; of seq 0 that of the source's name.

        Raises `BelowFloor` further below, `UsageError` above the head. Reads one block.
        """
        ...

    def by_source(self, source: str, after: int, until: int, *, reverse: bool = False) -> Scan:
        """Deltas of one source with after < seq <= until; ascending, or descending if `reverse`."""
        ...

    def between(self, after: int, until: int) -> Scan:
        """Deltas with after < timestamp <= until, by (timestamp, source)."""
        ...

    def since(self, after: Mapping[str, int], until: Mapping[str, int]) -> Scan:
        """For each source in `until` the deltas with after[source] < seq <= until[source], by (timestamp, source).

        Cost grows with what is returned and with the number of sources, not with what is stored.
        """
        ...

    def newest(self, count: int) -> Sequence[Delta]:
        """About the newest `count` deltas (never more): for each source a suffix, together by (timestamp, source)."""
        ...

    def seqs_at(self, timestamp: int) -> Mapping[str, int]:
        """For each source with a delta up to `timestamp`, the highest seq with such a timestamp, or its floor."""
        ...

    def truncate(self, floors: Mapping[str, int]) -> int:
        """Drop the deltas up to each floor, records and index together; returns how many. Idempotent.

        A floor above the head raises `UsageError`, one below the present floor changes nothing. The space comes back
        with `compact`.
        """
        ...

    def erase(self, source: str, seq: int, reason: str, timestamp: int) -> Delta | None:
        """Replace a payload by its hash and note it; the erased delta, or None if it is not stored. Idempotent.

        On return it survives power loss, and so does all that was written before.
        """
        ...

    def erasures(self) -> Sequence[Erasure]:
        """Every note that `erase` left, ascending by dot."""
        ...

    def annotate(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Keep values under keys beside the deltas, all or none; None removes a key. For the layers above.

        In order with `write`: whenever a later write survives, this does. Raises `UsageError` or `LimitExceeded` as
        `check_annotations`.
        """
        ...

    def annotation(self, key: bytes) -> bytes | None:
        """What is kept under a key, None if nothing is."""
        ...

    def annotations(self, prefix: bytes = b"", after: bytes = b"", limit: int | None = None) -> Sequence[Annotation]:
        """Keys that start with `prefix` and are greater than `after`, ascending, with their values; at most `limit`."""
        ...

    def compact(self, *, if_needed: bool = False) -> None:
        """Merge short blocks, drop what was truncated or erased from disk. Nothing visible changes.

        if_needed: rewrite files only if there is something to give back; else everything is written anew.
        """
        ...

    def sizes(self) -> StoreSizes:
        """What it holds."""
        ...

    def reopen(self) -> None:
        """Close and open safely once more, after an error that killed the handle. Raises what opening raises."""
        ...

    def close(self) -> None:
        """Sync and close. Idempotent."""
        ...
