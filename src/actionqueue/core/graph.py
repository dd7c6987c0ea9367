"""Which tasks wait for which: the index behind dependencies, and what the end of a task does to those that wait for it.

A task with dependencies is *waiting* from its submission (or from when it was given more of them) until none of those it
names is live. It is never asked whether a dependency "was satisfied": one that is live is not, one that has ended well is,
and one that ended badly has canceled the task in the very event that ended it, or is let pass (``on_failure="run"``). So
the index follows from the rows of live tasks alone, live, on replay and after a restart:

- ``state.dependents``: of each task that some live task names, live or not, those tasks;
- ``state.unmet``: of each waiting task, the live ones among those it names.

The end of a task is told to its dependents as part of the event that ends it: they become due, or are canceled, which may
end them, and so on; one loop, however deep. A dependency that comes back to life (a retry) is waited for again by who is
still waiting.

Knows: tasks, their dependencies, how they ended. Must not know: commands and events; ``submission`` and ``dependencies``
decide, ``attempts`` tells of ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from actionqueue.core.reasons import WAITS, Where, canceled_by
from actionqueue.core.run import RunState

if TYPE_CHECKING:
    from actionqueue.core.spec import Depends
    from actionqueue.core.state import Run, State, Task

MET = "dependencies_met"
"""The reason of a Scheduled run that has waited for them, until it is due."""

Cancel = Callable[["State", "Run", int, str], None]
"""Ends a run that has no open attempt in Canceled: (state, run, at, reason)."""


class Outlook:
    """How a task has ended, for those that depend on it (kept in ``KnownTask.outlook`` where it has left memory)."""

    NOT_KNOWN, COMPLETED, PARTIAL, FAILED = range(4)


def outlook_of(task: Task) -> int:
    """Of a task that has finished: whether the newest run of each of its chains of retries completed, some, or none."""
    completed, failed, canceled = task.ended
    extra = task.extra
    if not completed or extra.rule is None:
        return Outlook.COMPLETED if completed else Outlook.FAILED
    is_whole = (
        failed + canceled <= extra.retries and extra.canceled_at is None
    )  # each retry stands for one that ended so
    return Outlook.COMPLETED if is_whole else Outlook.PARTIAL


def satisfies(depends: Depends, outlook: int) -> bool:
    """Whether a dependency that ended so lets the task go on."""
    if outlook == Outlook.COMPLETED or depends.on_failure == "run":
        return True
    return outlook == Outlook.PARTIAL and depends.partial


# --- the index --------------------------------------------------------------------------------------------------


def enter(state: State, task: Task) -> bool:
    """``task`` has dependencies and is live: it is known to them. Whether any of them is live, so that it waits."""
    depends = task.extra.depends
    assert depends is not None
    for upstream in depends.on:
        state.dependents.setdefault(upstream, {})[task.id] = task
    return wait(state, task)


def wait(state: State, task: Task) -> bool:
    """``task`` waits for those of its dependencies that are live; False where none is."""
    depends = task.extra.depends
    assert depends is not None
    unmet = dict.fromkeys(each for each in depends.on if each in state.tasks)
    if unmet:
        state.unmet[task.id] = unmet
    return bool(unmet)


def leave(state: State, task: Task) -> None:
    """``task`` has ended, and waits for nothing."""
    depends = task.extra.depends
    assert depends is not None
    state.unmet.pop(task.id, None)
    for upstream in depends.on:
        mine = state.dependents[upstream]
        del mine[task.id]
        if not mine:
            del state.dependents[upstream]
            state.results.pop(upstream, None)


def revive(state: State, task: Task) -> None:
    """``task``, which had finished, is live again: who still waits for others waits for it, too."""
    for dependent in state.dependents.get(task.id, ()):
        unmet = state.unmet.get(dependent)
        if unmet is not None:
            unmet[task.id] = None


def neighbours(state: State, task_id: bytes) -> Iterable[bytes]:
    """What a live task cannot end before."""
    task = state.tasks.get(task_id)
    depends = None if task is None else task.extra.depends
    return () if depends is None else depends.on


def path_to(state: State, starts: Iterable[bytes], goal: bytes) -> list[bytes] | None:
    """A way from one of ``starts`` along what each waits for to ``goal``; None where there is none."""
    came_from: dict[bytes, bytes | None] = dict.fromkeys(starts)
    pending = deque(came_from)
    while pending:
        here = pending.popleft()
        if here == goal:
            return _way_back(came_from, here)
        for each in neighbours(state, here):
            if each not in came_from:
                came_from[each] = here
                pending.append(each)
    return None


def _way_back(came_from: dict[bytes, bytes | None], here: bytes | None) -> list[bytes]:
    found: list[bytes] = []
    while here is not None:
        found.append(here)
        here = came_from[here]
    found.reverse()
    return found


# --- ends -------------------------------------------------------------------------------------------------------


class Cascade:
    """The ends of tasks that are still to be told to those that wait for them, and why each of them ended."""

    __slots__ = ("origins", "pending")

    def __init__(self, first: Task) -> None:
        self.pending = deque([first])
        self.origins: dict[bytes, bytes] = {}


def tell_end(state: State, task: Task, at: int, cancel: Cancel) -> None:
    """``task`` has finished: who waits for it goes on or is canceled, in the same event."""
    if state.cascade is not None:  # it ended because another did, whose end is being told
        state.cascade.pending.append(task)
        return
    cascade = state.cascade = Cascade(task)
    while cascade.pending:
        _tell(state, cascade, cascade.pending.popleft(), at, cancel)
    state.cascade = None


def _tell(state: State, cascade: Cascade, task: Task, at: int, cancel: Cancel) -> None:
    outlook = outlook_of(task)
    origin = cascade.origins.get(task.id, task.id)
    for dependent in list(state.dependents.get(task.id, {}).values()):
        unmet = state.unmet.get(dependent.id)
        if unmet is None or task.id not in unmet:
            continue
        depends = dependent.extra.depends
        assert depends is not None
        if satisfies(depends, outlook):
            del unmet[task.id]
            if not unmet:
                del state.unmet[dependent.id]
                for run in dependent.live_runs():
                    _release(state, run)
        else:
            cascade.origins[dependent.id] = origin
            state.fallen.append(dependent)
            for run in dependent.live_runs():
                cancel(state, run, at, canceled_by(origin))


def hold(state: State, run: Run) -> None:
    """``run`` waits for what its task depends on, in whatever state it is."""
    run.reason = WAITS
    state.places.enter_dependency(run)
    state.dirty_runs[run.id_bytes] = run


def _release(state: State, run: Run) -> None:
    if run.where is not Where.DEPENDENCY:
        return
    state.places.leave(run)
    state.dirty_runs[run.id_bytes] = run
    if run.state is RunState.READY:
        run.reason = "due"
        state.places.enter_lane(run)
    else:
        run.reason = MET
        state.places.enter_timer(run, run.until)


# --- invariants -------------------------------------------------------------------------------------------------


def graph_problems(state: State) -> Iterator[str]:
    """What does not hold of the index, for ``check``."""
    known: dict[bytes, dict[bytes, Task]] = {}
    for task in state.tasks.values():
        depends = task.extra.depends
        for upstream in () if depends is None else depends.on:
            known.setdefault(upstream, {})[task.id] = task
    waiting = [run for run in state.runs.values() if run.where is Where.DEPENDENCY]
    if {run.task.id for run in waiting} != state.unmet.keys():
        yield f"{len(waiting)} runs wait for tasks, and {len(state.unmet)} tasks are known to"
    for run in waiting:
        if run.reason != WAITS:
            yield f"run {run.id_bytes.hex()}: it waits for tasks, and does not say so"
    if known != state.dependents:
        yield "the tasks that others depend on are not those known"
    for task_id, unmet in state.unmet.items():
        waits = state.tasks.get(task_id)
        depends = None if waits is None else waits.extra.depends
        live = set() if depends is None else {each for each in depends.on if each in state.tasks}
        if not unmet or set(unmet) != live:
            yield f"task {task_id.hex()}: it waits for {len(unmet)} tasks, of those it depends on {len(live)} are live"
    if state.cascade is not None or not state.results.keys() <= state.dependents.keys():
        yield "the end of a task was not told to all, or a result is kept that nobody depends on"
