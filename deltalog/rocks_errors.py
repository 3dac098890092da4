"""What rocksdict's exceptions mean. The only place that reads their text; a test provokes each row.

Nearly all are a bare `Exception`, so only the text tells. The rows are RocksDB 9.8.4's words, in the order in which
they are tried. Used by `rocks` alone, and exported there.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Final

from deltalog.errors import (
    ScanTruncated,
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
)

ERROR_MAP: Final[tuple[tuple[re.Pattern[str], type[StoreError]], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), error)
    for pattern, error in (
        (r"IO error: (lock hold by current process|While lock file: )", StoreInUse),
        (r"IO error: No space left on device", StoreFull),
        (r"Invalid argument: .*/CURRENT: does not exist \(create_if_missing", StoreMissing),
        (r"IO error: No such file or directory: While opening a file for sequentially .*/CURRENT: ", StoreMissing),
        (r"IO error: No such file or directory: While open(ing)? a file for (sequentially|random) read", StoreCorrupt),
        (r"Corruption: ", StoreCorrupt),
        (r"IO error: ", StoreIOError),
        (r"Invalid argument: .*does not match existing comparator", StoreFormatMismatch),
        (r"Invalid argument: Column (families not opened|family not found): ", StoreFormatMismatch),
        (r"Result incomplete: Write stall", StoreBackpressure),
        (r"Result incomplete: Too many internal keys", ScanTruncated),
        (r"Not implemented: Not supported operation in (read only|secondary) mode", StoreReadOnly),
        (r"Invalid argument: (Invalid column family specified in write batch|end key comes before)", StorePoisoned),
        (r"Shutdown in progress|Column family dropped: |column name .* does not exist", StoreUsageError),
        (r"this batch is already consumed|must set raw_mode=|key not found", StoreUsageError),
    )
)
"""The first row whose pattern the text starts with. A text of no row is a `StoreIOError`: fatal, indeterminate."""


def store_error(error: BaseException, doing: str) -> StoreError | None:
    """Return what `error` means, or None if rocksdict did not raise it."""
    text, message = str(error), f"{doing}: {error}"
    if type(error).__name__ == "DbClosedError":
        return StoreClosed(message)
    if isinstance(error, OSError):
        return StoreIOError(message)
    if isinstance(error, RuntimeError) and text.startswith("Already "):
        return StoreBusy(message)
    if isinstance(error, KeyError | ValueError) and "raw mode only support bytes" in text:
        return StoreUsageError(message)
    if type(error) is not Exception:
        return None
    return next((kind for pattern, kind in ERROR_MAP if pattern.match(text)), StoreIOError)(message)


class mapped_errors:  # noqa: N801  # reads as a function; a class, because a generator costs a microsecond more
    """`with mapped_errors("open x"):` raises what rocksdict raises inside as errors of this project, with `from`."""

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> object:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            mapped = store_error(error, self.doing)
            if mapped is not None:
                self.saw(mapped)
                raise mapped from error

    def saw(self, error: StoreError) -> None:
        """Told of each error before it is raised."""
