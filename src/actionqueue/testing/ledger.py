"""The world's own record of what is durable, kept apart from the engine's state and by other means.

``read`` is given every batch that was written and every event in it, in order, and says what the promises of the
documentation do not allow: an attempt while another is open, a start after the end, more attempts than the cap, a start
out of turn. It knows runs by a few plain facts and looks at all of them where the engine keeps heaps and lanes; so a
mistake has to be made twice to stay unseen. Must not know: the core's state and how it decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from actionqueue.core import (
    attempts,
    batches,
    control,
    dependencies,
    epochs,
    schedules,
    signals,
    steps,
    submission,
    waits,
)
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms
from actionqueue.core.state import Outcome
from actionqueue.store.codec import decode_events
from actionqueue.store.port import Batch
from actionqueue.testing.calendar import Calendar
from actionqueue.testing.chart import Chart
from actionqueue.testing.limit_book import LimitBook
from actionqueue.testing.wait_book import WaitBook

STATE_NAMES: tuple[str, ...] = (
    "scheduled", "ready", "leased", "running", "retry_wait", "suspended", "awaiting", "completed", "failed", "canceled",
)  # fmt: skip
ENDED = ("completed", "failed", "canceled")
_COUNTED = (Outcome.FAILED, Outcome.TIMED_OUT)
_UNCOUNTED = (Outcome.SNOOZED, Outcome.INTERRUPTED)


class Facts(Struct, eq=False):
    """What was submitted of a task."""

    handler: str
    queue: str
    max_attempts: int
    expires_at: int | None
    expires_us: int | None = None
    runs: list[bytes] = field(default_factory=list)


class Record(Struct, eq=False):
    """One run."""

    id: bytes
    task: bytes
    facts: Facts
    state: str
    due_at: int
    priority: int
    order: int
    token: bytes
    retry_of: bytes | None = None
    starts: int = 0
    failures: int = 0
    losses: int = 0
    lost_in_a_row: int = 0
    open: bytes | None = None
    fence: int = 0
    started_at: int = 0
    terms: AttemptTerms = DEFAULT_TERMS
    is_canceled: bool = False
    is_misfit: bool = False
    is_pruned: bool = False
    occurrence: int | None = None
    """The nominal instant, where it is of a schedule."""
    waits: bool = False
    is_moved: bool = False
    is_requested: bool = False
    submitted_priority: int = 0
    is_held: bool = False
    """Whether it waits for tasks that its own depends on."""
    jitter_us: int = 0
    """By how much an occurrence may be later than its nominal instant."""


class Ledger:
    """See the module's head. ``capacity`` bounds queues, ``executor_of`` maps handlers that are always there."""

    def __init__(self, capacity: dict[str, int], executor_of: dict[str, str]) -> None:
        self.runs: dict[bytes, Record] = {}
        self.tasks: dict[bytes, Facts] = {}
        self.keys: dict[str, tuple[bytes, int | None]] = {}
        """The task of each idempotency key, and until when it is its."""
        self.live: dict[bytes, Record] = {}
        self.problems: list[str] = []
        self.events: list[Any] = []
        """Of the last batch."""
        self.edges: list[tuple[str, str]] = []
        """Of the last batch: the transitions that its events mean."""
        self.seq = 0
        self.at = 0
        self.paused: set[tuple[str, str]] = set()
        self.recovered: list[str] = []
        """Of the last batch: which rows of the recovery table it shows."""
        self.trusts_clock = True
        """Whether deadlines to start are kept: not while the wall clock is in doubt."""
        self.limits = LimitBook()
        self.calendar = Calendar(self)
        self.waits = WaitBook(self.problems)
        self.chart = Chart(self)
        self._capacity = capacity
        self._executor_of = executor_of
        self._orders = 0

    def read(self, batch: Batch) -> None:
        """Take note of what was written."""
        self.edges, self.recovered = [], []
        self.events = [] if batch.commit is None else decode_events(batch.commit.events)
        for event in self.events:
            self.seq += 1
            if event.at < self.at:
                self.problems.append(f"event {self.seq} is recorded at {event.at}, after one at {self.at}")
            self.at = event.at
            _READ[type(event)](self, event)
            self.chart.settle()
        self.waits.written(batch)
        self.chart.pruned(batch.pruned_tasks)
        for task_id in batch.pruned_tasks:
            for run_id in self.tasks.pop(task_id).runs:
                self.runs[run_id].is_pruned = True
                self.waits.pruned(run_id)
                if self.runs[run_id].state not in ENDED:
                    self.problems.append(f"run {run_id.hex()} was pruned while it was {self.runs[run_id].state}")

    def overdue(self, now: int) -> list[bytes]:
        """The attempts that are open past their timeout."""
        return [
            run.open
            for run in self.live.values()
            if run.open is not None and run.terms.timeout_us is not None and run.started_at + run.terms.timeout_us < now
        ]

    def counts(self) -> dict[str, int]:
        """Runs by state; those that were pruned do not count."""
        found = dict.fromkeys(STATE_NAMES, 0)
        for run in self.runs.values():
            if not run.is_pruned:
                found[run.state] += 1
        return found

    # --- events ----------------------------------------------------------------------------------------------------

    def _add(self, run_id: bytes, task_id: bytes, due_at: int, at: int, priority: int, token: bytes) -> Record:
        if run_id in self.runs and not self.runs[run_id].is_pruned:  # else what was pruned is submitted anew
            self.problems.append(f"run {run_id.hex()} is made twice")
        self._orders += 1
        facts = self.tasks[task_id]
        state = "ready" if due_at <= at else "scheduled"
        run = Record(run_id, task_id, facts, state, due_at, priority, self._orders, token)
        run.submitted_priority = priority
        facts.runs.append(run_id)
        self.runs[run_id] = self.live[run_id] = run
        return run

    def submitted(self, event: submission.TaskSubmitted) -> None:
        """A task and its run."""
        if event.task_id in self.tasks:
            self.problems.append(f"task {event.task_id.hex()} is made twice")
        expires_at = None if event.rare is None else event.rare.expires_at
        if event.rare is not None and event.rare.key is not None:
            holder, until = self.keys.get(event.rare.key, (b"", None))
            if holder in self.tasks and (until is None or until > event.at):
                self.problems.append(f"idempotency key {event.rare.key!r} makes a second task while it is another's")
            self.keys[event.rare.key] = (event.task_id, event.rare.key_until)
        self.tasks[event.task_id] = Facts(event.handler, event.queue, event.max_attempts, expires_at)
        if event.rare is not None:
            self.limits.submitted(event.task_id, event.rare.options)
        run = self._add(event.run_id, event.task_id, event.due_at, event.at, event.priority, event.run_id)
        if event.rare is not None and event.rare.rule is not None:
            self.tasks[event.task_id].expires_us = event.rare.expires_us
            run.state = "scheduled"  # whatever the instant is
            self.calendar.submitted(event, run)
        self.chart.submitted(event, run)

    def add_occurrence(self, run_id: bytes, task_id: bytes, due_at: int, state: str = "scheduled") -> Record:
        """One more run of a schedule."""
        facts = self.tasks[task_id]
        run = self._add(run_id, task_id, due_at, self.at, self.runs[facts.runs[0]].submitted_priority, run_id)
        run.state = state
        return run

    def added(self, event: submission.RunAdded) -> None:
        """A retry that someone asked for."""
        old = self.runs[event.retry_of]
        if old.state not in ("failed", "canceled"):
            self.problems.append(f"run {old.id.hex()} is retried while it is {old.state}")
        run = self._add(event.run_id, event.task_id, event.due_at, event.at, event.priority, old.token)
        run.retry_of = event.retry_of
        self.waits.retried(event.token, event.records, fresh=event.fresh)
        if event.token != old.token:
            self.problems.append(f"run {run.id.hex()} does not carry the token of its chain")
        self.chart.added(event, run)

    def promoted(self, event: attempts.RunsPromoted) -> None:
        """Due runs that wait."""
        for run_id in event.run_ids:
            run = self.runs[run_id]
            if run.due_at > event.at or run.is_held:
                self.problems.append(f"run {run_id.hex()} is promoted before it is due, or over its dependencies")
            self._check_occurrence(run, event.at)
            self.move(run, "ready")
            self._orders += 1
            run.order = self._orders

    def started(self, event: attempts.AttemptStarted) -> None:
        """An attempt."""
        run = self.runs[event.run_id]
        self._check_start(run, event)
        if run.state != "ready":
            self._check_occurrence(run, event.at)
            self.move(run, "ready")
        self.move(run, "leased")
        self.move(run, "running")
        run.starts += 1
        run.open, run.fence, run.started_at = event.attempt_id, self.seq, event.at
        run.terms = event.terms or DEFAULT_TERMS

    def _check_occurrence(self, run: Record, at: int) -> None:
        if run.state == "scheduled":
            self.calendar.comes_up(run, at)

    def _check_start(self, run: Record, event: attempts.AttemptStarted) -> None:
        found, said = self.problems, f"run {run.id.hex()} is started"
        if run.open is not None:
            found.append(f"{said} while an attempt is open")
        if run.state not in ("scheduled", "ready", "retry_wait"):
            found.append(f"{said} although it is {run.state}")
        if run.due_at > event.at:
            found.append(f"{said} before it is due")
        if run.is_held:
            found.append(f"{said} before what it depends on has ended")
        if run.failures >= run.facts.max_attempts or run.losses > run.terms.max_lost:
            found.append(f"{said} after {run.failures} failures and {run.losses} losses")
        if self._is_paused(run):
            found.append(f"{said} under a pause")
        expires_at = self._deadline_of(run)
        may_expire = self.trusts_clock and not run.starts and run.retry_of is None and not run.is_requested
        if may_expire and expires_at is not None and expires_at <= event.at:
            found.append(f"{said} after its deadline to start")
        if self._is_full(run):
            found.append(f"{said} in a queue that is full")
        for other in self.live.values():
            if other.state == "ready" and other is not run and self._goes_before(other, run):
                found.append(f"{said} before run {other.id.hex()}, whose turn it is")
        found += (f"{said} {why}" for why in self.limits.started(run.id, run.task, event.at))

    @staticmethod
    def _deadline_of(run: Record) -> int | None:
        facts = run.facts
        return facts.expires_at if facts.expires_us is None else run.due_at + facts.expires_us + run.jitter_us

    def _is_paused(self, run: Record) -> bool:
        paused = self.paused
        return bool(paused) and (
            ("engine", "") in paused
            or ("queue", run.facts.queue) in paused
            or ("handler", run.facts.handler) in paused
            or ("task", run.task.hex()) in paused
        )

    def _is_full(self, run: Record) -> bool:
        capacity = self._capacity.get(run.facts.queue)
        if capacity is None:
            return False
        return sum(1 for each in self.live.values() if each.open and each.facts.queue == run.facts.queue) >= capacity

    def _goes_before(self, other: Record, run: Record) -> bool:
        """Whether ``other``, which is Ready, could have started in the place of ``run`` and has the better claim."""
        if run.state == "ready" and (-other.priority, other.order) > (-run.priority, run.order):
            return False
        executor = self._executor_of.get(other.facts.handler)
        return (
            executor is not None
            and executor == self._executor_of.get(run.facts.handler)
            and other.lost_in_a_row < 2
            and not other.is_misfit
            and not other.is_held
            and not self._is_paused(other)
            and not self._is_full(other)
            and not any(self.limits.in_the_way(other.id, other.task, self.at))
        )

    def finished(self, event: attempts.AttemptFinished) -> None:
        """An attempt has ended, and its run goes on to where the caps and the outcome say."""
        run, outcome, to = self.runs[event.run_id], event.outcome, STATE_NAMES[event.to]
        if run.open != event.attempt_id:
            self.problems.append(f"run {run.id.hex()} takes the end of an attempt that does not hold it")
        run.open = None
        run.failures += outcome in _COUNTED
        run.losses += outcome is Outcome.LOST
        run.lost_in_a_row = run.lost_in_a_row + 1 if outcome is Outcome.LOST else 0
        run.is_misfit = event.reason == attempts.MISFIT
        run.is_canceled |= event.abandoned and bool(event.by)
        if to == "awaiting":
            self.waits.began(run.id, event.wait, event.at)
        expected = self._expected(run, outcome)
        if to not in expected:
            self.problems.append(
                f"run {run.id.hex()} is {to} after {outcome.name}; it should be {' or '.join(expected)}"
            )
        if event.retry_at is not None:
            run.due_at = event.retry_at
            if event.retry_at < event.at:
                self.problems.append(f"run {run.id.hex()} is tried again in the past")
        if outcome is Outcome.LOST and not event.abandoned:
            self.recovered.append(_lost_row(run, to))
        elif outcome is Outcome.INTERRUPTED and event.reason == "interrupted":
            self.recovered.append("drained, code stopped: interrupted")
        elif outcome is Outcome.LOST:
            self.recovered.append("drained, code not stopped: lost")
        self.move(run, to)

    def _expected(self, run: Record, outcome: Outcome) -> tuple[str, ...]:
        if outcome is Outcome.COMPLETED:
            return ("completed",)
        if run.is_canceled or outcome is Outcome.CANCELED:
            return ("canceled",)
        if outcome in _COUNTED:
            return ("failed",) if run.failures >= run.facts.max_attempts else ("retry_wait", "failed")
        if outcome is Outcome.LOST:
            is_last = run.losses > run.terms.max_lost or run.terms.fails_when_lost(run.facts.max_attempts)
            return ("failed",) if is_last else ("retry_wait",)
        return ("awaiting",) if outcome is Outcome.AWAITING else ("retry_wait",)

    def wait_ended(self, event: waits.WaitsEnded) -> None:
        """Runs that waited are Ready."""
        self.waits.ended(event, lambda run_id: self.runs[run_id].token)
        for run_id in event.run_ids:
            run = self.runs[run_id]
            if run.state != "awaiting":
                self.problems.append(f"run {run_id.hex()} is woken while it is {run.state}")
            self.move(run, "ready")
            self._orders += 1
            run.order = self._orders

    def canceled(self, event: control.RunCanceled) -> None:
        """What waited ended."""
        run = self.runs[event.run_id]
        if run.open is not None:
            self.problems.append(f"run {run.id.hex()} is canceled over its open attempt")
        expires_at = self._deadline_of(run)
        if expires_at is not None:
            expires_at -= run.jitter_us
        if event.reason == "expired" and (expires_at is None or expires_at > event.at or run.starts):
            self.problems.append(f"run {run.id.hex()} is canceled by a deadline it has not missed")
        self.calendar.left(run.id, run.task)
        self.move(run, "canceled")

    def cancel_requested(self, event: control.CancelRequested) -> None:
        """What runs is asked to stop."""
        self.runs[event.run_id].is_canceled = True

    def task_canceled(self, event: control.TaskCanceled) -> None:
        """All live runs of a task."""
        self.calendar.task_canceled(event.task_id, event.at)
        for run_id in self.tasks[event.task_id].runs:
            run = self.runs[run_id]
            if run.open is not None:
                run.is_canceled = True
            elif run.state not in ENDED:
                self.move(run, "canceled")

    def rescheduled(self, event: control.RunRescheduled) -> None:
        """Another instant."""
        run = self.runs[event.run_id]
        run.due_at = event.due_at
        if run.state == "scheduled":
            self.calendar.left(run.id, run.task)
            run.waits, run.is_moved = False, True
        if run.state not in ("scheduled", "retry_wait"):
            self.problems.append(f"run {run.id.hex()} is rescheduled while it is {run.state}")

    def reprioritized(self, event: control.RunReprioritized) -> None:
        """Another priority."""
        self.runs[event.run_id].priority = event.priority

    def pause(self, event: control.Paused) -> None:
        """A pause."""
        self.paused.add((event.scope, event.name))

    def resume(self, event: control.Resumed) -> None:
        """Its end."""
        self.paused.discard((event.scope, event.name))

    def opened(self, event: epochs.EngineOpened) -> None:
        """An epoch begins."""
        self.calendar.wall_is(event.wall_shift)
        for run in self.live.values():
            run.is_misfit = False
            if run.state in ("scheduled", "retry_wait", "awaiting"):
                self.recovered.append(f"{run.state}: unchanged")
        if any(run.facts.queue in self._capacity for run in self.live.values()):
            self.recovered.append("slots of queues: as before")
        if self.chart.held:
            self.recovered.append("dependencies: as before")
        if self.paused:
            self.recovered.append("pauses: as before")
        if self.limits.is_in_use():
            self.recovered.append("keys, rates: as before")

    def closed(self, event: epochs.EngineClosed) -> None:
        """An epoch ended in order."""
        if any(run.open for run in self.live.values()):
            self.problems.append("the engine closed over open attempts")

    def pass_over(self, event: object) -> None:
        """Nothing that this record keeps."""

    def move(self, run: Record, to: str) -> None:
        """A run is in another state."""
        if run.state in ENDED:
            self.problems.append(f"run {run.id.hex()} leaves {run.state} for {to}")
        self.edges.append((run.state, to))
        self.limits.moved(run.id, run.task, run.state, to, ended=to in ENDED)
        run.state = to
        if to in ENDED:
            self.waits.left(run.id)
            self.live.pop(run.id, None)
            self._lift_pause(run.task)

    def _lift_pause(self, task_id: bytes) -> None:
        """The pause of a task ends with it."""
        if self.calendar.is_over(task_id) and not any(run_id in self.live for run_id in self.tasks[task_id].runs):
            self.paused.discard(("task", task_id.hex()))


def _lost_row(run: Record, to: str) -> str:
    if to == "canceled":
        return "running, asked to stop: canceled"
    if to == "retry_wait":
        return "running: lost, tried again"
    return (
        "running: lost, failed past max_lost" if run.losses > run.terms.max_lost else "running: lost, failed by on_lost"
    )


_READ: dict[type, Callable[[Ledger, Any], None]] = {
    submission.TaskSubmitted: Ledger.submitted,
    submission.RunAdded: Ledger.added,
    attempts.RunsPromoted: Ledger.promoted,
    attempts.AttemptStarted: Ledger.started,
    attempts.AttemptFinished: Ledger.finished,
    attempts.ProgressReported: Ledger.pass_over,
    control.RunCanceled: Ledger.canceled,
    control.CancelRequested: Ledger.cancel_requested,
    control.TaskCanceled: Ledger.task_canceled,
    control.RunRescheduled: Ledger.rescheduled,
    control.RunReprioritized: Ledger.reprioritized,
    control.Paused: Ledger.pause,
    control.Resumed: Ledger.resume,
    schedules.RunDerived: lambda ledger, event: ledger.calendar.derived_run(event),
    schedules.OccurrencesSkipped: lambda ledger, event: ledger.calendar.skipped(event),
    schedules.OccurrenceWaits: lambda ledger, event: ledger.calendar.waits(event),
    schedules.RunRequested: lambda ledger, event: ledger.calendar.requested(event),
    schedules.BackfillAsked: lambda ledger, event: ledger.calendar.asked(event),
    schedules.ScheduleRetired: lambda ledger, event: ledger.calendar.retired(event),
    batches.BatchOpened: Ledger.pass_over,
    dependencies.DependenciesAdded: lambda ledger, event: ledger.chart.given_more(event),
    epochs.EngineOpened: Ledger.opened,
    epochs.EngineClosed: Ledger.closed,
    epochs.WallMoved: lambda ledger, event: ledger.calendar.wall_is(event.wall_shift),
    epochs.HandlersDeclared: Ledger.pass_over,
    epochs.TasksPruned: Ledger.pass_over,
    steps.StepRecorded: lambda ledger, event: ledger.waits.stepped(event, ledger.runs[event.run_id].token),
    waits.WaitsEnded: Ledger.wait_ended,
    signals.SignalKept: lambda ledger, event: ledger.waits.signaled(event, ledger.seq),
    signals.SignalsExpired: lambda ledger, event: ledger.waits.expired(event),
}
