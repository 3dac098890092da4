"""An event-sourced CRDT delta log that Python programs embed, on RocksDB.

This file only re-exports: what stands in `__all__` is public, nothing else is. Files inside the package import one
another directly and never through here.
"""

from __future__ import annotations

from deltalog import blocking
from deltalog.causality import Conflict
from deltalog.clock import from_iso, to_iso
from deltalog.codec import build, decode
from deltalog.delta import Delta, Limits
from deltalog.errors import (
    BelowFloor,
    ClockDrift,
    DataLoss,
    DecodeError,
    DeltaLogError,
    ForeignData,
    LimitExceeded,
    LogClosed,
    LogReadOnly,
    RingFull,
    ScanTruncated,
    StaleToken,
    StoreBackpressure,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFormatMismatch,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreMissing,
    StorePoisoned,
    StoreReadOnly,
    StoreUsageError,
    UsageError,
)
from deltalog.fence import Guard
from deltalog.inbox import InboxStatistics
from deltalog.log import DeltaLog, LogOptions, LogStatistics, Truncation
from deltalog.manager import DiskUsage, Manager, ManagerHealth, Problem, Upkeep, open_log, open_manager
from deltalog.profiles import SharedMemory
from deltalog.reader import Conflicts, Stream
from deltalog.receiver import Receipt, Refusal
from deltalog.retention import Retention
from deltalog.ring import RingStatistics
from deltalog.rocks_values import Health
from deltalog.stability import Stability
from deltalog.startup import StartupReport
from deltalog.store import Erasure, StoreSizes
from deltalog.subscription import Subscription
from deltalog.version import Dot, Order, VersionVector
from deltalog.writer import WriterStatistics

__all__ = [
    "BelowFloor",
    "ClockDrift",
    "Conflict",
    "Conflicts",
    "DataLoss",
    "DecodeError",
    "Delta",
    "DeltaLog",
    "DeltaLogError",
    "DiskUsage",
    "Dot",
    "Erasure",
    "ForeignData",
    "Guard",
    "Health",
    "InboxStatistics",
    "LimitExceeded",
    "Limits",
    "LogClosed",
    "LogOptions",
    "LogReadOnly",
    "LogStatistics",
    "Manager",
    "ManagerHealth",
    "Order",
    "Problem",
    "Receipt",
    "Refusal",
    "Retention",
    "RingFull",
    "RingStatistics",
    "ScanTruncated",
    "SharedMemory",
    "Stability",
    "StaleToken",
    "StartupReport",
    "StoreBackpressure",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreFormatMismatch",
    "StoreFull",
    "StoreIOError",
    "StoreInUse",
    "StoreMissing",
    "StorePoisoned",
    "StoreReadOnly",
    "StoreSizes",
    "StoreUsageError",
    "Stream",
    "Subscription",
    "Truncation",
    "Upkeep",
    "UsageError",
    "VersionVector",
    "WriterStatistics",
    "__version__",
    "blocking",
    "build",
    "decode",
    "from_iso",
    "open_log",
    "open_manager",
    "to_iso",
]

__version__ = "0.1.0"
