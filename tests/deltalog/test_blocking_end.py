"""How a blocking log ends, and what befalls threads: crashes, interrupts, asyncio, fork, the end of the program."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deltalog import failpoints
from deltalog.blocking import BlockingLog, open_log
from deltalog.errors import LogClosed, LogReadOnly
from deltalog.log import LogOptions
from tests.deltalog.threads import AGAIN_S, PATIENCE_S, Gate, in_thread, interrupted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockingLog]:
    with open_log(tmp_path / "data", source="alice") as log:
        yield log


@pytest.fixture(autouse=True)
def nothing_armed() -> Iterator[None]:
    yield
    failpoints.disarm()


def payloads(deltas: Any) -> list[Any]:
    return [delta.payload for delta in deltas]


def python(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a program of its own against this checkout."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# ------------------------------------------------------------------------------------------------------------ the end


def every_call(log: BlockingLog, deltas: Any = ()) -> dict[str, Callable[[], object]]:
    """Each public name, with arguments that would do while the log is open; `receive` takes `deltas`."""
    arguments: dict[str, tuple[object, ...]] = {
        "append": (1,), "append_nowait": (1,), "append_many": ([1],), "get": (("alice", 1),),
        "by_source": ("alice",), "since": ({},), "order": (("alice", 1), ("alice", 1)), "erase": (("alice", 1), "why"),
    }  # fmt: skip
    calls: dict[str, Callable[[], object]] = {}
    for name in vars(BlockingLog).keys() - {"close", "receive"}:
        if name.startswith("_"):
            continue
        if isinstance(vars(BlockingLog)[name], property):
            calls[name] = partial(getattr, log, name)
        elif name == "truncate":
            calls[name] = partial(log.truncate, until={})
        elif name == "conflicts":
            calls[name] = lambda: list(log.conflicts())
        else:
            calls[name] = partial(getattr(log, name), *arguments.get(name, ()))
    if deltas:
        calls["receive"] = partial(log.receive, deltas)
    return calls


def test_after_the_end_every_call_raises_log_closed(tmp_path: Path) -> None:
    with open_log(tmp_path / "bob", source="bob") as bob:
        theirs = [bob.append(1)]
    with open_log(tmp_path / "data", source="alice") as log:
        log.append_many([1, 2])
        stream, subscription = log.replay(), log.subscribe({})
        for name, call in every_call(log, theirs).items():
            if name != "append_nowait":
                call()
    log.close()
    calls = every_call(log, theirs) | {"stream": stream.page, "subscription": subscription.page}
    for name, call in calls.items():
        with pytest.raises(LogClosed, match="the log is closed"):
            pytest.fail(f"{name} returned {call()!r}")
    assert subscription.position == {}


def test_leaving_drains_also_after_an_exception(tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    def fail(log: BlockingLog) -> None:
        log.append_many(range(2000))
        raise Mine

    with pytest.raises(Mine), open_log(tmp_path / "data", source="alice") as log:
        fail(log)
    with open_log(tmp_path / "data") as log:
        assert log.startup.kind == "clean"
        assert payloads(log.replay()) == list(range(2000))


def test_calls_under_way_elsewhere_come_to_their_end_first(tmp_path: Path) -> None:
    with open_log(tmp_path / "data", source="alice") as log, Gate() as gate:
        durable = in_thread(lambda: log.append("durable", durable=True))
        waiting = in_thread(lambda: list(log.subscribe({})))
        assert gate.reached.wait(PATIENCE_S)
        reading = in_thread(lambda: read_for_ever(log))
        closing = in_thread(log.close)
        with pytest.raises(LogClosed):
            waiting.result(PATIENCE_S)
        assert not closing.done()
    closing.result(PATIENCE_S)
    assert durable.result(PATIENCE_S).payload == "durable"
    with pytest.raises(LogClosed):
        reading.result(PATIENCE_S)
    with open_log(tmp_path / "data") as log:
        assert payloads(log.replay()) == ["durable"]


def read_for_ever(log: BlockingLog) -> None:
    while True:
        list(log.between())


@pytest.mark.parametrize("rounds_of_reading", range(3))
def test_closing_under_readers_is_no_error(tmp_path: Path, rounds_of_reading: int) -> None:
    log = open_log(tmp_path / "data", source="alice", options=LogOptions(ring_deltas=16))
    log.append_many(range(3000), durable=True)
    readers = [in_thread(lambda: read_for_ever(log)) for _ in range(4)]
    for _ in range(rounds_of_reading):
        list(log.replay())
    log.close()
    for reader in readers:
        with pytest.raises(LogClosed):
            reader.result(PATIENCE_S)


class Bug(Exception):
    """What no code expects."""


def bug() -> None:
    raise Bug


def test_i10_a_crash_of_the_loop_surfaces_in_every_call(tmp_path: Path) -> None:
    log = open_log(tmp_path / "data", source="alice")
    subscription = log.subscribe()
    waiting = in_thread(lambda: list(subscription))
    failpoints.arm("writer.drain.after", bug)
    with pytest.raises((LogReadOnly, LogClosed)) as caught:
        log.append("lost", durable=True)
    assert isinstance(caught.value.__cause__, Bug)
    with pytest.raises((LogReadOnly, LogClosed)):
        waiting.result(PATIENCE_S)
    for name, call in every_call(log).items():
        with pytest.raises((LogReadOnly, LogClosed)):
            pytest.fail(f"{name} returned {call()!r}")
    with pytest.raises(Bug):
        log.close()


def test_the_blocks_own_error_is_not_hidden_by_that_of_the_close(tmp_path: Path) -> None:
    def fail() -> None:
        with open_log(tmp_path / "data", source="alice") as log:
            failpoints.arm("writer.drain.after", bug)
            log.append("lost", durable=True)

    with pytest.raises((LogReadOnly, LogClosed)) as caught:
        fail()
    assert "did not close in order: Bug()" in caught.value.__notes__[0]


def test_a_close_that_fails_comes_out_of_a_block_that_did_not(tmp_path: Path) -> None:
    def use_it() -> None:
        with open_log(tmp_path / "data", source="alice") as log:
            log.append("kept", durable=True)
            failpoints.arm("startup.close.before", bug)

    with pytest.raises(Bug):
        use_it()
    failpoints.disarm()
    with open_log(tmp_path / "data") as log:
        assert (log.startup.kind, payloads(log.replay())) == ("unclean", ["kept"])


@pytest.mark.parametrize("again", range(4))
def test_an_interrupt_ends_the_wait_and_nothing_else(log: BlockingLog, again: int) -> None:
    def when_waiting(count: int) -> None:
        while len(log._loop._waits) < count:
            log.flush()
        waiting.set()

    subscription, waiting = log.subscribe(), threading.Event()
    in_thread(lambda: when_waiting(1))
    with interrupted(waiting):
        list(subscription)
    assert subscription.position == {}
    reading = in_thread(lambda: payloads(itertools.islice(subscription, 3)))
    when_waiting(2)  # the call that nobody waits for any more, and the new one
    log.append_many([1, 2, 3], durable=True)
    assert reading.result(PATIENCE_S) == [1, 2, 3]


def test_what_was_appended_is_stored_after_an_interrupt(tmp_path: Path) -> None:
    with open_log(tmp_path / "data", source="alice") as log, Gate() as gate, interrupted(gate.reached):
        log.append("kept", durable=True)
    with open_log(tmp_path / "data") as log:
        assert payloads(log.replay()) == ["kept"]


# ------------------------------------------------------------------------------------------------------------- asyncio


def test_asyncio_programs_call_it_in_threads(log: BlockingLog) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(log.append, n, durable=n % 10 == 0) for n in range(50)))
        stream, found = log.replay(), list[Any]()
        while page := await asyncio.to_thread(stream.page):
            found += payloads(page)
        assert sorted(found) == list(range(50))
        assert await asyncio.to_thread(log.subscribe({}).page, timeout_s=0)

    asyncio.run(main())


def test_a_cancelled_asyncio_task_ends_its_wait_and_not_the_append(log: BlockingLog) -> None:
    async def main() -> None:
        with Gate() as gate:
            task = asyncio.create_task(asyncio.to_thread(log.append, "kept", durable=True))
            await asyncio.to_thread(gate.reached.wait, PATIENCE_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert log.synced == {}
        await asyncio.to_thread(log.append, "next", durable=True)

    asyncio.run(main())
    assert payloads(log.replay()) == ["kept", "next"]


# ---------------------------------------------------------------------------------------------------- fork and exit


def test_a_forked_child_gets_log_closed_and_the_parent_goes_on(tmp_path: Path) -> None:
    script = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        from deltalog import blocking
        from deltalog.errors import LogClosed
        with blocking.open_log(sys.argv[1], source="alice") as log:
            log.append(1)
            stream, subscription = log.replay(), log.subscribe({})
            next(stream)
            child = os.fork()
            if not child:
                refused = 0
                for call in (lambda: log.append(2), lambda: log.heads, log.flush, stream.page, subscription.page):
                    try:
                        call()
                    except LogClosed:
                        refused += 1
                del stream, subscription
                log.close()
                sys.exit(refused)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            log.append(3)
        with blocking.open_log(sys.argv[1]) as log:
            print([delta.payload for delta in log.replay()])
    """
    done = python(script, tmp_path / "data")
    assert (done.returncode, done.stdout.split("\n")[:2], done.stderr) == (0, ["5", "[1, 3]"], "")


def test_a_program_that_ends_without_a_word_loses_nothing(tmp_path: Path) -> None:
    script = """
        import contextlib, sys, threading
        from deltalog import blocking, errors
        def follow():
            with contextlib.suppress(errors.LogClosed):
                list(log.subscribe())
        log = blocking.open_log(sys.argv[1], source="alice")
        log.append_many(range(5000))
        threading.Thread(target=follow, daemon=True).start()
        threading.Timer(0.05, lambda: log.append("after the main thread")).start()
    """
    done = python(script, tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")
    with open_log(tmp_path / "data") as log:
        assert log.startup.kind == "clean"
        assert payloads(log.replay()) == [*range(5000), "after the main thread"]


def test_ctrl_c_in_a_program_that_follows_the_log(tmp_path: Path) -> None:
    script = """
        import signal, sys
        from deltalog import blocking
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        with blocking.open_log(sys.argv[1], source="alice") as log:
            log.append("first")
            try:
                for delta in log.subscribe({}):
                    print("ready", flush=True)
            except KeyboardInterrupt:
                log.append("last")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        try:
            process.wait(AGAIN_S * 2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=PATIENCE_S) == (b"", b"")
        finally:
            process.kill()  # else leaving waits for ever for a process that does not end
    assert process.returncode == 0
    with open_log(tmp_path / "data") as log:
        assert (log.startup.kind, payloads(log.replay())) == ("clean", ["first", "last"])


def test_it_can_be_opened_again_while_a_child_lives(tmp_path: Path) -> None:
    """A forked child has the descriptor of the lock too; closing must free it all the same."""
    script = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from deltalog import blocking
        with blocking.open_log(sys.argv[1], source="alice"):
            wait, go = os.pipe()
            if not os.fork():
                os.close(go)
                os.read(wait, 1)
                os._exit(0)
        with blocking.open_log(sys.argv[1]) as log:
            print(log.startup.kind)
        os.close(go)
        os.wait()
    """
    done = python(script, tmp_path / "data")
    assert (done.stdout, done.stderr, done.returncode) == ("clean\n", "", 0)
