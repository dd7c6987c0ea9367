"""A queue without a process around it: the machine, a clock moved by hand, a log, and tables that a projection fills.

A ``Story`` plays the engine's part as the engine does: it decides and applies commands, lets what may start start,
wakes at the instants the core asks to be woken at, looks facts up for commands that need them, projects, crashes and
opens again. It checks on its way what no single test should have to ask for:

- after every event, in a second machine that replays the log event by event: ``check`` finds nothing;
- after every step: ``check`` finds nothing in the first machine either, with dispatch settled; both have the same
  fingerprint; the counts agree with the runs that were seen to end; the next wake-up is the earliest that is needed;
- a decision changes nothing, and so a refusal changes nothing;
- a crash loses nothing: rows and the tail of the log give the same state as the whole log.

Told in Python (``story.perform(command)``) or as text, a line a step::

    executor main 1                           handlers of ``main`` have one slot
    handler h on_lost=fail backoff=fixed:10s  register a handler; ``h`` is from the start, with a backoff of 10 s
    submit a b priority=5 delay=30s           two tasks in one commit; their runs are called a and b
    tick 30s                                  the clock moves on, and stops at every wake-up on its way
    jump 30s                                  the same in one leap, as if the process had been stopped
    finish a failed                           the handler of a reports its end
    submit a limits=mail:4,b rates=sms:2/1s hold=retry_wait    keys with capacities, rates as count/period/burst, hold
    submit c after=a,b on_failure=run partial=yes   ·  depend c a        dependencies, at submission and later
    pause task a  ·  aging 30s  ·  handler g concurrency=2
    cancel a how=kill  ·  retry a as b dependents=yes  ·  reschedule a 30s  ·  reprioritize a 7
    finish a awaits signal=go key=k timeout=3d      a waits  ·  finish a sleeps for=1h  ·  retry a as b fresh
    signal go key=k id=s1 payload=1           a signal is sent  ·  step a name    a step is recorded
    pause queue mail  ·  resume engine
    project  ·  crash  ·  restart             what is in memory only is gone after a crash
    expect a retry_wait failures=1 until=10s  where a is, and what is known of it (instants relative to the present)
    started a b                               what was started since the last such line, in this order
    refused AlreadyTerminal: cancel a         the command is refused, and nothing changes
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import msgpack

from actionqueue.core.attempts import MISFIT, AttemptStarted, Finish, Progress
from actionqueue.core.awaiting import SIGNAL, SLEEP, WaitAsked
from actionqueue.core.check import check, fingerprint
from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.epochs import Close
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.graph import Outlook
from actionqueue.core.ids import IdSource, RunId
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.lanes import Slots
from actionqueue.core.loading import load
from actionqueue.core.machine import Command, Event, Machine
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.reasons import Reason, Where, canceled_by, origin_in
from actionqueue.core.records import STEP
from actionqueue.core.retry import AttemptTerms, Backoff, Delays, Exponential, Fixed
from actionqueue.core.rows import (
    Row,
    latest_attempt_row,
    open_run,
    open_task,
    project,
    stored_run,
    stored_task,
)
from actionqueue.core.schedules import RunDerived, RunRequested
from actionqueue.core.signals import SendSignal
from actionqueue.core.spec import Depends, Submission, TaskOptions
from actionqueue.core.state import (
    CODE_OF,
    COMPLETED,
    FIRST_TERMINAL,
    RUNNING,
    STATES,
    Attempt,
    ErrorInfo,
    Outcome,
    Output,
    Run,
    State,
)
from actionqueue.core.steps import RecordStep, StepRecorded
from actionqueue.core.submission import KnownRun, KnownTask, RareFields, RetryRun, RunAdded, Submit, TaskImage
from actionqueue.core.timers import deadline_of, is_ahead
from actionqueue.core.waits import wait_record
from actionqueue.core.why import reason_in

START = 1_700_000_000_000_000
TERMS = AttemptTerms(backoff=Fixed(10_000_000))
SECOND = 1_000_000


def ids(seed: int = 7) -> IdSource:
    """Ids that are the same each time."""
    return IdSource(random.Random(seed).randbytes)


class Tables:
    """What a projection has written: the part of a store that the core reads again."""

    def __init__(self) -> None:
        self.facts: dict[str, bytes] = {}
        self.tasks: dict[bytes, Row] = {}
        self.runs: dict[bytes, Row] = {}
        self.attempts: dict[tuple[bytes, int], Row] = {}
        self.entries: dict[tuple[str, str], bytes] = {}
        self.steps: dict[bytes, dict[str, tuple[str, bytes]]] = {}
        """Records by chain and name; written with the events."""

    def take(self, state: State) -> None:
        """Project ``state``."""
        written = project(state)
        self.facts |= written.facts
        self.tasks |= {stored[0]: open_task(stored) for stored in written.tasks}
        self.runs |= {stored[0]: open_run(stored) for stored in written.runs}
        for kind, key, body in written.entries:
            if body is None:
                self.entries.pop((kind, key), None)
            else:
                self.entries[kind, key] = body
        latest = (latest_attempt_row(self.runs[stored[0]]) for stored in written.runs)
        self.attempts |= {(row[0], row[1]): row for row in [*written.attempts, *latest] if row is not None}

    def load(self) -> State:
        """The live rows, as a state. They come in an order that means nothing."""
        runs = reversed([row for row in self.runs.values() if row[4] < FIRST_TERMINAL])
        tasks = (stored_task(row) for row in self.tasks.values() if row[12] is None)
        entries = ((*names, body) for names, body in self.entries.items())
        return load(self.facts, tasks, map(stored_run, runs), entries)

    def known_task(self, row: Row) -> KnownTask:
        """What a look-up tells of a task."""
        rare = RareFields() if row[15] is None else msgpack.decode(row[15], type=RareFields)
        first = min(each[0] for each in self.runs.values() if each[1] == row[0])
        return KnownTask(row[0], rare.content, rare.key_until, first)

    def known_run(self, run_id: bytes) -> KnownRun | None:
        """What a look-up tells of a run."""
        row = self.runs.get(run_id)
        if row is None:
            return None
        task = self.tasks[row[1]]
        rare = None if task[15] is None else msgpack.decode(task[15], type=RareFields)
        image = TaskImage(
            task[0], task[1], task[2], task[3], task[4], task[5], task[6], task[7], task[8],
            (task[9], task[10], task[11]), rare, task[13],
        )  # fmt: skip
        token = row[20] or run_id
        newest = max(each[0] for each in self.runs.values() if (each[20] or each[0]) == token)
        known = KnownRun(run_id, row[4], token, image, row[6], newest, records=len(self.steps.get(token, ())))
        if rare is not None and rare.depends is not None:
            known.outlooks = {each: task.outlook for each, task in self.upstreams(rare.depends.on).items()}
        return known

    def upstreams(self, task_ids: Iterable[bytes]) -> dict[bytes, KnownTask]:
        """What a look-up tells of tasks that one is to depend on."""
        return {task_id: self._upstream(task_id) for task_id in task_ids if task_id in self.tasks}

    def _upstream(self, task_id: bytes) -> KnownTask:
        runs = [row for row in self.runs.values() if row[1] == task_id]
        newest = {row[20] or row[0]: row for row in sorted(runs, key=lambda row: row[8])}
        completed = [row[4] == COMPLETED for row in newest.values()]
        whole = Outlook.COMPLETED if all(completed) and self.tasks[task_id][13] is None else Outlook.PARTIAL
        origin = next((found for row in runs if (found := origin_in(row[5])) is not None), b"")
        return KnownTask(task_id, None, outlook=whole if any(completed) else Outlook.FAILED, origin=origin)

    def dependents_of(self, origin: bytes) -> list[KnownRun]:
        """The runs that were canceled because that task ended badly."""
        canceled = [row[0] for row in self.runs.values() if row[5] == canceled_by(origin)]
        found = [known for run_id in canceled if (known := self.known_run(run_id)) is not None]
        return [known for known in found if known.newest == known.run_id]


class Story:
    """See the module's head."""

    def __init__(
        self, *, slots: int = 100, live_runs_max: int = 1_000_000, seed: int = 7, checked: bool = True
    ) -> None:
        self.checked = checked
        self.now = START
        self.log: list[Event] = []
        self.tables = Tables()
        self.next_id = ids(seed).next
        self.live_runs_max = live_runs_max
        self.signals_max = 100
        self.machine = self._made(State())
        self.shadow = Machine()
        self.names: dict[str, tuple[bytes, bytes]] = {}
        self.seen: dict[bytes, Run] = {}
        self.started: list[bytes] = []
        self.lowered: set[str] = set()
        self.executors: dict[str, int] = {"main": slots}
        self.queues: dict[str, int | None] = {}
        self.handlers: dict[str, tuple[str, AttemptTerms, int | None]] = {"h": ("main", TERMS, None)}
        self.aging_us = 0
        self.epoch = 0
        self.down = False
        self.holding = False
        """Set while many commands are decided one after another, before anything is started."""
        self._open()

    @property
    def state(self) -> State:
        """The state of the machine."""
        return self.machine.state

    # --- the engine's part -------------------------------------------------------------------------------------

    def decide(self, command: Command) -> Any:
        """What the machine decides, with looked-up facts where it needs them; it changes nothing."""
        self._attach(command)
        if not self.checked:
            return self.machine.decide(command, self.now)
        before = fingerprint(self.state)
        decision = self.machine.decide(command, self.now)
        assert fingerprint(self.state) == before, "a decision changes nothing"
        return decision

    def perform(self, command: Command) -> Any:
        """Decide, apply, and let follow what follows. The reply, or the refusal (returned, not raised)."""
        assert not self.down, "the story is between a crash and a restart"
        decision = self.decide(command)
        if isinstance(decision, ActionQueueError):
            assert not self.check(settled=not self.holding)
            return decision
        for event in decision.events:
            self.machine.apply(event)
        self._record(decision.events)
        self.settle()
        return decision.reply

    def settle(self) -> None:
        """Start what may start and let fall due what is due, as a turn of the writer does."""
        more = not self.holding
        while more:
            events: list[Event] = []
            self.machine.start_ready(self.now, self.next_id, events)
            more = self.machine.fire_due(self.now, self.next_id, events)
            self._record(events)
        if not self.holding:
            self._agree()

    def advance(self, us: int) -> None:
        """Move the clock, stopping at every wake-up the core asks for."""
        until = self.now + us
        while not (self.down or self.holding) and (at := self.state.places.next_timer()) is not None and at <= until:
            assert at > self.now or self.state.places.timers.suspended, "what is due has been dealt with"
            self.now = max(at, self.now)
            self.settle()
        self.now = until
        if not self.down:
            self.settle()

    def jump(self, us: int) -> None:
        """Move the clock in one leap, as if the process had slept."""
        self.now += us
        if not self.down:
            self.settle()

    def project(self) -> None:
        """Write what was touched; what ended leaves memory."""
        self.tables.take(self.state)

    def crash(self) -> None:
        """Everything in memory is gone."""
        self.down = True

    def restart(self) -> None:
        """Open again, from rows and the tail of the log; a crash before makes what was running lost."""
        if not self.down:
            assert not self.state.counts[RUNNING], "a graceful end drains first"
            self.perform(Close())
        before = fingerprint(self.state)
        self.state.dispose()
        self.machine = self._made(self.rebuilt())
        assert fingerprint(self.state) == before, "rows and the tail of the log give the state before"
        self.down = False
        self._open()

    def _made(self, state: State) -> Machine:
        machine = Machine(state, live_runs_max=self.live_runs_max)
        machine.signals_max = self.signals_max
        return machine

    def rebuilt(self) -> State:
        """The state as an opening loads it."""
        machine = Machine(self.tables.load())
        machine.replay(self.log[machine.state.last_seq :])
        assert not check(machine.state)
        return machine.state

    def check(self, *, settled: bool) -> list[str]:
        """What is wrong with the state."""
        return check(self.state, settled=settled, now=self.now, lowered=self.lowered)

    def _open(self) -> None:
        self.epoch += 1
        places = self.state.places
        for name, slots in self.executors.items():
            places.set_executor(name, slots)
        for name, capacity in self.queues.items():
            places.set_queue(name, capacity)
        self._record(self.machine.open(self.now, self.epoch, 1, "host", "0", 0.5))
        self.lowered.clear()
        places.set_aging(self.aging_us)
        for name, (executor, terms, concurrency) in self.handlers.items():
            places.register(name, executor, terms, concurrency)
        self.settle()

    def _attach(self, command: Command) -> None:
        """The facts that the engine would look up, which have left memory."""
        state = self.state
        match command:
            case Submit() if any(item.key is not None or item.task_id_given for item in command.items):
                self.project()
                for row in sorted(self.tables.tasks.values(), key=lambda row: row[5]):
                    if row[0] not in state.tasks:
                        known = self.tables.known_task(row)
                        command.known_tasks[row[0]] = known
                        if row[14] is not None:
                            command.known_keys[row[14]] = known
            case Submit() if any(item.depends is not None for item in command.items):
                self.project()
                on = [each for item in command.items if item.depends is not None for each in item.depends.on]
                command.known_tasks = self.tables.upstreams(on)
            case RetryRun() if command.run_id not in state.runs:
                self.project()
                command.known = self.tables.known_run(command.run_id)
                if command.known is not None and command.with_dependents:
                    command.known_dependents = self.tables.dependents_of(command.known.image.task_id)
            case AddDependencies():
                self.project()
                command.known = command.task_id in self.tables.tasks
                command.known_tasks = self.tables.upstreams(command.on)
            case CancelRun() | Reschedule() | Reprioritize() if command.run_id not in state.runs:
                self.project()
                row_of = self.tables.runs.get(command.run_id)
                command.known_state = None if row_of is None else row_of[4]
            case CancelTask() if command.task_id not in state.tasks:
                self.project()
                command.known = command.task_id in self.tables.tasks
            case Pause() | Resume() if command.task_id is not None and command.task_id not in state.tasks:
                self.project()
                command.known = command.task_id in self.tables.tasks
            case _:
                pass

    def _record(self, events: Sequence[Event]) -> None:
        for event in events:
            self.log.append(event)
            if type(event) is AttemptStarted:
                self.started.append(event.run_id)
            elif isinstance(event, RunDerived | RunRequested) or (
                isinstance(event, RunAdded) and (event.task_id, event.run_id) not in self.names.values()
            ):
                self.names[f"n{len(self.names)}"] = (event.task_id, event.run_id)
            if not self.checked:
                continue
            if type(event) is AttemptStarted:
                self._witness_start(event)
            self.shadow.apply(event)
            problems = check(self.shadow.state)
            assert not problems, (event, problems)
        for run_id, run in (*self.state.runs.items(), *self.state.dirty_runs.items()):
            self.seen[run_id] = run
        self._record_rows(events)

    def _record_rows(self, events: Iterable[Event]) -> None:
        """The rows of ``steps``, as the engine writes them with the events."""
        state, steps = self.state, self.tables.steps
        for token in state.forgotten:
            steps.pop(token, None)
        for token, name, kind, _, body in state.records:
            steps.setdefault(token, {})[name] = (kind, body)
        state.forgotten.clear()
        state.records.clear()
        for event in events:
            if isinstance(event, StepRecorded):
                steps.setdefault(self.seen[event.run_id].token, {})[event.name] = (event.kind, b"1")
        for run in state.runs.values():
            assert state.recorded.get(run.token, 0) == len(steps.get(run.token, ())), "records are counted"

    def _witness_start(self, event: AttemptStarted) -> None:
        """Before a start: there is room at each of its keys, unless it holds them, and a token of each of its rates."""
        run = self.shadow.state.runs[event.run_id]
        places, options = self.shadow.state.places, run.task.extra.options
        for need in options.limits:
            holders = places.limits.keys[need.key].running
            assert event.run_id in holders or len(holders) < need.capacity, f"{need} is held by {len(holders)} already"
        for rate in options.rates:
            ahead = places.limits.meters[rate.key].tat - (rate.burst - 1) * rate.interval_us - event.at
            assert ahead <= 0, f"{rate} has no token for another {ahead} us"

    def _agree(self) -> None:
        """What holds after every step."""
        if not self.checked:
            return
        state, places = self.state, self.state.places
        problems = self.check(settled=True)
        assert not problems, problems
        assert fingerprint(state) == fingerprint(self.shadow.state), "replaying the log gives the same state"
        ended = Counter(CODE_OF[run.state] for run in self.seen.values() if run.is_terminal)
        assert state.counts[FIRST_TERMINAL:] == [ended[code] for code in range(FIRST_TERMINAL, len(STATES))]
        assert state.tasks_total == len({run.task_id_bytes for run in self.seen.values()})
        waiting = [run for run in state.runs.values() if run.where is Where.TIMER]
        wakes = [] if places.engine_pause is not None else [run.until for run in waiting]
        if not places.timers.suspended:
            wakes += [
                entry[0]
                for entry in places.timers.deadlines
                if entry[2].where is not Where.NOWHERE
                and not entry[2].attempt_count
                and entry[0] == deadline_of(entry[2])
                and not is_ahead(entry[2])
            ]
        wakes += [each.until for each in places.awaiting.waits.values() if each.until is not None]
        if places.engine_pause is None:
            wakes += [each.next_at for each in places.limits.buckets.values() if each.waiting]
        assert places.next_timer() == min(wakes, default=None), "the next wake-up is the earliest needed"

    # --- told in Python ----------------------------------------------------------------------------------------

    def id(self, name: str) -> bytes:
        """The run called ``name``."""
        return self.names[name][1]

    def run_id(self, name: str) -> RunId:
        """The same, as users see it."""
        return RunId(bytes=self.id(name))

    def task_id(self, name: str) -> bytes:
        """The task of the run called ``name``."""
        return self.names[name][0]

    def run(self, name: str) -> Run:
        """The run called ``name``, as last seen, live or not."""
        return self.state.runs.get(self.id(name)) or self.seen[self.id(name)]

    def attempt(self, name: str) -> Attempt:
        """The open attempt of the run called ``name``."""
        attempt = self.run(name).attempt
        assert attempt is not None, f"{name} is {self.run(name).state}, not running"
        return attempt

    def where(self, name: str) -> Where:
        """The place of the run called ``name``."""
        return self.run(name).where

    def reason(self, name: str) -> Reason | None:
        """What the run called ``name`` waits for."""
        return reason_in(self.state, self.run(name), self.now)

    def item(self, name: str, handler: str = "h", **fields: Any) -> Submission:
        """A task called ``name``, to be submitted."""
        task_id = fields.pop("task_id", None) or self.next_id(self.now)
        run_id = self.next_id(self.now)
        self.names[name] = (task_id, run_id)
        return Submission(task_id, run_id, handler, name.encode(), b"d" * 16, **fields)

    def submit(self, *names: str, **fields: Any) -> Any:
        """Submit tasks called so, in one command."""
        return self.perform(Submit([self.item(name, **fields) for name in names]))

    def report(self, name: str, outcome: Outcome, **fields: Any) -> Finish:
        """What the executor reports of the open attempt of ``name``."""
        attempt = self.attempt(name)
        return Finish(self.id(name), attempt.id, attempt.fence, outcome, **fields)

    def finish(self, name: str, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> Any:
        """The attempt of ``name`` ends so."""
        return self.perform(self.report(name, outcome, **fields))

    def refused(self, command: Command, kind: type[ActionQueueError]) -> Any:
        """The refusal of ``command``, which left no trace."""
        before, last_seq = fingerprint(self.state), len(self.log)
        refusal = self.perform(command)
        assert type(refusal) is kind, refusal
        assert (fingerprint(self.state), len(self.log)) == (before, last_seq), "a refusal changes nothing"
        return refusal

    def set_executor(self, name: str, slots: int) -> None:
        """Give an executor so many slots."""
        if slots < self.executors.get(name, 0):
            self.lowered.add(name)
        self.executors[name] = slots
        self.state.places.set_executor(name, slots)
        self.settle()

    def set_queue(self, name: str, capacity: int | None) -> None:
        """Bound a queue."""
        self.lowered.add(name)
        self.queues[name] = capacity
        self.state.places.set_queue(name, capacity)
        self.settle()

    def register(
        self, name: str, terms: AttemptTerms = TERMS, executor: str = "main", concurrency: int | None = None
    ) -> None:
        """Register a handler."""
        self.handlers[name] = (executor, terms, concurrency)
        bound = self.state.places.bounds.get(name)
        running = sum(run.task.handler == name and run.where is Where.RUNNING for run in self.state.runs.values())
        if concurrency is not None and running > concurrency:
            self.lowered.add(name)
        elif bound is not None:
            self.lowered.discard(name)
        self.state.places.register(name, executor, terms, concurrency)
        self.settle()

    def set_aging(self, us: int) -> None:
        """Let waiting count as priority."""
        self.aging_us = us
        self.state.places.set_aging(us)
        self.settle()

    # --- told as text ------------------------------------------------------------------------------------------

    def play(self, text: str) -> Story:
        """Act a text out, line by line."""
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#")[0].split()
            if words:
                try:
                    self._act(words)
                except (AssertionError, LookupError) as error:
                    error.add_note(f"in line {number} of the story: {line.strip()}")
                    raise
        return self

    def _act(self, words: list[str]) -> None:
        verb, named = words[0], dict(word.split("=", 1) for word in words[1:] if "=" in word)
        plain = [word for word in words[1:] if "=" not in word]
        if verb == "refused":
            self._act_refused(plain[0].rstrip(":"), words[2:])
        elif verb in _ASIDE:
            _ASIDE[verb](self, plain, named)
        else:
            reply = self.perform(_command(self, verb, plain, named))
            assert not isinstance(reply, ActionQueueError), repr(reply)

    def _act_refused(self, kind: str, words: list[str]) -> None:
        named = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        command = _command(self, words[0], [word for word in words[1:] if "=" not in word], named)
        before, last_seq = fingerprint(self.state), len(self.log)
        refusal = self.perform(command)
        assert type(refusal).__name__ == kind, f"refused with {refusal!r}"
        assert (fingerprint(self.state), len(self.log)) == (before, last_seq), "a refusal changes nothing"

    def _expect(self, plain: list[str], named: dict[str, str]) -> None:
        name, state = plain
        run = self.run(name)
        found = {"state": str(run.state)}
        values: dict[str, Any] = {
            "reason": run.reason,
            "attempts": run.attempt_count,
            "failures": run.failure_count,
            "lost": run.lost_count,
            "priority": run.effective_priority,
            "place": run.where.name.lower(),
            "waits": type(self.reason(name)).__name__,
            "error": run.error_kind,
        }
        for key in named:
            found[key] = f"{(run.until - self.now) / SECOND:g}s" if key == "until" else str(values[key])
        assert found == {"state": state} | named

    def _started(self, plain: list[str], _: dict[str, str]) -> None:
        called = {run_id: name for name, (_, run_id) in self.names.items()}
        names, self.started = [called[run_id] for run_id in self.started], []
        assert names == plain


def _backoff(text: str) -> Backoff:
    kind, _, rest = text.partition(":")
    durations = [parse_duration_us(each) for each in rest.split(",")]
    match kind:
        case "fixed":
            return Fixed(durations[0])
        case "list":
            return Delays(tuple(durations))
        case _:
            return Exponential(durations[0], 2.0, durations[1], kind == "jittered")


def _number(value: str | None) -> int | None:
    return None if value is None else int(value)


def _us(value: str | None) -> int | None:
    return None if value is None else parse_duration_us(value)


def _terms(named: dict[str, str]) -> AttemptTerms:
    backoff = _backoff(named["backoff"]) if "backoff" in named else TERMS.backoff
    return AttemptTerms(_us(named.get("timeout")), backoff, named.get("on_lost"), int(named.get("max_lost", 5)))


def _listed(named: dict[str, str], name: str) -> list[str]:
    return named[name].split(",") if name in named else []


def _key_need(text: str) -> KeyNeed:
    key, _, capacity = text.partition(":")
    return KeyNeed(key, int(capacity or 1))


def _rate_need(text: str) -> RateNeed:
    key, rate = text.split(":")
    count, per, *burst = rate.split("/")
    return RateNeed(key, int(count), parse_duration_us(per), int(burst[0]) if burst else int(count))


def _options(named: dict[str, str]) -> TaskOptions | None:
    backoff = _backoff(named["backoff"]) if "backoff" in named else None
    tags = tuple(named["tags"].split(",")) if "tags" in named else ()
    limits = tuple(_key_need(each) for each in _listed(named, "limits"))
    rates = tuple(_rate_need(each) for each in _listed(named, "rates"))
    hold = tuple(_listed(named, "hold"))
    options = TaskOptions(_us(named.get("timeout")), backoff, tags, limits=limits, rates=rates, hold=hold)
    return None if options == TaskOptions() else options


def _submission(story: Story, names: list[str], named: dict[str, str]) -> Submit:
    at = None if "at" not in named else story.now + (_us(named["at"].removeprefix("+")) or 0)
    fields: dict[str, Any] = {
        "queue": named.get("queue"),
        "priority": _number(named.get("priority")),
        "max_attempts": _number(named.get("attempts")),
        "at_us": at,
        "delay_us": _us(named.get("delay")),
        "options": _options(named),
        "key": named.get("key"),
        "key_lifetime_us": _us(named.get("lifetime")),
        "content": named["content"].encode() if "content" in named else None,
        "expires_us": _us(named.get("expires")),
    }
    if "after" in named:
        on = tuple(story.task_id(each) for each in named["after"].split(","))
        fields["depends"] = Depends(on, named.get("on_failure", "cancel"), "partial" in named)
    same = named.get("id")
    if same is not None:
        fields |= {"task_id": story.task_id(same), "task_id_given": True}
    return Submit([story.item(name, named.get("handler", "h"), **fields) for name in names], by=named.get("by", ""))


def _wait(story: Story, name: str, named: dict[str, str]) -> WaitAsked:
    if "for" in named:
        return WaitAsked(SLEEP, named.get("name", f"sleep#{story.now}"), _us(named["for"]))
    known = story.tables.steps.get(story.run(name).token, {})
    records = [wait_record(body) for kind, body in known.values() if kind == SIGNAL]
    address = named["signal"], named.get("key")
    served = max([each.order for each in records if (each.signal, each.key) == address], default=0)
    default = f"receive#{len(known) + 1}"
    return WaitAsked(SIGNAL, named.get("name", default), _us(named.get("timeout")), *address, served)


def _finish(story: Story, plain: list[str], named: dict[str, str]) -> Finish:
    name, outcome = plain
    if outcome in ("awaits", "sleeps"):
        return story.report(name, Outcome.AWAITING, wait=_wait(story, name, named))
    reason = named.get("reason", "")
    fields: dict[str, Any] = {"delay_us": _us(named.get("after")), "draw": float(named.get("draw", 0.5))}
    match outcome:
        case "completed":
            return story.report(name, Outcome.COMPLETED, body=b"1", output=Output(b"o" * 16, 1))
        case "terminal":
            return story.report(name, Outcome.FAILED, terminal=True, error=ErrorInfo("E", ""), reason=reason, **fields)
        case "misfit":
            return story.report(name, Outcome.INTERRUPTED, reason=MISFIT)
        case _:
            error = ErrorInfo("E", "") if outcome == "failed" else None
            return story.report(name, Outcome[outcome.upper()], error=error, reason=reason, **fields)


def _command(story: Story, verb: str, plain: list[str], named: dict[str, str]) -> Command:  # noqa: C901 - a case each
    how, by = named.get("how", "cancel"), named.get("by", "")
    match verb:
        case "submit":
            return _submission(story, plain, named)
        case "finish":
            return _finish(story, plain, named)
        case "cancel":
            return CancelRun(story.id(plain[0]), how, by)
        case "cancel_task":
            return CancelTask(story.task_id(plain[0]), how, by)
        case "retry":
            story.names.setdefault(plain[2], (story.task_id(plain[0]), story.next_id(story.now)))
            return RetryRun(
                story.id(plain[0]),
                story.id(plain[2]),
                by,
                with_dependents="dependents" in named,
                fresh="fresh" in plain,
            )
        case "signal":
            id = named.get("id", f"s{story.now}-{len(story.log)}")
            return SendSignal(id, plain[0], named.get("key"), named.get("payload", "null").encode(), by)
        case "step":
            attempt = story.attempt(plain[0])
            is_new = plain[1] not in story.tables.steps.get(story.run(plain[0]).token, {})
            return RecordStep(story.id(plain[0]), attempt.id, attempt.fence, plain[1], STEP, b"1", b"d" * 16, is_new)
        case "depend":
            return AddDependencies(story.task_id(plain[0]), tuple(story.task_id(each) for each in plain[1:]), by)
        case "reschedule":
            return Reschedule(story.id(plain[0]), story.now + parse_duration_us(plain[1]))
        case "reprioritize":
            return Reprioritize(story.id(plain[0]), int(plain[1]))
        case "progress":
            attempt = story.attempt(plain[0])
            return Progress(story.id(plain[0]), attempt.id, attempt.fence, int(plain[1]))
        case "pause":
            return Pause(plain[0], _scope_name(story, plain), by)
        case "resume":
            return Resume(plain[0], _scope_name(story, plain), by)
        case _:
            raise LookupError(f"no line of a story begins with {verb!r}")


def _scope_name(story: Story, plain: list[str]) -> str:
    return story.task_id(plain[1]).hex() if plain[0] == "task" else " ".join(plain[1:])


def _register(story: Story, plain: list[str], named: dict[str, str]) -> None:
    story.register(plain[0], _terms(named), named.get("executor", "main"), _number(named.get("concurrency")))


_ASIDE = {
    "executor": lambda story, plain, _: story.set_executor(plain[0], int(plain[1])),
    "queue": lambda story, plain, _: story.set_queue(plain[0], None if plain[1] == "none" else int(plain[1])),
    "handler": _register,
    "forget": lambda story, plain, _: story.handlers.pop(plain[0]),
    "aging": lambda story, plain, _: story.set_aging(parse_duration_us(plain[0])),
    "tick": lambda story, plain, _: story.advance(parse_duration_us(plain[0])),
    "jump": lambda story, plain, _: story.jump(parse_duration_us(plain[0])),
    "project": lambda story, *_: story.project(),
    "crash": lambda story, *_: story.crash(),
    "restart": lambda story, *_: story.restart(),
    "expect": Story._expect,
    "started": Story._started,
}
"""Lines that are not a command."""


def play(text: str, **options: Any) -> Story:
    """Act a text out with a new story."""
    return Story(**options).play(text)


def holders(slots: Slots, story: Story) -> set[str]:
    """The names of the runs that hold slots."""
    return {name for name, (_, run_id) in story.names.items() if run_id in slots.running}
