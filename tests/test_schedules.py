"""Schedules as users meet them: declared, submitted, named, replaced, asked for, paused, ended, on a store that lasts.

The clock stands still unless a test moves it (``tests/scenarios/world.py``); engine, store and executors are the real
ones. What happens when processes are killed is in ``process/test_schedules.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    CONTEXT,
    ActionQueue,
    Conflict,
    Context,
    Cron,
    IdempotencyConflict,
    InvalidSubmission,
    ManyRuns,
    NotFound,
    Repeat,
    TaskSpec,
)
from actionqueue.core.instants import to_datetime
from actionqueue.records import ScheduleRecord
from actionqueue.testing import Simulation
from actionqueue.verify import verify
from tests.process.support import PATIENCE_S, eventually
from tests.scenarios.world import START, Gate, ManualClock, advance, manual_clock, settle

SECONDS = "* * * * * *"
TENS = "*/10 * * * * *"
BEGIN = to_datetime(START)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of every engine that the test opens."""
    return manual_clock(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A store, which must be sound and consistent in the end."""
    path = tmp_path / "jobs.db"
    yield path
    report = verify(path)
    assert report.ok, str(report)
    account = ActionQueue(path, role="client").audit()
    assert account.is_consistent, str(account)


class Program:
    """A program that is started again and again; what it has seen is kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.seen: list[datetime] = []

    def start(self, schedule: Cron | Repeat | None = None, *, registered: bool = True, **options: Any) -> ActionQueue:
        """Its queue, with ``tick`` declared as this version of it declares it."""
        queue = ActionQueue(self.path, drain_timeout="5s", **options)

        @queue.task(name="other")
        def other() -> None: ...

        if registered:

            @queue.task(name="tick", schedule=schedule)
            def tick(*, ctx: Context = CONTEXT) -> None:
                self.seen.append(ctx.scheduled_at)

        @queue.task(name="report")
        def report(team: str = "all", *, ctx: Context = CONTEXT) -> str:
            self.seen.append(ctx.scheduled_at)
            return team

        return queue

    @property
    def seconds(self) -> list[float]:
        """When its runs were nominally due, in seconds after the beginning."""
        return [(at - BEGIN).total_seconds() for at in self.seen]


def named(queue: ActionQueue, name: str = "tick") -> ScheduleRecord:
    (found,) = [each for each in queue.schedules() if each.name == name]
    return found


def passing(queue: ActionQueue, clock: ManualClock, seconds: int) -> None:
    """Second by second, each run ended before the next second."""
    settle(queue)
    for _ in range(seconds):
        advance(queue, clock, 1)
        settle(queue)


def tens(first: int, last: int, every: int = 10) -> list[int]:
    """The seconds after the beginning at which a clock shows a multiple of ``every``."""
    begin_s = START // 1_000_000
    return [second for second in range(first, last + 1) if (begin_s + second) % every == 0]


# --- on the decorator ----------------------------------------------------------------------------------------------


def test_a_declared_schedule_runs_at_its_times_and_a_restart_changes_nothing(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 25)
        first = named(queue)
    with program.start(Cron(TENS)).running() as queue:
        assert named(queue).task_id == first.task_id
        passing(queue, clock, 25)
        again = named(queue)

    assert program.seconds == tens(1, 50)
    assert (first.origin, first.rule, first.handler) == ("code", f"{TENS} UTC", "tick")
    assert (again.since, again.occurrences, again.skipped) == (first.since, len(tens(1, 60)), {})
    assert again.next_at == BEGIN + timedelta(seconds=tens(51, 60)[0])
    assert queue.stats().tasks == 1


def test_another_expression_retires_the_old_schedule_and_no_time_is_lost_or_doubled(
    path: Path, clock: ManualClock
) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 25)
        old = named(queue)
    clock.move(12)
    with program.start(Cron("*/5 * * * * *")).running() as queue:
        passing(queue, clock, 13)
        new = named(queue)
        (ended,) = [each for each in queue.schedules(ended=True) if each.retired_at is not None]

    assert program.seconds == [*tens(1, 37), *tens(38, 50, every=5)], "what was due before belongs to the old one"
    assert new.task_id != old.task_id
    assert (ended.task_id, ended.retired_at, ended.over) == (old.task_id, BEGIN + timedelta(seconds=37), True)
    assert queue.get_task(old.task_id).finished_at is not None


def test_a_schedule_that_is_left_out_is_retired_and_can_be_seen_to_be(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 12)
    with program.start(None).running() as queue:
        passing(queue, clock, 30)
        assert queue.schedules() == []
        (ended,) = queue.schedules(ended=True)
        assert (ended.name, ended.over, ended.next_at) == ("tick", True, None)
        assert ended.retired_at == BEGIN + timedelta(seconds=12)
        assert [run.reason for run in queue.runs(handler="tick", state="canceled")] == ["retired"]
        assert program.seconds == tens(1, 12)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 10)
        assert named(queue).task_id != ended.task_id, "back again it is a new one"
        assert program.seconds == [*tens(1, 12), *tens(43, 52)]


def test_without_its_handler_a_schedule_waits_as_one_run_and_is_not_retired(path: Path, clock: ManualClock) -> None:
    """A rolling deploy: another version of the program, without the handler, is the engine for a while."""
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 12)
        before = named(queue)
    with program.start(registered=False).running() as queue:
        passing(queue, clock, 60)
        waiting = named(queue)
        (run,) = queue.runs(handler="tick", state="ready")
        assert (waiting.task_id, waiting.retired_at) == (before.task_id, None)
        assert run.scheduled_at == BEGIN + timedelta(seconds=tens(13, 72)[0])
        assert waiting.skipped == {"handler": len(tens(13, 72)) - 1}
        assert queue.stats().blocked == 1
        assert queue.run_until_idle(timeout=PATIENCE_S).blocked == 1
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 10)
        assert named(queue).task_id == before.task_id

    assert program.seconds == [*tens(1, 12), tens(13, 72)[0], *tens(73, 82)]


def test_declared_while_the_engine_runs_a_schedule_begins_at_once(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(registered=False).running() as queue:
        settle(queue)

        @queue.task(name="late", schedule=Cron(TENS))
        def late(*, ctx: Context = CONTEXT) -> None:
            program.seen.append(ctx.scheduled_at)

        passing(queue, clock, 15)
        assert named(queue, "late").origin == "code"
    assert program.seconds == tens(1, 15)


def test_what_a_decorator_cannot_schedule_is_refused_there() -> None:
    queue = ActionQueue(":memory:")

    with pytest.raises(InvalidSubmission, match=r"queue\.schedule") as refused:

        @queue.task(schedule=Cron(TENS))
        def needs(team: str) -> None: ...

    assert set(refused.value.problems) == {"schedule"}
    assert not queue.handlers


# --- submitted, and under a name -----------------------------------------------------------------------------------


def test_a_schedule_can_be_submitted_and_its_handle_is_of_many_runs(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start().running() as queue:
        job = queue.handlers["report"].options(schedule=Repeat(3, every="10s")).submit("eu")
        assert job.created is True
        with pytest.raises(ManyRuns, match="many runs"):
            job.result()
        passing(queue, clock, 25)
        with pytest.raises(ManyRuns):
            job.state()
        runs = job.runs()
        assert [run.state for run in runs] == ["completed"] * 3
        assert [queue.get_result(run.id) for run in runs] == [b'"eu"'] * 3
        assert program.seconds == [0, 10, 20]
        assert queue.schedules() == []
        assert queue.get_task(job.id).finished_at == BEGIN + timedelta(seconds=20)


@pytest.mark.parametrize("policy", [Cron(TENS, max_occurrences=2), Repeat(2, every="10s")], ids=repr)
def test_the_low_level_form_takes_both_policies(path: Path, clock: ManualClock, policy: Cron | Repeat) -> None:
    program = Program(path)
    with program.start().running() as queue:
        job = queue.submit(TaskSpec(handler="report", payload=b'{"team":"eu"}', policy=policy))
        (listed,) = queue.schedules()
        assert (listed.name, listed.origin, listed.task_id) == ("", "submit", job.id)
        passing(queue, clock, 30)
        assert program.seconds == (tens(1, 20) if isinstance(policy, Cron) else [0, 10])


def test_an_idempotency_key_makes_one_schedule_of_several_submissions(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start().running() as queue:
        keyed = queue.handlers["report"].options(schedule=Repeat(2, every="10s"), idempotency_key="k")
        first, second = keyed.submit("eu"), keyed.submit("eu")
        assert (first.created, second.created, second.id) == (True, False, first.id)
        with pytest.raises(IdempotencyConflict) as refused:
            keyed.options(schedule=Repeat(3, every="10s")).submit("eu")
        assert refused.value.task_id == first.id
        passing(queue, clock, 30)
        assert program.seconds == [0, 10]


def test_a_named_schedule_is_there_once_and_another_rule_replaces_it(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start().running() as queue:
        report = queue.handlers["report"]
        first = queue.schedule("eu", report.bind("eu"), Cron(TENS))
        again = queue.schedule("eu", report.bind("eu"), Cron(TENS))
        assert (first.created, again.created, again.id, again.run_id) == (True, False, first.id, first.run_id)
        passing(queue, clock, 15)
        other = queue.schedule("eu", report.bind("eu"), Cron("*/5 * * * * *"))
        assert (other.created, other.id == first.id) == (True, False)
        passing(queue, clock, 15)
        assert [each.task_id for each in queue.schedules()] == [other.id]
        arguments = queue.schedule("eu", report.bind("us"), Cron("*/5 * * * * *"))
        assert arguments.created, "other arguments make it another schedule"
        priority = queue.schedule("eu", report.options(priority=3).bind("us"), Cron("*/5 * * * * *"))
        assert priority.created, "and so do other options"
    assert program.seconds == [*tens(1, 15), *tens(16, 30, every=5)]


def test_names_that_are_taken_or_are_none_are_refused(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        tick, report, other = (queue.handlers[name] for name in ("tick", "report", "other"))
        settle(queue)
        with pytest.raises(Conflict, match="declared by its decorator"):
            queue.schedule("tick", tick.bind(), Cron(SECONDS))
        queue.schedule("daily", report.bind("eu"), Cron("@daily"))
        with pytest.raises(Conflict, match="one of handler 'report'"):
            queue.schedule("daily", other.bind(), Cron("@daily"))
        for name in ("", "x" * 201, "a\nb"):
            with pytest.raises(InvalidSubmission, match="name"):
                queue.schedule(name, report.bind(), Cron("@daily"))
        for options in ({"delay": "1s"}, {"at": BEGIN}, {"idempotency_key": "k"}):
            with pytest.raises(InvalidSubmission, match="known by its name"):
                queue.schedule("n", report.options(**options).bind(), Cron("@daily"))
        with pytest.raises(InvalidSubmission, match="Cron"):
            queue.schedule("n", report.bind(), "@daily")  # type: ignore[arg-type]
        with pytest.raises(InvalidSubmission, match="one of at, delay and schedule"):
            report.options(schedule=Cron(TENS), delay="1s")
        for name in ("nobody", "ab" * 16):
            for call in (queue.trigger, queue.retire, lambda name: queue.backfill(name, BEGIN, BEGIN)):
                with pytest.raises((NotFound, InvalidSubmission)):
                    call(name)
        assert sorted(each.name for each in queue.schedules()) == ["daily", "tick"]


def test_a_client_schedules_and_controls_through_the_inbox(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start().running() as queue:
        client = program.start(role="client")
        report = client.handlers["report"]
        job = client.schedule("eu", report.bind("eu"), Cron(TENS))
        assert job.created is True
        assert client.schedule("eu", report.bind("eu"), Cron(TENS)).id == job.id
        assert [each.task_id for each in client.schedules()] == [job.id]
        submitted = report.options(schedule=Repeat(2, every="10s")).submit("us")
        passing(queue, clock, 15)
        assert [run.state for run in submitted.runs()] == ["completed"] * 2
        run_id = client.trigger("eu")
        settle(queue)
        assert client.get_run(run_id).state == "completed"
        assert client.backfill("eu", BEGIN - timedelta(seconds=30), BEGIN) == 3
        with pytest.raises(Conflict):
            client.schedule("eu", client.handlers["other"].bind(), Cron(TENS))
        assert client.retire("eu") == job.id
        with pytest.raises(NotFound):
            client.retire("eu")
        assert client.schedules() == []
        settle(queue)
        client.close()
    (before,) = [each for each in queue.schedules(ended=True) if each.name == "eu"]
    assert (before.origin, before.requested) == ("call", 4)


# --- asked for -----------------------------------------------------------------------------------------------------


def test_a_run_out_of_turn_is_one_more_and_is_told_as_asked_for(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 13)
        before = named(queue)
        run_id = queue.trigger("tick")
        by_id = queue.trigger(before.task_id)
        settle(queue)
        after = named(queue)
        run = queue.get_run(run_id)
        assert (run.state, run.scheduled_at) == ("completed", BEGIN + timedelta(seconds=13))
        assert (run.requested_by, queue.get_run(by_id).retry_of) == (queue.asker(), None)
        assert (after.next_at, after.occurrences, after.requested) == (before.next_at, before.occurrences, 2)
        assert queue.history(run_id)[0].reason == "requested"
        report = queue.audit()
        assert (report.asked, report.implied) == (2, len(tens(1, 20)))
    assert program.seconds == [*tens(1, 13), 13, 13]


def test_a_range_that_has_passed_is_filled(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        hour = timedelta(hours=1)
        assert queue.backfill("tick", BEGIN - hour, BEGIN) == 360
        eventually(lambda: named(queue).backfilling == 0 and len(program.seen) == 360, "all of it has run")
        assert named(queue).requested == 360
        assert queue.backfill("tick", BEGIN - timedelta(seconds=1, microseconds=1), BEGIN - timedelta(seconds=1)) == 0
        for since, until in ((BEGIN, BEGIN), (BEGIN, BEGIN + hour), (BEGIN, BEGIN - hour)):
            with pytest.raises(InvalidSubmission, match="has passed"):
                queue.backfill("tick", since, until)
        with pytest.raises(InvalidSubmission, match="1000000"):
            queue.backfill("tick", BEGIN - timedelta(days=365), BEGIN)
        with pytest.raises(InvalidSubmission):
            queue.backfill("tick", datetime(2020, 1, 1), BEGIN)  # noqa: DTZ001 - naive, which is refused
    assert program.seconds == tens(-3600, -1)


def test_retiring_ends_a_schedule_until_its_program_starts_again(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 13)
        task_id = named(queue).task_id
        assert queue.retire("tick") == task_id
        with pytest.raises(NotFound):
            queue.trigger("tick")
        passing(queue, clock, 20)
        assert queue.schedules() == []
        assert [each.task_id for each in queue.schedules(ended=True)] == [task_id]
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 10)
        assert named(queue).task_id != task_id
    assert program.seconds == [*tens(1, 13), *tens(34, 43)]


def test_a_schedule_that_has_had_all_its_occurrences_keeps_its_name_until_it_is_retired(
    path: Path, clock: ManualClock
) -> None:
    """Else each start of the program would begin it again."""
    program = Program(path)
    for _ in range(2):
        with program.start(Repeat(2, every="10s")).running() as queue:
            passing(queue, clock, 15)
            (listed,) = queue.schedules()
            assert (listed.over, listed.occurrences, listed.next_at) == (True, 2, None)
            with pytest.raises(Conflict, match="all its occurrences"):
                queue.trigger("tick")
    with program.start(Repeat(2, every="10s")).running() as queue:
        queue.retire("tick")
        assert queue.schedules() == []
    assert program.seconds == [0, 10]


# --- pauses, overlaps, skips ---------------------------------------------------------------------------------------


def test_a_schedule_is_paused_by_its_task_and_catches_up_by_its_rules(path: Path, clock: ManualClock) -> None:
    program = Program(path)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 13)
        task_id = named(queue).task_id
        queue.pause(task=task_id)
        assert named(queue).paused
        passing(queue, clock, 120)
    with program.start(Cron(TENS)).running() as queue:
        passing(queue, clock, 2)
        assert (named(queue).paused, program.seconds) == (True, tens(1, 13))
        queue.resume(task=task_id)
        settle(queue)
        found = named(queue)
        assert not found.paused
        assert found.skipped == {"coalesced": len(tens(14, 135)) - 1}
        assert found.last_skip is not None
        assert found.last_skip.first == BEGIN + timedelta(seconds=tens(14, 135)[0])
        assert found.last_skip.last == BEGIN + timedelta(seconds=tens(14, 135)[-2])
        assert queue.stats().occurrences_skipped == found.last_skip.count
        passing(queue, clock, 5)
    assert program.seconds == [*tens(1, 13), tens(14, 135)[-1], *tens(136, 140)]


def test_what_overlaps_is_left_out_and_counted(path: Path, clock: ManualClock) -> None:
    queue, gate, started = ActionQueue(path, drain_timeout="5s"), Gate(), []

    @queue.task(name="slow", schedule=Cron(SECONDS))
    def slow(*, ctx: Context = CONTEXT) -> None:
        started.append(ctx.scheduled_at)
        gate.pass_through()

    with queue.running():
        advance(queue, clock, 1)
        gate.await_entry()
        for _ in range(3):
            advance(queue, clock, 1)
        found = named(queue, "slow")
        assert (len(started), found.skipped, found.overlap) == (1, {"overlap": 3}, "skip")
        assert found.last_skip is not None
        assert found.last_skip.reason == "overlap"
        gate.opened.set()
        passing(queue, clock, 2)
        assert started == [BEGIN + timedelta(seconds=second) for second in (1, 5, 6)]
        assert queue.audit().implied == 4, "these, and the one ahead"


@pytest.mark.parametrize(
    ("misfire", "ran"),
    [("catch_up", [10, 20, 30, 40, 50, 60]), ("coalesce", [60]), ("skip", [60])],
)
def test_what_passed_while_no_engine_ran_follows_the_misfire_rule(
    path: Path, clock: ManualClock, misfire: str, ran: list[int]
) -> None:
    program = Program(path)
    policy = Repeat(9, every="10s", first_at=BEGIN + timedelta(seconds=10), misfire=misfire, misfire_grace="5s")
    with program.start(policy).running() as queue:
        settle(queue)
    clock.move(64)
    with program.start(policy).running() as queue:
        settle(queue)
        assert sorted(program.seconds) == ran
        skipped = named(queue).skipped
        assert sum(skipped.values()) == 6 - len(ran)
        assert set(skipped) <= {"coalesced", "misfire"}
        passing(queue, clock, 30)
        assert sorted(program.seconds) == [*ran, 70, 80, 90]
        assert queue.audit().implied == len(ran) + 3


@pytest.mark.parametrize(
    ("overlap", "ran", "skipped"),
    [("queue", 6, {}), ("allow", 6, {}), ("skip", 1, {"overlap": 5}), ("cancel_running", 6, {})],
)
def test_of_what_is_caught_up_overlap_decides_which_happen(
    path: Path, clock: ManualClock, overlap: str, ran: int, skipped: dict[str, int]
) -> None:
    """First the misfire rule, then that of overlaps: a cron that is to catch up all of it queues, or allows."""
    program = Program(path)
    policy = Cron(TENS, misfire="catch_up", overlap=overlap, misfire_grace=0)
    with program.start(policy).running() as queue:
        settle(queue)
    clock.move(tens(1, 60)[-1])
    with program.start(policy).running() as queue:
        settle(queue)
        settle(queue)
        states = Counter(run.state for run in queue.runs(handler="tick"))
        assert (named(queue).skipped, states["completed"] + states["canceled"]) == (skipped, ran)
        assert states["canceled"] == 0 or overlap == "cancel_running"
        if overlap == "queue":
            assert program.seconds == tens(1, 60)


def test_a_year_of_seconds_is_dealt_with_at_once(path: Path, clock: ManualClock) -> None:
    """Section 5 number 30: a count and a range, in a few events, however many."""
    program = Program(path)
    with program.start(Cron(SECONDS)).running() as queue:
        passing(queue, clock, 3)
        before = queue.stats().sequence
    clock.move("365d")
    with program.start(Cron(SECONDS)).running() as queue:
        settle(queue)
        found, stats = named(queue), queue.stats()
        assert found.skipped == {"coalesced": 365 * 86_400 - 1}
        assert stats.occurrences_skipped == 365 * 86_400 - 1
        assert stats.sequence - before < 20
        assert len(program.seen) == 4


# --- jitter, daylight saving ---------------------------------------------------------------------------------------


def test_the_handler_sees_the_nominal_time_whenever_it_starts() -> None:
    queue, seen = ActionQueue(":memory:"), []

    @queue.task(name="late", schedule=Cron("* * * * *", jitter="30s"))
    def late(*, ctx: Context = CONTEXT) -> None:
        seen.append((ctx.scheduled_at, sim.now - ctx.scheduled_at))

    with Simulation(queue, starts_at=datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)) as sim:
        sim.advance("10m")
        sim.check()
    assert [at.minute for at, _ in seen] == list(range(1, len(seen) + 1))
    assert 9 <= len(seen) <= 10
    assert all(timedelta(0) <= late < timedelta(seconds=30) for _, late in seen)
    assert len({late for _, late in seen}) > 1


@pytest.mark.parametrize(
    ("begins", "runs_at"),
    [
        (datetime(2026, 3, 28, 12, tzinfo=UTC), "29 01:00"),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), "25 00:30"),
    ],
)
def test_a_night_in_which_the_clock_is_changed_with_restarts_in_it(begins: datetime, runs_at: str) -> None:
    """Section 5 number 29: 02:30 in Berlin, when it does not exist and when it is there twice."""
    queue, seen = ActionQueue(":memory:"), []

    @queue.task(name="nightly", schedule=Cron("30 2 * * *", timezone="Europe/Berlin"))
    def nightly(*, ctx: Context = CONTEXT) -> None:
        seen.append(f"{ctx.scheduled_at:%d %H:%M}")

    with Simulation(queue, starts_at=begins) as sim:
        for _ in range(48):  # a crash each half hour
            sim.advance("30m")
            sim.crash()
            sim.restart()
        sim.run_until_idle()
        sim.check()
    assert seen == [runs_at]


# --- the wall clock is set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_h", [-1, 1, 30 * 24])
def test_cron_follows_a_wall_clock_that_is_set_and_repeat_does_not(by_h: int) -> None:
    """Section 5 number 26: delays follow elapsed time, cron the wall; no time on the wall gets two runs."""
    queue = ActionQueue(":memory:")
    cron_at: list[datetime] = []
    repeat_at: list[float] = []

    @queue.task(name="each_quarter", schedule=Cron("*/15 * * * *"))
    def each_quarter(*, ctx: Context = CONTEXT) -> None:
        cron_at.append(ctx.scheduled_at)
        if ctx.scheduled_at > began + timedelta(minutes=31):
            assert ctx.scheduled_at <= sim.now, "it is not before its time on the wall"

    @queue.task(name="each_ten", schedule=Repeat(24, every="10m"))
    def each_ten() -> None:
        repeat_at.append(sim.time.elapsed_us / 60e6)

    began = datetime(2026, 1, 1, tzinfo=UTC)
    with Simulation(queue, starts_at=began) as sim:
        sim.advance("31m")
        assert [f"{at:%H:%M}" for at in cron_at] == ["00:15", "00:30"]
        sim.time.set_wall(by_h * 3_600_000_000)
        assert sim._house is not None
        sim._house.watch_clock()
        sim.advance("210m")
        sim.check()
        sequence = cron_at[2:]
        assert repeat_at == [10.0 * n for n in range(24)]
        assert max(Counter(cron_at).values()) == 1
        assert cron_at == sorted(cron_at)
        if by_h < 0:
            assert sequence[0] == began + timedelta(minutes=45), "what has been on the wall before does not come again"
            ends = began + timedelta(minutes=31 - 60 + 210)
        else:
            assert sequence[0] == began + timedelta(hours=by_h, minutes=30), "one run for all that was jumped over"
            ends = began + timedelta(hours=by_h, minutes=31 + 210)
        assert sequence[-1] == ends - timedelta(minutes=ends.minute % 15)
        assert {b - a for a, b in pairwise(sequence)} == {timedelta(minutes=15)}
        (cron,) = [each for each in queue.schedules() if each.name == "each_quarter"]
        assert len(cron_at) + sum(cron.skipped.values()) + 1 == cron.occurrences
        assert queue.audit().is_consistent


@pytest.mark.parametrize("by_h", [-1, 1])
def test_a_crash_after_the_wall_clock_was_set_doubles_nothing(by_h: int) -> None:
    """The next engine begins at the wall clock, or at the last recorded instant if that is later."""
    queue, seen = ActionQueue(":memory:"), []

    @queue.task(name="each_minute", schedule=Cron("* * * * *", misfire="catch_up", overlap="allow"))
    def each_minute(*, ctx: Context = CONTEXT) -> None:
        seen.append(ctx.scheduled_at)

    with Simulation(queue, starts_at=datetime(2026, 1, 1, tzinfo=UTC)) as sim:
        sim.advance("10m")
        sim.time.set_wall(by_h * 3_600_000_000)
        sim.crash()
        sim.restart()
        sim.advance("2h")
        sim.check()
        ends = max(each.next_at for each in queue.schedules() if each.next_at is not None)
        assert queue.audit().is_consistent
    assert seen == [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(1, len(seen) + 1)]
    assert ends - seen[-1] == timedelta(minutes=1)
    assert len(seen) == 10 + 120 + by_h * 60
