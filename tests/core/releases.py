"""Random stories in which somebody asks why, does what is named as the release, and nothing else, and asks again.

Then the run has started or ended, or something else holds it back. What the answers were is counted by type, so that a
test can tell that every reason there is was met, and released, often enough.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from actionqueue.core.attempts import Finish
from actionqueue.core.check import fingerprint
from actionqueue.core.control import CancelRun, Resume
from actionqueue.core.equipment import equip, equipment_of
from actionqueue.core.errors import ActionQueueError, NotRetryable
from actionqueue.core.explain import Explanation, ended, explain, undecided, without_engine
from actionqueue.core.instants import instant_us
from actionqueue.core.machine import Command
from actionqueue.core.plain import parsed, plain
from actionqueue.core.reasons import (
    AskRetry,
    AtInstant,
    Ended,
    InProgress,
    ItsTurn,
    MoreSlots,
    NotDecided,
    Reason,
    RegisterHandler,
    Release,
    ResumeScope,
    RunsEnd,
    SignalComes,
    StartEngine,
    TasksComplete,
    Where,
)
from actionqueue.core.signals import SendSignal
from actionqueue.core.state import CANCELED, FAILED, Outcome, Run
from actionqueue.core.submission import RetryRun, Submit
from tests.core.random_stories import Step, act
from tests.core.story import SECOND, Story

BACKOFF_US = 10 * SECOND
"""Of most handlers in the stories."""


class AskingStory(Story):
    """A story with somebody in it who asks. ``reasons`` counts those asked for, ``released`` those that were released."""

    def __init__(self, seed: int) -> None:
        super().__init__(slots=3, checked=False)
        self.chance = random.Random(seed)
        self.reasons: Counter[str] = Counter()
        self.released: Counter[str] = Counter()
        self.is_asking = False

    # --- asking ----------------------------------------------------------------------------------------------------

    def told(self, explanation: Explanation) -> Explanation:
        """Every explanation can be read, and sent."""
        self.reasons[type(explanation.reason).__name__] += 1
        assert str(explanation).count("\n") >= (explanation.release is not None)
        assert parsed(plain(explanation), Explanation) == explanation
        return explanation

    def explained(self, run_id: bytes) -> Explanation:
        """Why a run, live or not, is where it is."""
        run = self.state.runs.get(run_id)
        if run is not None:
            before = fingerprint(self.state)
            found = explain(self.state, run, self.now)
            assert fingerprint(self.state) == before, "a question changes nothing"
            return self.told(found)
        self.project()
        row = self.tables.runs[run_id]
        siblings = [each for each in self.tables.runs.values() if each[1] == row[1]]
        return self.told(ended(row, siblings, self.now))

    def ask(self) -> None:
        """Somebody asks about a run, and does what is named."""
        live = [run for run in self.state.runs.values() if run.where is not Where.RUNNING]
        over = [run.id_bytes for run in self.seen.values() if run.id_bytes not in self.state.runs]
        if live and self.chance.random() < 0.85:
            self.release(self.chance.choice(live).id_bytes)
        elif over and (run_id := self.chance.choice(over)) in self.tables.runs:
            self.release(run_id)
        running = [run for run in self.state.runs.values() if run.where is Where.RUNNING]
        if running:
            assert isinstance(self.explained(self.chance.choice(running).id_bytes).reason, InProgress)

    def release(self, run_id: bytes) -> None:
        """Do what releases that run: then it starts, ends, or waits for something else."""
        found = self.explained(run_id)
        if found.release is None:
            assert isinstance(found.reason, Ended)
            assert found.state == "completed" or found.reason.retried_as is not None
            return
        self.is_asking = True
        attempts = self._attempts(run_id)
        is_done = self.do(found.release, run_id)
        self.is_asking = False
        if is_done:
            self.released[type(found.reason).__name__] += 1
            self.holds(found.reason, run_id, attempts)

    def has_not_started(self, run_id: bytes, attempts: int) -> None:
        """What was promised is not complete yet."""
        run = self.state.runs.get(run_id)
        assert run is None or run.attempt_count == attempts, "it did not take all that was named"

    def _attempts(self, run_id: bytes) -> int:
        run = self.state.runs.get(run_id)
        return 0 if run is None else run.attempt_count

    def holds(self, reason: Reason, run_id: bytes, attempts: int) -> None:
        """What was promised: it has started, or ended, or its reason is another one."""
        run = self.state.runs.get(run_id)
        if isinstance(reason, Ended) or (run is not None and run.attempt_count == attempts):
            again = self.explained(run_id).reason
            assert again != reason, f"released, and still: {again}"

    def crash_in_a_row(self) -> None:
        """What is running now is lost twice: then it starts again one after another."""
        for _ in range(2):
            super().crash()
            self.restart()
            self.advance(BACKOFF_US)
        for run in self.state.places.quarantined.copy().values():
            if run.where is Where.QUARANTINE:
                self.release(run.id_bytes)

    def name_all(self) -> None:
        """Runs that came up while somebody asked have names too, so that later steps can be about them."""
        known = {run_id for _, run_id in self.names.values()}
        for run in self.state.runs.values():
            if run.id_bytes not in known:
                self.names[f"x{len(self.names)}"] = (run.task_id_bytes, run.id_bytes)

    # --- doing -----------------------------------------------------------------------------------------------------

    def do(self, release: Release, run_id: bytes) -> bool:  # noqa: C901 - a case for each release
        """That, and no other command. What is told is the least that does it: a little less does not.

        False where it cannot be done as things are: something else is in the way of it.
        """
        attempts = self._attempts(run_id)
        match release:
            case AtInstant(at):
                self.advance(max(0, instant_us(at) - 1 - self.now))
                self.has_not_started(run_id, attempts)
                self.advance(max(0, instant_us(at) - self.now))
            case ResumeScope(scope, name):
                self.perform(Resume(scope, name))
            case RegisterHandler(handler):
                self.register(handler)
            case RunsEnd(runs, count):
                for id in runs[: count - 1]:
                    self._end(self.state.runs.get(id.bytes))
                self.has_not_started(run_id, attempts)
                for id in runs[count - 1 : count]:
                    self._end(self.state.runs.get(id.bytes))
            case MoreSlots(kind, name):
                self._give_slot(kind, name)
            case ItsTurn():
                self.holding = False
                self.settle()
            case SignalComes(name, key, or_at):
                if or_at is not None and self.chance.random() < 0.5:
                    self.advance(max(0, instant_us(or_at) - 1 - self.now))
                    self.has_not_started(run_id, attempts)
                    self.advance(max(0, instant_us(or_at) - self.now))
                else:
                    self.perform(SendSignal(f"release-{self.now}-{len(self.log)}", name, key))
            case StartEngine():
                self.restart()
            case TasksComplete(tasks, count):
                for task_id in tasks[: count - 1]:
                    self._complete(task_id.bytes)
                if tasks[-1].bytes in self.state.tasks:
                    self.has_not_started(run_id, attempts)
                return all(self._complete(task_id.bytes) for task_id in tasks) and len(tasks) == count
            case AskRetry(first):
                reply = self.perform(RetryRun(run_id, self.next_id(self.now), "somebody"))
                if isinstance(
                    reply, NotRetryable
                ):  # a dependency of it has failed, because of which it ended, or later
                    return first is not None and self._retry_upstream(first.bytes, run_id)
                assert not isinstance(reply, ActionQueueError), reply
        return True

    def _complete(self, task_id: bytes) -> bool:
        """Let a task run to its end; False where that is not a good one, or does not come."""
        for _ in range(50):
            task = self.state.tasks.get(task_id)
            if task is None:
                return True
            run = task.head
            if run is None or task.extra.rule is not None:
                return False
            if run.attempt is not None:
                self._end(run)
                continue
            release = self.explained(run.id_bytes).release
            if release is None or not self.do(release, run.id_bytes):
                return False
        return False

    def _retry_upstream(self, origin: bytes, run_id: bytes) -> bool:
        """Try again what began it, with all that fell because of it; False where others are in the way too."""
        self.project()
        bad = [row for row in self.tables.runs.values() if row[1] == origin and row[4] in (FAILED, CANCELED)]
        for row in bad:
            self.perform(RetryRun(row[0], self.next_id(self.now), "somebody", with_dependents=True))
        return any(run.lineage is not None and run.lineage.retry_of == run_id for run in self.state.runs.values())

    def _end(self, run: Run | None) -> None:
        if run is None:
            return
        attempt = run.attempt
        if attempt is None:
            self.perform(CancelRun(run.id_bytes))
        else:
            self.perform(Finish(run.id_bytes, attempt.id, attempt.fence, Outcome.COMPLETED))

    def _give_slot(self, kind: str, name: str) -> None:
        if kind == "queue":
            self.set_queue(name, 1 + len(self.state.places.queues[name].running))
        elif kind == "executor":
            self.set_executor(name, 1 + len(self.state.places.executors[name].running))
        else:
            self.register(name, concurrency=1 + len(self.state.places.bounds[name].running))

    # --- moments in which nobody else could ask --------------------------------------------------------------------

    def perform(self, command: Command) -> Any:
        """A submission is asked about while it is in the inbox, and again when the engine has not come to it yet."""
        if not self.holding:
            self.settle()  # a step takes a microsecond, at the end of which something may be due
        if self.is_asking or type(command) is not Submit:
            return super().perform(command)
        item = command.items[-1]
        before = self.told(undecided(item, self.now, self.now, has_engine=True))
        assert before.release == ItsTurn()
        self.holding = True
        reply = super().perform(command)
        self.released[NotDecided.__name__] += 1
        if item.run_id in self.state.runs and self.explained(item.run_id).release == ItsTurn():
            self.release(item.run_id)
        self.holding = False
        self.settle()
        return reply

    def advance(self, us: int) -> None:
        """The same as for commands."""
        if not self.down:
            self.settle()
        super().advance(us)

    def crash(self) -> None:
        """While no engine runs, the answer is made of a state that is loaded as a fork is."""
        super().crash()
        equipment = equipment_of(self.state.places)
        state = self.rebuilt()
        equip(state.places, equipment)
        runs = list(state.runs.values())
        if not runs:
            state.dispose()
            return
        run = self.chance.choice(runs)
        run_id, found = run.id_bytes, self.told(without_engine(state, explain(state, run, self.now)))
        self.told(found.because[0])
        state.dispose()
        attempts = self._attempts(run_id)
        assert found.release == StartEngine()
        self.do(found.release, run_id)
        self.released[type(found.reason).__name__] += 1
        self.holds(found.reason, run_id, attempts)
        super().crash()


def ask_through(seed: int, steps: list[Step]) -> AskingStory:
    """A story with these steps, in which somebody asks after every few of them."""
    story = AskingStory(seed)
    for step in steps:
        act(story, step)
        story.name_all()
        if len(story.state.runs) > 3 and story.chance.random() < 0.02:
            story.crash_in_a_row()
        if story.chance.random() < 0.5:
            story.ask()
            story.name_all()
    story.settle()
    assert not story.check(settled=True)
    return story
