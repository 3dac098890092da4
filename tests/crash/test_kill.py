"""T2: a process that works on a log is killed with SIGKILL at a random moment, again and again, on one directory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio

from deltalog import DeltaLog, open_manager
from deltalog.app.opening import inspected
from deltalog.verify import verify
from tests.conftest import Rounds
from tests.crash.child_kill import fingerprint, remote

pytestmark = pytest.mark.crash

ROOT = Path(__file__).parents[2]


@attrs.define
class Seen:
    """All that was ever said by a process that is dead now."""

    own: dict[tuple[str, int], str] = attrs.field(factory=dict)
    """Every dot that was handed out, stored or not, with what it stood for."""
    flushed: dict[str, int] = attrs.field(factory=dict)
    source: str = ""

    def hear(self, line: str) -> None:
        said = json.loads(line)
        self.source = said.get("open", self.source)
        if "own" in said:
            source, seq, what = said["own"]
            assert self.own.setdefault((source, seq), what) == what, f"test_i1: the dot {source}:{seq} was used twice"
        for source, seq in said.get("flushed", {}).items():
            self.flushed[source] = max(seq, self.flushed.get(source, 0))


def killed(path: Path, seed: int, seen: Seen, after_lines: int) -> None:
    """Run the child until it has said so many lines, kill it, and hear what else it had said."""
    command = [sys.executable, "-m", "tests.crash.child_kill", str(path), str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(after_lines):
            line = child.stdout.readline()
            assert line, f"the child ended by itself: {child.wait()}"
            seen.hear(line)
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                seen.hear(line)


async def check(log: DeltaLog, seen: Seen) -> None:
    """What survived is a prefix of each source, holds all that was flushed, and is what was appended."""
    heads, floor = dict(log.heads), dict(log.floor)
    short = {source: seq for source, seq in seen.flushed.items() if heads.get(source, 0) < seq}
    assert not short, f"test_i2: flushed and gone: {short}"
    held = dict(floor)
    async for delta in log.replay():
        assert delta.seq == held.get(delta.source, 0) + 1, "test_i2: a gap"
        held[delta.source] = delta.seq
        if delta.source.startswith("me"):
            told = seen.own.setdefault(delta.dot, fingerprint(delta.record))  # it died before it could say so
            assert delta.erased or told == fingerprint(delta.record), "test_i1: another delta under this dot"
        else:
            assert delta.erased or delta == remote(delta.source, delta.seq)
    assert held == heads
    delta = await log.append("after", durable=True)
    assert seen.own.setdefault(delta.dot, fingerprint(delta.record)) == fingerprint(delta.record), (
        "test_i1: no fresh dot"
    )
    seen.flushed[delta.source] = delta.seq


async def reopened(path: Path, seen: Seen) -> str:
    """Open, check, close; the kind of start it was."""
    async with open_manager(path, source="me") as manager:
        report = manager.startup
        before = seen.source
        handed_out = max((seq for source, seq in seen.own if source == before), default=0)
        if handed_out > manager.log.heads.get(before, 0):
            assert report.incarnation_of == before, "test_i1: dots were lost, and the source goes on"
            assert report.lost[before][1] >= handed_out
        assert report.source == manager.log.source
        await check(manager.log, seen)
    with inspected(path) as store:
        assert not [str(fault) for fault in verify(store)]
    return report.kind


def test_i1_i2_killed_at_any_moment_a_log_holds_what_was_flushed_and_reuses_no_dot(
    tmp_path: Path, rounds: Rounds
) -> None:
    seen, kinds = Seen(), set()
    for number in range(rounds(50, nightly=10_000)):
        rng = random.Random(number)
        killed(tmp_path / "data", number, seen, 1 + rng.randrange(400))
        kinds.add(trio.run(reopened, tmp_path / "data", seen))
    assert "unclean" in kinds


@pytest.mark.parametrize("moment", range(8))
def test_killed_while_it_is_made_a_directory_can_be_opened(tmp_path: Path, moment: int) -> None:
    """The child is killed before it says that the log is open."""
    path = tmp_path / "data"
    command = [sys.executable, "-m", "tests.crash.child_kill", str(path), "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        while not path.exists():
            assert child.poll() is None
        names = ["deltalog.toml", "rocks", "rocks/delta", "witness", "reserve", "rocks/delta/CURRENT", "lock", "rocks"]
        while not (path / names[moment]).exists():
            assert child.poll() is None
        child.kill()
    assert trio.run(reopened, path, Seen()) in ("created", "unclean")
