"""Bytes of the protocol as released: one frame of each type, in a file that is never rewritten.

A frame that this version reads otherwise, or writes otherwise, is another protocol: raise `messages.VERSION`, keep this
file, and add another. `python -m tests.sync.test_golden` prints the lines of a new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from deltalog.delta import Limits
from sync import comparison
from sync.messages import (
    PREFIX_BYTES,
    VERSION,
    Compare,
    Deltas,
    Message,
    Packed,
    decode,
    encode,
    encode_run,
    frame_size,
)
from sync.packing import unpack
from tests.fuzz.sync_targets import FRAMES, MESSAGES, PARTS, RUN

PATH: Final = Path(__file__).parent / "golden" / f"frames-{VERSION}.hex"
"""A line for each frame: name of the type, its bytes in hex."""


def golden() -> list[tuple[str, bytes]]:
    """Names and frames of the file."""
    lines = [line.split() for line in PATH.read_text().splitlines() if line and not line.startswith("#")]
    return [(name, bytes.fromhex(data)) for name, data in lines]


def read(frame: bytes) -> Message:
    """The message of a frame, all of whose bytes belong to it."""
    size, number = frame_size(frame[:PREFIX_BYTES], 1 << 18, 1 << 20)
    assert len(frame) == PREFIX_BYTES + size
    return decode(number, frame[PREFIX_BYTES:])


def test_t19_every_type_has_a_golden_frame() -> None:
    assert {frame[4] for _, frame in golden()} == set(range(1, 17))


@pytest.mark.parametrize(("name", "frame"), golden())
def test_t19_a_golden_frame_is_read_and_written_as_it_was(name: str, frame: bytes) -> None:
    message = read(frame)
    assert type(message).__name__ == name
    if isinstance(message, Deltas):
        records = [delta.record for delta in message.decode(Limits())]
        assert list(encode_run(message.source, message.seq, records)) == [frame]
    else:
        assert encode(message) == frame
    if isinstance(message, Compare):
        parts = comparison.decode(list(message.parts))
        assert encode(Compare(tuple(comparison.encode(parts)))) == frame


def test_t19_golden_frames_mean_what_they_meant() -> None:
    said = [read(frame) for _, frame in golden()]
    assert [message for message in said if not isinstance(message, Deltas | Compare)] == [
        message for message in MESSAGES if not isinstance(message, Compare)
    ]
    (packed,) = [message for message in said if isinstance(message, Packed)]
    first = dict(reversed(golden()))
    assert unpack(packed) == first["Deltas"] + first["Head"] + first["Commit"]
    (compare,) = [message for message in said if isinstance(message, Compare)]
    assert comparison.decode(list(compare.parts)) == list(PARTS)
    (run,) = [message for message in said if isinstance(message, Deltas)]
    assert (run.source, run.seq, run.decode(Limits())) == ("alice", 7, list(RUN))


if __name__ == "__main__":
    for each in FRAMES:
        print(type(read(each)).__name__, each.hex())
