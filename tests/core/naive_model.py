"""What a queue does, in the most obvious code: one list of runs, and loops over it.

No heaps, no indexes, no lanes, no events. Slow, short, and written from SEMANTICS.md rather than from the core, so that
a mistake would have to be made twice to stay unseen. Names instead of ids; a command answers what its caller is told,
or the name of the refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RETRY_US = 10_000_000
MAX_LOST = 5
LIVE = ("scheduled", "ready", "running", "retry_wait")
WAITING = ("scheduled", "retry_wait")


class Refused(str):
    """The name of a refusal."""

    __slots__ = ()


@dataclass
class Task:
    """What was submitted."""

    handler: str
    queue: str
    max_attempts: int
    key: str | None = None
    key_until: int | None = None
    content: bytes | None = None
    expires_at: int | None = None


@dataclass
class NaiveRun:
    """One run, and everything known of it."""

    name: str
    task: Task
    first: str
    priority: int
    state: str
    until: int
    order: int
    attempts: int = 0
    failures: int = 0
    lost: int = 0
    lost_in_a_row: int = 0
    cancel: str | None = None


@dataclass
class NaiveQueue:
    """All of it. ``capacity`` maps ("queue" or "executor", name) to a number; what is not in it is unbounded."""

    now: int
    runs: list[NaiveRun] = field(default_factory=list)
    paused: set[tuple[str, str]] = field(default_factory=set)
    capacity: dict[tuple[str, str], int] = field(default_factory=dict)
    executor_of: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    orders: int = 0

    def find(self, name: str) -> NaiveRun:
        """The run of that name."""
        return next(run for run in self.runs if run.name == name)

    # --- commands ----------------------------------------------------------------------------------------------

    def submit(self, names: list[str], task: Task, priority: int, due_at: int) -> Refused | list[bool]:
        """Tasks like ``task``, all or none; those whose idempotency key is taken are not new. Which of them are."""
        new: list[NaiveRun] = []
        created: list[bool] = []
        for name in names:
            holder = self._holder(task.key, new)
            if holder is not None and holder.task.content != task.content:
                return Refused("IdempotencyConflict")
            created.append(holder is None)
            if holder is None:
                state = "ready" if due_at <= self.now else "scheduled"
                new.append(NaiveRun(name, task, name, priority, state, max(due_at, self.now), 0))
        for run in new:
            run.order = self._next_order()
            self.runs.append(run)
        return created

    def _holder(self, key: str | None, new: list[NaiveRun]) -> NaiveRun | None:
        for run in [*new, *self.runs]:
            until = run.task.key_until
            if key is not None and run.task.key == key and (run in new or until is None or until > self.now):
                return run
        return None

    def finish(self, name: str, outcome: str, delay: int | None = None) -> None:
        """The open attempt of a run ends."""
        run = self.find(name)
        run.lost_in_a_row = run.lost_in_a_row + 1 if outcome == "lost" else 0
        run.failures += outcome in ("failed", "timed_out", "terminal")
        run.lost += outcome == "lost"
        if outcome == "completed":
            run.state = "completed"
        elif run.cancel is not None or outcome == "canceled":
            run.state = "canceled"
        elif outcome == "terminal" or run.failures >= run.task.max_attempts or self._lost_for_good(run, outcome):
            run.state = "failed"
        else:
            run.state = "retry_wait"
            uncounted = 0 if outcome in ("snoozed", "interrupted") else RETRY_US
            run.until = self.now + (uncounted if delay is None or outcome == "lost" else delay)

    def _lost_for_good(self, run: NaiveRun, outcome: str) -> bool:
        return outcome == "lost" and (run.lost > MAX_LOST or run.task.max_attempts == 1)

    def cancel(self, name: str, how: str) -> Refused | bool:
        """One run; whether that changes anything."""
        run = self.find(name)
        if run.state in ("completed", "failed"):
            return Refused("AlreadyTerminal")
        if run.state == "running" and how != "abandon":
            before, run.cancel = run.cancel, "kill" if "kill" in (how, run.cancel) else "cancel"
            return run.cancel != before
        before, run.state = run.state, "canceled"
        return before != "canceled"

    def cancel_task(self, name: str, how: str) -> int:
        """All live runs of the task of a run; for how many that changes anything."""
        mine = [run for run in self.runs if run.task is self.find(name).task and run.state in LIVE]
        return sum(bool(self.cancel(run.name, how)) for run in mine)

    def retry(self, name: str, new: str) -> Refused | None:
        """A new run for one that failed or was canceled, and is the newest of its chain."""
        old = self.find(name)
        newest = [run for run in self.runs if run.first == old.first][-1]
        if old.state not in ("failed", "canceled") or old is not newest:
            return Refused("NotRetryable")
        self.runs.append(NaiveRun(new, old.task, old.first, old.priority, "ready", self.now, self._next_order()))
        return None

    def reschedule(self, name: str, due_at: int) -> Refused | None:
        """Another instant."""
        run = self.find(name)
        if run.state not in LIVE:
            return Refused("AlreadyTerminal")
        if run.state not in WAITING:
            return Refused("NotReschedulable")
        run.until = max(due_at, self.now)
        return None

    def reprioritize(self, name: str, priority: int) -> Refused | None:
        """Another priority."""
        run = self.find(name)
        if run.state not in LIVE:
            return Refused("AlreadyTerminal")
        run.priority = priority
        return None

    def pause(self, scope: tuple[str, str]) -> bool:
        """Nothing of it starts; whether that changes anything."""
        is_news = scope not in self.paused
        self.paused.add(scope)
        return is_news

    def resume(self, scope: tuple[str, str]) -> bool:
        """It may start again; whether that changes anything."""
        is_news = scope in self.paused
        self.paused.discard(scope)
        return is_news

    def crash(self) -> None:
        """The engine dies and opens again: what was running is lost."""
        for run in self.runs:
            if run.state == "running":
                self.finish(run.name, "lost")

    # --- time and dispatch -------------------------------------------------------------------------------------

    def next_wake(self) -> int | None:
        """The earliest instant at which something happens by itself."""
        engine_paused = ("engine", "") in self.paused
        return min(
            [run.until for run in self.runs if run.state in WAITING and not engine_paused and not self._is_held(run)]
            + [run.task.expires_at for run in self.runs if self._may_expire(run) and run.task.expires_at is not None],
            default=None,
        )

    def settle(self) -> None:
        """Everything that can happen at this instant does."""
        for run in self.runs:
            if self._may_expire(run) and (run.task.expires_at or 0) <= self.now:
                run.state = "canceled"
        self._start_ready()
        due = [run for run in self.runs if run.state in WAITING and run.until <= self.now and not self._is_paused(run)]
        due.sort(key=lambda run: (-run.priority, run.until, run.order))
        for n, run in enumerate(due):
            if self._is_free(run) and run.lost_in_a_row < 2:
                self._start(run)
                continue
            for waiting in due[n:]:
                waiting.state, waiting.order = "ready", self._next_order()
            break
        self._start_ready()

    def _start_ready(self) -> None:
        while ready := [run for run in self.runs if run.state == "ready" and self._is_free(run)]:
            self._start(min(ready, key=lambda run: (-run.priority, run.order)))

    def _start(self, run: NaiveRun) -> None:
        run.state = "running"
        run.attempts += 1
        self.started.append(run.name)

    def _is_free(self, run: NaiveRun) -> bool:
        if self._is_paused(run) or run.task.handler not in self.executor_of:
            return False
        running = [other for other in self.runs if other.state == "running"]
        if run.lost_in_a_row >= 2 and any(other.lost_in_a_row >= 2 for other in running):
            return False
        executor = self.executor_of[run.task.handler]
        in_queue = [other for other in running if other.task.queue == run.task.queue]
        on_executor = [other for other in running if self.executor_of.get(other.task.handler) == executor]
        return len(in_queue) < self.capacity.get(("queue", run.task.queue), 10**9) and len(on_executor) < (
            self.capacity.get(("executor", executor), 10**9)
        )

    def _is_paused(self, run: NaiveRun) -> bool:
        return bool({("engine", ""), ("queue", run.task.queue), ("handler", run.task.handler)} & self.paused)

    def _is_held(self, run: NaiveRun) -> bool:
        return self._is_paused(run) and run.until <= self.now

    def _may_expire(self, run: NaiveRun) -> bool:
        return run.task.expires_at is not None and run.state in LIVE and not run.attempts and run.name == run.first

    def _next_order(self) -> int:
        self.orders += 1
        return self.orders
