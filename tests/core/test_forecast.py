"""Forecasts: a rehearsal goes exactly the way of the machine that it rehearses, and what is called exact is exact."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actionqueue.core.attempts import AttemptStarted, Finish
from actionqueue.core.check import fingerprint
from actionqueue.core.control import Pause
from actionqueue.core.epochs import FollowWall
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.forecast import Forecast, ForecastEntry
from actionqueue.core.foretelling import foretell
from actionqueue.core.instants import instant_us, to_datetime
from actionqueue.core.machine import Machine
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.rehearsal import Rehearsal, Watch
from actionqueue.core.rules import Rule
from actionqueue.core.spec import TaskOptions
from actionqueue.core.state import Outcome, Run
from actionqueue.core.timetables import Cron, Repeat
from actionqueue.core.what_if import change
from tests.core.random_stories import act_out, drawn
from tests.core.story import SECOND, START, Story, ids

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


class Notes(Watch):
    """Who started and ended when, by the run's id."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, bytes]] = []

    def starts(self, run: Run, now: int) -> None:
        self.seen.append((now, "starts", run.id_bytes))

    def ends(self, run: Run, event: Any) -> None:
        self.seen.append((event.at, "ends", run.id_bytes))


def takes_us(run: Run) -> int:
    """Durations that differ between handlers and runs, some of them none at all."""
    return {"h": 1_300_000, "g": 700_000}.get(run.task.handler, 0) + run.order % 5 * 400_000


def rehearsed(machine: Machine, now: int, until: int, seed: int) -> list[tuple[int, str, bytes]]:
    notes = Notes()
    rehearsal = Rehearsal(machine, now, takes_us, notes, next_id=ids(seed).next)
    rehearsal.settle()
    rehearsal.play(until)
    assert not rehearsal.is_exhausted
    return notes.seen


class Really:
    """A story whose handlers take what is expected of them: told by the log, ended by commands, as an engine does it."""

    def __init__(self, story: Story, seed: int) -> None:
        self.story = story
        story.next_id = ids(seed).next
        self.ends: list[tuple[int, int, bytes]] = []
        self.seen: list[tuple[int, str, bytes]] = []
        self.read_until = len(story.log)
        for run in story.state.runs.values():
            if run.attempt is not None:
                began = run.attempt.started_at
                self.ends.append((max(story.now, began + takes_us(run)), len(self.ends), run.id_bytes))

    def live(self, until: int) -> None:
        story = self.story
        self._step()
        while True:
            at = min(
                (
                    each
                    for each in (story.state.places.next_timer(), *(end[0] for end in self.ends))
                    if each is not None
                ),
                default=None,
            )
            if at is None or at > until:
                return
            story.now = max(at, story.now)
            self._step()

    def _step(self) -> None:
        """One step of the writer, again until it finds nothing to do."""
        story, more = self.story, True
        while more:
            story.holding = True
            for run in [run for run in story.state.runs.values() if run.attempt is not None and run.cancel is not None]:
                self._end(run, Outcome.CANCELED)
            while self.ends and min(self.ends)[0] <= story.now:
                due = min(self.ends)
                self.ends.remove(due)
                run = story.state.runs.get(due[2])
                if run is not None and run.attempt is not None:
                    self._end(run, Outcome.COMPLETED)
            story.holding = False
            events: list[Any] = []
            story.machine.start_ready(story.now, story.next_id, events)
            more = story.machine.fire_due(story.now, story.next_id, events)
            for event in events:
                if type(event) is AttemptStarted:
                    run = story.state.runs[event.run_id]
                    self.seen.append((story.now, "starts", event.run_id))
                    self.ends.append((story.now + takes_us(run), self._serial(), event.run_id))
            story._record(events)
            asked = any(run.attempt is not None and run.cancel is not None for run in story.state.runs.values())
            more = more or asked or any(end[0] <= story.now for end in self.ends)

    def _serial(self) -> int:
        return len(self.seen) + 1_000_000

    def _end(self, run: Run, outcome: Outcome) -> None:
        attempt = run.attempt
        assert attempt is not None
        self.ends = [end for end in self.ends if end[2] != run.id_bytes]
        reply = self.story.perform(Finish(run.id_bytes, attempt.id, attempt.fence, outcome))
        assert not isinstance(reply, Exception)
        self.seen.append((self.story.now, "ends", run.id_bytes))


def as_instants(seen: list[tuple[int, str, bytes]]) -> list[tuple[int, str, bytes]]:
    """In order of time; what happens at one instant, in any."""
    return sorted(seen)


@pytest.mark.parametrize("seed", range(60))
def test_a_rehearsal_starts_and_ends_the_same_runs_at_the_same_instants_as_the_machine_itself(seed: int) -> None:
    steps = drawn(seed, 40 + seed)
    story, copy = act_out(steps), act_out(steps)
    for each in (story, copy):
        if each.down:
            each.restart()
    until = story.now + 90 * SECOND
    foreseen = rehearsed(copy.machine, copy.now, until, seed)
    really = Really(story, seed)
    really.live(until)
    assert as_instants(foreseen) == as_instants(really.seen)
    assert fingerprint(copy.state) == fingerprint(story.state)


def test_stories_that_are_rehearsed_have_something_to_show() -> None:
    counts = []
    for seed in range(80):
        story = act_out(drawn(seed, 40 + seed))
        if story.down:
            story.restart()
        counts.append(len(rehearsed(story.machine, story.now, story.now + 90 * SECOND, seed)))
    assert sum(count > 20 for count in counts) > 15


# --- what if ------------------------------------------------------------------------------------------------------


def test_a_change_that_is_asked_about_does_what_making_it_does() -> None:
    def story() -> Story:
        told = Story(slots=2, checked=False)
        told.play("""
            handler g executor=main
            queue mail 1
            submit a b c d e f limits=one:1
            submit k l m n queue=mail handler=g
            submit s t u v w
        """)
        return told

    asked, made = story(), story()
    change(
        asked.machine, ["queue mail=3", "limit one=2", "handler g=1", "pause handler g", "resume handler g"], asked.now
    )
    made.set_queue("mail", 3)
    made.state.places.set_key_capacity("one", 2)
    made.register("g", concurrency=1)
    made.perform(Pause("handler", "g", "x"))
    made.play("resume handler g")
    until = made.now + 20 * SECOND
    foreseen = rehearsed(asked.machine, asked.now, until, 1)
    really = Really(made, 1)
    really.live(until)
    already = {run_id for at, kind, run_id in foreseen if kind == "starts" and at == made.now}
    assert {each[2] for each in foreseen} == {each[2] for each in really.seen} | already
    ends = [[each for each in seen if each[1] == "ends"] for seen in (foreseen, really.seen)]
    assert sorted(ends[0]) == sorted(ends[1]) != []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("concurrency=4", "there is no executor 'async'; there are: main"),
        ("queue mial=4", "there is no queue 'mial'; there are: default, mail"),
        ("queue mail=-1", "give a whole number"),
        ("limit nobody=2", "there is no key 'nobody'; there are: one"),
        ("handler h=many", "give a whole number"),
        ("pause queue", "pause what?"),
        ("pause task x", "pause what?"),
        ("resume", "not paused"),
        ("faster", "give concurrency=N"),
        ("", "give concurrency=N"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_what_there_is(text: str, told: str) -> None:
    story = Story()
    story.play("queue mail 1").play("submit a limits=one:1").play("submit b queue=mail")
    with pytest.raises(InvalidSubmission) as refusal:
        change(story.machine, [text], story.now)
    assert told in refusal.value.problems["what_if"]


# --- what is exact ------------------------------------------------------------------------------------------------


def told(story: Story, us: int, **recorded: list[int]) -> Forecast:
    return foretell(story.machine, story.now, story.now + us, recorded)


def scheduled(rule: Rule, at: datetime, **fields: Any) -> Story:
    story = Story(checked=False)
    story.now = instant_us(at)
    story.submit("s", rule=rule, **fields)
    return story


def shown(entries: tuple[ForecastEntry, ...]) -> list[str]:
    return [f"{each.at:%d %H:%M %Z}" + (f" +{each.count - 1}" if each.count > 1 else "") for each in entries]


def test_what_waits_for_an_instant_is_exact_and_in_order() -> None:
    story = Story(slots=1)
    story.play("""
        submit a expires=30s
        submit later delay=20s
        submit b expires=40s
        finish a failed
    """)
    found = told(story, MINUTE, h=[SECOND])
    kinds = [(each.kind, (instant_us(each.at) - START) // SECOND) for each in found.exact]
    assert kinds == [("retry", 10), ("scheduled", 20)], "b has started"
    assert found.exact[0].note == "attempt 2, after E"


def test_a_deadline_of_what_waits_is_exact_and_that_it_passes_is_an_estimate() -> None:
    story = Story(slots=1).play("submit a").play("submit b expires=30s")
    found = told(story, MINUTE, h=[45 * SECOND])
    assert [each.kind for each in found.exact] == ["deadline"]
    assert [each.kind for each in found.entries if not each.exact and each.name == "h"] == ["expiry"]
    in_time = told(Story(slots=1).play("submit a").play("submit b expires=30s"), MINUTE, h=[SECOND])
    assert [each.kind for each in in_time.entries if each.name == "h"] == ["start", "deadline"]


def test_of_many_runs_those_that_come_together_are_one_entry() -> None:
    story = Story(checked=False)
    for burst, minutes in enumerate((1, 20, 40)):
        story.submit(*(f"{burst}.{n}" for n in range(4 - burst)), delay_us=minutes * MINUTE)
        story.now += 1000
    found = told(story, HOUR)
    assert [(each.kind, each.count, instant_us(each.at) // MINUTE - START // MINUTE) for each in found.exact] == [
        ("scheduled", 4, 1), ("scheduled", 3, 20), ("scheduled", 2, 40),
    ]  # fmt: skip
    few = told(Story(checked=False).play("submit a b c d e delay=30s"), HOUR)
    assert [each.run is not None for each in few.exact] == [True] * 5


def test_a_time_that_does_not_exist_says_so() -> None:
    rule = Cron("30 2 * * *", timezone="Europe/Berlin").rule()
    found = told(scheduled(rule, datetime(2026, 3, 27, 12, tzinfo=UTC)), 72 * HOUR)
    assert shown(found.exact) == ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"]
    assert [each.note for each in found.exact] == [
        "",
        "02:30 does not exist that day: the clock goes forward to 03:00, and it happens then",
        "",
    ]


def test_a_time_that_comes_twice_says_when_it_happens() -> None:
    fixed = Cron("30 2 * * *", timezone="Europe/Berlin").rule()
    found = told(scheduled(fixed, datetime(2026, 10, 24, 12, tzinfo=UTC)), 48 * HOUR)
    assert shown(found.exact) == ["25 02:30 CEST", "26 02:30 CET"]
    assert found.exact[0].note == "02:30 comes twice that day, as the clock goes back; it happens the first time"
    assert found.exact[1].note == "the clock has gone back since the one before: UTC+2 then, UTC+1 now"


def test_many_occurrences_are_one_entry_except_where_the_clock_is_changed() -> None:
    rule = Cron("0 * * * *", timezone="Europe/Berlin").rule()
    found = told(scheduled(rule, datetime(2026, 10, 24, 12, tzinfo=UTC)), 24 * HOUR)
    assert shown(found.exact) == [
        "24 15:00 CEST", "24 16:00 CEST", "24 17:00 CEST", "24 18:00 CEST +7", "25 02:00 CEST", "25 02:00 CET",
        "25 03:00 CET +10",
    ]  # fmt: skip
    assert sum(each.count for each in found.exact) == 24
    assert found.exact[3].every == timedelta(hours=1)
    assert [each.note[-10:] for each in found.exact[4:6]] == ["first time", "econd time"]


def test_jitter_is_a_range_but_of_the_next_occurrence_it_is_known() -> None:
    rule = Cron("0 9 * * *", jitter="1h").rule()
    story = scheduled(rule, datetime(2026, 11, 2, 12, tzinfo=UTC))
    due = story.run("s").until
    found = told(story, 48 * HOUR)
    assert [instant_us(each.at) for each in found.exact] == [due, instant_us(datetime(2026, 11, 4, 9, tzinfo=UTC))]
    assert found.exact[0].latest is None
    assert found.exact[1].latest == datetime(2026, 11, 4, 10, tzinfo=UTC)


@pytest.mark.parametrize("shift", [-30 * MINUTE, -1, 0, 7, 20 * MINUTE])
def test_cron_is_told_by_the_wall_clock_and_in_the_order_in_which_things_happen(shift: int) -> None:
    story = scheduled(Cron("0 * * * *").rule(), datetime(2026, 11, 2, 12, 30, tzinfo=UTC))
    story.submit("r", delay_us=45 * MINUTE)
    story.perform(FollowWall(shift))
    kinds = [each.kind for each in told(story, 2 * HOUR).exact]
    again = scheduled(Cron("0 * * * *").rule(), datetime(2026, 11, 2, 12, 30, tzinfo=UTC))
    again.perform(FollowWall(shift))
    assert kinds[:2] == (["scheduled", "schedule"] if shift < -15 * MINUTE else ["schedule", "scheduled"])
    assert shown(told(again, 2 * HOUR).exact) == ["02 13:00 UTC", "02 14:00 UTC"]


def test_a_repeat_ends_with_its_count() -> None:
    story = scheduled(Repeat(8, every="1m").rule(), datetime(2026, 11, 2, 12, tzinfo=UTC))
    found = told(story, HOUR)
    assert sum(each.count for each in found.exact) == 7, "the first one is due at submission"


def test_under_a_pause_occurrences_are_held_and_nothing_is_estimated() -> None:
    story = scheduled(Cron("* * * * *").rule(), datetime(2026, 11, 2, 12, tzinfo=UTC), queue="mail")
    story.play("pause queue mail").play("submit a b queue=mail")
    found = told(story, 10 * MINUTE)
    assert {each.held_by for each in found.exact} == {"the pause of queue mail"}
    assert sum(each.count for each in found.exact) == 10
    assert [(each.by, each.waiting) for each in found.held] == [("the pause of queue mail", 2)]
    assert not [each for each in found.entries if not each.exact]


# --- what is estimated --------------------------------------------------------------------------------------------


def test_a_backlog_drains_when_its_last_run_has_started() -> None:
    story = Story(slots=2)
    story.submit(*(f"r{n}" for n in range(10)))
    found = told(story, HOUR, h=[10 * SECOND] * 5 + [11 * SECOND])
    assert found.backlogs[0].drained_at == to_datetime(story.now - (story.now - START) + 40 * SECOND)
    assert found.backlogs[0].waiting == 8
    assert [(each.executor, each.most) for each in found.peaks] == [("main", 2)]
    assert [(each.handler, each.takes, each.recorded) for each in found.durations] == [("h", timedelta(seconds=10), 6)]


def test_what_fell_due_a_moment_ago_is_counted_once() -> None:
    story = Story(slots=1).play("submit a").play("submit b c delay=1s")
    story.now += 2 * SECOND  # and nobody has looked since
    found = told(story, MINUTE, h=[10 * SECOND])
    assert (found.backlogs[0].waiting, found.backlogs[0].left) == (2, 0)
    assert found.backlogs[0].drained_at == to_datetime(START + 20 * SECOND)


def test_without_a_recorded_duration_one_is_assumed_and_that_is_said() -> None:
    found = told(Story(slots=1).play("submit a b"), MINUTE)
    assert [(each.takes, each.recorded) for each in found.durations] == [(timedelta(seconds=1), 0)]
    assert "assumed: none is recorded" in str(found)


def test_what_runs_already_ends_after_what_is_left_of_its_time() -> None:
    story = Story(slots=1).play("submit a b").play("tick 7s")
    assert told(story, MINUTE, h=[10 * SECOND]).backlogs[0].drained_at == to_datetime(START + 10 * SECOND)


def test_a_key_and_a_rate_catch_up_when_nobody_waits_for_them() -> None:
    story = Story(slots=10)
    story.submit("a", "b", "c", options=TaskOptions(limits=(KeyNeed("mail", 1),)))
    story.submit("d", "e", "f", options=TaskOptions(rates=(RateNeed("sms", 1, 5 * SECOND, 1),)))
    found = {(each.kind, each.name): each for each in told(story, MINUTE, h=[4 * SECOND]).backlogs}
    assert found["key", "mail"].drained_at == to_datetime(START + 8 * SECOND)
    assert found["rate", "sms"].drained_at == to_datetime(START + 10 * SECOND)


def test_a_backlog_grows_when_more_arrives_than_starts() -> None:
    story = Story(slots=1, checked=False)
    story.submit("s", rule=Repeat(1000, every="1s").rule())
    found = told(story, 10 * MINUTE, h=[2 * SECOND])
    assert found.backlogs[0].grows
    assert "grows" in str(found)
    assert not told(Story(slots=1).play("submit a b c"), MINUTE).backlogs[0].grows


@pytest.mark.parametrize("policy", ["skip", "queue", "allow", "cancel_running"])
def test_a_schedule_that_takes_longer_than_its_interval_meets_itself(policy: str) -> None:
    rule = Cron("* * * * *", overlap=policy).rule()
    story = scheduled(rule, datetime(2026, 11, 2, 12, 0, 1, tzinfo=UTC))
    found = told(story, 10 * MINUTE, h=[90 * SECOND])
    assert [(each.policy, each.first_at) for each in found.overlaps] == [
        (policy, datetime(2026, 11, 2, 12, 2, tzinfo=UTC))
    ]
    assert found.overlaps[0].count == {"skip": 5, "queue": 9, "allow": 9, "cancel_running": 9}[policy]
    assert not told(scheduled(rule, datetime(2026, 11, 2, 12, tzinfo=UTC)), 10 * MINUTE, h=[50 * SECOND]).overlaps


def test_too_much_to_happen_ends_the_estimates_and_not_what_is_known() -> None:
    story = scheduled(Cron("* * * * * *").rule(), datetime(2026, 11, 2, 12, tzinfo=UTC))
    found = foretell(story.machine, story.now, story.now + HOUR, {"h": [1000]}, events_max=300)
    assert found.reached < found.until
    assert sum(each.count for each in found.exact) == 3600
    assert "the estimates end at" in str(found)


def test_a_load_is_told_for_every_interval() -> None:
    story = Story(slots=2)
    story.submit(*(f"r{n}" for n in range(4)))
    load = told(story, 40 * SECOND, h=[10 * SECOND]).load
    assert (load[0].running, load[0].waiting) == (2, 2)
    assert (load[100].running, load[100].waiting) == (2, 0)
    assert (load[-1].running, load[-1].waiting) == (0, 0)
    assert len(load) == 240


def test_forecasts_of_one_state_are_the_same() -> None:
    chance = random.Random(3)
    steps = drawn(chance.randrange(100), 60)
    first, second = (told(act_out(steps), MINUTE, h=[SECOND]) for _ in range(2))
    assert first == second
