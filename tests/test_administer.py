"""Keeping a store and acting on many runs, from Python: with an engine here, with one elsewhere, and with none."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actionqueue import (
    ActionQueue,
    InvalidSubmission,
    NoEngine,
    NotRunning,
    RunFailed,
    StoreError,
    UnknownRun,
    UnknownTask,
)
from actionqueue.administer import PruneSummary, restore
from actionqueue.core.errors import Conflict
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.submission import RareFields
from actionqueue.store_client import StoreClient
from tests.process.support import eventually

Make = Callable[[], ActionQueue]


def make_queue(store: Path | str) -> ActionQueue:
    queue = ActionQueue(store, threads=4, drain_timeout="5s")

    @queue.task(name="add", tags=["math"])
    def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task(name="bad")
    def bad() -> None:
        from actionqueue import TerminalFailure

        raise TerminalFailure("no")

    return queue


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("actionqueue"), "disabled", True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture(params=["file", "memory"])
def queue(request: pytest.FixtureRequest, store: Path) -> Iterator[ActionQueue]:
    """A queue with its engine in this process, on each kind of store."""
    queue = make_queue(store if request.param == "file" else ":memory:")
    with queue.running():
        yield queue


@pytest.fixture
def client(store: Path) -> Iterator[StoreClient]:
    client = StoreClient(store, decide_wait=0)
    yield client
    client.close()


# --- many runs --------------------------------------------------------------------------------------------------


def test_bulk_controls_count_and_then_act(queue: ActionQueue) -> None:
    queue.handlers["add"].options(delay="1h").submit_many([(n,) for n in range(700)])

    assert queue.cancel_runs(handler="add", dry_run=True) == 700
    assert queue.cancel_runs(handler="add", limit=10) == 10
    assert queue.cancel_runs(handler="add") == 690
    assert queue.cancel_runs(handler="add") == 0
    assert queue.retry_runs(state="canceled", limit=3, dry_run=True) == 3


def test_bulk_retry_takes_the_newest_of_each_chain(queue: ActionQueue) -> None:
    queue.handlers["bad"].submit()
    eventually(lambda: queue.stats().runs["failed"] == 1, "it has failed")

    for failures in (2, 3, 4):
        assert queue.retry_runs() == 1
        eventually(lambda failures=failures: queue.stats().runs["failed"] == failures, "it has failed again")  # type: ignore[misc]


@pytest.mark.parametrize("limit", [0, -1, True, "3"])
def test_a_bulk_limit_that_is_none_is_refused(queue: ActionQueue, limit: object) -> None:
    with pytest.raises(InvalidSubmission, match="limit"):
        queue.cancel_runs(limit=limit)


def test_all_runs_page_by_page(queue: ActionQueue) -> None:
    queue.handlers["add"].options(delay="1h").submit_many([(n,) for n in range(25)])

    assert [run.id for run in queue.iter_runs(limit=10)] == [run.id for run in queue.runs(limit=1000)]


def test_the_twins_to_await(store: Path) -> None:
    async def story() -> None:
        queue = make_queue(store)
        async with queue:
            await queue.handlers["add"].options(delay="1h").asubmit(1)
            failing = await queue.handlers["bad"].asubmit()
            with pytest.raises(RunFailed):
                await failing.aresult(timeout=20)
            assert [run.handler async for run in queue.aiter_runs(limit=1)] == ["bad", "add"]
            assert await queue.acancel_runs(handler="add") == 1
            assert await queue.aretry_runs(dry_run=True) == 1
            assert (await queue.averify()).ok
            assert (await queue.abackup(store.with_name("copy.db"))).exists()
            await queue.aconfirm_clock()
            assert (await queue.aprune(before="1h")).tasks == 0
            assert len(await queue.arefusals()) == 0
            (run,) = await queue.aruns(state="canceled")
            assert await queue.afind_ids(str(run.id)) == [run.id]
            assert await queue.aget_payload(run.task_id) == b'{"a":1,"b":1}'
            assert await queue.aget_result(run.id) is None
            assert set(await queue.adeclarations()) == {"add", "bad"}

    asyncio.run(story())


# --- finding ----------------------------------------------------------------------------------------------------


def test_payloads_results_and_ids(queue: ActionQueue) -> None:
    handle = queue.handlers["add"].submit(2)
    assert handle.result(timeout=20) == 3

    assert json.loads(queue.get_payload(handle.id)) == {"a": 2, "b": 1}
    assert queue.get_result(handle.run_id) == b"3"
    assert queue.find_ids(str(handle.run_id)[-6:]) == [handle.run_id]
    assert queue.find_ids(str(handle.id)) == [handle.id]
    assert isinstance(queue.find_ids(str(handle.id))[0], TaskId)
    assert queue.find_ids("abcdef123456") == []
    with pytest.raises(UnknownTask):
        queue.get_payload(TaskId.new())
    with pytest.raises(UnknownRun):
        queue.get_result(RunId.new())
    with pytest.raises(InvalidSubmission):
        queue.find_ids("abc")


def test_runs_by_the_key_of_their_task(queue: ActionQueue) -> None:
    handle = queue.handlers["add"].options(idempotency_key="k").submit(1)
    queue.handlers["add"].submit(1)

    assert [run.id for run in queue.runs(key="k")] == [handle.run_id]
    assert len(queue.runs(key="none")) == 0


def test_stats_tell_slots_and_the_oldest_ready_run(queue: ActionQueue) -> None:
    queue.pause()
    before = datetime.now(UTC)
    for n in range(3):
        queue.handlers["add"].submit(n)

    stats = queue.stats()

    assert stats.oldest_ready_at is not None
    assert abs(stats.oldest_ready_at - before) < timedelta(seconds=20)
    assert [(each.name, each.taken, each.capacity) for each in stats.slots if each.name == "thread"] == [
        ("thread", 0, 4)
    ]
    queue.resume()
    eventually(lambda: queue.stats().oldest_ready_at is None, "nothing is ready")


def test_declarations_are_those_of_the_handlers(queue: ActionQueue) -> None:
    declared = queue.declarations()["add"]

    assert (declared.queue, declared.max_attempts, declared.tags, declared.signature) == (
        "default",
        3,
        ("math",),
        "a, b?",
    )


# --- pruning ----------------------------------------------------------------------------------------------------


def test_prune_takes_an_age_or_an_instant(queue: ActionQueue) -> None:
    for n in range(5):
        queue.handlers["add"].submit(n).result(timeout=20)
    kept = queue.handlers["add"].options(delay="1h").submit(9)

    assert queue.prune(before=timedelta(hours=1)) == PruneSummary(tasks=0, commits=0)
    assert queue.prune(before=datetime.now(UTC) + timedelta(seconds=1)) == PruneSummary(tasks=5, commits=0)
    assert queue.prune(log_before=0).commits > 0
    assert [task.id for task in queue.tasks()] == [kept.id]
    assert queue.stats().tasks == 1
    assert queue.verify().ok


def test_prune_passes_over_keys_that_live_on_and_goes_on_behind_them(
    queue: ActionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pages of 3: the first is full of keys that must stay."""
    monkeypatch.setattr("actionqueue.engine.housekeeping.PRUNE_TASKS_PER_STEP", 3)
    add = queue.handlers["add"]
    for n in range(4):
        add.options(idempotency_key=f"k{n}", idempotency_lifetime="1h").submit(n).result(timeout=20)
    for n in range(4):
        add.submit(n).result(timeout=20)

    assert queue.prune(before=0).tasks == 4
    assert queue.stats().tasks == 4
    assert RareFields().key_until is None


def test_prune_must_be_told_what(queue: ActionQueue) -> None:
    with pytest.raises(InvalidSubmission, match="give before, log_before, or both"):
        queue.prune()


def test_nothing_is_pruned_while_the_clock_is_in_doubt(queue: ActionQueue) -> None:
    session = queue.session
    assert session is not None
    housekeeping = session._housekeeping
    assert housekeeping is not None
    housekeeping._doubted = True
    queue.handlers["add"].submit(1).result(timeout=20)

    with pytest.raises(Conflict, match="the wall clock was set"):
        queue.prune(before=0)
    queue.confirm_clock()
    assert queue.prune(before=0).tasks == 1


# --- copies -----------------------------------------------------------------------------------------------------


def test_backup_and_restore(queue: ActionQueue, tmp_path: Path) -> None:
    queue.handlers["add"].submit(1).result(timeout=20)

    copy = queue.backup(tmp_path / "copy.db")
    with pytest.raises(StoreError, match="exists"):
        queue.backup(copy)
    assert restore(copy, tmp_path / "new.db") is None

    restored = make_queue(tmp_path / "new.db")
    with restored.running():
        assert restored.stats().paused == ("engine",)
        assert restored.stats().runs["completed"] == 1
        assert restored.verify().ok


def test_a_store_in_memory_that_never_ran_is_no_store() -> None:
    queue = make_queue(":memory:")

    for call in (queue.verify, lambda: queue.backup("x.db")):
        with pytest.raises(NotRunning):
            call()
    assert queue.engine_holder() is None
    assert queue.waiting_commands() == 0


# --- other processes --------------------------------------------------------------------------------------------


def test_a_client_controls_through_the_inbox(store: Path, client: StoreClient) -> None:
    queue = make_queue(store)
    with queue.running():
        queue.handlers["add"].options(delay="1h").submit_many([(n,) for n in range(60)])
        queue.handlers["add"].submit(1).result(timeout=20)
        eventually(lambda: len(client.runs()) == 61, "it is written")

        assert client.cancel_runs(state="scheduled") == 60
        assert client.pause(queue="x") is True
        client.confirm_clock()
        assert client.prune(before=timedelta(0)).tasks >= 1
        assert client.engine_holder() is not None
        assert client.verify().ok
        with pytest.raises(UnknownRun):
            client.cancel_run(RunId.new())
        (refusal,) = client.refusals()
        assert (refusal.command, refusal.code) == ("cancel_run", "unknown_run")
        assert refusal.run_id is not None
        assert len(client.refusals(cursor=refusal.id)) == len(client.refusals(cursor=str(refusal.id))) == 0
        with pytest.raises(InvalidSubmission, match="limit"):
            client.refusals(limit=0)


def test_a_client_without_an_engine_is_told_that_its_command_waits(store: Path, client: StoreClient) -> None:
    queue = make_queue(store)
    with queue.running():
        queue.handlers["add"].options(delay="1h").submit_many([(n,) for n in range(3)])

    with pytest.raises(NoEngine, match="the command waits in the inbox") as caught:
        client.pause()
    assert caught.value.facts["queued"] == 1
    with pytest.raises(NoEngine, match="they wait in the inbox") as caught:
        client.cancel_runs(handler="add")
    assert (caught.value.facts["queued"], caught.value.facts["done"]) == (3, 0)
    with pytest.raises(NoEngine):
        client.prune(before=0)
    assert client.waiting_commands() == 5

    with queue.running():
        eventually(lambda: queue.waiting_commands() == 0, "everything is decided")
        assert queue.stats().runs["canceled"] == 3
        assert queue.stats().paused == ("engine",)


def test_a_client_waits_a_while_for_an_engine_to_come(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_queue(store).running():
        pass
    monkeypatch.setattr("actionqueue.client_line.NO_ENGINE_WAIT_S", 0.2)
    patient = ActionQueue(store, role="client", decide_wait="100ms")

    with pytest.raises(NoEngine, match="no engine runs on"):
        patient.pause()
    patient.close()
