"""Reading and controlling: the operations that do not depend on where the engine runs.

Each is written once, as an ``_op_…`` method that returns an ``Operation``; the public names are its blocking and its
awaiting form.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack
from uuid import UUID

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, ManyRuns, UnknownRun, UnknownTask
from actionqueue.core.ids import RunId, TaskId, fresh_id_bytes
from actionqueue.core.instants import instant_us
from actionqueue.core.machine import Command
from actionqueue.core.spec import name_problem
from actionqueue.core.submission import RetryRun
from actionqueue.engine.tickets import CallTicket, Ticket
from actionqueue.filters import Filter, RunFilters, TaskFilters, task_filter
from actionqueue.line import Line, Read
from actionqueue.operations import Operation, awaiting, blocking
from actionqueue.reading import StateChange, history_of, read_runs, read_tasks, stats_of
from actionqueue.records import Page, RunRecord, Stats, TaskRecord, run_record, task_record
from actionqueue.store.port import Reader, RunFilter

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
RunKey = RunId | UUID | str | bytes
TaskKey = TaskId | UUID | str | bytes
How = Literal["cancel", "kill", "abandon"]


def run_id_of(value: RunKey) -> bytes:
    """A run id in any of its forms; raises ``InvalidSubmission``."""
    return RunId.parse(value, field="run id").bytes


def task_id_of(value: TaskKey) -> bytes:
    """A task id in any of its forms; raises ``InvalidSubmission``."""
    return TaskId.parse(value, field="task id").bytes


class Operating:
    """The reads and controls of ``ActionQueue``."""

    def line(self) -> Line:
        """The line to the engine, opened as a client when nothing is open yet."""
        raise AssertionError("supplied by ActionQueue")

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether blocking this loop would keep the queue's handlers from running."""
        raise AssertionError("supplied by ActionQueue")

    def asker(self) -> str:
        """Who is recorded as having asked."""
        raise AssertionError("supplied by ActionQueue")

    def _send(self, command: Command, finish: Callable[[Any], T]) -> Operation[T]:
        return Operation(lambda ticket: self.line().post(command, ticket), finish)

    def _read(self, question: Callable[[Reader], T], absent: Callable[[], T] | None = None) -> Operation[T]:
        read: Read = question
        return Operation(lambda ticket: self.line().read(read, ticket, absent=absent), lambda reply: reply)

    # --- reads -------------------------------------------------------------------------------------------------

    def _op_runs(self, /, **wanted: Unpack[RunFilters]) -> Operation[Page[RunRecord]]:
        """A page of runs, newest first, without their attempts.

        Filters, which hold together: ``state`` (one or several), ``task``, ``handler``, ``queue``, ``tag``, ``key``
        (the task's idempotency key), ``since``, ``until`` (aware datetimes, of creation), ``error`` (the kind),
        ``text`` (in the error or the handler's name; needs ``since``), ``cursor`` (``next_cursor`` of a page),
        ``limit`` (1 to 1000, default 100). Raises ``InvalidSubmission`` naming every problem.
        """
        asked = Filter(wanted).run_filter()
        return self._read(lambda reader: read_runs(reader, asked))

    def _op_tasks(self, /, **wanted: Unpack[TaskFilters]) -> Operation[Page[TaskRecord]]:
        """A page of tasks, newest first.

        Filters, which hold together: ``task``, ``handler``, ``queue``, ``key`` (its idempotency key), ``since``,
        ``until`` (aware datetimes, of creation), ``cursor`` (``next_cursor`` of a page), ``limit`` (1 to 1000, default
        100). Raises ``InvalidSubmission`` naming every problem.
        """
        asked = task_filter(wanted)
        return self._read(lambda reader: read_tasks(reader, asked))

    def _op_get_run(self, run_id: RunKey) -> Operation[RunRecord]:
        """One run with its attempts. Raises ``UnknownRun``."""
        key = run_id_of(run_id)

        def question(reader: Reader) -> RunRecord:
            row = reader.runs_by_id([key]).get(key)
            if row is None:
                raise UnknownRun(f"no run {RunId(bytes=key)} in this store", run_id=RunId(bytes=key))
            return run_record(row, reader.attempts_of([key]).get(key, []))

        return self._read(question)

    def _op_get_task(self, task_id: TaskKey) -> Operation[TaskRecord]:
        """One task. Raises ``UnknownTask``."""
        key = task_id_of(task_id)

        def question(reader: Reader) -> TaskRecord:
            row = reader.tasks_by_id([key]).get(key)
            if row is None:
                raise UnknownTask(f"no task {TaskId(bytes=key)} in this store", task_id=TaskId(bytes=key))
            return task_record(row)

        return self._read(question)

    def _op_history(self, run_id: RunKey) -> Operation[list[StateChange]]:
        """Every state change of a run with its instant and reason, oldest first. Raises ``UnknownRun``.

        Derived from the run and its attempts: pauses, reschedules and changes of priority leave no entry.
        """
        key = run_id_of(run_id)
        return self._read(lambda reader: history_of(reader, key))

    def _op_stats(self) -> Operation[Stats]:
        """Counts from the engine's own counters; costs the same whatever the store holds."""
        return self._read(stats_of)

    def newest_state(self, task_id: bytes) -> Operation[str | None]:
        """The state of a task's newest run; None while the submission is undecided."""

        def question(reader: Reader) -> str | None:
            rows = reader.runs_of(self.line().identify(task_id, reader))
            if not rows:
                return None
            chains = {row[20] or row[0] for row in rows}
            if len(chains) > 1:
                raise ManyRuns("the task has more than one run; ask runs()", task_id=TaskId(bytes=task_id))
            return run_record(rows[-1]).state

        return self._read(question, absent=lambda: None)

    def runs_of_task(self, task_id: bytes) -> Operation[list[RunRecord]]:
        """A task's runs with their attempts."""

        def question(reader: Reader) -> list[RunRecord]:
            rows = reader.runs_of(self.line().identify(task_id, reader))
            attempts = reader.attempts_of([row[0] for row in rows])
            return [run_record(row, attempts.get(row[0], [])) for row in rows]

        return self._read(question, absent=list)

    def cancel_submitted(self, task_id: bytes, *, undecided: bool) -> Operation[int]:
        """Cancel a task that this process submitted; while its id is undecided, under the one it has in the store."""
        if not undecided:
            return self._op_cancel_task(task_id)

        def send(ticket: Ticket) -> None:
            line = self.line()

            def post(found: Any) -> None:
                try:
                    if isinstance(found, ActionQueueError):
                        raise found
                    line.post(CancelTask(found, by=self.asker()), ticket)
                except ActionQueueError as error:  # told to whoever waits; this is not the caller's thread
                    ticket.settle(error)

            line.read(lambda reader: line.identify(task_id, reader), CallTicket(post), absent=lambda: task_id)

        return Operation(send, int)

    # --- controls ----------------------------------------------------------------------------------------------

    def _op_cancel_run(self, run_id: RunKey, how: How = "cancel") -> Operation[bool]:
        """Cancel a run: ``cancel`` asks running code to stop, ``kill`` ends it by force, ``abandon`` drops the grant.

        False when it was canceled (or being canceled) already. Raises ``AlreadyTerminal``, ``UnknownRun``.
        """
        return self._send(CancelRun(run_id_of(run_id), how, self.asker()), bool)

    def _op_cancel_task(self, task_id: TaskKey, how: How = "cancel") -> Operation[int]:
        """Cancel all live runs of a task, as ``cancel_run`` does; how many that concerned. Raises ``UnknownTask``."""
        return self._send(CancelTask(task_id_of(task_id), how, self.asker()), int)

    def _op_retry_run(self, run_id: RunKey, *, with_dependents: bool = False, fresh: bool = False) -> Operation[RunId]:
        """A new run of the same task for a failed or canceled one, linked to it; its id.

        It has all its attempts again, and the idempotency token of the first run of the chain. What steps and waits have
        recorded carries over, unless ``fresh``: then it is forgotten, and all is done again. ``with_dependents``: the
        tasks that were canceled because it did not complete get new runs too, which wait for it. Raises ``NotRetryable``
        (completed, live, being retried already, or what it depends on did not complete), ``UnknownRun``.
        """
        command = RetryRun(
            run_id_of(run_id), fresh_id_bytes(), self.asker(), with_dependents=bool(with_dependents), fresh=bool(fresh)
        )
        return self._send(command, lambda reply: RunId(bytes=reply[1]))

    def _op_reschedule(self, run_id: RunKey, at: datetime) -> Operation[None]:
        """Move a scheduled or retry_wait run to ``at``, an aware datetime up to the year 9999.

        Raises ``NotReschedulable`` (ready or running), ``AlreadyTerminal``, ``UnknownRun``.
        """
        return self._send(Reschedule(run_id_of(run_id), instant_us(at, field="at")), lambda reply: None)

    def _op_reprioritize(self, run_id: RunKey, priority: int) -> Operation[None]:
        """Give a live run another priority (32-bit signed, larger first). Raises ``AlreadyTerminal``, ``UnknownRun``.

        It takes effect at once where the run is ready, else when it next becomes so.
        """
        if type(priority) is not int:
            raise InvalidSubmission("priority: not a whole number", problems={"priority": "not a whole number"})
        return self._send(Reprioritize(run_id_of(run_id), priority), lambda reply: None)

    def _op_pause(
        self, *, queue: str | None = None, handler: str | None = None, task: TaskKey | None = None
    ) -> Operation[bool]:
        """Promote and start nothing of a queue, of a handler, of a task, or (none given) of the whole engine.

        Running work goes on; the pause survives a restart. False when it was paused already. Raises ``UnknownTask``,
        and ``AlreadyTerminal`` for a task that has ended; the pause of a task ends with it.
        """
        return self._send(Pause(*_scope(queue, handler, task), self.asker()), bool)

    def _op_resume(
        self, *, queue: str | None = None, handler: str | None = None, task: TaskKey | None = None
    ) -> Operation[bool]:
        """Lift the pause of the same scope. False when there was none. Raises ``UnknownTask``."""
        return self._send(Resume(*_scope(queue, handler, task), self.asker()), bool)

    runs = blocking(_op_runs)
    aruns = awaiting(_op_runs)
    tasks = blocking(_op_tasks)
    atasks = awaiting(_op_tasks)
    get_run = blocking(_op_get_run)
    aget_run = awaiting(_op_get_run)
    get_task = blocking(_op_get_task)
    aget_task = awaiting(_op_get_task)
    history = blocking(_op_history)
    ahistory = awaiting(_op_history)
    stats = blocking(_op_stats)
    astats = awaiting(_op_stats)
    cancel_run = blocking(_op_cancel_run)
    acancel_run = awaiting(_op_cancel_run)
    cancel_task = blocking(_op_cancel_task)
    acancel_task = awaiting(_op_cancel_task)
    retry_run = blocking(_op_retry_run)
    aretry_run = awaiting(_op_retry_run)
    reschedule = blocking(_op_reschedule)
    areschedule = awaiting(_op_reschedule)
    reprioritize = blocking(_op_reprioritize)
    areprioritize = awaiting(_op_reprioritize)
    pause = blocking(_op_pause)
    apause = awaiting(_op_pause)
    resume = blocking(_op_resume)
    aresume = awaiting(_op_resume)


def _scope(queue: str | None, handler: str | None, task: TaskKey | None) -> tuple[str, str]:
    given = {"queue": queue, "handler": handler, "task": task}
    named = [scope for scope, name in given.items() if name is not None]
    if len(named) > 1:
        listed = " or ".join(f"a {scope}" for scope in named)
        raise InvalidSubmission(f"give {listed}, not both", problems={"scope": "two scopes given"})
    if task is not None:
        return "task", task_id_of(task).hex()
    for scope, name in (("queue", queue), ("handler", handler)):
        if name is not None:
            problem = name_problem(name)
            if problem is not None:
                raise InvalidSubmission(f"{scope}: {problem}", problems={scope: problem})
            return scope, name
    return "engine", ""


__all__ = ["Operating", "RunFilter", "run_id_of", "task_id_of"]
