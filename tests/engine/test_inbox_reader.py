"""From the inbox to the writer: each command is decided once, at the instant it was sent, and forgotten only then."""

from __future__ import annotations

from typing import Any

import pytest

from actionqueue.core.control import CancelRun, Pause
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, StoreDamaged, StoreUnavailable
from actionqueue.core.run import RunState
from actionqueue.core.state import CANCELED, COMPLETED, State
from actionqueue.core.submission import Submit
from actionqueue.engine import lookups
from actionqueue.engine.engine import Engine
from actionqueue.engine.writer import LOOK_UP_AGAIN_US, LOOK_UPS_MAX
from actionqueue.store.codec import decode_reply
from actionqueue.store.memory import MemoryStore
from tests.engine.rig import DAY, Rows, advance, ask, commands_in, engine_on, reading, submission, submit
from tests.process.support import eventually
from tests.scenarios.world import SECOND, START, Hand, ManualClock

HOUR = 3_600 * SECOND


def reply_to(store: MemoryStore, command_id: bytes) -> Any:
    """What was recorded; None while it is undecided."""
    body = store.reader().reply(command_id)
    return None if body is None else decode_reply(body)


def count(engine: Engine, state: int) -> int:
    found: int = ask(engine, lambda found: found.counts[state])
    return found


# --- look-ups that fail -------------------------------------------------------------------------------------------------


class Failing:
    """Takes the place of ``lookups.attach``: fails so many times."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0
        self._attach = lookups.attach

    def __call__(self, reader: Any, command: Any) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise StoreUnavailable("locked by another process", cause="busy")
        self._attach(reader, command)


def test_a_command_whose_look_up_fails_for_the_moment_is_decided_later_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach = Failing(times=2)
    monkeypatch.setattr(lookups, "attach", attach)
    store, inbox, hand, clock = MemoryStore(), Rows(), Hand(), ManualClock()
    with engine_on(store, hand, clock) as engine, reading(engine, inbox) as reader:
        item = submission("order 1")
        command_id = inbox.put(Submit([item]))
        for n in (1, 2):
            eventually(lambda: engine.writer._later and attach.calls == n, "the look-up has failed")  # noqa: B023
            assert reply_to(store, command_id) is None, "what is recorded is final"
            assert commands_in(inbox) == {command_id}
            clock.at += LOOK_UP_AGAIN_US
            engine._wake.set()
        attempt = hand.take()
        assert attempt.task_id == item.task_id
        hand.returns(attempt)
        eventually(lambda: not commands_in(inbox) and not reader._in_flight, "its row is deleted")
        assert reply_to(store, command_id) == [[item.task_id, item.run_id, True]]
        assert attach.calls == 3

    store.open(pid=1, host="a day later")
    store.prune_replies(START + 2 * DAY)
    store.close()
    with engine_on(store, hand, clock) as engine, reading(engine, inbox) as reader:
        assert reader.catch_up(10.0)
        assert count(engine, COMPLETED) == 1
        assert hand.handed_over == 0


def test_a_command_whose_look_up_still_fails_when_the_engine_ends_is_decided_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, inbox, hand = MemoryStore(), Rows(), Hand()
    item = submission("order 1")
    with monkeypatch.context() as patched:
        patched.setattr(lookups, "attach", Failing(times=1_000))
        with engine_on(store, hand) as engine, reading(engine, inbox):
            command_id = inbox.put(Submit([item]))
            eventually(lambda: engine.writer._later, "the look-up has failed")
    assert commands_in(inbox) == {command_id}
    assert reply_to(store, command_id) is None

    with engine_on(store, hand) as engine, reading(engine, inbox):
        hand.returns(hand.take())
        eventually(lambda: not commands_in(inbox), "its row is deleted")
        assert reply_to(store, command_id) == [[item.task_id, item.run_id, True]]
        assert count(engine, COMPLETED) == 1


def test_a_look_up_that_fails_for_another_reason_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect would fail the next time too."""

    def attach(reader: Any, command: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lookups, "attach", attach)
    store, inbox = MemoryStore(), Rows()
    with engine_on(store) as engine, reading(engine, inbox):
        command_id = inbox.put(Submit([submission("k")]))
        eventually(lambda: not commands_in(inbox), "it is decided")
        assert isinstance(reply_to(store, command_id), ActionQueueError)
        submit(engine, submission(delay_us=HOUR))


def test_a_command_that_speaks_of_what_is_damaged_is_refused_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be looked up every second for ever, each time with a commit, and its sender would never know."""
    calls: list[bytes] = []

    def attach(reader: Any, command: Any) -> None:
        calls.append(command.run_id)
        raise StoreDamaged("a row does not match its checksum", place="runs 6b")

    monkeypatch.setattr(lookups, "attach", attach)
    store, inbox, clock = MemoryStore(), Rows(), ManualClock()
    with engine_on(store, clock=clock) as engine, reading(engine, inbox):
        command_id = inbox.put(CancelRun(b"k" * 16))
        for n in range(1, LOOK_UPS_MAX):
            eventually(lambda: engine.writer._later and len(calls) == n, "the look-up has failed")  # noqa: B023
            assert reply_to(store, command_id) is None
            clock.at += LOOK_UP_AGAIN_US
            engine._wake.set()
        eventually(lambda: not commands_in(inbox), "it is decided")
        refusal = reply_to(store, command_id)
        assert isinstance(refusal, StoreDamaged)
        assert (refusal.facts["place"], refusal.facts["refused"]["command"]) == ("runs 6b", "cancel_run")
        assert (len(calls), list(engine.writer._later)) == (LOOK_UPS_MAX, [])
        assert [body for _, body in store.reader().refusals(10)] != []
        assert engine.fenced is None


# --- instants -----------------------------------------------------------------------------------------------------------


class Apart(ManualClock):
    """An engine's clock that the wall clock differs from: it was set while the engine ran."""

    def __init__(self, wall_ahead_us: int) -> None:
        super().__init__()
        self.wall_ahead_us = wall_ahead_us

    def wall_us(self) -> int:
        return self.at + self.wall_ahead_us


def run_of(engine: Engine, run_id: bytes) -> Any:
    def look(state: State) -> Any:
        run = state.runs.get(run_id)
        return None if run is None else (run.state, run.scheduled_at, run.task.extra.expires_at)

    return ask(engine, look)


@pytest.mark.parametrize("wall_ahead_us", [-2 * HOUR, 0, 2 * HOUR])
@pytest.mark.parametrize("waited_us", [0, 600 * SECOND])
def test_delays_and_deadlines_of_what_another_process_sent_count_from_when_it_was_sent(
    wall_ahead_us: int, waited_us: int
) -> None:
    """Its sender had only a wall clock, which the engine's may be hours ahead of, or behind."""
    store, inbox, clock = MemoryStore(), Rows(), Apart(wall_ahead_us)
    with engine_on(store, Hand(slots=0), clock) as engine, reading(engine, inbox) as reader:
        sent_at = clock.wall_us() - waited_us
        delayed, expiring = submission(delay_us=HOUR), submission(expires_us=HOUR)
        for item in (delayed, expiring):
            inbox.put(Submit([item]), at=sent_at)
        assert reader.catch_up(10.0)

        assert run_of(engine, delayed.run_id)[:2] == (RunState.SCHEDULED, clock.at + HOUR - waited_us)
        assert run_of(engine, expiring.run_id) == (RunState.READY, clock.at, clock.at + HOUR - waited_us)
        clock.at += HOUR - waited_us - 1
        advance(engine, clock, "0s")
        assert count(engine, CANCELED) == 0
        clock.at += 1
        advance(engine, clock, "0s")
        assert count(engine, CANCELED) == 1, "it has expired"


def test_what_seems_to_come_from_the_future_was_sent_now() -> None:
    """The wall clock was set back between the sending and the reading."""
    store, inbox, clock = MemoryStore(), Rows(), ManualClock()
    with engine_on(store, Hand(slots=0), clock) as engine, reading(engine, inbox) as reader:
        item = submission(delay_us=HOUR)
        inbox.put(Submit([item]), at=clock.wall_us() + DAY)
        assert reader.catch_up(10.0)
        assert run_of(engine, item.run_id)[1] == clock.at + HOUR


FORMER = [-(2**63), -1, 0, 1]


@pytest.mark.parametrize("at", FORMER)
@pytest.mark.parametrize("wall_ahead_us", [-2 * HOUR, 0, 2 * HOUR])
def test_an_instant_that_cannot_be_makes_a_submission_due_now_and_stops_nothing(at: int, wall_ahead_us: int) -> None:
    store, inbox, hand = MemoryStore(), Rows(), Hand()
    clock = Apart(wall_ahead_us)
    with engine_on(store, hand, clock) as engine, reading(engine, inbox):
        item = submission("k", delay_us=HOUR, key_lifetime_us=SECOND)
        expired = submission(expires_us=SECOND)
        for each in (item, expired):
            inbox.put(Submit([each]), at=at)
        attempt = hand.take()
        assert attempt.task_id == item.task_id
        hand.returns(attempt)
        eventually(lambda: not commands_in(inbox), "both are decided")
        assert count(engine, CANCELED) == 1
        assert engine.fenced is None


@pytest.mark.parametrize("at", [*FORMER, START - 2 * HOUR, START])
def test_what_another_process_sent_is_validated_whatever_instant_it_says(at: int) -> None:
    clock = Apart(wall_ahead_us=2 * HOUR)
    for each in {at, clock.wall_us() - clock.now_us()}:
        store, inbox = MemoryStore(), Rows()
        with engine_on(store, Hand(slots=0), clock) as engine, reading(engine, inbox):
            command_id = inbox.put(Submit([submission(max_attempts=-7)]), at=each)
            eventually(lambda: not commands_in(inbox), "it is decided")  # noqa: B023
            assert isinstance(reply_to(store, command_id), InvalidSubmission)
            assert ask(engine, lambda state: len(state.runs)) == 0


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_what_arrives_while_the_store_cannot_be_written_is_left_in_the_inbox() -> None:
    store, inbox = MemoryStore(), Rows()
    with engine_on(store, Hand(slots=0)) as engine, reading(engine, inbox) as reader:
        engine.trouble = StoreUnavailable("disk full", cause="full")
        ids = {inbox.put(Submit([submission()])) for _ in range(3)}
        asked = [reader.catch_up(0.0) for _ in range(2)]
        assert asked == [False, False]
        assert reader._in_flight == set()
        assert commands_in(inbox) == ids
        engine.trouble = None
        eventually(lambda: not commands_in(inbox), "they are decided")
        assert all(reply_to(store, each) is not None for each in ids)


def test_commands_are_decided_in_the_order_in_which_they_were_sent() -> None:
    store, inbox = MemoryStore(), Rows()
    items = [submission() for _ in range(20)]
    inbox.put(Pause("engine", "", "me"))
    for item in items:
        inbox.put(Submit([item]))
    with engine_on(store) as engine, reading(engine, inbox) as reader:
        assert reader.catch_up(10.0)
        orders = ask(engine, lambda state: [state.runs[item.run_id].order for item in items])
        assert orders == sorted(orders)
        assert ask(engine, lambda state: len(state.pauses)) == 1
        eventually(lambda: not commands_in(inbox), "all are decided")
