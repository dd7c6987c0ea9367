"""Limits as users meet them: in decorators and options, by name and from the command line, and what is refused."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from actionqueue import (
    ActionQueue,
    AlreadyTerminal,
    InvalidSubmission,
    Limit,
    Rate,
    Retry,
    TaskConstraints,
    TaskId,
    TaskMetadata,
    TaskSpec,
    UnknownTask,
    fixed,
)
from actionqueue.by_name import submission_by_name
from actionqueue.cli import main
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.spec import NO_OPTIONS, TaskOptions
from actionqueue.task import Call
from tests.process.support import eventually


class Colour(enum.Enum):
    """An argument that is stored as its value."""

    RED = "red"


def queue_here() -> ActionQueue:
    return ActionQueue(":memory:")


def needs_of(call: Call[Any]) -> TaskOptions:
    """What a call is submitted with."""
    return call.submission().options or NO_OPTIONS


# --- templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ("ann", str, "ann"),
        (7, int, "7"),
        (True, bool, "true"),
        (2.5, float, "2.5"),
        (UUID(int=1), UUID, "00000000-0000-0000-0000-000000000001"),
        (date(2026, 11, 24), date, "2026-11-24"),
        (Colour.RED, Colour, "red"),
        ("{x}", str, "{x}"),
    ],
    ids=repr,
)
def test_an_argument_is_shown_in_a_key_as_it_is_stored(value: object, kind: type, text: str) -> None:
    queue = queue_here()

    def act(a: Any) -> None: ...

    act.__annotations__["a"] = kind
    task = queue.task(name="act", concurrency_key="k:{a}", rate=Rate("r:{a}", count=1, per="1s"))(act)

    needs = needs_of(task.bind(value))

    assert needs.limits == (KeyNeed(f"k:{text}", 1),)
    assert needs.rates == (RateNeed(f"r:{text}", 1, 1_000_000, 1),)


def test_braces_are_written_twice_and_defaults_are_bound_first() -> None:
    queue = queue_here()

    @queue.task(limits=[Limit("{{{a}}}:{b}", capacity=3), Limit("fixed")])
    def act(a: int, b: str = "x") -> None: ...

    assert needs_of(act.bind(1)).limits == (KeyNeed("{1}:x", 3), KeyNeed("fixed", 1))
    assert needs_of(act.bind(b="y", a=2)).limits == (KeyNeed("{2}:y", 3), KeyNeed("fixed", 1))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"concurrency_key": "{who}"}, "concurrency_key"),
        ({"concurrency_key": ""}, "concurrency_key"),
        ({"concurrency_key": 3}, "concurrency_key"),
        ({"concurrency_key": "{a"}, "concurrency_key"),
        ({"concurrency_key": "{a.b}"}, "concurrency_key"),
        ({"concurrency_key": "{a[0]}"}, "concurrency_key"),
        ({"concurrency_key": "{a!r}"}, "concurrency_key"),
        ({"concurrency_key": "{a:>9}"}, "concurrency_key"),
        ({"concurrency_key": "{}"}, "concurrency_key"),
        ({"concurrency_key": "{0}"}, "concurrency_key"),
        ({"concurrency_key": "k" * 251}, "concurrency_key"),
        ({"concurrency_key": "k\n"}, "concurrency_key"),
        ({"concurrency_key": "k", "limits": [Limit("k")]}, "limits[0]"),
        ({"limits": [Limit("a"), Limit("{who}")]}, "limits[1]"),
        ({"limits": Limit("a")}, "limits"),
        ({"limits": ["a"]}, "limits"),
        ({"limits": [Limit(f"k{n}") for n in range(11)]}, "limits"),
        ({"rate": [Rate("{who}", count=1, per=1)]}, "rate[0]"),
        ({"rate": "r"}, "rate"),
        ({"hold": "retry_wait"}, "hold"),
        ({"hold": ["running"]}, "hold"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
    ],
    ids=repr,
)
def test_what_a_decorator_cannot_mean_is_refused_at_declaration(options: dict[str, Any], field: str) -> None:
    queue = queue_here()

    def act(a: int) -> None: ...

    with pytest.raises(InvalidSubmission) as refused:
        queue.task(**options)(act)

    assert field in refused.value.facts["problems"]  # type: ignore[operator]
    assert not queue.handlers


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Limit("k", 0), "capacity"),
        (lambda: Limit("k", 1.5), "capacity"),  # type: ignore[arg-type]
        (lambda: Limit("", 1), "key_template"),
        (lambda: Rate("r", count=0, per="1s"), "count"),
        (lambda: Rate("r", count=1, per="0s"), "per"),
        (lambda: Rate("r", count=1, per="soon"), "per"),
        (lambda: Rate("r", count=1, per="400d"), "per"),
        (lambda: Rate("r", count=1, per="1s", burst=0), "burst"),
        (lambda: Rate(3, count=1, per="1s"), "key_template"),  # type: ignore[arg-type]
    ],
)
def test_a_limit_or_rate_that_cannot_be_is_refused_where_it_is_written(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidSubmission) as refused:
        make()

    assert set(refused.value.facts["problems"]) == {field}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "None"), ([1], "a list"), ({}, "a dict"), ("", "non-empty"), ("x" * 251, "longer than 250")],
)
def test_an_argument_that_makes_no_key_is_refused_before_anything_is_sent(value: object, says: str) -> None:
    queue = queue_here()

    @queue.task(limits=[Limit("{a}")])
    def act(a: Any) -> None: ...

    with pytest.raises(InvalidSubmission, match=says) as refused:
        act.bind(value).submission()

    assert set(refused.value.facts["problems"]) == {"limits[0]"}  # type: ignore[call-overload]


def test_two_templates_that_become_one_key_are_refused() -> None:
    queue = queue_here()

    @queue.task(limits=[Limit("{a}"), Limit("{b}")])
    def act(a: int, b: int) -> None: ...

    assert len(needs_of(act.bind(1, 2)).limits) == 2
    with pytest.raises(InvalidSubmission, match="twice"):
        act.bind(1, 1).submission()


# --- options -------------------------------------------------------------------------------------------------------


def test_options_replace_what_the_decorator_says() -> None:
    queue = queue_here()

    @queue.task(
        concurrency_key="c:{a}", limits=[Limit("all", 9)], rate=Rate("r", count=2, per="1s"), hold=["retry_wait"]
    )
    def act(a: int) -> None: ...

    assert needs_of(act.bind(1)).limits == (KeyNeed("c:1"), KeyNeed("all", 9))
    other = act.options(concurrency_key="d:{a}", hold=[])
    assert needs_of(other.bind(1)) == TaskOptions(limits=(KeyNeed("d:1"),), rates=(RateNeed("r", 2, 1_000_000, 2),))
    none = act.options(limits=[], rate=[], hold=[])
    assert needs_of(none.bind(1)) == NO_OPTIONS
    assert needs_of(none.options(rate=[Rate("{a}", count=1, per=2, burst=5)], tags=["t"]).bind(1)) == TaskOptions(
        rates=(RateNeed("1", 1, 2_000_000, 5),), tags=("t",)
    )
    with pytest.raises(InvalidSubmission, match="no such parameter"):
        act.options(concurrency_key="{b}")


def test_the_low_level_form_names_keys_as_they_are() -> None:
    queue = queue_here()
    constraints = TaskConstraints(concurrency_key="{a}", limits=(Limit("b", 2),), rates=(Rate("r", count=1, per=1),))
    with queue.running():
        queue.pause()
        handle = queue.submit(TaskSpec(handler="h", constraints=constraints, metadata=TaskMetadata(tags=("t",))))
        assert handle.state() == "ready"

    with pytest.raises(InvalidSubmission, match="limits"):
        queue.submit(TaskSpec(handler="h", constraints=TaskConstraints(limits=("b",))))  # type: ignore[arg-type]
    with pytest.raises(InvalidSubmission, match="twice"):
        queue.submit(TaskSpec(handler="h", constraints=TaskConstraints(concurrency_key="b", limits=(Limit("b"),))))


# --- by name -------------------------------------------------------------------------------------------------------


def test_a_submission_by_name_gets_the_keys_of_a_typed_call() -> None:
    """What is left unset comes from the handler's last declaration; defaults of parameters too."""
    queue = queue_here()

    @queue.task(concurrency_key="c:{a}:{b}:{when}", rate=Rate("r:{b}", count=1, per=1), hold=["retry_wait"])
    def act(a: int, b: str = "x", when: date = date(2026, 1, 1)) -> None: ...

    declared = act.declaration()
    by_name = submission_by_name("act", {"a": 1}, declared=declared, tags=["t"]).options
    assert by_name == TaskOptions(
        limits=needs_of(act.bind(1)).limits,
        rates=(RateNeed("r:x", 1, 1_000_000, 1),),
        hold=("retry_wait",),
        tags=("t",),
    )
    given = submission_by_name("act", {"a": 1, "b": "y", "when": "2026-02-03"}, declared=declared).options
    assert given == needs_of(act.bind(1, "y", date(2026, 2, 3)))
    with pytest.raises(InvalidSubmission, match="a is a list"):
        submission_by_name("act", {"a": [1]}, declared=declared)


def test_a_default_that_makes_no_key_has_to_be_given_by_name() -> None:
    queue = queue_here()

    @queue.task(concurrency_key="{a}")
    def act(a: int | None = None) -> None: ...

    assert act.declaration().defaults == {}
    with pytest.raises(InvalidSubmission, match="a is not given"):
        submission_by_name("act", {}, declared=act.declaration())


def test_the_command_line_submits_under_the_declared_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "jobs.db"
    queue = ActionQueue(store, drain_timeout="5s")
    entered, go_on = threading.Event(), threading.Event()

    @queue.task(name="act", concurrency_key="c:{a}", tags=["eu"])
    def act(a: int, b: int = 0) -> int:
        entered.set()
        go_on.wait(20)
        return b

    with queue.running():
        first = act.submit(1)
        assert entered.wait(20)
        assert main(["submit", "act", "--args", '{"a": 1, "b": 2}', "--store", str(store), "--json"]) == 0
        assert main(["submit", "act", "--args", '{"a": null}', "--store", str(store)]) == 3
        runs = queue.runs(handler="act", tag="eu")
        assert sorted(run.state for run in runs) == ["ready", "running"]
        go_on.set()
        assert first.result(timeout=20) == 0
        eventually(lambda: all(run.state == "completed" for run in queue.runs()), "the other follows")
    assert "a is None" in capsys.readouterr().err


# --- at work -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_than_the_capacity_of_a_key_run_at_once(most: int) -> None:
    """concurrency_key/05: the handlers count themselves."""
    queue = queue_here()
    now, peak = set[int](), [0]

    @queue.task(limits=[Limit("one:{key}", most)], retry=Retry(2, fixed(0)))
    async def act(n: int, key: str) -> None:
        now.add(n)
        peak[0] = max(peak[0], len(now))
        await asyncio.sleep(0.001)
        now.discard(n)
        if n % 3 == 0:
            raise ValueError(n)

    with queue.running():
        act.submit_many([(n, "k") for n in range(12)])
        queue.run_until_idle(timeout=20)

        assert peak[0] == most
        assert queue.stats().runs["completed"] == 8
        assert queue.stats().runs["failed"] == 4


def test_a_handler_runs_at_most_its_concurrency_at_once_also_when_it_is_declared_again() -> None:
    queue = queue_here()
    now, peak = set[int](), [0]

    async def act(n: int) -> None:
        now.add(n)
        peak[0] = max(peak[0], len(now))
        await asyncio.sleep(0.001)
        now.discard(n)

    with queue.running():
        for concurrency in (3, 1):
            peak[0] = 0
            task = queue.task(name="act", concurrency=concurrency)(act)
            task.submit_many([(n,) for n in range(9)])
            queue.run_until_idle(timeout=20)
            assert peak[0] == concurrency


def test_a_rate_spreads_starts_over_time() -> None:
    queue = queue_here()

    @queue.task(rate=Rate("r", count=1, per=0.05, burst=2))
    def act() -> None: ...

    with queue.running():
        for job in [act.submit() for _ in range(4)]:
            job.result(timeout=20)
        started = sorted(run.started_at for run in queue.runs() if run.started_at is not None)

    assert (started[3] - started[0]).total_seconds() >= 0.1


def test_under_aging_what_waits_is_not_passed_for_ever() -> None:
    queue = ActionQueue(":memory:", threads=1, aging=0.001)
    order: list[int] = []

    @queue.task
    def act(n: int) -> None:
        order.append(n)

    with queue.running():
        queue.pause()
        act.submit(0)
        eventually(lambda: len(queue.runs()) == 1, "it is there")
        threading.Event().wait(0.02)
        act.options(priority=3).submit(1)
        act.options(priority=2000).submit(2)
        queue.resume()
        queue.run_until_idle(timeout=20)

    assert order == [2, 0, 1]
    for wrong in (0, -1, "soon", "101y"):
        with pytest.raises(InvalidSubmission, match="aging"):
            ActionQueue(":memory:", aging=wrong)


# --- pauses of one task --------------------------------------------------------------------------------------------


def test_one_task_is_paused_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "jobs.db"
    queue = ActionQueue(store)

    @queue.task(name="act")
    def act() -> str:
        return "done"

    with queue.running():
        queue.pause()
        first, second = act.submit(), act.submit()
        assert queue.pause(task=first.id)
        assert not queue.pause(task=str(first.id))
        queue.resume()
        assert second.result(timeout=20) == "done"
        assert first.state() == "ready"
        assert queue.stats().paused == (f"task {first.id.hex}",)
    with queue.running():
        assert first.state() == "ready"
        assert main(["resume", "--task", str(first.id)[-8:], "--store", str(store)]) == 0
        assert first.result(timeout=20) == "done"
        assert not queue.resume(task=first.id)
        with pytest.raises(AlreadyTerminal):
            queue.pause(task=first.id)
        with pytest.raises(UnknownTask):
            queue.pause(task=TaskId.new())
        with pytest.raises(InvalidSubmission, match="not both"):
            queue.pause(task=first.id, queue="default")
        third = act.options(delay="1h").submit()
        assert main(["pause", "--task", str(third.run_id), "--store", str(store)]) == 0
        assert f"task {third.id} is paused" in capsys.readouterr().out
        assert main(["pause", "--task", "ffffffff", "--store", str(store)]) == 3
