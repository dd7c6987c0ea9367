"""The real engine in a world whose time moves only when a test moves it.

``queue.running()`` with the ``clock`` fixture runs every thread that an engine has, on a store in memory or on SQLite;
timers, backoffs, timeouts and deadlines follow the ``ManualClock``. ``advance`` moves it and lets the engine look;
``settle`` returns when nothing runs and nothing more can start at this instant. Handlers wait for events, not for time.

``Hand`` is an executor without code: a test takes the attempts that are handed to it and ends them as it likes, also
after they were given up. Its reports are made by the real executors' own functions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from actionqueue import ActionQueue
from actionqueue.core.attempts import Finish
from actionqueue.core.instants import parse_duration_us, to_datetime
from actionqueue.core.state import RUNNING
from actionqueue.engine.engine import Engine
from actionqueue.executors import endings
from actionqueue.executors.port import Assignment, AttemptControl, Called, Report, Sink
from actionqueue.session import Session
from tests.process.support import PATIENCE_S, inspect

START = 1_700_000_000_000_000
SECOND = 1_000_000


class ManualClock:
    """The engine's clock, and the wall clock with it. Microseconds."""

    def __init__(self, at: int = START) -> None:
        self.at = at

    def now_us(self) -> int:
        return self.at

    def wall_us(self) -> int:
        return self.at

    @property
    def now(self) -> datetime:
        return to_datetime(self.at)

    def move(self, duration: float | str) -> None:
        """On by that long, while nobody looks."""
        self.at += parse_duration_us(duration)


def manual_clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of every engine that is opened from here on, until ``monkeypatch`` ends."""
    made = ManualClock()

    def clock_of(not_before_us: int = 0) -> ManualClock:
        made.at = max(made.at, not_before_us)  # as the real one is anchored
        return made

    monkeypatch.setattr("actionqueue.engine.engine.SystemClock", clock_of)
    return made


def engine_of(queue: ActionQueue) -> Engine:
    """The engine of this process's queue."""
    assert queue.session is not None
    assert queue.session.engine is not None
    return queue.session.engine


def advance(queue: ActionQueue, clock: ManualClock, duration: float | str) -> None:
    """Time passes, and the engine has done what that implies (what it starts may still be running)."""
    clock.move(duration)
    look(queue)


def look(queue: ActionQueue) -> None:
    """The engine has looked at the clock and at everything that was reported, and said what follows."""
    queue.stats()
    queue.stats()  # what the first look started or gave up has been handed out before this one is answered


def settle(queue: ActionQueue) -> None:
    """Until nothing runs and nothing more can start at this instant."""
    deadline = time.monotonic() + PATIENCE_S
    quiet_looks = 0
    while quiet_looks < 2:  # what the first look saw end may have made room for something
        assert time.monotonic() < deadline, "it does not settle"
        engine = engine_of(queue)
        busy = inspect(queue, lambda state: state.counts[RUNNING] > 0) or engine.writer.has_work()
        quiet_looks = 0 if busy else quiet_looks + 1


class Gate:
    """Where a handler waits until it is let go; one entry, one way out."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.left = threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE_S), "nobody opened the gate"
        self.left.set()

    def await_entry(self) -> None:
        assert self.entered.wait(PATIENCE_S), "nobody came to the gate"


class Hand:
    """An executor that runs nothing: see the module's head."""

    tells_calls = False

    def __init__(self, slots: int = 100, name: str = "thread") -> None:
        self.slots = slots
        self.name = name
        self.stops: list[tuple[bytes, str]] = []
        self.abandoned: list[bytes] = []
        self._sink: Sink = _nobody
        self._waiting: list[Assignment] = []
        self._controls: dict[bytes, AttemptControl] = {}
        self._changed = threading.Condition()

    # --- the port ---------------------------------------------------------------------------------------------------

    def begin(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, assignments: Sequence[Assignment]) -> None:
        with self._changed:
            self._waiting += assignments
            for assignment in assignments:
                self._controls[assignment.attempt_id] = AttemptControl(assignment)
            assert len(self.running()) <= self.slots, "more attempts than slots"
            self._changed.notify_all()

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        self.stops.append((attempt_id, reason))
        self._controls[attempt_id].request_stop(reason)

    def abandon(self, attempt_id: bytes) -> None:
        self.abandoned.append(attempt_id)

    def running(self) -> list[bytes]:
        return [attempt_id for attempt_id in self._controls if attempt_id not in self.abandoned]

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._controls.clear()
            self._waiting.clear()

    # --- the test's -------------------------------------------------------------------------------------------------

    def take(self) -> Assignment:
        """The next attempt that was handed over."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self._waiting), PATIENCE_S), "no attempt came"
            return self._waiting.pop(0)

    @property
    def handed_over(self) -> int:
        """How many attempts nobody has taken."""
        return len(self._waiting)

    def calls(self, assignment: Assignment) -> None:
        """Its handler is called: for a hand that says so."""
        self._sink([Called(assignment.run_id, assignment.attempt_id, assignment.fence)])

    def returns(self, assignment: Assignment, value: object = None) -> None:
        """Its code returns."""
        self._report(endings.returned(self._control(assignment), value), assignment)

    def raises(self, assignment: Assignment, error: BaseException) -> None:
        """Its code raises."""
        self._report(endings.raised(self._control(assignment), error), assignment)

    def _control(self, assignment: Assignment) -> AttemptControl:
        return self._controls.get(assignment.attempt_id) or AttemptControl(assignment)

    def _report(self, finish: Finish, assignment: Assignment) -> None:
        self._controls.pop(assignment.attempt_id, None)
        self._sink([finish])


def _nobody(reports: Sequence[Report]) -> None:
    raise AssertionError("begin() was not called")


@contextmanager
def in_hand(monkeypatch: pytest.MonkeyPatch, slots: int = 100) -> Iterator[Hand]:
    """Plain handlers of queues that are opened inside are run by nobody but the test."""
    hand = Hand(slots)
    make = Session._make_executors

    def with_hand(self: Session) -> list[Any]:
        return [hand if executor.name == hand.name else executor for executor in make(self)]

    with monkeypatch.context() as patched:
        patched.setattr(Session, "_make_executors", with_hand)
        yield hand
