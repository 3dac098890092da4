"""Every key of the audit instance, and the values that are not events, in bytes (numbers big endian).

    family      key                        value
    events      number (8)                 link (32) | event (see `event`)
    by_holder   term (8) | number (8)      offsets, below
    by_target   term (8) | number (8)      offsets
    by_action   term (8) | number (8)      offsets
    by_lock     term (8) | number (8)      offsets
    meta        text                       msgpack, then its check (see `deltalog.keys`)

A term is the first 8 bytes of BLAKE2b over what is indexed, so a key has a fixed size whatever text it stands for, and
the numbers of one term are one ascending run of keys: a question about a term is one range, and two terms are
intersected by jumping from run to run. Two texts may share a term by chance; whoever reads compares the event itself.

A row of an index holds all events of one batch under one term: its key has the number of the last of them, its value
for each of them, ascending, how far before the last it is (2 bytes, the last one's own 0 included). A batch of 500
events makes some hundred rows, not 4,000. Retention leaves rows that reach over the floor; what is below it is skipped.

What an event is found under in by_target, for `src/a/app.py:10-20`:

    = src/a/app.py:10-20     the target itself
    @ src/a/app.py           its path, whole or in part
    / src/a/    / src/       directories it is in (or is), at most `DIRECTORIES_MAX`, the topmost first

Rows of meta: `format`, `store_id`, `secret` (of the cursors' MAC), `head` (see `Head`), `run` (the last start and
whether it ended in order), `tokens` (fencing tokens reserved), and a `Checkpoint` under `checkpoint/` | number (8).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

import attrs

from audit.event import AuditEvent
from deltalog import keys
from deltalog.errors import DecodeError

EVENTS: Final = "events"
BY_HOLDER: Final = "by_holder"
BY_TARGET: Final = "by_target"
BY_ACTION: Final = "by_action"
BY_LOCK: Final = "by_lock"
META: Final = keys.META
INDEXES: Final = (BY_HOLDER, BY_TARGET, BY_ACTION, BY_LOCK)

FORMAT: Final = 1
"""Version of the key layout, kept in meta under `META_FORMAT`."""
META_FORMAT: Final = b"format"
META_STORE_ID: Final = b"store_id"
META_SECRET: Final = b"secret"
META_HEAD: Final = b"head"
META_RUN: Final = b"run"
META_TOKENS: Final = b"tokens"
META_CHECKPOINT: Final = b"checkpoint/"

NUMBER_MAX: Final = 2**63 - 1
LINK_BYTES: Final = 32
TERM_BYTES: Final = 8
DIRECTORIES_MAX: Final = 8
"""Directories above a target that it is found under: each costs a key of 16 bytes."""
PART_MARKS: Final = ":#"
"""What ends the path in a target; a path has neither, they are escaped in it."""

_NUMBER: Final = struct.Struct(">Q")
_ENTRY: Final = struct.Struct(f">{TERM_BYTES}sQ")

Term = tuple[str, bytes]
"""Index family, and a term in it."""


@attrs.frozen
class Head:
    """What the trail is now."""

    number: int = 0
    """Of the last event ever recorded."""
    timestamp: int = 0
    link: bytes = b""
    """Chain hash behind it."""
    size_bytes: int = 0
    """Of all events ever recorded."""
    floor: int = 0
    """Number up to which events were removed by retention."""
    floor_link: bytes = b""
    """Chain hash behind the floor."""
    floor_timestamp: int = 0
    floor_size_bytes: int = 0
    """Of all events up to the floor."""

    @property
    def count(self) -> int:
        """Events that are there."""
        return self.number - self.floor

    @property
    def held_bytes(self) -> int:
        """Bytes of the events that are there."""
        return self.size_bytes - self.floor_size_bytes


@attrs.frozen
class Checkpoint:
    """The trail as it was behind one event: what retention decides by, and a place `verify` holds against the chain."""

    number: int
    timestamp: int
    link: bytes
    size_bytes: int
    """Of all events ever recorded, up to this one."""


# -------------------------------------------------------------------------------------------------------------- events


def event_key(number: int) -> bytes:
    """Key in events."""
    return _NUMBER.pack(number)


def parse_event_key(key: bytes) -> int:
    """Number of an event; DecodeError if the key is none."""
    if len(key) != _NUMBER.size:
        raise DecodeError(f"{EVENTS} key: {len(key)} bytes, not {_NUMBER.size}")
    number: int = _NUMBER.unpack(key)[0]
    return number


def split_row(value: bytes) -> tuple[bytes, bytes]:
    """Link and event bytes of a value in events; DecodeError if it is too short for both."""
    if len(value) <= LINK_BYTES:
        raise DecodeError(f"{EVENTS} row: {len(value)} bytes")
    return value[:LINK_BYTES], value[LINK_BYTES:]


# ------------------------------------------------------------------------------------------------------------- indexes


def holder_term(holder_id: str) -> Term:
    """What events of a holder are found under."""
    return BY_HOLDER, _term(f"h{holder_id}")


def action_term(action: str) -> Term:
    """What events of an action are found under."""
    return BY_ACTION, _term(f"a{action}")


def lock_term(lock_id: str) -> Term:
    """What events of a lock are found under."""
    return BY_LOCK, _term(f"l{lock_id}")


def target_term(target: str) -> Term:
    """What events of exactly this target are found under."""
    return BY_TARGET, _term(f"={target}")


def path_term(path: str) -> Term:
    """What events of a path and of parts of it are found under."""
    return BY_TARGET, _term(f"@{path}")


def directory_term(directory: str) -> Term:
    """What events of a directory (which ends in "/") and of everything below it are found under."""
    return BY_TARGET, _term(f"/{directory}")


def path_of(target: str) -> str:
    """The path in a target's text, escaped as it is there."""
    for mark in PART_MARKS:
        target = target.partition(mark)[0]
    return target


def ancestors_of(path: str) -> list[str]:
    """Directories above a path, the topmost first."""
    found: list[str] = []
    at = path.find("/")
    while 0 <= at < len(path) - 1:
        found.append(path[: at + 1])
        at = path.find("/", at + 1)
    return found


def inside_term(directory: str) -> Term:
    """What events of a directory and of everything below it are found under; of a deep one, of more than that."""
    return directory_term(ancestors_of(f"{directory}x")[:DIRECTORIES_MAX][-1])


def terms_of(event: AuditEvent) -> list[Term]:
    """Everything an event is found under, each once."""
    terms = [action_term(event.action)]
    if event.holder_id:
        terms.append(holder_term(event.holder_id))
    if event.lock_id:
        terms.append(lock_term(event.lock_id))
    if event.target:
        terms += _target_terms(event.target)
    return terms


def rows_of(batch: Iterable[AuditEvent], first: int) -> dict[Term, list[int]]:
    """For each term the numbers of a batch's events that are found under it, ascending; `first` is the first's number.

    What `terms_of` says of each event; grouped before it is hashed, because neighbours share most of their terms.
    """
    by_value: dict[str, defaultdict[str, list[int]]] = {name: defaultdict(list) for name in _TERM_OF}
    actions, holders, locks, targets = by_value.values()
    for number, event in enumerate(batch, first):
        actions[event.action].append(number)
        holders[event.holder_id].append(number)
        locks[event.lock_id].append(number)
        targets[event.target].append(number)
    rows: defaultdict[Term, list[int]] = defaultdict(list)
    for name, terms_of_value in _TERM_OF.items():
        for value, numbers in by_value[name].items():
            for term in terms_of_value(value) if value else ():
                rows[term] += numbers
    for numbers in rows.values():
        numbers.sort()  # several targets stand under one directory
    return rows


@lru_cache(maxsize=4096)
def _target_terms(target: str) -> tuple[Term, ...]:
    path = path_of(target)
    return target_term(target), path_term(path), *map(directory_term, ancestors_of(f"{path}x")[:DIRECTORIES_MAX])


_TERM_OF: Final[Mapping[str, Callable[[str], tuple[Term, ...]]]] = {
    "action": lambda action: (action_term(action),),
    "holder_id": lambda holder_id: (holder_term(holder_id),),
    "lock_id": lambda lock_id: (lock_term(lock_id),),
    "target": _target_terms,
}
"""What each field of an event makes it found under."""


@lru_cache(maxsize=8192)
def _term(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=TERM_BYTES, person=b"audit term").digest()


def entry_key(term: bytes, number: int) -> bytes:
    """Key in an index of the row whose last event is `number`."""
    return _ENTRY.pack(term, number)


def parse_entry_key(key: bytes) -> tuple[bytes, int]:
    """Term and number of a key in an index; DecodeError if it is none."""
    if len(key) != _ENTRY.size:
        raise DecodeError(f"index key: {len(key)} bytes, not {_ENTRY.size}")
    term, number = _ENTRY.unpack(key)
    return term, number


def encode_offsets(numbers: Sequence[int]) -> bytes:
    """Value in an index of a row with these numbers, ascending."""
    if len(numbers) == 1:
        return b"\0\0"
    last = numbers[-1]
    return struct.pack(f">{len(numbers)}H", *[last - number for number in numbers])


def decode_offsets(key: bytes, value: bytes) -> list[int]:
    """Numbers of a row in an index, ascending; DecodeError if it is none."""
    _, last = parse_entry_key(key)
    count, rest = divmod(len(value), 2)
    if rest or not count:
        raise DecodeError(f"index row: {len(value)} bytes")
    numbers = [last - offset for offset in struct.unpack(f">{count}H", value)]
    if numbers[-1] != last or numbers[0] < 1 or any(a >= b for a, b in pairwise(numbers)):
        raise DecodeError("index row: its numbers do not ascend to that of its key")
    return numbers


# ---------------------------------------------------------------------------------------------------------------- meta


def encode_meta(key: bytes, value: Any) -> bytes:
    """Value in meta."""
    return keys.encode_meta(key, value)


def decode_meta(key: bytes, value: bytes) -> Any:
    """What stands in meta under `key`; DecodeError for any flipped bit."""
    return keys.decode_meta(key, value)


def encode_head(head: Head) -> bytes:
    """Value of the row `head`."""
    return encode_meta(META_HEAD, list(attrs.astuple(head)))


def decode_head(value: bytes) -> Head:
    """The row `head`; DecodeError for any flipped bit."""
    fields = decode_meta(META_HEAD, value)
    if not isinstance(fields, list) or len(fields) != len(attrs.fields(Head)):
        raise DecodeError(f"{META} row {META_HEAD!r}: {len(attrs.fields(Head))} fields make one")
    head = Head(*fields)
    if head.floor > head.number:
        raise DecodeError(f"{META} row {META_HEAD!r}: floor {head.floor} is above its number {head.number}")
    return head


def checkpoint_key(number: int) -> bytes:
    """Key of a checkpoint in meta."""
    return META_CHECKPOINT + _NUMBER.pack(number)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Value of a checkpoint in meta."""
    return encode_meta(
        checkpoint_key(checkpoint.number), [checkpoint.timestamp, checkpoint.link, checkpoint.size_bytes]
    )


def decode_checkpoint(key: bytes, value: bytes) -> Checkpoint:
    """A checkpoint; DecodeError for any flipped bit."""
    fields = decode_meta(key, value)
    number = parse_event_key(key[len(META_CHECKPOINT) :])
    if not isinstance(fields, list) or len(fields) != 3:
        raise DecodeError(f"{META} row {key!r} is no checkpoint")
    return Checkpoint(number, *fields)
