"""Checks that the packages `audit` and `sync` are those that came with deltalog.

Such names are common: a folder `audit/` in the current directory, or another distribution, may stand first on the
search path. A node that took the wrong one would fail somewhere deep; so opening one asks here first. Nothing is
imported to find out.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from deltalog.errors import DeltaLogError

SIBLINGS: Final = ("audit", "sync")
"""Packages of this distribution whose names others may use too."""

_HOME: Final = Path(__file__).resolve().parents[2]


class Shadowed(DeltaLogError):
    """Raised when `import audit` or `import sync` gives, or would give, another package than this distribution's."""


def check_packages(home: Path = _HOME) -> None:
    """Raise `Shadowed` unless each of `SIBLINGS` stands in `home`, beside deltalog; says where the other one is."""
    for name in SIBLINGS:
        ours = home / name / "__init__.py"
        found = _location(name)
        if found is None:
            raise Shadowed(f"deltalog is not whole: its package {name!r} is missing ({ours}); install it again")
        if not _same(found, ours):
            raise Shadowed(
                f"`import {name}` gives {_owner(found)}, which hides deltalog's own {ours}: remove or rename it, or "
                "start from another directory"
            )


def _location(name: str) -> Path | None:
    """Where `import name` comes from: a file, or a folder without `__init__.py`; None if there is no such module."""
    loaded = sys.modules.get(name)
    try:
        spec = getattr(loaded, "__spec__", None) or find_spec(name)
    except (ImportError, ValueError):  # no spec: somebody put an object of their own there
        spec = None
    if spec is None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file is not None else Path(f"<{name}>") if loaded is not None else None
    return _place(spec)


def _place(spec: ModuleSpec) -> Path | None:
    if spec.origin is not None:
        return Path(spec.origin)
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else None


def _same(found: Path, ours: Path) -> bool:
    try:
        return os.path.samefile(found, ours)
    except OSError:
        return False


def _owner(found: Path) -> str:
    """The file, and the installed distribution it belongs to, if it is known."""
    target = found.resolve()
    for distribution in distributions():
        for file in distribution.files or ():
            if file.name == target.name and Path(str(distribution.locate_file(file))).resolve() == target:
                return f"{found} (of the distribution {distribution.name} {distribution.version})"
    return str(found)
