"""Sample handlers, importable by worker processes, and the fakes of what executors know a handler by."""

from __future__ import annotations

import asyncio
import collections
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from actionqueue.executors.endings import RetryAfter, Snooze, StopRequested, TerminalFailure
from actionqueue.executors.port import Assignment, AttemptControl, Misfit, current_attempt


class FakeRunnable:
    """``port.Runnable`` over a function of (control, argument)."""

    def __init__(self, function: Callable[[AttemptControl, Any], Any], **facts: Any) -> None:
        self.function = function
        self.name: str = facts.get("name", function.__name__)
        self.is_async = asyncio.iscoroutinefunction(function)
        self.result_bytes_max = 1_000
        self.no_retry_on: tuple[type[BaseException], ...] = facts.get("no_retry_on", ())
        self.locator: str = facts.get("locator", f"{__name__}:{function.__name__}")
        self.resources_factory = facts.get("resources_factory")

    def bind(self, assignment: Assignment, control: AttemptControl) -> Callable[[], Any]:
        argument = json.loads(assignment.payload)
        if argument == "misfit":
            raise Misfit("missing a required argument: 'customer_id'")
        return lambda: self.function(control, argument)

    def encode(self, value: Any) -> bytes | None:
        return msgspec.json.encode(value)


class FakeTask:
    """What ``@queue.task`` makes, as far as a worker process looks at it."""

    def __init__(self, function: Callable[[AttemptControl, Any], Any], **facts: Any) -> None:
        self.runnable = FakeRunnable(function, **facts)


def task(function: Callable[[AttemptControl, Any], Any]) -> FakeTask:
    return FakeTask(function)


def say_begun(control: AttemptControl, message: str = "") -> None:
    """Let the test know that the handler's code runs now."""
    control.report_progress(1, None, message)


# --- that end by themselves -----------------------------------------------------------------------------------------


@task
def echo(control: AttemptControl, argument: Any) -> Any:
    return argument


@task
def lateness(control: AttemptControl, argument: Any) -> Any:
    return control.late_us


@task
def facts(control: AttemptControl, argument: Any) -> Any:
    a = control.assignment
    seen = [current_attempt.get() is control, a.attempt_number, a.failure_count, a.max_attempts, a.metadata]
    return [*seen, a.scheduled_at, a.started_at, a.timeout_us, a.token.hex(), os.getpid()]


@task
def raises_value_error(control: AttemptControl, argument: Any) -> None:
    raise ValueError("no such customer")


@task
def exits(control: AttemptControl, argument: Any) -> None:
    sys.exit(3)


@task
def interrupts(control: AttemptControl, argument: Any) -> None:
    raise KeyboardInterrupt


@task
def raises_generator_exit(control: AttemptControl, argument: Any) -> None:
    raise GeneratorExit


@task
def unserialisable(control: AttemptControl, argument: Any) -> object:
    return object()


@task
def oversized(control: AttemptControl, argument: Any) -> str:
    return "x" * 1_001


@task
def gives_up(control: AttemptControl, argument: Any) -> None:
    raise TerminalFailure("the file does not parse")


def _raises_key_error(control: AttemptControl, argument: Any) -> None:
    raise KeyError("colour")


raises_unretryable = FakeTask(
    _raises_key_error, no_retry_on=(LookupError,), locator=f"{__name__}:raises_unretryable", name="unretryable"
)


@task
def snoozes(control: AttemptControl, argument: Any) -> None:
    raise Snooze(90_000_000)


@task
def retries_later(control: AttemptControl, argument: Any) -> None:
    raise RetryAfter(5_000_000)


@task
def swallows_control(control: AttemptControl, argument: Any) -> str:
    control.misused = "Snooze"  # what the public Snooze does when it is made
    try:
        raise Snooze(1)
    except BaseException:
        return "fine"


@task
def recurses(control: AttemptControl, argument: Any) -> None:
    def deeper() -> None:
        deeper()

    deeper()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@task
def raises_unprintable(control: AttemptControl, argument: Any) -> None:
    raise Unprintable


# --- async ----------------------------------------------------------------------------------------------------------


@task
async def async_echo(control: AttemptControl, argument: Any) -> Any:
    await asyncio.sleep(0)
    return [argument, current_attempt.get() is control]


@task
async def async_raises_value_error(control: AttemptControl, argument: Any) -> None:
    raise ValueError("no such customer")


@task
async def async_exits(control: AttemptControl, argument: Any) -> None:
    sys.exit(3)


@task
async def async_interrupts(control: AttemptControl, argument: Any) -> None:
    raise KeyboardInterrupt


@task
async def async_raises_generator_exit(control: AttemptControl, argument: Any) -> None:
    raise GeneratorExit


@task
async def async_unserialisable(control: AttemptControl, argument: Any) -> object:
    return object()


@task
async def async_oversized(control: AttemptControl, argument: Any) -> str:
    return "x" * 1_001


@task
async def async_snoozes(control: AttemptControl, argument: Any) -> None:
    raise Snooze(90_000_000)


@task
async def async_retries_later(control: AttemptControl, argument: Any) -> None:
    raise RetryAfter(5_000_000)


@task
async def async_swallows_control(control: AttemptControl, argument: Any) -> str:
    control.misused = "RetryAfter"
    return "fine"


@task
async def cancels_itself(control: AttemptControl, argument: Any) -> None:
    raise asyncio.CancelledError


@task
async def leaves_an_exiting_task_behind(control: AttemptControl, argument: Any) -> str:
    async def background() -> None:
        sys.exit(9)

    behind = asyncio.create_task(background())
    behind.add_done_callback(lambda _: behind.exception())  # keeps it, and marks the exception as seen
    return "done"


@task
async def waits_for_ever(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    await asyncio.get_running_loop().create_future()


@task
async def returns_although_cancelled(control: AttemptControl, argument: Any) -> str:
    say_begun(control)
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        return "done all the same"
    return "never"


@task
async def fails_cleaning_up(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        raise OSError("the connection was gone already")


@task
async def uses_resources(control: AttemptControl, argument: Any) -> Any:
    return control.resources


# --- that have to be stopped ----------------------------------------------------------------------------------------


@task
def polls_the_token(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    woken = threading.Event()
    control.stop_hooks.append(woken.set)
    woken.wait(30)
    if control.canceled:
        raise StopRequested(control.reason)


@task
def sleeps(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    time.sleep(600)


@task
def computes(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    while True:
        pass


@task
def swallows_every_exception(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


@task
def runs_until_told(control: AttemptControl, argument: Any) -> None:
    """Runs until the file that it names appears."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        say_begun(control, str(told))
        while not told.exists():
            pass


@task
def holds_the_interpreter(control: AttemptControl, argument: Any) -> None:
    say_begun(control, str(os.getpid()))
    collections.deque(itertools.repeat(None), maxlen=0)  # for ever, in C, without a look at signals


@task
def waits_for_a_program(control: AttemptControl, argument: Any) -> None:
    with subprocess.Popen(["sleep", "600"]) as program:
        say_begun(control, f"{os.getpid()} {program.pid}")
        program.wait()


# --- that take their process with them --------------------------------------------------------------------------------


@task
def leaves_by_the_window(control: AttemptControl, argument: Any) -> None:
    os._exit(7)


@task
def segfaults(control: AttemptControl, argument: Any) -> None:
    sys.stderr = None  # the interpreter's report of the crash is not for the test's output
    import faulthandler

    faulthandler.disable()
    ctypes.string_at(0)


@task
def is_killed(control: AttemptControl, argument: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def forks_and_returns_twice(control: AttemptControl, argument: Any) -> str:
    return "copy" if os.fork() == 0 else "original"


@task
def is_a_program_of_its_own(control: AttemptControl, argument: Any) -> Any:
    control.report_progress(1, 2, "half")
    control.report_progress(2, 2, "whole")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return os.getpid()


# --- resources --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened_resources() -> AsyncIterator[str]:
    yield f"resources of {os.getpid()}"


@asynccontextmanager
async def broken_resources() -> AsyncIterator[str]:
    raise ConnectionError("the database is down")
    yield "never"


def _give_resources(control: AttemptControl, argument: Any) -> Any:
    return [control.resources, os.getpid()]


with_resources = FakeTask(
    _give_resources, resources_factory=opened_resources, locator=f"{__name__}:with_resources", name="with_resources"
)
with_broken_resources = FakeTask(
    _give_resources, resources_factory=broken_resources, locator=f"{__name__}:with_broken_resources", name="broken"
)

# --- not to be found --------------------------------------------------------------------------------------------------


def undecorated(control: AttemptControl, argument: Any) -> None: ...


renamed = FakeTask(undecorated, locator=f"{__name__}:undecorated")
misnamed = FakeTask(undecorated, locator=f"{__name__}:echo", name="another")
vanished = FakeTask(undecorated, locator=f"{__name__}:vanished_since", name="vanished_since")
unimportable = FakeTask(undecorated, locator="tests.executors.raises_on_import:handler", name="handler")
