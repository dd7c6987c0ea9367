"""The state as rows: rows and the tail of the log are the whole log; what ended leaves memory; damage is seen."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionqueue.core.check import check, fingerprint
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.loading import attempt_from, load
from actionqueue.core.machine import Event, Machine
from actionqueue.core.retry import Fixed
from actionqueue.core.rows import (
    ATTEMPT_COLUMNS,
    RUN_COLUMNS,
    TASK_COLUMNS,
    Row,
    check_row,
    latest_attempt_row,
    open_run,
    open_task,
    project,
    sealed,
    stored_run,
    stored_task,
)
from actionqueue.core.spec import TaskOptions
from actionqueue.core.state import STATES, ErrorInfo, Outcome, Output, State
from tests.core.random_stories import act_out, drawn, steps
from tests.core.story import SECOND, START, Story, Tables, play

# --- rows and tail -------------------------------------------------------------------------------------------------


def rebuilt_at(log: list[Event], k: int, points: list[int]) -> tuple[bytes, list[str]]:
    """The fingerprint after projecting at ``points`` and at k, loading, and applying the rest; and what is wrong."""
    machine, tables = Machine(), Tables()
    for n, event in enumerate(log[:k], 1):
        machine.apply(event)
        if n in points:
            tables.take(machine.state)
    tables.take(machine.state)
    loaded = Machine(tables.load())
    assert loaded.state.last_seq == k
    problems = check(loaded.state)
    loaded.replay(log[k:])
    return fingerprint(loaded.state), problems + check(loaded.state)


def whole(log: list[Event]) -> bytes:
    """The fingerprint after the whole log."""
    machine = Machine()
    machine.replay(log)
    return fingerprint(machine.state)


@pytest.mark.parametrize("seed", range(4))
def test_rows_at_every_point_and_the_tail_after_it_are_the_whole_log(seed: int) -> None:
    """wal_replay#17, section 5 number 66, dag_snapshot_recovery/01 for what this version has, section 6 number 3."""
    log = act_out(drawn(seed, 90)).log
    assert len(log) > 60
    expected = whole(log)

    for k in range(len(log) + 1):
        assert rebuilt_at(log, k, []) == (expected, []), k


@settings(max_examples=60)
@given(steps, st.data())
def test_rows_written_at_any_points_and_the_tail_are_the_whole_log(all_steps: list[Any], data: st.DataObject) -> None:
    """Section 5 number 66; workflow_crash_recovery/01 for what this version has."""
    log = act_out(all_steps).log
    point = st.integers(0, len(log))
    points, k = data.draw(st.lists(point, max_size=6)), data.draw(point)

    assert rebuilt_at(log, k, points) == (whole(log), [])


@pytest.mark.parametrize("seed", range(3))
def test_two_projections_of_one_state_are_the_same_rows(seed: int) -> None:
    log = act_out(drawn(seed, 80)).log
    first, second = Machine(), Machine()
    first.replay(log)
    second.replay(log)

    assert project(first.state) == project(second.state)


# --- each kind of run ----------------------------------------------------------------------------------------------

EVERYTHING = """
    handler h timeout=60s backoff=fixed:9s on_lost=retry max_lost=3
    handler g
    submit first queue=mail priority=3 attempts=2 timeout=5s backoff=list:1s,2s tags=x,y key=k content=c by=me
    finish first terminal
    retry first as again by=you
    progress again 7
    cancel again how=kill by=them
    submit scheduled delay=1h expires=2h
    submit waiting
    finish waiting failed
    submit lost
    crash
    restart
    pause queue sms by=me
    submit ready queue=sms priority=-4
    submit g handler=g
    cancel_task g
    tick 1s
"""


def test_every_field_of_a_task_a_run_and_an_attempt_comes_back() -> None:
    """snapshot_model_parity#1, snapshot_model_parity#11, serde_roundtrip#2, serde_roundtrip#18."""
    story = play(EVERYTHING)
    state = story.state
    story.project()

    loaded = story.tables.load()

    assert fingerprint(loaded) == fingerprint(state)
    assert set(loaded.runs) == set(state.runs)
    for run_id, run in state.runs.items():
        other = loaded.runs[run_id]
        for field in msgspec.structs.fields(type(run)):
            if field.name not in ("task", "next", "older", "where"):
                assert getattr(other, field.name) == getattr(run, field.name), field.name
        for field in msgspec.structs.fields(type(run.task)):
            if field.name not in ("lane", "head"):
                assert getattr(other.task, field.name) == getattr(run.task, field.name), field.name
    assert loaded.pauses == state.pauses
    assert (loaded.epoch, loaded.declarations, loaded.keys.keys()) == (
        state.epoch,
        state.declarations,
        state.keys.keys(),
    )


def test_a_run_that_ended_is_written_whole_once_and_leaves_memory() -> None:
    story = Story()
    story.submit("a", options=TaskOptions(tags=("x", "y")))
    story.finish("a", Outcome.FAILED, error=ErrorInfo("E", "m"))
    story.advance(10 * SECOND)
    story.finish("a", output=Output(b"d" * 16, 3))

    written = project(story.state)

    run = open_run(written.runs[0])
    row = dict(zip(RUN_COLUMNS, run, strict=True))
    latest = latest_attempt_row(run)
    assert latest is not None
    assert (row["state"], row["finished_at"], row["attempt_count"]) == (7, START + 10 * SECOND, 2)
    assert (row["output_digest"], row["output_bytes"], row["error_kind"]) == (b"d" * 16, 3, None)
    assert [attempt_from(each).outcome for each in [*written.attempts, latest]] == [Outcome.FAILED, Outcome.COMPLETED]
    assert written.tags == [("x", story.id("a")), ("y", story.id("a"))]
    assert dict(zip(TASK_COLUMNS, open_task(written.tasks[0]), strict=True))["finished_at"] == START + 10 * SECOND
    assert not story.state.dirty_runs
    again = project(story.state)
    assert (again.tasks, again.runs, again.attempts, again.tags) == ([], [], [], [])
    assert "standing" not in again.facts


def test_only_what_was_touched_is_written() -> None:
    story = play("submit a b\nproject\nfinish a failed")

    written = project(story.state)

    assert [row[0] for row in written.runs] == [story.id("a")]
    assert written.seq == story.state.last_seq
    assert written.attempts == [], "its only attempt is in the run's own row"


def test_attempts_before_the_latest_leave_memory_with_their_rows() -> None:
    story = play("submit a\nfinish a failed\ntick 10s\nproject")

    assert story.run("a").older is None
    story.play("finish a failed\nproject")
    assert sorted(number for _, number in story.tables.attempts) == [1, 2]


@pytest.mark.parametrize("outcome", Outcome)
def test_an_attempt_comes_back_from_its_row(outcome: Outcome) -> None:
    story = play("submit a timeout=3s backoff=fixed:2s")
    attempt = story.attempt("a")
    attempt.outcome, attempt.finished_at, attempt.reason = outcome, START + 1, "why"
    attempt.error, attempt.retry_at, attempt.abandoned = ErrorInfo("E", "m", "t", "f"), START + 9, True
    story.state.dirty_runs[story.id("a")] = story.run("a")

    row = latest_attempt_row(open_run(project(story.state).runs[0]))
    assert row is not None
    back = attempt_from(row)

    assert back == attempt
    assert back.terms.backoff == Fixed(2 * SECOND)


def test_an_empty_store_loads_as_an_empty_state() -> None:
    """wal_replay#1."""
    assert fingerprint(load({}, [], [])) == fingerprint(State())


def test_the_counts_of_what_has_left_memory_are_kept() -> None:
    """observability/02, section 6 number 15, wal_replay#10."""
    story = play("submit a b c d\nfinish a completed\nfinish b terminal\ncancel c\nfinish c failed\nproject")

    loaded = story.tables.load()

    assert loaded.counts == [0, 0, 0, 1, 0, 0, 0, 1, 1, 1]
    assert loaded.tasks_total == 4
    assert len(loaded.counts) == len(STATES)


def test_a_pause_set_before_any_task_holds_for_what_is_loaded() -> None:
    story = play("pause queue mail\nsubmit a queue=mail delay=1s\ntick 2s\nproject\ncrash\nrestart")

    story.play("expect a scheduled waits=Paused\nresume queue mail\nexpect a running")


# --- damage --------------------------------------------------------------------------------------------------------


def tables() -> Tables:
    story = play(EVERYTHING)
    story.project()
    return story.tables


@pytest.mark.parametrize(
    ("table", "columns"), [("tasks", TASK_COLUMNS), ("runs", RUN_COLUMNS), ("attempts", ATTEMPT_COLUMNS)]
)
def test_a_changed_value_in_any_column_of_any_row_is_seen(table: str, columns: tuple[str, ...]) -> None:
    """snapshot_corruption_recovery/02, section 5 number 17."""
    rows: dict[Any, Row] = getattr(tables(), table)
    for row in rows.values():
        assert len(row) == len(columns)
        check_row(row, table)
        for n, value in enumerate(row):
            changed = (*row[:n], _other(value), *row[n + 1 :])
            with pytest.raises(StoreDamaged) as refusal:
                check_row(changed, table)
            assert table in refusal.value.facts["place"]  # type: ignore[operator]


def _other(value: Any) -> Any:
    match value:
        case None:
            return 0
        case int():
            return value ^ 1
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case list():
            return [*value, 0]
        case _:
            return value + "x"


@pytest.mark.parametrize("table", ["tasks", "runs"])
def test_loading_refuses_a_stored_row_with_any_column_or_any_byte_of_its_body_changed(table: str) -> None:
    kept = tables()
    row = next(row for row in getattr(kept, table).values() if row[12 if table == "tasks" else 14] is None)
    stored = stored_task(row) if table == "tasks" else stored_run(row)
    body = stored[-1]
    changes = [(*stored[:n], _other(value), *stored[n + 1 :]) for n, value in enumerate(stored)]
    changes += [(*stored[:-1], body[:n] + bytes([body[n] ^ 4]) + body[n + 1 :]) for n in range(len(body))]
    for changed in changes:
        with pytest.raises(StoreDamaged):
            load(kept.facts, *(([changed], []) if table == "tasks" else ([], [changed])))


@pytest.mark.parametrize("table", ["tasks", "runs"])
def test_a_row_opened_and_stored_again_is_the_same(table: str) -> None:
    for row in getattr(tables(), table).values():
        if table == "tasks":
            assert open_task(stored_task(row)) == row
        else:
            assert open_run(stored_run(row)) == row


def test_a_row_that_is_missing_is_noticed() -> None:
    story = play("submit a\nsubmit b delay=5s\nproject")
    for table, name in (("runs", "a"), ("runs", "b"), ("tasks", "a")):
        kept = getattr(story.tables, table)
        row = kept.pop(story.id(name) if table == "runs" else story.task_id(name))
        with pytest.raises(StoreDamaged):
            story.tables.load()
        kept[row[0]] = row
    assert fingerprint(story.tables.load()) == fingerprint(story.state)


def test_a_running_run_without_its_attempt_is_noticed() -> None:
    story = play("submit a")
    story.run("a").latest = None
    story.project()

    with pytest.raises(StoreDamaged) as refusal:
        story.tables.load()

    assert story.id("a").hex() in str(refusal.value)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_key_leads_to_its_last_holder_in_whatever_order_rows_come(backwards: bool) -> None:
    story = play("submit a key=k content=x lifetime=10s\ntick 10s\nsubmit b key=k content=y\nproject")
    if backwards:
        story.tables.tasks = dict(reversed(story.tables.tasks.items()))

    loaded = story.tables.load()

    assert loaded.keys["k"].id == story.task_id("b")


def test_a_row_is_sealed_over_all_of_its_values() -> None:
    row = sealed((1, "a", None, b"x"))

    check_row(row, "attempts")
    assert row[:-1] == (1, "a", None, b"x")
