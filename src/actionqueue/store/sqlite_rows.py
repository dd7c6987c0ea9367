"""Rows in and out of the tables, many at a time: statements of a few sizes, so that SQLite's cache of them stays warm.

Each step of a statement gives up the interpreter lock and takes it again, which costs more than the row; hence one
statement for up to 128 rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from actionqueue.core.rows import (
    ATTEMPT_COLUMNS,
    ENDED_ENTRIES,
    ENTRY_COLUMNS,
    STEP_COLUMNS,
    STORED_RUN_COLUMNS,
    STORED_TASK_COLUMNS,
    TAG_COLUMNS,
    Row,
    check_row,
    open_run,
    open_task,
    sealed,
)

ROWS_PER_STATEMENT_MAX = 128
"""14 columns × 128 rows is far below SQLite's 32,766 variables; more rows gain nothing."""
IDS_PER_STATEMENT_MAX = 256

COLUMNS = {
    "tasks": STORED_TASK_COLUMNS,
    "runs": STORED_RUN_COLUMNS,
    "attempts": ATTEMPT_COLUMNS,
    "run_tags": TAG_COLUMNS,
    "blobs": ("id", "body"),
    "replies": ("id", "body", "expires_at", "crc"),
    "facts": ("name", "body", "crc"),
    "entries": ENTRY_COLUMNS,
    "steps": STEP_COLUMNS,
    "meta": ("name", "value", "crc"),
}

_SIZES = [1 << power for power in range(ROWS_PER_STATEMENT_MAX.bit_length())]
_CHANGING = {
    "tasks": ("finished_at", "idempotency_key", "crc", "body"),
    "runs": ("state", "finished_at", "error_kind", "crc", "body"),
}
"""What may change in a row that is there already: only these columns, and the indexes on them, are touched."""


def _statement(verb: str, table: str, size: int) -> str:
    columns = COLUMNS[table]
    values = ", ".join(["(" + ", ".join("?" * len(columns)) + ")"] * size)
    if verb == "REPLACE" and table in _CHANGING:
        changes = ", ".join(f"{column} = excluded.{column}" for column in _CHANGING[table])
        return f"INSERT INTO {table} VALUES {values} ON CONFLICT (id) DO UPDATE SET {changes}"
    return f"INSERT OR {verb} INTO {table} VALUES {values}"


_INSERTS = {
    (verb, table): [_statement(verb, table, size) for size in _SIZES]
    for table in COLUMNS
    for verb in ("REPLACE", "IGNORE")
}


def insert(connection: sqlite3.Connection, table: str, rows: Sequence[Row], verb: str = "REPLACE") -> None:
    """Write the rows; ``verb`` says what becomes of a row that is there already (REPLACE it, or IGNORE the new one)."""
    statements = _INSERTS[verb, table]
    at, left, power = 0, len(rows), len(_SIZES) - 1
    while left:
        while left < _SIZES[power]:
            power -= 1
        size = _SIZES[power]
        connection.execute(statements[power], tuple(chain.from_iterable(rows[at : at + size])))
        at += size
        left -= size


def groups_of(ids: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """The ids in groups, each with the placeholders for it; a group is padded to one of few sizes."""
    for at in range(0, len(ids), IDS_PER_STATEMENT_MAX):
        group = list(ids[at : at + IDS_PER_STATEMENT_MAX])
        size = 1 << (len(group) - 1).bit_length()
        group += group[-1:] * (size - len(group))
        yield "(" + ", ".join("?" * size) + ")", group


def checked(rows: Iterable[Row], table: str) -> Iterator[Row]:
    """The rows, opened, each after its checksum was checked."""
    if table == "runs":
        yield from map(open_run, rows)
    elif table == "tasks":
        yield from map(open_task, rows)
    else:
        for row in rows:
            check_row(row, table)
            yield row


# --- single values -----------------------------------------------------------------------------------------------


def set_meta(connection: sqlite3.Connection, **values: bytes | int | str) -> None:
    """Write single values of the store itself."""
    insert(connection, "meta", [sealed(item) for item in values.items()])


def all_meta(connection: sqlite3.Connection) -> dict[str, bytes | int | str]:
    """The single values of the store itself, checked."""
    rows = connection.execute("SELECT name, value, crc FROM meta").fetchall()
    for row in rows:
        check_row(row, "meta")
    return {row[0]: row[1] for row in rows}


def all_facts(connection: sqlite3.Connection) -> dict[str, bytes]:
    """The projection's single values, checked."""
    rows = connection.execute("SELECT name, body, crc FROM facts").fetchall()
    for row in rows:
        check_row(row, "facts")
    return {row[0]: row[1] for row in rows}


def all_entries(connection: sqlite3.Connection, kind: str | None = None) -> list[Row]:
    """(kind, key, body) of what capabilities keep, checked: all that is live, or of one kind. A store of format 1 has none.

    ``ENDED_ENTRIES`` is history: it is kept with its tasks, and is nothing to open with.
    """
    if not has_table(connection, "entries"):
        return []
    wanted = ("kind < ?", "kind > ?") if kind is None else ("kind = ?",)  # ranges: what has ended may be much
    rows: list[Row] = []
    for condition in wanted:
        query = f"SELECT kind, key, body, crc FROM entries WHERE {condition} ORDER BY kind, key"
        rows += connection.execute(query, (kind or ENDED_ENTRIES,)).fetchall()
    for row in rows:
        check_row(row, "entries")
    return [row[:3] for row in rows]


def steps_of(connection: sqlite3.Connection, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
    """(run id, name, kind, at, body) of what these retry chains recorded, checked, in the order it was recorded.

    Stores of the formats before 3 have none.
    """
    found: dict[bytes, list[Row]] = {id: [] for id in run_ids}
    if not run_ids or not has_table(connection, "steps"):
        return found
    for marks, group in groups_of(run_ids):
        rows = connection.execute(f"SELECT {columns_of('steps')} FROM steps WHERE run_id IN {marks}", group)
        for row in checked(rows, "steps"):
            found[row[0]].append(row[:-1])
    for each in found.values():
        each.sort(key=lambda row: (row[3], row[1]))
    return found


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Whether there is such a table: stores of earlier formats lack some until an engine opens them."""
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone() is not None


def columns_of(table: str, alias: str = "") -> str:
    """The table's columns in the order of its rows, for a SELECT."""
    return ", ".join(f"{alias}{column}" for column in COLUMNS[table])
