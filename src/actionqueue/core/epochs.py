"""What the engine says of itself: its hold of the store (epochs), the handlers it declares, what it pruned."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from actionqueue.core.errors import ActionQueueError, Conflict, InvalidSubmission
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.spec import Submission
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, Accepted, Declaration, Epoch, State
from actionqueue.core.upcoming import follow_wall


class EngineOpened(Struct, frozen=True, array_like=True, tag=20):
    """An engine took the store. Whatever an earlier epoch left open is lost."""

    at: int
    number: int
    pid: int
    host: str
    version: str
    wall_shift: int = 0
    """How far the wall clock is ahead of ``at``."""
    wall_change: int = 0
    """How much more that is than it was."""


class WallMoved(Struct, frozen=True, array_like=True, tag=24):
    """The wall clock was set, or has drifted: it is ``wall_shift`` microseconds ahead of ``at`` now, ``wall_change`` more
    than before."""

    at: int
    wall_shift: int
    wall_change: int


class EngineClosed(Struct, frozen=True, array_like=True, tag=21):
    """The engine let go in order: nothing was running."""

    at: int


class HandlersDeclared(Struct, frozen=True, array_like=True, tag=22):
    """What decorators declare, where it changed: the defaults of submissions that leave it open."""

    at: int
    declarations: list[Declaration]


class TasksPruned(Struct, frozen=True, array_like=True, tag=23):
    """Finished tasks left the store with their runs: how many, and of runs how many by terminal state."""

    at: int
    tasks: int
    completed: int
    failed: int
    canceled: int
    finished_before: int


class Declare(Struct, array_like=True, tag="declare"):
    """Declare handlers; what is recorded already is not recorded again."""

    declarations: list[Declaration]
    items: list[Submission] = []
    """The schedules that they declare; any other that one of these handlers declared before is retired."""


class FollowWall(Struct, array_like=True, tag="follow_wall"):
    """Have cron schedules follow the wall clock, which is that far ahead of the engine's."""

    wall_shift: int


class Prune(Struct, array_like=True, tag="prune"):
    """Record that these were deleted in the same commit."""

    tasks: int
    completed: int
    failed: int
    canceled: int
    finished_before: int
    task_ids: list[bytes] = []
    as_of: int = 0


class Close(Struct, array_like=True, tag="close"):
    """Record a graceful end."""


class Touch(Struct, array_like=True, tag="touch"):
    """Change nothing: its reply comes when everything before it is durable and projected."""


class ConfirmClock(Struct, array_like=True, tag="confirm_clock"):
    """An operator vouches for the clock as it is. Changes no state: the engine that takes it does what it says."""

    by: str = ""


class PruneHistory(Struct, array_like=True, tag="prune_history"):
    """Have what ended before an instant deleted, and the log before another (None: left alone).

    Changes no state by itself: the engine that takes it chooses tasks and sends ``Prune``. The reply is (tasks, commits,
    whether there is more), after a few seconds at most.
    """

    finished_before: int | None = None
    log_before: int | None = None
    by: str = ""


SERVED = (ConfirmClock, PruneHistory)
"""Commands that the engine serves beside the writer; decided, they mean nothing."""


def decide_prune(state: State, command: Prune, now: int) -> Accepted | ActionQueueError:
    """What may be pruned was chosen by the caller, as of a sequence; refused when any of it has changed since."""
    if any(
        task_id in state.tasks or task_id in state.dependents or state.ended_since(task_id, command.as_of)
        for task_id in command.task_ids
    ):
        return Conflict("one of the tasks to prune has had a run since it was chosen, or is depended on; choose again")
    event = TasksPruned(
        now, command.tasks, command.completed, command.failed, command.canceled, command.finished_before
    )
    return Accepted([event])


def decide_follow_wall(state: State, command: FollowWall, now: int) -> Accepted | ActionQueueError:
    """Only a change is recorded."""
    if abs(command.wall_shift) > SUBMIT_INSTANT_MAX:
        return InvalidSubmission("wall_shift: more than there is time", problems={"wall_shift": "out of range"})
    change = command.wall_shift - state.wall_shift
    return Accepted([WallMoved(now, command.wall_shift, change)] if change else [])


def decide_close(state: State, command: Close, now: int) -> Accepted | ActionQueueError:
    """Always possible."""
    return Accepted([EngineClosed(now)])


def decide_touch(state: State, command: Touch | ConfirmClock | PruneHistory, now: int) -> Accepted | ActionQueueError:
    """Nothing to decide."""
    return Accepted([])


def apply_opened(state: State, event: EngineOpened) -> None:
    """The epoch begins."""
    state.epoch = Epoch(event.number, event.at, event.pid, event.host, event.version)
    state.dirty_facts = True
    follow_wall(state, event.wall_shift, event.wall_change)


def apply_wall_moved(state: State, event: WallMoved) -> None:
    """What cron schedules have ahead falls due as the wall clock says."""
    follow_wall(state, event.wall_shift, event.wall_change)


def apply_closed(state: State, event: EngineClosed) -> None:
    """The epoch ended in order."""
    epoch = state.epoch
    assert epoch is not None
    state.epoch = Epoch(epoch.number, epoch.opened_at, epoch.pid, epoch.host, epoch.version, closed=True)
    state.dirty_facts = True


def apply_declared(state: State, event: HandlersDeclared) -> None:
    """The declarations are in force for what is submitted from now on."""
    for each in event.declarations:
        state.declarations[each.handler] = each
    state.dirty_facts = True


def apply_pruned(state: State, event: TasksPruned) -> None:
    """The counts follow."""
    counts: list[Any] = state.counts
    counts[COMPLETED] -= event.completed
    counts[FAILED] -= event.failed
    counts[CANCELED] -= event.canceled
    state.tasks_total -= event.tasks
    state.pruned_before = max(state.pruned_before, event.finished_before)
    state.dirty_facts = True
