"""What handlers can do to the engine: nothing (issue line 9; section 5, numbers 28, 41, 42 and 45).

Each row is a misbehaviour on an executor with what is recorded of it. Afterwards nothing is left: no run, no slot, no
violated invariant, and the only slot of that executor runs the next handler.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from actionqueue import ActionQueue, RunCanceled, RunFailed, RunRecord
from tests.process.programs import misbehaving
from tests.process.support import PATIENCE_S, Programs, eventually, inspect, leftovers

pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")


class Ends(NamedTuple):
    """What is recorded: the attempts' outcomes, why the run failed, whether the last one's code never ended."""

    outcomes: tuple[str, ...]
    reason: str
    abandoned: bool = False
    error: str | None = None


FAILS_TWICE = ("failed", "failed")
STOPPED = Ends(("timed_out", "timed_out"), "timed_out")
GIVEN_UP = Ends(("timed_out", "timed_out"), "timed_out", abandoned=True)

ROWS: dict[tuple[str, str], Ends] = {
    **{
        (name, executor): ends
        for executor in ("async", "thread", "process")
        for name, ends in {
            "raises_exception": Ends(FAILS_TWICE, "failed", error="ValueError"),
            "raises_base_exception": Ends(FAILS_TWICE, "failed", error="OddError"),
            "raises_system_exit": Ends(FAILS_TWICE, "failed", error="SystemExit"),
            "raises_keyboard_interrupt": Ends(FAILS_TWICE, "failed", error="KeyboardInterrupt"),
            "raises_terminal_failure": Ends(("failed",), "failed", error="TerminalFailure"),
            "returns_what_is_no_json": Ends(("failed",), "result_not_encodable"),
            "returns_too_much": Ends(("failed",), "result_too_large"),
        }.items()
    },
    ("never_returns", "async"): STOPPED,
    ("never_returns", "thread"): GIVEN_UP,
    ("never_returns", "process"): STOPPED,
    ("ignores_its_stop", "async"): GIVEN_UP,
    ("ignores_its_stop", "thread"): GIVEN_UP,
    ("ignores_its_stop", "process"): STOPPED,
    ("blocks_its_thread", "thread"): GIVEN_UP,
    ("blocks_its_thread", "process"): STOPPED,
    ("holds_the_interpreter", "process"): STOPPED,
    ("exits_the_process", "process"): Ends(FAILS_TWICE, "worker_died", error="worker_died"),
    ("crashes_the_process", "process"): Ends(FAILS_TWICE, "worker_died", error="worker_died"),
}
"""What leaves the engine's process alive. ``blocks_its_thread`` on the loop and what kills the engine stand below."""


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """Handlers of this process end with their test."""
    misbehaving.RELEASE.clear()
    yield
    misbehaving.RELEASE.set()


@pytest.mark.parametrize(("name", "executor"), ROWS, ids=str)
def test_a_misbehaving_handler_is_recorded_and_leaves_nothing_behind(store: Path, name: str, executor: str) -> None:
    """S5-28, S5-41, S5-42."""
    ends = ROWS[name, executor]
    queue = ActionQueue(store, concurrency=1, threads=1, processes=1, stop_grace=0.4, drain_timeout=5)
    bad, good = misbehaving.declare(queue, name, executor, timeout=0.3 if "timed_out" in ends.outcomes else None)
    with queue.running():
        assert (
            good.submit().result(timeout=PATIENCE_S) == "well"
        )  # the clock of an attempt also runs while its process starts
        job = bad.submit()
        with pytest.raises(RunFailed) as caught:
            job.result(timeout=PATIENCE_S)
        assert caught.value.facts["reason"] == ends.reason
        (run,) = job.runs()
        check_record(run, ends)
        assert good.submit().result(timeout=PATIENCE_S) == "well"
        assert inspect(queue, leftovers) == []


def check_record(run: RunRecord, ends: Ends) -> None:
    assert tuple(attempt.outcome for attempt in run.attempts) == ends.outcomes
    assert [attempt.abandoned for attempt in run.attempts] == [ends.abandoned] * len(ends.outcomes)
    assert (run.state, run.reason) == ("failed", ends.reason)
    assert run.failure_count == sum(outcome != "lost" for outcome in ends.outcomes)
    assert run.lost_count == sum(outcome == "lost" for outcome in ends.outcomes)
    if ends.error is not None:
        error = run.attempts[-1].error
        assert error is not None
        assert error.kind.endswith(ends.error)


def test_a_handler_that_blocks_the_loop_is_given_up_and_the_loop_goes_on_when_it_lets_go(store: Path) -> None:
    """Only the end of its code frees the loop; the run, its slot and everybody else's work do not wait for that."""
    queue = ActionQueue(store, concurrency=1, threads=1, stop_grace=0.3, drain_timeout=5)
    bad, good = misbehaving.declare(queue, "blocks_its_thread", "async", timeout=0.3)

    @queue.task(name="plain")
    def plain() -> str:
        return "well"

    with queue.running():
        job = bad.submit()
        with pytest.raises(RunFailed):
            job.result(timeout=PATIENCE_S)
        (run,) = job.runs()
        check_record(run, GIVEN_UP)
        assert inspect(queue, leftovers) == []
        assert plain.submit().result(timeout=PATIENCE_S) == "well"
        waiting = good.submit()
        misbehaving.RELEASE.set()
        assert waiting.result(timeout=PATIENCE_S) == "well"
        assert inspect(queue, leftovers) == []


@pytest.mark.parametrize("executor", ["async", "thread"])
@pytest.mark.parametrize("name", ["exits_the_process", "crashes_the_process"])
def test_what_kills_the_engine_is_recorded_at_the_next_openings_until_it_is_stopped(
    programs: Programs, store: Path, name: str, executor: str
) -> None:
    """A poison pill costs ``max_lost`` + 1 engines and no more; what is beside it goes on."""
    program = programs.start("misbehaving", store, name, executor)
    program.line("engine")
    program.tell("bad")
    assert program.wait() != 0
    programs.start("misbehaving", store, name, executor).wait()
    last = programs.start("misbehaving", store, name, executor)
    last.line("engine")
    last.tell("good")
    assert last.json("good") == "well"
    last.finish()
    queue = ActionQueue(store, role="client")
    (run,) = queue.runs(state="failed")
    check_record(queue.get_run(run.id), Ends(("lost", "lost"), "lost"))
    queue.close()
    reopened = ActionQueue(store)
    with reopened.running():
        assert inspect(reopened, leftovers) == []


@pytest.mark.parametrize(
    ("name", "executor", "how", "abandoned"),
    [
        ("never_returns", "async", "cancel", False),
        ("ignores_its_stop", "async", "cancel", True),
        ("never_returns", "thread", "cancel", True),
        ("never_returns", "thread", "abandon", True),
        ("never_returns", "process", "cancel", False),
        ("holds_the_interpreter", "process", "cancel", False),
        ("holds_the_interpreter", "process", "kill", False),
    ],
)
def test_cancel_stops_code_as_far_as_its_executor_can(
    store: Path, name: str, executor: str, how: Literal["cancel", "kill", "abandon"], abandoned: bool
) -> None:
    """S5-42: the run is canceled once its code has ended, or was given up; its slot is free then."""
    queue = ActionQueue(store, concurrency=1, threads=1, processes=1, stop_grace=0.4, drain_timeout=5)
    bad, good = misbehaving.declare(queue, name, executor)
    with queue.running():
        job = bad.submit()
        eventually(lambda: job.state() == "running", "it runs")
        assert queue.cancel_run(job.run_id, how) is True
        with pytest.raises(RunCanceled):
            job.result(timeout=PATIENCE_S)
        (run,) = job.runs()
        (attempt,) = run.attempts
        assert (run.state, attempt.outcome, attempt.abandoned) == ("canceled", "canceled", abandoned)
        assert (run.failure_count, run.cancel_requested) == (0, True)
        assert good.submit().result(timeout=PATIENCE_S) == "well"
        assert inspect(queue, leftovers) == []


# --- idle --------------------------------------------------------------------------------------------------------


def test_run_until_idle_returns_with_what_nothing_can_be_done_about(store: Path) -> None:
    """S5-45: future, paused and handlerless runs do not count; it returns at once and says what is left."""
    queue = ActionQueue(store)
    bad, good = misbehaving.declare(queue, "raises_exception", "thread")
    gone = ActionQueue(store, role="client")
    gone.task(name="gone")(misbehaving.behaves).submit()
    good.options(delay="1h").submit()
    failing = bad.submit()
    with queue.running():
        queue.pause(queue="still")
        good.options(queue="still").submit()
        summary = queue.run_until_idle(timeout=PATIENCE_S)
        with pytest.raises(RunFailed):
            failing.result()
    gone.close()
    assert {state: count for state, count in summary.runs.items() if count} == {"scheduled": 1, "ready": 2, "failed": 1}
    assert summary.blocked == 2
    assert summary.paused == ("queue still",)
