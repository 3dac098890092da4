"""Payloads that cannot be encoded, and those that run code of their own while they are: never a wrong byte."""

from __future__ import annotations

import datetime as dt
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from enum import IntEnum, StrEnum
from typing import Any

import msgpack
import pytest

from deltalog.codec import Encoder
from deltalog.delta import NO_DEPS, Delta
from deltalog.errors import UsageError


def encode(payload: Any, *, encoder: Encoder | None = None) -> Delta:
    encoder = encoder if encoder is not None else Encoder()
    return encoder.encode("alice", 1, lambda: 5, NO_DEPS, "", "", payload)


# ------------------------------------------------------------------------------------- payloads that cannot be encoded


def self_containing() -> list[Any]:
    payload: list[Any] = []
    payload.append(payload)
    return payload


class SelfContaining(dict[str, Any]):
    """A dict of a subclass that contains itself."""

    def __init__(self) -> None:
        self["me"] = self


def deep(levels: int) -> list[Any]:
    payload: list[Any] = []
    for _ in range(levels):
        payload = [payload]
    return payload


class Failing(dict[str, Any]):
    """A dict that cannot be read."""

    def items(self) -> Any:
        raise RuntimeError("no items")


@pytest.mark.parametrize(
    "payload",
    [
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        {1, 2},
        frozenset(),
        2**64,
        -(2**63) - 1,
        "\ud800",
        ["\ud800"],
        object(),
        1j,
        range(3),
        self_containing(),
        SelfContaining(),
        deep(1025),
        Failing(a=1),
        memoryview(b"abcdef")[::2],
        OrderedDict(a=object()),
        OrderedDict(a=2**64),
        OrderedDict(a="\ud800"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_payload_that_msgpack_cannot_hold_is_refused_and_the_encoder_works_on(payload: Any, wrapped: bool) -> None:
    encoder = Encoder()
    with pytest.raises(UsageError, match=r"^payload cannot be encoded as msgpack: \S") as caught:
        encode(["before", payload] if wrapped else payload, encoder=encoder)
    assert caught.value.__cause__ is not None
    assert len(str(caught.value)) <= 300
    assert encode(["after"], encoder=encoder).payload == ["after"]


def test_the_deepest_payload_that_is_taken_can_be_read() -> None:
    nested, levels = encode(deep(1023)).payload, 0
    while nested:
        (nested,), levels = nested, levels + 1
    assert levels == 1023


# ------------------------------------------------------------------------------------- payloads that run their own code


class Reentrant(dict[str, Any]):
    """A dict that asks for another encoding while it is encoded."""

    def __init__(self, encoder: Encoder, caught: list[Exception]) -> None:
        super().__init__(a=1, b=2)
        self.encoder, self.caught = encoder, caught

    def items(self) -> Any:
        try:
            encode({"inner": 1}, encoder=self.encoder)
        except UsageError as error:
            self.caught.append(error)
        return super().items()


def test_a_payload_that_encodes_another_one_is_whole_and_the_other_is_refused() -> None:
    """With a packer that was entered twice, the inner delta got the outer one's bytes and the outer lost its own."""
    encoder, caught = Encoder(), list[Exception]()
    payload = ["before", Reentrant(encoder, caught), "after"]
    assert encode(payload, encoder=encoder).payload == ["before", {"a": 1, "b": 2}, "after"]
    assert [str(error) for error in caught] == [
        "payload cannot be encoded while another one is, by which it is asked for"
    ]
    assert encode([1], encoder=encoder).payload == [1]


def test_a_payload_whose_nested_encoding_fails_is_refused_and_the_encoder_works_on() -> None:
    class Careless(dict[str, Any]):
        def items(self) -> Any:
            return encode(1, encoder=encoder)

    encoder = Encoder()
    with pytest.raises(UsageError, match="^payload cannot be encoded while another one is"):
        encode([Careless()], encoder=encoder)
    assert encode([1], encoder=encoder).payload == [1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_error_in_the_middle_leaves_nothing_in_the_next_delta(error: type[BaseException]) -> None:
    class Raising(dict[str, Any]):
        def items(self) -> Any:
            yield "a", 1
            raise error

    encoder = Encoder()
    with pytest.raises(UsageError if issubclass(error, Exception) else error):
        encode([1, "x", Raising(a=1, b=2)], encoder=encoder)
    assert encode([1], encoder=encoder).record == encode([1]).record


class Hiding(dict[str, int]):
    """A dict that shows fewer items than it has."""

    def items(self) -> Any:
        return [(key, value) for key, value in super().items() if not key.startswith("_")]


class Longer(dict[str, int]):
    """A dict that says it has more items than it has."""

    def __len__(self) -> int:
        return 7


class Doubled(list[int]):
    """A list that gives more than it holds."""

    def __iter__(self) -> Iterator[int]:
        for value in super().__iter__():
            yield from (value, value)


class Loud(str):
    """A text that encodes as another one."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.upper().encode(encoding, errors)


class Vague(int):
    """A number that compares as it likes."""

    def __gt__(self, other: object) -> bool:
        return True

    def __int__(self) -> int:
        return 99

    __index__ = __int__


class Colour(IntEnum):
    RED = 4


class Shape(StrEnum):
    ROUND = "o"


class Weight(float):
    """A float of its own kind, as NumPy's are."""

    def __float__(self) -> float:
        return 99.0


class Blob(bytes):
    """Bytes of their own kind."""

    def __bytes__(self) -> bytes:
        return b"99"


class Buffer(bytearray):
    """A bytearray of its own kind."""


Point = namedtuple("Point", "x y")  # noqa: PYI024  # the untyped kind is what is meant


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        (Hiding(a=1, _b=2), {"a": 1}),
        (Longer(a=1), {"a": 1}),
        (Doubled([1, 2]), [1, 1, 2, 2]),
        (Loud("abc"), "abc"),
        (Vague(-5), -5),
        (Colour.RED, 4),
        (Shape.ROUND, "o"),
        (Weight(1.5), 1.5),
        (Blob(b"b"), b"b"),
        (Buffer(b"b"), b"b"),
        (bytearray(b"b"), b"b"),
        (memoryview(b"b"), b"b"),
        (Point(1, (2, 3)), [1, [2, 3]]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({Shape.ROUND: 1, Point(1, 2): 2, Colour.RED: 3}, {"o": 1, (1, 2): 2, 4: 3}),
        ([True, None, msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2)],) * 2,
    ],
)
def test_instances_of_subclasses_are_encoded_as_what_they_show(payload: Any, read: Any) -> None:
    for beside in ([], [Point(0, 0)]):
        back = encode([payload, *beside, "after"]).payload
        assert back == [read, *map(list, beside), "after"]
        assert type(back[0]) is type(read)
        if isinstance(read, dict):
            assert list(back[0]) == list(read)
