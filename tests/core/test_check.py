"""The check itself: it passes what is right, and each thing that can be wrong makes it say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from actionqueue.core.check import check, fingerprint
from actionqueue.core.lanes import Lane
from actionqueue.core.reasons import Where
from actionqueue.core.run import RunState
from actionqueue.core.state import CancelMark, Lineage, PauseMark, Run, State
from tests.core.story import SECOND, START, Story, play

STORY = """
    submit suspect aside queue=trials
    crash
    restart
    tick 10s
    crash
    restart
    tick 10s
    submit scheduled delay=1h expires=2h key=k content=x
    submit twice attempts=5
    finish twice failed
    tick 10s
    submit retrying
    finish retrying failed
    submit lost
    finish lost lost
    pause queue paused
    submit held delay=1s queue=paused
    tick 2s
    queue full 1
    submit holder line queue=full
    submit waiting
    finish waiting awaits signal=never timeout=1h
    submit nobody handler=missing
    submit misfit
    finish misfit misfit
    submit after after=scheduled,held
"""


def told() -> Story:
    """A story with a run in every place, and nothing wrong."""
    story = play(STORY)
    assert {story.where(name) for name in story.names} == set(Where) - {Where.NOWHERE, Where.OVERLAP}
    assert check(story.state, settled=True, now=story.now) == []
    return story


def lane(story: Story, name: str) -> Lane:
    return story.run(name).task.lane


def put_into(run: Run, state: RunState) -> None:
    """Past the transition table."""
    run._state = state


def elsewhere(story: Story) -> PauseMark:
    return PauseMark("queue", "elsewhere", story.now, "me")


def left_in_the_open(story: Story) -> None:
    its = lane(story, "line")
    its.spot = story.state.places.open
    its.spot.waiting = [(*its.key, 0, its)]


def lost_too_often(story: Story) -> None:
    run = story.run("lost")
    assert run.latest is not None
    run.lost_count = run.latest.terms.max_lost + 1


def misnumbered(story: Story) -> None:
    run = story.run("lost")
    assert run.latest is not None
    run.latest.number = 3


Damage = Callable[[Story], object]

OF_RUNS: dict[str, tuple[Damage, str]] = {
    "a run nowhere": (lambda s: setattr(s.run("scheduled"), "where", Where.NOWHERE), "nothing will wake it"),
    "a ready run in a timer": (lambda s: setattr(s.run("nobody"), "where", Where.TIMER), "nothing will wake it"),
    "a run that rests while leased": (lambda s: put_into(s.run("nobody"), RunState.LEASED), "it rests in leased"),
    "a terminal run among the live": (lambda s: put_into(s.run("nobody"), RunState.FAILED), "it rests in failed"),
    "a run under another id": (lambda s: s.state.runs.update({b"x" * 16: s.run("line")}), "where it is filed"),
    "a task that is not known": (lambda s: s.state.tasks.pop(s.task_id("line")), "its task is not a live one"),
    "another due instant": (lambda s: setattr(s.run("scheduled"), "until", START + 9), "waits until"),
    "another priority": (lambda s: setattr(s.run("line"), "priority", 7), "is ready with priority"),
    "an order from the future": (lambda s: setattr(s.run("line"), "order", 10**6), "was never given"),
    "two of one order": (lambda s: setattr(s.run("held"), "order", s.run("line").order), "same place in the order"),
    "an attempt lost": (lambda s: setattr(s.run("holder"), "attempt", None), "its current attempt"),
    "an attempt too many": (lambda s: setattr(s.run("line"), "attempt", s.attempt("holder")), "its open one"),
    "a wrong number": (lambda s: setattr(s.attempt("holder"), "number", 99), "its open attempt is number"),
    "a fence from the future": (lambda s: setattr(s.attempt("holder"), "fence", 10**6), "was never given"),
    "one fence twice": (lambda s: setattr(s.attempt("holder"), "fence", s.attempt("twice").fence), "or a fence"),
    "more failures than attempts": (lambda s: setattr(s.run("retrying"), "failure_count", 2), "closed attempts"),
    "more losses in a row than ever": (lambda s: setattr(s.run("line"), "lost_streak", 9), "of them in a row"),
    "failures at the cap": (lambda s: setattr(s.run("retrying").task, "max_attempts", 1), "counted failures"),
    "a failure not counted": (lambda s: setattr(s.run("retrying"), "failure_count", 0), "it counts 0 failures"),
    "losses past the cap": (lost_too_often, "losses of at most"),
    "closed attempts misnumbered": (misnumbered, "its closed attempts are numbered"),
    "an instant that decreases": (lambda s: s.run("line").record_state_change_at(0), "its instants decrease"),
    "an instant after the last": (lambda s: setattr(s.state, "last_at", 5), "its instants decrease"),
    "a start at another time": (lambda s: setattr(s.run("holder"), "started_at", 5), "did not start when"),
    "a retry before its failure": (lambda s: setattr(s.run("retrying"), "until", 5), "which is earlier"),
}

OF_TASKS: dict[str, tuple[Damage, str]] = {
    "a task without runs": (lambda s: setattr(s.run("line").task, "head", None), "no live run, and is live"),
    "runs in a circle": (lambda s: setattr(s.run("line"), "next", s.run("line")), "linked in a circle"),
    "a task under another id": (lambda s: s.state.tasks.update({b"x" * 16: s.run("line").task}), "id or lane"),
    "a run of another task": (lambda s: setattr(s.run("line").task, "head", s.run("held")), "is another task's"),
    "a run count too high": (lambda s: setattr(s.run("line").task, "run_count", 2), "are live"),
    "a finished live task": (lambda s: setattr(s.run("line").task, "finished_at", 1), "it is finished, and live"),
}

OF_LANES: dict[str, tuple[Damage, str]] = {
    "an entry lost": (lambda s: lane(s, "line").ready.clear(), "runs wait in it"),
    "a miscount": (lambda s: setattr(lane(s, "line").ready, "count", 7), "7 are counted"),
    "a link cut": (lambda s: setattr(s.run("line"), "before", s.run("held")), "not linked in order"),
    "a rank too many": (lambda s: setattr(lane(s, "line").ready, "_ranks", [-99]), "not those of its levels"),
    "tasks of its own": (lambda s: setattr(lane(s, "line"), "tasks", 9), "9 are counted"),
    "a held run not kept": (lambda s: lane(s, "held").held.clear(), "HELD runs are not those it keeps"),
    "a misfit not kept": (lambda s: lane(s, "misfit").misfits.clear(), "MISFIT runs are not those it keeps"),
    "held under no pause": (lambda s: setattr(lane(s, "held"), "pause", None), "under no pause"),
    "a pause of its own": (lambda s: setattr(lane(s, "line"), "pause", elsewhere(s)), "not the one in force"),
    "another executor": (lambda s: setattr(lane(s, "line"), "executor", None), "not those registered"),
    "another name": (lambda s: setattr(lane(s, "line"), "handler", "z"), "not filed under its names"),
    "parked for nothing": (lambda s: setattr(lane(s, "line"), "spot", None), "it is parked"),
    "waiting elsewhere": (
        lambda s: setattr(lane(s, "line"), "spot", s.state.places.queues["trials"]),
        "which it does not need",
    ),
    "forgotten where it waits": (lambda s: s.state.places.queues["full"].waiting.clear(), "which does not know"),
    "too far back": (lambda s: setattr(lane(s, "line"), "key", (5, 5)), "its best run is"),
    "left in the open": (left_in_the_open, "it could start, and was left"),
    "a slot left free": (lambda s: setattr(s.state.places.queues["full"], "capacity", 2), "it could start, and was"),
}

OF_THE_REST: dict[str, tuple[Damage, str]] = {
    "a slot held by nobody": (
        lambda s: s.state.places.queues["full"].running.update({s.id("line"): s.run("line")}),
        "a slot is held",
    ),
    "a run without its slot": (lambda s: s.state.places.queues["full"].running.clear(), "without a slot of its queue"),
    "too many slots taken": (lambda s: setattr(s.state.places.queues["full"], "capacity", 0), "slots are taken of 0"),
    "an executor's slot lost": (lambda s: s.state.places.executors["main"].running.clear(), "holds slots of []"),
    "a timer lost": (lambda s: s.state.places.timers.due_at.clear(), "no timer will wake it"),
    "timers miscounted": (lambda s: setattr(s.state.places.timers, "waiting", 77), "77 are counted"),
    "timers out of order": (
        lambda s: s.state.places.timers.due_at.append((0, 0, s.run("line"))),
        "timers is out of order",
    ),
    "a deadline lost": (lambda s: s.state.places.timers.deadlines.clear(), "its deadline to start is not watched"),
    "one set aside and forgotten": (lambda s: s.state.places.quarantined.clear(), "set aside"),
    "one set aside for nobody": (lambda s: s.state.places.on_trial.clear(), "on trial"),
    "none on trial": (lambda s: setattr(s.run("suspect"), "lost_streak", 0), "none is on trial"),
    "an engine pause not in force": (lambda s: setattr(s.state.places, "engine_pause", elsewhere(s)), "engine's pause"),
    "a live count": (lambda s: s.state.counts.__setitem__(1, 99), "99 are counted"),
    "a count of the ended": (lambda s: setattr(s.run("line").task, "ended", (1, 0, 0)), "at least"),
    "tasks miscounted": (lambda s: setattr(s.state, "tasks_total", 1), "tasks are live, 1 are counted"),
    "a run that only its task knows": (lambda s: s.state.runs.pop(s.id("line")), "runs are live, their tasks know"),
    "a key that leads astray": (lambda s: s.state.keys.update({"z": s.run("line").task}), "leads to a task"),
    "a key that leads nowhere": (lambda s: s.state.keys.clear(), "nothing leads from its idempotency key"),
    "a pause under another scope": (lambda s: s.state.pauses.update({("queue", "z"): elsewhere(s)}), "another scope"),
    "a due run left waiting": (lambda s: setattr(s, "now", s.run("scheduled").until), "is left waiting"),
}

BREAKS = OF_RUNS | OF_TASKS | OF_LANES | OF_THE_REST


@pytest.mark.parametrize("what", BREAKS)
def test_the_check_sees(what: str) -> None:
    story = told()
    damage, sentence = BREAKS[what]

    damage(story)

    found = check(story.state, settled=True, now=story.now)
    assert any(sentence in each for each in found), found


def test_a_capacity_may_be_exceeded_only_where_it_was_lowered() -> None:
    story = play("submit a b\nqueue default 1")

    assert check(story.state) == ["queue default: 2 slots are taken of 1"]
    assert check(story.state, lowered=["default"]) == []


def test_nothing_is_left_undone_under_an_engine_pause() -> None:
    story = play("executor main 0\nsubmit a\nsubmit b delay=1s\npause engine\nexecutor main 5\ntick 2s")

    assert check(story.state, settled=True, now=story.now) == []


# --- the fingerprint -----------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[State, Run], object]] = {
    "the sequence": lambda state, _: setattr(state, "last_seq", 0),
    "the last instant": lambda state, _: setattr(state, "last_at", 0),
    "the order": lambda state, _: setattr(state, "next_order", 99),
    "a count": lambda state, _: state.counts.__setitem__(9, 4),
    "the tasks counted": lambda state, _: setattr(state, "tasks_total", 99),
    "what was pruned": lambda state, _: setattr(state, "pruned_before", 99),
    "a pause": lambda state, _: state.pauses.clear(),
    "the epoch": lambda state, _: setattr(state, "epoch", None),
    "a key": lambda state, _: state.keys.clear(),
    "a run": lambda state, run: state.runs.pop(run.id_bytes),
    "a task": lambda state, run: state.tasks.pop(run.task.id),
    "the task's cap": lambda _, run: setattr(run.task, "max_attempts", 77),
    "the task's runs": lambda _, run: setattr(run.task, "run_count", 77),
    "the attempt's progress": lambda _, run: setattr(run.attempt, "progress", (1, 2, "")),
    "the attempt": lambda _, run: setattr(run, "attempt", None),
    "the cancel": lambda _, run: setattr(run, "cancel", CancelMark(1, "", "kill")),
    "the lineage": lambda _, run: setattr(run, "lineage", Lineage(b"a", b"b", "c")),
    "the instant it waits for": lambda _, run: setattr(run, "until", 4),
    "its place in the order": lambda _, run: setattr(run, "order", 44),
    "its stamp": lambda _, run: run.record_state_change_at(0),
}


def set_to_66(name: str) -> Callable[[State, Run], object]:
    return lambda _, run: setattr(run, name, 66)


NUMBERS = ("priority", "failure_count", "lost_count", "lost_streak", "reason", "started_at", "error_kind")
CHANGES |= {f"its {name}": set_to_66(name) for name in NUMBERS}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_changes_with(what: str) -> None:
    story = play("submit a key=k\npause queue mail")
    before = fingerprint(story.state)

    CHANGES[what](story.state, story.run("a"))

    assert fingerprint(story.state) != before


def test_the_fingerprint_leaves_out_what_is_of_the_process() -> None:
    story = play("executor main 1\nsubmit a b c key=\nsubmit d delay=1s")
    before = fingerprint(story.state)

    story.state.places.register("other", "main", story.handlers["h"][1])
    story.state.places.set_executor("main", 7)
    story.state.places.set_queue("default", 3)
    story.project()

    assert fingerprint(story.state) == before


def test_a_key_past_its_lifetime_is_as_good_as_gone() -> None:
    story = play("submit a key=k content=x lifetime=5s\ntick 6s\nsubmit b")
    before = fingerprint(story.state)

    story.state.keys.clear()

    assert fingerprint(story.state) == before
    assert check(story.state) == []
    assert story.now == START + 6 * SECOND
