"""From how code ended to what is reported: one table for all executors.

==========================================  =======================================================================
the handler                                 is reported as
==========================================  =======================================================================
returned                                    completed; ``timed_out`` when it was being stopped for its timeout
returned something that cannot be encoded   failed, terminal, reason ``result_not_encodable``
returned more than ``result_bytes_max``     failed, terminal, reason ``result_too_large``
raised ``TerminalFailure``, ``no_retry_on``  failed, terminal
raised ``RetryAfter(delay)``                failed, tried again after that delay
raised ``Snooze(delay)``                    snoozed
waits (``sleep``, ``receive``)              awaiting
asked for a record of another kind          failed, terminal, reason ``step_mismatch``
returned after swallowing one of those      failed, terminal, reason ``swallowed_control``
raised anything else                        failed
ended without a value while being stopped   the outcome it was being stopped for
could not decode its stored arguments       interrupted, reason ``arguments``
==========================================  =======================================================================
"""

from __future__ import annotations

import asyncio
import logging
import random
import traceback as tracebacks
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from msgspec import json

from actionqueue.core.attempts import MISFIT, Finish
from actionqueue.core.awaiting import WaitAsked
from actionqueue.core.ids import RunId
from actionqueue.core.state import ErrorInfo, Outcome, Output
from actionqueue.core.steps import NOTE, UNASKED
from actionqueue.executors.port import (
    STOP_CANCEL,
    STOP_DRAIN,
    STOP_TIMEOUT,
    Assignment,
    AttemptControl,
    Record,
)
from actionqueue.executors.texts import cut, cut_front

ERROR_MESSAGE_CHARACTERS_MAX = 4_000
"""An error's message; what is longer is cut."""
ERROR_KIND_CHARACTERS_MAX = 200
"""The name of an error's class; what is longer is cut."""
TRACEBACK_CHARACTERS_MAX = 16_000
"""A traceback; what is longer is cut at its front."""
TRACEBACK_FRAMES_MAX = 100
CAUSES_MAX = 20
UNASKED_TOLD_MAX = 100

log = logging.getLogger("actionqueue")

_EXECUTORS = Path(__file__).parent
_OUR_FOLDERS = (_EXECUTORS, _EXECUTORS.parent)
"""Where the code between an executor and a handler stands: here, and in the public API's modules."""

_MODULES_LEFT_OUT = ("builtins", "__main__", "__mp_main__")
"""Of classes of these, and of our own, which are all imported from the package, the name alone says enough."""

_STOPPED = {STOP_TIMEOUT: Outcome.TIMED_OUT, STOP_CANCEL: Outcome.CANCELED, STOP_DRAIN: Outcome.INTERRUPTED}


class ControlException(BaseException):
    """Base of what a handler raises to steer its run; no ``Exception``, so that ``except Exception`` lets it pass."""


class TerminalFailure(Exception):
    """Raise to fail the run for good, whatever attempts are left.

    >>> raise TerminalFailure("the file does not parse")
    Traceback (most recent call last):
    actionqueue.executors.endings.TerminalFailure: the file does not parse
    """


class RetryAfter(ControlException):
    """Raise to fail this attempt (it counts) and have the next one after ``delay_us`` microseconds."""

    def __init__(self, delay_us: int, message: str = "") -> None:
        super().__init__(message or f"retry after {delay_us / 1e6:g} s")
        self.delay_us = delay_us


class Snooze(ControlException):
    """Raise to end this attempt without counting it, and run again after ``delay_us`` microseconds."""

    def __init__(self, delay_us: int, message: str = "") -> None:
        super().__init__(message or f"snooze {delay_us / 1e6:g} s")
        self.delay_us = delay_us


class Waiting(ControlException):
    """What a wait raises: the attempt ends, and the handler is run again when the wait is over."""

    def __init__(self, asked: WaitAsked) -> None:
        super().__init__(f"waits for {asked.name}")
        self.asked = asked


class StepMismatch(ControlException):
    """A recorded step or wait is of another kind than the code asks for: the run fails for good."""


class StopRequested(ControlException):
    """What ``check_canceled`` raises in a handler that was asked to stop."""


def describe(error: BaseException) -> ErrorInfo:
    """Class, message and traceback (with causes), bounded; the fingerprint groups failures by class and place.

    The frames that lead from an executor to the handler are left out. Never raises.
    """
    kind, module = type(error).__qualname__, type(error).__module__
    if module not in _MODULES_LEFT_OUT and not module.startswith("actionqueue."):
        kind = f"{module}.{kind}"
    kind = cut(kind, ERROR_KIND_CHARACTERS_MAX)
    try:
        message = str(error)
    except Exception as unprintable:
        message = f"<{type(unprintable).__name__} while printing the message>"
    try:
        story = tracebacks.TracebackException.from_exception(error, limit=-TRACEBACK_FRAMES_MAX)
        _drop_our_frames(story.stack)
        place = f"{story.stack[-1].filename}:{story.stack[-1].name}" if story.stack else ""
        _drop_carets(story)
        text = "".join(story.format())
    except Exception as undescribable:
        place, text = "", f"<{type(undescribable).__name__} while describing the traceback>"
    return ErrorInfo(
        kind,
        cut(message, ERROR_MESSAGE_CHARACTERS_MAX),
        cut_front(text, TRACEBACK_CHARACTERS_MAX),
        blake2b(f"{kind}|{place}".encode(errors="replace"), digest_size=6).hexdigest(),
    )


def _drop_our_frames(stack: tracebacks.StackSummary) -> None:
    ours = 0
    while ours < len(stack) - 1 and Path(stack[ours].filename).parent in _OUR_FOLDERS:
        ours += 1
    del stack[:ours]


def _drop_carets(story: tracebacks.TracebackException) -> None:
    """The marks below source lines cost a parse of each line, and in Python 3.11 that parser is not safe in threads."""
    stories: list[tracebacks.TracebackException | None] = [story]
    while stories:
        each = stories.pop()
        if each is not None:
            for frame in each.stack:
                frame.colno = None
            stories += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]


def returned(control: AttemptControl, value: object) -> Finish:
    """The report for a handler that returned ``value``."""
    a = control.assignment
    if control.reason == STOP_TIMEOUT:
        return _report(a, Outcome.TIMED_OUT)
    if control.misused is not None:
        return failed(a, "swallowed_control", f"the handler raised {control.misused} and then returned", terminal=True)
    body: bytes | None = None
    output: Output | None = None
    if value is not None:
        try:
            body = a.runnable.encode(value)
        except Exception as error:
            return _report(
                a, Outcome.FAILED, error=describe(error), terminal=True, reason="result_not_encodable"
            )  # fmt: skip
        if body is not None:
            if len(body) > a.runnable.result_bytes_max:
                message = f"the result takes {len(body)} bytes; result_bytes_max is {a.runnable.result_bytes_max}"
                return failed(a, "result_too_large", message, terminal=True)
            output = Output(blake2b(body, digest_size=16).digest(), len(body))
    if a.records:
        _note_unasked(control, a.records)
    return Finish(a.run_id, a.attempt_id, a.fence, Outcome.COMPLETED, body, output)


def _note_unasked(control: AttemptControl, records: list[Record]) -> None:
    """Say of what is recorded that the code did not ask for it: it has changed since, or takes another way."""
    from actionqueue.executors.memory import memory_of, record_of

    asked = memory_of(control).asked
    names = [name for name, kind, _ in records if kind != NOTE and name not in asked and not name.startswith("\0")]
    if names and control.ask is not None:
        log.warning("run %s completed without asking for what it had recorded: %s",
                    RunId(bytes=control.assignment.run_id), ", ".join(names[:UNASKED_TOLD_MAX]))  # fmt: skip
        body = json.encode(names[:UNASKED_TOLD_MAX])
        control.ask(record_of(control, UNASKED, NOTE, body), lambda reply: None)


def raised(control: AttemptControl, error: BaseException) -> Finish:
    """The report for a handler that ended by ``error``."""
    a = control.assignment
    if control.reason is not None and isinstance(error, asyncio.CancelledError | StopRequested):
        return stopped(a, control.reason)
    if control.reason == STOP_TIMEOUT or (control.reason is not None and _came_of_stopping(error)):
        return _report(a, _STOPPED.get(control.reason, Outcome.CANCELED), error=describe(error))
    match error:
        case Snooze():
            return _report(a, Outcome.SNOOZED, delay_us=error.delay_us)
        case Waiting():
            finish = _report(a, Outcome.AWAITING)
            finish.wait = error.asked
            return finish
        case StepMismatch():
            return failed(a, "step_mismatch", str(error), terminal=True)
        case RetryAfter():
            return _report(a, Outcome.FAILED, error=describe(error), delay_us=error.delay_us)
        case _:
            terminal = isinstance(error, (TerminalFailure, *a.runnable.no_retry_on))
            return _report(a, Outcome.FAILED, error=describe(error), terminal=terminal)


def _came_of_stopping(error: BaseException) -> bool:
    """Whether ``error`` was raised while the stop was being handled, such as by a clean-up in ``finally``."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            return False
        if isinstance(cause, asyncio.CancelledError | StopRequested):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def misfit(assignment: Assignment, error: BaseException) -> Finish:
    """The report for arguments that do not fit the handler."""
    return _report(assignment, Outcome.INTERRUPTED, error=describe(error), reason=MISFIT)


def failed(assignment: Assignment, reason: str, message: str, *, terminal: bool = False) -> Finish:
    """A failure that is no exception of the handler's: a dead worker process, a result too large."""
    fingerprint = blake2b(reason.encode(), digest_size=6).hexdigest()
    return _report(
        assignment,
        Outcome.FAILED,
        error=ErrorInfo(reason, cut(message, ERROR_MESSAGE_CHARACTERS_MAX), "", fingerprint),
        terminal=terminal,
        reason=reason,
    )


def put_off(assignment: Assignment, delay_us: int) -> Finish:
    """The report for an attempt that could not begin; it does not count."""
    return _report(assignment, Outcome.INTERRUPTED, delay_us=delay_us, reason="not_started")


def stopped(assignment: Assignment, reason: str) -> Finish:
    """The report for code that ended, without a value, because it was being stopped for ``reason``."""
    return _report(assignment, _STOPPED.get(reason, Outcome.CANCELED))


def no_resources(assignment: Assignment, error: BaseException) -> Finish:
    """The report for an attempt whose executor could not enter the queue's ``resources``; tried again as a failure."""
    info = describe(error)
    message = cut(
        f"the queue's resources could not be entered: {info.kind}: {info.message}", ERROR_MESSAGE_CHARACTERS_MAX
    )
    info = ErrorInfo(info.kind, message, info.traceback, info.fingerprint)
    return _report(assignment, Outcome.FAILED, error=info, reason="no_resources")


def not_importable(assignment: Assignment, locator: str, error: BaseException) -> Finish:
    """The report for a worker process in which importing the handler's module raises."""
    info = describe(error)
    message = cut(f"importing {locator} raised {info.kind}: {info.message}", ERROR_MESSAGE_CHARACTERS_MAX)
    info = ErrorInfo(info.kind, message, info.traceback, info.fingerprint)
    return _report(assignment, Outcome.FAILED, error=info, terminal=True, reason="not_importable")


def _report(
    a: Assignment,
    outcome: Outcome,
    *,
    error: ErrorInfo | None = None,
    terminal: bool = False,
    delay_us: int | None = None,
    reason: str = "",
) -> Finish:
    return Finish(
        a.run_id, a.attempt_id, a.fence, outcome, None, None, error, terminal, delay_us, random.random(), reason
    )


def run_sync(control: AttemptControl) -> Finish:
    """Run a plain handler to its end in this thread; what was stopped before it began does not begin."""
    a = control.assignment
    if control.canceled:
        return stopped(a, control.reason or STOP_CANCEL)
    try:
        try:
            call: Callable[[], object] = a.runnable.bind(a, control)
        except Exception as error:
            return misfit(a, error)
        return returned(control, call())
    except BaseException as error:  # whatever it is, it is an outcome of the attempt
        return raised(control, error)


async def run_async(control: AttemptControl) -> Finish:
    """Run an async handler to its end in this task."""
    a = control.assignment
    try:
        try:
            call = a.runnable.bind(a, control)
        except Exception as error:
            return misfit(a, error)
        return returned(control, await call())
    except BaseException as error:  # whatever it is, it is an outcome of the attempt
        return raised(control, error)
