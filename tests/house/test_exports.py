"""The faces of the packages: each public name once, from one file, with a docstring."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACES = ("deltalog", "audit", "sync")
HOMONYMS = {"decode": "deltalog/block.py: of a block, and only ever called as block.decode"}
"""Public name -> the file with another thing of that name inside, and why both keep it."""


def exported(face: str) -> list[str]:
    names: list[str] = importlib.import_module(face).__all__
    return names


@functools.cache
def defined_names(path: Path) -> frozenset[str]:
    """What a file defines at its top level, whether by class, def or assignment."""
    return frozenset(_names(ast.parse(path.read_text())))


def _names(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def definitions(face: str, name: str) -> list[str]:
    """The files of a package that define `name`, or are the submodule of that name. `blocking` is a face of its own."""
    files = sorted((ROOT / face).rglob("*.py"))
    return [
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.stem == name or (path.stem != "blocking" and name in defined_names(path))
    ]


def undocumented(name: str, thing: object) -> Iterator[str]:
    """`name` itself and its public members, where they have no docstring of their own or inherited."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    if not inspect.getdoc(thing):
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            documentable = inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)
            if documentable and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                yield f"{name}.{member}"


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_can_be_imported_once(face: str) -> None:
    module = importlib.import_module(face)
    names = exported(face)
    assert not [name for name in names if not hasattr(module, name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_defined_in_exactly_one_file(face: str) -> None:
    inside = {name: reason.partition(":")[0] for name, reason in HOMONYMS.items()}
    places = {name: set(definitions(face, name)) - {inside.get(name)} for name in exported(face)}
    assert not {name: files for name, files in places.items() if len(files) != 1}


def test_every_homonym_is_one() -> None:
    for name, reason in HOMONYMS.items():
        file = reason.partition(":")[0]
        assert name in exported("deltalog")
        assert file in definitions("deltalog", name)


@pytest.mark.parametrize("face", FACES)
def test_nothing_public_misses_a_docstring(face: str) -> None:
    module = importlib.import_module(face)
    assert not [missing for name in exported(face) for missing in undocumented(name, getattr(module, name))]


@pytest.mark.parametrize("face", FACES)
def test_every_package_ships_its_types(face: str) -> None:
    assert (ROOT / face / "py.typed").is_file()


def test_a_missing_docstring_is_noticed() -> None:
    class Documented:
        """Says what it is."""

        @property
        def silent(self) -> int:
            return 1

        def loud(self) -> int:
            """Says what it does."""
            return 1

        def _private(self) -> int:
            return 1

    assert list(undocumented("Documented", Documented)) == ["Documented.silent"]
    assert list(undocumented("f", lambda: 1)) == ["f"]
    assert list(undocumented("__version__", "0.1.0")) == []


def test_a_name_defined_twice_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.house.test_exports.ROOT", tmp_path)
    (tmp_path / "face").mkdir()
    (tmp_path / "face/a.py").write_text("from x import imported\nclass Thing: ...\nlimit: int = 1\n")
    (tmp_path / "face/b.py").write_text("def Thing(): ...\nname = 1\n")
    assert definitions("face", "Thing") == ["face/a.py", "face/b.py"]
    assert definitions("face", "limit") == ["face/a.py"]
    assert definitions("face", "name") == ["face/b.py"]
    assert definitions("face", "imported") == []
