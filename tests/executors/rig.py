"""One executor with a sink that can be waited on. Every wait has a deadline; none sleeps."""

from __future__ import annotations

import itertools
import json
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import close, pidfd_open
from typing import Any

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.state import Outcome
from actionqueue.executors.port import Assignment, Called, Executor, Report, Runnable
from tests.executors.handlers import FakeTask

PATIENCE_S = 20.0


class Rig:
    """Starts attempts on an executor and collects what it reports."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.batches: list[int] = []
        self.ends: dict[bytes, Finish] = {}
        self.calls: list[Called] = []
        self.progress: dict[bytes, list[Progress]] = {}
        self.changed = threading.Condition()
        self._ids = itertools.count(1)
        executor.begin(self.sink)

    def sink(self, reports: Sequence[Report]) -> None:
        with self.changed:
            self.batches.append(len(reports))
            for report in reports:
                if isinstance(report, Called):
                    assert report.attempt_id not in self.ends, "it is said before the end"
                    self.calls.append(report)
                elif isinstance(report, Progress):
                    self.progress.setdefault(report.attempt_id, []).append(report)
                else:
                    assert report.attempt_id not in self.ends, "an end is reported once"
                    self.ends[report.attempt_id] = report
            self.changed.notify_all()

    def assign(self, task: FakeTask, argument: Any = None) -> Assignment:
        number = next(self._ids)
        name = number.to_bytes(16, "big")
        runnable: Runnable = task.runnable
        return Assignment(
            b"r" + name[1:], name, number, b"t" * 16, runnable, json.dumps(argument).encode(), 2, 1, 3, b"k" * 16,
            1_000_000, 2_000_000, 30_000_000, {"tenant": "acme"},
        )  # fmt: skip

    def start(self, task: FakeTask, argument: Any = None) -> bytes:
        assignment = self.assign(task, argument)
        self.executor.start([assignment])
        return assignment.attempt_id

    def begin(self, task: FakeTask, argument: Any = None) -> bytes:
        """Start an attempt, and return when its code says that it runs."""
        attempt_id = self.start(task, argument)
        self.wait_until(lambda: attempt_id in self.progress or attempt_id in self.ends)
        assert attempt_id not in self.ends, self.ends[attempt_id]
        return attempt_id

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Looked at again whenever something is reported."""
        with self.changed:
            assert self.changed.wait_for(holds, PATIENCE_S), "it did not happen"

    def end_of(self, attempt_id: bytes) -> Finish:
        self.wait_until(lambda: attempt_id in self.ends)
        end = self.ends[attempt_id]
        assert end.run_id == b"r" + attempt_id[1:]
        assert end.fence == int.from_bytes(attempt_id, "big")
        return end

    def run(self, task: FakeTask, argument: Any = None) -> Finish:
        return self.end_of(self.start(task, argument))

    def value(self, task: FakeTask, argument: Any = None) -> Any:
        """What the handler returned."""
        end = self.run(task, argument)
        assert end.outcome is Outcome.COMPLETED, end
        assert end.body is not None
        return json.loads(end.body)

    def message_of(self, attempt_id: bytes) -> str:
        return self.progress[attempt_id][0].message


def error_of(end: Finish) -> tuple[Outcome, str, bool]:
    """Outcome, class of the error, and whether it is final."""
    return end.outcome, "" if end.error is None else end.error.kind, end.terminal


def await_ends_of_processes(pids: Sequence[int], within_s: float) -> list[int]:
    """The processes that have not ended in time."""
    deadline = time.monotonic() + within_s
    return [pid for pid in pids if not _ends(pid, deadline)]


def _ends(pid: int, deadline: float) -> bool:
    try:
        descriptor = pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0])
    finally:
        close(descriptor)


@contextmanager
def rig_of(executor: Executor, close_s: float = 5.0) -> Iterator[Rig]:
    rig = Rig(executor)
    try:
        yield rig
    finally:
        executor.close(close_s)
