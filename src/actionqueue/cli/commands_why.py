"""``explain``, ``limits`` and ``schedules``: why things wait, what bounds them, and what comes by itself."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

from actionqueue.cli.opening import control, find_id, instant, note_queued, open_store
from actionqueue.cli.render import Column, ago, columns_of_terminal, counted, moment, print_json, short_id, table
from actionqueue.cli.running import DONE, Misuse, note
from actionqueue.core.errors import Conflict, UnknownRun
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.plain import plain
from actionqueue.core.rules import describe_duration
from actionqueue.core.usage import LimitRecord
from actionqueue.records import ScheduleRecord
from actionqueue.store_client import StoreClient

FULL_ID_DIGITS = 32


def explain(options: Namespace) -> int:
    """Why a run is not running, with what would release it."""
    client = open_store(options)
    found = client.explain(_id_to_explain(client, options.id))
    if options.json:
        print_json(plain(found))
    else:
        print(found)
    return DONE


def _id_to_explain(client: StoreClient, text: str) -> RunId | TaskId | str:
    """What the store knows by it; or a whole id that it does not know yet, which may be in the inbox."""
    try:
        return find_id(client, text)
    except UnknownRun:
        if len(text.strip().replace("-", "")) != FULL_ID_DIGITS:
            raise
        return text.strip()


# --- limits -----------------------------------------------------------------------------------------------------


def limits(options: Namespace) -> int:
    """What bounds how much runs at once, and how far it is used up."""
    found = open_store(options).limits(kind=options.kind, name=options.name, limit=options.limit)
    if options.json:
        print_json({"limits": plain(found)})
    elif not found:
        note("nothing is limited")
    else:
        print(limits_table(found, datetime.now(UTC)))
    return DONE


def limits_table(found: list[LimitRecord], now: datetime) -> str:
    """One line a limit."""
    columns = [
        Column("KIND"), Column("NAME", flexible=True), Column("TAKEN", right=True), Column("WAITING", right=True),
        Column("NOTE", flexible=True),
    ]  # fmt: skip
    rows = [[each.kind, each.name, _taken(each), str(each.waiting), _note(each, now)] for each in found]
    return table(columns, rows, columns_of_terminal())


def _taken(limit: LimitRecord) -> str:
    return f"{limit.taken}/{limit.capacity}" if limit.per_us is None else "-"


def _note(limit: LimitRecord, now: datetime) -> str:
    if limit.per_us is None:
        return " ".join(short_id(each) for each in limit.holders)
    left = f"{limit.tokens} left" if limit.next_at is None else f"next {ago(limit.next_at, now)}"
    return f"{limit.count} per {describe_duration(limit.per_us)}, burst {limit.burst}, {left}"


# --- schedules --------------------------------------------------------------------------------------------------


def schedules(options: Namespace) -> int:
    """List schedules, or have one run now, fill a range, or end."""
    client = open_store(options)
    if options.action is None:
        return _list(options, client)
    if options.name is None:
        raise Misuse(f"which schedule? actionqueue schedules {options.action} NAME")
    if (options.action == "backfill") != (options.since is not None and options.until is not None):
        raise Misuse("backfill goes with --since and --until, and they with it")
    if options.ended:
        raise Misuse("--ended goes with the list")
    outcome: dict[str, str | int | None]
    match options.action:
        case "trigger":
            run_id, queued = control(lambda: client.trigger(_known(client, options.name)))
            outcome = {"run_id": None if run_id is None else str(run_id)}
            said = "" if run_id is None else f"runs now, as run {run_id}"
        case "retire":
            task_id, queued = control(lambda: client.retire(_known(client, options.name)))
            outcome = {"task_id": None if task_id is None else str(task_id)}
            said = "is retired; what is there of it goes on"
        case _:
            since, until = (instant(getattr(options, name), f"--{name}") for name in ("since", "until"))
            count, queued = control(lambda: client.backfill(_known(client, options.name), since, until))
            outcome = {"runs": count}
            said = f"gets {counted(count or 0, 'run')} for that range"
    if options.json:
        print_json({"schedule": options.name, **outcome, "queued": queued})
    elif not queued:
        print(f"schedule {options.name} {said}")
    note_queued(queued, client.store)
    return DONE


def _known(client: StoreClient, text: str) -> str | TaskId:
    """The name of a schedule; or, where there is none of that name, the task of one that is submitted without."""
    if any(each.name == text for each in client.schedules()):
        return text
    try:
        id = find_id(client, text)
    except (UnknownRun, Conflict, ValueError):
        return text
    return id if isinstance(id, TaskId) else client.get_run(id).task_id


def _list(options: Namespace, client: StoreClient) -> int:
    if options.since is not None or options.until is not None:
        raise Misuse("--since and --until go with backfill")
    found = client.schedules(ended=options.ended)
    if options.json:
        print_json({"schedules": plain(found)})
    elif not found:
        note("there are no schedules")
    else:
        print(schedules_table(found, datetime.now(UTC)))
    return DONE


def schedules_table(found: list[ScheduleRecord], now: datetime) -> str:
    """One line a schedule; those without a name go by the ends of their tasks' ids."""
    columns = [
        Column("NAME", flexible=True), Column("RULE", flexible=True), Column("HANDLER", flexible=True),
        Column("NEXT"), Column("", right=True), Column("SKIPPED", flexible=True),
    ]  # fmt: skip
    rows = [
        [
            each.name or short_id(each.task_id), each.rule, "" if each.handler == each.name else each.handler,
            _next(each), "" if each.next_at is None else ago(each.next_at, now), _skipped(each),
        ]
        for each in found
    ]  # fmt: skip
    return table(columns, rows, columns_of_terminal())


def _next(schedule: ScheduleRecord) -> str:
    if schedule.paused:
        return "paused"
    if schedule.next_at is not None:
        return moment(schedule.next_at)
    return "retired" if schedule.retired_at is not None else "over" if schedule.over else "-"


def _skipped(schedule: ScheduleRecord) -> str:
    skip = schedule.last_skip
    return "" if skip is None else f"{sum(schedule.skipped.values())}, last {moment(skip.last)} ({skip.reason})"
