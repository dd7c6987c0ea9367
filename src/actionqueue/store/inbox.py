"""The inbox: how other processes on this machine send commands to the engine of a SQLite store.

A second SQLite file beside the store. A command is durable when its row is; the engine, woken by a datagram on a socket
beside the store, decides it and records the reply in the same commit as its events, then deletes the row. Deleting late
or twice does no harm: a row whose command id has a reply is never decided again.

Before the file is opened its WAL is scanned, as the store's is (`wal_scan`): SQLite would drop what is behind a damaged
frame without a word, and those commands were acknowledged. Its tables are checked too while they are small: a row that
has dropped out of one is still in the other.

Someone may delete or replace the file while it is open. Whoever opens it then has another one, so before each use what
is at the path is compared with what was opened, and opened anew: else both sides would wait for each other.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from actionqueue.core.errors import (
    CommitUnknown,
    NotAStore,
    Overloaded,
    StoreDamaged,
    StoreError,
    StoreReadOnly,
    StoreTooNew,
    StoreUnavailable,
)
from actionqueue.store.filesystem import check_local, is_writable
from actionqueue.store.sqlite_connection import primary_code, roll_back, translated, undecodable
from actionqueue.store.wal_scan import WalDamage, scan_wal

T = TypeVar("T")

INBOX_ROWS_MAX = 200_000
"""Commands that may wait for an engine; beyond it senders are refused with ``Overloaded``."""

INBOX_APPLICATION_ID = 0x41515549
INBOX_VERSION = 1
BUSY_S_MAX = 5.0
CHECK_BYTES_MAX = 1 << 20
"""Up to this size (of the usual inbox, many times) the structure is checked at each opening: a few milliseconds."""
_RESCAN_S = 0.02
SOCKET_PATH_BYTES_MAX = 100

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS inbox (id INTEGER PRIMARY KEY AUTOINCREMENT, command_id BLOB NOT NULL UNIQUE,"
    " at INTEGER NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL) STRICT"
)


_SPAN = "SELECT max(id) - min(id) FROM inbox"
_PUT = "INSERT INTO inbox (command_id, at, version, body, crc) VALUES (?, ?, ?, ?, ?)"
_IDS = "SELECT id, command_id FROM inbox ORDER BY id LIMIT ?"
_ROWS = (
    "SELECT id, command_id, at, version, body, crc FROM inbox WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
)
_DELETE = (
    "DELETE FROM inbox WHERE id IN (SELECT row.id FROM json_each(?) AS done CROSS JOIN inbox AS row"
    " ON row.id = json_extract(done.value, '$[0]') AND hex(row.command_id) = json_extract(done.value, '$[1]'))"
)
"""By both ids: row ids begin anew where the file was deleted, and are another command's then."""
_IS_WAITING = "SELECT 1 FROM inbox WHERE command_id = ?"


def inbox_path(store_path: Path) -> Path:
    """Where the inbox of a store is."""
    real = Path(os.path.realpath(store_path))
    return real.with_name(real.name + ".inbox")


def socket_path(store_path: Path) -> Path:
    """Where the engine of a store listens for wake-ups."""
    real = Path(os.path.realpath(store_path))
    return real.with_name(real.name + ".wake")


class InboxRow(tuple[int, bytes, int, int, bytes]):
    """(row id, command id, at, version, body) of one command."""

    __slots__ = ()


class Inbox:
    """One connection to the inbox of a store. Used by one thread at a time (a lock makes it so)."""

    def __init__(self, store_path: Path) -> None:
        self.path = inbox_path(store_path)
        self._lock = threading.Lock()
        check_local(self.path.parent)
        self._in_doubt = False
        """A sync failed: what is in the file is made durable by a new connection before anything is acknowledged."""
        self._file: tuple[int, int] | None = None
        """The file that is open, by device and inode."""
        self._connection = self._connect()
        self._wake_path = os.fspath(socket_path(store_path))
        self._socket: socket.socket | None = None
        self._is_closed = False

    def _connect(self) -> sqlite3.Connection:
        self._check_log()
        try:
            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        try:
            self._retry(lambda: self._prepare(connection))
            self._retry(lambda: self._check_structure(connection))
        except BaseException as error:
            connection.close()
            if isinstance(error, UnicodeDecodeError):
                raise self._translated(undecodable(error)) from error
            if isinstance(error, sqlite3.Error):
                raise self._translated(error) from error
            raise
        self._file = self._at_path()
        return connection

    def _check_log(self) -> None:
        """Refuse a damaged WAL. What others write meanwhile may look damaged to one scan; not the same to two."""
        wal, before = Path(f"{self.path}-wal"), None
        while True:
            try:
                report = scan_wal(wal)
            except OSError:  # SQLite will say what it is
                return
            if report.damage is None:
                return
            if report.damage == before:
                raise self._damaged(report.damage, report.valid_bytes)
            before = report.damage
            time.sleep(_RESCAN_S)

    def _damaged(self, damage: WalDamage, valid_bytes: int) -> StoreDamaged:
        wal = f"{self.path}-wal"
        return StoreDamaged(
            f"{wal} is damaged at byte {damage.offset} ({damage.place}), and SQLite would drop the commands behind it "
            f"without a word ({damage.commits_behind} there still check out), so nothing was opened. Copy the inbox and "
            f"its -wal file aside. Then, to go on without those commands, cut the -wal file to its good part (`truncate "
            f"-s {valid_bytes} {wal}`); what was sent with an idempotency key may be sent again.",
            path=wal,
            place=f"wal {damage.place}",
            offset=damage.offset,
            commits_behind=damage.commits_behind,
            valid_bytes=valid_bytes,
        )

    def _check_structure(self, connection: sqlite3.Connection) -> None:
        if self.path.stat().st_size > CHECK_BYTES_MAX:
            return
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreDamaged(
                f"the inbox {self.path} is damaged: {problem}. Move it and its -wal file away: they only hold commands "
                "that no engine has decided.",
                path=str(self.path),
                place=f"inbox ({problem})",
            )

    def _at_path(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _reconnect(self) -> None:
        self._connection.close()
        self._connection = self._connect()

    def _translated(self, error: sqlite3.Error, doing: str = "opening the inbox") -> StoreError:
        code = primary_code(error)
        if code == sqlite3.SQLITE_READONLY or (code == sqlite3.SQLITE_CANTOPEN and not is_writable(self.path)):
            return StoreReadOnly(
                f"the inbox {self.path} cannot be written ({error}), so nothing can be sent to the engine from here. "
                "Change the owner or mode of it or of its directory.",
                path=str(self.path),
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return NotAStore(
                f"{self.path} is not an inbox, or is damaged: {error}. Move it and its -wal file away: they only hold "
                "commands that no engine has decided.",
                path=str(self.path),
            )
        return translated(error, self.path, doing)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        roll_back(connection)  # of an earlier try
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, INBOX_APPLICATION_ID):
            raise NotAStore(f"{self.path} is not an inbox of ActionQueue")
        if version > INBOX_VERSION:
            raise StoreTooNew(f"{self.path} was written by a newer release", found=version, supported=INBOX_VERSION)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        if found == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id={INBOX_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={INBOX_VERSION}")
            connection.execute("COMMIT")

    def _retry(self, work: Callable[[], T]) -> T:
        """Run ``work``; while another connection writes, try again after a short random pause."""
        deadline = time.monotonic() + BUSY_S_MAX
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if time.monotonic() >= deadline:
                    raise StoreUnavailable("the inbox was busy for 5 s; try again", cause="busy") from error
                time.sleep(random.uniform(0.0002, 0.002))

    def _do(self, doing: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` on the connection, patiently, with SQLite's errors as ours."""
        with self._lock:
            try:
                if self._in_doubt:
                    self._settle_doubt()
                elif self._file != self._at_path() and not self._is_closed:
                    self._reconnect()
                return self._retry(lambda: work(self._connection))
            except sqlite3.Error as error:
                self._in_doubt |= primary_code(error) == sqlite3.SQLITE_IOERR
                raise self._translated(error, doing) from error

    def _settle_doubt(self) -> None:
        """Never sync the same bytes again: a complete checkpoint through a new connection writes them anew."""
        self._reconnect()
        busy = self._retry(lambda: self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        if busy:
            raise StoreUnavailable("the inbox is busy, after a failed sync; try again", cause="busy")
        self._in_doubt = False

    # --- sending -----------------------------------------------------------------------------------------------

    def put(self, command_id: bytes, body: bytes, at: int) -> None:
        """Make a command durable. Raises ``Overloaded``, ``StoreUnavailable``, ``CommitUnknown``."""
        row = (command_id, at, INBOX_VERSION, body, crc32(body))
        waiting = self._do("reading", lambda connection: connection.execute(_SPAN).fetchone()[0])
        if waiting is not None and waiting >= INBOX_ROWS_MAX:
            raise Overloaded(
                f"{waiting} commands wait in the inbox; inbox_rows_max is {INBOX_ROWS_MAX}. Is an engine running?",
                limit="inbox_rows_max",
                maximum=INBOX_ROWS_MAX,
            )
        try:
            self._do("writing", lambda connection: connection.execute(_PUT, row))
        except StoreUnavailable as error:
            if not self._in_doubt:
                raise
            raise CommitUnknown(
                f"{self.path}: a command could not be synced ({error.message}), so whether the engine will find it is "
                "not known. Check the disk, and submit again with the same idempotency key or task id.",
                path=str(self.path),
            ) from error
        self.wake()

    def wake(self) -> None:
        """Tell the engine there is something; it also looks by itself every 100 ms."""
        if len(self._wake_path.encode()) > SOCKET_PATH_BYTES_MAX or not hasattr(socket, "AF_UNIX"):
            return
        with self._lock, suppress(OSError):
            if self._is_closed:
                return
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(0)
            self._socket.sendto(b"!", self._wake_path)

    # --- receiving ---------------------------------------------------------------------------------------------

    def rows(self, limit: int, known: AbstractSet[bytes] = frozenset()) -> list[Any]:
        """Of the oldest ``limit`` commands those that are not ``known``, by command id.

        Each is (row id, command id, at, version, body), the body None where its checksum is wrong.
        """

        def read(connection: sqlite3.Connection) -> list[Any]:
            fresh = [str(id) for id, command_id in connection.execute(_IDS, (limit,)) if command_id not in known]
            return connection.execute(_ROWS, (f"[{','.join(fresh)}]",)).fetchall() if fresh else []

        found = self._do("reading", read)
        return [(*row[:4], row[4] if crc32(row[4]) == row[5] else None) for row in found]

    def delete(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Forget these rows, by row id and command id, in one transaction; those that are gone already are no error."""
        listed = json.dumps([(row_id, command_id.hex().upper()) for row_id, command_id in rows])
        self._do("deleting", lambda connection: connection.execute(_DELETE, (listed,)))

    def is_waiting(self, command_id: bytes) -> bool:
        """Whether no engine has taken this command yet (or its deletion is pending)."""
        row = self._do("reading", lambda connection: connection.execute(_IS_WAITING, (command_id,)).fetchone())
        return row is not None

    def close(self) -> None:
        """Let go."""
        with self._lock:
            self._is_closed = True
            self._connection.close()
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def count_waiting(store_path: Path) -> int:
    """How many commands wait in a store's inbox; opens it to read, and makes none."""
    count: int = sum(row[0] for row in _look(store_path, "SELECT count(*) FROM inbox", ()))
    return count


def waiting_about(store_path: Path, id: bytes) -> list[tuple[int, bytes]]:
    """(at, body) of the commands in a store's inbox that hold this id, oldest first; opens it to read, and makes none."""
    found = _look(store_path, "SELECT at, body, crc FROM inbox WHERE instr(body, ?) > 0 ORDER BY id", (id,))
    return [(at, body) for at, body, crc in found if crc32(body) == crc]


def _look(store_path: Path, sql: str, values: tuple[bytes, ...]) -> list[Any]:
    path = inbox_path(store_path)
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            return connection.execute(sql, values).fetchall()
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the inbox {path} cannot be read: {error}", path=str(path), cause=str(error)) from error


class Doorbell:
    """The engine's end of the wake-up socket."""

    def __init__(self, store_path: Path) -> None:
        self._path = socket_path(store_path)
        self._socket: socket.socket | None = None
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(self._path)) <= SOCKET_PATH_BYTES_MAX:
            self._path.unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                self._socket.bind(os.fspath(self._path))
                self._path.chmod(0o600)
            except OSError:
                self._socket.close()
                self._socket = None
        self._quiet = threading.Event()

    def wait(self, timeout_s: float) -> None:
        """Until rung, or the timeout (seconds) has passed."""
        if self._socket is None:
            self._quiet.wait(timeout_s)
            return
        self._socket.settimeout(timeout_s)
        try:
            self._socket.recv(16)
            self._socket.settimeout(0)
            while True:
                self._socket.recv(16)
        except (TimeoutError, BlockingIOError, OSError):
            return

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)
