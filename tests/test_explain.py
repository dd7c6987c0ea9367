"""Explain and limits end to end: in the engine's process, from another one, and with no engine at all."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actionqueue import (
    ActionQueue,
    Cron,
    Explanation,
    InvalidSubmission,
    Rate,
    Repeat,
    Retry,
    RunFailed,
    RunId,
    TaskSpec,
    UnknownRun,
)  # fmt: skip
from actionqueue.reasons import (
    AskRetry,
    Ended,
    HandlerMissing,
    InProgress,
    ItsTurn,
    NoEngineRuns,
    NoFreeSlot,
    NotDecided,
    NotYetDue,
    OfSchedule,
    Paused,
    RunsEnd,
    StartEngine,
)
from actionqueue.store.inbox import count_waiting
from actionqueue.store_client import StoreClient
from tests.process.support import Programs, eventually

DRAIN = "5s"


class Shop:
    """A queue with a handler that waits to be let go, in a queue of one slot."""

    def __init__(self, store: Path | str) -> None:
        self.queue = ActionQueue(store, queues={"mail": 1}, drain_timeout=DRAIN)
        self.entered, self.opened = threading.Event(), threading.Event()

        @self.queue.task(name="send", queue="mail")
        def send(to: str) -> str:
            self.entered.set()
            assert self.opened.wait(30)
            return to

        @self.queue.task(name="count")
        async def count(n: int = 0) -> int:
            return n

        @self.queue.task(name="fails", retry=Retry(max_attempts=1))
        async def fails() -> None:
            raise ValueError("no")

        self.send, self.count, self.fails = send, count, fails


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def shop(path: Path) -> Iterator[Shop]:
    shop = Shop(path)
    yield shop
    shop.opened.set()
    shop.queue.close()


@pytest.fixture
def other(path: Path) -> Iterator[StoreClient]:
    """The store, as another process has it."""
    client = StoreClient(path)
    yield client
    client.close()


def test_the_engines_process_and_another_one_give_the_same_answer(shop: Shop, path: Path, other: StoreClient) -> None:
    with shop.queue.running():
        first, second = shop.send.submit("ann"), shop.send.submit("bob")
        assert shop.entered.wait(30)

        here, there = shop.queue.explain(second.run_id), other.explain(second.run_id)

        assert here.reason == there.reason == NoFreeSlot("queue", "mail", 1, 1, (first.run_id,))
        assert here.release == there.release == RunsEnd((first.run_id,), 1)
        assert [each.run_id for each in there.because] == [first.run_id]
        assert isinstance(there.because[0].reason, InProgress)
        assert second.explain().reason == shop.queue.explain(str(second.id)).reason == here.reason
        shop.opened.set()
        assert second.result(timeout=30) == "bob"
        assert second.explain().reason == other.explain(second.id).reason
        assert isinstance(second.explain().reason, Ended)
        assert eventually(lambda: count_waiting(path) == 0, "the questions leave the inbox")


async def _aexplained(queue: ActionQueue, id: RunId) -> Explanation:
    return await queue.aexplain(id)


def test_the_twin_to_await_gives_the_same(path: Path) -> None:
    queue = ActionQueue(path)

    @queue.task
    async def later() -> None: ...

    async def program() -> None:
        async with queue:
            job = await later.options(delay="1h").asubmit()
            found = await job.aexplain()
            assert isinstance(found.reason, NotYetDue)
            assert (await _aexplained(queue, job.run_id)).reason == found.reason
            assert {each.kind for each in await queue.alimits()} == {"executor"}

    asyncio.run(program())


def test_how_a_run_ended_is_read_from_the_store_with_its_error_and_its_retry(shop: Shop) -> None:
    with shop.queue.running():
        job = shop.fails.submit()
        with pytest.raises(RunFailed):
            job.result(timeout=30)

        over = job.explain()
        assert isinstance(over.reason, Ended)
        assert (over.reason.state, over.reason.error, over.release) == ("failed", "ValueError: no", AskRetry())
        new = shop.queue.retry_run(job.run_id)

        retried = shop.queue.explain(job.run_id)
        assert isinstance(retried.reason, Ended)
        assert (retried.reason.retried_as, retried.release) == (new, None)
        assert job.explain().run_id == new, "a task is explained by its newest run"


def test_without_an_engine_that_comes_first_and_the_rest_is_made_of_the_store(
    shop: Shop, path: Path, other: StoreClient
) -> None:
    with shop.queue.running():
        shop.queue.pause(handler="count")
        job = shop.count.submit(1)
    shop.queue.close()

    found = other.explain(job.id)

    assert isinstance(found.reason, NoEngineRuns)
    assert (found.reason.crashed, found.release) == (False, StartEngine())
    assert isinstance(found.because[0].reason, Paused)
    assert str(found).splitlines()[2:4] == [
        "  with an engine, as the last one was:",
        f"    run {job.run_id.hex[-8:]} of count is ready: {found.because[0].headline}",
    ]
    assert [(each.name, each.taken) for each in other.limits(kind="queue")] == [("mail", 0)]
    assert count_waiting(path) == 0, "nothing was sent to an engine that is not there"


def test_a_submission_that_no_engine_has_read_is_in_the_inbox(shop: Shop, path: Path, other: StoreClient) -> None:
    client = ActionQueue(path, role="client", decide_wait="0s")

    @client.task(name="count")
    async def count(n: int = 0) -> int: ...

    job = count.submit(3)

    for found in (job.explain(), other.explain(job.id), other.explain(job.run_id)):
        assert isinstance(found.reason, NotDecided)
        assert (found.state, found.run_id, found.release) == (None, job.run_id, StartEngine())
    with shop.queue.running():
        job.result(timeout=30)
        assert isinstance(job.explain().reason, Ended)
    client.close()


def test_a_submission_whose_key_names_another_task_is_explained_as_that(shop: Shop, path: Path) -> None:
    client = ActionQueue(path, role="client", decide_wait="0s")

    @client.task(name="count")
    async def count(n: int = 0) -> int: ...

    with shop.queue.running():
        first = shop.count.options(delay="1h", idempotency_key="k").submit(1)
        second = count.options(delay="1h", idempotency_key="k").submit(1)

        assert second.explain().run_id == first.run_id
    client.close()


def test_a_schedule_is_explained_by_its_next_occurrence(shop: Shop) -> None:
    with shop.queue.running():
        job = shop.queue.schedule("nightly", shop.count.bind(1), Cron("0 3 * * *"))
        plain = shop.count.options(schedule=Repeat(3, every="1h")).submit(2)

        found = job.explain()

        assert isinstance(found.reason, NotYetDue)
        (note,) = found.notes
        assert isinstance(note, OfSchedule)
        assert (note.name, note.rule, note.overlap) == ("nightly", "0 3 * * * UTC", "skip")
        assert isinstance(plain.explain().reason, NotYetDue)


def test_an_unknown_id_is_refused_with_and_without_an_engine(shop: Shop, other: StoreClient) -> None:
    unknown = RunId.new()
    with pytest.raises(UnknownRun):
        other.explain(unknown)
    with shop.queue.running():
        for ask in (shop.queue.explain, other.explain):
            with pytest.raises(UnknownRun) as refused:
                ask(unknown)
            assert refused.value.facts["run_id"] == unknown
        assert not shop.queue.refusals(), "a question is not a command that was refused"
        with pytest.raises(InvalidSubmission):
            shop.queue.explain("no id")
        with pytest.raises(InvalidSubmission):
            shop.queue.limits(kind="door")
        with pytest.raises(InvalidSubmission):
            shop.queue.limits(limit=0)


def test_a_missing_handler_is_released_by_registering_it(shop: Shop) -> None:
    with shop.queue.running():
        job = shop.queue.submit(TaskSpec(handler="later", payload=b"{}"))
        assert job.explain().reason == HandlerMissing("later")

        @shop.queue.task(name="later")
        async def later() -> None: ...

        assert isinstance(eventually(lambda: _ended(job.explain()), "it runs"), Ended)


def _ended(found: Explanation) -> Ended | None:
    return found.reason if isinstance(found.reason, Ended) else None


def test_in_memory_it_works_the_same() -> None:
    shop = Shop(":memory:")
    with shop.queue.running():
        job = shop.count.options(delay="1h").submit()
        assert isinstance(job.explain().reason, NotYetDue)
        done = shop.count.submit(1)
        done.result(timeout=30)
        assert isinstance(done.explain().reason, Ended)
        with pytest.raises(UnknownRun):
            shop.queue.explain(RunId.new())


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.dispose()


@pytest.mark.slow
def test_an_engine_of_another_process_is_asked(programs: Programs, path: Path, other: StoreClient) -> None:
    """And a killed one is said to have been heard of last."""
    source = """
import sys, time
from actionqueue import ActionQueue
queue = ActionQueue(sys.argv[1], queues={"mail": 1})
@queue.task(queue="mail")
def send(n: int) -> None:
    time.sleep(600)
with queue.running():
    first, second = send.submit(1), send.submit(2)
    while first.state() != "running":
        time.sleep(0.01)
    print("ids", first.run_id, second.run_id, flush=True)
    time.sleep(600)
"""
    program = path.parent / "shop.py"
    program.write_text(source)
    running = programs.run([sys.executable, str(program), str(path)])
    first, second = (RunId(text) for text in running.line("ids").split())
    found = other.explain(second)
    assert found.reason == NoFreeSlot("queue", "mail", 1, 1, (first,))
    assert other.limits(kind="queue")[0].waiting == 1

    running.kill()
    crashed = other.explain(second)
    assert isinstance(crashed.reason, NoEngineRuns)
    assert (crashed.reason.crashed, crashed.reason.pid) == (True, running.pid)
    assert crashed.because[0].reason == found.reason, "as the last one left it"


def test_questions_are_answered_while_nothing_may_start(shop: Shop) -> None:
    with shop.queue.running():
        shop.queue.pause()
        job = shop.count.submit(1)
        reason = job.explain().reason
        assert isinstance(reason, Paused)
        assert (reason.scope, reason.by) == ("engine", shop.queue.asker())
        assert job.explain().release != ItsTurn()
        shop.queue.resume()
        assert job.result(timeout=30) == 1


def test_without_an_engine_what_is_ready_is_counted_where_it_will_wait(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    queue = ActionQueue(path)

    @queue.task(rate=Rate("mail", count=1, per="1d"))
    def send(n: int) -> int:
        return n

    with queue.running():
        jobs = send.submit_many([(1,), (2,), (3,)])
        assert jobs[0].result(timeout=30) == 1

    (rate,) = ActionQueue(path, role="client").limits(kind="rate")

    assert (rate.name, rate.tokens, rate.waiting) == ("mail", 0, 2)
