"""The async executor: every way a coroutine can end, be stopped, or refuse to."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actionqueue.core.state import Outcome
from actionqueue.executors.endings import StopRequested
from actionqueue.executors.loop import AsyncExecutor
from actionqueue.executors.port import AttemptControl
from tests.executors import handlers
from tests.executors.handlers import FakeTask, say_begun, task
from tests.executors.rig import PATIENCE_S, Rig, error_of, rig_of

pytestmark = pytest.mark.usefixtures("own_loop")


@pytest.fixture
def executor() -> AsyncExecutor:
    return AsyncExecutor()


@pytest.fixture
def rig(executor: AsyncExecutor) -> Iterator[Rig]:
    with rig_of(executor) as rig:
        yield rig


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (handlers.async_raises_value_error, (Outcome.FAILED, "ValueError", False)),
        (handlers.async_exits, (Outcome.FAILED, "SystemExit", False)),
        (handlers.async_interrupts, (Outcome.FAILED, "KeyboardInterrupt", False)),
        (handlers.async_raises_generator_exit, (Outcome.FAILED, "GeneratorExit", False)),
        (handlers.cancels_itself, (Outcome.FAILED, "asyncio.exceptions.CancelledError", False)),
        (handlers.async_unserialisable, (Outcome.FAILED, "TypeError", True)),
        (handlers.async_oversized, (Outcome.FAILED, "result_too_large", True)),
        (handlers.async_swallows_control, (Outcome.FAILED, "swallowed_control", True)),
        (handlers.echo, (Outcome.FAILED, "TypeError", False)),  # not async: what it returns cannot be awaited
    ],
)
def test_each_bad_end_is_an_outcome_and_the_loop_lives_on(rig: Rig, handler: FakeTask, expected: Any) -> None:
    end = rig.run(handler)

    assert error_of(end) == expected
    assert rig.value(handlers.async_echo, "next") == ["next", True]
    assert rig.executor.running() == []


def test_the_traceback_begins_in_the_handler(rig: Rig) -> None:
    end = rig.run(handlers.async_raises_value_error)

    assert end.error is not None
    assert "in async_raises_value_error" in end.error.traceback
    assert "actionqueue/executors" not in end.error.traceback
    assert end.error.traceback.endswith("ValueError: no such customer\n")


def test_snooze_and_retry_after_carry_their_delay(rig: Rig) -> None:
    snoozed = rig.run(handlers.async_snoozes)
    later = rig.run(handlers.async_retries_later)

    assert (snoozed.outcome, snoozed.delay_us) == (Outcome.SNOOZED, 90_000_000)
    assert (later.outcome, later.delay_us) == (Outcome.FAILED, 5_000_000)


def test_arguments_that_do_not_fit_are_no_failure(rig: Rig) -> None:
    end = rig.run(handlers.async_echo, "misfit")

    assert (end.outcome, end.reason) == (Outcome.INTERRUPTED, "arguments")


def test_a_task_left_behind_cannot_end_the_loop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.value(handlers.leaves_an_exiting_task_behind) == "done"

    assert rig.value(handlers.async_echo, 1) == [1, True]
    assert "would end a program" in caplog.text


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("canceled", Outcome.CANCELED), ("timed_out", Outcome.TIMED_OUT), ("interrupted", Outcome.INTERRUPTED)],
)
def test_a_stopped_attempt_has_the_outcome_it_was_stopped_for(rig: Rig, reason: str, outcome: Outcome) -> None:
    attempt_id = rig.begin(handlers.waits_for_ever)

    rig.executor.stop(attempt_id, reason, force=False)

    assert rig.end_of(attempt_id).outcome is outcome


def test_an_attempt_stopped_before_its_first_step_is_reported_and_never_runs(rig: Rig) -> None:
    ran: list[str] = []

    async def handler(control: AttemptControl, argument: Any) -> None:
        ran.append("it")

    assignment = rig.assign(FakeTask(handler))
    held = rig.begin(blocks_the_loop)  # so that start and stop arrive in one turn of the loop
    rig.executor.start([assignment])
    rig.executor.stop(assignment.attempt_id, "canceled", force=False)
    release.set()

    assert rig.end_of(assignment.attempt_id).outcome is Outcome.CANCELED
    assert rig.end_of(held).outcome is Outcome.COMPLETED
    assert ran == []


release = threading.Event()


@task
async def blocks_the_loop(control: AttemptControl, argument: Any) -> None:
    say_begun(control)
    assert release.wait(PATIENCE_S)
    release.clear()


def test_a_value_returned_although_cancelled_counts(rig: Rig) -> None:
    attempt_id = rig.begin(handlers.returns_although_cancelled)

    rig.executor.stop(attempt_id, "canceled", force=False)

    end = rig.end_of(attempt_id)
    assert (end.outcome, end.body) == (Outcome.COMPLETED, b'"done all the same"')


def test_a_clean_up_that_fails_does_not_hide_that_it_was_stopped(rig: Rig) -> None:
    attempt_id = rig.begin(handlers.fails_cleaning_up)

    rig.executor.stop(attempt_id, "interrupted", force=False)

    end = rig.end_of(attempt_id)
    assert end.outcome is Outcome.INTERRUPTED
    assert end.error is not None
    assert end.error.kind == "OSError"


class Stubborn:
    """A handler that swallows its cancellations, until it is released."""

    def __init__(self) -> None:
        self.swallowed = threading.Semaphore(0)
        self.released: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task = FakeTask(self.run, name="stubborn", locator="")

    async def run(self, control: AttemptControl, argument: Any) -> str:
        self.released = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        say_begun(control)
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.swallowed.release()
        return "at last"

    def release(self) -> None:
        assert self.loop is not None
        assert self.released is not None
        self.loop.call_soon_threadsafe(self.released.set)


def test_a_swallowed_cancellation_leaves_the_attempt_running(rig: Rig) -> None:
    stubborn = Stubborn()
    attempt_id = rig.begin(stubborn.task)

    rig.executor.stop(attempt_id, "canceled", force=False)
    assert stubborn.swallowed.acquire(timeout=PATIENCE_S)

    assert rig.executor.running() == [attempt_id]
    rig.executor.stop(attempt_id, "canceled", force=False)  # is not repeated: it could hit the clean-up
    rig.executor.stop(attempt_id, "canceled", force=True)  # is
    assert stubborn.swallowed.acquire(timeout=PATIENCE_S)
    assert not stubborn.swallowed.acquire(blocking=False)
    stubborn.release()
    assert rig.end_of(attempt_id).outcome is Outcome.COMPLETED


def test_nothing_is_reported_of_an_abandoned_attempt(rig: Rig) -> None:
    stubborn = Stubborn()
    attempt_id = rig.begin(stubborn.task)

    rig.executor.abandon(attempt_id)
    assert stubborn.swallowed.acquire(timeout=PATIENCE_S)
    assert rig.executor.running() == []
    stubborn.release()

    assert rig.value(handlers.async_echo, 1) == [1, True]
    assert attempt_id not in rig.ends


def test_the_reports_of_one_turn_of_the_loop_go_out_together(rig: Rig) -> None:
    assignments = [rig.assign(handlers.async_echo, number) for number in range(50)]

    rig.executor.start(assignments)

    rig.wait_until(lambda: len(rig.ends) == 50)
    assert len(rig.batches) <= 3


def test_a_handler_that_blocks_the_loop_is_found_out(rig: Rig, executor: AsyncExecutor) -> None:
    assert executor.heartbeat() == 0.0
    attempt_id = rig.begin(blocks_the_loop)
    since = time.monotonic()

    current = executor.current()

    assert current is not None
    assert current.assignment.attempt_id == attempt_id
    while executor.heartbeat() < 0.3:
        assert time.monotonic() - since < PATIENCE_S
        threading.Event().wait(0.01)
    assert executor.thread_id is not None
    release.set()
    rig.end_of(attempt_id)
    assert executor.heartbeat() == 0.0
    assert executor.current() is None


# --- closing ----------------------------------------------------------------------------------------------------------


def test_close_cancels_what_runs_and_reports_it() -> None:
    with rig_of(AsyncExecutor()) as rig:
        attempt_id = rig.begin(handlers.waits_for_ever)

        rig.executor.close(PATIENCE_S)

        assert rig.ends[attempt_id].outcome is Outcome.INTERRUPTED
        assert rig.executor.running() == []


def test_close_gives_up_on_what_does_not_end() -> None:
    stubborn = Stubborn()
    with rig_of(AsyncExecutor()) as rig:
        attempt_id = rig.begin(stubborn.task)
        began = time.monotonic()

        rig.executor.close(0.2)

        assert time.monotonic() - began < 5
        assert rig.executor.running() == [attempt_id]
        assert rig.ends == {}


def test_what_comes_after_close_is_interrupted_and_not_at_once_due_again() -> None:
    with rig_of(AsyncExecutor()) as rig:
        rig.executor.close(1)

        end = rig.run(handlers.async_echo, 1)

        assert (end.outcome, end.delay_us) == (Outcome.INTERRUPTED, 1_000_000)


def test_a_stuck_call_in_the_loop_s_pool_does_not_keep_the_thread() -> None:
    stuck = threading.Event()

    async def handler(control: AttemptControl, argument: Any) -> None:
        say_begun(control)
        await asyncio.to_thread(stuck.wait, PATIENCE_S)

    with rig_of(AsyncExecutor()) as rig:
        attempt_id = rig.begin(FakeTask(handler))

        rig.executor.close(2)

        assert rig.ends[attempt_id].outcome is Outcome.INTERRUPTED
        pool = [thread for thread in threading.enumerate() if thread.name.endswith("-pool")]
        assert pool
        assert all(thread.daemon for thread in pool)
        stuck.set()
        for thread in pool:
            thread.join(PATIENCE_S)


def test_check_canceled_is_known_as_a_stop() -> None:
    async def handler(control: AttemptControl, argument: Any) -> None:
        say_begun(control)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise StopRequested(control.reason) from None

    with rig_of(AsyncExecutor()) as rig:
        attempt_id = rig.begin(FakeTask(handler))
        rig.executor.stop(attempt_id, "canceled", force=False)
        assert rig.end_of(attempt_id).outcome is Outcome.CANCELED


def test_attempts_do_not_see_each_other_s_context_variables(rig: Rig) -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    async def handler(control: AttemptControl, argument: Any) -> str:
        before = seen.get()
        seen.set("mine")
        return before

    assert [rig.value(FakeTask(handler)) for _ in range(3)] == ["nothing"] * 3
    assert json.loads(rig.run(FakeTask(handler)).body or b"") == "nothing"
