"""What is looked at, and put in order, when an engine opens a store's SQLite file.

Knows: the order of the steps. Must not know: locks and epochs, which are the caller's.

Each step refuses before the next can do harm: this program's database, of a format this version reads (asked in SQL,
because a header read from the file alone leaves out the WAL); a full checkpoint, which makes durable whatever an engine
left whose last sync failed; the structure of the tables, when the last engine did not close; the single values; the
log's tail, from the projection on, against its chain.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from actionqueue.core.errors import NotAStore, StoreDamaged, StoreTooNew, StoreUnavailable
from actionqueue.store import sqlite_log
from actionqueue.store.filesystem import APPLICATION_ID, FORMAT_VERSION
from actionqueue.store.sqlite_connection import make_durable, patiently
from actionqueue.store.sqlite_listing import Skews, skews_of
from actionqueue.store.sqlite_rows import all_meta
from actionqueue.store.sqlite_schema import create, upgrade
from actionqueue.store.sqlite_upkeep import checkpoint_fully

QUICK_CHECK_BYTES_MAX = 64 << 20
"""After a crash the structure of tables up to this size is checked at opening (0.1 s); of larger ones by `verify`."""

Transact = Callable[[sqlite3.Connection, Callable[[], object]], None]


class Found(Struct, frozen=True):
    """What a store says of itself."""

    store_id: bytes
    epoch: int
    """Of the engine before."""
    last_seq: int
    last_hash: bytes
    projected_seq: int
    restored: bool
    skews: Skews


def prepare(writer: sqlite3.Connection, path: Path, transact: Transact) -> Found:
    """Check the database behind ``writer``, create it where there is none, and set the connection up to write."""
    is_new = patiently(lambda: _check_format(writer, path))
    if is_new:
        writer.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
    mode = patiently(lambda: writer.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    if mode != "wal":
        raise StoreUnavailable(
            f"{path} cannot use a write-ahead log here (SQLite says {mode!r}). Put it on a local disk.",
            path=str(path),
            cause="no write-ahead log",
        )
    make_durable(writer)
    if is_new:
        transact(writer, lambda: create(writer, secrets.token_bytes(16)))
    elif writer.execute("PRAGMA user_version").fetchone()[0] < FORMAT_VERSION:
        transact(writer, lambda: upgrade(writer))
    checkpoint_fully(writer, path)
    meta = all_meta(writer)
    if not meta.get("clean") and path.stat().st_size < QUICK_CHECK_BYTES_MAX:
        _check_structure(writer, path)
    return _look(writer, path, meta)


def _check_format(writer: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is new."""
    if writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        return True
    application_id = writer.execute("PRAGMA application_id").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise NotAStore(
            f"{path} is not an ActionQueue store: it is another program's database (application id "
            f"{application_id:#x}). Give another path; a store is created where there is no file.",
            path=str(path),
        )
    version = writer.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT_VERSION:
        raise StoreTooNew(
            f"{path} was written by a newer version of ActionQueue: its format is {version}, this version reads up to "
            f"{FORMAT_VERSION}. Nothing was touched. Upgrade ActionQueue, or use another store.",
            path=str(path),
            found=version,
            supported=FORMAT_VERSION,
        )
    return False


def _check_structure(writer: sqlite3.Connection, path: Path) -> None:
    problem = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise StoreDamaged(
            f"{path} is damaged: {problem}. Copy the store and its -wal file aside, run `actionqueue verify` for the "
            "extent, and bring a backup back with `actionqueue restore`.",
            path=str(path),
            place=f"tables ({problem})",
        )


def _look(writer: sqlite3.Connection, path: Path, meta: dict[str, bytes | int | str]) -> Found:
    store_id, epoch, projected_seq = meta.get("store_id"), meta.get("epoch"), meta.get("projected_seq")
    if not isinstance(store_id, bytes) or not isinstance(epoch, int) or not isinstance(projected_seq, int):
        raise StoreDamaged(f"{path} lacks its single values (meta).", place="meta", path=str(path))
    last_seq, last_hash = sqlite_log.log_end(writer)
    if projected_seq > last_seq:
        raise StoreDamaged(
            f"{path} lacks the end of its log: the tables are as of sequence {projected_seq}, the log ends at "
            f"{last_seq}. Bring a backup back with `actionqueue restore`.",
            place="commits",
            path=str(path),
        )
    for _ in sqlite_log.read_commits(writer, projected_seq, lambda query: query()):
        pass  # each is checked against the one before
    return Found(store_id, epoch, last_seq, last_hash, projected_seq, bool(meta.get("restored")), skews_of(meta))
