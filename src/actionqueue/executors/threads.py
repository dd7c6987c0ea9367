"""Plain handlers: one daemon thread per attempt at a time, threads reused, all fed by one queue.

Knows: how a function is run in a thread and reported. Must not know: what an end means (``endings``, the engine).

Not concurrent.futures: that joins its threads when the interpreter ends, so a stuck handler would keep the process
alive for ever. A thread cannot be ended by force; when the engine gives up on one (``abandon``), the thread is written
off: another takes its place, and it exits without a word when its code returns after all.

There are as many threads as attempts that were ever held at once, up to ``slots``, so what is handed over is picked up
at once. ``_live`` decides whose word counts about an attempt, by one ``dict.pop``: its own end, or ``abandon``.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.steps import RecordStep
from actionqueue.executors import endings
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

REFUSED_RETRY_US = 1_000_000
"""When to try again what came after ``close`` or found no thread: at once would spin."""

log = logging.getLogger("actionqueue")


class _Live(AttemptControl):
    """The control of an attempt here, and the thread that runs it."""

    __slots__ = ("worker",)

    def __init__(self, assignment: Assignment, emit: Callable[[Progress], None], ask: Ask) -> None:
        super().__init__(assignment, emit, ask)
        self.worker: _Worker | None = None


class _Worker:
    """One thread; ``written_off`` when it is stuck in an abandoned attempt."""

    __slots__ = ("thread", "written_off")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.written_off = False


class ThreadExecutor:
    """Runs plain handlers in up to ``slots`` threads, started as they are needed.

    ``resources`` is asked, in the attempt's thread, for what its context gives as resources
    (``AsyncExecutor.enter_resources``, so that loop and threads share them).
    """

    tells_calls = False

    def __init__(self, slots: int = 16, name: str = "thread", *, resources: Callable[[], object] | None = None) -> None:
        self.slots = slots
        self.name = name
        self._resources = resources
        self._sink: Sink = _no_sink
        self._context = contextvars.Context()
        self._jobs: SimpleQueue[_Live | None] = SimpleQueue()
        self._live: dict[bytes, _Live] = {}
        self._guard = threading.Lock()
        self._workers: set[_Worker] = set()
        self._started = 0
        self._closing = False
        self._idle = threading.Event()

    # --- the port; any thread ---------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        """Remember the sink; threads start with the first attempts."""
        self._sink = sink
        self._context = contextvars.copy_context()

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Run these, each in a thread of its own for the time being."""
        emit, ask, live, put = self._emit, self._ask, self._live, self._jobs.put
        batch = [_Live(assignment, emit, ask) for assignment in assignments]
        for item in batch:
            live[item.assignment.attempt_id] = item
        if self._closing or not self._staff():
            self._refuse(batch)
            return
        for item in batch:
            put(item)

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """Set the token; a thread cannot be ended by force."""
        item = self._live.get(attempt_id)
        if item is not None:
            item.request_stop(reason)

    def abandon(self, attempt_id: bytes) -> None:
        """Report nothing of it any more, and write its thread off."""
        item = self._live.pop(attempt_id, None)
        if item is None:
            return
        item.emit = item.ask = None
        item.request_stop(STOP_CANCEL)  # nobody waits for it, but it may end all the same
        with self._guard:
            worker = item.worker
            if worker is not None:
                worker.written_off = True
                self._workers.discard(worker)
        self._staff()
        self._note_end()

    def running(self) -> list[bytes]:
        """The attempts whose code has not ended, abandoned ones left out."""
        while True:
            try:
                return list(self._live)
            except RuntimeError:  # it changed meanwhile
                continue

    def close(self, timeout_s: float) -> None:
        """Set every token and wait; threads that are still stuck then are left behind, as daemons."""
        self._closing = True
        deadline = time.monotonic() + timeout_s
        for attempt_id in self.running():
            self.stop(attempt_id, STOP_DRAIN, force=False)
        self._note_end()
        self._idle.wait(timeout_s)
        with self._guard:
            workers = list(self._workers)
        for _ in workers:
            self._jobs.put(None)
        for worker in workers:
            if worker.thread is not None and worker.thread is not threading.current_thread():
                worker.thread.join(max(0.0, deadline - time.monotonic()))

    # --- for a watchdog; any thread ---------------------------------------------------------------------------------

    def threads(self) -> dict[int, AttemptControl]:
        """The attempt in each busy thread by thread id, to match with ``sys._current_frames``."""
        found: dict[int, AttemptControl] = {}
        for item in self._live.copy().values():
            thread = None if item.worker is None else item.worker.thread
            if thread is not None and thread.ident is not None:
                found[thread.ident] = item
        return found

    # --- the threads ------------------------------------------------------------------------------------------------

    def _staff(self) -> bool:
        """As many threads as there are attempts, up to ``slots``; False when there is none and none can be had."""
        wanted = min(self.slots, len(self._live))
        if len(self._workers) < wanted:
            with self._guard:
                while len(self._workers) < wanted:
                    worker = _Worker()
                    name = f"actionqueue-{self.name}-{self._started}"
                    worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
                    try:
                        worker.thread.start()
                    except RuntimeError as error:  # the system's limit; what there is serves
                        log.warning("no further thread for handlers: %s", error)
                        return bool(self._workers)
                    self._started += 1
                    self._workers.add(worker)
        return True

    def _work(self, worker: _Worker) -> None:
        get, live, base = self._jobs.get, self._live, self._context
        while not worker.written_off:
            item = get()
            if item is None:
                return
            attempt_id = item.assignment.attempt_id
            item.worker = worker
            if attempt_id not in live:  # abandoned before it began, perhaps while the line above ran
                continue
            finish = base.copy().run(_run, item, self._resources)
            if live.pop(attempt_id, None) is not None:
                self._sink((finish,))
                if self._closing:
                    self._note_end()
            del item, finish  # an idle thread holds nobody's arguments

    def _note_end(self) -> None:
        if self._closing and not self._live:
            self._idle.set()

    def _refuse(self, batch: list[_Live]) -> None:
        """Their code never started; they are neither failed nor lost."""
        for item in batch:
            if self._live.pop(item.assignment.attempt_id, None) is not None:
                finish = endings.stopped(item.assignment, STOP_DRAIN)
                finish.delay_us = REFUSED_RETRY_US
                self._sink((finish,))

    def _emit(self, progress: Progress) -> None:
        self._sink((progress,))

    def _ask(self, command: RecordStep, settle: Callable[[Any], None]) -> None:
        self._sink((Asked(command, settle),))


def _run(item: _Live, resources: Callable[[], object] | None) -> Finish:
    current_attempt.set(item)
    if resources is not None:
        try:
            item.resources = resources()
        except BaseException as error:
            return endings.no_resources(item.assignment, error)
    return endings.run_sync(item)


def _no_sink(reports: Sequence[Report]) -> None:
    raise RuntimeError("begin() was not called")
