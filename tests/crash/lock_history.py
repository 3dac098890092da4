"""What the lives of one directory told of its locks, held against the rules and against what is left (T13, T14).

Knows nothing of the locks but which targets exclude each other, written down here by hand.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

PARTS = ("src/app.py:1-10", "src/app.py:8-20", "src/app.py:21-30")
APART = {
    frozenset(pair)
    for pair in (
        *(("doc.md", other) for other in ("src/", "src/app.py", "src/lib.py", *PARTS)),
        *(("src/lib.py", other) for other in ("src/app.py", *PARTS)),
        ("src/app.py:1-10", "src/app.py:21-30"),
        ("src/app.py:8-20", "src/app.py:21-30"),
    )
}
"""Targets that two may hold at a time."""
ROUNDING_S = 1e-6


def exclude(some: list[str], others: list[str]) -> bool:
    """Whether two leases cannot be held at a time."""
    return any(frozenset((a, b)) not in APART for a in some for b in others)


@attrs.define
class Grant:
    """A lease as its holder told of it."""

    token: int
    keys: list[str]
    until: float
    """When it lapses, if it is not renewed."""
    timestamp: int
    """Its event's is not greater."""
    lock_id: str


@attrs.define
class Life:
    """One process."""

    started: int = 0
    """Place of its STARTED event in the trail."""
    first_token: int = 0
    durable: int = 0
    """Timestamp up to which events are durable."""
    grants: list[Grant] = attrs.field(factory=list)
    live: dict[int, Grant] = attrs.field(factory=dict)
    judged: bool = False


@attrs.define
class LockHistory:
    """All lives of one directory so far."""

    strict: bool
    """Whether a grant is told only when its event is durable."""
    lives: list[Life] = attrs.field(factory=list)
    counts: Counter[str] = attrs.field(factory=Counter)
    tops: dict[str, int] = attrs.field(factory=dict)
    """The highest token granted, by target."""
    written: dict[str, int] = attrs.field(factory=dict)
    """The highest token that the log took, by target."""

    def grants(self) -> list[Grant]:
        return [grant for life in self.lives for grant in life.grants]

    def hear(self, said: list[Any]) -> None:
        """Check one life, as it told of itself."""
        life = Life()
        for line in said:
            if "opened" in line:
                self._opened(life, line)
            else:
                self.counts[line["do"]] += 1
                getattr(self, f"_{line['do']}")(life, line)
        if life.started:
            self.lives.append(life)

    # ------------------------------------------------------------------------------------------------ what is told

    def _granted(self, life: Life, line: Any) -> None:
        grant = Grant(line["token"], line["keys"], line["until"], line["ts"], line["id"])
        assert grant.token >= life.first_token
        for key, top in self.tops.items():
            assert grant.token > top or not exclude([key], grant.keys), f"{line} after {top} for {key}"
        for other in life.live.values():
            ended = other.until <= line["taken"] + ROUNDING_S
            assert ended or not exclude(other.keys, grant.keys), f"{grant} was granted while {other} was held"
        self.tops |= dict.fromkeys(grant.keys, grant.token)
        life.live[grant.token] = grant
        life.grants.append(grant)

    def _renewed(self, life: Life, line: Any) -> None:
        grant = life.live[line["token"]]
        assert line["taken"] < grant.until + ROUNDING_S, "a lease that had lapsed was renewed"
        for key in grant.keys:
            assert self.tops[key] == grant.token, "a lease that another one followed was renewed"
        grant.until = line["until"]

    def _ending(self, life: Life, line: Any) -> None:
        life.live.pop(line["token"], None)

    _lost = _ending

    def _wrote(self, life: Life, line: Any) -> None:
        key, token = line["key"], line["token"]
        assert token >= max(life.first_token, self.written.get(key, 0)), f"the log took a stale token: {line}"
        self.written[key] = token

    def _refused(self, life: Life, line: Any) -> None:  # noqa: ARG002  # as the others
        assert line["token"] < self.written[line["key"]], f"the log refused a good token: {line}"

    def _durable(self, life: Life, line: Any) -> None:
        life.durable = line["ts"]

    # ------------------------------------------------------------------------------------------------- what is left

    def _opened(self, life: Life, found: Any) -> None:
        """Hold what earlier lives left against what they told."""
        assert not found["findings"], found["findings"]
        assert not found["useful"], f"leases of earlier lives were of use: {found['useful']}"
        life.first_token, events = found["opened"], found["events"]
        handed_out = [grant.token for grant in self.grants()] + [token for _, _, token, *_ in events]
        assert life.first_token > max(handed_out), "a token may come again"
        assert found["reserved"] >= life.first_token
        _one_holder_at_a_time(events)
        _never_descending(found["writes"])
        starts = [place for place, (action, *_) in enumerate(events) if action == "started"]
        for before in self.lives:
            if not before.judged:
                self._judge(before, events, next(place for place in starts if place > before.started))
        life.started = starts[-1]

    def _judge(self, life: Life, events: list[Any], next_start: int) -> None:
        """Every grant told is in the trail, or the next start says that it may be missing."""
        *_, unclean, last = events[next_start]
        assert unclean == "true", "the next start says that the stop was not clean"
        assert last >= life.durable, "what was flushed is there"
        recorded = {(target, token) for action, target, token, *_ in events if action == "acquired"}
        for grant in life.grants:
            if any((key, grant.token) not in recorded for key in grant.keys):
                assert not self.strict, f"{grant} is not in the trail"
                assert grant.timestamp > last, f"{grant} is not in the trail, which says it is whole up to {last}"
                self.counts["grants not recorded"] += 1
        life.judged = True


def _one_holder_at_a_time(events: list[Any]) -> None:
    """The trail never tells of two leases that exclude each other, and never twice of one token."""
    held: dict[tuple[str, int], None] = {}
    tops: dict[str, int] = {}
    for action, target, token, *_ in events:
        if action == "started":
            held.clear()
        elif action == "acquired":
            assert token > tops.get(target, 0), f"{target}: token {token} after {tops[target]}"
            for other, others_token in held:
                assert others_token == token or not exclude([other], [target]), f"{token} beside {others_token}"
            held[target, token] = None
            tops[target] = token
        elif action in ("released", "expired", "revoked"):
            assert held.pop((target, token), 0) is None, f"{action} of {target}, {token}, which was not held"


def _never_descending(writes: list[Any]) -> None:
    """In the log, of all lives, no write under a token stands behind one under a greater token."""
    by_key: dict[str, list[int]] = {}
    for key, token in writes:
        by_key.setdefault(key, []).append(token)
    for key, tokens in by_key.items():
        assert tokens == sorted(tokens), f"{key}: a write under a stale token"
