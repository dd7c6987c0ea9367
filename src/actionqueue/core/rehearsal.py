"""The real machine on a virtual clock: time passes in it as the engine's writer lets it pass, and every attempt ends
after as long as it is expected to take.

Knows: how a step of the writer goes (what ended is finished, what may start is started, what fell due is dealt with),
and at which instant there is something to do again. Must not know: what is made of it; a ``Watch`` is told everything.
Nothing is decided here, so a rehearsal goes the way the engine would go, as far as handlers take as long as expected.

Attempts complete. What was asked to stop, stops at once. The machine is used up: it has become that of the last instant.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count
from typing import Any

from actionqueue.core.attempts import AttemptFinished, AttemptStarted, Finish, RunsPromoted, finish_event
from actionqueue.core.control import CancelRequested, RunCanceled
from actionqueue.core.machine import Machine
from actionqueue.core.schedules import OccurrencesSkipped, OccurrenceWaits, RunRequested
from actionqueue.core.state import Attempt, Outcome, Run

EVENTS_MAX = 1_000_000
"""Events of one rehearsal; ten to fifteen seconds of work. What comes after them is not foreseen."""

ROWS_KEPT_MAX = 5_000
"""Runs that have changed are forgotten as changed, and ended ones let go of, when so many are remembered."""


class Watch:
    """Told of everything that happens in a rehearsal, with the run as it is afterwards. By itself it ignores it."""

    def waits(self, run: Run) -> None:
        """``run`` is Ready, and queues."""

    def starts(self, run: Run, now: int) -> None:
        """An attempt of ``run`` has begun."""

    def ends(self, run: Run, event: AttemptFinished) -> None:
        """Its attempt has ended."""

    def cancels(self, run: Run, event: RunCanceled) -> None:
        """``run``, which was waiting, was canceled."""

    def overlaps(self, task_id: bytes, event: Any) -> None:
        """An occurrence does not happen, or waits, or has an earlier one stopped."""

    def settles(self, now: int) -> None:
        """Nothing more happens at this instant."""


class Rehearsal:
    """See the module's head. ``takes_us`` is how long an attempt of a run is expected to take, in microseconds.

    Attempts that are open at ``now`` have run since they started, and end when they have taken as long as expected.
    """

    def __init__(
        self,
        machine: Machine,
        now: int,
        takes_us: Callable[[Run], int],
        watch: Watch,
        *,
        next_id: Callable[[int], bytes] | None = None,
        events_max: int = EVENTS_MAX,
    ) -> None:
        self.machine = machine
        self.now = now
        self.events_left = events_max
        self._takes_us = takes_us
        self._watch = watch
        self._next_id = next_id or _ids()
        self._ends: list[tuple[int, int, Run, Attempt]] = []
        self._serial = count()
        for run in machine.state.runs.values():
            attempt = run.attempt
            if attempt is not None:
                at = attempt.started_at + takes_us(run) if run.cancel is None else now
                self._expect_end(run, attempt, max(now, at))

    @property
    def is_exhausted(self) -> bool:
        """Whether no more events are simulated."""
        return self.events_left <= 0

    def settle(self) -> None:
        """Do everything that is to be done at this instant; this comes first."""
        more = True
        while more and not self.is_exhausted:
            events: list[Any] = []
            self._end_due()
            self.machine.start_ready(self.now, self._next_id, events)
            more = self.machine.fire_due(self.now, self._next_id, events)
            for event in events:
                self._tell(event)
            self.events_left -= len(events)
            more = more or bool(self._ends and self._ends[0][0] <= self.now)
        self._watch.settles(self.now)
        if len(self.machine.state.dirty_runs) > ROWS_KEPT_MAX:
            self._let_go()

    def play(self, until: int) -> None:
        """Let time pass until that instant, or until there are no more events left; ``now`` is how far it came."""
        while not self.is_exhausted:
            at = self._next_at()
            if at is None or at > until:
                self.now = until
                return
            self.now = max(at, self.now)
            self.settle()

    def _next_at(self) -> int | None:
        timer = self.machine.state.places.next_timer()
        if not self._ends:
            return timer
        end = self._ends[0][0]
        return end if timer is None or end < timer else timer

    def _end_due(self) -> None:
        ends, machine, now = self._ends, self.machine, self.now
        while ends and ends[0][0] <= now:
            _, _, run, attempt = heappop(ends)
            if run.attempt is not attempt:
                continue
            outcome = Outcome.COMPLETED if run.cancel is None else Outcome.CANCELED
            event = finish_event(machine.state, Finish(run.id_bytes, attempt.id, attempt.fence, outcome), now)
            assert event is not None, "the attempt holds its run"
            machine.apply(event)
            self._watch.ends(run, event)
            self.events_left -= 1

    def _expect_end(self, run: Run, attempt: Attempt, at: int) -> None:
        heappush(self._ends, (at, next(self._serial), run, attempt))

    def _tell(self, event: Any) -> None:
        state, watch = self.machine.state, self._watch
        kind = type(event)
        if kind is AttemptStarted:
            run = state.runs[event.run_id]
            assert run.attempt is not None, "it has just started"
            watch.starts(run, self.now)
            self._expect_end(run, run.attempt, self.now + self._takes_us(run))
        elif kind is RunsPromoted:
            for run_id in event.run_ids:
                watch.waits(state.dirty_runs[run_id])
        elif kind is RunRequested:
            watch.waits(state.dirty_runs[event.run_id])
        elif kind is RunCanceled:
            watch.cancels(state.dirty_runs[event.run_id], event)
        elif kind is OccurrencesSkipped or kind is OccurrenceWaits:
            watch.overlaps(event.task_id, event)
        elif kind is CancelRequested:
            run = state.runs[event.run_id]
            assert run.attempt is not None, "what does not run is canceled at once"
            watch.overlaps(run.task.id, event)
            self._expect_end(run, run.attempt, self.now)

    def _let_go(self) -> None:
        """What a projection would do: forget what was touched, and look through heaps that are mostly outdated."""
        state = self.machine.state
        state.places.trim(len(state.runs))
        state.places.limits.forget_passed(self.now, state.dirty_entries)
        for touched in (state.dirty_runs, state.dirty_tasks, state.dirty_schedules, state.dirty_entries, state.recent):
            touched.clear()


def _ids() -> Callable[[int], bytes]:
    """Ids that are the same each time, and spread: the jitter of an occurrence is drawn by the id of its run."""
    numbers = count()
    return lambda now: blake2b(b"rehearsal %d" % next(numbers), digest_size=16).digest()
