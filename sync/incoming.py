"""What comes from one peer: batches, verified, taken into the log, synced, acknowledged; in the order they came.

A run that is refused bars its source: no more of it is asked of this peer. What was forged counts as a strike, and
`STRIKES_MAX` of them end the session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

import trio

from deltalog.log import DeltaLog
from deltalog.receiver import Receipt
from sync.errors import Diverged, HeadRefused, ProtocolError
from sync.ledger import Gap, Ledger
from sync.messages import Have, Message, Unwant, split
from sync.session import Batch, Run, Session, Witness
from sync.trust import SignedHead
from sync.wire import Traffic

STRIKES_MAX: Final = 3
"""Forged runs or heads after which a peer is cut off."""
TURN: Final = 16
"""Runs verified in one turn of the event loop: a signature takes some 0.2 ms."""
GATHER_DELTAS: Final = 4096
"""Batches that wait are taken in together up to about so many deltas."""


class Incoming:
    """Takes in what one peer sends."""

    def __init__(
        self,
        log: DeltaLog,
        ledger: Ledger,
        session: Session,
        put: Callable[[Message], None],
        traffic: Traffic,
        took: Callable[[Receipt], None],
        refused: Callable[[HeadRefused], None],
    ) -> None:
        """`took` and `refused` are told what became of batches and of refused heads."""
        self._log = log
        self._ledger = ledger
        self._session = session
        self._put = put
        self._traffic = traffic
        self._took = took
        self._refused = refused
        self._strikes = 0
        self.barred: set[str] = set()
        """Sources of which something was refused: no more of them is asked for, in this session."""
        self._taken: dict[str, int] = {}
        """source -> end of the latest run that held."""
        self._dropped: set[str] = set()
        """Sources of which something was not taken in, in this session: a gap behind it is not the peer's fault."""
        self._owed: dict[str, int] = {}
        """source -> seq that came and was not synced when its batch was acknowledged: it waits for something."""
        batches = trio.open_memory_channel[Batch](1 << 30)  # as many as the session allows to be undecided
        self._batches_in, self._batches = batches

    def add(self, batch: Batch) -> None:
        """One more to decide on."""
        self._batches_in.send_nowait(batch)

    async def run(self) -> None:
        """Decide on batches until cancelled; on all that have come meanwhile together, so that they share an fsync."""
        async for batch in self._batches:
            batches = [batch]
            while sum(each.count for each in batches) < GATHER_DELTAS:
                try:
                    batches.append(self._batches.receive_nowait())
                except trio.WouldBlock:
                    break
            runs = _joined(batches)
            if runs is not None:
                await self._take(batches, runs)
            else:
                for each in batches:
                    await self._take([each], each.runs)

    async def _take(self, batches: Sequence[Batch], runs: Sequence[Run]) -> None:
        """Verify, take in what holds, wait until it is synced, say so. `runs`: those of the batches, one a source."""
        log, ledger = self._log, self._ledger
        self._traffic.deltas_in += sum(batch.count for batch in batches)
        good = await self._good(runs)
        in_order = sorted((run for run, _ in good), key=attrgetter("source"))
        deltas = sorted(chain.from_iterable(run.deltas for run in in_order), key=attrgetter("timestamp"))
        own = any(run.source == log.source for run, _ in good)
        try:
            await ledger.keep(good)
            receipt = await log.receive(deltas, own=own)
        except BaseException:
            ledger.forget_tails()  # what this batch set free and did not apply waits no more, of whatever source
            raise
        for refusal in receipt.refused:
            self._drop(refusal.delta.source)  # before the session may end in the wait below
        await log.flush()
        self._traffic.deltas_known += len(receipt.known)
        self._owed.update({run.source: run.head.seq for run in runs if ledger.seq(run.source) < run.head.seq})
        for batch in batches:
            self._put(self._session.decided(batch, tuple((run.source, ledger.seq(run.source)) for run in batch.runs)))
        self._took(receipt)

    async def _good(self, runs: Sequence[Run]) -> list[tuple[Run, SignedHead]]:
        """Those runs that hold, with their heads."""
        good = []
        for number, run in enumerate(runs):
            if not number % TURN:
                await trio.lowlevel.checkpoint()
            head = await self._verified(run)
            if head is not None:
                good.append((run, head))
                self._taken[run.source] = head.seq
        return good

    def pay(self, heads: Mapping[str, int]) -> None:
        """These are synced now: acknowledge what came from this peer and had to wait for others."""
        due = [(source, heads[source]) for source in heads.keys() & self._owed.keys()]
        for source, seq in due:
            if seq >= self._owed[source]:
                del self._owed[source]
        for items in split(sorted(due)):
            self._put(Have(items))

    async def _verified(self, run: Run) -> SignedHead | None:
        try:
            return await self._ledger.verify(run)
        except Gap:
            if run.source not in self._dropped:
                raise ProtocolError(f"deltas of {run.source!r} from {run.after + 1}, which leaves a gap") from None
        except HeadRefused as error:
            if isinstance(error, Diverged) and self._taken.get(run.source) == run.after:
                error = Diverged(run.source, error.reason, forged=True)  # what is before came from there, too: no fork
            self._drop(run.source)
            self._strike(error)
        return None

    async def take_witness(self, witness: Witness) -> str:
        """The peer shows a signed head that ends no run. Returns the source that is quarantined for it, or ""."""
        try:
            evidence = await self._ledger.take_witness(witness.head)
        except HeadRefused as error:
            self._strike(error)
        else:
            return "" if evidence is None else evidence.source
        return ""

    def _drop(self, source: str) -> None:
        self._dropped.add(source)
        self._ledger.forget_tail(source)

    def _strike(self, error: HeadRefused) -> None:
        """Take no more of this source from this peer; end the session if it does not stop forging."""
        self.barred.add(error.source)
        self._put(Unwant((error.source,)))
        self._strikes += error.blamed
        self._refused(error)
        if self._strikes >= STRIKES_MAX:
            raise error


def _joined(batches: Sequence[Batch]) -> Sequence[Run] | None:
    """The runs of batches, those of one source as one: the last head vouches for all. None: they do not follow."""
    joined: dict[str, Run] = {}
    for run in (run for batch in batches for run in batch.runs):
        before = joined.get(run.source)
        if before is None:
            joined[run.source] = run
        elif before.head.seq == run.after:
            joined[run.source] = Run(run.source, [*before.deltas, *run.deltas], run.head)
        else:
            return None
    return list(joined.values())
