"""The hash chain of a source: `h(n) = H(h(n-1) || header(n) || H(payload(n)))`, `h(0) = H(source)`.

H is BLAKE2b (RFC 7693) with 32 bytes of output, personalised for each of its three uses. The header is the record
from `codec.CHAINED_FROM` to the payload: sizes of kind, key and deps, seq, timestamp, and their bytes. The payload
enters by its hash, so an erased payload, whose hash stands in its place, leaves the chain as it was.

The chain is kept at the heads and once a block, not once a delta. A block also keeps the first `TAG_BYTES` of every
link, so that `verify` can name the one record that does not fit (it misses the first of 65,536 forgeries and then
names the next record; the full hash behind the block still fails).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from deltalog.codec import BODY_SIZE, BODY_SIZE_AT, CHAINED_FROM, HASH_BYTES
from deltalog.delta import Delta

TAG_BYTES: Final = 2

# Copying a prepared state is cheaper than constructing one: 0.18 us against 0.31 us a hash.
_payload_state = blake2b(digest_size=HASH_BYTES, person=b"deltalog payload")
_link_state = blake2b(digest_size=HASH_BYTES, person=b"deltalog link")


def genesis(source: str) -> bytes:
    """Return h(0) of a source."""
    return blake2b(source.encode(), digest_size=HASH_BYTES, person=b"deltalog source").digest()


def payload_hash(delta: Delta) -> bytes:
    """Return the hash by which a delta's payload enters the chain."""
    if delta.erased:
        return delta.payload_bytes
    state = _payload_state.copy()
    state.update(delta.payload_bytes)
    return state.digest()


def extend(previous: bytes, records: Iterable[bytes]) -> list[bytes]:
    """Return h(n) for each of `records` (valid ones), which follow in order on the one whose hash is `previous`."""
    hashes: list[bytes] = []
    add, body_size = hashes.append, BODY_SIZE.unpack_from
    payload_copy, link_copy = _payload_state.copy, _link_state.copy
    for record in records:
        body = len(record) - body_size(record, BODY_SIZE_AT)[0]
        link = link_copy()
        link.update(previous)
        link.update(record[CHAINED_FROM:body])
        if record[1]:
            link.update(record[body:])
        else:
            payload = payload_copy()
            payload.update(record[body:])
            link.update(payload.digest())
        previous = link.digest()
        add(previous)
    return hashes


def tags(hashes: Iterable[bytes]) -> bytes:
    """Return the first bytes of each link, as a block keeps them."""
    return b"".join([value[:TAG_BYTES] for value in hashes])
