"""What this node holds, signed and verified: the other side of every check that stands between a peer and the log.

* `index`: synced heads and their chain hashes, which is all that peers are ever told (invariant I3).
* boundaries: signed heads of other sources, one every `BOUNDARY_DELTAS` or so and always the latest, kept as
  annotations of the log. Runs that are passed on end at one of them, so that whoever gets them can verify them.
* tails: how far a source was verified here, also where its deltas still wait for others.

    annotation key                                       value
    "sync/head/"  u8 size of source | source | u64 seq   signed head (see `trust`)
    "sync/owner/" source                                 public key that signs for it
    "sync/fork/"  source                                 evidence that it was forked: it is quarantined

An annotation is written before the deltas that need it, so it is there whenever they are.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from deltalog import chain
from deltalog.delta import Delta
from deltalog.errors import BelowFloor, UsageError
from deltalog.log import DeltaLog
from sync.errors import Diverged, HeadRefused
from sync.heads import Entry, HeadsIndex
from sync.messages import Head
from sync.session import Run
from sync.trust import Evidence, SignedHead, Signer, Trust, decode_head, encode_head, sign_head

BOUNDARY_DELTAS: Final = 256
"""Deltas between two boundaries that are kept, at least; they are sparser only where a source signs more rarely."""
BOUNDARY_BYTES: Final = 256 << 10
SHOWN_MAX: Final = 256
PRUNE_KEYS: Final = 1000
"""Boundaries looked at in one read."""
LATEST_MAX: Final = 16_384
"""Signed heads kept in memory."""
_HEAD_PREFIX: Final = b"sync/head/"
OWNER_PREFIX: Final = b"sync/owner/"
FORK_PREFIX: Final = b"sync/fork/"
_SEQ: Final = struct.Struct(">Q")


def _head_key(source: str, seq: int) -> bytes:
    name = source.encode()
    return b"%b%c%b%b" % (_HEAD_PREFIX, len(name), name, _SEQ.pack(seq))


class Gap(Exception):
    """A run does not start where what is here ends."""


class Ledger:
    """Made by a mesh, and loaded before anything else."""

    def __init__(self, log: DeltaLog, trust: Trust, signer: Signer | None) -> None:
        self.log = log
        self.trust = trust
        self.signer = signer
        self.index = HeadsIndex()
        self._owned: set[str] = set()
        """Sources whose owner is noted in the log."""
        self._tails: dict[str, tuple[int, bytes]] = {}
        """source -> (seq, hash) verified beyond the synced head."""
        self._latest: dict[str, SignedHead] = {}
        self._kept: dict[str, list[tuple[int, int]]] = {}
        """source -> the latest boundaries: seq, and bytes of records since the one before it."""
        self._shown: dict[str, SignedHead] = {}
        """Heads that peers showed, of sources that nobody owns here."""
        self.total = 0
        """Sum of the synced heads."""
        self._ends: dict[str, tuple[int, bytes]] = {}
        """source -> where the latest run that was signed or hashed here ended."""

    # -------------------------------------------------------------------------------------------------------- what is

    def seq(self, source: str) -> int:
        """Highest synced seq of a source."""
        entry = self.index.get(source)
        return 0 if entry is None else entry.seq

    def note_synced(self, heads: Mapping[str, int]) -> None:
        """The log synced these."""
        for source, seq in heads.items():
            if self.closed(source):
                continue
            digest = self.log.synced_hash(source)
            assert digest is not None, "what is synced has a hash"
            self.total += seq - self.seq(source)
            self.index.put(source, seq, digest)
            tail = self._tails.get(source)
            if tail is not None and tail[0] <= seq:
                del self._tails[source]

    def closed(self, source: str) -> bool:
        """Whether a source is quarantined: nothing of it goes out or comes in."""
        return source in self.trust.quarantined

    async def load(self) -> None:
        """Learn what the log holds and what was noted in it."""
        if self.signer is not None:
            await self._own(self.log.source, self.signer.key)
        for key, value in await self.log.annotations(OWNER_PREFIX):
            source = key[len(OWNER_PREFIX) :].decode()
            self._owned.add(source)
            if source not in self.trust.named:
                self.trust.bind(source, value)
        for _, value in await self.log.annotations(FORK_PREFIX):
            evidence = Evidence.decode(value)
            self.trust.quarantine(evidence)
            await self.log.excuse(evidence.source)
        self.note_synced(self.log.synced)

    async def _own(self, source: str, key: bytes) -> None:
        """This node's own source belongs to its key, before anybody else can claim it. Raises `UsageError`."""
        noted = await self.log.annotation(OWNER_PREFIX + source.encode())
        if noted not in (None, key) and self.trust.named.get(source) != key:
            assert noted is not None, "checked"
            raise UsageError(
                f"source {source!r} was signed with key {noted.hex()[:16]}... before, and this node's key is "
                f"{key.hex()[:16]}...: put the old key back, or pin the new one for that source here and at every peer"
            )
        if noted != key:
            await self.log.annotate({OWNER_PREFIX + source.encode(): key})

    # ---------------------------------------------------------------------------------------------------- towards here

    def reached(self, source: str) -> int:
        """Seq up to which a source was verified here: behind it one asks for more."""
        tail = self._tails.get(source)
        return max(self.seq(source), tail[0] if tail is not None else 0)

    def forget_tail(self, source: str) -> None:
        """Something of it was not taken in: what was verified must come again."""
        self._tails.pop(source, None)

    def forget_tails(self) -> None:
        """Taking something in was cut off: who knows what still waits."""
        self._tails.clear()

    async def verify(self, run: Run) -> SignedHead:
        """Check that a run continues what is here and ends in a head that its source signed; return that.

        Raises `HeadRefused`; `Gap` if it starts behind what was verified.
        """
        head = _signed(run.head)
        if self.closed(run.source):
            raise HeadRefused(run.source, "it is quarantined: it was forked")
        start = await self._hash_before(run.source, run.after)
        if start is None:
            raise Gap
        self.trust.check(head)
        records = [delta.record for delta in run.deltas]
        hashes = chain.extend(start, records)
        if hashes[-1] != head.hash:
            altered = not run.after or await self._hash_before(run.source, head.seq) == head.hash
            text = f"the chain of {run.after + 1}..{head.seq} does not lead to the head it ends in"
            raise Diverged(run.source, text, forged=altered)
        self.log.vouch(run.source, run.after + 1, start, records, hashes)
        return self.trust.relayed(head)

    async def _hash_before(self, source: str, after: int) -> bytes | None:
        tail = self._tails.get(source)
        if tail is not None and tail[0] == after:
            return tail[1]
        if after == 0:
            return chain.genesis(source)
        entry = self.index.get(source)
        if entry is None or entry.seq < after:
            return None
        if entry.seq == after:
            return entry.hash
        try:
            return await self.log.hash_at(source, after)
        except BelowFloor:
            return None

    async def keep(self, runs: Sequence[tuple[Run, SignedHead]]) -> None:
        """Note the heads of verified runs, before their deltas are taken in."""
        changes: dict[bytes, bytes | None] = {}
        for run, head in runs:
            if head.key:
                if run.source not in self._owned:
                    self._owned.add(run.source)
                    changes[OWNER_PREFIX + run.source.encode()] = head.key
                self._thin(run, head, changes)
            if head.seq > self.seq(run.source) and run.after <= self.reached(run.source):  # else forgotten meanwhile
                self._tails[run.source] = (head.seq, head.hash)
        if not changes:
            return
        try:
            await self.log.annotate(changes)
        except BaseException:  # who knows what is stored: nothing of it counts
            for run, _ in runs:
                self._owned.discard(run.source)
                self._kept.pop(run.source, None)
                self._latest.pop(run.source, None)
            raise

    def _thin(self, run: Run, head: SignedHead, changes: dict[bytes, bytes | None]) -> None:
        """Keep this boundary, and no longer some between two that are near each other.

        One goes only when the next is synced: of what is synced all but the end of a run can be passed on at any time.
        """
        kept = self._kept.setdefault(run.source, [])
        place = bisect_left(kept, (head.seq, 0))  # before a later one, if what that one ends was not all taken in
        if kept[place : place + 1] and kept[place][0] == head.seq:
            return
        newest = place == len(kept)
        kept.insert(place, (head.seq, sum(len(delta.record) for delta in run.deltas)))
        while len(kept) > 2 and kept[2][0] <= self.seq(run.source):
            (first, _), (middle, size), (last, more) = kept[:3]
            if last - first <= BOUNDARY_DELTAS and size + more <= BOUNDARY_BYTES:
                changes[_head_key(run.source, middle)] = None
                kept[1:3] = [(last, size + more)]
            else:
                del kept[0]
        changes[_head_key(run.source, head.seq)] = encode_head(head)
        if not newest:
            return
        self._latest.pop(run.source, None)
        self._latest[run.source] = head
        if len(self._latest) > LATEST_MAX:
            del self._latest[next(iter(self._latest))]

    # -------------------------------------------------------------------------------------------------- towards a peer

    async def ended(self, source: str, deltas: list[Delta]) -> tuple[list[Delta], Head] | None:
        """Return a run of synced deltas, longer or shorter if it must be, and the head that ends it.

        This node's own source is signed here; another's ends at the next boundary that is synced, or else at the last
        one before; None if there is none of either. An unsigned one ends as it is, with its chain hash.
        """
        owner = self.trust.owner(source)
        if owner is None or (self.signer is not None and owner == self.signer.key):
            digest = await self._hash_behind(source, deltas)
            head = SignedHead(source, deltas[-1].seq, digest, b"", b"", b"")
            if owner is not None and self.signer is not None:
                head = sign_head(self.signer, self.trust.cluster, source, deltas[-1].seq, digest)
            return deltas, _sent(head)
        first, last = deltas[0].seq, deltas[-1].seq
        found = await self.boundary(source, last)
        if found is None or found.seq > self.seq(source):
            found = await self._boundary_within(source, first, last)
            if found is None:
                return None
        head = found
        if head.seq < last:
            deltas = deltas[: head.seq - first + 1]
        elif head.seq > last:
            stream = self.log.since({source: last}, {source: head.seq})
            deltas = list(deltas)
            while page := await stream.page():
                deltas += page
        return deltas, _sent(head)

    async def boundary(self, source: str, seq: int) -> SignedHead | None:
        """The first boundary of a signed source at `seq` or beyond, synced or not; None if there is none."""
        latest, kept = self._latest.get(source), self._kept.get(source, ())
        if latest is not None and len(kept) > 1 and latest.seq == kept[-1][0] and kept[-2][0] < seq <= latest.seq:
            return latest
        found = await self._boundaries(source, seq, 1)
        return found[0] if found else None

    async def _boundary_within(self, source: str, first: int, last: int) -> SignedHead | None:
        """The last boundary from `first` to `last`."""
        found = await self._boundaries(source, first, last - first + 1)
        return next((head for head in reversed(found) if head.seq <= last), None)

    async def _boundaries(self, source: str, seq: int, count: int) -> list[SignedHead]:
        """The first boundaries at `seq` or beyond."""
        prefix, after = _head_key(source, 0)[: -_SEQ.size], _head_key(source, seq - 1)
        return [decode_head(value) for _, value in await self.log.annotations(prefix, after=after, limit=count)]

    async def _hash_behind(self, source: str, deltas: Sequence[Delta]) -> bytes:
        """Chain hash behind a run."""
        entry, last = self.index.get(source), deltas[-1].seq
        if entry is not None and entry.seq == last:
            digest = entry.hash
        else:
            end = self._ends.get(source)
            after = deltas[0].seq - 1
            start = end[1] if end is not None and end[0] == after else await self.log.hash_at(source, after)
            digest = chain.extend(start, [delta.record for delta in deltas])[-1]
        if len(self._ends) >= LATEST_MAX:
            self._ends.clear()
        self._ends[source] = (last, digest)
        return digest

    async def prune(self) -> int:
        """Forget the boundaries of what retention dropped here; return how many went."""
        floors, after, gone = self.log.floor, b"", 0
        while floors and (page := await self.log.annotations(_HEAD_PREFIX, after=after, limit=PRUNE_KEYS)):
            after = page[-1][0]
            changes = dict.fromkeys(key for key, _ in page if _is_dropped(key, floors))
            if changes:
                await self.log.annotate(changes)
                gone += len(changes)
        return gone

    # ----------------------------------------------------------------------------------------------------------- forks

    async def witness_for(self, entry: Entry) -> Head | None:
        """What this node can show of a source of which a peer holds another chain at the same seq."""
        owner = self.trust.owner(entry.source)
        if owner is None:
            return None
        if self.signer is not None and owner == self.signer.key:
            mine = self.index.get(entry.source)
            if mine is None:
                return None
            return _sent(sign_head(self.signer, self.trust.cluster, entry.source, mine.seq, mine.hash))
        head = await self.boundary(entry.source, entry.seq)
        return None if head is None else _sent(head)

    async def take_witness(self, shown: Head) -> Evidence | None:
        """A peer shows a signed head: if it contradicts one that is kept here, quarantine the source.

        Raises `HeadRefused` if it is not signed as it must be.
        """
        theirs = _signed(shown)
        source = theirs.source
        if self.closed(source):
            return None
        before = self._shown.pop(source, None)
        if self.trust.owner(source) is None and (before is None or Evidence.of(before, theirs) is None):
            self._remember_shown(theirs)
            return None
        self.trust.check(theirs)
        mine = await self.boundary(source, theirs.seq)
        found = (self.trust.compare(head, theirs) for head in (mine, before) if head is not None)
        evidence = next((each for each in found if each is not None), None)
        if evidence is not None:
            await self._quarantine(evidence)
        return evidence

    def _remember_shown(self, head: SignedHead) -> None:
        """One head of a source that nobody owns here shows nothing, and makes nobody its owner; a second one may."""
        self._shown[head.source] = head
        if len(self._shown) > SHOWN_MAX:
            del self._shown[next(iter(self._shown))]

    async def _quarantine(self, evidence: Evidence) -> None:
        """Keep the evidence; nobody is told any more what is held of the source."""
        source = evidence.source
        self.trust.quarantine(evidence)
        self.total -= self.seq(source)
        self.index.drop(source)
        self.forget_tail(source)
        await self.log.excuse(source)
        await self.log.annotate({FORK_PREFIX + source.encode(): evidence.encode()})

    def evidence(self, source: str) -> list[Head]:
        """The two heads that a source was quarantined for, to be shown to a peer; none if it was not."""
        found = self.trust.quarantined.get(source)
        return [] if found is None else [_sent(found.first), _sent(found.second)]


def _is_dropped(key: bytes, floors: Mapping[str, int]) -> bool:
    start = len(_HEAD_PREFIX) + 1
    name, seq = key[start : -_SEQ.size], _SEQ.unpack(key[-_SEQ.size :])[0]
    return bool(seq <= floors.get(name.decode(), 0))


def _signed(head: Head) -> SignedHead:
    return SignedHead(head.source, head.seq, head.hash, head.key, head.signature, head.voucher)


def _sent(head: SignedHead) -> Head:
    return Head(head.source, head.seq, head.hash, head.key, head.signature, head.voucher)
