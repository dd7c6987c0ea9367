"""Instants that runs wait for, and deadlines to start: two heaps.

Entries become outdated when their run leaves, moves, or starts; they are dropped when they surface, and a heap is rebuilt
when more than half of it is outdated. Knows: who waits until when. Must not know: what happens then.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.reasons import Where

if TYPE_CHECKING:
    from actionqueue.core.state import Run

Entry = tuple[int, int, "Run"]
"""(instant, serial, run)"""

OUTDATED_MAX = 64
"""Outdated entries that a heap may have, beside as many as it has others."""


class Timers(Struct, eq=False):
    """What is to happen at an instant. ``waiting`` counts the runs that wait for one."""

    waiting: int = 0
    due_at: list[Entry] = field(default_factory=list)
    deadlines: list[Entry] = field(default_factory=list)
    suspended: bool = False
    """Set while the clock cannot be trusted: no deadline to start passes."""
    _serial: int = 0

    def add(self, run: Run, until: int) -> None:
        """``run`` waits until that instant."""
        self._serial += 1
        self.waiting += 1
        heappush(self.due_at, (until, self._serial, run))

    def remove(self, run: Run) -> None:
        """``run`` waits no more; its entry has become outdated."""
        self.waiting -= 1
        if len(self.due_at) > OUTDATED_MAX + 2 * self.waiting:
            self.due_at = [entry for entry in self.due_at if _is_timed(entry)]
            heapify(self.due_at)

    def watch_deadline(self, run: Run) -> None:
        """Remember the deadline to start of ``run``, if it has one."""
        expires_at = deadline_of(run)
        if expires_at is not None:
            self._serial += 1
            heappush(self.deadlines, (expires_at, self._serial, run))

    def take_due(self, now: int, most: int) -> list[Run]:
        """Take up to ``most`` runs whose instant has come, first due first; they are nowhere then."""
        found: list[Run] = []
        heap = self.due_at
        while heap and heap[0][0] <= now and len(found) < most:
            entry = heappop(heap)
            if _is_timed(entry):
                self.waiting -= 1
                entry[2].where = Where.NOWHERE
                found.append(entry[2])
        return found

    def take_expired(self, now: int, most: int) -> list[Run]:
        """Up to ``most`` runs whose deadline to start has passed before they started."""
        found: dict[bytes, Run] = {}
        heap = self.deadlines
        while heap and not self.suspended and heap[0][0] <= now and len(found) < most:
            entry = heappop(heap)
            if _may_expire(entry):
                found[entry[2].id_bytes] = entry[2]  # one that was moved to and fro may be there twice
        return list(found.values())

    def too_late(self, run: Run, now: int) -> list[Run]:
        """``run`` itself, if its deadline to start has passed: an occurrence that is made up for may come too late."""
        deadline = None if self.suspended or run.attempt_count else deadline_of(run)
        return [run] if deadline is not None and deadline <= now else []

    def next_due(self) -> int | None:
        """The earliest instant that a run waits for."""
        heap = self.due_at
        while heap and not _is_timed(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def next_deadline(self) -> int | None:
        """The earliest deadline that can pass."""
        heap = self.deadlines
        while heap and not _may_expire(heap[0]):
            heappop(heap)
        return heap[0][0] if heap and not self.suspended else None

    def trim(self, live: int) -> None:
        """Look through the deadlines when most of them are outdated. ``live``: how many live runs there are."""
        if len(self.deadlines) > OUTDATED_MAX + 2 * live:
            self.deadlines = [entry for entry in self.deadlines if _may_expire(entry)]
            heapify(self.deadlines)

    def clear(self) -> None:
        """Forget everything."""
        self.due_at.clear()
        self.deadlines.clear()
        self.waiting = 0


def _is_timed(entry: Entry) -> bool:
    return entry[2].where is Where.TIMER and entry[2].until == entry[0]


def deadline_of(run: Run) -> int | None:
    """The instant by which ``run`` must have started, if there is one: of a schedule's, counted from its occurrence."""
    extra = run.task.extra
    if run.lineage is not None:
        return None  # asked for
    return extra.expires_at if extra.expires_us is None else run.until + extra.expires_us


def is_ahead(run: Run) -> bool:
    """Whether it is the next occurrence of a schedule, which misfire rules deal with before any deadline does."""
    schedule = run.task.extra.schedule
    return schedule is not None and schedule.pending == run.id_bytes


def _may_expire(entry: Entry) -> bool:
    run = entry[2]
    if is_ahead(run):
        return False
    return run.where is not Where.NOWHERE and run.attempt_count == 0 and deadline_of(run) == entry[0]
