"""Node keys: files, texts, signatures, what a cluster key says, certificates."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import DecodeError, UsageError
from sync import node_keys
from sync.node_keys import (
    NodeKey,
    admit,
    anchor,
    create_key,
    key_shown,
    key_text,
    leaf,
    load_certificate,
    load_key,
    make_cluster,
    parse_key,
    verify,
    verify_voucher,
    voucher_message,
    write_new,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ALICE, BOB, CLUSTER = (NodeKey.from_seed(bytes([number]) * 32) for number in range(1, 4))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# ---------------------------------------------------------------------------------------------------------------- keys


@given(st.binary(), st.binary())
def test_a_signature_holds_for_its_message_and_key_only(message: bytes, other: bytes) -> None:
    signature = ALICE.sign(message)
    assert len(signature) == 64
    assert verify(ALICE.public, signature, message)
    assert verify(ALICE.public, signature, other) is (other == message)
    assert not verify(BOB.public, signature, message)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_what_is_no_key_or_signature_verifies_nothing(key: bytes, signature: bytes) -> None:
    assert not verify(key, ALICE.sign(b"m"), b"m")
    assert not verify(ALICE.public, signature, b"m")


def test_a_known_answer() -> None:
    """RFC 8032, 7.1, TEST 1: other implementations make the same key and signature."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = NodeKey.from_seed(seed)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


def test_a_private_key_is_not_shown() -> None:
    assert repr(ALICE) == f"NodeKey(public={key_text(ALICE.public)})"
    assert NodeKey.generate().public != NodeKey.generate().public
    with pytest.raises(UsageError, match="seed is 31 bytes"):
        NodeKey.from_seed(bytes(31))


@given(st.binary(min_size=32, max_size=32))
def test_a_key_reads_as_it_is_written(public: bytes) -> None:
    assert parse_key(key_text(public)) == public
    assert parse_key("ed25519:" + public.hex().upper()) == public


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin with 'ed25519:'"),
        ("0" * 64, "does not begin with"),
        ("ED25519:" + "0" * 64, "does not begin with"),
        ("ed25519:", "has 0 digits"),
        ("ed25519:" + "0" * 63, "has 63 digits"),
        ("ed25519:" + "0" * 65, "has 65 digits"),
        ("ed25519:" + "0" * 62 + " 0", "no hex digits"),
        ("ed25519:" + "\u0660" * 64, "no hex digits"),
        ("ed25519:" + "g" * 64, "no hex digits"),
    ],
)
def test_a_wrong_key_text_is_named(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_key(text)


# --------------------------------------------------------------------------------------------------------------- files


def test_a_key_file_comes_back_and_is_this_users_alone(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    before = os.umask(0)
    try:
        key = create_key(file)
    finally:
        os.umask(before)
    assert load_key(file).public == key.public
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_nlink == 1
    assert names(tmp_path) == {"node.key"}


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    key = create_key(file)
    with pytest.raises(UsageError, match="never overwritten"):
        create_key(file)
    assert load_key(file).public == key.public
    dangling = tmp_path / "other.key"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="never overwritten"):
        create_key(dangling)
    assert names(tmp_path) == {"node.key", "other.key"}


def test_a_key_made_by_another_process_at_the_same_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.key"
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        file.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(UsageError, match="never overwritten"):
        write_new(file, b"ours")
    assert file.read_bytes() == b"theirs"


def test_what_a_crash_left_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    (tmp_path / "node.key.new").write_bytes(b"half a k")
    key = create_key(file)
    assert load_key(file).public == key.public
    assert names(tmp_path) == {"node.key"}


def test_a_key_file_stands_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Exception, match="Input/output"):
        create_key(tmp_path / "node.key")
    assert "node.key" not in names(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o660, 0o644])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "node.key"
    create_key(file)
    file.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        load_key(file)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "node.key"
    create_key(file)
    if os.getuid() == 0:
        os.chown(file, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="belongs to user"):
        load_key(file)


def test_a_key_is_a_regular_file(tmp_path: Path) -> None:
    key = tmp_path / "real.key"
    create_key(key)
    link = tmp_path / "link.key"
    link.symlink_to(key)
    with pytest.raises(UsageError, match="symbolic link"):
        load_key(link)
    os.mkfifo(tmp_path / "fifo.key", 0o600)
    with pytest.raises(UsageError, match="not a regular file"):
        load_key(tmp_path / "fifo.key")
    with pytest.raises(UsageError, match="there is no"):
        load_key(tmp_path / "none.key")


def _pem(kind: str) -> bytes:
    if kind == "password":
        return ALICE.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    if kind == "curve":
        return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {"empty": b"", "junk": b"\xff" * 100, "cut": ALICE.pem()[:60]}[kind]


@pytest.mark.parametrize("kind", ["password", "curve", "empty", "junk", "cut"])
def test_a_file_without_a_key_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "node.key"
    write_new(file, _pem(kind))
    with pytest.raises(DecodeError, match="node.key holds"):
        load_key(file)


# ------------------------------------------------------------------------------------------------------------- cluster


def test_a_cluster_key_admits_a_node(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    assert load_key(tmp_path / "cluster.key").public == cluster.public
    admission = admit(cluster, "demo", ALICE.public, 30, now=NOW)
    certificate = load_certificate(admission.certificate)
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert certificate.subject.rfc4514_string() == f"CN={ALICE.public.hex()}"
    certificate.verify_directly_issued_by(anchor(cluster.public, admits=True))
    assert verify_voucher(cluster.public, "demo", ALICE.public, admission.voucher)


@given(st.text(min_size=1, max_size=16), st.text(min_size=1, max_size=16))
def test_a_voucher_is_for_one_cluster_name_and_one_node(name: str, other: str) -> None:
    voucher = admit(CLUSTER, name, ALICE.public, 1, now=NOW).voucher
    assert verify_voucher(CLUSTER.public, name, ALICE.public, voucher)
    assert verify_voucher(CLUSTER.public, other, ALICE.public, voucher) is (other == name)
    assert not verify_voucher(CLUSTER.public, name, BOB.public, voucher)
    assert not verify_voucher(ALICE.public, name, ALICE.public, voucher)


def test_what_a_voucher_signs_does_not_change() -> None:
    assert voucher_message("né", b"K" * 32) == b"deltalog voucher v1\0" + b"\x00\x03n\xc3\xa9" + b"K" * 32


@pytest.mark.parametrize(
    ("name", "node", "days", "reason"),
    [
        ("", ALICE.public, 1, "cluster name is 0 bytes"),
        ("é" * 33, ALICE.public, 1, "cluster name is 66 bytes"),
        ("demo", b"short", 1, "node key is 5 bytes"),
        ("demo", ALICE.public, 0, "days is 0"),
        ("demo", ALICE.public, -1, "days is -1"),
        ("demo", ALICE.public, 10**6, "days is 1e"),
        ("demo", ALICE.public, float("nan"), "days is nan"),
        ("demo", CLUSTER.public, 1, "cluster's own key"),
    ],
)
def test_a_wrong_admission_is_named(name: str, node: bytes, days: float, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        admit(CLUSTER, name, node, days, now=NOW)


# -------------------------------------------------------------------------------------------------------- certificates


def test_a_leaf_shows_its_key() -> None:
    assert key_shown(leaf(ALICE).public_bytes(Encoding.DER)) == ALICE.public


def test_what_is_no_leaf_of_ours_shows_none() -> None:
    lent = node_keys._certificate("node", BOB.public, ALICE.public, ALICE.private, None, NOW, NOW + timedelta(days=1))
    assert key_shown(lent.public_bytes(Encoding.DER)) is None
    assert key_shown(b"") is None
    assert key_shown(leaf(ALICE).public_bytes(Encoding.DER)[:-70]) is None


@given(st.binary(max_size=300))
def test_junk_shows_no_key(der: bytes) -> None:
    assert key_shown(der) is None


def test_junk_is_no_certificate() -> None:
    with pytest.raises(DecodeError, match="not a certificate"):
        load_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(UsageError, match="a public key is 5 bytes"):
        anchor(b"short")
