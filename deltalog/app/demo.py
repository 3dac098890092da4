"""The story the README tells: agents edit files, the writing process is killed, nothing that was flushed is lost.

1. A child process takes in the agents' edits and appends notes of its own; it reports what it has flushed.
2. It is killed with SIGKILL in the middle.
3. The log is opened again; what is there is compared with what was flushed, and with what the agents sent.
4. The session is finished; all is replayed, queried, collected and verified.

Every step checks what it says. The agents are simulated (see `agents`): the same for the same seed, so what must be in
the log is known to the last byte.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from deltalog.app import audit_demo
from deltalog.app.agents import FILES, NAMES, Files, session
from deltalog.app.opening import DataOptions, inspected, opened, startup_lines
from deltalog.app.options import DIRECTORY, debug_option
from deltalog.app.peer_options import check_sync_installed
from deltalog.app.process import run
from deltalog.app.story import Story
from deltalog.app.terminal import Meter, listed
from deltalog.clock import COUNTER_BITS, to_iso
from deltalog.delta import Delta
from deltalog.errors import BelowFloor
from deltalog.log import DeltaLog, LogOptions
from deltalog.manager import Manager
from deltalog.retention import Retention
from deltalog.verify import verify
from deltalog.version import Order, VersionVector

DELTAS: Final = 100_000
"""Edits in the session."""
PEER_DELTAS: Final = 24_000
"""Edits in the session that the peers exchange."""
_OWN: Final = "desk"
_BATCH: Final = 250
_FLUSHES: Final = 20
_KILL_AT: Final = 0.45
_KILL_DELAY_S: Final = 0.05
SEEDS: Final = click.IntRange(0, 1 << 32)
_MINUTE: Final = 60_000 << COUNTER_BITS


# ------------------------------------------------------------------------------------------------------- the writer


async def write_session(
    log: DeltaLog, edits: Iterable[Delta], flush_every: int, report: Callable[[DeltaLog, int], None]
) -> None:
    """Take in what the log lacks of the edits, as peers would send it, and append a note after each batch.

    After every `flush_every` batches the log is flushed, and `report` is called with the number of edits it then holds.
    """
    heads = log.heads
    batch: list[Delta] = []
    done = taken = 0
    for delta in edits:
        done += 1
        if heads.covers(delta.dot):
            continue
        batch.append(delta)
        if len(batch) == _BATCH:
            await _take_in(log, batch, done)
            batch, taken = [], taken + 1
            if taken % flush_every == 0:
                await log.flush()
                report(log, done)
    await _take_in(log, batch, done)
    await log.flush()
    report(log, done)


async def _take_in(log: DeltaLog, batch: Sequence[Delta], done: int) -> None:
    receipt = await log.receive(batch)
    assert not receipt.refused, receipt.refused
    await log.append({"taken in": len(batch), "up to": done}, kind="note", key="session")


async def _child(path: Path, seed: int, count: int) -> None:
    """The writing process: each line of its output says what is flushed."""

    def report(log: DeltaLog, done: int) -> None:
        print(json.dumps({"done": done, "synced": dict(log.synced)}), flush=True)

    async with opened(DataOptions(path, silent=True), create=True, source=_OWN, options=LogOptions()) as manager:
        await write_session(manager.log, session(seed, count), _flush_every(count), report)
        await trio.sleep_forever()  # it ends by being killed


def _flush_every(count: int) -> int:
    return max(1, count // (_BATCH * _FLUSHES))


async def _write_and_kill(story: SessionStory) -> dict[str, Any]:
    """Run the writing process, kill it in the middle; return its last report."""
    command = [sys.executable, "-m", __spec__.name, str(story.path), str(story.seed), str(story.count)]
    child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    last: dict[str, Any] = {"done": 0, "synced": {}}
    try:
        with Meter("  writing", at_once=True, interval_s=1.0) as meter:
            async for last in _reports(child):
                meter.update(last["done"], story.count, f"{last['done']:,} edits flushed")
                if last["done"] >= story.count * _KILL_AT:
                    await trio.sleep(_KILL_DELAY_S)  # into the middle of what is not flushed
                    break
        child.send_signal(signal.SIGKILL)
        async for later in _reports(child):  # what it had said before it was killed
            last = later
    finally:
        child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
    story.check(child.returncode == -signal.SIGKILL, f"process {child.pid} was killed with SIGKILL while it wrote")
    return last


async def _reports(child: trio.Process) -> AsyncIterator[dict[str, Any]]:
    assert child.stdout is not None, "it was opened with a pipe"
    rest = b""
    while b"\n" in rest or (data := await child.stdout.receive_some()):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


# -------------------------------------------------------------------------------------------------------- the story


@attrs.define(kw_only=True)
class SessionStory(Story):
    """What the demo tells and checks."""

    seed: int
    count: int
    edits: list[Delta] = attrs.field(factory=list)
    """The whole session, as the agents know it."""


async def tell(story: SessionStory) -> None:
    """Tell the story from its beginning to its end."""
    story.step(f"1. {len(NAMES)} agents edit {len(FILES)} files; a process writes their {story.count:,} edits to a log")
    flushed = await _write_and_kill(story)
    story.edits = list(session(story.seed, story.count))
    async with opened(DataOptions(story.path), options=LogOptions(), tell=False) as manager:
        await _recover(story, manager, flushed)
        await _finish(story, manager.log)
        await _replay(story, manager.log)
        await _ask(story, manager.log)
        await _collect(story, manager.log)
    await trio.to_thread.run_sync(_verify, story)


async def _recover(story: SessionStory, manager: Manager, flushed: Mapping[str, Any]) -> None:
    log, synced = manager.log, flushed["synced"]
    story.step("2. The log is opened again")
    for line in startup_lines(manager.startup):
        story.say(line)
    if manager.startup.kind == "unclean" and not manager.startup.incarnation_of:
        story.say(
            f"it was not closed in order; nothing that {log.source!r} had numbered is lost, so it goes on as before"
        )
    story.say(f"it holds {sum(log.heads.values()):,} deltas; the process had said it flushed {sum(synced.values()):,}")
    story.check(log.heads.covers_all(synced), "nothing that was flushed is missing")
    held = {name: [delta async for delta in log.by_source(name)] for name in NAMES}
    sent = {name: [delta for delta in story.edits if delta.source == name] for name in NAMES}
    same = all(held[name] == sent[name][: len(held[name])] for name in NAMES)
    story.check(same, "of every agent it holds the first edits without a gap, byte for byte")
    story.figures["flushed before the kill"] = f"{sum(synced.values()):,} deltas"
    story.figures["recovered after it"] = f"{sum(log.heads.values()):,} deltas"


async def _finish(story: SessionStory, log: DeltaLog) -> None:
    before, started = sum(log.heads.values()), time.perf_counter()
    with Meter("  writing", at_once=True, interval_s=1.0) as meter:

        def report(_: DeltaLog, done: int) -> None:
            meter.update(done, story.count, f"{done:,} edits flushed")

        await write_session(log, story.edits, _flush_every(story.count), report)
    count, elapsed_s = sum(log.heads.values()) - before, time.perf_counter() - started
    story.step("3. The agents send what the log lacks, and the session is finished")
    heads = log.heads
    story.check(sum(heads.get(name, 0) for name in NAMES) == story.count, f"all {story.count:,} edits are in the log")
    story.figures["deltas"] = f"{sum(heads.values()):,}"
    story.figures["sources"] = f"{len(heads):,}"
    story.figures["written"] = f"{count / elapsed_s:,.0f} deltas/s, fsynced"


async def _replay(story: SessionStory, log: DeltaLog) -> None:
    story.step("4. All is replayed, in timestamp order")
    started, stream, deltas = time.perf_counter(), log.replay(), list[Delta]()
    while page := await stream.page():
        deltas.extend(page)
    story.figures["replayed"] = f"{len(deltas) / (time.perf_counter() - started):,.0f} deltas/s"
    story.check(_is_causal(deltas), "every delta comes after its predecessor and after all that its author had seen")
    replayed, expected = Files(), Files()
    for delta in deltas:
        replayed.apply(delta)
    for delta in sorted(story.edits, key=lambda delta: (delta.timestamp, delta.source)):
        expected.apply(delta)
    lines = sum(map(len, replayed.lines.values()))
    story.check(
        replayed.digest() == expected.digest(),
        f"it gives the files of the agents: {len(replayed.lines)} files, {lines:,} lines, digest {replayed.digest()}",
    )


def _is_causal(deltas: Iterable[Delta]) -> bool:
    seen: dict[str, int] = {}
    for delta in deltas:
        if delta.seq != seen.get(delta.source, 0) + 1:
            return False
        if any(seen.get(source, 0) < seq for source, seq in delta.deps.items()):
            return False
        seen[delta.source] = delta.seq
    return True


async def _ask(story: SessionStory, log: DeltaLog) -> None:
    story.step("5. Questions")
    begin, end = story.edits[len(story.edits) // 3].timestamp, story.edits[len(story.edits) // 2].timestamp
    started = time.perf_counter()
    found = [delta async for delta in log.between(begin, end)]
    elapsed_ms = (time.perf_counter() - started) * 1000
    expected = sum(begin < delta.timestamp <= end for delta in story.edits)
    story.check(len(found) == expected, f"{to_iso(begin)} to {to_iso(end)}: {len(found):,} edits ({elapsed_ms:.1f} ms)")
    name = NAMES[story.seed % len(NAMES)]
    newest = list(await log.by_source(name, reverse=True).page(3))[:3]
    expected_newest = [delta for delta in story.edits if delta.source == name][:-4:-1]
    dots = ", ".join(f"{delta.seq:,} on {delta.key}" for delta in newest)
    story.check(newest == expected_newest, f"the newest of {name}: {dots}")
    conflicts = [conflict async for conflict in log.conflicts(begin, begin + _MINUTE)]
    first = conflicts[0]
    order = await log.order(first.first.dot, first.second.dot)
    story.check(
        order is Order.CONCURRENT,
        f"one minute of it holds {len(conflicts):,} conflicts; the first: {_dot(first.first)} and {_dot(first.second)} "
        f"both changed {first.key}, and neither had seen the other",
    )


def _dot(delta: Delta) -> str:
    return f"{delta.source}:{delta.seq:,}"


async def _collect(story: SessionStory, log: DeltaLog) -> None:
    story.step("6. The older half is dropped")
    await log.compact()
    before = await log.sizes()
    done = await log.truncate(retention=Retention(max_deltas=before.deltas // 2))
    await log.compact()
    after = await log.sizes()
    story.check(
        after.deltas == before.deltas - done.dropped and after.disk_bytes < before.disk_bytes,
        f"{done.dropped:,} deltas dropped; {before.disk_bytes:,} bytes on disk before, {after.disk_bytes:,} after",
    )
    try:
        log.since({})
    except BelowFloor as error:
        told = VersionVector(error.floor) == log.floor
        story.check(told, f"who asks for all is told what is missing: the floor is {listed(log.floor)}")
    else:
        story.check(False, "who asks for all is told what is missing")
    story.figures["on disk"] = f"{before.disk_bytes:,} bytes, {before.disk_bytes / before.deltas:.1f} a delta"
    story.figures["after dropping half"] = f"{after.disk_bytes:,} bytes"


def _verify(story: SessionStory) -> None:
    story.step("7. The closed log is verified: every record, the index, the heads, the hash chains")
    with inspected(story.path) as store:
        faults = list(verify(store))
    story.check(not faults, "no fault" if not faults else f"{len(faults):,} faults; the first: {faults[0]}")
    story.figures["verified"] = "no fault" if not faults else f"{len(faults):,} faults"


# --------------------------------------------------------------------------------------------------------- the verb


@click.group(invoke_without_command=True)
@click.option("--data", type=DIRECTORY, help="Keep the log in this directory; it must not be there yet.")
@click.option("--seed", type=SEEDS, default=1, show_default=True, help="Another session.")
@click.option("--deltas", type=click.IntRange(2_000, 10_000_000), default=DELTAS, show_default=True, help="Its length.")
@debug_option
@click.pass_context
def demo(context: click.Context, data: Path | None, seed: int, deltas: int) -> int:
    """Show what the log is for: write, kill -9, recover, replay, query, collect, verify. Needs nothing else."""
    if context.invoked_subcommand is not None:
        return 0
    with _place(data) as path:
        story = SessionStory(path=path, seed=seed, count=deltas)
        farewell = f"The log is kept in {path}: deltalog stats --data {path}" if data is not None else ""
        return run(lambda: story.run(lambda: tell(story), farewell))


@demo.command
@click.option("--data", type=DIRECTORY, help="Keep log and trail in this directory; it must not be there yet.")
@click.option("--seed", type=SEEDS, default=1, show_default=True, help="Other agents.")
@click.option(
    "--seconds", type=click.FloatRange(0.2, 3600), default=audit_demo.SECONDS, show_default=True, help="How long."
)
@debug_option
def audit(data: Path | None, seed: int, seconds: float) -> int:
    """Show what the locks are for: agents contend for parts of files, and the trail answers who held what."""
    with _place(data) as path:
        story = audit_demo.LockStory(path=path, seed=seed, seconds=seconds)
        farewell = f"All is kept in {path}: deltalog serve --data {path}" if data is not None else ""
        return run(lambda: story.run(lambda: audit_demo.tell(story), farewell))


@demo.command
@click.option("--data", type=DIRECTORY, help="Keep the three logs in this directory; it must not be there yet.")
@click.option("--seed", type=SEEDS, default=1, show_default=True, help="Another session.")
@click.option(
    "--deltas", type=click.IntRange(2_000, 1_000_000), default=PEER_DELTAS, show_default=True, help="Its length."
)
@debug_option
def sync(data: Path | None, seed: int, deltas: int) -> int:
    """Show what the peers are for: three nodes, one is killed, a link is cut, and in the end all hold the same."""
    check_sync_installed()
    from deltalog.app import sync_demo  # noqa: PLC0415  # may be missing

    with _place(data) as path:
        story = sync_demo.PeerStory(path=path, seed=seed, count=deltas)
        farewell = f"All is kept in {path}: deltalog stats --data {path}/hub" if data is not None else ""
        return run(lambda: story.run(lambda: sync_demo.tell(story), farewell))


@contextmanager
def _place(data: Path | None) -> Iterator[Path]:
    """The directory to be made: the one asked for, or one that goes afterwards."""
    if data is not None and data.exists():
        raise click.UsageError(f"{data} is there already; --data takes a directory that is to be made")
    with tempfile.TemporaryDirectory(prefix="deltalog-demo-") as folder:
        yield data if data is not None else Path(folder) / "data"


if __name__ == "__main__":
    trio.run(_child, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
