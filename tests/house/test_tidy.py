"""Size and wording of the sources, as a ratchet: a bound may be lowered, an exception needs its reason here.

Lines of a function are those from `def` to its end without the docstring: prose is not what makes a function long.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("deltalog", "audit", "sync")
ALL = (*SOURCES, "tests", "benchmarks", "docs")

FILE_LINES_MAX = 400
MEDIAN_LINES_MAX = 8
P90_LINES_MAX = 35
FUNCTION_LINES_MAX = 60

LONG_FILES: dict[str, str] = {
    "audit/lock_table.py": "one table of states; every step of a request stands beside the rows it is described by",
    "audit/locks.py": "the face of the locks: short methods, each a contract",
    "audit/recorder.py": "one task: batches, fsyncs, who waits for them, and what becomes of a failure",
    "deltalog/codec.py": "encoding, decoding and erasing are the three sides of one byte table",
    "deltalog/log.py": "the face of the log: many short methods, each a contract, none with work of its own",
    "deltalog/manager.py": "the manager, and how one is opened and closed around its log",
    "deltalog/rocks.py": "the one door to rocksdict; what could be told apart stands in rocks_* beside it",
    "deltalog/rocks_scan.py": "four ways to read that share the merge by time",
    "deltalog/rocks_store.py": "one batch for record, index and head, whatever changes them",
    "deltalog/startup.py": "one opening, step by step, in the order its docstring numbers",
    "sync/mesh.py": "what concerns more than one peer, in short methods; how one session goes stands in peer.py",
    "sync/messages.py": "one table: each message, its check and its bytes",
    "sync/peer.py": "one session: each message, and what is done about it",
    "tests/audit/test_lock_table.py": "the table against a naive model, step by step",
    "tests/audit/test_locks.py": "every operation, and every way it can end",
    "tests/audit/test_recorder.py": "one test per policy and per failure",
    "tests/crash/test_powercut.py": "one table of file operations and what a power cut makes of each",
    "tests/crash/test_shim.py": "one test per interposed call",
    "tests/deltalog/test_receiver.py": "every answer that a receipt gives",
    "tests/deltalog/test_rocks.py": "every call of the door, on real RocksDB",
    "tests/deltalog/test_rocks_errors.py": "one test per row of the error map",
    "tests/deltalog/test_rocks_faults.py": "one test per kind of damage",
    "tests/deltalog/test_rocks_scan.py": "every read against a naive one, and what it costs",
    "tests/deltalog/test_rocks_store.py": "what only the store on RocksDB does: batches, damage, kill -9, threads",
    "tests/deltalog/test_startup_refused.py": "one test per reason not to open",
    "tests/deltalog/test_verify.py": "one test per way to tamper with a store",
    "tests/sync/test_mesh.py": "one test per thing that nodes promise each other",
    "tests/laws/delta_store.py": "the contract of a store, law by law",
}
"""File over the bound -> why it is one idea all the same."""

LONG_FUNCTIONS: dict[str, str] = {}
"""`file::Class.function` over the bound -> why it reads best in one piece."""

# Put together from halves, so that this table does not find itself.
BANNED = {
    "TO" + "DO": "do it, or say in the docs that it is missing",
    "FIX" + "ME": "do it, or say in the docs that it is missing",
    "XX" + "X": "do it, or say in the docs that it is missing",
    "pragma: no " + "cover": "test it, or delete it",
    "NotImplemented" + "Error": "a Protocol, or the code",
    "assert " + "True": "a test must be able to fail",
}
BANNED_NAMES = ("utils", "util", "helpers", "common", "base", "core", "misc")
"""Names of files that say nothing about what is in them."""


@attrs.frozen
class Function:
    """One function of the sources."""

    name: str
    """`file::Class.function`."""
    lines: int


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions_of(path: Path) -> Iterator[Function]:
    def walk(node: ast.AST, prefix: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{prefix}{child.name}."
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(f"{named(path)}::{prefix}{child.name}", length(child))
            yield from walk(child, inner)

    return walk(ast.parse(path.read_text()), "")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_a_long_file_has_a_reason() -> None:
    lines = {named(path): len(path.read_text().splitlines()) for path in python_files(*ALL)}
    long = {name for name, count in lines.items() if count > FILE_LINES_MAX}
    assert not long - LONG_FILES.keys(), f"over {FILE_LINES_MAX} lines: split them, or give the reason in LONG_FILES"
    assert not LONG_FILES.keys() - long, "short enough now: take them out of LONG_FILES"


def test_functions_stay_short(capsys: pytest.CaptureFixture[str]) -> None:
    functions = sorted(
        (function for path in python_files(*SOURCES) for function in functions_of(path)),
        key=lambda function: -function.lines,
    )
    lines = [function.lines for function in functions]
    median, p90 = statistics.median(lines), statistics.quantiles(lines, n=10)[-1]
    with capsys.disabled():
        print(f"\n{len(functions)} functions, median {median:g} lines, p90 {p90:g}; the longest:")
        for function in functions[:5]:
            print(f"  {function.lines:4} {function.name}")
    long = {function.name for function in functions if function.lines > FUNCTION_LINES_MAX}
    assert median <= MEDIAN_LINES_MAX
    assert p90 <= P90_LINES_MAX
    assert not long - LONG_FUNCTIONS.keys(), f"over {FUNCTION_LINES_MAX} lines: split, or give the reason"
    assert not LONG_FUNCTIONS.keys() - long, "short enough now: take them out of LONG_FUNCTIONS"


@pytest.mark.parametrize("word", BANNED)
def test_a_banned_word_stands_nowhere(word: str) -> None:
    found = [
        f"{named(path)}:{number}"
        for path in python_files(*ALL)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word in line
    ]
    assert not found, f"{word}: {BANNED[word]}"


def test_files_are_named_for_what_is_in_them() -> None:
    assert not [named(path) for path in python_files(*ALL) if path.stem.strip("_") in BANNED_NAMES]


def test_every_file_says_what_it_is() -> None:
    """A test package's empty `__init__.py` apart."""
    files = [path for path in python_files(*ALL) if path.read_text().strip()]
    assert not [named(path) for path in files if ast.get_docstring(ast.parse(path.read_text())) is None]


def test_every_test_folder_is_a_package() -> None:
    """Without its `__init__.py`, `tests/audit` would be found as `audit`."""
    folders = {path.parent for path in python_files("tests")}
    assert not [named(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_lines_of_a_function_are_counted_without_its_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.house.test_tidy.ROOT", tmp_path)
    file = tmp_path / "a.py"
    file.write_text(
        'class A:\n    async def b(self):\n        """One.\n\n        Two.\n        """\n        return 1\n'
    )
    assert list(functions_of(file)) == [Function("a.py::A.b", 2)]
