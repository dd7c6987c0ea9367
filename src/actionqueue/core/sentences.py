"""Explanations in words: one line for the reason, one for its release, one for each note, and those it waits for below.

Instants are UTC, with the date where it is not that of the explanation; ids are their last eight digits, as everywhere.
The texts are stable: a test holds one for each reason, release and note.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, assert_never

from actionqueue.core.instants import format_duration, timedelta_us
from actionqueue.core.reasons import (
    AfterFailure,
    AheadInLine,
    ArgumentsMisfit,
    AskedToStop,
    AskRetry,
    AtInstant,
    AwaitsSignal,
    Ended,
    Expires,
    HandlerMissing,
    HoldsKeys,
    InProgress,
    ItsTurn,
    KeyHeld,
    MoreSlots,
    NoEngineRuns,
    NoFreeSlot,
    NotDecided,
    Note,
    NotYetDue,
    OfSchedule,
    PastTimeout,
    Paused,
    PreviousLive,
    RateLimited,
    Reason,
    RegisterHandler,
    Release,
    ResumeScope,
    RunsEnd,
    SignalComes,
    Sleeping,
    StartEngine,
    TakesItsTurn,
    TasksComplete,
    Upstream,
    WaitsForTasks,
)
from actionqueue.core.rules import describe_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actionqueue.core.explain import Explanation

ID_DIGITS = 8
NAMED_MAX = 3
"""Runs named in one line."""
INDENT = "  "


def told(explanation: Explanation) -> str:
    """All of it, a line each."""
    return "\n".join(_lines(explanation, 0))


def why(explanation: Explanation) -> str:
    """The reason, in one line."""
    return _reason(explanation.reason, explanation.at)


def short(id: UUID) -> str:
    """The last digits of an id.

    >>> from actionqueue.core.ids import RunId
    >>> short(RunId("018bcfe5-6800-7000-8000-0000cafe0001"))
    'cafe0001'
    """
    return id.hex[-ID_DIGITS:]


def _lines(explanation: Explanation, depth: int) -> Iterator[str]:
    at = explanation.at
    is_same_run = explanation.because and explanation.because[0].run_id == explanation.run_id
    state = "not decided" if explanation.state is None else explanation.state
    head = f"run {short(explanation.run_id)} of {explanation.handler} is {state}: "
    yield f"{INDENT * depth}{head}{why(explanation)}"
    margin = INDENT * (depth + 1)
    if explanation.release is not None:
        yield margin + _release(explanation.release, at)
    if explanation.ahead and not isinstance(explanation.reason, AheadInLine):
        yield f"{margin}{_count(explanation.ahead, 'run')} of its line {_go(explanation.ahead)} first then"
    for note in explanation.notes:
        yield margin + _note(note, at)
    if is_same_run:
        yield f"{margin}with an engine, as the last one was:"
    for other in explanation.because:
        yield from _lines(other, depth + 1 + bool(is_same_run))
    if explanation.unexplained and explanation.because:
        yield f"{margin}and {_count(explanation.unexplained, 'other run')}"


def _reason(reason: Reason, now: datetime) -> str:  # noqa: C901 - a case for each reason
    match reason:
        case NotYetDue(until, backing_off):
            return f"{'to be tried again' if backing_off else 'due'} at {_instant(until, now)}"
        case Paused(scope, name, at, by):
            return f"{_scope(scope, name)} is paused since {_instant(at, now)}{_by(by)}"
        case HandlerMissing(handler):
            return f"no handler {handler!r} is registered with the engine"
        case ArgumentsMisfit(handler):
            return f"its arguments do not fit the handler {handler!r} that is registered"
        case NoFreeSlot(kind, name, capacity, taken, holders):
            return f"{kind} {name!r} has no free slot, {taken} of {capacity} are taken{_held(holders, taken)}"
        case KeyHeld(key, capacity, taken, holders):
            return f"key {key!r} is taken, {taken} of {capacity}{_held(holders, taken)}"
        case RateLimited(key, count, per_us, burst, until):
            rate = f"{count} per {describe_duration(per_us)}, {burst} at once"
            return f"rate {key!r} ({rate}) has no token until {_instant(until, now)}"
        case TakesItsTurn(holder):
            after = "" if holder is None else f", after run {short(holder)}"
            return f"it was live in two crashes in a row; such runs start one at a time{after}"
        case AheadInLine(ahead):
            return f"nothing holds it back; {_count(ahead, 'run')} of its line {_go(ahead)} first"
        case PreviousLive(previous, live, overlap):
            waits = f"its schedule runs one at a time ({overlap})"
            return f"{waits}, and {_count(live, 'occurrence')} before it {_are(live)} live{_held(previous, live, '')}"
        case AwaitsSignal(name, key, until, since):
            limit = "" if until is None else f", until {_instant(until, now)} at the latest"
            return f"it waits for {_signal(name, key)} since {_instant(since, now)}{limit}"
        case Sleeping(until, since):
            return f"it sleeps since {_instant(since, now)}, until {_instant(until, now)}"
        case WaitsForTasks(upstreams, count):
            named = ", ".join(_upstream(each) for each in upstreams[:NAMED_MAX])
            more = count - min(len(upstreams), NAMED_MAX)
            return f"it depends on {_count(count, 'task')} that {_have(count)} not ended: {named}{_and_more(more)}"
        case InProgress(attempt, since, executor, progress):
            where = "" if executor is None else f" on {executor}"
            return f"attempt {attempt} since {_instant(since, now)}{where}{_progress(progress)}"
        case Ended(state, how, at, error, retried_as):
            because = "" if how == state else f" ({how})"
            retried = "" if retried_as is None else f"; retried as run {short(retried_as)}"
            return f"it ended at {_instant(at, now)}{because}{'' if error is None else f': {error}'}{retried}"
        case NotDecided(since, _):
            return f"in the inbox since {_instant(since, now)}, no engine has read it"
        case NoEngineRuns(at, crashed, pid, host):
            last = f"pid {pid} on {host}"
            ended = f"({last}) was last heard of" if crashed else f"({last}) ended"
            return f"no engine runs on this store; the last one {ended} at {_instant(at, now)}"
        case _:
            assert_never(reason)


def _release(release: Release, now: datetime) -> str:  # noqa: C901 - a case for each release
    match release:
        case AtInstant(at):
            return f"released in {_span(at - now)}"
        case ResumeScope(scope, name):
            return f"released when {_scope(scope, name)} is resumed"
        case RegisterHandler(handler, fitting):
            return f"released when a handler {handler!r} {'that they fit' if fitting else 'of that name'} is registered"
        case RunsEnd(runs, count):
            if len(runs) == 1:
                return f"released when run {short(runs[0])} ends"
            return f"released when {'all' if count == len(runs) else count} of them end"
        case TasksComplete(tasks, count):
            if count == 1:
                return f"released when task {short(tasks[0])} has completed"
            return f"released when all {count} of them have completed"
        case MoreSlots(kind, name):
            return f"released when {kind} {name!r} is given slots"
        case ItsTurn():
            return "released when the engine comes to it; there is nothing to do"
        case SignalComes(name, key, or_at):
            return (
                f"released when {_signal(name, key)} is sent{'' if or_at is None else f', or in {_span(or_at - now)}'}"
            )
        case StartEngine():
            return "released when an engine is started"
        case AskRetry(first):
            what = "" if first is None else f" of task {short(first)} with its dependents"
            return f"over; a retry{what} makes a new run in its place"
        case _:
            assert_never(release)


def _note(note: Note, now: datetime) -> str:
    match note:
        case Expires(at):
            return f"canceled if it has not started by {_instant(at, now)}"
        case HoldsKeys(keys):
            return f"holds {', '.join(f'key {key!r}' for key in keys)} while it waits"
        case AfterFailure(attempt, outcome, error, failures, max_attempts):
            said = outcome if error is None else f"{outcome} ({error})"
            return f"attempt {attempt} ended {said}; {failures} of at most {max_attempts} failures"
        case AskedToStop(at, by, how):
            return f"asked to stop at {_instant(at, now)}{_by(by)}{' by force' if how == 'kill' else ''}"
        case PastTimeout(since):
            return f"past its timeout since {_instant(since, now)}, and being stopped"
        case OfSchedule(name, rule, overlap, next_at, skipped, last_skip_at, retired_at):
            parts = [f"of schedule {name!r} ({rule}, overlap {overlap})" if name else f"of {rule}, overlap {overlap}"]
            parts += [] if next_at is None else [f"next at {_instant(next_at, now)}"]
            if skipped and last_skip_at is not None:
                counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
                parts.append(f"skipped so far: {counts}, latest at {_instant(last_skip_at, now)}")
            parts += [] if retired_at is None else [f"retired at {_instant(retired_at, now)}"]
            return "; ".join(parts)
        case _:
            assert_never(note)


# --- words ------------------------------------------------------------------------------------------------------


def _instant(at: datetime, now: datetime) -> str:
    return f"{at:%H:%M:%S}Z" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S}Z"


def _span(length: timedelta) -> str:
    return format_duration(max(0, timedelta_us(length)))


def _scope(scope: str, name: str) -> str:
    if scope == "engine":
        return "the engine"
    return f"task {name[-ID_DIGITS:]}" if scope == "task" else f"{scope} {name!r}"


def _signal(name: str, key: str | None) -> str:
    return f"signal {name!r}" if key is None else f"signal {name!r} of key {key!r}"


def _by(by: str) -> str:
    return f" (by {by})" if by else ""


def _held(holders: Sequence[UUID], count: int, by: str = " by") -> str:
    if not holders:
        return ""
    named = ", ".join(short(each) for each in holders[:NAMED_MAX])
    more = count - min(len(holders), NAMED_MAX)
    return f"{by or ':'} {'run' if count == 1 else 'runs'} {named}{_and_more(more)}"


def _upstream(upstream: Upstream) -> str:
    state = "" if upstream.state is None else f", {upstream.state}"
    return f"{short(upstream.task_id)} ({upstream.handler}{state})"


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _progress(progress: tuple[int, int | None, str] | None) -> str:
    if progress is None:
        return ""
    done, total, message = progress
    return f", {done}{'' if total is None else f' of {total}'}{f' ({message})' if message else ''} done"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _go(count: int) -> str:
    return "goes" if count == 1 else "go"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
