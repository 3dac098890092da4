"""Walks RocksDB's logs before RocksDB does, and stops at what it would misread without a word.

What lives here: the framing of `*.log` and `MANIFEST-*`. What this file does not know: what the records mean, which
family they belong to, rocksdict. It only reads.

A log is a row of blocks of 32 KiB; the last may be shorter. A block is a row of records and up to six zero bytes:

    record   crc u32 | length u16 | type u8 | payload, `length` bytes        (little endian)
    type     0 none, 1 full, 2 first, 3 middle, 4 last
             5-8 the same in a recycled file, 11 another recycled kind: four more header bytes, the file's number
    crc      CRC-32C of type and payload, masked: rotated right by 15, plus 0xa282ead8

Three kinds of damage pass RocksDB 9.8.4 in silence, and are found here:

    recycled    a record of type 5-8 or 11. This project recycles no file, so such a type is a flipped bit. As the
                first record of a file it makes RocksDB take the whole file for empty; anywhere else it makes every
                open, also a read-only one, spin for ever with the GIL held (facebook/rocksdb#13333).
    length      a record that says it goes on past the end of the file, although its checksum is that of a shorter
                one. RocksDB takes it for a write that a crash cut off, and drops it and all that follow.
    hole        a block that goes on with zeros where a record should start, and bytes again later in the file. RocksDB
                skips to the next block: a gap in the middle.

All else it reports itself (a checksum that does not match). No walk of files finds a log that was cut between two
records, emptied or removed: for that, compare `Rocks.sequence_number()` with a figure kept elsewhere.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import attrs

from deltalog.errors import StoreCorrupt

BLOCK_BYTES = 32 * 1024
HEADER_BYTES = 7
READ_BYTES = 32 * BLOCK_BYTES
"""How much is held in memory at a time: 1 MiB."""
RECYCLED_TYPES = frozenset({5, 6, 7, 8, 11})
_HEADER = struct.Struct("<IHB")


@attrs.frozen
class Finding:
    """One place that RocksDB would misread."""

    file: Path
    offset: int
    """Bytes from the start of the file to the record's header."""
    kind: str
    """`recycled`, `length` or `hole`; see the table above."""

    def __str__(self) -> str:
        return f"{self.file} is damaged at offset {self.offset} ({_SENTENCES[self.kind]})"


_SENTENCES = {
    "recycled": "a record type that RocksDB never stops reading, or takes for the end",
    "length": "a record's length goes past the end of the file, its checksum does not",
    "hole": "zeros where a record should start, data after them",
}


def check(directory: str | os.PathLike[str]) -> None:
    """Raise `StoreCorrupt` naming file and offset of the first damage found. Costs about 1 ms a MB; reads only."""
    for finding in findings(directory):
        raise StoreCorrupt(str(finding))


def findings(directory: str | os.PathLike[str]) -> Iterator[Finding]:
    """Yield the first damage of each log and MANIFEST of `directory`, by file name."""
    for path in sorted(Path(directory).iterdir()):
        if path.suffix == ".log" or path.name.startswith("MANIFEST-"):
            finding = _first_in_file(path)
            if finding is not None:
                yield finding


def _first_in_file(path: Path) -> Finding | None:
    hole: int | None = None  # where zeros began; damage only if something follows
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        for start, block in _blocks(file):
            if hole is not None:
                if block.strip(b"\0"):
                    return Finding(path, hole, "hole")
                continue
            position, kind = _first_in_block(block, last=start + len(block) >= size_bytes)
            if kind == "hole?":
                hole = start + position
            elif kind:
                return Finding(path, start + position, kind)
    return None


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    start = 0
    while chunk := file.read(READ_BYTES):
        for at in range(0, len(chunk), BLOCK_BYTES):
            yield start + at, chunk[at : at + BLOCK_BYTES]
        start += len(chunk)


def _first_in_block(block: bytes, *, last: bool) -> tuple[int, str]:
    """Return where in the block the walk ended, and what is wrong there: a kind, "hole?" (nothing but zeros), or ""."""
    position, end = 0, len(block) - HEADER_BYTES
    unpack = _HEADER.unpack_from
    while position <= end:
        crc, length, kind = unpack(block, position)
        if kind in RECYCLED_TYPES:
            return position, "recycled"
        after = position + HEADER_BYTES + length
        if after > len(block):
            # Inside the file RocksDB reports this. At its end it takes it for a torn write, which it may well be.
            return position, "length" if last and _shorter_record(block, position, crc) else ""
        if kind == 0 and length == 0:
            return position, "hole" if block[position:].strip(b"\0") else "hole?"
        position = after
    return position, ""


def _shorter_record(block: bytes, position: int, masked_crc: int) -> bool:
    """Return whether some shorter length makes the record's checksum right (by chance: once in 130,000 torn writes)."""
    rotated = (masked_crc - 0xA282EAD8) & 0xFFFFFFFF
    wanted = ((rotated >> 17 | rotated << 15) & 0xFFFFFFFF) ^ 0xFFFFFFFF
    crc = 0xFFFFFFFF
    for byte in block[position + 6 :]:  # the type, then the payload
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
        if crc == wanted:
            return True
    return False


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC32C = _crc32c_table()
