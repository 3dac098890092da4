"""The short form of the fuzzing: hypothesis feeds hostile bytes to every target, and memory is measured."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

LIES = st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80", b"\1"]).flatmap(
    lambda byte: st.sampled_from([1, 2, 4, 8]).map(lambda size: byte * size)
)
"""What a length or number that lies may look like."""


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with a few faults: bits flipped, lengths that lie, pieces cut out, doubled or taken from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        fault = draw(st.sampled_from(["flip", "lie", "cut", "double", "splice", "insert"]))
        if fault == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif fault == "lie":
            lie = draw(LIES)
            data[at : at + len(lie)] = lie
        elif fault == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif fault == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        elif fault == "splice":
            data[at:] = draw(st.sampled_from(seeds))[at:]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=6))
    return bytes(data)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[str, bytes]:
    """A target's name and bytes that want to break it; where there is a check, it is often valid."""
    name = draw(st.sampled_from(sorted(TARGETS)))
    target = TARGETS[name]
    if target.seal is None or target.unseal is None or draw(st.integers(0, 3)) == 0:
        return name, draw(mutated(target.seeds) | st.binary(max_size=200))
    inner = tuple(map(target.unseal, target.seeds))
    return name, target.seal(draw(mutated(inner) | st.binary(max_size=200)))


FIXED_BYTES = 320 << 10
"""A packer of msgpack takes 256 KiB, whatever it packs; the targets encode again what they have read."""
BYTES_PER_BYTE = 180
"""Worst are maps of one entry, 3 bytes each: 77 bytes of memory a byte. The targets hold two values at a time."""


def peak_bytes(run: Callable[[bytes], None], data: bytes) -> int:
    """Most memory that a run takes beyond its input."""
    tracemalloc.start()
    try:
        run(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_taken(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.seal is not None])
def test_sealing_reverses_unsealing(name: str) -> None:
    target = TARGETS[name]
    assert target.seal is not None
    assert target.unseal is not None
    for seed in target.seeds:
        assert target.seal(target.unseal(seed)) == seed


@pytest.mark.parametrize("name", TARGETS)
def test_every_cut_and_every_flipped_bit_of_a_seed(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds[:3]:
        for size in range(min(len(seed), 300)):
            target.run(seed[:size])
        for bit in range(8 * min(len(seed), 150)):
            data = bytearray(seed)
            data[bit // 8] ^= 1 << bit % 8
            target.run(bytes(data))


@pytest.mark.parametrize("part", range(5))
@given(case=hostile())
def test_hostile_bytes_give_the_decoders_own_error_in_memory_bounded_by_their_size(
    part: int, case: tuple[str, bytes]
) -> None:
    name, data = case
    assert peak_bytes(TARGETS[name].run, data) <= FIXED_BYTES + BYTES_PER_BYTE * len(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("payload", b"\xdd" + struct.pack(">I", 1 << 15) + b"\x80" * (1 << 15)),
        ("payload", b"\xdd" + struct.pack(">I", 1 << 14) + b"\x81\1\xc0" * (1 << 14)),
        ("payload", b"\xdd" + struct.pack(">I", 1 << 14) + b"\x81\x90\xc0" * (1 << 14)),
        ("payload", b"\xdd" + struct.pack(">I", 1 << 15) + b"\x80" * (1 << 14)),
        ("payload", b"\xdb\xff\xff\xff\xff" + b"x" * (1 << 16)),
        ("record", b"\1\0" + b"\xff" * (1 << 16)),
        ("block", b"\1\0\xff\xff" + bytes(1 << 15)),
        ("deps", b"".join(b"\2" + number.to_bytes(2, "big") + bytes(7) + b"\1" for number in range(1, 128))),
        ("witness", b"dlw1" + bytes(8) + b"\xff" * 20),
    ],
    ids=range(9),
)
def test_a_bomb_takes_no_more_memory_than_its_size_allows(name: str, data: bytes) -> None:
    assert peak_bytes(TARGETS[name].run, data) <= FIXED_BYTES + BYTES_PER_BYTE * len(data)
