"""What an engine finds after its predecessor was killed, state by state (chaos kill_recovery; section 5, 1, 8 and 10).

The original's tests leak their handles and call that a kill; here the process dies by SIGKILL. Each story ends with new
work succeeding and a clean ``verify``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, Retry, RunRecord
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.verify import verify
from tests.process.support import PATIENCE_S, Program, Programs, eventually


class Story:
    """A store, whoever submits to it, and one engine after another."""

    def __init__(self, programs: Programs, store: Path) -> None:
        self.store = store
        self.queue = ActionQueue(store, role="client")
        self._programs = programs
        self.engine: Program | None = None
        names = ("held", "failing", "quick", "broken", "once")
        self.tasks: dict[str, Any] = {name: self.queue.task(name=name)(lambda: 0) for name in names}

    def start(self, **options: int) -> Program:
        self.engine = self._programs.start("stepping", self.store, json.dumps(options))
        self.engine.line("engine")
        return self.engine

    def kill(self) -> None:
        assert self.engine is not None
        self.engine.kill()

    def run(self, job: Any) -> RunRecord:
        return self.queue.get_run(job.run_id)

    def wait_for(self, job: Any, state: str) -> RunRecord:
        """Until the tables say so (at most a tenth of a second behind)."""
        return eventually(lambda: run if (run := self.known(job)) and run.state == state else None, f"it is {state}")

    def known(self, job: Any) -> RunRecord | None:
        runs: list[RunRecord] = job.runs()
        return runs[-1] if runs else None

    def sequences(self) -> list[tuple[int, int]]:
        reader = SQLiteReader(self.store)
        found = [(commit.first_seq, commit.last_seq) for commit in reader.commits(0)]
        reader.close()
        return found

    def end(self) -> None:
        """New work succeeds, and everything is as it was written."""
        assert self.engine is not None
        assert self.tasks["quick"].submit().result(timeout=PATIENCE_S) == 1
        self.kill()
        report = verify(self.store)
        assert report.ok, str(report)


@pytest.fixture
def story(programs: Programs, store: Path) -> Iterator[Story]:
    told = Story(programs, store)
    yield told
    told.queue.close()


def test_tasks_that_nobody_has_started_are_all_there(story: Story) -> None:
    """kill_recovery/01 and /07: fifty tasks, each with its one run, which the original could lack."""
    story.start()
    story.queue.pause()
    jobs = [story.tasks["quick"].submit() for _ in range(50)]
    story.wait_for(jobs[-1], "ready")
    story.kill()
    story.start()
    stats = story.queue.stats()
    assert (stats.tasks, stats.runs["ready"], stats.paused) == (50, 50, ("engine",))
    assert [story.run(job).state for job in jobs] == ["ready"] * 50
    story.queue.resume()
    assert [job.result(timeout=PATIENCE_S) for job in jobs] == [1] * 50
    story.end()


def test_a_running_run_is_lost_and_tried_again(story: Story) -> None:
    """kill_recovery/02 and S5-1: the open attempt is closed as lost, the run completes, nothing stays stuck."""
    engine = story.start()
    job = story.tasks["held"].submit()
    engine.line("running held 1")
    story.kill()
    engine = story.start()
    assert job.result(timeout=PATIENCE_S) == 2
    run = story.run(job)
    assert [attempt.outcome for attempt in run.attempts] == ["lost", "completed"]
    assert (run.lost_count, run.failure_count, run.attempt_count) == (1, 0, 2)
    story.end()


def test_with_one_attempt_only_a_lost_run_has_failed(story: Story) -> None:
    """S5-3, deliberately different: lost attempts have a cap of their own; at most once is still at most once."""
    engine = story.start()
    job = story.tasks["once"].options(retry=Retry(1)).submit()
    engine.line("running once 1")
    story.kill()
    story.start()
    run = story.wait_for(job, "failed")
    assert (run.reason, [attempt.outcome for attempt in run.attempts]) == ("lost", ["lost"])
    story.end()


def test_mixed_states_are_what_they_were(story: Story) -> None:
    """kill_recovery/03: one completed, one failed, one running."""
    engine = story.start()
    completed, failed, running = (story.tasks[name].submit() for name in ("quick", "broken", "held"))
    story.wait_for(completed, "completed")
    story.wait_for(failed, "failed")
    engine.line("running held 1")
    before = story.run(completed), story.run(failed)
    story.kill()
    assert (story.run(completed), story.run(failed)) == before
    story.start()
    assert running.result(timeout=PATIENCE_S) == 2
    assert (story.run(completed), story.run(failed)) == before
    story.end()
    assert (story.run(completed), story.run(failed)) == before


def test_three_kills_with_progress_between_lead_to_one_completed_run(story: Story) -> None:
    """kill_recovery/04: killed while it is scheduled, while it is ready, while it runs. There is one thread for two."""
    story.start(threads=1)
    job = story.tasks["held"].options(delay="1h").submit()
    scheduled = story.wait_for(job, "scheduled")
    story.kill()
    engine = story.start(threads=1)
    assert story.run(job) == scheduled
    in_the_way = story.tasks["held"].submit()
    engine.line("running held 1")
    story.queue.reschedule(job.run_id, datetime.now(UTC))
    story.wait_for(job, "ready")
    story.kill()
    engine = story.start(threads=1)
    engine.line("running held 1")
    story.kill()
    story.start(threads=1)
    assert job.result(timeout=PATIENCE_S) == 2
    assert in_the_way.result(timeout=PATIENCE_S) == 2
    stats = story.queue.stats()
    assert (stats.tasks, stats.runs["completed"]) == (2, 2)
    story.end()


def test_sequences_go_on_where_they_ended(story: Story) -> None:
    """kill_recovery/05: one after the other from 1, over three engines, none twice and none left out."""
    for _ in range(3):
        story.start()
        story.tasks["quick"].submit().result(timeout=PATIENCE_S)
        story.kill()
    found = story.sequences()
    assert found[0][0] == 1
    assert all(first == last + 1 for (_, last), (first, _) in pairwise(found))
    story.start()
    story.end()


def test_a_backoff_keeps_its_instant(story: Story) -> None:
    """kill_recovery/06 and S5-10: what is left of the delay is kept, not begun again; the next attempt completes."""
    engine = story.start()
    job = story.tasks["failing"].submit()
    engine.line("running failing 1")
    waiting = story.wait_for(job, "retry_wait")
    story.kill()
    story.start()
    assert story.run(job) == waiting
    assert waiting.waiting_until is not None
    assert waiting.attempts[-1].retry_at == waiting.waiting_until
    story.queue.reschedule(job.run_id, datetime.now(UTC))
    assert job.result(timeout=PATIENCE_S) == 2
    run = story.run(job)
    assert [attempt.outcome for attempt in run.attempts] == ["failed", "completed"]
    assert (run.failure_count, run.lost_count) == (1, 0)
    story.end()
