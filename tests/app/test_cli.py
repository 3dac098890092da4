"""The command line as a process: pipes, signals, locks, terminals, missing libraries, errors nobody foresaw."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from deltalog.app import read_verbs
from deltalog.app.opening import inspected
from tests.app.invoked import (
    all_of,
    dots,
    environment,
    execute,
    interchange,
    invoke,
    lines_of,
    one_line,
    printed,
    start,
)


def test_the_directory_may_come_from_the_environment(data: Path) -> None:
    assert execute("append", "1", DELTALOG_DATA=str(data)).returncode == 0
    assert dots(lines_of("tail", "--json", "--data", data))[0].startswith("node-")


def test_a_log_goes_through_a_pipe(read_log: Path, tmp_path: Path) -> None:
    out = execute("export", "--data", read_log)
    assert (out.returncode, out.stderr) == (0, b"")
    done = execute("import", "-", "--data", tmp_path / "other", data=gzip.compress(out.stdout))
    assert (done.returncode, done.stderr) == (0, b"")
    assert printed("export", "--data", tmp_path / "other").encode() == out.stdout


def read_until(stream: IO[bytes], text: bytes) -> bytes:
    """Read from a pipe until `text` has come."""
    found = b""
    while text not in found:
        more = os.read(stream.fileno(), 4096)
        assert more, found
        found += more
    return found


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and standard error of a process that ends by itself."""
    _, stderr = process.communicate(timeout=60)
    return process.returncode, (stderr or b"").decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_log_in_order(data: Path, number: signal.Signals, code: int) -> None:
    """An import that waits for more input: what came is stored, and the next opening finds a closed log."""
    process = start("import", "-", "--data", data, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("".join(line + "\n" for line in interchange(500)).encode())
    process.stdin.flush()
    while not (data / "deltalog.toml").exists():
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    stdin, process.stdin = process.stdin, None  # stays open: nothing but the signal ends the import
    result, stderr = ended(process)
    stdin.close()
    assert result == code
    assert one_line(stderr) == f"deltalog import: interrupted by {number.name}"
    (stats,) = lines_of("stats", "--json", "--data", data)
    assert stats["startup"] == "clean"


def test_tail_follow_prints_the_newest_and_holds_the_directory_until_it_is_told_to_end(read_log: Path) -> None:
    process = start("tail", "--follow", "--limit", "1", "--json", "--data", read_log)
    assert process.stdout is not None
    assert dots([json.loads(read_until(process.stdout, b"\n"))]) == ["here:1"]
    for verb in ("stats", "verify", "gc --keep 1 --dry-run", "append 1"):
        result = invoke(*verb.split(), "--data", read_log)
        assert result.exit_code == 1
        assert one_line(result.stderr).endswith(f"{read_log} is open in process {process.pid} already")
    process.send_signal(signal.SIGTERM)
    code, stderr = ended(process)
    assert (code, one_line(stderr)) == (143, "deltalog tail: interrupted by SIGTERM")


def test_verify_holds_the_directory(log: Path) -> None:
    with inspected(log):
        for verb in ("append 1", "verify"):
            line = one_line(invoke(*verb.split(), "--data", log).stderr)
            assert line.endswith(f"is open in process {os.getpid()} already")
    printed("append", "1", "--data", log)


def test_a_reader_that_goes_away_ends_the_verb_quietly(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("\n".join(interchange(20_000)))
    printed("import", tmp_path / "lines", "--data", data)
    for words in (["replay"], ["export"]):
        process = start(*words, "--data", data)
        assert process.stdout is not None
        read_until(process.stdout, b"\n")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141
    for words in (["stats"], ["--help"]):
        out, into = os.pipe()
        os.close(out)
        process = start(*words, *(["--data", data] if words != ["--help"] else []), stdout=into)
        os.close(into)
        assert ended(process)[1] == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["replay"], ["stats", "--json"]])
def test_an_output_that_is_full_is_a_failure(read_log: Path, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        code, stderr = ended(start(*words, "--data", read_log, stdout=full))
    assert code == 1
    assert "No space left on device" in one_line(stderr)


def test_without_the_extra_libraries_it_says_what_to_install() -> None:
    for missing in ("click", "rich"):
        code = f"import sys; sys.modules[{missing!r}] = None; from deltalog.app.cli import main; main(['stats'])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
        )
        assert done.returncode == 1
        assert one_line(done.stderr) == (
            f"deltalog: the command line needs {missing}; install it with: pip install 'deltalog[cli]'"
        )


def test_help_and_version() -> None:
    assert printed("--version").startswith("deltalog ")
    everything = printed()
    for verb in ("append", "tail", "import", "export", "replay", "stats", "verify", "gc", "compact", "erase", "demo"):
        assert verb in everything
        assert "--debug" in printed(verb, "--help")


def test_the_unexpected_is_one_line_too_and_debug_shows_where_it_came_from(
    read_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(read_verbs, "print_json", broken)
    result = invoke("stats", "--json", "--data", read_log)
    assert result.exit_code == 1
    assert one_line(result.stderr).startswith(
        "deltalog stats: unexpected ZeroDivisionError: two lines. This is a fault in"
    )
    result = invoke("stats", "--json", "--debug", "--data", read_log)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr.splitlines()[-1]


def test_i1_an_opening_that_begins_a_new_incarnation_says_so(log: Path) -> None:
    copy = log.with_name("copy")
    subprocess.run(["cp", "-r", log, copy], check=True)
    assert "was copied, restored or brought from another machine" in one_line(invoke("tail", "--data", copy).stderr)
    result = invoke("append", "1", "--adopt", "--data", copy)
    assert result.exit_code == 0
    line = one_line(result.stderr)
    assert line.startswith(
        "deltalog: the directory was copied or restored; so that no number is used twice, this log goes on as"
    )
    assert "and 'here' stays as it is" in line


# ---------------------------------------------------------------------------------------------------------- terminals


def on_terminal(*words: object, stream: str) -> str:
    """What a verb writes to a terminal that its standard output or error is; it must succeed."""
    ours, theirs = pty.openpty()
    process = start(*words, **{stream: theirs}, stdin=subprocess.DEVNULL)
    os.close(theirs)
    found = all_of(ours).decode()
    assert ended(process)[0] == 0, found
    return found


def test_import_draws_a_bar_on_a_terminal_and_nothing_elsewhere(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("\n".join(interchange(3000)))
    drawn = on_terminal("import", tmp_path / "lines", "--data", data, stream="stderr")
    assert "importing" in drawn
    assert "100%" in drawn
    assert "3,000 lines" in drawn
    assert on_terminal("import", tmp_path / "lines", "--json", "--data", data, stream="stderr") == ""
    assert invoke("import", tmp_path / "lines", "--data", data).stderr == ""


def test_colour_is_for_terminals(read_log: Path) -> None:
    assert "\x1b[36m" in on_terminal("tail", "--data", read_log, stream="stdout")
    assert "\x1b" not in on_terminal("tail", "--json", "--data", read_log, stream="stdout")
    assert "\x1b" not in printed("tail", "--data", read_log) + printed("stats", "--data", read_log)
