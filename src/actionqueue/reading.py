"""Questions asked of a reader, answered with records."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct, msgpack

from actionqueue.core.awaiting import SIGNAL, SLEEP
from actionqueue.core.errors import UnknownRun
from actionqueue.core.ids import RunId
from actionqueue.core.instants import to_datetime
from actionqueue.core.rows import ENDED_ENTRIES, Facts, ScheduleBody, Standing
from actionqueue.core.run import RunState
from actionqueue.core.state import READY, STATES, Declaration
from actionqueue.core.waits import wait_record
from actionqueue.records import (
    AttemptRecord,
    Page,
    Refusal,
    RunRecord,
    ScheduleRecord,
    SlotsRecord,
    Stats,
    TaskRecord,
    refusal_record,
    run_record,
    schedule_record,
    task_record,
)
from actionqueue.store.codec import decode_reply, decode_slots
from actionqueue.store.port import Reader, RunFilter


class StateChange(Struct, frozen=True, kw_only=True):
    """A run entered ``state`` at ``at``, because of ``reason``; ``attempt`` is the number of the attempt it concerns.

    Most name the state again, or what led to it: ``submitted``, ``retry``, ``due``, ``started``, ``worker_died``.
    """

    at: datetime
    state: str
    reason: str
    attempt: int | None = None


def read_runs(reader: Reader, wanted: RunFilter) -> Page[RunRecord]:
    """A page of runs."""
    records = [run_record(row) for row in reader.runs(wanted)]
    return Page(records, str(records[-1].id) if len(records) == wanted.limit else None)


def read_tasks(reader: Reader, wanted: RunFilter) -> Page[TaskRecord]:
    """A page of tasks."""
    records = [task_record(row) for row in reader.tasks(wanted)]
    return Page(records, str(records[-1].id) if len(records) == wanted.limit else None)


def read_schedules(reader: Reader, *, ended: bool) -> list[ScheduleRecord]:
    """Schedules: those with a name, by it, then the others, oldest first."""
    found = [msgpack.decode(row[2], type=ScheduleBody) for row in reader.entries("schedule")]
    if ended:
        found += [msgpack.decode(row[2], type=ScheduleBody) for row in reader.entries(ENDED_ENTRIES)]
    tasks = reader.tasks_by_id([each.task_id for each in found])
    stored = reader.facts()
    pauses = msgpack.decode(stored["standing"], type=Standing).pauses if "standing" in stored else []
    paused = {(mark.scope, mark.name) for mark in pauses}

    def is_paused(body: ScheduleBody) -> bool:
        row = tasks.get(body.task_id)
        scopes = {("engine", ""), ("handler", body.handler), ("task", body.task_id.hex())}
        return bool(paused & (scopes if row is None else scopes | {("queue", row[2])}))

    records = [schedule_record(body, paused=is_paused(body)) for body in found]
    return sorted(records, key=lambda each: (each.retired_at is not None, not each.name, each.name, each.task_id))


def read_refusals(reader: Reader, limit: int, before: bytes | None) -> Page[Refusal]:
    """A page of refused inbox commands."""
    found = reader.refusals(limit, before)
    records = [refusal_record(command_id, decode_reply(body)) for command_id, body in found]
    return Page(records, str(records[-1].id) if len(records) == limit else None)


def read_declarations(reader: Reader) -> dict[str, Declaration]:
    """What handlers declare, by name."""
    stored = reader.facts()
    if "standing" not in stored:
        return {}
    return {each.handler: each for each in msgpack.decode(stored["standing"], type=Standing).declarations}


def stats_of(reader: Reader) -> Stats:
    """The engine's counters as of the last projection."""
    stored = reader.facts()
    if "facts" not in stored:
        empty = {state.value: 0 for state in RunState}
        return Stats(tasks=0, runs=empty, blocked=0, paused=(), sequence=0, as_of=None)
    facts = msgpack.decode(stored["facts"], type=Facts)
    oldest = reader.oldest(READY)
    slots = decode_slots(stored["slots"]) if "slots" in stored else []
    pauses = msgpack.decode(stored["standing"], type=Standing).pauses if "standing" in stored else []
    return Stats(
        tasks=facts.tasks_total,
        runs={state.value: count for state, count in zip(STATES, facts.counts, strict=True)},
        blocked=facts.blocked,
        paused=tuple(mark.scope if mark.scope == "engine" else f"{mark.scope} {mark.name}" for mark in pauses),
        sequence=facts.last_seq,
        as_of=to_datetime(facts.last_at),
        oldest_ready_at=None if oldest is None else to_datetime(oldest[11]),
        slots=tuple(SlotsRecord(kind=kind, name=name, taken=taken, capacity=most) for kind, name, taken, most in slots),
        schedules=sum(1 for _ in reader.entries("schedule")),
        occurrences_skipped=facts.occurrences_skipped,
    )


def history_of(reader: Reader, run_id: bytes) -> list[StateChange]:
    """A run's state changes, from its row and its attempts."""
    row = reader.runs_by_id([run_id]).get(run_id)
    if row is None:
        raise UnknownRun(f"no run {RunId(bytes=run_id)} in this store", run_id=RunId(bytes=run_id))
    run = run_record(row, reader.attempts_of([run_id]).get(run_id, []))
    first = "submitted" if run.requested_by is None else "retry" if run.retry_of is not None else "requested"
    due_later = run.scheduled_at > run.created_at
    changes = [StateChange(at=run.created_at, state="scheduled" if due_later else "ready", reason=first)]
    ended = _waits_ended(reader, row[20] or run_id) if any(each.outcome == "awaiting" for each in run.attempts) else {}
    for attempt in run.attempts:
        if changes[-1].state != "ready":
            reason = ended.get(attempt.ready_at, "due") if changes[-1].state == "awaiting" else "due"
            changes.append(StateChange(at=attempt.ready_at, state="ready", reason=reason))
        changes += _of_attempt(run, attempt)
    changed_at = to_datetime(row[11])
    if run.state != changes[-1].state:
        changes.append(StateChange(at=changed_at, state=run.state, reason=run.reason))
    return changes


def _waits_ended(reader: Reader, token: bytes) -> dict[datetime, str]:
    """How the waits of a retry chain ended, by when they did."""
    waits = [row for row in reader.steps_of([token])[token] if row[2] in (SLEEP, SIGNAL)]
    return {to_datetime(at): wait_record(body).how for _, _, _, at, body in waits}


def _of_attempt(run: RunRecord, attempt: AttemptRecord) -> list[StateChange]:
    number = attempt.number
    changes = [
        StateChange(at=attempt.started_at, state="leased", reason="started", attempt=number),
        StateChange(at=attempt.started_at, state="running", reason="started", attempt=number),
    ]
    if attempt.finished_at is None:
        return changes
    state = run.state if attempt.retry_at is None else "retry_wait"
    if attempt.outcome == "awaiting":
        state = "awaiting"
    reason = attempt.reason or attempt.outcome or ""
    changes.append(StateChange(at=attempt.finished_at, state=state, reason=reason, attempt=number))
    return changes
