"""``explain``, ``limits``, ``schedules``, and the reason that ``show`` gives: beside an engine and without one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from actionqueue import ActionQueue, Cron, Repeat, RunId
from tests.cli.conftest import Call, Gate


@pytest.fixture
def busy(engine: ActionQueue, gate: Gate) -> Iterator[tuple[ActionQueue, RunId]]:
    """An engine with a run that waits for its queue, which is paused."""
    engine.pause(queue="mail")
    waiting = engine.handlers["send"].submit("ann")
    yield engine, waiting.run_id
    gate.opened.set()


def test_explain_tells_the_reason_and_its_release(busy: tuple[ActionQueue, RunId], cli: Call) -> None:
    _, run_id = busy

    result = cli("explain", run_id.hex[-8:])

    assert (result.code, result.err) == (0, "")
    assert result.lines[0].startswith(f"run {run_id.hex[-8:]} of send is ready: queue 'mail' is paused since ")
    assert result.lines[1] == "  released when queue 'mail' is resumed"


def test_explain_as_json_is_typed_and_stable(busy: tuple[ActionQueue, RunId], cli: Call) -> None:
    queue, run_id = busy

    found = cli("explain", "--json", run_id).json

    assert set(found) == set(queue.explain(run_id).__struct_fields__)
    assert (found["run_id"], found["state"], found["because"]) == (str(run_id), "ready", [])
    assert found["reason"] | {"at": "", "by": ""} == {
        "type": "paused", "scope": "queue", "name": "mail", "at": "", "by": "",
    }  # fmt: skip
    assert found["release"] == {"type": "resume_scope", "scope": "queue", "name": "mail"}
    assert datetime.fromisoformat(found["at"]).tzinfo is not None


def test_explain_without_an_engine_says_so_first(resting: ActionQueue, cli: Call) -> None:
    run_id = resting.runs(state="scheduled")[0].id
    resting.close()

    result = cli("explain", run_id)

    assert (result.code, result.err) == (0, "")
    assert ": no engine runs on this store; the last one (pid " in result.lines[0]
    assert "is scheduled: due at " in result.lines[3]
    assert cli("explain", "--json", run_id).json["reason"]["type"] == "no_engine_runs"


def test_explain_finds_a_submission_in_the_inbox_by_its_whole_id(resting: ActionQueue, cli: Call) -> None:
    resting.close()
    task_id = cli("submit", "send", "--args", '{"to": "x"}', "--json").json["task_id"]

    assert "in the inbox since " in cli("explain", task_id).lines[0]


@pytest.mark.parametrize("id", ["deadbeef", "018bcfe5-6800-7000-8000-000000000001"])
def test_explain_of_an_unknown_id_is_refused(id: str, resting: ActionQueue, cli: Call) -> None:
    result = cli("explain", id)

    assert (result.code, result.out) == (3, "")
    assert result.err.endswith("(unknown_run)\n")


def test_show_has_a_line_why_for_what_waits(busy: tuple[ActionQueue, RunId], cli: Call) -> None:
    queue, run_id = busy

    assert "\nwhy        queue 'mail' is paused since " in cli("show", run_id).out
    assert "\nwhy " not in cli("show", queue.handlers["send"].options(delay="1h", queue="x").submit("b").run_id).out
    assert "\nwhy " not in cli("show", run_id, "--at", "0s").out, "the past has nobody to ask"


def test_show_without_an_engine_says_only_that(resting: ActionQueue, cli: Call) -> None:
    run_id = resting.runs(state="scheduled")[0].id
    resting.close()

    assert "\nwhy        no engine runs on this store\n" in cli("show", run_id).out


# --- limits ---------------------------------------------------------------------------------------------------------


def test_limits_are_a_table_and_json(busy: tuple[ActionQueue, RunId], cli: Call) -> None:
    queue, _ = busy

    lines = cli("limits").lines
    found = cli("limits", "--json", "--kind", "queue").json["limits"]

    assert lines[0].split()[:4] == ["KIND", "NAME", "TAKEN", "WAITING"]
    assert sorted(line.split()[0] for line in lines[1:]) == ["executor", "executor", "executor", "queue"]
    assert set(found[0]) == set(queue.limits()[0].__struct_fields__)
    assert [(each["name"], each["capacity"]) for each in found] == [("mail", 2)]
    assert len(cli("limits", "--limit", 1, "--json").json["limits"]) == 1


def test_what_is_not_limited_is_said(resting: ActionQueue, cli: Call) -> None:
    resting.close()

    result = cli("limits", "--name", "nothing")

    assert (result.code, result.out, result.err) == (0, "", "nothing is limited\n")
    assert cli("limits", "--json", "--name", "nothing").json == {"limits": []}
    assert cli("limits", "--limit", "0").code == 3


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduled(engine: ActionQueue) -> ActionQueue:
    """An engine with one schedule under a name and one without."""
    send = engine.handlers["send"]
    engine.schedule("nightly", send.bind("ann"), Cron("0 3 * * *", timezone="Europe/Berlin"))
    send.options(schedule=Repeat(5, every="1h")).submit("bob")
    return engine


def test_schedules_are_listed_with_what_comes_next(scheduled: ActionQueue, cli: Call) -> None:
    nameless = scheduled.schedules()[1]

    lines = cli("schedules").lines
    found = cli("schedules", "--json").json["schedules"]

    assert lines[0].split() == ["NAME", "RULE", "HANDLER", "NEXT"]
    assert [line.split()[0] for line in lines[1:]] == ["nightly", nameless.task_id.hex[-8:]]
    assert set(found[0]) == set(nameless.__struct_fields__)
    scheduled.pause(queue="mail")
    assert ["paused" in line for line in cli("schedules").lines[1:]] == [True, True]


def test_a_schedule_is_run_now_filled_and_retired(scheduled: ActionQueue, cli: Call) -> None:
    triggered = cli("schedules", "trigger", "nightly")
    filled = cli("schedules", "backfill", "nightly", "--since", "3d", "--until", "1h", "--json")
    nameless = scheduled.schedules()[1].task_id
    retired = cli("schedules", "retire", nameless.hex[-8:])

    assert triggered.lines[0].startswith("schedule nightly runs now, as run ")
    assert filled.json == {"schedule": "nightly", "runs": 3, "queued": 0}
    assert retired.lines[0].endswith(" is retired; what is there of it goes on")
    assert [each.task_id for each in scheduled.schedules()] == [scheduled.schedules()[0].task_id]
    assert "retired" in cli("schedules", "--ended").out


def test_without_an_engine_what_is_asked_of_a_schedule_waits(resting: ActionQueue, cli: Call) -> None:
    resting.close()

    result = cli("schedules", "trigger", "nightly", "--json")

    assert (result.code, result.json) == (0, {"schedule": "nightly", "run_id": None, "queued": 1})
    assert "the command waits in the inbox" in result.err
    assert cli("schedules").err == "there are no schedules\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["trigger"], 2), (["backfill", "x"], 2), (["backfill", "x", "--since", "1d"], 2),
        (["trigger", "x", "--since", "1d", "--until", "1h"], 2), (["--since", "1d"], 2), (["retire", "x", "--ended"], 2),
        (["ring", "x"], 2), (["trigger", "x"], 3), (["backfill", "nightly", "--since", "1h", "--until", "2h"], 3),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_schedule_is_refused(
    words: list[str], code: int, scheduled: ActionQueue, cli: Call
) -> None:
    assert cli("schedules", *words).code == code
