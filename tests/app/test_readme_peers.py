"""The commands in the README's section on peers are run as they stand there, but for addresses and keys."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.app.invoked import COMMAND, ROOT, environment, invoke
from tests.app.test_peer_api import soon


def commands() -> list[list[str]]:
    """The lines of the section's example, as words."""
    section = (ROOT / "README.md").read_text().partition("## Peers")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in example.splitlines()]
    assert all(words[0] == "deltalog" for words in lines)
    return [words[1:] for words in lines]


@contextmanager
def server(words: list[str], data: Path) -> Iterator[Any]:
    """A `deltalog serve` and what it says when it is ready."""
    command = [*COMMAND, *words, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(DELTALOG_DATA=str(data))) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_the_example_does_what_its_remarks_say(tmp_path: Path) -> None:
    init, listen, stay, once, look = commands()
    first, second = tmp_path / "first", tmp_path / "second"
    keys = {data: invoke(*init, "--data", data).stdout.strip() for data in (first, second)}

    def told(words: list[str], key: str, address: str = "") -> list[str]:
        changed = {"KEY": key, "0.0.0.0:7000": "127.0.0.1:0", "first:7000": address}
        return [changed.get(word, word) for word in words]

    with ExitStack() as stack:
        ready = stack.enter_context(server(told(listen, keys[second]), first))
        (address,) = ready["listening"]
        result = invoke(*told(once, keys[first], address), "--data", second)
        assert (result.exit_code, "both hold the same" in result.stdout) == (0, True), result.stderr
        stack.enter_context(server(told(stay, keys[first], address), second))
        url = [word if not word.startswith("http") else ready["url"] for word in look]
        soon(lambda: "live" in invoke(*url).stdout)
