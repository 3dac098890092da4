"""append, import and erase: what is stored is what was said, and it is said back."""

from __future__ import annotations

from pathlib import Path

from tests.app.invoked import (
    dots,
    execute,
    lines_of,
    printed,
)


def test_append_stores_json_text_and_bytes(data: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\0\xff")
    printed("append", '{"a": [1, 2.5, null]}', "--data", data, "--source", "me", "--kind", "edit", "--key", "k")
    printed("append", "not JSON", "--text", "--data", data)
    printed("append", "--bytes-from", tmp_path / "raw", "--data", data)
    assert execute("append", "-", "--data", data, data=b'"piped"').returncode == 0
    assert execute("append", "--bytes-from", "-", "--data", data, data=b"\1").returncode == 0
    lines = lines_of("replay", "--json", "--data", data)
    assert dots(lines) == [f"me:{seq}" for seq in range(1, 6)]
    assert [line.get("payload") for line in lines] == [{"a": [1, 2.5, None]}, "not JSON", None, "piped", None]
    assert [line.get("payload_b64") for line in lines] == [None, None, "AP8=", None, "AQ=="]
    assert (lines[0]["kind"], lines[0]["key"]) == ("edit", "k")


def test_append_prints_the_delta_it_stored(data: Path) -> None:
    (line,) = lines_of("append", "1", "--json", "--data", data)
    assert lines_of("replay", "--json", "--data", data) == [line]
    human = printed("append", '"x"', "--kind", "note", "--data", data)
    assert f"{line['source']}:2" in human
    assert "note" in human
    assert human.count("\n") == 1


def test_import_twice_says_what_was_known(log: Path, tmp_path: Path) -> None:
    (count,) = lines_of("import", tmp_path / "rows", "--data", log, "--json")
    assert (count["applied"], count["known"]) == (0, 6)
    assert printed("import", tmp_path / "rows", "--data", log).startswith("6 deltas: 0 new, 6 known already (")


def test_an_erased_payload_is_gone_and_its_delta_stays(log: Path) -> None:
    (line,) = lines_of("erase", "alice", "2", "--reason", "asked", "--json", "--data", log)
    assert line["erased"] is True
    assert "payload" not in line
    assert lines_of("replay", "--source", "alice", "--json", "--data", log)[1] == line
    assert "erased" in printed("erase", "alice", "2", "--reason", "asked again", "--data", log)
