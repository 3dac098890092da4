"""The workloads, one sentence each; every benchmark says which one it runs."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from deltalog.clock import pack
from deltalog.codec import build
from deltalog.delta import Delta

_WORDS = """
the log keeps every delta that a peer appends until retention drops it and
a reader finds it again by source or by time def return self value
index for in range if not None raise error import from class async await
with as assert yield lambda while else elif try except finally open close read
write flush sync merge split cursor range
""".split()  # noqa: SIM905  # a text reads better than a list of words


@attrs.frozen
class Workload:
    """A kind of traffic."""

    name: str
    sentence: str


BYTES = Workload("bytes-100", "One source appends opaque payloads of 100 bytes, as a CRDT library hands them over.")
EDITS = Workload("edits-16", "16 sources edit 64 files: inserts and deletes of a few words, about 100 bytes encoded.")
FRIENDS = Workload("friendsforever", "A recorded session: two people type into one text at once, 26,078 Yjs updates.")


def payloads(count: int, seed: int = 1) -> list[bytes]:
    """Opaque payloads of 100 bytes."""
    return [random.Random(seed + index).randbytes(100) for index in range(count)]


def edit(rng: random.Random) -> dict[str, Any]:
    """One edit of a file, about 100 bytes as msgpack."""
    words = " ".join(rng.choices(_WORDS, k=rng.randint(5, 11)))
    if rng.random() < 0.85:
        return {"op": "insert", "line": rng.randrange(2_000), "column": rng.randrange(100), "text": words}
    return {"op": "delete", "line": rng.randrange(2_000), "column": rng.randrange(100), "length": rng.randrange(40)}


def edits(count: int, sources: int = 16, seed: int = 1) -> Iterator[Delta]:
    """Deltas of `sources` agents that take turns, a few milliseconds apart, each in bursts on one of 64 files."""
    rng = random.Random(seed)
    now_ms = 1_700_000_000_000
    seqs = [0] * sources
    files = [f"src/module_{number:02}.py" for number in range(64)]
    at = [rng.choice(files) for _ in range(sources)]
    for _ in range(count):
        now_ms += rng.randrange(1, 40)
        agent = rng.randrange(sources)
        if rng.random() < 0.05:
            at[agent] = rng.choice(files)
        seqs[agent] += 1
        yield build(f"agent-{agent:02}", seqs[agent], pack(now_ms, 0), edit(rng), kind="edit", key=at[agent])


def friends_file() -> Path | None:
    """The recorded session, if it is at hand: `DELTALOG_TEST_DATA`, or beside the project."""
    places = [os.environ.get("DELTALOG_TEST_DATA", ""), str(Path(__file__).parents[2] / "shared" / "data")]
    for place in filter(None, places):
        file = Path(place) / "friendsforever.ydeltas.jsonl.gz"
        if file.exists():
            return file
    return None


def friends_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The recorded session's lines."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
