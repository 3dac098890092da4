"""TargetIndex: values by target, and those whose target overlaps one, without looking at the others.

A tree of path segments; a node exists only while something is kept at it or below, so everything below a directory is
found by walking down, and each step leads to a hit. At a node:

    directories   values kept for the directory itself        met on the way down by whatever lies below
    wholes        values kept for the whole path
    lines         intervals of all parts that name lines      (audit/intervals.py)
    symbols       a tree of dotted names of all parts that name a symbol
    bare lines    parts that name lines only                  a part that names a symbol only meets all of them
    bare symbols  parts that name a symbol only               a part that names lines only meets all of them

The rules are those of `audit.target.overlaps`; the tests hold the two against each other. A search costs the depth of
the path, plus O(log n) for n ranges at that path, plus the hits; a caller who wants one hit takes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from audit.intervals import Intervals
from audit.target import LINE_MAX, Symbol, Target

T = TypeVar("T")


class _Names(Generic[T]):
    """A node of a file's tree of dotted names."""

    __slots__ = ("children", "kinds")

    def __init__(self) -> None:
        self.children: dict[str, _Names[T]] = {}
        self.kinds: dict[str, dict[int, T]] = {}

    def add(self, symbol: Symbol, key: int, value: T) -> None:
        node = self
        for segment in symbol.segments():
            node = node.children.setdefault(segment, _Names())
        node.kinds.setdefault(symbol.kind, {})[key] = value

    def remove(self, symbol: Symbol, key: int) -> None:
        segments = symbol.segments()
        trail = [self]
        for segment in segments:
            trail.append(trail[-1].children[segment])
        kinds = trail[-1].kinds
        del kinds[symbol.kind][key]
        if not kinds[symbol.kind]:
            del kinds[symbol.kind]
        for parent, segment in zip(reversed(trail[:-1]), reversed(segments), strict=True):
            node = parent.children[segment]
            if node.children or node.kinds:
                break
            del parent.children[segment]

    def touching(self, symbol: Symbol) -> Iterator[T]:
        node = self
        for place, segment in enumerate(symbol.segments()):
            if place:
                yield from node._here()
            below = node.children.get(segment)
            if below is None:
                return
            node = below
        yield from reversed(node.kinds.get(symbol.kind, {}).values())
        pending = list(node.children.values())
        while pending:
            node = pending.pop()
            yield from node._here()
            pending += node.children.values()

    def _here(self) -> Iterator[T]:
        for values in self.kinds.values():
            yield from reversed(values.values())


class _Node(Generic[T]):
    __slots__ = ("bare_lines", "bare_symbols", "children", "directories", "lines", "names", "wholes")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.directories: dict[int, T] = {}
        self.wholes: dict[int, T] = {}
        self.lines: Intervals[T] | None = None
        self.names: _Names[T] | None = None
        self.bare_lines: dict[int, T] = {}
        self.bare_symbols: dict[int, T] = {}

    def is_empty(self) -> bool:
        names = self.names is not None and self.names.children
        return not (self.children or self.directories or self.wholes or self.lines or names)

    def add(self, target: Target, key: int, value: T) -> None:
        if target.is_whole:
            (self.directories if target.is_directory else self.wholes)[key] = value
        if target.lines is not None:
            if self.lines is None:
                self.lines = Intervals()
            self.lines.add(*target.lines, key, value)
            if target.symbol is None:
                self.bare_lines[key] = value
        if target.symbol is not None:
            if self.names is None:
                self.names = _Names()
            self.names.add(target.symbol, key, value)
            if target.lines is None:
                self.bare_symbols[key] = value

    def remove(self, target: Target, key: int) -> None:
        if target.is_whole:
            del (self.directories if target.is_directory else self.wholes)[key]
        if target.lines is not None:
            assert self.lines is not None
            self.lines.remove(target.lines[0], key)
            self.bare_lines.pop(key, None)
        if target.symbol is not None:
            assert self.names is not None
            self.names.remove(target.symbol, key)
            self.bare_symbols.pop(key, None)

    def everything(self) -> Iterator[T]:
        """What is kept at this very path. A part that names lines and a symbol comes once."""
        yield from reversed(self.directories.values())
        yield from reversed(self.wholes.values())
        if self.lines is not None:
            yield from self.lines.overlapping(0, LINE_MAX)
        yield from reversed(self.bare_symbols.values())

    def below(self) -> Iterator[T]:
        """What is kept here and below."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield from node.everything()
            pending += node.children.values()

    def overlapping(self, target: Target) -> Iterator[T]:
        """What is kept at this path and overlaps `target`, which has this path; without directories."""
        yield from reversed(self.wholes.values())
        if target.lines is not None and self.lines is not None:
            yield from self.lines.overlapping(*target.lines)
        if target.symbol is not None and self.names is not None:
            yield from self.names.touching(target.symbol)
        if target.symbol is None:
            yield from reversed(self.bare_symbols.values())
        if target.is_whole and self.lines is not None:
            yield from self.lines.overlapping(0, LINE_MAX)
        elif target.lines is None:
            yield from reversed(self.bare_lines.values())


class TargetIndex(Generic[T]):
    """Values by target. One key may be used once per target."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self._root.children)

    def add(self, target: Target, key: int, value: T) -> None:
        """Keep a value for a target."""
        node = self._root
        for segment in target.segments():
            below = node.children.get(segment)
            if below is None:
                below = node.children[segment] = _Node()
            node = below
        node.add(target, key, value)

    def remove(self, target: Target, key: int) -> None:
        """Forget what was kept so. Raises KeyError if it is not there."""
        segments = target.segments()
        trail = [self._root]
        for segment in segments:
            trail.append(trail[-1].children[segment])
        trail[-1].remove(target, key)
        for place in range(len(segments), 0, -1):
            if not trail[place].is_empty():
                break
            del trail[place - 1].children[segments[place - 1]]

    def overlapping(self, target: Target) -> Iterator[T]:
        """Values whose target overlaps this one, later ones first where that is cheap; some may come twice.

        The index must not change while the iterator is used.
        """
        node = self._root
        segments = target.segments()
        for place, segment in enumerate(segments, start=1):
            below = node.children.get(segment)
            if below is None:
                return
            node = below
            if place == len(segments) and target.is_directory:
                yield from node.below()
                return
            yield from reversed(node.directories.values())
        yield from node.overlapping(target)
