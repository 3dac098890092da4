"""A log loses its power at any moment: nothing acknowledged as durable is lost, whatever the disk kept (T3)."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rounds
from tests.crash.history import Known
from tests.crash.machine import Machine
from tests.crash.powercut import POLICIES, Policy
from tests.crash.shim import Shim
from tests.crash.zygote import Child, Zygote, side_by_side
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = [pytest.mark.system("gcc"), pytest.mark.powercut]

CHILD = "tests.crash.child_log"
KILL_AT = 1500
"""Operations that change something: by about the 150th the log is made."""


def wrote_until_killed(machine: Machine, chance: random.Random, known: Known) -> None:
    """Let a child write to the log, and kill it between two operations, or at no moment in particular."""
    by_shim = chance.random() < 0.6
    options = {"kill_at": chance.randrange(1, KILL_AT), "kill_after": chance.random() < 0.5} if by_shim else {}
    process = machine.start(CHILD, "churn", str(machine.root / "data"), str(chance.random()), **options)
    child = Child.of(process)
    if not by_shim:
        child.listen(10, until=lambda line: "opened" in line)
    child.listen(1.5 if by_shim else chance.choice((0.02, 0.1, 0.4)) * chance.random())
    child.kill()
    known.hear(child.end())
    assert child.status == -9, child.said[-1]


def spoil_marks(machine: Machine, known: Known, chance: random.Random) -> None:
    """What a memory map holds after a power cut is anybody's guess, and the shim leaves it alone.

    The worst guess is one that looks as if nothing were lost.
    """
    witness = machine.root / "data" / "witness"
    if witness.exists():
        mark = struct.unpack_from("=Q", witness.read_bytes())[0]
        guesses = [0, mark, mark + 3, chance.getrandbits(64), *list(known.durable.values()) * 3]
        with witness.open("r+b") as file:
            file.write(struct.pack("=QQ", chance.choice(guesses), chance.choice(guesses)))


def lives(shim: Shim, directory: Path, policy: Policy, seed: int) -> Counter[str]:
    """Two power cuts in a row. Returns how the log was found."""
    machine = Machine(shim, directory / "root", directory / "state")
    chance, known, kinds = random.Random(f"{policy} {seed}"), Known(), Counter[str]()
    for life in range(2):
        wrote_until_killed(machine, chance, known)
        machine.power_cut(policy, seed)
        spoil_marks(machine, known, chance)
        found: dict[str, Any] = Zygote.shared().run(
            "inspect", str(machine.root / "data"), f"boot {life}", deadline_s=30
        )
        if "error" in found:
            assert found["error"] == "StoreCorrupt" or not known.durable, (found, known.durable)
            kinds[f"refused: {found['error']}" if known.durable else "not made yet"] += 1
            break
        known.check(found, power_cut=True)
        kinds["a damaged log was cut" if found["report"]["damage"] else found["report"]["kind"]] += 1
    return kinds


@pytest.mark.parametrize("policy", POLICIES)
def test_i1_i2_i3_nothing_durable_is_lost_with_the_power(
    shim: Shim, tmp_path: Path, policy: Policy, rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(seed: int) -> Counter[str]:
        with directory_in_memory(tmp_path / str(seed)) as directory:
            try:
                return lives(shim, directory, policy, seed)
            except AssertionError as error:
                raise AssertionError(f"policy {policy}, seed {seed}: {error}") from error

    kinds = sum(side_by_side(one, list(range(rounds(3, nightly=2_000)))), Counter[str]())
    with capsys.disabled():
        print(f"\n{kinds.total()} power cuts, {policy}: {json.dumps(kinds)}")
    if policy in ("truncate", "zero", "dirloss"):
        assert not [kind for kind in kinds if kind.startswith("refused")]
