"""The simulated session is the same each time, and as causal as a real one."""

from __future__ import annotations

from deltalog.app.agents import BEGIN, FILES, NAMES, Files, session
from deltalog.codec import build
from deltalog.delta import Delta


def test_a_session_is_the_same_for_the_same_seed() -> None:
    assert list(session(3, 500)) == list(session(3, 500))
    assert list(session(3, 500)) != list(session(4, 500))
    assert list(session(3, 500)) == list(session(3, 600))[:500]


def test_i6_causes_come_before_effects_in_time() -> None:
    edits = list(session(1, 3000))
    time_of = {(delta.source, delta.seq): delta.timestamp for delta in edits}
    seen: dict[str, int] = {}
    for delta in edits:
        assert delta.seq == seen.get(delta.source, 0) + 1
        assert delta.timestamp > max(BEGIN, time_of.get((delta.source, delta.seq - 1), 0))
        assert all(seq <= seen.get(source, 0) for source, seq in delta.deps.items())
        assert all(time_of[source, seq] < delta.timestamp for source, seq in delta.deps.items())
        seen[delta.source] = delta.seq
    assert seen.keys() == set(NAMES)
    assert {delta.key for delta in edits} == set(FILES)
    assert 0 < sum(bool(delta.deps) for delta in edits) < len(edits)


def edit(**payload: object) -> Delta:
    return build("ada", 1, 5, payload, kind="edit", key="f")


def test_edits_fold_into_lines() -> None:
    files = Files()
    for delta in (
        edit(op="insert", line=9, text="a"),
        edit(op="insert", line=0, text="b"),
        edit(op="replace", line=1, text="c"),
        edit(op="replace", line=9, text="nothing there"),
        edit(op="insert", line=1, text="d"),
        edit(op="delete", line=0),
        edit(op="delete", line=9),
        build("desk", 1, 5, {"not": "an edit"}, kind="note", key="f"),
    ):
        files.apply(delta)
    assert files.lines == {"f": ["d", "c"]}


def test_the_digest_is_that_of_names_and_lines() -> None:
    def digest(lines: dict[str, list[str]]) -> str:
        files = Files()
        files.lines = lines
        return files.digest()

    assert digest({"a": ["x"], "b": ["y"]}) == digest({"b": ["y"], "a": ["x"]})
    others = [{"a": ["x", "b\n1\ny"]}, {"a": ["x"]}, {"a": ["y"], "b": ["x"]}, {"a": ["x\ny"]}, {"a": ["x", "y"]}]
    assert len({digest({"a": ["x"], "b": ["y"]}), *map(digest, others)}) == len(others) + 1
