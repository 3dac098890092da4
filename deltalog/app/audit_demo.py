"""The story of the locks: agents contend for parts of files, and the trail answers who held what.

1. Eight agents lock parts of twenty files, edit them under the lease's fencing token, renew, release, or forget to.
2. One of them sleeps through its lease; what it writes afterwards is refused.
3. The trail is asked: who held a target at a time, what happened, what was contended; every event is accounted for.
4. All is closed, opened again and verified against the line that was printed before.

Every step checks what it says, against what the agents themselves remember.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from audit.errors import LeaseLost, LockConflict, LockTimeout
from audit.event import Action
from audit.lease import Holder, Lease
from audit.locks import Locks
from audit.query import Query
from audit.target import Symbol, Target
from audit.trail import TrailHead
from deltalog.app.agents import NAMES
from deltalog.app.node import Node, open_node
from deltalog.app.story import Story
from deltalog.app.terminal import Meter
from deltalog.clock import to_iso
from deltalog.errors import StaleToken

SECONDS: Final = 3.0
"""How long the agents work, unless told otherwise."""
FILES: Final = 20
_SOURCE: Final = "desk"
_SHORT_S: Final = 1.0
"""TTL of the lease that is slept through: the shortest there is."""
_NEVER_RELEASED: Final = 0.01
_RENEWED: Final = 0.1
_SEVERAL: Final = 0.15
_SAMPLES: Final = 20


@attrs.define
class Memory:
    """What the agents know themselves."""

    counts: Counter[Action] = attrs.field(factory=Counter)
    """Events that must be in the trail because of what they did."""
    edits: int = 0
    samples: list[tuple[Lease, int]] = attrs.field(factory=list)
    """Leases, and a timestamp at which each was held."""
    abandoned: list[Lease] = attrs.field(factory=list)
    """Leases that nobody gave back."""


@attrs.define(kw_only=True)
class LockStory(Story):
    """What the demo of the locks tells and checks."""

    seed: int
    seconds: float
    memory: Memory = attrs.field(factory=Memory)


# ------------------------------------------------------------------------------------------------------- the agents


def _wanted(chance: random.Random) -> list[Target]:
    """A file, or some lines of it, or a function in it; now and then of two files at once."""
    paths = chance.sample([f"src/part_{number:02}.py" for number in range(FILES)], 1 + (chance.random() < _SEVERAL))
    return [_part(chance, path) for path in paths]


def _part(chance: random.Random, path: str) -> Target:
    first = chance.randrange(1, 200)
    choices = (
        Target(path),
        Target(path, lines=(first, first + chance.randrange(60))),
        Target(path, symbol=Symbol("function", chance.choice(("main", "flush", "page")))),
    )
    return chance.choice(choices)


async def _work(story: LockStory, node: Node, me: Holder, chance: random.Random) -> None:
    """Lock, edit, give back, again and again."""
    until = trio.current_time() + story.seconds
    while trio.current_time() < until:
        wanted, memory = _wanted(chance), story.memory
        try:
            lease = await node.locks.acquire(wanted, me, intention="edit", wait_s=chance.choice((0.0, 0.02, 0.2)))
        except (LockConflict, LockTimeout):
            memory.counts[Action.DENIED] += len(wanted)
        else:
            memory.counts[Action.ACQUIRED] += len(wanted)
            await _edit(story, node, lease, chance)
        await trio.sleep(chance.uniform(0, 0.004))


async def _edit(story: LockStory, node: Node, lease: Lease, chance: random.Random) -> None:
    """Append an edit for each target under the lease's token; then give it back, or forget to."""
    memory = story.memory
    for target in lease.targets:
        await node.log.append({"by": lease.holder_name}, kind="edit", key=str(target), fence=lease.token)
        memory.edits += 1
    memory.samples.append((lease, node.trail.clock.tick()))
    await trio.sleep(chance.uniform(0.001, 0.02))
    if chance.random() < _RENEWED:
        lease = await node.locks.renew(lease)
        memory.counts[Action.RENEWED] += len(lease.targets)
    if chance.random() < _NEVER_RELEASED:
        memory.abandoned.append(lease)
    else:
        await node.locks.release(lease)
        memory.counts[Action.RELEASED] += len(lease.targets)


# -------------------------------------------------------------------------------------------------------- the story


async def tell(story: LockStory) -> None:
    """Tell the story from its beginning to its end."""
    story.step(f"1. {len(NAMES)} agents lock parts of {FILES} files for {story.seconds:g} s, and edit what they hold")
    async with open_node(story.path, source=_SOURCE) as node:
        await _contend(story, node)
        await _oversleep(story, node)
        await _ask(story, node)
        await _account(story, node)
        await node.trail.recorder.flush()
        head, last_token = node.trail.head(), node.locks.first_token
    await _reopen(story, head, last_token)


async def _contend(story: LockStory, node: Node) -> None:
    memory, started = story.memory, time.perf_counter()
    with Meter("  working", at_once=True, interval_s=1.0) as meter:
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(NAMES):
                chance = random.Random(f"{story.seed}/{name}")  # noqa: S311  # a story, not a secret
                nursery.start_soon(_work, story, node, Holder(f"agent-{number + 1}", name), chance)
            while len(nursery.child_tasks) > 0:
                told = f"{memory.counts[Action.ACQUIRED]:,} locks taken"
                meter.update(min(time.perf_counter() - started, story.seconds), story.seconds, told)
                await trio.sleep(0.1)
    held = [lease for lease in node.locks.leases() if lease.lock_id not in {each.lock_id for each in memory.abandoned}]
    story.check(not held, f"all was given back but {len(memory.abandoned)} leases that their holders forgot")
    for lease in memory.abandoned:
        await _revoked(node.locks, lease, memory)
    edits = node.log.heads.get(_SOURCE, 0)
    story.check(edits == memory.edits, f"{edits:,} edits are in the log, each under the token of its lease")
    story.figures["locks taken"] = f"{memory.counts[Action.ACQUIRED]:,}"
    story.figures["refused, or waited in vain"] = f"{memory.counts[Action.DENIED]:,}"


async def _revoked(locks: Locks, lease: Lease, memory: Memory) -> None:
    """Take a lease away that nobody will give back; it may have lapsed by itself."""
    revoked = await locks.revoke(lease.token, "its holder forgot it")
    memory.counts[Action.REVOKED if revoked is not None else Action.EXPIRED] += len(lease.targets)


async def _oversleep(story: LockStory, node: Node) -> None:
    story.step("2. An agent sleeps through its lease; another one takes over")
    memory, target = story.memory, Target("src/shared.py")
    sleepy = await node.locks.acquire(target, Holder("agent-1", NAMES[0]), ttl_s=_SHORT_S)
    successor = await node.locks.acquire(target, Holder("agent-2", NAMES[1]), wait_s=60)
    await node.log.append("mine now", key=str(target), fence=successor.token)
    try:
        await node.log.append("I was asleep", key=str(target), fence=sleepy.token)
    except StaleToken as error:
        story.check(error.token == sleepy.token, f"its late write is refused: {error}")
    else:
        story.check(False, "its late write is refused")
    try:
        await node.locks.release(sleepy)
    except LeaseLost as error:
        story.check(True, f"and so is its release: {error}")
    else:
        story.check(False, "and so is its release")
    await node.locks.release(successor)
    memory.counts += Counter({Action.ACQUIRED: 2, Action.EXPIRED: 1, Action.RELEASED: 1, Action.DENIED: 1})
    memory.counts += Counter({Action.CONFLICT: 1, Action.WAITING: 1})


async def _ask(story: LockStory, node: Node) -> None:
    story.step("3. The trail is asked")
    await node.trail.recorder.flush()
    reader, memory = node.trail.reader, story.memory
    samples = memory.samples[:: max(1, len(memory.samples) // _SAMPLES)]
    started = time.perf_counter()
    right = [await _is_told(node, lease, at) for lease, at in samples]
    elapsed_ms = 1000 * (time.perf_counter() - started) / len(samples)
    lease, at = samples[len(samples) // 2]
    story.check(
        all(right),
        f"who held {lease.target} at {to_iso(at)}? {lease.holder_name}; and so for {len(samples)} moments "
        f"({elapsed_ms:.1f} ms each)",
    )
    summary = await reader.summary()
    counted = {action: summary.by_action.get(action, 0) for action in memory.counts}
    unsure = {Action.CONFLICT, Action.WAITING}  # whether one had to wait only the table knows
    same = all(counted[action] == memory.counts[action] for action in memory.counts.keys() - unsure)
    story.check(same, "it counts what the agents count: " + ", ".join(f"{v:,} {k}" for k, v in counted.items()))
    contended, times = summary.most_contended[0]
    story.say(f"most contended: {contended}, {times:,} times; most active: {next(iter(summary.by_holder))}")
    longest = summary.longest_held[0]
    story.say(f"longest held: {longest.acquired.event.target}, {longest.duration_ms:,} ms")
    page = await reader.query(Query(holder="agent-1", actions=[Action.EXPIRED], newest_first=True, limit=1))
    story.check([each.event.target for each in page.events] == ["src/shared.py"], "the lease slept through is in it")


async def _is_told(node: Node, lease: Lease, at: int) -> bool:
    """Whether the trail says of each target of a lease that this lease held it."""
    answers = [await node.trail.reader.held(target, at) for target in lease.targets]
    return all(lease.token in {each.event.token for each in answer} for answer in answers)


async def _account(story: LockStory, node: Node) -> None:
    counts = node.trail.recorder.statistics()
    dropped = sum(counts.dropped.values())
    story.check(
        counts.submitted == counts.recorded + dropped,
        f"recorded {counts.recorded:,} + dropped {dropped:,} = submitted {counts.submitted:,}",
    )
    story.figures["events recorded"] = f"{counts.recorded:,}"
    story.figures["events dropped"] = f"{dropped:,}"


async def _reopen(story: LockStory, head: TrailHead, first_token: int) -> None:
    story.step("4. All is closed, opened again and verified")
    async with open_node(story.path) as node:
        report = await node.trail.verify(head)
        findings: Sequence[str] = [str(each) for each in report.findings]
        story.check(report.ok, f"{report.events:,} events, no fault" if report.ok else f"faults: {findings[:3]}")
        story.say(f"{head} is still in it")
        story.check(
            node.locks.first_token > first_token + story.memory.counts[Action.ACQUIRED] // 2,
            f"tokens go on above all that were given: with {node.locks.first_token:,}",
        )
    story.figures["verified"] = "no fault" if report.ok else f"{len(findings):,} faults"
