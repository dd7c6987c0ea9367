"""kill -9, again and again, on one store under load (issue line 4; section 5, numbers 1, 7, 13, 22 and 68).

The engine is killed at random instants (from a seed) with 20 or more attempts open, started again at once, killed
again. A second process submits all the while. After each cycle, with no engine on the store, three witnesses are
compared: the log (its chain checked), the ledger of what handlers did to the outside world, and what was acknowledged
to the submitter. At the end the engine finishes everything, and the tables are compared too.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from actionqueue import ActionQueue
from actionqueue.core.attempts import AttemptFinished, AttemptStarted
from actionqueue.core.state import COMPLETED, FIRST_TERMINAL, Outcome
from actionqueue.core.submission import RunAdded, TaskSubmitted
from actionqueue.store.codec import decode_events
from actionqueue.store.inbox import Inbox
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.verify import verify
from tests.process.support import Program, Programs, eventually, inspect, leftovers

OPEN_AT_LEAST = 20
TASKS_PER_CYCLE = 90
MAX_ATTEMPTS, MAX_LOST = 3, 5
LINGER_S_MAX = 0.08
"""The kill comes up to so long after enough attempts are open."""


@dataclass
class Story:
    """What the log says of one run."""

    task_id: bytes
    started: list[bytes] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ended: int | None = None


class Log:
    """The log, read on from where the last reading ended."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._seq = 0
        self.runs: dict[bytes, Story] = {}
        self.keys: Counter[str] = Counter()
        self.attempts: dict[bytes, bytes] = {}

    def read_on(self) -> None:
        """Each event must be possible after those before it."""
        reader = SQLiteReader(self._store)
        for commit in reader.commits(self._seq):
            assert commit.first_seq == self._seq + 1
            self._seq = commit.last_seq
            for event in decode_events(commit.events, commit.version):
                self._take(event)
        reader.close()

    def _take(self, event: Any) -> None:
        match event:
            case TaskSubmitted():
                assert event.run_id not in self.runs, "submitted twice"
                self.runs[event.run_id] = Story(event.task_id)
                if event.rare is not None and event.rare.key is not None:
                    self.keys[event.rare.key] += 1
            case RunAdded():
                raise AssertionError("nobody asked for another run")
            case AttemptStarted():
                story = self.runs[event.run_id]
                assert story.ended is None, "started again after its end"
                assert len(story.started) == len(story.outcomes), "started while an attempt is open"
                story.started.append(event.attempt_id)
                self.attempts[event.attempt_id] = event.run_id
            case AttemptFinished():
                story = self.runs[event.run_id]
                assert len(story.started) == len(story.outcomes) + 1
                assert story.started[-1] == event.attempt_id, "the end of another attempt"
                story.outcomes.append(event.outcome)
                if event.to >= FIRST_TERMINAL:
                    story.ended = event.to
            case _:
                pass

    def outcomes(self) -> Counter[str]:
        return Counter(outcome.name.lower() for story in self.runs.values() for outcome in story.outcomes)


class Ledger:
    """What handlers did, read on from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.started: dict[bytes, bytes] = {}
        self.ended: set[bytes] = set()

    def read_on(self) -> None:
        """Whole lines only: the last may be half written."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._at += len(text)
        for line in text.decode().splitlines():
            what, run_id, attempt_id = line.split()
            attempt = UUID(attempt_id).bytes
            if what == "start":
                assert attempt not in self.started, "one attempt ran twice"
                self.started[attempt] = UUID(run_id).bytes
            else:
                assert attempt in self.started
                self.ended.add(attempt)

    def open_count(self, before: int) -> int:
        """How many have started since ``before`` had, and not ended. Failures look open, and are few."""
        self.read_on()
        return len(self.started) - before - len(self.ended & set(list(self.started)[before:]))


@dataclass
class Figures:
    """What the test prints."""

    cycles: int = 0
    cycles_with_enough_open: int = 0
    acknowledged: int = 0
    lost_submissions: int = 0
    attempts_by_outcome: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self.attempts_by_outcome.items()))
        return (
            f"{self.cycles} cycles, {self.cycles_with_enough_open} of them with {OPEN_AT_LEAST} or more attempts open; "
            f"{self.acknowledged} acknowledged, {self.lost_submissions} lost, 0 repeated; attempts: {outcomes}"
        )


class Siege:
    """The whole of it: one store, one submitter, many engines."""

    def __init__(self, programs: Programs, folder: Path, seed: int) -> None:
        self.store = folder / "jobs.db"
        self._programs = programs
        self._ledger_path = folder / "ledger"
        self._acknowledged = folder / "acknowledged"
        self._draw = random.Random(seed)
        self._log, self._ledger = Log(self.store), Ledger(self._ledger_path)
        self.figures = Figures()
        self._lost = 0
        self._submitter = programs.start("submitting", self.store, self._acknowledged, seed)
        self._submitter.line("ready")

    def start_engine(self) -> Program:
        return self._programs.start("crashing", self.store, self._ledger_path)

    def cycle(self) -> None:
        """Start, submit, wait until enough is open, linger, kill, compare."""
        self._ledger.read_on()
        before = len(self._ledger.started)
        engine = self.start_engine()
        self._submitter.tell(str(TASKS_PER_CYCLE))
        eventually(lambda: self._ledger.open_count(before) >= OPEN_AT_LEAST, f"{OPEN_AT_LEAST} are open", of=engine)
        with pytest.raises(AssertionError):  # nothing is said: it is a wait that a death would end
            engine.line("no such line", patience_s=self._draw.uniform(0, LINGER_S_MAX))
        engine.send(signal.SIGKILL)
        engine.wait()
        self._submitter.line("submitted")
        self.figures.cycles += 1
        self.compare()
        engine.dispose()

    def compare(self) -> None:
        """Log, ledger and tables, with no engine on the store."""
        self._log.read_on()
        self._ledger.read_on()
        lost = self._log.outcomes()["lost"]
        self.figures.cycles_with_enough_open += lost - self._lost >= OPEN_AT_LEAST
        self._lost = lost
        for attempt, run in self._ledger.started.items():
            assert self._log.attempts.get(attempt) == run, "an attempt ran before its start was durable"
        for story in self._log.runs.values():
            counted = Counter(story.outcomes)
            assert counted[Outcome.FAILED] + counted[Outcome.TIMED_OUT] <= MAX_ATTEMPTS
            assert counted[Outcome.LOST] <= MAX_LOST + 1
            assert counted[Outcome.COMPLETED] <= 1
            if story.ended == COMPLETED:
                assert story.started[-1] in self._ledger.ended, "completed, and its handler never got there"
        report = verify(self.store)
        assert report.ok, str(report)

    def finish(self) -> None:
        """An engine that is left alone finishes everything; then nothing that was acknowledged is missing."""
        engine = self.start_engine()
        engine.line("engine")
        client = ActionQueue(self.store, role="client")
        live = ("scheduled", "ready", "leased", "running", "retry_wait")

        def is_done() -> bool:
            counts = client.stats().runs
            return not any(counts[state] for state in live) and not any(inbox_rows(self.store))

        eventually(is_done, "everything has ended", patience_s=240, of=engine)
        client.close()
        engine.send(signal.SIGTERM)
        engine.finish()
        self.compare()
        self._check_acknowledged()
        self.figures.attempts_by_outcome = self._log.outcomes()
        for story in self._log.runs.values():
            assert story.ended is not None
            assert len(story.started) == len(story.outcomes)

    def _check_acknowledged(self) -> None:
        lines = [line.split() for line in self._acknowledged.read_text().splitlines()]
        self.figures.acknowledged = len(lines)
        by_run = {run_id: story.task_id for run_id, story in self._log.runs.items()}
        tasks = [(UUID(ids[0]).bytes, UUID(ids[1]).bytes) for kind, *ids in lines if kind == "task"]
        missing = [task for task, run in tasks if by_run.get(run) != task]
        keys = {ids[0] for kind, *ids in lines if kind == "key"}
        missing_keys = [key for key in keys if self._log.keys[key] != 1]
        self.figures.lost_submissions = len(missing) + len(missing_keys)
        assert not missing
        assert not missing_keys
        assert len(self._log.runs) == len(tasks) + len(keys), "tasks that nobody submitted"

    def check_reopened(self) -> None:
        """The store opens, and nothing is left in it."""
        queue = ActionQueue(self.store)
        with queue.running():
            assert inspect(queue, leftovers) == []


def inbox_rows(store: Path) -> list[Any]:
    inbox = Inbox(store)
    rows = inbox.rows(10)
    inbox.close()
    return rows


def besiege(programs: Programs, folder: Path, cycles: int, seed: int) -> Figures:
    siege = Siege(programs, folder, seed)
    for _ in range(cycles):
        siege.cycle()
    siege.finish()
    siege.check_reopened()
    print(f"\n{siege.figures}")
    return siege.figures


def test_ten_kills_in_a_row_lose_nothing_and_repeat_nothing(programs: Programs, tmp_path: Path) -> None:
    """S5-7, S5-68, chaos kill_recovery/04: the short form of the siege."""
    figures = besiege(programs, tmp_path, cycles=10, seed=11)
    assert figures.cycles_with_enough_open >= 7


@pytest.mark.soak
def test_two_hundred_kills_in_a_row_lose_nothing_and_repeat_nothing(programs: Programs, tmp_path: Path) -> None:
    """S5-7, S5-68: of the 200 at least 150 find 20 or more attempts open."""
    figures = besiege(programs, tmp_path, cycles=200, seed=200)
    assert figures.cycles_with_enough_open >= 150
