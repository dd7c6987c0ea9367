"""The store of every released version opens, and holds what was written into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actionqueue import ActionQueue

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
        queue.run_until_idle(timeout=30)
        after = {state: count for state, count in queue.stats().runs.items() if count}

    assert before == {"scheduled": 1, "ready": 1, "completed": 3, "failed": 2, "canceled": 1}
    assert after == {"scheduled": 1, "completed": 4, "failed": 2, "canceled": 1}
    report = queue.verify()
    assert report.ok, report
