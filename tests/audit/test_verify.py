"""Verify names the first event that was changed, removed, inserted or moved; a head kept elsewhere shows the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from audit import keys, trail
from audit.event import decode, encode
from audit.keys import BY_HOLDER, EVENTS, META
from audit.store import FAMILIES, AuditStore
from audit.trail import TrailHead
from audit.verify import check_tail, verify
from deltalog.errors import StoreCorrupt
from deltalog.rocks_values import Batch
from tests.audit.trails import event, opened, some_events, write_all

COUNT = 1_300
FLOORS = [0, 200]


@pytest.fixture(params=FLOORS)
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AuditStore]:
    made = opened(tmp_path / "s")
    write_all(made, some_events(COUNT))
    made.truncate(request.param)
    yield made
    made.close()


def rows(store: AuditStore) -> dict[int, bytes]:
    return {keys.parse_event_key(key): value for key, value in store.db.scan(EVENTS)}


def rewrite(store: AuditStore, change: Callable[[dict[int, bytes]], None]) -> None:
    """Change the events behind the store's back."""
    before = rows(store)
    after = dict(before)
    change(after)
    batch = Batch(FAMILIES)
    for number in before.keys() - after.keys():
        batch.delete(EVENTS, keys.event_key(number))
    for number, value in after.items():
        if before.get(number) != value:
            batch.put(EVENTS, keys.event_key(number), value)
    store.db.write(batch)


def first(store: AuditStore) -> tuple[str, int]:
    found = verify(store).findings[0]
    return found.kind, found.number


def test_a_trail_that_nobody_touched_is_fine(store: AuditStore) -> None:
    report = verify(store, head=TrailHead(store.head.number, store.head.link))
    assert report.ok
    assert report.events == store.head.count
    check_tail(store)


def forged(value: bytes, holder_id: str = "mallory") -> bytes:
    """Another holder's id in an event, with the link as it was."""
    old = decode(value[32:])
    return value[:32] + encode(event(old.timestamp, old.action, target=old.target, holder_id=holder_id))


@pytest.mark.parametrize("number", [201, 700, COUNT])
def test_i9_a_changed_value_is_named(store: AuditStore, number: int) -> None:
    rewrite(store, lambda held: held.update({number: forged(held[number])}))
    assert first(store) == ("changed", number)


@pytest.mark.parametrize("offset", [0, 31, 32, 34, 50, 60])
def test_i9_any_flipped_bit_is_named(store: AuditStore, offset: int) -> None:
    def flip(held: dict[int, bytes]) -> None:
        value = bytearray(held[700])
        value[offset] ^= 1
        held[700] = bytes(value)

    rewrite(store, flip)
    assert first(store)[1] == 700


@pytest.mark.parametrize("number", [201, 700, COUNT])
def test_i9_a_removed_event_is_named(store: AuditStore, number: int) -> None:
    rewrite(store, lambda held: held.__delitem__(number))
    assert first(store) == ("removed", number)


def test_i9_a_removed_event_is_named_though_the_others_moved_up(store: AuditStore) -> None:
    def close_up(held: dict[int, bytes]) -> None:
        for number in range(700, COUNT):
            held[number] = held[number + 1]
        del held[COUNT]

    rewrite(store, close_up)
    findings = verify(store).findings
    assert (findings[0].kind, findings[0].number) == ("removed", 700)
    assert len(findings) <= 4, "one change is not many findings"


def test_i9_an_inserted_event_is_named(store: AuditStore) -> None:
    def insert(held: dict[int, bytes]) -> None:
        for number in range(COUNT, 699, -1):
            held[number + 1] = held[number]
        held[700] = bytes(32) + encode(event(decode(held[700][32:]).timestamp))

    rewrite(store, insert)
    findings = verify(store).findings
    assert (findings[0].kind, findings[0].number) == ("inserted", 700)
    assert len(findings) <= 4


def test_i9_reordered_events_are_named(store: AuditStore) -> None:
    rewrite(store, lambda held: held.update({700: held[701], 701: held[700]}))
    assert first(store) == ("reordered", 700)


def test_i9_an_event_behind_the_end_is_named(store: AuditStore) -> None:
    rewrite(store, lambda held: held.update({COUNT + 1: held[COUNT]}))
    assert first(store)[1] == COUNT + 1


def test_an_event_below_the_floor_is_named(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    write_all(store, some_events(50))
    held = rows(store)
    store.truncate(20)
    rewrite(store, lambda rest: rest.update({7: held[7]}))
    assert first(store) == ("inserted", 7)
    store.close()


def relinked(store: AuditStore, held: dict[int, bytes], start: int) -> bytes:
    """Write a whole new chain from an event on; return where it leads."""
    link = held[start - 1][:32]
    for number in range(start, max(held) + 1):
        data = held[number][32:]
        link = trail.extend(link, number, [data])[0]
        held[number] = link + data
    return link


def test_i9_a_rewritten_tail_is_shown_by_its_checkpoint_and_by_a_head_kept_elsewhere(store: AuditStore) -> None:
    kept = TrailHead.parse(str(TrailHead(store.head.number, store.head.link)))
    old = TrailHead(650, rows(store)[650][:32])
    link = b""

    def rewrite_all(held: dict[int, bytes]) -> None:
        nonlocal link
        held[700] = forged(held[700])
        link = relinked(store, held, 700)

    rewrite(store, rewrite_all)
    batch = Batch(FAMILIES)
    head = attrs.evolve(store.head, link=link)
    batch.put(META, keys.META_HEAD, keys.encode_head(head))
    store.db.write(batch)
    assert first(store)[0] == "checkpoint"
    findings = verify(store, head=kept).findings
    assert findings[0].kind == "head"
    assert all(each.kind != "head" for each in verify(store, head=old).findings), "what is before it is as it was"


def test_a_cut_tail_is_provable(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    write_all(store, some_events(50), 10)
    kept = TrailHead(50, store.head.link)
    link = rows(store)[40][:32]
    shorter = opened(tmp_path / "other")
    write_all(shorter, some_events(50)[:40], 10)
    assert shorter.head.link == link, "the same events make the same chain"
    assert verify(shorter).ok
    (finding,) = verify(shorter, head=kept).findings
    assert (finding.kind, finding.number) == ("cut", 41)
    store.close()
    shorter.close()


def test_a_head_from_before_the_floor_cannot_be_checked_and_is_not_called_fine(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    write_all(store, some_events(50), 10)
    links = {number: value[:32] for number, value in rows(store).items()}
    store.truncate(20)
    assert [each.kind for each in verify(store, head=TrailHead(19, links[19])).findings] == ["head"]
    assert verify(store, head=TrailHead(20, links[20])).ok
    assert not verify(store, head=TrailHead(20, links[21])).ok
    store.close()


@pytest.mark.parametrize("family", keys.INDEXES)
def test_i8_an_index_that_does_not_agree_is_named(store: AuditStore, family: str) -> None:
    key, value = next((key, value) for key, value in store.db.scan(family) if keys.parse_entry_key(key)[1] > 700)
    number = keys.parse_entry_key(key)[1]
    batch = Batch(FAMILIES)
    batch.delete(family, key)
    store.db.write(batch)
    lost = verify(store).findings
    assert {each.kind for each in lost} == {"index"}
    assert number in {each.number for each in lost}
    batch = Batch(FAMILIES)
    batch.put(family, key, value)
    batch.put(family, keys.entry_key(b"nothing!", 700), keys.encode_offsets([700]))
    store.db.write(batch)
    extra = verify(store).findings
    assert [(each.kind, each.number) for each in extra] == [("index", 700)]


def test_an_event_under_the_wrong_holder_is_named(store: AuditStore) -> None:
    term = keys.holder_term("h0")[1]
    wrong = next(n for n, value in rows(store).items() if n > 700 and decode(value[32:]).holder_id == "h1")
    batch = Batch(FAMILIES)
    batch.put(BY_HOLDER, keys.entry_key(term, wrong), keys.encode_offsets([wrong]))
    store.db.write(batch)
    assert ("index", wrong) in {(each.kind, each.number) for each in verify(store).findings}


@pytest.mark.parametrize("number", [COUNT, COUNT - 50])
def test_an_open_sees_a_tail_that_does_not_lead_to_the_head(store: AuditStore, number: int) -> None:
    rewrite(store, lambda held: held.update({number: forged(held[number])}))
    with pytest.raises(StoreCorrupt, match="do not lead"):
        check_tail(store)
