"""Backups while the store is in use, and bringing them back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from actionqueue.core.errors import NotAStore, StoreDamaged, StoreError, StoreHeld, StoreUnavailable
from actionqueue.store.backup import restore
from actionqueue.store.checking import problems
from actionqueue.store.port import RunFilter
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.store.sqlite_reader import SQLiteReader
from tests.store.driver import Driver, load, picture


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    made = SQLiteStore(tmp_path / "queue.db")
    yield made
    made.close()


@pytest.fixture
def driver(store: SQLiteStore) -> Driver:
    return Driver(store.open(pid=1, host="here"))


@pytest.fixture
def copy(store: SQLiteStore, driver: Driver, tmp_path: Path) -> Path:
    """A backup of a store with ten runs."""
    driver.run(10)
    store.commit(driver.batch())
    store.backup(str(tmp_path / "copy.db"))
    return tmp_path / "copy.db"


def run_count(path: Path) -> int:
    with closing(SQLiteReader(path)) as reader:
        return len(reader.runs(RunFilter(limit=10**6)))


def test_a_backup_is_one_file_that_checks_out(copy: Path) -> None:
    assert list(problems(copy)) == []
    assert run_count(copy) == 10
    assert [each.name for each in copy.parent.iterdir() if each.name.startswith("copy")] == ["copy.db"]


def test_a_backup_taken_while_commits_go_on_is_of_one_moment(
    store: SQLiteStore, driver: Driver, tmp_path: Path
) -> None:
    for _ in range(20):
        driver.run(200)
        store.commit(driver.batch())
    target = tmp_path / "copy.db"
    thread = threading.Thread(target=store.backup, args=(str(target),))

    thread.start()
    commits = 0
    while thread.is_alive():
        driver.run(50)
        store.commit(driver.batch(project=commits % 2 == 0))
        store.maintain()
        commits += 1
    thread.join()

    assert commits > 1
    assert list(problems(target)) == []
    again = SQLiteStore(target)
    opened = again.open(pid=1, host="here")
    assert opened.last_seq < driver.last_seq
    assert load(again, opened).state.last_seq == opened.last_seq
    again.close()


def test_a_failed_backup_leaves_nothing(store: SQLiteStore, driver: Driver, tmp_path: Path) -> None:
    before = {each.name for each in tmp_path.iterdir()}

    with pytest.raises(StoreError):
        store.backup(str(tmp_path / "none" / "copy.db"))

    assert {each.name for each in tmp_path.iterdir()} == before


def test_a_restored_store_opens_as_restored_in_a_later_epoch(
    store: SQLiteStore, driver: Driver, copy: Path, tmp_path: Path
) -> None:
    assert restore(copy, tmp_path / "restored.db") is None

    again = SQLiteStore(tmp_path / "restored.db")
    opened = again.open(pid=1, host="here")
    assert opened.restored
    assert opened.epoch > driver.epoch
    assert picture(load(again, opened).state) == picture(driver.state)
    again.close()
    assert run_count(copy) == 10


def test_a_plain_copy_of_a_closed_store_can_be_restored(store: SQLiteStore, driver: Driver, tmp_path: Path) -> None:
    driver.run(3)
    store.commit(driver.batch())
    store.close()
    shutil.copy(store.path, tmp_path / "plain.db")

    restore(tmp_path / "plain.db", tmp_path / "restored.db")

    again = SQLiteStore(tmp_path / "restored.db")
    assert again.open(pid=1, host="here").restored
    again.close()


def test_a_store_that_is_there_is_not_overwritten_unless_forced_and_then_kept_aside(
    store: SQLiteStore, driver: Driver, copy: Path
) -> None:
    driver.run(5)
    store.commit(driver.batch())
    store.close()

    with pytest.raises(StoreError):
        restore(copy, store.path)
    assert run_count(store.path) == 15

    aside = restore(copy, store.path, force=True)

    assert aside is not None
    assert (run_count(store.path), run_count(aside)) == (10, 15)


def test_the_wal_of_a_replaced_store_is_moved_aside_with_it(
    store: SQLiteStore, driver: Driver, copy: Path, tmp_path: Path
) -> None:
    driver.run(5)
    store.commit(driver.batch())
    crashed = tmp_path / "crashed.db"
    for suffix in ("", "-wal"):
        shutil.copy(f"{store.path}{suffix}", f"{crashed}{suffix}")

    aside = restore(copy, crashed, force=True)

    assert aside is not None
    assert (run_count(crashed), run_count(aside)) == (10, 15)


def test_a_store_in_use_is_not_restored_over(store: SQLiteStore, driver: Driver, copy: Path) -> None:
    with pytest.raises(StoreHeld):
        restore(copy, store.path, force=True)

    driver.run()
    store.commit(driver.batch())
    assert run_count(store.path) == 11


def test_a_damaged_backup_is_refused_and_the_store_stays(store: SQLiteStore, driver: Driver, copy: Path) -> None:
    store.close()
    whole = bytearray(copy.read_bytes())
    whole[whole.rindex(b'{"to": 1}')] ^= 1
    copy.write_bytes(whole)

    with pytest.raises(StoreDamaged):
        restore(copy, store.path, force=True)

    assert run_count(store.path) == 10


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"text" * 1000)

    with pytest.raises(NotAStore):
        restore(tmp_path / "text", tmp_path / "restored.db")
    with pytest.raises(StoreUnavailable):
        restore(tmp_path / "none", tmp_path / "restored.db")

    assert not (tmp_path / "restored.db").exists()
