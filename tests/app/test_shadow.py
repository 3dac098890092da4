"""Packages named as ours that are not ours are found and named, before they are imported."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import deltalog
from deltalog.app.shadow import Shadowed, check_packages

ROOT = Path(deltalog.__file__).parents[1]


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands first on the search path, in a process that has imported neither package."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("audit", "sync"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_our_own_packages_are_fine() -> None:
    check_packages()


def test_a_package_in_front_is_named(foreign: Path) -> None:
    (foreign / "audit").mkdir()
    (foreign / "audit/__init__.py").touch()
    with pytest.raises(Shadowed) as caught:
        check_packages()
    assert str(caught.value).startswith(
        f"`import audit` gives {foreign / 'audit/__init__.py'}, which hides deltalog's own"
    )
    assert str(ROOT / "audit/__init__.py") in str(caught.value)
    assert "audit" not in sys.modules


def test_a_module_in_front_is_named(foreign: Path) -> None:
    (foreign / "sync.py").write_text("raise SystemExit('imported')")
    with pytest.raises(Shadowed, match="`import sync` gives .*sync.py, which hides"):
        check_packages()


def test_a_folder_without_init_does_not_hide_a_package(foreign: Path) -> None:
    (foreign / "audit").mkdir()
    check_packages()


def test_a_package_that_was_imported_already_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("audit")
    monkeypatch.setitem(sys.modules, "audit", other)
    with pytest.raises(Shadowed, match="`import audit` gives <audit>"):
        check_packages()
    other.__file__ = "/elsewhere/audit.py"
    with pytest.raises(Shadowed, match="`import audit` gives /elsewhere/audit.py"):
        check_packages()


def test_the_distribution_it_belongs_to_is_named(foreign: Path) -> None:
    (foreign / "audit.py").touch()
    info = foreign / "auditlib-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: auditlib\nVersion: 1.2\n")
    (info / "RECORD").write_text("audit.py,,\nauditlib-1.2.dist-info/METADATA,,\n")
    with pytest.raises(Shadowed, match=r"audit.py \(of the distribution auditlib 1.2\), which hides"):
        check_packages()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("audit", "sync"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:3])  # not the finder of an editable installation
    with pytest.raises(Shadowed, match="deltalog is not whole: its package 'audit' is missing"):
        check_packages(tmp_path)


def test_a_verb_started_beside_such_a_folder_says_so_and_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/__init__.py").touch()
    code = f"import sys; sys.path.append({str(ROOT)!r}); from deltalog.app.cli import main; main()"
    command = [sys.executable, "-c", code, "append", "1", "--data", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("deltalog append: `import audit` gives ")
    assert not (tmp_path / "data").exists()
