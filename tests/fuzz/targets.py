"""What is fuzzed: each decoder, real encodings to start from, and how to make a check valid again after a mutation.

A target takes any bytes. It returns, or fails: another error than the decoder's own, or bytes that were accepted and
are not what encoding gives for what was decoded.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import msgpack

from deltalog import block, keys
from deltalog.chain import extend, genesis, payload_hash
from deltalog.codec import Encoder, build, decode, decode_deps, encode_deps, erase
from deltalog.delta import NO_DEPS, Delta, Limits, decode_payload
from deltalog.errors import DecodeError, StoreCorrupt
from deltalog.keys import META, SOURCES, Head
from deltalog.witness import Testimony, Witness
from tests.models import record_of, sealed_row, witness_slot


@attrs.frozen
class Target:
    """One decoder."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    """Valid encodings, and what once got through."""
    unseal: Callable[[bytes], bytes] | None = None
    """Takes the check off, if there is one."""
    seal: Callable[[bytes], bytes] | None = None
    """Puts the check on that belongs to what `unseal` gave, however that was changed."""


# -------------------------------------------------------------------------------------- record, deps, block, payload

DELTAS: Final = (
    build("alice", 1, 5, None),
    build("alice", 2, 6, {"at": [1, 2.5, "é", b"\0"], "deep": {"a": [[[]]]}}, kind="edit", key="a/b"),
    build("alice", 3, 7, "x" * 40, deps={"bob": 1, "carol:\0": 2**63 - 1, "\N{GRINNING FACE}": 9}),
    build("alice", 4, 2**64 - 1, {(1, ("a", 2)): msgpack.ExtType(5, b"e"), 7: msgpack.Timestamp(1, 2)}),
)
ERASED: Final = erase(DELTAS[2], payload_hash(DELTAS[2]))


def read_record(data: bytes) -> None:
    """A record of one delta; its payload too."""
    try:
        delta = decode("alice", data)
    except DecodeError:
        return
    assert delta.record == data == record_of(delta)
    assert len(repr(delta)) < 20_000
    if not delta.erased:
        read_payload(delta.payload_bytes)


def read_deps(data: bytes) -> None:
    """Deps alone."""
    try:
        deps = decode_deps(data, "alice", Limits())
    except DecodeError:
        return
    assert encode_deps(deps) == data


def read_block(data: bytes) -> None:
    """A block, under the seq of its first record, so that its other records are looked at too."""
    at = 36 + 2 * int.from_bytes(data[2:4], "big") + 14
    first = int.from_bytes(data[at : at + 8], "big")
    try:
        part, size = block.decode_part("alice", first, data, first, first + 2)
        assert size == sum(len(record_of(delta)) for delta in part)
    except DecodeError:
        part = []
    try:
        found = block.decode("alice", first, data)
    except DecodeError:
        return
    assert part == found.deltas[1:3]
    assert [record_of(delta) for delta in found.deltas] == found.records
    assert data == data[:36] + found.tags + b"".join(found.records)
    assert found.previous == data[4:36]
    assert len(extend(found.previous, found.records)) == len(found.deltas)


def read_payload(data: bytes) -> None:
    """A payload; what was read can be appended, and then reads as the same."""
    try:
        value = decode_payload(data)
    except DecodeError:
        return
    again = _encoder.encode("alice", 1, lambda: 5, NO_DEPS, "", "", value)
    assert _encoder.encode("alice", 1, lambda: 5, NO_DEPS, "", "", again.payload).record == again.record


_encoder: Final = Encoder(Limits(payload_bytes=64 << 20))


def _block(*deltas: Delta) -> bytes:
    records = [delta.record for delta in deltas]
    return block.encode(genesis("alice"), extend(genesis("alice"), records), records)


# ---------------------------------------------------------------------------------------------------- rows of the store


def read_head(data: bytes) -> None:
    """A row in sources: 4 bytes of key, then the row."""
    key, value = data[:4], data[4:]
    try:
        source_no, source, head = keys.decode_head(key, value)
    except DecodeError:
        return
    assert keys.source_key(source_no) == key
    assert keys.encode_head(source_no, source, head) == value


def read_meta(data: bytes) -> None:
    """A row in meta."""
    try:
        keys.decode_meta(keys.META_SCRUB, data)
    except DecodeError:
        return
    assert sealed_row(META, keys.META_SCRUB, data[:-8]) == data


def read_time(data: bytes) -> None:
    """An entry of by_time: 21 bytes of key, then the value."""
    try:
        entry = keys.parse_time_entry(data[:21], data[21:])
    except DecodeError:
        return
    assert entry.key + entry.value == data
    assert entry.first <= entry.last
    assert entry.count


_HEAD: Final = Head(9, 5, b"h" * 32, 4, b"f" * 32, 700)
_META: Final = tuple(
    keys.encode_meta(keys.META_SCRUB, value) for value in (None, 5, b"s" * 16, ["alice", "alice~2"], {"a": {"b": [1]}})
)


# -------------------------------------------------------------------------------------------------------------- witness


def read_witness(data: bytes) -> None:
    """Slot 0 of a witness whose other slot holds nothing."""
    path = _witness_path()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(data[:16_384].ljust(16_384, b"\0"))
    try:
        witness = Witness.open(path)
    except StoreCorrupt:
        return
    try:
        told = witness.testimony
        if told is not None:
            witness.record(told)
            assert witness.testimony == told
    finally:
        witness.close()
        with path.open("r+b") as file:
            file.seek(20_480)
            file.write(bytes(16_384))


def _witness_path() -> Path:
    if not _paths:
        folder = tempfile.mkdtemp(prefix="deltalog-fuzz-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _paths.append(Path(folder) / "witness")
        Witness.create(_paths[0]).close()
    return _paths[0]


_paths: Final[list[Path]] = []


def _witness_bodies() -> Iterator[bytes]:
    for heads in ({}, {"alice": (7, b"h" * 32)}, {f"s{number}": (number, b"h" * 32) for number in range(9)}):
        told = Testimony(
            store_id=b"s" * 16,
            place="machine/7",
            boot="boot",
            clean=True,
            source="alice",
            sequence=12,
            heads=heads,
            total=43,
        )
        yield msgpack.packb(attrs.asdict(told, recurse=False))


def _unseal_witness(data: bytes) -> bytes:
    return data[4:12] + data[32:]


def _seal_witness(data: bytes) -> bytes:
    return witness_slot(int.from_bytes(data[:8], "big"), data[8:])


# --------------------------------------------------------------------------------------------------------------- table


TARGETS: Final[dict[str, Target]] = {
    "record": Target(read_record, (*(delta.record for delta in DELTAS), ERASED.record)),
    "deps": Target(
        read_deps,
        (
            encode_deps(DELTAS[2].deps),
            b"\1\xff" + bytes(7) + b"\1",  # was UnicodeDecodeError
        ),
    ),
    "block": Target(read_block, (_block(DELTAS[0]), _block(*DELTAS[1:3]), _block(*DELTAS), _block(ERASED))),
    "payload": Target(
        read_payload,
        (
            *(delta.payload_bytes for delta in DELTAS),
            b"\x91" * 1024 + b"\xc0",
            b"\x82" + b"\x91" * 50 + b"\1\2\1\2",
            b"\xdd\0\0\1\0" + b"\x80" * 256,
        ),
    ),
    "time": Target(
        read_time,
        tuple(
            entry.key + entry.value
            for entry in (keys.TimeEntry(0, 2**64 - 1, 1, 2, 3, 4), keys.TimeEntry(5, 5, 1, 2, 1, 4))
        ),
    ),
    "head": Target(
        read_head,
        tuple(keys.source_key(7) + keys.encode_head(7, source, _HEAD) for source in ("alice", "\N{GRINNING FACE}")),
        unseal=lambda data: data[:-8],
        seal=lambda data: data[:4] + sealed_row(SOURCES, data[:4], data[4:]),
    ),
    "meta": Target(
        read_meta, _META, unseal=lambda data: data[:-8], seal=lambda data: sealed_row(META, keys.META_SCRUB, data)
    ),
    "witness": Target(
        read_witness,
        tuple(witness_slot(2, body) for body in _witness_bodies()),
        unseal=_unseal_witness,
        seal=_seal_witness,
    ),
}
"""Every decoder of bytes that a file or a peer may have made."""
