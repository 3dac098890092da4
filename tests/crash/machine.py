"""One simulated machine: a directory, the shim's state beside it, and the processes a test runs there.

What lives here: how a child is started and ended. What it does not know: what the children do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import attrs

from tests.crash.powercut import Policy, PowerCutReport, power_cut
from tests.crash.shim import Control, Operation, Shim, operations

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0

PRELUDE = """
import ctypes, errno, json, os, signal, sys, threading, time
from pathlib import Path
from tests.crash.shim import Control

state = Path(os.environ["SHIM_STATE"])
control = Control(state)
os.chdir(os.environ["SHIM_ROOT"])

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def make(name, data=b"", flags=os.O_CREAT | os.O_RDWR):
    fd = os.open(name, flags, 0o644)
    os.write(fd, data)
    return fd

def synced(name, data):
    fd = make(name, data)
    os.fsync(fd)
    return fd

def sync_fails(fd, sync=os.fsync):
    control.arm("fsync")
    try:
        sync(fd)
    except OSError:
        return
    raise AssertionError("did not fail")

def sync_directory(name="."):
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
"""
"""What a script finds defined. Its working directory is the root."""


@attrs.frozen
class Machine:
    """Runs children whose files it can fail, delay and lose. `options` everywhere are those of `Shim.env`."""

    shim: Shim
    root: Path
    state: Path

    def environment(self, **options: Any) -> dict[str, str]:
        """The environment of a child, with this repository importable."""
        return {**self.shim.env(self.root, self.state, **options), "PYTHONPATH": str(REPOSITORY)}

    def start(self, module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `python -m module arguments`, with its output to be read."""
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(
            command, env=self.environment(**options), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )

    def script(self, source: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code after PRELUDE, to its end."""
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(source)]
        return subprocess.run(
            command, env=self.environment(**options), capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )

    def answer(self, source: str, **options: Any) -> Any:
        """Run Python code that ends well, and return the JSON it prints."""
        child = self.script(source, **options)
        assert child.returncode == 0, child.stderr
        return json.loads(child.stdout)

    def die(self, source: str, **options: Any) -> None:
        """Run Python code that ends in SIGKILL: by `end()` or by the shim."""
        child = self.script(source, **options)
        assert child.returncode == -9, child.stderr

    def power_cut(self, policy: Policy, seed: int = 0) -> PowerCutReport:
        """See `powercut.power_cut`."""
        return power_cut(self.root, self.state, policy, seed)

    @property
    def control(self) -> Control:
        """The page shared with the children."""
        return Control(self.state)

    def operations(self) -> list[Operation]:
        """What children with `log=True` did."""
        return operations(self.state)

    def files(self) -> dict[str, bytes]:
        """Name and content of every file."""
        found = (path for path in sorted(self.root.rglob("*")) if path.is_file())
        return {os.fspath(path.relative_to(self.root)): path.read_bytes() for path in found}
