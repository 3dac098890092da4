"""Batches are plain data whose arguments were checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deltalog.errors import StoreUsageError
from deltalog.rocks_values import Batch

WRONG: list[tuple[str, Callable[[Batch], None]]] = [
    ("takes bytes, not str", lambda batch: batch.put("a", "key", b"")),  # type: ignore[arg-type]
    ("takes bytes, not bytes and bytearray", lambda batch: batch.put("a", b"", bytearray())),  # type: ignore[arg-type]
    ("put takes bytes, not bytes and NoneType", lambda batch: batch.put("a", b"", None)),  # type: ignore[arg-type]
    ("not memoryview", lambda batch: batch.delete("a", memoryview(b""))),  # type: ignore[arg-type]
    ("not int", lambda batch: batch.delete_range("a", b"", 1)),  # type: ignore[arg-type]
    ("not bytes and NoneType$", lambda batch: batch.delete_range("a", b"", None)),  # type: ignore[arg-type]
    ("not NoneType and bytes$", lambda batch: batch.delete_range("a", None, b"")),  # type: ignore[arg-type]
    ("begin 62 comes after end 61", lambda batch: batch.delete_range("a", b"b", b"a")),
    ("no column family 'x'; there are", lambda batch: batch.put("x", b"", b"")),
    ("no column family 'default'", lambda batch: batch.delete("default", b"")),
    ("no column family ''", lambda batch: batch.delete_range("", b"", b"")),
]


class BytesSubclass(bytes):
    pass


@pytest.mark.parametrize(("text", "wrong"), WRONG, ids=[text for text, _ in WRONG])
def test_wrong_argument_is_refused_and_not_kept(text: str, wrong: Callable[[Batch], None]) -> None:
    batch = Batch({"a"})
    batch.put("a", b"key", b"value")
    with pytest.raises(StoreUsageError, match=text):
        wrong(batch)
    assert (len(batch), batch.size_bytes) == (1, 8)


def test_subclass_of_bytes_is_refused() -> None:
    with pytest.raises(StoreUsageError, match="BytesSubclass"):
        Batch({"a"}).put("a", BytesSubclass(b"key"), b"value")


def test_length_and_size() -> None:
    batch = Batch({"a", "b"})
    assert (len(batch), batch.size_bytes) == (0, 0)
    batch.put("a", b"key", b"value")
    batch.delete("b", b"key")
    batch.delete_range("a", b"a", b"bb")
    batch.delete_range("a", b"same", b"same")
    assert (len(batch), batch.size_bytes) == (4, 8 + 3 + 3 + 8)
