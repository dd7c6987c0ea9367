"""One engine a store, and everybody else its client (issue line 5; section 5, numbers 21 and 22)."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from datetime import datetime
from pathlib import Path

import pytest

from actionqueue import ActionQueue, IdempotencyConflict, NoEngine, StoreHeld
from tests.process.programs.jobs import make_queue
from tests.process.support import Program, Programs, within

TAKE_OVER_S = 2.0


def refusal(path: Path) -> StoreHeld:
    """How a second engine on ``path`` is refused."""
    with within(1.0, "the refusal"), pytest.raises(StoreHeld) as caught:
        ActionQueue(path).run_forever()
    return caught.value


def check_names_holder(held: StoreHeld, pid: int) -> None:
    assert held.code == "store_held"
    assert held.facts["pid"] == pid
    assert held.facts["host"] == socket.gethostname()
    since = datetime.fromisoformat(str(held.facts["since"]))
    assert 0 <= time.time() - since.timestamp() < 120
    assert f"pid {pid}" in held.message


def test_a_second_engine_is_refused_at_once_and_told_who_holds_the_store(programs: Programs, store: Path) -> None:
    """Section 5, 21 (S5-21): two engines on one store."""
    holder = programs.start("engine", store)
    holder.line("engine")
    check_names_holder(refusal(store), holder.pid)
    with within(1.0, "the refusal"), pytest.raises(StoreHeld), ActionQueue(store, role="engine").running():
        pass


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_second_engine_through_a_symlink_is_refused(programs: Programs, store: Path, linked: str) -> None:
    """S5-21: the lock is the file's, whatever leads there."""
    holder = programs.start("engine", store)
    holder.line("engine")
    link = store.parent / "link"
    link.symlink_to(store if linked == "file" else store.parent)
    check_names_holder(refusal(link if linked == "file" else link / store.name), holder.pid)


def test_a_second_object_in_the_same_process_is_refused(store: Path) -> None:
    """S5-21: locks of the system do not see that; the registry of the process does."""
    link = store.with_name("link.db")
    link.symlink_to(store)
    with ActionQueue(store).running():
        for path in (store, link):
            check_names_holder(refusal(path), os.getpid())
    with ActionQueue(link).running():
        pass


def test_a_forked_child_is_no_second_engine_and_a_queue_open_at_the_fork_refuses_to_work(
    programs: Programs, store: Path
) -> None:
    """S5-21: refused are a child's engine and its parent's open object, until it is reopened; an unopened one works."""
    program = programs.start("forked", store)
    assert program.json("submit") == "used_after_fork"
    assert program.json("read") == "used_after_fork"
    held = program.json("engine")
    assert held["pid"] == held["parent"] == program.pid
    assert held["host"] == socket.gethostname()
    assert program.json("client") == 7
    assert program.json("other") == 8
    assert program.json("reopened") == 9
    assert program.json("child") == 0
    assert program.json("parent") == 10
    program.line("done")
    program.finish()


def test_after_the_holder_was_killed_the_next_engine_opens_at_once(programs: Programs, store: Path) -> None:
    """S5-21: a lock never outlives its process."""
    holder = programs.start("engine", store)
    holder.line("engine")
    holder.kill()
    queue = ActionQueue(store)
    with within(2.0, "opening"), queue.running():
        assert queue.session is not None
        assert queue.session.line.is_engine


def test_run_forever_waits_for_a_held_store_when_asked_to(programs: Programs, store: Path) -> None:
    first = programs.start("engine", store)
    first.line("engine")
    second = programs.start("engine", store, json.dumps({"wait_for_store": True}))
    first.kill()
    with within(TAKE_OVER_S, "taking over"):
        second.line("engine")


def test_a_standby_takes_over_within_two_seconds_of_the_holders_death(programs: Programs, store: Path) -> None:
    """The first is the engine, the others submit through it and stand by; one of them follows it."""
    holder = programs.start("standby", store)
    holder.line("engine")
    others = [programs.start("standby", store) for _ in range(2)]
    for other in others:
        other.line("client")
        other.tell("submit")
        assert other.json("result") == holder.pid
    holder.kill()
    with within(TAKE_OVER_S, "taking over"):
        heir = first_engine(others)
    for other in others:
        other.tell("submit")
        assert other.json("result") == heir.pid
    assert refusal(store).facts["pid"] == heir.pid


def first_engine(candidates: list[Program]) -> Program:
    """The one that becomes the engine."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for each in candidates:
            try:
                each.line("engine", patience_s=0.02)
            except AssertionError:
                continue
            return each
    raise AssertionError("nobody took over")


def test_a_submission_made_as_a_client_is_answered_after_its_process_has_taken_over(
    programs: Programs, store: Path
) -> None:
    """Its row is in the inbox of an engine that died before it read it."""
    holder = programs.start("engine", store)
    holder.line("engine")
    queue = make_queue(store)
    whoami = queue.handlers["whoami"]
    with queue.running():
        holder.send(signal.SIGSTOP)
        job = whoami.submit()
        keyed = whoami.options(idempotency_key="k").submit()
        assert job.state() is None
        assert keyed.created is None
        holder.kill()
        assert job.result(timeout=30) == os.getpid()
        assert keyed.result(timeout=30) == os.getpid()
        assert keyed.created is True
        assert job.state() == "completed"


# --- idempotency keys across processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["up", "down"])
def test_two_processes_that_submit_the_same_keys_end_with_the_same_tasks(
    programs: Programs, store: Path, engine: str
) -> None:
    """500 keys, each from both: one task a key, whose id both handles end with; with an engine there, and without."""
    if engine == "up":
        programs.start("engine", store).line("engine")
    count = 500
    options = json.dumps({} if engine == "up" else {"decide_wait": 0.001})
    both = [programs.start("same_keys", store, options, count, "key") for _ in range(2)]
    for each in both:
        each.line("ready")
    for each in both:
        each.tell("go")
    undecided = [each.json("submitted") for each in both]
    if engine == "down":
        assert undecided == [count, count]
        programs.start("engine", store).line("engine")
    for each in both:
        each.tell("go")
    ids = [each.json("ids") for each in both]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == count
    assert [each.json("results") for each in both] == [list(range(count))] * 2
    assert sum(each.json("created") for each in both) == count
    for each in both:
        each.finish()
    with_reader = ActionQueue(store, role="client")
    stats = with_reader.stats()
    with_reader.close()
    assert stats.tasks == count
    assert stats.runs["completed"] == count


@pytest.mark.parametrize("engine", ["up", "down"])
def test_other_content_under_the_same_key_is_a_conflict_also_when_it_is_decided_late(
    programs: Programs, store: Path, engine: str
) -> None:
    """Decided at once it is raised by submit; decided later, by whatever asks the handle."""
    first = make_queue(store, role="client", decide_wait=0.001 if engine == "down" else "30s")
    echo = first.handlers["echo"]
    if engine == "up":
        programs.start("engine", store).line("engine")
    job = echo.options(idempotency_key="one").submit(1)
    second = programs.start("conflict", store, json.dumps({} if engine == "up" else {"decide_wait": 0.001}), "one")
    if engine == "down":
        assert second.json("undecided") is None
        programs.start("engine", store).line("engine")
        assert job.result(timeout=30) == 1
        second.tell("go")
    assert str(job.id) in second.json("conflict")
    second.finish()
    assert job.result(timeout=30) == 1
    with pytest.raises(IdempotencyConflict):
        echo.options(idempotency_key="one").submit(2).result(timeout=30)
    first.close()


def test_without_an_engine_a_result_is_not_waited_for_in_silence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 5 s (here one) it says that nothing runs the store, and how to start something."""
    monkeypatch.setattr("actionqueue.session.NO_ENGINE_AFTER_S", 1.0)
    queue = make_queue(store, role="client")
    job = queue.handlers["echo"].submit(1)
    assert job.state() is None
    with pytest.raises(NoEngine, match="actionqueue run"):
        job.result(timeout=30)
    queue.close()
