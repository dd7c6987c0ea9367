"""Worker processes come and go: they die, are retired, cannot start, lose their parent, are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from actionqueue.core.state import Outcome
from actionqueue.executors import crew
from actionqueue.executors.processes import ProcessExecutor
from tests.executors import handlers
from tests.executors.handlers import FakeTask
from tests.executors.rig import PATIENCE_S, Rig, await_ends_of_processes, error_of, rig_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need POSIX")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pidfd, PDEATHSIG")


@pytest.fixture
def executor() -> ProcessExecutor:
    return ProcessExecutor(1, stop_grace_s=PATIENCE_S)


@pytest.fixture
def rig(executor: ProcessExecutor) -> Iterator[Rig]:
    with rig_of(executor) as rig:
        yield rig


def pid_of(rig: Rig) -> int:
    pid: int = rig.value(handlers.facts)[-1]
    return pid


# --- processes that die -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "how"),
    [
        (handlers.leaves_by_the_window, "exited with status 7"),
        (handlers.segfaults, "was killed by SIGSEGV"),
        (handlers.is_killed, "was killed by SIGKILL"),
    ],
)
def test_a_process_that_dies_under_an_attempt_is_a_failure_that_says_how(rig: Rig, handler: FakeTask, how: str) -> None:
    end = rig.run(handler)

    assert (*error_of(end), end.reason) == (Outcome.FAILED, "worker_died", False, "worker_died")
    assert end.error is not None
    assert how in end.error.message
    assert rig.value(handlers.echo, "next") == "next"


@on_linux
def test_an_idle_process_that_died_costs_no_attempt(rig: Rig, executor: ProcessExecutor) -> None:
    for _ in range(5):
        pid = pid_of(rig)
        os.kill(pid, signal.SIGKILL)  # noticed before the next attempt, while it is handed over, or after

        assert rig.value(handlers.echo, "next") == "next"


@on_linux
def test_a_process_that_dies_with_an_attempt_it_has_not_begun_costs_no_attempt(rig: Rig) -> None:
    pid = pid_of(rig)
    os.kill(pid, signal.SIGSTOP)
    attempt_id = rig.start(handlers.echo, "next")  # handed over; the process does not read it
    assert attempt_id in rig.executor.running()

    os.kill(pid, signal.SIGKILL)

    end = rig.end_of(attempt_id)
    assert (end.outcome, end.body) == (Outcome.COMPLETED, b'"next"')


def test_a_call_is_told_once_everything_is_ready_for_it(rig: Rig) -> None:
    attempt_id = rig.begin(handlers.sleeps)

    assert [(each.attempt_id, each.run_id, each.fence) for each in rig.calls] == [
        (attempt_id, b"r" + attempt_id[1:], 1)
    ]


def test_no_call_is_told_where_it_does_not_matter_or_nothing_is_called(rig: Rig) -> None:
    unbounded = rig.assign(handlers.echo, 1)
    unbounded.timeout_us = None
    rig.executor.start([unbounded])
    rig.end_of(unbounded.attempt_id)
    missing = rig.run(FakeTask(handlers.echo.runnable.function, locator="tests.executors.missing:echo"))

    assert missing.reason == "not_importable"
    assert rig.calls == []


def test_the_deadline_that_a_handler_sees_counts_from_its_call(rig: Rig) -> None:
    """A cold process takes tens of milliseconds to start; the attempt started before that."""
    late_us = rig.value(handlers.lateness)

    assert late_us > 1_000


def test_a_process_that_does_not_come_to_call_the_handler_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "CALL_TIMEOUT_S", 0.05)
    with rig_of(ProcessExecutor(1)) as rig:
        pid = pid_of(rig)
        stuck = rig.assign(FakeTask(handlers.echo.runnable.function, locator="tests.executors.hangs_on_import:echo"))
        stuck.timeout_us = 1
        rig.executor.start([stuck])

        end = rig.end_of(stuck.attempt_id)

        assert (end.outcome, end.reason, end.terminal) == (Outcome.FAILED, "worker_died", False)
        assert end.error is not None
        assert f"the worker process {pid} did not come to call the handler" in end.error.message
        assert pid_of(rig) != pid


@on_linux
def test_a_process_that_does_not_take_up_its_attempt_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with rig_of(ProcessExecutor(1)) as rig:
        pid = pid_of(rig)
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(crew, "CALL_TIMEOUT_S", 0.05)
            attempt = rig.assign(handlers.echo, "next")
            attempt.timeout_us = 1
            rig.executor.start([attempt])
            assert await_ends_of_processes([pid], PATIENCE_S) == []

        assert rig.end_of(attempt.attempt_id).body == b'"next"'


def test_processes_that_do_not_start_fail_the_attempts_that_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with rig_of(ProcessExecutor(1)) as rig:
        end = rig.run(handlers.echo, 1)

        assert (end.outcome, end.reason, end.terminal) == (Outcome.FAILED, "worker_not_started", False)
        assert end.error is not None
        assert "exited with status 1" in end.error.message
        assert caplog.text.count("did not start") >= crew.START_FAILURES_MAX


def test_without_an_interpreter_to_start_attempts_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with rig_of(ProcessExecutor(1)) as rig:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            end = rig.run(handlers.echo, 1)

        assert end.reason == "worker_not_started"
        assert rig.value(handlers.echo, 2) == 2


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("handler", ["sleeps", "holds_the_interpreter", "swallows_every_exception"])
def test_when_the_parent_is_killed_its_children_end_within_two_seconds(handler: str) -> None:
    program = f"""
from actionqueue.executors.processes import ProcessExecutor
from tests.executors import handlers
from tests.executors.rig import Rig

executor = ProcessExecutor(2)
rig = Rig(executor)
rig.value(handlers.echo, 1)
rig.begin(handlers.{handler})
rig.start(handlers.echo, 1)
rig.wait_until(lambda: len(rig.ends) == 2)
print(*executor.pids(), flush=True)
import signal; signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()

    assert await_ends_of_processes(pids, 2.0) == []


# --- retiring ---------------------------------------------------------------------------------------------------------


def test_a_process_is_replaced_after_so_many_attempts() -> None:
    with rig_of(ProcessExecutor(1, max_attempts_per_process=3)) as rig:
        pids = [pid_of(rig) for _ in range(9)]

        assert isinstance(rig.executor, ProcessExecutor)
        assert len(rig.executor.pids()) <= 2  # the successor, and perhaps one that is still leaving
    assert [len(set(pids[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_a_process_over_its_memory_is_replaced_between_attempts() -> None:
    with rig_of(ProcessExecutor(1, rss_bytes_max=1)) as rig:
        pids = [pid_of(rig) for _ in range(3)]

    assert len(set(pids)) == 3


def test_one_under_it_is_kept() -> None:
    with rig_of(ProcessExecutor(1, rss_bytes_max=1 << 40)) as rig:
        pids = [pid_of(rig) for _ in range(3)]

    assert len(set(pids)) == 1


# --- closing ----------------------------------------------------------------------------------------------------------


@on_linux
def test_close_stops_what_runs_and_leaves_no_process() -> None:
    executor = ProcessExecutor(2)
    with rig_of(executor) as rig:
        running = rig.begin(handlers.sleeps)
        rig.value(handlers.echo, 1)
        waiting = [rig.start(handlers.sleeps) for _ in range(3)]
        pids = executor.pids()

        executor.close(PATIENCE_S)

        assert [rig.ends[each].outcome for each in (running, *waiting)] == [Outcome.INTERRUPTED] * 4
        assert executor.running() == []
        assert await_ends_of_processes(pids, 0.0) == []
        assert executor.pids() == []


@on_linux
def test_close_kills_what_does_not_stop_in_time() -> None:
    executor = ProcessExecutor(1)
    with rig_of(executor) as rig:
        attempt_id = rig.begin(handlers.holds_the_interpreter)
        pids = executor.pids()
        began = time.monotonic()

        executor.close(0.2)

        assert time.monotonic() - began < 5
        assert rig.ends[attempt_id].outcome is Outcome.INTERRUPTED
        assert await_ends_of_processes(pids, 0.0) == []


def test_what_comes_after_close_is_interrupted_and_not_at_once_due_again() -> None:
    with rig_of(ProcessExecutor(1)) as rig:
        rig.executor.close(1)

        end = rig.run(handlers.echo, 1)

        assert (end.outcome, end.delay_us) == (Outcome.INTERRUPTED, 1_000_000)


def test_no_process_is_started_before_the_first_attempt() -> None:
    executor = ProcessExecutor(2)
    with rig_of(executor):
        assert executor.pids() == []
