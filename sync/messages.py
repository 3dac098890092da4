"""What two nodes say to each other, byte by byte. No I/O, no state.

A frame:

    offset  size  field
    0       4     bytes that follow (big endian, like every number here)
    4       1     type of the message
    5       ...   body: a msgpack array of fixed shape, but for DELTAS and PACKED

    type        body
    1  HELLO    version, cluster, node, source, key, voucher, features
    2  WELCOME  seq and chain hash held of the other's source; sources, deltas ever, digest of all heads
    3  BUSY     milliseconds after which to try again
    4  GOODBYE  code, text: the session ends here
    5  COMPARE  number of parts, then parts of a heads exchange (see `heads`)
    6  WANT     [source, after], ...: send what is beyond, and go on with what comes
    7  UNWANT   source, ...: stop that
    8  HAVE     [source, seq], ...: synced here, and not wanted by you
    9  DELTAS   u8 size of the source | source | u64 first seq | u32 count | encoded records as they are stored
    10 HEAD     signed head that ends a run of DELTAS (see `trust`)
    11 COMMIT   number of the batch that ends here
    12 ACK      number, [source, seq], ...: that batch is decided; of these sources so much is synced here
    13 BELOW    snapshot or "", [source, floor], ...: what you want was dropped here
    14 ALIVE    sources, deltas ever, digest of all synced heads
    15 TOTAL    deltas and bytes that are about to come, as far as known
    16 PACKED   zlib: whole frames of DELTAS, HEAD and COMMIT (see `packing`); only to who can read it, as HELLO says

One delta is one element of a run; a run of one source has dense seqs, and its last frame is followed by HEAD. Every
decoder checks exact types and ranges, raises `ProtocolError` and nothing else, and takes time and memory in proportion
to the frame, whose size was checked before it was read. msgpack's extension types, NaN and the like cannot occur.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import attrs
import msgpack

from deltalog.codec import decode_many
from deltalog.delta import SEQ_MAX, Delta, Limits
from deltalog.errors import DecodeError
from sync.errors import ProtocolError

VERSION: Final = 1
HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NAME_BYTES: Final = 255
"""UTF-8 bytes of a cluster's, node's or source's name."""
TEXT_BYTES: Final = 1024
"""UTF-8 bytes of a reason."""
FRAME_BYTES: Final = 256 << 10
"""Most bytes of a frame, but for DELTAS that hold a single record."""
RUN_BYTES: Final = 64 << 10
"""Bytes of records after which a frame of DELTAS is ended: small enough to be in time on a slow link."""
HELLO_BYTES: Final = 4 << 10
"""Most bytes of a frame before the other side has shown who it is."""
ITEMS_MAX: Final = 8192
"""Most entries of a list in a message."""

PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">IB")
_RUN: Final = struct.Struct(">QI")
_COUNT_MAX: Final = 65_536

Items: TypeAlias = tuple[tuple[str, int], ...]
"""(source, seq) pairs."""


@attrs.frozen
class Hello:
    """The first message of each side."""

    version: int
    cluster: str
    """Nodes of different clusters do not talk."""
    node: str
    """Name of the node, the same after each start."""
    source: str
    """The source that appends there."""
    key: bytes = b""
    """Public key of the node; empty: it signs nothing."""
    voucher: bytes = b""
    """The cluster key's signature for that key; empty: there is none."""
    features: tuple[str, ...] = ()
    """What else it knows; unknown ones are ignored."""


@attrs.frozen
class Welcome:
    """The second message of each side."""

    seq: int
    """How much of the other's source is synced here; 0: nothing."""
    hash: bytes
    """Chain hash behind that; empty for 0."""
    sources: int
    total: int
    """Sum of the synced heads."""
    digest: bytes
    """Over all synced heads and their chain hashes."""


@attrs.frozen
class Busy:
    """No session now."""

    retry_after_ms: int


@attrs.frozen
class Goodbye:
    """The last message of a side."""

    code: str
    text: str


@attrs.frozen
class Compare:
    """Part of a heads exchange."""

    parts: tuple[Any, ...]
    """As `heads` writes them."""


@attrs.frozen
class Want:
    """Send what is beyond these seqs, and what comes later."""

    items: Items


@attrs.frozen
class Unwant:
    """Send no more of these."""

    sources: tuple[str, ...]


@attrs.frozen
class Have:
    """These are synced here; ask for them if you like."""

    items: Items


@attrs.frozen
class Deltas:
    """Consecutive deltas of one source."""

    source: str
    seq: int
    count: int
    records: bytes

    def decode(self, limits: Limits) -> list[Delta]:
        """Return the deltas. Raises `ProtocolError` unless all of it is canonical, dense from `seq`, within limits."""
        try:
            deltas, end = decode_many(self.source, self.records, 0, self.count, limits)
        except DecodeError as error:
            raise ProtocolError(f"deltas of {self.source!r}: {error}"[:500]) from error
        if end != len(self.records):
            raise ProtocolError(f"deltas of {self.source!r}: {len(self.records) - end} bytes behind the last")
        if deltas[0].seq != self.seq:
            raise ProtocolError(f"deltas of {self.source!r}: seq {deltas[0].seq} where {self.seq} was announced")
        return deltas


@attrs.frozen
class Head:
    """How a run of deltas ends."""

    source: str
    seq: int
    hash: bytes
    key: bytes
    signature: bytes
    voucher: bytes


@attrs.frozen
class Commit:
    """A batch ends."""

    number: int


@attrs.frozen
class Ack:
    """A batch was decided."""

    number: int
    items: Items
    """Of the sources in it, what is synced here."""


@attrs.frozen
class Below:
    """What you want was dropped here."""

    snapshot: str
    items: Items


@attrs.frozen
class Alive:
    """A heartbeat."""

    sources: int
    total: int
    digest: bytes


@attrs.frozen
class Total:
    """What is about to come."""

    deltas: int
    size_bytes: int


@attrs.frozen
class Packed:
    """Frames of a batch, compressed."""

    body: bytes


Message: TypeAlias = (
    Hello
    | Welcome
    | Busy
    | Goodbye
    | Compare
    | Want
    | Unwant
    | Have
    | Deltas
    | Head
    | Commit
    | Ack
    | Below
    | Alive
    | Total
    | Packed
)

# ----------------------------------------------------------------------------------------------------------- checking


def _refuse(field: str, wanted: str, value: object) -> ProtocolError:
    return ProtocolError(f"{field} must be {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    """What a peer sent, short enough for a line; arrays by their size only: `repr` of 1,000 nested ones fails."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    return repr(value[:80] if isinstance(value, bytes | str) else value)[:80]


def _integer(field: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _refuse(field, f"an integer from {least} to {most}", value)
    return value


def _text(field: str, value: object, most: int = NAME_BYTES, least: int = 0) -> str:
    if type(value) is not str or not least <= len(value.encode()) <= most:
        raise _refuse(field, f"text of {least} to {most} bytes", value)
    return value


def _bytes(field: str, value: object, *sizes: int) -> bytes:
    if type(value) is not bytes or len(value) not in sizes:
        raise _refuse(field, " or ".join(map(str, sizes)) + " bytes", value)
    return value


def _array(field: str, value: object, most: int = ITEMS_MAX) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise _refuse(field, f"an array of at most {most} elements", value)
    return value


def _fields(name: str, value: object, count: int) -> list[Any]:
    if type(value) is not list or len(value) != count:
        raise _refuse(name, f"an array of {count} elements", value)
    return value


def _items(field: str, value: object, least: int = 0) -> Items:
    pairs = [_fields(field, pair, 2) for pair in _array(field, value)]
    return tuple((_text(field, source, least=1), _integer(field, seq, least, SEQ_MAX)) for source, seq in pairs)


# ------------------------------------------------------------------------------------------------- each type's fields


def _hello(value: object) -> Hello:
    version, cluster, node, source, key, voucher, features = _fields("hello", value, 7)
    return Hello(
        _integer("hello.version", version, 0, 0xFFFF),
        _text("hello.cluster", cluster),
        _text("hello.node", node, least=1),
        _text("hello.source", source, least=1),
        _bytes("hello.key", key, 0, KEY_BYTES),
        _bytes("hello.voucher", voucher, 0, SIGNATURE_BYTES),
        tuple(_text("hello.features", each, 64) for each in _array("hello.features", features, 32)),
    )


def _welcome(value: object) -> Welcome:
    seq, digest_of_source, sources, total, digest = _fields("welcome", value, 5)
    return Welcome(
        _integer("welcome.seq", seq, 0, SEQ_MAX),
        _bytes("welcome.hash", digest_of_source, *((HASH_BYTES,) if seq else (0,))),
        *_summary("welcome", sources, total),
        _bytes("welcome.digest", digest, HASH_BYTES),
    )


def _summary(name: str, sources: object, total: object) -> tuple[int, int]:
    return _integer(f"{name}.sources", sources, 0, SEQ_MAX), _integer(f"{name}.total", total, 0, 2**64 - 1)


def _goodbye(value: object) -> Goodbye:
    code, text = _fields("goodbye", value, 2)
    return Goodbye(_text("goodbye.code", code, 64), _text("goodbye.text", text, TEXT_BYTES))


def _head(value: object) -> Head:
    source, seq, digest, key, signature, voucher = _fields("head", value, 6)
    _bytes("head.key", key, 0, KEY_BYTES)
    return Head(
        _text("head.source", source, least=1),
        _integer("head.seq", seq, 1, SEQ_MAX),
        _bytes("head.hash", digest, HASH_BYTES),
        key,
        _bytes("head.signature", signature, SIGNATURE_BYTES if key else 0),
        _bytes("head.voucher", voucher, 0, SIGNATURE_BYTES),
    )


def _ack(value: object) -> Ack:
    number, items = _fields("ack", value, 2)
    return Ack(_integer("ack.number", number, 1, SEQ_MAX), _items("ack.items", items))


def _below(value: object) -> Below:
    snapshot, items = _fields("below", value, 2)
    return Below(_text("below.snapshot", snapshot), _items("below.items", items, 1))


def _alive(value: object) -> Alive:
    sources, total, digest = _fields("alive", value, 3)
    return Alive(*_summary("alive", sources, total), _bytes("alive.digest", digest, HASH_BYTES))


def _total(value: object) -> Total:
    deltas, size = _fields("total", value, 2)
    return Total(_integer("total.deltas", deltas, 0, 2**64 - 1), _integer("total.size_bytes", size, 0, 2**64 - 1))


_TYPES: Final[dict[int, tuple[type[Any], Callable[[object], Message]]]] = {
    1: (Hello, _hello),
    2: (Welcome, _welcome),
    3: (Busy, lambda value: Busy(_integer("busy", _fields("busy", value, 1)[0], 0, 86_400_000))),
    4: (Goodbye, _goodbye),
    5: (Compare, lambda value: Compare(tuple(_array("compare", value)))),
    6: (Want, lambda value: Want(_items("want", value))),
    7: (Unwant, lambda value: Unwant(tuple(_text("unwant", each, least=1) for each in _array("unwant", value)))),
    8: (Have, lambda value: Have(_items("have", value, 1))),
    10: (Head, _head),
    11: (Commit, lambda value: Commit(_integer("commit", _fields("commit", value, 1)[0], 1, SEQ_MAX))),
    12: (Ack, _ack),
    13: (Below, _below),
    14: (Alive, _alive),
    15: (Total, _total),
}
_DELTAS: Final = 9
_PACKED: Final = 16
_NUMBERS: Final[dict[type[Any], int]] = {kind: number for number, (kind, _) in _TYPES.items()}
PACKABLE: Final = frozenset({_DELTAS, _NUMBERS[Head], _NUMBERS[Commit]})
"""Types of the messages that batches are made of."""
_LISTS: Final = {Compare: "parts", Want: "items", Unwant: "sources", Have: "items"}
"""Messages whose body is one list."""

# ------------------------------------------------------------------------------------------------------------- frames


def encode(message: Message) -> bytes:
    """Return the frame of any message but `Deltas` (see `encode_run`)."""
    if isinstance(message, Packed):
        return _PREFIX.pack(1 + len(message.body), _PACKED) + message.body
    kind = type(message)
    body = getattr(message, _LISTS[kind]) if kind in _LISTS else attrs.astuple(message, recurse=False)
    packed: bytes = msgpack.packb(body)
    return _PREFIX.pack(1 + len(packed), _NUMBERS[kind]) + packed


def encode_run(source: str, seq: int, records: Sequence[bytes]) -> Iterator[bytes]:
    """Yield frames of DELTAS for consecutive records of a source: each of about `RUN_BYTES`, or of a single record."""
    name = source.encode()
    most = RUN_BYTES
    start = size = 0
    for index, record in enumerate(records):
        if index > start and (size + len(record) > most or index - start >= _COUNT_MAX):
            yield _deltas(name, seq + start, records[start:index], size)
            start, size = index, 0
        size += len(record)
    if records:
        yield _deltas(name, seq + start, records[start:], size)


def _overhead(name: bytes) -> int:
    return 1 + len(name) + _RUN.size


def _deltas(name: bytes, seq: int, records: Sequence[bytes], size: int) -> bytes:
    front = _PREFIX.pack(1 + _overhead(name) + size, _DELTAS) + bytes((len(name),)) + name
    return b"".join((front, _RUN.pack(seq, len(records)), *records))


def record_bytes_max(limits: Limits) -> int:
    """Bytes of the largest record these limits allow."""
    deps = limits.deps_entries * (1 + limits.source_bytes + 8)
    return 30 + limits.payload_bytes + limits.kind_bytes + limits.key_bytes + deps


def frame_size(prefix: bytes, most: int, most_deltas: int) -> tuple[int, int]:
    """Return (bytes of the body, type) of the frame that starts with these `PREFIX_BYTES`.

    Raises `ProtocolError` before a byte of the body is read: for an unknown type, or more than `most` bytes (of DELTAS:
    than `most_deltas`).
    """
    size, number = _PREFIX.unpack(prefix)
    if number not in (_DELTAS, _PACKED) and number not in _TYPES:
        raise ProtocolError(f"type of a message must be 1 to {_PACKED}, not {number}")
    limit = most_deltas if number == _DELTAS else most
    if not 1 <= size <= limit:
        raise ProtocolError(f"frame of {size:,} bytes; the limit is {limit:,}")
    return size - 1, number


def decode(number: int, body: bytes) -> Message:
    """Return the message with this type and body. Raises `ProtocolError`, and nothing else, for anything malformed."""
    if number == _DELTAS:
        return _decode_deltas(body)
    if number == _PACKED:
        return Packed(body)
    try:
        value = msgpack.unpackb(
            body,
            use_list=True,
            strict_map_key=True,
            max_str_len=max(NAME_BYTES, TEXT_BYTES),
            max_bin_len=FRAME_BYTES,
            max_array_len=ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"message of type {number}: {type(error).__name__}: {error}"[:300]) from error
    return _TYPES[number][1](value)


def _decode_deltas(body: bytes) -> Deltas:
    try:
        end = 1 + body[0]
        source = body[1:end].decode()
        seq, count = _RUN.unpack_from(body, end)
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise ProtocolError(f"deltas: {type(error).__name__}: {error}"[:300]) from error
    _text("deltas.source", source, least=1)
    _integer("deltas.seq", seq, 1, SEQ_MAX)
    _integer("deltas.count", count, 1, _COUNT_MAX)
    if count > 1 and len(body) >= FRAME_BYTES:
        raise ProtocolError(f"frame of {1 + len(body):,} bytes for {count:,} deltas; the limit is {FRAME_BYTES:,}")
    return Deltas(source, seq, count, body[end + _RUN.size :])


def split(items: Iterable[tuple[str, int]]) -> Iterator[Items]:
    """Cut pairs into lists that fit into one message each."""
    part: list[tuple[str, int]] = []
    size = 0
    for item in items:
        more = len(item[0].encode()) + 16
        if part and (len(part) >= ITEMS_MAX or size + more > FRAME_BYTES // 2):
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield tuple(part)
