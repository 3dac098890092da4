"""The guard against logs that RocksDB misreads: on files framed here, and on files that RocksDB wrote."""

from __future__ import annotations

import functools
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog import walguard
from deltalog.errors import StoreCorrupt
from deltalog.rocks import FamilyProfile, Rocks, SharedMemory

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BLOCK = walguard.BLOCK_BYTES
HEADER = walguard.HEADER_BYTES


@functools.cache
def crc32c(data: bytes) -> int:
    """Reflected bit by bit into a table of its own; shares nothing with the one under test."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def shifted(crc: int, bits: int) -> int:
    return crc if not bits else shifted(crc >> 1 ^ (crc & 1) * 0x82F63B78, bits - 1)


TABLE = [shifted(byte, 8) for byte in range(256)]


def record(payload: bytes, kind: int = FULL) -> bytes:
    crc = crc32c(bytes([kind]) + payload)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<IHB", masked, len(payload), kind) + payload


def framed(payloads: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """A log as RocksDB writes it, and where its physical records start."""
    log, starts = bytearray(), []
    for payload in payloads:
        rest, kind = payload, 0
        while True:
            room = BLOCK - len(log) % BLOCK
            if room < HEADER:
                log += bytes(room)
                room = BLOCK
            part, rest = rest[: room - HEADER], rest[room - HEADER :]
            begun = kind in (FIRST, MIDDLE)
            kind = (MIDDLE if begun else FIRST) if rest else (LAST if begun else FULL)
            starts.append(len(log))
            log += record(part, kind)
            if not rest:
                break
    return bytes(log), starts


def found(directory: Path, log: bytes, name: str = "000004.log") -> tuple[int, str] | None:
    (directory / name).write_bytes(log)
    first = next(walguard.findings(directory), None)
    return None if first is None else (first.offset, first.kind)


def with_bit(data: bytes, offset: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def with_byte(data: bytes, offset: int, byte: int) -> bytes:
    return data[:offset] + bytes([byte]) + data[offset + 1 :]


def test_crc32c_here_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


# ----------------------------------------------------------------------------------------------------- sound logs


def test_nothing_to_check_is_sound(tmp_path: Path) -> None:
    walguard.check(tmp_path)
    for name in ("000001.log", "MANIFEST-000002"):
        (tmp_path / name).touch()
    walguard.check(tmp_path)


def test_only_logs_and_manifests_are_read(tmp_path: Path) -> None:
    bad = with_byte(framed([b"a", b"b"])[0], 6, 5)
    for name in ("LOG", "000007.sst", "CURRENT", "OPTIONS-000005", "rocksdict-config.json"):
        (tmp_path / name).write_bytes(bad)
    walguard.check(tmp_path)


def test_what_rocksdb_writes_is_sound(tmp_path: Path) -> None:
    store = Rocks.create(tmp_path / "s", {"a": FamilyProfile()}, SharedMemory())
    for size in (0, 1, 100, 5_000, 32_700, 32_761, 32_768, 100_000):
        for _ in range(3):
            batch = store.batch()
            batch.put("a", b"key", b"v" * size)
            store.write(batch)
        walguard.check(store.path)
        store.flush()
        walguard.check(store.path)
    store.close()
    walguard.check(store.path)


sizes = st.lists(
    st.integers(0, 300) | st.sampled_from([32_754, 32_760, 32_761, 32_762, 70_000]), min_size=1, max_size=12
)


@given(sizes, st.data())
def test_a_write_that_a_crash_cut_off_is_sound(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    log, _ = framed([b"x" * size for size in sizes])
    cut = data.draw(st.integers(0, len(log)))
    assert found(tmp_path_factory.mktemp("torn"), log[:cut]) is None


def test_a_log_cut_at_each_byte_of_its_last_records_is_sound(tmp_path: Path) -> None:
    log, starts = framed([bytes([index % 256]) * 50 for index in range(700)])
    for cut in range(starts[-4], len(log)):
        assert found(tmp_path, log[:cut]) is None


def test_zeros_to_the_end_are_sound(tmp_path: Path) -> None:
    """As a file system leaves a file whose length reached the disk before its data."""
    log, _ = framed([b"x" * 100] * 10)
    for zeros in (1, 6, 7, 20, BLOCK, 5 * BLOCK):
        assert found(tmp_path, log + bytes(zeros)) is None


# ------------------------------------------------------------------------------------------------ what RocksDB misreads


@pytest.mark.parametrize("kind", sorted(walguard.RECYCLED_TYPES))
@pytest.mark.parametrize("name", ["000004.log", "MANIFEST-000005"])
def test_recycled_type_in_any_record_is_found(tmp_path: Path, kind: int, name: str) -> None:
    log, starts = framed([b"x" * 400] * 200)
    for start in (starts[0], starts[1], starts[len(starts) // 2], starts[-1]):
        assert found(tmp_path, with_byte(log, start + 6, kind), name) == (start, "recycled")


def test_no_other_type_is_taken_for_a_recycled_one(tmp_path: Path) -> None:
    """RocksDB's own checksum covers the type, and reports these."""
    log, starts = framed([b"x" * 40] * 3)
    for kind in set(range(256)) - walguard.RECYCLED_TYPES:
        assert found(tmp_path, with_byte(log, starts[1] + 6, kind)) is None


@given(st.lists(st.integers(0, 300), min_size=2, max_size=60), st.data())
def test_length_that_leads_past_the_end_is_found(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    log, starts = framed([bytes([index + 1]) * size for index, size in enumerate(sizes)])
    index = data.draw(st.integers(0, len(starts) - 1))
    length = data.draw(st.integers(len(log) - starts[index] - HEADER + 1, 0xFFFF))
    changed = log[: starts[index] + 4] + struct.pack("<H", length) + log[starts[index] + 6 :]
    assert found(tmp_path_factory.mktemp("length"), changed) == (starts[index], "length")


def test_length_within_a_full_block_is_left_to_rocksdb(tmp_path: Path) -> None:
    log, starts = framed([b"x" * 400] * 200)
    assert starts[3] < BLOCK < len(log)
    assert found(tmp_path, with_bit(log, starts[3] + 5, 7)) is None


@pytest.mark.parametrize("block", [0, 1, 31, 32, 40])
def test_zeroed_block_with_data_after_it_is_found(tmp_path: Path, block: int) -> None:
    payload = BLOCK - HEADER  # one record a block
    log, _ = framed([b"x" * payload] * 45)
    start = block * BLOCK
    assert found(tmp_path, log[:start] + bytes(BLOCK) + log[start + BLOCK :]) == (start, "hole")


def test_zeros_within_a_block_with_data_after_them_are_found(tmp_path: Path) -> None:
    log, starts = framed([b"x" * 100] * 20)
    zeroed = log[: starts[5]] + bytes(starts[7] - starts[5]) + log[starts[7] :]
    assert found(tmp_path, zeroed) == (starts[5], "hole")


def test_offset_is_right_beyond_what_is_read_at_a_time(tmp_path: Path) -> None:
    log, starts = framed([b"x" * 20_000] * 300)
    for index in (len(starts) // 3, len(starts) - 1):
        assert starts[index] > walguard.READ_BYTES
        assert found(tmp_path, with_byte(log, starts[index] + 6, 6)) == (starts[index], "recycled")


def test_check_names_file_and_offset(tmp_path: Path) -> None:
    log, starts = framed([b"one", b"two", b"three"])
    (tmp_path / "000002.log").write_bytes(log)
    (tmp_path / "000009.log").write_bytes(with_byte(log, starts[2] + 6, 8))
    with pytest.raises(StoreCorrupt, match=rf"000009\.log is damaged at offset {starts[2]} "):
        walguard.check(tmp_path)


def test_findings_gives_the_first_of_each_file(tmp_path: Path) -> None:
    log, starts = framed([b"one", b"two", b"three"])
    (tmp_path / "000002.log").write_bytes(with_byte(with_byte(log, starts[1] + 6, 8), starts[2] + 6, 8))
    (tmp_path / "MANIFEST-000001").write_bytes(with_byte(log, 6, 5))
    files = [(finding.file.name, finding.offset) for finding in walguard.findings(tmp_path)]
    assert files == [("000002.log", starts[1]), ("MANIFEST-000001", 0)]


def test_nothing_is_written(tmp_path: Path) -> None:
    log, _ = framed([b"one", b"two"])
    path = tmp_path / "000002.log"
    path.write_bytes(with_byte(log, 6, 5))
    path.chmod(0o400)
    before = path.stat()
    with pytest.raises(StoreCorrupt):
        walguard.check(tmp_path)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)


def test_memory_is_bounded_by_what_is_read_at_a_time(tmp_path: Path) -> None:
    one, _ = framed([b"x" * (BLOCK - HEADER)])
    (tmp_path / "000002.log").write_bytes(one * (40 * walguard.READ_BYTES // BLOCK))
    tracemalloc.start()
    try:
        walguard.check(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * walguard.READ_BYTES
    finally:
        tracemalloc.stop()
