"""Every error ActionQueue raises, as one tree.

A refusal is a *value*: the core returns one of these, the surface that sent the command raises it. Each has a stable
``code`` (what programs match on), a message that says what is wrong and what to do, and the facts it speaks of as
attributes and in ``facts``. They cross process borders as ``(code, message, facts)`` and can be pickled. The facts that
a class declares are there whenever the error says something about them.

::

    ActionQueueError
    ├── RunInstanceConstructionError        InvalidRunId · InvalidTaskId · ReadyScheduledAtAfterCreatedAt
    ├── RunInstanceError                    InvalidTransition · AttemptInProgress · PriorityMutationRequiresReady ·
    │                                       AttemptStartRequiresRunning · AttemptAlreadyActive · AttemptCountOverflow ·
    │                                       AttemptFinishRequiresRunning · NoActiveAttempt · AttemptOwnershipMismatch
    ├── Refused                             a command that was refused; nothing was written
    │   ├── InvalidSubmission               (also a ValueError)  names every problem with its field
    │   │   └── InvalidArguments · InvalidDuration · InvalidInstant
    │   ├── LimitExceeded                   PayloadTooLarge · StepTooLarge · Overloaded
    │   ├── NotFound                        UnknownTask · UnknownRun
    │   ├── Conflict                        IdempotencyConflict · AlreadyTerminal · StaleReport ·
    │   │                                   NotReschedulable · NotRetryable · SignalConflict · ManyRuns · DependencyCycle
    │   └── DuplicateHandler
    ├── StoreError                          StoreHeld · StoreUnavailable · CommitUnknown · StoreDamaged · NotAStore ·
    │                                       StoreTooNew · StoreReadOnly · NetworkFileSystem · EpochLost
    ├── UsageError                          UsedAfterFork · SyncCallOnHandlerLoop · WaitInHandler · DuplicateStep ·
    │                                       NotRunning · NoEngine · NotYetAResult
    ├── SignalTimeout                       a signal that a handler waited for did not come in time
    └── RunFailed                           the run a caller waits for ended without a result; RunCanceled
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from actionqueue.core.ids import AttemptId, RunId, TaskId
    from actionqueue.core.run import RunState


class ActionQueueError(Exception):
    """Base of every error of this package.

    ``code`` is stable across releases; ``message`` says what is wrong and what to do; ``facts`` are the values it
    speaks of, each also an attribute.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "", /, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(kind: type[ActionQueueError], message: str, facts: dict[str, object]) -> ActionQueueError:
    return kind(message, **facts)


# --- RunInstance -------------------------------------------------------------------------------------------------


class RunInstanceConstructionError(ActionQueueError):
    """A ``RunInstance`` could not be built from these values."""

    code = "run_construction"


class InvalidRunId(RunInstanceConstructionError):
    """The run id is nil."""

    code = "invalid_run_id"
    run_id: RunId


class InvalidTaskId(RunInstanceConstructionError):
    """The task id is nil."""

    code = "invalid_task_id"
    task_id: TaskId


class ReadyScheduledAtAfterCreatedAt(RunInstanceConstructionError):
    """A run cannot be created Ready before it is due."""

    code = "ready_scheduled_at_after_created_at"
    run_id: RunId
    scheduled_at: int
    created_at: int


class RunInstanceError(ActionQueueError):
    """A ``RunInstance`` refused a call; it is unchanged."""

    code = "run_instance"
    run_id: RunId


class InvalidTransition(RunInstanceError):
    """The transition table has no such edge."""

    code = "invalid_transition"
    from_state: RunState
    to_state: RunState


class AttemptInProgress(RunInstanceError):
    """The run cannot leave Running while its attempt is open."""

    code = "attempt_in_progress"
    from_state: RunState
    to_state: RunState
    active_attempt_id: AttemptId


class PriorityMutationRequiresReady(RunInstanceError):
    """The effective priority can be set only while the run is Ready."""

    code = "priority_mutation_requires_ready"
    current_state: RunState


class AttemptStartRequiresRunning(RunInstanceError):
    """An attempt starts only in Running."""

    code = "attempt_start_requires_running"
    current_state: RunState
    attempt_id: AttemptId


class AttemptAlreadyActive(RunInstanceError):
    """The run has an open attempt."""

    code = "attempt_already_active"
    active_attempt_id: AttemptId
    attempt_id: AttemptId


class AttemptCountOverflow(RunInstanceError):
    """The attempt count is at 2**32 - 1."""

    code = "attempt_count_overflow"
    attempt_count: int


class AttemptFinishRequiresRunning(RunInstanceError):
    """An attempt finishes only in Running."""

    code = "attempt_finish_requires_running"
    current_state: RunState
    attempt_id: AttemptId


class NoActiveAttempt(RunInstanceError):
    """There is no open attempt to finish."""

    code = "no_active_attempt"
    attempt_id: AttemptId


class AttemptOwnershipMismatch(RunInstanceError):
    """Another attempt is the open one."""

    code = "attempt_ownership_mismatch"
    expected_attempt_id: AttemptId
    actual_attempt_id: AttemptId


# --- refused commands --------------------------------------------------------------------------------------------


class Refused(ActionQueueError):
    """A command was refused. Nothing was written."""

    code = "refused"


class InvalidSubmission(Refused, ValueError):
    """What was given is not valid; ``problems`` maps each field to what is wrong with it."""

    code = "invalid_submission"
    problems: dict[str, str]


class InvalidArguments(InvalidSubmission):
    """The arguments do not fit the handler's signature."""

    code = "invalid_arguments"


class InvalidDuration(InvalidSubmission):
    """Not a duration (timedelta, seconds, or text such as "15m")."""

    code = "invalid_duration"


class InvalidInstant(InvalidSubmission):
    """Not an instant (an aware datetime up to the year 9999)."""

    code = "invalid_instant"


class LimitExceeded(Refused):
    """A named limit was reached; ``limit`` names it, ``maximum`` is its value."""

    code = "limit_exceeded"
    limit: str
    maximum: int


class PayloadTooLarge(LimitExceeded):
    """The encoded arguments are larger than ``payload_bytes_max``."""

    code = "payload_too_large"


class StepTooLarge(LimitExceeded):
    """The result of a durable step is larger than may be recorded."""

    code = "step_too_large"


class Overloaded(LimitExceeded):
    """Too many live runs, or too many commands waiting. Try again later."""

    code = "overloaded"


class NotFound(Refused, LookupError):
    """There is no such thing in this store."""

    code = "not_found"


class UnknownTask(NotFound):
    """No task has this id (never submitted, or pruned)."""

    code = "unknown_task"
    task_id: TaskId


class UnknownRun(NotFound):
    """No run has this id (never created, or pruned)."""

    code = "unknown_run"
    run_id: RunId


class BeyondLog(NotFound):
    """The log does not reach back to that instant; ``begins_at`` is where it begins (None: nothing was ever logged)."""

    code = "beyond_log"
    begins_at: str | None


class Conflict(Refused):
    """The command does not fit the present state."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """The key (or task id) is taken by a task with other content; ``task_id`` is the existing one."""

    code = "idempotency_conflict"
    task_id: TaskId
    key: str | None


class AlreadyTerminal(Conflict):
    """The run has ended (``state`` says how), or the task has."""

    code = "already_terminal"
    run_id: RunId
    task_id: TaskId
    state: str


class StaleReport(Conflict):
    """The report is of an attempt that no longer holds the run (its fence is old)."""

    code = "stale_report"
    run_id: RunId
    attempt_id: AttemptId


class NotReschedulable(Conflict):
    """Only a Scheduled or RetryWait run can be rescheduled."""

    code = "not_reschedulable"
    run_id: RunId


class NotRetryable(Conflict):
    """Only a Failed or Canceled run can be retried."""

    code = "not_retryable"
    run_id: RunId


class SignalConflict(Conflict):
    """A signal of that id is kept, with another name, key or payload."""

    code = "signal_conflict"
    signal_id: str


class ManyRuns(Conflict):
    """The task has more than one run; ask its runs instead."""

    code = "many_runs"
    task_id: TaskId


class DependencyCycle(Conflict):
    """Tasks would wait for each other for ever; ``path`` are their ids, from one of them back to itself."""

    code = "dependency_cycle"
    path: str


class DuplicateHandler(Refused):
    """Another function is registered under this name."""

    code = "duplicate_handler"
    name: str
    existing: str


# --- the store ---------------------------------------------------------------------------------------------------


class StoreError(ActionQueueError):
    """Something about the store or the environment; not the caller's input."""

    code = "store_error"


class StoreHeld(StoreError):
    """Another engine holds the store: ``pid``, ``host``, ``since``."""

    code = "store_held"
    path: str
    pid: int
    host: str
    since: str


class StoreUnavailable(StoreError):
    """The store cannot be written now (busy, disk full); what waits is kept and tried again."""

    code = "store_unavailable"
    cause: str


class CommitUnknown(StoreError):
    """The commit failed while syncing: whether it took is unknown. Submit again with the same ids."""

    code = "commit_unknown"


class StoreDamaged(StoreError):
    """Bytes in the store are not what was written; ``place`` says where. See ``verify`` and ``restore``."""

    code = "store_damaged"
    place: str


class NotAStore(StoreError):
    """The file exists and is not an ActionQueue store."""

    code = "not_a_store"


class StoreTooNew(StoreError):
    """The store was written by a newer version; nothing was touched."""

    code = "store_too_new"


class StoreReadOnly(StoreError):
    """The file or its directory cannot be written; reading works, an engine does not."""

    code = "store_read_only"


class NetworkFileSystem(StoreError):
    """The store lies on a network file system, whose locks cannot be trusted."""

    code = "network_file_system"


class EpochLost(StoreError):
    """Another engine has taken the store over; this one has stopped writing."""

    code = "epoch_lost"


# --- use ---------------------------------------------------------------------------------------------------------


class UsageError(ActionQueueError):
    """The call is not possible here."""

    code = "usage"


class UsedAfterFork(UsageError):
    """The object was open when the process forked; open it again in the child."""

    code = "used_after_fork"


class SyncCallOnHandlerLoop(UsageError):
    """A call that waits was made on the loop it would block; ``twin`` names the call to await."""

    code = "sync_call_on_handler_loop"
    twin: str


class WaitInHandler(UsageError):
    """A handler may not wait for another task's result."""

    code = "wait_in_handler"


class DuplicateStep(UsageError):
    """A step or wait of that name was asked for before in the same attempt."""

    code = "duplicate_step"
    name: str


class NotRunning(UsageError):
    """The queue has no engine here and none can be reached."""

    code = "not_running"


class NotYetAResult(UsageError, TypeError):
    """``handle.output`` stands for a result that is not there yet: it can be passed on as an argument, and no more."""

    code = "not_yet_a_result"


class NoEngine(UsageError):
    """No engine runs on the store, so nothing will happen until one is started."""

    code = "no_engine"


class SignalTimeout(ActionQueueError):
    """The signal that a handler waited for did not come in time."""

    code = "signal_timeout"
    signal: str


class RunFailed(ActionQueueError):
    """The awaited run ended in Failed; ``run_id``, ``reason``, ``error_class``, ``error_message``, ``traceback``."""

    code = "run_failed"
    run_id: RunId
    task_id: TaskId
    reason: str
    error_class: str | None
    error_message: str | None
    traceback: str | None


class RunCanceled(RunFailed):
    """The awaited run ended in Canceled; ``reason`` says why."""

    code = "run_canceled"


def error_kinds() -> dict[str, type[ActionQueueError]]:
    """Every error class by its code (for decoding errors that crossed a process border)."""
    kinds: dict[str, type[ActionQueueError]] = {}
    stack: list[type[ActionQueueError]] = [ActionQueueError]
    while stack:
        kind = stack.pop()
        kinds.setdefault(kind.code, kind)
        stack.extend(kind.__subclasses__())
    return kinds
