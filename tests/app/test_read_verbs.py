"""tail, replay, export and stats: exactly what was asked for, in the form that was asked for."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from deltalog.app import read_verbs
from deltalog.clock import from_iso
from tests.app.invoked import (
    ALL,
    dots,
    invoke,
    lines_of,
    one_line,
    printed,
)


def test_tail_prints_the_newest_oldest_first(read_log: Path) -> None:
    assert dots(lines_of("tail", "--json", "--data", read_log)) == ALL
    assert dots(lines_of("tail", "--limit", "2", "--json", "--data", read_log)) == ALL[-2:]
    assert (
        dots(lines_of("tail", "--source", "bob", "--source", "alice", "--limit", "3", "--json", "--data", read_log))
        == ALL[3:6]
    )
    assert printed("tail", "--limit", "1", "--data", read_log).endswith(
        'here:1           -          -                {"own":true}\n'
    )


SELECTIONS: list[tuple[list[str], list[str]]] = [
    ([], ALL),
    (["--limit", "2"], ALL[:2]),
    (["--source", "bob"], ["bob:1", "bob:2"]),
    (["--source", "bob", "--source", "here"], ["bob:1", "bob:2", "here:1"]),
    (["--source", "alice", "--reverse"], ["alice:4", "alice:3", "alice:2", "alice:1"]),
    (["--source", "alice", "--reverse", "--limit", "1"], ["alice:4"]),
    (["--source", "alice", "--after-seq", "1", "--until-seq", "3"], ["alice:2", "alice:3"]),
    (["--source", "alice", "--after-seq", "4"], []),
    (["--source", "alice", "--until-seq", "0"], []),
    (["--after", "2026-01-01T00:00:01Z", "--until", "2026-01-01T00:00:03Z"], ["bob:1", "alice:3"]),
    (["--after", str(from_iso("2026-01-01T00:00:04Z"))], ["alice:4", "here:1"]),
    (["--until", "2026-01-01T01:00:01+01:00"], ["alice:1", "alice:2"]),
    (["--after", "2026-01-01T00:00:01Z", "--source", "alice"], ["alice:3", "alice:4"]),
    (["--after", "2026-01-01T00:00:01Z", "--source", "alice", "--source", "bob", "--limit", "2"], ["bob:1", "alice:3"]),
]


def test_replay_selects_by_source_seq_and_time(read_log: Path) -> None:
    for words, expected in SELECTIONS:
        assert dots(lines_of("replay", *words, "--json", "--data", read_log)) == expected, words
        (counted,) = lines_of("replay", *words, "--count", "--json", "--data", read_log)
        assert counted["deltas"] == len(expected), words


def test_replay_describes_a_delta_on_a_line_each(read_log: Path) -> None:
    lines = printed("replay", "--data", read_log).splitlines()
    assert len(lines) == len(ALL)
    assert lines[2] == "2026-01-01T00:00:02.000Z      bob:1            edit       b                2"
    assert printed("replay", "--count", "--data", read_log).startswith("7 deltas (")


def test_what_comes_from_data_cannot_act_on_the_terminal(data: Path) -> None:
    printed("append", '"\\u001b[31m"', "--key", "\x1b[2J\n", "--kind", "\u202e", "--source", "\x07", "--data", data)
    for text in (printed("tail", "--data", data), printed("stats", "--data", data)):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert printed("tail", "--data", data).count("\n") == 1


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_export_then_import_then_export_gives_the_same_file(log: Path, tmp_path: Path, name: str) -> None:
    printed("erase", "alice", "2", "--reason", "asked", "--data", log)
    first, second, third = (tmp_path / f"{number}-{name}" for number in (1, 2, 3))
    assert printed("export", first, "--data", log) == f"7 deltas, {first.stat().st_size:,} bytes: {first}\n"
    (count,) = lines_of("import", first, "--data", tmp_path / "other", "--json")
    assert {key: count[key] for key in ("lines", "applied", "known")} == {"lines": 7, "applied": 7, "known": 0}
    printed("export", second, "--data", tmp_path / "other")
    printed("export", third, "--data", log)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert not name.endswith(".gz") or first.read_bytes()[4:8] == bytes(4), "no time of writing in it"
    text = gzip.decompress(first.read_bytes()) if name.endswith(".gz") else first.read_bytes()
    assert text.decode() == printed("export", "--data", log) == printed("replay", "--json", "--data", log)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["data", "other", "rows", first.name, second.name, third.name]
    )


def test_export_replaces_a_file_when_told_to(log: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    assert "is there already" in one_line(invoke("export", tmp_path / "old", "--data", log).stderr)
    printed("export", tmp_path / "old", "--force", "--data", log)
    assert len((tmp_path / "old").read_text().splitlines()) == 7


def test_a_failed_export_leaves_no_file(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(delta: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(read_verbs, "to_line", fail)
    before = sorted(tmp_path.iterdir())
    result = invoke("export", tmp_path / "new", "--data", log)
    assert result.exit_code == 1
    assert "No space left on device" in one_line(result.stderr)
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_without_its_beginning_says_so(log: Path, tmp_path: Path) -> None:
    printed("gc", "--until", "alice=2", "--data", log)
    result = invoke("export", "--data", log)
    assert result.exit_code == 0
    assert "deltas up to alice:2 were dropped: an empty log cannot import the rest" in one_line(result.stderr)
    assert len(result.stdout.splitlines()) == 5
    (tmp_path / "rest").write_text(result.stdout)
    refusal = one_line(invoke("import", tmp_path / "rest", "--data", tmp_path / "other").stderr)
    assert "line 1: 'bob':1 needs 'alice':2, which is neither in the log nor in the file; 4 more lines wait" in refusal
    again = lines_of("import", tmp_path / "rest", "--data", log, "--json")[0]
    assert (again["applied"], again["known"]) == (0, 5)


def test_stats_counts_what_is_there(log: Path) -> None:
    printed("erase", "bob", "1", "--reason", "asked", "--data", log)
    printed("gc", "--until", "alice=1", "--data", log)
    (stats,) = lines_of("stats", "--json", "--data", log)
    assert stats["heads"] == {"alice": 4, "bob": 2, "here": 1}
    assert stats["floor"] == {"alice": 1}
    assert (stats["source"], stats["startup"], stats["healthy"]) == ("here", "clean", True)
    assert (stats["sources"], stats["deltas"], stats["erased"]) == (3, 6, 1)
    table = printed("stats", "--data", log)
    assert "alice" in table
    assert "startup" in table
