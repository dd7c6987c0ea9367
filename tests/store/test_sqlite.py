"""What is true of the SQLite store alone: its settings, its errors, its files, and who else may be there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actionqueue.core.errors import (
    CommitUnknown,
    EpochLost,
    NotAStore,
    StoreDamaged,
    StoreHeld,
    StoreReadOnly,
    StoreTooNew,
    StoreUnavailable,
    UsedAfterFork,
)
from actionqueue.core.rows import ATTEMPT_COLUMNS, STORED_RUN_COLUMNS, STORED_TASK_COLUMNS, TAG_COLUMNS, Facts
from actionqueue.core.spec import TaskOptions
from actionqueue.store import codec, sqlite_connection, sqlite_upkeep
from actionqueue.store.checking import problems
from actionqueue.store.filesystem import APPLICATION_ID, FORMAT_VERSION
from actionqueue.store.port import RunFilter
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.store.sqlite_log import ANCHOR_COLUMNS, COMMIT_COLUMNS, deflated, inflated
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.store.sqlite_rows import COLUMNS, set_meta
from tests.store.driver import START, Driver, load, picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    made = SQLiteStore(path)
    yield made
    made.close()


@pytest.fixture
def driver(store: SQLiteStore) -> Driver:
    return Driver(store.open(pid=1, host="here"))


def writer_of(store: SQLiteStore) -> sqlite3.Connection:
    assert store._writer is not None
    return store._writer


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


# --- settings ----------------------------------------------------------------------------------------------------


def test_every_connection_that_writes_syncs_each_commit_and_checkpoints_only_when_told(
    store: SQLiteStore, driver: Driver
) -> None:
    assert store._upkeep is not None
    for connection in (writer_of(store), store._upkeep._keeper):
        assert pragma(connection, "synchronous") == 2  # FULL
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "wal_autocheckpoint") == 0
        assert pragma(connection, "busy_timeout") == 0


def test_the_file_says_what_it_is_and_gives_pages_back(store: SQLiteStore, driver: Driver) -> None:
    writer = writer_of(store)

    assert pragma(writer, "application_id") == APPLICATION_ID
    assert pragma(writer, "user_version") == FORMAT_VERSION
    assert pragma(writer, "auto_vacuum") == 2  # INCREMENTAL


def test_columns_are_those_of_the_rows(store: SQLiteStore, driver: Driver) -> None:
    expected = COLUMNS | {"commits": COMMIT_COLUMNS, "anchors": ANCHOR_COLUMNS}
    assert (expected["tasks"], expected["runs"]) == (STORED_TASK_COLUMNS, STORED_RUN_COLUMNS)
    assert (expected["attempts"], expected["run_tags"]) == (ATTEMPT_COLUMNS, TAG_COLUMNS)

    writer = writer_of(store)
    tables = {row[0] for row in writer.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}

    for table in tables | set(expected):
        assert tuple(row[1] for row in writer.execute(f"PRAGMA table_info({table})")) == expected[table]


def test_constructing_does_nothing(path: Path) -> None:
    SQLiteStore(path)

    assert list(path.parent.iterdir()) == []


def test_a_closed_store_is_one_file_and_its_lock(store: SQLiteStore, driver: Driver, path: Path) -> None:
    driver.run(10)
    store.commit(driver.batch())
    store.close()

    assert {each.name for each in path.parent.iterdir()} == {"queue.db", "queue.db.lock"}


# --- refusals at opening -----------------------------------------------------------------------------------------


def other_database(path: Path, *, table: bool = True) -> None:
    with closing(sqlite3.connect(path)) as other:
        if table:
            other.execute("CREATE TABLE theirs (x)")
        other.commit()


@pytest.mark.parametrize("content", [b"not a database at all, but a text long enough" * 9, b"x"])
def test_a_file_that_is_no_store_is_refused_and_not_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(NotAStore):
        SQLiteStore(path).open(pid=1, host="here")
    with pytest.raises(NotAStore):
        SQLiteReader(path)

    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_another_programs_database_is_refused(path: Path) -> None:
    other_database(path)
    before = path.read_bytes()

    with pytest.raises(NotAStore):
        SQLiteStore(path).open(pid=1, host="here")

    assert path.read_bytes() == before


def test_another_programs_database_is_refused_also_when_all_of_it_is_in_its_wal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE theirs (x)")
        for name in ("queue.db", "queue.db-wal"):
            shutil.copy(path.parent / name, path.parent / f"copy-{name}")

    with pytest.raises(NotAStore):
        SQLiteStore(path.parent / "copy-queue.db").open(pid=1, host="here")


def test_a_newer_format_is_refused(store: SQLiteStore, driver: Driver, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")

    for refused in (lambda: store.open(pid=1, host="here"), lambda: SQLiteReader(path)):
        with pytest.raises(StoreTooNew) as caught:
            refused()
        assert caught.value.facts["found"] == FORMAT_VERSION + 1


def test_a_store_of_format_2_is_read_and_gets_what_it_lacks_when_an_engine_opens_it(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    run_id = driver.run()[0]
    store.commit(driver.batch())
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE steps")
        connection.execute("PRAGMA user_version = 2")
    with closing(SQLiteReader(path)) as reader:
        assert reader.steps_of([run_id]) == {run_id: []}
        with reader.scan() as scan:
            assert list(scan.rows("steps")) == []

    again = Driver(store.open(pid=2, host="here"))
    batch = again.batch(project=False)
    batch.steps = [(run_id, "a", "step", 5, b"1")]
    store.commit(batch)

    assert pragma(writer_of(store), "user_version") == FORMAT_VERSION
    with closing(store.reader()) as reader:
        assert reader.steps_of([run_id]) == {run_id: [(run_id, "a", "step", 5, b"1")]}


def test_a_missing_store_cannot_be_read_and_a_missing_directory_not_be_opened(path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SQLiteReader(path)
    with pytest.raises(StoreUnavailable):
        SQLiteStore(path.parent / "none" / "queue.db").open(pid=1, host="here")

    assert list(path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actionqueue.store.sqlite.is_writable", lambda path: False)

    with pytest.raises(StoreReadOnly):
        SQLiteStore(path).open(pid=1, host="here")


def test_what_was_refused_lets_the_lock_go(path: Path) -> None:
    path.write_bytes(b"")
    other_database(path)
    with pytest.raises(NotAStore):
        SQLiteStore(path).open(pid=1, host="here")
    path.unlink()

    store = SQLiteStore(path)
    store.open(pid=1, host="here")
    store.close()


def test_a_store_that_was_killed_before_its_first_commit_is_new(path: Path) -> None:
    other_database(path, table=False)

    store = SQLiteStore(path)
    assert store.open(pid=1, host="here").epoch == 1
    store.close()


# --- one transaction ---------------------------------------------------------------------------------------------


def test_a_writer_whose_epoch_was_taken_over_is_refused_in_the_transaction(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as usurper:
        set_meta(usurper, epoch=driver.epoch + 1)
    driver.run()

    with pytest.raises(EpochLost):
        store.commit(driver.batch())

    with closing(SQLiteReader(path)) as reader:
        assert (list(reader.commits(0)), reader.runs(RunFilter()), reader.projected_seq()) == ([], [], 0)


def test_a_commit_waits_for_another_process_that_writes_a_moment(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.1, lambda: other.execute("ROLLBACK")).start()
    driver.run()

    store.commit(driver.batch())

    other.close()


def test_a_commit_that_waited_too_long_wrote_nothing_and_can_be_tried_again(
    store: SQLiteStore, driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_WAIT_S_MAX", 0.05)
    driver.run()
    batch = driver.batch()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable) as caught:
            store.commit(batch)

    assert "locked" in str(caught.value.facts["cause"])
    store.commit(batch)


def test_a_full_database_wrote_nothing_and_the_same_batch_can_be_tried_again(
    store: SQLiteStore, driver: Driver
) -> None:
    """Section 5 number 13."""
    writer = writer_of(store)
    driver.run(500)
    batch = driver.batch()
    pages = pragma(writer, "page_count")
    pragma(writer, f"max_page_count = {pages + 10}")

    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            store.commit(batch)
        assert caught.value.facts["cause"] == "disk full"
    with closing(store.reader()) as reader:
        assert (list(reader.commits(0)), reader.runs(RunFilter())) == ([], [])

    pragma(writer, "max_page_count = 1000000")
    store.commit(batch)
    with closing(store.reader()) as reader:
        assert list(reader.commits(0)) == [batch.commit]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


linux_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")


@linux_root
def test_a_full_disk_wrote_nothing_and_the_same_batch_can_be_tried_again(tmp_path: Path) -> None:
    """Section 5 number 13: on a file system that is full."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = SQLiteStore(disk / "queue.db")
        driver = Driver(store.open(pid=1, host="here"))
        (disk / "ballast").write_bytes(bytes(1 << 20))
        acknowledged = 0
        causes = []
        for _ in range(200):
            driver.run(40)
            batch = driver.batch()
            try:
                store.commit(batch)
            except StoreUnavailable as error:
                causes.append(error.facts["cause"])
                with closing(store.reader()) as reader:
                    assert sum(1 for _ in reader.commits(0)) == acknowledged
                if len(causes) == 2:
                    break
                (disk / "ballast").unlink()
                store.commit(batch)
            acknowledged += 1
        for name in ("queue.db", "queue.db-wal"):  # as a crash would leave them
            shutil.copy(disk / name, tmp_path / name)
        store.close()

    assert causes == ["disk full", "disk full"]
    again = SQLiteStore(tmp_path / "queue.db")
    assert again.open(pid=1, host="here").last_seq > 0
    with closing(again.reader()) as reader:
        assert sum(1 for _ in reader.commits(0)) == acknowledged
        assert len(reader.runs(RunFilter(limit=10**6))) == acknowledged * 40
    again.close()


class Failing:
    """A connection on which one statement fails, after it was carried out or instead."""

    def __init__(self, real: sqlite3.Connection, code: int, *, carried_out: bool, statement: str = "COMMIT") -> None:
        self.real = real
        self.code = code
        self.carried_out = carried_out
        self.statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def execute(self, sql: str, *values: Any) -> Any:
        if not sql.startswith(self.statement):
            return self.real.execute(sql, *values)
        self.real.execute(sql if self.carried_out else "ROLLBACK")
        error = sqlite3.OperationalError("made to fail")
        error.sqlite_errorcode = self.code
        error.sqlite_errorname = "SQLITE_MADE_TO_FAIL"
        raise error


@pytest.mark.parametrize("carried_out", [True, False])
def test_after_an_error_of_the_sync_nothing_is_written_until_the_store_is_opened_again(
    store: SQLiteStore, driver: Driver, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    """Section 5 number 11: whether the commit took is found out by the next opening."""
    driver.run()
    batch = driver.batch()
    failing = Failing(writer_of(store), sqlite3.SQLITE_IOERR_FSYNC, carried_out=carried_out)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_writer", failing)
        with pytest.raises(CommitUnknown):
            store.commit(batch)

    for _ in range(2):
        with pytest.raises(CommitUnknown):
            store.commit(batch)
    with pytest.raises(CommitUnknown):
        store.maintain()
    store.close()
    assert store.open(pid=1, host="here").last_seq == (driver.last_seq if carried_out else 0)


def test_after_a_failed_checkpoint_closing_leaves_the_log_for_the_next_opening_to_copy_anew(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    """S5-12: SQLite would sync the database again and delete the log; the pages of the failed sync may be gone."""
    driver.run()
    store.commit(driver.batch())
    wal = Path(f"{path}-wal")
    logged = wal.read_bytes()
    error = sqlite3.OperationalError("made to fail")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert isinstance(store._checkpoint_failed(error), CommitUnknown)
    store.close()
    assert wal.read_bytes() == logged
    assert store.open(pid=1, host="here").last_seq == driver.last_seq


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
def test_a_commit_that_was_rolled_back_for_certain_can_be_tried_again(
    store: SQLiteStore, driver: Driver, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    driver.run()
    batch = driver.batch()
    failing = Failing(writer_of(store), code, carried_out=False)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_writer", failing)
        with pytest.raises(StoreUnavailable):
            store.commit(batch)

    store.commit(batch)


def test_an_error_of_our_own_while_writing_leaves_nothing(store: SQLiteStore, driver: Driver) -> None:
    driver.run()
    batch = driver.batch(replies=[(b"a", b"b", 1 << 70)])  # no SQLite integer

    with pytest.raises(OverflowError):
        store.commit(batch)

    batch.replies = []
    store.commit(batch)


def test_a_file_that_was_taken_away_is_noticed(store: SQLiteStore, driver: Driver, path: Path) -> None:
    driver.run()
    store.commit(driver.batch())
    path.rename(path.parent / "elsewhere")

    with pytest.raises(CommitUnknown):
        store.maintain()
    driver.run()
    with pytest.raises(CommitUnknown):
        store.commit(driver.batch())


def test_after_a_fork_the_store_and_its_readers_refuse_to_work(
    store: SQLiteStore, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run()
    reader = store.reader()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)

    with pytest.raises(UsedAfterFork):
        store.commit(driver.batch())
    with pytest.raises(UsedAfterFork):
        reader.runs(RunFilter())
    store.close()
    reader.close()

    monkeypatch.undo()
    assert reader.runs(RunFilter()) == []
    reader.close()


def test_events_are_deflated_where_that_is_shorter_and_read_back_as_they_were(
    store: SQLiteStore, driver: Driver
) -> None:
    sizes = []
    for count in (1, 200):
        driver.run(count)
        batch = driver.batch()
        store.commit(batch)
        assert batch.commit is not None
        stored = writer_of(store).execute("SELECT events FROM commits ORDER BY last_seq DESC LIMIT 1").fetchone()[0]
        sizes.append((len(stored), len(batch.commit.events)))
        with closing(store.reader()) as reader:
            assert list(reader.commits(batch.expected_seq)) == [batch.commit]

    assert sizes[0][0] == sizes[0][1]
    assert sizes[1][0] < sizes[1][1] / 3


@pytest.mark.parametrize(
    "body", [b"", b"\x90", b"x", b"x" * 9, bytes(5000), bytes(range(256)) * 20, b"x" + bytes(range(256))]
)
def test_any_bytes_come_back_as_they_were(body: bytes) -> None:
    assert inflated(deflated(body)) == body
    assert len(deflated(body)) <= len(body) + 20


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(path: Path) -> tuple[Path, Driver]:
    """A closed store with runs live and ended, and a log tail that the projection has not reached."""
    store = SQLiteStore(path)
    driver = Driver(store.open(pid=1, host="here"), seed=3)
    for _ in range(8):
        for _ in range(6):
            driver.step()
        store.commit(driver.batch())
    driver.run(2)
    store.commit(driver.batch(project=False))
    store.close()
    return path, driver


def everything(path: Path) -> tuple[Any, ...]:
    """All that an engine and the readers get out of a store."""
    store = SQLiteStore(path)
    opened = store.open(pid=1, host="here")
    try:
        state = load(store, opened).state
        with closing(store.reader()) as reader:
            runs = reader.runs(RunFilter(limit=10**6))
            tasks = reader.tasks(RunFilter(limit=10**6))
            attempts = reader.attempts_of([row[0] for row in runs])
            blobs = reader.blobs([row[0] for row in [*runs, *tasks]])
            return picture(state), runs, tasks, attempts, blobs, list(reader.commits(0))
    finally:
        store.close()


REFUSALS = (StoreDamaged, NotAStore, StoreTooNew)


@pytest.mark.slow
def test_no_flipped_bit_changes_what_is_read_without_an_error(example: tuple[Path, Driver]) -> None:
    path, driver = example
    whole = path.read_bytes()
    intact = everything(path)
    whole = path.read_bytes()
    noticed = 0

    for offset in driver.random.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << driver.random.randrange(8)
        path.write_bytes(damaged)
        try:
            found = everything(path)
        except REFUSALS:
            noticed += 1
            continue
        *rest, blobs, commits = found
        assert [*rest, commits] == [*intact[:4], intact[5]], f"byte {offset}"
        noticed += blobs != intact[4]  # whoever reads them compares their digests, see below

    assert noticed > 20


def flipped(path: Path, needle: bytes) -> None:
    """Change a byte of the file behind the last place where ``needle`` stands."""
    whole = bytearray(path.read_bytes())
    at = whole.rindex(needle) + len(needle) - 1
    whole[at] ^= 1
    path.write_bytes(whole)


def test_a_changed_live_row_is_refused_with_its_place(store: SQLiteStore, driver: Driver, path: Path) -> None:
    run_id = driver.submit("report.daily", options=TaskOptions(description="needle"))[0]
    store.commit(driver.batch())
    store.close()
    flipped(path, run_id + driver.tasks[0] + b"report")

    opened = store.open(pid=1, host="here")
    with pytest.raises(StoreDamaged) as caught:
        load(store, opened)
    with closing(store.reader()) as reader, pytest.raises(StoreDamaged):
        reader.runs(RunFilter())

    assert run_id.hex() in str(caught.value.facts["place"])


def test_a_missing_live_row_is_noticed(store: SQLiteStore, driver: Driver, path: Path) -> None:
    kept, lost = driver.submit(count=2)
    store.commit(driver.batch())
    store.close()
    for table in ("runs", "tasks"):
        shutil.copy(path, path.parent / f"without-{table}.db")
        copy = SQLiteStore(path.parent / f"without-{table}.db")
        with closing(sqlite3.connect(copy.path, isolation_level=None)) as connection:
            connection.execute(f"DELETE FROM {table} WHERE id = ?", (lost if table == "runs" else driver.tasks[1],))
        opened = copy.open(pid=1, host="here")

        with pytest.raises(StoreDamaged):
            load(copy, opened)
        copy.close()
    assert kept


def test_a_changed_payload_does_not_match_its_digest_and_is_found_by_checking(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    driver.submit(body=b"a payload that will rot")
    store.commit(driver.batch())
    store.close()
    assert list(problems(path)) == []
    flipped(path, b"a payload that will rot")

    with closing(SQLiteReader(path)) as reader:
        (body,) = reader.blobs(driver.tasks).values()
        (row,) = reader.tasks(RunFilter())
    assert codec.digest(body) != row[6]
    (problem,) = problems(path)
    assert driver.tasks[0].hex() in problem


def test_a_changed_commit_of_the_tail_is_refused_at_opening_and_an_older_one_when_it_is_read(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    for project in (True, False):
        driver.submit()
        store.commit(driver.batch(project=project))
    first, tail = driver.tasks
    store.close()
    whole = path.read_bytes()
    at = whole.rindex(tail + b"\xc4\x10")  # in the event, the run's id follows as binary of 16 bytes
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(StoreDamaged) as caught:
        store.open(pid=1, host="here")
    assert caught.value.facts["last_seq"] == driver.last_seq

    at = whole.rindex(first + b"\xc4\x10")
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    opened = store.open(pid=1, host="here")
    assert opened.last_seq == driver.last_seq
    with closing(store.reader()) as reader, pytest.raises(StoreDamaged):
        list(reader.commits(0))


def test_a_missing_commit_is_noticed(store: SQLiteStore, driver: Driver, path: Path) -> None:
    """Section 5 numbers 18 and 19."""
    for _ in range(2):
        driver.run()
        store.commit(driver.batch())
    driver.run()
    batch = driver.batch()
    store.commit(batch)
    assert batch.commit is not None
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM commits WHERE first_seq = 1")

    with closing(SQLiteReader(path)) as reader, pytest.raises(StoreDamaged):
        list(reader.commits(0))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM commits WHERE last_seq = ?", (batch.commit.last_seq,))
    with pytest.raises(StoreDamaged):
        store.open(pid=1, host="here")


def test_after_a_crash_the_structure_is_checked(store: SQLiteStore, driver: Driver, path: Path) -> None:
    driver.run(200)
    store.commit(driver.batch())
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs_handler'").fetchone()[0]
        set_meta(connection, clean=0)
    whole = bytearray(path.read_bytes())
    whole[page * 4096 - 4096] = 7
    path.write_bytes(whole)

    with pytest.raises(StoreDamaged):
        store.open(pid=1, host="here")


# --- plans -------------------------------------------------------------------------------------------------------


def all_combinations(driver: Driver) -> Iterator[RunFilter]:
    """Every subset of the conditions."""
    values: dict[str, Any] = {
        "states": (1, 7),
        "task": driver.tasks[0],
        "handler": "mail",
        "queue": "slow",
        "tag": "red",
        "key": "k",
        "since": START,
        "until": START + 10,
        "error": "ValueError",
        "ids": tuple(driver.runs[:2]),
        "cursor": driver.runs[0],
    }
    for count in range(len(values) + 1):
        for names in itertools.combinations(values, count):
            yield RunFilter(**{name: values[name] for name in names})
    for more in ({}, {"handler": "mail"}, {"tag": "red", "states": (8,)}, {"queue": "default"}):
        yield RunFilter(text="x", since=START, **more)
    yield RunFilter(queue="default")


def plan_problems(connection: sqlite3.Connection, statements: set[str]) -> list[tuple[str, str]]:
    """Steps that read a table without a bound, or sort."""
    found = []
    for sql in statements:
        for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
            if ("SCAN" in step and "CONSTANT ROW" not in step) or "TEMP B-TREE" in step:
                found.append((step, sql))
    return found


def test_no_listing_or_look_up_scans_a_table_or_sorts(store: SQLiteStore, driver: Driver) -> None:
    driver.submit("mail", 3, queue="slow", options=TaskOptions(tags=("red",)))
    driver.submit(key="k", content=b"c" * 16)
    driver.run(3)
    store.commit(driver.batch())
    reader = SQLiteReader(store.path)
    statements: set[str] = set()
    reader._connection.set_trace_callback(statements.add)
    for wanted in all_combinations(driver):
        reader.runs(wanted)
        if wanted.text is None:
            reader.tasks(wanted)
    reader.runs_by_id(driver.runs)
    reader.tasks_by_id(driver.tasks)
    reader.tasks_by_key(["k"])
    reader.runs_of(driver.tasks[0])
    reader.attempts_of(driver.runs)
    reader.blobs(driver.tasks)
    reader.reply(b"x")
    reader.finished_before(driver.now, 3, 1)
    list(reader.commits(3))
    reader._connection.set_trace_callback(None)
    statements = {sql for sql in statements if sql.startswith("SELECT") and " FROM meta" not in sql}
    assert len(statements) > 1000

    assert plan_problems(reader._connection, statements) == []
    reader.close()


def test_nothing_that_is_written_or_deleted_scans_a_table(store: SQLiteStore, driver: Driver) -> None:
    driver.run(20, options=TaskOptions(tags=("red",)))
    store.commit(driver.batch())
    writer = writer_of(store)
    statements: set[str] = set()
    writer.set_trace_callback(statements.add)
    with closing(store.reader()) as reader:
        driver.prune(reader, 5)
    store.commit(driver.batch())
    store.prune_replies(5)
    writer.set_trace_callback(None)
    statements = {sql for sql in statements if sql.startswith(("SELECT", "DELETE")) and "FROM meta" not in sql}
    assert len(statements) > 6

    assert plan_problems(writer, statements) == []


def test_the_look_up_by_the_end_of_an_id_reads_indexes_only(store: SQLiteStore, driver: Driver) -> None:
    driver.run(3)
    store.commit(driver.batch())
    reader = SQLiteReader(store.path)
    statements: set[str] = set()
    reader._connection.set_trace_callback(statements.add)
    reader.ids_ending("abcdef", "runs")
    reader.ids_ending("abcdef", "tasks")
    reader._connection.set_trace_callback(None)

    for sql in statements:
        if sql.startswith("SELECT"):
            steps = [step for *_, step in reader._connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
            assert any("USING COVERING INDEX" in step for step in steps), steps
            assert not any("TEMP B-TREE" in step for step in steps), steps
    reader.close()


# --- others at the file ------------------------------------------------------------------------------------------

READ_BESIDE = """
import sys
from pathlib import Path
import msgspec
from actionqueue.core.rows import Facts
from actionqueue.store.port import RunFilter
from actionqueue.store.sqlite_reader import SQLiteReader

reader = SQLiteReader(Path(sys.argv[1]))
seen = set()
print("reading", flush=True)
while len(seen) < 20 and (not seen or max(seen) < int(sys.argv[2])):
    def ask(connection):
        seq = connection.execute("SELECT value FROM meta WHERE name = 'projected_seq'").fetchone()[0]
        body = connection.execute("SELECT body FROM facts WHERE name = 'facts'").fetchone()[0]
        runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        return seq, msgspec.msgpack.decode(body, type=Facts), runs
    seq, facts, runs = reader._ask(ask)
    assert facts.last_seq == seq, (facts, seq)
    assert sum(facts.counts) == runs, (facts, runs)
    reader.runs(RunFilter(handler="mail"))
    list(reader.commits(seq - 10))
    seen.add(seq)
print(len(seen), flush=True)
"""


def python(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_another_process_reads_consistent_snapshots_while_the_engine_writes(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    driver.run(10)
    store.commit(driver.batch())
    with python("-c", READ_BESIDE, path, 10**9) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        while child.poll() is None:
            driver.run(50)
            store.commit(driver.batch())
            store.maintain()
        told, complaint = child.communicate()

    assert (told, complaint) == ("20\n", "")


def test_a_store_can_be_read_without_an_engine(store: SQLiteStore, driver: Driver, path: Path) -> None:
    ids = driver.run(3)
    store.commit(driver.batch())
    store.close()

    with closing(SQLiteReader(path)) as reader:
        assert [row[0] for row in reader.runs(RunFilter())] == ids[::-1]
        assert msgspec.msgpack.decode(reader.facts()["facts"], type=Facts).last_seq == driver.last_seq


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


@linux_root
def test_a_closed_store_on_a_read_only_disk_can_be_read_and_not_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = SQLiteStore(disk / "queue.db")
        driver = Driver(store.open(pid=1, host="here"))
        driver.run(3)
        store.commit(driver.batch())
        store.backup(str(disk / "copy.db"))
        store.close()

        with read_only(disk):
            for name in ("queue.db", "copy.db"):
                with closing(SQLiteReader(disk / name)) as reader:
                    assert len(reader.runs(RunFilter())) == 3
                    assert len(list(reader.commits(0))) == 1
            with pytest.raises(StoreReadOnly):
                store.open(pid=1, host="here")
            assert {each.name for each in disk.iterdir()} == {"queue.db", "queue.db.lock", "copy.db"}


@linux_root
def test_a_store_that_was_not_closed_is_refused_on_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = SQLiteStore(tmp_path / "queue.db")
        driver = Driver(store.open(pid=1, host="here"))
        driver.run(3)
        store.commit(driver.batch())
        for name in ("queue.db", "queue.db-wal"):
            shutil.copy(tmp_path / name, disk / name)
        store.close()

        with read_only(disk), pytest.raises(StoreReadOnly) as caught:
            SQLiteReader(disk / "queue.db")

    assert "last commits" in str(caught.value)


CRASH = """
import os, sys
from pathlib import Path
from actionqueue.store.sqlite import SQLiteStore
from tests.store.driver import Driver, load
store = SQLiteStore(Path(sys.argv[1]))
opened = store.open(pid=os.getpid(), host="here")
driver = Driver(opened, seed=int(sys.argv[2]), machine=load(store, opened))
while True:
    driver.run(20)
    store.commit(driver.batch(project=driver.random.random() < 0.5))
    print(driver.last_seq, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill_at_any_moment(path: Path) -> None:
    """Section 5 numbers 6 and 7."""
    acknowledged = 0
    for turn in range(5):
        with python("-c", CRASH, path, turn) as child:
            assert child.stdout is not None
            for _ in range(10 + turn * 7):
                acknowledged = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                acknowledged = int(line)

    store = SQLiteStore(path)
    opened = store.open(pid=1, host="here")
    assert opened.last_seq >= acknowledged
    assert opened.epoch == 6
    assert load(store, opened).state.last_seq == opened.last_seq
    with closing(store.reader()) as reader:
        assert sum(1 for _ in reader.commits(0)) > 50
    store.close()
    assert list(problems(path)) == []


def test_a_killed_holder_does_not_keep_the_store(store: SQLiteStore, path: Path) -> None:
    with python("-c", CRASH, path, 1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(StoreHeld):
            store.open(pid=1, host="here")
        child.kill()
        child.wait()

    assert store.open(pid=1, host="here").epoch == 2


# --- upkeep ------------------------------------------------------------------------------------------------------


def wait_for(condition: Any) -> None:
    deadline = threading.Event()
    for _ in range(500):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail("did not happen within 5 s")


def test_a_long_wal_is_checkpointed_beside_the_commits(
    store: SQLiteStore, driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "WAL_BYTES_SOFT", 1 << 20)
    wal = Path(f"{path}-wal")
    written = 0
    for _ in range(60):
        driver.run(200)
        store.commit(batch := driver.batch())
        assert batch.commit is not None
        written += len(batch.commit.events)
    upkeep = store._upkeep
    assert upkeep is not None

    wait_for(lambda: upkeep._wal_bytes < 1 << 20)

    assert wal.stat().st_size < 16 << 20
    assert path.stat().st_size > written


def test_a_quiet_store_is_checkpointed_and_stays_quiet(store: SQLiteStore, driver: Driver, path: Path) -> None:
    driver.run(100)
    store.commit(driver.batch())

    assert [store.maintain()["checkpointed"] for _ in range(3)] == [False, True, False]


def test_a_reader_in_the_way_delays_a_checkpoint_and_nothing_else(
    store: SQLiteStore, driver: Driver, path: Path
) -> None:
    driver.run(100)
    store.commit(driver.batch())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM runs").fetchone()
        driver.run()
        store.commit(driver.batch())
        assert [store.maintain()["checkpointed"] for _ in range(3)] == [False, False, False]
        driver.run()
        store.commit(driver.batch())
        other.execute("ROLLBACK")

    assert [store.maintain()["checkpointed"] for _ in range(2)] == [False, True]


def test_space_returns_to_the_file_system(
    store: SQLiteStore, driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 5 number 20."""
    monkeypatch.setattr(sqlite_upkeep, "FREE_PAGES_KEPT", 16)
    for _ in range(10):
        driver.run(300)
        store.commit(driver.batch())
    while store.maintain()["wal_bytes"] and not store.maintain()["checkpointed"]:
        pass
    large = path.stat().st_size
    with closing(store.reader()) as reader:
        while driver.prune(reader, 500):
            store.commit(driver.batch())
        store.prune_log(10**9, 10**17, 100)

    for _ in range(20):
        store.maintain()

    assert path.stat().st_size < large / 4
    assert store.maintain()["free_bytes"] <= 16 * 4096
    assert list(problems(path)) == []


def test_an_error_of_the_disk_while_checkpointing_ends_writing(
    store: SQLiteStore, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = store._upkeep
    assert upkeep is not None
    driver.run()
    store.commit(driver.batch())
    store.maintain()
    keeper: Any = Failing(upkeep._keeper, sqlite3.SQLITE_IOERR_FSYNC, carried_out=True, statement="PRAGMA wal")

    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "_keeper", keeper)
        with pytest.raises(CommitUnknown):
            store.maintain()

    driver.run()
    with pytest.raises(CommitUnknown):
        store.commit(driver.batch())
