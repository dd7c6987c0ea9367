"""Sync and async from one implementation.

An ``Operation`` says how to begin something that takes time, and how to make its answer of what comes back. A method
that returns one is turned into the two calls users see: ``blocking`` waits in the thread, ``awaiting`` in the event
loop. What takes several operations one after another is a ``Script``: a generator that yields them and is sent their
answers.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from actionqueue.core.errors import ActionQueueError, SyncCallOnHandlerLoop
from actionqueue.engine.tickets import CallTicket, LoopTicket, ThreadTicket, Ticket

if TYPE_CHECKING:
    import asyncio  # imported where a coroutine waits: a program without one, the command line, starts sooner

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Host")


class Host(Protocol):
    """Whoever has operations: it knows which event loops must not be blocked."""

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether blocking this loop would keep the queue's own handlers from running."""
        ...


class Operation(Generic[T]):
    """Something that takes time.

    ``send`` begins it and has the ticket settled in the end; ``finish`` turns the reply into the answer. ``timeout_s``
    bounds the wait: then ``late`` is called and its value is the answer (or it raises).
    """

    __slots__ = ("amend", "finish", "late", "poll", "poll_s", "send", "timeout_s")

    def __init__(
        self,
        send: Callable[[Ticket], None],
        finish: Callable[[Any], T],
        *,
        timeout_s: float | None = None,
        late: Callable[[Ticket], T] | None = None,
        poll: Callable[[float], None] | None = None,
        poll_s: float = 1.0,
        amend: Callable[[ActionQueueError], ActionQueueError] | None = None,
    ) -> None:
        self.send = send
        self.finish = finish
        self.timeout_s = timeout_s
        self.late = late
        self.poll = poll
        """Called now and then while waiting, with the seconds waited; may raise to give up."""
        self.poll_s = poll_s
        self.amend = amend
        """Makes of an error the one to raise: with what only the caller knows."""

    def run(self) -> T:
        """Begin, block this thread, answer."""
        ticket = ThreadTicket()
        self.send(ticket)
        began = time.monotonic()
        while not ticket.wait(self._next_wait(time.monotonic() - began)):
            waited = time.monotonic() - began
            if self.timeout_s is not None and waited >= self.timeout_s:
                assert self.late is not None
                return self.late(ticket)
            if self.poll is not None:
                self.poll(waited)
        if isinstance(ticket.reply, ActionQueueError):
            raise self._amended(ticket.reply)
        return self.finish(ticket.reply)

    def _amended(self, error: ActionQueueError) -> ActionQueueError:
        return error if self.amend is None else self.amend(error)

    async def arun(self) -> T:
        """Begin, await, answer."""
        import asyncio

        ticket = LoopTicket(asyncio.get_running_loop())
        self.send(ticket)
        began = time.monotonic()
        while True:
            try:
                reply = await asyncio.wait_for(asyncio.shield(ticket.future), self._next_wait(time.monotonic() - began))
            except TimeoutError:
                waited = time.monotonic() - began
                if self.timeout_s is not None and waited >= self.timeout_s:
                    assert self.late is not None
                    return self.late(ticket)
                if self.poll is not None:
                    self.poll(waited)
                continue
            except ActionQueueError as error:
                raise self._amended(error) from error.__cause__
            return self.finish(reply)

    def _next_wait(self, waited_s: float) -> float | None:
        waits = []
        if self.timeout_s is not None:
            waits.append(max(0.0, self.timeout_s - waited_s))
        if self.poll is not None:
            waits.append(self.poll_s)
        return min(waits) if waits else None


def done(value: T) -> Operation[T]:
    """An operation that is over already."""

    def send(ticket: Ticket) -> None:
        ticket.settle(value)

    return Operation(send, lambda reply: reply)


def together(operations: Sequence[Operation[T]]) -> Operation[list[T | ActionQueueError]]:
    """All of them at once; the answer is that of each, or what it was refused with."""

    def send_all(ticket: Ticket) -> None:
        replies = _Replies(len(operations), ticket)
        for n, operation in enumerate(operations):
            try:
                operation.send(CallTicket(functools.partial(replies.note, n)))
            except ActionQueueError as error:
                replies.note(n, error)

    def send(ticket: Ticket) -> None:
        if not operations:
            ticket.settle([])
        elif isinstance(ticket, LoopTicket):
            _ = ticket.loop.run_in_executor(None, send_all, ticket)  # a client writes each to the disk
        else:
            send_all(ticket)

    def finish(replies: list[Any]) -> list[T | ActionQueueError]:
        return [
            reply if isinstance(reply, ActionQueueError) else operation.finish(reply)
            for operation, reply in zip(operations, replies, strict=True)
        ]

    return Operation(send, finish)


class _Replies:
    """Collects the replies to several commands, from any threads; the last one settles the ticket."""

    def __init__(self, count: int, ticket: Ticket) -> None:
        self._replies: list[Any] = [None] * count
        self._left = count
        self._ticket = ticket
        self._lock = threading.Lock()

    def note(self, n: int, reply: Any) -> None:
        """The reply to the n-th."""
        with self._lock:
            self._replies[n] = reply
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._ticket.settle(self._replies)


Script = Generator[Operation[Any], Any, T]
"""Operations one after another; its value is the answer."""


def blocking_script(method: Callable[Concatenate[S, P], Script[T]]) -> Callable[Concatenate[S, P], T]:
    """The call that waits in its thread for each operation. On a loop it would block: ``SyncCallOnHandlerLoop``."""
    name = method.__name__.lstrip("_").removeprefix("script_")

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_on_loop(self, name)
        script = method(self, *args, **kwargs)
        try:
            operation = next(script)
            while True:
                operation = script.send(operation.run())
        except StopIteration as end:
            answer: T = end.value
            return answer

    return _named(call, method, name)


def awaiting_script(
    method: Callable[Concatenate[S, P], Script[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The twin to await."""
    name = "a" + method.__name__.lstrip("_").removeprefix("script_")

    @functools.wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        script = method(self, *args, **kwargs)
        try:
            operation = next(script)
            while True:
                operation = script.send(await operation.arun())
        except StopIteration as end:
            answer: T = end.value
            return answer

    return _named(call, method, name)


Called = TypeVar("Called", bound=Callable[..., Any])


def _named(call: Called, method: Callable[..., Any], name: str) -> Called:
    """The call under the name users see."""
    call.__name__ = name
    call.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.{name}"
    return call


def blocking(method: Callable[Concatenate[S, P], Operation[T]]) -> Callable[Concatenate[S, P], T]:
    """The call that waits in its thread. On a loop it would block it raises ``SyncCallOnHandlerLoop``."""
    name = method.__name__.lstrip("_").removeprefix("op_")

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_on_loop(self, name)
        return method(self, *args, **kwargs).run()

    return _named(call, method, name)


def awaiting(
    method: Callable[Concatenate[S, P], Operation[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The twin to await."""
    name = "a" + method.__name__.lstrip("_").removeprefix("op_")

    @functools.wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs).arun()

    return _named(call, method, name)


def refuse_on_loop(host: Host, name: str) -> None:
    """Raise when the running loop is one that runs this queue's handlers."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:  # then no loop is running
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if host.blocks_loop(loop):
        raise SyncCallOnHandlerLoop(
            f"{name}() would block the event loop that runs this queue's handlers; use: await a{name}(…)",
            twin=f"a{name}",
        )


__all__ = [
    "ActionQueueError",
    "Host",
    "Operation",
    "Script",
    "awaiting",
    "awaiting_script",
    "blocking",
    "blocking_script",
    "done",
    "refuse_on_loop",
    "together",
]
