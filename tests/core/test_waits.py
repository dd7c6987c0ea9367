"""Waits and signals in the core: every order of signal, deadline and cancel, crashes, keys, expiry, bounded parts."""

from __future__ import annotations

import itertools

import pytest

from actionqueue.core.awaiting import SLEEP, WaitAsked
from actionqueue.core.control import CancelRun
from actionqueue.core.errors import InvalidSubmission, LimitExceeded, PayloadTooLarge, StaleReport, StepTooLarge
from actionqueue.core.reasons import AwaitsSignal, Sleeping, Where
from actionqueue.core.records import STEP
from actionqueue.core.signals import SIGNAL_BYTES_MAX, SendSignal
from actionqueue.core.state import AWAITING, Outcome
from actionqueue.core.steps import STEP_BYTES_MAX, RecordStep
from actionqueue.core.waits import WAITS_PER_EVENT_MAX, WaitsEnded, wait_record
from tests.core.story import SECOND, Story, play


def record(story: Story, name: str, of: str = "receive#1") -> str:
    """How a wait of a run ended."""
    return wait_record(story.tables.steps[story.run(name).token][of][1]).how


def record_id(story: Story, name: str, of: str) -> str:
    return wait_record(story.tables.steps[story.run(name).token][of][1]).id


def test_a_signal_before_the_wait_serves_it_in_the_same_turn() -> None:
    story = play("signal go id=s1 \n submit a \n finish a awaits signal=go \n expect a running attempts=2 failures=0")

    assert record(story, "a") == "signaled"
    assert record_id(story, "a", "receive#1") == "s1"


def test_a_signal_during_the_wait_ends_it_and_takes_its_turn() -> None:
    play("""
        submit a
        finish a awaits signal=go key=k
        expect a awaiting reason=signal waits=AwaitsSignal attempts=1
        signal go
        signal go key=other
        signal stop key=k
        expect a awaiting
        signal go key=k
        expect a running attempts=2 failures=0
    """)


def test_a_waiting_run_holds_no_slot() -> None:
    play("""
        executor main 1
        submit a b
        started a
        finish a awaits signal=go
        started b
        signal go
        expect a ready reason=signaled
        finish b completed
        started a
    """)


@pytest.mark.parametrize(("hold", "starts"), [("retry_wait", "b"), ("awaiting", "")])
def test_a_waiting_run_holds_its_keys_only_if_it_says_so(hold: str, starts: str) -> None:
    play(f"""
        submit a limits=k hold={hold}
        submit b limits=k hold={hold}
        started a
        finish a awaits signal=go
        started {starts}
    """)


def test_a_sleep_ends_when_its_time_has_passed_also_while_no_engine_ran() -> None:
    story = play("submit a \n finish a sleeps for=1h name=nap \n tick 59m \n expect a awaiting until=60s")
    assert isinstance(story.reason("a"), Sleeping)
    story.play("crash \n jump 5m \n restart \n expect a running attempts=2")
    assert record(story, "a", "nap") == "slept"


@pytest.mark.parametrize("order", list(itertools.permutations(("signal", "deadline", "cancel"))))
@pytest.mark.parametrize("crash", [False, True])
def test_the_first_of_signal_deadline_and_cancel_ends_the_wait_once(order: tuple[str, ...], *, crash: bool) -> None:
    """continuation_race: whichever is decided first wins, in every order, also over a crash."""
    story = play("submit a \n finish a awaits signal=go timeout=1m \n project")
    for n, what in enumerate(order):
        if crash:
            story.play("crash \n restart")
        match what:
            case "signal":
                story.play("signal go")
            case "deadline":
                story.advance(60 * SECOND)
            case "cancel":
                story.perform(CancelRun(story.id("a")))
        if n == 0:
            won = {"signal": "signaled", "deadline": "timed_out"}.get(what)
    ends = [event for event in story.log if isinstance(event, WaitsEnded)]
    assert [event.how for event in ends] == ([] if won is None else [won])
    if won is not None:
        assert record(story, "a") == won
    else:
        assert story.run("a").state.value == "canceled"
    assert story.state.counts[AWAITING] == 0


def test_a_signal_that_came_in_time_wins_although_the_run_comes_up_after_its_deadline() -> None:
    """Decided when it arrives: an engine that is drained meanwhile does not make it late."""
    story = play("submit a \n finish a awaits signal=go timeout=1m")
    story.holding = True
    story.play("signal go \n project")
    assert story.run("a").where is Where.AWAITING
    story.holding = False
    story.play("crash \n jump 2m \n restart")
    assert record(story, "a") == "signaled"


def test_each_wait_is_served_once_by_the_oldest_signal_that_came_to_none_before() -> None:
    story = play("""
        signal go id=1
        signal go id=2
        submit a b
        finish a awaits signal=go
        finish a awaits signal=go
        finish a awaits signal=go
        finish b awaits signal=go
        expect a awaiting
        expect b running attempts=2
        signal go id=3
        expect a running attempts=4
        expect b running attempts=2
    """)
    assert [record_id(story, "a", f"receive#{n}") for n in (1, 2, 3)] == ["1", "2", "3"]
    assert record_id(story, "b", "receive#1") == "1"


def test_a_retry_goes_on_with_what_was_recorded_and_a_fresh_one_does_not() -> None:
    story = play("""
        signal go id=1
        submit a
        step a one
        finish a awaits signal=go
        finish a terminal
        retry a as b
        finish b awaits signal=go
        expect b awaiting
        cancel b
        project
        retry b as c fresh
        finish c awaits signal=go
        expect c running attempts=2
    """)
    assert record_id(story, "c", "receive#1") == "1"
    assert set(story.tables.steps[story.run("c").token]) == {"receive#1"}


def test_one_signal_wakes_every_run_in_bounded_parts_oldest_first() -> None:
    count = WAITS_PER_EVENT_MAX + 5
    story = Story(slots=10 * count, checked=False)
    names = [f"r{n}" for n in range(count)]
    story.submit(*names)
    for name in names:
        story.play(f"finish {name} awaits signal=go")
    story.play("signal go")
    ends = [event for event in story.log if isinstance(event, WaitsEnded)]
    assert [len(event.run_ids) for event in ends] == [WAITS_PER_EVENT_MAX, 5]
    assert [run_id for event in ends for run_id in event.run_ids] == [story.id(name) for name in names]
    assert not story.check(settled=True)


def test_a_crash_between_two_parts_wakes_the_rest() -> None:
    story = play("submit a b c \n finish a awaits signal=go \n finish b awaits signal=go \n finish c awaits signal=no")
    story.holding = True
    story.play("signal go id=1 \n crash")
    story.holding = False
    story.play("restart \n expect a running attempts=2 \n expect b running attempts=2 \n expect c awaiting")


def test_a_signal_is_known_by_its_id() -> None:
    story = play("""
        submit a
        signal go id=1 payload=1
        signal go id=1 payload=1
        refused SignalConflict: signal go id=1 payload=2
        refused SignalConflict: signal go id=1 payload=1 key=k
        finish a awaits signal=go
        finish a awaits signal=go
        signal go id=1 payload=1
        expect a awaiting
    """)
    assert len(story.state.places.awaiting.signals) == 1


def test_signals_expire_by_age_and_by_count_oldest_first() -> None:
    story = Story()
    story.machine.signals_max = 3
    story.play("signal go id=1 \n signal go id=2 \n signal go id=3 \n signal go id=4")
    assert list(story.state.places.awaiting.signals) == ["2", "3", "4"]
    story.machine.signal_age_us = 60 * SECOND
    story.play("tick 30s \n signal stop id=5 \n tick 31s \n signal other id=6")
    assert list(story.state.places.awaiting.signals) == ["5", "6"]
    story.play("submit a \n finish a awaits signal=go \n expect a awaiting")


def test_no_signal_expires_while_a_run_is_yet_to_be_woken_by_it() -> None:
    story = play("submit a \n finish a awaits signal=go")
    story.machine.signals_max = 1
    story.holding = True
    story.play("signal go id=1 \n signal other id=2")
    story.holding = False
    story.settle()
    assert record(story, "a") == "signaled"


def test_nothing_expires_while_the_clock_is_in_doubt() -> None:
    story = play("signal go id=1")
    story.machine.signal_age_us = SECOND
    story.state.places.timers.suspended = True
    story.play("tick 5s \n signal stop id=2")
    assert len(story.state.places.awaiting.signals) == 2


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": ""}, InvalidSubmission),
        ({"key": ""}, InvalidSubmission),
        ({"signal_id": "\0"}, InvalidSubmission),
        ({"payload": b"{"}, InvalidSubmission),
        ({"payload": b"\xff"}, InvalidSubmission),
        ({"payload": b'"' + b"x" * SIGNAL_BYTES_MAX + b'"'}, PayloadTooLarge),
    ],
)
def test_what_is_no_signal_is_refused(fields: dict[str, object], kind: type[Exception]) -> None:
    command = SendSignal("1", "go")
    for name, value in fields.items():
        setattr(command, name, value)
    Story().refused(command, kind)  # type: ignore[arg-type]


def test_waits_end_under_a_pause_and_their_runs_are_held_back_by_it() -> None:
    play("""
        submit a b
        finish a awaits signal=go
        finish b sleeps for=1m
        pause engine
        signal go
        tick 1m
        expect a ready reason=signaled waits=Paused
        expect b ready reason=slept waits=Paused
        resume engine
        expect a running
    """)


def test_a_wait_of_a_run_that_was_asked_to_stop_cancels_it() -> None:
    play("submit a \n cancel a \n finish a awaits signal=go \n expect a canceled attempts=1")


def test_a_wait_of_a_lost_attempt_is_refused() -> None:
    story = play("submit a")
    late = story.report("a", Outcome.AWAITING, wait=WaitAsked(SLEEP, "nap", 5))
    story.play("crash \n restart")
    story.refused(late, StaleReport)


def test_the_reason_names_the_signal_and_the_deadline() -> None:
    story = play("submit a \n finish a awaits signal=go key=k timeout=1h")
    reason = story.reason("a")
    assert isinstance(reason, AwaitsSignal)
    assert (reason.name, reason.key) == ("go", "k")
    assert reason.until is not None
    assert (reason.until - reason.since).total_seconds() == 3600


def step(story: Story, name: str, **fields: object) -> RecordStep:
    attempt = story.attempt("a")
    command = RecordStep(story.id("a"), attempt.id, attempt.fence, name, STEP, b"1", b"d" * 16)
    for field, value in fields.items():
        setattr(command, field, value)
    return command


def test_steps_are_counted_while_a_run_of_their_chain_is_live() -> None:
    story = play("submit a \n step a one \n step a two")
    token = story.run("a").token
    assert story.state.recorded == {token: 2}
    story.play("crash \n restart")
    assert story.state.recorded == {token: 2}
    story.play("tick 10s \n finish a completed")
    assert story.state.recorded == {}
    story.project()
    assert not any(kind == "recorded" for kind, _ in story.tables.entries)


def test_what_is_no_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    story = play("submit a")
    story.refused(step(story, "one", fence=1), StaleReport)
    story.refused(step(story, ""), InvalidSubmission)
    story.refused(step(story, "big", body=b"1" * (STEP_BYTES_MAX + 1)), StepTooLarge)
    monkeypatch.setattr("actionqueue.core.steps.RECORDS_MAX", 1)
    story.play("step a one")
    story.refused(step(story, "two"), LimitExceeded)


def test_what_a_fresh_retry_forgot_is_not_forgotten_again_by_an_opening() -> None:
    """The log's tail tells of it once more, and by then there are records of the new run."""
    story = play("""
        submit a
        step a one
        finish a terminal
        project
        retry a as b fresh
        step b two
        crash
        restart
        tick 10s
        step b three
    """)
    assert set(story.tables.steps[story.run("b").token]) == {"two", "three"}


def test_a_run_that_waits_twice_until_one_instant_is_woken_once() -> None:
    story = play("""
        submit a
        finish a awaits signal=go timeout=10s
        signal go
        finish a awaits signal=stop timeout=10s
        tick 10s
        expect a running attempts=3
    """)
    assert [event.how for event in story.log if isinstance(event, WaitsEnded)] == ["signaled", "timed_out"]


def test_what_a_chain_has_recorded_is_known_after_a_restart() -> None:
    story = play(
        """
        submit a
        step a one
        step a two
        project
        crash
        restart
        """
    )

    assert story.state.recorded == {story.id("a"): 2}
