"""Connections to a store's SQLite file: how they are opened and set up, how they wait, and what their errors mean.

Knows: SQLite's settings and error codes. Must not know: the tables.

Waiting is done here, never by SQLite's busy handler: its back-off sleeps up to 100 ms at a time, so a writer that comes
often starves one that comes seldom. Errors become the package's own at this border: no caller sees a ``sqlite3.Error``.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from actionqueue.core.errors import NotAStore, StoreDamaged, StoreError, StoreReadOnly, StoreUnavailable

BUSY_WAIT_S_MAX = 2.0
"""How long a statement waits for a lock that another process holds, before ``StoreUnavailable``."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.0005, 0.02

WRITER_CACHE_BYTES = 16 << 20
READER_CACHE_BYTES = 4 << 20
STATEMENTS_CACHED = 256

_T = TypeVar("_T")


def connect(path: Path, mode: str, cache_bytes: int, *, immutable: bool = False) -> sqlite3.Connection:
    """A connection (``mode``: ro, rw or rwc) in autocommit, usable from any thread.

    Setting it up reads the schema already, and so waits for whoever recovers the WAL of a killed engine.
    """
    uri = f"{path.absolute().as_uri()}?mode={mode}" + ("&immutable=1" if immutable else "")
    connection = sqlite3.connect(
        uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS_CACHED
    )
    try:
        patiently(lambda: connection.execute(f"PRAGMA cache_size = -{cache_bytes >> 10}"))
    except UnicodeDecodeError as error:
        connection.close()
        raise undecodable(error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def undecodable(error: UnicodeDecodeError) -> sqlite3.Error:
    """SQLite refused a schema in which bytes have changed, and quoted it, which its module cannot read out."""
    return sqlite3.DatabaseError(f"the database's schema is malformed: it does not decode ({error.reason})")


def bind_bytes_fast() -> None:
    """Have ``sqlite3`` bind bytes and None without looking for ways to adapt them first, which costs more than binding.

    It knows exact ints, floats, texts and bytearrays; for anything else it asks the value and the type whether they
    adapt, which for bytes and None always ends in no. An adapter that gives the same value ends that search early: a
    bytearray is stored as the same blob. The registry is the process's; an application's own adapters are left alone.
    """
    if (bytes, sqlite3.PrepareProtocol) not in sqlite3.adapters:
        sqlite3.register_adapter(bytes, bytearray)
    if (type(None), sqlite3.PrepareProtocol) not in sqlite3.adapters:
        sqlite3.register_adapter(type(None), _nothing.get)


_nothing: dict[None, None] = {}


def make_durable(connection: sqlite3.Connection) -> None:
    """Every COMMIT of this connection syncs, and no COMMIT checkpoints."""
    bind_bytes_fast()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA secure_delete = OFF")  # some builds zero what is deleted, with extra writes
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")


def patiently(action: Callable[[], _T]) -> _T:
    """Do it, again and again while another connection is in the way, for a bounded time; jittered short pauses."""
    deadline_s: float | None = None
    pause_s = PAUSE_MIN_S
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            now_s = time.monotonic()
            deadline_s = now_s + BUSY_WAIT_S_MAX if deadline_s is None else deadline_s
            if now_s >= deadline_s:
                raise
        time.sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(pause_s * 2, PAUSE_MAX_S)


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's code without the extension, 0 when the error is not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether it may work when tried again in a moment."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def translated(error: sqlite3.Error, path: Path, doing: str) -> StoreError:
    """The error as one of ours. Only for errors after which nothing was written for certain."""
    code = primary_code(error)
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    what = f"{path}, while {doing}: {error}"
    if code in _CAUSES:
        return StoreUnavailable(f"{what} ({_CAUSES[code]}). Nothing was written.", path=str(path), cause=_CAUSES[code])
    if code == sqlite3.SQLITE_CORRUPT or any(hint in str(error) for hint in _HINTS_OF_DAMAGE):
        return StoreDamaged(
            f"{what}. The store is damaged. Copy it and its -wal file aside, run `actionqueue verify` for the extent, "
            "and bring a backup back with `actionqueue restore`.",
            path=str(path),
            place=f"tables ({name})",
        )
    if code == sqlite3.SQLITE_NOTADB:
        return NotAStore(f"{path} is not an ActionQueue store: SQLite does not take it for a database.", path=str(path))
    if code == sqlite3.SQLITE_READONLY:
        return StoreReadOnly(
            f"{what}. Check the mode and owner of the file, of its -wal and of its directory. If those are right, the "
            "file's header is damaged: bring a backup back with `actionqueue restore`.",
            path=str(path),
        )
    return StoreError(f"{what} ({name}). This is not expected; nothing was written.", path=str(path), cause=name)


_HINTS_OF_DAMAGE = ("no such", "unknown function", "decode", "unsupported file format")
"""Of damage to the schema, to a text ("... to UTF-8 column"), and to the header, where SQLite has no code for it."""

_CAUSES = {
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_BUSY: "locked by another process",
    sqlite3.SQLITE_LOCKED: "locked by another connection",
    sqlite3.SQLITE_PROTOCOL: "locked by another process",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_CANTOPEN: "it or its directory is missing or not readable",
}
"""What may pass, so that the same can be tried again."""


@contextmanager
def translating(path: Path, doing: str) -> Generator[None]:
    """Errors of SQLite inside become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error, path, doing) from error


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Generator[None]:
    """One deferred transaction: what is read inside is of one moment. Reads only."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that is open, if one is, without a trace."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
