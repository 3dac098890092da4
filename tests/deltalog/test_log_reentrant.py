"""An append from within an append: by a finalizer, a signal handler, a clock, the payload's own code (invariant I1)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from deltalog.delta import Delta
from deltalog.errors import UsageError
from deltalog.log import DeltaLog
from tests.deltalog.memory_log import Rig, Wall

REFUSAL = "append was called from within another append"


class Meddler(Wall):
    """A wall clock that appends when it is looked at, as whatever runs at that moment might."""

    log: DeltaLog | None = None

    def __init__(self) -> None:
        super().__init__(step_ms=1)
        self.refused: list[UsageError] = []

    def __call__(self) -> int:
        log, self.log = self.log, None
        if log is not None:
            try:
                log.append_nowait("from within")
            except UsageError as error:
                self.refused.append(error)
        return super().__call__()


async def everything(log: DeltaLog) -> dict[tuple[str, int], Any]:
    await log.flush()
    return {delta.dot: delta.payload async for delta in log.replay()}


async def test_i1_an_append_from_within_an_append_is_refused_and_nothing_changes() -> None:
    rig = Rig()
    rig.wall = wall = Meddler()
    async with rig.running() as log:
        for number in range(1, 6):
            wall.log = log
            assert log.append_nowait(number).seq == number
        assert [str(error).startswith(REFUSAL) for error in wall.refused] == [True] * 5
        assert await everything(log) == {("alice", number): number for number in range(1, 6)}


async def test_i1_a_payload_that_appends_while_it_is_encoded_is_refused() -> None:
    class Appending(dict[str, Any]):
        def items(self) -> Any:
            return {"inner": log.append_nowait("inner").seq}.items()

    async with Rig().running() as log:
        with pytest.raises(UsageError, match=REFUSAL):
            log.append_nowait(Appending())
        assert log.append_nowait("after").seq == 1
        assert await everything(log) == {("alice", 1): "after"}


async def test_i1_finalizers_that_append_never_make_a_dot_twice(busy_collector: None) -> None:
    """Some run between two appends and are taken, some within one and are refused."""

    class Node:
        """Garbage that only the collector of cycles finds."""

        def __init__(self) -> None:
            self.itself = self
            weakref.finalize(self, append, "gone")

    def append(payload: object) -> None:
        try:
            given.append((log.append_nowait(payload), payload))
        except UsageError:
            assert payload == "gone"

    given: list[tuple[Delta, object]] = []
    async with Rig().running() as log:
        for number in range(300):
            Node()
            append(number)
        gc.collect()
        read = await everything(log)
    assert [delta.seq for delta, _ in given] != []
    assert len({delta.dot for delta, _ in given}) == len(given)
    assert read == {delta.dot: payload for delta, payload in given}
