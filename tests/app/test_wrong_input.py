"""Wrong input to every option of every verb: one clear line, the right exit code, nothing changed."""

from __future__ import annotations

import gzip
from pathlib import Path

import click
import pytest

from deltalog.app.verbs import verbs
from sync.node_keys import create_key
from tests.app.invoked import digest, interchange, invoke, one_line, printed
from tests.app.wrong_with_peers import WRONG_WITH_PEERS

LONG = "x" * 1_100_000

FILTERED = [["audit", "query"], ["audit", "tail"], ["audit", "export"]]
SUMMARY = ["audit", "summary"]
WRONG_FILTERS = [
    (["--holder", ""], "it takes 1 to 255 bytes"),
    (["--action", "steal"], "'steal' is not one of"),
    (["--lock-id", "x" * 256], "it takes 1 to 255 bytes"),
    (["--target", "../x"], "has a .. segment"),
    (["--target-prefix", ""], "it takes 1 to 8,192 bytes"),
    (["--after", "now"], "it takes ISO 8601 with an offset"),
    (["--until", "2026-01-01"], "it takes ISO 8601 with an offset"),
    (["--after", "2", "--until", "1"], "--after comes after --until"),
    (["--min-token", "-1"], "-1 is not in the range"),
]

# (verb and arguments, a part of the message). DATA is a log, TMP an empty folder, and --data DATA is added if no other
# directory is named. Exit code 2: called wrongly.
WRONG: list[tuple[list[str], str]] = [
    # append
    (["append"], "give one of PAYLOAD and --bytes-from"),
    (["append", "1", "2"], "Got unexpected extra argument (2)"),
    (["append", "1", "--bytes-from", "x"], "give one of PAYLOAD and --bytes-from"),
    (["append", "--text", "--bytes-from", "x"], "--text goes with PAYLOAD, not with --bytes-from"),
    (["append", "hello"], "PAYLOAD: it is not JSON"),
    (["append", '{"a": NaN}'], "NaN is no JSON value"),
    (["append", '{"a": 1, "a": 2}'], "field 'a' stands twice"),
    (["append", "[" * 2000], "PAYLOAD: it is not JSON"),
    (["append", str(2**64)], "payload cannot be encoded as msgpack"),
    (["append", LONG, "--text"], "payload is 1,100,005 bytes; the limit is 1,048,576 bytes"),
    (["append", "\udcff", "--text"], "PAYLOAD: it is not UTF-8 at byte 1"),
    (["append", "1", "--kind", "x" * 256], "kind is 256 bytes; the limit is 255 bytes"),
    (["append", "1", "--kind", "\udcff"], "kind must be valid Unicode"),
    (["append", "1", "--key", "x" * 1025], "key is 1,025 bytes; the limit is 1,024 bytes"),
    (["append", "--bytes-from", "TMP"], "--bytes-from: cannot read"),
    (["append", "--bytes-from", "TMP/none"], "No such file or directory"),
    (["append", "--bytes-from", "TMP/long"], "is more than 1,048,576 bytes"),
    (["append", "1", "--source", ""], "source must not be empty"),
    (["append", "1", "--source", "x" * 256], "source is 256 bytes; the limit is 255 bytes"),
    (["append", "1", "--source", "\udcff"], "source must be valid Unicode"),
    # import
    (["import"], "Missing argument 'FILE'"),
    (["import", "TMP"], "Is a directory"),
    (["import", "TMP/none"], "No such file or directory"),
    (["import", "TMP/good", "--line-bytes", "0"], "0 is not in the range"),
    (["import", "TMP/good", "--line-bytes", "many"], "'many' is not a valid integer range"),
    (["import", "TMP/good", "--source", ""], "source must not be empty"),
    # tail
    (["tail", "--limit", "0"], "0 is not in the range"),
    (["tail", "--limit", "x"], "'x' is not a valid integer range"),
    (["tail", "--source", ""], "source must not be empty"),
    (["tail", "--follow=1"], "does not take a value"),
    # replay
    (["replay", "--after", "now"], "time is 'now'; it takes ISO 8601 with an offset"),
    (["replay", "--after", "2026-01-01T00:00:00"], "it takes ISO 8601 with an offset"),
    (["replay", "--until", "2026-13-01T00:00:00Z"], "there is no such time"),
    (["replay", "--until", "-1"], "it takes ISO 8601"),
    (["replay", "--until", "9" * 30], "it takes ISO 8601"),
    (["replay", "--until", str(2**64)], "it takes ISO 8601"),
    (["replay", "--after", "5", "--until", "4"], "--after comes after --until"),
    (["replay", "--after-seq", "1"], "--after-seq needs exactly one --source"),
    (["replay", "--until-seq", "1"], "--until-seq needs exactly one --source"),
    (["replay", "--reverse"], "--reverse needs exactly one --source"),
    (["replay", "--reverse", "--source", "alice", "--source", "bob"], "--reverse needs exactly one --source"),
    (["replay", "--source", "alice", "--after-seq", "-1"], "a seq is an integer from 0"),
    (["replay", "--source", "alice", "--until-seq", str(2**63)], "a seq is an integer from 0"),
    (["replay", "--source", "alice", "--after-seq", "2", "--until-seq", "1"], "--after-seq comes after --until-seq"),
    (["replay", "--source", "\udcff"], "source must be valid Unicode"),
    (["replay", "--limit", "-1"], "-1 is not in the range"),
    (["replay", "--count=3"], "does not take a value"),
    # export
    (["export", "TMP/good"], "is there already; --force replaces it"),
    (["export", "TMP"], "it is a directory"),
    (["export", "/dev/null", "--force"], "it is not a regular file"),
    (["export", "TMP", "--force"], "it is a directory"),
    (["export", "TMP/none/file"], "its directory is missing"),
    (["export", "a", "b"], "Got unexpected extra argument (b)"),
    # stats, compact, verify
    (["stats", "x"], "Got unexpected extra argument (x)"),
    (["compact", "x"], "Got unexpected extra argument (x)"),
    (["verify", "x"], "Got unexpected extra argument (x)"),
    # gc
    (["gc"], "give exactly one of --before, --keep, --max-bytes and --until"),
    (["gc", "--keep", "1", "--max-bytes", "1"], "give exactly one of"),
    (["gc", "--keep", "1", "--until", "alice=1"], "give exactly one of"),
    (["gc", "--keep", "-1"], "-1 is not in the range"),
    (["gc", "--keep", "all"], "'all' is not a valid integer range"),
    (["gc", "--max-bytes", "1.5"], "'1.5' is not a valid integer range"),
    (["gc", "--before", "yesterday"], "it takes ISO 8601 with an offset"),
    (["gc", "--until", "alice"], "'alice' is not SOURCE=SEQ"),
    (["gc", "--until", "=1"], "source must not be empty"),
    (["gc", "--until", "alice=x"], "a seq is an integer from 0"),
    (["gc", "--until", "zoe=1"], "there is no source 'zoe' here; there are: 'alice', 'bob'"),
    (["gc", "--keep", "1", "--dry-run", "--compact"], "--dry-run changes nothing"),
    # erase
    (["erase", "alice", "1"], "Missing option '--reason'"),
    (["erase", "alice", "1", "--reason", ""], "it must not be empty"),
    (["erase", "alice", "1", "--reason", "x" * 1025], "reason is 1,025 bytes; the limit is 1,024 bytes"),
    (["erase", "alice", "0", "--reason", "x"], "0 is not in the range"),
    (["erase", "alice", "one", "--reason", "x"], "'one' is not a valid integer range"),
    (["erase", "", "1", "--reason", "x"], "source must not be empty"),
    (["erase", "alice", "--reason", "x"], "Missing argument 'SEQ'"),
    # demo
    (["demo", "--seed", "-1"], "-1 is not in the range"),
    (["demo", "--seed", "x"], "'x' is not a valid integer range"),
    (["demo", "--deltas", "10"], "10 is not in the range"),
    (["demo", "--data", "DATA"], "is there already; --data takes a directory that is to be made"),
    (["demo", "--data", ""], "it must name a directory"),
    (["demo", "audit", "--seed", "-1"], "-1 is not in the range"),
    (["demo", "audit", "--seconds", "0"], "0.0 is not in the range"),
    (["demo", "audit", "--seconds", "long"], "'long' is not a valid float range"),
    (["demo", "audit", "--data", "DATA"], "is there already; --data takes a directory that is to be made"),
    (["demo", "sync", "--seed", "-1"], "-1 is not in the range"),
    (["demo", "sync", "--deltas", "10"], "10 is not in the range"),
    (["demo", "sync", "--data", "DATA"], "is there already; --data takes a directory that is to be made"),
    # serve
    (["serve", "--source", ""], "source must not be empty"),
    (["serve", "--host", "0.0.0.0"], "that takes a token"),
    (["serve", "--port", "65536"], "65536 is not in the range"),
    (["serve", "--trail-days", "0"], "0.0 is not in the range"),
    (["serve", "--trail-days", "nan"], "retention.age_s must be a number"),
    (["serve", "--trail-bytes", "0"], "0 is not in the range"),
    (["serve", "--token-file", "TMP/none"], "--token-file: cannot read"),
    (["serve", "--tls-cert", "x"], "TLS takes both a certificate and a key"),
    (["serve", "--tls-key", "x"], "TLS takes both a certificate and a key"),
    *WRONG_WITH_PEERS,
    # audit, locks
    (["audit", "steal"], "No such command 'steal'"),
    *(([*verb, *words], message) for verb in FILTERED for words, message in WRONG_FILTERS),
    *(([*verb, "--url", "ftp://x"], "it takes http://HOST:PORT") for verb in (*FILTERED, SUMMARY, ["locks"])),
    (["audit", "query", "--limit", "0"], "0 is not in the range"),
    (["audit", "query", "--cursor", ""], "it takes 1 to 4,096 bytes"),
    (["audit", "tail", "--limit", "1001"], "1001 is not in the range"),
    (["audit", "tail", "--follow"], "--follow needs --url"),
    (["audit", "export", "--format", "xml"], "'xml' is not one of"),
    (["audit", "summary", "--after", "2", "--until", "1"], "--after comes after --until"),
    (["audit", "verify", "--head", "audit-head:v1:x"], "it takes audit-head:v1:"),
    (["locks", "--holder", ""], "it takes 1 to 255 bytes"),
    (["locks", "--target", "a:9-1"], "lines"),
    # no verb
    (["fetch"], "No such command 'fetch'"),
    (["--fetch"], "No such option '--fetch'"),
]


def commands() -> dict[str, click.Command]:
    """Every verb by what is typed for it: `tail`, `audit tail`."""
    found: dict[str, click.Command] = {}
    for name, verb in sorted(verbs.commands.items()):
        inner = verb.commands if isinstance(verb, click.Group) else {}
        found |= {f"{name} {part}": command for part, command in inner.items()}
        if not inner or any(isinstance(each, click.Option) and not each.is_flag for each in verb.params):
            found[name] = verb  # a group that does something by itself, too
    return found


def verb_of(words: list[str]) -> str:
    """The longest that the words begin with."""
    return max((name for name in commands() if words[: name.count(" ") + 1] == name.split()), key=len, default=words[0])


ELSEWHERE = ("demo", "keys cluster", "keys admit")
"""Verbs that take no data directory, or one that must not be there."""
ON_DATA = [name for name in commands() if not name.startswith(ELSEWHERE)]
ARGUMENTS = {
    "append": ["1"],
    "import": ["TMP/good"],
    "erase": ["alice", "1", "--reason", "x"],
    "gc": ["--keep", "1"],
    "sync": ["127.0.0.1:9"],
    "peers forget": ["zoe"],
}
MAKE_IT = ("append", "import", "serve", "sync", "keys init")
"""Verbs that make the directory."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with three deltas of alice and two of bob; nothing in this file changes it."""
    path = tmp_path_factory.mktemp("wrong") / "data"
    lines = [*interchange(3, "alice"), *interchange(2, "bob")]
    (path.parent / "lines").write_text("\n".join(lines))
    printed("import", path.parent / "lines", "--data", path, "--source", "here")
    return path


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    (tmp_path / "good").write_text("\n".join(interchange()))
    (tmp_path / "long").write_bytes(b"x" * ((1 << 20) + 1))
    create_key(tmp_path / "key")
    return tmp_path


def filled(words: list[str], data: Path, tmp: Path) -> list[str]:
    return [word.replace("DATA", str(data)) if word == "DATA" else word.replace("TMP", str(tmp)) for word in words]


def refused(words: list[str], code: int) -> str:
    result = invoke(*words)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    return one_line(result.stderr)


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[f"{n}-{words[0]}" for n, (words, _) in enumerate(WRONG)])
def test_a_wrong_call_is_one_line_and_changes_nothing(words: list[str], message: str, data: Path, tmp: Path) -> None:
    before = digest(data), digest(tmp)
    named = "--data" in words or words[0] in ("fetch", "--fetch") or " ".join(words).startswith(ELSEWHERE)
    directory = [] if named or words[:2] == ["keys", "steal"] else ["--data", str(data)]
    line = refused([*filled(words, data, tmp), *directory], 2)
    assert message in line
    assert line.startswith(f"deltalog {words[0]}: " if words[0] in verbs.commands else "deltalog: ")
    assert (digest(data), digest(tmp)) == before


def test_every_option_of_every_verb_stands_in_this_table() -> None:
    """Flags apart, which `test_a_flag_takes_no_value` covers."""
    tried = {(verb_of(words), word.partition("=")[0]) for words, _ in WRONG for word in words}
    missing = [
        (name, option)
        for name, verb in commands().items()
        for parameter in verb.params
        if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name not in ("data", "help")
        for option in parameter.opts
        if (name, option) not in tried
    ]
    assert not missing


def flags() -> list[tuple[str, str]]:
    return [
        (name, option)
        for name, verb in commands().items()
        for parameter in verb.params
        if isinstance(parameter, click.Option) and parameter.is_flag
        for option in parameter.opts
    ]


@pytest.mark.parametrize(("verb", "flag"), flags())
def test_a_flag_takes_no_value(verb: str, flag: str, data: Path, tmp: Path) -> None:
    before = digest(data)
    line = refused([*verb.split(), f"{flag}=yes", "--data", str(data), *filled(ARGUMENTS.get(verb, []), data, tmp)], 2)
    assert f"Option '{flag}' does not take a value" in line
    assert digest(data) == before


# ----------------------------------------------------------------------------------------------------- the directory


@pytest.mark.parametrize("verb", ON_DATA)
def test_no_directory_named(verb: str, data: Path, tmp: Path) -> None:
    line = refused([*verb.split(), *filled(ARGUMENTS.get(verb, []), data, tmp)], 2)
    assert "Missing option '--data' (env var: 'DELTALOG_DATA')" in line


@pytest.mark.parametrize("verb", ON_DATA)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "it must name a directory"),
        ("a\0b", "it must name a directory"),
        ("TMP/good", ""),
        ("TMP/good/below", ""),
        ("TMP", ""),
    ],
)
def test_a_directory_that_cannot_be_one(verb: str, name: str, message: str, data: Path, tmp: Path) -> None:
    """Nothing, a file, a place below a file, a folder of something else."""
    before = digest(tmp)
    result = invoke(*verb.split(), *filled([*ARGUMENTS.get(verb, []), "--data", name], data, tmp))
    assert result.exit_code in (1, 2)
    assert message in one_line(result.stderr)
    assert digest(tmp) == before


@pytest.mark.parametrize("verb", [verb for verb in ON_DATA if verb not in MAKE_IT])
def test_a_verb_that_does_not_write_makes_no_directory(verb: str, data: Path, tmp: Path) -> None:
    missing = tmp / "missing"
    line = refused([*verb.split(), "--data", str(missing), *filled(ARGUMENTS.get(verb, []), data, tmp)], 1)
    assert f"{missing} does not exist" in line
    assert not missing.exists()


def test_an_empty_directory_stays_empty_for_a_verb_that_does_not_write(tmp: Path) -> None:
    (tmp / "empty").mkdir()
    assert "is no deltalog directory" in refused(["stats", "--data", str(tmp / "empty")], 1)
    assert not list((tmp / "empty").iterdir())


@pytest.mark.parametrize(
    "words", [["append", "nonsense"], ["append", LONG, "--text"], ["import", "TMP/none"], ["import", "TMP/bad"]]
)
def test_wrong_input_makes_no_directory(words: list[str], data: Path, tmp: Path) -> None:
    (tmp / "bad").write_text("\n\nnonsense\n")
    one_line(invoke(*filled(words, data, tmp), "--data", tmp / "new").stderr)
    assert not (tmp / "new").exists()


def test_another_source_than_the_directorys_is_refused(data: Path) -> None:
    before = digest(data)
    assert "belongs to source 'here'; it cannot be opened as 'there'" in refused(
        ["append", "1", "--source", "there", "--data", str(data)], 2
    )
    assert digest(data) == before


# ------------------------------------------------------------------------------------- wrong only once the log is open


def content(data: Path) -> str:
    return printed("export", "--data", data)


LATE = [
    (["peers", "forget", "zoe"], 2, "there is no peer 'zoe' here; there are: none"),
    (["tail", "--source", "zoe"], 2, "there is no source 'zoe' here; there are: 'alice', 'bob'"),
    (["replay", "--source", "alice", "--source", "zoe"], 2, "there is no source 'zoe' here"),
    (["erase", "alice", "4", "--reason", "x"], 2, "there is no delta 'alice':4 here; its source's head is 3"),
    (["erase", "zoe", "1", "--reason", "x"], 2, "there is no delta 'zoe':1 here"),
    (["import", "TMP/fork"], 1, "line 2: 'alice':2 is refused: another delta with this dot is held here"),
    (["import", "TMP/gap"], 1, "line 2: 'bob':9 needs 'bob':8, which is neither in the log nor in the file"),
    (["import", "TMP/ahead"], 1, "line 2: timestamp is"),
    (["import", "TMP/own"], 1, "line 2: 'here':1 claims to be this log's own"),
    (["import", "TMP/late"], 1, "line 2: seq must be an integer from 1"),
    (["import", "TMP/cut.gz"], 1, "line 2: the gzip file is damaged here: it ends in the middle"),
    (["import", "TMP/fork", "--line-bytes", "90"], 1, "line 2: it is too long (length is 98 bytes; the limit is 90"),
]


@pytest.mark.parametrize(("words", "code", "message"), LATE, ids=[f"{n}-{case[0][0]}" for n, case in enumerate(LATE)])
def test_what_the_log_refuses_is_one_line_and_changes_nothing(
    words: list[str], code: int, message: str, data: Path, tmp: Path
) -> None:
    known = next(interchange())
    (tmp / "fork").write_text(known + "\n" + list(interchange(2))[1].replace("alice2", "something else, longer") + "\n")
    (tmp / "gap").write_text(known + "\n" + next(interchange(1, "bob", 9)))
    (tmp / "ahead").write_text(known + "\n" + next(interchange(1, "bob", 3)).replace("1970", "9000"))
    (tmp / "own").write_text(known + "\n" + next(interchange(1, "here")))
    (tmp / "late").write_text(known + "\n" + known.replace('"seq": 1', '"seq": null'))
    (tmp / "cut.gz").write_bytes(gzip.compress((known + "\n" + LONG).encode(), 0)[:-100])
    before = content(data)
    assert message in refused([*filled(words, data, tmp), "--data", str(data)], code)
    assert content(data) == before
