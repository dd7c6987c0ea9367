"""Live rows back into the state: what an opening begins with, before it replays the log's tail.

Knows: the bodies of stored rows, by field. Must not know: where rows come from. A run is made and walked to where it is
as any other one (``RunInstance``); a row that does not match its checksum, or lacks the row it belongs to, is damage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from zlib import crc32

from msgspec import MsgspecError, Struct, msgpack
from msgspec.structs import replace

from actionqueue.core import graph
from actionqueue.core.awaiting import Signal, Wait
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.limits import RATE, holds_keys
from actionqueue.core.reasons import WAITS, Where
from actionqueue.core.records import RECORDED
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms
from actionqueue.core.rows import Facts, Row, ScheduleBody, Standing, check_row, damaged, named
from actionqueue.core.run import RunState
from actionqueue.core.state import (
    AWAITING,
    FIRST_TERMINAL,
    NO_EXTRA,
    READY,
    RUNNING,
    STATES,
    Attempt,
    CancelMark,
    ErrorInfo,
    Lineage,
    Outcome,
    Run,
    Schedule,
    State,
    Task,
)
from actionqueue.core.submission import RareFields, extra_of, limited_lane, new_lane
from actionqueue.core.timers import is_ahead
from actionqueue.core.upcoming import OVERLAP, is_behind, let_come

_terms = msgpack.Decoder(AttemptTerms)
_error = msgpack.Decoder(ErrorInfo)
_cancel = msgpack.Decoder(CancelMark)
_schedule = msgpack.Decoder(ScheduleBody).decode
_rare = msgpack.Decoder(RareFields)
_wait = msgpack.Decoder(Wait).decode
_signal = msgpack.Decoder(Signal).decode


def load(facts: dict[str, bytes], tasks: Iterable[Row], runs: Iterable[Row], entries: Iterable[Row] = ()) -> State:
    """The state as of a projection, from its live rows, stored (in any order: each carries its place in its queue).

    Raises ``StoreDamaged`` for a row that does not match its checksum, and for one that is missing.
    """
    state = State()
    if "facts" not in facts:
        return state
    kept = msgpack.decode(facts["facts"], type=Facts)
    state.last_seq, state.last_at, state.next_order = kept.last_seq, kept.last_at, kept.next_order
    state.counts, state.tasks_total, state.pruned_before = kept.counts, kept.tasks_total, kept.pruned_before
    standing = msgpack.decode(facts["standing"], type=Standing) if "standing" in facts else Standing([], [], None)
    state.pauses = {(mark.scope, mark.name): mark for mark in standing.pauses}
    state.declarations = {each.handler: each for each in standing.declarations}
    state.epoch = standing.epoch
    state.occurrences_skipped, state.wall_shift = kept.occurrences_skipped, kept.wall_shift
    state.places.set_pauses(state.pauses)
    awaiting = state.places.awaiting
    waits = _load_entries(state, entries)
    for stored in tasks:
        _load_task(state, stored)
    found = [0] * FIRST_TERMINAL
    for stored in runs:
        _load_run(state, stored, waits)
        found[stored[4]] += 1
    awaiting.touched_waits.clear()
    for schedule in state.schedules.values():
        let_come(state, schedule)
    for task in state.tasks.values():
        if task.extra.depends is not None:
            _enter_graph(state, task)
    if found != state.counts[:FIRST_TERMINAL]:
        raise StoreDamaged(
            f"the store's tables should hold {sum(state.counts[:FIRST_TERMINAL])} live runs (by state "
            f"{state.counts[:FIRST_TERMINAL]}) and hold {sum(found)} ({found}): rows were lost on disk. "
            "Run `actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
            place="runs",
        )
    return state


def _load_entries(state: State, entries: Iterable[Row]) -> dict[bytes, Wait]:
    """What capabilities keep; the waits, by run, which their runs will enter."""
    waits: dict[bytes, Wait] = {}
    signals: list[Signal] = []
    for kind, key, packed in entries:
        if kind == "schedule":
            _load_schedule(state, _schedule(packed))
        elif kind == RATE:
            state.places.limits.restore(key, packed)
        elif kind == "wait":
            waits[bytes.fromhex(key)] = _wait(packed)
        elif kind == "signal":
            signals.append(_signal(packed))
        elif kind == RECORDED:
            state.recorded[bytes.fromhex(key)] = msgpack.decode(packed, type=int)
    for signal in sorted(signals, key=lambda each: each.order):
        state.places.awaiting.keep(signal)
    state.places.awaiting.touched_signals.clear()
    return waits


def _enter_graph(state: State, task: Task) -> None:
    graph.enter(state, task)
    if not any(run.where is Where.DEPENDENCY for run in task.live_runs()):
        state.unmet.pop(task.id, None)  # one of those it had waited for is live again


def _load_schedule(state: State, body: ScheduleBody) -> None:
    schedule = Schedule(**{name: getattr(body, name) for name in body.__struct_fields__})
    state.schedules[schedule.task_id] = schedule
    if schedule.is_named:
        state.schedule_names[schedule.name] = schedule


class TaskBody(Struct, array_like=True, gc=False):
    """The body of a stored task: the columns from ``priority`` on."""

    priority: int
    max_attempts: int
    created_at: int
    payload_digest: bytes
    payload_bytes: int
    run_count: int
    completed: int
    failed: int
    canceled: int
    finished_at: int | None
    canceled_at: int | None
    key: str | None
    rare: bytes | None


class RunBody(Struct, array_like=True, gc=False):
    """The body of a stored run: the columns from ``state`` on."""

    state: int
    reason: str
    priority: int
    effective_priority: int
    order: int
    created_at: int
    scheduled_at: int
    changed_at: int
    until: int
    started_at: int | None
    finished_at: int | None
    attempt_count: int
    failure_count: int
    lost_count: int
    lost_streak: int
    retry_of: bytes | None
    token: bytes | None
    asked_by: str | None
    cancel: bytes | None
    output_digest: bytes | None
    output_bytes: int | None
    error_kind: str | None
    progress: bytes | None
    latest: list[Any] | None


_task_body = msgpack.Decoder(TaskBody).decode
_run_body = msgpack.Decoder(RunBody).decode


def _load_task(state: State, stored: Row) -> None:
    id, handler, queue, created_at, finished_at, key, crc, packed = stored
    try:
        lane = state.places.lanes.get((queue, handler)) or new_lane(state, queue, handler)
        body = _task_body(packed)
        sound = crc32(packed, crc32(lane.named, crc32(id))) == crc
    except (MsgspecError, TypeError, ValueError) as error:
        raise damaged("tasks", id) from error
    if not sound or (body.created_at, body.finished_at, body.key) != (created_at, finished_at, key):
        raise damaged("tasks", id)
    extra = NO_EXTRA if body.rare is None else extra_of(_rare.decode(body.rare), body.canceled_at)
    schedule = state.schedules.get(id)
    if schedule is not None:
        extra = replace(extra, schedule=schedule)
        if is_behind(schedule):
            state.underived[id] = schedule
    if state.pauses or extra is not NO_EXTRA:
        lane = limited_lane(state, lane, extra.options, id)
    lane.tasks += 1
    state.tasks[id] = Task(
        id, lane, body.priority, body.max_attempts, created_at, body.payload_digest, body.payload_bytes, extra,
        body.run_count, (body.completed, body.failed, body.canceled),
    )  # fmt: skip
    if extra.key is not None and (extra.key_until is None or extra.key_until > state.last_at):
        state.keys[extra.key] = state.tasks[id]


def _load_run(state: State, stored: Row, waits: dict[bytes, Wait]) -> None:
    id, task_id, handler, queue, code, created_at, _, _, crc, packed = stored
    task = state.tasks.get(task_id)
    try:
        body = _run_body(packed)
        sound = crc32(packed, crc32(named(handler, queue), crc32(task_id, crc32(id)))) == crc
    except (MsgspecError, TypeError, ValueError) as error:
        raise damaged("runs", id) from error
    agree = body.state == code and body.created_at == created_at and body.finished_at == stored[6]
    if not sound or not agree or body.error_kind != stored[7]:
        raise damaged("runs", id)
    wait = waits.get(id)
    if task is None or (code == RUNNING and body.latest is None) or (code == AWAITING and wait is None):
        missing = "task" if task is None else "attempt" if code == RUNNING else "wait"
        raise StoreDamaged(
            f"run {id.hex()} is live and its {missing} is missing: rows were lost on "
            "disk. Run `actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
            place=f"runs {id.hex()}",
        )
    run = _run_of(id, task_id, code, body)
    run.task, run.order, run.until, run.priority, run.reason = task, body.order, body.until, body.priority, body.reason
    if body.token is not None:
        run.lineage = Lineage(body.retry_of, body.token, body.asked_by or "")
    if body.cancel is not None:
        run.cancel = _cancel.decode(body.cancel)
    task.link(run)
    state.runs[id] = run
    _place(state, run, code, wait)


def _run_of(id: bytes, task_id: bytes, code: int, body: RunBody) -> Run:
    """The run, walked to its state, with its attempts."""
    if code == READY and body.scheduled_at <= body.created_at:
        run = Run.new_ready_with_id(id, task_id, body.scheduled_at, body.created_at, body.effective_priority)
    else:
        run = Run.new_scheduled_with_id(id, task_id, body.scheduled_at, body.created_at)
        for step in _WALK[code]:
            if step is RunState.READY:
                run.promote_to_ready_with_priority(body.effective_priority)
            else:
                run.transition_to(step)
    run.record_state_change_at(body.changed_at)
    if body.latest is None:
        return run
    run.latest = latest = _attempt_of(tuple(body.latest))
    if code == RUNNING:
        run.attempt = latest
        if body.progress is not None:
            latest.progress = msgpack.decode(body.progress, type=tuple[int, int | None, str])
    run.restore_attempt_state_for_bootstrap(body.attempt_count, None if run.attempt is None else latest.id)
    run.failure_count, run.lost_count, run.lost_streak = body.failure_count, body.lost_count, body.lost_streak
    run.started_at, run.error_kind = body.started_at, body.error_kind
    return run


def _place(state: State, run: Run, code: int, wait: Wait | None) -> None:
    places = state.places
    if run.task.lane.keys and holds_keys(run):
        places.hold_keys(run)
    if code == RUNNING:
        places.enter_running(run)
    elif run.reason == WAITS and run.task.extra.depends is not None:
        places.enter_dependency(run)
    elif code == READY:
        places.enter_lane(run)
    elif wait is not None and code == AWAITING:
        places.awaiting.enter(run, wait)
    elif run.reason == OVERLAP and run.state is RunState.SCHEDULED and run.task.extra.schedule is not None:
        places.enter_overlap(run)
    else:
        places.enter_timer(run, run.until)
    if run.attempt_count == 0 and run.task.extra is not NO_EXTRA and not is_ahead(run):
        places.timers.watch_deadline(run)


def attempt_from(row: Row) -> Attempt:
    """An attempt from its row; raises ``StoreDamaged``."""
    check_row(row, "attempts")
    return _attempt_of(row[1:-1])


def _attempt_of(values: Row) -> Attempt:
    number, id, fence, ready_at, started_at, finished_at, outcome, reason, error, retry_at, abandoned, terms = values
    return Attempt(
        id, number, fence, ready_at, started_at, DEFAULT_TERMS if terms is None else _terms.decode(terms), finished_at,
        None if outcome is None else Outcome(outcome), reason, None if error is None else _error.decode(error), retry_at,
        bool(abandoned),
    )  # fmt: skip


def _walk_to(state: RunState) -> tuple[RunState, ...]:
    """The steps from Scheduled to a live state, along edges of the table."""
    ready, leased, running = RunState.READY, RunState.LEASED, RunState.RUNNING
    return {
        RunState.SCHEDULED: (),
        RunState.READY: (ready,),
        RunState.LEASED: (ready, leased),
        RunState.RUNNING: (ready, leased, running),
    }.get(state, (ready, leased, running, state))


_WALK = tuple(_walk_to(state) for state in STATES)
