"""What users type to pick runs, checked and turned into what a reader takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from actionqueue.core.batches import batch_mark
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.ids import BatchId, RunId, TaskId
from actionqueue.core.instants import instant_us
from actionqueue.core.run import RunState
from actionqueue.core.state import CODE_OF
from actionqueue.store.port import RunFilter

LIMIT_DEFAULT, LIMIT_MAX = 100, 1000
"""Records of one page (100 where nothing is asked)."""


class TaskFilters(TypedDict, total=False):
    """What narrows a listing of tasks; conditions hold together, and one that is None is not there."""

    task: TaskId | UUID | str | bytes | None
    handler: str | None
    queue: str | None
    key: str | None
    """The task's idempotency key."""
    since: datetime | None
    """Created at it or later; an aware datetime, as ``until``."""
    until: datetime | None
    cursor: TaskId | RunId | UUID | str | None
    """``next_cursor`` of a page."""
    limit: int | None


class RunFilters(TaskFilters, total=False):
    """What narrows a listing of runs, and picks the runs of a bulk command."""

    state: RunState | str | Iterable[RunState | str] | None
    tag: str | None
    batch: BatchId | UUID | str | None
    """The id of the batch it was submitted in."""
    error: str | None
    """The kind of the latest error, such as ``ValueError``."""
    text: str | None
    """In the error or the handler's name; needs ``since``."""


_RUN_NAMES = frozenset(RunFilters.__annotations__)
_TASK_NAMES = frozenset(TaskFilters.__annotations__)


class Filter:
    """Named conditions; raises ``InvalidSubmission`` naming every problem."""

    def __init__(self, wanted: Mapping[str, Any], names: frozenset[str] = _RUN_NAMES) -> None:
        self._wanted = {name: value for name, value in wanted.items() if value is not None}
        self._problems: dict[str, str] = {
            name: f"no such filter; there are {', '.join(sorted(names))}" for name in self._wanted if name not in names
        }

    def run_filter(self) -> RunFilter:
        """The conditions as a reader takes them."""
        text = self._text("text")
        since = self._instant("since")
        if text is not None and since is None:
            self._problems["text"] = "needs since (a text is searched within a time range)"
        found = RunFilter(
            states=self._states(),
            task=self._id("task", TaskId),
            handler=self._text("handler"),
            queue=self._text("queue"),
            tag=self._text("tag"),
            mark=self._mark(),
            key=self._text("key"),
            since=since,
            until=self._instant("until"),
            error=self._text("error"),
            text=text,
            cursor=self._id("cursor", RunId),
            limit=self._limit(),
        )
        if self._problems:
            listed = "; ".join(f"{name}: {problem}" for name, problem in self._problems.items())
            raise InvalidSubmission(f"the filter is not valid: {listed}", problems=self._problems)
        return found

    def _states(self) -> tuple[int, ...] | None:
        value = self._wanted.get("state")
        if value is None:
            return None
        codes = []
        for each in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
            try:
                codes.append(CODE_OF[RunState(each)])
            except ValueError:
                self._problems["state"] = f"{each!r} is none of {', '.join(state.value for state in RunState)}"
        return tuple(codes)

    def _text(self, name: str) -> str | None:
        value = self._wanted.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            self._problems[name] = "not a non-empty text"
            return None
        return value

    def _instant(self, name: str) -> int | None:
        value = self._wanted.get(name)
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            self._problems[name] = "not an aware datetime; add a time zone, such as datetime.now(timezone.utc)"
            return None
        return instant_us(value, field=name)

    def _mark(self) -> str | None:
        batch_id = self._id("batch", BatchId)
        return None if batch_id is None else batch_mark(batch_id)

    def _id(self, name: str, kind: type[TaskId | RunId | BatchId]) -> bytes | None:
        value = self._wanted.get(name)
        if value is None:
            return None
        try:
            return kind.parse(value, field=name).bytes
        except InvalidSubmission as error:
            self._problems[name] = error.message
            return None

    def _limit(self) -> int:
        value: int = self._wanted.get("limit", LIMIT_DEFAULT)
        problem = limit_problem(value)
        if problem is not None:
            self._problems["limit"] = problem
            return LIMIT_DEFAULT
        return value


def limit_problem(value: object, maximum: int = LIMIT_MAX) -> str | None:
    """What is wrong with a number of records to return."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        return f"not a whole number from 1 to {maximum}"
    return None


def check_limit(value: object, maximum: int = LIMIT_MAX) -> None:
    """Raise ``InvalidSubmission`` for it."""
    problem = limit_problem(value, maximum)
    if problem is not None:
        raise InvalidSubmission(f"limit: {problem}", problems={"limit": problem})


def task_filter(wanted: Mapping[str, Any]) -> RunFilter:
    """Conditions on tasks."""
    return Filter(wanted, _TASK_NAMES).run_filter()
