"""kill -9, again and again, on one store under load (issue line 4; section 5, numbers 1, 7, 13, 22 and 68).

The engine is killed at random instants (from a seed) with 20 or more attempts open, started again at once, killed
again. Three other processes submit all the while. After each cycle, with no engine on the store, three witnesses are
compared: the log (its chain checked), the ledger of what handlers did to the outside world, and what was acknowledged
to the submitters. At the end the engine finishes everything, and the tables are compared too.

In a relay another process stands by: it must be the engine within two seconds of each kill, and log and ledger are
compared beside it.
"""

from __future__ import annotations

import random
import signal
import time
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
from tests.process.support import Program, Programs, eventually, inspect, leftovers, within

OPEN_AT_LEAST = 20
SUBMITTERS = 3
TASKS_PER_CYCLE = 90
"""Of all submitters together."""
TAKE_OVER_S = 2.0
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
    take_overs_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self.attempts_by_outcome.items()))
        taken = f"; {len(self.take_overs_s)} taken over, the slowest in {max(self.take_overs_s, default=0):.2f} s"
        return (
            f"{self.cycles} cycles, {self.cycles_with_enough_open} of them with {OPEN_AT_LEAST} or more attempts open; "
            f"{self.acknowledged} acknowledged to {SUBMITTERS} processes, {self.lost_submissions} lost, 0 repeated; "
            f"attempts: {outcomes}{taken if self.take_overs_s else ''}"
        )


class Siege:
    """The whole of it: one store, some submitters, many engines."""

    def __init__(self, programs: Programs, folder: Path, seed: int) -> None:
        self.store = folder / "jobs.db"
        self._programs = programs
        self._ledger_path = folder / "ledger"
        self._acknowledged = [folder / f"acknowledged-{number}" for number in range(SUBMITTERS)]
        self._draw = random.Random(seed)
        self._log, self._ledger = Log(self.store), Ledger(self._ledger_path)
        self.figures = Figures()
        self._lost = 0
        self._submitters = [
            programs.start("submitting", self.store, path, f"{seed}-{number}")
            for number, path in enumerate(self._acknowledged)
        ]
        for submitter in self._submitters:
            submitter.line("ready")

    def start_engine(self, *how: str) -> Program:
        return self._programs.start("crashing", self.store, self._ledger_path, *how)

    def load(self, engine: Program) -> None:
        """Have work submitted, until enough of it is open and a moment more."""
        self._ledger.read_on()
        before = len(self._ledger.started)
        for submitter in self._submitters:
            submitter.tell(str(TASKS_PER_CYCLE // SUBMITTERS))
        eventually(lambda: self._ledger.open_count(before) >= OPEN_AT_LEAST, f"{OPEN_AT_LEAST} are open", of=engine)
        with pytest.raises(AssertionError):  # nothing is said: it is a wait that a death would end
            engine.line("no such line", patience_s=self._draw.uniform(0, LINGER_S_MAX))

    def await_submitters(self) -> None:
        for submitter in self._submitters:
            submitter.line("submitted")

    def cycle(self) -> None:
        """Start, submit, wait until enough is open, linger, kill, compare."""
        engine = self.start_engine()
        self.load(engine)
        engine.send(signal.SIGKILL)
        engine.wait()
        self.await_submitters()
        self.figures.cycles += 1
        self.compare()
        engine.dispose()

    def compare(self) -> None:
        """Log, ledger and tables, with no engine on the store."""
        self.compare_logs()
        report = verify(self.store)
        assert report.ok, str(report)

    def compare_logs(self) -> None:
        """Log and ledger, perhaps beside an engine: what the ledger says has happened when the log is read."""
        self._ledger.read_on()
        self._log.read_on()
        lost = self._log.outcomes()["lost"]
        self.figures.cycles_with_enough_open += lost - self._lost >= OPEN_AT_LEAST
        self._lost = lost
        for attempt, run in self._ledger.started.items():
            assert self._log.attempts.get(attempt) == run, "an attempt ran before its start was durable"
        ended_by: list[bytes] = []
        for story in self._log.runs.values():
            counted = Counter(story.outcomes)
            assert counted[Outcome.FAILED] + counted[Outcome.TIMED_OUT] <= MAX_ATTEMPTS
            assert counted[Outcome.LOST] <= MAX_LOST + 1
            assert counted[Outcome.COMPLETED] <= 1
            if story.ended == COMPLETED:
                ended_by.append(story.started[-1])
        self._ledger.read_on()
        assert self._ledger.ended.issuperset(ended_by), "completed, and its handler never got there"

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
        lines = [line.split() for path in self._acknowledged for line in path.read_text().splitlines()]
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


class Relay(Siege):
    """The same with a standby, which takes over from whoever is killed."""

    def __init__(self, programs: Programs, folder: Path, seed: int) -> None:
        super().__init__(programs, folder, seed)
        self._holder = self.start_engine("standby")
        self._holder.line("engine")
        self._heir = self._stand_by()

    def _stand_by(self) -> Program:
        standby = self.start_engine("standby")
        standby.line("standby")
        return standby

    def cycle(self) -> None:
        """Submit, wait until enough is open, linger, kill; another takes over, and a third one stands by."""
        self.load(self._holder)
        self._holder.send(signal.SIGKILL)
        killed_at = time.monotonic()
        with within(TAKE_OVER_S, "taking over"):
            self._heir.line("engine")
        self.figures.take_overs_s.append(time.monotonic() - killed_at)
        self._holder.wait()
        self.await_submitters()
        self.figures.cycles += 1
        self.compare_logs()
        self._holder.dispose()
        self._holder, self._heir = self._heir, self._stand_by()

    def finish(self) -> None:
        """All are killed at once; the rest is as ever."""
        for program in (self._heir, self._holder):
            program.kill()
        super().finish()


def inbox_rows(store: Path) -> list[Any]:
    inbox = Inbox(store)
    rows = inbox.rows(10)
    inbox.close()
    return rows


def besiege(programs: Programs, folder: Path, cycles: int, seed: int, kind: type[Siege] = Siege) -> Figures:
    siege = kind(programs, folder, seed)
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


def test_a_standby_takes_over_from_each_engine_that_is_killed_and_nothing_is_lost(
    programs: Programs, tmp_path: Path
) -> None:
    """S5-7, S5-21, S5-22: the short form of the relay."""
    figures = besiege(programs, tmp_path, cycles=4, seed=5, kind=Relay)
    assert len(figures.take_overs_s) == 4


@pytest.mark.soak
def test_fifty_engines_are_killed_and_taken_over_from_and_nothing_is_lost(programs: Programs, tmp_path: Path) -> None:
    """S5-7, S5-21, S5-22: the long one."""
    figures = besiege(programs, tmp_path, cycles=50, seed=50, kind=Relay)
    assert len(figures.take_overs_s) == 50


@pytest.mark.soak
def test_two_hundred_kills_in_a_row_lose_nothing_and_repeat_nothing(programs: Programs, tmp_path: Path) -> None:
    """S5-7, S5-68: of the 200 at least 150 find 20 or more attempts open."""
    figures = besiege(programs, tmp_path, cycles=200, seed=200)
    assert figures.cycles_with_enough_open >= 150
