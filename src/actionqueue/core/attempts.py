"""Attempts: a run becomes due, starts, and ends; then it has ended, is tried again, or waits.

Delivery is at-least-once within caps. Failed and timed-out attempts count toward ``max_attempts``; lost ones (their
engine died, or their code could not be confirmed stopped) toward ``max_lost``; the others toward neither. A report must
carry the id and fence of the attempt that holds the run; any other is refused as stale, whoever sends it. Delays are
computed here from the terms recorded at the attempt's start and the draw that came with the report.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from actionqueue.core import graph
from actionqueue.core.awaiting import Wait, WaitAsked
from actionqueue.core.errors import ActionQueueError, StaleReport
from actionqueue.core.ids import AttemptId, RunId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.limits import holds_keys
from actionqueue.core.records import forget_count
from actionqueue.core.retry import DEFAULT_TERMS, AttemptTerms, Backoff
from actionqueue.core.run import RunState
from actionqueue.core.state import (
    AWAITING,
    CANCELED,
    CODE_OF,
    COMPLETED,
    FAILED,
    FIRST_TERMINAL,
    NO_EXTRA,
    READY,
    RETRY_WAIT,
    RUNNING,
    STATES,
    Accepted,
    Attempt,
    CancelMark,
    ErrorInfo,
    Outcome,
    Output,
    Run,
    State,
    Task,
)
from actionqueue.core.upcoming import forget, note_ended, note_left

MISFIT = "arguments"
"""The reason of an attempt that could not decode its arguments; its run waits for another handler."""

_GOLDEN = 0.6180339887498949
_LEASED, _RUNNING, _READY = RunState.LEASED, RunState.RUNNING, RunState.READY


# --- events -----------------------------------------------------------------------------------------------------


class RunsPromoted(Struct, frozen=True, array_like=True, tag=3):
    """These runs fell due and wait for their turn, in this order."""

    at: int
    run_ids: list[bytes]


class AttemptStarted(Struct, frozen=True, array_like=True, tag=4, gc=False):
    """A run is tried: from Ready, or from Scheduled or RetryWait where it fell due and started at once.

    The event's sequence number is the attempt's fence. ``terms`` None are the default ones.
    """

    at: int
    run_id: bytes
    attempt_id: bytes
    terms: AttemptTerms | None = None


class AttemptFinished(Struct, frozen=True, array_like=True, tag=5, gc=False):
    """An attempt ended, and what becomes of its run: the state with code ``to``, at ``retry_at`` if that is RetryWait.

    ``by`` is set where someone had the attempt abandoned. ``wait`` is what it waits for, if ``to`` is Awaiting.
    """

    at: int
    run_id: bytes
    attempt_id: bytes
    outcome: Outcome
    to: int
    reason: str = ""
    retry_at: int | None = None
    output: Output | None = None
    error: ErrorInfo | None = None
    abandoned: bool = False
    by: str = ""
    wait: Wait | None = None


class ProgressReported(Struct, frozen=True, array_like=True, tag=6, gc=False):
    """A handler said how far it is."""

    at: int
    run_id: bytes
    done: int
    total: int | None
    message: str


# --- commands ---------------------------------------------------------------------------------------------------


class Finish(Struct, array_like=True, tag="finish", gc=False):
    """What an executor reports of an attempt's end.

    ``terminal`` rules a retry out; ``delay_us`` is a delay the handler asked for; ``draw`` in [0, 1) decides jitter.
    ``body`` holds the encoded result, stored beside the event that carries its digest. ``wait`` is what it waits for.
    """

    run_id: bytes
    attempt_id: bytes
    fence: int
    outcome: Outcome
    body: bytes | None = None
    output: Output | None = None
    error: ErrorInfo | None = None
    terminal: bool = False
    delay_us: int | None = None
    draw: float = 0.5
    reason: str = ""
    abandoned: bool = False
    wait: WaitAsked | None = None


class Progress(Struct, array_like=True, tag="progress"):
    """A handler's report of how far it is; from an attempt that no longer holds its run it is dropped."""

    run_id: bytes
    attempt_id: bytes
    fence: int
    done: int
    total: int | None = None
    message: str = ""


# --- decide -----------------------------------------------------------------------------------------------------


def stale(state: State, run_id: bytes, attempt_id: bytes, fence: int) -> StaleReport | None:
    """Why a report of that attempt is refused, or None when it holds the run."""
    run = state.runs.get(run_id)
    attempt = None if run is None else run.attempt
    if attempt is not None and attempt.id == attempt_id and attempt.fence == fence:
        return None
    return StaleReport(
        "this attempt no longer holds its run; its report was refused and changed nothing",
        run_id=RunId(bytes=run_id),
        attempt_id=AttemptId(bytes=attempt_id),
    )


def decide_finish(state: State, command: Finish, now: int) -> Accepted | ActionQueueError:
    """The attempt's end and the run's next state, as one event."""
    event = finish_event(state, command, now)
    if event is None:
        return stale(state, command.run_id, command.attempt_id, command.fence) or StaleReport("stale report")
    return Accepted([event])


def finish_event(state: State, report: Finish, now: int) -> AttemptFinished | None:
    """The same without a wrapping: None where the report is stale."""
    run = state.runs.get(report.run_id)
    attempt = None if run is None else run.attempt
    if run is None or attempt is None or attempt.id != report.attempt_id or attempt.fence != report.fence:
        return None
    outcome = report.outcome
    if outcome is Outcome.COMPLETED:
        return AttemptFinished(now, report.run_id, attempt.id, outcome, COMPLETED, "", None, report.output)
    to, reason, retry_at = _next_state(run, attempt, report, now)
    return AttemptFinished(
        now, report.run_id, attempt.id, outcome, to, reason, retry_at, None, report.error, report.abandoned,
        wait=_wait(report.wait, now) if to == AWAITING else None,
    )  # fmt: skip


def _wait(asked: WaitAsked | None, now: int) -> Wait:
    assert asked is not None, "an attempt that ends waiting says for what"
    until = None if asked.after_us is None else min(now + asked.after_us, SUBMIT_INSTANT_MAX)
    return Wait(asked.kind, asked.name, now, until, asked.signal, asked.key, asked.served)


def _next_state(run: Run, attempt: Attempt, report: Finish, now: int) -> tuple[int, str, int | None]:
    """(state code, reason, retry instant) for an attempt that did not complete."""
    outcome = report.outcome
    reason = report.reason or outcome.name.lower()
    if run.cancel is not None or outcome is Outcome.CANCELED:
        return CANCELED, "canceled" if not report.reason else report.reason, None
    delay_us = report.delay_us
    match outcome:
        case Outcome.FAILED | Outcome.TIMED_OUT:
            failures = run.failure_count + 1
            if report.terminal or failures >= run.task.max_attempts:
                return FAILED, reason, None
            if delay_us is None:
                delay_us = _backoff(run, attempt).delay_after(failures, report.draw)
        case Outcome.LOST:
            losses = run.lost_count + 1
            if losses > attempt.terms.max_lost or attempt.terms.fails_when_lost(run.task.max_attempts):
                return FAILED, reason, None
            delay_us = _backoff(run, attempt).delay_after(losses, report.draw)
        case Outcome.AWAITING:
            return AWAITING, reason if report.wait is None else report.wait.kind, None
        case Outcome.SNOOZED | Outcome.INTERRUPTED:
            delay_us = delay_us or 0
        case _:
            raise AssertionError(f"{outcome} is not reported by this version's executors")
    return RETRY_WAIT, reason, min(now + delay_us, SUBMIT_INSTANT_MAX)


def _backoff(run: Run, attempt: Attempt) -> Backoff:
    return run.task.extra.options.backoff or attempt.terms.backoff


def decide_progress(state: State, command: Progress, now: int) -> Accepted | ActionQueueError:
    """Progress is recorded while its attempt holds the run."""
    refusal = stale(state, command.run_id, command.attempt_id, command.fence)
    if refusal is not None:
        return refusal
    return Accepted([ProgressReported(now, command.run_id, command.done, command.total, command.message)])


def decide_lost(state: State, now: int, draw: float) -> list[Any]:
    """At opening: every attempt that an earlier epoch left open is lost. One event each.

    Each has a draw of its own, spread from the one given by the golden ratio, so that they do not come back as a herd.
    """
    events: list[Any] = []
    for run in state.runs.values():
        attempt = run.attempt
        if attempt is not None:
            draw = (draw + _GOLDEN) % 1.0
            report = Finish(run.id_bytes, attempt.id, attempt.fence, Outcome.LOST, draw=draw)
            to, reason, retry_at = _next_state(run, attempt, report, now)
            events.append(AttemptFinished(now, run.id_bytes, attempt.id, Outcome.LOST, to, reason, retry_at))
    return events


# --- apply ------------------------------------------------------------------------------------------------------


def apply_promoted(state: State, event: RunsPromoted) -> None:
    """Each run is Ready, in the order of the event."""
    places, counts, at = state.places, state.counts, event.at
    for run_id in event.run_ids:
        run = state.runs[run_id]
        counts[CODE_OF[run.state]] -= 1
        counts[READY] += 1
        places.leave(run)
        if run.task.extra is not NO_EXTRA:
            note_left(state, run)
        run.promote_to_ready_with_priority(run.priority)
        run.record_state_change_at(at)
        run.order = state.next_order
        state.next_order += 1
        state.dirty_runs[run_id] = run
        if run.reason != MISFIT:
            run.reason = "due"
            places.enter_lane(run)
        elif run.task.lane.take_misfit(run_id):
            places.enter_misfit(run)
        else:
            places.enter_lane(run)


def apply_started(state: State, event: AttemptStarted) -> None:
    """The run walks to Running and its attempt is open."""
    run_id, at, counts = event.run_id, event.at, state.counts
    run = state.runs[run_id]
    places = state.places
    places.leave(run)
    run_state = run._state  # noqa: SLF001 - the hot path; Run is a RunInstance
    counts[CODE_OF[run_state]] -= 1
    counts[RUNNING] += 1
    if run_state is _READY:
        ready_at = run._last_state_change_at  # noqa: SLF001
    else:
        if run.task.extra is not NO_EXTRA:
            note_left(state, run)
        run.promote_to_ready_with_priority(run.priority)
        ready_at = at
    run.transition_to(_LEASED)
    run.transition_to(_RUNNING)
    run.start_attempt(event.attempt_id)
    run.record_state_change_at(at)
    run.reason = "started"
    run.started_at = at
    if run.latest is not None:
        run.older = [run.latest] if run.older is None else [*run.older, run.latest]
    run.latest = run.attempt = Attempt(
        event.attempt_id, run._attempt_count, state.last_seq, ready_at, at, event.terms or DEFAULT_TERMS  # noqa: SLF001
    )  # fmt: skip
    state.dirty_runs[run_id] = run
    places.enter_running(run)
    for bucket in run.task.lane.rates:
        places.limits.take(bucket, at, state.dirty_entries)


def apply_finished(state: State, event: AttemptFinished) -> None:
    """The attempt is closed; its run has ended, waits to be tried again or for something else, or was canceled."""
    run_id, at, to, outcome = event.run_id, event.at, event.to, event.outcome
    run = state.runs[run_id]
    attempt = run.attempt
    assert attempt is not None
    run.finish_attempt(event.attempt_id)
    run.transition_to(STATES[to])
    run.record_state_change_at(at)
    counts = state.counts
    counts[RUNNING] -= 1
    counts[to] += 1
    state.places.leave_running(run)
    reason = event.reason
    run.reason = reason or "completed"
    attempt.finished_at = at
    attempt.outcome = outcome
    run.attempt = None
    if outcome is Outcome.COMPLETED:
        run.output = event.output
        run.lost_streak = 0
        run.error_kind = None
    else:
        attempt.reason, attempt.error, attempt.retry_at = reason, event.error, event.retry_at
        attempt.abandoned = event.abandoned
        if event.by:
            run.cancel = CancelMark(at, event.by, "abandon")
        if reason == MISFIT:
            run.task.lane.note_misfit(run_id)
        if event.error is not None:
            run.error_kind = event.error.kind
        _count(run, outcome)
    state.dirty_runs[run_id] = run
    if to >= FIRST_TERMINAL:
        end_run(state, run, to, at)
    else:
        if event.wait is not None:
            state.places.awaiting.enter(run, event.wait)
        else:
            assert event.retry_at is not None
            state.places.enter_timer(run, event.retry_at)
        if run.task.lane.keys and not holds_keys(run):
            state.places.release_keys(run)


def _count(run: Run, outcome: Outcome) -> None:
    if outcome is Outcome.LOST:
        run.lost_count += 1
        run.lost_streak += 1
        return
    run.lost_streak = 0
    if outcome is Outcome.FAILED or outcome is Outcome.TIMED_OUT:
        run.failure_count += 1


def end_run(state: State, run: Run, to: int, at: int) -> None:
    """A run is in a terminal state: it leaves the live ones, and its task with it when it was the last."""
    run_id = run.id_bytes
    del state.runs[run_id]
    task = run.task
    lane = task.lane
    if lane.keys:
        state.places.release_keys(run)
    if task.head is run:
        task.head = run.next
        run.next = None
    else:
        task.unlink(run)
    completed, failed, canceled = task.ended
    if to == COMPLETED:
        task.ended = _ONE_COMPLETED if completed + failed + canceled == 0 else (completed + 1, failed, canceled)
    elif to == FAILED:
        task.ended = (completed, failed + 1, canceled)
    else:
        task.ended = (completed, failed, canceled + 1)
    state.dirty_runs[run_id] = run
    state.dirty_tasks[task.id] = task
    if state.recorded:
        forget_count(state, run.token)
    if to == COMPLETED and state.dependents and task.id in state.dependents:
        state.results[task.id] = (run_id, run.output)
    extra = task.extra
    if extra is not NO_EXTRA and extra.schedule is not None:
        note_left(state, run)
        note_ended(state, extra.schedule)
        if not extra.schedule.is_done:
            return
    if task.head is None:
        finish_task(state, task, at)


def finish_task(state: State, task: Task, at: int) -> None:
    """A task without live runs, and without any to come, leaves the live ones."""
    extra = task.extra
    task.finished_at = at
    del state.tasks[task.id]
    lane = task.lane
    if lane.needs[2]:
        del state.pauses["task", task.id.hex()]
        state.dirty_facts = True
    state.places.let_go(lane)
    state.recent[task.id] = state.last_seq
    if extra is not NO_EXTRA:
        if extra.key is not None:
            state.recent[extra.key] = state.last_seq
            if state.keys.get(extra.key) is task:
                del state.keys[extra.key]
        if extra.schedule is not None:
            forget(state, extra.schedule)
        if extra.depends is not None:
            graph.leave(state, task)
    if state.dependents and task.id in state.dependents:
        state.results.setdefault(task.id, (b"", None))
        graph.tell_end(state, task, at, cancel_waiting)


def cancel_waiting(state: State, run: Run, at: int, reason: str) -> None:
    """A run without an open attempt ends in Canceled."""
    state.counts[CODE_OF[run.state]] -= 1
    state.counts[CANCELED] += 1
    state.places.leave(run)
    run.transition_to(RunState.CANCELED)
    run.record_state_change_at(at)
    run.reason = reason
    end_run(state, run, CANCELED, at)


_ONE_COMPLETED = (1, 0, 0)


def apply_progress(state: State, event: ProgressReported) -> None:
    """Kept with the open attempt."""
    run = state.runs[event.run_id]
    assert run.attempt is not None
    run.attempt.progress = (event.done, event.total, event.message)
    state.dirty_runs[event.run_id] = run


def start_event(run: Run, attempt_id: bytes, now: int) -> AttemptStarted:
    """The start of ``run`` under the terms of its registered handler and its own options."""
    terms = run.task.lane.terms
    options = run.task.extra.options
    if options.timeout_us is not None or options.backoff is not None:
        base = terms or DEFAULT_TERMS
        terms = AttemptTerms(
            base.timeout_us if options.timeout_us is None else options.timeout_us,
            options.backoff or base.backoff,
            base.on_lost,
            base.max_lost,
        )
        if terms == DEFAULT_TERMS:
            terms = None
    return AttemptStarted(now, run.id_bytes, attempt_id, terms)
