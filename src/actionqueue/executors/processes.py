"""CPU-bound handlers, and those that must be stoppable for certain: in worker processes, one attempt at a time each.

Knows: how the port's calls, from any thread, reach the one thread that works with the processes. That thread waits on
the lines of all children, their ends, the clock, and ``_commands``; what it then does is the ``Crew``'s business.

Processes are started on first use, kept warm, and retired between attempts: after ``max_attempts_per_process``, over
``rss_bytes_max``, or when an exception was thrown into their code to stop it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from actionqueue.core.attempts import Finish
from actionqueue.executors import endings
from actionqueue.executors.crew import LAST_WORDS_S, POLL_S, Crew, CrewLimits, Held
from actionqueue.executors.port import STOP_DRAIN, Assignment, Report, Sink
from actionqueue.executors.process import OUTSIDE_SIGNALS

REFUSED_RETRY_US = 1_000_000
"""When to try again what came after ``close``: at once would spin."""

log = logging.getLogger("actionqueue")


class ProcessExecutor:
    """Runs handlers in up to ``processes`` worker processes (default: one per processor).

    ``stop`` without force gives the code ``stop_grace_s`` seconds to end before its process is killed.
    """

    tells_calls = True

    def __init__(
        self,
        processes: int | None = None,
        name: str = "process",
        *,
        max_attempts_per_process: int = 10_000,
        rss_bytes_max: int | None = None,
        stop_grace_s: float = 5.0,
    ) -> None:
        self.slots = processes or os.cpu_count() or 1
        self.name = name
        self._limits = CrewLimits(
            processes=self.slots,
            attempts_per_process_max=max_attempts_per_process,
            rss_bytes_max=rss_bytes_max,
            stop_grace_s=stop_grace_s,
        )
        self._sink: Sink = _no_sink
        self._live: dict[bytes, Held] = {}
        self._commands: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._crew: Crew | None = None
        self._wake: socket.socket | None = None
        self._woken = False
        self._closing = False

    # --- the port; any thread ---------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        """Remember the sink; thread and processes start with the first attempt."""
        self._sink = sink

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Run these in processes that are free, or in new ones."""
        items = [Held(assignment) for assignment in assignments]
        with self._guard:
            if not self._closing:
                for item in items:
                    self._live[item.assignment.attempt_id] = item
                crew = self._crew or self._open()
                self._command(crew.take, items)
                return
        self._sink([_refused(assignment) for assignment in assignments])

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        """The code is interrupted, and its process killed after the grace; at once with ``force``."""
        item = self._live.get(attempt_id)
        if item is not None and self._crew is not None:
            item.request_stop(reason)
            self._command(self._crew.stop, item, force)

    def abandon(self, attempt_id: bytes) -> None:
        """Report nothing of it any more, and kill its process."""
        item = self._live.pop(attempt_id, None)
        if item is not None and self._crew is not None:
            self._command(self._crew.give_up, item)

    def running(self) -> list[bytes]:
        """The attempts whose code has not ended, abandoned ones left out."""
        while True:
            try:
                return list(self._live)
            except RuntimeError:  # it changed meanwhile
                continue

    def close(self, timeout_s: float) -> None:
        """Ask everything to stop, kill what has not by the timeout."""
        with self._guard:
            was_closing, self._closing = self._closing, True
        thread, crew = self._thread, self._crew
        if thread is None or crew is None:
            return
        if not was_closing:
            self._command(crew.begin_close, time.monotonic() + timeout_s)
        if thread is not threading.current_thread():
            thread.join(timeout_s + 2 * LAST_WORDS_S)

    def pids(self) -> list[int]:
        """The worker processes there are, for diagnosis."""
        return [] if self._crew is None else [worker.pid for worker in self._crew.workers.copy()]

    # --- the thread -------------------------------------------------------------------------------------------------

    def _open(self) -> Crew:
        selector = selectors.DefaultSelector()
        ours, self._wake = socket.socketpair()
        ours.settimeout(0)
        self._wake.settimeout(0)
        selector.register(ours, selectors.EVENT_READ, None)
        crew = self._crew = Crew(self.name, self._limits, self._live, selector)
        crew.later = self._command
        name = f"actionqueue-{self.name}"
        self._thread = threading.Thread(target=self._serve, args=(crew, selector, ours), name=name, daemon=True)
        self._thread.start()
        return crew

    def _command(self, act: Callable[..., None], *args: Any) -> None:
        self._commands.append((act, args))
        if not self._woken and self._wake is not None:
            self._woken = True
            with contextlib.suppress(OSError):  # full, so it will wake; or closed, so there is nobody to wake
                self._wake.send(b"!")

    def _serve(self, crew: Crew, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, OUTSIDE_SIGNALS)
        while not crew.has_closed():
            try:
                self._turn(crew, selector, wake)
            except Exception:
                log.exception("the executor %s goes on after an error of its own", self.name)
                time.sleep(POLL_S)
        for worker in crew.workers:
            log.warning("worker process %d could not be killed", worker.pid)
        selector.close()
        wake.close()
        if self._wake is not None:
            self._wake.close()

    def _turn(self, crew: Crew, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        for key, events in selector.select(crew.patience_s()):
            if key.data is None:
                wake.recv(4096)
            elif key.data in crew.workers:  # not buried by an event before
                crew.on_events(key.data, key.fileobj, events)
        self._woken = False
        while self._commands:
            act, args = self._commands.popleft()
            act(*args)
        crew.look_after()
        crew.hand_out()
        if crew.reports:
            reports, crew.reports = crew.reports, []
            self._sink(reports)


def _refused(assignment: Assignment) -> Finish:
    """Its code never started; it is neither failed nor lost."""
    finish = endings.stopped(assignment, STOP_DRAIN)
    finish.delay_us = REFUSED_RETRY_US
    return finish


def _no_sink(reports: Sequence[Report]) -> None:
    raise RuntimeError("begin() was not called")
