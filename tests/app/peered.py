"""Nodes that sync, as processes, for tests."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import attrs

from tests.app.invoked import invoke, start


def new_key(data: Path, *words: object) -> str:
    """Make the key of a data directory; return its public half."""
    result = invoke("keys", "init", "--data", data, *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


@attrs.define
class Running:
    """A `deltalog serve` that takes peers."""

    process: subprocess.Popen[bytes]
    url: str
    address: str
    """Where peers connect."""

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.communicate()


def begin(data: Path, *words: object) -> Running:
    """Start one; return when it takes peers."""
    process = start("serve", "--data", data, "--port", 0, "--listen", "127.0.0.1:0", "--json", *words)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, stderr = process.communicate()
        raise AssertionError(stderr.decode())
    said = json.loads(line)
    return Running(process, said["url"], said["listening"][0])


@contextmanager
def running(data: Path, *words: object) -> Iterator[Running]:
    """One that serves while the block runs, and must end in order."""
    node = begin(data, *words)
    try:
        yield node
        node.process.send_signal(signal.SIGTERM)
        _, stderr = node.process.communicate(timeout=30)
        assert node.process.returncode == 0, stderr.decode()
    finally:
        node.kill()


class Tap:
    """Stands between two nodes and passes bytes on; holds them when so many have passed, until it is let go.

    Use it as a context manager.
    """

    def __init__(self, address: str, hold_bytes: int) -> None:
        """`address`: where it leads to. `hold_bytes`: when to hold."""
        host, _, port = address.rpartition(":")
        self._to = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.held = threading.Event()
        self._passed_bytes = 0
        self._hold_bytes = hold_bytes
        self._go = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def let_go(self) -> None:
        """Pass everything on from now on."""
        self._go.set()

    def _accept(self) -> None:
        with suppress(OSError):
            near, _ = self._listener.accept()
            far = socket.create_connection(self._to)
            back = threading.Thread(target=self._pass, args=(far, near))
            self._threads.append(back)
            back.start()
            self._pass(near, far)
            back.join(30)
            near.close()
            far.close()

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):
            while data := here.recv(4096):
                self._passed_bytes += len(data)
                if self._passed_bytes >= self._hold_bytes:
                    self.held.set()
                    self._go.wait(30)
                there.sendall(data)
        for end in (here, there):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
