"""``ActionQueue``: the composition root. Declares tasks, submits them, and opens the store in one of its roles.

Constructing one touches no file, thread or lock. It is opened by running it (``running``, ``run_forever``,
``async with``, ``lifespan``), which makes this process the engine or, where another process is, a client of it; or by
the first call that needs the store, which makes it a client.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, overload

from msgspec import json, msgpack

from actionqueue.administer import Administering
from actionqueue.batching import Batch
from actionqueue.client_line import SentTasks
from actionqueue.core.errors import (
    ActionQueueError,
    CommitUnknown,
    DuplicateHandler,
    InvalidSubmission,
    UsedAfterFork,
)
from actionqueue.core.ids import TaskId, fresh_id_bytes
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.needs import KeyNeed, Limit, Rate, key_need, rate_need
from actionqueue.core.retry import Retry
from actionqueue.core.schedules import PutSchedule
from actionqueue.core.spec import (
    DEFAULT_QUEUE,
    NO_OPTIONS,
    PAYLOAD_BYTES_MAX,
    BatchHead,
    Submission,
    TaskConstraints,
    TaskOptions,
    TaskSpec,
    check_count,
    name_problem,
    policy_of,
    validate,
)
from actionqueue.core.submission import LIVE_RUNS_MAX, Submit
from actionqueue.core.timetables import Cron, Repeat
from actionqueue.depending import chosen_depends
from actionqueue.engine.tickets import Ticket
from actionqueue.handle import TaskHandle
from actionqueue.handler import Handler
from actionqueue.line import Decision, Line
from actionqueue.operations import Operation, refuse_on_loop
from actionqueue.records import RunRecord
from actionqueue.session import Session
from actionqueue.settings import Settings
from actionqueue.store.codec import digest
from actionqueue.task import AsyncTask, Call, Duration, Hold, SyncTask, Task, checked_metadata, declare, rule_of

if TYPE_CHECKING:
    import asyncio

    from actionqueue.running import IdleSummary
    from actionqueue.store.memory import MemoryStore

P = ParamSpec("P")
R = TypeVar("R")
Hook = TypeVar("Hook", bound=Callable[[RunRecord], object])
Role = Literal["auto", "engine", "client"]


class ActionQueue(Administering):
    """A durable task queue on one store. Constructing one touches no file, thread or lock.

    ``store`` is a path (SQLite; made absolute now) or ``":memory:"``. ``role`` says what running it makes of this
    process: ``"auto"`` the engine, or a client that stands by while another process is; ``"engine"`` the engine or
    nothing; ``"client"`` never the engine. ``concurrency`` bounds async attempts at once, ``threads`` plain ones,
    ``processes`` (default: the CPU count, started on first use) those of ``executor="process"``; ``queues`` bounds
    named queues over all executors, 1 to 100,000 each. ``drain_timeout`` is how long leaving waits for what runs,
    ``stop_grace`` how long code may take to end after it was asked to. Finished tasks are kept for ``retention``, the
    log for ``log_retention``. ``decide_wait`` is how long a client waits for the decision on a submission with an
    idempotency key. More than ``live_runs_max`` live runs are refused. With ``aging`` each such time that a run has
    been ready counts as one priority more, so that work of a low priority is not passed for ever; without (the default) the
    larger priority always goes first. ``imports`` are modules that the engine imports
    when it opens (they declare tasks). ``resources`` makes an async context manager, entered once per engine loop and
    once per worker process; its value is ``ctx.resources``. Durations are timedelta, seconds, or text such as "15m".

    Raises ``InvalidSubmission`` naming every option that is not valid.

    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def hello(name: str) -> str:
    ...     return f"hello {name}"
    >>> with queue.running():
    ...     hello.submit("world").result(timeout=10)
    'hello world'
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        role: Role = "auto",
        concurrency: int = 100,
        threads: int = 16,
        processes: int | None = None,
        queues: Mapping[str, int] | None = None,
        drain_timeout: Duration = "20s",
        stop_grace: Duration = "60s",
        retention: Duration = "30d",
        log_retention: Duration = "7d",
        decide_wait: Duration = "1s",
        live_runs_max: int = LIVE_RUNS_MAX,
        aging: Duration | None = None,
        imports: Sequence[str] = (),
        resources: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
    ) -> None:
        self.settings = Settings.checked(
            store=store,
            role=role,
            concurrency=concurrency,
            threads=threads,
            processes=processes,
            queues=queues,
            drain_timeout=drain_timeout,
            stop_grace=stop_grace,
            retention=retention,
            log_retention=log_retention,
            decide_wait=decide_wait,
            live_runs_max=live_runs_max,
            aging=aging,
            imports=imports,
            resources=resources,
        )
        self._handlers: dict[str, Task[Any, Any]] = {}
        self._failure_hooks: list[Callable[[RunRecord], object]] = []
        self._session: Session | None = None
        self._opening = threading.RLock()
        self._parents: list[Session] = []
        """What was open when this process was forked: never touched, and kept: dropping it would close its files."""
        self.sent = SentTasks()
        """What was submitted through the inbox, from session to session."""
        self.memory: MemoryStore | None = None
        """The store of a ``":memory:"`` queue, which outlives its sessions."""

    def __repr__(self) -> str:
        return f"<ActionQueue {self.settings.store}>"

    @property
    def store(self) -> Path | str:
        """Where the store is: an absolute path, or ``":memory:"``."""
        return self.settings.store

    @property
    def handlers(self) -> Mapping[str, Task[Any, Any]]:
        """The registered handlers by name."""
        return self._handlers

    # --- declaring ---------------------------------------------------------------------------------------------

    # An async function also is a function whose result is a coroutine; the first overload that fits is meant to win.
    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def task(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        executor: Literal["async", "thread", "process"] | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        no_retry_on: tuple[type[BaseException], ...] = (),
        on_lost: Literal["retry", "fail"] | None = None,
        max_lost: int | None = None,
        priority: int = 0,
        expires: Duration | None = None,
        schedule: Cron | Repeat | None = None,
        tags: Iterable[str] = (),
        result_bytes_max: int | None = None,
        concurrency_key: str | None = None,
        limits: Iterable[Limit] = (),
        rate: Rate | Iterable[Rate] = (),
        hold: Iterable[Hold] = (),
        concurrency: int | None = None,
    ) -> TaskDecorator: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        executor: Literal["async", "thread", "process"] | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        no_retry_on: tuple[type[BaseException], ...] = (),
        on_lost: Literal["retry", "fail"] | None = None,
        max_lost: int | None = None,
        priority: int = 0,
        expires: Duration | None = None,
        schedule: Cron | Repeat | None = None,
        tags: Iterable[str] = (),
        result_bytes_max: int | None = None,
        concurrency_key: str | None = None,
        limits: Iterable[Limit] = (),
        rate: Rate | Iterable[Rate] = (),
        hold: Iterable[Hold] = (),
        concurrency: int | None = None,
    ) -> Any:
        """Declare a function as a task: used bare, or called with options. It stays callable.

        ``name`` is what it is registered and submitted under (default: its qualified name, without the module).
        ``executor`` is ``"async"`` (default for async functions), ``"thread"`` (default for plain ones) or
        ``"process"``. ``retry`` defaults to 3 attempts with exponential backoff from 1 s up to 5 min, with jitter.
        ``timeout`` bounds one attempt; of a worker process, what its handler takes once it is called. ``no_retry_on``
        lists exceptions that fail the run for good. ``on_lost`` says what follows when an attempt is lost to a crash:
        ``"retry"`` (default), or ``"fail"`` (default with one attempt); ``max_lost`` (0 to 1000, default 5) is how many
        may be. ``priority`` is 32-bit signed, larger first.
        ``expires`` is the deadline to start, after submission. ``result_bytes_max`` bounds the encoded result (default
        1 MiB). ``concurrency`` is how many attempts of it run at once, at most (1 to 100,000).

        ``concurrency_key`` names a key that only one run may hold at once, ``limits`` keys with a capacity each, ``rate``
        one or more rates at which runs of a key may start; up to 10 of either. Keys are texts of up to 250 characters
        once ``{argument}`` in them is replaced; a run takes all of its keys as it starts. It gives them back when its
        attempt ends, unless ``hold`` lists the state it then rests in (``"retry_wait"``, ``"suspended"``,
        ``"awaiting"``): then it keeps them until its next attempt has ended.

        Durations are timedelta, seconds, or text such as "15m".
        ``schedule`` (``Cron`` or ``Repeat``) has it run at each time that names, under the handler's name, while an
        engine runs that registers it; changed, it replaces the one before, and left out, it retires it.

        Raises ``InvalidSubmission`` naming every problem, ``DuplicateHandler`` when another function has the name.

        >>> queue = ActionQueue(":memory:")
        >>> @queue.task(timeout="30s", tags=["images"])
        ... def resize(path: str, width: int = 100) -> str:
        ...     return f"{path} at {width}"
        >>> resize("a.png")
        'a.png at 100'
        >>> @queue.task(concurrency_key="customer:{customer_id}", rate=Rate("mail", count=10, per="1s"))
        ... def send_invoice(customer_id: int) -> None: ...
        """
        options = {
            "name": name, "queue": queue, "executor": executor, "retry": retry, "timeout": timeout,
            "no_retry_on": no_retry_on, "on_lost": on_lost, "max_lost": max_lost, "priority": priority,
            "expires": expires, "schedule": schedule, "tags": tags, "result_bytes_max": result_bytes_max,
            "concurrency_key": concurrency_key, "limits": limits, "rate": rate, "hold": hold, "concurrency": concurrency,
        }  # fmt: skip
        return TaskDecorator(self, options) if function is None else self.declare(function, options)

    def declare(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Task[Any, Any]:
        """What ``task`` does."""
        import inspect

        given: dict[str, Any] = {**options}
        name, executor = given.pop("name"), given.pop("executor")
        if isinstance(function, Task):
            function = function.runnable.function
        if isinstance(function, type) or not hasattr(function, "__qualname__"):
            problem = f"a {type(function).__name__} is no function; write one that calls it"
            raise InvalidSubmission(f"task: {problem}", problems={"function": problem})
        is_async = inspect.iscoroutinefunction(function)
        if name is None:
            name = function.__qualname__
        declared = declare(name=name, executor=executor or ("async" if is_async else "thread"), **given)
        if declared.executor == "async" and not is_async:
            raise InvalidSubmission(
                f"{name}: executor async needs an async function", problems={"executor": "async needs async def"}
            )
        if declared.executor == "thread" and is_async:
            raise InvalidSubmission(
                f"{name}: executor thread needs a plain function", problems={"executor": "thread needs def"}
            )
        handler = Handler(
            function,
            name,
            no_retry_on=declared.no_retry_on,
            result_bytes_max=declared.result_bytes_max,
            resources_factory=self.settings.resources,
        )
        if declared.rule is not None and handler.signature.required:
            problem = f"{name} has required arguments ({', '.join(handler.signature.required)})"
            raise InvalidSubmission(
                f"schedule: {problem}; give them defaults, or use queue.schedule(name, call, …)",
                problems={"schedule": problem},
            )
        self._check_duplicate(name, handler)
        task: Task[Any, Any] = (AsyncTask if is_async else SyncTask)(self, handler, declared)
        task.check_importable(bound=False)
        task.declared_schedule()  # what makes it no submission is told here
        self._handlers[name] = task
        if self._session is not None:
            self._session.register(task)
        return task

    def _check_duplicate(self, name: str, handler: Handler) -> None:
        other = self._handlers.get(name)
        if other is not None and not handler.same_source(other.runnable):
            raise DuplicateHandler(
                f"a handler named {name!r} is registered already, by {other.runnable.locator}; "
                f"give one of them a name: @queue.task(name=…)",
                name=name,
                existing=other.runnable.locator,
            )

    def on_failure(self, hook: Hook) -> Hook:
        """Have ``hook`` called with the ``RunRecord`` of each run that failed for good, after that is durable.

        In the engine's process, on a thread of its own, one call after another; what it raises is logged. It may miss
        runs when the process ends: to act on every failure for certain, read ``runs(state="failed")``.

        >>> queue = ActionQueue(":memory:")
        >>> @queue.on_failure
        ... def tell(run: RunRecord) -> None:
        ...     print(run.handler, run.error_kind)
        """
        self._failure_hooks.append(hook)
        return hook

    @property
    def failure_hooks(self) -> Sequence[Callable[[RunRecord], object]]:
        """The registered hooks."""
        return self._failure_hooks

    # --- submitting --------------------------------------------------------------------------------------------

    def submit(self, spec: TaskSpec) -> TaskHandle[bytes | None]:
        """Submit a task in its low-level form: opaque bytes, explicit policy and constraints; durable when it returns.

        The result is the stored bytes. Raises as ``Task.submit`` does.
        """
        self.refuse_on_loop("submit")
        return self._submit_spec(spec).run()

    async def asubmit(self, spec: TaskSpec) -> TaskHandle[bytes | None]:
        """``submit``, to await."""
        return await self._submit_spec(spec).arun()

    def _submit_spec(self, spec: TaskSpec) -> Operation[TaskHandle[bytes | None]]:
        return self.submission_of_one(_submission_of(spec), None)

    def submit_many(self, calls: Iterable[Call[R]]) -> list[TaskHandle[R]]:
        """Submit calls made by ``task.bind(…)`` in one commit, all or none; at most 10,000 (else ``LimitExceeded``).

        The handles are in the order of the calls. Raises as ``Task.submit`` does.

        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> with queue.running():
        ...     [job.result() for job in queue.submit_many([double.bind(1), double.options(priority=5).bind(2)])]
        [2, 4]
        """
        self.refuse_on_loop("submit_many")
        return self._submit_calls(calls).run()

    async def asubmit_many(self, calls: Iterable[Call[R]]) -> list[TaskHandle[R]]:
        """``submit_many``, to await."""
        return await self._submit_calls(calls).arun()

    def _submit_calls(self, calls: Iterable[Call[R]]) -> Operation[list[TaskHandle[R]]]:
        calls = list(calls)
        for call in calls:
            _check_is(call, Call, "submit_many: give calls made by task.bind(…)")
        return self.submission_of_many([call.submission() for call in calls], [call.task.runnable for call in calls])

    def schedule(self, name: str, call: Call[R], policy: Cron | Repeat) -> TaskHandle[R]:
        """Have a call run at each time that ``policy`` names, under a name (up to 200 characters) of its own.

        The same again changes nothing (``created`` is False); another call or policy under the name replaces it: what was
        due up to now stays as it was, what comes after is new. ``schedules()`` lists them, ``retire(name)`` ends one.
        Raises ``InvalidSubmission``, ``Conflict`` where another handler's schedule, or one that a decorator declares, has
        the name, and what ``submit`` raises.

        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def report(team: str) -> None: ...
        >>> with queue.running():
        ...     job = queue.schedule("report-eu", report.bind("eu"), Cron("0 9 * * *", timezone="Europe/Berlin"))
        ...     job.created, queue.schedules()[0].rule
        (True, '0 9 * * * Europe/Berlin')
        """
        self.refuse_on_loop("schedule")
        return self._schedule(name, call, policy).run()

    async def aschedule(self, name: str, call: Call[R], policy: Cron | Repeat) -> TaskHandle[R]:
        """``schedule``, to await."""
        return await self._schedule(name, call, policy).arun()

    def _schedule(self, name: str, call: Call[R], policy: Cron | Repeat) -> Operation[TaskHandle[R]]:
        _check_is(call, Call, "schedule: give a call made by task.bind(…)")
        if (problem := name_problem(name)) is not None:
            raise InvalidSubmission(f"name: {problem}", problems={"name": problem})
        item = call.scheduled(name, rule_of(policy))

        def send(ticket: Ticket) -> None:
            self.line().post(PutSchedule(item, by=self.asker()), ticket)

        def finish(reply: list[tuple[bytes, bytes, bool | None]]) -> TaskHandle[R]:
            task_id, run_id, created = reply[0]
            return TaskHandle(self, task_id, run_id, created, call.task.runnable, is_scheduled=True)

        return Operation(send, finish, amend=lambda error: _with_ids(error, [item]))

    def submission_of_one(self, item: Submission, handler: Handler | None) -> Operation[TaskHandle[Any]]:
        """The operation that submits one task."""

        def send(ticket: Ticket) -> None:
            self.line().submit(Submit([item]), ticket)

        def finish(reply: list[tuple[bytes, bytes, bool | None]]) -> TaskHandle[Any]:
            task_id, run_id, created = reply[0]
            return TaskHandle(self, task_id, run_id, created, handler, is_scheduled=item.rule is not None)

        return Operation(send, finish, amend=lambda error: _with_ids(error, [item]))

    def submission_of_many(
        self, items: list[Submission], handlers: Sequence[Handler | None]
    ) -> Operation[list[TaskHandle[Any]]]:
        """The operation that submits many tasks in one commit."""
        check_count(len(items))

        def send(ticket: Ticket) -> None:
            if items:
                self.line().submit(Submit(items), ticket)
            else:
                ticket.settle([])

        def finish(reply: list[tuple[bytes, bytes, bool | None]]) -> list[TaskHandle[Any]]:
            return [
                TaskHandle(self, task_id, run_id, created, handler, is_scheduled=item.rule is not None)
                for (task_id, run_id, created), handler, item in zip(reply, handlers, items, strict=True)
            ]

        return Operation(send, finish, amend=lambda error: _with_ids(error, items))

    def batch(self, name: str = "") -> Batch:
        """Tasks that are submitted together, in one commit, when a ``with`` (or ``async with``) block ends.

        ``name`` (up to 200 characters) is for people. See ``Batch``.
        """
        return Batch(self, name)

    def handle_of(self, item: Submission, handler: Handler | None) -> TaskHandle[Any]:
        """The handle of a task that is yet to be submitted."""
        return TaskHandle(self, item.task_id, item.run_id, None, handler)

    def submission_of_batch(self, items: list[Submission], head: BatchHead, batch: Batch) -> Operation[Batch]:
        """The operation that submits a batch."""

        def send(ticket: Ticket) -> None:
            if items:
                self.line().submit(Submit(items, by=self.asker(), batch=head), ticket)
            else:
                ticket.settle([])

        return Operation(send, batch.learn, amend=lambda error: _with_ids(error, items))

    # --- running -----------------------------------------------------------------------------------------------

    def running(self) -> AbstractContextManager[ActionQueue]:
        """Engine and workers in the background of a sync program, for the time of a ``with``; leaving drains.

        Follows ``role``: where another process is the engine, this one is a client that stands by. May be entered
        again, and inside itself. Raises ``StoreHeld`` with ``role="engine"``, and what opening the store raises
        (``StoreError``).
        """
        from actionqueue.running import Running

        return Running(self)

    async def __aenter__(self) -> Self:
        """The same in an async program, with the handlers on its event loop; leaving drains."""
        from actionqueue.running import enter_async

        await enter_async(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        from actionqueue.running import leave_async

        await leave_async(self)

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[None]:
        """For FastAPI and Starlette, ``FastAPI(lifespan=queue.lifespan)``: as ``async with`` around the application."""
        from actionqueue.running import lifespan

        return lifespan(self, app)

    def run_forever(self, *, wait_for_store: Duration | bool = False) -> None:
        """Be the engine until SIGTERM or SIGINT: then drain and return. A second signal stops at once.

        A store held by another engine is refused with ``StoreHeld``, or waited for with ``wait_for_store`` (True, or
        how long). Configures logging to stderr where the program has not, and tunes the interpreter: threads give way every
        millisecond, the garbage collector looks less often. Raises ``NotRunning`` with
        ``role="client"``, what opening the store raises (``StoreError``), and what stopped the engine, if something did
        (``CommitUnknown``, ``EpochLost``).
        """
        from actionqueue.running import run_forever

        run_forever(self, wait_for_store)

    def run_until_idle(self, timeout: Duration | None = None) -> IdleSummary:
        """Run until nothing is dispatchable, running or backing off; blocked, paused and future runs do not count.

        ``timeout`` is a timedelta, seconds, or text. Returns what was left. Raises ``TimeoutError``, and ``NotRunning``
        where another process is the engine.

        >>> queue = ActionQueue(":memory:")
        >>> queue.run_until_idle(timeout="10s").runs["completed"]
        0
        """
        from actionqueue.running import run_until_idle

        timeout_s = None if timeout is None else parse_duration_us(timeout, field="timeout") / 1e6
        return run_until_idle(self, timeout_s)

    def close(self) -> None:
        """Drain if this process is the engine, and let the store go. Closing what is closed does nothing.

        It takes up to ``drain_timeout`` and a second or two. The next call that needs the store opens it again.
        """
        self.leave_to_parent()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def leave_to_parent(self) -> None:
        """In a forked child: let what was open at the fork be the parent's, so that the queue can be opened here."""
        session = self._session
        if session is None or session.pid == os.getpid():
            return
        self._parents.append(session)
        self._session, self.memory = None, None
        self._opening = threading.RLock()  # another thread may have held the old one at the fork

    # --- what the parts need of each other ---------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The open session, if there is one."""
        session = self._session
        if session is not None and session.pid != os.getpid():
            raise UsedAfterFork(
                "this queue was open when the process forked; to use it here open it again: close(), then go on, or "
                "running(), run_forever(), async with"
            )
        return session

    def open_session(
        self,
        *,
        as_client: bool = False,
        must_be_engine: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Session:
        """The session, opened now if need be: as the role says, or as a client, or as the engine or not at all."""
        session = self.session
        if session is not None:
            return session
        with self._opening:
            session = self.session
            if session is None:
                session = Session(self, as_client=as_client, must_be_engine=must_be_engine, loop=loop)
                session.open()
                self._session = session
            return session

    def line(self) -> Line:
        """The line to the engine; opens the store as a client when nothing is open."""
        session = self.session or self.open_session(as_client=True)
        return session.line

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether blocking this loop would keep the queue's handlers from running."""
        session = self._session
        return session is not None and session.blocks_loop(loop)

    def refuse_on_loop(self, name: str) -> None:
        """Raise ``SyncCallOnHandlerLoop`` where a blocking call would block the handlers."""
        if self._session is not None:
            refuse_on_loop(self, name)

    def asker(self) -> str:
        """Who is recorded as having asked: this process."""
        return f"pid {os.getpid()}"

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """Have the ticket told how the task ended."""
        self.line().await_task(task_id, ticket)

    def forget_waiter(self, task_id: bytes, ticket: Ticket) -> None:
        """The caller no longer waits."""
        self.line().forget_waiter(task_id, ticket)

    def decision(self, task_id: bytes) -> Decision | None:
        """What this process has learnt of a submission that was handed on undecided."""
        return self.sent.decision(task_id)

    def check_engine_present(self, waited_s: float) -> None:
        """Raise ``NoEngine`` when someone has waited 5 s and no engine is on the store."""
        self.line_session().check_engine_present(waited_s)

    def exchange_session(self, session: Session | None) -> Session | None:
        """Go on with another session (the simulator's, or what was open before it); the one until now is returned."""
        before, self._session = self._session, session
        return before

    def line_session(self) -> Session:
        """The session behind ``line``."""
        return self.session or self.open_session(as_client=True)


class TaskDecorator:
    """``@queue.task(…)`` waiting for its function."""

    __slots__ = ("_options", "_queue")

    def __init__(self, queue: ActionQueue, options: Mapping[str, Any]) -> None:
        self._queue = queue
        self._options = options

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...

    def __call__(self, function: Callable[..., Any], /) -> Any:
        return self._queue.declare(function, self._options)


def _check_is(value: object, kind: type, remedy: str) -> None:
    if not isinstance(value, kind):
        raise InvalidSubmission(f"{remedy}, not a {type(value).__name__}", problems={"submission": remedy})


def _with_ids(error: ActionQueueError, items: Sequence[Submission]) -> ActionQueueError:
    """Where nobody knows whether the commit took: the error with the ids under which to submit again, safely."""
    if not isinstance(error, CommitUnknown):
        return error
    ids = [TaskId(bytes=item.task_id) for item in items]
    return CommitUnknown(
        f"{error.message}. Submit again with options(task_id=…), with the ids in task_ids: nothing is doubled.",
        **{**error.facts, "task_ids": ids},
    )


def _limits_of(constraints: TaskConstraints) -> tuple[KeyNeed, ...]:
    for limit in constraints.limits:
        _check_is(limit, Limit, "limits: give Limit(…)")
    key = constraints.concurrency_key
    return (*(() if key is None else (KeyNeed(key),)), *(key_need(limit) for limit in constraints.limits))


def _rate(rate: Rate) -> Rate:
    _check_is(rate, Rate, "rates: give Rate(…)")
    return rate


def _submission_of(spec: TaskSpec) -> Submission:
    _check_is(spec, TaskSpec, "submit: give a TaskSpec (or call submit of a task)")
    _check_is(spec.payload, bytes, "payload: give bytes")
    policy, rule = policy_of(spec.policy)
    constraints, metadata = spec.constraints, spec.metadata
    depends = None
    if spec.depends_on or spec.allow_partial or spec.on_upstream_failure != "cancel":
        depends = chosen_depends(None, spec.depends_on, spec.on_upstream_failure, spec.allow_partial)
    rare = TaskOptions(
        timeout_us=constraints.timeout_us,
        backoff=constraints.backoff,
        tags=tuple(metadata.tags),
        metadata=checked_metadata(metadata.extra) if metadata.extra else None,
        description=metadata.description,
        content_type=None if spec.content_type == "application/json" else spec.content_type,
        limits=_limits_of(constraints),
        rates=tuple([rate_need(_rate(each)) for each in constraints.rates]),
        hold=tuple(constraints.hold),
    )
    item = Submission(
        spec.id.bytes if spec.id is not None else fresh_id_bytes(),
        fresh_id_bytes(),
        spec.handler,
        spec.payload,
        digest(spec.payload),
        constraints.queue,
        metadata.priority,
        constraints.max_attempts,
        policy.at_us,
        policy.delay_us,
        None if rare == NO_OPTIONS else rare,
        spec.idempotency_key,
        spec.idempotency_lifetime_us,
        None,
        spec.id is not None,
        constraints.expires_us,
        rule,
        depends=depends,
    )
    if spec.id is not None and spec.id.int == 0:
        raise InvalidSubmission("id: the nil id is no task id", problems={"id": "nil"})
    validate(item, PAYLOAD_BYTES_MAX)
    if item.key is not None or item.task_id_given:
        policy_text = f"{policy.at_us}/{policy.delay_us}".encode() + (b"" if rule is None else json.encode(rule))
        waits = () if depends is None else (msgpack.encode(depends),)
        item.content = digest(b"\0".join((spec.handler.encode(), spec.payload, policy_text, *waits)))
    return item


__all__ = ["ActionQueue", "Task", "TaskDecorator"]
