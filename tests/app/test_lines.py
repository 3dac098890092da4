"""Lines of any file in bounded memory: plain, gzip, several gzip files in one, cut short, damaged, without end."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalog.app.lines import CHUNK_BYTES, LineReader, LineRefused
from deltalog.errors import UsageError

MOST = 1 << 20


def read_all(reader: LineReader) -> list[bytes]:
    """All lines; their numbers must follow on one another."""
    found: list[bytes] = []
    while True:
        number, lines = reader.read()
        if not lines:
            return found
        assert number == len(found) + 1
        found += lines


def lines_of(path: Path, data: bytes, most: int = MOST) -> Sequence[bytes]:
    path.write_bytes(data)
    with LineReader.open(str(path), most) as reader:
        assert reader.total_bytes == len(data)
        lines = read_all(reader)
        assert reader.consumed_bytes == len(data)
        return lines


def refused(path: Path, data: bytes, most: int = MOST) -> LineRefused:
    with pytest.raises(LineRefused) as caught:
        lines_of(path, data, most)
    return caught.value


@given(st.text(alphabet="ab\n\r\u2028", max_size=30).map(str.encode))
def test_lines_come_back_plain_and_compressed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    expected = text.removesuffix(b"\n").split(b"\n") if text else []
    path = tmp_path_factory.getbasetemp() / "lines"
    assert lines_of(path, text) == expected
    assert lines_of(path, gzip.compress(text)) == expected


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "f", b"") == []
    assert lines_of(tmp_path / "f", gzip.compress(b"")) == []
    assert lines_of(tmp_path / "f", b"\x1f") == [b"\x1f"]


def test_gzip_files_one_after_the_other_are_one(tmp_path: Path) -> None:
    data = gzip.compress(b"a\nb") + gzip.compress(b"c\n") + gzip.compress(b"") + bytes(700) + gzip.compress(b"d")
    assert lines_of(tmp_path / "f", data) == [b"a", b"bc", b"d"]
    assert lines_of(tmp_path / "f", gzip.compress(b"a\n") + bytes(3 * CHUNK_BYTES)) == [b"a"]


def test_a_gzip_file_that_ends_in_the_middle_is_refused_after_its_lines(tmp_path: Path) -> None:
    data = gzip.compress(b"a\nb\n" + os.urandom(500).hex().encode() + b"\n")
    error = refused(tmp_path / "f", data[:-300])
    assert "the gzip file is damaged here: it ends in the middle" in str(error)
    assert error.number == 3


def test_a_gzip_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"a\n" * 1000))
    data[-8] ^= 1
    assert "the gzip file is damaged here" in str(refused(tmp_path / "f", bytes(data)))


def test_rubbish_after_a_gzip_file_is_refused(tmp_path: Path) -> None:
    assert "the gzip file is damaged here" in str(refused(tmp_path / "f", gzip.compress(b"a\n") + b"rubbish"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path, packed: bool) -> None:
    text = b"a\n" + b"x" * (40 << 20)
    error = refused(tmp_path / "f", gzip.compress(text) if packed else text, 100_000)
    assert error.number == 2
    assert str(error).startswith("line 2: it is too long (length is ")
    assert "the limit is 100,000 bytes" in str(error)
    assert int(str(error).split("length is ")[1].split()[0].replace(",", "")) <= 100_000 + CHUNK_BYTES


def test_the_longest_line_is_taken(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "f", b"x" * 1000 + b"\n" + b"y" * 1000, 1000) == [b"x" * 1000, b"y" * 1000]


def test_the_lines_before_one_that_is_too_long_are_given_first(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\n\n" + b"x" * 1001 + b"\nb\n")
    with LineReader.open(str(tmp_path / "f"), 1000) as reader:
        assert reader.read() == (1, [b"a", b""])
        for _ in range(2):
            with pytest.raises(LineRefused, match="line 3: it is too long"):
                reader.read()


def test_a_bomb_unpacks_in_pieces(tmp_path: Path) -> None:
    """A member of which a few bytes unpack to a gibibyte gives a chunk at a time."""
    packer = zlib.compressobj(9, wbits=31)
    block = b"\n" * (1 << 20)
    (tmp_path / "bomb").write_bytes(b"".join(packer.compress(block) for _ in range(64)) + packer.flush())
    with LineReader.open(str(tmp_path / "bomb"), 1000) as reader:
        for _ in range(4):
            _, lines = reader.read()
            assert 0 < len(lines) <= CHUNK_BYTES


def test_a_pipe_has_no_size_and_is_read_as_it_comes() -> None:
    out, into = os.pipe()
    with LineReader(io.FileIO(out), 100) as reader:
        assert reader.total_bytes is None
        os.write(into, b"\x1f")
        os.write(into, b"a\nb")
        assert reader.read() == (1, [b"\x1fa"])
        os.write(into, b"c\n")
        assert reader.read() == (2, [b"bc"])
        os.close(into)
        assert reader.read() == (3, [])


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for name, reason in (
        (str(tmp_path), "Is a directory"),
        (str(tmp_path / "none"), "No such file or directory"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(UsageError, match=reason):
            LineReader.open(name, 100)
