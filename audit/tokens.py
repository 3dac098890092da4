"""Tokens: fencing tokens that strictly increase for ever, without a disk write per lease.

Numbers are reserved in blocks, durably, before any of them is handed out:

    reserved before this start        this start
    ...............................|####taken####|......reserved......|
                                   ^first                             ^upto

Whatever part of a block a crash leaves unused is never used: the next start counts on above everything reserved. This
file does not know where reservations are kept; whoever has a disk makes `wanted()` durable and then says so with
`extend`. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from deltalog.errors import DeltaLogError, UsageError

BLOCK_SIZE_DEFAULT: Final = 1_000
"""Tokens reserved at once: 10,000 leases a second make ten small writes a second."""
TOKEN_MAX: Final = 2**63 - 1


class Reservations(Protocol):
    """Where reservations are kept. Two calls are never made at once."""

    def reserve(self, upto: int) -> None:
        """Note that tokens up to `upto` (inclusive) may be used. Durable on return. Raises StoreError."""
        ...


class TokensExhausted(DeltaLogError):
    """Raised when every reserved token was taken: the next block is still being reserved. Nothing was changed."""

    retryable = True


@attrs.define(eq=False)
class Tokens:
    """The source of one start's fencing tokens."""

    reserved_before: int
    """The highest token reserved by any earlier start, 0 if there was none."""
    block_size: int = BLOCK_SIZE_DEFAULT
    """How many tokens to reserve at once."""

    _next: int = attrs.field(init=False)
    _upto: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if type(self.reserved_before) is not int or not 0 <= self.reserved_before < TOKEN_MAX:
            raise UsageError(f"reserved_before is {self.reserved_before!r}; it takes an int from 0 to 2**63 - 2")
        if type(self.block_size) is not int or self.block_size < 1:
            raise UsageError(f"block_size is {self.block_size!r}; it takes an int of at least 1")
        self._next = self.reserved_before + 1
        self._upto = self.reserved_before

    @property
    def first(self) -> int:
        """The first token of this start: the floor of every guard, because no earlier lease holds."""
        return self.reserved_before + 1

    @property
    def left(self) -> int:
        """How many tokens can be taken before the next reservation."""
        return self._upto - self._next + 1

    def take(self) -> int:
        """Return a token greater than every one before, of this start and of all others."""
        token = self._next
        if token > self._upto:
            raise TokensExhausted(f"all tokens up to {self._upto} are taken and no more are reserved yet")
        self._next = token + 1
        return token

    def wanted(self) -> int | None:
        """Up to where to reserve now; None while more than half a block is left."""
        if self.left > self.block_size // 2 or self._upto >= TOKEN_MAX:
            return None
        return min(self._upto + self.block_size, TOKEN_MAX)

    def extend(self, upto: int) -> None:
        """Tokens up to `upto` are reserved, durably."""
        if type(upto) is not int or not self._upto < upto <= TOKEN_MAX:
            raise UsageError(f"upto is {upto!r}; it takes an int above {self._upto}")
        self._upto = upto
