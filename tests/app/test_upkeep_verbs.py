"""gc, compact and verify: what goes is what was said would go, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltalog.clock import from_iso
from tests.app.invoked import (
    ALL,
    digest,
    dots,
    invoke,
    lines_of,
    one_line,
    printed,
    wide_lines,
)

COLLECTIONS: list[tuple[list[str], list[str]]] = [
    (["--keep", "2"], ["alice:4", "here:1"]),
    (["--keep", "100"], ALL),
    (["--keep", "0"], []),
    (["--before", "2026-01-01T00:00:03Z"], ALL[3:]),
    (["--before", str(from_iso("2026-01-01T00:00:03Z") + 1)], ALL[4:]),
    (["--before", "0"], ALL),
    (["--max-bytes", "100000"], ALL),
    (["--max-bytes", "0"], []),
    (["--until", "alice=2", "--until", "bob=1"], ALL[3:]),
    (["--until", "alice=99"], ["bob:1", "bob:2", "here:1"]),
]


@pytest.mark.parametrize(("words", "left"), COLLECTIONS, ids=[" ".join(words) for words, _ in COLLECTIONS])
def test_gc_drops_what_its_dry_run_says(log: Path, words: list[str], left: list[str]) -> None:
    before = digest(log)
    (plan,) = lines_of("gc", *words, "--dry-run", "--json", "--data", log)
    assert printed("gc", *words, "--dry-run", "--data", log).startswith(
        f"{len(ALL) - len(left)} deltas would be dropped"
    )
    assert digest(log) == before
    (done,) = lines_of("gc", *words, "--json", "--data", log)
    assert done["dropped"] == plan["dropped"] == len(ALL) - len(left)
    assert dots(lines_of("replay", "--json", "--data", log)) == left
    assert printed("verify", "--data", log).startswith(f"no fault in {len(left)} deltas")


def test_compact_gives_space_back_and_changes_nothing_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("\n".join(wide_lines(2000, "alice")))
    printed("import", tmp_path / "lines", "--data", data, "--source", "here")
    (full,) = lines_of("compact", "--json", "--data", data)
    before = printed("export", "--data", data)
    dropped = printed("gc", "--keep", "100", "--compact", "--data", data)
    assert dropped.startswith("1,900 deltas dropped; the floor is alice:1,900")
    (left,) = lines_of("compact", "--json", "--data", data)
    assert left["disk_bytes_after"] < full["disk_bytes_after"] - 150 * 1900
    assert left["blocks_after"] < full["blocks_after"]
    assert printed("export", "--data", data).splitlines() == before.splitlines()[-100:]


def test_verify_says_that_all_is_well(read_log: Path) -> None:
    before = digest(read_log)
    assert printed("verify", "--data", read_log) == "no fault in 7 deltas of 3 sources\n"
    assert lines_of("verify", "--json", "--data", read_log) == [
        {"ok": True, "deltas": 7, "sources": 3, "count": 0, "kinds": {}, "faults": []}
    ]
    assert digest(read_log) == before


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def test_i9_verify_names_what_is_damaged_and_changes_nothing(log: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("\n".join(wide_lines(300, "z")))
    printed("import", tmp_path / "lines", "--data", log)
    printed("compact", "--data", log)
    files = sorted((log / "rocks/delta").glob("*.sst"), key=lambda file: file.stat().st_size)
    flip(files[-1], 20_000)
    before = digest(log)
    result = invoke("verify", "--data", log)
    assert (result.exit_code, result.stderr) == (1, "")
    summary, first = result.stdout.splitlines()
    assert "in 307 deltas of 4 sources (" in summary
    assert files[-1].name in first
    assert "deltas key 0" in first
    result = invoke("verify", "--json", "--data", log)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert found["count"] == sum(found["kinds"].values()) >= 1
    fault = found["faults"][0]
    assert fault["message"] in first
    assert (fault["source"], fault["seq"], fault["family"], fault["file"]) == ("alice", 1, "deltas", files[-1].name)
    assert digest(log) == before


def test_verify_says_what_keeps_a_log_from_opening(log: Path) -> None:
    (wal,) = (log / "rocks/delta").glob("*.log")
    (manifest,) = (log / "rocks/delta").glob("MANIFEST-*")
    for file, at in ((manifest, 30), (wal, 3)) if wal.stat().st_size else ((manifest, 30),):
        flip(file, at)
        opening = one_line(invoke("tail", "--data", log).stderr)
        before = digest(log)
        result = invoke("verify", "--data", log)
        assert result.exit_code == 1
        assert file.name in result.stdout
        assert file.name in opening
        assert digest(log) == before
        flip(file, at)
    printed("verify", "--data", log)


def test_i2_verify_finds_that_fsynced_deltas_are_gone(log: Path) -> None:
    old = log.with_name("old")
    shutil.copytree(log / "rocks", old)
    printed("append", "1", "--data", log)
    shutil.rmtree(log / "rocks")
    shutil.copytree(old, log / "rocks")
    result = invoke("verify", "--data", log)
    assert result.exit_code == 1
    assert "'here': deltas 2 to 2 were fsynced and are gone" in result.stdout
