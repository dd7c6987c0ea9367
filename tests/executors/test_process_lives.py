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
