"""What an attempt remembers of the ones before it, and what it has recorded for those that come after.

A handler that waits is run again from its first line, so it asks for the same steps and waits again; each has a **name**,
given by the code, or made of its kind and its ordinal among those of that kind without one (``sleep#1``). What is
recorded under the name is the answer. Asking twice for one name in an attempt is an error of the code; a name that was
recorded as something of another kind means that the code has changed in a way that cannot go on: ``StepMismatch``.

Recording waits for the commit: the reply comes from the engine's threads (``Ask``). Knows: names, records, how one is
sent. Must not know: what a step does, and what ends a wait.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from actionqueue.core.awaiting import SIGNAL, Address, WaitAsked
from actionqueue.core.errors import ActionQueueError, DuplicateStep, NotRunning
from actionqueue.core.records import STEP
from actionqueue.core.spec import text_problem
from actionqueue.core.steps import NOTE, RecordStep, step_problem
from actionqueue.core.waits import wait_record
from actionqueue.executors.endings import StepMismatch, Waiting

if TYPE_CHECKING:
    from actionqueue.executors.port import AttemptControl


class Memory:
    """The records of one attempt's retry chain; made when its handler first asks."""

    def __init__(self, control: AttemptControl) -> None:
        self._control = control
        records = control.assignment.records or ()
        self._known = {name: (kind, body) for name, kind, body in records if kind != NOTE}
        self.asked: set[str] = set()
        self._ordinals: dict[str, int] = {}

    # --- names -------------------------------------------------------------------------------------------------

    def name_of(self, what: str, given: str | None) -> str:
        """The identity of a wait that the code calls ``what``."""
        if given is not None:
            return given
        self._ordinals[what] = ordinal = self._ordinals.get(what, 0) + 1
        return f"{what}#{ordinal}"

    def recall(self, name: str, kind: str) -> bytes | None:
        """What is recorded under that name, if anything.

        Raises ``DuplicateStep``, and ``StepMismatch`` where it is of another kind.
        """
        if (problem := text_problem(name)) is not None:
            raise ValueError(f"the name of a step or wait is {problem}")
        if name in self.asked:
            raise DuplicateStep(
                f"{name!r} was asked for before in this attempt; steps and waits of one handler have names of their own",
                name=name,
            )
        self.asked.add(name)
        found = self._known.get(name)
        if found is None:
            return None
        if found[0] != kind:
            self._control.misused = StepMismatch.__name__
            raise StepMismatch(
                f"{name!r} is recorded as a {found[0]}, and the code asks for a {kind}: it has changed since. Give what is "
                "new another name, or retry the run afresh."
            )
        return found[1]

    # --- recording ---------------------------------------------------------------------------------------------

    def record(self, name: str, body: bytes) -> None:
        """Record a step's result; returns when it is durable. Raises what refuses it."""
        box: SimpleQueue[Any] = SimpleQueue()
        self._send(name, body, box.put)
        if self._control.pump is not None:
            self._control.pump()
        _check(box.get())

    async def arecord(self, name: str, body: bytes) -> None:
        """The same without blocking the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def finish(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        def settle(reply: Any) -> None:
            try:
                loop.call_soon_threadsafe(finish, reply)
            except RuntimeError:  # the loop was closed meanwhile
                return

        self._send(name, body, settle)
        _check(await future)

    def _send(self, name: str, body: bytes, settle: Any) -> None:
        problem = step_problem(name, body)
        if problem is not None:
            raise problem
        ask = self._control.ask
        if ask is None:
            settle(
                None if self._control.is_alone else NotRunning("this attempt was given up; nothing is recorded for it")
            )
        else:
            ask(record_of(self._control, name, STEP, body), settle)

    # --- waiting -----------------------------------------------------------------------------------------------

    def wait(self, asked: WaitAsked) -> None:
        """End the attempt, to be run again when the wait is over."""
        self._control.misused = "a wait"
        raise Waiting(asked)

    def served(self, address: Address) -> int:
        """The order of the newest signal that came to an earlier wait of the run at that address."""
        orders = [0]
        for kind, body in self._known.values():
            if kind == SIGNAL:
                record = wait_record(body)
                if (record.signal, record.key) == address:
                    orders.append(record.order)
        return max(orders)


def record_of(control: AttemptControl, name: str, kind: str, body: bytes) -> RecordStep:
    """The command that records it."""
    a = control.assignment
    return RecordStep(
        a.run_id, a.attempt_id, a.fence, name, kind, body, blake2b(body, digest_size=16).digest(), kind != NOTE
    )  # fmt: skip


def memory_of(control: AttemptControl) -> Memory:
    """The attempt's memory."""
    memory = control.memory
    if memory is None:
        memory = control.memory = Memory(control)
    assert isinstance(memory, Memory)
    return memory


def _check(reply: Any) -> None:
    if isinstance(reply, ActionQueueError):
        raise reply
