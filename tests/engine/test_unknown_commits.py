"""A commit of which nobody knows whether it took: its callers can submit again, and what did take is not doubled."""

from __future__ import annotations

import asyncio

import pytest

from actionqueue import ActionQueue, CommitUnknown, TaskId
from actionqueue.store.memory import MemoryStore


def failing_after(point: str) -> MemoryStore:
    """A store whose first commit of a task fails at ``point`` as a failed sync does."""
    store = MemoryStore()

    def fault(reached: str) -> None:
        if store.armed and reached == point:  # type: ignore[attr-defined]
            store.armed = False  # type: ignore[attr-defined]
            raise CommitUnknown("the sync failed")

    store.armed = False  # type: ignore[attr-defined]
    store.fault = fault
    return store


@pytest.mark.parametrize(("point", "took"), [("after_write", True), ("before_write", False)])
@pytest.mark.parametrize("how", ["blocking", "awaiting"])
def test_the_error_names_the_ids_and_submitting_them_again_makes_one_task(point: str, took: bool, how: str) -> None:
    """Section 5 number 11."""
    queue = ActionQueue(":memory:")
    queue.memory = store = failing_after(point)

    @queue.task
    def add(a: int, b: int) -> int:
        return a + b

    def submit() -> None:
        if how == "blocking":
            add.submit(1, 2)
        else:
            asyncio.run(add.asubmit(1, 2))

    with queue.running():
        queue.run_until_idle(timeout=30)
        store.armed = True  # type: ignore[attr-defined]
        with pytest.raises(CommitUnknown) as unknown:
            submit()
    (task_id,) = unknown.value.facts["task_ids"]  # type: ignore[misc]
    assert isinstance(task_id, TaskId)

    with queue.running():
        again = add.options(task_id=task_id).submit(1, 2)
        assert (again.id, again.created) == (task_id, not took)
        assert again.result(timeout=30) == 3
        assert queue.stats().tasks == 1
