"""RocksDB's options: what an instance may choose, and what is the same for all.

Stands below `rocks`, which passes each option at each open, so that rocksdict never takes one from a file it finds.
The only other file that imports rocksdict. Compiled into its wheel: zstd, lz4, snappy, zlib, bzip2 (a new LOG says so).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import attrs
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    WriteBufferManager,
)

from deltalog.errors import UsageError


def _at_least(least: int, *, optional: bool = False) -> Callable[[object, Any, object], None]:
    def check(_instance: object, attribute: Any, value: object) -> None:
        if not (type(value) is int and value >= least) and not (optional and value is None):
            raise UsageError(f"{attribute.name} must be an integer of at least {least:,}, not {value!r}")

    return check


def _one_of(*names: str) -> Callable[[object, Any, object], None]:
    def check(_instance: object, attribute: Any, value: object) -> None:
        if value not in names:
            raise UsageError(f"{attribute.name} must be one of {', '.join(names)}, not {value!r}")

    return check


@attrs.frozen(kw_only=True)
class FamilyProfile:
    """The options of one column family. None changes what is stored; each may differ from one open to the next."""

    write_buffer_bytes: int = attrs.field(default=4 << 20, validator=_at_least(64 << 10))
    """Memory for new writes before they become a file; default 4 MiB. Recovery from a full disk needs as much room
    free, so 4 to 8 MiB; more means fewer, larger files to merge."""
    block_bytes: int = attrs.field(default=16 << 10, validator=_at_least(1 << 10))
    """What one read brings in and one checksum covers, before compression; default 16 KiB. Larger compresses better
    and reads ranges faster; smaller reads single keys faster."""
    file_bytes: int = attrs.field(default=32 << 20, validator=_at_least(256 << 10))
    """Size at which a merged file is closed; default 32 MiB. Smaller lets `Rocks.compact` of a range rewrite less."""
    compression: Literal["zstd", "lz4", "none"] = attrs.field(default="lz4", validator=_one_of("zstd", "lz4", "none"))
    """Of files above the last level; default lz4, which costs next to nothing. The WAL is never compressed."""
    bottommost_zstd_level: int | None = attrs.field(default=3, validator=_at_least(1, optional=True))
    """zstd level of the last level, where all data ends up; default 3. None: as `compression`. A higher one costs time
    in compactions only."""
    bloom_bits: int = attrs.field(default=0, validator=_at_least(0))
    """Bits of Bloom filter per key; default 0 = none. 10 spares 99 % of the reads of absent keys, and nothing else."""


@attrs.frozen
class SharedMemory:
    """One block cache and one budget of write buffers for all instances of a process: made once, given to each open.

    Write buffers are charged to the cache, so `cache_bytes` is a target for both together. What is being flushed or
    read at the moment may pass it: by a tenth under steady load, more if single batches are large.

    A block that is in the cache is not read from disk again, not even by another instance over the same files. Who
    wants to know what is on disk closes it and opens it (read-only, say) with a `SharedMemory` of its own.
    """

    cache_bytes: int = attrs.field(default=32 << 20, validator=_at_least(1 << 20))
    """Blocks, indexes and filters that were read, and the write buffers; default 32 MiB."""
    write_buffers_bytes: int = attrs.field(default=16 << 20, validator=_at_least(1 << 20))
    """All instances together; default 16 MiB. Reaching it flushes the instance that writes. Too small for the load, it
    flushes so often that writes are refused (StoreBackpressure): 4 MiB was too small for five busy instances."""
    cache: Cache = attrs.field(init=False, repr=False, eq=False)
    buffers: WriteBufferManager = attrs.field(init=False, repr=False, eq=False)

    @cache.default
    def _new_cache(self) -> Cache:
        return Cache(self.cache_bytes)

    @buffers.default
    def _new_buffers(self) -> WriteBufferManager:
        return WriteBufferManager.new_write_buffer_manager_with_cache(self.write_buffers_bytes, False, self.cache)

    def forget_cached(self) -> None:
        """Drop the blocks that reads left in the cache, so that the next reads look at the disk. Costs these reads."""
        self.cache.set_capacity(0)
        self.cache.set_capacity(self.cache_bytes)

    def used_bytes(self) -> int:
        """Return how much of `cache_bytes` is in use."""
        return self.cache.get_usage()


WalTail = Literal["refuse", "drop"]
"""What an open does with a damaged WAL: `refuse` it (StoreCorrupt, the default), or `drop` all from the first damage
on, for a repair that then names what is lost. A write that a crash cut off at the very end is no damage for either."""

WAL_BYTES_MAX = 32 << 20
"""All WAL files of an instance together; reaching it flushes. Small, because recovery writes a WAL out once more: with
25 MB of WAL and 8 MB free on disk, no instance opened."""
OPEN_FILES_MAX = 64
"""Sorted files an instance keeps open; others are opened when read. RocksDB's default is all."""
INFO_LOGS_MAX = 4
"""LOG files kept, of 1 MiB at most. RocksDB's default is 1000."""

_ARENA_BYTES = 64 << 10
"""Step in which write buffers grow. RocksDB's default, an eighth of the buffer, makes ten families of little use each
look full: five instances under load then took 17 MB, not 8, and refused ten times as many writes."""
_ZSTD_LEVEL = 3  # of the levels above the last, where `compression` is "zstd"
_WINDOW_BITS = -14  # zlib's; RocksDB wants it set, zstd ignores it
_COMPRESSIONS = {"zstd": DBCompressionType.zstd, "lz4": DBCompressionType.lz4, "none": DBCompressionType.none}


def options(profile: FamilyProfile, memory: SharedMemory, wal_tail: WalTail = "refuse") -> Options:
    """Return the options of a family; those of the instance are in each of them, RocksDB takes them from one."""
    made = Options(raw_mode=True)  # the other mode unpickles what it reads
    _set_family(made, profile, memory)
    _set_instance(made, memory, wal_tail)
    return made


def _set_family(made: Options, profile: FamilyProfile, memory: SharedMemory) -> None:
    blocks = BlockBasedOptions()
    blocks.set_block_size(profile.block_bytes)
    blocks.set_block_cache(memory.cache)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    if profile.bloom_bits:
        blocks.set_bloom_filter(profile.bloom_bits, False)
    made.set_block_based_table_factory(blocks)
    made.set_write_buffer_size(profile.write_buffer_bytes)
    made.set_arena_block_size(_ARENA_BYTES)
    made.set_max_write_buffer_number(4)  # three may wait for a flush before writes are refused
    made.set_target_file_size_base(profile.file_bytes)
    made.set_compression_type(_COMPRESSIONS[profile.compression]())
    made.set_compression_options(_WINDOW_BITS, _ZSTD_LEVEL, 0, 0)
    if profile.bottommost_zstd_level is not None:
        made.set_bottommost_compression_type(DBCompressionType.zstd())
        made.set_bottommost_compression_options(_WINDOW_BITS, profile.bottommost_zstd_level, 0, 0, True)


def _set_instance(made: Options, memory: SharedMemory, wal_tail: WalTail) -> None:
    tolerate, cut = DBRecoveryMode.tolerate_corrupted_tail_records, DBRecoveryMode.point_in_time
    made.create_if_missing(False)
    made.set_wal_recovery_mode(cut() if wal_tail == "drop" else tolerate())
    made.set_atomic_flush(True)  # families never differ in age on disk
    made.set_write_buffer_manager(memory.buffers)
    made.set_max_total_wal_size(WAL_BYTES_MAX)
    made.set_max_open_files(OPEN_FILES_MAX)
    made.set_max_background_jobs(2)
    made.set_keep_log_file_num(INFO_LOGS_MAX)
    made.set_max_log_file_size(1 << 20)
    made.set_stats_dump_period_sec(0)  # else a thread wakes and writes statistics to LOG every ten minutes
    made.set_stats_persist_period_sec(0)
