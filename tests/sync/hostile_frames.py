"""Hostile bytes: frames that are none, fields that lie, messages out of their turn, names and keys that are others'."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgpack

from deltalog.codec import build
from sync import messages
from sync.errors import LinkRefused, ProtocolError, SessionRefused
from sync.messages import (
    Ack,
    Alive,
    Below,
    Busy,
    Commit,
    Compare,
    Have,
    Hello,
    Message,
    Packed,
    Total,
    Unwant,
    Want,
    Welcome,
    encode,
    encode_run,
)
from tests.sync.hostile import NOTHING, Foe, frame, joined
from tests.sync.hostile_case import (
    ALL_STATES,
    OPEN,
    Case,
    Play,
    came,
    greeting,
    opened,
    saying,
    welcoming,
)
from tests.sync.nodes import CheapKey

ALIVE: Final = 14
PLAIN_LIES: Final[dict[str, tuple[bytes, str]]] = {
    "a frame of nothing": (frame(ALIVE, b"", 0), "frame of 0 bytes"),
    "a type of 0": (frame(0, b"\x90"), "type of a message must be 1 to 16, not 0"),
    "a type of 17": (frame(17, b"\x90"), "type of a message must be 1 to 16, not 17"),
    "a type of 255": (frame(255, b"\x90"), "type of a message must be 1 to 16, not 255"),
    "a frame of 4 GiB": (frame(ALIVE, b"", 2**32 - 1), "frame of 4,294,967,295 bytes; the limit is"),
    "deltas of 2 GiB": (frame(9, b"", 2**31), "frame of 2,147,483,648 bytes; the limit is"),
    "a web browser": (b"GET / HTTP/1.1\r\nHost: alice\r\n\r\n", "type of a message must be"),
    "a TLS client": (bytes.fromhex("16030100f4010000f00303"), "type of a message must be"),
    "an empty body": (frame(ALIVE, b""), "message of type 14: ValueError"),
    "a body that is cut short": (frame(ALIVE, b"\x93\1\2"), "message of type 14: ValueError"),
    "more than one value": (frame(ALIVE, b"\x90\x90"), "message of type 14: ExtraData"),
    "a map": (frame(ALIVE, msgpack.packb({"a": 1})), "exceeds max_map_len"),
    "a number": (frame(ALIVE, b"\1"), "alive must be an array of 3 elements, not 1"),
    "a time": (frame(ALIVE, msgpack.packb([msgpack.Timestamp(1)])), "exceeds max_ext_len"),
    "an extension": (frame(ALIVE, msgpack.packb([msgpack.ExtType(5, b"x" * 9)])), "exceeds max_ext_len"),
    "an array of 4 billion": (frame(ALIVE, b"\xdd\xff\xff\xff\xff"), "exceeds max_array_len"),
    "a text of 4 GiB": (frame(ALIVE, b"\x91\xdb\xff\xff\xff\xff"), "incomplete input"),
    "bytes of 4 GiB": (frame(ALIVE, b"\x91\xc6\xff\xff\xff\xff"), "incomplete input"),
    "arrays 3,000 deep": (frame(ALIVE, b"\x91" * 3000 + b"\x90"), "message of type 14: StackError"),
    "arrays 1,000 deep": (
        frame(ALIVE, b"\x91" * 1000 + b"\x90"),
        "alive must be an array of 3 elements, not an array of 1",
    ),
    "text that is no UTF-8": (frame(4, b"\x92\xa1\xff\xa0"), "UnicodeDecodeError"),
}
"""In any state, the same error."""


def _body(number: int, value: Any) -> bytes:
    return frame(number, msgpack.packb(value))


_HELLO: Final = [1, "team", "mallory", "mallory", b"", b"", []]
_HEAD: Final = ["mallory", 2, NOTHING, b"k" * 32, b"s" * 64, b""]


def _with(value: list[Any], at: int, other: object) -> list[Any]:
    return [*value[:at], other, *value[at + 1 :]]


FIELD_LIES: Final[dict[str, tuple[bytes, str]]] = {
    "hello: no array": (_body(1, None), "hello must be an array of 7"),
    "hello: a field too many": (_body(1, [*_HELLO, 1]), "hello must be an array of 7"),
    "hello: version true": (_body(1, _with(_HELLO, 0, True)), "hello.version must be an integer"),
    "hello: version 1.0": (_body(1, _with(_HELLO, 0, 1.0)), "hello.version must be an integer"),
    "hello: version -1": (_body(1, _with(_HELLO, 0, -1)), "hello.version must be an integer"),
    "hello: cluster of bytes": (_body(1, _with(_HELLO, 1, b"team")), "hello.cluster must be text"),
    "hello: no name": (_body(1, _with(_HELLO, 2, "")), "hello.node must be text of 1 to 255"),
    "hello: a long name": (_body(1, _with(_HELLO, 2, "x" * 256)), "hello.node must be text of 1 to 255"),
    "hello: no source": (_body(1, _with(_HELLO, 3, "")), "hello.source must be text of 1"),
    "hello: a key of 31": (_body(1, _with(_HELLO, 4, b"x" * 31)), "hello.key must be 0 or 32 bytes"),
    "hello: a voucher of 1": (_body(1, _with(_HELLO, 5, b"x")), "hello.voucher must be 0 or 64 bytes"),
    "hello: 33 features": (_body(1, _with(_HELLO, 6, ["x"] * 33)), "hello.features must be an array of at most 32"),
    "welcome: no hash": (_body(2, [1, b"", 1, 1, NOTHING]), "welcome.hash must be 32 bytes"),
    "welcome: a hash of nothing": (_body(2, [0, NOTHING, 1, 1, NOTHING]), "welcome.hash must be 0 bytes"),
    "welcome: seq 2**63": (_body(2, [2**63, NOTHING, 1, 1, NOTHING]), "welcome.seq must be an integer"),
    "welcome: a short digest": (_body(2, [0, b"", 1, 1, b"x"]), "welcome.digest must be 32 bytes"),
    "busy: for ever": (_body(3, [2**40]), "busy must be an integer from 0 to 86400000"),
    "goodbye: a long text": (_body(4, ["x", "x" * 1025]), "exceeds max_str_len|goodbye.text must be text"),
    "compare: too many parts": (_body(5, [1] * 4095), "heads: 4,095 parts|must not come|array"),
    "want: no pair": (_body(6, [["bob"]]), "want must be an array of 2"),
    "want: after -1": (_body(6, [["bob", -1]]), "want must be an integer from 0"),
    "want: after 2**63": (_body(6, [["bob", 2**63]]), "want must be an integer from 0"),
    "unwant: no text": (_body(7, [7]), "unwant must be text"),
    "have: seq 0": (_body(8, [["bob", 0]]), "have must be an integer from 1"),
    "have: seq 2**63": (_body(8, [["bob", 2**63]]), "have must be an integer from 1"),
    "have: nobody": (_body(8, [["", 1]]), "have must be text of 1"),
    "deltas: no source": (frame(9, b"\0" + struct.pack(">QI", 1, 1) + b"x"), "deltas.source must be text of 1"),
    "deltas: a source cut short": (frame(9, b"\xff" + b"x" * 9), "deltas: error"),
    "deltas: no UTF-8": (frame(9, b"\1\xff" + struct.pack(">QI", 1, 1)), "deltas: UnicodeDecodeError"),
    "deltas: seq 0": (frame(9, b"\1x" + struct.pack(">QI", 0, 1)), "deltas.seq must be an integer from 1"),
    "deltas: seq 2**63": (frame(9, b"\1x" + struct.pack(">QI", 2**63, 1)), "deltas.seq must be an integer"),
    "deltas: count 0": (frame(9, b"\1x" + struct.pack(">QI", 1, 0)), "deltas.count must be an integer from 1"),
    "deltas: count 2**32": (frame(9, b"\1x" + struct.pack(">QI", 1, 2**32 - 1)), "deltas.count must be an integer"),
    "head: seq 0": (_body(10, _with(_HEAD, 1, 0)), "head.seq must be an integer from 1"),
    "head: a short hash": (_body(10, _with(_HEAD, 2, b"x")), "head.hash must be 32 bytes"),
    "head: key, and no signature": (_body(10, _with(_HEAD, 4, b"")), "head.signature must be 64 bytes"),
    "head: signature, and no key": (_body(10, _with(_HEAD, 3, b"")), "head.signature must be 0 bytes"),
    "commit: 0": (_body(11, [0]), "commit must be an integer from 1"),
    "ack: 0": (_body(12, [0, []]), "ack.number must be an integer from 1"),
    "below: floor 0": (_body(13, ["", [["bob", 0]]]), "below.items must be an integer from 1"),
    "alive: total -1": (_body(14, [1, -1, NOTHING]), "alive.total must be an integer"),
    "alive: a long digest": (_body(14, [1, 1, b"x" * 33]), "alive.digest must be 32 bytes"),
    "total: 2**64 - 1 and -1": (_body(15, [2**64 - 1, -1]), "total.size_bytes must be an integer"),
}


PACKED_LIES: Final[dict[str, tuple[bytes, str]]] = {
    "no zlib": (b"x" * 40, "packed: Error"),
    "nothing": (b"", "packed: it ends too early"),
    "bytes behind the end": (zlib.compress(encode(Commit(1))) + b"x", "packed: bytes behind the end"),
    "another checksum": (zlib.compress(encode(Commit(1)))[:-1] + b"x", "packed: Error"),
    "a bomb": (zlib.compress(bytes(1 << 24), 9), "packed: more than 262,144 bytes of frames"),
    "a little too much": (
        zlib.compress(encode(Commit(1)) * (messages.FRAME_BYTES // 7 + 1)),
        "packed: more than 262,144 bytes",
    ),
    "half a prefix": (zlib.compress(encode(Commit(1)) + b"\0\0"), "packed: the last frame is not whole"),
    "half a frame": (zlib.compress(encode(Commit(1))[:-1]), "packed: the last frame is not whole"),
    "a heartbeat": (zlib.compress(encode(Alive(1, 1, bytes(32)))), "packed: a message of type 14"),
    "itself": (zlib.compress(encode(Packed(zlib.compress(encode(Commit(1)))))), "packed: a message of type 16"),
    "a type of 99": (zlib.compress(frame(99, b"")), "type of a message must be 1 to 16, not 99"),
    "a frame of 4 GiB": (zlib.compress(frame(11, b"", 2**32 - 1)), "frame of 4,294,967,295 bytes; the limit is"),
}
"""What is not packed as an honest node does, and why it is refused."""


def malformed() -> Iterator[Case]:
    """Bytes that no state takes."""
    for name, (data, reason) in PLAIN_LIES.items():
        for state in ALL_STATES:
            yield Case(f"{name} ({state.__name__})", saying(state, data), ProtocolError, reason, takes=came(state))
    for name, (data, reason) in FIELD_LIES.items():
        for state in (greeting, opened):
            if len(data) < messages.HELLO_BYTES or state is opened:
                yield Case(f"{name} ({state.__name__})", saying(state, data), ProtocolError, reason)
    for name, (data, reason) in PACKED_LIES.items():
        for state in OPEN:
            yield Case(
                f"packed: {name} ({state.__name__})",
                saying(state, Packed(data)),
                ProtocolError,
                reason,
                takes=came(state),
            )


EACH: Final[dict[str, Message | bytes]] = {
    "HELLO": Hello(1, "team", "mallory", "mallory", CheapKey("mallory").key),
    "WELCOME": Welcome(0, b"", 0, 0, NOTHING),
    "BUSY": Busy(5),
    "COMPARE": Compare(()),
    "WANT": Want((("bob", 0),)),
    "UNWANT": Unwant(("bob",)),
    "HAVE": Have((("bob", 9),)),
    "DELTAS": joined(encode_run("bob", 1, [build("bob", 1, 5, None).record])),
    "HEAD": _body(10, _HEAD),
    "COMMIT": Commit(1),
    "ACK": Ack(1, ()),
    "BELOW": Below("", (("bob", 1),)),
    "ALIVE": Alive(0, 0, NOTHING),
    "TOTAL": Total(1, 1),
    "PACKED": Packed(zlib.compress(encode(Commit(1)))),
}
_OPENING: Final = {"HELLO", "WELCOME", "BUSY"}
TURNS: Final = ((greeting, {"HELLO", "BUSY"}), (welcoming, {"WELCOME", "BUSY"}), (opened, EACH.keys() - _OPENING))


def out_of_turn() -> Iterator[Case]:
    """Each message where it must not come."""
    for state, allowed in TURNS:
        for name in sorted(EACH.keys() - allowed):
            reason = f"{name} must not come while {'open' if state is opened else state.__name__}"
            yield Case(f"{name} ({state.__name__})", saying(state, EACH[name]), ProtocolError, reason)


def _greeting(**changes: Any) -> Play:
    async def play(foe: Foe) -> None:
        await foe.say(foe.hello(**changes))

    return play


async def says_the_same_again(foe: Foe) -> None:
    """The node's own HELLO, sent back."""
    await foe.say(await foe.listen(Hello))


WHO: Final = (
    Case("another version", _greeting(version=2), SessionRefused, "'mallory' speaks version 2 of the protocol"),
    Case("version 0", _greeting(version=0), SessionRefused, "'mallory' speaks version 0 of the protocol"),
    Case("another cluster", _greeting(cluster="others"), SessionRefused, "'mallory' is of cluster 'others'"),
    Case("this node's name", _greeting(node="alice"), SessionRefused, "'alice' is this node's own name"),
    Case("its own greeting", says_the_same_again, SessionRefused, "'alice' is this node's own name"),
    Case("another key", _greeting(), LinkRefused, "another key than the one its link proved", key=b"k" * 32),
    Case("no key", _greeting(key=b""), LinkRefused, "another key than the one its link proved", key=b"k" * 32),
    Case("a peer's name", _greeting(node="bob"), LinkRefused, "'bob' came with key .* before"),
)
