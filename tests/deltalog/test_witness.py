"""The witness believes only whole slots, never forgets what it was told, and its mark survives the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.errors import StoreCorrupt
from deltalog.witness import Testimony as Told  # under its own name pytest would take it for a test class
from deltalog.witness import Witness, boot_id
from tests.models import witness_slot
from tests.strategies import sources

SLOTS = (4096, 20_480)
"""Offsets of the slots. The first record goes to the second."""
SLOT_BYTES = 16_384


def told(number: int, **changes: Any) -> Told:
    """What the witness is told at the `number`th fsync."""
    testimony = Told(
        store_id=b"s" * 16,
        place="machine/7",
        boot="boot",
        clean=False,
        source="alice",
        sequence=number,
        heads={"alice": (number, b"a" * 32), "bob:\0": (3, b"b" * 32)},
        total=number + 3,
    )
    return attrs.evolve(testimony, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "witness"


def recorded(path: Path, count: int) -> Path:
    """A witness that was told `count` times, each time durably."""
    with closing(Witness.create(path)) as witness:
        for number in range(1, count + 1):
            witness.record(told(number), durable=True)
    return path


def reopened(path: Path) -> Told | None:
    with closing(Witness.open(path)) as witness:
        return witness.testimony


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A witness to write over: making one costs two fsyncs."""
    return recorded(tmp_path_factory.mktemp("used") / "witness", 0)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def place_of(number: int) -> int:
    """Offset of the slot that the `number`th record went to, if all were durable."""
    return SLOTS[number % 2]


# -------------------------------------------------------------------------------------------------------------- slots


def test_a_new_witness_knows_nothing(path: Path) -> None:
    with closing(Witness.create(path)) as witness:
        assert witness.testimony is None
        assert witness.mark[0] == 0
    assert reopened(path) is None
    assert path.stat().st_size == SLOTS[1] + SLOT_BYTES
    assert path.stat().st_mode & 0o777 == 0o600


def test_slots_alternate_and_the_newest_counts(path: Path) -> None:
    with closing(Witness.create(path)) as witness:
        before = path.read_bytes()
        for number in range(1, 7):
            witness.record(told(number), durable=True)
            assert witness.testimony == told(number) == reopened(path)
            after = path.read_bytes()
            changed = {at for at in range(len(after)) if after[at] != before[at]}
            assert place_of(number) <= min(changed)
            assert max(changed) < place_of(number) + SLOT_BYTES
            before = after


def test_the_bytes_of_a_slot_are_those_in_the_table(path: Path) -> None:
    data = recorded(path, 3).read_bytes()
    size = int.from_bytes(data[SLOTS[1] + 12 : SLOTS[1] + 16], "big")
    body = data[SLOTS[1] + 32 : SLOTS[1] + 32 + size]
    assert data[SLOTS[1] :].startswith(witness_slot(3, body))
    assert msgpack.unpackb(body)["sequence"] == 3


def test_a_record_leaves_the_newest_durable_one_alone(path: Path) -> None:
    """Records that are not fsynced may all be torn by a power loss; the durable one must not be among them."""
    with closing(Witness.create(path)) as witness:
        witness.record(told(1), durable=True)
        durable = path.read_bytes()[place_of(1) :][:SLOT_BYTES]
        for number in (2, 3, 4):
            witness.record(told(number))
            assert reopened(path) == told(number)
            assert path.read_bytes()[place_of(1) :][:SLOT_BYTES] == durable
        overwrite(path, place_of(2), b"torn")
        assert reopened(path) == told(1)
        witness.record(told(5), durable=True)
        witness.record(told(6))
        overwrite(path, place_of(1), b"torn")
        assert reopened(path) == told(5)


def test_after_a_reopen_the_newest_record_is_the_one_to_keep(path: Path) -> None:
    with closing(Witness.create(path)) as witness:
        witness.record(told(1), durable=True)
        witness.record(told(2))
    with closing(Witness.open(path)) as witness:
        witness.record(told(3))
        overwrite(path, place_of(1), b"torn")
    assert reopened(path) == told(2)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_torn_slot_falls_back_to_the_one_before_and_is_written_next(path: Path, count: int) -> None:
    overwrite(recorded(path, count), place_of(count) + 100, b"\0" * (SLOT_BYTES - 100))
    with closing(Witness.open(path)) as witness:
        assert witness.testimony == told(count - 1)
        witness.record(told(count + 7))
        overwrite(path, place_of(count - 1), b"\xff" * 100)
        assert reopened(path) == told(count + 7)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_when_no_slot_is_whole_the_witness_is_corrupt(path: Path, count: int) -> None:
    for offset in SLOTS[-min(count, 2) :]:
        overwrite(path if path.exists() else recorded(path, count), offset + 40, b"\xff\xff")
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="witness: neither slot is valid"):
        Witness.open(path)
    assert path.read_bytes() == before


def test_every_flipped_bit_of_the_newest_slot_is_noticed(path: Path) -> None:
    data = recorded(path, 4).read_bytes()
    at = place_of(4)
    size = 32 + int.from_bytes(data[at + 12 : at + 16], "big")
    for bit in range(8 * size):
        overwrite(path, at + bit // 8, bytes([data[at + bit // 8] ^ 1 << bit % 8]))
        assert reopened(path) == told(3), f"bit {bit}"
        overwrite(path, at + bit // 8, data[at + bit // 8 : at + bit // 8 + 1])
    assert reopened(path) == told(4)


@given(
    offsets=st.lists(st.sampled_from(SLOTS).flatmap(lambda at: st.integers(at - 40, at + 260)), min_size=1, max_size=3),
    junk=st.binary(min_size=1, max_size=60),
)
def test_whatever_is_written_over_it_it_says_what_it_was_told_or_nothing(
    used: Path, offsets: list[int], junk: bytes
) -> None:
    overwrite(used, SLOTS[0], witness_slot(2, body_of(2)).ljust(SLOT_BYTES, b"\0"))
    overwrite(used, SLOTS[1], witness_slot(3, body_of(3)).ljust(SLOT_BYTES, b"\0"))
    before = used.read_bytes()
    for offset in offsets:
        overwrite(used, offset, junk)
    after = used.read_bytes()
    whole = {n for n in (2, 3) if after[place_of(n) :][:SLOT_BYTES] == before[place_of(n) :][:SLOT_BYTES]}
    try:
        said = reopened(used)
    except StoreCorrupt:
        assert not whole
    else:
        assert said == told(3) or (said == told(2) and 3 not in whole)


def body_of(number: int, **changes: Any) -> bytes:
    fields = {**attrs.asdict(told(number), recurse=False), **changes}
    packed: bytes = msgpack.packb({name: value for name, value in fields.items() if value is not ...})
    return packed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x05",
        b"\x90",
        b"\x91" * 2000,
        b"\x81\x01\x02",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        body_of(9, heads=...),
        body_of(9, heads=5),
        body_of(9, heads={"alice": 5}),
        body_of(9, heads={"alice": [1, 2, 3]}),
        body_of(9, total=...),
        body_of(9, cell=2),
        body_of(9, cell=True),
        body_of(9, more=5),
        body_of(9, heads={"alice": [1, "chain"]}),
        body_of(9, heads={"alice": [True, b"chain"]}),
        body_of(9, heads={b"alice": [1, b"chain"]}),
        body_of(9, total="5"),
        body_of(9, clean=1),
        body_of(9, store_id="s"),
        body_of(9) + b"\0",
    ],
)
def test_a_slot_with_a_valid_check_and_other_fields_is_corrupt(path: Path, body: bytes) -> None:
    overwrite(recorded(path, 2), place_of(9), witness_slot(9, body))
    with pytest.raises(StoreCorrupt, match="a slot has a valid check but not this program's fields"):
        Witness.open(path)


def test_a_generation_that_leaves_none_to_come_is_no_record(path: Path) -> None:
    overwrite(recorded(path, 2), SLOTS[0], witness_slot(2**64 - 1, body_of(9)))
    overwrite(path, SLOTS[1], witness_slot(2**63 + 1, body_of(9)))
    with pytest.raises(StoreCorrupt, match="neither slot is valid"):
        Witness.open(path)


def test_a_size_beyond_the_slot_is_no_reason_to_read_beyond_it(path: Path) -> None:
    overwrite(recorded(path, 2), SLOTS[1], b"dlw1" + (9).to_bytes(8, "big") + b"\xff" * 4)
    assert reopened(path) == told(2)


# --------------------------------------------------------------------------------------------------- too many sources


def many_heads(names: list[str]) -> dict[str, tuple[int, bytes]]:
    return {name: (number, number.to_bytes(4, "big") * 8) for number, name in enumerate(names, 1)}


@given(
    names=st.lists(st.builds("{}{}".format, sources().filter(lambda text: len(text) < 60), st.integers(0, 10**6))),
    copies=st.sampled_from([1, 5, 300]),
    own=st.integers(0, 10_000),
)
def test_heads_that_do_not_fit_are_dropped_but_never_this_nodes_own(
    used: Path, names: list[str], copies: int, own: int
) -> None:
    everybody = [f"{name}#{copy}" for name in names or ["a"] for copy in range(copies)]
    source = everybody[own % len(everybody)]
    heads = many_heads(everybody)
    overwrite(used, SLOTS[0], bytes(2 * SLOT_BYTES))
    with closing(Witness.open(used)) as witness:
        witness.record(told(1, source=source, heads=heads, total=12345))
    found = reopened(used)
    assert found is not None
    assert found.heads.items() <= heads.items()
    assert source in found.heads
    assert (found.total, found.source, found.sequence) == (12345, source, 1)
    if sum(len(name.encode()) + 64 for name in everybody) < 16_000:
        assert found.heads == heads


def test_nearly_as_many_heads_are_kept_as_fit(path: Path) -> None:
    heads = many_heads([f"{number:010}" for number in range(5_000)])
    with closing(Witness.create(path)) as witness:
        witness.record(told(1, source=f"{4_999:010}", heads=heads))
    found = reopened(path)
    assert found is not None
    assert 300 <= len(found.heads) <= 350
    assert f"{4_999:010}" in found.heads


# --------------------------------------------------------------------------------------------------------------- mark


CHILD = """
import sys
from pathlib import Path
from deltalog.witness import Witness
witness = Witness.open(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    witness.mark[0] = number
    if number % 1000 == 0:
        print(number, flush=True)
"""


def test_the_mark_survives_sigkill(path: Path) -> None:
    recorded(path, 1)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        seen = [int(next(child.stdout)) for _ in range(5)][-1]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
    assert child.returncode == -signal.SIGKILL
    with closing(Witness.open(path)) as witness:
        assert witness.mark[0] >= int(rest[-1] if rest else seen)
        assert witness.testimony == told(1)


def test_the_testimony_says_which_mark_counts(path: Path) -> None:
    with closing(Witness.create(path)) as witness:
        witness.mark[0] = 7
        witness.record(told(1, cell=0))
        witness.cell = 1
        witness.mark[0] = 3
        with closing(Witness.open(path)) as other:
            assert other.mark[0] == 7, "until that is recorded, the old mark counts"
        witness.record(told(2, cell=1))
    with closing(Witness.open(path)) as witness:
        assert (witness.cell, witness.mark[0]) == (1, 3)


def test_the_mark_and_the_slots_do_not_touch(path: Path) -> None:
    with closing(Witness.create(path)) as witness:
        witness.mark[0] = 2**64 - 1
        witness.record(told(1), durable=True)
        assert witness.mark[0] == 2**64 - 1
        witness.mark[0] = 5
    data = path.read_bytes()
    assert data[:8] == (5).to_bytes(8, sys.byteorder)
    assert not any(data[8:4096])
    assert reopened(path) == told(1)


# -------------------------------------------------------------------------------------------------------------- place


def test_a_copy_stands_in_another_place(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(recorded(path, 1).read_bytes())
    with closing(Witness.open(path)) as one, closing(Witness.open(path)) as same, closing(Witness.open(copy)) as other:
        assert one.place == same.place != other.place
        assert one.testimony == other.testimony
        path.rename(tmp_path / "moved")
        assert one.place == same.place


def test_one_start_of_the_system_has_one_id() -> None:
    assert boot_id() == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
