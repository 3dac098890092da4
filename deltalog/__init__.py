"""An event-sourced CRDT delta log that Python programs embed, on RocksDB.

This file only re-exports: what stands in `__all__` is public, nothing else is. Files inside the package import one
another directly and never through here.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
