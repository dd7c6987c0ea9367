"""Who is started when, who is passed by, who is stopped, and when there is nothing left to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, AlreadyTerminal, InvalidSubmission, Retry, RunCanceled, TaskId, TaskSpec, fixed
from actionqueue.core.instants import INSTANT_MAX, SUBMIT_INSTANT_MAX, to_datetime
from tests.process.support import PATIENCE_S, inspect, leftovers
from tests.scenarios.world import SECOND, START, Hand, ManualClock, advance, engine_of, in_hand, look


def make(store: str | Path, **options: Any) -> tuple[ActionQueue, Any]:
    """A plain handler that the test ends with its hand."""
    queue = ActionQueue(store, stop_grace="10s", drain_timeout=0, **options)

    @queue.task(name="work", retry=Retry(3, fixed("1s")))
    def work(name: str = "") -> str:
        raise AssertionError("nobody runs this")

    return queue, queue.handlers["work"]


def name_of(payload: bytes) -> str:
    return payload.decode().split('"')[3]


def end_all(queue: ActionQueue, hand: Hand, count: int) -> list[str]:
    """Complete one attempt after the other; their names in the order in which they were started."""
    order = []
    for _ in range(count):
        attempt = hand.take()
        order.append(name_of(attempt.payload))
        hand.returns(attempt, order[-1])
    look(queue)
    return order


# --- order ---------------------------------------------------------------------------------------------------------


def test_with_one_worker_the_order_is_priority_and_then_who_was_ready_first(
    store: str | Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5-37: the exact order of starts, across queues, with a retry and a blocked head among them."""
    with in_hand(monkeypatch, slots=1) as hand:
        queue, work = make(store, queues={"shut": 1})
        with queue.running():
            queue.pause()
            for name, priority, lane in (
                ("a", 0, "default"),
                ("b", 5, "mail"),
                ("c", 5, "default"),
                ("d", -3, "mail"),
                ("e", 10, "default"),
                ("f", 0, "mail"),
            ):
                clock.at += 1
                work.options(priority=priority, queue=lane).submit(name)
            work.options(priority=99, queue="shut").submit("head")
            queue.pause(queue="shut")
            queue.resume()
            assert end_all(queue, hand, 6) == ["e", "b", "c", "a", "f", "d"]
            assert hand.handed_over == 0, "the most important one is blocked, and has held back nobody"
            queue.resume(queue="shut")
            assert end_all(queue, hand, 1) == ["head"]
            assert inspect(queue, leftovers) == []


def test_a_stream_of_important_work_goes_first_and_the_rest_follows_when_it_lets_up(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5-38: strict priority, no ageing; and a full queue holds back nothing beside it."""
    with in_hand(monkeypatch, slots=2) as hand:
        queue, work = make(":memory:", queues={"narrow": 1})
        with queue.running():
            narrow = [work.options(queue="narrow", priority=50).submit(f"narrow {n}") for n in range(100)]
            first = hand.take()
            work.submit("beside")
            assert name_of(hand.take().payload) == "beside", "one worker is free, and 99 wait for the queue's only slot"
            queue.cancel_runs(queue="narrow")
            hand.raises(first, ValueError("canceled meanwhile"))
            settled = [job.state() for job in narrow]
            assert set(settled) == {"canceled"}
    with in_hand(monkeypatch, slots=1) as hand:
        queue, work = make(":memory:")
        with queue.running():
            work.options(priority=5).submit("high 0")
            work.options(priority=0).submit("low")
            for n in range(1, 20):
                running = hand.take()
                assert name_of(running.payload) == f"high {n - 1}"
                work.options(priority=5).submit(f"high {n}")
                hand.returns(running, "")
            assert end_all(queue, hand, 2) == ["high 19", "low"]


# --- cancel --------------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[ActionQueue, Any, Hand, ManualClock], Any]] = {
    "scheduled": lambda queue, work, hand, clock: work.options(delay="1h").submit("x"),
    "ready": lambda queue, work, hand, clock: (queue.pause(), work.submit("x"))[1],
    "ready, no handler": lambda queue, work, hand, clock: queue.submit(TaskSpec(handler="missing")),
    "retry_wait": lambda queue, work, hand, clock: _failed_once(queue, work, hand),
    "running": lambda queue, work, hand, clock: _running(work, hand),
}


def _failed_once(queue: ActionQueue, work: Any, hand: Hand) -> Any:
    job = work.submit("x")
    hand.raises(hand.take(), ValueError("no"))
    look(queue)
    assert job.state() == "retry_wait"
    return job


def _running(work: Any, hand: Hand) -> Any:
    job = work.submit("x")
    hand.attempt = hand.take()  # type: ignore[attr-defined]
    return job


@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_ends_a_run_wherever_it_is_and_leaves_nothing_held(
    store: str | Path, clock: ManualClock, hand: Hand, way: str
) -> None:
    """S5-44: its own run is never promoted or started again, also after a restart; its slots are free."""
    queue, work = make(store)
    with queue.running():
        job = WAYS[way](queue, work, hand, clock)
        assert (queue.cancel_run(job.run_id) if store == ":memory:" else job.cancel()) == 1, "the run, or its task"
        if way == "running":
            look(queue)
            assert job.state() == "running"
            assert [reason for _, reason in hand.stops] == ["canceled"]
            hand.raises(hand.attempt, ValueError("while it is being stopped"))  # type: ignore[attr-defined]
        with pytest.raises(RunCanceled):
            job.result(timeout=PATIENCE_S)
        queue.resume()
        advance(queue, clock, "2h")
        assert inspect(queue, leftovers) == []
    with queue.running():
        advance(queue, clock, "2h")
        assert (job.state(), hand.handed_over) == ("canceled", 0)
        assert queue.stats().runs["canceled"] == 1


def test_after_an_abandon_whatever_the_handler_still_gives_is_refused(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """S5-44, cancellation/03, concurrency_key/03: the grant is dropped now, and the next one has its slot."""
    queue, work = make(store, queues={"one": 1})
    work = work.options(queue="one")
    with queue.running():
        job, following = work.submit("x"), work.submit("y")
        attempt = hand.take()
        assert hand.handed_over == 0
        assert queue.cancel_run(job.run_id, how="abandon") is True
        second = hand.take()
        hand.returns(attempt, "late")
        look(queue)
        (run,) = job.runs()
        assert (run.state, [each.outcome for each in run.attempts]) == ("canceled", ["canceled"])
        assert queue.get_result(run.id) is None
        hand.returns(second, "y")
        assert following.result(timeout=PATIENCE_S) == "y"
        with pytest.raises(AlreadyTerminal):
            queue.cancel_run(following.run_id)
        assert inspect(queue, leftovers) == []


# --- idle ----------------------------------------------------------------------------------------------------------


def test_with_only_future_and_blocked_runs_it_is_idle_at_once_and_sleeps_until_the_next_instant(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """S5-45: nothing is looked at again until then; the writer's next wake-up is that very instant."""
    queue, work = make(store)
    with queue.running():
        queue.pause(queue="shut")
        work.options(delay="1h").submit("future")
        work.options(queue="shut").submit("paused")
        queue.submit(TaskSpec(handler="missing"))
        summary = queue.run_until_idle(timeout=PATIENCE_S)
        assert {state: count for state, count in summary.runs.items() if count} == {"scheduled": 1, "ready": 2}
        assert summary.blocked == 2
        look(queue)
        writer = engine_of(queue).writer
        wake = inspect(queue, lambda state: state.places.next_timer())
        assert wake == START + 3600 * SECOND
        assert not writer.has_work()
        assert inspect(queue, lambda state: writer.next_wake(committing=True)) == wake


def test_a_queue_that_waits_for_a_retry_is_not_idle(clock: ManualClock, hand: Hand) -> None:
    """S5-45, engine_lifecycle#1: what is backing off is awaited; what comes in an hour is not."""
    queue, work = make(":memory:")
    with queue.running():
        job = _failed_once(queue, work, hand)
        with pytest.raises(TimeoutError):
            queue.run_until_idle(timeout=0)
        advance(queue, clock, "1s")
        hand.returns(hand.take(), "x")
        assert queue.run_until_idle(timeout=PATIENCE_S).runs["completed"] == 1
        assert job.state() == "completed"


# --- what is refused -----------------------------------------------------------------------------------------------


def test_the_nil_id_is_no_tasks_id_and_leaves_no_trace(store: str | Path) -> None:
    """derive_once#7, #8: a typed error that names the field; nothing is written."""
    queue, _ = make(store)
    with queue.running():
        before = queue.stats().sequence
        with pytest.raises(InvalidSubmission) as caught:
            queue.submit(TaskSpec(handler="work", id=TaskId(bytes=bytes(16))))
        assert "id" in caught.value.facts["problems"]  # type: ignore[operator]
        assert (queue.stats().sequence, queue.stats().tasks) == (before, 0)


# --- the end of time -----------------------------------------------------------------------------------------------


def test_at_the_end_of_the_year_9999_runs_are_submitted_tried_and_timed_out_as_ever(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """S5-31, clock_edge_cases#10, #14, #17: due when submitted, at the last instant and the one before it.

    Neither deadline, delay, backoff nor what a lost attempt waits for wraps or goes past the end.
    """
    clock.at = SUBMIT_INSTANT_MAX - 1
    queue, work = make(store)
    with queue.running():
        first = work.options(timeout="1h").submit("x")
        assert first.runs()[0].scheduled_at == to_datetime(SUBMIT_INSTANT_MAX - 1)
        attempt = hand.take()
        assert attempt.started_at == SUBMIT_INSTANT_MAX - 1
        clock.at += 1
        second = work.options(delay="100d").submit("y")
        assert second.runs()[0].scheduled_at == to_datetime(SUBMIT_INSTANT_MAX)
        assert engine_of(queue).clock.now_us() == SUBMIT_INSTANT_MAX
        hand.raises(attempt, ValueError("no"))
        look(queue)
        (run,) = first.runs()
        assert run.attempts[0].retry_at == to_datetime(SUBMIT_INSTANT_MAX), "as late as there is, which is now"
        assert {name_of(hand.take().payload) for _ in range(2)} == {"x", "y"}
    with queue.running():
        names = {name_of(each.payload): each for each in (hand.take(), hand.take())}
        assert set(names) == {"x", "y"}
        hand.returns(names["y"], "y")
        assert second.result(timeout=PATIENCE_S) == "y"
        hand.returns(names["x"], "x")
        assert first.result(timeout=PATIENCE_S) == "x"
        assert inspect(queue, leftovers) == []


def test_the_clock_of_these_tests_reaches_the_largest_instant() -> None:
    """clock_edge_cases#11 to #13: one before it, at it by a step, and set to it."""
    clock = ManualClock(INSTANT_MAX - 1)
    assert clock.now_us() == INSTANT_MAX - 1
    clock.at += 1
    assert clock.now_us() == clock.wall_us() == INSTANT_MAX
    assert ManualClock(INSTANT_MAX).now_us() == INSTANT_MAX
