"""Keys on the command line: made once, shown, admitted; and what is wrong with one is said in a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltalog.app import peer_options
from deltalog.app.node_identity import load_identity
from sync.node_keys import parse_key, verify_voucher
from tests.app.invoked import invoke, lines_of, one_line, printed
from tests.app.peered import new_key


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The key of a cluster."""
    (tmp_path / "safe").mkdir()
    printed("keys", "cluster", tmp_path / "safe")
    return tmp_path / "safe" / "cluster.key"


def test_a_key_is_made_once_and_shown_alone_on_its_line(data: Path) -> None:
    key = new_key(data)
    assert re.fullmatch("ed25519:[0-9a-f]{64}", key)
    assert (data / "node.key").stat().st_mode & 0o777 == 0o600
    shown = invoke("keys", "show", "--data", data)
    assert (shown.stdout, "peers must pin this key" in one_line(shown.stderr)) == (key + "\n", True)
    assert lines_of("keys", "show", "--data", data, "--json") == [{"key": key, "admission": None}]
    again = invoke("keys", "init", "--data", data)
    assert (again.exit_code, "never overwritten" in one_line(again.stderr)) == (2, True)
    assert printed("keys", "show", "--data", data) == key + "\n"


def test_a_log_is_made_beside_the_key_and_beside_a_log_a_key(tmp_path: Path) -> None:
    new_key(tmp_path / "first")
    printed("append", "1", "--data", tmp_path / "first", "--source", "alice")
    printed("append", "1", "--data", tmp_path / "second", "--source", "bob")
    new_key(tmp_path / "second")
    assert printed("verify", "--data", tmp_path / "second").startswith("no fault")


def test_a_cluster_admits_a_node_from_its_public_key_alone(data: Path, cluster: Path) -> None:
    key = new_key(data)
    words = ("keys", "admit", key, "--cluster-key", cluster, "--cluster", "team")
    (data / "node.crt").write_text(printed(*words))
    (about,) = lines_of("keys", "show", "--data", data, "--json")
    assert (about["key"], about["admission"]["cluster"], about["admission"]["valid"]) == (key, "team", True)
    printed(*words, "--days", "0.5", "--to", data / "node.crt")
    (later,) = lines_of("keys", "show", "--data", data, "--json")
    assert later["admission"]["until"] < about["admission"]["until"]
    identity = load_identity(data)
    assert identity is not None and identity.admitted is not None
    assert verify_voucher(identity.admitted.cluster_key, "team", parse_key(key), identity.voucher)


def test_a_node_that_is_made_beside_the_clusters_key_is_admitted_at_once(data: Path, cluster: Path) -> None:
    new_key(data, "--cluster-key", cluster, "--cluster", "team")
    (about,) = lines_of("keys", "show", "--data", data, "--json")
    assert about["admission"]["valid"]
    shown = invoke("keys", "show", "--data", data)
    assert "admitted to cluster 'team'" in one_line(shown.stderr)


def test_an_admission_is_one_nodes_and_nobody_else_signs_it(tmp_path: Path, cluster: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    new_key(first, "--cluster-key", cluster, "--cluster", "team")
    new_key(second)
    admission = (first / "node.crt").read_text()
    (second / "node.crt").write_text(admission)
    assert "admits ed25519:" in one_line(invoke("keys", "show", "--data", second).stderr)
    digits = re.search('voucher = "(.)', admission)
    assert digits is not None
    wrong = {
        admission.replace('"team"', '"team2"'): "is not signed by",
        admission.replace(digits[0], digits[0][:-1] + ("0" if digits[1] != "0" else "1")): "is not signed by",
        admission.partition("-----")[0]: "is no admission",
        admission.replace("cluster =", "clusters ="): "is no admission",
        "": "is no admission",
        "\0\xff": "is no admission",
    }
    for text, message in wrong.items():
        (first / "node.crt").write_text(text, encoding="latin-1")
        result = invoke("keys", "show", "--data", first)
        assert (result.exit_code, message in one_line(result.stderr)) == (1, True), result.stderr


def test_a_key_that_others_can_read_is_refused(data: Path) -> None:
    new_key(data)
    (data / "node.key").chmod(0o640)
    result = invoke("keys", "show", "--data", data)
    assert (result.exit_code, "can be used by others (mode 0640)" in one_line(result.stderr)) == (2, True)


def test_no_key_is_said_with_what_to_do(tmp_path: Path) -> None:
    for verb in (["keys", "show"], ["serve", "--listen", "127.0.0.1:0"], ["sync", "127.0.0.1:9"]):
        result = invoke(*verb, "--data", tmp_path)
        assert (result.exit_code, "deltalog keys init --data" in one_line(result.stderr)) == (2, True), result.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_library_it_says_what_to_install(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_options, "find_spec", lambda _: None)
    for words in (["keys", "init"], ["sync", "127.0.0.1:9"], ["serve", "--listen", "127.0.0.1:0"]):
        result = invoke(*words, "--data", data)
        assert (result.exit_code, "deltalog[sync]" in one_line(result.stderr)) == (1, True), result.stderr
    assert not data.exists()
