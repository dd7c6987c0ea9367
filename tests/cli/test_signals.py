"""``signal`` and ``signals``, and what ``show`` and ``retry`` say of records."""

from __future__ import annotations

import time
from pathlib import Path

from actionqueue import CONTEXT, ActionQueue, Context, TerminalFailure
from tests.cli.conftest import Call


def waiting(path: Path) -> ActionQueue:
    queue = ActionQueue(path)

    @queue.task(name="buys")
    def buys(order: int, *, ctx: Context = CONTEXT) -> str:
        ctx.step("plan", lambda: {"order": order})
        return str(ctx.receive("approved", key=order).by)

    @queue.task(name="fails")
    def fails(*, ctx: Context = CONTEXT) -> str:
        ctx.step("plan", lambda: 1)
        raise TerminalFailure("no")

    return queue


def test_a_signal_goes_to_an_engine_that_runs(cli: Call, store: Path) -> None:
    queue = waiting(store)
    with queue.running():
        job = queue.handlers["buys"].submit(42)
        deadline = time.monotonic() + 10
        while queue.get_run(job.run_id).state != "awaiting" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "waits for signal 'approved' of key '42'" in cli("show", str(job.run_id)).out
        sent = cli("signal", "approved", "--key", "42", "--payload", '{"ok": true}', "--by", "anna", "--id", "a")
        again = cli("signal", "approved", "--key", "42", "--payload", '{"ok": true}', "--id", "a", "--json")
        other = cli("signal", "approved", "--key", "42", "--id", "a")
        assert job.result(timeout=10) == "anna"
    assert (sent.code, sent.out) == (0, "the signal is sent\n")
    assert again.json == {"new": False, "queued": False}
    assert (other.code, "signal_conflict" in other.err) == (3, True)
    assert 'anna  {"ok":true}' in cli("signals").out
    assert [each["key"] for each in cli("signals", "--name", "approved", "--json").json["signals"]] == ["42"]
    shown = cli("show", str(job.run_id))
    assert "receive#1" in shown.out
    assert "signaled by anna" in shown.out
    assert [step["name"] for step in cli("show", str(job.run_id), "--json").json["steps"]] == ["plan", "receive#1"]


def test_without_an_engine_a_signal_waits_in_the_inbox(cli: Call, store: Path) -> None:
    queue = waiting(store)
    with queue.running():
        pass
    sent = cli("signal", "approved", "--key", "42")
    assert sent.code == 0
    assert "inbox" in sent.err
    assert cli("signals").out == "no signals are kept\n"
    with queue.running():
        job = queue.handlers["buys"].submit(42)
        assert job.result(timeout=10)


def test_a_payload_that_is_no_json_is_a_usage_error(cli: Call, store: Path) -> None:
    with waiting(store).running():
        pass
    assert cli("signal", "approved", "--payload", "{").code == 2


def test_a_fresh_retry_forgets_what_was_recorded(cli: Call, store: Path) -> None:
    queue = waiting(store)
    with queue.running():
        job = queue.handlers["fails"].submit()
        deadline = time.monotonic() + 10
        while queue.get_run(job.run_id).state != "failed" and time.monotonic() < deadline:
            time.sleep(0.01)
        first = queue.steps(job.run_id)[0].at
        new = cli("retry", str(job.run_id), "--fresh", "--json").json["results"][0]["new_run_id"]
        while queue.get_run(new).state != "failed" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert queue.steps(new)[0].at > first
    assert cli("retry", "--fresh", "--handler", "fails").code == 2
