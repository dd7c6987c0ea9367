"""What operators do: cancel at three levels, reschedule, reprioritize, pause and resume; and deadlines to start."""

from __future__ import annotations

from typing import Any

import pytest

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.control import (
    CancelRequested,
    CancelRun,
    CancelTask,
    Pause,
    Paused,
    Reprioritize,
    Reschedule,
    Resume,
    Resumed,
    RunCanceled,
    TaskCanceled,
)
from actionqueue.core.epochs import Close, EngineClosed, Prune, Touch
from actionqueue.core.errors import (
    Conflict,
    InvalidSubmission,
    NotReschedulable,
    UnknownRun,
    UnknownTask,
)
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.machine import DUE_RUNS_PER_STEP_MAX, Event, Machine
from actionqueue.core.reasons import Where
from actionqueue.core.spec import PRIORITY_MAX, PRIORITY_MIN
from actionqueue.core.state import CancelMark, Outcome
from actionqueue.core.submission import RunAdded, Submit
from tests.core.story import SECOND, START, TERMS, Story, play

# Stories that bring the run ``a`` to each place where it is not running.
WAYS = {
    "scheduled": "submit a delay=30s",
    "ready": "executor main 0\nsubmit a",
    "ready, handler missing": "submit a handler=missing",
    "ready, paused": "pause queue default\nsubmit a",
    "ready, misfit": "submit a\nfinish a misfit",
    "ready, set aside": "submit b a\ncrash\nrestart\ntick 10s\ncrash\nrestart\ntick 10s",
    "retry_wait": "submit a\nfinish a failed",
    "scheduled, held": "submit a delay=1s\npause queue default\ntick 5s",
    "scheduled, due while the engine is paused": "submit a delay=1s\npause engine\ntick 5s",
    "retry_wait, held": "submit a\nfinish a failed\npause handler h\ntick 30s",
}
every_waiting_place = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
then_a_crash_or_not = pytest.mark.parametrize("then", ["", "crash\nrestart", "project\ncrash\nrestart"])


# --- cancel --------------------------------------------------------------------------------------------------------


@every_waiting_place
@pytest.mark.parametrize("how", ["cancel", "kill", "abandon"])
@then_a_crash_or_not
def test_what_does_not_run_is_canceled_at_once(way: str, how: str, then: str) -> None:
    """cancellation/01, cancellation/04, wal_replay#21, state_transitions#10, section 5 number 44."""
    story = play(way)

    story.play(f"cancel a how={how} by=me\nexpect a canceled reason=canceled\n{then}")

    assert story.run("a").cancel == CancelMark(story.now, "me", "cancel")
    story.play("tick 1d\nexpect a canceled")


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_what_runs_is_asked_to_stop_and_keeps_its_slot_until_it_has(how: str) -> None:
    story = play(f"""
        executor main 1
        submit a b
        cancel a how={how} by=me
        expect a running
        expect b ready
    """)
    assert story.log[-1] == CancelRequested(START, story.id("a"), how, "me")
    assert story.run("a").cancel == CancelMark(START, "me", how)
    story.play("""
        finish a canceled
        expect a canceled attempts=1
        expect b running
    """)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("completed", "completed"),
        ("failed", "canceled"),
        ("terminal", "canceled"),
        ("timed_out", "canceled"),
        ("snoozed", "canceled"),
        ("interrupted", "canceled"),
        ("canceled", "canceled"),
        ("lost", "canceled"),
    ],
)
@then_a_crash_or_not
def test_a_result_wins_over_a_cancel_and_nothing_else_does(outcome: str, state: str, then: str) -> None:
    """SEMANTICS section 6: completed with the request kept; everything else is canceled, without a retry."""
    story = play(f"submit a\ncancel a by=me\nfinish a {outcome}\n{then}\ntick 1d\nexpect a {state} attempts=1")

    cancel = story.run("a").cancel
    assert cancel is not None
    assert cancel.by == "me"


def test_a_run_that_was_being_canceled_when_the_engine_died_is_canceled() -> None:
    play("""
        submit a
        cancel a
        project
        crash
        restart
        expect a canceled lost=1 reason=canceled
    """)


def test_a_canceled_attempt_nobody_asked_for_ends_its_run_canceled() -> None:
    play("submit a\nfinish a canceled\nexpect a canceled failures=0")


def test_to_abandon_drops_the_grant_now_and_records_who_asked() -> None:
    story = play("executor main 1\nsubmit a b\nproject\ncancel a how=abandon by=me")

    story.play("expect a canceled reason=abandoned\nexpect b running")
    event = story.log[-2]
    assert isinstance(event, AttemptFinished)
    assert (event.outcome, event.abandoned, event.by) == (Outcome.CANCELED, True, "me")
    assert story.run("a").cancel == CancelMark(START, "me", "abandon")
    closed = story.run("a").latest
    assert closed is not None
    assert closed.abandoned


def test_a_cancel_can_be_made_firmer_but_not_gentler() -> None:
    story = play("submit a\ncancel a by=first")

    assert story.perform(CancelRun(story.id("a"), "cancel", "second")) is False
    assert story.perform(CancelRun(story.id("a"), "kill", "third")) is True
    for how in ("cancel", "kill"):
        assert story.perform(CancelRun(story.id("a"), how, "fourth")) is False
    assert story.run("a").cancel == CancelMark(START, "third", "kill")
    assert story.perform(CancelRun(story.id("a"), "abandon", "fifth")) is True
    story.play("expect a canceled")


@then_a_crash_or_not
def test_canceling_what_is_canceled_is_a_success_that_changes_nothing(then: str) -> None:
    story = play(f"submit a delay=5s\ncancel a\n{then}")
    before = len(story.log)

    assert story.perform(CancelRun(story.id("a"))) is False
    assert story.perform(CancelTask(story.task_id("a"))) == 0

    assert len(story.log) == before


@pytest.mark.parametrize("end", ["completed", "terminal"])
@then_a_crash_or_not
def test_a_terminal_run_is_final(end: str, then: str) -> None:
    """cancellation/02, negative_transitions/01, negative_transitions/02, negative_transitions/03."""
    play(
        f"""
        submit a
        finish a {end}
        {then}
        refused AlreadyTerminal: cancel a
        refused AlreadyTerminal: cancel a how=abandon
        refused AlreadyTerminal: reschedule a 5s
        refused AlreadyTerminal: reprioritize a 5
    """.replace("project\ncrash", "project\n        crash")
    )


def test_commands_about_unknown_runs_and_tasks_are_refused() -> None:
    """mutation_authority#8."""
    story = Story()
    nobody = story.next_id(START)

    story.refused(CancelRun(nobody), UnknownRun)
    story.refused(CancelTask(nobody), UnknownTask)
    story.refused(Reschedule(nobody, START), UnknownRun)
    story.refused(Reprioritize(nobody, 1), UnknownRun)


@pytest.mark.parametrize("how", ["", "softly", "KILL"])
def test_an_unknown_way_to_cancel_is_refused(how: str) -> None:
    story = play("submit a")

    story.refused(CancelRun(story.id("a"), how), InvalidSubmission)
    story.refused(CancelTask(story.task_id("a"), how), InvalidSubmission)


# --- cancel a task -------------------------------------------------------------------------------------------------


@every_waiting_place
def test_to_cancel_a_task_cancels_its_waiting_run(way: str) -> None:
    """mutation_authority#7, wal_replay#22, hierarchy_lifecycle/01 for the task's own runs, section 5 number 44."""
    story = play(way)

    assert story.perform(CancelTask(story.task_id("a"), by="me")) == 1

    story.play("expect a canceled reason=canceled\nproject")
    assert story.tables.tasks[story.task_id("a")][13] == story.now
    assert story.run("a").cancel == CancelMark(story.now, "me", "cancel")


def task_with_runs(*states: str) -> Story:
    """A task with several live runs, which no command of this version makes, but the events allow."""
    story = play("pause engine\nsubmit a")
    for n, state in enumerate(states[1:], 1):
        name = f"a{n}"
        story.names[name] = (story.task_id("a"), story.next_id(START))
        due_at = START + 30 * SECOND if state == "scheduled" else START
        event = RunAdded(START, story.task_id("a"), story.id(name), due_at, story.id("a"), story.id(name), 0, "me")
        story.machine.apply(event)
        story._record([event])
    story.play("resume engine")
    assert [str(run.state) for run in story.state.tasks[story.task_id("a")].live_runs()] == list(states)
    return story


def test_to_cancel_a_task_covers_all_its_live_runs_in_one_event() -> None:
    """mutation_authority#9, wal_replay#23: the first cancel's instant is kept."""
    story = task_with_runs("running", "scheduled", "running")
    story.play("tick 1s\ncancel_task a by=me")
    assert story.log[-1] == TaskCanceled(START + SECOND, story.task_id("a"), "cancel", "me")

    story.play("""
        expect a running
        expect a1 canceled
        expect a2 running
        tick 1s
    """)
    assert story.perform(CancelTask(story.task_id("a"))) == 0, "all that is left is being canceled"
    assert story.perform(CancelTask(story.task_id("a"), "kill", "other")) == 2
    assert story.run("a").cancel == CancelMark(START + 2 * SECOND, "other", "kill")
    story.play("finish a completed\nfinish a2 failed\nexpect a completed\nexpect a2 canceled\nproject")
    row = story.tables.tasks[story.task_id("a")]
    assert row[8:14] == (3, 1, 0, 2, START + 2 * SECOND, START + SECOND)


def test_a_gentle_cancel_of_the_task_does_not_soften_a_kill() -> None:
    story = task_with_runs("running", "running")
    story.play("cancel a how=kill by=first\ncancel_task a by=second")

    assert story.run("a").cancel == CancelMark(START, "first", "kill")
    assert story.run("a1").cancel == CancelMark(START, "second", "cancel")


def test_to_abandon_a_task_drops_every_grant() -> None:
    story = task_with_runs("running", "scheduled", "running")

    story.play("cancel_task a how=abandon by=me")

    for name in ("a", "a1", "a2"):
        story.play(f"expect {name} canceled")
    assert story.state.tasks == {}
    assert [type(event) for event in story.log[-3:]] == [TaskCanceled, AttemptFinished, AttemptFinished]


def test_the_runs_of_a_task_leave_it_in_any_order() -> None:
    for order in ("a a1 a2", "a2 a1 a", "a1 a a2", "a1 a2 a"):
        story = task_with_runs("running", "running", "running")
        for name in order.split():
            story.play(f"finish {name} completed")
        assert story.state.tasks == {}


@then_a_crash_or_not
def test_the_cancel_of_a_task_is_written_with_it_and_with_its_running_run(then: str) -> None:
    story = play("submit a\nproject\ncancel_task a how=kill by=me\nproject")

    row = story.tables.tasks[story.task_id("a")]
    loaded = story.tables.load()

    assert row[13] == START
    assert loaded.runs[story.id("a")].cancel == CancelMark(START, "me", "kill")
    story.play(f"{then}\ntick 0s")
    if then:
        story.play("expect a canceled lost=1")


# --- reschedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for state, way in WAYS.items() if not state.startswith("ready")])
@then_a_crash_or_not
def test_what_waits_for_an_instant_can_be_given_another(way: str, then: str) -> None:
    story = play(
        f"{way}\nresume engine\nresume queue default\nresume handler h".replace("tick 5s", "").replace("30s", "3s")
    )

    story.play(f"reschedule a 7s\n{then}")

    story.advance(7 * SECOND - 1)
    assert story.where("a") is Where.TIMER
    story.advance(1)
    story.play("expect a running")


def test_a_scheduled_runs_new_instant_is_the_one_it_is_scheduled_at() -> None:
    story = play("submit a delay=30s\nsubmit b\nfinish b failed\nreschedule a 5s\nreschedule b 5s")

    assert story.run("a").scheduled_at == START + 5 * SECOND
    assert story.run("b").scheduled_at == START, "a retry's delay moves, not what it was scheduled for"


def test_what_a_pause_holds_can_be_moved_away_and_comes_back() -> None:
    play("""
        submit a delay=1s
        pause queue default
        tick 5s
        expect a scheduled place=held
        reschedule a 10s
        expect a scheduled place=timer until=10s
        resume queue default
        expect a scheduled
        tick 10s
        expect a running
    """)


def test_an_instant_that_has_passed_means_now() -> None:
    story = play("submit a delay=30s\ntick 5s")

    story.perform(Reschedule(story.id("a"), START))

    story.play("expect a running")
    assert story.run("a").scheduled_at == START + 5 * SECOND


def test_only_what_waits_for_an_instant_can_be_rescheduled() -> None:
    play("""
        executor main 1
        submit a b
        refused NotReschedulable: reschedule a 5s
        refused NotReschedulable: reschedule b 5s
    """)
    story = play("submit a")
    refusal = story.refused(Reschedule(story.id("a"), START), NotReschedulable)
    assert (refusal.run_id.bytes, refusal.state) == (story.id("a"), "running")


@pytest.mark.parametrize("due_at", [-1, SUBMIT_INSTANT_MAX + 1])
def test_an_impossible_instant_is_refused(due_at: int) -> None:
    story = play("submit a delay=30s")

    story.refused(Reschedule(story.id("a"), due_at), InvalidSubmission)


# --- reprioritize --------------------------------------------------------------------------------------------------


def test_a_ready_run_moves_in_its_lane_at_once() -> None:
    story = play("""
        executor main 0
        submit a b c
        reprioritize c 5
        reprioritize a -5
        expect c ready priority=5
        reprioritize b 9
        reprioritize b 0
        reprioritize b 9
        reprioritize b 0
        executor main 1
        finish c completed
        finish b completed
        started c b a
    """)
    assert story.run("a").priority == -5


def test_a_reprioritized_run_keeps_its_place_among_its_equals() -> None:
    """First ready first out: a was ready first."""
    play("""
        executor main 0
        submit a b priority=1
        reprioritize a 0
        reprioritize a 1
        executor main 1
        started a
    """)


@then_a_crash_or_not
def test_what_is_not_ready_takes_its_priority_at_its_next_promotion(then: str) -> None:
    story = play(f"""
        submit a delay=5s
        submit b delay=5s
        submit r priority=1
        reprioritize b 3
        reprioritize r 8
        expect b scheduled priority=0
        expect r running priority=1
        finish r snoozed after=1d
        {then.replace(chr(10), chr(10) + "        ")}
        executor main 0
        tick 5s
        expect b ready priority=3
        executor main 1
    """)
    assert story.run("r").priority == 8
    assert story.started[-1] == story.id("b")


@pytest.mark.parametrize("priority", [PRIORITY_MIN - 1, PRIORITY_MAX + 1])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    story = play("executor main 0\nsubmit a")

    story.refused(Reprioritize(story.id("a"), priority), InvalidSubmission)
    story.perform(Reprioritize(story.id("a"), PRIORITY_MIN))
    story.perform(Reprioritize(story.id("a"), PRIORITY_MAX))


# --- pause and resume ----------------------------------------------------------------------------------------------

SCOPES = ["engine", "queue default", "handler h"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("then", ["", "crash\nrestart", "project\ncrash\nrestart"])
def test_under_a_pause_nothing_is_promoted_or_started(scope: str, then: str) -> None:
    """SEMANTICS section 8; section 5 number 43, engine_lifecycle#2, multi_mutation_session/01, wal_replay#2."""
    story = play(f"""
        submit due delay=5s
        submit tried
        finish tried failed
        pause {scope} by=me
        submit now
        tick 20s
        expect due scheduled waits=Paused
        expect tried retry_wait waits=Paused
        expect now ready waits=Paused
    """)
    story.play(then)
    story.play(f"""
        expect due scheduled waits=Paused
        expect tried retry_wait waits=Paused
        expect now ready waits=Paused
        tick 1h
        expect due scheduled
        resume {scope}
        expect due running
        expect tried running
        expect now running
    """)


@pytest.mark.parametrize("scope", SCOPES)
def test_running_work_goes_on_under_a_pause(scope: str) -> None:
    play(f"""
        submit a b c
        pause {scope}
        finish a completed
        expect a completed
        finish b failed
        expect b retry_wait
        cancel c
        finish c failed
        expect c canceled
        tick 10s
        expect b retry_wait waits=Paused
    """)


def test_a_pause_of_a_queue_or_handler_leaves_the_others_alone() -> None:
    play("""
        pause queue mail
        pause handler g
        handler g
        submit a
        submit b queue=mail
        submit c handler=g
        submit d queue=sms handler=g
        expect a running
        expect b ready waits=Paused
        expect c ready waits=Paused
        expect d ready waits=Paused
        resume handler g
        expect c running
        expect d running
        expect b ready
    """)


def test_overlapping_pauses_hold_until_the_last_is_lifted() -> None:
    play("""
        pause engine
        pause queue default
        pause handler h
        submit a
        submit b delay=1s
        tick 5s
        resume queue default
        expect a ready waits=Paused
        resume engine
        expect a ready waits=Paused
        expect b scheduled waits=Paused
        pause queue default
        resume handler h
        expect b scheduled waits=Paused
        resume queue default
        expect a running
        expect b running
    """)


def test_resuming_catches_up_by_priority_then_by_who_was_due_first() -> None:
    play("""
        executor main 1
        pause queue default
        submit late delay=3s
        submit early delay=2s
        submit first delay=4s priority=1
        tick 10s
        started
        resume queue default
        finish first completed
        finish early completed
        started first early late
    """)


def test_pausing_what_is_paused_and_resuming_what_is_not_changes_nothing() -> None:
    """mutation_authority#22, mutation_authority#23, mutation_authority#24, wal_replay#3, wal_replay#4."""
    story = Story()
    before = len(story.log)

    assert story.perform(Resume()) is False
    assert story.perform(Pause(by="first")) is True
    assert story.perform(Pause(by="second")) is False
    assert story.state.pauses["engine", ""].by == "first"
    assert story.perform(Resume(by="third")) is True
    assert story.perform(Resume()) is False

    assert story.log[before:] == [Paused(START, "engine", "", "first"), Resumed(START, "engine", "", "third")]


@pytest.mark.parametrize(
    ("scope", "name"),
    [("engine", "x"), ("queue", ""), ("handler", ""), ("task", "t"), ("", ""), ("queue", "a\nb"), ("queue", "\ud800")],
)
def test_a_scope_that_does_not_exist_is_refused(scope: str, name: str) -> None:
    story = Story()

    story.refused(Pause(scope, name), InvalidSubmission)
    story.refused(Resume(scope, name), InvalidSubmission)


def test_a_queue_of_many_that_fell_due_under_a_pause_catches_up_completely() -> None:
    story = Story(slots=5)
    story.submit(*[f"t{n}" for n in range(40)], delay_us=SECOND)
    story.play("pause engine\ntick 5s\nresume engine")
    for _ in range(8):
        for name in [name for name in story.names if story.where(name) is Where.RUNNING]:
            story.play(f"finish {name} completed")

    assert not story.state.runs


# --- deadlines to start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        "submit a expires=5s delay=30s",
        "executor main 0\nsubmit a expires=5s",
        "submit a expires=5s handler=missing",
        "pause engine\nsubmit a expires=5s",
        "pause queue default\nsubmit a expires=5s delay=1s",
        "submit a expires=5s\nfinish a misfit\ncrash\nrestart\nfinish a completed\nsubmit a expires=5s delay=30s",
    ],
)
@then_a_crash_or_not
def test_what_has_not_started_by_its_deadline_is_canceled(way: str, then: str) -> None:
    story = play(f"{way}\n{then}")

    story.advance(5 * SECOND - 1)
    assert not story.run("a").is_terminal
    story.advance(1)

    story.play("expect a canceled reason=expired attempts=0")
    assert story.log[-1] == RunCanceled(story.now, story.id("a"), "expired")
    assert story.run("a").cancel is None


def test_what_started_in_time_does_not_expire() -> None:
    play("""
        submit a b expires=5s
        finish b failed
        crash
        restart
        tick 5s
        expect a retry_wait
        tick 5s
        expect a running
        expect b running
    """)


def test_at_the_very_instant_of_its_deadline_a_run_is_too_late() -> None:
    play("""
        submit a expires=5s delay=5s
        tick 5s
        expect a canceled reason=expired
    """)
    story = play("executor main 1\nsubmit a\nsubmit b expires=5s")
    story.now += 5 * SECOND
    story.play("finish a completed\nexpect b canceled reason=expired attempts=0")


def test_no_run_starts_while_older_deadlines_wait_to_be_looked_at() -> None:
    """More runs than one step looks at have passed their deadline, and as many are due at the same time."""
    for first in ("start_ready", "fire_due"):
        story = Story(slots=1, checked=False)
        count = 2 * DUE_RUNS_PER_STEP_MAX + 1
        story.submit(*[f"t{n}" for n in range(count)], delay_us=SECOND, expires_us=2 * SECOND)
        story.now += 3 * SECOND
        events: list[Event] = []

        getattr(story.machine, first)(story.now, story.next_id, events)
        story.jump(0)

        assert {type(event) for event in events} == {RunCanceled}
        assert story.started == []
        assert story.state.counts == [0] * 9 + [count]


def test_more_runs_fall_due_at_once_than_one_step_takes() -> None:
    story = Story(slots=1, checked=False)
    count = 2 * DUE_RUNS_PER_STEP_MAX + 1
    story.submit(*[f"t{n}" for n in range(count)], delay_us=SECOND)
    events: list[Event] = []
    story.now += SECOND

    more = [story.machine.fire_due(story.now, story.next_id, events) for _ in range(3)]

    assert more == [True, True, False]
    assert story.state.counts[:4] == [0, count - 1, 0, 1]


def test_no_deadline_passes_while_the_clock_is_in_doubt() -> None:
    story = play("submit a delay=30s expires=5s\nsubmit b delay=20s")
    story.state.places.timers.suspended = True

    assert story.state.places.next_timer() == START + 20 * SECOND
    story.play("tick 10s\nexpect a scheduled")
    story.state.places.timers.suspended = False
    story.play("jump 0s\nexpect a canceled reason=expired")


# --- the engine's own ----------------------------------------------------------------------------------------------


def test_pruning_takes_the_counts_along() -> None:
    story = Story(checked=False)
    story.submit("a", "b", "c", "d")
    story.play("finish a completed\nfinish b completed\nfinish c terminal\ncancel d\nfinish d failed")

    story.perform(Prune(3, 1, 1, 1, START + 9))
    story.perform(Prune(1, 1, 0, 0, START + 5))

    assert story.state.counts == [0] * 10
    assert (story.state.tasks_total, story.state.pruned_before) == (0, START + 9)


def test_what_has_had_a_run_since_it_was_chosen_is_not_pruned() -> None:
    story = play("submit a b\nfinish a terminal\nfinish b completed")
    both, chosen = [story.task_id("a"), story.task_id("b")], story.state.last_seq

    story.play("retry a as again")
    story.refused(Prune(2, 1, 1, 0, START, both, chosen), Conflict)
    story.play("finish again terminal")
    story.refused(Prune(2, 1, 1, 0, START, both, chosen), Conflict)

    story.checked = False
    assert story.perform(Prune(2, 1, 2, 0, START, both, story.state.last_seq)) is None
    assert story.state.counts == [0] * 10


def test_touching_changes_nothing_and_closing_says_so() -> None:
    story = Story()
    story.project()
    before = len(story.log)

    assert story.perform(Touch()) is None
    assert len(story.log) == before
    story.perform(Close())

    assert story.log[before:] == [EngineClosed(START)]
    for state in (story.state, story.rebuilt()):
        assert state.epoch is not None
        assert state.epoch.closed
    story.project()
    assert story.tables.load().epoch == story.state.epoch


def test_each_opening_begins_an_epoch() -> None:
    story = play("crash\nrestart\ncrash\nrestart")

    epoch = story.state.epoch

    assert epoch is not None
    assert (epoch.number, epoch.closed) == (3, False)


@pytest.mark.parametrize(
    "command",
    [
        Submit([]),
        Pause(),
        Resume(),
        CancelRun(b"x" * 16),
        CancelTask(b"x" * 16),
        Reprioritize(b"x" * 16, 1),
        Touch(),
    ],
    ids=lambda command: type(command).__name__,
)
def test_any_command_can_be_given_to_an_empty_machine(command: Any) -> None:
    machine = Machine()
    machine.state.places.set_executor("main", 1)
    machine.state.places.register("h", "main", TERMS)

    machine.perform(command, START)

    assert machine.state.runs == {}
