"""``audit``, ``export`` and ``--at``: what a store can show for its promises, and what it was."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from actionqueue.core.check import check
from actionqueue.core.machine import Machine
from actionqueue.export import read_export
from tests.cli.conftest import Call


def test_audit_accounts_for_every_task(resting: ActionQueue, cli: Call) -> None:
    result = cli("audit")

    assert result.code == 0
    assert result.lines[0].split()[:4] == ["ID", "IMPLIED", "ASKED", "CREATED"]
    assert len(result.lines) == resting.stats().tasks + 4
    assert result.lines[-1] == "consistent"


def test_audit_as_json_has_the_sums_and_every_account(resting: ActionQueue, cli: Call) -> None:
    found = cli("audit", "--json").json

    stats = resting.stats()
    assert found["consistent"] is True
    assert found["created"] == sum(stats.runs.values()) == found["implied"] + found["asked"]
    assert (found["completed"], found["failed"]) == (stats.runs["completed"], stats.runs["failed"])
    assert len(found["accounts"]) == found["tasks"] == stats.tasks
    assert cli("audit", "--json", "--quiet").json["accounts"] == []


def test_a_retry_is_a_run_that_was_asked_for(engine: ActionQueue, cli: Call) -> None:
    failed = engine.runs(state="failed")[0] if engine.runs(state="failed") else None
    if failed is None:
        handle = engine.handlers["bad"].submit(1)  # type: ignore[call-arg]
        engine.run_until_idle(timeout=20)
        failed = handle.runs()[0]
    engine.retry_run(failed.id)
    engine.run_until_idle(timeout=20)

    (account,) = [each for each in cli("audit", "--json").json["accounts"] if each["task_id"] == str(failed.task_id)]
    assert (account["implied"], account["asked"], account["created"], account["failed"]) == (1, 1, 2, 2)
    assert engine.audit().is_consistent


def test_audit_of_a_range_leaves_the_others_out(resting: ActionQueue, cli: Call) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()

    assert cli("audit", "--since", tomorrow, "--json").json["tasks"] == 0
    assert cli("audit", "--until", tomorrow, "--json").json["tasks"] == resting.stats().tasks


def test_a_run_that_is_missing_is_not_consistent_and_exit_1(resting: ActionQueue, cli: Call, store: Path) -> None:
    victim = resting.runs(state="completed")[0]
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM runs WHERE id = ?", (victim.id.bytes,))
    connection.close()

    result = cli("audit", "--quiet")

    assert result.code == 1
    assert (
        f"task {victim.task_id} ({victim.handler}): its policy implies 1 run and 0 were asked for; there are 0"
        in result.lines
    )
    assert result.lines[-1] == "not consistent: 1 tasks"


def test_export_gives_a_line_a_commit_and_replays(resting: ActionQueue, cli: Call) -> None:
    result = cli("export")

    assert result.code == 0
    machine = Machine()
    for commit in read_export(result.lines):
        machine.replay(commit.events)
    assert check(machine.state) == []
    assert sum(machine.state.counts) == sum(resting.stats().runs.values())


def test_a_redacted_export_has_no_name_of_a_handler(resting: ActionQueue, cli: Call) -> None:
    handlers = {run.handler for run in resting.runs()}

    plain, redacted = cli("export").out, cli("export", "--redact").out

    assert all(f'"{handler}"' in plain and f'"{handler}"' not in redacted for handler in handlers)
    assert json.loads(redacted.splitlines()[0])["redacted"] is True


# --- the past -------------------------------------------------------------------------------------------------------


def test_the_past_of_a_moment_shows_what_was_there_then(engine: ActionQueue, cli: Call) -> None:
    first = engine.handlers["send"].submit("me")  # type: ignore[call-arg]
    engine.run_until_idle(timeout=20)
    between = first.runs()[0].finished_at
    assert between is not None
    second = engine.handlers["send"].submit("you")  # type: ignore[call-arg]
    engine.run_until_idle(timeout=20)

    then = {run["id"]: run["state"] for run in cli("runs", "--at", between.isoformat(), "--json").json["runs"]}
    now = {run["id"]: run["state"] for run in cli("runs", "--json").json["runs"]}

    assert then == {id: state for id, state in now.items() if id != str(second.run_id)}
    assert then[str(first.run_id)] == "completed"
    tasks = cli("tasks", "--at", between.isoformat(), "--json").json["tasks"]
    assert tasks[0]["id"] == str(first.id)


def test_a_run_is_shown_as_it_was_while_it_ran(engine: ActionQueue, cli: Call) -> None:
    job = engine.handlers["send"].submit("me")  # type: ignore[call-arg]
    engine.run_until_idle(timeout=20)
    started = job.runs()[0].started_at
    assert started is not None

    then = cli("show", str(job.run_id), "--at", started.isoformat(), "--json").json

    assert then["run"]["state"] == "running"
    assert then["run"]["attempts"][0]["outcome"] is None
    assert then["payload"] == {"to": "me", "subject": "hi"}
    assert then["result"] is None
    assert cli("show", str(job.run_id), "--at", started.isoformat()).code == 0


def test_before_the_log_begins_there_is_nothing_to_show(resting: ActionQueue, cli: Call) -> None:
    assert cli("runs", "--at", "2000-01-01T00:00:00Z", "--json").json["runs"] == []


def test_a_pruned_log_says_how_far_back_it_reaches(engine: ActionQueue, cli: Call) -> None:
    engine.handlers["send"].submit("me")  # type: ignore[call-arg]
    engine.run_until_idle(timeout=20)
    engine.prune(log_before="0s")
    later = engine.handlers["send"].submit("you")  # type: ignore[call-arg]
    engine.run_until_idle(timeout=20)

    refused = cli("runs", "--at", "2000-01-01T00:00:00Z")
    now = cli("runs", "--at", "0s", "--json")

    assert refused.code == 3
    assert "beyond_log" in refused.err
    assert [run["id"] for run in now.json["runs"]] == [str(later.run_id)]
    assert "what was submitted before is not shown" in now.err


@pytest.mark.parametrize("words", ["runs --at yesterday", "show abcdef --at 2026-11-24T09:00:00"])
def test_an_instant_must_be_one(words: str, resting: ActionQueue, cli: Call) -> None:
    assert cli(*words.split()).code == 2
