"""The thread executor: every way a function can end, and threads that never do."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actionqueue.core.state import Outcome
from actionqueue.executors.loop import AsyncExecutor
from actionqueue.executors.port import AttemptControl
from actionqueue.executors.threads import ThreadExecutor
from tests.executors import handlers
from tests.executors.handlers import FakeTask, say_begun
from tests.executors.rig import PATIENCE_S, Rig, error_of, rig_of


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rig_of(ThreadExecutor(slots=3)) as rig:
        yield rig


class Stuck:
    """A handler that looks at nothing, until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.thread: threading.Thread | None = None
        self.task = FakeTask(self.run, name="stuck", locator="")

    def run(self, control: AttemptControl, argument: Any) -> str:
        self.thread = threading.current_thread()
        say_begun(control)
        assert self.released.wait(PATIENCE_S)
        return "at last"

    def release(self) -> None:
        """Let it go, and wait until its thread has ended."""
        self.released.set()
        assert self.thread is not None
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (handlers.raises_value_error, (Outcome.FAILED, "ValueError", False)),
        (handlers.exits, (Outcome.FAILED, "SystemExit", False)),
        (handlers.interrupts, (Outcome.FAILED, "KeyboardInterrupt", False)),
        (handlers.raises_generator_exit, (Outcome.FAILED, "GeneratorExit", False)),
        (handlers.recurses, (Outcome.FAILED, "RecursionError", False)),
        (handlers.raises_unprintable, (Outcome.FAILED, "tests.executors.handlers.Unprintable", False)),
        (handlers.gives_up, (Outcome.FAILED, "TerminalFailure", True)),
        (handlers.raises_unretryable, (Outcome.FAILED, "KeyError", True)),
        (handlers.unserialisable, (Outcome.FAILED, "TypeError", True)),
        (handlers.oversized, (Outcome.FAILED, "result_too_large", True)),
        (handlers.swallows_control, (Outcome.FAILED, "swallowed_control", True)),
    ],
)
def test_each_bad_end_is_an_outcome_and_its_thread_lives_on(rig: Rig, handler: FakeTask, expected: Any) -> None:
    end = rig.run(handler)

    assert error_of(end) == expected
    assert rig.value(handlers.echo, "next") == "next"
    assert rig.executor.running() == []


def test_the_traceback_begins_in_the_handler(rig: Rig) -> None:
    end = rig.run(handlers.raises_value_error)

    assert end.error is not None
    assert "in raises_value_error" in end.error.traceback
    assert "actionqueue/executors" not in end.error.traceback


def test_a_handler_sees_its_attempt(rig: Rig) -> None:
    assert rig.value(handlers.facts)[:-1] == [
        True, 2, 1, 3, {"tenant": "acme"}, 1_000_000, 2_000_000, 30_000_000, "6b" * 16
    ]  # fmt: skip


def test_snooze_and_retry_after_carry_their_delay(rig: Rig) -> None:
    snoozed = rig.run(handlers.snoozes)
    later = rig.run(handlers.retries_later)

    assert (snoozed.outcome, snoozed.delay_us) == (Outcome.SNOOZED, 90_000_000)
    assert (later.outcome, later.delay_us) == (Outcome.FAILED, 5_000_000)


def test_arguments_that_do_not_fit_are_no_failure(rig: Rig) -> None:
    end = rig.run(handlers.echo, "misfit")

    assert (end.outcome, end.reason) == (Outcome.INTERRUPTED, "arguments")


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("canceled", Outcome.CANCELED), ("timed_out", Outcome.TIMED_OUT), ("interrupted", Outcome.INTERRUPTED)],
)
def test_a_handler_that_heeds_the_token_has_the_outcome_it_was_stopped_for(
    rig: Rig, reason: str, outcome: Outcome
) -> None:
    attempt_id = rig.begin(handlers.polls_the_token)

    rig.executor.stop(attempt_id, reason, force=False)

    assert rig.end_of(attempt_id).outcome is outcome


@pytest.mark.parametrize("force", [False, True])
def test_one_that_ignores_the_token_goes_on_and_its_value_counts(rig: Rig, force: bool) -> None:
    stuck = Stuck()
    attempt_id = rig.begin(stuck.task)

    rig.executor.stop(attempt_id, "canceled", force=force)

    assert rig.executor.running() == [attempt_id]
    stuck.released.set()
    assert rig.end_of(attempt_id).outcome is Outcome.COMPLETED


def test_a_value_that_comes_after_the_timeout_is_timed_out(rig: Rig) -> None:
    stuck = Stuck()
    attempt_id = rig.begin(stuck.task)

    rig.executor.stop(attempt_id, "timed_out", force=False)
    stuck.released.set()

    assert rig.end_of(attempt_id).outcome is Outcome.TIMED_OUT


def test_abandoned_threads_are_replaced_and_end_without_a_word(rig: Rig) -> None:
    stuck = [Stuck() for _ in range(3)]  # all there are
    ids = [rig.begin(each.task) for each in stuck]

    for attempt_id in ids:
        rig.executor.abandon(attempt_id)

    assert rig.executor.running() == []
    others = [Stuck() for _ in range(3)]
    later = [rig.begin(each.task) for each in others]  # three run at once again
    for each in stuck:
        each.release()
    assert rig.ends == {}
    for each in others:
        each.released.set()
    assert [rig.end_of(attempt_id).outcome for attempt_id in later] == [Outcome.COMPLETED] * 3


def test_threads_start_as_they_are_needed_and_are_used_again(rig: Rig) -> None:
    for number in range(20):
        rig.value(handlers.echo, number)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("actionqueue-thread-")]

    assert len([thread for thread in ours if thread.is_alive()]) <= 3
    assert all(thread.daemon for thread in ours)


def test_a_watchdog_can_tell_which_thread_runs_what(rig: Rig) -> None:
    stuck = Stuck()
    attempt_id = rig.begin(stuck.task)
    assert isinstance(rig.executor, ThreadExecutor)

    running = rig.executor.threads()

    assert stuck.thread is not None
    assert [(ident, control.assignment.attempt_id) for ident, control in running.items()] == [
        (stuck.thread.ident, attempt_id)
    ]
    stuck.released.set()
    rig.end_of(attempt_id)


def test_attempts_do_not_see_each_other_s_context_variables(rig: Rig) -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    def handler(control: AttemptControl, argument: Any) -> str:
        before = seen.get()
        seen.set("mine")
        return before

    assert [rig.value(FakeTask(handler)) for _ in range(6)] == ["nothing"] * 6


def test_threads_share_the_loop_s_resources() -> None:
    entered: list[str] = []

    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        entered.append("once")
        await asyncio.sleep(0)
        yield "pool"

    def handler(control: AttemptControl, argument: Any) -> Any:
        return control.resources

    with (
        rig_of(loop := AsyncExecutor(resources=resources)) as loop_rig,
        rig_of(ThreadExecutor(3, resources=loop.enter_resources)) as rig,
    ):
        assert [rig.value(FakeTask(handler)) for _ in range(3)] == ["pool"] * 3
        assert loop_rig.value(handlers.uses_resources) == "pool"
        assert entered == ["once"]


def test_resources_that_cannot_be_entered_fail_the_attempt() -> None:
    def refuse() -> object:
        raise ConnectionError("the database is down")

    with rig_of(ThreadExecutor(resources=refuse)) as rig:
        end = rig.run(handlers.echo, 1)

    assert (*error_of(end), end.reason) == (Outcome.FAILED, "ConnectionError", False, "no_resources")


# --- closing ----------------------------------------------------------------------------------------------------------


def test_close_asks_what_runs_to_stop_and_ends_its_threads() -> None:
    with rig_of(ThreadExecutor()) as rig:
        attempt_id = rig.begin(handlers.polls_the_token)

        rig.executor.close(PATIENCE_S)

        assert rig.ends[attempt_id].outcome is Outcome.INTERRUPTED
        assert rig.executor.running() == []


def test_close_leaves_a_stuck_thread_behind() -> None:
    stuck = Stuck()
    with rig_of(ThreadExecutor()) as rig:
        attempt_id = rig.begin(stuck.task)
        began = time.monotonic()

        rig.executor.close(0.1)

        assert time.monotonic() - began < 5
        assert rig.executor.running() == [attempt_id]
        rig.executor.abandon(attempt_id)
        stuck.release()
        assert rig.ends == {}


def test_what_comes_after_close_is_interrupted_and_not_at_once_due_again() -> None:
    with rig_of(ThreadExecutor()) as rig:
        rig.executor.close(1)

        end = rig.run(handlers.echo, 1)

        assert (end.outcome, end.delay_us) == (Outcome.INTERRUPTED, 1_000_000)


def test_without_a_single_thread_attempts_are_put_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        end = rig.run(handlers.echo, 1)

    assert (end.outcome, end.delay_us) == (Outcome.INTERRUPTED, 1_000_000)
    assert rig.value(handlers.echo, 2) == 2


@pytest.mark.slow
def test_a_stuck_thread_does_not_keep_the_process_alive() -> None:
    program = """
import time
from actionqueue.executors.threads import ThreadExecutor
from tests.executors import handlers
from tests.executors.rig import Rig

rig = Rig(ThreadExecutor())
rig.begin(handlers.sleeps)
print("runs", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=PATIENCE_S, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr
