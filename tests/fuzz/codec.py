"""The decoders under atheris: `python -m tests.fuzz.codec -max_total_time=60`.

    --target=NAME    one of `targets.TARGETS` (may be repeated); without it each in turn, for its share of the time
    anything else    goes to libFuzzer: -max_total_time, -runs, -max_len, a file to run again

Inputs that found something new stay in build/fuzz/NAME, and serve as a start next time; one that fails is written to
build/fuzz/NAME-crash-*. Put it among the target's seeds once the fault is mended: the tests run all of these.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["deltalog"]):
    from tests.fuzz.targets import TARGETS, Target

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
BOUNDS = ("-max_len=65536", "-timeout=5", "-rss_limit_mb=512", "-print_final_stats=1", "-verbosity=0")
"""An input may take 5 seconds on a busy machine, all of the process half a gigabyte."""


def fuzz(name: str, target: Target, flags: Sequence[str]) -> None:
    """Run one target; ends the process."""
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (corpus / sha256(seed).hexdigest()).write_bytes(seed)
    files = [flag for flag in flags if not flag.startswith("-")]
    argv = [sys.argv[0], *BOUNDS, f"-artifact_prefix={BUILD}/{name}-", *flags, *([] if files else [str(corpus)])]
    mutator = {} if target.seal is None else {"custom_mutator": sealing_mutator(target)}
    atheris.Setup(argv, target.run, **mutator)
    atheris.Fuzz()


class sealing_mutator:  # noqa: N801  # stands where a function is expected
    """Mutates what the check covers and puts a valid check on; every fourth time mutates the bytes as they are."""

    def __init__(self, target: Target) -> None:
        assert target.seal is not None
        assert target.unseal is not None
        self._seal, self._unseal = target.seal, target.unseal

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 4 == 0:
            mutated: bytes = atheris.Mutate(data, max_size)
            return mutated
        return self._seal(atheris.Mutate(self._unseal(data), max_size - 64))[:max_size]


def main(arguments: Sequence[str], targets: Mapping[str, Target], module: str) -> int:
    """Run the targets asked for, each in a process of its own (by `module`'s name); 0 if none failed."""
    names = [flag.removeprefix("--target=") for flag in arguments if flag.startswith("--target=")]
    flags = [flag for flag in arguments if not flag.startswith("--target=")]
    if unknown := set(names) - targets.keys():
        print(f"no target {', '.join(sorted(unknown))}; known: {', '.join(targets)}", file=sys.stderr)
        return 2
    if len(names) == 1:
        fuzz(names[0], targets[names[0]], flags)
    flags = [shared(flag, len(names or targets)) for flag in flags]
    for name in names or targets:
        print(f"{name}: ", " ".join(flags), flush=True)
        code = subprocess.run([sys.executable, "-m", module, f"--target={name}", *flags], check=False).returncode
        if code:
            return code
    return 0


def shared(flag: str, parts: int) -> str:
    """A flag for one of several targets: each gets its part of the time."""
    name, _, value = flag.partition("=")
    return f"{name}={max(1, int(value) // parts)}" if name == "-max_total_time" else flag


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], TARGETS, __spec__.name))
