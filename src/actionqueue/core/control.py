"""What operators do to live work: cancel, reschedule, reprioritize, pause and resume; and deadlines to start.

Cancel has three levels. ``cancel`` asks a running handler to stop and cancels anything else at once; ``kill`` asks its
executor to end it by force; ``abandon`` drops the grant now: the run is Canceled and whatever its handler still does
is refused as stale. Canceling what is canceled, or being canceled, is a success that changes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core.attempts import AttemptFinished, cancel_waiting, finish_task
from actionqueue.core.errors import (
    ActionQueueError,
    AlreadyTerminal,
    InvalidSubmission,
    NotReschedulable,
    UnknownRun,
    UnknownTask,
)
from actionqueue.core.ids import NIL, RunId, TaskId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.reasons import Where
from actionqueue.core.run import RunState
from actionqueue.core.spec import PRIORITY_MAX, PRIORITY_MIN, text_problem
from actionqueue.core.state import (
    CANCELED,
    STATES,
    Accepted,
    Attempt,
    CancelMark,
    Outcome,
    PauseMark,
    Run,
    State,
)
from actionqueue.core.upcoming import OVERLAP, let_come, note_left, stop

How = Literal["cancel", "kill", "abandon"]
SCOPES = ("engine", "queue", "handler", "task")


# --- events -----------------------------------------------------------------------------------------------------


class RunCanceled(Struct, frozen=True, array_like=True, tag=10):
    """A run that was not running is Canceled; ``reason`` is ``canceled`` or ``expired``."""

    at: int
    run_id: bytes
    reason: str
    by: str = ""


class CancelRequested(Struct, frozen=True, array_like=True, tag=11):
    """A running run was asked to stop."""

    at: int
    run_id: bytes
    how: str
    by: str = ""


class TaskCanceled(Struct, frozen=True, array_like=True, tag=12):
    """All live runs of a task are canceled, or asked to stop where they run."""

    at: int
    task_id: bytes
    how: str
    by: str = ""


class RunRescheduled(Struct, frozen=True, array_like=True, tag=13):
    """A waiting run has another instant."""

    at: int
    run_id: bytes
    due_at: int


class RunReprioritized(Struct, frozen=True, array_like=True, tag=14):
    """A live run has another priority, from its next promotion on (at once when it is Ready)."""

    at: int
    run_id: bytes
    priority: int


class Paused(Struct, frozen=True, array_like=True, tag=15):
    """Nothing of this scope is promoted or started."""

    at: int
    scope: str
    name: str
    by: str = ""


class Resumed(Struct, frozen=True, array_like=True, tag=16):
    """The pause of this scope is lifted."""

    at: int
    scope: str
    name: str
    by: str = ""


# --- commands ---------------------------------------------------------------------------------------------------


class CancelRun(Struct, array_like=True, tag="cancel_run"):
    """Cancel one run. ``known_state`` is the state code of a run that has left memory."""

    run_id: bytes
    how: str = "cancel"
    by: str = ""
    known_state: int | None = None


class CancelTask(Struct, array_like=True, tag="cancel_task"):
    """Cancel all live runs of a task. ``known`` says that it exists although it has left memory."""

    task_id: bytes
    how: str = "cancel"
    by: str = ""
    known: bool = False


class Reschedule(Struct, array_like=True, tag="reschedule"):
    """Move a waiting run to ``due_at`` (microseconds since the epoch)."""

    run_id: bytes
    due_at: int
    known_state: int | None = None


class Reprioritize(Struct, array_like=True, tag="reprioritize"):
    """Give a live run another priority."""

    run_id: bytes
    priority: int
    known_state: int | None = None


class Pause(Struct, array_like=True, tag="pause"):
    """Pause the engine, a queue, a handler or a task.

    A task is named by its id in hex, and must be live; ``known`` says that it exists although it has left memory.
    """

    scope: str = "engine"
    name: str = ""
    by: str = ""
    known: bool = False

    @property
    def task_id(self) -> bytes | None:
        """The task it is about, if it is about one."""
        return _task_named(self)


class Resume(Struct, array_like=True, tag="resume"):
    """Lift such a pause."""

    scope: str = "engine"
    name: str = ""
    by: str = ""
    known: bool = False

    @property
    def task_id(self) -> bytes | None:
        """The task it is about, if it is about one."""
        return _task_named(self)


def _task_named(command: Pause | Resume) -> bytes | None:
    if command.scope != "task" or len(command.name) != 2 * len(NIL) or command.name != command.name.lower():
        return None
    try:
        return bytes.fromhex(command.name)
    except ValueError:
        return None


# --- decide -----------------------------------------------------------------------------------------------------


def _ended(run_id: bytes, known_state: int | None) -> ActionQueueError:
    if known_state is None:
        return UnknownRun(
            f"no run {RunId(bytes=run_id)} in this store; `actionqueue runs` lists them", run_id=RunId(bytes=run_id)
        )
    state = STATES[known_state].value
    return AlreadyTerminal(
        f"run {RunId(bytes=run_id)} has ended ({state}); retry it to run it again",
        run_id=RunId(bytes=run_id),
        state=state,
    )


def decide_cancel_run(state: State, command: CancelRun, now: int) -> Accepted | ActionQueueError:
    """Canceled now, asked to stop, abandoned, or (already so) nothing."""
    if command.how not in ("cancel", "kill", "abandon"):
        return InvalidSubmission("how: give cancel, kill or abandon", problems={"how": "cancel, kill or abandon"})
    run = state.runs.get(command.run_id)
    if run is None:
        return Accepted([], False) if command.known_state == CANCELED else _ended(command.run_id, command.known_state)
    attempt = run.attempt
    if attempt is None:
        return Accepted([RunCanceled(now, command.run_id, "canceled", command.by)], True)
    if command.how == "abandon":
        return Accepted([_abandoned(command.run_id, attempt, now, command.by)], True)
    if not _is_news(run, command.how):
        return Accepted([], False)
    return Accepted([CancelRequested(now, command.run_id, command.how, command.by)], True)


def decide_cancel_task(state: State, command: CancelTask, now: int) -> Accepted | ActionQueueError:
    """One event for all its live runs, and one more for each that is abandoned; the reply counts them."""
    if command.how not in ("cancel", "kill", "abandon"):
        return InvalidSubmission("how: give cancel, kill or abandon", problems={"how": "cancel, kill or abandon"})
    task = state.tasks.get(command.task_id)
    if task is None:
        if command.known:
            return Accepted([], 0)
        return UnknownTask(
            f"no task {TaskId(bytes=command.task_id)} in this store", task_id=TaskId(bytes=command.task_id)
        )
    live = task.live_runs()
    news = sum(_is_news(run, command.how) for run in live)
    schedule = task.extra.schedule
    if not news and (schedule is None or schedule.is_done):
        return Accepted([], 0)
    events: list[Any] = [TaskCanceled(now, command.task_id, command.how, command.by)]
    if command.how == "abandon":
        events += [_abandoned(run.id_bytes, run.attempt, now, command.by) for run in live if run.attempt is not None]
    return Accepted(events, news)


def _is_news(run: Run, how: str) -> bool:
    """Whether canceling ``run`` this way changes anything: it waits, or was not asked to stop, or only more gently."""
    if run.attempt is None or run.cancel is None or how == "abandon":
        return True
    return how == "kill" and run.cancel.how == "cancel"


def _abandoned(run_id: bytes, attempt: Attempt, now: int, by: str) -> AttemptFinished:
    return AttemptFinished(
        now, run_id, attempt.id, Outcome.CANCELED, CANCELED, "abandoned", None, None, None, abandoned=True, by=by
    )


def decide_reschedule(state: State, command: Reschedule, now: int) -> Accepted | ActionQueueError:
    """Only what waits for an instant can be moved."""
    if not 0 <= command.due_at <= SUBMIT_INSTANT_MAX:
        return InvalidSubmission("at: not an instant up to the year 9999", problems={"at": "out of range"})
    run = state.runs.get(command.run_id)
    if run is None:
        return _ended(command.run_id, command.known_state)
    if run.state not in (RunState.SCHEDULED, RunState.RETRY_WAIT):
        return NotReschedulable(
            f"run {run.id} is {run.state.value}; only a scheduled or retry_wait run can be rescheduled",
            run_id=run.id,
            state=run.state.value,
        )
    return Accepted([RunRescheduled(now, command.run_id, max(command.due_at, now))])


def decide_reprioritize(state: State, command: Reprioritize, now: int) -> Accepted | ActionQueueError:
    """Any live run can be given another priority."""
    if not PRIORITY_MIN <= command.priority <= PRIORITY_MAX:
        return InvalidSubmission("priority: not a signed 32-bit number", problems={"priority": "out of range"})
    if command.run_id not in state.runs:
        return _ended(command.run_id, command.known_state)
    return Accepted([RunReprioritized(now, command.run_id, command.priority)])


def _scope_problem(state: State, command: Pause | Resume) -> ActionQueueError | None:
    if command.scope not in SCOPES or bool(command.name) != (command.scope != "engine"):
        return InvalidSubmission(
            "scope: give engine, or queue, handler or task with a name", problems={"scope": f"not one of {SCOPES}"}
        )
    problem = text_problem(command.name) if command.name else None
    task_id = command.task_id
    if command.scope == "task" and task_id is None:
        problem = "not the id of a task in hex"
    if problem is not None:
        return InvalidSubmission(f"{command.scope}: {problem}", problems={command.scope: problem})
    if task_id is not None and not command.known and task_id not in state.tasks:
        return UnknownTask(f"no task {TaskId(bytes=task_id)} in this store", task_id=TaskId(bytes=task_id))
    return None


def decide_pause(state: State, command: Pause, now: int) -> Accepted | ActionQueueError:
    """Pausing what is paused is a success that changes nothing; the reply says whether it changed."""
    problem = _scope_problem(state, command)
    if problem is not None:
        return problem
    if (command.scope, command.name) in state.pauses:
        return Accepted([], False)
    task_id = command.task_id
    if task_id is not None and task_id not in state.tasks:
        return AlreadyTerminal(
            f"task {TaskId(bytes=task_id)} has ended: there is nothing left of it to pause",
            task_id=TaskId(bytes=task_id),
        )
    return Accepted([Paused(now, command.scope, command.name, command.by)], True)


def decide_resume(state: State, command: Resume, now: int) -> Accepted | ActionQueueError:
    """Resuming what is not paused is a success that changes nothing, also where a task has ended."""
    problem = _scope_problem(state, command)
    if problem is not None:
        return problem
    if (command.scope, command.name) not in state.pauses:
        return Accepted([], False)
    return Accepted([Resumed(now, command.scope, command.name, command.by)], True)


def decide_expired(runs: list[Run], now: int) -> list[Any]:
    """What was not started by its deadline is canceled, with the reason ``expired``."""
    return [RunCanceled(now, run.id_bytes, "expired") for run in runs]


# --- apply ------------------------------------------------------------------------------------------------------


def apply_run_canceled(state: State, event: RunCanceled) -> None:
    """The run has ended."""
    run = state.runs[event.run_id]
    if event.by:
        run.cancel = CancelMark(event.at, event.by, "cancel")
    cancel_waiting(state, run, event.at, event.reason)


def apply_cancel_requested(state: State, event: CancelRequested) -> None:
    """The mark stays with the run, also over a crash."""
    run = state.runs[event.run_id]
    run.cancel = CancelMark(event.at, event.by, event.how)
    state.dirty_runs[event.run_id] = run


def apply_task_canceled(state: State, event: TaskCanceled) -> None:
    """Every live run, oldest first."""
    task = state.tasks[event.task_id]
    if task.extra.canceled_at is None:
        task.extra = replace(task.extra, canceled_at=event.at)
    state.dirty_tasks[task.id] = task
    if task.extra.schedule is not None:
        stop(state, task.extra.schedule, event.at, event.by)
    for run in task.live_runs():
        if _is_news(run, event.how):
            run.cancel = CancelMark(event.at, event.by, event.how)
        if run.attempt is None:
            cancel_waiting(state, run, event.at, "canceled")
        else:
            state.dirty_runs[run.id_bytes] = run
    if task.head is None and task.finished_at is None:  # a schedule between two runs
        finish_task(state, task, event.at)


def apply_rescheduled(state: State, event: RunRescheduled) -> None:
    """The run waits for the new instant."""
    run = state.runs[event.run_id]
    state.dirty_runs[event.run_id] = run
    if run.where is Where.DEPENDENCY:
        run.reschedule(event.due_at)
        run.until = event.due_at
        return
    state.places.leave(run)
    if run.state is RunState.SCHEDULED:
        note_left(state, run)
        run.reschedule(event.due_at)
        run.reason = "rescheduled" if run.reason == OVERLAP else run.reason
    state.places.enter_timer(run, event.due_at)
    if run.attempt_count == 0 and run.task.extra.expires_us is not None:
        state.places.timers.watch_deadline(run)
    if run.task.extra.schedule is not None:
        let_come(state, run.task.extra.schedule)


def apply_reprioritized(state: State, event: RunReprioritized) -> None:
    """A Ready run moves in its lane; another one keeps the priority for later."""
    run = state.runs[event.run_id]
    run.priority = event.priority
    if run.where is Where.DEPENDENCY and run.state is RunState.READY:
        run.set_effective_priority(event.priority)
    if run.where in (Where.LANE, Where.QUARANTINE, Where.MISFIT):
        where = run.where
        state.places.leave(run)
        run.set_effective_priority(event.priority)
        if where is Where.MISFIT:
            state.places.enter_misfit(run)
        else:
            state.places.enter_lane(run)
    state.dirty_runs[event.run_id] = run


def apply_paused(state: State, event: Paused) -> None:
    """The mark is in force."""
    mark = state.pauses[event.scope, event.name] = PauseMark(event.scope, event.name, event.at, event.by)
    state.dirty_facts = True
    if event.scope == "task":
        state.places.pause_task(state.tasks[bytes.fromhex(event.name)], mark)
    else:
        state.places.set_pauses(state.pauses)


def apply_resumed(state: State, event: Resumed) -> None:
    """The mark is gone."""
    del state.pauses[event.scope, event.name]
    state.dirty_facts = True
    if event.scope == "task":
        state.places.resume_task(state.tasks[bytes.fromhex(event.name)])
    else:
        state.places.set_pauses(state.pauses)
