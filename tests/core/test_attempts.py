"""Attempts: how each outcome counts, when the next one comes, and what a crash makes of those that were open."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.attempts import AttemptFinished, AttemptStarted, Finish, Progress, RunsPromoted
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, StaleReport
from actionqueue.core.instants import SUBMIT_INSTANT_MAX
from actionqueue.core.reasons import ArgumentsMisfit, HandlerMissing, TakesItsTurn, Where
from actionqueue.core.retry import (
    DEFAULT_BACKOFF,
    DEFAULT_TERMS,
    AttemptTerms,
    Backoff,
    Delays,
    Exponential,
    Fixed,
    Retry,
    delays,
    exponential,
    fixed,
)
from actionqueue.core.spec import TaskOptions
from actionqueue.core.state import ErrorInfo, Outcome, Output
from tests.core.story import SECOND, START, Story, play

COUNTED = ["failed", "timed_out"]
UNCOUNTED = ["snoozed", "interrupted"]


def attempts_of(story: Story, name: str) -> list[tuple[int, Outcome | None]]:
    """Number and outcome of every attempt of a run, from what was projected."""
    story.project()
    rows = sorted(row for (run_id, _), row in story.tables.attempts.items() if run_id == story.id(name))
    return [(row[1], None if row[7] is None else Outcome(row[7])) for row in rows]


# --- how outcomes count --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "outcomes", "end"),
    [
        (1, ["failed"], "failed"),
        (3, ["failed"] * 3, "failed"),
        (3, ["timed_out"] * 3, "failed"),
        (3, ["completed"], "completed"),
        (3, ["terminal"], "failed"),
        (2, ["timed_out", "completed"], "completed"),
        (3, ["timed_out", "failed", "completed"], "completed"),
        (3, ["failed", "terminal"], "failed"),
        (1, ["snoozed", "interrupted", "snoozed", "completed"], "completed"),
        (2, ["snoozed", "failed", "interrupted", "failed"], "failed"),
    ],
)
def test_a_run_is_tried_until_it_completes_or_its_counted_failures_reach_the_cap(
    cap: int, outcomes: list[str], end: str
) -> None:
    """retry_cap/01, retry_cap/02, retry_cap/03, retry_cap/04, retry_cap/05, mixed_attempt_outcomes/01,
    mixed_attempt_outcomes/02, attempt_lineage/01, max_attempts#1, max_attempts#2, max_attempts#3, max_attempts#4,
    max_attempts#5, max_attempts#6, max_attempts#7, max_attempts#8, max_attempts#10, max_attempts#11, max_attempts#12,
    max_attempts#13, max_attempts#16, max_attempts#17, proptest_retry#2, proptest_retry#3, mutation_authority#14,
    mutation_authority#15, wal_replay#31, wal_replay#40, dispatch_invariants/01, dispatch_invariants/02.
    """
    story = play(f"submit a attempts={cap}")
    run_id = story.id("a")
    for outcome in outcomes:
        story.play(f"finish a {outcome}\ntick 10s")

    story.play(f"expect a {end} attempts={len(outcomes)}")
    assert story.run("a").id_bytes == run_id
    kinds = [Outcome.FAILED if each == "terminal" else Outcome[each.upper()] for each in outcomes]
    assert attempts_of(story, "a") == list(enumerate(kinds, 1))
    ids = [event.attempt_id for event in story.log if isinstance(event, AttemptStarted)]
    assert len(set(ids)) == len(outcomes)
    story.play(f"crash\nrestart\ntick 1h\nexpect a {end} attempts={len(outcomes)}")


@pytest.mark.parametrize("cap", range(1, 21))
@pytest.mark.parametrize("between", ["", "crash\nrestart"])
def test_what_always_fails_is_tried_exactly_as_often_as_its_cap_says(cap: int, between: str) -> None:
    """Section 5 number 40, proptest_retry#1, max_attempts#9: also across restarts between attempts."""
    story = play(f"submit a attempts={cap}")
    for _ in range(cap):
        story.play(f"finish a failed\n{between}\ntick 10s")

    story.play(f"expect a failed attempts={cap} failures={cap}\ntick 1d\nexpect a failed attempts={cap}")
    assert len(story.started) == cap


def test_more_attempts_than_the_cap_do_not_come_from_uncounted_ones() -> None:
    """suspend_resume/01 for what this version has: an outcome that does not count, at a cap of 1."""
    story = play("submit a attempts=1")
    for _ in range(10):
        story.play("finish a snoozed\nfinish a interrupted")

    story.play("expect a running attempts=21 failures=0\nfinish a failed\nexpect a failed attempts=21 failures=1")


def test_everything_is_terminal_once_nothing_is_left_to_do() -> None:
    """dispatch_invariants/05, dispatch_invariants/07, kill_recovery/03, engine_lifecycle#1."""
    story = Story(slots=3)
    names = [f"t{n}" for n in range(12)]
    story.submit(*names, max_attempts=2)
    fates = itertools.cycle(["completed", "failed", "terminal", "timed_out", "snoozed"])
    while story.state.runs:
        running = [name for name in names if story.where(name) is Where.RUNNING]
        for name in running:
            story.play(f"finish {name} {next(fates)}")
        story.play("tick 10s")

    assert sum(story.state.counts) == 12
    assert story.state.counts[:7] == [0] * 7


def test_an_outcome_keeps_its_reason_its_error_and_its_output() -> None:
    """handler_output_roundtrip/01, wal_replay#43."""
    story = Story()
    story.submit("a", "b")
    error = ErrorInfo("ValueError", "no", "trace", "f00d")
    output = Output(b"d" * 16, 5)

    story.finish("a", Outcome.FAILED, error=error, reason="worker_died")
    story.finish("b", output=output, body=b"12345")

    story.play("expect a retry_wait reason=worker_died error=ValueError\nexpect b completed")
    closed = story.shadow.state.runs[story.id("a")].latest
    assert closed is not None
    assert (closed.error, closed.reason) == (error, "worker_died")
    assert (closed.finished_at, closed.retry_at) == (START, START + 10 * SECOND)
    assert story.run("b").output == output


def test_a_run_that_completes_in_the_end_has_no_error() -> None:
    """A listing of runs by error is of those that have it; what the attempts before met is kept with them."""
    story = Story()
    story.submit("a")
    story.finish("a", Outcome.FAILED, error=ErrorInfo("ValueError", "no"))
    story.play("expect a retry_wait error=ValueError\ntick 10s")

    story.finish("a")

    story.play("expect a completed error=None")
    assert story.run("a").older[0].error == ErrorInfo("ValueError", "no")


# --- when the next attempt comes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backoff", ["1us", "1ms", "999ms", "1001ms", "1s", "366d"])
@pytest.mark.parametrize("then", ["", "crash\nrestart", "project\ncrash\nrestart"])
def test_a_fixed_backoff_ends_at_its_exact_instant_also_across_a_restart(backoff: str, then: str) -> None:
    """Section 5 number 27; crash_recovery/02, kill_recovery/06, section 5 number 10: kept, not restarted."""
    story = play(f"handler h backoff=fixed:{backoff}\nsubmit a\nfinish a failed\n{then}")
    delay_us = story.run("a").until - START

    story.advance(delay_us - 1)
    assert str(story.run("a").state) == "retry_wait"
    story.advance(1)

    story.play("expect a running attempts=2")
    assert story.attempt("a").started_at == START + delay_us


@pytest.mark.parametrize(
    ("backoff", "seconds"),
    [
        ("exponential:1s,10s", [1, 2, 4, 8, 10, 10]),
        ("exponential:250ms,1s", [0.25, 0.5, 1, 1]),
        ("list:1s,10s,60s", [1, 10, 60, 60, 60]),
        ("list:0s", [0, 0, 0]),
        ("fixed:7s", [7, 7, 7]),
    ],
)
@pytest.mark.parametrize("given_by", ["handler h", "the task"])
def test_each_backoff_gives_its_sequence_of_delays(backoff: str, seconds: list[float], given_by: str) -> None:
    """Section 5 number 27: exponential up to its cap, and lists."""
    if given_by == "the task":
        story = play(f"submit a attempts=100 backoff={backoff}")
    else:
        story = play(f"handler h backoff={backoff}\nsubmit a attempts=100")
    for delay in seconds:
        story.play(f"finish a failed\nexpect a {'retry_wait' if delay else 'running'}")
        if delay:
            story.play(f"expect a retry_wait until={delay:g}s\ntick {delay}s")
        story.play("expect a running")


@given(draw=st.floats(0, 1, exclude_max=True), n=st.integers(1, 12))
def test_jitter_keeps_at_least_half_of_the_delay(draw: float, n: int) -> None:
    plain = Exponential(SECOND, 2.0, 300 * SECOND, False).delay_after(n, draw)

    jittered = DEFAULT_BACKOFF.delay_after(n, draw)

    assert plain == min(SECOND * 2 ** (n - 1), 300 * SECOND)
    assert plain // 2 <= jittered <= plain


def test_jitter_is_drawn_once_and_recorded() -> None:
    story = play("handler h backoff=jittered:100s,100s\nsubmit a\nfinish a failed draw=0.25")

    story.play("expect a retry_wait until=62.5s\ncrash\nrestart\nexpect a retry_wait until=62.5s")


@pytest.mark.parametrize("failures", [1, 64, 1_025, 10**6, 2**31])
@pytest.mark.parametrize("factor", [1.0, 2.0, 1000.0])
def test_an_exponential_backoff_never_overflows(failures: int, factor: float) -> None:
    """Section 5 number 31."""
    assert 1 <= Exponential(1, factor, 5 * SECOND, False).delay_after(failures, 0.0) <= 5 * SECOND


def test_a_handlers_own_delay_replaces_the_backoff_once_and_still_counts() -> None:
    """RetryAfter."""
    play("""
        submit a attempts=3
        finish a failed after=90s
        expect a retry_wait failures=1 until=90s
        tick 90s
        finish a failed
        expect a retry_wait failures=2 until=10s
        tick 10s
        finish a failed after=90s
        expect a failed failures=3
    """)


def test_snooze_waits_as_long_as_asked_and_interrupted_not_at_all() -> None:
    play("""
        submit a attempts=1
        finish a snoozed after=1h
        expect a retry_wait failures=0 until=3600s reason=snoozed
        tick 1h
        executor main 0
        finish a interrupted
        expect a ready failures=0 attempts=2
        executor main 1
        expect a running attempts=3
    """)


def test_a_delay_past_the_year_9999_ends_with_it() -> None:
    story = play("handler h backoff=fixed:366d\nsubmit a b")
    story.now = SUBMIT_INSTANT_MAX - 5 * SECOND

    story.play("finish a failed\nfinish b snoozed after=1d")

    assert story.run("a").until == story.run("b").until == SUBMIT_INSTANT_MAX


def test_the_terms_of_an_attempt_are_those_registered_when_it_starts() -> None:
    """Read from the handler at each start, recorded with the attempt; the task's own options go first."""
    story = play("""
        handler h timeout=30s backoff=fixed:1s
        submit a
        submit b timeout=5s backoff=fixed:2s
        handler h timeout=60s backoff=fixed:9s on_lost=fail max_lost=1
    """)
    own = AttemptTerms(5 * SECOND, Fixed(2 * SECOND))
    assert story.attempt("a").terms == AttemptTerms(30 * SECOND, Fixed(SECOND))
    assert story.attempt("b").terms == own

    story.play("finish a failed\nexpect a retry_wait until=1s\nfinish b failed\nexpect b retry_wait until=2s\ntick 2s")

    later = AttemptTerms(60 * SECOND, Fixed(9 * SECOND), "fail", 1)
    assert story.attempt("a").terms == later
    assert story.attempt("b").terms == AttemptTerms(5 * SECOND, Fixed(2 * SECOND), "fail", 1)
    story.play("crash\nrestart\nexpect a failed reason=lost")


def test_default_terms_are_not_written_with_every_attempt() -> None:
    story = Story()
    story.register("h", DEFAULT_TERMS)
    story.submit("a", options=TaskOptions(backoff=DEFAULT_BACKOFF, tags=("x",)))

    event = story.log[-1]

    assert isinstance(event, AttemptStarted)
    assert event.terms is None
    assert story.attempt("a").terms == DEFAULT_TERMS


@pytest.mark.parametrize(
    "make",
    [
        lambda: fixed("367d"),
        lambda: fixed("-1s"),
        lambda: exponential("10s", cap="5s"),
        lambda: exponential("1s", factor=0.5),
        lambda: exponential("1s", factor=1001),
        delays,
        lambda: delays(*["1s"] * 101),
        lambda: Retry(max_attempts=0),
        lambda: Retry(max_attempts=2**31),
        lambda: Retry(max_attempts=True),
    ],
)
def test_impossible_backoffs_and_caps_are_refused(make: Any) -> None:
    """max_attempts#14."""
    with pytest.raises(InvalidSubmission):
        make()


def test_backoffs_are_made_from_any_form_of_duration() -> None:
    made: list[Backoff] = [fixed("1.5s"), exponential(1, factor=3, cap="1m", jitter=False), delays("1s", 2, "3m")]

    assert made == [
        Fixed(1_500_000),
        Exponential(SECOND, 3.0, 60 * SECOND, False),
        Delays((SECOND, 2 * SECOND, 180 * SECOND)),
    ]


# --- instants and order --------------------------------------------------------------------------------------------


def test_a_run_that_falls_due_and_starts_at_once_needs_one_event() -> None:
    story = play("submit a delay=5s\ntick 5s")

    assert [type(event) for event in story.log[-1:]] == [AttemptStarted]
    assert not any(isinstance(event, RunsPromoted) for event in story.log)
    attempt = story.attempt("a")
    assert attempt.ready_at == attempt.started_at == START + 5 * SECOND


def test_a_run_that_falls_due_and_waits_is_promoted_which_fixes_its_order() -> None:
    """mutation_authority#11, mutation_authority#12, crash_during_promotion/01."""
    story = play("""
        executor main 0
        submit a delay=5s
        submit b delay=6s
        tick 6s
        expect a ready reason=due
        crash
        restart
        expect a ready reason=due
        expect b ready
        tick 3s
        executor main 1
        started a
        finish a completed
        started b
    """)
    assert isinstance(story.log[-3], AttemptStarted)
    assert story.run("b").older is None
    assert story.attempt("b").ready_at == START + 6 * SECOND
    assert story.attempt("b").number == 1


def test_the_fence_of_an_attempt_is_the_sequence_of_its_start() -> None:
    """Section 6 number 1: sequence numbers are contiguous, and continue across restarts.

    concurrent_mutation_boundary/01, concurrent_mutation_boundary/02, kill_recovery/05.
    """
    story = play("submit a b\nfinish a completed\ncrash\nrestart\ntick 10s")
    starts = [(n, event) for n, event in enumerate(story.log, 1) if isinstance(event, AttemptStarted)]
    assert story.state.last_seq == len(story.log)
    assert story.attempt("b").fence == starts[-1][0]


# --- stale reports -------------------------------------------------------------------------------------------------


def test_a_report_is_refused_unless_it_is_of_the_attempt_that_holds_the_run() -> None:
    """mutation_authority#13, mutation_authority#17, mutation_authority#18, wal_replay#24, negative_transitions/05."""
    story = play("submit a b")
    good = story.report("a", Outcome.COMPLETED)
    other = story.attempt("b")

    for wrong in (
        Finish(good.run_id, other.id, other.fence, Outcome.COMPLETED),
        Finish(good.run_id, good.attempt_id, good.fence + 1, Outcome.FAILED),
        Finish(good.run_id, other.id, good.fence, Outcome.COMPLETED),
        Finish(story.next_id(START), good.attempt_id, good.fence, Outcome.COMPLETED),
        Finish(other.id, other.id, other.fence, Outcome.COMPLETED),
    ):
        refusal = story.refused(wrong, StaleReport)
        assert refusal.attempt_id.bytes == wrong.attempt_id
    story.perform(good)
    story.refused(good, StaleReport)
    story.play("expect a completed\nexpect b running")


@pytest.mark.parametrize(
    "meanwhile",
    [
        "finish a failed",
        "finish a failed\ntick 10s",
        "finish a snoozed",
        "finish a completed",
        "cancel a how=abandon",
        "crash\nrestart",
        "crash\nrestart\ntick 10s",
        "crash\nrestart\ncancel a",
    ],
)
@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.LOST])
def test_a_late_report_changes_nothing(meanwhile: str, outcome: Outcome) -> None:
    """Section 5 numbers 23 and 24: the zombie's result is refused, whoever has the run now."""
    story = play("submit a")
    late = story.report("a", outcome)
    progress = Progress(late.run_id, late.attempt_id, late.fence, 1)

    story.play(meanwhile)

    story.refused(late, StaleReport)
    story.refused(progress, StaleReport)


def test_progress_is_kept_with_the_attempt_that_reported_it() -> None:
    story = play("submit a\nprogress a 3")
    assert story.attempt("a").progress == (3, None, "")

    story.project()
    machine = story.rebuilt()

    assert machine.runs[story.id("a")].attempt == story.attempt("a")
    story.play("finish a snoozed")
    assert story.attempt("a").progress is None


# --- crashes -------------------------------------------------------------------------------------------------------


def test_a_crash_makes_what_was_running_lost_and_tries_it_again_after_its_backoff() -> None:
    """crash_recovery/04, kill_recovery/02, wal_replay#29, section 5 number 1."""
    play("""
        submit a attempts=2
        crash
        restart
        expect a retry_wait lost=1 failures=0 attempts=1 until=10s reason=lost
        tick 10s
        expect a running attempts=2
        finish a failed
        expect a retry_wait lost=1 failures=1
        tick 10s
        finish a failed
        expect a failed lost=1 failures=2 attempts=3
    """)


def test_a_run_is_lost_at_most_once_more_often_than_max_lost_says() -> None:
    """Section 5 number 3; the cap of SEMANTICS section 2 number 3."""
    story = play("handler h max_lost=2\nsubmit a attempts=9")
    for lost in (1, 2):
        story.play(f"crash\nrestart\nexpect a retry_wait lost={lost}\ntick 10s\nexpect a running")

    story.play("crash\nrestart\nexpect a failed lost=3 attempts=3 failures=0 reason=lost")


@pytest.mark.parametrize(
    ("terms", "attempts", "state"),
    [
        ("", 1, "failed"),
        ("", 2, "retry_wait"),
        ("on_lost=retry", 1, "retry_wait"),
        ("on_lost=fail", 9, "failed"),
        ("max_lost=0", 9, "failed"),
        ("max_lost=0 on_lost=retry", 1, "failed"),
    ],
)
def test_a_lost_attempt_is_retried_unless_its_terms_or_a_cap_of_one_say_otherwise(
    terms: str, attempts: int, state: str
) -> None:
    """SEMANTICS sections 2 number 7 and 6: at-most-once with max_attempts=1."""
    play(f"handler h {terms}\nsubmit a attempts={attempts}\ncrash\nrestart\nexpect a {state} lost=1")


def test_an_attempt_given_up_at_a_drain_is_lost_in_the_same_way() -> None:
    play("""
        submit a
        finish a lost
        expect a retry_wait lost=1 failures=0 until=10s
    """)


def test_what_was_lost_together_does_not_come_back_as_a_herd() -> None:
    story = play("handler h backoff=jittered:100s,100s")
    story.submit(*[f"t{n}" for n in range(20)])

    story.play("crash\nrestart")

    back = sorted(story.run(f"t{n}").until - story.now for n in range(20))
    assert len(set(back)) == 20
    assert back[0] >= 50 * SECOND
    assert back[-1] < 100 * SECOND
    assert max(b - a for a, b in itertools.pairwise(back)) < 10 * SECOND


def test_a_crash_changes_nothing_of_what_was_not_running() -> None:
    """SEMANTICS section 7; section 5 number 10, kill_recovery/04, observability/04."""
    play("""
        submit s delay=30s
        submit r
        finish r failed
        pause queue mail
        submit q queue=mail
        submit t queue=mail delay=1s
        submit u handler=missing
        tick 5s
        crash
        restart
        expect s scheduled until=25s
        expect r retry_wait until=5s
        expect q ready waits=Paused
        expect t scheduled waits=Paused
        expect u ready waits=HandlerMissing
    """)


def test_a_graceful_end_leaves_nothing_lost() -> None:
    story = play("""
        submit a
        finish a interrupted
        executor main 0
        finish a interrupted
        restart
        expect a ready lost=0
    """)
    assert story.state.epoch is not None
    assert (story.state.epoch.number, story.state.epoch.closed) == (2, False)


# --- arguments that do not fit -------------------------------------------------------------------------------------


def test_a_run_whose_arguments_do_not_fit_waits_for_another_handler() -> None:
    """SEMANTICS section 5: blocked on the handler with reason ``arguments``, not failed."""
    story = play("submit a attempts=1\nfinish a misfit\nexpect a ready reason=arguments failures=0 place=misfit")
    assert story.reason("a") == ArgumentsMisfit("h")
    assert story.state.places.blocked_count(story.state.counts[1]) == 1

    story.play("""
        tick 1h
        expect a ready attempts=1
        submit b                 # it holds nobody back
        expect b running
        handler h                # registered anew
        expect a running attempts=2 reason=started
        finish a completed
    """)


def test_a_misfit_is_tried_again_by_the_next_process() -> None:
    play("""
        submit a
        finish a misfit
        project
        crash
        restart
        expect a running attempts=2
        finish a misfit
        crash                    # from the log alone
        restart
        expect a running attempts=3
    """)


def test_a_misfit_that_waits_for_its_instant_is_not_blocked_by_what_was_wrong_before() -> None:
    """The handler is registered anew, or the process replaced, between the report and the promotion."""
    play("""
        submit a b
        pause handler h
        finish a misfit
        finish b misfit
        expect a retry_wait reason=arguments
        reschedule b 5s
        handler h
        resume handler h
        expect a running attempts=2
        expect b retry_wait
        tick 5s
        expect b running attempts=2
        finish b misfit
        expect b ready place=misfit
        crash
        restart
        expect b running attempts=3
    """)
    play("""
        submit a
        pause handler h
        finish a misfit
        project
        crash
        restart
        resume handler h
        expect a running attempts=2
    """)


def test_what_an_attempt_says_of_the_old_handlers_arguments_does_not_hold_for_the_new_one() -> None:
    """It was running when the handler was registered again."""
    play("""
        submit a
        handler h
        finish a misfit
        expect a running attempts=2
        finish a misfit
        expect a ready place=misfit
        handler h
        expect a running attempts=3
    """)


def test_a_misfit_can_be_canceled_and_reprioritized() -> None:
    play("""
        executor main 2
        submit a b
        finish a misfit
        finish b misfit
        reprioritize b 5
        expect b ready place=misfit priority=5
        cancel a
        expect a canceled
        executor main 1
        submit c priority=4
        executor main 0
        finish c failed
        handler h
        executor main 1
        expect b running
    """)


# --- live in two crashes in a row ----------------------------------------------------------------------------------

TWO_CRASHES = """
    submit a b c
    crash
    restart
    tick 10s
    crash
    restart
    tick 9s
"""


def test_runs_live_in_two_crashes_in_a_row_are_started_one_at_a_time() -> None:
    """SEMANTICS section 6: one of them may be what kills the process."""
    story = play(
        f"""{TWO_CRASHES}
        submit fresh
        tick 1s
        expect fresh running
        expect a running lost=2
        expect b ready place=quarantine
        expect c ready place=quarantine
        """
    )
    assert story.reason("b") == TakesItsTurn(story.run_id("a"))
    story.play("""
        reprioritize c 3
        finish a completed
        expect c running
        expect b ready place=quarantine
        finish c failed
        expect b running
        tick 10s
        expect c running          # it has shown that it can end; it need not be alone any more
        finish b completed
    """)


def test_a_third_crash_keeps_them_one_at_a_time() -> None:
    story = play(f"{TWO_CRASHES}\ntick 1s\ncrash\nrestart\ntick 10s")

    running = [name for name in "abc" if story.where(name) is Where.RUNNING]

    assert len(running) == 1
    assert sorted(story.run(name).lost_count for name in "abc") == [2, 2, 3]


def test_one_that_cannot_start_does_not_keep_the_others_from_their_turn() -> None:
    """The first in line has lost its handler, or lies under a pause: the next one has its turn instead."""
    story = play("""
        handler gone
        submit a handler=gone
        submit b queue=mail priority=-1
        submit c priority=-2
        crash
        restart
        tick 10s
        crash
        forget gone
        restart
        pause queue mail
        tick 10s
        expect a ready waits=HandlerMissing
        expect b retry_wait waits=Paused
        expect c running
    """)
    assert story.reason("a") == HandlerMissing("gone")
    story.play("""
        resume queue mail
        expect b ready place=quarantine
        cancel c
        finish c canceled
        expect b running
        handler gone
        expect a ready place=quarantine
        cancel a
        expect a canceled
        finish b completed
    """)


def test_a_pause_that_comes_when_it_is_set_aside_holds_it_afterwards() -> None:
    play(f"""
        {TWO_CRASHES}
        tick 1s
        expect b ready place=quarantine
        pause handler h
        finish a completed
        expect b ready waits=Paused
        expect c ready waits=Paused
        resume engine
        resume handler h
        expect b running
        expect c ready place=quarantine
    """)


def test_an_attempt_that_ends_in_any_other_way_breaks_the_row() -> None:
    story = play("""
        submit a b attempts=9
        crash
        restart
        tick 10s
        finish a failed
        finish b snoozed
        tick 10s
        crash
        restart
        tick 10s
        expect a running lost=2
        expect b running lost=2
    """)
    assert story.run("a").lost_streak == story.run("b").lost_streak == 1


# --- any story -----------------------------------------------------------------------------------------------------


@given(
    cap=st.integers(1, 5),
    outcomes=st.lists(st.sampled_from([*COUNTED, *UNCOUNTED, "lost", "crash"]), max_size=14),
)
def test_the_caps_hold_whatever_mixture_of_outcomes_comes(cap: int, outcomes: list[str]) -> None:
    """dispatch_invariants/05, section 6 number 6, wal_replay#41."""
    story = play(f"handler h max_lost=2 on_lost=retry\nsubmit a attempts={cap}")
    for outcome in outcomes:
        if story.run("a").is_terminal:
            break
        story.play("crash\nrestart" if outcome == "crash" else f"finish a {outcome}")
        story.play("tick 10s")

    run = story.run("a")
    assert run.failure_count <= cap
    assert run.lost_count <= 3
    assert run.is_terminal == (run.failure_count == cap or run.lost_count == 3)
    finished = [event.outcome for event in story.log if isinstance(event, AttemptFinished)]
    assert run.attempt_count == len(finished) + (not run.is_terminal)
    assert run.failure_count == sum(outcome in (Outcome.FAILED, Outcome.TIMED_OUT) for outcome in finished)


def test_a_refusal_is_an_error_that_knows_its_facts() -> None:
    story = play("submit a")

    refusal = story.perform(Finish(story.id("a"), b"x" * 16, 1, Outcome.COMPLETED))

    assert isinstance(refusal, ActionQueueError)
    assert refusal.facts["run_id"].bytes == story.id("a")  # type: ignore[attr-defined]
