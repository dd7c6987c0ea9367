"""Schedules in the core: which occurrences get a run, which are skipped and why, and that all are accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core import occurrences, schedules, zones
from actionqueue.core.check import check
from actionqueue.core.control import CancelRun, CancelTask, Pause, Resume
from actionqueue.core.epochs import Declare, FollowWall
from actionqueue.core.errors import Conflict, InvalidSubmission, NotFound, Overloaded
from actionqueue.core.ids import NIL
from actionqueue.core.occurrences import CATCH_UP_RUNS_MAX, QUEUED_MAX
from actionqueue.core.reasons import HandlerMissing, PreviousLive, Where
from actionqueue.core.rules import CronRule, RepeatRule, Rule, timetable
from actionqueue.core.schedules import (
    AskBackfill,
    OccurrencesSkipped,
    PutSchedule,
    Retire,
    RunDerived,
    ScheduleRetired,
    Trigger,
)
from actionqueue.core.spec import Submission
from actionqueue.core.state import Declaration, Outcome, Run, Schedule
from actionqueue.core.submission import Submit, TaskSubmitted
from actionqueue.core.why import reason_in
from tests.core.story import SECOND, START, Story

MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND


def repeat(count: int, every_us: int = 10 * SECOND, **fields: Any) -> RepeatRule:
    """Every so often, by the defaults of ``Repeat``."""
    given = {
        "misfire": "catch_up",
        "grace_us": MINUTE,
        "window_us": None,
        "overlap": "allow",
        "first_us": None,
    } | fields
    return RepeatRule(count=count, every_us=every_us, **given)


def cron(expression: str = "* * * * *", timezone: str = "UTC", **fields: Any) -> CronRule:
    """By the defaults of ``Cron``."""
    given = {
        "max_occurrences": None, "starts_us": None, "ends_us": None, "jitter_us": 0, "misfire": "coalesce",
        "grace_us": MINUTE, "window_us": None, "overlap": "skip",
    } | fields  # fmt: skip
    return CronRule(expression=expression, timezone=timezone, **given)


def scheduled(story: Story, name: str, rule: Rule, **fields: Any) -> Schedule:
    """Submit a schedule whose first run is called ``name``."""
    reply = story.perform(Submit([story.item(name, rule=rule, **fields)]))
    assert isinstance(reply, list), reply
    return story.state.schedules[story.task_id(name)]


def runs_of(story: Story, schedule: Schedule) -> list[Run]:
    """All runs of it that were ever seen, by their nominal instants."""
    found = [run for run in story.seen.values() if run.task_id_bytes == schedule.task_id]
    return sorted(found, key=lambda run: (run.scheduled_at, run.order))


def nominals(story: Story, schedule: Schedule) -> list[int]:
    """Seconds after the start at which its runs are nominally due, all but the pending one."""
    return [
        (run.scheduled_at - START) // SECOND for run in runs_of(story, schedule) if run.id_bytes != schedule.pending
    ]


def finish_all(story: Story) -> None:
    """Whatever runs completes."""
    running = [run for run in story.state.runs.values() if run.where is Where.RUNNING]
    for run in running:
        if run.attempt is not None:
            story.names.setdefault(run.id_bytes.hex(), (run.task_id_bytes, run.id_bytes))
            story.finish(run.id_bytes.hex())


# --- one ahead ------------------------------------------------------------------------------------------------------


def test_a_schedule_has_one_run_ahead_and_no_more() -> None:
    """section 5 number 33 (repeat): a hundred thousand runs cost the memory of one."""
    story = Story()
    schedule = scheduled(story, "a", repeat(100_000, first_us=START + HOUR))

    assert len(story.state.runs) == 1
    assert story.run("a").state.value == "scheduled"
    assert story.run("a").scheduled_at == START + HOUR
    assert (schedule.index, schedule.pending, schedule.over) == (1, story.id("a"), False)


def test_each_occurrence_runs_at_its_instant_once() -> None:
    """repeat_accounting/01, derive_repeat#1, derive_repeat#4: from the origin, not from the last run."""
    story = Story()
    schedule = scheduled(story, "a", repeat(3, MINUTE))
    finish_all(story)
    for _ in range(5):
        story.advance(MINUTE - 7)
        finish_all(story)

    assert nominals(story, schedule) == [0, 60, 120]
    assert [run.state.value for run in runs_of(story, schedule)] == ["completed"] * 3
    assert [run.attempt_count for run in runs_of(story, schedule)] == [1] * 3
    assert story.task_id("a") not in story.state.tasks
    assert not story.state.schedules


def test_cron_begins_after_its_submission() -> None:
    story = Story()
    schedule = scheduled(story, "a", cron())

    first = story.run("a").scheduled_at

    assert START < first <= START + MINUTE
    assert first % MINUTE == 0
    assert schedule.cursor == first


def test_a_schedule_that_never_occurs_is_refused() -> None:
    story = Story()

    refusal = story.refused(Submit([story.item("a", rule=cron(ends_us=START + 1))]), InvalidSubmission)

    assert set(refusal.problems) == {"schedule"}


def test_the_last_occurrence_is_known_when_it_is_derived() -> None:
    """cron_scheduling/02, cron_scheduling/03: the cap wins, and the task finishes with its last run."""
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * * *", max_occurrences=2, overlap="allow"))
    assert not schedule.over

    story.advance(SECOND)
    assert schedule.over
    finish_all(story)
    story.advance(SECOND)
    finish_all(story)
    story.advance(DAY)

    assert [run.state.value for run in runs_of(story, schedule)] == ["completed", "completed"]
    assert not story.state.tasks


def test_a_run_ahead_that_is_canceled_makes_room_for_the_next() -> None:
    story = Story()
    schedule = scheduled(story, "a", repeat(3, MINUTE, first_us=START + MINUTE))

    story.play("cancel a")

    assert (schedule.index, story.run("a").state.value) == (2, "canceled")
    assert schedule.cursor == START + 2 * MINUTE


def test_a_run_ahead_that_is_moved_stands_for_its_occurrence_all_the_same() -> None:
    story = Story()
    schedule = scheduled(story, "a", repeat(3, MINUTE, first_us=START + MINUTE))

    story.play("reschedule a 10m")
    story.advance(3 * MINUTE)

    assert story.where("a") is Where.TIMER
    assert (schedule.index, schedule.over, len(story.started)) == (3, True, 2)


def test_canceling_the_task_ends_the_schedule() -> None:
    """section 5 number 44 (schedules), section 5 number 30 (cancel)."""
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * * *"))
    story.advance(SECOND)

    story.perform(CancelTask(story.task_id("a"), by="me"))
    finish_all(story)
    story.advance(MINUTE)

    assert not story.state.tasks
    assert (schedule.over, schedule.retired_by) == (True, "me")
    assert len(runs_of(story, schedule)) == 2


def test_jitter_moves_when_an_occurrence_is_due_and_not_what_it_is() -> None:
    story = Story()
    scheduled(story, "a", cron("* * * * *", jitter_us=20 * SECOND))
    run = story.run("a")

    assert run.scheduled_at % MINUTE == 0
    assert 0 <= run.until - run.scheduled_at < 20 * SECOND
    due = run.until
    story.advance(due - story.now - 1)
    assert story.started == []
    story.advance(1)
    assert story.started == [run.id_bytes]


def test_a_deadline_to_start_counts_from_each_occurrence() -> None:
    story = Story(slots=0)
    schedule = scheduled(story, "a", repeat(3, MINUTE, first_us=START + MINUTE), expires_us=10 * SECOND)

    story.advance(5 * MINUTE)

    assert [run.reason for run in runs_of(story, schedule)] == ["expired"] * 3
    assert not story.state.tasks


# --- misfire --------------------------------------------------------------------------------------------------------


def missed(rule: Rule, down_us: int, **fields: Any) -> tuple[Story, Schedule]:
    """A schedule, and a crash for so long."""
    story = Story()
    scheduled(story, "a", rule, **fields)
    story.project()
    story.crash()
    story.now += down_us
    story.restart()
    found = story.state.schedules.get(story.task_id("a")) or story.state.dirty_schedules[story.task_id("a")]
    return story, found


def test_catch_up_runs_all_that_were_missed() -> None:
    """misfire/01, misfire/03."""
    story, schedule = missed(repeat(5, SECOND, first_us=START + SECOND), HOUR)

    assert nominals(story, schedule) == [1, 2, 3, 4, 5]
    assert len(story.started) == 5


def test_only_what_is_due_is_caught_up() -> None:
    """misfire/02."""
    story, schedule = missed(repeat(5, 100 * SECOND, first_us=START + 100 * SECOND), 250 * SECOND)

    assert nominals(story, schedule) == [100, 200]
    assert story.state.runs[schedule.pending or b""].scheduled_at == START + 300 * SECOND


def test_the_predicate_is_due_at_or_before_now() -> None:
    """misfire/04."""
    story = Story()
    scheduled(story, "a", repeat(2, 10 * SECOND, first_us=START + 10 * SECOND))
    story.advance(10 * SECOND - 1)
    assert story.started == []
    story.advance(1)
    assert len(story.started) == 1


def test_catch_up_goes_no_further_back_than_its_window() -> None:
    story, schedule = missed(repeat(100, MINUTE, first_us=START + MINUTE, window_us=5 * MINUTE), 30 * MINUTE)

    assert nominals(story, schedule)[0] == 25 * 60
    assert schedule.skipped == {"window": 24}
    assert schedule.last_skip is not None
    assert (schedule.last_skip.count, schedule.last_skip.first) == (24, START + MINUTE)
    assert schedule.last_skip.last == START + 24 * MINUTE


def test_coalesce_makes_one_run_for_all() -> None:
    story, schedule = missed(cron(), 30 * MINUTE)

    started = [story.seen[run_id] for run_id in story.started]

    assert [run.scheduled_at for run in started] == [(START + 30 * MINUTE) // MINUTE * MINUTE]
    assert schedule.skipped == {"coalesced": 29}


def test_skip_runs_none_that_is_late() -> None:
    story, schedule = missed(cron(misfire="skip", overlap="allow"), 30 * MINUTE)

    assert schedule.skipped == {"misfire": 29}
    assert len(story.started) == 1  # the latest is within the grace of a minute


def test_within_the_grace_nothing_is_missed() -> None:
    story, schedule = missed(cron("* * * * * *", misfire="skip", overlap="allow"), 30 * SECOND)

    assert len(story.started) == 30
    assert schedule.skipped == {}


def test_all_that_is_left_being_skipped_ends_the_schedule() -> None:
    story, _ = missed(repeat(4, MINUTE, first_us=START + MINUTE, misfire="skip"), DAY)

    run = story.run("a")

    assert (run.state.value, run.reason, run.scheduled_at) == ("canceled", "misfire", START + 4 * MINUTE)
    assert not story.state.tasks
    skipped = [event for event in story.log if type(event) is OccurrencesSkipped]
    assert [(event.count, event.ends) for event in skipped] == [(3, True)]


def test_what_a_pause_held_is_missed_too() -> None:
    """section 5 number 43: the pause survives a restart, and what it held follows the misfire rules."""
    story = Story()
    schedule = scheduled(story, "a", cron())
    story.perform(Pause("queue", "default"))
    story.advance(10 * MINUTE)
    assert story.where("a") is Where.HELD
    story.project()
    story.crash()
    story.restart()
    assert story.started == []

    story.perform(Resume("queue", "default"))

    schedule = story.state.schedules[schedule.task_id]
    assert len(story.started) == 1
    assert schedule.skipped == {"coalesced": 9}


def test_ten_years_of_seconds_are_dealt_with_in_a_few_events() -> None:
    """section 5 number 30: every second, down for ten years."""
    for misfire in ("coalesce", "skip", "catch_up"):
        story, schedule = missed(
            cron(
                "* * * * * *",
                misfire=misfire,
                window_us=10 * SECOND if misfire == "catch_up" else None,
                overlap="allow",
            ),
            3_652 * DAY,
        )
        since = [event for event in story.log if isinstance(event, OccurrencesSkipped | RunDerived)]

        assert len(since) < 150, misfire
        assert sum(schedule.skipped.values()) > 3_650 * 86_400, misfire
        assert len(runs_of(story, schedule)) + sum(schedule.skipped.values()) == schedule.index


def test_catching_up_keeps_a_bounded_number_of_runs() -> None:
    """section 5 number 30, number 33: what is to be caught up is derived as runs end."""
    story, schedule = missed(repeat(1_000, SECOND, first_us=START + SECOND), DAY)
    assert len(story.state.runs) <= CATCH_UP_RUNS_MAX + 1
    for _ in range(50):
        finish_all(story)

    assert nominals(story, schedule) == list(range(1, 1_001))
    assert not story.state.tasks


# --- overlap --------------------------------------------------------------------------------------------------------


def overlapping(overlap: str, *, seconds: int = 3) -> tuple[Story, Schedule]:
    """Every second, and the first run does not end."""
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * * *", overlap=overlap))
    story.advance(seconds * SECOND)
    return story, schedule


def test_overlapping_runs_are_allowed() -> None:
    story, _ = overlapping("allow")
    assert len(story.started) == 3


def test_an_occurrence_is_skipped_while_the_one_before_goes_on() -> None:
    story, schedule = overlapping("skip")
    assert (len(story.started), schedule.skipped) == (1, {"overlap": 2})

    finish_all(story)
    story.advance(SECOND)

    assert nominals(story, schedule) == [1, 4]


def test_occurrences_queue_behind_the_one_before() -> None:
    story, schedule = overlapping("queue")
    waiting = [run for run in story.state.runs.values() if run.where is Where.OVERLAP]
    assert (len(story.started), len(waiting)) == (1, 2)
    reason = reason_in(story.state, max(waiting, key=lambda run: run.order), story.now)
    assert isinstance(reason, PreviousLive)
    assert {each.bytes for each in reason.previous} == {
        story.started[0],
        min(waiting, key=lambda run: run.order).id_bytes,
    }

    for n in (2, 3):
        finish_all(story)
        assert len(story.started) == n
    assert nominals(story, schedule) == [1, 2, 3]


def test_so_many_may_queue_and_no_more() -> None:
    story = Story(checked=False)
    schedule = scheduled(story, "a", cron("* * * * * *", overlap="queue"))

    story.advance((QUEUED_MAX + 11) * SECOND)

    assert len(schedule.waiting) == QUEUED_MAX
    assert schedule.skipped == {"queue_full": 10}
    assert not check(story.state)


def test_the_one_before_is_canceled_and_the_next_starts_when_it_has_ended() -> None:
    story, schedule = overlapping("cancel_running", seconds=2)
    first = story.seen[story.started[0]]
    assert first.cancel is not None
    assert first.cancel.by == "schedule"
    assert len(story.started) == 1

    story.finish("a", Outcome.CANCELED)

    assert first.state.value == "canceled"
    assert nominals(story, schedule) == [1, 2]
    assert len(story.started) == 2


def test_the_newest_replaces_one_that_waits_for_what_does_not_end() -> None:
    story, schedule = overlapping("cancel_running", seconds=4)

    waiting = [run for run in story.state.runs.values() if run.where is Where.OVERLAP]

    assert len(waiting) == 1
    assert [run.reason for run in runs_of(story, schedule) if run.is_terminal] == ["overlap", "overlap"]


def test_a_queued_occurrence_waits_over_a_crash_and_is_no_misfire() -> None:
    story, schedule = overlapping("queue", seconds=2)
    story.project()
    story.crash()
    story.now += DAY
    story.restart()
    schedule = story.state.schedules[schedule.task_id]
    assert story.where("a") is Where.TIMER  # lost, it backs off
    story.advance(10 * SECOND)
    story.finish("a")

    assert len(story.started) == 3  # the lost one twice, then the one that waited
    assert set(schedule.skipped) == {"coalesced"}


# --- no handler -----------------------------------------------------------------------------------------------------


def test_without_its_handler_a_schedule_waits_with_one_run() -> None:
    """The occurrences of a handler that is not registered wait on ``handler``, and coalesce."""
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * * *", overlap="allow"), handler="gone")

    story.advance(10 * SECOND)

    assert story.reason("a") == HandlerMissing("gone")
    assert schedule.skipped == {"handler": 9}
    story.register("gone")
    assert story.started == [story.id("a")]


# --- a name ---------------------------------------------------------------------------------------------------------


def named(story: Story, name: str, rule: Rule, content: bytes = b"c", handler: str = "h") -> Submission:
    item = story.item(f"{name}-{content.decode()}-{len(story.names)}", handler, rule=rule, content=content)
    item.schedule_name, item.schedule_origin = name, "call"
    return item


def test_the_same_schedule_again_changes_nothing() -> None:
    story = Story()
    first = story.perform(PutSchedule(named(story, "daily", cron())))
    last_seq = story.state.last_seq

    again = story.perform(PutSchedule(named(story, "daily", cron())))

    assert (first[0][2], again[0][2]) == (True, False)
    assert again[0][:2] == first[0][:2]
    assert story.state.last_seq == last_seq


def test_another_rule_under_the_name_replaces_it_without_a_gap() -> None:
    """What was due up to then belongs to the old one, what comes after to the new one."""
    story = Story()
    old = story.perform(PutSchedule(named(story, "n", cron("*/10 * * * * *", overlap="allow"))))[0]
    story.advance(25 * SECOND)
    story.perform(Pause())
    story.advance(10 * SECOND)  # one occurrence of the old one is due now, and held

    new = story.perform(PutSchedule(named(story, "n", cron("*/5 * * * * *", overlap="allow"), b"d")))[0]
    story.perform(Resume())
    story.advance(10 * SECOND)

    schedule = story.state.schedules[new[0]]
    assert old[0] != new[0]
    assert story.state.schedule_names == {"n": schedule}
    started = [(story.seen[run_id].task_id_bytes == new[0], (story.seen[run_id].scheduled_at - START) // SECOND)
               for run_id in story.started]  # fmt: skip
    ticks = [second for second in range(1, 46) if (START // SECOND + second) % 10 == 0]
    assert [second for is_new, second in started if not is_new] == [each for each in ticks if each <= 35]
    assert [second for is_new, second in started if is_new] == [
        second for second in range(36, 46) if (START // SECOND + second) % 5 == 0
    ]


def test_a_schedule_begins_when_it_is_read_however_long_ago_it_was_sent() -> None:
    """From another process: else what was due in between would happen by the rule it replaces, and by it."""
    story = Story()
    story.perform(PutSchedule(named(story, "n", cron("*/10 * * * * *", overlap="allow")), at=START - MINUTE))
    assert story.state.schedule_names["n"].base == START
    story.advance(25 * SECOND)
    finish_all(story)

    new = story.perform(PutSchedule(named(story, "n", cron("*/5 * * * * *", overlap="allow"), b"d"), at=START))[0]
    story.advance(20 * SECOND)

    counted = Counter(story.seen[run_id].scheduled_at for run_id in story.started)
    assert max(counted.values()) == 1
    assert story.state.schedules[new[0]].base == START + 25 * SECOND
    refused = story.refused(PutSchedule(named(story, "n", repeat(0), b"e"), at=START), InvalidSubmission)
    assert refused.problems, "what another process made is validated"


def test_a_name_of_another_handler_or_of_a_decorator_is_refused() -> None:
    story = Story()
    story.perform(PutSchedule(named(story, "daily", cron())))
    story.refused(PutSchedule(named(story, "daily", cron(), handler="other")), Conflict)
    declared = named(story, "h", cron())
    declared.schedule_origin = "code"
    story.perform(Declare([Declaration("h")], [declared]))
    story.refused(PutSchedule(named(story, "h", cron(), b"other")), Conflict)


def test_a_name_is_given_by_no_other_way() -> None:
    """Another process could take a name from the schedule that stands under it."""
    story = Story()
    story.perform(PutSchedule(named(story, "daily", cron())))

    refusal = story.refused(Submit([named(story, "daily", cron(), b"other")]), InvalidSubmission)

    assert set(refusal.problems) == {"name"}
    assert len(story.state.schedules) == 1


def test_what_decorators_say_is_what_there_is() -> None:
    """A new schedule, the same again, another rule, and none any more."""
    story = Story()

    def start(rule: Rule | None, content: bytes = b"c") -> None:
        items = []
        if rule is not None:
            item = named(story, "h", rule, content)
            item.schedule_origin = "code"
            items = [item]
        story.perform(Declare([Declaration("h")], items))
        story.project()
        story.crash()
        story.restart()

    start(cron())
    first = story.state.schedule_names["h"]
    start(cron())
    assert story.state.schedule_names["h"].task_id == first.task_id
    start(cron("*/2 * * * *"), b"other")
    second = story.state.schedule_names["h"]
    assert second.task_id != first.task_id
    assert list(story.state.schedules) == [second.task_id]
    story.perform(Declare([Declaration("g")]))  # another handler, without a schedule: not its business
    assert story.state.schedule_names
    start(None)
    assert not story.state.schedule_names
    assert [event.reason for event in story.log if type(event) is ScheduleRetired] == ["replaced", "undeclared"]
    assert not story.state.tasks


def test_a_finished_schedule_keeps_its_name_so_that_no_start_begins_it_again() -> None:
    story = Story()

    def start() -> None:
        item = named(story, "h", repeat(2, SECOND))
        item.schedule_origin = "code"
        story.perform(Declare([Declaration("h")], [item]))

    start()
    for _ in range(3):
        finish_all(story)
        story.advance(SECOND)
    assert not story.state.tasks
    story.project()
    story.crash()
    story.restart()

    start()

    assert not story.state.tasks
    assert sum(type(event) is TaskSubmitted for event in story.log) == 1


def test_retiring_ends_what_is_to_come() -> None:
    story = Story()
    story.perform(PutSchedule(named(story, "n", cron("* * * * * *", overlap="allow"))))
    story.advance(2 * SECOND)

    story.perform(Retire("n", "me"))
    story.advance(MINUTE)
    assert len(story.started) == 2
    finish_all(story)

    assert not story.state.tasks
    assert not story.state.schedules
    story.refused(Retire("n"), NotFound)


# --- asked for ------------------------------------------------------------------------------------------------------


def test_a_run_out_of_turn_changes_nothing_else() -> None:
    story = Story()
    schedule = scheduled(story, "a", cron())
    before = (schedule.index, schedule.cursor, schedule.pending)

    run_id = story.next_id(story.now)
    story.perform(Trigger(schedule.task_id.hex(), run_id, "me"))

    assert story.started == [run_id]
    assert (schedule.index, schedule.cursor, schedule.pending, schedule.requested) == (*before, 1)
    lineage = story.state.runs[run_id].lineage
    assert lineage is not None
    assert (lineage.retry_of, lineage.by) == (None, "me")
    story.refused(Trigger("nobody", story.next_id(story.now)), NotFound)
    story.refused(Trigger(schedule.task_id.hex(), run_id), InvalidSubmission)


def test_a_run_out_of_turn_counts_among_the_live_ones() -> None:
    story = Story(slots=0, live_runs_max=2)
    schedule = scheduled(story, "a", cron())
    story.perform(Trigger(schedule.task_id.hex(), story.next_id(story.now)))

    story.refused(Trigger(schedule.task_id.hex(), story.next_id(story.now)), Overloaded)


def test_what_skips_or_coalesces_goes_on_however_many_runs_are_live() -> None:
    story = Story(slots=0, checked=False)
    schedule = scheduled(story, "a", cron("* * * * * *", misfire="skip", overlap="allow"))
    story.perform(AskBackfill(schedule.task_id.hex(), START - HOUR, START))
    story.perform(Trigger(schedule.task_id.hex(), story.next_id(story.now)))
    assert len(story.state.runs) == CATCH_UP_RUNS_MAX + 1
    story.holding = True  # as in a drain: nothing is derived any more
    story.play("cancel a")
    story.holding = False
    story.crash()
    story.now += DAY
    story.restart()

    schedule = story.state.schedules[schedule.task_id]
    assert schedule.pending is not None
    assert sum(schedule.skipped.values()) > 86_000


def test_a_range_is_filled_a_few_runs_at_a_time_oldest_first() -> None:
    story = Story(checked=False)
    schedule = scheduled(story, "a", cron(overlap="allow"))

    count = story.perform(AskBackfill(schedule.task_id.hex(), START - DAY, START, "me"))

    assert count == 1_440
    assert len(story.state.runs) <= CATCH_UP_RUNS_MAX + 1
    for _ in range(20):
        finish_all(story)
    filled = [run.scheduled_at for run in runs_of(story, schedule) if run.lineage is not None]
    times = timetable(schedule.rule, START - DAY - 1)
    assert len(filled) == len(set(filled)) == 1_440
    assert filled[0] == times.next_after(START - DAY - 1)
    assert (schedule.requested, schedule.backfills) == (1_440, [])


def test_a_range_of_what_is_canceled_is_not_filled_any_more() -> None:
    story = Story(slots=0, checked=False)
    schedule = scheduled(story, "a", cron(overlap="allow"))
    story.perform(AskBackfill(schedule.task_id.hex(), START - DAY, START))
    made = len(story.state.runs) - 1

    story.perform(CancelTask(schedule.task_id))

    assert (schedule.requested, schedule.backfills) == (made, [])
    assert not story.state.tasks


@pytest.mark.parametrize(("since", "until"), [(START, START), (START - DAY, START + DAY), (-1, START)])
def test_a_range_that_has_not_passed_is_refused(since: int, until: int) -> None:
    story = Story()
    schedule = scheduled(story, "a", cron())
    story.refused(AskBackfill(schedule.task_id.hex(), since, until), InvalidSubmission)


def test_a_range_of_too_many_runs_is_refused() -> None:
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * * *"))
    story.refused(AskBackfill(schedule.task_id.hex(), START - 100 * DAY, START), InvalidSubmission)


# --- the wall clock is set ------------------------------------------------------------------------------------------


def test_cron_follows_the_wall_clock_when_it_is_set_and_repeat_elapsed_time() -> None:
    """section 5 number 26: back and forward by an hour; the nominal times that are recorded do not go back."""
    story = Story()
    by_cron = scheduled(story, "a", cron("*/10 * * * * *", overlap="allow", misfire="catch_up"))
    by_repeat = scheduled(story, "b", repeat(1_000, first_us=START + 10 * SECOND))
    story.advance(30 * SECOND)
    assert (len(nominals(story, by_cron)), len(nominals(story, by_repeat))) == (3, 3)

    story.perform(FollowWall(-HOUR))
    story.advance(HOUR - SECOND)
    before = nominals(story, by_cron)
    assert len(before) == 3, "those times have been on the wall before"
    assert len(nominals(story, by_repeat)) == 3 + 359
    story.advance(31 * SECOND)
    assert nominals(story, by_cron) == [before[0] + 10 * n for n in range(6)]

    story.perform(FollowWall(0))
    for _ in range(10):
        finish_all(story)
    assert len(nominals(story, by_cron)) == 6 + 360, "what the clock jumped over is missed, and caught up"
    assert schedule_is_whole(by_cron)


def test_what_a_clock_that_is_set_forward_jumps_over_is_missed() -> None:
    story = Story()
    schedule = scheduled(story, "a", cron("* * * * *"))
    story.advance(MINUTE)

    story.perform(FollowWall(30 * DAY))

    assert (len(story.started), sum(schedule.skipped.values())) == (1, 30 * 1_440)
    assert schedule.skipped == {"coalesced": 30 * 1_440 - 1, "overlap": 1}, "one for all, and the one before goes on"
    finish_all(story)
    story.advance(2 * MINUTE)
    assert story.seen[story.started[-1]].scheduled_at > START + 30 * DAY
    assert schedule_is_whole(schedule)


def schedule_is_whole(schedule: Schedule) -> bool:
    """Counted anew: every occurrence up to the last one is accounted for."""
    return timetable(schedule.rule, schedule.base).count(schedule.base, schedule.cursor) == schedule.index


# --- whatever happens -----------------------------------------------------------------------------------------------

RULES = st.builds(
    lambda kind, misfire, overlap, window: (
        cron("*/3 * * * * *", misfire=misfire, overlap=overlap, window_us=window, grace_us=2 * SECOND)
        if kind
        else repeat(50, 3 * SECOND, misfire=misfire, overlap=overlap, window_us=window, grace_us=2 * SECOND)
    ),
    st.booleans(),
    st.sampled_from(["catch_up", "coalesce", "skip"]),
    st.sampled_from(["allow", "queue", "skip", "cancel_running"]),
    st.sampled_from([None, 9 * SECOND]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["advance", "jump", "crash", "restart", "finish", "pause", "resume"]), st.integers(1, 20)
    ),
    max_size=25,
)


@given(RULES, STEPS)
def test_each_occurrence_has_one_run_or_is_skipped_whatever_happens(rule: Rule, steps: list[tuple[str, int]]) -> None:
    """section 5 number 29: never two runs for one nominal time, never an occurrence lost, across restarts anywhere."""
    story = Story(checked=False)
    scheduled(story, "a", rule)
    task_id = story.task_id("a")
    for kind, seconds in steps:
        _act(story, kind, seconds)
    schedule = story.state.schedules.get(task_id)
    if schedule is None:
        return

    runs = runs_of(story, schedule)
    counted = Counter(run.scheduled_at for run in runs)
    assert max(counted.values()) == 1
    times = timetable(rule, START)
    assert all(times.last_until(run.scheduled_at) == run.scheduled_at for run in runs)
    assert len(runs) + sum(schedule.skipped.values()) == schedule.index
    begins = START if isinstance(rule, CronRule) else START - 1
    assert times.count(begins, schedule.cursor) == schedule.index
    assert not check(story.state)


def _act(story: Story, kind: str, seconds: int) -> None:
    if kind == "advance":
        story.advance(seconds * SECOND)
    elif kind == "jump":
        story.jump(seconds * SECOND)
    elif kind == "crash":
        if seconds % 2:
            story.project()
        story.crash()
        story.now += seconds * SECOND
        story.restart()
    elif kind == "restart":
        finish_all(story)
        if not any(run.where is Where.RUNNING for run in story.state.runs.values()):
            story.restart()
    elif kind == "finish":
        finish_all(story)
    else:
        story.perform(Pause() if kind == "pause" else Resume())


# --- between the end of a run and the next one ---------------------------------------------------------------------


def without_a_run(**fields: Any) -> tuple[Story, Schedule]:
    """A schedule whose only run was canceled by a command of the same turn: the next one is not derived yet."""
    story = Story()
    schedule = scheduled(story, "a", cron(), content=b"x", **fields)
    story.holding = True
    story.perform(CancelRun(story.id("a")))
    assert story.state.tasks[schedule.task_id].head is None
    return story, schedule


def test_a_schedule_without_a_live_run_is_found_by_its_key() -> None:
    story, schedule = without_a_run(key="k")

    reply = story.perform(Submit([story.item("b", rule=cron(), key="k", content=b"x")]))

    assert reply == [(schedule.task_id, NIL, False)]  # its run was written meanwhile, and has left memory


def test_a_schedule_without_a_run_ahead_is_found_by_its_name() -> None:
    story = Story()
    item = story.item("a", rule=repeat(1), content=b"x", schedule_name="s", schedule_origin="call")
    story.perform(PutSchedule(item))
    same = story.item("b", rule=repeat(1), content=b"x", schedule_name="s", schedule_origin="call")

    assert story.perform(PutSchedule(same)) == [(story.task_id("a"), story.id("a"), False)]

    finish_all(story)
    assert story.perform(PutSchedule(same)) == [(story.task_id("a"), NIL, False)]


def test_canceling_the_task_ends_a_schedule_that_has_no_run_at_the_moment() -> None:
    story, schedule = without_a_run()

    assert story.perform(CancelTask(schedule.task_id, by="me")) == 0
    story.holding = False
    story.advance(DAY)

    assert not story.state.tasks
    assert not story.state.schedules
    assert (schedule.over, len(story.seen), story.started) == (True, 1, [])


def test_canceling_the_task_ends_a_schedule_whose_runs_are_being_stopped_all() -> None:
    story = Story()
    schedule = scheduled(story, "a", cron(overlap="allow", misfire="catch_up"))
    story.advance(MINUTE)
    story.holding = True
    story.perform(CancelRun(story.id("a")))
    assert schedule.pending is not None
    story.perform(CancelRun(schedule.pending))

    assert story.perform(CancelTask(schedule.task_id, by="me")) == 0
    story.holding = False
    story.advance(DAY)

    assert (schedule.over, list(story.state.runs)) == (True, [story.id("a")])


def test_a_backfill_that_waits_does_not_keep_the_next_occurrence_from_being_derived() -> None:
    story = Story(slots=0)
    schedule = scheduled(story, "a", cron(overlap="allow"))
    story.perform(AskBackfill(schedule.task_id.hex(), START - DAY, START))
    assert len(story.state.runs) == CATCH_UP_RUNS_MAX
    assert schedule.catching_up

    story.advance(HOUR)

    assert (schedule.index, schedule.skipped) == (61, {})
    assert len(story.state.runs) == CATCH_UP_RUNS_MAX + 60


# --- zone data of another machine ---------------------------------------------------------------------------------------


def forget_zones() -> None:
    """What was derived from zone data is derived anew."""
    for each in (zones.zone, zones.stretches, schedules._next_of_cron):
        each.cache_clear()


@pytest.fixture
def no_zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it, and this machine knows no zone but UTC."""

    def only_utc(name: str) -> ZoneInfo:
        if name != "UTC":
            raise ZoneInfoNotFoundError(name)
        return ZoneInfo(name)

    def take_away() -> None:
        monkeypatch.setattr(zones, "ZoneInfo", only_utc)
        forget_zones()

    yield take_away
    monkeypatch.undo()
    forget_zones()


def test_where_its_zone_is_not_known_a_schedule_waits_and_the_others_go_on(
    no_zones: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that another machine opens: what was derived happens, and nothing is lost for the machine before."""
    story = Story()
    here, there = cron("0 * * * *"), cron("0 * * * *", "Europe/Berlin", misfire="catch_up", overlap="allow")
    other = scheduled(story, "a", here)
    schedule = scheduled(story, "b", there)
    no_zones()

    finish_for(story, 5 * HOUR)
    assert (schedule.index, schedule.pending, other.index) == (1, None, 6)
    assert story.run("b").state.value == "completed"
    story.refused(AskBackfill(schedule.task_id.hex(), START - HOUR, START), InvalidSubmission)

    story.crash()
    monkeypatch.undo()
    forget_zones()
    story.restart()
    finish_for(story, HOUR)
    assert [each - nominals(story, schedule)[0] for each in nominals(story, schedule)] == [n * 3600 for n in range(7)]


def test_a_schedule_whose_zone_is_not_known_can_be_retired(no_zones: Callable[[], None]) -> None:
    story = Story()
    schedule = scheduled(story, "a", cron("0 * * * *", "Europe/Berlin"))
    no_zones()
    story.advance(HOUR)

    story.perform(Retire(schedule.task_id.hex()))
    finish_all(story)

    assert not story.state.tasks


def test_a_next_occurrence_that_is_none_any_more_ends_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zone data changed between its derivation and the next: there was to be one more."""
    story = Story()
    schedule = scheduled(story, "a", cron("0 * * * *", ends_us=START + 2 * HOUR))
    assert not schedule.over
    monkeypatch.setattr(occurrences, "next_of", lambda *_: None)

    finish_for(story, 5 * HOUR)

    assert not story.state.tasks
    assert (schedule.over, schedule.index) == (True, 1)


def finish_for(story: Story, us: int) -> None:
    """Time passes, and whatever starts completes."""
    until = story.now + us
    finish_all(story)
    while (at := story.state.places.next_timer()) is not None and at <= until:
        story.advance(at - story.now)
        finish_all(story)
    story.advance(until - story.now)
