"""What a parent knows of a log from what its children said, and what must hold of the log they left behind.

Lives here: the invariants I1, I2 and I5 as a crash test sees them, from outside. Does not know: how the child ended.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import attrs

from deltalog import chain
from deltalog.clock import pack
from deltalog.codec import CHAINED_FROM, build
from deltalog.delta import Delta

SOURCE: Final = "alice"
"""The source that the logs of the crash tests are made for."""
REMOTE_SOURCES: Final = ("bob", "carol", "dave:\n\0")
REMOTE_DELTAS: Final = 1500
_REMOTE_MS: Final = 1_700_000_000_000


def remote_history() -> tuple[Delta, ...]:
    """What other nodes wrote, in an order in which it can be received; the same in each process."""
    chance = random.Random("remote")
    heads: dict[str, int] = {}
    deltas = []
    for number in range(REMOTE_DELTAS):
        source = chance.choice(REMOTE_SOURCES)
        heads[source] = heads.get(source, 0) + 1
        deps = {other: seq for other, seq in heads.items() if other != source and chance.random() < 0.3}
        payload = chance.randbytes(chance.choice((5, 60, 400)))
        deltas.append(build(source, heads[source], pack(_REMOTE_MS + number), payload, deps=deps, key=f"k{number % 9}"))
    return tuple(deltas)


COUNTED: Final = b"counted"
"""Key of the annotation that children count up."""


def fingerprint(delta: Delta) -> str:
    """The same for two deltas if and only if they are the same, erased or not."""
    content = delta.record[CHAINED_FROM : delta.body] + chain.payload_hash(delta)
    return blake2b(content, digest_size=6).hexdigest()


@attrs.define
class Known:
    """All that children ever said about one log."""

    handed: dict[str, dict[int, str]] = attrs.field(factory=dict)
    """source -> seq -> fingerprint of each delta that was handed out or applied."""
    appending: set[tuple[str, int]] = attrs.field(factory=set)
    """Dots of appends that were begun: one that failed while it waited for the disk has been accepted."""
    durable: dict[str, int] = attrs.field(factory=dict)
    """source -> seq up to which everything was acknowledged as durable."""
    floors: dict[str, int] = attrs.field(factory=dict)
    """source -> seq up to which a truncation was acknowledged: it survives the process, not the power."""
    floors_asked: dict[str, int] = attrs.field(factory=dict)
    """The same, of those that were only begun."""
    erased: set[tuple[str, int]] = attrs.field(factory=set)
    """Dots whose erasure was acknowledged, which makes it durable."""
    erased_asked: set[tuple[str, int]] = attrs.field(factory=set)
    annotating: int = 0
    """What the annotation `COUNTED` may say at most."""
    annotated: int = 0
    """What it says: that survives the process."""
    annotated_under: int = 0
    """What it said before the last delta was handed out."""
    annotated_durable: int = 0
    """What it said before a delta that was acknowledged as durable."""
    remote: Mapping[str, Mapping[int, str]] = attrs.field(factory=lambda: _REMOTE)

    def hear(self, lines: Iterable[Any]) -> None:
        """Take in what a child said."""
        for line in lines:
            for verb, value in line.items():
                getattr(self, f"_hear_{verb}", self._ignore)(value)

    def _ignore(self, value: Any) -> None:
        """Nothing to remember."""

    def _hear_annotating(self, count: int) -> None:
        self.annotating = count

    def _hear_annotated(self, count: int) -> None:
        self.annotated = count

    def _hear_handed(self, deltas: list[tuple[str, int, str]]) -> None:
        self.annotated_under = self.annotated if deltas else self.annotated_under
        for source, seq, content in deltas:
            before = self.handed.setdefault(source, {}).setdefault(seq, content)
            assert before == content, f"I1: ({source!r}, {seq}) was handed out twice, with different contents"

    def _hear_appending(self, dot: list[Any]) -> None:
        self.appending.add((dot[0], dot[1]))

    def _hear_durable(self, heads: dict[str, int]) -> None:
        _raise(self.durable, heads)
        self.annotated_durable = self.annotated_under

    def _hear_truncating(self, floors: dict[str, int]) -> None:
        _raise(self.floors_asked, floors)

    def _hear_truncated(self, floors: dict[str, int]) -> None:
        _raise(self.floors, floors)

    def _hear_erasing(self, dot: list[Any]) -> None:
        self.erased_asked.add((dot[0], dot[1]))

    def _hear_erased(self, dot: list[Any]) -> None:
        self.erased.add((dot[0], dot[1]))

    # --------------------------------------------------------------------------------------------- what must hold

    def check(self, found: dict[str, Any], *, power_cut: bool = False, exact: bool = True) -> None:
        """Hold what `child_log.inspect` found against what is known; then know that, too.

        exact: the memory map survived, so what was handed out and never written must be named to the last dot.
        """
        assert not found["problems"], found["problems"]
        heads, floors = found["heads"], found["floors"]
        assert found["report"]["kind"] != "lost", found["report"]
        for source, seq in self.durable.items():
            assert heads.get(source, 0) >= seq, f"I2: {source!r} was durable to {seq}, and is {heads.get(source, 0)}"
        for source, contents in found["contents"].items():
            self._check_contents(source, floors.get(source, 0), contents)
        for source, floor in floors.items():
            assert floor <= self.floors_asked.get(source, 0), f"{source!r}: dropped up to {floor}, which nobody asked"
        erased = {(source, seq) for source, seq in found["erased"]}
        gone = {(source, seq) for source, seq in self.erased if seq <= floors.get(source, 0)}
        assert self.erased <= erased | gone, "an erasure is undone"
        assert erased <= self.erased_asked, "erased, which nobody asked"
        least = self.annotated_durable if power_cut else self.annotated
        assert least <= found["annotated"] <= self.annotating, f"annotated {found['annotated']}, not {least} or more"
        if not power_cut:
            for source, floor in self.floors.items():
                assert floors.get(source, 0) >= floor, f"{source!r}: a truncation to {floor} is undone"
        self._check_tail(found["report"], heads, exact=exact and not power_cut)
        self._learn(found)

    def _check_contents(self, source: str, floor: int, contents: list[str]) -> None:
        known = self.remote.get(source) or self.handed.get(source, {})
        last = max(self.handed.get(source, {0: ""}))
        for seq, content in enumerate(contents, floor + 1):
            assert known.get(seq, content) == content, f"({source!r}, {seq}) is another delta than was handed out"
            expected = source in self.remote or seq in known or seq > last or (source, seq) in self.appending
            assert expected, f"({source!r}, {seq}) was never handed out"

    def _check_tail(self, report: dict[str, Any], heads: dict[str, int], *, exact: bool) -> None:
        """Dots that were handed out and are gone are named, and their source appends no more."""
        for source, contents in self.handed.items():
            if source in self.remote or source.split("~")[0] != SOURCE or max(contents) <= heads.get(source, 0):
                continue
            assert report["source"] != source, f"I1: {source!r} goes on, though {max(contents)} was handed out"
            if report["incarnation_of"] == source and exact:
                first, last = report["lost"][source]
                assert first == heads.get(source, 0) + 1, report
                assert last >= max(contents), report

    def _learn(self, found: dict[str, Any]) -> None:
        """What was found is durable now, and so is what the inspection appended."""
        for source, contents in found["contents"].items():
            start = found["floors"].get(source, 0) + 1
            self._hear_handed([(source, seq, content) for seq, content in enumerate(contents, start)])
        for source, seq, content in found["fresh"]:
            assert seq not in self.handed.get(source, {}), f"I1: ({source!r}, {seq}) is used twice"
            self._hear_handed([(source, seq, content)])
        _raise(self.durable, found["heads"])
        _raise(self.durable, {source: seq for source, seq, _ in found["fresh"]})
        self.annotating = self.annotated = self.annotated_under = self.annotated_durable = found["annotated"]
        self.floors, self.floors_asked = dict(found["floors"]), dict(found["floors"])
        self.erased |= {(source, seq) for source, seq in found["erased"]}
        self.erased_asked = set(self.erased)


def _raise(marks: dict[str, int], seqs: Mapping[str, int]) -> None:
    for source, seq in seqs.items():
        marks[source] = max(marks.get(source, 0), seq)


def _by_source(deltas: Iterable[Delta]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for delta in deltas:
        found.setdefault(delta.source, {})[delta.seq] = fingerprint(delta)
    return found


REMOTE: Final = remote_history()
_REMOTE: Final[Mapping[str, Mapping[int, str]]] = _by_source(REMOTE)
