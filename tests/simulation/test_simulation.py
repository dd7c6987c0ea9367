"""``actionqueue.testing`` as users have it: their queue on a simulated machine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    CONTEXT,
    ActionQueue,
    CommitUnknown,
    Context,
    NotRunning,
    Retry,
    RetryAfter,
    RunCanceled,
    RunFailed,
    RunRecord,
    Snooze,
    SyncCallOnHandlerLoop,
    TerminalFailure,
    fixed,
)
from actionqueue.testing import Simulation, assert_safe_to_retry, context

pytest_plugins = ["pytester"]


class World:
    """A queue, and what its handlers did."""

    def __init__(self, store: str | Path = ":memory:", **options: Any) -> None:
        self.queue = queue = ActionQueue(store, **options)
        self.did: list[str] = []

        @queue.task(name="greet")
        def greet(name: str, loudly: bool = False) -> str:
            self.did.append(f"greet {name}")
            return f"hello {name}"

        @queue.task(name="flaky", retry=Retry(max_attempts=3, backoff=fixed("10s")))
        async def flaky(fails: int, *, ctx: Context = CONTEXT) -> int:
            self.did.append(f"try {ctx.attempt_number}")
            if ctx.attempt_number <= fails:
                raise ValueError("not yet")
            return ctx.attempt_number

        @queue.task(name="slow", timeout="1h")
        async def slow(seconds: float) -> str:
            self.did.append("begins")
            try:
                await asyncio.sleep(seconds)
            finally:
                self.did.append("ends")
            return "done"

        self.greet, self.flaky, self.slow = greet, flaky, slow


@pytest.fixture
def world() -> World:
    return World()


# --- running and time ---------------------------------------------------------------------------------------------------


def test_a_submission_is_durable_at_once_and_runs_when_it_is_let_run(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.greet.submit("Ada")
        assert world.did == []
        summary = sim.run_until_idle()
        assert world.did == ["greet Ada"]
        assert summary.runs["completed"] == 1
        assert job.result() == "hello Ada"
        sim.check()


def test_asking_for_a_result_lets_everything_run_first(world: World) -> None:
    with Simulation(world.queue):
        assert world.greet.submit("Ada").result() == "hello Ada"


def test_a_result_that_needs_time_to_pass_says_so(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.greet.options(delay="1h").submit("Ada")
        with pytest.raises(NotRunning, match=r"sim\.advance"):
            job.result()
        sim.advance("59m")
        assert job.state() == "scheduled"
        sim.advance("1m")
        assert job.result() == "hello Ada"


def test_retries_follow_the_virtual_clock(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.flaky.submit(2)
        sim.run_until_idle()
        assert job.state() == "retry_wait"
        sim.advance("10s")
        sim.advance("10s")
        assert job.result() == 3
        assert world.did == ["try 1", "try 2", "try 3"]
        assert [each.outcome for each in job.runs()[0].attempts] == ["failed", "failed", "completed"]


def test_sleeping_handlers_sleep_on_the_virtual_clock_side_by_side(world: World) -> None:
    with Simulation(world.queue) as sim:
        began = sim.now
        jobs = [world.slow.submit(1800) for _ in range(10)]
        sim.run_until_idle()
        assert {job.state() for job in jobs} == {"running"}
        sim.advance("30m")
        assert {job.result() for job in jobs} == {"done"}
        assert (sim.now - began).total_seconds() == 1800


def test_a_test_can_be_a_coroutine(world: World) -> None:
    async def test() -> str:
        with Simulation(world.queue) as sim:
            job = await world.slow.asubmit(1800)
            sim.run_until_idle()
            assert await job.astate() == "running"
            sim.advance("30m")
            await asyncio.sleep(0)
            return await job.aresult()

    assert asyncio.run(test()) == "done"


def test_a_timeout_cuts_a_sleep_short(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.slow.options(retry=Retry(max_attempts=1)).submit(7200)
        sim.advance("61m")
        with pytest.raises(RunFailed, match="timed_out"):
            job.result()
        assert world.did == ["begins", "ends"]


def test_a_cancel_reaches_a_sleeping_handler(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.slow.submit(60)
        sim.run_until_idle()
        job.cancel()
        with pytest.raises(RunCanceled):
            job.result()


def test_handlers_submit_snooze_and_ask_for_a_delay(world: World) -> None:
    seen: list[str] = []

    @world.queue.task
    async def parent(n: int) -> None:
        await asyncio.to_thread(seen.append, "thread")
        await world.greet.asubmit(f"child {n}")

    @world.queue.task
    def later(*, ctx: Context = CONTEXT) -> int:
        if ctx.attempt_number == 1:
            raise Snooze("5m")
        if ctx.attempt_number == 2:
            raise RetryAfter("5m")
        return ctx.failure_count

    with Simulation(world.queue) as sim:
        parent.submit(1)
        job = later.submit()
        sim.run_until_idle()
        assert (seen, world.did) == (["thread"], ["greet child 1"])
        sim.advance("10m")
        assert job.result() == 1


def test_a_blocking_call_in_an_async_handler_is_refused_as_in_production(world: World) -> None:
    @world.queue.task(retry=Retry(max_attempts=1))
    async def blocks() -> None:
        world.greet.submit("Ada")

    with Simulation(world.queue), pytest.raises(RunFailed) as failed:
        blocks.submit().result()
    assert SyncCallOnHandlerLoop.__name__ in str(failed.value)


def test_resources_are_entered_once_for_each_engine() -> None:
    entered: list[int] = []

    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        entered.append(1)
        yield "a pool"
        entered.append(-1)

    queue = ActionQueue(":memory:", resources=resources)

    @queue.task
    def uses(*, ctx: Context = CONTEXT) -> str:
        return str(ctx.resources)

    with Simulation(queue) as sim:
        assert [uses.submit().result() for _ in range(2)] == ["a pool", "a pool"]
        sim.restart()
        assert entered == [1, -1]
        assert uses.submit().result() == "a pool"
        sim.crash()
        assert entered == [1, -1, 1]
        sim.restart()
        assert uses.submit().result() == "a pool"
    assert entered == [1, -1, 1, 1, -1]


def test_time_begins_when_it_is_told_to(world: World) -> None:
    assert Simulation(world.queue).now == datetime(2026, 1, 1, tzinfo=UTC)
    noon = datetime(2030, 5, 5, 12, tzinfo=UTC)
    with Simulation(world.queue, starts_at=noon) as sim:
        job = world.greet.options(at=noon + timedelta(hours=1)).submit("Ada")
        sim.advance("1h")
        assert job.runs()[0].started_at == sim.now == noon + timedelta(hours=1)


# --- crashes and faults -------------------------------------------------------------------------------------------------


def test_a_crash_loses_the_attempt_and_nothing_else(world: World) -> None:
    with Simulation(world.queue) as sim:
        waiting = world.greet.options(delay="1h").submit("Ada")
        job = world.slow.submit(60)
        sim.run_until_idle()
        sim.crash()
        with pytest.raises(NotRunning, match=r"sim\.restart"):
            job.state()
        gc.collect()
        assert world.did == ["begins"]
        with pytest.raises(NotRunning, match="crashed already"):
            sim.crash()
        sim.restart()
        assert world.did == ["begins"]
        assert job.state() == "retry_wait"
        sim.advance("2h")
        assert (job.result(), waiting.result()) == ("done", "hello Ada")
        assert job.runs()[0].lost_count == 1
        sim.check()


def test_a_restart_without_a_crash_drains(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.slow.submit(10)
        sim.run_until_idle()
        sim.restart()
        assert job.state() == "completed"
        assert job.runs()[0].attempt_count == 1


def test_the_next_attempt_can_be_made_to_fail(world: World) -> None:
    with Simulation(world.queue) as sim:
        sim.fail_next(world.greet, ConnectionError("no route"))
        sim.fail_next(world.greet, TerminalFailure)
        job = world.greet.submit("Ada")
        sim.advance("1m")
        with pytest.raises(RunFailed):
            job.result()
        assert [each.error.kind for each in job.runs()[0].attempts if each.error] == [
            "ConnectionError",
            "TerminalFailure",
        ]
        assert world.did == []
        assert world.greet.submit("Bob").result() == "hello Bob"


def test_a_disk_can_be_full_and_a_commit_be_in_doubt(world: World) -> None:
    with Simulation(world.queue) as sim:
        sim.disk.arm("disk_full", "disk_full")
        assert world.greet.submit("Ada").result() == "hello Ada"
        sim.disk.arm("unknown_kept")
        with pytest.raises(CommitUnknown) as doubt:
            world.greet.submit("Bob")
        sim.crash()
        sim.restart()
        again = world.greet.options(task_id=doubt.value.task_ids[0]).submit("Bob")  # type: ignore[attr-defined]
        assert again.created is False
        sim.advance("2s")  # its first attempt was granted in the commit that was in doubt, and is lost
        assert again.result() == "hello Bob"


# --- questions ----------------------------------------------------------------------------------------------------------


def test_what_was_submitted_can_be_asserted(world: World) -> None:
    with Simulation(world.queue) as sim:
        world.greet.submit("Ada")
        world.greet.submit("Ada", loudly=True)
        assert sim.assert_submitted(world.greet, name="Ada") == 2
        assert sim.assert_submitted(world.greet, name="Ada", loudly=True) == 1
        with pytest.raises(AssertionError, match="was not submitted"):
            sim.assert_submitted(world.greet, name="Bob")
        with pytest.raises(AssertionError, match="was not submitted"):
            sim.assert_submitted(world.slow)


def test_every_read_surface_works(world: World) -> None:
    with Simulation(world.queue) as sim:
        job = world.greet.submit("Ada")
        world.queue.pause(queue="other")
        sim.run_until_idle()
        assert world.queue.stats().runs["completed"] == 1
        assert [run.id for run in world.queue.runs(state="completed")] == [job.run_id]
        assert [change.state for change in world.queue.history(job.run_id)][-1] == "completed"
        assert world.queue.verify().ok
        world.queue.confirm_clock()
        assert world.queue.prune(before=sim.now).tasks == 0


def test_hooks_hear_of_failures(world: World) -> None:
    heard: list[RunRecord] = []
    world.queue.on_failure(heard.append)
    with Simulation(world.queue) as sim:
        world.flaky.options(retry=Retry(max_attempts=1)).submit(5)
        sim.run_until_idle()
    assert [run.error_kind for run in heard] == ["ValueError"]


def test_a_handler_declared_inside_the_block_runs(world: World) -> None:
    with Simulation(world.queue) as sim:

        @world.queue.task
        def new() -> int:
            return 7

        job = new.submit()
        sim.run_until_idle()
        assert job.result() == 7


def test_jitter_comes_from_the_seed() -> None:
    def due(seed: int) -> Any:
        queue = ActionQueue(":memory:")

        @queue.task
        def fails() -> None:
            raise ValueError

        with Simulation(queue, seed=seed) as sim:
            job = fails.submit()
            sim.run_until_idle()
            return job.runs()[0].attempts[0].retry_at

    assert due(1) == due(1)
    assert due(1) != due(2)


# --- around the block ---------------------------------------------------------------------------------------------------


def test_a_queue_on_disk_is_not_touched_and_is_itself_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    world = World(path)
    with Simulation(world.queue):
        world.greet.submit("Ada").result()
    assert list(tmp_path.iterdir()) == []
    assert world.queue.store == path
    with world.queue.running():
        assert world.queue.stats().runs["completed"] == 0


def test_each_block_begins_with_an_empty_store(world: World) -> None:
    for _ in range(2):
        with Simulation(world.queue):
            world.greet.submit("Ada")
            assert world.queue.stats().runs["running"] == 1


# --- safe to retry ------------------------------------------------------------------------------------------------------


class Bank:
    """The outside world of a payment."""

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.queue = queue = ActionQueue(":memory:")

        @queue.task
        async def charge_carelessly(cents: int, *, ctx: Context = CONTEXT) -> None:
            await asyncio.sleep(1)
            self.charged.append(f"{cents}")
            await asyncio.sleep(1)
            ctx.progress(1, 1)

        @queue.task
        async def charge_once(cents: int, *, ctx: Context = CONTEXT) -> None:
            await asyncio.sleep(1)
            if ctx.idempotency_token not in self.charged:
                self.charged.append(ctx.idempotency_token)
            await asyncio.sleep(1)
            ctx.progress(1, 1)

        @queue.task
        def charge_plainly(cents: int, *, ctx: Context = CONTEXT) -> None:
            if ctx.idempotency_token not in self.charged:
                self.charged.append(ctx.idempotency_token)
            ctx.progress(1, 1)

        @queue.task(on_lost="fail")
        async def charge_never_again(cents: int) -> None:
            await asyncio.sleep(1)

        self.carelessly, self.once = charge_carelessly, charge_once
        self.plainly, self.never_again = charge_plainly, charge_never_again

    def check(self) -> None:
        assert len(self.charged) == 1, f"charged {len(self.charged)} times"


def test_a_task_that_keeps_to_its_token_is_safe_to_retry() -> None:
    bank = Bank()
    places = assert_safe_to_retry(bank.queue, bank.once.bind(5), reset=bank.charged.clear, check=bank.check)
    kinds = [place.rpartition(" at line ")[0] or place for place in places]
    token = ["ctx.idempotency_token"]
    assert kinds == ["an await", *token, *token, "an await", "ctx.progress", "its return"]


def test_a_task_without_its_token_is_not_and_the_place_is_named() -> None:
    bank = Bank()
    with pytest.raises(AssertionError, match=r"killed at an await at line \d+: charged 2 times"):
        assert_safe_to_retry(bank.queue, bank.carelessly.bind(5), reset=bank.charged.clear, check=bank.check)


def test_a_plain_handler_is_killed_at_its_context_calls_and_its_return() -> None:
    bank = Bank()
    places = assert_safe_to_retry(bank.queue, bank.plainly.bind(5), reset=bank.charged.clear, check=bank.check)
    assert places[-1] == "its return"
    assert any(place.startswith("ctx.progress at line ") for place in places)


def test_a_task_that_is_not_tried_again_is_not_safe() -> None:
    bank = Bank()
    with pytest.raises(AssertionError, match="is failed after it was killed at an await"):
        assert_safe_to_retry(bank.queue, bank.never_again.bind(5))


# --- contexts -----------------------------------------------------------------------------------------------------------


def test_a_handler_can_be_called_with_a_context_of_ones_own(world: World) -> None:
    ctx = context(attempt_number=2, max_attempts=5, timeout="30s", resources="pool", handler="flaky")
    assert asyncio.run(world.flaky(1, ctx=ctx)) == 2
    assert (ctx.failure_count, ctx.max_attempts, ctx.resources) == (1, 5, "pool")
    assert ctx.deadline is not None
    ctx.progress(1, 3, "so far")
    assert ctx.reports == [(1, 3, "so far")]
    ctx.request_stop("timed_out")
    assert (ctx.canceled, ctx.cancel_reason) == (True, "timed_out")
    with pytest.raises(BaseException, match="timed_out"):
        ctx.check_canceled()


# --- the plugin ---------------------------------------------------------------------------------------------------------

JOBS = """
from actionqueue import ActionQueue
queue = ActionQueue("jobs.db")
@queue.task
def double(n: int) -> int:
    return 2 * n
"""
TEST = """
def test_doubling(sim):
    from jobs import double
    assert double.submit(21).result() == 42
"""


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", *arguments)


@pytest.mark.slow
def test_the_fixture_finds_the_queue_by_the_ini_option(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(jobs=JOBS, test_jobs=TEST)
    pytester.makeini("[pytest]\nactionqueue_queue = jobs:queue\npythonpath = .\n")
    run_pytest(pytester).assert_outcomes(passed=1)
    run_pytest(pytester, "--sim-seeds", "3").assert_outcomes(passed=3)


@pytest.mark.slow
def test_the_fixture_finds_the_queue_by_a_fixture(pytester: pytest.Pytester) -> None:
    fixture = "import pytest, jobs\n@pytest.fixture\ndef actionqueue_queue():\n    return jobs.queue\n"
    pytester.makepyfile(jobs=JOBS, test_jobs=TEST, conftest=fixture)
    pytester.makeini("[pytest]\npythonpath = .\n")
    run_pytest(pytester).assert_outcomes(passed=1)


@pytest.mark.slow
def test_without_a_queue_the_fixture_says_how_to_name_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_jobs=TEST)
    result = run_pytest(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*set actionqueue_queue = module:name*"])


@pytest.mark.slow
def test_a_failing_test_says_with_which_seed_and_how_to_run_it_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(jobs=JOBS, test_jobs="def test_it(sim):\n    assert False\n")
    pytester.makeini("[pytest]\nactionqueue_queue = jobs:queue\npythonpath = .\n")
    result = run_pytest(pytester, "--sim-seed", "9")
    result.stdout.fnmatch_lines(["*seed 9; again: pytest test_jobs.py::test_it --sim-seed=9*"])
