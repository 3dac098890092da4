"""`python -m benchmarks [--scale 0.1] [--only append] [--json FILE]`: run, print the table, write the JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import bench_append, bench_audit, bench_disk, bench_locks, bench_query, bench_sync, report

_BENCHES = {
    "append": bench_append.run,
    "query": bench_query.run,
    "disk": bench_disk.run,
    "audit": bench_audit.run,
    "locks": bench_locks.run,
    "sync": bench_sync.run,
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size, for a quick look")
    parser.add_argument("--only", choices=sorted(_BENCHES), action="append", help="one part; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the JSON goes")
    options = parser.parse_args()
    figures: list[report.Figure] = []
    for name, run in _BENCHES.items():
        if not options.only or name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += run(options.scale)
    print(report.table(figures))
    report.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
