"""Lives of runs through the real engine: who they are, how often they are tried, what is told, who ends them."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actionqueue import (
    CONTEXT,
    ActionQueue,
    AlreadyTerminal,
    Context,
    Retry,
    RunRecord,
    TerminalFailure,
    delays,
    exponential,
    fixed,
)
from tests.process.support import PATIENCE_S, inspect, leftovers
from tests.scenarios.world import Gate, Hand, ManualClock, advance, look, settle

# --- identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_handler_sees_the_ids_that_are_recorded_and_a_retry_keeps_the_runs(
    store: str | Path, clock: ManualClock, executor: str
) -> None:
    """id_propagation#1, #2: run and attempt, each time; the attempts' ids differ, the token is the run's."""
    queue = ActionQueue(store)
    seen: list[tuple[Any, ...]] = []

    def note(ctx: Context) -> None:
        seen.append((ctx.task_id, ctx.run_id, ctx.attempt_id, ctx.attempt_number, ctx.idempotency_token))
        if len(seen) == 1:
            raise ValueError("once more")

    if executor == "async":

        @queue.task(name="who", retry=Retry(2, fixed("1s")))
        async def who(*, ctx: Context = CONTEXT) -> None:
            note(ctx)
    else:

        @queue.task(name="who", retry=Retry(2, fixed("1s")))
        def who(*, ctx: Context = CONTEXT) -> None:
            note(ctx)

    with queue.running():
        job = queue.handlers["who"].submit()
        settle(queue)
        advance(queue, clock, "1s")
        job.result(timeout=PATIENCE_S)
        (run,) = job.runs()
    token = str(job.run_id)
    assert seen == [(job.id, job.run_id, attempt.id, attempt.number, token) for attempt in run.attempts]
    assert (run.id, run.task_id) == (job.run_id, job.id)
    assert len({attempt.id for attempt in run.attempts}) == 2


# --- caps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["nothing", "a restart"])
def test_what_always_fails_is_called_exactly_as_often_as_its_cap_says(clock: ManualClock, between: str) -> None:
    """S5-40: caps 1 to 20 beside each other, each call at its due instant, with or without a restart before each."""
    queue = ActionQueue(":memory:")
    calls: Counter[int] = Counter()

    @queue.task(name="fails")
    async def fails(cap: int) -> None:
        calls[cap] += 1
        raise ValueError(cap)

    def round_of(number: int) -> None:
        settle(queue)
        assert calls == {cap: min(cap, number) for cap in range(1, 21)}
        if number < 20:
            clock.at += 999_999
            settle(queue)
            assert calls[20] == number, "not before its instant"
            clock.at += 1

    with queue.running():
        jobs = [fails.options(retry=Retry(cap, fixed("1s"))).submit(cap) for cap in range(1, 21)]
        round_of(1)
        if between == "nothing":
            for number in range(2, 22):
                round_of(number)
    if between == "a restart":
        for number in range(2, 22):
            with queue.running():
                round_of(number)
    with queue.running():
        advance(queue, clock, "30d")
        for cap, job in enumerate(jobs, 1):
            (run,) = job.runs()
            assert (run.state, run.attempt_count, run.failure_count) == ("failed", cap, cap)
            assert len(run.attempts) == cap
        assert inspect(queue, leftovers) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caps=st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_the_calls_of_any_tasks_that_fail_add_up_to_their_caps(clock: ManualClock, caps: list[int]) -> None:
    """dispatch_invariants/02, /05: with a clock that moves, so that retries do come due; exactly, not at most."""
    queue = ActionQueue(":memory:", concurrency=8)
    calls: list[int] = []

    @queue.task(name="fails")
    async def fails() -> None:
        calls.append(1)
        raise ValueError

    with queue.running():
        for cap in caps:
            fails.options(retry=Retry(cap, fixed("1ms"))).submit()
        for _ in range(max(caps)):
            settle(queue)
            advance(queue, clock, "1ms")
        assert {state: count for state, count in queue.stats().runs.items() if count} == {"failed": len(caps)}
    assert len(calls) == sum(caps)


@pytest.mark.parametrize(
    ("backoff", "seconds"),
    [
        (fixed("1ms"), [0.001] * 3),
        (fixed("999ms"), [0.999] * 2),
        (fixed("1001ms"), [1.001] * 2),
        (exponential("1s", cap="5s", jitter=False), [1, 2, 4, 5, 5]),
        (delays("1s", "10s", "1m"), [1, 10, 60, 60]),
    ],
    ids=["1 ms", "999 ms", "1001 ms", "exponential to a cap", "a list"],
)
def test_a_backoff_ends_at_its_exact_instant(clock: ManualClock, backoff: Any, seconds: list[float]) -> None:
    """S5-27: not a microsecond early, not one late, through the real timers."""
    queue = ActionQueue(":memory:")
    starts: list[int] = []

    @queue.task(name="fails", retry=Retry(20, backoff))
    async def fails() -> None:
        starts.append(clock.at)
        raise ValueError

    with queue.running():
        fails.submit()
        settle(queue)
        for number, delay in enumerate(seconds, 1):
            clock.at += round(delay * 1e6) - 1
            settle(queue)
            assert len(starts) == number
            clock.at += 1
            settle(queue)
            assert len(starts) == number + 1
            assert starts[-1] - starts[-2] == round(delay * 1e6)


# --- what is told --------------------------------------------------------------------------------------------------


def story_of(queue: ActionQueue, run: RunRecord) -> list[str]:
    return [change.state for change in queue.history(run.id)]


def test_a_life_can_be_told_afterwards_and_a_restart_changes_no_word(store: str | Path, clock: ManualClock) -> None:
    """observability/01, /02, /04, once_accounting/01, crash_recovery/01, attempt_lineage/01: all surfaces, twice."""
    queue = ActionQueue(store, queues={"shut": 1})
    gate = Gate()

    @queue.task(name="good")
    async def good() -> str:
        return "done"

    @queue.task(name="bad", retry=Retry(2, fixed("1s")))
    async def bad() -> None:
        raise ValueError("as ever")

    @queue.task(name="third_time", retry=Retry(3, fixed("1s")))
    async def third_time(*, ctx: Context = CONTEXT) -> str:
        if ctx.attempt_number < 3:
            raise ValueError(f"no {ctx.attempt_number}")
        return "third"

    def everything() -> tuple[Any, ...]:
        runs = list(queue.iter_runs())
        stats = queue.stats()
        return (
            runs,
            [queue.get_run(run.id) for run in runs],
            [queue.history(run.id) for run in runs],
            list(queue.tasks()),
            [queue.get_result(run.id) for run in runs],
            (stats.tasks, stats.runs, stats.paused, stats.blocked),
        )

    with queue.running():
        once = good.submit()
        assert once.result(timeout=PATIENCE_S) == "done"
        failed, third = bad.submit(), third_time.submit()
        for _ in range(3):
            settle(queue)
            advance(queue, clock, "1s")
        queue.pause(queue="shut")
        waiting = good.options(queue="shut").submit()
        later = good.options(delay="1h").submit()
        del gate
        (run,) = once.runs()
        assert story_of(queue, run) == ["ready", "leased", "running", "completed"]
        assert [(attempt.number, attempt.outcome) for attempt in run.attempts] == [(1, "completed")]
        (run,) = failed.runs()
        assert story_of(queue, run) == [
            "ready",
            *["leased", "running", "retry_wait", "ready"],
            *["leased", "running"],
            "failed",
        ]
        assert [attempt.error.message for attempt in run.attempts if attempt.error] == ["as ever"] * 2
        (run,) = third.runs()
        assert [attempt.outcome for attempt in run.attempts] == ["failed", "failed", "completed"]
        assert [attempt.error and attempt.error.message for attempt in run.attempts] == ["no 1", "no 2", None]
        assert len({attempt.id for attempt in run.attempts}) == 3
        assert third.result() == "third"
        before = everything()
        assert {state: count for state, count in before[-1][1].items() if count} == {
            "completed": 2,
            "failed": 1,
            "ready": 1,
            "scheduled": 1,
        }
        assert before[-1][0] == 5
    for _ in range(2):
        with queue.running():
            look(queue)
            assert everything() == before
            assert (once.state(), waiting.state(), later.state()) == ("completed", "ready", "scheduled")


def test_an_outputs_bytes_and_a_parents_name_survive_a_restart(store: str | Path, clock: ManualClock) -> None:
    """handler_output_roundtrip/01: the output, through the API and as bytes."""
    queue = ActionQueue(store)

    @queue.task(name="answers")
    async def answers() -> dict[str, list[str]]:
        return {"é": ["\0", "line\nline"]}

    with queue.running():
        job = answers.submit()
        assert job.result(timeout=PATIENCE_S) == {"é": ["\0", "line\nline"]}
        body = queue.get_result(job.run_id)
    clock.move("1000s")
    with queue.running():
        assert job.result(timeout=PATIENCE_S) == {"é": ["\0", "line\nline"]}
        assert queue.get_result(job.run_id) == body
        (run,) = job.runs()
        assert (run.state, len(run.attempts)) == ("completed", 1)


# --- who may end an attempt ----------------------------------------------------------------------------------------


def plain_queue(store: str | Path, **options: Any) -> tuple[ActionQueue, Any]:
    """A plain handler that whoever holds the executor ends."""
    queue = ActionQueue(store, stop_grace="1s", **options)

    @queue.task(name="work", retry=Retry(3, fixed("1s")))
    def work(value: int = 0) -> int:
        raise AssertionError("nobody runs this")

    return queue, queue.handlers["work"]


def test_a_zombies_report_is_refused_whoever_has_the_run_now(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """S5-24: given up and started again elsewhere, the first one reports success; the side effect counts once."""
    queue, work = plain_queue(store)
    with queue.running():
        job = work.options(timeout="1s").submit()
        zombie = hand.take()
        advance(queue, clock, "1s")
        advance(queue, clock, "1s")
        assert hand.abandoned == [zombie.attempt_id]
        advance(queue, clock, "1s")
        second = hand.take()
        assert (second.run_id, second.attempt_number) == (zombie.run_id, 2)
        assert second.fence > zombie.fence
        hand.returns(zombie, "zombie")
        assert job.state() == "running"
        hand.returns(second, 2)
        assert job.result(timeout=PATIENCE_S) == 2
        hand.returns(zombie, "zombie")
        hand.raises(second, ValueError("twice"))
        look(queue)
        (run,) = job.runs()
        assert [(attempt.outcome, attempt.abandoned) for attempt in run.attempts] == [
            ("timed_out", True),
            ("completed", False),
        ]
        assert (run.state, queue.get_result(run.id)) == ("completed", b"2")
        assert inspect(queue, leftovers) == []


def test_a_report_of_an_earlier_engine_is_refused_by_the_next(clock: ManualClock, hand: Hand) -> None:
    """S5-24, S5-10: the epoch is over; what it left open was lost, and only the new attempt may end the run."""
    queue, work = plain_queue(":memory:", drain_timeout=0)
    with queue.running():
        job = work.submit()
        old = hand.take()
    with queue.running():
        advance(queue, clock, "5m")
        new = hand.take()
        hand.returns(old, "old")
        look(queue)
        assert job.state() == "running"
        hand.returns(new, 1)
        assert job.result(timeout=PATIENCE_S) == 1
        (run,) = job.runs()
        assert [attempt.outcome for attempt in run.attempts] == ["lost", "completed"]


@pytest.mark.parametrize("first", ["cancel", "complete"])
def test_of_a_cancel_and_a_completion_the_first_to_be_heard_wins(
    store: str | Path, clock: ManualClock, hand: Hand, first: str
) -> None:
    """S5-23, S5-44: the loser gets a typed error, or its result counts in spite of the request (SEMANTICS 6)."""
    queue, work = plain_queue(store)
    with queue.running():
        job = work.submit()
        attempt = hand.take()
        if first == "complete":
            hand.returns(attempt, 1)
            with pytest.raises(AlreadyTerminal):
                queue.cancel_run(job.run_id)
            assert hand.stops == []
        else:
            assert queue.cancel_run(job.run_id) is True
            look(queue)
            assert hand.stops == [(attempt.attempt_id, "canceled")]
            hand.returns(attempt, 1)
        assert job.result(timeout=PATIENCE_S) == 1
        (run,) = job.runs()
        assert (run.state, run.cancel_requested) == ("completed", first == "cancel")
        with pytest.raises(AlreadyTerminal):
            queue.cancel_run(job.run_id)


def test_many_threads_submit_and_cancel_at_once_and_each_run_ends_once(clock: ManualClock) -> None:
    """S5-23: whoever cancels is told the truth: canceled now, asked, or too late."""
    queue = ActionQueue(":memory:", threads=4)
    together = threading.Barrier(4)
    told: list[tuple[Any, str]] = []

    @queue.task(name="quick")
    def quick(value: int) -> int:
        return value

    def submit_and_cancel(first: int) -> None:
        together.wait(PATIENCE_S)
        for value in range(first, first + 50):
            job = quick.submit(value)
            try:
                queue.cancel_run(job.run_id)
                told.append((job, "canceled"))
            except AlreadyTerminal:
                told.append((job, "too late"))

    with queue.running():
        threads = [threading.Thread(target=submit_and_cancel, args=(50 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        settle(queue)
        assert len(told) == 200
        for job, what in told:
            (run,) = job.runs()
            assert run.state in ("completed", "canceled")
            assert run.state == "completed" or what == "canceled"
            assert run.cancel_requested == (what == "canceled")
        stats = queue.stats()
        assert (stats.tasks, stats.runs["completed"] + stats.runs["canceled"]) == (200, 200)
        assert inspect(queue, leftovers) == []


def test_every_call_of_a_handler_is_an_attempt_and_the_other_way_round(store: str | Path, clock: ManualClock) -> None:
    """S5-68: under a mixture of ends and restarts, attempts = calls, and each run ends exactly once."""
    queue = ActionQueue(store, concurrency=5)
    calls: Counter[Any] = Counter()

    @queue.task(name="mixed", retry=Retry(4, fixed("1s")))
    async def mixed(number: int, *, ctx: Context = CONTEXT) -> int:
        calls[ctx.attempt_id] += 1
        if (number + ctx.attempt_number) % 5 == 0:
            raise TerminalFailure("no more")
        if (number * ctx.attempt_number) % 3:
            raise ValueError("again")
        return number

    with queue.running():
        jobs = [mixed.submit(number) for number in range(40)]
        settle(queue)
    for _ in range(4):
        clock.move("1s")
        with queue.running():
            settle(queue)
    with queue.running():
        records = [job.runs()[0] for job in jobs]
        stats = queue.stats()
        assert queue.verify().ok
    assert {run.state for run in records} == {"completed", "failed"}
    assert stats.runs["completed"] + stats.runs["failed"] == 40
    assert calls == Counter({attempt.id: 1 for run in records for attempt in run.attempts})
