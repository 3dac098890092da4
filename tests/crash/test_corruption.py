"""Every kind of file damaged in every way: an error, or a truthful report, or no harm; never a silent loss (T4).

Each case is opened in a process of its own, which has ten seconds. An open that is refused leaves every file as it was.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from tests.conftest import Rounds
from tests.crash.history import Known
from tests.crash.zygote import Zygote, side_by_side
from tests.deltalog.directories import digest, retold
from tests.deltalog.rocks_stores import directory_in_memory

pytestmark = pytest.mark.crash

DEADLINE_S = 10.0
KINDS: Final[Mapping[str, str]] = {
    # kind of file -> glob below the data directory; of several the newest, but of old ones the largest
    "sorted file, old": "rocks/delta/*.sst",
    "sorted file, new": "rocks/delta/*.sst",
    "write-ahead log": "rocks/delta/*.log",
    "MANIFEST": "rocks/delta/MANIFEST-*",
    "CURRENT": "rocks/delta/CURRENT",
    "OPTIONS": "rocks/delta/OPTIONS-*",
    "IDENTITY": "rocks/delta/IDENTITY",
    "LOCK": "rocks/delta/LOCK",
    "binding's config": "rocks/delta/rocksdict-config.json",
    "witness": "witness",
    "deltalog.toml": "deltalog.toml",
    "lock": "lock",
    "reserve": "reserve",
}
MARKS_BYTES: Final = 16
"""What the witness keeps without a check: damaged, it may name other dots than were handed out and never written."""
TYPED: Final = {"StoreCorrupt", "StoreMissing", "StoreFormatMismatch", "StoreIOError", "ForeignData", "UsageError"}
"""Errors that a damaged directory may be refused with, beside `DataLoss`."""


Damage = Callable[[bytes, random.Random], bytes | None]
"""What becomes of a file; None: it is gone."""


def _flip(at: Callable[[int], int], bit: int) -> Damage:
    def damage(data: bytes, _: random.Random) -> bytes:
        if not data:
            return data
        place = at(len(data)) % len(data)
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    return damage


DAMAGES: Final[Mapping[str, Damage]] = {
    "first byte flipped": _flip(lambda _: 0, 0),
    "byte 6 flipped": _flip(lambda _: 6, 2),
    "flipped at a quarter": _flip(lambda size: size // 4, 3),
    "flipped in the middle": _flip(lambda size: size // 2, 7),
    "flipped near the end": _flip(lambda size: size - 12, 1),
    "cut to half": lambda data, _: data[: len(data) // 2],
    "cut by one byte": lambda data, _: data[:-1],
    "emptied": lambda _, __: b"",
    "deleted": lambda _, __: None,
    "zeros in the middle": lambda data, _: data[: len(data) // 3] + bytes(len(data[len(data) // 3 : -9])) + data[-9:],
    "garbage": lambda data, chance: chance.randbytes(len(data)),
    "garbage behind the end": lambda data, chance: data + chance.randbytes(700),
}


@attrs.frozen
class Sample:
    """A log with something in every kind of file."""

    files: Mapping[str, bytes]
    said: list[Any]

    def name(self, kind: str) -> str:
        """The file of a kind."""
        names = [name for name in self.files if Path(name).match(KINDS[kind])]
        return max(names, key=lambda name: len(self.files[name])) if kind.endswith("old") else max(names)

    def lay(self, path: Path) -> None:
        """Put the log there; its witness is told that this is its place."""
        for name, data in self.files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        place = f"{Path('/etc/machine-id').read_text().strip()}/{(path / 'witness').stat().st_ino}"
        retold(path, lambda told: attrs.evolve(told, place=place))

    def known(self) -> Known:
        known = Known()
        known.hear(self.said)
        return known


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    with directory_in_memory(tmp_path_factory.mktemp("sample")) as directory:
        path = directory / "data"
        child = Zygote.shared().start("sample", str(path))
        said = child.end()
        assert child.status == 0, said[-1]
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        return Sample(files, said)


def outcome(sample: Sample, path: Path, name: str, damage: Damage) -> str:
    """Damage one file and open. "no harm", "refused", "named", or "seen" (while reading, or by verify)."""
    sample.lay(path)
    changed = damage((path / name).read_bytes(), random.Random(name))
    if changed is None:
        (path / name).unlink()
    else:
        with (path / name).open("r+b") as file:  # in place: a witness must stay the same file
            file.write(changed)
            file.truncate()
    before = digest(path)
    found = looked_at(path)
    if "error" in found:
        after = digest(path)
        assert {name: after.get(name) for name in before} == before, "a refused open changed a file"
        assert after.keys() - before.keys() <= {"lock"}
        assert found["error"] in TYPED | {"DataLoss"}, found
        return truthful(sample, path, found) if found["error"] == "DataLoss" else "refused"
    known = sample.known()
    if found["problems"]:
        for source, contents in found["contents"].items():
            assert set(contents) <= set(known.handed[source].values()), f"{source!r}: deltas that nobody wrote"
        return "seen"
    marks = name == "witness" and changed is not None and changed[:MARKS_BYTES] != sample.files[name][:MARKS_BYTES]
    known.check(found, exact=not marks)
    return "no harm"


def looked_at(path: Path, *, accept_loss: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = Zygote.shared().run("inspect", str(path), "", accept_loss, deadline_s=DEADLINE_S)
    return found


def truthful(sample: Sample, path: Path, refused: dict[str, Any]) -> str:
    """What is there once the loss is accepted is what the refusal said, delta for delta."""
    found, known = looked_at(path, accept_loss=True), sample.known()
    if "error" in found:
        assert found["error"] in TYPED, found
        return "named, then refused"
    assert found["report"]["kind"] == "lost"
    heads = found["heads"]
    gone = {s: (heads.get(s, 0) + 1, seq) for s, seq in known.durable.items() if heads.get(s, 0) < seq}
    assert {source: tuple(span) for source, span in refused["lost"].items()} == gone, (refused, heads)
    for source, contents in found["contents"].items():
        start = found["floors"].get(source, 0) + 1
        assert contents == [known.handed[source][seq] for seq in range(start, heads[source] + 1)], source
    assert not {tuple(dot[:2]) for dot in found["fresh"]} & {(s, n) for s, seqs in known.handed.items() for n in seqs}
    return "named"


Case = tuple[str, str, Damage]
"""Kind of file, how it is damaged, in words and in deed."""


def walked(tmp_path: Path, sample: Sample, cases: list[Case]) -> Counter[str]:
    """Every case in a directory of its own; outcomes by kind of file."""

    def one(case: Case) -> str:
        kind, what, damage = case
        with directory_in_memory(tmp_path) as directory:
            try:
                return outcome(sample, directory / "data", sample.name(kind), damage)
            except AssertionError as error:
                raise AssertionError(f"{kind}, {what}: {error}") from error

    return Counter(f"{case[0]}: {found}" for case, found in zip(cases, side_by_side(one, cases), strict=True))


def test_i2_i9_i15_every_file_damaged_in_every_way(
    tmp_path: Path, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = walked(tmp_path, sample, [(kind, what, DAMAGES[what]) for kind in KINDS for what in DAMAGES])
    with capsys.disabled():
        print(f"\n{outcomes.total()} damaged files: {json.dumps(outcomes)}")
    expected = ("write-ahead log: named", "sorted file, old: seen", "sorted file, new: refused", "MANIFEST: refused")
    assert set(expected) <= outcomes.keys()


def test_i2_i9_any_bit_of_any_file(
    tmp_path: Path, sample: Sample, rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the long form each bit class of every 64th byte; in the short one some of them."""
    places = [
        (kind, place, bit)
        for kind in KINDS
        for place in range(0, len(sample.files[sample.name(kind)]), 64)
        for bit in range(8)
    ]
    chosen = random.Random(5).sample(places, min(len(places), rounds(20, nightly=len(places))))
    cases = [(kind, f"bit {bit} of byte {place}", _flip_at(place, bit)) for kind, place, bit in chosen]
    outcomes = walked(tmp_path, sample, cases)
    with capsys.disabled():
        print(f"\n{outcomes.total()} of {len(places)} bits: {json.dumps(outcomes)}")


def _flip_at(place: int, bit: int) -> Damage:
    return _flip(lambda _: place, bit)
