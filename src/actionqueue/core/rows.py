"""The state as rows: what a projection writes, and how live rows become the state again.

A task or a run has two forms. *Stored*, as the engine writes it: the few columns that look-ups and listings search by,
the checksum, and a ``body`` with everything (msgpack). *Opened*, as readers hand it out: all columns as one tuple, the
checksum last. Packing once and binding few values is what lets a projection keep up with the log. A run's body holds its
latest attempt; the ones before it are rows of ``attempts``. Column orders are literal and shared with the store's schema
(a test compares). Enums and structs are codes and bytes here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from zlib import crc32

from msgspec import MsgspecError, Struct, msgpack

from actionqueue.core.batches import batch_mark
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.retry import DEFAULT_TERMS
from actionqueue.core.rules import Rule
from actionqueue.core.state import (
    CODE_OF,
    FIRST_TERMINAL,
    NO_EXTRA,
    READY,
    Attempt,
    Backfill,
    Declaration,
    Epoch,
    PauseMark,
    Run,
    Schedule,
    Skip,
    State,
    Task,
    TaskExtra,
)
from actionqueue.core.submission import RareFields, rare_of

Row = tuple[Any, ...]

TASK_COLUMNS = (
    "id", "handler", "queue", "priority", "max_attempts", "created_at", "payload_digest", "payload_bytes",
    "run_count", "completed", "failed", "canceled", "finished_at", "canceled_at", "idempotency_key", "rare", "crc",
)  # fmt: skip
"""An opened task."""
RUN_COLUMNS = (
    "id", "task_id", "handler", "queue", "state", "reason", "priority", "effective_priority", "ready_order",
    "created_at", "scheduled_at", "changed_at", "until", "started_at", "finished_at", "attempt_count", "failure_count",
    "lost_count", "lost_streak", "retry_of", "token", "asked_by", "cancel", "output_digest", "output_bytes",
    "error_kind", "progress", "latest", "crc",
)  # fmt: skip
"""An opened run; ``latest`` are the columns of its latest attempt after ``run_id``, without the checksum."""
STORED_TASK_COLUMNS = ("id", "handler", "queue", "created_at", "finished_at", "idempotency_key", "crc", "body")
STORED_RUN_COLUMNS = (
    "id", "task_id", "handler", "queue", "state", "created_at", "finished_at", "error_kind", "crc", "body",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "run_id", "number", "id", "fence", "ready_at", "started_at", "finished_at", "outcome", "reason", "error", "retry_at",
    "abandoned", "terms", "crc",
)  # fmt: skip
TAG_COLUMNS = ("tag", "run_id")
ENTRY_COLUMNS = ("kind", "key", "body", "crc")
STEP_COLUMNS = ("run_id", "name", "kind", "at", "body", "crc")
"""What a retry chain has recorded, under the id of its first run (the token)."""
ENDED_ENTRIES = "schedule_ended"
"""The kind of entries that tell of schedules that are over; they go when their tasks are pruned."""

_pack = msgpack.Encoder().encode


class Projection(Struct):
    """Stored rows of everything touched up to ``seq``, exact as of it. ``facts`` are named single values, as bytes.

    ``attempts`` are those that are not a run's latest any more.
    """

    seq: int
    tasks: list[Row]
    runs: list[Row]
    attempts: list[Row]
    tags: list[Row]
    facts: dict[str, bytes]
    entries: list[Row] = []
    """Rows of what capabilities keep beside tasks and runs; a body of None takes the row away."""


class Facts(Struct, array_like=True):
    """The part of the state that is no row of its own."""

    last_seq: int
    last_at: int
    next_order: int
    counts: list[int]
    tasks_total: int
    pruned_before: int
    blocked: int = 0
    occurrences_skipped: int = 0
    wall_shift: int = 0


class Standing(Struct, array_like=True):
    """The rarely changing part: pauses, declarations, the epoch."""

    pauses: list[PauseMark]
    declarations: list[Declaration]
    epoch: Epoch | None


def sealed(values: Row) -> Row:
    """The row with its checksum."""
    return (*values, crc32(_pack(values)))


def check_row(row: Row, table: str) -> None:
    """Raise ``StoreDamaged`` unless the (opened) row's checksum is right."""
    if table == "tasks":
        check_task(row)
    elif table == "runs":
        check_run(row)
    elif crc32(_pack(row[:-1])) != row[-1]:
        raise damaged(table, row[0])


def damaged(table: str, key: object) -> StoreDamaged:
    """The error about that row."""
    named = key.hex() if isinstance(key, bytes) else key
    return StoreDamaged(
        f"a row of {table} ({named}) does not match its checksum: bytes of the store changed on disk. "
        "Run `actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
        place=f"{table} {named}",
    )


def _crc(body: bytes, *texts: bytes) -> int:
    crc = 0
    for text in texts:
        crc = crc32(text, crc)
    return crc32(body, crc)


@lru_cache(maxsize=1024)
def named(handler: str, queue: str) -> bytes:
    """Handler and queue as the checksums of rows cover them."""
    return f"{handler}\0{queue}".encode()


def task_row(task: Task) -> Row:
    """A task, stored."""
    extra, lane = task.extra, task.lane
    completed, failed, canceled = task.ended
    plain = extra is NO_EXTRA
    key = None if plain else extra.key
    body = _pack((
        task.priority, task.max_attempts, task.created_at, task.payload_digest, task.payload_bytes, task.run_count,
        completed, failed, canceled, task.finished_at, None if plain else extra.canceled_at, key,
        None if plain else _pack(rare_of(extra)),
    ))  # fmt: skip
    handler, queue = lane.handler, lane.queue.name
    return (
        task.id, handler, queue, task.created_at, task.finished_at, key,
        crc32(body, crc32(lane.named, crc32(task.id))), body,
    )  # fmt: skip


def run_row(run: Run) -> Row:
    """A run, stored."""
    lane, lineage, output, latest, code = run.task.lane, run.lineage, run.output, run.latest, CODE_OF[run.state]
    changed_at = run.last_state_change_at
    finished_at = changed_at if code >= FIRST_TERMINAL else None
    retry_of = token = asked_by = digest = bytes_count = progress = None
    if lineage is not None:
        retry_of, token, asked_by = lineage.retry_of, lineage.token, lineage.by
    if output is not None:
        digest, bytes_count = output.digest, output.bytes_count
    if run.attempt is not None and run.attempt.progress is not None:
        progress = _pack(run.attempt.progress)
    run_id, task_id, created_at, error_kind = run.id_bytes, run.task_id_bytes, run.created_at, run.error_kind
    body = _pack((
        code, run.reason, run.priority, run.effective_priority, run.order, created_at, run.scheduled_at, changed_at,
        run.until, run.started_at, finished_at, run.attempt_count, run.failure_count, run.lost_count, run.lost_streak,
        retry_of, token, asked_by, None if run.cancel is None else _pack(run.cancel), digest, bytes_count, error_kind,
        progress, None if latest is None else _attempt_values(latest),
    ))  # fmt: skip
    return (
        run_id, task_id, lane.handler, lane.queue.name, code, created_at, finished_at, error_kind,
        crc32(body, crc32(lane.named, crc32(task_id, crc32(run_id)))), body,
    )  # fmt: skip


def _attempt_values(attempt: Attempt) -> Row:
    outcome = attempt.outcome
    return (
        attempt.number, attempt.id, attempt.fence, attempt.ready_at, attempt.started_at, attempt.finished_at,
        None if outcome is None else outcome.value, attempt.reason,
        None if attempt.error is None else _pack(attempt.error), attempt.retry_at, 1 if attempt.abandoned else 0,
        None if attempt.terms is DEFAULT_TERMS else _pack(attempt.terms),
    )  # fmt: skip


def attempt_row(run_id: bytes, attempt: Attempt) -> Row:
    """An attempt as a row of ``attempts``."""
    return sealed((run_id, *_attempt_values(attempt)))


# --- stored and opened ------------------------------------------------------------------------------------------

_NO_TASK = (None,) * (len(TASK_COLUMNS) - 4)
_NO_RUN = (None,) * (len(RUN_COLUMNS) - 5)


def open_task(stored: Row) -> Row:
    """All columns of a stored task; raises ``StoreDamaged`` when it does not match its checksum."""
    id, handler, queue, created_at, finished_at, key, crc, body = stored
    try:
        if crc32(body, crc32(named(handler, queue), crc32(id))) == crc:
            values = msgpack.decode(body)
            if values[2] == created_at and values[9] == finished_at and values[11] == key:
                return (id, handler, queue, *values, crc)
    except (MsgspecError, TypeError, ValueError, LookupError):
        pass
    raise damaged("tasks", id)


def open_run(stored: Row) -> Row:
    """All columns of a stored run; raises ``StoreDamaged`` when it does not match its checksum."""
    id, task_id, handler, queue, state, created_at, finished_at, error_kind, crc, body = stored
    try:
        if crc32(body, crc32(named(handler, queue), crc32(task_id, crc32(id)))) == crc:
            values = msgpack.decode(body)
            agree = values[0] == state and values[5] == created_at and values[10] == finished_at
            if agree and values[21] == error_kind:
                return (id, task_id, handler, queue, *values, crc)
    except (MsgspecError, TypeError, ValueError, LookupError):
        pass
    raise damaged("runs", id)


def opened_task(stored: Row) -> Row:
    """All columns of a stored task, unchecked; those of a body that cannot be read are None."""
    id, handler, queue, created_at, finished_at, key, crc, body = stored
    values = _unpacked(body, len(_NO_TASK))
    if values is None:
        return (id, handler, queue, *_NO_TASK, -1)
    agree = values[2] == created_at and values[9] == finished_at and values[11] == key
    return (id, handler, queue, *values, crc if agree else -1)


def opened_run(stored: Row) -> Row:
    """All columns of a stored run, unchecked; those of a body that cannot be read are None."""
    id, task_id, handler, queue, state, created_at, finished_at, error_kind, crc, body = stored
    values = _unpacked(body, len(_NO_RUN))
    if values is None:
        return (id, task_id, handler, queue, *_NO_RUN, -1)
    agree = values[0] == state and values[5] == created_at and values[10] == finished_at and values[21] == error_kind
    return (id, task_id, handler, queue, *values, crc if agree else -1)


def _unpacked(body: Any, width: int) -> list[Any] | None:
    try:
        values = msgpack.decode(body)  # a damaged store may hold anything
    except (MsgspecError, TypeError, ValueError):
        return None
    return values if isinstance(values, list) and len(values) == width else None


def stored_task(row: Row) -> Row:
    """An opened task, stored again."""
    return (row[0], row[1], row[2], row[5], row[12], row[14], row[16], _pack(row[3:16]))


def stored_run(row: Row) -> Row:
    """An opened run, stored again."""
    return (*row[:5], row[9], row[14], row[25], row[28], _pack(row[4:28]))


def latest_attempt_row(run: Row) -> Row | None:
    """The latest attempt of an opened run as a row of ``attempts``."""
    return None if run[27] is None else sealed((run[0], *run[27]))


def check_task(row: Row) -> Row:
    """The opened task, if its checksum is right; else ``StoreDamaged``."""
    _check(row, "tasks", _pack(row[3:16]), row[0], named(row[1], row[2]))
    return row


def check_run(row: Row) -> Row:
    """The opened run, if its checksum is right; else ``StoreDamaged``."""
    _check(row, "runs", _pack(row[4:28]), row[0], row[1], named(row[2], row[3]))
    return row


def _check(row: Row, table: str, body: bytes, *texts: bytes) -> None:
    if not _is_right(row[-1], body, texts):
        raise damaged(table, row[0])


def _is_right(crc: object, body: bytes, texts: tuple[bytes, ...]) -> bool:
    try:
        return _crc(body, *texts) == crc
    except TypeError:
        return False


def project(state: State) -> Projection:
    """Rows of everything touched since the last call, which is forgotten as touched; ended runs leave memory with it."""
    runs: list[Row] = []
    attempts: list[Row] = []
    tags: list[Row] = []
    for run_id, run in state.dirty_runs.items():
        runs.append(run_row(run))
        if run.older:
            attempts += [attempt_row(run_id, attempt) for attempt in run.older]
            run.older = None
        if run.task.extra is not NO_EXTRA:
            tags += [(tag, run_id) for tag in tags_of(run.task.extra)]
    tasks = [task_row(task) for task in state.dirty_tasks.values()]
    state.dirty_runs.clear()
    state.dirty_tasks.clear()
    state.fallen.clear()
    state.places.trim(len(state.runs))
    facts = {"facts": _pack(facts_of(state))}
    if state.dirty_facts:
        facts["standing"] = _pack(standing_of(state))
        state.dirty_facts = False
    for task_id, schedule in state.dirty_schedules.items():
        stands = task_id in state.schedules
        key, body = task_id.hex(), _pack(schedule_body(schedule))
        state.dirty_entries["schedule", key] = body if stands else None
        if not stands:
            state.dirty_entries[ENDED_ENTRIES, key] = body
    state.dirty_schedules.clear()
    state.places.limits.forget_passed(state.last_at, state.dirty_entries)
    _note_waits(state)
    state.records.clear()  # whoever commits what was applied has taken them; on replay they are there already
    state.forgotten.clear()
    entries = [(kind, key, body) for (kind, key), body in state.dirty_entries.items()]
    state.dirty_entries.clear()
    return Projection(state.last_seq, tasks, runs, attempts, tags, facts, entries)


def _note_waits(state: State) -> None:
    """The entries of waits and signals that have changed."""
    awaiting = state.places.awaiting
    for run_id in awaiting.touched_waits:
        wait = awaiting.waits.get(run_id)
        state.dirty_entries["wait", run_id.hex()] = None if wait is None else _pack(wait)
    for id in awaiting.touched_signals:
        signal = awaiting.signals.get(id)
        state.dirty_entries["signal", id] = None if signal is None else _pack(signal)
    awaiting.touched_waits.clear()
    awaiting.touched_signals.clear()


def tags_of(task: TaskExtra | RareFields) -> Iterator[str]:
    """What the runs of a task are found by: its tags, and marks for what it depends on."""
    yield from task.options.tags
    if task.depends is not None:
        for upstream in task.depends.on:
            yield after_mark(upstream)
    if task.batch:
        yield batch_mark(task.batch)


def after_mark(upstream: bytes) -> str:
    """The mark of runs whose task depends on that one. No tag of a user's begins so."""
    return f"\x01after:{upstream.hex()}"


class ScheduleBody(Struct, array_like=True):
    """A schedule as the body of its entry."""

    task_id: bytes
    handler: str
    name: str
    origin: str
    rule: Rule
    base: int
    content: bytes
    index: int
    cursor: int
    pending: bytes | None
    over: bool
    skipped: dict[str, int]
    last_skip: Skip | None
    requested: int
    backfills: list[Backfill]
    retired_at: int | None
    retired_by: str


def schedule_body(schedule: Schedule) -> ScheduleBody:
    """A schedule, to be stored."""
    return ScheduleBody(**{name: getattr(schedule, name) for name in ScheduleBody.__struct_fields__})


def facts_of(state: State) -> Facts:
    """The state's single values."""
    return Facts(
        state.last_seq, state.last_at, state.next_order, list(state.counts), state.tasks_total, state.pruned_before,
        state.places.blocked_count(state.counts[READY]), state.occurrences_skipped, state.wall_shift,
    )  # fmt: skip


def standing_of(state: State) -> Standing:
    """The state's rarely changing part."""
    return Standing(list(state.pauses.values()), list(state.declarations.values()), state.epoch)
