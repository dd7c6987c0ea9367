"""What a queue has while a simulation runs it: a session whose line makes the engine's moves instead of waiting.

Whatever is sent is decided, durable and answered when the call returns; no handler runs meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actionqueue.core.epochs import SERVED
from actionqueue.core.errors import NotRunning
from actionqueue.core.machine import Command
from actionqueue.core.submission import Submit
from actionqueue.engine.tickets import Ticket
from actionqueue.line import EngineLine, Read
from actionqueue.session import Session
from actionqueue.task import declaring

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine
    from actionqueue.task import Task
    from actionqueue.testing.simulation import Simulation


class SimulatedSession(Session):
    """The queue's session during a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation.queue)
        self._client = None
        self._simulation = simulation
        self.line = CrashedLine()

    def open(self) -> None:
        """The simulation opens its engine."""

    def register(self, task: Task[Any, Any]) -> None:
        """A handler was declared while the simulation runs."""
        stepper = self._simulation.stepper
        if stepper is not None:
            declared = task.declared
            stepper.engine.register(task.runnable, declared.executor, declared.terms, declared.concurrency)
            stepper.engine.post(declaring([task]))
            stepper.settle()

    def read_inbox(self, timeout_s: float) -> bool:
        """There is no other process."""
        return True

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether handlers run on that loop."""
        return loop is self._simulation.loop

    def check_engine_present(self, waited_s: float) -> None:
        """Nobody waits."""

    def close(self, drain_timeout_s: float | None = None) -> None:
        """The simulation ends with its block."""


class SimulatedLine(EngineLine):
    """The line to the stepped engine."""

    def __init__(self, simulation: Simulation, engine: Engine) -> None:
        super().__init__(engine)
        self._simulation = simulation

    def post(self, command: Command, ticket: Ticket) -> None:
        """Sent, and answered when this returns."""
        super().post(command, ticket)
        self._simulation.settle()
        if isinstance(command, SERVED):
            self._simulation.serve()

    def submit(self, command: Submit, ticket: Ticket) -> None:
        """The same."""
        self.post(command, ticket)

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """Everything that can run now runs first; a task that has not ended then is waiting for time to pass."""
        relay = _Relay(ticket)
        super().await_task(task_id, relay)
        self._simulation.run_until_idle()
        if not relay.is_told:
            self.engine.writer.forget_waiter(task_id, relay)
            ticket.settle(
                NotRunning(
                    "the task has not ended, and nothing more happens at this instant: sim.advance(…) moves the clock"
                )
            )

    def read(self, question: Read, ticket: Ticket, *, absent: Callable[[], Any] | None = None) -> None:
        """Asked, and answered when this returns."""
        super().read(question, ticket, absent=absent)
        self._simulation.settle()


class _Relay:
    """A ticket that knows whether it was settled."""

    def __init__(self, ticket: Ticket) -> None:
        self.is_told = False
        self._ticket = ticket

    def settle(self, reply: Any) -> None:
        """Hand it on."""
        self.is_told = True
        self._ticket.settle(reply)


class CrashedLine:
    """The line of a queue whose simulated process has died. Implements ``line.Line``."""

    is_engine = True

    def _refuse(self, *args: object, **facts: object) -> Any:
        raise NotRunning("the simulated process has crashed; sim.restart() opens the queue again")

    post = submit = await_task = forget_waiter = identify = read = _refuse

    def engine_present(self) -> bool:
        """There is none."""
        return False
