"""Facts about what has left memory, read for commands that need them. Decisions stay with the core."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from msgspec import msgpack

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.graph import Outlook
from actionqueue.core.loading import attempt_from
from actionqueue.core.machine import Command
from actionqueue.core.reasons import canceled_by, origin_in
from actionqueue.core.rows import RUN_COLUMNS, after_mark, latest_attempt_row
from actionqueue.core.state import CANCELED, COMPLETED, FIRST_TERMINAL
from actionqueue.core.steps import NOTE
from actionqueue.core.submission import KnownRun, KnownTask, RareFields, RetryRun, Submit, TaskImage
from actionqueue.engine.work import Ended
from actionqueue.store.codec import digest
from actionqueue.store.port import Reader, RunFilter

PAGE_RUNS = 1_000

_rare = msgpack.Decoder(RareFields)
_READY_ORDER = itemgetter(RUN_COLUMNS.index("ready_order"))


def attach(reader: Reader, command: Command) -> None:
    """Put what the store knows onto ``command``."""
    match command:
        case Submit():
            _attach_known(reader, command)
        case RetryRun():
            command.known = _known_run(reader, command.run_id)
            if command.known is not None and command.with_dependents:
                command.known_dependents = _dependents(reader, command.known.image.task_id)
        case AddDependencies():
            command.known = command.task_id in reader.tasks_by_id([command.task_id])
            command.known_tasks = _upstreams(reader, command.on)
        case CancelRun() | Reschedule() | Reprioritize():
            row = reader.runs_by_id([command.run_id]).get(command.run_id)
            command.known_state = None if row is None or row[4] < FIRST_TERMINAL else row[4]
        case CancelTask():
            command.known = command.task_id in reader.tasks_by_id([command.task_id])
        case Pause() | Resume():
            task_id = command.task_id
            command.known = task_id is not None and task_id in reader.tasks_by_id([task_id])
        case _:
            return


def _attach_known(reader: Reader, command: Submit) -> None:
    keys = [item.key for item in command.items if item.key is not None]
    ids = [item.task_id for item in command.items if item.task_id_given]
    by_key = reader.tasks_by_key(keys) if keys else {}
    by_id = reader.tasks_by_id(ids) if ids else {}
    command.known_keys = {key: _known_task(reader, row) for key, row in by_key.items()}
    upstreams = {id for item in command.items if item.depends is not None for id in item.depends.on}
    command.known_tasks = _upstreams(reader, sorted(upstreams)) if upstreams else {}
    command.known_tasks |= {task_id: _known_task(reader, row) for task_id, row in by_id.items()}


def _known_task(reader: Reader, row: tuple[Any, ...]) -> KnownTask:
    rare = RareFields() if row[15] is None else _rare.decode(row[15])
    runs = reader.runs_of(row[0])
    first = runs[0][0] if runs else row[0]
    return KnownTask(row[0], rare.content, rare.key_until, first, row[1], row[6], _outlook(reader, row))


def _upstreams(reader: Reader, task_ids: Sequence[bytes]) -> dict[bytes, KnownTask]:
    """Tasks that one is to depend on: how they ended is all there is to know of them."""
    rows = reader.tasks_by_id(task_ids)
    return {task_id: _upstream(reader, row) for task_id, row in rows.items()}


def _upstream(reader: Reader, row: tuple[Any, ...]) -> KnownTask:
    outlook = _outlook(reader, row)
    origin = b""
    if outlook == Outlook.FAILED and row[11]:
        origin = origin_in(_newest(reader.runs_of(row[0]))[5]) or b""
    return KnownTask(row[0], None, outlook=outlook, origin=origin)


def _outlook(reader: Reader, row: tuple[Any, ...]) -> int:
    """How a task ended, for those that depend on it."""
    if row[12] is None:
        return Outlook.NOT_KNOWN
    completed = row[9]
    if not completed:
        return Outlook.FAILED
    if row[8] == 1 or row[15] is None or _rare.decode(row[15]).rule is None:
        return Outlook.COMPLETED
    newest: dict[bytes, tuple[Any, ...]] = {}
    for run in sorted(reader.runs_of(row[0]), key=_READY_ORDER):
        newest[run[20] or run[0]] = run
    is_whole = row[13] is None and all(run[4] == COMPLETED for run in newest.values())
    return Outlook.COMPLETED if is_whole else Outlook.PARTIAL


def _dependents(reader: Reader, origin: bytes) -> list[KnownRun]:
    """The runs that were canceled because that task ended badly, those they wait for first."""
    found: dict[bytes, KnownRun] = {}
    pending = deque([origin])
    while pending:
        for row in _canceled_after(reader, pending.popleft()):
            known = None if row[5] != canceled_by(origin) or row[1] in found else _known_run(reader, row[0])
            if known is not None and known.newest == known.run_id:
                found[row[1]] = known
                pending.append(row[1])
    return list(found.values())


def _canceled_after(reader: Reader, upstream: bytes) -> Iterator[tuple[Any, ...]]:
    """The canceled runs whose task depends on that one."""
    cursor: bytes | None = None
    while True:
        page = reader.runs(RunFilter(tag=after_mark(upstream), states=(CANCELED,), cursor=cursor, limit=PAGE_RUNS))
        yield from page
        if len(page) < PAGE_RUNS:
            return
        cursor = page[-1][0]


def _known_run(reader: Reader, run_id: bytes) -> KnownRun | None:
    row = reader.runs_by_id([run_id]).get(run_id)
    if row is None:
        return None
    task = reader.tasks_by_id([row[1]])[row[1]]
    image = TaskImage(
        task[0], task[1], task[2], task[3], task[4], task[5], task[6], task[7], task[8], (task[9], task[10], task[11]),
        None if task[15] is None else _rare.decode(task[15]), task[13],
    )  # fmt: skip
    token = row[20] or run_id
    chain = [each for each in reader.runs_of(row[1]) if (each[20] or each[0]) == token]
    records = sum(kind != NOTE for _, _, kind, _, _ in reader.steps_of([token])[token])
    known = KnownRun(run_id, row[4], token, image, row[6], _newest(chain)[0], records=records)
    if image.rare is not None and image.rare.depends is not None:
        known.outlooks = {each: task.outlook for each, task in _upstreams(reader, image.rare.depends.on).items()}
    return known


def _newest(runs: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The latest run by the engine's own order; ids follow the clocks of those who made them."""
    return max(runs, key=_READY_ORDER)


def ended(reader: Reader, task_id: bytes) -> Ended | None:
    """How the newest run of a task ended; None when there is no such task or it has not ended."""
    runs = reader.runs_of(task_id)
    if not runs:
        return None
    row = _newest(runs)
    if row[4] < FIRST_TERMINAL:
        return None
    body = None
    if row[23] is not None:
        body = reader.blobs([row[0]]).get(row[0])
        if body is None or digest(body) != row[23]:
            raise StoreDamaged(
                "the stored result does not match its digest: bytes of the store changed on disk",
                place=f"blobs {row[0].hex()}",
            )
    latest = latest_attempt_row(row)
    error = None if latest is None else attempt_from(latest).error
    return Ended(row[0], row[4], row[5], body, error)
