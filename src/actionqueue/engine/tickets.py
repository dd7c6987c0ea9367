"""What a caller holds while its command is on the way to the disk.

A thread waits on a plain lock (one per thread, reused), a coroutine on a future of its loop. Tickets that are settled
together wake each loop once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from actionqueue.core.errors import ActionQueueError

if TYPE_CHECKING:
    import asyncio


class Ticket(Protocol):
    """Settled exactly once, with a reply or an error."""

    def settle(self, reply: Any) -> None:
        """Hand over the reply; an ``ActionQueueError`` instance is raised at the caller."""
        ...


class ThreadTicket:
    """For a caller that blocks its thread."""

    __slots__ = ("_is_settled", "_lock", "reply")

    def __init__(self) -> None:
        self._is_settled = False
        lock = getattr(_cache, "lock", None)
        if lock is None:
            lock = threading.Lock()
            lock.acquire()
        else:
            _cache.lock = None
        self._lock = lock
        self.reply: Any = None

    def settle(self, reply: Any) -> None:
        """Store the reply and wake the thread; only the first time, since the lock then belongs to the thread again."""
        if not self._is_settled:
            self._is_settled = True
            self.reply = reply
            self._lock.release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until settled; False when the timeout (seconds) passed first."""
        if self._lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            _cache.lock = self._lock
            return True
        return False

    def result(self) -> Any:
        """The reply, or its error raised."""
        if isinstance(self.reply, ActionQueueError):
            raise self.reply
        return self.reply


_cache = threading.local()


class LoopTicket:
    """For a coroutine: settles a future of its loop, from any thread."""

    __slots__ = ("future", "loop", "reply")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.reply: Any = None

    def settle(self, reply: Any) -> None:
        """Store the reply and wake the loop."""
        self.reply = reply
        _call_soon(self.loop, self.finish)

    def finish(self) -> None:
        """Complete the future; on the loop's own thread."""
        if not self.future.done():
            if isinstance(self.reply, ActionQueueError):
                self.future.set_exception(self.reply)
            else:
                self.future.set_result(self.reply)


class CallTicket:
    """Calls a function with the reply, on the thread that settles: for the engine's own use; it must not block."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[Any], None]) -> None:
        self.call = call

    def settle(self, reply: Any) -> None:
        """Call it."""
        self.call(reply)


def settle_all(settled: Iterable[tuple[Ticket, Any]]) -> None:
    """Settle many tickets; each event loop among them is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[LoopTicket]] = {}
    for ticket, reply in settled:
        if type(ticket) is LoopTicket:
            ticket.reply = reply
            by_loop.setdefault(ticket.loop, []).append(ticket)
        else:
            ticket.settle(reply)
    for loop, tickets in by_loop.items():
        _call_soon(loop, _finish_all, tickets)


def _finish_all(tickets: list[LoopTicket]) -> None:
    for ticket in tickets:
        ticket.finish()


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        return  # the loop was closed while its caller waited; nobody is left to tell
