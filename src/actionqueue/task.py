"""Decorated functions: what they declare, and the calls that are submitted of them."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar
from uuid import UUID

from msgspec import Struct, json, msgpack, to_builtins
from msgspec.structs import replace

from actionqueue.core.epochs import Declare
from actionqueue.core.errors import InvalidArguments, InvalidSubmission
from actionqueue.core.ids import TaskId, fresh_ids
from actionqueue.core.instants import instant_us, parse_duration_us
from actionqueue.core.needs import Limit, Rate
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms, Retry
from actionqueue.core.rules import Rule
from actionqueue.core.spec import (
    DURATION_US_MAX,
    NO_OPTIONS,
    RESULT_BYTES_MAX,
    Depends,
    Submission,
    TaskOptions,
    name_problem,
    submission_problems,
    validate,
)
from actionqueue.core.state import Declaration
from actionqueue.core.timetables import Cron, Repeat
from actionqueue.depending import chosen_depends, joined
from actionqueue.executors import locators
from actionqueue.handler import Handler
from actionqueue.operations import Operation
from actionqueue.placeholder import Joined
from actionqueue.templates import NeedTemplates, Wanted, wanted

if TYPE_CHECKING:
    from actionqueue.app import ActionQueue
    from actionqueue.handle import TaskHandle

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Duration = timedelta | float | str
Hold = Literal["retry_wait", "suspended", "awaiting"]


class Declared(Struct, frozen=True):
    """The options of a handler's decorator, validated."""

    queue: str
    executor: str
    max_attempts: int
    terms: AttemptTerms
    no_retry_on: tuple[type[BaseException], ...]
    priority: int
    expires_us: int | None
    tags: tuple[str, ...]
    result_bytes_max: int
    wanted: Wanted
    concurrency: int | None
    rule: Rule | None = None


class Chosen(Struct, frozen=True):
    """What ``task.options(…)`` chose; None or empty is what the decorator declared."""

    at_us: int | None = None
    delay_us: int | None = None
    queue: str | None = None
    priority: int | None = None
    key: str | None = None
    key_lifetime_us: int | None = None
    task_id: bytes | None = None
    expires_us: int | None = None
    max_attempts: int | None = None
    rare: TaskOptions = NO_OPTIONS
    wanted: Wanted | None = None
    rule: Rule | None = None
    depends: Depends | None = None


NOTHING_CHOSEN = Chosen()


class Call(Generic[R_co]):
    """A call that has not been submitted: a task with its arguments, checked. Made by ``task.bind(…)``.

    >>> from actionqueue import ActionQueue
    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> double.bind(21)
    <Call double({"n":21})>
    """

    __slots__ = ("_body", "_task")

    def __init__(self, task: Task[Any, Any], body: bytes) -> None:
        self._task = task
        self._body = body

    @property
    def task(self) -> Task[Any, Any]:
        """The task it calls."""
        return self._task

    def __repr__(self) -> str:
        return f"<Call {self._task.name}({self._body.decode(errors='replace')})>"

    def submission(self) -> Submission:
        """The call as it is sent to the engine, with fresh ids."""
        return self._task.submission(self._body)

    def scheduled(self, name: str, rule: Rule) -> Submission:
        """The call as a schedule under a name."""
        template = self._task.submission(self._body)
        if template.key is not None or template.task_id_given or template.at_us is not None or template.delay_us:
            problem = "a schedule is known by its name; leave at, delay, idempotency_key and task_id out"
            raise InvalidSubmission(f"schedule: {problem}", problems={"schedule": problem})
        return self._task.scheduled(self._body, name, "call", rule)


class Task(Generic[P, R]):
    """A function that can be submitted. Still callable: calling it runs it here and now, and queues nothing.

    Made by ``@queue.task``; ``task.options(…)`` gives a variant of it.

    >>> from actionqueue import ActionQueue
    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> double(21), double.name
    (42, 'double')
    """

    def __init__(
        self, queue: ActionQueue, handler: Handler, declared: Declared, chosen: Chosen = NOTHING_CHOSEN
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._declared = declared
        self._chosen = chosen
        wanted = declared.wanted if chosen.wanted is None else chosen.wanted
        self._needs = NeedTemplates(wanted, handler.signature.names, handler.name)
        self._template = self._make_template(wanted)
        functools.update_wrapper(self, handler.function)

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return self._handler.name

    @property
    def runnable(self) -> Handler:
        """The handler as executors see it."""
        return self._handler

    @property
    def declared(self) -> Declared:
        """What its decorator declares."""
        return self._declared

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function itself, here and now; nothing is queued."""
        return self._handler.function(*args, **kwargs)

    # --- submitting --------------------------------------------------------------------------------------------

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Submit one task; it is durable when this returns.

        Takes what the function takes (a context parameter is left out). Raises ``InvalidArguments`` where that does not
        fit the annotations, ``PayloadTooLarge`` over 1 MiB, ``IdempotencyConflict``, ``Overloaded``,
        ``StoreUnavailable`` (nothing was written; try again), ``CommitUnknown`` (submit again with the same key or id),
        ``SyncCallOnHandlerLoop`` on a loop that runs this queue's handlers.
        """
        self._queue.refuse_on_loop("submit")
        return self._submit(args, kwargs).run()

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """``submit``, to await."""
        return await self._submit(args, kwargs).arun()

    def _submit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Operation[TaskHandle[R]]:
        item = self.submission(self._handler.signature.encode(args, kwargs))
        return self._queue.submission_of_one(item, self._handler)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """The call, checked and not submitted; for ``queue.submit_many``. Raises ``InvalidArguments``."""
        return Call(self, self._handler.signature.encode(args, kwargs))

    def submit_many(self, rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[TaskHandle[R]]:
        """Submit one task a row in one commit, all or none; a row is a sequence or a mapping of arguments.

        At most 10,000 (else ``LimitExceeded``). The handles are in the order of the rows. Raises as ``submit`` does.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> with queue.running():
        ...     [job.result() for job in double.submit_many([(1,), {"n": 2}])]
        [2, 4]
        """
        self._queue.refuse_on_loop("submit_many")
        return self._submit_many(rows).run()

    async def asubmit_many(self, rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[TaskHandle[R]]:
        """``submit_many``, to await."""
        return await self._submit_many(rows).arun()

    def _submit_many(self, rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> Operation[list[TaskHandle[R]]]:
        encode, submission = self._handler.signature.encode, self._submission
        bodies = [encode((), row) if isinstance(row, Mapping) else encode(_sequence(row), _NO_KEYWORDS) for row in rows]
        ids = iter(fresh_ids(2 * len(bodies)))
        items = [submission(body, next(ids), next(ids)) for body in bodies]
        handlers = [self._handler] * len(items)
        return self._queue.submission_of_many(items, handlers)

    def submission(self, body: bytes) -> Submission:
        """A submission of these encoded arguments, with fresh ids."""
        return self._submission(body, *fresh_ids(2))

    def _submission(self, body: bytes, task_id: bytes, run_id: bytes) -> Submission:
        template, chosen, needs = self._template, self._chosen, self._needs
        depends = chosen.depends
        if type(body) is Joined:
            depends = joined(depends, body.found, needs.names)
            body = bytes(body)
        if depends is not None and not depends.on:
            depends = None
        options = needs.filled(template.options, body) if needs.names else template.options
        item = Submission(
            chosen.task_id or task_id, run_id, template.handler, body,
            blake2b(body, digest_size=16).digest(), template.queue, template.priority, template.max_attempts,
            template.at_us, template.delay_us, options, template.key, template.key_lifetime_us, None,
            chosen.task_id is not None, template.expires_us, chosen.rule,
        )  # fmt: skip
        if depends is not None:
            item.depends = depends
            validate(item)
        if item.key is not None or item.task_id_given:
            item.content = self._content(body, depends)
        if len(body) > _SMALL_BYTES:
            validate(item)
        return item

    def _content(self, body: bytes, depends: Depends | None) -> bytes:
        """What an idempotency key compares: handler, canonical arguments, the policy as written, the dependencies."""
        chosen = self._chosen
        policy = json.encode([chosen.at_us, chosen.delay_us] + ([] if chosen.rule is None else [chosen.rule]))
        canonical = self._handler.signature.canonical(body)
        waits = () if depends is None else (_packed(depends),)
        return blake2b(b"\0".join((self.name.encode(), canonical, policy, *waits)), digest_size=16).digest()

    def scheduled(self, body: bytes, name: str, origin: str, rule: Rule) -> Submission:
        """A schedule of these encoded arguments under a name; its content is everything that makes it this one."""
        item = self.submission(body)
        if item.depends is not None:
            problem = "a schedule cannot depend on other tasks"
            raise InvalidSubmission(f"schedule: {problem}", problems={"schedule": problem})
        item.rule, item.schedule_name, item.schedule_origin = rule, name, origin
        canonical = self._handler.signature.canonical(body)
        chosen = (
            rule, item.queue, item.priority, item.max_attempts, item.expires_us,
            None if item.options is None else to_builtins(item.options, builtin_types=(bytes,)),
        )  # fmt: skip
        item.content = blake2b(b"\0".join((self.name.encode(), canonical, _packed(chosen))), digest_size=16).digest()
        validate(item)
        return item

    def declared_schedule(self) -> Submission | None:
        """The schedule that the decorator declares, under the handler's name."""
        rule = self._declared.rule
        if rule is None:
            return None
        return self.scheduled(self._handler.signature.encode((), _NO_KEYWORDS), self.name, "code", rule)

    # --- options -----------------------------------------------------------------------------------------------

    def options(
        self,
        *,
        at: datetime | None = None,
        delay: Duration | None = None,
        schedule: Cron | Repeat | None = None,
        queue: str | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        idempotency_lifetime: Duration | None = None,
        task_id: TaskId | str | None = None,
        expires: Duration | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        concurrency_key: str | None = None,
        limits: Iterable[Limit] | None = None,
        rate: Rate | Iterable[Rate] | None = None,
        hold: Iterable[Hold] | None = None,
        tags: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        description: str | None = None,
        depends_on: Iterable[TaskHandle[Any] | TaskId | UUID | str] | None = None,
        on_upstream_failure: Literal["cancel", "run"] | None = None,
        allow_partial: bool | None = None,
    ) -> Self:
        """The same task with other options for what is submitted of it; the task itself is unchanged.

        ``at`` (an aware datetime up to the year 9999) or ``delay`` say when it is due. ``queue``, ``priority`` (32-bit
        signed, larger first), ``expires`` (the deadline to start, after submission), ``retry`` and ``timeout`` (of one
        attempt) replace what the decorator says, ``tags`` too (at most 20); so do ``limits`` with ``concurrency_key``
        (giving either replaces both), ``rate`` and ``hold``, which are what they are in ``ActionQueue.task``. Submissions
        with one ``idempotency_key`` (up to 250 characters) and the same content are one task, for as long as its history
        is kept, or for ``idempotency_lifetime``; a ``task_id`` of your own works the same way. ``metadata`` is any JSON
        under text keys (up to 8 KiB), which the handler sees; ``description`` is for people (up to 1,000 characters).
        Durations are timedelta, seconds, or text such as "15m", up to 100 years. What is left out stays as it was.

        ``schedule`` (``Cron`` or ``Repeat``) makes a run at each time it names; at most one of it, ``at`` and ``delay``.

        ``depends_on`` are tasks (handles or ids, up to 10,000) that must have ended first, all their runs completed; so
        must those whose ``output`` is passed as an argument. Where one ends otherwise, this task is canceled, and what
        depends on it too; with ``on_upstream_failure="run"`` it runs all the same, and a result that is not there is
        None. With ``allow_partial`` one completed run of a task with several is enough.

        Raises ``InvalidSubmission`` naming every problem.

        >>> from actionqueue import ActionQueue
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task
        ... def remind(user: int) -> str:
        ...     return f"reminded {user}"
        >>> once = remind.options(idempotency_key="remind-7")
        >>> with queue.running():
        ...     first, second = once.submit(7), once.submit(7)
        ...     first.id == second.id, first.created, second.created
        (True, True, False)
        """
        if (at is not None) + (delay is not None) + (schedule is not None) > 1:
            raise InvalidSubmission(
                "give one of at, delay and schedule",
                problems={"delay" if schedule is None else "schedule": "given together with another instant"},
            )
        _check_retry(retry)
        old = self._chosen
        rare = _merge_rare(old.rare, retry, timeout, tags, metadata, description)
        chosen = Chosen(
            at_us=old.at_us if at is None else instant_us(at, field="at"),
            delay_us=_duration(delay, "delay", old.delay_us),
            queue=old.queue if queue is None else queue,
            priority=old.priority if priority is None else priority,
            key=old.key if idempotency_key is None else idempotency_key,
            key_lifetime_us=_duration(idempotency_lifetime, "idempotency_lifetime", old.key_lifetime_us),
            task_id=old.task_id if task_id is None else TaskId.parse(task_id, field="task_id").bytes,
            expires_us=_duration(expires, "expires", old.expires_us),
            max_attempts=old.max_attempts if retry is None else retry.max_attempts,
            rare=rare,
            wanted=_chosen_needs(self._declared, old, concurrency_key, limits, rate, hold),
            rule=old.rule if schedule is None else rule_of(schedule),
            depends=chosen_depends(old.depends, depends_on, on_upstream_failure, allow_partial),
        )
        variant = type(self)(self._queue, self._handler, self._declared, chosen)
        problems = variant.problems()
        if problems:
            listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise InvalidSubmission(f"the options of {self.name} are not valid: {listed}", problems=problems)
        return variant

    def problems(self) -> dict[str, str]:
        """What is wrong with what was chosen, by field."""
        return submission_problems(self._template)

    def _make_template(self, wanted: Wanted) -> Submission:
        declared, chosen = self._declared, self._chosen
        rare = chosen.rare
        if wanted and not self._needs.names:
            rare = self._needs.options(rare, {})
        if declared.tags and not rare.tags:
            rare = replace(rare, tags=declared.tags)
        return Submission(
            _NO_ID, _NO_ID, self.name, b"", b"",
            declared.queue if chosen.queue is None else chosen.queue,
            declared.priority if chosen.priority is None else chosen.priority,
            declared.max_attempts if chosen.max_attempts is None else chosen.max_attempts,
            chosen.at_us, chosen.delay_us, None if rare == NO_OPTIONS else rare,
            chosen.key, chosen.key_lifetime_us, None,
            chosen.task_id is not None, declared.expires_us if chosen.expires_us is None else chosen.expires_us,
            chosen.rule,
            depends=None if chosen.depends is None or not chosen.depends.on else chosen.depends,
        )  # fmt: skip

    def check_importable(self, *, bound: bool = True) -> None:
        """Raise ``InvalidSubmission`` where worker processes are to run this and could not find it.

        While its module is still being imported (``bound`` False) only the name is judged.
        """
        if self._declared.executor != "process":
            return
        problem = locators.check_importable(self._handler.locator, bound=bound)
        if problem is not None:
            raise InvalidSubmission(f"{self.name}: {problem}", problems={"executor": problem})

    def declaration(self) -> Declaration:
        """What is recorded of the decorator, for submissions that leave it open."""
        d, signature = self._declared, self._handler.signature
        names = NeedTemplates(d.wanted, signature.names, self.name).names
        shown = {name: signature.default_text(name) for name in names}
        return Declaration(
            self.name, d.queue, d.priority, d.max_attempts, d.expires_us, d.tags, signature.describe(),
            d.wanted.limits, d.wanted.rates, d.wanted.hold,
            {name: text for name, text in shown.items() if text is not None},
        )  # fmt: skip


class SyncTask(Task[P, R]):
    """A plain function that can be submitted."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function itself, here and now; nothing is queued."""
        result: R = self._handler.function(*args, **kwargs)
        return result


class AsyncTask(Task[P, R]):
    """An async function that can be submitted."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run the function itself, here and now; nothing is queued."""
        result: Coroutine[Any, Any, R] = self._handler.function(*args, **kwargs)
        return result


_NO_ID = b"\x01" * 16
_SMALL_BYTES = 32_768
MAX_LOST_MAX = 1000
"""The largest ``max_lost``."""
CONCURRENCY_MAX = 100_000
"""The largest ``concurrency`` of a handler."""
_NO_KEYWORDS: dict[str, Any] = {}
_packed = msgpack.Encoder(order="deterministic").encode


def _duration(value: Duration | None, field: str, otherwise: int | None) -> int | None:
    if value is None:
        return otherwise
    duration_us = parse_duration_us(value, field=field)
    if duration_us > DURATION_US_MAX:
        raise InvalidSubmission(f"{field}: longer than 100 years", problems={field: "longer than 100 years"})
    return duration_us


def _chosen_needs(
    declared: Declared,
    old: Chosen,
    concurrency_key: str | None,
    limits: Iterable[Limit] | None,
    rate: Rate | Iterable[Rate] | None,
    hold: Iterable[str] | None,
) -> Wanted | None:
    if concurrency_key is None and limits is None and rate is None and hold is None:
        return old.wanted
    return wanted(concurrency_key, limits, rate, hold, declared.wanted if old.wanted is None else old.wanted)


def _merge_rare(
    old: TaskOptions,
    retry: Retry | None,
    timeout: Duration | None,
    tags: Iterable[str] | None,
    metadata: Mapping[str, Any] | None,
    description: str | None,
) -> TaskOptions:
    return TaskOptions(
        timeout_us=_duration(timeout, "timeout", old.timeout_us),
        backoff=old.backoff if retry is None else retry.backoff,
        tags=old.tags if tags is None else _tuple_of_tags(tags),
        metadata=old.metadata if metadata is None else checked_metadata(metadata),
        description=old.description if description is None else description,
    )


def _sequence(row: Sequence[Any]) -> tuple[Any, ...]:
    if type(row) is tuple:
        return row
    if isinstance(row, str) or not isinstance(row, Sequence):
        problem = f"a row is a sequence or a mapping of arguments, not a {type(row).__name__}"
        raise InvalidArguments(f"submit_many: {problem}", problems={"rows": problem})
    return tuple(row)


def _tuple_of_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidSubmission("tags: give a list of texts", problems={"tags": "not a list of texts"})
    return tuple(tags)


def _check_retry(retry: object) -> None:
    if retry is not None and not isinstance(retry, Retry):
        problem = f"is {retry!r}; give Retry(…), such as Retry(max_attempts=5)"
        raise InvalidSubmission(f"retry: {problem}", problems={"retry": problem})


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as plain JSON values; raises ``InvalidSubmission``."""
    from actionqueue.core.spec import METADATA_BYTES_MAX

    if not isinstance(metadata, Mapping):
        raise InvalidSubmission("metadata: give a mapping", problems={"metadata": "not a mapping"})
    try:
        body = json.encode(metadata)
    except (TypeError, ValueError) as error:
        raise InvalidSubmission(f"metadata: not JSON: {error}", problems={"metadata": str(error)}) from error
    if len(body) > METADATA_BYTES_MAX:
        problem = f"takes {len(body)} bytes; metadata_bytes_max is {METADATA_BYTES_MAX}"
        raise InvalidSubmission(f"metadata: {problem}", problems={"metadata": problem})
    plain: dict[str, Any] = json.decode(body)
    return plain


def rule_of(schedule: object) -> Rule:
    """A schedule as it is recorded; raises ``InvalidSubmission`` where it is none."""
    if not isinstance(schedule, Cron | Repeat):
        problem = f"is a {type(schedule).__name__}; give Cron(…) or Repeat(…)"
        raise InvalidSubmission(f"schedule: {problem}", problems={"schedule": problem})
    return schedule.rule()


def declare(
    *,
    name: str,
    queue: str,
    executor: str,
    retry: Retry | None,
    timeout: Duration | None,
    no_retry_on: tuple[type[BaseException], ...],
    on_lost: str | None,
    max_lost: int | None,
    priority: int,
    expires: Duration | None,
    tags: Iterable[str],
    result_bytes_max: int | None,
    concurrency_key: str | None,
    limits: Iterable[Limit],
    rate: Rate | Iterable[Rate],
    hold: Iterable[str],
    concurrency: int | None,
    schedule: Cron | Repeat | None = None,
) -> Declared:
    """The decorator's options, validated; raises ``InvalidSubmission`` naming every problem."""
    _check_retry(retry)
    retry = retry or Retry()
    problems: dict[str, str] = {}
    if (problem := name_problem(name)) is not None:
        problems["name"] = problem
    if executor not in ("async", "thread", "process"):
        problems["executor"] = "give async, thread or process"
    if on_lost not in (None, "retry", "fail"):
        problems["on_lost"] = "give retry or fail"
    if max_lost is not None and (type(max_lost) is not int or not 0 <= max_lost <= MAX_LOST_MAX):
        problems["max_lost"] = f"give 0 to {MAX_LOST_MAX}"
    if not _is_tuple_of_exceptions(no_retry_on):
        problems["no_retry_on"] = "give a tuple of exception classes"
    if result_bytes_max is not None and (type(result_bytes_max) is not int or result_bytes_max < 1):
        problems["result_bytes_max"] = "give a whole number of bytes, at least 1"
    if concurrency is not None and (type(concurrency) is not int or not 1 <= concurrency <= CONCURRENCY_MAX):
        problems["concurrency"] = f"give 1 to {CONCURRENCY_MAX}"
    tags = _tuple_of_tags(tags)
    timeout_us = _duration(timeout, "timeout", None)
    expires_us = _duration(expires, "expires", None)
    probe = Submission(
        _NO_ID, _NO_ID, "handler", b"", b"", queue, priority, retry.max_attempts, None, None,
        TaskOptions(timeout_us=timeout_us, tags=tags), expires_us=expires_us,
    )  # fmt: skip
    problems |= submission_problems(probe)
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise InvalidSubmission(f"the task's options are not valid: {listed}", problems=problems)
    terms = AttemptTerms(timeout_us, retry.backoff, on_lost, DEFAULT_TERMS.max_lost if max_lost is None else max_lost)
    return Declared(
        queue=queue,
        executor=executor,
        max_attempts=retry.max_attempts,
        terms=terms,
        no_retry_on=tuple(no_retry_on),
        priority=priority,
        expires_us=expires_us,
        tags=tags,
        result_bytes_max=result_bytes_max or RESULT_BYTES_MAX,
        wanted=wanted(concurrency_key, limits, rate, hold),
        concurrency=concurrency,
        rule=None if schedule is None else rule_of(schedule),
    )


def _is_tuple_of_exceptions(kinds: object) -> bool:
    return isinstance(kinds, tuple | list) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    )


def declaring(tasks: Iterable[Task[Any, Any]]) -> Declare:
    """What the decorators of these tasks say, schedules included."""
    tasks = list(tasks)
    items = [item for task in tasks if (item := task.declared_schedule()) is not None]
    return Declare([task.declaration() for task in tasks], items)
