"""Target: what a lock is on. A path, or a part of the file there; and which targets overlap.

Canonical text, which `Target.parse` reads back:

    target  = path [ ":" first "-" last ] [ "#" kind ":" name ]
    path    = segment *( "/" segment ) [ "/" ]      with an optional "/" in front; a "/" at the end says directory
    escaped = "%" and two upper-case hex digits, for "%", ":", "#" in a path and for "%" and ":" in a kind

    src/app.py    src/app.py:10-20    src/app.py#function:main    src/app.py:10-20#method:App.run    src/

When two targets overlap:

* A directory overlaps itself, the path without the "/", and everything below.
* Otherwise the paths must be equal. A whole path overlaps all its parts.
* Two parts overlap if a thing that both name touches: line ranges share a line, symbols are the same or one's name lies
  inside the other's by dots (`App` and `App.run`). Parts that name nothing in common (lines here, a symbol there) are
  taken to overlap: nobody knows where the symbol stands.

Paths are compared as text: no case folding, no Unicode normalisation, no links followed. This file is pure.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from deltalog.errors import LimitExceeded, UsageError

PATH_BYTES_MAX: Final = 4_096
"""What Linux takes (PATH_MAX)."""
SEGMENT_COUNT_MAX: Final = 128
KIND_BYTES_MAX: Final = 64
NAME_BYTES_MAX: Final = 512
TEXT_BYTES_MAX: Final = 8_192
"""UTF-8 bytes of the canonical text: what an audit event takes."""
LINE_MAX: Final = 2**31 - 1

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TEXT: Final = re.compile(
    r"(?P<path>[^:#]+)(?::(?P<first>\d{1,10})-(?P<last>\d{1,10}))?(?:#(?P<kind>[^:#]+):(?P<name>.+))?",
    re.ASCII | re.DOTALL,
)
_ESCAPED: Final = re.compile(r"%([0-9A-F]{2})?")


# -------------------------------------------------------------------------------------------------------------- checks


def _normal_path(path: str) -> str:
    _check_text("path", path, PATH_BYTES_MAX)
    segments = path.split("/")
    kept = [segment for segment in segments if segment not in ("", ".")]
    if ".." in kept:
        raise UsageError(f"path {path[:200]!r} has a .. segment; say where it leads instead")
    if len(kept) > SEGMENT_COUNT_MAX:
        raise LimitExceeded("path", len(kept), SEGMENT_COUNT_MAX, "segments")
    root = "/" if path.startswith("/") else ""
    if not kept and not root:
        raise UsageError(f"path {path[:200]!r} names nothing")
    return root + "/".join(kept) + ("/" if kept and segments[-1] in ("", ".") else "")


def _checked_lines(lines: object) -> tuple[int, int]:
    if not isinstance(lines, tuple | list) or len(lines) != 2 or any(type(line) is not int for line in lines):
        raise UsageError(f"lines must be (first, last), two ints, not {lines!r}"[:200])
    first, last = lines
    if not 1 <= first <= last <= LINE_MAX:
        raise UsageError(f"lines are {first}-{last}; they take 1 <= first <= last <= {LINE_MAX}")
    return first, last


def _check_text(field: str, text: object, size_max: int) -> None:
    if type(text) is not str:
        raise UsageError(f"{field} must be text, not {type(text).__name__}")
    if not text:
        raise UsageError(f"{field} is empty")
    if _CONTROL.search(text):
        raise UsageError(f"{field} has a control character or half a surrogate pair: {text[:200]!r}")
    _check_size(field, text, size_max)


def _check_size(field: str, text: str, size_max: int) -> None:
    size = len(text) if text.isascii() else len(text.encode())
    if size > size_max:
        raise LimitExceeded(field, size, size_max)


# ------------------------------------------------------------------------------------------------------------- targets


@attrs.frozen
class Symbol:
    """A named thing in a file. Raises UsageError for an empty, too long or unprintable kind or name."""

    kind: str
    """What it is: function, class, method, ..."""
    name: str
    """Its name; dots say what lies inside what."""

    def __attrs_post_init__(self) -> None:
        _check_text("symbol kind", self.kind, KIND_BYTES_MAX)
        _check_text("symbol name", self.name, NAME_BYTES_MAX)

    def segments(self) -> tuple[str, ...]:
        """The name, split at its dots."""
        return tuple(self.name.split("."))

    def contains(self, other: Symbol) -> bool:
        """Whether `other` is the same symbol or lies inside it."""
        return self == other or other.name.startswith(self.name + ".")


@attrs.frozen
class Target:
    """What a lock is on. Raises UsageError (LimitExceeded for sizes) naming the field."""

    path: str = attrs.field(converter=_normal_path)
    """Normalised: no empty and no "." segments. ".." is refused."""
    lines: tuple[int, int] | None = None
    """First and last line, both inclusive, counted from 1."""
    symbol: Symbol | None = None

    _text: str = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.lines is not None:
            object.__setattr__(self, "lines", _checked_lines(self.lines))
        if self.symbol is not None and type(self.symbol) is not Symbol:
            raise UsageError(f"symbol must be a Symbol, not {type(self.symbol).__name__}")
        if self.is_directory and not self.is_whole:
            raise UsageError(f"target path {self.path[:200]!r} is a directory: it takes no lines and no symbol")
        text = _format(self)
        if not text.isascii() or len(text) > TEXT_BYTES_MAX:
            _check_size("target", text, TEXT_BYTES_MAX)
        object.__setattr__(self, "_text", text)

    def __str__(self) -> str:
        """The canonical text."""
        return self._text

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a text as `str` writes it. Raises UsageError naming the field."""
        if type(text) is not str:
            raise UsageError(f"target must be text, not {type(text).__name__}")
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"target is {text[:200]!r}; it takes path[:first-last][#kind:name], with % escapes")
        lines = (int(match["first"]), int(match["last"])) if match["first"] else None
        symbol = Symbol(_unescape("symbol kind", match["kind"]), match["name"]) if match["kind"] else None
        return cls(_unescape("path", match["path"]), lines, symbol)

    @property
    def is_directory(self) -> bool:
        """Whether it stands for everything below its path."""
        return self.path.endswith("/")

    @property
    def is_whole(self) -> bool:
        """Whether it is no part of a file."""
        return self.lines is None and self.symbol is None

    def segments(self) -> list[str]:
        """The path's segments; the first is "" if the path begins with "/"."""
        return self.path.removesuffix("/").split("/")


def overlaps(a: Target, b: Target) -> bool:
    """Whether the two cannot be held exclusively by two holders."""
    if a.is_directory or b.is_directory:
        return _covers_path(a, b) or _covers_path(b, a)
    return a.path == b.path and (a.is_whole or b.is_whole or _parts_overlap(a, b))


def contains(a: Target, b: Target) -> bool:
    """Whether everything of `b` is in `a`."""
    if a.is_directory or a.is_whole or b.is_directory:
        return _covers_path(a, b)
    if a.path != b.path or b.is_whole:
        return False
    inside = []
    if a.lines and b.lines:
        inside.append(a.lines[0] <= b.lines[0] and b.lines[1] <= a.lines[1])
    if a.symbol and b.symbol:
        inside.append(a.symbol.contains(b.symbol))
    return bool(inside) and all(inside)


def _covers_path(a: Target, b: Target) -> bool:
    """Whether `a` is a directory at or above `b`, or has its path."""
    if a.is_directory:
        return b.path.startswith(a.path) or b.path == a.path[:-1]
    return a.path == b.path


def _parts_overlap(a: Target, b: Target) -> bool:
    touching = []
    if a.lines and b.lines:
        touching.append(a.lines[0] <= b.lines[1] and b.lines[0] <= a.lines[1])
    if a.symbol and b.symbol:
        touching.append(a.symbol.contains(b.symbol) or b.symbol.contains(a.symbol))
    return any(touching) or not touching


# ---------------------------------------------------------------------------------------------------------------- text


def _format(target: Target) -> str:
    text = _escape(target.path, "#")
    if target.lines is not None:
        text += f":{target.lines[0]}-{target.lines[1]}"
    if target.symbol is not None:
        text += f"#{_escape(target.symbol.kind, '#')}:{target.symbol.name}"
    return text


def _escape(text: str, *more: str) -> str:
    for sign in ("%", ":", *more):
        if sign in text:
            text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def _unescape(field: str, text: str) -> str:
    if "%" not in text:
        return text
    if any(match[1] not in ("25", "3A", "23") for match in _ESCAPED.finditer(text)):
        raise UsageError(f"{field} is {text[:200]!r}; % stands only in %25 (%), %3A (:) and %23 (#)")
    return text.replace("%3A", ":").replace("%23", "#").replace("%25", "%")
