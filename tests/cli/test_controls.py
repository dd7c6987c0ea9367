"""``cancel``, ``retry``, ``pause``, ``resume``, ``prune``: an engine answers them, and without one they wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from actionqueue import ActionQueue
from tests.cli.conftest import Call, Gate, make_queue
from tests.process.support import eventually

QUEUED = "in the inbox and will be decided when one does\n"


def states(queue: ActionQueue) -> dict[str, int]:
    return {state: count for state, count in queue.stats().runs.items() if count}


def decide(store: Path) -> ActionQueue:
    """An engine comes, decides what waits, and ends."""
    queue = make_queue(store, Gate())
    with queue.running():
        eventually(lambda: queue.waiting_commands() == 0, "everything is decided")
        queue.run_until_idle(timeout=20)
    return queue


# --- cancel -----------------------------------------------------------------------------------------------------


def test_cancel_a_run_by_half_its_id(engine: ActionQueue, cli: Call) -> None:
    handle = engine.handlers["send"].options(delay="1h").submit("ann")

    result = cli("cancel", str(handle.run_id)[-8:])

    assert (result.code, result.err) == (0, "")
    assert result.out == f"run {str(handle.run_id)[-8:]}: canceled, or asked to stop where it runs\n"
    assert handle.state() == "canceled"
    again = cli("cancel", handle.run_id)
    assert (again.code, again.out.split(": ")[1]) == (0, "was canceled already\n")


def test_cancel_several_tasks_as_json(engine: ActionQueue, cli: Call) -> None:
    handles = [engine.handlers["send"].options(delay="1h").submit(name) for name in "ab"]

    plain = cli("cancel", "--json", *(handle.id for handle in handles)).json

    assert plain == {"results": [{"task_id": str(handle.id), "runs": 1, "queued": 0} for handle in handles]}
    assert states(engine) == {"canceled": 2}


@pytest.mark.parametrize("how", ["cancel", "kill", "abandon"])
def test_cancel_what_is_running(engine: ActionQueue, gate: Gate, cli: Call, how: str) -> None:
    handle = engine.handlers["waits"].submit()
    assert gate.entered.wait(20)

    assert cli("cancel", handle.run_id, "--how", how).code == 0

    eventually(lambda: handle.state() == "canceled", "it is canceled")


def test_cancel_by_filter_first_only_counts(engine: ActionQueue, cli: Call) -> None:
    for n in range(5):
        engine.handlers["send"].options(delay="1h").submit(str(n))
    keep = engine.handlers["send"].options(delay="1h", queue="other").submit("keep")

    dry = cli("cancel", "--queue", "mail", "--state", "scheduled", "--dry-run")
    assert (dry.code, dry.out) == (0, "would cancel 5 runs\n")
    assert states(engine) == {"scheduled": 6}

    some = cli("cancel", "--queue", "mail", "--limit", 2)
    assert some.out == "canceled 2 runs\n"
    rest = cli("cancel", "--queue", "mail", "--json")
    assert rest.json == {"dry_run": False, "count": 3, "queued": 0}
    assert keep.state() == "scheduled"


@pytest.mark.slow
def test_cancel_more_than_a_page(engine: ActionQueue, cli: Call) -> None:
    engine.handlers["send"].options(delay="1h").submit_many([(str(n),) for n in range(1_100)])

    assert cli("cancel", "--handler", "send").out == "canceled 1100 runs\n"
    assert states(engine) == {"canceled": 1_100}


@pytest.mark.parametrize("verb", ["cancel", "retry"])
@pytest.mark.parametrize("words", ["", "abcdef12 --handler send", "abcdef12 --limit 3"])
def test_which_runs_must_be_said_one_way(resting: ActionQueue, cli: Call, verb: str, words: str) -> None:
    result = cli(verb, *words.split())

    assert result.code == 2
    assert result.err.endswith("(usage)\n")


def test_canceling_what_has_ended_is_exit_3(engine: ActionQueue, cli: Call) -> None:
    handle = engine.handlers["send"].submit("ann")
    handle.result(timeout=20)

    result = cli("cancel", handle.run_id)

    assert result.code == 3
    assert result.err.endswith("(already_terminal)\n")


def test_nothing_is_canceled_when_one_of_the_ids_is_unknown(engine: ActionQueue, cli: Call) -> None:
    handle = engine.handlers["send"].options(delay="1h").submit("ann")

    assert cli("cancel", handle.run_id, "ffffffff").code == 3
    assert handle.state() == "scheduled"
    assert cli("cancel", handle.run_id, "--dry-run").out == "would cancel 1\n"
    assert handle.state() == "scheduled"


# --- retry ------------------------------------------------------------------------------------------------------


def test_retry_a_run_and_a_task(resting: ActionQueue, cli: Call) -> None:
    with resting.running():
        (failed,) = resting.runs(state="failed")

        of_run = cli("retry", failed.id, "--json").json["results"][0]
        assert of_run["run_id"] == str(failed.id)
        eventually(lambda: len(resting.runs(state="failed")) == 2, "it has failed again")
        of_task = cli("retry", str(failed.task_id)[-8:])

        assert of_task.out.startswith(f"run {of_run['new_run_id'][-8:]} is retried as run ")
        newest = resting.get_run(of_task.out.split()[-1])
        assert str(newest.retry_of) == of_run["new_run_id"]


def test_retry_by_filter_passes_over_what_was_retried_before(resting: ActionQueue, cli: Call) -> None:
    with resting.running():
        assert cli("retry", "--state", "failed", "--dry-run").out == "would retry 1 run\n"
        assert cli("retry", "--error", "ValueError").out == "retried 1 run\n"
        eventually(lambda: len(resting.runs(state="failed")) == 2, "it has failed again")
        assert cli("retry", "--state", "failed", "--dry-run", "--json").json["count"] == 1
        assert cli("retry", "--state", "canceled").out == "retried 1 run\n"


def test_retrying_what_was_completed_is_exit_3(resting: ActionQueue, cli: Call) -> None:
    with resting.running():
        result = cli("retry", resting.runs(state="completed")[0].id)

    assert result.code == 3
    assert result.err.endswith("(not_retryable)\n")


# --- pauses and the clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"), [("", "the engine"), ("--queue mail", "queue mail"), ("--handler send", "handler send")]
)
def test_pause_and_resume_a_scope(engine: ActionQueue, cli: Call, words: str, named: str) -> None:
    assert cli("pause", *words.split()).out == f"{named} is paused\n"
    assert cli("pause", *words.split()).out == f"{named} was paused already\n"
    assert engine.stats().paused == (named.removeprefix("the "),)
    assert cli("resume", *words.split()).out == f"{named} is resumed\n"
    assert cli("resume", *words.split()).out == f"{named} was not paused\n"
    assert engine.stats().paused == ()


def test_pause_as_json(engine: ActionQueue, cli: Call) -> None:
    assert cli("pause", "--json", "--queue", "mail").json == {"scope": "queue mail", "paused": True, "queued": 0}
    assert cli("resume", "--json", "--queue", "mail").json == {"scope": "queue mail", "resumed": True, "queued": 0}


def test_resume_clock_confirms_the_clock(engine: ActionQueue, cli: Call) -> None:
    session = engine.session
    assert session is not None
    assert session.engine is not None
    doubt = session.engine.doubt
    assert doubt.look(now_us=0, wall_us=10**12)

    assert cli("resume", "--clock").out == "the clock is confirmed\n"
    now, wall = session.engine.clock.now_us(), session.engine.clock.wall_us()
    assert not doubt.look(now_us=now, wall_us=wall)
    assert cli("resume", "--clock", "--json").json == {"clock": "confirmed", "queued": 0}


def test_resume_takes_one_scope(engine: ActionQueue, cli: Call) -> None:
    assert cli("resume", "--clock", "--queue", "mail").code == 2


# --- prune ------------------------------------------------------------------------------------------------------


def test_prune_deletes_what_ended_before(resting: ActionQueue, cli: Call) -> None:
    with resting.running():
        assert cli("prune", "--before", "1h").out == "deleted 0 tasks and 0 commits of the log\n"
        plain = cli("prune", "--json", "--before", "0s", "--log-before", "0s").json

        assert plain["tasks"] == 5
        assert plain["commits"] > 0
        assert states(resting) == {"scheduled": 1}
        report = resting.verify()
        assert report.ok, report
        assert report.replay == "partial"


def test_prune_needs_to_be_told_what(resting: ActionQueue, cli: Call) -> None:
    assert cli("prune").code == 2
    assert cli("prune", "--before", "yesterday").code == 2


# --- without an engine ------------------------------------------------------------------------------------------


def test_without_an_engine_controls_wait_in_the_inbox_and_are_done_when_one_comes(
    resting: ActionQueue, cli: Call, store: Path
) -> None:
    (failed,), (scheduled,) = resting.runs(state="failed"), resting.runs(state="scheduled")
    for words in (
        ["cancel", scheduled.id], ["retry", failed.id], ["pause", "--queue", "other"], ["resume", "--clock"],
        ["prune", "--log-before", "0s"],
    ):  # fmt: skip
        result = cli(*words)
        assert (result.code, result.out) == (0, ""), words
        assert result.err.startswith(f"queued: no engine runs on {store}; the command waits ")
        assert result.err.endswith(QUEUED)
    assert cli("cancel", "--handler", "send", "--json").json == {"dry_run": False, "count": 0, "queued": 1}
    assert cli("resume", "--handler", "send", "--json").json["queued"] == 1
    assert cli("stats", "--json").json["waiting_commands"] == 7

    queue = decide(store)

    assert queue.get_run(scheduled.id).state == "canceled"
    assert [run.id for run in queue.runs(state="failed") if run.retry_of == failed.id]
    assert queue.stats().paused == ("queue other",)


@pytest.mark.slow
def test_many_commands_that_wait_are_counted(resting: ActionQueue, cli: Call, store: Path) -> None:
    with resting.running():
        resting.handlers["send"].options(delay="1h").submit_many([(str(n),) for n in range(600)])

    result = cli("cancel", "--handler", "send")

    assert (result.code, result.out) == (0, "")
    assert "601 commands wait in the inbox" in result.err
    assert decide(store).stats().runs["scheduled"] == 0


def test_a_dry_run_needs_no_engine(resting: ActionQueue, cli: Call) -> None:
    assert cli("cancel", "--handler", "send", "--dry-run").out == "would cancel 1 run\n"
    assert cli("retry", "--state", "failed", "--dry-run").out == "would retry 1 run\n"
    assert resting.waiting_commands() == 0
