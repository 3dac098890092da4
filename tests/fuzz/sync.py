"""What a peer sends under atheris: `python -m tests.fuzz.sync -max_total_time=60`; flags as `codec` has them."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["deltalog", "sync"]):
    from tests.fuzz.sync_targets import TARGETS

from tests.fuzz.codec import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], TARGETS, __spec__.name))
