"""`deltalog serve` with peers: where it listens, what it refuses, and two processes that keep each other up to date."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.app.invoked import execute, invoke, lines_of, one_line, printed, start
from tests.app.peered import new_key, running
from tests.app.test_peer_api import soon


def test_two_processes_find_each_other_and_again_after_one_was_killed(tmp_path: Path) -> None:
    keys = {name: new_key(tmp_path / name) for name in ("alice", "bob")}
    for name in keys:
        printed("append", "1", "--data", tmp_path / name, "--source", name)
    with running(tmp_path / "alice", "--pin", keys["bob"]) as alice:
        words = ("--pin", keys["alice"], "--peer", alice.address)

        def known() -> list[object]:
            return [
                each for each in lines_of("peers", "--url", alice.url, "--json") if each["equal"] and not each["lag"]
            ]

        with running(tmp_path / "bob", *words) as bob:
            soon(known)
            bob.kill()
            bob.process.returncode = 0  # `running` is not to mind
            soon(lambda: not known())
        with running(tmp_path / "bob", *words):
            soon(known)
    for name in keys:
        heads = {each["source"]: each["head"] for each in lines_of("sources", "--data", tmp_path / name, "--json")}
        assert heads == {"alice": 1, "bob": 1}


def test_it_says_where_peers_connect(tmp_path: Path) -> None:
    new_key(tmp_path / "data")
    with start("serve", "--data", tmp_path / "data", "--port", 0, "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert " at http://127.0.0.1:" in lines[0]
    assert re.fullmatch(r"peers connect to 127\.0\.0\.1:\d+\n", lines[1])


def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    new_key(tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = execute("serve", "--data", tmp_path / "data", "--port", 0, "--listen", address)
    assert result.returncode == 1
    assert f"cannot listen at {address}" in one_line(result.stderr.decode())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pin", f"ed25519:{'0' * 64}"], "go with --listen, --peer or --libp2p-listen"),
        (["--plain-peers"], "go with --listen, --peer or --libp2p-listen"),
        (["--no-compress"], "go with --listen, --peer or --libp2p-listen"),
        (["--libp2p-listen", "/dns4/localhost/tcp/0"], "what listens names an IP address and a TCP port"),
        (["--libp2p-listen", "/ip4/127.0.0.1/tcp/0/ws"], "what listens names an IP address and a TCP port"),
        (["--listen", "0.0.0.0:0", "--plain-peers"], "is not on loopback; plain TCP goes nowhere else"),
        (["--peer", "example.org:7000", "--plain-peers"], "is not on loopback"),
        (["--peer", "127.0.0.1:0"], "port 0 can be listened at, not connected to"),
        (["--listen", "127.0.0.1:0", "--libp2p-listen", "/ip4/127.0.0.1/tcp/0", "--plain-peers"], "libp2p proves keys"),
        (["--discover"], "--discover finds nodes over libp2p: it goes with --libp2p-listen"),
        (["--listen", "127.0.0.1:0", "--discover"], "--discover finds nodes over libp2p: it goes with --libp2p-listen"),
        (["--libp2p-listen", "/ip4/127.0.0.1/tcp/0", "--discover"], "--discover finds nodes whose keys are pinned"),
        (["--listen", "127.0.0.1:0", "--cluster", ""], "cluster"),
        (["--listen", "127.0.0.1:0", "--cluster", "x" * 256], "cluster"),
        (
            [
                "--listen",
                "127.0.0.1:0",
                "--source-key",
                f"a=ed25519:{'0' * 64}",
                "--source-key",
                f"a=ed25519:{'1' * 64}",
            ],
            "'a' is given two keys",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_opens(
    words: list[str], message: str, tmp_path: Path
) -> None:
    new_key(tmp_path / "data")
    result = invoke("serve", "--data", tmp_path / "data", "--port", 0, *words)
    assert (result.exit_code, message in one_line(result.stderr)) == (2, True), result.stderr
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["node.key"]
