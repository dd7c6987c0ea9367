"""What an opening makes of every situation it can find: the table of crash recovery, over all combinations of its facts.

A lettered row per case. Each combination of facts meets the condition of exactly one row, and each row is met:

===  ==========================================================  ======================================================
A    Scheduled                                                   unchanged, due when it was
B    Ready, never started (this log has no other lease)          unchanged, in its place in the order; nothing counted
C    RetryWait, whatever ended the attempt before                unchanged, due when it was: no backoff begins anew
D    Running, asked to stop                                      attempt lost; Canceled, reason ``canceled``
E    Running, a loss fails it (said, or one attempt is all)      attempt lost; Failed, reason ``lost``
F    Running, lost as often as ``max_lost`` says                 attempt lost; Failed, reason ``lost``
G    Running, anything else                                      attempt lost; RetryWait for the backoff of that loss
H    ended                                                       not there; counted as before
===  ==========================================================  ======================================================

All of it under each pause, after a short and a long time without an engine, from the log alone, from a projection, and
from a projection with a tail. Suspended and Awaiting runs, limits, budgets and subscriptions join with their capabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.check import check
from actionqueue.core.control import CancelRun, Pause
from actionqueue.core.epochs import EngineOpened
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.machine import Event, Machine
from actionqueue.core.reasons import Where
from actionqueue.core.retry import AttemptTerms, Backoff, Delays, Exponential, Fixed
from actionqueue.core.run import RunState
from actionqueue.core.state import FIRST_TERMINAL, ErrorInfo, Outcome, Output, Run, State
from tests.core.story import SECOND, Story, Tables

HOUR = 3_600 * SECOND
LENIENT = AttemptTerms(backoff=Fixed(0), on_lost="retry", max_lost=99)
"""Of the attempts before the one that is found open."""

BACKOFFS: dict[str, Backoff] = {
    "none": Fixed(0),
    "fixed": Fixed(7 * SECOND),
    "exponential": Exponential(2 * SECOND, 2.0, 20 * SECOND, jitter=False),
    "jittered": Exponential(2 * SECOND, 2.0, 20 * SECOND, jitter=True),
    "list": Delays((SECOND, 5 * SECOND, 9 * SECOND)),
}


def delay_s(backoff: str, loss: int) -> tuple[float, float]:
    """The least and the most that is waited after that loss (from 1): said once more, in plain words."""
    doubled = min(20.0, 2.0 * 2 ** (loss - 1))
    match backoff:
        case "none":
            return 0, 0
        case "fixed":
            return 7, 7
        case "exponential":
            return doubled, doubled
        case "jittered":
            return doubled / 2, doubled
        case _:
            return [(1.0, 1.0), (5.0, 5.0), (9.0, 9.0)][min(loss, 3) - 1]


class Facts(NamedTuple):
    """What may be found of one run. The counts are those before the opening."""

    state: str
    """"running"; what waits and what ended say how they came there."""
    max_attempts: int = 3
    failures: int = 0
    on_lost: str | None = None
    max_lost: int = 5
    losses: int = 0
    cancel: str | None = None
    backoff: str = "fixed"

    def row(self) -> str:
        """The letters whose condition holds."""
        return "".join(letter for letter, holds in CONDITIONS.items() if holds(self))


def _fails(facts: Facts) -> bool:
    return facts.on_lost == "fail" or (facts.on_lost is None and facts.max_attempts == 1)


CONDITIONS: dict[str, Callable[[Facts], bool]] = {
    "A": lambda facts: facts.state == "scheduled",
    "B": lambda facts: facts.state == "ready",
    "C": lambda facts: facts.state.startswith("retry_wait"),
    "D": lambda facts: facts.state == "running" and facts.cancel is not None,
    "E": lambda facts: facts.state == "running" and facts.cancel is None and _fails(facts),
    "F": lambda facts: (
        facts.state == "running" and facts.cancel is None and not _fails(facts) and facts.losses >= facts.max_lost
    ),
    "G": lambda facts: (
        facts.state == "running" and facts.cancel is None and not _fails(facts) and facts.losses < facts.max_lost
    ),
    "H": lambda facts: facts.state.startswith("ended"),
}

RUNNING = [
    Facts("running", max_attempts, failures, on_lost, max_lost, losses, cancel, backoff)
    for (max_attempts, failures), on_lost, (max_lost, losses), cancel, backoff in product(
        [(1, 0), (3, 0), (3, 2)],
        [None, "retry", "fail"],
        [(0, 0), (1, 0), (1, 1), (5, 0), (5, 1), (5, 4), (5, 5)],
        [None, "cancel", "kill"],
        BACKOFFS,
    )
]
OTHERS = [
    Facts(state, max_attempts, failures, losses=losses)
    for state, (max_attempts, failures), losses in product(
        ["scheduled", "retry_wait failed", "retry_wait lost", "retry_wait snoozed", "retry_wait interrupted",
         "ended completed", "ended failed", "ended canceled", "ready"],
        [(3, 0), (4, 2)],
        [0, 1, 4],
    )
    if state not in ("scheduled", "ready") or not (failures or losses)
]  # fmt: skip
EVERYTHING = [*RUNNING, *OTHERS]
PAUSES: list[Pause | None] = [
    None,
    Pause("engine", "", "op"),
    Pause("handler", "wait", "op"),
    Pause("queue", "q", "op"),
]


# --- how each comes about ---------------------------------------------------------------------------------------------


def bring_about(story: Story, name: str, facts: Facts) -> None:
    """A run called ``name`` of which all that is so. What ends with a snooze has no loss right before."""
    handler = "wait" if facts.state != "running" else "run"
    story.register(handler, LENIENT)
    options: dict[str, Any] = {"queue": "q", "max_attempts": facts.max_attempts}
    if facts.state == "scheduled":
        story.submit(name, handler=handler, delay_us=50 * SECOND, **options)
        return
    if facts.state == "ready":
        story.submit(name, handler="nobody's", **options)
        return
    story.submit(name, handler=handler, **options)
    for _ in range(facts.losses):
        story.finish(name, Outcome.LOST)
    for _ in range(facts.failures):
        story.finish(name, Outcome.FAILED, error=ErrorInfo("E", "again"))
    last = AttemptTerms(None, BACKOFFS[facts.backoff], facts.on_lost, facts.max_lost)
    if facts.state.startswith("retry_wait"):
        last = AttemptTerms(None, Fixed(40 * SECOND), "retry", 99)
    story.register(handler, last)
    story.finish(name, Outcome.SNOOZED, delay_us=0)  # tried again at once, under the terms that count
    assert story.attempt(name).terms == last
    match facts.state.split():
        case ["retry_wait", "interrupted"]:
            pass  # see Scene
        case ["retry_wait", how]:
            delay = {"delay_us": 40 * SECOND} if how == "snoozed" else {}
            story.finish(name, Outcome[how.upper()], **delay)
        case ["ended", "completed"]:
            story.finish(name, body=b"1", output=Output(b"o" * 16, 1))
        case ["ended", "failed"]:
            story.finish(name, Outcome.FAILED, terminal=True, error=ErrorInfo("E", "for good"))
        case ["ended", _]:
            story.perform(CancelRun(story.id(name), "abandon", "op"))
        case _:
            if facts.cancel is not None:
                story.perform(CancelRun(story.id(name), facts.cancel, "op"))


class Scene:
    """Everything at once, in one story, when its engine is gone."""

    def __init__(self) -> None:
        self.story = story = Story(slots=10_000, checked=False)
        self.named = {f"r{number}": facts for number, facts in enumerate(EVERYTHING)}
        for name, facts in self.named.items():
            bring_about(story, name, facts)
        for name, facts in self.named.items():
            if facts.state == "retry_wait interrupted":  # as at a drain: due at once, and nothing starts any more
                decided = story.machine.perform(story.report(name, Outcome.INTERRUPTED), story.now)
                assert not isinstance(decided, ActionQueueError)
                story.log += decided[0]

    def found(self, pause: Pause | None, projected: str) -> Machine:
        """What the next engine loads: from the log alone, from tables, or from tables and the log behind them."""
        log, machine = list(self.story.log), Machine()
        if projected == "in part":
            machine.replay(log[: len(log) // 2])
            machine = Machine(loaded(machine.state))
        machine.replay(log[machine.state.last_seq :])
        if pause is not None:
            machine.perform(pause, self.story.now)
        return Machine(loaded(machine.state)) if projected == "whole" else machine

    def opened(self, pause: Pause | None, projected: str, down_us: int) -> tuple[State, State, list[Event], int]:
        """The state before and after the opening, its events, and when it was."""
        machine = self.found(pause, projected)
        now = self.story.now + down_us
        return self.found(pause, projected).state, machine.state, machine.open(now, 2, 4711, "there", "1", 0.5), now


def loaded(state: State) -> State:
    """Written to tables and read again."""
    tables = Tables()
    tables.take(state)
    return tables.load()


@pytest.fixture(scope="module")
def shown() -> Scene:
    return Scene()


def image_of(run: Run) -> tuple[Any, ...]:
    """All that an opening could change of a run."""
    return (
        run.state, run.until, run.order, run.reason, run.where, run.priority, run.effective_priority, run.scheduled_at,
        run.last_state_change_at, run.attempt_count, run.failure_count, run.lost_count, run.lost_streak, run.cancel,
        run.latest, run.attempt, run.error_kind, run.started_at,
    )  # fmt: skip


# --- the rows ---------------------------------------------------------------------------------------------------------


def check_lost(facts: Facts, before: Run, after: Run, event: AttemptFinished, now: int) -> None:
    """What rows D to G have in common: the attempt is closed as lost, now, and only that is counted."""
    open_before, closed = before.attempt, after.latest
    assert open_before is not None
    assert closed is not None
    assert after.attempt is None
    assert (closed.id, closed.fence, closed.number) == (open_before.id, open_before.fence, open_before.number)
    assert (closed.outcome, closed.finished_at, closed.abandoned) == (Outcome.LOST, now, False)
    assert (event.outcome, event.attempt_id, event.at) == (Outcome.LOST, closed.id, now)
    assert after.lost_count == facts.losses + 1
    assert after.failure_count == facts.failures
    assert after.attempt_count == before.attempt_count
    assert after.last_state_change_at == now
    assert after.cancel == before.cancel


def check_row(row: str, facts: Facts, before: Run, after: Run, event: AttemptFinished | None, now: int) -> None:
    """The row's right-hand side."""
    if row in "ABC":
        assert event is None
        assert image_of(after) == image_of(before)
        return
    assert event is not None
    check_lost(facts, before, after, event, now)
    match row:
        case "D":
            assert (after.state, event.reason, event.retry_at) == (RunState.CANCELED, "canceled", None)
        case "E" | "F":
            assert (after.state, event.reason, event.retry_at) == (RunState.FAILED, "lost", None)
        case _:
            least, most = delay_s(facts.backoff, facts.losses + 1)
            assert after.state is RunState.RETRY_WAIT
            assert now + least * SECOND <= after.until <= now + most * SECOND
            assert after.until == event.retry_at
            assert after.where is Where.TIMER


@pytest.mark.parametrize("projected", ["not", "in part", "whole"])
@pytest.mark.parametrize("pause", PAUSES, ids=["free", "engine", "handler", "queue"])
@pytest.mark.parametrize("down_us", [0, HOUR], ids=["at once", "an hour later"])
def test_an_opening_does_with_each_run_what_its_row_of_the_table_says(
    shown: Scene, pause: Pause | None, projected: str, down_us: int
) -> None:
    """S5-1, S5-2, S5-3, S5-10: and the whole state is sound, with its pauses, its epoch, and no slot held."""
    before, after, events, now = shown.opened(pause, projected, down_us)
    finished = {event.run_id: event for event in events if isinstance(event, AttemptFinished)}
    met: Counter[str] = Counter()
    for name, facts in shown.named.items():
        row, run_id = facts.row(), shown.story.id(name)
        assert len(row) == 1, f"{facts} meets {row or 'no row'}"
        met[row] += 1
        try:
            if row == "H":
                assert run_id not in before.runs
                assert run_id not in finished
            else:
                there = after.runs.get(run_id) or after.dirty_runs[run_id]
                check_row(row, facts, before.runs[run_id], there, finished.get(run_id), now)
        except AssertionError as error:
            error.add_note(f"row {row}: {facts}")
            raise
    assert met.keys() == CONDITIONS.keys(), "a row that nothing meets"
    assert isinstance(events[0], EngineOpened)
    assert len(events) == 1 + len(finished) == 1 + sum(met[row] for row in "DEFG")
    check_whole(before, after, met, now)


def check_whole(before: State, after: State, met: Counter[str], now: int) -> None:
    """What is nobody's own."""
    assert check(after) == []
    assert after.pauses == before.pauses
    assert after.epoch is not None
    assert (after.epoch.number, after.epoch.opened_at, after.epoch.closed) == (2, now, False)
    assert sum(after.counts) == sum(before.counts)
    assert sum(after.counts[FIRST_TERMINAL:]) == sum(before.counts[FIRST_TERMINAL:]) + met["D"] + met["E"] + met["F"]
    places = after.places
    assert not any(slots.running for slots in [*places.executors.values(), *places.queues.values(), places.open])


def test_every_combination_of_the_facts_is_in_the_table() -> None:
    """As many as there are, each once."""
    assert len(RUNNING) == 3 * 3 * 7 * 3 * 5
    assert len(set(EVERYTHING)) == len(EVERYTHING)
    assert Counter(facts.row() for facts in EVERYTHING).keys() == CONDITIONS.keys()


def test_losses_at_one_opening_do_not_come_back_as_a_herd(shown: Scene) -> None:
    """Jitter is drawn once for each, spread, and recorded: replay draws nothing."""
    _, after, events, _ = shown.opened(None, "not", 0)
    waiting = [shown.story.id(name) for name, facts in shown.named.items() if facts.backoff == "jittered"]
    jittered = [after.runs[id].until for id in waiting if id in after.runs]
    assert len(jittered) >= 20
    assert len(set(jittered)) > len(jittered) * 0.8
    again = shown.found(None, "not")
    again.replay(events)
    assert {id: run.until for id, run in again.state.runs.items()} == {id: run.until for id, run in after.runs.items()}


def test_an_opening_after_an_opening_that_lost_everything_finds_nothing_to_lose(shown: Scene) -> None:
    """S5-10: the second of two crashes in a row changes nothing but the epoch."""
    _, state, _, now = shown.opened(None, "whole", 0)
    before = {id: image_of(run) for id, run in state.runs.items()}
    events = Machine(state).open(now + 1, 3, 4712, "there", "1", 0.5)
    assert len(events) == 1
    assert {id: image_of(run) for id, run in state.runs.items()} == before
