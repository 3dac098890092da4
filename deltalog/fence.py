"""Guard: refuses a fencing token that is older than one seen before, per target.

A lease can lapse while its holder is stopped; when the holder wakes up it does not know. Its token does: tokens only
increase, so what the resource saw from a later lease is greater. The guard stands at the resource, not at the lock.

What lives here: the highest token seen, per target text. Targets are compared as text; whether two of them overlap is
the lock table's knowledge. No I/O, no clock; a guard belongs to one thread.

Memory is bounded. When the guard is full, the half of its targets with the lowest tokens is forgotten and `floor`
rises to the highest token forgotten: a stale token may then be refused under the floor, but is never let through.
"""

from __future__ import annotations

from typing import Final

import attrs

from deltalog.errors import StaleToken, UsageError

TARGETS_MAX_DEFAULT: Final = 100_000
"""About 20 MB of targets and tokens; ten times the locks that one table holds by default."""
TOKEN_MAX: Final = 2**63 - 1


@attrs.define(eq=False)
class Guard:
    """Checks fencing tokens at the resource that they protect."""

    floor: int = 0
    """No token below this is taken, whatever the target. At a start: the first token of this start, because leases
    live in memory and none of an earlier start holds."""
    targets_max: int = TARGETS_MAX_DEFAULT
    """How many targets are remembered."""

    _seen: dict[str, int] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        _check_token("floor", self.floor, least=0)
        if type(self.targets_max) is not int or self.targets_max < 1:
            raise UsageError(f"targets_max is {self.targets_max!r}; it takes an int of at least 1")

    def __len__(self) -> int:
        """How many targets are remembered."""
        return len(self._seen)

    def check(self, target: str, token: int) -> None:
        """Take a token for a target. Raises StaleToken if one above it was seen, or it is below the floor.

        The same token may come again any number of times: a holder writes often under one lease.
        """
        if type(target) is not str:
            raise UsageError(f"target must be a string, not {type(target).__name__}")
        _check_token("token", token, least=1)
        highest = self.highest(target)
        if token < highest:
            raise StaleToken(target, token, highest)
        if token > self._seen.get(target, 0):
            self._remember(target, token)

    def highest(self, target: str) -> int:
        """The lowest token that `check` takes for a target now."""
        return max(self._seen.get(target, 0), self.floor)

    def raise_floor(self, floor: int) -> None:
        """Refuse every token below `floor` from now on. A lower floor than the present one changes nothing."""
        _check_token("floor", floor, least=0)
        self.floor = max(self.floor, floor)

    def _remember(self, target: str, token: int) -> None:
        if target not in self._seen and len(self._seen) >= self.targets_max:
            self._forget_half()
        self._seen[target] = token

    def _forget_half(self) -> None:
        ordered = sorted(self._seen.items(), key=lambda item: item[1])
        forgotten = ordered[: (len(ordered) + 1) // 2]
        for target, _ in forgotten:
            del self._seen[target]
        self.raise_floor(forgotten[-1][1])


def _check_token(field: str, token: int, least: int) -> None:
    if type(token) is not int or not least <= token <= TOKEN_MAX:
        raise UsageError(f"{field} is {token!r}; it takes an int from {least} to 2**63 - 1")
