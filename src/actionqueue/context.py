"""What a handler sees of its run: who it is, how often it was tried, whether it should stop, and how far it is.

A parameter annotated ``Context`` is injected. Written ``*, ctx: Context = CONTEXT`` type checkers let calls omit it.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any, cast

from actionqueue.core.ids import AttemptId, RunId, TaskId
from actionqueue.core.instants import parse_duration_us, to_datetime
from actionqueue.durable import Durable
from actionqueue.executors.endings import RetryAfter as _RetryAfter
from actionqueue.executors.endings import Snooze as _Snooze
from actionqueue.executors.endings import StopRequested
from actionqueue.executors.port import AttemptControl, current_attempt

handler_logger = logging.getLogger("actionqueue.handlers")


class Context(Durable):
    """The running attempt, as its handler sees it.

    Its properties do not change while it runs, but for ``canceled`` and ``cancel_reason``. ``resources`` is the value
    of the queue's ``resources=``, None without.

    >>> from actionqueue import CONTEXT, ActionQueue, Context
    >>> queue = ActionQueue(":memory:")
    >>> @queue.task
    ... def resize(path: str, *, ctx: Context = CONTEXT) -> int:
    ...     return ctx.attempt_number
    """

    __slots__ = ("_control", "resources")

    def __init__(self, control: AttemptControl, resources: Any = None) -> None:
        self._control = control
        self.resources = resources

    @property
    def task_id(self) -> TaskId:
        """The task's id."""
        return TaskId(bytes=self._control.assignment.task_id)

    @property
    def run_id(self) -> RunId:
        """The run's id; the same in every attempt."""
        return RunId(bytes=self._control.assignment.run_id)

    @property
    def attempt_id(self) -> AttemptId:
        """This attempt's id."""
        return AttemptId(bytes=self._control.assignment.attempt_id)

    @property
    def attempt_number(self) -> int:
        """How many attempts of the run have started, this one included (from 1)."""
        return self._control.assignment.attempt_number

    @property
    def failure_count(self) -> int:
        """How many attempts have counted toward ``max_attempts`` so far."""
        return self._control.assignment.failure_count

    @property
    def max_attempts(self) -> int:
        """How many counted attempts the run has."""
        return self._control.assignment.max_attempts

    @property
    def idempotency_token(self) -> str:
        """What to give the outside world so that a side effect happens once: the first run's id of the retry chain."""
        return str(RunId(bytes=self._control.assignment.token))

    @property
    def scheduled_at(self) -> datetime:
        """When the run was due."""
        return to_datetime(self._control.assignment.scheduled_at)

    @property
    def deadline(self) -> datetime | None:
        """When this attempt times out, if it has a timeout."""
        a = self._control.assignment
        return None if a.timeout_us is None else to_datetime(a.started_at + self._control.late_us + a.timeout_us)

    @property
    def metadata(self) -> dict[str, Any]:
        """The task's metadata."""
        return self._control.assignment.metadata or {}

    @property
    def canceled(self) -> bool:
        """Whether the attempt was asked to stop."""
        return self._control.canceled

    @property
    def cancel_reason(self) -> str | None:
        """Why it was: ``canceled``, ``timed_out`` or ``interrupted`` (the engine is draining)."""
        return self._control.reason

    def check_canceled(self) -> None:
        """Raise (and end the attempt) if it was asked to stop; call it now and then in long loops of plain code.

        What it raises is no ``Exception``, so that ``except Exception`` lets it pass.
        """
        if self._control.canceled:
            raise StopRequested(self._control.reason or "canceled")

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """Say how far the work is; shown by ``actionqueue show`` and in ``RunRecord.progress``. Returns at once.

        ``done`` and ``total`` are whole numbers in a unit of yours, ``message`` is cut at 1,000 characters. It is
        recorded with the next commit; from an attempt that no longer holds its run it is dropped. Raises ``TypeError``
        and ``ValueError`` for counts that are not whole numbers of 0 to 2**63 - 1.
        """
        self._control.report_progress(done, total, message)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger (``actionqueue.handlers``) whose records carry ``run_id``, ``handler`` and ``attempt``."""
        a = self._control.assignment
        facts = {"run_id": str(self.run_id), "handler": a.runnable.name, "attempt": a.attempt_number}
        return logging.LoggerAdapter(handler_logger, facts)


CONTEXT: Context = cast(Context, None)
"""The default of an injected parameter: ``ctx: Context = CONTEXT``."""


def _misuse(error: _RetryAfter | _Snooze) -> None:
    control = current_attempt.get()
    if control is not None:
        control.misused = type(error).__name__


class RetryAfter(_RetryAfter):
    """Raise in a handler to fail this attempt (it counts) and be tried again after ``delay`` instead of the backoff.

    ``delay`` is a timedelta, seconds, or text such as "15m". No ``Exception``: ``except Exception`` lets it pass.
    Raises ``InvalidDuration``.

    >>> RetryAfter("90s").delay_us
    90000000
    """

    def __init__(self, delay: timedelta | float | str, message: str = "") -> None:
        super().__init__(parse_duration_us(delay, field="delay"), message)
        _misuse(self)


class Snooze(_Snooze):
    """Raise in a handler to end this attempt without counting it, and run again after ``delay``.

    ``delay`` is a timedelta, seconds, or text such as "15m". No ``Exception``: ``except Exception`` lets it pass.
    Raises ``InvalidDuration``.

    >>> Snooze("1h").delay_us
    3600000000
    """

    def __init__(self, delay: timedelta | float | str, message: str = "") -> None:
        super().__init__(parse_duration_us(delay, field="delay"), message)
        _misuse(self)
