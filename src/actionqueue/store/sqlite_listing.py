"""Which index answers which listing: a `RunFilter` as SELECTs of ids, newest first, each bounded by the page.

Knows: the tables' indexes. Must not know: who asks.

The planner is not asked: without statistics it guesses, and with them it changes its mind. Each statement names the
index that drives it, by the most selective condition there is (ids, task, key, tag, error, handler, queue, states), and
the other conditions are checked row by row. An index that has the state before the id serves one state at a time in the
order of ids; so there is one SELECT per state, each with the page's limit, and the results are merged. No statement
sorts, and none reads a table without a bound.

The index on queues leaves out the queue ``default``: it is free for those who use no queues. A listing of that queue
goes by the other conditions.

``since`` and ``until`` speak of ``created_at``, which has no index of its own (28 bytes a run). Ids begin with the
instant they were made, mostly a moment before ``created_at``, but a day before when a command waited in the inbox, and
anything when a caller chose a task's id. The store keeps by how much the two have ever differed (`Skew`), so the bounds
on ids are as tight as they can be and never wrong; ``created_at`` itself is checked as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from actionqueue.core.rows import Row
from actionqueue.core.spec import DEFAULT_QUEUE
from actionqueue.core.state import STATES
from actionqueue.store.port import RunFilter

ALL_STATES = tuple(range(len(STATES)))
ID_INFINITE = b"\xff" * 17
"""Greater than every id."""

SKEW_US_MIN = 1 << 14
_INSTANT_END = 1 << 48


class Skew(Struct, frozen=True):
    """By how much ``created_at`` and the instant in the id differ, in microseconds: from ``low`` to ``high``."""

    low: int = -SKEW_US_MIN
    high: int = SKEW_US_MIN

    def including(self, rows: Iterable[Row], created_at: int) -> Skew:
        """Wide enough for these rows too, whose column ``created_at`` is that number; in steps, so that it settles."""
        differences = [row[created_at] - int.from_bytes(row[0][:6], "big") * 1000 for row in rows]
        if not differences:
            return self
        least, most = min(differences), max(differences)
        low = self.low if self.low <= least else -(1 << (-least).bit_length())
        high = self.high if most <= self.high else 1 << most.bit_length()
        return self if (low, high) == (self.low, self.high) else Skew(low, high)

    def ids_from(self, since: int) -> bytes:
        """No id made for a ``created_at`` from ``since`` on is smaller."""
        return _id_at((since - self.high) // 1000)

    def ids_until(self, until: int) -> bytes:
        """Every id made for a ``created_at`` before ``until`` is smaller."""
        return _id_at((until - self.low) // 1000 + 1)

    def as_meta(self, table: str) -> dict[str, bytes | int | str]:
        """As single values of the store; `skews_of` reads them."""
        return {f"{table}_skew_low": self.low, f"{table}_skew_high": self.high}


Skews = dict[str, Skew]
"""By table: tasks, runs."""


def skews_of(meta: Mapping[str, object]) -> Skews:
    """What the store's single values say."""
    skews: Skews = {}
    for table in ("tasks", "runs"):
        low, high = meta.get(f"{table}_skew_low"), meta.get(f"{table}_skew_high")
        skews[table] = Skew(low, high) if isinstance(low, int) and isinstance(high, int) else Skew()
    return skews


def _id_at(milliseconds: int) -> bytes:
    if milliseconds >= _INSTANT_END:
        return ID_INFINITE
    return max(0, milliseconds).to_bytes(6, "big") + bytes(10)


class Where(Struct):
    """Conditions that all hold, with their values in order."""

    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, condition: str, *values: Any) -> None:
        """One more condition."""
        self.conditions.append(condition)
        self.values += values

    def one_of(self, column: str, values: Sequence[Any]) -> None:
        """The column is one of these; with none of them nothing fits."""
        self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)


Statement = tuple[str, list[Any]]


def run_statements(wanted: RunFilter, skew: Skew, tasks_of_key: Sequence[bytes]) -> list[Statement]:
    """SELECTs whose results together, merged by id, begin with the page. ``tasks_of_key``: the tasks with its key."""
    states = ALL_STATES if wanted.states is None else tuple(dict.fromkeys(wanted.states))
    if not states:
        return []
    if wanted.ids is not None:
        return [_run_statement(wanted, skew, "runs r", id=id) for id in wanted.ids]
    if wanted.task is not None:
        return [_run_statement(wanted, skew, "runs r INDEXED BY runs_task", task_id=wanted.task)]
    if wanted.key is not None:
        return [_run_statement(wanted, skew, "runs r INDEXED BY runs_task", task_id=task) for task in tasks_of_key]
    if wanted.mark is not None or wanted.tag is not None:
        source = "run_tags t CROSS JOIN runs r ON r.id = t.run_id"
        return [_run_statement(wanted, skew, source, tag=wanted.mark or wanted.tag)]
    if wanted.error is not None:
        return [_run_statement(wanted, skew, "runs r INDEXED BY runs_error", error_kind=wanted.error)]
    if wanted.handler is not None:
        source = "runs r INDEXED BY runs_handler"
        return [_run_statement(wanted, skew, source, handler=wanted.handler, state=state) for state in states]
    if wanted.queue is not None and wanted.queue != DEFAULT_QUEUE:
        source = "runs r INDEXED BY runs_queue"
        return [_run_statement(wanted, skew, source, queue=wanted.queue, state=state) for state in states]
    if wanted.states is not None:
        return [_run_statement(wanted, skew, "runs r INDEXED BY runs_state", state=state) for state in states]
    return [_run_statement(wanted, skew, "runs r")]


def _run_statement(wanted: RunFilter, skew: Skew, source: str, **driver: Any) -> Statement:
    where = Where()
    order = "t.run_id" if "tag" in driver else "r.id"
    for column, value in driver.items():
        where.add("t.tag = ?" if column == "tag" else f"r.{column} = ?", value)
    if driver.get("queue") is not None:
        where.add(f"r.queue <> '{DEFAULT_QUEUE}'")  # said so that the partial index may be used
    _bound(where, order, wanted, skew)
    _rest_of_runs(where, wanted, driver)
    return f"SELECT r.id FROM {source} WHERE {' AND '.join(where.conditions)} ORDER BY {order} DESC LIMIT ?", [
        *where.values,
        wanted.limit,
    ]


def _bound(where: Where, id_column: str, wanted: RunFilter, skew: Skew) -> None:
    """The range of ids, by cursor and instants; always bounded above, so that the table is searched, not scanned."""
    uppers = [ID_INFINITE if wanted.cursor is None else wanted.cursor]
    if wanted.until is not None:
        uppers.append(skew.ids_until(wanted.until))
        where.add("r.created_at < ?", wanted.until)
    where.add(f"{id_column} < ?", min(uppers))
    if wanted.since is not None:
        where.add(f"{id_column} >= ?", skew.ids_from(wanted.since))
        where.add("r.created_at >= ?", wanted.since)


def _rest_of_runs(where: Where, wanted: RunFilter, driver: dict[str, Any]) -> None:
    """The conditions that the driving index does not answer."""
    if wanted.states is not None and "state" not in driver:
        where.one_of("r.state", wanted.states)
    if wanted.handler is not None and "handler" not in driver:
        where.add("r.handler = ?", wanted.handler)
    if wanted.queue is not None and "queue" not in driver:
        where.add("r.queue = ?", wanted.queue)
    if wanted.error is not None and "error_kind" not in driver:
        where.add("r.error_kind = ?", wanted.error)
    if wanted.task is not None and "task_id" not in driver:
        where.add("r.task_id = ?", wanted.task)
    if wanted.key is not None and ("task_id" not in driver or wanted.task is not None):
        where.add("EXISTS (SELECT 1 FROM tasks k WHERE k.id = r.task_id AND k.idempotency_key = ?)", wanted.key)
    for tag in (wanted.tag, wanted.mark):
        if tag is not None and driver.get("tag") != tag:
            where.add("EXISTS (SELECT 1 FROM run_tags g WHERE g.tag = ? AND g.run_id = r.id)", tag)
    if wanted.text is not None:
        where.add(_TEXT, *(wanted.text,) * 6)


_TEXT = (
    "(instr(r.handler, ?) OR (r.error_kind IS NOT NULL AND (instr(r.error_kind, ?) "
    "OR (instr(r.body, CAST(? AS BLOB)) AND latest_error_has(r.body, ?)) OR EXISTS (SELECT 1 FROM attempts a "
    "WHERE a.run_id = r.id AND a.error IS NOT NULL AND instr(a.error, CAST(? AS BLOB)) AND error_has(a.error, ?)))))"
)


def task_statements(wanted: RunFilter, skew: Skew) -> list[Statement]:
    """The same for tasks."""
    if wanted.ids is not None:
        return [_task_statement(wanted, skew, "tasks r", id=id) for id in wanted.ids]
    if wanted.task is not None:
        return [_task_statement(wanted, skew, "tasks r", id=wanted.task)]
    if wanted.key is not None:
        return [_task_statement(wanted, skew, "tasks r INDEXED BY tasks_key", idempotency_key=wanted.key)]
    if wanted.handler is not None:
        return [_task_statement(wanted, skew, "tasks r INDEXED BY tasks_handler", handler=wanted.handler)]
    if wanted.queue is not None and wanted.queue != DEFAULT_QUEUE:
        return [_task_statement(wanted, skew, "tasks r INDEXED BY tasks_queue", queue=wanted.queue)]
    return [_task_statement(wanted, skew, "tasks r")]


def _task_statement(wanted: RunFilter, skew: Skew, source: str, **driver: Any) -> Statement:
    where = Where()
    for column, value in driver.items():
        where.add(f"r.{column} = ?", value)
    if driver.get("queue") is not None:
        where.add(f"r.queue <> '{DEFAULT_QUEUE}'")
    _bound(where, "r.id", wanted, skew)
    if wanted.task is not None and wanted.ids is not None:
        where.add("r.id = ?", wanted.task)
    for column, value in (("idempotency_key", wanted.key), ("handler", wanted.handler), ("queue", wanted.queue)):
        if value is not None and column not in driver:
            where.add(f"r.{column} = ?", value)
    return f"SELECT r.id FROM {source} WHERE {' AND '.join(where.conditions)} ORDER BY r.id DESC LIMIT ?", [
        *where.values,
        wanted.limit,
    ]
