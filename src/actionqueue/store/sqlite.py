"""The store on one SQLite file: the writing side.

Knows: in which order a store is opened, what one transaction writes, and which errors leave nothing behind. Must not
know: what an event means, or who decides.

Opening, each step refusing with its own error before the next can do harm: a local disk; a store, or nothing yet;
writable; not held; a WAL without damage; then, with SQLite, what `sqlite_opening` checks; then the next epoch.

What is known after an error of a transaction. SQLite in WAL mode writes nothing that could count before COMMIT, so an
error up to there means that nothing was written. COMMIT appends the transaction's pages to the WAL, the last of them
marked as the commit, then syncs, then publishes them in shared memory:

=====================  =============================================================================================
SQLITE_BUSY            the transaction is still open; it is rolled back. Nothing was written.
SQLITE_FULL            appending stopped before the commit mark was whole (nothing that comes after it reports FULL):
                       neither this process nor a recovery will see it. SQLite rolled back. Nothing was written.
anything else          the mark may be on the disk: a failed sync says nothing of what was synced. ``CommitUnknown``;
                       this object writes no more. The next opening reads the WAL, decides by what it finds, and
                       syncs the whole of it into the database before it answers.
=====================  =============================================================================================
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import json

from actionqueue.core.errors import (
    CommitUnknown,
    EpochLost,
    StoreDamaged,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
)
from actionqueue.core.rows import STORED_RUN_COLUMNS, STORED_TASK_COLUMNS, Projection, Row
from actionqueue.core.state import FIRST_TERMINAL
from actionqueue.store import sqlite_log
from actionqueue.store.filesystem import check_is_store_or_absent, check_local, is_writable
from actionqueue.store.lock import StoreLock
from actionqueue.store.port import Batch, Opened
from actionqueue.store.sqlite_connection import (
    READER_CACHE_BYTES,
    WRITER_CACHE_BYTES,
    connect,
    patiently,
    primary_code,
    roll_back,
    translated,
    translating,
)
from actionqueue.store.sqlite_listing import Skews
from actionqueue.store.sqlite_opening import prepare
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.store.sqlite_rows import all_entries, all_facts, all_meta, columns_of, set_meta
from actionqueue.store.sqlite_schema import write_batch
from actionqueue.store.sqlite_upkeep import Upkeep
from actionqueue.store.wal_scan import check_wal, make_certain

_CREATED_AT = {"tasks": STORED_TASK_COLUMNS.index("created_at"), "runs": STORED_RUN_COLUMNS.index("created_at")}
_STANDING = "SELECT (SELECT value FROM meta WHERE name = 'epoch'), (SELECT max(last_seq) FROM commits)"


class SQLiteStore:
    """The store in the SQLite file ``path``. Constructing does no I/O.

    ``commit``, ``prune_log``, ``prune_replies`` and ``maintain`` may be called from different threads: they take turns
    where they must, and a checkpoint's bulk runs beside commits.
    """

    def __init__(self, path: Path, *, cache_bytes: int = WRITER_CACHE_BYTES) -> None:
        self._path = Path(os.path.realpath(path))
        self._cache_bytes = cache_bytes
        self._turn = threading.Lock()
        self._lock: StoreLock | None = None
        self._writer: sqlite3.Connection | None = None
        self._loader: sqlite3.Connection | None = None
        self._streams: tuple[Generator[Row, None, None], ...] = ()
        self._upkeep: Upkeep | None = None
        self._broken: CommitUnknown | None = None
        self._epoch = 0
        self._restored = False
        self._skews: Skews = {}
        self._file_id: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """The file's real path."""
        return self._path

    # --- opening -------------------------------------------------------------------------------------------------

    def open(self, *, pid: int, host: str) -> Opened:
        """Take the lock, check what is there, take the next epoch. See ``port.Store.open``.

        Raises `NetworkFileSystem`, `NotAStore`, `StoreTooNew`, `StoreReadOnly`, `StoreHeld`, `StoreDamaged`,
        `StoreUnavailable`, `CommitUnknown`.
        """
        check_local(self._path)
        check_is_store_or_absent(self._path)
        if not is_writable(self._path) and self._path.parent.is_dir():
            raise StoreReadOnly(
                f"{self._path} or its directory cannot be written, so no engine can run on it; it can be read. "
                "Change their owner or mode.",
                path=str(self._path),
            )
        self._lock = StoreLock.acquire(self._path)
        try:
            self._look_through_log(Path(f"{self._path}-wal"))
            with translating(self._path, "opening"):
                return self._open(pid, host)
        except BaseException:
            self._let_go()
            raise

    def _look_through_log(self, wal: Path) -> None:
        """Refuse damage; and what is good, make certain before it is copied into the database."""
        report = check_wal(wal)
        try:
            make_certain(wal, report.valid_bytes)
        except OSError as problem:
            raise StoreUnavailable(
                f"{wal} cannot be written and synced ({problem.strerror}), and the last commits are in it. Nothing was "
                "opened. Check the disk.",
                path=str(wal),
                cause="input/output error",
            ) from problem

    def _open(self, pid: int, host: str) -> Opened:
        self._broken = None
        self._writer = writer = connect(self._path, "rwc", self._cache_bytes)
        found = prepare(writer, self._path, self._transact)
        store_id, epoch = found.store_id, found.epoch + 1
        holder = json.encode({"pid": pid, "host": host}).decode()
        self._transact(writer, lambda: set_meta(writer, epoch=epoch, holder=holder, clean=0))
        self._epoch, self._restored, self._skews = epoch, found.restored, found.skews
        self._file_id = _file_id(self._path)
        self._upkeep = Upkeep(
            self._path, self._turn, writer, lambda write: self._transact(writer, write), self._checkpoint_failed
        )
        return Opened(store_id, epoch, found.last_seq, found.last_hash, found.projected_seq, found.restored)

    # --- writing -------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch) -> None:
        """Write the batch in one transaction and sync it. See the table at the module's head for errors.

        Raises `StoreUnavailable` (``cause``), `EpochLost`, `StoreDamaged` (nothing was written) and `CommitUnknown`.
        """
        with self._turn:
            writer, upkeep = self._ready()
            self._end_loading()
            projection = batch.projection
            skews = self._skews if projection is None else _widened(self._skews, projection)
            self._transact(writer, lambda: self._write(writer, batch, skews))
            self._skews = skews
            if batch.commit is not None:
                self._restored = False
            upkeep.note(batch)

    def _write(self, writer: sqlite3.Connection, batch: Batch, skews: Skews) -> None:
        epoch, last_seq = writer.execute(_STANDING).fetchone()
        if epoch != batch.epoch:
            raise EpochLost(
                f"another engine has taken {self._path} over (epoch {epoch}; this engine's is {batch.epoch}). Nothing "
                "was written; this engine writes no more.",
                path=str(self._path),
                epoch=batch.epoch,
                current=epoch,
            )
        commit = batch.commit
        if (last_seq or 0) != batch.expected_seq or (commit is not None and commit.first_seq != batch.expected_seq + 1):
            raise StoreDamaged(
                f"the log of {self._path} ends at sequence {last_seq or 0} and the engine goes on from "
                f"{batch.expected_seq}: one of them lost something. Nothing was written. Open the store again.",
                path=str(self._path),
                place="commits",
            )
        if commit is not None:
            sqlite_log.append(writer, commit)
            if self._restored:
                set_meta(writer, restored=0)
        write_batch(writer, batch)
        for table in skews:
            if skews[table] != self._skews[table]:
                set_meta(writer, **skews[table].as_meta(table))

    def _transact(self, writer: sqlite3.Connection, write: Callable[[], object]) -> None:
        """One transaction. Errors as in the table at the module's head."""
        try:
            roll_back(writer)  # what an earlier failure may have left open
            patiently(lambda: writer.execute("BEGIN IMMEDIATE"))
            write()
        except sqlite3.Error as error:
            self._undo(writer)
            raise translated(error, self._path, "writing") from error
        except BaseException:
            self._undo(writer)
            raise
        try:
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo(writer)
            if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
                raise translated(error, self._path, "committing") from error
            raise self._break(error, "the commit") from error

    def _break(self, error: sqlite3.Error, what: str) -> CommitUnknown:
        """Write no more through this object."""
        self._broken = CommitUnknown(
            f"{self._path}: {what} failed while it was written or synced ({error}), so what is on the disk is not "
            "known. This engine writes no more. Check the disk, open the store again, and submit again with the same "
            "ids.",
            path=str(self._path),
            cause=getattr(error, "sqlite_errorname", ""),
        )
        return self._broken

    def _undo(self, writer: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):  # what stays open is rolled back before the next transaction, or by closing
            roll_back(writer)

    def _ready(self) -> tuple[sqlite3.Connection, Upkeep]:
        if self._broken is not None:
            raise self._broken
        if self._lock is None or self._writer is None or self._upkeep is None:
            raise StoreUnavailable(f"{self._path} is not open here.", path=str(self._path), cause="not open")
        self._lock.check_process()
        return self._writer, self._upkeep

    def prune_log(self, before_seq: int, before_at: int, commits_max: int) -> int:
        """Drop commits from the log's start; never what the projection has not reached, never the last one."""
        dropped = 0

        def write() -> None:
            nonlocal dropped
            projected_seq = writer.execute("SELECT value FROM meta WHERE name = 'projected_seq'").fetchone()[0]
            dropped = sqlite_log.prune(writer, min(before_seq, projected_seq + 1), before_at, commits_max)

        with self._turn:
            writer, _ = self._ready()
            self._transact(writer, write)
        return dropped

    def prune_replies(self, now: int) -> None:
        """Drop expired replies."""
        with self._turn:
            writer, _ = self._ready()
            self._transact(writer, lambda: writer.execute("DELETE FROM replies WHERE expires_at <= ?", (now,)))

    # --- reading -------------------------------------------------------------------------------------------------

    def live_rows(self) -> tuple[dict[str, bytes], Iterable[Row], Iterable[Row], Iterable[Row]]:
        """Facts, live tasks, live runs (by id), entries. Tasks and runs stream, stored and unchecked: `load` checks them.

        They are read through a connection of their own, until the next commit.
        """
        writer, _ = self._ready()
        with self._turn, translating(self._path, "loading"):
            facts = all_facts(writer)
            entries = all_entries(writer)
            projected_seq = all_meta(writer).get("projected_seq")
        if not facts and projected_seq:
            raise StoreDamaged(f"{self._path} lacks the facts of its projection.", path=str(self._path), place="facts")
        self._end_loading()
        self._loader = loader = connect(self._path, "ro", READER_CACHE_BYTES)
        tasks = self._live(loader, "tasks", "tasks INDEXED BY tasks_finished WHERE finished_at IS NULL")
        runs = self._live(loader, "runs", f"runs INDEXED BY runs_state WHERE state < {FIRST_TERMINAL}")
        self._streams = (tasks, runs)
        return facts, tasks, runs, entries

    def _live(self, loader: sqlite3.Connection, table: str, source: str) -> Generator[Row, None, None]:
        query = f"SELECT {columns_of(table)} FROM {source}"
        with translating(self._path, "loading"):
            # not `yield from`: that closes the cursor with the generator, perhaps after its connection
            for row in patiently(lambda: loader.execute(query)):  # noqa: UP028
                yield row

    def _end_loading(self) -> None:
        for stream in self._streams:  # one that was left half read would look for its connection when it is collected
            stream.close()
        self._streams = ()
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def reader(self) -> SQLiteReader:
        """A new reader of this store."""
        self._ready()
        return SQLiteReader(self._path)

    # --- upkeep --------------------------------------------------------------------------------------------------

    def maintain(self) -> dict[str, Any]:
        """Checkpoint and give free pages back, a little at a time; sizes in bytes. See `Upkeep.step`."""
        _, upkeep = self._ready()
        if _file_id(self._path) != self._file_id:
            self._broken = CommitUnknown(
                f"{self._path} was deleted or replaced while it was open, so nothing that is written now is kept. This "
                "engine writes no more.",
                path=str(self._path),
                cause="file replaced",
            )
            raise self._broken
        try:
            return upkeep.step()
        except sqlite3.Error as error:
            raise self._checkpoint_failed(error) from error

    def _checkpoint_failed(self, error: sqlite3.Error) -> StoreError:
        """A full disk passes. An error of the disk may have been one of a sync, and those are not tried again."""
        if primary_code(error) == sqlite3.SQLITE_IOERR:
            return self._break(error, "a checkpoint")
        return translated(error, self._path, "checkpointing")

    def backup(self, target: str) -> None:
        """Copy the store, consistently, while it is in use. See ``backup.backup``."""
        from actionqueue.store.backup import backup  # it restores too, and so knows this module

        self._ready()
        backup(self._path, Path(target))

    def close(self) -> None:
        """Close in order and let go of the lock. Does nothing the second time, and nothing in a forked child."""
        if self._lock is None or not self._lock.is_held:
            return
        if self._upkeep is not None:
            self._upkeep.stop()
        with self._turn:
            writer = self._writer
            if self._broken is None and writer is not None:
                with suppress(StoreError, sqlite3.Error):  # it is as good unclean: the next opening looks closer
                    if writer.execute(_STANDING).fetchone()[0] == self._epoch:
                        self._transact(writer, lambda: set_meta(writer, clean=1))
                        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._let_go()

    def _let_go(self) -> None:
        self._end_loading()
        if self._writer is not None:
            with self._log_kept():
                self._writer.close()
        self._upkeep = self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def _log_kept(self) -> Generator[None]:
        """After a failed write or sync, keep SQLite from checkpointing as its last connection closes.

        That would sync the database again, and then delete the WAL; but what an unfinished checkpoint had copied before
        the failure is not copied again, and may be what the system gave up. A connection that only reads does neither
        when it is the last to close, and the next opening copies the whole WAL anew.
        """
        last: sqlite3.Connection | None = None
        if self._broken is not None:
            with suppress(sqlite3.Error):
                last = connect(self._path, "ro", READER_CACHE_BYTES)
        try:
            yield
        finally:
            if last is not None:
                last.close()


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _widened(skews: Skews, projection: Projection) -> Skews:
    return {
        "tasks": skews["tasks"].including(projection.tasks, _CREATED_AT["tasks"]),
        "runs": skews["runs"].including(projection.runs, _CREATED_AT["runs"]),
    }
