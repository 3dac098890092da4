"""Wrong calls of the verbs that concern peers; rows of the table in test_wrong_input.py."""

from __future__ import annotations

GOOD_KEY = f"ed25519:{'0' * 64}"
SYNCING = [["serve", "--listen", "127.0.0.1:0", "--plain-peers"], ["sync", "127.0.0.1:9", "--plain-peers"]]
WRONG_TRUST = [
    (["--pin", "alice"], "does not begin with 'ed25519:'"),
    (["--pin", "ed25519:00"], "has 2 digits after 'ed25519:'; it takes 64"),
    (["--pin", f"ed25519:{'x' * 64}"], "no hex digits"),
    (["--cluster", ""], "cluster must not be empty"),
    (["--cluster", "x" * 256], "cluster is 256 bytes; the limit is 255"),
    (["--cluster-key", "team"], "does not begin with 'ed25519:'"),
    (["--source-key", "alice"], "is not NAME=KEY"),
    (["--source-key", "alice=x"], "does not begin with 'ed25519:'"),
    (["--source-key", f"={GOOD_KEY}"], "source must not be empty"),
    (["--unsigned", ""], "source must not be empty"),
]

WRONG_WITH_PEERS: list[tuple[list[str], str]] = [
    # serve, sync
    (["serve", "--listen", "here", "--plain-peers"], "has no port; it reads HOST:PORT"),
    (["serve", "--listen", "127.0.0.1:0"], "there is no"),
    (["serve", "--peer", "127.0.0.1:x", "--plain-peers"], "port 'x' is not a number from 0 to 65535"),
    (["serve", "--peer", "::1:7000", "--plain-peers"], "an IPv6 address stands in brackets"),
    (["serve", "--libp2p-listen", "here", "--plain-peers"], "is no multiaddr"),
    *(([*verb, *words], message) for verb in SYNCING for words, message in WRONG_TRUST),
    (["sync"], "Missing argument 'PEER'"),
    (["sync", "here", "--plain-peers"], "has no port; it reads HOST:PORT"),
    (["sync", "127.0.0.1:0", "--plain-peers"], "port 0 can be listened at, not connected to"),
    (["sync", "example.org:7000", "--plain-peers"], "is not on loopback; plain TCP goes nowhere else"),
    (["sync", "127.0.0.1:9", "--timeout", "0"], "0.0 is not in the range"),
    (["sync", "127.0.0.1:9", "--timeout", "nan"], "'nan' is not a valid float range"),
    (["sync", "127.0.0.1:9", "--timeout", "soon"], "'soon' is not a valid float range"),
    (["sync", "127.0.0.1:9", "--source", ""], "source must not be empty"),
    # keys
    (["keys", "steal"], "No such command 'steal'"),
    (["keys", "init", "--cluster", "team"], "--cluster-key and --cluster go together"),
    (["keys", "init", "--cluster-key", "TMP/none"], "--cluster-key and --cluster go together"),
    (["keys", "init", "--cluster-key", "TMP/none", "--cluster", "team"], "there is no"),
    (["keys", "init", "--days", "0"], "0.0 is not in the range"),
    (["keys", "init", "--days", "nan"], "'nan' is not a valid float range"),
    (["keys", "show"], "make it with `deltalog keys init"),
    (["keys", "cluster"], "Missing argument 'DIRECTORY'"),
    (["keys", "cluster", "TMP/none"], "there is no directory"),
    (["keys", "admit", "alice"], "does not begin with 'ed25519:'"),
    (["keys", "admit", GOOD_KEY], "Missing option '--cluster-key'"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/none", "--cluster", "team"], "there is no"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/key", "--cluster", "x" * 65], "cluster name is 65 bytes"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/key", "--cluster", ""], "cluster name is 0 bytes"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/key", "--cluster", "t", "--days", "40000"], "not in the range"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/key", "--cluster", "t", "--to", "TMP"], "is a directory"),
    (["keys", "admit", GOOD_KEY, "--cluster-key", "TMP/key", "--cluster", "t", "--to", "TMP/no/x"], "no directory"),
    # peers, sources
    *(([verb, "--url", "ftp://x"], "it takes http://HOST:PORT") for verb in ("peers", "sources")),
    (["peers", "x"], "No such command 'x'"),
    (["peers", "forget"], "Missing argument 'NAME'"),
    (["sources", "x"], "Got unexpected extra argument (x)"),
]
