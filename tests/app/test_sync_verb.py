"""`deltalog sync PEER`: both ways, once; what was refused is named, and what stops it is one line."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from deltalog.app import catch_up
from tests.app.invoked import interchange, invoke, lines_of, one_line, printed, start
from tests.app.peered import Running, new_key, running


@attrs.frozen
class Pair:
    """A node that runs and pins a directory's key, and that directory."""

    node: Running
    key: str
    there: Path
    here: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    there, here = folder / "there", folder / "here"
    theirs, ours, others = new_key(there), new_key(here), new_key(folder / "new")
    (folder / "lines").write_text("\n".join(interchange(300, "old")))
    printed("import", folder / "lines", "--data", there, "--source", "alice")
    for number in range(3):
        printed("append", number, "--data", there)
    printed("append", "7", "--data", here, "--source", "bob")
    with running(there, "--pin", ours, "--pin", others) as node:
        yield Pair(node, theirs, there, here)


def test_both_get_what_they_lack_and_then_nothing(pair: Pair) -> None:
    words = ("sync", pair.node.address, "--data", pair.here, "--pin", pair.key, "--unsigned", "old")
    (first,) = lines_of(*words, "--json")
    assert (first["peer"], first["equal"], first["deltas_in"], first["deltas_out"]) == ("alice", True, 303, 1)
    text = printed(*words)
    assert text.startswith("alice: 0 deltas in (")
    assert f"both hold the same: digest {first['digest']}" in text
    (stats,) = lines_of("stats", "--data", pair.here, "--json")
    assert stats["heads"] == {"alice": 3, "bob": 1, "old": 300}
    assert printed("verify", "--data", pair.here).startswith("no fault")


def test_what_is_not_believed_is_named(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer does not take what nobody signed."""
    monkeypatch.setattr(catch_up, "QUIET_S", 0.5)
    (tmp_path / "lines").write_text("\n".join(interchange(5, "zoe")))
    printed("import", tmp_path / "lines", "--data", pair.here)
    words = ("sync", pair.node.address, "--data", pair.here, "--pin", pair.key, "--unsigned", "old")
    result = invoke(*words)
    assert result.exit_code == 1
    assert "they differ: zoe is at 5 here and 0 there" in result.stdout
    result = invoke(*words, "--json")
    assert result.exit_code == 1
    assert '"differences":[{"source":"zoe","here":5,"there":0}]' in result.stdout


def test_what_this_node_does_not_believe_is_named_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it what was written in knowledge of it, which waits."""
    monkeypatch.setattr(catch_up, "QUIET_S", 0.5)
    invoke("sync", pair.node.address, "--data", pair.here, "--pin", pair.key, "--unsigned", "old")  # for bob's delta
    new = pair.here.parent / "new"
    words = ("sync", pair.node.address, "--data", new, "--pin", pair.key, "--source", "carol")
    result = invoke(*words)
    assert result.exit_code == 1
    said = "they differ: alice is at 0 here and 3 there, bob is at 0 here and 1 there, old is at 0 here and 300 there"
    assert said in result.stdout
    assert "it was not allowed unsigned" in result.stderr


def test_who_is_not_there_or_is_somebody_else_is_one_line(pair: Pair, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = invoke("sync", address, "--data", pair.here, "--pin", pair.key)
        assert (result.exit_code, "cannot connect to" in one_line(result.stderr)) == (1, True)
    result = invoke("sync", pair.node.address, "--data", pair.here)
    assert (result.exit_code, "is not admitted here: neither pinned" in one_line(result.stderr)) == (1, True)
    new_key(tmp_path / "stranger")
    result = invoke("sync", pair.node.address, "--data", tmp_path / "stranger", "--pin", pair.key)
    assert (result.exit_code, "does not admit this node's key" in one_line(result.stderr)) == (1, True)
    result = invoke("sync", pair.node.address, "--data", pair.here, "--pin", pair.key, "--cluster", "other")
    said = one_line(result.stderr)  # if the link ends before its reason came, the peer's own words have it
    assert result.exit_code == 1
    assert "is of cluster 'deltalog'; this node of 'other'" in said or "closed the link" in said


def test_a_peer_that_says_nothing_is_given_up_in_time(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = invoke("sync", address, "--data", pair.here, "--pin", pair.key, "--timeout", "0.2")
    assert (result.exit_code, "not done within 0.2 s" in one_line(result.stderr)) == (1, True)


def test_interrupted_it_closes_in_order(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with start("sync", address, "--data", pair.here, "--pin", pair.key) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
            connection.close()
    assert (process.returncode, one_line(stderr.decode())) == (130, "deltalog sync: interrupted by SIGINT")


def test_nodes_of_one_cluster_need_no_pins(tmp_path: Path) -> None:
    (tmp_path / "safe").mkdir()
    printed("keys", "cluster", tmp_path / "safe")
    for name in ("alice", "bob"):
        new_key(tmp_path / name, "--cluster-key", tmp_path / "safe" / "cluster.key", "--cluster", "team")
        printed("append", "1", "--data", tmp_path / name, "--source", name)
    with running(tmp_path / "alice") as node:
        (said,) = lines_of("sync", node.address, "--data", tmp_path / "bob", "--json")
    assert (said["equal"], said["deltas_in"], said["deltas_out"]) == (True, 1, 1)


def test_plain_links_on_loopback_take_what_is_allowed_unsigned(tmp_path: Path) -> None:
    printed("append", "1", "--data", tmp_path / "alice", "--source", "alice")
    with running(tmp_path / "alice", "--plain-peers", "--unsigned", "bob") as node:
        words = ("sync", node.address, "--data", tmp_path / "bob", "--plain-peers", "--unsigned", "alice")
        (said,) = lines_of(*words, "--source", "bob", "--json")
        assert (said["equal"], said["deltas_in"]) == (True, 1)


def test_what_is_sent_is_compressed_if_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("\n".join(interchange(2000, "old")))
    printed("import", tmp_path / "lines", "--data", tmp_path / "node", "--source", "node")
    came = []
    for number, said in enumerate(("--compress", "--no-compress")):
        with running(tmp_path / "node", "--plain-peers", said) as node:
            words = ("sync", node.address, "--data", tmp_path / f"{number}", "--plain-peers", "--unsigned", "old")
            (done,) = lines_of(*words, "--source", f"s{number}", "--json")
        assert (done["equal"], done["deltas_in"]) == (True, 2000)
        came.append(done["bytes_in"])
    assert came[0] < came[1] / 2
