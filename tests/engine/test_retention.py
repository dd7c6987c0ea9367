"""Retention by age and by count: what is too old or too much leaves, the rest stays and verifies."""

from __future__ import annotations

from pathlib import Path

from actionqueue import ActionQueue
from actionqueue.engine.housekeeping import Housekeeping

DAY_US = 86_400_000_000


def housekept(queue: ActionQueue, **limits: int) -> Housekeeping:
    """The duties of the queue's engine under other limits, done by hand."""
    assert queue.session is not None
    assert queue.session.engine is not None
    return Housekeeping(queue.session.engine, 30 * DAY_US, 7 * DAY_US, **limits)


def test_what_is_younger_than_its_retention_and_not_too_much_stays(tmp_path: Path) -> None:
    queue = ActionQueue(tmp_path / "jobs.db")

    @queue.task
    def work(n: int) -> int:
        return n

    with queue.running():
        work.submit_many([(n,) for n in range(5)])
        queue.run_until_idle(timeout=30)

        housekept(queue).prune()

        assert queue.stats().runs["completed"] == 5
    assert queue.verify().ok


def test_too_many_finished_tasks_are_pruned_and_too_long_a_log_too(tmp_path: Path) -> None:
    queue = ActionQueue(tmp_path / "jobs.db")

    @queue.task
    def work(n: int) -> int:
        return n

    with queue.running():
        for n in range(6):
            work.submit(n).result(timeout=30)
        waiting = work.options(delay="1h").submit(6)
        queue.run_until_idle(timeout=30)

        housekept(queue, finished_tasks_max=2, log_events_max=3).prune()

        assert queue.stats().runs["completed"] == 0
        assert waiting.state() == "scheduled"
        assert queue.session is not None
        assert queue.session.engine is not None
        reader = queue.session.engine.store.reader()
        assert reader.anchor() is not None
        reader.close()
    report = queue.verify()
    assert report.ok, report
