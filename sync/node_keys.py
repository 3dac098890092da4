"""Who a node is: its Ed25519 key, the file that keeps it, and what a cluster key says about it.

    node.key      PEM, PKCS #8, mode 0600; made once, never overwritten
    cluster.key   the same for a cluster; who holds it admits nodes, so it belongs on no node
    node.crt      PEM; what the cluster key said about this node, for TLS

A key is written as `ed25519:<64 hex digits>`. Its name in a certificate is these 64 digits (CN), which says to every
verifier which key a name stands for.

    pinned        leaf (CN=node, issued by CN=<node>)  ->  anchor (CN=<node>)
    by cluster    leaf (CN=node, issued by CN=<node>)  ->  admission (CN=<node>, issued by CN=<cluster>)
                                                       ->  anchor (CN=<cluster>)

A node makes its leaf itself, anew at each start; so one leaf serves a peer that pinned the key and a peer that trusts
the cluster. An anchor is made by the verifier from the 32 bytes of a key it trusts: OpenSSL takes name and key of an
anchor and does not look at its signature. An anchor for a node has path length 0, so that a pinned node cannot admit
others; an admission likewise. Does not know: sockets, TLS, the clock (`now` comes from the caller), the data directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from deltalog.errors import DecodeError, UsageError
from deltalog.rocks_directory import sync_directory
from deltalog.witness import system_errors

PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PREFIX: Final = "ed25519:"
"""Stands before a public key written as text, so that another kind of key can come one day."""
NODE_KEY: Final = "node.key"
NODE_CERTIFICATE: Final = "node.crt"
CLUSTER_KEY: Final = "cluster.key"
CLUSTER_NAME_BYTES_MAX: Final = 64

_VOUCHER_DOMAIN: Final = b"deltalog voucher v1\0"
_FILE_BYTES_MAX: Final = 64 * 1024
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_BACKDATED: Final = timedelta(hours=1)
_EARLY: Final = datetime(2020, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------------------- keys


@attrs.frozen
class NodeKey:
    """A private key. `repr` shows its public half only."""

    private: Ed25519PrivateKey = attrs.field(repr=False)
    public: bytes = attrs.field(init=False, repr=lambda public: PREFIX + public.hex())
    """32 bytes; what peers know the node by."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "public", self.private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Self:
        """A new random key, in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The key that follows from 32 bytes. For tests and simulations: who knows the seed is the node."""
        if len(seed) != PUBLIC_BYTES:
            raise UsageError(f"seed is {len(seed)} bytes; an Ed25519 key follows from {PUBLIC_BYTES}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message."""
        return self.private.sign(message)

    def pem(self) -> bytes:
        """The private key as it stands in its file."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@attrs.frozen
class NodeSigner:
    """Signs heads with a node's key (a `trust.Signer`)."""

    node_key: NodeKey
    voucher: bytes = b""
    """The cluster key's signature for it; empty: peers must have pinned it."""

    @property
    def key(self) -> bytes:
        """Public key, 32 bytes."""
        return self.node_key.public

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self.node_key.sign(data)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of the key signed the message. False, too, for bytes that are no key or no signature."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_text(public: bytes) -> str:
    """A public key as people copy it: `ed25519:` and 64 hex digits."""
    return PREFIX + public.hex()


def parse_key(text: str) -> bytes:
    """The 32 bytes of a public key from its text. Raises `UsageError` saying what is wrong with it."""
    digits = text.removeprefix(PREFIX)
    if digits == text:
        raise UsageError(f"key {text[:80]!r} does not begin with {PREFIX!r}")
    if len(digits) != 2 * PUBLIC_BYTES:
        raise UsageError(f"key {text[:80]!r} has {len(digits)} digits after {PREFIX!r}; it takes {2 * PUBLIC_BYTES}")
    if not _HEX_DIGITS.issuperset(digits):
        raise UsageError(f"key {text[:80]!r} has characters that are no hex digits")
    return bytes.fromhex(digits)


# ----------------------------------------------------------------------------------------------------------- key files


def create_key(file: Path) -> NodeKey:
    """Make a new key in a file; durable on return. Raises `UsageError` if something stands there: never overwrites."""
    key = NodeKey.generate()
    write_new(file, key.pem())
    return key


def write_new(file: Path, content: bytes) -> None:
    """Put a file there (mode 0600) whole or not at all; durable on return. Raises `UsageError` if the name is taken."""
    new = file.with_name(f"{file.name}.new")
    with system_errors(file), _name_taken(file):
        if os.path.lexists(file):
            raise FileExistsError
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        os.link(new, file)  # unlike a rename it fails where the name is taken, whoever took it in the meantime
        new.unlink()
        sync_directory(file.parent)


@contextmanager
def _name_taken(file: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise UsageError(f"{file} is there already; it is never overwritten") from error


def load_key(file: Path) -> NodeKey:
    """Read a private key. Raises `UsageError` if it is missing or others can use it, `DecodeError` if it is none."""
    content = read_private(file)
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DecodeError(f"{file} holds no private key in PEM without a password") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DecodeError(f"{file} holds a private key of another kind; it takes Ed25519")
    return NodeKey(private)


def read_private(file: Path) -> bytes:
    """The bytes of a regular file that nobody but this user can read or write, and no link. Raises `UsageError`."""
    if file.is_symlink():
        raise UsageError(f"{file} is a symbolic link; a key stands in its own file")
    with system_errors(file):
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise UsageError(f"there is no {file}") from error
        try:
            _check_private(file, os.fstat(descriptor))
            return os.read(descriptor, _FILE_BYTES_MAX)
        finally:
            os.close(descriptor)


def _check_private(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{file} is not a regular file")
    if status.st_uid not in (os.geteuid(), 0):
        raise UsageError(f"{file} belongs to user {status.st_uid}, not to the user of this process")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise UsageError(f"{file} can be used by others (mode {mode:04o}): chmod 600 it; if they did, make a new one")


# ------------------------------------------------------------------------------------------------------------- cluster


@attrs.frozen
class Admission:
    """What a cluster key says about one node. Neither part is secret."""

    certificate: bytes
    """PEM; for TLS, until it expires. Stands in node.crt."""
    voucher: bytes
    """64 bytes; for the heads the node signs. Does not expire."""


def make_cluster(directory: Path) -> NodeKey:
    """Make the key of a new cluster in cluster.key. Keep it off the nodes: who has it admits whom he likes."""
    return create_key(directory / CLUSTER_KEY)


def admit(cluster: NodeKey, cluster_name: str, node: bytes, days: float, *, now: datetime) -> Admission:
    """Admit a node to a cluster, over TLS for `days` from now (an aware time; an hour of clock skew is allowed)."""
    if not 0 < days <= 36_500:
        raise UsageError(f"days is {days:g}; it takes more than 0 and at most 36,500")
    if node == cluster.public:
        raise UsageError("the cluster's own key is not a node's; make a key of the node with `deltalog keys init`")
    voucher = cluster.sign(voucher_message(cluster_name, node))
    return Admission(_pem(admission(cluster, node, after=now - _BACKDATED, until=now + timedelta(days=days))), voucher)


def voucher_message(cluster_name: str, node: bytes) -> bytes:
    """What a voucher signs: domain | length of the name (2 bytes, big endian) | name (UTF-8) | node key (32 bytes)."""
    name = cluster_name.encode()
    if not 0 < len(name) <= CLUSTER_NAME_BYTES_MAX:
        raise UsageError(f"cluster name is {len(name)} bytes; it takes 1 to {CLUSTER_NAME_BYTES_MAX}")
    if len(node) != PUBLIC_BYTES:
        raise UsageError(f"node key is {len(node)} bytes; it takes {PUBLIC_BYTES}")
    return _VOUCHER_DOMAIN + len(name).to_bytes(2, "big") + name + node


def verify_voucher(cluster: bytes, cluster_name: str, node: bytes, voucher: bytes) -> bool:
    """Whether the cluster key admitted the node under that name of the cluster."""
    return verify(cluster, voucher, voucher_message(cluster_name, node))


# -------------------------------------------------------------------------------------------------------- certificates


def leaf(key: NodeKey, *, after: datetime = _EARLY, until: datetime = _NEVER) -> x509.Certificate:
    """What a node shows in the handshake; says no more than that the node has the key."""
    return _certificate("node", key.public, key.public, key.private, None, after, until)


def anchor(public: bytes, *, admits: bool = False) -> x509.Certificate:
    """A trust anchor for a key, made without its private half. Only one that `admits` may stand above an admission."""
    return _certificate(public.hex(), public, public, Ed25519PrivateKey.generate(), 1 if admits else 0, _EARLY, _NEVER)


def admission(cluster: NodeKey, node: bytes, *, after: datetime, until: datetime) -> x509.Certificate:
    """The certificate in an `Admission`."""
    return _certificate(node.hex(), node, cluster.public, cluster.private, 0, after, until)


def _certificate(
    name: str,
    public: bytes,
    issuer: bytes,
    signer: Ed25519PrivateKey,
    path_length: int | None,
    after: datetime,
    until: datetime,
) -> x509.Certificate:
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    usage["digital_signature" if path_length is None else "key_cert_sign"] = True
    try:
        subject_key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise UsageError(f"a public key is {len(public)} bytes; it takes {PUBLIC_BYTES}") from error
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(_common_name(issuer.hex()))
        .public_key(subject_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(after)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(signer, None)
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def load_certificate(pem: bytes) -> x509.Certificate:
    """One certificate from PEM. Raises `DecodeError`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise DecodeError("this is not a certificate in PEM") from error


def key_shown(der: bytes) -> bytes | None:
    """The public key that a leaf shows, if the leaf names the same key as its issuer; None if it is no leaf of ours.

    The name is what a verifier followed to an anchor or an admission. So once OpenSSL has verified the chain, the key
    returned here is the pinned or the admitted one, and not another that an admitted node issued a leaf for.
    """
    with suppress(ValueError, UnsupportedAlgorithm):
        certificate = x509.load_der_x509_certificate(der)
        public = certificate.public_key()
        if isinstance(public, Ed25519PublicKey):
            raw = public.public_bytes_raw()
            return raw if certificate.issuer == _common_name(raw.hex()) else None
    return None
