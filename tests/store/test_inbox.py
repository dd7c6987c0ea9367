"""The inbox file itself: what is taken away or put in its place while it is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from actionqueue.core.errors import NotAStore, StoreDamaged
from actionqueue.core.ids import fresh_id_bytes
from actionqueue.store.inbox import Inbox


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def engines(store: Path) -> Iterator[Inbox]:
    with closing(Inbox(store)) as inbox:
        yield inbox


def put(inbox: Inbox, body: bytes = b"x") -> bytes:
    command_id = fresh_id_bytes()
    inbox.put(command_id, body, 1)
    return command_id


def take_away(inbox: Inbox, *, only_itself: bool = False) -> None:
    for path in inbox.path.parent.glob(inbox.path.name + ("" if only_itself else "*")):
        path.unlink()


@pytest.mark.parametrize("only_itself", [False, True])
def test_after_the_file_was_deleted_both_sides_meet_in_the_new_one(
    store: Path, engines: Inbox, only_itself: bool
) -> None:
    with ExitStack() as stack:
        old, new = (stack.enter_context(closing(Inbox(store))) for _ in range(2))
        put(old)
        assert len(engines.rows(10)) == 1

        take_away(engines, only_itself=only_itself)

        sent = [put(old, b"from one who had it open")]
        new.close()
        new = stack.enter_context(closing(Inbox(store)))
        sent.append(put(new, b"from one who came later"))
        assert [row[1] for row in engines.rows(10)] == sent
        assert all(old.is_waiting(each) for each in sent)


def test_the_engine_makes_a_new_file_where_nobody_did(store: Path, engines: Inbox) -> None:
    take_away(engines)
    assert engines.rows(10) == []
    with closing(Inbox(store)) as later:
        sent = put(later)
    assert [row[1] for row in engines.rows(10)] == [sent]


def test_a_file_put_in_its_place_is_read(store: Path, engines: Inbox, tmp_path: Path) -> None:
    with closing(Inbox(tmp_path / "other.db")) as other:
        sent = put(other)
        path = other.path
    take_away(engines)
    path.rename(engines.path)
    assert [row[1] for row in engines.rows(10)] == [sent]


def test_what_was_decided_is_not_deleted_from_another_file(engines: Inbox) -> None:
    """Row ids begin anew there."""
    decided = put(engines)
    done = [row[:2] for row in engines.rows(10)]
    take_away(engines)
    sent = put(engines)
    assert engines.rows(10)[0][0] == done[0][0]

    engines.delete(done)

    assert [row[1] for row in engines.rows(10)] == [sent]
    assert not engines.is_waiting(decided)
    engines.delete([row[:2] for row in engines.rows(10)])
    assert engines.rows(10) == []


def test_rubbish_in_its_place_is_refused_until_it_is_taken_away(engines: Inbox) -> None:
    take_away(engines)
    engines.path.write_bytes(b"rubbish" * 1_000)
    for _ in range(2):
        with pytest.raises(NotAStore):
            engines.rows(10)
    take_away(engines)
    sent = put(engines)
    assert [row[1] for row in engines.rows(10)] == [sent]


def test_a_damaged_log_is_refused_with_its_place_and_what_others_write_meanwhile_is_not(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5-17: SQLite would drop every command behind the damage without a word."""
    with closing(Inbox(store)) as inbox:
        for _ in range(10):
            put(inbox)
        wal = Path(f"{inbox.path}-wal")
        good = wal.read_bytes()
        damaged = bytearray(good)
        damaged[len(good) // 2] ^= 1
    Path(f"{inbox.path}-wal").write_bytes(damaged)
    with pytest.raises(StoreDamaged, match=r"truncate -s \d+") as caught:
        Inbox(store)
    assert str(caught.value.facts["place"]).startswith("wal frame")
    assert wal.read_bytes() == damaged

    monkeypatch.setattr("actionqueue.store.inbox.time.sleep", lambda seconds: wal.write_bytes(good))
    with closing(Inbox(store)) as inbox:
        assert len(inbox.rows(100)) == 10
