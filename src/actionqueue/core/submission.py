"""Submitting: tasks with their first runs, and runs that someone asks for afterwards (retry).

One ``Submit`` is decided whole: every task in it is accepted, found to exist already, or the whole command is refused.
An idempotency key (or a task id the caller chose) that is taken by a task with the same content is not a conflict: the
reply names the existing task. What left memory is looked up by the engine and attached as ``known``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping
from itertools import compress
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core import graph
from actionqueue.core.attempts import cancel_waiting
from actionqueue.core.errors import (
    ActionQueueError,
    DependencyCycle,
    IdempotencyConflict,
    InvalidSubmission,
    NotRetryable,
    Overloaded,
    UnknownRun,
    UnknownTask,
)
from actionqueue.core.graph import Outlook
from actionqueue.core.ids import NIL, RunId, TaskId, derived_id
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.lanes import Lane
from actionqueue.core.reasons import canceled_by
from actionqueue.core.records import set_count
from actionqueue.core.rules import CronRule, Rule, timetable
from actionqueue.core.run import RunState
from actionqueue.core.spec import DEFAULT_QUEUE, NO_OPTIONS, Depends, Submission, TaskOptions, submission_problems
from actionqueue.core.state import (
    CODE_OF,
    NO_EXTRA,
    Accepted,
    Declaration,
    Lineage,
    Run,
    Schedule,
    State,
    Task,
    TaskExtra,
)

JITTER_BYTES = 6
"""How much of a run's id, which is random there, draws its jitter."""

T = TypeVar("T")

LIVE_RUNS_MAX = 5_000_000
"""Live runs of one engine; beyond it submissions are refused with ``Overloaded``."""


# --- events -----------------------------------------------------------------------------------------------------


class Flow(Struct, frozen=True, omit_defaults=True):
    """What ties a task to others."""

    depends: Depends | None = None
    failed: bytes = b""
    """One of the tasks it depends on had ended badly before it was submitted, so it is canceled at once: that task, or
    the one because of which that was canceled."""
    retries: int = 0
    """Of a schedule's task, how many of its runs are retries."""


class RareFields(Struct, frozen=True, omit_defaults=True):
    """What few submissions carry, left out of the event where it is the default.

    It must not have more than fifteen fields: rows hold its encoding, whose first bytes would be others then.
    """

    options: TaskOptions = NO_OPTIONS
    key: str | None = None
    key_until: int | None = None
    content: bytes | None = None
    delay_us: int | None = None
    expires_at: int | None = None
    by: str = ""
    rule: Rule | None = None
    schedule_name: str = ""
    schedule_origin: str = ""
    expires_us: int | None = None
    begins_at: int = 0
    """From when on a schedule occurs, by the clock that it follows."""
    first_at: int = 0
    """When its first occurrence, whose nominal instant is the run's, falls due."""
    only_occurrence: bool = False
    flow: Flow | None = None

    @property
    def depends(self) -> Depends | None:
        """What it depends on."""
        return None if self.flow is None else self.flow.depends

    @property
    def failed(self) -> bytes:
        """See ``Flow``."""
        return b"" if self.flow is None else self.flow.failed


NOTHING_RARE = RareFields()


class TaskSubmitted(Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A task and its first run exist. ``due_at`` equal to ``at`` creates the run Ready."""

    at: int
    task_id: bytes
    run_id: bytes
    handler: str
    queue: str
    priority: int
    max_attempts: int
    due_at: int
    payload_digest: bytes
    payload_bytes: int
    rare: RareFields | None = None


class TaskImage(Struct, frozen=True, array_like=True):
    """A task that had ended, whole, so that adding a run to it can be replayed."""

    task_id: bytes
    handler: str
    queue: str
    priority: int
    max_attempts: int
    created_at: int
    payload_digest: bytes
    payload_bytes: int
    run_count: int
    ended: tuple[int, int, int]
    rare: RareFields | None = None
    canceled_at: int | None = None


class RunAdded(Struct, frozen=True, array_like=True, tag=2):
    """Someone asked for one more run of a task: a retry of one that ended."""

    at: int
    task_id: bytes
    run_id: bytes
    due_at: int
    retry_of: bytes
    token: bytes
    priority: int
    by: str
    image: TaskImage | None = None
    records: int = 0
    """How many records its chain has, which carry over."""
    fresh: bool = False
    """They are forgotten instead."""


# --- commands ---------------------------------------------------------------------------------------------------


class KnownTask(Struct, array_like=True):
    """A task that has left memory, as looked up: enough to answer an idempotency key."""

    task_id: bytes
    content: bytes | None
    key_until: int | None = None
    run_id: bytes = b""
    handler: str = ""
    payload_digest: bytes = b""
    outlook: int = Outlook.NOT_KNOWN
    """How it ended, for those that depend on it."""
    origin: bytes = b""
    """The task because of which it was canceled (empty: it ended by itself)."""

    def has_content_of(self, item: Submission) -> bool:
        """Whether ``item`` says the same. A task that was submitted without a key recorded no digest of its content."""
        if self.content is not None:
            return self.content == item.content
        return self.handler == item.handler and self.payload_digest == item.payload_digest


class KnownRun(Struct, array_like=True):
    """A run that has left memory, as looked up, with its task."""

    run_id: bytes
    state: int
    token: bytes
    image: TaskImage
    priority: int = 0
    newest: bytes = b""
    """The newest run of its chain of retries (empty: itself)."""
    outlooks: dict[bytes, int] = {}
    """How the tasks that its task depends on have ended, those that have."""
    records: int = 0
    """How many records the chain has."""


class Submit(Struct, array_like=True, tag="submit"):
    """Submit these tasks, all or none. ``at`` is the caller's instant when it came through the inbox, else 0."""

    items: list[Submission]
    at: int = 0
    by: str = ""
    known_keys: dict[str, KnownTask] = {}
    known_tasks: dict[bytes, KnownTask] = {}


class RetryRun(Struct, array_like=True, tag="retry_run"):
    """A new run for a Failed or Canceled one."""

    run_id: bytes
    new_run_id: bytes
    by: str = ""
    known: KnownRun | None = None
    at_us: int | None = None
    with_dependents: bool = False
    known_dependents: list[KnownRun] = []
    """The runs that were canceled because it ended badly, where that is asked."""
    fresh: bool = False
    """Whether the chain's records (of steps and waits) are forgotten, so that everything is done again."""


# --- decide -----------------------------------------------------------------------------------------------------


def decide_submit(
    state: State, command: Submit, now: int, live_runs_max: int, *, may_name: bool = False
) -> Accepted | ActionQueueError:
    """Events for every new task; the reply lists (task id, run id, created) in the order of the items.

    Only who knows what stands under a name (``may_name``) may submit a schedule with one.
    """
    items = command.items
    if command.at and (problems := _foreign_problems(state, items)):
        return InvalidSubmission(f"the submission is not valid: {problems}", problems=problems)
    events: list[TaskSubmitted] = []
    reply: list[tuple[bytes, bytes, bool]] = []
    base = command.at or now
    declarations = state.declarations
    new_keys: dict[str, KnownTask] = {}
    new_tasks: dict[bytes, KnownTask] = {}
    named: dict[bytes, bytes] = {}
    """Of each item, the id of the task that it is."""
    created: list[Submission] = []
    for item in items:
        if item.key is not None or item.task_id_given:
            existing = _existing(state, command, item, now, new_keys, new_tasks)
            if isinstance(existing, ActionQueueError):
                return existing
            if existing is not None:
                reply.append((existing.task_id, existing.run_id, False))
                named[item.task_id] = existing.task_id
                continue
            known = KnownTask(item.task_id, item.content, None, item.run_id, item.handler, item.payload_digest)
            new_tasks[item.task_id] = known
            if item.key is not None:
                new_keys[item.key] = known
        declared = declarations.get(item.handler)
        if item.rule is None:
            submitted: TaskSubmitted | InvalidSubmission = _submitted(item, declared, now, base, command.by)
        elif may_name or not (item.schedule_name or item.schedule_origin):
            submitted = _scheduled(state, item, declared, now, base, command.by)
        else:
            problem = "a schedule gets its name by queue.schedule"
            return InvalidSubmission(f"name: {problem}", problems={"name": problem})
        if isinstance(submitted, ActionQueueError):
            return submitted
        events.append(submitted)
        created.append(item)
        named[item.task_id] = item.task_id
        reply.append((item.task_id, item.run_id, True))
    if events and len(state.runs) + len(events) > live_runs_max:
        return overloaded(state, live_runs_max)
    if not any(item.depends is not None for item in created):
        return Accepted([*events], reply)
    ordered = _with_dependencies(state, command, created, events, named)
    return ordered if isinstance(ordered, ActionQueueError) else Accepted([*ordered], reply)


def _with_dependencies(
    state: State, command: Submit, created: list[Submission], events: list[TaskSubmitted], named: dict[bytes, bytes]
) -> list[TaskSubmitted] | ActionQueueError:
    """The events of new tasks with what each depends on, those that others depend on first."""
    known = command.known_tasks | {each.task_id: each for each in command.known_keys.values()}
    rules = {item.task_id: item.rule for item in created}
    made: dict[bytes, TaskSubmitted] = {}
    waits: dict[bytes, list[bytes]] = {}
    for item, submitted in zip(created, events, strict=True):
        event, depends = submitted, item.depends
        if depends is not None:
            depends = _renamed(depends, named)
            problem = check_dependencies(state, item.task_id, depends, known, rules)
            if problem is not None:
                return problem
            failed = failed_of(state, depends, known)
            event = replace(event, rare=replace(event.rare or RareFields(), flow=Flow(depends, failed)))
            waits[item.task_id] = [each for each in depends.on if each in rules]
        made[item.task_id] = event
    ordered = _in_order(made, waits)
    return ordered if isinstance(ordered, ActionQueueError) else _doomed(ordered)


def _doomed(ordered: list[TaskSubmitted]) -> list[TaskSubmitted]:
    """The same, where those that are canceled at once take with them what depends on them."""
    origins = {event.task_id: event.rare.failed for event in ordered if event.rare is not None and event.rare.failed}
    if not origins:
        return ordered
    found: list[TaskSubmitted] = []
    for event in ordered:
        rare = event.rare
        depends = None if rare is None else rare.depends
        if rare is None or depends is None or rare.failed or graph.satisfies(depends, Outlook.FAILED):
            found.append(event)
            continue
        failed = next((origins[each] for each in depends.on if each in origins), b"")
        if failed:
            origins[event.task_id] = failed
        found.append(replace(event, rare=replace(rare, flow=Flow(depends, failed))))
    return found


def _renamed(depends: Depends, named: dict[bytes, bytes]) -> Depends:
    """By the ids of tasks that existed already, where an item named one of those; two items may have named one."""
    on = [named.get(each, each) for each in depends.on]
    if on == list(depends.on):
        return depends
    once = {each: n for n, each in enumerate(dict.fromkeys(on))}
    places = [replace(place, upstream=once[on[place.upstream]]) for place in depends.outputs]
    return replace(depends, on=tuple(once), outputs=tuple(places))


def _in_order(made: Mapping[bytes, T], waits: Mapping[bytes, Iterable[bytes]]) -> list[T] | DependencyCycle:
    """Each after those it depends on; a circle of them is refused with its path."""
    missing = {task_id: [each for each in waits.get(task_id, ()) if each in made] for task_id in made}
    followers: dict[bytes, list[bytes]] = {}
    for task_id, on in missing.items():
        for each in on:
            followers.setdefault(each, []).append(task_id)
    left = {task_id: len(on) for task_id, on in missing.items()}
    ready = deque(task_id for task_id, count in left.items() if not count)
    found: list[T] = []
    while ready:
        task_id = ready.popleft()
        found.append(made[task_id])
        for each in followers.get(task_id, ()):
            left[each] -= 1
            if not left[each]:
                ready.append(each)
    if len(found) == len(made):
        return found
    here = next(compress(left, left.values()))
    path = [here]
    while (following := next(each for each in missing[here] if left[each])) not in path:
        path.append(following)
        here = following
    return cycle([*path[path.index(following) :], following])


def cycle(path: Iterable[bytes]) -> DependencyCycle:
    """The refusal of a circle; the path begins and ends with the same task."""
    shown = " -> ".join(str(TaskId(bytes=each)) for each in path)
    return DependencyCycle(f"these tasks would wait for each other for ever: {shown}", path=shown)


def check_dependencies(
    state: State, task_id: bytes, depends: Depends, known: dict[bytes, KnownTask], new: Mapping[bytes, Rule | None]
) -> ActionQueueError | None:
    """What is wrong with the tasks that one is to depend on: one does not exist, never ends, or is that task itself.

    ``new`` are those submitted together with it, with their rules.
    """
    for upstream in depends.on:
        if upstream == task_id:
            return cycle([task_id, task_id])
        task = state.tasks.get(upstream)
        if task is None and upstream not in known and upstream not in new:
            return UnknownTask(
                f"depends_on: no task {TaskId(bytes=upstream)} in this store", task_id=TaskId(bytes=upstream)
            )
        rule = new.get(upstream) if task is None else task.extra.rule
        if isinstance(rule, CronRule) and rule.max_occurrences is None and rule.ends_us is None:
            problem = (
                f"task {TaskId(bytes=upstream)} has a cron schedule without an end, so it would be waited for for ever"
            )
            return InvalidSubmission(f"depends_on: {problem}", problems={"depends_on": problem})
    return None


def failed_of(state: State, depends: Depends, known: dict[bytes, KnownTask]) -> bytes:
    """Of the first dependency that has ended in a way that does not let the task go on the origin; empty for none."""
    for upstream in depends.on:
        found = known.get(upstream)
        if upstream not in state.tasks and found is not None and not graph.satisfies(depends, found.outlook):
            return found.origin or upstream
    return b""


def names_unknown(state: State, command: Submit) -> bool:
    """Whether it depends on tasks that are neither live nor among its own: how they ended is to be looked up."""
    depending = [item for item in command.items if item.depends is not None]
    if not depending:
        return False
    mine = {item.task_id for item in command.items}
    return any(
        upstream not in state.tasks and upstream not in mine
        for item in depending
        for upstream in (item.depends.on if item.depends is not None else ())
    )


def overloaded(state: State, live_runs_max: int) -> Overloaded:
    """The refusal of more runs than may be live."""
    return Overloaded(
        f"{len(state.runs)} runs are live; live_runs_max is {live_runs_max}. Wait until some have ended.",
        limit="live_runs_max",
        maximum=live_runs_max,
    )


def _foreign_problems(state: State, items: list[Submission]) -> dict[str, str]:
    """What is wrong with what another process sent: it was validated there, by whatever release runs there."""
    run_ids = [item.run_id for item in items]
    task_ids = [item.task_id for item in items if not item.task_id_given]
    for item in items:
        problems = submission_problems(item)
        if problems:
            return problems
    if len(set(run_ids)) < len(run_ids) or any(run_id in state.runs for run_id in run_ids):
        return {"run_id": "belongs to another run"}
    if len(set(task_ids)) < len(task_ids) or any(task_id in state.tasks for task_id in task_ids):
        return {"task_id": "belongs to another task"}
    return {}


def _submitted(item: Submission, declared: Declaration | None, now: int, base: int, by: str) -> TaskSubmitted:
    queue, priority, max_attempts, expires_us = item.queue, item.priority, item.max_attempts, item.expires_us
    options = item.options
    if queue is None:
        queue = declared.queue if declared is not None else DEFAULT_QUEUE
    if priority is None:
        priority = declared.priority if declared is not None else 0
    if max_attempts is None:
        max_attempts = declared.max_attempts if declared is not None else 3
    if expires_us is None and declared is not None:
        expires_us = declared.expires_us
    if declared is not None and declared.tags and (options is None or not options.tags):
        options = replace(options or NO_OPTIONS, tags=declared.tags)
    due_at = now
    if item.at_us is not None:
        due_at = max(item.at_us, now)
    elif item.delay_us is not None:
        due_at = min(max(base + item.delay_us, now), SUBMIT_INSTANT_MAX)
    rare = None
    if (
        options is not None
        or item.key is not None
        or item.content is not None
        or expires_us is not None
        or by
        or item.delay_us
    ):
        rare = RareFields(
            options=options or NO_OPTIONS,
            key=item.key,
            key_until=None if item.key_lifetime_us is None else base + item.key_lifetime_us,
            content=item.content,
            delay_us=item.delay_us,
            expires_at=None if expires_us is None else min(base + expires_us, SUBMIT_INSTANT_MAX),
            by=by,
        )
    return TaskSubmitted(
        now, item.task_id, item.run_id, item.handler, queue, priority, max_attempts, due_at,
        item.payload_digest, len(item.body), rare,
    )  # fmt: skip


def _scheduled(
    state: State, item: Submission, declared: Declaration | None, now: int, base: int, by: str
) -> TaskSubmitted | InvalidSubmission:
    """A task with a schedule, and the run of its first occurrence."""
    assert item.rule is not None
    begins_at = now + state.shift_of(item.rule)
    first = first_occurrence(item.rule, begins_at)
    if first is None:
        problem = "never occurs from now on; look at its end and its years"
        return InvalidSubmission(f"schedule: {problem}", problems={"schedule": problem})
    plain = _submitted(item, declared, now, base, by)
    rare = plain.rare or RareFields()
    expires_us = item.expires_us if item.expires_us is not None else (declared.expires_us if declared else None)
    rare = replace(
        rare, rule=item.rule, schedule_name=item.schedule_name, schedule_origin=item.schedule_origin,
        content=item.content, expires_at=None, expires_us=expires_us, begins_at=begins_at,
        first_at=occurs_at(item.rule, first[0], item.run_id, begins_at - now), only_occurrence=first[1],
    )  # fmt: skip
    return replace(plain, due_at=first[0], rare=rare)


def first_occurrence(rule: Rule, base: int) -> tuple[int, bool] | None:
    """The first nominal instant of a schedule submitted at ``base``, and whether it is the only one."""
    times = timetable(rule, base)
    if isinstance(rule, CronRule):
        after = base if rule.starts_us is None else max(base, rule.starts_us - 1)
        nominal, most = times.next_after(after), rule.max_occurrences
    else:
        nominal, most = times.next_after(-1), rule.count
    if nominal is None or nominal > SUBMIT_INSTANT_MAX:
        return None
    following = times.next_after(nominal)
    return nominal, most == 1 or following is None or following > SUBMIT_INSTANT_MAX


def _existing(
    state: State,
    command: Submit,
    item: Submission,
    now: int,
    new_keys: dict[str, KnownTask],
    new_tasks: dict[bytes, KnownTask],
) -> KnownTask | IdempotencyConflict | None:
    """The task that holds the item's key or id already; a conflict when its content differs."""
    found: KnownTask | None = None
    if item.key is not None:
        live = state.keys.get(item.key)
        for holder in (new_keys.get(item.key), _known(state, live), command.known_keys.get(item.key)):
            if holder is not None and (holder.key_until is None or holder.key_until > now):
                found = holder
                break
    if found is None and item.task_id_given:
        known = _known(state, state.tasks.get(item.task_id))
        found = known or new_tasks.get(item.task_id) or command.known_tasks.get(item.task_id)
    if found is None or found.has_content_of(item):
        return found
    named = f"idempotency key {item.key!r}" if item.key is not None else "task id"
    return IdempotencyConflict(
        f"{named} belongs to task {TaskId(bytes=found.task_id)}, which was submitted with other content. "
        "Use another key, or submit the same content.",
        task_id=TaskId(bytes=found.task_id),
        key=item.key,
    )


def _known(state: State, task: Task | None) -> KnownTask | None:
    if task is None:
        return None
    extra = task.extra
    return KnownTask(task.id, extra.content, extra.key_until, run_of(state, task), task.handler, task.payload_digest)


def run_of(state: State, task: Task) -> bytes:
    """The id of its oldest live run. A schedule may have none for a moment, until the next one is derived: then of one
    that has just ended, or nil."""
    live = task.live_runs()
    if live:
        return live[0].id_bytes
    return next((run_id for run_id, run in state.dirty_runs.items() if run.task is task), NIL)


def decide_retry(state: State, command: RetryRun, now: int) -> Accepted | ActionQueueError:
    """One more run, linked to the one it retries; refused while that one is live or when it was completed."""
    if command.at_us is not None and not 0 <= command.at_us <= SUBMIT_INSTANT_MAX:
        return InvalidSubmission("at: not an instant up to the year 9999", problems={"at": "out of range"})
    if command.new_run_id == NIL or len(command.new_run_id) != len(NIL) or command.new_run_id in state.runs:
        return InvalidSubmission("run id: nil, or of another run", problems={"run_id": "nil, or of another run"})
    if command.run_id in state.runs:
        run = state.runs[command.run_id]
        return NotRetryable(
            f"run {run.id} is {run.state.value}; only a failed or canceled run can be retried",
            run_id=run.id,
            state=run.state.value,
        )
    known = command.known
    if known is None:
        return UnknownRun(
            "no run has this id in this store; `actionqueue runs` lists them", run_id=RunId(bytes=command.run_id)
        )
    if known.state not in (CODE_OF[RunState.FAILED], CODE_OF[RunState.CANCELED]):
        return NotRetryable(
            "the run was completed; only a failed or canceled run can be retried", run_id=RunId(bytes=command.run_id)
        )
    if known.newest not in (b"", command.run_id):
        return NotRetryable(
            f"the run was retried already; the newest of its chain is {RunId(bytes=known.newest)}, retry that",
            run_id=RunId(bytes=command.run_id),
            by=RunId(bytes=known.newest),
        )
    image = known.image
    live = state.tasks.get(image.task_id)
    if live is None and (barred := _barred(state, known)) is not None:
        return barred
    if live is not None:
        for other in live.live_runs():
            if other.token == known.token:
                return NotRetryable(
                    f"the run is being retried already, by run {other.id}",
                    run_id=RunId(bytes=command.run_id),
                    by=other.id,
                )
    due_at = now if command.at_us is None else max(command.at_us, now)
    added = RunAdded(
        now, image.task_id, command.new_run_id, due_at, command.run_id, known.token, known.priority, command.by,
        None if live is not None else image, 0 if command.fresh else known.records, command.fresh,
    )  # fmt: skip
    events: list[object] = [added]
    for each in _dependents_of(state, known, command.known_dependents) if command.with_dependents else ():
        run_id = derived_id(command.new_run_id, each.run_id)
        events.append(
            RunAdded(
                now, each.image.task_id, run_id, now, each.run_id, each.token, each.priority, command.by, each.image,
                each.records,
            )
        )  # fmt: skip
    return Accepted(events, (image.task_id, command.new_run_id))


def _barred(state: State, known: KnownRun) -> NotRetryable | DependencyCycle | None:
    """Why a run of a task that had ended cannot go on: what it depends on ended badly, or waits for it."""
    rare = known.image.rare
    if rare is None or rare.depends is None:
        return None
    bad = _bad_upstream(state, known, ())
    if bad is not None:
        return NotRetryable(
            f"the run depends on task {TaskId(bytes=bad)}, which did not complete; retry the run of that one with "
            "with_dependents=True",
            run_id=RunId(bytes=known.run_id),
        )
    path = graph.path_to(state, rare.depends.on, known.image.task_id)
    return None if path is None else cycle([known.image.task_id, *path])


def _bad_upstream(state: State, known: KnownRun, revived: Container[bytes]) -> bytes | None:
    """A task that the task of a run depends on and that ended badly, unless it is live again."""
    rare = known.image.rare
    depends = None if rare is None else rare.depends
    for upstream in () if depends is None else depends.on:
        outlook = known.outlooks.get(upstream, Outlook.COMPLETED)  # else it was pruned
        assert depends is not None
        if upstream not in state.tasks and upstream not in revived and not graph.satisfies(depends, outlook):
            return upstream
    return None


def _depends_of(known: KnownRun) -> Depends:
    rare = known.image.rare
    assert rare is not None, "it is known as one that depends on others"
    assert rare.depends is not None, "the same"
    return rare.depends


def _dependents_of(state: State, known: KnownRun, dependents: list[KnownRun]) -> list[KnownRun]:
    """The runs that come back with it: those canceled because it ended badly and for which nothing else is in the way.

    One that was retried by itself meanwhile is live, and waits for this one if it waits at all.
    """
    found = {each.image.task_id: each for each in dependents if each.image.task_id not in state.tasks}
    while True:
        revived = found.keys() | {known.image.task_id}
        barred = [task_id for task_id, each in found.items() if _bad_upstream(state, each, revived) is not None]
        if not barred:
            waits = {task_id: _depends_of(each).on for task_id, each in found.items()}
            ordered = _in_order(found, waits)
            return list(found.values()) if isinstance(ordered, ActionQueueError) else ordered
        for task_id in barred:
            del found[task_id]


# --- apply ------------------------------------------------------------------------------------------------------


def apply_submitted(state: State, event: TaskSubmitted) -> None:
    """The task and its run come to life."""
    places = state.places
    rare = event.rare
    task_id, at = event.task_id, event.at
    lane = places.lanes.get((event.queue, event.handler)) or new_lane(state, event.queue, event.handler)
    extra = NO_EXTRA if rare is None else extra_of(rare)
    if rare is not None:
        lane = limited_lane(state, lane, rare.options, task_id)
    lane.tasks += 1
    task = Task(task_id, lane, event.priority, event.max_attempts, at, event.payload_digest, event.payload_bytes, extra)
    state.tasks[task_id] = task
    state.tasks_total += 1
    if state.dependents:  # one of its id was pruned, and tried again is what depended on that
        graph.revive(state, task)
    if rare is not None and rare.key is not None:
        state.keys[rare.key] = task
    if rare is not None and rare.rule is not None:
        begin_schedule(state, task, event, rare)
        return
    waits = extra.depends is not None and graph.enter(state, task)
    run = _add_run(state, task, event.run_id, event.due_at, at, event.priority, "submitted", waits=waits)
    state.dirty_tasks[task_id] = task
    if rare is not None and rare.failed:
        cancel_waiting(state, run, at, canceled_by(rare.failed))
        state.fallen.append(task)
    elif extra.expires_at is not None:
        places.timers.watch_deadline(run)


def apply_run_added(state: State, event: RunAdded) -> None:
    """A task gains a run; one that had ended comes back first."""
    image = event.image
    if image is not None:
        lane = state.places.lanes.get((image.queue, image.handler)) or new_lane(state, image.queue, image.handler)
        if image.rare is not None:
            lane = limited_lane(state, lane, image.rare.options, image.task_id)
        lane.tasks += 1
        task = Task(
            image.task_id,
            lane,
            image.priority,
            image.max_attempts,
            image.created_at,
            image.payload_digest,
            image.payload_bytes,
            NO_EXTRA if image.rare is None else extra_of(image.rare, image.canceled_at),
            run_count=image.run_count,
            ended=image.ended,
        )
        standing = state.schedules.get(task.id)
        if standing is not None:
            task.extra = replace(task.extra, schedule=standing)
        state.tasks[task.id] = task
        key, until = task.extra.key, task.extra.key_until
        if key is not None and (until is None or until > event.at):  # else it may be another task's by now
            state.keys[key] = task
        graph.revive(state, task)
    else:
        task = state.tasks[event.task_id]
    task.finished_at = None
    if task.extra.rule is not None:
        task.extra = replace(task.extra, retries=task.extra.retries + 1)
    waits = image is not None and task.extra.depends is not None and graph.enter(state, task)
    run = _add_run(state, task, event.run_id, event.due_at, event.at, event.priority, "retry", waits=waits)
    run.lineage = Lineage(event.retry_of, event.token, event.by)
    if event.fresh:
        state.forgotten.append(event.token)
    elif event.records:
        set_count(state, event.token, event.records)
    state.dirty_tasks[task.id] = task


def begin_schedule(state: State, task: Task, event: TaskSubmitted, rare: RareFields) -> None:
    """A schedule, with the run of its first occurrence ahead."""
    rule = rare.rule
    assert rule is not None
    schedule = Schedule(
        task.id, task.handler, rare.schedule_name, rare.schedule_origin, rule, rare.begins_at,
        rare.content or b"",
        index=1, cursor=event.due_at, pending=event.run_id, over=rare.only_occurrence,
    )  # fmt: skip
    task.extra = replace(task.extra, schedule=schedule)
    state.schedules[task.id] = state.dirty_schedules[task.id] = schedule
    if schedule.name:
        state.schedule_names[schedule.name] = schedule
    add_run(state, task, event.run_id, event.due_at, event.at, "submitted", rare.first_at)
    state.dirty_tasks[task.id] = task


def occurs_at(rule: Rule, nominal: int, run_id: bytes, shift: int) -> int:
    """When an occurrence falls due: at its nominal instant, and up to ``jitter`` later, drawn by the id of its run."""
    due_at = max(0, nominal - shift)
    if not isinstance(rule, CronRule) or not rule.jitter_us:
        return due_at
    return due_at + (rule.jitter_us * int.from_bytes(run_id[-JITTER_BYTES:], "big") >> 8 * JITTER_BYTES)


def add_run(
    state: State, task: Task, run_id: bytes, scheduled_at: int, at: int, reason: str, due_at: int | None = None
) -> Run:
    """One more run of a schedule's task: Scheduled until ``due_at`` (whatever the instant is), or Ready."""
    order = state.next_order
    state.next_order = order + 1
    if due_at is None:
        run = Run.new_ready_with_id(run_id, task.id, min(scheduled_at, at), at, task.priority)
    else:
        run = Run.new_scheduled_with_id(run_id, task.id, scheduled_at, at)
    run.task, run.order, run.priority, run.reason = task, order, task.priority, reason
    task.run_count += 1
    task.link(run)
    state.runs[run_id] = state.dirty_runs[run_id] = run
    state.dirty_tasks[task.id] = task
    state.counts[CODE_OF[run.state]] += 1
    if due_at is None:
        state.places.enter_lane(run)
    else:
        state.places.enter_timer(run, due_at)
    return run


def _add_run(
    state: State, task: Task, run_id: bytes, due_at: int, at: int, priority: int, reason: str, *, waits: bool = False
) -> Run:
    order = state.next_order
    state.next_order = order + 1
    if due_at <= at and not waits:
        run = Run.new_ready_with_id(run_id, task.id, due_at, at, priority)
    else:
        run = Run.new_scheduled_with_id(run_id, task.id, due_at, at)
    run.task = task
    run.order = order
    run.priority = priority
    run.reason = reason
    task.run_count += 1
    run.next = task.head
    task.head = run
    state.runs[run_id] = run
    state.dirty_runs[run_id] = run
    if waits:
        state.counts[0] += 1
        run.until = due_at
        graph.hold(state, run)
    elif due_at <= at:
        state.counts[1] += 1
        state.places.enter_lane(run)
    else:
        state.counts[0] += 1
        state.places.enter_timer(run, due_at)
    return run


def new_lane(state: State, queue: str, handler: str) -> Lane:
    """A lane that has not been used yet, under whatever pauses are in force."""
    lane = state.places.lane(queue, handler)
    state.places.apply_pauses(lane, state.pauses)
    return lane


def limited_lane(state: State, base: Lane, options: TaskOptions, task_id: bytes) -> Lane:
    """The lane of the family of ``base`` for a task with these options; one of its own while it is paused by itself."""
    mark = state.pauses.get(("task", task_id.hex())) if state.pauses else None
    if not options.limits and not options.rates and mark is None:
        return base
    lane = state.places.kin(base, (options.limits, options.rates, b"" if mark is None else task_id))
    if mark is not None:
        lane.pause = base.pause or mark
    return lane


def extra_of(rare: RareFields, canceled_at: int | None = None) -> TaskExtra:
    """What a task keeps of the rare fields."""
    return TaskExtra(
        options=rare.options,
        key=rare.key,
        key_until=rare.key_until,
        content=rare.content,
        delay_us=rare.delay_us,
        expires_at=rare.expires_at,
        canceled_at=canceled_at,
        by=rare.by,
        rule=rare.rule,
        schedule_name=rare.schedule_name,
        schedule_origin=rare.schedule_origin,
        expires_us=rare.expires_us,
        depends=rare.depends,
        retries=0 if rare.flow is None else rare.flow.retries,
    )


def rare_of(extra: TaskExtra) -> RareFields:
    """The rare fields of what a task keeps."""
    return RareFields(
        options=extra.options,
        key=extra.key,
        key_until=extra.key_until,
        content=extra.content,
        delay_us=extra.delay_us,
        expires_at=extra.expires_at,
        by=extra.by,
        rule=extra.rule,
        schedule_name=extra.schedule_name,
        schedule_origin=extra.schedule_origin,
        expires_us=extra.expires_us,
        flow=None if extra.depends is None and not extra.retries else Flow(extra.depends, b"", extra.retries),
    )
