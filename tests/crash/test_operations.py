"""Every operation of a log on its files: killed at it (T1), or told that it failed (T9). The log that is left is whole.

The script makes a log, uses it with truncation, erasure, compaction and upkeep, and opens it once more: a few hundred
writes, fsyncs, renames and unlinks. In the short form a sample of them, in the long one each.
"""

from __future__ import annotations

import errno
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Rounds
from tests.crash.history import Known
from tests.crash.machine import Machine
from tests.crash.powercut import POLICIES
from tests.crash.shim import Operation, Shim
from tests.crash.zygote import Child, Zygote, side_by_side
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = [pytest.mark.system("gcc"), pytest.mark.crash]

CHILD = "tests.crash.child_log"
SESSIONS = "010"
ERRORS: Final = ("EIO", "ENOSPC", "EMFILE", "EROFS")
KINDS: Final = ("write", "fsync", "open", "create", "rename", "truncate", "unlink")
SPEAKING: Final = {"StoreFull", "StoreIOError", "StoreCorrupt", "StoreMissing", "LogReadOnly", "LogClosed"}
"""How a log says that its disk failed."""


def ran(machine: Machine, known: Known, **options: Any) -> Child:
    """Run the script under the shim, to its end."""
    child = Child.of(machine.start(CHILD, "script", str(machine.root / "data"), "", SESSIONS, **options))
    known.hear(child.end())
    return child


def looked_at(machine: Machine, known: Known, *, power_cut: bool = False) -> dict[str, Any]:
    """Open what is left, twice, and hold it against what is known."""
    path, boot = machine.root / "data", "another boot" if power_cut else ""
    found: dict[str, Any] = {"error": "StoreMissing"}
    for _ in range(2):
        found = Zygote.shared().run("inspect", str(path), boot)
        if found.get("error") == "StoreMissing" and not known.handed:
            break  # its making was cut off
        if power_cut and found.get("error") == "StoreCorrupt":
            break
        assert "error" not in found, found
        known.check(found, power_cut=power_cut)
    return found


@pytest.fixture(scope="module")
def script(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    """The operations of the script when nothing goes wrong."""
    with directory_in_memory(tmp_path_factory.mktemp("script")) as directory:
        machine = Machine(shim, directory / "root", directory / "state")
        assert ran(machine, Known(), log=True).status == 0
        return machine.operations()


def each(tmp_path: Path, shim: Shim, cases: list[Any], check: Callable[[Machine, Any], str]) -> Counter[str]:
    """Check every case on a machine of its own; count the outcomes."""

    def one(case: Any) -> str:
        with directory_in_memory(tmp_path / str(case)) as directory:
            try:
                return check(Machine(shim, directory / "root", directory / "state"), case)
            except AssertionError as error:
                raise AssertionError(f"{case}: {error}") from error

    return Counter(side_by_side(one, cases))


def test_i1_i2_killed_at_every_operation(
    shim: Shim, tmp_path: Path, script: list[Operation], rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the long form with what a power cut leaves, too: of each operation by each policy."""
    last = max(operation.number for operation in script)
    assert last > 300
    sample = rounds(10, nightly=last)
    numbers = sorted(random.Random(1).sample(range(1, last + 1), min(sample, last)))
    cases = [(number, policy) for number in numbers for policy in ("kill", *(POLICIES if sample >= last else ()))]

    def check(machine: Machine, case: tuple[int, Any]) -> str:
        number, policy = case
        known = Known()
        assert ran(machine, known, kill_at=number, kill_after=number % 2 == 0).status in (-9, 0)
        if policy == "kill":
            looked_at(machine, known)
            return "killed"
        machine.power_cut(policy, number)
        found = looked_at(machine, known, power_cut=True)
        return f"{policy}: {'refused' if 'error' in found else 'cut' if found['report']['damage'] else 'whole'}"

    outcomes = each(tmp_path, shim, cases, check)
    with capsys.disabled():
        print(f"\n{outcomes.total()} of {last} operations: {json.dumps(outcomes)}")


def test_i2_i10_an_error_at_every_operation(
    shim: Shim, tmp_path: Path, script: list[Operation], rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes to the surface in the log's own words or is got over; the next open is whole again."""
    counts = Counter(operation.kind for operation in script)
    counts["open"] += counts["create"]  # an operation `open` stands for both
    faults = [(kind, number, error) for kind in KINDS for number in range(1, counts[kind] + 1) for error in ERRORS]
    faults = [fault for fault in faults if hasattr(errno, fault[2])]
    sample = min(len(faults), rounds(14, nightly=len(faults)))
    cases = random.Random(2).sample(faults, sample)

    def check(machine: Machine, case: tuple[str, int, str]) -> str:
        kind, number, error = case
        known = Known()
        sticky = number % 3 == 0
        child = ran(machine, known, fail=f"op={kind},nth={number},errno={error},sticky={int(sticky)}")
        assert child.status == 0, child.said[-1]
        ended = [line["ended"] for line in child.said if "ended" in line]
        assert {name for _, name, _ in ended} <= SPEAKING, ended
        looked_at(machine, known)
        return f"{'stays ' if sticky else ''}{error}: {'said' if ended else 'got over'}"

    outcomes = each(tmp_path, shim, cases, check)
    with capsys.disabled():
        print(f"\n{outcomes.total()} of {len(faults)} faults: {json.dumps(outcomes)}")
