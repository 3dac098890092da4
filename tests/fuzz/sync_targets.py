"""What is fuzzed of the protocol: frames, parts of a heads exchange, signed heads, evidence. As `targets`.

A frame is fuzzed with its 5 bytes of size and type. A message that was taken encodes to something that decodes to the
same: msgpack has several encodings of one value, and peers may use any of them.
"""

from __future__ import annotations

from typing import Final

import msgpack

from deltalog.codec import build
from deltalog.delta import Limits
from deltalog.errors import DecodeError
from sync import comparison
from sync.comparison import ANSWER, DIGESTS, ENTRIES, MORE, Part
from sync.errors import ProtocolError
from sync.heads import Entry, key_of
from sync.messages import (
    FRAME_BYTES,
    PREFIX_BYTES,
    Ack,
    Alive,
    Below,
    Busy,
    Commit,
    Compare,
    Deltas,
    Goodbye,
    Have,
    Head,
    Hello,
    Message,
    Packed,
    Total,
    Unwant,
    Want,
    Welcome,
    decode,
    encode,
    encode_run,
    frame_size,
    record_bytes_max,
)
from sync.packing import unpack
from sync.trust import Evidence, SignedHead, decode_head, encode_head
from tests.fuzz.targets import Target

_LIMITS: Final = Limits()
_HASH: Final = bytes(range(32))
_OTHER: Final = bytes(range(32, 64))
_KEY: Final = b"k" * 32
_SIGNATURE: Final = b"s" * 64
_FACE: Final = "\N{GRINNING FACE}"
_ENTRIES: Final = tuple(
    sorted(
        (Entry("alice", 3, _HASH), Entry("bob", 2**63 - 1, _OTHER), Entry(_FACE, 1, _HASH)), key=lambda e: key_of(e[0])
    )
)
PARTS: Final = (
    Part(DIGESTS, b"", _HASH * 8),
    Part(ENTRIES, b"", entries=_ENTRIES),
    Part(
        ANSWER,
        b"",
        entries=tuple(sorted((*_ENTRIES[:2], Entry("gone", 0, b"")), key=lambda entry: key_of(entry.source))),
    ),
    Part(DIGESTS, b"\1\2\17", bytes(256)),
    Part(MORE),
)
RUN: Final = (
    build("alice", 7, 70, None),
    build("alice", 8, 71, {"at": [1, 2.5, "é", b"\0"]}, kind="edit", key="a/b"),
    build("alice", 9, 72, "x" * 40, deps={"bob": 1, "carol": 2**63 - 1}),
)
MESSAGES: Final[tuple[Message, ...]] = (
    Hello(1, "team", "alice", "alice~0123456789", _KEY, _SIGNATURE, ("sets", "more")),
    Hello(0xFFFF, "", _FACE, "x" * 255),
    Welcome(0, b"", 0, 0, _HASH),
    Welcome(2**63 - 1, _HASH, 100_000, 2**64 - 1, _OTHER),
    Busy(86_400_000),
    Goodbye("protocol", "seq must be an integer from 1 to 9, not 0"),
    Compare(tuple(comparison.encode(PARTS))),
    Want((("alice", 0), ("bob", 2**63 - 1))),
    Unwant(("alice", _FACE)),
    Have((("alice", 1), (_FACE, 2**63 - 1))),
    Head("alice", 9, _HASH, _KEY, _SIGNATURE, _SIGNATURE),
    Head("import", 1, _HASH, b"", b"", b""),
    Commit(2**63 - 1),
    Ack(1, (("alice", 9), ("import", 0))),
    Below("snapshot-7", (("alice", 5),)),
    Alive(3, 12, _HASH),
    Total(100_000, 2**64 - 1),
    Packed(
        bytes.fromhex(
            "780163606038c7c99a9893999cca0001ec408a9911c4061310413009920101b70360195106160666880898e480b2dd53"
            "53324b12f5931a1725964c613cedc002115f7478e5114688995a509552509a134a7b3027e52741d98cacc98945f939f5"
            "ff21e0a646059100a8ff22d7b4a5602f711e516060646266616563e7e0e4e2e6e1e5e317101412161115139790949296"
            "9195933fa2904d001c7128a610506e02d053dcdc13cfc3420300e012862e"
        )
    ),
)
"""One of each type at least, but for DELTAS."""
FRAMES: Final = (*map(encode, MESSAGES), *encode_run("alice", 7, [delta.record for delta in RUN]))
HEADS: Final = (
    SignedHead("alice", 9, _HASH, _KEY, _SIGNATURE, _SIGNATURE),
    SignedHead("alice", 9, _OTHER, _KEY, _SIGNATURE, b""),
    SignedHead("import", 2**63 - 1, _HASH, b"", b"", b""),
)


def read_frame(data: bytes) -> None:
    """A frame, whole or not."""
    try:
        size, number = frame_size(
            data[:PREFIX_BYTES].ljust(PREFIX_BYTES, b"\0"), FRAME_BYTES, record_bytes_max(_LIMITS)
        )
        message = decode(number, data[PREFIX_BYTES : PREFIX_BYTES + size])
    except ProtocolError:
        return
    if isinstance(message, Deltas):
        _read_run(message)
        return
    if isinstance(message, Compare):
        _read_parts(list(message.parts))
        return
    if isinstance(message, Packed):
        _read_packed(message)
    frame = encode(message)
    assert decode(frame[4], frame[PREFIX_BYTES:]) == message


def _read_packed(message: Packed) -> None:
    try:
        frames = unpack(message)
    except ProtocolError:
        return
    while frames:
        end = PREFIX_BYTES + frame_size(frames[:PREFIX_BYTES], FRAME_BYTES, FRAME_BYTES)[0]
        read_frame(frames[:end])
        frames = frames[end:]


def _read_run(message: Deltas) -> None:
    try:
        deltas = message.decode(_LIMITS)
    except ProtocolError:
        return
    assert b"".join(delta.record for delta in deltas) == message.records
    assert [delta.seq for delta in deltas] == list(range(message.seq, message.seq + message.count))


def read_parts(data: bytes) -> None:
    """A heads exchange: a msgpack value as a message may hold it."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except Exception:  # noqa: BLE001  # what is no msgpack is not for this target
        return
    _read_parts(value)


def _read_parts(value: object) -> None:
    try:
        parts = comparison.decode(value)
    except ProtocolError:
        return
    assert comparison.decode(comparison.encode(parts)) == parts


def read_signed_head(data: bytes) -> None:
    """A signed head as it is kept."""
    try:
        head = decode_head(data)
    except DecodeError:
        return
    assert encode_head(head) == data


def read_evidence(data: bytes) -> None:
    """Evidence as it is kept."""
    try:
        evidence = Evidence.decode(data)
    except DecodeError:
        return
    assert evidence.encode() == data


def _evidence() -> bytes:
    found = Evidence.of(HEADS[0], HEADS[1])
    assert found is not None
    return found.encode()


TARGETS: Final[dict[str, Target]] = {
    "frame": Target(read_frame, FRAMES),
    "parts": Target(read_parts, tuple(msgpack.packb(comparison.encode(PARTS[start:])) for start in range(len(PARTS)))),
    "signed-head": Target(read_signed_head, tuple(map(encode_head, HEADS))),
    "evidence": Target(read_evidence, (_evidence(),)),
}
"""Every decoder of bytes that a peer sends, or that the ledger keeps."""
