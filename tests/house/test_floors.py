"""The floors hold, every file stands on one, and each contract really catches what it is for."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("deltalog", "audit", "sync")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--config", ".importlinter", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_floors_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_stands_on_a_floor() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = " ".join(contracts[f"importlinter:contract:{name}"]["layers"] for name in ("floors", "audit", "sync"))
    named = re.findall(r"[\w.]+", layers)
    assert len(named) == len(set(named)), "a file stands on two floors"
    files = {
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert files <= set(named), "add these to .importlinter"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages as they would be without what breaks a rule today: only files that every contract needs."""
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for name in ("errors", "failpoints", "nursery", "version", "clock"):
        file = f"deltalog/{name}.py"
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for package in PACKAGES:
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
    for later in ("deltalog/log.py", "deltalog/rocks.py", "deltalog/writer.py", "audit/lease.py", "audit/locks.py"):
        (tmp_path / later).touch()
    (tmp_path / "deltalog" / "app").mkdir()
    for file in ("__init__", "node"):
        (tmp_path / "deltalog" / "app" / f"{file}.py").touch()
    return tmp_path


BREACHES = {
    "upwards": ("deltalog/errors.py", "from deltalog.clock import Clock", "floors"),
    "sideways": ("deltalog/version.py", "from deltalog.clock import Clock", "floors"),
    "through the face": ("deltalog/__init__.py", "from deltalog.log import x\n", "floors"),
    "the log knows the audit": ("deltalog/log.py", "import audit", "floors"),
    "siblings": ("audit/locks.py", "import sync", "floors"),
    "upwards in audit": ("audit/lease.py", "from audit import locks", "audit floors"),
    "trio in a pure file": ("deltalog/clock.py", "import trio", "trio only at the rim"),
    "trio in a new file": ("deltalog/novelty.py", "import trio.lowlevel", "trio only at the rim"),
    "rocksdict beside its door": ("audit/locks.py", "from rocksdict import Rdict", "rocksdict behind one door"),
    "the roof from inside": ("deltalog/__init__.py", "from deltalog.app import node", "composition root"),
    "a circle": ("deltalog/novelty.py", "import deltalog.failpoints", "no circles"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_caught(copy: Path, breach: str) -> None:
    file, line, contract = BREACHES[breach]
    if breach == "through the face":
        append(copy / "deltalog/version.py", "from deltalog import Log")
    if breach == "a circle":
        append(copy / "deltalog/failpoints.py", "import deltalog.novelty")
    append(copy / file, line)
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(rf"{contract} BROKEN", result.stdout), result.stdout


def test_what_is_allowed_is_kept(copy: Path) -> None:
    append(copy / "deltalog/writer.py", "import trio\nfrom deltalog.rocks import x")
    append(copy / "deltalog/rocks.py", "import rocksdict\nfrom deltalog.failpoints import reach")
    append(copy / "deltalog/app/__init__.py", "from deltalog.app import node")
    append(copy / "deltalog/app/node.py", "import audit, sync, trio\nfrom deltalog.log import x")
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout + result.stderr


def append(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(f"\n{text}\n")
