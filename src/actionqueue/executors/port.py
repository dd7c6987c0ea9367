"""What the engine asks of an executor, and what an executor tells it.

The engine hands over *assignments* (one attempt each) and never more of them than the executor has slots for. The
executor runs each, and reports its end once, as a ``Finish`` command through its ``sink``, when the code has really
ended (returned, raised, or its process died). The engine decides what an end means, watches timeouts, and calls
``stop``; an executor only stops code as far as it can:

========  ==========================================  ================================================
executor  ``stop(force=False)``                       ``stop(force=True)``
========  ==========================================  ================================================
async     the asyncio task is cancelled               the same
thread    the token is set                            the same (a thread cannot be ended by force)
process   SIGTERM, and SIGKILL after a short grace    SIGKILL
========  ==========================================  ================================================

When the engine gives up on code that does not end (``abandon``), the executor forgets the attempt: it reports nothing
for it any more, and replaces what it blocked (a stuck thread), so that the slot is really free.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.steps import RecordStep
from actionqueue.executors.texts import cut

PROGRESS_COUNT_MAX = 2**63
PROGRESS_MESSAGE_CHARACTERS_MAX = 1_000
"""The message of a progress report; what is longer is cut."""

STOP_TIMEOUT = "timed_out"
STOP_CANCEL = "canceled"
STOP_DRAIN = "interrupted"
"""Why code is being stopped; the outcome that follows when the code then ends without a value."""


class Runnable(Protocol):
    """A registered handler, as executors see it."""

    name: str
    is_async: bool
    result_bytes_max: int
    no_retry_on: tuple[type[BaseException], ...]
    locator: str
    """``module:qualname`` of the function, for worker processes."""

    def bind(self, assignment: Assignment, control: AttemptControl) -> Callable[[], Any]:
        """Decode the arguments; calling the answer runs the handler (for an async one: makes its coroutine).

        Raises ``Misfit`` when the stored arguments do not fit the handler's signature.
        """
        ...

    def encode(self, value: Any) -> bytes | None:
        """The result as bytes (None for ``None``); raises what the encoder raises."""
        ...


class Misfit(Exception):
    """The stored arguments do not fit the handler that is registered now."""


Record = tuple[str, str, bytes]
"""(name, kind, body) of something a retry chain has recorded."""


class Assignment(Struct):
    """One attempt to run."""

    run_id: bytes
    attempt_id: bytes
    fence: int
    task_id: bytes
    runnable: Runnable
    payload: bytes
    attempt_number: int
    failure_count: int
    max_attempts: int
    token: bytes
    scheduled_at: int
    started_at: int
    timeout_us: int | None = None
    metadata: dict[str, Any] | None = None
    payload_digest: bytes = b""
    records: list[Record] | None = None
    """What earlier attempts of the retry chain have recorded: results of steps, waits that are over."""


Ask = Callable[[RecordStep, Callable[[Any], None]], None]
"""Sends a command; the second is called with its reply once it is durable, or with the refusal, from any thread."""


class AttemptControl:
    """The line between a running attempt and whoever wants it stopped; shared with the handler's context."""

    __slots__ = (
        "ask",
        "assignment",
        "canceled",
        "emit",
        "is_alone",
        "late_us",
        "memory",
        "misused",
        "pump",
        "reason",
        "resources",
        "stop_hooks",
    )  # fmt: skip

    def __init__(
        self,
        assignment: Assignment,
        emit: Callable[[Progress], None] | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.assignment = assignment
        self.canceled = False
        self.reason: str | None = None
        self.misused: str | None = None
        """Set when a control exception was raised (Snooze, RetryAfter, a wait); a handler that swallows it is found
        out."""
        self.ask = ask
        """Has something recorded; None where nothing can be (any more)."""
        self.is_alone = False
        """No engine stands behind it: steps are done, and recorded nowhere."""
        self.pump: Callable[[], None] | None = None
        """Where no other thread answers: called to have what was asked answered."""
        self.memory: Any = None
        """What was recorded and asked for, while the handler has steps or waits (``executors/memory.py``)."""
        self.late_us = 0
        """How long after its start the handler was called, where its timeout counts from the call."""
        self.emit = emit
        self.resources: Any = None
        """What the queue's ``resources`` gave where this attempt runs; set by executors that enter it."""
        self.stop_hooks: list[Callable[[], None]] = []

    def request_stop(self, reason: str) -> None:
        """Ask the code to stop; the first reason stays."""
        if self.reason is None:
            self.reason = reason
        self.canceled = True
        for hook in self.stop_hooks:
            hook()

    def report_progress(self, done: int, total: int | None, message: str) -> None:
        """Pass progress on to the engine. Counts are whole numbers in [0, 2^63); anything else raises."""
        for count in (done, total):
            if count is not None and not isinstance(count, int):
                raise TypeError(f"progress counts in whole numbers, not {count!r}")
            if count is not None and not 0 <= count < PROGRESS_COUNT_MAX:
                raise ValueError(f"progress counts from 0 to 2^63, not {count}")
        if self.emit is not None:
            a = self.assignment
            text = cut(str(message), PROGRESS_MESSAGE_CHARACTERS_MAX)
            self.emit(Progress(a.run_id, a.attempt_id, a.fence, done, total, text))


current_attempt: contextvars.ContextVar[AttemptControl | None] = contextvars.ContextVar(
    "actionqueue_attempt", default=None
)
"""The attempt whose handler is running in this context: for log records, and to refuse waiting inside a handler."""


class Called(Struct):
    """The handler of an attempt is called now; its timeout counts from here. In memory only, nothing is recorded."""

    run_id: bytes
    attempt_id: bytes
    fence: int


class Asked(Struct):
    """A command of an attempt's handler, and who is told the reply once it is durable (or the refusal), from any thread."""

    command: RecordStep
    settle: Callable[[Any], None]


Report = Finish | Progress | Called | Asked
Sink = Callable[[Sequence[Report]], None]


class Executor(Protocol):
    """Runs attempts of one kind."""

    name: str
    slots: int
    tells_calls: bool
    """Whether it reports ``Called`` for attempts with a timeout, because getting ready for one may take a while. It must
    then end those whose handler it never comes to call. Otherwise a timeout counts from the attempt's start."""

    def begin(self, sink: Sink) -> None:
        """Get ready; every report goes to ``sink``, which may be called from any thread and never blocks."""
        ...

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Run these; called from the engine's threads, returns at once."""
        ...

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """Stop one attempt's code as far as possible; unknown ids are ignored (it ended meanwhile)."""
        ...

    def abandon(self, attempt_id: bytes) -> None:
        """Forget an attempt whose code does not end, and free what it blocks."""
        ...

    def running(self) -> list[bytes]:
        """The attempts whose code has not ended."""
        ...

    def close(self, timeout_s: float) -> None:
        """End everything that still runs, by force where possible; returns within about the timeout."""
        ...
