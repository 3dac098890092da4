"""The main job on real input: a recorded session of two people typing into one text, 26,078 Yjs updates.

The file is not part of the project. Where it is not at hand these tests are left out, with a line that says so.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Doc, Text

from deltalog.clock import from_iso
from tests.app.invoked import ROOT, lines_of, printed, start
from tests.conftest import Rounds

PLACES = [Path(os.environ.get("DELTALOG_TEST_DATA", "")), ROOT.parent / "shared" / "data"]
FOLDER = next((place for place in PLACES if (place / "friendsforever.ydeltas.jsonl.gz").is_file()), None)
COUNT = 26_078

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="needs friendsforever.ydeltas.jsonl.gz: name its folder in DELTALOG_TEST_DATA"
)
FIELDS = ("source", "seq", "deps", "kind", "key", "payload_b64")


@pytest.fixture(scope="module")
def file() -> Path:
    assert FOLDER is not None
    return FOLDER / "friendsforever.ydeltas.jsonl.gz"


@pytest.fixture(scope="module")
def session(file: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def end_content() -> str:
    assert FOLDER is not None
    content: str = json.loads(gzip.decompress((FOLDER / "friendsforever.json.gz").read_bytes()))["endContent"]
    return content


@pytest.fixture(scope="module")
def data(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that the file was imported into."""
    path = tmp_path_factory.mktemp("friends") / "data"
    (count,) = lines_of("import", file, "--data", path, "--json")
    assert (count["lines"], count["applied"], count["known"]) == (COUNT, COUNT, 0)
    print(f"\nimported {count['deltas_per_s']:,} deltas/s")
    return path


@pytest.fixture(scope="module")
def exported(data: Path) -> str:
    """What that log exports."""
    return printed("export", "--data", data)


def text_of(lines: Iterable[dict[str, Any]]) -> str:
    """The text that applying every payload in this order gives."""
    doc: Doc[Any] = Doc()
    text = doc.get("text", type=Text)
    for line in lines:
        doc.apply_update(a2b_base64(line["payload_b64"]))
    return str(text)


def by_dot(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, int], list[Any]]:
    return {(line["source"], line["seq"]): [line[field] for field in FIELDS] for line in lines}


def test_export_gives_the_same_deltas(exported: str, session: list[dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in exported.splitlines()]
    assert len(lines) == COUNT
    assert by_dot(lines) == by_dot(session)


def test_i6_replay_after_a_restart_ends_in_the_text_that_was_typed(data: Path, end_content: str) -> None:
    lines = lines_of("replay", "--json", "--data", data)
    seen: dict[str, int] = {}
    for line in lines:
        assert line["seq"] == seen.get(line["source"], 0) + 1
        assert all(seen.get(source, 0) >= seq for source, seq in line["deps"].items())
        seen[line["source"]] = line["seq"]
    places = [(from_iso(line["time"]), line["source"]) for line in lines]
    assert places == sorted(places)
    assert text_of(lines) == end_content


def test_importing_it_again_compacting_and_collecting_nothing_change_nothing(
    data: Path, file: Path, exported: str
) -> None:
    (count,) = lines_of("import", file, "--data", data, "--json")
    assert (count["applied"], count["known"]) == (0, COUNT)
    (sizes,) = lines_of("compact", "--json", "--data", data)
    print(f"\n{sizes['disk_bytes_after']:,} bytes on disk")
    assert printed("gc", "--keep", COUNT, "--compact", "--data", data).startswith("0 deltas dropped")
    assert printed("export", "--data", data) == exported
    assert printed("verify", "--data", data).startswith(f"no fault in {COUNT:,} deltas of 2 sources")


def times_of(rng: random.Random, kills: int, longest_s: float) -> Iterator[float]:
    """When to kill: at once, then later and later, so that it gets on."""
    for number in range(kills):
        yield rng.uniform(0, longest_s * number / kills)


@pytest.mark.crash
def test_i2_killed_at_any_moment_it_completes_when_run_again(
    file: Path, exported: str, tmp_path: Path, rounds: Rounds
) -> None:
    for seed in range(rounds(1, nightly=30)):
        again, killed, held = tmp_path / f"{seed}", 0, 0
        for after_s in times_of(random.Random(seed), 4, 2.0):
            process = start("import", file, "--data", again, stdout=subprocess.DEVNULL)
            try:
                process.wait(after_s)  # how far it gets is left to chance: any moment must do
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
            _, stderr = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), stderr
            if (again / "deltalog.toml").exists():
                (stats,) = lines_of("stats", "--json", "--data", again)
                assert stats["deltas"] >= held, "what was there once stays"
                held = stats["deltas"]
        assert killed
        printed("import", file, "--data", again)
        assert printed("export", "--data", again) == exported
