"""The things the core holds: tasks, runs, attempts, and the state as a whole.

Live things only: a run that ended stays here until its row is written (``State.ended``), then leaves. Nothing here
decides; the slices (submission, attempts, control, limits) do. ``Task`` and ``Run`` are msgspec structs with
``gc=False``: a million of them are invisible to the garbage collector, so it never stalls the writer. The price is that
a cycle through them is never collected: a task links its live runs (``head``/``next``), a run its task and, while it is
Ready, its neighbours in line (``before``/``behind``); the links are cut when the run ends or starts, or all at once by
``State.dispose``.
"""

from __future__ import annotations

import enum
from typing import Any

from msgspec import Struct, field

from actionqueue.core.graph import Cascade
from actionqueue.core.lanes import Lane
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.places import Places
from actionqueue.core.reasons import Where
from actionqueue.core.retry import AttemptTerms
from actionqueue.core.rules import CronRule, Rule
from actionqueue.core.run import RunInstance, RunState
from actionqueue.core.spec import NO_OPTIONS, Depends, TaskOptions

STATES = (
    RunState.SCHEDULED,
    RunState.READY,
    RunState.LEASED,
    RunState.RUNNING,
    RunState.RETRY_WAIT,
    RunState.SUSPENDED,
    RunState.AWAITING,
    RunState.COMPLETED,
    RunState.FAILED,
    RunState.CANCELED,
)
"""Run states in the order of their codes in events and rows. Only ever appended to."""

CODE_OF = {state: code for code, state in enumerate(STATES)}
SCHEDULED, READY, LEASED, RUNNING, RETRY_WAIT, SUSPENDED, AWAITING, COMPLETED, FAILED, CANCELED = range(10)
FIRST_TERMINAL = COMPLETED


class Outcome(enum.Enum):
    """How an attempt ended. The value is its code in events and rows."""

    COMPLETED = 1
    FAILED = 2
    TIMED_OUT = 3
    SUSPENDED = 4
    AWAITING = 5
    CANCELED = 6
    SNOOZED = 7
    INTERRUPTED = 8
    LOST = 9


class ErrorInfo(Struct, frozen=True, array_like=True):
    """What an attempt failed with; bounded texts, and a fingerprint that groups failures of one kind."""

    kind: str
    message: str
    traceback: str = ""
    fingerprint: str = ""


class Output(Struct, frozen=True, array_like=True, gc=False):
    """A result stored as bytes under the run's id. ``digest`` is BLAKE2b-128 of the bytes."""

    digest: bytes
    bytes_count: int


class Attempt(Struct, gc=False):
    """One try of a run; open while ``finished_at`` is None."""

    id: bytes
    number: int
    fence: int
    ready_at: int
    started_at: int
    terms: AttemptTerms
    finished_at: int | None = None
    outcome: Outcome | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    retry_at: int | None = None
    abandoned: bool = False
    progress: tuple[int, int | None, str] | None = None


class CancelMark(Struct, frozen=True, array_like=True):
    """That a running run was asked to stop: when, by whom, and whether by force."""

    at: int
    by: str
    how: str


class Skip(Struct, frozen=True, array_like=True):
    """Occurrences that did not happen: ``count`` of them, from the nominal instant ``first`` to ``last``, and why."""

    at: int
    count: int
    first: int
    last: int
    reason: str


class Backfill(Struct, frozen=True, array_like=True):
    """Runs that were asked for at the nominal instants after ``after`` up to ``until``; those up to ``after`` exist."""

    after: int
    until: int
    left: int
    by: str


class Schedule(Struct, eq=False):
    """What is known of one schedule: how far its occurrences are accounted for (``core/schedules.py``).

    Of the first ``index`` occurrences each has a run, or is one of ``skipped``. ``pending`` is the run of the next one,
    Scheduled; it is None when that run has left Scheduled and the next was not derived yet.
    """

    task_id: bytes
    handler: str
    name: str
    origin: str
    """``code`` (declared by a decorator), ``call`` (``queue.schedule``), or empty: submitted with ``schedule=``."""
    rule: Rule
    base: int
    """The instant from which on it occurs: of its submission."""
    content: bytes = b""
    """A digest of everything that makes it this schedule: another one under its name replaces it."""
    index: int = 0
    cursor: int = 0
    """The nominal instant of the last occurrence that is accounted for."""
    pending: bytes | None = None
    over: bool = False
    """No occurrence comes after the cursor."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many occurrences, by reason."""
    last_skip: Skip | None = None
    requested: int = 0
    """Runs someone asked for: now, or to fill a range."""
    backfills: list[Backfill] = field(default_factory=list)
    retired_at: int | None = None
    retired_by: str = ""
    waiting: dict[bytes, Run] = field(default_factory=dict)
    """Runs that are due and wait for the one before, oldest first."""
    catching_up: bool = False
    """It waits for one of its runs to end before more is derived. Found out anew by each process; not stored."""

    @property
    def is_done(self) -> bool:
        """Whether it makes no more runs."""
        return self.over and not self.backfills

    @property
    def is_named(self) -> bool:
        """Whether it stands under its name, and is remembered when its task has finished."""
        return bool(self.name) and self.retired_at is None


class TaskExtra(Struct, frozen=True):
    """What few tasks have; apart from ``Task`` so that a million plain ones stay small."""

    options: TaskOptions = NO_OPTIONS
    key: str | None = None
    key_until: int | None = None
    content: bytes | None = None
    delay_us: int | None = None
    expires_at: int | None = None
    canceled_at: int | None = None
    by: str = ""
    rule: Rule | None = None
    schedule_name: str = ""
    schedule_origin: str = ""
    expires_us: int | None = None
    """The deadline to start of each run after its nominal instant, where there is a schedule."""
    schedule: Schedule | None = None
    depends: Depends | None = None
    retries: int = 0
    """Of a schedule's task, how many of its runs are retries."""
    batch: bytes = b""


NO_EXTRA = TaskExtra()
"""Shared by all plain tasks."""

NONE_ENDED = (0, 0, 0)


class Task(Struct, gc=False, eq=False):
    """A task with at least one live run."""

    id: bytes
    lane: Lane
    priority: int
    max_attempts: int
    created_at: int
    payload_digest: bytes
    payload_bytes: int
    extra: TaskExtra = NO_EXTRA
    run_count: int = 0
    ended: tuple[int, int, int] = NONE_ENDED
    finished_at: int | None = None
    head: Run | None = None

    @property
    def handler(self) -> str:
        """The handler's name."""
        return self.lane.handler

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.lane.queue.name

    @property
    def open_count(self) -> int:
        """How many of its runs have not ended."""
        completed, failed, canceled = self.ended
        return self.run_count - completed - failed - canceled

    def link(self, run: Run) -> None:
        """Make ``run`` one of the task's live runs."""
        run.next = self.head
        self.head = run

    def unlink(self, run: Run) -> None:
        """Take ``run``, which ended, off the task's live runs."""
        if self.head is run:
            self.head = run.next
        else:
            before = self.head
            while before is not None and before.next is not run:
                before = before.next
            assert before is not None, "a live run is linked to its task"
            before.next = run.next
        run.next = None

    def live_runs(self) -> list[Run]:
        """The task's live runs, oldest first."""
        runs = []
        run = self.head
        while run is not None:
            runs.append(run)
            run = run.next
        runs.reverse()
        return runs


class Lineage(Struct, frozen=True, gc=False):
    """Where a requested run comes from: the run it retries (None: it was asked for by itself), the first of that chain
    (the token), and who asked."""

    retry_of: bytes | None
    token: bytes
    by: str


class Run(RunInstance, gc=False, eq=False):
    """A live run: the validated instance the engine moves, and what it needs to know beside it."""

    task: Task = None  # type: ignore[assignment]  # given right after construction; the constructors are RunInstance's
    where: Where = Where.NOWHERE
    order: int = 0
    until: int = 0
    priority: int = 0
    failure_count: int = 0
    lost_count: int = 0
    lost_streak: int = 0
    reason: str = ""
    attempt: Attempt | None = None
    latest: Attempt | None = None
    """The latest attempt, open or closed; while it is open it is ``attempt`` too."""
    older: list[Attempt] | None = None
    """Attempts before the latest that have not been projected yet."""
    lineage: Lineage | None = None
    cancel: CancelMark | None = None
    output: Output | None = None
    next: Run | None = None
    before: Run | None = None
    behind: Run | None = None
    """Its neighbours among the Ready runs of its lane (``core/ready.py``)."""
    started_at: int | None = None
    error_kind: str | None = None
    rank: int = 0
    """While it is Ready: the first part of its key (``core/ready.py``)."""

    @property
    def token(self) -> bytes:
        """The idempotency token: the id of the first run of the retry chain."""
        return self._id if self.lineage is None else self.lineage.token


class Declaration(Struct, frozen=True, array_like=True):
    """What a handler's decorator says a task of it gets where the submission leaves it open."""

    handler: str
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 3
    expires_us: int | None = None
    tags: tuple[str, ...] = ()
    signature: str = ""
    limits: tuple[KeyNeed, ...] = ()
    """Keys and rates as templates over the arguments."""
    rates: tuple[RateNeed, ...] = ()
    hold: tuple[str, ...] = ()
    defaults: dict[str, str] = {}
    """What a template shows of parameters that are left out."""


class PauseMark(Struct, frozen=True, array_like=True):
    """A pause in force: of the engine, a queue, a handler or a task (by its id in hex); who set it and when."""

    scope: str
    name: str
    at: int
    by: str


class Epoch(Struct, frozen=True, array_like=True):
    """One engine's hold of the store. ``closed`` tells a graceful end from a crash."""

    number: int
    opened_at: int
    pid: int
    host: str
    version: str
    closed: bool = False


class State(Struct, eq=False):
    """Everything replay produces, plus the places (whose handler and slot facts are of this process only)."""

    places: Places = field(default_factory=Places)
    tasks: dict[bytes, Task] = field(default_factory=dict)
    runs: dict[bytes, Run] = field(default_factory=dict)
    keys: dict[str, Task] = field(default_factory=dict)
    pauses: dict[tuple[str, str], PauseMark] = field(default_factory=dict)
    declarations: dict[str, Declaration] = field(default_factory=dict)
    epoch: Epoch | None = None
    last_seq: int = 0
    last_at: int = 0
    next_order: int = 1
    counts: list[int] = field(default_factory=lambda: [0] * len(STATES))
    """Runs by state code: live ones, and ended ones until they are pruned."""
    tasks_total: int = 0
    pruned_before: int = 0
    schedules: dict[bytes, Schedule] = field(default_factory=dict)
    """By task id: those whose task is live, and those that stand under a name."""
    schedule_names: dict[str, Schedule] = field(default_factory=dict)
    underived: dict[bytes, Schedule] = field(default_factory=dict)
    """Schedules that need a look: their next occurrence has no run yet."""
    wall_shift: int = 0
    """How far the wall clock, which cron follows, is ahead of the instants that events are recorded at."""
    occurrences_skipped: int = 0
    """Of all schedules, ever."""
    dirty_schedules: dict[bytes, Schedule] = field(default_factory=dict)
    recent: dict[bytes | str, int] = field(default_factory=dict)
    """Task ids and idempotency keys that ended, with the sequence: what a look-up made before it cannot know."""
    recent_before: dict[bytes | str, int] = field(default_factory=dict)
    """The same, of before the last projection."""
    recorded: dict[bytes, int] = field(default_factory=dict)
    """By token: how many records a retry chain has that has a live run, if it has any (``core/records.py``)."""
    dependents: dict[bytes, dict[bytes, Task]] = field(default_factory=dict)
    """Of each task that live tasks depend on, those (``core/graph.py``)."""
    unmet: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    """Of each task that waits for others, those of them that are live."""
    results: dict[bytes, tuple[bytes, Output | None]] = field(default_factory=dict)
    """Of tasks that ended lately and that live tasks depend on: the run that completed, and its result. A memo."""
    fallen: list[Task] = field(default_factory=list)
    """Tasks that ended because others did, until whoever waits for their results was told. A memo."""
    cascade: Cascade | None = None
    # --- since the last projection; not part of what replay compares
    dirty_runs: dict[bytes, Run] = field(default_factory=dict)
    dirty_tasks: dict[bytes, Task] = field(default_factory=dict)
    dirty_facts: bool = False
    dirty_entries: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    """What a capability keeps in a row of its own: (kind, key) to its body, None where it is gone."""
    records: list[tuple[bytes, str, str, int, bytes]] = field(default_factory=list)
    """Rows of ``steps`` that follow from what was applied, until whoever commits it takes them."""
    forgotten: list[bytes] = field(default_factory=list)
    """Chains whose rows of ``steps`` go with it."""

    def shift_of(self, rule: Rule) -> int:
        """How far what a schedule follows is ahead of recorded instants: cron follows the wall clock."""
        return self.wall_shift if isinstance(rule, CronRule) else 0

    def ended_since(self, name: bytes | str, seq: int) -> bool:
        """Whether that task (or the task of that key) ended after ``seq``, as far as that is remembered."""
        return self.recent.get(name, -1) > seq or self.recent_before.get(name, -1) > seq

    def rotate_recent(self, *, keep: bool) -> None:
        """A projection was made: forget what ended before the one before it, unless a look-up may still need it."""
        if keep:
            self.recent_before.update(self.recent)
        else:
            self.recent_before = self.recent
        self.recent = {}

    def dispose(self) -> None:
        """Cut the cycles among structs the garbage collector does not see. The state is unusable afterwards."""
        for task in self.tasks.values():
            task.head = None
        for run in self.runs.values():
            run.next = None
        self.places.dispose()
        for schedule in self.schedules.values():
            schedule.waiting.clear()
        self.fallen.clear()
        for held in (self.tasks, self.runs, self.keys, self.dirty_runs, self.dirty_tasks, self.dependents):
            held.clear()


class Accepted(Struct, gc=False):
    """A decision in favour: the events it means, and what to tell the caller once they are durable."""

    events: list[Any]
    reply: Any = None
