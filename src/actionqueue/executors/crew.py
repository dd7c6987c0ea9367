"""The worker processes of one executor: whom to start, feed, stop, replace and retire.

Driven by the executor's one thread, which tells it what came in (``on_events``, the port's wishes) and asks it what is
due. Must not know: threads, sinks, or what goes on inside a child.

What a dead process means is decided in ``_settle``: an attempt that its child had not begun goes to another one, as if
nothing had happened; one that was being stopped has the outcome of that; any other has failed, ``worker_died``.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actionqueue.core.attempts import Finish
from actionqueue.core.errors import ActionQueueError, NotRunning
from actionqueue.executors import endings, frames
from actionqueue.executors.port import STOP_DRAIN, Asked, Assignment, AttemptControl, Called, Report
from actionqueue.executors.process import WorkerProcess

HANDOVERS_MAX = 3
"""How many processes may die with an attempt before beginning it, until that is a failure of the attempt."""
START_FAILURES_MAX = 3
"""How many processes in a row may die before they are ready, until the attempts that wait have failed."""
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0
"""How long a process may take, once it has an attempt with a timeout (and that long at least), to call its handler: it
imports the handler's module and enters the resources first."""
LAST_WORDS_S = 1.0
"""How long a process may take to end once its line is closed."""
POLL_S = 0.25
"""How often ends are looked for where the system cannot signal them."""

log = logging.getLogger("actionqueue")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewLimits:
    """How many processes, and how long each may serve."""

    processes: int
    attempts_per_process_max: int
    rss_bytes_max: int | None
    stop_grace_s: float


class Held(AttemptControl):
    """The control of an attempt, and the worker that has it."""

    __slots__ = ("handovers", "taken_s", "worker")

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        self.worker: Worker | None = None
        self.handovers = 0
        self.taken_s = time.monotonic()


class Worker(WorkerProcess):
    """A process and its attempt. ``serving``: it takes attempts, now or when it is ready."""

    item: Held | None = None
    begun = False
    overdue = False
    """It is killed because it did not come to call its attempt's handler."""
    serving = True
    ready = False
    served = 0
    kill_at: float | None = None


class Crew:
    """The processes, and the attempts between ``take`` and their report.

    ``live`` is the executor's: an attempt that is not in it any more was abandoned or reported. ``reports`` is emptied
    by the executor.
    """

    def __init__(
        self, name: str, limits: CrewLimits, live: dict[bytes, Held], selector: selectors.BaseSelector
    ) -> None:
        self.workers: set[Worker] = set()
        self.reports: list[Report] = []
        self.later: Callable[..., None] = _nobody
        """Has something called on the executor's thread, with arguments; from any thread. The executor's."""
        self._name = name
        self._limits = limits
        self._live = live
        self._selector = selector
        self._idle: list[Worker] = []
        self._waiting: deque[Held] = deque()
        self._start_failures = 0
        self._close_by: float | None = None

    # --- what the executor is asked ---------------------------------------------------------------------------------

    def take(self, items: list[Held]) -> None:
        """Run these; ``hand_out`` does it."""
        self._waiting.extend(items)

    def stop(self, item: Held, force: bool) -> None:  # noqa: FBT001 - a command, passed on by position
        """Stop its code, for ``item.reason``."""
        if item.assignment.attempt_id not in self._live:
            return
        worker = item.worker
        if worker is None:
            self._end(item, endings.stopped(item.assignment, item.reason or STOP_DRAIN))
        elif force:
            self._kill(worker)
        else:
            self._send(worker, frames.Stop(item.assignment.attempt_id, item.reason or STOP_DRAIN))
            self._kill_in(worker, self._limits.stop_grace_s)

    def give_up(self, item: Held) -> None:
        """Kill the process that has it; it is not ``live`` any more."""
        if item.worker is not None and item.worker.item is item:
            self._kill(item.worker)

    def begin_close(self, close_by: float) -> None:
        """Stop everything; kill at ``close_by`` (monotonic seconds) what has not ended."""
        self._close_by = close_by
        for item in list(self._live.values()):
            item.request_stop(STOP_DRAIN)
            self.stop(item, force=False)
        self._waiting.clear()
        for worker in list(self.workers):
            if worker.item is None:
                self._retire(worker)

    def has_closed(self) -> bool:
        """Whether it was told to close and no process is left, or those that are left cannot be killed."""
        return self._close_by is not None and (not self.workers or time.monotonic() >= self._close_by + LAST_WORDS_S)

    # --- what the executor's thread does each turn ------------------------------------------------------------------

    def patience_s(self) -> float | None:
        """How long nothing will need doing by itself, in seconds."""
        waits = [worker.kill_at - time.monotonic() for worker in self.workers if worker.kill_at is not None]
        if self._close_by is not None or any(worker.exit_fd is None for worker in self.workers):
            waits.append(POLL_S)
        return max(0.0, min(waits)) if waits else None

    def on_events(self, worker: Worker, source: Any, events: int) -> None:
        """The line of ``worker`` can be read or written, or its process has ended (``exit_fd``)."""
        if events & selectors.EVENT_WRITE:
            worker.flush()
        self._receive(worker)
        if source == worker.exit_fd:
            self._bury(worker)

    def look_after(self) -> None:
        """Kill whose time has come; bury who ended without a signal of it."""
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.kill_at is not None and worker.kill_at <= now:
                worker.overdue = worker.item is not None and worker.item.reason is None and not worker.at_end
                self._kill(worker)
            if (worker.exit_fd is None or worker.at_end) and worker.has_ended():
                self._bury(worker)

    def hand_out(self) -> None:
        """Give waiting attempts to idle workers, and start as many as are needed and allowed."""
        while self._waiting:
            item = self._waiting[0]
            if item.assignment.attempt_id not in self._live:
                self._waiting.popleft()
            elif self._idle:
                self._hand_over(item, self._idle.pop())
            elif not self._start_worker():
                return

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _hand_over(self, item: Held, worker: Worker) -> None:
        a = item.assignment
        try:
            data = frames.encode(_run_frame(item))
        except Exception as error:
            self._waiting.popleft()
            self._idle.append(worker)
            self._end(item, endings.failed(a, "not_encodable", f"cannot be sent: {error}", terminal=True))
            return
        if not worker.send(data):  # it died idle; nothing has begun, the attempt goes on waiting
            self._kill(worker)
            return
        self._waiting.popleft()
        worker.item, worker.begun, item.worker = item, False, worker
        if a.timeout_us is not None:
            worker.kill_at = time.monotonic() + max(CALL_TIMEOUT_S, a.timeout_us / 1e6)
        self._watch(worker)

    def _end(self, item: Held, finish: Finish) -> None:
        """Report the end of ``item``, unless it was abandoned."""
        if self._live.pop(item.assignment.attempt_id, None) is not None:
            self.reports.append(finish)

    def _settle(self, item: Held, worker: Worker, how: str) -> None:
        """What has become of the attempt of a worker that died."""
        a = item.assignment
        item.worker = None
        item.handovers += 1
        if a.attempt_id not in self._live:
            return
        if item.reason is not None:
            self._end(item, endings.stopped(a, item.reason))
        elif worker.begun:
            message = f"the worker process {worker.pid} {how} while it ran the handler"
            if worker.overdue:
                message = (
                    f"the worker process {worker.pid} did not come to call the handler, and was killed: importing its "
                    "module or entering the resources took too long"
                )
            self._end(item, endings.failed(a, "worker_died", message))
        elif item.handovers < HANDOVERS_MAX:
            self._waiting.appendleft(item)
        else:
            message = f"{item.handovers} worker processes died before they could begin; the last one {how}"
            self._end(item, endings.failed(a, "worker_died", message))

    # --- frames -----------------------------------------------------------------------------------------------------

    def _send(self, worker: Worker, frame: frames.ToChild) -> None:
        worker.send(frames.encode(frame))
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Have the selector wait for what the line is to do next."""
        if worker.at_end:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.has_unsent else 0)
        if worker.line not in self._selector.get_map():
            self._selector.register(worker.line, events, worker)
        elif self._selector.get_key(worker.line).events != events:
            self._selector.modify(worker.line, events, worker)

    def _receive(self, worker: Worker) -> None:
        try:
            for frame in worker.receive():
                self._on_frame(worker, frame)
        except frames.FrameError as error:
            log.error("worker process %d sent what is no frame, and is killed: %s", worker.pid, error)  # noqa: TRY400
            self._kill(worker)
        if worker.at_end:
            self._forget(worker.line)
            self._take_out(worker)
            self._kill_in(worker, LAST_WORDS_S)
        else:
            self._watch(worker)

    def _on_frame(self, worker: Worker, frame: frames.ToParent) -> None:
        match frame:
            case frames.Ready():
                self._on_ready(worker, frame)
            case frames.Begun():
                worker.begun = True
            case frames.Called():
                self._on_called(worker, frame)
            case frames.Reported():
                if frame.progress.attempt_id in self._live:
                    self.reports.append(frame.progress)
            case frames.Asks():
                self._on_asks(worker, frame)
            case frames.Ended():
                self._on_ended(worker, frame)

    def _on_ready(self, worker: Worker, frame: frames.Ready) -> None:
        worker.ready = True
        problem = frame.problem
        if frame.version != frames.PROTOCOL_VERSION:
            problem = "the installed actionqueue is another version than this process runs: restart it"
        if problem is not None:
            self._kill(worker)
            self._note_start_failure(f"said: {problem}")
        elif worker.serving:
            self._start_failures = 0
            worker.kill_at = None
            self._idle.append(worker)

    def _on_called(self, worker: Worker, frame: frames.Called) -> None:
        item = worker.item
        if item is None or frame.attempt_id != item.assignment.attempt_id:
            raise frames.FrameError("a call of an attempt that it does not have")
        a = item.assignment
        if item.reason is None and worker.serving:
            worker.kill_at = None
        if a.attempt_id in self._live:
            self.reports.append(Called(a.run_id, a.attempt_id, a.fence))

    def _on_asks(self, worker: Worker, frame: frames.Asks) -> None:
        if frame.command.attempt_id not in self._live:
            self.answer(worker, frame.number, NotRunning("this attempt was given up; nothing is recorded for it"))
            return
        later = self.later

        def settle(reply: Any) -> None:
            later(self.answer, worker, frame.number, reply)

        self.reports.append(Asked(frame.command, settle))

    def answer(self, worker: Worker, number: int, reply: Any) -> None:
        """Tell a worker what became of what it asked."""
        if worker not in self.workers:
            return
        problem = None
        if isinstance(reply, ActionQueueError):
            facts = {name: each if isinstance(each, int) else str(each) for name, each in reply.facts.items()}
            problem = (reply.code, reply.message, facts)
        self._send(worker, frames.Answered(number, problem))

    def _on_ended(self, worker: Worker, end: frames.Ended) -> None:
        item = worker.item
        if item is None or end.finish.attempt_id != item.assignment.attempt_id:
            raise frames.FrameError("an end of an attempt that it does not have")
        self._end(item, end.finish)
        worker.item = None
        worker.served += 1
        if not worker.serving:  # it is being killed
            return
        worker.kill_at = None
        limits = self._limits
        is_over_rss = limits.rss_bytes_max is not None and end.rss_bytes > limits.rss_bytes_max
        is_worn = end.interrupted or is_over_rss or worker.served >= limits.attempts_per_process_max
        if self._close_by is not None:
            self._retire(worker)
        elif is_worn:
            self._retire(worker)
            self._start_worker(spare=1)  # so that the next attempt need not wait for it
        else:
            self._idle.append(worker)

    # --- processes --------------------------------------------------------------------------------------------------

    def _start_worker(self, *, spare: int = 0) -> bool:
        """Start one if there may be more, and those on their way do not suffice for what waits and ``spare`` more."""
        serving = [worker for worker in self.workers if worker.serving]
        starting = sum(not worker.ready for worker in serving)
        if len(serving) >= self._limits.processes or starting >= len(self._waiting) + spare:
            return False
        try:
            worker = Worker(measure_rss=self._limits.rss_bytes_max is not None)
        except OSError as error:
            if not serving:  # nothing that happens later would try again
                self._start_failures = START_FAILURES_MAX
            self._note_start_failure(f"could not be made: {error}")
            return False
        worker.kill_at = time.monotonic() + START_TIMEOUT_S
        self.workers.add(worker)
        self._watch(worker)
        if worker.exit_fd is not None:
            self._selector.register(worker.exit_fd, selectors.EVENT_READ, worker)
        return True

    def _note_start_failure(self, how: str) -> None:
        self._start_failures += 1
        log.error("a worker process of executor %s did not start: it %s", self._name, how)
        if self._start_failures >= START_FAILURES_MAX:
            self._start_failures = 0
            message = f"worker processes do not start: the last one {how}; what it printed is on standard error"
            while self._waiting:
                item = self._waiting.popleft()
                self._end(item, endings.failed(item.assignment, "worker_not_started", message))

    def _retire(self, worker: Worker) -> None:
        """Let it quit by itself."""
        self._take_out(worker)
        self._send(worker, frames.Quit())
        self._kill_in(worker, self._limits.stop_grace_s)

    def _kill(self, worker: Worker) -> None:
        self._take_out(worker)
        worker.kill()
        worker.kill_at = None

    def _take_out(self, worker: Worker) -> None:
        worker.serving = False
        if worker in self._idle:
            self._idle.remove(worker)

    def _kill_in(self, worker: Worker, grace_s: float) -> None:
        limits = [time.monotonic() + grace_s, worker.kill_at, self._close_by]
        worker.kill_at = min(limit for limit in limits if limit is not None)

    def _bury(self, worker: Worker) -> None:
        """The process has ended; what it said before is received first."""
        self._receive(worker)
        self._take_out(worker)
        self.workers.discard(worker)
        self._forget(worker.line)
        if worker.exit_fd is not None:
            self._forget(worker.exit_fd)
        how = worker.reap()
        if not worker.ready and self._close_by is None:
            self._note_start_failure(how)
        item, worker.item = worker.item, None
        if item is not None:
            self._settle(item, worker, how)

    def _forget(self, source: Any) -> None:
        if source in self._selector.get_map():
            self._selector.unregister(source)


def _nobody(*args: Any) -> None:
    raise AssertionError("supplied by the executor")


def _run_frame(item: Held) -> frames.Run:
    a = item.assignment
    return frames.Run(
        a.runnable.locator, a.runnable.name, a.run_id, a.attempt_id, a.fence, a.task_id, a.payload, a.attempt_number,
        a.failure_count, a.max_attempts, a.token, a.scheduled_at, a.started_at, a.timeout_us, a.metadata,
        int((time.monotonic() - item.taken_s) * 1e6), a.records,
    )  # fmt: skip
