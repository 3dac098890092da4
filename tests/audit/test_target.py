"""Targets: normal form, text and back, overlap and containment; the index against the rule."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.intervals import Intervals
from audit.target import LINE_MAX, Symbol, Target, contains, overlaps
from audit.target_index import TargetIndex
from deltalog.errors import LimitExceeded, UsageError

_SEGMENTS = st.sampled_from(["a", "b", "c", "a b", "x%y", "n:1", "q#r", "é"])
_PATHS = st.builds(
    lambda root, segments, end: root + "/".join(segments) + end,
    st.sampled_from(["", "/"]),
    st.lists(_SEGMENTS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)
_LINES = st.tuples(st.integers(1, 30), st.integers(0, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))
_SYMBOLS = st.builds(
    Symbol,
    st.sampled_from(["function", "class", "k:%#"]),
    st.lists(st.sampled_from(["A", "B", "run", "a:b#%"]), min_size=1, max_size=3).map(".".join),
)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    path = draw(_PATHS)
    if path.endswith("/"):
        return Target(path)
    return Target(path, draw(st.none() | _LINES), draw(st.none() | _SYMBOLS))


@given(targets())
def test_the_text_reads_back(target: Target) -> None:
    assert Target.parse(str(target)) == target


@given(targets(), targets())
def test_no_two_targets_share_a_text(a: Target, b: Target) -> None:
    assert (a == b) == (str(a) == str(b))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target("src/app.py"), "src/app.py"),
        (Target("./src//app.py"), "src/app.py"),
        (Target("src/app.py", (10, 20)), "src/app.py:10-20"),
        (Target("src/app.py", symbol=Symbol("function", "main")), "src/app.py#function:main"),
        (Target("src/app.py", (1, 2), Symbol("method", "A.b")), "src/app.py:1-2#method:A.b"),
        (Target("src/"), "src/"),
        (Target("/"), "/"),
        (Target("a:1-2"), "a%3A1-2"),
    ],
)
def test_canonical_text(target: Target, text: str) -> None:
    assert str(target) == text
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    ("path", "names"),
    [("", "path"), ("a/../b", "path"), ("a\0b", "path"), (".", "path"), ("\ud800", "path"), (7, "path")],
)
def test_a_bad_path_is_refused_by_name(path: str, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        Target(path)


def test_sizes_are_bounded() -> None:
    with pytest.raises(LimitExceeded, match="path"):
        Target("x" * 4097)
    with pytest.raises(LimitExceeded, match="segments"):
        Target("a/" * 200)
    with pytest.raises(LimitExceeded, match="target"):
        Target("%" * 4000)
    with pytest.raises(LimitExceeded, match="symbol name"):
        Symbol("function", "x" * 513)


@pytest.mark.parametrize("lines", [(0, 1), (2, 1), (1, LINE_MAX + 1), (1,), (1.0, 2), "12", (True, 2)])
def test_bad_lines_are_refused(lines: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="lines"):
        Target("a", lines)


@pytest.mark.parametrize("text", ["", ":1-2", "a:1", "a:1-2x", "a#b", "a#:b", "a%", "a%41", "a#k:", "a:9-1", "a/:1-2"])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Target.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        target = Target.parse(text)
    except UsageError:
        return
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a.py", "a.py", True),
        ("a.py", "b.py", False),
        ("a.py", "a.py:5-5", True),
        ("a.py:1-5", "a.py:5-9", True),
        ("a.py:1-5", "a.py:6-9", False),
        ("a.py#class:A", "a.py#method:A.run", True),
        ("a.py#class:A", "a.py#class:AB", False),
        ("a.py#class:A", "a.py#function:A", False),
        ("a.py#class:A", "a.py:1-2", True),
        ("a.py:1-5#class:A", "a.py:6-9#class:B", False),
        ("a.py:1-5#class:A", "a.py:6-9#method:A.x", True),
        ("src/", "src/a/b.py:1-2", True),
        ("src/", "src", True),
        ("src/", "srcs/a.py", False),
        ("src/", "src/lib/", True),
        ("/", "/etc/passwd", True),
        ("/", "etc/passwd", False),
    ],
)
def test_overlap(a: str, b: str, expected: bool) -> None:
    assert overlaps(Target.parse(a), Target.parse(b)) is expected
    assert overlaps(Target.parse(b), Target.parse(a)) is expected


@given(targets(), targets())
def test_what_contains_overlaps(a: Target, b: Target) -> None:
    assert overlaps(a, b) == overlaps(b, a)
    assert contains(a, a)
    if contains(a, b):
        assert overlaps(a, b)
    if contains(a, b) and contains(b, a):
        assert a.path.rstrip("/") == b.path.rstrip("/")


@given(targets(), targets(), targets())
def test_what_overlaps_a_part_overlaps_the_whole(a: Target, b: Target, c: Target) -> None:
    whole = Target(a.path)
    assert contains(whole, a)
    if overlaps(a, c):
        assert overlaps(whole, c)


@given(st.lists(targets(), max_size=25), st.lists(targets(), min_size=1, max_size=5), st.randoms())
def test_the_index_finds_what_the_rule_says(kept: list[Target], asked: list[Target], rng: object) -> None:
    index: TargetIndex[int] = TargetIndex()
    there = dict(enumerate(kept))
    for key, target in there.items():
        index.add(target, key, key)
    order = list(there)
    rng.shuffle(order)  # type: ignore[attr-defined]
    for gone in [None, *order]:
        if gone is not None:
            index.remove(there.pop(gone), gone)
        for target in asked:
            expected = {key for key, other in there.items() if overlaps(target, other)}
            assert set(index.overlapping(target)) == expected
    assert not index, "an index with nothing in it keeps no nodes"


def test_intervals_find_what_a_scan_finds() -> None:
    rng = random.Random(5)
    for _ in range(40):
        intervals: Intervals[int] = Intervals()
        kept: dict[int, tuple[int, int]] = {}
        for key in range(200):
            if kept and rng.random() < 0.4:
                gone = rng.choice(list(kept))
                intervals.remove(kept.pop(gone)[0], gone)
            first = rng.randrange(1, 100)
            kept[key] = (first, first + rng.choice([0, 1, 5, 60]))
            intervals.add(*kept[key], key, key)
            asked = rng.randrange(1, 170)
            until = asked + rng.choice([0, 3, 40])
            expected = [k for k, (a, b) in kept.items() if a <= until and b >= asked]
            assert list(intervals.overlapping(asked, until)) == sorted(expected, key=lambda k: (-kept[k][0], -k))


def test_removing_what_is_not_there_is_an_error() -> None:
    index: TargetIndex[int] = TargetIndex()
    index.add(Target("a", (1, 2)), 1, 1)
    for target in (Target("a"), Target("b"), Target("a", (3, 4))):
        with pytest.raises(KeyError):
            index.remove(target, 1)
    assert list(index.overlapping(Target("a"))) == [1]
