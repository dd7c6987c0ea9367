"""A simulated world: engines that come and go on one disk, callers, handlers, faults and time, all drawn from one seed.

The engine is the real one, stepped (``stepped``). What the world knows of what should be true it knows apart from it:
the ``ledger`` reads what became durable, the ``witness`` what callers were told and handlers saw, and a second machine
replays the log beside. Whatever does not fit is a problem, and a story with a problem is a defect (of the engine, or of
the world). Must not know: which step comes next (``steps``), what a step does (``actions``).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from actionqueue.core import epochs
from actionqueue.core.attempts import AttemptFinished, Finish
from actionqueue.core.check import check, fingerprint
from actionqueue.core.errors import ActionQueueError, NotRunning, StoreHeld
from actionqueue.core.ids import IdSource
from actionqueue.core.machine import Machine
from actionqueue.core.state import CODE_OF, STATES, Declaration, State
from actionqueue.engine.housekeeping import Housekeeping
from actionqueue.engine.work import Post, Turn
from actionqueue.executors.port import Asked as AskedByHandler
from actionqueue.executors.port import Assignment, Report
from actionqueue.store.codec import decode_reply
from actionqueue.testing import callers
from actionqueue.testing.behaviour import (
    ALWAYS_THERE,
    HANDLERS,
    QUEUES,
    SECOND_US,
    SLOTS,
    DrawnHandler,
    Plan,
    plan_of,
    script_of,
)
from actionqueue.testing.clock import VirtualTime
from actionqueue.testing.faults import Died, Disk, InboxRows
from actionqueue.testing.hands import DrawnExecutor
from actionqueue.testing.ledger import Ledger
from actionqueue.testing.stepped import Stepper
from actionqueue.testing.witness import Asked, Witness

LIVE_RUNS_MAX = 45
STOP_GRACE_US = 4 * SECOND_US
SIGNALS_MAX, SIGNAL_AGE_US = 8, 120 * SECOND_US
RETENTION_US = 300 * SECOND_US
HOPS_MAX = 25
"""Wakes that one passing of time stops at; the rest of it passes while nobody looks."""
RUNS_APART = 1_009
"""What the runs of a task do is drawn as if they were of tasks so far apart."""
DAY_US = 86_400 * SECOND_US


class World:
    """See the module's head. ``problems`` is what does not hold; ``notes`` says what the present step did."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.coverage: Counter[str] = Counter()
        self.notes: list[str] = []
        self.commands = 0
        self.problems: list[str] = []
        self.time = VirtualTime()
        self.disk = Disk()
        self.inbox = InboxRows()
        self.ids = IdSource(Random(seed + 1).randbytes)
        self.ledger = Ledger(QUEUES, {each.name: each.executor for each in HANDLERS if each.name in ALWAYS_THERE})
        self.witness = Witness(self.ledger, self.refusal)
        self.stepper: Stepper | None = None
        self.old: Stepper | None = None
        """An engine that was taken over and does not know."""
        self.is_late_there = False
        """Whether the handler that comes late has come."""
        self._chance = Random(seed + 2)
        self._machine = Machine()
        self._house: Housekeeping | None = None
        self._chosen: tuple[Stepper, int, list[Any]] | None = None
        self._fenced_for = 0
        self._idle_for = 0
        self._registered = 0
        self._overdue: dict[bytes, int] = {}
        """Attempts seen past their timeout, and the elapsed time then."""
        self._heard: set[bytes] = set()
        self._looked_at: tuple[Stepper, int, int] | None = None
        self.disk.on_fault = self.inbox.on_fault = self._fault

    def let_go(self) -> None:
        """Free what the garbage collector does not see."""
        self._machine.state.dispose()

    # --- one step ---------------------------------------------------------------------------------------------------

    def perform(self, action: Callable[[World, Random], Any], draw: int, moves: str) -> None:
        """One step of a story, and everything that must hold after it."""
        self.notes = []
        try:
            self._attend()
            action(self, Random(draw))
            for move in moves:
                self._move(move)
        except Exception:
            self.problem(traceback.format_exc())
        self.judge()

    def _attend(self) -> None:
        """Engines that are over are left, and where none is one opens after a while."""
        stepper = self.stepper
        if stepper is not None and stepper.engine.fenced is not None:
            self._fenced_for += 1
            if self._fenced_for > 2:
                self.note("the fenced engine is left")
                stepper.close()
                self.drop()
        elif stepper is None:
            self._idle_for += 1
            if self._idle_for > 3:
                self.open()
        if self.old is not None and self.old.engine.fenced is not None:
            self.old.settle()
            self.old.close()
            self.old.drop()
            self.old = None

    def _move(self, move: str) -> None:
        for stepper in (self.old, self.stepper):
            if stepper is None or stepper.is_dead:
                continue
            match move:
                case "0":
                    stepper.tick()
                case "1":
                    stepper.commit()
                case "2":
                    stepper.release()
                case "3":
                    stepper.look_up()
                case "4":
                    stepper.read_inbox()
                case _:
                    stepper.settle()
        self._bury()

    def _bury(self) -> None:
        """A process that died in a commit is gone."""
        if self.disk.has_died:
            self.crash("died in a commit")

    def judge(self) -> None:
        """What must hold after a step."""
        stepper = self.stepper
        if stepper is not None:
            looked_at = (stepper, stepper.state.last_seq, self._registered)
            if looked_at != self._looked_at:  # else nothing has changed that it could find
                self._looked_at = looked_at
                for problem in check(stepper.state):
                    self.problem(f"check: {problem}")
            coverage = self.coverage
            for run in stepper.state.runs.values():
                coverage[f"place {run.where.name}"] += 1
            for executor in stepper.engine.executors.values():
                assert isinstance(executor, DrawnExecutor)
                if executor.most_at_once > executor.slots:
                    self.problem(
                        f"{executor.most_at_once} attempts at once on the {executor.slots} slots of {executor.name}"
                    )
        for found in (self.ledger.problems, self.witness.problems):
            self.problems += found
            found.clear()

    def note(self, text: str) -> None:
        """What happened, for people (and for comparing two runs of one seed)."""
        self.notes.append(text)

    def problem(self, text: str) -> None:
        """Something that does not hold."""
        self.problems.append(text)

    def _fault(self, kind: str) -> None:
        self.coverage[f"fault {kind}"] += 1
        self.note(f"fault: {kind}")

    def count(self, command: Any) -> None:
        """A command is on its way."""
        name = type(command).__name__
        self.commands += 1
        self.coverage[f"command {name}"] += 1
        self.note(name)

    def refusal(self, code: str) -> None:
        """Someone was refused."""
        self.coverage[f"reject {code}"] += 1
        self.note(f"refused: {code}")

    # --- engines ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """An engine takes the store; what it loads must be what was durable."""
        assert self.stepper is None
        executors = [
            DrawnExecutor(
                name,
                slots,
                self.time,
                self._chance,
                plan=self._plan,
                on_start=self._hears(name),
                on_report=self._hears_end,
                on_step=self._hears_step,
            )
            for name, slots in SLOTS.items()
        ]
        stepper = Stepper(
            self.disk, self.time, executors, self.ids.next, draw=self._chance.random, inbox=self.inbox, queues=QUEUES,
            stop_grace_us=STOP_GRACE_US, live_runs_max=LIVE_RUNS_MAX,
        )  # fmt: skip
        stepper.after_commit = self._take_note
        engine = stepper.engine
        engine.on_loaded = self._compare
        for handler in HANDLERS:
            if handler.name in ALWAYS_THERE or self.is_late_there:
                engine.register(handler, handler.executor, handler.terms, handler.concurrency)
        engine.take_store()
        engine.writer.machine.signals_max, engine.writer.machine.signal_age_us = SIGNALS_MAX, SIGNAL_AGE_US
        self.stepper, self._fenced_for, self._idle_for = stepper, 0, 0
        self._house = Housekeeping(engine, RETENTION_US, RETENTION_US)
        engine.on_served = self._house.serve
        engine.post(epochs.Declare([Declaration("crunch", "wide", 1, 2)]))
        self.commands += 1
        self.coverage["command Declare"] += 1
        self.note("an engine opens")

    def _compare(self, state: State) -> None:
        if fingerprint(state) != fingerprint(self._machine.state):
            self.problem("what was loaded is not what was durable")
        counts = self.ledger.counts()
        for state_kind in STATES:
            if state.counts[CODE_OF[state_kind]] != counts[state_kind.value]:
                self.problem(
                    f"{state.counts[CODE_OF[state_kind]]} runs are loaded as {state_kind.value}, "
                    f"{counts[state_kind.value]} are known"
                )
        for problem in check(state):
            self.problem(f"check of what was loaded: {problem}")

    def _hears(self, name: str) -> Callable[[Assignment], None]:
        def on_start(assignment: Assignment) -> None:
            current = self.stepper is not None and any(
                each.name == name and assignment.attempt_id not in each.running()
                for each in self.stepper.engine.executors.values()
            )
            self.note(f"attempt {assignment.attempt_number} of task {_number(assignment)} starts")
            try:
                self.witness.saw(assignment, is_current=current and self.old is None)
            except Exception:
                self.problem(traceback.format_exc())

        return on_start

    def _hears_end(self, report: Report) -> None:
        name = type(report.command if type(report) is AskedByHandler else report).__name__
        self.commands += 1
        self.coverage[f"command {name}"] += 1
        if type(report) is Finish:
            if report.attempt_id in self._heard:
                self.coverage["fault doubled_report"] += 1
            self._heard.add(report.attempt_id)

    def _hears_step(self, assignment: Assignment, name: str) -> None:
        try:
            self.witness.stepped(assignment, name)
        except Exception:
            self.problem(traceback.format_exc())

    def _plan(self, assignment: Assignment) -> Plan:
        runs = self.ledger.tasks[assignment.task_id].runs if assignment.task_id in self.ledger.tasks else []
        nth = runs.index(assignment.run_id) if assignment.run_id in runs else 0
        plan = plan_of(self.seed, _number(assignment) + RUNS_APART * nth, assignment.attempt_number)
        first = runs.index(assignment.token) if assignment.token in runs else 0
        plan.script = script_of(self.seed, _number(assignment) + RUNS_APART * first)
        if plan.script and plan.stop_us % 10 == 9:  # its code has changed since
            plan.script = plan.script[1:]
        return plan

    def _take_note(self) -> None:
        """What was just written is read by the ledger, the second machine and whoever counts."""
        written, self.disk.written = self.disk.written, []
        coverage = self.coverage
        for batch in written:
            ledger = self.ledger
            ledger.read(batch)
            self._machine.replay(ledger.events)
            self._machine.state.dirty_runs.clear()
            self._machine.state.records.clear()
            for event in ledger.events:
                coverage[f"event {type(event).__name__}"] += 1
                if type(event) is AttemptFinished:
                    coverage[f"outcome {event.outcome.name}"] += 1
            for before, after in ledger.edges:
                coverage[f"edge {before} -> {after}"] += 1
            for row in ledger.recovered:
                coverage[f"recovery {row}"] += 1
            for command_id, reply, _ in batch.replies:
                self.witness.recorded(command_id, decode_reply(reply))
            if batch.commit is not None:
                self.note(f"commit {batch.commit.last_seq} {batch.commit.hash.hex()[:12]}")

    def crash(self, how: str) -> None:
        """The process that holds the store dies."""
        stepper = self.stepper
        if stepper is None:
            return
        self.note(f"crash: {how}")
        self.coverage["fault crash"] += 1
        if self.disk.written:
            self._take_note()
        self.disk.has_died = False
        self.disk.let_go()
        self.drop()

    def drop(self) -> None:
        """Nothing of the engine is left."""
        assert self.stepper is not None
        self.stepper.drop()
        self.stepper = self._house = self._chosen = None

    def take_over(self) -> None:
        """Another engine opens; the one before it goes on until it meets the newer epoch."""
        if self.stepper is None or self.old is not None or self.stepper.engine.fenced is not None:
            return
        self.note("take-over")
        self.coverage["fault take_over"] += 1
        self.old, self.stepper = self.stepper, None
        self._house = self._chosen = None
        self.disk.let_go()
        self.open()

    def open_second(self) -> None:
        """An engine that must be refused."""
        if self.stepper is None or self.stepper.engine.fenced is not None:
            return
        callers.refuses(self, lambda: self.disk.store().open(pid=2, host="another"), StoreHeld)

    def drain(self, timeout_s: float, waits_max: int) -> None:
        """The engine ends in order; one that takes too long is killed."""
        stepper = self.stepper
        if stepper is None or stepper.engine.fenced is not None:
            return
        self.note("drain")
        if stepper.drain(timeout_s, self.pass_plainly, waits_max) and not stepper.is_dead:
            self.coverage["fault drain"] += 1
            if stepper.engine.fenced is None:
                callers.refuses(self, lambda: stepper.engine.post(epochs.Touch()), NotRunning)
            self.drop()
        else:
            self.crash("killed in its drain")

    # --- what the engine has beside it ------------------------------------------------------------------------------

    def engine_now(self) -> int:
        """The instant of the engine's clock."""
        assert self.stepper is not None
        return self.stepper.engine.clock.now_us()

    def register(self, handler: DrawnHandler) -> None:
        """A handler is declared while the engine runs."""
        self.is_late_there |= handler.name not in ALWAYS_THERE
        self._registered += 1
        if self.stepper is not None:
            self.stepper.engine.register(handler, handler.executor, handler.terms, handler.concurrency)

    def keep_house(self, duty: Callable[[Housekeeping], Any]) -> None:
        """Housekeeping does something, and everything that it waits for happens at once."""
        stepper, house = self.stepper, self._house
        if stepper is None or house is None or stepper.engine.refusal() is not None:
            return
        with stepper.pumping():
            try:
                duty(house)
            except ActionQueueError as error:
                self.refusal(error.code)
            except Died:
                self.note("housekeeping dies too")
        self._bury()

    def serve(self) -> None:
        """Housekeeping does what it was asked for."""
        self._move("9")
        self._move("4")
        self.keep_house(lambda house: house.serve_asked())

    def choose_prune(self, also_send: bool) -> None:  # noqa: FBT001 - drawn
        """Housekeeping's pruning in two halves, between which anything may happen: choosing, and saying what."""
        stepper, chosen = self.stepper, self._chosen
        if stepper is None or stepper.engine.refusal() is not None:
            return
        if chosen is not None and chosen[0] is stepper:
            self._send_prune(stepper, chosen[1], chosen[2])
            return

        def begin(turn: Turn) -> None:
            stepper.engine.writer.count_lookup(1)

        stepper.engine.ask(begin)
        self._move("9")
        if self.stepper is not stepper or stepper.engine.fenced is not None:
            return
        reader = self.disk.memory.reader()
        rows = [row for row in reader.finished_before(self.engine_now(), 3) if row[14] is None]
        self._chosen = (stepper, reader.projected_seq(), rows)
        if also_send:
            self.choose_prune(False)  # noqa: FBT003

    def _send_prune(self, stepper: Stepper, as_of: int, rows: list[Any]) -> None:
        self._chosen = None
        completed, failed, canceled = (sum(row[n] for row in rows) for n in (9, 10, 11))
        command = epochs.Prune(len(rows), completed, failed, canceled, 0, [row[0] for row in rows], as_of)
        self.count(command)
        stepper.engine.repost(Post(command, Asked(self.witness, command), as_of))

    # --- time -------------------------------------------------------------------------------------------------------

    def set_wall(self, by_us: int) -> None:
        """The wall clock is set; deadlines to start are not kept to while it is in doubt."""
        self.note(f"the wall clock is set by {by_us // SECOND_US} s")
        self.coverage["fault clock_jump"] += 1
        self.time.set_wall(by_us)
        self.ledger.trusts_clock = False

    def pass_time(self, by_us: int) -> None:
        """Time passes; the engine and the handlers act whenever there is something for them to do."""
        target_us = self.time.elapsed_us + by_us
        self.act()
        for _ in range(HOPS_MAX):
            next_us = self.next_us()
            if next_us is None or next_us > target_us:
                break
            self.time.advance(max(0, next_us - self.time.elapsed_us))
            self.act()
        self.time.advance(max(0, target_us - self.time.elapsed_us))
        self.act()
        stepper = self.stepper
        if stepper is not None and stepper.is_at_rest:
            self._judge_rest(stepper)
        if self._house is not None and by_us >= SECOND_US:
            self._house.watch_clock()

    def _judge_rest(self, stepper: Stepper) -> None:
        """What must hold when nothing more can happen at this instant."""
        now, elapsed_us = self.engine_now(), self.time.elapsed_us
        for problem in check(stepper.state, settled=True, now=now):
            self.problem(f"check at rest: {problem}")
        for attempt_id in self.ledger.overdue(now):
            first_us = self._overdue.setdefault(attempt_id, elapsed_us)
            if elapsed_us - first_us > STOP_GRACE_US:
                self.problem(f"attempt {attempt_id.hex()} was not given up although its timeout and its grace are over")

    def pass_plainly(self, by_us: int) -> None:
        """Time passes for the handlers; whoever steps the engine makes its moves."""
        self.time.advance(by_us)
        for executor in self.executors():
            executor.act()

    def act(self) -> None:
        """Handlers and engines do everything that they can do at this instant."""
        for executor in self.executors():
            executor.act()
        self._move("9")

    def executors(self) -> list[DrawnExecutor]:
        """Of every engine there is."""
        steppers = [each for each in (self.old, self.stepper) if each is not None]
        return [
            each
            for stepper in steppers
            for each in stepper.engine.executors.values()
            if isinstance(each, DrawnExecutor)
        ]

    def next_us(self) -> int | None:
        """The elapsed time at which somebody has something to do."""
        found = [at_us for executor in self.executors() if (at_us := executor.next_us()) is not None]
        if self.stepper is not None and (wake_us := self.stepper.next_wake_us()) is not None:
            found.append(self.time.elapsed_us + wake_us)
        return min(found, default=None)


def _number(assignment: Assignment) -> int:
    return int(assignment.payload[5:-1])
