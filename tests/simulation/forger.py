"""A node that lies: it alters what others wrote before it passes that on, and makes the chain hash fit.

Only the signature of the source gives it away.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from deltalog import chain
from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.log import DeltaLog
from sync.messages import Head

Run = tuple[list[Delta], Head]
Ended = Callable[[str, list[Delta]], Coroutine[Any, Any, Run | None]]
"""`Ledger.ended`: a run that goes out, and the head that ends it."""


def forging(log: DeltaLog, ended: Ended, forges: Callable[[str], bool]) -> Ended:
    """Like `ended`, but the last delta of a run is another one, of sources of which `forges` says so."""

    async def forged(source: str, deltas: list[Delta]) -> Run | None:
        run = await ended(source, deltas)
        if run is None or not forges(source):
            return run
        *before, last = run[0]
        other = build(source, last.seq, last.timestamp, "forged", deps=last.deps, kind=last.kind, key=last.key)
        start = await log.hash_at(source, run[0][0].seq - 1)
        reached = chain.extend(start, [delta.record for delta in (*before, other)])[-1]
        return [*before, other], attrs.evolve(run[1], hash=reached)

    return forged
