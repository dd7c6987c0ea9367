"""The writer: the one place that decides. It is stepped, does no I/O and never sleeps, so the simulator drives it too.

A step drains the mailbox: each command is decided against the state and, if accepted, applied at once; then whatever may
start is started, and what fell due is promoted or started; all into one ``Turn``. The engine commits the turn and then,
and only then, lets its effects out: replies, starts, stops, results. While a commit is under way the next turn fills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from actionqueue.core import attempts, control, submission
from actionqueue.core.attempts import AttemptFinished, AttemptStarted, Finish, Progress
from actionqueue.core.control import CancelRequested, TaskCanceled
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.epochs import Declare, Prune
from actionqueue.core.equipment import Equipment, equipment_of
from actionqueue.core.errors import ActionQueueError, StoreError, StoreUnavailable, UnknownRun, UnknownTask
from actionqueue.core.lanes import Slots
from actionqueue.core.machine import Command, Machine
from actionqueue.core.retry import AttemptTerms
from actionqueue.core.rows import project
from actionqueue.core.schedules import OccurrencesSkipped, PutSchedule, ScheduleRetired
from actionqueue.core.spec import Submission
from actionqueue.core.state import FIRST_TERMINAL, NO_EXTRA, RETRY_WAIT, RUNNING, Outcome, Run
from actionqueue.core.steps import RecordStep
from actionqueue.core.submission import Submit, TaskSubmitted
from actionqueue.engine.stopping import Stopping
from actionqueue.engine.tickets import CallTicket, Ticket
from actionqueue.engine.work import Ended, Joining, Post, Turn
from actionqueue.executors.port import Asked, Assignment, Called, Report, Runnable
from actionqueue.store.codec import encode_equipment, encode_slots, summary_of

POSTS_PER_STEP_MAX = 256
PROJECTION_DELAY_US = 100_000
PROJECTION_ROWS_MAX = 2_000
LOOK_UP_AGAIN_US = 1_000_000
"""How long a command from the inbox rests after its look-up failed; each one costs a commit."""
LOOK_UPS_MAX = 5
"""How often what a command from the inbox speaks of is looked for where the store is damaged; then it is refused."""
PAYLOAD_CACHE_BYTES = 32 * 1024 * 1024
"""Arguments of waiting tasks kept in memory; those beyond it are read from the store when they start."""


class Writer:
    """Decides, applies, dispatches. One thread at a time may call it, except ``post`` and friends."""

    def __init__(self, machine: Machine, next_id: Callable[[int], bytes], *, stop_grace_us: int) -> None:
        self.machine = machine
        self.mailbox: deque[Post | Report] = deque()
        """Commands, and what executors report (as it is: mostly there is nobody to answer)."""
        self.runnables: Mapping[str, tuple[Runnable, str, AttemptTerms]] = {}
        self.tell_calls: frozenset[str] = frozenset()
        """Executors that say when they call a handler; elsewhere the clock of a timeout starts with the attempt."""
        self.questions: deque[tuple[Callable[[Turn], None]]] = deque()
        self.turn = Turn()
        self.draining = False
        self._equipment = Equipment()
        self.stopping = Stopping(stop_grace_us)
        self._next_id = next_id
        self._payloads: dict[bytes, bytes] = {}
        self._payload_bytes = 0
        self._waiters: dict[bytes, list[Ticket]] = {}
        self._touched_at: int | None = None
        self._projection_asked = False
        self._more_due = False
        self.recent: dict[bytes, Ended] = {}
        """How the latest tasks ended, as far as that is durable; kept by the effects."""
        self._in_hand: Post | None = None
        self._later: deque[tuple[int, Post]] = deque()
        """Commands whose look-up failed, those that wait behind them, and when it is made again; by that instant."""
        self._coming: set[bytes] = set()
        """Tasks and runs of submissions whose facts are being read: what speaks of them is decided after them."""
        self._looking_up = 0
        """Commands whose facts are being read: while there are any, what ended is not forgotten."""

    # --- from any thread ---------------------------------------------------------------------------------------

    def post(self, post: Post) -> None:
        """Put a command into the mailbox."""
        self.mailbox.append(post)

    def ask(self, question: Callable[[Turn], None]) -> None:
        """Have ``question`` called on the writer's thread at its next step."""
        self.questions.append((question,))

    # --- one step ----------------------------------------------------------------------------------------------

    def step(self, now: int) -> None:
        """Do what can be done at ``now``, into ``self.turn``."""
        turn, machine = self.turn, self.machine
        first = len(turn.events)
        mailbox = self.mailbox
        for _ in range(min(len(mailbox), POSTS_PER_STEP_MAX)):
            post = mailbox.popleft()
            if type(post) is Finish:
                self._finish(post, now, turn)
            elif type(post) is Progress:
                self._handle(Post(post), now, turn)
            elif type(post) is Called:
                self._called(post, now)
            elif type(post) is Asked:
                self._handle(Post(post.command, CallTicket(post.settle)), now, turn)
            else:
                self._in_hand = post  # type: ignore[assignment]  # the last of four kinds
                self._handle(post, now, turn)  # type: ignore[arg-type]
                self._in_hand = None
        for _ in range(len(self.questions)):
            self.questions.popleft()[0](turn)
        while self._later and self._later[0][0] <= now:
            self._look_up(self._later.popleft()[1], turn)
        self._stop_due(now, turn)
        if not self.draining:
            events = turn.events
            started_from = len(events)
            machine.start_ready(now, self._next_id, events)
            self._more_due = machine.fire_due(now, self._next_id, events)
            if len(events) > started_from:
                self._note_starts(events, started_from, turn)
        if len(turn.events) > first:
            self._take_records(turn)
            if self._touched_at is None:
                self._touched_at = now

    def _take_records(self, turn: Turn) -> None:
        """The rows of ``steps`` that follow from the events of this turn are written with them."""
        state = self.machine.state
        if state.records:
            turn.steps += state.records
            state.records.clear()
        if state.forgotten:
            turn.dropped_steps += state.forgotten
            state.forgotten.clear()

    def _handle(self, post: Post, now: int, turn: Turn) -> None:
        command = post.command
        kind = type(command)
        if post.as_of is None and self._needs_facts(command):
            if kind is Submit:
                self._coming.update(_ids_of(command))  # type: ignore[arg-type]
            turn.lookups.append(post)
            self._looking_up += 1
            return
        if post.as_of is not None:
            self._looking_up -= 1
            if post.failure is not None and post.command_id is not None and _may_pass(post):
                self._later.append((now + LOOK_UP_AGAIN_US, post))  # an answer would be recorded, and this is none
                return
            if post.failure is None and self._is_outdated(post):
                self._look_up(post, turn)
                return
            if kind is Submit:
                self._coming.difference_update(_ids_of(command))  # type: ignore[arg-type]
            if post.failure is not None:
                self._answer(post, post.failure, turn)
                return
        decision = self.machine.decide(command, now)
        if isinstance(decision, ActionQueueError):
            may_exist = post.as_of is None or self._is_coming(command)
            if may_exist and isinstance(decision, UnknownRun | UnknownTask):
                self._queue_up(post, turn)
                return
            self._answer(post, decision, turn)
            return
        self._accept(post, decision.events, now, turn)
        self._answer(post, decision.reply, turn)

    def _answer(self, post: Post, reply: Any, turn: Turn) -> None:
        if post.ticket is not None:
            turn.settled.append((post.ticket, reply))
        if post.command_id is not None:
            if isinstance(reply, ActionQueueError):
                reply.facts["refused"] = summary_of(post.command)
            turn.replies.append((post.command_id, reply))

    def _look_up(self, post: Post, turn: Turn) -> None:
        """The command speaks of something that has left memory: its facts are read once all this is written."""
        self._projection_asked = True
        self._looking_up += 1
        turn.lookups.append(post)

    def _is_coming(self, command: Command) -> bool:
        """Whether it speaks of what a command before it may be about to make."""
        return getattr(command, "task_id", None) in self._coming or getattr(command, "run_id", None) in self._coming

    def _queue_up(self, post: Post, turn: Turn) -> None:
        """Look up what it speaks of, behind the look-ups of the commands before it."""
        if self._later and self._is_coming(post.command):
            self._later.append((self._later[-1][0], post))
        else:
            self._look_up(post, turn)

    def _is_outdated(self, post: Post) -> bool:
        ended_since, as_of = self.machine.state.ended_since, post.as_of
        assert as_of is not None
        return any(ended_since(name, as_of) for name in _named_in(post.command))

    def _needs_facts(self, command: Command) -> bool:
        """Whether it speaks of what may have left memory, and says something else where it has."""
        state = self.machine.state
        if isinstance(command, Submit):
            return _may_exist(command) or submission.names_unknown(state, command)
        return isinstance(command, AddDependencies) and any(each not in state.tasks for each in command.on)

    def _accept(self, post: Post, events: list[Any], now: int, turn: Turn) -> None:
        machine = self.machine
        for event in events:
            if type(event) is AttemptFinished:
                self._apply_finish(event, None, now, turn)
                continue
            machine.apply(event)
            turn.events.append(event)
            if type(event) is CancelRequested:
                self._stop_run(machine.state.runs[event.run_id], event.how, now, turn)
            elif type(event) is TaskCanceled:
                self._stop_task(event, now, turn)
            elif type(event) is control.RunCanceled:
                self._after_end(event.run_id, turn)
            elif type(event) is ScheduleRetired:
                self._retired(event, turn)
            elif type(event) is submission.RunAdded:
                self.recent.pop(event.task_id, None)
        command = post.command
        if isinstance(command, Submit | PutSchedule | Declare):
            self._keep_payloads(command.items, events, turn)
        elif type(command) is RecordStep:
            token = machine.state.runs[command.run_id].token
            turn.steps.append((token, command.name, command.kind, now, command.body))
        elif type(command) is Prune:
            turn.pruned_tasks += command.task_ids
            recent, seq = machine.state.recent, machine.state.last_seq
            recent.update(dict.fromkeys(command.task_ids, seq))
            for task_id in command.task_ids:
                self.recent.pop(task_id, None)

    def _retired(self, event: ScheduleRetired, turn: Turn) -> None:
        task = self.machine.state.dirty_tasks.get(event.task_id)
        if task is None or task.finished_at is None:
            return
        self._ended_before(task.id, turn)

    def _ended_before(self, task_id: bytes, turn: Turn) -> None:
        """The task is over by what ended earlier: its newest run is read from the store for whoever waits for it."""
        self._drop_payload(task_id)
        waiting = self._waiters.pop(task_id, ())
        if waiting:
            self._projection_asked = True
            turn.awaiting += [(task_id, ticket) for ticket in waiting]

    def _keep_payloads(self, items: list[Submission], events: list[Any], turn: Turn) -> None:
        new = {event.task_id for event in events if type(event) is TaskSubmitted}
        created = items if len(new) == len(items) else [item for item in items if item.task_id in new]
        blobs, cache = turn.blobs, self._payloads
        for item in created:
            body = item.body
            blobs.append((item.task_id, body))
            if self._payload_bytes < PAYLOAD_CACHE_BYTES:
                cache[item.task_id] = body
                self._payload_bytes += len(body)

    # --- attempts ----------------------------------------------------------------------------------------------

    def _note_starts(self, events: list[Any], first: int, turn: Turn) -> None:
        state = self.machine.state
        runs, starts, payloads, stopping = state.runs, turn.starts, self._payloads, self.stopping
        recorded = state.recorded
        runnables, tell_calls = self.runnables, self.tell_calls
        for n in range(first, len(events)):
            event = events[n]
            if type(event) is not AttemptStarted:
                self._note_other(event, turn)
                continue
            run = runs[event.run_id]
            task, attempt = run.task, run.attempt
            assert attempt is not None
            lane = task.lane
            assert lane.executor is not None
            timeout_us = attempt.terms.timeout_us
            payload = payloads.get(task.id)
            assignment = Assignment(
                event.run_id, event.attempt_id, attempt.fence, task.id, runnables[lane.handler][0], payload or b"",
                attempt.number, run.failure_count, task.max_attempts, run.token, run.scheduled_at, event.at, timeout_us,
                None if task.extra is NO_EXTRA else task.extra.options.metadata, task.payload_digest,
            )  # fmt: skip
            if payload is None:
                turn.unread.append(assignment)
            if recorded and run.token in recorded:
                turn.unrecorded.append(assignment)
            depends = task.extra.depends
            if depends is not None and depends.outputs:
                lately = {each: state.results[each] for each in depends.on if each in state.results}
                turn.joining.append(Joining(assignment, depends, lately))
            name = lane.executor.name
            if name in starts:
                starts[name].append(assignment)
            else:
                starts[name] = [assignment]
            if timeout_us is not None and name not in tell_calls:
                stopping.watch(run, attempt, event.at + timeout_us)

    def _note_other(self, event: Any, turn: Turn) -> None:
        """What happened on the way to starting: deadlines that passed, and what schedules do about their runs."""
        kind = type(event)
        if kind is control.RunCanceled:
            self._after_end(event.run_id, turn)
        elif kind is CancelRequested:
            self._stop_run(self.machine.state.runs[event.run_id], event.how, event.at, turn)
        elif kind is OccurrencesSkipped and event.ends:
            self._after_end(event.run_id, turn)
        elif kind is ScheduleRetired:
            self._retired(event, turn)

    def _called(self, report: Called, now: int) -> None:
        run = self.machine.state.runs.get(report.run_id)
        attempt = None if run is None else run.attempt
        if run is None or attempt is None or (attempt.id, attempt.fence) != (report.attempt_id, report.fence):
            return
        if attempt.terms.timeout_us is not None:
            self.stopping.watch(run, attempt, now + attempt.terms.timeout_us)

    def _finish(self, report: Finish, now: int, turn: Turn) -> None:
        event = attempts.finish_event(self.machine.state, report, now)
        if event is None:
            return
        if report.body is not None and event.output is not None:
            turn.blobs.append((report.run_id, report.body))
        self._apply_finish(event, report.body, now, turn)

    def _apply_finish(self, event: AttemptFinished, body: bytes | None, now: int, turn: Turn) -> None:
        state = self.machine.state
        run = state.runs[event.run_id]
        if event.abandoned:
            executor = self._executor_of(run)
            if executor is not None:
                turn.abandoned.append((executor.name, event.attempt_id))
        if self.stopping:
            self.stopping.ended(event.attempt_id)
        state.last_seq += 1
        state.last_at = now
        attempts.apply_finished(state, event)
        turn.events.append(event)
        if event.outcome is not Outcome.COMPLETED:
            turn.unfinished.append(event)
        if event.to >= FIRST_TERMINAL:
            self._ended(run, body, event, turn)

    def _ended(self, run: Run, body: bytes | None, event: AttemptFinished | None, turn: Turn) -> None:
        task = run.task
        if task.finished_at is None:
            return
        self._drop_payload(task.id)
        ended = Ended(
            run.id_bytes,
            event.to if event is not None else 9,
            run.reason,
            body,
            None if event is None else event.error,
        )
        turn.ended.append((task.id, ended))
        if self._waiters:
            for ticket in self._waiters.pop(task.id, ()):
                turn.settled.append((ticket, ended))

    def _drop_payload(self, task_id: bytes) -> None:
        payload = self._payloads.pop(task_id, None)
        if payload is not None:
            self._payload_bytes -= len(payload)

    def _after_end(self, run_id: bytes, turn: Turn) -> None:
        run = self.machine.state.dirty_runs[run_id]
        self._ended(run, None, None, turn)

    # --- stopping ----------------------------------------------------------------------------------------------

    def _stop_run(self, run: Run, how: str, now: int, turn: Turn) -> None:
        attempt, executor = run.attempt, self._executor_of(run)
        if attempt is not None and executor is not None:
            self.stopping.begin(run, attempt, "canceled", now)
            turn.stops.append((executor.name, attempt.id, "canceled", how == "kill"))

    def _stop_task(self, event: TaskCanceled, now: int, turn: Turn) -> None:
        task = self.machine.state.tasks.get(event.task_id)
        if task is None:
            self._ended_before(event.task_id, turn)
            return
        for run in task.live_runs():
            self._stop_run(run, event.how, now, turn)

    def _stop_due(self, now: int, turn: Turn) -> None:
        """Attempts past their timeout are stopped; those past their grace are given up."""
        for due in self.stopping.due(now):
            run, executor = due.run, self._executor_of(due.run)
            if executor is None:
                continue
            if due.outcome is None:
                self.stopping.begin(run, due.attempt, "timed_out", now)
                turn.stops.append((executor.name, due.attempt.id, "timed_out", False))
                continue
            report = Finish(
                run.id_bytes, due.attempt.id, due.attempt.fence, due.outcome, reason=due.reason, abandoned=True
            )
            self._finish(report, now, turn)

    def _executor_of(self, run: Run) -> Slots | None:
        """The executor that runs it; its handler may be registered with another one by now."""
        run_id = run.id_bytes
        for slots in self.machine.state.places.executors.values():
            if run_id in slots.running:
                return slots
        return None

    def stop_all(self, reason: str, now: int, *, force: bool) -> None:
        """Ask everything that runs to stop (for a drain that ran out)."""
        for executor in self.machine.state.places.executors.values():
            for run in executor.running.values():
                if run.attempt is not None:
                    self.turn.stops.append((executor.name, run.attempt.id, reason, force))

    def give_up_all(self, now: int) -> int:
        """What still runs is lost: its code could not be confirmed stopped. Returns how many."""
        lost = 0
        for executor in self.machine.state.places.executors.values():
            for run in list(executor.running.values()):
                if run.attempt is not None:
                    attempt = run.attempt
                    report = Finish(run.id_bytes, attempt.id, attempt.fence, Outcome.LOST, abandoned=True)
                    self._finish(report, now, self.turn)
                    lost += 1
        return lost

    # --- questions ---------------------------------------------------------------------------------------------

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """Settle ``ticket`` with an ``Ended`` when the task's last live run has ended (from any thread)."""

        def question(turn: Turn) -> None:
            if task_id in self.machine.state.tasks:
                self._waiters.setdefault(task_id, []).append(ticket)
            elif (ended := self.recent.get(task_id)) is not None:
                ticket.settle(ended)
            else:
                self._projection_asked = True
                turn.awaiting.append((task_id, ticket))

        self.ask(question)

    def forget_waiter(self, task_id: bytes, ticket: Ticket) -> None:
        """The caller gave up waiting (from any thread)."""

        def question(turn: Turn) -> None:
            waiting = self._waiters.get(task_id)
            if waiting is not None and ticket in waiting:
                waiting.remove(ticket)
                if not waiting:
                    del self._waiters[task_id]

        self.ask(question)

    def take_waiters(self) -> list[Ticket]:
        """Everyone who waits for a result, who will not be told by the writer any more."""
        tickets = [ticket for waiting in self._waiters.values() for ticket in waiting]
        self._waiters.clear()
        tickets += [post.ticket for _, post in self._later if post.ticket is not None]
        self._later.clear()
        if self._in_hand is not None and self._in_hand.ticket is not None:  # deciding it failed
            tickets.append(self._in_hand.ticket)
            self._in_hand = None
        return tickets

    def count_lookup(self, change: int) -> None:
        """One look-up more, or less, is in flight (on the writer's thread)."""
        self._looking_up += change

    def ask_projection(self) -> None:
        """Have the next turn project everything (on the writer's thread)."""
        self._projection_asked = True

    def is_idle(self) -> bool:
        """Nothing is dispatchable, running or backing off; blocked, paused and future runs do not count."""
        state = self.machine.state
        places = state.places
        if self.mailbox or self._looking_up or self._later or state.counts[RUNNING] or self._more_due:
            return False
        backing_off = state.counts[RETRY_WAIT]
        if backing_off and places.engine_pause is None:
            backing_off -= sum(1 for run in places.held_runs() if run.state.value == "retry_wait")
            return backing_off == 0
        return True

    # --- handing over ------------------------------------------------------------------------------------------

    def next_wake(self, *, committing: bool) -> int | None:
        """The instant at which there will be something to do without a new command (or the end of a commit)."""
        candidates = []
        if not self.draining:
            timer = self.machine.state.places.next_timer()
            if timer is not None:
                candidates.append(timer)
        if self._later:
            candidates.append(self._later[0][0])
        stop = self.stopping.next_due()
        if stop is not None:
            candidates.append(stop)
        if self._touched_at is not None and not committing:
            candidates.append(self._touched_at + PROJECTION_DELAY_US)
        return min(candidates) if candidates else None

    def has_work(self) -> bool:
        """Whether a step would do something right away."""
        return bool(self.mailbox or self.questions or (self._more_due and not self.draining))

    def take_turn(self, now: int) -> Turn | None:
        """The turn so far, to be committed; None when there is nothing in it. Projects when that is due."""
        turn = self.turn
        for task in self.machine.state.fallen:
            self._ended_before(task.id, turn)
        self.machine.state.fallen.clear()
        if self._projection_due(now):
            turn.projection = project(self.machine.state)
            turn.projection.facts["slots"] = self._slots()
            self._note_equipment(turn.projection.facts)
            self.machine.state.rotate_recent(keep=self._looking_up > 0)
            self._touched_at = None
            self._projection_asked = False
        if turn.is_empty():
            return None
        self.turn = Turn()
        return turn

    def _note_equipment(self, facts: dict[str, bytes]) -> None:
        """What this process runs things with, where it has changed: for questions that other processes answer."""
        equipment = equipment_of(self.machine.state.places)
        if equipment != self._equipment:
            self._equipment = equipment
            facts["equipment"] = encode_equipment(equipment)

    def _slots(self) -> bytes:
        """The slots of executors and bounded queues, and how many are taken: a fact of this process, for `stats`."""
        places = self.machine.state.places
        slots = [*places.executors.values(), *places.queues.values()]
        return encode_slots([(s.kind, s.name, len(s.running), s.capacity) for s in slots if s.capacity is not None])

    def _projection_due(self, now: int) -> bool:
        if self._projection_asked:
            return True
        if self._touched_at is None:
            return False
        state = self.machine.state
        return (
            now - self._touched_at >= PROJECTION_DELAY_US
            or len(state.dirty_runs) >= PROJECTION_ROWS_MAX
            or (not self.mailbox and not state.counts[RUNNING] and not self.turn.starts)
        )


def _ids_of(command: Submit) -> list[bytes]:
    return [id for item in command.items for id in (item.task_id, item.run_id)]


def _may_pass(post: Post) -> bool:
    """Whether a failed look-up is worth another try: while the store is unavailable always, for other troubles of it
    a few times."""
    if isinstance(post.failure, StoreUnavailable):
        return True
    post.failures += 1
    return isinstance(post.failure, StoreError) and post.failures < LOOK_UPS_MAX


def _may_exist(command: Submit) -> bool:
    return any(item.key is not None or item.task_id_given for item in command.items)


def _named_in(command: Command) -> Iterator[bytes | str]:
    """The tasks and idempotency keys of which facts were looked up for it, or would have been."""
    match command:
        case Submit():
            yield from (each.task_id for each in (*command.known_keys.values(), *command.known_tasks.values()))
            for item in command.items:
                if item.key is not None:
                    yield item.key
                if item.task_id_given:
                    yield item.task_id
                if item.depends is not None:
                    yield from item.depends.on
        case submission.RetryRun(known=submission.KnownRun() as known):
            for each in (known, *command.known_dependents):
                yield each.image.task_id
                yield from each.outlooks
        case AddDependencies():
            yield from command.on
        case _:
            return
