"""The accounting: what was acknowledged, held against what the store says became of it.

Everything is read after the engine has ended, by the calls that users have: ``iter_runs`` for what there is,
``get_run`` for the attempts of whatever did not go straight through, ``TaskHandle.result`` for the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actionqueue import ActionQueue, RunId, RunRecord, Task, TaskHandle
from actionqueue.demo.jobs import FileFacts, index, publish
from actionqueue.verify import VerifyReport

PAGE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task that the demo submitted."""

    subject: str
    """What it is about, as the tree has it: a file, or a directory."""
    path: str
    handle: TaskHandle[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing the demo says about itself, and whether the store bears it out."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What was acknowledged (``jobs``) and what the store has (``runs``, ``facts``), by run id."""

    jobs: Mapping[RunId, Job]
    runs: Mapping[RunId, RunRecord]
    listed: int
    """How many runs the store listed."""
    facts: Mapping[RunId, FileFacts]
    """The results of the files that parse."""
    receipts: int
    """How many results the directories have."""

    @classmethod
    def read(cls, queue: ActionQueue, jobs: Mapping[RunId, Job], tag: str) -> Ledger:
        """Everything that carries the tag."""
        runs: dict[RunId, RunRecord] = {}
        listed = 0
        for run in queue.iter_runs(tag=tag, limit=PAGE):
            went_straight = run.state == "completed" and run.attempt_count == 1
            runs[run.id] = run if went_straight else queue.get_run(run.id)
            listed += 1
        results = {id: jobs[id].handle.result() for id, run in runs.items() if run.state == "completed" and id in jobs}
        return cls(
            jobs=jobs,
            runs=runs,
            listed=listed,
            facts={id: result for id, result in results.items() if isinstance(result, FileFacts)},
            receipts=sum(isinstance(result, str) for result in results.values()),
        )

    # --- what stands out ---------------------------------------------------------------------------------------

    def of(self, task: Task[Any, Any], state: str | None = None) -> list[RunRecord]:
        """The runs of one handler, in one state or in any, in the order they were submitted."""
        found = [run for run in self.runs.values() if run.handler == task.name and state in (None, run.state)]
        return sorted(found, key=lambda run: run.id)

    def lost(self) -> list[RunRecord]:
        """The runs that lost an attempt with the engine."""
        return sorted((run for run in self.runs.values() if run.lost_count), key=lambda run: run.id)

    def subject(self, run: RunRecord) -> str:
        """What a run is about."""
        job = self.jobs.get(run.id)
        return "a task of someone else" if job is None else job.subject

    # --- the proof ---------------------------------------------------------------------------------------------

    def claims(self) -> Iterator[Claim]:
        """Each thing that must hold."""
        states = Counter(run.state for run in self.runs.values())
        completed, failed, submitted = states["completed"], states["failed"], len(self.jobs)
        yield Claim(
            text=f"{submitted:,} submitted = {completed:,} completed + {failed:,} failed, none open",
            holds=submitted == completed + failed == len(self.runs),
        )
        yield Claim(
            text="the store has one run for each acknowledged task, and no other",
            holds=self.jobs.keys() == self.runs.keys() and self.listed == len(self.runs),
        )
        yield self._no_file_twice()
        yield self._within_caps()
        yield self._attempts_add_up()
        yield self._lost_were_repeated()

    def _no_file_twice(self) -> Claim:
        parsed, failed = self.of(index, "completed"), len(self.of(index, "failed"))
        times = Counter(facts.path for facts in self.facts.values())
        mine = all(facts.path == self.jobs[id].path for id, facts in self.facts.items())
        directories, files = len(self.of(publish, "completed")), len(parsed) + failed
        return Claim(
            text=f"{files:,} files = {len(times):,} parsed + {failed:,} failed, none twice in the result",
            holds=mine and len(times) == len(self.facts) == len(parsed) and self.receipts == directories,
        )

    def _within_caps(self) -> Claim:
        caps = {task.name: (task.declared.max_attempts, task.declared.terms.max_lost) for task in (index, publish)}
        failed = [
            (max((run.failure_count for run in self.of(task)), default=0), task.name) for task in (index, publish)
        ]
        lost = max((run.lost_count for run in self.runs.values()), default=0)
        worst = ", ".join(f"{count} of {caps[name][0]} ({name})" for count, name in failed)
        return Claim(
            text=f"caps kept: failures {worst}; losses {lost} of {caps[index.name][1]}",
            holds=all(
                run.failure_count <= caps[run.handler][0] and run.lost_count <= caps[run.handler][1]
                for run in self.runs.values()
            ),
        )

    def _lost_were_repeated(self) -> Claim:
        lost = self.lost()
        count = sum(run.lost_count for run in lost)
        return Claim(
            text=f"{count} attempts were lost, each was followed by another" if lost else "no attempt was lost",
            holds=all(run.attempts and run.attempts[-1].outcome != "lost" for run in lost),
        )

    def _attempts_add_up(self) -> Claim:
        """By the counts of every run, and by the rows of those that took more than one attempt."""
        runs = self.runs.values()
        started = sum(run.attempt_count for run in runs)
        failed, lost = sum(run.failure_count for run in runs), sum(run.lost_count for run in runs)
        completed = sum(run.state == "completed" for run in runs)
        return Claim(
            text=f"{started:,} attempts = {completed:,} completed + {failed:,} failed + {lost:,} lost",
            holds=started == completed + failed + lost and all(_rows_agree(run) for run in runs if run.attempts),
        )


def verified(report: VerifyReport) -> Claim:
    """What ``verify`` says, as a claim."""
    counts = report.counts
    found = "and give the tables" if report.ok else f"but for {report.problem_count} problems"
    return Claim(
        text=f"{counts['events']:,} events in {counts['commits']:,} commits match their hashes {found}", holds=report.ok
    )


def _rows_agree(run: RunRecord) -> bool:
    """Whether a run's attempts, numbered from 1 without a gap, are what its counts say, and only its last ended it."""
    outcomes = [attempt.outcome for attempt in run.attempts]
    ended_well = 1 if run.state == "completed" else 0
    return (
        [attempt.number for attempt in run.attempts] == list(range(1, run.attempt_count + 1))
        and outcomes.count("lost") == run.lost_count
        and outcomes.count("completed") == ended_well
        and len(outcomes) == run.lost_count + run.failure_count + ended_well
        and (not ended_well or outcomes[-1] == "completed")
    )
