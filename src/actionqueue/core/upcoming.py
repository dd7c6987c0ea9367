"""What the other slices tell a schedule: that its pending run has left its place, that a run of it ended, that it is over.

Knows: ``Schedule`` and the indexes over schedules in the state. Must not know: when a schedule occurs; that is
``core/schedules.py`` and ``core/occurrences.py``, which build on the slices that call this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actionqueue.core.rules import CronRule
from actionqueue.core.run import RunState

if TYPE_CHECKING:
    from actionqueue.core.state import Run, Schedule, State

OVERLAP = "overlap"
"""The reason of a run that is due, and waits for the occurrences before it to end."""


def note_left(state: State, run: Run) -> None:
    """A run of a schedule is promoted, started, moved by hand or ended: was it the pending one?"""
    schedule = run.task.extra.schedule
    if schedule is not None and schedule.pending == run.id_bytes:
        leave_behind(state, schedule)
        state.places.timers.watch_deadline(run)


def leave_behind(state: State, schedule: Schedule) -> None:
    """Its pending run is no longer the next occurrence: another one is to be derived."""
    schedule.pending = None
    schedule.catching_up = False  # one that is on time is derived however many runs are live
    looked_at(state, schedule)


def looked_at(state: State, schedule: Schedule) -> None:
    """What it needed was done, or put off; is there more?"""
    state.dirty_schedules[schedule.task_id] = schedule
    if is_behind(schedule):
        state.underived[schedule.task_id] = schedule
    else:
        state.underived.pop(schedule.task_id, None)


def is_behind(schedule: Schedule) -> bool:
    """Whether a run of it can be derived now."""
    is_ahead = schedule.pending is not None or schedule.over
    return not schedule.catching_up and (not is_ahead or bool(schedule.backfills))


def note_ended(state: State, schedule: Schedule) -> None:
    """One of its runs has ended: the first of those that wait may come, and more may be derived."""
    let_come(state, schedule)
    if schedule.catching_up:
        schedule.catching_up = False
        looked_at(state, schedule)


def let_come(state: State, schedule: Schedule) -> None:
    """The first of the runs that wait for earlier ones is due again, when there is none."""
    if not schedule.waiting:
        return
    run = min(schedule.waiting.values(), key=lambda each: each.order)
    if not earlier_runs(run):
        state.places.leave(run)
        state.places.enter_timer(run, run.until)


def stop(state: State, schedule: Schedule, at: int, by: str) -> None:
    """It makes no more runs, and gives its name back."""
    schedule.over, schedule.catching_up = True, False
    drop_backfills(schedule)
    retire(state, schedule, at, by)
    state.underived.pop(schedule.task_id, None)


def drop_backfills(schedule: Schedule) -> None:
    """What was asked for of ranges, and not made yet, is not made any more."""
    schedule.requested -= sum(asked.left for asked in schedule.backfills)
    schedule.backfills.clear()


def retire(state: State, schedule: Schedule, at: int, by: str) -> None:
    """It stands under its name no more."""
    schedule.retired_at, schedule.retired_by = at, by
    state.dirty_schedules[schedule.task_id] = schedule
    if state.schedule_names.get(schedule.name) is schedule:
        del state.schedule_names[schedule.name]


def forget(state: State, schedule: Schedule) -> None:
    """Its task has finished. Only what stands under a name is remembered."""
    state.underived.pop(schedule.task_id, None)
    state.dirty_schedules[schedule.task_id] = schedule
    if not schedule.is_named:
        state.schedules.pop(schedule.task_id, None)


def earlier_runs(run: Run) -> list[Run]:
    """The live runs of its schedule that an occurrence which is due comes after: not those ahead of time or behind it."""
    return [
        other
        for other in run.task.live_runs()
        if other is not run
        and (other.state is not RunState.SCHEDULED or (other.reason == OVERLAP and other.order < run.order))
    ]


def follow_wall(state: State, wall_shift: int, change: int) -> None:
    """The wall clock is that far ahead of recorded instants: the occurrences of cron schedules that are ahead move."""
    state.wall_shift = wall_shift
    if not change:
        return
    for schedule in state.schedules.values():
        run = None if schedule.pending is None else state.runs[schedule.pending]
        if run is None or not isinstance(schedule.rule, CronRule):
            continue
        state.dirty_runs[run.id_bytes] = run
        state.places.leave(run)
        state.places.enter_timer(run, max(0, run.until - change))
