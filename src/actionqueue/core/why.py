"""Why a run is not running, as a typed reason: asked of the same guards that hold it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actionqueue.core.lanes import Bucket, Lane, Slots
from actionqueue.core.reasons import (
    AheadInLine,
    ArgumentsMisfit,
    HandlerMissing,
    InProgress,
    KeyHeld,
    NoFreeSlot,
    NotYetDue,
    Paused,
    PreviousLive,
    RateLimited,
    Reason,
    TakesItsTurn,
    Where,
)
from actionqueue.core.run import RunState
from actionqueue.core.upcoming import earlier_runs
from actionqueue.core.waking import key_of

if TYPE_CHECKING:
    from actionqueue.core.places import Places
    from actionqueue.core.state import Run


def reason_of(places: Places, run: Run, now: int) -> Reason | None:
    """What ``run`` waits for at ``now``; None for a run that has ended."""
    places.now = max(places.now, now)
    match run.where:
        case Where.NOWHERE:
            return None
        case Where.RUNNING:
            assert run.attempt is not None
            return InProgress(run.attempt.id, run.attempt.started_at)
        case Where.MISFIT:
            return ArgumentsMisfit(run.task.lane.handler)
        case Where.QUARANTINE:
            return TakesItsTurn(next(iter(places.on_trial), None))
        case Where.OVERLAP:
            return _previous(run)
        case Where.TIMER if places.engine_pause is None or run.until > now:
            return NotYetDue(run.until, run.state is RunState.RETRY_WAIT)
        case _:
            return _blocked(places, run, places.lane_of(run))


def _blocked(places: Places, run: Run, lane: Lane) -> Reason:
    pause = places.engine_pause or lane.pause
    if pause is not None:
        return Paused(pause.scope, pause.name, pause.at, pause.by)
    blocker = places.guard(lane)
    if isinstance(blocker, Slots):
        return _taken(blocker)
    if blocker == "handler":
        return HandlerMissing(lane.handler)
    key = key_of(run)
    return AheadInLine(sum(1 for other in lane.ready if key_of(other) < key))


def _taken(slots: Slots) -> Reason:
    if isinstance(slots, Bucket):
        return RateLimited(slots.name, slots.need.count, slots.need.per_us, slots.next_at)
    holders = tuple(slots.running)
    if slots.kind == "key":
        return KeyHeld(slots.name, slots.capacity or 0, holders)
    return NoFreeSlot(slots.kind, slots.name, slots.capacity or 0, holders)


def _previous(run: Run) -> PreviousLive:
    schedule = run.task.extra.schedule
    assert schedule is not None
    return PreviousLive(tuple(other.id_bytes for other in earlier_runs(run)), schedule.rule.overlap)
