"""What users write and both type checkers must accept, with the types they must see. Checked, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from starlette.applications import Starlette

from actionqueue import (
    CONTEXT,
    ActionQueue,
    AttemptRecord,
    Call,
    Context,
    IdleSummary,
    Limit,
    Once,
    Page,
    Rate,
    Retry,
    RetryAfter,
    RunId,
    RunRecord,
    RunState,
    Snooze,
    StateChange,
    Stats,
    TaskConstraints,
    TaskHandle,
    TaskId,
    TaskMetadata,
    TaskRecord,
    TaskSpec,
    TerminalFailure,
    delays,
    exponential,
    fixed,
)


@dataclass(frozen=True)
class Size:
    """An argument, and a result."""

    width: int
    height: int


class Pool:
    """A resource."""


@asynccontextmanager
async def pool() -> AsyncGenerator[Pool]:
    """Entered once per engine loop and worker process."""
    yield Pool()


queue = ActionQueue(
    Path("jobs.db"),
    role="auto",
    concurrency=200,
    threads=4,
    processes=2,
    queues={"mail": 4},
    drain_timeout=20,
    stop_grace=timedelta(seconds=60),
    retention="30d",
    log_retention="7d",
    decide_wait=0.5,
    live_runs_max=1_000,
    imports=["app.jobs"],
    resources=pool,
)


# --- declaring: bare, called, called with options; plain and async; with and without a context ------------------------


@queue.task
def hello(name: str) -> str:
    """Bare."""
    return name


@queue.task()
def square(n: int, *, ctx: Context = CONTEXT) -> int:
    """Called, with a context that calls leave out."""
    return n * n + ctx.attempt_number


@queue.task
async def fetch(url: str, *, tries: int = 3, ctx: Context = CONTEXT) -> bytes:
    """Async: its result is what it returns, not a coroutine."""
    ctx.progress(1, 3, "connecting")
    if ctx.canceled:
        ctx.check_canceled()
    if tries == 0:
        raise TerminalFailure("no tries left")
    if tries == 1:
        raise RetryAfter("90s")
    if tries == 2:
        raise Snooze(timedelta(hours=1), "later")
    return url.encode()


@queue.task(
    name="images.resize",
    queue="images",
    executor="process",
    retry=Retry(max_attempts=5, backoff=exponential("1s", factor=3, cap="5m", jitter=False)),
    timeout="30s",
    no_retry_on=(ValueError, OSError),
    on_lost="fail",
    max_lost=0,
    priority=-1,
    expires=timedelta(days=1),
    tags=["images"],
    concurrency_key="path:{path}",
    limits=[Limit("all", capacity=4)],
    rate=Rate("disk", count=10, per="1s", burst=20),
    hold=["retry_wait", "suspended"],
    concurrency=8,
    result_bytes_max=1_000,
)
def resize(path: str, to: Size) -> Size:
    """All options."""
    return to


@queue.task(retry=Retry(2, fixed(5)), executor="async")
async def notify(user: int) -> None:
    """No result."""


def plain_call() -> None:
    """Decorated functions are called as before."""
    assert_type(hello("x"), str)
    assert_type(square(3), int)
    assert_type(resize("a.png", Size(1, 2)), Size)
    coroutine: Coroutine[Any, Any, bytes] = fetch("https://example.org", tries=1)
    coroutine.close()


# --- submitting -------------------------------------------------------------------------------------------------------


def submit() -> None:
    """Typed by the function's own signature; the context is left out."""
    assert_type(hello.submit("world"), TaskHandle[str])
    assert_type(hello.submit(name="world").result(timeout=10), str)
    assert_type(square.submit(3).result(), int)
    assert_type(fetch.submit("https://example.org", tries=1), TaskHandle[bytes])
    assert_type(resize.submit("a.png", to=Size(1, 2)).result(timeout="1m"), Size)
    notify.submit(7).result(timeout=timedelta(seconds=1))


def with_options() -> None:
    """The variant is the same task: callable, typed, and can be varied again."""
    later = fetch.options(
        delay="15m",
        queue="slow",
        priority=10,
        idempotency_key="fetch-7",
        idempotency_lifetime="1d",
        task_id=TaskId.new(),
        expires=3600,
        retry=Retry(backoff=delays("1s", 10, timedelta(minutes=1))),
        timeout=30.5,
        tags={"a", "b"},
        concurrency_key="other",
        limits=(Limit("all"),),
        rate=[Rate("disk", count=1, per=timedelta(seconds=1))],
        hold=(),
        metadata={"by": "me", "n": [1, 2]},
        description="one page",
    )
    assert_type(later.submit("https://example.org"), TaskHandle[bytes])
    assert_type(later.options(priority=1).submit("https://example.org", tries=2).result(), bytes)
    assert_type(
        hello.options(at=datetime.now(UTC), task_id="018bcfe5-6800-7000-8000-000000000001").submit("x").id, TaskId
    )
    assert_type(hello.options(priority=1)("x"), str)


def in_one_commit() -> None:
    """Calls of one result type give handles of it; rows are checked at run time."""
    assert_type(hello.bind("a"), Call[str])
    assert_type(queue.submit_many([hello.bind("a"), hello.options(priority=1).bind("b")]), list[TaskHandle[str]])
    assert_type(queue.submit_many(square.bind(n) for n in range(3)), list[TaskHandle[int]])
    assert_type(square.submit_many([(1,), {"n": 2}]), list[TaskHandle[int]])
    mixed: Sequence[TaskHandle[object]] = queue.submit_many([hello.bind("a"), square.bind(2)])
    assert_type(mixed[0].result(), object)


def low_level() -> None:
    """Opaque bytes in, bytes out."""
    spec = TaskSpec(
        handler="hello",
        payload=b'{"name":"world"}',
        policy=Once(delay_us=1_000_000),
        constraints=TaskConstraints(max_attempts=3, queue="mail"),
        metadata=TaskMetadata(tags=("a",), priority=1),
        id=TaskId.new(),
        idempotency_key="k",
    )
    assert_type(queue.submit(spec).result(), bytes | None)


async def from_async_code() -> None:
    """Every call that waits has a twin to await."""
    handle = await fetch.asubmit("https://example.org")
    assert_type(handle, TaskHandle[bytes])
    assert_type(await handle.aresult(timeout=10), bytes)
    assert_type(await handle.astate(), str | None)
    assert_type(await handle.aruns(), list[RunRecord])
    assert_type(await handle.acancel(), int)
    assert_type(await hello.asubmit_many([("a",)]), list[TaskHandle[str]])
    assert_type(await queue.asubmit_many([hello.bind("a")]), list[TaskHandle[str]])
    assert_type(await queue.asubmit(TaskSpec(handler="hello")), TaskHandle[bytes | None])
    assert_type(await queue.aruns(state=RunState.FAILED), Page[RunRecord])
    assert_type(await queue.acancel_runs(handler="hello"), int)
    async for run in queue.aiter_runs(queue="mail"):
        assert_type(run, RunRecord)
    async with queue as opened:
        assert_type(opened, ActionQueue)


# --- holding, reading, controlling ------------------------------------------------------------------------------------


def hold(handle: TaskHandle[str]) -> TaskHandle[object]:
    """A handle of a narrower result is one of a wider."""
    assert_type(handle.id, TaskId)
    assert_type(handle.run_id, RunId)
    assert_type(handle.created, bool | None)
    assert_type(handle.state(), str | None)
    assert_type(handle.runs(), list[RunRecord])
    assert_type(handle.cancel(), int)
    return handle


def read() -> None:
    """Filters are typed, and records have their fields."""
    page = queue.runs(state=["failed", RunState.CANCELED], since=datetime.now(UTC), limit=10, cursor=None)
    assert_type(page, Page[RunRecord])
    assert_type(page.next_cursor, str | None)
    assert_type(page[0].attempts, tuple[AttemptRecord, ...])
    assert_type([run.state for run in page], list[str])
    assert_type(queue.tasks(handler="hello"), Page[TaskRecord])
    assert_type(queue.get_run(page[0].id).finished_at, datetime | None)
    assert_type(queue.get_task("018bcfe5-6800-7000-8000-000000000001").tags, tuple[str, ...])
    assert_type(queue.history(page[0].id), list[StateChange])
    assert_type(queue.stats(), Stats)
    assert_type(queue.stats().runs["failed"], int)
    for run in queue.iter_runs(tag="billing", error="ValueError"):
        assert_type(run, RunRecord)


def control(id: RunId) -> None:
    """Ids in any form."""
    assert_type(queue.cancel_run(id, "kill"), bool)
    assert_type(queue.cancel_task(str(id), how="abandon"), int)
    assert_type(queue.cancel_runs(dry_run=True, handler="hello"), int)
    assert_type(queue.retry_run(id), RunId)
    assert_type(queue.retry_runs(state="canceled", limit=10), int)
    assert_type(queue.pause(queue="mail"), bool)
    assert_type(queue.resume(handler="hello"), bool)
    assert_type(queue.pause(task=TaskId.new()), bool)
    assert_type(queue.backup("copy.db"), Path)
    assert_type(queue.prune(before="30d", log_before=datetime.now(UTC)).tasks, int)
    assert_type(queue.verify().ok, bool)
    queue.reschedule(id, datetime.now(UTC))
    queue.reprioritize(id, 5)
    queue.confirm_clock()


# --- running ----------------------------------------------------------------------------------------------------------


@queue.on_failure
def tell(run: RunRecord) -> None:
    """A hook keeps its own type."""


def run() -> None:
    """Around a block, in a web application, for ever, until idle."""
    Starlette(lifespan=queue.lifespan)
    keeps: Callable[[RunRecord], None] = tell
    keeps(queue.get_run(RunId.new()))
    running: AbstractContextManager[ActionQueue] = queue.running()
    with running as opened:
        assert_type(opened, ActionQueue)
    assert_type(queue.run_until_idle(timeout="1m"), IdleSummary)
    queue.run_forever(wait_for_store=True)
    queue.run_forever(wait_for_store="5m")
    queue.close()
