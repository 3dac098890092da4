"""The witness: what was fsynced, kept outside RocksDB, so that a store that comes back shorter is noticed.

One small file of its own. Never ahead of the disk: a slot is written after the fsync that it tells of. It may lag.

    offset  size     what
    0       16       two marks: seq of this node's newest delta, in native byte order, through a shared memory map.
                     It costs one store per append and survives the end of the process (not a power loss), so that
                     an open knows which dots were handed out and never written. The testimony says which of the two
                     counts: a new incarnation counts in the other, and the old mark stands until that is recorded.
    4096    16384    slot 0
    20480   16384    slot 1

    slot:   magic "dlw1" | generation (8) | size (4) | BLAKE2b of generation and body (16) | body (msgpack)

The valid slot with the higher generation counts. A record goes to the slot that does not hold the newest durable one,
so whatever a crash tears, what the witness was last told durably is still there.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import attrs
import msgpack

from deltalog.errors import StoreCorrupt, StoreFull, StoreIOError, StoreMissing
from deltalog.failpoints import reach
from deltalog.rocks_directory import sync_directory

_MAGIC: Final = b"dlw1"
_HEADER: Final = struct.Struct(">4sQI16s")
_PAGE: Final = 4096
_SLOT: Final = 16_384
_SIZE: Final = _PAGE + 2 * _SLOT
_GENERATION_MAX: Final = 2**63
_BODY_MAX: Final = _SLOT - _HEADER.size


@attrs.frozen(kw_only=True)
class Testimony:
    """What the witness saw at the last fsync."""

    store_id: bytes
    """Identity of the RocksDB instance: 16 random bytes, also in its meta."""
    place: str
    """Machine and file this witness was written on; a copy stands in another place."""
    boot: str
    """Which start of the operating system; after another one, memory maps cannot be trusted."""
    clean: bool
    """Whether the log was closed in order."""
    source: str
    """This node's source: its incarnation that may append."""
    sequence: int
    """The store's sequence number at the fsync."""
    heads: Mapping[str, tuple[int, bytes]]
    """Seq and chain hash of the sources that had room here; this node's own always has."""
    total: int
    """Sum of the seqs of all sources."""
    cell: int = attrs.field(default=0, validator=attrs.validators.in_((0, 1)))
    """Which mark is that of `source`."""


class Witness:
    """The open file. One thread at a time writes; `mark` belongs to whoever appends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Only for `create` and `open`."""
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, _PAGE, mmap.MAP_SHARED)
        page = memoryview(self._map)
        self._marks = page[:8].cast("Q"), page[8:16].cast("Q")
        self.place = f"{_first_line('/etc/machine-id')}/{os.fstat(descriptor).st_ino}"
        """Where this file is: the machine, and the file on it."""
        self.boot = boot_id()
        """Which start of the operating system this is."""
        self._generation = 0
        self._kept = 0  # the slot that the next record leaves alone: the newest durable one
        self._settled = True  # whether that one is known to be durable
        self.testimony = self._read()
        self.cell = self.testimony.cell if self.testimony is not None else 0
        """Which mark counts."""

    @property
    def mark(self) -> memoryview:
        """mark[0]: seq of this node's newest delta."""
        return self._marks[self.cell]

    @classmethod
    def create(cls, path: Path) -> Witness:
        """Make the file, empty and durable, or not at all. Raises `StoreIOError` or `StoreFull`."""
        new = path.with_name(path.name + ".new")
        with system_errors(path):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            new.unlink(missing_ok=True)  # a crash left it; half a witness vouches for nothing
            reach("witness.create.before")
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _SIZE)
                os.fsync(descriptor)
                reach("witness.create.after")
                new.rename(path)
                sync_directory(path.parent)
                return cls(path, descriptor)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise

    @classmethod
    def open(cls, path: Path) -> Witness:
        """Open the file. Raises `StoreMissing`, or `StoreCorrupt` if neither slot can be believed."""
        if not path.exists():
            raise StoreMissing(f"{path} is missing, though the data it vouches for is there")
        with system_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _check_size(path, os.fstat(descriptor).st_size)
                return cls(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise

    def _read(self) -> Testimony | None:
        """The newest valid slot; None if none was ever written."""
        found: dict[int, tuple[Testimony, int]] = {}
        blank = 0
        for slot in (0, 1):
            data = os.pread(self._descriptor, _SLOT, _PAGE + slot * _SLOT)
            blank += not any(data)
            generation, body = _slot_body(data)
            if body is not None:
                found[generation] = _testimony(self.path, body), slot
        if not found and blank < 2:
            raise StoreCorrupt(f"{self.path}: neither slot is valid")
        if not found:
            return None
        self._generation = max(found)
        testimony, self._kept = found[self._generation]
        self._settled = False
        return testimony

    def record(self, testimony: Testimony, *, durable: bool = False) -> None:
        """Write the next slot; fsync it if `durable`. What it tells must be fsynced already."""
        body = _body(testimony)
        generation = self._generation + 1
        data = _HEADER.pack(_MAGIC, generation, len(body), _check(generation, body)) + body
        slot = 1 - self._kept
        reach("witness.record.before")
        with system_errors(self.path):
            self._settle()
            if os.pwrite(self._descriptor, data, _PAGE + slot * _SLOT) < len(data):
                raise OSError(errno.ENOSPC, "only a part was written")
            if durable:
                reach("witness.sync.before")
                os.fdatasync(self._descriptor)  # writes dirty pages of the map too; `flush` would hold the GIL
                self._kept = slot
                reach("witness.sync.after")
        reach("witness.record.after")
        self._generation, self.testimony = generation, testimony

    def _settle(self) -> None:
        """The newest record that was found at open may not have been durable; it is the one to keep."""
        if not self._settled:
            os.fdatasync(self._descriptor)
            self._settled = True

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            for mark in self._marks:
                mark.release()
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1


def _check_size(path: Path, size: int) -> None:
    if size != _SIZE:
        raise StoreCorrupt(f"{path} is {size} bytes, not {_SIZE}")


def boot_id() -> str:
    """Which start of the operating system this is; "" where that cannot be known."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""


def _body(testimony: Testimony) -> bytes:
    """Encode; if the heads of all sources do not fit, keep this node's own and as many more as do."""
    fields = attrs.asdict(testimony, recurse=False)
    heads = dict(testimony.heads)
    body = _pack(fields, heads)
    while len(body) > _BODY_MAX:
        keep = len(heads) * _BODY_MAX // len(body) - 1
        own = {source: head for source, head in heads.items() if source == testimony.source}
        heads = own | dict(list(heads.items())[: max(0, keep)])
        body = _pack(fields, heads)
    return body


def _pack(fields: dict[str, Any], heads: dict[str, tuple[int, bytes]]) -> bytes:
    packed: bytes = msgpack.packb({**fields, "heads": heads})
    return packed


def _check(generation: int, body: bytes) -> bytes:
    return blake2b(generation.to_bytes(8, "big") + body, digest_size=16, person=b"deltalog witness").digest()


def _slot_body(data: bytes) -> tuple[int, bytes | None]:
    magic, generation, size, check = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + size]
    sane = magic == _MAGIC and generation <= _GENERATION_MAX  # one more must fit its 64 bits
    return generation, body if sane and _check(generation, body) == check else None


_TYPES: Final = {
    "store_id": bytes,
    "place": str,
    "boot": str,
    "clean": bool,
    "source": str,
    "sequence": int,
    "total": int,
    "cell": int,
}


def _testimony(path: Path, body: bytes) -> Testimony:
    try:
        fields = msgpack.unpackb(body)
        heads = {source: (seq, chain) for source, (seq, chain) in fields.pop("heads").items()}
        for field, value in fields.items():
            _check_type(field, value, _TYPES[field])
        for source, head in heads.items():
            for value, expected in zip((source, *head), (str, int, bytes), strict=True):
                _check_type("heads", value, expected)
        return Testimony(heads=heads, **fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise StoreCorrupt(f"{path}: a slot has a valid check but not this program's fields: {error}") from error


def _check_type(field: str, value: object, expected: type) -> None:
    if type(value) is not expected:
        raise TypeError(f"{field} holds {type(value).__name__}, not {expected.__name__}")


class system_errors:  # noqa: N801  # reads as a statement
    """Maps OSError to the store's errors, naming the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (StoreFull if full else StoreIOError)(f"{self._path}: {error}") from error
