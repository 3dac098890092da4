"""What README and docs say is so: examples run, files and names are there, bytes and defaults are those of the code."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click
import pytest

import audit
import deltalog
import sync
from audit.event import Action, AuditEvent, encode
from deltalog import blocking, chain, errors
from deltalog.app.verbs import verbs
from deltalog.clock import pack
from deltalog.codec import build
from deltalog.profiles import SharedMemory
from deltalog.rocks import Rocks
from deltalog.rocks_store import FAMILIES, RocksStore
from deltalog.store import Run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE, STORAGE, API = (ROOT / "docs" / f"{name}.md" for name in ("architecture", "storage", "api"))


@attrs.frozen
class Fence:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text()
    for found in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Fence(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_in(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def rows(page: Path, first: str) -> Iterator[list[str]]:
    """Cells of the table rows whose first cell matches."""
    for line in prose(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(first, cells[0]):
            yield cells


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------------ examples

EXAMPLES = [fence for page in PAGES for fence in fences(page) if fence.language == "python"]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_runs_and_prints_what_it_says(
    example: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints stands behind `# ->`, if it says so at all."""
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.text, str(example), "exec"), {"__name__": "__main__"})
    expected = re.findall(r"# -> (.*)$", example.text, re.MULTILINE)
    assert not expected or printed.getvalue().splitlines() == expected


def test_the_readme_has_an_example_and_the_two_commands_first() -> None:
    first, second, *_ = fences(ROOT / "README.md")
    assert [line.split("#")[0].strip() for line in first.text.splitlines()] == ["make demo", "make test"]
    assert second.language == "python"
    assert len([line for line in second.text.splitlines() if line]) <= 10
    assert second.line < 40


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shell = "\n".join(fence.text for fence in fences(page) if fence.language == "sh")
    used = re.findall(r"^make ([a-z]+)", shell, re.MULTILINE) + re.findall(r"`make ([a-z]+)", prose(page))
    assert set(used) <= targets


# ------------------------------------------------------------------------------------------------------- command line


def options_of(verb: str) -> set[str]:
    command = verbs.commands[verb]
    return {name for param in command.params if isinstance(param, click.Option) for name in param.opts}


def test_the_readme_lists_every_verb_with_options_it_has() -> None:
    section = (ROOT / "README.md").read_text().partition("## Command line")[2].partition("\n## ")[0]
    listed = set[str]()
    for line in section.splitlines():
        if line.startswith("| `"):
            found = [code.split()[0] for code in code_in(line.split("|")[1])]
            listed.update(found)
            taken = set().union(*(options_of(verb) for verb in found))
            assert set(re.findall(r"--[a-z-]+", line)) <= taken, line
    assert listed == set(verbs.commands)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_examples_exist(page: Path) -> None:
    shell = "\n".join(fence.text for fence in fences(page) if fence.language == "sh")
    for line in re.findall(r"^deltalog (.*)$", shell, re.MULTILINE):
        verb = line.split()[0]
        assert set(re.findall(r"--[a-z-]+", line)) <= options_of(verb), line
    for verb in re.findall(r"`deltalog ([a-z]+)", prose(page)):
        assert verb in verbs.commands


# --------------------------------------------------------------------------------------------------- files and names


def test_every_file_is_named_exactly_once_in_the_architecture() -> None:
    files = {path.relative_to(ROOT / "deltalog").as_posix() for path in (ROOT / "deltalog").rglob("*.py")}
    files |= {path.relative_to(ROOT).as_posix() for face in ("audit", "sync") for path in (ROOT / face).rglob("*.py")}
    text = ARCHITECTURE.read_text()
    counts = Counter(re.findall(r"`([\w/]+\.py)`", text.partition("## Invariants")[0]))
    assert files - counts.keys() == set(), "name them where a delta passes them"
    assert counts.keys() - files == set(), "these are not there"
    assert {name for name, count in counts.items() if count > 1} == set()


def test_every_public_name_stands_in_the_api() -> None:
    words = set(re.findall(r"\w+", " ".join(code_in(prose(API)))))
    assert set(deltalog.__all__) - {"__version__"} - words == set()
    assert set(blocking.__all__) - words == set()


def test_the_bytes_of_an_audit_event_are_those_of_the_page() -> None:
    """Every field of the page, in its order and size, read back from what the code writes."""
    (fence,) = (fence for fence in fences(STORAGE) if fence.text.startswith("events key"))
    fields = re.search(r"^event +(.*?)^metadata", fence.text, re.MULTILINE | re.DOTALL)
    assert fields is not None
    event = AuditEvent(7, Action.RENEWED, target="t", holder_id="ab", holder_name="abc", lock_id="abcd", token=9)
    names = ["version", "action", "timestamp", "token", "target", "holder id", "holder name", "lock id", "metadata"]
    at = [fields[1].index(name) for name in names]
    assert at == sorted(at)
    assert struct.unpack_from(">BBQQHHHHB", encode(event))[2:] == (7, 9, 1, 2, 3, 4, 0)
    assert encode(event)[27:] == b"tababcabcd"


@pytest.mark.parametrize("package", [audit, sync])
def test_every_public_name_and_error_stands_on_its_page(package: ModuleType) -> None:
    page = ROOT / "docs" / {"audit": "audit.md", "sync": "protocol.md"}[package.__name__]
    words = set(re.findall(r"\w+", " ".join(code_in(prose(page)))))
    assert set(package.__all__) - words == set()
    public = {name: getattr(package, name) for name in package.__all__}
    raised = {
        name: thing
        for name, thing in public.items()
        if inspect.isclass(thing) and issubclass(thing, deltalog.DeltaLogError)
    }
    table = {cells[0].strip("`"): cells[-1] for cells in rows(page, r"`\w+`") if len(cells) == 4}
    assert {name: table.get(name) for name in raised} == {
        name: "yes" if thing.retryable else "no" for name, thing in raised.items()
    }


@pytest.mark.parametrize("thing", [deltalog.DeltaLog, deltalog.Manager, deltalog.VersionVector, deltalog.Delta])
def test_every_public_member_stands_in_the_api(thing: type) -> None:
    words = set(re.findall(r"\w+", " ".join(code_in(prose(API)))))
    left_out = {"running", "fill", "trusted"}  # for the package's own use
    assert {name for name in dir(thing) if not name.startswith("_")} - left_out - set(dir(dict)) - words == set()


def test_every_error_stands_in_the_api_with_what_it_says_of_itself() -> None:
    table = {cells[0].strip("`"): cells[-1] for cells in rows(API, r"`\w+`") if len(cells) == 4}
    defined = {
        name: thing
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, deltalog.DeltaLogError)
    }
    assert table.keys() == defined.keys()
    instance_says = {"LogReadOnly"}
    for name, thing in defined.items():
        assert table[name] == ("it says" if name in instance_says else "yes" if thing.retryable else "no"), name


def test_the_places_to_enter_the_source_are_there() -> None:
    section = (ROOT / "README.md").read_text().partition("## Reading the source")[2]
    places = re.findall(r"^- `([\w/]+\.py)`(?:, `(\w+)`)?", section, re.MULTILINE)
    assert len(places) == 6
    for file, function in places:
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not function or function in names


def test_every_invariant_names_tests_that_carry_its_number() -> None:
    table = list(rows(ARCHITECTURE, r"I\d+"))
    assert [cells[0] for cells in table] == [f"I{number}" for number in range(1, 16)]
    for number, _, guards in table:
        files = code_in(guards)
        assert files or guards.startswith("comes with")
        for file in files:
            assert re.search(rf"def test_\w*{number.lower()}_", (ROOT / file).read_text()), f"{number} in {file}"


# --------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and the docs build make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not re.match(r"https?://", target):
            file, _, anchor = target.partition("#")
            found = page.parent / file if file else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


# -------------------------------------------------------------------------------------------------- bytes and defaults


def worked_example() -> dict[str, bytes]:
    """Name -> bytes: lines that are not indented name what the indented ones spell, each up to its remark."""
    (fence,) = (fence for fence in fences(STORAGE) if fence.text.startswith("deltas key"))
    found: dict[str, bytes] = {}
    name = ""
    for line in fence.text.splitlines():
        if line.startswith(" "):
            found[name] += bytes.fromhex(re.split(r" {2,}", line.strip())[0])
        else:
            name = line
            found[name] = b""
    return found


def test_the_worked_example_is_what_is_written(tmp_path: Path) -> None:
    at = pack(1_700_000_000_000)
    records = [
        build("alice", 1, at, {"n": 1}, kind="edit", key="k").record,
        build("alice", 2, at + 1, {"n": 2}, deps={"bob": 7}, kind="edit", key="k").record,
    ]
    start, memory, path = chain.genesis("alice"), SharedMemory(), tmp_path / "delta"
    Rocks.create(path, FAMILIES, memory).close()
    with contextlib.closing(RocksStore(lambda: Rocks.open(path, FAMILIES, memory), bytes(16))) as store:
        store.write([Run("alice", 1, records, start, chain.extend(start, records))])
        written = {
            f"{family} {part}": data
            for family in ("deltas", "by_time", "sources", "meta")
            for row in store.db.scan(family)
            if row[0] != b"store_id"
            for part, data in zip(("key", "value"), row, strict=True)
        }
    assert worked_example() == written


CLASSES = [deltalog.LogOptions, deltalog.Limits, deltalog.Upkeep, deltalog.Retention, deltalog.SharedMemory]


def test_every_option_stands_in_the_table_with_its_default() -> None:
    table = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(STORAGE, r"`[A-Z]\w+\.\w+`")}
    expected = dict[str, Any]()
    for kind in CLASSES:
        made = kind()
        expected |= {f"{kind.__name__}.{a.name}": getattr(made, a.name) for a in attrs.fields(kind) if a.init}
    assert table.keys() == expected.keys()
    for name, text in table.items():
        assert eval(text, {"Limits": deltalog.Limits}) == expected[name], name
