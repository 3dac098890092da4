"""What a forked child must not do with the RocksDB of its parent.

RocksDB keeps threads, per handle and for the process. A child of `fork` has the memory and none of the threads, so:

* dropping a handle, a family or an iterator flushes into the parent's files, or waits for ever;
* the process's exit joins threads that are not there (a segmentation fault, or a hang);
* a database that the child opens itself hangs at its first flush, also when the parent had closed all of its own.

So here each open handle of the parent is abandoned in the child, the child's exit skips RocksDB's part, and opening is
refused. A child made by `subprocess`, or by `multiprocessing` with "spawn", has none of this.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from deltalog.errors import StoreUsageError


class Handle(Protocol):
    """What is open in the parent."""

    def abandon(self) -> None:
        """Refuse every call from now on; pass all of RocksDB's objects to `never_drop`. Called in the child."""


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
_used = False
_threads_lost = False


def opened(handle: Handle) -> None:
    """Have `handle` abandoned in each child from now on."""
    _handles.add(handle)


def closed(handle: Handle) -> None:
    """The opposite of `opened`."""
    _handles.discard(handle)


def refuse_without_threads() -> None:
    """Raise `StoreUsageError` in a child that cannot use RocksDB; otherwise note that this process now does."""
    global _used  # noqa: PLW0603  # true of the process, like what it describes
    if _threads_lost:
        raise StoreUsageError(
            "this process was forked from one that had used RocksDB, whose threads it lacks; start it afresh (spawn)"
        )
    _used = True


def never_drop(*things: object) -> None:
    """Give each a reference that nobody gives back: it outlives even the interpreter's own end."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork_in_child() -> None:
    global _threads_lost  # noqa: PLW0603
    if not _used:
        return
    _threads_lost = True
    for handle in list(_handles):
        handle.abandon()
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc: the last that registers runs first, and after Python has ended
        library.on_exit(library._exit, None)


os.register_at_fork(after_in_child=_after_fork_in_child)
