"""A node in a process of its own, for `bench_sync`: it listens, and appends what it is told to."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benchmarks.workloads import edit
from deltalog import RingFull, open_log
from deltalog.log import DeltaLog
from sync.mesh import Mesh, open_mesh
from sync.node_keys import NodeKey, NodeSigner, verify
from sync.options import SyncOptions
from sync.tcp_transport import TcpTransport
from sync.tls_stream import Keyring
from sync.trust import Trust

ALICE, BOB = NodeKey.from_seed(b"a" * 32), NodeKey.from_seed(b"b" * 32)
_NAMES = {ALICE.public: "alice", BOB.public: "bob"}


@asynccontextmanager
async def opened(
    path: Path, key: NodeKey, other: NodeKey, *, compress: bool | None = None
) -> AsyncIterator[tuple[DeltaLog, Callable[..., AbstractAsyncContextManager[Mesh]], Any]]:
    """A log, and what makes a mesh that listens (given `on_listening`) or dials an address."""
    trust = Trust("bench", verify, pinned=frozenset((key.public, other.public)))
    options = SyncOptions(compress=compress)
    transport = TcpTransport(Keyring(key, pinned=[other.public]))
    async with open_log(path, source=_NAMES[key.public]) as log:
        mesh = partial(open_mesh, log, node=log.source, trust=trust, signer=NodeSigner(key), options=options)

        def listen(told: Callable[[str], None]) -> AbstractAsyncContextManager[Mesh]:
            return mesh(listeners=[transport], on_listening=told)

        def connect(address: str) -> AbstractAsyncContextManager[Mesh]:
            return mesh(dialer=transport, addresses=[address])

        yield log, listen, connect


async def append_all(log: DeltaLog, payloads: Sequence[Any]) -> None:
    """Append one at a time, at memory speed, and sync."""
    append = log.append_nowait
    for payload in payloads:
        try:
            append(payload, kind="edit", key="doc")
        except RingFull:
            await log.append(payload, kind="edit", key="doc")
    await log.flush()


async def _main(path: Path, deltas: int, live: int, rate: float, compress: bool | None) -> None:
    async with opened(path, ALICE, BOB, compress=compress) as (log, listen, _):
        rng = random.Random(1)
        await append_all(log, [edit(rng) for _ in range(deltas or 1)])
        async with listen(lambda address: print(json.dumps({"address": address}), flush=True)):
            if not live:
                await trio.sleep_forever()
            await trio.to_thread.run_sync(sys.stdin.readline)
            start = trio.current_time()
            for number in range(live):
                if rate:
                    await trio.sleep_until(start + number / rate)
                    log.append_nowait(time.perf_counter())
                else:
                    await log.append(time.perf_counter(), durable=True)
                    await trio.sleep(0.002)
            await trio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--deltas", type=int, default=0)
    parser.add_argument("--live", type=int, default=0, help="deltas to append once a line comes")
    parser.add_argument("--rate", type=float, default=0, help="a second; 0: one at a time, durable")
    parser.add_argument("--compress", action="store_true", default=None, help="though it is on this machine")
    chosen = parser.parse_args()
    trio.run(_main, chosen.path, chosen.deltas, chosen.live, chosen.rate, chosen.compress)
