"""The inbox between processes: each command is decided once, whatever happens between its row and its deletion."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, CommitUnknown, InvalidSubmission, Retry, RunFailed
from actionqueue.client_line import CATCH_UP_S_MAX, ClientLine
from actionqueue.engine.inbox import InboxReader
from actionqueue.store.inbox import Inbox
from actionqueue.store.port import Batch
from actionqueue.store.sqlite import SQLiteStore
from tests.process.programs.jobs import make_queue
from tests.process.support import PATIENCE_S, eventually, inspect, leftovers


@pytest.fixture
def client(store: Path) -> Iterator[ActionQueue]:
    """Another process's queue, as far as the store can tell."""
    queue = make_queue(store, role="client", decide_wait=PATIENCE_S)
    yield queue
    queue.close()


def waiting_in(inbox: Inbox) -> int:
    return len(inbox.rows(100_000))


def test_rows_that_were_decided_and_not_deleted_are_not_decided_again(
    store: Path, client: ActionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between a commit and the deletions: here all of them are missing, of more rows than one reading takes."""
    count = 1_300
    calls: Counter[int] = Counter()
    queue = ActionQueue(store)

    @queue.task(name="echo")
    async def echo(value: int) -> int:
        calls[value] += 1
        return value

    jobs = [client.handlers["echo"].submit(n) for n in range(count)]
    with monkeypatch.context() as patched, queue.running():
        patched.setattr(InboxReader, "_delete_done", lambda self: None)
        for job in jobs:
            job.result(timeout=PATIENCE_S)
    inbox = Inbox(store)
    assert waiting_in(inbox) == count
    with queue.running():
        eventually(lambda: waiting_in(inbox) == 0, "the inbox is empty")
        queue.run_until_idle(timeout=PATIENCE_S)
        stats = queue.stats()
    inbox.close()
    assert (stats.tasks, stats.runs["completed"]) == (count, count)
    assert set(calls.values()) == {1}
    assert len(calls) == count


def test_a_command_whose_commit_failed_is_not_lost(
    store: Path, client: ActionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine fences itself and lets the store go; the row stays for the next one, here in the same process."""
    commit = SQLiteStore.commit
    failed = threading.Event()

    def failing(self: SQLiteStore, batch: Batch) -> None:
        if batch.replies and not failed.is_set():
            failed.set()
            raise CommitUnknown("as if a sync had failed")
        commit(self, batch)

    queue = make_queue(store)
    with queue.running():
        assert queue.session is not None
        first = queue.session.engine
        monkeypatch.setattr(SQLiteStore, "commit", failing)
        job = client.handlers["echo"].submit(5)
        assert failed.wait(PATIENCE_S)
        assert job.result(timeout=PATIENCE_S) == 5
        assert queue.session.engine is not first
        assert queue.handlers["echo"].submit(6).result(timeout=PATIENCE_S) == 6
        assert inspect(queue, leftovers) == []


def test_an_unreadable_row_gets_a_refusal_and_stops_nothing(store: Path, client: ActionQueue) -> None:
    """Neither garbage nor a flipped byte in the inbox holds up what is behind it."""
    inbox = Inbox(store)
    inbox.put(b"garbage " * 2, b"\xc1not msgpack", time.time_ns() // 1000)
    echo = client.handlers["echo"]
    damaged = echo.submit(1)
    (_, row) = inbox.rows(10)
    body = bytes([row[4][0] ^ 1]) + row[4][1:]
    inbox._connection.execute("UPDATE inbox SET body = ? WHERE id = ?", (body, row[0]))
    good = echo.submit(2)
    queue = make_queue(store)
    with queue.running():
        assert good.result(timeout=PATIENCE_S) == 2
        with pytest.raises(InvalidSubmission, match="bytes changed"):
            damaged.result(timeout=PATIENCE_S)
        with pytest.raises(InvalidSubmission):
            damaged.state()
        eventually(lambda: waiting_in(inbox) == 0, "the inbox is empty")
    inbox.close()


def test_submitting_first_and_running_then_works_in_one_process(store: Path) -> None:
    """What was submitted through the inbox is found by the engine's own line; idle means that the inbox is read too."""
    queue = make_queue(store)
    echo = queue.handlers["echo"]
    jobs: list[Any] = [echo.submit(n) for n in range(20)]
    keyed = echo.options(idempotency_key="k")
    assert jobs[0].state() is None
    assert jobs[0].runs() == []
    with queue.running():
        assert [job.result(timeout=PATIENCE_S) for job in jobs] == list(range(20))
        assert jobs[0].state() == "completed"
        first = keyed.submit(1)
    again = keyed.submit(1)
    assert again.created is None
    later = echo.submit(21)
    queue.run_until_idle(timeout=PATIENCE_S)
    assert later.state() == "completed"
    assert again.result(timeout=PATIENCE_S) == 1
    assert again.id == first.id
    assert again.created is False
    queue.close()


def test_controls_work_from_a_process_that_is_not_the_engine(store: Path, client: ActionQueue) -> None:
    """S5-22: they go through the inbox too, and their replies come back."""
    echo = client.handlers["echo"]
    job = echo.options(delay="1h").submit(1)
    queue = make_queue(store)
    with queue.running():
        assert client.pause(queue="mail") is True
        assert client.pause(queue="mail") is False
        assert client.resume(queue="mail") is True
        assert job.cancel() == 1
        assert job.state() == "canceled"
        again = client.retry_run(job.run_id)
        assert len(job.runs()) == 2
        assert job.result(timeout=PATIENCE_S) == 1
        assert client.get_run(again).retry_of == job.run_id


class Second:
    """Fails when it is first called; the second call waits until it is let go."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls = 0

    def queue(self, store: Path, **options: Any) -> ActionQueue:
        queue = ActionQueue(store, **options)

        @queue.task(name="second", retry=Retry(max_attempts=1))
        def second() -> str:
            self.calls += 1
            if self.calls == 1:
                raise ValueError("the first time")
            assert self.opened.wait(PATIENCE_S)
            return "the second time"

        return queue


@pytest.mark.parametrize("who", ["a client", "the engine that was a client"])
def test_whoever_had_a_run_retried_never_gets_its_old_end(store: Path, who: str) -> None:
    """The tables lag behind the engine; whoever was told of the new run waits for them."""
    second = Second()
    queue = second.queue(store)
    caller = queue if who != "a client" else second.queue(store, role="client", decide_wait=PATIENCE_S)
    job = caller.handlers["second"].submit()
    with queue.running():
        try:
            with pytest.raises(RunFailed):
                job.result(timeout=PATIENCE_S)
            again = caller.retry_run(job.run_id)
            with pytest.raises(TimeoutError):
                job.result(timeout=0.02)
            assert caller.get_run(again).retry_of == job.run_id
            assert job.state() in ("ready", "running")
            assert len(job.runs()) == 2
        finally:
            second.opened.set()
        assert job.result(timeout=PATIENCE_S) == "the second time"
        caller.close()


def test_reads_wait_only_so_long_for_what_a_reply_spoke_of(store: Path, client: ActionQueue) -> None:
    """A store that was put in the place of the one that the reply came from never comes so far."""
    with make_queue(store).running():
        job = client.handlers["echo"].options(delay="1h").submit(1)
        assert job.cancel() == 1
        line = client.line()
        assert isinstance(line, ClientLine)
        seq, until_s = line._decided
        assert 0 < until_s - time.monotonic() <= CATCH_UP_S_MAX
        line._decided = (seq + 1_000_000, time.monotonic() + 0.02)
        assert job.state() == "canceled"
        assert time.monotonic() >= line._decided[1]


@pytest.mark.parametrize("how", ["cancel", "acancel"])
def test_what_the_engine_was_sent_as_a_client_is_decided_before_what_is_said_to_it_now(
    store: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A take-over between a submission and its cancel: the inbox is read before the cancel is decided, however late."""
    queue = make_queue(store)
    echo = queue.handlers["echo"].options(delay="1h")
    jobs: list[Any] = [echo.submit(1), echo.options(idempotency_key="k").submit(2)]
    read = InboxReader._read
    opened = threading.Event()

    def late(self: InboxReader) -> bool:
        return opened.is_set() and read(self)

    monkeypatch.setattr(InboxReader, "_read", late)

    async def cancel_all() -> list[int]:
        return await asyncio.gather(*(job.acancel() for job in jobs), let_it_read())

    async def let_it_read() -> int:
        opened.set()
        return 1

    with queue.running(), ThreadPoolExecutor() as threads:
        if how == "acancel":
            assert asyncio.run(cancel_all()) == [1, 1, 1]
        else:
            canceled = [threads.submit(job.cancel) for job in jobs]
            reader = queue.session._inbox_reader  # type: ignore[union-attr]
            eventually(lambda: any(each.done() for each in canceled) or len(reader._asked) == 2, "they wait")  # type: ignore[union-attr]
            opened.set()
            assert [each.result(PATIENCE_S) for each in canceled] == [1, 1]
        assert [job.state() for job in jobs] == ["canceled"] * 2


def test_an_inbox_that_is_deleted_under_a_running_engine_is_made_anew(store: Path, client: ActionQueue) -> None:
    """What was in it is gone with it; what is sent afterwards, by whomever, is decided by this engine."""
    with make_queue(store).running():
        assert client.handlers["echo"].submit(1).result(timeout=PATIENCE_S) == 1
        for path in store.parent.glob(f"{store.name}.inbox*"):
            path.unlink()
        assert client.handlers["echo"].submit(2).result(timeout=PATIENCE_S) == 2
        other = make_queue(store, role="client")
        assert other.handlers["echo"].submit(3).result(timeout=PATIENCE_S) == 3
        other.close()
