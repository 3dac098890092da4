"""The comparison of two indexes of heads: both sides learn which sources differ, and what the other holds of them.

A comparison goes to and fro, one message each way in turn; a message is a list of parts (here as they travel):

    [1, range, digests]   the first 16 bytes of the digests of its 16 parts at my place: what differs?
    [2, range, entries]   all that I hold in it: what differs?
    [3, range, entries]   what I hold otherwise than you said: [name, seq, hash], or [name, 0, b""] for "nothing"
    [4]                   there is more: answer, even with an empty message. Stands last

    range: one byte of 0..15 for each digit. entries: ascending by place, then name, each named once in a range.

One that is asked about a range answers about those parts that differ: with a question of its own (1, or 2 if it holds
few), or with what it holds if the asker said that it holds nothing. What is not mentioned is equal. The one who starts
asks about everything. The last message is one that asks nothing and promises no more, sent or got.

Nothing a peer says is believed: entries are claims, handed out as `learnt`. A range may be answered once and only if
it was asked about, so the number of messages is bounded by the size of this node's own index and by `unknown_max`.

This file knows no session, no clock and no I/O. The index may change between two messages.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import attrs

from deltalog.codec import HASH_BYTES
from deltalog.delta import SEQ_MAX, Limits, check_source
from deltalog.errors import UsageError
from sync.errors import ProtocolError
from sync.heads import DIGITS_MAX, FAN_OUT, Entry, HeadsIndex, bounds, key_of, source_of

ASK_ENTRIES_MAX: Final = 16
"""Entries that are sent at once rather than 16 digests. More saves a round at the end and costs bytes: with 32, 1,000
changed sources among 100,000 cost 1,370 bytes each."""
FEW_SOURCES_MAX: Final = 256
"""Sources of an index that is sent whole, without any digest: one round, at most some 20 KiB with common names."""
ENTRIES_MAX: Final = 256
"""Entries in one part."""
PARTS_MAX: Final = 1000
"""Parts in one message. With `ENTRIES_MAX` it keeps every msgpack array below 1,024 items."""
MESSAGE_BYTES: Final = 200 << 10
"""Default size of a message, encoded: below a frame of 256 KiB."""
MESSAGE_BYTES_MIN: Final = 16 << 10
"""The largest part that cannot be cut: `ASK_ENTRIES_MAX` entries with names of 255 bytes are under 10 KiB."""
UNKNOWN_MAX: Final = 1_000_000
"""Sources unknown here that a peer may name in one comparison."""

DIGESTS: Final = 1
ENTRIES: Final = 2
ANSWER: Final = 3
MORE: Final = 4
_FIELDS: Final = {DIGESTS: 2, ENTRIES: 2, ANSWER: 2, MORE: 0}

_SHORT: Final = 16
"""Bytes of a digest in a part: enough that unlike ranges never look alike, in half the bytes."""
_EMPTY: Final = bytes(_SHORT)
_LIMITS: Final = Limits()
_PART_BYTES: Final = 32
"""At most what an encoded part weighs beside its entries or digests."""
_ENTRY_BYTES: Final = 48
"""At most what an encoded entry weighs beside the bytes of its name."""


@attrs.frozen
class Part:
    """One statement about a range, as drawn above."""

    kind: int
    prefix: bytes = b""
    digests: bytes = b""
    entries: tuple[Entry, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its encoding, or a few more."""
        entries = sum(len(entry.source.encode()) + _ENTRY_BYTES for entry in self.entries)
        return _PART_BYTES + len(self.digests) + entries


class Step(NamedTuple):
    """What follows from a message."""

    answer: list[Part] | None
    """What to send, even if it is empty; None: nothing."""
    learnt: list[Entry]
    """What the peer holds of sources where it differs from here; seq 0: nothing."""
    done: bool
    """Whether nothing more is to come. All that was not learnt was equal."""


@attrs.define
class _Tell:
    """A range to tell about: what is held here otherwise than the peer said."""

    prefix: bytes
    told: dict[bytes, Entry]
    after: bytes = b""
    """Key up to which it was told."""


class Comparison:
    """One comparison with one peer, on either side of it.

    The side that begins calls `start` and sends what it returns. Both then give each message that arrives to `receive`
    and send its answer. If both begin at once those are two comparisons: a message must say who began its own.
    """

    __slots__ = ("_done", "_index", "_open", "_queue", "_size_bytes", "_streams", "_unknown", "_unknown_max")

    def __init__(
        self, index: HeadsIndex, *, message_bytes: int = MESSAGE_BYTES, unknown_max: int = UNKNOWN_MAX
    ) -> None:
        """`message_bytes`: bound of an encoded message. `unknown_max`: new sources that the peer may name."""
        if message_bytes < MESSAGE_BYTES_MIN:
            raise UsageError(f"message_bytes must be at least {MESSAGE_BYTES_MIN:,}, not {message_bytes:,}")
        self._index = index
        self._size_bytes = message_bytes
        self._unknown_max = unknown_max
        self._unknown = 0
        self._done = False
        self._queue: deque[bytes | _Tell] = deque()
        """What is to be sent: ranges to ask about, and to tell about."""
        self._open: set[bytes] = {b""}
        """Ranges that the peer may ask about: it was told that there is something in them."""
        self._streams: dict[bytes, bytes] = {}
        """Ranges that the peer may tell about, and the last key that it told."""

    def start(self) -> list[Part]:
        """Return the first message. Call it at most once, before any `receive`, on one side only."""
        assert b"" in self._open, "a comparison is started once, by one side"
        self._open.clear()
        self._queue.append(b"")
        return self._message([])

    def receive(self, parts: Sequence[Part]) -> Step:
        """Take a message in; say what to send, what was learnt, and whether that was all.

        Raises `ProtocolError` for parts that nobody asked for; the comparison is then over.
        """
        if self._done:
            raise ProtocolError("heads: a message after the end of the comparison")
        if len(parts) > PARTS_MAX:
            raise ProtocolError(f"heads: {len(parts):,} parts in one message; the limit is {PARTS_MAX:,}")
        more = bool(parts) and parts[-1].kind == MORE
        told = parts[:-1] if more else parts
        if (more or self._open == {b""}) and not told:
            raise ProtocolError("heads: a message that says nothing and is not the last")
        learnt: list[Entry] = []
        for part in told:
            self._take(part, learnt)
        answer = self._message(learnt)
        self._done = not more and not _wants_answer(answer)
        return Step(answer if answer or _wants_answer(parts) else None, learnt, self._done)

    # ---- what the peer said

    def _take(self, part: Part, learnt: list[Entry]) -> None:
        if part.kind == ANSWER:
            self._take_answer(part, learnt)
        elif part.kind not in (DIGESTS, ENTRIES):
            raise ProtocolError(f"heads: a part of kind {part.kind} in the middle of a message")
        elif part.prefix not in self._open:
            raise ProtocolError(f"heads: range {part.prefix.hex()!r} was not asked about, or is answered already")
        else:
            self._open.remove(part.prefix)
            if part.kind == DIGESTS:
                self._take_digests(part)
            else:
                self._count_unknown(part.entries)
                self._queue.append(_Tell(part.prefix, {key_of(entry.source): entry for entry in part.entries}))

    def _take_digests(self, part: Part) -> None:
        for digit, mine in enumerate(self._index.part_digests(part.prefix)):
            prefix, theirs = part.prefix + bytes((digit,)), part.digests[digit * _SHORT : (digit + 1) * _SHORT]
            if theirs != mine[:_SHORT]:
                self._queue.append(_Tell(prefix, {}) if theirs == _EMPTY else prefix)

    def _take_answer(self, part: Part, learnt: list[Entry]) -> None:
        last = self._streams.get(part.prefix)
        if last is None:
            raise ProtocolError(f"heads: range {part.prefix.hex()!r} was not asked about")
        if not part.entries or key_of(part.entries[0].source) <= last:
            raise ProtocolError(f"heads: entries of range {part.prefix.hex()!r} are none, or do not ascend")
        self._streams[part.prefix] = key_of(part.entries[-1].source)
        self._count_unknown(part.entries)
        learnt += [entry for entry in part.entries if self._index.get(entry.source) != entry]

    def _count_unknown(self, entries: Sequence[Entry]) -> None:
        unknown = [entry for entry in entries if self._index.get(entry.source) is None]
        if any(not entry.seq for entry in unknown):
            raise ProtocolError("heads: an answer about a source that nobody holds")
        self._unknown += len(unknown)
        if self._unknown > self._unknown_max:
            raise ProtocolError(f"heads: more than {self._unknown_max:,} sources that are unknown here")

    # ---- what to say

    def _message(self, learnt: list[Entry]) -> list[Part]:
        """Take from the queue what one message holds. To tell a difference is to learn it."""
        parts: list[Part] = []
        room = self._size_bytes - _PART_BYTES
        while self._queue and len(parts) < PARTS_MAX - 1:
            task = self._queue[0]
            if isinstance(task, bytes):
                part, finished, full = self._question(task), True, False
                if part.size_bytes > room:
                    break
                self._await_answer(part)
            else:
                part, finished = self._tell(task, room, learnt)
                full = not finished and len(part.entries) < ENTRIES_MAX
            if part.kind != ANSWER or part.entries:
                parts.append(part)
                room -= part.size_bytes
            if full:
                break
            if finished:
                self._queue.popleft()
        if self._queue:
            parts.append(Part(MORE))
        return parts

    def _question(self, prefix: bytes) -> Part:
        """Ask about a range: with all of it if that is little, else with digests."""
        few = FEW_SOURCES_MAX if not prefix else ASK_ENTRIES_MAX
        if self._index.count(prefix) <= few or len(prefix) == DIGITS_MAX:
            part = Part(ENTRIES, prefix, entries=tuple(islice(self._index.entries(prefix), ENTRIES_MAX)))
            if prefix or part.size_bytes <= self._size_bytes - _PART_BYTES:
                return part
        return Part(DIGESTS, prefix, b"".join([digest[:_SHORT] for digest in self._index.part_digests(prefix)]))

    def _await_answer(self, question: Part) -> None:
        """Note what the peer may say to a question."""
        if question.kind == ENTRIES:
            self._streams[question.prefix] = b""
            return
        for digit in range(FAN_OUT):
            prefix = question.prefix + bytes((digit,))
            if question.digests[digit * _SHORT : (digit + 1) * _SHORT] == _EMPTY:
                self._streams[prefix] = b""
            else:
                self._open.add(prefix)

    def _tell(self, task: _Tell, room: int, learnt: list[Entry]) -> tuple[Part, bool]:
        """Return as much of a range as there is room for, and whether that was all of it."""
        entries: list[Entry] = []
        room -= _PART_BYTES
        told = sorted(key for key in task.told if key > task.after)
        for key in heapq.merge(self._index.keys(task.prefix, task.after), told):
            mine, theirs = self._index.at(key), task.told.get(key)
            if mine != theirs and key != task.after:
                nothing = Entry(source_of(key), 0, b"")
                room -= len(key) + _ENTRY_BYTES
                if room < 0 or len(entries) == ENTRIES_MAX:
                    return Part(ANSWER, task.prefix, entries=tuple(entries)), False
                entries.append(mine or nothing)
                learnt.append(theirs or nothing)
            task.after = key
        return Part(ANSWER, task.prefix, entries=tuple(entries)), True


def _wants_answer(parts: Sequence[Part]) -> bool:
    return any(part.kind != ANSWER for part in parts)


# ------------------------------------------------------------------------------------------------------------- encoding


def encode(parts: Sequence[Part]) -> list[Any]:
    """Return a message as lists, ints, texts and bytes."""
    return [_to_list(part) for part in parts]


def decode(value: object) -> list[Part]:
    """Return the message that `encode` made. Raises `ProtocolError`, naming the field, for anything else."""
    return [_to_part(item) for item in _items("parts", value, PARTS_MAX)]


def _to_list(part: Part) -> list[Any]:
    if part.kind == MORE:
        return [MORE]
    if part.kind == DIGESTS:
        return [DIGESTS, part.prefix, part.digests]
    return [part.kind, part.prefix, [list(entry) for entry in part.entries]]


def _to_part(value: object) -> Part:
    kind, *fields = _items("part", value, 3) or (None,)
    if type(kind) is not int or len(fields) != _FIELDS.get(kind):
        raise ProtocolError(f"heads: a part of kind {_shown(kind)} with {len(fields)} fields; kinds are 1 to {MORE}")
    if kind == MORE:
        return Part(MORE)
    prefix, content = fields
    digits_max = DIGITS_MAX if kind != DIGESTS else DIGITS_MAX - 1
    if type(prefix) is not bytes or len(prefix) > digits_max or any(digit >= FAN_OUT for digit in prefix):
        raise ProtocolError(f"heads: a range must be up to {digits_max} digits of 0 to 15, not {_shown(prefix)}")
    if kind != DIGESTS:
        return Part(kind, prefix, entries=_to_entries(kind, prefix, content))
    if type(content) is not bytes or len(content) != FAN_OUT * _SHORT:
        raise ProtocolError(f"heads: digests must be {FAN_OUT * _SHORT} bytes, not {_shown(content)}")
    return Part(DIGESTS, prefix, content)


def _to_entries(kind: int, prefix: bytes, value: object) -> tuple[Entry, ...]:
    last, high = bounds(prefix)
    entries: list[Entry] = []
    for item in _items("entries", value, ENTRIES_MAX):
        entry, key = _to_entry(item)
        if not last <= key < high or (entries and key == last):
            raise ProtocolError(f"heads: source {entry.source!r} is out of its range or order")
        if not entry.seq and kind != ANSWER:
            raise ProtocolError(f"heads: seq of source {entry.source!r} is 0; that stands in answers only")
        entries.append(entry)
        last = key
    return tuple(entries)


def _to_entry(value: object) -> tuple[Entry, bytes]:
    fields = _items("entry", value, 3)
    if len(fields) != 3:
        raise ProtocolError(f"heads: an entry must have 3 fields, not {len(fields)}")
    source, seq, hash_ = fields
    try:
        check_source(source, _LIMITS)
    except UsageError as error:
        raise ProtocolError(f"heads: {error}"[:300]) from error
    if type(seq) is not int or not 0 <= seq <= SEQ_MAX:
        raise ProtocolError(f"heads: seq must be an integer from 0 to {SEQ_MAX}, not {_shown(seq)}")
    if type(hash_) is not bytes or len(hash_) != (HASH_BYTES if seq else 0):
        raise ProtocolError(f"heads: hash must be {HASH_BYTES} bytes (none at seq 0), not {_shown(hash_)}")
    return Entry(source, seq, hash_), key_of(source)


def _items(field: str, value: object, limit: int) -> Sequence[Any]:
    """Return an array's items, or raise naming `field`."""
    if type(value) not in (list, tuple):
        raise ProtocolError(f"heads: {field} must be an array, not {type(value).__name__}")
    assert isinstance(value, list | tuple)
    if len(value) > limit:
        raise ProtocolError(f"heads: {len(value):,} {field}; the limit is {limit:,}")
    return value


def _shown(value: object) -> str:
    """What a peer sent, short enough for a line; nested values by their type only."""
    if isinstance(value, bytes | str):
        return repr(value[:20])
    return repr(value) if isinstance(value, int) else type(value).__name__
