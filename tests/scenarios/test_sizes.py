"""How much of it: many runs, long logs, large and empty payloads, long errors (section 5, numbers 6, 20, 32 and 34)."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, PayloadTooLarge, Retry, RunFailed, TaskSpec, fixed
from actionqueue.core.attempts import Finish
from actionqueue.core.check import check
from actionqueue.core.control import Resume
from actionqueue.core.machine import Event, Machine
from actionqueue.core.retry import DEFAULT_TERMS
from actionqueue.core.schedules import Retire
from actionqueue.core.spec import PAYLOAD_BYTES_MAX, RESULT_BYTES_MAX
from actionqueue.core.state import COMPLETED, Outcome, Schedule, State
from actionqueue.executors.endings import ERROR_MESSAGE_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.verify import verify
from tests.core.random_stories import act_out, drawn
from tests.core.story import ids
from tests.process.support import PATIENCE_S, inspect, leftovers
from tests.scenarios.world import ManualClock, engine_of, settle

# --- many runs -----------------------------------------------------------------------------------------------------

RUNS = 20_000
SUBMIT_MANY = 10_000


def sizes(state: State) -> dict[str, int]:
    """Whatever could grow with what has ended."""
    places = state.places
    slots = [places.open, *places.queues.values(), *places.executors.values()]
    return {
        "runs": len(state.runs),
        "tasks": len(state.tasks),
        "touched runs": len(state.dirty_runs),
        "touched tasks": len(state.dirty_tasks),
        "lines": sum(lane.ready.count for lane in places.lanes.values()),
        "timers": len(places.timers.due_at),
        "deadlines": len(places.timers.deadlines),
        "slots": sum(len(each.running) for each in slots),
    }


@pytest.mark.slow
def test_twenty_thousand_runs_are_submitted_survive_a_restart_and_end_and_leave_nothing_in_memory(path: Path) -> None:
    """S5-32, scaled: `make bench` runs the million, with its memory and its times.

    Here what makes that possible: what has ended is in no structure that a step, a dispatch or an opening goes through.
    """
    queue = ActionQueue(path, concurrency=1000)

    @queue.task(name="nothing")
    async def nothing(value: int) -> None:
        return None

    with queue.running():
        queue.pause()
        for first in range(0, RUNS, SUBMIT_MANY):
            nothing.submit_many([(value,) for value in range(first, first + SUBMIT_MANY)])
        assert queue.stats().runs["ready"] == RUNS
    with queue.running():
        assert inspect(queue, sizes)["runs"] == RUNS
        queue.resume()
        summary = queue.run_until_idle(timeout=120)
        assert summary.runs["completed"] == RUNS
        queue.stats()
        assert set(inspect(queue, sizes).values()) == {0}
        assert len(engine_of(queue).effects.recent) <= 2_000
    store = SQLiteStore(path)
    opened = store.open(pid=1, host="here")
    _, tasks, runs, _ = store.live_rows()
    assert (len(list(tasks)), len(list(runs))) == (0, 0), "an opening reads none of them"
    with closing(store.reader()) as reader:
        assert len(list(reader.commits(opened.projected_seq))) == 0, "and nothing of the log"
    store.close()


# --- long logs -----------------------------------------------------------------------------------------------------


def test_a_long_past_costs_neither_disk_nor_time_once_it_is_pruned(path: Path, clock: ManualClock) -> None:
    """S5-20: the original never compacts. Here files stay as large as after one round, and openings read live rows."""
    queue = ActionQueue(path, concurrency=200)

    @queue.task(name="work")
    async def work(text: str) -> str:
        return text

    kept: list[Any] = []
    bytes_after: list[int] = []
    commits: list[int] = []
    for _ in range(6):
        with queue.running():
            kept.append(work.options(delay="3650d").submit("kept"))
            work.submit_many([(f"{n}" * 200,) for n in range(300)])
            settle(queue)
            clock.move("31d")
            queue.prune(before=clock.now, log_before=clock.now)
            engine_of(queue).between_commits(engine_of(queue).store.maintain)
        bytes_after.append(path.stat().st_size)
        store = SQLiteStore(path)
        opened = store.open(pid=1, host="here")
        _, tasks, runs, _ = store.live_rows()
        assert (len(list(tasks)), len(list(runs))) == (len(kept), len(kept))
        with closing(store.reader()) as reader:
            commits.append(len(list(reader.commits(0))))
            assert not list(reader.commits(opened.projected_seq))
        store.close()
    assert max(bytes_after[1:]) <= 1.25 * bytes_after[0]
    assert max(commits) < 10
    with queue.running():
        assert [job.state() for job in kept] == ["scheduled"] * 6
        assert queue.stats().tasks == 6
    assert verify(path).ok


# --- logs cut after any event --------------------------------------------------------------------------------------


def finish_everything(machine: Machine, now: int) -> int:
    """Open an engine on what was replayed, complete whatever starts, and let time pass until nothing is live.

    Schedules are retired: of theirs, what was due by then is to happen or to be skipped, and nothing else.
    """
    next_id, state, places = ids(99).next, machine.state, machine.state.places
    places.set_executor("main", 3)
    for handler in ("h", "g", "missing"):
        places.register(handler, "main", DEFAULT_TERMS)
    machine.open(now, 99, 1, "host", "0", 0.5)
    for scope, name in list(state.pauses):
        machine.perform(Resume(scope, name), now)
    for task_id, schedule in list(state.schedules.items()):
        if schedule.retired_at is None:
            assert isinstance(machine.perform(Retire(task_id.hex()), now), tuple)
    for queue in {lane.queue.name for lane in places.lanes.values()}:
        places.set_queue(queue, None)
    while state.tasks:
        events: list[Event] = []
        machine.start_ready(now, next_id, events)
        while machine.fire_due(now, next_id, events):
            pass
        assert check(state) == []
        running = [run for run in state.runs.values() if run.attempt is not None]
        for run in running:
            assert run.attempt is not None
            reply = machine.perform(Finish(run.id_bytes, run.attempt.id, run.attempt.fence, Outcome.COMPLETED), now)
            assert isinstance(reply, tuple)
        if not running:
            timer = places.next_timer()
            assert timer is not None or not state.tasks, "live, and nothing will ever wake it"
            now = max(now, timer or now)
    assert check(state) == []
    return now


def made_by(schedule: Schedule) -> int:
    """The runs that it has had so far: one for each occurrence that was not skipped, and those that were asked for."""
    to_come = sum(asked.left for asked in schedule.backfills)
    return schedule.index - sum(schedule.skipped.values()) + schedule.requested - to_come


@pytest.mark.parametrize("seed", range(4))
def test_cut_after_any_event_a_log_leads_to_an_engine_that_finishes_everything(seed: int) -> None:
    """S5-6, S5-10: every prefix of a random story, of which commits end only some, is a possible past."""
    log = act_out(drawn(seed, 70)).log
    assert len(log) > 40

    for k in range(len(log) + 1):
        machine = Machine()
        machine.replay(log[:k])
        completed, total = machine.state.counts[COMPLETED], sum(machine.state.counts)
        schedules = list(machine.state.schedules.values())
        made = sum(made_by(schedule) for schedule in schedules)

        finish_everything(machine, machine.state.last_at + 1)

        total += sum(made_by(schedule) for schedule in schedules) - made
        assert sum(machine.state.counts) == total, "no run more, none less, but what schedules account for"
        assert machine.state.counts[COMPLETED] >= completed
        machine.state.dispose()


# --- large and empty -----------------------------------------------------------------------------------------------


def make(store: str | Path) -> tuple[ActionQueue, dict[str, Any]]:
    queue = ActionQueue(store, threads=4)

    @queue.task(name="measure", retry=Retry(1))
    def measure(text: str) -> int:
        return len(text)

    @queue.task(name="produce", retry=Retry(1))
    def produce(count: int) -> str:
        return "x" * count

    @queue.task(name="complain", retry=Retry(2, fixed(0)))
    def complain(count: int) -> None:
        raise ValueError("é" * count)

    return queue, dict(queue.handlers)


def test_arguments_and_results_of_any_size_up_to_the_limit_pass_and_larger_ones_are_refused(store: str | Path) -> None:
    """S5-34: 0 bytes, 1 MiB to the byte, one more; the refusal says both sizes, and the run does not begin.

    A gigabyte is refused by the same comparison, before anything is copied.
    """
    queue, handlers = make(store)
    with queue.running():
        job = handlers["measure"].submit("")
        overhead = len(queue.get_payload(job.id))
        assert job.result(timeout=PATIENCE_S) == 0
        largest = PAYLOAD_BYTES_MAX - overhead
        job = handlers["measure"].submit("x" * largest)
        assert job.result(timeout=PATIENCE_S) == largest
        assert len(queue.get_payload(job.id)) == PAYLOAD_BYTES_MAX
        tasks = queue.stats().tasks
        with pytest.raises(PayloadTooLarge) as caught:
            handlers["measure"].submit("x" * (largest + 1))
        assert caught.value.facts["actual"] == PAYLOAD_BYTES_MAX + 1
        assert caught.value.facts["maximum"] == PAYLOAD_BYTES_MAX
        assert queue.stats().tasks == tasks

        job = handlers["produce"].submit(0)
        assert job.result(timeout=PATIENCE_S) == ""
        job = handlers["produce"].submit(RESULT_BYTES_MAX - 2)
        assert len(job.result(timeout=PATIENCE_S)) == RESULT_BYTES_MAX - 2
        job = handlers["produce"].submit(RESULT_BYTES_MAX - 1)
        with pytest.raises(RunFailed, match="result_too_large"):
            job.result(timeout=PATIENCE_S)
        assert inspect(queue, leftovers) == []
    with queue.running():
        job = handlers["produce"].submit(1)
        assert job.result(timeout=PATIENCE_S) == "x"


def test_a_payload_of_no_bytes_at_all_is_stored_as_it_is_and_waits_for_a_handler_that_takes_it(
    store: str | Path,
) -> None:
    """S5-34: by the low-level form; arguments that do not fit are blocked, not failed (SEMANTICS 5)."""
    queue, _ = make(store)
    with queue.running():
        job = queue.submit(TaskSpec(handler="measure", payload=b""))
        settle(queue)
        assert queue.get_payload(job.id) == b""
        (run,) = job.runs()
        assert (run.state, run.reason, run.failure_count) == ("ready", "arguments", 0)
        assert queue.get_task(job.id).payload_bytes == 0
        assert job.cancel() == 1


def test_long_errors_are_cut_and_many_of_them_take_little_room(path: Path) -> None:
    """S5-34: 100 attempts, each with a message of a million characters, in a store of a few megabytes."""
    queue, handlers = make(path)
    with queue.running():
        jobs = [handlers["complain"].submit(1_000_000) for _ in range(50)]
        for job in jobs:
            with pytest.raises(RunFailed):
                job.result(timeout=PATIENCE_S)
        (run,) = jobs[0].runs()
        assert len(run.attempts) == 2
        for attempt in run.attempts:
            assert attempt.error is not None
            assert attempt.error.kind == "ValueError"
            assert 0 < len(attempt.error.message) <= ERROR_MESSAGE_CHARACTERS_MAX
            assert 0 < len(attempt.error.traceback) <= TRACEBACK_CHARACTERS_MAX
    assert path.stat().st_size < 12_000_000
    assert verify(path).ok
