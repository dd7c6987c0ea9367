"""Tasks that depend on others, on a store on disk: the original's scenarios, with real handlers and restarts."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, DependencyCycle, Retry, TaskHandle, TaskId, TerminalFailure
from tests.process.support import PATIENCE_S


class Steps:
    """A queue of steps that write down their names as they run; opened and closed as often as a test likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ran: list[str] = []
        self.fails: set[str] = set()
        self.handles: dict[str, TaskHandle[Any]] = {}
        self.queue = self._queue()

    def _queue(self) -> ActionQueue:
        queue = ActionQueue(self.path)

        @queue.task(name="step", retry=Retry(max_attempts=1))
        def step(name: str) -> str:
            self.ran.append(name)
            if name in self.fails:
                raise TerminalFailure(name)
            return name

        return queue

    def submit(self, name: str, *on: str) -> None:
        """A step after others, sent while no engine runs: it waits in the inbox."""
        options: dict[str, Any] = {"depends_on": [self.handles[each] for each in on]} if on else {}
        self.handles[name] = self.queue.handlers["step"].options(**options).submit(name)

    def run(self) -> None:
        """An engine opens, runs until nothing is left, and closes."""
        self.queue.run_until_idle(timeout=PATIENCE_S)
        self.queue.close()
        self.queue = self._queue()

    def states(self) -> dict[str, str]:
        """The state of each step's one run, and how many runs it has had."""
        return {name: self._state(handle) for name, handle in self.handles.items()}

    def _state(self, handle: TaskHandle[Any]) -> str:
        (run,) = self.queue.runs(task=handle.id)
        return run.state


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "jobs.db")


def test_a_chain_runs_in_order_after_a_restart(steps: Steps) -> None:
    """dag_ordering/01, dag_snapshot_recovery/01."""
    steps.submit("1")
    steps.submit("2", "1")
    steps.submit("3", "2")
    steps.run()

    assert steps.ran == ["1", "2", "3"]
    assert steps.states() == dict.fromkeys("123", "completed")
    steps.run()
    assert steps.ran == ["1", "2", "3"]


def test_a_graph_that_is_half_done_goes_on_after_a_restart(steps: Steps) -> None:
    """What dag_snapshot_recovery/01 leaves open: the restart comes in the middle, with one side of a diamond to go."""
    for name, on in (("1", ""), ("2", "1"), ("3", "1"), ("4", "23")):
        steps.submit(name, *on)
    with steps.queue.running():
        steps.handles["1"].result(timeout=PATIENCE_S)
    steps.queue = steps._queue()
    steps.run()

    assert sorted(steps.ran[1:3]) == ["2", "3"]
    assert (steps.ran[0], steps.ran[-1], len(steps.ran)) == ("1", "4", 4)


def test_a_failure_cancels_what_depends_on_it_over_three_levels(steps: Steps) -> None:
    """dag_failure_propagation/01, dag_failure_propagation/02."""
    steps.fails = {"1"}
    steps.submit("1")
    steps.submit("2", "1")
    steps.submit("3", "2")
    steps.run()

    assert steps.ran == ["1"]
    assert steps.states() == {"1": "failed", "2": "canceled", "3": "canceled"}


def test_dependencies_results_and_outputs_survive(steps: Steps) -> None:
    """workflow_crash_recovery/01."""
    steps.submit("1")
    steps.submit("2", "1")
    steps.run()
    steps.run()

    assert steps.states() == {"1": "completed", "2": "completed"}
    assert [steps.queue.get_result(steps.handles[name].run_id) for name in "12"] == [b'"1"', b'"2"']
    assert len(steps.queue.tasks()) == 2
    assert steps.queue.verify().problems == ()


GRAPHS = {
    "dag_cycle_rejection/01": ({2: [1]}, 1, 2),
    "dag_cycle_rejection/02": ({2: [1], 3: [2]}, 1, 3),
    "dag_cycle_rejection/03": ({}, 1, 1),
    "dag_cycle_rejection/05": ({2: [1], 3: [1], 4: [2, 3]}, 1, 4),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_dependency_that_closes_a_circle_is_refused_and_leaves_nothing(steps: Steps, name: str) -> None:
    """dag_cycle_rejection/01, /02, /03 and /05: the path names both ends; and nothing is on disk."""
    edges, task, upstream = GRAPHS[name]
    step = steps.queue.handlers["step"]
    with steps.queue.running():
        steps.queue.pause()
        handles: dict[int, TaskHandle[Any]] = {}
        for n in range(1, 5):
            on = [handles[each] for each in edges.get(n, [])]
            handles[n] = step.options(depends_on=on).submit(str(n)) if on else step.submit(str(n))
        before = sqlite3.connect(f"file:{steps.path}?mode=ro", uri=True).execute("SELECT max(last_seq) FROM commits")

        with pytest.raises(DependencyCycle) as caught:
            steps.queue.add_dependencies(handles[task].id, [handles[upstream]])

        path = [TaskId(each) for each in caught.value.path.split(" -> ")]
        assert (path[0], path[1], path[-1]) == (handles[task].id, handles[upstream].id, handles[task].id)
        after = sqlite3.connect(f"file:{steps.path}?mode=ro", uri=True).execute("SELECT max(last_seq) FROM commits")
        assert before.fetchone() == after.fetchone()


def test_fan_out_and_fan_in_is_no_circle(steps: Steps) -> None:
    """dag_cycle_rejection/04."""
    for name, on in (("1", ""), ("2", "1"), ("3", "2"), ("4", "2"), ("5", "34")):
        steps.submit(name, *on)
    steps.run()

    assert steps.ran[:2] == ["1", "2"]
    assert steps.ran[-1] == "5"
    assert steps.states() == dict.fromkeys("12345", "completed")


def test_a_refused_graph_leaves_nothing_in_the_store(steps: Steps) -> None:
    """Section 5 number 48: the cycle is refused with the submission, whole."""
    step = steps.queue.handlers["step"]
    first, second = TaskId.new(), TaskId.new()
    with steps.queue.running():
        with pytest.raises(DependencyCycle):
            steps.queue.submit_many(
                [
                    step.options(task_id=first, depends_on=[second]).bind("1"),
                    step.options(task_id=second, depends_on=[first]).bind("2"),
                ]
            )
        assert steps.queue.stats().tasks == 0
