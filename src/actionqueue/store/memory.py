"""The store in memory: the same port with dicts, for ``:memory:`` queues and for the simulator.

Knows: what `SQLiteStore` promises, without a disk. Must not know: what an event means.

It lives as long as the object. `crash` and `close` let it go; opening it again finds what was committed. ``fault`` is
called at named points with their names ("before_write", "after_write") and may raise: before, nothing of the batch is
kept; after, all of it is, though its caller does not learn so. After a ``CommitUnknown`` nothing more is written until
the store is opened again, as with a file.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from actionqueue.core.batches import BATCH, BATCH_MARK
from actionqueue.core.errors import (
    CommitUnknown,
    EpochLost,
    StoreDamaged,
    StoreHeld,
    StoreUnavailable,
)
from actionqueue.core.rows import (
    ENDED_ENTRIES,
    Projection,
    Row,
    latest_attempt_row,
    open_run,
    open_task,
    sealed,
    stored_run,
    stored_task,
)
from actionqueue.store.codec import CHAIN_START, REFUSAL_BEGINS
from actionqueue.store.matching import SUFFIX_MATCHES_MAX, check_filter, end_of_id, error_has
from actionqueue.store.port import Anchor, Batch, Commit, Opened, RunFilter
from actionqueue.store.scan import TablesScan


class _Tables(Struct):
    """What a file would hold."""

    store_id: bytes
    epoch: int = 0
    projected_seq: int = 0
    commits: list[Commit] = field(default_factory=list)
    anchor: Anchor | None = None
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    replies: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    facts: dict[str, bytes] = field(default_factory=dict)
    entries: dict[tuple[str, str], bytes] = field(default_factory=dict)
    tasks: dict[bytes, Row] = field(default_factory=dict)
    runs: dict[bytes, Row] = field(default_factory=dict)
    runs_by_task: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    attempts: dict[bytes, dict[int, Row]] = field(default_factory=dict)
    tags: set[tuple[str, bytes]] = field(default_factory=set)
    steps: dict[bytes, dict[str, Row]] = field(default_factory=dict)

    @property
    def last_seq(self) -> int:
        return self.commits[-1].last_seq if self.commits else 0


class MemoryStore:
    """The port's ``Store`` in memory; see the module's head for ``fault``."""

    def __init__(self, *, fault: Callable[[str], None] | None = None, store_id: bytes | None = None) -> None:
        self.fault = fault
        self._turn = threading.Lock()
        self._tables = _Tables(store_id or secrets.token_bytes(16))
        self._holder: tuple[int, str] | None = None
        self._broken: CommitUnknown | None = None

    def open(self, *, pid: int, host: str) -> Opened:
        """Take the store and the next epoch."""
        with self._turn:
            if self._holder is not None:
                raise StoreHeld(
                    "this store in memory is held by another engine of this process; close that one first",
                    pid=self._holder[0],
                    host=self._holder[1],
                )
            self._holder, self._broken = (pid, host), None
            tables = self._tables
            tables.epoch += 1
            last_hash = tables.commits[-1].hash if tables.commits else CHAIN_START
            return Opened(tables.store_id, tables.epoch, tables.last_seq, last_hash, tables.projected_seq)

    @property
    def holder(self) -> tuple[int, str] | None:
        """The pid and host of the engine that has it open, if one has."""
        return self._holder

    @property
    def epoch(self) -> int:
        """The epoch that was taken last."""
        return self._tables.epoch

    def live_rows(self) -> tuple[dict[str, bytes], Iterable[Row], Iterable[Row], Iterable[Row]]:
        """Facts, live tasks, live runs, stored, and entries."""
        with self._turn:
            tables = self._tables
            return (
                dict(tables.facts),
                [stored_task(row) for row in tables.tasks.values() if row[12] is None],
                [stored_run(row) for row in tables.runs.values() if row[14] is None],
                [(*names, body) for names, body in sorted(tables.entries.items()) if names[0] != ENDED_ENTRIES],
            )

    def commit(self, batch: Batch) -> None:
        """Take the batch over, all of it or nothing."""
        with self._turn:
            if self._broken is not None:
                raise self._broken
            if self._holder is None:
                raise StoreUnavailable("this store in memory is not open", cause="not open")
            tables = self._tables
            if batch.epoch != tables.epoch:
                raise EpochLost("another engine has taken this store over", epoch=batch.epoch, current=tables.epoch)
            commit = batch.commit
            follows = commit is None or commit.first_seq == batch.expected_seq + 1
            if batch.expected_seq != tables.last_seq or not follows:
                raise StoreDamaged(
                    f"the log ends at sequence {tables.last_seq} and the engine goes on from {batch.expected_seq}",
                    place="commits",
                )
            try:
                self._reach("before_write")
                _write(tables, batch)
                self._reach("after_write")
            except CommitUnknown as error:
                self._broken = error
                raise

    def _reach(self, point: str) -> None:
        if self.fault is not None:
            self.fault(point)

    def reader(self) -> MemoryReader:
        """A new reader."""
        return MemoryReader(self._tables, self._turn)

    def prune_log(self, before_seq: int, before_at: int, commits_max: int) -> int:
        """Drop commits from the log's start; never what the projection has not reached, never the last one."""
        with self._turn:
            tables = self._tables
            count = 0
            for commit in tables.commits[: min(commits_max, len(tables.commits) - 1)]:
                if commit.last_seq >= min(before_seq, tables.projected_seq + 1) or commit.at >= before_at:
                    break
                tables.anchor = Anchor(commit.last_seq, commit.hash, commit.at)
                count += 1
            tables.commits = tables.commits[count:]
            return count

    def prune_replies(self, now: int) -> None:
        """Drop expired replies."""
        with self._turn:
            replies = self._tables.replies
            for id in [id for id, (_, expires_at) in replies.items() if expires_at <= now]:
                del replies[id]

    def maintain(self) -> dict[str, Any]:
        """Nothing to do."""
        return {"wal_bytes": 0, "db_bytes": 0, "free_bytes": 0, "checkpointed": False}

    def backup(self, target: str) -> None:
        """Write what is here as a store in a file, marked as restored."""
        from actionqueue.store.backup import write_tables  # only this method needs SQLite

        with self._turn:
            tables = self._tables
            batch = Batch(
                None,
                0,
                0,
                list(tables.blobs.items()),
                Projection(
                    tables.projected_seq,
                    [stored_task(row) for row in tables.tasks.values()],
                    [stored_run(row) for row in tables.runs.values()],
                    [row for rows in tables.attempts.values() for number, row in rows.items() if number < max(rows)],
                    list(tables.tags),
                    dict(tables.facts),
                    [(*names, body) for names, body in tables.entries.items()],
                ),
                [(id, body, expires_at) for id, (body, expires_at) in tables.replies.items()],
                steps=[row for rows in tables.steps.values() for row in rows.values()],
            )
            commits, anchor = list(tables.commits), tables.anchor
        write_tables(Path(target), tables.store_id, tables.epoch, commits, anchor, batch)

    def close(self) -> None:
        """Let it go; what was committed stays with the object."""
        self._holder = None

    def crash(self) -> None:
        """Let it go as a process that dies does."""
        self._holder = None


def _write(tables: _Tables, batch: Batch) -> None:
    if batch.commit is not None:
        tables.commits.append(batch.commit)
    for id, body in batch.blobs:
        tables.blobs.setdefault(id, body)
    for run_id in batch.dropped_steps:
        tables.steps.pop(run_id, None)
    for row in batch.steps:
        tables.steps.setdefault(row[0], {})[row[1]] = row
    if batch.projection is not None:
        _write_projection(tables, batch.projection)
    for id, reply, expires_at in batch.replies:
        tables.replies[id] = (reply, expires_at)
    for task_id in batch.pruned_tasks:
        _delete_task(tables, task_id)


def _write_projection(tables: _Tables, projection: Projection) -> None:
    for row in map(open_task, projection.tasks):
        tables.tasks[row[0]] = row
    for row in map(open_run, projection.runs):
        tables.runs[row[0]] = row
        tables.runs_by_task.setdefault(row[1], {})[row[0]] = None
        latest = latest_attempt_row(row)
        if latest is not None:
            tables.attempts.setdefault(row[0], {})[latest[1]] = latest
    for row in projection.attempts:
        tables.attempts.setdefault(row[0], {})[row[1]] = row
    tables.tags.update((tag, run_id) for tag, run_id in projection.tags)
    tables.facts |= projection.facts
    for kind, key, body in projection.entries:
        if body is None:
            tables.entries.pop((kind, key), None)
        else:
            tables.entries[kind, key] = body
    tables.projected_seq = projection.seq


def _delete_task(tables: _Tables, task_id: bytes) -> None:
    runs = tables.runs_by_task.pop(task_id, {})
    for run_id in runs:
        del tables.runs[run_id]
        tables.attempts.pop(run_id, None)
        tables.blobs.pop(run_id, None)
        tables.steps.pop(run_id, None)
    gone = {tag for tag, run_id in tables.tags if run_id in runs and tag.startswith(BATCH_MARK)}
    tables.tags = {pair for pair in tables.tags if pair[1] not in runs}
    for tag in gone - {tag for tag, _ in tables.tags}:
        tables.entries.pop((BATCH, tag.removeprefix(BATCH_MARK)), None)
    tables.entries.pop((ENDED_ENTRIES, task_id.hex()), None)
    tables.blobs.pop(task_id, None)
    tables.tasks.pop(task_id, None)


class MemoryReader:
    """The port's ``Reader`` of a store in memory: plain loops, which define what the filters mean."""

    def __init__(self, tables: _Tables, turn: threading.Lock) -> None:
        self._tables = tables
        self._turn = turn

    def projected_seq(self) -> int:
        """The sequence the tables are exact as of."""
        return self._tables.projected_seq

    def facts(self) -> dict[str, bytes]:
        """The projection's named single values."""
        with self._turn:
            return dict(self._tables.facts)

    def count_tagged(self, tag: str) -> dict[int, int]:
        """See the port."""
        with self._turn:
            tables = self._tables
            return dict(Counter(tables.runs[run_id][4] for each, run_id in tables.tags if each == tag))

    def entries(self, kind: str) -> list[Row]:
        """(kind, key, body) of everything of that kind, by key."""
        with self._turn:
            return [(*names, body) for names, body in sorted(self._tables.entries.items()) if names[0] == kind]

    def runs(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``runs`` that fit, newest first."""
        check_filter(wanted)
        with self._turn:
            tables = self._tables
            return _page([row for row in tables.runs.values() if _run_fits(tables, row, wanted)], wanted)

    def tasks(self, wanted: RunFilter) -> list[Row]:
        """Rows of ``tasks`` that fit, newest first."""
        with self._turn:
            return _page([row for row in self._tables.tasks.values() if _task_fits(row, wanted)], wanted)

    def runs_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these runs, those that exist."""
        with self._turn:
            return {id: self._tables.runs[id] for id in ids if id in self._tables.runs}

    def tasks_by_id(self, ids: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows of these tasks, those that exist."""
        with self._turn:
            return {id: self._tables.tasks[id] for id in ids if id in self._tables.tasks}

    def tasks_by_key(self, keys: Sequence[str]) -> dict[str, Row]:
        """The newest task of each idempotency key, those that exist."""
        found: dict[str, Row] = {}
        with self._turn:
            for row in sorted(self._tables.tasks.values(), key=lambda row: (row[5], row[0])):
                if row[14] is not None and row[14] in keys:
                    found[row[14]] = row
        return found

    def runs_of(self, task_id: bytes) -> list[Row]:
        """All runs of a task, oldest first."""
        with self._turn:
            return [self._tables.runs[id] for id in sorted(self._tables.runs_by_task.get(task_id, ()))]

    def attempts_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """Rows of ``attempts`` of each of these runs, by number."""
        with self._turn:
            return {id: [row for _, row in sorted(self._tables.attempts.get(id, {}).items())] for id in run_ids}

    def ids_ending(self, suffix: str, kind: str) -> list[bytes]:
        """Ids of runs or tasks whose hex form ends so, at most 20."""
        digits = end_of_id(suffix)
        with self._turn:
            rows = self._tables.runs if kind == "runs" else self._tables.tasks
            found = [id for id in rows if id.hex().endswith(digits)]
        return sorted(found, reverse=True)[:SUFFIX_MATCHES_MAX]

    def steps_of(self, run_ids: Sequence[bytes]) -> dict[bytes, list[Row]]:
        """(run id, name, kind, at, body) of what each of these retry chains recorded, by instant and name."""
        with self._turn:
            steps = self._tables.steps
            return {id: sorted(steps.get(id, {}).values(), key=lambda row: (row[3], row[1])) for id in run_ids}

    def blobs(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Payloads by task id, results by run id; those that exist."""
        with self._turn:
            return {id: self._tables.blobs[id] for id in ids if id in self._tables.blobs}

    def reply(self, command_id: bytes) -> bytes | None:
        """The encoded reply to an inbox command."""
        with self._turn, suppress(KeyError):
            return self._tables.replies[command_id][0]
        return None

    def commits(self, after_seq: int) -> Iterator[Commit]:
        """The log's rows after a sequence, in order."""
        with self._turn:
            found = [commit for commit in self._tables.commits if commit.last_seq > after_seq]
        return iter(found)

    def anchor(self) -> Anchor | None:
        """Where the log begins, when it was pruned."""
        return self._tables.anchor

    def finished_before(self, at: int, limit: int, offset_count: int = 0) -> list[Row]:
        """Rows of ``tasks`` finished before an instant, the longest finished first, after passing over some."""
        with self._turn:
            found = [row for row in self._tables.tasks.values() if row[12] is not None and row[12] < at]
        return sorted(found, key=lambda row: (row[12], row[0]))[offset_count : offset_count + limit]

    def oldest(self, state: int) -> Row | None:
        """The row of the oldest run (by id) in that state."""
        with self._turn:
            return min((row for row in self._tables.runs.values() if row[4] == state), default=None)

    def refusals(self, limit: int, before: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """(command id, encoded reply) of inbox commands that were refused, newest first, those before an id."""
        with self._turn:
            found = [
                (id, body)
                for id, (body, _) in self._tables.replies.items()
                if body.startswith(REFUSAL_BEGINS) and (before is None or id < before)
            ]
        return sorted(found, reverse=True)[:limit]

    @contextmanager
    def scan(self) -> Generator[TablesScan]:
        """The whole store as of now."""
        with self._turn:
            tables = _scanned(self._tables)
        yield TablesScan(tables)

    def close(self) -> None:
        """Nothing to let go of."""


def _scanned(tables: _Tables) -> dict[str, list[Row]]:
    anchor = tables.anchor
    return {
        "meta": [sealed(("projected_seq", tables.projected_seq))],
        "facts": [sealed(item) for item in sorted(tables.facts.items())],
        "entries": [sealed((*names, body)) for names, body in sorted(tables.entries.items())],
        "tasks": [row for _, row in sorted(tables.tasks.items())],
        "runs": [row for _, row in sorted(tables.runs.items())],
        "attempts": [row for _, rows in sorted(tables.attempts.items()) for _, row in sorted(rows.items())],
        "run_tags": sorted(tables.tags),
        "steps": [sealed(row) for _, rows in sorted(tables.steps.items()) for _, row in sorted(rows.items())],
        "blobs": sorted(tables.blobs.items()),
        "replies": [sealed((id, *reply)) for id, reply in sorted(tables.replies.items())],
        "anchors": [] if anchor is None else [sealed((anchor.seq, anchor.hash, anchor.at))],
        "commits": [
            (*sealed((c.last_seq, c.first_seq, c.at, c.epoch, c.version, c.hash)), c.events) for c in tables.commits
        ],
    }


def _page(rows: list[Row], wanted: RunFilter) -> list[Row]:
    rows.sort(key=lambda row: row[0], reverse=True)
    return rows[: wanted.limit]


def _common_fits(row: Row, created_at: int, wanted: RunFilter) -> bool:
    return (
        (wanted.ids is None or row[0] in wanted.ids)
        and (wanted.cursor is None or row[0] < wanted.cursor)
        and (wanted.since is None or created_at >= wanted.since)
        and (wanted.until is None or created_at < wanted.until)
    )


def _task_fits(row: Row, wanted: RunFilter) -> bool:
    return (
        _common_fits(row, row[5], wanted)
        and (wanted.task is None or row[0] == wanted.task)
        and (wanted.handler is None or row[1] == wanted.handler)
        and (wanted.queue is None or row[2] == wanted.queue)
        and (wanted.key is None or row[14] == wanted.key)
    )


def _run_fits(tables: _Tables, row: Row, wanted: RunFilter) -> bool:
    return (
        _common_fits(row, row[9], wanted)
        and (wanted.states is None or row[4] in wanted.states)
        and (wanted.task is None or row[1] == wanted.task)
        and (wanted.handler is None or row[2] == wanted.handler)
        and (wanted.queue is None or row[3] == wanted.queue)
        and (wanted.error is None or row[25] == wanted.error)
        and (wanted.key is None or tables.tasks[row[1]][14] == wanted.key)
        and (wanted.tag is None or (wanted.tag, row[0]) in tables.tags)
        and (wanted.mark is None or (wanted.mark, row[0]) in tables.tags)
        and (wanted.text is None or _has_text(tables, row, wanted.text))
    )


def _has_text(tables: _Tables, row: Row, text: str) -> bool:
    if text in row[2] or (row[25] is not None and text in row[25]):
        return True
    errors = [each[9] for each in tables.attempts.get(row[0], {}).values() if each[9] is not None]
    return any(error_has(error, text) for error in errors)
