"""kill -9, again and again, on an engine whose schedules run each second and ten times a second (section 5, 29 and 30)."""

from __future__ import annotations

import random
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

from actionqueue import ActionQueue
from actionqueue.core.instants import SECOND_US, instant_us
from actionqueue.verify import verify
from tests.process.support import Programs

KILLS = 8


def nominals(queue: ActionQueue, name: str) -> list[int]:
    """The nominal times of all runs of a schedule, but for the one ahead, in order."""
    runs = [run for run in queue.iter_runs(handler=name) if run.state != "scheduled"]
    return sorted(instant_us(run.scheduled_at) for run in runs)


def test_schedules_of_an_engine_that_is_killed_lose_no_time_and_double_none(
    store: Path, tmp_path: Path, programs: Programs
) -> None:
    """dispatch_invariants/03, S5-5, S5-29: each nominal time has one run or is counted as skipped."""
    ledger, chance = tmp_path / "ledger", random.Random(11)
    for _ in range(KILLS):
        program = programs.start("ticking", store, ledger)
        program.line("engine")
        threading.Event().wait(chance.uniform(0.05, 1.2))  # it is killed at any moment, whatever it does then
        program.kill()
        report = verify(store)
        assert report.ok, str(report)
        client = ActionQueue(store, role="client")
        assert client.audit().is_consistent, str(client.audit())

    schedules = {each.name: each for each in client.schedules()}
    assert schedules.keys() == {"every", "one_at_a_time", "repeated"}, "declared by each start, made by the first"
    for name, schedule in schedules.items():
        times = nominals(client, name)
        assert max(Counter(times).values()) == 1, f"{name}: a nominal time twice"
        skipped = sum(schedule.skipped.values())
        assert schedule.occurrences == len(times) + skipped + (schedule.next_run is not None)
    for name, step_us in (("every", SECOND_US), ("repeated", SECOND_US // 10)):
        steps = {after - before for before, after in pairwise(nominals(client, name))}
        assert steps == {step_us}, f"{name}: none is lost"
        assert schedules[name].skipped == {}
    assert set(schedules["one_at_a_time"].skipped) <= {"coalesced", "overlap"}
    done = {line.split()[1] for line in ledger.read_text().splitlines()}
    completed = {str(run.id) for run in client.iter_runs(state="completed")}
    assert completed <= done, "what is recorded as completed was done"
    assert len(completed) > 20
