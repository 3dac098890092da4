"""Intervals: which of many ranges of lines overlap one, in O(log n + hits). A treap ordered by first line.

Each node knows the greatest last line below it, so a search leaves out what ends too early:

            10-20 (to 90)
           /             \\
      3-4 (to 4)     50-60 (to 90)
                             \\
                          70-90 (to 90)

Ranges may overlap each other (shared leases and waiting requests do). Priorities are random, so no order of insertion
makes it deep. This file knows no locks; values are kept by key.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_priority = random.Random().random  # noqa: S311  # balance, no secret


class _Node(Generic[T]):
    __slots__ = ("first", "key", "last", "left", "priority", "right", "to", "value")

    def __init__(self, first: int, last: int, key: int, value: T) -> None:
        self.first = first
        self.last = last
        self.key = key
        self.value = value
        self.to = last
        self.priority = _priority()
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None

    def measure(self) -> None:
        """Set `to` from the children's."""
        to = self.last
        if self.left is not None and self.left.to > to:
            to = self.left.to
        if self.right is not None and self.right.to > to:
            to = self.right.to
        self.to = to


class Intervals(Generic[T]):
    """Values under ranges `first..last`, both inclusive."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[T] | None = None

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return self._root is not None

    def add(self, first: int, last: int, key: int, value: T) -> None:
        """Add a value. `(first, key)` is unique."""
        self._root = _insert(self._root, _Node(first, last, key, value))

    def remove(self, first: int, key: int) -> None:
        """Remove what was added so. Raises KeyError if it is not there."""
        self._root = _remove(self._root, first, key)

    def overlapping(self, first: int, last: int) -> Iterator[T]:
        """Values whose range shares a line with `first..last`, the greatest `(first, key)` first."""
        pending: list[tuple[_Node[T], bool]] = [(self._root, False)] if self._root is not None else []
        while pending:
            node, descended = pending.pop()
            if descended:
                yield node.value
                continue
            if node.to < first:
                continue
            if node.left is not None:
                pending.append((node.left, False))
            if node.first <= last:
                if node.last >= first:
                    pending.append((node, True))
                if node.right is not None:
                    pending.append((node.right, False))


def _insert(node: _Node[T] | None, new: _Node[T]) -> _Node[T]:
    if node is None:
        return new
    if new.priority > node.priority:
        new.left, new.right = _split(node, new.first, new.key)
        new.measure()
        return new
    if (new.first, new.key) < (node.first, node.key):
        node.left = _insert(node.left, new)
    else:
        node.right = _insert(node.right, new)
    node.to = max(node.to, new.to)
    return node


def _split(node: _Node[T] | None, first: int, key: int) -> tuple[_Node[T] | None, _Node[T] | None]:
    """What stands before `(first, key)`, and the rest."""
    if node is None:
        return None, None
    if (node.first, node.key) < (first, key):
        node.right, rest = _split(node.right, first, key)
        node.measure()
        return node, rest
    before, node.left = _split(node.left, first, key)
    node.measure()
    return before, node


def _remove(node: _Node[T] | None, first: int, key: int) -> _Node[T] | None:
    if node is None:
        raise KeyError((first, key))
    if node.first == first and node.key == key:
        return _merge(node.left, node.right)
    if (first, key) < (node.first, node.key):
        node.left = _remove(node.left, first, key)
    else:
        node.right = _remove(node.right, first, key)
    node.measure()
    return node


def _merge(left: _Node[T] | None, right: _Node[T] | None) -> _Node[T] | None:
    if left is None:
        return right
    if right is None:
        return left
    if left.priority > right.priority:
        left.right = _merge(left.right, right)
        left.measure()
        return left
    right.left = _merge(left, right.left)
    right.measure()
    return right
