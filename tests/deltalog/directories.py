"""Data directories without an event loop: opened, written to, abandoned as a killed process leaves them, damaged.

`Session` does by hand what the log and its writer do: it hands out deltas, writes, syncs, tells the witness.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from deltalog import chain
from deltalog.clock import pack
from deltalog.codec import build
from deltalog.delta import Delta
from deltalog.profiles import SharedMemory
from deltalog.startup import OpenData, OpenOptions, StartupReport, open_data
from deltalog.store import Run
from deltalog.witness import Testimony as Told  # under its own name pytest would take it for a test class
from deltalog.witness import Witness

_contents = itertools.count()
_START = pack(time.time_ns() // 1_000_000)
ROCKSDB_NOTES = ("LOG", "rocksdict-config.json")
"""Files that RocksDB and its binding write at every open, also one that is refused."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@attrs.frozen
class Session:
    """An open data directory."""

    data: OpenData

    @property
    def source(self) -> str:
        return self.data.source

    @property
    def report(self) -> StartupReport:
        return self.data.report

    @property
    def heads(self) -> dict[str, int]:
        return {source: head.seq for source, head in self.data.store.heads().items()}

    @property
    def latest(self) -> int:
        return max((head.timestamp for head in self.data.store.heads().values()), default=_START)

    def hand_out(self, count: int) -> list[Delta]:
        """Append deltas that nobody writes."""
        start = self.data.witness.mark[0]
        self.data.witness.mark[0] = start + count
        return [delta_of(self.source, start + number, self.latest + number) for number in range(1, count + 1)]

    def write(self, count: int, source: str = "", *, sync: bool = True) -> list[Delta]:
        """Append deltas and write them; then sync them and tell the witness."""
        source = source or self.source
        head = self.data.store.heads().get(source)
        seq, previous = (head.seq, head.hash) if head is not None else (0, chain.genesis(source))
        if source == self.source:
            deltas = self.hand_out(count)
            assert deltas[0].seq == seq + 1
        else:
            deltas = [delta_of(source, seq + number, self.latest + number) for number in range(1, count + 1)]
        records = [delta.record for delta in deltas]
        self.data.store.write([Run(source, seq + 1, records, previous, chain.extend(previous, records))])
        self.data.note([source])
        if sync:
            self.sync()
        return deltas

    def sync(self) -> None:
        self.data.witness.record(self.data.testimony(self.data.store.sync(), clean=False))

    def all(self) -> list[Delta]:
        """Everything stored."""
        store = self.data.store
        return [delta for source, seq in self.heads.items() for delta in _pages(store.by_source(source, 0, seq).page)]


def delta_of(source: str, seq: int, timestamp: int = _START) -> Delta:
    """Some delta; never the same content twice for one dot, so that a reused dot shows."""
    return build(source, seq, timestamp, [source, seq, next(_contents)])


def _pages(page: Callable[[int], Any]) -> Iterator[Delta]:
    while deltas := page(1000):
        yield from deltas


def begun(path: Path, *, recent: int = 1000, progress: Any = silent, **options: Any) -> Session:
    """Open, and leave it to the caller how it ends. Nothing is in the cache that is not on disk any more."""
    options = {"reserve_bytes": 0, **options}
    return Session(open_data(path, OpenOptions(**options), SharedMemory(), recent, progress))


@contextmanager
def session(path: Path, **options: Any) -> Iterator[Session]:
    """Open, and close in order."""
    opened = begun(path, **options)
    try:
        yield opened
    except BaseException:
        opened.data.close(clean=False)
        raise
    opened.data.close(clean=True)


@contextmanager
def killed(path: Path, **options: Any) -> Iterator[Session]:
    """Open, and leave everything as SIGKILL would: without a word to the witness, the write-ahead log as it is."""
    opened = begun(path, **options)
    try:
        yield opened
        copy = path.with_name("killed")
        copy_alive(rocks(path), copy)
    finally:
        opened.data.close(clean=False)
    restore(copy, rocks(path))
    shutil.rmtree(copy)


def digest(path: Path) -> dict[str, str]:
    """Every file and link below `path` with a hash of its content, but what RocksDB writes at every open."""
    return {
        file.relative_to(path).as_posix(): _content(file)
        for file in sorted(path.rglob("*"))
        if not file.name.startswith(ROCKSDB_NOTES) and (file.is_symlink() or not file.is_dir())
    }


def _content(file: Path) -> str:
    return f"-> {file.readlink()}" if file.is_symlink() else hashlib.sha256(file.read_bytes()).hexdigest()


def rocks(path: Path) -> Path:
    """The log's RocksDB directory."""
    return path / "rocks" / "delta"


def wal(path: Path) -> Path:
    """The write-ahead log that was written last."""
    return max(rocks(path).glob("*.log"))


def copy_alive(path: Path, copy: Path, *leave_out: str) -> None:
    """Copy the files of an open RocksDB as they are at one moment: anew until none came, grew or went meanwhile."""
    for _ in range(100):
        before = _listing(path)
        try:
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns(*leave_out))
        except (shutil.Error, FileNotFoundError):
            pass  # RocksDB deleted one that was still to be copied
        else:
            if _listing(path) == before:
                return
        shutil.rmtree(copy)
    raise AssertionError(f"{path} does not come to rest")


def _listing(path: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            found[file.relative_to(path).as_posix()] = (file.stat().st_size, file.stat().st_mtime_ns)
    return found


def restore(copy: Path, path: Path) -> None:
    """Put a copy of a directory in the place of what is there."""
    shutil.rmtree(path)
    shutil.copytree(copy, path)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit; a negative offset counts from the end."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1 << bit
    with file.open("r+b") as opened:  # in place: a witness must stay the same file
        opened.write(data)


def retold(path: Path, change: Callable[[Told], Told]) -> None:
    """Have the witness tell something else."""
    witness = Witness.open(path / "witness")
    assert witness.testimony is not None
    witness.record(change(witness.testimony), durable=True)
    witness.close()


def lost(report: StartupReport) -> Mapping[str, tuple[int, int]]:
    return dict(report.lost)
