"""The composition root: what one part needs of another, and the order in which they end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from audit.event import Action
from audit.lease import Holder
from audit.query import Query
from audit.target import Target
from deltalog.app.node import Node, open_node
from deltalog.errors import StaleToken, StoreMissing

ME = Holder("agent-1", "ada")
FILE = Target("src/app.py")


async def actions(node: Node) -> list[Action]:
    return [each.event.action for each in (await node.trail.reader.query(Query(limit=1000))).events]


async def test_what_locks_say_when_they_end_is_recorded_before_the_trail_ends(tmp_path: Path) -> None:
    async with open_node(tmp_path / "data") as node:
        await node.locks.acquire(FILE, ME)
    async with open_node(tmp_path / "data") as node:
        await node.trail.recorder.flush()
        first, acquired, *ended, stopped, started = await actions(node)
    assert (first, acquired, stopped, started) == ("started", "acquired", "stopped", "started")
    assert ended == [Action.REVOKED]


async def test_i12_tokens_go_on_after_a_restart_and_older_ones_are_refused(tmp_path: Path) -> None:
    async with open_node(tmp_path / "data") as node:
        before = await node.locks.acquire(FILE, ME)
        await node.log.append("kept", key="src/app.py", fence=before.token)
    async with open_node(tmp_path / "data") as node:
        with pytest.raises(StaleToken):
            await node.log.append("late", key="src/app.py", fence=before.token)
        after = await node.locks.acquire(FILE, ME)
        assert after.token > before.token
        await node.log.append("next", key="src/app.py", fence=after.token)
        assert [delta.payload async for delta in node.log.replay()] == ["kept", "next"]


async def test_the_manager_looks_after_the_trail(tmp_path: Path) -> None:
    async with open_node(tmp_path / "data") as node:
        assert list(node.manager.names) == ["delta", "audit"]
        assert node.problems() == []
        await node.manager.flush()
        await node.manager.compact()
    assert list(node.manager.names) == ["delta"]


async def test_it_says_what_is_wrong(tmp_path: Path) -> None:
    async with open_node(tmp_path / "data") as node:
        lock = tmp_path / "data" / "rocks" / "audit" / "LOCK"
        lock.unlink()
        lock.touch()
        assert node.problems() == ["audit: its directory was removed or replaced underneath"]


async def test_an_error_of_the_body_comes_out_as_itself_and_all_is_closed(tmp_path: Path) -> None:
    async def fail() -> None:
        async with open_node(tmp_path / "data") as node:
            await node.locks.acquire(FILE, ME)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        await fail()
    with trio.fail_after(30):
        async with open_node(tmp_path / "data") as node:
            assert node.locks.leases() == []


async def test_it_makes_no_directory_unless_told(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        async with open_node(tmp_path / "data", create=False):
            raise AssertionError("it must not open")
    assert not (tmp_path / "data").exists()
