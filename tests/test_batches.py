"""Batches: submitted whole, counted, followed by a task, canceled and tried again as one, and gone with their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    ActionQueue,
    BatchId,
    Conflict,
    Cron,
    InvalidArguments,
    InvalidSubmission,
    LimitExceeded,
    NotFound,
    Overloaded,
    Retry,
    TerminalFailure,
)
from actionqueue.testing import Simulation


@pytest.fixture
def sim() -> Iterator[Simulation]:
    queue = ActionQueue(":memory:", live_runs_max=8, retention="1h")

    @queue.task(name="load", retry=Retry(max_attempts=1))
    def load(part: int) -> int:
        if part < 0:
            raise TerminalFailure("no such part")
        return part

    @queue.task(name="merge")
    def merge(parts: list[int]) -> int:
        return sum(parts)

    @queue.task(name="tell")
    def tell() -> str:
        return "told"

    with Simulation(queue) as sim:
        yield sim


def task(sim: Simulation, name: str) -> Any:
    return sim.queue.handlers[name]


def fill(sim: Simulation, *parts: Any) -> None:
    with sim.queue.batch() as batch:
        for part in parts:
            batch.add(task(sim, "load").bind(part))


def test_a_batch_is_submitted_whole_at_the_end_of_its_block(sim: Simulation) -> None:
    load, merge = task(sim, "load"), task(sim, "merge")
    with sim.queue.batch("import") as batch:
        parts = [batch.add(load.bind(n)) for n in (1, 2)]
        whole = batch.add(merge.bind([part.output for part in parts]))
        assert sim.queue.stats().tasks == 0
    assert [job.created for job in batch.handles] == [True] * 3
    assert sim.queue.get_batch(batch.id).open_count == 3

    sim.run_until_idle()

    found = sim.queue.get_batch(batch.id)
    assert (found.name, found.task_count, found.runs, found.open_count) == ("import", 3, {"completed": 3}, 0)
    assert whole.result() == 3
    assert {run.id for run in sim.queue.runs(batch=batch.id)} == {job.run_id for job in batch.handles}
    assert sim.queue.batches() == [found]


def test_what_raises_in_the_block_leaves_nothing(sim: Simulation) -> None:
    with pytest.raises(InvalidArguments):
        fill(sim, 1, "x")
    with pytest.raises(Overloaded):
        fill(sim, *range(9))
    with sim.queue.batch("empty"):
        pass

    assert sim.queue.stats().tasks == 0
    assert sim.queue.batches() == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_callback_runs_when_all_have_ended_however_they_did(sim: Simulation, *, fails: bool) -> None:
    load = task(sim, "load")
    with sim.queue.batch() as batch:
        batch.add(load.bind(1))
        batch.add(load.options(delay="1m").bind(-1 if fails else 2))
        told = batch.on_complete(task(sim, "tell").bind())
    sim.run_until_idle()
    assert told.state() == "scheduled"

    sim.advance("1m")

    assert told.result() == "told"
    assert sim.queue.get_batch(batch.id).callback == told.id


def test_a_batch_is_canceled_and_tried_again_as_one(sim: Simulation) -> None:
    load = task(sim, "load")
    with sim.queue.batch() as batch:
        jobs = [batch.add(load.options(delay="1h").bind(n)) for n in (1, 2)]
    other = load.options(delay="1h").submit(3)

    assert sim.queue.cancel_runs(batch=batch.id) == 2
    assert [job.state() for job in (*jobs, other)] == ["canceled", "canceled", "scheduled"]
    assert sim.queue.retry_runs(batch=batch.id, state="canceled") == 2
    sim.run_until_idle()
    assert [job.result() for job in jobs] == [1, 2]


def test_a_batch_survives_a_crash_and_goes_with_the_last_of_its_tasks(sim: Simulation) -> None:
    load = task(sim, "load")
    with sim.queue.batch("b") as batch:
        batch.add(load.bind(1))
        batch.add(load.options(delay="30m").bind(2))
    sim.run_until_idle()
    sim.crash()
    sim.restart()
    assert sim.queue.get_batch(batch.id).name == "b"
    sim.advance("30m")
    assert sim.queue.get_batch(batch.id).runs == {"completed": 2}

    sim.queue.prune(before=sim.now - timedelta(minutes=20))
    assert sim.queue.get_batch(batch.id).runs == {"completed": 1}
    sim.queue.prune(before=sim.now + timedelta(seconds=1))

    with pytest.raises(NotFound):
        sim.queue.get_batch(batch.id)
    assert sim.queue.batches() == []


def test_bad_batches_are_refused(sim: Simulation) -> None:
    load = task(sim, "load")
    with pytest.raises(InvalidSubmission, match="batch"):
        sim.queue.batch("\n")
    with pytest.raises(InvalidSubmission, match="schedule"), sim.queue.batch() as batch:
        batch.add(load.options(schedule=Cron("@daily")).bind(1))
    with pytest.raises(InvalidSubmission, match="on_complete"), sim.queue.batch() as batch:
        batch.on_complete(load.bind(1))
    with sim.queue.batch() as batch:
        batch.add(load.bind(1))
    with pytest.raises(Conflict, match="submitted"):
        batch.add(load.bind(1))
    with pytest.raises(NotFound):
        sim.queue.get_batch(BatchId.new())
    with pytest.raises(InvalidSubmission, match="limit"):
        sim.queue.batches(limit=0)
    with pytest.raises(InvalidSubmission, match="batch"):
        sim.queue.runs(batch="x")


def test_ten_thousand_are_the_most(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actionqueue.batching.check_count", _most_three)
    with pytest.raises(LimitExceeded):
        fill(sim, *range(4))
    assert sim.queue.stats().tasks == 0


def _most_three(count: int) -> None:
    if count > 3:
        raise LimitExceeded("too many", limit="submit_many_max", maximum=3)


def test_a_client_submits_a_batch_and_asks_for_it(tmp_path: Path) -> None:
    engine, client = ActionQueue(tmp_path / "jobs.db"), ActionQueue(tmp_path / "jobs.db", role="client")

    @engine.task(name="load")
    def load(part: int) -> int:
        return part

    @client.task(name="load")
    def same(part: int) -> int:
        return part

    with engine.running(), client.running():
        with client.batch("from afar") as batch:
            jobs = [batch.add(same.bind(n)) for n in (1, 2)]
            last = batch.on_complete(same.bind(3))
        assert [job.result(timeout=30) for job in (*jobs, last)] == [1, 2, 3]
        assert client.get_batch(batch.id).name == engine.get_batch(str(batch.id)).name == "from afar"


def test_a_batch_works_in_coroutines() -> None:
    queue = ActionQueue(":memory:")

    @queue.task(name="load")
    async def load(part: int) -> int:
        return part

    async def main() -> None:
        async with queue:
            async with queue.batch() as batch:
                job = batch.add(load.bind(1))
            assert await job.aresult(timeout=30) == 1
            assert (await queue.aget_batch(batch.id)).runs == {"completed": 1}
            assert len(await queue.abatches()) == 1

    asyncio.run(main())
