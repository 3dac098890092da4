"""What every test may use: how long programmes run, what the system must have, and what was left out.

* `@pytest.mark.system("gcc")` on a test that needs something pip cannot install. Where it is missing the test is left
  out and the closing summary says what to install; with --require-system it fails instead, and so does a run that
  skipped anything for any other reason.
* The fixture `rounds`: `rounds(50, nightly=10_000)` is how many rounds a seeded programme runs: the first figure, the
  second with --nightly, or what --rounds says.
* --nightly also gives hypothesis ten times the examples; `-m ""` adds the tests marked slow.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import socket
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator
from typing import Protocol

import hypothesis
import pytest

EXAMPLES = 150

hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, max_examples=EXAMPLES)
hypothesis.settings.register_profile(
    "nightly", parent=hypothesis.settings.get_profile("ci"), max_examples=EXAMPLES * 15
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deltalog")
    group.addoption("--require-system", action="store_true", help="fail, not skip, where a system package is missing")
    group.addoption("--nightly", action="store_true", help="the long form of every programme")
    group.addoption("--rounds", type=int, metavar="N", help="rounds of every seeded programme, whatever its own figure")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("nightly" if config.getoption("--nightly") else "ci")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays to the end: the collector of cycles need not look at it ever again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class Rounds(Protocol):
    """What the fixture `rounds` gives."""

    def __call__(self, short: int, *, nightly: int) -> int: ...


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> Rounds:
    """How many rounds a seeded programme runs."""

    def choose(short: int, *, nightly: int) -> int:
        asked: int | None = pytestconfig.getoption("--rounds")
        if asked is not None:
            return asked
        return nightly if pytestconfig.getoption("--nightly") else short

    return choose


# ---------------------------------------------------------------------------------------------- what a system may lack


def _has_gcc() -> bool:
    """A C compiler that finds the headers of the C library."""
    if shutil.which("gcc") is None:
        return False
    source = "#include <dlfcn.h>\n#include <unistd.h>\nint answer(void) { return 42; }\n"
    command = ["gcc", "-x", "c", "-shared", "-fPIC", "-o", os.devnull, "-"]
    return subprocess.run(command, input=source.encode(), capture_output=True, check=False).returncode == 0


def _has_tmpfs() -> bool:
    """Leave to mount a small file system that can be filled up."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as path:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if mounted:
            subprocess.run(["umount", path], capture_output=True, check=True)
        return mounted


def _has_multicast() -> bool:
    """mDNS reaches others on this machine's loopback."""
    group, message = "224.0.0.251", os.urandom(2) + bytes(10)
    membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as ears, socket.socket(type=socket.SOCK_DGRAM) as mouth:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                ears.setsockopt(socket.SOL_SOCKET, option, 1)
            ears.bind(("", 5353))
            ears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            ears.settimeout(1)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            mouth.sendto(message, (group, 5353))
            while ears.recv(9000) != message:
                pass
    except OSError:
        return False
    return True


def _has_chromium() -> bool:
    """A browser and its driver."""
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


SYSTEM: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (_has_chromium, "apt-get install chromium chromium-driver"),
    "gcc": (_has_gcc, "apt-get install gcc libc6-dev"),
    "multicast": (_has_multicast, "allow multicast on 127.0.0.1, and port 5353 to be shared"),
    "openssl": (lambda: shutil.which("openssl") is not None, "apt-get install openssl"),
    "root": (lambda: os.geteuid() == 0, "run the tests as root"),
    "tmpfs": (_has_tmpfs, "run the tests as root, where mounting a tmpfs is allowed"),
}
"""What a test may ask of the machine: a probe, and what to do where it fails."""


RECORDING = "friendsforever.ydeltas.jsonl.gz"
"""A recorded session that is not part of the project."""
NO_PACKAGE_BRINGS = (RECORDING, "needs multicast")
"""What may be left out all the same: a machine has it or not, whatever is installed. The summary names it."""


@functools.cache
def _has(name: str) -> bool:
    return SYSTEM[name][0]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in (name for mark in item.iter_markers("system") for name in mark.args):
        if name not in SYSTEM:
            pytest.fail(f"no system requirement {name!r}; known: {', '.join(SYSTEM)}", pytrace=False)
        if not _has(name):
            reason = f"needs {name}: {SYSTEM[name][1]}"
            required = item.config.getoption("--require-system") and not reason.startswith(NO_PACKAGE_BRINGS)
            (pytest.fail if required else pytest.skip)(reason)


def _skipped(config: pytest.Config) -> dict[str, list[str]]:
    """Reason -> the tests (or files) left out for it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reasons: dict[str, list[str]] = defaultdict(list)
    for report in reporter.stats.get("skipped", []) if reporter is not None else []:
        *_, reason = report.longrepr
        reasons[reason.removeprefix("Skipped: ")].append(report.nodeid)
    return reasons


def pytest_sessionfinish(session: pytest.Session) -> None:
    unwanted = [r for r in _skipped(session.config) if not any(each in r for each in NO_PACKAGE_BRINGS)]
    if session.config.getoption("--require-system") and unwanted:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = _skipped(config)
    if left_out:
        terminalreporter.section("left out", yellow=True)
    for reason, tests in sorted(left_out.items()):
        terminalreporter.write_line(f"{len(tests)} {reason}")
        for test in tests:
            terminalreporter.write_line(f"  {test}")
