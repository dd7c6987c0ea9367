"""The executor of the simulated world: its attempts follow their plans on virtual time.

It keeps the port's contract (one report for an end, none for what was abandoned); what breaks the contract, such as a
report that comes twice, is a plan's and is marked so. Reports are made by the real executors' own table, ``endings``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random

from actionqueue.core.attempts import Finish
from actionqueue.core.awaiting import SIGNAL, SLEEP, WaitAsked
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.records import STEP
from actionqueue.core.state import ErrorInfo
from actionqueue.executors import endings
from actionqueue.executors.memory import memory_of, record_of
from actionqueue.executors.port import Asked, Assignment, AttemptControl, Report, Sink
from actionqueue.testing.behaviour import Plan, outcome_of
from actionqueue.testing.clock import VirtualTime

_KINDS = {"step": STEP, "sleep": SLEEP, "receive": SIGNAL}


class Running:
    """One attempt that runs."""

    __slots__ = ("assignment", "control", "is_over", "passed", "plan")

    def __init__(self, assignment: Assignment, plan: Plan, sink: Sink) -> None:
        self.assignment = assignment
        self.control = AttemptControl(
            assignment,
            lambda progress: sink((progress,)),
            lambda command, settle: sink((Asked(command, settle),)),
        )
        self.plan = plan
        self.is_over = False
        self.passed = 0
        """How many steps and waits of its script are behind it."""


class DrawnExecutor:
    """Implements ``executors.port.Executor``. ``plan`` says what an attempt does, the others hear of it."""

    tells_calls = False

    def __init__(
        self,
        name: str,
        slots: int,
        time: VirtualTime,
        chance: Random,
        *,
        plan: Callable[[Assignment], Plan],
        on_start: Callable[[Assignment], None],
        on_report: Callable[[Report], None],
        on_step: Callable[[Assignment, str], None],
    ) -> None:
        self.name = name
        self.slots = slots
        self.is_calm = False
        """Set at the end of a story: every attempt returns at once."""
        self.most_at_once = 0
        self._time = time
        self._chance = chance
        self._plan = plan
        self._on_start = on_start
        self._on_report = on_report
        self._on_step = on_step
        self._live: dict[bytes, Running] = {}
        self._agenda: list[tuple[int, int, str, Running]] = []
        self._serial = 0
        self._sink: Sink = _nobody

    # --- the port ---------------------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        """Get ready."""

        def heard(reports: Sequence[Report]) -> None:
            for report in reports:
                self._on_report(report)
            sink(reports)

        self._sink = heard

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Run these."""
        for assignment in assignments:
            self._on_start(assignment)
            running = Running(assignment, self._plan(assignment), self._sink)
            self._live[assignment.attempt_id] = running
            plan = running.plan
            for n in range(plan.progress):
                self._at((plan.duration_us or 0) * (n + 1) // (plan.progress + 1), "progress", running)
            if self.is_calm:
                self._at(0, "calm", running)
            elif plan.duration_us is not None:
                self._at(plan.duration_us, "end", running)
        self.most_at_once = max(self.most_at_once, len(self._live))

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """Ask the code to stop; what it does then is its plan's."""
        running = self._live.get(attempt_id)
        if running is None:
            return
        running.control.request_stop(reason)
        if force and self.name == "process":
            self._at(0, "killed", running)
        elif running.plan.on_stop != "ignore":
            self._at(running.plan.stop_us, running.plan.on_stop, running)

    def abandon(self, attempt_id: bytes) -> None:
        """Say nothing of it any more."""
        running = self._live.pop(attempt_id, None)
        if running is not None:
            running.is_over = True

    def running(self) -> list[bytes]:
        """What has not ended."""
        return list(self._live)

    def close(self, timeout_s: float) -> None:
        """Everything is over."""
        for attempt_id in self.running():
            self.abandon(attempt_id)
        self._agenda.clear()

    # --- the world's ------------------------------------------------------------------------------------------------

    def next_us(self) -> int | None:
        """The elapsed time at which something happens next."""
        agenda = self._agenda
        while agenda and agenda[0][3].is_over:
            heappop(agenda)
        return agenda[0][0] if agenda else None

    def act(self) -> None:
        """Everything that happens by now."""
        while (at_us := self.next_us()) is not None and at_us <= self._time.elapsed_us:
            _, _, what, running = heappop(self._agenda)
            if what == "progress":
                running.control.report_progress(1, 2, "half way")
            elif what != "end" or self._passes(running):
                self._end(what, running)

    def _passes(self, running: Running) -> bool:
        """Whether its script is behind it; else it waits for the record of a step, or has ended waiting."""
        memory, script = memory_of(running.control), running.plan.script
        while running.passed < len(script):
            kind, name, address, limit_us = script[running.passed]
            try:
                if memory.recall(name, _KINDS[kind]) is not None:
                    running.passed += 1
                    continue
                if kind == "step":
                    self._do_step(running, name)
                elif kind == "sleep":
                    memory.wait(WaitAsked(SLEEP, name, limit_us))
                else:
                    signal, _, key = (address or "").partition(":")
                    to = signal, key or None
                    memory.wait(WaitAsked(SIGNAL, name, limit_us, *to, memory.served(to)))
            except BaseException as error:
                self._finish(running, endings.raised(running.control, error))
            return False
        return True

    def _do_step(self, running: Running, name: str) -> None:
        self._on_step(running.assignment, name)

        def settle(reply: object) -> None:
            if running.is_over:
                return
            if isinstance(reply, ActionQueueError):
                self._finish(running, endings.raised(running.control, reply))
            else:
                running.passed += 1
                self._at(0, "end", running)

        assert running.control.ask is not None
        running.control.ask(record_of(running.control, name, STEP, b'"done"'), settle)

    def calm_down(self) -> None:
        """The story is over: what runs returns now, and so does what starts from now on."""
        self.is_calm = True
        for running in list(self._live.values()):
            self._at(0, "calm", running)

    def _at(self, in_us: int, what: str, running: Running) -> None:
        self._serial += 1
        heappush(self._agenda, (self._time.elapsed_us + in_us, self._serial, what, running))

    def _end(self, what: str, running: Running) -> None:
        self._finish(running, self._report_of(what, running))

    def _finish(self, running: Running, finish: Finish) -> None:
        running.is_over = True
        self._live.pop(running.assignment.attempt_id, None)
        finish.draw = self._chance.random()
        if finish.error is not None:  # a traceback holds paths and line numbers, which a story must not depend on
            finish.error = ErrorInfo(finish.error.kind, finish.error.message)
        self._sink([finish])
        if running.plan.is_doubled:
            self._sink([finish])

    def _report_of(self, what: str, running: Running) -> Finish:
        control = running.control
        match what:
            case "calm" | "return":
                return endings.returned(control, "done")
            case "obey" | "killed":
                return endings.stopped(running.assignment, control.reason or "canceled")
            case "clean_up":
                error = OSError("the file was closed already")
                error.__context__ = asyncio.CancelledError()
                return endings.raised(control, error)
            case _:
                return self._planned(running)

    def _planned(self, running: Running) -> Finish:
        control, plan, assignment = running.control, running.plan, running.assignment
        if plan.kind == "misfit":
            return endings.misfit(assignment, ValueError("one argument is missing"))
        if plan.kind == "worker_died":
            return endings.failed(assignment, "worker_died", "the worker process ended with exit status -9")
        outcome = outcome_of(plan, self._chance.random())
        if plan.kind == "swallows":
            control.misused = "Snooze"
        if isinstance(outcome, BaseException):
            return endings.raised(control, outcome)
        return endings.returned(control, outcome)


def _nobody(reports: Sequence[Report]) -> None:
    raise AssertionError("begin() was not called")
