"""Works on a log at random until it is killed; says on standard output what it did, a line at a time, as JSON.

{"open": source}                       the log is open, and this source appends
{"own": [source, seq, record hash]}    an own delta was handed out
{"flushed": {source: seq}}             these heads are fsynced
"""

from __future__ import annotations

import json
import random
import sys
from hashlib import blake2b

import trio

from deltalog import Delta, DeltaLog, LogOptions, Upkeep, build, open_log

REMOTE = ("remote:1", "remote\n2", "r3 \N{PILE OF POO}")


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def fingerprint(record: bytes) -> str:
    return blake2b(record, digest_size=8).hexdigest()


def remote(source: str, seq: int) -> Delta:
    """The delta that a remote source has at `seq`: always the same."""
    return build(source, seq, seq << 16, {"remote": source, "n": seq}, kind="r", key=f"k{seq % 7}")


async def work(log: DeltaLog, rng: random.Random) -> None:
    while True:
        match rng.choices(
            ("append", "durable", "receive", "flush", "truncate", "erase", "compact"), (9, 2, 5, 4, 1, 1, 1)
        )[0]:
            case "append":
                for _ in range(rng.randrange(1, 200)):
                    delta = await log.append(rng.randbytes(rng.randrange(80)), kind="own", key="doc")
                    say(own=[delta.source, delta.seq, fingerprint(delta.record)])
            case "durable":
                delta = await log.append("durable", durable=True)
                say(own=[delta.source, delta.seq, fingerprint(delta.record)])
                say(flushed={delta.source: delta.seq})
            case "receive":
                source = rng.choice(REMOTE)
                first = log.heads.get(source, 0) + 1
                await log.receive([remote(source, first + n) for n in range(rng.randrange(1, 300))])
            case "flush":
                heads = dict(log.heads)
                await log.flush()
                say(flushed=heads)
            case "truncate":
                source = rng.choice(list(log.heads))
                floor = log.floor.get(source, 0)
                await log.truncate(until={source: floor + (log.heads[source] - floor) // 4})
            case "erase":
                seq = rng.randrange(log.floor.get(log.source, 0), log.heads.get(log.source, 0) + 1)
                if seq > log.floor.get(log.source, 0):
                    await log.erase((log.source, seq), "drawn")
            case _:
                await log.compact(if_needed=True)


async def main(path: str, seed: str) -> None:
    options = LogOptions(ring_deltas=512, sync_interval_s=0.005)
    upkeep = Upkeep(flush_interval_s=0.05, collect_interval_s=None, compact_interval_s=None, disk_interval_s=None)
    async with open_log(path, source="me", options=options, upkeep=upkeep) as log:
        say(open=log.source)
        await work(log, random.Random(seed))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
