"""A context for calling a handler directly, without a queue around it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from actionqueue.context import Context
from actionqueue.core.attempts import Progress
from actionqueue.core.ids import AttemptId, RunId, TaskId
from actionqueue.core.instants import instant_us, parse_duration_us
from actionqueue.core.retry import DEFAULT_TERMS
from actionqueue.executors.port import Assignment, AttemptControl
from actionqueue.testing.behaviour import DrawnHandler
from actionqueue.testing.clock import START_US


class SimulatedContext(Context):
    """A ``Context`` that no engine stands behind. ``reports`` is what the handler said of its progress."""

    __slots__ = ("reports",)

    def __init__(self, assignment: Assignment, resources: Any) -> None:
        self.reports: list[tuple[int, int | None, str]] = []
        super().__init__(AttemptControl(assignment, self._hear), resources)
        self._control.is_alone = True

    def _hear(self, progress: Progress) -> None:
        self.reports.append((progress.done, progress.total, progress.message))

    def request_stop(self, reason: str = "canceled") -> None:
        """Ask the handler to stop: ``canceled``, ``timed_out`` or ``interrupted``."""
        self._control.request_stop(reason)


def context(
    *,
    attempt_number: int = 1,
    failure_count: int | None = None,
    max_attempts: int = 3,
    scheduled_at: datetime | None = None,
    timeout: timedelta | float | str | None = None,
    metadata: dict[str, Any] | None = None,
    resources: Any = None,
    task_id: TaskId | None = None,
    run_id: RunId | None = None,
    idempotency_token: str | None = None,
    handler: str = "handler",
) -> SimulatedContext:
    """A context with these facts, for calling a handler directly. ``failure_count`` is ``attempt_number`` - 1 by default.

    >>> ctx = context(attempt_number=2, metadata={"tenant": 7})
    >>> ctx.attempt_number, ctx.failure_count, ctx.metadata
    (2, 1, {'tenant': 7})
    >>> ctx.progress(1, 2)
    >>> ctx.reports
    [(1, 2, '')]
    """
    run = (run_id or RunId.new()).bytes
    token = run if idempotency_token is None else RunId.parse(idempotency_token, field="idempotency_token").bytes
    due_us = START_US if scheduled_at is None else instant_us(scheduled_at, field="scheduled_at")
    assignment = Assignment(
        run, AttemptId.new().bytes, 1, (task_id or TaskId.new()).bytes, _runnable(handler), b"{}", attempt_number,
        attempt_number - 1 if failure_count is None else failure_count, max_attempts, token, due_us, due_us,
        None if timeout is None else parse_duration_us(timeout, field="timeout"), metadata,
    )  # fmt: skip
    return SimulatedContext(assignment, resources)


def _runnable(name: str) -> DrawnHandler:
    return DrawnHandler(name, "async", DEFAULT_TERMS)
