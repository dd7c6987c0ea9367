"""Explain: why a run is not running, in types and in words, and whom it waits for; what is limited, and how far."""

from __future__ import annotations

import typing
from collections import Counter

import pytest

from actionqueue.core.control import CancelRun
from actionqueue.core.epochs import Close
from actionqueue.core.equipment import equip, equipment_of
from actionqueue.core.explain import (
    BREADTH_MAX,
    DEPTH_MAX,
    RUNS_MAX,
    Explain,
    Explanation,
    ended,
    explain,
    find,
    undecided,
    without_engine,
)
from actionqueue.core.instants import to_datetime
from actionqueue.core.plain import parsed, plain
from actionqueue.core.reasons import (
    AheadInLine,
    AtInstant,
    Ended,
    InProgress,
    ItsTurn,
    KeyHeld,
    MoreSlots,
    NoEngineRuns,
    NoFreeSlot,
    NotDecided,
    NotYetDue,
    OfSchedule,
    Paused,
    PreviousLive,
    Reason,
    Release,
    ResumeScope,
    RunsEnd,
    StartEngine,
    TakesItsTurn,
)
from actionqueue.core.rules import RepeatRule
from actionqueue.core.schedules import PutSchedule
from actionqueue.core.submission import Submit
from actionqueue.core.why import HOLDERS_LISTED_MAX
from tests.core.story import SECOND, START, Story, play

REASONS = {kind.__name__ for kind in typing.get_args(Reason)}


def of(story: Story, name: str) -> Explanation:
    """The explanation of a live run, which stays the same on its way to another process."""
    found = explain(story.state, story.run(name), story.now)
    assert parsed(plain(found), Explanation) == found
    return found


def said(story: Story, explanation: Explanation) -> list[str]:
    """Its text, with runs by their names."""
    text = str(explanation)
    for name, (_, run_id) in story.names.items():
        text = text.replace(run_id.hex()[-8:], name)
    for name, (task_id, _) in story.names.items():
        text = text.replace(task_id.hex()[-8:], f"of {name}")
    return text.splitlines()


def chain(explanation: Explanation) -> list[str]:
    """The reasons along the first of each."""
    return [
        type(explanation.reason).__name__,
        *(chain(explanation.because[0]) if explanation.because else []),
    ]


# --- every reason, in words -----------------------------------------------------------------------------------------


def test_a_run_that_is_not_due_is_released_by_time() -> None:
    story = play("submit a delay=90s expires=2h")

    found = of(story, "a")

    assert found.release == AtInstant(to_datetime(START + 90 * SECOND))
    assert said(story, found) == [
        "run a of h is scheduled: due at 22:14:50Z",
        "  released in 1 min 30 s",
        "  canceled if it has not started by 2023-11-15 00:13:20Z",
    ]


def test_a_run_that_backs_off_says_what_it_backs_off_from_and_which_keys_it_holds() -> None:
    story = play("submit a limits=k,l hold=retry_wait\nfinish a failed\nsubmit b limits=k")

    assert said(story, of(story, "a")) == [
        "run a of h is retry_wait: to be tried again at 22:13:30Z",
        "  released in 10 s",
        "  holds key 'k', key 'l' while it waits",
        "  attempt 1 ended failed (E); 1 of at most 3 failures",
    ]
    assert chain(of(story, "b")) == ["KeyHeld", "NotYetDue"]


@pytest.mark.parametrize(
    ("scope", "name", "words"),
    [
        ("engine", "", "the engine"),
        ("queue", "default", "queue 'default'"),
        ("handler", "h", "handler 'h'"),
        ("task", "a", "task of a"),
    ],
)
def test_a_pause_is_told_with_who_set_it_and_released_by_resuming_the_same(scope: str, name: str, words: str) -> None:
    story = play(f"executor main 0\nsubmit a\npause {scope} {name} by=ann")

    found = of(story, "a")

    mark = story.task_id("a").hex() if scope == "task" else name
    assert (found.reason, found.release) == (
        Paused(scope, mark, to_datetime(START), "ann"),
        ResumeScope(scope, mark),
    )
    assert said(story, found) == [
        f"run a of h is ready: {words} is paused since 22:13:20Z (by ann)",
        f"  released when {words} is resumed",
    ]


def test_a_missing_handler_and_arguments_that_do_not_fit_are_told_apart() -> None:
    story = play("submit a handler=later\nsubmit b\nfinish b misfit")

    assert said(story, of(story, "a")) == [
        "run a of later is ready: no handler 'later' is registered with the engine",
        "  released when a handler 'later' of that name is registered",
    ]
    assert said(story, of(story, "b"))[:2] == [
        "run b of h is ready: its arguments do not fit the handler 'h' that is registered",
        "  released when a handler 'h' that they fit is registered",
    ]


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        ("queue default 1", "queue", "default"),
        ("executor main 1", "executor", "main"),
        ("handler h concurrency=1", "handler", "h"),
    ],
)
def test_slots_are_told_with_who_has_them(given: str, kind: str, name: str) -> None:
    story = play(f"{given}\nsubmit a\nsubmit b")

    found = of(story, "b")

    assert found.reason == NoFreeSlot(kind, name, 1, 1, (story.run_id("a"),))
    assert said(story, found) == [
        f"run b of h is ready: {kind} {name!r} has no free slot, 1 of 1 are taken by run a",
        "  released when run a ends",
        "  run a of h is running: attempt 1 since 22:13:20Z on main",
    ]


def test_no_slots_at_all_are_released_by_giving_some() -> None:
    story = play("queue default 0\nsubmit a")

    assert of(story, "a").release == MoreSlots("queue", "default")
    assert said(story, of(story, "a")) == [
        "run a of h is ready: queue 'default' has no free slot, 0 of 0 are taken",
        "  released when queue 'default' is given slots",
    ]


def test_a_key_is_told_with_its_holder_and_what_that_is_doing() -> None:
    """The issue's example: waits for key customer:7, held by run b in its second attempt."""
    story = play("submit b limits=customer.7\nfinish b failed\ntick 10s\nsubmit a limits=customer.7")
    story.play("progress b 3")

    assert said(story, of(story, "a")) == [
        "run a of h is ready: key 'customer.7' is taken, 1 of 1 by run b",
        "  released when run b ends",
        "  run b of h is running: attempt 2 since 22:13:30Z on main, 3 done",
    ]


def test_a_rate_is_told_with_its_arithmetic() -> None:
    story = play("submit a b c d rates=r:2/10s/3")

    assert said(story, of(story, "d")) == [
        "run d of h is ready: rate 'r' (2 per 10s, 3 at once) has no token until 22:13:25Z",
        "  released in 5 s",
    ]


def test_a_run_set_aside_after_crashes_waits_for_the_one_on_trial() -> None:
    story = play("submit a b\ncrash\nrestart\ntick 10s\ncrash\nrestart\ntick 10s")

    assert of(story, "b").reason == TakesItsTurn(story.run_id("a"))
    assert said(story, of(story, "b"))[:2] == [
        "run b of h is ready: it was live in two crashes in a row; such runs start one at a time, after run a",
        "  released when run a ends",
    ]


def test_where_nothing_holds_it_back_a_run_counts_those_ahead() -> None:
    story = Story(slots=3)
    story.holding = True
    story.submit("a", "b", priority=5)
    story.submit("c")

    assert (of(story, "c").reason, of(story, "c").release) == (AheadInLine(2), ItsTurn())
    assert said(story, of(story, "c")) == [
        "run c of h is ready: nothing holds it back; 2 runs of its line go first",
        "  released when the engine comes to it; there is nothing to do",
    ]


def test_an_occurrence_waits_for_the_ones_before_it() -> None:
    story = Story(slots=3)
    rule = RepeatRule(5, SECOND, None, "catch_up", 60 * SECOND, None, "queue")
    item = story.item("s", rule=rule, schedule_name="hourly", schedule_origin="call")
    story.perform(PutSchedule(item))
    story.advance(3 * SECOND)
    runs = sorted(story.state.runs.values(), key=lambda run: run.order)
    names = {run_id: name for name, (_, run_id) in story.names.items()}
    third = names[runs[2].id_bytes]

    found = of(story, third)

    assert found.reason == PreviousLive((runs[0].id, runs[1].id), 2, "queue")
    assert [each.run_id for each in found.because] == [runs[0].id, runs[1].id]
    assert (found.because[1].because, found.because[1].unexplained) == ((), 1), "what is told is not told again"
    first, second = names[runs[0].id_bytes], names[runs[1].id_bytes]
    one_at_a_time = "its schedule runs one at a time (queue), and 2 occurrences before it are live"
    assert said(story, found)[:3] == [
        f"run {third} of h is scheduled: {one_at_a_time}: runs {first}, {second}",
        "  released when all of them end",
        "  of schedule 'hourly' (5 × every 1s, overlap queue); next at 22:13:24Z",
    ]
    assert find(story.state, item.task_id) is story.state.runs[story.state.schedules[item.task_id].pending or b""]


def test_a_schedule_says_what_it_skipped_and_that_it_was_retired() -> None:
    story = Story(slots=3)
    rule = RepeatRule(5, SECOND, None, "skip", SECOND, None, "allow")
    story.perform(Submit([story.item("s", rule=rule)]))
    story.play("pause engine")
    story.advance(4 * SECOND)
    story.play("resume engine")

    run = find(story.state, story.task_id("s"))
    assert run is not None
    note = explain(story.state, run, story.now).notes[-1]

    assert isinstance(note, OfSchedule)
    assert sum(note.skipped.values()) == note.skipped["misfire"] > 0
    assert note.last_skip_at == to_datetime(START + 4 * SECOND)


def test_a_running_run_says_since_when_and_whether_it_is_to_stop() -> None:
    story = play("handler h timeout=5s\nsubmit a\ncancel a how=kill by=bob\ntick 6s")

    found = of(story, "a")

    assert (found.release, type(found.reason)) == (None, InProgress)
    assert said(story, found) == [
        "run a of h is running: attempt 1 since 22:13:20Z on main",
        "  asked to stop at 22:13:20Z (by bob) by force",
        "  past its timeout since 22:13:25Z, and being stopped",
    ]


def test_how_a_run_ended_is_told_and_which_run_was_asked_for_in_its_place() -> None:
    story = play(
        "submit a attempts=1\nsubmit b\nsubmit c delay=1h\nfinish a failed\nfinish b completed\ncancel c\nproject"
    )
    rows = story.tables.runs

    texts = {name: said(story, ended(rows[story.id(name)], [], story.now)) for name in "abc"}

    assert texts == {
        "a": ["run a of h is failed: it ended at 22:13:20Z: E", "  over; a retry makes a new run in its place"],
        "b": ["run b of h is completed: it ended at 22:13:20Z"],
        "c": ["run c of h is canceled: it ended at 22:13:20Z", "  over; a retry makes a new run in its place"],
    }
    story.play("retry a as d\nproject")
    retried = ended(story.tables.runs[story.id("a")], list(story.tables.runs.values()), story.now)
    assert (retried.reason, retried.release) == (
        Ended("failed", "failed", to_datetime(START), "E", story.run_id("d")),
        None,
    )
    assert said(story, retried) == ["run a of h is failed: it ended at 22:13:20Z: E; retried as run d"]


@pytest.mark.parametrize(("has_engine", "release"), [(False, StartEngine()), (True, ItsTurn())])
def test_an_undecided_submission_is_in_the_inbox(has_engine: bool, release: Release) -> None:
    story = Story()
    item = story.item("a")

    found = undecided(item, START, START + SECOND, has_engine=has_engine)

    assert (found.reason, found.release) == (NotDecided(to_datetime(START), has_engine), release)
    assert said(story, found)[0] == "run a of h is not decided: in the inbox since 22:13:20Z, no engine has read it"
    assert (found.queue, found.state) == ("default", None)


@pytest.mark.parametrize(("crashed", "words"), [(True, "was last heard of"), (False, "ended")])
def test_that_no_engine_runs_comes_first(crashed: bool, words: str) -> None:
    """A fork is equipped as the last engine was, and says how things stand apart from that."""
    story = play("submit a handler=later")
    equipment = equipment_of(story.state.places)
    if not crashed:
        story.perform(Close())
    state = story.rebuilt()
    equip(state.places, equipment)
    day_us, last = 86_400 * SECOND, "the last one (pid 1 on host)"

    found = without_engine(state, explain(state, state.runs[story.id("a")], story.now + day_us))

    assert found.reason == NoEngineRuns(to_datetime(START), crashed, 1, "host")
    assert (found.release, chain(found)) == (StartEngine(), ["NoEngineRuns", "HandlerMissing"])
    assert said(story, found) == [
        f"run a of later is ready: no engine runs on this store; {last} {words} at 2023-11-14 22:13:20Z",
        "  released when an engine is started",
        "  with an engine, as the last one was:",
        "    run a of later is ready: no handler 'later' is registered with the engine",
        "      released when a handler 'later' of that name is registered",
    ]
    state.dispose()


# --- precedence, order, bounds --------------------------------------------------------------------------------------


def test_the_first_blocker_in_the_order_of_the_guards_is_named() -> None:
    """Each is taken away in turn: pauses, handler, queue, executor, handler's slots, keys, rates, the line."""
    story = play("submit held limits=k rates=r:1/30s")
    story.play("queue q 0\nsubmit a handler=g queue=q limits=k rates=r:1/30s")
    story.play("pause engine\npause queue q")
    seen = [of(story, "a").reason]
    for line in (
        "resume engine",
        "resume queue q",
        "executor side 0\nhandler g executor=side concurrency=0",
        "queue q 1",
        "executor side 1",
        "handler g executor=side concurrency=1",
        "finish held completed",
    ):
        story.play(line)
        seen.append(of(story, "a").reason)
    story.play("tick 30s")

    assert [(type(each).__name__, getattr(each, "kind", getattr(each, "scope", ""))) for each in seen] == [
        ("Paused", "engine"), ("Paused", "queue"), ("HandlerMissing", ""), ("NoFreeSlot", "queue"),
        ("NoFreeSlot", "executor"), ("NoFreeSlot", "handler"), ("KeyHeld", ""), ("RateLimited", ""),
    ]  # fmt: skip
    assert of(story, "a").state == "running"


def test_a_run_behind_others_names_what_blocks_its_line() -> None:
    story = play("submit a limits=k\nsubmit b c d limits=k")

    found = of(story, "d")

    assert found.reason == KeyHeld("k", 1, 1, (story.run_id("a"),))
    assert found.ahead == 2
    assert said(story, found)[2] == "  2 runs of its line go first then"


def test_a_run_that_is_due_under_a_pause_of_the_engine_is_paused() -> None:
    story = play("submit a delay=5s\npause engine\ntick 4s")
    assert isinstance(of(story, "a").reason, NotYetDue)

    story.play("tick 1s")

    assert isinstance(of(story, "a").reason, Paused)


def test_where_more_hold_a_key_than_a_run_allows_as_many_must_end_as_make_room() -> None:
    story = play("submit a b c limits=k:3\nsubmit d limits=k:2\nsubmit e limits=k:1")

    releases = [of(story, name).release for name in "de"]

    assert [each.count for each in releases if isinstance(each, RunsEnd)] == [2, 3]
    assert said(story, of(story, "d"))[:2] == [
        "run d of h is ready: key 'k' is taken, 3 of 2 by runs a, b, c",
        "  released when 2 of them end",
    ]
    assert "released when all of them end" in said(story, of(story, "e"))[1]


def test_of_many_holders_a_few_are_named_and_fewer_explained() -> None:
    count = HOLDERS_LISTED_MAX + 10
    story = Story(slots=count, checked=False)
    story.submit(*[f"h{n}" for n in range(count)])
    story.submit("a")

    found = of(story, "a")

    assert isinstance(found.reason, NoFreeSlot)
    assert (found.reason.taken, len(found.reason.holders)) == (count, HOLDERS_LISTED_MAX)
    assert (len(found.because), found.unexplained) == (BREADTH_MAX, count - BREADTH_MAX)
    lines = said(story, found)
    assert lines[0].endswith(f"has no free slot, {count} of {count} are taken by runs h0, h1, h2 and {count - 3} more")
    assert lines[-1] == f"  and {count - BREADTH_MAX} other runs"


def test_an_explanation_is_bounded_however_long_the_chain() -> None:
    """Sixty occurrences that wait for each other, the first of them for a key."""
    story = Story(slots=3, checked=False)
    rule = RepeatRule(100, SECOND, None, "catch_up", 60 * SECOND, None, "queue")
    story.perform(Submit([story.item("s", rule=rule)]))
    story.advance(60 * SECOND)
    last = max(story.state.schedules[story.task_id("s")].waiting.values(), key=lambda run: run.order)

    found = explain(story.state, last, story.now)

    depths: Counter[int] = Counter()

    def count(explanation: Explanation, depth: int) -> None:
        depths[depth] += 1
        assert len(explanation.because) <= BREADTH_MAX
        for each in explanation.because:
            count(each, depth + 1)

    count(found, 1)
    assert max(depths) <= DEPTH_MAX
    assert sum(depths.values()) <= RUNS_MAX


def test_asking_about_what_is_not_live_gets_no_answer_from_the_state() -> None:
    story = play("submit a")
    assert story.perform(Explain(story.id("a"))) == plain(of(story, "a"))
    assert story.perform(Explain(story.task_id("a"))) == plain(of(story, "a"))

    story.perform(CancelRun(story.id("a"), "abandon"))

    assert story.perform(Explain(story.id("a"))) is None
