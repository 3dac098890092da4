"""The short form of the fuzzing of what a peer sends, as `test_codec` has it for what is stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.sync_targets import FRAMES, TARGETS
from tests.fuzz.test_codec import BYTES_PER_BYTE, FIXED_BYTES, mutated, peak_bytes


@st.composite
def hostile(draw: st.DrawFn) -> tuple[str, bytes]:
    """A target's name and bytes that want to break it."""
    name = draw(st.sampled_from(sorted(TARGETS)))
    return name, draw(mutated(TARGETS[name].seeds) | st.binary(max_size=200))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A frame of the right size, whose body is anything: what is behind the checks of size and type."""
    number = draw(st.sampled_from([frame[4] for frame in FRAMES]))
    body = draw(mutated(tuple(frame[5:] for frame in FRAMES if frame[4] == number)))
    return (1 + len(body)).to_bytes(4, "big") + bytes([number]) + body


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_taken(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_cut_and_every_flipped_bit_of_a_seed(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for size in range(min(len(seed), 300)):
            target.run(seed[:size])
        for bit in range(8 * min(len(seed), 150)):
            data = bytearray(seed)
            data[bit // 8] ^= 1 << bit % 8
            target.run(bytes(data))


@pytest.mark.parametrize("part", range(3))
@given(case=hostile() | bodies().map(lambda frame: ("frame", frame)))
def test_hostile_bytes_give_the_decoders_own_error_in_memory_bounded_by_their_size(
    part: int, case: tuple[str, bytes]
) -> None:
    name, data = case
    assert peak_bytes(TARGETS[name].run, data) <= FIXED_BYTES + BYTES_PER_BYTE * len(data)


@pytest.mark.parametrize("number", sorted({frame[4] for frame in FRAMES} - {9}))
@pytest.mark.parametrize(
    "body",
    [
        b"\xdc\x20\x00" + (b"\x9f" + b"\x90" * 15) * 8192,
        b"\xdc\x20\x00" + b"\x90" * 8192,
        b"\x91" * 1000 + b"\xc0",
        b"\x91" * 200_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff" + b"x" * 9,
    ],
    ids=["wide", "flat", "deep", "deeper", "array", "text"],
)
def test_a_bomb_takes_no_more_memory_than_its_size_allows(number: int, body: bytes) -> None:
    data = (1 + len(body)).to_bytes(4, "big") + bytes([number]) + body
    assert peak_bytes(TARGETS["frame"].run, data) <= FIXED_BYTES + BYTES_PER_BYTE * len(data)
