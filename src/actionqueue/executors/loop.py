"""Async handlers: one asyncio task per attempt, on an event loop of their own or on the host application's.

Knows: how a coroutine is started, cancelled and reported. Must not know: what an end means (``endings``, the engine).

The hot path is one ``call_soon_threadsafe`` per batch of assignments, one task per attempt, and one call of the sink
per turn of the loop, or per 64 ends. Everything in ``_launch``, ``_run``, ``_flush`` and ``_cancel`` runs on the loop's
thread; ``_live`` is added to by ``start`` and removed from by whoever ends an attempt's story first (its end, or
``abandon``): one ``dict.pop`` decides.

Hazards:

- A task cancelled before its first step never runs its body, so ``_cancel`` reports such an attempt itself.
- asyncio re-raises ``SystemExit`` and ``KeyboardInterrupt`` of a task out of ``run_forever``. Handlers' own are caught
  in ``_run``; one of a task that a handler left behind makes the loop's thread run the loop again.
- A handler that blocks its thread stops every other one: ``heartbeat`` and ``current`` tell a watchdog.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.steps import RecordStep
from actionqueue.executors import endings
from actionqueue.executors.daemons import DaemonPool
from actionqueue.executors.port import (
    STOP_CANCEL,
    STOP_DRAIN,
    Ask,
    Asked,
    Assignment,
    AttemptControl,
    Report,
    Sink,
    current_attempt,
)
from actionqueue.executors.resources import ResourceKeeper, ResourcesFactory

TICK_SECONDS = 0.25
REPORTS_AT_ONCE = 64
"""Ends that are reported without waiting for the loop to come round: the writer works on them while the loop goes on."""
POOL_THREADS_MAX = 32
"""Threads behind ``asyncio.to_thread`` on an own loop; as many as asyncio's own pool has at most."""
CLOSED_RETRY_US = 1_000_000
"""When to try again what came to a closed loop: at once would spin."""

log = logging.getLogger("actionqueue")


class _Live(AttemptControl):
    """The control of an attempt on this loop, and its task."""

    __slots__ = ("cancel_sent", "started", "task")

    def __init__(self, assignment: Assignment, emit: Callable[[Progress], None], ask: Ask) -> None:
        super().__init__(assignment, emit, ask)
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.cancel_sent = False


class AsyncExecutor:
    """Runs async handlers, up to ``slots`` at once.

    With ``loop`` the attempts run on that loop, which the caller runs; else on a loop in a daemon thread of its own
    (uvloop's, when installed). ``resources`` makes an async context manager that is entered on the loop before the
    first attempt and left at ``close``; its value is ``executor.resources``. While it cannot be entered, attempts fail.
    """

    tells_calls = False

    def __init__(
        self,
        slots: int = 100,
        name: str = "async",
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        resources: ResourcesFactory | None = None,
    ) -> None:
        self.slots = slots
        self.name = name
        self._given_loop = loop
        self._loop: asyncio.AbstractEventLoop = loop  # type: ignore[assignment]  # set by begin
        self._keeper = None if resources is None else ResourceKeeper(resources)
        self._around: set[asyncio.Task[None]] = set()
        self._sink: Sink = _no_sink
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None
        self._context = contextvars.Context()
        self._live: dict[bytes, _Live] = {}
        self._strays: set[_Live] = set()
        self._ended: list[Report] = []
        self._flush_due = False
        self._closing = False
        self._close_by = 0.0
        self._idle = threading.Event()
        self._stop_thread = False
        self._ticking = False
        self._ticked_at = 0.0

    # --- the port; any thread ---------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        """Start the loop's thread, unless the loop is the host's."""
        self._sink = sink
        self._context = contextvars.copy_context()
        if self._given_loop is None:
            self._loop = _new_loop()
            self._loop.set_default_executor(DaemonPool(POOL_THREADS_MAX, f"actionqueue-{self.name}"))
            self._thread = threading.Thread(target=self._main, name=f"actionqueue-{self.name}", daemon=True)
            self._thread.start()

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Run these; one wake-up of the loop for all of them."""
        emit, ask = self._emit, self._ask
        batch = [_Live(assignment, emit, ask) for assignment in assignments]
        live = self._live
        for item in batch:
            live[item.assignment.attempt_id] = item
        if not self._ticking:
            self._ticked_at = time.monotonic()
        if self._closing or not self._on_loop(self._launch, batch):
            self._refuse(batch)

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """Set the token now, cancel the task on the loop. Only ``force`` cancels a second time."""
        item = self._live.get(attempt_id)
        if item is not None:
            item.request_stop(reason)
            self._on_loop(self._cancel, item, force)

    def abandon(self, attempt_id: bytes) -> None:
        """Report nothing of it any more. Its task is kept (asyncio holds tasks weakly) until it ends."""
        item = self._live.pop(attempt_id, None)
        if item is not None:
            item.emit = item.ask = None
            item.request_stop(STOP_CANCEL)
            self._on_loop(self._estrange, item)

    def running(self) -> list[bytes]:
        """The attempts whose code has not ended, abandoned ones left out."""
        while True:
            try:
                return list(self._live)
            except RuntimeError:  # it changed meanwhile
                continue

    def close(self, timeout_s: float) -> None:
        """Cancel what runs, leave the resources, stop an own loop; on the loop's own thread it cannot wait."""
        self._closing = True
        self._close_by = time.monotonic() + timeout_s
        waits = threading.get_ident() != self._thread_id and self._on_loop(self._begin_close)
        if not waits:
            if self._thread_id == threading.get_ident():
                self._begin_close()
            return
        self._idle.wait(timeout_s)
        thread = self._thread
        if thread is not None:
            self._stop_thread = True
            self._on_loop(self._loop.stop)
            thread.join(max(0.0, self._close_by - time.monotonic()) + TICK_SECONDS)

    # --- for a watchdog; any thread ---------------------------------------------------------------------------------

    def heartbeat(self) -> float:
        """Seconds since the loop last came round; up to 0.25 is normal. 0 while nothing runs on it."""
        return max(0.0, time.monotonic() - self._ticked_at) if self._live else 0.0

    def current(self) -> AttemptControl | None:
        """The attempt whose code the loop executes at this moment; None between them, or when it cannot be told."""
        loop = self._loop
        task = asyncio.current_task(loop)
        if task is None:
            return None
        for item in [*self._live.copy().values(), *self._strays.copy()]:
            if item.task is task:
                return item
        get_context = getattr(task, "get_context", None)  # a task that a handler made; Python 3.12 and later
        return None if get_context is None else get_context().get(current_attempt)

    @property
    def resources(self) -> Any:
        """What the resources gave; None before the first attempt and after ``close``."""
        return None if self._keeper is None else self._keeper.value

    def enter_resources(self) -> Any:
        """The resources, entered if they are not yet: for handlers in threads. Waits; not to be called on the loop."""
        keeper = self._keeper
        if keeper is None or keeper.is_open:
            return self.resources
        if self._closing:
            raise RuntimeError("the queue is closing")
        asyncio.run_coroutine_threadsafe(keeper.enter(), self._loop).result()
        return keeper.value

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that handlers run on; None before ``begin`` unless it was given."""
        return self._loop

    @property
    def thread_id(self) -> int | None:
        """The loop's thread, once an attempt was started, for ``sys._current_frames``."""
        return self._thread_id

    # --- on the loop ------------------------------------------------------------------------------------------------

    def _launch(self, batch: list[_Live]) -> None:
        if self._keeper is not None and not self._keeper.is_open:
            _ = self._beside(self._launch_with(self._keeper, batch))
            return
        if not self._ticking:
            self._ticking = True
            self._thread_id = threading.get_ident()
            self._tick()
        create_task, run, live, resources = self._loop.create_task, self._run, self._live, self.resources
        for item in batch:
            if item.assignment.attempt_id in live:  # else stopped or abandoned before it began
                item.resources = resources
                item.task = create_task(run(item))

    async def _launch_with(self, keeper: ResourceKeeper, batch: list[_Live]) -> None:
        try:
            await keeper.enter()
        except BaseException as error:  # each attempt of the batch has failed by it
            for item in batch:
                if self._live.pop(item.assignment.attempt_id, None) is not None:
                    self._report(endings.no_resources(item.assignment, error))
        else:
            self._loop.call_soon(self._launch, batch, context=self._context)

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the executor's own; asyncio itself holds tasks weakly."""
        task = self._loop.create_task(work)
        self._around.add(task)
        task.add_done_callback(self._around.discard)
        return task

    async def _run(self, item: _Live) -> None:
        item.started = True
        current_attempt.set(item)
        finish = await endings.run_async(item)
        item.task = None  # its context refers to the item: a circle for each attempt is much for the collector
        if self._live.pop(item.assignment.attempt_id, None) is not None:
            self._report(finish)
        else:
            self._strays.discard(item)

    def _report(self, finish: Finish) -> None:
        ended = self._ended
        ended.append(finish)
        if len(ended) >= REPORTS_AT_ONCE:
            self._ended = []
            self._sink(ended)
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        self._flush_due = False
        ended = self._ended
        if ended:
            self._ended = []
            self._sink(ended)
        if self._closing and not self._live:
            self._finish_close()

    def _cancel(self, item: _Live, force: bool = False) -> None:  # noqa: FBT001, FBT002 - passed by call_soon
        attempt_id = item.assignment.attempt_id
        if attempt_id not in self._live:
            return
        if not item.started:  # its code never ran, and will not: see the hazards
            if self._live.pop(attempt_id, None) is not None:
                self._report(endings.stopped(item.assignment, item.reason or STOP_DRAIN))
            if item.task is not None:
                item.task.cancel()
        elif item.task is not None and (force or not item.cancel_sent):
            item.cancel_sent = True
            item.task.cancel()

    def _estrange(self, item: _Live) -> None:
        if item.task is not None and not item.task.done():
            if item.started:
                self._strays.add(item)
            item.task.cancel()
        if self._closing and not self._live:
            self._finish_close()

    def _tick(self) -> None:
        self._ticked_at = time.monotonic()
        self._ticking = bool(self._live)
        if self._ticking:
            self._loop.call_later(TICK_SECONDS, self._tick, context=self._context)

    def _begin_close(self) -> None:
        for item in list(self._live.values()):
            item.request_stop(STOP_DRAIN)
            self._cancel(item)
        for item in self._strays:
            if item.task is not None:
                item.task.cancel()
        self._report_unrun()
        if not self._live and not self._flush_due:
            self._finish_close()

    def _report_unrun(self) -> None:
        """What a host loop's own shutdown cancelled before its first step: its body never ran."""
        for attempt_id, item in list(self._live.items()):
            if item.task is not None and item.task.done() and self._live.pop(attempt_id, None) is not None:
                self._report(endings.stopped(item.assignment, STOP_DRAIN))

    def _finish_close(self) -> None:
        if self._keeper is None or self._keeper.task is None:
            self._idle.set()
        else:
            self._beside(self._keeper.leave()).add_done_callback(lambda _: self._idle.set())

    # --- around the loop --------------------------------------------------------------------------------------------

    def _on_loop(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Have ``callback`` run on the loop; False when that is closed."""
        try:
            self._loop.call_soon_threadsafe(callback, *args, context=self._context)
        except RuntimeError:
            return False
        return True

    def _emit(self, progress: Progress) -> None:
        self._sink((progress,))

    def _ask(self, command: RecordStep, settle: Callable[[Any], None]) -> None:
        self._sink((Asked(command, settle),))

    def _refuse(self, batch: list[_Live]) -> None:
        """Their code never started; they are neither failed nor lost."""
        reports: list[Report] = []
        for item in batch:
            if self._live.pop(item.assignment.attempt_id, None) is not None:
                finish = endings.stopped(item.assignment, STOP_DRAIN)
                finish.delay_us = CLOSED_RETRY_US
                reports.append(finish)
        if reports:
            self._sink(reports)

    def _main(self) -> None:
        """The own loop's thread."""
        loop = self._loop
        while not self._stop_thread:
            try:
                loop.run_forever()
            except BaseException:
                log.exception(
                    "a background task of an async handler ended with what would end a program; it is ignored"
                )
        try:
            loop.run_until_complete(self._settle(loop))
        except BaseException:
            log.exception("what async handlers left behind could not be ended cleanly")
        loop.close()

    async def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what handlers left behind; what does not end is forgotten with the thread."""
        strays = {item.task for item in self._strays}  # cancelled before, and waited for long enough
        pending = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in pending:
            task.cancel()
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio.gather does
        left = max(0.05, self._close_by - time.monotonic())
        if pending - strays:
            await asyncio.wait(pending - strays, timeout=left)
        await asyncio.wait_for(loop.shutdown_asyncgens(), left)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _no_sink(reports: Sequence[Report]) -> None:
    raise RuntimeError("begin() was not called")
