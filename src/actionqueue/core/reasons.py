"""The kinds of place a live run can be in, and typed answers to why it is not running, with what would release each.

Knows: the words. Must not know: who is where, and why; the guards in ``core/places.py`` do, and ``core/why.py`` makes the
answers of theirs. They are public, so ids and instants are in the forms that users see. ``release_of`` is the one place
where a reason is given its release; ``core/sentences.py`` says both in words.
"""

from __future__ import annotations

import enum
import re
from datetime import datetime
from typing import assert_never

from msgspec import Struct

from actionqueue.core.ids import RunId, TaskId


class Where(enum.Enum):
    """The kinds of place; the value is for rows and reprs."""

    NOWHERE = 0
    TIMER = 1
    HELD = 2
    LANE = 3
    MISFIT = 4
    QUARANTINE = 5
    RUNNING = 6
    OVERLAP = 7
    DEPENDENCY = 8
    AWAITING = 9


WAITS = "dependency"
"""The reason of a run that waits for the tasks its task depends on."""


def canceled_by(origin: bytes) -> str:
    """The reason of a run canceled because its task depended, at whatever remove, on ``origin``, which ended badly."""
    return f"{WAITS}:{TaskId(bytes=origin)}"


def origin_in(reason: str) -> bytes | None:
    """The origin that such a reason names."""
    head, _, named = reason.partition(":")
    return TaskId.parse(named).bytes if head == WAITS and named else None


def snake(name: str) -> str:
    """The tag of a class in JSON.

    >>> snake("KeyHeld")
    'key_held'
    """
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


# --- reasons ----------------------------------------------------------------------------------------------------


class NotYetDue(Struct, frozen=True, tag=snake):
    """Scheduled, or (``backing_off``) waiting to be tried again, until an instant."""

    until: datetime
    backing_off: bool


class Paused(Struct, frozen=True, tag=snake):
    """Under a pause of ``scope`` (engine, queue, handler or task) since ``at``, set by ``by``."""

    scope: str
    name: str
    at: datetime
    by: str


class HandlerMissing(Struct, frozen=True, tag=snake):
    """No handler of this name is registered with the engine."""

    handler: str


class ArgumentsMisfit(Struct, frozen=True, tag=snake):
    """The stored arguments do not fit the registered handler."""

    handler: str


class NoFreeSlot(Struct, frozen=True, tag=snake):
    """The slots of a ``kind`` (queue, executor or handler) are taken: ``taken`` of ``capacity``, by these runs first."""

    kind: str
    name: str
    capacity: int
    taken: int
    holders: tuple[RunId, ...]


class KeyHeld(Struct, frozen=True, tag=snake):
    """As many runs as may hold a key do: ``taken`` of ``capacity``, these first."""

    key: str
    capacity: int
    taken: int
    holders: tuple[RunId, ...]


class RateLimited(Struct, frozen=True, tag=snake):
    """A rate of ``count`` in ``per_us`` microseconds, ``burst`` at once, has no token left until an instant."""

    key: str
    count: int
    per_us: int
    burst: int
    until: datetime


class TakesItsTurn(Struct, frozen=True, tag=snake):
    """Was live in two crashes in a row: such runs are started one at a time, and ``holder`` is running now."""

    holder: RunId | None


class AheadInLine(Struct, frozen=True, tag=snake):
    """Nothing holds it back; ``ahead`` runs of its line go first."""

    ahead: int


class PreviousLive(Struct, frozen=True, tag=snake):
    """An occurrence of a schedule that is due, and waits for the ``live`` ones before it, these first."""

    previous: tuple[RunId, ...]
    live: int
    overlap: str


class AwaitsSignal(Struct, frozen=True, tag=snake):
    """Waits for a signal of that name and key since ``since``, until ``until`` at the latest (None: for ever)."""

    name: str
    key: str | None
    until: datetime | None
    since: datetime


class Sleeping(Struct, frozen=True, tag=snake):
    """Its handler sleeps until then, without holding a worker."""

    until: datetime
    since: datetime


class Upstream(Struct, frozen=True):
    """A task that another one waits for, and its newest live run."""

    task_id: TaskId
    handler: str
    run_id: RunId | None
    state: str | None


class WaitsForTasks(Struct, frozen=True, tag=snake):
    """``count`` of the tasks that its task depends on have not ended, these first."""

    upstreams: tuple[Upstream, ...]
    count: int


class InProgress(Struct, frozen=True, tag=snake):
    """Attempt number ``attempt`` has been running since ``since``, on ``executor`` (None: of a process that is gone)."""

    attempt: int
    since: datetime
    executor: str | None
    progress: tuple[int, int | None, str] | None = None


class Ended(Struct, frozen=True, tag=snake):
    """It has ended in ``state``, because of ``how``; ``retried_as`` is the run that was asked for in its place."""

    state: str
    how: str
    at: datetime
    error: str | None = None
    retried_as: RunId | None = None


class NotDecided(Struct, frozen=True, tag=snake):
    """The submission is in the inbox since ``since``, and no engine has read it."""

    since: datetime
    has_engine: bool


class NoEngineRuns(Struct, frozen=True, tag=snake):
    """No engine runs on the store. The last one ended at ``at``, or (``crashed``) was last heard of then."""

    at: datetime
    crashed: bool
    pid: int
    host: str


Reason = (
    NotYetDue
    | Paused
    | HandlerMissing
    | ArgumentsMisfit
    | NoFreeSlot
    | KeyHeld
    | RateLimited
    | TakesItsTurn
    | AheadInLine
    | PreviousLive
    | AwaitsSignal
    | Sleeping
    | WaitsForTasks
    | InProgress
    | Ended
    | NotDecided
    | NoEngineRuns
)


# --- releases ---------------------------------------------------------------------------------------------------


class AtInstant(Struct, frozen=True, tag=snake):
    """Time passes until ``at``."""

    at: datetime


class ResumeScope(Struct, frozen=True, tag=snake):
    """The pause of that scope is lifted."""

    scope: str
    name: str


class RegisterHandler(Struct, frozen=True, tag=snake):
    """A handler of that name is registered; ``fitting``: one that the stored arguments fit."""

    handler: str
    fitting: bool


class RunsEnd(Struct, frozen=True, tag=snake):
    """``count`` of these runs end; a key is given back, too, in a state over which it is not held."""

    runs: tuple[RunId, ...]
    count: int


class TasksComplete(Struct, frozen=True, tag=snake):
    """``count`` tasks end, all their runs completed, these among them."""

    tasks: tuple[TaskId, ...]
    count: int


class MoreSlots(Struct, frozen=True, tag=snake):
    """The capacity of a ``kind`` is raised: it is 0."""

    kind: str
    name: str


class ItsTurn(Struct, frozen=True, tag=snake):
    """The engine comes to it; nothing needs to be done."""


class SignalComes(Struct, frozen=True, tag=snake):
    """A signal of that name and key is sent, or (``or_at``) time passes until then."""

    name: str
    key: str | None
    or_at: datetime | None


class StartEngine(Struct, frozen=True, tag=snake):
    """An engine is started on the store."""


class AskRetry(Struct, frozen=True, tag=snake):
    """Nothing releases what has ended; a retry makes a new run in its place.

    Where it was canceled because the task ``first`` did not complete, a retry of that one with its dependents does.
    """

    first: TaskId | None = None


Release = (
    AtInstant
    | ResumeScope
    | RegisterHandler
    | RunsEnd
    | TasksComplete
    | MoreSlots
    | ItsTurn
    | SignalComes
    | StartEngine
    | AskRetry
)


def release_of(reason: Reason) -> Release | None:  # noqa: C901 - a case for each reason
    """What would release it; None where there is nothing to release (it runs, or is done)."""
    match reason:
        case NotYetDue(until) | RateLimited(until=until) | Sleeping(until):
            return AtInstant(until)
        case Paused(scope, name):
            return ResumeScope(scope, name)
        case HandlerMissing(handler):
            return RegisterHandler(handler, fitting=False)
        case ArgumentsMisfit(handler):
            return RegisterHandler(handler, fitting=True)
        case NoFreeSlot(kind, name, 0):
            return MoreSlots(kind, name)
        case NoFreeSlot(capacity=capacity, taken=taken, holders=holders) | KeyHeld(_, capacity, taken, holders):
            return RunsEnd(holders, max(1, taken - capacity + 1))
        case TakesItsTurn(holder):
            return ItsTurn() if holder is None else RunsEnd((holder,), 1)
        case PreviousLive(previous, live):
            return RunsEnd(previous, live)
        case AwaitsSignal(name, key, until):
            return SignalComes(name, key, until)
        case WaitsForTasks(upstreams, count):
            return TasksComplete(tuple([each.task_id for each in upstreams]), count)
        case AheadInLine() | NotDecided(has_engine=True):
            return ItsTurn()
        case NoEngineRuns() | NotDecided():
            return StartEngine()
        case Ended(state="failed" | "canceled", how=how, retried_as=None):
            origin = origin_in(how)
            return AskRetry(None if origin is None else TaskId(bytes=origin))
        case Ended() | InProgress():
            return None
        case _:
            assert_never(reason)


# --- what else there is to know ---------------------------------------------------------------------------------


class Expires(Struct, frozen=True, tag=snake):
    """It is canceled when it has not started by then."""

    at: datetime


class HoldsKeys(Struct, frozen=True, tag=snake):
    """It holds these keys while it waits."""

    keys: tuple[str, ...]


class AfterFailure(Struct, frozen=True, tag=snake):
    """Its latest attempt ended so; ``failures`` of at most ``max_attempts`` count."""

    attempt: int
    outcome: str
    error: str | None
    failures: int
    max_attempts: int


class AskedToStop(Struct, frozen=True, tag=snake):
    """It is running, and was asked to stop (``how``: cancel or kill)."""

    at: datetime
    by: str
    how: str


class PastTimeout(Struct, frozen=True, tag=snake):
    """It is running past its timeout, and being stopped."""

    since: datetime


class OfSchedule(Struct, frozen=True, tag=snake):
    """It is an occurrence of a schedule. ``skipped`` counts, by reason, those that did not happen."""

    name: str
    rule: str
    overlap: str
    next_at: datetime | None
    skipped: dict[str, int]
    last_skip_at: datetime | None
    retired_at: datetime | None


Note = Expires | HoldsKeys | AfterFailure | AskedToStop | PastTimeout | OfSchedule
