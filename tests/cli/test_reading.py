"""``tasks``, ``runs``, ``show``, ``stats``, ``top``: tables for people, JSON for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, Cron, Repeat, RunId, TaskId
from actionqueue.store.inbox import Inbox
from tests.cli.conftest import Call, Gate
from tests.process.support import eventually


def ids(result: Any, name: str = "runs") -> list[str]:
    return [each["id"] for each in result.json[name]]


def columns(line: str) -> list[str]:
    return line.split()


# --- lists ------------------------------------------------------------------------------------------------------


def test_runs_are_a_table_with_the_newest_first(resting: ActionQueue, cli: Call) -> None:
    result = cli("runs")

    assert result.code == 0
    assert columns(result.lines[0]) == ["ID", "STATE", "HANDLER", "QUEUE", "TRIES", "AGE", "TOOK", "NOTE"]
    assert [columns(line)[1] for line in result.lines[1:]] == [
        "canceled", "scheduled", "failed", "completed", "completed", "completed",
    ]  # fmt: skip
    assert "due in 59m" in result.lines[2]
    assert "ValueError" in result.lines[3]


def test_tables_align_and_fit_eighty_columns(resting: ActionQueue, cli: Call) -> None:
    for words in ("runs", "tasks", "stats", "top --once"):
        result = cli(*words.split())
        assert max(map(len, result.lines)) <= 80, result.out

    lines = cli("runs").lines
    at = lines[0].index("STATE")
    assert all(line[at - 1] == " " and line[at] != " " for line in lines)


@pytest.mark.parametrize("width", [30, 44, 60])
def test_a_narrow_terminal_shortens_texts_and_not_ids(
    width: int, resting: ActionQueue, cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    first = cli("runs").lines[1]

    assert len(first.split()[0]) == 8


def test_ids_in_tables_are_the_last_eight_digits(resting: ActionQueue, cli: Call) -> None:
    whole = ids(cli("runs", "--json"))

    assert [line.split()[0] for line in cli("runs").lines[1:]] == [id.replace("-", "")[-8:] for id in whole]


def test_runs_as_json_hold_every_field(resting: ActionQueue, cli: Call) -> None:
    run = cli("runs", "--json", "--state", "failed").json["runs"][0]

    record = resting.runs(state="failed")[0]
    assert set(run) == set(record.__struct_fields__)
    assert RunId(run["id"]) == record.id
    assert TaskId(run["task_id"]) == record.task_id
    assert datetime.fromisoformat(run["created_at"]) == record.created_at
    assert run["created_at"].endswith("Z")
    assert (run["state"], run["error_kind"], run["attempt_count"], run["retry_of"]) == ("failed", "ValueError", 2, None)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("--state completed", 3),
        ("--state completed --state failed", 4),
        ("--state completed,failed", 4),
        ("--handler bad", 1),
        ("--queue mail", 4),
        ("--queue other", 1),
        ("--tag eu", 5),
        ("--error ValueError", 1),
        ("--since 1h", 6),
        ("--until 1h", 0),
        ("--text red --since 1h", 1),
        ("--text Value --since 1h --handler send", 0),
        ("--handler send --state canceled", 1),
    ],
)
def test_filters_of_runs(resting: ActionQueue, cli: Call, words: str, count: int) -> None:
    assert len(cli("runs", "--json", *words.split()).json["runs"]) == count


def test_runs_of_a_key_and_of_a_task_by_half_an_id(resting: ActionQueue, cli: Call) -> None:
    (by_key,) = cli("runs", "--json", "--key", "order 7").json["runs"]

    assert ids(cli("runs", "--json", "--task", by_key["task_id"][-8:])) == [by_key["id"]]
    assert ids(cli("runs", "--json", "--task", by_key["id"][-8:])) == [by_key["id"]]


def test_since_takes_an_instant_with_a_zone(resting: ActionQueue, cli: Call) -> None:
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()

    assert len(cli("runs", "--json", "--since", hour_ago).json["runs"]) == 6
    assert len(cli("runs", "--json", "--until", hour_ago).json["runs"]) == 0


@pytest.mark.parametrize(("word", "problem"), [("2026-11-24T09:00", "has no time zone"), ("soon", "is no instant")])
def test_an_instant_without_a_zone_is_a_usage_error(resting: ActionQueue, cli: Call, word: str, problem: str) -> None:
    result = cli("runs", "--since", word)

    assert result.code == 2
    assert problem in result.err


def test_a_page_ends_with_a_cursor_for_the_next(resting: ActionQueue, cli: Call) -> None:
    every = ids(cli("runs", "--json"))
    first = cli("runs", "--json", "--limit", 4)
    second = cli("runs", "--json", "--limit", 4, "--cursor", first.json["next_cursor"])

    assert ids(first) + ids(second) == every
    assert second.json["next_cursor"] is None
    shown = cli("runs", "--limit", 4)
    assert shown.err == f"there may be more: --cursor {first.json['next_cursor']}\n"


@pytest.mark.parametrize("limit", [0, 1001])
def test_a_limit_out_of_range_is_refused(resting: ActionQueue, cli: Call, limit: int) -> None:
    result = cli("runs", "--limit", limit)

    assert result.code == 3
    assert "from 1 to 1000" in result.err


def test_a_state_that_does_not_exist_is_refused_with_those_that_do(resting: ActionQueue, cli: Call) -> None:
    result = cli("runs", "--state", "done")

    assert result.code == 3
    assert "completed" in result.err


def test_nothing_that_fits_is_said_on_stderr(resting: ActionQueue, cli: Call) -> None:
    result = cli("runs", "--handler", "none")

    assert (result.code, result.out, result.err) == (0, "", "no runs fit\n")
    assert cli("runs", "--handler", "none", "--json").json == {"runs": [], "next_cursor": None}


def test_tasks_as_table_and_json(resting: ActionQueue, cli: Call) -> None:
    table, plain = cli("tasks"), cli("tasks", "--json").json["tasks"]

    assert columns(table.lines[0])[:3] == ["ID", "HANDLER", "QUEUE"]
    assert len(table.lines) == 7
    assert "order 7" in table.out
    failed = next(task for task in plain if task["handler"] == "bad")
    assert (failed["run_count"], failed["failed_count"], failed["max_attempts"]) == (1, 1, 2)
    assert set(failed) == set(resting.tasks()[0].__struct_fields__)


@pytest.mark.parametrize(
    ("words", "count"), [("--handler bad", 1), ("--queue other", 1), ("--since 1h", 6), ("--until 1h", 0)]
)
def test_filters_of_tasks(resting: ActionQueue, cli: Call, words: str, count: int) -> None:
    assert len(cli("tasks", "--json", *words.split()).json["tasks"]) == count
    assert len(cli("tasks", "--json", "--key", "order 7").json["tasks"]) == 1


def test_refused_commands_are_listed_with_what_they_were(engine: ActionQueue, cli: Call, store: Path) -> None:
    cli("submit", "send", "--args", '{"to": "ann"}', "--key", "k")
    cli("submit", "send", "--args", '{"to": "bob"}', "--key", "k")
    inbox = Inbox(store)
    inbox.put(b"\x01" * 16, b"\xc1", 0)
    inbox.close()
    eventually(lambda: len(engine.refusals()) == 2, "the refusals are there")

    table, plain = cli("runs", "--refused"), cli("runs", "--refused", "--json").json

    assert columns(table.lines[0]) == ["AGE", "COMMAND", "ABOUT", "CODE", "WHY"]
    assert max(map(len, table.lines)) <= 80
    by_code = {each["code"]: each for each in plain["refusals"]}
    conflict = by_code["idempotency_conflict"]
    assert (conflict["command"], conflict["handler"], conflict["count"]) == ("submit", "send", 1)
    assert by_code["invalid_submission"]["command"] == "unreadable"
    assert plain["next_cursor"] is None


# --- one thing --------------------------------------------------------------------------------------------------


def test_show_tells_everything_of_a_failed_run(resting: ActionQueue, cli: Call) -> None:
    (run,) = cli("runs", "--json", "--state", "failed").json["runs"]

    result = cli("show", run["id"][-6:])

    assert result.code == 0
    assert max(map(len, result.lines)) <= 100
    assert result.lines[0].split() == ["run", run["id"]]
    for expected in (
        "handler    bad", "2 (2 failures of at most 2, 0 lost)", 'arguments  {"n":1}', "after 1ms",
        "ValueError: bad 1 and",
        "retry_wait  failed (attempt 1)", "error of attempt 2", "Traceback (most recent call last):",
    ):  # fmt: skip
        assert expected in result.out, result.out
    assert "\x1b" not in result.out, "what a handler raised must not move the cursor"


def test_show_of_a_run_as_json(resting: ActionQueue, cli: Call) -> None:
    (run,) = cli("runs", "--json", "--key", "order 7").json["runs"]

    plain = cli("show", run["id"], "--json").json

    assert set(plain) == {"run", "task", "history", "steps", "payload", "result"}
    assert plain["payload"] == {"to": "cid", "subject": "hi"}
    assert plain["result"] == "sent cid"
    assert plain["task"]["idempotency_key"] == "order 7"
    assert [change["state"] for change in plain["history"]] == ["ready", "leased", "running", "completed"]
    assert plain["run"]["attempts"][0]["outcome"] == "completed"


def test_show_of_a_task_lists_its_runs(resting: ActionQueue, cli: Call) -> None:
    resting_task = resting.tasks(handler="bad")[0]

    result = cli("show", str(resting_task.id)[-8:])

    assert result.lines[0].split() == ["task", str(resting_task.id)]
    assert "1 failed" in result.out
    assert "at most 2 a run" in result.out
    plain = cli("show", str(resting_task.id), "--json").json
    assert (plain["payload"], len(plain["runs"])) == ({"n": 1}, 1)


def test_show_of_a_running_run_tells_how_far_it_is(engine: ActionQueue, gate: Gate, cli: Call) -> None:
    handle = engine.handlers["waits"].submit()
    assert gate.entered.wait(20)
    eventually(lambda: engine.get_run(handle.run_id).progress is not None, "progress is written")

    result = cli("show", handle.run_id)

    assert "progress   1/3 waiting" in result.out
    assert "running" in result.out


def test_an_ending_that_fits_nothing_is_exit_3(resting: ActionQueue, cli: Call) -> None:
    result = cli("show", "ffffffff")

    assert (result.code, result.out) == (3, "")
    assert result.err == "error: no run or task in this store has an id that ends with ffffffff (unknown_run)\n"


@pytest.mark.parametrize("text", ["abc", "zzzzzzzz", ""])
def test_too_short_an_ending_is_exit_3(resting: ActionQueue, cli: Call, text: str) -> None:
    result = cli("show", text)

    assert result.code == 3
    assert "6 to 32 hexadecimal digits" in result.err


def test_an_ending_that_fits_several_is_refused_with_them(queue: ActionQueue, cli: Call) -> None:
    with queue.running():
        for first in "12":
            id = TaskId(f"{first}18bcfe5-6800-7000-8000-0000abcdef01")
            queue.handlers["send"].options(task_id=id).submit("ann").result(timeout=20)

    result = cli("show", "abcdef01")

    assert result.code == 3
    assert "2 ids end with abcdef01: task" in result.err


# --- counts -----------------------------------------------------------------------------------------------------


def test_stats_without_an_engine(resting: ActionQueue, cli: Call, store: Path) -> None:
    """smoke#4: numbers and an object by state."""
    result = cli("stats")

    assert result.lines[0].startswith(f"store   {store} ") or str(store) in result.out.replace("\n        ", "")
    assert "engine  none" in result.out
    assert ["completed", "3"] in [line.split() for line in result.lines]
    plain = cli("stats", "--json").json
    assert (plain["engine"], plain["waiting_commands"], plain["tasks"]) == (None, 0, 6)
    assert plain["runs"]["failed"] == 1
    assert plain["store_bytes"] > 0


def test_stats_beside_an_engine(engine: ActionQueue, cli: Call) -> None:
    engine.pause(queue="mail")
    engine.handlers["send"].submit("ann")
    eventually(lambda: engine.stats().runs["ready"] == 1, "it is ready")

    plain = cli("stats", "--json").json

    assert plain["engine"]["pid"] > 0
    assert plain["paused"] == ["queue mail"]
    assert plain["blocked"] == 1
    assert {"kind": "queue", "name": "mail", "taken": 0, "capacity": 2} in plain["slots"]
    text = cli("stats").out
    assert "1 of them blocked" in text
    assert "queue mail 0/2" in text


def test_stats_tell_of_schedules_and_of_what_they_skipped(queue: ActionQueue, cli: Call) -> None:
    send = queue.handlers["send"]
    with queue.running():
        assert not [line for line in cli("stats").lines if line.startswith("schedules")]
        queue.schedule("hourly", send.bind("ann"), Cron("0 * * * *"))
        assert "schedules  1" in cli("stats").lines
        long_ago = datetime.now(UTC) - timedelta(days=1)
        queue.schedule("late", send.bind("bob"), Repeat(5, every="1s", first_at=long_ago, misfire="coalesce"))
        eventually(lambda: queue.stats().occurrences_skipped == 4, "one run stands for all")

    assert "schedules  2, 4 occurrences skipped" in cli("stats").lines
    plain = cli("stats", "--json").json
    assert (plain["schedules"], plain["occurrences_skipped"]) == (2, 4)


def test_stats_tell_how_many_commands_wait(resting: ActionQueue, cli: Call) -> None:
    cli("pause")

    assert "inbox   1 command waiting for an engine" in cli("stats").out
    assert cli("stats", "--json").json["waiting_commands"] == 1


def test_top_once_prints_one_plain_frame(engine: ActionQueue, gate: Gate, cli: Call) -> None:
    engine.handlers["waits"].submit()
    assert gate.entered.wait(20)
    eventually(lambda: engine.stats().runs["running"] == 1, "it is written")

    result = cli("top", "--once")

    assert result.code == 0
    assert "\x1b" not in result.out
    assert "1 running" in result.out
    assert "ended/s" in result.out
    assert result.lines[-1].split()[:3] == ["1", "waits", "default"]
    plain = cli("top", "--once", "--json").json
    assert plain["running"] == {"waits": 1}
    assert set(plain["per_second"]) == {"completed", "failed", "canceled"}
    assert {"kind": "executor", "name": "thread", "taken": 1, "capacity": 4} in plain["slots"]
