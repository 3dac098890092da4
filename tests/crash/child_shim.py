"""Programs that the tests of the shim run as processes: `python -m tests.crash.child_shim VERB DB ...`.

write DB EVERY [early]   batches 0, 1, 2 ... for ever, into two families; flush_wal(True) after each EVERY batches,
                         then a line with the number of batches that are durable. `early`: the line comes first
fail DB                  writes batches until the WAL cannot, and prints what each call then says
check DB MODE            opens with WAL recovery MODE and prints what is there
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import count

from rocksdict import AccessType, DBCompressionType, DBRecoveryMode, Options, Rdict, RdictIter, WriteBatch

FAMILIES = ("a", "b")
VALUE_BYTES = 300
FAIL_BATCHES = 20_000
"""What `fail` writes if nothing fails: many times the write buffer."""


def opened(path: str, mode: str, *, create: bool) -> Rdict:
    """A store with small buffers, so that a run of a second sees flushes, new WALs and compactions."""
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    options.set_write_buffer_size(128 * 1024)
    options.set_atomic_flush(True)
    options.set_compression_type(DBCompressionType.none())
    options.set_wal_recovery_mode(getattr(DBRecoveryMode, mode)())
    families = dict.fromkeys(("default", *FAMILIES), options)
    return Rdict(path, options, families, access_type=AccessType.read_write())


def value(number: int, family: str) -> bytes:
    """What batch `number` puts into `family`."""
    return f"{family}{number:09}".encode() * (VALUE_BYTES // 10)


def put_batch(db: Rdict, number: int) -> None:
    """Write one batch: a pair for each family."""
    batch = WriteBatch(raw_mode=True)
    for name in FAMILIES:
        batch.put(number.to_bytes(8, "big"), value(number, name), db.get_column_family_handle(name))
    db.write(batch)


def write(path: str, every: str, early: str = "") -> None:
    """Write for ever; say what is durable."""
    db = opened(path, "tolerate_corrupted_tail_records", create=True)
    for number in count(1):
        put_batch(db, number - 1)
        if number % int(every) == 0:
            if not early:
                db.flush_wal(True)
            os.write(1, b"%d\n" % number)
            if early:
                db.flush_wal(True)


def said(call: Callable[..., object], *args: object) -> str | None:
    """The message of the exception that `call` raises."""
    try:
        call(*args)
    except Exception as error:  # noqa: BLE001  # rocksdict raises nothing narrower
        return str(error)
    return None


def fail(path: str) -> None:
    """Write until a write or a sync fails, then try each call once more."""
    db = opened(path, "tolerate_corrupted_tail_records", create=True)
    failed = None
    for number in range(FAIL_BATCHES):
        failed = said(put_batch, db, number) or said(db.flush_wal, True)
        if failed:
            break
    again = {"first": failed, "write": said(put_batch, db, 10**6), "flush_wal": said(db.flush_wal, True)}
    read = db.get_column_family(FAMILIES[0]).get((0).to_bytes(8, "big"))
    print(json.dumps({**again, "close": said(db.close), "read": read == value(0, "a")}))


def present(rows: RdictIter, family: str) -> list[int]:
    """The numbers of the batches that `family` has, in order. Raises if a value is wrong or the scan ended early."""
    found = []
    rows.seek_to_first()
    while rows.valid():
        number = int.from_bytes(rows.key(), "big")
        assert rows.value() == value(number, family), f"{family}: batch {number} has another value"
        found.append(number)
        rows.next()
    rows.status()
    return found


def check(path: str, mode: str) -> None:
    """Open and print {family: [complete prefix, all]}, or {"error": message}."""
    try:
        db = opened(path, mode, create=False)
        seen = {name: present(db.get_column_family(name).iter(), name) for name in FAMILIES}
    except Exception as error:  # noqa: BLE001  # rocksdict raises nothing narrower
        print(json.dumps({"error": str(error)}))
        return
    prefixes = {name: next((n for n, m in enumerate(found) if n != m), len(found)) for name, found in seen.items()}
    print(json.dumps({name: [prefixes[name], len(found)] for name, found in seen.items()}))


def main(verb: str, *arguments: str) -> None:
    """Run one of the programs above."""
    programs: dict[str, Callable[..., None]] = {"write": write, "fail": fail, "check": check}
    programs[verb](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
