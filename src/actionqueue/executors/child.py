"""The inside of a worker process: takes one attempt at a time from its parent, runs it, reports it.

The main thread runs handlers, so that a signal can interrupt them. A second thread reads the parent's frames; it sets
the token of a stop at once, and ends the process when the parent is gone, also in the middle of a handler.

Hazards:

- *Stopping plain code.* The reader sets the token and sends SIGTERM to the main thread: that wakes it from blocking
  calls, and its Python-level handler raises ``StopRequested`` there, once per attempt. A SIGTERM of anyone else is
  ignored, as SIGINT is: service managers signal whole groups, and it is the parent that drains.
- That exception can surface at any line, so it is only raised while a handler is *armed*, and never inside ``_send``
  (half a frame would be worse than a late stop). Code interrupted so may leave a mess: the parent retires the process.
- *A dead parent.* Its end of the socket closes; but C code that holds the interpreter lock keeps the reader from
  seeing that, so on Linux the kernel also kills this process when the parent's thread that started it dies.
- A handler that forks: the copy must not go on as a worker (``_check_fork``).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import faulthandler
import itertools
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Any, cast

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.errors import ActionQueueError, NotRunning, error_kinds
from actionqueue.core.state import Outcome
from actionqueue.core.steps import RecordStep
from actionqueue.executors import endings, frames, logs
from actionqueue.executors.locators import NotImportable, Resolver
from actionqueue.executors.port import STOP_CANCEL, Assignment, AttemptControl, Runnable, current_attempt
from actionqueue.executors.process import OUTSIDE_SIGNALS
from actionqueue.executors.resources import ResourceKeeper

PARENT_CHECK_SECONDS = 1.0
LEFTOVERS_SECONDS = 1.0
"""How long tasks that an async handler left behind may take to end, once cancelled."""
RECEIVE_BYTES = 256 * 1024
PR_SET_PDEATHSIG = 1

log = logging.getLogger("actionqueue")


def main() -> None:
    """Entry point: the arguments are the socket's descriptor and the parent's process id."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - or programs that handlers start would hold the line open
    _die_with(parent)
    logs.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(Exception):  # stderr may be closed
        faulthandler.enable()
    Worker(socket.socket(fileno=descriptor), parent).serve()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        _die()


def _die() -> None:
    """End at once, with what handlers started, if this process leads a group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class Worker:
    """The process's one worker: ``serve`` in the main thread, ``_read`` beside it."""

    def __init__(self, line: socket.socket, parent: int) -> None:
        self._line = line
        self._parent = parent
        self._pid = os.getpid()
        self._main_ident = threading.get_ident()
        self._buffer = frames.FrameBuffer()
        self._sending = threading.Lock()
        self._jobs: SimpleQueue[tuple[AttemptControl, frames.Run, float] | None] = SimpleQueue()
        """Attempts, and when (monotonic seconds) each came."""
        self._current: AttemptControl | None = None
        self._armed: AttemptControl | None = None
        self._interrupted = False
        self._masked = False
        self._postponed = False
        self._measure_rss = False
        self._resolver = Resolver(None, None)
        self._runner: asyncio.Runner | None = None
        self._keeper: ResourceKeeper | None = None
        self._asked: dict[int, Callable[[Any], None]] = {}
        """Who waits for an answer of the parent, by its number."""
        self._numbers = itertools.count(1)

    # --- main thread ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Take attempts until told to quit."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OUTSIDE_SIGNALS)
        threading.Thread(target=self._read, name="actionqueue-parent", daemon=True).start()
        while (job := self._jobs.get()) is not None:
            control, run, came_s = job
            self._interrupted = self._postponed = False
            signal.signal(signal.SIGTERM, self._on_sigterm)  # each time: the handler before may have set its own
            self._send(frames.Begun(run.attempt_id))
            finish = self._attempt(control, run, came_s)
            self._check_fork()
            control.emit = control.ask = None
            self._current = None
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            self._send_end(frames.Ended(finish, self._interrupted, _rss_bytes() if self._measure_rss else 0))
            del job, control, run, finish  # an idle process holds nobody's arguments
        self._leave()

    def _attempt(self, control: AttemptControl, run: frames.Run, came_s: float) -> Finish:
        a = control.assignment
        token = current_attempt.set(control)  # importing a module must not wait for results either
        try:
            a.runnable = self._resolver.resolve(run.locator, run.name)
        except NotImportable as problem:
            return endings.failed(a, "not_importable", str(problem), terminal=True)
        except BaseException as error:
            return endings.not_importable(a, run.locator, error)
        finally:
            current_attempt.reset(token)
        factory = getattr(a.runnable, "resources_factory", None)
        if factory is not None:
            try:
                control.resources = self._resources(factory)
            except BaseException as error:
                return endings.no_resources(a, error)
        if run.timeout_us is not None:
            control.late_us = run.waited_us + int((time.monotonic() - came_s) * 1e6)
            self._send(frames.Called(a.attempt_id))
        return self._run_async(control) if a.runnable.is_async else self._run_plain(control)

    def _run_plain(self, control: AttemptControl) -> Finish:
        control.stop_hooks.append(self._interrupt)
        try:
            self._armed = control
            try:
                return contextvars.copy_context().run(_run_sync, control)
            finally:
                self._armed = None
        except endings.StopRequested:  # it came between the handler's end and the line above
            return endings.stopped(control.assignment, control.reason or STOP_CANCEL)
        finally:
            self._armed = None

    def _run_async(self, control: AttemptControl) -> Finish:
        runner = self._loop_runner()
        loop = runner.get_loop()
        task: asyncio.Task[Any] | None = None

        def cancel() -> None:
            if task is not None:
                task.cancel()

        def cancel_soon() -> None:
            loop.call_soon_threadsafe(cancel)

        async def attempt() -> Finish:
            nonlocal task
            current_attempt.set(control)
            task = asyncio.current_task()
            control.stop_hooks.append(cancel_soon)
            if control.canceled:
                return endings.stopped(control.assignment, control.reason or STOP_CANCEL)
            return await endings.run_async(control)

        try:
            return runner.run(attempt(), context=contextvars.copy_context())
        except BaseException as error:  # SystemExit of a task that the handler made: asyncio lets it through
            self._interrupted = True
            return endings.raised(control, error)
        finally:
            self._end_leftovers(runner)

    def _end_leftovers(self, runner: asyncio.Runner) -> None:
        """The loop outlives the attempt, for the resources; the tasks that its handler left behind do not."""
        kept = {None if self._keeper is None else self._keeper.task}
        leftovers = asyncio.all_tasks(runner.get_loop()) - kept
        if not leftovers:
            return
        for each in leftovers:
            each.cancel()
        try:
            _, pending = runner.run(asyncio.wait(leftovers, timeout=LEFTOVERS_SECONDS))
        except BaseException:
            self._interrupted = True
            log.exception("what an async handler left behind could not be ended; its worker process is replaced")
        else:
            self._interrupted |= bool(pending)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        signal.pthread_kill(self._main_ident, signal.SIGTERM)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        control = self._armed
        if control is None or not control.canceled or self._interrupted:
            return
        if self._masked:
            self._postponed = True
            return
        self._interrupted = True
        raise endings.StopRequested(control.reason or STOP_CANCEL)

    # --- the line ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """The reader's thread."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while True:
            if not poll.poll(PARENT_CHECK_SECONDS * 1000):
                if os.getppid() != self._parent:
                    _die()
                continue
            try:
                received = self._line.recv(RECEIVE_BYTES)
                if not received:
                    _die()
                for body in self._buffer.feed(received):
                    self._on_frame(frames.to_child.decode(body))
            except ConnectionError:
                _die()
            except Exception:
                log.exception("a worker process cannot read its parent's frames, and ends")
                _die()

    def _on_frame(self, frame: frames.ToChild) -> None:
        match frame:
            case frames.Run():
                control = self._current = AttemptControl(_assignment(frame), self._emit, self._ask)
                self._jobs.put((control, frame, time.monotonic()))
            case frames.Stop():
                current = self._current
                if current is not None and current.assignment.attempt_id == frame.attempt_id:
                    current.request_stop(frame.reason)
            case frames.Answered():
                settle = self._asked.pop(frame.number, None)
                if settle is not None:
                    settle(_reply_of(frame))
            case frames.Quit():
                self._jobs.put(None)
            case frames.Init():
                self._prepare(frame)

    def _prepare(self, init: frames.Init) -> None:
        if init.version != frames.PROTOCOL_VERSION:
            self._send(frames.Ready(frames.PROTOCOL_VERSION))
            return
        sys.argv = init.argv
        problem = None
        if init.cwd is not None:
            try:
                os.chdir(init.cwd)
            except OSError as error:
                problem = f"its working directory {init.cwd}: {error}"
        self._measure_rss = init.measure_rss
        self._resolver = Resolver(init.main_name, init.main_path)
        self._send(frames.Ready(frames.PROTOCOL_VERSION, problem))

    def _emit(self, progress: Progress) -> None:
        if os.getpid() == self._pid:
            self._send(frames.Reported(progress))

    def _ask(self, command: RecordStep, settle: Callable[[Any], None]) -> None:
        if os.getpid() != self._pid:
            settle(NotRunning("a copy of the worker process records nothing"))
            return
        number = next(self._numbers)
        self._asked[number] = settle
        self._send(frames.Asks(number, command))

    def _send_end(self, end: frames.Ended) -> None:
        try:
            self._send(end)
        except frames.FrameError as error:
            finish = end.finish
            finish.outcome, finish.body, finish.output = Outcome.FAILED, None, None
            finish.error, finish.terminal, finish.reason = endings.describe(error), True, "result_too_large"
            self._send(end)

    def _send(self, frame: frames.ToParent) -> None:
        data = frames.encode(frame)
        if threading.get_ident() != self._main_ident:
            self._write(data)
            return
        self._masked = True
        try:
            self._write(data)
        finally:
            self._masked = False
        if self._postponed:
            self._postponed = False
            self._on_sigterm(signal.SIGTERM, None)

    def _write(self, data: bytes) -> None:
        with self._sending:
            try:
                self._line.sendall(data)
            except OSError:
                _die()

    def _check_fork(self) -> None:
        if os.getpid() != self._pid:  # a copy that a handler forked and let return
            os._exit(0)

    # --- loop and resources -----------------------------------------------------------------------------------------

    def _loop_runner(self) -> asyncio.Runner:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner

    def _resources(self, factory: Any) -> Any:
        if self._keeper is None:
            self._keeper = ResourceKeeper(factory)
        if not self._keeper.is_open:
            self._loop_runner().run(self._keeper.enter())
        return self._keeper.value

    def _leave(self) -> None:
        """The parent waits only so long for this."""
        if self._runner is not None:
            if self._keeper is not None:
                self._runner.run(self._keeper.leave())
            self._runner.close()


def _run_sync(control: AttemptControl) -> Finish:
    current_attempt.set(control)
    return endings.run_sync(control)


def _assignment(run: frames.Run) -> Assignment:
    unknown_yet = cast(Runnable, None)  # found by the main thread, which may import for it
    return Assignment(
        run.run_id, run.attempt_id, run.fence, run.task_id, unknown_yet, run.payload, run.attempt_number,
        run.failure_count, run.max_attempts, run.token, run.scheduled_at, run.started_at, run.timeout_us, run.metadata,
        records=run.records,
    )  # fmt: skip


def _reply_of(frame: frames.Answered) -> Any:
    if frame.problem is None:
        return None
    code, message, facts = frame.problem
    return error_kinds().get(code, ActionQueueError)(message, **facts)


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - Path.open costs three times as much
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
