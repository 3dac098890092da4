"""SIGKILL during a catch-up, on either side of a link: run again it completes, and nothing is lost or taken twice.

One side is a node that serves, the other `deltalog sync`; both have what the other lacks. Whoever is killed is started
again on the same directory.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.app.invoked import lines_of, printed, start, wide_lines
from tests.app.peered import Running, Tap, begin, new_key
from tests.conftest import Rounds

pytestmark = pytest.mark.crash

THEIRS, OURS = 24_000, 8_000
KILLS = 3
"""In one round."""
WIRE_BYTES = 440 * (THEIRS + OURS)
"""About what crosses the link in all."""
PATIENCE = 4
"""Times the rounds, at most, until a catch-up was cut in the middle."""


class Round:
    """Two directories, and what was seen of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir()
        self.chance = random.Random(seed)
        self.there, self.here = folder / "there", folder / "here"
        self.key, self.ours = new_key(self.there), new_key(self.here)
        for data, count, source in ((self.there, THEIRS, "theirs"), (self.here, OURS, "ours")):
            (folder / source).write_text("\n".join(wide_lines(count, source)))
            printed("import", folder / source, "--data", data, "--source", data.name)
            printed("append", "1", "--data", data)
        self.seen: dict[Path, Counter[str]] = {self.there: Counter(), self.here: Counter()}
        self.killed = Counter[str]()

    def serve(self) -> Running:
        return begin(self.there, "--pin", self.ours, "--unsigned", "theirs", "--unsigned", "ours")

    def sync(self, address: str) -> subprocess.Popen[bytes]:
        words = ("--pin", self.key, "--unsigned", "theirs", "--unsigned", "ours", "--json", "--timeout", 60)
        return start("sync", address, "--data", self.here, *words)

    def look(self, data: Path) -> None:
        """What was there once stays."""
        (stats,) = lines_of("stats", "--json", "--data", data)
        heads: Mapping[str, int] = stats["heads"]
        assert all(heads.get(source, 0) >= seq for source, seq in self.seen[data].items()), (heads, self.seen[data])
        self.seen[data] = Counter(heads)

    def kill_one(self) -> None:
        """Start both, kill one when so many bytes have crossed; the other is left to see the link end."""
        node, victim = self.serve(), self.chance.choice(("client", "server"))
        with Tap(node.address, self.chance.randrange(2000, WIRE_BYTES // (KILLS + 1))) as tap:
            client = self.sync(tap.address)
            assert tap.held.wait(60), "nothing crossed"
            (client if victim == "client" else node.process).send_signal(signal.SIGKILL)
            self.killed[victim] += 1
            tap.let_go()
            _, stderr = client.communicate(timeout=90)
            expected = -signal.SIGKILL if victim == "client" else 1
            assert client.returncode == expected, stderr.decode()
            assert b"Traceback" not in stderr
            node.process.send_signal(signal.SIGTERM)
            _, stderr = node.process.communicate(timeout=60)
            assert node.process.returncode == (0 if victim == "client" else -signal.SIGKILL), stderr.decode()
        for data in (self.there, self.here):
            self.look(data)

    def complete(self) -> dict[str, Any]:
        """Sync to the end; both must hold everything."""
        node = self.serve()
        stdout, stderr = self.sync(node.address).communicate(timeout=120)
        node.process.send_signal(signal.SIGTERM)
        assert node.process.communicate(timeout=60)[1] is not None
        said: dict[str, Any] = json.loads(stdout)
        assert said["equal"], (said, stderr.decode())
        for data in (self.there, self.here):
            self.look(data)
            assert printed("verify", "--data", data).startswith("no fault")
        assert self.seen[self.there] == self.seen[self.here]
        assert (self.seen[self.here]["theirs"], self.seen[self.here]["ours"]) == (THEIRS, OURS)
        return said


def test_i1_i2_i14_killed_on_either_side_of_a_catch_up(
    tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = Counter[str]()
    resumed = 0
    count = rounds(2, nightly=30)
    for seed in range(PATIENCE * count):
        if seed >= count and resumed:
            break
        each = Round(tmp_path / str(seed), seed)
        for _ in range(KILLS):
            each.kill_one()
        said = each.complete()
        killed += each.killed
        resumed += 0 < said["deltas_in"] < THEIRS
        assert said["deltas_known"] == 0, "what was held was sent again"
    with capsys.disabled():
        print(f"\nkilled: {dict(killed)}; {resumed} catch-ups went on from where they had stopped")
    assert resumed, "no catch-up was cut in the middle"
