"""Who the node of a data directory is: its key, and what a cluster said about it.

    node.key      the private key (see `sync.node_keys`)
    node.crt      an admission, text:

        # deltalog admission: this node belongs to a cluster. Not secret.
        cluster = "team"
        cluster_key = "ed25519:..."      whose word this is
        node_key = "ed25519:..."         about whom
        voucher = "..."                  128 hex digits, for the heads that the node signs; does not expire
        -----BEGIN CERTIFICATE----- ...  for TLS, until it expires

An admission is replaced whole; a key never is. Lives here: that file, and whether both fit together. Does not know:
links, sessions, the log.
"""

from __future__ import annotations

import json
import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from deltalog.errors import DecodeError, UsageError
from deltalog.rocks_directory import sync_directory
from deltalog.witness import system_errors
from sync import node_keys
from sync.node_keys import (
    NODE_CERTIFICATE,
    NODE_KEY,
    NodeKey,
    key_text,
    load_certificate,
    load_key,
    parse_key,
    verify,
    verify_voucher,
)

_FILE_BYTES_MAX: Final = 64 << 10
_BEGIN: Final = "-----BEGIN"


@attrs.frozen
class Admitted:
    """What a cluster said about a node, checked."""

    cluster: str
    cluster_key: bytes
    node: bytes
    """The node's public key."""
    voucher: bytes
    certificate: x509.Certificate

    @property
    def until(self) -> datetime:
        """When other nodes stop letting it in over TLS."""
        return self.certificate.not_valid_after_utc

    def encode(self) -> bytes:
        """The file."""
        front = (
            "# deltalog admission: this node belongs to a cluster. Not secret.\n"
            f"cluster = {json.dumps(self.cluster)}\n"
            f'cluster_key = "{key_text(self.cluster_key)}"\n'
            f'node_key = "{key_text(self.node)}"\n'
            f'voucher = "{self.voucher.hex()}"\n'
        )
        return front.encode() + self.certificate.public_bytes(Encoding.PEM)

    @classmethod
    def decode(cls, data: bytes, name: object) -> Self:
        """Read a file. Raises `DecodeError`, naming `name`, for what `encode` did not make or nobody signed."""
        try:
            front, begin, rest = data.decode().partition(_BEGIN)
            fields = tomllib.loads(front)
            cluster, voucher = str(fields["cluster"]), bytes.fromhex(fields["voucher"])
            cluster_key, node = parse_key(fields["cluster_key"]), parse_key(fields["node_key"])
            made = cls(cluster, cluster_key, node, voucher, load_certificate((begin + rest).encode()))
        except (ValueError, TypeError, KeyError, AttributeError, UsageError, DecodeError) as error:
            raise DecodeError(f"{name} is no admission: {error}"[:300]) from error
        if not made._holds():
            raise DecodeError(f"{name}: what it says is not signed by {key_text(cluster_key)}")
        return made

    def _holds(self) -> bool:
        signature, signed = self.certificate.signature, self.certificate.tbs_certificate_bytes
        return verify(self.cluster_key, signature, signed) and verify_voucher(
            self.cluster_key, self.cluster, self.node, self.voucher
        )


def admit(authority: NodeKey, cluster: str, node: bytes, days: float) -> Admitted:
    """Admit a node to a cluster, with the cluster's private key, for `days` from now. Raises `UsageError`."""
    said = node_keys.admit(authority, cluster, node, days, now=datetime.now(UTC))
    return Admitted(cluster, authority.public, node, said.voucher, load_certificate(said.certificate))


@attrs.frozen
class NodeIdentity:
    """A node's key and admission; what its heads are signed with (`sync.trust.Signer`)."""

    node_key: NodeKey
    admitted: Admitted | None = None

    @property
    def key(self) -> bytes:
        """Public key, 32 bytes."""
        return self.node_key.public

    @property
    def voucher(self) -> bytes:
        """The cluster's word for that key, or b""."""
        return b"" if self.admitted is None else self.admitted.voucher

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self.node_key.sign(data)


def load_identity(data: Path) -> NodeIdentity | None:
    """Read who the node of a directory is; None if it has no key.

    Raises `UsageError` for a key that others can read or an admission of another key, `DecodeError` for what is none.
    """
    file = data / NODE_KEY
    if not os.path.lexists(file):
        return None
    key = load_key(file)
    admitted = load_admission(data / NODE_CERTIFICATE)
    if admitted is not None and admitted.node != key.public:
        raise UsageError(
            f"{data / NODE_CERTIFICATE} admits {key_text(admitted.node)}, and {file} is {key_text(key.public)}"
        )
    return NodeIdentity(key, admitted)


def load_admission(file: Path) -> Admitted | None:
    """Read an admission; None if there is no such file."""
    if file.is_symlink():
        raise UsageError(f"{file} is a symbolic link; an admission stands in its own file")
    if not file.exists():
        return None
    with system_errors(file), file.open("rb") as stream:
        content = stream.read(_FILE_BYTES_MAX)
    return Admitted.decode(content, file)


def put_admission(file: Path, admitted: Admitted) -> None:
    """Put an admission into a file, in place of what it held; durable on return."""
    new = file.with_name(f"{file.name}.new")
    with system_errors(file):
        new.unlink(missing_ok=True)
        with new.open("xb") as stream:
            stream.write(admitted.encode())
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(file)
        sync_directory(file.parent)
