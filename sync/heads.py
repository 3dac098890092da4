"""What is held of each source, with digests over ranges of sources: what two nodes compare.

A source's *place* is BLAKE2b of its name, 8 bytes: 16 hex digits. A *range* is a prefix of a place, 0 to 16 digits,
and holds every source whose place begins with it; it has 16 parts, one for each next digit. Its digest, 32 bytes, is

* of a range without sources: zeros;
* of up to `LEAF_MAX` sources (or 16 digits): BLAKE2b over its entries in order of place, then name, each as
  size of the name (1) | name | seq (8, big endian) | chain hash (32);
* of more: BLAKE2b over the digests of its 16 parts.

Which of these holds depends on nothing but what the range holds, so two nodes with equal entries have equal digests
whatever the order they came in, and no peer can make unlike ranges look alike without breaking the hash.

This file knows no peer (see `comparison`) and no I/O.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Final, NamedTuple

import attrs

from deltalog.codec import HASH_BYTES
from deltalog.delta import SEQ_MAX, Limits, check_source
from deltalog.errors import UsageError

FAN_OUT: Final = 16
DIGITS_MAX: Final = 16
"""Digits of a place. A range of so many is not split any more; two sources in one are a collision of 64 bits."""
LEAF_MAX: Final = 32
"""Sources in a range that is not split: one change hashes again at most so many entries."""

_PLACE_BYTES: Final = DIGITS_MAX // 2
_EMPTY: Final = bytes(32)
_HEX: Final = b"0123456789abcdef".ljust(256)
_VALUE: Final = struct.Struct(f">Q{HASH_BYTES}s")
_LIMITS: Final = Limits()

_leaf_state = blake2b(digest_size=32, person=b"deltalog heads")
_node_state = blake2b(digest_size=32, person=b"deltalog ranges")
_place_state = blake2b(digest_size=_PLACE_BYTES, person=b"deltalog place")


class Entry(NamedTuple):
    """What one node holds of one source."""

    source: str
    seq: int
    """Highest seq held; 0: nothing."""
    hash: bytes
    """Chain hash behind it; empty for nothing."""


@attrs.define
class _Node:
    """A range: the keys in it, ascending, or its 16 parts."""

    keys: list[bytes]
    parts: list[_Node | None] | None = None
    count: int = 0
    digest: bytes | None = None
    """None: not computed since the last change in the range."""


class HeadsIndex:
    """source -> (seq, chain hash), with digests over ranges of sources.

    A key is place (8) | name, so that keys ascend as ranges do. Costs about 230 bytes a source (with names of 20
    bytes); a `put` a few microseconds; a digest hashes again only what changed.
    """

    __slots__ = ("_root", "_values")

    def __init__(self) -> None:
        self._root = _Node([])
        self._values: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._values)

    def put(self, source: str, seq: int, hash_: bytes) -> bool:
        """Set what is held of a source; return whether that is new. Raises `UsageError` for a value out of range."""
        name = check_source(source, _LIMITS)
        if type(seq) is not int or not 0 < seq <= SEQ_MAX:
            raise UsageError(f"seq of source {source!r} must be an integer from 1 to {SEQ_MAX}, not {seq!r}")
        if type(hash_) is not bytes or len(hash_) != HASH_BYTES:
            raise UsageError(f"hash of source {source!r} must be {HASH_BYTES} bytes")
        key, value = _key(name), _VALUE.pack(seq, hash_)
        known = self._values.get(key)
        if known == value:
            return False
        self._values[key] = value
        self._touch(key, 1 if known is None else 0)
        return True

    def drop(self, source: str) -> bool:
        """Forget a source; return whether it was there. Digests are then as if it had never come."""
        key = key_of(source)
        if self._values.pop(key, None) is None:
            return False
        path, node = [], self._root
        while True:
            node.digest = None
            node.count -= 1
            path.append(node)
            if node.parts is None:
                break
            part = node.parts[_digit(key, len(path) - 1)]
            assert part is not None, "it is there"
            node = part
        node.keys.remove(key)
        for depth, each in enumerate(path):
            if each.parts is not None and each.count <= LEAF_MAX:
                each.keys, each.parts = list(_ascending(each, depth, b"")), None
                break
        return True

    def get(self, source: str) -> Entry | None:
        """Return what is held of a source, or None."""
        return self.at(key_of(source))

    def at(self, key: bytes) -> Entry | None:
        """Return the entry under a key, or None."""
        value = self._values.get(key)
        return None if value is None else Entry(source_of(key), *_VALUE.unpack(value))

    def digest(self, prefix: bytes = b"") -> bytes:
        """Return the digest of a range: of all there is, if not told otherwise."""
        node, inside = self._find(prefix)
        return self._digest_of(node) if inside is None else self._hash(inside)

    def part_digests(self, prefix: bytes) -> list[bytes]:
        """Return the digests of the 16 parts of a range."""
        node, inside = self._find(prefix)
        if inside is None and node.parts is not None:
            return self._digests_of(node.parts)
        digests = [_EMPTY] * FAN_OUT
        for digit, keys in _by_digit(node.keys if inside is None else inside, len(prefix)):
            digests[digit] = self._hash(keys)
        return digests

    def count(self, prefix: bytes) -> int:
        """Return how many sources a range holds."""
        node, inside = self._find(prefix)
        return node.count if inside is None else len(inside)

    def keys(self, prefix: bytes = b"", after: bytes = b"") -> Iterator[bytes]:
        """Yield the keys of a range beyond `after` (a key in it, or b""). The index must not change meanwhile."""
        node, inside = self._find(prefix)
        if inside is None:
            yield from _ascending(node, len(prefix), after)
        else:
            yield from inside[bisect_right(inside, after) :]

    def entries(self, prefix: bytes = b"", after: bytes = b"") -> Iterator[Entry]:
        """Yield the entries of a range beyond `after`, as `keys` does."""
        for key in self.keys(prefix, after):
            yield Entry(source_of(key), *_VALUE.unpack(self._values[key]))

    def _touch(self, key: bytes, new: int) -> None:
        """Mark what holds `key` as changed, and put it in if it is new."""
        node, depth = self._root, 0
        while True:
            node.digest = None
            node.count += new
            if node.parts is None:
                break
            digit = _digit(key, depth)
            part = node.parts[digit]
            if part is None:
                part = node.parts[digit] = _Node([])
            node, depth = part, depth + 1
        if new:
            insort(node.keys, key)
            _split(node, depth)

    def _find(self, prefix: bytes) -> tuple[_Node, list[bytes] | None]:
        """Return the node of a range; for a range within an unsplit one that, and the keys of the smaller."""
        node = self._root
        for digit in prefix:
            if node.parts is None:
                low, high = bounds(prefix)
                return node, node.keys[bisect_left(node.keys, low) : bisect_left(node.keys, high)]
            part = node.parts[digit]
            if part is None:
                return node, []
            node = part
        return node, None

    def _digest_of(self, node: _Node) -> bytes:
        if node.digest is None:
            node.digest = self._hash(node.keys) if node.parts is None else self._hash_parts(node.parts)
        return node.digest

    def _hash_parts(self, parts: Iterable[_Node | None]) -> bytes:
        state = _node_state.copy()
        state.update(b"".join(self._digests_of(parts)))
        return state.digest()

    def _digests_of(self, parts: Iterable[_Node | None]) -> list[bytes]:
        return [_EMPTY if part is None else self._digest_of(part) for part in parts]

    def _hash(self, keys: Sequence[bytes]) -> bytes:
        if not keys:
            return _EMPTY
        state, values = _leaf_state.copy(), self._values
        for key in keys:
            state.update(bytes((len(key) - _PLACE_BYTES,)) + key[_PLACE_BYTES:] + values[key])
        return state.digest()


# --------------------------------------------------------------------------------------------------------------- places


def key_of(source: str) -> bytes:
    """Return place | name of a source."""
    return _key(source.encode())


def source_of(key: bytes) -> str:
    """Return the source of a key."""
    return key[_PLACE_BYTES:].decode()


def bounds(prefix: bytes) -> tuple[bytes, bytes]:
    """Return (low, high): a range holds the keys with low <= key < high. No UTF-8 text has a byte of 0xFF."""
    digits = prefix.translate(_HEX).decode()
    return bytes.fromhex(digits.ljust(DIGITS_MAX, "0")), bytes.fromhex(digits.ljust(DIGITS_MAX, "f")) + b"\xff"


def _key(name: bytes) -> bytes:
    state = _place_state.copy()
    state.update(name)
    return state.digest() + name


def _digit(key: bytes, depth: int) -> int:
    byte = key[depth >> 1]
    return byte & 15 if depth & 1 else byte >> 4


def _by_digit(keys: Sequence[bytes], depth: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the keys (ascending) of each part of a range that has some."""
    for digit, part in groupby(keys, key=lambda key: _digit(key, depth)):
        yield digit, list(part)


def _split(node: _Node, depth: int) -> None:
    """Give a range that holds too much its parts, and those that still do theirs."""
    while node.count > LEAF_MAX and depth < DIGITS_MAX:
        parts: list[_Node | None] = [None] * FAN_OUT
        for digit, keys in _by_digit(node.keys, depth):
            parts[digit] = _Node(keys, count=len(keys))
        node.keys, node.parts = [], parts
        node, depth = max((part for part in parts if part is not None), key=lambda part: part.count), depth + 1


def _ascending(node: _Node, depth: int, after: bytes) -> Iterator[bytes]:
    if node.parts is None:
        yield from node.keys[bisect_right(node.keys, after) :]
        return
    first = _digit(after, depth) if after else 0
    for digit in range(first, FAN_OUT):
        part = node.parts[digit]
        if part is not None:
            yield from _ascending(part, depth + 1, after if digit == first else b"")
