"""Dependencies that are added to a task after it was submitted, while it has not started.

One that has started cannot be held back any more; one of a schedule runs when the schedule says. A Ready run that is given
something to wait for stays Ready and is blocked. What is added joins what was there, under the same rule for upstreams
that end badly; one that has ended badly already cancels the task at once, or is let pass.

Knows: the command, its event, what is refused. Must not know: how waiting works (``core/graph.py``).
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core import graph
from actionqueue.core.attempts import cancel_waiting
from actionqueue.core.errors import ActionQueueError, AlreadyTerminal, Conflict, InvalidSubmission, UnknownTask
from actionqueue.core.ids import TaskId
from actionqueue.core.reasons import Where, canceled_by
from actionqueue.core.spec import Depends, depends_problems
from actionqueue.core.state import Accepted, State
from actionqueue.core.submission import KnownTask, check_dependencies, cycle, failed_of


class DependenciesAdded(Struct, frozen=True, array_like=True, tag=40):
    """A task that has not started depends on these, too. ``failed`` is as in ``RareFields``."""

    at: int
    task_id: bytes
    on: tuple[bytes, ...]
    by: str = ""
    failed: bytes = b""


class AddDependencies(Struct, array_like=True, tag="add_dependencies"):
    """Let a task that has not started wait for more tasks. ``known`` says that it exists although it has left memory."""

    task_id: bytes
    on: tuple[bytes, ...]
    by: str = ""
    known: bool = False
    known_tasks: dict[bytes, KnownTask] = {}


def decide_add(state: State, command: AddDependencies, now: int) -> Accepted | ActionQueueError:
    """The reply says how many of them are new."""
    task = state.tasks.get(command.task_id)
    task_id = TaskId(bytes=command.task_id)
    if task is None:
        if command.known:
            return AlreadyTerminal(f"task {task_id} has ended; there is nothing left to hold back", task_id=task_id)
        return UnknownTask(f"no task {task_id} in this store", task_id=task_id)
    if task.extra.rule is not None:
        problem = "the task has a schedule; what depends on others runs once, after them"
        return InvalidSubmission(f"depends_on: {problem}", problems={"depends_on": problem})
    if sum(task.ended) or any(run.attempt_count for run in task.live_runs()):
        return Conflict(f"task {task_id} has started; only one that has not can be made to wait", task_id=task_id)
    before = task.extra.depends
    there = () if before is None else before.on
    on = tuple([each for each in dict.fromkeys(command.on) if each not in there])
    whole = Depends((*there, *on)) if before is None else replace(before, on=(*there, *on))
    problems = {name: problem for name, problem in depends_problems(whole).items() if problem is not None}
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        return InvalidSubmission(f"the dependencies are not valid: {listed}", problems=problems)
    added = replace(whole, on=on)
    refusal = check_dependencies(state, task.id, added, command.known_tasks, {})
    if refusal is not None:
        return refusal
    path = graph.path_to(state, on, task.id)
    if path is not None:
        return cycle([task.id, *path])
    if not on:
        return Accepted([], 0)
    failed = failed_of(state, added, command.known_tasks)
    return Accepted([DependenciesAdded(now, task.id, on, command.by, failed)], len(on))


def apply_added(state: State, event: DependenciesAdded) -> None:
    """Its run waits, where any of them is live; or is canceled."""
    task = state.tasks[event.task_id]
    before = task.extra.depends
    on = event.on if before is None else (*before.on, *event.on)
    task.extra = replace(task.extra, depends=Depends(on) if before is None else replace(before, on=on))
    state.dirty_tasks[task.id] = task
    waits = graph.enter(state, task)
    for run in task.live_runs():
        state.dirty_runs[run.id_bytes] = run  # for its marks
        if event.failed:
            state.fallen.append(task)
            cancel_waiting(state, run, event.at, canceled_by(event.failed))
        elif waits and run.where is not Where.DEPENDENCY:
            state.places.leave(run)
            graph.hold(state, run)
