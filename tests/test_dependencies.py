"""Dependencies as users write them: handles, ids and outputs, from this process and from another one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    ActionQueue,
    Conflict,
    Cron,
    DependencyCycle,
    InvalidSubmission,
    ManyRuns,
    NotRetryable,
    NotYetAResult,
    Once,
    PayloadTooLarge,
    Retry,
    RunCanceled,
    RunFailed,
    TaskHandle,
    TaskId,
    TaskSpec,
    UnknownTask,
)
from actionqueue.reasons import WaitsForTasks
from actionqueue.testing import Simulation

ONE_TRY = Retry(max_attempts=1)
BIG = 900_000


@dataclass
class Part:
    """One piece of work."""

    name: str
    size: int


@dataclass
class Order:
    """Something with a place for a result deep inside."""

    parts: list[Part]
    note: str = ""


@pytest.fixture
def queue() -> ActionQueue:
    return ActionQueue(":memory:")


@pytest.fixture
def sim(queue: ActionQueue) -> Iterator[Simulation]:
    @queue.task(name="double")
    def double(n: int) -> int:
        return 2 * n

    @queue.task(name="total")
    def total(parts: list[int], *, label: str = "sum") -> str:
        return f"{label} {sum(parts)}"

    @queue.task(name="fail", retry=ONE_TRY)
    def fail() -> int:
        raise ValueError("no")

    @queue.task(name="raw")
    def raw(size: int) -> bytes:
        return b"\xff" * size

    @queue.task(name="length")
    def length(data: bytes) -> int:
        return len(data)

    @queue.task(name="make")
    def make(name: str) -> Part:
        return Part(name, len(name))

    @queue.task(name="check")
    def check(order: Order) -> list[str]:
        return [f"{part.name}:{part.size}" for part in order.parts] + [order.note]

    @queue.task(name="nothing")
    def nothing() -> None: ...

    @queue.task(name="either")
    def either(value: int | None) -> str:
        return repr(value)

    @queue.task(name="anything")
    def anything(value: Any) -> Any:
        return value

    with Simulation(queue) as sim:
        yield sim


def task(sim: Simulation, name: str) -> Any:
    return sim.queue.handlers[name]


def test_results_are_put_into_the_arguments_typed_as_they_are_declared(sim: Simulation) -> None:
    double, total, make, check = (task(sim, name) for name in ("double", "total", "make", "check"))
    job = total.submit([double.submit(1).output, 10, double.submit(2).output], label="all")
    order = check.submit(Order([make.submit("ab").output, Part("x", 7)]))
    nested = task(sim, "anything").submit({"a": [1, {"b": double.submit(4).output}], "t": (double.submit(5).output,)})

    sim.run_until_idle()

    assert job.result() == "all 16"
    assert order.result() == ["ab:2", "x:7", ""]
    assert nested.result() == {"a": [1, {"b": 8}], "t": [10]}


def test_bytes_nothing_and_what_is_not_there_are_passed_on_as_such(sim: Simulation) -> None:
    raw, length, either = task(sim, "raw"), task(sim, "length"), task(sim, "either")
    size = length.submit(raw.submit(3).output)
    nothing = either.submit(task(sim, "nothing").submit().output)
    failed = either.options(on_upstream_failure="run").submit(task(sim, "fail").submit().output)

    sim.run_until_idle()

    assert (size.result(), nothing.result(), failed.result()) == (3, "None", "None")


def test_the_output_of_what_was_archived_long_ago_is_there(sim: Simulation) -> None:
    first = task(sim, "double").submit(21)
    sim.run_until_idle()
    sim.advance("1h")
    sim.crash()
    sim.restart()

    job = task(sim, "either").submit(first.output)
    sim.run_until_idle()

    assert job.result() == "42"


def test_a_result_that_does_not_fit_the_annotation_blocks_the_task_instead_of_failing_it(sim: Simulation) -> None:
    job = task(sim, "either").submit(task(sim, "make").submit("x").output)

    sim.run_until_idle()

    assert job.state() == "ready"
    assert "do not fit" in str(job.explain())


def test_results_that_are_too_large_together_fail_the_task_and_say_so(
    sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actionqueue.engine.outputs.JOINED_BYTES_MAX", 2 * BIG)
    raw, anything = task(sim, "raw"), task(sim, "anything")
    parts = [raw.submit(BIG * 3 // 4) for _ in range(3)]
    job = anything.options(retry=ONE_TRY).submit([part.output for part in parts])

    sim.run_until_idle()

    with pytest.raises(RunFailed, match="arguments_too_large"):
        job.result()
    assert issubclass(PayloadTooLarge, Exception)


def test_a_failure_cancels_what_depends_on_it_and_a_retry_brings_it_back(sim: Simulation) -> None:
    fail, double, total = task(sim, "fail"), task(sim, "double"), task(sim, "total")
    first = fail.submit()
    second = double.options(depends_on=[first]).submit(1)
    third = total.submit([second.output])
    sim.run_until_idle()

    with pytest.raises(RunCanceled, match=str(first.id)):
        third.result()
    with pytest.raises(NotRetryable, match="with_dependents"):
        sim.queue.retry_run(second.run_id)

    fail.runnable.function = lambda: 5
    sim.queue.retry_run(first.run_id, with_dependents=True)
    sim.run_until_idle()

    assert (first.result(), second.result(), third.result()) == (5, 2, "sum 2")
    assert [run.state for run in third.runs()] == ["canceled", "completed"]


def test_everything_is_there_after_a_crash_in_the_middle(sim: Simulation) -> None:
    double, total = task(sim, "double"), task(sim, "total")
    slow = double.options(delay="10s").submit(4)
    job = total.submit([double.submit(1).output, slow.output])
    sim.run_until_idle()
    sim.crash()
    sim.restart()
    assert isinstance(job.explain().reason, WaitsForTasks)

    sim.advance("10s")

    assert job.result() == "sum 10"
    sim.check()


def test_dependencies_can_be_given_as_ids_and_in_the_low_level_form(sim: Simulation) -> None:
    first = task(sim, "double").options(delay="5s").submit(1)
    by_id = task(sim, "double").options(depends_on=[str(first.id)]).submit(2)
    spec = TaskSpec(handler="double", payload=b'{"n":3}', depends_on=(first.id,), policy=Once(delay_us=1))
    low = sim.queue.submit(spec)
    sim.run_until_idle()
    assert (by_id.state(), low.state()) == ("scheduled", "scheduled")

    sim.advance("5s")

    assert (by_id.result(), low.result()) == (4, b"6")


def test_a_batch_of_calls_may_depend_on_what_it_contains(sim: Simulation) -> None:
    double = task(sim, "double")
    first, second = TaskId.new(), TaskId.new()
    calls = [
        double.options(task_id=second, depends_on=[first]).bind(2),
        double.options(task_id=first).bind(1),
    ]
    jobs = sim.queue.submit_many(calls)
    sim.run_until_idle()
    started = [job.runs()[0].attempts[0] for job in jobs]
    assert [job.result() for job in jobs] == [4, 2]
    assert started[0].number == started[1].number == 1

    circle = [
        double.options(task_id=TaskId(int=1), depends_on=[TaskId(int=2)]).bind(1),
        double.options(task_id=TaskId(int=2), depends_on=[TaskId(int=1)]).bind(2),
    ]
    with pytest.raises(DependencyCycle) as caught:
        sim.queue.submit_many(circle)
    assert caught.value.path.count("->") == 2


def test_the_dependencies_are_part_of_what_an_idempotency_key_compares(sim: Simulation) -> None:
    double = task(sim, "double")
    first = double.submit(1)
    keyed = double.options(idempotency_key="k", depends_on=[first])

    assert keyed.submit(2).created
    assert not keyed.submit(2).created
    with pytest.raises(Conflict):
        double.options(idempotency_key="k").submit(2)


def test_a_task_can_be_made_to_wait_later(sim: Simulation) -> None:
    double = task(sim, "double")
    first = double.options(delay="1m").submit(1)
    second = double.options(delay="10s").submit(2)

    assert sim.queue.add_dependencies(second.id, [first]) == 1
    assert sim.queue.add_dependencies(second.id, [first]) == 0
    sim.advance("30s")
    assert second.state() == "scheduled"
    sim.advance("30s")
    assert second.result() == 4
    with pytest.raises(Conflict):
        sim.queue.add_dependencies(second.id, [first])


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        str, bool, len, list, int, float, hash, bytes,
        lambda output: output + 1,
        lambda output: 1 + output,
        lambda output: output == 1,
        lambda output: output < 1,
        lambda output: output[0],
        lambda output: output.name,
        lambda output: output(),
        lambda output: f"{output}",
        lambda output: 1 in output,
    ],
)  # fmt: skip
def test_an_output_can_be_passed_on_and_nothing_else(sim: Simulation, use: Any) -> None:
    output = task(sim, "double").submit(1).output

    with pytest.raises(NotYetAResult, match="not there yet"):
        use(output)
    assert "output of task" in repr(output)
    assert "output of task" in repr(copy.copy(output))


def test_a_key_cannot_show_an_output(sim: Simulation) -> None:
    @sim.queue.task(concurrency_key="customer:{customer}")
    def charge(customer: int, amount: int) -> int:
        return amount

    output = task(sim, "double").submit(1).output
    with pytest.raises(NotYetAResult, match="customer"):
        charge.submit(output, 5)
    assert charge.submit(5, output).state() == "scheduled"


def test_a_schedule_has_no_output_and_cannot_be_waited_for_for_ever(sim: Simulation) -> None:
    double = task(sim, "double")
    schedule = double.options(schedule=Cron("0 0 * * *")).submit(1)
    with pytest.raises(ManyRuns):
        _ = schedule.output
    with pytest.raises(InvalidSubmission, match="without an end"):
        double.options(depends_on=[schedule]).submit(1)
    with pytest.raises(InvalidSubmission, match="schedule"):
        double.options(depends_on=[double.submit(1)], schedule=Cron("0 0 * * *"))


def test_bad_dependencies_are_refused_and_leave_nothing(sim: Simulation) -> None:
    double = task(sim, "double")
    with pytest.raises(UnknownTask):
        double.options(depends_on=[TaskId.new()]).submit(1)
    for wrong in ("x", 7, b"no"):
        with pytest.raises(InvalidSubmission, match="depends_on"):
            double.options(depends_on=wrong)
    with pytest.raises(InvalidSubmission, match="depends_on"):
        double.options(depends_on=["not an id"])
    with pytest.raises(InvalidSubmission, match="cancel or run"):
        double.options(on_upstream_failure="ignore")
    with pytest.raises(InvalidSubmission, match="10000"):
        double.options(depends_on=[TaskId.new() for _ in range(10_001)])

    assert sim.queue.stats().tasks == 0


# --- other processes --------------------------------------------------------------------------------------------


def test_a_client_submits_and_adds_dependencies_too(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    engine, client = ActionQueue(path), ActionQueue(path, role="client")

    @engine.task(name="double")
    def double(n: int) -> int:
        return 2 * n

    @client.task(name="double")
    def same(n: int) -> int:
        return 2 * n

    with engine.running(), client.running():
        held: TaskHandle[int] = same.options(delay="1h").submit(1)
        job = same.submit(held.output)
        unknown = same.options(depends_on=[TaskId.new()]).submit(1)
        with pytest.raises(UnknownTask):
            unknown.result(timeout=30)
        client.reschedule(held.run_id, at=held.runs()[0].created_at)

        assert job.result(timeout=30) == 4
        assert asyncio.run(client.aget_task(job.id)).run_count == 1
        report = engine.verify()
        assert report.problems == ()
