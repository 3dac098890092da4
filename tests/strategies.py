"""Hypothesis strategies for everything the log takes: sources, payloads, deltas, and whole causal histories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
import msgpack
from hypothesis import strategies as st

from deltalog.codec import build
from deltalog.delta import SEQ_MAX, TIMESTAMP_MAX, Delta
from deltalog.version import Dot

HOSTILE_TEXTS: Final = (
    ":",
    "a:1",
    "\0",
    "a\0b",
    "\n",
    "\r\n",
    " ",
    "/",
    "../..",
    "\N{GRINNING FACE}",
    "é",
    "e\u0301",
    "￿",
)
"""What key formats, file names and line formats trip over."""


def texts(bytes_max: int) -> st.SearchStrategy[str]:
    """Any text that has UTF-8 bytes, at most so many; often a hostile one."""
    drawn = st.text(max_size=24) | st.text(alphabet=st.sampled_from("a\0\N{GRINNING FACE}"), max_size=bytes_max // 4)
    return st.sampled_from(HOSTILE_TEXTS) | drawn.filter(lambda text: len(text.encode()) <= bytes_max)


def sources() -> st.SearchStrategy[str]:
    """Any source id: 1 to 255 bytes of UTF-8."""
    return texts(255).filter(bool)


def kinds() -> st.SearchStrategy[str]:
    """Any kind within the default limits."""
    return texts(255)


def keys() -> st.SearchStrategy[str]:
    """Any key within the default limits."""
    return texts(1024)


def seqs() -> st.SearchStrategy[int]:
    """Any seq, often at an end of its range."""
    return st.integers(1, 5) | st.integers(1, SEQ_MAX) | st.sampled_from([SEQ_MAX - 1, SEQ_MAX])


def timestamps() -> st.SearchStrategy[int]:
    """Any timestamp, often at an end of its range."""
    ends = st.sampled_from([0, 1, TIMESTAMP_MAX - 1, TIMESTAMP_MAX])
    return st.integers(0, TIMESTAMP_MAX) | st.integers(0, 40) | ends


# ----------------------------------------------------------------------------------------------------------- payloads

NUMBERS: Final = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
EXTENSIONS: Final = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)) | st.builds(
    msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)
)
SCALARS: Final = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.binary(max_size=20) | EXTENSIONS
TUPLE_KEYS: Final = st.recursive(
    st.tuples(SCALARS), lambda inner: st.tuples(SCALARS | inner, SCALARS | inner), max_leaves=4
)


def payloads() -> st.SearchStrategy[Any]:
    """Any msgpack value, deep, with map keys of every kind; no NaN, which is not equal to itself."""

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        maps = st.dictionaries(st.text(max_size=8), inner, max_size=5)
        odd_maps = st.dictionaries(SCALARS | TUPLE_KEYS, inner, max_size=4)
        return st.lists(inner, max_size=5) | maps | odd_maps | st.lists(inner, max_size=3).map(tuple)

    return st.recursive(SCALARS, nested, max_leaves=12)


def as_read(payload: Any) -> Any:
    """What comes back for `payload`: tuples outside of map keys are lists then."""
    if isinstance(payload, dict):
        return {key: as_read(value) for key, value in payload.items()}
    if isinstance(payload, list | tuple) and not isinstance(payload, msgpack.ExtType):
        return [as_read(value) for value in payload]
    return payload


# ------------------------------------------------------------------------------------------------------------- deltas


@st.composite
def deltas(draw: st.DrawFn, source: str | None = None) -> Delta:
    """Any delta with valid fields, of any source or of the one given."""
    drawn, seq, timestamp, payload, deps, kind, key = draw(_FIELDS)
    name = drawn if source is None else source
    deps.pop(name, None)
    return build(name, seq, timestamp, payload, deps=deps, kind=kind, key=key)


_FIELDS: Final = st.tuples(
    sources(),
    seqs(),
    timestamps(),
    payloads(),
    st.dictionaries(sources(), seqs(), max_size=4),
    kinds(),
    keys(),
)


@st.composite
def runs(draw: st.DrawFn, source: str = "alice", most: int = 6, first_seq: int | None = None) -> list[Delta]:
    """Consecutive deltas of one source, at least one, timestamps ascending: what a block holds."""
    seq = draw(st.integers(1, SEQ_MAX - most)) if first_seq is None else first_seq
    timestamp = draw(st.integers(0, TIMESTAMP_MAX - 1000 * most))
    made = []
    for number, (step, payload, key, deps) in enumerate(draw(st.lists(_STEPS, min_size=1, max_size=most))):
        timestamp += step
        made.append(build(source, seq + number, timestamp, payload, key=key, deps=deps))
    return made


_STEPS: Final = st.tuples(
    st.integers(1, 1000),
    SCALARS,
    st.sampled_from(["", "k", "l", "\N{GRINNING FACE}\0"]),
    st.sampled_from([{}, {"bob": 1}, {"bob": 2}, {"eve": 1}, {"carol:1": SEQ_MAX, "bob": 9}]),
)


# ---------------------------------------------------------------------------------------------------------- histories


@attrs.frozen
class History:
    """What several sources wrote while they heard of each other, and what each delta's writer held at that moment."""

    deltas: list[Delta]
    """All of them, by (timestamp, source): a linear extension of the causal order."""
    held: Mapping[Dot, frozenset[Dot]]
    """Dot of a delta -> every dot its writer held when it wrote it, its own earlier ones among them."""


@attrs.define
class _Node:
    """One source: what it holds, and what of that is new since its previous delta."""

    source: str
    clock: int
    held: frozenset[Dot] = frozenset()
    heads: dict[str, int] = attrs.field(factory=dict)
    named: dict[str, int] = attrs.field(factory=dict)

    def hear(self, delta: Delta, context: frozenset[Dot]) -> None:
        self.held |= context | {delta.dot}
        for source, seq in self.held:
            self.heads[source] = max(seq, self.heads.get(source, 0))
        self.clock = max(self.clock, delta.timestamp)

    def write(self, key: str, skew: int) -> Delta:
        self.clock += 1 + skew
        others = {source: seq for source, seq in self.heads.items() if source != self.source}
        deps = {source: seq for source, seq in others.items() if seq != self.named.get(source, 0)}
        seq = self.heads.get(self.source, 0) + 1
        delta = build(self.source, seq, self.clock, f"{self.source}{seq}", deps=deps, kind="edit", key=key)
        self.named, self.heads[self.source] = others, seq
        return delta


def histories(most: int = 16) -> st.SearchStrategy[History]:
    """A causally valid history of one to four sources, at most `most` deltas with keys "", "x" and "y".

    A source hears of a delta together with everything that one's writer held, as invariant I5 demands. Clocks are
    skewed, so timestamps of sources that do not know each other interleave, and some are equal.
    """
    names = st.lists(sources(), min_size=1, max_size=4, unique=True)
    return st.builds(_history, names, st.lists(_EVENTS, min_size=1, max_size=most))


_EVENTS: Final = st.tuples(
    st.integers(0, 3), st.none() | st.integers(0, 15), st.sampled_from(["", "x", "y"]), st.integers(0, 3)
)
"""Who writes, which delta it heard of just before, the key, by how much its clock is ahead of what it must be."""


def _history(names: list[str], events: list[tuple[int, int | None, str, int]]) -> History:
    nodes = [_Node(name, number) for number, name in enumerate(names)]
    made: list[Delta] = []
    held: dict[Dot, frozenset[Dot]] = {}
    for writer, heard, key, skew in events:
        node = nodes[writer % len(nodes)]
        if made and heard is not None:
            other = made[heard % len(made)]
            node.hear(other, held[other.dot])
        delta = node.write(key, skew)
        made.append(delta)
        held[delta.dot] = node.held
        node.held |= {delta.dot}
    return History(sorted(made, key=lambda delta: (delta.timestamp, delta.source)), held)
