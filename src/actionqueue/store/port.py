"""The port: what the engine asks of a store. One conformance suite runs against every implementation.

A store keeps six things: the **log** (one row per commit: its events as bytes, chained by hash), the **projection**
(tables of tasks, runs and attempts, exact as of ``projected_seq``), the **blobs** (payloads under the task's id,
results under the run's), the **records** of retry chains (steps and waits that are over), **replies** to commands that
came through the inbox, and the **epoch** of the engine that may write. It never looks into an event.

Errors of ``commit`` say what is known of the outcome: ``StoreUnavailable`` means nothing was written (try again);
``CommitUnknown`` means it may have been; ``EpochLost`` means another engine has taken over and nothing was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from actionqueue.core.rows import Projection, Row

if TYPE_CHECKING:
    from actionqueue.store.scan import Scan


class Commit(Struct, frozen=True):
    """One row of the log."""

    first_seq: int
    last_seq: int
    at: int
    epoch: int
    version: int
    events: bytes
    hash: bytes


class Batch(Struct):
    """What one transaction writes. ``commit`` is None when a projection, replies or deletions are all there is."""

    commit: Commit | None
    expected_seq: int
    """The store's last sequence before this batch."""
    epoch: int
    blobs: list[tuple[bytes, bytes]]
    """(id, body); a body that is there already stays."""
    projection: Projection | None = None
    replies: list[tuple[bytes, bytes, int]] = []
    """(command id, encoded reply, expires at)"""
    pruned_tasks: list[bytes] = []
    """Tasks to delete with their runs, attempts, tags, blobs and records."""
    steps: list[Row] = []
    """(run id, name, kind, at, body) of what retry chains record; a row of that name that is there is replaced."""
    dropped_steps: list[bytes] = []
    """Chains (ids of their first runs) whose records are forgotten, before any of ``steps`` is written."""


class Opened(Struct, frozen=True):
    """What opening found."""

    store_id: bytes
    epoch: int
    """The new epoch, already durable in the store."""
    last_seq: int
    last_hash: bytes
    projected_seq: int
    restored: bool = False
    """Whether this is a backup that was brought back. True at each opening until a commit with events is made, so that
    an engine whose first commit pauses it cannot miss it."""


class Anchor(Struct, frozen=True, array_like=True):
    """Where the log begins after pruning: the commit before it, by sequence and hash, and the counts then."""

    seq: int
    hash: bytes
    at: int


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which runs (or tasks) a listing wants; all conditions hold together.

    Instants are microseconds: ``since`` (included) and ``until`` (excluded) bound ``created_at``. ``states`` are state
    codes. ``error`` matches the error kind exactly; ``text`` is contained in an error's kind or message, or in the
    handler's name (case counts), and needs ``since``. ``key`` is the idempotency key of the run's task. ``ids`` picks
    exactly those runs. ``cursor`` is the id of the last run of the page before; the order is newest first (by id).
    """

    states: tuple[int, ...] | None = None
    task: bytes | None = None
    handler: str | None = None
    queue: str | None = None
    tag: str | None = None
    mark: str | None = None
    """A mark that the engine gave its runs (``core.rows.tags_of``)."""
    key: str | None = None
    since: int | None = None
    until: int | None = None
    error: str | None = None
    text: str | None = None
    ids: tuple[bytes, ...] | None = None
    cursor: bytes | None = None
    limit: int = 100


class Reader(Protocol):
    """Read-only questions, each answered from one snapshot. Usable from any thread, by one at a time."""

    def projected_seq(self) -> int:
        """The sequence the tables are exact as of."""
        ...

    def facts(self) -> dict[str, bytes]:
        """The projection's named single values."""
        ...

    def entries(self, kind: str) -> list[Row]:
        """(kind, key, body) of everything that capabilities keep of that kind, by key."""
        ...

    def runs(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``runs`` (``RUN_COLUMNS``), newest first, at most ``limit``."""
        ...

    def tasks(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``tasks`` (``TASK_COLUMNS``), newest first; of the filter ``task``, ``handler``, ``queue``, ``key``,
        ``since``, ``until``, ``cursor``, ``limit`` apply, and ``ids`` are task ids."""
        ...

    def runs_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these runs, those that exist."""
        ...

    def tasks_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these tasks, those that exist."""
        ...

    def tasks_by_key(self, keys: Sequence[str]) -> dict[str, Row]:
        """The newest task of each idempotency key, those that exist."""
        ...

    def count_tagged(self, tag: str) -> dict[int, int]:
        """How many runs with that tag, or mark, there are, by state code; those that are not 0."""
        ...

    def runs_of(self, task_id: bytes) -> list[Row]:
        """All runs of a task, oldest first."""
        ...

    def attempts_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """Rows of ``attempts`` of each of these runs, by number."""
        ...

    def ids_ending(self, suffix: str, kind: str) -> list[bytes]:
        """Ids of ``runs`` or ``tasks`` (``kind``) whose hex form ends so, newest first, at most 20.

        Six digits or more, else ``InvalidSubmission``. Searched are at least the live ones and the newest million.
        """
        ...

    def steps_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """(run id, name, kind, at, body) of what each of these retry chains recorded, by instant and name.

        A chain goes by the id of its first run.
        """
        ...

    def blobs(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Payloads by task id, results by run id; those that exist. Unchecked: compare with the digest in the row."""
        ...

    def reply(self, command_id: bytes) -> bytes | None:
        """The encoded reply to an inbox command, if it was decided and has not expired."""
        ...

    def commits(self, after_seq: int) -> Iterator[Commit]:
        """The commits that end after a sequence, in order, each checked against the one before (``StoreDamaged``).

        Holds nothing between pages, so it may be consumed slowly; commits made meanwhile are included. When the log was
        pruned past the sequence, it begins later: compare ``first_seq``.
        """
        ...

    def anchor(self) -> Anchor | None:
        """Where the log begins, when it was pruned."""
        ...

    def finished_before(self, at: int, limit: int, offset_count: int = 0) -> list[Row]:
        """Rows of ``tasks`` finished before an instant, the longest finished first (for retention).

        ``offset_count`` of them are passed over.
        """
        ...

    def oldest(self, state: int) -> Row | None:
        """The row of the oldest run (by id) in that state."""
        ...

    def refusals(self, limit: int, before: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """(command id, encoded reply) of inbox commands that were refused, newest first, those before an id."""
        ...

    def scan(self) -> AbstractContextManager[Scan]:
        """The whole store as of now, unchecked, for as long as the block lasts; the reader answers nothing else."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Store(Protocol):
    """The writing side; used by one engine. ``commit``, ``prune_*`` and ``maintain`` may be called from different
    threads: they take turns where they must."""

    def open(self, *, pid: int, host: str) -> Opened:
        """Take the lock, check what is there, take the next epoch (durably). See the module's head for errors."""
        ...

    def live_rows(self) -> tuple[dict[str, bytes], Iterable[Row], Iterable[Row], Iterable[Row]]:
        """Facts, live tasks, live runs (by id), entries (kind, key, body): what ``core.loading.load`` takes.

        Tasks and runs are stored rows, which it checks and opens.

        They stream; the store must not be written to before they were read.
        """
        ...

    def commit(self, batch: Batch) -> None:
        """Write the batch in one transaction and sync it."""
        ...

    def reader(self) -> Reader:
        """A new reader."""
        ...

    def prune_log(self, before_seq: int, before_at: int, commits_max: int) -> int:
        """Drop up to that many commits from the log's start; returns how many.

        Those that end before ``before_seq`` *and* were made before ``before_at``; never what the projection has not
        reached, and never the last one. The anchor is recorded with it.
        """
        ...

    def prune_replies(self, now: int) -> None:
        """Drop expired replies."""
        ...

    def maintain(self) -> dict[str, Any]:
        """Checkpoint when nothing was committed since the last call, and give a few free pages back.

        Call it every second or so, from a thread that delays no commit. Returns ``wal_bytes``, ``db_bytes``,
        ``free_bytes``, ``checkpointed``. ``CommitUnknown`` (no more can be written) when a sync failed or the file was
        taken away.
        """
        ...

    def backup(self, target: str) -> None:
        """Copy the store, consistently, while it is in use, to a new file that opens as restored."""
        ...

    def close(self) -> None:
        """Close everything and let go of the lock."""
        ...
