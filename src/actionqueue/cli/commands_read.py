"""``tasks``, ``runs`` and ``stats``: what is in the store, as tables and as JSON."""

from __future__ import annotations

import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actionqueue.cli.live import redraw
from actionqueue.cli.opening import filters_of, open_at, open_store
from actionqueue.cli.render import (
    Column,
    ago,
    columns_of_terminal,
    counted,
    fields,
    moment,
    print_json,
    short_id,
    size,
    span,
    table,
)
from actionqueue.cli.running import DONE, note
from actionqueue.core.plain import plain
from actionqueue.records import Page, Refusal, RunRecord, Stats, TaskRecord
from actionqueue.store_client import StoreClient

ROWS_ON_TERMINAL = 20


def runs(options: Namespace) -> int:
    """List runs, or refused commands."""
    if options.refused:
        return _refused(options, open_store(options))
    client, now = open_at(options)
    wanted = filters_of(options, client) | _page_of(options)
    if options.watch is None or options.json or options.at is not None:
        return _list(options, "runs", client.runs(**wanted), runs_table, now)
    redraw(lambda now: runs_table(client.runs(**wanted), now), options.watch, None)
    return DONE


def tasks(options: Namespace) -> int:
    """List tasks."""
    client, now = open_at(options)
    wanted = filters_of(options, client) | _page_of(options)
    return _list(options, "tasks", client.tasks(**wanted), tasks_table, now)


def _refused(options: Namespace, client: StoreClient) -> int:
    page = client.refusals(**_page_of(options))
    return _list(options, "refusals", page, refusals_table, datetime.now(UTC))


def _page_of(options: Namespace) -> dict[str, Any]:
    limit = options.limit
    if limit is None and not options.json and sys.stdout.isatty():
        limit = ROWS_ON_TERMINAL
    return {name: value for name, value in (("limit", limit), ("cursor", options.cursor)) if value is not None}


def _list(options: Namespace, name: str, page: Page[Any], draw: Any, now: datetime) -> int:
    if options.json:
        print_json({name: plain(list(page)), "next_cursor": page.next_cursor})
        return DONE
    if not page:
        note(f"no {name} fit")
        return DONE
    print(draw(page, now))
    if page.next_cursor is not None:
        note(f"there may be more: --cursor {page.next_cursor}")
    return DONE


# --- tables -----------------------------------------------------------------------------------------------------


def runs_table(page: Page[RunRecord], now: datetime) -> str:
    """One line a run."""
    many_queues = any(run.queue != "default" for run in page)
    columns = [
        Column("ID"), Column("STATE"), Column("HANDLER", flexible=True), Column("QUEUE", flexible=True),
        Column("TRIES", right=True), Column("AGE", right=True), Column("TOOK", right=True),
        Column("NOTE", flexible=True),
    ]  # fmt: skip
    rows = [
        [
            short_id(run.id), run.state, run.handler, run.queue if many_queues else "", str(run.attempt_count),
            ago(run.created_at, now), took(run.started_at, run.finished_at, now), note_of(run, now),
        ]
        for run in page
    ]  # fmt: skip
    return table(columns, rows, columns_of_terminal())


def took(started: datetime | None, finished: datetime | None, now: datetime) -> str:
    """How long the last attempt took, or has been running."""
    if started is None:
        return "-"
    return span(max(started, finished or now) - started)


def note_of(run: RunRecord, now: datetime) -> str:
    """What else there is to know in a few words: why it waits, how it ended, how far it is."""
    if run.state in ("scheduled", "retry_wait") and run.waiting_until is not None:
        when = f"due {ago(run.waiting_until, now)}" if run.waiting_until > now else "due"
        return when if run.error_kind is None else f"{when} after {run.error_kind}"
    if run.state == "running":
        if run.cancel_requested:
            return "asked to stop"
        return "" if run.progress is None else progress_of(run)
    if run.state == "failed" and run.error_kind is not None:
        return run.error_kind if run.reason == "failed" else f"{run.error_kind} ({run.reason})"
    said = "" if run.reason in ("completed", "submitted") else run.reason
    return (
        said
        if run.retry_of is None or run.state == "ready"
        else " ".join(part for part in (said, f"retry of {short_id(run.retry_of)}") if part)
    )


def progress_of(run: RunRecord) -> str:
    """How far the handler says it is."""
    progress = run.progress
    if progress is None:
        return "-"
    return f"{progress.done}{'' if progress.total is None else f'/{progress.total}'} {progress.message}".rstrip()


def tasks_table(page: Page[TaskRecord], now: datetime) -> str:
    """One line a task."""
    many_queues = any(task.queue != "default" for task in page)
    columns = [
        Column("ID"), Column("HANDLER", flexible=True), Column("QUEUE", flexible=True), Column("AGE", right=True),
        Column("RUNS", right=True), Column("OPEN", right=True), Column("DONE", right=True),
        Column("FAIL", right=True), Column("CANC", right=True), Column("KEY", flexible=True),
        Column("TAGS", flexible=True),
    ]  # fmt: skip
    rows = [
        [
            short_id(task.id), task.handler, task.queue if many_queues else "", ago(task.created_at, now),
            str(task.run_count), str(task.open_count), str(task.completed_count), str(task.failed_count),
            str(task.canceled_count), task.idempotency_key or "", ",".join(task.tags),
        ]
        for task in page
    ]  # fmt: skip
    return table(columns, rows, columns_of_terminal())


def refusals_table(page: Page[Refusal], now: datetime) -> str:
    """One line a refused command."""
    columns = [
        Column("AGE", right=True), Column("COMMAND"), Column("ABOUT", flexible=True), Column("CODE"),
        Column("WHY", flexible=True),
    ]  # fmt: skip
    rows = [
        [ago(each.at, now), each.command, about(each), each.code, each.message]
        for each in page
    ]  # fmt: skip
    return table(columns, rows, columns_of_terminal())


def about(refusal: Refusal) -> str:
    """What the refused command spoke of."""
    id = refusal.run_id or refusal.task_id
    parts = [
        refusal.handler or "",
        "" if id is None else short_id(id),
        f"and {refusal.count - 1} more" if refusal.count > 1 else "",
    ]
    return " ".join(part for part in parts if part)


# --- stats ------------------------------------------------------------------------------------------------------


def stats(options: Namespace) -> int:
    """Counts, and who the engine is."""
    client = open_store(options)
    found, holder, waiting = client.stats(), client.engine_holder(), client.waiting_commands()
    path = Path(client.store)
    files = {"store_bytes": _size(path), "wal_bytes": _size(Path(f"{path}-wal"))}
    if options.json:
        print_json({"store": str(path), "engine": plain(holder), "waiting_commands": waiting, **files, **plain(found)})
        return DONE
    now = datetime.now(UTC)
    engine = "none" if holder is None else f"pid {holder.pid} on {holder.host} since {moment(holder.since)}"
    pairs = [
        ("store", f"{path} ({size(files['store_bytes'])}, WAL {size(files['wal_bytes'])})"),
        ("engine", engine),
        ("inbox", f"{counted(waiting, 'command')} waiting for an engine" if waiting else None),
        ("paused", ", ".join(found.paused) or None),
        ("slots", slots_of(found)),
        ("tasks", str(found.tasks)),
        ("schedules", schedules_of(found)),
        ("as of", "never written" if found.as_of is None else f"{moment(found.as_of)}, sequence {found.sequence}"),
    ]
    print(fields(pairs, columns_of_terminal()))
    print()
    print(
        table([Column("STATE"), Column("RUNS", right=True), Column("")], states_of(found, now), columns_of_terminal())
    )
    return DONE


def schedules_of(found: Stats) -> str | None:
    """How many schedules there are, and how much of them did not happen."""
    if not found.schedules and not found.occurrences_skipped:
        return None
    skipped = f", {counted(found.occurrences_skipped, 'occurrence')} skipped" if found.occurrences_skipped else ""
    return f"{found.schedules}{skipped}"


def slots_of(found: Stats) -> str | None:
    """Slots taken of each executor and bounded queue."""
    shown = [
        f"{'' if each.kind == 'executor' else 'queue '}{each.name} {each.taken}/{each.capacity}" for each in found.slots
    ]
    return ", ".join(shown) or None


def states_of(found: Stats, now: datetime) -> list[list[str]]:
    """A row for each state that this release has runs in."""
    ready = [f"{found.blocked} of them blocked"] if found.blocked else []
    if found.oldest_ready_at is not None:
        ready.append(f"the oldest waits {ago(found.oldest_ready_at, now)}")
    hidden = ("leased", "suspended", "awaiting")
    return [
        [state, str(count), ", ".join(ready) if state == "ready" else ""]
        for state, count in found.runs.items()
        if count or state not in hidden
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
