"""Submitting: tasks with their first runs, and runs that someone asks for afterwards (retry).

One ``Submit`` is decided whole: every task in it is accepted, found to exist already, or the whole command is refused.
An idempotency key (or a task id the caller chose) that is taken by a task with the same content is not a conflict: the
reply names the existing task. What left memory is looked up by the engine and attached as ``known``.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core.errors import (
    ActionQueueError,
    IdempotencyConflict,
    InvalidSubmission,
    NotRetryable,
    Overloaded,
    UnknownRun,
)
from actionqueue.core.ids import NIL, RunId, TaskId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.lanes import Lane
from actionqueue.core.records import set_count
from actionqueue.core.rules import CronRule, Rule, timetable
from actionqueue.core.run import RunState
from actionqueue.core.spec import DEFAULT_QUEUE, NO_OPTIONS, Submission, TaskOptions, submission_problems
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

LIVE_RUNS_MAX = 5_000_000
"""Live runs of one engine; beyond it submissions are refused with ``Overloaded``."""


# --- events -----------------------------------------------------------------------------------------------------


class RareFields(Struct, frozen=True, omit_defaults=True):
    """What few submissions carry, left out of the event where it is the default."""

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
    events: list[object] = []
    reply: list[tuple[bytes, bytes, bool]] = []
    base = command.at or now
    declarations = state.declarations
    new_keys: dict[str, KnownTask] = {}
    new_tasks: dict[bytes, KnownTask] = {}
    for item in items:
        if item.key is not None or item.task_id_given:
            existing = _existing(state, command, item, now, new_keys, new_tasks)
            if isinstance(existing, ActionQueueError):
                return existing
            if existing is not None:
                reply.append((existing.task_id, existing.run_id, False))
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
        reply.append((item.task_id, item.run_id, True))
    if events and len(state.runs) + len(events) > live_runs_max:
        return overloaded(state, live_runs_max)
    return Accepted(events, reply)


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
    return Accepted([added], (image.task_id, command.new_run_id))


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
    if rare is not None and rare.key is not None:
        state.keys[rare.key] = task
    if rare is not None and rare.rule is not None:
        begin_schedule(state, task, event, rare)
        return
    run = _add_run(state, task, event.run_id, event.due_at, at, event.priority, "submitted")
    if extra.expires_at is not None:
        places.timers.watch_deadline(run)
    state.dirty_tasks[task_id] = task


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
    else:
        task = state.tasks[event.task_id]
    task.finished_at = None
    run = _add_run(state, task, event.run_id, event.due_at, event.at, event.priority, "retry")
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


def _add_run(state: State, task: Task, run_id: bytes, due_at: int, at: int, priority: int, reason: str) -> Run:
    order = state.next_order
    state.next_order = order + 1
    if due_at <= at:
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
    if due_at <= at:
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
    )
