"""The executor of a user's simulation: real handlers, run in this thread when the simulation says so.

Async handlers are tasks on a ``VirtualLoop``, plain ones (thread and process) are called and end before anything else
happens. ``start`` only takes note; ``act`` runs. What an end means is the real executors' own table, ``endings``.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.steps import RecordStep
from actionqueue.executors import endings
from actionqueue.executors.port import Asked, Assignment, AttemptControl, Report, Sink, current_attempt
from actionqueue.testing.virtual_loop import VirtualLoop

Emit = Callable[[Progress], None]


class Surroundings(Protocol):
    """What the simulation gives its executors."""

    def draw(self) -> float:
        """Chance."""
        ...

    def next_failure(self, handler: str) -> BaseException | None:
        """What the next attempt of a handler is to fail with, if anything."""
        ...

    def control(self, assignment: Assignment, emit: Emit) -> AttemptControl:
        """The line to a handler that starts."""
        ...

    async def watched(self, control: AttemptControl, handler: Callable[[], Any]) -> Any:
        """What an async handler returns; a simulation may end the process on its way."""
        ...

    def settle(self) -> None:
        """Make the engine's moves, so that what a plain handler asked is answered."""
        ...

    def finished(self, control: AttemptControl) -> None:
        """Its code has ended; nothing was said of it yet."""
        ...


class InlineExecutor:
    """Implements ``executors.port.Executor``."""

    tells_calls = False

    def __init__(
        self, name: str, slots: int, loop: VirtualLoop, around: Surroundings, enter: Callable[[], Any]
    ) -> None:
        self.name = name
        self.slots = slots
        self._loop = loop
        self._around = around
        self._enter = enter
        self._waiting: list[AttemptControl] = []
        self._live: dict[bytes, AttemptControl] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._sink: Sink = _nobody

    # --- the port ---------------------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        """Get ready."""
        self._sink = sink

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Take note of these."""
        for assignment in assignments:
            control = self._around.control(assignment, lambda progress: self._sink((progress,)))
            control.ask = self._ask
            control.pump = self._around.settle
            self._live[assignment.attempt_id] = control
            self._waiting.append(control)

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """Set the token, cancel the task; what has not begun never begins."""
        control = self._live.get(attempt_id)
        if control is None:
            return
        control.request_stop(reason)
        task = self._tasks.get(attempt_id)
        if task is not None:
            task.cancel()

    def abandon(self, attempt_id: bytes) -> None:
        """Say nothing of it any more."""
        control = self._live.pop(attempt_id, None)
        if control is not None:
            control.ask = None
        task = self._tasks.pop(attempt_id, None)
        if task is not None:
            task.cancel()

    def running(self) -> list[bytes]:
        """What has not ended."""
        return list(self._live)

    def close(self, timeout_s: float) -> None:
        """Forget everything."""
        self._live.clear()
        self._waiting.clear()

    # --- the simulation's -------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there is something to run at this instant."""
        return bool(self._waiting)

    def act(self) -> None:
        """Run what was started."""
        waiting, self._waiting = self._waiting, []
        for control in waiting:
            if control.assignment.attempt_id not in self._live:
                continue
            failure = self._around.next_failure(control.assignment.runnable.name)
            if failure is not None:
                self._report(control, endings.raised(control, failure))
            elif not self._give_resources(control):
                continue
            elif control.assignment.runnable.is_async:
                self._tasks[control.assignment.attempt_id] = self._loop.create_task(self._run(control))
            else:
                context = contextvars.copy_context()
                self._report(control, context.run(self._run_plainly, control))

    def _give_resources(self, control: AttemptControl) -> bool:
        try:
            control.resources = self._enter()
        except Exception as error:
            self._report(control, endings.no_resources(control.assignment, error))
            return False
        return True

    def _run_plainly(self, control: AttemptControl) -> Finish:
        current_attempt.set(control)
        return endings.run_sync(control)

    async def _run(self, control: AttemptControl) -> None:
        current_attempt.set(control)
        assignment = control.assignment
        if control.canceled:
            finish = endings.stopped(assignment, control.reason or "canceled")
        else:
            try:
                call = assignment.runnable.bind(assignment, control)
            except Exception as error:
                finish = endings.misfit(assignment, error)
            else:
                try:
                    finish = endings.returned(control, await self._around.watched(control, call))
                except BaseException as error:  # whatever it is, it is an outcome of the attempt
                    finish = endings.raised(control, error)
        self._report(control, finish)

    def _ask(self, command: RecordStep, settle: Callable[[Any], None]) -> None:
        self._sink((Asked(command, settle),))

    def _report(self, control: AttemptControl, finish: Finish) -> None:
        attempt_id = control.assignment.attempt_id
        self._tasks.pop(attempt_id, None)
        if self._live.pop(attempt_id, None) is not None:
            self._around.finished(control)
            finish.draw = self._around.draw()
            self._sink([finish])


def _nobody(reports: Sequence[Report]) -> None:
    raise AssertionError("begin() was not called")
