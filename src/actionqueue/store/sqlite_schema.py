"""What a store's database consists of, and how a batch is laid out in it.

Knows: the tables. Must not know: transactions, which are the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from actionqueue.core.batches import BATCH, BATCH_MARK
from actionqueue.core.rows import ENDED_ENTRIES, Row, sealed
from actionqueue.store.filesystem import APPLICATION_ID, FORMAT_VERSION
from actionqueue.store.port import Batch
from actionqueue.store.sqlite_rows import groups_of, insert, set_meta


def create(connection: sqlite3.Connection, store_id: bytes) -> None:
    """The tables and the first single values of a new store."""
    for statement in _statements():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    set_meta(connection, store_id=store_id, epoch=0, projected_seq=0, clean=1, restored=0)


def upgrade(connection: sqlite3.Connection) -> None:
    """What a store of an earlier format lacks."""
    for statement in _statements():
        if statement.startswith(("CREATE TABLE entries", "CREATE TABLE steps")):
            connection.execute(statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1))
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def _statements() -> list[str]:
    script = (files("actionqueue.store") / "sql" / "schema.sql").read_text(encoding="utf-8")
    lines = (line.partition("--")[0] for line in script.splitlines())
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def write_batch(connection: sqlite3.Connection, batch: Batch) -> None:
    """Everything of a batch but its commit."""
    if batch.blobs:
        insert(connection, "blobs", batch.blobs, "IGNORE")
    for marks, chains in groups_of(batch.dropped_steps):
        connection.execute(f"DELETE FROM steps WHERE run_id IN {marks}", chains)
    if batch.steps:
        insert(connection, "steps", [sealed(step) for step in batch.steps])
    projection = batch.projection
    if projection is not None:
        insert(connection, "tasks", projection.tasks)
        insert(connection, "runs", projection.runs)
        insert(connection, "attempts", projection.attempts)
        insert(connection, "run_tags", projection.tags, "IGNORE")
        insert(connection, "facts", [sealed(item) for item in projection.facts.items()])
        _write_entries(connection, projection.entries)
        set_meta(connection, projected_seq=projection.seq)
    if batch.replies:
        insert(connection, "replies", [sealed(reply) for reply in batch.replies])
    if batch.pruned_tasks:
        _delete_tasks(connection, batch.pruned_tasks)


def _write_entries(connection: sqlite3.Connection, entries: Sequence[Row]) -> None:
    there = [sealed(entry) for entry in entries if entry[2] is not None]
    if there:
        insert(connection, "entries", there)
    for kind, key, body in entries:
        if body is None:
            connection.execute("DELETE FROM entries WHERE kind = ? AND key = ?", (kind, key))


def _delete_tags(connection: sqlite3.Connection, marks: str, runs: Sequence[Any]) -> None:
    """Tags and marks of these runs; the entry of a batch goes with the last run that has its mark."""
    query = f"SELECT tag FROM run_tags WHERE run_id IN {marks} AND substr(tag, 1, ?) = ?"
    found = set(connection.execute(query, [*runs, len(BATCH_MARK), BATCH_MARK]).fetchall())
    connection.execute(f"DELETE FROM run_tags WHERE run_id IN {marks}", runs)
    for (tag,) in found:
        if connection.execute("SELECT 1 FROM run_tags WHERE tag = ?", (tag,)).fetchone() is None:
            key = tag.removeprefix(BATCH_MARK)
            connection.execute("DELETE FROM entries WHERE kind = ? AND key = ?", (BATCH, key))


def _delete_tasks(connection: sqlite3.Connection, task_ids: Sequence[bytes]) -> None:
    """Everything of these tasks: runs, attempts, tags, payloads, results, records, and what is kept of ended schedules."""
    for marks, tasks in groups_of(task_ids):
        rows = connection.execute(f"SELECT id FROM runs INDEXED BY runs_task WHERE task_id IN {marks}", tasks)
        for run_marks, runs in groups_of([row[0] for row in rows.fetchall()]):
            connection.execute(f"DELETE FROM attempts WHERE run_id IN {run_marks}", runs)
            _delete_tags(connection, run_marks, runs)
            connection.execute(f"DELETE FROM blobs WHERE id IN {run_marks}", runs)
            connection.execute(f"DELETE FROM steps WHERE run_id IN {run_marks}", runs)
            connection.execute(f"DELETE FROM runs WHERE id IN {run_marks}", runs)
        keys = [task_id.hex() for task_id in tasks]
        connection.execute(f"DELETE FROM entries WHERE kind = ? AND key IN {marks}", [ENDED_ENTRIES, *keys])
        connection.execute(f"DELETE FROM blobs WHERE id IN {marks}", tasks)
        connection.execute(f"DELETE FROM tasks WHERE id IN {marks}", tasks)
