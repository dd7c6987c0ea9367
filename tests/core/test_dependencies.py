"""Dependencies in the core: when a task may start that waits for others, and what becomes of it where they end badly."""

from __future__ import annotations

import random

import pytest

from actionqueue.core.check import fingerprint
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.errors import (
    AlreadyTerminal,
    Conflict,
    DependencyCycle,
    InvalidSubmission,
    NotRetryable,
    Overloaded,
    UnknownTask,
)
from actionqueue.core.ids import TaskId
from actionqueue.core.reasons import TasksComplete, WaitsForTasks, Where, canceled_by, release_of
from actionqueue.core.rules import CronRule, RepeatRule
from actionqueue.core.spec import Depends, OutputPlace
from actionqueue.core.state import Outcome
from actionqueue.core.submission import RetryRun, Submit
from tests.core.story import SECOND, Story, play

CRON = CronRule("* * * * * *", "UTC", None, None, None, 0, "coalesce", 60 * SECOND, None, "skip")


def test_a_task_starts_when_everything_it_depends_on_has_completed() -> None:
    play(
        """
        submit a b
        submit c after=a,b
        expect c scheduled place=dependency waits=WaitsForTasks
        finish a completed
        expect c scheduled place=dependency
        started a b
        finish b completed
        expect c running
        started c
        """
    )


@pytest.mark.parametrize("cut", range(9))
def test_a_graph_goes_on_where_it_was_after_a_crash_at_any_point(cut: int) -> None:
    """Section 5 number 50; and what the original got wrong: a graph half done opened too early, or never again."""
    story = Story()
    steps = ["submit a", "submit b after=a", "submit d", "submit c after=b,d", "finish a completed", "finish d completed",
             "finish b completed", "finish c completed"]  # fmt: skip
    for n, step in enumerate([*steps, "tick 1s"]):
        if n == cut:
            for line in ("project",) * (n % 2) + ("crash", "restart", "tick 10s"):
                story.play(line)
            lost = {name for name in story.names if story.run(name).lost_count}
            assert lost <= {"a", "b", "c", "d"}
        story.play(step)
        if "c" in story.names:
            done = {name for name in ("b", "d") if story.run(name).is_terminal}
            assert (story.run("c").attempt_count > 0) == (done == {"b", "d"})
    assert [str(story.run(name).state) for name in "abcd"] == ["completed"] * 4


def test_a_diamond_waits_for_both_of_its_sides() -> None:
    play(
        """
        submit top
        submit left right after=top
        submit bottom after=left,right
        finish top completed
        finish left completed
        expect bottom scheduled place=dependency
        finish right completed
        expect bottom running
        """
    )


def test_what_has_ended_already_is_not_waited_for() -> None:
    play(
        """
        submit a
        finish a completed
        project
        submit b after=a
        expect b running
        submit c
        finish c terminal
        submit d after=c on_failure=run
        expect d running
        submit e after=c
        expect e canceled
        """
    )


def test_a_failure_cancels_what_depends_on_it_and_names_where_it_began() -> None:
    story = play(
        """
        submit a
        submit b after=a
        submit c after=b
        submit other
        submit d after=c,other
        submit goes_on after=b on_failure=run
        finish a terminal
        expect b canceled
        expect c canceled
        expect d canceled
        expect other running
        expect goes_on running
        """
    )
    assert {story.run(name).reason for name in "bcd"} == {canceled_by(story.task_id("a"))}


@pytest.mark.parametrize("end", ["cancel a", "cancel_task a", "finish a terminal", "cancel a how=abandon"])
def test_however_a_dependency_ends_badly_is_noticed(end: str) -> None:
    story = play("submit a\nsubmit b after=a")
    story.play(end)
    if story.run("a").attempt is not None:
        story.play("finish a canceled")

    assert str(story.run("b").state) == "canceled"


def test_a_dependency_that_expires_cancels_its_dependents_and_whatever_expires_with_it() -> None:
    play(
        """
        queue full 1
        submit holder queue=full
        submit a queue=full expires=5s
        submit b after=a expires=5s
        tick 5s
        expect a canceled reason=expired
        expect b canceled
        """
    )


def test_a_deadline_to_start_passes_while_a_task_waits() -> None:
    play(
        """
        submit a
        submit b after=a expires=5s
        submit c after=b on_failure=run
        tick 5s
        expect b canceled reason=expired
        expect c running
        """
    )


def test_a_delay_and_a_dependency_are_both_waited_for() -> None:
    play(
        """
        submit a b
        submit c delay=10s after=a
        submit d delay=10s after=b
        finish a completed
        expect c scheduled place=timer until=10s
        tick 10s
        expect c running
        expect d scheduled place=dependency
        finish b completed
        expect d running
        """
    )


def test_a_task_that_waits_can_be_rescheduled_reprioritized_and_paused() -> None:
    play(
        """
        submit a
        submit b after=a
        reschedule b 20s
        reprioritize b 7
        pause task b
        finish a completed
        tick 30s
        expect b scheduled place=held
        resume task b
        expect b running priority=7
        """
    )


def test_a_task_of_several_runs_is_complete_when_the_newest_of_each_chain_is() -> None:
    """Section 5 number 49."""
    story = Story()
    repeat = RepeatRule(3, 10 * SECOND, None, "catch_up", 60 * SECOND, None, "allow")
    story.perform(Submit([story.item("a", rule=repeat)]))
    story.play("submit strict after=a\nsubmit partial after=a partial=yes\nsubmit failed after=a on_failure=run")
    first = story.state.runs[story.id("a")]
    story.advance(10 * SECOND)
    story.advance(10 * SECOND)
    runs = [first, *(run for run in story.state.tasks[story.task_id("a")].live_runs() if run is not first)]
    for n, run in enumerate(runs):
        assert run.attempt is not None
        outcome = Outcome.FAILED if n == 1 else Outcome.COMPLETED
        story.names[f"run{n}"] = (run.task_id_bytes, run.id_bytes)
        story.play("expect strict scheduled place=dependency")
        story.finish(f"run{n}", outcome, terminal=True)

    story.play("expect strict canceled\nexpect partial running\nexpect failed running")
    story.names["again"] = (story.task_id("a"), story.next_id(story.now))
    story.perform(RetryRun(story.id("run1"), story.id("again")))
    story.finish("again")
    story.play("submit afterwards after=a\nexpect afterwards running")


def test_an_endless_schedule_cannot_be_depended_on() -> None:
    story = Story()
    story.perform(Submit([story.item("cron", rule=CRON)]))
    command = Submit([story.item("b", depends=Depends((story.task_id("cron"),)))])

    assert "without an end" in story.refused(command, InvalidSubmission).message


def test_a_schedule_cannot_depend_on_others() -> None:
    story = play("submit a")
    command = Submit([story.item("b", rule=CRON, depends=Depends((story.task_id("a"),)))], at=1)

    assert "schedule" in story.refused(command, InvalidSubmission).problems


# --- what is refused --------------------------------------------------------------------------------------------


def test_a_circle_in_one_submission_is_refused_with_its_path() -> None:
    story = Story()
    a, b, c = story.item("a"), story.item("b"), story.item("c")
    a.depends, b.depends, c.depends = Depends((c.task_id,)), Depends((a.task_id,)), Depends((b.task_id,))

    refusal = story.refused(Submit([a, b, c, story.item("d")]), DependencyCycle)

    path = refusal.path.split(" -> ")
    assert path[0] == path[-1]
    assert {str(TaskId(bytes=each.task_id)) for each in (a, b, c)} == set(path)
    assert not story.state.tasks


def test_a_task_cannot_depend_on_itself() -> None:
    story = Story()
    item = story.item("a")
    item.depends = Depends((item.task_id,))

    assert story.refused(Submit([item]), DependencyCycle)


def test_what_comes_later_in_a_submission_can_be_depended_on() -> None:
    story = Story()
    first, last = story.item("first"), story.item("last")
    first.depends = Depends((last.task_id,))
    story.perform(Submit([first, last]))

    story.play("expect first scheduled place=dependency\nfinish last completed\nexpect first running")


def test_an_unknown_dependency_refuses_the_whole_submission() -> None:
    story = Story()
    items = [story.item("a"), story.item("b", depends=Depends((story.next_id(story.now),)))]

    assert story.refused(Submit(items), UnknownTask)
    assert not story.state.tasks


def test_in_one_submission_what_depends_on_what_is_canceled_at_once_is_canceled_too() -> None:
    story = play("submit a\nfinish a terminal")
    b, c, d = story.item("b"), story.item("c"), story.item("d")
    b.depends = Depends((story.task_id("a"),))
    c.depends = Depends((b.task_id,))
    d.depends = Depends((c.task_id,), "run")
    story.perform(Submit([d, c, b]))

    story.play("expect b canceled\nexpect c canceled\nexpect d running")
    assert story.run("c").reason == canceled_by(story.task_id("a"))


def test_two_that_turn_out_to_be_one_task_are_waited_for_once() -> None:
    story = Story()
    first = story.item("first", key="k", content=b"x")
    story.perform(Submit([first]))
    again, more = (story.item(name, key="k", content=b"x") for name in ("again", "more"))
    places = (OutputPlace(("a",), 0), OutputPlace(("b",), 1), OutputPlace(("c",), 2))
    other = story.item("other")
    last = story.item("last", depends=Depends((again.task_id, other.task_id, more.task_id), outputs=places))
    story.perform(Submit([again, more, other, last]))

    depends = story.state.tasks[last.task_id].extra.depends

    assert depends is not None
    assert depends.on == (first.task_id, other.task_id)
    assert [place.upstream for place in depends.outputs] == [0, 1, 0]
    story.finish("first")
    story.finish("other")
    assert story.where("last") is Where.RUNNING


def test_an_overloaded_engine_takes_no_graph() -> None:
    story = Story(live_runs_max=2)
    a = story.item("a")
    items = [a, *(story.item(f"b{n}", depends=Depends((a.task_id,))) for n in range(2))]

    assert story.refused(Submit(items), Overloaded)


# --- added later ------------------------------------------------------------------------------------------------


def test_a_task_that_has_not_started_can_be_made_to_wait() -> None:
    """Section 5 number 48."""
    play(
        """
        submit a
        submit later delay=1h
        depend later a
        expect later scheduled place=dependency
        queue full 1
        submit holder ready queue=full
        expect ready ready
        depend ready a
        expect ready ready place=dependency waits=WaitsForTasks
        finish holder completed
        expect ready ready place=dependency
        project
        crash
        restart
        tick 10s
        finish a completed
        expect ready running
        expect later scheduled place=timer
        """
    )


def test_adding_what_has_ended_changes_what_it_should() -> None:
    play(
        """
        submit good bad
        finish good completed
        finish bad terminal
        submit a b c delay=1h
        depend a good
        expect a scheduled place=timer
        depend b bad
        expect b canceled
        submit x delay=1h after=good on_failure=run
        depend x bad
        expect x scheduled place=timer
        refused AlreadyTerminal: depend good a
        """
    )


def test_what_has_started_or_ended_or_is_a_schedule_cannot_be_made_to_wait() -> None:
    story = play("submit a b c\nfinish c completed\nproject")
    story.perform(Submit([story.item("cron", rule=CRON)]))

    def add(name: str, *on: str) -> AddDependencies:
        return AddDependencies(story.task_id(name), tuple(story.task_id(each) for each in on))

    story.refused(add("a", "b"), Conflict)
    story.refused(add("c", "b"), AlreadyTerminal)
    story.refused(add("cron", "b"), InvalidSubmission)
    story.play("submit d delay=1h")
    story.refused(AddDependencies(story.task_id("d"), ()), InvalidSubmission)
    story.refused(AddDependencies(story.next_id(story.now), (story.task_id("a"),)), UnknownTask)
    story.refused(AddDependencies(story.task_id("d"), (story.next_id(story.now),)), UnknownTask)


def test_a_circle_closed_later_is_refused_with_its_path() -> None:
    story = play("submit a delay=1h\nsubmit b after=a\nsubmit c after=b")

    refusal = story.refused(AddDependencies(story.task_id("a"), (story.task_id("c"),)), DependencyCycle)

    named = [str(TaskId(bytes=story.task_id(name))) for name in ("a", "c", "b", "a")]
    assert refusal.path == " -> ".join(named)


def test_adding_what_is_there_already_changes_nothing() -> None:
    story = play("submit a\nsubmit b after=a")
    before = fingerprint(story.state)

    assert story.perform(AddDependencies(story.task_id("b"), (story.task_id("a"),))) == 0
    assert fingerprint(story.state) == before


# --- retries ----------------------------------------------------------------------------------------------------

FAILED = """
    submit a
    submit b after=a
    submit c after=b
    submit bad
    finish bad terminal
    submit d after=a,bad
    finish a terminal
    expect c canceled
"""


def test_a_retry_takes_with_it_what_was_canceled_because_of_the_failure() -> None:
    story = play(FAILED)
    story.play("retry a as again dependents=yes")
    revived = [name for name in story.names if name.startswith("n")]
    assert {story.task_id(name) for name in revived} == {story.task_id("b"), story.task_id("c")}
    assert all(story.where(name) is Where.DEPENDENCY for name in revived)

    story.play("crash\nrestart\ntick 10s\nfinish again completed")
    first = next(name for name in revived if story.task_id(name) == story.task_id("b"))
    assert story.run(first).attempt is not None
    story.finish(first)
    assert all(story.run(name).attempt is not None for name in revived if name != first)


def test_without_them_only_the_run_itself_is_retried() -> None:
    story = play(FAILED)
    story.play("retry a as again\nfinish again completed")

    assert not [name for name in story.names if name.startswith("n")]
    story.play("retry b as b2\nexpect b2 running")


def test_a_run_whose_dependency_failed_is_not_retried_before_it() -> None:
    story = play(FAILED)

    refusal = story.refused(RetryRun(story.id("b"), story.next_id(story.now)), NotRetryable)
    assert "with_dependents" in refusal.message
    story.refused(RetryRun(story.id("d"), story.next_id(story.now), with_dependents=True), NotRetryable)


def test_who_still_waits_waits_for_a_dependency_that_comes_back() -> None:
    play(
        """
        submit a other
        submit waits after=a,other on_failure=run
        finish a terminal
        retry a as again
        finish other completed
        expect waits scheduled place=dependency
        finish again completed
        expect waits running
        """
    )


# --- size and shape ---------------------------------------------------------------------------------------------


def test_a_chain_of_a_thousand_falls_in_one_event_and_runs_one_by_one() -> None:
    """Section 5 number 33: deep, and without a deep stack."""
    story = Story(checked=False)
    story.submit("n0")
    for n in range(1, 1_000):
        story.perform(Submit([story.item(f"n{n}", depends=Depends((story.task_id(f"n{n - 1}"),)))]))
    before = len(story.log)
    story.finish("n0", Outcome.FAILED, terminal=True)

    assert len(story.log) == before + 1
    assert not story.state.runs
    assert story.state.counts[9] == 999


def test_a_task_can_depend_on_ten_thousand() -> None:
    story = Story(slots=20_000, checked=False)
    names = [f"n{n}" for n in range(10_000)]
    story.holding = True
    story.submit(*names)
    story.holding = False
    story.settle()
    story.perform(Submit([story.item("all", depends=Depends(tuple(story.task_id(name) for name in names)))]))
    story.holding = True
    for name in names[:-1]:
        story.finish(name)
    story.holding = False
    story.settle()
    assert story.where("all") is Where.DEPENDENCY
    story.finish(names[-1])

    assert story.where("all") is Where.RUNNING


@pytest.mark.parametrize("seed", range(20))
def test_in_no_graph_a_task_starts_before_what_it_depends_on(seed: int) -> None:
    chance = random.Random(seed)
    story = Story(seed=seed)
    depends: dict[str, list[str]] = {}
    for n in range(25):
        on = [name for name in depends if chance.random() < 0.2]
        depends[f"t{n}"] = on
        fields = {"depends": Depends(tuple(story.task_id(each) for each in on))} if on else {}
        story.perform(Submit([story.item(f"t{n}", **fields)]))
    while running := [name for name in depends if story.run(name).attempt is not None]:
        name = chance.choice(running)
        story.finish(name, chance.choice([Outcome.COMPLETED] * 6 + [Outcome.FAILED]), terminal=True)
        if chance.random() < 0.3:
            story.project()
        if chance.random() < 0.1:
            story.crash()
            story.restart()
            story.advance(20 * SECOND)
        for each, on in depends.items():
            ended = [str(story.run(other).state) for other in on]
            if story.run(each).attempt_count:
                assert set(ended) <= {"completed"}
            if set(ended) & {"failed", "canceled"}:
                assert str(story.run(each).state) == "canceled"
    assert not story.state.runs


def test_the_reason_names_what_is_waited_for() -> None:
    story = play("submit a b\nsubmit c after=a,b\nfinish a completed")

    reason = story.reason("c")

    assert isinstance(reason, WaitsForTasks)
    assert [(each.task_id.bytes, each.handler, each.state) for each in reason.upstreams] == [
        (story.task_id("b"), "h", "running")
    ]
    assert release_of(reason) == TasksComplete((TaskId(bytes=story.task_id("b")),), 1)
