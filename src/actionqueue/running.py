"""Ways to run a queue: around a block, around an application, until a signal, until there is nothing left to do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from actionqueue.core.errors import NotRunning, StoreHeld
from actionqueue.core.instants import parse_duration_us
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.records import Stats

if TYPE_CHECKING:
    from actionqueue.app import ActionQueue

logger = logging.getLogger("actionqueue")

COLLECTOR_THRESHOLD = 50_000
"""Objects made before the garbage collector looks at the youngest; live state is invisible to it anyway."""

SWITCH_INTERVAL_S = 0.001
"""How long one Python thread may hold the interpreter while others wait, under ``run_forever``."""


class IdleSummary(Struct, frozen=True, kw_only=True):
    """What ``run_until_idle`` left: runs by state, and how many of the ready ones are blocked."""

    runs: dict[str, int]
    blocked: int
    paused: tuple[str, ...]


class Running(contextlib.AbstractContextManager["ActionQueue"]):
    """``with queue.running():``; may be entered again after it was left, and inside itself."""

    def __init__(self, queue: ActionQueue) -> None:
        self._queue = queue
        self._owner = False

    def __enter__(self) -> ActionQueue:
        queue = self._queue
        queue.leave_to_parent()
        session = queue.session
        if session is not None and session.engine is None and queue.settings.role != "client":
            queue.close()
            session = None
        if session is None:
            queue.open_session()
            self._owner = True
        return queue

    def __exit__(self, *exc: object) -> None:
        if self._owner:
            self._queue.close()


async def enter_async(queue: ActionQueue) -> None:
    """``async with queue``: handlers run on the calling loop."""
    loop = asyncio.get_running_loop()
    queue.leave_to_parent()
    session = queue.session
    if session is not None and session.engine is None and queue.settings.role != "client":
        await asyncio.to_thread(queue.close)
        session = None
    if session is None:
        session = await asyncio.to_thread(lambda: queue.open_session(loop=loop))
    session.adopt_loop(loop)


async def leave_async(queue: ActionQueue) -> None:
    """Drain and close, without blocking the loop that the handlers run on."""
    await asyncio.to_thread(queue.close)


@contextlib.asynccontextmanager
async def lifespan(queue: ActionQueue, app: Any) -> AsyncGenerator[None]:
    """The lifespan of a FastAPI or Starlette application."""
    del app
    await enter_async(queue)
    try:
        yield
    finally:
        await leave_async(queue)


def tune_process() -> None:
    """Settings of the interpreter for a process that is an engine and little else; ``run_forever`` makes them.

    Threads give way sooner, so that commits are not held up by computing handlers, and the garbage collector leaves
    alone what has been imported and looks for new garbage less often.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTOR_THRESHOLD, 20, 50)


def run_forever(
    queue: ActionQueue,
    wait_for_store: timedelta | float | str | bool,  # noqa: FBT001 - handed on
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Be the engine until a signal; see ``ActionQueue.run_forever``. ``on_ready`` is called once the store is held."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
    stop = Stop()
    previous = _install_signals(stop)
    tune_process()
    try:
        _open_as_engine(queue, wait_for_store, stop)
        session = queue.session
        if session is None or stop.is_set():
            return
        assert session.engine is not None
        session.on_fenced = lambda error: stop.set()
        if session.engine.fenced is not None:  # before the line above
            stop.set()
        logger.info("engine on %s, pid %d; handlers: %s", queue.store, os.getpid(), ", ".join(queue.handlers) or "none")
        if on_ready is not None:
            on_ready()
        stop.wait()
        fenced = session.engine.fenced
        logger.info("stopping: waiting up to %g s for what runs", queue.settings.drain_timeout_us / 1e6)
        queue.close()
        if fenced is not None:
            raise fenced
        logger.info("stopped")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        queue.close()


class Stop:
    """That it is time to stop, said by a signal handler or another thread.

    Not an Event: its ``set`` takes a lock that the interrupted ``wait`` of the same thread may be holding.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._bell: SimpleQueue[None] = SimpleQueue()  # its put is safe in signal handlers

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._is_set

    def set(self) -> None:
        """Say it."""
        self._is_set = True
        self._bell.put(None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is said, or the timeout (seconds) has passed; whether it was."""
        if not self._is_set:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=timeout_s)
        return self._is_set


def _install_signals(stop: Stop) -> dict[int, Any]:
    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}


def _open_as_engine(
    queue: ActionQueue,
    wait_for_store: timedelta | float | str | bool,  # noqa: FBT001 - handed on
    stop: Stop,
) -> None:
    if queue.settings.role == "client":
        raise NotRunning('this queue has role="client"; it never runs an engine')
    queue.close()
    limit_s = None
    if wait_for_store is not True and wait_for_store is not False:
        limit_s = parse_duration_us(wait_for_store, field="wait_for_store") / 1e6
    waited_s = 0.0
    while not stop.is_set():
        try:
            queue.open_session(must_be_engine=True)
        except StoreHeld:
            if wait_for_store is False or (limit_s is not None and waited_s >= limit_s):
                raise
            stop.wait(0.2)
            waited_s += 0.2
        else:
            return


def run_until_idle(queue: ActionQueue, timeout_s: float | None) -> IdleSummary:
    """Run until nothing is left that can be done now; see ``ActionQueue.run_until_idle``."""
    with Running(queue):
        session = queue.session
        if session is None or session.engine is None:
            raise NotRunning("another process is the engine of this store; run_until_idle needs to be it")
        ticket = ThreadTicket()
        began = time.monotonic()
        is_read = session.read_inbox(threading.TIMEOUT_MAX if timeout_s is None else timeout_s)
        session.engine.await_idle(ticket)
        left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
        if not is_read or not ticket.wait(left_s):
            raise TimeoutError(f"the queue was not idle after {timeout_s:g} s")
        ticket.result()
        stats: Stats = queue.stats()
        return IdleSummary(runs=stats.runs, blocked=stats.blocked, paused=stats.paused)
