"""Peers and sources in the API, the metrics and the verbs: of a node that runs with peers, and of its directory."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from deltalog.app.peer_options import PeerOptions
from sync import Evidence, SyncOptions
from sync.ledger import FORK_PREFIX
from sync.node_keys import NodeKey, NodeSigner, key_text, load_key, parse_key
from sync.trust import sign_head
from tests.app.invoked import interchange, invoke, lines_of, one_line, printed
from tests.app.peered import new_key
from tests.app.served import Served, serving

QUICK = SyncOptions(heartbeat_s=0.1)


@attrs.frozen
class Two:
    """Two nodes that are connected, alice with five sources and bob with one more, both with a server."""

    alice: Served
    bob: Served
    folder: Path


def soon(fact: Callable[[], Any]) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + 30
    while not (found := fact()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def equal(node: Served) -> list[Any]:
    """Peers that hold the same."""
    return [each for each in node.get("/api/peers").json if each["equal"]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    keys = frozenset(parse_key(new_key(folder / name)) for name in ("alice", "bob"))
    (folder / "lines").write_text("\n".join(line for number in range(4) for line in interchange(3, f"old-{number}")))
    printed("append", "1", "--data", folder / "alice", "--source", "alice")
    printed("import", folder / "lines", "--data", folder / "alice")
    printed("append", "2", "--data", folder / "bob", "--source", "bob")
    unsigned = frozenset(f"old-{number}" for number in range(4))
    with ExitStack() as stack:
        peering = PeerOptions(listen="127.0.0.1:0", pinned=keys, unsigned=unsigned, sync=QUICK)
        alice = stack.enter_context(serving(folder / "alice", peering))
        assert alice.node.peers is not None
        peering = PeerOptions(peers=tuple(alice.node.peers.listening), pinned=keys, unsigned=unsigned, sync=QUICK)
        bob = stack.enter_context(serving(folder / "bob", peering))
        for node in (alice, bob):
            soon(partial(equal, node))
        yield Two(alice, bob, folder)
        assert not alice.faults + bob.faults


def test_a_peer_is_shown_with_what_crossed(two: Two) -> None:
    (peer,) = two.alice.get("/api/peers").json
    assert (peer["name"], peer["state"], peer["source"], peer["lag"], peer["behind"]) == ("bob", "live", "bob", 0, 0)
    assert (peer["deltas_in"], peer["deltas_out"], peer["deltas_known"]) == (1, 13, 0)
    assert peer["bytes_in"] > 100 and peer["link"].startswith("tls 127.0.0.1:")
    assert (peer["pins"], peer["below_floor"], peer["problem"]) == (True, {}, "")
    (dialed,) = two.bob.get("/api/peers").json
    assert (dialed["name"], dialed["state"]) == ("alice", "live")


def test_an_address_that_nobody_answers_at_is_shown_with_the_reason(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        new_key(tmp_path / "data")
        with serving(tmp_path / "data", PeerOptions(peers=(address,), sync=QUICK)) as node:
            soon(lambda: node.get("/api/peers").json)
            (row,) = node.get("/api/peers").json
            assert (row["name"], row["state"], row["link"], row["pins"]) == ("", "unreached", address, False)
            assert f"cannot connect to {address}" in row["problem"]
            said = printed("peers", "--url", node.url)
            assert address in said and "unreached" in said and "cannot connect" in said
            assert node.get("/health").json["status"] == "ok", "peers come and go"


def test_sources_come_in_pages_with_their_owners(two: Two) -> None:
    whole = two.bob.get("/api/sources").json
    assert whole["after"] is None
    names = [each["source"] for each in whole["sources"]]
    assert names == ["alice", "bob", "old-0", "old-1", "old-2", "old-3"]
    assert {each["source"]: (each["own"], each["head"], each["deltas"]) for each in whole["sources"]} == {
        "alice": (False, 1, 1), "bob": (True, 1, 1), **{f"old-{number}": (False, 3, 3) for number in range(4)}
    }  # fmt: skip
    owners = {name: key_text(load_key(two.folder / name / "node.key").public) for name in ("alice", "bob")}
    assert {each["source"]: each["owner"] for each in whole["sources"] if each["owner"]} == owners
    paged: list[Any] = []
    after: Any = ""
    while after is not None:
        page = two.bob.get("/api/sources", after=after, limit=2).json
        paged.append(page["sources"])
        after = page["after"]
    assert [len(each) for each in paged] == [2, 2, 2]
    assert [each for part in paged for each in part] == whole["sources"]


def test_the_verbs_ask_the_node(two: Two) -> None:
    (peer,) = lines_of("peers", "--url", two.alice.url, "--json")
    assert peer["name"] == "bob"
    assert "live" in printed("peers", "--url", two.alice.url)
    assert lines_of("sources", "--url", two.bob.url, "--json") == two.bob.get("/api/sources").json["sources"]
    assert "ed25519:" in printed("sources", "--url", two.bob.url)


def test_metrics_count_by_peer(two: Two) -> None:
    text = two.alice.get("/metrics").body.decode()
    figures = dict(re.findall(r'^(deltalog_sync_\w+)\{peer="bob"\} (\S+)$', text, re.MULTILINE))
    assert (figures["deltalog_sync_deltas_in_total"], figures["deltalog_sync_deltas_out_total"]) == ("1.0", "13.0")
    assert (figures["deltalog_sync_lag"], figures["deltalog_sync_equal"]) == ("0.0", "1.0")
    assert 'deltalog_sync_state{peer="bob",state="live"} 1.0' in text
    assert 'deltalog_sync_state{peer="bob",state="offline"} 0.0' in text


def test_a_peer_that_goes_is_offline_and_a_directory_remembers_whom_it_knew(tmp_path: Path) -> None:
    keys = frozenset(parse_key(new_key(tmp_path / name)) for name in ("alice", "bob"))
    with serving(tmp_path / "alice", PeerOptions(listen="127.0.0.1:0", pinned=keys, sync=QUICK)) as alice:
        assert alice.node.peers is not None
        name = alice.node.log.source
        peering = PeerOptions(peers=tuple(alice.node.peers.listening), pinned=keys, sync=QUICK)
        with serving(tmp_path / "bob", peering) as bob:
            soon(lambda: alice.get("/api/peers").json and bob.get("/api/peers").json)
        soon(lambda: alice.get("/api/peers").json[0]["state"] == "offline")
        assert alice.get("/health").json["status"] == "ok", "peers come and go"
    (peer,) = lines_of("peers", "--data", tmp_path / "bob", "--json")
    assert (peer["name"], peer["state"], peer["lag"], peer["pins"]) == (name, "offline", None, True)
    assert name in printed("peers", "--data", tmp_path / "bob")
    result = invoke("peers", "forget", "zoe", "--data", tmp_path / "bob")
    assert (result.exit_code, f"there is no peer 'zoe' here; there are: '{name}'" in result.stderr) == (2, True)
    assert printed("peers", "forget", name, "--data", tmp_path / "bob") == f"{name} is forgotten\n"
    assert lines_of("peers", "--data", tmp_path / "bob", "--json") == []


def test_a_source_that_signed_two_histories_is_shown_with_the_evidence(tmp_path: Path) -> None:
    data, signer = tmp_path / "data", NodeSigner(NodeKey.generate())
    new_key(data)
    (tmp_path / "lines").write_text("\n".join(interchange(5, "eve")))
    printed("import", tmp_path / "lines", "--data", data, "--source", "alice")
    heads = [sign_head(signer, "deltalog", "eve", 5, bytes([number]) * 32) for number in (1, 2)]
    evidence = Evidence.of(*heads)
    assert evidence is not None
    notes = {FORK_PREFIX + b"eve": evidence.encode(), b"sync/owner/eve": signer.key}
    with serving(data) as served:
        served.wait(served.node.log.annotate, notes)
        shown = {each["source"]: each["quarantined"] for each in served.get("/api/sources").json["sources"]}
    assert "signed two histories: head 5 with hash 0101" in shown["eve"]
    (eve,) = [each for each in lines_of("sources", "--data", data, "--json") if each["source"] == "eve"]
    assert eve["quarantined"] == shown["eve"]
    assert (eve["size_bytes"] > 0, eve["owner"]) == (True, key_text(signer.key))
    assert "quarantined: eve: " in printed("sources", "--data", data)
    with serving(data, PeerOptions(listen="127.0.0.1:0")) as served:
        health = served.get("/health")
        assert health.status == 503
        assert "source 'eve' is quarantined: it was forked" in health.json["problems"]


def test_a_node_without_peers_has_none(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as served:
        assert served.get("/api/peers").json == []
        assert b"deltalog_sync" not in served.get("/metrics").body
        refused = served.get("/api/sources", limit=0)
        assert (refused.status, refused.blamed) == (400, ["limit"])
        refused = served.get("/api/peers", name="x")
        assert (refused.status, refused.blamed) == (400, ["name"])
    assert "Missing option '--data'" in one_line(invoke("sources").stderr)


def test_the_own_source_is_the_present_incarnation(tmp_path: Path) -> None:
    printed("append", "1", "--data", tmp_path / "a", "--source", "alice")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    printed("append", "2", "--data", tmp_path / "b", "--adopt")
    rows = lines_of("sources", "--data", tmp_path / "b", "--json")
    assert [(row["source"].partition("~")[0], row["own"]) for row in rows] == [("alice", False), ("alice", True)]
