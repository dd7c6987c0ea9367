"""What a rehearsal shows: who waits how long, who meets whom, how much runs at once. All of it is estimated.

Knows: how to count along, a step costing what changes in it and not what there is. Must not know: how time passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal

from msgspec import Struct

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.control import CancelRequested, RunCanceled
from actionqueue.core.forecast import (
    BacklogEstimate,
    ForecastEntry,
    HeldRuns,
    LoadEstimate,
    OverlapEstimate,
    PeakEstimate,
)
from actionqueue.core.instants import to_datetime
from actionqueue.core.known import held_by
from actionqueue.core.lanes import Lane
from actionqueue.core.reasons import Where
from actionqueue.core.rehearsal import Watch
from actionqueue.core.run import RunState
from actionqueue.core.schedules import OccurrencesSkipped
from actionqueue.core.state import RUNNING, Run, Schedule, State

LOADS = 240
"""Intervals that a forecast's load is told by."""
LIMITS_LISTED_MAX = 10
"""Keys and rates that are listed: those for which most wait."""


class Backlog(Struct, eq=False):
    """Runs that wait for one thing."""

    kind: Literal["all", "queue", "key", "rate"]
    name: str
    count: int = 0
    begin: int = 0
    most: int = 0
    empty_first: int | None = None
    empty_last: int | None = None
    """The instants at which, after there were some, none waited: the first and the latest one."""
    half_way: int = 0


class _Starts(Struct, eq=False):
    """The runs of a handler in a queue that waited from the beginning, and what became of them."""

    waiting: int = 0
    started: int = 0
    first: int = 0
    last: int = 0
    expired: int = 0
    expired_first: int = 0
    expired_last: int = 0


class _Meeting(Struct, eq=False):
    """A schedule that meets itself."""

    schedule: Schedule
    first: int
    count: int = 0


class Estimates(Watch):
    """Counts along with a rehearsal of ``state`` from ``now`` to ``until``."""

    def __init__(self, state: State, now: int, until: int) -> None:
        self._state = state
        self._now = now
        self._half = now + (until - now) // 2
        self._is_half_over = False
        self._all = Backlog("all", "")
        self._backlogs: dict[tuple[str, str], Backlog] = {}
        self._of_lane: dict[Lane, tuple[Backlog, ...]] = {}
        self._waiting: dict[bytes, tuple[Backlog, ...]] = {}
        self._touched: set[Backlog] = set()
        self._first: dict[bytes, _Starts] = {}
        self._starts: dict[tuple[str, str], _Starts] = {}
        self._peaks: dict[str, tuple[int, int]] = {}
        self._meetings: dict[bytes, _Meeting] = {}
        self._running: Counter[bytes] = Counter()
        """Attempts of each schedule, by its task."""
        self._loads = _Loads(now, until)
        self.held: Counter[str] = Counter()
        for run in state.runs.values():
            if run.attempt is not None:
                self._note_running(run, now)

    def begin(self) -> None:
        """The present has been dealt with: what waits now is what there is to do."""
        state = self._state
        for run in sorted(state.runs.values(), key=lambda run: run.order):
            if run.attempt is not None:
                continue
            if run.state is RunState.READY and run.id_bytes not in self._waiting:
                self.waits(run)
            if run.id_bytes in self._waiting:
                group = self._starts.setdefault((run.task.handler, run.task.queue), _Starts())
                group.waiting += 1
                self._first[run.id_bytes] = group
            elif run.state is RunState.READY or run.where is Where.HELD or _is_overdue(run, self._now):
                self.held[held_by(state, run)] += 1
        for each in (self._all, *self._backlogs.values()):
            each.begin = each.most = each.half_way = each.count
        self._touched.clear()
        self._loads.note(self._now, state.counts[RUNNING], self._all.count)

    # --- told by the rehearsal ---------------------------------------------------------------------------------

    def waits(self, run: Run) -> None:
        """One more in line, unless it cannot have its turn at all."""
        lane = run.task.lane
        if lane.executor is None or lane.pause is not None or self._state.places.engine_pause is not None:
            return
        backlogs = self._of_lane.get(lane)
        if backlogs is None:
            backlogs = self._of_lane[lane] = tuple(self._of(lane))
        self._waiting[run.id_bytes] = backlogs
        for each in backlogs:
            each.count += 1
        self._touched.update(backlogs)

    def starts(self, run: Run, now: int) -> None:
        """One less in line, if it ever was."""
        run_id = run.id_bytes
        self._leaves(run_id)
        first = self._first.pop(run_id, None) if self._first else None
        if first is not None:
            first.first = first.first or now
            first.last = now
            first.started += 1
        self._note_running(run, now)

    def ends(self, run: Run, event: AttemptFinished) -> None:
        """Its schedule may come again."""
        if run.task.extra.schedule is not None:
            self._running[run.task.id] -= 1

    def cancels(self, run: Run, event: RunCanceled) -> None:
        """It waits no more."""
        self._leaves(run.id_bytes)
        first = self._first.pop(run.id_bytes, None)
        if event.reason != "expired":
            if run.task.extra.schedule is not None:
                self._meet(run.task.extra.schedule, event.at)
            return
        group = first or self._starts.setdefault((run.task.handler, run.task.queue), _Starts())
        group.expired_first = group.expired_first or event.at
        group.expired_last = event.at
        group.expired += 1

    def overlaps(self, task_id: bytes, event: Any) -> None:
        """A schedule met itself."""
        schedule = self._state.schedules.get(task_id)
        if schedule is None:
            return
        if type(event) is OccurrencesSkipped:
            if event.reason in ("overlap", "queue_full"):
                self._meet(schedule, event.at, event.count + event.ends)
        elif type(event) is CancelRequested or schedule.rule.overlap != "cancel_running":
            self._meet(schedule, event.at)

    def settles(self, now: int) -> None:
        """Peaks and ends of backlogs are those that last."""
        if now >= self._half and not self._is_half_over:
            self._is_half_over = True
            for each in (self._all, *self._backlogs.values()):
                each.half_way = each.count
        for backlog in self._touched:
            if backlog.count > backlog.most:
                backlog.most = backlog.count
            elif not backlog.count and backlog.most:
                backlog.empty_first = backlog.empty_first or now
                backlog.empty_last = now
        self._touched.clear()
        self._loads.note(now, self._state.counts[RUNNING], self._all.count)

    # --- what it comes to --------------------------------------------------------------------------------------

    def limits_left_out(self) -> int:
        """How many keys and rates there are besides, for which some wait."""
        return max(
            0, sum(each.most > 0 and each.kind != "queue" for each in self._backlogs.values()) - LIMITS_LISTED_MAX
        )

    def backlogs(self) -> Iterator[BacklogEstimate]:
        """That of all, then those of queues, then of keys and rates, the longest first; those in which some wait."""
        found = [each for each in self._backlogs.values() if each.most]
        queues = sorted((each for each in found if each.kind == "queue"), key=lambda each: each.name)
        limits = sorted((each for each in found if each.kind != "queue"), key=_length)
        for each in (self._all, *queues, *limits[:LIMITS_LISTED_MAX]):
            yield BacklogEstimate(
                kind=each.kind, name=each.name, waiting=each.begin, most=each.most, left=each.count,
                drained_at=None if each.empty_first is None or not each.begin else to_datetime(each.empty_first),
                grows=self._grows(each),
            )  # fmt: skip

    def _grows(self, backlog: Backlog) -> bool:
        """More wait at the end than half way and at the beginning, and at no instant in between did none."""
        since = self._half
        return (
            backlog.count > max(backlog.half_way, backlog.begin)
            and backlog.half_way > 0
            and (backlog.empty_last is None or backlog.empty_last < since)
        )

    def overlaps_found(self, takes: Callable[[str], timedelta]) -> Iterator[OverlapEstimate]:
        """Schedules that meet themselves, the first one first."""
        for each in sorted(self._meetings.values(), key=lambda each: each.first):
            schedule = each.schedule
            yield OverlapEstimate(
                schedule=schedule.name or schedule.handler, handler=schedule.handler, policy=schedule.rule.overlap,
                count=each.count, first_at=to_datetime(each.first), takes=takes(schedule.handler),
            )  # fmt: skip

    def peaks(self) -> Iterator[PeakEstimate]:
        """Of each executor that has a handler to run."""
        for name, slots in self._state.places.executors.items():
            most, at = self._peaks.get(name, (0, 0))
            yield PeakEstimate(
                executor=name, capacity=slots.capacity or 0, most=most, at=to_datetime(at) if most else None
            )

    def held_runs(self) -> Iterator[HeldRuns]:
        """Most first."""
        for by, waiting in self.held.most_common():
            yield HeldRuns(by=by, waiting=waiting)

    def close(self, now: int) -> None:
        """The rehearsal ends at ``now``."""
        self._loads.pass_time(now)

    def loads(self) -> tuple[LoadEstimate, ...]:
        """How much ran and waited, interval by interval."""
        return self._loads.told()

    def entries(self) -> Iterator[ForecastEntry]:
        """What there is to say at an instant, not in order."""
        for (handler, queue), each in self._starts.items():
            named: dict[str, Any] = {"exact": False, "name": handler, "handler": handler, "queue": queue}
            if each.started:
                note = "" if each.started == each.waiting else f"of {each.waiting} waiting"
                yield ForecastEntry(
                    at=to_datetime(each.first), kind="start", count=each.started, until=_until(each.first, each.last),
                    note=note, **named,
                )  # fmt: skip
            if each.expired:
                yield ForecastEntry(
                    at=to_datetime(each.expired_first), kind="expiry", count=each.expired,
                    until=_until(each.expired_first, each.expired_last), **named,
                )  # fmt: skip
        for backlog in self.backlogs():
            is_worth_it = backlog.kind in ("all", "queue") or backlog.waiting > 1 or not self.limits_left_out()
            if backlog.drained_at is not None and is_worth_it:
                name = "everything" if backlog.kind == "all" else f"{backlog.kind} {backlog.name}"
                yield ForecastEntry(at=backlog.drained_at, kind="drained", exact=False, name=name)

    # --- parts -------------------------------------------------------------------------------------------------

    def _of(self, lane: Lane) -> Iterator[Backlog]:
        yield self._all
        yield self._named("queue", lane.queue.name)
        for slots in lane.keys:
            yield self._named("key", slots.name)
        for bucket in lane.rates:
            yield self._named("rate", bucket.name)

    def _named(self, kind: Literal["queue", "key", "rate"], name: str) -> Backlog:
        found = self._backlogs.get((kind, name))
        if found is None:
            found = self._backlogs[kind, name] = Backlog(kind, name)
        return found

    def _leaves(self, run_id: bytes) -> None:
        backlogs = self._waiting.pop(run_id, None)
        if backlogs is not None:
            for each in backlogs:
                each.count -= 1
            self._touched.update(backlogs)

    def _note_running(self, run: Run, now: int) -> None:
        executor = run.task.lane.executor
        if executor is not None:
            running = len(executor.running)
            if running > self._peaks.get(executor.name, (0, 0))[0]:
                self._peaks[executor.name] = running, now
        schedule = run.task.extra.schedule
        if schedule is not None:
            self._running[run.task.id] += 1
            if self._running[run.task.id] > 1 and schedule.rule.overlap == "allow":
                self._meet(schedule, now)

    def _meet(self, schedule: Schedule, now: int, count: int = 1) -> None:
        meeting = self._meetings.get(schedule.task_id)
        if meeting is None:
            meeting = self._meetings[schedule.task_id] = _Meeting(schedule, now)
        meeting.count += count


class _Loads:
    """Running and waiting over equal intervals."""

    def __init__(self, now: int, until: int) -> None:
        self._begin = now
        self._step = max(1, -(-(until - now) // LOADS))
        self._areas: list[int] = [0] * LOADS
        self._most: list[int] = [0] * LOADS
        self._at = now
        self._running = self._waiting = 0

    def note(self, now: int, running: int, waiting: int) -> None:
        """From ``now`` on there are so many."""
        self.pass_time(now)
        self._running, self._waiting = running, waiting
        index = min((now - self._begin) // self._step, LOADS - 1)
        self._most[index] = max(self._most[index], waiting)

    def pass_time(self, now: int) -> None:
        at, step = self._at, self._step
        while at < now:
            index = min((at - self._begin) // step, LOADS - 1)
            until = min(now, self._begin + (index + 1) * step) if index < LOADS - 1 else now
            self._areas[index] += self._running * (until - at)
            self._most[index] = max(self._most[index], self._waiting)
            at = until
        self._at = now

    def told(self) -> tuple[LoadEstimate, ...]:
        used = -(-(self._at - self._begin) // self._step)
        return tuple(
            LoadEstimate(
                at=to_datetime(self._begin + n * self._step),
                running=round(self._areas[n] / min(self._step, self._at - self._begin - n * self._step), 2),
                waiting=self._most[n],
            )
            for n in range(min(used, LOADS))
        )


def _length(backlog: Backlog) -> tuple[int, int, str, str]:
    return -backlog.begin, -backlog.most, backlog.kind, backlog.name


def _is_overdue(run: Run, now: int) -> bool:
    """Under a pause of the engine nothing is taken off the timers."""
    return run.where is Where.TIMER and run.until <= now


def _until(first: int, last: int) -> Any:
    return to_datetime(last) if last > first else None
