"""Accounting, task by task: the runs that its policy implies and that someone asked for, those there are, how they ended.

The promise it checks: a task has exactly the runs it implies, plus those that were asked for, each with who asked; every
one has ended once or is open; none was tried more often than it may be. It reads the tables beside a live engine; what
`verify` checks (that the tables are what the log leads to) it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct, msgpack
from msgspec.structs import replace

from actionqueue.core.errors import InvalidSubmission, StoreDamaged
from actionqueue.core.ids import TaskId
from actionqueue.core.instants import to_datetime
from actionqueue.core.rows import ENDED_ENTRIES, Row, ScheduleBody
from actionqueue.core.rules import CronRule, timetable
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, FIRST_TERMINAL
from actionqueue.store.port import Reader

PROBLEM_TASKS_MAX = 1_000
"""Tasks that are not consistent and are kept in a report; all are counted."""


class TaskAudit(Struct, frozen=True, kw_only=True):
    """One task's account. ``implied`` by its policy and ``asked`` for are the runs it should have, ``created`` those it
    has; ``problems`` says what does not fit."""

    task_id: TaskId
    handler: str
    created_at: datetime
    implied: int
    asked: int
    created: int
    open: int
    completed: int
    failed: int
    canceled: int
    problems: tuple[str, ...] = ()

    @property
    def is_consistent(self) -> bool:
        """Whether everything fits."""
        return not self.problems


class AuditReport(Struct, frozen=True, kw_only=True):
    """The sums over all tasks of the range, and those that are not consistent (the first thousand)."""

    tasks: int = 0
    implied: int = 0
    asked: int = 0
    created: int = 0
    open: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    inconsistent_count: int = 0
    inconsistent: tuple[TaskAudit, ...] = ()

    @property
    def is_consistent(self) -> bool:
        """Whether every task is."""
        return self.inconsistent_count == 0

    def __str__(self) -> str:
        ended = f"{self.completed} completed, {self.failed} failed, {self.canceled} canceled"
        lines = [
            f"{self.tasks} tasks imply {self.implied} runs, {self.asked} more were asked for",
            f"{self.created} runs are there: {ended}, {self.open} open",
        ]
        for each in self.inconsistent:
            lines += [f"task {each.task_id} ({each.handler}): {problem}" for problem in each.problems]
        if self.inconsistent_count > len(self.inconsistent):
            lines.append(f"… and {self.inconsistent_count - len(self.inconsistent)} tasks more")
        lines.append("consistent" if self.is_consistent else f"not consistent: {self.inconsistent_count} tasks")
        return "\n".join(lines)


def audit(
    reader: Reader,
    *,
    since: int | None = None,
    until: int | None = None,
    each: Callable[[TaskAudit], object] | None = None,
) -> AuditReport:
    """Account for the tasks created from ``since`` on and before ``until`` (instants in microseconds), oldest first.

    ``each`` is called with every task's account. Reads one snapshot, of tasks and runs side by side: about 10 µs a task.
    Raises ``StoreDamaged`` where a row cannot be read.
    """
    report = AuditReport()
    kept: list[TaskAudit] = []
    with reader.scan() as scan:
        schedules = _schedules(scan.rows("entries"))
        for task, runs in _side_by_side(scan.rows("tasks", _TASK), scan.runs_by_task(_RUN)):
            if (since is not None and task[2] < since) or (until is not None and task[2] >= until):
                continue
            account = account_of(task, runs, schedules.get(task[0]))
            report = _with(report, account)
            if account.problems and len(kept) < PROBLEM_TASKS_MAX:
                kept.append(account)
            if each is not None:
                each(account)
    return replace(report, inconsistent=tuple(kept))


_TASK = (
    "id", "handler", "created_at", "max_attempts", "run_count", "finished_at", "completed", "failed", "canceled",
)  # fmt: skip
_RUN = ("task_id", "id", "state", "retry_of", "asked_by", "attempt_count", "failure_count", "lost_count")
_SUMMED = ("implied", "asked", "created", "open", "completed", "failed", "canceled")
_NAMES = {COMPLETED: "completed", FAILED: "failed", CANCELED: "canceled"}


def _schedules(entries: Iterator[Row]) -> dict[bytes, ScheduleBody]:
    """What is recorded of schedules, by task id."""
    found: dict[bytes, ScheduleBody] = {}
    for kind, _, body, *_ in entries:
        if kind in ("schedule", ENDED_ENTRIES):
            schedule = msgpack.decode(body, type=ScheduleBody)
            found[schedule.task_id] = schedule
    return found


def _side_by_side(tasks: Iterator[Row], runs: Iterator[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Each task with its runs; both come in the order of the tasks' ids."""
    run = next(runs, None)
    for task in tasks:
        mine: list[Row] = []
        while run is not None and run[0] <= task[0]:
            if run[0] < task[0]:
                raise _unreadable("runs", run[1], "its task is missing")
            mine.append(run)
            run = next(runs, None)
        if None in (*task[2:5], *task[6:]) or any(None in (each[2], *each[5:]) for each in mine):
            raise _unreadable("tasks", task[0], "its row, or one of its runs', cannot be read")
        yield task, mine
    if run is not None:
        raise _unreadable("runs", run[1], "its task is missing")


def _unreadable(table: str, id: bytes, what: str) -> StoreDamaged:
    return StoreDamaged(
        f"{table} {id.hex()}: {what}. Run `actionqueue verify` for the extent; `actionqueue restore` brings a backup back.",
        place=f"{table} {id.hex()}",
    )


def _with(report: AuditReport, account: TaskAudit) -> AuditReport:
    sums = {name: getattr(report, name) + getattr(account, name) for name in _SUMMED}
    return replace(
        report, tasks=report.tasks + 1, inconsistent_count=report.inconsistent_count + bool(account.problems), **sums
    )


def account_of(task: Row, runs: Sequence[Row], schedule: ScheduleBody | None = None) -> TaskAudit:
    """The account of a task, from the columns ``_TASK`` of it and ``_RUN`` of its runs."""
    states = Counter(run[2] for run in runs)
    asked = sum(run[4] is not None for run in runs)
    implied = _implied(schedule)
    open_count = sum(count for state, count in states.items() if state < FIRST_TERMINAL)
    problems = (*_schedule_problems(schedule), *_problems(task, runs, schedule, asked, states, open_count))
    return TaskAudit(
        task_id=TaskId(bytes=task[0]), handler=task[1], created_at=to_datetime(task[2]), implied=implied, asked=asked,
        created=len(runs), open=open_count, completed=states[COMPLETED], failed=states[FAILED],
        canceled=states[CANCELED], problems=problems,
    )  # fmt: skip


def _implied(schedule: ScheduleBody | None) -> int:
    """The runs that a task's policy implies: for a schedule, so far."""
    return 1 if schedule is None else schedule.index - sum(schedule.skipped.values())


def _schedule_problems(schedule: ScheduleBody | None) -> Iterator[str]:
    """Counted anew: has every occurrence up to the last one a run, or is it counted as skipped?"""
    if schedule is None:
        return
    rule = schedule.rule
    begins = schedule.base if isinstance(rule, CronRule) else -1
    if isinstance(rule, CronRule) and rule.starts_us is not None:
        begins = max(begins, rule.starts_us - 1)
    try:
        count = timetable(rule, schedule.base).count(begins, schedule.cursor)
    except InvalidSubmission as problem:  # valid where it was submitted
        yield f"its occurrences cannot be counted here: {problem.message}"
        return
    if count != schedule.index:
        yield f"its schedule occurred {count} times up to its last one; {schedule.index} are accounted for"


def _problems(
    task: Row, runs: Sequence[Row], schedule: ScheduleBody | None, asked: int, states: Counter[int], open_count: int
) -> Iterator[str]:
    _, _, _, max_attempts, run_count, finished_at, *ended = task
    implied = _implied(schedule)
    if len(runs) != implied + asked:
        said = "1 run" if implied == 1 else f"{implied} runs so far"
        yield f"its policy implies {said} and {asked} were asked for; there are {len(runs)}"
    if run_count != len(runs):
        yield f"it counts {run_count} runs; there are {len(runs)}"
    for counted, (state, name) in zip(ended, _NAMES.items(), strict=True):
        if counted != states[state]:
            yield f"it counts {counted} {name} runs; there are {states[state]}"
    to_come = schedule is not None and not (schedule.over and not schedule.backfills)
    if (finished_at is None) != (open_count > 0 or to_come):
        yield f"it is {'open' if finished_at is None else 'finished'}, and {open_count} of its runs are open"
    for _, run_id, _, retry_of, asked_by, attempts, failures, losses in runs:
        if retry_of is not None and not asked_by:
            yield f"run {run_id.hex()} was asked for by nobody"
        if failures > max_attempts:
            yield f"run {run_id.hex()} failed {failures} times of at most {max_attempts}"
        if failures + losses > attempts:
            yield f"run {run_id.hex()} had {failures} failures and {losses} losses in {attempts} attempts"
