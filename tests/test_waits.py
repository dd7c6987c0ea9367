"""Steps, sleeps and signals as users have them: in a simulation, and on real executors."""

from __future__ import annotations

import asyncio
import importlib
import logging
import runpy
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    CONTEXT,
    ActionQueue,
    CommitUnknown,
    Context,
    DuplicateStep,
    InvalidSubmission,
    Limit,
    PayloadTooLarge,
    Retry,
    RunFailed,
    SignalConflict,
    SignalTimeout,
    StepTooLarge,
    TerminalFailure,
    fixed,
)
from actionqueue.testing import Simulation, context
from tests.process.programs import waiting

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "approval.py"


@pytest.fixture
def queue(tmp_path: Path) -> ActionQueue:
    return ActionQueue(tmp_path / "jobs.db")


def state_of(queue: ActionQueue, job: Any) -> str:
    return queue.get_run(job.run_id).state


# --- the approval, end to end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "by", "ends"),
    [
        (True, "anna", "order 42 paid, approved by anna"),
        (False, "bert", "order 42 undone: refused by bert"),
        (None, "", "order 42 undone: nobody answered for three days"),
    ],
)
@pytest.mark.parametrize("crash", [False, True])
def test_the_approval_is_executed_or_compensated_once(answer: bool | None, by: str, ends: str, *, crash: bool) -> None:
    """Plan, a named person's signal with a three-day timeout, execute or compensate."""
    program = runpy.run_path(str(EXAMPLE))
    queue, purchase, done = program["queue"], program["purchase"], program["done"]
    with Simulation(queue) as sim:
        job = purchase.submit(42, 900)
        sim.run_until_idle()
        assert state_of(queue, job) == "awaiting"
        sim.advance("2d")
        if crash:
            sim.crash()
            sim.restart()
        assert done == ["reserved 900 for order 42"]
        if answer is None:
            sim.advance("1d")
        else:
            queue.signal("approved", key=42, payload={"ok": answer}, by=by)
            sim.run_until_idle()
        assert job.result() == ends
        assert len(done) == 2
        assert queue.get_run(job.run_id).failure_count == 0
        sim.check()


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_step_is_done_once_over_failures_and_crashes(queue: ActionQueue, kind: str) -> None:
    calls: list[str] = []

    def plain(*, ctx: Context = CONTEXT) -> list[int]:
        first = ctx.step("first", lambda: calls.append("first") or (1, 2))  # type: ignore[func-returns-value]
        if ctx.attempt_number == 1:
            raise ValueError("once")
        return [*first, ctx.step("second", lambda: calls.append("second") or 3)]  # type: ignore[func-returns-value]

    async def later(*, ctx: Context = CONTEXT) -> list[int]:
        async def first() -> tuple[int, int]:
            calls.append("first")
            await asyncio.sleep(1)
            return 1, 2

        found = await ctx.step("first", first)
        if ctx.attempt_number == 1:
            raise ValueError("once")
        return [*found, await ctx.step("second", lambda: calls.append("second") or 3)]  # type: ignore[func-returns-value]

    task = queue.task(retry=Retry(backoff=fixed("1m")))(plain if kind == "thread" else later)
    with Simulation(queue) as sim:
        job = task.submit()
        sim.advance("2s")
        sim.crash()
        sim.restart()
        sim.advance("2m")
        assert job.result() == [1, 2, 3]
        assert calls == ["first", "second"]
        assert [(step.name, step.value) for step in queue.steps(job.run_id)] == [("first", [1, 2]), ("second", 3)]


def test_what_a_step_raises_is_not_recorded(queue: ActionQueue) -> None:
    calls: list[int] = []

    @queue.task(retry=Retry(backoff=fixed("1s")))
    def flaky(*, ctx: Context = CONTEXT) -> int:
        def work() -> int:
            calls.append(1)
            if len(calls) == 1:
                raise ValueError("not yet")
            return 7

        return int(ctx.step("work", work))

    with Simulation(queue) as sim:
        job = flaky.submit()
        sim.advance("5s")
        assert (job.result(), len(calls)) == (7, 2)


@pytest.mark.parametrize(
    ("second", "kind"), [("step", DuplicateStep.__name__), ("big", StepTooLarge.__name__), ("nameless", "ValueError")]
)
def test_a_misused_step_fails_its_attempt(queue: ActionQueue, second: str, kind: str) -> None:
    @queue.task(retry=Retry(max_attempts=1))
    def misuses(*, ctx: Context = CONTEXT) -> None:
        ctx.step("a", lambda: 1)
        match second:
            case "step":
                ctx.step("a", lambda: 1)
            case "big":
                ctx.step("b", lambda: "x" * (1024 * 1024 + 1))
            case _:
                ctx.step("", lambda: 1)

    with Simulation(queue) as sim:
        job = misuses.submit()
        sim.run_until_idle()
        assert queue.get_run(job.run_id).error_kind == kind


def test_a_record_of_another_kind_fails_the_run_for_good(queue: ActionQueue) -> None:
    @queue.task(retry=Retry(max_attempts=5, backoff=fixed("1s")))
    def changes(*, ctx: Context = CONTEXT) -> None:
        if ctx.attempt_number == 1:
            ctx.step("x", lambda: 1)
            raise ValueError("and then the code is changed")
        ctx.sleep("1s", name="x")

    with Simulation(queue) as sim:
        job = changes.submit()
        sim.advance("1m")
        run = queue.get_run(job.run_id)
        assert (run.state, run.reason, run.attempt_count) == ("failed", "step_mismatch", 2)


def test_a_handler_that_swallows_its_wait_fails_for_good(queue: ActionQueue) -> None:
    @queue.task
    def swallows(*, ctx: Context = CONTEXT) -> None:
        try:
            ctx.sleep("1s")
        except BaseException:
            return

    with Simulation(queue) as sim:
        job = swallows.submit()
        sim.run_until_idle()
        assert queue.get_run(job.run_id).reason == "swallowed_control"


def test_what_the_code_no_longer_asks_for_is_tolerated_and_said(
    queue: ActionQueue, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task(retry=Retry(backoff=fixed("1s")))
    def changes(*, ctx: Context = CONTEXT) -> str:
        if ctx.attempt_number == 1:
            ctx.step("old", lambda: 1)
            raise ValueError("and then the code is changed")
        return str(ctx.step("new", lambda: "done"))

    with Simulation(queue) as sim, caplog.at_level(logging.WARNING, "actionqueue"):
        job = changes.submit()
        sim.advance("1m")
        assert job.result() == "done"
        assert {step.name: step.unasked for step in queue.steps(job.run_id)} == {"old": True, "new": False}
    assert "without asking for what it had recorded: old" in caplog.text


@pytest.mark.parametrize("fresh", [False, True])
def test_a_retry_goes_on_with_the_records_unless_it_is_fresh(queue: ActionQueue, *, fresh: bool) -> None:
    """Recorded steps carry over to the run that is asked for in its place."""
    calls: list[str] = []

    @queue.task
    def order(*, ctx: Context = CONTEXT) -> str:
        ctx.step("pay", lambda: calls.append("paid"))
        if len(calls) + ctx.attempt_number == 2 and ctx.failure_count == 0 and not retried:
            raise TerminalFailure("no")
        return str(ctx.receive("go").payload)

    retried: list[int] = []
    with Simulation(queue) as sim:
        job = order.submit()
        queue.signal("go", payload="x")
        sim.run_until_idle()
        assert state_of(queue, job) == "failed"
        retried.append(1)
        new = queue.retry_run(job.run_id, fresh=fresh)
        sim.run_until_idle()
        assert queue.get_run(new).state == "completed"
        assert calls == ["paid"] * (1 + fresh)
        sim.check()


# --- waits ----------------------------------------------------------------------------------------------------------


def test_a_sleep_holds_nothing_and_goes_on_after_a_restart(queue: ActionQueue) -> None:
    @queue.task
    async def naps(*, ctx: Context = CONTEXT) -> int:
        await ctx.sleep("3d")
        await ctx.sleep(timedelta(hours=1), name="again")
        return ctx.attempt_number

    with Simulation(queue) as sim:
        job = naps.submit()
        sim.advance("1d")
        assert state_of(queue, job) == "awaiting"
        assert queue.stats().runs["running"] == 0
        sim.restart()
        sim.advance("2d")
        assert queue.get_run(job.run_id).attempt_count == 2
        sim.advance("1h")
        assert job.result() == 3
        names = [(step.name, step.outcome) for step in queue.steps(job.run_id)]
        assert names == [("sleep#1", "slept"), ("again", "slept")]
        assert [change.state for change in queue.history(job.run_id)].count("awaiting") == 2
        assert [change.reason for change in queue.history(job.run_id)].count("slept") == 2


def test_a_timeout_raises_or_gives_the_default_and_a_late_signal_changes_nothing(queue: ActionQueue) -> None:
    @queue.task
    def waits(*, ctx: Context = CONTEXT) -> list[str]:
        found = [str(ctx.receive("go", timeout="1h", default="nobody"))]
        try:
            ctx.receive("go", timeout="1h")
        except SignalTimeout:
            found.append("timeout")
        ctx.sleep("1h")
        return found

    with Simulation(queue) as sim:
        job = waits.submit()
        sim.advance("2h")
        queue.signal("go")
        sim.advance("2h")
        assert job.result() == ["nobody", "timeout"]


def test_keys_are_matched_exactly_and_numbers_are_their_texts(queue: ActionQueue) -> None:
    @queue.task
    def waits(key: int | None, *, ctx: Context = CONTEXT) -> Any:
        return ctx.receive("go", key=key).payload

    with Simulation(queue) as sim:
        with_key, without = waits.submit(7), waits.submit(None)
        queue.signal("go", key="8", payload="other")
        sim.run_until_idle()
        assert (state_of(queue, with_key), state_of(queue, without)) == ("awaiting", "awaiting")
        queue.signal("go", key="7", payload="seven")
        queue.signal("go", payload="none")
        sim.run_until_idle()
        assert (with_key.result(), without.result()) == ("seven", "none")


@pytest.mark.parametrize(("hold", "starts"), [((), True), (("awaiting",), False)])
def test_a_waiting_run_gives_its_key_back_unless_it_holds_it(
    queue: ActionQueue, hold: tuple[str, ...], *, starts: bool
) -> None:
    """Holding over the wait is asked for by the state's name."""

    @queue.task(limits=[Limit("only", capacity=1)], hold=hold)
    def waits(*, ctx: Context = CONTEXT) -> None:
        ctx.receive("go")

    with Simulation(queue) as sim:
        waits.submit()
        second = waits.submit()
        sim.run_until_idle()
        assert state_of(queue, second) == ("awaiting" if starts else "ready")


def test_canceling_a_waiting_run_works_at_once(queue: ActionQueue) -> None:
    @queue.task
    def waits(*, ctx: Context = CONTEXT) -> None:
        ctx.receive("go", timeout="1h")

    with Simulation(queue) as sim:
        job = waits.submit()
        sim.run_until_idle()
        assert queue.cancel_run(job.run_id)
        assert state_of(queue, job) == "canceled"
        queue.signal("go")
        sim.advance("2h")
        assert state_of(queue, job) == "canceled"
        sim.check()


def test_signals_are_listed_and_known_by_their_id(queue: ActionQueue) -> None:
    with Simulation(queue):
        assert queue.signal("go", key=1, payload=[1], id="a", by="anna")
        assert not queue.signal("go", key=1, payload=[1], id="a")
        with pytest.raises(SignalConflict):
            queue.signal("go", key=1, payload=[2], id="a")
        queue.signal("stop")
        assert [(each.name, each.key, each.payload) for each in queue.signals()] == [
            ("stop", None, None),
            ("go", "1", [1]),
        ]
        assert [each.by for each in queue.signals(name="go", key=1)] == ["anna"]
        assert len(queue.signals(limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("", {}, InvalidSubmission),
        ("go", {"key": ""}, InvalidSubmission),
        ("go", {"payload": object()}, InvalidSubmission),
        ("go", {"payload": "x" * 65536}, PayloadTooLarge),
        ("go", {"id": "\n"}, InvalidSubmission),
    ],
)
def test_a_signal_that_is_none_is_refused_before_it_is_sent(
    queue: ActionQueue, name: str, fields: dict[str, Any], kind: type[Exception]
) -> None:
    with Simulation(queue), pytest.raises(kind):
        queue.signal(name, **fields)


def test_forecast_and_explain_tell_of_waits(queue: ActionQueue) -> None:
    @queue.task
    def waits(*, ctx: Context = CONTEXT) -> None:
        ctx.receive("go", key="k", timeout="2h")

    @queue.task
    def naps(*, ctx: Context = CONTEXT) -> None:
        ctx.sleep("1h")

    with Simulation(queue) as sim:
        job, nap = waits.submit(), naps.submit()
        sim.run_until_idle()
        found = {entry.kind: entry for entry in queue.forecast("1d").entries}
        assert found["wakes"].at - sim.now == timedelta(hours=1)
        assert found["timeout"].at - sim.now == timedelta(hours=2)
        assert found["wakes"].exact
        assert found["timeout"].exact
        assert "waits for signal 'go' of key 'k'" in str(job.explain())
        assert "sleeps" in str(nap.explain())


def test_a_handler_called_directly_does_its_steps() -> None:
    def handler(ctx: Context) -> Any:
        return ctx.step("a", lambda: (1, 2))

    assert handler(context(handler="plain")) == [1, 2] or asyncio.run(handler(context())) == [1, 2]


# --- real executors -------------------------------------------------------------------------------------------------


def test_signals_wake_runs_on_every_executor(queue: ActionQueue) -> None:
    @queue.task
    def plain(*, ctx: Context = CONTEXT) -> list[Any]:
        first = ctx.step("a", lambda: 1)
        ctx.sleep(0.01)
        return [first, ctx.receive("go", timeout="1m").payload]

    @queue.task
    async def later(*, ctx: Context = CONTEXT) -> list[Any]:
        first = await ctx.step("a", lambda: 1)
        await ctx.sleep(0.01)
        return [first, (await ctx.receive("go", timeout="1m")).payload]

    with queue.running():
        jobs = [task.submit() for task in (plain, later) for _ in range(3)]
        deadline = time.monotonic() + 10
        while queue.stats().runs["awaiting"] < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        queue.signal("go", payload="x")
        assert [job.result(timeout=10) for job in jobs] == [[1, "x"]] * 6
    assert queue.verify().ok


def test_a_step_that_is_refused_because_its_attempt_was_given_up_raises(queue: ActionQueue) -> None:
    import threading

    gate, seen = threading.Event(), []

    @queue.task(retry=Retry(max_attempts=1))
    def stuck(*, ctx: Context = CONTEXT) -> None:
        gate.wait(10)
        try:
            ctx.step("late", lambda: 1)
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    with queue.running():
        job = stuck.submit()
        deadline = time.monotonic() + 10
        while state_of(queue, job) != "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        queue.cancel_run(job.run_id, "abandon")
        gate.set()
        with pytest.raises(RunFailed):
            job.result(timeout=10)
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == ["NotRunning"]
        assert queue.steps(job.run_id) == []


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_step_returns_only_once_it_is_durable(queue: ActionQueue, kind: str) -> None:
    """The commit of its record fails: whoever did it must not go on as if it were recorded."""
    told: list[str] = []

    def plain(*, ctx: Context = CONTEXT) -> None:
        sim.disk.arm("unknown_lost")
        try:
            ctx.step("a", lambda: told.append("done"))
            told.append("recorded")
        except CommitUnknown:
            told.append("refused")

    async def later(*, ctx: Context = CONTEXT) -> None:
        sim.disk.arm("unknown_lost")
        try:
            await ctx.step("a", lambda: told.append("done"))
            told.append("recorded")
        except CommitUnknown:
            told.append("refused")

    task = queue.task(plain if kind == "thread" else later)
    with Simulation(queue) as sim:
        task.submit()
        with suppress(CommitUnknown):
            sim.run_until_idle()
        assert told[0] == "done"
        assert "recorded" not in told


@pytest.mark.slow
def test_steps_and_waits_work_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAITING_STORE", str(tmp_path / "jobs.db"))
    program = importlib.reload(waiting)
    queue = program.queue
    with queue.running():
        jobs = [program.waits.submit(n) for n in range(3)]
        deadline = time.monotonic() + 30
        while queue.stats().runs["awaiting"] < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        queue.signal("go", payload="x")
        assert [job.result(timeout=30) for job in jobs] == [[n, "x", n] for n in range(3)]
        bad = program.too_large.submit()
        with pytest.raises(RunFailed) as caught:
            bad.result(timeout=30)
        assert "StepTooLarge" in str(queue.get_run(bad.run_id).error_kind), caught.value
    assert queue.verify().ok
