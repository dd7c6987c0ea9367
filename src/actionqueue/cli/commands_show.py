"""``show``: everything about one run, or one task."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime
from typing import Any

import msgspec

from actionqueue.cli.commands_read import progress_of, runs_table, took
from actionqueue.cli.opening import find_id, open_at
from actionqueue.cli.render import (
    Column,
    ago,
    columns_of_terminal,
    fields,
    moment,
    preview,
    print_json,
    short_id,
    span,
    stored,
    table,
)
from actionqueue.cli.running import DONE
from actionqueue.core.errors import UnknownRun, UnknownTask
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.plain import plain
from actionqueue.core.reasons import NotYetDue
from actionqueue.records import AttemptRecord, Page, RunRecord, TaskRecord
from actionqueue.signaling import StepRecord
from actionqueue.store_client import StoreClient

RUNS_SHOWN_MAX = 50
DEPENDENCIES_SHOWN_MAX = 5


def show(options: Namespace) -> int:
    """A run or a task, by any unique ending of its id."""
    client, now = open_at(options)
    id = find_id(client, options.id)
    if isinstance(id, RunId):
        _show_run(client, id, now, as_json=options.json)
    else:
        _show_task(client, id, now, as_json=options.json)
    return DONE


def _show_run(client: StoreClient, id: RunId, now: datetime, *, as_json: bool) -> None:
    run = client.get_run(id)
    task, history = client.get_task(run.task_id), client.history(id)
    payload, result = _payload(client, run.task_id), _result(client, run)
    steps = _bodies(client).steps(id)
    if as_json:
        print_json(
            {
                "run": plain(run), "task": plain(task), "history": plain(history), "steps": plain(steps),
                **stored(payload, "payload"), **stored(result, "result"),
            }
        )  # fmt: skip
        return
    width = columns_of_terminal()
    print(fields(_run_fields(run, task, payload, result, now, _why_not(client, run)), width))
    if run.attempts:
        print(f"\nattempts\n{_attempts_table(run, now, width)}")
    if steps:
        print(f"\nrecorded\n{_steps_table(steps, width)}")
    columns = [Column("  WHEN"), Column("STATE"), Column("REASON", flexible=True)]
    rows = [[f"  {moment(change.at)}", change.state, _said(change)] for change in history]
    print(f"\nhistory\n{table(columns, rows, width)}")
    failed = next((attempt for attempt in reversed(run.attempts) if attempt.error is not None), None)
    if failed is not None and failed.error is not None and failed.error.traceback:
        print(f"\nerror of attempt {failed.number}")
        print("\n".join(f"  {_printable(line)}" for line in failed.error.traceback.rstrip().splitlines()))


def _run_fields(
    run: RunRecord, task: TaskRecord, payload: bytes | None, result: bytes | None, now: datetime, why: str | None
) -> list[tuple[str, str | None]]:
    queue = "" if run.queue == "default" else f" in queue {run.queue}"
    tries = f"{run.attempt_count} ({run.failure_count} failures of at most {task.max_attempts}, {run.lost_count} lost)"
    finished = run.finished_at
    state = run.state if run.reason in ("", run.state) else f"{run.state} ({run.reason})"
    waits = run.waiting_until
    return [
        ("run", str(run.id)),
        ("task", str(run.task_id)),
        ("handler", f"{run.handler}{queue}"),
        ("state", state + (", asked to stop" if run.cancel_requested and run.state == "running" else "")),
        ("waits", None if waits is None else f"until {moment(waits)} ({'due' if waits <= now else ago(waits, now)})"),
        ("why", why),
        ("progress", None if run.progress is None else progress_of(run)),
        ("attempts", tries),
        ("priority", str(run.priority) if run.priority else None),
        ("created", f"{moment(run.created_at)} ({ago(run.created_at, now)} ago)"),
        ("scheduled", moment(run.scheduled_at) if run.scheduled_at > run.created_at else None),
        ("started", None if run.started_at is None else moment(run.started_at)),
        ("finished", None if finished is None else f"{moment(finished)} (took {took(run.started_at, finished, now)})"),
        ("retry of", None if run.retry_of is None else f"{run.retry_of} (asked by {run.requested_by or 'someone'})"),
        ("key", task.idempotency_key),
        ("tags", ", ".join(task.tags) or None),
        ("depends on", _depends_on(task)),
        ("arguments", preview(payload)),
        ("result", preview(result) if run.state == "completed" else None),
    ]  # fmt: skip


def _depends_on(task: TaskRecord) -> str | None:
    on = task.depends_on
    if not on:
        return None
    more = f" and {len(on) - DEPENDENCIES_SHOWN_MAX} more" if len(on) > DEPENDENCIES_SHOWN_MAX else ""
    named = ", ".join(short_id(each) for each in on[:DEPENDENCIES_SHOWN_MAX])
    return f"{named}{more}; where one fails: {task.on_upstream_failure}"


def _why_not(client: StoreClient, run: RunRecord) -> str | None:
    """What holds a live run back, as far as an engine tells; the past has none to ask."""
    if run.finished_at is not None or run.state == "running" or _bodies(client) is not client:
        return None
    if client.engine_holder() is None:
        return "no engine runs on this store"  # the rest would cost reading all live runs: actionqueue explain tells
    found = client.explain(run.id)
    return None if isinstance(found.reason, NotYetDue) else found.headline  # that is told already


def _attempts_table(run: RunRecord, now: datetime, width: int | None) -> str:
    columns = [
        Column("  NO", right=True), Column("STARTED"), Column("TOOK", right=True), Column("OUTCOME"),
        Column("RETRY", right=True), Column("ERROR", flexible=True),
    ]  # fmt: skip
    rows = []
    for attempt in run.attempts:
        retry = (
            ""
            if attempt.retry_at is None or attempt.finished_at is None
            else span(attempt.retry_at - attempt.finished_at)
        )
        outcome = attempt.outcome or "running"
        rows.append([
            f"  {attempt.number}", moment(attempt.started_at), took(attempt.started_at, attempt.finished_at, now),
            f"{outcome}, abandoned" if attempt.abandoned else outcome, retry and f"after {retry}",
            _why(attempt),
        ])  # fmt: skip
    return table(columns, rows, width)


def _steps_table(steps: list[StepRecord], width: int | None) -> str:
    columns = [Column("  WHEN"), Column("NAME"), Column("OUTCOME"), Column("VALUE", flexible=True)]
    rows = []
    for step in steps:
        by = f" by {step.by}" if step.by else ""
        mark = " (not asked for any more)" if step.unasked else ""
        value = "" if step.kind == "sleep" else preview(msgspec.json.encode(step.value)) or ""
        rows.append([f"  {moment(step.at)}", step.name, f"{step.outcome}{by}{mark}", value])
    return table(columns, rows, width)


def _why(attempt: AttemptRecord) -> str:
    if attempt.error is not None:
        return f"{attempt.error.kind}: {attempt.error.message}"
    return "" if attempt.reason == attempt.outcome else attempt.reason


def _said(change: Any) -> str:
    return change.reason if change.attempt is None else f"{change.reason} (attempt {change.attempt})"


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "�" for char in line)


def _payload(client: StoreClient, task_id: TaskId) -> bytes | None:
    try:
        return _bodies(client).get_payload(task_id)
    except UnknownTask:
        return None


def _result(client: StoreClient, run: RunRecord) -> bytes | None:
    if run.state != "completed":
        return None
    try:
        return _bodies(client).get_result(run.id)
    except UnknownRun:
        return None


def _bodies(client: StoreClient) -> StoreClient:
    """Payloads and results are not in the log: the past's are those of the present."""
    return getattr(client, "present", client)


def _show_task(client: StoreClient, id: TaskId, now: datetime, *, as_json: bool) -> None:
    task = client.get_task(id)
    runs = client.runs(task=id, limit=1000 if as_json else RUNS_SHOWN_MAX)
    payload = _payload(client, id)
    if as_json:
        print_json({"task": plain(task), "runs": plain(list(runs)), **stored(payload, "payload")})
        return
    width = columns_of_terminal()
    print(fields(_task_fields(task, payload, now), width))
    print(f"\nruns\n{runs_table(Page(list(runs), None), now)}")
    if runs.next_cursor is not None:
        print(f"… the newest {len(runs)} of {task.run_count}: actionqueue runs --task {id}")


def _task_fields(task: TaskRecord, payload: bytes | None, now: datetime) -> list[tuple[str, str | None]]:
    queue = "" if task.queue == "default" else f" in queue {task.queue}"
    counts = [
        (task.open_count, "open"), (task.completed_count, "completed"), (task.failed_count, "failed"),
        (task.canceled_count, "canceled"),
    ]  # fmt: skip
    return [
        ("task", str(task.id)),
        ("handler", f"{task.handler}{queue}"),
        ("runs", ", ".join(f"{count} {state}" for count, state in counts if count)),
        ("attempts", f"at most {task.max_attempts} a run"),
        ("priority", str(task.priority) if task.priority else None),
        ("created", f"{moment(task.created_at)} ({ago(task.created_at, now)} ago)"),
        ("finished", None if task.finished_at is None else moment(task.finished_at)),
        ("canceled", None if task.canceled_at is None else moment(task.canceled_at)),
        ("key", task.idempotency_key),
        ("tags", ", ".join(task.tags) or None),
        ("depends on", _depends_on(task)),
        ("metadata", str(task.metadata) if task.metadata else None),
        ("about", task.description),
        ("arguments", preview(payload)),
    ]
