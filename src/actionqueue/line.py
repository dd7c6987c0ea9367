"""The line to the engine: in this process (``EngineLine``) or through the inbox (``client_line``).

Everything the public surface does goes over one: commands, waiting for results, reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from actionqueue.core.errors import ActionQueueError, StoreUnavailable
from actionqueue.core.machine import Command
from actionqueue.core.submission import Submit
from actionqueue.engine.tickets import CallTicket, LoopTicket, Ticket
from actionqueue.store.port import Reader

if TYPE_CHECKING:
    import asyncio

    from actionqueue.client_line import ClientLine
    from actionqueue.engine.engine import Engine
    from actionqueue.engine.inbox import InboxReader

Read = Callable[[Reader], Any]
Decision = tuple[bytes, bytes, bool]
"""What was decided on a submission: (task id, run id, created)."""


class Line(Protocol):
    """What the public surface needs of whoever runs the store."""

    is_engine: bool

    def post(self, command: Command, ticket: Ticket) -> None:
        """Send a command; the ticket gets its reply, or its refusal."""
        ...

    def submit(self, command: Submit, ticket: Ticket) -> None:
        """Send a submission; the ticket gets (task id, run id, created) for each item."""
        ...

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """The ticket gets an ``Ended`` once the task's newest run has ended."""
        ...

    def forget_waiter(self, task_id: bytes, ticket: Ticket) -> None:
        """The caller no longer waits."""
        ...

    def identify(self, task_id: bytes, reader: Reader) -> bytes:
        """The id in the store of a task that this process submitted. Raises the refusal of that submission."""
        ...

    def read(self, question: Read, ticket: Ticket, *, absent: Callable[[], Any] | None = None) -> None:
        """Ask a reader, which sees everything acknowledged before; ``absent`` answers while there is no store yet."""
        ...

    def engine_present(self) -> bool:
        """Whether an engine is on the store now."""
        ...

    def now_us(self, wall_shift: int) -> int:
        """The present instant of the engine, to whose clock the wall clock was last seen that far ahead."""
        ...


class EngineLine:
    """The engine is in this process."""

    is_engine = True

    def __init__(self, engine: Engine, former: ClientLine | None = None, inbox: InboxReader | None = None) -> None:
        self.engine = engine
        self._former = former
        """Answers for what this process sent through the inbox before it was the engine."""
        self._inbox = inbox
        self._read_count = 0
        """How many of the commands that this process sent through the inbox are in the mailbox for certain."""

    def post(self, command: Command, ticket: Ticket) -> None:
        """Into the mailbox, behind what this process sent through the inbox before."""
        engine, inbox = self.engine, self._inbox
        sent_count = 0 if self._former is None else self._former.commands_count
        if inbox is None or sent_count <= self._read_count:
            engine.post(command, ticket)
            return
        refusal = engine.refusal()
        if refusal is not None:
            raise refusal

        def post() -> None:
            self._read_count = max(self._read_count, sent_count)
            try:
                engine.post(command, ticket)
            except ActionQueueError as error:  # told to whoever waits; this is not the caller's thread
                ticket.settle(error)

        inbox.when_caught_up(post)

    def submit(self, command: Submit, ticket: Ticket) -> None:
        """Into the mailbox."""
        self.engine.post(command, ticket)

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """Told by the writer; of what this process sent as a client, the inbox may still hold the submission."""
        former = self._former
        if former is not None and former.has_sent(task_id):
            # it looks into the tables, which must not lag behind what this line was told
            self.engine.flush(CallTicket(lambda _: _await_in_tables(former, task_id, ticket)))
            return
        refusal = self.engine.fenced
        if refusal is not None:
            raise refusal
        self.engine.await_task(task_id, ticket)

    def forget_waiter(self, task_id: bytes, ticket: Ticket) -> None:
        """Told by the writer no more."""
        if self._former is not None and self._former.has_sent(task_id):
            self._former.forget_waiter(task_id, ticket)
        else:
            self.engine.writer.forget_waiter(task_id, ticket)

    def identify(self, task_id: bytes, reader: Reader) -> bytes:
        """The same id, but for what this process sent through the inbox before."""
        return task_id if self._former is None else self._former.identify(task_id, reader)

    def read(self, question: Read, ticket: Ticket, *, absent: Callable[[], Any] | None = None) -> None:
        """After a projection up to now, on the look-up thread."""
        del absent  # there is one
        self.engine.read(question, ticket)

    def engine_present(self) -> bool:
        """It is here."""
        return True

    def now_us(self, wall_shift: int) -> int:
        """By the engine's clock."""
        del wall_shift  # seen for itself
        return self.engine.clock.now_us()


def _await_in_tables(line: ClientLine, task_id: bytes, ticket: Ticket) -> None:
    try:
        line.await_task(task_id, ticket)
    except ActionQueueError as error:
        ticket.settle(error)


def answer_inline(
    question: Read, open_reader: Callable[[], Reader], ticket: Ticket, absent: Callable[[], Any] | None = None
) -> None:
    """Ask a fresh reader in this thread, or in a worker thread for a coroutine."""

    def ask() -> Any:
        try:
            reader = open_reader()
        except StoreUnavailable as error:
            if absent is None or error.facts.get("cause") not in ("missing", "empty"):
                raise
            return absent()
        try:
            return question(reader)
        finally:
            reader.close()

    work_inline(ask, ticket)


def work_inline(work: Callable[[], Any], ticket: Ticket) -> None:
    """Do something slow in this thread, or in a worker thread for a coroutine, and settle the ticket."""
    if isinstance(ticket, LoopTicket):
        waiting = ticket.loop.run_in_executor(None, work)
        waiting.add_done_callback(lambda done: _hand_on(done, ticket))
    else:
        ticket.settle(work())


def _hand_on(done: asyncio.Future[Any], ticket: LoopTicket) -> None:
    if ticket.future.done():
        return
    error = done.exception()
    if error is not None:
        ticket.future.set_exception(error)
    else:
        ticket.future.set_result(done.result())
