"""The machine against a naive model: same commands, same refusals, same states, same order of starts; and replay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actionqueue.core.check import check, fingerprint
from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.machine import Event, Machine
from actionqueue.core.state import Accepted, Outcome, State
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.store.codec import decode_events, encode_events
from tests.core.naive_model import LIVE, NaiveQueue, Refused, Task
from tests.core.random_stories import Step, act_out, drawn, steps
from tests.core.story import SECOND, TERMS, Story, play

OUTCOMES = ["completed", "failed", "timed_out", "terminal", "canceled", "snoozed", "interrupted", "lost"]
SCOPES = [("engine", ""), ("queue", "mail"), ("queue", "default"), ("handler", "h"), ("handler", "g")]
seconds = st.sampled_from([0, 1, 5, 30]).map(lambda n: n * SECOND)


class Comparison(RuleBasedStateMachine):
    """Section 5 number 63: a story and the model are driven alike, and must answer alike.

    The clock moves a little before every command, so that no two are as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.story = Story(slots=2)
        self.model = NaiveQueue(self.story.now)
        self.model.capacity["executor", "main"] = 2
        self.model.executor_of["h"] = "main"
        self.count = 0

    def both(self, command: Any, expected: object) -> None:
        """``command`` has been given to the model, which answered ``expected``; the story must answer the same."""
        reply = self.story.perform(command)
        answer = Refused(type(reply).__name__) if isinstance(reply, ActionQueueError) else reply
        assert answer == expected
        self.settle()

    def settle(self) -> None:
        """The model starts what it can, unless both hold back."""
        if not self.story.holding:
            self.model.settle()

    def advance(self, us: int) -> None:
        """Both clocks move on; the model is woken when it asks for it."""
        self.story.advance(us)
        until = self.model.now + us
        if self.story.holding:
            self.model.now = until
            return
        while (at := self.model.next_wake()) is not None and at <= until:
            self.model.now = max(at, self.model.now)
            self.model.settle()
        self.model.now = until
        self.model.settle()

    def any_run(self, data: st.DataObject, *states: str) -> str:
        """One of the runs in these states (in any, if none are given)."""
        return data.draw(st.sampled_from([run.name for run in self.model.runs if not states or run.state in states]))

    # --- commands ----------------------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 3),
        handler=st.sampled_from(["h", "h", "g", "missing"]),
        queue=st.sampled_from(["default", "mail"]),
        priority=st.integers(-1, 2),
        delay=st.none() | seconds,
        attempts=st.integers(1, 3),
        expires=st.none() | st.just(7 * SECOND),
        key=st.none() | st.sampled_from(["k", "l"]),
        lifetime=st.none() | st.just(20 * SECOND),
        content=st.sampled_from([b"x", b"x", b"y"]),
    )
    def submit(
        self,
        count: int,
        handler: str,
        queue: str,
        priority: int,
        delay: int | None,
        attempts: int,
        expires: int | None,
        key: str | None,
        lifetime: int | None,
        content: bytes,
    ) -> None:
        self.advance(1)
        names = [f"r{self.count + n}" for n in range(count)]
        self.count += count
        now = self.model.now
        known = {run.name for run in self.model.runs}
        answer: Refused | list[bool] = []
        task_of = {
            name: Task(
                handler,
                queue,
                attempts,
                key,
                None if key is None or lifetime is None else now + lifetime,
                content,
                None if expires is None else now + expires,
            )
            for name in names
        }
        if key is None:
            for name in names:
                created_of = self.model.submit([name], task_of[name], priority, now + (delay or 0))
                assert created_of == [True]
                answer.append(True)
        else:
            answer = self.model.submit(names, task_of[names[0]], priority, now + (delay or 0))
        items = [
            self.story.item(
                name,
                handler,
                queue=queue,
                priority=priority,
                delay_us=delay,
                max_attempts=attempts,
                expires_us=expires,
                key=key,
                key_lifetime_us=None if key is None else lifetime,
                content=content,
            )
            for name in names
        ]
        reply = self.story.perform(Submit(items))
        told = Refused(type(reply).__name__) if isinstance(reply, ActionQueueError) else [each[2] for each in reply]
        assert told == answer
        self.settle()
        created = {run.name for run in self.model.runs} - known
        for name in names:
            if name not in created:
                del self.story.names[name]

    @precondition(lambda self: any(run.state == "running" for run in self.model.runs))
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), delay=st.none() | seconds)
    def finish(self, data: st.DataObject, outcome: str, delay: int | None) -> None:
        self.advance(1)
        name = self.any_run(data, "running")
        terminal, kind = outcome == "terminal", Outcome.FAILED if outcome == "terminal" else Outcome[outcome.upper()]
        report = self.story.report(name, kind, terminal=terminal, delay_us=delay)
        self.model.finish(name, outcome, delay)
        self.both(report, None)

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "cancel", "kill", "abandon"]))
    def cancel(self, data: st.DataObject, how: str) -> None:
        self.advance(1)
        name = self.any_run(data)
        self.both(CancelRun(self.story.id(name), how, "someone"), self.model.cancel(name, how))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "cancel", "kill", "abandon"]))
    def cancel_task(self, data: st.DataObject, how: str) -> None:
        self.advance(1)
        name = self.any_run(data)
        self.both(CancelTask(self.story.task_id(name), how), self.model.cancel_task(name, how))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self.advance(1)
        name, new = self.any_run(data), f"r{self.count}"
        self.count += 1
        task_id, new_id = self.story.task_id(name), self.story.next_id(self.story.now)
        answer = self.model.retry(name, new)
        if answer is None:
            self.story.names[new] = (task_id, new_id)
        self.both(RetryRun(self.story.id(name), new_id), (task_id, new_id) if answer is None else answer)

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), delay=seconds)
    def reschedule(self, data: st.DataObject, delay: int) -> None:
        self.advance(1)
        name, due_at = self.any_run(data), self.model.now + delay
        self.both(Reschedule(self.story.id(name), due_at), self.model.reschedule(name, due_at))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), priority=st.integers(-2, 3))
    def reprioritize(self, data: st.DataObject, priority: int) -> None:
        self.advance(1)
        name = self.any_run(data)
        self.both(Reprioritize(self.story.id(name), priority), self.model.reprioritize(name, priority))

    @rule(scope=st.sampled_from(SCOPES))
    def pause(self, scope: tuple[str, str]) -> None:
        self.advance(1)
        self.both(Pause(*scope), self.model.pause(scope))

    @precondition(lambda self: self.model.paused)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self.advance(1)
        scope = data.draw(st.sampled_from([*sorted(self.model.paused), SCOPES[0]]))
        self.both(Resume(*scope), self.model.resume(scope))

    # --- a step of many commands -----------------------------------------------------------------------------------

    @precondition(lambda self: not self.story.holding)
    @rule()
    def begin_step(self) -> None:
        """From now on commands are decided one after another, as they come out of a full mailbox."""
        self.story.holding = True

    @precondition(lambda self: self.story.holding)
    @rule()
    def end_step(self) -> None:
        """And now what may start is started."""
        self.story.holding = False
        self.story.settle()
        self.model.settle()

    # --- the process and the clock -----------------------------------------------------------------------------

    @rule(slots=st.integers(0, 3))
    def set_executor(self, slots: int) -> None:
        self.advance(1)
        self.model.capacity["executor", "main"] = slots
        self.settle()
        self.story.set_executor("main", slots)

    @rule(name=st.sampled_from(["mail", "default"]), capacity=st.none() | st.integers(0, 2))
    def set_queue(self, name: str, capacity: int | None) -> None:
        self.advance(1)
        self.model.capacity["queue", name] = 10**9 if capacity is None else capacity
        self.settle()
        self.story.set_queue(name, capacity)

    @precondition(lambda self: "g" not in self.model.executor_of)
    @rule()
    def register(self) -> None:
        self.advance(1)
        self.story.executors["side"] = 1
        self.story.state.places.set_executor("side", 1)
        self.model.capacity["executor", "side"] = 1
        self.model.executor_of["g"] = "side"
        self.settle()
        self.story.register("g", TERMS, "side")

    @rule(us=seconds | st.just(10 * SECOND))
    def wait(self, us: int) -> None:
        self.advance(us)

    @rule()
    def project(self) -> None:
        self.story.project()

    @rule()
    def crash(self) -> None:
        self.advance(1)
        self.story.holding = False
        self.model.crash()
        self.model.settle()
        self.story.crash()
        self.story.restart()

    # --- what must be the same ---------------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        for run in self.model.runs:
            real = self.story.run(run.name)
            found = (str(real.state), real.priority, real.attempt_count, real.failure_count, real.lost_count)
            assert found == (run.state, run.priority, run.attempts, run.failures, run.lost), run.name
            if run.state in ("scheduled", "retry_wait"):
                assert real.until == run.until, run.name
            if run.state == "running":
                assert (real.cancel and real.cancel.how) == run.cancel, run.name
        assert len(self.story.state.runs) == sum(run.state in LIVE for run in self.model.runs)
        if not self.story.holding:
            assert self.story.state.places.next_timer() == self.model.next_wake()
        called = {run_id: name for name, (_, run_id) in self.story.names.items()}
        assert [called[run_id] for run_id in self.story.started] == self.model.started


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=200 if settings.default.derandomize else 3_000, stateful_step_count=50)


# --- replay --------------------------------------------------------------------------------------------------------


def replayed(*parts: list[Event]) -> State:
    """The state after these parts of a log."""
    machine = Machine()
    for part in parts:
        machine.replay(part)
    assert check(machine.state) == []
    return machine.state


@pytest.mark.parametrize("seed", range(3))
def test_a_log_replayed_in_two_parts_is_the_log_replayed_at_once(seed: int) -> None:
    """Section 5 number 66, mutation_authority#10, wal_replay#8, wal_replay#10, proptest_wal_replay#3."""
    log = act_out(drawn(seed, 100)).log
    expected = fingerprint(replayed(log))

    for k in range(len(log) + 1):
        assert fingerprint(replayed(log[:k], log[k:])) == expected


@settings(max_examples=60)
@given(steps)
def test_any_story_replays_to_the_state_it_ended_in(all_steps: list[Step]) -> None:
    """Section 6 number 3. The story itself compares after every step; here the log has also been bytes in between."""
    story = act_out(all_steps, checked=True)

    back = decode_events(encode_events(story.log))

    assert back == story.log
    assert fingerprint(replayed(back)) == fingerprint(story.state)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_commands_and_ids_make_the_same_log(seed: int) -> None:
    """Section 5 number 65: deterministic to the byte."""
    assert encode_events(act_out(drawn(seed, 100)).log) == encode_events(act_out(drawn(seed, 100)).log)


@pytest.mark.parametrize("seed", range(3))
def test_projecting_changes_no_decision(seed: int) -> None:
    """What has left memory is looked up; the log is the same whether or when it left."""
    drawn_steps = [step for step in drawn(seed, 100) if step[0] not in ("prune", "crash", "close")]

    assert act_out(drawn_steps).log == act_out(drawn_steps, projecting=False).log


def test_instants_come_from_the_events_alone() -> None:
    story = act_out(drawn(5, 80))

    state = replayed(story.log)

    assert state.last_at == story.log[-1].at
    assert state.last_seq == len(story.log)


def test_every_event_has_its_instant_and_they_do_not_decrease() -> None:
    """concurrent_mutation_boundary/02; SEMANTICS section 14, Clocks."""
    for seed in range(5):
        instants = [event.at for event in act_out(drawn(seed, 80)).log]
        assert instants == sorted(instants)


def test_a_refusal_uses_no_sequence_number() -> None:
    """Section 6 numbers 1 and 2; wal_replay#20, concurrent_mutation_boundary/01, mutation_authority#6."""
    story = play("submit a")
    last = story.state.last_seq
    for _ in range(3):
        story.play("refused NotReschedulable: reschedule a 5s\nrefused NotRetryable: retry a as b")

    story.play("finish a completed")

    assert story.state.last_seq == last + 1 == len(story.log)


def test_different_commands_in_one_session_are_all_there_after_it() -> None:
    """multi_mutation_session/01, mutation_authority#1, wal_replay#5, wal_replay#6, wal_replay#9, wal_replay#11,
    wal_replay#12, kill_recovery/03, observability/01, observability/02, observability/04.
    """
    play("""
        executor main 2
        submit a b
        submit c delay=30s
        submit d attempts=2
        pause engine
        resume engine
        finish a completed
        finish b terminal
        cancel c
        expect d running
        submit e
        finish e failed
        crash
        restart
        expect a completed attempts=1
        expect b failed attempts=1
        expect c canceled attempts=0
        expect d retry_wait attempts=1 lost=1
        expect e retry_wait attempts=1 failures=1
        tick 10s
        expect d running attempts=2
        expect e running attempts=2
    """)


def test_a_machine_can_be_asked_without_being_told() -> None:
    """mutation_authority#12: ``decide`` answers and changes nothing; ``perform`` is decide and apply."""
    story = play("pause engine\nsubmit a")
    before = fingerprint(story.state)

    decision = story.machine.decide(CancelRun(story.id("a")), story.now)

    assert isinstance(decision, Accepted)
    assert fingerprint(story.state) == before
    assert story.machine.perform(CancelRun(story.id("a")), story.now) == (decision.events, decision.reply)
    assert fingerprint(story.state) != before
