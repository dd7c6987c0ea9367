"""What is known for certain of the future of a state: occurrences, runs that wait for an instant, deadlines to start.

Asked of a state in which everything due has been dealt with. What there is much of is shortened: of occurrences, the
first few, and one entry for the rest; of runs, those that come close together are one entry. An occurrence at which the
wall clock is changed is never shortened away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core.awaiting import SLEEP, Wait
from actionqueue.core.clock_notes import changes, clock_note
from actionqueue.core.fire_times import Timetable
from actionqueue.core.forecast import ForecastEntry, Kind
from actionqueue.core.ids import RunId
from actionqueue.core.instants import SECOND_US, format_duration, to_datetime
from actionqueue.core.reasons import Where
from actionqueue.core.rules import CronRule
from actionqueue.core.run import RunState
from actionqueue.core.schedules import left_of, timetable_of
from actionqueue.core.state import Run, Schedule, State
from actionqueue.core.timers import deadline_of
from actionqueue.core.zones import zone

LISTED_MAX = 5
"""So many of a kind are listed one by one."""
LISTED_OF_MORE = 3
"""Of more occurrences than that, so many, and the others in one entry."""
BURSTS_MAX = 10
"""Of more runs than that, so many entries, or one more."""
ENTRIES_MAX = 2_000
"""Entries of a forecast. The latest are left out, which it says."""


def known_entries(
    state: State, now: int, until: int, uncertain: Collection[bytes] = ()
) -> Iterator[tuple[datetime, ForecastEntry]]:
    """Everything known after ``now`` up to ``until``, not in order, each with when it is due by the engine's clock.

    Of runs in ``uncertain`` it is estimated.
    """
    for schedule in state.schedules.values():
        ahead = timedelta(microseconds=state.shift_of(schedule.rule))
        for entry in _occurrences(state, schedule, now, until):
            yield entry.at - ahead, entry
    waiting: dict[tuple[Kind, str, str], list[tuple[int, Run]]] = defaultdict(list)
    waits = state.places.awaiting.waits
    for run in state.runs.values():
        for kind, at in _instants(run, waits):
            if now < at <= until:
                waiting[kind, run.task.handler, run.task.queue].append((at, run))
    for (kind, _, _), found in waiting.items():
        found.sort(key=lambda each: each[0])
        for entry in _shortened(state, kind, found, uncertain):
            yield entry.at, entry


def _instants(run: Run, waits: Mapping[bytes, Wait]) -> Iterator[tuple[Kind, int]]:
    """What ``run`` has to do with instants to come."""
    schedule = run.task.extra.schedule
    if run.where is Where.TIMER and (schedule is None or schedule.pending != run.id_bytes):
        yield "retry" if run.state is RunState.RETRY_WAIT else "scheduled", run.until
    elif run.where is Where.AWAITING and run.until:
        yield "wakes" if waits[run.id_bytes].kind == SLEEP else "timeout", run.until
    deadline = None if run.attempt_count else deadline_of(run)
    if deadline is not None:
        yield "deadline", deadline


def _shortened(
    state: State, kind: Kind, found: list[tuple[int, Run]], uncertain: Collection[bytes]
) -> Iterator[ForecastEntry]:
    bursts = [found[n : n + 1] for n in range(len(found))] if len(found) <= LISTED_MAX else _bursts(found)
    for burst in bursts:
        at, run = burst[0]
        exact = all(run.id_bytes not in uncertain for _, run in burst)
        entry = _of_run(state, kind, at, run, exact=exact)
        if len(burst) > 1:
            entry = replace(entry, count=len(burst), until=to_datetime(burst[-1][0]), run=None, note="")
        yield entry


def _bursts(found: list[tuple[int, Run]]) -> Iterator[list[tuple[int, Run]]]:
    """Those that come close together, seen from afar: apart where nothing happens for a tenth of the whole time."""
    apart = max(SECOND_US, (found[-1][0] - found[0][0]) // BURSTS_MAX)
    begin = 0
    for n in range(1, len(found) + 1):
        if n == len(found) or found[n][0] - found[n - 1][0] >= apart:
            yield found[begin:n]
            begin = n


def _of_run(state: State, kind: Kind, at: int, run: Run, *, exact: bool) -> ForecastEntry:
    task = run.task
    note = ""
    if kind == "retry":
        note = f"attempt {run.attempt_count + 1}" + (f", after {run.error_kind}" if run.error_kind else "")
    elif kind == "timeout":
        wait = state.places.awaiting.waits[run.id_bytes]
        note = f"unless signal {wait.signal} comes before" if wait.signal else ""
    return ForecastEntry(
        at=to_datetime(at), kind=kind, exact=exact, name=task.handler, handler=task.handler, queue=task.queue,
        run=RunId(bytes=run.id_bytes), held_by="" if kind in ("deadline", "timeout") else held_by(state, run), note=note,
    )  # fmt: skip


def held_by(state: State, run: Run) -> str:
    """The pause that ``run`` is under, named by its scope; or that no engine has its handler; empty for neither."""
    mark = state.places.engine_pause or run.task.lane.pause
    if mark is not None:
        return f"the pause of {scope_named(mark.scope, mark.name)}"
    return "" if run.task.lane.executor is not None else f"handler {run.task.handler}, which no engine has"


def scope_named(scope: str, name: str) -> str:
    """``"queue mail"``, ``"the engine"``."""
    return f"{scope} {name}" if name else f"the {scope}"


# --- schedules ----------------------------------------------------------------------------------------------------


class _Range(Struct):
    """The occurrences of a schedule that are asked about: ``count`` of them after ``after``, of those in ``times``."""

    schedule: Schedule
    times: Timetable
    after: int
    count: int
    entry: ForecastEntry
    """What all its entries have in common."""

    def nominal(self, index: int) -> int:
        """The nominal instant of the ``index``-th, from 1."""
        at = self.times.nth_after(self.after, index)
        assert at is not None, "it was counted"
        return at


def _occurrences(state: State, schedule: Schedule, now: int, until: int) -> Iterator[ForecastEntry]:
    """Those of a schedule, by the clock that it follows."""
    task = state.tasks.get(schedule.task_id)
    pending = None if schedule.pending is None else state.runs.get(schedule.pending)
    if task is None or (pending is None and schedule.over):
        return
    run, rule, shift = pending or task.head, schedule.rule, state.shift_of(schedule.rule)
    now, until = now + shift, until + shift
    template = ForecastEntry(
        at=to_datetime(now), kind="schedule", exact=True, name=schedule.name or schedule.handler,
        handler=schedule.handler, queue=task.queue, held_by="" if run is None else held_by(state, run),
    )  # fmt: skip
    after, left, times = schedule.cursor, left_of(schedule), timetable_of(schedule)
    if pending is not None and isinstance(rule, CronRule) and rule.jitter_us and pending.where is Where.TIMER:
        if now < pending.until + shift <= until:
            yield _jittered(schedule, template, pending, shift)
    elif pending is not None:
        after, left = after - 1, None if left is None else left + 1
    if schedule.retired_at is not None:
        until = min(until, schedule.retired_at)
    if after < now:
        left = None if left is None else left - times.count(after, now)
        after = now
    count = times.count(after, until) if after < until and (after < schedule.cursor or not schedule.over) else 0
    count = count if left is None else max(0, min(count, left))
    if count:
        yield from _of_range(_Range(schedule, times, after, count, template), until)


def _jittered(schedule: Schedule, template: ForecastEntry, pending: Run, shift: int) -> ForecastEntry:
    """The next occurrence, whose jitter is drawn already."""
    here, at = zone(_zone_of(schedule)), pending.until + shift
    jitter = format_duration(max(0, at - schedule.cursor))
    return replace(
        template, at=to_datetime(at).astimezone(here), run=RunId(bytes=pending.id_bytes),
        note=f"{to_datetime(schedule.cursor).astimezone(here):%H:%M:%S} and {jitter} of jitter",
    )  # fmt: skip


def _of_range(asked: _Range, until: int) -> Iterator[ForecastEntry]:
    listed = sorted(_listed(asked, until))
    done = 0
    for index in [*listed, asked.count + 1]:
        if index - done > 1:
            yield _group(asked, done + 1, index - 1)
        if index <= asked.count:
            yield _single(asked, index)
        done = index


def _listed(asked: _Range, until: int) -> set[int]:
    """The occurrences that are listed one by one, as their indexes from 1."""
    if asked.count <= LISTED_MAX:
        return set(range(1, asked.count + 1))
    found = set(range(1, LISTED_OF_MORE + 1))
    rule = asked.schedule.rule
    if isinstance(rule, CronRule):
        for at, jump_us in changes(rule.timezone, asked.after, until):
            found.add(asked.times.count(asked.after, at - 1) + 1)  # the first after it
            last = asked.times.last_until(at - 1)
            if jump_us < 0 and last is not None and last > asked.after and last >= at + jump_us:
                found.add(asked.times.count(asked.after, last))  # in the hour that comes twice
    return {index for index in found if index <= asked.count}


def _single(asked: _Range, index: int) -> ForecastEntry:
    nominal, rule = asked.nominal(index), asked.schedule.rule
    latest, note = None, ""
    here = zone(_zone_of(asked.schedule))
    if isinstance(rule, CronRule):
        note = clock_note(rule, nominal, asked.times.last_until(nominal - 1))
        latest = to_datetime(nominal + rule.jitter_us).astimezone(here) if rule.jitter_us else None
    return replace(asked.entry, at=to_datetime(nominal).astimezone(here), latest=latest, note=note)


def _group(asked: _Range, first: int, last: int) -> ForecastEntry:
    if first == last:
        return _single(asked, first)
    here = zone(_zone_of(asked.schedule))
    begin, second, middle, end = (asked.nominal(n) for n in (first, first + 1, (first + last) // 2, last))
    step = second - begin
    is_even = end - begin == step * (last - first) and middle - begin == step * ((first + last) // 2 - first)
    return replace(
        asked.entry, at=to_datetime(begin).astimezone(here), until=to_datetime(end).astimezone(here),
        count=last - first + 1, every=to_datetime(step) - to_datetime(0) if is_even else None,
    )  # fmt: skip


def _zone_of(schedule: Schedule) -> str:
    return schedule.rule.timezone if isinstance(schedule.rule, CronRule) else "UTC"
