"""What a caller holds of a submitted task."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from actionqueue.core.errors import ManyRuns, RunCanceled, RunFailed
from actionqueue.core.explain import Explanation
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.state import COMPLETED, FAILED
from actionqueue.engine.tickets import Ticket
from actionqueue.engine.work import Ended
from actionqueue.executors.port import current_attempt
from actionqueue.operations import Operation, Script, awaiting, awaiting_script, blocking, blocking_script
from actionqueue.placeholder import Placeholder
from actionqueue.records import RunRecord

if TYPE_CHECKING:
    import asyncio

    from actionqueue.app import ActionQueue
    from actionqueue.handler import Handler

R_co = TypeVar("R_co", covariant=True)
Duration = timedelta | float | str


class TaskHandle(Generic[R_co]):
    """A submitted task: its ids, its state, its result.

    ``created`` is False when an idempotency key (or task id) named a task that existed already, and None while another
    process's engine has not decided that (it had not within ``decide_wait``). If the decision is that the task existed,
    ``id`` and ``run_id`` are that one's from the moment this process learns of it, at the latest with the result.

    >>> from actionqueue import ActionQueue
    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def hello(name: str) -> str:
    ...     return f"hello {name}"
    >>> with queue.running():
    ...     job = hello.submit("world")
    ...     job.result(timeout=10), job.state(), job.runs()[0].attempt_count
    ('hello world', 'completed', 1)
    """

    __slots__ = ("_created", "_handler", "_is_scheduled", "_queue", "_run_id", "_task_id")

    def __init__(
        self,
        queue: ActionQueue,
        task_id: bytes,
        run_id: bytes,
        created: bool | None,  # noqa: FBT001 - made by the queue alone
        handler: Handler | None,
        *,
        is_scheduled: bool = False,
    ) -> None:
        self._queue = queue
        self._task_id = task_id
        self._run_id = run_id
        self._created = created
        self._handler = handler
        self._is_scheduled = is_scheduled

    def _learn(self) -> None:
        """Take over what has become known of a decision that was pending."""
        if self._created is None:
            decision = self._queue.decision(self._task_id)
            if decision is not None:
                self._task_id, self._run_id, self._created = decision

    def decided(self, decision: tuple[bytes, bytes, bool | None]) -> None:
        """What became of its submission, where the handle was there before (in a batch)."""
        self._task_id, self._run_id, self._created = decision

    @property
    def id(self) -> TaskId:
        """The task's id."""
        self._learn()
        return TaskId(bytes=self._task_id)

    @property
    def run_id(self) -> RunId:
        """The id of its first run."""
        self._learn()
        return RunId(bytes=self._run_id)

    @property
    def created(self) -> bool | None:
        """Whether the submission made the task; None while that is undecided."""
        self._learn()
        return self._created

    @property
    def output(self) -> R_co:
        """Its result, to be passed on as an argument of another task, which then waits for this one.

        Anywhere inside the arguments: in lists, tuples, values of mappings, fields of dataclasses. Typed as the result;
        doing anything else with it raises ``NotYetAResult``. Raises ``ManyRuns`` for a schedule.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> @queue.task
        ... def add_up(parts: list[int]) -> int:
        ...     return sum(parts)
        >>> with queue.running():
        ...     add_up.submit([double.submit(n).output for n in (1, 2, 3)]).result(timeout=10)
        12
        """
        self._refuse_schedule("result of its own")
        is_bytes = self._handler is None or self._handler.signature.returns_bytes
        return cast("R_co", Placeholder(self.id.bytes, is_bytes=is_bytes))

    def __repr__(self) -> str:
        name = "" if self._handler is None else f" {self._handler.name}"
        return f"<TaskHandle{name} {self.id}>"

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether blocking this loop would block the queue's handlers."""
        return self._queue.blocks_loop(loop)

    def _op_state(self) -> Operation[str | None]:
        """The state of its run (the newest of its retries), such as ``"running"``; None while it is undecided.

        Raises the refusal of a submission that was refused later, ``ManyRuns`` when the task has several runs that are
        not retries of one another.
        """
        self._refuse_schedule("state of its own")
        return self._queue.newest_state(self._task_id)

    def _op_runs(self) -> Operation[list[RunRecord]]:
        """Its runs, oldest first, each with its attempts; none while it is undecided."""
        return self._queue.runs_of_task(self._task_id)

    def _script_explain(self) -> Script[Explanation]:
        """Why it is not running, as ``queue.explain`` tells of its newest live run; of a schedule, of the next occurrence.

        Raises the refusal of a submission that was refused later.
        """
        self._learn()
        return self._queue._script_explain(self._task_id)  # noqa: SLF001 - one operation, under two names

    def _op_cancel(self) -> Operation[int]:
        """Cancel it: what waits is canceled now, what runs is asked to stop. Returns how many runs that concerned.

        Nothing happens to what has ended. Raises ``NoEngine`` when no engine decides (the command waits in the inbox).
        """
        return self._queue.cancel_submitted(self._task_id, undecided=self._created is None)

    def _op_result(self, timeout: Duration | None = None) -> Operation[R_co]:
        """Wait for its end and return the result; retries are followed.

        ``timeout`` is a timedelta, seconds, or text; the task goes on after it. Raises ``RunFailed`` (with the error's
        class, message and traceback), ``RunCanceled``, ``TimeoutError``, the refusal of a submission that was refused
        later, ``ManyRuns`` for a schedule, ``WaitInHandler`` inside a handler, ``NoEngine`` when no engine is on the
        store for 5 s.
        """
        if current_attempt.get() is not None:
            from actionqueue.core.errors import WaitInHandler

            raise WaitInHandler(
                "result() inside a handler would hold its slot while it waits; submit the follow-up from the awaited "
                "task, or return and be called again"
            )
        self._refuse_schedule("result of its own")
        timeout_s = None if timeout is None else parse_duration_us(timeout, field="timeout") / 1e6
        queue, task_id = self._queue, self._task_id

        def send(ticket: Ticket) -> None:
            queue.await_task(task_id, ticket)

        def late(ticket: Ticket) -> R_co:
            queue.forget_waiter(task_id, ticket)
            raise TimeoutError(f"task {self.id} has not ended after {timeout_s:g} s; it goes on")

        return Operation(
            send, self._unwrap, timeout_s=timeout_s, late=late, poll=queue.check_engine_present, poll_s=1.0
        )

    def _refuse_schedule(self, what: str) -> None:
        if self._is_scheduled:
            raise ManyRuns(f"a schedule has many runs, each with a {what}: ask runs()", task_id=self.id)

    def _unwrap(self, ended: Ended) -> R_co:
        self._learn()
        if ended.state == COMPLETED:
            result: R_co = self._decode(ended.body)
            return result
        facts: dict[str, Any] = {"run_id": RunId(bytes=ended.run_id), "task_id": self.id, "reason": ended.reason}
        error = ended.error
        if ended.state == FAILED:
            said = f"{error.kind}: {error.message}" if error is not None else ended.reason
            raise RunFailed(
                f"run {facts['run_id']} failed ({ended.reason}): {said}",
                error_class=None if error is None else error.kind,
                error_message=None if error is None else error.message,
                traceback=None if error is None else error.traceback,
                **facts,
            )
        nothing = {"error_class": None, "error_message": None, "traceback": None}
        raise RunCanceled(f"run {facts['run_id']} was canceled ({ended.reason})", **facts, **nothing)

    def _decode(self, body: bytes | None) -> Any:
        if self._handler is not None:
            return self._handler.signature.decode_result(body)
        return body

    state = blocking(_op_state)
    astate = awaiting(_op_state)
    runs = blocking(_op_runs)
    aruns = awaiting(_op_runs)
    explain = blocking_script(_script_explain)
    aexplain = awaiting_script(_script_explain)
    cancel = blocking(_op_cancel)
    acancel = awaiting(_op_cancel)
    result = blocking(_op_result)
    aresult = awaiting(_op_result)
