"""Disk: bytes against the same deltas as JSON lines, and what garbage collection gives back."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import trio

from benchmarks.report import Figure
from benchmarks.workloads import edits, friends_file, friends_lines
from deltalog import Delta, Retention, build, open_log, to_iso


def run(scale: float) -> list[Figure]:
    """Measure; `scale` 1 is the full size."""
    count = int(400_000 * scale)
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        lines = sum(len(_line(delta)) + 1 for delta in edits(count))
        size, back = trio.run(_store, Path(directory) / "edits", edits(count), count)
        figures.append(Figure("disk after compaction / JSON lines, edits-16", size / lines, "x", "<= 0.15"))
        figures.append(Figure("bytes on disk per delta, edits-16", size / count, "bytes"))
        figures.append(Figure("space given back by GC of the oldest half", back, "x", ">= 0.95"))
        file = friends_file()
        if file is not None:
            lines = sum(len(json.dumps(line, separators=(",", ":"))) + 1 for line in friends_lines(file))
            size, _ = trio.run(_store, Path(directory) / "friends", _friends(file), 0)
            figures.append(Figure("disk after compaction / JSON lines, friendsforever", size / lines, "x", "<= 0.25"))
    return figures


def _line(delta: Delta) -> str:
    fields = {
        "source": delta.source,
        "seq": delta.seq,
        "deps": dict(delta.deps),
        "time": to_iso(delta.timestamp),
        "kind": delta.kind,
        "key": delta.key,
        "payload": delta.payload,
    }
    return json.dumps(fields, separators=(",", ":"))


def _friends(file: Path) -> Iterator[Delta]:
    for number, line in enumerate(friends_lines(file), 1):
        payload = base64.b64decode(line["payload_b64"])
        yield build(line["source"], line["seq"], number, payload, deps=line["deps"], kind=line["kind"], key=line["key"])


async def _store(path: Path, deltas: Iterable[Delta], count: int) -> tuple[int, float]:
    """(bytes on disk after compaction, share of the oldest half's space that collecting it gives back)."""
    left = iter(deltas)
    async with open_log(path, source="bench") as log:
        while batch := list(islice(left, 4096)):
            await log.receive(batch)
        await log.flush()
        await log.compact()
        full = (await log.sizes()).disk_bytes
        if not count:
            return full, 0.0
        before = _data_bytes(path)
        dropped = (await log.truncate(retention=Retention(max_deltas=count // 2))).dropped
        await log.compact()
        return full, (before - _data_bytes(path)) / (before * dropped / count)


def _data_bytes(path: Path) -> int:
    """Bytes of the sorted files: what deltas and index take, without logs and reserve."""
    return sum(file.stat().st_size for file in path.glob("rocks/delta/*.sst"))
