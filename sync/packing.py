"""Frames of batches, packed: several in one PACKED frame, compressed by zlib.

It pays on a link that is slower than the compressor, so between machines, and not within one (docs/protocol.md has the
figures). Pure: no I/O, no state. Who packs, and when: see `peer`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from sync.errors import ProtocolError
from sync.messages import FRAME_BYTES, PACKABLE, PREFIX_BYTES, Packed, encode, frame_size

FEATURE: Final = "zlib"
"""What a HELLO says of a node that reads PACKED frames."""
PACK_BYTES: Final = 128 << 10
"""Bytes of frames packed together: about 1 ms of the event loop."""
PACK_BYTES_MIN: Final = 512
"""Less is sent as it is."""
PACK_FRAMES_MAX: Final = 4096
"""Frames packed together."""
_LEVEL: Final = 1


def pack(frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield frames that say the same in the same order: packed where that saves an eighth, else as they are.

    As many at a time as were looked at together, so that others may run between.
    """
    group: list[bytes] = []
    size = 0
    for frame in frames:
        if group and (size + len(frame) > PACK_BYTES or len(group) >= PACK_FRAMES_MAX):
            yield _packed(group, size)
            group, size = [], 0
        group.append(frame)
        size += len(frame)
    yield _packed(group, size)


def _packed(group: list[bytes], size: int) -> list[bytes]:
    if not PACK_BYTES_MIN <= size <= FRAME_BYTES:
        return group
    packed = encode(Packed(zlib.compress(b"".join(group), _LEVEL)))
    return [packed] if len(packed) <= size - size // 8 else group


def unpack(packed: Packed) -> bytes:
    """Return the frames in a PACKED one: whole ones, of batches only, `FRAME_BYTES` together at most.

    Raises `ProtocolError`, and nothing else. Never inflates more than that, whatever the peer sent.
    """
    inflater = zlib.decompressobj()
    try:
        frames = inflater.decompress(packed.body, FRAME_BYTES + 1)
    except zlib.error as error:
        raise ProtocolError(f"packed: {error}") from error
    if len(frames) > FRAME_BYTES:
        raise ProtocolError(f"packed: more than {FRAME_BYTES:,} bytes of frames")
    if not inflater.eof or inflater.unused_data:
        raise ProtocolError("packed: " + ("bytes behind the end" if inflater.eof else "it ends too early"))
    at = 0
    for _ in range(PACK_FRAMES_MAX):
        prefix = frames[at : at + PREFIX_BYTES]
        if len(prefix) < PREFIX_BYTES:
            break  # the end, or half a frame
        size, number = frame_size(prefix, FRAME_BYTES, FRAME_BYTES)
        if number not in PACKABLE:
            raise ProtocolError(f"packed: a message of type {number}")
        at += PREFIX_BYTES + size
    if at != len(frames):
        raise ProtocolError(f"packed: the last frame is not whole, or there are more than {PACK_FRAMES_MAX:,}")
    return frames
