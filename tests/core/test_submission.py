"""Submitting: what a task becomes, when a submission is the same as an earlier one, and asking for one more run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.epochs import Declare
from actionqueue.core.errors import (
    IdempotencyConflict,
    InvalidSubmission,
    LimitExceeded,
    NotRetryable,
    Overloaded,
    PayloadTooLarge,
    UnknownRun,
)
from actionqueue.core.ids import NIL, RunId, TaskId
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.machine import Machine
from actionqueue.core.retry import Fixed
from actionqueue.core.spec import (
    DURATION_US_MAX,
    KEY_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    PAYLOAD_BYTES_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SUBMIT_MANY_MAX,
    Once,
    Submission,
    TaskOptions,
    check_count,
    policy_of,
    submission_problems,
    validate,
)
from actionqueue.core.state import Declaration
from actionqueue.core.submission import RetryRun, Submit, TaskSubmitted
from actionqueue.core.timetables import Cron, Repeat
from tests.core.story import SECOND, START, Story, play

# --- what a task becomes -------------------------------------------------------------------------------------------


def test_a_task_due_now_is_created_ready_by_one_event() -> None:
    """derive_once#1, derive_once#3: one run each, due when created, with ids of their own."""
    story = Story(slots=0)

    reply = story.submit("a", "b")

    first, second = story.log[-2:]
    assert isinstance(first, TaskSubmitted)
    assert isinstance(second, TaskSubmitted)
    assert first.due_at == first.at == START
    assert reply == [(*story.names["a"], True), (*story.names["b"], True)]
    assert len({first.run_id, second.run_id, first.task_id, second.task_id}) == 4
    story.play("""
        expect a ready reason=submitted attempts=0 waits=NoFreeSlot
        expect b ready
    """)
    assert story.run("a").scheduled_at == story.run("a").created_at == START


def test_a_run_is_accounted_for_once_whatever_happens_to_it() -> None:
    """once_accounting/01, derive_once#2, derive_once#4, derive_once#6, crash_recovery/01, section 5 number 68."""
    story = play("""
        submit a
        finish a completed
        expect a completed attempts=1 reason=completed
        crash
        restart
        tick 600s
        expect a completed attempts=1
    """)
    assert len(story.seen) == 1
    assert story.state.counts == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert not story.state.runs
    assert not story.state.tasks


@pytest.mark.parametrize("delay", ["1us", "1ms", "999ms", "1001ms", "30s", "365d"])
def test_a_delayed_task_starts_exactly_when_the_delay_has_passed(delay: str) -> None:
    """clock_edge_cases#7, clock_edge_cases#8, clock_edge_cases#9, section 5 number 27."""
    story = play(f"submit a delay={delay}")
    delay_us = story.run("a").until - START

    story.advance(delay_us - 1)
    assert str(story.run("a").state) == "scheduled"

    story.advance(1)
    assert str(story.run("a").state) == "running"
    assert story.attempt("a").ready_at == story.attempt("a").started_at == START + delay_us


def test_an_instant_in_the_past_is_now() -> None:
    story = Story(slots=0)

    story.submit("a", at_us=START - 5 * SECOND)

    assert story.run("a").scheduled_at == START
    story.play("expect a ready")


def test_a_task_may_be_due_in_the_last_microsecond_there_is() -> None:
    """clock_edge_cases#14, clock_edge_cases#17, clock_edge_cases#18, section 5 number 31."""
    story = Story()

    story.submit("a", at_us=SUBMIT_INSTANT_MAX)
    story.submit("b", delay_us=DURATION_US_MAX)
    story.now = SUBMIT_INSTANT_MAX - 10 * SECOND
    story.submit("c", delay_us=20 * SECOND, expires_us=30 * SECOND)

    story.advance(10 * SECOND - 1)
    story.play("expect a scheduled")
    assert story.run("c").scheduled_at == SUBMIT_INSTANT_MAX, "a delay ends with the year 9999"
    story.advance(1)
    story.play("""
        expect a running
        expect b running
        expect c canceled reason=expired   # the deadline is cut off at the same instant, and wins
    """)


def test_delay_and_expiry_count_from_the_callers_instant() -> None:
    """A command that waited 4 s in the inbox has 6 s of its delay left."""
    story = Story()

    story.perform(
        Submit(
            [
                story.item("a", delay_us=10 * SECOND),
                story.item("b", delay_us=SECOND, expires_us=9 * SECOND, queue="mail"),
            ],
            at=START - 4 * SECOND,
        )
    )

    story.play("""
        expect a scheduled until=6s
        expect b running     # its second has passed
    """)
    assert story.run("b").task.extra.expires_at == START + 5 * SECOND


def test_a_task_whose_deadline_has_passed_on_its_way_never_starts() -> None:
    story = Story()

    story.perform(Submit([story.item("a", expires_us=SECOND)], at=START - 4 * SECOND))

    story.play("expect a canceled reason=expired attempts=0")


def test_what_a_submission_leaves_open_comes_from_the_handlers_declaration() -> None:
    story = Story(slots=0)
    declared = Declaration("h", "mail", 7, 9, 60 * SECOND, ("billing",))
    story.perform(Declare([declared]))

    story.submit("a")
    story.submit(
        "b", queue="sms", priority=1, max_attempts=2, expires_us=5 * SECOND, options=TaskOptions(tags=("own",))
    )
    story.submit("c", handler="undeclared")

    def facts(name: str) -> tuple[Any, ...]:
        task = story.run(name).task
        return task.queue, task.priority, task.max_attempts, task.extra.expires_at, task.extra.options.tags

    assert facts("a") == ("mail", 7, 9, START + 60 * SECOND, ("billing",))
    assert facts("b") == ("sms", 1, 2, START + 5 * SECOND, ("own",))
    assert facts("c") == ("default", 0, 3, None, ())


def test_the_same_declaration_is_recorded_once() -> None:
    story = Story()
    story.perform(Declare([Declaration("h"), Declaration("g")]))
    before = len(story.log)

    story.perform(Declare([Declaration("h"), Declaration("g", priority=1)]))

    assert [each.handler for each in story.log[before].declarations] == ["g"]  # type: ignore[union-attr]
    story.play("crash\nrestart")
    assert story.state.declarations == {"h": Declaration("h"), "g": Declaration("g", priority=1)}


def test_options_travel_with_the_task() -> None:
    story = Story(slots=0)
    options = TaskOptions(30 * SECOND, Fixed(1), ("x",), {"n": [1, {"m": None}]}, "what it is", "text/plain")

    story.perform(Submit([story.item("a", options=options)], by="someone"))

    story.play("crash\nrestart")
    assert story.run("a").task.extra.options == options
    assert story.run("a").task.extra.by == "someone"


@given(st.lists(st.tuples(st.none() | st.integers(0, 10**12), st.integers(-5, 5), st.integers(1, 9)), max_size=20))
def test_every_task_gets_exactly_one_run(tasks: list[tuple[int | None, int, int]]) -> None:
    """proptest_run_accounting#1, derive_once#3, derive_once#5, section 6 number 5."""
    story = Story()

    for n, (delay_us, priority, attempts) in enumerate(tasks):
        story.submit(f"t{n}", delay_us=delay_us, priority=priority, max_attempts=attempts)

    assert len(story.state.tasks) == len(story.state.runs) == len(tasks)
    assert all(task.run_count == 1 for task in story.state.tasks.values())


# --- all or none ---------------------------------------------------------------------------------------------------


def test_many_tasks_in_one_command_are_created_in_order_all_or_none() -> None:
    """Submission is atomic: section 5 number 5. kill_recovery/01, kill_recovery/07."""
    story = Story(slots=1)

    story.submit(*[f"t{n}" for n in range(50)])

    assert len(story.state.tasks) == 50
    order = [story.id(f"t{n}") for n in range(50)]
    assert sorted(story.state.runs, key=lambda run_id: story.state.runs[run_id].order) == order
    story.play("crash\nrestart")
    assert len(story.state.tasks) == 50


def test_one_conflict_refuses_the_whole_command() -> None:
    story = play("submit a key=k content=x")
    items = [story.item("b"), story.item("c", key="k", content=b"y"), story.item("d")]

    story.refused(Submit(items), IdempotencyConflict)

    assert len(story.state.tasks) == 1


def test_a_queue_with_too_many_live_runs_refuses_more() -> None:
    story = Story(slots=0, live_runs_max=3)
    story.submit("a", "b")

    refusal = story.refused(Submit([story.item("c"), story.item("d")]), Overloaded)

    assert (refusal.limit, refusal.maximum) == ("live_runs_max", 3)
    story.submit("e")
    story.refused(Submit([story.item("f")]), Overloaded)
    story.play("cancel a")
    story.submit("f")


def test_a_full_queue_still_answers_for_what_it_has() -> None:
    story = Story(slots=0, live_runs_max=1)
    story.submit("a", key="k", content=b"x")

    reply = story.submit("again", key="k", content=b"x")

    assert reply == [(*story.names["a"], False)]
    story.refused(Submit([story.item("b")]), Overloaded)


def test_an_empty_command_is_accepted_and_does_nothing() -> None:
    story = Story(live_runs_max=0)
    before = len(story.log)

    assert story.perform(Submit([])) == []

    assert len(story.log) == before


# --- idempotency ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["", "finish a completed", "finish a terminal", "cancel a\nfinish a failed"])
@pytest.mark.parametrize("then", ["", "project", "crash\nrestart", "project\ncrash\nrestart"])
def test_the_same_key_and_content_lead_to_the_existing_task_whatever_its_state(fate: str, then: str) -> None:
    story = play(f"submit a key=k content=x\n{fate}\n{then}")
    before = len(story.log)

    reply = story.submit("b", key="k", content=b"x")

    assert reply == [(*story.names["a"], False)]
    assert len(story.log) == before


@pytest.mark.parametrize("then", ["", "finish a completed", "finish a completed\ncrash\nrestart"])
def test_the_same_key_with_other_content_is_a_conflict_that_names_the_task(then: str) -> None:
    story = play(f"submit a key=k content=x\n{then}")

    refusal = story.refused(Submit([story.item("b", key="k", content=b"y")]), IdempotencyConflict)

    assert refusal.key == "k"
    assert refusal.task_id == TaskId(bytes=story.task_id("a"))
    assert str(refusal.task_id) in str(refusal)


def test_a_key_used_twice_in_one_command_makes_one_task() -> None:
    story = Story(slots=0)
    items = [story.item(name, key="k", content=b"x") for name in ("a", "b", "c")]

    reply = story.perform(Submit(items))

    assert reply == [(*story.names["a"], True), (*story.names["a"], False), (*story.names["a"], False)]
    assert len(story.state.tasks) == 1


def test_a_key_used_twice_in_one_command_with_other_content_refuses_it() -> None:
    story = Story()

    story.refused(
        Submit([story.item("a", key="k", content=b"x"), story.item("b", key="k", content=b"y")]), IdempotencyConflict
    )


def test_a_key_lives_for_its_lifetime_to_the_microsecond() -> None:
    story = play("submit a key=k content=x lifetime=10s")

    story.advance(10 * SECOND - 1)
    assert story.submit("early", key="k", content=b"x") == [(*story.names["a"], False)]
    story.refused(Submit([story.item("other", key="k", content=b"y")]), IdempotencyConflict)

    story.advance(1)
    assert story.submit("b", key="k", content=b"y") == [(*story.names["b"], True)]
    assert story.submit("c", key="k", content=b"y") == [(*story.names["b"], False)]
    story.play("crash\nrestart")
    assert story.submit("d", key="k", content=b"y") == [(*story.names["b"], False)]


def test_a_key_past_its_lifetime_used_twice_in_one_command_makes_one_task() -> None:
    story = play("""
        submit a key=k content=x lifetime=10s
        tick 10s
    """)

    reply = story.perform(Submit([story.item(name, key="k", content=b"z") for name in ("b", "c")]))

    assert reply == [(*story.names["b"], True), (*story.names["b"], False)]


def test_the_retry_of_a_task_does_not_take_its_old_key_back() -> None:
    """a's key has run out and belongs to b now; a comes back to life, b ends, and the key still is b's."""
    story = play("""
        submit a key=k content=x lifetime=10s
        finish a terminal
        tick 10s
        submit b key=k content=y
        retry a as again
        finish b completed
    """)

    assert story.submit("c", key="k", content=b"y") == [(*story.names["b"], False)]
    story.play("crash\nrestart")
    assert story.submit("d", key="k", content=b"y") == [(*story.names["b"], False)]


def test_a_task_whose_key_ran_out_does_not_stand_in_the_way_of_the_one_that_has_it_now() -> None:
    """Both come back to life, in either order; the key is b's."""
    for order in ("ab", "ba"):
        story = play("""
            submit a key=k content=x lifetime=10s
            finish a terminal
            tick 10s
            submit b key=k content=y
            finish b terminal
        """)
        for name in order:
            story.play(f"retry {name} as {name}2")

        assert story.submit("c", key="k", content=b"y") == [(*story.names["b2"], False)]


def test_the_retry_of_a_task_takes_its_standing_key_back() -> None:
    story = play("""
        submit a key=k content=x
        finish a terminal
        retry a as again
    """)

    story.refused(Submit([story.item("b", key="k", content=b"y")]), IdempotencyConflict)
    assert story.state.keys["k"].id == story.task_id("a")


@pytest.mark.parametrize("then", ["", "finish a completed", "finish a completed\ncrash\nrestart"])
def test_a_task_id_chosen_by_the_caller_works_like_a_key(then: str) -> None:
    story = Story()
    chosen = story.next_id(START)
    story.submit("a", task_id=chosen, task_id_given=True, content=b"x")
    story.play(then)

    again = story.submit("b", task_id=chosen, task_id_given=True, content=b"x")
    refusal = story.refused(
        Submit([story.item("c", task_id=chosen, task_id_given=True, content=b"y")]), IdempotencyConflict
    )

    assert again == [(*story.names["a"], False)]
    assert (refusal.task_id, refusal.key) == (TaskId(bytes=chosen), None)


def test_a_task_id_chosen_twice_in_one_command_makes_one_task() -> None:
    story = Story()
    chosen = story.next_id(START)
    items = [story.item(name, task_id=chosen, task_id_given=True, content=b"x") for name in ("a", "b")]

    reply = story.perform(Submit(items))

    assert reply == [(*story.names["a"], True), (*story.names["a"], False)]


def test_what_ended_after_a_look_up_is_remembered_until_no_look_up_can_be_that_old() -> None:
    """By task id and by key: ARCHITECTURE section 6, facts as of a sequence."""
    story = play("submit a key=k content=x")
    state, before = story.state, story.state.last_seq
    names: list[bytes | str] = [story.task_id("a"), "k"]
    assert not any(state.ended_since(name, 0) for name in names)

    story.play("finish a completed")

    for keep in (False, True, True):
        assert all(state.ended_since(name, before) for name in names)
        assert not any(state.ended_since(name, before + 1) for name in names)
        state.rotate_recent(keep=keep)
    state.rotate_recent(keep=False)
    assert not any(state.ended_since(name, before) for name in names)


# --- one more run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finish a terminal", "cancel a\nfinish a failed", "cancel a how=abandon"])
@pytest.mark.parametrize("then", ["", "project", "crash\nrestart", "project\ncrash\nrestart"])
def test_a_failed_or_canceled_run_is_retried_by_a_new_run_of_its_task(end: str, then: str) -> None:
    story = play(f"submit a queue=mail priority=4 attempts=2 tags=x\n{end}\n{then}\nretry a as b by=me")

    run = story.run("b")
    assert run.task_id_bytes == story.task_id("a")
    assert run.lineage is not None
    assert (run.lineage.retry_of, run.lineage.by, run.token) == (story.id("a"), "me", story.id("a"))
    assert (run.priority, run.task.queue, run.task.max_attempts, run.task.run_count) == (4, "mail", 2, 2)
    assert run.task.extra.options.tags == ("x",)
    story.play("""
        expect b running attempts=1 failures=0
        finish b failed
        expect b retry_wait failures=1
        tick 10s
        finish b completed
        project
    """)
    assert story.tables.tasks[story.task_id("a")][8] == 2, "the task has had two runs"
    assert str(story.run("a").state) in ("failed", "canceled"), "terminal stays final"


def test_the_token_of_a_chain_of_retries_is_its_first_run() -> None:
    story = play("""
        submit a
        finish a terminal
        retry a as b
        finish b terminal
        crash
        restart
        retry b as c
        finish c terminal
        refused NotRetryable: retry a as d
        refused NotRetryable: retry b as d      # only the newest of the chain can be retried
    """)
    assert {story.run(name).token for name in "abc"} == {story.id("a")}
    assert [story.run(name).lineage.retry_of for name in "bc"] == [story.id("a"), story.id("b")]  # type: ignore[union-attr]
    del story.names["d"]
    refusal = story.refused(RetryRun(story.id("a"), story.next_id(START)), NotRetryable)
    assert refusal.by == RunId(bytes=story.id("c"))


def test_what_a_retry_has_completed_is_not_done_again() -> None:
    play("""
        submit a
        finish a terminal
        retry a as b
        finish b completed
        crash
        restart
        refused NotRetryable: retry a as c
    """)


def test_a_chain_has_one_live_run_at_a_time() -> None:
    story = play("""
        submit a
        finish a terminal
        retry a as b
        refused NotRetryable: retry a as c
        finish b failed
        refused NotRetryable: retry a as c
        refused NotRetryable: retry b as c
        crash
        restart
        refused NotRetryable: retry a as c
    """)
    refusal = story.refused(RetryRun(story.id("a"), story.next_id(START)), NotRetryable)
    assert refusal.by == RunId(bytes=story.id("b"))


def test_what_is_live_or_completed_cannot_be_retried_and_what_is_unknown_is_not_found() -> None:
    play("""
        submit a
        refused NotRetryable: retry a as b
        finish a completed
        refused NotRetryable: retry a as b
        crash
        restart
        refused NotRetryable: retry a as b
    """)
    story = Story()
    story.refused(RetryRun(story.next_id(START), story.next_id(START)), UnknownRun)


def test_a_retry_can_be_due_later() -> None:
    story = play("submit a\nfinish a terminal")
    story.names["b"] = (story.task_id("a"), story.next_id(START))

    story.perform(RetryRun(story.id("a"), story.id("b"), at_us=START + 5 * SECOND))

    story.play("""
        expect b scheduled until=5s
        tick 5s
        expect b running
    """)


@pytest.mark.parametrize("at_us", [-1, SUBMIT_INSTANT_MAX + 1, 2**70])
def test_a_retry_at_an_impossible_instant_is_refused(at_us: int) -> None:
    story = play("submit a\nfinish a terminal")

    story.refused(RetryRun(story.id("a"), story.next_id(START), at_us=at_us), InvalidSubmission)


def test_the_deadline_to_start_is_not_that_of_a_retry() -> None:
    play("""
        submit a expires=5s
        finish a terminal
        executor main 0
        retry a as b
        tick 10s
        expect b ready
        crash
        restart
        tick 10s
        expect b ready
    """)


# --- what is valid -------------------------------------------------------------------------------------------------


def submission(**fields: Any) -> Submission:
    return Submission(
        **({"task_id": b"t" * 16, "run_id": b"r" * 16, "handler": "h", "body": b"", "payload_digest": b""} | fields)
    )


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("handler", {"handler": ""}),
        ("handler", {"handler": "h" * (NAME_CHARACTERS_MAX + 1)}),
        ("handler", {"handler": "a\nb"}),
        ("handler", {"handler": "half \ud800"}),
        ("task_id", {"task_id": NIL}),
        ("task_id", {"task_id": b"short"}),
        ("run_id", {"run_id": NIL}),
        ("queue", {"queue": ""}),
        ("priority", {"priority": PRIORITY_MAX + 1}),
        ("priority", {"priority": PRIORITY_MIN - 1}),
        ("priority", {"priority": True}),
        ("max_attempts", {"max_attempts": 0}),
        ("max_attempts", {"max_attempts": 2**31}),
        ("at", {"at_us": SUBMIT_INSTANT_MAX + 1}),
        ("at", {"at_us": -1}),
        ("delay", {"delay_us": -1}),
        ("delay", {"delay_us": DURATION_US_MAX + 1}),
        ("delay", {"delay_us": 1, "at_us": 1}),
        ("expires", {"expires_us": 0}),
        ("idempotency_key", {"key": ""}),
        ("idempotency_key", {"key": "k" * (KEY_CHARACTERS_MAX + 1)}),
        ("idempotency_lifetime", {"key_lifetime_us": 5}),
        ("idempotency_lifetime", {"key": "k", "key_lifetime_us": 0}),
        ("timeout", {"options": TaskOptions(timeout_us=0)}),
        ("tags", {"options": TaskOptions(tags=("t",) * 21)}),
        ("tags[1]", {"options": TaskOptions(tags=("t", ""))}),
        ("description", {"options": TaskOptions(description="d" * 1001)}),
    ],
)
def test_each_field_out_of_its_range_is_named(field: str, fields: dict[str, Any]) -> None:
    """max_attempts#14, derive_once#7, derive_once#8."""
    assert list(submission_problems(submission(**fields))) == [field]
    with pytest.raises(InvalidSubmission) as refusal:
        validate(submission(**fields))
    assert list(refusal.value.problems) == [field]  # type: ignore[attr-defined]


def test_a_refusal_names_every_problem() -> None:
    with pytest.raises(InvalidSubmission) as refusal:
        validate(submission(handler="", priority=2**40, delay_us=-1, key=""))

    problems = refusal.value.problems  # type: ignore[attr-defined]
    assert list(problems) == ["handler", "priority", "delay", "idempotency_key"]
    assert all(name in str(refusal.value) for name in problems)


def test_a_valid_submission_passes() -> None:
    validate(submission())
    validate(
        submission(
            body=b"x" * PAYLOAD_BYTES_MAX,
            priority=PRIORITY_MIN,
            max_attempts=1,
            at_us=SUBMIT_INSTANT_MAX,
            key="k",
            key_lifetime_us=1,
        )
    )


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(PayloadTooLarge) as refusal:
        validate(submission(body=b"x" * 11), payload_bytes_max=10)

    facts = refusal.value.facts
    assert facts == {"limit": "payload_bytes_max", "maximum": 10, "actual": 11}


def test_one_command_holds_at_most_so_many_tasks() -> None:
    check_count(SUBMIT_MANY_MAX)
    with pytest.raises(LimitExceeded):
        check_count(SUBMIT_MANY_MAX + 1)


def test_a_policy_is_recorded_as_an_instant_or_as_a_rule() -> None:
    assert policy_of(Once(delay_us=3)) == (Once(delay_us=3), None)
    for policy in (Repeat(3, "1s"), Cron("* * * * *")):
        assert policy_of(policy) == (Once(), policy.rule())
    with pytest.raises(InvalidSubmission):
        policy_of("hourly")


@pytest.mark.parametrize(
    "fields",
    [
        {"task_id": NIL},
        {"run_id": NIL},
        {"priority": 2**40},
        {"delay_us": -5},
        {"max_attempts": 0},
        {"at_us": 2**65 - 1},
    ],
    ids=str,
)
def test_what_another_process_sent_is_validated_again_before_it_is_decided(fields: dict[str, Any]) -> None:
    """ARCHITECTURE section 2 number 3: what is valid to decide is valid to apply, whoever sends it."""
    story = Story()

    refusal = story.refused(Submit([submission(**fields)], at=START), InvalidSubmission)

    assert refusal.problems


def test_ids_that_another_process_sent_twice_are_refused() -> None:
    story = play("submit a delay=5s")
    task_id, run_id = story.names["a"]
    ready = submission()

    for items in (
        [submission(run_id=run_id)],
        [submission(task_id=task_id)],
        [ready, submission(task_id=b"u" * 16)],
        [ready, submission(run_id=b"s" * 16)],
    ):
        story.refused(Submit(items, at=START), InvalidSubmission)
    story.perform(Submit([ready, submission(task_id=b"u" * 16, run_id=b"s" * 16)], at=START))


def test_a_retry_needs_an_id_of_its_own() -> None:
    story = play("submit a b\nfinish a terminal")

    for new_run_id in (NIL, b"short", story.id("b")):
        story.refused(RetryRun(story.id("a"), new_run_id), InvalidSubmission)


def test_what_passes_validation_can_be_applied() -> None:
    """Each combination of the extremes: decided, applied, and nothing raised on the way."""
    for priority, at_us, delay_us, attempts in itertools.product(
        (PRIORITY_MIN, PRIORITY_MAX), (None, 0, SUBMIT_INSTANT_MAX), (None, 0, DURATION_US_MAX), (1, 2**31 - 1)
    ):
        item = submission(priority=priority, at_us=at_us, delay_us=delay_us, max_attempts=attempts)
        if at_us is not None and delay_us is not None:
            continue
        validate(item)
        machine = Machine()
        answer = machine.perform(Submit([item]), START)
        assert isinstance(answer, tuple)
        assert len(machine.state.runs) == 1
