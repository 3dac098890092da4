"""Running the command line in tests: in this process where that is enough, as a process where that is the point."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner, Result

from deltalog.app.verbs import verbs

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "deltalog.app")


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would change how the command line behaves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DELTALOG") and name != "NO_COLOR"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **more}


def invoke(*words: object, text: str | None = None) -> Result:
    """Run a verb in this process."""
    return CliRunner(env={"DELTALOG_DATA": None, "DELTALOG_DEBUG": None}).invoke(verbs, list(map(str, words)), text)


def printed(*words: object) -> str:
    """What a verb that must succeed prints, in this process."""
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def lines_of(*words: object) -> list[Any]:
    """What a verb that must succeed prints as JSON lines."""
    return [json.loads(line) for line in printed(*words).splitlines()]


def execute(*words: object, data: bytes | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a verb as a process."""
    return subprocess.run(
        [*COMMAND, *map(str, words)], input=data, capture_output=True, check=False, timeout=120, env=environment(**more)
    )


def start(*words: object, **settings: Any) -> subprocess.Popen[bytes]:
    """Start a verb as a process, its output in pipes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen([*COMMAND, *map(str, words)], env=environment(), **streams)


def digest(path: Path) -> str:
    """A hash over everything below a directory: names, sizes, and bytes where they are not too many."""
    state = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        size = file.stat().st_size if file.is_file() else -1
        content = file.read_bytes() if 0 < size < 1_000_000 else b""
        state.update(f"{file.relative_to(path)}\0{size}\0".encode() + content)
    return state.hexdigest()


def one_line(stderr: str) -> str:
    """Standard error, which must be exactly one line."""
    assert stderr.endswith("\n"), stderr
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    return stderr.removesuffix("\n")


ALL = ["alice:1", "alice:2", "bob:1", "alice:3", "bob:2", "alice:4", "here:1"]
"""Dots of the logs in conftest.py, by time."""


def dots(lines: list[Any]) -> list[str]:
    """The dots of JSON lines."""
    return [f"{line['source']}:{line['seq']}" for line in lines]


def all_of(terminal: int) -> bytes:
    """All that was written to the other side of a terminal, which is or will be closed there."""
    found = b""
    with open(terminal, "rb", buffering=0) as stream:
        try:
            while more := stream.read(4096):
                found += more
        except OSError:  # closed
            pass
    return found


def interchange(count: int = 3, source: str = "alice", start_at: int = 1) -> Iterator[str]:
    """Lines of a source, times all the epoch."""
    for seq in range(start_at, start_at + count):
        yield json.dumps({"source": source, "seq": seq, "time": "1970-01-01T00:00:00Z", "payload": f"{source}{seq}"})


def wide_lines(count: int, source: str) -> Iterator[str]:
    """Lines that do not compress: of about 500 bytes each."""
    random = Random(1)
    for line in interchange(count, source):
        yield line.replace('"payload": "', f'"payload": "{random.randbytes(200).hex()}')
