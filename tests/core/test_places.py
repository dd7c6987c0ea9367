"""Dispatch: which run starts next, what holds one back and what does not, and what it costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core import limits as limits_module
from actionqueue.core import ready as ready_module
from actionqueue.core import timers as timers_module
from actionqueue.core import waking as waking_module
from actionqueue.core.control import Pause, Resume
from actionqueue.core.instants import to_datetime
from actionqueue.core.places import Places
from actionqueue.core.ready import ReadyRuns
from actionqueue.core.reasons import (
    AheadInLine,
    ArgumentsMisfit,
    HandlerMissing,
    InProgress,
    NoFreeSlot,
    NotYetDue,
    TakesItsTurn,
    Where,
)
from actionqueue.core.reasons import Paused as PausedReason
from actionqueue.core.retry import DEFAULT_TERMS
from actionqueue.core.state import Outcome
from actionqueue.core.submission import Submit
from tests.core.story import SECOND, START, Story, holders, play

# --- order ---------------------------------------------------------------------------------------------------------


def test_the_larger_priority_starts_first_and_equals_in_the_order_they_became_ready() -> None:
    """selection_default#1, selection_default#4, selection_default#6, section 5 number 37, section 6 number 11."""
    play("""
        executor main 0
        submit a1 priority=1
        submit b8 priority=8
        submit c5 priority=5
        submit d5 priority=5
        submit e10 priority=10
        submit f-3 priority=-3
        executor main 1
        finish e10 completed
        finish b8 completed
        finish c5 completed
        finish d5 completed
        finish a1 completed
        started e10 b8 c5 d5 a1 f-3
    """)


def test_a_better_run_that_comes_after_a_slot_was_freed_and_before_anything_starts_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine decides all that is in its mailbox before it starts anything."""
    story = play("""
        executor main 1
        submit x
        submit a queue=one priority=1
        submit b queue=two
    """)
    with monkeypatch.context() as patched:
        patched.setattr(story, "settle", lambda: None)
        story.play("finish x completed")
        story.play("submit c queue=two priority=5")
    story.settle()
    story.play("started x c")


def test_a_lane_that_was_woken_for_a_run_that_is_gone_lets_the_next_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best run of the queue misses its deadline in the step that frees a slot of the queue and one of the executor."""
    story = play("""
        executor main 1
        executor other 1
        handler k executor=other
        queue narrow 1
        submit x queue=narrow handler=k
        submit y
        submit e queue=narrow handler=k priority=9 expires=5s
        submit f queue=narrow handler=k
        submit a queue=narrow priority=5
        submit b priority=3
    """)
    with monkeypatch.context() as patched:
        patched.setattr(story, "settle", lambda: None)
        story.now += 5 * SECOND
        story.play("finish x completed")
        story.play("finish y completed")
    story.settle()
    story.play("started x y a")


@pytest.mark.parametrize("order", list(itertools.permutations(["a:8:h", "b:5:h", "c:5:g", "d:1:g"])), ids=" ".join)
def test_priorities_compare_across_queues_and_handlers_whatever_the_order_of_submission(order: list[str]) -> None:
    """selection_default#2, selection_default#3, selection_default#5, selection_default#7."""
    story = play("executor main 0\nhandler g")
    for each in order:
        name, priority, handler = each.split(":")
        story.play(f"submit {name} priority={priority} handler={handler} queue={'mail' if handler == 'g' else 'sms'}")
    equals = sorted("bc", key=[each[0] for each in order].index)

    story.play("executor main 1")
    for name in ["a", *equals]:
        story.play(f"finish {name} completed")

    story.play(f"started a {equals[0]} {equals[1]} d")


def test_a_stream_of_important_work_goes_before_what_waits_longer() -> None:
    """Section 5 number 38: strict priority, without ageing. What waits starts when the stream lets up."""
    story = play("executor main 1\nsubmit low priority=0 handler=h\nsubmit h0 priority=5")
    story.play("finish low snoozed\nexpect low ready")
    for n in range(5):
        story.play(f"submit h{n + 1} priority=5\nfinish h{n} completed\nexpect low ready")

    story.play("finish h5 completed\nexpect low running")


def test_a_retry_queues_by_when_it_became_ready_again() -> None:
    play("""
        executor main 1
        submit a
        submit b
        finish a failed
        tick 11s
        submit c
        finish b completed
        finish a completed
        started a b a c
    """)


@given(
    st.lists(st.tuples(st.sampled_from(["h", "g"]), st.sampled_from(["q", "r", "s"]), st.integers(-2, 2)), max_size=25)
)
def test_one_slot_starts_everything_in_one_order(tasks: list[tuple[str, str, int]]) -> None:
    story = play("executor main 0\nhandler g")
    for n, (handler, queue, priority) in enumerate(tasks):
        story.submit(f"t{n}", handler=handler, queue=queue, priority=priority)

    story.play("executor main 1")
    while story.state.runs:
        running = next(name for name in story.names if story.where(name) is Where.RUNNING)
        story.finish(running)

    expected = sorted(range(len(tasks)), key=lambda n: (-tasks[n][2], n))
    assert story.started == [story.id(f"t{n}") for n in expected]


# --- what a lane queues by -----------------------------------------------------------------------------------------


def test_a_lane_whose_best_run_is_gone_does_not_keep_its_turn() -> None:
    """Both lanes wait for the same slot; the best run of the first is canceled, so the second one is next."""
    play("""
        handler g
        queue mail 1
        submit x queue=mail
        submit a10 queue=mail priority=10
        submit a0 queue=mail priority=0
        submit b5 queue=mail priority=5 handler=g
        cancel a10
        finish x completed
        finish b5 completed
        started x b5 a0
    """)


def test_a_lane_whose_best_run_lost_its_priority_does_not_keep_its_turn() -> None:
    play("""
        executor main 1
        handler g
        submit x
        submit a10 priority=10
        submit b5 priority=5 handler=g
        submit c7 priority=7
        reprioritize a10 0
        reprioritize c7 1
        finish x completed
        finish b5 completed
        finish c7 completed
        started x b5 c7 a10
    """)


def test_a_lane_in_the_open_whose_best_run_is_gone_does_not_keep_its_turn() -> None:
    play("""
        handler g
        executor main 1
        pause engine
        submit a10 priority=10
        submit a0
        submit b5 priority=5 handler=g
        cancel a10
        resume engine
        finish b5 completed
        started b5 a0
    """)


def test_what_falls_due_does_not_start_ahead_of_what_is_ready() -> None:
    """Also when nobody has asked before whether that may start."""
    story = play("executor main 1\nhandler g\nsubmit b delay=5s\nsubmit x")
    machine = story.machine
    machine.perform(Submit([story.item("a", "g")]), story.now)
    machine.perform(story.report("x", Outcome.COMPLETED), story.now)

    machine.fire_due(story.now + 5 * SECOND, story.next_id, [])

    assert story.where("a") is Where.RUNNING
    assert story.where("b") is Where.LANE


def test_a_lane_that_got_a_better_run_while_it_waited_is_woken_for_it() -> None:
    play("""
        executor main 1
        handler g
        submit x
        submit a0
        submit b5 priority=5 handler=g
        submit a9 priority=9
        submit b0 handler=g
        reprioritize b0 12
        finish x completed
        finish b0 completed
        finish a9 completed
        finish b5 completed
        started x b0 a9 b5 a0
    """)


def test_a_lane_blocked_by_something_else_hands_the_slot_on() -> None:
    """Both wait for the executor; the best one's queue is full by the time a slot is free."""
    play("""
        executor main 1
        handler g
        queue mail 1
        submit x queue=sms
        submit a queue=mail priority=5
        submit b queue=sms handler=g
        queue mail 0
        finish x completed
        expect a ready waits=NoFreeSlot
        expect b running
        queue mail 1
        expect a ready
        finish b completed
        expect a running
    """)


def test_slots_that_become_free_together_are_all_taken() -> None:
    story = play("""
        handler g
        handler f
        executor main 0
        submit a b handler=h
        submit c d handler=g
        submit e f handler=f
        executor main 4
    """)
    assert holders(story.state.places.executors["main"], story) == {"a", "b", "c", "d"}
    story.play("""
        pause handler f
        finish a completed
        finish b completed
        executor main 2
        finish c completed
        resume handler f
        expect e running
        finish d completed
        expect f running
    """)


# --- slots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_as_many_run_at_once_as_there_are_slots_never_more_never_fewer(slots: int) -> None:
    """concurrent_dispatch_stress/01 to 05 in miniature: concurrent_dispatch_stress/01, concurrent_dispatch_stress/02,
    concurrent_dispatch_stress/03, concurrent_dispatch_stress/04, concurrent_dispatch_stress/05, section 5 number 39.
    """
    story = Story(slots=slots)
    count, chance = 40, random.Random(slots)
    story.submit(*[f"t{n}" for n in range(count)], max_attempts=1)

    most = 0
    while story.state.runs:
        running = sorted(holders(story.state.places.executors["main"], story))
        most = max(most, len(running))
        assert len(running) == min(slots, len(story.state.runs))
        story.finish(chance.choice(running), chance.choice([Outcome.COMPLETED, Outcome.FAILED]))

    assert most == slots
    assert len(story.started) == count


def test_the_concurrency_of_a_queue_holds_across_handlers_and_executors() -> None:
    story = play("""
        executor side 5
        handler g executor=side
        queue mail 2
        submit a b c queue=mail
        submit d e queue=mail handler=g priority=1
        submit f
        expect f running
    """)
    mail = story.state.places.queues["mail"]
    assert holders(mail, story) == {"a", "b"}
    story.play("finish a failed")
    assert holders(mail, story) == {"b", "d"}
    story.play("finish b completed\nfinish d completed")
    assert holders(mail, story) == {"c", "e"}
    story.play("cancel c how=abandon\nfinish e lost")
    assert holders(mail, story) == set()
    story.play("tick 10s")
    assert holders(mail, story) == {"a", "e"}


@pytest.mark.parametrize("outcome", ["completed", "failed", "terminal", "timed_out", "snoozed", "lost", "canceled"])
def test_every_way_to_end_an_attempt_gives_its_slot_to_the_next(outcome: str) -> None:
    """The slot follows the run: cancellation/03, concurrency_key/03 and concurrency_key/06 for queues and executors."""
    story = play(f"""
        executor main 1
        queue default 1
        submit a b
        pause handler none
        expect b ready
        finish a {outcome} after=1h
        expect b running
    """)
    assert holders(story.state.places.queues["default"], story) == {"b"}


def test_a_full_executor_never_holds_back_another() -> None:
    play("""
        executor main 0
        executor side 1
        handler g executor=side
        submit a priority=9
        submit b handler=g
        expect a ready waits=NoFreeSlot
        expect b running
    """)


def test_a_blocked_head_never_holds_back_what_is_behind_it() -> None:
    """Missing handler, full queue, paused queue: each at the head, each passed by."""
    play("""
        executor main 1
        queue full 0
        pause queue paused
        submit missing handler=missing priority=9
        submit full queue=full priority=8
        submit paused queue=paused priority=7
        submit free
        expect free running
        expect missing ready waits=HandlerMissing
        expect full ready waits=NoFreeSlot
        expect paused ready waits=Paused
    """)


def test_a_capacity_can_be_raised_lowered_and_lifted_while_work_runs() -> None:
    play("""
        queue mail 1
        submit a b c d queue=mail
        queue mail 3
        expect b running
        expect c running
        queue mail 1
        finish a completed
        finish b completed
        expect d ready
        finish c completed
        expect d running
        submit e f queue=mail
        queue mail none
        expect e running
        expect f running
    """)


# --- handlers ------------------------------------------------------------------------------------------------------


def test_a_run_without_a_handler_waits_until_one_is_registered() -> None:
    """Rolling deploys: accepted, blocked, and started by whoever registers the handler."""
    story = play("""
        submit a handler=later
        submit b handler=later delay=5s
        tick 5s
        expect a ready waits=HandlerMissing
        expect b ready waits=HandlerMissing reason=due
    """)
    assert story.reason("a") == HandlerMissing("later")
    story.play("handler later\nexpect a running\nexpect b running")


def test_a_handler_registered_with_another_executor_gives_its_slots_back_where_they_were_taken() -> None:
    story = play("""
        executor main 1
        executor side 1
        submit a
        submit b
        handler h executor=side
        expect b running
        submit c
        expect c ready
        submit d handler=g
        handler g
        expect d ready
        finish a completed
        expect d running
        finish b completed
        expect c running
    """)
    assert holders(story.state.places.executors["main"], story) == {"d"}
    assert holders(story.state.places.executors["side"], story) == {"c"}


def test_a_handler_needs_an_executor_that_has_slots() -> None:
    with pytest.raises(AssertionError):
        Places().register("h", "nowhere", DEFAULT_TERMS)


# --- what it costs -------------------------------------------------------------------------------------------------


class Counting:
    """Stands in for what touches entries of the places' heaps and lines, and counts the entries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushes = self.pops = self.lines = 0
        push, pop = waking_module.heappush, waking_module.heappop

        def heappush(heap: list[Any], entry: Any) -> None:
            self.pushes += 1
            push(heap, entry)

        def heappop(heap: list[Any]) -> Any:
            self.pops += 1
            return pop(heap)

        for module in (waking_module, ready_module, timers_module, limits_module):
            monkeypatch.setattr(module, "heappush", heappush)
            monkeypatch.setattr(module, "heappop", heappop)
        for name in ("add", "remove", "head", "bound_after", "__iter__"):
            monkeypatch.setattr(ReadyRuns, name, self._counted(getattr(ReadyRuns, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(line: ReadyRuns, *args: Any) -> Any:
            self.lines += 1 if method.__name__ != "__iter__" else line.count
            return method(line, *args)

        return counted

    @property
    def touched(self) -> tuple[int, int, int]:
        return self.pushes, self.pops, self.lines


def blocked_on(what: str, count: int) -> Story:
    """A story with so many runs that wait for something, and slots enough for others."""
    story = Story(checked=False)
    names = [f"t{n}" for n in range(count)]
    match what:
        case "a paused queue":
            story.play("pause queue other")
            story.submit(*names, queue="other", priority=5)
        case "a paused queue, due since":
            story.submit(*names, queue="other", priority=5, delay_us=SECOND)
            story.play("pause queue other\ntick 2s")
        case "a full queue":
            story.play("queue other 0")
            story.submit(*names, queue="other", priority=5)
        case "a missing handler":
            story.submit(*names, handler="missing", priority=5)
        case "a full executor":
            story.play("executor side 0\nhandler g executor=side")
            story.submit(*names, handler="g", priority=5)
        case _:
            story.submit(*names, delay_us=3600 * SECOND)
    return story


@pytest.mark.parametrize(
    "what",
    ["a paused queue", "a paused queue, due since", "a full queue", "a missing handler", "a full executor", "later"],
)
def test_ten_thousand_blocked_runs_cost_the_dispatch_of_an_unrelated_one_nothing(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEMANTICS section 8, section 5 number 32: the same heap entries are touched as with none blocked."""
    touched = []
    for count in (0, 10_000):
        story = blocked_on(what, count)
        assert len(story.state.runs) == count
        with monkeypatch.context() as patched:
            counting = Counting(patched)
            story.submit("a", "b")
            story.finish("a", Outcome.FAILED)
            story.finish("b")
            story.advance(10 * SECOND)
            story.finish("a")
        assert len(story.state.runs) == count
        touched.append(counting.touched)

    assert touched[0] == touched[1]
    assert touched[0] != (0, 0, 0)


def test_a_pause_of_ten_thousand_ready_runs_costs_no_more_than_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []
    for count in (1, 10_000):
        story = Story(slots=0, checked=False)
        story.submit(*[f"t{n}" for n in range(count)])
        with monkeypatch.context() as patched:
            counting = Counting(patched)
            story.perform(Pause("queue", "default"))
            story.perform(Resume("queue", "default"))
        touched.append(counting.touched)

    assert touched[0] == touched[1]


def churn(step: Callable[[Story, int], None], count: int = 2_000) -> Story:
    """A story in which ``step`` happens many times."""
    story = Story(checked=False)
    for n in range(count):
        step(story, n)
        if n % 50 == 0:
            story.project()
    story.project()
    return story


def heap_sizes(story: Story) -> int:
    """Entries in all heaps."""
    places = story.state.places
    slots = [places.open, *places.all_slots()]
    lanes = sum(len(level.early or ()) for lane in places.all_lanes() for level in lane.ready.levels().values())
    timers = len(places.timers.due_at) + len(places.timers.deadlines) + len(places.limits.timers)
    return timers + lanes + sum(len(each.waiting or ()) for each in slots)


def test_what_has_ended_leaves_every_heap() -> None:
    """Memory grows with live work: neither a far deadline, a far timer nor a long line keeps ended runs."""

    def expiring(story: Story, n: int) -> None:
        story.submit(f"t{n}", expires_us=365 * 86_400 * SECOND)
        story.finish(f"t{n}")

    def delayed(story: Story, n: int) -> None:
        story.submit(f"t{n}", delay_us=365 * 86_400 * SECOND)
        story.play(f"cancel t{n}")

    def rescheduled(story: Story, n: int) -> None:
        if n == 0:
            story.submit("a", delay_us=365 * 86_400 * SECOND)
        story.play(f"reschedule a {n + 1000}s")

    def canceled_in_line(story: Story, n: int) -> None:
        if n == 0:
            story.play("executor main 0\nsubmit head priority=9")
        story.submit(f"t{n}")
        story.play(f"cancel t{n}")

    def reprioritized(story: Story, n: int) -> None:
        if n == 0:
            story.play("executor main 0\nsubmit head priority=9999\nsubmit a")
        story.play(f"reprioritize a {n % 7}")

    def raised(story: Story, n: int) -> None:
        if n == 0:
            story.play("executor main 0\nsubmit a b")
        story.play(f"reprioritize a {n}")

    for step in (expiring, delayed, rescheduled, canceled_in_line, reprioritized, raised):
        assert heap_sizes(churn(step)) < 250, step.__name__


# --- why it is not running -----------------------------------------------------------------------------------------


def test_each_place_says_what_a_run_waits_for() -> None:
    story = play("""
        executor main 1
        queue full 0
        submit running
        submit line1 line2
        submit later delay=5s
        submit nobody handler=missing
        submit slot queue=full
        pause queue paused by=me
        submit paused queue=paused
    """)
    assert story.reason("running") == InProgress(1, to_datetime(START), "main")
    assert story.reason("line1") == NoFreeSlot("executor", "main", 1, 1, (story.run_id("running"),))
    assert story.reason("later") == NotYetDue(to_datetime(START + 5 * SECOND), backing_off=False)
    assert story.reason("nobody") == HandlerMissing("missing")
    assert story.reason("slot") == NoFreeSlot("queue", "full", 0, 0, ())
    assert story.reason("paused") == PausedReason("queue", "paused", to_datetime(START), "me")
    assert story.state.places.blocked_count(story.state.counts[1]) == 5

    story.play("finish running failed\npause engine by=you")
    assert story.reason("running") == NotYetDue(to_datetime(START + 10 * SECOND), backing_off=True)
    assert story.reason("line2") == PausedReason("engine", "", to_datetime(START), "you")
    assert story.reason("later") == NotYetDue(to_datetime(START + 5 * SECOND), backing_off=False)
    story.play("tick 5s")
    assert story.reason("later") == PausedReason("engine", "", to_datetime(START), "you")
    assert story.state.places.blocked_count(story.state.counts[1]) == 4, "line1 runs; later is not ready"
    story.play("finish line1 completed")
    assert story.reason("line1") is None


def test_a_run_in_an_open_lane_says_how_many_are_ahead() -> None:
    """Between two steps: the lane may start, and has not been asked yet. No run is counted twice."""
    story = Story(slots=0)
    story.submit("a", "b", "c", "d")
    for priority in (5, 0, 5, 0):
        story.play(f"reprioritize b {priority}")
    story.state.places.set_executor("main", 9)

    assert [story.reason(name) for name in "abcd"] == [AheadInLine(ahead) for ahead in range(4)]


def test_the_reasons_of_what_is_set_aside_and_of_what_does_not_fit() -> None:
    story = play("submit a b\ncrash\nrestart\ntick 10s\ncrash\nrestart\ntick 10s\nsubmit c\nfinish c misfit")

    assert story.reason("b") == TakesItsTurn(story.run_id("a"))
    assert story.reason("c") == ArgumentsMisfit("h")
    assert story.state.places.blocked_count(story.state.counts[1]) == 2


# --- the next wake-up ----------------------------------------------------------------------------------------------


def test_the_next_wake_up_is_the_earliest_instant_that_matters() -> None:
    """Section 5 number 45: with only blocked or future runs there is nothing to do until then."""
    story = Story()
    places = story.state.places
    assert places.next_timer() is None

    story.play("submit a delay=30s\nsubmit b delay=10s\nsubmit c delay=20s expires=5s")
    assert places.next_timer() == START + 5 * SECOND
    story.play("cancel c")
    assert places.next_timer() == START + 10 * SECOND
    story.play("reschedule b 40s")
    assert places.next_timer() == START + 30 * SECOND
    story.play("pause engine")
    assert places.next_timer() is None
    story.play("resume engine\npause queue default\ntick 50s")
    assert places.next_timer() is None, "what a pause holds wakes when it is lifted"


def test_a_disposed_state_lets_go_of_everything() -> None:
    story = play("executor main 1\nsubmit a b\nsubmit c delay=5s expires=9s\nsubmit d handler=missing\nfinish a failed")
    state = story.state

    state.dispose()

    assert not state.runs
    assert not state.tasks
    assert not state.places.lanes
    assert not state.places.timers.due_at
    assert not any(slots.running for slots in state.places.queues.values())


# --- a lane that is asked again ------------------------------------------------------------------------------------


def test_a_handler_paused_between_two_starts_is_parked_and_the_slots_go_to_the_others() -> None:
    """A lane was woken and is in the open when its pause comes: the wake-up is handed on."""
    story = play("""
        executor main 1
        handler g
        submit a1 priority=5
        submit a2 priority=4
        submit b1 priority=3 handler=g
    """)
    machine, now = story.machine, story.now

    machine.perform(story.report("a1", Outcome.COMPLETED), now)
    machine.perform(Pause("handler", "h"), now)
    machine.start_ready(now, story.next_id, [])

    assert story.where("b1") is Where.RUNNING
    assert story.where("a2") is Where.LANE
