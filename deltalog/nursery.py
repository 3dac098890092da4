"""A nursery whose single error comes out as itself, and the errors in a group.

Everything here that runs tasks runs them in such a nursery: an embedder's `except LogReadOnly` works as it reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose single failure comes out as itself, not wrapped in a group: the caller's error stays theirs."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        only = _only(group)
        if only is None:
            raise
        context, hidden = only.__context__, only.__suppress_context__
        try:
            raise only
        finally:
            only.__context__, only.__suppress_context__ = context, hidden
            del only, group


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one error in a group, not counting what another one in it caused; None if there are several.

    Not looked into: a group that the caller's own nursery made stays as it is.
    """
    errors = group.exceptions

    def follows(error: BaseException) -> bool:
        return all(
            isinstance(leaf, trio.Cancelled) or any(leaf.__cause__ is other for other in errors)
            for leaf in leaves(error)
        )

    first = [error for error in errors if not follows(error)] or errors[:1]
    return first[0] if len(first) == 1 else None


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, and in groups within it; of what is no group, that itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
