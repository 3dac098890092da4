"""TLS 1.3 between two nodes that know each other by their keys: the handshake, the verdict, the bytes.

    dialer                                         listener
      |  ---- TLS 1.3, certificates both ways ---->  |   OpenSSL follows the leaf to an anchor (see `node_keys`)
      |  <---- verdict: 1 byte (1 yes, 2 no) ------  |   each side looks once more at the key the leaf shows
      |  ----- verdict: 1 byte ------------------->  |
      |  <============ bytes of a link ===========>  |

In TLS 1.3 the dialer's handshake is over before the listener has looked at its certificate. So the dialer waits for
the listener's verdict, or for the alert that comes in its place; then `dial` can tell a refusal from a cut.

TLS runs in memory (`ssl.MemoryBIO`) and the bytes are carried here: `trio.SSLStream` drops the alert that says why a
certificate was refused. A link that ends without the closing alert was cut. No session is resumed: every link proves
both keys anew. Does not know: addresses, limits on connections, the contents.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import attrs
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sync.errors import LinkFailed, LinkRefused, SyncError
from sync.node_keys import NodeKey, anchor, key_shown, key_text, leaf
from sync.transport import Turn

YES: Final = b"\x01"
NO: Final = b"\x02"
RECEIVE_BYTES: Final = 64 * 1024
LINGER_S: Final = 0.5
"""How long a closing side waits for the other to close too, so that what was sent last is not lost to a reset."""

_ANSWERS_BYTES_MAX: Final = 64 * 1024
"""What TLS itself may want to answer before something is sent; a peer that asks for more is cut off."""
_NOT_ADMITTED: Final = "neither pinned nor admitted by a trusted cluster"
_EXPIRED: Final = "its certificate has expired; have the cluster key admit it again"
_VERIFY_REASONS: Final = {
    9: "its certificate is not valid yet; compare the clocks",
    10: _EXPIRED,
    18: _NOT_ADMITTED,  # self-signed leaf
    19: _NOT_ADMITTED,  # self-signed certificate in the chain
    20: _NOT_ADMITTED,  # issuer unknown
}
"""OpenSSL's verify code (X509_V_ERR_...) -> what it means here."""
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": _NOT_ADMITTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _EXPIRED,
    "SSLV3_ALERT_BAD_CERTIFICATE": "its certificate is not valid",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "its certificate was revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "its certificate is not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "its certificate is of another kind",
    "TLSV1_ALERT_ACCESS_DENIED": _NOT_ADMITTED,
    "TLSV1_ALERT_DECRYPT_ERROR": "its certificate is signed by another key than it names",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it shows no certificate",
}
"""Alert of the other side, as OpenSSL names it -> what it has against us."""


# ------------------------------------------------------------------------------------------------------------ keyring


@attrs.frozen
class Contexts:
    """What one handshake is made with; a later change of the keyring makes new ones."""

    pinned: frozenset[bytes]
    clusters: frozenset[bytes]
    client: ssl.SSLContext
    server: ssl.SSLContext

    def admits(self, public: bytes) -> bool:
        """Whether a key whose chain OpenSSL has verified may stay: pinned itself, or (then) admitted by a cluster."""
        return public in self.pinned or (bool(self.clusters) and public not in self.clusters)


class Keyring:
    """The node's own key and whom it admits. May be changed at any time; links that stand are not touched."""

    def __init__(
        self,
        key: NodeKey,
        *,
        pinned: Iterable[bytes] = (),
        clusters: Iterable[bytes] = (),
        admission: x509.Certificate | None = None,
    ) -> None:
        self.key = key
        self._pinned = frozenset(pinned)
        self._clusters = frozenset(clusters)
        self._chain = [leaf(key)] if admission is None else [leaf(key), admission]
        self._contexts: Contexts | None = None

    @property
    def pinned(self) -> frozenset[bytes]:
        """The public keys of nodes that are admitted one by one."""
        return self._pinned

    def pin(self, public: bytes) -> None:
        """Admit a node by its key from now on."""
        self._pinned |= {public}
        self._contexts = None

    def unpin(self, public: bytes) -> None:
        """Do not admit that key any more, unless a trusted cluster does."""
        self._pinned -= {public}
        self._contexts = None

    def contexts(self) -> Contexts:
        """The contexts of now; the same object while nothing changed."""
        if self._contexts is None:
            self._contexts = Contexts(
                self._pinned,
                self._clusters,
                self._context(ssl.PROTOCOL_TLS_CLIENT),
                self._context(ssl.PROTOCOL_TLS_SERVER),
            )
        return self._contexts

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # names mean nothing here, keys do
        context.verify_mode = ssl.CERT_REQUIRED
        if protocol is ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0
        for public in sorted(self._pinned):
            context.load_verify_locations(cadata=anchor(public).public_bytes(Encoding.DER))
        for public in sorted(self._clusters):
            context.load_verify_locations(cadata=anchor(public, admits=True).public_bytes(Encoding.DER))
        _load_chain(context, self.key, self._chain)
        return context


def _load_chain(context: ssl.SSLContext, key: NodeKey, chain: Iterable[x509.Certificate]) -> None:
    """`ssl` takes certificates and keys from files only; this file is in memory and has no name."""
    descriptor = os.memfd_create("deltalog", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as stream:
        stream.write(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain) + key.pem())
        stream.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


# ------------------------------------------------------------------------------------------------------------- stream


@contextmanager
def stream_errors(name: str) -> Iterator[None]:
    """What trio says of a socket, as `LinkFailed`."""
    try:
        yield
    except trio.ClosedResourceError as error:
        raise LinkFailed(f"{name} was closed here") from error
    except (trio.BrokenResourceError, OSError) as error:
        raise LinkFailed(f"{name} was cut: {error.__cause__ or error}") from error


async def hang_up(stream: trio.SocketStream, *, wait: bool = True) -> None:
    """Close a socket, however it stands. Unless a task uses it: say the end first and `wait` a little for the other's.

    A socket that is closed with bytes unread is reset, and a reset takes away what was sent last.
    """
    if not wait:
        await trio.aclose_forcefully(stream)
        return
    with trio.move_on_after(LINGER_S, shield=True), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_eof()
        while await stream.receive_some(RECEIVE_BYTES):
            pass
    await trio.aclose_forcefully(stream)


class TlsStream:
    """One TLS connection; a `Link` once `shake_hands` has returned."""

    def __init__(
        self, stream: trio.SocketStream, keyring: Keyring, name: str, *, server_side: bool, local: bool = False
    ) -> None:
        self.name = name
        self.local = local
        self.peer_key = b""
        self._keyring = keyring
        self._contexts = keyring.contexts()
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._server_side = server_side
        context = self._contexts.server if server_side else self._contexts.client
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._sending = Turn("sending on this link")
        self._receiving = Turn("receiving on this link")
        self._torn = False
        """A cancelled send left half a record behind: nothing can follow it."""
        self._closed = False

    # ------------------------------------------------------------------------------------------------------ handshake

    async def shake_hands(self) -> None:
        """Prove both keys to each other. Raises `LinkRefused`, `LinkFailed`; then the socket is closed."""
        try:
            await self._shake()
            shown = self._key_shown()
            if self._server_side:
                await self._tell(shown)
                await self._hear()
            else:
                await self._hear()
                await self._tell(shown)
            self._check_keyring()
        except BaseException as error:
            self._closed = True
            await (hang_up if isinstance(error, SyncError) else trio.aclose_forcefully)(self._stream)
            raise
        assert shown is not None
        self.peer_key = shown

    async def _shake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._carry()
                await self._feed()
            except ssl.SSLError as error:
                with suppress(LinkFailed):
                    await self._carry()  # the alert that tells the other side why
                raise self._failure(error) from error
            else:
                await self._carry()
                return

    def _check_keyring(self) -> None:
        if self._contexts is not self._keyring.contexts():
            raise LinkFailed(f"the keys admitted here changed while {self.name} shook hands")

    def _key_shown(self) -> bytes | None:
        shown = key_shown(self._tls.getpeercert(binary_form=True) or b"")
        return shown if shown is not None and self._contexts.admits(shown) else None

    async def _tell(self, shown: bytes | None) -> None:
        await self.send_all(NO if shown is None else YES)
        if shown is None:
            raise LinkRefused(f"the key of {self.name} is {_NOT_ADMITTED} here")

    async def _hear(self) -> None:
        verdict = await self.receive_some(1)
        if not verdict:
            raise LinkFailed(f"{self.name} ended in the handshake")
        if verdict != YES:
            raise self._refused_there(_NOT_ADMITTED)

    def _refused_there(self, reason: str) -> LinkRefused:
        return LinkRefused(f"{self.name} does not admit this node's key {key_text(self._keyring.key.public)}: {reason}")

    def _failure(self, error: ssl.SSLError) -> LinkFailed | LinkRefused:
        """What an error of OpenSSL means: a refusal here, a refusal there, or no TLS of ours at all."""
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = _VERIFY_REASONS.get(error.verify_code, error.verify_message)
            return LinkRefused(f"the key of {self.name} is not admitted here: {reason}")
        if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return LinkRefused(f"{self.name} shows no certificate")
        if error.reason in _ALERTS:
            return self._refused_there(_ALERTS[error.reason])
        return LinkFailed(f"{self.name} does not speak TLS 1.3 as a node does: {error.reason or error}")

    # ----------------------------------------------------------------------------------------------------------- bytes

    async def send_all(self, data: bytes) -> None:
        """See `Link`."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            for start in range(0, len(data), RECEIVE_BYTES):
                if self._torn or self._closed:
                    raise LinkFailed(f"{self.name} was closed here")
                with self._tls_errors():
                    self._tls.write(data[start : start + RECEIVE_BYTES])
                await self._carry()

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `Link`."""
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise LinkFailed(f"{self.name} was closed here")
                if (data := self._decrypt(max_bytes)) is not None:
                    return data
                await self._feed()

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Bytes of as many records as have come whole; b"" at the end, None if none has come."""
        data = bytearray()
        with suppress(ssl.SSLWantReadError), self._tls_errors():
            while len(data) < max_bytes:
                try:
                    piece = self._tls.read(max_bytes - len(data))
                except ssl.SSLZeroReturnError:
                    piece = b""
                if not piece:
                    return bytes(data)
                data += piece
        if self._outgoing.pending > _ANSWERS_BYTES_MAX:
            raise LinkFailed(f"{self.name} makes TLS answer without end")
        return bytes(data) or None

    @contextmanager
    def _tls_errors(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            raise self._failure(error) from error

    async def _carry(self) -> None:
        """Send what TLS has to send. Cancelled half-way, the stream is torn."""
        if not (data := self._outgoing.read()):
            return
        self._torn = True
        with stream_errors(self.name):
            await self._stream.send_all(data)
        self._torn = False

    async def _feed(self) -> None:
        """Give TLS what has come. Cancelled, nothing is lost."""
        with stream_errors(self.name):
            data = await self._stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise LinkFailed(f"{self.name} ended without a close")
        self._incoming.write(data)

    async def aclose(self) -> None:
        """See `Link`."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        if not (self._sending.taken or self._torn):
            with trio.move_on_after(LINGER_S, shield=True), suppress(LinkFailed):
                with suppress(ssl.SSLError):
                    self._tls.unwrap()  # leaves the closing alert to be sent; the other's need not be waited for
                await self._carry()
        await hang_up(self._stream, wait=not (self._sending.taken or self._receiving.taken))
