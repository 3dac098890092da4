"""The hash chain of a trail: `h(n) = H(h(n-1) || n || event(n))`, `h(0) = H(store id)`.

H is BLAKE2b (RFC 7693) with 32 bytes of output. The event's canonical bytes enter whole, so a changed value breaks the
chain as a removed or moved event does. Each link is stored beside its event: that names the first event that does not
fit and tells what happened to it, and retention can cut the chain anywhere, keeping one link as its floor.

Who can write the store can also write a new chain. What cannot be written anew is a head that somebody kept elsewhere:

    audit-head:v1:<number>:<link in hex>

Does not know: where events are stored.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import attrs

from audit.keys import LINK_BYTES, NUMBER_MAX
from deltalog.errors import UsageError

CHECKPOINT_EVENTS: Final = 1_000
"""Events from one checkpoint to the next, at least: 60 bytes a thousand events."""

_NUMBER: Final = struct.Struct(">Q")
_state = blake2b(digest_size=LINK_BYTES, person=b"audit link")
_HEAD_LINE: Final = re.compile(r"audit-head:v1:(0|[1-9][0-9]{0,18}):([0-9a-f]{64})")


def genesis(store_id: bytes) -> bytes:
    """Return h(0) of a trail."""
    return blake2b(store_id, digest_size=LINK_BYTES, person=b"audit trail").digest()


def extend(previous: bytes, number: int, events: Iterable[bytes]) -> list[bytes]:
    """Return the links of encoded events, the first of which has `number` and follows on the link `previous`."""
    links: list[bytes] = []
    for place, event in enumerate(events, number):
        state = _state.copy()
        state.update(previous + _NUMBER.pack(place))
        state.update(event)
        previous = state.digest()
        links.append(previous)
    return links


@attrs.frozen
class TrailHead:
    """The end of a trail as somebody may write it down: it vouches for every event up to `number`."""

    number: int
    link: bytes

    def __str__(self) -> str:
        return f"audit-head:v1:{self.number}:{self.link.hex()}"

    @classmethod
    def parse(cls, line: str) -> TrailHead:
        """Read what `str` wrote. Raises UsageError for anything else."""
        match = _HEAD_LINE.fullmatch(line.strip())
        if match is None or int(match[1]) > NUMBER_MAX:
            raise UsageError(f"head is {line[:100]!r}; it takes audit-head:v1:<number>:<64 hex digits>")
        return cls(int(match[1]), bytes.fromhex(match[2]))


def what_happened(previous: bytes, number: int, found: Sequence[tuple[bytes, bytes]]) -> str:
    """Say what became of event `number`, whose place the first of `found` does not fit: "changed", "removed", ...

    `found`: link and event bytes of what stands there and behind it, in order. `previous`: the link before it.
    """
    links = [link for link, _ in found]
    for shift in range(1, len(found)):
        if extend(previous, number, [found[shift][1]])[0] == links[shift]:
            follows = shift + 1 < len(found)
            moved_on = follows and extend(links[shift], number + 1, [found[shift + 1][1]])[0] == links[shift + 1]
            return "inserted" if moved_on or not follows else "reordered"
    if len(found) > 1 and extend(links[0], number + 2, [found[1][1]])[0] == links[1]:
        return "removed"
    return "changed"
