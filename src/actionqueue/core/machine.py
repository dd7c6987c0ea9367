"""The state as a whole: which slice decides which command, and which applies which event.

``decide`` judges a command against the state and answers with events or with a refusal, as a value; it changes nothing.
``apply`` changes the state by one event, the same way live and on replay, and never fails on an event that was decided.
The two tables are the only place where a capability is plugged in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from actionqueue.core import (
    attempts,
    batches,
    control,
    dependencies,
    epochs,
    explain,
    occurrences,
    schedules,
    signals,
    steps,
    submission,
    usage,
    waits,
)
from actionqueue.core.errors import ActionQueueError, InvalidSubmission
from actionqueue.core.reasons import Where
from actionqueue.core.state import NO_EXTRA, Accepted, Run, State
from actionqueue.core.upcoming import looked_at

Event = (
    submission.TaskSubmitted
    | submission.RunAdded
    | attempts.RunsPromoted
    | attempts.AttemptStarted
    | attempts.AttemptFinished
    | attempts.ProgressReported
    | control.RunCanceled
    | control.CancelRequested
    | control.TaskCanceled
    | control.RunRescheduled
    | control.RunReprioritized
    | control.Paused
    | control.Resumed
    | schedules.RunDerived
    | schedules.OccurrencesSkipped
    | schedules.OccurrenceWaits
    | schedules.RunRequested
    | schedules.BackfillAsked
    | schedules.ScheduleRetired
    | dependencies.DependenciesAdded
    | batches.BatchOpened
    | epochs.EngineOpened
    | epochs.EngineClosed
    | epochs.WallMoved
    | epochs.HandlersDeclared
    | epochs.TasksPruned
    | steps.StepRecorded
    | waits.WaitsEnded
    | signals.SignalKept
    | signals.SignalsExpired
)

Command = (
    submission.Submit
    | submission.RetryRun
    | attempts.Finish
    | attempts.Progress
    | control.CancelRun
    | control.CancelTask
    | control.Reschedule
    | control.Reprioritize
    | control.Pause
    | control.Resume
    | schedules.PutSchedule
    | schedules.Trigger
    | schedules.AskBackfill
    | schedules.Retire
    | dependencies.AddDependencies
    | epochs.Declare
    | epochs.Prune
    | epochs.Close
    | epochs.FollowWall
    | epochs.Touch
    | epochs.ConfirmClock
    | epochs.PruneHistory
    | explain.Explain
    | usage.ListLimits
    | steps.RecordStep
    | signals.SendSignal
)

APPLY: dict[type, Callable[[State, Any], None]] = {
    submission.TaskSubmitted: submission.apply_submitted,
    submission.RunAdded: submission.apply_run_added,
    attempts.RunsPromoted: attempts.apply_promoted,
    attempts.AttemptStarted: attempts.apply_started,
    attempts.AttemptFinished: attempts.apply_finished,
    attempts.ProgressReported: attempts.apply_progress,
    control.RunCanceled: control.apply_run_canceled,
    control.CancelRequested: control.apply_cancel_requested,
    control.TaskCanceled: control.apply_task_canceled,
    control.RunRescheduled: control.apply_rescheduled,
    control.RunReprioritized: control.apply_reprioritized,
    control.Paused: control.apply_paused,
    control.Resumed: control.apply_resumed,
    schedules.RunDerived: schedules.apply_derived,
    schedules.OccurrencesSkipped: schedules.apply_skipped,
    schedules.OccurrenceWaits: schedules.apply_waits,
    schedules.RunRequested: schedules.apply_requested,
    schedules.BackfillAsked: schedules.apply_backfill,
    schedules.ScheduleRetired: schedules.apply_retired,
    dependencies.DependenciesAdded: dependencies.apply_added,
    batches.BatchOpened: batches.apply_opened,
    epochs.EngineOpened: epochs.apply_opened,
    epochs.EngineClosed: epochs.apply_closed,
    epochs.WallMoved: epochs.apply_wall_moved,
    epochs.HandlersDeclared: epochs.apply_declared,
    epochs.TasksPruned: epochs.apply_pruned,
    steps.StepRecorded: steps.apply_step,
    waits.WaitsEnded: waits.apply_waits_ended,
    signals.SignalKept: signals.apply_signal_kept,
    signals.SignalsExpired: signals.apply_signals_expired,
}

DECIDE: dict[type, Callable[[State, Any, int], Accepted | ActionQueueError]] = {
    submission.RetryRun: submission.decide_retry,
    attempts.Finish: attempts.decide_finish,
    attempts.Progress: attempts.decide_progress,
    control.CancelRun: control.decide_cancel_run,
    control.CancelTask: control.decide_cancel_task,
    control.Reschedule: control.decide_reschedule,
    control.Reprioritize: control.decide_reprioritize,
    control.Pause: control.decide_pause,
    control.Resume: control.decide_resume,
    schedules.AskBackfill: schedules.decide_backfill,
    schedules.Retire: schedules.decide_retire,
    dependencies.AddDependencies: dependencies.decide_add,
    epochs.Prune: epochs.decide_prune,
    epochs.Close: epochs.decide_close,
    epochs.FollowWall: epochs.decide_follow_wall,
    epochs.Touch: epochs.decide_touch,
    epochs.ConfirmClock: epochs.decide_touch,
    epochs.PruneHistory: epochs.decide_touch,
    explain.Explain: explain.decide_explain,
    usage.ListLimits: usage.decide_limits,
    steps.RecordStep: steps.decide_step,
    signals.SendSignal: signals.decide_signal,
}
"""The commands that need nothing but the state."""

SUBMITTING: dict[type, Callable[[State, Any, int, int], Accepted | ActionQueueError]] = {
    submission.Submit: submission.decide_submit,
    schedules.PutSchedule: schedules.decide_put,
    schedules.Trigger: schedules.decide_trigger,
    epochs.Declare: schedules.decide_declare,
}
"""The commands that also need to know how many runs may be live."""

DUE_RUNS_PER_STEP_MAX = 2_000


class Machine:
    """One state and the pure functions around it.

    >>> machine = Machine()
    >>> machine.state.last_seq
    0
    """

    __slots__ = ("live_runs_max", "signal_age_us", "signals_max", "state")

    def __init__(self, state: State | None = None, *, live_runs_max: int = submission.LIVE_RUNS_MAX) -> None:
        self.state = State() if state is None else state
        self.live_runs_max = live_runs_max
        self.signal_age_us = signals.SIGNAL_AGE_US
        self.signals_max = signals.SIGNALS_MAX

    def decide(self, command: Command, now: int) -> Accepted | ActionQueueError:
        """The events ``command`` means at ``now``, or the refusal. The state does not change."""
        submitting = SUBMITTING.get(type(command))
        if submitting is not None:
            return submitting(self.state, command, now, self.live_runs_max)
        return DECIDE[type(command)](self.state, command, now)

    def apply(self, event: Event) -> None:
        """Change the state by one event."""
        state = self.state
        state.last_seq += 1
        state.last_at = event.at
        APPLY[type(event)](state, event)

    def replay(self, events: Iterable[Event]) -> None:
        """Apply events in order, as they were logged."""
        for event in events:
            self.apply(event)
        self.state.fallen.clear()

    def perform(self, command: Command, now: int) -> tuple[list[Event], Any] | ActionQueueError:
        """Decide and apply: the events and the reply, or the refusal (and no change)."""
        decision = self.decide(command, now)
        if isinstance(decision, ActionQueueError):
            return decision
        for event in decision.events:
            self.apply(event)
        return decision.events, decision.reply

    def start_ready(self, now: int, next_id: Callable[[int], bytes], events: list[Event]) -> None:
        """Start everything that may start now, best first; the started events are appended to ``events``."""
        state = self.state
        while self._expire(now, events):
            pass
        state.places.pass_time(now)
        next_run, start_event, apply_started = state.places.next_run, attempts.start_event, attempts.apply_started
        while (run := next_run()) is not None:
            event = start_event(run, next_id(now), now)
            state.last_seq += 1
            state.last_at = now
            apply_started(state, event)
            events.append(event)

    def fire_due(self, now: int, next_id: Callable[[int], bytes], events: list[Event]) -> bool:
        """Let runs whose instant has come start, or queue, or be held by a pause. True when more are due."""
        if self._expire(now, events):
            return True
        woken = self._end_waits(now, events)
        state, places = self.state, self.state.places
        places.pass_time(now)
        more = bool(state.underived) and self._derive(now, next_id, events)
        due = places.due(now, DUE_RUNS_PER_STEP_MAX)
        waiting: list[bytes] = []
        came_up: set[bytes] = set()
        """Tasks with schedules that have a run among those waiting: an occurrence of theirs comes after it."""
        for run in due:
            if run.task.lane.pause is not None:
                places.enter_held(run)
                continue
            if run.task.extra is not NO_EXTRA and run.task.extra.schedule is not None:
                if run.task.id in came_up:
                    self._promote(waiting, now, events)
                    waiting, came_up = [], set()
                if not self._may_occur(run, now, events):
                    continue
                came_up.add(run.task.id)
            if not waiting and run.reason != attempts.MISFIT and places.startable(run):
                self._start_due(run, next_id(now), now, events)
            else:
                waiting.append(run.id_bytes)
        self._promote(waiting, now, events)
        if due or woken:
            self.start_ready(now, next_id, events)
        if state.underived:
            more = self._derive(now, next_id, events) or more
        return more or len(due) == DUE_RUNS_PER_STEP_MAX or woken >= waits.WAITS_PER_EVENT_MAX

    def _end_waits(self, now: int, events: list[Event]) -> int:
        """Make those Ready whose waits are over, and forget signals that are too old or too many. How many runs."""
        awaiting = self.state.places.awaiting
        ended: list[waits.WaitsEnded] = []
        if awaiting.waking or awaiting.ends_at:
            ended = waits.decide_waits(self.state, now)
        over: list[signals.SignalsExpired] = []
        if awaiting.signals and not self.state.places.timers.suspended:
            over = signals.decide_signals_expired(self.state, now, self.signal_age_us, self.signals_max)
        found: list[Event] = [*over, *ended]
        for event in found:
            self.apply(event)
        events += found
        return sum(len(event.run_ids) for event in ended)

    def _promote(self, waiting: list[bytes], now: int, events: list[Event]) -> None:
        """Due runs wait for their turn, those that no schedule has canceled since."""
        runs = self.state.runs
        promoted = attempts.RunsPromoted(now, [run_id for run_id in waiting if run_id in runs])
        if promoted.run_ids:
            self.apply(promoted)
            events.append(promoted)

    def _may_occur(self, run: Run, now: int, events: list[Event]) -> bool:
        """Whether ``run`` of a schedule, which fell due, may start, after what that makes of its occurrence."""
        state = self.state
        runs, places = state.runs, state.places
        while run.id_bytes in runs:  # else one that fell due before it has canceled it
            before = self._decide_due(run, now) or control.decide_expired(places.timers.too_late(run, now), now)
            for event in before:
                self.apply(event)
                events.append(event)
            if not before:
                return True
            if run.where is Where.TIMER and run.until <= now:
                places.leave(run)
            elif run.where is not Where.NOWHERE:
                return False
        return False

    def _decide_due(self, run: Run, now: int) -> list[Event]:
        try:
            return occurrences.decide_due(self.state, run, now)
        except InvalidSubmission:  # its zone or expression is not known here: what is due happens, the rest waits
            return []

    def _derive(self, now: int, next_id: Callable[[int], bytes], events: list[Event]) -> bool:
        """Give schedules the runs of their next occurrences. True when any of them is due already, or more is to do."""
        state = self.state
        any_due = False
        for schedule in list(islice(state.underived.values(), DUE_RUNS_PER_STEP_MAX)):
            try:
                event = occurrences.decide_next(state, schedule, now, next_id)
            except InvalidSubmission:  # its zone or expression is not known here: another machine may go on with it
                event = None
            if event is None:
                schedule.catching_up = True
                looked_at(state, schedule)
                continue
            self.apply(event)
            events.append(event)
            if type(event) is not schedules.ScheduleRetired:
                any_due = any_due or type(event) is schedules.RunRequested or state.runs[event.run_id].until <= now
        return any_due or bool(state.underived)

    def _expire(self, now: int, events: list[Event]) -> bool:
        """Cancel what was not started by its deadline, before anything starts. True when there may be more."""
        expired = self.state.places.timers.take_expired(now, DUE_RUNS_PER_STEP_MAX)
        for event in control.decide_expired(expired, now):
            if event.run_id in self.state.runs:  # else one before it has canceled it
                self.apply(event)
                events.append(event)
        return len(expired) == DUE_RUNS_PER_STEP_MAX

    def _start_due(self, run: Run, attempt_id: bytes, now: int, events: list[Event]) -> None:
        event = attempts.start_event(run, attempt_id, now)
        self.apply(event)
        events.append(event)

    def open(
        self, now: int, number: int, pid: int, host: str, version: str, draw: float, wall_shift: int = 0
    ) -> list[Event]:
        """A new epoch begins: what an earlier one left open is lost. The events, applied."""
        self.state.records.clear()  # of what was replayed: those rows were written, and what was dropped then is gone
        self.state.forgotten.clear()
        events: list[Event] = [
            epochs.EngineOpened(now, number, pid, host, version, wall_shift, wall_shift - self.state.wall_shift)
        ]
        events += attempts.decide_lost(self.state, now, draw)
        self.replay(events)
        return events
