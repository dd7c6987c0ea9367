"""When an occurrence of a schedule falls due: does it happen, wait, or not at all? And which run comes next?

Asked of the pending run at its instant, in this order:

1. **Misfire.** It is later than the grace allows, because no engine ran, or under a pause. ``catch_up``: it happens,
   unless it is older than the window. ``coalesce``: one run stands for all that are due. ``skip``: what is late does not
   happen.
2. **No handler**, and a run of the schedule waits for it already: that one stands for this one.
3. **Overlap.** A run before it has not ended. ``allow``: it starts beside it. ``skip``: what is due does not happen.
   ``queue``: it waits its turn, up to ``QUEUED_MAX``. ``cancel_running``: the ones before are asked to stop, and it
   starts when they have ended.

What does not happen is counted, by ranges, in one event, so ten years of missed seconds cost what one second costs.
Everything is decided into events: replay asks no timetable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actionqueue.core.control import CancelRequested, RunCanceled
from actionqueue.core.schedules import (
    OccurrencesSkipped,
    OccurrenceWaits,
    RunDerived,
    RunRequested,
    ScheduleRetired,
    backfilled,
    is_last,
    left_of,
    next_of,
    timetable_of,
)
from actionqueue.core.state import Run, Schedule, State
from actionqueue.core.submission import occurs_at
from actionqueue.core.upcoming import OVERLAP, earlier_runs

QUEUED_MAX = 1_000
"""Occurrences of one schedule that wait for the one before; what falls due beyond them is skipped."""
CATCH_UP_RUNS_MAX = 100
"""Live runs of a schedule beyond which it derives no more of what is late or was asked for, until some have ended."""
BY_SCHEDULE = "schedule"
"""Who asked, where a schedule cancels its earlier runs."""


def decide_due(state: State, run: Run, now: int) -> list[Any]:
    """The events that come before ``run``, which has fallen due, may start; none when nothing stands in its way.

    It may start only if it is due afterwards and not in line. Whoever calls applies them, and asks again.
    """
    schedule = run.task.extra.schedule
    assert schedule is not None
    if run.id_bytes != schedule.pending:
        earlier = earlier_runs(run) if run.reason == OVERLAP else []
        return [OccurrenceWaits(now, schedule.task_id, run.id_bytes)] if earlier else []
    wall = now + state.shift_of(schedule.rule)
    late = _misfired(schedule, run, now, wall)
    if late is not None:
        return [late]
    if run.task.lane.executor is None and _waits_for_handler(run):
        return [_skipped(schedule, run, now, wall, wall, "handler")]
    rule = schedule.rule
    if rule.overlap == "allow" or not (earlier := earlier_runs(run)):
        return []
    if rule.overlap == "skip":
        return [_skipped(schedule, run, now, wall, wall, OVERLAP)]
    if rule.overlap == "queue":
        if len(schedule.waiting) >= QUEUED_MAX:
            return [_skipped(schedule, run, now, wall, wall, "queue_full")]
        return [OccurrenceWaits(now, schedule.task_id, run.id_bytes)]
    events = _canceling(earlier, now)
    if any(other.attempt is not None for other in earlier):
        events.append(OccurrenceWaits(now, schedule.task_id, run.id_bytes))
    return events


def _canceling(earlier: list[Run], now: int) -> list[Any]:
    events: list[Any] = []
    for other in earlier:
        if other.attempt is None:
            events.append(RunCanceled(now, other.id_bytes, OVERLAP, BY_SCHEDULE))
        elif other.cancel is None:
            events.append(CancelRequested(now, other.id_bytes, "cancel", BY_SCHEDULE))
    return events


def _waits_for_handler(run: Run) -> bool:
    return any(other.attempt is None for other in earlier_runs(run))


def _misfired(schedule: Schedule, run: Run, now: int, wall: int) -> OccurrencesSkipped | None:
    """What is skipped of the occurrences that are late; None when the pending one is to happen."""
    rule = schedule.rule
    if now - run.until <= rule.grace_us:
        return None
    if rule.misfire == "skip":
        return _skipped(schedule, run, now, wall, wall - rule.grace_us - 1, "misfire")
    if rule.misfire == "catch_up":
        window_us, reason = _window(run)
        if window_us is None or schedule.cursor >= wall - window_us:
            return None
        return _skipped(schedule, run, now, wall, wall - window_us - 1, reason)
    missed = _range(schedule, wall)
    if missed is None or missed[0] == 1:
        return None
    count, last = missed
    before = max(timetable_of(schedule).last_until(last - 1) or 0, schedule.cursor)
    counted = schedule.index + count - 1
    return OccurrencesSkipped(
        now, schedule.task_id, run.id_bytes, count - 1, schedule.cursor, before, "coalesced", last,
        occurs_at(rule, last, run.id_bytes, wall - now), is_last(schedule, last, counted),
    )  # fmt: skip


def _window(run: Run) -> tuple[int | None, str]:
    """How far back it is caught up on: the window, or, where that is shorter, the deadline to start."""
    extra = run.task.extra
    assert extra.rule is not None
    window_us, expires_us = extra.rule.window_us, extra.expires_us
    if expires_us is not None and (window_us is None or expires_us < window_us):
        return expires_us, "expired"
    return window_us, "window"


def _range(schedule: Schedule, until: int) -> tuple[int, int] | None:
    """How many occurrences there are from the pending one up to ``until``, and the last of them; None where none is."""
    times, cursor, left = timetable_of(schedule), schedule.cursor, left_of(schedule)
    if schedule.retired_at is not None:
        until = min(until, schedule.retired_at)
    if until < cursor:
        return None
    count = 1 + times.count(cursor, until)
    if left is not None and count > 1 + left:
        count = 1 + left
        last = times.nth_after(cursor, left) if left else cursor
    else:
        last = times.last_until(until)
    return count, max(last or 0, cursor)  # by other zone data than it was derived by, the cursor may be none of them


def _skipped(schedule: Schedule, run: Run, now: int, wall: int, until: int, reason: str) -> OccurrencesSkipped:
    """None of the occurrences up to ``until`` happens; at least the pending one does not."""
    count, last = _range(schedule, until) or (1, schedule.cursor)
    left = left_of(schedule)
    following = next_of(schedule, last, None if left is None else left - count + 1)
    if following is None:  # the pending run ends, as the last of them
        before = timetable_of(schedule).last_until(last - 1) if count > 1 else None
        return OccurrencesSkipped(
            now, schedule.task_id, run.id_bytes, count - 1, schedule.cursor, last if before is None else before, reason,
            last, now, last=True, ends=True,
        )  # fmt: skip
    return OccurrencesSkipped(
        now, schedule.task_id, run.id_bytes, count, schedule.cursor, last, reason, following,
        occurs_at(schedule.rule, following, run.id_bytes, wall - now), is_last(schedule, following, schedule.index + count),
    )  # fmt: skip


def decide_next(state: State, schedule: Schedule, now: int, next_id: Callable[[int], bytes]) -> Any | None:
    """The next run of a schedule, of a range that was asked for or of its next occurrence; None puts it off."""
    task_id = schedule.task_id
    task = state.tasks[task_id]
    is_full = task.open_count >= CATCH_UP_RUNS_MAX
    if schedule.pending is None and not schedule.over:
        nominal = next_of(schedule, schedule.cursor, left_of(schedule))
        shift = state.shift_of(schedule.rule)
        if nominal is None:  # the one before was not the last by the zone data it was derived by
            return ScheduleRetired(now, task_id, "over", now + shift)
        is_fresh = nominal > now + shift - schedule.rule.grace_us
        if is_fresh or not is_full or schedule.rule.misfire != "catch_up":  # the others make one run of many, or none
            run_id = next_id(now)
            due_at = occurs_at(schedule.rule, nominal, run_id, shift)
            last = is_last(schedule, nominal, schedule.index + 1)
            return RunDerived(now, task_id, run_id, nominal, due_at, last)
    elif schedule.backfills and not is_full:
        asked = schedule.backfills[0]
        nominal = backfilled(schedule, asked.after).next_after(asked.after)
        if nominal is None:  # it was counted by other zone data
            return ScheduleRetired(now, task_id, "over", now + state.shift_of(schedule.rule))
        return RunRequested(now, task_id, next_id(now), nominal, asked.by, backfill=True)
    return None
