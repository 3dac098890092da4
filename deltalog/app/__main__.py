"""`python -m deltalog.app`: the command line, where the script `deltalog` is not installed."""

from __future__ import annotations

from deltalog.app.cli import main

if __name__ == "__main__":
    main()
