"""Repeats and crons of the catalogue: which runs there are, when each is due, and how many calls of handlers they imply.

The original makes every run of a repeat at submission and five runs of a cron ahead. Here one run is ahead, and the next
is derived when that one has left; so what the catalogue says of all runs at once is asked of the account (``audit``) and
of the runs that have come. Instants end with the year 9999, the longest ``every`` is a hundred years.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionqueue import (
    CONTEXT,
    ActionQueue,
    Context,
    Cron,
    InvalidSubmission,
    Repeat,
    Retry,
    TaskId,
    TaskSpec,
    TerminalFailure,
    fixed,
)
from actionqueue.core.check import check
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.instants import SUBMIT_INSTANT_MAX, to_datetime
from actionqueue.core.rules import COUNT_MAX, EVERY_US_MAX, CronRule, RepeatRule, rule_problems, timetable
from actionqueue.core.state import Run, Schedule
from actionqueue.core.submission import Submit
from actionqueue.testing import Simulation
from actionqueue.verify import verify
from tests.core.story import SECOND, START, Story
from tests.scenarios.world import ManualClock, advance, settle

MINUTE = 60 * SECOND


def repeat(count: int, every_us: int, first_us: int | None = None) -> RepeatRule:
    """By the defaults of ``Repeat``."""
    return RepeatRule(count, every_us, first_us, "catch_up", MINUTE, None, "allow")


def submitted(story: Story, name: str, rule: RepeatRule | CronRule) -> Schedule:
    """The schedule whose first run is called ``name``."""
    reply = story.perform(Submit([story.item(name, rule=rule)]))
    assert not isinstance(reply, ActionQueueError), reply
    return story.state.schedules[story.task_id(name)]


def runs_of(story: Story, name: str) -> list[Run]:
    """All its runs so far, by their instants."""
    found = [run for run in story.seen.values() if run.task_id_bytes == story.task_id(name)]
    return sorted(found, key=lambda run: run.scheduled_at)


def due(story: Story, name: str) -> list[int]:
    """When they are due, in microseconds after the start of the story."""
    return [run.scheduled_at - START for run in runs_of(story, name)]


def complete_all(story: Story) -> None:
    """What runs completes, and what follows at this instant, until nothing runs."""
    while running := [run for run in story.state.runs.values() if run.attempt is not None]:
        for run in running:
            story.names.setdefault(run.id_bytes.hex(), (run.task_id_bytes, run.id_bytes))
            story.finish(run.id_bytes.hex())


# --- how many, and when --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "every_s"), [(3, 60), (6, 30)])
def test_a_repeat_has_exactly_its_runs_and_a_restart_adds_none(
    path: Path, clock: ManualClock, count: int, every_s: int
) -> None:
    """repeat_accounting/01, 02: each completed in one attempt; the same run ids in the same order ever after."""
    queue = ActionQueue(path)

    @queue.task(name="work")
    def work() -> str:
        return "done"

    with queue.running():
        job = queue.handlers["work"].options(schedule=Repeat(count, every=every_s)).submit()
        for _ in range(count):
            settle(queue)
            advance(queue, clock, every_s)
        settle(queue)
        ids = [run.id for run in job.runs()]
        assert len(ids) == count
    with queue.running():
        advance(queue, clock, "30d")
        settle(queue)
        runs = job.runs()
        assert [run.id for run in runs] == ids
        assert [(run.state, run.attempt_count) for run in runs] == [("completed", 1)] * count
        assert [run.attempts[0].outcome for run in runs] == ["completed"] * count
        stats, account = queue.stats(), queue.audit()
        assert {state: number for state, number in stats.runs.items() if number} == {"completed": count}
        assert (account.implied, account.created, account.completed) == (count, count, count)
        assert queue.get_task(job.id).finished_at is not None
    assert verify(path).ok


@pytest.mark.parametrize(
    ("count", "every_us", "first"),
    [(5, 60 * SECOND, 0), (10, 30 * SECOND, 0), (3, 100 * SECOND, 500 * SECOND), (3, 100 * SECOND, 1000 * SECOND),
     (1, 60 * SECOND, 1000 * SECOND), (1, 1, 500 * SECOND), (1, EVERY_US_MAX, 500 * SECOND), (1000, 60 * SECOND, 0)],
)  # fmt: skip
def test_runs_are_due_at_the_origin_and_multiples_of_the_distance_after_it(
    count: int, every_us: int, first: int
) -> None:
    """derive_repeat#1, #8, #12, derive_repeat_boundaries#1, #3: whenever the engine looks."""
    story = Story(checked=False)
    submitted(story, "a", repeat(count, every_us, START + first))

    story.jump(first + count * min(every_us, 60 * SECOND) + 7)
    complete_all(story)
    story.jump(count * every_us)
    complete_all(story)

    assert due(story, "a") == [first + n * every_us for n in range(count)]
    assert not story.state.tasks


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_however_many_are_done_the_rest_keeps_its_instants(done: int) -> None:
    """derive_repeat#2, #4, #7, derive_repeat_boundaries#7: after restarts, and ten minutes late, anchored at the origin."""
    story = Story()
    submitted(story, "a", repeat(5, 30 * SECOND))
    complete_all(story)
    for _ in range(done - 1):
        story.advance(30 * SECOND)
        complete_all(story)
    before = due(story, "a")

    story.project()
    story.crash()
    story.now += 600 * SECOND
    for _ in range(3):
        story.restart()
        complete_all(story)

    assert due(story, "a")[: len(before)] == before
    assert due(story, "a") == [n * 30 * SECOND for n in range(5)]
    assert not story.state.tasks


@pytest.mark.parametrize("count", [1, 4])
def test_a_repeat_that_is_done_derives_nothing_however_often_it_is_asked(count: int) -> None:
    """derive_repeat#7, #14, derive_repeat_boundaries#2: ten restarts, and time passing."""
    story = Story()
    submitted(story, "a", repeat(count, 90 * SECOND))
    for _ in range(count):
        complete_all(story)
        story.advance(90 * SECOND)
    ids = [run.id_bytes for run in runs_of(story, "a")]
    assert len(ids) == count

    for _ in range(10):
        story.project()
        story.restart()
        story.advance(90 * SECOND)

    assert [run.id_bytes for run in runs_of(story, "a")] == ids
    assert not story.state.schedules


def test_tasks_with_the_same_policy_have_runs_of_their_own() -> None:
    """derive_repeat#3: distinct ids; one that is done makes no more while the others go on."""
    story = Story()
    for name in ("a", "b", "c"):
        submitted(story, name, repeat(3, 120 * SECOND))
    for _ in range(3):
        complete_all(story)
        story.advance(120 * SECOND)

    ids = {run.id_bytes for name in "abc" for run in runs_of(story, name)}
    assert len(ids) == len(story.seen) == 9


@settings(max_examples=25)
@given(st.integers(1, 99), st.integers(1, 9_999))
def test_any_repeat_gives_as_many_runs_as_it_says_each_with_an_id_of_its_own(count: int, every_s: int) -> None:
    """proptest_run_accounting#2."""
    story = Story(checked=False)
    submitted(story, "a", repeat(count, every_s * SECOND))
    story.jump(count * every_s * SECOND)
    complete_all(story)

    runs = runs_of(story, "a")
    assert len({run.id_bytes for run in runs}) == len(runs) == count
    assert {run.state.value for run in runs} == {"completed"}


def test_an_account_of_more_than_the_policy_implies_is_noticed() -> None:
    """derive_repeat#13: ten derived of five is a violated invariant, which both quantities are named in."""
    story = Story(checked=False)
    schedule = submitted(story, "a", repeat(5, SECOND, START + MINUTE))
    assert check(story.state) == []

    schedule.index = 10

    assert any("5 occurrences too many" in problem for problem in check(story.state))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1e-6, 1, 60, 3600, "36600d"])
def test_no_repeat_has_no_runs(every: float | str) -> None:
    """derive_repeat#5, derive_repeat_boundaries#8, #9, #11: as the policy, and as the rule that another process sends."""
    with pytest.raises(InvalidSubmission, match="count") as refused:
        Repeat(0, every=every)
    assert set(refused.value.problems) == {"count"}
    assert set(rule_problems(repeat(0, SECOND))) == {"count"}


def test_no_repeat_has_no_distance_and_every_problem_is_named_the_count_first() -> None:
    """derive_repeat#6, derive_repeat_boundaries#10."""
    with pytest.raises(InvalidSubmission) as refused:
        Repeat(3, every=0)
    assert set(refused.value.problems) == {"every"}
    with pytest.raises(InvalidSubmission) as refused:
        Repeat(0, every=0)
    assert list(refused.value.problems) == ["count", "every"]


END = to_datetime(SUBMIT_INSTANT_MAX)


@pytest.mark.parametrize(
    ("count", "every", "first_at"),
    [
        (COUNT_MAX, EVERY_US_MAX / 1e6, None),
        (COUNT_MAX, EVERY_US_MAX / 2e6, None),
        (3, 60, END - timedelta(seconds=100)),
        (3, 60, END - timedelta(seconds=10)),
        (2, EVERY_US_MAX / 1e6, END - timedelta(microseconds=EVERY_US_MAX - 1)),
        (100, EVERY_US_MAX / 1e6, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_what_would_be_due_after_the_end_of_time_is_refused_whole(
    count: int, every: float, first_at: datetime | None
) -> None:
    """derive_repeat#9, #11, #12, derive_repeat_boundaries#4, #6, clock_edge_cases#15, #16: a typed error, and no run."""
    with pytest.raises(InvalidSubmission, match="year 9999") as refused:
        Repeat(count, every=every, first_at=first_at)
    assert set(refused.value.problems) == {"count"}


def test_what_ends_at_the_last_instant_there_is_is_taken() -> None:
    """derive_repeat#10, #12, derive_repeat_boundaries#5: to the microsecond."""
    first = SUBMIT_INSTANT_MAX - EVERY_US_MAX
    assert timetable(Repeat(2, EVERY_US_MAX / 1e6, first_at=to_datetime(first)).rule(), 0).count(-1, 2**62) == 2
    story = Story()
    story.now = first
    submitted(story, "a", repeat(2, EVERY_US_MAX))
    story.jump(EVERY_US_MAX)
    complete_all(story)
    assert [run.scheduled_at for run in runs_of(story, "a")] == [first, SUBMIT_INSTANT_MAX]

    every = SUBMIT_INSTANT_MAX // 10_000
    times = timetable(repeat(10_000, every, 0), 0)
    assert [times.nth_after(-1, n) for n in (1, 2, 10_000, 10_001)] == [0, every, 9_999 * every, None]


@pytest.mark.parametrize("policy", [Repeat(3, every="1s"), Cron("* * * * *")], ids=repr)
def test_the_nil_id_is_no_schedules_id_and_leaves_no_trace(store: str | Path, policy: Repeat | Cron) -> None:
    """derive_repeat#15, #16."""
    queue = ActionQueue(store)
    with queue.running():
        before = queue.stats().sequence
        with pytest.raises(InvalidSubmission) as refused:
            queue.submit(TaskSpec(handler="work", id=TaskId(bytes=bytes(16)), policy=policy))
        assert set(refused.value.problems) == {"id"}
        story = Story()
        item = story.item("a", rule=policy.rule())
        item.task_id, item.task_id_given = bytes(16), True
        story.refused(Submit([item], at=START), InvalidSubmission)
        assert (queue.stats().sequence, queue.stats().tasks, queue.schedules()) == (before, 0, [])


# --- cron ----------------------------------------------------------------------------------------------------------


class Ticks:
    """A cron of every second, simulated from 1000 s after some hour."""

    def __init__(self, **fields: Any) -> None:
        self.queue = ActionQueue(":memory:")
        self.seen: list[float] = []
        self.began = datetime(2026, 1, 1, tzinfo=UTC)

        @self.queue.task(name="tick", schedule=Cron("* * * * * * *", overlap="allow", **fields))
        def tick(*, ctx: Context = CONTEXT) -> None:
            self.seen.append((ctx.scheduled_at - self.began).total_seconds())


def test_a_cron_has_one_run_ahead_whatever_its_cap() -> None:
    """cron_scheduling/01, 02: not five at submission, nor all three of a cap of three."""
    for cap in (None, 3):
        ticks = Ticks(max_occurrences=cap)
        with Simulation(ticks.queue, starts_at=ticks.began):
            assert [run.state for run in ticks.queue.runs()] == ["scheduled"]
            assert ticks.queue.schedules()[0].occurrences == 1


def test_a_capped_cron_completes_and_never_exceeds_its_cap() -> None:
    """cron_scheduling/02, 03: over crashes too."""
    ticks = Ticks(max_occurrences=3)
    with Simulation(ticks.queue, starts_at=ticks.began) as sim:
        for _ in range(10):
            sim.advance(1)
            sim.crash()
            sim.restart()
        sim.advance(100)
        assert ticks.seen == [1, 2, 3]
        assert [run.state for run in ticks.queue.runs()] == ["completed"] * 3
        assert ticks.queue.schedules()[0].over
        sim.check()


def test_an_unbounded_cron_goes_on_with_exact_instants() -> None:
    """cron_scheduling/04: ten seconds are ten runs, and the one ahead; strictly after its submission."""
    ticks = Ticks()
    with Simulation(ticks.queue, starts_at=ticks.began) as sim:
        sim.advance(10)
        sim.run_until_idle()
        assert ticks.seen == list(range(1, 11))
        assert len(ticks.queue.runs()) == 11
        assert ticks.queue.schedules()[0].next_at == ticks.began + timedelta(seconds=11)
        account = ticks.queue.audit()
        assert (account.implied, account.completed, account.open) == (11, 10, 1)


# --- promotion, misfire --------------------------------------------------------------------------------------------


def test_what_was_promoted_stays_promoted_over_a_crash() -> None:
    """crash_during_promotion/01: three runs, Ready before and after."""
    story = Story(slots=0)
    submitted(story, "a", repeat(3, 100 * SECOND))
    story.advance(250 * SECOND)
    before = [(run.id_bytes, run.state.value) for run in runs_of(story, "a")]
    assert [state for _, state in before] == ["ready"] * 3

    story.crash()
    story.restart()

    after = [story.state.runs[run_id] for run_id, _ in before]
    assert [run.state.value for run in after] == ["ready"] * 3
    assert len(story.state.runs) == 3


def test_the_middle_of_a_repeat_replays_to_what_it_was() -> None:
    """wal_replay#41: the first run completed in one attempt, the second ready, the third scheduled, and no other."""
    story = Story()
    submitted(story, "a", repeat(3, 60 * SECOND))
    complete_all(story)
    story.play("executor main 0")
    story.advance(60 * SECOND)

    story.crash()
    story.restart()

    runs = runs_of(story, "a")
    assert [run.scheduled_at - START for run in runs] == [0, 60 * SECOND, 120 * SECOND]
    assert [run.state.value for run in runs[:1]] == ["completed"]
    assert runs[0].attempt_count == 1
    live = [story.state.runs[run.id_bytes] for run in runs[1:]]
    assert [run.state.value for run in live] == ["ready", "scheduled"]


@pytest.mark.parametrize(
    ("every_s", "gap_s", "ran"), [(1, 10, 5), (10, 25, 3), (1, 100, 5)], ids=["all", "some", "long ago"]
)
def test_everything_overdue_runs_at_once_when_an_engine_is_there_again(
    path: Path, clock: ManualClock, every_s: int, gap_s: int, ran: int
) -> None:
    """misfire/01 to /03: eager catch-up, in the first turn of the next engine."""
    queue = ActionQueue(path, drain_timeout=0)
    seen: list[datetime] = []

    @queue.task(name="work")
    def work(*, ctx: Context = CONTEXT) -> None:
        seen.append(ctx.scheduled_at)

    with queue.running():
        queue.pause()
        queue.handlers["work"].options(schedule=Repeat(5, every=every_s)).submit()
        begun = clock.now
    clock.move(gap_s)
    with queue.running():
        assert seen == []
        assert queue.stats().runs["completed"] == 0
        queue.resume()
        settle(queue)
        assert sorted(seen) == [begun + timedelta(seconds=n * every_s) for n in range(ran)]
        assert queue.stats().runs["scheduled"] == (0 if ran == 5 else 1)


def test_a_submission_of_a_schedule_is_whole_or_not_at_all_and_can_be_repeated(path: Path, clock: ManualClock) -> None:
    """S5-5, for repeat: one event makes task, schedule and first run; the same key finds it again."""
    queue = ActionQueue(path, drain_timeout=0)

    @queue.task(name="work")
    def work() -> None: ...

    keyed = queue.handlers["work"].options(schedule=Repeat(100, every="1h"), idempotency_key="k")
    with queue.running():
        before = queue.stats().sequence
        job = keyed.submit()
        assert queue.stats().sequence - before <= 5, "nor does it grow with the count"
    with queue.running():
        again = keyed.submit()
        assert (again.id, again.created) == (job.id, False)
        assert (queue.stats().tasks, len(queue.schedules())) == (1, 1)
    assert verify(path).ok


# --- calls of handlers ---------------------------------------------------------------------------------------------


def calls_of(tasks: int, count: int, cap: int, *, fails: bool, terminal: bool = False) -> tuple[int, dict[str, int]]:
    """How often handlers are called, and where the runs end, with so many repeats submitted and then time."""
    queue, calls = ActionQueue(":memory:"), [0]

    @queue.task(name="work", retry=Retry(cap, fixed("1ms")))
    def work() -> None:
        calls[0] += 1
        if terminal:
            raise TerminalFailure("no")
        if fails:
            raise ValueError("no")

    with Simulation(queue) as sim:
        first_at = sim.now + timedelta(seconds=1)
        repeated = queue.handlers["work"].options(schedule=Repeat(count, every="1s", first_at=first_at))
        for _ in range(tasks):
            repeated.submit()
        sim.crash()
        sim.time.advance(1_000_000_000)
        sim.restart()
        for _ in range(count * cap):
            sim.advance("1s")
        sim.check()
        assert queue.audit().is_consistent
        return calls[0], {state: number for state, number in queue.stats().runs.items() if number}


@pytest.mark.parametrize(("tasks", "count"), [(1, 5), (3, 3), (2, 4)])
def test_repeats_that_succeed_are_called_once_a_run(tasks: int, count: int) -> None:
    """dispatch_invariants/03: exactly, after a gap."""
    assert calls_of(tasks, count, 3, fails=False) == (tasks * count, {"completed": tasks * count})


@pytest.mark.parametrize(("tasks", "count", "cap"), [(1, 3, 2), (2, 2, 3), (1, 5, 1)])
def test_repeats_that_fail_are_called_as_often_as_their_cap_says(tasks: int, count: int, cap: int) -> None:
    """dispatch_invariants/04: exactly."""
    assert calls_of(tasks, count, cap, fails=True) == (tasks * count * cap, {"failed": tasks * count})
    assert calls_of(tasks, count, cap, fails=True, terminal=True)[0] == tasks * count


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_any_repeats_that_fail_add_up_to_their_caps(tasks: int, count: int, cap: int) -> None:
    """dispatch_invariants/06."""
    assert calls_of(tasks, count, cap, fails=True)[0] == tasks * count * cap


def test_once_and_repeat_together_all_end() -> None:
    """dispatch_invariants/07: fourteen runs, all terminal when it is idle."""
    queue = ActionQueue(":memory:")

    @queue.task(name="work")
    def work() -> None: ...

    with Simulation(queue) as sim:
        for _ in range(5):
            queue.handlers["work"].submit()
        for _ in range(3):
            queue.handlers["work"].options(schedule=Repeat(3, every="1s")).submit()
        sim.advance("1h")
        assert {state: number for state, number in sim.run_until_idle().runs.items() if number} == {"completed": 14}
        assert queue.stats().tasks == 8


# --- cancel, pause, idle -------------------------------------------------------------------------------------------


def test_a_schedule_that_is_canceled_makes_no_more_also_after_a_restart() -> None:
    """S5-30, S5-44: cron, cancel, cap and restart."""
    ticks = Ticks(max_occurrences=10)
    with Simulation(ticks.queue, starts_at=ticks.began) as sim:
        sim.advance(4)
        (schedule,) = ticks.queue.schedules()
        assert ticks.queue.cancel_task(schedule.task_id) == 1
        sim.crash()
        sim.restart()
        (again,) = ticks.queue.schedules()
        sim.advance(100)
        sim.check()
    assert again.task_id != schedule.task_id, "what a decorator declares begins anew with its program"
    assert ticks.seen == list(range(1, 15))


def test_a_named_schedule_that_is_canceled_stays_so_over_a_restart() -> None:
    """S5-30, S5-44."""
    queue, seen = ActionQueue(":memory:"), []

    @queue.task(name="work")
    def work(*, ctx: Context = CONTEXT) -> None:
        seen.append(ctx.scheduled_at)

    with Simulation(queue) as sim:
        job = queue.schedule("n", queue.handlers["work"].bind(), Cron("* * * * * *"))
        sim.advance(3)
        assert job.cancel() == 1
        for _ in range(2):
            sim.advance(10)
            sim.crash()
            sim.restart()
        assert (len(seen), queue.schedules()) == (3, [])
        sim.check()


def test_under_a_pause_no_schedule_makes_runs_and_a_resume_follows_its_misfire_rule() -> None:
    """S5-43: over a restart; running work goes on."""
    ticks = Ticks(misfire_grace="1s")
    with Simulation(ticks.queue, starts_at=ticks.began) as sim:
        sim.advance(3)
        ticks.queue.pause()
        sim.advance(50)
        sim.crash()
        sim.restart()
        sim.advance(50)
        assert (ticks.seen, len(ticks.queue.runs())) == ([1, 2, 3], 4), "one run ahead, however long it is held"
        ticks.queue.resume()
        sim.advance(2)
        assert ticks.seen == [1, 2, 3, 103, 104, 105]
        assert ticks.queue.stats().occurrences_skipped == 99
        sim.check()


def test_with_a_schedule_ahead_it_is_idle_at_once(store: str | Path, clock: ManualClock) -> None:
    """S5-45: the run ahead is of the future, so it is not waited for."""
    queue = ActionQueue(store)

    @queue.task(name="work", schedule=Cron("@hourly"))
    def work() -> None: ...

    with queue.running():
        summary = queue.run_until_idle(timeout=20)
        assert (summary.runs["scheduled"], summary.blocked) == (1, 0)
