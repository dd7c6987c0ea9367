"""Timeouts by the second, on real threads and a real loop, with a clock moved by hand (section 5, number 28)."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from actionqueue import CONTEXT, ActionQueue, Context, InvalidSubmission, Retry, fixed
from tests.process.support import PATIENCE_S, inspect, leftovers
from tests.scenarios.world import Gate, ManualClock, advance, engine_of, look, settle

STOP_GRACE = "10s"


class Seen:
    """What handlers see of being stopped: for each call, whether it was asked to, and why."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, str | None]] = []

    def note(self, ctx: Context) -> None:
        self.calls.append((ctx.canceled, ctx.cancel_reason))


def outcomes(queue: ActionQueue, job: object) -> list[tuple[str | None, bool]]:
    """Outcome and whether it was given up, of each attempt of a task's one run."""
    (run,) = job.runs()  # type: ignore[attr-defined]
    assert run.failure_count == sum(attempt.outcome in ("failed", "timed_out") for attempt in run.attempts)
    return [(attempt.outcome, attempt.abandoned) for attempt in run.attempts]


def make(
    store: str | Path, timeout: str | None, attempts: int, gates: list[Gate], seen: Seen
) -> tuple[ActionQueue, object]:
    """A plain handler whose nth call waits at the nth gate, then returns its number."""
    queue = ActionQueue(store, threads=2, stop_grace=STOP_GRACE)
    numbers = iter(range(100))

    @queue.task(name="slow", timeout=timeout, retry=Retry(attempts, fixed("1s")))
    def slow(*, ctx: Context = CONTEXT) -> int:
        number = next(numbers)
        gates[number].pass_through()
        seen.note(ctx)
        return number

    return queue, slow


def test_a_result_in_time_is_kept_and_nobody_was_asked_to_stop(store: str | Path, clock: ManualClock) -> None:
    """timeout#1, timeout#5: one second used of five; the deadline is forgotten with the attempt."""
    gate, seen = Gate(), Seen()
    queue, slow = make(store, "5s", 3, [gate], seen)
    with queue.running():
        job = slow.submit()  # type: ignore[attr-defined]
        gate.await_entry()
        advance(queue, clock, "1s")
        gate.opened.set()
        assert job.result(timeout=PATIENCE_S) == 0
        assert outcomes(queue, job) == [("completed", False)]
        assert seen.calls == [(False, None)]
        assert not engine_of(queue).writer.stopping
        advance(queue, clock, "1h")
        assert outcomes(queue, job) == [("completed", False)]
        assert inspect(queue, leftovers) == []


@pytest.mark.parametrize(("used", "limit", "attempts"), [("6s", "5s", 2), ("10s", "3s", 2), ("5s", "5s", 2)])
def test_a_late_result_is_timed_out_then_tried_again_until_the_cap(
    clock: ManualClock, used: str, limit: str, attempts: int
) -> None:
    """timeout#2, #3, #6, #9, S5-28: what came too late is thrown away, and counts once each time."""
    gates, seen = [Gate() for _ in range(attempts)], Seen()
    queue, slow = make(":memory:", limit, attempts, gates, seen)
    with queue.running():
        job = slow.submit()  # type: ignore[attr-defined]
        for number, gate in enumerate(gates, 1):
            gate.await_entry()
            advance(queue, clock, used)
            assert job.state() == "running", "it is being stopped, and its code has not ended"
            gate.opened.set()
            settle(queue)
            assert outcomes(queue, job) == [("timed_out", False)] * number
            assert job.state() == ("failed" if number == attempts else "retry_wait")
            advance(queue, clock, "1s")
        assert seen.calls == [(True, "timed_out")] * attempts
        (run,) = job.runs()
        assert (run.reason, run.failure_count, run.lost_count) == ("timed_out", attempts, 0)
        assert inspect(queue, leftovers) == []


def test_the_deadline_is_met_to_the_microsecond(clock: ManualClock) -> None:
    """S5-28: not asked to stop one microsecond before, asked to at the instant itself."""
    queue = ActionQueue(":memory:")
    started, asked = threading.Event(), threading.Event()

    @queue.task(name="polite", timeout="1s", retry=Retry(1))
    async def polite() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            asked.set()

    with queue.running():
        job = polite.submit()
        assert started.wait(PATIENCE_S)
        (run,) = job.runs()
        attempt_id = run.attempts[0].id.bytes
        clock.at += 999_999
        look(queue)
        assert not engine_of(queue).writer.stopping.is_stopping(attempt_id)
        clock.at += 1
        look(queue)
        assert asked.wait(PATIENCE_S)
        settle(queue)
        (run,) = job.runs()
        assert (run.state, run.reason) == ("failed", "timed_out")


def test_a_limit_of_nothing_is_refused_and_the_smallest_one_stops_a_handler_that_asks(clock: ManualClock) -> None:
    """timeout#4: the original's test limit of 0; here a limit is at least a microsecond, and asking ends the code."""
    queue = ActionQueue(":memory:")
    gate = Gate()

    @queue.task(name="asks", retry=Retry(1))
    def asks(*, ctx: Context = CONTEXT) -> str:
        gate.pass_through()
        ctx.check_canceled()
        return "never got here"

    with pytest.raises(InvalidSubmission, match="timeout"):
        asks.options(timeout=0)
    with queue.running():
        job = asks.options(timeout="1us").submit()
        gate.await_entry()
        advance(queue, clock, "1us")
        gate.opened.set()
        settle(queue)
        assert outcomes(queue, job) == [("timed_out", False)]


def test_without_a_limit_nothing_is_watched_and_nobody_is_asked_to_stop(store: str | Path, clock: ManualClock) -> None:
    """timeout#7: ten years later it may still complete."""
    gate, seen = Gate(), Seen()
    queue, slow = make(store, None, 1, [gate], seen)
    with queue.running():
        job = slow.submit()  # type: ignore[attr-defined]
        gate.await_entry()
        assert not engine_of(queue).writer.stopping
        advance(queue, clock, "3660d")
        gate.opened.set()
        assert job.result(timeout=PATIENCE_S) == 0
    assert seen.calls == [(False, None)]


def test_a_handler_that_does_not_ask_is_given_up_after_the_grace_and_its_result_is_refused(clock: ManualClock) -> None:
    """timeout#8, timeout#9, S5-28: timed out once, marked as given up, its slot free, its late value nowhere."""
    gates, seen = [Gate(), Gate()], Seen()
    queue, slow = make(":memory:", "1s", 2, gates, seen)

    with queue.running():
        job = slow.submit()  # type: ignore[attr-defined]
        gates[0].await_entry()
        advance(queue, clock, "1s")
        advance(queue, clock, "9s")
        assert job.state() == "running", "within the grace it may still end by itself"
        advance(queue, clock, "1s")
        assert outcomes(queue, job) == [("timed_out", True)]
        assert job.state() == "retry_wait"
        advance(queue, clock, "1s")
        gates[1].await_entry()
        gates[0].opened.set()
        assert gates[0].left.wait(PATIENCE_S)
        assert job.state() == "running"
        gates[1].opened.set()
        assert job.result(timeout=PATIENCE_S) == 1, "the second call's value, not the first one's"
        assert outcomes(queue, job) == [("timed_out", True), ("completed", False)]
        assert inspect(queue, leftovers) == []


def test_the_stop_of_one_attempt_does_not_reach_the_next(clock: ManualClock) -> None:
    """timeout#13: on the loop and in a thread; each call sees a request of its own."""
    queue = ActionQueue(":memory:", threads=1, concurrency=1)
    gates, seen = [Gate(), Gate()], {"plain": Seen(), "waits": Seen()}
    started = threading.Event()
    plain_calls, async_calls = iter((0, 1)), iter((0, 1))

    @queue.task(name="plain", timeout="1s", retry=Retry(2, fixed("1s")))
    def plain(*, ctx: Context = CONTEXT) -> None:
        gates[next(plain_calls)].pass_through()
        seen["plain"].note(ctx)
        ctx.check_canceled()

    @queue.task(name="waits", timeout="1s", retry=Retry(2, fixed("1s")))
    async def waits(*, ctx: Context = CONTEXT) -> None:
        started.set()
        try:
            if next(async_calls) == 0:
                await asyncio.get_running_loop().create_future()
        finally:
            seen["waits"].note(ctx)

    with queue.running():
        jobs = plain.submit(), waits.submit()
        gates[0].await_entry()
        assert started.wait(PATIENCE_S)
        advance(queue, clock, "1s")
        gates[0].opened.set()
        settle(queue)
        gates[1].opened.set()
        advance(queue, clock, "1s")
        for job in jobs:
            job.result(timeout=PATIENCE_S)
            assert outcomes(queue, job) == [("timed_out", False), ("completed", False)]
    for each in seen.values():
        assert each.calls == [(True, "timed_out"), (False, None)]


class NobodysError(BaseException):
    """Not an Exception."""


def test_after_a_handler_that_broke_out_the_next_call_is_made_as_usual(store: str | Path, clock: ManualClock) -> None:
    """timeout#14: it unwinds out of nothing but its own attempt; two calls."""
    queue = ActionQueue(store, threads=1)
    calls: list[int] = []

    @queue.task(name="breaks", timeout="1h", retry=Retry(2, fixed("1s")))
    def breaks() -> str:
        calls.append(len(calls))
        if len(calls) == 1:
            raise NobodysError("out of everything")
        return "well"

    with queue.running():
        job = breaks.submit()
        settle(queue)
        assert job.state() == "retry_wait"
        advance(queue, clock, "1s")
        assert job.result(timeout=PATIENCE_S) == "well"
        assert outcomes(queue, job) == [("failed", False), ("completed", False)]
        assert inspect(queue, leftovers) == []
    assert calls == [0, 1]


def test_whoever_wins_at_the_deadline_the_record_is_of_one_piece(clock: ManualClock) -> None:
    """timeout#15: 16 handlers end as their limit passes. Each attempt ends once, and says the same everywhere.

    The original always calls it a timeout; here the one writer decides, by what it hears first.
    """
    queue = ActionQueue(":memory:", threads=16)
    gates = [Gate() for _ in range(16)]

    @queue.task(name="close", timeout="1s", retry=Retry(1))
    def close(number: int) -> int:
        gates[number].pass_through()
        return number

    def open_all() -> None:
        for gate in gates:
            gate.opened.set()

    with queue.running():
        jobs = [close.submit(number) for number in range(16)]
        for gate in gates:
            gate.await_entry()
        opener = threading.Thread(target=open_all)
        opener.start()
        advance(queue, clock, "1s")
        opener.join(PATIENCE_S)
        settle(queue)
        for number, job in enumerate(jobs):
            (run,) = job.runs()
            (attempt,) = run.attempts
            assert (run.state, attempt.outcome) in (("completed", "completed"), ("failed", "timed_out"))
            assert (queue.get_result(run.id) == str(number).encode()) == (run.state == "completed")
            assert run.failure_count == (run.state == "failed")
        assert inspect(queue, leftovers) == []
        assert not engine_of(queue).writer.stopping
