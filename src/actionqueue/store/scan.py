"""Everything in a store as of one moment, row by row and unchecked: what ``verify`` judges.

Knows: the tables and their order. Must not know: what is right. A ``Reader`` refuses a damaged row; a scan hands it
out, so that whoever judges a store can name every one of them and go on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from pathlib import Path
from typing import Protocol

from actionqueue.core.rows import (
    RUN_COLUMNS,
    TASK_COLUMNS,
    Row,
    latest_attempt_row,
    opened_run,
    opened_task,
    stored_run,
    stored_task,
)
from actionqueue.store.sqlite_connection import translating
from actionqueue.store.sqlite_log import ANCHOR_COLUMNS, COMMIT_COLUMNS, opened_commit
from actionqueue.store.sqlite_rows import COLUMNS, groups_of, has_table

SCANNED: dict[str, tuple[str, ...]] = {
    **COLUMNS,
    "tasks": TASK_COLUMNS,
    "runs": RUN_COLUMNS,
    "commits": COMMIT_COLUMNS,
    "anchors": ANCHOR_COLUMNS,
}
"""The columns of every table, in the order of its rows."""

_WHOLE: dict[str, tuple[str, ...]] = {**COLUMNS, "commits": COMMIT_COLUMNS, "anchors": ANCHOR_COLUMNS}
_OPENED = {"tasks": opened_task, "runs": opened_run, "commits": opened_commit}

_KEYS = {
    "attempts": ("run_id", "number"),
    "run_tags": ("tag", "run_id"),
    "commits": ("last_seq",),
    "anchors": ("seq",),
    "facts": ("name",),
    "entries": ("kind", "key"),
    "steps": ("run_id", "name"),
    "meta": ("name",),
}


class Scan(Protocol):
    """One snapshot of a store. Iterators may be consumed side by side, and hold a row at a time."""

    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows of a table by its key, whole (opened, checksum last) or these columns of them.

        ``attempts`` are all of them: those in the bodies of runs too.

        Raises ``StoreDamaged`` where the table's structure is too damaged to go on.
        """
        ...

    def runs_by_task(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows of ``runs``, by task id and id."""
        ...

    def live(self, table: str) -> Iterator[Row]:
        """The rows of ``tasks`` or ``runs`` that have not finished, stored."""
        ...

    def tags_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[str]]:
        """The tags of these runs."""
        ...

    def has(self, table: str, id: bytes) -> bool:
        """Whether ``tasks`` or ``runs`` has that id."""
        ...

    def structure_problems(self) -> list[str]:
        """What is wrong with the structure of tables and indexes, in words."""
        ...


class SQLiteScan:
    """A scan of a SQLite file, inside a transaction of ``connection`` that the caller holds open."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """See ``Scan.rows``."""
        if table == "attempts":
            latest = filter(None, map(latest_attempt_row, self.rows("runs")))
            return _picked(merge(self._all(table), latest, key=_attempt_order), table, columns)
        return _picked(self._all(table), table, columns)

    def _all(self, table: str) -> Iterator[Row]:
        if table in ("entries", "steps") and not has_table(self._connection, table):
            return iter(())  # a store of an earlier format
        key = ", ".join(_KEYS.get(table, ("id",)))
        return self._opened(table, f"SELECT {', '.join(_WHOLE[table])} FROM {table} ORDER BY {key}")

    def _opened(self, table: str, query: str) -> Iterator[Row]:
        rows = self._stream(query)
        return map(_OPENED[table], rows) if table in _OPENED else rows

    def runs_by_task(self, columns: Sequence[str]) -> Iterator[Row]:
        """See ``Scan.runs_by_task``."""
        query = f"SELECT {', '.join(_WHOLE['runs'])} FROM runs INDEXED BY runs_task ORDER BY task_id, id"
        return _picked(self._opened("runs", query), "runs", columns)

    def live(self, table: str) -> Iterator[Row]:
        """See ``Scan.live``."""
        return self._stream(f"SELECT {', '.join(COLUMNS[table])} FROM {table} WHERE finished_at IS NULL")

    def _stream(self, query: str) -> Iterator[Row]:
        with translating(self._path, "verifying it"):
            for row in self._connection.execute(query):  # noqa: UP028 - it would close the cursor, too late, when left
                yield row

    def tags_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[str]]:
        """See ``Scan.tags_of``."""
        found: dict[bytes, list[str]] = {id: [] for id in run_ids}
        for marks, group in groups_of(run_ids):
            for tag, run_id in self._stream_values(f"SELECT tag, run_id FROM run_tags WHERE run_id IN {marks}", group):
                found[run_id].append(tag)
        return found

    def has(self, table: str, id: bytes) -> bool:
        """See ``Scan.has``."""
        return any(self._stream_values(f"SELECT 1 FROM {table} WHERE id = ?", [id]))

    def _stream_values(self, query: str, values: Sequence[object]) -> list[Row]:
        with translating(self._path, "verifying it"):
            return self._connection.execute(query, values).fetchall()

    def structure_problems(self) -> list[str]:
        """See ``Scan.structure_problems``; SQLite's own check, which reads everything."""
        return [row[0] for row in self._stream("PRAGMA integrity_check(100)") if row[0] != "ok"]


class TablesScan:
    """A scan of rows that are in memory, each table sorted by its key."""

    def __init__(self, tables: Mapping[str, Sequence[Row]]) -> None:
        self._tables = tables

    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """See ``Scan.rows``."""
        return _picked(self._tables[table], table, columns)

    def runs_by_task(self, columns: Sequence[str]) -> Iterator[Row]:
        """See ``Scan.runs_by_task``."""
        return _picked(sorted(self._tables["runs"], key=lambda row: (row[1], row[0])), "runs", columns)

    def live(self, table: str) -> Iterator[Row]:
        """See ``Scan.live``."""
        finished_at = SCANNED[table].index("finished_at")
        stored = stored_task if table == "tasks" else stored_run
        return (stored(row) for row in self._tables[table] if row[finished_at] is None)

    def tags_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[str]]:
        """See ``Scan.tags_of``."""
        found: dict[bytes, list[str]] = {id: [] for id in run_ids}
        for tag, run_id in self._tables["run_tags"]:
            if run_id in found:
                found[run_id].append(tag)
        return found

    def has(self, table: str, id: bytes) -> bool:
        """See ``Scan.has``."""
        return any(row[0] == id for row in self._tables[table])

    def structure_problems(self) -> list[str]:
        """None: there is no disk to go bad."""
        return []


def _attempt_order(row: Row) -> tuple[bytes, int]:
    return row[0], row[1]


def _picked(rows: Iterable[Row], table: str, columns: Sequence[str] | None) -> Iterator[Row]:
    if columns is None:
        return iter(rows)
    at = [SCANNED[table].index(column) for column in columns]
    return (tuple(row[n] for n in at) for row in rows)


def tolerant_text(body: bytes) -> str:
    """Text as it is, also where its bytes are no UTF-8 any more: the row's checksum will tell."""
    return body.decode("utf-8", "surrogateescape")


class Scratch:
    """Digests and notes by key, beyond what memory holds: in a private database that vanishes when closed."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA cache_size = -32768")
        for table in ("tasks", "runs", "attempts"):
            self._connection.execute(
                f"CREATE TABLE {table} (key BLOB PRIMARY KEY, digest BLOB NOT NULL, note BLOB NOT NULL) WITHOUT ROWID"
            )

    def put(self, table: str, items: Iterable[tuple[bytes, bytes, bytes]]) -> None:
        """(key, digest, note) each; a later one of the same key replaces the earlier."""
        self._connection.execute("BEGIN")
        self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", items)
        self._connection.execute("COMMIT")

    def items(self, table: str) -> Iterator[tuple[bytes, bytes, bytes]]:
        """All of them, by key."""
        query = f"SELECT key, digest, note FROM {table} ORDER BY key"
        for item in self._connection.execute(query):  # noqa: UP028 - as in SQLiteScan
            yield item

    def forget(self, task_id: bytes) -> None:
        """Nothing was put there of that task, of its runs and of their attempts. The note of a run begins with its task."""
        runs = "SELECT key FROM runs WHERE substr(note, 1, 16) = ?"
        self._connection.execute(f"DELETE FROM attempts WHERE substr(key, 1, 16) IN ({runs})", (task_id,))
        self._connection.execute("DELETE FROM runs WHERE substr(note, 1, 16) = ?", (task_id,))
        self._connection.execute("DELETE FROM tasks WHERE key = ?", (task_id,))

    def has(self, table: str, key: bytes) -> bool:
        """Whether something was put there under that key."""
        return self._connection.execute(f"SELECT 1 FROM {table} WHERE key = ?", (key,)).fetchone() is not None

    def close(self) -> None:
        """Throw it away."""
        self._connection.close()
