"""What the crash tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.machine import Machine
from tests.crash.shim import Shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """The fault shim, built once. Mark the test `system("gcc")`."""
    return Shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def machine(shim: Shim, tmp_path: Path) -> Machine:
    """A machine with nothing on its disk yet. Mark the test `system("gcc")`."""
    return Machine(shim, tmp_path / "root", tmp_path / "state")
