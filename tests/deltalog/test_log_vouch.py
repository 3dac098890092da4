"""Chain hashes that whoever verified a run knows already: used for these records, and never wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog import chain, writer
from deltalog.delta import Delta
from deltalog.log import DeltaLog
from tests.deltalog.memory_log import Rig, remote


def run_of(count: int, salt: object = "") -> list[Delta]:
    return [remote("bob", seq, 10 * seq, payload=[seq, salt]) for seq in range(1, count + 1)]


def vouch(log: DeltaLog, deltas: list[Delta], after: int = 0) -> None:
    records = [delta.record for delta in deltas]
    hashes = chain.extend(chain.genesis("bob"), records)
    previous = hashes[after - 1] if after else chain.genesis("bob")
    log.vouch("bob", after + 1, previous, records[after:], hashes[after:])


async def test_what_was_vouched_for_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, honest = list[int](), chain.extend

    def extend(previous: bytes, records: list[bytes]) -> list[bytes]:
        hashed.append(len(records))
        return honest(previous, records)

    deltas = run_of(20)
    async with Rig().running() as log:
        monkeypatch.setattr(chain, "extend", extend)
        vouch(log, deltas[:15])
        del hashed[:]
        await log.receive(deltas)
        await log.flush()
        monkeypatch.undo()
        assert sum(hashed) == 5
        assert log.synced_hash("bob") == chain.extend(chain.genesis("bob"), [delta.record for delta in deltas])[-1]


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30), st.booleans()), max_size=4), st.integers(1, 30))
async def test_the_chain_is_the_same_whatever_was_vouched_for(runs: list[tuple[int, int, bool]], step: int) -> None:
    """`runs`: after, until, of these deltas or of others that are no part of the log."""
    deltas, others = run_of(30), run_of(30, "other")
    async with Rig().running() as log:
        for start in range(0, 30, step):
            for after, until, ours in runs:
                if after < until:
                    vouch(log, (deltas if ours else others)[:until], after)
            await log.receive(deltas[start : start + step])
            await log.flush()
        assert log.synced_hash("bob") == chain.extend(chain.genesis("bob"), [delta.record for delta in deltas])[-1]


async def test_what_is_vouched_for_is_bounded() -> None:
    async with Rig().running() as log:
        for number in range(3 * writer.VOUCHED_MAX):
            log.vouch(f"s{number}", 1, b"", [], [])
        assert len(log._writer._vouched) <= writer.VOUCHED_MAX
