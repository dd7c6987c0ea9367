"""``submit``: by name, with the handler's declaration for what is left out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from actionqueue import ActionQueue
from tests.cli.conftest import Call, Gate, make_queue
from tests.process.support import eventually

ANN = '{"to": "ann"}'


def test_a_submission_is_run_with_what_its_handler_declares(engine: ActionQueue, cli: Call) -> None:
    """smoke#2."""
    result = cli("submit", "send", "--args", ANN, "--json")

    plain = result.json
    assert result.code == 0
    assert (plain["created"], plain["queued"]) == (True, False)
    eventually(lambda: engine.runs(task=plain["task_id"], state="completed"), "it is completed")
    task = engine.get_task(plain["task_id"])
    assert (task.queue, task.priority, task.tags, task.max_attempts) == ("mail", 3, ("eu",), 3)
    assert json.loads(engine.get_payload(task.id)) == {"to": "ann"}


def test_what_is_given_wins_over_the_declaration(engine: ActionQueue, cli: Call) -> None:
    plain = cli(
        "submit", "send", "--args", ANN, "--queue", "other", "--priority", 9, "--tag", "a", "--tag", "b",
        "--max-attempts", 1, "--delay", "1h", "--expires", "2h", "--key", "k1", "--json",
    ).json  # fmt: skip

    eventually(lambda: engine.runs(task=plain["task_id"]), "it is there")
    task, (run,) = engine.get_task(plain["task_id"]), engine.runs(task=plain["task_id"])
    assert (task.queue, task.priority, task.tags, task.max_attempts) == ("other", 9, ("a", "b"), 1)
    assert task.idempotency_key == "k1"
    assert 3590 < (run.scheduled_at - run.created_at).total_seconds() <= 3600


def test_at_is_an_instant_with_a_zone(engine: ActionQueue, cli: Call) -> None:
    plain = cli("submit", "send", "--args", ANN, "--at", "2099-01-01T00:00:00+01:00", "--json").json

    eventually(lambda: engine.runs(task=plain["task_id"]), "it is there")
    (run,) = engine.runs(task=plain["task_id"])
    assert run.scheduled_at.isoformat() == "2098-12-31T23:00:00+00:00"
    assert cli("submit", "send", "--args", ANN, "--at", "2099-01-01T00:00:00").code == 2
    assert cli("submit", "send", "--args", ANN, "--at", "1h").code == 2


def test_text_says_the_ids(engine: ActionQueue, cli: Call) -> None:
    words = cli("submit", "send", "--args", ANN).out.split()

    assert words[0] == "task"
    assert words[2] == "run"
    eventually(lambda: engine.runs(task=words[1].rstrip(",")), "it is there")


def test_wait_prints_the_result(engine: ActionQueue, cli: Call) -> None:
    assert cli("submit", "send", "--args", ANN, "--wait").out == '"sent ann"\n'
    plain = cli("submit", "send", "--args", ANN, "--wait", "20s", "--json").json
    assert (plain["result"], plain["created"]) == ("sent ann", True)


def test_waiting_for_what_fails_is_exit_1_with_the_error(engine: ActionQueue, cli: Call) -> None:
    result = cli("submit", "bad", "--args", '{"n": 1}', "--wait")

    assert (result.code, result.out) == (1, "")
    assert "ValueError: bad 1 and [31mred" in result.err
    assert result.err.endswith("(run_failed)\n")
    assert "\x1b" not in result.err


def test_waiting_too_long_is_exit_1(engine: ActionQueue, cli: Call) -> None:
    result = cli("submit", "waits", "--wait", "200ms")

    assert result.code == 1
    assert "it goes on" in result.err
    assert result.err.endswith("(timeout)\n")


def test_the_same_key_and_content_is_the_same_task(engine: ActionQueue, cli: Call) -> None:
    first = cli("submit", "send", "--args", ANN, "--key", "k", "--json").json
    second = cli("submit", "send", "--args", ANN, "--key", "k", "--json").json

    assert (first["created"], second["created"]) == (True, False)
    assert first["task_id"] == second["task_id"]
    assert "was submitted before with this key" in cli("submit", "send", "--args", ANN, "--key", "k").out


def test_the_content_is_that_of_a_call_in_python_with_every_argument(engine: ActionQueue, cli: Call) -> None:
    handle = engine.handlers["send"].options(idempotency_key="k").submit("ann", subject="hi")

    plain = cli("submit", "send", "--args", '{"subject": "hi", "to": "ann"}', "--key", "k", "--json").json

    assert (plain["task_id"], plain["created"]) == (str(handle.id), False)


def test_the_same_key_with_other_content_is_exit_3(engine: ActionQueue, cli: Call) -> None:
    cli("submit", "send", "--args", ANN, "--key", "k")

    result = cli("submit", "send", "--args", '{"to": "bob"}', "--key", "k")

    assert result.code == 3
    assert result.err.endswith("(idempotency_conflict)\n")


@pytest.mark.parametrize("args", ["{", "[1]", '"x"', "nonsense"])
def test_arguments_that_are_no_object_are_a_usage_error(engine: ActionQueue, cli: Call, args: str) -> None:
    result = cli("submit", "send", "--args", args)

    assert (result.code, result.out) == (2, "")
    assert "--args" in result.err


def test_arguments_are_read_from_stdin(engine: ActionQueue, cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ANN))

    assert cli("submit", "send", "--args", "-", "--wait").out == '"sent ann"\n'


def test_arguments_that_the_handler_does_not_take_are_exit_3(engine: ActionQueue, cli: Call) -> None:
    result = cli("submit", "send", "--args", '{"subject": "x", "who": "ann"}')

    assert result.code == 3
    assert "to is missing; who is no parameter; it takes: to, subject?" in result.err
    assert result.err.endswith("(invalid_arguments)\n")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--delay", "soon"], "delay"), (["--expires=-1s"], "expires"), (["--max-attempts", "0"], "max_attempts"),
        (["--priority", str(2**40)], "priority"), (["--queue", ""], "queue"), (["--tag", "x" * 200], "tags[0]"),
        (["--key", "k" * 300], "idempotency_key"),
    ],
)  # fmt: skip
def test_options_that_are_not_valid_are_exit_3_and_name_their_field(
    engine: ActionQueue, cli: Call, words: list[str], field: str
) -> None:
    result = cli("submit", "send", "--args", ANN, *words)

    assert (result.code, result.out) == (3, "")
    assert field in result.err


def test_an_unknown_handler_is_accepted_and_said(engine: ActionQueue, cli: Call) -> None:
    result = cli("submit", "missing", "--json")

    assert result.code == 0
    assert "no engine has declared a handler 'missing' here (but: bad, send, waits)" in result.err
    eventually(lambda: engine.runs(handler="missing", state="ready"), "it waits")


def test_without_an_engine_it_is_queued_and_run_when_one_comes(resting: ActionQueue, cli: Call, store: Path) -> None:
    result = cli("submit", "send", "--args", ANN, "--key", "new", "--json")

    assert result.code == 0
    assert (result.json["created"], result.json["queued"]) == (None, True)
    assert result.err.startswith("queued: no engine runs on ")
    queue = make_queue(store, Gate())
    with queue.running():
        eventually(lambda: queue.runs(task=result.json["task_id"], state="completed"), "it is completed")


def test_waiting_without_an_engine_gives_up_with_exit_4(
    resting: ActionQueue, cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actionqueue.session.NO_ENGINE_AFTER_S", 0.1)

    result = cli("submit", "send", "--args", ANN, "--wait")

    assert result.code == 4
    assert result.err.splitlines()[0].startswith("queued: ")
    assert result.err.endswith("(no_engine)\n")
