"""Reading a store in SQLite: beside its engine, from another process, or with no engine at all.

Knows: the tables. Must not know: who writes them, or what an event means.

Every question is one transaction that ends with its answer, so a reader never keeps the WAL from being checkpointed for
longer than a query; the log is read page by page for the same reason. Every row that is handed out was checked against
its checksum.

A WAL database can be read by one who may not write, as long as its ``-shm`` file is there or can be made. Where it
cannot (a read-only directory, and no engine), the file is opened as immutable; that leaves the WAL out, so a store that
was not closed is refused there.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from actionqueue.core.errors import NotAStore, StoreDamaged, StoreReadOnly, StoreUnavailable, UsedAfterFork
from actionqueue.core.rows import Row, latest_attempt_row
from actionqueue.store import sqlite_log
from actionqueue.store.filesystem import APPLICATION_ID, check_is_store_or_absent, check_local, is_writable
from actionqueue.store.lock import read_holder
from actionqueue.store.matching import SUFFIX_MATCHES_MAX, check_filter, end_of_id, error_has, latest_error_has
from actionqueue.store.port import Anchor, Commit, RunFilter
from actionqueue.store.scan import SQLiteScan, tolerant_text
from actionqueue.store.sqlite_connection import (
    READER_CACHE_BYTES,
    connect,
    patiently,
    primary_code,
    snapshot,
    translated,
    translating,
)
from actionqueue.store.sqlite_listing import ID_INFINITE, Statement, run_statements, skews_of, task_statements
from actionqueue.store.sqlite_rows import all_entries, all_facts, all_meta, checked, columns_of, groups_of, steps_of

SUFFIX_IDS_SEARCHED_MAX = 1_000_000
"""Of each state: the newest are searched. An index on the ends of ids would cost 30 bytes a run."""

_T = TypeVar("_T")
_RUNS, _TASKS, _ATTEMPTS = (columns_of(table) for table in ("runs", "tasks", "attempts"))


class SQLiteReader:
    """Read-only questions to the store at ``path``; see ``port.Reader``. Opens it at once.

    Raises `StoreUnavailable` (there is none, or it cannot be read now), `NotAStore`, `StoreTooNew`, `StoreReadOnly`,
    `NetworkFileSystem`.
    """

    def __init__(self, path: Path, *, cache_bytes: int = READER_CACHE_BYTES) -> None:
        self._path = Path(os.path.realpath(path))
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._is_open = True
        check_local(self._path)
        if not self._path.exists():
            raise StoreUnavailable(
                f"there is no store at {self._path}: an engine creates it when it first opens it.",
                path=str(self._path),
                cause="missing",
            )
        check_is_store_or_absent(self._path)
        self._connection = self._connect(cache_bytes)
        self._connection.create_function("error_has", 2, error_has, deterministic=True)
        self._connection.create_function("latest_error_has", 2, latest_error_has, deterministic=True)

    def _connect(self, cache_bytes: int) -> sqlite3.Connection:
        try:
            return self._checked_connection(cache_bytes, immutable=False)
        except sqlite3.Error as error:
            if primary_code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or is_writable(self._path):
                raise translated(error, self._path, "opening it to read") from error
        return self._connect_immutable(cache_bytes)

    def _checked_connection(self, cache_bytes: int, *, immutable: bool) -> sqlite3.Connection:
        connection = connect(self._path, "ro", cache_bytes, immutable=immutable)
        try:
            patiently(lambda: self._check(connection))
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_immutable(self, cache_bytes: int) -> sqlite3.Connection:
        wal = Path(f"{self._path}-wal")
        if read_holder(self._path) is not None or (wal.exists() and wal.stat().st_size > 0):
            raise StoreReadOnly(
                f"{self._path} was not closed by its engine and its directory cannot be written, so its last commits "
                "cannot be read there. Copy the file and its -wal file to another directory and read the copy.",
                path=str(self._path),
            )
        try:
            return self._checked_connection(cache_bytes, immutable=True)
        except sqlite3.Error as error:
            raise translated(error, self._path, "opening it to read") from error

    def _check(self, connection: sqlite3.Connection) -> None:
        """That it is a store, asked in SQL: the header read before leaves out what is in the WAL."""
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            raise StoreUnavailable(
                f"the store at {self._path} is empty: no engine has finished creating it.",
                path=str(self._path),
                cause="empty",
            )
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise NotAStore(
                f"{self._path} is not an ActionQueue store: it is another program's database.", path=str(self._path)
            )

    def _ask(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """The answer to ``query``, from one snapshot."""

        def attempt() -> _T:
            with snapshot(self._connection):
                return query(self._connection)

        with self._turn:
            self._check_usable()
            try:
                return patiently(attempt)
            except sqlite3.Error as error:
                raise translated(error, self._path, "reading") from error

    def _check_usable(self) -> None:
        if not self._is_open:
            raise StoreUnavailable(f"this reader of {self._path} is closed", path=str(self._path), cause="not open")
        if os.getpid() != self._pid:
            raise UsedAfterFork(
                f"{self._path} was opened to read by process {self._pid} and this is its forked child. Open it "
                "again in the child.",
                path=str(self._path),
                owner_pid=self._pid,
                pid=os.getpid(),
            )

    # --- single values -------------------------------------------------------------------------------------------

    def projected_seq(self) -> int:
        """The sequence the tables are exact as of."""
        seq = self._ask(all_meta)["projected_seq"]
        assert isinstance(seq, int)
        return seq

    def facts(self) -> dict[str, bytes]:
        """The projection's named single values."""
        return self._ask(all_facts)

    def entries(self, kind: str) -> list[Row]:
        """(kind, key, body) of everything that capabilities keep of that kind, by key."""
        return self._ask(lambda connection: all_entries(connection, kind))

    # --- listings ------------------------------------------------------------------------------------------------

    def runs(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``runs`` that fit, newest first, at most ``limit``."""
        check_filter(wanted)

        def query(connection: sqlite3.Connection) -> list[Row]:
            tasks: Sequence[bytes] = ()
            if wanted.key is not None:
                tasks = [row[0] for row in connection.execute(_IDS_BY_KEY, (wanted.key,))]
            statements = run_statements(wanted, skews_of(all_meta(connection))["runs"], tasks)
            return _page(connection, "runs", _RUNS, statements, wanted.limit)

        return self._ask(query)

    def tasks(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``tasks`` that fit, newest first, at most ``limit``."""

        def query(connection: sqlite3.Connection) -> list[Row]:
            statements = task_statements(wanted, skews_of(all_meta(connection))["tasks"])
            return _page(connection, "tasks", _TASKS, statements, wanted.limit)

        return self._ask(query)

    def finished_before(self, at: int, limit: int, offset_count: int = 0) -> list[Row]:
        """Rows of ``tasks`` finished before an instant, the longest finished first, after passing over some."""
        query = f"SELECT {_TASKS} FROM tasks INDEXED BY tasks_finished WHERE finished_at < ? ORDER BY finished_at, id"
        return self._ask(
            lambda connection: list(
                checked(connection.execute(f"{query} LIMIT ? OFFSET ?", (at, limit, offset_count)), "tasks")
            )
        )

    # --- look-ups ------------------------------------------------------------------------------------------------

    def runs_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these runs, those that exist."""
        return self._ask(lambda connection: _by_id(connection, "runs", _RUNS, ids))

    def tasks_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these tasks, those that exist."""
        return self._ask(lambda connection: _by_id(connection, "tasks", _TASKS, ids))

    def tasks_by_key(self, keys: Sequence[str]) -> dict[str, Row]:
        """The newest task of each idempotency key, those that exist."""

        def query(connection: sqlite3.Connection) -> dict[str, Row]:
            found: dict[str, Row] = {}
            for key in keys:
                rows = checked(connection.execute(_TASKS_BY_KEY, (key,)), "tasks")
                newest = max(rows, key=lambda row: (row[5], row[0]), default=None)
                if newest is not None:
                    found[key] = newest
            return found

        return self._ask(query)

    def runs_of(self, task_id: bytes) -> list[Row]:
        """All runs of a task, oldest first."""
        query = f"SELECT {_RUNS} FROM runs INDEXED BY runs_task WHERE task_id = ? ORDER BY id"
        return self._ask(lambda connection: list(checked(connection.execute(query, (task_id,)), "runs")))

    def attempts_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """Rows of ``attempts`` of each of these runs, by number."""

        def query(connection: sqlite3.Connection) -> dict[bytes, list[Row]]:
            found: dict[bytes, list[Row]] = {id: [] for id in run_ids}
            for run in _by_id(connection, "runs", _RUNS, run_ids).values():
                latest = latest_attempt_row(run)
                if latest is not None:
                    found[run[0]].append(latest)
            for marks, group in groups_of(run_ids):
                rows = connection.execute(f"SELECT {_ATTEMPTS} FROM attempts WHERE run_id IN {marks}", group)
                for row in checked(rows, "attempts"):
                    found[row[0]].append(row)
            for rows_of_run in found.values():
                rows_of_run.sort(key=lambda row: row[1])
            return found

        return self._ask(query)

    def ids_ending(self, suffix: str, kind: str) -> list[bytes]:
        """Ids of runs or tasks whose hex form ends so; of each state, among the newest `SUFFIX_IDS_SEARCHED_MAX`."""
        digits = end_of_id(suffix)
        whole = bytes.fromhex(digits[len(digits) % 2 :])

        def query(connection: sqlite3.Connection) -> list[bytes]:
            found: list[bytes] = []
            for source in _SUFFIX_SOURCES[kind]:
                rows = connection.execute(
                    f"SELECT id FROM ({source} LIMIT {SUFFIX_IDS_SEARCHED_MAX}) WHERE substr(id, ?) = ?",
                    (17 - len(whole), whole),
                )
                found += [row[0] for row in rows if row[0].hex().endswith(digits)]
            return sorted(found, reverse=True)[:SUFFIX_MATCHES_MAX]

        return self._ask(query)

    def steps_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """(run id, name, kind, at, body) of what each of these retry chains recorded, by instant and name."""
        return self._ask(lambda connection: steps_of(connection, run_ids))

    def blobs(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Payloads by task id, results by run id; those that exist, unchecked: their rows have the digests."""

        def query(connection: sqlite3.Connection) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            for marks, group in groups_of(ids):
                found.update(connection.execute(f"SELECT id, body FROM blobs WHERE id IN {marks}", group))
            return found

        return self._ask(query)

    def reply(self, command_id: bytes) -> bytes | None:
        """The encoded reply to an inbox command, if it was decided and has not been dropped as expired."""
        query = "SELECT id, body, expires_at, crc FROM replies WHERE id = ?"
        rows = self._ask(lambda connection: list(checked(connection.execute(query, (command_id,)), "replies")))
        return bytes(rows[0][1]) if rows else None

    def oldest(self, state: int) -> Row | None:
        """The row of the oldest run (by id) in that state."""
        query = f"SELECT {_RUNS} FROM runs INDEXED BY runs_state WHERE state = ? ORDER BY id LIMIT 1"
        return next(
            iter(self._ask(lambda connection: list(checked(connection.execute(query, (state,)), "runs")))), None
        )

    def count_tagged(self, tag: str) -> dict[int, int]:
        """See the port."""
        query = (
            "SELECT r.state, count(*) FROM run_tags t CROSS JOIN runs r ON r.id = t.run_id WHERE t.tag = ? GROUP BY 1"
        )
        return dict(self._ask(lambda connection: connection.execute(query, (tag,)).fetchall()))

    def refusals(self, limit: int, before: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """(command id, encoded reply) of inbox commands that were refused, newest first, those before an id."""
        query = f"SELECT id, body, expires_at, crc FROM replies WHERE {REFUSED} AND id < ? ORDER BY id DESC LIMIT ?"
        values = (ID_INFINITE if before is None else before, limit)
        rows = self._ask(lambda connection: list(checked(connection.execute(query, values), "replies")))
        return [(row[0], row[1]) for row in rows]

    # --- the log -------------------------------------------------------------------------------------------------

    def commits(self, after_seq: int) -> Iterator[Commit]:
        """The log's rows after a sequence, in order, each checked against the one before; new ones included."""
        return sqlite_log.read_commits(self._connection, after_seq, lambda query: self._ask(lambda _: query()))

    def anchor(self) -> Anchor | None:
        """Where the log begins, when it was pruned."""
        return self._ask(sqlite_log.read_anchor)

    @contextmanager
    def scan(self) -> Generator[SQLiteScan]:
        """The whole store as of now, unchecked, for as long as the block lasts; the reader answers nothing else."""
        with self._turn:
            self._check_usable()
            connection = self._connection
            with translating(self._path, "reading"), snapshot(connection):
                patiently(lambda: connection.execute("SELECT count(*) FROM sqlite_schema").fetchone())  # it begins here
                connection.text_factory = tolerant_text
                try:
                    yield SQLiteScan(connection, self._path)
                finally:
                    connection.text_factory = str

    def close(self) -> None:
        """Let go of the connection; does nothing the second time, and nothing in a forked child."""
        with self._turn:
            if self._is_open and os.getpid() == self._pid:
                self._is_open = False
                self._connection.close()


_IDS_BY_KEY = "SELECT id FROM tasks INDEXED BY tasks_key WHERE idempotency_key = ?"
REFUSED = "substr(body, 1, 2) = x'9201'"
"""How the encoding of a refusal begins (codec.encode_reply)."""
_TASKS_BY_KEY = f"SELECT {_TASKS} FROM tasks INDEXED BY tasks_key WHERE idempotency_key = ?"
_SUFFIX_SOURCES = {
    "runs": [
        f"SELECT id FROM runs INDEXED BY runs_state WHERE state = {state} ORDER BY id DESC" for state in range(10)
    ],
    "tasks": [
        "SELECT id FROM tasks INDEXED BY tasks_finished WHERE finished_at IS NULL ORDER BY id DESC",
        "SELECT id FROM tasks INDEXED BY tasks_finished WHERE finished_at > 0 ORDER BY finished_at DESC",
    ],
}


def _by_id(connection: sqlite3.Connection, table: str, columns: str, ids: Sequence[bytes]) -> dict[bytes, Row]:
    found: dict[bytes, Row] = {}
    for marks, group in groups_of(ids):
        rows = connection.execute(f"SELECT {columns} FROM {table} WHERE id IN {marks}", group)
        found.update((row[0], row) for row in checked(rows, table))
    return found


def _page(
    connection: sqlite3.Connection, table: str, columns: str, statements: Sequence[Statement], limit: int
) -> list[Row]:
    """The newest rows of what the statements find together."""
    ids = {row[0] for sql, values in statements for row in connection.execute(sql, values)}
    newest = sorted(ids, reverse=True)[:limit]
    found = _by_id(connection, table, columns, newest)
    if len(found) < len(newest):
        lost = next(id for id in newest if id not in found)
        raise StoreDamaged(
            f"an index names {lost.hex()}, which is not in {table}: bytes of the store changed on disk. Run "
            "`actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
            place=f"{table} {lost.hex()}",
        )
    return [found[id] for id in newest]
