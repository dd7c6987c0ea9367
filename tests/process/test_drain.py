"""A graceful end burns no attempts and always comes (section 5, number 42; SEMANTICS 6 and 7)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actionqueue import ActionQueue, NotRunning, Retry, RunRecord, TaskHandle, fixed
from tests.process.programs.jobs import make_queue
from tests.process.support import PATIENCE_S, Program, Programs, eventually, inspect, is_alive, leftovers, within

DRAIN_S = 0.5
EXTRA_S = 2.0
"""How much longer than ``drain_timeout`` an end may take."""

ENDS_OF_CODE = {
    "sleeper": ("interrupted", "slept"),
    "polite": ("interrupted", "stopped"),
    "spinner": ("interrupted", "killed"),
    "stubborn": ("lost", "gave in"),
    "stuck": ("lost", "came loose"),
}
"""What a drain that ran out makes of each handler's attempt, and what its run gives in the end."""


def run_of(store: Path, handler: str) -> RunRecord:
    """The one run of that handler, as it is stored."""
    queue = ActionQueue(store, role="client")
    (found,) = queue.runs(handler=handler)
    record = queue.get_run(found.id)
    queue.close()
    return record


def drain(program: Program, number: signal.Signals = signal.SIGTERM, drain_s: float = DRAIN_S) -> None:
    """Ask it to end, which it must do in time and in order."""
    program.send(number)
    with within(drain_s + EXTRA_S, "the drain"):
        program.finish()
    assert program.json("stopped") is True


@pytest.mark.parametrize("handler", ENDS_OF_CODE)
def test_what_outlasts_the_drain_is_interrupted_where_it_stopped_and_lost_where_not(
    programs: Programs, store: Path, handler: str
) -> None:
    """Interrupted counts as nothing and is due at once; lost has its own count and a backoff. Nothing runs on."""
    outcome, result = ENDS_OF_CODE[handler]
    options = json.dumps({"drain_timeout": DRAIN_S})
    program = programs.start("draining", store, options, handler)
    pid = program.json(f"running {handler} 1")
    drain(program)
    assert not is_alive(pid)
    run = run_of(store, handler)
    (attempt,) = run.attempts
    assert (run.state, attempt.outcome, attempt.abandoned) == ("retry_wait", outcome, outcome == "lost")
    assert (run.failure_count, run.lost_count) == (0, int(outcome == "lost"))
    if outcome == "interrupted":
        assert run.waiting_until == attempt.finished_at
    else:
        assert attempt.finished_at is not None
        assert run.waiting_until is not None
        assert run.waiting_until > attempt.finished_at
    again = programs.start("draining", store, options)
    again.json(f"running {handler} 2")
    queue = ActionQueue(store, role="client")
    job: TaskHandle[bytes] = TaskHandle(queue, run.task_id.bytes, run.id.bytes, created=True, handler=None)
    assert json.loads(job.result(timeout=PATIENCE_S)) == result
    queue.close()
    drain(again)


def test_what_ends_within_the_drain_is_completed(programs: Programs, store: Path) -> None:
    """SIGTERM starts nothing new, and waits for what runs."""
    program = programs.start("draining", store, json.dumps({"drain_timeout": 30}), "short")
    program.line("running short 1")
    program.send(signal.SIGTERM)
    client = make_queue(store, role="client")
    late = client.handlers["echo"].submit(1)
    program.tell("end")
    program.finish()
    assert program.json("stopped") is True
    run = run_of(store, "short")
    assert (run.state, [attempt.outcome for attempt in run.attempts]) == ("completed", ["completed"])
    assert late.state() in (None, "ready")
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_engine_ends_at_once(programs: Programs, store: Path, number: signal.Signals) -> None:
    program = programs.start("draining", store, json.dumps({"drain_timeout": 30}))
    program.line("engine")
    drain(program, number, drain_s=0.0)


def test_a_second_signal_stops_at_once(programs: Programs, store: Path) -> None:
    """Whatever runs is found lost by the next engine."""
    program = programs.start("draining", store, json.dumps({"drain_timeout": 60}), "stuck", "spinner")
    pids = {int(program.line("running ").split()[-1]) for _ in range(2)}
    program.send(signal.SIGTERM)
    eventually(lambda: "stopping: waiting up to 60 s" in program.errors, "it says that it waits")
    assert not program.has_ended
    program.send(signal.SIGTERM)
    with within(EXTRA_S, "the end"):
        assert program.wait() == 128 + signal.SIGTERM
    eventually(lambda: not any(map(is_alive, pids)), "its worker process is gone too")
    again = programs.start("draining", store, json.dumps({"drain_timeout": DRAIN_S}))
    again.line("running stuck 2")
    assert run_of(store, "stuck").lost_count == 1
    drain(again)


# --- in this process ---------------------------------------------------------------------------------------------


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_running_works_twice_and_inside_itself(store: Path) -> None:
    """A notebook runs its cells again."""
    queue = make_queue(store)
    echo = queue.handlers["echo"]
    for n in range(2):
        with queue.running() as inner:
            assert inner is queue
            with queue.running():
                assert echo.submit(n).result(timeout=PATIENCE_S) == n
            assert echo.submit(n).result(timeout=PATIENCE_S) == n
            assert inspect(queue, leftovers) == []
    with ActionQueue(store).running():
        pass


def test_running_in_a_second_process_submits_to_the_first(programs: Programs, store: Path) -> None:
    """And leaving it there ends nothing here."""
    queue = make_queue(store)
    with queue.running():
        other = programs.start("standby", store)
        other.line("client")
        other.tell("submit")
        assert other.json("result") == os.getpid()
        other.tell("quit")
        other.finish()
        assert queue.handlers["echo"].submit(1).result(timeout=PATIENCE_S) == 1


def test_a_result_that_comes_after_the_end_is_refused(store: Path, let_go: threading.Event) -> None:
    """S5-42: the stuck thread returns when its engine is long closed; its run was lost and is done again, once."""
    queue = ActionQueue(store, drain_timeout=0)
    started, returned = threading.Event(), threading.Event()
    calls: list[int] = []

    @queue.task(name="late", retry=Retry(3, fixed(0.01)))
    def late() -> str:
        calls.append(len(calls) + 1)
        if len(calls) == 1:
            started.set()
            let_go.wait(PATIENCE_S)
            returned.set()
            return "too late"
        return "in time"

    with queue.running():
        job = late.submit()
        assert started.wait(PATIENCE_S)
    let_go.set()
    assert returned.wait(PATIENCE_S)
    with queue.running():
        assert job.result(timeout=PATIENCE_S) == "in time"
        (run,) = job.runs()
        assert [attempt.outcome for attempt in run.attempts] == ["lost", "completed"]
        assert inspect(queue, leftovers) == []
    assert calls == [1, 2]


def test_whoever_waits_for_a_result_is_told_that_the_queue_was_closed(store: Path, let_go: threading.Event) -> None:
    queue = ActionQueue(store, drain_timeout=0)
    told: list[object] = []

    @queue.task(name="held")
    def held() -> None:
        let_go.wait(PATIENCE_S)

    def wait_for(job: object) -> None:
        try:
            told.append(job.result(timeout=PATIENCE_S))  # type: ignore[attr-defined]
        except NotRunning as error:
            told.append(error.code)

    with queue.running():
        waiter = threading.Thread(target=wait_for, args=(held.submit(),))
        waiter.start()
    waiter.join(PATIENCE_S)
    assert told == ["not_running"]


def test_a_host_loop_runs_on_while_it_drains(store: Path) -> None:
    """Handlers on the host's loop can finish, since leaving waits in another thread; what does not is interrupted."""
    queue = ActionQueue(store, drain_timeout=0.5)
    ticks = 0
    begun = threading.Event()

    @queue.task(name="finishes")
    async def finishes(*, _delay: float = 0.1) -> str:
        await asyncio.sleep(_delay)
        return "finished"

    @queue.task(name="goes_on")
    async def goes_on() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def host() -> tuple[object, object]:
        ticking = asyncio.create_task(tick())
        async with queue:
            jobs = await finishes.asubmit(), await goes_on.asubmit()
            await asyncio.to_thread(begun.wait, PATIENCE_S)
            before = ticks
            left = time.monotonic()
        assert DRAIN_S <= time.monotonic() - left < DRAIN_S + EXTRA_S
        assert ticks - before > 10
        ticking.cancel()
        return jobs

    done, interrupted = asyncio.run(host())
    assert done.state() == "completed"  # type: ignore[attr-defined]
    (run,) = interrupted.runs()  # type: ignore[attr-defined]
    assert (run.state, run.attempts[0].outcome) == ("retry_wait", "interrupted")
    queue.close()
