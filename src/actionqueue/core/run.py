"""The life of a run: its states, the one transition table, and ``RunInstance``, through which every run moves.

Knows: which state may follow which, and what must hold for an attempt to start and finish. Must not know: why a run
moves, what it waits for, or who is told; that is decided elsewhere and *carried out* here. No code outside this
module sets a state.

Theory of operation. A call checks its arguments first (``ValueError``: malformed id, number out of range), then the
state, then the attempt, and writes only when nothing was refused: a refused call changes nothing. An attempt is open
from ``start_attempt`` to ``finish_attempt`` and only in Running; leaving Running for anything but Canceled needs it
finished. The count of started attempts never goes back.

Built for a million live runs at 50,000 a second: a msgspec struct that the garbage collector does not visit (it
refers to bytes, ints and enum members only, so it can be in no cycle), ids kept as 16 bytes and turned into objects
when asked for, messages written only when something is refused. Enum members are hashed by identity, since ``Enum``
hashes in Python; the order of a *set* of states therefore differs between processes, so nothing may depend on it
(iterate over ``RunState`` instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NoReturn, Self

import msgspec

from actionqueue.core.errors import (
    AttemptAlreadyActive,
    AttemptCountOverflow,
    AttemptFinishRequiresRunning,
    AttemptInProgress,
    AttemptOwnershipMismatch,
    AttemptStartRequiresRunning,
    InvalidRunId,
    InvalidSubmission,
    InvalidTaskId,
    InvalidTransition,
    NoActiveAttempt,
    NotReschedulable,
    PriorityMutationRequiresReady,
    ReadyScheduledAtAfterCreatedAt,
)
from actionqueue.core.ids import NIL, AttemptId, IdLike, RunId, TaskId, fresh_id_bytes, id_bytes, nil_id
from actionqueue.core.instants import check_instant, shown

PRIORITY_MIN: Final = -(2**31)
PRIORITY_MAX: Final = 2**31 - 1
ATTEMPT_COUNT_MAX: Final = 2**32 - 1


class RunState(Enum):
    """Where a run is in its life. The values are what the store, JSON and the command line show.

    >>> RunState("retry_wait").is_terminal, RunState.COMPLETED.is_terminal
    (False, True)
    """

    SCHEDULED = "scheduled"
    READY = "ready"
    LEASED = "leased"
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    SUSPENDED = "suspended"
    AWAITING = "awaiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.value

    @property
    def is_terminal(self) -> bool:
        """Whether a run in this state has ended for good."""
        return not _SUCCESSORS[self]

    @staticmethod
    def transitions() -> Mapping[RunState, frozenset[RunState]]:
        """The transition table, read-only: every state with the states that may follow it.

        >>> RunState.LEASED in RunState.transitions()[RunState.READY]
        True
        """
        return TRANSITIONS

    @staticmethod
    def is_valid_transition(from_state: RunState, to_state: RunState) -> bool:
        """Whether ``to_state`` may follow ``from_state``; no state follows itself."""
        return is_valid_transition(from_state, to_state)


_SUCCESSORS: Final[dict[RunState, frozenset[RunState]]] = {
    RunState.SCHEDULED: frozenset({RunState.READY, RunState.CANCELED}),
    RunState.READY: frozenset({RunState.LEASED, RunState.CANCELED}),
    RunState.LEASED: frozenset({RunState.RUNNING, RunState.READY, RunState.CANCELED}),
    RunState.RUNNING: frozenset(
        {
            RunState.RETRY_WAIT,
            RunState.SUSPENDED,
            RunState.AWAITING,
            RunState.COMPLETED,
            RunState.FAILED,
            RunState.CANCELED,
        }
    ),
    RunState.RETRY_WAIT: frozenset({RunState.READY, RunState.FAILED, RunState.CANCELED}),
    RunState.SUSPENDED: frozenset({RunState.READY, RunState.CANCELED}),
    RunState.AWAITING: frozenset({RunState.READY, RunState.FAILED, RunState.CANCELED}),
    RunState.COMPLETED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELED: frozenset(),
}

TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = MappingProxyType(_SUCCESSORS)
"""The transition table, read-only."""

_READY: Final = RunState.READY
_RUNNING: Final = RunState.RUNNING
_CANCELED: Final = RunState.CANCELED


def is_valid_transition(from_state: RunState, to_state: RunState) -> bool:
    """Whether ``to_state`` may follow ``from_state``; no state follows itself.

    >>> is_valid_transition(RunState.SCHEDULED, RunState.READY)
    True
    """
    return to_state in _SUCCESSORS[from_state]


class RunInstance(msgspec.Struct, gc=False):
    """One scheduled occurrence of a task: the only way a run moves.

    Made by ``new_scheduled``, ``new_ready`` and their ``_with_id`` forms. Calling the class itself sets the fields
    unchecked; that form exists for msgspec, pickle and copy, and is not for use. Ids are given as text, ``uuid.UUID``
    or 16 bytes. Instants are microseconds since the epoch, 0 to 2**64 - 1; priorities 32-bit signed; counts 32-bit
    unsigned; anything else is a ``ValueError``. A refused call changes nothing. Equal by value, not hashable.

    >>> run = RunInstance.new_ready(TaskId.new(), scheduled_at=1_000, created_at=1_000, effective_priority=0)
    >>> run.transition_to(RunState.LEASED)
    >>> run.transition_to(RunState.RUNNING)
    >>> attempt = AttemptId.new()
    >>> run.start_attempt(attempt)
    >>> run.finish_attempt(attempt)
    >>> run.transition_to(RunState.COMPLETED)
    >>> run.is_terminal, run.attempt_count
    (True, 1)
    """

    _id: bytes
    _task_id: bytes
    _state: RunState
    _current_attempt_id: bytes | None
    _attempt_count: int
    _created_at: int
    _scheduled_at: int
    _effective_priority: int
    _last_state_change_at: int

    # --- construction --------------------------------------------------------------------------------------------

    @classmethod
    def new_scheduled(cls, task_id: IdLike, scheduled_at: int, created_at: int) -> Self:
        """A run in Scheduled with a fresh id. Raises ``InvalidTaskId`` for the nil id.

        >>> RunInstance.new_scheduled(TaskId.new(), scheduled_at=2_000, created_at=1_000).state
        <RunState.SCHEDULED: 'scheduled'>
        """
        return cls.new_scheduled_with_id(fresh_id_bytes(), task_id, scheduled_at, created_at)

    @classmethod
    def new_scheduled_with_id(cls, id: IdLike, task_id: IdLike, scheduled_at: int, created_at: int) -> Self:
        """A run in Scheduled with a given id (the engine, replay, restore).

        Raises ``InvalidRunId`` or ``InvalidTaskId`` for a nil id.
        """
        run_id, task = _run_id(id), _task_id(task_id)
        check_instant(scheduled_at, field="scheduled_at")
        check_instant(created_at, field="created_at")
        return cls(run_id, task, RunState.SCHEDULED, None, 0, created_at, scheduled_at, 0, created_at)

    @classmethod
    def new_ready(cls, task_id: IdLike, scheduled_at: int, created_at: int, effective_priority: int) -> Self:
        """A run in Ready with a fresh id; ``effective_priority``: larger goes first.

        Raises ``InvalidTaskId`` for the nil id, ``ReadyScheduledAtAfterCreatedAt`` when it is not due yet.

        >>> RunInstance.new_ready(TaskId.new(), scheduled_at=500, created_at=1_000, effective_priority=7).state
        <RunState.READY: 'ready'>
        """
        return cls.new_ready_with_id(fresh_id_bytes(), task_id, scheduled_at, created_at, effective_priority)

    @classmethod
    def new_ready_with_id(
        cls, id: IdLike, task_id: IdLike, scheduled_at: int, created_at: int, effective_priority: int
    ) -> Self:
        """A run in Ready with a given id (the engine, replay, restore).

        Raises ``InvalidRunId`` or ``InvalidTaskId`` for a nil id, ``ReadyScheduledAtAfterCreatedAt`` when it is not
        due yet.
        """
        run_id, task = _run_id(id), _task_id(task_id)
        check_instant(scheduled_at, field="scheduled_at")
        check_instant(created_at, field="created_at")
        _check_priority(effective_priority)
        if scheduled_at > created_at:
            raise _ready_too_early(run_id, scheduled_at, created_at)
        return cls(run_id, task, _READY, None, 0, created_at, scheduled_at, effective_priority, created_at)

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def id(self) -> RunId:
        """The run's id; it never changes."""
        return RunId(bytes=self._id)

    @property
    def id_bytes(self) -> bytes:
        """The run's id as the 16 bytes it is kept as."""
        return self._id

    @property
    def task_id(self) -> TaskId:
        """The id of the task this is a run of."""
        return TaskId(bytes=self._task_id)

    @property
    def task_id_bytes(self) -> bytes:
        """The task's id as the 16 bytes it is kept as."""
        return self._task_id

    @property
    def state(self) -> RunState:
        """The present state; moved by ``transition_to``."""
        return self._state

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended for good."""
        return not _SUCCESSORS[self._state]

    @property
    def current_attempt_id(self) -> AttemptId | None:
        """The id of the open attempt; None when none is open."""
        current = self._current_attempt_id
        return None if current is None else AttemptId(bytes=current)

    @property
    def current_attempt_id_bytes(self) -> bytes | None:
        """The open attempt's id as the 16 bytes it is kept as; None when none is open."""
        return self._current_attempt_id

    @property
    def attempt_count(self) -> int:
        """How many attempts were started, 0 to 2**32 - 1; never goes back."""
        return self._attempt_count

    @property
    def created_at(self) -> int:
        """The instant of creation."""
        return self._created_at

    @property
    def scheduled_at(self) -> int:
        """The instant from which the run is due."""
        return self._scheduled_at

    @property
    def effective_priority(self) -> int:
        """The priority it is dispatched with, 32-bit signed; larger goes first."""
        return self._effective_priority

    @property
    def last_state_change_at(self) -> int:
        """The instant last recorded by ``record_state_change_at``; at first the instant of creation."""
        return self._last_state_change_at

    # --- moving --------------------------------------------------------------------------------------------------

    def transition_to(self, state: RunState) -> None:
        """Move to ``state``; unless that is Running, no attempt is current afterwards.

        Raises ``InvalidTransition`` when the table has no such edge, ``AttemptInProgress`` on leaving Running for
        anything but Canceled while an attempt is open.
        """
        if state not in _SUCCESSORS[self._state]:
            raise _invalid_transition(self, state)
        if state is not _RUNNING and self._current_attempt_id is not None:
            if self._state is _RUNNING and state is not _CANCELED:
                raise _attempt_in_progress(self, state)
            self._current_attempt_id = None
        self._state = state

    def promote_to_ready(self) -> None:
        """Move to Ready. Raises ``InvalidTransition`` and ``AttemptInProgress`` like ``transition_to``."""
        self.transition_to(_READY)

    def promote_to_ready_with_priority(self, effective_priority: int) -> None:
        """Move to Ready and take ``effective_priority`` from now on. Raises as ``promote_to_ready`` does."""
        _check_priority(effective_priority)
        self.transition_to(_READY)
        self._effective_priority = effective_priority

    def set_effective_priority(self, effective_priority: int) -> None:
        """Change the priority of a Ready run. Raises ``PriorityMutationRequiresReady`` in any other state."""
        _check_priority(effective_priority)
        if self._state is not _READY:
            raise _priority_requires_ready(self)
        self._effective_priority = effective_priority

    def reschedule(self, scheduled_at: int) -> None:
        """Move the instant from which a Scheduled run is due. Raises ``NotReschedulable`` in any other state."""
        check_instant(scheduled_at, field="scheduled_at")
        if self._state is not RunState.SCHEDULED:
            raise _not_reschedulable(self)
        self._scheduled_at = scheduled_at

    def record_state_change_at(self, instant: int) -> None:
        """Stamp the last state change. That instants never decrease is up to the caller, who has the clock."""
        check_instant(instant)
        self._last_state_change_at = instant

    # --- attempts ------------------------------------------------------------------------------------------------

    def start_attempt(self, attempt_id: IdLike) -> None:
        """Open an attempt: it is counted and becomes the current one.

        Raises ``AttemptStartRequiresRunning`` outside Running, ``AttemptAlreadyActive`` while one is open,
        ``AttemptCountOverflow`` when 2**32 - 1 were started.
        """
        attempt = _attempt_id(attempt_id)
        if self._state is not _RUNNING or self._current_attempt_id is not None:
            _refuse_start(self, attempt)
        if self._attempt_count >= ATTEMPT_COUNT_MAX:
            raise _attempt_count_overflow(self)
        self._attempt_count += 1
        self._current_attempt_id = attempt

    def finish_attempt(self, attempt_id: IdLike) -> None:
        """Close the open attempt, which must be this one.

        Raises ``AttemptFinishRequiresRunning`` outside Running, ``NoActiveAttempt`` when none is open,
        ``AttemptOwnershipMismatch`` when another one is.
        """
        attempt = _attempt_id(attempt_id)
        if self._state is not _RUNNING or self._current_attempt_id != attempt:
            _refuse_finish(self, attempt)
        self._current_attempt_id = None

    def restore_attempt_state_for_bootstrap(self, count: int, active_attempt: IdLike | None) -> None:
        """Set the count and the open attempt directly; only for loading a stored run, after its transitions."""
        attempt = None if active_attempt is None else _attempt_id(active_attempt)
        if type(count) is not int or not 0 <= count <= ATTEMPT_COUNT_MAX:
            raise _out_of_range("count", count, "an int of 0 to 2**32 - 1")
        self._attempt_count = count
        self._current_attempt_id = attempt

    def __repr__(self) -> str:
        return (
            f"RunInstance(id={str(self.id)!r}, task_id={str(self.task_id)!r}, state={self._state},"
            f" current_attempt_id={_text_or_none(self.current_attempt_id)}, attempt_count={self._attempt_count},"
            f" created_at={self._created_at}, scheduled_at={self._scheduled_at},"
            f" effective_priority={self._effective_priority}, last_state_change_at={self._last_state_change_at})"
        )


# --- arguments ---------------------------------------------------------------------------------------------------


def _run_id(value: IdLike) -> bytes:
    raw = value if type(value) is bytes and len(value) == 16 else id_bytes(value, field="id")
    if raw == NIL:
        raise InvalidRunId("the run id is nil; give a RunId, e.g. RunId.new()", run_id=RunId(bytes=raw))
    return raw


def _task_id(value: IdLike) -> bytes:
    raw = value if type(value) is bytes and len(value) == 16 else id_bytes(value, field="task_id")
    if raw == NIL:
        raise InvalidTaskId("the task id is nil; give the id of a task", task_id=TaskId(bytes=raw))
    return raw


def _attempt_id(value: IdLike) -> bytes:
    raw = value if type(value) is bytes and len(value) == 16 else id_bytes(value, field="attempt_id")
    if raw == NIL:
        raise nil_id("attempt_id")
    return raw


def _check_priority(value: int) -> None:
    if type(value) is not int or not PRIORITY_MIN <= value <= PRIORITY_MAX:
        raise _out_of_range("effective_priority", value, "an int of -(2**31) to 2**31 - 1")


def _out_of_range(field: str, value: object, expected: str) -> InvalidSubmission:
    problem = f"{shown(value)} is not {expected}"
    return InvalidSubmission(f"{field}: {problem}", problems={field: problem})


# --- refusals ----------------------------------------------------------------------------------------------------


def _ready_too_early(run_id: bytes, scheduled_at: int, created_at: int) -> ReadyScheduledAtAfterCreatedAt:
    return ReadyScheduledAtAfterCreatedAt(
        f"a run due at {scheduled_at} cannot be created Ready at {created_at}; create it Scheduled",
        run_id=RunId(bytes=run_id),
        scheduled_at=scheduled_at,
        created_at=created_at,
    )


def _invalid_transition(run: RunInstance, to_state: RunState) -> InvalidTransition:
    legal = sorted(str(state) for state in _SUCCESSORS[run.state])
    reason = f"from there it can go to {', '.join(legal)}" if legal else "a run that has ended never moves again"
    return InvalidTransition(
        f"run {run.id} cannot go from {run.state} to {to_state}; {reason}",
        run_id=run.id,
        from_state=run.state,
        to_state=to_state,
    )


def _attempt_in_progress(run: RunInstance, to_state: RunState) -> AttemptInProgress:
    active = run.current_attempt_id
    return AttemptInProgress(
        f"run {run.id} cannot go from {run.state} to {to_state} while its attempt {active} is open; finish it first",
        run_id=run.id,
        from_state=run.state,
        to_state=to_state,
        active_attempt_id=active,
    )


def _priority_requires_ready(run: RunInstance) -> PriorityMutationRequiresReady:
    return PriorityMutationRequiresReady(
        f"run {run.id} is {run.state}; its effective priority can be set only while it is ready",
        run_id=run.id,
        current_state=run.state,
    )


def _not_reschedulable(run: RunInstance) -> NotReschedulable:
    return NotReschedulable(
        f"run {run.id} is {run.state}; it can be given another instant only while it is scheduled",
        run_id=run.id,
        current_state=run.state,
        scheduled_at=run.scheduled_at,
    )


def _refuse_start(run: RunInstance, attempt_id: bytes) -> NoReturn:
    attempt, active = AttemptId(bytes=attempt_id), run.current_attempt_id
    if run.state is not _RUNNING:
        raise AttemptStartRequiresRunning(
            f"run {run.id} is {run.state}; an attempt starts only while it is running",
            run_id=run.id,
            current_state=run.state,
            attempt_id=attempt,
        )
    raise AttemptAlreadyActive(
        f"run {run.id} has attempt {active} open; finish it before starting {attempt}",
        run_id=run.id,
        active_attempt_id=active,
        attempt_id=attempt,
    )


def _attempt_count_overflow(run: RunInstance) -> AttemptCountOverflow:
    return AttemptCountOverflow(
        f"run {run.id} has started {run.attempt_count} attempts, the most that can be counted",
        run_id=run.id,
        attempt_count=run.attempt_count,
    )


def _refuse_finish(run: RunInstance, attempt_id: bytes) -> NoReturn:
    attempt, active = AttemptId(bytes=attempt_id), run.current_attempt_id
    if run.state is not _RUNNING:
        raise AttemptFinishRequiresRunning(
            f"run {run.id} is {run.state}; an attempt finishes only while it is running",
            run_id=run.id,
            current_state=run.state,
            attempt_id=attempt,
        )
    if active is None:
        raise NoActiveAttempt(
            f"run {run.id} has no open attempt; {attempt} was never started or is already finished",
            run_id=run.id,
            attempt_id=attempt,
        )
    raise AttemptOwnershipMismatch(
        f"run {run.id} has attempt {active} open, not {attempt}; only the open attempt can be finished",
        run_id=run.id,
        expected_attempt_id=active,
        actual_attempt_id=attempt,
    )


def _text_or_none(value: AttemptId | None) -> str:
    return "None" if value is None else repr(str(value))
