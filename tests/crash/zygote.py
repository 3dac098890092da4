"""A process that imports everything once and forks a child for each program: 5 ms instead of half a second.

The zygote itself never opens a database, so its children may (see `deltalog.rocks_fork`). Each child runs
`PROGRAMS[name](say, *arguments)` of `child_log`, `child_audit` or `child_locks`; `say` sends the parent one JSON line.
A child that is killed in the middle of a line leaves a torn one, which is dropped: it was not said.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0
"""No program of these tests takes longer on the slowest machine; only a hang does."""

PATIENCE: Final = 4
"""Times a seeded programme is run, at most, until what is left to chance has come about."""
_T = TypeVar("_T")


class Hang(AssertionError):
    """A child did not end in time."""


@attrs.define
class Child:
    """A program under way: its process, and what it says."""

    pid: int
    _pipe: int
    _reap: Callable[[], int]
    _rest: bytes = b""
    said: list[Any] = attrs.field(factory=list)
    """Every line so far."""
    status: int | None = None
    """As `subprocess` has it: the exit code, or minus the signal."""

    def listen(self, seconds: float, until: Callable[[Any], bool] = lambda _: False) -> bool:
        """Take in lines for so long, or until one fits, if none did before; False at their end."""
        deadline = time.monotonic() + seconds
        if any(map(until, self.said)):
            return True
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._pipe], [], [], left)
            if ready:
                data = os.read(self._pipe, 1 << 16)
                if not data:
                    return False
                *lines, self._rest = (self._rest + data).split(b"\n")
                new = [json.loads(line) for line in lines]
                self.said += new
                if any(map(until, new)):
                    return True
        return True

    @classmethod
    def of(cls, process: subprocess.Popen[Any]) -> Child:
        """A process that was started in another way, and speaks on its standard output."""
        assert process.stdout is not None
        return cls(process.pid, os.dup(process.stdout.fileno()), lambda: _waited(process))

    def kill(self) -> None:
        """SIGKILL, wherever it is. It may have ended before."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self, deadline_s: float = DEADLINE_S) -> list[Any]:
        """Wait until it has ended; return all it said. Raises `Hang`, once it is killed."""
        hangs = self.listen(deadline_s)
        if hangs:
            self.kill()
            self.listen(deadline_s)
        os.close(self._pipe)
        self.status = self._reap()
        if hangs:
            raise Hang(f"still running after {deadline_s:g} s; it said {self.said[-3:]}")
        return self.said


def _waited(process: subprocess.Popen[Any]) -> int:
    with process:
        return process.wait()


class Zygote:
    """The process that forks. One for all tests of a run."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.crash.zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[theirs.fileno()])
        theirs.close()
        self._socket = ours
        self._guard = threading.Lock()

    @classmethod
    @functools.cache
    def shared(cls) -> Zygote:
        """The one of this run."""
        zygote = cls()
        atexit.register(zygote.close)
        return zygote

    def start(self, program: str, *arguments: Any) -> Child:
        """Run a program in a child."""
        read, write = os.pipe()
        with self._guard:
            request = json.dumps(["fork", program, arguments]).encode()
            socket.send_fds(self._socket, [request], [write])
            os.close(write)
            pid = int(self._socket.recv(64))
        return Child(pid, read, lambda: self.reap(pid))

    def run(self, program: str, *arguments: Any, deadline_s: float = DEADLINE_S) -> Any:
        """Run a program to its end; return the last thing it said."""
        child = self.start(program, *arguments)
        said = child.end(deadline_s)
        assert child.status == 0, (child.status, said[-1:])
        return said[-1]

    def reap(self, pid: int) -> int:
        """Status of a child that has ended or is about to."""
        with self._guard:
            self._socket.send(json.dumps(["reap", pid, []]).encode())
            return int(self._socket.recv(64))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait(10)


def side_by_side(work: Callable[[_T], Any], items: list[_T]) -> Iterator[Any]:
    """Do the work on each item, on as many at a time as there are processors; raise the first failure in order."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(work, items)


def tally(work: Callable[[int], Counter[str]], count: int, due: Collection[str]) -> tuple[Counter[str], int]:
    """Add up what `work(seed)` counts, for so many seeds; return that, and how many they were.

    If a `due` one did not come about (on a slow machine, say), for as many seeds again, at most `PATIENCE` times.
    """
    counts, seeds = Counter[str](), 0
    for _ in range(PATIENCE):
        for each in side_by_side(work, list(range(seeds, seeds + count))):
            counts += each
        seeds += count
        if all(counts[name] for name in due):
            break
    return counts, seeds


# ------------------------------------------------------------------------------------------------------- in the zygote


def main(number: str) -> None:
    """Serve the parent until it closes its end."""
    from tests.crash import child_audit, child_locks, child_log

    programs = {**child_log.PROGRAMS, **child_audit.PROGRAMS, **child_locks.PROGRAMS}
    requests = socket.socket(fileno=int(number))
    gc.freeze()  # what is imported stays: a child's collector would only make it copy the pages
    while True:
        request, pipes, _, _ = socket.recv_fds(requests, 1 << 16, 1)
        if not request:
            return
        verb, what, arguments = json.loads(request)
        if verb == "reap":
            requests.send(str(os.waitstatus_to_exitcode(os.waitpid(what, 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            requests.close()
            _run(programs[what], arguments, pipes[0])
        os.close(pipes[0])
        requests.send(str(pid).encode())


def _run(program: Callable[..., None], arguments: list[Any], pipe: int) -> None:
    def say(line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    status = 1
    try:
        program(say, *arguments)
        status = 0
    except BaseException:
        say({"failed": traceback.format_exc()})
        raise
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
