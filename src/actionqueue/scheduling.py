"""Schedules as operators see them: listing, running one now, filling a range, retiring.

Each is written once, as an ``_op_…`` method that returns an ``Operation`` (``operate.py``).
"""

from __future__ import annotations

from datetime import datetime

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.ids import RunId, TaskId, fresh_id_bytes
from actionqueue.core.instants import instant_us
from actionqueue.core.schedules import AskBackfill, Retire, Trigger
from actionqueue.core.spec import text_problem
from actionqueue.depending import DependingOperating
from actionqueue.operations import Operation, awaiting, blocking
from actionqueue.reading import read_schedules
from actionqueue.records import ScheduleRecord


class SchedulingOperating(DependingOperating):
    """The part of ``ActionQueue`` that concerns schedules."""

    def _op_schedules(self, *, ended: bool = False) -> Operation[list[ScheduleRecord]]:
        """All schedules, by name, then those submitted without one. With ``ended`` also those that are over and done.

        >>> from actionqueue import ActionQueue, Cron
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task(schedule=Cron("0 9 * * MON-FRI", timezone="Europe/Berlin"))
        ... def morning_report() -> None: ...
        >>> with queue.running():
        ...     [(each.name, each.rule, each.paused) for each in queue.schedules()]
        [('morning_report', '0 9 * * MON-FRI Europe/Berlin', False)]
        """
        return self._read(lambda reader: read_schedules(reader, ended=ended), absent=list)

    def _op_trigger(self, name: str | TaskId) -> Operation[RunId]:
        """Run a schedule now, out of turn and beside whatever else it runs; the id of that run.

        ``name`` is the schedule's name, or the id of its task. Its own occurrences are not changed. Raises ``NotFound``,
        ``Conflict`` when it has had all its occurrences.
        """
        command = Trigger(_name_of(name), fresh_id_bytes(), self.asker())
        return self._send(command, lambda reply: RunId(bytes=reply[1]))

    def _op_backfill(self, name: str | TaskId, since: datetime, until: datetime) -> Operation[int]:
        """A run for each nominal time of a schedule from ``since`` on and before ``until``; how many.

        Aware datetimes that have passed. The runs are made a few at a time, oldest first, and each time in the range gets
        one whether it had a run before or not. Raises ``NotFound``, ``Conflict`` when the schedule has had all its
        occurrences, ``InvalidSubmission`` for a range that is empty, not over yet, or of more than a million runs.
        """
        command = AskBackfill(
            _name_of(name), instant_us(since, field="since"), instant_us(until, field="until"), self.asker()
        )
        return self._send(command, int)

    def _op_retire(self, name: str | TaskId) -> Operation[TaskId]:
        """End a schedule: nothing of it is due any more; runs that are there go on. The id of its task.

        One that a decorator declares comes back when its program starts again: take ``schedule=`` away, or pause its
        task. Raises ``NotFound``.
        """
        return self._send(Retire(_name_of(name), self.asker()), lambda reply: TaskId(bytes=reply))

    schedules = blocking(_op_schedules)
    aschedules = awaiting(_op_schedules)
    trigger = blocking(_op_trigger)
    atrigger = awaiting(_op_trigger)
    backfill = blocking(_op_backfill)
    abackfill = awaiting(_op_backfill)
    retire = blocking(_op_retire)
    aretire = awaiting(_op_retire)


def _name_of(name: str | TaskId) -> str:
    text = name.hex if isinstance(name, TaskId) else name
    problem = text_problem(text)
    if problem is not None:
        raise InvalidSubmission(f"name: {problem}", problems={"name": problem})
    return text
