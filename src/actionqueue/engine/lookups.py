"""Facts about what has left memory, read for commands that need them. Decisions stay with the core."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from msgspec import msgpack

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.errors import StoreDamaged
from actionqueue.core.loading import attempt_from
from actionqueue.core.machine import Command
from actionqueue.core.rows import RUN_COLUMNS, latest_attempt_row
from actionqueue.core.state import FIRST_TERMINAL
from actionqueue.core.steps import NOTE
from actionqueue.core.submission import KnownRun, KnownTask, RareFields, RetryRun, Submit, TaskImage
from actionqueue.engine.work import Ended
from actionqueue.store.codec import digest
from actionqueue.store.port import Reader

_rare = msgpack.Decoder(RareFields)
_READY_ORDER = itemgetter(RUN_COLUMNS.index("ready_order"))


def attach(reader: Reader, command: Command) -> None:
    """Put what the store knows onto ``command``."""
    match command:
        case Submit():
            _attach_known(reader, command)
        case RetryRun():
            command.known = _known_run(reader, command.run_id)
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
    command.known_tasks = {task_id: _known_task(reader, row) for task_id, row in by_id.items()}


def _known_task(reader: Reader, row: tuple[Any, ...]) -> KnownTask:
    rare = RareFields() if row[15] is None else _rare.decode(row[15])
    runs = reader.runs_of(row[0])
    first = runs[0][0] if runs else row[0]
    return KnownTask(row[0], rare.content, rare.key_until, first, row[1], row[6])


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
    return KnownRun(run_id, row[4], token, image, row[6], _newest(chain)[0], records)


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
