"""Schedules: tasks that imply many runs, which are made one ahead of time, each in its turn.

A schedule accounts for its occurrences in order: ``index`` of them have a run or are counted as skipped, with the reason
(``Schedule`` in ``core/state.py``). One run, the *pending* one, is always ahead: Scheduled, at the next nominal instant
(``scheduled_at``; jitter only moves when it falls due). As soon as it is no longer that (it started, waits its turn, was
canceled or moved by hand) the next one is derived, in the same commit. So a million repeats take the memory of one, and
however a process ends, no occurrence is lost or made twice: what is derived from is in the state, not in the clock.

Here are the events and what operators do: submit under a name, replace, run now, fill a range, retire. What happens when
an occurrence falls due is in ``core/occurrences.py``. A schedule's identity is its handler and name. Another rule under
the same name retires the task and submits the next: what was due up to then belongs to the old one, by its rules, and
what comes after to the new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from msgspec import Struct

from actionqueue.core import epochs, submission
from actionqueue.core.attempts import cancel_waiting, finish_task
from actionqueue.core.errors import ActionQueueError, Conflict, InvalidSubmission, NotFound
from actionqueue.core.fire_times import Timetable
from actionqueue.core.ids import NIL, TaskId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX, shown_datetime
from actionqueue.core.reasons import Where
from actionqueue.core.rules import CronRule, timetable
from actionqueue.core.run import RunState
from actionqueue.core.spec import Submission, text_problem
from actionqueue.core.state import Accepted, Backfill, Lineage, Schedule, Skip, State
from actionqueue.core.upcoming import (
    OVERLAP,
    drop_backfills,
    earlier_runs,
    forget,
    is_behind,
    looked_at,
    note_left,
    retire,
)

NEXT_KEPT_MAX = 16_384
"""Next occurrences that are kept, of rules at instants."""

BACKFILL_RUNS_MAX = 1_000_000
"""Runs that one backfill may ask for."""


# --- events -----------------------------------------------------------------------------------------------------


class RunDerived(Struct, frozen=True, array_like=True, tag=30, gc=False):
    """The next occurrence has its run, which falls due at ``due_at``. ``last``: none comes after it."""

    at: int
    task_id: bytes
    run_id: bytes
    nominal: int
    due_at: int
    last: bool = False


class OccurrencesSkipped(Struct, frozen=True, array_like=True, tag=31):
    """``count`` occurrences from ``first`` to ``until`` do not happen; the pending run is now that of ``nominal``.

    ``ends``: that is the last one, which does not happen either, and its run is Canceled for ``reason``.
    """

    at: int
    task_id: bytes
    run_id: bytes
    count: int
    first: int
    until: int
    reason: str
    nominal: int
    due_at: int
    last: bool = False
    ends: bool = False


class OccurrenceWaits(Struct, frozen=True, array_like=True, tag=32):
    """A run that is due waits for the occurrences before it to end."""

    at: int
    task_id: bytes
    run_id: bytes


class RunRequested(Struct, frozen=True, array_like=True, tag=33):
    """Someone asked for a run of a schedule: now, or (``backfill``) for a nominal instant that has passed."""

    at: int
    task_id: bytes
    run_id: bytes
    nominal: int
    by: str
    backfill: bool = False


class BackfillAsked(Struct, frozen=True, array_like=True, tag=34):
    """Someone asked for a run at each of ``count`` nominal instants after ``after`` up to ``until``."""

    at: int
    task_id: bytes
    after: int
    until: int
    count: int
    by: str


class ScheduleRetired(Struct, frozen=True, array_like=True, tag=35):
    """A schedule makes no more runs for what comes after ``ends_at``; its runs so far go on. ``last``: nor any other.

    ``reason`` is ``retired`` (someone said so), ``replaced`` (another rule has its name), ``undeclared`` (its handler was
    registered without it) or ``over`` (what was its next occurrence is none by this machine's time zones).
    """

    at: int
    task_id: bytes
    reason: str
    ends_at: int
    by: str = ""
    last: bool = True


# --- commands ---------------------------------------------------------------------------------------------------


class PutSchedule(Struct, array_like=True, tag="put_schedule"):
    """Have a schedule under a name: a new one, the one that is there, or this one in its place."""

    item: Submission
    at: int = 0
    by: str = ""

    @property
    def items(self) -> list[Submission]:
        """What it submits."""
        return [self.item]


class Trigger(Struct, array_like=True, tag="trigger"):
    """Run a schedule now, out of turn. ``name`` is its name, or its task's id in hex."""

    name: str
    run_id: bytes
    by: str = ""


class AskBackfill(Struct, array_like=True, tag="backfill"):
    """A run for each nominal instant from ``since`` on and before ``until`` (microseconds since the epoch)."""

    name: str
    since: int
    until: int
    by: str = ""


class Retire(Struct, array_like=True, tag="retire"):
    """No more occurrences."""

    name: str
    by: str = ""


# --- the arithmetic of one schedule -------------------------------------------------------------------------------


def timetable_of(schedule: Schedule) -> Timetable:
    """When it occurs."""
    return timetable(schedule.rule, schedule.base)


def left_of(schedule: Schedule) -> int | None:
    """How many occurrences it may still have, where it was given a number."""
    rule = schedule.rule
    most = rule.max_occurrences if isinstance(rule, CronRule) else rule.count
    return None if most is None else most - schedule.index


def next_of(schedule: Schedule, after: int, left: int | None) -> int | None:
    """The occurrence after the instant ``after``, when ``left`` may still come (None: any number)."""
    if left is not None and left <= 0:
        return None
    rule = schedule.rule
    if isinstance(rule, CronRule) and after >= schedule.base:
        nominal = _next_of_cron(rule, after)
    else:
        nominal = timetable_of(schedule).next_after(after)
    if nominal is None or (schedule.retired_at is not None and nominal > schedule.retired_at):
        return None
    return None if nominal > SUBMIT_INSTANT_MAX else nominal


@lru_cache(maxsize=NEXT_KEPT_MAX)
def _next_of_cron(rule: CronRule, after: int) -> int | None:
    """The occurrence after an instant that is not before the schedule's beginning, which then makes no difference.

    Kept, because schedules share rules, and because whether there is a next one is asked before it is needed.
    """
    return timetable(rule, after).next_after(after)


def is_last(schedule: Schedule, nominal: int, counted: int) -> bool:
    """Whether no occurrence follows that of ``nominal``, when ``counted`` of them are accounted for with it."""
    left = left_of(schedule)
    return next_of(schedule, nominal, None if left is None else left + schedule.index - counted) is None


# --- decide -----------------------------------------------------------------------------------------------------


def decide_put(state: State, command: PutSchedule, now: int, live_runs_max: int) -> Accepted | ActionQueueError:
    """The task of that schedule: the one there is, when it is the same, else a new one. The reply is as ``Submit``'s."""
    item = command.item
    problem = text_problem(item.schedule_name)
    if problem is not None:
        return InvalidSubmission(f"name: {problem}", problems={"name": problem})
    if item.rule is None:
        return InvalidSubmission("schedule: not given", problems={"schedule": "not given"})
    if item.key is not None or item.task_id_given or item.schedule_origin != "call":
        return InvalidSubmission(
            "schedule: it is known by its name; leave key and task id out",
            problems={"name": "given with a key or an id"},
        )
    current = state.schedule_names.get(item.schedule_name)
    if current is not None and (current.handler != item.handler or current.origin == "code"):
        return Conflict(
            f"schedule {item.schedule_name!r} is one of handler {current.handler!r}"
            f"{', declared by its decorator' if current.origin == 'code' else ''}; give this one another name",
            name=item.schedule_name,
        )
    if current is not None and current.content == item.content:
        task = state.tasks.get(current.task_id)
        run_id = current.pending or (NIL if task is None else submission.run_of(state, task))
        return Accepted([], [(current.task_id, run_id, False)])
    submit = submission.Submit([item], command.at, command.by)
    decision = submission.decide_submit(state, submit, now, live_runs_max, may_name=True)
    if isinstance(decision, ActionQueueError) or current is None:
        return decision
    return Accepted([retired(state, current, now, "replaced", command.by), *decision.events], decision.reply)


def decide_declare(state: State, command: epochs.Declare, now: int, live_runs_max: int) -> Accepted | ActionQueueError:
    """What decorators say: declarations that have changed, and schedules that are new, replaced or declared no more.

    A schedule that cannot be submitted now (too many runs are live) is left for the next start. The reply names those that
    are retired, with the reason.
    """
    known = state.declarations
    changed = [each for each in command.declarations if known.get(each.handler) != each]
    events: list[Any] = [epochs.HandlersDeclared(now, changed)] if changed else []
    handlers = {each.handler for each in command.declarations}
    declared = {item.schedule_name for item in command.items}
    events += [
        retired(state, current, now, "undeclared", "")
        for current in state.schedule_names.values()
        if current.origin == "code" and current.handler in handlers and current.name not in declared
    ]
    for item in command.items:
        standing = state.schedule_names.get(item.schedule_name)
        if standing is not None and (standing.content == item.content or standing.handler != item.handler):
            continue
        decision = submission.decide_submit(state, submission.Submit([item]), now, live_runs_max, may_name=True)
        if isinstance(decision, ActionQueueError):
            continue
        if standing is not None:
            events.append(retired(state, standing, now, "replaced", ""))
        events += decision.events
    ended = [(state.schedules[each.task_id].name, each.reason) for each in events if type(each) is ScheduleRetired]
    return Accepted(events, ended)


def retired(state: State, schedule: Schedule, now: int, reason: str, by: str) -> ScheduleRetired:
    """Its end: what was due up to now still happens, by its own rules."""
    left = left_of(schedule)
    ends_at = now + state.shift_of(schedule.rule)
    try:
        following = next_of(schedule, schedule.cursor, left)
    except InvalidSubmission:  # its zone is not known here: no more can be derived
        following = None
    return ScheduleRetired(now, schedule.task_id, reason, ends_at, by, following is None or following > ends_at)


def named(state: State, name: str) -> Schedule | NotFound:
    """The schedule of that name, or of the task with that id in hex."""
    found = state.schedule_names.get(name)
    if found is None:
        try:
            found = state.schedules.get(bytes.fromhex(name.replace("-", "")))
        except ValueError:
            found = None
    if found is None or found.retired_at is not None:
        return NotFound(f"no schedule {name!r} in this store; `actionqueue schedules` lists them", name=name)
    return found


def _live(state: State, name: str) -> Schedule | ActionQueueError:
    found = named(state, name)
    if isinstance(found, Schedule) and found.task_id not in state.tasks:
        return Conflict(f"schedule {name!r} has had all its occurrences; submit it again under another name", name=name)
    return found


def decide_trigger(state: State, command: Trigger, now: int, live_runs_max: int) -> Accepted | ActionQueueError:
    """One more run, due now, whatever its other runs do."""
    schedule = _live(state, command.name)
    if isinstance(schedule, ActionQueueError):
        return schedule
    if command.run_id == NIL or len(command.run_id) != len(NIL) or command.run_id in state.runs:
        return InvalidSubmission("run id: nil, or of another run", problems={"run_id": "nil, or of another run"})
    if len(state.runs) >= live_runs_max:
        return submission.overloaded(state, live_runs_max)
    event = RunRequested(now, schedule.task_id, command.run_id, now, command.by)
    return Accepted([event], (schedule.task_id, command.run_id))


def decide_backfill(state: State, command: AskBackfill, now: int) -> Accepted | ActionQueueError:
    """Runs for a range that has passed, made a few at a time; the reply is how many."""
    schedule = _live(state, command.name)
    if isinstance(schedule, ActionQueueError):
        return schedule
    wall = now + state.shift_of(schedule.rule)
    if not 0 <= command.since < command.until <= wall:
        return InvalidSubmission(
            "since, until: give a range that has passed, since before until",
            problems={"until": f"not after since, or later than now ({shown_datetime(max(0, wall)).isoformat()})"},
        )
    try:
        count = backfilled(schedule, command.since - 1).count(command.since - 1, command.until - 1)
    except InvalidSubmission as problem:  # valid where it was submitted
        return problem
    if count > BACKFILL_RUNS_MAX:
        return InvalidSubmission(
            f"until: {count} occurrences lie in that range; backfill_runs_max is {BACKFILL_RUNS_MAX}. Ask in parts.",
            problems={"until": f"{count} occurrences"},
        )
    if not count:
        return Accepted([], 0)
    asked = BackfillAsked(now, schedule.task_id, command.since - 1, command.until - 1, count, command.by)
    return Accepted([asked], count)


def backfilled(schedule: Schedule, after: int) -> Timetable:
    """When it would have occurred, had it been there: a cron expression reaches back as far as one asks."""
    return timetable(schedule.rule, min(after, schedule.base) if isinstance(schedule.rule, CronRule) else schedule.base)


def decide_retire(state: State, command: Retire, now: int) -> Accepted | ActionQueueError:
    """No more occurrences; runs that are there go on."""
    schedule = named(state, command.name)
    if isinstance(schedule, ActionQueueError):
        return schedule
    return Accepted([retired(state, schedule, now, "retired", command.by)], TaskId(bytes=schedule.task_id).bytes)


# --- apply ------------------------------------------------------------------------------------------------------


def apply_derived(state: State, event: RunDerived) -> None:
    """The next occurrence is ahead."""
    schedule = state.schedules[event.task_id]
    run = submission.add_run(
        state, state.tasks[event.task_id], event.run_id, event.nominal, event.at, "derived", event.due_at
    )  # fmt: skip
    schedule.pending = run.id_bytes
    schedule.index += 1
    schedule.cursor, schedule.over = event.nominal, event.last
    looked_at(state, schedule)


def apply_skipped(state: State, event: OccurrencesSkipped) -> None:
    """The pending run stands for another occurrence, or has ended with the last one."""
    schedule, run = state.schedules[event.task_id], state.runs[event.run_id]
    if event.count:
        schedule.skipped[event.reason] = schedule.skipped.get(event.reason, 0) + event.count
        schedule.last_skip = Skip(event.at, event.count, event.first, event.until, event.reason)
    schedule.index += event.count
    schedule.over = event.last
    state.occurrences_skipped += event.count
    state.dirty_schedules[schedule.task_id] = schedule
    schedule.cursor = event.nominal
    state.places.leave(run)
    run.reschedule(event.nominal)
    if event.ends:
        schedule.pending = None
        cancel_waiting(state, run, event.at, event.reason)
        return
    state.places.enter_timer(run, event.due_at)
    state.dirty_runs[event.run_id] = run


def apply_waits(state: State, event: OccurrenceWaits) -> None:
    """It is in line behind the runs before it."""
    run = state.runs[event.run_id]
    state.places.leave(run)
    run.reason = OVERLAP
    state.places.enter_overlap(run)
    state.dirty_runs[event.run_id] = run
    note_left(state, run)


def apply_requested(state: State, event: RunRequested) -> None:
    """A run out of turn, Ready."""
    schedule, task = state.schedules[event.task_id], state.tasks[event.task_id]
    run = submission.add_run(
        state, task, event.run_id, event.nominal, event.at, "backfill" if event.backfill else "trigger"
    )
    run.lineage = Lineage(None, event.run_id, event.by)
    if not event.backfill:
        schedule.requested += 1
    else:
        asked = schedule.backfills[0]
        if asked.left > 1:
            schedule.backfills[0] = Backfill(event.nominal, asked.until, asked.left - 1, asked.by)
        else:
            del schedule.backfills[0]
    looked_at(state, schedule)


def apply_backfill(state: State, event: BackfillAsked) -> None:
    """The range is to be filled."""
    schedule = state.schedules[event.task_id]
    schedule.backfills.append(Backfill(event.after, event.until, event.count, event.by))
    schedule.requested += event.count
    looked_at(state, schedule)


def apply_retired(state: State, event: ScheduleRetired) -> None:
    """It stands under its name no more; the pending run, if it is of later, is Canceled."""
    schedule = state.schedules[event.task_id]
    schedule.over = schedule.over or event.last
    drop_backfills(schedule)
    retire(state, schedule, event.ends_at, event.by)
    task = state.tasks.get(event.task_id)
    if task is None:
        forget(state, schedule)
        return
    state.dirty_tasks[task.id] = task
    looked_at(state, schedule)
    run = None if schedule.pending is None else state.runs[schedule.pending]
    if run is not None and run.scheduled_at > (schedule.retired_at or 0):
        schedule.pending, schedule.over = None, True
        cancel_waiting(state, run, event.at, "retired")
    elif task.head is None and schedule.is_done:
        finish_task(state, task, event.at)


# --- invariants -------------------------------------------------------------------------------------------------


def schedule_problems(state: State, schedule: Schedule) -> Iterator[str]:
    """What does not hold of a schedule, for ``check``."""
    task = state.tasks.get(schedule.task_id)
    if task is None:
        if not schedule.is_named:
            yield "its task is not live, and it stands under no name"
        return
    if task.extra.schedule is not schedule:
        yield "its task does not know it"
    if schedule.is_named != (state.schedule_names.get(schedule.name) is schedule):
        yield f"it is not the one that is found under its name {schedule.name!r}"
    made = schedule.index - sum(schedule.skipped.values())
    if not 0 <= made <= task.run_count:
        yield f"{schedule.index} occurrences, {schedule.skipped} skipped, do not go with {task.run_count} runs"
    pending = None if schedule.pending is None else state.runs.get(schedule.pending)
    if schedule.pending is not None and (pending is None or pending.state is not RunState.SCHEDULED):
        yield "its next run is not Scheduled"
    elif pending is not None and (pending.scheduled_at != schedule.cursor or pending.reason == OVERLAP):
        yield f"its next run is for {pending.scheduled_at}, it is at {schedule.cursor}"
    if is_behind(schedule) != (schedule.task_id in state.underived):
        yield "whether its next run is to be derived is not what its fields say"
    left = left_of(schedule)
    if left is not None and left < 0:
        yield f"it has had {-left} occurrences too many"
    waiting = {run.id_bytes: run for run in task.live_runs() if run.where is Where.OVERLAP}
    if waiting != schedule.waiting:
        yield f"{len(waiting)} runs wait for earlier ones, it knows {len(schedule.waiting)}"
    if waiting and all(not earlier_runs(run) for run in waiting.values()):
        yield "a run waits for earlier ones, and there is none"
