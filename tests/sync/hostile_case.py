"""A hostile behaviour, what must come of it, and the states in which it begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs

from deltalog.delta import SEQ_MAX
from sync.errors import SyncError
from sync.messages import (
    Ack,
    Message,
    Want,
)
from tests.sync.hostile import Foe

Play = Callable[[Foe], Awaitable[object]]


@attrs.frozen
class Case:
    """One behaviour in one state."""

    name: str
    play: Play
    error: type[SyncError] | None
    reason: str = ""
    """In the error's text; where the session goes on, in a problem that the node tells of."""
    dialed: bool = False
    takes: int = 0
    """Deltas that rightly come in."""
    key: bytes = b""
    bulk: int = 0
    """Deltas of 20 kB that the node holds."""


async def greeting(foe: Foe) -> None:
    """Nothing was said yet."""


async def welcoming(foe: Foe) -> None:
    """Both have said who they are."""
    await foe.greet()


async def opened(foe: Foe) -> None:
    """The session is open; the node has asked for the foe's own source."""
    await foe.open()


async def live(foe: Foe) -> None:
    """Heads were compared, and some deltas have come in."""
    await foe.open()
    await foe.listen(Want)
    foe.tale.grow(2)
    await foe.batch(*foe.tale.run())
    await foe.listen(Ack)


async def within_run(foe: Foe) -> None:
    """Deltas have come, and no head yet."""
    await foe.open()
    await foe.listen(Want)
    foe.tale.grow(2)
    await foe.say(*foe.tale.run()[:-1])


BEFORE: Final[tuple[Play, ...]] = (greeting, welcoming)
OPEN: Final[tuple[Play, ...]] = (opened, live, within_run)
ALL_STATES: Final = BEFORE + OPEN


def saying(state: Play, *what: Message | bytes) -> Play:
    """Come to a state, and then say something."""

    async def play(foe: Foe) -> None:
        await state(foe)
        await foe.say(*what)

    return play


def came(state: Play) -> int:
    """Deltas that have come in before that."""
    return 2 * (state is live)


def names_of(count: int, start: int = 0) -> tuple[tuple[str, int], ...]:
    """Fake sources, and all that there could be of them."""
    return tuple((f"fake {number}", SEQ_MAX) for number in range(start, start + count))
