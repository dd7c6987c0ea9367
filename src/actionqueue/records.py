"""What reading returns: plain records of runs, tasks and attempts, and pages of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, overload
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct, json, msgpack

from actionqueue.core.awaiting import Signal as KeptSignal
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.ids import AttemptId, RunId, TaskId
from actionqueue.core.instants import shown_datetime, to_datetime
from actionqueue.core.loading import attempt_from
from actionqueue.core.rows import Row, ScheduleBody
from actionqueue.core.rules import CronRule, describe
from actionqueue.core.state import STATES, CancelMark
from actionqueue.core.submission import RareFields

T_co = TypeVar("T_co", covariant=True)

_rare = msgpack.Decoder(RareFields)
_cancel = msgpack.Decoder(CancelMark)


class ErrorRecord(Struct, frozen=True):
    """What an attempt failed with. ``fingerprint`` is the same for failures of one kind."""

    kind: str
    message: str
    traceback: str
    fingerprint: str


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One try of a run; its instants are in UTC.

    ``number`` counts from 1. ``ready_at`` is when it could have started, ``started_at`` when it did. ``outcome`` is
    None while it is open, then one of ``completed``, ``failed``, ``timed_out``, ``canceled``, ``snoozed``,
    ``interrupted``, ``lost``; ``reason`` says it more closely. ``retry_at`` is when the run was due again.
    ``abandoned`` says that its code was never seen to end.
    """

    id: AttemptId
    number: int
    ready_at: datetime
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    reason: str
    error: ErrorRecord | None
    retry_at: datetime | None
    abandoned: bool


class Progress(Struct, frozen=True):
    """How far a handler says it is, in a unit of its own; ``total`` is None where it does not know."""

    done: int
    total: int | None
    message: str


class RunRecord(Struct, frozen=True, kw_only=True):
    """A run as it is stored; its instants are in UTC.

    ``state`` is a value of ``RunState``, ``reason`` says why it is in it. ``attempt_count`` counts started attempts,
    ``failure_count`` those that count toward ``max_attempts``, ``lost_count`` those lost to crashes. ``started_at`` is
    of the latest attempt. ``waiting_until`` is when a scheduled or retry_wait run is due, and when the
    wait of an awaiting one is over at the latest. ``retry_of`` is the run it
    was asked for in place of, by ``requested_by``; ``token`` the first run of that chain. ``error_kind`` is the class
    of the latest error, None once it has completed. ``attempts`` are there where one run was asked for, and left out of
    listings.
    """

    id: RunId
    task_id: TaskId
    handler: str
    queue: str
    state: str
    reason: str
    priority: int
    attempt_count: int
    failure_count: int
    lost_count: int
    created_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    waiting_until: datetime | None
    retry_of: RunId | None
    token: RunId
    requested_by: str | None
    cancel_requested: bool
    error_kind: str | None
    progress: Progress | None
    attempts: tuple[AttemptRecord, ...] = ()


class TaskRecord(Struct, frozen=True, kw_only=True):
    """A task as it is stored, with its runs counted by how they ended; its instants are in UTC.

    ``finished_at`` is when its last run ended, None while one is open. ``payload_bytes`` is the size of the encoded
    arguments, which ``get_payload`` gives.
    """

    id: TaskId
    handler: str
    queue: str
    priority: int
    max_attempts: int
    created_at: datetime
    finished_at: datetime | None
    canceled_at: datetime | None
    run_count: int
    open_count: int
    completed_count: int
    failed_count: int
    canceled_count: int
    payload_bytes: int
    idempotency_key: str | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    description: str | None
    depends_on: tuple[TaskId, ...] = ()
    """The tasks it waits, or waited, for."""
    on_upstream_failure: str | None = None
    """What follows where one of them does not complete: ``cancel`` or ``run``; None where there are none."""


class SlotsRecord(Struct, frozen=True, kw_only=True):
    """Of how many slots of an executor or a bounded queue (``kind``) how many are taken, as the last engine said."""

    kind: str
    name: str
    taken: int
    capacity: int


class EngineRecord(Struct, frozen=True, kw_only=True):
    """The process that is the engine of a store, and since when (None where that is not known)."""

    pid: int
    host: str
    since: datetime | None


class Refusal(Struct, frozen=True, kw_only=True):
    """A command of another process that the engine refused.

    ``command`` says of which kind it was; ``handler``, ``task_id`` and ``run_id`` what it spoke of, ``count`` how many
    tasks it would have submitted; ``code`` and ``message`` why it was refused.
    """

    id: TaskId
    at: datetime
    command: str
    handler: str | None
    task_id: str | None
    run_id: str | None
    count: int
    code: str
    message: str


class Stats(Struct, frozen=True, kw_only=True):
    """Counts from the engine's own counters, exact as of ``sequence`` in the log.

    ``runs`` maps each state to a count; ``blocked`` are those of the ready ones that something holds back. ``paused``
    names the pauses in force, such as ``"engine"`` and ``"queue mail"``. ``as_of`` is the instant of the latest event,
    None in a store that no engine has opened.
    """

    tasks: int
    runs: dict[str, int]
    blocked: int
    paused: tuple[str, ...]
    sequence: int
    as_of: datetime | None
    oldest_ready_at: datetime | None = None
    """Since when the oldest of the ready runs has been waiting."""
    slots: tuple[SlotsRecord, ...] = ()
    schedules: int = 0
    """How many schedules there are: those that ``schedules()`` lists."""
    occurrences_skipped: int = 0
    """Times that schedules named and at which nothing ran, since the store was made; ``schedules()`` says whose and why."""


class SkipRecord(Struct, frozen=True, kw_only=True):
    """``count`` occurrences of a schedule that did not happen, from the nominal time ``first`` to ``last``, and why.

    ``reason`` is ``misfire``, ``window`` or ``expired`` (missed, and older than its rules allow), ``coalesced`` (one run
    stood for all), ``overlap`` (the one before was still going on), ``queue_full`` (a thousand waited for it), or
    ``handler`` (the one before waited for a handler).
    """

    at: datetime
    count: int
    first: datetime
    last: datetime
    reason: str


class ScheduleRecord(Struct, frozen=True, kw_only=True):
    """A schedule. ``rule`` is its policy in a line; ``next_at`` its next nominal time, in its own zone, if there is one.

    ``origin`` is ``code`` (declared by a decorator), ``call`` (``queue.schedule``) or ``submit``. ``occurrences`` are
    accounted for, the next one included: each has a run, or is one of ``skipped`` (by reason). ``requested`` counts the
    runs that someone asked for. ``paused`` says that its task, handler, queue or the engine is.
    """

    name: str
    task_id: TaskId
    handler: str
    rule: str
    timezone: str
    misfire: str
    overlap: str
    origin: str
    since: datetime
    next_at: datetime | None
    next_run: RunId | None
    paused: bool
    occurrences: int
    skipped: dict[str, int]
    last_skip: SkipRecord | None
    requested: int
    backfilling: int
    over: bool
    retired_at: datetime | None


class Page(Sequence[T_co], Generic[T_co]):
    """One page of a listing; ``next_cursor`` asks for the next (None at the end)."""

    __slots__ = ("_items", "next_cursor")

    def __init__(self, items: Sequence[T_co], next_cursor: str | None) -> None:
        self._items = items
        self.next_cursor = next_cursor

    @overload
    def __getitem__(self, index: int) -> T_co: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...

    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._items)

    def __repr__(self) -> str:
        return f"Page({list(self._items)!r}, next_cursor={self.next_cursor!r})"


def _when(instant: int | None) -> datetime | None:
    return None if instant is None else to_datetime(instant)


def attempt_record(row: Row) -> AttemptRecord:
    """A row of ``attempts``."""
    attempt = attempt_from(row)
    error = attempt.error
    return AttemptRecord(
        id=AttemptId(bytes=attempt.id),
        number=attempt.number,
        ready_at=to_datetime(attempt.ready_at),
        started_at=to_datetime(attempt.started_at),
        finished_at=_when(attempt.finished_at),
        outcome=None if attempt.outcome is None else attempt.outcome.name.lower(),
        reason=attempt.reason,
        error=None if error is None else ErrorRecord(error.kind, error.message, error.traceback, error.fingerprint),
        retry_at=_when(attempt.retry_at),
        abandoned=attempt.abandoned,
    )


class Signal(Struct, frozen=True, kw_only=True):
    """A signal: what was sent, by whom, and when. ``payload`` is a JSON value."""

    id: str
    name: str
    key: str | None
    payload: Any
    by: str
    sent_at: datetime


def signal_of(kept: KeptSignal) -> Signal:
    """A signal as people see it."""
    payload = json.decode(kept.payload)
    return Signal(
        id=kept.id, name=kept.name, key=kept.key, payload=payload, by=kept.by, sent_at=shown_datetime(kept.at)
    )  # fmt: skip


_TIMED = ("scheduled", "retry_wait")


def run_record(row: Row, attempts: Sequence[Row] = ()) -> RunRecord:
    """A row of ``runs``, with its attempts."""
    state = STATES[row[4]].value
    return RunRecord(
        id=RunId(bytes=row[0]),
        task_id=TaskId(bytes=row[1]),
        handler=row[2],
        queue=row[3],
        state=state,
        reason=row[5],
        priority=row[6],
        attempt_count=row[15],
        failure_count=row[16],
        lost_count=row[17],
        created_at=to_datetime(row[9]),
        scheduled_at=to_datetime(row[10]),
        started_at=_when(row[13]),
        finished_at=_when(row[14]),
        waiting_until=to_datetime(row[12]) if state in _TIMED or (state == "awaiting" and row[12]) else None,
        retry_of=None if row[19] is None else RunId(bytes=row[19]),
        token=RunId(bytes=row[20] or row[0]),
        requested_by=row[21],
        cancel_requested=row[22] is not None,
        error_kind=row[25],
        progress=None if row[26] is None else Progress(*msgpack.decode(row[26])),
        attempts=tuple(attempt_record(each) for each in attempts),
    )


def task_record(row: Row) -> TaskRecord:
    """A row of ``tasks``."""
    rare = RareFields() if row[15] is None else _rare.decode(row[15])
    return TaskRecord(
        id=TaskId(bytes=row[0]),
        handler=row[1],
        queue=row[2],
        priority=row[3],
        max_attempts=row[4],
        created_at=to_datetime(row[5]),
        finished_at=_when(row[12]),
        canceled_at=_when(row[13]),
        run_count=row[8],
        open_count=row[8] - row[9] - row[10] - row[11],
        completed_count=row[9],
        failed_count=row[10],
        canceled_count=row[11],
        payload_bytes=row[7],
        idempotency_key=row[14],
        tags=rare.options.tags,
        metadata=rare.options.metadata or {},
        description=rare.options.description,
        depends_on=() if rare.depends is None else tuple([TaskId(bytes=each) for each in rare.depends.on]),
        on_upstream_failure=None if rare.depends is None else rare.depends.on_failure,
    )


def refusal_record(command_id: bytes, error: ActionQueueError) -> Refusal:
    """A refused command, from its recorded reply."""
    about: dict[str, Any] = {}
    found = error.facts.get("refused")
    if isinstance(found, dict):
        about = found
    return Refusal(
        id=TaskId(bytes=command_id),
        at=to_datetime(int.from_bytes(command_id[:6], "big") * 1000),
        command=about.get("command", "unreadable"),
        handler=about.get("handler"),
        task_id=about.get("task_id"),
        run_id=about.get("run_id"),
        count=about.get("count", 0),
        code=error.code,
        message=error.message,
    )


def schedule_record(body: ScheduleBody, *, paused: bool) -> ScheduleRecord:
    """A stored schedule."""
    rule = body.rule
    zone = rule.timezone if isinstance(rule, CronRule) else "UTC"
    skip = body.last_skip
    return ScheduleRecord(
        name=body.name,
        task_id=TaskId(bytes=body.task_id),
        handler=body.handler,
        rule=describe(rule),
        timezone=zone,
        misfire=rule.misfire,
        overlap=rule.overlap,
        origin=body.origin or "submit",
        since=to_datetime(body.base),
        next_at=None if body.pending is None else local_datetime(body.cursor, zone),
        next_run=None if body.pending is None else RunId(bytes=body.pending),
        paused=paused,
        occurrences=body.index,
        skipped=body.skipped,
        last_skip=None
        if skip is None
        else SkipRecord(
            at=to_datetime(skip.at),
            count=skip.count,
            first=local_datetime(skip.first, zone),
            last=local_datetime(skip.last, zone),
            reason=skip.reason,
        ),
        requested=body.requested,
        backfilling=sum(asked.left for asked in body.backfills),
        over=body.over,
        retired_at=_when(body.retired_at),
    )


def local_datetime(instant: int, zone: str) -> datetime:
    """An instant in a zone; in UTC where this machine does not know the zone."""
    try:
        return to_datetime(instant).astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError):
        return to_datetime(instant)
