"""The store of every released version opens, and holds what was written into it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from actionqueue import ActionQueue

MORE: dict[str, dict[str, int]] = {"store-0.2.0": {"scheduled": 1, "ready": 1, "retry_wait": 1, "completed": 2}}
"""What a release's fixture has beside what all have: schedules and limits since 0.2.0 (their handler is not there)."""

FIXTURES = sorted((Path(__file__).resolve().parent.parent / "fixtures").glob("store-*.db"))


def test_there_is_a_fixture() -> None:
    assert FIXTURES


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_a_released_store_opens_paused_as_a_backup_does_verifies_and_goes_on(fixture: Path, tmp_path: Path) -> None:
    """Section 5 number 62."""
    path = tmp_path / "jobs.db"
    shutil.copyfile(fixture, path)
    queue = ActionQueue(path, queues={"slow": 1})

    @queue.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    with queue.running():
        assert "engine" in queue.stats().paused
        before = {state: count for state, count in queue.stats().runs.items() if count}
        queue.resume()
        queue.resume(queue="slow")
        again = add.options(idempotency_key="one-and-two").submit(1, 2)
        assert (again.created, again.result(timeout=30)) == (False, 3)
        deadline = time.monotonic() + 30
        while queue.runs(queue="slow", state="ready") and time.monotonic() < deadline:
            time.sleep(0.01)  # not run_until_idle: one of the runs backs off for a year
        after = {state: count for state, count in queue.stats().runs.items() if count}

    more = Counter(MORE.get(fixture.stem, {}))
    assert before == Counter({"scheduled": 1, "ready": 1, "completed": 3, "failed": 2, "canceled": 1}) + more
    assert after == Counter({"scheduled": 1, "completed": 4, "failed": 2, "canceled": 1}) + more
    report = queue.verify()
    assert report.ok, report
