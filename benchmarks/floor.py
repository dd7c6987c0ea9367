"""What this machine can do at all: the disk, SQLite, and a skeleton of the pipeline without any feature.

The skeleton does what the engine must do for a run, and nothing else: three events in a hash-chained log, a payload row
and a final row, one synced transaction for whatever came together, on a commit thread; handlers on an event loop of
their own; 200 slots; a submitter that waits until each of its batches of 500 is durable. It validates nothing, keeps no
state but a queue of what is ready, never fails, retries, times out, projects or recovers. What the engine adds to it is
the price of the features: the ratio of the two, measured in one run on the same event loop, is the figure to watch.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any, TypeAlias

from msgspec import Struct, json, msgpack

from benchmarks.work import ARGUMENT, BATCH, SLOTS, synced_appends, timed

ROWS_PER_STATEMENT = 64
CHECKPOINT_PAGES = 4_000

_SCHEMA = """
CREATE TABLE log (last_seq INTEGER PRIMARY KEY, first_seq INTEGER, at INTEGER, hash BLOB, events BLOB);
CREATE TABLE blobs (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (id BLOB PRIMARY KEY, task_id BLOB, handler TEXT, state INTEGER, created_at INTEGER,
                   started_at INTEGER, finished_at INTEGER, attempts INTEGER) WITHOUT ROWID;
"""


# --- the disk and SQLite ------------------------------------------------------------------------------------------


def measure(directory: str, runs: int, repeats: int) -> dict[str, float]:
    """The floor's row: all of it."""
    place = Path(directory)
    figures = {
        f"append_{name}_ms": median(synced_appends(place, size, 500)) * 1e3
        for name, size in (("200b", 200), ("4k", 4 << 10), ("64k", 64 << 10))
    }
    figures["commits_per_s"] = commits_per_s(place / "commits.db", 1_500)
    figures["rows_per_s"] = rows_per_s(place / "rows.db", 100_000)
    rates = [pipeline(place / f"skeleton-{n}.db", runs) for n in range(repeats)]
    figures["skeleton_per_s"] = median(rates)
    return figures


def connect(path: Path) -> sqlite3.Connection:
    """A connection as durable as the engine's: WAL, synced at each commit."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return connection


def commits_per_s(path: Path, commits: int) -> float:
    """Transactions of one row each."""
    connection = connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
    body = bytes(200)

    def fill() -> None:
        for _ in range(commits):
            connection.execute("INSERT INTO t (body) VALUES (?)", (body,))

    rate = commits / timed(fill)
    connection.close()
    return rate


def rows_per_s(path: Path, rows: int) -> float:
    """Rows in transactions of 1,000 each."""
    connection = connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
    batch = [(bytes(100),)] * 1_000

    def fill() -> None:
        for _ in range(rows // len(batch)):
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO t (body) VALUES (?)", batch)
            connection.execute("COMMIT")

    rate = rows / timed(fill)
    connection.close()
    return rate


# --- the skeleton -------------------------------------------------------------------------------------------------


class Submitted(Struct, array_like=True, tag=1, gc=False):
    """A task and its run exist."""

    at: int
    task_id: bytes
    run_id: bytes
    handler: str
    payload_digest: bytes
    payload_bytes: int


class Started(Struct, array_like=True, tag=2, gc=False):
    """The run is tried."""

    at: int
    run_id: bytes
    attempt_id: bytes


class Finished(Struct, array_like=True, tag=3, gc=False):
    """It has completed."""

    at: int
    run_id: bytes
    attempt_id: bytes
    outcome: int


class Run(Struct, gc=False):
    """A run on its way through; ``payload`` is its arguments as bytes."""

    id: bytes
    task_id: bytes
    payload: bytes
    digest: bytes
    created_at: int = 0
    started_at: int = 0
    attempt_id: bytes = b""


Message: TypeAlias = "tuple[list[Run], threading.Lock] | list[Run] | None"
"""To the writer: a batch with the lock its submitter waits on; runs that ended; or that a commit returned."""


class Turn:
    """One transaction and what it lets out."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.payloads: list[tuple[bytes, bytes]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.waiting: list[threading.Lock] = []
        self.starts: list[Run] = []


class Ids:
    """Version 7, one owner a source: milliseconds in front, then a counter, so that they come in order."""

    def __init__(self, first: int) -> None:
        self._tail = count(first << 40)

    def next(self, now_us: int) -> bytes:
        """The next id."""
        return (now_us // 1000 << 80 | 7 << 76 | 2 << 62 | next(self._tail)).to_bytes(16, "big")


async def no_op(a: str) -> None:
    """The handler."""


class Skeleton:
    """The pipeline. Three threads beside the submitter: writer, commit, the handlers' loop."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._connection.executescript(_SCHEMA)
        self._mailbox: SimpleQueue[Message] = SimpleQueue()
        self._turns: SimpleQueue[Turn | None] = SimpleQueue()
        self._loop = new_loop()
        self._ended: list[Run] = []
        self._left = 0
        self.finished = threading.Event()
        for target in (self._write, self._commit, self._loop.run_forever):
            threading.Thread(target=target, daemon=True).start()

    def submit(self, batch: list[Run]) -> None:
        """Returns when the batch is durable."""
        durable = threading.Lock()
        durable.acquire()
        self._mailbox.put((batch, durable))
        durable.acquire()

    def expect(self, runs: int) -> None:
        """Say how many runs there will be; ``finished`` is set when the last one's end is durable."""
        self._left = runs

    def close(self) -> None:
        """End the threads' work."""
        self._turns.put(None)
        self._loop.call_soon_threadsafe(self._loop.stop)

    # --- the writer's thread

    def _write(self) -> None:
        ids, ready, turn = Ids(1), deque[Run](), Turn()
        free, committing = SLOTS, False
        while True:
            message: Message = self._mailbox.get()
            now = time.time_ns() // 1000
            while True:
                if message is None:
                    committing = False
                elif isinstance(message, tuple):
                    self._take(message, ready, turn, now)
                else:
                    free += len(message)
                    self._finish(message, turn, now)
                try:
                    message = self._mailbox.get_nowait()
                except Empty:
                    break
            starts, events = turn.starts, turn.events
            for _ in range(min(free, len(ready))):
                run = ready.popleft()
                run.started_at, run.attempt_id = now, ids.next(now)
                events.append(Started(now, run.id, run.attempt_id))
                starts.append(run)
                free -= 1
            if events and not committing:
                committing = True
                self._turns.put(turn)
                turn = Turn()

    def _take(self, message: tuple[list[Run], threading.Lock], ready: deque[Run], turn: Turn, now: int) -> None:
        batch, durable = message
        events, payloads = turn.events, turn.payloads
        for run in batch:
            run.created_at = now
            events.append(Submitted(now, run.task_id, run.id, "no_op", run.digest, len(run.payload)))
            payloads.append((run.task_id, run.payload))
        ready.extend(batch)
        turn.waiting.append(durable)

    def _finish(self, ended: list[Run], turn: Turn, now: int) -> None:
        events, rows = turn.events, turn.rows
        for run in ended:
            events.append(Finished(now, run.id, run.attempt_id, 1))
            rows.append((run.id, run.task_id, "no_op", 7, run.created_at, run.started_at, now, 1))

    # --- the commit thread

    def _commit(self) -> None:
        connection, encode = self._connection, msgpack.Encoder().encode
        last_hash, last_seq = bytes(32), 0
        while (turn := self._turns.get()) is not None:
            events = turn.events
            body = encode(events)
            last_hash = blake2b(last_hash + body, digest_size=32).digest()
            first_seq, last_seq = last_seq + 1, last_seq + len(events)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO log VALUES (?, ?, ?, ?, ?)", (last_seq, first_seq, events[-1].at, last_hash, body)
            )
            insert(connection, "blobs", 2, turn.payloads)
            insert(connection, "runs", 8, turn.rows)
            connection.execute("COMMIT")
            for durable in turn.waiting:
                durable.release()
            if turn.starts:
                self._loop.call_soon_threadsafe(self._launch, turn.starts)
            self._mailbox.put(None)
            self._left -= len(turn.rows)
            if self._left == 0:
                self.finished.set()
        connection.close()

    # --- the loop's thread

    def _launch(self, starts: list[Run]) -> None:
        create_task, run_one = self._loop.create_task, self._run
        for run in starts:
            _ = create_task(run_one(run))

    async def _run(self, run: Run) -> None:
        await no_op(**_decode(run.payload))
        if not self._ended:
            self._loop.call_soon(self._flush)
        self._ended.append(run)

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        self._mailbox.put(ended)


_decode = json.Decoder(dict[str, str]).decode


def insert(connection: sqlite3.Connection, table: str, columns: int, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows, many a statement: each statement gives up the interpreter lock and takes it again."""
    row = f"({', '.join('?' * columns)})"
    for first in range(0, len(rows), ROWS_PER_STATEMENT):
        part = rows[first : first + ROWS_PER_STATEMENT]
        values = list(chain.from_iterable(part))
        connection.execute(f"INSERT INTO {table} VALUES {', '.join([row] * len(part))}", values)


def new_loop() -> asyncio.AbstractEventLoop:
    """The event loop that the engine would take: uvloop's where it is installed."""
    try:
        import uvloop  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def pipeline(path: Path, runs: int) -> float:
    """Runs a second, from the first submit to the last durable end."""
    skeleton, ids = Skeleton(path), Ids(0)
    skeleton.expect(runs)

    def drive() -> None:
        for _ in range(runs // BATCH):
            now, batch = time.time_ns() // 1000, []
            for _ in range(BATCH):
                payload = json.encode({"a": ARGUMENT})
                digest = blake2b(payload, digest_size=16).digest()
                batch.append(Run(ids.next(now), ids.next(now), payload, digest))
            skeleton.submit(batch)
        if not skeleton.finished.wait(120):
            raise TimeoutError("the skeleton did not finish")

    rate = runs / timed(drive)
    skeleton.close()
    return rate


def pipeline_row(directory: str, runs: int) -> float:
    """The skeleton alone, for rows that compare with it."""
    return pipeline(Path(directory) / "skeleton.db", runs)
