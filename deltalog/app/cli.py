"""The entry of the command line: `deltalog`, or `python -m deltalog.app`.

Stays importable without the extra libraries, to be able to say that they are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from deltalog.app.shadow import Shadowed, check_packages

_NEEDED = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb that `arguments` (default: the command line) say, and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from deltalog.app.process import report  # noqa: PLC0415  # click and rich may be missing

        try:
            check_packages()
        except Shadowed as error:
            sys.exit(report(error, f"deltalog {next(iter(words), '')}".rstrip()))
        from deltalog.app.verbs import verbs  # noqa: PLC0415  # what it imports is ours now
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        sys.exit(f"deltalog: the command line needs {missing}; install it with: pip install 'deltalog[cli]'")
    verbs.main(words, "deltalog")
