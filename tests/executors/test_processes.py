"""The process executor: every way code can end, including those that take the process with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actionqueue.core.state import Outcome
from actionqueue.executors import frames
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


@pytest.fixture
def impatient() -> Iterator[Rig]:
    """One that kills soon after asking."""
    with rig_of(ProcessExecutor(1, stop_grace_s=0.05)) as rig:
        yield rig


def pid_of(rig: Rig) -> int:
    pid: int = rig.value(handlers.facts)[-1]
    return pid


# --- code that ends ---------------------------------------------------------------------------------------------------


def test_each_bad_end_is_an_outcome_and_the_process_lives_on(rig: Rig) -> None:
    pid = pid_of(rig)
    expected = {
        handlers.raises_value_error: (Outcome.FAILED, "ValueError", False),
        handlers.exits: (Outcome.FAILED, "SystemExit", False),
        handlers.interrupts: (Outcome.FAILED, "KeyboardInterrupt", False),
        handlers.raises_generator_exit: (Outcome.FAILED, "GeneratorExit", False),
        handlers.recurses: (Outcome.FAILED, "RecursionError", False),
        handlers.raises_unprintable: (Outcome.FAILED, "tests.executors.handlers.Unprintable", False),
        handlers.gives_up: (Outcome.FAILED, "TerminalFailure", True),
        handlers.raises_unretryable: (Outcome.FAILED, "KeyError", True),
        handlers.unserialisable: (Outcome.FAILED, "TypeError", True),
        handlers.oversized: (Outcome.FAILED, "result_too_large", True),
        handlers.swallows_control: (Outcome.FAILED, "swallowed_control", True),
        handlers.async_raises_value_error: (Outcome.FAILED, "ValueError", False),
        handlers.cancels_itself: (Outcome.FAILED, "asyncio.exceptions.CancelledError", False),
    }

    ends = {handler: error_of(rig.run(handler)) for handler in expected}

    assert ends == expected
    assert pid_of(rig) == pid
    assert pid != os.getpid()
    assert rig.executor.running() == []


@pytest.mark.parametrize("handler", [handlers.async_exits, handlers.async_interrupts])
def test_an_async_handler_may_raise_what_ends_programs(rig: Rig, handler: FakeTask) -> None:
    end = rig.run(handler)

    assert end.outcome is Outcome.FAILED
    assert rig.value(handlers.async_echo, 1) == [1, True]


def test_a_handler_sees_its_attempt(rig: Rig) -> None:
    assert rig.value(handlers.facts)[:-1] == [
        True, 2, 1, 3, {"tenant": "acme"}, 1_000_000, 2_000_000, 30_000_000, "6b" * 16
    ]  # fmt: skip


def test_the_traceback_is_the_child_s_and_begins_in_the_handler(rig: Rig) -> None:
    end = rig.run(handlers.raises_value_error)

    assert end.error is not None
    assert "in raises_value_error" in end.error.traceback
    assert "actionqueue/executors" not in end.error.traceback


def test_snooze_and_retry_after_carry_their_delay(rig: Rig) -> None:
    snoozed = rig.run(handlers.snoozes)
    later = rig.run(handlers.retries_later)

    assert (snoozed.outcome, snoozed.delay_us) == (Outcome.SNOOZED, 90_000_000)
    assert (later.outcome, later.delay_us) == (Outcome.FAILED, 5_000_000)


def test_arguments_that_do_not_fit_are_no_failure(rig: Rig) -> None:
    end = rig.run(handlers.echo, "misfit")

    assert (end.outcome, end.reason) == (Outcome.INTERRUPTED, "arguments")


def test_progress_arrives_while_the_handler_runs_and_before_its_end(rig: Rig) -> None:
    attempt_id = rig.start(handlers.is_a_program_of_its_own)

    rig.end_of(attempt_id)

    assert [(each.done, each.total, each.message) for each in rig.progress[attempt_id]] == [
        (1, 2, "half"),
        (2, 2, "whole"),
    ]


def test_arguments_and_results_larger_than_a_socket_takes_pass(rig: Rig) -> None:
    big = "x" * 3_000_000

    end = rig.run(handlers.echo, big)

    assert error_of(end) == (Outcome.FAILED, "result_too_large", True)  # so the argument arrived whole
    assert end.error is not None
    assert "3000002 bytes" in end.error.message


def test_attempts_over_the_number_of_processes_wait_for_their_turn() -> None:
    with rig_of(ProcessExecutor(2)) as rig:
        assignments = [rig.assign(handlers.echo, number) for number in range(40)]

        rig.executor.start(assignments)

        assert [rig.end_of(each.attempt_id).body for each in assignments] == [b"%d" % n for n in range(40)]
        assert isinstance(rig.executor, ProcessExecutor)
        assert len(rig.executor.pids()) <= 2


def test_a_copy_that_a_handler_forks_does_not_go_on_as_a_worker(rig: Rig) -> None:
    assert rig.value(handlers.forks_and_returns_twice) == "original"
    assert rig.value(handlers.echo, "next") == "next"


def test_an_attempt_too_large_for_a_frame_fails_for_good(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.value(handlers.echo, "warm")
    with monkeypatch.context() as patched:
        patched.setattr(frames, "FRAME_BYTES_MAX", 1_000)
        end = rig.run(handlers.echo, "x" * 2_000)

    assert (*error_of(end), end.reason) == (Outcome.FAILED, "not_encodable", True, "not_encodable")
    assert rig.value(handlers.echo, "next") == "next"


# --- code that must be stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("canceled", Outcome.CANCELED), ("timed_out", Outcome.TIMED_OUT), ("interrupted", Outcome.INTERRUPTED)],
)
@pytest.mark.parametrize("handler", [handlers.sleeps, handlers.computes, handlers.waits_for_ever])
def test_code_that_can_be_interrupted_ends_with_the_outcome_it_was_stopped_for(
    rig: Rig, handler: FakeTask, reason: str, outcome: Outcome
) -> None:
    attempt_id = rig.begin(handler)

    rig.executor.stop(attempt_id, reason, force=False)

    assert rig.end_of(attempt_id).outcome is outcome  # long before the grace is over
    assert rig.value(handlers.echo, "next") == "next"


def test_a_process_into_whose_code_an_exception_was_thrown_is_not_used_again(rig: Rig) -> None:
    pid = pid_of(rig)
    attempt_id = rig.begin(handlers.sleeps)
    rig.executor.stop(attempt_id, "canceled", force=False)
    rig.end_of(attempt_id)

    assert pid_of(rig) != pid


@pytest.mark.parametrize("handler", [handlers.swallows_every_exception, handlers.holds_the_interpreter])
def test_code_that_cannot_be_interrupted_is_killed_after_the_grace(impatient: Rig, handler: FakeTask) -> None:
    attempt_id = impatient.begin(handler)

    impatient.executor.stop(attempt_id, "timed_out", force=False)

    assert impatient.end_of(attempt_id).outcome is Outcome.TIMED_OUT
    assert impatient.value(handlers.echo, "next") == "next"


@pytest.mark.parametrize("handler", [handlers.swallows_every_exception, handlers.holds_the_interpreter])
def test_force_kills_at_once(rig: Rig, handler: FakeTask) -> None:
    attempt_id = rig.begin(handler)

    rig.executor.stop(attempt_id, "canceled", force=True)

    assert rig.end_of(attempt_id).outcome is Outcome.CANCELED


@on_linux
def test_killing_reaches_what_the_handler_started(rig: Rig) -> None:
    attempt_id = rig.begin(handlers.waits_for_a_program)
    pids = [int(pid) for pid in rig.message_of(attempt_id).split()]

    rig.executor.stop(attempt_id, "canceled", force=True)

    rig.end_of(attempt_id)
    assert await_ends_of_processes(pids, PATIENCE_S) == []


def test_nothing_is_reported_of_an_abandoned_attempt_and_its_process_is_replaced(rig: Rig) -> None:
    attempt_id = rig.begin(handlers.holds_the_interpreter)

    rig.executor.abandon(attempt_id)

    assert rig.executor.running() == []
    assert rig.value(handlers.echo, "next") == "next"
    assert attempt_id not in rig.ends


def test_an_attempt_stopped_while_it_waits_for_a_process_never_runs(rig: Rig) -> None:
    running = rig.begin(handlers.sleeps)
    waiting = rig.start(handlers.echo, 1)

    rig.executor.stop(waiting, "canceled", force=False)

    assert rig.end_of(waiting).outcome is Outcome.CANCELED
    assert rig.executor.running() == [running]


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_service_managers_and_terminals_send_to_all_does_not_stop_a_handler(
    rig: Rig, executor: ProcessExecutor, number: signal.Signals
) -> None:
    attempt_id = rig.begin(handlers.runs_until_told)
    os.kill(executor.pids()[0], number)
    Path(rig.message_of(attempt_id)).touch()

    assert rig.end_of(attempt_id).outcome is Outcome.COMPLETED


# --- resources --------------------------------------------------------------------------------------------------------


def test_resources_are_entered_once_per_process(rig: Rig) -> None:
    first = rig.value(handlers.with_resources)
    second = rig.value(handlers.with_resources)

    assert first == second == [f"resources of {first[1]}", first[1]]


def test_resources_that_cannot_be_entered_fail_the_attempt(rig: Rig) -> None:
    end = rig.run(handlers.with_broken_resources)

    assert (*error_of(end), end.reason) == (Outcome.FAILED, "ConnectionError", False, "no_resources")


# --- finding handlers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (handlers.renamed, "is a function, not a task"),
        (handlers.misnamed, "is the handler 'echo' here, and 'another' was asked for"),
        (handlers.vanished, "has no vanished_since"),
        (handlers.unimportable, "raised RuntimeError: COLOUR_DATABASE is not set"),
    ],
)
def test_a_handler_that_a_process_cannot_find_fails_for_good_and_says_why(
    rig: Rig, handler: FakeTask, message: str
) -> None:
    end = rig.run(handler)

    assert (end.outcome, end.reason, end.terminal) == (Outcome.FAILED, "not_importable", True)
    assert end.error is not None
    assert message in end.error.message


SCRIPT = """
from dataclasses import dataclass

from actionqueue.executors.processes import ProcessExecutor
from tests.executors.handlers import task
from tests.executors.rig import rig_of

print("imported as", __name__, flush=True)


@dataclass
class Order:
    number: int


@task
def handler(control, argument):
    return [__name__, Order(argument).number]


handler.runnable.locator = "__main__:handler"

if __name__ == "__main__":
    with rig_of(ProcessExecutor(1)) as rig:
        print(rig.value(handler, 7), rig.value(handler, 8))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "module"])
def test_handlers_of_the_main_module_are_found_and_its_guarded_part_runs_once(tmp_path: Path, how: str) -> None:
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "orders.py").write_text(SCRIPT)
    command = [str(package / "orders.py")] if how == "script" else ["-m", "jobs.orders"]
    path = os.pathsep.join([*sys.path, str(tmp_path)])

    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        timeout=PATIENCE_S, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["imported as __main__", "imported as __mp_main__"]
    assert re.findall(r"\['__mp_main__', \d\]", lines[2]) == ["['__mp_main__', 7]", "['__mp_main__', 8]"]
