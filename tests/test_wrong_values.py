"""Values of the wrong kind at the public surface: each is one typed error, before anything is written.

What gets past it would be recorded, and could not be read again: the store would not open any more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    ActionQueue,
    ActionQueueError,
    InvalidArguments,
    InvalidInstant,
    InvalidSubmission,
    Once,
    Repeat,
    Retry,
    RunId,
    TaskConstraints,
    TaskMetadata,
    TaskSpec,
    exponential,
)
from actionqueue.verify import verify

LATER = datetime(2030, 1, 1, tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - that it names no instant is the point

Wrong = Callable[[Any], object]


def work(n: int = 1) -> int:
    """What the tasks here do."""
    return n


def needs_one(n: int) -> int:
    """What nobody can call without arguments."""
    return n


def spec(**fields: Any) -> TaskSpec:
    return TaskSpec(handler="work", **fields)


DECLARING: dict[str, Wrong] = {
    "name": lambda queue: queue.task(name=3)(work),
    "name, empty": lambda queue: queue.task(name="")(work),
    "name, long": lambda queue: queue.task(name="x" * 201)(work),
    "queue": lambda queue: queue.task(queue=3)(work),
    "executor": lambda queue: queue.task(executor="fibre")(work),
    "retry": lambda queue: queue.task(retry=3)(work),
    "timeout": lambda queue: queue.task(timeout="soon")(work),
    "timeout, none at all": lambda queue: queue.task(timeout=0)(work),
    "no_retry_on, a class": lambda queue: queue.task(no_retry_on=ValueError)(work),
    "no_retry_on, no classes": lambda queue: queue.task(no_retry_on=("ValueError",))(work),
    "on_lost": lambda queue: queue.task(on_lost="ignore")(work),
    "max_lost": lambda queue: queue.task(max_lost="many")(work),
    "max_lost, high": lambda queue: queue.task(max_lost=1001)(work),
    "priority": lambda queue: queue.task(priority=2**31)(work),
    "tags, a text": lambda queue: queue.task(tags="billing")(work),
    "tags, many": lambda queue: queue.task(tags=[str(n) for n in range(21)])(work),
    "result_bytes_max": lambda queue: queue.task(result_bytes_max=-1)(work),
    "schedule": lambda queue: queue.task(schedule="hourly")(work),
    "schedule, required arguments": lambda queue: queue.task(schedule=Repeat(3, "1s"))(needs_one),
    "function, none": lambda queue: queue.task(3),
    "function, a class": lambda queue: queue.task(int),
    "function, a partial": lambda queue: queue.task(functools.partial(work, 1)),
    "function, without a signature": lambda queue: queue.task(dict.fromkeys),
    "max_attempts": lambda _: Retry(max_attempts="3"),  # type: ignore[arg-type]
    "max_attempts, a float": lambda _: Retry(max_attempts=2.5),  # type: ignore[arg-type]
    "backoff": lambda _: Retry(backoff="5s"),  # type: ignore[arg-type]
    "factor": lambda _: exponential("1s", factor="two"),  # type: ignore[arg-type]
}

CONSTRUCTING: dict[str, dict[str, Any]] = {
    "store": {"store": 3},
    "store, PostgreSQL": {"store": "postgresql://localhost/app"},
    "role": {"role": "boss"},
    "threads": {"threads": 0},
    "concurrency": {"concurrency": "100"},
    "queues, a list": {"queues": ["mail"]},
    "queues, a number for a name": {"queues": {3: 4}},
    "queues, a text for slots": {"queues": {"mail": "4"}},
    "drain_timeout": {"drain_timeout": "soon"},
    "imports, a text": {"imports": "app.jobs"},
}

SUBMITTING: dict[str, Wrong] = {
    "arguments": lambda queue: queue.handlers["work"].submit("one"),
    "at, naive": lambda queue: queue.handlers["work"].options(at=NAIVE),
    "at, a text": lambda queue: queue.handlers["work"].options(at="tomorrow"),
    "at and delay": lambda queue: queue.handlers["work"].options(at=LATER, delay="1s"),
    "at, then delay": lambda queue: queue.handlers["work"].options(at=LATER).options(delay="1s"),
    "priority": lambda queue: queue.handlers["work"].options(priority="high"),
    "retry": lambda queue: queue.handlers["work"].options(retry=3),
    "tags": lambda queue: queue.handlers["work"].options(tags=[3]),
    "tags, a number": lambda queue: queue.handlers["work"].options(tags=3),
    "metadata, a list": lambda queue: queue.handlers["work"].options(metadata=["by", "me"]),
    "metadata, no JSON": lambda queue: queue.handlers["work"].options(metadata={"at": object()}),
    "description": lambda queue: queue.handlers["work"].options(description=3),
    "lifetime without key": lambda queue: queue.handlers["work"].options(idempotency_lifetime="1d"),
    "key, empty": lambda queue: queue.handlers["work"].options(idempotency_key=""),
    "task_id": lambda queue: queue.handlers["work"].options(task_id="mine"),
    "schedule": lambda queue: queue.handlers["work"].options(schedule="hourly"),
    "schedule and delay": lambda queue: queue.handlers["work"].options(schedule=Repeat(3, "1s"), delay="1s"),
    "schedule, no call": lambda queue: queue.schedule("s", queue.handlers["work"], Repeat(3, "1s")),
    "schedule, no name": lambda queue: queue.schedule("", queue.handlers["work"].bind(1), Repeat(3, "1s")),
    "schedule, a key": lambda queue: queue.schedule(
        "s", queue.handlers["work"].options(idempotency_key="k").bind(1), Repeat(3, "1s")
    ),
    "trigger": lambda queue: queue.trigger(""),
    "backfill, naive": lambda queue: queue.backfill("s", NAIVE, NAIVE),
    "retire": lambda queue: queue.retire(3),
    "calls, none": lambda queue: queue.submit_many([3]),
    "calls, a task": lambda queue: queue.submit_many([queue.handlers["work"]]),
    "rows, none": lambda queue: queue.handlers["work"].submit_many([3]),
    "rows, a text": lambda queue: queue.handlers["work"].submit_many(["1"]),
    "spec, none": lambda queue: queue.submit("work"),
    "spec, payload": lambda queue: queue.submit(spec(payload="{}")),
    "spec, handler": lambda queue: queue.submit(TaskSpec(handler=3)),  # type: ignore[arg-type]
    "spec, attempts": lambda queue: queue.submit(spec(constraints=TaskConstraints(max_attempts=0))),
    "spec, backoff": lambda queue: queue.submit(spec(constraints=TaskConstraints(backoff="5s"))),  # type: ignore[arg-type]
    "spec, extra": lambda queue: queue.submit(spec(metadata=TaskMetadata(extra=["a"]))),  # type: ignore[arg-type]
    "spec, description": lambda queue: queue.submit(spec(metadata=TaskMetadata(description=3))),  # type: ignore[arg-type]
    "spec, content type": lambda queue: queue.submit(spec(content_type=3)),
    "spec, policy": lambda queue: queue.submit(spec(policy=Once(at_us=1, delay_us=1))),
    "spec, no policy": lambda queue: queue.submit(spec(policy="hourly")),
}

OPERATING: dict[str, Wrong] = {
    "state": lambda queue: queue.runs(state="done"),
    "state, a number": lambda queue: queue.runs(state=3),
    "filter": lambda queue: queue.runs(status="failed"),
    "filter of tasks": lambda queue: queue.tasks(tag="billing"),
    "limit": lambda queue: queue.runs(limit=0),
    "text without since": lambda queue: queue.runs(text="timeout"),
    "since, naive": lambda queue: queue.runs(since=NAIVE),
    "id": lambda queue: queue.get_run(3),
    "id of nothing": lambda queue: queue.get_run(RunId.new()),
    "how": lambda queue: queue.cancel_run(RunId.new(), how="hard"),
    "pause, two scopes": lambda queue: queue.pause(queue="mail", handler="work"),
    "pause, a number": lambda queue: queue.pause(queue=3),
    "pause, empty": lambda queue: queue.pause(handler=""),
    "resume, a number": lambda queue: queue.resume(handler=3),
    "reschedule": lambda queue: queue.reschedule(RunId.new(), "15m"),
    "priority": lambda queue: queue.reprioritize(RunId.new(), "high"),
    "priority, large": lambda queue: queue.reprioritize(RunId.new(), 2**40),
    "prune, nothing": lambda queue: queue.prune(),
    "prune": lambda queue: queue.prune(before="soon"),
    "ending of an id": lambda queue: queue.find_ids("zz"),
    "timeout": lambda queue: queue.handlers["work"].submit(1).result(timeout="soon"),
}


@pytest.mark.parametrize("options", CONSTRUCTING.values(), ids=CONSTRUCTING.keys())
def test_a_queue_cannot_be_constructed_with_it(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSubmission) as caught:
        ActionQueue(**{"store": ":memory:", **options})
    assert [name.partition("[")[0] for name in caught.value.problems] == list(options)


@pytest.mark.parametrize("wrong", DECLARING.values(), ids=DECLARING.keys())
def test_a_task_cannot_be_declared_with_it(wrong: Wrong) -> None:
    queue = ActionQueue(":memory:")
    with pytest.raises(InvalidSubmission) as caught:
        wrong(queue)
    assert caught.value.problems
    assert not queue.handlers


def test_an_option_that_does_not_exist_is_an_error_of_the_call() -> None:
    with pytest.raises(TypeError, match="retries"):
        ActionQueue(":memory:").task(retries=3)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong",
    [*SUBMITTING.values(), *OPERATING.values()],
    ids=[*SUBMITTING, *(f"operating: {name}" for name in OPERATING)],
)
def test_it_is_refused_by_the_engine_s_process_and_the_engine_goes_on(wrong: Wrong, tmp_path: Path) -> None:
    queue = ActionQueue(tmp_path / "jobs.db")
    task = queue.task(work)
    with queue.running():
        with pytest.raises(ActionQueueError):
            wrong(queue)
        assert task.submit(2).result(timeout=10) == 2
        queue.pause(queue="mail")
    with queue.running():
        assert queue.stats().paused == ("queue mail",)
        assert task.submit(3).result(timeout=10) == 3
    assert verify(tmp_path / "jobs.db").ok


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (SUBMITTING["arguments"], InvalidArguments),
        (SUBMITTING["rows, none"], InvalidArguments),
        (SUBMITTING["at, naive"], InvalidInstant),
        (SUBMITTING["schedule"], InvalidSubmission),
        (SUBMITTING["metadata, a list"], InvalidSubmission),
    ],
)
def test_the_kind_of_error_says_what_is_wrong(wrong: Wrong, kind: type[InvalidSubmission]) -> None:
    queue = ActionQueue(":memory:")
    queue.task(work)
    with pytest.raises(kind) as caught:
        wrong(queue)
    assert caught.value.problems
