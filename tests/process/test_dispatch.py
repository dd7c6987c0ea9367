"""Many at once: dispatch under load, races between callers, pauses, clocks (section 5, 23, 26, 39, 40 and 43)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actionqueue import (
    ActionQueue,
    AlreadyTerminal,
    Retry,
    RunCanceled,
    RunFailed,
    TaskHandle,
    TerminalFailure,
    fixed,
)
from tests.process.support import PATIENCE_S, eventually, inspect, leftovers


class Crowd:
    """Counts who is inside at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0
        self.calls = 0

    def enter(self) -> int:
        """Which call this is, from 0."""
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.calls += 1
            return self.calls - 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


@pytest.mark.parametrize(
    ("tasks", "workers", "uneven"),
    [(100, 4, True), (200, 4, False), (100, 1, True), (150, 8, True)],
    ids=["100 on 4, uneven", "200 on 4, instant", "100 on 1", "150 on 8"],
)
def test_every_task_completes_once_and_no_more_than_the_slots_run_at_once(
    store: Path, tasks: int, workers: int, uneven: bool
) -> None:
    """concurrent_dispatch_stress/01 to /04 and S5-39."""
    queue = ActionQueue(store, threads=workers)
    crowd, pause = Crowd(), threading.Event()

    @queue.task(name="work", retry=Retry(1))
    def work() -> None:
        number = crowd.enter()
        if uneven:
            pause.wait((1 + number % 10) / 1000)
        crowd.leave()

    with queue.running():
        work.submit_many([()] * tasks)
        summary = queue.run_until_idle(timeout=PATIENCE_S)
        assert {state: count for state, count in summary.runs.items() if count} == {"completed": tasks}
        for run in queue.iter_runs():
            assert (run.state, run.attempt_count) == ("completed", 1)
        assert inspect(queue, leftovers) == []
    assert crowd.calls == tasks
    assert crowd.most == workers if uneven else crowd.most <= workers


def test_half_of_them_fail_and_each_ends_as_it_did(store: Path) -> None:
    """concurrent_dispatch_stress/05: and here the halves are counted."""
    queue = ActionQueue(store, threads=4)

    @queue.task(name="work")
    def work(number: int) -> None:
        if number % 2:
            raise TerminalFailure(str(number))

    with queue.running():
        work.submit_many([(number,) for number in range(100)])
        summary = queue.run_until_idle(timeout=PATIENCE_S)
        assert {state: count for state, count in summary.runs.items() if count} == {"completed": 50, "failed": 50}
        assert inspect(queue, leftovers) == []


def test_threads_that_submit_at_the_same_time_lose_nothing(store: Path) -> None:
    """S5-23: also into a queue that is opened by the first of them, and by no other."""
    queue = ActionQueue(store)
    together = threading.Barrier(8)

    @queue.task(name="echo")
    async def echo(value: int) -> int:
        return value

    def submit(first: int, results: list[int]) -> None:
        together.wait(PATIENCE_S)
        jobs = [echo.submit(first + n) for n in range(25)]
        together.wait(PATIENCE_S)
        results += [job.result(timeout=PATIENCE_S) for job in jobs]

    results: list[int] = []
    threads = [threading.Thread(target=submit, args=(n * 25, results)) for n in range(8)]
    with queue.running():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(results) == list(range(200))
        assert queue.stats().tasks == 200
        assert inspect(queue, leftovers) == []


def test_the_first_use_from_many_threads_opens_one_session(store: Path) -> None:
    """S5-23: of a queue that nobody runs; each call once opened the store for itself."""
    queue = ActionQueue(store, role="client")
    together = threading.Barrier(8)
    sessions: list[object] = []

    @queue.task(name="echo")
    async def echo(value: int) -> int:
        return value

    def submit() -> None:
        together.wait(PATIENCE_S)
        echo.submit(1)
        sessions.append(queue.session)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(sessions) == 8
    assert len(set(map(id, sessions))) == 1
    queue.close()


def test_of_cancel_and_completion_exactly_one_wins(store: Path) -> None:
    """S5-23: 100 runs, each canceled about when it ends; state, result and what cancel said agree."""
    queue = ActionQueue(store, threads=8)

    @queue.task(name="brief")
    def brief(number: int) -> int:
        threading.Event().wait(number % 5 / 1000)
        return number

    seen: Counter[str] = Counter()
    with queue.running():
        for number in range(100):
            job = brief.submit(number)
            threading.Event().wait(number % 7 / 1000)
            canceled: bool | None = None
            try:
                canceled = queue.cancel_run(job.run_id)
            except AlreadyTerminal:
                canceled = None
            try:
                assert job.result(timeout=PATIENCE_S) == number
                outcome = "completed"
            except RunCanceled:
                outcome = "canceled"
            run = queue.get_run(job.run_id)
            assert run.state == outcome
            assert outcome == "completed" or canceled is True
            assert run.cancel_requested == (canceled is True)
            seen[outcome] += 1
        assert inspect(queue, leftovers) == []
    assert sum(seen.values()) == 100


def test_always_failing_handlers_are_called_exactly_as_often_as_they_may(store: Path) -> None:
    """S5-40: for each cap from 1 to 12, and across an engine's end between attempts."""
    queue = ActionQueue(store)
    calls: Counter[int] = Counter()

    @queue.task(name="fails")
    async def fails(cap: int) -> None:
        calls[cap] += 1
        raise ValueError(cap)

    jobs: list[TaskHandle[None]] = []
    with queue.running():
        jobs += [fails.options(retry=Retry(cap, fixed(0.02))).submit(cap) for cap in range(1, 13)]
    with queue.running():
        for cap, job in enumerate(jobs, 1):
            with pytest.raises(RunFailed):
                job.result(timeout=PATIENCE_S)
            (run,) = job.runs()
            assert (run.failure_count, run.attempt_count - run.lost_count) == (cap, cap)
    assert calls == Counter({cap: cap for cap in range(1, 13)})


# --- pauses ------------------------------------------------------------------------------------------------------


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_under_a_pause_nothing_starts_what_runs_goes_on_and_a_restart_changes_nothing(
    store: Path, let_go: threading.Event
) -> None:
    """S5-43."""
    queue = ActionQueue(store, drain_timeout=10)
    started: list[str] = []

    @queue.task(name="work")
    def work(name: str) -> str:
        started.append(name)
        if name == "before":
            let_go.wait(PATIENCE_S)
        return name

    with queue.running():
        before = work.submit("before")
        eventually(lambda: started == ["before"], "it runs")
        queue.pause()
        due_now = work.submit("due now")
        due_soon = work.options(delay="50ms").submit("due soon")
        let_go.set()
        assert before.result(timeout=PATIENCE_S) == "before"
        assert queue.run_until_idle(timeout=PATIENCE_S).paused == ("engine",)
    with queue.running():
        due_at = queue.get_run(due_soon.run_id).scheduled_at
        eventually(lambda: datetime.now(UTC) > due_at, "its instant has passed")
        queue.run_until_idle(timeout=PATIENCE_S)
        assert (due_now.state(), due_soon.state()) == ("ready", "scheduled")
        assert started == ["before"]
        queue.resume()
        assert due_now.result(timeout=PATIENCE_S) == "due now"
        assert due_soon.result(timeout=PATIENCE_S) == "due soon"
    assert sorted(started) == ["before", "due now", "due soon"]


# --- clocks ------------------------------------------------------------------------------------------------------


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """As someone who sets it: what elapses is not touched."""
    real = time.time_ns
    monkeypatch.setattr("actionqueue.engine.clock.time.time_ns", lambda: real() + int(by_s * 1e9))


@pytest.mark.parametrize("by_s", [-3600.0, 30 * 86400.0], ids=["an hour back", "a month on"])
def test_a_wall_clock_that_is_set_moves_no_timer_and_no_history(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by_s: float
) -> None:
    """S5-26: delays and backoffs follow elapsed time; nothing expires while the clocks disagree, as the log says."""
    queue = ActionQueue(store)

    @queue.task(name="work", retry=Retry(2, fixed(0.2)))
    def work(fails: bool) -> float:
        if fails and time.monotonic() - began < 0.5:
            raise ValueError("the first time")
        return time.monotonic()

    with queue.running():
        began = time.monotonic()
        delayed = work.options(delay="600ms").submit(False)
        expiring = work.options(delay="1h", expires="30m").submit(False)
        with monkeypatch.context() as patched:
            set_wall_clock(patched, by_s)
            began_failing = work.options(delay="400ms").submit(True)
            assert 0.6 <= delayed.result(timeout=PATIENCE_S) - began < 5
            assert 0.6 <= began_failing.result(timeout=PATIENCE_S) - began < 5
            eventually(lambda: "the wall clock was set" in caplog.text, "the log says so")
            for job in (delayed, began_failing):
                instants = [change.at for change in queue.history(job.run_id)]
                assert instants == sorted(instants)
        assert expiring.state() == "scheduled"


def test_recorded_instants_do_not_decrease_over_a_restart_with_an_earlier_clock(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5-26: the machine comes up an hour behind; the history goes on from its last instant."""
    queue = ActionQueue(store)

    @queue.task(name="work")
    def work() -> None:
        return None

    with queue.running():
        first = work.submit()
        first.result(timeout=PATIENCE_S)
        (before,) = first.runs()
    with monkeypatch.context() as patched:
        set_wall_clock(patched, -3600)
        with queue.running():
            second = work.submit()
            second.result(timeout=PATIENCE_S)
            (after,) = second.runs()
    assert before.finished_at is not None
    assert after.created_at >= before.finished_at
    assert after.finished_at is not None
    assert after.finished_at >= after.created_at


def test_what_fell_due_while_no_engine_ran_is_done_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S5-26: a month later everything delayed by less is due."""
    queue = ActionQueue(store)

    @queue.task(name="work")
    def work() -> str:
        return "done"

    with queue.running():
        job = work.options(delay="7d").submit()
        later = work.options(delay="60d").submit()
    with monkeypatch.context() as patched:
        set_wall_clock(patched, 30 * 86400)
        with queue.running():
            assert job.result(timeout=PATIENCE_S) == "done"
            with suppress(TimeoutError):
                later.result(timeout=0.05)
            assert later.state() == "scheduled"
