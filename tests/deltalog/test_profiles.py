"""Options are checked where they are made. What they do is tested with `Rocks`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deltalog.errors import UsageError
from deltalog.profiles import FamilyProfile, SharedMemory


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("write_buffer_bytes must be an integer of at least 65,536", lambda: FamilyProfile(write_buffer_bytes=0)),
        ("block_bytes", lambda: FamilyProfile(block_bytes=1.5e4)),  # type: ignore[arg-type]
        ("file_bytes", lambda: FamilyProfile(file_bytes=-1)),
        ("compression must be one of zstd, lz4, none", lambda: FamilyProfile(compression="gzip")),  # type: ignore[arg-type]
        ("bottommost_zstd_level", lambda: FamilyProfile(bottommost_zstd_level=0)),
        ("bloom_bits", lambda: FamilyProfile(bloom_bits=True)),
        ("cache_bytes", lambda: SharedMemory(cache_bytes=0)),
        ("write_buffers_bytes", lambda: SharedMemory(write_buffers_bytes=100)),
    ],
)
def test_wrong_option_is_named(text: str, wrong: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=text):
        wrong()


def test_bottommost_level_is_optional() -> None:
    assert FamilyProfile(bottommost_zstd_level=None).bottommost_zstd_level is None


def test_profiles_are_values() -> None:
    assert FamilyProfile() == FamilyProfile()
    assert SharedMemory(cache_bytes=1 << 20) == SharedMemory(cache_bytes=1 << 20)
