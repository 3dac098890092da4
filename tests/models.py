"""Naive oracles: the same answers as the real thing, from the fewest lines, however slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import attrs

from deltalog.delta import Delta
from deltalog.keys import TimeEntry
from deltalog.version import Dot

# -------------------------------------------------------------------------------------------------------------- codec


def record_of(delta: Delta) -> bytes:
    """The encoding of a delta, field by field as the table in `codec` says."""
    kind, key = delta.kind.encode(), delta.key.encode()
    deps = b""
    for name in sorted(source.encode() for source in delta.deps):
        deps += bytes([len(name)]) + name + delta.deps[name.decode()].to_bytes(8, "big")
    numbers = ((len(delta.payload_bytes), 4), (len(kind), 2), (len(key), 2), (len(deps), 4), (delta.seq, 8))
    header = bytes([1, int(delta.erased)]) + b"".join(number.to_bytes(size, "big") for number, size in numbers)
    return header + delta.timestamp.to_bytes(8, "big") + deps + kind + key + delta.payload_bytes


# --------------------------------------------------------------------------------------------------------------- ring


@attrs.define
class Held:
    """One delta in the ring."""

    source: str
    seq: int
    record: bytes
    stored: bool = False


@attrs.define
class RingModel:
    """The ring as a list, oldest first. It never evicts by itself: a test tells it what the real one dropped."""

    held: list[Held] = attrs.field(factory=list)

    def push(self, source: str, seq: int, record: bytes) -> None:
        self.held.append(Held(source, seq, record))

    def pending(self) -> list[Held]:
        return [entry for entry in self.held if not entry.stored]

    def mark_stored(self, count: int) -> None:
        for entry in self.pending()[:count]:
            entry.stored = True

    def evict(self, count: int) -> list[Held]:
        """Drop the oldest; return them."""
        gone, self.held = self.held[:count], self.held[count:]
        return gone

    def run(self, source: str, after: int, until: int) -> list[bytes]:
        return [entry.record for entry in self.held if entry.source == source and after < entry.seq <= until]

    def replace(self, source: str, seq: int, record: bytes) -> None:
        for entry in self.held:
            if (entry.source, entry.seq) == (source, seq):
                entry.record = record

    def drop_below(self, source: str, floor: int) -> None:
        self.held = [entry for entry in self.held if entry.source != source or entry.seq > floor]

    def bytes(self) -> int:
        return sum(len(entry.record) for entry in self.held)


# -------------------------------------------------------------------------------------------------------------- inbox


@attrs.define
class InboxModel:
    """A log that applies what it can and keeps the rest in a set, looked through anew each time."""

    applied: list[Dot] = attrs.field(factory=list)
    waiting: set[Delta] = attrs.field(factory=set)

    def heads(self) -> dict[str, int]:
        heads: dict[str, int] = {}
        for source, seq in self.applied:
            heads[source] = max(seq, heads.get(source, 0))
        return heads

    def arrive(self, delta: Delta) -> None:
        if delta.dot not in self.applied:
            self.waiting.add(delta)
        while ready := [waiting for waiting in self.waiting if self._may_apply(waiting)]:
            self.applied += [waiting.dot for waiting in ready]
            self.waiting -= set(ready)

    def _may_apply(self, delta: Delta) -> bool:
        causes = {*delta.deps.items(), (delta.source, delta.seq - 1)}
        return all(seq == 0 or (source, seq) in self.applied for source, seq in causes)


# ---------------------------------------------------------------------------------------------------------- causality


def known_to(deltas: Iterable[Delta]) -> Mapping[Dot, frozenset[Dot]]:
    """Dot of each delta -> every dot it knew: predecessor and deps, theirs, and so on. Takes a whole history."""
    causes = {delta.dot: {Dot(*dep) for dep in delta.deps.items()} for delta in deltas}
    for source, seq in causes:
        if seq > 1:
            causes[Dot(source, seq)].add(Dot(source, seq - 1))
    while True:
        grown = {dot: known.union(*(causes[cause] for cause in known)) for dot, known in causes.items()}
        if grown == causes:
            return {dot: frozenset(known) for dot, known in causes.items()}
        causes = grown


def conflicts_of(deltas: Iterable[Delta]) -> set[tuple[Dot, Dot]]:
    """Every pair (earlier, later) on one key of which neither knew the other. Takes a whole history in order."""
    history = list(deltas)
    known = known_to(history)
    return {
        (earlier.dot, later.dot)
        for number, later in enumerate(history)
        for earlier in history[:number]
        if later.key and earlier.key == later.key and earlier.source != later.source
        if earlier.dot not in known[later.dot]
    }


# --------------------------------------------------------------------------------------------------------------- keys


def sealed_row(family: str, key: bytes, row: bytes) -> bytes:
    """A row of the families that check themselves, with the check that belongs to it."""
    covered = family.encode() + b"\0" + len(key).to_bytes(8, "big") + key + row
    return row + blake2b(covered, digest_size=8).digest()


def touching(intervals: Iterable[TimeEntry], after: int, until: int) -> list[TimeEntry]:
    """The intervals that hold a timestamp with after < timestamp <= until."""
    return [entry for entry in intervals if entry.last > after and entry.first <= until]


# ------------------------------------------------------------------------------------------------------------ witness


def witness_slot(generation: int, body: bytes) -> bytes:
    """A slot of the witness, with the check that belongs to it."""
    number = generation.to_bytes(8, "big")
    check = blake2b(number + body, digest_size=16, person=b"deltalog witness").digest()
    return b"dlw1" + number + len(body).to_bytes(4, "big") + check + body
