"""Why a run is not running, as a typed reason: asked of the same guards that hold it back.

The first blocker is named, in the guards' order: a pause, a missing handler, slots of the queue, of the executor, of the
handler, keys, rates, a run on trial, those ahead in line. A run behind others names what blocks its line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from actionqueue.core.awaiting import SIGNAL
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.instants import shown_datetime
from actionqueue.core.lanes import Bucket, Lane, Slots
from actionqueue.core.reasons import (
    AheadInLine,
    ArgumentsMisfit,
    AwaitsSignal,
    HandlerMissing,
    InProgress,
    KeyHeld,
    NoFreeSlot,
    NotYetDue,
    Paused,
    PreviousLive,
    RateLimited,
    Reason,
    Sleeping,
    TakesItsTurn,
    Upstream,
    WaitsForTasks,
    Where,
)
from actionqueue.core.run import RunState
from actionqueue.core.upcoming import earlier_runs
from actionqueue.core.waking import key_of

if TYPE_CHECKING:
    from actionqueue.core.places import Places
    from actionqueue.core.state import Run, State

HOLDERS_LISTED_MAX = 20
"""Runs that a reason or a limit names of those that hold something."""
AHEAD_COUNTED_MAX = 10_000
"""Runs of a line that are looked at to count those ahead of another one."""


def reason_of(places: Places, run: Run, now: int) -> Reason | None:
    """What ``run``, which is in a place, waits for at ``now``; None for a run that has ended."""
    places.now = max(places.now, now)
    match run.where:
        case Where.NOWHERE:
            return None
        case Where.RUNNING:
            return _in_progress(places, run)
        case Where.MISFIT:
            return ArgumentsMisfit(run.task.lane.handler)
        case Where.QUARANTINE:
            return _after_trial(places)
        case Where.OVERLAP:
            return _previous(run)
        case Where.AWAITING:
            return _awaited(places, run)
        case Where.TIMER if run.until > now:
            return NotYetDue(shown_datetime(run.until), run.state is RunState.RETRY_WAIT)
        case _:
            return _blocked(places, run, places.lane_of(run))


def reason_in(state: State, run: Run, now: int) -> Reason | None:
    """The same, also where it waits for something that places know nothing of."""
    if run.where is Where.DEPENDENCY:
        return _waits_for_tasks(state, run)
    return reason_of(state.places, run, now)


def ahead_of(places: Places, run: Run) -> int:
    """How many runs of its line go before ``run``, which is due; counted up to ``AHEAD_COUNTED_MAX``."""
    ready = places.lane_of(run).ready
    if run.where is not Where.LANE:
        return min(ready.count, AHEAD_COUNTED_MAX)
    key = key_of(run)
    return sum(1 for other in islice(ready, AHEAD_COUNTED_MAX) if key_of(other) < key)


def executor_of(places: Places, run: Run) -> str | None:
    """The executor whose slot ``run`` has; its handler may be registered with another one by now."""
    run_id = run.id_bytes
    return next((slots.name for slots in places.executors.values() if run_id in slots.running), None)


def listed(runs: Iterable[bytes]) -> tuple[RunId, ...]:
    """The first of them, as people see them."""
    return tuple(RunId(bytes=id) for id in islice(runs, HOLDERS_LISTED_MAX))


def _blocked(places: Places, run: Run, lane: Lane) -> Reason:
    pause = places.engine_pause or lane.pause
    if pause is not None:
        return Paused(pause.scope, pause.name, shown_datetime(pause.at), pause.by)
    blocker = places.guard(lane)
    if isinstance(blocker, Slots):
        return _taken(blocker)
    if blocker == "handler":
        return HandlerMissing(lane.handler)
    if run.lost_streak >= 2 and places.on_trial:
        return _after_trial(places)
    return AheadInLine(ahead_of(places, run))


def _taken(slots: Slots) -> Reason:
    if isinstance(slots, Bucket):
        need = slots.need
        return RateLimited(slots.name, need.count, need.per_us, need.burst, shown_datetime(slots.next_at))
    holders: Collection[bytes] = slots.running
    if slots.kind == "key":
        return KeyHeld(slots.name, slots.capacity or 0, len(holders), listed(holders))
    return NoFreeSlot(slots.kind, slots.name, slots.capacity or 0, len(holders), listed(holders))


def _after_trial(places: Places) -> TakesItsTurn:
    holder = next(iter(places.on_trial), None)
    return TakesItsTurn(None if holder is None else RunId(bytes=holder))


def _previous(run: Run) -> PreviousLive:
    schedule = run.task.extra.schedule
    assert schedule is not None
    earlier = earlier_runs(run)
    return PreviousLive(listed(other.id_bytes for other in earlier), len(earlier), schedule.rule.overlap)


def _awaited(places: Places, run: Run) -> Reason:
    wait = places.awaiting.waits[run.id_bytes]
    since, until = shown_datetime(wait.since), None if wait.until is None else shown_datetime(wait.until)
    if wait.kind == SIGNAL:
        return AwaitsSignal(wait.signal, wait.key, until, since)
    assert until is not None, "a sleep ends"
    return Sleeping(until, since)


def _waits_for_tasks(state: State, run: Run) -> WaitsForTasks:
    unmet = state.unmet[run.task.id]
    return WaitsForTasks(tuple([_upstream(state, each) for each in islice(unmet, HOLDERS_LISTED_MAX)]), len(unmet))


def _upstream(state: State, task_id: bytes) -> Upstream:
    task = state.tasks[task_id]
    run = task.head
    return Upstream(
        TaskId(bytes=task_id), task.handler, None if run is None else run.id, None if run is None else run.state.value
    )


def _in_progress(places: Places, run: Run) -> InProgress:
    attempt = run.attempt
    assert attempt is not None
    since = shown_datetime(attempt.started_at)
    return InProgress(attempt.number, since, executor_of(places, run), attempt.progress)
