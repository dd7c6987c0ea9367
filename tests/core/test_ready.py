"""Ready runs in order: the same answers as a sorted list, whatever comes and goes; and what the links leave behind."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.control import CancelRun
from actionqueue.core.ids import fresh_id_bytes
from actionqueue.core.ready import ReadyRuns
from actionqueue.core.reasons import Where
from actionqueue.core.state import Outcome, Run
from tests.core.story import Story, play


def run_of(order: int, priority: int) -> Run:
    run = Run.new_ready_with_id(fresh_id_bytes(), fresh_id_bytes(), 0, 0, priority)
    run.order = order
    return run


def key_of(run: Run) -> tuple[int, int]:
    return -run.effective_priority, run.order


def add(line: ReadyRuns, run: Run) -> None:
    run.where = Where.LANE
    assert line.add(run) == key_of(run)


def remove(line: ReadyRuns, run: Run) -> None:
    run.where = Where.NOWHERE
    line.remove(run)


MOVES = st.lists(
    st.tuples(st.sampled_from(["add", "add early", "remove", "start", "reprioritize"]), st.integers(0, 30)), max_size=60
)


@given(MOVES)
def test_it_answers_as_a_sorted_list_would(moves: list[tuple[str, int]]) -> None:
    line, model = ReadyRuns(), list[Run]()
    for n, (what, which) in enumerate(moves):
        match what:
            case "add":
                model.append(run_of(1_000 + n, which % 3))
                add(line, model[-1])
            case "add early":
                model.append(run_of(100 + n, which % 3))
                add(line, model[-1])
            case "remove" if model:
                remove(line, model.pop(which % len(model)))
            case "start" if model:
                model.remove(min(model, key=key_of))
                head = line.head()
                assert head is not None
                remove(line, head)
            case "reprioritize" if model:
                run = model[which % len(model)]
                remove(line, run)
                run.set_effective_priority(which % 4)
                add(line, run)

        ordered = sorted(model, key=key_of)
        assert list(line.problems()) == []
        assert len(line) == len(model)
        assert {id(run) for run in line} == {id(run) for run in model}
        assert line.head() is (ordered[0] if ordered else None)
        if ordered:
            bound = line.bound_after(ordered[0])
            assert (bound is None) == (len(ordered) == 1)
            assert bound is None or bound <= key_of(ordered[1])


def test_entries_of_those_that_left_early_do_not_pile_up() -> None:
    line = ReadyRuns()
    add(line, run_of(10**6, 0))
    add(line, run_of(0, 0))
    for n in range(1, 1_000):
        run = run_of(n, 0)
        add(line, run)
        remove(line, run)

    assert sum(len(level.early or ()) for level in line.levels().values()) < 100
    assert list(line.problems()) == []


def test_the_garbage_collector_has_nothing_to_look_at_in_a_line() -> None:
    """A million Ready runs must not make a collection long: neither they nor what links them is tracked."""
    line = ReadyRuns()
    gc.collect()
    before = len(gc.get_objects())
    for n in range(1_000):
        add(line, run_of(n, 0))
    gc.collect()

    assert len(gc.get_objects()) - before < 20
    assert not gc.is_tracked(line.head())
    line.clear()


def test_what_has_left_is_linked_to_nobody() -> None:
    """What the collector does not see is freed only when no link is left."""
    story = play("executor main 0\nsubmit a b c d")
    runs = [story.run(name) for name in "abcd"]
    story.play("cancel b\nexecutor main 2")

    assert [(run.before, run.behind) for run in (runs[0], runs[1], runs[2])] == [(None, None)] * 3
    assert (runs[3].before, runs[3].behind) == (None, None)
    story.play("executor main 0\nsubmit e f")
    left = [story.run(name) for name in "def"]
    story.state.dispose()
    assert [(run.before, run.behind) for run in left] == [(None, None)] * 3


def test_lanes_and_queues_without_tasks_are_forgotten_where_there_are_many() -> None:
    """A queue named after each customer must not grow the memory, nor the cost of a projection."""
    story = Story(checked=False)
    story.play("queue bounded 3")
    for n in range(600):
        story.submit(f"t{n}", queue=f"customer-{n}")
        story.finish(f"t{n}")
    story.submit("waiting", queue="customer-0", delay_us=10**6)

    places = story.state.places
    assert len(places.lanes) <= 257
    assert len(places.queues) <= 258
    assert "bounded" in places.queues
    assert story.check(settled=True) == []
    story.play("tick 1s\nexpect waiting running")


def test_a_wake_up_that_a_forgotten_lane_was_given_is_handed_on() -> None:
    """It was woken, and its only run is canceled before it starts: the slot goes to the next lane that waits for it."""
    story = Story(checked=False)
    for n in range(300):
        story.submit(f"other{n}", queue=f"q{n}", delay_us=10**9)
    story.play("executor main 1\nhandler g\nsubmit holder")
    story.submit("first", queue="one", priority=5)
    story.submit("second", queue="two", handler="g")
    machine = story.machine

    machine.perform(story.report("holder", Outcome.COMPLETED), story.now)
    machine.perform(CancelRun(story.id("first")), story.now)
    machine.start_ready(story.now, story.next_id, [])

    assert story.where("second") is Where.RUNNING
    assert ("one", "h") not in story.state.places.lanes
