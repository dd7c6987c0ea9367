"""Judging the tables: checksums, digests of payloads and results, the accounts of tasks and runs, and replay equality.

Knows: what the rows mean to one another. Must not know: how the log is read (``verify_log``).

Each table is walked in the order of its key, beside whatever belongs to its rows: attempts beside runs, runs beside
tasks, digests of replayed rows beside all three, payloads and results beside their owners. Nothing is held but a row of
each; a row that does not match its checksum is named, and nothing more is concluded from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from msgspec import Struct, field, msgpack

from actionqueue.core.rows import ATTEMPT_COLUMNS, RUN_COLUMNS, TASK_COLUMNS, Row, tags_of
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, FIRST_TERMINAL, RUNNING, STATES, Outcome
from actionqueue.core.submission import RareFields
from actionqueue.store.codec import digest
from actionqueue.store.scan import Scan
from actionqueue.verify_log import (
    EXPECTED_ROWS_KEPT_MAX,
    LogFacts,
    Problems,
    Replay,
    attempt_key,
    digest_of,
    has_ended,
    is_sealed,
)

MISSING_NAMED_MAX = 20
COLUMNS = {"tasks": TASK_COLUMNS, "runs": RUN_COLUMNS, "attempts": ATTEMPT_COLUMNS}

_rare = msgpack.Decoder(RareFields)
_COUNTED = (Outcome.FAILED.value, Outcome.TIMED_OUT.value)
_UNSEALED = "its row does not match its checksum"


def named(id: object) -> str:
    """An id as people know it, also where it is none any more."""
    return str(UUID(bytes=id)) if isinstance(id, bytes) and len(id) == 16 else repr(id)


class Ordered:
    """An ordered stream that is walked beside another one: ``take`` moves up to a key.

    ``passed_over`` is called with every item whose key nobody took. Items are tuples whose first element is the key.

    >>> lost = []
    >>> stream = Ordered(iter([(b"a", 1), (b"b", 2), (b"d", 4)]), lost.append)
    >>> stream.take(b"b"), stream.take(b"c"), stream.finish()
    ((b'b', 2), None, None)
    >>> lost
    [(b'a', 1), (b'd', 4)]
    """

    __slots__ = ("_item", "_items", "_passed_over")

    def __init__(self, items: Iterator[Row], passed_over: Callable[[Row], object]) -> None:
        self._items = items
        self._passed_over = passed_over
        self._item = next(items, None)

    def take(self, key: Any) -> Row | None:
        """The item of that key, or None; keys must be asked for in ascending order."""
        item = self._item
        while item is not None and item[0] < key:
            self._passed_over(item)
            item = next(self._items, None)
        if item is not None and item[0] == key:
            self._item = next(self._items, None)
            return item
        self._item = item
        return None

    def take_all(self, key: Any) -> list[Row]:
        """All items of that key, where several may have it."""
        found = []
        while (item := self.take(key)) is not None:
            found.append(item)
        return found

    def finish(self) -> None:
        """Pass over the rest."""
        while self._item is not None:
            self._passed_over(self._item)
            self._item = next(self._items, None)


class Tally(Struct):
    """Rows counted on the way."""

    tasks: int = 0
    runs: int = 0
    attempts: int = 0
    blobs: int = 0
    steps: int = 0
    by_state: Counter[int] = field(default_factory=Counter)


# --- replay equality --------------------------------------------------------------------------------------------


class Expected:
    """The rows that replay made of one table, walked beside the table's own. Does nothing when there was no replay."""

    def __init__(self, table: str, scan: Scan, replay: Replay | None, log: LogFacts, found: Problems) -> None:
        self.differing: dict[tuple[str, bytes], Row] = {}
        self._table = table
        self._scan = scan
        self._replay = replay
        self._log = log
        self._found = found
        self._missing: list[bytes] = []
        self._gone = [0, 0, 0, 0]
        self._stream = None if replay is None else Ordered(replay.scratch.items(table), self._passed_over)

    def compare(self, key: bytes, row: Row, since: int | None) -> None:
        """``since`` is the instant from which on a partial replay knows all tasks."""
        if self._stream is None or self._replay is None:
            return
        item = self._stream.take(key)
        if item is None:
            if not self._replay.partial or self._should_be_known(row, since):
                self._found.add("replay", self._place(key), "the log does not lead to this row")
        elif item[1] != digest_of(self._table, row, partial=self._replay.partial):
            if len(self.differing) < EXPECTED_ROWS_KEPT_MAX:
                self.differing[self._table, key] = row
            else:
                self._found.add("replay", self._place(key), "its row differs from what the log leads to")

    def _should_be_known(self, row: Row, since: int | None) -> bool:
        assert self._replay is not None
        match self._table:
            case "tasks":
                is_later = since is not None and isinstance(row[5], int) and row[5] > since
                return is_later and row[0] not in self._replay.beyond
            case "runs":
                return self._replay.scratch.has("tasks", row[1])
            case _:
                return self._replay.scratch.has("runs", row[0])

    def _passed_over(self, item: Row) -> None:
        """A row that should be there is not: pruned, or lost?"""
        key, note = item[0], item[2]
        match self._table:
            case "tasks":
                assert self._replay is not None
                self._gone[0] += 1
                lost = key in self._replay.machine.state.tasks
            case "runs":
                lost = not has_ended(note) or self._has_task(note[:16])
                if not lost:
                    self._gone[note[16] - FIRST_TERMINAL + 1] += 1
            case _:
                lost = self._scan.has("runs", key[:16])
        if lost:
            self._found.add("replay", self._place(key), "the log leads to this row, and it is missing")
        elif len(self._missing) < MISSING_NAMED_MAX:
            self._missing.append(key)

    def _has_task(self, task_id: bytes) -> bool:
        """Whether the task is there, and no other one has its id."""
        assert self._replay is not None
        return task_id not in self._replay.chosen_again and self._scan.has("tasks", task_id)

    def _place(self, key: bytes) -> str:
        if self._table == "attempts":
            return f"attempts {named(key[:16])} {int.from_bytes(key[16:], 'big')}"
        return f"{self._table} {named(key)}"

    def finish(self) -> None:
        """Nothing more comes: was all that is missing pruned?"""
        if self._stream is None:
            return
        self._stream.finish()
        if all(gone <= pruned for gone, pruned in zip(self._gone, self._log.pruned, strict=True)):
            return
        if not any(self._log.pruned):
            for key in self._missing:
                self._found.add("replay", self._place(key), "the log leads to this row, and it is missing")
        else:
            self._found.add(
                "replay",
                self._table,
                f"{sum(self._gone)} rows are missing; the log says that {self._log.pruned[0]} tasks were pruned, with "
                f"{self._log.pruned[1:]} runs completed, failed and canceled",
            )


def explain_differences(differing: dict[tuple[str, bytes], Row], replay: Replay, found: Problems) -> None:
    """Say in which columns rows differ; ``replay`` has gone over the log once more and kept the expected ones."""
    for (table, key), row in differing.items():
        expected = replay.rows.get((table, key))
        place = f"{table} {named(key[:16])}" + (f" {row[1]}" if table == "attempts" else "")
        if expected is None:
            found.add("replay", place, "its row differs from what the log leads to")
            continue
        parts = [
            f"{column} is {_shown(table, column, mine)}, the log leads to {_shown(table, column, theirs)}"
            for column, mine, theirs in zip(COLUMNS[table], row, expected, strict=True)
            if mine != theirs and column != "crc" and not (replay.partial and column == "ready_order")
        ]
        found.add("replay", place, "; ".join(parts) or "its row differs from what the log leads to")


def _shown(table: str, column: str, value: Any) -> str:
    if column == "state" and value in range(len(STATES)):
        return STATES[value].value
    if column == "outcome" and table == "attempts" and value in range(1, len(Outcome) + 1):
        return Outcome(value).name.lower()
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 16 else f"{value[:16].hex()}…"
    return repr(value)


# --- tasks ------------------------------------------------------------------------------------------------------

_RUN_ACCOUNT = ("task_id", "id", "state", "handler", "queue", "failure_count", "retry_of", "token")


def check_tasks(scan: Scan, expected: Expected, since: int | None, tally: Tally, found: Problems) -> int:
    """Each task's row, and its accounts against the rows of its runs. Returns how many tags there should be."""
    tags = 0

    def orphan(run: Row) -> None:
        found.add("accounting", f"runs {named(run[1])}", f"its task {named(run[0])} is missing")

    runs = Ordered(scan.runs_by_task(_RUN_ACCOUNT), orphan)
    for row in scan.rows("tasks"):
        tally.tasks += 1
        mine = runs.take_all(row[0])
        place = f"tasks {named(row[0])}"
        if not is_sealed(row):
            found.add("checksum", place, _UNSEALED)
            expected.compare(row[0], row, since)
            continue
        expected.compare(row[0], row, since)
        if all(run[2] is not None for run in mine):  # else a row of them is unreadable, which is said of it
            for problem in _task_account(row, mine):
                found.add("accounting", place, problem)
        if row[15] is not None:
            tags += _check_tags(scan, row, mine, place, found)
    runs.finish()
    expected.finish()
    return tags


def has_schedule(rare: bytes) -> bool:
    """Whether a task has a schedule: between two of its runs it has none that is open."""
    return msgpack.decode(rare, type=RareFields).rule is not None


def _task_account(row: Row, runs: list[Row]) -> Iterator[str]:
    handler, queue, max_attempts = row[1], row[2], row[4]
    run_count, completed, failed, canceled, finished_at = row[8:13]
    states = Counter(run[2] for run in runs)
    if len(runs) != run_count:
        yield f"it counts {run_count} runs, and has {len(runs)}"
    for code, count in ((COMPLETED, completed), (FAILED, failed), (CANCELED, canceled)):
        if states[code] != count:
            yield f"it counts {count} runs {STATES[code].value}, and has {states[code]}"
    open_count = run_count - completed - failed - canceled
    may_rest = open_count == 0 and finished_at is None and row[15] is not None and has_schedule(row[15])
    if open_count < 0 or ((finished_at is None) != (open_count > 0) and not may_rest):
        yield f"it has {open_count} open runs and {'no' if finished_at is None else 'an'} instant of finishing"
    chains = Counter(run[7] or run[1] for run in runs if run[2] == COMPLETED)
    for token, count in chains.items():
        if count > 1:
            yield f"its run {named(token)} was completed {count} times, counting retries"
    by_id = {run[1]: run for run in runs}
    for run in runs:
        if (run[3], run[4]) != (handler, queue):
            yield f"its run {named(run[1])} has another handler or queue"
        if run[5] > max_attempts:
            yield f"its run {named(run[1])} has {run[5]} counted failures of at most {max_attempts}"
        if run[6] is not None and (run[6] not in by_id or by_id[run[6]][2] not in (FAILED, CANCELED)):
            yield f"its run {named(run[1])} retries {named(run[6])}, which is no failed or canceled run of it"


def _check_tags(scan: Scan, row: Row, runs: list[Row], place: str, found: Problems) -> int:
    """The tags of its runs are those it was submitted with; returns how many rows that is."""
    try:
        tags = sorted(set(tags_of(_rare.decode(row[15]))))
    except Exception as error:
        found.add("structure", place, f"its rare fields cannot be decoded ({error})")
        return 0
    if tags:
        for run_id, has in scan.tags_of([run[1] for run in runs]).items():
            if sorted(has) != tags:
                found.add("accounting", f"run_tags {named(run_id)}", f"it has the tags {sorted(has)}, its task {tags}")
    return len(tags) * len(runs)


# --- runs and attempts ------------------------------------------------------------------------------------------


def check_runs(scan: Scan, runs: Expected, attempts: Expected, tally: Tally, found: Problems) -> None:
    """Each run's row and those of its attempts, and the run's accounts against them."""

    def orphan(attempt: Row) -> None:
        found.add("accounting", f"attempts {named(attempt[0])} {attempt[1]}", "its run is missing")
        judge_attempt(attempt)

    def judge_attempt(attempt: Row) -> bool:
        tally.attempts += 1
        sealed = is_sealed(attempt)
        if not sealed:
            found.add("checksum", f"attempts {named(attempt[0])} {attempt[1]}", _UNSEALED)
        attempts.compare(attempt_key(attempt), attempt, None)
        return sealed

    tried = Ordered(scan.rows("attempts"), orphan)
    for row in scan.rows("runs"):
        tally.runs += 1
        mine = tried.take_all(row[0])
        unsealed = [each for each in mine if not judge_attempt(each)]
        place = f"runs {named(row[0])}"
        runs.compare(row[0], row, None)
        if not is_sealed(row):
            found.add("checksum", place, _UNSEALED)
            continue
        tally.by_state[row[4]] += 1
        if not unsealed:
            for problem in _run_account(row, mine):
                found.add("accounting", place, problem)
    tried.finish()
    runs.finish()
    attempts.finish()


def _run_account(row: Row, attempts: list[Row]) -> Iterator[str]:
    state, finished_at, attempt_count, failure_count, lost_count = row[4], row[14], *row[15:18]
    if not 0 <= state < len(STATES):
        yield f"it is in state {state}, which does not exist"
        return
    if len(attempts) != attempt_count or [each[1] for each in attempts] != list(range(1, attempt_count + 1)):
        yield f"it counts {attempt_count} attempts, and has {len(attempts)}: {[each[1] for each in attempts][:10]}"
    outcomes = [each[7] for each in attempts]
    open_attempts = outcomes.count(None)
    if open_attempts != (state == RUNNING) or (open_attempts and outcomes[-1] is not None):
        yield f"it is {STATES[state].value} and has {open_attempts} open attempts"
    failures = sum(outcome in _COUNTED for outcome in outcomes)
    if failures != failure_count:
        yield f"it counts {failure_count} failures, and its attempts {failures}"
    if outcomes.count(Outcome.LOST.value) != lost_count:
        yield f"it counts {lost_count} losses, and its attempts {outcomes.count(Outcome.LOST.value)}"
    completions = outcomes.count(Outcome.COMPLETED.value)
    if completions != (state == COMPLETED):
        yield f"it is {STATES[state].value} and {completions} of its attempts completed"
    if (finished_at is not None) != (state >= FIRST_TERMINAL):
        yield f"it is {STATES[state].value} and has {'no' if finished_at is None else 'an'} instant of finishing"


# --- payloads and results ---------------------------------------------------------------------------------------


def check_blobs(scan: Scan, tail: dict[bytes, tuple[bytes, int]], tally: Tally, found: Problems) -> None:
    """Each payload and result against the digest in the row it belongs to.

    ``tail`` has the digests and sizes of those whose row is not yet there, or not yet as far.
    """

    def without_payload(task: Row) -> None:
        found.add("digest", f"tasks {named(task[0])}", "its payload is missing")

    def without_result(run: Row) -> None:
        if run[1] is not None:
            found.add("digest", f"runs {named(run[0])}", "its result is missing")

    tasks = Ordered(scan.rows("tasks", ("id", "payload_digest", "payload_bytes")), without_payload)
    runs = Ordered(scan.rows("runs", ("id", "output_digest", "output_bytes", "state")), without_result)
    for id, body in scan.rows("blobs"):
        tally.blobs += 1
        owner, what = tasks.take(id), "payload of task"
        if owner is None:
            owner, what = runs.take(id), "result of run"
        if owner is not None and owner[-1] is None:
            continue  # its row is unreadable, which is said of it
        noted: tuple[bytes, int] | None = None
        if owner is not None and owner[1] is not None:
            noted = owner[1], owner[2]
        elif id in tail:
            noted = tail.pop(id)
            what = "payload or result" if owner is None else what
        if noted is None:
            found.add("accounting", f"blobs {named(id)}", "it belongs to no task and to no run with a result")
        elif not isinstance(body, bytes) or (digest(body), len(body)) != noted:
            found.add("digest", f"blobs {named(id)}", f"the {what} {named(id)} does not match its digest")
    tasks.finish()
    runs.finish()
    for id in tail:
        found.add("digest", f"blobs {named(id)}", "the payload or result is missing")
