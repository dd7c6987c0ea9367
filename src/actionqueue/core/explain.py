"""Explanations: why a run is not running, what would release it, and the same of whatever it waits for.

Made from the state by asking the dispatch guards (``core/why.py``), so that what is said and what is done cannot differ.
A run that waits for others (for the holders of a key or of slots, for the occurrences before it, for a run on trial)
carries their explanations in ``because``, to a bounded depth and breadth; what was told already is not told again, which
also ends any circle. ``Explain`` asks the engine; its reply is an explanation as plain values (``core/plain.py``).

Knows: the state, reasons, how both are put together. Must not know: how it reads (``core/sentences.py``), and where an
explanation comes from when no engine runs (``actionqueue/explaining.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.instants import shown_datetime
from actionqueue.core.limits import holds_keys
from actionqueue.core.loading import attempt_from
from actionqueue.core.plain import plain
from actionqueue.core.reasons import (
    AfterFailure,
    AskedToStop,
    Ended,
    Expires,
    HoldsKeys,
    KeyHeld,
    NoEngineRuns,
    NoFreeSlot,
    NotDecided,
    Note,
    OfSchedule,
    PastTimeout,
    PreviousLive,
    Reason,
    Release,
    TakesItsTurn,
    WaitsForTasks,
    Where,
    release_of,
)
from actionqueue.core.rows import Row, latest_attempt_row
from actionqueue.core.rules import describe
from actionqueue.core.spec import DEFAULT_QUEUE, Submission
from actionqueue.core.state import FAILED, STATES, Accepted, Outcome, Run, Schedule, State
from actionqueue.core.timers import deadline_of
from actionqueue.core.why import ahead_of, reason_in

DEPTH_MAX = 5
"""How many runs deep an explanation goes: the run itself, what it waits for, what that waits for."""
BREADTH_MAX = 3
"""How many of the runs that one waits for are explained."""
RUNS_MAX = 20
"""How many runs one explanation explains."""


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a run is not running (or what it does, or how it ended), as of ``at``; ``str()`` says it in words.

    ``reason`` is the first thing that holds it back, ``release`` what would end that; both are typed. ``ahead`` runs of
    its line go first then. ``because`` explains the runs it waits for, ``unexplained`` counts those left out: there are
    many, or they stand further up. A run of ``state`` None is still in the inbox.
    """

    run_id: RunId
    task_id: TaskId
    handler: str
    queue: str
    state: str | None
    at: datetime
    reason: Reason
    release: Release | None
    ahead: int = 0
    notes: tuple[Note, ...] = ()
    because: tuple[Explanation, ...] = ()
    unexplained: int = 0

    def __str__(self) -> str:
        from actionqueue.core.sentences import told

        return told(self)

    @property
    def headline(self) -> str:
        """The reason in one line."""
        from actionqueue.core.sentences import why

        return why(self)


class Explain(Struct, array_like=True, tag="explain"):
    """Explain a run, or a task by its newest live run. Changes nothing; the reply is plain, None where nothing is live."""

    id: bytes


def decide_explain(state: State, command: Explain, now: int) -> Accepted:
    """The explanation."""
    run = find(state, command.id)
    return Accepted([], None if run is None else plain(explain(state, run, now)))


def find(state: State, id: bytes) -> Run | None:
    """The live run of that id, or the newest live run of the task of that id: of a schedule the one ahead."""
    run = state.runs.get(id)
    if run is not None:
        return run
    task = state.tasks.get(id)
    if task is None:
        return None
    schedule = task.extra.schedule
    pending = None if schedule is None or schedule.pending is None else state.runs.get(schedule.pending)
    return pending or task.head


def explain(state: State, run: Run, now: int) -> Explanation:
    """Why ``run``, which is live, is not running at ``now``."""
    return _explained(state, run, now, {run.id_bytes}, 1)


def _explained(state: State, run: Run, now: int, told: set[bytes], depth: int) -> Explanation:
    reason = reason_in(state, run, now)
    assert reason is not None, "a live run is somewhere"
    because: list[Explanation] = []
    waits_for, count = _others(reason)
    for id in waits_for:
        other = state.runs.get(id.bytes)
        is_too_much = depth == DEPTH_MAX or len(because) == BREADTH_MAX or len(told) == RUNS_MAX
        if other is not None and not is_too_much and id.bytes not in told:
            told.add(id.bytes)
            because.append(_explained(state, other, now, told, depth + 1))
    is_in_line = run.where is Where.LANE or (run.where is Where.TIMER and run.until <= now)
    return Explanation(
        run_id=run.id,
        task_id=run.task_id,
        handler=run.task.handler,
        queue=run.task.queue,
        state=run.state.value,
        at=shown_datetime(now),
        reason=reason,
        release=release_of(reason),
        ahead=ahead_of(state.places, run) if is_in_line else 0,
        notes=tuple(_notes(run, reason, now)),
        because=tuple(because),
        unexplained=count - len(because),
    )


def _others(reason: Reason) -> tuple[tuple[RunId, ...], int]:
    """The runs that a reason names as those waited for, and how many there are."""
    match reason:
        case KeyHeld(taken=count, holders=holders) | NoFreeSlot(taken=count, holders=holders):
            return holders, count
        case PreviousLive(previous, count):
            return previous, count
        case WaitsForTasks(upstreams, count):
            return tuple([each.run_id for each in upstreams if each.run_id is not None]), count
        case TakesItsTurn(holder) if holder is not None:
            return (holder,), 1
        case _:
            return (), 0


# --- notes ------------------------------------------------------------------------------------------------------


def _notes(run: Run, reason: Reason, now: int) -> list[Note]:
    found: list[Note] = []
    attempt = run.attempt
    if attempt is not None:
        if run.cancel is not None:
            found.append(AskedToStop(shown_datetime(run.cancel.at), run.cancel.by, run.cancel.how))
        timeout_us = attempt.terms.timeout_us
        if timeout_us is not None and attempt.started_at + timeout_us <= now:
            found.append(PastTimeout(shown_datetime(attempt.started_at + timeout_us)))
    elif run.task.extra.options.limits and holds_keys(run):
        found.append(HoldsKeys(tuple(need.key for need in run.task.extra.options.limits)))
    deadline = None if run.attempt_count else deadline_of(run)
    if deadline is not None:
        found.append(Expires(shown_datetime(deadline)))
    latest = run.latest
    if attempt is None and latest is not None and latest.outcome not in (None, Outcome.AWAITING):
        assert latest.outcome is not None
        error = None if latest.error is None else latest.error.kind
        outcome = latest.outcome.name.lower()
        found.append(AfterFailure(latest.number, outcome, error, run.failure_count, run.task.max_attempts))
    schedule = run.task.extra.schedule
    if schedule is not None:
        found.append(_of_schedule(schedule, run))
    return found


def _of_schedule(schedule: Schedule, run: Run) -> OfSchedule:
    is_ahead = schedule.pending is not None and schedule.pending != run.id_bytes
    return OfSchedule(
        schedule.name,
        describe(schedule.rule),
        schedule.rule.overlap,
        shown_datetime(schedule.cursor) if is_ahead else None,
        dict(schedule.skipped),
        None if schedule.last_skip is None else shown_datetime(schedule.last_skip.at),
        None if schedule.retired_at is None else shown_datetime(schedule.retired_at),
    )


# --- of what is not live ----------------------------------------------------------------------------------------


def without_engine(state: State, explanation: Explanation) -> Explanation:
    """That no engine runs comes first; then how things stand with what the last one had."""
    epoch = state.epoch
    reason = NoEngineRuns(
        shown_datetime(state.last_at), crashed=epoch is not None and not epoch.closed,
        pid=0 if epoch is None else epoch.pid, host="" if epoch is None else epoch.host,
    )  # fmt: skip
    return replace(
        explanation, reason=reason, release=release_of(reason), ahead=0, notes=(), because=(explanation,), unexplained=0
    )


def ended(row: Row, siblings: Sequence[Row], now: int) -> Explanation:
    """How the run of a row ended; ``siblings`` are the rows of its task's runs, in which a retry of it may be."""
    state = STATES[row[4]].value
    latest = latest_attempt_row(row)
    error = None if latest is None else attempt_from(latest).error
    said = None if error is None or row[4] != FAILED else f"{error.kind}: {error.message}".removesuffix(": ")
    retry = next((RunId(bytes=each[0]) for each in siblings if each[19] == row[0]), None)
    reason = Ended(state, row[5], shown_datetime(row[11]), said, retry)
    return Explanation(
        run_id=RunId(bytes=row[0]), task_id=TaskId(bytes=row[1]), handler=row[2], queue=row[3], state=state,
        at=shown_datetime(now), reason=reason, release=release_of(reason),
    )  # fmt: skip


def undecided(item: Submission, since: int, now: int, *, has_engine: bool) -> Explanation:
    """Of a submission that has been waiting for an engine to read it ``since`` then."""
    reason = NotDecided(shown_datetime(since), has_engine)
    return Explanation(
        run_id=RunId(bytes=item.run_id), task_id=TaskId(bytes=item.task_id), handler=item.handler,
        queue=item.queue or DEFAULT_QUEUE, state=None, at=shown_datetime(now), reason=reason,
        release=release_of(reason),
    )  # fmt: skip
