"""Whose deltas may come in: signed heads, who owns a source, and what becomes of one that contradicts itself.

What a node signs for the head of its source (numbers big endian):

    "deltalog head v1" | 0 | size (2) | cluster | size (2) | source | seq (8) | chain hash (32)

The chain hash vouches for every delta up to seq, so a head makes a run of deltas good whoever relays it. The name of
the cluster makes it no good anywhere else. A voucher is the cluster key's signature that admits a node's key:

    "deltalog voucher v1" | 0 | size (2) | cluster | key (32)

Rules:

* A key is *admitted* if an operator pinned it or the cluster key vouches for it.
* A source belongs to the first admitted key that signs it. `check` says when that happens; the caller keeps it and
  loads it with `bind` at the next start. A pin NAME=KEY stands above that, needs no voucher, and admits nothing else.
* A source that belongs to a key is never taken in unsigned again, and never from another key.
* Unsigned comes in only what the operator named. Such a name stays nobody's: no key can take it over, admitted or not,
  unless an operator pins NAME=KEY. Where everything is allowed unsigned (`ALL`), the first admitted key that signs a
  source takes it, as it would anywhere; `check` says so.
* A later incarnation (`NAME~0123456789`) is a source of its own, but belongs to whom NAME belongs to, and may be
  unsigned where NAME may be.
* Two heads of one source that its owner signed, with one seq and two hashes, are *evidence*. The source is quarantined:
  nothing of it is taken in or served any more. Its owner goes on with a new incarnation. A quarantine ends when an
  operator pins another key.

Here are signatures and names. This file does not know chains (the caller holds a run against its head), peers, or what
is stored; it makes no signature and verifies none by itself: both are handed in.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, TypeVar

import attrs

from deltalog.codec import HASH_BYTES
from deltalog.delta import SEQ_MAX, Limits, check_source, text_bytes
from deltalog.errors import DecodeError, UsageError
from sync.errors import HeadRefused
from sync.messages import KEY_BYTES, NAME_BYTES, SIGNATURE_BYTES, Head

_K = TypeVar("_K")
_V = TypeVar("_V")

SignedHead: TypeAlias = Head
"""A head as it travels (message HEAD): unsigned if key, signature and voucher are empty."""
Verifier: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, signed bytes) -> whether they fit. Must not raise, whatever the bytes are."""

VOUCHERS_MAX: Final = 4096
"""Vouchers that are remembered as good, about 1 MB. Bad ones are not: a peer could push out the good."""
REMEMBERED_MAX: Final = 4096
"""Sources whose latest signed head is remembered, about 3 MB."""

_HEAD_DOMAIN: Final = b"deltalog head v1\0"
_VOUCHER_DOMAIN: Final = b"deltalog voucher v1\0"
_VERSION: Final = 1
_SIZE: Final = struct.Struct(">H")
_LINK: Final = struct.Struct(f">Q{HASH_BYTES}s")
_FRONT: Final = struct.Struct(f">BBQ{HASH_BYTES}s")
_EVIDENCE: Final = struct.Struct(">BH")
_SIGNED: Final = 1
_VOUCHED: Final = 2
_LIMITS: Final = Limits()
_INCARNATION: Final = re.compile(r"(.+)~[0-9a-f]{10}", re.DOTALL)


class _All:
    """Holds every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "ALL"


ALL: Final[Container[str]] = _All()
"""For `Trust.unsigned`: every source may be unsigned."""


# ----------------------------------------------------------------------------------------------------------- signing


class Signer(Protocol):
    """What a node signs its heads with."""

    @property
    def key(self) -> bytes:
        """Public key, 32 bytes."""

    @property
    def voucher(self) -> bytes:
        """The cluster key's signature for that key; b"": peers must have pinned it."""

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""


def signed_bytes(cluster: str, source: str, seq: int, hash_: bytes) -> bytes:
    """Return what the signature of a head is made over."""
    return _HEAD_DOMAIN + _sized(cluster) + _sized(source) + _LINK.pack(seq, hash_)


def voucher_bytes(cluster: str, key: bytes) -> bytes:
    """Return what a voucher is made over."""
    return _VOUCHER_DOMAIN + _sized(cluster) + key


def sign_head(signer: Signer, cluster: str, source: str, seq: int, hash_: bytes) -> SignedHead:
    """Return a head, signed."""
    signature = signer.sign(signed_bytes(cluster, source, seq, hash_))
    return SignedHead(source, seq, hash_, signer.key, signature, signer.voucher)


def _sized(text: str) -> bytes:
    data = text.encode()
    return _SIZE.pack(len(data)) + data


# ------------------------------------------------------------------------------------------------------------ keeping


def encode_head(head: SignedHead) -> bytes:
    """Return the one encoding of a head.

    version: 1 (1) | flags: 1 = signed, 2 = with voucher (1) | seq (8) | chain hash (32)
    | key (32) | signature (64), if signed | voucher (64), if there is one | source, UTF-8
    """
    flags = (_SIGNED if head.key else 0) | (_VOUCHED if head.voucher else 0)
    front = _FRONT.pack(_VERSION, flags, head.seq, head.hash)
    return b"".join((front, head.key, head.signature, head.voucher, head.source.encode()))


def decode_head(data: bytes) -> SignedHead:
    """Return the head that `encode_head` made. Raises `DecodeError`, naming the field, for anything else."""
    if len(data) < _FRONT.size:
        raise DecodeError(f"signed head: {len(data)} bytes are too few")
    version, flags, seq, hash_ = _FRONT.unpack_from(data)
    if version != _VERSION or flags not in (0, _SIGNED, _SIGNED | _VOUCHED):
        raise DecodeError(f"signed head: unknown version {version} or flags {flags}")
    if not 0 < seq <= SEQ_MAX:
        raise DecodeError(f"signed head: seq must be 1 to {SEQ_MAX}, not {seq}")
    key_end = _FRONT.size + (KEY_BYTES if flags else 0)
    signature_end = key_end + (SIGNATURE_BYTES if flags else 0)
    voucher_end = signature_end + (SIGNATURE_BYTES if flags & _VOUCHED else 0)
    try:
        source = data[voucher_end:].decode()
        check_source(source, _LIMITS)
    except (UnicodeDecodeError, UsageError) as error:
        raise DecodeError(f"signed head: {error}"[:300]) from error
    key, signature, voucher = data[_FRONT.size : key_end], data[key_end:signature_end], data[signature_end:voucher_end]
    return SignedHead(source, seq, hash_, key, signature, voucher)


@attrs.frozen
class Evidence:
    """Two heads of one source, signed with one key, with one seq and two hashes. `first` has the lower hash.

    Shows anybody who knows the name of the cluster that the holder of the key signed both; whether the source belongs
    to that key is for each to say.
    """

    first: SignedHead
    second: SignedHead

    @classmethod
    def of(cls, a: SignedHead, b: SignedHead) -> Evidence | None:
        """Return what two heads show if their signatures hold; None if they do not contradict each other."""
        if (a.source, a.seq, a.key) != (b.source, b.seq, b.key) or a.hash == b.hash or not a.key:
            return None
        return cls(*sorted((a, b), key=lambda head: head.hash))

    @property
    def source(self) -> str:
        """The source that contradicts itself."""
        return self.first.source

    @property
    def key(self) -> bytes:
        """The key that signed both."""
        return self.first.key

    def holds(self, cluster: str, verify: Verifier) -> bool:
        """Say whether both signatures are good."""
        return all(_signature_holds(cluster, verify, head) for head in (self.first, self.second))

    def encode(self) -> bytes:
        """Return the one encoding: version: 1 (1) | size (2) | first head | second head, as `encode_head` does."""
        first = encode_head(self.first)
        return _EVIDENCE.pack(_VERSION, len(first)) + first + encode_head(self.second)

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Return what `encode` made. Raises `DecodeError` for anything else; does not look at the signatures."""
        if len(data) < _EVIDENCE.size or data[0] != _VERSION:
            raise DecodeError(f"evidence: {len(data)} bytes are too few, or of an unknown version")
        end = _EVIDENCE.size + _EVIDENCE.unpack_from(data)[1]
        first, second = decode_head(data[_EVIDENCE.size : end]), decode_head(data[end:])
        evidence = cls.of(first, second)
        if evidence is None or evidence.first is not first:
            raise DecodeError("evidence: its heads do not contradict each other, or stand in the wrong order")
        return evidence


def _signature_holds(cluster: str, verify: Verifier, head: SignedHead) -> bool:
    signed = len(head.key) == KEY_BYTES and len(head.signature) == SIGNATURE_BYTES
    return signed and verify(head.key, head.signature, signed_bytes(cluster, head.source, head.seq, head.hash))


# -------------------------------------------------------------------------------------------------------------- trust


class Trust:
    """What one node believes. Not for several threads."""

    def __init__(
        self,
        cluster: str,
        verify: Verifier,
        *,
        pinned: frozenset[bytes] = frozenset(),
        cluster_key: bytes | None = None,
        named: Mapping[str, bytes] = MappingProxyType({}),
        unsigned: Container[str] = frozenset(),
    ) -> None:
        """`pinned`: admitted keys; this node's own belongs to them. `named`: source -> its key. Both by an operator.

        `cluster_key`: whose vouchers admit a key; None: nobody's. `unsigned`: sources that need no signature, or `ALL`.
        Raises `UsageError` for a key that is not 32 bytes or a name that is none.
        """
        text_bytes("cluster", cluster, NAME_BYTES)
        for key in (*pinned, *named.values(), *(() if cluster_key is None else (cluster_key,))):
            _check_key(key)
        for source in named:
            check_source(source, _LIMITS)
        # constant
        self.cluster = cluster
        self.named = MappingProxyType(dict(named))
        self._verify = verify
        self._pinned = pinned
        self._cluster_key = cluster_key
        self._unsigned = unsigned
        # what came in
        self._bound: dict[str, bytes] = {}
        self._quarantined: dict[str, Evidence] = {}
        self._vouchers: OrderedDict[bytes, bytes] = OrderedDict()
        self._latest: OrderedDict[str, SignedHead] = OrderedDict()

    @property
    def quarantined(self) -> Mapping[str, Evidence]:
        """Sources of which nothing is taken in or served, and why."""
        return MappingProxyType(self._quarantined)

    def admits(self, key: bytes, voucher: bytes = b"") -> bool:
        """Say whether a key may sign at all: it was pinned, or the cluster key vouches for it."""
        return self._vouched(key, voucher) or key in self._pinned

    def owner(self, source: str) -> bytes | None:
        """Return the key that a source belongs to, or None. Pins first; an incarnation as the name it goes back to."""
        names = _names_of(source)
        keys = (table[name] for table in (self.named, self._bound) for name in names if name in table)
        return next(keys, None)

    def check(self, head: SignedHead) -> bool:
        """Accept a head; return whether its source now belongs to its key and did not before (keep that: `bind`).

        Raises `HeadRefused` otherwise. That a run of deltas leads to this head is for the caller to see.
        """
        source, owner = head.source, self.owner(head.source)
        if source in self._quarantined:
            raise HeadRefused(source, "is quarantined: its owner signed two histories")
        if not head.key:
            self._check_unsigned(head, owner)
            return False
        if owner is None and self._stays_unsigned(source):
            raise HeadRefused(source, "was allowed unsigned, so no key takes it over; pin NAME=KEY to give it an owner")
        if owner not in (None, head.key):
            raise HeadRefused(source, f"belongs to key {_shown(owner)}, and {_shown(head.key)} signed")
        admitted = self.admits(head.key, head.voucher)  # also of one that is pinned: `relayed` needs its voucher
        if not admitted and not self._names(source, head.key):
            raise HeadRefused(source, f"key {_shown(head.key)} is not admitted: pin it, or have it vouched for")
        if not _signature_holds(self.cluster, self._verify, head):
            reason = f"the signature of head {head.seq} does not hold in cluster {self.cluster!r}"
            raise HeadRefused(source, reason, forged=True)
        if source in self.named or source in self._bound:
            return False
        self._bound[source] = head.key
        return True

    def relayed(self, head: SignedHead) -> SignedHead:
        """Return a checked head with the voucher that is known to be good; without, if what it came with is not.

        A head is good here because its key was pinned, say; others may need the voucher, which no signature covers.
        """
        unknown = head.voucher if self._cluster_key is None else b""
        return attrs.evolve(head, voucher=self._vouchers.get(head.key, unknown))

    def bind(self, source: str, key: bytes) -> None:
        """Note that a source belongs to a key, as kept from an earlier start; this node's own is bound before others.

        Raises `UsageError` if it belongs to another already.
        """
        check_source(source, _LIMITS)
        _check_key(key)
        if self._bound.setdefault(source, key) != key:
            raise UsageError(f"source {source!r} belongs to key {_shown(self._bound[source])} already")

    def compare(self, a: SignedHead, b: SignedHead) -> Evidence | None:
        """Return evidence if both heads are signed by the owner of their source and contradict each other."""
        evidence = Evidence.of(a, b)
        if evidence is None or evidence.key != self.owner(evidence.source):
            return None
        return evidence if evidence.holds(self.cluster, self._verify) else None

    def remember(self, head: SignedHead) -> Evidence | None:
        """Keep a head that was checked if it is the latest of its source; return evidence if it contradicts that one.

        Bounded: of the sources whose heads came longest ago none is kept.
        """
        if not head.key:
            return None
        latest = self._latest.get(head.source, head)
        _put_last(self._latest, head.source, max(latest, head, key=lambda each: each.seq), REMEMBERED_MAX)
        return self.compare(latest, head)

    def latest(self, source: str) -> SignedHead | None:
        """Return the latest head that is remembered of a source."""
        return self._latest.get(source)

    def quarantine(self, evidence: Evidence) -> bool:
        """Take in and serve nothing of a source any more; return whether that is new.

        Raises `HeadRefused` if the evidence shows nothing: a signature does not hold, or the source is not the key's
        (any more: so ends a quarantine when kept evidence is loaded after an operator pinned another key).
        """
        source = evidence.source
        if Evidence.of(evidence.first, evidence.second) != evidence or not evidence.holds(self.cluster, self._verify):
            raise HeadRefused(source, "the evidence against it does not hold")
        if evidence.key != self.owner(source):
            raise HeadRefused(source, f"the evidence is against key {_shown(evidence.key)}, which does not own it")
        new = source not in self._quarantined
        self._quarantined.setdefault(source, evidence)
        return new

    def _check_unsigned(self, head: SignedHead, owner: bytes | None) -> None:
        source = head.source
        if head.signature or head.voucher:
            raise HeadRefused(source, "its head has a signature or a voucher, and no key")
        if owner is not None:
            raise HeadRefused(source, f"belongs to key {_shown(owner)}, and its head is not signed")
        if not any(name in self._unsigned for name in _names_of(source)):
            raise HeadRefused(source, "its head is not signed, and it was not allowed unsigned")

    def _vouched(self, key: bytes, voucher: bytes) -> bool:
        if self._cluster_key is None or len(key) != KEY_BYTES or len(voucher) != SIGNATURE_BYTES:
            return False
        known = self._vouchers.get(key) == voucher
        if not known and not self._verify(self._cluster_key, voucher, voucher_bytes(self.cluster, key)):
            return False
        _put_last(self._vouchers, key, voucher, VOUCHERS_MAX)
        return True

    def _stays_unsigned(self, source: str) -> bool:
        return self._unsigned is not ALL and any(name in self._unsigned for name in _names_of(source))

    def _names(self, source: str, key: bytes) -> bool:
        """Whether an operator pinned this key for this source."""
        return any(self.named.get(name) == key for name in _names_of(source))


def _names_of(source: str) -> tuple[str, ...]:
    """A source; and if it is a later incarnation, the name it goes back to."""
    stem = _INCARNATION.fullmatch(source)
    return (source,) if stem is None else (source, stem[1])


def _put_last(entries: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> None:
    """Set an entry as the newest, and drop the oldest beyond `limit`."""
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > limit:
        entries.popitem(last=False)


def _check_key(key: object) -> None:
    if type(key) is not bytes or len(key) != KEY_BYTES:
        raise UsageError(f"a public key must be {KEY_BYTES} bytes")


def _shown(key: bytes | None) -> str:
    return "nobody" if key is None else f"{key.hex()[:16]}..."
