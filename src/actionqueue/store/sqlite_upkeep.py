"""Checkpoints of the WAL and the return of free pages, in small portions beside a busy writer.

Knows: SQLite's checkpoints and its list of free pages. Must not know: what is written.

A checkpoint's bulk is PASSIVE, on a connection and a thread of its own, beside commits. Under a steady writer that
alone never resets the WAL, since new frames are always behind it; so the small rest follows at once with RESTART, while
the writer waits its turn, and the next commit begins the WAL anew. Its file keeps its length, since writing over blocks
that are there syncs faster than appending, and is cut only when it grew far over the usual size or at a clean close.

The thread sleeps until commits have added `WAL_BYTES_SOFT`. What is left when nothing is committed any more, and the
free pages, are the work of ``step``, which the engine calls now and then.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actionqueue.core.errors import StoreUnavailable
from actionqueue.store.port import Batch
from actionqueue.store.sqlite_connection import READER_CACHE_BYTES, connect, make_durable

WAL_BYTES_SOFT = 16 << 20
"""From here on a checkpoint is due."""
WAL_BYTES_KEPT = 64 << 20
"""A WAL file longer than this is cut after a checkpoint."""
REST_BYTES_MAX = 1 << 20
"""Copied while the writer waits; more than that is first copied beside it."""
PASSES_MAX = 4
RETRY_S = 0.05
"""The pause after a checkpoint that a reader kept from resetting the WAL."""
FREE_PAGES_KEPT = 1024
"""Free pages that stay in the file, for what comes next."""
VACUUM_PAGES_PER_TURN = 64
"""Free pages given back while the writer waits: a few milliseconds."""
VACUUM_S_MAX = 0.25
"""How long a step gives pages back when nothing else is going on."""
OPEN_WAIT_S_MAX = 5.0
"""How long opening waits for readers that keep the WAL from being checkpointed."""

_PAGE_BYTES = 4096


class Upkeep:
    """What keeps the files of an open `SQLiteStore` small.

    ``turn`` is held while something is written to the database; ``transact`` writes in a transaction of ``writer``;
    ``failed`` is told of an error of the thread.
    """

    def __init__(
        self,
        path: Path,
        turn: threading.Lock,
        writer: sqlite3.Connection,
        transact: Callable[[Callable[[], object]], None],
        failed: Callable[[sqlite3.Error], object],
    ) -> None:
        self._path = path
        self._turn = turn
        self._writer = writer
        self._transact = transact
        self._failed = failed
        self._keeper = connect(path, "rw", READER_CACHE_BYTES)
        make_durable(self._keeper)
        self._mine = threading.Lock()
        self._wal_bytes = 0
        """About how much the WAL holds that no checkpoint has copied: counted, as SQLite does not tell."""
        self._noted_bytes = 0
        self._seen_bytes = 0
        self._free_pages = 0
        self._due = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actionqueue-checkpoint", daemon=True)
        self._thread.start()

    def note(self, batch: Batch) -> None:
        """Count what a commit has added to the WAL, roughly: the pages it touched."""
        added = 2 * _PAGE_BYTES
        if batch.commit is not None:
            added += len(batch.commit.events) + sum(len(body) + 64 for _, body in batch.blobs)
        added += sum(len(step[4]) + 128 for step in batch.steps)
        projection = batch.projection
        if projection is not None:
            added += 8 * _PAGE_BYTES + 500 * (len(projection.runs) + len(projection.tasks) + len(projection.attempts))
        self._wal_bytes += added
        self._noted_bytes += added
        if self._wal_bytes >= WAL_BYTES_SOFT:
            self._due.set()

    def _run(self) -> None:
        while True:
            self._due.wait()
            if self._closing.is_set():
                return
            self._due.clear()
            try:
                with self._mine:
                    done = self._checkpoint()
            except sqlite3.Error as error:
                self._failed(error)
                done = False
            if not done:
                self._closing.wait(RETRY_S)

    def step(self) -> dict[str, Any]:
        """What is due in a quiet moment; call it every second or so, from any thread.

        A checkpoint when nothing was committed since the last call, and free pages: a few, or more of them when it is
        quiet; neither while the thread is at work. Returns ``wal_bytes`` (the
        file), ``db_bytes``, ``free_bytes`` and ``checkpointed``.
        """
        checkpointed = False
        if self._mine.acquire(blocking=False):
            try:
                checkpointed = self._quiet_work()
            finally:
                self._mine.release()
        return {
            "wal_bytes": _size(Path(f"{self._path}-wal")),
            "db_bytes": _size(self._path),
            "free_bytes": self._free_pages * _PAGE_BYTES,
            "checkpointed": checkpointed,
        }

    def _quiet_work(self) -> bool:
        idle = self._noted_bytes == self._seen_bytes
        self._seen_bytes = self._noted_bytes
        checkpointed = bool(idle and self._wal_bytes) and self._checkpoint()
        deadline_s = time.monotonic() + (VACUUM_S_MAX if idle else 0)
        while self._give_back() > FREE_PAGES_KEPT and time.monotonic() < deadline_s:
            time.sleep(0.001)  # let a commit have its turn
        return checkpointed

    def _checkpoint(self) -> bool:
        """Whether the WAL begins anew; not so while a reader is in it."""
        for _ in range(PASSES_MAX):
            noted = self._noted_bytes
            self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if self._noted_bytes - noted <= REST_BYTES_MAX:
                break
        mode = "TRUNCATE" if _size(Path(f"{self._path}-wal")) > WAL_BYTES_KEPT else "RESTART"
        with self._turn:
            if self._closing.is_set():
                return False
            busy, _, _ = self._keeper.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            if not busy:
                self._wal_bytes = 0
        return not busy

    def _give_back(self) -> int:
        """Return some free pages, if there are more than enough; how many are left."""
        with self._turn:
            free = int(self._writer.execute("PRAGMA freelist_count").fetchone()[0])
            pages = min(VACUUM_PAGES_PER_TURN, free - FREE_PAGES_KEPT)
            if pages > 0:
                self._transact(lambda: self._vacuum(pages))
                self._wal_bytes += 2 * pages * _PAGE_BYTES
            self._free_pages = free - max(0, pages)
        return self._free_pages

    def _vacuum(self, pages: int) -> None:
        for _ in range(pages):  # one by one: sqlite3 steps a statement without columns only once, that is one page
            self._writer.execute("PRAGMA incremental_vacuum(1)")

    def stop(self) -> None:
        """End the thread, waiting for what it does. Not while holding ``turn``."""
        self._closing.set()
        self._due.set()
        self._thread.join()
        self._keeper.close()


def checkpoint_fully(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the whole WAL into the database, synced, and empty it.

    A reader in the middle of a query can keep the WAL from being emptied (its pages are copied all the same): after a
    while that is let pass. Raises `StoreUnavailable` when even the copying is kept up.
    """
    deadline_s = time.monotonic() + OPEN_WAIT_S_MAX
    while True:
        busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        if time.monotonic() >= deadline_s:
            if 0 <= frames == copied:
                return
            raise StoreUnavailable(
                f"{path}: another process reads or writes it and keeps its WAL from being checkpointed. End that "
                "process, then open the store again.",
                path=str(path),
                cause="WAL in use",
            )
        time.sleep(0.01)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
