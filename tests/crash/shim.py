"""The Python side of the fault shim: builds shim.c, starts a child under it, and steers it.

What lives here: the layout of the control page and of the operation log. What it does not know: the programs that run
under the shim, and the journal (powercut.py). shim.c says what is modelled and what is not.

    shim = Shim.build(tmp)
    child = subprocess.Popen(command, env=shim.env(root, state, kill_at=17))
    child.wait()
    report = power_cut(root, state, "hole", seed=7)  # of powercut.py

One state directory is one life of the machine: from the first child until `power_cut`, which forgets it, so that the
next child starts with everything that is there durable. A child may be started again within a life; nobody else may
change the files below `root` meanwhile. Whoever calls `power_cut` has made sure that no process of that life is alive.
"""

from __future__ import annotations

import errno as errnos
import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Self

import attrs

KINDS = ("open", "create", "write", "truncate", "fsync", "rename", "link", "unlink")
"""Kinds of operations, in the order of shim.c. All but open change something and are numbered from 1."""

MASKS = {kind: 1 << number for number, kind in enumerate(KINDS)} | {"open": 0b11, "any": (1 << len(KINDS)) - 1}
"""Which kinds an `op` that must fail stands for: open is open and create, any is all."""


# ------------------------------------------------------------------------------------------------- the control page

CONTROL_BYTES = 256
CONTROL_MAGIC = b"SHM1"
OFFSETS = {  # of struct control in shim.c, with the format of each field
    "log": (4, "I"),
    "armed": (8, "I"),
    "op_mask": (12, "I"),
    "error": (16, "i"),
    "sticky": (20, "I"),
    "nth": (24, "Q"),
    "seen": (32, "Q"),
    "fired": (40, "Q"),
    "delay_us": (48, "Q"),
    "kill_at": (56, "Q"),
    "kill_after": (64, "I"),
    "keep_unlinked": (68, "I"),
    "numbered": (72, "Q"),
    "token": (80, "Q"),
}
COUNTS = (88, f"{len(KINDS)}Q")
MATCH = (152, "104s")


class Control:
    """The page a test and the processes under the shim share. Usable from either side; outlives them."""

    def __init__(self, state: Path) -> None:
        with (state / "control").open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), CONTROL_BYTES)

    def arm(
        self,
        op: str | None = None,
        *,
        nth: int = 1,
        errno: str = "EIO",
        sticky: bool = False,
        match: str = "",
        delay_fsync_s: float | None = None,
    ) -> None:
        """Fail the `nth` operation of kind `op` from now on (and all later ones, if `sticky`) with `errno`.

        `match` is a glob on the file's name without its directory. `delay_fsync_s` is set if given, else left alone.
        """
        if delay_fsync_s is not None:
            self._set("delay_us", round(delay_fsync_s * 1e6))
        if op is None:
            return
        self._set("armed", 0)
        struct.pack_into(MATCH[1], self._page, MATCH[0], match.encode())
        for field, value in (("op_mask", MASKS[op]), ("error", getattr(errnos, errno)), ("sticky", sticky)):
            self._set(field, value)
        for field, value in (("nth", nth), ("seen", 0), ("armed", 1)):
            self._set(field, value)

    def disarm(self) -> None:
        """Let everything succeed again, without delay."""
        self._set("armed", 0)
        self._set("delay_us", 0)

    def counts(self) -> dict[str, int]:
        """Operations so far by kind, failed ones included."""
        return dict(zip(KINDS, struct.unpack_from(COUNTS[1], self._page, COUNTS[0]), strict=True))

    @property
    def fired(self) -> int:
        """Failures reported so far."""
        return self._get("fired")

    @property
    def numbered(self) -> int:
        """Operations so far that change something: the last number in `ops`."""
        return self._get("numbered")

    def kill_at(self, number: int, *, after: bool = False) -> None:
        """SIGKILL at operation `number` (0: never), before it is done or after."""
        self._set("kill_after", after)
        self._set("kill_at", number)

    def _get(self, field: str) -> int:
        offset, form = OFFSETS[field]
        value: int = struct.unpack_from(form, self._page, offset)[0]
        return value

    def _set(self, field: str, value: int) -> None:
        offset, form = OFFSETS[field]
        struct.pack_into(form, self._page, offset, value)

    @classmethod
    def create(cls, state: Path, *, log: bool, keep_unlinked: bool) -> Self:
        """A fresh page: nothing armed, nothing counted. Only the token goes on, which names kept files."""
        path = state / "control"
        token = cls(state)._get("token") if path.exists() else 0
        path.write_bytes(CONTROL_MAGIC.ljust(CONTROL_BYTES, b"\0"))
        control = cls(state)
        control._set("token", token)
        control._set("log", log)
        control._set("keep_unlinked", keep_unlinked)
        return control


def _parsed(fail: str) -> dict[str, str | int | bool]:
    """Arguments of `Control.arm` from "op=write,nth=17,errno=ENOSPC[,match=*.log][,sticky=1]"."""
    fields = dict(part.split("=", 1) for part in fail.split(","))
    if unknown := fields.keys() - {"op", "nth", "errno", "match", "sticky"}:
        raise ValueError(f"fail has no {', '.join(sorted(unknown))}")
    return {**fields, "nth": int(fields.get("nth", 1)), "sticky": fields.get("sticky", "0") == "1"}


# ------------------------------------------------------------------------------------------------------ the library


@attrs.frozen
class Shim:
    """The built library."""

    library: Path

    @classmethod
    def build(cls, directory: Path) -> Self:
        """Compile shim.c into `directory`. Needs gcc: mark the tests `system("gcc")`."""
        library = directory / "shim.so"
        source = Path(__file__).with_name("shim.c")
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-pthread"]
        subprocess.run(["gcc", *flags, "-o", library, source], check=True)
        return cls(library)

    def env(
        self,
        root: Path,
        state: Path,
        *,
        fail: str | None = None,
        kill_at: int = 0,
        kill_after: bool = False,
        delay_fsync_s: float = 0.0,
        log: bool = False,
        keep_unlinked: bool = False,
    ) -> dict[str, str]:
        """The environment for a child under the shim; makes both directories, and the control page afresh.

        `root` must be how the child spells it, without symbolic links. `state` lies outside it, on the same file system
        if replaced files are to be kept, and never on one that a test fills up.
        """
        for directory in (root, state / "kept"):
            directory.mkdir(parents=True, exist_ok=True)
        if root.resolve() != root or state.resolve().is_relative_to(root):
            raise ValueError(f"root {root} must be a real path, and state {state} outside it")
        control = Control.create(state, log=log, keep_unlinked=keep_unlinked)
        control.kill_at(kill_at, after=kill_after)
        control.arm(delay_fsync_s=delay_fsync_s)
        if fail is not None:
            control.arm(**_parsed(fail))  # type: ignore[arg-type]
        preload = ":".join(filter(None, [str(self.library), os.environ.get("LD_PRELOAD")]))
        return {**os.environ, "LD_PRELOAD": preload, "SHIM_ROOT": str(root), "SHIM_STATE": str(state)}

    def control(self, state: Path) -> Control:
        """The control page of the children started with `state`."""
        return Control(state)


@attrs.frozen
class Operation:
    """One line of the operation log."""

    number: int
    """From 1 over all that change something; 0 for an open that does not."""
    kind: str
    size: int
    name: str
    """Relative to the root."""
    errno: int
    """The failure injected, or 0."""


def operations(state: Path) -> list[Operation]:
    """What the children with `log=True` did, in the order they began it."""
    return [_operation(line) for line in (state / "ops").read_text().splitlines()]


def _operation(line: str) -> Operation:
    number, kind, size, rest = line.split(" ", 3)
    name, _, error = rest.partition(" ")
    return Operation(int(number), kind, int(size), name, int(error or 0))
